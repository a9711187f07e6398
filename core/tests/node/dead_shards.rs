//! A shard that cannot be opened takes its own volumes with it, and nothing else (I4); what is on it stays as it is.

use ringway_core::checkpoint::RING_BYTES;
use ringway_core::control::{ControlAnswer, ControlErrorKind, ControlRequest};
use ringway_core::ids::{ShardId, VolumeId};
use ringway_core::pool::{self, Layout};
use ringway_core::request::{Command, Status};
use ringway_reactor::sim::{DiskId, Faults, OpKind, World};

use crate::rig::{MIB, Setup, Target, creation};

const DISK: DiskId = DiskId(0);
const DEAD: ShardId = ShardId(1);

struct Volumes {
    /// Pinned to shard 0.
    near: VolumeId,
    /// On every shard.
    wide: VolumeId,
    /// Pinned to the shard that dies.
    lost: VolumeId,
}

/// A target with a volume of each kind, each with something in it that was flushed and something that was not.
fn served(seed: u64, setup: Setup) -> (Target, Volumes) {
    let mut target = Target::new(seed, setup);
    let volumes = Volumes {
        near: target.create_on("near", 16 * MIB, Some(vec![0])).id,
        wide: target.create("wide", 16 * MIB).id,
        lost: target.create_on("lost", 16 * MIB, Some(vec![1])).id,
    };
    for (n, volume) in [volumes.near, volumes.wide, volumes.lost].into_iter().enumerate() {
        for stripe in 0..6 {
            let bytes = [(16 * n + stripe + 1) as u8; 8192];
            assert_eq!(target.write(volume, stripe as u64 * MIB, &bytes), Status::Success);
            if stripe == 3 {
                assert_eq!(target.flush(volume), Status::Success);
            }
        }
    }
    (target, volumes)
}

fn check(target: &mut Target, n: usize, volume: VolumeId) {
    for stripe in 0..6 {
        let read = target.read(volume, stripe as u64 * MIB, 8192);
        assert_eq!(read, Ok(vec![(16 * n + stripe + 1) as u8; 8192]), "volume {volume} stripe {stripe}");
    }
}

/// Ends the process, does something to the disk, and opens again.
fn killed(target: Target, then: impl FnOnce(&World, &Layout)) -> Target {
    let Target { world, setup, reactors, .. } = target;
    world.kill();
    drop(reactors);
    world.quiesce();
    let layout = pool::inspect(&mut world.io()).expect("superblocks and catalog are whole").layout;
    then(&world, &layout);
    Target::open(world, setup)
}

/// What belongs to the shard: headers, journal, slabs.
fn belongings(target: &Target) -> Vec<Vec<u8>> {
    let found = pool::inspect(&mut target.world.io()).expect("superblocks and catalog are whole");
    let layout = &found.layout;
    let slabs = found.catalog.slabs_of(DEAD).map(|slab| {
        let place = layout.geometry.place(slab, 0);
        (place.offset(), layout.geometry.slab_bytes())
    });
    [(layout.checkpoint_ring(DEAD), RING_BYTES as u64), (layout.journal(DEAD), layout.journal_bytes)]
        .into_iter()
        .chain(slabs)
        .map(|(offset, len)| target.world.bytes(DISK, offset, len as usize))
        .collect()
}

fn faults(target: &mut Target) -> Vec<(String, bool)> {
    target.volumes().into_iter().map(|volume| (volume.name, volume.fault.is_some())).collect()
}

fn only_its_own_volumes_are_faulted(target: &mut Target, volumes: &Volumes) {
    let expected = [("lost", true), ("near", false), ("wide", true)].map(|(name, fault)| (name.to_owned(), fault));
    assert_eq!(faults(target), expected);
    let pool = target.pool();
    assert!(pool.read_only.is_none() && pool.dead_shards.len() == 1, "{pool:?}");
    assert!(pool.dead_shards[0].contains("shard 1"), "{pool:?}");
    assert_eq!((target.metrics.pool.dead_shards.get(), target.metrics.pool.faulted_volumes.get()), (1, 2));
    check(target, 0, volumes.near);
    for stripe in 0..6 {
        // Even where the stripe itself could be read: what one host sees of a volume is all or nothing.
        assert_eq!(target.read(volumes.wide, stripe * MIB, 4096), Err(Status::VolumeFaulted));
        assert_eq!(target.write(volumes.lost, stripe * MIB, &[9; 4096]), Status::VolumeFaulted);
    }
    for command in [Command::Flush, Command::Deallocate] {
        let len = if command == Command::Flush { 0 } else { 8 << 20 };
        let id = target.request(volumes.wide, command, 0, len, None);
        assert_eq!(target.wait(id).status, Status::VolumeFaulted);
    }
    assert_eq!(target.write(volumes.near, 0, &[1; 8192]), Status::Success);
    assert_eq!(target.flush(volumes.near), Status::Success);
}

