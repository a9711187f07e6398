//! Reads a snapshot from the backend alone, any blocks of it, each checked against its checksum.
//!
//! Maps and indexes that were read are kept, within a bound; of packs only what was asked for is read.

use std::collections::HashMap;
use std::hash::Hash;
use std::ops::Range;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use parking_lot::Mutex;

use super::manifest::{CHUNK_BLOCKS, CHUNK_BYTES, ChunkMap, ChunkRef, Manifest};
use super::maps::read_chunk;
use super::names::Attempt;
use super::pack::{PackIndex, PackRef};
use super::remote::{Patience, Remote, RemoteError};
use super::sync::read_manifest;
use crate::limits::BLOCK;

/// Memory for maps, and for indexes, of one reader.
const MAPS_BYTES: usize = 32 << 20;
const INDEXES_BYTES: usize = 32 << 20;
/// Reads of packs at a time, for one call.
const READS: usize = 4;

/// What was used last, as much as fits.
#[derive(Debug)]
struct Recent<K, V> {
    entries: HashMap<K, (Arc<V>, usize, u64)>,
    bytes: usize,
    bytes_max: usize,
    clock: u64,
}

impl<K: Copy + Eq + Hash, V> Recent<K, V> {
    fn new(bytes_max: usize) -> Self {
        Self { entries: HashMap::new(), bytes: 0, bytes_max, clock: 0 }
    }

    fn get(&mut self, key: &K) -> Option<Arc<V>> {
        self.clock += 1;
        let (value, _, used) = self.entries.get_mut(key)?;
        *used = self.clock;
        Some(Arc::clone(value))
    }

    fn put(&mut self, key: K, value: Arc<V>, bytes: usize) {
        self.clock += 1;
        if let Some((_, old, _)) = self.entries.insert(key, (value, bytes, self.clock)) {
            self.bytes -= old;
        }
        self.bytes += bytes;
        // There are few: maps cover a GiB each, indexes 8 MiB.
        while self.bytes > self.bytes_max && self.entries.len() > 1 {
            let oldest = self.entries.iter().min_by_key(|(_, (.., used))| *used).map(|(key, _)| *key);
            let (_, bytes, _) = oldest.and_then(|key| self.entries.remove(&key)).expect("there is more than one");
            self.bytes -= bytes;
        }
    }
}

/// One snapshot on the backend, open for reading.
#[derive(Debug)]
pub struct Reader {
    remote: Remote,
    /// What it is.
    pub manifest: Arc<Manifest>,
    maps: Mutex<Recent<ChunkRef, ChunkMap>>,
    indexes: Mutex<Recent<PackRef, PackIndex>>,
}

/// A run of blocks within one pack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// The first block of the volume.
    pub(super) block: u64,
    pub(super) count: u32,
    pub(super) pack: PackRef,
    /// The first block's place in the pack.
    pub(super) slot: u32,
}

impl Reader {
    /// Opens the manifest.
    pub async fn open(remote: Remote, attempt: Attempt, patience: &Patience) -> Result<Reader, RemoteError> {
        let manifest = read_manifest(&remote, attempt, patience).await?;
        Ok(Reader::of(remote, manifest))
    }

    /// A manifest that was read.
    #[must_use]
    pub fn of(remote: Remote, manifest: Arc<Manifest>) -> Reader {
        Reader {
            remote,
            manifest,
            maps: Mutex::new(Recent::new(MAPS_BYTES)),
            indexes: Mutex::new(Recent::new(INDEXES_BYTES)),
        }
    }

    async fn map(&self, chunk: u32, patience: &Patience) -> Result<Option<Arc<ChunkMap>>, RemoteError> {
        let Some(reference) = self.manifest.chunk(chunk) else { return Ok(None) };
        let known = self.maps.lock().get(reference);
        if known.is_some() {
            return Ok(known);
        }
        let map = Arc::new(read_chunk(&self.remote, reference, patience).await?);
        self.maps.lock().put(*reference, Arc::clone(&map), map.memory());
        Ok(Some(map))
    }

    async fn index(&self, pack: &PackRef, patience: &Patience) -> Result<Arc<PackIndex>, RemoteError> {
        if let Some(known) = self.indexes.lock().get(pack) {
            return Ok(known);
        }
        let object = pack.object();
        let head = self.remote.get(object, 0..u64::from(pack.index_bytes), patience).await?;
        let index = PackIndex::decode(self.remote.pool, self.manifest.of.volume, pack, &head)
            .map_err(|why| self.remote.corrupt(object, why))?;
        let index = Arc::new(index);
        self.indexes.lock().put(*pack, Arc::clone(&index), index.memory());
        Ok(index)
    }

    /// The blocks with data in a range of blocks, in runs of at most `longest`.
    pub(super) async fn runs(
        &self,
        blocks: Range<u64>,
        longest: u32,
        patience: &Patience,
    ) -> Result<Vec<Run>, RemoteError> {
        let per_chunk = u64::from(CHUNK_BLOCKS);
        let mut runs = Vec::new();
        let mut at = blocks.start;
        while at < blocks.end {
            let chunk = at / per_chunk;
            let end = blocks.end.min((chunk + 1) * per_chunk);
            if let Some(map) = self.map(chunk as u32, patience).await? {
                let first = chunk * per_chunk;
                for extent in map.lookup((at - first) as u32..(end - first) as u32) {
                    let pack = map.packs[extent.pack as usize];
                    for skip in (0..extent.count).step_by(longest as usize) {
                        runs.push(Run {
                            block: first + u64::from(extent.start + skip),
                            count: longest.min(extent.count - skip),
                            pack,
                            slot: extent.slot + skip,
                        });
                    }
                }
            }
            at = end;
        }
        Ok(runs)
    }

