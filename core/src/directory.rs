//! What there is to serve: an immutable snapshot of the catalog that every reactor reads without a lock.
//!
//! The catalog's reactor builds a new one for each change and publishes it; who holds an old one sees the old state whole.
//! A subsystem is a table from namespaces to volumes, although today each has the one namespace of its volume.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use uuid::Uuid;

use crate::ids::{ShardId, VolumeId};
use crate::volume::VolumeRecord;
use crate::wire::NQN_MAX;
use crate::wire::log_page::TransportType;

/// What the NQN of a volume starts with; its name follows.
pub const VOLUME_NQN_PREFIX: &str = "nqn.2026-11.io.ringway:";
/// What an NQN that is a UUID starts with (base 4.5).
pub const UUID_NQN_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

/// How full the pool is, in the steps at which somebody is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpaceLevel {
    /// Less than 80 % is in use.
    #[default]
    Below80,
    /// 80 % or more.
    Above80,
    /// 90 % or more.
    Above90,
    /// 95 % or more.
    Above95,
}

impl SpaceLevel {
    /// The level of a pool of which `percent` are in use.
    #[must_use]
    pub fn of_percent(percent: u64) -> SpaceLevel {
        match percent {
            0..80 => SpaceLevel::Below80,
            80..90 => SpaceLevel::Above80,
            90..95 => SpaceLevel::Above90,
            _ => SpaceLevel::Above95,
        }
    }

    /// Percent of space left that this level is reported as.
    #[must_use]
    pub fn spare_percent(self) -> u8 {
        match self {
            SpaceLevel::Below80 => 100,
            SpaceLevel::Above80 => 19,
            SpaceLevel::Above90 => 9,
            SpaceLevel::Above95 => 4,
        }
    }
}

/// A volume that can be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeEntry {
    /// As the catalog has it.
    pub record: Arc<VolumeRecord>,
    /// Why it answers no I/O, if it is faulted.
    pub fault: Option<String>,
}

/// What a directory is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectoryParts {
    /// Differs from that of every other directory of this pool, across restarts too (generation of the boot in the upper
    /// half): the generation counter of the discovery log.
    pub version: u64,
    /// Volumes and snapshots that can be served, in any order.
    pub volumes: Vec<VolumeEntry>,
    /// Snapshots that are not there yet, for those who store them elsewhere: found by id alone, and nobody can attach them.
    pub pending: Vec<VolumeEntry>,
    /// Volumes whose removal is recorded and whose space is not yet all free.
    pub erasing: Vec<Arc<VolumeRecord>>,
    /// Hosts that are on no list may attach from beyond loopback.
    pub insecure: bool,
    /// Where the target listens.
    pub ports: Vec<Port>,
    /// How full the pool is.
    pub space: SpaceLevel,
    /// The pool takes no writes.
    pub read_only: bool,
}

/// A namespace's number in its subsystem, and its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Namespace {
    /// 1 and up.
    pub nsid: u32,
    /// The volume behind it.
    pub volume: VolumeId,
}

/// What a host connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subsystem {
    /// Its name.
    pub nqn: String,
    /// Ascending by number.
    pub namespaces: Vec<Namespace>,
}

impl Subsystem {
    /// The volume behind namespace `nsid`.
    #[must_use]
    pub fn volume(&self, nsid: u32) -> Option<VolumeId> {
        self.namespaces.iter().find(|namespace| namespace.nsid == nsid).map(|namespace| namespace.volume)
    }

    /// The highest namespace number.
    #[must_use]
    pub fn nsid_max(&self) -> u32 {
        self.namespaces.last().map_or(0, |namespace| namespace.nsid)
    }
}

/// An immutable snapshot of what there is to serve.
#[derive(Debug, Default)]
pub struct Directory {
    version: u64,
    /// Ascending by id.
    volumes: Vec<VolumeEntry>,
    /// Ascending by id.
    pending: Vec<VolumeEntry>,
    names: BTreeMap<String, VolumeId>,
    uuids: BTreeMap<Uuid, VolumeId>,
    erasing: Vec<Arc<VolumeRecord>>,
    insecure: bool,
    ports: Vec<Port>,
    space: SpaceLevel,
    read_only: bool,
}

/// A way to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Over what.
    pub transport: TransportType,
    /// The address it listens at; perhaps a wildcard.
    pub addr: SocketAddr,
}

/// The NQN under which a volume is attached: by name, or by UUID where that would be too long.
#[must_use]
pub fn volume_nqn(record: &VolumeRecord) -> String {
    if VOLUME_NQN_PREFIX.len() + record.name.len() <= NQN_MAX {
        format!("{VOLUME_NQN_PREFIX}{}", record.name)
    } else {
        format!("{UUID_NQN_PREFIX}{}", record.uuid)
    }
}

