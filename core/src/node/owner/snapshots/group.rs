//! One call's snapshots on their way: a pure state machine, told what happened, telling what comes next.
//!
//! ```text
//!            all armed            all sealed              all synced            nothing older waits
//! Arming ---------------> (cut) Sealing --------> Syncing ----------> Ready ------------------------> Committing
//!    |                           |                   |                  |                                |
//!    +---------------------------+-------------------+------------------+--> gone (expired, withdrawn)   +--> committed | failed
//! ```
//! What is gone has left no record. The way from `Ready` is the promise's swap to committing, and there is no way back (C14).
//! `Syncing` is passed at once where the pool has no backend, or the caller does not wait for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use ringway_reactor::io::Instant;
use uuid::Uuid;

use crate::catalog::{CutRecord, SnapshotRecord};
use crate::ids::{AttemptId, Epoch, ShardId, VolumeId};
use crate::metrics::SnapshotStep;
use crate::snapshot::asked::SnapshotTimes;
use crate::snapshot::promise::{Promise, Waiting};
use crate::volume::VolumeRecord;

/// What has to be true of a snapshot before it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// Every shard has sealed it, durably; it is stored elsewhere behind the caller's back.
    Sealed,
    /// The backend has it, if there is one.
    Synced,
}

/// How far a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Arming,
    Sealing,
    Syncing,
    /// It may be committed when its turn comes.
    Ready,
    /// Its turn has come: the catalog's writer has it in its queue.
    Queued,
    /// The record is being written.
    Committing,
}

/// One volume's snapshot.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) attempt: AttemptId,
    pub(super) origin: VolumeId,
    pub(super) id: VolumeId,
    pub(super) uuid: Uuid,
    /// Shards that have yet to answer.
    left: BTreeSet<ShardId>,
    /// All of its shards.
    pub(super) shards: Vec<ShardId>,
    /// Bytes at the cut.
    pub(super) size: u64,
    pub(super) manifest: Option<String>,
    synced: bool,
}

impl Member {
    pub(super) fn new(attempt: AttemptId, origin: &VolumeRecord, id: VolumeId, uuid: Uuid) -> Member {
        Member {
            attempt,
            origin: origin.id,
            id,
            uuid,
            left: origin.shards.iter().copied().collect(),
            shards: origin.shards.clone(),
            size: origin.size,
            manifest: None,
            synced: false,
        }
    }
}

/// The snapshots of one call.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) promise: Arc<Promise>,
    /// Without the volumes'.
    pub(super) name: String,
    pub(super) level: Level,
    pub(super) members: Vec<Member>,
    pub(super) created_unix_s: u64,
    stage: Stage,
    cut: Option<Epoch>,
    /// When the last stage ended.
    since: Instant,
    times: SnapshotTimes,
    /// Steps that have ended since somebody counted them.
    ended: Vec<(SnapshotStep, u64)>,
}

impl Group {
    pub(super) fn new(
        promise: Arc<Promise>,
        name: String,
        level: Level,
        members: Vec<Member>,
        (now, created_unix_s): (Instant, u64),
    ) -> Group {
        promise.waits_for(Waiting::Arm);
        let mut group = Group {
            since: promise.begun(),
            promise,
            name,
            level,
            members,
            created_unix_s,
            stage: Stage::Arming,
            cut: None,
            times: SnapshotTimes::default(),
            ended: Vec::new(),
        };
        group.times.cut_us = group.lap(SnapshotStep::Start, now);
        group
    }

    pub(super) fn stage(&self) -> Stage {
        self.stage
    }

    pub(super) fn cut(&self) -> Option<Epoch> {
        self.cut
    }

    pub(super) fn times(&self) -> SnapshotTimes {
        self.times
    }

    pub(super) fn has(&self, attempt: AttemptId) -> bool {
        self.members.iter().any(|member| member.attempt == attempt)
    }

    pub(super) fn is_of(&self, volume: VolumeId) -> bool {
        self.members.iter().any(|member| member.origin == volume)
    }

    fn member(&mut self, attempt: AttemptId) -> &mut Member {
        self.members.iter_mut().find(|member| member.attempt == attempt).expect("the attempt is of this group")
    }

    /// A shard is armed. True once all are: now is the time to step the word, once.
    pub(super) fn armed(&mut self, attempt: AttemptId, shard: ShardId, now: Instant) -> bool {
        assert_eq!(self.stage, Stage::Arming, "shards are armed before the cut");
        let all = self.answered(attempt, shard);
        if all {
            self.times.cut_us += self.lap(SnapshotStep::Arm, now);
        }
        all
    }

