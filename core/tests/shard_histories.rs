//! Histories in which an engine of this shape loses data or breaks a promise, as far as one shard can meet them.

mod rig;

use std::sync::Arc;

use rig::{MIB, Rig, Setup, volume};
use ringway_core::ids::VolumeId;
use ringway_core::request::{Command, Status};
use ringway_reactor::sim::{CrashPoint, Fault, OpKind};

const CLUSTER: u64 = 64 << 10;
const ZEROES: Command = Command::WriteZeroes { fua: false, deallocate: true };

/// No commit but those that are asked for.
fn lazy() -> Setup {
    let mut setup = Setup::new();
    setup.config.commit_interval_ns = u64::MAX / 2;
    setup
}

#[test]
fn c3_an_acknowledged_first_write_survives_the_process_and_a_flush_by_the_next_one_keeps_it() {
    let mut rig = Rig::new(1, lazy());
    assert_eq!(rig.write(1, 4096, &[3; 4096], false), Status::Success);
    assert_eq!(rig.write(1, CLUSTER, &[4; 512], false), Status::Success);
    assert_eq!(rig.write(1, CLUSTER, &[5; 512], false), Status::Success);
    assert_eq!(rig.shard.stats().groups, 0, "nothing is in the journal");
    let mut rig = rig.kill();
    assert_eq!(rig.replayed, (0, 2));
    assert_eq!(rig.read(1, 4096, 4096).unwrap(), [3; 4096]);
    assert_eq!(rig.read(1, CLUSTER, 512).unwrap(), [5; 512]);
    assert_eq!(rig.flush(1), Status::Success);
    let mut rig = rig.power_loss();
    assert_eq!(rig.replayed, (2, 0));
    assert_eq!(rig.read(1, 4096, 4096).unwrap(), [3; 4096]);
    assert_eq!(rig.read(1, CLUSTER, 512).unwrap(), [5; 512]);
    rig.drain_and_verify();
}

#[test]
fn c3_a_discard_and_zeroes_survive_the_process() {
    let mut rig = Rig::new(2, lazy());
    rig.write(1, 0, &[3; 131072], false);
    rig.flush(1);
    assert_eq!(rig.command(1, Command::Deallocate, 0, 65536), Status::Success);
    assert_eq!(rig.command(1, ZEROES, 65536, 4096), Status::Success);
    let mut rig = rig.kill();
    assert_eq!(rig.read(1, 0, 69632).unwrap(), vec![0; 69632]);
    assert_eq!(rig.read(1, 69632, 4096).unwrap(), [3; 4096]);
    rig.drain_and_verify();
}

#[test]
fn c5_fua_on_a_block_whose_record_is_pending_survives_power_loss() {
    for seed in 0..20 {
        let mut rig = Rig::new(seed, lazy());
        rig.write(1, 0, &[1; 4096], false);
        assert_eq!(rig.shard.stats().groups, 0);
        assert_eq!(rig.write(1, 0, &[2; 4096], true), Status::Success);
        let mut rig = rig.power_loss();
        assert_eq!(rig.read(1, 0, 4096).unwrap(), [2; 4096]);
        // Now the record is durable: one durable write is all it takes.
        let before = rig.shard.stats();
        assert_eq!(rig.write(1, 0, &[3; 4096], true), Status::Success);
        let after = rig.shard.stats();
        assert_eq!((after.device_writes - before.device_writes, after.groups - before.groups), (1, 0));
        let mut rig = rig.power_loss();
        assert_eq!(rig.read(1, 0, 4096).unwrap(), [3; 4096]);
    }
}

#[test]
fn c5_zeroes_with_fua_over_zeroes_that_are_pending_survive_power_loss() {
    for seed in 0..20 {
        let mut rig = Rig::new(seed, lazy());
        rig.write(1, 0, &[1; 65536], false);
        rig.flush(1);
        rig.command(1, ZEROES, 0, 65536);
        assert_eq!(rig.command(1, Command::WriteZeroes { fua: true, deallocate: true }, 0, 4096), Status::Success);
        let mut rig = rig.power_loss();
        assert_eq!(rig.read(1, 0, 4096).unwrap(), [0; 4096]);
    }
}

