//! Snapshots, clones and rollbacks in the catalog: the content of their records, and what each changes.
//!
//! A snapshot is an entry among the volumes, named `VOLUME@SNAPSHOT`, whose record has a view. Its cut is in its origin's list
//! of cuts for as long as a snapshot, or the base of the next sync, needs it: shards keep versions for exactly those (H2).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::record::CatalogRecord;
use super::state::{ApplyError, CatalogState, Removed, VolumeEntry};
use crate::ids::{AttemptId, Epoch, ShardId, VolumeId};
use crate::snapshot::name::{check_snapshot_name, full_name};
use crate::snapshot::sync::{Base, NotedAttempt};
use crate::volume::{Parent, SnapshotView, VolumeRecord};

/// Snapshots that exist from this record on, of volumes that were cut by one step of the epoch word: all of them or none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutRecord {
    /// The cut.
    pub epoch: Epoch,
    /// One of each volume.
    pub snapshots: Vec<SnapshotRecord>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Its own: from the counter of volumes, never reused.
    pub id: VolumeId,
    /// What was cut.
    pub origin: VolumeId,
    /// Without the volume's.
    pub name: String,
    /// The NGUID and UUID of its namespace.
    pub uuid: Uuid,
    /// Bytes at the cut.
    pub size: u64,
    /// Seconds since 1970, UTC.
    pub created_unix_s: u64,
    /// Its manifest in the backend, where there is one and it is synced.
    pub manifest: Option<String>,
}

/// A snapshot that was sealed is synced now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncedRecord {
    /// What was cut.
    pub origin: VolumeId,
    /// The snapshot.
    pub snapshot: VolumeId,
    /// Its manifest in the backend; none: synced means durable in the pool.
    pub manifest: Option<String>,
}

/// A volume was taken back to a cut: what was written between is void for it, not for its snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackRecord {
    /// Which volume.
    pub volume: VolumeId,
    /// The cut it is taken back to.
    pub to: Epoch,
    /// The last epoch that is void.
    pub until: Epoch,
}

/// A volume over a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneRecord {
    /// The volume itself.
    pub volume: VolumeRecord,
    /// What it lies over.
    pub parent: Parent,
}

/// A snapshot that does not exist any more; these shards may still hold versions for it. No shards: it can be forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemainsRecord {
    /// What was cut.
    pub origin: VolumeId,
    /// The snapshot.
    pub snapshot: VolumeId,
    /// Where versions of it may be.
    pub shards: Vec<ShardId>,
}

/// What the catalog knows of a snapshot beside its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotEntry {
    /// Without the volume's.
    pub name: String,
    /// It is synced: in the backend, or where there is none, durable in the pool.
    pub synced: bool,
    /// Its manifest in the backend.
    pub manifest: Option<String>,
}

impl CatalogState {
    /// The snapshots of a volume, by cut.
    pub fn snapshots_of(&self, origin: VolumeId) -> impl Iterator<Item = (Epoch, &VolumeEntry)> {
        let mut found: Vec<_> = self
            .volumes()
            .filter_map(|entry| entry.record.view.map(|view| (view, entry)))
            .filter(|(view, _)| view.origin == origin)
            .map(|(view, entry)| (view.epoch, entry))
            .collect();
        found.sort_by_key(|(epoch, entry)| (*epoch, entry.record.id));
        found.into_iter()
    }

    /// The clones that lie over a volume as it was at `epoch`.
    pub fn clones_of(&self, origin: VolumeId, epoch: Epoch) -> impl Iterator<Item = &VolumeEntry> {
        self.volumes().filter(move |entry| {
            entry.record.parent.is_some_and(|parent| parent.volume == origin && parent.epoch == epoch)
        })
    }

    /// The newest cut of a volume that is stored whole in the backend.
    #[must_use]
    pub fn base_of(&self, origin: VolumeId) -> Option<&Base> {
        self.bases.get(&origin)
    }

    /// Attempts whose objects may be in the backend without a marker.
    pub fn attempts(&self) -> impl Iterator<Item = &NotedAttempt> {
        self.attempts.values()
    }

    /// One of them.
    #[must_use]
    pub fn attempt(&self, attempt: AttemptId) -> Option<&NotedAttempt> {
        self.attempts.get(&attempt)
    }

