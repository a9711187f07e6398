//! What volumes have moved and hold, as controllers tell their hosts: the SMART log and NUSE.

use std::fmt;

use crate::ids::VolumeId;
use crate::metrics::{Metrics, OperationKind};

/// One volume's, since the target started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Reads and compares. Counted where they are done: one that crosses a stripe counts as two.
    pub reads: u64,
    /// Writes, likewise.
    pub writes: u64,
    /// Bytes of these.
    pub bytes_read: u64,
    /// Bytes of these.
    pub bytes_written: u64,
    /// Bytes of the pool that hold its data.
    pub allocated: u64,
}

/// Whoever counts that.
pub trait Usages: Send + Sync + fmt::Debug {
    /// As of a moment ago.
    fn of(&self, volume: VolumeId) -> Usage;
}

impl Usages for Metrics {
    fn of(&self, volume: VolumeId) -> Usage {
        let totals = self.volume_totals(volume);
        let of = |kind: OperationKind| &totals.operations[kind as usize];
        let (read, compare, write) = (of(OperationKind::Read), of(OperationKind::Compare), of(OperationKind::Write));
        Usage {
            reads: read.latency.count() + compare.latency.count(),
            writes: write.latency.count(),
            bytes_read: read.bytes + compare.bytes,
            bytes_written: write.bytes,
            allocated: totals.allocated_bytes,
        }
    }
}

/// Nobody counts: volumes are taken as never used.
#[derive(Debug, Default)]
pub(super) struct Uncounted;

impl Usages for Uncounted {
    fn of(&self, _: VolumeId) -> Usage {
        Usage::default()
    }
}