    /// The word was stepped. `size_of` is what each volume has at this moment.
    pub(super) fn cut_at(&mut self, cut: Epoch, now: Instant, size_of: impl Fn(VolumeId) -> u64) {
        assert_eq!(self.stage, Stage::Arming, "a group is cut once");
        for member in &mut self.members {
            assert!(member.left.is_empty(), "every shard is armed before the cut");
            member.left.extend(&member.shards);
            member.size = size_of(member.origin);
        }
        self.cut = Some(cut);
        self.times.cut_us += self.lap(SnapshotStep::Cut, now);
        self.enter(Stage::Sealing, Waiting::Seal);
    }

    /// A shard has sealed. True once all have.
    pub(super) fn sealed(&mut self, attempt: AttemptId, shard: ShardId, now: Instant) -> bool {
        assert_eq!(self.stage, Stage::Sealing, "shards seal after the cut");
        let all = self.answered(attempt, shard);
        if all {
            self.times.sealed_us = self.lap(SnapshotStep::Seal, now);
        }
        all
    }

    fn answered(&mut self, attempt: AttemptId, shard: ShardId) -> bool {
        assert!(self.member(attempt).left.remove(&shard), "a shard answers once");
        self.members.iter().all(|member| member.left.is_empty())
    }

    /// It is to be stored elsewhere before it exists.
    pub(super) fn begin_sync(&mut self) {
        assert_eq!(self.stage, Stage::Sealing);
        self.enter(Stage::Syncing, Waiting::Sync);
    }

    /// A member is stored.
    pub(super) fn synced(&mut self, attempt: AttemptId, manifest: String, now: Instant) {
        assert_eq!(self.stage, Stage::Syncing, "what is stored was given to be");
        let member = self.member(attempt);
        (member.synced, member.manifest) = (true, Some(manifest));
        if self.members.iter().all(|member| member.synced) {
            self.times.synced_us = self.lap(SnapshotStep::Sync, now);
            self.ready();
        }
    }

    /// Nothing is left but the record.
    pub(super) fn ready(&mut self) {
        assert!(matches!(self.stage, Stage::Sealing | Stage::Syncing | Stage::Queued), "{:?} is not ready", self.stage);
        self.enter(Stage::Ready, Waiting::Order);
    }

    /// Its turn has come, but too little time is left: it waits for its deadline.
    pub(super) fn is_late(&mut self) {
        self.ready();
        self.promise.waits_for(Waiting::Commit);
    }

    /// Its turn has come.
    pub(super) fn queue(&mut self) {
        assert_eq!(self.stage, Stage::Ready);
        self.enter(Stage::Queued, Waiting::Commit);
    }

    /// The promise was swapped.
    pub(super) fn commit(&mut self) {
        assert_eq!(self.stage, Stage::Queued);
        self.stage = Stage::Committing;
    }

    /// The record is durable.
    pub(super) fn committed(&mut self, now: Instant) {
        assert_eq!(self.stage, Stage::Committing);
        self.times.committed_us = self.lap(SnapshotStep::Commit, now);
    }

    /// Whether this one has to exist before `later`, which has been cut, may: an older cut of one of its volumes that waits for
    /// the same. Who is content with less does not wait for who wants more.
    pub(super) fn precedes(&self, later: &Group) -> bool {
        let older = self.cut.is_some_and(|cut| later.cut.is_some_and(|other| cut < other));
        older
            && (self.level == later.level || later.level == Level::Synced)
            && later.members.iter().any(|m| self.is_of(m.origin))
    }

    /// What makes it exist.
    pub(super) fn record(&self) -> CutRecord {
        let snapshots = self.members.iter().map(|member| SnapshotRecord {
            id: member.id,
            origin: member.origin,
            name: self.name.clone(),
            uuid: member.uuid,
            size: member.size,
            created_unix_s: self.created_unix_s,
            manifest: member.manifest.clone(),
        });
        CutRecord { epoch: self.cut.expect("what is committed was cut"), snapshots: snapshots.collect() }
    }

    fn enter(&mut self, stage: Stage, waiting: Waiting) {
        self.stage = stage;
        self.promise.waits_for(waiting);
    }

    /// Microseconds since the last step ended, which were this one's.
    fn lap(&mut self, step: SnapshotStep, now: Instant) -> u64 {
        let ns = now.since_ns(self.since);
        self.since = now;
        self.ended.push((step, ns));
        ns / 1000
    }

    /// Steps that have ended since this was asked last, and their nanoseconds.
    pub(super) fn take_steps(&mut self) -> std::vec::Drain<'_, (SnapshotStep, u64)> {
        self.ended.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: AttemptId = AttemptId(1);
    const B: AttemptId = AttemptId(2);

