//! What a sync reads from, and what a restore writes to. The node on one side, memory in tests on the other.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use thiserror::Error;

use crate::ids::{Epoch, VolumeId};

/// Blocks of a snapshot that are, or may be, different from an older cut of the same volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Bytes from the start of the volume, whole blocks.
    pub offset: u64,
    /// Whole blocks; the last may reach beyond the volume's end.
    pub len: u64,
    /// Whether there is data; otherwise zeros.
    pub data: bool,
}

/// One answer of [`Source::changed`]. Ranges ascend; all of them lie before `next`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub ranges: Vec<Change>,
    /// Where to ask on; none: this was the end.
    pub next: Option<u64>,
}

/// Why the pool did not give what was asked of it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SourceError {
    /// The older cut is not kept any more: the whole volume has to be walked.
    #[error("the snapshot that this one builds upon is no longer kept")]
    BaseGone,
    /// It cannot be had now, and may be later: what it lies on does not answer, or too many wait for that already.
    #[error("{0}")]
    Later(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// The future of one call.
pub type Pull<'a, T> = Pin<Box<dyn Future<Output = Result<T, SourceError>> + Send + 'a>>;

/// A pool's snapshots, to be read.
pub trait Source: Send + Sync {
    /// What of `snapshot` may differ from the cut `after` of its volume, or holds data at all, from `cursor` on.
    fn changed(&self, snapshot: VolumeId, after: Option<Epoch>, cursor: u64) -> Pull<'_, Changes>;
    /// Bytes of a snapshot, within its size.
    fn read(&self, snapshot: VolumeId, offset: u64, len: u32) -> Pull<'_, Bytes>;
}

/// A pool's volumes, to be filled.
pub trait Sink: Send + Sync {
    /// Writes to a volume, within its size.
    fn write(&self, volume: VolumeId, offset: u64, data: Bytes) -> Pull<'_, ()>;
    /// Everything written is durable.
    fn flush(&self, volume: VolumeId) -> Pull<'_, ()>;
}
