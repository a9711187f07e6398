//! Requests in flight, noted where they survive this process: in memory that the front end keeps and gives to the next one
//! (VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD; the layout and the order of the steps are those of the vhost-user specification).
//!
//! Whoever is killed between any two stores leaves a region from which its successor finds exactly the chains that were taken
//! and whose end the driver cannot have seen. Stores that must not change places are Release stores: each comes after all before
//! it, and a process that dies has made a prefix of them.
//!
//! The memory is the front end's to scribble on: it is read once, when a ring begins, and checked; afterwards it is only written,
//! from tables of our own.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringway_reactor::shared::SharedMemory;

use super::area::DESCRIPTOR;

/// The layout that is written here.
const VERSION: u16 = 1;
/// Each queue's part starts on a cache line.
const ALIGN: usize = 64;

mod header {
    pub(super) const VERSION: usize = 8;
    pub(super) const ENTRIES: usize = 10;
    // Split.
    pub(super) const LAST_BATCH_HEAD: usize = 12;
    pub(super) const USED_INDEX: usize = 14;
    // Packed.
    pub(super) const FREE_HEAD: usize = 12;
    pub(super) const OLD_FREE_HEAD: usize = 14;
    /// Used index, old used index, used wrap counter and the old one in two bytes: one word, so that they change together.
    pub(super) const USED: usize = 16;
}

mod split_entry {
    pub(super) const HEADER: usize = 16;
    pub(super) const SIZE: usize = 16;
    pub(super) const IN_FLIGHT: usize = 0;
    pub(super) const NEXT: usize = 6;
    pub(super) const COUNTER: usize = 8;
}

mod packed_entry {
    pub(super) const HEADER: usize = 32;
    pub(super) const SIZE: usize = 32;
    pub(super) const IN_FLIGHT: usize = 0;
    pub(super) const NEXT: usize = 2;
    pub(super) const LAST: usize = 4;
    pub(super) const NUM: usize = 6;
    pub(super) const COUNTER: usize = 8;
    pub(super) const ID: usize = 16;
    pub(super) const FLAGS: usize = 18;
    pub(super) const LEN: usize = 20;
    pub(super) const ADDR: usize = 24;
}

/// Bytes of one queue's part.
#[must_use]
pub fn region_bytes(packed: bool, entries: u16) -> usize {
    let entries = usize::from(entries);
    let bytes = if packed {
        packed_entry::HEADER + entries * packed_entry::SIZE
    } else {
        split_entry::HEADER + entries * split_entry::SIZE
    };
    bytes.next_multiple_of(ALIGN)
}

/// Why a region is not one for this ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InflightError {
    /// Written by something newer.
    #[error("the region for requests in flight has version {0}; this target knows version {VERSION}")]
    Version(u16),
    /// Of another ring.
    #[error("the region for requests in flight is of a ring of {found} entries, this one has {wanted}")]
    Size {
        /// As it says.
        found: u16,
        /// The ring's.
        wanted: u16,
    },
    /// A chain that cannot be.
    #[error("the region for requests in flight contradicts itself at entry {0}")]
    Damaged(u16),
    /// A place in the ring that it does not have.
    #[error("the region for requests in flight has a used index of {0}, outside its ring")]
    UsedIndex(u16),
}

/// One queue's part of the memory.
#[derive(Clone, Debug)]
pub struct InflightRegion {
    memory: Arc<SharedMemory>,
    start: usize,
    /// At least as many as the ring has.
    entries: u16,
}

impl InflightRegion {
    /// The part at `start` of `memory`.
    ///
    /// # Panics
    /// If a ring of `entries` does not fit there, or it is not aligned.
    #[must_use]
    pub fn new(memory: Arc<SharedMemory>, start: usize, packed: bool, entries: u16) -> InflightRegion {
        let end = start.checked_add(region_bytes(packed, entries));
        assert!(start.is_multiple_of(ALIGN) && end.is_some_and(|end| end <= memory.len()));
        InflightRegion { memory, start, entries }
    }

    fn load(&self, at: usize) -> u16 {
        u16::from_le(self.memory.load_u16(self.start + at, Ordering::Acquire))
    }

    fn store(&self, at: usize, value: u16) {
        self.memory.store_u16(self.start + at, value.to_le(), Ordering::Release);
    }

    fn load_u64(&self, at: usize) -> u64 {
        u64::from_le(self.memory.load_u64(self.start + at, Ordering::Acquire))
    }

