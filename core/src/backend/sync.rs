//! A snapshot becomes objects: its changed blocks in packs, the map of where they lie, and last the manifest.
//!
//! ```text
//! walk:  changed() -> read()s, some ahead, the next changed() too -> pack full? --bounded channel--> upload: put, read back (some at a time)
//!                            -> chunk done? waits for its packs to be closed -> map object -^
//! end:   everything is up -> the manifest, in the hands of whoever has to note the attempt before it is put (history C14)
//! ```
//!
//! A manifest is whole in itself (history C10): what did not change is taken over, by reference, from the manifest of the older cut
//! that the pool still keeps; without one the whole volume is walked. Blocks go up, not clusters (history H5). Memory is bounded
//! by packs on their way and by maps that wait for them. Nothing here outlives the future: dropped, it sends nothing more.

use std::collections::BTreeMap;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::frame::Corrupt;
use super::manifest::{CHUNK_BLOCKS, CHUNK_BYTES, ChunkDraft, ChunkMap, ChunkRef, Manifest, Subject};
use super::maps::{FinishedMap, MapWriter};
use super::names::{Attempt, Object};
use super::pack::{PackRef, PackWriter};
use super::remote::{Patience, Remote, RemoteError};
use super::source::{Source, SourceError};
use super::steps::{Questions, Step};
use crate::ids::{Epoch, VolumeId};
use crate::limits::BLOCK;
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt, TryStreamExt};
use thiserror::Error;
use tokio::sync::mpsc;

/// Steps of the walk that are fetched for ahead: single blocks, mostly, and then as many as run at a time (`node/inside.rs`).
const AHEAD: usize = 64;
/// Packs that are on their way at a time; one more waits and one is filled.
const UPLOADS: usize = 2;
/// Maps that wait for the pack that is being filled take at most so much memory; then it is closed as it is.
const WAITING_BYTES_MAX: usize = 16 << 20;

/// One snapshot to be put on the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadJob {
    /// Under which its objects are named.
    pub attempt: Attempt,
    /// The snapshot, as it is read.
    pub snapshot: VolumeId,
    /// Which it is.
    pub of: Subject,
    /// The manifest of an older cut that the pool keeps until this job has ended.
    pub base: Option<(Attempt, Epoch)>,
}

/// Why a snapshot did not get to the backend.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SyncError {
    #[error("{0}")]
    Remote(#[from] RemoteError),
    #[error("cannot read the snapshot: {0}")]
    Source(#[from] SourceError),
}

/// How far a job is; written by it, read by whoever asks.
#[derive(Debug, Default)]
pub struct UploadProgress {
    /// Bytes of the volume that were looked at.
    pub walked: AtomicU64,
    /// Of so many.
    pub size: AtomicU64,
    /// Bytes of changed blocks, before compression.
    pub changed: AtomicU64,
    /// Bytes that went to the backend.
    pub sent: AtomicU64,
}

/// An object on its way.
struct Upload {
    object: Object,
    parts: Vec<Bytes>,
}

/// Puts everything up but the manifest, and returns that.
pub async fn upload(
    remote: &Remote,
    source: &dyn Source,
    job: &UploadJob,
    progress: &UploadProgress,
    patience: &Patience,
) -> Result<Manifest, SyncError> {
    progress.size.store(job.of.size, Ordering::Relaxed);
    let base = match job.base {
        None => None,
        Some((base, epoch)) => match read_base(remote, job, base, patience).await {
            Ok(manifest) => Some((Arc::new(manifest), epoch)),
            Err(error) if outlives(&error) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "the manifest of the last snapshot cannot be used; the whole volume is uploaded");
                None
            }
        },
    };
    let first = AtomicU64::new(0);
    if base.is_some() {
        match attempt(remote, source, job, base, progress, patience, &first).await {
            Err(SyncError::Source(SourceError::BaseGone)) => {}
            Err(SyncError::Remote(error)) if !outlives(&error) => {
                tracing::warn!(%error, "the map of the last snapshot cannot be used; the whole volume is uploaded");
            }
            outcome => return outcome,
        }
    }
    attempt(remote, source, job, None, progress, patience, &first).await
}

/// Whether a full walk would meet the same trouble: only what is wrong with the base's own objects is worth going around.
fn outlives(error: &RemoteError) -> bool {
    !error.is_missing() && !matches!(error, RemoteError::Corrupt { .. })
}

async fn read_base(
    remote: &Remote,
    job: &UploadJob,
    base: Attempt,
    patience: &Patience,
) -> Result<Manifest, RemoteError> {
    let object = Object::Manifest(base);
    let manifest: Manifest = remote.get_small(object, patience).await?;
    manifest.check().map_err(|why| remote.corrupt(object, why))?;
    if manifest.of.volume != job.of.volume || manifest.of.size > job.of.size {
        return Err(remote.corrupt(object, Corrupt::Nonsense("it is not an older state of this volume")));
    }
    Ok(manifest)
}

