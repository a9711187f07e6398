//! A block that says what it is: volume, offset, sequence, writer and a checksum over the whole.
//!
//! The unit is 4096 bytes, or 512 for smaller I/O. Every sector of 512 bytes past the first repeats sequence and offset, so
//! that a unit made of two writes is told from plain garbage. What a unit should hold is the oracle's business.

use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "RWBLOCK1".
const MAGIC: u64 = 0x314b_434f_4c42_5752;
/// Devices tear at this or at a multiple of it.
pub const SECTOR: usize = 512;
/// Mark in the upper half of a sector's offset word: no data word of a header looks like it.
const SECTOR_MARK: u32 = 0x5ec7_0000;

/// The front of a unit.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: U64,
    volume: [u8; 16],
    offset: U64,
    sequence: U64,
    writer: U64,
    len: U32,
    /// CRC32C of the unit with this field zero.
    crc: U32,
}

/// The front of every further sector.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SectorHeader {
    sequence: U64,
    mark: U32,
    crc_of_offset: U32,
}

const _: () = assert!(size_of::<Header>() == 56 && size_of::<SectorHeader>() == 16);
const CRC_AT: usize = 52;

/// What a unit says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The namespace's UUID.
    pub volume: Uuid,
    /// Bytes from the start of the volume.
    pub offset: u64,
    /// Position in the writer's order; 1 is the first.
    pub sequence: u64,
    /// The run that wrote it.
    pub writer: u64,
}

/// What was found in a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing but zeros.
    Zero,
    /// Whole and with a matching checksum; may still belong elsewhere.
    Whole(Stamp),
    /// Sectors of at least two writes: the sequence of the first sector and one that differs (0: a sector of zeros).
    Torn { first: u64, other: u64 },
    /// None of the above.
    Garbage,
}

fn sector_mark(sector: usize) -> u32 {
    SECTOR_MARK | sector as u32
}

fn offset_check(offset: u64) -> u32 {
    crc32c::crc32c(&offset.to_le_bytes())
}

/// Fills `unit` so that [`classify`] gives `stamp` back.
///
/// # Panics
/// If `unit` is not a multiple of 512 bytes.
pub fn fill(unit: &mut [u8], stamp: &Stamp) {
    assert!(unit.len() >= SECTOR && unit.len().is_multiple_of(SECTOR), "{} bytes are no unit", unit.len());
    // A multiplicative sequence: different in every unit and write, incompressible, one multiply for 8 bytes.
    let mut word = stamp.sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ stamp.offset ^ stamp.writer.rotate_left(32) | 1;
    for chunk in unit.as_chunks_mut::<8>().0 {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        *chunk = word.to_le_bytes();
    }
    for (sector, bytes) in unit.chunks_exact_mut(SECTOR).enumerate().skip(1) {
        let header = SectorHeader {
            sequence: stamp.sequence.into(),
            mark: sector_mark(sector).into(),
            crc_of_offset: offset_check(stamp.offset).into(),
        };
        bytes[..size_of::<SectorHeader>()].copy_from_slice(header.as_bytes());
    }
    let header = Header {
        magic: MAGIC.into(),
        volume: *stamp.volume.as_bytes(),
        offset: stamp.offset.into(),
        sequence: stamp.sequence.into(),
        writer: stamp.writer.into(),
        len: (unit.len() as u32).into(),
        crc: 0.into(),
    };
    unit[..size_of::<Header>()].copy_from_slice(header.as_bytes());
    let crc = crc32c::crc32c(unit);
    unit[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Says what `unit` holds.
#[must_use]
pub fn classify(unit: &[u8]) -> Content {
    let Ok((header, _)) = Header::read_from_prefix(unit) else { return Content::Garbage };
    if header.magic.get() != MAGIC {
        if unit.iter().all(|&b| b == 0) {
            return Content::Zero;
        }
        return torn(unit, 0);
    }
    let mut crc = crc32c::crc32c(&unit[..CRC_AT]);
    crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc = crc32c::crc32c_append(crc, &unit[CRC_AT + 4..]);
    if crc == header.crc.get() && header.len.get() as usize == unit.len() {
        return Content::Whole(Stamp {
            volume: Uuid::from_bytes(header.volume),
            offset: header.offset.get(),
            sequence: header.sequence.get(),
            writer: header.writer.get(),
        });
    }
    torn(unit, header.sequence.get())
}

/// A unit without a matching checksum: torn if its sectors name different sequences, or some are zeros and others ours.
fn torn(unit: &[u8], first: u64) -> Content {
    let zero = unit[..SECTOR].iter().all(|&b| b == 0);
    if first == 0 && !zero {
        return Content::Garbage;
    }
    for (sector, bytes) in unit.chunks_exact(SECTOR).enumerate().skip(1) {
        let (header, _) = SectorHeader::read_from_prefix(bytes).expect("a sector is longer than its header");
        let ours = header.mark.get() == sector_mark(sector);
        let blank = bytes.iter().all(|&b| b == 0);
        if ours && header.sequence.get() != first {
            return Content::Torn { first, other: header.sequence.get() };
        }
        if blank && !zero {
            return Content::Torn { first, other: 0 };
        }
    }
    Content::Garbage
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(sequence: u64) -> Stamp {
        Stamp { volume: Uuid::from_u128(7), offset: 1 << 40, sequence, writer: 99 }
    }

    fn unit(len: usize, sequence: u64) -> Vec<u8> {
        let mut unit = vec![0xee; len];
        fill(&mut unit, &stamp(sequence));
        unit
    }

    #[test]
    fn a_filled_unit_says_what_it_is_at_both_sizes() {
        for len in [512, 4096] {
            assert_eq!(classify(&unit(len, 5)), Content::Whole(stamp(5)));
            assert_eq!(classify(&vec![0; len]), Content::Zero);
        }
    }

    #[test]
    fn every_split_of_two_writes_at_a_sector_is_torn() {
        let (old, new) = (unit(4096, 5), unit(4096, 6));
        for cut in 1..8 {
            let mixed = [&new[..cut * SECTOR], &old[cut * SECTOR..]].concat();
            assert_eq!(classify(&mixed), Content::Torn { first: 6, other: 5 }, "cut {cut}");
            let over_zeros = [&new[..cut * SECTOR], &vec![0; 4096 - cut * SECTOR]].concat();
            assert_eq!(classify(&over_zeros), Content::Torn { first: 6, other: 0 }, "cut {cut}");
            let under_zeros = [&vec![0; cut * SECTOR], &old[cut * SECTOR..]].concat();
            assert_eq!(classify(&under_zeros), Content::Torn { first: 0, other: 5 }, "cut {cut}");
        }
    }

    #[test]
    fn one_flipped_bit_anywhere_is_not_whole() {
        let good = unit(4096, 5);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(!matches!(classify(&bad), Content::Whole(_) | Content::Zero), "byte {at}");
        }
    }

    #[test]
    fn other_peoples_bytes_are_garbage() {
        assert_eq!(classify(&[0xa5; 4096]), Content::Garbage);
        assert_eq!(classify(&[0xa5; 512]), Content::Garbage);
    }
}
