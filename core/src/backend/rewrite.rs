//! Packs of which hardly anything is needed any more are rewritten: what is needed of them goes into other packs, and the manifests
//! that need it are put anew, under names of their own.
//!
//! ```text
//! worn packs (collect) -> which of their blocks does any manifest need? -> copied into new packs, new pieces of maps
//!   -> the new names are noted in the catalog (history C14) -> manifests put, read back
//!   -> the catalog takes them in place of the old ones, by one record -> markers
//! ```
//! Nothing that is there is changed or deleted here. The old manifests go as those of removed snapshots do (tombstone, grace time,
//! references of those who still read them), and with the last of them the worn packs. A crash before the catalog's record leaves an
//! attempt that came to nothing; after it, manifests that nobody needs. Either is collected.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::manifest::{CHUNK_BLOCKS, ChunkDraft, ChunkMap, ChunkRef, Manifest};
use super::maps::{FinishedMap, MapWriter, read_chunk};
use super::names::Attempt;
use super::pack::{PackRef, PackWriter};
use super::reader::{Reader, Run};
use super::remote::{Patience, Remote, RemoteError};
use super::sync::read_manifest;
use crate::ids::VolumeId;
use crate::limits::BLOCK;

/// A pack is worn when at most one in so many of its blocks is needed: each byte that is copied frees three, or more.
const WORN_PART: u64 = 4;
/// Blocks that are copied at a time for one volume: 64 MiB. What is worn beyond waits for the next pass.
const BLOCKS_MAX: u64 = 16_384;
/// Blocks of one read, and reads at a time.
const RUN_BLOCKS: u32 = 256;
const READS: usize = 4;

/// Whether so few blocks are needed of it that it is worth being rewritten.
#[must_use]
pub fn is_worn(pack: &PackRef, needed: u64) -> bool {
    needed * WORN_PART <= u64::from(pack.blocks)
}

/// What is to be rewritten of one volume.
#[derive(Debug)]
pub struct Rewriting {
    volume: VolumeId,
    /// The manifests that need something of the worn packs, by the names that they have.
    pub manifests: Vec<(Attempt, Arc<Manifest>)>,
    /// What is needed: by pack and slot, which block of the volume it is.
    blocks: BTreeMap<PackRef, BTreeMap<u32, u64>>,
    /// The pieces of maps that name them.
    chunks: HashSet<ChunkRef>,
}

/// Plans for each volume of which something is worn. `live` are the manifests of the catalog, and `names_worn` says whether a piece of a
/// map may name a worn pack, so that not all are read.
pub async fn plan(
    remote: &Remote,
    live: &BTreeSet<Attempt>,
    worn: &BTreeSet<PackRef>,
    names_worn: impl Fn(&ChunkRef) -> bool,
    patience: &Patience,
) -> Result<Vec<Rewriting>, RemoteError> {
    if worn.is_empty() {
        return Ok(Vec::new());
    }
    let mut volumes: BTreeMap<VolumeId, Vec<(Attempt, Arc<Manifest>)>> = BTreeMap::new();
    for &attempt in live {
        let manifest = read_manifest(remote, attempt, patience).await?;
        if manifest.chunks.iter().any(&names_worn) {
            volumes.entry(manifest.of.volume).or_default().push((attempt, manifest));
        }
    }
    let mut plans = Vec::new();
    for (volume, manifests) in volumes {
        let chunks: HashSet<ChunkRef> = manifests
            .iter()
            .flat_map(|(_, manifest)| &manifest.chunks)
            .filter(|chunk| names_worn(chunk))
            .copied()
            .collect();
        plans.extend(plan_volume(remote, (volume, manifests), chunks, worn, patience).await?);
    }
    Ok(plans)
}