    fn store_u64(&self, at: usize, value: u64) {
        self.memory.store_u64(self.start + at, value.to_le(), Ordering::Release);
    }

    fn store_u32(&self, at: usize, value: u32) {
        self.memory.store_u32(self.start + at, value.to_le(), Ordering::Release);
    }

    /// Whether it has been used before; an unused one is all zeros.
    fn check(&self, size: u16) -> Result<bool, InflightError> {
        if self.entries < size {
            return Err(InflightError::Size { found: self.entries, wanted: size });
        }
        match self.load(header::VERSION) {
            0 => Ok(false),
            VERSION => match self.load(header::ENTRIES) {
                found if found == self.entries => Ok(true),
                found => Err(InflightError::Size { found, wanted: self.entries }),
            },
            other => Err(InflightError::Version(other)),
        }
    }
}

/// For a split ring: entries are its heads.
pub(super) struct SplitInflight {
    region: InflightRegion,
    next_counter: u64,
    /// Pushed and not published, the oldest first.
    batch: Vec<u16>,
    last_batch_head: u16,
}

impl SplitInflight {
    /// Takes the region over. Returns the heads that are in flight, in the order in which they were taken.
    pub(super) fn begin(
        region: InflightRegion,
        size: u16,
        used_index: u16,
    ) -> Result<(SplitInflight, Vec<u16>), InflightError> {
        let mut found = Vec::new();
        if region.check(size)? {
            Self::finish_batch(&region, size, used_index);
            let in_flight = |&head: &u16| region.load(entry(head) + split_entry::IN_FLIGHT) & 0xFF != 0;
            found = (0..size).filter(in_flight).collect();
            found.sort_by_key(|&head| region.load_u64(entry(head) + split_entry::COUNTER));
        } else {
            region.store(header::ENTRIES, region.entries);
            region.store(header::USED_INDEX, used_index);
            region.store(header::VERSION, VERSION);
        }
        let next_counter =
            found.last().map_or(0, |&head| region.load_u64(entry(head) + split_entry::COUNTER).wrapping_add(1));
        Ok((SplitInflight { region, next_counter, batch: Vec::new(), last_batch_head: 0 }, found))
    }

    /// The driver has seen a batch whose entries were not yet all cleared.
    fn finish_batch(region: &InflightRegion, size: u16, used_index: u16) {
        let count = used_index.wrapping_sub(region.load(header::USED_INDEX));
        let mut head = region.load(header::LAST_BATCH_HEAD);
        for _ in 0..count.min(size) {
            if head >= size {
                break;
            }
            region.store(entry(head) + split_entry::IN_FLIGHT, 0);
            head = region.load(entry(head) + split_entry::NEXT);
        }
        region.store(header::USED_INDEX, used_index);
    }

    /// A chain was taken.
    pub(super) fn take(&mut self, head: u16) {
        self.region.store_u64(entry(head) + split_entry::COUNTER, self.next_counter);
        self.next_counter = self.next_counter.wrapping_add(1);
        self.region.store(entry(head) + split_entry::IN_FLIGHT, 1);
    }

    /// A chain's used entry was written; the driver does not see it yet.
    pub(super) fn push(&mut self, head: u16) {
        self.region.store(entry(head) + split_entry::NEXT, self.last_batch_head);
        self.region.store(header::LAST_BATCH_HEAD, head);
        self.last_batch_head = head;
        self.batch.push(head);
    }

    /// The driver sees everything that was pushed.
    pub(super) fn publish(&mut self, used_index: u16) {
        for head in self.batch.drain(..) {
            self.region.store(entry(head) + split_entry::IN_FLIGHT, 0);
        }
        self.region.store(header::USED_INDEX, used_index);
    }
}

fn entry(head: u16) -> usize {
    split_entry::HEADER + usize::from(head) * split_entry::SIZE
}

/// Where a packed ring stands: an index and its wrap counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub(super) index: u16,
    pub(super) wrap: bool,
}

impl At {
    /// `count` descriptors on, in a ring of `size`.
    pub(super) fn plus(self, count: u16, size: u16) -> At {
        assert!(count <= size && self.index < size);
        let sum = u32::from(self.index) + u32::from(count);
        if sum >= u32::from(size) {
            At { index: (sum - u32::from(size)) as u16, wrap: !self.wrap }
        } else {
            At { index: sum as u16, wrap: self.wrap }
        }
    }
}

