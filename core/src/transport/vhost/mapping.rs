//! Files of a front end, mapped: its guest's memory, its logs.

use std::fs::File;
use std::sync::Arc;

use ringway_reactor::shared::{SharedError, SharedMemory};
use ringway_shm_ring::virtqueue::GuestRegion;
use vhost::vhost_user::message::VhostUserMemoryRegion;

/// Mappings start on a page.
const PAGE: u64 = 4096;
/// `statfs` of huge pages, whose mappings start and end on one of theirs.
const HUGETLBFS: u64 = 0x9584_58F6;

/// A region as its front end knows it, with its mappings.
#[derive(Clone)]
pub(super) struct Mapped {
    pub(super) guest: u64,
    pub(super) len: u64,
    pub(super) user: u64,
    pub(super) regions: Vec<GuestRegion>,
}

/// Maps a region.
pub(super) fn map_region(region: &VhostUserMemoryRegion, file: &File) -> Result<Mapped, SharedError> {
    let (guest, len, user, offset) = (region.guest_phys_addr, region.memory_size, region.user_addr, region.mmap_offset);
    let mut regions = Vec::new();
    if len > 0 {
        let (memory, start) = map_file(file, offset, len)?;
        regions.push(GuestRegion { guest, len, user, memory, offset: start as u64 });
    }
    Ok(Mapped { guest, len, user, regions })
}

/// Maps `len` bytes of `file` from `offset` on; returns where they start in the mapping, which begins on a page.
pub(super) fn map_file(file: &File, offset: u64, len: u64) -> Result<(Arc<SharedMemory>, usize), SharedError> {
    let huge = rustix::fs::fstatfs(file).ok().filter(|fs| fs.f_type as u64 == HUGETLBFS);
    let unit = huge.map_or(PAGE, |fs| fs.f_bsize as u64);
    let start = offset / unit * unit;
    let inside = offset - start;
    let mut total = inside.saturating_add(len);
    if unit > PAGE {
        total = total.next_multiple_of(unit);
    }
    let total = usize::try_from(total).unwrap_or(usize::MAX);
    Ok((SharedMemory::map(file, start, total)?, inside as usize))
}
