//! Snapshots of a whole target: made, missed, refused, removed, rolled back to, and what is left of them after crashes.

use std::time::Duration;

use ringway_core::control::{ControlAnswer, ControlError, ControlErrorKind, ControlRequest, RollbackBy};
use ringway_core::ids::VolumeId;
use ringway_core::request::{Command, Status};
use ringway_core::snapshot::asked::{Patience, SnapshotCreate, SnapshotInfo, SnapshotState, VolumeClone};
use ringway_reactor::sim::{CrashPoint, DiskId, Fault, Faults, OpKind};

use crate::rig::{BLOCK, MIB, Pending, Setup, Target};

pub(crate) fn creation(volumes: &[&str], name: &str, patience: Patience) -> ControlRequest {
    let volumes = volumes.iter().map(|&volume| volume.to_owned()).collect();
    ControlRequest::SnapshotCreate(SnapshotCreate { volumes, name: name.into(), patience })
}

fn within_ms(ms: u64) -> Patience {
    Patience::Within(Duration::from_millis(ms))
}

pub(crate) fn snapshots(answer: Result<ControlAnswer, ControlError>) -> Vec<SnapshotInfo> {
    match answer {
        Ok(ControlAnswer::Snapshots(snapshots)) => snapshots,
        other => panic!("no snapshots: {other:?}"),
    }
}

pub(crate) fn snapshot(target: &mut Target, volume: &str, name: &str) -> SnapshotInfo {
    snapshots(target.call(creation(&[volume], name, Patience::Forever))).remove(0)
}

pub(crate) fn listed(target: &mut Target) -> Vec<String> {
    snapshots(target.call(ControlRequest::SnapshotList { volume: None })).into_iter().map(|info| info.name).collect()
}

pub(crate) fn remove(target: &mut Target, name: &str) -> Result<ControlAnswer, ControlError> {
    target.call(ControlRequest::SnapshotRemove { name: name.into(), force: false })
}

pub(crate) fn roll_back(target: &mut Target, name: &str, force: bool) -> Result<ControlAnswer, ControlError> {
    let by = if force { RollbackBy::Force } else { RollbackBy::Anybody };
    target.call(ControlRequest::SnapshotRollback { name: name.into(), by })
}

fn answered(pending: &Pending) -> bool {
    pending.lock().unwrap().is_some()
}

fn take(pending: &Pending) -> Result<ControlAnswer, ControlError> {
    pending.lock().unwrap().take().expect("it is answered")
}

fn kind(answer: Result<ControlAnswer, ControlError>) -> ControlErrorKind {
    answer.expect_err("it is refused").kind
}

#[test]
fn a_snapshot_is_listed_shown_and_survives_any_end_of_the_process() {
    let mut target = Target::new(1, Setup::default());
    let volume = target.create("vm1", 8 * MIB).id;
    assert_eq!(target.write(volume, 0, &[1; 4096]), Status::Success);
    let made = snapshot(&mut target, "vm1", "a");
    assert_eq!((made.name.as_str(), made.size, made.state), ("vm1@a", 8 * MIB, SnapshotState::Synced));
    assert!(made.id != volume && made.nqn.ends_with(":vm1@a") && made.cut.is_some() && made.times.is_some());
    let mut target = target.power_loss();
    assert_eq!(listed(&mut target), ["vm1@a"]);
    let shown = snapshots(target.call(ControlRequest::SnapshotShow { name: "vm1@a".into() })).remove(0);
    assert_eq!(SnapshotInfo { times: None, ..made }, shown);
    assert_eq!(target.volumes().len(), 1, "it is no volume of its own in the list of volumes");
    let mut target = target.kill().restart();
    assert_eq!(listed(&mut target), ["vm1@a"]);
    assert_eq!(remove(&mut target, "vm1@a"), Ok(ControlAnswer::Done));
    assert_eq!(listed(&mut target), [""; 0]);
    let mut target = target.restart();
    assert_eq!(listed(&mut target), [""; 0]);
    target.stop();
}

