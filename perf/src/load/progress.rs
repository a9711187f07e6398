//! How far a run is.

use std::ops::ControlFlow;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Making the first connection.
    Connecting,
    /// The load itself.
    Loading,
    /// The connection broke and is being made anew.
    Waiting,
    /// The flush after the load.
    Flushing,
    /// Reading everything back.
    Sweeping,
}

/// How far a run is, told about ten times a second.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub stage: Stage,
    /// Since the load began.
    pub elapsed: Duration,
    /// Operations done.
    pub operations: u64,
    /// Operations a second since the last snapshot.
    pub iops: f64,
    /// 0 to 1, of this stage.
    pub done: f64,
    /// Units at fault so far.
    pub faults: u64,
    /// Breaks of the connection so far.
    pub outages: u64,
    /// Flushes that succeeded so far.
    pub flushes: u64,
}

/// Hears snapshots; [`ControlFlow::Break`] ends the load early (flush and sweep still follow).
pub trait Progress {
    /// One snapshot.
    fn tell(&mut self, snapshot: &Snapshot) -> ControlFlow<()>;
}

impl<F: FnMut(&Snapshot) -> ControlFlow<()>> Progress for F {
    fn tell(&mut self, snapshot: &Snapshot) -> ControlFlow<()> {
        self(snapshot)
    }
}

/// Nobody listens.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {
    fn tell(&mut self, _: &Snapshot) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// A bar on standard error, where that is a terminal.
#[derive(Debug)]
pub struct Bar(ProgressBar);

impl Default for Bar {
    fn default() -> Self {
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {percent}%").expect("the template is valid");
        Self(ProgressBar::new(1000).with_style(style))
    }
}

impl Progress for Bar {
    fn tell(&mut self, snapshot: &Snapshot) -> ControlFlow<()> {
        let stage = match snapshot.stage {
            Stage::Connecting => "connecting",
            Stage::Loading => "loading",
            Stage::Waiting => "waiting for the target",
            Stage::Flushing => "flushing",
            Stage::Sweeping => "verifying",
        };
        let faults = if snapshot.faults > 0 { format!(", {} FAULTS", snapshot.faults) } else { String::new() };
        self.0.set_message(format!("{stage}: {} operations, {:.0}/s{faults}", snapshot.operations, snapshot.iops));
        self.0.set_position((snapshot.done * 1000.0) as u64);
        ControlFlow::Continue(())
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