    /// The data of a run.
    pub(super) async fn load(&self, run: Run, patience: &Patience) -> Result<Vec<u8>, RemoteError> {
        let index = self.index(&run.pack, patience).await?;
        let (object, slots) = (run.pack.object(), run.slot..run.slot + run.count);
        let stored = self.remote.get(object, index.range(slots.clone()), patience).await?;
        let mut data = Vec::with_capacity(run.count as usize * BLOCK as usize);
        index.unpack(slots, run.block, &stored, &mut data).map_err(|why| self.remote.corrupt(object, why))?;
        Ok(data)
    }

    /// Reads bytes of the snapshot; what lies beyond its end is zeros.
    pub async fn read(&self, offset: u64, len: u32, patience: &Patience) -> Result<Vec<u8>, RemoteError> {
        let end = offset + u64::from(len);
        let blocks = offset / BLOCK..end.div_ceil(BLOCK).min(self.manifest.blocks_in_all());
        let runs = self.runs(blocks, u32::MAX, patience).await?;
        let mut out = vec![0; len as usize];
        let mut loaded = stream::iter(runs)
            .map(|run| async move { Ok::<_, RemoteError>((run.block * BLOCK, self.load(run, patience).await?)) })
            .buffer_unordered(READS);
        while let Some((begin, data)) = loaded.try_next().await? {
            let from = begin.max(offset);
            let to = (begin + data.len() as u64).min(end);
            out[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&data[(from - begin) as usize..(to - begin) as usize]);
        }
        // What a last block has behind the volume's end was zeros when it was written.
        Ok(out)
    }

    /// The blocks of a stretch of at most sixteen that have data, as bits, and their bytes one after the other.
    pub async fn blocks(&self, offset: u64, count: u32, patience: &Patience) -> Result<(u16, Vec<u8>), RemoteError> {
        let first = offset / BLOCK;
        let end = (first + u64::from(count)).min(self.manifest.blocks_in_all());
        let (mut held, mut bytes) = (0, Vec::new());
        if first >= end {
            return Ok((held, bytes));
        }
        let runs = self.runs(first..end, u32::MAX, patience).await?;
        for run in &runs {
            let at = (run.block - first) as u32;
            held |= (at..at + run.count).fold(0, |bits: u16, block| bits | 1 << block);
        }
        // In their order: so the bytes are.
        let mut loaded = stream::iter(runs).map(|run| self.load(run, patience)).buffered(READS);
        while let Some(data) = loaded.try_next().await? {
            bytes.extend_from_slice(&data);
        }
        Ok((held, bytes))
    }

    /// Whether anything is stored of some blocks.
    pub async fn has_any(&self, offset: u64, count: u32, patience: &Patience) -> Result<bool, RemoteError> {
        let first = offset / BLOCK;
        let end = (first + u64::from(count)).min(self.manifest.blocks_in_all());
        Ok(first < end && !self.runs(first..end, u32::MAX, patience).await?.is_empty())
    }

    /// The first byte from `offset` on of which something may be stored, as far as the manifest's root tells.
    #[must_use]
    pub fn next_data(&self, offset: u64) -> Option<u64> {
        let begin = |chunk: &ChunkRef| u64::from(chunk.chunk) * CHUNK_BYTES;
        let mut chunks = self.manifest.chunks.iter();
        let found = chunks.find(|chunk| begin(chunk) + CHUNK_BYTES > offset)?;
        Some(begin(found).max(offset)).filter(|&at| at < self.manifest.of.size)
    }

    /// Reads every map and index, and with `data` every block. Returns the bytes of blocks that were checked.
    pub async fn check(&self, data: bool, patience: &Patience) -> Result<u64, RemoteError> {
        let mut blocks = 0;
        for reference in &self.manifest.chunks {
            let first = u64::from(reference.chunk) * u64::from(CHUNK_BLOCKS);
            let runs = self.runs(first..first + u64::from(CHUNK_BLOCKS), 512, patience).await?;
            let mut checked = stream::iter(runs)
                .map(|run| async move {
                    if data {
                        self.load(run, patience).await?;
                    } else {
                        let index = self.index(&run.pack, patience).await?;
                        self.exists(&run.pack, &index, patience).await?;
                    }
                    Ok::<_, RemoteError>(u64::from(run.count))
                })
                .buffer_unordered(READS);
            while let Some(count) = checked.try_next().await? {
                blocks += count;
            }
        }
        Ok(blocks * BLOCK)
    }

    /// The pack is as long as its index says.
    async fn exists(&self, pack: &PackRef, index: &PackIndex, patience: &Patience) -> Result<(), RemoteError> {
        let end = index.object_bytes();
        let last = self.remote.get(pack.object(), end - 1..end + 1, patience).await?;
        if last.len() == 1 {
            return Ok(());
        }
        let why = super::frame::Corrupt::Nonsense("it has another length than its index says");
        Err(self.remote.corrupt(pack.object(), why))
    }
}
