//! Where the time of a snapshot goes, step by step.

use super::{Counter, Histogram, LatencyTotals};

/// A step of a snapshot's making, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SnapshotStep {
    /// From the call's arrival to where the coordinator takes it up.
    Start,
    /// From there until every shard of every volume is armed.
    Arm,
    /// From there until the word was stepped: the cut.
    Cut,
    /// From there until every shard has sealed it, durably.
    Seal,
    /// From there until the backend has it; not of those that do not wait for one.
    Sync,
    /// From there until its record is durable; its turn after older snapshots of the volume is part of that.
    Commit,
}

impl SnapshotStep {
    /// In their order.
    pub const ALL: [SnapshotStep; 6] = [
        SnapshotStep::Start,
        SnapshotStep::Arm,
        SnapshotStep::Cut,
        SnapshotStep::Seal,
        SnapshotStep::Sync,
        SnapshotStep::Commit,
    ];

    /// As the metric's label says it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            SnapshotStep::Start => "start",
            SnapshotStep::Arm => "arm",
            SnapshotStep::Cut => "cut",
            SnapshotStep::Seal => "seal",
            SnapshotStep::Sync => "sync",
            SnapshotStep::Commit => "commit",
        }
    }
}

/// Snapshots, one count a call however many volumes it cuts. Written by the catalog's owner alone.
#[derive(Debug, Default)]
pub struct SnapshotMetrics {
    steps: [Histogram; SnapshotStep::ALL.len()],
    /// Those that came to be.
    pub made: Counter,
    /// Those whose deadline passed first.
    pub expired: Counter,
    /// Those that were refused a record, withdrawn or given up.
    pub failed: Counter,
    /// From the deadline of those that missed it to their answer.
    pub late: Histogram,
}

impl SnapshotMetrics {
    /// A step has ended; also of a snapshot that does not come to be.
    pub fn step(&self, step: SnapshotStep, ns: u64) {
        self.steps[step as usize].record(ns);
    }

    /// What a reader makes of a step.
    #[must_use]
    pub fn totals(&self, step: SnapshotStep) -> LatencyTotals {
        let mut totals = LatencyTotals::default();
        totals.add(&self.steps[step as usize]);
        totals
    }

    /// What a reader makes of the lateness.
    #[must_use]
    pub fn late_totals(&self) -> LatencyTotals {
        let mut totals = LatencyTotals::default();
        totals.add(&self.late);
        totals
    }
}
