//! Making a pool.
//!
//! Order, so that a crash leaves either no pool or a whole one: wipe old superblocks, barrier; write every region, barrier;
//! write the superblocks' copies, barrier; write the superblocks, barrier.

use ringway_reactor::io::{FileId, Io};
use uuid::Uuid;

use super::blocking::{barrier, read, write, zero};
use super::check::check_unit;
use super::error::{BadSuperblock, PoolError};
use super::layout::{Layout, LayoutOptions, copy_offset};
use super::superblock::{Flags, Superblock};
use crate::backend::settings::BackendSettings;
use crate::catalog::{COPY_BYTES, CatalogLog, CatalogRecord, CatalogState};
use crate::checkpoint::{CheckpointHeader, HEADER_BYTES, RING_BYTES};
use crate::checksum::Seed;
use crate::ids::ShardId;
use crate::limits::BLOCK;

/// How a pool is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatOptions {
    /// The new pool's; random, so that leftovers of any other pool have wrong checksums.
    pub uuid: Uuid,
    /// One for each device.
    pub device_uuids: Vec<Uuid>,
    /// Fixed for the life of the pool.
    pub shards: u16,
    /// Sizes of its parts.
    pub layout: LayoutOptions,
    /// The devices keep 4 KiB whole over power loss, whatever they say.
    pub assume_atomic_4k: bool,
    /// Overwrite what is there.
    pub force: bool,
    /// Seconds since 1970.
    pub created_unix_s: u64,
    /// Where snapshots will be stored, if not in the pool alone.
    pub backend: Option<BackendSettings>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes written.
    pub done: u64,
    /// Bytes to be written.
    pub total: u64,
}

