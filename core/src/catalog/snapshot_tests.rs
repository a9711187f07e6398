//! Snapshots, clones and rollbacks as records: what each leads to, and that a compaction keeps all of it.

use uuid::Uuid;

use super::jobs::StreamRecord;
use super::record::CatalogRecord;
use super::snapshots::{CloneRecord, CutRecord, RemainsRecord, RollbackRecord, SnapshotRecord, SyncedRecord};
use super::state::{ApplyError, CatalogState};
use crate::event::{EVENTS_KEPT, Event, EventKind};
use crate::ids::{AttemptId, Epoch, JobId, ShardId, VolumeId};
use crate::snapshot::sync::{Base, NotedAttempt};
use crate::stream::OnError;
use crate::volume::{Parent, SnapshotView, VolumeRecord};

const VM1: VolumeId = VolumeId(1);
const VM2: VolumeId = VolumeId(2);

fn volume(id: VolumeId, name: &str) -> VolumeRecord {
    VolumeRecord {
        id,
        name: name.into(),
        uuid: Uuid::from_u128(u128::from(id.0)),
        size: 1 << 30,
        lba_bytes: 512,
        shards: vec![ShardId(0), ShardId(1)],
        created_unix_s: 7,
        exclusive: true,
        allowed_hosts: vec![],
        cuts: vec![],
        dead: vec![],
        view: None,
        parent: None,
    }
}

fn snapshot(id: u32, origin: VolumeId, name: &str) -> SnapshotRecord {
    SnapshotRecord {
        id: VolumeId(id),
        origin,
        name: name.into(),
        uuid: Uuid::from_u128(u128::from(id)),
        size: 1 << 29,
        created_unix_s: 9,
        manifest: None,
    }
}

fn cut(epoch: u64, snapshots: &[SnapshotRecord]) -> CutRecord {
    CutRecord { epoch: Epoch(epoch), snapshots: snapshots.to_vec() }
}

fn committed(epoch: u64, snapshots: &[SnapshotRecord]) -> CatalogRecord {
    CatalogRecord::SnapshotsCommitted(cut(epoch, snapshots))
}

fn gone(origin: VolumeId, id: u32, shards: &[u16]) -> CatalogRecord {
    let shards = shards.iter().map(|&shard| ShardId(shard)).collect();
    CatalogRecord::SnapshotRemains(RemainsRecord { origin, snapshot: VolumeId(id), shards })
}

fn two_volumes() -> CatalogState {
    let mut state = CatalogState::default();
    for (id, name) in [(VM1, "vm1"), (VM2, "vm2")] {
        state.apply(&CatalogRecord::VolumeCreated(volume(id, name))).unwrap();
    }
    state
}

/// The state after these records, which is also what a compaction and the bytes of its records lead to.
fn after(records: &[CatalogRecord]) -> CatalogState {
    let mut state = two_volumes();
    for record in records {
        state.apply(record).unwrap_or_else(|error| panic!("{record:?}: {error}"));
        let mut copy = CatalogState::default();
        for record in state.records() {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            let (read, length) = CatalogRecord::decode(&bytes).unwrap();
            assert_eq!((read.as_ref(), length), (Some(&record), bytes.len()));
            copy.apply(&record).unwrap_or_else(|error| panic!("{record:?} of a compaction: {error}"));
        }
        assert_eq!(copy, state, "after {record:?}");
    }
    state
}

fn cuts(state: &CatalogState, id: VolumeId) -> Vec<u64> {
    state.volume(id).unwrap().record.cuts.iter().map(|cut| cut.0).collect()
}

#[test]
fn a_group_of_snapshots_exists_by_one_record_and_each_is_a_volume_of_its_own() {
    let state = after(&[committed(20, &[snapshot(3, VM1, "s"), snapshot(4, VM2, "s")])]);
    let entry = state.volume_named("vm1@s").unwrap();
    assert_eq!(entry.record.view, Some(SnapshotView { origin: VM1, epoch: Epoch(20) }));
    assert_eq!((entry.record.size, entry.record.exclusive, entry.record.shards.len()), (1 << 29, false, 2));
    assert!(entry.snapshot.as_ref().unwrap().synced);
    assert_eq!((cuts(&state, VM1), cuts(&state, VM2)), (vec![20], vec![20]));
    assert_eq!(state.next_volume(), 5);
}

