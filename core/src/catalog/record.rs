//! Catalog records and their bytes: kind, flags and length in a fixed header, the rest in postcard.
//!
//! ```text
//! 0 kind u16 | 2 flags u16 (bit 0: must understand) | 4 length u32 of what follows | 8 postcard
//! ```
//! A kind's content never changes; what needs other fields gets another kind.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use super::jobs::StreamRecord;
use super::snapshots::{CloneRecord, CutRecord, RemainsRecord, RollbackRecord, SyncedRecord};
use crate::backend::clones::CloneSource;
use crate::backend::settings::BackendSettings;
use crate::event::Event;
use crate::export::ExportRecord;
use crate::ids::{AttemptId, ExportId, ShardId, VolumeId};
use crate::snapshot::sync::{Base, NotedAttempt};
use crate::space::SlabId;
use crate::volume::VolumeRecord;

/// The numbers of the kinds, those of later versions included, which are reserved here so that they are never reused.
pub mod kind {
    pub const VOLUME_CREATED: u16 = 1;
    pub const VOLUME_REMOVED: u16 = 2;
    pub const VOLUME_ERASED: u16 = 3;
    pub const VOLUME_RESIZED: u16 = 4;
    pub const VOLUME_RENAMED: u16 = 5;
    pub const HOSTS_ALLOWED: u16 = 6;
    pub const HOST_ATTACHED: u16 = 7;
    pub const HOST_DETACHED: u16 = 8;
    pub const VOLUME_FAULTED: u16 = 9;
    /// Not written by this version: a map that lost records names clusters that may be another volume's by now.
    pub const VOLUME_REPAIRED: u16 = 10;
    pub const VOLUME_REMAINS: u16 = 11;
    pub const HOST_UNTOLD: u16 = 12;
    pub const HOST_TOLD: u16 = 13;
    pub const WRITER_NOTED: u16 = 14;
    pub const SLAB_OWNED: u16 = 16;
    pub const DEVICE_ADDED: u16 = 17;
    pub const OPENED: u16 = 18;
    pub const CLOSED: u16 = 19;
    pub const NEXT_VOLUME: u16 = 20;
    pub const EXPORT_ADDED: u16 = 24;
    pub const EXPORT_REMOVED: u16 = 25;
    pub const LOGS_KEPT: u16 = 21;
    pub const BACKEND_SET: u16 = 26;
    pub const CUT: u16 = 32;
    pub const ATTEMPT: u16 = 33;
    pub const SEALED: u16 = 34;
    pub const SYNCED: u16 = 35;
    /// Not written by this version: a record whose writing failed is made void by a compaction that does not have it.
    pub const VOID: u16 = 36;
    pub const ROLLBACK: u16 = 37;
    pub const CLONE: u16 = 38;
    pub const DETACH: u16 = 39;
    pub const JOB: u16 = 40;
    pub const EVENT: u16 = 41;
    pub const SNAPSHOT_REMAINS: u16 = 42;
    pub const ATTEMPT_SETTLED: u16 = 43;
    pub const BASE_KEPT: u16 = 44;
    pub const JOB_ENDED: u16 = 48;
    pub const SOURCE_HELD: u16 = 45;
    pub const SOURCE_RELEASED: u16 = 46;
    pub const MANIFEST_REPLACED: u16 = 49;
}

const MUST_UNDERSTAND: u16 = 1;

