//! What one shard does for a snapshot: when it redirects, what a cut holds, and when its seal comes.

mod rig;

use rig::{Rig, Setup};
use ringway_core::ids::{AttemptId, Epoch, VolumeId};
use ringway_core::request::{Command, Status};
use ringway_reactor::sim::{Fault, OpKind};

const WRITE: Command = Command::Write { fua: false };
const FIRST: AttemptId = AttemptId(1);
const SECOND: AttemptId = AttemptId(2);

/// No commit but those that are asked for.
fn lazy(seed: u64) -> Rig {
    let mut setup = Setup::new();
    setup.config.commit_interval_ns = u64::MAX / 2;
    Rig::new(seed, setup)
}

fn arm(rig: &mut Rig, attempt: AttemptId, volume: u32) {
    rig.shard.arm(attempt, VolumeId(volume));
    rig.turn();
    assert_eq!(rig.armed.pop(), Some(attempt));
}

/// Steps the word, and tells the shard.
fn cut(rig: &mut Rig, attempt: AttemptId) -> Epoch {
    let cut = Epoch(rig.word);
    rig.word += 1;
    rig.shard.seal(attempt, cut);
    cut
}

fn wait_for_seal(rig: &mut Rig, attempt: AttemptId) -> Option<String> {
    for _ in 0..100_000 {
        if let Some(at) = rig.sealed.iter().position(|(sealed, _)| *sealed == attempt) {
            return rig.sealed.remove(at).1;
        }
        rig.turn();
    }
    panic!("no seal of {attempt}");
}

fn submit(rig: &mut Rig, start: u64, value: u8) -> u64 {
    let buf = rig.buf(&[value; 4096]);
    rig.submit(1, WRITE, start, 4096, Some(buf))
}

#[test]
fn c2_between_arm_and_seal_every_step_of_the_word_is_a_cut_and_afterwards_only_the_one_that_was_named() {
    let mut rig = lazy(1);
    rig.write(1, 0, &[1; 4096], false);
    arm(&mut rig, FIRST, 1);
    // Another coordinator's step, before this one's: this shard cannot know whose it is.
    rig.word += 1;
    rig.write(1, 0, &[2; 4096], false);
    let at = cut(&mut rig, FIRST);
    rig.write(1, 0, &[3; 4096], false);
    assert_eq!(wait_for_seal(&mut rig, FIRST), None);
    assert_eq!(rig.read_at(1, 0, 4096, Some(at)).unwrap(), [2; 4096]);
    let used = rig.shard.stats().clusters_used;
    // Steps that are cuts of others redirect nothing any more.
    rig.word += 5;
    rig.write(1, 0, &[4; 4096], false);
    assert_eq!(rig.shard.stats().clusters_used, used);
    assert_eq!(rig.read(1, 0, 4096).unwrap(), [4; 4096]);
    assert_eq!(rig.read_at(1, 0, 4096, Some(at)).unwrap(), [2; 4096]);
}

#[test]
fn c2_a_volume_that_is_not_armed_is_not_cut_by_the_step_of_another() {
    let mut rig = lazy(2);
    rig.write(1, 0, &[1; 4096], false);
    rig.write(2, 0, &[1; 4096], false);
    arm(&mut rig, FIRST, 2);
    cut(&mut rig, FIRST);
    let used = rig.shard.stats().clusters_used;
    rig.write(1, 0, &[2; 4096], false);
    assert_eq!(rig.shard.stats().clusters_used, used, "overwritten in place");
    rig.write(2, 0, &[2; 4096], false);
    assert_eq!(rig.shard.stats().clusters_used, used + 1, "written elsewhere");
}

#[test]
fn c1_a_seal_waits_for_the_writes_that_run_and_for_no_other() {
    let mut rig = lazy(3);
    rig.write(1, 0, &[1; 4096], false);
    rig.write(1, 8192, &[1; 4096], false);
    assert_eq!(rig.flush(1), Status::Success);
    let disk = rig.disk(0);
    rig.world.inject(disk, OpKind::Write, 1, Fault::Stall(300_000_000));
    let running = submit(&mut rig, 0, 2);
    rig.turn();
    // Behind it on the same block, so not started: it belongs to whatever epoch it will run in.
    let waiting = submit(&mut rig, 0, 3);
    rig.turn();
    arm(&mut rig, FIRST, 1);
    let at = cut(&mut rig, FIRST);
    for _ in 0..3 {
        let other = submit(&mut rig, 8192, 9);
        assert_eq!(rig.wait(other).status, Status::Success, "no I/O is held for a cut");
    }
    assert!(rig.sealed.is_empty(), "a write that belongs to the cut is at the device");
    assert_eq!(rig.wait(running).status, Status::Success);
    assert_eq!(wait_for_seal(&mut rig, FIRST), None);
    assert_eq!(rig.wait(waiting).status, Status::Success);
    assert_eq!(rig.read_at(1, 0, 4096, Some(at)).unwrap(), [2; 4096]);
    assert_eq!(rig.read_at(1, 8192, 4096, Some(at)).unwrap(), [1; 4096]);
    assert_eq!(rig.read(1, 0, 4096).unwrap(), [3; 4096]);
}

