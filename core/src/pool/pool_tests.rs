//! Pools on simulated disks: made, opened, crashed at every step of both, rotted, mixed up.

use ringway_reactor::sim::{CrashPoint, DiskConfig, DiskId, Rng, World, WorldConfig};

use super::*;
use crate::catalog::HALF_BYTES;
use crate::ids::ShardId;
use crate::pool::{FormatOptions, LayoutOptions, format};

const SIZE: u64 = 32 << 20;

fn options(devices: usize) -> FormatOptions {
    FormatOptions {
        uuid: Uuid::from_u128(77),
        device_uuids: (0..devices).map(|n| Uuid::from_u128(100 + n as u128)).collect(),
        shards: 2,
        layout: LayoutOptions { journal_bytes: Some(1 << 20), ..Default::default() },
        assume_atomic_4k: false,
        force: false,
        created_unix_s: 1_800_000_000,
    }
}

/// A world of disks that tear at 512 bytes.
fn world(seed: u64, disks: usize) -> (World, Vec<DiskId>) {
    let world = World::new(seed, WorldConfig::default());
    let config = DiskConfig { size: SIZE, atomic_write_unit: 512, ..Default::default() };
    let disks = (0..disks).map(|_| world.add_disk(config.clone())).collect();
    (world, disks)
}

fn made(seed: u64, disks: usize) -> (World, Vec<DiskId>) {
    let (world, ids) = world(seed, disks);
    format(&mut world.io(), &options(disks), &mut |_| {}).unwrap();
    (world, ids)
}

fn opened(world: &World) -> Result<OpenPool, PoolError> {
    open(&mut world.io(), &OpenOptions::default())
}

#[test]
fn a_new_pool_opens_with_a_slab_for_each_shard_and_each_boot_has_its_own_generation() {
    for disks in [1, 3] {
        let (world, ids) = world(1, disks);
        let mut steps = Vec::new();
        let layout = format(&mut world.io(), &options(disks), &mut |progress| steps.push(progress)).unwrap();
        assert!(steps.windows(2).all(|pair| pair[0].done < pair[1].done));
        let last = steps.last().unwrap();
        assert_eq!(last.done, last.total);
        for boot in 1..4 {
            let pool = opened(&world).unwrap();
            assert_eq!((pool.generation, &pool.layout, pool.uuid), (boot, &layout, Uuid::from_u128(77)));
            assert_eq!(pool.clean, boot == 1, "nobody closed it since");
            assert!(pool.notices.iter().all(|notice| matches!(notice, Notice::Unclean { .. })), "{:?}", pool.notices);
            let shards = (0..2).map(|shard| pool.catalog.slabs_of(ShardId(shard)).count());
            assert_eq!((shards.collect::<Vec<_>>(), pool.catalog.devices().count()), (vec![1, 1], disks));
            assert_eq!(pool.atomic_unit, 512);
        }
        assert!(ids.iter().all(|&disk| world.unflushed_writes(disk) == 0));
    }
}

#[test]
fn c15_a_crash_at_any_step_of_opening_never_gives_a_generation_twice_and_never_loses_the_pool() {
    let mut rng = Rng::new(5);
    for step in 1..40 {
        let (world, _) = made(step, 2);
        let first = opened(&world).unwrap().generation;
        world.crash_after(if step % 2 == 0 {
            CrashPoint::Submitted(step / 2)
        } else {
            CrashPoint::Completed(step / 2 + 1)
        });
        let second = world.until_crash(|| opened(&world).unwrap().generation).ok();
        if rng.one_in(2) {
            world.kill();
            world.quiesce();
        } else {
            world.power_loss();
        }
        let pool = opened(&world).unwrap();
        assert!(pool.generation > second.unwrap_or(first), "step {step}: {} again", pool.generation);
        let fine = |notice: &Notice| {
            matches!(
                notice,
                Notice::SuperblockRepaired { .. } | Notice::CatalogRepaired { .. } | Notice::Unclean { .. }
            )
        };
        assert!(pool.notices.iter().all(fine), "step {step}: {:?}", pool.notices);
        assert_eq!(pool.catalog.slabs().count(), 2);
    }
}

#[test]
fn a_crash_at_any_step_of_format_leaves_a_whole_pool_or_none_and_format_may_be_run_again() {
    let (world, _) = world(3, 2);
    format(&mut world.io(), &options(2), &mut |_| {}).unwrap();
    let writes = world.mutations().0;
    let mut rng = Rng::new(9);
    let near_the_end = (writes - 14..=writes).chain((0..6).map(|_| 1 + rng.below(writes)));
    for step in near_the_end.collect::<Vec<_>>() {
        let (world, _) = self::world(step, 2);
        world.crash_after(CrashPoint::Submitted(step));
        let _ = world.until_crash(|| format(&mut world.io(), &options(2), &mut |_| {}));
        world.power_loss();
        match opened(&world) {
            Ok(pool) => assert_eq!(pool.catalog.slabs().count(), 2),
            Err(PoolError::NoSuperblock { .. }) => {
                let again = FormatOptions { force: true, uuid: Uuid::from_u128(step.into()), ..options(2) };
                format(&mut world.io(), &again, &mut |_| {}).unwrap();
                assert_eq!(opened(&world).unwrap().uuid, again.uuid);
            }
            Err(error) => panic!("step {step}: {error}"),
        }
    }
}