async fn attempt(
    remote: &Remote,
    source: &dyn Source,
    job: &UploadJob,
    base: Option<(Arc<Manifest>, Epoch)>,
    progress: &UploadProgress,
    patience: &Patience,
    numbers: &AtomicU64,
) -> Result<Manifest, SyncError> {
    let (out, uploads) = mpsc::channel::<Upload>(1);
    let walk = Walk::new(remote, job, base, progress, out, numbers);
    let walked = walk.run(source, patience);
    let uploaded = send_all(remote, uploads, progress, patience);
    let (manifest, ()) = futures_util::try_join!(walked, uploaded)?;
    Ok(manifest)
}

/// Some at a time, until the walk has ended.
async fn send_all(
    remote: &Remote,
    mut uploads: mpsc::Receiver<Upload>,
    progress: &UploadProgress,
    patience: &Patience,
) -> Result<(), SyncError> {
    let (mut flying, mut open) = (FuturesUnordered::new(), true);
    while open || !flying.is_empty() {
        tokio::select! {
            upload = uploads.recv(), if open && flying.len() < UPLOADS => match upload {
                Some(upload) => flying.push(send_one(remote, upload, progress, patience)),
                None => open = false,
            },
            Some(sent) = flying.next(), if !flying.is_empty() => sent?,
        }
    }
    Ok(())
}

async fn send_one(
    remote: &Remote,
    upload: Upload,
    progress: &UploadProgress,
    patience: &Patience,
) -> Result<(), SyncError> {
    remote.put(upload.object, &upload.parts, patience).await?;
    let bytes: u64 = upload.parts.iter().map(|part| part.len() as u64).sum();
    progress.sent.fetch_add(bytes, Ordering::Relaxed);
    Ok(())
}

/// The walk over what changed.
struct Walk<'a> {
    remote: &'a Remote,
    job: &'a UploadJob,
    base: Option<(Arc<Manifest>, Epoch)>,
    progress: &'a UploadProgress,
    out: mpsc::Sender<Upload>,
    /// Numbers of packs and map objects, not used twice by an attempt that begins again.
    numbers: &'a AtomicU64,
    pack: Option<PackWriter>,
    /// The packs that maps in the making lie in, by number.
    packs: BTreeMap<u32, PackRef>,
    draft: Option<ChunkDraft>,
    /// Maps whose last blocks may lie in the pack that is being filled.
    waiting: Vec<ChunkDraft>,
    waiting_bytes: usize,
    map: Option<MapWriter>,
    chunks: BTreeMap<u32, ChunkRef>,
    /// Blocks of the base that maps took away, and of the new maps.
    blocks: u64,
}

impl<'a> Walk<'a> {
    fn new(
        remote: &'a Remote,
        job: &'a UploadJob,
        base: Option<(Arc<Manifest>, Epoch)>,
        progress: &'a UploadProgress,
        out: mpsc::Sender<Upload>,
        numbers: &'a AtomicU64,
    ) -> Self {
        let (chunks, blocks) = base.as_ref().map_or_else(Default::default, |(manifest, _)| {
            (manifest.chunks.iter().map(|chunk| (chunk.chunk, *chunk)).collect(), manifest.blocks)
        });
        Self {
            remote,
            job,
            base,
            progress,
            out,
            numbers,
            pack: None,
            packs: BTreeMap::new(),
            draft: None,
            waiting: Vec::new(),
            waiting_bytes: 0,
            map: None,
            chunks,
            blocks,
        }
    }

    fn number(&self) -> u32 {
        u32::try_from(self.numbers.fetch_add(1, Ordering::Relaxed)).expect("a volume has fewer packs")
    }

    async fn run(mut self, source: &dyn Source, patience: &Patience) -> Result<Manifest, SyncError> {
        let (remote, snapshot) = (self.remote, self.job.snapshot);
        let questions = Questions::new(source, self.job, self.base.clone(), patience);
        let steps =
            questions.fetches().map(|fetch| async move { fetch?.run(remote, source, snapshot, patience).await });
        let mut steps = pin!(steps.buffered(AHEAD));
        while let Some(step) = steps.try_next().await? {
            self.step(step).await?;
        }
        self.end_draft();
        self.close_pack().await?;
        self.send_map().await?;
        Ok(self.manifest())
    }

