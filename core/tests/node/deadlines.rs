//! Deadlines that are missed wherever a snapshot can stall: each is answered within a millisecond, and nothing is left (C14).

use std::time::Duration;

use ringway_core::control::{ControlErrorKind, ControlRequest};
use ringway_core::request::Status;
use ringway_core::snapshot::asked::Patience;
use ringway_reactor::sim::{DiskId, Fault, OpKind};

use crate::rig::{self, Backend, MIB, Setup, Target};
use crate::snapshots::{creation, listed, snapshot};

const DEADLINE_MS: u64 = 20;
const EACH: usize = 250;

/// Where it stalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stall {
    /// The other reactor does nothing.
    Arm,
    /// A barrier hangs.
    Seal,
    /// The backend never answers.
    Sync,
    /// Another record is being written.
    Commit,
}

fn missed(target: &mut Target, stall: Stall, n: usize) -> u64 {
    match stall {
        Stall::Arm | Stall::Sync => {}
        Stall::Seal => target.world.inject(DiskId(0), OpKind::Barrier, 1, Fault::Stall(40_000_000)),
        Stall::Commit => {
            // The catalog is busy with somebody else's change until after the deadline.
            target.world.inject(DiskId(0), OpKind::Write, 1, Fault::Stall(60_000_000));
            let name = format!("other{n}");
            let other = target.ask(ControlRequest::VolumeCreate(rig::creation(&name, MIB, None)));
            target.run(4, |_| other.lock().unwrap().is_some());
        }
    }
    let patience = Patience::Within(Duration::from_millis(DEADLINE_MS));
    let began = target.world.now();
    let pending = target.ask(creation(&["vm1"], "s", patience));
    let world = target.world.clone();
    if stall == Stall::Arm {
        // Reactor 0 alone gets turns.
        let (first, _) = target.reactors.split_at_mut(1);
        let ended = world.run(
            first,
            1_000_000,
            |reactor| {
                reactor.turn(true);
            },
            |_| pending.lock().unwrap().is_some(),
        );
        assert_eq!(ended, ringway_reactor::sim::Ended::Done);
    } else {
        target.run_until(|_| pending.lock().unwrap().is_some());
    }
    let answer = pending.lock().unwrap().take().expect("just seen");
    let error = answer.expect_err("the deadline was missed");
    assert_eq!(error.kind, ControlErrorKind::TimedOut, "{stall:?} {n}: {error}");
    let took = world.now().since_ns(began);
    assert!(took >= DEADLINE_MS * 1_000_000, "{stall:?} {n}: after {took} ns, too early");
    took - DEADLINE_MS * 1_000_000
}

fn each_is_answered_in_time_and_leaves_nothing(stall: Stall) {
    let setup = Setup {
        backend: (stall == Stall::Sync).then(|| Backend { stuck: true, ..Backend::default() }),
        ..Setup::default()
    };
    let mut target = Target::new(stall as u64 + 1, setup);
    let volume = target.create("vm1", 8 * MIB).id;
    let mut late: Vec<u64> = Vec::new();
    for n in 0..EACH {
        // So that there is something to make durable.
        assert_eq!(target.write(volume, 4096 * (n as u64 % 16), &[n as u8; 4096]), Status::Success);
        late.push(missed(&mut target, stall, n));
        assert_eq!(listed(&mut target), [""; 0], "{stall:?} {n}");
        target.pass_ns(100_000_000);
    }
    late.sort_unstable();
    assert!(late[EACH * 99 / 100] < 1_000_000, "{stall:?}: {} ns late at p99", late[EACH * 99 / 100]);
    if stall != Stall::Sync {
        snapshot(&mut target, "vm1", "s");
        assert_eq!(listed(&mut target), ["vm1@s"]);
    }
    let mut target = target.power_loss();
    assert_eq!(listed(&mut target).len(), usize::from(stall != Stall::Sync));
    // Not a cluster more than what the volume and its one snapshot have.
    target.pass_ns(2_000_000_000);
    let allocated = target.volumes().iter().find(|info| info.name == "vm1").unwrap().allocated;
    assert!(allocated <= 2 * 65536, "{stall:?}: {allocated} bytes");
}

#[test]
fn c14_deadlines_missed_at_arming_are_answered_in_time_and_leave_nothing() {
    each_is_answered_in_time_and_leaves_nothing(Stall::Arm);
}

#[test]
fn c14_deadlines_missed_at_sealing_are_answered_in_time_and_leave_nothing() {
    each_is_answered_in_time_and_leaves_nothing(Stall::Seal);
}

#[test]
fn c14_deadlines_missed_at_syncing_are_answered_in_time_and_leave_nothing() {
    each_is_answered_in_time_and_leaves_nothing(Stall::Sync);
}

#[test]
fn c14_deadlines_missed_before_the_record_are_answered_in_time_and_leave_nothing() {
    each_is_answered_in_time_and_leaves_nothing(Stall::Commit);
}

#[test]
fn c14_a_stall_inside_the_record_ends_in_the_truth_however_late() {
    for nth in 1..12 {
        let mut target = Target::new(70 + nth, Setup::default());
        let volume = target.create("vm1", 8 * MIB).id;
        target.write(volume, 0, &[1; 4096]);
        target.world.inject(DiskId(0), OpKind::Write, nth, Fault::Stall(500_000_000));
        let pending = target.ask(creation(&["vm1"], "s", Patience::Within(Duration::from_millis(100))));
        target.run_until(|_| pending.lock().unwrap().is_some());
        let told = pending.lock().unwrap().take().unwrap();
        assert_eq!(told.is_ok(), listed(&mut target) == ["vm1@s"], "{nth}: {told:?}");
        let mut target = target.power_loss();
        assert_eq!(told.is_ok(), listed(&mut target) == ["vm1@s"], "{nth} after power loss: {told:?}");
    }
}