    pub(super) fn add_snapshots(&mut self, cut: &CutRecord, synced: bool) -> Result<(), ApplyError> {
        let mut ids = BTreeSet::new();
        for snapshot in &cut.snapshots {
            let (id, origin) = (snapshot.id, snapshot.origin);
            if id.0 == 0 || self.is_known(id) || !ids.insert(id) {
                return Err(ApplyError::IdUsed(id));
            }
            let volume = self.volume(origin).filter(|entry| !entry.record.is_snapshot());
            let volume = volume.ok_or(ApplyError::NoVolume(origin))?;
            if check_snapshot_name(&snapshot.name).is_err() {
                return Err(ApplyError::Field { volume: id, field: "snapshot name" });
            }
            let name = full_name(&volume.record.name, &snapshot.name);
            if let Some(owner) = self.volume_named(&name) {
                return Err(ApplyError::NameUsed { name, owner: owner.record.id });
            }
            let twins = cut.snapshots.iter().filter(|other| other.origin == origin && other.name == snapshot.name);
            if twins.count() > 1 {
                return Err(ApplyError::NameUsed { name, owner: id });
            }
        }
        for snapshot in &cut.snapshots {
            self.add_snapshot(cut.epoch, snapshot, synced);
        }
        Ok(())
    }

    fn add_snapshot(&mut self, epoch: Epoch, snapshot: &SnapshotRecord, synced: bool) {
        let SnapshotRecord { id, origin, ref name, uuid, size, created_unix_s, ref manifest } = *snapshot;
        let volume = self.volumes.get_mut(&origin).expect("checked above");
        if let Err(at) = volume.record.cuts.binary_search(&epoch) {
            volume.record.cuts.insert(at, epoch);
        }
        let record = VolumeRecord {
            id,
            name: full_name(&volume.record.name, name),
            uuid,
            size,
            created_unix_s,
            cuts: Vec::new(),
            view: Some(SnapshotView { origin, epoch }),
            parent: None,
            exclusive: false,
            // What is void of the map is the volume's to know.
            dead: Vec::new(),
            // Shards, block size and who may attach are the volume's.
            ..volume.record.clone()
        };
        self.names.insert(record.name.clone(), id);
        let facts = SnapshotEntry { name: name.clone(), synced, manifest: manifest.clone() };
        self.volumes.insert(id, VolumeEntry { snapshot: Some(facts), ..VolumeEntry::new(record) });
        self.next_volume = self.next_volume.max(id.0.saturating_add(1));
        if let Some(manifest) = manifest {
            self.set_base(origin, Some(Base { epoch, manifest: manifest.clone() }));
        }
    }

    pub(super) fn set_synced(&mut self, synced: &SyncedRecord) -> Result<(), ApplyError> {
        let missing = ApplyError::NoVolume(synced.snapshot);
        let entry = self.volumes.get_mut(&synced.snapshot).ok_or(missing.clone())?;
        let (Some(view), Some(facts)) = (entry.record.view, &mut entry.snapshot) else { return Err(missing) };
        facts.synced = true;
        facts.manifest.clone_from(&synced.manifest);
        if let Some(manifest) = &synced.manifest {
            self.set_base(view.origin, Some(Base { epoch: view.epoch, manifest: manifest.clone() }));
        }
        Ok(())
    }

    /// Snapshots that have it meanwhile no more, or are gone, stay as they are.
    pub(super) fn replace_manifest(&mut self, origin: VolumeId, old: &str, new: &str) -> Result<(), ApplyError> {
        self.entry(origin)?;
        let of = |entry: &&mut VolumeEntry| entry.record.view.is_some_and(|view| view.origin == origin);
        let snapshots =
            self.volumes.values_mut().filter(of).filter_map(|entry| entry.snapshot.as_mut()?.manifest.as_mut());
        let base = self.bases.get_mut(&origin).map(|base| &mut base.manifest);
        for manifest in snapshots.chain(base).filter(|manifest| *manifest == old) {
            new.clone_into(manifest);
        }
        Ok(())
    }

    /// Who has a manifest: volume, snapshot (the volume itself where only its next sync builds upon it), cut.
    #[must_use]
    pub fn holder_of(&self, manifest: &str) -> Option<(VolumeId, VolumeId, Epoch)> {
        let snapshot = self.volumes().find_map(|entry| {
            let (view, facts) = (entry.record.view?, entry.snapshot.as_ref()?);
            (facts.manifest.as_deref() == Some(manifest)).then_some((view.origin, entry.record.id, view.epoch))
        });
        snapshot.or_else(|| {
            let mut bases = self.bases.iter();
            bases.find(|(_, base)| base.manifest == manifest).map(|(&origin, base)| (origin, origin, base.epoch))
        })
    }

