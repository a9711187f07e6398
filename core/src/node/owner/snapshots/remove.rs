//! Snapshots that exist go, and clones lie over them.

use super::Owner;
use crate::catalog::{CatalogRecord, CloneRecord, RemainsRecord, VolumeEntry};
use crate::control::{ControlError, ControlErrorKind};
use crate::ids::VolumeId;
use crate::node::owner::publish::fault_of;
use crate::snapshot::asked::{VolumeClone, check_full_name};
use crate::volume::{Parent, SnapshotView, VolumeRecord};

impl Owner {
    /// A snapshot by its full name.
    pub(in crate::node::owner) fn named_snapshot(
        &self,
        name: &str,
    ) -> Result<(&VolumeEntry, SnapshotView), ControlError> {
        let (volume, _) = check_full_name(name)?;
        let state = self.store.state();
        if state.volume_named(volume).is_none() {
            return Err(ControlError::no_such_volume(volume));
        }
        let entry = state.volume_named(name).ok_or_else(|| ControlError::no_such_snapshot(name))?;
        Ok((entry, entry.record.view.expect("only snapshots have such names")))
    }

    /// The records by which a snapshot goes. None: it was only being made, and is not any more.
    pub(in crate::node::owner) fn plan_remove_snapshot(
        &mut self,
        name: &str,
        force: bool,
    ) -> Result<Vec<CatalogRecord>, ControlError> {
        let (volume, snapshot) = check_full_name(name)?;
        let origin = self.store.state().volume_named(volume).map(|entry| entry.record.id);
        if let Some(id) = origin.and_then(|origin| self.snapshots.making(origin, snapshot)) {
            self.withdraw_snapshot(id, name)?;
            return Ok(Vec::new());
        }
        let (entry, view) = self.named_snapshot(name)?;
        let id = entry.record.id;
        let clones = self.clone_names(view);
        if !clones.is_empty() {
            return Err(ControlError::new(
                ControlErrorKind::Needed,
                format!(
                    "snapshot {name:?} is what {} lies over; remove that first, or make it independent: `ringway stream start \
                     {}`",
                    clones.join(", "),
                    clones[0]
                ),
            ));
        }
        self.check_settled(view.origin, name)?;
        self.check_not_exported(name, id)?;
        let attached = self.attached_hosts(id);
        if !attached.is_empty() && !force {
            return Err(ControlError::new(
                ControlErrorKind::Busy,
                format!(
                    "snapshot {name:?} is attached by {}; detach it there first, or use force, and those hosts lose it",
                    attached.join(", ")
                ),
            ));
        }
        let remains = self.remains_of(id);
        if let Some((attempt, _)) = self.snapshots.syncs.of_snapshot(id) {
            self.stop_sync(attempt);
        }
        Ok(vec![remains])
    }

    /// That the volume is not just being rolled back.
    pub(super) fn check_settled(&self, volume: VolumeId, name: &str) -> Result<(), ControlError> {
        if self.snapshots.rollbacks.contains_key(&volume) {
            let why = format!("the volume of {name:?} is being rolled back; try again when that is done");
            return Err(ControlError::new(ControlErrorKind::Busy, why));
        }
        Ok(())
    }

    /// The record by which a snapshot goes.
    pub(super) fn remains_of(&self, id: VolumeId) -> CatalogRecord {
        let entry = self.store.state().volume(id).expect("looked up");
        let origin = entry.record.view.expect("a snapshot").origin;
        CatalogRecord::SnapshotRemains(RemainsRecord { origin, snapshot: id, shards: entry.record.shards.clone() })
    }

    pub(super) fn clone_names(&self, view: SnapshotView) -> Vec<String> {
        let clones = self.store.state().clones_of(view.origin, view.epoch);
        clones.map(|entry| entry.record.name.clone()).collect()
    }

    /// The record of a clone, and its id.
    pub(in crate::node::owner) fn plan_clone(
        &mut self,
        clone: &VolumeClone,
    ) -> Result<(Vec<CatalogRecord>, Option<VolumeId>), ControlError> {
        clone.check()?;
        if self.store.state().volume_named(&clone.name).is_some() {
            return Err(ControlError::volume_exists(&clone.name));
        }
        let (entry, view) = self.named_snapshot(&clone.snapshot)?;
        let snapshot = entry.record.clone();
        self.check_settled(view.origin, &clone.snapshot)?;
        if let Some(why) = fault_of(self.store.state(), &self.dead, &snapshot) {
            let why = format!("snapshot {:?} is not served, so it cannot be cloned: {why}", clone.snapshot);
            return Err(ControlError::new(ControlErrorKind::Corrupt, why));
        }
        let parent = Parent { volume: view.origin, epoch: view.epoch, size: snapshot.size };
        let id = self.new_volume_id();
        let volume = VolumeRecord {
            id,
            name: clone.name.clone(),
            uuid: (self.new_uuid)(),
            created_unix_s: (self.unix_s)(),
            exclusive: clone.exclusive,
            allowed_hosts: clone.allowed_hosts.clone(),
            cuts: Vec::new(),
            dead: Vec::new(),
            view: None,
            parent: None,
            ..snapshot
        };
        let record = CatalogRecord::CloneCreated(CloneRecord { volume, parent });
        if !self.store.has_room(&record) {
            return Err(ControlError::new(
                ControlErrorKind::NoSpace,
                "the pool's catalog has no room for another volume; remove one first",
            ));
        }
        Ok((vec![record], Some(id)))
    }

    /// That no snapshot of the volume exists or is being made, and it is not being rolled back.
    pub(in crate::node::owner) fn check_no_snapshots(&self, name: &str, id: VolumeId) -> Result<(), ControlError> {
        self.check_settled(id, name)?;
        let snapshots: Vec<_> =
            self.store.state().snapshots_of(id).map(|(_, entry)| entry.record.name.clone()).collect();
        if let Some(first) = snapshots.first() {
            return Err(ControlError::new(
                ControlErrorKind::Needed,
                format!(
                    "volume {name:?} has {} snapshot(s), {first} the oldest; remove them first: `ringway snapshot remove \
                     {first}`",
                    snapshots.len()
                ),
            ));
        }
        if self.snapshots.is_cutting(id) {
            let why = format!(
                "a snapshot of volume {name:?} is being made; wait for it, or give it up: `ringway snapshot list {name}` shows it"
            );
            return Err(ControlError::new(ControlErrorKind::Busy, why));
        }
        Ok(())
    }
}
