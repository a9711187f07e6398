//! Kill, power loss, and stopping at a chosen operation.

use super::*;
use crate::sim::{CrashPoint, Crashed, Fault, OpKind};

#[test]
fn a_kill_keeps_every_write_that_has_finished() {
    seeds(100, |seed| {
        let world = world(seed);
        let mut io = world.io();
        written(&mut io, 0, 8 * K4, 1);
        world.kill();
        world.quiesce();
        let mut next = world.io();
        assert_eq!(content(&mut next, 0, 8 * K4), vec![1; 8 * K4 as usize]);
    });
}

#[test]
fn a_write_of_a_killed_process_may_land_under_the_next_one_unless_it_waits() {
    let (mut strays, mut vanished) = (0, 0);
    for seed in 0..300 {
        let world = world(seed);
        let mut io = world.io();
        write(&mut io, 1, 0, K4, 1);
        world.kill();
        let waits = seed % 2 == 0;
        if waits {
            world.quiesce();
            assert_eq!(world.stray_writes(), 0);
        }
        let mut next = world.io();
        written(&mut next, 0, K4, 2);
        vanished += u64::from(world.stray_writes() == 0 && !waits);
        world.advance_ns(1_000_000_000);
        let byte = content(&mut next, 0, K4)[0];
        assert!(byte == 2 || !waits, "seed {seed}: nothing of the dead lands once it was waited for");
        strays += u64::from(byte == 1);
    }
    assert!(strays > 50, "landed late {strays} times");
    assert!(vanished > 10, "never landed {vanished} times");
}

#[test]
fn a_write_of_a_killed_process_is_still_lost_by_a_later_power_loss() {
    let mut lost = 0;
    for seed in 0..100 {
        let world = world(seed);
        let mut io = world.io();
        written(&mut io, 0, K4, 1);
        world.kill();
        world.quiesce();
        let _next = world.io();
        world.power_loss();
        lost += u64::from(world.bytes(DISK, 0, 1) == [0]);
    }
    assert!(lost > 20, "lost {lost} times");
}

#[test]
fn the_next_process_flushes_what_a_killed_one_had_finished() {
    seeds(100, |seed| {
        let world = world(seed);
        let mut io = world.io();
        for block in 0..4 {
            write(&mut io, block, block * K4, K4, 1);
        }
        world.kill();
        world.quiesce();
        let landed = world.bytes(DISK, 0, 4 * K4 as usize);
        let mut next = world.io();
        flushed(&mut next);
        world.power_loss();
        assert_eq!(world.bytes(DISK, 0, 4 * K4 as usize), landed);
    });
}

#[test]
fn a_dead_reactor_hears_nothing_and_its_buffers_come_back() {
    let world = world(1);
    let mut io = world.io();
    let before = io.buffers().in_use();
    write(&mut io, 1, 0, K4, 1);
    read(&mut io, 2, 0, K4);
    world.power_loss();
    let mut out = Vec::new();
    io.poll(Wait::No, &mut out);
    write(&mut io, 3, 0, K4, 1);
    io.poll(Wait::No, &mut out);
    assert!(out.is_empty());
    assert_eq!((io.in_flight(), io.buffers().in_use()), (0, before));
}

/// Writes and flushes four blocks; returns what was promised to be persistent.
fn four_blocks(io: &mut SimIo, promised: &mut u8) {
    for block in 1..=4u8 {
        written(io, u64::from(block) * K4, K4, block);
        flushed(io);
        *promised = block;
    }
}