#[test]
fn i4_a_shard_without_a_checkpoint_faults_its_volumes_and_the_others_are_served() {
    for reactors in 1..=3 {
        let (target, volumes) = served(1, Setup { reactors, ..Setup::default() });
        let mut target = killed(target, |world, layout| {
            world.rot(DISK, layout.checkpoint_ring(DEAD), RING_BYTES as u64);
        });
        let before = belongings(&target);
        only_its_own_volumes_are_faulted(&mut target, &volumes);

        let made = target.create("new", 64 * MIB);
        assert_eq!(made.shards, [ShardId(0), ShardId(2)], "a new volume keeps away from it");
        let refused = target.call(ControlRequest::VolumeCreate(creation("other", MIB, Some(vec![1])))).unwrap_err();
        assert_eq!(refused.kind, ControlErrorKind::Corrupt, "{refused}");
        // Until the pool has nothing left to give: no slab of the dead shard is given away.
        for offset in 0..256 {
            if target.write(made.id, offset * 256 * 1024 % (64 * MIB), &vec![offset as u8 | 1; 256 << 10])
                == Status::CapacityExceeded
            {
                break;
            }
        }
        let removed = ControlRequest::VolumeRemove { name: "lost".into(), force: false };
        assert_eq!(target.call(removed), Ok(ControlAnswer::Done));
        target.stop();
        assert_eq!(belongings(&target), before, "what is on the dead shard is as it was");
        let mut target = target.kill();
        assert_eq!(faults(&mut target).len(), 3, "it starts as often as one likes");
        assert_eq!(target.read(volumes.near, 0, 8192), Ok(vec![1; 8192]));
    }
}

/// Where something of the shard's is: from which byte, and how many.
type Part = fn(&Layout) -> (u64, u64);

#[test]
fn i4_a_shard_that_could_not_be_read_for_a_while_is_whole_when_it_can() {
    let parts: [Part; 3] = [
        |layout| (layout.checkpoint_ring(DEAD), RING_BYTES as u64),
        |layout| (layout.journal(DEAD), 4096),
        |layout| (layout.journal(DEAD) + layout.journal_bytes - 4096, 4096),
    ];
    for part in parts {
        let (target, volumes) = served(2, Setup::default());
        let mut target = killed(target, |world, layout| {
            let (offset, len) = part(layout);
            world.spoil(DISK, OpKind::Read, offset, len);
        });
        only_its_own_volumes_are_faulted(&mut target, &volumes);
        // The cable is in again. What only the log of the first process had is still there.
        let mut target = killed(target, |world, _| world.set_faults(DISK, Faults::default()));
        assert!(faults(&mut target).iter().all(|(_, fault)| !fault));
        assert!(target.pool().dead_shards.is_empty());
        for (n, volume) in [volumes.near, volumes.wide, volumes.lost].into_iter().enumerate() {
            check(&mut target, n, volume);
        }
        target.stop();
    }
}

#[test]
fn i4_a_pool_all_of_whose_shards_are_dead_starts_and_shows_its_volumes() {
    let (target, volumes) = served(3, Setup::default());
    let mut target = killed(target, |world, layout| {
        let shards = layout.shards;
        (0..shards).for_each(|shard| world.rot(DISK, layout.checkpoint_ring(ShardId(shard)), RING_BYTES as u64));
    });
    assert!(faults(&mut target).iter().all(|(_, fault)| *fault));
    assert_eq!(target.read(volumes.near, 0, 4096), Err(Status::VolumeFaulted));
    let refused = target.call(ControlRequest::VolumeCreate(creation("new", MIB, None))).unwrap_err();
    assert_eq!(refused.kind, ControlErrorKind::Corrupt, "{refused}");
    let renamed = ControlRequest::VolumeRename { name: "near".into(), to: "far".into() };
    assert!(target.call(renamed).is_ok(), "the catalog is whole");
    target.stop();
}