/// Makes a pool of all files of `io`, whose number is the device's. Returns its layout.
pub fn format<I: Io>(
    io: &mut I,
    options: &FormatOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Layout, PoolError> {
    let infos = io.files().to_vec();
    let sizes: Vec<u64> = infos.iter().map(|info| info.size).collect();
    let layout = Layout::compute(&sizes, options.shards, &options.layout)?;
    if options.device_uuids.len() != sizes.len() {
        return Err(PoolError::Devices(options.device_uuids.len()));
    }
    for (device, info) in infos.iter().enumerate() {
        check_unit(device as u16, info, 512, options.assume_atomic_4k)?;
        if !options.force {
            check_unused(io, device as u16, info.size)?;
        }
    }
    let shards = u64::from(options.shards);
    let total = shards * (layout.journal_bytes + RING_BYTES as u64) + 2 * COPY_BYTES as u64;
    let mut done = 0;
    let mut step = |bytes| {
        done += bytes;
        progress(Progress { done, total });
    };
    wipe(io, &sizes)?;
    let zero_file = FileId(0);
    let rings = layout.checkpoints..layout.checkpoints + shards * RING_BYTES as u64;
    zero(io, zero_file, rings, &mut step)?;
    zero(io, zero_file, layout.journals..layout.journals + shards * layout.journal_bytes, &mut step)?;
    for start in layout.catalog {
        zero(io, zero_file, start..start + COPY_BYTES as u64, &mut step)?;
    }
    write_first_checkpoints(io, &layout, options.uuid)?;
    write_first_catalog(io, &layout, options, &sizes)?;
    barrier(io, zero_file)?;
    let superblocks = superblocks(&layout, options, &infos);
    for at_end in [true, false] {
        for superblock in &superblocks {
            write_superblock(io, superblock, at_end)?;
        }
        for device in 0..sizes.len() {
            barrier(io, FileId(device as u16))?;
        }
    }
    Ok(layout)
}

/// Byte at which a copy of the superblock is.
fn superblock_offset(superblock: &Superblock, at_end: bool) -> u64 {
    if at_end { copy_offset(superblock.bytes) } else { 0 }
}

pub(super) fn write_superblock<I: Io>(io: &mut I, superblock: &Superblock, at_end: bool) -> Result<(), PoolError> {
    write(io, FileId(superblock.number), superblock_offset(superblock, at_end), &superblock.encode())
}

/// Refuses a device with anything in its first block, or a copy of a superblock at its end.
fn check_unused<I: Io>(io: &mut I, device: u16, size: u64) -> Result<(), PoolError> {
    let block = BLOCK as usize;
    let front = Superblock::decode(&read(io, FileId(device), 0, block)?);
    let back = Superblock::decode(&read(io, FileId(device), copy_offset(size), block)?);
    let found = match (front, back) {
        (Err(BadSuperblock::Empty), Err(_)) => return Ok(()),
        (Ok(superblock), _) | (_, Ok(superblock)) => format!("is part of pool {}", superblock.pool),
        (Err(error), _) => format!("is in use: its first block {error}"),
    };
    Err(PoolError::InUse { device, found })
}

fn wipe<I: Io>(io: &mut I, sizes: &[u64]) -> Result<(), PoolError> {
    for (device, &size) in sizes.iter().enumerate() {
        let file = FileId(device as u16);
        for offset in [0, copy_offset(size)] {
            zero(io, file, offset..offset + BLOCK, &mut |_| {})?;
        }
        barrier(io, file)?;
    }
    Ok(())
}

fn write_first_checkpoints<I: Io>(io: &mut I, layout: &Layout, pool: Uuid) -> Result<(), PoolError> {
    let header = CheckpointHeader::first(0);
    for shard in (0..layout.shards).map(ShardId) {
        let mut bytes = vec![0; HEADER_BYTES];
        header.encode(shard, Seed::pool(pool).shard(shard), &mut bytes);
        write(io, FileId(0), layout.checkpoint_ring(shard) + header.slot(), &bytes)?;
    }
    Ok(())
}

/// The catalog of a new pool: its devices, and one slab for each shard.
fn write_first_catalog<I: Io>(
    io: &mut I,
    layout: &Layout,
    options: &FormatOptions,
    sizes: &[u64],
) -> Result<(), PoolError> {
    let mut state = CatalogState::default();
    let devices = options.device_uuids.iter().zip(sizes).enumerate();
    let devices = devices.map(|(number, (&uuid, &size))| CatalogRecord::DeviceAdded(number as u8, uuid, size));
    let slabs = layout.geometry.slabs().zip((0..layout.shards).map(ShardId));
    let slabs = slabs.map(|(slab, shard)| CatalogRecord::SlabOwned(slab, Some(shard)));
    // Made and never opened is closed in good order.
    let closed = std::iter::once(CatalogRecord::Closed(0));
    let backend = options.backend.clone().map(|backend| CatalogRecord::BackendSet(Some(backend)));
    for record in devices.chain(slabs).chain(closed).chain(backend) {
        state.apply(&record).expect("a new pool has no contradictions");
    }
    let (_, frames) = CatalogLog::format(Seed::pool(options.uuid), &state)?;
    for start in layout.catalog {
        for frame in &frames {
            write(io, FileId(0), start + frame.offset, &frame.bytes)?;
        }
    }
    Ok(())
}

fn superblocks(layout: &Layout, options: &FormatOptions, infos: &[ringway_reactor::io::FileInfo]) -> Vec<Superblock> {
    let of_zero = |number: usize, value: u64| if number == 0 { value } else { 0 };
    let areas = layout.geometry.areas();
    (infos.iter().zip(areas).zip(&options.device_uuids).enumerate())
        .map(|(number, ((info, &slabs), &uuid))| Superblock {
            flags: Flags::default(),
            pool: options.uuid,
            uuid,
            number: number as u16,
            devices: infos.len() as u16,
            shards: layout.shards,
            bytes: info.size,
            atomic_unit: info.atomic_write_unit,
            assume_atomic_4k: options.assume_atomic_4k,
            slab_bytes: layout.geometry.slab_bytes(),
            slabs,
            reserve_clusters: layout.reserve_clusters,
            checkpoints: of_zero(number, layout.checkpoints),
            catalog: layout.catalog.map(|start| of_zero(number, start)),
            journals: of_zero(number, layout.journals),
            journal_bytes: of_zero(number, layout.journal_bytes),
            generation: 0,
            created_unix_s: options.created_unix_s,
        })
        .collect()
}