    /// The newest cut that is stored stays among the volume's cuts, though no snapshot may need it any more (C10).
    pub(super) fn set_base(&mut self, origin: VolumeId, base: Option<Base>) {
        let before = self.bases.get(&origin).map(|base| base.epoch);
        // A sync that ends late does not take the place of a newer one.
        if base.as_ref().is_some_and(|base| before.is_some_and(|before| before > base.epoch)) {
            return;
        }
        match base {
            Some(base) => {
                if let Some(entry) = self.volumes.get_mut(&origin)
                    && let Err(at) = entry.record.cuts.binary_search(&base.epoch)
                {
                    entry.record.cuts.insert(at, base.epoch);
                }
                self.bases.insert(origin, base);
            }
            None => drop(self.bases.remove(&origin)),
        }
        if let Some(before) = before {
            self.drop_cut(origin, before);
        }
    }

    /// Takes a cut out of a volume's list unless something still needs it.
    fn drop_cut(&mut self, origin: VolumeId, epoch: Epoch) {
        let is_base = self.bases.get(&origin).is_some_and(|base| base.epoch == epoch);
        let needed = is_base || self.snapshots_of(origin).any(|(cut, _)| cut == epoch);
        if !needed && let Some(entry) = self.volumes.get_mut(&origin) {
            entry.record.cuts.retain(|&cut| cut != epoch);
        }
    }

    pub(super) fn remove_snapshot(&mut self, remains: &RemainsRecord) -> Result<(), ApplyError> {
        let id = remains.snapshot;
        if remains.shards.is_empty() {
            return self.removed.remove(&id).map(drop).ok_or(ApplyError::NoVolume(id));
        }
        match self.volumes.get(&id).map(|entry| entry.record.view) {
            Some(Some(view)) => {
                let entry = self.volumes.remove(&id).expect("just seen");
                self.names.remove(&entry.record.name);
                self.exports.retain(|_, export| export.volume != id);
                self.drop_cut(view.origin, view.epoch);
            }
            Some(None) => return Err(ApplyError::NoVolume(id)),
            None => {}
        }
        self.removed.insert(id, Removed { origin: Some(remains.origin), shards: remains.shards.clone() });
        self.next_volume = self.next_volume.max(id.0.saturating_add(1));
        Ok(())
    }

    pub(super) fn roll_back(&mut self, rollback: &RollbackRecord) -> Result<(), ApplyError> {
        let RollbackRecord { volume, to, until } = *rollback;
        if until < to {
            return Err(ApplyError::Field { volume, field: "interval of a rollback" });
        }
        let record = &mut self.entry(volume)?.record;
        // What was void between stays void: intervals within the new one add nothing.
        record.dead.retain(|&(after, up_to)| after < to || up_to > until);
        record.dead.push((to, until));
        Ok(())
    }

    pub(super) fn clone_volume(&mut self, clone: &CloneRecord) -> Result<(), ApplyError> {
        if clone.parent.is_on_backend() {
            return self.create(&VolumeRecord { parent: Some(clone.parent), view: None, ..clone.volume.clone() });
        }
        let parent = self.volume(clone.parent.volume).ok_or(ApplyError::NoVolume(clone.parent.volume))?;
        if parent.record.shards != clone.volume.shards {
            return Err(ApplyError::Field {
                volume: clone.volume.id,
                field: "list of shards: a clone has its parent's",
            });
        }
        self.create(&VolumeRecord { parent: Some(clone.parent), view: None, ..clone.volume.clone() })
    }

    fn is_known(&self, id: VolumeId) -> bool {
        self.volumes.contains_key(&id) || self.removed.contains_key(&id)
    }

    /// Records that make `entry`, a snapshot, from nothing.
    pub(super) fn snapshot_record(entry: &VolumeEntry) -> CatalogRecord {
        let (view, facts) = (entry.record.view.expect("a snapshot"), entry.snapshot.as_ref().expect("a snapshot"));
        let snapshot = SnapshotRecord {
            id: entry.record.id,
            origin: view.origin,
            name: facts.name.clone(),
            uuid: entry.record.uuid,
            size: entry.record.size,
            created_unix_s: entry.record.created_unix_s,
            manifest: facts.manifest.clone(),
        };
        let cut = CutRecord { epoch: view.epoch, snapshots: vec![snapshot] };
        if facts.synced { CatalogRecord::SnapshotsCommitted(cut) } else { CatalogRecord::SnapshotsSealed(cut) }
    }
}
