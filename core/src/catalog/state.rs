//! What the records add up to. [`CatalogState::apply`] is pure: it changes this value and nothing else.
//!
//! Invariants: names of live volumes are unique; `next_volume` is above every id that was ever used; a slab has one owner; an
//! export is of a live volume, and no two share a socket but those
//! of a kind whose clients say which they want, each of another volume.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use thiserror::Error;
use uuid::Uuid;

use super::jobs::StreamRecord;
use super::record::{CatalogRecord, KeptLogs};
use super::snapshots::{CloneRecord, RemainsRecord, SnapshotEntry};
use crate::backend::clones::{CloneSource, HeldSource};
use crate::backend::settings::BackendSettings;
use crate::event::Event;
use crate::export::ExportRecord;
use crate::ids::{AttemptId, ExportId, ShardId, VolumeId};
use crate::snapshot::name::full_name;
use crate::snapshot::sync::{Base, NotedAttempt};
use crate::space::SlabId;
use crate::volume::{Parent, VolumeRecord, check_name};

/// A live volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeEntry {
    /// As recorded.
    pub record: VolumeRecord,
    /// Hosts that attached for writing and have not detached in good order.
    pub attached: BTreeSet<String>,
    /// Hosts that have yet to learn that the machine failed under them.
    pub untold: BTreeSet<String>,
    /// NQN and identifier of the host that was the one writer last, of those that asked to be it.
    pub writer: Option<(String, [u8; 16])>,
    /// What else is known of it if it is a snapshot.
    pub snapshot: Option<SnapshotEntry>,
}

impl VolumeEntry {
    pub(super) fn new(record: VolumeRecord) -> VolumeEntry {
        VolumeEntry { record, attached: BTreeSet::new(), untold: BTreeSet::new(), writer: None, snapshot: None }
    }
}

/// A volume or a snapshot that is gone and of which shards may still hold something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The volume that was cut, if it is a snapshot.
    pub origin: Option<VolumeId>,
    /// Those that may.
    pub shards: Vec<ShardId>,
}

/// Why a volume is not served.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The shard that is to blame, if one is.
    pub shard: Option<ShardId>,
    /// For whoever reads it.
    pub why: String,
}

/// A device of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// As in its superblock.
    pub uuid: Uuid,
    /// Bytes.
    pub size: u64,
}

/// Everything that exists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CatalogState {
    pub(super) volumes: BTreeMap<VolumeId, VolumeEntry>,
    pub(super) names: BTreeMap<String, VolumeId>,
    /// Removed and not yet erased by every shard.
    pub(super) removed: BTreeMap<VolumeId, Removed>,
    /// Of each volume the newest cut that the backend holds whole.
    pub(super) bases: BTreeMap<VolumeId, Base>,
    pub(super) attempts: BTreeMap<AttemptId, NotedAttempt>,
    /// Clones that are streamed.
    pub(super) streams: BTreeMap<VolumeId, StreamRecord>,
    /// The last ones, by number.
    pub(super) events: VecDeque<Event>,
    /// Also of volumes whose own record is lost.
    faults: BTreeMap<VolumeId, BTreeSet<Fault>>,
    slabs: BTreeMap<SlabId, ShardId>,
    devices: BTreeMap<u8, Device>,
    pub(super) exports: BTreeMap<ExportId, ExportRecord>,
    pub(super) next_volume: u32,
    /// The last boot that was opened, and whether it was closed in good order.
    boot: u32,
    clean: bool,
    logs: Option<KeptLogs>,
    backend: Option<BackendSettings>,
    /// By the UUID of the clone in whose name each is held.
    held: BTreeMap<Uuid, CloneSource>,
}

/// A record that contradicts what is there.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ApplyError {
    /// There is no such volume.
    #[error("volume {0} does not exist")]
    NoVolume(VolumeId),
    /// The id has been used before.
    #[error("volume id {0} has been used before")]
    IdUsed(VolumeId),
    /// Another volume has the name.
    #[error("the name {name:?} belongs to volume {owner}")]
    NameUsed {
        /// The name.
        name: String,
        /// Whose it is.
        owner: VolumeId,
    },
    /// A field of a volume that cannot be.
    #[error("volume {volume} has an impossible {field}")]
    Field {
        /// Which volume.
        volume: VolumeId,
        /// Which field.
        field: &'static str,
    },
    /// The slab belongs to a shard, and another one takes it.
    #[error("slab {slab} belongs to shard {owner}")]
    SlabOwned {
        /// Which slab.
        slab: SlabId,
        /// Whose it is.
        owner: ShardId,
    },
    /// The device number is taken.
    #[error("device {0} is part of the pool already")]
    DeviceExists(u8),
    /// There is no such export.
    #[error("export {0} does not exist")]
    NoExport(ExportId),
    /// A number that an earlier event has, or an event beyond it.
    #[error("event {0} comes after one of a higher number")]
    EventNumber(u64),
}

