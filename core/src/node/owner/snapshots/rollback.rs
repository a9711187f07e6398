//! A volume is taken back to a snapshot (history H10).
//!
//! ```text
//! checks -> nobody may attach -> (force, or the holder of the only ones: associations ended) -> Fencing: nothing of whoever had it is in any mailbox
//!   -> Arming -> one step of the word, `until` -> Sealing: every write stamped up to `until` has ended, durably
//!   -> record: epochs (snapshot, until] are void, later snapshots are gone -> directory on every reactor -> answer
//! ```
//! What is written afterwards is stamped beyond `until`. A crash before the record changes nothing, one after it everything.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use ringway_reactor::io::Instant;

use super::{Outcome, Owner, Work};
use crate::catalog::{CatalogRecord, RollbackRecord};
use crate::control::{ControlError, ControlErrorKind, Reply, RollbackBy};
use crate::ids::{AssociationId, AttemptId, Epoch, ShardId, VolumeId};
use crate::node::message::Message;
use crate::node::owner::{Answer, Plan, Task, Then};
use crate::volume::SnapshotView;

/// How often to look whether fences of other reactors have ended.
const LOOK_NS: u64 = 1_000_000;

/// One on its way.
pub(in crate::node::owner) struct Rollback {
    name: String,
    to: Epoch,
    dropped: Vec<VolumeId>,
    attempt: AttemptId,
    shards: Vec<ShardId>,
    reply: Reply,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Associations that this rollback has ended.
    Fencing(BTreeSet<AssociationId>),
    Arming(BTreeSet<ShardId>),
    Sealing {
        until: Epoch,
        left: BTreeSet<ShardId>,
    },
    Recording {
        until: Epoch,
    },
}

impl Owner {
    /// Begins it, or says what speaks against it.
    pub(in crate::node::owner) fn begin_rollback(&mut self, name: &str, by: RollbackBy, reply: Reply) {
        let (view, dropped) = match self.check_rollback(name, by) {
            Ok(checked) => checked,
            Err(error) => return reply(Err(error)),
        };
        let SnapshotView { origin, epoch: to } = view;
        self.registry.hold(origin);
        let mut ended = BTreeSet::new();
        for &volume in dropped.iter().chain([&origin]) {
            ended.extend(self.registry.end_all(volume));
        }
        self.ended.extend(&ended);
        let shards = self.store.state().volume(origin).expect("checked").record.shards.clone();
        let attempt = self.snapshots.new_attempt();
        let stage = Stage::Fencing(ended);
        let rollback = Rollback { name: name.to_owned(), to, dropped, attempt, shards, reply, stage };
        self.snapshots.rollbacks.insert(origin, rollback);
        self.advance_rollbacks();
    }

    fn check_rollback(&self, name: &str, by: RollbackBy) -> Result<(SnapshotView, Vec<VolumeId>), ControlError> {
        let (_, view) = self.named_snapshot(name)?;
        let state = self.store.state();
        let origin = &state.volume(view.origin).expect("a snapshot has its volume").record;
        let busy = |why: String| Err(ControlError::new(ControlErrorKind::Busy, why));
        self.check_settled(origin.id, name)?;
        if let Some(why) = super::super::publish::fault_of(state, &self.dead, origin) {
            let why = format!("volume {:?} is not served, so it cannot be rolled back: {why}", origin.name);
            return Err(ControlError::new(ControlErrorKind::Corrupt, why));
        }
        if self.snapshots.is_cutting(origin.id) || self.snapshots.syncs.is_syncing(origin.id) {
            return busy(format!(
                "another snapshot of volume {:?} is being made or synced; wait for it, or give it up: `ringway snapshot list \
                 {}` shows it",
                origin.name, origin.name
            ));
        }
        let mut dropped = Vec::new();
        for (epoch, entry) in state.snapshots_of(origin.id).filter(|&(epoch, _)| epoch > view.epoch) {
            let later = &entry.record;
            let clones = self.clone_names(SnapshotView { origin: origin.id, epoch });
            if !clones.is_empty() {
                return Err(ControlError::new(
                    ControlErrorKind::Needed,
                    format!(
                        "rolling back to {name:?} would drop {}, which {} lies over; remove that first, or make it \
                         independent: `ringway stream start {}`",
                        later.name,
                        clones.join(", "),
                        clones[0]
                    ),
                ));
            }
            self.check_not_exported(&later.name, later.id)?;
            dropped.push(later.id);
        }
        let in_the_way = |&volume: &VolumeId| match by {
            RollbackBy::Force => Vec::new(),
            RollbackBy::Anybody => self.attached_hosts(volume),
            RollbackBy::Holder(host) => self.registry.others_attached(volume, host),
        };
        let attached: BTreeSet<_> = dropped.iter().chain([&origin.id]).flat_map(in_the_way).collect();
        if !attached.is_empty() {
            let who: Vec<_> = attached.into_iter().collect();
            return busy(format!(
                "volume {:?}, or a snapshot that would be dropped, is attached by {}; detach it there first, or use force, \
                 which ends what those hosts have open",
                origin.name,
                who.join(", ")
            ));
        }
        Ok((view, dropped))
    }

