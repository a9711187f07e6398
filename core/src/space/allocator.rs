//! One shard's allocator: next-fit over the clusters of the slabs it owns.
//!
//! A cluster is in exactly one of these states:
//!
//! ```text
//! free --alloc--> in hand --settle(lsn)--> settled --durable--> mapped --free(lsn, ticket)--> quarantined --reclaim--> free
//!                    \--give_back--> free
//! free --alloc_page / alloc_chunk--> metadata --free_page / free_chunk--> free
//! ```
//!
//! Invariants: the bit of a cluster is set in every state but free; a data allocation never takes the last
//! `reserve` clusters, so that unmapping and checkpoints work in a full pool (H7, H18); the image for a checkpoint holds
//! exactly the clusters whose mapping is durable, so that replaying the journal from there neither leaks nor shares one.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use thiserror::Error;

use super::geometry::{Geometry, SlabId};
use super::pages::PageClusters;
use super::place::{CLASS_CLUSTER, Place};
use super::quarantine::{Quarantine, Ticket};
use crate::ids::Lsn;

/// What a cluster is for; decides whether it may come out of the reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Data of a volume: stops at the reserve.
    Data,
    /// Map pages and checkpoint chunks, without which nothing can be freed: may use the reserve.
    Metadata,
}

/// No cluster for this purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AllocError {
    /// Nothing free, but clusters wait in quarantine: commit the journal, let operations end, [`Space::reclaim`], try again.
    #[error("no free cluster, {quarantined} wait for their unmapping to be durable")]
    Quarantined {
        /// How many.
        quarantined: u64,
    },
    /// Nothing free and nothing on its way: the shard needs another slab, or is full.
    #[error("no free cluster in {slabs} slabs")]
    Full {
        /// Slabs the shard owns.
        slabs: usize,
    },
}

/// A place read from disk lies in no slab of this shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("place {0:?} lies in no slab of this shard")]
pub struct UnknownPlace(pub Place);

/// A slab that cannot leave its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("slab {0} is not owned or has clusters in use")]
pub struct SlabInUse(pub SlabId);

/// Clusters by state. `total = free + data + metadata + quarantined`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Clusters of all slabs.
    pub total: u64,
    /// Ready to be given out, reserve included.
    pub free: u64,
    /// In hand or mapped.
    pub data: u64,
    /// Page clusters and checkpoint chunks.
    pub metadata: u64,
    /// Unmapped and not yet reusable.
    pub quarantined: u64,
    /// Kept back from data.
    pub reserve: u64,
}

/// The clusters in use of one slab: bit `n % 64` of word `n / 64` is cluster `n`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlabBitmap {
    /// Which slab.
    pub slab: SlabId,
    /// One bit a cluster, set: in use.
    pub words: Vec<u64>,
}

#[derive(Debug)]
struct Slab {
    id: SlabId,
    words: Box<[u64]>,
    free: u32,
}

/// One shard's space.
#[derive(Debug)]
pub struct Space {
    geometry: Arc<Geometry>,
    slabs: Vec<Slab>,
    by_id: BTreeMap<SlabId, usize>,
    /// Where the next search starts: slab and cluster. Consecutive allocations are consecutive on the device.
    cursor: (usize, u32),
    free: u64,
    /// Slabs nothing of which is in use.
    empty: usize,
    reserve: u64,
    /// Allocated, no record yet.
    in_hand: HashSet<Place>,
    /// Allocated, record not yet durable, in LSN order.
    settled: VecDeque<(Lsn, Place)>,
    durable: Lsn,
    quarantine: Quarantine,
    /// Let go, but not free before a hole has been punched where they are.
    punching: BTreeSet<Place>,
    pages: PageClusters,
    chunks: BTreeSet<Place>,
}