impl Directory {
    /// Indexes what there is.
    ///
    /// # Panics
    /// If two volumes share an id or a name, which the catalog excludes.
    #[must_use]
    pub fn new(mut parts: DirectoryParts) -> Directory {
        parts.volumes.sort_by_key(|entry| entry.record.id);
        parts.pending.sort_by_key(|entry| entry.record.id);
        assert!(parts.volumes.is_sorted_by(|a, b| a.record.id < b.record.id), "ids are never reused");
        let id = |entry: &VolumeEntry| entry.record.id;
        let names: BTreeMap<_, _> = parts.volumes.iter().map(|e| (e.record.name.clone(), id(e))).collect();
        assert_eq!(names.len(), parts.volumes.len(), "names are unique");
        Directory {
            version: parts.version,
            uuids: parts.volumes.iter().map(|entry| (entry.record.uuid, id(entry))).collect(),
            names,
            volumes: parts.volumes,
            pending: parts.pending,
            erasing: parts.erasing,
            insecure: parts.insecure,
            ports: parts.ports,
            space: parts.space,
            read_only: parts.read_only,
        }
    }

    /// Differs from that of every other directory of this pool.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Where the target listens, as far as that is known.
    #[must_use]
    pub fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// How full the pool is.
    #[must_use]
    pub fn space(&self) -> SpaceLevel {
        self.space
    }

    /// Whether the pool takes no writes.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Whether this volume takes no writes: nothing in the pool does, or it is a snapshot.
    #[must_use]
    pub fn is_write_protected(&self, record: &VolumeRecord) -> bool {
        self.read_only || record.is_snapshot()
    }

    /// Volumes and snapshots that can be served, by id.
    #[must_use]
    pub fn volumes(&self) -> &[VolumeEntry] {
        &self.volumes
    }

    /// A volume and its state; also of a snapshot that is not there yet.
    #[must_use]
    pub fn entry(&self, id: VolumeId) -> Option<&VolumeEntry> {
        let find = |entries: &'_ [VolumeEntry]| entries.binary_search_by_key(&id, |entry| entry.record.id).ok();
        find(&self.volumes).map(|at| &self.volumes[at]).or_else(|| find(&self.pending).map(|at| &self.pending[at]))
    }

    /// A volume that can be served.
    #[must_use]
    pub fn volume(&self, id: VolumeId) -> Option<&Arc<VolumeRecord>> {
        self.entry(id).map(|entry| &entry.record)
    }

