//! A shard that has lost something, or has no room left: what is not to blame goes on, and nothing is given away twice (I2, I4).

mod rig;

use std::sync::Arc;

use rig::{MIB, Rig, Setup, volume};
use ringway_core::ids::VolumeId;
use ringway_core::request::{Command, Status};
use ringway_reactor::sim::{DiskId, Faults, OpKind};

/// Bytes of a volume that one map node covers.
const NODE: u64 = 8 * MIB;
/// Where the first cluster of the first slab is.
const SLABS: u64 = 4 * MIB;
const CLUSTER: u64 = 64 << 10;

fn rot_journal(rig: &Rig, block: u64) {
    rig.world.rot(rig.disk(0), rig.setup.journal().offset + block * 4096, 4096);
}

fn run(rig: &mut Rig, turns: usize, until: impl Fn(&Rig) -> bool) -> bool {
    for _ in 0..turns {
        if until(rig) {
            return true;
        }
        rig.turn();
    }
    until(rig)
}

#[test]
fn i3_a_volume_that_is_removed_between_the_steps_of_a_write_ends_that_write() {
    let mut rig = Rig::new(1, Setup::new());
    assert_eq!(rig.read(1, 3 * MIB, 4096).unwrap(), [0; 4096]);
    rig.write(2, 0, &[1; 4096], false);
    // Neither end of the write is a whole block, so each goes through a scratch buffer, one after the other.
    let buf = rig.buf(&[5; 7168]);
    let id = rig.submit(1, Command::Write { fua: false }, 512, 7168, Some(buf));
    rig.turn();
    assert!(!rig.shard.is_idle());
    rig.remove_volume(1);
    assert_eq!(rig.wait(id).status, Status::VolumeGone);
    assert!(run(&mut rig, 10_000, |rig| rig.erased == [VolumeId(1)]));
    rig.drain_and_verify();
}

#[test]
fn h6_a_cache_full_of_changed_nodes_makes_room_although_others_wait_in_the_overlay() {
    let mut setup = Setup::new();
    setup.volumes = vec![Arc::new(volume(1, 8 * NODE, 512))];
    setup.config.map_cache_bytes = 0;
    let mut rig = Rig::new(2, setup);
    for node in 0..4 {
        assert_eq!(rig.write(1, node * NODE, &[node as u8 + 1; 4096], false), Status::Success);
    }
    let mut rig = rig.kill();
    // The last ones fill the cache; a checkpoint comes to the first ones before them.
    for node in [3, 2, 1, 0] {
        assert_eq!(rig.read(1, node * NODE, 4096).unwrap(), [node as u8 + 1; 4096]);
    }
    rig.drain_and_verify();
}

#[test]
fn c13_a_kept_record_may_free_what_a_lost_record_had_mapped() {
    let mut rig = Rig::new(3, Setup::new());
    rig.write(1, 0, &[1; 4096], false);
    rig.flush(1);
    rig.write(2, 0, &[2; 4096], false);
    rig.flush(2);
    assert_eq!(rig.command(1, Command::Deallocate, 0, 65536), Status::Success);
    rot_journal(&rig, 0);
    let mut rig = rig.kill();
    assert_eq!(rig.faulted, [VolumeId(1)]);
    assert_eq!(rig.read(2, 0, 4096).unwrap(), [2; 4096]);
    assert_eq!(rig.write(2, 65536, &[3; 4096], true), Status::Success);
    rig.drain_and_verify();
}

#[test]
fn c13_removing_a_volume_that_lost_records_takes_nothing_from_another() {
    let mut setup = Setup::new();
    setup.slabs_per_disk = 1;
    let mut rig = Rig::new(4, setup);
    rig.write(1, 0, &[1; 4096], false);
    rig.flush(1);
    assert_eq!(rig.command(1, Command::Deallocate, 0, 65536), Status::Success);
    rig.flush(1);
    // The cluster that volume 1 gave up comes around to volume 2.
    for round in 0..2 {
        for cluster in 0..8 {
            assert_eq!(rig.write(2, cluster * CLUSTER, &[cluster as u8 + 10; 4096], false), Status::Success);
        }
        rig.flush(2);
        if round < 1 {
            assert_eq!(rig.command(2, Command::Deallocate, 0, 8 * 65536), Status::Success);
            rig.flush(2);
        }
    }
    rot_journal(&rig, 1);
    let mut rig = rig.kill();
    assert_eq!(rig.faulted, [VolumeId(1)]);
    rig.remove_volume(1);
    assert!(run(&mut rig, 20_000, |rig| rig.erased == [VolumeId(1)]), "{}", rig.shard.describe());
    for cluster in 8..30 {
        if rig.write(2, cluster * CLUSTER, &[99; 4096], false) != Status::Success {
            break;
        }
    }
    for cluster in 0..8 {
        assert_eq!(rig.read(2, cluster * CLUSTER, 4096).unwrap(), [cluster as u8 + 10; 4096], "cluster {cluster}");
    }
}