    async fn step(&mut self, step: Step) -> Result<(), SyncError> {
        match step {
            Step::Chunk(chunk, base) => self.enter(chunk, base.map(|map| *map)).await?,
            Step::Zeros(range) => self.clear(range),
            Step::Walked(until) => self.progress.walked.store(until, Ordering::Relaxed),
            Step::Data(at, bytes) => {
                let len = bytes.len() as u64;
                self.progress.changed.fetch_add(len, Ordering::Relaxed);
                self.clear(at..at + len);
                for (block, data) in (at / BLOCK..).zip(bytes.chunks(BLOCK as usize)) {
                    self.block(block, data).await?;
                }
                // Compression is work on a thread that others share.
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// These bytes of the chunk under way are no more what the base has.
    fn clear(&mut self, range: Range<u64>) {
        let draft = self.draft.as_mut().expect("its chunk was entered");
        draft.clear(in_chunk(range.start, draft.chunk())..in_chunk(range.end, draft.chunk()));
    }

    async fn block(&mut self, block: u64, data: &[u8]) -> Result<(), SyncError> {
        if data.iter().all(|&byte| byte == 0) {
            return Ok(());
        }
        let mut whole = [0; BLOCK as usize];
        let data = if data.len() == whole.len() {
            data
        } else {
            // The volume ends within its last block.
            whole[..data.len()].copy_from_slice(data);
            &whole
        };
        if self.pack.as_ref().is_some_and(PackWriter::is_full) {
            self.close_pack().await?;
        }
        if self.pack.is_none() {
            let number = self.number();
            self.pack = Some(PackWriter::new(self.remote.pool, self.job.of.volume, self.job.attempt, number));
        }
        let pack = self.pack.as_mut().expect("it was just made");
        let slot = pack.push(block, data);
        let draft = self.draft.as_mut().expect("a changed block lies in a chunk that was entered");
        draft.put(in_chunk(block * BLOCK, draft.chunk()), pack.sequence(), slot);
        Ok(())
    }

    /// The walk comes to a chunk, of which the base has this map.
    async fn enter(&mut self, chunk: u32, base: Option<ChunkMap>) -> Result<(), SyncError> {
        self.end_draft();
        if self.waiting_bytes > WAITING_BYTES_MAX {
            self.close_pack().await?;
        }
        self.blocks -= base.as_ref().map_or(0, ChunkMap::blocks).min(self.blocks);
        self.draft = Some(ChunkDraft::over(chunk, base));
        Ok(())
    }

    fn end_draft(&mut self) {
        if let Some(draft) = self.draft.take() {
            self.waiting_bytes += draft.memory();
            self.waiting.push(draft);
        }
    }

    /// The pack goes up as it is; the maps that waited for it can be written.
    async fn close_pack(&mut self) -> Result<(), SyncError> {
        if let Some(pack) = self.pack.take() {
            let pack = pack.finish();
            self.packs.insert(pack.reference.sequence, pack.reference);
            self.send(pack.reference.object(), vec![pack.head, pack.data]).await?;
        }
        self.waiting_bytes = 0;
        for draft in std::mem::take(&mut self.waiting) {
            let chunk = draft.chunk();
            let map = draft.finish(|number| self.packs[&number]);
            match map {
                Some(map) => self.add_map(&map).await?,
                None => drop(self.chunks.remove(&chunk)),
            }
        }
        // Of the packs so far only those matter on that the chunk under way has blocks in.
        let keep = self.draft.as_ref().and_then(ChunkDraft::first_pack).unwrap_or(u32::MAX);
        self.packs = self.packs.split_off(&keep);
        Ok(())
    }

    async fn add_map(&mut self, map: &ChunkMap) -> Result<(), SyncError> {
        if self.map.as_ref().is_some_and(MapWriter::is_full) {
            self.send_map().await?;
        }
        if self.map.is_none() {
            self.map = Some(MapWriter::new(self.remote.pool, self.job.attempt, self.number()));
        }
        self.map.as_mut().expect("it was just made").push(map);
        self.blocks += map.blocks();
        Ok(())
    }

    async fn send_map(&mut self) -> Result<(), SyncError> {
        let Some(map) = self.map.take() else { return Ok(()) };
        let FinishedMap { object, bytes, chunks } = map.finish();
        self.chunks.extend(chunks.into_iter().map(|chunk| (chunk.chunk, chunk)));
        self.send(object, vec![bytes]).await
    }

    async fn send(&mut self, object: Object, parts: Vec<Bytes>) -> Result<(), SyncError> {
        // The other side ends early only with an error, which is the one that is told.
        if self.out.send(Upload { object, parts }).await.is_err() {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    fn manifest(self) -> Manifest {
        let job = self.job;
        let manifest = Manifest {
            of: job.of.clone(),
            blocks: self.blocks,
            base: self.base.and(job.base).map(|(attempt, _)| attempt),
            chunks: self.chunks.into_values().collect(),
        };
        manifest.check().expect("what was made here is a manifest");
        manifest
    }
}

/// A byte of the volume as a block of its chunk; the chunk's end is one more than its last block.
fn in_chunk(offset: u64, chunk: u32) -> u32 {
    let block = (offset - u64::from(chunk) * CHUNK_BYTES).div_ceil(BLOCK) as u32;
    assert!(block <= CHUNK_BLOCKS, "of this chunk");
    block
}

/// Puts the manifest: from here on the snapshot is on the backend, unconfirmed. To be called once the attempt is on record.
pub async fn publish(
    remote: &Remote,
    attempt: Attempt,
    manifest: &Manifest,
    patience: &Patience,
) -> Result<(), RemoteError> {
    remote.put_small(Object::Manifest(attempt), manifest, patience).await
}

/// Reads a manifest.
pub async fn read_manifest(
    remote: &Remote,
    attempt: Attempt,
    patience: &Patience,
) -> Result<Arc<Manifest>, RemoteError> {
    let object = Object::Manifest(attempt);
    let manifest: Manifest = remote.get_small(object, patience).await?;
    manifest.check().map_err(|why| remote.corrupt(object, why))?;
    Ok(Arc::new(manifest))
}
