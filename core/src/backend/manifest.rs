//! A manifest: for every block of a snapshot, where on the backend it lies; nothing outside it is needed to read the snapshot but
//! the packs that it names (history C10).
//!
//! The map is cut into chunks of 1 GiB of the volume. A chunk that no block changed in is taken over from the manifest before,
//! by reference; so a snapshot of a large volume writes maps for what changed. What no extent covers is zeros.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::frame::Corrupt;
use super::names::{Attempt, Object};
use super::pack::PackRef;
use crate::ids::{Epoch, VolumeId};
use crate::limits::{BLOCK, VOLUME_BYTES_MAX};

/// Blocks that one chunk of the map covers: 1 GiB.
pub const CHUNK_BLOCKS: u32 = 1 << 18;
/// Bytes of the volume that one chunk of the map covers.
pub const CHUNK_BYTES: u64 = CHUNK_BLOCKS as u64 * BLOCK;

/// Which snapshot it is: the same to whoever puts it on the backend and to whoever finds it there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The volume that was cut.
    pub volume: VolumeId,
    /// Its name then.
    pub volume_name: String,
    /// Its NGUID.
    pub volume_uuid: Uuid,
    /// The snapshot's name.
    pub snapshot_name: String,
    /// The snapshot's NGUID.
    pub snapshot_uuid: Uuid,
    /// Bytes at the cut.
    pub size: u64,
    /// 512 or 4096.
    pub lba_bytes: u32,
    /// The cut.
    pub epoch: Epoch,
    /// Seconds since 1970, UTC.
    pub created_unix_s: u64,
}

/// The root: what the snapshot is, and where its chunks lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Which snapshot it is.
    pub of: Subject,
    /// Blocks with data.
    pub blocks: u64,
    /// The manifest that this one took chunks and packs over from.
    pub base: Option<Attempt>,
    /// Ascending; a chunk that is missing is zeros.
    pub chunks: Vec<ChunkRef>,
}

/// Where a chunk of the map lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkRef {
    /// Which GiB of the volume.
    pub chunk: u32,
    /// Who wrote it.
    pub by: Attempt,
    /// In which of its map objects.
    pub sequence: u32,
    /// Where it begins there.
    pub offset: u32,
    /// Bytes of frame and body.
    pub bytes: u32,
    /// Checksum of frame and body.
    pub crc: u32,
}

impl ChunkRef {
    /// The object that it lies in.
    #[must_use]
    pub fn object(&self) -> Object {
        Object::Map { by: self.by, sequence: self.sequence }
    }

    /// Where in that object.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        u64::from(self.offset)..u64::from(self.offset) + u64::from(self.bytes)
    }
}

impl Manifest {
    /// Whether it can be a manifest at all; a checksum does not make it one.
    pub fn check(&self) -> Result<(), Corrupt> {
        let Subject { size, lba_bytes, .. } = self.of;
        if lba_bytes != 512 && lba_bytes != 4096 {
            return Err(Corrupt::Nonsense("its logical block size is neither 512 nor 4096"));
        }
        if size == 0 || size > VOLUME_BYTES_MAX || !size.is_multiple_of(u64::from(lba_bytes)) {
            return Err(Corrupt::Nonsense("its size is none that a volume can have"));
        }
        let chunks = size.div_ceil(CHUNK_BYTES);
        let ascending = self.chunks.is_sorted_by(|a, b| a.chunk < b.chunk);
        if !ascending || self.chunks.last().is_some_and(|last| u64::from(last.chunk) >= chunks) {
            return Err(Corrupt::Nonsense("its chunks are not in order, or lie beyond its size"));
        }
        if self.chunks.iter().any(|chunk| chunk.offset.checked_add(chunk.bytes).is_none()) {
            return Err(Corrupt::Nonsense("a chunk lies beyond every object"));
        }
        Ok(())
    }

    /// Where a chunk's map lies; none: it is zeros.
    #[must_use]
    pub fn chunk(&self, chunk: u32) -> Option<&ChunkRef> {
        let at = self.chunks.binary_search_by_key(&chunk, |reference| reference.chunk).ok()?;
        Some(&self.chunks[at])
    }