#[test]
fn writes_to_a_snapshot_are_refused_on_every_way_in() {
    let mut target = Target::new(2, Setup::default());
    target.create("vm1", 4 * MIB);
    let id = snapshot(&mut target, "vm1", "a").id;
    assert_eq!(target.write(id, 0, &[1; 4096]), Status::WriteProtected);
    for command in [Command::Deallocate, Command::WriteZeroes { fua: false, deallocate: true }] {
        let request = target.request(id, command, 0, 4096, None);
        assert_eq!(target.wait(request).status, Status::WriteProtected);
    }
    assert_eq!(target.flush(id), Status::Success);
}

#[test]
fn bad_input_changes_nothing_and_says_what_would_be_right() {
    let mut target = Target::new(3, Setup::default());
    target.create("vm1", 4 * MIB);
    target.create("vm2", 4 * MIB);
    snapshot(&mut target, "vm1", "a");
    let rename = |to: &str| ControlRequest::VolumeRename { name: "vm1@a".into(), to: to.into() };
    let clone = |snapshot: &str, name: &str| {
        ControlRequest::VolumeClone(VolumeClone {
            snapshot: snapshot.into(),
            name: name.into(),
            exclusive: false,
            allowed_hosts: vec![],
        })
    };
    for (request, kind, says) in [
        (creation(&["vm1"], "a", Patience::Forever), ControlErrorKind::Exists, "vm1@a"),
        (creation(&["vm2", "vm9"], "b", Patience::Forever), ControlErrorKind::NotFound, "vm9"),
        (creation(&["vm1@a"], "b", Patience::Forever), ControlErrorKind::Invalid, "a snapshot has no snapshots"),
        (creation(&["vm1"], "a/b", Patience::Forever), ControlErrorKind::Invalid, "1 to 127 bytes"),
        (creation(&["vm1", "vm1"], "b", Patience::Forever), ControlErrorKind::Invalid, "twice"),
        (ControlRequest::SnapshotShow { name: "vm1".into() }, ControlErrorKind::Invalid, "VOLUME@SNAPSHOT"),
        (ControlRequest::SnapshotShow { name: "vm1@b".into() }, ControlErrorKind::NotFound, "vm1@b"),
        (ControlRequest::SnapshotList { volume: Some("vm9".into()) }, ControlErrorKind::NotFound, "vm9"),
        (ControlRequest::SnapshotRemove { name: "vm9@a".into(), force: true }, ControlErrorKind::NotFound, "vm9"),
        (
            ControlRequest::SnapshotRollback { name: "vm2@a".into(), by: RollbackBy::Force },
            ControlErrorKind::NotFound,
            "vm2@a",
        ),
        (ControlRequest::VolumeRemove { name: "vm1".into(), force: true }, ControlErrorKind::Needed, "vm1@a"),
        (
            ControlRequest::VolumeRemove { name: "vm1@a".into(), force: true },
            ControlErrorKind::Invalid,
            "is a snapshot",
        ),
        (
            ControlRequest::VolumeResize { name: "vm1@a".into(), size: 8 * MIB },
            ControlErrorKind::Invalid,
            "is a snapshot",
        ),
        (rename("x"), ControlErrorKind::Invalid, "is a snapshot"),
        (clone("vm1@a", "vm2"), ControlErrorKind::Exists, "vm2"),
        (clone("vm1@z", "vm3"), ControlErrorKind::NotFound, "vm1@z"),
        (clone("vm1", "vm3"), ControlErrorKind::Invalid, "VOLUME@SNAPSHOT"),
    ] {
        let error = target.call(request.clone()).expect_err("it is refused");
        assert!(error.kind == kind && error.message.contains(says), "{request:?}: {error:?}");
    }
    assert_eq!(listed(&mut target), ["vm1@a"], "of a group with a volume that is missing nothing is cut");
    assert_eq!(target.volumes().len(), 2);
}

