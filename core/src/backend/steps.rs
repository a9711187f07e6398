//! The steps of a sync's walk, and what each needs from elsewhere: fetched ahead, several at a time, since single blocks are what is
//! mostly changed, and each is a way to a reactor, to a device and back.

use std::ops::Range;

use bytes::Bytes;

use super::manifest::{ChunkMap, ChunkRef};
use super::remote::{Patience, Remote};
use super::source::{Source, SourceError};
use super::sync::{SyncError, read_chunk};
use crate::ids::VolumeId;

/// A step, and where what it needs is.
pub(super) enum Fetch {
    /// To a chunk, of which the base may have a map.
    Chunk(u32, Option<ChunkRef>),
    /// These bytes of the volume are zeros.
    Zeros(Range<u64>),
    /// So many bytes of the snapshot, from here on.
    Data(u64, u32),
}

/// A step that can be taken.
pub(super) enum Step {
    /// To a chunk, of which the base has this map.
    Chunk(u32, Option<Box<ChunkMap>>),
    /// These bytes of the volume are zeros.
    Zeros(Range<u64>),
    /// From this byte on there is this.
    Data(u64, Bytes),
}

impl Fetch {
    /// Gets it.
    pub(super) async fn run(
        self,
        remote: &Remote,
        source: &dyn Source,
        snapshot: VolumeId,
        patience: &Patience,
    ) -> Result<Step, SyncError> {
        Ok(match self {
            Fetch::Chunk(chunk, None) => Step::Chunk(chunk, None),
            Fetch::Chunk(chunk, Some(reference)) => {
                Step::Chunk(chunk, Some(Box::new(read_chunk(remote, &reference, patience).await?)))
            }
            Fetch::Zeros(range) => Step::Zeros(range),
            Fetch::Data(at, len) => {
                let bytes = source.read(snapshot, at, len).await?;
                if bytes.len() != len as usize {
                    return Err(SourceError::Failed("a read came back short".to_owned()).into());
                }
                Step::Data(at, bytes)
            }
        })
    }
}
