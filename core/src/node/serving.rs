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
    started: Instant,
    bytes: u32,
    /// Its place among [`Serving::counters`].
    counters: u32,
    kind: OperationKind,
}

/// Where the parts of a volume on a shard are counted. A part names it by its place, which costs nothing to copy.
struct Counters {
    metrics: Arc<VolumeMetrics>,
    parts: u32,
    /// The volume is gone: with its last part this goes too.
    gone: bool,
}

/// Parts in work. The shard knows a part by its slot here.
pub(super) struct Serving {
    metrics: Arc<Metrics>,
    volumes: FxHashMap<(ShardId, VolumeId), u32>,
    counters: Slab<Counters>,
    parts: Slab<Entry>,
}

impl Serving {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, volumes: FxHashMap::default(), counters: Slab::new(), parts: Slab::with_capacity(1024) }
    }

    /// Counts the part in and gives it the number under which its shard will return it.
    pub(super) fn begin(&mut self, shard: ShardId, part: &mut Part, now: Instant, hopped: bool) {
        let (metrics, all) = (&self.metrics, &mut self.counters);
        let place = *self.volumes.entry((shard, part.volume)).or_insert_with(|| {
            let metrics = metrics.shard(shard).volume(part.volume);
            all.insert(Counters { metrics, parts: 0, gone: false }) as u32
        });
        let counters = &mut self.counters[place as usize];
        counters.parts += 1;
        counters.metrics.begin(hopped);
        let entry = Entry {
            origin: part.id,
            started: now,
            bytes: part.len,
            counters: place,
            kind: OperationKind::from(part.command),
        };
        part.id = self.parts.insert(entry) as u64;
    }

    /// Counts the part out and restores the sender's number.
    pub(super) fn end(&mut self, done: &mut PartDone, now: Instant) {
        let entry = self.parts.remove(done.id as usize);
        let success = matches!(done.status, Status::Success | Status::CompareFailure);
        let counters = &mut self.counters[entry.counters as usize];
        counters.metrics.finish(entry.kind, u64::from(entry.bytes), now.since_ns(entry.started), success);
        counters.parts -= 1;
        if counters.gone && counters.parts == 0 {
            self.counters.remove(entry.counters as usize);
        }
        done.id = entry.origin;
    }

    /// The volume is gone from the directory.
    pub(super) fn forget(&mut self, shard: ShardId, volume: VolumeId) {
        let Some(place) = self.volumes.remove(&(shard, volume)) else { return };
        self.metrics.shard(shard).retire(volume);
        let counters = &mut self.counters[place as usize];
        counters.gone = true;
        if counters.parts == 0 {
            self.counters.remove(place as usize);
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.parts.len()
    }
}
