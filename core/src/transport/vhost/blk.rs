//! What a virtio block device is (virtio 1.2, section 5.2): its feature bits, its configuration space, its requests' header.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::limits::{BLOCK, CLUSTER, DEALLOCATE_BYTES_MAX, STRIPE, WRITE_ZEROES_BYTES_MAX};
use crate::volume::VolumeRecord;

/// All offsets and capacities are in these, whatever the volume's block.
pub(super) const SECTOR: u64 = 512;
/// Bytes of the answer to a question for the device's name.
pub(super) const ID_BYTES: usize = 20;

/// Data segments of a request at most: with header and status a ring of 128 without indirect tables holds it.
const SEGMENTS_MAX: u32 = 126;
/// Bytes of a segment at most.
const SEGMENT_BYTES_MAX: u32 = STRIPE as u32;
/// Bytes of a request at most: what a guest that keeps to the bounds above can send.
pub(super) const REQUEST_BYTES_MAX: u64 = SEGMENTS_MAX as u64 * SEGMENT_BYTES_MAX as u64;
/// Ranges of one discard or write zeroes at most.
pub(super) const RANGES_MAX: usize = 32;

/// Feature bits (5.2.3, 6).
pub(super) mod feature {
    pub(in super::super) const SIZE_MAX: u64 = 1 << 1;
    pub(in super::super) const SEG_MAX: u64 = 1 << 2;
    pub(in super::super) const RO: u64 = 1 << 5;
    pub(in super::super) const BLK_SIZE: u64 = 1 << 6;
    pub(in super::super) const FLUSH: u64 = 1 << 9;
    pub(in super::super) const TOPOLOGY: u64 = 1 << 10;
    pub(in super::super) const CONFIG_WCE: u64 = 1 << 11;
    pub(in super::super) const MQ: u64 = 1 << 12;
    pub(in super::super) const DISCARD: u64 = 1 << 13;
    pub(in super::super) const WRITE_ZEROES: u64 = 1 << 14;
    /// VHOST_F_LOG_ALL.
    pub(in super::super) const LOG_ALL: u64 = 1 << 26;
    pub(in super::super) const INDIRECT_DESC: u64 = 1 << 28;
    pub(in super::super) const EVENT_IDX: u64 = 1 << 29;
    /// VHOST_USER_F_PROTOCOL_FEATURES.
    pub(in super::super) const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub(in super::super) const VERSION_1: u64 = 1 << 32;
    pub(in super::super) const RING_PACKED: u64 = 1 << 34;
}

/// What a device offers.
pub(super) fn features(read_only: bool) -> u64 {
    use feature::{
        BLK_SIZE, CONFIG_WCE, DISCARD, EVENT_IDX, FLUSH, INDIRECT_DESC, LOG_ALL, MQ, PROTOCOL_FEATURES, RING_PACKED,
        RO, SEG_MAX, SIZE_MAX, TOPOLOGY, VERSION_1, WRITE_ZEROES,
    };
    let disk = SIZE_MAX | SEG_MAX | BLK_SIZE | FLUSH | TOPOLOGY | CONFIG_WCE | MQ | DISCARD | WRITE_ZEROES;
    let ring = INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_PACKED;
    let read_only = if read_only { RO } else { 0 };
    disk | ring | LOG_ALL | PROTOCOL_FEATURES | read_only
}

/// Whether writes may stay in a cache until a flush (5.2.5.2): what the driver has set, where it can; else whether it can flush.
pub(super) fn is_write_back(acknowledged: u64, configured: bool) -> bool {
    if acknowledged & feature::CONFIG_WCE != 0 { configured } else { acknowledged & feature::FLUSH != 0 }
}

/// The configuration space (5.2.4).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ConfigSpace {
    capacity: U64,
    size_max: U32,
    seg_max: U32,
    geometry: [u8; 4],
    blk_size: U32,
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_size: U16,
    opt_io_size: U32,
    writeback: u8,
    unused: u8,
    num_queues: U16,
    max_discard_sectors: U32,
    max_discard_seg: U32,
    discard_sector_alignment: U32,
    max_write_zeroes_sectors: U32,
    max_write_zeroes_seg: U32,
    write_zeroes_may_unmap: u8,
    unused_too: [u8; 3],
}

const _: () = assert!(size_of::<ConfigSpace>() == 60);

/// Where the one field is that a driver may write.
pub(super) const WRITEBACK_OFFSET: u32 = 32;

