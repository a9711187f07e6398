//! The bars of `cargo xtask bench`: each sets what we do beside a peer or a bound, in interleaved pairs of one run.

mod control;
mod convert;
mod engine;
mod file_pool;
mod idle;
mod in_process;
mod library;
mod mapped;
mod nbd;
mod null_volume;
mod open;
mod ram;
mod shm;
mod snapshots;
mod target;
mod vhost;

use std::path::PathBuf;
use std::time::Duration;

use ringway_core::host::Target;
use serde::Serialize;

use crate::load::{self, Limit, LoadConfig, LoadReport, Mix, Silent};
use crate::{cpu, echo};

/// What is measured, how long, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of one side of one pair.
    pub time: Duration,
    /// Pairs of each bar.
    pub pairs: usize,
    /// The `ringway` binary.
    pub target: PathBuf,
    /// Holds pools and files that fio uses: the file system that is measured.
    pub dir: PathBuf,
    /// Bytes of the file and of the volume that are compared.
    pub file_bytes: u64,
    /// Bytes that the pool maps which is opened after a kill.
    pub mapped_bytes: u64,
    /// Has libovsvolumedriver with its header, as `cargo xtask ovsvolumedriver` puts them.
    pub library: PathBuf,
    /// The target's, or the echo server's, core.
    pub target_core: usize,
    /// The client's core.
    pub client_core: usize,
}

/// A failed measurement, in words.
pub type Failed = Box<dyn std::error::Error + Send + Sync>;

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Bar {
    /// What is measured.
    pub name: String,
    /// Of every figure here.
    pub unit: &'static str,
    /// Median of ours.
    pub ours: f64,
    /// Median of the peer's.
    pub peer: Option<f64>,
    /// Ours over the peer's.
    pub ratio: Option<f64>,
    /// What is asked for, of the ratio where there is one, of our figure otherwise.
    pub goal: Option<Goal>,
    /// CPU time an operation, nanoseconds: of the client, of the target.
    pub client_cpu_ns: Option<f64>,
    pub target_cpu_ns: Option<f64>,
    /// Of the peer, where it is known.
    pub peer_cpu_ns: Option<f64>,
    /// Ours and the peer's, pair by pair.
    pub samples: Vec<(f64, Option<f64>)>,
    /// Percent of the machine's CPU time that others took meanwhile.
    pub steal_percent: Option<f64>,
}

/// A bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Bar {
    /// A figure of ours alone, held to a bound.
    fn alone(name: String, unit: &'static str, samples: Vec<f64>, goal: Goal, steal_percent: Option<f64>) -> Bar {
        Bar {
            name,
            unit,
            ours: median(samples.clone()),
            peer: None,
            ratio: None,
            goal: Some(goal),
            client_cpu_ns: None,
            target_cpu_ns: None,
            peer_cpu_ns: None,
            samples: samples.into_iter().map(|sample| (sample, None)).collect(),
            steal_percent,
        }
    }

    /// Medians of our runs and of a peer's, pair by pair.
    fn beside(name: String, goal: Option<Goal>, our_sides: &[Side], peer_sides: &[Side]) -> Bar {
        let figures = |sides: &[Side]| sides.iter().map(|side| side.figure).collect::<Vec<_>>();
        let cpu_of = |sides: &[Side], of: fn(&Side) -> Option<f64>| {
            let known: Vec<f64> = sides.iter().filter_map(of).collect();
            (!known.is_empty()).then(|| median(known))
        };
        let (our_figures, peer_figures) = (figures(our_sides), figures(peer_sides));
        // Each pair ran within seconds: the median of their ratios is steadier than the ratio of medians on a shared machine.
        let ratios = our_figures.iter().zip(&peer_figures).map(|(ours, peer)| ours / peer).collect();
        Bar {
            name,
            unit: "operations/s",
            samples: our_figures.iter().zip(&peer_figures).map(|(&ours, &peer)| (ours, Some(peer))).collect(),
            ours: median(our_figures),
            peer: Some(median(peer_figures)),
            ratio: Some(median(ratios)),
            goal,
            client_cpu_ns: cpu_of(our_sides, |side| side.client_cpu_ns),
            target_cpu_ns: cpu_of(our_sides, |side| side.target_cpu_ns),
            peer_cpu_ns: cpu_of(peer_sides, |side| side.client_cpu_ns),
            steal_percent: None,
        }
    }

    /// Whether the goal is met; `None` where there is none.
    #[must_use]
    pub fn met(&self) -> Option<bool> {
        let figure = self.ratio.unwrap_or(self.ours);
        self.goal.map(|goal| match goal {
            Goal::AtLeast(bound) => figure >= bound,
            Goal::AtMost(bound) => figure <= bound,
        })
    }
}

