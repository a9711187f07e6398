//! What the oracle remembers over the end of its process, and how it judges what a block holds.

use super::*;

fn identity(fresh: bool) -> Identity {
    Identity { volume: Uuid::from_u128(1), writer: 7, start: 1 << 20, unit_bytes: 4096, units: 8, fresh }
}

fn write(sequence: u64) -> Content {
    Content::Whole(Stamp { volume: Uuid::from_u128(1), offset: (1 << 20) + 4096, sequence, writer: 7 })
}

fn kind(oracle: &mut Oracle, content: Content, promise: Promise) -> Option<FaultKind> {
    oracle.judge(1, &content, promise).err().map(|fault| fault.kind)
}

fn acknowledged_write(oracle: &mut Oracle) -> u64 {
    let sequence = oracle.issue(1, 1, false);
    oracle.acknowledge(1, 1, sequence, false);
    sequence
}

fn flush(oracle: &mut Oracle) {
    let covered = oracle.begin_flush();
    oracle.end_flush(covered);
}

use FaultKind::{Garbage, Lost, Misdirected, Stale, Torn, Unasked};
use Promise::{Acknowledged, Flushed};

#[test]
fn a_write_in_flight_may_be_there_or_not() {
    let mut oracle = Oracle::in_memory(identity(true));
    let first = acknowledged_write(&mut oracle);
    let second = oracle.issue(1, 1, false);
    for promise in [Acknowledged, Flushed] {
        assert_eq!(kind(&mut oracle, write(first), promise), None);
        assert_eq!(kind(&mut oracle, write(second), promise), None);
        assert_eq!(kind(&mut oracle, write(second + 1), promise), Some(Unasked));
    }
}

#[test]
fn an_acknowledged_write_outlives_a_kill_and_a_flushed_one_outlives_power_loss() {
    let mut oracle = Oracle::in_memory(identity(true));
    let first = acknowledged_write(&mut oracle);
    assert_eq!(kind(&mut oracle, Content::Zero, Acknowledged), Some(Stale));
    assert_eq!(kind(&mut oracle, Content::Zero, Flushed), None);
    flush(&mut oracle);
    let second = acknowledged_write(&mut oracle);
    assert_eq!(kind(&mut oracle, write(first), Acknowledged), Some(Stale));
    assert_eq!(kind(&mut oracle, write(first), Flushed), None);
    assert_eq!(kind(&mut oracle, Content::Zero, Flushed), Some(Lost));
    flush(&mut oracle);
    assert_eq!(kind(&mut oracle, write(first), Flushed), Some(Lost));
    assert_eq!(kind(&mut oracle, write(first), Acknowledged), Some(Lost));
    assert_eq!(kind(&mut oracle, write(second), Flushed), None);
}

#[test]
fn a_flush_covers_what_was_acknowledged_before_it_was_issued_and_nothing_later() {
    let mut oracle = Oracle::in_memory(identity(true));
    let first = acknowledged_write(&mut oracle);
    let covered = oracle.begin_flush();
    let second = acknowledged_write(&mut oracle);
    oracle.end_flush(covered);
    assert_eq!(kind(&mut oracle, write(first), Flushed), None);
    assert_eq!(kind(&mut oracle, write(second), Flushed), None);
    assert_eq!(kind(&mut oracle, Content::Zero, Flushed), Some(Lost));
}

#[test]
fn a_failed_flush_promises_nothing_and_the_next_one_covers_its_part() {
    let mut oracle = Oracle::in_memory(identity(true));
    acknowledged_write(&mut oracle);
    let covered = oracle.begin_flush();
    oracle.abandon_flush(covered);
    assert_eq!(kind(&mut oracle, Content::Zero, Flushed), None);
    flush(&mut oracle);
    assert_eq!(kind(&mut oracle, Content::Zero, Flushed), Some(Lost));
}

#[test]
fn a_forced_write_needs_no_flush() {
    let mut oracle = Oracle::in_memory(identity(true));
    let sequence = oracle.issue(1, 1, false);
    oracle.acknowledge(1, 1, sequence, true);
    assert_eq!(kind(&mut oracle, Content::Zero, Flushed), Some(Lost));
}