#[test]
fn h2_what_is_sealed_is_durable_with_everything_the_cut_holds_flushed_or_not() {
    let mut rig = lazy(4);
    rig.write(1, 0, &[1; 4096], false);
    rig.flush(1);
    // In place, so without a record of its own, and nowhere but in the device's cache.
    rig.write(1, 0, &[2; 4096], false);
    // With a record, which nobody has asked to be durable.
    rig.write(1, 65536, &[3; 4096], false);
    arm(&mut rig, FIRST, 1);
    let at = cut(&mut rig, FIRST);
    assert_eq!(wait_for_seal(&mut rig, FIRST), None);
    rig.write(1, 0, &[4; 4096], false);
    // The catalog has it by now.
    rig.change_volume(1, |volume| volume.cuts.push(at));
    rig.shard.release(FIRST);
    let mut rig = rig.power_loss();
    assert_eq!(rig.read_at(1, 0, 4096, Some(at)).unwrap(), [2; 4096]);
    assert_eq!(rig.read_at(1, 65536, 4096, Some(at)).unwrap(), [3; 4096]);
    rig.drain_and_verify();
}

#[test]
fn c14_an_attempt_that_was_given_up_redirects_nothing_any_more_at_whatever_step_it_was() {
    for step in 0..3 {
        let mut rig = lazy(5 + step);
        rig.write(1, 0, &[1; 4096], false);
        arm(&mut rig, FIRST, 1);
        if step > 0 {
            cut(&mut rig, FIRST);
        }
        if step > 1 {
            assert_eq!(wait_for_seal(&mut rig, FIRST), None);
        }
        rig.shard.release(FIRST);
        rig.shard.release(FIRST);
        rig.word += 1;
        let used = rig.shard.stats().clusters_used;
        assert_eq!(rig.write(1, 0, &[2; 4096], false), Status::Success);
        assert_eq!(rig.shard.stats().clusters_used, used, "step {step}");
        assert_eq!(rig.read(1, 0, 4096).unwrap(), [2; 4096]);
        assert!(rig.sealed.is_empty());
        rig.drain_and_verify();
    }
}

#[test]
fn several_snapshots_of_a_volume_are_on_their_way_at_once_and_each_has_its_own() {
    let mut rig = lazy(9);
    rig.write(1, 0, &[1; 4096], false);
    arm(&mut rig, FIRST, 1);
    arm(&mut rig, SECOND, 1);
    let first = cut(&mut rig, FIRST);
    rig.write(1, 0, &[2; 4096], false);
    let second = cut(&mut rig, SECOND);
    rig.write(1, 0, &[3; 4096], false);
    assert_eq!(wait_for_seal(&mut rig, SECOND), None);
    assert_eq!(wait_for_seal(&mut rig, FIRST), None);
    // A change of the record by the catalog, which knows of none of the two, loses neither.
    rig.change_volume(1, |volume| volume.size *= 2);
    rig.write(1, 0, &[4; 4096], false);
    assert_eq!(rig.read_at(1, 0, 4096, Some(first)).unwrap(), [1; 4096]);
    assert_eq!(rig.read_at(1, 0, 4096, Some(second)).unwrap(), [2; 4096]);
    assert_eq!(rig.read(1, 0, 4096).unwrap(), [4; 4096]);
}

#[test]
fn a_shard_whose_barrier_has_failed_says_that_it_cannot_seal() {
    let mut rig = lazy(10);
    rig.write(1, 0, &[1; 4096], false);
    arm(&mut rig, FIRST, 1);
    let disk = rig.disk(0);
    rig.world.inject(disk, OpKind::Barrier, 1, Fault::Error);
    cut(&mut rig, FIRST);
    let why = wait_for_seal(&mut rig, FIRST).expect("it cannot be durable");
    assert!(why.contains("barrier"), "{why}");
    arm(&mut rig, SECOND, 1);
    cut(&mut rig, SECOND);
    assert!(wait_for_seal(&mut rig, SECOND).is_some());
}
