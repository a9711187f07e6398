//! A map node in memory: 128 consecutive clusters of a volume on one shard, every version of each.
//!
//! Memory: 24 bytes a cluster for the newest versions, mapped or not, so 3 KiB a node: 24.7 bytes a mapped cluster in a filled
//! node, and 3.1 KiB for a node with a single one. Older versions take 24 bytes each in a list a cluster.
//!
//! Invariants: versions of a cluster have different births and are kept in their order; `newest` is the last born; no version
//! is void; `last_lsn` is the record of the newest change.

use std::collections::BTreeMap;
use std::ops::Range;

use ringway_reactor::prefetch::prefetch;

use super::record::Record;
use super::states::{BlockState, BlockStates};
use super::version::Version;
use super::view::{Segments, Source, View};
use crate::ids::{Epoch, Lsn, VolumeId};
use crate::limits::{BLOCKS_PER_CLUSTER, CLUSTERS_PER_RANGE};
use crate::space::Place;

const CLUSTERS: usize = CLUSTERS_PER_RANGE as usize;

/// Which node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKey {
    /// Whose.
    pub volume: VolumeId,
    /// Local clusters `range * 128 .. (range + 1) * 128` of that volume on this shard.
    pub range: u32,
}

impl NodeKey {
    /// The node that a local cluster is in, and its number there.
    #[must_use]
    pub fn of(volume: VolumeId, cluster: u32) -> (NodeKey, u32) {
        (NodeKey { volume, range: cluster / CLUSTERS_PER_RANGE }, cluster % CLUSTERS_PER_RANGE)
    }

    /// The node that a record changes; `None` if it changes only the bitmap.
    #[must_use]
    pub fn of_record(record: &Record) -> Option<NodeKey> {
        match *record {
            Record::Set { volume, cluster, .. } | Record::Drop { volume, cluster, .. } => {
                Some(Self::of(volume, cluster).0)
            }
            Record::DropRange { volume, range, .. } => Some(NodeKey { volume, range }),
            Record::Free { .. } | Record::Seal { .. } | Record::Release { .. } => None,
        }
    }

    /// The local cluster of number `index` of this node.
    #[must_use]
    pub fn cluster(self, index: u32) -> u32 {
        assert!(index < CLUSTERS_PER_RANGE);
        self.range * CLUSTERS_PER_RANGE + index
    }
}

/// What [`MapNode::apply`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The node has it now.
    Changed,
    /// The node is at or beyond this LSN: it had it already.
    Already,
}

/// 128 clusters of a volume. See the module for invariants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapNode {
    key: NodeKey,
    /// Birth 0: none.
    newest: Box<[Version; CLUSTERS]>,
    /// By number of the cluster: its other versions, oldest first. No entry is empty.
    older: BTreeMap<u8, Vec<Version>>,
    last_lsn: Lsn,
    /// First change that no page has; 0: none.
    first_dirty: Lsn,
    /// `first_dirty` as it was when a write of its pages began that has not ended; 0: none.
    first_writing: Lsn,
}

const NONE: Version = Version { birth: Epoch(0), place: Place::NONE, states: BlockStates::ABSENT };

impl MapNode {
    /// A node without versions.
    #[must_use]
    pub fn new(key: NodeKey) -> MapNode {
        MapNode {
            key,
            newest: Box::new([NONE; CLUSTERS]),
            older: BTreeMap::new(),
            last_lsn: Lsn(0),
            first_dirty: Lsn(0),
            first_writing: Lsn(0),
        }
    }

    /// A node as pages hold it, clean as of `last_lsn`.
    pub(super) fn loaded(key: NodeKey, last_lsn: Lsn) -> MapNode {
        MapNode { last_lsn, ..MapNode::new(key) }
    }

    /// Which node it is.
    #[must_use]
    pub fn key(&self) -> NodeKey {
        self.key
    }

    /// The newest version of a cluster, dead or not.
    #[must_use]
    pub fn newest(&self, index: u32) -> Option<&Version> {
        let version = &self.newest[index as usize];
        (version.birth.0 != 0).then_some(version)
    }

    /// Whether the cluster has versions besides the newest.
    #[must_use]
    pub fn has_older(&self, index: u32) -> bool {
        self.older.contains_key(&(index as u8))
    }

    /// Every version of a cluster, newest first.
    pub fn chain(&self, index: u32) -> impl Iterator<Item = &Version> {
        self.newest(index).into_iter().chain(self.older.get(&(index as u8)).into_iter().flatten().rev())
    }

