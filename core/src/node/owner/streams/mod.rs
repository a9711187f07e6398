//! Streams: clones are made independent of their parents, one job a volume.
//!
//! ```text
//! start -> record -> walk: fill stretch after stretch (asking.rs, the shards) -> end
//!            began at 0 in this process, nothing left out? no: walk again from 0
//!            yes -> flush of the clone -> one record: detached, job over, event -> directory
//! ```
//! The catalog has the job, its cursor now and then. What a walk has passed stays filled (C9), but copies of a job that a crash has cut
//! short need not be durable: so the last walk begins at 0 in the process that ends the job. It reads the map and copies
//! what is missing. The link goes, the job ends and its last event is told by one write of the catalog: that event exists exactly once, and
//! never while the clone still needs its parent.
//!
//! An increment (`stream step`) is a job without a record: it walks one stretch, and at the end of the volume does what a job does there.

mod commands;
mod run;

use std::collections::BTreeMap;

use ringway_reactor::io::Instant;

use super::Owner;
use crate::catalog::StreamRecord;
use crate::control::{ControlError, Reply};
use crate::event::Event;
use crate::ids::{JobId, VolumeId};
use crate::stream::StreamStart;

/// What the catalog's writer has to do for streams.
pub(super) enum Work {
    Start(StreamStart, Reply),
    SetSpeed(String, Option<u64>, Reply),
    Resume(String, Reply),
    Abort(String, Reply),
    /// The link goes, of this run of this volume.
    Finish(VolumeId, u64),
    /// It has met an error: it pauses, or is over.
    Broken(VolumeId, u64, ControlError),
    /// Where it is.
    Keep(VolumeId, u64),
}

/// What is done once that is durable.
pub(super) enum Outcome {
    /// Answer with the job as it is.
    Show(VolumeId, Reply),
    /// It is over.
    Ended(Reply),
    /// The link is gone.
    Finished(VolumeId),
    /// An error is on record, or a cursor.
    Noted(VolumeId, u64),
}

/// Streams that run, and increments.
#[derive(Default)]
pub(super) struct Streams {
    runs: BTreeMap<VolumeId, Run>,
    /// Flushes under way: of which run of which volume.
    flushes: BTreeMap<u64, (VolumeId, u64)>,
    next_run: u64,
    /// As of this turn.
    now: Instant,
}

/// Why it runs.
enum Purpose {
    /// A job, as the catalog has it.
    Job(StreamRecord),
    /// An increment, and who waits for it.
    Step(Reply),
}

/// What it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    /// Its time.
    Until(Instant),
    /// The shards: a stretch is filled.
    Filling(Instant),
    /// The shards: everything is made durable.
    Flushing,
    /// The catalog.
    Recording,
    /// Somebody to resume it.
    Resumption,
}

/// One of them.
struct Run {
    /// Of this process.
    number: u64,
    purpose: Purpose,
    waits: Waits,
    /// Where the walk is.
    cursor: u64,
    /// Where any walk was.
    farthest: u64,
    end: u64,
    copied: u64,
    /// The walk began at 0 and has left nothing out.
    whole: bool,
    /// It has come to its end.
    walked: bool,
    /// The error that it has met last.
    error: Option<String>,
    /// How often in a row.
    errors: u32,
    /// Where it was when the catalog heard of it, and when that was.
    kept: (u64, Instant),
}

impl Run {
    fn job(&self) -> Option<&StreamRecord> {
        match &self.purpose {
            Purpose::Job(record) => Some(record),
            Purpose::Step(_) => None,
        }
    }

    fn job_id(&self) -> Option<JobId> {
        self.job().map(|record| record.job)
    }
}

impl Streams {
    /// When something is to be done.
    pub(super) fn next_deadline(&self) -> Instant {
        let due = |run: &Run| match run.waits {
            Waits::Until(then) => then,
            _ => Instant::NEVER,
        };
        self.runs.values().map(due).min().unwrap_or(Instant::NEVER)
    }

    fn jobs(&self) -> usize {
        self.runs.values().filter(|run| run.job().is_some()).count()
    }

    fn run(&mut self, volume: VolumeId, number: u64) -> Option<&mut Run> {
        self.runs.get_mut(&volume).filter(|run| run.number == number)
    }

    fn add(&mut self, volume: VolumeId, purpose: Purpose, cursor: u64, end: u64) {
        self.next_run += 1;
        let copied = if let Purpose::Job(record) = &purpose { record.copied } else { 0 };
        let paused = if let Purpose::Job(record) = &purpose { record.paused.clone() } else { None };
        let run = Run {
            number: self.next_run,
            waits: if paused.is_some() { Waits::Resumption } else { Waits::Until(self.now) },
            purpose,
            cursor,
            farthest: cursor,
            end,
            copied,
            whole: cursor == 0,
            walked: false,
            error: paused,
            errors: 0,
            kept: (cursor, self.now),
        };
        self.runs.insert(volume, run);
    }
}

impl Owner {
    /// An event of a run of this volume.
    fn stream_event(&self, kind: crate::event::EventKind, volume: VolumeId, job: Option<JobId>) -> Event {
        let name = self.store.state().volume(volume).map_or_else(String::new, |entry| entry.record.name.clone());
        Event::new(kind, Some(volume), name).of_job(job)
    }
}