#[test]
fn c13_a_journal_that_lost_its_end_goes_on_where_it_is_cut() {
    let mut rig = Rig::new(5, Setup::new());
    rig.write(1, 0, &[1; 4096], false);
    rig.flush(1);
    rig.write(1, 65536, &[2; 4096], false);
    rig.flush(1);
    rig.write(1, 131072, &[3; 4096], false);
    // Durable, forgotten by the log of the process, and the last group: only that log shows that it is missing.
    rot_journal(&rig, 1);
    let mut rig = rig.kill();
    assert!(rig.faulted.contains(&VolumeId(1)) && rig.faulted.contains(&VolumeId(2)), "{:?}", rig.notes);
    rig.setup.volumes.push(Arc::new(volume(3, 4 * MIB, 512)));
    rig.shard.on_volume(Arc::clone(&rig.setup.volumes[2]));
    for cluster in 0..4 {
        assert_eq!(rig.write(3, cluster * CLUSTER, &[7; 4096], false), Status::Success);
    }
    let mut rig = rig.kill();
    for cluster in 0..4 {
        assert_eq!(rig.read(3, cluster * CLUSTER, 4096).unwrap(), [7; 4096]);
    }
}

#[test]
fn h18_a_pool_full_of_lone_clusters_still_has_room_for_its_map() {
    let mut setup = Setup::new();
    setup.volumes = vec![Arc::new(volume(1, 1000 * NODE, 512))];
    setup.journal_blocks = 700;
    setup.config.commit_interval_ns = 1_000_000_000;
    let mut rig = Rig::new(6, setup);
    let mut written = 0;
    while rig.write(1, written * NODE, &[written as u8; 8192], false) == Status::Success {
        written += 1;
    }
    assert!(written > 440, "{written} of 512 clusters");
    assert_eq!(rig.flush(1), Status::Success);
    // Dirties every node and frees nothing.
    for node in 0..written {
        assert_eq!(rig.command(1, Command::Deallocate, node * NODE, 4096), Status::Success, "node {node}");
    }
    assert_eq!(rig.flush(1), Status::Success);
    assert_eq!(rig.faults, Vec::<String>::new());
    rig.drain_and_verify();
    assert_eq!(rig.faults, Vec::<String>::new());
    let mut rig = rig.kill();
    assert_eq!(rig.read(1, 4096, 4096).unwrap(), [0; 4096]);
    assert_eq!(rig.read(1, 3 * NODE + 4096, 4096).unwrap(), [3; 4096]);
    for node in 0..written {
        assert_eq!(rig.command(1, Command::Deallocate, node * NODE, 65536), Status::Success);
    }
    rig.drain_and_verify();
    assert_eq!((rig.shard.stats().clusters_used, rig.faults.len()), (0, 0));
}

/// A node of volume 1 has a page that rots, and records in the journal that no page has.
fn with_a_rotten_page(seed: u64) -> Rig {
    let mut rig = Rig::new(seed, Setup::new());
    rig.write(1, 0, &[1; 4096], false);
    rig.drain_and_verify();
    let mut rig = rig.kill();
    rig.write(1, 65536, &[2; 4096], false);
    rig.flush(1);
    // Cluster 0 has the data, cluster 1 the pages, cluster 2 the image.
    rig.world.rot(rig.disk(0), SLABS + CLUSTER, 4096);
    rig.kill()
}

#[test]
fn i4_a_rotten_map_page_does_not_hold_the_journal_of_other_volumes() {
    let mut rig = with_a_rotten_page(7);
    assert_eq!(rig.read(1, 0, 4096), Err(Status::VolumeFaulted));
    assert_eq!(rig.faulted, [VolumeId(1)]);
    for round in 0..400u32 {
        assert_eq!(rig.write(2, 0, &[round as u8; 4096], true), Status::Success, "round {round}");
        assert_eq!(rig.command(2, Command::Deallocate, 0, 65536), Status::Success);
        assert_eq!(rig.flush(2), Status::Success);
    }
    // What the journal has forgotten by now must not be served from the page before it, should that come back.
    let mut rig = rig.kill();
    assert_eq!(rig.read(1, 65536, 4096), Err(Status::VolumeFaulted));
}

#[test]
fn i4_a_volume_with_a_rotten_map_page_can_be_removed() {
    let mut rig = with_a_rotten_page(8);
    rig.remove_volume(1);
    assert!(run(&mut rig, 5_000, |rig| rig.erased == [VolumeId(1)]), "{}", rig.shard.describe());
    let before = rig.shard.stats().device_reads;
    run(&mut rig, 100, |_| false);
    assert_eq!(rig.shard.stats().device_reads, before, "nothing is left to be read");
    assert_eq!(rig.write(2, 0, &[4; 4096], true), Status::Success);
    let mut rig = rig.kill();
    assert_eq!(rig.read(2, 0, 4096).unwrap(), [4; 4096]);
}

