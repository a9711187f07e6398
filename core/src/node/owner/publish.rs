//! A new directory on every reactor: answers wait until all work with it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use uuid::Uuid;

use super::{Answer, Owner, Plan, Task, Then};
use crate::catalog::{CatalogRecord, CatalogState, RemainsRecord};
use crate::control::{ControlAnswer, Reply, TargetInfo};
use crate::directory::{Directory, DirectoryParts, Port, SpaceLevel, VolumeEntry};
use crate::ids::{ShardId, VolumeId};
use crate::node::message::Message;
use crate::volume::VolumeRecord;
use crate::wire::log_page::TransportType;

/// What of a directory does not come from the catalog.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Hosts on no list may attach from beyond loopback.
    pub insecure: bool,
    /// Where the target listens, for discovery.
    pub ports: Vec<Port>,
    /// How full the pool is.
    pub space: SpaceLevel,
    /// The pool takes no writes.
    pub read_only: bool,
}

/// What a catalog says is there to serve. Records that are as in `before` are shared with it, so that reactors see at a glance
/// what has changed.
#[must_use]
pub fn directory_of(
    state: &CatalogState,
    dead: &BTreeMap<ShardId, String>,
    version: u64,
    surroundings: Surroundings,
    before: Option<&Directory>,
    pending: &[Arc<VolumeRecord>],
) -> Directory {
    let shared = |record: &VolumeRecord| {
        let same = before.and_then(|before| before.volume(record.id)).filter(|known| ***known == *record);
        same.map_or_else(|| Arc::new(record.clone()), Arc::clone)
    };
    let volumes = state
        .volumes()
        .map(|entry| VolumeEntry { record: shared(&entry.record), fault: fault_of(state, dead, &entry.record) });
    let erasing = state.removed().map(|(id, removed)| Arc::new(removed_record(id, &removed.shards)));
    Directory::new(DirectoryParts {
        version,
        volumes: volumes.collect(),
        pending: pending.iter().map(|record| VolumeEntry { record: Arc::clone(record), fault: None }).collect(),
        erasing: erasing.collect(),
        insecure: surroundings.insecure,
        ports: surroundings.ports,
        space: surroundings.space,
        read_only: surroundings.read_only,
    })
}

/// Where a target listens.
fn ports(target: &TargetInfo) -> Vec<Port> {
    let of = |transport, addresses: &[SocketAddr]| -> Vec<Port> {
        addresses.iter().map(|&addr| Port { transport, addr }).collect()
    };
    [of(TransportType::Tcp, &target.listeners), of(TransportType::Rdma, &target.rdma_listeners)].concat()
}

/// Why a volume is not served: what the catalog knows, or a shard of it that could not be opened this time.
pub(super) fn fault_of(
    state: &CatalogState,
    dead: &BTreeMap<ShardId, String>,
    record: &VolumeRecord,
) -> Option<String> {
    // A snapshot's blocks are found in the map of what was cut.
    let map = record.view.map_or(record.id, |view| view.origin);
    let known = state.faults_of(map).next().map(|fault| fault.why.clone());
    known.or_else(|| record.shards.iter().find_map(|shard| dead.get(shard)).cloned())
}

/// All that is still known of a removed volume: where it may live.
fn removed_record(id: VolumeId, shards: &[ShardId]) -> VolumeRecord {
    VolumeRecord {
        id,
        name: String::new(),
        uuid: Uuid::nil(),
        size: 0,
        lba_bytes: 512,
        shards: shards.to_vec(),
        created_unix_s: 0,
        exclusive: false,
        allowed_hosts: Vec::new(),
        cuts: Vec::new(),
        dead: Vec::new(),
        view: None,
        parent: None,
    }
}

/// Directories on their way.
pub(super) struct Publishing {
    current: Arc<Directory>,
    generation: u32,
    seq: u64,
    /// In order; reactors answer in order too.
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    seq: u64,
    reactors_left: usize,
    answer: Option<(Reply, Answer)>,
}

impl Publishing {
    /// The newest directory.
    pub(super) fn directory(&self) -> &Directory {
        &self.current
    }

    pub(super) fn new(current: Arc<Directory>, generation: u32) -> Self {
        Self { current, generation, seq: 0, waiting: VecDeque::new() }
    }

    /// The number of the newest directory.
    pub(super) fn newest(&self) -> u64 {
        self.seq
    }

    /// Whether every reactor works with the directory of this number, or a later one.
    pub(super) fn is_in_use(&self, seq: u64) -> bool {
        self.waiting.front().is_none_or(|first| first.seq > seq)
    }
}