#[test]
fn a_record_that_cannot_be_changes_nothing() {
    let state = after(&[committed(20, &[snapshot(3, VM1, "s")])]);
    for (wrong, error) in [
        (committed(21, &[snapshot(3, VM1, "t")]), ApplyError::IdUsed(VolumeId(3))),
        (committed(21, &[snapshot(4, VM2, "s"), snapshot(5, VolumeId(9), "s")]), ApplyError::NoVolume(VolumeId(9))),
        (committed(21, &[snapshot(4, VolumeId(3), "t")]), ApplyError::NoVolume(VolumeId(3))),
        (committed(21, &[snapshot(4, VM1, "s")]), ApplyError::NameUsed { name: "vm1@s".into(), owner: VolumeId(3) }),
        (committed(21, &[snapshot(4, VM1, "a@b")]), ApplyError::Field { volume: VolumeId(4), field: "snapshot name" }),
        (committed(21, &[snapshot(4, VM1, "t"), snapshot(4, VM2, "t")]), ApplyError::IdUsed(VolumeId(4))),
        (CatalogRecord::VolumeRemoved(VolumeId(3)), ApplyError::NoVolume(VolumeId(3))),
    ] {
        let mut copy = state.clone();
        assert_eq!(copy.apply(&wrong), Err(error), "{wrong:?}");
        assert_eq!(copy, state);
    }
}

#[test]
fn snapshots_of_a_volume_follow_its_name_and_its_hosts() {
    let state = after(&[
        committed(20, &[snapshot(3, VM1, "s")]),
        CatalogRecord::VolumeRenamed(VM1, "db/1".into()),
        CatalogRecord::HostsAllowed(VM1, vec!["nqn.2014-08.a:b".into()]),
    ]);
    assert!(state.volume_named("vm1@s").is_none());
    assert_eq!(state.volume_named("db/1@s").unwrap().record.allowed_hosts.len(), 1);
}

#[test]
fn h2_a_cut_is_kept_for_as_long_as_a_snapshot_needs_it() {
    let records = [
        committed(20, &[snapshot(3, VM1, "a")]),
        committed(20, &[snapshot(4, VM1, "b")]),
        committed(30, &[snapshot(5, VM1, "c")]),
        gone(VM1, 3, &[0, 1]),
    ];
    assert_eq!(cuts(&after(&records), VM1), [20, 30], "b needs it");
    let mut records = records.to_vec();
    records.push(gone(VM1, 4, &[0, 1]));
    let state = after(&records);
    assert_eq!(cuts(&state, VM1), [30]);
    assert_eq!(state.removed().map(|(id, _)| id.0).collect::<Vec<_>>(), [3, 4]);
    assert!(state.volume_named("vm1@a").is_none());
    records.extend([gone(VM1, 3, &[]), gone(VM1, 4, &[])]);
    assert_eq!(after(&records).removed().count(), 0);
}

#[test]
fn h3_a_sealed_snapshot_exists_and_is_synced_by_a_later_record() {
    let sealed = CatalogRecord::SnapshotsSealed(cut(20, &[snapshot(3, VM1, "s")]));
    let state = after(std::slice::from_ref(&sealed));
    assert!(!state.volume_named("vm1@s").unwrap().snapshot.as_ref().unwrap().synced);
    let synced = SyncedRecord { origin: VM1, snapshot: VolumeId(3), manifest: Some("m".into()) };
    let state = after(&[sealed, CatalogRecord::SnapshotSynced(synced)]);
    assert!(state.volume_named("vm1@s").unwrap().snapshot.as_ref().unwrap().synced);
    assert_eq!(state.base_of(VM1), Some(&Base { epoch: Epoch(20), manifest: "m".into() }));
}