impl CatalogState {
    /// Makes one recorded change, or says what it contradicts and changes nothing.
    pub fn apply(&mut self, record: &CatalogRecord) -> Result<(), ApplyError> {
        match record {
            CatalogRecord::VolumeCreated(volume) => self.create(volume)?,
            CatalogRecord::VolumeRemoved(id) => self.remove(*id)?,
            CatalogRecord::VolumeErased(id) => {
                self.removed.remove(id).ok_or(ApplyError::NoVolume(*id))?;
                self.faults.remove(id);
            }
            CatalogRecord::VolumeResized(id, size) => {
                let lba = u64::from(self.entry(*id)?.record.lba_bytes);
                if *size == 0 || *size > crate::limits::VOLUME_BYTES_MAX || !size.is_multiple_of(lba) {
                    return Err(ApplyError::Field { volume: *id, field: "size" });
                }
                self.entry(*id)?.record.size = *size;
            }
            CatalogRecord::VolumeRenamed(id, name) => {
                self.check_free(*id, name)?;
                self.entry(*id)?;
                self.rename(*id, name.clone());
            }
            CatalogRecord::HostsAllowed(id, hosts) => {
                self.entry(*id)?.record.allowed_hosts.clone_from(hosts);
                for snapshot in self.snapshot_ids(*id) {
                    self.entry(snapshot)?.record.allowed_hosts.clone_from(hosts);
                }
            }
            CatalogRecord::HostAttached(id, host) => {
                self.entry(*id)?.attached.insert(host.clone());
            }
            CatalogRecord::HostDetached(id, host) => {
                self.entry(*id)?.attached.remove(host);
            }
            CatalogRecord::HostUntold(id, host) => {
                self.entry(*id)?.untold.insert(host.clone());
            }
            CatalogRecord::HostTold(id, host) => {
                self.entry(*id)?.untold.remove(host);
            }
            CatalogRecord::WriterNoted(id, nqn, host) => self.entry(*id)?.writer = Some((nqn.clone(), *host)),
            CatalogRecord::VolumeFaulted(id, shard, why) => {
                self.faults.entry(*id).or_default().insert(Fault { shard: *shard, why: why.clone() });
                self.next_volume = self.next_volume.max(id.0.saturating_add(1));
            }
            CatalogRecord::VolumeRemains(id, shards) => {
                if id.0 < self.next_volume() {
                    return Err(ApplyError::IdUsed(*id));
                }
                self.removed.insert(*id, Removed { origin: None, shards: shards.clone() });
                self.next_volume = id.0.saturating_add(1);
            }
            CatalogRecord::SlabOwned(slab, owner) => self.give(*slab, *owner)?,
            CatalogRecord::DeviceAdded(number, uuid, size) => {
                if self.devices.contains_key(number) {
                    return Err(ApplyError::DeviceExists(*number));
                }
                self.devices.insert(*number, Device { uuid: *uuid, size: *size });
            }
            CatalogRecord::Opened(boot) => (self.boot, self.clean) = (*boot, false),
            CatalogRecord::Closed(boot) => {
                (self.boot, self.clean) = (*boot, true);
                self.volumes.values_mut().for_each(|entry| entry.attached.clear());
            }
            CatalogRecord::NextVolume(id) => self.next_volume = self.next_volume.max(id.0),
            CatalogRecord::ExportAdded(export) => {
                self.entry(export.volume)?;
                // The later one counts: the record of the earlier one's removal is lost, and its volume faulted.
                self.exports.retain(|_, other| other.socket != export.socket || other.shares_socket_with(export));
                self.exports.insert(export.id, export.clone());
            }
            CatalogRecord::ExportRemoved(_, id) => {
                self.exports.remove(id).ok_or(ApplyError::NoExport(*id))?;
            }
            CatalogRecord::LogsKept(logs) => self.logs = Some(logs.clone()),
            CatalogRecord::BackendSet(settings) => self.backend.clone_from(settings),
            CatalogRecord::SnapshotsCommitted(cut) => self.add_snapshots(cut, true)?,
            CatalogRecord::SnapshotsSealed(cut) => self.add_snapshots(cut, false)?,
            CatalogRecord::SnapshotSynced(synced) => self.set_synced(synced)?,
            CatalogRecord::SnapshotRemains(remains) => self.remove_snapshot(remains)?,
            CatalogRecord::RolledBack(rollback) => self.roll_back(rollback)?,
            CatalogRecord::CloneCreated(clone) => self.clone_volume(clone)?,
            CatalogRecord::Detached(id) => self.entry(*id)?.record.parent = None,
            CatalogRecord::AttemptNoted(noted) => {
                self.attempts.insert(noted.attempt, noted.clone());
                self.next_volume = self.next_volume.max(noted.snapshot.0.saturating_add(1));
            }
            CatalogRecord::AttemptSettled(_, attempt) => drop(self.attempts.remove(attempt)),
            CatalogRecord::BaseKept(origin, base) => {
                self.entry(*origin)?;
                self.set_base(*origin, base.clone());
            }
            CatalogRecord::ManifestReplaced(origin, old, new) => self.replace_manifest(*origin, old, new)?,
            CatalogRecord::StreamKept(stream) => self.keep_stream(stream)?,
            CatalogRecord::StreamEnded(id) => {
                self.streams.remove(id).ok_or(ApplyError::NoVolume(*id))?;
            }
            CatalogRecord::EventTold(event) => self.tell(event)?,
            CatalogRecord::SourceHeld(holder, source) => drop(self.held.insert(*holder, source.clone())),
            CatalogRecord::SourceReleased(holder) => drop(self.held.remove(holder)),
        }
        Ok(())
    }