#[test]
fn c6_zeroes_hide_what_a_snapshot_keeps() {
    let mut rig = Rig::new(3, lazy());
    rig.write(1, 0, &[7; 65536], false);
    let cut = rig.cut(1);
    rig.command(1, ZEROES, 0, 4096);
    rig.command(1, Command::Deallocate, 8192, 4096);
    // A sector of a block that only the snapshot has: the rest of it comes from there.
    rig.write(1, 16384, &[9; 512], false);
    // And one of a block that is zero now.
    rig.write(1, 8192, &[8; 512], false);
    for round in 0..2 {
        let live = rig.read(1, 0, 65536).unwrap();
        assert!(live[..4096].iter().all(|&byte| byte == 0), "round {round}");
        assert_eq!((live[8192], live[8704], live[4096]), (8, 0, 7));
        assert_eq!((live[16384], live[16896], live[20480]), (9, 7, 7));
        assert_eq!(rig.read_at(1, 0, 65536, Some(cut)).unwrap(), vec![7; 65536]);
        rig.flush(1);
        rig = rig.power_loss();
    }
    rig.drain_and_verify();
}

#[test]
fn c7_a_freed_cluster_waits_for_the_read_that_looked_it_up() {
    let mut setup = lazy();
    setup.slabs_per_disk = 2;
    let mut rig = Rig::new(4, setup);
    let mut full = 0;
    while rig.write(1, full * CLUSTER, &[1; 65536], false) == Status::Success {
        full += 1;
    }
    let disk = rig.disk(0);
    rig.world.inject(disk, OpKind::Read, 1, Fault::Stall(900_000_000));
    let buf = rig.buf(&[0; 65536]);
    let read = rig.submit(1, Command::Read, 0, 65536, Some(buf));
    rig.turn();
    // Four, since the other volume's map wants room as well.
    assert_eq!(rig.command(1, Command::Deallocate, 0, 4 * 65536), Status::Success);
    assert_eq!(rig.flush(1), Status::Success);
    assert_eq!(rig.shard.stats().clusters_quarantined, 4);
    let buf = rig.buf(&[2; 65536]);
    let write = rig.submit(2, Command::Write { fua: false }, 0, 65536, Some(buf));
    while rig.done.is_empty() {
        rig.turn();
    }
    assert_eq!(rig.done[0].id, read, "the write to another volume may not take the cluster before");
    let done = rig.wait(read);
    assert_eq!(done.data.unwrap().bytes().to_vec(), vec![1; 65536]);
    assert_eq!(rig.wait(write).status, Status::Success);
    assert_eq!(rig.read(1, 0, 65536).unwrap(), vec![0; 65536]);
    rig.drain_and_verify();
}

#[test]
fn c8_power_loss_at_any_write_of_a_checkpoint_leaves_the_one_before_or_the_new_one() {
    for n in 1.. {
        let mut rig = Rig::new(5, lazy());
        for nth in 0..6u8 {
            rig.write(1 + u32::from(nth % 2), u64::from(nth) * 3 * CLUSTER, &[nth + 1; 8192], false);
        }
        rig.flush(1);
        rig.world.crash_after(CrashPoint::Submitted(n));
        rig.shard.drain();
        while !rig.drained && !rig.world.crashed() {
            rig.turn();
        }
        let crashed = rig.world.crashed();
        let mut rig = rig.power_loss();
        for nth in 0..6u8 {
            let read = rig.read(1 + u32::from(nth % 2), u64::from(nth) * 3 * CLUSTER, 8192).unwrap();
            assert_eq!(read, [nth + 1; 8192], "crash at write {n} of the checkpoint");
        }
        rig.drain_and_verify();
        if !crashed {
            assert!(n > 4, "a checkpoint is at least page, chunk, barrier and header");
            return;
        }
    }
}

