//! Opening a pool, first step: superblocks, generation, catalog. Shards are recovered after it, each by itself.
//!
//! Order (H14, C15): a copy of the superblock that is damaged or behind is rewritten and durable before anything else changes;
//! the boot generation is durable in all copies before the first stamp; the catalog's copies are equal before anything is
//! appended. At every moment at least one copy of each superblock is whole.

use std::sync::Arc;

use ringway_reactor::io::{FileId, FileInfo, Io};
use uuid::Uuid;

use super::blocking::{barrier, read, write};
use super::check::check_unit;
use super::error::{BadSuperblock, PoolError};
use super::format::write_superblock;
use super::layout::{Layout, copy_offset};
use super::superblock::Superblock;
use crate::catalog::{COPY_BYTES, CatalogLog, CatalogRecord, CatalogState, RecoveredCatalog, recover};
use crate::checksum::Seed;
use crate::ids::VolumeId;
use crate::limits::BLOCK;
use crate::space::Geometry;

/// How a pool is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// The devices keep 4 KiB whole over power loss, whatever they say.
    pub assume_atomic_4k: bool,
}

/// Something that was found and dealt with, to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A copy of a superblock was damaged or behind and has been rewritten.
    SuperblockRepaired {
        /// Of which device.
        device: u16,
        /// The copy at its end.
        at_end: bool,
        /// What was wrong; `None`: it was of an earlier boot.
        why: Option<BadSuperblock>,
    },
    /// Frames of one copy of the catalog have been rewritten from the other.
    CatalogRepaired {
        /// 0 or 1.
        copy: usize,
        /// How many.
        frames: usize,
    },
    /// A record about this volume is lost in both copies; it is faulted.
    VolumeDamaged(VolumeId),
    /// The pool was not closed in good order.
    Unclean {
        /// The boot that was not closed.
        boot: u32,
    },
}

impl std::fmt::Display for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Notice::SuperblockRepaired { device, at_end, why } => {
                let copy = if *at_end { "the copy of the superblock at the end" } else { "the superblock" };
                match why {
                    Some(why) => write!(f, "device {device}: {copy} {why}; rewritten from the other"),
                    None => write!(f, "device {device}: {copy} was of an earlier boot; rewritten from the other"),
                }
            }
            Notice::CatalogRepaired { copy, frames } => {
                write!(f, "catalog: {frames} frames of copy {copy} rewritten from the other")
            }
            Notice::VolumeDamaged(volume) => {
                write!(f, "catalog: a record about volume {volume} is damaged in both copies; the volume is faulted")
            }
            Notice::Unclean { boot } => {
                write!(f, "boot {boot} was not closed in good order; journals will be replayed")
            }
        }
    }
}

/// A pool with its catalog, ready for its shards to be recovered.
#[derive(Debug)]
pub struct OpenPool {
    /// The pool.
    pub uuid: Uuid,
    /// Seed of everything in it.
    pub seed: Seed,
    /// This boot.
    pub generation: u32,
    /// Where everything is.
    pub layout: Layout,
    /// Bytes that every device keeps whole over power loss, as recorded, or 4096 where that is assumed.
    pub atomic_unit: u32,
    /// What exists.
    pub catalog: CatalogState,
    /// The catalog's writer.
    pub log: CatalogLog,
    /// What the boot before left behind: `true` if it was closed in good order.
    pub clean: bool,
    /// What was found and dealt with.
    pub notices: Vec<Notice>,
    /// Each device's superblock.
    pub superblocks: Vec<Superblock>,
}

/// Opens the pool on all files of `io` for writing. All devices are locked by the caller (C4).
pub fn open<I: Io>(io: &mut I, options: &OpenOptions) -> Result<OpenPool, PoolError> {
    let mut found = read_pool(io, options)?;
    let mut notices = found.repair(io)?;
    let boot = found.superblocks.iter().map(|superblock| superblock.generation).max().expect("a device");
    let boot = boot.checked_add(1).ok_or(PoolError::Generations)?;
    found.bump(io, boot)?;
    let seed = Seed::pool(found.superblocks[0].pool);
    let mut catalog = found.read_catalog(io, boot)?;
    for copy in 0..2 {
        let frames = catalog.repairs.iter().filter(|repair| repair.copy == copy).count();
        if frames > 0 {
            notices.push(Notice::CatalogRepaired { copy, frames });
        }
    }
    for repair in &catalog.repairs {
        write(io, FileId(0), found.layout.catalog[repair.copy] + repair.offset, &repair.bytes)?;
    }
    if !catalog.repairs.is_empty() {
        barrier(io, FileId(0))?;
    }
    notices.extend(catalog.damaged.iter().map(|&volume| Notice::VolumeDamaged(volume)));
    let clean = catalog.state.is_clean();
    if !clean {
        notices.push(Notice::Unclean { boot: catalog.state.boot() });
    }
    mark_opened(io, &found.layout, &mut catalog, boot)?;
    let RecoveredCatalog { state, log, .. } = catalog;
    Ok(OpenPool {
        uuid: found.superblocks[0].pool,
        seed,
        generation: boot,
        atomic_unit: found.atomic_unit(options),
        layout: found.layout,
        catalog: state,
        log,
        clean,
        notices,
        superblocks: found.superblocks,
    })
}

