//! The checkpoint header and its ring of eight.
//!
//! ```text
//!   0 magic "RWCP"       4 checksum of bytes 8..4096      8 format u16      10 shard u16    12 index level u16   14 chunks u16
//!  16 generation u64    24 boot u32     28 replay block u32                 32 replay sequence u64      40 replay LSN u64
//!  48 image bytes u64   56 reserved    128 chunks: place u64, checksum u32, bytes u32; up to 248
//! ```
//! The checksum is seeded with pool and shard.

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::chunk::{ChunkRef, RawRef};
use crate::checksum::Seed;
use crate::ids::{Lsn, ShardId};
use crate::journal::Position;
use crate::space::Geometry;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 4096;
/// Headers of a shard.
pub const RING_SLOTS: u64 = 8;
/// Bytes of a shard's ring.
pub const RING_BYTES: usize = HEADER_BYTES * RING_SLOTS as usize;
/// Chunks that a header names itself; more need an index.
pub const CHUNKS_MAX: usize = 248;
/// Levels of index above the image: each multiplies by 4,092, so two are beyond any pool.
pub(super) const LEVEL_MAX: u16 = 2;

const MAGIC: U32 = U32::from_bytes(*b"RWCP");
const FORMAT: u16 = 1;
const UNCHECKED: usize = 8;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawHeader {
    magic: U32,
    crc: U32,
    format: U16,
    shard: U16,
    level: U16,
    chunks: U16,
    generation: U64,
    boot: U32,
    replay_block: U32,
    replay_sequence: U64,
    replay_lsn: U64,
    image_bytes: U64,
    reserved: [u8; 72],
    listed: [RawRef; CHUNKS_MAX],
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

/// One checkpoint of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointHeader {
    /// Number of the checkpoint; the first, written by format, is 1.
    pub generation: u64,
    /// The boot that wrote it.
    pub boot: u32,
    /// Where replay starts.
    pub start: Position,
    /// 0: `chunks` are the image; n: they are an index of the chunks of level n - 1.
    pub level: u16,
    /// Bytes of the image's stream.
    pub image_bytes: u64,
    /// What to read next.
    pub chunks: Vec<ChunkRef>,
}

/// Why a block is no checkpoint header of this shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadHeader {
    /// No magic: never written.
    #[error("no checkpoint header here")]
    NoMagic,
    /// Torn, rotten, or of another pool or shard.
    #[error("the checkpoint header's checksum does not match")]
    Checksum,
    /// Whole, and with a value that cannot be.
    #[error("the checkpoint header has an impossible {0}")]
    Field(&'static str),
}

impl CheckpointHeader {
    /// What format writes: nothing is mapped and the journal is empty.
    #[must_use]
    pub fn first(boot: u32) -> CheckpointHeader {
        let (start, chunks) = (Position::FIRST, Vec::new());
        CheckpointHeader { generation: 1, boot, start, level: 0, image_bytes: 0, chunks }
    }

    /// Byte of the shard's ring at which it belongs.
    #[must_use]
    pub fn slot(&self) -> u64 {
        self.generation % RING_SLOTS * HEADER_BYTES as u64
    }

    /// Writes it to `out`, a block. `seed` is that of pool and shard.
    ///
    /// # Panics
    /// If there are more than [`CHUNKS_MAX`] chunks: index them first.
    pub fn encode(&self, shard: ShardId, seed: Seed, out: &mut [u8]) {
        assert!(self.chunks.len() <= CHUNKS_MAX && self.level <= LEVEL_MAX, "{} chunks", self.chunks.len());
        assert!(self.generation > 0);
        out.fill(0);
        let raw = RawHeader::mut_from_bytes(out).expect("a header is one block");
        raw.magic = MAGIC;
        raw.format = FORMAT.into();
        raw.shard = shard.0.into();
        raw.level = self.level.into();
        raw.chunks = (self.chunks.len() as u16).into();
        raw.generation = self.generation.into();
        raw.boot = self.boot.into();
        raw.replay_block = self.start.block.into();
        raw.replay_sequence = self.start.sequence.into();
        raw.replay_lsn = self.start.lsn.0.into();
        raw.image_bytes = self.image_bytes.into();
        raw.listed.iter_mut().zip(&self.chunks).for_each(|(raw, chunk)| *raw = RawRef::of(chunk));
        raw.crc = seed.of(&raw.as_bytes()[UNCHECKED..]).into();
    }

