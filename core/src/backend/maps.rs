//! Map objects: pieces of manifests, several in one object, and how each is found and read again.

use bytes::Bytes;
use uuid::Uuid;

use super::frame::{Corrupt, decode, encode, reference_crc};
use super::manifest::{ChunkMap, ChunkRef};
use super::names::{Attempt, Object};
use super::remote::{Patience, Remote, RemoteError};

/// Bytes at which a map object is full.
const MAP_BYTES: usize = 4 << 20;

/// A map object that is being filled.
#[derive(Debug)]
pub(super) struct MapWriter {
    pool: Uuid,
    by: Attempt,
    sequence: u32,
    bytes: Vec<u8>,
    chunks: Vec<ChunkRef>,
}

/// A full one, ready to go: where each piece of it will be found.
#[derive(Debug)]
pub(super) struct FinishedMap {
    pub(super) object: Object,
    pub(super) bytes: Bytes,
    pub(super) chunks: Vec<ChunkRef>,
}

impl MapWriter {
    pub(super) fn new(pool: Uuid, by: Attempt, sequence: u32) -> Self {
        Self { pool, by, sequence, bytes: Vec::new(), chunks: Vec::new() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= MAP_BYTES
    }

    /// Adds a piece, and says how it will be referred to.
    pub(super) fn push(&mut self, map: &ChunkMap) -> ChunkRef {
        let object = Object::Map { by: self.by, sequence: self.sequence };
        let encoded = encode(self.pool, object, map);
        let reference = ChunkRef {
            chunk: map.chunk,
            by: self.by,
            sequence: self.sequence,
            offset: self.bytes.len() as u32,
            bytes: encoded.len() as u32,
            crc: reference_crc(&encoded),
        };
        self.bytes.extend_from_slice(&encoded);
        self.chunks.push(reference);
        reference
    }

    /// Nothing more goes in.
    pub(super) fn finish(self) -> FinishedMap {
        let object = Object::Map { by: self.by, sequence: self.sequence };
        FinishedMap { object, bytes: self.bytes.into(), chunks: self.chunks }
    }
}

/// Reads a chunk's map.
pub async fn read_chunk(remote: &Remote, reference: &ChunkRef, patience: &Patience) -> Result<ChunkMap, RemoteError> {
    let object = reference.object();
    let bytes = remote.get(object, reference.range(), patience).await?;
    let decoded = decode::<ChunkMap>(remote.pool, object, &bytes).map_err(|why| remote.corrupt(object, why))?;
    if decoded.crc != reference.crc || decoded.bytes != reference.bytes as usize {
        return Err(remote.corrupt(object, Corrupt::Checksum("piece of a map, as the manifest knows it,")));
    }
    decoded.body.check(reference.chunk).map_err(|why| remote.corrupt(object, why))?;
    Ok(decoded.body)
}