    /// A volume by its name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&VolumeEntry> {
        self.names.get(name).and_then(|&id| self.entry(id))
    }

    /// Volumes and snapshots, those that are not there yet included, of which a part lives on `shard`.
    pub fn volumes_of(&self, shard: ShardId) -> impl Iterator<Item = &Arc<VolumeRecord>> + '_ {
        self.volumes
            .iter()
            .chain(&self.pending)
            .map(|entry| &entry.record)
            .filter(move |record| record.shards.contains(&shard))
    }

    /// Removed volumes of which a part may still live on `shard`.
    pub fn erasing_of(&self, shard: ShardId) -> impl Iterator<Item = VolumeId> + '_ {
        self.erasing.iter().filter(move |record| record.shards.contains(&shard)).map(|record| record.id)
    }

    /// The subsystem of that name. A volume answers to its name and to its UUID.
    #[must_use]
    pub fn find_subsystem(&self, nqn: &str) -> Option<Subsystem> {
        let volume = if let Some(name) = nqn.strip_prefix(VOLUME_NQN_PREFIX) {
            *self.names.get(name)?
        } else {
            let uuid = Uuid::try_parse(nqn.strip_prefix(UUID_NQN_PREFIX)?).ok()?;
            *self.uuids.get(&uuid)?
        };
        Some(Subsystem { nqn: nqn.to_owned(), namespaces: vec![Namespace { nsid: 1, volume }] })
    }

    /// Whether host `nqn` may attach a volume. Without a list of hosts anybody may who is on this machine, or anybody at all
    /// where the target was told so.
    #[must_use]
    pub fn may_attach(&self, record: &VolumeRecord, host_nqn: &str, loopback: bool) -> bool {
        if record.allowed_hosts.is_empty() {
            loopback || self.insecure
        } else {
            record.allowed_hosts.iter().any(|allowed| allowed == host_nqn)
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(id: u32, name: &str) -> VolumeRecord {
        VolumeRecord {
            id: VolumeId(id),
            name: name.into(),
            uuid: Uuid::from_u128(u128::from(id) << 96 | 0x5EED),
            size: 1 << 30,
            lba_bytes: 512,
            shards: vec![ShardId(0), ShardId(2)],
            created_unix_s: 0,
            exclusive: false,
            allowed_hosts: Vec::new(),
            cuts: Vec::new(),
            dead: Vec::new(),
            view: None,
            parent: None,
        }
    }

    pub(crate) fn parts(records: impl IntoIterator<Item = VolumeRecord>) -> DirectoryParts {
        DirectoryParts {
            version: 1 << 32 | 1,
            volumes: records.into_iter().map(|record| VolumeEntry { record: Arc::new(record), fault: None }).collect(),
            ..DirectoryParts::default()
        }
    }

    #[test]
    fn a_volume_is_found_by_id_name_nqn_and_uuid_nqn() {
        let directory = Directory::new(parts([record(7, "b/c"), record(3, "a")]));
        assert_eq!(directory.volumes().iter().map(|entry| entry.record.id.0).collect::<Vec<_>>(), [3, 7]);
        assert_eq!(directory.volume(VolumeId(7)).unwrap().name, "b/c");
        assert_eq!(directory.by_name("a").unwrap().record.id, VolumeId(3));
        let subsystem = directory.find_subsystem("nqn.2026-11.io.ringway:b/c").unwrap();
        assert_eq!((subsystem.volume(1), subsystem.volume(2), subsystem.nsid_max()), (Some(VolumeId(7)), None, 1));
        let by_uuid = format!("{UUID_NQN_PREFIX}{}", record(3, "a").uuid);
        assert_eq!(directory.find_subsystem(&by_uuid).unwrap().volume(1), Some(VolumeId(3)));
        for unknown in ["nqn.2026-11.io.ringway:x", "nqn.2026-11.io.ringway:", "nqn.2014-08.org.nvmexpress:uuid:x", "a"]
        {
            assert_eq!(directory.find_subsystem(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn a_name_that_does_not_fit_an_nqn_gets_one_of_its_uuid() {
        let short = record(1, &"x".repeat(NQN_MAX - VOLUME_NQN_PREFIX.len()));
        assert_eq!(volume_nqn(&short).len(), NQN_MAX);
        let long = record(1, &"x".repeat(NQN_MAX - VOLUME_NQN_PREFIX.len() + 1));
        assert_eq!(volume_nqn(&long), format!("{UUID_NQN_PREFIX}{}", long.uuid));
        let directory = Directory::new(parts([long.clone()]));
        assert!(directory.find_subsystem(&volume_nqn(&long)).is_some());
    }

    #[test]
    fn a_host_attaches_if_it_is_listed_or_near_or_anybody_may() {
        let open = record(1, "open");
        let closed = VolumeRecord { allowed_hosts: vec!["nqn.h1".into()], ..record(2, "closed") };
        let strict = Directory::new(parts([open.clone(), closed.clone()]));
        let insecure = Directory::new(DirectoryParts { insecure: true, ..parts([open.clone(), closed.clone()]) });
        for (directory, record, host, loopback, expected) in [
            (&strict, &open, "nqn.h9", true, true),
            (&strict, &open, "nqn.h9", false, false),
            (&strict, &closed, "nqn.h1", false, true),
            (&strict, &closed, "nqn.h9", true, false),
            (&insecure, &open, "nqn.h9", false, true),
            (&insecure, &closed, "nqn.h9", false, false),
        ] {
            assert_eq!(directory.may_attach(record, host, loopback), expected, "{} {host} {loopback}", record.name);
        }
    }

    #[test]
    fn a_removed_volume_is_known_only_to_the_shards_that_still_hold_some_of_it() {
        let directory =
            Directory::new(DirectoryParts { erasing: vec![Arc::new(record(5, "gone"))], ..parts([record(1, "a")]) });
        assert!(directory.volume(VolumeId(5)).is_none() && directory.by_name("gone").is_none());
        assert_eq!(directory.erasing_of(ShardId(2)).collect::<Vec<_>>(), [VolumeId(5)]);
        assert_eq!(directory.erasing_of(ShardId(1)).count(), 0);
        assert_eq!(directory.volumes_of(ShardId(0)).count(), 1);
        assert_eq!(directory.volumes_of(ShardId(1)).count(), 0);
    }

    #[test]
    fn space_levels_change_at_80_90_and_95_percent() {
        let levels: Vec<_> = [0, 79, 80, 89, 90, 94, 95, 100].map(SpaceLevel::of_percent).into();
        use SpaceLevel::{Above80, Above90, Above95, Below80};
        assert_eq!(levels, [Below80, Below80, Above80, Above80, Above90, Above90, Above95, Above95]);
        assert!(levels.is_sorted());
    }
}
