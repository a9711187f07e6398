//! From the command to the seals.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::group::{Group, Level, Member};
use super::{Caller, GroupId};
use crate::catalog::CatalogRecord;
use crate::control::{ControlError, ControlErrorKind};
use crate::ids::{AttemptId, Epoch, ShardId};
use crate::node::message::Message;
use crate::node::owner::publish::fault_of;
use crate::node::owner::{Owner, catalog_failed};
use crate::snapshot::asked::{Patience, SnapshotCreate};
use crate::snapshot::name::full_name;
use crate::snapshot::promise::Promise;

impl Owner {
    /// Names are reserved and shards armed, or the caller is told what speaks against it and nothing is done.
    pub(super) fn begin_snapshots(&mut self, create: SnapshotCreate, caller: Caller) {
        let promise = match caller {
            Caller::Promised(promise) => promise,
            Caller::Unpromised(reply) => {
                let timeout = create.patience.timeout();
                Arc::new(Promise::new(create.full_names(), self.snapshots.now, timeout, reply.0))
            }
        };
        if !self.is_running() {
            let why = "the target is stopping and makes no more snapshots";
            promise.withdraw(|| ControlError::new(ControlErrorKind::Unavailable, why));
            return;
        }
        let members = match self.new_members(&create) {
            Ok(members) => members,
            Err(error) => {
                promise.withdraw(|| error);
                return;
            }
        };
        if !promise.is_pending() {
            return;
        }
        let level = if create.patience == Patience::NoWait { Level::Sealed } else { Level::Synced };
        let (now, created) = (self.snapshots.now, (self.unix_s)());
        for member in &members {
            for &shard in &member.shards {
                let (volume, attempt) = (member.origin, member.attempt);
                self.send_to_shard(shard, Message::Arm { shard, attempt, volume });
            }
        }
        let id = GroupId(self.snapshots.next_group);
        self.snapshots.next_group += 1;
        self.snapshots.groups.insert(id, Group::new(promise, create.name, level, members, (now, created)));
    }

    fn new_members(&mut self, create: &SnapshotCreate) -> Result<Vec<Member>, ControlError> {
        create.check()?;
        if let Some(why) = self.store.fault() {
            return Err(catalog_failed(why));
        }
        let mut origins = Vec::new();
        for name in &create.volumes {
            let state = self.store.state();
            let record = state.volume_named(name).ok_or_else(|| ControlError::no_such_volume(name))?.record.clone();
            if let Some(why) = fault_of(state, &self.dead, &record) {
                let kind = ControlErrorKind::Corrupt;
                return Err(ControlError::new(
                    kind,
                    format!("volume {name:?} is not served, so it cannot be cut: {why}"),
                ));
            }
            self.check_name_free(&record.name, record.id, &create.name)?;
            if self.snapshots.rollbacks.contains_key(&record.id) {
                return Err(ControlError::new(ControlErrorKind::Busy, format!("volume {name:?} is being rolled back")));
            }
            origins.push(record);
        }
        let mut members = Vec::new();
        for origin in &origins {
            let (attempt, id, uuid) = (self.snapshots.new_attempt(), self.new_volume_id(), (self.new_uuid)());
            members.push(Member::new(attempt, origin, id, uuid));
        }
        Ok(members)
    }

    fn check_name_free(&self, volume: &str, id: crate::ids::VolumeId, name: &str) -> Result<(), ControlError> {
        let full = full_name(volume, name);
        if self.store.state().volume_named(&full).is_some() {
            let why =
                format!("a snapshot named {full:?} exists already; choose another name, or remove that one first");
            return Err(ControlError::new(ControlErrorKind::Exists, why));
        }
        if self.snapshots.making(id, name).is_some() {
            let why = format!(
                "a snapshot named {full:?} is being made; choose another name, or give that one up: `ringway snapshot remove \
                 {full}`"
            );
            return Err(ControlError::new(ControlErrorKind::Exists, why));
        }
        Ok(())
    }

    /// A shard is armed. After the last one comes the cut: every volume of the group by the same step.
    pub(super) fn group_armed(&mut self, id: GroupId, shard: ShardId, attempt: AttemptId) {
        let group = self.snapshots.groups.get_mut(&id).expect("looked up");
        if !group.armed(attempt, shard, self.snapshots.now) {
            return;
        }
        if !group.promise.is_pending() {
            // The deadline's thread was first: what follows is only the clearing up.
            return;
        }
        // AcqRel: who reads the new word has been armed, and what a shard did under the old one is before the step.
        let cut = Epoch(self.snapshots.word.fetch_add(1, Ordering::AcqRel));
        let state = self.store.state();
        group.cut_at(cut, self.snapshots.now, |volume| state.volume(volume).map_or(0, |entry| entry.record.size));
        let seals: Vec<_> =
            group.members.iter().flat_map(|m| m.shards.iter().map(|&shard| (shard, m.attempt))).collect();
        for (shard, attempt) in seals {
            self.send_to_shard(shard, Message::Seal { shard, attempt, cut });
        }
    }

    /// A shard has sealed, or cannot.
    pub(super) fn group_sealed(&mut self, id: GroupId, shard: ShardId, attempt: AttemptId, failed: Option<String>) {
        let (now, elsewhere) = (self.snapshots.now, self.has_backend());
        let group = self.snapshots.groups.get_mut(&id).expect("looked up");
        if let Some(why) = failed {
            let why = format!("shard {shard} cannot make the snapshot durable: {why}");
            return self.give_up(id, ControlError::new(ControlErrorKind::Internal, why));
        }
        if !group.sealed(attempt, shard, now) {
            return;
        }
        if group.level == Level::Synced && elsewhere {
            group.begin_sync();
            self.sync_group(id);
        } else {
            group.ready();
        }
    }

    /// Whether the record still fits what there is.
    pub(super) fn check_record(&self, group: &Group) -> Result<CatalogRecord, ControlError> {
        let state = self.store.state();
        let gone: BTreeSet<_> =
            group.members.iter().map(|m| m.origin).filter(|&id| state.volume(id).is_none()).collect();
        if let Some(id) = gone.first() {
            let why = format!("volume {id} was removed while snapshot {:?} of it was being made", group.name);
            return Err(ControlError::new(ControlErrorKind::NotFound, why));
        }
        let synced = group.level == Level::Synced || !self.has_backend();
        let cut = group.record();
        let record = if synced { CatalogRecord::SnapshotsCommitted(cut) } else { CatalogRecord::SnapshotsSealed(cut) };
        if !self.store.has_room(&record) {
            let why = "the pool's catalog has no room for another snapshot; remove one first";
            return Err(ControlError::new(ControlErrorKind::NoSpace, why));
        }
        Ok(record)
    }
}
