//! A place: device, size and offset in one word.
//!
//! Layout, from the top: device (8 bits), size class (8 bits, log2 of the size in 4 KiB units), offset in 4 KiB units (48
//! bits). The word 0 is no place: it would be the superblock of device 0.

use std::fmt;

use ringway_reactor::io::FileId;
use serde::{Deserialize, Serialize};

use crate::limits::{BLOCK, CLUSTER};

/// Size class of one 4 KiB page.
pub const CLASS_PAGE: u8 = 0;
/// Size class of one 64 KiB cluster, the only one that data has in this version.
pub const CLASS_CLUSTER: u8 = 4;

const _: () = assert!(BLOCK << CLASS_CLUSTER == CLUSTER);

const OFFSET_BITS: u32 = 48;
const OFFSET_MASK: u64 = (1 << OFFSET_BITS) - 1;

/// Where a cluster or a page lives in the pool.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place(u64);

impl Place {
    /// No place.
    pub const NONE: Place = Place(0);

    /// The place of `BLOCK << class` bytes at byte `offset` of device `device`.
    ///
    /// # Panics
    /// If the offset is not a multiple of 4 KiB or has more than 48 bits in that unit.
    #[must_use]
    pub fn new(device: u8, class: u8, offset: u64) -> Place {
        assert!(
            offset.is_multiple_of(BLOCK) && offset / BLOCK <= OFFSET_MASK,
            "offset {offset} is not a block of a device"
        );
        Place(u64::from(device) << 56 | u64::from(class) << OFFSET_BITS | (offset / BLOCK))
    }

    /// The word as it is on disk. Hostile until [`crate::space::Geometry::holds`] says otherwise.
    #[must_use]
    pub const fn from_raw(raw: u64) -> Place {
        Place(raw)
    }

    /// The word for the disk.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Whether this is no place.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Whether this is a place.
    #[must_use]
    pub const fn is_some(self) -> bool {
        self.0 != 0
    }

    /// Number of the device in the pool.
    #[must_use]
    pub const fn device(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// The device as [`ringway_reactor::io::Io`] numbers it.
    #[must_use]
    pub const fn file(self) -> FileId {
        FileId(self.device() as u16)
    }

    /// log2 of the size in 4 KiB units.
    #[must_use]
    pub const fn class(self) -> u8 {
        (self.0 >> OFFSET_BITS) as u8
    }

    /// Bytes from the start of the device.
    #[must_use]
    pub const fn offset(self) -> u64 {
        (self.0 & OFFSET_MASK) * BLOCK
    }

    /// Bytes. Only for a place whose class is known to be good.
    #[expect(clippy::len_without_is_empty, reason = "no place has no bytes")]
    #[must_use]
    pub const fn len(self) -> u64 {
        BLOCK << self.class()
    }

    /// The page at place `nth` (0..16) of this cluster.
    ///
    /// # Panics
    /// If this is not a cluster.
    #[must_use]
    pub fn page(self, nth: u32) -> Place {
        assert!(self.is_some() && self.class() == CLASS_CLUSTER && u64::from(nth) < CLUSTER / BLOCK);
        Place::new(self.device(), CLASS_PAGE, self.offset() + u64::from(nth) * BLOCK)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() {
            f.write_str("nowhere")
        } else {
            write!(f, "{}:{:#x}/{}", self.device(), self.offset(), self.class())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_place_gives_back_what_it_was_made_of(device: u8, class in 0u8..=4, block in 1u64..(1 << 48)) {
            let place = Place::new(device, class, block * BLOCK);
            prop_assert_eq!((place.device(), place.class(), place.offset()), (device, class, block * BLOCK));
            prop_assert_eq!(place.len(), 4096u64 << class);
            prop_assert_eq!(Place::from_raw(place.raw()), place);
            prop_assert!(place.is_some());
        }
    }

    #[test]
    fn pages_of_a_cluster_follow_each_other() {
        let cluster = Place::new(3, CLASS_CLUSTER, 1 << 20);
        assert_eq!(cluster.page(0).offset(), 1 << 20);
        assert_eq!(cluster.page(15).offset(), (1 << 20) + 15 * 4096);
        assert_eq!((cluster.page(15).device(), cluster.page(15).class()), (3, CLASS_PAGE));
    }

    #[test]
    #[should_panic(expected = "not a block")]
    fn an_offset_between_blocks_is_no_place() {
        let _ = Place::new(0, CLASS_CLUSTER, 512);
    }
}
