//! Hosts that attached for writing, on record, so that they can be told after their target's machine has failed (history C3).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ringway_reactor::io::Instant;

use super::{Owner, Plan, Task, Then};
use crate::catalog::CatalogRecord;
use crate::controller::association::HostIdentity;
use crate::ids::{AssociationId, ShardId, VolumeId};

/// Hosts that believe in writes that the machine may have lost with its memory, until they have been told. Shared by all reactors.
///
/// A host is told by flushes that fail. One is not enough: of several that are on their way on several queues each would be taken for a
/// promise, and an answer may be lost with its connection. So every flush of an association fails from its first one on, for
/// `notice_ns`; a host has been told once one of its associations has outlived that.
#[derive(Debug, Default)]
pub struct FirstFlush {
    left: AtomicUsize,
    notice_ns: u64,
    untold: Mutex<BTreeMap<VolumeId, BTreeMap<String, Telling>>>,
}

/// Since when each association of a host is being told.
type Telling = BTreeMap<AssociationId, Instant>;

/// Volumes, and the NQNs of their hosts.
pub type Untold = BTreeMap<VolumeId, BTreeSet<String>>;

/// What becomes of a flush (or FUA write).
#[derive(Debug, PartialEq, Eq)]
pub enum Promise {
    /// It runs.
    Given,
    /// It runs, and this host has been told of the failure by now.
    GivenAgain(String),
    /// It fails, so that this host learns that the machine has failed.
    Denied(String),
}

impl FirstFlush {
    /// These hosts had these volumes attached when the machine failed. Each is told for `notice_ns`; with 0, not at all.
    #[must_use]
    pub fn new(untold: Untold, notice_ns: u64) -> Arc<Self> {
        let hosts = |hosts: BTreeSet<String>| hosts.into_iter().map(|host| (host, Telling::new())).collect();
        let mut untold: BTreeMap<_, BTreeMap<_, _>> =
            untold.into_iter().map(|(volume, names)| (volume, hosts(names))).collect();
        untold.retain(|_, hosts| !hosts.is_empty() && notice_ns > 0);
        Arc::new(Self { left: AtomicUsize::new(untold.len()), notice_ns, untold: Mutex::new(untold) })
    }

    /// What becomes of a flush of the volume that comes from `association` now. `host` finds out whose that is.
    pub fn promise(
        &self,
        volume: VolumeId,
        association: AssociationId,
        now: Instant,
        host: impl FnOnce() -> Option<String>,
    ) -> Promise {
        // The usual case costs one load.
        if self.left.load(Ordering::Relaxed) == 0 {
            return Promise::Given;
        }
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(hosts) = untold.get_mut(&volume) else { return Promise::Given };
        let Some(host) = host() else { return Promise::Given };
        let Some(telling) = hosts.get_mut(&host) else { return Promise::Given };
        let since = *telling.entry(association).or_insert(now);
        if now.since_ns(since) < self.notice_ns {
            return Promise::Denied(host);
        }
        hosts.remove(&host);
        if hosts.is_empty() {
            untold.remove(&volume);
        }
        self.left.store(untold.len(), Ordering::Relaxed);
        Promise::GivenAgain(host)
    }
}

impl Owner {
    /// Puts on record who is attached now and was not before.
    pub(super) fn plan_attached(&mut self, volume: VolumeId) -> Plan {
        let Some(entry) = self.store.state().volume(volume) else { return Plan::Nothing };
        if entry.record.is_snapshot() {
            // Nobody writes to it: there is nothing to lose.
            let hosts = self.registry.attached_hosts(volume).into_iter().collect();
            // Nor does anybody lose it to another writer.
            let writer = self.registry.writer(volume);
            self.registry.set_on_record(volume, &hosts, writer.as_ref(), true);
            return Plan::Nothing;
        }
        let hosts = self.registry.attached_hosts(volume).into_iter();
        let mut records: Vec<_> = hosts
            .filter(|host| !entry.attached.contains(host))
            .map(|host| CatalogRecord::HostAttached(volume, host))
            .collect();
        // With the same write: who was the writer before, and comes back to the next process, is told that it is not any more.
        let writer = self.registry.writer(volume).map(|writer| (writer.nqn, writer.id));
        if let Some((nqn, id)) = writer.filter(|writer| entry.writer.as_ref() != Some(writer)) {
            records.push(CatalogRecord::WriterNoted(volume, nqn, id));
        }
        if records.is_empty() {
            self.attached(volume);
            return Plan::Nothing;
        }
        Plan::Change(records, Then::Attached(volume))
    }

