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
use crate::catalog::{COPY_BYTES, CatalogLog, CatalogRecord, CatalogState, KeptLogs, RecoveredCatalog, recover};
use crate::checksum::Seed;
use crate::ids::VolumeId;
use crate::limits::BLOCK;
use crate::space::Geometry;

/// How a pool is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// The devices keep 4 KiB whole over power loss, whatever they say.
    pub assume_atomic_4k: bool,
    /// Where this boot keeps the logs that survive its process: noted together with the boot.
    pub logs: Option<KeptLogs>,
    /// What the last process's logs held is gone, with the machine or without it: that is noted together with this boot, for every
    /// host that was attached, or a process killed before they are told would make everybody forget (history C3).
    pub lost: bool,
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
    /// A device beyond those that the catalog knows: left by a growth that did not come to its end. It is not used.
    DeviceIgnored {
        /// Where it was given.
        device: u16,
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
            Notice::DeviceIgnored { device } => write!(
                f,
                "device {device} is not part of the pool and is not used: adding it did not come to its end; `ringway pool \
                 grow` may be run again"
            ),
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
    let files = io.files().len();
    let mut found = read_pool(io, options, files)?;
    let mut notices = found.repair(io)?;
    notices.append(&mut found.ignored);
    let boot = generation(&found.superblocks).checked_add(1).ok_or(PoolError::Generations)?;
    found.bump(io, boot)?;
    let seed = Seed::pool(found.superblocks[0].pool);
    let mut catalog = found.catalog;
    catalog.log.set_boot(boot);
    for copy in 0..2 {
        let frames = catalog.repairs.iter().filter(|repair| repair.copy == copy).count();
        if frames > 0 {
            notices.push(Notice::CatalogRepaired { copy, frames });
        }
    }
    repair_catalog(io, &found.layout, &catalog)?;
    notices.extend(catalog.damaged.iter().map(|&volume| Notice::VolumeDamaged(volume)));
    let clean = catalog.state.is_clean();
    if !clean {
        notices.push(Notice::Unclean { boot: catalog.state.boot() });
    }
    // A boot can always be opened.
    let mut opened = vec![CatalogRecord::Opened(boot)];
    opened.extend(options.logs.clone().map(CatalogRecord::LogsKept));
    if options.lost && !clean {
        opened.extend(catalog.state.hosts_to_tell());
    }
    commit_all(io, &found.layout, &mut catalog, &opened)?;
    let RecoveredCatalog { state, log, .. } = catalog;
    Ok(OpenPool {
        uuid: found.superblocks[0].pool,
        seed,
        generation: boot,
        atomic_unit: atomic_unit(&found.superblocks, options),
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
    let options = OpenOptions { assume_atomic_4k: true, ..OpenOptions::default() };
    let files = io.files().len();
    let mut found = read_pool(io, &options, files)?;
    let mut notices = std::mem::take(&mut found.ignored);
    for (device, copies) in found.copies.iter().enumerate() {
        for (at_end, copy) in [(false, &copies[0]), (true, &copies[1])] {
            if let Some(why) = found.lacks(device, copy) {
                notices.push(Notice::SuperblockRepaired { device: device as u16, at_end, why });
            }
        }
    }
    let catalog = found.catalog;
    notices.extend(catalog.damaged.iter().map(|&volume| Notice::VolumeDamaged(volume)));
    Ok(OpenPool {
        uuid: found.superblocks[0].pool,
        seed: Seed::pool(found.superblocks[0].pool),
        generation: generation(&found.superblocks),
        atomic_unit: atomic_unit(&found.superblocks, &OpenOptions::default()),
        layout: found.layout,
        clean: catalog.state.is_clean(),
        catalog: catalog.state,
        log: catalog.log,
        notices,
        superblocks: found.superblocks,
    })
}

type Copy = Result<Superblock, BadSuperblock>;

/// What the devices say, and the catalog: of no others than those that it knows.
pub(super) struct Found {
    /// The better of each device's.
    pub(super) superblocks: Vec<Superblock>,
    copies: Vec<[Copy; 2]>,
    pub(super) layout: Layout,
    /// Of the boot before.
    pub(super) catalog: RecoveredCatalog,
    /// Devices that the catalog does not know.
    ignored: Vec<Notice>,
}

/// Reads the pool on the first `files` files. Device 0 says where the catalog is, the catalog which devices there are: one that
/// was prepared and never came into the catalog does not count, however whole its superblock is.
pub(super) fn read_pool<I: Io>(io: &mut I, options: &OpenOptions, files: usize) -> Result<Found, PoolError> {
    let infos = io.files()[..files].to_vec();
    if infos.is_empty() || infos.len() > crate::limits::DEVICES_MAX {
        return Err(PoolError::Devices(infos.len()));
    }
    let (first, both) = read_device(io, 0, &infos[0])?;
    if first.number != 0 {
        return Err(PoolError::Order { device: 0, found: first.number });
    }
    let (mut superblocks, mut copies) = (vec![first], vec![both]);
    let catalog = read_catalog(io, &superblocks[0])?;
    let known = catalog.state.devices().count();
    if known == 0 || !catalog.state.devices().map(|(number, _)| usize::from(number)).eq(0..known) {
        return Err(PoolError::Layout { device: 0, field: "list of devices in its catalog" });
    }
    if infos.len() < known {
        return Err(PoolError::Missing { found: infos.len(), expected: known });
    }
    for (device, info) in infos[..known].iter().enumerate().skip(1) {
        let (superblock, both) = read_device(io, device as u16, info)?;
        superblocks.push(superblock);
        copies.push(both);
    }
    check_set(&superblocks, &infos, options)?;
    let layout = layout(&superblocks)?;
    check_catalog(&catalog, &superblocks, &layout)?;
    let mut ignored = Vec::new();
    for (device, info) in infos.iter().enumerate().skip(known) {
        check_left_over(io, device as u16, info, &superblocks[0])?;
        ignored.push(Notice::DeviceIgnored { device: device as u16 });
    }
    Ok(Found { superblocks, copies, layout, catalog, ignored })
}

/// Whether a device that the catalog does not know can be what a growth left behind; anything else was given by mistake.
pub(super) fn check_left_over<I: Io>(
    io: &mut I,
    device: u16,
    info: &FileInfo,
    first: &Superblock,
) -> Result<(), PoolError> {
    match read_device(io, device, info) {
        Ok((superblock, _)) if superblock.pool != first.pool => {
            Err(PoolError::OtherPool { device, found: superblock.pool, expected: first.pool })
        }
        Err(error @ PoolError::NoSuperblock { front: BadSuperblock::Foreign(_), .. }) => Err(error),
        // Torn, empty, too small by now: whatever it is, nothing of the pool is on it.
        _ => Ok(()),
    }
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
}

/// The catalog, from where device 0 says it is.
fn read_catalog<I: Io>(io: &mut I, first: &Superblock) -> Result<RecoveredCatalog, PoolError> {
    let mut copies = Vec::new();
    for start in layout(std::slice::from_ref(first))?.catalog {
        copies.push(read(io, FileId(0), start, COPY_BYTES)?);
    }
    Ok(recover([&copies[0], &copies[1]], first.generation, Seed::pool(first.pool))?)
}

/// Whether what the catalog names is there.
fn check_catalog(catalog: &RecoveredCatalog, superblocks: &[Superblock], layout: &Layout) -> Result<(), PoolError> {
    for ((number, device), superblock) in catalog.state.devices().zip(superblocks) {
        if superblock.uuid != device.uuid {
            let (found, expected) = (superblock.uuid, device.uuid);
            return Err(PoolError::OtherDevice { device: u16::from(number), found, expected });
        }
    }
    for (slab, shard) in catalog.state.slabs() {
        if !layout.geometry.has_slab(slab) || shard.0 >= layout.shards {
            let device = u16::from(slab.device());
            return Err(PoolError::Layout { device, field: "slab that the catalog names" });
        }
    }
    for entry in catalog.state.volumes() {
        if entry.record.shards.iter().any(|shard| shard.0 >= layout.shards) {
            return Err(PoolError::Layout { device: 0, field: "shard that a volume names" });
        }
    }
    Ok(())
}

/// The boot before.
pub(super) fn generation(superblocks: &[Superblock]) -> u32 {
    superblocks.iter().map(|superblock| superblock.generation).max().expect("a device")
}

fn atomic_unit(superblocks: &[Superblock], options: &OpenOptions) -> u32 {
    let assumed = |superblock: &Superblock| options.assume_atomic_4k || superblock.assume_atomic_4k;
    let unit = |superblock: &Superblock| superblock.atomic_unit.max(if assumed(superblock) { 4096 } else { 512 });
    superblocks.iter().map(unit).min().expect("a device")
}

/// Writes what one copy of the catalog lacks, durably.
pub(super) fn repair_catalog<I: Io>(io: &mut I, layout: &Layout, catalog: &RecoveredCatalog) -> Result<(), PoolError> {
    for repair in &catalog.repairs {
        write(io, FileId(0), layout.catalog[repair.copy] + repair.offset, &repair.bytes)?;
    }
    if catalog.repairs.is_empty() { Ok(()) } else { barrier(io, FileId(0)) }
}

/// Adds a record that fits the state to both copies of the catalog, durably. Where records were lost, everything that is left
/// is written anew, with the faults they caused.
///
/// # Panics
/// If the record contradicts the state.
pub(super) fn commit<I: Io>(
    io: &mut I,
    layout: &Layout,
    catalog: &mut RecoveredCatalog,
    record: &CatalogRecord,
) -> Result<(), PoolError> {
    commit_all(io, layout, catalog, std::slice::from_ref(record))
}

/// The same with several records: all of them take effect, or none.
fn commit_all<I: Io>(
    io: &mut I,
    layout: &Layout,
    catalog: &mut RecoveredCatalog,
    records: &[CatalogRecord],
) -> Result<(), PoolError> {
    for record in records {
        catalog.state.apply(record).expect("the record fits the state");
    }
    let full = |error: &crate::catalog::AppendError| *error == crate::catalog::AppendError::NeedsCompaction;
    let frames = if catalog.damaged.is_empty() {
        match catalog.log.append(records) {
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
