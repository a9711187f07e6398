//! Hosts that attached for writing, on record, so that they can be told after their target's machine has failed (history C3).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Owner, Plan, Task, Then};
use crate::catalog::CatalogRecord;
use crate::ids::{ShardId, VolumeId};

/// Volumes whose first flush is to fail: their hosts believe in writes that the machine may have lost. Shared by all reactors.
#[derive(Debug, Default)]
pub struct FirstFlush {
    left: AtomicUsize,
    volumes: Mutex<BTreeSet<VolumeId>>,
}

impl FirstFlush {
    /// These volumes were attached for writing when the machine failed.
    #[must_use]
    pub fn new(volumes: impl IntoIterator<Item = VolumeId>) -> Arc<Self> {
        let volumes: BTreeSet<_> = volumes.into_iter().collect();
        Arc::new(Self { left: AtomicUsize::new(volumes.len()), volumes: Mutex::new(volumes) })
    }

    /// Whether this flush (or FUA write) of the volume is the one that fails.
    pub fn fails(&self, volume: VolumeId) -> bool {
        // The usual case costs one load.
        if self.left.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        let fails = volumes.remove(&volume);
        self.left.store(volumes.len(), Ordering::Relaxed);
        fails
    }
}

impl Owner {
    /// Puts on record who is attached now and was not before.
    pub(super) fn plan_attached(&mut self, volume: VolumeId) -> Plan {
        let Some(entry) = self.store.state().volume(volume) else { return Plan::Nothing };
        let hosts = self.registry.attached_hosts(volume).into_iter();
        let records: Vec<_> = hosts
            .filter(|host| !entry.attached.contains(host))
            .map(|host| CatalogRecord::HostAttached(volume, host))
            .collect();
        if records.is_empty() { Plan::Nothing } else { Plan::Change(records, Then::Rest) }
    }

    /// A shard says that something is wrong beyond the request that met it.
    pub(super) fn shard_fault(&mut self, shard: ShardId, volume: Option<VolumeId>, why: String) {
        match volume {
            Some(volume) => {
                tracing::error!(%shard, %volume, why, "a volume is faulted");
                self.tasks.push_back(Task::Faulted { volume, shard: Some(shard), why });
            }
            None => {
                tracing::error!(%shard, why, "a shard takes no more writes until the pool is opened again");
                self.metrics.pool.read_only.set(1);
                self.faulted_shards.entry(shard).or_insert(why);
                self.publish(None);
            }
        }
    }

    pub(super) fn plan_fault(&mut self, volume: VolumeId, shard: Option<ShardId>, why: String) -> Plan {
        let state = self.store.state();
        let known = state.faults_of(volume).any(|fault| fault.shard == shard);
        if known || state.volume(volume).is_none() {
            return Plan::Nothing;
        }
        Plan::Change(vec![CatalogRecord::VolumeFaulted(volume, shard, why)], Then::Publish(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c3_the_first_flush_of_each_volume_that_was_attached_fails_and_no_other() {
        let first = FirstFlush::new([VolumeId(1), VolumeId(3)]);
        let fails: Vec<bool> = [2, 1, 1, 3, 2, 3].map(|id| first.fails(VolumeId(id))).into();
        assert_eq!(fails, [false, true, false, true, false, false]);
        assert!(!FirstFlush::new([]).fails(VolumeId(1)));
    }
}