/// What [`open`] would find, without changing a byte: superblocks, layout, catalog. The generation is that of the boot before.
pub fn inspect<I: Io>(io: &mut I) -> Result<OpenPool, PoolError> {
    let options = OpenOptions { assume_atomic_4k: true };
    let found = read_pool(io, &options)?;
    let generation = found.superblocks.iter().map(|superblock| superblock.generation).max().expect("a device");
    let catalog = found.read_catalog(io, generation)?;
    let mut notices = Vec::new();
    for (device, copies) in found.copies.iter().enumerate() {
        for (at_end, copy) in [(false, &copies[0]), (true, &copies[1])] {
            if let Some(why) = found.lacks(device, copy) {
                notices.push(Notice::SuperblockRepaired { device: device as u16, at_end, why });
            }
        }
    }
    notices.extend(catalog.damaged.iter().map(|&volume| Notice::VolumeDamaged(volume)));
    Ok(OpenPool {
        uuid: found.superblocks[0].pool,
        seed: Seed::pool(found.superblocks[0].pool),
        generation,
        atomic_unit: found.atomic_unit(&OpenOptions::default()),
        layout: found.layout,
        clean: catalog.state.is_clean(),
        catalog: catalog.state,
        log: catalog.log,
        notices,
        superblocks: found.superblocks,
    })
}

type Copy = Result<Superblock, BadSuperblock>;

struct Found {
    /// The better of each device's.
    superblocks: Vec<Superblock>,
    copies: Vec<[Copy; 2]>,
    layout: Layout,
}

fn read_pool<I: Io>(io: &mut I, options: &OpenOptions) -> Result<Found, PoolError> {
    let infos = io.files().to_vec();
    if infos.is_empty() || infos.len() > crate::limits::DEVICES_MAX {
        return Err(PoolError::Devices(infos.len()));
    }
    let (mut superblocks, mut copies) = (Vec::new(), Vec::new());
    for (device, info) in infos.iter().enumerate() {
        let (superblock, both) = read_device(io, device as u16, info)?;
        superblocks.push(superblock);
        copies.push(both);
    }
    check_set(&superblocks, &infos, options)?;
    let layout = layout(&superblocks)?;
    Ok(Found { superblocks, copies, layout })
}

/// Both copies of one device's superblock, and the one that counts: the whole one with the higher generation.
fn read_device<I: Io>(io: &mut I, device: u16, info: &FileInfo) -> Result<(Superblock, [Copy; 2]), PoolError> {
    let (file, block) = (FileId(device), BLOCK as usize);
    if info.size < 2 * BLOCK {
        let minimum = super::layout::DEVICE_BYTES_MIN;
        return Err(PoolError::TooSmall { device, found: info.size, minimum, shards: 1 });
    }
    let front = Superblock::decode(&read(io, file, 0, block)?);
    if let Ok(front) = &front
        && front.bytes > info.size
    {
        return Err(PoolError::Shrunk { device, found: info.size, expected: front.bytes });
    }
    // The device may have grown since: its copy is where the end was.
    let size = front.as_ref().map_or(info.size, |front| front.bytes);
    let back = Superblock::decode(&read(io, file, copy_offset(size), block)?);
    let better = match (&front, &back) {
        (Ok(front), Ok(back)) if back.generation > front.generation => back.clone(),
        (Ok(front), _) => front.clone(),
        (Err(_), Ok(back)) => back.clone(),
        (Err(front), Err(back)) => {
            return Err(PoolError::NoSuperblock { device, front: front.clone(), back: back.clone() });
        }
    };
    if better.bytes > info.size {
        return Err(PoolError::Shrunk { device, found: info.size, expected: better.bytes });
    }
    Ok((better, [front, back]))
}

/// Whether these devices are one pool, whole and in order.
fn check_set(superblocks: &[Superblock], infos: &[FileInfo], options: &OpenOptions) -> Result<(), PoolError> {
    let first = &superblocks[0];
    for (device, superblock) in superblocks.iter().enumerate() {
        let device = device as u16;
        if superblock.pool != first.pool {
            return Err(PoolError::OtherPool { device, found: superblock.pool, expected: first.pool });
        }
        if superblock.number != device {
            return Err(PoolError::Order { device, found: superblock.number });
        }
        if (superblock.shards, superblock.slab_bytes) != (first.shards, first.slab_bytes) {
            return Err(PoolError::Layout { device, field: "number of shards or slab size" });
        }
        let assume = options.assume_atomic_4k || superblock.assume_atomic_4k;
        check_unit(device, &infos[usize::from(device)], superblock.atomic_unit, assume)?;
    }
    let expected = superblocks.iter().map(|superblock| usize::from(superblock.devices)).max().expect("a device");
    if expected != superblocks.len() {
        return Err(PoolError::Missing { found: superblocks.len(), expected });
    }
    Ok(())
}