/// One change of the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogRecord {
    /// A volume exists. Its id has never been used before.
    VolumeCreated(VolumeRecord),
    /// A volume is gone and its name is free; shards still hold clusters of it.
    VolumeRemoved(VolumeId),
    /// No shard holds anything of a removed volume any more.
    VolumeErased(VolumeId),
    /// A volume has another size, bytes.
    VolumeResized(VolumeId, u64),
    /// A volume has another name.
    VolumeRenamed(VolumeId, String),
    /// These hosts, by NQN, may attach.
    HostsAllowed(VolumeId, Vec<String>),
    /// A host attached for writing; it may hold data it believes to be stored.
    HostAttached(VolumeId, String),
    /// A host detached in good order.
    HostDetached(VolumeId, String),
    /// The machine has failed under an attached host, which does not know it yet: its first flush is to fail.
    HostUntold(VolumeId, String),
    /// It has.
    HostTold(VolumeId, String),
    /// A host is the one writer, of those that ask to be it: its NQN and identifier. Of those before it nothing is taken any more.
    WriterNoted(VolumeId, String, [u8; 16]),
    /// Part of a volume's map or data is damaged: it is not served until repaired. The shard, where one is to blame, and why.
    VolumeFaulted(VolumeId, Option<ShardId>, String),
    /// A volume was removed, and these shards may still hold clusters of it. Stands for its creation and removal in a snapshot.
    VolumeRemains(VolumeId, Vec<ShardId>),
    /// A slab belongs to this shard, or to nobody.
    SlabOwned(SlabId, Option<ShardId>),
    /// A device is part of the pool: number, UUID, bytes.
    DeviceAdded(u8, Uuid, u64),
    /// This boot is in use and has not been closed.
    Opened(u32),
    /// This boot was closed in good order: everything is in checkpoints, nobody is attached.
    Closed(u32),
    /// No volume with this id or a higher one has ever been.
    NextVolume(VolumeId),
    /// A volume has a socket of its own for one kind of client.
    ExportAdded(ExportRecord),
    /// It has that no more.
    ExportRemoved(VolumeId, ExportId),
    /// Where this boot keeps the logs that survive its process.
    LogsKept(KeptLogs),
    /// Where snapshots are stored from now on; none: in the pool alone.
    BackendSet(Option<BackendSettings>),
    /// Snapshots exist, and they are synced.
    SnapshotsCommitted(CutRecord),
    /// Snapshots exist, sealed; syncing them goes on.
    SnapshotsSealed(CutRecord),
    /// A sealed one is synced now.
    SnapshotSynced(SyncedRecord),
    /// A snapshot is gone; these shards may hold versions for it.
    SnapshotRemains(RemainsRecord),
    /// A volume is as it was at a cut.
    RolledBack(RollbackRecord),
    /// A volume over a snapshot exists. Its id has never been used before.
    CloneCreated(CloneRecord),
    /// A clone needs its parent no more.
    Detached(VolumeId),
    /// An attempt's manifest may exist in the backend from now on.
    AttemptNoted(NotedAttempt),
    /// Nothing of the attempt is left to do: its marker is there, or none of its objects. Of this volume.
    AttemptSettled(VolumeId, AttemptId),
    /// The cut of a volume that the next sync starts from, kept whatever snapshots there are.
    BaseKept(VolumeId, Option<Base>),
    /// A volume's snapshots, and its next sync, have the second manifest where they had the first.
    ManifestReplaced(VolumeId, String, String),
    /// A clone is streamed, and how: a new job, or another state of the one there is.
    StreamKept(StreamRecord),
    /// It is not streamed any more.
    StreamEnded(VolumeId),
    /// Something has happened, by the records beside it.
    EventTold(Event),
    /// A reference to this snapshot on a backend may be there from now on, in the name of the clone with this UUID.
    SourceHeld(Uuid, CloneSource),
    /// It is there no more.
    SourceReleased(Uuid),
}

/// The logs that survive a process, and not its machine: where the next one finds them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptLogs {
    /// The boot of the machine on which they are good for something.
    pub machine: [u8; 16],
    /// The folder.
    pub folder: String,
}

/// Why bytes are no catalog record.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadCatalogRecord {
    /// The header or the content ends too early.
    #[error("a catalog record ends in its middle")]
    Short,
    /// The content is not that of its kind.
    #[error("a catalog record of kind {0} has content of another kind")]
    Content(u16),
    /// A kind of a later version that must not be skipped.
    #[error(
        "the catalog has a record of kind {0}, which only a later version of Ringway understands; open the pool with that version"
    )]
    Unknown(u16),
}

