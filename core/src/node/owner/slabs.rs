//! Slabs for shards that run out of space: given away on record, the pool's front first, and taken back on record from shards
//! that have emptied them (H7).
//!
//! Where the pool has none left, every other shard is asked for one, and the shard that wants it is refused only after all of
//! them have said that they have none: a pool is full when it is full, not when one of its shards is.

use std::collections::{BTreeSet, VecDeque};

use super::{Owner, Plan, Task, Then};
use crate::catalog::CatalogRecord;
use crate::ids::ShardId;
use crate::node::message::Message;
use crate::space::SlabId;

/// The slabs that nobody owns, and who wants one.
#[derive(Debug)]
pub(super) struct Slabs {
    free: BTreeSet<SlabId>,
    /// Shards that wait until the others have looked.
    waiting: VecDeque<ShardId>,
    /// Those that have not answered yet.
    asked: BTreeSet<ShardId>,
}

impl Slabs {
    /// Of all slabs, those that no shard has.
    pub(super) fn new(all: impl Iterator<Item = SlabId>, owned: impl Fn(SlabId) -> bool) -> Self {
        let free = all.filter(|&slab| !owned(slab)).collect();
        Self { free, waiting: VecDeque::new(), asked: BTreeSet::new() }
    }

    /// More of them: a device has joined.
    pub(super) fn add(&mut self, more: impl Iterator<Item = SlabId>) {
        self.free.extend(more);
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
            self.slabs.waiting.push_back(shard);
            if self.slabs.asked.is_empty() {
                self.ask_for_slabs();
            }
            return Plan::Nothing;
        };
        Plan::Change(vec![CatalogRecord::SlabOwned(slab, Some(shard))], Then::Grant { shard, slab })
    }

    /// The slab is the shard's, durably.
    pub(super) fn grant(&mut self, shard: ShardId, slab: SlabId) {
        tracing::debug!(%shard, %slab, free = self.slabs.free(), "a shard gets another slab");
        self.send_to_shard(shard, Message::SlabGranted { shard, slab });
    }

    /// Asks those who do not wait for one themselves.
    fn ask_for_slabs(&mut self) {
        let shards = (0..self.placement.len() as u16).map(ShardId);
        let others = shards.filter(|shard| !self.slabs.waiting.contains(shard) && !self.dead.contains_key(shard));
        self.slabs.asked = others.collect();
        for shard in self.slabs.asked.clone() {
            self.send_to_shard(shard, Message::WantSlab { shard });
        }
        self.answer_waiting();
    }

    /// Goes on with those who wait, if there is something for them or nobody is left to hope for.
    pub(super) fn answer_waiting(&mut self) {
        while !self.slabs.waiting.is_empty() && self.slabs.free.len() > self.granting() {
            let shard = self.slabs.waiting.pop_front().expect("just seen");
            self.tasks.push_front(Task::Grant { shard });
        }
        if self.slabs.asked.is_empty() {
            for shard in std::mem::take(&mut self.slabs.waiting) {
                tracing::warn!(%shard, "the pool has no free slab for a shard that wants one");
                self.send_to_shard(shard, Message::NoSlab { shard });
            }
        }
    }

    /// Slabs that are as good as given away.
    fn granting(&self) -> usize {
        self.tasks.iter().filter(|task| matches!(task, Task::Grant { .. })).count()
    }

    /// A shard has none to give.
    pub(super) fn slab_kept(&mut self, shard: ShardId) {
        if self.slabs.asked.remove(&shard) {
            self.answer_waiting();
        }
    }

    pub(super) fn plan_take_back(&mut self, shard: ShardId, slab: SlabId) -> Plan {
        assert_eq!(self.store.state().owner(slab), Some(shard), "a shard gives back what is its own");
        Plan::Change(vec![CatalogRecord::SlabOwned(slab, None)], Then::TakenBack { shard, slab })
    }

    /// The slab is nobody's, durably.
    pub(super) fn taken_back(&mut self, shard: ShardId, slab: SlabId) {
        self.slabs.free.insert(slab);
        tracing::debug!(%shard, %slab, free = self.slabs.free(), "a shard gives a slab back");
        self.slabs.asked.remove(&shard);
        self.answer_waiting();
    }
}