    /// Those who attached the volume are on record: their Connects may be answered.
    pub(super) fn attached(&self, volume: VolumeId) {
        if let Some(entry) = self.store.state().volume(volume) {
            let writer = entry.writer.clone().map(|(nqn, id)| HostIdentity { nqn, id });
            self.registry.set_on_record(volume, &entry.attached, writer.as_ref(), true);
        }
    }

    /// The catalog takes no more changes. Who is on record already may come back, nobody else.
    pub(super) fn not_attached(&self, volume: VolumeId) {
        self.attached(volume);
        let hosts = self.registry.attached_hosts(volume).into_iter().collect();
        self.registry.set_on_record(volume, &hosts, None, false);
    }

    /// A host has been told that the machine failed.
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

    const NOTICE: u64 = 1000;

    fn untold(volumes: &[(u32, &[&str])]) -> Arc<FirstFlush> {
        let hosts = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        FirstFlush::new(volumes.iter().map(|&(volume, names)| (VolumeId(volume), hosts(names))).collect(), NOTICE)
    }

    fn ask(first: &FirstFlush, volume: u32, (host, association): (&str, u64), now: u64) -> char {
        match first.promise(VolumeId(volume), AssociationId(association), Instant(now), || Some(host.to_owned())) {
            Promise::Given => 'g',
            Promise::GivenAgain(whose) => {
                assert_eq!(whose, host);
                'a'
            }
            Promise::Denied(whose) => {
                assert_eq!(whose, host);
                'd'
            }
        }
    }

    #[test]
    fn c3_the_first_flushes_of_each_host_that_was_attached_fail_and_no_others() {
        let first = untold(&[(1, &["a", "b"]), (3, &["a"]), (4, &[])]);
        let asked = [
            (2, "a", 0, 'g'),
            (1, "a", 10, 'd'),
            (1, "a", 10, 'd'),
            (1, "c", 10, 'g'),
            (3, "b", 10, 'g'),
            (1, "a", 10 + NOTICE - 1, 'd'),
            (1, "a", 10 + NOTICE, 'a'),
            (1, "a", 10 + NOTICE, 'g'),
            (1, "b", 5 * NOTICE, 'd'),
            (3, "a", 5 * NOTICE, 'd'),
            (1, "b", 6 * NOTICE, 'a'),
            (3, "a", 7 * NOTICE, 'a'),
            (4, "a", 7 * NOTICE, 'g'),
        ];
        for (volume, host, now, expected) in asked {
            assert_eq!(ask(&first, volume, (host, 1), now), expected, "volume {volume}, host {host}, at {now}");
        }
        let nobody = || panic!("nobody is asked once all are told");
        assert_eq!(first.promise(VolumeId(1), AssociationId(1), Instant(0), nobody), Promise::Given);
    }

    #[test]
    fn c3_a_host_that_comes_back_before_its_notice_has_ended_is_told_again() {
        let first = untold(&[(1, &["a"])]);
        assert_eq!(ask(&first, 1, ("a", 1), 0), 'd');
        assert_eq!(
            ask(&first, 1, ("a", 2), 2 * NOTICE),
            'd',
            "the answer may have been lost with the first association"
        );
        assert_eq!(ask(&first, 1, ("a", 2), 3 * NOTICE), 'a');
        assert_eq!(ask(&first, 1, ("a", 3), 3 * NOTICE), 'g');
    }

    #[test]
    fn c3_a_host_with_two_paths_is_told_on_both_and_then_on_neither() {
        let first = untold(&[(1, &["a"])]);
        assert_eq!(ask(&first, 1, ("a", 1), 0), 'd');
        assert_eq!(ask(&first, 1, ("a", 2), NOTICE), 'd');
        assert_eq!(ask(&first, 1, ("a", 1), NOTICE), 'a');
        assert_eq!(ask(&first, 1, ("a", 2), NOTICE + 1), 'g');
    }

    #[test]
    fn c3_a_notice_of_no_length_tells_nobody() {
        let first = FirstFlush::new(BTreeMap::from([(VolumeId(1), BTreeSet::from(["a".to_owned()]))]), 0);
        assert_eq!(ask(&first, 1, ("a", 1), 0), 'g');
    }
}