async fn plan_volume(
    remote: &Remote,
    (volume, mut manifests): (VolumeId, Vec<(Attempt, Arc<Manifest>)>),
    chunks: HashSet<ChunkRef>,
    worn: &BTreeSet<PackRef>,
    patience: &Patience,
) -> Result<Option<Rewriting>, RemoteError> {
    let mut needed: BTreeMap<PackRef, BTreeMap<u32, u64>> = BTreeMap::new();
    let mut named: HashMap<ChunkRef, Vec<PackRef>> = HashMap::new();
    for reference in chunks {
        let map = read_chunk(remote, &reference, patience).await?;
        named.insert(reference, map.packs.iter().filter(|pack| worn.contains(*pack)).copied().collect());
        for (pack, slot, block) in blocks_in(&map, |pack| worn.contains(pack)) {
            let slots = needed.entry(pack).or_default();
            // Of one that turns out to be needed more no more is kept in mind.
            if is_worn(&pack, slots.len() as u64) {
                slots.insert(slot, block);
            }
        }
    }
    needed.retain(|pack, slots| is_worn(pack, slots.len() as u64));
    let mut by_need: Vec<_> = needed.iter().map(|(pack, slots)| (slots.len() as u64, *pack)).collect();
    by_need.sort_unstable();
    let mut blocks = 0;
    for (count, pack) in by_need {
        blocks += count;
        if blocks > BLOCKS_MAX {
            needed.remove(&pack);
        }
    }
    if needed.is_empty() {
        return Ok(None);
    }
    let of_these = |packs: &Vec<PackRef>| packs.iter().any(|pack| needed.contains_key(pack));
    let chunks: HashSet<_> = named.iter().filter(|(_, packs)| of_these(packs)).map(|(chunk, _)| *chunk).collect();
    manifests.retain(|(_, manifest)| manifest.chunks.iter().any(|chunk| chunks.contains(chunk)));
    Ok(Some(Rewriting { volume, manifests, blocks: needed, chunks }))
}

/// The blocks of a map that lie in some of its packs: pack, slot, block of the volume.
fn blocks_in(map: &ChunkMap, wanted: impl Fn(&PackRef) -> bool) -> impl Iterator<Item = (PackRef, u32, u64)> {
    let first = u64::from(map.chunk) * u64::from(CHUNK_BLOCKS);
    let extents = map.extents.iter().filter(move |extent| wanted(&map.packs[extent.pack as usize]));
    extents.flat_map(move |extent| {
        let pack = map.packs[extent.pack as usize];
        (0..extent.count).map(move |nth| (pack, extent.slot + nth, first + u64::from(extent.start + nth)))
    })
}

impl Rewriting {
    /// Bytes of blocks that it copies.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks.values().map(|slots| slots.len() as u64 * BLOCK).sum()
    }

    /// Puts packs and maps, under the first of the new names. Returns the manifests that belong under them, in their order.
    pub async fn copy(
        &self,
        remote: &Remote,
        names: &[Attempt],
        patience: &Patience,
    ) -> Result<Vec<Manifest>, RemoteError> {
        assert_eq!(names.len(), self.manifests.len(), "each manifest has a new name");
        let mut copier = Copier::new(remote, self.volume, names[0], patience);
        copier.copy(&self.blocks, &self.manifests[0].1).await?;
        let renewed = copier.renew_maps(&self.chunks, &self.blocks).await?;
        let manifest = |(_, old): &(Attempt, Arc<Manifest>)| {
            let chunks = old.chunks.iter().map(|chunk| renewed.get(chunk).unwrap_or(chunk)).copied().collect();
            let new = Manifest { chunks, ..Manifest::clone(old) };
            new.check().expect("other places do not make it less of a manifest");
            new
        };
        Ok(self.manifests.iter().map(manifest).collect())
    }
}

/// A copy under way.
struct Copier<'a> {
    remote: &'a Remote,
    volume: VolumeId,
    by: Attempt,
    patience: &'a Patience,
    next: u32,
    pack: Option<PackWriter>,
    packs: BTreeMap<u32, PackRef>,
    /// From where to where: the number of the new pack, and the slot.
    moved: HashMap<(PackRef, u32), (u32, u32)>,
}

