//! The device's side of virtqueues, split and packed (virtio 1.2, sections 2.7 and 2.8), in the memory of a guest that is not
//! trusted.
//!
//! ```text
//! pop: the driver's chain, checked, each field read once -> (somebody carries it out) -> push: the used entry -> publish: visible
//! ```
//! What a guest can do wrong to the ring itself ends in a [`RingError`], after which the ring is not looked at again: where its
//! entries are cannot be known any more. What it can do wrong in a request is its own [`Chain`]'s business.
//!
//! Notification is suppressed both ways while the ring is polled: [`VirtQueue::arm`] asks the driver for its kick and looks once
//! more, [`VirtQueue::publish`] says whether the driver wants to be interrupted.

mod area;
mod chain;
#[cfg(any(test, feature = "driver"))]
pub mod driver;
mod guest;
mod inflight;
mod log;
mod packed;
mod split;

use std::sync::Arc;

use ringway_reactor::shared::SharedMemory;

pub use chain::{Chain, Range};
pub use guest::{GuestMemory, GuestRegion, Place, TableError, Unmapped};
pub use inflight::{InflightError, InflightRegion, region_bytes as inflight_bytes};
pub use log::DirtyLog;

use packed::Packed;
use split::Split;

/// Entries of a ring at most (2.7: queue size).
pub const RING_ENTRIES_MAX: u16 = 32768;

/// Descriptors of one chain at most, tables of indirect ones included: what QEMU allows, or the ring's size where that is more.
const CHAIN_MIN_BOUND: u16 = 1024;

/// How a ring is laid out in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// Entries.
    pub size: u16,
    /// Guest addresses of the descriptor table or ring, the driver's area and the device's area.
    pub desc: u64,
    pub driver: u64,
    pub device: u64,
    /// VIRTIO_F_RING_PACKED.
    pub packed: bool,
    /// VIRTIO_F_RING_EVENT_IDX.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
    /// Where to begin, as GET_VRING_BASE and SET_VRING_BASE carry it: split, the next available index; packed, that with its wrap
    /// counter in bits 0 to 15, the next used index with its wrap counter in bits 16 to 31.
    pub base: u32,
}

/// Why a ring cannot be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// A size that rings do not have.
    #[error(
        "a ring of {0} entries: a size is a power of two up to {RING_ENTRIES_MAX}, or for a packed ring any number up to that"
    )]
    Size(u32),
    /// A part of it is somewhere else, or in two mappings.
    #[error("the ring's {what}: {why}")]
    Unmapped {
        /// Which part.
        what: &'static str,
        /// What is not there.
        why: Unmapped,
    },
    /// A part of it is not aligned as it has to be (2.7, 2.8).
    #[error("the ring's {what} at {addr:#x} is not aligned to {align} bytes")]
    Alignment {
        /// Which part.
        what: &'static str,
        /// Where.
        addr: u64,
        /// To what.
        align: u64,
    },
    /// A place to begin that the ring does not have.
    #[error("base {base:#x} is outside a ring of {size} entries")]
    Base {
        /// As it was given.
        base: u32,
        /// Entries.
        size: u16,
    },
    /// The region for requests in flight does not belong to this ring.
    #[error(transparent)]
    Inflight(#[from] InflightError),
}

/// What a driver did to its ring; it is not looked at any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// More became available than the ring can hold.
    #[error("the available index jumped from {from} to {to} in a ring of {size}")]
    IndexJump {
        /// Where we were.
        from: u16,
        /// What the driver wrote.
        to: u16,
        /// Entries.
        size: u16,
    },
    /// A descriptor that the table does not have.
    #[error("descriptor {index} of a table of {size}")]
    NoDescriptor {
        /// Its number.
        index: u16,
        /// Descriptors.
        size: u16,
    },
    /// A chain without end.
    #[error("a chain of more than {0} descriptors, or one that bites its tail")]
    Endless(u16),
    /// An indirect table that cannot be.
    #[error("an indirect table of {len} bytes at {addr:#x}")]
    BadIndirect {
        /// Where.
        addr: u64,
        /// Bytes.
        len: u32,
    },
    /// Indirect in an indirect table, together with a next one, or where it was not negotiated.
    #[error("an indirect descriptor where none may be")]
    MisplacedIndirect,
    /// A descriptor to read from after one to write to (2.6.4.2).
    #[error("a descriptor to read from after one to write to")]
    ReadAfterWrite,
    /// Chains are made available again before they were used.
    #[error("more chains are available than a ring of {0} can hold")]
    Overcommitted(u16),
}

/// What identifies a chain to its ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Split: index of the first descriptor; packed: the buffer's id.
    pub id: u16,
    /// Packed: descriptors in the ring.
    count: u16,
    /// Packed, with a region for requests in flight: its first entry there.
    slot: u16,
}

/// One ring, begun.
pub struct VirtQueue {
    kind: Kind,
    log: Option<UsedLog>,
    /// Published by [`VirtQueue::pop`], and the driver wants to be told.
    owed: bool,
}