#[test]
fn zeros_are_a_write_like_any_other() {
    let mut oracle = Oracle::in_memory(identity(true));
    let first = acknowledged_write(&mut oracle);
    flush(&mut oracle);
    let zeros = oracle.issue(1, 1, true);
    assert_eq!(kind(&mut oracle, Content::Zero, Acknowledged), None);
    assert_eq!(kind(&mut oracle, write(first), Acknowledged), None);
    oracle.acknowledge(1, 1, zeros, false);
    assert_eq!(kind(&mut oracle, write(first), Acknowledged), Some(Stale));
    assert_eq!(kind(&mut oracle, write(first), Flushed), None);
    flush(&mut oracle);
    assert_eq!(kind(&mut oracle, write(first), Flushed), Some(Lost));
    let third = acknowledged_write(&mut oracle);
    assert_eq!(kind(&mut oracle, Content::Zero, Flushed), None);
    flush(&mut oracle);
    assert_eq!(kind(&mut oracle, Content::Zero, Flushed), Some(Lost));
    assert_eq!(kind(&mut oracle, write(third), Flushed), None);
}

#[test]
fn a_write_whose_end_is_unknown_stays_possible_until_a_newer_one_is_acknowledged() {
    let mut oracle = Oracle::in_memory(identity(true));
    let first = acknowledged_write(&mut oracle);
    let unknown = oracle.issue(1, 1, false);
    let newer = oracle.issue(1, 1, false);
    for sequence in [first, unknown, newer] {
        assert_eq!(kind(&mut oracle, write(sequence), Acknowledged), None, "{sequence}");
    }
    oracle.acknowledge(1, 1, newer, false);
    assert_eq!(kind(&mut oracle, write(unknown), Acknowledged), Some(Stale));
}

#[test]
fn other_blocks_torn_blocks_and_garbage_are_told_apart() {
    let mut oracle = Oracle::in_memory(identity(true));
    let stamp = Stamp { volume: Uuid::from_u128(1), offset: (1 << 20) + 4096, sequence: 1, writer: 7 };
    let elsewhere = Content::Whole(Stamp { offset: 1 << 20, ..stamp });
    let other_volume = Content::Whole(Stamp { volume: Uuid::from_u128(2), ..stamp });
    let earlier_run = Content::Whole(Stamp { writer: 6, ..stamp });
    assert_eq!(kind(&mut oracle, elsewhere, Flushed), Some(Misdirected));
    assert_eq!(kind(&mut oracle, other_volume, Flushed), Some(Misdirected));
    assert_eq!(kind(&mut oracle, Content::Torn { first: 1, other: 0 }, Flushed), Some(Torn));
    assert_eq!(kind(&mut oracle, Content::Garbage, Flushed), Some(Garbage));
    assert_eq!(kind(&mut oracle, earlier_run, Acknowledged), Some(Unasked));
    acknowledged_write(&mut oracle);
    assert_eq!(kind(&mut oracle, earlier_run, Acknowledged), Some(Stale));
}

#[test]
fn what_lay_in_a_used_volume_before_the_first_write_is_not_judged() {
    let mut oracle = Oracle::in_memory(identity(false));
    let stamp = Stamp { volume: Uuid::from_u128(1), offset: (1 << 20) + 4096, sequence: 1, writer: 6 };
    for content in [Content::Garbage, Content::Zero, Content::Whole(stamp)] {
        assert_eq!(kind(&mut oracle, content, Acknowledged), None);
    }
    oracle.issue(1, 1, false);
    assert_eq!(kind(&mut oracle, Content::Whole(stamp), Acknowledged), None);
}

#[test]
fn an_oracle_file_opened_again_knows_what_the_killed_run_was_promised() {
    let path = std::env::temp_dir().join(format!("ringway-oracle-{}", std::process::id()));
    let mut oracle = Oracle::create(&path, identity(true)).unwrap();
    let first = acknowledged_write(&mut oracle);
    flush(&mut oracle);
    let second = acknowledged_write(&mut oracle);
    let in_flight = oracle.issue(2, 1, false);
    drop(oracle);
    let mut oracle = Oracle::open(&path).unwrap();
    assert_eq!(*oracle.identity(), identity(true));
    assert_eq!(kind(&mut oracle, write(first), Acknowledged), Some(Stale));
    assert_eq!(kind(&mut oracle, write(second), Acknowledged), None);
    assert!(oracle.touched(2) && !oracle.touched(3));
    assert!(oracle.issue(3, 1, false) > in_flight);
    flush(&mut oracle);
    assert_eq!(kind(&mut oracle, write(first), Flushed), Some(Lost));
    std::fs::write(&path, [1; 8192]).unwrap();
    assert!(Oracle::open(&path).err().unwrap().to_string().contains("not an oracle file"));
    std::fs::remove_file(&path).unwrap();
}