/// What a client does while nothing has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    /// It looks again.
    Polling,
    /// It sleeps until it is woken, as fio does: on two cores a client that spins takes the time of the kernel's own work.
    Asleep,
}

/// One side's figure: how many a second, and CPU time of client and target an operation.
#[derive(Clone, Copy, Debug, Default)]
struct Side {
    figure: f64,
    client_cpu_ns: Option<f64>,
    target_cpu_ns: Option<f64>,
}

impl From<&LoadReport> for Side {
    fn from(report: &LoadReport) -> Side {
        Side { figure: report.iops, client_cpu_ns: Some(report.client_cpu_ns), target_cpu_ns: report.target_cpu_ns }
    }
}

/// Something that is run to get one side's figure.
type Run<'a> = dyn FnMut() -> Result<Side, Failed> + 'a;

/// Runs both sides in turn, `pairs` times, and takes medians.
fn interleave(
    name: String,
    goal: Option<Goal>,
    pairs: usize,
    mut ours: impl FnMut() -> Result<Side, Failed>,
    mut peer: impl FnMut() -> Result<Side, Failed>,
) -> Result<Bar, Failed> {
    let mut bars = interleave_all(pairs, &mut ours, vec![(name, goal, &mut peer)])?;
    Ok(bars.pop().expect("a bar for the one peer"))
}

/// The same beside several peers, of which each makes a bar of the same runs of ours.
fn interleave_all(
    pairs: usize,
    ours: &mut Run<'_>,
    mut peers: Vec<(String, Option<Goal>, &mut Run<'_>)>,
) -> Result<Vec<Bar>, Failed> {
    let steal = cpu::steal();
    let mut sides = vec![Vec::new(); peers.len() + 1];
    for pair in 0..pairs {
        // Who goes first changes: what one leaves behind must not always meet the same other.
        for turn in 0..sides.len() {
            let side = (pair + turn) % sides.len();
            let figure = if side == 0 { ours()? } else { (peers[side - 1].2)()? };
            sides[side].push(figure);
        }
    }
    let steal_percent = cpu::steal_percent(steal, cpu::steal());
    let bars = peers.into_iter().zip(&sides[1..]);
    Ok(bars.map(|((name, goal, _), peer)| Bar { steal_percent, ..Bar::beside(name, goal, &sides[0], peer) }).collect())
}

/// The middle one; the mean of two middle ones.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn median(mut figures: Vec<f64>) -> f64 {
    assert!(!figures.is_empty(), "no figure has no median");
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    if figures.len().is_multiple_of(2) { f64::midpoint(figures[middle - 1], figures[middle]) } else { figures[middle] }
}

/// A polled load of ours on the client's core.
fn polled_load(options: &Options, target: &Target, depth: u32, mix: Mix, pid: u32) -> Result<LoadReport, Failed> {
    let mut config = LoadConfig::new(target.clone());
    config.depth = depth;
    config.mix = mix;
    config.polling = true;
    config.core = Some(options.client_core);
    config.limit = Some(Limit::Time(options.time));
    config.target_pid.store(pid, std::sync::atomic::Ordering::Relaxed);
    let report = load::run(&config, &mut Silent)?;
    if !report.errors.is_empty() {
        return Err(format!("operations failed: {:?}", report.errors).into());
    }
    Ok(report)
}