/// A chain of a packed ring that a predecessor took.
#[derive(Clone, Debug)]
pub(super) struct LeftOver {
    /// Its first entry.
    pub(super) slot: u16,
    pub(super) descriptors: Vec<[u8; DESCRIPTOR]>,
    counter: u64,
}

/// For a packed ring: entries hold copies of the descriptors, since the ring's own are written over.
pub(super) struct PackedInflight {
    region: InflightRegion,
    entries: u16,
    next_counter: u64,
    free_head: u16,
    /// The list of free entries, and the chains, by their next fields.
    next: Vec<u16>,
    /// The last entry of the chain that starts at an entry.
    last: Vec<u16>,
    /// Where the driver sees the ring.
    used: At,
    batch: Vec<u16>,
}

impl PackedInflight {
    /// Takes the region over. `was_seen` says whether the driver can have seen a used descriptor at a place of the ring. Returns
    /// the used index, and the chains in flight in the order in which they were taken.
    pub(super) fn begin(
        region: InflightRegion,
        size: u16,
        used: At,
        was_seen: impl Fn(At) -> bool,
    ) -> Result<(PackedInflight, At, Vec<LeftOver>), InflightError> {
        if !region.check(size)? {
            return Ok(Self::format(region, used));
        }
        let mut free_head = region.load(header::OLD_FREE_HEAD);
        let word = region.load_u64(header::USED);
        let mut used = At { index: (word >> 16) as u16, wrap: word >> 40 & 1 != 0 };
        let new = At { index: word as u16, wrap: word >> 32 & 1 != 0 };
        if let Some(at) = [used.index, new.index].into_iter().find(|&index| index >= size) {
            return Err(InflightError::UsedIndex(at));
        }
        // A batch was on its way to the driver: it counts if the driver can have seen its first entry, else it never was.
        if new != used && was_seen(used) {
            (used, free_head) = (new, region.load(header::FREE_HEAD));
        }
        let entries = region.entries;
        let next: Vec<u16> = (0..entries).map(|at| region.load(at_entry(at) + packed_entry::NEXT)).collect();
        let last: Vec<u16> = (0..entries).map(|at| region.load(at_entry(at) + packed_entry::LAST)).collect();
        let mut this =
            PackedInflight { region, entries, next_counter: 0, free_head, next, last, used, batch: Vec::new() };
        let found = this.collect()?;
        this.next_counter = found.last().map_or(0, |chain| chain.counter.wrapping_add(1));
        this.commit(used);
        Ok((this, used, found))
    }

    fn format(region: InflightRegion, used: At) -> (PackedInflight, At, Vec<LeftOver>) {
        let entries = region.entries;
        let next: Vec<u16> = (1..=entries).collect();
        for (at, &next) in next.iter().enumerate() {
            region.store(at_entry(at as u16) + packed_entry::NEXT, next);
        }
        region.store(header::ENTRIES, entries);
        let last = vec![0; usize::from(entries)];
        let mut this =
            PackedInflight { region, entries, next_counter: 0, free_head: 0, next, last, used, batch: Vec::new() };
        this.commit(used);
        this.region.store(header::VERSION, VERSION);
        (this, used, Vec::new())
    }

    /// The chains that are not on the free list. Each entry belongs to one chain or to the list.
    fn collect(&mut self) -> Result<Vec<LeftOver>, InflightError> {
        let mut owned = vec![false; usize::from(self.entries)];
        let mut free = self.free_head;
        while free < self.entries && !std::mem::replace(&mut owned[usize::from(free)], true) {
            self.region.store(at_entry(free) + packed_entry::IN_FLIGHT, 0);
            free = self.next[usize::from(free)];
        }
        let mut found = Vec::new();
        for slot in 0..self.entries {
            if owned[usize::from(slot)] || self.region.load(at_entry(slot) + packed_entry::IN_FLIGHT) & 0xFF == 0 {
                continue;
            }
            let count = self.region.load(at_entry(slot) + packed_entry::NUM);
            if count == 0 {
                return Err(InflightError::Damaged(slot));
            }
            let mut descriptors = Vec::new();
            let mut at = slot;
            for nth in 0..count {
                if at >= self.entries || std::mem::replace(&mut owned[usize::from(at)], true) {
                    return Err(InflightError::Damaged(slot));
                }
                descriptors.push(self.descriptor(at));
                if nth + 1 == count && at != self.last[usize::from(slot)] {
                    return Err(InflightError::Damaged(slot));
                }
                at = self.next[usize::from(at)];
            }
            let counter = self.region.load_u64(at_entry(slot) + packed_entry::COUNTER);
            found.push(LeftOver { slot, descriptors, counter });
        }
        // Entries of a chain that was being noted when its taker died: it was not taken, and they are free.
        for lost in (0..self.entries).filter(|&at| !owned[usize::from(at)]) {
            self.set_next(lost, self.free_head);
            self.free_head = lost;
        }
        found.sort_by_key(|chain| chain.counter);
        Ok(found)
    }

