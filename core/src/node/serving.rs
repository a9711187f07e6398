//! Parts that shards of this reactor are working on, and what they cost.

use std::sync::Arc;

use ringway_reactor::io::Instant;
use rustc_hash::FxHashMap;
use slab::Slab;

use crate::ids::{ShardId, VolumeId};
use crate::metrics::{Metrics, OperationKind, VolumeMetrics};
use crate::request::Status;
use crate::shard::{Part, PartDone};

struct Entry {
    /// The number under which the sender knows it.
    origin: u64,
    kind: OperationKind,
    bytes: u64,
    started: Instant,
    metrics: Arc<VolumeMetrics>,
}

/// Parts in work. The shard knows a part by its slot here.
pub(super) struct Serving {
    metrics: Arc<Metrics>,
    volumes: FxHashMap<(ShardId, VolumeId), Arc<VolumeMetrics>>,
    parts: Slab<Entry>,
}

impl Serving {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, volumes: FxHashMap::default(), parts: Slab::with_capacity(1024) }
    }

    /// Counts the part in and gives it the number under which its shard will return it.
    pub(super) fn begin(&mut self, shard: ShardId, part: &mut Part, now: Instant, hopped: bool) {
        let metrics = &self.metrics;
        let counters =
            self.volumes.entry((shard, part.volume)).or_insert_with(|| metrics.shard(shard).volume(part.volume));
        counters.begin(hopped);
        let entry = Entry {
            origin: part.id,
            kind: OperationKind::from(part.command),
            bytes: u64::from(part.len),
            started: now,
            metrics: Arc::clone(counters),
        };
        part.id = self.parts.insert(entry) as u64;
    }

    /// Counts the part out and restores the sender's number.
    pub(super) fn end(&mut self, done: &mut PartDone, now: Instant) {
        let entry = self.parts.remove(done.id as usize);
        let success = matches!(done.status, Status::Success | Status::CompareFailure);
        entry.metrics.finish(entry.kind, entry.bytes, now.since_ns(entry.started), success);
        done.id = entry.origin;
    }

    /// The volume is gone from the directory.
    pub(super) fn forget(&mut self, shard: ShardId, volume: VolumeId) {
        if self.volumes.remove(&(shard, volume)).is_some() {
            self.metrics.shard(shard).retire(volume);
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.parts.len()
    }
}
