//! The other side of a ring: what a guest's driver does, for tests and for whoever wants to be a guest.
//!
//! Written from the specification and not from the device's side, so that the two are each other's check.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::guest::GuestMemory;
use super::{RingConfig, event_passed, flag};

/// One piece of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Guest address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// Whether the device writes there.
    pub write: bool,
}

/// A driver's side of a ring, split or packed.
pub struct Driver {
    config: RingConfig,
    memory: Arc<GuestMemory>,
    /// Split: the next available index. Packed: the next place, and its wrap counter.
    next: u16,
    wrap: bool,
    used: u16,
    used_wrap: bool,
    /// Descriptors that belong to no chain.
    free: VecDeque<u16>,
    /// Those of each chain, by its id.
    chains: BTreeMap<u16, Vec<u16>>,
    /// Packed: descriptors made available since the device was last asked whether it wants a kick.
    unkicked: u16,
}

impl Driver {
    /// A driver of a fresh ring.
    #[must_use]
    pub fn new(config: RingConfig, memory: Arc<GuestMemory>) -> Driver {
        let free = (0..config.size).collect();
        let chains = BTreeMap::new();
        Driver { config, memory, next: 0, wrap: true, used: 0, used_wrap: true, free, chains, unkicked: 0 }
    }

    /// How its ring is laid out.
    #[must_use]
    pub fn config(&self) -> &RingConfig {
        &self.config
    }

    /// For tests that change what was agreed on.
    pub fn config_mut(&mut self) -> &mut RingConfig {
        &mut self.config
    }

    /// Its guest's memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Where the next chain goes: split, the available index; packed, the place and its wrap counter.
    #[must_use]
    pub fn next(&self) -> (u16, bool) {
        (self.next, self.wrap)
    }

    /// Where the next used entry is expected.
    #[must_use]
    pub fn used(&self) -> u16 {
        self.used
    }

    /// Descriptors that can be offered.
    #[must_use]
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// The id that the next chain will have.
    ///
    /// # Panics
    /// If nothing is free.
    #[must_use]
    pub fn next_id(&self) -> u16 {
        *self.free.front().expect("a descriptor is free")
    }