    fn descriptor(&self, at: u16) -> [u8; DESCRIPTOR] {
        let at = at_entry(at);
        let mut bytes = [0; DESCRIPTOR];
        bytes[..8].copy_from_slice(&self.region.load_u64(at + packed_entry::ADDR).to_le_bytes());
        bytes[8..10].copy_from_slice(&self.region.load(at + packed_entry::LEN).to_le_bytes());
        bytes[10..12].copy_from_slice(&self.region.load(at + packed_entry::LEN + 2).to_le_bytes());
        bytes[12..14].copy_from_slice(&self.region.load(at + packed_entry::ID).to_le_bytes());
        bytes[14..].copy_from_slice(&self.region.load(at + packed_entry::FLAGS).to_le_bytes());
        bytes
    }

    fn set_next(&mut self, at: u16, next: u16) {
        self.next[usize::from(at)] = next;
        self.region.store(at_entry(at) + packed_entry::NEXT, next);
    }

    /// A chain of these descriptors is taken; returns its first entry.
    pub(super) fn take(&mut self, descriptors: &[(u64, u32, u16, u16)]) -> u16 {
        let slot = self.free_head;
        let head = at_entry(slot);
        self.region.store(head + packed_entry::NUM, 0);
        self.region.store_u64(head + packed_entry::COUNTER, self.next_counter);
        self.next_counter = self.next_counter.wrapping_add(1);
        let mut last = slot;
        for &(addr, len, id, flags) in descriptors {
            // The ring has checked that no more descriptors are in flight than it has.
            assert!(self.free_head < self.entries, "an entry for each descriptor of the ring, at least");
            last = self.free_head;
            let at = at_entry(last);
            self.region.store_u64(at + packed_entry::ADDR, addr);
            self.region.store_u32(at + packed_entry::LEN, len);
            self.region.store(at + packed_entry::ID, id);
            self.region.store(at + packed_entry::FLAGS, flags);
            self.free_head = self.next[usize::from(last)];
        }
        self.last[usize::from(slot)] = last;
        self.region.store(head + packed_entry::LAST, last);
        self.region.store(head + packed_entry::NUM, descriptors.len() as u16);
        self.region.store(header::FREE_HEAD, self.free_head);
        // From here on it is in flight.
        self.region.store(head + packed_entry::IN_FLIGHT, 1);
        self.region.store(header::OLD_FREE_HEAD, self.free_head);
        slot
    }

    /// The chain at `slot` is done with; the driver does not see it yet. The ring is at `used` when it does.
    pub(super) fn push(&mut self, slot: u16, used: At) {
        let last = self.last[usize::from(slot)];
        self.set_next(last, self.free_head);
        self.free_head = slot;
        self.region.store(header::FREE_HEAD, slot);
        self.store_used(used);
        self.batch.push(slot);
    }

    /// The driver sees everything that was pushed.
    pub(super) fn publish(&mut self, used: At) {
        for slot in self.batch.drain(..) {
            self.region.store(at_entry(slot) + packed_entry::IN_FLIGHT, 0);
        }
        self.commit(used);
    }

    fn commit(&mut self, used: At) {
        self.region.store(header::FREE_HEAD, self.free_head);
        self.region.store(header::OLD_FREE_HEAD, self.free_head);
        self.used = used;
        self.store_used(used);
    }

    fn store_used(&self, new: At) {
        let (index, old) = (u64::from(new.index), u64::from(self.used.index));
        let (wrap, old_wrap) = (u64::from(new.wrap), u64::from(self.used.wrap));
        self.region.store_u64(header::USED, index | old << 16 | wrap << 32 | old_wrap << 40);
    }
}

fn at_entry(at: u16) -> usize {
    packed_entry::HEADER + usize::from(at) * packed_entry::SIZE
}
