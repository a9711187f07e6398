//! What is shown of volumes, pool and target.

use super::Owner;
use super::publish::fault_of;
use crate::catalog::VolumeEntry;
use crate::control::{DeviceInfo, PoolInfo, TargetInfo, VolumeInfo};
use crate::directory::volume_nqn;
use crate::ids::VolumeId;

impl Owner {
    pub(super) fn all_volumes(&self) -> Vec<VolumeInfo> {
        let volumes = self.store.state().volumes().filter(|entry| !entry.record.is_snapshot());
        let mut volumes: Vec<_> = volumes.map(|entry| self.volume_info(entry)).collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        volumes
    }

    pub(super) fn volume_info(&self, entry: &VolumeEntry) -> VolumeInfo {
        let id = entry.record.id;
        VolumeInfo {
            attached_hosts: self.attached_hosts(id),
            fault: fault_of(self.store.state(), &self.dead, &entry.record),
            parent: self.parent_name(entry),
            allocated: self.metrics.shards.iter().map(|shard| shard.allocated_bytes(id)).sum(),
            ..VolumeInfo::of_record(&entry.record, volume_nqn(&entry.record))
        }
    }

    pub(super) fn attached_hosts(&self, volume: VolumeId) -> Vec<String> {
        self.registry.attached_hosts(volume)
    }

    pub(super) fn pool_info(&self) -> PoolInfo {
        let geometry = &self.pool.geometry;
        let devices = self.pool.files.iter().zip(&self.pool.paths).enumerate();
        PoolInfo {
            uuid: self.pool.uuid,
            format_version: self.pool.format_version,
            boot_generation: self.pool.generation,
            shards: self.placement.len() as u16,
            slab_bytes: geometry.slab_bytes(),
            size: geometry.slab_count() * geometry.slab_bytes(),
            used: self.metrics.used_bytes(),
            read_only: self.read_only(),
            dead_shards: self.dead.values().cloned().collect(),
            devices: devices
                .map(|(number, (file, path))| DeviceInfo {
                    number: number as u16,
                    path: path.clone(),
                    size: file.size,
                    atomic_write_unit: file.atomic_write_unit,
                    deallocates: file.deallocates,
                    fault: None,
                })
                .collect(),
            volumes: self.store.state().volumes().filter(|entry| !entry.record.is_snapshot()).count() as u32,
            growing: self.growth_info(),
        }
    }

    /// Why not everything can be written.
    pub(super) fn read_only(&self) -> Option<String> {
        let shard = self.faulted_shards.iter().next().map(|(shard, why)| format!("shard {shard}: {why}"));
        shard.or_else(|| self.store.fault().map(|why| format!("the catalog cannot be written: {why}")))
    }

    pub(super) fn target_info(&self) -> TargetInfo {
        let connections = self.metrics.connections().len() as u32;
        TargetInfo { connections, ..self.target.clone() }
    }
}