    /// Its snapshots go with it.
    fn remove(&mut self, id: VolumeId) -> Result<(), ApplyError> {
        let entry = self.volumes.get(&id).filter(|entry| !entry.record.is_snapshot());
        let shards = entry.ok_or(ApplyError::NoVolume(id))?.record.shards.clone();
        let snapshots = self.snapshot_ids(id);
        for &gone in snapshots.iter().chain([&id]) {
            let entry = self.volumes.remove(&gone).expect("listed");
            self.names.remove(&entry.record.name);
            self.exports.retain(|_, export| export.volume != gone);
        }
        // What shards hold of its snapshots they hold of it.
        self.removed.retain(|_, removed| removed.origin != Some(id));
        self.bases.remove(&id);
        self.streams.remove(&id);
        // Its faults stay until it is erased: a shard that lost records of it must not give away what it names.
        self.removed.insert(id, Removed { origin: None, shards });
        Ok(())
    }

    fn snapshot_ids(&self, origin: VolumeId) -> Vec<VolumeId> {
        self.snapshots_of(origin).map(|(_, entry)| entry.record.id).collect()
    }

    /// Its snapshots are named after it.
    fn rename(&mut self, id: VolumeId, name: String) {
        for snapshot in self.snapshot_ids(id) {
            let facts = self.volumes[&snapshot].snapshot.as_ref().expect("a snapshot");
            let full = full_name(&name, &facts.name);
            self.set_name(snapshot, full);
        }
        self.set_name(id, name);
    }

    fn set_name(&mut self, id: VolumeId, name: String) {
        let entry = self.volumes.get_mut(&id).expect("looked up");
        let before = std::mem::replace(&mut entry.record.name, name.clone());
        self.names.remove(&before);
        self.names.insert(name, id);
    }

    pub(super) fn create(&mut self, volume: &VolumeRecord) -> Result<(), ApplyError> {
        let id = volume.id;
        if id.0 == 0 || id.0 < self.next_volume() || self.volumes.contains_key(&id) || self.removed.contains_key(&id) {
            return Err(ApplyError::IdUsed(id));
        }
        let shards: BTreeSet<_> = volume.shards.iter().collect();
        let checks = [
            (matches!(volume.lba_bytes, 512 | 4096), "LBA size (512 and 4096 are possible)"),
            (!shards.is_empty() && shards.len() == volume.shards.len(), "list of shards"),
            (volume.cuts.is_sorted_by(|a, b| a < b), "list of cuts"),
        ];
        if let Some(&(_, field)) = checks.iter().find(|(good, _)| !good) {
            return Err(ApplyError::Field { volume: id, field });
        }
        let lba = u64::from(volume.lba_bytes);
        if volume.size == 0 || volume.size > crate::limits::VOLUME_BYTES_MAX || !volume.size.is_multiple_of(lba) {
            return Err(ApplyError::Field { volume: id, field: "size" });
        }
        self.check_free(id, &volume.name)?;
        self.names.insert(volume.name.clone(), id);
        self.volumes.insert(id, VolumeEntry::new(volume.clone()));
        self.next_volume = id.0.saturating_add(1);
        Ok(())
    }

