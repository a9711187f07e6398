//! Snapshots on their way into a backend, as far as the coordinator goes: what it asks, in which order, and what is left after crashes.

use std::time::Duration;

use ringway_core::control::{ControlAnswer, ControlErrorKind, ControlRequest};
use ringway_core::snapshot::asked::{Patience, SnapshotState};

use crate::rig::{Backend, MIB, Pending, Setup, Target};
use crate::snapshots::{creation, listed, remove, roll_back, snapshots};

fn target(seed: u64, backend: Backend) -> Target {
    let mut target = Target::new(seed, Setup { backend: Some(backend), ..Setup::default() });
    target.create("vm1", 8 * MIB);
    target
}

fn ask(target: &mut Target, name: &str, patience: Patience) -> Pending {
    let pending = target.ask(creation(&["vm1"], name, patience));
    target.pass_ns(20_000_000);
    pending
}

fn is_answered(pending: &Pending) -> bool {
    pending.lock().unwrap().is_some()
}

fn state(target: &mut Target, name: &str) -> SnapshotState {
    snapshots(target.call(ControlRequest::SnapshotShow { name: name.into() })).remove(0).state
}

#[test]
fn c14_the_attempt_is_on_record_before_its_manifest_and_the_snapshot_before_its_marker() {
    let mut target = target(1, Backend::default());
    let pending = ask(&mut target, "a", Patience::Within(Duration::from_secs(60)));
    assert_eq!(target.asked(), ["start vm1@a from nothing"]);
    assert!(!is_answered(&pending));
    let shown = snapshots(target.call(ControlRequest::SnapshotShow { name: "vm1@a".into() })).remove(0);
    assert_eq!(shown.state, SnapshotState::Pending);
    // Who stores it can read it, though nobody can attach it.
    assert_eq!(target.read(shown.id, 0, 4096), Ok(vec![0; 4096]));
    target.settle();
    assert!(matches!(pending.lock().unwrap().take(), Some(Ok(ControlAnswer::Snapshots(_)))));
    assert_eq!(target.asked(), ["go on", "committed m-vm1@a"]);
    assert_eq!(state(&mut target, "vm1@a"), SnapshotState::Synced);
    // The next one starts from there.
    ask(&mut target, "b", Patience::Forever);
    target.settle();
    assert_eq!(target.asked()[0], "start vm1@b from m-vm1@a");
    let mut target = target.power_loss();
    target.settle();
    assert_eq!(target.asked(), [""; 0], "nothing is left to do");
    assert_eq!(listed(&mut target), ["vm1@a", "vm1@b"]);
}

#[test]
fn c10_the_manifest_of_a_removed_snapshot_stays_for_as_long_as_the_next_sync_starts_from_it() {
    let mut target = target(2, Backend::default());
    ask(&mut target, "a", Patience::Forever);
    target.settle();
    remove(&mut target, "vm1@a").unwrap();
    target.asked();
    ask(&mut target, "b", Patience::Forever);
    assert_eq!(target.asked(), ["start vm1@b from m-vm1@a"]);
    target.settle();
    assert!(target.asked().contains(&"removed m-vm1@a".to_owned()));
}

#[test]
fn c14_a_deadline_that_passes_while_it_is_stored_cancels_what_was_noted() {
    let mut target = target(3, Backend::default());
    let pending = ask(&mut target, "a", Patience::Within(Duration::from_secs(10)));
    // Up to the note, and no further: the backend is slow with its manifest.
    let said: Vec<_> = target.setup.backend.as_ref().unwrap().says.lock().unwrap().drain(..).collect();
    said.into_iter().for_each(|report| target.injector.send(ringway_core::node::message::Message::Sync(report)));
    target.world.stir();
    target.pass_ns(30_000_000);
    target.setup.backend.as_ref().unwrap().says.lock().unwrap().clear();
    target.pass_ns(11_000_000_000);
    assert_eq!(pending.lock().unwrap().take().unwrap().unwrap_err().kind, ControlErrorKind::TimedOut);
    assert_eq!(target.asked(), ["start vm1@a from nothing", "go on", "cancel m-vm1@a"]);
    assert_eq!(listed(&mut target), [""; 0]);
    // Before the backend could say that nothing is left of it.
    target.setup.backend.as_ref().unwrap().says.lock().unwrap().clear();
    let mut target = target.kill();
    target.settle();
    assert_eq!(target.asked(), ["cancel m-vm1@a"], "a restart goes on until nothing is left");
    let mut target = target.kill();
    target.settle();
    assert_eq!(target.asked(), [""; 0]);
}

#[test]
fn h3_a_sealed_snapshot_exists_at_once_and_is_stored_on_after_a_restart() {
    let mut target = target(4, Backend { stuck: true, ..Backend::default() });
    let pending = ask(&mut target, "a", Patience::NoWait);
    assert!(is_answered(&pending), "it does not wait for the backend");
    assert_eq!(state(&mut target, "vm1@a"), SnapshotState::Sealed);
    assert_eq!(
        roll_back(&mut target, "vm1@a", false).unwrap_err().kind,
        ControlErrorKind::Busy,
        "it is just being synced"
    );
    target.setup.backend.as_mut().unwrap().stuck = false;
    let mut target = target.power_loss();
    target.settle();
    assert_eq!(state(&mut target, "vm1@a"), SnapshotState::Synced);
    roll_back(&mut target, "vm1@a", false).expect("nothing is being synced");
}

#[test]
fn a_backend_that_refuses_fails_who_waits_and_is_asked_again_for_what_exists() {
    let mut target = target(5, Backend { fails: true, ..Backend::default() });
    let waits = ask(&mut target, "a", Patience::Forever);
    let sealed = ask(&mut target, "b", Patience::NoWait);
    target.settle();
    let error = waits.lock().unwrap().take().unwrap().unwrap_err();
    assert!(error.kind == ControlErrorKind::Internal && error.message.contains("bucket"), "{error}");
    assert!(is_answered(&sealed));
    assert_eq!(listed(&mut target), ["vm1@b"]);
    let shown = snapshots(target.call(ControlRequest::SnapshotShow { name: "vm1@b".into() })).remove(0);
    assert!(shown.sync_error.is_some_and(|why| why.contains("bucket")));
    target.asked();
    target.pass_ns(31_000_000_000);
    assert_eq!(target.asked(), ["start vm1@b from nothing"]);
}

#[test]
fn a_rollback_behind_the_base_makes_the_next_sync_start_from_nothing() {
    let mut target = target(6, Backend::default());
    for name in ["a", "b"] {
        ask(&mut target, name, Patience::Forever);
        target.settle();
    }
    roll_back(&mut target, "vm1@a", false).unwrap();
    target.asked();
    ask(&mut target, "c", Patience::Forever);
    assert_eq!(target.asked(), ["start vm1@c from nothing"]);
}