#[test]
fn a_run_can_be_crashed_at_each_of_its_operations() {
    let count = {
        let world = world(9);
        four_blocks(&mut world.io(), &mut 0);
        world.mutations()
    };
    assert_eq!(count, (8, 8));
    for n in 1..=8 {
        for point in [CrashPoint::Submitted(n), CrashPoint::Completed(n)] {
            let world = world(9);
            let mut io = world.io();
            world.crash_after(point);
            let mut promised = 0;
            assert_eq!(world.until_crash(|| four_blocks(&mut io, &mut promised)), Err(Crashed));
            assert!(world.crashed());
            assert_eq!(u64::from(promised), (n - 1) / 2, "at {point:?}");
            world.power_loss();
            assert!(!world.crashed());
            for block in 1..=promised {
                assert_eq!(world.bytes(DISK, u64::from(block) * K4, 1), [block]);
            }
            if point == CrashPoint::Completed(n) && n % 2 == 0 {
                let block = n / 2;
                assert_eq!(world.bytes(DISK, block * K4, 1), [block as u8], "the barrier had finished, unheard");
            }
            let fresh = world.io();
            assert_eq!(fresh.in_flight(), 0);
        }
    }
}

#[test]
fn a_crash_at_an_instant_stops_the_target_then() {
    let world = world(1);
    let mut io = world.io();
    let at = world.now().plus_ns(2_000_000);
    world.crash_after(CrashPoint::At(at));
    let ended = world.until_crash(|| {
        loop {
            written(&mut io, 0, K4, 1);
        }
    });
    assert_eq!(ended, Err(Crashed));
    assert!(world.now() >= at && world.now().since_ns(at) < 1_000_000);
}

#[test]
fn a_panic_that_is_no_crash_goes_through() {
    let world = world(1);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.until_crash(|| panic!("a bug"))));
    assert_eq!(outcome.unwrap_err().downcast_ref(), Some(&"a bug"));
}

#[test]
fn a_reactor_that_ends_in_good_order_has_landed_what_it_wrote() {
    seeds(50, |seed| {
        let world = world(seed);
        let mut io = world.io();
        world.inject(DISK, OpKind::Write, 2, Fault::Stall(1_000_000_000));
        write(&mut io, 1, 0, K4, 1);
        write(&mut io, 2, K4, K4, 2);
        drop(io);
        assert_eq!((world.bytes(DISK, 0, 1)[0], world.bytes(DISK, K4, 1)[0]), (1, 2));
    });
}

#[test]
fn a_host_outside_lives_through_the_crash() {
    let world = world(1);
    let _io = world.io();
    let mut host = world.outside();
    assert!(host.files().is_empty());
    world.crash_after(CrashPoint::Submitted(0));
    assert!(world.crashed());
    let before = world.now();
    let mut out = Vec::new();
    host.poll(Wait::Until(before.plus_ns(5_000_000)), &mut out);
    assert!(host.now().since_ns(before) >= 5_000_000);
}

#[test]
fn a_log_outlives_the_process_and_not_the_machine() {
    let world = world(1);
    let mut log = world.log(0, 100);
    log.append(1, b"one").unwrap();
    log.append(2, b"two").unwrap();
    log.append(3, b"three").unwrap();
    assert!(log.append(4, b"a record that does not fit").is_err());
    log.truncate(1);
    log.append(4, b"four").unwrap();
    world.kill();
    log.append(5, b"from the grave").unwrap();
    log.truncate(9);
    let next = world.log(0, 100);
    let expected: Vec<(u64, Vec<u8>)> = vec![(2, b"two".into()), (3, b"three".into()), (4, b"four".into())];
    assert_eq!(next.replay(), expected);
    assert!(world.log(1, 100).replay().is_empty(), "each number is a log of its own");
    world.power_loss();
    assert!(world.log(0, 100).replay().is_empty());
}

#[test]
fn what_a_process_logs_after_its_crash_is_not_there() {
    let world = world(1);
    let mut log = world.log(0, 100);
    log.append(1, b"before").unwrap();
    world.crash_after(CrashPoint::Submitted(0));
    log.append(2, b"after").unwrap();
    world.kill();
    assert_eq!(world.log(0, 100).replay(), vec![(1, b"before".to_vec())]);
}