    fn volume(id: u32, shards: u16) -> VolumeRecord {
        VolumeRecord { shards: (0..shards).map(ShardId).collect(), ..crate::directory::tests::record(id, "v") }
    }

    fn group(volumes: &[u32], level: Level) -> Group {
        let promise = Arc::new(Promise::new("x".into(), Instant(0), None, Box::new(|_| {})));
        let member =
            |(n, &id): (u64, &u32)| Member::new(AttemptId(n + 1), &volume(id, 2), VolumeId(90 + id), Uuid::nil());
        Group::new(promise, "s".into(), level, (0..).zip(volumes).map(member).collect(), (Instant(1000), 7))
    }

    fn cut(volumes: &[u32], level: Level, at: u64) -> Group {
        let mut group = group(volumes, level);
        for attempt in (1..=volumes.len() as u64).map(AttemptId) {
            let armed = [0, 1].map(|shard| group.armed(attempt, ShardId(shard), Instant(4000)));
            assert!(!armed[0]);
        }
        group.cut_at(Epoch(at), Instant(5000), |_| 4096);
        group
    }

    #[test]
    fn c2_the_word_is_stepped_after_the_last_shard_of_the_last_volume_is_armed() {
        let mut group = group(&[1, 2], Level::Synced);
        let answers =
            [(A, 0), (B, 1), (B, 0), (A, 1)].map(|(attempt, shard)| group.armed(attempt, ShardId(shard), Instant(0)));
        assert_eq!(answers, [false, false, false, true]);
    }

    #[test]
    #[should_panic(expected = "every shard is armed")]
    fn c2_a_group_of_which_a_shard_is_not_armed_cannot_be_cut() {
        let mut group = group(&[1], Level::Synced);
        group.armed(A, ShardId(0), Instant(0));
        group.cut_at(Epoch(9), Instant(0), |_| 0);
    }

    #[test]
    fn a_snapshot_has_the_size_that_its_volume_had_at_the_cut_and_a_group_is_one_record() {
        let mut group = cut(&[1, 2], Level::Synced, 9);
        let sealed =
            [(A, 0), (A, 1), (B, 0), (B, 1)].map(|(attempt, s)| group.sealed(attempt, ShardId(s), Instant(9000)));
        assert_eq!(sealed, [false, false, false, true]);
        group.ready();
        let record = group.record();
        assert_eq!(record.epoch, Epoch(9));
        assert_eq!(record.snapshots.iter().map(|s| (s.id.0, s.size)).collect::<Vec<_>>(), [(91, 4096), (92, 4096)]);
        group.queue();
        group.commit();
        group.committed(Instant(20_000));
        let times = SnapshotTimes { cut_us: 5, sealed_us: 4, synced_us: 0, committed_us: 11 };
        assert_eq!(group.times(), times);
        let steps: Vec<_> = group.take_steps().map(|(step, ns)| (step.name(), ns)).collect();
        assert_eq!(steps, [("start", 1000), ("arm", 3000), ("cut", 1000), ("seal", 4000), ("commit", 11_000)]);
        assert_eq!(group.take_steps().count(), 0, "each is told once");
    }

    #[test]
    fn a_group_is_ready_when_the_last_of_it_is_stored() {
        let mut group = cut(&[1, 2], Level::Synced, 9);
        group.begin_sync();
        group.synced(B, "b".into(), Instant(0));
        assert_eq!(group.stage(), Stage::Syncing);
        group.synced(A, "a".into(), Instant(0));
        assert_eq!(group.stage(), Stage::Ready);
        assert_eq!(group.record().snapshots[0].manifest.as_deref(), Some("a"));
    }

    #[test]
    fn c10_snapshots_of_a_volume_come_to_be_in_the_order_of_their_cuts() {
        let first = cut(&[1], Level::Synced, 9);
        for (later, waits) in [
            (cut(&[1, 2], Level::Synced, 10), true),
            (cut(&[2], Level::Synced, 10), false),
            (cut(&[1], Level::Synced, 8), false),
            // Sealed is less than synced: nobody waits two minutes for what he asked not to wait for.
            (cut(&[1], Level::Sealed, 10), false),
        ] {
            assert_eq!(first.precedes(&later), waits, "{later:?}");
        }
        assert!(cut(&[1], Level::Sealed, 9).precedes(&cut(&[1], Level::Synced, 10)));
        assert!(!group(&[1], Level::Synced).precedes(&first), "what is not cut yet will be cut later");
    }
}