#[test]
fn c10_the_newest_synced_cut_outlives_its_snapshot_until_the_next_is_synced() {
    let stored = |id, name: &str| SnapshotRecord { manifest: Some(name.into()), ..snapshot(id, VM1, name) };
    let mut records = vec![committed(20, &[stored(3, "a")]), gone(VM1, 3, &[0])];
    assert_eq!(cuts(&after(&records), VM1), [20]);
    records.push(committed(30, &[snapshot(4, VM1, "b")]));
    assert_eq!(cuts(&after(&records), VM1), [20, 30], "b is not stored: a is still the base");
    records.push(committed(40, &[stored(5, "c")]));
    assert_eq!(cuts(&after(&records), VM1), [30, 40]);
    records.push(CatalogRecord::BaseKept(VM1, None));
    records.push(gone(VM1, 5, &[0]));
    assert_eq!(cuts(&after(&records), VM1), [30]);
}

#[test]
fn c10_a_sync_that_ends_late_is_no_base_in_place_of_a_newer_one() {
    let sealed = CatalogRecord::SnapshotsSealed(cut(20, &[snapshot(3, VM1, "a")]));
    let newer = SnapshotRecord { manifest: Some("newer".into()), ..snapshot(4, VM1, "b") };
    let late = SyncedRecord { origin: VM1, snapshot: VolumeId(3), manifest: Some("late".into()) };
    let state = after(&[sealed, committed(30, &[newer]), CatalogRecord::SnapshotSynced(late)]);
    assert_eq!(state.base_of(VM1).unwrap().manifest, "newer");
}

#[test]
fn a_manifest_that_takes_the_place_of_another_does_so_for_its_snapshot_and_for_the_next_sync() {
    let stored = |id, name: &str| SnapshotRecord { manifest: Some(name.into()), ..snapshot(id, VM1, name) };
    let replaced = |old: &str, new: &str| CatalogRecord::ManifestReplaced(VM1, old.into(), new.into());
    let mut records = vec![committed(20, &[stored(3, "a")]), committed(30, &[stored(4, "b")])];
    let state = after(&records);
    assert_eq!(state.holder_of("a"), Some((VM1, VolumeId(3), Epoch(20))));
    assert_eq!(state.holder_of("b"), Some((VM1, VolumeId(4), Epoch(30))));
    records.extend([replaced("a", "a2"), replaced("b", "b2"), replaced("gone", "x")]);
    let state = after(&records);
    let manifest = |name: &str| state.volume_named(name).unwrap().snapshot.as_ref().unwrap().manifest.clone();
    assert_eq!((manifest("vm1@a").as_deref(), manifest("vm1@b").as_deref()), (Some("a2"), Some("b2")));
    assert_eq!(state.base_of(VM1), Some(&Base { epoch: Epoch(30), manifest: "b2".into() }));
    assert_eq!((state.holder_of("a"), state.holder_of("x")), (None, None));
    // The cut that the next sync starts from may be no snapshot's any more.
    records.extend([gone(VM1, 4, &[0]), replaced("b2", "b3")]);
    let state = after(&records);
    assert_eq!(state.base_of(VM1).unwrap().manifest, "b3");
    assert_eq!(state.holder_of("b3"), Some((VM1, VM1, Epoch(30))));
}

#[test]
fn a_clone_is_a_volume_with_a_parent_until_it_is_detached() {
    let parent = Parent { volume: VM1, epoch: Epoch(20), size: 1 << 29 };
    let clone = CatalogRecord::CloneCreated(CloneRecord { volume: volume(VolumeId(4), "clone"), parent });
    let mut records = vec![committed(20, &[snapshot(3, VM1, "s")]), clone];
    let state = after(&records);
    assert_eq!(state.volume_named("clone").unwrap().record.parent, Some(parent));
    assert_eq!(state.clones_of(VM1, Epoch(20)).count(), 1);
    records.push(CatalogRecord::Detached(VolumeId(4)));
    assert_eq!(after(&records).clones_of(VM1, Epoch(20)).count(), 0);
}

#[test]
fn h9_a_clone_is_placed_as_its_parent_or_refused() {
    let parent = Parent { volume: VM1, epoch: Epoch(20), size: 1 << 29 };
    let elsewhere = VolumeRecord { shards: vec![ShardId(1)], ..volume(VolumeId(4), "clone") };
    let refused = two_volumes().apply(&CatalogRecord::CloneCreated(CloneRecord { volume: elsewhere, parent }));
    assert!(matches!(refused, Err(ApplyError::Field { .. })));
}