impl CatalogRecord {
    /// Its kind's number.
    #[must_use]
    pub fn kind(&self) -> u16 {
        match self {
            CatalogRecord::VolumeCreated(..) => kind::VOLUME_CREATED,
            CatalogRecord::VolumeRemoved(..) => kind::VOLUME_REMOVED,
            CatalogRecord::VolumeErased(..) => kind::VOLUME_ERASED,
            CatalogRecord::VolumeResized(..) => kind::VOLUME_RESIZED,
            CatalogRecord::VolumeRenamed(..) => kind::VOLUME_RENAMED,
            CatalogRecord::HostsAllowed(..) => kind::HOSTS_ALLOWED,
            CatalogRecord::HostAttached(..) => kind::HOST_ATTACHED,
            CatalogRecord::HostDetached(..) => kind::HOST_DETACHED,
            CatalogRecord::HostUntold(..) => kind::HOST_UNTOLD,
            CatalogRecord::HostTold(..) => kind::HOST_TOLD,
            CatalogRecord::WriterNoted(..) => kind::WRITER_NOTED,
            CatalogRecord::VolumeFaulted(..) => kind::VOLUME_FAULTED,
            CatalogRecord::VolumeRemains(..) => kind::VOLUME_REMAINS,
            CatalogRecord::SlabOwned(..) => kind::SLAB_OWNED,
            CatalogRecord::DeviceAdded(..) => kind::DEVICE_ADDED,
            CatalogRecord::Opened(..) => kind::OPENED,
            CatalogRecord::Closed(..) => kind::CLOSED,
            CatalogRecord::NextVolume(..) => kind::NEXT_VOLUME,
            CatalogRecord::ExportAdded(..) => kind::EXPORT_ADDED,
            CatalogRecord::ExportRemoved(..) => kind::EXPORT_REMOVED,
            CatalogRecord::LogsKept(..) => kind::LOGS_KEPT,
            CatalogRecord::BackendSet(..) => kind::BACKEND_SET,
            CatalogRecord::SnapshotsCommitted(..) => kind::CUT,
            CatalogRecord::SnapshotsSealed(..) => kind::SEALED,
            CatalogRecord::SnapshotSynced(..) => kind::SYNCED,
            CatalogRecord::SnapshotRemains(..) => kind::SNAPSHOT_REMAINS,
            CatalogRecord::RolledBack(..) => kind::ROLLBACK,
            CatalogRecord::CloneCreated(..) => kind::CLONE,
            CatalogRecord::Detached(..) => kind::DETACH,
            CatalogRecord::AttemptNoted(..) => kind::ATTEMPT,
            CatalogRecord::AttemptSettled(..) => kind::ATTEMPT_SETTLED,
            CatalogRecord::BaseKept(..) => kind::BASE_KEPT,
            CatalogRecord::ManifestReplaced(..) => kind::MANIFEST_REPLACED,
            CatalogRecord::StreamKept(..) => kind::JOB,
            CatalogRecord::StreamEnded(..) => kind::JOB_ENDED,
            CatalogRecord::EventTold(..) => kind::EVENT,
            CatalogRecord::SourceHeld(..) => kind::SOURCE_HELD,
            CatalogRecord::SourceReleased(..) => kind::SOURCE_RELEASED,
        }
    }

    /// The volume it is about, if it is about one.
    #[must_use]
    pub fn volume(&self) -> Option<VolumeId> {
        match self {
            CatalogRecord::VolumeCreated(volume) => Some(volume.id),
            CatalogRecord::ExportAdded(export) => Some(export.volume),
            CatalogRecord::VolumeRemoved(id)
            | CatalogRecord::VolumeErased(id)
            | CatalogRecord::VolumeResized(id, _)
            | CatalogRecord::VolumeRenamed(id, _)
            | CatalogRecord::HostsAllowed(id, _)
            | CatalogRecord::HostAttached(id, _)
            | CatalogRecord::HostDetached(id, _)
            | CatalogRecord::HostUntold(id, _)
            | CatalogRecord::HostTold(id, _)
            | CatalogRecord::WriterNoted(id, ..)
            | CatalogRecord::VolumeFaulted(id, ..)
            | CatalogRecord::VolumeRemains(id, _)
            | CatalogRecord::ExportRemoved(id, _)
            | CatalogRecord::Detached(id)
            | CatalogRecord::AttemptSettled(id, _)
            | CatalogRecord::BaseKept(id, _)
            | CatalogRecord::ManifestReplaced(id, ..)
            | CatalogRecord::StreamEnded(id) => Some(*id),
            CatalogRecord::StreamKept(stream) => Some(stream.volume),
            CatalogRecord::EventTold(event) => event.volume,
            // What is about a snapshot is about the volume that was cut: that one is faulted if the record is lost.
            CatalogRecord::SnapshotsCommitted(cut) | CatalogRecord::SnapshotsSealed(cut) => match &cut.snapshots[..] {
                [one] => Some(one.origin),
                _ => None,
            },
            CatalogRecord::SnapshotSynced(synced) => Some(synced.origin),
            CatalogRecord::SnapshotRemains(remains) => Some(remains.origin),
            CatalogRecord::RolledBack(rollback) => Some(rollback.volume),
            CatalogRecord::CloneCreated(clone) => Some(clone.volume.id),
            CatalogRecord::AttemptNoted(noted) => Some(noted.origin),
            CatalogRecord::SlabOwned(..)
            | CatalogRecord::DeviceAdded(..)
            | CatalogRecord::Opened(..)
            | CatalogRecord::Closed(..)
            | CatalogRecord::NextVolume(..)
            | CatalogRecord::BackendSet(..)
            | CatalogRecord::SourceHeld(..)
            | CatalogRecord::SourceReleased(..)
            | CatalogRecord::LogsKept(..) => None,
        }
    }

