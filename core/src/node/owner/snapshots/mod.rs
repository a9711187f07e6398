//! Snapshots from the command to the record: the coordinator. `group.rs` has the states; here and in the files beside is what
//! moves them.
//!
//! ```text
//! create.rs   command -> names reserved, ids taken -> Message::Arm to every shard of every volume
//!             all armed -> word.fetch_add(1) = the cut -> Message::Seal to the same shards
//! finish.rs   all sealed -> (syncing.rs: stored elsewhere) -> the promise swapped -> record -> directory -> answer
//!             expired, withdrawn or failed -> Message::Release: nothing is left
//! remove.rs   one that exists goes: record first, the shards follow (H2)
//! rollback.rs fence, arm, cut, seal, then the record that makes what lies between void (H10)
//! ```
//! No lock is taken and no I/O is held. A shard that never answers costs the snapshots of its volumes their deadline, nobody
//! else anything (C2). The word is only ever stepped.

mod create;
mod finish;
mod group;
mod remove;
mod rollback;
mod show;
mod syncing;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use ringway_reactor::io::Instant;

use self::group::{Group, Stage};
pub(super) use self::rollback::Rollback;
use self::syncing::Syncs;
use super::{Owner, Plan, Task, catalog_failed};
use crate::control::{Reply, RollbackBy};
use crate::ids::{AttemptId, Epoch, ShardId, VolumeId};
use crate::snapshot::asked::SnapshotCreate;
use crate::snapshot::promise::Promise;
use crate::snapshot::sync::SyncPort;

/// Numbers the groups of this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GroupId(u64);

/// What the catalog's writer has to do for snapshots.
pub(super) enum Work {
    /// A group is to exist.
    Commit(GroupId),
    /// A volume is to be taken back to a snapshot; force; who asks.
    Rollback(String, RollbackBy, Reply),
    /// Its shards have sealed for that.
    RollBack(VolumeId),
    /// A manifest of this name is about to be put.
    Note(AttemptId, String),
    /// It is stored, of a sealed snapshot.
    Stored(AttemptId, String),
    /// Nothing is left to do for an attempt.
    Settle(AttemptId),
}

/// What is done once that is durable.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    Committed(GroupId),
    RolledBack(VolumeId),
    Noted(AttemptId),
    Stored(AttemptId),
}

/// Who waits for snapshots that are to be made.
#[derive(Debug)]
pub(super) enum Caller {
    /// The promise is watched already.
    Promised(Arc<Promise>),
    /// It is to be made when the time is known.
    Unpromised(Box<ReplyBox>),
}

/// A reply that can be shown as nothing.
pub(super) struct ReplyBox(Reply);

impl std::fmt::Debug for ReplyBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reply")
    }
}

impl Caller {
    pub(super) fn unpromised(reply: Reply) -> Caller {
        Caller::Unpromised(Box::new(ReplyBox(reply)))
    }
}

/// What the owner knows of snapshots beside the catalog.
pub(super) struct Snapshots {
    /// The one word of the pool.
    word: Arc<AtomicU64>,
    /// Calls that came since the last turn.
    arrived: VecDeque<(SnapshotCreate, Caller)>,
    groups: BTreeMap<GroupId, Group>,
    rollbacks: BTreeMap<VolumeId, Rollback>,
    syncs: Syncs,
    next_group: u64,
    next_attempt: u64,
    /// As of this turn.
    now: Instant,
}

impl Snapshots {
    pub(super) fn new(word: Arc<AtomicU64>, generation: u32, port: Option<Box<dyn SyncPort>>) -> Snapshots {
        Snapshots {
            word,
            arrived: VecDeque::new(),
            groups: BTreeMap::new(),
            rollbacks: BTreeMap::new(),
            syncs: Syncs::new(port),
            next_group: 0,
            // Like epochs: those of another boot are others.
            next_attempt: Epoch::first_of(generation).0,
            now: Instant(0),
        }
    }

    /// Somebody is to look what is held on backends and needed no more.
    pub(in crate::node::owner) fn let_go(&mut self) {
        self.syncs.let_go();
    }

    pub(in crate::node::owner) fn new_attempt(&mut self) -> AttemptId {
        self.next_attempt += 1;
        AttemptId(self.next_attempt - 1)
    }

    /// Where the time of the snapshots of a cut went that is about to be recorded, for their events.
    pub(in crate::node::owner) fn times_of(&self, cut: Epoch) -> String {
        let group = self.groups.values().find(|group| group.cut() == Some(cut));
        group.map_or_else(String::new, |group| group.times().to_string())
    }

    /// The same of storing a sealed one that is stored now.
    pub(in crate::node::owner) fn sync_time_of(&self, snapshot: VolumeId) -> String {
        self.syncs.took_us(snapshot).map_or_else(String::new, |us| format!("synced_us={us}"))
    }

    /// Whether a snapshot of the volume is being made.
    fn is_cutting(&self, volume: VolumeId) -> bool {
        self.groups.values().any(|group| group.is_of(volume))
    }

    /// The group that makes a snapshot of this name of the volume.
    fn making(&self, volume: VolumeId, name: &str) -> Option<GroupId> {
        let found = self.groups.iter().find(|(_, group)| group.name == name && group.is_of(volume));
        found.map(|(&id, _)| id)
    }
}