impl Space {
    /// A shard without slabs. `reserve` clusters are never given to data.
    #[must_use]
    pub fn new(geometry: Arc<Geometry>, reserve: u64) -> Space {
        Space {
            geometry,
            slabs: Vec::new(),
            by_id: BTreeMap::new(),
            cursor: (0, 0),
            free: 0,
            empty: 0,
            reserve,
            in_hand: HashSet::new(),
            settled: VecDeque::new(),
            durable: Lsn(0),
            quarantine: Quarantine::default(),
            punching: BTreeSet::new(),
            pages: PageClusters::default(),
            chunks: BTreeSet::new(),
        }
    }

    /// The pool's slabs.
    #[must_use]
    pub fn geometry(&self) -> &Arc<Geometry> {
        &self.geometry
    }

    /// The pool has more devices.
    ///
    /// # Panics
    /// If those that it had are cut otherwise.
    pub fn set_geometry(&mut self, geometry: Arc<Geometry>) {
        let (before, now) = (&self.geometry, &geometry);
        assert!(
            before.slab_bytes() == now.slab_bytes() && now.areas().starts_with(before.areas()),
            "a pool only ever grows: {before:?} to {now:?}"
        );
        self.geometry = geometry;
    }

    /// Takes over a slab that the catalog has given to this shard, all free.
    ///
    /// # Panics
    /// If the slab does not exist or is owned already.
    pub fn add_slab(&mut self, slab: SlabId) {
        assert!(self.geometry.has_slab(slab), "slab {slab} does not exist");
        assert!(self.by_id.insert(slab, self.slabs.len()).is_none(), "slab {slab} is owned already");
        let clusters = self.geometry.clusters_per_slab();
        let mut words = vec![0; clusters.div_ceil(64) as usize].into_boxed_slice();
        if !clusters.is_multiple_of(64) {
            // Clusters beyond the slab are never free.
            words[words.len() - 1] = !0 << (clusters % 64);
        }
        self.slabs.push(Slab { id: slab, words, free: clusters });
        self.free += u64::from(clusters);
        self.empty += 1;
    }

    /// Marks what a checkpoint says is in use of a slab added before. Bits beyond the slab are ignored.
    pub fn load_bitmap(&mut self, bitmap: &SlabBitmap) -> Result<(), SlabInUse> {
        let &index = self.by_id.get(&bitmap.slab).ok_or(SlabInUse(bitmap.slab))?;
        if bitmap.words.len() != self.slabs[index].words.len() {
            return Err(SlabInUse(bitmap.slab));
        }
        let slab = &mut self.slabs[index];
        let mut taken = 0;
        for (word, &more) in slab.words.iter_mut().zip(&bitmap.words) {
            taken += (more & !*word).count_ones();
            *word |= more;
        }
        self.empty -= usize::from(taken > 0 && slab.free == self.geometry.clusters_per_slab());
        slab.free -= taken;
        self.free -= u64::from(taken);
        Ok(())
    }

    /// Gives up a slab nothing of which is in use.
    pub fn remove_slab(&mut self, slab: SlabId) -> Result<(), SlabInUse> {
        let clusters = self.geometry.clusters_per_slab();
        let index = *self.by_id.get(&slab).ok_or(SlabInUse(slab))?;
        if self.slabs[index].free != clusters {
            return Err(SlabInUse(slab));
        }
        self.forget_slab(index);
        Ok(())
    }

    /// Recovery: the slab is not this shard's any more, whatever its records say; whether anything of it was in use.
    pub fn disown(&mut self, slab: SlabId) -> bool {
        let index = self.by_id[&slab];
        let used = self.slabs[index].free < self.geometry.clusters_per_slab();
        self.forget_slab(index);
        used
    }

    fn forget_slab(&mut self, index: usize) {
        let gone = self.slabs.remove(index);
        self.by_id = self.slabs.iter().enumerate().map(|(index, slab)| (slab.id, index)).collect();
        self.cursor = (0, 0);
        self.free -= u64::from(gone.free);
        self.empty -= usize::from(gone.free == self.geometry.clusters_per_slab());
    }