    /// Appends its encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let content = match self {
            CatalogRecord::VolumeCreated(volume) => bytes(volume),
            CatalogRecord::VolumeRemoved(id) | CatalogRecord::VolumeErased(id) => bytes(id),
            CatalogRecord::VolumeResized(id, size) => bytes(&(id, size)),
            CatalogRecord::VolumeRenamed(id, text)
            | CatalogRecord::HostAttached(id, text)
            | CatalogRecord::HostDetached(id, text)
            | CatalogRecord::HostUntold(id, text)
            | CatalogRecord::HostTold(id, text) => bytes(&(id, text)),
            CatalogRecord::WriterNoted(id, nqn, host) => bytes(&(id, nqn, host)),
            CatalogRecord::HostsAllowed(id, hosts) => bytes(&(id, hosts)),
            CatalogRecord::VolumeFaulted(id, shard, why) => bytes(&(id, shard, why)),
            CatalogRecord::VolumeRemains(id, shards) => bytes(&(id, shards)),
            CatalogRecord::SlabOwned(slab, shard) => bytes(&(slab, shard)),
            CatalogRecord::DeviceAdded(number, uuid, size) => bytes(&(number, uuid, size)),
            CatalogRecord::Opened(boot) | CatalogRecord::Closed(boot) => bytes(boot),
            CatalogRecord::NextVolume(id) => bytes(id),
            CatalogRecord::ExportAdded(export) => bytes(export),
            CatalogRecord::ExportRemoved(volume, id) => bytes(&(volume, id)),
            CatalogRecord::LogsKept(logs) => bytes(logs),
            CatalogRecord::BackendSet(settings) => bytes(settings),
            CatalogRecord::SnapshotsCommitted(cut) | CatalogRecord::SnapshotsSealed(cut) => bytes(cut),
            CatalogRecord::SnapshotSynced(synced) => bytes(synced),
            CatalogRecord::SnapshotRemains(remains) => bytes(remains),
            CatalogRecord::RolledBack(rollback) => bytes(rollback),
            CatalogRecord::CloneCreated(clone) => bytes(clone),
            CatalogRecord::Detached(id) => bytes(id),
            CatalogRecord::AttemptNoted(noted) => bytes(noted),
            CatalogRecord::AttemptSettled(volume, attempt) => bytes(&(volume, attempt)),
            CatalogRecord::BaseKept(volume, base) => bytes(&(volume, base)),
            CatalogRecord::ManifestReplaced(volume, old, new) => bytes(&(volume, old, new)),
            CatalogRecord::StreamKept(stream) => bytes(stream),
            CatalogRecord::StreamEnded(volume) => bytes(volume),
            CatalogRecord::EventTold(event) => bytes(event),
            CatalogRecord::SourceHeld(holder, source) => bytes(&(holder, source)),
            CatalogRecord::SourceReleased(holder) => bytes(holder),
        };
        out.extend(self.kind().to_le_bytes());
        out.extend(MUST_UNDERSTAND.to_le_bytes());
        out.extend(u32::try_from(content.len()).expect("a record is far below 4 GiB").to_le_bytes());
        out.extend(content);
    }

    /// The record at the start of `bytes` and its length; `None` for one of a later version that may be skipped.
    pub fn decode(bytes: &[u8]) -> Result<(Option<CatalogRecord>, usize), BadCatalogRecord> {
        let Some((&[k0, k1, f0, f1, l0, l1, l2, l3], rest)) = bytes.split_first_chunk() else {
            return Err(BadCatalogRecord::Short);
        };
        let (kind, flags) = (u16::from_le_bytes([k0, k1]), u16::from_le_bytes([f0, f1]));
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let content = Content { kind, bytes: rest.get(..length).ok_or(BadCatalogRecord::Short)? };
        let record = match kind {
            kind::VOLUME_CREATED => CatalogRecord::VolumeCreated(content.read()?),
            kind::VOLUME_REMOVED => CatalogRecord::VolumeRemoved(content.read()?),
            kind::VOLUME_ERASED => CatalogRecord::VolumeErased(content.read()?),
            kind::VOLUME_RESIZED => content.read().map(|(id, size)| CatalogRecord::VolumeResized(id, size))?,
            kind::VOLUME_RENAMED => content.read().map(|(id, name)| CatalogRecord::VolumeRenamed(id, name))?,
            kind::HOSTS_ALLOWED => content.read().map(|(id, hosts)| CatalogRecord::HostsAllowed(id, hosts))?,
            kind::HOST_ATTACHED => content.read().map(|(id, host)| CatalogRecord::HostAttached(id, host))?,
            kind::HOST_DETACHED => content.read().map(|(id, host)| CatalogRecord::HostDetached(id, host))?,
            kind::HOST_UNTOLD => content.read().map(|(id, host)| CatalogRecord::HostUntold(id, host))?,
            kind::HOST_TOLD => content.read().map(|(id, host)| CatalogRecord::HostTold(id, host))?,
            kind::WRITER_NOTED => content.read().map(|(id, nqn, host)| CatalogRecord::WriterNoted(id, nqn, host))?,
            kind::VOLUME_FAULTED => {
                content.read().map(|(id, shard, why)| CatalogRecord::VolumeFaulted(id, shard, why))?
            }
            kind::VOLUME_REMAINS => content.read().map(|(id, shards)| CatalogRecord::VolumeRemains(id, shards))?,
            kind::SLAB_OWNED => content.read().map(|(slab, shard)| CatalogRecord::SlabOwned(slab, shard))?,
            kind::DEVICE_ADDED => {
                content.read().map(|(number, uuid, size)| CatalogRecord::DeviceAdded(number, uuid, size))?
            }
            kind::OPENED => CatalogRecord::Opened(content.read()?),
            kind::CLOSED => CatalogRecord::Closed(content.read()?),
            kind::NEXT_VOLUME => CatalogRecord::NextVolume(content.read()?),
            kind::EXPORT_ADDED => CatalogRecord::ExportAdded(content.read()?),
            kind::EXPORT_REMOVED => content.read().map(|(volume, id)| CatalogRecord::ExportRemoved(volume, id))?,
            kind::LOGS_KEPT => CatalogRecord::LogsKept(content.read()?),
            kind::BACKEND_SET => CatalogRecord::BackendSet(content.read()?),
            kind::CUT => CatalogRecord::SnapshotsCommitted(content.read()?),
            kind::SEALED => CatalogRecord::SnapshotsSealed(content.read()?),
            kind::SYNCED => CatalogRecord::SnapshotSynced(content.read()?),
            kind::SNAPSHOT_REMAINS => CatalogRecord::SnapshotRemains(content.read()?),
            kind::ROLLBACK => CatalogRecord::RolledBack(content.read()?),
            kind::CLONE => CatalogRecord::CloneCreated(content.read()?),
            kind::DETACH => CatalogRecord::Detached(content.read()?),
            kind::ATTEMPT => CatalogRecord::AttemptNoted(content.read()?),
            kind::ATTEMPT_SETTLED => {
                content.read().map(|(volume, attempt)| CatalogRecord::AttemptSettled(volume, attempt))?
            }
            kind::SOURCE_HELD => content.read().map(|(holder, source)| CatalogRecord::SourceHeld(holder, source))?,
            kind::SOURCE_RELEASED => CatalogRecord::SourceReleased(content.read()?),
            kind::BASE_KEPT => content.read().map(|(volume, base)| CatalogRecord::BaseKept(volume, base))?,
            kind::MANIFEST_REPLACED => {
                content.read().map(|(volume, old, new)| CatalogRecord::ManifestReplaced(volume, old, new))?
            }
            kind::JOB => CatalogRecord::StreamKept(content.read()?),
            kind::JOB_ENDED => CatalogRecord::StreamEnded(content.read()?),
            kind::EVENT => CatalogRecord::EventTold(content.read()?),
            _ if flags & MUST_UNDERSTAND == 0 => return Ok((None, 8 + length)),
            _ => return Err(BadCatalogRecord::Unknown(kind)),
        };
        Ok((Some(record), 8 + length))
    }
}

fn bytes(content: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(content).expect("plain data in memory can be encoded")
}

struct Content<'a> {
    kind: u16,
    bytes: &'a [u8],
}

impl Content<'_> {
    /// All of the content, to the last byte.
    fn read<T: DeserializeOwned>(&self) -> Result<T, BadCatalogRecord> {
        match postcard::take_from_bytes(self.bytes) {
            Ok((value, [])) => Ok(value),
            _ => Err(BadCatalogRecord::Content(self.kind)),
        }
    }
}