/// Journal groups at blocks 0 to 3, of volumes 1, 2, 1, 1, each durable when the next was made.
fn four_groups() -> Rig {
    let mut rig = Rig::new(6, lazy());
    for (nth, id) in [1, 2, 1, 1].into_iter().enumerate() {
        rig.write(id, nth as u64 * CLUSTER, &[nth as u8 + 1; 4096], false);
        assert_eq!(rig.flush(id), Status::Success);
    }
    assert_eq!(rig.shard.stats().groups, 4);
    rig
}

#[test]
fn c13_a_record_lost_in_the_middle_faults_its_volume_and_no_other() {
    let rig = four_groups();
    let (disk, journal) = (rig.disk(0), rig.setup.journal().offset);
    rig.world.rot(disk, journal + 4096, 4096);
    let mut rig = rig.power_loss();
    assert_eq!(rig.faulted, [VolumeId(2)], "{:?}", rig.notes);
    assert_eq!(rig.read(2, CLUSTER, 4096), Err(Status::VolumeFaulted));
    assert_eq!(rig.write(2, 0, &[1; 4096], false), Status::VolumeFaulted);
    for (nth, cluster) in [(1, 0), (3, 2), (4, 3)] {
        assert_eq!(rig.read(1, cluster * CLUSTER, 4096).unwrap(), [nth; 4096]);
    }
    assert_eq!(rig.write(1, 0, &[9; 4096], true), Status::Success);
}

#[test]
fn c13_the_end_of_the_journal_that_was_acknowledged_is_missed_while_the_machine_lives() {
    let mut rig = four_groups();
    // One more record, in the crash log only: it says that the four before it were durable.
    rig.write(1, 8 * CLUSTER, &[5; 4096], false);
    let (disk, journal) = (rig.disk(0), rig.setup.journal().offset);
    rig.world.rot(disk, journal + 3 * 4096, 4096);
    let rig = rig.kill();
    assert_eq!(rig.faulted, [VolumeId(1), VolumeId(2)], "{:?}", rig.notes);
}

#[test]
fn c15_a_cut_of_an_earlier_boot_lies_before_every_stamp_of_this_one() {
    let mut rig = Rig::new(7, lazy());
    rig.write(1, 0, &[1; 4096], false);
    let cut = rig.cut(1);
    rig.write(1, 0, &[2; 4096], false);
    rig.flush(1);
    let mut rig = rig.power_loss();
    rig.write(1, 0, &[3; 4096], false);
    let later = rig.cut(1);
    assert!(later > cut);
    rig.write(1, 0, &[4; 4096], false);
    assert_eq!(rig.read_at(1, 0, 4096, Some(cut)).unwrap(), [1; 4096]);
    assert_eq!(rig.read_at(1, 0, 4096, Some(later)).unwrap(), [3; 4096]);
    assert_eq!(rig.read(1, 0, 4096).unwrap(), [4; 4096]);
    rig.drain_and_verify();
}

#[test]
fn h1_a_flush_does_not_join_a_barrier_that_is_under_way() {
    for seed in 0..20 {
        let mut rig = Rig::new(seed, lazy());
        rig.write(1, 0, &[1; 4096], false);
        rig.flush(1);
        rig.write(1, 0, &[2; 4096], false);
        let disk = rig.disk(0);
        rig.world.inject(disk, OpKind::Barrier, 1, Fault::Stall(500_000_000));
        let first = rig.submit(1, Command::Flush, 0, 0, None);
        rig.turn();
        assert_eq!(rig.write(1, 0, &[3; 4096], false), Status::Success);
        let second = rig.submit(1, Command::Flush, 0, 0, None);
        assert_eq!(rig.wait(second).status, Status::Success);
        assert_eq!(rig.wait(first).status, Status::Success);
        let mut rig = rig.power_loss();
        assert_eq!(rig.read(1, 0, 4096).unwrap(), [3; 4096], "seed {seed}");
    }
}

