//! Split rings (virtio 1.2, section 2.7): a table of descriptors, a ring of available heads, a ring of used ones.
//!
//! Indices run freely over 16 bits; a place is the index modulo the size. Invariants: `used <= next` (as distances), and what
//! lies between is in flight: never more than the ring has entries.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use super::area::{Area, DESCRIPTOR, parse};
use super::chain::{Chain, bound};
use super::guest::GuestMemory;
use super::inflight::{InflightRegion, SplitInflight};
use super::{Head, RING_ENTRIES_MAX, RingConfig, RingError, SetupError, UsedLog, event_passed, flag};

/// The driver wants no interrupts; and the device no kicks.
const NO_NOTIFICATION: u16 = 1;

mod offset {
    pub(super) const FLAGS: usize = 0;
    pub(super) const INDEX: usize = 2;
    pub(super) const RING: usize = 4;
    pub(super) const AVAILABLE_ENTRY: usize = 2;
    pub(super) const USED_ENTRY: usize = 8;
}

pub(super) struct Split {
    size: u16,
    table: Area,
    available: Area,
    used: Area,
    event_idx: bool,
    indirect: bool,
    /// The next available entry to take, and how far the driver had come when it was last asked.
    next: u16,
    seen: u16,
    /// The next used entry to write, up to where the driver sees them, and up to where it was last told.
    used_next: u16,
    published: u16,
    in_flight: u16,
    inflight: Option<SplitInflight>,
    left_over: VecDeque<u16>,
}