/// Checkpoints 2 and 3, with pages and chunks of their own, and a process that has just opened and made none itself.
fn two_checkpoints(seed: u64) -> Rig {
    let mut setup = Setup::new();
    setup.config.commit_interval_ns = u64::MAX / 2;
    setup.slabs_per_disk = 4;
    let mut rig = Rig::new(seed, setup);
    for round in 0..2 {
        for cluster in 0..4 {
            let status =
                rig.write(1, cluster * CLUSTER + round * 8192, &[(10 * round + cluster) as u8 + 1; 8192], false);
            assert_eq!(status, Status::Success);
        }
        rig.drain_and_verify();
        rig = rig.kill();
    }
    assert_eq!(rig.setup.checkpoints(&rig.world)[0].generation, 3);
    rig
}

/// Writes another volume, so that what is free at the front of the shard's slabs is used again, and all of it that was freed.
fn fill_with_others(rig: &mut Rig) -> u64 {
    for cluster in 0..36 {
        assert_eq!(rig.write(2, cluster * CLUSTER, &[cluster as u8 | 128; 4096], false), Status::Success);
    }
    assert_eq!(rig.shard.stats().checkpoints, 0, "no checkpoint was made meanwhile");
    36
}

fn all_is_there(rig: &mut Rig, others: u64) {
    assert_eq!(rig.faulted, [], "{:?}", rig.notes);
    for round in 0..2 {
        for cluster in 0..4 {
            let read = rig.read(1, cluster * CLUSTER + round * 8192, 8192).unwrap();
            assert_eq!(read, [(10 * round + cluster) as u8 + 1; 8192]);
        }
    }
    for cluster in 0..others {
        assert_eq!(rig.read(2, cluster * CLUSTER, 4096).unwrap(), [cluster as u8 | 128; 4096], "cluster {cluster}");
    }
    rig.drain_and_verify();
}

#[test]
fn h14_what_the_checkpoint_before_names_is_held_from_a_reopen_to_the_first_new_checkpoint() {
    for flushed in [false, true] {
        let mut rig = two_checkpoints(20);
        let others = fill_with_others(&mut rig);
        if flushed {
            assert_eq!(rig.flush(2), Status::Success);
        }
        let mut rig = rig.kill_and(|world, setup| assert_eq!(setup.rot_header_after(1, world), Some(2)));
        all_is_there(&mut rig, others);
    }
}

#[test]
fn h14_a_checkpoint_that_was_passed_over_is_never_taken_again() {
    let rig = two_checkpoints(21);
    let chunk = rig.setup.checkpoints(&rig.world)[0].chunks[0];
    // For one boot the newest image cannot be read.
    let mut rig = rig.kill_and(|world, _| {
        world.spoil(DiskId(0), OpKind::Read, chunk.place.offset(), u64::from(chunk.bytes));
    });
    assert!(rig.notes.iter().any(|note| note.contains("checkpoint 3")), "{:?}", rig.notes);
    assert_eq!(rig.setup.checkpoints(&rig.world)[0].generation, 2);
    let others = fill_with_others(&mut rig);
    let mut rig = rig.kill_and(|world, _| world.set_faults(DiskId(0), Faults::default()));
    all_is_there(&mut rig, others);
}

#[test]
fn h14_a_shard_goes_on_when_the_checkpoint_before_cannot_be_read() {
    let rig = two_checkpoints(22);
    let chunk = rig.setup.checkpoints(&rig.world)[1].chunks[0];
    let mut rig = rig.kill_and(|world, _| world.rot(DiskId(0), chunk.place.offset(), 4096));
    assert!(rig.notes.iter().any(|note| note.contains("to fall back to")), "{:?}", rig.notes);
    let others = fill_with_others(&mut rig);
    let mut rig = rig.kill();
    all_is_there(&mut rig, others);
}

#[test]
fn h14_a_fall_back_that_would_lose_records_leaves_the_shard_closed_and_untouched() {
    let rig = two_checkpoints(23);
    let (world, setup) = (rig.world.clone(), rig.setup.clone());
    let headers = setup.checkpoints(&world);
    let chunk = headers[0].chunks[0];
    let (from, to) = (headers[1].start.block, headers[0].start.block);
    assert!(from < to, "the newest covers what the one before replays");
    world.kill();
    drop(rig);
    world.quiesce();
    let journal = setup.journal().offset + u64::from(from) * 4096;
    world.spoil(DiskId(0), OpKind::Read, chunk.place.offset(), u64::from(chunk.bytes));
    let whole = world.bytes(DiskId(0), 0, SLABS as usize);
    world.rot(DiskId(0), journal, u64::from(to - from) * 4096);
    let rotten = world.bytes(DiskId(0), 0, SLABS as usize);
    assert_ne!(whole, rotten);
    let refused = Rig::try_open(world.clone(), setup.clone()).err().expect("it may not be opened");
    assert!(refused.contains("none of its checkpoints") && refused.contains("journal is gone"), "{refused}");
    assert_eq!(world.bytes(DiskId(0), 0, SLABS as usize), rotten);
    // The image reads again, and what it covers needs no journal.
    world.kill();
    world.set_faults(DiskId(0), Faults::default());
    let mut rig = Rig::open(world, setup);
    all_is_there(&mut rig, 0);
}
