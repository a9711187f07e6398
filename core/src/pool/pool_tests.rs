//! Pools on simulated disks: made, opened, crashed at every step of both, rotted, mixed up.

use ringway_reactor::sim::{CrashPoint, DiskConfig, DiskId, Rng, World, WorldConfig};

use super::*;
use crate::catalog::HALF_BYTES;
use crate::ids::ShardId;
use crate::pool::{FormatOptions, GrowOptions, LayoutOptions, format, prepare_device};

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
        backend: None,
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
    assert!(open(&mut moved.io(), &OpenOptions { assume_atomic_4k: true, ..OpenOptions::default() }).is_ok());
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

fn grow_options(uuid: u128) -> GrowOptions {
    GrowOptions { uuid: Uuid::from_u128(uuid), force: false, created_unix_s: 1_800_000_001 }
}

fn grow(world: &World, uuid: u128) -> Result<(), PoolError> {
    let mut io = world.io();
    prepare_device(&mut io, &grow_options(uuid))?.commit(&mut io)
}

fn disk(size: u64, atomic_write_unit: u32) -> DiskConfig {
    DiskConfig { size, atomic_write_unit, ..Default::default() }
}

#[test]
fn a_pool_grows_device_by_device_and_keeps_its_boot_and_what_it_owns() {
    let (world, _) = made(20, 1);
    let before = opened(&world).unwrap();
    for n in 1..4u16 {
        world.add_disk(disk(u64::from(n) * SIZE, 512));
        grow(&world, 200 + u128::from(n)).unwrap();
        let found = inspect(&mut world.io()).unwrap();
        assert_eq!((found.generation, found.superblocks.len()), (before.generation, usize::from(n) + 1));
        assert_eq!(found.catalog.slabs().collect::<Vec<_>>(), before.catalog.slabs().collect::<Vec<_>>());
        assert_eq!(
            found.catalog.boot(),
            before.catalog.boot(),
            "the boot that wrote journals and logs stays the last one"
        );
        assert_eq!(found.notices, []);
        let added = found.layout.geometry.areas()[usize::from(n)];
        let slab = found.layout.geometry.slab_bytes();
        assert_eq!(u64::from(added.slabs), (u64::from(n) * SIZE - (1 << 20) - 4096) / slab);
    }
    assert_eq!(opened(&world).unwrap().layout.geometry.areas().len(), 4);
}

#[test]
fn a_crash_at_any_step_of_growing_leaves_the_pool_with_the_device_or_without_it_and_it_grows_again() {
    let (world, _) = made(21, 1);
    world.add_disk(disk(SIZE, 512));
    let before = world.mutations().0;
    grow(&world, 200).unwrap();
    let writes = world.mutations().0 - before;
    let mut outcomes = [0, 0];
    for step in 0..8 * (writes + 1) {
        let (world, _) = made(100 + step, 1);
        // Of a whole pool, a clean one, and of one that was left open.
        if step % 2 == 0 {
            opened(&world).unwrap();
        }
        world.add_disk(disk(SIZE, 512));
        let point = step / 4 + 1;
        world.crash_after(if step % 4 < 2 { CrashPoint::Submitted(point) } else { CrashPoint::Completed(point) });
        let done = world.until_crash(|| grow(&world, 200).unwrap()).is_ok();
        if step % 3 == 0 {
            world.kill();
            world.quiesce();
        } else {
            world.power_loss();
        }
        let pool = opened(&world).unwrap_or_else(|error| panic!("step {step}: {error}"));
        let devices = pool.superblocks.len();
        assert!(devices == 2 || !done, "step {step}: done, and not there");
        let ignored = pool.notices.contains(&Notice::DeviceIgnored { device: 1 });
        assert_eq!(ignored, devices == 1, "step {step}: {:?}", pool.notices);
        assert_eq!(pool.layout.geometry.areas().len(), devices);
        outcomes[devices - 1] += 1;
        if devices == 1 {
            grow(&world, 201).unwrap_or_else(|error| panic!("step {step}: {error}"));
            let pool = opened(&world).unwrap();
            assert_eq!((pool.superblocks.len(), pool.superblocks[1].uuid), (2, Uuid::from_u128(201)));
        }
        assert_eq!(pool.catalog.slabs().count(), 2);
    }
    assert!(outcomes[0] > 8 && outcomes[1] > 2, "both happened: {outcomes:?}");
}

#[test]
fn a_device_that_joined_is_missed_when_it_is_gone_or_another_one() {
    let (world, disks) = made(22, 1);
    let added = world.add_disk(disk(SIZE, 512));
    grow(&world, 200).unwrap();
    let images = [world.image(disks[0]), world.image(added)];
    let alone = World::new(1, WorldConfig::default());
    alone.add_disk_from(disk(0, 512), &images[0]);
    assert_eq!(opened(&alone).unwrap_err(), PoolError::Missing { found: 1, expected: 2 });
    // What another attempt left, of the same pool and number, is not it.
    let (other, _) = made(22, 1);
    let left = other.add_disk(disk(SIZE, 512));
    prepare_device(&mut other.io(), &grow_options(201)).unwrap();
    alone.add_disk_from(disk(0, 512), &other.image(left));
    let (found, expected) = (Uuid::from_u128(201), Uuid::from_u128(200));
    assert_eq!(opened(&alone).unwrap_err(), PoolError::OtherDevice { device: 1, found, expected });
}

#[test]
fn a_device_that_is_used_small_or_tears_does_not_join_and_stays_as_it_is() {
    let refused = |config: DiskConfig, content: Option<&[u8]>| {
        let (world, _) = made(23, 1);
        let added = world.add_disk(config);
        if let Some(content) = content {
            let mut block = content.to_vec();
            block.resize(4096, 0);
            write(&mut world.io(), FileId(1), 0, &block).unwrap();
        }
        let before = world.image(added).digest();
        let error = grow(&world, 200).unwrap_err();
        assert_eq!(world.image(added).digest(), before);
        error
    };
    let small = refused(disk(5 << 20, 512), None);
    assert_eq!(small, PoolError::TooSmallToJoin { device: 1, found: 5 << 20, minimum: (5 << 20) + 4096 });
    let used = refused(disk(SIZE, 512), Some(b"EXT4FAKE"));
    assert!(used.to_string().contains("belongs to another program"), "{used}");
    let (other, _) = world(24, 1);
    format(&mut other.io(), &FormatOptions { uuid: Uuid::from_u128(99), ..options(1) }, &mut |_| {}).unwrap();
    let front = other.bytes(DiskId(0), 0, 4096);
    let used = refused(disk(SIZE, 512), Some(&front));
    assert!(used.to_string().contains("is part of pool"), "{used}");
}
