//! A part of a ring in the guest's memory: its words, and its descriptors.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringway_reactor::shared::SharedMemory;

use super::guest::GuestMemory;
use super::{SetupError, area_of};

/// Bytes of a descriptor, in both kinds of ring.
pub(super) const DESCRIPTOR: usize = 16;

/// Offsets below are inside it by construction: it was located with its full length.
pub(super) struct Area {
    memory: Arc<SharedMemory>,
    start: usize,
}

impl Area {
    pub(super) fn new(
        memory: &GuestMemory,
        what: &'static str,
        addr: u64,
        len: u64,
        align: u64,
    ) -> Result<Area, SetupError> {
        let (memory, start) = area_of(memory, what, addr, len, align)?;
        Ok(Area { memory, start })
    }

    /// All numbers in rings are little-endian (virtio 1).
    pub(super) fn load(&self, at: usize, order: Ordering) -> u16 {
        u16::from_le(self.memory.load_u16(self.start + at, order))
    }

    pub(super) fn store(&self, at: usize, value: u16, order: Ordering) {
        self.memory.store_u16(self.start + at, value.to_le(), order);
    }

    pub(super) fn store_u32(&self, at: usize, value: u32, order: Ordering) {
        self.memory.store_u32(self.start + at, value.to_le(), order);
    }

    /// A copy of descriptor `index`, the only one that is looked at.
    pub(super) fn descriptor(&self, index: u16) -> [u8; DESCRIPTOR] {
        self.memory.read_array(self.start + usize::from(index) * DESCRIPTOR)
    }
}

/// Address, length, and the two 16-bit fields at the end of a descriptor: split has flags and next there, packed id and flags.
pub(super) fn parse(bytes: [u8; DESCRIPTOR]) -> (u64, u32, u16, u16) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    (
        u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        u32::from_le_bytes([i, j, k, l]),
        u16::from_le_bytes([m, n]),
        u16::from_le_bytes([o, p]),
    )
}
