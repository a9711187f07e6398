//! Whole pools on simulated disks.

use ringway_reactor::sim::{DiskConfig, World, WorldConfig};
use uuid::Uuid;

use super::*;
use crate::pool::{FormatOptions, LayoutOptions, OpenOptions, format, open};

const SIZE: u64 = 32 << 20;

fn made(disks: usize) -> World {
    let world = World::new(3, WorldConfig::default());
    for _ in 0..disks {
        world.add_disk(DiskConfig { size: SIZE, ..Default::default() });
    }
    let options = FormatOptions {
        uuid: Uuid::from_u128(77),
        device_uuids: (0..disks).map(|n| Uuid::from_u128(100 + n as u128)).collect(),
        shards: 2,
        layout: LayoutOptions { journal_bytes: Some(1 << 20), ..Default::default() },
        assume_atomic_4k: true,
        force: false,
        created_unix_s: 1_800_000_000,
        backend: None,
    };
    format(&mut world.io(), &options, &mut |_| {}).unwrap();
    world
}

fn inspected(world: &World) -> Result<PoolReport, PoolError> {
    inspect_pool(&mut world.io(), true, &mut |_| {})
}

fn overwrite(world: &World, device: u16, offset: u64) {
    let mut io = world.io();
    blocking::write(&mut io, FileId(device), offset, &[0xA5; 4096]).unwrap();
    blocking::barrier(&mut io, FileId(device)).unwrap();
}

#[test]
fn a_new_pool_is_sound_and_looking_at_it_changes_nothing() {
    for disks in [1, 2] {
        let world = made(disks);
        let report = inspected(&world).unwrap();
        assert_eq!(report.all_findings().collect::<Vec<_>>(), Vec::<&Finding>::new());
        assert_eq!((report.devices.len(), report.shards.len(), report.volumes.len()), (disks, 2, 0));
        assert_eq!((report.boot_generation, report.clean), (0, true));
        assert_eq!(inspected(&world).unwrap(), report);
    }
}

#[test]
fn a_pool_that_was_not_closed_is_sound_too() {
    let world = made(1);
    open(&mut world.io(), &OpenOptions::default()).unwrap();
    let report = inspected(&world).unwrap();
    assert_eq!((report.faults(), report.boot_generation, report.clean), (0, 1, false), "{report:#?}");
}

#[test]
fn one_damaged_superblock_is_a_note_and_two_are_the_end() {
    let world = made(2);
    overwrite(&world, 1, 0);
    let report = inspected(&world).unwrap();
    assert_eq!(report.faults(), 0);
    assert!(report.findings[0].what.contains("device 1: the superblock"), "{report:#?}");
    overwrite(&world, 1, SIZE - 4096);
    assert!(inspected(&world).unwrap_err().to_string().contains("device 1"));
}

#[test]
fn a_shard_whose_checkpoint_rots_is_a_fault_and_the_other_is_still_looked_at() {
    let world = made(1);
    let ring = pool::inspect(&mut world.io()).unwrap().layout.checkpoint_ring(ShardId(1));
    for slot in 0..8 {
        overwrite(&world, 0, ring + slot * 4096);
    }
    let report = inspected(&world).unwrap();
    assert_eq!((report.shards[0].findings.len(), report.faults()), (0, 1), "{report:#?}");
    assert_eq!(report.all_findings().find(|f| f.severity == Severity::Fault).unwrap().shard, Some(ShardId(1)));
}
