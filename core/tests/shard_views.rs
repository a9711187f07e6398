//! Snapshots, clones and what becomes of their versions, in histories.

mod rig;

use std::sync::Arc;

use rig::{Rig, Setup, volume};
use ringway_core::request::{Command, Status};
use ringway_core::shard::{ChangedRange, Event};
use ringway_reactor::sim::{Fault, OpKind};

const CLUSTER: u64 = 64 << 10;
const ZEROES: Command = Command::WriteZeroes { fua: false, deallocate: true };

fn lazy() -> Setup {
    let mut setup = Setup::new();
    setup.config.commit_interval_ns = u64::MAX / 2;
    setup
}

fn data(offset: u64, blocks: u64) -> ChangedRange {
    ChangedRange { offset, len: blocks * 4096, data: true }
}

fn zeros(offset: u64, blocks: u64) -> ChangedRange {
    ChangedRange { offset, len: blocks * 4096, data: false }
}

#[test]
fn a_snapshot_shows_what_was_there_at_its_cut_and_refuses_every_change() {
    let mut rig = Rig::new(1, lazy());
    rig.write(1, 0, &[1; 65536], false);
    rig.snapshot(1, 10);
    rig.write(1, 4096, &[2; 4096], false);
    rig.write(1, 8192, &[3; 512], false);
    rig.command(1, ZEROES, 12288, 4096);
    rig.snapshot(1, 11);
    rig.write(1, 4096, &[4; 4096], false);
    for round in 0..2 {
        assert_eq!(rig.read(10, 0, 65536).unwrap(), [1; 65536], "round {round}");
        let second = rig.read(11, 0, 65536).unwrap();
        assert_eq!((second[4095], second[4096], second[8192], second[8704], second[12288]), (1, 2, 3, 1, 0));
        assert_eq!(rig.read(1, 4096, 512).unwrap(), [4; 512]);
        for command in [ZEROES, Command::Deallocate, Command::WriteZeroes { fua: true, deallocate: false }] {
            assert_eq!(rig.command(10, command, 0, 4096), Status::WriteProtected);
        }
        assert_eq!(rig.write(10, 0, &[9; 4096], false), Status::WriteProtected);
        assert_eq!(rig.flush(10), Status::Success);
        rig.flush(1);
        rig = rig.power_loss();
    }
    rig.settle_and_verify();
}

#[test]
fn space_comes_back_when_a_snapshot_goes_and_partly_written_clusters_become_one() {
    let mut rig = Rig::new(2, lazy());
    let used = |rig: &Rig| rig.shard.stats().clusters_used;
    for cluster in 0..8 {
        rig.write(1, cluster * CLUSTER, &[1; 65536], false);
    }
    rig.snapshot(1, 10);
    // All of one, a block of another, zeros in a third, a block beside data in a fourth.
    rig.write(1, 0, &[2; 65536], false);
    rig.write(1, CLUSTER, &[3; 4096], false);
    rig.command(1, Command::Deallocate, 2 * CLUSTER, 65536);
    rig.command(1, ZEROES, 3 * CLUSTER, 4096);
    rig.write(1, 3 * CLUSTER + 4096, &[4; 512], false);
    let before: Vec<Vec<u8>> = (0..8).map(|n| rig.read(1, n * CLUSTER, 65536).unwrap()).collect();
    rig.flush(1);
    assert_eq!(used(&rig), 11);
    let held = rig.held(1);
    assert_eq!(held.len(), 1);
    assert_eq!(held[0].1, 2 * CLUSTER, "the first and the third cluster are the snapshot's alone");
    rig.remove_snapshot(10);
    assert!(rig.settle_background());
    rig.flush(1);
    rig.flush(1);
    assert_eq!(used(&rig) + rig.shard.stats().clusters_quarantined, 7);
    for _ in 0..2 {
        let now: Vec<Vec<u8>> = (0..8).map(|n| rig.read(1, n * CLUSTER, 65536).unwrap()).collect();
        assert!(now == before, "the live volume has changed");
        rig.flush(1);
        rig = rig.power_loss();
    }
    assert_eq!(rig.shard.mapped_by(ringway_core::ids::VolumeId(1)), 7);
    rig.settle_and_verify();
}