fn layout(superblocks: &[Superblock]) -> Result<Layout, PoolError> {
    let first = &superblocks[0];
    let areas = superblocks.iter().map(|superblock| superblock.slabs).collect();
    let layout = Layout {
        shards: first.shards,
        checkpoints: first.checkpoints,
        catalog: first.catalog,
        journals: first.journals,
        journal_bytes: first.journal_bytes,
        reserve_clusters: first.reserve_clusters,
        geometry: Arc::new(Geometry::new(first.slab_bytes, areas)),
    };
    let sizes: Vec<_> = superblocks.iter().map(|superblock| superblock.bytes).collect();
    layout.check(&sizes).map_err(|field| PoolError::Layout { device: 0, field })?;
    Ok(layout)
}

impl Found {
    /// What is wrong with a copy, if anything is: `Some(None)` if it is only behind.
    fn lacks(&self, device: usize, copy: &Copy) -> Option<Option<BadSuperblock>> {
        match copy {
            Ok(copy) if *copy == self.superblocks[device] => None,
            Ok(_) => Some(None),
            Err(why) => Some(Some(why.clone())),
        }
    }

    /// Rewrites copies that are damaged or behind, durably.
    fn repair<I: Io>(&self, io: &mut I) -> Result<Vec<Notice>, PoolError> {
        let mut notices = Vec::new();
        for (device, copies) in self.copies.iter().enumerate() {
            for (at_end, copy) in [(false, &copies[0]), (true, &copies[1])] {
                let Some(why) = self.lacks(device, copy) else { continue };
                write_superblock(io, &self.superblocks[device], at_end)?;
                barrier(io, FileId(device as u16))?;
                notices.push(Notice::SuperblockRepaired { device: device as u16, at_end, why });
            }
        }
        Ok(notices)
    }

    /// Makes `boot` the generation of every copy, one after the other.
    fn bump<I: Io>(&mut self, io: &mut I, boot: u32) -> Result<(), PoolError> {
        self.superblocks.iter_mut().for_each(|superblock| superblock.generation = boot);
        for at_end in [true, false] {
            for superblock in &self.superblocks {
                write_superblock(io, superblock, at_end)?;
                barrier(io, FileId(superblock.number))?;
            }
        }
        Ok(())
    }

    fn read_catalog<I: Io>(&self, io: &mut I, boot: u32) -> Result<RecoveredCatalog, PoolError> {
        let mut copies = Vec::new();
        for start in self.layout.catalog {
            copies.push(read(io, FileId(0), start, COPY_BYTES)?);
        }
        let seed = Seed::pool(self.superblocks[0].pool);
        let catalog = recover([&copies[0], &copies[1]], boot, seed)?;
        for (number, device) in catalog.state.devices() {
            let found = self.superblocks.get(usize::from(number)).map_or(Uuid::nil(), |superblock| superblock.uuid);
            if found != device.uuid {
                return Err(PoolError::OtherDevice { device: u16::from(number), found, expected: device.uuid });
            }
        }
        for (slab, shard) in catalog.state.slabs() {
            if !self.layout.geometry.has_slab(slab) || shard.0 >= self.layout.shards {
                return Err(PoolError::Layout {
                    device: u16::from(slab.device()),
                    field: "slab that the catalog names",
                });
            }
        }
        for entry in catalog.state.volumes() {
            if entry.record.shards.iter().any(|shard| shard.0 >= self.layout.shards) {
                return Err(PoolError::Layout { device: 0, field: "shard that a volume names" });
            }
        }
        Ok(catalog)
    }

    fn atomic_unit(&self, options: &OpenOptions) -> u32 {
        let assumed = |superblock: &Superblock| options.assume_atomic_4k || superblock.assume_atomic_4k;
        let unit = |superblock: &Superblock| superblock.atomic_unit.max(if assumed(superblock) { 4096 } else { 512 });
        self.superblocks.iter().map(unit).min().expect("a device")
    }
}

/// Notes in the catalog that this boot is in use. Where records were lost, everything that is left is written anew, with the
/// faults they caused.
fn mark_opened<I: Io>(io: &mut I, layout: &Layout, catalog: &mut RecoveredCatalog, boot: u32) -> Result<(), PoolError> {
    let opened = CatalogRecord::Opened(boot);
    catalog.state.apply(&opened).expect("a boot can always be opened");
    let full = |error: &crate::catalog::AppendError| *error == crate::catalog::AppendError::NeedsCompaction;
    let frames = if catalog.damaged.is_empty() {
        match catalog.log.append(&[opened]) {
            Ok(frame) => vec![frame],
            Err(error) if full(&error) => catalog.log.compact(&catalog.state)?,
            Err(error) => return Err(error.into()),
        }
    } else {
        catalog.log.compact(&catalog.state)?
    };
    for frame in &frames {
        for start in layout.catalog {
            write(io, FileId(0), start + frame.offset, &frame.bytes)?;
        }
    }
    barrier(io, FileId(0))
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
