//! The steps of a sync's walk, and what each needs from elsewhere: fetched ahead, several at a time, since single blocks are what is
//! mostly changed, and each is a way to a reactor, to a device and back.
//!
//! ```text
//! Questions: changed() -> chunks, zeros, data -> as many as are fetched ahead --in order--> the walk
//!                ^ the next one is asked while what this one has named is still being read
//! ```

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};

use super::manifest::{CHUNK_BYTES, ChunkMap, ChunkRef, Manifest};
use super::maps::read_chunk;
use super::remote::{Patience, Remote};
use super::source::{Change, Changes, Pull, Source, SourceError};
use super::sync::{SyncError, UploadJob};
use crate::ids::{Epoch, VolumeId};
use crate::limits::BLOCK;

/// Bytes of one read of the snapshot at most.
const READ_BYTES: u64 = 128 << 10;

/// A step, and where what it needs is.
pub(super) enum Fetch {
    /// To a chunk, of which the base may have a map.
    Chunk(u32, Option<ChunkRef>),
    /// These bytes of the volume are zeros.
    Zeros(Range<u64>),
    /// So many bytes of the snapshot, from here on.
    Data(u64, u32),
    /// Everything before this byte was named.
    Walked(u64),
}

/// A step that can be taken.
pub(super) enum Step {
    /// To a chunk, of which the base has this map.
    Chunk(u32, Option<Box<ChunkMap>>),
    /// These bytes of the volume are zeros.
    Zeros(Range<u64>),
    /// From this byte on there is this.
    Data(u64, Bytes),
    /// Everything before this byte was looked at.
    Walked(u64),
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
            Fetch::Walked(until) => Step::Walked(until),
            Fetch::Data(at, len) => {
                let bytes = insist(patience, || source.read(snapshot, at, len)).await?;
                if bytes.len() != len as usize {
                    return Err(SourceError::Failed("a read came back short".to_owned()).into());
                }
                Step::Data(at, bytes)
            }
        })
    }
}

/// Asks again for what may be had later, as long as the job has time.
async fn insist<'a, T>(patience: &Patience, pull: impl Fn() -> Pull<'a, T>) -> Result<T, SourceError> {
    for nth in 0.. {
        match pull().await {
            Err(SourceError::Later(why)) if patience.waits_after(&why, nth).await => {}
            outcome => {
                if nth > 0 {
                    patience.trouble.over();
                }
                return outcome;
            }
        }
    }
    unreachable!("tries do not run out")
}

/// The walk over what changed: which steps there are.
pub(super) struct Questions<'a> {
    source: &'a dyn Source,
    job: &'a UploadJob,
    base: Option<(Arc<Manifest>, Epoch)>,
    patience: &'a Patience,
    /// Where to ask on; none: everything was asked.
    cursor: Option<u64>,
    /// Where the last change ended.
    last: u64,
    /// The last chunk that there is a step to.
    planned: Option<u32>,
}

impl<'a> Questions<'a> {
    pub(super) fn new(
        source: &'a dyn Source,
        job: &'a UploadJob,
        base: Option<(Arc<Manifest>, Epoch)>,
        patience: &'a Patience,
    ) -> Self {
        Self { source, job, base, patience, cursor: Some(0), last: 0, planned: None }
    }

    /// In order; nothing follows an error.
    pub(super) fn fetches(self) -> impl Stream<Item = Result<Fetch, SyncError>> {
        let answers = stream::unfold(self, |mut questions| async {
            let at = questions.cursor.take()?;
            let fetches = match questions.ask(at).await {
                Ok(fetches) => fetches.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            };
            Some((fetches, questions))
        });
        answers.flat_map(stream::iter)
    }

    async fn ask(&mut self, at: u64) -> Result<Vec<Fetch>, SyncError> {
        let after = self.base.as_ref().map(|(_, epoch)| *epoch);
        let (source, snapshot) = (self.source, self.job.snapshot);
        let Changes { ranges, next } = insist(self.patience, || source.changed(snapshot, after, at)).await?;
        for change in &ranges {
            if change.offset < self.last || change.len == 0 {
                return Err(SourceError::Failed("the list of changes is out of order".to_owned()).into());
            }
            self.last = change.offset + change.len;
        }
        if next.is_some_and(|next| next <= at) {
            return Err(SourceError::Failed("the list of changes does not end".to_owned()).into());
        }
        let size = self.job.of.size;
        let mut fetches = self.plan(&ranges);
        fetches.push(Fetch::Walked(next.unwrap_or(size).min(size)));
        self.cursor = next;
        Ok(fetches)
    }

    /// What these changes need from elsewhere, chunk by chunk. Each chunk is come to once, since changes ascend.
    fn plan(&mut self, changes: &[Change]) -> Vec<Fetch> {
        let size = self.job.of.size;
        let mut fetches = Vec::new();
        for change in changes {
            let end = (change.offset + change.len).min(size.next_multiple_of(BLOCK));
            let mut at = change.offset;
            while at < end {
                let chunk = (at / CHUNK_BYTES) as u32;
                let until = end.min((u64::from(chunk) + 1) * CHUNK_BYTES);
                if self.planned != Some(chunk) {
                    self.planned = Some(chunk);
                    let base = self.base.as_ref().and_then(|(manifest, _)| manifest.chunk(chunk).copied());
                    fetches.push(Fetch::Chunk(chunk, base));
                }
                if change.data {
                    let end = until.min(size);
                    let pieces = (at..end).step_by(READ_BYTES as usize);
                    fetches.extend(pieces.map(|at| Fetch::Data(at, (end - at).min(READ_BYTES) as u32)));
                } else {
                    fetches.push(Fetch::Zeros(at..until));
                }
                at = until;
            }
        }
        fetches
    }
}
