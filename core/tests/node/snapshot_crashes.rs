//! Crashes at operation after operation of the disks while snapshots are made, stored, removed, rolled back to, cloned and missed: each
//! took place or did not, what remains reads right, and when all of it is removed no cluster is in use.

use std::collections::BTreeSet;
use std::time::Duration;

use ringway_core::control::{ControlAnswer, ControlRequest, RollbackBy};
use ringway_core::ids::VolumeId;
use ringway_core::node::message::Message;
use ringway_core::request::Status;
use ringway_core::snapshot::asked::{Patience, VolumeClone};
use ringway_reactor::sim::{CrashPoint, Ended};

use crate::rig::{BLOCK, Backend, MIB, Setup, Target};
use crate::snapshots::{creation, listed, remove, snapshot, snapshots};
use crate::soak;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Create,
    /// A snapshot that is stored in a backend.
    Sync,
    Remove,
    Rollback,
    Clone,
    /// A snapshot whose deadline passes before it can be made.
    Expire,
}

const PLACES: [u64; 4] = [0, 40 * BLOCK, MIB + 3 * BLOCK, 5 * MIB];

fn request(change: Change) -> ControlRequest {
    match change {
        Change::Create | Change::Sync => creation(&["vm1"], "c", Patience::Forever),
        Change::Remove => ControlRequest::SnapshotRemove { name: "vm1@a".into(), force: false },
        Change::Rollback => ControlRequest::SnapshotRollback { name: "vm1@a".into(), by: RollbackBy::Anybody },
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
        Change::Create | Change::Sync | Change::Expire => there.contains(&"vm1@c".to_owned()),
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
fn clear(target: &mut Target, change: Change, context: &str) {
    if target.volumes().iter().any(|info| info.name == "vm2") {
        target.call(ControlRequest::VolumeRemove { name: "vm2".into(), force: false }).unwrap();
    }
    for name in listed(target) {
        assert_eq!(remove(target, &name), Ok(ControlAnswer::Done), "{context}: {name}");
    }
    target.pass_ns(3_000_000_000);
    let allocated = target.volumes()[0].allocated;
    // The next sync starts from the last one, whose cut stays.
    assert!(
        change == Change::Sync || allocated <= PLACES.len() as u64 * 65536,
        "{context}: {allocated} bytes without a snapshot"
    );
    target.call(ControlRequest::VolumeRemove { name: "vm1".into(), force: false }).unwrap();
    target.pass_ns(5_000_000_000);
    assert_eq!(target.pool().used, 0, "{context}");
}

/// Gives turns until the change has ended, and passes on what the backend says. False if that crashed.
fn drive(target: &mut Target) -> bool {
    loop {
        if target.run(3_000, |_| false) == Ended::Crashed {
            return false;
        }
        let Some(backend) = target.setup.backend.clone() else { return true };
        let said: Vec<_> = backend.says.lock().unwrap().drain(..).collect();
        if said.is_empty() {
            return true;
        }
        said.into_iter().for_each(|report| target.injector.send(Message::Sync(report)));
        target.world.stir();
    }
}

fn made(target: &mut Target, name: &str) {
    if target.setup.backend.is_none() {
        snapshot(target, "vm1", name);
        return;
    }
    let pending = target.ask(creation(&["vm1"], name, Patience::Forever));
    target.settle();
    assert!(matches!(*pending.lock().unwrap(), Some(Ok(_))), "{name}");
}

/// Whether it crashed, and whether the change took place.
fn crash_at(change: Change, seed: u64, n: u64, power_loss: bool) -> (bool, bool) {
    let context = format!("{change:?}, seed {seed}, crash {n}, power loss {power_loss}");
    let backend = (change == Change::Sync).then(Backend::default);
    let mut target = Target::new(seed, Setup { backend, ..Setup::default() });
    let volume = target.create("vm1", 8 * MIB).id;
    fill(&mut target, volume, 1);
    made(&mut target, "a");
    fill(&mut target, volume, 2);
    made(&mut target, "b");
    fill(&mut target, volume, 3);
    assert_eq!(target.flush(volume), Status::Success);
    let point = if n.is_multiple_of(2) { CrashPoint::Submitted(n / 2) } else { CrashPoint::Completed(n / 2) };
    target.world.crash_after(point);
    let pending = target.ask(request(change));
    let crashed = !drive(&mut target);
    let told = pending.lock().unwrap().clone();
    // What the backend had to say went with the process that it was said to.
    if let Some(backend) = &target.setup.backend {
        backend.says.lock().unwrap().clear();
    }
    let mut target = if power_loss { target.power_loss() } else { target.kill() };
    if target.setup.backend.is_some() {
        target.settle();
    }
    let happened = check(&mut target, change, volume, &context);
    match told {
        Some(Ok(_)) => assert!(happened, "{context}: it was answered"),
        Some(Err(error)) => assert!(!happened, "{context}: {error}"),
        None => {}
    }
    clear(&mut target, change, &context);
    target.stop();
    (crashed, happened)
}

fn sweep(change: Change) {
    let mut outcomes = BTreeSet::new();
    for power_loss in [false, true] {
        // Storing it takes two records of the catalog more.
        for n in 0..if change == Change::Sync { 60 } else { 24 } {
            outcomes.insert(crash_at(change, 2000 + n, n, power_loss).1);
        }
    }
    assert!(change == Change::Expire || outcomes.len() == 2, "{change:?}: {outcomes:?}");
}

#[test]
fn soak_no_change_of_a_snapshot_is_half_done_whichever_operation_of_the_disks_was_the_last() {
    let changes = [Change::Create, Change::Sync, Change::Remove, Change::Rollback, Change::Clone, Change::Expire];
    for seed in soak::seeds(1) {
        let (change, power_loss) = (changes[(seed % 6) as usize], seed / 6 % 2 == 0);
        // Every operation, to where the change ends before it comes.
        let count = (0..).take_while(|&n| crash_at(change, seed, n, power_loss).0).count();
        assert!(count > 10, "{change:?}, seed {seed}: {count} operations");
    }
}

#[test]
fn c14_a_snapshot_that_a_crash_cuts_short_is_there_or_is_not_and_nothing_leaks() {
    sweep(Change::Create);
}

#[test]
fn c14_a_snapshot_that_a_crash_cuts_short_on_its_way_to_the_backend_is_there_or_is_not_and_nothing_leaks() {
    sweep(Change::Sync);
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