#[test]
fn h7_a_write_to_a_full_pool_waits_for_what_a_removed_snapshot_gives_back() {
    let mut setup = lazy();
    setup.slabs_per_disk = 2;
    let mut rig = Rig::new(13, setup);
    let mut full = 0;
    while full < 16 && rig.write(1, full * CLUSTER, &[1; 65536], false) == Status::Success {
        full += 1;
    }
    rig.snapshot(1, 10);
    let mut again = 0;
    while again < full && rig.write(1, again * CLUSTER, &[2; 65536], false) == Status::Success {
        again += 1;
    }
    assert!(again < full, "this pool is to be full");
    rig.remove_snapshot(10);
    for cluster in again..full {
        assert_eq!(rig.write(1, cluster * CLUSTER, &[2; 65536], false), Status::Success, "cluster {cluster}");
    }
    for cluster in 0..full {
        assert_eq!(rig.read(1, cluster * CLUSTER, 512).unwrap(), [2; 512]);
    }
    rig.settle_and_verify();
}

#[test]
fn a_removal_that_a_crash_interrupts_is_gone_on_with() {
    for (seed, power_loss) in [(3, false), (4, true)] {
        let mut rig = Rig::new(seed, lazy());
        for cluster in 0..20 {
            rig.write(1, cluster * CLUSTER, &[1; 65536], false);
        }
        rig.snapshot(1, 10);
        for cluster in 0..20 {
            rig.write(1, cluster * CLUSTER, &[2; 8192], false);
        }
        rig.flush(1);
        rig.remove_snapshot(10);
        while rig.shard.stats().clusters_copied < 5 {
            rig.turn();
        }
        let mut rig = if power_loss { rig.power_loss() } else { rig.kill() };
        assert!(!rig.look_over().untidy.is_empty(), "all was done");
        rig.settle_and_verify();
        assert_eq!(rig.shard.mapped_by(ringway_core::ids::VolumeId(1)), 20);
    }
}

#[test]
fn h4_no_walk_is_longer_than_eight_versions_however_many_snapshots_are_kept() {
    let mut rig = Rig::new(5, lazy());
    rig.write(1, 0, &[1; 65536], false);
    let mut expected = vec![1u8; 65536];
    let mut snapshots = Vec::new();
    for nth in 0..40u32 {
        rig.snapshot(1, 100 + nth);
        snapshots.push((100 + nth, expected.clone()));
        let block = u64::from(nth * 5 % 16) * 4096;
        rig.write(1, block, &[nth as u8 + 2; 512], false);
        expected[block as usize..block as usize + 512].fill(nth as u8 + 2);
        rig.settle_background();
    }
    let walk = rig.look_over();
    assert!(walk.longest_walk <= 8, "{} versions", walk.longest_walk);
    for (id, content) in &snapshots {
        assert!(rig.read(*id, 0, 65536).unwrap() == *content, "snapshot {id}");
    }
    assert!(rig.read(1, 0, 65536).unwrap() == expected);
    for (id, _) in snapshots {
        rig.remove_snapshot(id);
    }
    rig.settle_background();
    assert!(rig.read(1, 0, 65536).unwrap() == expected);
    rig.settle_and_verify();
    assert_eq!(rig.shard.mapped_by(ringway_core::ids::VolumeId(1)), 1);
}

