//! A guest's memory as its front end has described it: guest-physical ranges, each in a mapping of ours.
//!
//! Invariants: ranges do not wrap, are not empty, do not overlap and ascend by guest address; every address that leaves this file
//! was checked against them. A hole is an error of the request that names it, never of the table.

use std::fmt;
use std::sync::Arc;

use ringway_reactor::shared::{MemoryTable, SharedBuf, SharedMemory, TableRefs};

/// A range of guest-physical addresses and where it is mapped.
#[derive(Clone, Debug)]
pub struct GuestRegion {
    /// First guest-physical address.
    pub guest: u64,
    /// Bytes.
    pub len: u64,
    /// The same byte's address in the front end's own process; ring addresses come in these.
    pub user: u64,
    /// The mapping.
    pub memory: Arc<SharedMemory>,
    /// The first byte's offset in the mapping.
    pub offset: u64,
}

/// Why a table of regions is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// A region without bytes.
    #[error("the memory region at {guest:#x} is empty")]
    Empty {
        /// Where it starts.
        guest: u64,
    },
    /// A region that goes on after the last address.
    #[error(
        "the memory region of {len:#x} bytes at {guest:#x} (in the front end {user:#x}) wraps around the address space"
    )]
    Wraps {
        /// Where it starts.
        guest: u64,
        /// Bytes.
        len: u64,
        /// Where it starts in the front end.
        user: u64,
    },
    /// Two regions share addresses.
    #[error("the memory regions at {first:#x} and {second:#x} overlap")]
    Overlap {
        /// Where one starts.
        first: u64,
        /// Where the other starts.
        second: u64,
    },
    /// A mapping that is smaller than its region.
    #[error("the memory region at {guest:#x} has {len:#x} bytes, its mapping {mapped:#x} from there on")]
    Short {
        /// Where it starts.
        guest: u64,
        /// Bytes.
        len: u64,
        /// What is mapped.
        mapped: u64,
    },
    /// More than can be numbered.
    #[error("{0} memory regions are too many")]
    TooMany(usize),
}

/// An address range that is not, or not whole, in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmapped {
    /// Where it starts.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
}

impl fmt::Display for Unmapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x} are not in the guest's memory", self.len, self.addr)
    }
}

impl std::error::Error for Unmapped {}

/// A checked range: in one mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which mapping of the table.
    pub area: u16,
    /// Offset in it.
    pub offset: u64,
}

/// The memory of one guest.
#[derive(Debug)]
pub struct GuestMemory {
    /// Ascending by guest address; a region's place is its area in `table`.
    regions: Vec<GuestRegion>,
    table: Arc<MemoryTable>,
}

impl GuestMemory {
    /// Checks the regions.
    pub fn new(mut regions: Vec<GuestRegion>) -> Result<GuestMemory, TableError> {
        if regions.len() > usize::from(u16::MAX) {
            return Err(TableError::TooMany(regions.len()));
        }
        for &GuestRegion { guest, len, user, ref memory, offset } in &regions {
            if len == 0 {
                return Err(TableError::Empty { guest });
            }
            if guest.checked_add(len).is_none() || user.checked_add(len).is_none() {
                return Err(TableError::Wraps { guest, len, user });
            }
            let mapped = (memory.len() as u64).saturating_sub(offset);
            if mapped < len {
                return Err(TableError::Short { guest, len, mapped });
            }
        }
        regions.sort_by_key(|region| region.guest);
        for pair in regions.windows(2) {
            if pair[0].guest + pair[0].len > pair[1].guest {
                return Err(TableError::Overlap { first: pair[0].guest, second: pair[1].guest });
            }
        }
        let table = MemoryTable::new(regions.iter().map(|region| Arc::clone(&region.memory)).collect());
        Ok(GuestMemory { regions, table })
    }

    /// Its regions, ascending by guest address.
    #[must_use]
    pub fn regions(&self) -> &[GuestRegion] {
        &self.regions
    }

    /// Its mappings.
    #[must_use]
    pub fn table(&self) -> &Arc<MemoryTable> {
        &self.table
    }

    /// Whether a page of it was taken away under us.
    #[must_use]
    pub fn is_faulted(&self) -> bool {
        self.table.is_faulted()
    }

    /// The region with `addr` in it: its place, and how far in `addr` is.
    fn region_of(&self, addr: u64) -> Option<(usize, &GuestRegion, u64)> {
        let at = self.regions.partition_point(|region| region.guest <= addr).checked_sub(1)?;
        let region = &self.regions[at];
        let inside = addr - region.guest;
        (inside < region.len).then_some((at, region, inside))
    }

    /// Where `len` bytes at guest address `addr` are, if they are in one region.
    pub fn locate(&self, addr: u64, len: u64) -> Result<Place, Unmapped> {
        let unmapped = Unmapped { addr, len };
        let (at, region, inside) = self.region_of(addr).ok_or(unmapped)?;
        if region.len - inside < len {
            return Err(unmapped);
        }
        Ok(Place { area: at as u16, offset: region.offset + inside })
    }

    /// Calls `each` with the pieces that `len` bytes at guest address `addr` lie in: as many as there are regions that adjoin.
    pub fn pieces(&self, addr: u64, len: u64, mut each: impl FnMut(Place, u64)) -> Result<(), Unmapped> {
        let unmapped = Unmapped { addr, len };
        let end = addr.checked_add(len).ok_or(unmapped)?;
        let mut next = addr;
        while next < end {
            let (at, region, inside) = self.region_of(next).ok_or(unmapped)?;
            let here = (region.len - inside).min(end - next);
            each(Place { area: at as u16, offset: region.offset + inside }, here);
            next += here;
        }
        Ok(())
    }

