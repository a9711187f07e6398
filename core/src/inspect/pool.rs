//! The whole pool: superblocks and catalog first, then shard by shard.

use std::collections::{BTreeMap, BTreeSet};

use ringway_reactor::io::{FileId, Io};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Finding, Severity, ShardReport, ShardSpec, inspect_shard};
use crate::ids::{ShardId, VolumeId};
use crate::limits::CLUSTER;
use crate::pool::{self, Notice, OpenPool, PoolError, blocking};

/// What was found in a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReport {
    /// Given at format.
    pub uuid: Uuid,
    /// Counts openings for writing.
    pub boot_generation: u32,
    /// Whether it was closed in good order: then nothing is left to replay.
    pub clean: bool,
    /// Bytes of a slab.
    pub slab_bytes: u64,
    /// Slabs of all devices, and how many of them no shard has yet.
    pub slabs: u64,
    /// Slabs that no shard has yet.
    pub slabs_free: u64,
    /// By number.
    pub devices: Vec<DeviceReport>,
    /// By name.
    pub volumes: Vec<VolumeReport>,
    /// By number.
    pub shards: Vec<ShardReport>,
    /// Of the pool as a whole; each shard has its own.
    pub findings: Vec<Finding>,
}

/// One device as its superblock describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Place in the pool.
    pub number: u16,
    /// Given at format.
    pub uuid: Uuid,
    /// Bytes.
    pub size: u64,
    /// Largest write that power loss leaves whole.
    pub atomic_write_unit: u32,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeReport {
    /// Never reused.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Bytes of its clusters, counted off the maps.
    pub allocated: u64,
    /// Map nodes.
    pub nodes: u64,
    /// Hosts that were attached when the pool was last in use.
    pub attached_hosts: Vec<String>,
}

impl PoolReport {
    /// Findings of the pool and of all shards.
    pub fn all_findings(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().chain(self.shards.iter().flat_map(|shard| &shard.findings))
    }

    /// How many of them are faults.
    #[must_use]
    pub fn faults(&self) -> usize {
        self.all_findings().filter(|finding| finding.severity == Severity::Fault).count()
    }
}

/// Looks at the pool on all files of `io`. `dump` lists every journal record and map node as well; `progress` hears of each shard
/// before it is looked at.
pub fn inspect_pool<I: Io>(io: &mut I, dump: bool, progress: &mut dyn FnMut(ShardId)) -> Result<PoolReport, PoolError> {
    let pool = pool::inspect(io)?;
    let mut shards = Vec::new();
    for id in (0..pool.layout.shards).map(ShardId) {
        progress(id);
        let spec = shard_spec(&pool, id, dump);
        let report = inspect_shard(&spec, &mut |device, offset, len| {
            blocking::read(io, FileId(device), offset, len).map_err(|error| error.to_string())
        });
        shards.push(report);
    }
    Ok(report(&pool, shards))
}

fn shard_spec(pool: &OpenPool, id: ShardId, dump: bool) -> ShardSpec {
    let volumes = pool.catalog.volumes().filter(|entry| entry.record.shards.contains(&id));
    let removed = pool.catalog.removed().filter(|(_, removed)| removed.shards.contains(&id));
    ShardSpec {
        id,
        seed: pool.seed,
        boot: pool.generation,
        headers: pool.layout.checkpoint_ring(id),
        journal: pool.layout.journal(id),
        journal_bytes: pool.layout.journal_bytes,
        geometry: pool.layout.geometry.clone(),
        slabs: pool.catalog.slabs().filter(|&(_, owner)| owner == id).map(|(slab, _)| slab).collect::<BTreeSet<_>>(),
        volumes: volumes.map(|entry| (entry.record.id, entry.record.clone())).collect(),
        removed: removed.map(|(volume, _)| volume).collect(),
        dump,
    }
}

fn report(pool: &OpenPool, shards: Vec<ShardReport>) -> PoolReport {
    let mut findings: Vec<Finding> = pool.notices.iter().filter_map(finding).collect();
    let mut uses: BTreeMap<VolumeId, (u64, u64)> = BTreeMap::new();
    for (&volume, one) in shards.iter().flat_map(|shard| &shard.volumes) {
        let (clusters, nodes) = uses.entry(volume).or_default();
        *clusters += one.clusters;
        *nodes += one.nodes;
    }
    let mut volumes = Vec::new();
    for entry in pool.catalog.volumes() {
        let record = &entry.record;
        for fault in pool.catalog.faults_of(record.id) {
            let what = format!("was marked as faulted: {}", fault.why);
            findings.push(Finding { severity: Severity::Fault, shard: fault.shard, volume: Some(record.id), what });
        }
        let (clusters, nodes) = uses.get(&record.id).copied().unwrap_or_default();
        volumes.push(VolumeReport {
            id: record.id,
            name: record.name.clone(),
            size: record.size,
            allocated: clusters * CLUSTER,
            nodes,
            attached_hosts: entry.attached.iter().cloned().collect(),
        });
    }
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    let devices = pool.superblocks.iter().map(|superblock| DeviceReport {
        number: superblock.number,
        uuid: superblock.uuid,
        size: superblock.bytes,
        atomic_write_unit: superblock.atomic_unit,
    });
    let slabs = pool.layout.geometry.slab_count();
    PoolReport {
        uuid: pool.uuid,
        boot_generation: pool.generation,
        clean: pool.clean,
        slab_bytes: pool.layout.geometry.slab_bytes(),
        slabs,
        slabs_free: slabs - pool.catalog.slabs().count() as u64,
        devices: devices.collect(),
        volumes,
        shards,
        findings,
    }
}

/// What opening the pool would repair or report, as it is now.
fn finding(notice: &Notice) -> Option<Finding> {
    let found = |severity, volume, what| Some(Finding { severity, shard: None, volume, what });
    match notice {
        Notice::SuperblockRepaired { device, at_end, why } => {
            let copy = if *at_end { "the copy of the superblock at the end" } else { "the superblock" };
            let why = why.as_ref().map_or_else(|| "is of an earlier boot".to_owned(), ToString::to_string);
            found(Severity::Note, None, format!("device {device}: {copy} {why}; the other copy is used"))
        }
        Notice::VolumeDamaged(volume) => found(
            Severity::Fault,
            Some(*volume),
            "a record of the catalog about it is damaged in both copies".to_owned(),
        ),
        Notice::DeviceIgnored { .. } => found(Severity::Note, None, notice.to_string()),
        // A repair of the catalog is not made here, and a pool that was not closed is said as `clean`.
        Notice::CatalogRepaired { .. } | Notice::Unclean { .. } => None,
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