    /// Blocks of the volume, the last of which may be cut short by its size.
    #[must_use]
    pub fn blocks_in_all(&self) -> u64 {
        self.of.size.div_ceil(BLOCK)
    }
}

/// A run of blocks that lie in a pack in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First block, from the start of the chunk.
    pub start: u32,
    /// Blocks.
    pub count: u32,
    /// Which of the chunk's packs.
    pub pack: u32,
    /// The first block's place in the pack.
    pub slot: u32,
}

impl Extent {
    /// The block after its last.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.start + self.count
    }
}

/// A chunk of the map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkMap {
    /// Which chunk; a map in the place of another is seen.
    pub chunk: u32,
    /// The packs that its blocks lie in.
    pub packs: Vec<PackRef>,
    /// Ascending, without overlaps.
    pub extents: Vec<Extent>,
}

impl ChunkMap {
    /// Whether it can be the map of this chunk.
    pub fn check(&self, chunk: u32) -> Result<(), Corrupt> {
        if self.chunk != chunk {
            return Err(Corrupt::Misplaced("chunk"));
        }
        let mut end = 0;
        for extent in &self.extents {
            let pack = self.packs.get(extent.pack as usize).ok_or(Corrupt::Nonsense("an extent lies in no pack"))?;
            let slots_end = extent.slot.checked_add(extent.count);
            if slots_end.is_none_or(|end| end > pack.blocks) {
                return Err(Corrupt::Nonsense("an extent reaches beyond its pack"));
            }
            let blocks_end = extent.start.checked_add(extent.count);
            if extent.count == 0 || extent.start < end || blocks_end.is_none_or(|end| end > CHUNK_BLOCKS) {
                return Err(Corrupt::Nonsense("its extents overlap or leave the chunk"));
            }
            end = extent.end();
        }
        Ok(())
    }

    /// Blocks with data.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.extents.iter().map(|extent| u64::from(extent.count)).sum()
    }

    /// How many blocks lie in each of its packs.
    #[must_use]
    pub fn blocks_by_pack(&self) -> Vec<(PackRef, u32)> {
        let mut counts: Vec<_> = self.packs.iter().map(|&pack| (pack, 0)).collect();
        for extent in &self.extents {
            counts[extent.pack as usize].1 += extent.count;
        }
        counts
    }

    /// The extents that touch `range`, cut to it.
    pub fn lookup(&self, range: Range<u32>) -> impl Iterator<Item = Extent> {
        let first = self.extents.partition_point(|extent| extent.end() <= range.start);
        self.extents[first..].iter().take_while(move |extent| extent.start < range.end).map(move |extent| {
            let start = extent.start.max(range.start);
            let end = extent.end().min(range.end);
            Extent { start, count: end - start, pack: extent.pack, slot: extent.slot + (start - extent.start) }
        })
    }

    /// Memory that it takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.packs.len() * size_of::<PackRef>() + self.extents.len() * size_of::<Extent>()
    }
}

/// A chunk's map that is being made: what was there, with what changed over it.
#[derive(Debug, Default)]
pub struct ChunkDraft {
    base: ChunkMap,
    /// Of the base, what is not valid any more; ascending.
    cleared: Vec<Range<u32>>,
    /// Over it: start, count, number of the new pack, slot. Ascending.
    fresh: Vec<(u32, u32, u32, u32)>,
}

impl ChunkDraft {
    /// Over `base`, or over zeros.
    #[must_use]
    pub fn over(chunk: u32, base: Option<ChunkMap>) -> Self {
        let base = base.unwrap_or(ChunkMap { chunk, ..ChunkMap::default() });
        assert_eq!(base.chunk, chunk, "a chunk lies over itself");
        Self { base, ..Self::default() }
    }

    /// Which chunk.
    #[must_use]
    pub fn chunk(&self) -> u32 {
        self.base.chunk
    }