impl ConfigSpace {
    pub(super) fn of(record: &VolumeRecord, queues: u16, write_back: bool) -> ConfigSpace {
        let lba = u64::from(record.lba_bytes);
        ConfigSpace {
            capacity: (record.size / SECTOR).into(),
            size_max: SEGMENT_BYTES_MAX.into(),
            seg_max: SEGMENTS_MAX.into(),
            geometry: [0; 4],
            blk_size: record.lba_bytes.into(),
            physical_block_exp: (BLOCK / lba).trailing_zeros() as u8,
            alignment_offset: 0,
            min_io_size: ((BLOCK / lba) as u16).into(),
            opt_io_size: ((CLUSTER / lba) as u32).into(),
            writeback: write_back.into(),
            unused: 0,
            num_queues: queues.into(),
            max_discard_sectors: (DEALLOCATE_BYTES_MAX / SECTOR as u32).into(),
            max_discard_seg: (RANGES_MAX as u32).into(),
            discard_sector_alignment: ((BLOCK / SECTOR) as u32).into(),
            max_write_zeroes_sectors: (WRITE_ZEROES_BYTES_MAX / SECTOR as u32).into(),
            max_write_zeroes_seg: (RANGES_MAX as u32).into(),
            write_zeroes_may_unmap: 1,
            unused_too: [0; 3],
        }
    }

    /// `len` bytes from `offset` on, zeros behind the end: front ends ask for as much as they know of.
    pub(super) fn read(&self, offset: u32, len: u32) -> Vec<u8> {
        let bytes = self.as_bytes().iter().copied().skip(offset as usize);
        bytes.chain(std::iter::repeat(0)).take(len as usize).collect()
    }
}

/// How a request begins (5.2.6).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RequestHeader {
    pub(super) kind: U32,
    pub(super) reserved: U32,
    pub(super) sector: U64,
}

const _: () = assert!(size_of::<RequestHeader>() == 16);

pub(super) mod kind {
    pub(in super::super) const READ: u32 = 0;
    pub(in super::super) const WRITE: u32 = 1;
    pub(in super::super) const FLUSH: u32 = 4;
    pub(in super::super) const GET_ID: u32 = 8;
    pub(in super::super) const DISCARD: u32 = 11;
    pub(in super::super) const WRITE_ZEROES: u32 = 13;
}

/// What the status byte says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlkStatus {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// A range of a discard or write zeroes.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RangeHeader {
    pub(super) sector: U64,
    pub(super) sectors: U32,
    pub(super) flags: U32,
}

const _: () = assert!(size_of::<RangeHeader>() == 16);

/// The one flag of a range: its space may be given back.
pub(super) const UNMAP: u32 = 1;

/// The name that a device gives itself: the first bytes of the volume's UUID, which no other has.
pub(super) fn serial(record: &VolumeRecord) -> [u8; ID_BYTES] {
    let mut id = [0; ID_BYTES];
    let text = record.uuid.simple().to_string();
    id.copy_from_slice(&text.as_bytes()[..ID_BYTES]);
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::tests::record;

    #[test]
    fn a_configuration_is_as_long_as_asked_and_zero_behind_its_end() {
        let config = ConfigSpace::of(&record(1, "v"), 3, true);
        let long = config.read(0, 256);
        assert_eq!(long.len(), 256);
        assert_eq!(long[..8], ((1u64 << 30) / 512).to_le_bytes());
        assert_eq!((long[WRITEBACK_OFFSET as usize], long[34]), (1, 3));
        assert!(long[60..].iter().all(|&byte| byte == 0));
        assert_eq!(config.read(20, 4), 512u32.to_le_bytes());
        assert_eq!(config.read(59, 3), [0; 3]);
        assert_eq!(config.read(4000, 2), [0; 2]);
    }

    #[test]
    fn topology_is_that_of_our_blocks() {
        let small = ConfigSpace::of(&record(1, "v"), 1, true);
        assert_eq!((small.physical_block_exp, small.min_io_size.get(), small.opt_io_size.get()), (3, 8, 128));
        let large = ConfigSpace::of(&VolumeRecord { lba_bytes: 4096, ..record(1, "v") }, 1, true);
        assert_eq!((large.physical_block_exp, large.min_io_size.get(), large.opt_io_size.get()), (0, 1, 16));
    }

    #[test]
    fn a_driver_that_cannot_flush_writes_through() {
        let both = feature::FLUSH | feature::CONFIG_WCE;
        for (acknowledged, configured, expected) in
            [(0, true, false), (feature::FLUSH, false, true), (both, true, true), (both, false, false)]
        {
            assert_eq!(is_write_back(acknowledged, configured), expected, "{acknowledged:#x} {configured}");
        }
    }
}
