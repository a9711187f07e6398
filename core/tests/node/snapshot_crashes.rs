//! Crashes at operation after operation of the disks through removals, rollbacks, clones and expiries: each took place or did not, what
//! remains reads right, and when all of it is removed no cluster is in use.

use std::collections::BTreeSet;
use std::time::Duration;

use ringway_core::control::{ControlAnswer, ControlRequest};
use ringway_core::ids::VolumeId;
use ringway_core::request::Status;
use ringway_core::snapshot::asked::{Patience, VolumeClone};
use ringway_reactor::sim::CrashPoint;

use crate::rig::{BLOCK, MIB, Setup, Target};
use crate::snapshots::{creation, listed, remove, snapshot, snapshots};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Remove,
    Rollback,
    Clone,
    /// A snapshot whose deadline passes before it can be made.
    Expire,
}

const PLACES: [u64; 4] = [0, 40 * BLOCK, MIB + 3 * BLOCK, 5 * MIB];

fn request(change: Change) -> ControlRequest {
    match change {
        Change::Remove => ControlRequest::SnapshotRemove { name: "vm1@a".into(), force: false },
        Change::Rollback => ControlRequest::SnapshotRollback { name: "vm1@a".into(), force: false },
        Change::Clone => ControlRequest::VolumeClone(VolumeClone {
            snapshot: "vm1@a".into(),
            name: "vm2".into(),
            exclusive: false,
            allowed_hosts: vec![],
        }),
        Change::Expire => creation(&["vm1"], "c", Patience::Within(Duration::from_micros(10_100))),
    }
}

fn fill(target: &mut Target, volume: VolumeId, value: u8) {
    for place in PLACES {
        assert_eq!(target.write(volume, place, &[value; 4096]), Status::Success);
    }
}

/// The one value that a volume has everywhere.
fn value(target: &mut Target, volume: VolumeId) -> u8 {
    let read: BTreeSet<u8> = PLACES.iter().map(|&place| target.read(volume, place, 4096).unwrap()[4095]).collect();
    assert_eq!(read.len(), 1, "{read:?}");
    *read.first().unwrap()
}

/// What there is after a crash, and that it reads right; whether the change took place.
fn check(target: &mut Target, change: Change, volume: VolumeId, context: &str) -> bool {
    let there = listed(target);
    for info in snapshots(target.call(ControlRequest::SnapshotList { volume: None })) {
        let expected = if info.name == "vm1@a" {
            1
        } else if info.name == "vm1@b" {
            2
        } else {
            3
        };
        assert_eq!(value(target, info.id), expected, "{context}: {}", info.name);
    }
    let clone = target.volumes().into_iter().find(|info| info.name == "vm2").map(|info| info.id);
    let live = value(target, volume);
    let happened = match change {
        Change::Remove => !there.contains(&"vm1@a".to_owned()),
        Change::Rollback => live == 1,
        Change::Clone => clone.is_some(),
        Change::Expire => there.contains(&"vm1@c".to_owned()),
    };
    if change == Change::Rollback {
        assert_eq!(there.len(), if happened { 1 } else { 2 }, "{context}: {there:?}");
    }
    assert!(live == 3 || change == Change::Rollback && live == 1, "{context}: {live}");
    if let Some(clone) = clone {
        assert_eq!(value(target, clone), 1, "{context}");
        fill(target, clone, 9);
        assert_eq!(value(target, clone), 9, "{context}");
    }
    happened
}

/// Everything goes; nothing is in use then.
fn clear(target: &mut Target, context: &str) {
    if target.volumes().iter().any(|info| info.name == "vm2") {
        target.call(ControlRequest::VolumeRemove { name: "vm2".into(), force: false }).unwrap();
    }
    for name in listed(target) {
        assert_eq!(remove(target, &name), Ok(ControlAnswer::Done), "{context}: {name}");
    }
    target.pass_ns(3_000_000_000);
    let allocated = target.volumes()[0].allocated;
    assert!(allocated <= PLACES.len() as u64 * 65536, "{context}: {allocated} bytes without a snapshot");
    target.call(ControlRequest::VolumeRemove { name: "vm1".into(), force: false }).unwrap();
    target.pass_ns(5_000_000_000);
    assert_eq!(target.pool().used, 0, "{context}");
}

fn sweep(change: Change) {
    let mut outcomes = BTreeSet::new();
    for power_loss in [false, true] {
        for n in 0..24 {
            let context = format!("{change:?}, crash {n}, power loss {power_loss}");
            let mut target = Target::new(2000 + n, Setup::default());
            let volume = target.create("vm1", 8 * MIB).id;
            fill(&mut target, volume, 1);
            snapshot(&mut target, "vm1", "a");
            fill(&mut target, volume, 2);
            snapshot(&mut target, "vm1", "b");
            fill(&mut target, volume, 3);
            assert_eq!(target.flush(volume), Status::Success);
            let point = if n % 2 == 0 { CrashPoint::Submitted(n / 2) } else { CrashPoint::Completed(n / 2) };
            target.world.crash_after(point);
            let pending = target.ask(request(change));
            let _ = target.run(3_000, |_| false);
            let told = pending.lock().unwrap().clone();
            let mut target = if power_loss { target.power_loss() } else { target.kill() };
            let happened = check(&mut target, change, volume, &context);
            match told {
                Some(Ok(_)) => assert!(happened, "{context}: it was answered"),
                Some(Err(error)) => assert!(!happened, "{context}: {error}"),
                None => {}
            }
            outcomes.insert(happened);
            clear(&mut target, &context);
            target.stop();
        }
    }
    assert!(change == Change::Expire || outcomes.len() == 2, "{change:?}: {outcomes:?}");
}

#[test]
fn h2_a_removal_that_a_crash_cuts_short_took_place_or_did_not_and_nothing_leaks() {
    sweep(Change::Remove);
}

#[test]
fn h10_a_rollback_that_a_crash_cuts_short_took_place_or_did_not_and_nothing_leaks() {
    sweep(Change::Rollback);
}

#[test]
fn a_clone_that_a_crash_cuts_short_is_there_or_is_not_and_nothing_leaks() {
    sweep(Change::Clone);
}

#[test]
fn c14_an_expiry_that_a_crash_cuts_short_leaves_nothing_and_nothing_leaks() {
    sweep(Change::Expire);
}