    /// These blocks changed; they are zeros unless [`ChunkDraft::put`] follows. Ascending.
    pub fn clear(&mut self, range: Range<u32>) {
        assert!(range.start < range.end && range.end <= CHUNK_BLOCKS, "blocks of this chunk");
        match self.cleared.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            last => {
                assert!(last.is_none_or(|last| last.end < range.start), "changes come in order");
                self.cleared.push(range);
            }
        }
    }

    /// The block lies in the new pack `pack` at `slot`. Ascending, and cleared before.
    pub fn put(&mut self, block: u32, pack: u32, slot: u32) {
        match self.fresh.last_mut() {
            Some((start, count, of, first)) if *start + *count == block && *of == pack && *first + *count == slot => {
                *count += 1;
            }
            last => {
                assert!(last.is_none_or(|(start, count, ..)| *start + *count <= block), "blocks come in order");
                self.fresh.push((block, 1, pack, slot));
            }
        }
    }

    /// The lowest number of a new pack that it has blocks in.
    #[must_use]
    pub fn first_pack(&self) -> Option<u32> {
        self.fresh.iter().map(|&(_, _, pack, _)| pack).min()
    }

    /// Memory that it takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.base.memory() + self.cleared.len() * size_of::<Range<u32>>() + self.fresh.len() * size_of::<[u32; 4]>()
    }

    /// The map, once it is known how the new packs are referred to. `None` where the whole chunk is zeros.
    #[must_use]
    pub fn finish(self, pack: impl Fn(u32) -> PackRef) -> Option<ChunkMap> {
        let mut kept = Vec::with_capacity(self.base.extents.len() + self.cleared.len());
        let mut from = 0;
        for hole in self.cleared.iter().cloned().chain(std::iter::once(CHUNK_BLOCKS..CHUNK_BLOCKS)) {
            kept.extend(self.base.lookup(from..hole.start).filter(|extent| extent.count > 0));
            from = hole.end;
        }
        let mut packs: Vec<PackRef> = Vec::new();
        let mut place: std::collections::BTreeMap<PackRef, u32> = std::collections::BTreeMap::new();
        let mut number = |reference: PackRef| {
            *place.entry(reference).or_insert_with(|| {
                packs.push(reference);
                packs.len() as u32 - 1
            })
        };
        let old = kept.into_iter().map(|extent| {
            let pack = number(self.base.packs[extent.pack as usize]);
            Extent { pack, ..extent }
        });
        let mut extents: Vec<Extent> = old.collect();
        extents.extend(self.fresh.iter().map(|&(start, count, of, slot)| Extent {
            start,
            count,
            pack: number(pack(of)),
            slot,
        }));
        extents.sort_unstable_by_key(|extent| extent.start);
        let map = ChunkMap { chunk: self.base.chunk, packs, extents };
        map.check(map.chunk).expect("what lies over a valid map is one");
        (!map.extents.is_empty()).then_some(map)
    }
}

/// What marks a manifest as committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Seconds since 1970, UTC, when it was put.
    pub unix_s: u64,
}

/// What says that a manifest is about to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// Seconds since 1970, UTC, when it was put.
    pub unix_s: u64,
}