    /// The versions of a cluster that the view sees, newest first. What was born after the view is passed over at once: a
    /// snapshot is as quick to read below a thousand later ones as the live volume is.
    pub fn seen<'a, 'v>(&'a self, index: u32, view: View<'v>) -> impl Iterator<Item = &'a Version> + use<'a, 'v> {
        let newest = self.newest(index).filter(|newest| view.sees(newest.birth));
        let older = self.older.get(&(index as u8)).map_or(&[][..], Vec::as_slice);
        let until = older.partition_point(|version| version.birth <= view.until());
        newest.into_iter().chain(older[..until].iter().rev().filter(move |version| view.sees(version.birth)))
    }

    /// How many of the newest versions of a cluster one after the other leave something to what is below them.
    #[must_use]
    pub fn partial_run(&self, index: u32) -> usize {
        self.chain(index).take_while(|version| version.states.any_absent()).count()
    }

    /// Every version of every cluster, with the cluster's number.
    pub fn versions(&self) -> impl Iterator<Item = (u32, &Version)> {
        (0..CLUSTERS_PER_RANGE).flat_map(|index| self.chain(index).map(move |version| (index, version)))
    }

    /// Versions besides the newest ones, each with its cluster's number; a cluster's are newest first.
    pub(super) fn older(&self) -> impl Iterator<Item = (u8, &Version)> {
        self.older.iter().flat_map(|(&index, versions)| versions.iter().rev().map(move |version| (index, version)))
    }

    /// Number of versions besides the newest ones.
    #[must_use]
    pub fn older_count(&self) -> usize {
        self.older.values().map(Vec::len).sum()
    }

    /// The newest version of a cluster that the view sees.
    #[must_use]
    pub fn top(&self, index: u32, view: View<'_>) -> Option<&Version> {
        self.seen(index, view).next()
    }

    /// The version born at `birth`.
    #[must_use]
    pub fn version(&self, index: u32, birth: Epoch) -> Option<&Version> {
        self.chain(index).find(|version| version.birth == birth)
    }

    /// Where `blocks` of a cluster come from in this view.
    #[must_use]
    pub fn lookup(&self, index: u32, blocks: Range<u32>, view: View<'_>) -> Segments {
        assert!(blocks.start < blocks.end && blocks.end <= BLOCKS_PER_CLUSTER, "blocks {blocks:?} of a cluster");
        self.resolve(blocks, self.seen(index, view))
    }

    /// Where `blocks` come from below the version born at `birth`: what a partly written block of that version is filled with.
    #[must_use]
    pub fn lookup_below(&self, index: u32, blocks: Range<u32>, birth: Epoch, view: View<'_>) -> Segments {
        assert!(blocks.start < blocks.end && blocks.end <= BLOCKS_PER_CLUSTER, "blocks {blocks:?} of a cluster");
        self.resolve(blocks, self.seen(index, view).skip_while(|version| version.birth >= birth))
    }

    /// A lookup of this cluster is about to come.
    pub fn prefetch(&self, index: u32) {
        prefetch(&self.newest[index as usize]);
    }

    /// Where `blocks` of a cluster come from, if the newest version alone decides and the view sees it, or if there is none: what
    /// nearly every lookup finds, told without the rest.
    #[must_use]
    pub fn whole(&self, index: u32, blocks: Range<u32>, view: View<'_>) -> Option<Source> {
        let Some(newest) = self.newest(index) else { return Some(Source::Below) };
        if !view.sees(newest.birth) {
            return None;
        }
        if newest.states.all(blocks.clone(), BlockState::Data) {
            return Some(Source::Device(newest.place));
        }
        if newest.states.all(blocks.clone(), BlockState::Zero) {
            return Some(Source::Zero);
        }
        let below = newest.states.all(blocks, BlockState::Absent) && !self.has_older(index);
        below.then_some(Source::Below)
    }

    fn resolve<'a>(&self, blocks: Range<u32>, mut chain: impl Iterator<Item = &'a Version>) -> Segments {
        let mut segments = Segments::new();
        let Some(first) = chain.next() else {
            segments.push(blocks.start, blocks.len() as u32, Source::Below);
            return segments;
        };
        // What nearly every lookup finds: one version has all of it.
        if first.states.all(blocks.clone(), BlockState::Data) {
            segments.push(blocks.start, blocks.len() as u32, Source::Device(first.place));
            return segments;
        }
        let mut sources = [Source::Below; BLOCKS_PER_CLUSTER as usize];
        // Bit n: block n still falls through.
        let mut open = (1u32 << blocks.end) - (1u32 << blocks.start);
        for version in std::iter::once(first).chain(chain) {
            let mut rest = open;
            while rest != 0 {
                let block = rest.trailing_zeros();
                rest &= rest - 1;
                sources[block as usize] = match version.states.get(block) {
                    BlockState::Absent => continue,
                    BlockState::Data => Source::Device(version.place),
                    BlockState::Zero => Source::Zero,
                };
                open &= !(1 << block);
            }
            if open == 0 {
                break;
            }
        }
        for block in blocks {
            segments.push(block, 1, sources[block as usize]);
        }
        segments
    }

    /// Makes one recorded change. LSNs of different changes differ and ascend; a change the node already has is left out, so
    /// that replay may start anywhere at or before the first change it lacks.
    ///
    /// # Panics
    /// If the record is about another node, or carries a version that is not sound.
    pub fn apply(&mut self, lsn: Lsn, record: &Record) -> Applied {
        assert_eq!(NodeKey::of_record(record), Some(self.key), "{record:?} is about another node");
        assert!(lsn.0 != 0, "a change has an LSN");
        if lsn <= self.last_lsn {
            return Applied::Already;
        }
        match record {
            Record::Set { cluster, version, .. } => self.set(cluster % CLUSTERS_PER_RANGE, *version),
            Record::Drop { cluster, birth, .. } => self.remove(cluster % CLUSTERS_PER_RANGE, *birth),
            Record::DropRange { .. } => {
                self.newest.fill(NONE);
                self.older.clear();
            }
            Record::Free { .. } | Record::Seal { .. } | Record::Release { .. } => unreachable!("it has no node"),
        }
        self.last_lsn = lsn;
        if self.first_dirty.0 == 0 {
            self.first_dirty = lsn;
        }
        Applied::Changed
    }

    /// Puts a version where its birth belongs in its chain.
    pub(super) fn set(&mut self, index: u32, version: Version) {
        assert!(version.is_sound(), "{version:?}");
        if version.is_void() {
            self.remove(index, version.birth);
            return;
        }
        let newest = &mut self.newest[index as usize];
        if version.birth == newest.birth || newest.birth.0 == 0 {
            *newest = version;
        } else if version.birth > newest.birth {
            let before = std::mem::replace(newest, version);
            self.older.entry(index as u8).or_default().push(before);
        } else {
            let older = self.older.entry(index as u8).or_default();
            match older.binary_search_by_key(&version.birth, |version| version.birth) {
                Ok(at) => older[at] = version,
                Err(at) => older.insert(at, version),
            }
        }
    }

    fn remove(&mut self, index: u32, birth: Epoch) {
        let newest = &mut self.newest[index as usize];
        let Some(older) = self.older.get_mut(&(index as u8)) else {
            if newest.birth == birth {
                *newest = NONE;
            }
            return;
        };
        if newest.birth == birth {
            *newest = older.pop().expect("no list of older versions is empty");
        } else if let Ok(at) = older.binary_search_by_key(&birth, |version| version.birth) {
            older.remove(at);
        }
        if older.is_empty() {
            self.older.remove(&(index as u8));
        }
    }

    /// Records that remove everything in this node, each complete in itself: a crash between them leaks nothing.
    #[must_use]
    pub fn drop_records(&self) -> Vec<Record> {
        let (volume, range) = (self.key.volume, self.key.range);
        let mut records = Vec::new();
        // Newest ones fit one record; older ones beyond that go one by one.
        let room = super::record::FREED_MAX - CLUSTERS;
        for (index, version) in self.older().skip(room) {
            let (cluster, birth) = (self.key.cluster(u32::from(index)), version.birth);
            records.push(Record::Drop { volume, cluster, birth, freed: version.place });
        }
        let newest = self.newest.iter().filter(|version| version.birth.0 != 0);
        let freed = newest.chain(self.older().take(room).map(|(_, version)| version));
        let freed = freed.map(|version| version.place).filter(|place| place.is_some()).collect();
        records.push(Record::DropRange { volume, range, freed });
        records
    }

    /// Whether no cluster has a version.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.newest.iter().all(|version| version.birth.0 == 0)
    }

    /// Clusters with a version.
    #[must_use]
    pub fn mapped(&self) -> u32 {
        self.newest.iter().filter(|version| version.birth.0 != 0).count() as u32
    }

    /// Bytes of memory, for the cache's bound.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let lists: usize = self.older.values().map(|versions| versions.capacity() * size_of::<Version>() + 48).sum();
        size_of::<MapNode>() + size_of::<[Version; CLUSTERS]>() + lists
    }

    /// LSN of the newest change; 0: none since it was made. Its pages may be written only when the journal is durable up to
    /// here (C8).
    #[must_use]
    pub fn last_lsn(&self) -> Lsn {
        self.last_lsn
    }

    /// The first change that no durable page has, to bound where replay starts; `None`: clean.
    #[must_use]
    pub fn first_dirty(&self) -> Option<Lsn> {
        [self.first_writing, self.first_dirty].into_iter().find(|lsn| lsn.0 != 0)
    }

    /// Its pages are being written as they are now. [`MapNode::first_dirty`] stays until [`MapNode::end_write`].
    pub fn begin_write(&mut self) {
        assert!(self.first_writing.0 == 0, "one write of a node at a time");
        self.first_writing = std::mem::take(&mut self.first_dirty);
    }

    /// The write that began has ended: with `ok`, what it had is clean.
    pub fn end_write(&mut self, ok: bool) {
        let began = std::mem::take(&mut self.first_writing);
        if !ok && began.0 != 0 {
            self.first_dirty = began;
        }
    }
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
