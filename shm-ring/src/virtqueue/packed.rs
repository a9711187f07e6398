//! Packed rings (virtio 1.2, section 2.8): one ring of descriptors that the driver makes available and the device writes over.
//!
//! A descriptor at a place is available in the lap with wrap counter `w` if its AVAIL bit is `w` and its USED bit is not; it is used
//! if both are. Invariant: the descriptors from `used` up to `next` are in flight, never more than the ring has.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use super::area::{Area, DESCRIPTOR, parse};
use super::chain::{Chain, bound};
use super::guest::GuestMemory;
use super::inflight::{At, InflightRegion, LeftOver, PackedInflight};
use super::{Head, RING_ENTRIES_MAX, RingConfig, RingError, SetupError, UsedLog, event_passed, flag};

mod offset {
    pub(super) const LEN: usize = 8;
    pub(super) const ID: usize = 12;
    pub(super) const FLAGS: usize = 14;
    /// In the areas of driver and device: the place of the event, and whether it counts.
    pub(super) const EVENT: usize = 0;
    pub(super) const EVENT_FLAGS: usize = 2;
}

/// Values of the event flags (2.8.14).
mod event {
    pub(super) const ENABLE: u16 = 0;
    pub(super) const DISABLE: u16 = 1;
    pub(super) const DESCRIPTOR: u16 = 2;
}

/// The wrap counter's place beside a 15-bit index.
const WRAP: u16 = 1 << 15;

pub(super) struct Packed {
    size: u16,
    ring: Area,
    driver: Area,
    device: Area,
    event_idx: bool,
    indirect: bool,
    next: At,
    used: At,
    /// Descriptors taken and not pushed.
    in_flight: u16,
    /// The flags of the first used descriptor that the driver does not see yet, and where.
    hidden: Option<(u16, u16)>,
    /// The driver sees something, and was not asked whether it wants to be told.
    shown: bool,
    /// Descriptors used since the driver was last asked whether it wants to be told.
    unsignalled: u16,
    inflight: Option<PackedInflight>,
    left_over: VecDeque<LeftOver>,
    /// The descriptors of the chain being taken: address, length, id, flags.
    taken: Vec<(u64, u32, u16, u16)>,
}