#[test]
fn h9_a_clone_shows_its_parent_from_the_same_shard_until_it_is_written_to_and_nothing_beyond_it() {
    let mut setup = lazy();
    setup.volumes = vec![Arc::new(volume(1, 6 * CLUSTER, 512))];
    let mut rig = Rig::new(6, setup);
    rig.write(1, 0, &[1; 65536], false);
    rig.write(1, 5 * CLUSTER, &[1; 65536], false);
    rig.snapshot(1, 10);
    rig.write(1, 0, &[7; 65536], false);
    rig.clone_of(10, 2, 12 * CLUSTER);
    assert_eq!(rig.read(2, 0, 65536).unwrap(), [1; 65536]);
    assert_eq!(rig.read(2, CLUSTER, 65536).unwrap(), vec![0; 65536]);
    assert_eq!(rig.read(2, 6 * CLUSTER, 65536).unwrap(), vec![0; 65536]);
    // A sector, a discard, zeros with edges, a compare-and-write.
    rig.write(2, 512, &[2; 512], false);
    rig.command(2, Command::Deallocate, 4096, 4096);
    rig.command(2, ZEROES, 8192 + 512, 4096);
    let mut pair = vec![1u8; 512];
    pair.extend([3; 512]);
    let buf = rig.buf(&pair);
    let id = rig.submit(2, Command::CompareAndWrite { fua: false }, 16384, 512, Some(buf));
    assert_eq!(rig.wait(id).status, Status::Success);
    rig.snapshot(2, 20);
    rig.clone_of(20, 3, 12 * CLUSTER);
    rig.write(3, 24576, &[5; 4096], false);
    for round in 0..2 {
        for id in [2, 3, 20] {
            let found = rig.read(id, 0, 65536).unwrap();
            let at = |offset: usize| found[offset];
            assert_eq!((at(0), at(512), at(1024), at(4096)), (1, 2, 1, 0), "volume {id} round {round}");
            assert_eq!((at(8192), at(8704), at(12288), at(12800)), (1, 0, 0, 1), "volume {id} round {round}");
            assert_eq!((at(16384), at(16896), at(24576)), (3, 1, if id == 3 { 5 } else { 1 }), "volume {id}");
            assert_eq!(rig.read(id, 5 * CLUSTER, 512).unwrap(), [1; 512]);
        }
        assert_eq!(rig.read(1, 0, 512).unwrap(), [7; 512]);
        [1, 2, 3].into_iter().for_each(|id| assert_eq!(rig.flush(id), Status::Success));
        rig = rig.power_loss();
    }
    rig.settle_and_verify();
}

#[test]
fn c9_a_clone_is_filled_at_its_bottom_and_its_own_snapshots_outlive_the_parent() {
    let mut rig = Rig::new(7, lazy());
    for cluster in 0..4 {
        rig.write(1, cluster * CLUSTER, &[1; 65536], false);
    }
    rig.snapshot(1, 10);
    rig.clone_of(10, 5, 8 << 20);
    rig.write(5, 0, &[2; 4096], false);
    rig.snapshot(5, 20);
    rig.write(5, 4096, &[3; 65536], false);
    rig.command(5, Command::Deallocate, 3 * CLUSTER, 65536);
    let show = |rig: &mut Rig, id| (0..4).map(|n| rig.read(id, n * CLUSTER, 65536).unwrap()).collect::<Vec<_>>();
    let before = [show(&mut rig, 5), show(&mut rig, 20)];
    let copied = rig.fill(5).unwrap().unwrap();
    assert!(copied > 0 && copied <= 4 * CLUSTER, "{copied} bytes");
    assert_eq!(rig.fill(5).unwrap(), Ok(0), "nothing is left to fill");
    assert!([show(&mut rig, 5), show(&mut rig, 20)] == before, "filling has changed a view");
    assert_eq!(rig.flush(5), Status::Success);
    rig.detach(5);
    rig.remove_snapshot(10);
    rig.command(1, Command::Deallocate, 0, 4 * CLUSTER as u32);
    rig.settle_background();
    assert!([show(&mut rig, 5), show(&mut rig, 20)] == before, "the parent was needed");
    let mut rig = rig.power_loss();
    assert!([show(&mut rig, 5), show(&mut rig, 20)] == before, "the parent was needed");
    rig.settle_and_verify();
}

#[test]
fn c7_a_read_of_a_clone_through_its_parent_keeps_the_parents_cluster_from_being_used_again() {
    let mut setup = lazy();
    setup.slabs_per_disk = 2;
    let mut rig = Rig::new(8, setup);
    rig.write(1, 0, &[1; 65536], false);
    rig.snapshot(1, 10);
    rig.clone_of(10, 5, 4 << 20);
    rig.command(1, Command::Deallocate, 0, 65536);
    rig.flush(1);
    let disk = rig.disk(0);
    rig.world.inject(disk, OpKind::Read, 1, Fault::Stall(900_000_000));
    let buf = rig.buf(&[0; 65536]);
    let read = rig.submit(5, Command::Read, 0, 65536, Some(buf));
    rig.turn();
    rig.detach(5);
    rig.remove_snapshot(10);
    rig.flush(1);
    for _ in 0..50 {
        rig.turn();
    }
    assert_eq!(rig.shard.stats().clusters_used + rig.shard.stats().clusters_quarantined, 1, "it is not free yet");
    assert_eq!(rig.wait(read).data.unwrap().into_own().to_vec(), vec![1; 65536]);
    rig.settle_background();
    rig.flush(1);
    rig.flush(1);
    assert_eq!(rig.shard.stats().clusters_used, 0);
    rig.settle_and_verify();
}