impl Split {
    pub(super) fn new(
        config: &RingConfig,
        memory: &GuestMemory,
        inflight: Option<InflightRegion>,
    ) -> Result<Split, SetupError> {
        let size = config.size;
        if !size.is_power_of_two() || size > RING_ENTRIES_MAX {
            return Err(SetupError::Size(size.into()));
        }
        let base = u16::try_from(config.base).map_err(|_| SetupError::Base { base: config.base, size })?;
        let entries = u64::from(size);
        let table = Area::new(memory, "descriptor table", config.desc, entries * DESCRIPTOR as u64, 16)?;
        // With the event word behind the ring, which is there whether it is used or not.
        let available = Area::new(memory, "available ring", config.driver, 6 + 2 * entries, 2)?;
        let used = Area::new(memory, "used ring", config.device, 6 + 8 * entries, 4)?;
        let used_index = used.load(offset::INDEX, Ordering::Acquire);
        let (mut next, mut left_over) = (base, VecDeque::new());
        let inflight = match inflight {
            None => None,
            Some(region) => {
                let (inflight, heads) = SplitInflight::begin(region, size, used_index)?;
                // What was taken follows what was used, whatever the front end remembers.
                if !heads.is_empty() || base != used_index {
                    next = used_index.wrapping_add(heads.len() as u16);
                }
                left_over.extend(heads);
                Some(inflight)
            }
        };
        let mut split = Split {
            size,
            table,
            available,
            used,
            event_idx: config.event_idx,
            indirect: config.indirect,
            next,
            seen: next,
            used_next: used_index,
            published: used_index,
            in_flight: 0,
            inflight,
            left_over,
        };
        split.disarm(None);
        Ok(split)
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn left_over(&self) -> usize {
        self.left_over.len()
    }

    /// Distance from what was taken to what the driver has made available.
    fn look(&mut self) -> Result<u16, RingError> {
        if self.seen == self.next {
            // Acquire pairs with the driver's release of the index: the entries up to it, and all they lead to, are written.
            self.seen = self.available.load(offset::INDEX, Ordering::Acquire);
        }
        let ready = self.seen.wrapping_sub(self.next);
        if ready > self.size {
            return Err(RingError::IndexJump { from: self.next, to: self.seen, size: self.size });
        }
        Ok(ready)
    }

    pub(super) fn pop(&mut self, memory: &GuestMemory, chain: &mut Chain) -> Result<bool, RingError> {
        let head = match self.left_over.pop_front() {
            Some(head) => head,
            None => {
                if self.look()? == 0 {
                    return Ok(false);
                }
                let at = usize::from(self.next & (self.size - 1));
                let head = self.available.load(offset::RING + at * offset::AVAILABLE_ENTRY, Ordering::Relaxed);
                self.next = self.next.wrapping_add(1);
                head
            }
        };
        if self.in_flight == self.size {
            return Err(RingError::Overcommitted(self.size));
        }
        self.walk(head, memory, chain)?;
        if let Some(inflight) = &mut self.inflight {
            inflight.take(head);
        }
        self.in_flight += 1;
        chain.set_head(Head { id: head, ..Head::default() });
        Ok(true)
    }

    fn walk(&self, head: u16, memory: &GuestMemory, chain: &mut Chain) -> Result<(), RingError> {
        let bound = bound(self.size);
        let mut index = head;
        // A loop in the table is longer than the table before it is longer than the bound.
        for _ in 0..self.size {
            if index >= self.size {
                return Err(RingError::NoDescriptor { index, size: self.size });
            }
            let (addr, len, flags, next) = parse(self.table.descriptor(index));
            if flags & flag::INDIRECT != 0 {
                if !self.indirect || flags & flag::NEXT != 0 {
                    return Err(RingError::MisplacedIndirect);
                }
                return chain.push_indirect(memory, (addr, len), true, bound);
            }
            chain.push(addr, len, flags & flag::WRITE != 0, bound)?;
            if flags & flag::NEXT == 0 {
                return Ok(());
            }
            index = next;
        }
        Err(RingError::Endless(self.size))
    }

    pub(super) fn push(&mut self, head: Head, written: u32) {
        assert!(self.in_flight > 0, "only what was taken is pushed");
        self.in_flight -= 1;
        let at = offset::RING + usize::from(self.used_next & (self.size - 1)) * offset::USED_ENTRY;
        self.used.store_u32(at, u32::from(head.id), Ordering::Relaxed);
        self.used.store_u32(at + 4, written, Ordering::Relaxed);
        self.used_next = self.used_next.wrapping_add(1);
        if let Some(inflight) = &mut self.inflight {
            inflight.push(head.id);
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.used_next != self.published
    }

    pub(super) fn publish(&mut self, log: Option<&UsedLog>) -> bool {
        if !self.is_dirty() {
            return false;
        }
        // Release pairs with the driver's acquire: entries, status bytes and data are written.
        self.used.store(offset::INDEX, self.used_next, Ordering::Release);
        self.mark(log);
        if let Some(inflight) = &mut self.inflight {
            inflight.publish(self.used_next);
        }
        let before = std::mem::replace(&mut self.published, self.used_next);
        // Between our index and the driver's wish; pairs with the driver's fence between its wish and its look at our index
        // (store, then load of another word: history H13).
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.available.load(offset::RING + usize::from(self.size) * 2, Ordering::Relaxed);
            event_passed(event, self.published, before)
        } else {
            self.available.load(offset::FLAGS, Ordering::Relaxed) & NO_NOTIFICATION == 0
        }
    }

    /// The used ring is some pages at most: all of it.
    fn mark(&self, log: Option<&UsedLog>) {
        if let Some(used) = log {
            used.log.mark(used.ring, 6 + 8 * u64::from(self.size));
        }
    }

    pub(super) fn arm(&mut self, log: Option<&UsedLog>) -> bool {
        if self.event_idx {
            self.used.store(self.event_offset(), self.next, Ordering::Relaxed);
        } else {
            self.used.store(offset::FLAGS, 0, Ordering::Relaxed);
        }
        self.mark(log);
        // Between our wish and our look; pairs with the driver's fence between its index and its look at our wish (H13).
        fence(Ordering::SeqCst);
        // What is wrong with the index is found by the next pop.
        self.left_over.is_empty() && matches!(self.look(), Ok(0))
    }

    pub(super) fn disarm(&mut self, log: Option<&UsedLog>) {
        if self.event_idx {
            // Just passed, so that it does not come for another 65,535 chains.
            self.used.store(self.event_offset(), self.next.wrapping_sub(1), Ordering::Relaxed);
        } else {
            self.used.store(offset::FLAGS, NO_NOTIFICATION, Ordering::Relaxed);
        }
        self.mark(log);
    }

    fn event_offset(&self) -> usize {
        offset::RING + usize::from(self.size) * offset::USED_ENTRY
    }

    pub(super) fn base(&self) -> u32 {
        u32::from(self.next)
    }
}