#[test]
fn h10_a_rollback_makes_an_interval_void_and_takes_older_ones_within_it_along() {
    let back =
        |to, until| CatalogRecord::RolledBack(RollbackRecord { volume: VM1, to: Epoch(to), until: Epoch(until) });
    let state = after(&[back(10, 15), back(20, 25), back(12, 30)]);
    let dead = &state.volume(VM1).unwrap().record.dead;
    assert_eq!(dead, &[(Epoch(10), Epoch(15)), (Epoch(12), Epoch(30))]);
    let backwards = RollbackRecord { volume: VM1, to: Epoch(9), until: Epoch(8) };
    assert!(two_volumes().apply(&CatalogRecord::RolledBack(backwards)).is_err());
}

#[test]
fn c14_an_attempt_is_known_until_it_is_settled_and_its_snapshot_id_is_used() {
    let noted = NotedAttempt {
        attempt: AttemptId(1 << 32 | 1),
        origin: VM1,
        snapshot: VolumeId(8),
        epoch: Epoch(20),
        manifest: "m".into(),
    };
    let mut records = vec![CatalogRecord::AttemptNoted(noted.clone())];
    let state = after(&records);
    assert_eq!((state.attempt(noted.attempt), state.next_volume()), (Some(&noted), 9));
    records.push(CatalogRecord::AttemptSettled(VM1, noted.attempt));
    assert_eq!(after(&records).attempts().count(), 0);
}

#[test]
fn a_removed_volume_takes_what_is_known_of_its_snapshots_along() {
    let records = [
        committed(20, &[snapshot(3, VM1, "a"), snapshot(4, VM2, "a")]),
        committed(30, &[snapshot(5, VM1, "b")]),
        gone(VM1, 3, &[0, 1]),
        CatalogRecord::VolumeRemoved(VM1),
    ];
    let state = after(&records);
    assert_eq!(state.volumes().map(|entry| entry.record.name.as_str()).collect::<Vec<_>>(), ["vm2", "vm2@a"]);
    assert_eq!(state.removed().map(|(id, _)| id).collect::<Vec<_>>(), [VM1]);
}

fn stream(volume: VolumeId, cursor: u64) -> StreamRecord {
    StreamRecord {
        volume,
        job: JobId(5),
        speed: Some(1 << 20),
        on_error: OnError::Stop,
        cursor,
        copied: 7,
        started_unix_s: 9,
        paused: Some("no space".into()),
    }
}

#[test]
fn a_stream_is_kept_as_it_was_said_last_until_it_has_ended_or_its_volume_is_gone() {
    let kept = |cursor| CatalogRecord::StreamKept(stream(VM2, cursor));
    let state = after(&[kept(0), kept(1 << 20)]);
    assert_eq!(state.streams().collect::<Vec<_>>(), [&stream(VM2, 1 << 20)]);
    let mut ended = after(&[kept(0), CatalogRecord::StreamEnded(VM2)]);
    assert_eq!(ended.stream(VM2), None);
    assert_eq!(ended.apply(&CatalogRecord::StreamEnded(VM2)), Err(ApplyError::NoVolume(VM2)));
    assert_eq!(after(&[kept(0), CatalogRecord::VolumeRemoved(VM2)]).streams().count(), 0);
    let missing = CatalogRecord::StreamKept(stream(VolumeId(9), 0));
    assert_eq!(ended.apply(&missing), Err(ApplyError::NoVolume(VolumeId(9))));
}

#[test]
fn the_last_events_are_kept_and_their_numbers_only_ascend() {
    let event = |number| {
        let event = Event::new(EventKind::VolumeResized, Some(VM1), "vm1").with_bytes(number);
        CatalogRecord::EventTold(Event { number, ..event })
    };
    let told: Vec<_> = (1..=EVENTS_KEPT as u64 + 3).map(event).collect();
    let mut state = after(&told);
    let numbers: Vec<u64> = state.events().map(|event| event.number).collect();
    assert_eq!(numbers, (4..=EVENTS_KEPT as u64 + 3).collect::<Vec<_>>());
    let last = state.last_event();
    assert_eq!(state.apply(&event(last)), Err(ApplyError::EventNumber(last)));
    assert_eq!(state.apply(&event(last + 5)), Ok(()));
    assert_eq!(state.last_event(), last + 5);
}