#[test]
fn h1_a_flush_with_nothing_new_asks_for_no_barrier() {
    let mut rig = Rig::new(8, lazy());
    rig.write(1, 0, &[1; 4096], false);
    rig.flush(1);
    let before = rig.shard.stats().barriers;
    rig.flush(1);
    rig.flush(2);
    assert_eq!(rig.shard.stats().barriers, before);
    rig.write(1, 0, &[2; 4096], false);
    rig.flush(1);
    assert_eq!(rig.shard.stats().barriers, before + 1);
}

#[test]
fn h1_a_failed_barrier_stays_failed_until_the_pool_is_opened_again() {
    let mut rig = Rig::new(9, lazy());
    rig.write(1, 0, &[1; 4096], true);
    let disk = rig.disk(0);
    rig.world.inject(disk, OpKind::Barrier, 1, Fault::Error);
    rig.write(1, 0, &[2; 4096], false);
    assert_eq!(rig.flush(1), Status::WriteFault);
    assert_eq!(rig.flush(2), Status::WriteFault, "for every volume, though the device would succeed now");
    assert_eq!(rig.write(1, 0, &[3; 4096], false), Status::WriteFault);
    assert_eq!(rig.read(1, 0, 4096).unwrap(), [2; 4096], "reads go on");
    assert_eq!(rig.faults.len(), 1);
    let mut rig = rig.kill();
    assert_eq!(rig.flush(1), Status::Success);
    assert_eq!(rig.write(1, 0, &[4; 4096], true), Status::Success);
    rig.drain_and_verify();
}

#[test]
fn a_journal_that_cannot_be_written_stops_writes_and_says_so() {
    let mut rig = Rig::new(10, lazy());
    let (disk, journal) = (rig.disk(0), rig.setup.journal());
    rig.world.spoil(disk, OpKind::Write, journal.offset, journal.len);
    assert_eq!(rig.write(1, 0, &[1; 4096], true), Status::WriteFault);
    assert_eq!(rig.write(1, 4096, &[1; 4096], false), Status::WriteFault);
    assert_eq!((rig.faults.len(), rig.read(1, 8192, 512)), (1, Ok(vec![0; 512])));
}

#[test]
fn a_failed_first_write_leaves_the_map_as_it_was_and_its_cluster_free() {
    let mut rig = Rig::new(11, lazy());
    rig.write(1, 0, &[1; 4096], false);
    let disk = rig.disk(0);
    rig.world.inject(disk, OpKind::Write, 1, Fault::Error);
    assert_eq!(rig.write(1, CLUSTER, &[2; 4096], false), Status::WriteFault);
    assert_eq!(rig.read(1, CLUSTER, 4096).unwrap(), [0; 4096]);
    assert_eq!((rig.shard.stats().records, rig.shard.stats().clusters_used), (1, 1));
    assert_eq!(rig.write(1, CLUSTER, &[3; 4096], false), Status::Success);
    rig.drain_and_verify();
}

#[test]
fn h2_a_removed_volume_is_erased_through_crashes_and_its_space_comes_back() {
    for n in [3, 6, 9, 12, 1_000] {
        let mut rig = Rig::new(12, lazy());
        for cluster in 0..40 {
            rig.write(1, cluster * CLUSTER, &[1; 65536], false);
        }
        rig.write(2, 0, &[2; 4096], false);
        rig.flush(1);
        rig.world.crash_after(CrashPoint::Submitted(n));
        rig.remove_volume(1);
        while rig.erased.is_empty() && !rig.world.crashed() {
            rig.turn();
        }
        if rig.world.crashed() {
            rig = rig.power_loss();
        }
        rig.world.crash_after(CrashPoint::Submitted(1_000_000));
        assert_eq!(rig.read(1, 0, 4096), Err(Status::VolumeGone));
        while rig.erased.is_empty() {
            rig.turn();
        }
        assert_eq!(rig.erased, [VolumeId(1)], "crash at write {n}");
        assert_eq!(rig.read(2, 0, 4096).unwrap(), [2; 4096]);
        assert_eq!(rig.shard.stats().clusters_used, 1);
        rig.drain_and_verify();
    }
}