    /// Chains that are with the device.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.chains.len()
    }

    /// A word of the ring.
    #[must_use]
    pub fn word(&self, at: u64) -> u16 {
        let place = self.memory.locate(at, 2).expect("a ring is in the guest's memory");
        u16::from_le(self.memory.memory(place).load_u16(place.offset as usize, Ordering::Acquire))
    }

    /// Sets a word of the ring.
    pub fn set_word(&self, at: u64, value: u16) {
        let place = self.memory.locate(at, 2).expect("a ring is in the guest's memory");
        self.memory.memory(place).store_u16(place.offset as usize, value.to_le(), Ordering::Release);
    }

    fn long(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.memory.read(at, &mut bytes).expect("a ring is in the guest's memory");
        u32::from_le_bytes(bytes)
    }

    /// Writes descriptor `index` of a table, its last two fields in the order of its kind of ring: the last one last.
    pub fn descriptor(&self, table: u64, index: u16, addr: u64, len: u32, third: u16, fourth: u16) {
        let at = table + u64::from(index) * 16;
        let mut bytes = [0; 14];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..].copy_from_slice(&third.to_le_bytes());
        self.memory.write(at, &bytes).expect("a table is in the guest's memory");
        self.set_word(at + 14, fourth);
    }

    /// Makes a chain available; returns its id.
    ///
    /// # Panics
    /// If there are not as many descriptors.
    pub fn offer(&mut self, pieces: &[Piece]) -> u16 {
        let taken: Vec<u16> = self.free.drain(..pieces.len()).collect();
        let id = taken[0];
        if self.config.packed {
            self.offer_packed(id, pieces, 0);
        } else {
            self.offer_split(&taken, pieces);
        }
        self.chains.insert(id, taken);
        id
    }

    /// Makes a chain available whose descriptors are in a table of their own at `table`.
    pub fn offer_indirect(&mut self, table: u64, pieces: &[Piece]) -> u16 {
        for (nth, piece) in pieces.iter().enumerate() {
            let (nth, write) = (nth as u16, u16::from(piece.write) * flag::WRITE);
            let more = u16::from(usize::from(nth) + 1 < pieces.len()) * flag::NEXT;
            let (third, fourth) = if self.config.packed { (0, write) } else { (write | more, nth + 1) };
            self.descriptor(table, nth, piece.addr, piece.len, third, fourth);
        }
        let id = self.free.pop_front().expect("a descriptor is free");
        let len = pieces.len() as u32 * 16;
        if self.config.packed {
            self.offer_packed(id, &[Piece { addr: table, len, write: false }], flag::INDIRECT);
        } else {
            self.descriptor(self.config.desc, id, table, len, flag::INDIRECT, 0);
            self.offer_head(id);
        }
        self.chains.insert(id, vec![id]);
        id
    }

    fn offer_split(&mut self, taken: &[u16], pieces: &[Piece]) {
        for (nth, (&index, piece)) in taken.iter().zip(pieces).enumerate() {
            let next = taken.get(nth + 1);
            let flags = u16::from(piece.write) * flag::WRITE + u16::from(next.is_some()) * flag::NEXT;
            self.descriptor(self.config.desc, index, piece.addr, piece.len, flags, next.copied().unwrap_or(0));
        }
        self.offer_head(taken[0]);
    }

    /// Split: makes a head available, whatever it is.
    pub fn offer_head(&mut self, head: u16) {
        self.set_word(self.config.driver + 4 + 2 * u64::from(self.next % self.config.size), head);
        self.next = self.next.wrapping_add(1);
        self.set_word(self.config.driver + 2, self.next);
        self.unkicked = self.unkicked.wrapping_add(1);
    }

    /// Packed: makes these descriptors available, whatever is in flight; `extra` flags go to each.
    pub fn offer_packed(&mut self, id: u16, pieces: &[Piece], extra: u16) {
        let first = self.config.desc + u64::from(self.next) * 16 + 14;
        let mut first_flags = 0;
        for (nth, piece) in pieces.iter().enumerate() {
            let lap = if self.wrap { flag::AVAIL } else { flag::USED };
            let more = nth + 1 < pieces.len();
            let (write, more) = (u16::from(piece.write) * flag::WRITE, u16::from(more) * flag::NEXT);
            let flags = lap | extra | write | more;
            let at = self.next;
            // The first one's flags make all of them available.
            let now = if nth == 0 { self.word(first) } else { flags };
            if nth == 0 {
                first_flags = flags;
            }
            self.descriptor(self.config.desc, at, piece.addr, piece.len, id, now);
            self.next += 1;
            if self.next == self.config.size {
                (self.next, self.wrap) = (0, !self.wrap);
            }
        }
        self.set_word(first, first_flags);
        self.unkicked = self.unkicked.wrapping_add(pieces.len() as u16);
    }

    /// Whether the device wants a kick for what was offered since this was asked last.
    pub fn wants_kick(&mut self) -> bool {
        let RingConfig { size, device, packed, event_idx, .. } = self.config;
        let since = std::mem::take(&mut self.unkicked);
        // Between what was offered and the device's wish (2.7.13.4.1).
        fence(Ordering::SeqCst);
        if !packed {
            return if event_idx {
                let event = self.word(device + 4 + 8 * u64::from(size));
                event_passed(event, self.next, self.next.wrapping_sub(since))
            } else {
                self.word(device) & 1 == 0
            };
        }
        match self.word(device + 2) & 3 {
            1 => false,
            2 if event_idx => {
                let place = self.word(device);
                let mut event = place & 0x7FFF;
                if (place >> 15 != 0) != self.wrap {
                    event = event.wrapping_sub(size);
                }
                event_passed(event, self.next, self.next.wrapping_sub(since))
            }
            _ => true,
        }
    }

    /// The next chain that the device is done with: its id, and the bytes that were written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        let RingConfig { size, desc, device, packed, .. } = self.config;
        let (id, len) = if packed {
            let at = desc + u64::from(self.used) * 16;
            let flags = self.word(at + 14);
            let lap = self.used_wrap;
            if (flags & flag::AVAIL != 0) != lap || (flags & flag::USED != 0) != lap {
                return None;
            }
            (self.word(at + 12), self.long(at + 8))
        } else {
            if self.word(device + 2) == self.used {
                return None;
            }
            let at = device + 4 + 8 * u64::from(self.used % size);
            self.used = self.used.wrapping_add(1);
            (self.long(at) as u16, self.long(at + 4))
        };
        let taken = self.chains.remove(&id).expect("the device gives back what it was given");
        if packed {
            self.used += taken.len() as u16;
            if self.used >= size {
                (self.used, self.used_wrap) = (self.used - size, !self.used_wrap);
            }
        }
        self.free.extend(taken);
        Some((id, len))
    }
}
