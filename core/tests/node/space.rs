//! A pool that fills, and empties again.

use ringway_core::control::ControlRequest;
use ringway_core::ids::VolumeId;
use ringway_core::request::{Command, Status};

use crate::rig::{MIB, Setup, Target};

const PIECE: usize = 256 << 10;

/// Writes a volume from its front until there is no space; bytes written.
fn fill(target: &mut Target, volume: VolumeId, size: u64) -> u64 {
    let mut offset = 0;
    while offset < size {
        match target.write(volume, offset, &vec![offset as u8 | 1; PIECE]) {
            Status::Success => offset += PIECE as u64,
            Status::CapacityExceeded => break,
            other => panic!("{other:?} at {offset}"),
        }
    }
    offset
}

#[test]
fn a_full_pool_says_so_keeps_reads_and_other_volumes_going_and_recovers_when_space_is_freed() {
    let mut target = Target::new(1, Setup::default());
    let other = target.create("other", 4 * MIB).id;
    assert_eq!(target.write(other, 0, &vec![9; PIECE]), Status::Success);
    let big = target.create("big", 1 << 30).id;
    let written = fill(&mut target, big, 1 << 30);
    let pool = target.pool();
    assert!(written > pool.size / 2 && written < pool.size, "{written} of {}", pool.size);
    target.pass_ns(2_000_000_000);
    assert!(target.metrics.pool.threshold_percent.get() >= 80, "{:?}", target.pool());

    assert_eq!(target.read(big, 0, 4096), Ok(vec![1; 4096]));
    assert_eq!(target.write(other, 0, &vec![10; PIECE]), Status::Success, "an overwrite needs no space");
    assert_eq!(target.read(other, 0, 4096), Ok(vec![10; 4096]));

    let id = target.request(big, Command::Deallocate, 0, (written / 2) as u32, None);
    assert_eq!(target.wait(id).status, Status::Success);
    assert_eq!(target.flush(big), Status::Success);
    let quarter = written / 4 / PIECE as u64 * PIECE as u64;
    assert_eq!(fill(&mut target, big, quarter), quarter, "what was freed can be written again");
    target.pass_ns(2_000_000_000);
    assert!(target.metrics.pool.threshold_percent.get() < 95);
}

#[test]
fn removing_a_volume_gives_its_space_back() {
    let mut target = Target::new(2, Setup::default());
    let big = target.create("big", 1 << 30).id;
    let written = fill(&mut target, big, 1 << 30);
    target.call(ControlRequest::VolumeRemove { name: "big".into(), force: false }).unwrap();
    target.pass_ns(5_000_000_000);
    assert_eq!(target.pool().used, 0);
    let next = target.create("next", 1 << 30).id;
    assert_ne!(next, big, "ids are never reused");
    assert_eq!(target.read(next, 0, 4096), Ok(vec![0; 4096]));
    let again = fill(&mut target, next, 1 << 30);
    assert!(again >= written / 10 * 9, "{again} after {written}");
}

#[test]
fn h7_a_volume_on_one_shard_can_have_the_whole_pool() {
    let mut target = Target::new(3, Setup::default());
    let pinned = target.create_on("pinned", 1 << 30, Some(vec![0])).id;
    let written = fill(&mut target, pinned, 1 << 30);
    let size = target.pool().size;
    assert!(written > size / 10 * 8, "{written} of {size} on one of three shards");
}
