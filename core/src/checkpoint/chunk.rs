//! A stream of bytes in chunks of at most a cluster, and references to them.
//!
//! ```text
//!  0 magic "RWCK"   4 format u16   6 shard u16   8 generation u64   16 number u32   20 payload bytes u32   24 level u16
//! 26 reserved      32 payload, padded with zeros to 4 KiB
//! ```
//! The checksum of the whole chunk, padding included, stands in its reference, seeded with pool, shard and generation.

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::header::CheckpointHeader;
use crate::checksum::Seed;
use crate::ids::ShardId;
use crate::limits::{BLOCK, CLUSTER};
use crate::space::{Geometry, Place};

/// Bytes of the largest chunk.
pub const CHUNK_BYTES_MAX: usize = CLUSTER as usize;

const MAGIC: U32 = U32::from_bytes(*b"RWCK");
const FORMAT: u16 = 1;
const HEADER: usize = 32;
const PAYLOAD_MAX: usize = CHUNK_BYTES_MAX - HEADER;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawChunk {
    magic: U32,
    format: U16,
    shard: U16,
    generation: U64,
    number: U32,
    payload: U32,
    level: U16,
    reserved: [u8; 6],
}

const _: () = assert!(size_of::<RawChunk>() == HEADER);
const _: () = assert!(size_of::<RawRef>() == 16);

/// A chunk as a header or an index names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRef {
    /// Its cluster.
    pub place: Place,
    /// Checksum of its bytes.
    pub crc: u32,
    /// Bytes to read; a multiple of 4096.
    pub bytes: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct RawRef {
    place: U64,
    crc: U32,
    bytes: U32,
}

impl RawRef {
    pub(super) fn of(chunk: &ChunkRef) -> RawRef {
        RawRef { place: chunk.place.raw().into(), crc: chunk.crc.into(), bytes: chunk.bytes.into() }
    }

    pub(super) fn check(&self, geometry: &Geometry) -> Option<ChunkRef> {
        let chunk = ChunkRef { place: Place::from_raw(self.place.get()), crc: self.crc.get(), bytes: self.bytes.get() };
        let length = chunk.bytes as usize <= CHUNK_BYTES_MAX && chunk.bytes > 0 && u64::from(chunk.bytes) % BLOCK == 0;
        (length && geometry.holds(chunk.place)).then_some(chunk)
    }
}

/// A stream on its way to the disk.
#[derive(Debug)]
pub struct Chunks {
    stream: Vec<u8>,
    level: u16,
    shard: ShardId,
    generation: u64,
    seed: Seed,
}

impl Chunks {
    /// The chunks of an image of checkpoint `generation`. `seed` is that of pool and shard.
    #[must_use]
    pub fn image(stream: Vec<u8>, shard: ShardId, generation: u64, seed: Seed) -> Chunks {
        Chunks { stream, level: 0, shard, generation, seed: seed.generation(generation) }
    }

    /// The chunks of an index of `below`, whose references are `chunks`.
    ///
    /// # Panics
    /// If there is not one reference for each chunk.
    #[must_use]
    pub fn index(below: &Chunks, chunks: &[ChunkRef]) -> Chunks {
        assert_eq!(below.count(), chunks.len(), "every chunk has a place before it is indexed");
        let stream = chunks.iter().flat_map(|chunk| RawRef::of(chunk).as_bytes().to_vec()).collect();
        Chunks { stream, level: below.level + 1, ..*below }
    }

    /// 0 for an image, else the level of the index.
    #[must_use]
    pub fn level(&self) -> u16 {
        self.level
    }

    /// Bytes of the stream.
    #[must_use]
    pub fn stream_bytes(&self) -> u64 {
        self.stream.len() as u64
    }

    /// How many chunks; each needs a cluster of its own.
    #[must_use]
    pub fn count(&self) -> usize {
        self.stream.len().div_ceil(PAYLOAD_MAX)
    }

    /// Bytes of chunk `nth` on disk.
    #[must_use]
    pub fn bytes(&self, nth: usize) -> usize {
        (HEADER + self.payload(nth).len()).next_multiple_of(BLOCK as usize)
    }

