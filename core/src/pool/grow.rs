//! Adding a device to a pool: what the device itself has to hold before it may join.
//!
//! Order, so that a crash leaves the pool with the device or without it: the new superblock at the device's end, barrier; at its
//! front, barrier; then the catalog's record, durable in both copies. Only the record counts: opening ignores a device that the
//! catalog does not know, and the next growth may overwrite it. The record is [`Growing::commit`]'s where nobody serves the pool,
//! and the catalog's owner's where somebody does.
//!
//! Invariant: nothing of the boot is touched. The generation stays, since the next start has to find the journals and the
//! processes' logs of the boot that wrote them.

use ringway_reactor::io::{FileId, FileInfo, Io};
use uuid::Uuid;

use super::blocking::{barrier, read};
use super::check::check_unit;
use super::error::{BadSuperblock, PoolError};
use super::format::write_superblock;
use super::layout::{copy_offset, joining_area, joining_bytes_min};
use super::open::{Found, OpenOptions, check_left_over, commit, generation, read_pool, repair_catalog};
use super::superblock::Superblock;
use crate::catalog::{CatalogRecord, CatalogState};
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

/// What a device that is to join has to know of its pool.
#[derive(Clone, Debug)]
pub struct Joining {
    first: Superblock,
    /// Those that have joined.
    known: Vec<Uuid>,
    /// The largest logical block of the pool's volumes.
    lba_bytes: u32,
}

impl Joining {
    /// Of the pool whose device 0 has this superblock, with this catalog.
    #[must_use]
    pub fn new(first: &Superblock, generation: u32, state: &CatalogState) -> Joining {
        let lba_bytes = state.volumes().map(|entry| entry.record.lba_bytes).max().unwrap_or(512);
        let known = state.devices().map(|(_, device)| device.uuid).collect();
        Joining { first: Superblock { generation, ..first.clone() }, known, lba_bytes }
    }

    /// The number of the next device.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.known.len() as u16
    }

    /// Bytes of the smallest file that may join.
    #[must_use]
    pub fn bytes_min(&self) -> u64 {
        joining_bytes_min(self.first.slab_bytes)
    }

    /// Whether the pool may have a device more, of so many bytes.
    pub fn check_size(&self, bytes: u64) -> Result<(), PoolError> {
        let (device, minimum) = (self.number(), self.bytes_min());
        if usize::from(device) >= DEVICES_MAX {
            return Err(PoolError::Devices(usize::from(device) + 1));
        }
        if bytes < minimum {
            return Err(PoolError::TooSmallToJoin { device, found: bytes, minimum });
        }
        Ok(())
    }

    /// Whether a device that keeps `unit` bytes whole over power loss is good enough for the pool's volumes.
    pub fn check_atomic_unit(&self, unit: u32) -> Result<(), PoolError> {
        if unit < self.lba_bytes && !self.first.assume_atomic_4k {
            return Err(PoolError::TearsVolumes { device: self.number(), found: unit, lba: self.lba_bytes });
        }
        Ok(())
    }

    /// What the device promises, or is trusted with.
    #[must_use]
    pub fn trusted_unit(&self, unit: u32) -> u32 {
        if self.first.assume_atomic_4k { unit.max(4096) } else { unit }
    }

    /// Whether the files of `io` from the next device's number on are what earlier growths left, and nothing else's.
    pub fn check_left_over<I: Io>(&self, io: &mut I) -> Result<(), PoolError> {
        let infos = io.files().to_vec();
        let beyond = infos.iter().enumerate().skip(usize::from(self.number()));
        beyond.into_iter().try_for_each(|(device, info)| check_left_over(io, device as u16, info, &self.first))
    }

    /// Writes the superblocks of the device, the file of the next number on `io`, durably. It is locked by the caller (C4).
    pub fn prepare<I: Io>(&self, io: &mut I, options: &GrowOptions) -> Result<Superblock, PoolError> {
        let number = self.number();
        let info = io.files()[usize::from(number)];
        self.check_size(info.size)?;
        check_unit(number, &info, 512, self.first.assume_atomic_4k)?;
        self.check_atomic_unit(info.atomic_write_unit)?;
        let slabs = joining_area(info.size, self.first.slab_bytes).expect("its size was checked");
        if !options.force {
            self.check_unused(io, number, &info)?;
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
            created_unix_s: options.created_unix_s,
            ..self.first.clone()
        };
        for at_end in [true, false] {
            write_superblock(io, &superblock, at_end)?;
            barrier(io, FileId(number))?;
        }
        Ok(superblock)
    }

    /// Refuses a device that holds anything but what an earlier attempt left.
    fn check_unused<I: Io>(&self, io: &mut I, device: u16, info: &FileInfo) -> Result<(), PoolError> {
        let in_use = |what: String| Err(PoolError::InUse { device, found: what });
        let left_over =
            |superblock: &Superblock| superblock.pool == self.first.pool && !self.known.contains(&superblock.uuid);
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
}

/// The catalog's record that makes a prepared device part of the pool.
#[must_use]
pub fn joined(superblock: &Superblock) -> CatalogRecord {
    CatalogRecord::DeviceAdded(superblock.number as u8, superblock.uuid, superblock.bytes)
}

/// A device that is ready to join a pool that nobody serves.
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
    if count >= DEVICES_MAX {
        return Err(PoolError::Devices(count + 1));
    }
    let found = read_pool(io, &OpenOptions::default(), count)?;
    assert_eq!(found.superblocks.len(), count, "the devices of the pool, and the new one");
    let joining = Joining::new(&found.superblocks[0], generation(&found.superblocks), &found.catalog.state);
    let superblock = joining.prepare(io, options)?;
    Ok(Growing { found, superblock })
}

impl Growing {
    /// Makes the device part of the pool.
    pub fn commit<I: Io>(self, io: &mut I) -> Result<(), PoolError> {
        let Growing { mut found, superblock } = self;
        repair_catalog(io, &found.layout, &found.catalog)?;
        found.catalog.log.set_boot(generation(&found.superblocks));
        commit(io, &found.layout, &mut found.catalog, &joined(&superblock))
    }
}
