//! Slabs for shards that run out of space: given away on record, the pool's front first.

use std::collections::BTreeSet;

use super::{Owner, Plan, Then};
use crate::catalog::CatalogRecord;
use crate::ids::ShardId;
use crate::node::message::Message;
use crate::space::SlabId;

/// The slabs that nobody owns.
#[derive(Debug)]
pub(super) struct Slabs {
    free: BTreeSet<SlabId>,
}

impl Slabs {
    /// Of all slabs, those that no shard has.
    pub(super) fn new(all: impl Iterator<Item = SlabId>, owned: impl Fn(SlabId) -> bool) -> Self {
        Self { free: all.filter(|&slab| !owned(slab)).collect() }
    }

    /// How many there are.
    pub(super) fn free(&self) -> u64 {
        self.free.len() as u64
    }
}

impl Owner {
    /// The least free slab, so that a pool fills from its front.
    pub(super) fn plan_grant(&mut self, shard: ShardId) -> Plan {
        let Some(slab) = self.slabs.free.pop_first() else {
            tracing::warn!(%shard, "the pool has no free slab for a shard that wants one");
            self.send_to_shard(shard, Message::NoSlab { shard });
            return Plan::Nothing;
        };
        Plan::Change(vec![CatalogRecord::SlabOwned(slab, Some(shard))], Then::Grant { shard, slab })
    }

    /// The slab is the shard's, durably.
    pub(super) fn grant(&mut self, shard: ShardId, slab: SlabId) {
        tracing::debug!(%shard, %slab, free = self.slabs.free(), "a shard gets another slab");
        self.send_to_shard(shard, Message::SlabGranted { shard, slab });
    }
}