#[test]
fn a_group_is_cut_together_and_a_volume_may_have_several_snapshots_on_their_way() {
    let mut target = Target::new(4, Setup { shards: 4, ..Setup::default() });
    for name in ["a", "b", "c"] {
        target.create(name, 8 * MIB);
    }
    let made = snapshots(target.call(creation(&["c", "a", "b"], "s", Patience::Forever)));
    assert_eq!(made.iter().map(|info| info.name.as_str()).collect::<Vec<_>>(), ["c@s", "a@s", "b@s"]);
    assert!(made.iter().all(|info| info.cut == made[0].cut));
    let many: Vec<_> = (0..20).map(|n| target.ask(creation(&["a"], &format!("n{n}"), Patience::Forever))).collect();
    let again = target.call(creation(&["a"], "n3", Patience::Forever));
    assert_eq!(kind(again), ControlErrorKind::Exists);
    target.run_until(|_| many.iter().all(answered));
    let cuts: Vec<_> = many.iter().map(|pending| snapshots(take(pending)).remove(0).cut.unwrap()).collect();
    let distinct: std::collections::BTreeSet<_> = cuts.iter().collect();
    assert_eq!(distinct.len(), 20);
    assert_eq!(listed(&mut target).len(), 23);
}

#[test]
fn a_snapshot_follows_the_name_of_its_volume_and_keeps_its_size() {
    let mut target = Target::new(5, Setup::default());
    target.create("vm1", 4 * MIB);
    snapshot(&mut target, "vm1", "a");
    target.call(ControlRequest::VolumeResize { name: "vm1".into(), size: 8 * MIB }).unwrap();
    snapshot(&mut target, "vm1", "b");
    target.call(ControlRequest::VolumeRename { name: "vm1".into(), to: "vm2".into() }).unwrap();
    let shown = snapshots(target.call(ControlRequest::SnapshotList { volume: Some("vm2".into()) }));
    let sizes: Vec<_> = shown.iter().map(|info| (info.name.as_str(), info.size)).collect();
    assert_eq!(sizes, [("vm2@a", 4 * MIB), ("vm2@b", 8 * MIB)]);
}

/// A snapshot with a deadline while the disk stalls: what it was answered, and how late.
fn missed(seed: u64, stall: impl FnOnce(&mut Target)) -> (Target, ControlError, u64) {
    let mut target = Target::new(seed, Setup::default());
    let volume = target.create("vm1", 8 * MIB).id;
    target.write(volume, 0, &[1; 4096]);
    target.write(volume, MIB, &[1; 4096]);
    stall(&mut target);
    let began = target.world.now();
    let pending = target.ask(creation(&["vm1"], "a", within_ms(50)));
    target.run_until(|_| answered(&pending));
    let late = target.world.now().since_ns(began).saturating_sub(50_000_000);
    let error = take(&pending).expect_err("the deadline was missed");
    assert_eq!(error.kind, ControlErrorKind::TimedOut, "{error}");
    (target, error, late)
}

#[test]
fn c14_a_deadline_that_is_missed_is_answered_at_once_and_leaves_nothing() {
    let (mut target, error, late) = missed(6, |target| {
        target.world.inject(DiskId(0), OpKind::Barrier, 1, Fault::Stall(2_000_000_000));
    });
    assert!(error.message.contains("50ms") && error.message.contains("seal"), "{error}");
    assert!(late < 1_000_000, "{late} ns late");
    assert_eq!(listed(&mut target), [""; 0]);
    let volume = target.volumes()[0].id;
    target.pass_ns(3_000_000_000);
    assert_eq!(target.write(volume, 0, &[2; 4096]), Status::Success);
    target.flush(volume);
    target.pass_ns(1_000_000_000);
    assert_eq!(target.volumes()[0].allocated, 2 * 65536, "nothing is written elsewhere for it any more");
    // The name is free again.
    snapshot(&mut target, "vm1", "a");
    let mut target = target.power_loss();
    assert_eq!(listed(&mut target), ["vm1@a"]);
}

