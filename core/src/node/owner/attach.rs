//! Hosts that attached for writing, on record, so that they can be told after their target's machine has failed (history C3).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Owner, Plan, Task, Then};
use crate::catalog::CatalogRecord;
use crate::ids::{ShardId, VolumeId};

/// Hosts whose first flush of a volume is to fail: they believe in writes that the machine may have lost. Shared by all reactors.
#[derive(Debug, Default)]
pub struct FirstFlush {
    left: AtomicUsize,
    untold: Mutex<Untold>,
}

/// Volumes, and the NQNs of their hosts.
pub type Untold = BTreeMap<VolumeId, BTreeSet<String>>;

impl FirstFlush {
    /// These hosts had these volumes attached when the machine failed.
    #[must_use]
    pub fn new(mut untold: Untold) -> Arc<Self> {
        untold.retain(|_, hosts| !hosts.is_empty());
        Arc::new(Self { left: AtomicUsize::new(untold.len()), untold: Mutex::new(untold) })
    }

    /// The host, if this flush (or FUA write) of the volume is its first and fails. `host` finds out whose it is.
    pub fn fails(&self, volume: VolumeId, host: impl FnOnce() -> Option<String>) -> Option<String> {
        // The usual case costs one load.
        if self.left.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        let hosts = untold.get_mut(&volume)?;
        let host = host()?;
        if !hosts.remove(&host) {
            return None;
        }
        if hosts.is_empty() {
            untold.remove(&volume);
        }
        self.left.store(untold.len(), Ordering::Relaxed);
        Some(host)
    }
}

impl Owner {
    /// Puts on record who is attached now and was not before.
    pub(super) fn plan_attached(&mut self, volume: VolumeId) -> Plan {
        let Some(entry) = self.store.state().volume(volume) else { return Plan::Nothing };
        if entry.record.is_snapshot() {
            // Nobody writes to it: there is nothing to lose.
            let hosts = self.registry.attached_hosts(volume).into_iter().collect();
            self.registry.set_on_record(volume, &hosts, true);
            return Plan::Nothing;
        }
        let hosts = self.registry.attached_hosts(volume).into_iter();
        let records: Vec<_> = hosts
            .filter(|host| !entry.attached.contains(host))
            .map(|host| CatalogRecord::HostAttached(volume, host))
            .collect();
        if records.is_empty() {
            self.attached(volume);
            return Plan::Nothing;
        }
        Plan::Change(records, Then::Attached(volume))
    }

    /// Those who attached the volume are on record: their Connects may be answered.
    pub(super) fn attached(&self, volume: VolumeId) {
        if let Some(entry) = self.store.state().volume(volume) {
            self.registry.set_on_record(volume, &entry.attached, true);
        }
    }

    /// The catalog takes no more changes. Who is on record already may come back, nobody else.
    pub(super) fn not_attached(&self, volume: VolumeId) {
        self.attached(volume);
        let hosts = self.registry.attached_hosts(volume).into_iter().collect();
        self.registry.set_on_record(volume, &hosts, false);
    }

    /// A host's first flush has failed.
    pub(super) fn plan_told(&self, volume: VolumeId, host: String) -> Plan {
        let untold = self.store.state().volume(volume).is_some_and(|entry| entry.untold.contains(&host));
        if untold { Plan::Change(vec![CatalogRecord::HostTold(volume, host)], Then::Rest) } else { Plan::Nothing }
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
    fn c3_the_first_flush_of_each_host_that_was_attached_fails_and_no_other() {
        let hosts = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
        let first = FirstFlush::new(BTreeMap::from([
            (VolumeId(1), hosts(&["a", "b"])),
            (VolumeId(3), hosts(&["a"])),
            (VolumeId(4), hosts(&[])),
        ]));
        let fails = |volume, host: &str| first.fails(VolumeId(volume), || Some(host.to_owned())).is_some();
        let asked = [(2, "a"), (1, "a"), (1, "a"), (1, "c"), (3, "b"), (1, "b"), (3, "a"), (3, "a"), (4, "a")];
        let failed: Vec<bool> = asked.map(|(volume, host)| fails(volume, host)).into();
        assert_eq!(failed, [false, true, false, false, false, true, true, false, false]);
        assert_eq!(first.fails(VolumeId(1), || panic!("nobody is asked once all are told")), None);
    }
}