#[test]
fn h6_opening_reads_no_map_page_and_a_read_loads_one() {
    let mut setup = lazy();
    setup.volumes = vec![Arc::new(volume(1, 512 * MIB, 512))];
    let mut rig = Rig::new(13, setup);
    for node in 0..20 {
        rig.write(1, node * 8 * MIB, &[node as u8 + 1; 4096], false);
    }
    rig.drain_and_verify();
    let mut rig = rig.power_loss();
    assert_eq!((rig.replayed, rig.shard.stats().nodes_loaded), ((0, 0), 0));
    assert_eq!(rig.read(1, 56 * MIB, 4096).unwrap(), [8; 4096]);
    assert_eq!(rig.shard.stats().nodes_loaded, 1);
    rig.drain_and_verify();
}

#[test]
fn h7_a_full_pool_says_so_and_can_be_emptied() {
    let mut setup = lazy();
    setup.slabs_per_disk = 2;
    let mut rig = Rig::new(14, setup);
    let mut written = 0;
    while rig.write(1, written * CLUSTER, &[1; 65536], false) == Status::Success {
        written += 1;
    }
    assert_eq!(rig.write(1, written * CLUSTER, &[1; 65536], false), Status::CapacityExceeded);
    assert!(written >= 24, "32 clusters, 6 in reserve, {written} written");
    assert_eq!(rig.write(1, 0, &[2; 4096], false), Status::Success, "what is mapped can be overwritten");
    assert_eq!(rig.command(1, Command::Deallocate, 0, 1 << 20), Status::Success);
    // Sixteen came free; the map of the other volume takes some of that room for its next checkpoint.
    for cluster in 0..14 {
        assert_eq!(rig.write(2, cluster * CLUSTER, &[3; 65536], false), Status::Success, "cluster {cluster}");
    }
    rig.drain_and_verify();
}

#[test]
fn h14_the_checkpoint_before_the_newest_is_whole_until_the_next() {
    let mut rig = Rig::new(15, lazy());
    let mut generation = 1;
    for round in 0..6u8 {
        for cluster in 0..4 {
            rig.write(1, (u64::from(round) * 4 + cluster) % 9 * CLUSTER, &[round + 1; 4096], false);
        }
        rig.drain_and_verify();
        generation += rig.shard.stats().checkpoints;
        rig = rig.power_loss();
    }
    let mut expected = [0; 9];
    (0..24).for_each(|nth| expected[nth % 9] = nth as u8 / 4 + 1);
    let (disk, headers) = (rig.disk(0), rig.setup.headers().offset);
    rig.world.rot(disk, headers + generation % 8 * 4096, 4096);
    let mut rig = rig.power_loss();
    assert!(rig.notes.iter().any(|note| note.contains("checkpoint header")), "{:?}", rig.notes);
    for (cluster, byte) in expected.into_iter().enumerate() {
        assert_eq!(rig.read(1, cluster as u64 * CLUSTER, 4096).unwrap(), [byte; 4096], "cluster {cluster}");
    }
    rig.drain_and_verify();
}

#[test]
fn a_rotten_map_page_faults_its_volume_and_no_other() {
    let mut rig = Rig::new(16, lazy());
    rig.write(1, 0, &[1; 4096], false);
    rig.drain_and_verify();
    let mut rig = rig.power_loss();
    rig.write(2, 0, &[2; 4096], false);
    let page = rig.shard.page_places(VolumeId(1))[0];
    let disk = rig.disk(0);
    rig.world.rot(disk, page.offset(), 4096);
    assert_eq!(rig.read(1, 0, 4096), Err(Status::VolumeFaulted));
    assert_eq!(rig.faulted, [VolumeId(1)]);
    assert_eq!(rig.read(2, 0, 4096).unwrap(), [2; 4096]);
}

