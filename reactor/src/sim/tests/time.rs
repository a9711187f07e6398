//! The clock, sleeping and waking.

use super::*;
use crate::sim::Ended;

#[test]
fn a_sleep_without_events_ends_at_its_deadline_at_once() {
    let mut io = world(1).io();
    let deadline = io.now().plus_ns(3_600_000_000_000);
    io.poll(Wait::Until(deadline), &mut Vec::new());
    assert!(io.now() >= deadline && io.now().since_ns(deadline) < 1_000_000);
}

#[test]
fn now_stands_still_between_polls() {
    let mut io = world(1).io();
    let before = io.now();
    write(&mut io, 1, 0, K4, 1);
    io.world().advance_ns(1_000_000);
    assert_eq!(io.now(), before);
    assert!(io.now_precise().since_ns(before) >= 1_000_000);
}

#[test]
fn a_wake_up_ends_the_next_sleep_and_only_that() {
    let mut io = world(1).io();
    let begun = io.now();
    io.waker().wake();
    io.poll(Wait::Until(begun.plus_ns(1_000_000_000)), &mut Vec::new());
    assert!(io.now().since_ns(begun) < 1_000_000, "woken");
    io.poll(Wait::Until(begun.plus_ns(1_000_000_000)), &mut Vec::new());
    assert!(io.now().since_ns(begun) >= 1_000_000_000, "not woken");
}

#[test]
fn a_sleeper_does_not_skip_time_while_another_reactor_has_work() {
    let world = world(1);
    let (mut sleeper, mut worker) = (world.io(), world.io());
    worker.poll(Wait::No, &mut Vec::new());
    let begun = world.now();
    sleeper.poll(Wait::Until(begun.plus_ns(1_000_000_000)), &mut Vec::new());
    assert!(world.now().since_ns(begun) < 100_000, "the worker gets its turn first");
    worker.poll(Wait::Until(begun.plus_ns(2_000_000)), &mut Vec::new());
    assert_eq!(world.now().since_ns(begun) / 1_000_000, 2, "now all sleep, until the first deadline");
}

#[test]
fn a_reactor_without_turns_is_not_waited_for() {
    let world = world(1);
    let _idle = world.io();
    let mut io = world.io();
    written(&mut io, 0, K4, 1);
    flushed(&mut io);
}

#[test]
fn reactors_take_turns_until_all_is_done() {
    struct Writer {
        io: SimIo,
        left: u64,
    }
    let world = world(5);
    let mut writers: Vec<Writer> = (0..3).map(|_| Writer { io: world.io(), left: 20 }).collect();
    let turn = |writer: &mut Writer| {
        if writer.io.in_flight() == 0 && writer.left > 0 {
            writer.left -= 1;
            write(&mut writer.io, 1, writer.left * K4, K4, 1);
        }
        let until = writer.io.now().plus_ns(10_000_000);
        writer.io.poll(Wait::Until(until), &mut Vec::new());
    };
    let done = |writers: &mut [Writer]| writers.iter().all(|writer| writer.left == 0 && writer.io.in_flight() == 0);
    assert_eq!(world.run(&mut writers, 100_000, turn, done), Ended::Done);
    assert!(world.now().0 < 1_000_000_000, "nobody slept through another's work");
    assert_eq!(world.run(&mut writers, 10, |_| (), |_| false), Ended::OutOfTurns);
}

#[test]
#[should_panic(expected = "hang: 1000 polls in a row")]
fn a_hang_is_found() {
    let world = World::new(1, WorldConfig { hang_polls: 1000, ..WorldConfig::default() });
    let mut io = world.io();
    loop {
        io.poll(Wait::Until(Instant::NEVER), &mut Vec::new());
    }
}
