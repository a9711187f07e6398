//! Faults that are asked for.

use super::*;
use crate::io::ErrorKind;
use crate::sim::{Fault, Faults, OpKind};

#[test]
fn the_nth_operation_of_a_kind_fails_and_the_others_do_not() {
    let world = world(1);
    let mut io = world.io();
    for (kind, nth) in [(OpKind::Write, 2), (OpKind::Read, 1), (OpKind::Barrier, 3)] {
        world.inject(DISK, kind, nth, Fault::Error);
    }
    let mut results = Vec::new();
    for _ in 0..3 {
        write(&mut io, 1, 0, K4, 1);
        results.push(result(&mut io, 1).map_err(|error| error.kind).is_ok());
        read(&mut io, 1, 0, K4);
        results.push(result(&mut io, 1).map_err(|error| error.kind).is_ok());
        barrier(&mut io, 1);
        results.push(result(&mut io, 1).map_err(|error| error.kind).is_ok());
    }
    assert_eq!(results, [true, false, true, false, true, true, true, true, false]);
    let injected = world.injected();
    assert_eq!((injected.write_errors, injected.read_errors, injected.barrier_errors), (1, 1, 1));
}

#[test]
fn after_a_failed_barrier_the_next_one_succeeds_over_lost_writes() {
    let mut lost = 0;
    for seed in 0..200 {
        let world = world(seed);
        let mut io = world.io();
        written(&mut io, 0, K4, 1);
        world.inject(DISK, OpKind::Barrier, 1, Fault::Error);
        barrier(&mut io, 1);
        assert_eq!(result(&mut io, 1).unwrap_err().kind, ErrorKind::Device);
        written(&mut io, K4, K4, 2);
        flushed(&mut io);
        assert_eq!(content(&mut io, 0, K4), vec![1; 4096], "readers see it until then");
        world.power_loss();
        assert_eq!(world.bytes(DISK, K4, 1), [2], "what came later is covered");
        lost += u64::from(world.bytes(DISK, 0, 1) == [0]);
    }
    assert!(lost > 50, "lost {lost} times");
}

#[test]
fn a_failed_write_leaves_old_or_new_units() {
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let world = world(seed);
        let mut io = world.io();
        world.inject(DISK, OpKind::Write, 1, Fault::Error);
        write(&mut io, 1, 0, 2 * K4, 1);
        assert_eq!(result(&mut io, 1).unwrap_err().kind, ErrorKind::Device);
        let bytes = content(&mut io, 0, 2 * K4);
        assert!(bytes.chunks(4096).all(|unit| unit.iter().all(|&byte| byte == unit[0])));
        outcomes.insert((bytes[0], bytes[4096]));
    }
    assert_eq!(outcomes.into_iter().collect::<Vec<_>>(), [(0, 0), (0, 1), (1, 0), (1, 1)]);
}

#[test]
fn a_lost_write_is_acknowledged_and_never_there() {
    let world = world(1);
    let mut io = world.io();
    world.inject(DISK, OpKind::Write, 1, Fault::LostWrite);
    written(&mut io, 0, K4, 1);
    flushed(&mut io);
    assert_eq!(content(&mut io, 0, K4), vec![0; 4096]);
    assert_eq!(world.injected().lost_writes, 1);
}

#[test]
fn a_misdirected_write_lands_somewhere_else() {
    let world = world(1);
    let mut io = world.io();
    world.inject(DISK, OpKind::Write, 1, Fault::MisdirectedWrite);
    written(&mut io, 0, K4, 1);
    let bytes = world.bytes(DISK, 0, 1 << 20);
    assert_eq!(bytes.iter().filter(|&&byte| byte == 1).count(), 4096);
    assert_ne!(bytes[..4096], [1; 4096]);
}

#[test]
fn no_space_is_told_apart_and_nothing_is_written() {
    let world = world(1);
    let mut io = world.io();
    world.inject(DISK, OpKind::Write, 1, Fault::NoSpace);
    write(&mut io, 1, 0, K4, 1);
    assert_eq!(result(&mut io, 1).unwrap_err().kind, ErrorKind::NoSpace);
    assert_eq!(content(&mut io, 0, K4), vec![0; 4096]);
}

#[test]
fn beyond_the_end_a_read_is_short_and_a_write_has_no_space() {
    let mut io = world(1).io();
    read(&mut io, 1, (1 << 20) - K4, 2 * K4);
    assert_eq!(result(&mut io, 1).unwrap_err().kind, ErrorKind::UnexpectedEnd);
    write(&mut io, 2, 1 << 20, K4, 1);
    assert_eq!(result(&mut io, 2).unwrap_err().kind, ErrorKind::NoSpace);
}

#[test]
fn rot_changes_a_bit_in_every_sector_of_its_range_and_no_other() {
    let world = world(1);
    let mut io = world.io();
    written(&mut io, 0, 2 * K4, 0x55);
    flushed(&mut io);
    world.rot(DISK, 1024, 2048);
    world.power_loss();
    let bytes = world.bytes(DISK, 0, 2 * K4 as usize);
    let flips: Vec<u32> = bytes.chunks(512).map(flipped).collect();
    assert_eq!(flips, [0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(world.injected().rotten_sectors, 4);
}

/// Bits in which a sector differs from what was written.
fn flipped(sector: &[u8]) -> u32 {
    sector.iter().map(|byte| (byte ^ 0x55).count_ones()).sum()
}

#[test]
fn bad_sectors_fail_every_read_that_touches_them() {
    let world = world(1);
    let mut io = world.io();
    world.spoil(DISK, OpKind::Read, 2 * K4, 512);
    for (block, good) in [(1, true), (2, false), (2, false), (3, true)] {
        read(&mut io, 1, block * K4, K4);
        assert_eq!(result(&mut io, 1).is_ok(), good);
    }
    world.set_faults(DISK, Faults::default());
    read(&mut io, 1, 2 * K4, K4);
    assert!(result(&mut io, 1).is_ok());
}

#[test]
fn a_stalled_operation_takes_as_long_as_was_ordered() {
    let world = world(1);
    let mut io = world.io();
    world.inject(DISK, OpKind::Read, 1, Fault::Stall(7_000_000_000));
    let before = world.now();
    read(&mut io, 1, 0, K4);
    result(&mut io, 1).unwrap();
    assert!(world.now().since_ns(before) >= 7_000_000_000);
}

#[test]
fn faults_by_chance_come_as_often_as_was_said() {
    let faults = Faults { write_error: 100_000, no_space: 50_000, ..Faults::default() };
    let world = world_with(1, DiskConfig { faults, ..DiskConfig::default() });
    let mut io = world.io();
    for _ in 0..2_000 {
        write(&mut io, 1, 0, K4, 1);
        let _ = result(&mut io, 1);
    }
    let injected = world.injected();
    assert!((150..250).contains(&injected.write_errors), "{injected:?}");
    assert!((60..130).contains(&injected.no_space), "{injected:?}");
}