    /// The header in `bytes`, every place in it checked.
    pub fn decode(
        bytes: &[u8],
        shard: ShardId,
        seed: Seed,
        geometry: &Geometry,
    ) -> Result<CheckpointHeader, BadHeader> {
        let raw = RawHeader::ref_from_bytes(bytes).map_err(|_| BadHeader::NoMagic)?;
        if raw.magic != MAGIC {
            return Err(BadHeader::NoMagic);
        }
        if seed.of(&raw.as_bytes()[UNCHECKED..]) != raw.crc.get() {
            return Err(BadHeader::Checksum);
        }
        let checks = [
            (raw.format.get() == FORMAT, "format version"),
            (raw.shard.get() == shard.0, "shard"),
            (raw.level.get() <= LEVEL_MAX, "index level"),
            (usize::from(raw.chunks.get()) <= CHUNKS_MAX, "number of chunks"),
            (raw.generation.get() > 0, "generation"),
            (raw.replay_sequence.get() > 0 && raw.replay_lsn.get() > 0, "replay start"),
            (raw.replay_sequence.get() < u64::MAX / 2 && raw.replay_lsn.get() < u64::MAX / 2, "replay start"),
        ];
        if let Some(&(_, field)) = checks.iter().find(|(good, _)| !good) {
            return Err(BadHeader::Field(field));
        }
        let listed = &raw.listed[..usize::from(raw.chunks.get())];
        let chunks: Option<Vec<_>> = listed.iter().map(|raw| raw.check(geometry)).collect();
        Ok(CheckpointHeader {
            generation: raw.generation.get(),
            boot: raw.boot.get(),
            start: Position {
                block: raw.replay_block.get(),
                sequence: raw.replay_sequence.get(),
                lsn: Lsn(raw.replay_lsn.get()),
            },
            level: raw.level.get(),
            image_bytes: raw.image_bytes.get(),
            chunks: chunks.ok_or(BadHeader::Field("chunk"))?,
        })
    }
}

/// A shard's ring as found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderRing {
    /// Whole headers, newest first. The first is to be used; if its chunks cannot be read, the second is still intact.
    pub newest_first: Vec<CheckpointHeader>,
    /// Blocks of the ring that were written and are not whole now. One is what a crash during a checkpoint leaves.
    pub damaged: Vec<(usize, BadHeader)>,
}

/// Judges a shard's ring of [`RING_BYTES`]. No whole header at all means that the shard's map is lost: format writes the first.
///
/// # Panics
/// If `ring` has another length.
#[must_use]
pub fn read_ring(ring: &[u8], shard: ShardId, seed: Seed, geometry: &Geometry) -> HeaderRing {
    assert_eq!(ring.len(), RING_BYTES);
    let (mut newest_first, mut damaged) = (Vec::new(), Vec::new());
    for (slot, bytes) in ring.chunks(HEADER_BYTES).enumerate() {
        match CheckpointHeader::decode(bytes, shard, seed, geometry) {
            Ok(header) if header.slot() == (slot * HEADER_BYTES) as u64 => newest_first.push(header),
            Ok(_) => damaged.push((slot, BadHeader::Field("place in the ring"))),
            Err(BadHeader::NoMagic) if bytes.iter().all(|&byte| byte == 0) => {}
            Err(error) => damaged.push((slot, error)),
        }
    }
    newest_first.sort_by_key(|header| std::cmp::Reverse(header.generation));
    HeaderRing { newest_first, damaged }
}