impl Owner {
    /// Sends what the catalog now says to every reactor; the number of that directory.
    pub(super) fn publish(&mut self, answer: Option<(Reply, Answer)>) -> u64 {
        self.follow_removals();
        self.follow_manifests();
        self.follow_clones();
        self.publishing.seq += 1;
        let seq = self.publishing.seq;
        let surroundings = Surroundings {
            insecure: self.target.insecure,
            ports: ports(&self.target),
            space: self.thresholds.level(),
            read_only: self.read_only().is_some(),
        };
        let version = u64::from(self.publishing.generation) << 32 | seq;
        let before = &self.publishing.current;
        let pending = self.pending_snapshots();
        let directory =
            Arc::new(directory_of(self.store.state(), &self.dead, version, surroundings, Some(before), &pending));
        self.publishing.current = Arc::clone(&directory);
        self.publishing.waiting.push_back(Waiting { seq, reactors_left: self.reactors, answer });
        self.send_all(|| Message::Publish { directory: Arc::clone(&directory), seq });
        self.count_faults();
        for entry in self.store.state().volumes() {
            self.metrics.name_volume(entry.record.id, &entry.record.name);
        }
        seq
    }

    /// For the metrics: volumes that are not served, and shards that are not open.
    pub(super) fn count_faults(&self) {
        let faulted = self.publishing.current.volumes().iter().filter(|entry| entry.fault.is_some());
        self.metrics.pool.faulted_volumes.set(faulted.count() as u64);
        self.metrics.pool.dead_shards.set(self.dead.len() as u64);
    }

    /// A reactor works with directory `seq`.
    pub(super) fn published(&mut self, seq: u64) {
        let waiting = self.publishing.waiting.iter_mut().find(|waiting| waiting.seq == seq);
        waiting.expect("reactors answer what they were sent").reactors_left -= 1;
        while self.publishing.waiting.front().is_some_and(|first| first.reactors_left == 0) {
            let done = self.publishing.waiting.pop_front().expect("just seen");
            self.directory_in_use(done.seq);
            if let Some((reply, answer)) = done.answer {
                reply(Ok(match answer {
                    Answer::About(volume) => self.answer_about(volume),
                    Answer::Snapshots(made, times) => self.answer_snapshots(&made, times),
                    Answer::Now(answer) => *answer,
                }));
            }
        }
    }

    /// The answer of a call: the volume as it is now, or that it is done.
    pub(super) fn answer_about(&self, volume: Option<VolumeId>) -> ControlAnswer {
        // It may have been removed by the next call already.
        let entry = volume.and_then(|volume| self.store.state().volume(volume));
        entry.map_or(ControlAnswer::Done, |entry| ControlAnswer::Volume(self.volume_info(entry)))
    }

    /// Volumes that have just been removed lose their hosts, and every shard that may hold something of them has to say when it
    /// does not any more. Those that are erased are forgotten.
    fn follow_removals(&mut self) {
        let removed: BTreeMap<VolumeId, BTreeSet<ShardId>> =
            self.store.state().removed().map(|(id, removed)| (id, removed.shards.iter().copied().collect())).collect();
        self.erasing.retain(|volume, _| removed.contains_key(volume));
        for (volume, shards) in removed {
            if let std::collections::btree_map::Entry::Vacant(place) = self.erasing.entry(volume) {
                place.insert(shards);
                self.metrics.forget_volume(volume);
                self.ended.extend(self.registry.end_all(volume));
            }
        }
    }

    /// No shard holds anything of what was removed any more.
    pub(super) fn plan_erased(&self, id: VolumeId) -> Plan {
        // A snapshot is forgotten with its volume, whoever still works at it.
        let Some((_, removed)) = self.store.state().removed().find(|&(removed, _)| removed == id) else {
            return Plan::Nothing;
        };
        let record = match removed.origin {
            Some(origin) => CatalogRecord::SnapshotRemains(RemainsRecord { origin, snapshot: id, shards: Vec::new() }),
            None => CatalogRecord::VolumeErased(id),
        };
        Plan::Change(vec![record], Then::Publish(None))
    }

    /// A shard holds nothing of a removed volume any more. It may say so more than once.
    pub(super) fn shard_erased(&mut self, shard: ShardId, volume: VolumeId) {
        let Some(left) = self.erasing.get_mut(&volume) else { return };
        if left.remove(&shard) && left.is_empty() {
            self.tasks.push_back(Task::Erased(volume));
        }
    }
}
