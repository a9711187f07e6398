//! Frames: what is written to the catalog at once.
//!
//! ```text
//!  0 magic "RWCT"   4 checksum of bytes 8..64   8 checksum of the payload   12 format u16   14 flags u16 (1 snapshot, 2 its end)
//! 16 half's number u64   24 sequence u64   32 payload bytes u32   36 records u32   40 blocks u32   44 volume u32, 0: not one
//! 48 boot u32   52 reserved   64 payload: records; padded with zeros to 4 KiB
//! ```
//! Checksums are seeded with the pool. The volume stands in the header so that a frame whose payload is lost in both copies
//! still says whom it was about.

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::record::{BadCatalogRecord, CatalogRecord};
use crate::checksum::Seed;
use crate::ids::VolumeId;
use crate::limits::BLOCK;

const MAGIC: U32 = U32::from_bytes(*b"RWCT");
const FORMAT: u16 = 1;
const HEADER: usize = 64;
const UNCHECKED: usize = 8;
/// Bytes of the largest frame: one registered buffer holds it.
pub(super) const FRAME_BYTES_MAX: usize = 256 << 10;
pub(super) const PAYLOAD_MAX: usize = FRAME_BYTES_MAX - HEADER;
const SNAPSHOT: u16 = 1;
const SNAPSHOT_END: u16 = 2;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawFrame {
    magic: U32,
    crc_header: U32,
    crc_payload: U32,
    format: U16,
    flags: U16,
    number: U64,
    sequence: U64,
    payload: U32,
    records: U32,
    blocks: U32,
    volume: U32,
    boot: U32,
    reserved: [u8; 12],
}

const _: () = assert!(size_of::<RawFrame>() == HEADER);

/// Bytes to be written, durably, at `offset` of both copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// From the start of a copy.
    pub offset: u64,
    /// A multiple of 4096.
    pub bytes: Vec<u8>,
}

/// Why a block starts no frame.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadFrame {
    /// Never written, or not the start of a frame.
    #[error("no catalog frame starts here")]
    NoMagic,
    /// Torn, rotten or of another pool.
    #[error("the checksum of the frame's header does not match")]
    Header,
    /// A header with a right checksum and a value that cannot be.
    #[error("the frame's header has an impossible {0}")]
    Field(&'static str),
    /// The header is whole, the records are not.
    #[error("the checksum of the frame's records does not match")]
    Payload,
    /// The records are whole and cannot be understood.
    #[error(transparent)]
    Record(#[from] BadCatalogRecord),
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) number: u64,
    pub(super) sequence: u64,
    pub(super) blocks: u32,
    pub(super) records: u32,
    pub(super) payload: u32,
    pub(super) snapshot: bool,
    pub(super) snapshot_end: bool,
    /// The one volume that all its records are about.
    pub(super) volume: Option<VolumeId>,
    crc_payload: u32,
}

/// What goes into a frame's header beside its records.
#[derive(Clone, Copy, Debug)]
pub(super) struct Framing {
    pub(super) seed: Seed,
    pub(super) number: u64,
    pub(super) sequence: u64,
    pub(super) boot: u32,
    pub(super) snapshot: bool,
    pub(super) snapshot_end: bool,
}

/// Bytes that a frame of `payload` bytes takes on disk.
pub(super) fn frame_bytes(payload: usize) -> usize {
    (HEADER + payload).next_multiple_of(BLOCK as usize)
}

/// A frame of records already encoded as `payload`.
pub(super) fn encode_frame(framing: &Framing, payload: &[u8], records: u32, volume: Option<VolumeId>) -> Vec<u8> {
    assert!(payload.len() <= PAYLOAD_MAX, "{} bytes in a frame", payload.len());
    let length = frame_bytes(payload.len());
    let flags = if framing.snapshot { SNAPSHOT } else { 0 } | if framing.snapshot_end { SNAPSHOT_END } else { 0 };
    let mut header = RawFrame {
        magic: MAGIC,
        crc_header: U32::ZERO,
        crc_payload: framing.seed.of(payload).into(),
        format: FORMAT.into(),
        flags: flags.into(),
        number: framing.number.into(),
        sequence: framing.sequence.into(),
        payload: (payload.len() as u32).into(),
        records: records.into(),
        blocks: ((length / BLOCK as usize) as u32).into(),
        volume: volume.map_or(0, |volume| volume.0).into(),
        boot: framing.boot.into(),
        reserved: [0; 12],
    };
    header.crc_header = framing.seed.of(&header.as_bytes()[UNCHECKED..]).into();
    let mut out = header.as_bytes().to_vec();
    out.extend(payload);
    out.resize(length, 0);
    out
}

impl FrameHeader {
    /// The header at the start of `bytes`, which are all that is left of the half.
    pub(super) fn decode(bytes: &[u8], seed: Seed) -> Result<FrameHeader, BadFrame> {
        let (raw, _) = RawFrame::ref_from_prefix(bytes).map_err(|_| BadFrame::NoMagic)?;
        if raw.magic != MAGIC {
            return Err(BadFrame::NoMagic);
        }
        if seed.of(&raw.as_bytes()[UNCHECKED..]) != raw.crc_header.get() {
            return Err(BadFrame::Header);
        }
        let (payload, blocks) = (raw.payload.get() as usize, raw.blocks.get() as usize);
        let checks = [
            (raw.format.get() == FORMAT, "format version"),
            (raw.flags.get() & !(SNAPSHOT | SNAPSHOT_END) == 0, "flag"),
            (raw.number.get() > 0 && raw.number.get() < u64::MAX / 2, "half number"),
            (raw.sequence.get() > 0 && raw.sequence.get() < u64::MAX / 2, "sequence"),
            (payload <= PAYLOAD_MAX && frame_bytes(payload) == blocks * BLOCK as usize, "length"),
            (blocks * BLOCK as usize <= bytes.len(), "end beyond its half"),
        ];
        if let Some(&(_, field)) = checks.iter().find(|(good, _)| !good) {
            return Err(BadFrame::Field(field));
        }
        let volume = raw.volume.get();
        Ok(FrameHeader {
            number: raw.number.get(),
            sequence: raw.sequence.get(),
            blocks: raw.blocks.get(),
            records: raw.records.get(),
            payload: raw.payload.get(),
            snapshot: raw.flags.get() & SNAPSHOT != 0,
            snapshot_end: raw.flags.get() & SNAPSHOT_END != 0,
            volume: (volume != 0).then_some(VolumeId(volume)),
            crc_payload: raw.crc_payload.get(),
        })
    }

    /// Whether the payload of the frame that starts at `bytes[0]` is whole.
    pub(super) fn payload<'a>(&self, bytes: &'a [u8], seed: Seed) -> Option<&'a [u8]> {
        let frame = bytes.get(..self.blocks as usize * BLOCK as usize)?;
        let (payload, padding) = frame[HEADER..].split_at_checked(self.payload as usize)?;
        // Padding counts, so that two whole copies of a frame are equal.
        (seed.of(payload) == self.crc_payload && padding.iter().all(|&byte| byte == 0)).then_some(payload)
    }

    /// The records in a whole payload; those of a later version that may be skipped are left out.
    pub(super) fn records(&self, mut payload: &[u8]) -> Result<Vec<CatalogRecord>, BadFrame> {
        let (mut records, mut count) = (Vec::new(), 0);
        while !payload.is_empty() {
            let (record, length) = CatalogRecord::decode(payload)?;
            records.extend(record);
            payload = &payload[length..];
            count += 1;
        }
        if count == self.records { Ok(records) } else { Err(BadFrame::Field("number of records")) }
    }
}