    /// Whether a slab belongs to this shard.
    #[must_use]
    pub fn has_slab(&self, slab: SlabId) -> bool {
        self.by_id.contains_key(&slab)
    }

    /// Slabs nothing of which is in use.
    #[must_use]
    pub fn empty_slabs(&self) -> usize {
        self.empty
    }

    /// The last of them, as the pool counts: its front stays in use.
    #[must_use]
    pub fn last_empty_slab(&self) -> Option<SlabId> {
        let clusters = self.geometry.clusters_per_slab();
        self.slabs.iter().filter(|slab| slab.free == clusters).map(|slab| slab.id).max()
    }

    /// Whether a slab has nothing in use but metadata, which checkpoints may move, and what waits in quarantine.
    #[must_use]
    pub fn may_empty_a_slab(&self) -> bool {
        let mut passing: BTreeMap<SlabId, u32> = BTreeMap::new();
        let metadata = self.pages.clusters().chain(self.chunks.iter().copied());
        for place in metadata.chain(self.quarantine.places()).chain(self.punching.iter().copied()) {
            let (slab, _) = self.geometry.slab_of(place).expect("an allocated place is in a slab");
            *passing.entry(slab).or_default() += 1;
        }
        let clusters = self.geometry.clusters_per_slab();
        self.slabs.iter().any(|slab| passing.get(&slab.id).is_some_and(|passing| slab.free + passing == clusters))
    }

    /// Slabs of this shard and their free clusters.
    pub fn slabs(&self) -> impl Iterator<Item = (SlabId, u32)> {
        self.slabs.iter().map(|slab| (slab.id, slab.free))
    }

    /// Whether a cluster lies in a slab of this shard and is not free.
    #[must_use]
    pub fn is_in_use(&self, place: Place) -> bool {
        self.owns(place) && self.is_used(place)
    }

    /// Whether a cluster or page read from disk lies in a slab of this shard.
    #[must_use]
    pub fn owns(&self, place: Place) -> bool {
        self.geometry.slab_of(place).is_some_and(|(slab, _)| self.by_id.contains_key(&slab))
    }

    /// A cluster for data; it stays in hand until [`Space::settle`] or [`Space::give_back`].
    pub fn alloc(&mut self) -> Result<Place, AllocError> {
        let place = self.take(Purpose::Data)?;
        self.in_hand.insert(place);
        Ok(place)
    }

    /// The record that maps `place` has been made and has this LSN. LSNs ascend.
    pub fn settle(&mut self, place: Place, lsn: Lsn) {
        assert!(self.in_hand.remove(&place), "{place:?} was not in hand");
        assert!(self.settled.back().is_none_or(|&(last, _)| last <= lsn), "settled out of order at {lsn}");
        assert!(lsn > self.durable, "{place:?} cannot be durable before it is mapped");
        self.settled.push_back((lsn, place));
    }

    /// The write into `place` failed, or is not needed: free at once. No operation on it may be in flight.
    pub fn give_back(&mut self, place: Place) {
        assert!(self.in_hand.remove(&place), "{place:?} was not in hand");
        self.clear(place);
    }

    /// `place` is unmapped by record `lsn`; it is reusable when that is durable and every operation with a ticket below
    /// `next_ticket` has ended.
    pub fn free(&mut self, place: Place, lsn: Lsn, next_ticket: Ticket) {
        assert!(self.is_used(place), "{place:?} was free already");
        assert!(!self.in_hand.contains(&place), "{place:?} was never mapped");
        self.quarantine.push(place, lsn, next_ticket);
    }

    /// The journal is durable up to `durable`: lets go of what waited for that, and appends clusters that became free to
    /// `released` (for hole punching).
    pub fn reclaim(&mut self, durable: Lsn, oldest_in_flight: Ticket, released: &mut Vec<Place>) {
        assert!(durable >= self.durable, "the durable LSN went back from {} to {durable}", self.durable);
        self.durable = durable;
        while self.settled.front().is_some_and(|&(lsn, _)| lsn <= durable) {
            self.settled.pop_front();
        }
        while let Some(place) = self.quarantine.pop(durable, oldest_in_flight) {
            self.clear(place);
            released.push(place);
        }
    }