    fn give(&mut self, slab: SlabId, owner: Option<ShardId>) -> Result<(), ApplyError> {
        match (self.slabs.get(&slab), owner) {
            (Some(&before), Some(owner)) if before != owner => {
                return Err(ApplyError::SlabOwned { slab, owner: before });
            }
            (_, Some(owner)) => self.slabs.insert(slab, owner),
            (_, None) => self.slabs.remove(&slab),
        };
        Ok(())
    }

    pub(super) fn entry(&mut self, id: VolumeId) -> Result<&mut VolumeEntry, ApplyError> {
        self.volumes.get_mut(&id).ok_or(ApplyError::NoVolume(id))
    }

    fn check_free(&self, id: VolumeId, name: &str) -> Result<(), ApplyError> {
        check_name(name).map_err(|_| ApplyError::Field { volume: id, field: "name" })?;
        match self.names.get(name) {
            Some(&owner) if owner != id => Err(ApplyError::NameUsed { name: name.to_owned(), owner }),
            _ => Ok(()),
        }
    }

    /// Live volumes, by id.
    pub fn volumes(&self) -> impl Iterator<Item = &VolumeEntry> {
        self.volumes.values()
    }

    /// A live volume.
    #[must_use]
    pub fn volume(&self, id: VolumeId) -> Option<&VolumeEntry> {
        self.volumes.get(&id)
    }

    /// A live volume by name.
    #[must_use]
    pub fn volume_named(&self, name: &str) -> Option<&VolumeEntry> {
        self.names.get(name).and_then(|id| self.volumes.get(id))
    }

    /// Removed volumes and snapshots that shards still have to erase.
    pub fn removed(&self) -> impl Iterator<Item = (VolumeId, &Removed)> {
        self.removed.iter().map(|(&id, removed)| (id, removed))
    }

    /// Why a volume is not served; empty: it is.
    pub fn faults_of(&self, id: VolumeId) -> impl Iterator<Item = &Fault> {
        self.faults.get(&id).into_iter().flatten()
    }

    /// Every fault, those of volumes whose own record is lost included.
    pub fn faults(&self) -> impl Iterator<Item = (VolumeId, &Fault)> {
        self.faults.iter().flat_map(|(&id, faults)| faults.iter().map(move |fault| (id, fault)))
    }

    /// Owned slabs.
    pub fn slabs(&self) -> impl Iterator<Item = (SlabId, ShardId)> {
        self.slabs.iter().map(|(&slab, &shard)| (slab, shard))
    }

    /// The slabs of one shard.
    pub fn slabs_of(&self, shard: ShardId) -> impl Iterator<Item = SlabId> {
        self.slabs().filter(move |&(_, owner)| owner == shard).map(|(slab, _)| slab)
    }

    /// Whose a slab is.
    #[must_use]
    pub fn owner(&self, slab: SlabId) -> Option<ShardId> {
        self.slabs.get(&slab).copied()
    }

    /// The devices, by number.
    pub fn devices(&self) -> impl Iterator<Item = (u8, Device)> {
        self.devices.iter().map(|(&number, &device)| (number, device))
    }

    /// The exports, by number.
    pub fn exports(&self) -> impl Iterator<Item = &ExportRecord> {
        self.exports.values()
    }

    /// An export.
    #[must_use]
    pub fn export(&self, id: ExportId) -> Option<&ExportRecord> {
        self.exports.get(&id)
    }

    /// The number for the next export: above all there are.
    #[must_use]
    pub fn next_export(&self) -> ExportId {
        ExportId(self.exports.keys().next_back().map_or(1, |last| last.0 + 1))
    }

    /// The id for the next volume: never used before.
    #[must_use]
    pub fn next_volume(&self) -> u32 {
        self.next_volume.max(1)
    }

    /// The last boot that was opened.
    #[must_use]
    pub fn boot(&self) -> u32 {
        self.boot
    }

    /// Where the last boot kept the logs that survive its process, if it did.
    #[must_use]
    pub fn logs(&self) -> Option<&KeptLogs> {
        self.logs.as_ref()
    }