    fn payload(&self, nth: usize) -> &[u8] {
        let start = nth * PAYLOAD_MAX;
        &self.stream[start..self.stream.len().min(start + PAYLOAD_MAX)]
    }

    /// Writes chunk `nth` to `out`, which is [`Chunks::bytes`] long, and returns the reference to it at `place`.
    pub fn encode(&self, nth: usize, place: Place, out: &mut [u8]) -> ChunkRef {
        assert_eq!(out.len(), self.bytes(nth));
        let payload = self.payload(nth);
        let header = RawChunk {
            magic: MAGIC,
            format: FORMAT.into(),
            shard: self.shard.0.into(),
            generation: self.generation.into(),
            number: (nth as u32).into(),
            payload: (payload.len() as u32).into(),
            level: self.level.into(),
            reserved: [0; 6],
        };
        out.fill(0);
        out[..HEADER].copy_from_slice(header.as_bytes());
        out[HEADER..HEADER + payload.len()].copy_from_slice(payload);
        ChunkRef { place, crc: self.seed.of(out), bytes: out.len() as u32 }
    }
}

/// Why chunks are not the stream that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadChunk {
    /// Another number of chunks than the header names was given.
    #[error("{found} chunks where {expected} are named")]
    Count {
        /// Given.
        found: usize,
        /// Named.
        expected: usize,
    },
    /// The bytes are not those that were written.
    #[error("chunk {nth} at {place:?} has checksum {found:#010x}, its reference says {expected:#010x}")]
    Checksum {
        /// Which.
        nth: usize,
        /// Where.
        place: Place,
        /// Computed.
        found: u32,
        /// Named.
        expected: u32,
    },
    /// A chunk with the right checksum says it is another one.
    #[error("chunk {nth} has an impossible {field}")]
    Field {
        /// Which.
        nth: usize,
        /// Which field.
        field: &'static str,
    },
    /// An index with something that is no reference.
    #[error("the index of chunks has an impossible reference")]
    Reference,
}

/// The stream that `chunks`, the bytes of each of `refs`, carry. `level` counts down from the header's to 0.
pub fn join_chunks(
    header: &CheckpointHeader,
    level: u16,
    refs: &[ChunkRef],
    chunks: &[&[u8]],
    shard: ShardId,
    seed: Seed,
) -> Result<Vec<u8>, BadChunk> {
    if refs.len() != chunks.len() {
        return Err(BadChunk::Count { found: chunks.len(), expected: refs.len() });
    }
    let seed = seed.generation(header.generation);
    let mut stream = Vec::new();
    for (nth, (&bytes, named)) in chunks.iter().zip(refs).enumerate() {
        let found = seed.of(bytes);
        if found != named.crc {
            return Err(BadChunk::Checksum { nth, place: named.place, found, expected: named.crc });
        }
        let bad = |field| BadChunk::Field { nth, field };
        let (raw, rest) = RawChunk::ref_from_prefix(bytes).map_err(|_| bad("length"))?;
        let checks = [
            (raw.magic == MAGIC, "magic"),
            (raw.format.get() == FORMAT, "format version"),
            (raw.shard.get() == shard.0, "shard"),
            (raw.generation.get() == header.generation, "generation"),
            (raw.number.get() as usize == nth, "number"),
            (raw.level.get() == level, "level"),
        ];
        if let Some(&(_, field)) = checks.iter().find(|(good, _)| !good) {
            return Err(bad(field));
        }
        stream.extend(rest.get(..raw.payload.get() as usize).ok_or(bad("length"))?);
    }
    if level == 0 && stream.len() as u64 != header.image_bytes {
        return Err(BadChunk::Field { nth: refs.len(), field: "length of the image" });
    }
    Ok(stream)
}

/// The references in an index's stream.
pub fn decode_index(stream: &[u8], geometry: &Geometry) -> Result<Vec<ChunkRef>, BadChunk> {
    let raw = <[RawRef]>::ref_from_bytes(stream).map_err(|_| BadChunk::Reference)?;
    raw.iter().map(|raw| raw.check(geometry).ok_or(BadChunk::Reference)).collect()
}