    /// Whether [`Space::reclaim`] has nothing to wait for.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        self.settled.is_empty() && self.quarantine.len() == 0
    }

    /// Like [`Space::reclaim`], but what is let go stays out of use until [`Space::punched`]: a hole punched into a cluster that
    /// has been given out again would take the new data with it.
    pub fn reclaim_to_punch(&mut self, durable: Lsn, oldest_in_flight: Ticket, held: &mut Vec<Place>) {
        let before = held.len();
        self.reclaim(durable, oldest_in_flight, held);
        for &place in &held[before..] {
            self.set_bit(place, true).expect("a place of this shard");
            self.punching.insert(place);
        }
    }

    /// The hole is punched, or will not be: the cluster is free.
    ///
    /// # Panics
    /// If it was not let go by [`Space::reclaim_to_punch`].
    pub fn punched(&mut self, place: Place) {
        assert!(self.punching.remove(&place), "{place:?} does not wait for a hole");
        self.clear(place);
    }

    /// A page for the map, from a page cluster or a new one.
    pub fn alloc_page(&mut self) -> Result<Place, AllocError> {
        if let Some(page) = self.pages.alloc() {
            return Ok(page);
        }
        let cluster = self.take(Purpose::Metadata)?;
        Ok(self.pages.add(cluster))
    }

    /// Gives a page back: only when no durable checkpoint that may still be chosen names it.
    pub fn free_page(&mut self, page: Place) {
        if let Some(cluster) = self.pages.free(page) {
            self.clear(cluster);
        }
    }

    /// A cluster for a checkpoint chunk.
    pub fn alloc_chunk(&mut self) -> Result<Place, AllocError> {
        let cluster = self.take(Purpose::Metadata)?;
        self.chunks.insert(cluster);
        Ok(cluster)
    }

    /// Gives a chunk's cluster back: only when no durable checkpoint that may still be chosen names it.
    pub fn free_chunk(&mut self, cluster: Place) {
        assert!(self.chunks.remove(&cluster), "{cluster:?} is no chunk");
        self.clear(cluster);
    }

    /// Recovery: a replayed record maps `place`; whether it was free before.
    ///
    /// Recovery goes in this order: [`Space::add_slab`] for each, [`Space::load_bitmap`], records in LSN order through
    /// `mark_free` and `mark_used`, then [`Space::mark_page`] and [`Space::mark_chunk`], then [`Space::recovered`]. A cluster may
    /// have been freed by a record that is replayed and hold pages since, so that the other order would free those.
    ///
    /// # Panics
    /// If a page or a chunk has been marked before.
    pub fn mark_used(&mut self, place: Place) -> Result<bool, UnknownPlace> {
        assert!(
            self.pages.cluster_count() == 0 && self.chunks.is_empty(),
            "records are replayed before metadata is marked"
        );
        if place.class() != CLASS_CLUSTER {
            return Err(UnknownPlace(place));
        }
        self.set_bit(place, true)
    }

    /// Recovery: a replayed record frees `place`; whether it was in use. Freeing what is free is right: the image may be newer than the record.
    ///
    /// # Panics
    /// As [`Space::mark_used`].
    pub fn mark_free(&mut self, place: Place) -> Result<bool, UnknownPlace> {
        assert!(
            self.pages.cluster_count() == 0 && self.chunks.is_empty(),
            "records are replayed before metadata is marked"
        );
        if place.class() != CLASS_CLUSTER {
            return Err(UnknownPlace(place));
        }
        self.set_bit(place, false)
    }

    /// Recovery: the page table names `page`.
    pub fn mark_page(&mut self, page: Place) -> Result<(), UnknownPlace> {
        if !self.geometry.holds_page(page) || !self.owns(page) {
            return Err(UnknownPlace(page));
        }
        match self.pages.mark(page) {
            // Two nodes with one page: the page table lies.
            None => Err(UnknownPlace(page)),
            Some((cluster, true)) if self.is_used(cluster) => Err(UnknownPlace(page)),
            Some((cluster, true)) => self.set_bit(cluster, true).map(drop),
            Some((_, false)) => Ok(()),
        }
    }

    /// Recovery: the checkpoint header names `cluster` as a chunk.
    pub fn mark_chunk(&mut self, cluster: Place) -> Result<(), UnknownPlace> {
        if cluster.class() != CLASS_CLUSTER || !self.owns(cluster) || self.is_used(cluster) {
            return Err(UnknownPlace(cluster));
        }
        self.chunks.insert(cluster);
        self.set_bit(cluster, true).map(drop)
    }

    /// Recovery, after all of the above: takes a page or a chunk that only the checkpoint before names, if nothing else has it.
    pub fn hold(&mut self, place: Place) -> bool {
        if !self.owns(place) {
            return false;
        }
        if place.class() == CLASS_CLUSTER {
            return self.mark_chunk(place).is_ok();
        }
        let (cluster, free) = self.pages.looks_free(place);
        let fits = free && (self.pages.contains_cluster(cluster) || !self.is_used(cluster));
        fits && self.mark_page(place).is_ok()
    }

    /// Recovery is over: records up to `durable` have been replayed.
    pub fn recovered(&mut self, durable: Lsn) {
        assert!(self.settled.is_empty() && self.in_hand.is_empty() && self.quarantine.len() == 0);
        self.durable = durable;
    }

    /// What a checkpoint taken now says is in use: clusters whose mapping is durable as of the last [`Space::reclaim`].
    ///
    /// Left out: clusters in hand or with a pending record (replay marks them if the record became durable), quarantined
    /// ones whose unmapping is durable (no replay would free them), page clusters and chunks (the page table and the
    /// checkpoint header mark them).
    #[must_use]
    pub fn image(&self) -> Vec<SlabBitmap> {
        let mut image: Vec<SlabBitmap> =
            self.slabs.iter().map(|slab| SlabBitmap { slab: slab.id, words: slab.words.to_vec() }).collect();
        let hidden = (self.in_hand.iter().copied())
            .chain(self.settled.iter().map(|&(_, place)| place))
            .chain(self.quarantine.durably_free(self.durable))
            .chain(self.punching.iter().copied())
            .chain(self.pages.clusters())
            .chain(self.chunks.iter().copied());
        for place in hidden {
            let (index, cluster) = self.index(place).expect("an allocated place is in a slab");
            image[index].words[cluster as usize / 64] &= !(1 << (cluster % 64));
        }
        let tail = self.geometry.clusters_per_slab() % 64;
        if tail != 0 {
            for bitmap in &mut image {
                let last = bitmap.words.len() - 1;
                bitmap.words[last] &= !(!0 << tail);
            }
        }
        image
    }

    /// Clusters by state.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let total = self.slabs.len() as u64 * u64::from(self.geometry.clusters_per_slab());
        let metadata = (self.pages.cluster_count() + self.chunks.len()) as u64;
        let quarantined = (self.quarantine.len() + self.punching.len()) as u64;
        let data = total - self.free - metadata - quarantined;
        Counts { total, free: self.free, data, metadata, quarantined, reserve: self.reserve }
    }

    /// Clusters that data may still take without another slab.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.free.saturating_sub(self.reserve)
    }

    /// Map pages in use.
    #[must_use]
    pub fn pages_in_use(&self) -> u64 {
        self.pages.pages_in_use()
    }

    /// The newest record a quarantined cluster waits for: making it durable is what helps.
    #[must_use]
    pub fn quarantine_lsn(&self) -> Option<Lsn> {
        self.quarantine.last_lsn()
    }

    fn take(&mut self, purpose: Purpose) -> Result<Place, AllocError> {
        let floor = if purpose == Purpose::Data { self.reserve } else { 0 };
        if self.free <= floor {
            let quarantined = self.quarantine.len() as u64;
            return Err(if quarantined > 0 {
                AllocError::Quarantined { quarantined }
            } else {
                AllocError::Full { slabs: self.slabs.len() }
            });
        }
        let found = match purpose {
            Purpose::Data => self.find(),
            // Together at the front, so that slabs at the back become empty.
            Purpose::Metadata => self.first(),
        };
        let (index, cluster) = found.expect("the count of free clusters is right");
        let slab = &mut self.slabs[index];
        self.empty -= usize::from(slab.free == self.geometry.clusters_per_slab());
        slab.words[cluster as usize / 64] |= 1 << (cluster % 64);
        slab.free -= 1;
        self.free -= 1;
        let id = slab.id;
        if purpose == Purpose::Data {
            self.cursor = (index, cluster + 1);
        }
        Ok(self.geometry.place(id, cluster))
    }

    /// The first free cluster.
    fn first(&self) -> Option<(usize, u32)> {
        let (index, slab) = self.slabs.iter().enumerate().find(|(_, slab)| slab.free > 0)?;
        first_zero(&slab.words, 0).map(|cluster| (index, cluster))
    }

    /// The next free cluster at or after the cursor, around the slabs once.
    fn find(&self) -> Option<(usize, u32)> {
        let (first, start) = self.cursor;
        for step in 0..=self.slabs.len() {
            let index = (first + step) % self.slabs.len();
            let slab = &self.slabs[index];
            if slab.free == 0 {
                continue;
            }
            let from = if step == 0 { start } else { 0 };
            if let Some(cluster) = first_zero(&slab.words, from) {
                return Some((index, cluster));
            }
        }
        None
    }

    fn index(&self, place: Place) -> Option<(usize, u32)> {
        let (slab, cluster) = self.geometry.slab_of(place)?;
        Some((*self.by_id.get(&slab)?, cluster))
    }

    fn is_used(&self, place: Place) -> bool {
        let (index, cluster) = self.index(place).expect("a place of this shard");
        self.slabs[index].words[cluster as usize / 64] & 1 << (cluster % 64) != 0
    }

    fn clear(&mut self, place: Place) {
        assert!(self.is_used(place), "{place:?} was free already");
        assert!(!self.pages.contains_cluster(place) && !self.chunks.contains(&place), "{place:?} still holds metadata");
        self.set_bit(place, false).expect("a place of this shard");
    }

    /// Whether that changed it.
    fn set_bit(&mut self, place: Place, used: bool) -> Result<bool, UnknownPlace> {
        let (index, cluster) = self.index(place).ok_or(UnknownPlace(place))?;
        let slab = &mut self.slabs[index];
        let (word, bit) = (&mut slab.words[cluster as usize / 64], 1 << (cluster % 64));
        if (*word & bit != 0) == used {
            return Ok(false);
        }
        *word ^= bit;
        let clusters = self.geometry.clusters_per_slab();
        if used {
            self.empty -= usize::from(slab.free == clusters);
            slab.free -= 1;
            self.free -= 1;
        } else {
            slab.free += 1;
            self.free += 1;
            self.empty += usize::from(slab.free == clusters);
        }
        Ok(true)
    }
}

/// The first clear bit at or after `from`.
fn first_zero(words: &[u64], from: u32) -> Option<u32> {
    let mut word = from as usize / 64;
    let mut taken = *words.get(word)? | ((1u64 << (from % 64)) - 1);
    loop {
        if taken != !0 {
            return Some(word as u32 * 64 + taken.trailing_ones());
        }
        word += 1;
        taken = *words.get(word)?;
    }
}

#[cfg(test)]
#[path = "allocator_tests.rs"]
mod tests;