#[test]
fn h10_what_a_rollback_made_void_is_freed_and_the_volume_goes_on_from_its_snapshot() {
    let mut rig = Rig::new(9, lazy());
    rig.write(1, 0, &[1; 65536], false);
    rig.snapshot(1, 10);
    rig.write(1, 0, &[2; 4096], false);
    rig.snapshot(1, 11);
    rig.write(1, 4096, &[3; 65536], false);
    rig.roll_back(10);
    assert_eq!(rig.read(1, 0, 65536).unwrap(), [1; 65536]);
    assert_eq!(rig.read(11, 0, 512).unwrap_err(), Status::VolumeGone);
    rig.write(1, 8192, &[4; 512], false);
    let expected = |rig: &mut Rig| {
        let live = rig.read(1, 0, 131072).unwrap();
        assert_eq!((live[0], live[4096], live[8192], live[8704], live[65536]), (1, 1, 4, 1, 0));
    };
    expected(&mut rig);
    rig.settle_background();
    expected(&mut rig);
    rig.flush(1);
    let mut rig = rig.power_loss();
    expected(&mut rig);
    assert_eq!(rig.shard.mapped_by(ringway_core::ids::VolumeId(1)), 2);
    rig.settle_and_verify();
}

#[test]
fn the_difference_of_two_views_is_what_was_written_between_them() {
    let mut rig = Rig::new(10, lazy());
    rig.write(1, 0, &[1; 65536], false);
    rig.write(1, 2 * CLUSTER, &[1; 8192], false);
    let first = rig.snapshot(1, 10);
    rig.write(1, 4096, &[2; 8192], false);
    rig.command(1, ZEROES, 20480, 4096);
    // Nothing was there, and nothing is.
    rig.command(1, Command::Deallocate, 8 * CLUSTER, 65536);
    let second = rig.snapshot(1, 11);
    rig.write(1, CLUSTER - 512, &[3; 1024], false);
    let whole = vec![data(0, 16), data(2 * CLUSTER, 2)];
    assert_eq!(rig.changed(10, None).unwrap(), whole);
    let between = vec![data(4096, 2), zeros(20480, 1)];
    assert_eq!(rig.changed(11, Some(first)).unwrap(), between);
    assert_eq!(rig.changed(1, Some(second)).unwrap(), [data(CLUSTER - 4096, 2)]);
    assert_eq!(rig.changed(10, Some(second)).unwrap_err(), Status::InvalidField, "the cut is newer than the view");
    rig.clone_of(11, 5, 4 << 20);
    rig.write(5, 16384, &[9; 4096], false);
    let cut = rig.snapshot(5, 20);
    rig.command(5, Command::Deallocate, 0, 4096);
    assert_eq!(rig.changed(5, Some(cut)).unwrap(), [zeros(0, 1)]);
    assert_eq!(rig.changed(20, None).unwrap(), [data(0, 5), data(24576, 10), data(2 * CLUSTER, 2)]);
    rig.remove_snapshot(10);
    assert_eq!(rig.changed(11, Some(first)).unwrap_err(), Status::InvalidField, "it is not kept any more");
    rig.settle_and_verify();
}

#[test]
fn an_error_of_the_device_while_versions_are_merged_costs_nothing_but_the_try() {
    for (seed, kind) in [(11, OpKind::Read), (12, OpKind::Write)] {
        let mut rig = Rig::new(seed, lazy());
        rig.write(1, 0, &[1; 65536], false);
        rig.snapshot(1, 10);
        rig.write(1, 0, &[2; 4096], false);
        rig.flush(1);
        let disk = rig.disk(0);
        rig.world.inject(disk, kind, 1, Fault::Error);
        rig.remove_snapshot(10);
        rig.settle_background();
        let live = rig.read(1, 0, 65536).unwrap();
        assert_eq!((live[0], live[4096]), (2, 1));
        assert!(rig.faults.is_empty());
        rig.flush(1);
        let mut rig = rig.power_loss();
        rig.settle_and_verify();
        assert_eq!(rig.shard.mapped_by(ringway_core::ids::VolumeId(1)), 1);
        assert!(!rig.events.iter().any(|event| matches!(event, Event::Fault { .. })));
    }
}