fn echo_side(options: &Options, depth: u32, by: echo::By) -> Result<Side, Failed> {
    let result = echo::run(by, depth as usize, options.time, options.target_core, options.client_core)?;
    Ok(Side { figure: result.per_second, client_cpu_ns: Some(result.client_cpu_ns), target_cpu_ns: None })
}

/// Ours beside both kinds of echo.
fn beside_echoes(
    options: &Options,
    name: &str,
    depth: u32,
    goal: Option<Goal>,
    ours: &mut Run<'_>,
) -> Result<Vec<Bar>, Failed> {
    let mut by_bytes = || echo_side(options, depth, echo::By::Bytes);
    let mut by_messages = || echo_side(options, depth, echo::By::Messages);
    let named = |echo: &str| format!("{name}, depth {depth}, beside {echo}");
    let peers: Vec<(_, _, &mut Run<'_>)> =
        vec![(named("bytes"), goal, &mut by_bytes), (named("messages"), goal, &mut by_messages)];
    interleave_all(options.pairs, ours, peers)
}

/// A group of bars by name.
type Group = (&'static str, fn(&Options) -> Result<Vec<Bar>, Failed>);

/// All groups, in the order in which they run.
pub const GROUPS: [Group; 16] = [
    ("host", null_volume::host_alone),
    ("null", null_volume::run),
    ("file", file_pool::run),
    ("file-served", file_pool::run_served),
    ("inprocess", in_process::run),
    ("shm", shm::run),
    ("vhost", vhost::run),
    ("nbd", nbd::run),
    ("library", library::run),
    ("open", open::run),
    ("ram", ram::run),
    ("idle", idle::run),
    ("snapshots", snapshots::run_overwrites),
    ("snapshot-times", snapshots::run_times),
    ("clones", snapshots::run_clones),
    ("convert", convert::run),
];

/// The table.
#[must_use]
pub fn table(bars: &[Bar]) -> String {
    let mut out = format!("{:<56} {:>12} {:>12} {:>7} {:>8}  {}\n", "", "ours", "peer", "ratio", "goal", "CPU ns/op");
    for bar in bars {
        let number = |figure: Option<f64>| figure.map_or_else(String::new, |f| format!("{f:.0}"));
        let goal = match bar.goal {
            Some(Goal::AtLeast(bound)) => format!(">= {bound}"),
            Some(Goal::AtMost(bound)) => format!("<= {bound}"),
            None => String::new(),
        };
        let ours = if bar.unit == "operations/s" { format!("{:.0}", bar.ours) } else { format!("{:.3}", bar.ours) };
        let ratio = bar.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        let mut cpu = Vec::new();
        for (who, time) in [("client", bar.client_cpu_ns), ("target", bar.target_cpu_ns), ("peer", bar.peer_cpu_ns)] {
            cpu.extend(time.map(|ns| format!("{who} {ns:.0}")));
        }
        let verdict = match bar.met() {
            Some(true) => "",
            Some(false) => "  MISSED",
            None => "",
        };
        let name = if bar.unit == "operations/s" { bar.name.clone() } else { format!("{} [{}]", bar.name, bar.unit) };
        out += &format!(
            "{name:<56} {ours:>12} {:>12} {ratio:>7} {goal:>8}  {}{verdict}\n",
            number(bar.peer),
            cpu.join(", ")
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn pairs_are_compared_one_by_one_and_a_missed_goal_shows() {
        let (mut ours, mut peer) = ([50.0, 90.0, 10.0].into_iter(), [100.0, 100.0, 100.0].into_iter());
        let side = |figure: Option<f64>| Ok(Side { figure: figure.unwrap(), ..Side::default() });
        let goal = Some(Goal::AtLeast(0.8));
        let bar = interleave("x".into(), goal, 3, || side(ours.next()), || side(peer.next())).unwrap();
        assert_eq!((bar.ratio, bar.met()), (Some(0.5), Some(false)));
        assert!(table(&[bar]).contains("MISSED"));
    }
}