    /// An association that was ended here is fenced.
    pub(in crate::node) fn fenced(&mut self, association: AssociationId) {
        for rollback in self.snapshots.rollbacks.values_mut() {
            if let Stage::Fencing(ended) = &mut rollback.stage {
                ended.remove(&association);
            }
        }
    }

    /// Arms the shards of those whose fences have ended.
    pub(in crate::node::owner) fn advance_rollbacks(&mut self) {
        let registry = &self.registry;
        let fenced = |(volume, rollback): (&VolumeId, &Rollback)| {
            let done = matches!(&rollback.stage, Stage::Fencing(ended) if ended.is_empty());
            (done && registry.is_settled(*volume)).then_some(*volume)
        };
        let ready: Vec<_> = self.snapshots.rollbacks.iter().filter_map(fenced).collect();
        for volume in ready {
            let rollback = self.snapshots.rollbacks.get_mut(&volume).expect("listed");
            rollback.stage = Stage::Arming(rollback.shards.iter().copied().collect());
            let attempt = rollback.attempt;
            for shard in rollback.shards.clone() {
                self.send_to_shard(shard, Message::Arm { shard, attempt, volume });
            }
        }
    }

    /// When fences have to be looked at.
    pub(in crate::node::owner) fn next_rollback_look(&self) -> Instant {
        let fencing = self.snapshots.rollbacks.values().any(|rollback| matches!(rollback.stage, Stage::Fencing(_)));
        if fencing { self.snapshots.now.plus_ns(LOOK_NS) } else { Instant::NEVER }
    }

    fn rollback_of(&self, attempt: AttemptId) -> Option<VolumeId> {
        self.snapshots.rollbacks.iter().find(|(_, rollback)| rollback.attempt == attempt).map(|(&volume, _)| volume)
    }

    pub(super) fn rollback_armed(&mut self, shard: ShardId, attempt: AttemptId) {
        let Some(volume) = self.rollback_of(attempt) else { return };
        let rollback = self.snapshots.rollbacks.get_mut(&volume).expect("looked up");
        let Stage::Arming(left) = &mut rollback.stage else { unreachable!("shards are armed once") };
        left.remove(&shard);
        if !left.is_empty() {
            return;
        }
        let until = Epoch(self.snapshots.word.fetch_add(1, Ordering::AcqRel));
        rollback.stage = Stage::Sealing { until, left: rollback.shards.iter().copied().collect() };
        for shard in rollback.shards.clone() {
            self.send_to_shard(shard, Message::Seal { shard, attempt, cut: until });
        }
    }

    pub(super) fn rollback_sealed(&mut self, shard: ShardId, attempt: AttemptId, failed: Option<String>) {
        let Some(volume) = self.rollback_of(attempt) else { return };
        if let Some(why) = failed {
            let why = format!("shard {shard} cannot be rolled back: {why}");
            return self.end_rollback(volume, Err(ControlError::new(ControlErrorKind::Internal, why)));
        }
        let rollback = self.snapshots.rollbacks.get_mut(&volume).expect("looked up");
        let Stage::Sealing { until, left } = &mut rollback.stage else { unreachable!("shards seal once") };
        left.remove(&shard);
        if left.is_empty() {
            rollback.stage = Stage::Recording { until: *until };
            self.tasks.push_back(Task::Snapshot(Work::RollBack(volume)));
        }
    }

    /// The record, with what goes by it.
    pub(in crate::node::owner) fn plan_roll_back(&mut self, volume: VolumeId) -> Plan {
        let Some(rollback) = self.snapshots.rollbacks.get(&volume) else { return Plan::Nothing };
        let Stage::Recording { until } = rollback.stage else { unreachable!("it is recorded once") };
        let to = rollback.to;
        let mut records = vec![CatalogRecord::RolledBack(RollbackRecord { volume, to, until })];
        records.extend(rollback.dropped.iter().map(|&id| self.remains_of(id)));
        // A base from the void: the next sync starts from nothing, or it would take what was rolled back for unchanged.
        if self.store.state().base_of(volume).is_some_and(|base| base.epoch > to) {
            records.push(CatalogRecord::BaseKept(volume, None));
        }
        Plan::Change(records, Then::Snapshot(Outcome::RolledBack(volume)))
    }

    /// It is durable: answered when every reactor works with it.
    pub(in crate::node::owner) fn rolled_back(&mut self, volume: VolumeId) {
        tracing::info!(%volume, snapshot = self.snapshots.rollbacks[&volume].name, "a volume is rolled back");
        self.end_rollback(volume, Ok(()));
    }

    /// The end of a rollback: hosts may attach again.
    pub(in crate::node::owner) fn end_rollback(&mut self, volume: VolumeId, outcome: Result<(), ControlError>) {
        let Rollback { attempt, shards, reply, .. } =
            self.snapshots.rollbacks.remove(&volume).expect("it was on its way");
        match outcome {
            Ok(()) => drop(self.publish(Some((reply, Answer::About(Some(volume)))))),
            Err(error) => reply(Err(error)),
        }
        for shard in shards {
            self.send_to_shard(shard, Message::Release { shard, attempt });
        }
        self.registry.unhold(volume);
    }
}