impl<'a> Copier<'a> {
    fn new(remote: &'a Remote, volume: VolumeId, by: Attempt, patience: &'a Patience) -> Self {
        let (packs, moved) = (BTreeMap::new(), HashMap::new());
        Self { remote, volume, by, patience, next: 0, pack: None, packs, moved }
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    async fn copy(
        &mut self,
        blocks: &BTreeMap<PackRef, BTreeMap<u32, u64>>,
        manifest: &Arc<Manifest>,
    ) -> Result<(), RemoteError> {
        let reader = &Reader::of(self.remote.clone(), Arc::clone(manifest));
        let patience = self.patience;
        let runs: Vec<Run> = blocks.iter().flat_map(|(pack, slots)| runs_of(*pack, slots)).collect();
        let mut loaded = stream::iter(runs)
            .map(|run| async move { Ok::<_, RemoteError>((run, reader.load(run, patience).await?)) })
            .buffered(READS);
        while let Some((run, data)) = loaded.try_next().await? {
            for (nth, block) in (0..).zip(data.chunks_exact(BLOCK as usize)) {
                self.push(run.block + u64::from(nth), (run.pack, run.slot + nth), block).await?;
            }
            // Compression is work on a thread that others share.
            tokio::task::yield_now().await;
        }
        self.close_pack().await
    }

    async fn push(&mut self, block: u64, from: (PackRef, u32), data: &[u8]) -> Result<(), RemoteError> {
        if self.pack.as_ref().is_some_and(PackWriter::is_full) {
            self.close_pack().await?;
        }
        if self.pack.is_none() {
            let number = self.number();
            self.pack = Some(PackWriter::new(self.remote.pool, self.volume, self.by, number));
        }
        let pack = self.pack.as_mut().expect("it was just made");
        let slot = pack.push(block, data);
        self.moved.insert(from, (pack.sequence(), slot));
        Ok(())
    }

    async fn close_pack(&mut self) -> Result<(), RemoteError> {
        let Some(pack) = self.pack.take() else { return Ok(()) };
        let pack = pack.finish();
        self.packs.insert(pack.reference.sequence, pack.reference);
        self.remote.put(pack.reference.object(), &[pack.head, pack.data], self.patience).await
    }

    /// Every piece of a map that names what was moved, as it is now; by what it was.
    async fn renew_maps(
        &mut self,
        chunks: &HashSet<ChunkRef>,
        blocks: &BTreeMap<PackRef, BTreeMap<u32, u64>>,
    ) -> Result<HashMap<ChunkRef, ChunkRef>, RemoteError> {
        let (mut renewed, mut writer) = (HashMap::new(), None);
        for old in chunks {
            let map = read_chunk(self.remote, old, self.patience).await?;
            let map = self.renew_map(&map, blocks);
            if writer.as_ref().is_some_and(MapWriter::is_full) {
                self.put_map(writer.take()).await?;
            }
            let number = if writer.is_none() { self.number() } else { 0 };
            let writer = writer.get_or_insert_with(|| MapWriter::new(self.remote.pool, self.by, number));
            renewed.insert(*old, writer.push(&map));
        }
        self.put_map(writer).await?;
        Ok(renewed)
    }

    fn renew_map(&self, map: &ChunkMap, blocks: &BTreeMap<PackRef, BTreeMap<u32, u64>>) -> ChunkMap {
        let first = u64::from(map.chunk) * u64::from(CHUNK_BLOCKS);
        let mut draft = ChunkDraft::over(map.chunk, Some(map.clone()));
        for (pack, slot, block) in blocks_in(map, |pack| blocks.contains_key(pack)) {
            let (number, to) = self.moved[&(pack, slot)];
            let block = (block - first) as u32;
            draft.clear(block..block + 1);
            draft.put(block, number, to);
        }
        draft.finish(|number| self.packs[&number]).expect("it has the blocks that it had")
    }

    async fn put_map(&self, writer: Option<MapWriter>) -> Result<(), RemoteError> {
        let Some(writer) = writer else { return Ok(()) };
        let FinishedMap { object, bytes, .. } = writer.finish();
        self.remote.put(object, &[bytes], self.patience).await
    }
}

/// Reads of a pack: slots next to each other that hold blocks next to each other.
fn runs_of(pack: PackRef, slots: &BTreeMap<u32, u64>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (&slot, &block) in slots {
        match runs.last_mut() {
            Some(run)
                if run.count < RUN_BLOCKS
                    && run.slot + run.count == slot
                    && run.block + u64::from(run.count) == block =>
            {
                run.count += 1;
            }
            _ => runs.push(Run { block, count: 1, pack, slot }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_of_what_lies_together() {
        let pack = PackRef { by: Attempt { id: 1, nonce: 0 }, sequence: 0, blocks: 99, index_bytes: 64, index_crc: 0 };
        let slots = BTreeMap::from([(3, 10), (4, 11), (5, 20), (7, 21), (8, 22)]);
        let runs: Vec<_> = runs_of(pack, &slots).iter().map(|run| (run.slot, run.block, run.count)).collect();
        assert_eq!(runs, [(3, 10, 2), (5, 20, 1), (7, 21, 2)]);
        let long: BTreeMap<u32, u64> = (0..RUN_BLOCKS + 1).map(|slot| (slot, u64::from(slot))).collect();
        assert_eq!(runs_of(pack, &long).iter().map(|run| run.count).collect::<Vec<_>>(), [RUN_BLOCKS, 1]);
    }
}