    /// Copies `to.len()` bytes from guest address `addr`.
    pub fn read(&self, addr: u64, to: &mut [u8]) -> Result<(), Unmapped> {
        let mut rest = to;
        self.pieces(addr, rest.len() as u64, |place, len| {
            let (here, more) = std::mem::take(&mut rest).split_at_mut(len as usize);
            self.memory(place).read(place.offset as usize, here);
            rest = more;
        })
    }

    /// Copies `from` to guest address `addr`.
    pub fn write(&self, addr: u64, from: &[u8]) -> Result<(), Unmapped> {
        let mut rest = from;
        self.pieces(addr, rest.len() as u64, |place, len| {
            let (here, more) = rest.split_at(len as usize);
            self.memory(place).write(place.offset as usize, here);
            rest = more;
        })
    }

    /// The mapping of a place.
    #[must_use]
    pub fn memory(&self, place: Place) -> &Arc<SharedMemory> {
        &self.table.areas()[usize::from(place.area)]
    }

    /// The guest address of the front end's address `user`, with `len` bytes after it in the same region.
    pub fn guest_of_user(&self, user: u64, len: u64) -> Result<u64, Unmapped> {
        let holds = |region: &&GuestRegion| user >= region.user && user - region.user < region.len;
        let region = self.regions.iter().find(holds).ok_or(Unmapped { addr: user, len })?;
        let inside = user - region.user;
        if region.len - inside < len {
            return Err(Unmapped { addr: user, len });
        }
        Ok(region.guest + inside)
    }

    /// References to its mappings, for requests.
    #[must_use]
    pub fn refs(&self) -> TableRefs {
        TableRefs::new(&self.table)
    }

    /// The memory of several ranges, in order, as one request's data. `refs` are of this memory.
    pub fn data(
        &self,
        refs: &mut TableRefs,
        ranges: impl IntoIterator<Item = (u64, u32)>,
    ) -> Result<SharedBuf, Unmapped> {
        let mut ranges = ranges.into_iter();
        let (Some((addr, len)), more) = (ranges.next(), ranges.next()) else {
            return Ok(self.shared(&[]));
        };
        // Nearly every request has one range, in one region.
        if more.is_none()
            && let Ok(place) = self.locate(addr, u64::from(len))
        {
            let one = SharedBuf::one(refs.take(), (place.area, place.offset, len));
            return Ok(one.expect("places are inside their mappings"));
        }
        let mut parts = Vec::new();
        for (addr, len) in [Some((addr, len)), more].into_iter().flatten().chain(ranges) {
            self.pieces(addr, u64::from(len), |place, len| parts.push((place.area, place.offset, len as u32)))?;
        }
        Ok(self.shared(&parts))
    }

    fn shared(&self, parts: &[(u16, u64, u32)]) -> SharedBuf {
        SharedBuf::new(&self.table, parts.iter().copied()).expect("places are inside their mappings")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn memory(pages: u64) -> Arc<SharedMemory> {
        SharedMemory::create("guest", (pages * PAGE) as usize).unwrap().1
    }

    fn region(guest: u64, pages: u64) -> GuestRegion {
        GuestRegion { guest, len: pages * PAGE, user: guest.wrapping_add(1 << 40), memory: memory(pages), offset: 0 }
    }

    #[test]
    fn regions_that_overlap_wrap_or_are_not_there_are_refused_by_name() {
        let overlap = GuestMemory::new(vec![region(0x3000, 2), region(0, 4)]).unwrap_err();
        assert_eq!(overlap, TableError::Overlap { first: 0, second: 0x3000 });
        assert!(matches!(GuestMemory::new(vec![region(u64::MAX - 4095, 1)]), Err(TableError::Wraps { .. })));
        let user = GuestRegion { user: u64::MAX - 10, ..region(0, 1) };
        assert!(matches!(GuestMemory::new(vec![user]), Err(TableError::Wraps { .. })));
        assert!(matches!(
            GuestMemory::new(vec![GuestRegion { len: 0, ..region(0, 1) }]),
            Err(TableError::Empty { .. })
        ));
        let short = GuestMemory::new(vec![GuestRegion { offset: 1, ..region(0, 1) }]).unwrap_err();
        assert_eq!(short, TableError::Short { guest: 0, len: PAGE, mapped: PAGE - 1 });
    }

    #[test]
    fn a_range_may_span_regions_that_adjoin_and_not_a_hole() {
        let memory = GuestMemory::new(vec![region(0, 1), region(PAGE, 1), region(3 * PAGE, 1)]).unwrap();
        let pattern: Vec<u8> = (0..200).collect();
        memory.write(PAGE - 100, &pattern).unwrap();
        let mut seen = vec![0; 200];
        memory.read(PAGE - 100, &mut seen).unwrap();
        assert_eq!(seen, pattern);
        assert_eq!(memory.data(&mut memory.refs(), [(PAGE - 100, 200)]).unwrap().pieces(), 2);
        for (addr, len) in [(2 * PAGE, 1), (2 * PAGE - 1, 2), (4 * PAGE, 1), (u64::MAX, 2), (3 * PAGE + 1, PAGE)] {
            let error = memory.read(addr, &mut vec![0; len as usize]).unwrap_err();
            assert_eq!(error, Unmapped { addr, len });
        }
        assert!(memory.locate(PAGE - 1, 2).is_err(), "in two mappings");
    }

    #[test]
    fn the_front_ends_addresses_lead_to_the_guests() {
        let memory = GuestMemory::new(vec![region(0, 1), region(1 << 32, 2)]).unwrap();
        assert_eq!(memory.guest_of_user((1 << 40) + (1 << 32) + 5, 10), Ok((1 << 32) + 5));
        assert!(memory.guest_of_user((1 << 40) + PAGE - 1, 2).is_err());
        assert!(memory.guest_of_user(5, 1).is_err());
    }
}