/// What keeps a manifest while another pool, or a lazy clone of any pool, reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// The pool that reads it, or the clone that looks through to it.
    pub holder: Uuid,
    /// What it becomes there.
    pub volume_name: String,
    /// Seconds since 1970, UTC.
    pub unix_s: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pack(by: u64, sequence: u32) -> PackRef {
        PackRef { by: Attempt { id: by, nonce: 0 }, sequence, blocks: CHUNK_BLOCKS, index_bytes: 64, index_crc: 0 }
    }

    /// Where each of the first blocks lies.
    fn flat(map: Option<&ChunkMap>, blocks: u32) -> Vec<Option<(PackRef, u32)>> {
        let mut all = vec![None; blocks as usize];
        let Some(map) = map else { return all };
        for extent in map.lookup(0..blocks) {
            for at in 0..extent.count {
                all[(extent.start + at) as usize] = Some((map.packs[extent.pack as usize], extent.slot + at));
            }
        }
        all
    }

    proptest! {
        #[test]
        fn a_map_over_another_is_the_other_with_exactly_the_changes(rounds in prop::collection::vec(prop::collection::vec(0_u8..4, 40), 1..6)) {
            let (mut map, mut model) = (None, vec![None; 40]);
            for (round, changes) in rounds.iter().enumerate() {
                let mut draft = ChunkDraft::over(3, map.take());
                let mut slots = [0_u32; 2];
                for (block, change) in changes.iter().enumerate() {
                    let at = block as u32;
                    match change {
                        0 => continue,
                        1 => {
                            draft.clear(at..at + 1);
                            model[block] = None;
                        }
                        _ => {
                            // Packs are filled one after the other.
                            let sequence = u32::from(block >= 20);
                            draft.clear(at..at + 1);
                            let slot = slots[sequence as usize];
                            slots[sequence as usize] += 1;
                            draft.put(at, sequence, slot);
                            model[block] = Some((pack(round as u64, sequence), slot));
                        }
                    }
                }
                map = draft.finish(|sequence| pack(round as u64, sequence));
                prop_assert_eq!(&flat(map.as_ref(), 40), &model);
                let data = model.iter().flatten().count() as u64;
                prop_assert_eq!(map.as_ref().map_or(0, ChunkMap::blocks), data);
                let named: std::collections::BTreeSet<_> = model.iter().flatten().map(|(pack, _)| *pack).collect();
                prop_assert_eq!(map.as_ref().map_or(0, |map| map.packs.len()), named.len(), "no pack is named that nothing lies in");
            }
        }
    }

    #[test]
    fn maps_that_lie_are_refused() {
        let extent = Extent { start: 5, count: 5, pack: 0, slot: 0 };
        let of =
            |extents: Vec<Extent>| ChunkMap { chunk: 1, packs: vec![PackRef { blocks: 10, ..pack(1, 0) }], extents };
        assert_eq!(of(vec![extent]).check(1), Ok(()));
        assert_eq!(of(vec![extent]).check(2), Err(Corrupt::Misplaced("chunk")));
        for bad in [
            Extent { count: 0, ..extent },
            Extent { pack: 1, ..extent },
            Extent { slot: 6, ..extent },
            Extent { slot: u32::MAX, ..extent },
            Extent { start: CHUNK_BLOCKS - 4, ..extent },
            Extent { start: u32::MAX, ..extent },
        ] {
            assert!(of(vec![bad]).check(1).is_err(), "{bad:?}");
        }
        assert!(of(vec![extent, Extent { start: 9, count: 1, ..extent }]).check(1).is_err(), "an overlap");
    }

    #[test]
    fn roots_that_lie_are_refused() {
        let by = Attempt { id: 1, nonce: 1 };
        let chunk = ChunkRef { chunk: 0, by, sequence: 0, offset: 0, bytes: 100, crc: 0 };
        let of = Subject {
            volume: VolumeId(1),
            volume_name: "v".into(),
            volume_uuid: Uuid::nil(),
            snapshot_name: "s".into(),
            snapshot_uuid: Uuid::nil(),
            size: 2 * CHUNK_BYTES,
            lba_bytes: 512,
            epoch: Epoch(1),
            created_unix_s: 0,
        };
        let chunks = vec![chunk, ChunkRef { chunk: 1, ..chunk }];
        let good = Manifest { of: of.clone(), blocks: 0, base: None, chunks };
        assert_eq!(good.check(), Ok(()));
        let with = |of| Manifest { of, ..good.clone() };
        for bad in [
            with(Subject { size: CHUNK_BYTES, ..of.clone() }),
            with(Subject { size: 0, ..of.clone() }),
            with(Subject { size: 2 * CHUNK_BYTES + 1, ..of.clone() }),
            with(Subject { size: u64::MAX, ..of.clone() }),
            with(Subject { lba_bytes: 0, ..of.clone() }),
            Manifest { chunks: vec![chunk, chunk], ..good.clone() },
            Manifest { chunks: vec![ChunkRef { offset: u32::MAX, ..chunk }], ..good.clone() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