impl Packed {
    pub(super) fn new(
        config: &RingConfig,
        memory: &GuestMemory,
        inflight: Option<InflightRegion>,
    ) -> Result<Packed, SetupError> {
        let size = config.size;
        if size == 0 || size > RING_ENTRIES_MAX {
            return Err(SetupError::Size(size.into()));
        }
        let ring = Area::new(memory, "descriptor ring", config.desc, u64::from(size) * DESCRIPTOR as u64, 16)?;
        let driver = Area::new(memory, "driver's event area", config.driver, 4, 4)?;
        let device = Area::new(memory, "device's event area", config.device, 4, 4)?;
        let (mut next, mut used) = places(config.base, size, &ring)?;
        let mut left_over = VecDeque::new();
        let inflight = match inflight {
            None => None,
            Some(region) => {
                // Used in that lap, or made available in the one after it.
                let was_seen = |at: At| is_used(flags_at(&ring, at.index), at.wrap);
                let (inflight, at, found) = PackedInflight::begin(region, size, used, was_seen)?;
                let count: usize = found.iter().map(|chain| chain.descriptors.len()).sum();
                // What was taken follows what was used, whatever the front end remembers.
                if at != used || count > 0 {
                    used = at;
                    next = used.plus(count as u16, size);
                }
                left_over.extend(found);
                Some(inflight)
            }
        };
        let mut packed = Packed {
            size,
            ring,
            driver,
            device,
            event_idx: config.event_idx,
            indirect: config.indirect,
            next,
            used,
            in_flight: 0,
            hidden: None,
            shown: false,
            unsignalled: 0,
            inflight,
            left_over,
            taken: Vec::new(),
        };
        packed.disarm(None);
        Ok(packed)
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn left_over(&self) -> usize {
        self.left_over.len()
    }

    fn is_ready(&self) -> bool {
        // Acquire pairs with the driver's release of the flags: the whole chain is written, and all it leads to.
        let flags = flags_at(&self.ring, self.next.index);
        is_available(flags, self.next.wrap) && !is_used(flags, self.next.wrap)
    }

    pub(super) fn pop(&mut self, memory: &GuestMemory, chain: &mut Chain) -> Result<bool, RingError> {
        if let Some(old) = self.left_over.pop_front() {
            return self.pop_left_over(&old, memory, chain);
        }
        if !self.is_ready() {
            return Ok(false);
        }
        self.taken.clear();
        let mut at = self.next;
        loop {
            if self.in_flight + self.taken.len() as u16 >= self.size {
                return Err(RingError::Overcommitted(self.size));
            }
            let (addr, len, id, flags) = parse(self.ring.descriptor(at.index));
            at = at.plus(1, self.size);
            self.taken.push((addr, len, id, flags));
            if flags & flag::NEXT == 0 {
                break;
            }
        }
        self.read_taken(memory, chain)?;
        let slot = self.inflight.as_mut().map_or(0, |inflight| inflight.take(&self.taken));
        self.finish_take(slot, chain);
        self.next = at;
        Ok(true)
    }

    /// It is noted as in flight already, and `next` is beyond it.
    fn pop_left_over(&mut self, old: &LeftOver, memory: &GuestMemory, chain: &mut Chain) -> Result<bool, RingError> {
        self.taken.clear();
        self.taken.extend(old.descriptors.iter().map(|&bytes| parse(bytes)));
        if usize::from(self.in_flight) + self.taken.len() > usize::from(self.size) {
            return Err(RingError::Overcommitted(self.size));
        }
        self.read_taken(memory, chain)?;
        self.finish_take(old.slot, chain);
        Ok(true)
    }

    fn finish_take(&mut self, slot: u16, chain: &mut Chain) {
        let count = self.taken.len() as u16;
        self.in_flight += count;
        // The buffer's id is in its last descriptor (2.8.6).
        let id = self.taken.last().expect("a chain has a descriptor").2;
        chain.set_head(Head { id, count, slot });
    }

    /// The memory that the descriptors name.
    fn read_taken(&self, memory: &GuestMemory, chain: &mut Chain) -> Result<(), RingError> {
        let bound = bound(self.size);
        for &(addr, len, _, flags) in &self.taken {
            if flags & flag::INDIRECT != 0 {
                if !self.indirect || self.taken.len() != 1 {
                    return Err(RingError::MisplacedIndirect);
                }
                return chain.push_indirect(memory, (addr, len), false, bound);
            }
            chain.push(addr, len, flags & flag::WRITE != 0, bound)?;
        }
        Ok(())
    }

    pub(super) fn push(&mut self, head: Head, written: u32) {
        assert!(head.count > 0 && self.in_flight >= head.count, "only what was taken is pushed");
        // A successor can tell whether the driver has seen one entry, not how many of several.
        if self.inflight.is_some() {
            self.show();
        }
        self.in_flight -= head.count;
        let at = usize::from(self.used.index) * DESCRIPTOR;
        self.ring.store_u32(at + offset::LEN, written, Ordering::Relaxed);
        self.ring.store(at + offset::ID, head.id, Ordering::Relaxed);
        let lap = if self.used.wrap { flag::AVAIL | flag::USED } else { 0 };
        let flags = lap | if written > 0 { flag::WRITE } else { 0 };
        // The driver goes by the first: the others may show before it.
        match self.hidden {
            None => self.hidden = Some((self.used.index, flags)),
            Some(_) => self.ring.store(at + offset::FLAGS, flags, Ordering::Release),
        }
        self.used = self.used.plus(head.count, self.size);
        self.unsignalled = self.unsignalled.wrapping_add(head.count);
        if let Some(inflight) = &mut self.inflight {
            inflight.push(head.slot, self.used);
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.hidden.is_some() || self.shown
    }

    fn show(&mut self) {
        let Some((index, flags)) = self.hidden.take() else { return };
        // Release pairs with the driver's acquire of the flags: what follows in the ring, status bytes and data are written.
        self.ring.store(usize::from(index) * DESCRIPTOR + offset::FLAGS, flags, Ordering::Release);
        if let Some(inflight) = &mut self.inflight {
            inflight.publish(self.used);
        }
        self.shown = true;
    }

    pub(super) fn publish(&mut self, log: Option<&UsedLog>) -> bool {
        self.show();
        if !std::mem::take(&mut self.shown) {
            return false;
        }
        if let Some(used) = log {
            used.log.mark(used.ring, u64::from(self.size) * DESCRIPTOR as u64);
        }
        let since = std::mem::take(&mut self.unsignalled);
        // Between our flags and the driver's wish; pairs with the driver's fence between its wish and its look (history H13).
        fence(Ordering::SeqCst);
        match self.driver.load(offset::EVENT_FLAGS, Ordering::Acquire) & 3 {
            event::DISABLE => false,
            event::DESCRIPTOR if self.event_idx => {
                let place = self.driver.load(offset::EVENT, Ordering::Relaxed);
                let mut at = place & !WRAP;
                if (place & WRAP != 0) != self.used.wrap {
                    at = at.wrapping_sub(self.size);
                }
                event_passed(at, self.used.index, self.used.index.wrapping_sub(since))
            }
            _ => true,
        }
    }

    pub(super) fn arm(&mut self, log: Option<&UsedLog>) -> bool {
        let mut flags = event::ENABLE;
        if self.event_idx {
            self.device.store(offset::EVENT, word(self.next), Ordering::Relaxed);
            flags = event::DESCRIPTOR;
        }
        // Release: the place before the flags that make it count.
        self.device.store(offset::EVENT_FLAGS, flags, Ordering::Release);
        self.mark_device(log);
        // Between our wish and our look; pairs with the driver's fence between its flags and its look at our wish (H13).
        fence(Ordering::SeqCst);
        self.left_over.is_empty() && !self.is_ready()
    }

    pub(super) fn disarm(&mut self, log: Option<&UsedLog>) {
        self.device.store(offset::EVENT_FLAGS, event::DISABLE, Ordering::Relaxed);
        self.mark_device(log);
    }

    fn mark_device(&self, log: Option<&UsedLog>) {
        if let Some(used) = log {
            used.log.mark(used.device, 4);
        }
    }

    pub(super) fn base(&self) -> u32 {
        u32::from(word(self.next)) | u32::from(word(self.used)) << 16
    }
}

/// Where to begin. A base of 0 is also what front ends send that know only split rings; a ring whose first descriptor was never used
/// is in its first lap, whatever they send.
fn places(base: u32, size: u16, ring: &Area) -> Result<(At, At), SetupError> {
    let at = |word: u16| At { index: word & !WRAP, wrap: word & WRAP != 0 };
    let (mut next, mut used) = (at(base as u16), at((base >> 16) as u16));
    if base == 0 && flags_at(ring, 0) & flag::USED == 0 {
        (next.wrap, used.wrap) = (true, true);
    }
    // Front ends that know nothing of the upper half: nothing is in flight.
    if base >> 16 == 0 && base != 0 {
        used = next;
    }
    if next.index >= size || used.index >= size {
        return Err(SetupError::Base { base, size });
    }
    Ok((next, used))
}

fn word(at: At) -> u16 {
    at.index | if at.wrap { WRAP } else { 0 }
}

fn flags_at(ring: &Area, index: u16) -> u16 {
    ring.load(usize::from(index) * DESCRIPTOR + offset::FLAGS, Ordering::Acquire)
}

fn is_available(flags: u16, wrap: bool) -> bool {
    (flags & flag::AVAIL != 0) == wrap
}

fn is_used(flags: u16, wrap: bool) -> bool {
    (flags & flag::USED != 0) == wrap
}