#[test]
fn h14_a_damaged_copy_of_a_superblock_is_rewritten_before_anything_else_and_said() {
    for at_end in [false, true] {
        let (world, disks) = made(4, 1);
        opened(&world).unwrap();
        world.rot(disks[0], if at_end { SIZE - 4096 } else { 0 }, 512);
        let pool = opened(&world).unwrap();
        let said = |notice: &Notice| matches!(notice, Notice::SuperblockRepaired { device: 0, at_end: at, why: Some(_) } if *at == at_end);
        assert!(pool.notices.iter().any(said), "{:?}", pool.notices);
        assert_eq!(pool.generation, 2);
        // The other may rot now.
        world.rot(disks[0], if at_end { 0 } else { SIZE - 4096 }, 512);
        assert_eq!(opened(&world).unwrap().generation, 3);
        world.rot(disks[0], 0, 512);
        world.rot(disks[0], SIZE - 4096, 512);
        assert!(matches!(opened(&world), Err(PoolError::NoSuperblock { device: 0, .. })));
    }
}

#[test]
fn a_rotten_copy_of_the_catalog_is_repaired_and_two_refuse_the_pool() {
    let (world, disks) = made(5, 1);
    let layout = opened(&world).unwrap().layout;
    world.rot(disks[0], layout.catalog[0], 4096);
    let pool = opened(&world).unwrap();
    assert!(pool.notices.contains(&Notice::CatalogRepaired { copy: 0, frames: 1 }), "{:?}", pool.notices);
    for start in layout.catalog {
        world.rot(disks[0], start, HALF_BYTES as u64);
    }
    let error = opened(&world).unwrap_err();
    assert!(matches!(error, PoolError::Catalog(_)) && error.to_string().contains("both copies"), "{error}");
}

#[test]
fn format_refuses_a_device_in_use_unless_forced() {
    let (world, _) = made(6, 1);
    let error = format(&mut world.io(), &options(1), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("is part of pool") && error.to_string().contains("--force"), "{error}");
    let again = FormatOptions { force: true, uuid: Uuid::from_u128(78), ..options(1) };
    format(&mut world.io(), &again, &mut |_| {}).unwrap();
    assert_eq!(opened(&world).unwrap().uuid, Uuid::from_u128(78));
}

#[test]
fn a_device_of_another_program_is_neither_opened_nor_overwritten() {
    let (world, _) = world(7, 1);
    let mut io = world.io();
    let mut block = vec![0; 4096];
    block[..8].copy_from_slice(b"EXT4FAKE");
    write(&mut io, FileId(0), 0, &block).unwrap();
    assert!(opened(&world).unwrap_err().to_string().contains("belongs to another program"));
    assert!(matches!(format(&mut io, &options(1), &mut |_| {}), Err(PoolError::InUse { device: 0, .. })));
}

#[test]
fn devices_of_other_pools_in_another_order_or_missing_are_named() {
    let (world, ids) = made(8, 2);
    let images: Vec<_> = ids.iter().map(|&id| world.image(id)).collect();
    let reopened = |order: &[usize]| {
        let world = World::new(1, WorldConfig::default());
        let config = DiskConfig { atomic_write_unit: 512, ..Default::default() };
        for &n in order {
            world.add_disk_from(config.clone(), &images[n]);
        }
        opened(&world).unwrap_err()
    };
    assert_eq!(reopened(&[1, 0]), PoolError::Order { device: 0, found: 1 });
    assert_eq!(reopened(&[0]), PoolError::Missing { found: 1, expected: 2 });
    let (other, other_ids) = self::world(9, 2);
    let uuid = Uuid::from_u128(99);
    format(&mut other.io(), &FormatOptions { uuid, ..options(2) }, &mut |_| {}).unwrap();
    let mixed = World::new(1, WorldConfig::default());
    mixed.add_disk_from(DiskConfig::default(), &images[0]);
    mixed.add_disk_from(DiskConfig::default(), &other.image(other_ids[1]));
    let expected = Uuid::from_u128(77);
    assert_eq!(opened(&mixed).unwrap_err(), PoolError::OtherPool { device: 1, found: uuid, expected });
}

#[test]
fn h8_a_pool_on_a_device_that_tears_more_than_it_did_is_refused_unless_told() {
    let world = World::new(10, WorldConfig::default());
    let disk = world.add_disk(DiskConfig { size: SIZE, atomic_write_unit: 4096, ..Default::default() });
    format(&mut world.io(), &options(1), &mut |_| {}).unwrap();
    let moved = World::new(11, WorldConfig::default());
    moved.add_disk_from(DiskConfig { atomic_write_unit: 512, ..Default::default() }, &world.image(disk));
    let error = opened(&moved).unwrap_err();
    assert_eq!(error, PoolError::Tears { device: 0, found: 512, expected: 4096 });
    assert!(open(&mut moved.io(), &OpenOptions { assume_atomic_4k: true }).is_ok());
}

#[test]
fn inspecting_changes_nothing() {
    let (world, disks) = made(12, 1);
    opened(&world).unwrap();
    world.rot(disks[0], 0, 512);
    let (before, writes) = (world.image(disks[0]).digest(), world.mutations());
    let found = inspect(&mut world.io()).unwrap();
    assert_eq!((world.image(disks[0]).digest(), world.mutations()), (before, writes));
    assert_eq!((found.generation, found.notices.len()), (1, 1));
}

#[test]
fn a_device_error_while_opening_names_device_and_place() {
    let (world, disks) = made(13, 1);
    let start = opened(&world).unwrap().layout.catalog[1];
    world.spoil(disks[0], ringway_reactor::sim::OpKind::Read, start, 4096);
    let error = opened(&world).unwrap_err();
    assert!(matches!(error, PoolError::Io { device: 0, what: "read", offset, .. } if offset == start), "{error}");
}
