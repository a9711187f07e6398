//! Adding a device to a pool that nobody serves.
//!
//! Order, so that a crash leaves the pool with the device or without it: the new superblock at the device's end, barrier; at its
//! front, barrier; then [`Growing::commit`], which makes the catalog's record durable. Only the record counts: opening ignores a
//! device that the catalog does not know, and the next growth may overwrite it.
//!
//! Invariant: nothing of the boot before is touched. The generation stays, since the next start has to find the journals and the
//! processes' logs of the boot that wrote them.

use ringway_reactor::io::{FileId, FileInfo, Io};
use uuid::Uuid;

use super::blocking::{barrier, read};
use super::check::check_unit;
use super::error::{BadSuperblock, PoolError};
use super::format::write_superblock;
use super::layout::{copy_offset, joining_area, joining_bytes_min};
use super::open::{Found, OpenOptions, commit, generation, read_pool, repair_catalog};
use super::superblock::Superblock;
use crate::catalog::CatalogRecord;
use crate::limits::{BLOCK, DEVICES_MAX};

/// How a device joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrowOptions {
    /// The device's: random, so that what an earlier attempt left is never taken for it.
    pub uuid: Uuid,
    /// Overwrite what is there.
    pub force: bool,
    /// Seconds since 1970.
    pub created_unix_s: u64,
}

/// A device that is ready to join.
pub struct Growing {
    found: Found,
    superblock: Superblock,
}

/// Writes the superblocks of the last file of `io`, which is to join the pool on all files before it, durably. All are locked by
/// the caller (C4).
///
/// # Panics
/// If those before it are more than the pool's devices.
pub fn prepare_device<I: Io>(io: &mut I, options: &GrowOptions) -> Result<Growing, PoolError> {
    let count = io.files().len() - 1;
    let number = count as u16;
    if count >= DEVICES_MAX {
        return Err(PoolError::Devices(count + 1));
    }
    let info = io.files()[count];
    let found = read_pool(io, &OpenOptions::default(), count)?;
    assert_eq!(found.superblocks.len(), count, "the devices of the pool, and the new one");
    let first = &found.superblocks[0];
    check_unit(number, &info, 512, first.assume_atomic_4k)?;
    let lba = found.catalog.state.volumes().map(|entry| entry.record.lba_bytes).max().unwrap_or(512);
    if info.atomic_write_unit < lba && !first.assume_atomic_4k {
        return Err(PoolError::TearsVolumes { device: number, found: info.atomic_write_unit, lba });
    }
    let Some(slabs) = joining_area(info.size, first.slab_bytes) else {
        let minimum = joining_bytes_min(first.slab_bytes);
        return Err(PoolError::TooSmallToJoin { device: number, found: info.size, minimum });
    };
    if !options.force {
        check_unused(io, number, &info, &found)?;
    }
    let superblock = Superblock {
        uuid: options.uuid,
        number,
        devices: number + 1,
        bytes: info.size,
        atomic_unit: info.atomic_write_unit,
        slabs,
        checkpoints: 0,
        catalog: [0; 2],
        journals: 0,
        journal_bytes: 0,
        generation: generation(&found.superblocks),
        created_unix_s: options.created_unix_s,
        ..first.clone()
    };
    for at_end in [true, false] {
        write_superblock(io, &superblock, at_end)?;
        barrier(io, FileId(number))?;
    }
    Ok(Growing { found, superblock })
}

impl Growing {
    /// Makes the device part of the pool.
    pub fn commit<I: Io>(self, io: &mut I) -> Result<(), PoolError> {
        let Growing { mut found, superblock } = self;
        repair_catalog(io, &found.layout, &found.catalog)?;
        found.catalog.log.set_boot(generation(&found.superblocks));
        let record = CatalogRecord::DeviceAdded(superblock.number as u8, superblock.uuid, superblock.bytes);
        commit(io, &found.layout, &mut found.catalog, &record)
    }
}

/// Refuses a device that holds anything but what an earlier attempt left.
fn check_unused<I: Io>(io: &mut I, device: u16, info: &FileInfo, found: &Found) -> Result<(), PoolError> {
    let in_use = |what: String| Err(PoolError::InUse { device, found: what });
    let pool = found.superblocks[0].pool;
    let left_over = |superblock: &Superblock| {
        superblock.pool == pool && found.superblocks.iter().all(|known| known.uuid != superblock.uuid)
    };
    let block = BLOCK as usize;
    let front = Superblock::decode(&read(io, FileId(device), 0, block)?);
    let back = Superblock::decode(&read(io, FileId(device), copy_offset(info.size), block)?);
    if let Some(other) = [&front, &back].into_iter().flatten().find(|superblock| !left_over(superblock)) {
        return in_use(format!("is part of pool {}", other.pool));
    }
    match (front, back) {
        (Ok(_) | Err(BadSuperblock::Empty), _) => Ok(()),
        // The front is written last: one that a crash tore has a whole copy at the end.
        (Err(BadSuperblock::Checksum { .. }), Ok(_)) => Ok(()),
        (Err(error), _) => in_use(format!("is in use: its first block {error}")),
    }
}
