//! Ranges of Dataset Management (nvm 3.2.3).

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Dword 11, bit 2: the host does not need the ranges' content any more (AD).
pub const ATTRIBUTE_DEALLOCATE: u32 = 1 << 2;
/// Most ranges of one command.
pub const RANGES_MAX: usize = 256;

/// One range: 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DsmRange {
    /// `0-3` Context attributes: hints, ignored.
    pub attributes: U32,
    /// `4-7` Logical blocks; not "minus one".
    pub blocks: U32,
    /// `8-15` Starting LBA.
    pub slba: U64,
}

const _: () = assert!(size_of::<DsmRange>() == 16);

impl DsmRange {
    /// A range without hints.
    #[must_use]
    pub fn new(slba: u64, blocks: u32) -> DsmRange {
        DsmRange { attributes: U32::ZERO, blocks: blocks.into(), slba: slba.into() }
    }

    /// The ranges in `bytes`; `None` if these are not whole ranges.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<&[DsmRange]> {
        <[DsmRange]>::ref_from_bytes(bytes).ok()
    }
}