#[test]
fn c11_a_fence_drops_what_has_not_started_and_waits_for_what_has() {
    let mut rig = Rig::new(17, lazy());
    rig.write(1, 0, &[1; 4096], false);
    let disk = rig.disk(0);
    rig.world.inject(disk, OpKind::Write, 1, Fault::Stall(100_000_000));
    let mut ids = Vec::new();
    for nth in 0..3 {
        let buf = rig.buf(&[10 + nth; 4096]);
        ids.push(rig.submit_as(7, 1, Command::Write { fua: false }, 0, 4096, Some(buf), None));
    }
    rig.turn();
    // Another association's write queues behind them.
    let buf = rig.buf(&[99; 4096]);
    let other = rig.submit_as(8, 1, Command::Write { fua: false }, 0, 4096, Some(buf), None);
    rig.turn();
    rig.fence(7, 42);
    assert_eq!(rig.wait(ids[1]).status, Status::Aborted);
    assert_eq!(rig.wait(ids[2]).status, Status::Aborted);
    assert!(rig.fenced.is_empty(), "one of its writes is at the device");
    assert_eq!(rig.wait(ids[0]).status, Status::Success);
    assert_eq!(rig.fenced, [42]);
    assert_eq!(rig.wait(other).status, Status::Success);
    assert_eq!(rig.read(1, 0, 4096).unwrap(), [99; 4096]);
    rig.fence(7, 43);
    assert_eq!(rig.fenced, [42, 43], "an association without parts is fenced at once");
    rig.drain_and_verify();
}

#[test]
fn of_two_hosts_that_race_for_a_lock_by_compare_and_write_one_wins() {
    let mut rig = Rig::new(18, lazy());
    let race = |rig: &mut Rig, winner: u8| {
        let mut bytes = vec![0; 512];
        bytes.extend([winner; 512]);
        let buf = rig.buf(&bytes);
        rig.submit(1, Command::CompareAndWrite { fua: false }, 1024, 512, Some(buf))
    };
    let ids = [race(&mut rig, 1), race(&mut rig, 2)];
    let statuses = ids.map(|id| rig.wait(id).status);
    assert_eq!(statuses, [Status::Success, Status::CompareFailure]);
    assert_eq!(rig.read(1, 1024, 512).unwrap(), [1; 512]);
    assert_eq!(rig.shard.stats().clusters_used, 1);
    rig.drain_and_verify();
}

#[test]
fn h10_what_a_rollback_made_void_is_neither_read_nor_written_to() {
    let mut rig = Rig::new(19, lazy());
    rig.write(1, 0, &[1; 8192], false);
    let cut = rig.cut(1);
    rig.write(1, 0, &[2; 4096], false);
    let until = rig.cut(1);
    rig.change_volume(1, |volume| volume.dead.push((cut, until)));
    assert_eq!(rig.read(1, 0, 4096).unwrap(), [1; 4096]);
    rig.write(1, 512, &[3; 512], false);
    rig.flush(1);
    let mut rig = rig.power_loss();
    let read = rig.read(1, 0, 8192).unwrap();
    assert_eq!((read[0], read[512], read[1024], read[4096]), (1, 3, 1, 1));
    assert_eq!(rig.read_at(1, 0, 4096, Some(cut)).unwrap(), [1; 4096]);
    rig.drain_and_verify();
}