#[test]
fn c14_nothing_is_left_of_a_missed_deadline_after_a_crash_either() {
    for power_loss in [false, true] {
        let (target, ..) = missed(7, |target| {
            target.world.inject(DiskId(0), OpKind::Barrier, 1, Fault::Stall(2_000_000_000));
        });
        let mut target = if power_loss { target.power_loss() } else { target.kill() };
        assert_eq!(listed(&mut target), [""; 0]);
        let volume = target.volumes()[0].id;
        let mut read = |offset| target.read(volume, offset, 4096).unwrap()[0];
        assert!([read(0), read(MIB)].iter().all(|&value| value <= 1));
        snapshot(&mut target, "vm1", "a");
    }
}

#[test]
fn h3_without_waiting_the_answer_comes_when_the_snapshot_is_durable() {
    let mut target = Target::new(8, Setup::default());
    target.create("vm1", 8 * MIB);
    let made = snapshots(target.call(creation(&["vm1"], "a", Patience::NoWait)));
    assert_eq!(made[0].name, "vm1@a");
    let mut target = target.power_loss();
    assert_eq!(listed(&mut target), ["vm1@a"]);
}

#[test]
fn c14_a_record_that_could_not_be_written_is_void_and_the_catalog_goes_on() {
    for seed in 0..20 {
        let mut target = Target::new(100 + seed, Setup::default());
        target.create("vm1", 8 * MIB);
        target.world.inject(DiskId(0), OpKind::Write, 1 + seed, Fault::Error);
        let made = target.call(creation(&["vm1"], "a", Patience::Forever));
        target.world.set_faults(DiskId(0), Faults::default());
        let there = listed(&mut target);
        assert_eq!(made.is_ok(), there == ["vm1@a"], "{made:?}, {there:?}");
        let (mut after, before) = (target.power_loss(), there);
        assert_eq!(listed(&mut after), before, "what was answered is the truth");
    }
}

#[test]
fn one_that_is_being_made_can_be_given_up() {
    let mut target = Target::new(10, Setup::default());
    let volume = target.create("vm1", 8 * MIB).id;
    target.write(volume, 0, &[1; 4096]);
    target.world.inject(DiskId(0), OpKind::Barrier, 1, Fault::Stall(5_000_000_000));
    let pending = target.ask(creation(&["vm1"], "a", Patience::Forever));
    target.pass_ns(10_000_000);
    assert_eq!(
        kind(target.call(ControlRequest::VolumeRemove { name: "vm1".into(), force: true })),
        ControlErrorKind::Busy
    );
    let shown = snapshots(target.call(ControlRequest::SnapshotShow { name: "vm1@a".into() })).remove(0);
    assert_eq!((shown.state, shown.deadline_ms), (SnapshotState::Pending, None));
    assert_eq!(kind(roll_back(&mut target, "vm1@a", true)), ControlErrorKind::NotFound, "it does not exist yet");
    assert_eq!(remove(&mut target, "vm1@a"), Ok(ControlAnswer::Done));
    assert!(answered(&pending));
    assert_eq!(kind(take(&pending)), ControlErrorKind::Unavailable);
    assert_eq!(listed(&mut target), [""; 0]);
}

#[test]
fn h10_a_rollback_drops_later_snapshots_and_what_was_written_since() {
    let mut target = Target::new(11, Setup::default());
    let volume = target.create("vm1", 8 * MIB).id;
    let places = [0, 64 * BLOCK, MIB, 5 * MIB];
    let fill = |target: &mut Target, value: u8| {
        for place in places {
            assert_eq!(target.write(volume, place, &[value; 4096]), Status::Success);
        }
    };
    fill(&mut target, 1);
    snapshot(&mut target, "vm1", "a");
    fill(&mut target, 2);
    snapshot(&mut target, "vm1", "b");
    fill(&mut target, 3);
    roll_back(&mut target, "vm1@a", false).expect("nobody is attached");
    assert_eq!(listed(&mut target), ["vm1@a"]);
    let check = |target: &mut Target, value: u8| {
        for place in places {
            assert_eq!(target.read(volume, place, 4096), Ok(vec![value; 4096]), "at {place}");
        }
    };
    check(&mut target, 1);
    let mut target = target.power_loss();
    check(&mut target, 1);
    fill(&mut target, 4);
    snapshot(&mut target, "vm1", "c");
    fill(&mut target, 5);
    roll_back(&mut target, "vm1@c", false).unwrap();
    check(&mut target, 4);
    roll_back(&mut target, "vm1@a", false).unwrap();
    check(&mut target, 1);
    let mut target = target.kill();
    check(&mut target, 1);
    assert_eq!(listed(&mut target), ["vm1@a"]);
}