enum Kind {
    Split(Split),
    Packed(Packed),
}

/// Where what the device writes to the ring is logged.
#[derive(Clone, Debug)]
pub struct UsedLog {
    /// The log.
    pub log: Arc<DirtyLog>,
    /// Guest address that stands for the start of the used ring (split) or of the descriptor ring (packed).
    pub ring: u64,
    /// Packed: that of the device's event area.
    pub device: u64,
}

impl VirtQueue {
    /// Begins a ring. With `inflight`, requests that a predecessor took and did not finish come out of [`VirtQueue::pop`] first,
    /// in the order in which they were taken, and its place in the ring is believed rather than `config.base`.
    pub fn new(
        config: &RingConfig,
        memory: &GuestMemory,
        inflight: Option<InflightRegion>,
        log: Option<UsedLog>,
    ) -> Result<VirtQueue, SetupError> {
        let kind = if config.packed {
            Kind::Packed(Packed::new(config, memory, inflight)?)
        } else {
            Kind::Split(Split::new(config, memory, inflight)?)
        };
        Ok(VirtQueue { kind, log, owed: false })
    }

    /// Entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        match &self.kind {
            Kind::Split(split) => split.size(),
            Kind::Packed(packed) => packed.size(),
        }
    }

    /// Takes the next chain. `false`: there is none.
    pub fn pop(&mut self, memory: &GuestMemory, chain: &mut Chain) -> Result<bool, RingError> {
        // Entries for requests in flight are used again only after the driver has seen that they are not.
        if self.is_dirty() {
            self.owed = self.publish();
        }
        chain.clear();
        match &mut self.kind {
            Kind::Split(split) => split.pop(memory, chain),
            Kind::Packed(packed) => packed.pop(memory, chain),
        }
    }

    /// A chain is done with, `written` bytes of its writable part being ours. Seen by the driver after [`VirtQueue::publish`].
    pub fn push(&mut self, head: Head, written: u32) {
        match &mut self.kind {
            Kind::Split(split) => split.push(head, written),
            Kind::Packed(packed) => packed.push(head, written),
        }
    }

    /// Whether [`VirtQueue::publish`] has something to do.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        if self.owed {
            return true;
        }
        match &self.kind {
            Kind::Split(split) => split.is_dirty(),
            Kind::Packed(packed) => packed.is_dirty(),
        }
    }

    /// Shows the driver what was pushed. Whether it wants to be told.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        let log = self.log.as_ref();
        let wanted = match &mut self.kind {
            Kind::Split(split) => split.publish(log),
            Kind::Packed(packed) => packed.publish(log),
        };
        std::mem::take(&mut self.owed) || wanted
    }

    /// Asks the driver for a kick with its next chain. `false`: there is one already.
    #[must_use]
    pub fn arm(&mut self) -> bool {
        let log = self.log.as_ref();
        match &mut self.kind {
            Kind::Split(split) => split.arm(log),
            Kind::Packed(packed) => packed.arm(log),
        }
    }

    /// The ring is polled: the driver need not kick.
    pub fn disarm(&mut self) {
        let log = self.log.as_ref();
        match &mut self.kind {
            Kind::Split(split) => split.disarm(log),
            Kind::Packed(packed) => packed.disarm(log),
        }
    }

    /// Chains of a predecessor that [`VirtQueue::pop`] has still to give.
    #[must_use]
    pub fn left_over(&self) -> usize {
        match &self.kind {
            Kind::Split(split) => split.left_over(),
            Kind::Packed(packed) => packed.left_over(),
        }
    }

    /// Where the next one begins, if nothing is in flight.
    #[must_use]
    pub fn base(&self) -> u32 {
        match &self.kind {
            Kind::Split(split) => split.base(),
            Kind::Packed(packed) => packed.base(),
        }
    }
}

/// Descriptor flags (2.7.5, 2.8.1).
mod flag {
    pub(super) const NEXT: u16 = 1;
    pub(super) const WRITE: u16 = 2;
    pub(super) const INDIRECT: u16 = 4;
    pub(super) const AVAIL: u16 = 1 << 7;
    pub(super) const USED: u16 = 1 << 15;
}

/// Whether `event` lies among the entries from `old` up to but not including `new` (2.7.7.2).
fn event_passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// The mapping of one part of a ring.
fn area_of(
    memory: &GuestMemory,
    what: &'static str,
    addr: u64,
    len: u64,
    align: u64,
) -> Result<(Arc<SharedMemory>, usize), SetupError> {
    let place = memory.locate(addr, len).map_err(|why| SetupError::Unmapped { what, why })?;
    let mapping = memory.memory(place);
    // Words are accessed at addresses of ours: the mapping's own start counts as well.
    if !addr.is_multiple_of(align) || !(mapping.as_ptr().addr() as u64 + place.offset).is_multiple_of(align) {
        return Err(SetupError::Alignment { what, addr, align });
    }
    Ok((Arc::clone(mapping), place.offset as usize))
}

#[cfg(test)]
mod tests;