impl Owner {
    /// Snapshots to be made: begun in this turn, whatever the catalog's writer is doing.
    pub(super) fn on_create(&mut self, create: SnapshotCreate, caller: Caller) {
        self.snapshots.arrived.push_back((create, caller));
    }

    /// Begins what has arrived, gives up what has expired, and queues what may be committed.
    pub(super) fn advance_snapshots(&mut self, now: Instant) {
        self.snapshots.now = now;
        while let Some((create, caller)) = self.snapshots.arrived.pop_front() {
            self.begin_snapshots(create, caller);
        }
        self.resume_syncs();
        self.retry_syncs();
        if !self.snapshots.rollbacks.is_empty() {
            self.advance_rollbacks();
        }
        if !self.snapshots.groups.is_empty() {
            self.expire_snapshots();
            self.queue_ready();
        }
    }

    /// The catalog's writer is free for this.
    pub(super) fn plan_snapshot(&mut self, work: Work) -> Plan {
        match work {
            Work::Commit(id) => self.plan_commit(id),
            Work::Rollback(name, by, reply) => {
                self.begin_rollback(&name, by, reply);
                Plan::Nothing
            }
            Work::RollBack(volume) => self.plan_roll_back(volume),
            Work::Note(attempt, manifest) => self.plan_note(attempt, manifest),
            Work::Stored(attempt, manifest) => self.plan_stored(attempt, manifest),
            Work::Settle(attempt) => self.plan_settle(attempt),
        }
    }

    /// It is durable.
    pub(super) fn act_snapshot(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Committed(id) => self.committed(id),
            Outcome::RolledBack(volume) => self.rolled_back(volume),
            Outcome::Noted(attempt) => self.noted(attempt),
            Outcome::Stored(attempt) => self.stored_on_record(attempt),
        }
    }

    /// It could not be written, and is void.
    pub(super) fn refuse_snapshot(&mut self, outcome: Outcome, why: &str) {
        match outcome {
            Outcome::Committed(id) => self.commit_failed(id, catalog_failed(why)),
            Outcome::RolledBack(volume) => self.end_rollback(volume, Err(catalog_failed(why))),
            // Their manifests are not put, and their deadlines or the next start find them.
            Outcome::Noted(_) | Outcome::Stored(_) => {}
        }
    }

    /// The catalog takes no more changes.
    pub(super) fn refuse_snapshot_work(&mut self, work: Work, why: &str) {
        match work {
            Work::Commit(id) => {
                if self.snapshots.groups.contains_key(&id) {
                    self.give_up(id, catalog_failed(why));
                }
            }
            Work::Rollback(_, _, reply) => reply(Err(catalog_failed(why))),
            Work::RollBack(volume) => self.end_rollback(volume, Err(catalog_failed(why))),
            Work::Note(..) | Work::Stored(..) | Work::Settle(_) => {}
        }
    }

    /// A shard is armed, for a snapshot or for a rollback.
    pub(in crate::node) fn armed(&mut self, shard: ShardId, attempt: AttemptId) {
        if let Some(id) = self.group_of(attempt) {
            self.group_armed(id, shard, attempt);
        } else {
            self.rollback_armed(shard, attempt);
        }
    }

    /// A shard has sealed, or cannot.
    pub(in crate::node) fn sealed(&mut self, shard: ShardId, attempt: AttemptId, failed: Option<String>) {
        if let Some(id) = self.group_of(attempt) {
            self.group_sealed(id, shard, attempt, failed);
        } else {
            self.rollback_sealed(shard, attempt, failed);
        }
    }

    fn group_of(&self, attempt: AttemptId) -> Option<GroupId> {
        self.snapshots.groups.iter().find(|(_, group)| group.has(attempt)).map(|(&id, _)| id)
    }

    /// Queues what may be committed: in the order of the cuts of each volume.
    fn queue_ready(&mut self) {
        let groups = &self.snapshots.groups;
        let may = |(&id, group): (&GroupId, &Group)| {
            let first = groups.iter().all(|(&other, older)| other == id || !older.precedes(group));
            (group.stage() == Stage::Ready && first && !self.is_too_late(group)).then_some(id)
        };
        let ready: Vec<GroupId> = groups.iter().filter_map(may).collect();
        for id in ready {
            self.snapshots.groups.get_mut(&id).expect("listed").queue();
            self.tasks.push_back(Task::Snapshot(Work::Commit(id)));
        }
    }

    /// Whether too little time is left to record it: twice what a write of the catalog takes, with few exceptions (C14).
    fn is_too_late(&self, group: &Group) -> bool {
        let needed = self.store.write_p99_ns().saturating_mul(2);
        self.snapshots.now.plus_ns(needed) >= group.promise.deadline()
    }

    /// When a deadline passes next.
    pub(super) fn next_expiry(&self) -> Instant {
        if !self.snapshots.arrived.is_empty() {
            return Instant(0);
        }
        let pending = self.snapshots.groups.values().filter(|group| group.stage() != Stage::Committing);
        let expiry = pending.map(|group| group.promise.deadline()).min().unwrap_or(Instant::NEVER);
        expiry.min(self.snapshots.syncs.next_retry()).min(self.next_rollback_look())
    }
}