/// Volume 1 fills three slabs and forgets it all, volume 2 has a cluster in the first; what the shard gave back.
fn given_back_after_a_discard(rig: &mut Rig) -> u64 {
    assert_eq!(rig.write(2, 0, &[9; 65536], false), Status::Success);
    for cluster in 0..48 {
        assert_eq!(rig.write(1, cluster * CLUSTER, &[1; 65536], false), Status::Success);
    }
    assert_eq!(rig.setup.owned.len(), 4);
    assert_eq!(rig.flush(1), Status::Success);
    for stripe in 0..3 {
        assert_eq!(rig.command(1, Command::Deallocate, stripe * MIB, MIB as u32), Status::Success);
    }
    assert_eq!(rig.flush(1), Status::Success);
    for _ in 0..200 {
        rig.turn();
    }
    rig.given_back
}

#[test]
fn h7_a_shard_keeps_one_empty_slab_until_another_shard_has_to_go_without() {
    let mut rig = Rig::new(30, lazy());
    let given = given_back_after_a_discard(&mut rig);
    assert!(given >= 2, "{given}");
    let owned = rig.setup.owned.len();
    assert_eq!(owned, 2, "one is kept for what comes next");
    for _ in 0..4 {
        rig.shard.on_slab_wanted();
        for _ in 0..2000 {
            rig.turn();
        }
    }
    assert_eq!((rig.setup.owned.len(), rig.kept_slabs > 0), (1, true), "the last one holds the reserve");
    assert_eq!(rig.write(1, 0, &[2; 65536], true), Status::Success);
    assert_eq!(rig.read(1, CLUSTER, 65536).unwrap(), vec![0; 65536]);
    rig.drain_and_verify();
    let mut rig = rig.kill();
    assert_eq!(rig.read(1, 0, 65536).unwrap(), vec![2; 65536]);
}

#[test]
fn h7_records_of_slabs_that_were_given_back_are_replayed_without_them() {
    for power_loss in [false, true] {
        let mut rig = Rig::new(31, lazy());
        assert!(given_back_after_a_discard(&mut rig) >= 2);
        assert_eq!(rig.shard.stats().checkpoints, 0, "the journal has it all");
        let mut rig = if power_loss { rig.power_loss() } else { rig.kill() };
        assert_eq!(rig.faulted, [], "{:?}", rig.notes);
        assert_eq!(rig.read(1, 0, 65536).unwrap(), vec![0; 65536]);
        assert_eq!(rig.shard.stats().clusters_used, 1);
        // It may have the same ones again.
        for cluster in 1..40 {
            assert_eq!(rig.write(2, cluster * CLUSTER, &[3; 65536], false), Status::Success);
        }
        assert_eq!(rig.flush(2), Status::Success);
        let mut rig = rig.power_loss();
        for cluster in 1..40 {
            assert_eq!(rig.read(2, cluster * CLUSTER, 65536).unwrap(), vec![3; 65536]);
        }
        rig.drain_and_verify();
    }
}

#[test]
fn h7_a_journal_that_forgot_why_a_slab_was_empty_faults_its_volumes_instead_of_showing_what_others_wrote() {
    let mut rig = Rig::new(32, lazy());
    assert!(given_back_after_a_discard(&mut rig) >= 2);
    // From the group of the discard on, everything rots: nothing later vouches for it.
    let groups = rig.shard.stats().groups;
    let journal = rig.setup.journal();
    let discard = (0..rig.setup.journal_blocks).find(|block| {
        let bytes = rig.world.bytes(rig.disk(0), journal.offset + block * 4096, 4096);
        // The first record of the group behind its header: kind 2 drops a cluster.
        bytes[..4] == *b"RWJG" && bytes[640] == 2
    });
    let discard = discard.unwrap_or_else(|| panic!("no group of {groups} begins with the discard"));
    rig.world.rot(rig.disk(0), journal.offset + discard * 4096, (rig.setup.journal_blocks - discard) * 4096);
    let mut rig = rig.power_loss();
    assert_eq!(rig.faulted, [VolumeId(1), VolumeId(2)], "{:?}", rig.notes);
    assert_eq!(rig.read(1, 0, 4096), Err(Status::VolumeFaulted));
}