    /// Whether that boot was closed in good order.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.clean
    }

    /// Where snapshots are stored, if not in the pool alone.
    #[must_use]
    pub fn backend(&self) -> Option<&BackendSettings> {
        self.backend.as_ref()
    }

    /// Snapshots on backends that are kept from being deleted for clones here.
    #[must_use]
    pub fn held_sources(&self) -> Vec<HeldSource> {
        let on_backend = |entry: &&VolumeEntry| entry.record.parent.is_some_and(|parent| parent.is_on_backend());
        let clones: BTreeMap<Uuid, VolumeId> =
            self.volumes().filter(on_backend).map(|entry| (entry.record.uuid, entry.record.id)).collect();
        let held = |(&holder, source): (&Uuid, &CloneSource)| {
            let volume = clones.get(&holder).copied();
            HeldSource { holder, source: source.clone(), volume }
        };
        self.held.iter().map(held).collect()
    }

    /// What a clone looks through to on a backend.
    #[must_use]
    pub fn source_of(&self, entry: &VolumeEntry) -> Option<&CloneSource> {
        entry.record.parent.filter(Parent::is_on_backend).and_then(|_| self.held.get(&entry.record.uuid))
    }

    /// Records that say of everybody who is attached that they have yet to learn that the machine failed under them.
    #[must_use]
    pub fn hosts_to_tell(&self) -> Vec<CatalogRecord> {
        let of = |(&id, entry): (&VolumeId, &VolumeEntry)| {
            let hosts = entry.attached.difference(&entry.untold);
            hosts.map(|host| CatalogRecord::HostUntold(id, host.clone())).collect::<Vec<_>>()
        };
        self.volumes.iter().flat_map(of).collect()
    }

    /// Records that make this state from an empty one.
    #[must_use]
    pub fn records(&self) -> Vec<CatalogRecord> {
        // First: closing detaches everybody, and hosts may have attached since.
        let boot = if self.clean { CatalogRecord::Closed(self.boot) } else { CatalogRecord::Opened(self.boot) };
        let mut records = vec![boot];
        for (&number, device) in &self.devices {
            records.push(CatalogRecord::DeviceAdded(number, device.uuid, device.size));
        }
        records.extend(self.slabs.iter().map(|(&slab, &shard)| CatalogRecord::SlabOwned(slab, Some(shard))));
        // Ids ascend, live and removed ones in one sequence: an id below the highest is taken as used.
        let ids: BTreeSet<_> = self.volumes.keys().chain(self.removed.keys()).copied().collect();
        for id in ids {
            if let Some(entry) = self.volumes.get(&id) {
                records.push(match (&entry.snapshot, entry.record.parent) {
                    (Some(_), _) => CatalogState::snapshot_record(entry),
                    (None, Some(parent)) => {
                        let volume = VolumeRecord { parent: None, ..entry.record.clone() };
                        CatalogRecord::CloneCreated(CloneRecord { volume, parent })
                    }
                    (None, None) => CatalogRecord::VolumeCreated(entry.record.clone()),
                });
                records.extend(entry.attached.iter().map(|host| CatalogRecord::HostAttached(id, host.clone())));
                records.extend(entry.untold.iter().map(|host| CatalogRecord::HostUntold(id, host.clone())));
                let writer = entry.writer.clone();
                records.extend(writer.map(|(nqn, host)| CatalogRecord::WriterNoted(id, nqn, host)));
            } else {
                let Removed { origin, shards } = self.removed[&id].clone();
                records.push(match origin {
                    Some(origin) => CatalogRecord::SnapshotRemains(RemainsRecord { origin, snapshot: id, shards }),
                    None => CatalogRecord::VolumeRemains(id, shards),
                });
            }
        }
        // After the snapshots, each of which may have set an older one.
        let stored =
            self.volumes.values().filter(|entry| entry.snapshot.as_ref().is_some_and(|s| s.manifest.is_some()));
        let stored = stored.filter_map(|entry| entry.record.view.map(|view| view.origin));
        let origins: BTreeSet<_> = stored.chain(self.bases.keys().copied()).collect();
        let base = |origin| CatalogRecord::BaseKept(origin, self.bases.get(&origin).cloned());
        records.extend(origins.into_iter().map(base));
        records.extend(self.attempts.values().cloned().map(CatalogRecord::AttemptNoted));
        records.extend(self.exports.values().cloned().map(CatalogRecord::ExportAdded));
        records.extend(self.streams.values().cloned().map(CatalogRecord::StreamKept));
        records.extend(self.events.iter().cloned().map(CatalogRecord::EventTold));
        for (id, fault) in self.faults() {
            records.push(CatalogRecord::VolumeFaulted(id, fault.shard, fault.why.clone()));
        }
        records.push(CatalogRecord::NextVolume(VolumeId(self.next_volume())));
        records.extend(self.logs.clone().map(CatalogRecord::LogsKept));
        let held = self.held.iter().map(|(&holder, source)| CatalogRecord::SourceHeld(holder, source.clone()));
        records.extend(held);
        records.extend(self.backend.clone().map(|backend| CatalogRecord::BackendSet(Some(backend))));
        records
    }
}