#[test]
fn a_snapshot_that_a_clone_lies_over_is_kept_and_so_are_those_a_rollback_would_drop() {
    let mut target = Target::new(12, Setup::default());
    target.create("vm1", 8 * MIB);
    snapshot(&mut target, "vm1", "a");
    snapshot(&mut target, "vm1", "b");
    let clone = VolumeClone { snapshot: "vm1@b".into(), name: "vm2".into(), exclusive: false, allowed_hosts: vec![] };
    let Ok(ControlAnswer::Volume(made)) = target.call(ControlRequest::VolumeClone(clone)) else { panic!("no clone") };
    assert_eq!((made.size, made.parent.as_deref()), (8 * MIB, Some("vm1@b")));
    assert_eq!(kind(remove(&mut target, "vm1@b")), ControlErrorKind::Needed);
    assert_eq!(kind(roll_back(&mut target, "vm1@a", true)), ControlErrorKind::Needed);
    let mut target = target.power_loss();
    assert_eq!(kind(remove(&mut target, "vm1@b")), ControlErrorKind::Needed);
    target.call(ControlRequest::VolumeRemove { name: "vm2".into(), force: false }).unwrap();
    assert_eq!(remove(&mut target, "vm1@b"), Ok(ControlAnswer::Done));
    assert_eq!(listed(&mut target), ["vm1@a"]);
}

#[test]
fn c14_c15_after_a_crash_at_any_moment_a_snapshot_is_whole_or_absent_and_one_that_was_answered_is_there() {
    let mut outcomes = std::collections::BTreeSet::new();
    for power_loss in [false, true] {
        for n in 0..60 {
            let mut target = Target::new(1000 + n, Setup { reactors: 2, shards: 3, ..Setup::default() });
            let (a, b) = (target.create("a", 4 * MIB).id, target.create("b", 4 * MIB).id);
            for place in 0..4 {
                target.write(a, place * MIB, &[1; 4096]);
                target.write(b, place * MIB, &[1; 4096]);
            }
            let point = if n % 2 == 0 { CrashPoint::Submitted(n / 2) } else { CrashPoint::Completed(n / 2) };
            target.world.crash_after(point);
            let pending = target.ask(creation(&["a", "b"], "s", Patience::Forever));
            let _ = target.run(20_000, |_| answered(&pending));
            let told = pending.lock().unwrap().clone();
            let mut target = if power_loss { target.power_loss() } else { target.kill() };
            let there = listed(&mut target);
            assert!(there.is_empty() || there == ["a@s", "b@s"], "{n}: {there:?}");
            if matches!(told, Some(Ok(_))) {
                assert_eq!(there.len(), 2, "{n}: it was answered");
            }
            outcomes.insert((told.is_some(), there.len()));
            snapshot(&mut target, "a", "t");
            target.stop();
        }
    }
    assert!(outcomes.contains(&(false, 0)) && outcomes.contains(&(true, 2)), "{outcomes:?}");
}

#[test]
fn a_target_that_stops_gives_up_what_is_being_made() {
    let mut target = Target::new(13, Setup::default());
    let volume: VolumeId = target.create("vm1", 8 * MIB).id;
    target.write(volume, 0, &[1; 4096]);
    target.world.inject(DiskId(0), OpKind::Barrier, 1, Fault::Stall(200_000_000));
    let pending = target.ask(creation(&["vm1"], "a", Patience::Forever));
    target.pass_ns(10_000_000);
    let mut target = target.restart();
    assert_eq!(kind(take(&pending)), ControlErrorKind::Unavailable);
    assert_eq!(listed(&mut target), [""; 0]);
}
