//! Map nodes in memory: which are here, which are on their way, and which may go.
//!
//! A node is `Ready` or `Loading`; parts that need a loading one wait in its list. Records that recovery found after the pages
//! were written stand in the overlay and are applied when the node is loaded (H6), so that opening reads no page.
//!
//! Invariants: a dirty or pinned node is never evicted; a node that no page and no overlay knows is empty and needs no read;
//! a page is believed only if its checksum is the one in the page table.

use std::collections::VecDeque;

use ringway_reactor::buf::Buf;
use ringway_reactor::io::Io;
use rustc_hash::FxHashMap;

use super::Shard;
use super::api::{Event, RecordLog};
use super::fault::Verdict;
use super::ops::Owner;
use super::parts::{PartKey, Run};
use super::scratch::Lent;
use crate::ids::{Lsn, VolumeId};
use crate::journal::Pressure;
use crate::limits::CLUSTER;
use crate::map::{MapNode, NodeKey, NodePages, PAGE_BYTES, PageTable, Record, decode_node};
use crate::request::Status;

/// A shard works with this many nodes whatever the bound says.
const NODES_MIN: usize = 2;

/// Bytes in memory of which a node has at least as many for each of its pages.
const NODE_BYTES_A_PAGE: usize = 1536;
/// The generation of pages that are never believed again: no checkpoint has it, and it is part of their checksum.
const CONDEMNED: u64 = u64::MAX;

/// Whether a node can be used now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    Loading,
    /// The cache is full of nodes that a checkpoint has to write first.
    Full,
}

#[derive(Debug)]
struct Cached {
    map: MapNode,
    pins: u32,
    /// Used since the clock's hand last came by.
    used: bool,
    /// As last counted in `NodeCache::bytes`.
    bytes: usize,
}

/// A node whose pages are being read, one after the other.
#[derive(Debug, Default)]
struct Load {
    bytes: Vec<u8>,
    rest: Option<Buf>,
    reading: bool,
    waiters: Vec<PartKey>,
}

#[derive(Debug)]
enum Entry {
    Ready(Cached),
    Loading(Load),
}

#[derive(Debug)]
pub(super) struct NodeCache {
    entries: FxHashMap<NodeKey, Entry>,
    /// Ready nodes in the order of the clock's hand.
    clock: VecDeque<NodeKey>,
    bytes: usize,
    bound: usize,
    pub(super) table: PageTable,
    overlay: FxHashMap<NodeKey, Vec<(Lsn, Record)>>,
    /// Pages that the overlay may come to, as recovery found it.
    overlay_pages: usize,
    /// Loads without a buffer.
    stalled: VecDeque<NodeKey>,
    /// Nodes that got records which recovery had found, not yet looked over.
    pub(super) replayed: Vec<NodeKey>,
    /// Loads that have failed.
    failures: u64,
}

impl NodeCache {
    pub(super) fn new(table: PageTable, overlay: Vec<(Lsn, Record)>, bound: usize) -> NodeCache {
        let mut by_node: FxHashMap<NodeKey, Vec<(Lsn, Record)>> = FxHashMap::default();
        for (lsn, record) in overlay {
            if let Some(key) = NodeKey::of_record(&record) {
                by_node.entry(key).or_default().push((lsn, record));
            }
        }
        let pages =
            |(&key, records): (&NodeKey, &Vec<_>)| table.get(key).map_or(1, NodePages::len) + records.len() / 128;
        let overlay_pages = by_node.iter().map(pages).sum();
        NodeCache {
            entries: FxHashMap::default(),
            clock: VecDeque::new(),
            bytes: 0,
            bound,
            table,
            overlay: by_node,
            overlay_pages,
            stalled: VecDeque::new(),
            replayed: Vec::new(),
            failures: 0,
        }
    }

    /// The node of a cluster and the cluster's number in it.
    pub(super) fn ready(&self, volume: VolumeId, cluster: u32) -> (&MapNode, u32) {
        let (key, index) = NodeKey::of(volume, cluster);
        (self.get(key).expect("a part runs when its node is ready"), index)
    }

    /// The node if it is here, marked as used.
    pub(super) fn here(&mut self, key: NodeKey) -> Option<&MapNode> {
        match self.entries.get_mut(&key) {
            Some(Entry::Ready(cached)) => {
                cached.used = true;
                Some(&cached.map)
            }
            _ => None,
        }
    }

    pub(super) fn get(&self, key: NodeKey) -> Option<&MapNode> {
        match self.entries.get(&key) {
            Some(Entry::Ready(cached)) => Some(&cached.map),
            _ => None,
        }
    }

    pub(super) fn get_mut(&mut self, key: NodeKey) -> Option<&mut MapNode> {
        match self.entries.get_mut(&key) {
            Some(Entry::Ready(cached)) => Some(&mut cached.map),
            _ => None,
        }
    }

    /// The newest change of the node that holds byte `start`.
    pub(super) fn lsn(&self, volume: VolumeId, start: u64) -> Lsn {
        self.ready(volume, (start / CLUSTER) as u32).0.last_lsn()
    }

    /// Makes a recorded change in a node that is ready.
    pub(super) fn apply(&mut self, lsn: Lsn, record: &Record) {
        let key = NodeKey::of_record(record).expect("a change of the map has a node");
        let Some(Entry::Ready(cached)) = self.entries.get_mut(&key) else {
            panic!("{record:?} changes a node not here")
        };
        cached.map.apply(lsn, record);
        let bytes = cached.map.bytes();
        self.bytes = self.bytes + bytes - cached.bytes;
        cached.bytes = bytes;
    }

    /// `part` is queued again when the node is here.
    pub(super) fn wait(&mut self, volume: VolumeId, cluster: u32, part: PartKey) {
        self.wait_for(NodeKey::of(volume, cluster).0, part);
    }

    pub(super) fn wait_for(&mut self, key: NodeKey, part: PartKey) {
        let Some(Entry::Loading(load)) = self.entries.get_mut(&key) else {
            panic!("only a loading node is waited for")
        };
        load.waiters.push(part);
    }

    /// Keeps a node that is ready from being evicted until [`NodeCache::unpin_node`].
    pub(super) fn pin_node(&mut self, key: NodeKey) {
        *self.pins(key) += 1;
    }

    pub(super) fn unpin_node(&mut self, key: NodeKey) {
        *self.pins(key) -= 1;
    }

    /// Loads that have failed so far.
    pub(super) fn failures(&self) -> u64 {
        self.failures
    }

    /// Whether a node that was on its way, when so many loads had failed, seems to be among those that have failed since.
    pub(super) fn has_failed(&self, key: NodeKey, seeking: Option<u64>) -> bool {
        seeking.is_some_and(|before| before != self.failures) && !self.entries.contains_key(&key)
    }

    fn pins(&mut self, key: NodeKey) -> &mut u32 {
        let Some(Entry::Ready(cached)) = self.entries.get_mut(&key) else {
            panic!("only a node that is ready is pinned")
        };
        &mut cached.pins
    }

    fn insert(&mut self, mut map: MapNode) {
        let key = map.key();
        if let Some(records) = self.overlay.remove(&key) {
            for (lsn, record) in records {
                map.apply(lsn, &record);
            }
            self.replayed.push(key);
        }
        let bytes = map.bytes();
        self.bytes += bytes;
        self.entries.insert(key, Entry::Ready(Cached { map, pins: 0, used: true, bytes }));
        self.clock.push_back(key);
    }

    /// Makes room for one more node: false if every node is dirty, pinned or on its way.
    fn make_room(&mut self) -> bool {
        // Twice round: the first pass only takes the marks away.
        for _ in 0..2 * self.clock.len() {
            if self.bytes < self.bound || self.entries.len() < NODES_MIN {
                return true;
            }
            let Some(key) = self.clock.pop_front() else { break };
            let Some(Entry::Ready(cached)) = self.entries.get_mut(&key) else { continue };
            if cached.used || cached.pins > 0 || cached.map.first_dirty().is_some() {
                cached.used = false;
                self.clock.push_back(key);
                continue;
            }
            self.bytes -= cached.bytes;
            self.entries.remove(&key);
        }
        self.bytes < self.bound || self.entries.len() < NODES_MIN
    }

    /// Nodes that the page table does not have as they are, and the first change each lacks there.
    pub(super) fn dirty(&self) -> impl Iterator<Item = (NodeKey, Lsn)> {
        let cached = self.entries.iter().filter_map(|(&key, entry)| match entry {
            Entry::Ready(cached) => cached.map.first_dirty().map(|lsn| (key, lsn)),
            Entry::Loading(_) => None,
        });
        cached.chain(self.overlay.iter().map(|(&key, records)| (key, records[0].0)))
    }

    /// Nodes of a volume, on disk or not.
    pub(super) fn of_volume(&self, volume: VolumeId) -> Vec<NodeKey> {
        let mut keys: Vec<NodeKey> = self.table.of_volume(volume).map(|(key, _)| key).collect();
        keys.extend(self.entries.keys().chain(self.overlay.keys()).filter(|key| key.volume == volume));
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// The next range of a volume from `from` on that has a node, on disk or not.
    pub(super) fn next_range(&self, volume: VolumeId, from: u32) -> Option<u32> {
        let listed = self.table.next_of(volume, from).map(|key| key.range);
        let new = self.entries.keys().chain(self.overlay.keys());
        let new = new.filter(|key| key.volume == volume && key.range >= from).map(|key| key.range).min();
        listed.into_iter().chain(new).min()
    }

    /// Every node, on disk or not.
    pub(super) fn all(&self) -> Vec<NodeKey> {
        let mut keys: Vec<NodeKey> = self.table.iter().map(|(key, _)| key).collect();
        keys.extend(self.entries.keys().chain(self.overlay.keys()));
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Gives the node up for good, records that its pages lack included: they must not hold the journal. As soon as a
    /// checkpoint has this, the node cannot be read at any later boot either, whatever its pages then say.
    fn condemn(&mut self, key: NodeKey) {
        self.overlay.remove(&key);
        if let Some(pages) = self.table.get(key).map(|pages| pages.iter().copied().collect()) {
            self.table.insert(key, NodePages::new(CONDEMNED, pages));
        }
    }

    /// Puts an empty node where one was given up, so that a volume can be erased; whether it was.
    pub(super) fn stand_in_if_condemned(&mut self, key: NodeKey) -> bool {
        let condemned = self.table.get(key).is_some_and(|pages| pages.generation == CONDEMNED);
        if condemned && !self.entries.contains_key(&key) {
            self.insert(MapNode::new(key));
        }
        condemned
    }

    /// Pages that the next checkpoint has to write.
    pub(super) fn changed_pages(&self) -> usize {
        let cached = self.entries.values().map(|entry| match entry {
            Entry::Ready(Cached { map, .. }) if map.first_dirty().is_some() && !map.is_empty() => map.page_count(),
            _ => 0,
        });
        let table = &self.table;
        let overlay =
            self.overlay.iter().map(|(&key, records)| table.get(key).map_or(1, NodePages::len) + records.len() / 128);
        cached.sum::<usize>() + overlay.sum::<usize>()
    }

    /// No fewer than [`NodeCache::changed_pages`], and known at once.
    pub(super) fn changed_pages_bound(&self) -> usize {
        self.bytes / NODE_BYTES_A_PAGE + if self.overlay.is_empty() { 0 } else { self.overlay_pages }
    }

    /// Forgets a node that has become empty.
    pub(super) fn forget(&mut self, key: NodeKey) {
        if let Some(Entry::Ready(cached)) = self.entries.get(&key)
            && cached.map.is_empty()
            && cached.map.first_dirty().is_none()
            && cached.pins == 0
        {
            self.bytes -= cached.bytes;
            self.entries.remove(&key);
            self.clock.retain(|&other| other != key);
        }
    }

    /// Whether a load waits for a buffer.
    pub(super) fn is_stalled(&self) -> bool {
        !self.stalled.is_empty()
    }

    pub(super) fn is_settled(&self) -> bool {
        self.entries.values().all(|entry| matches!(entry, Entry::Ready(cached) if cached.pins == 0))
    }
}

impl<L: RecordLog> Shard<L> {
    /// Sees to it that the node of a cluster is here or on its way.
    pub(super) fn require_node<I: Io>(&mut self, io: &mut I, volume: VolumeId, cluster: u32) -> Readiness {
        self.require(io, NodeKey::of(volume, cluster).0)
    }

    pub(super) fn require<I: Io>(&mut self, io: &mut I, key: NodeKey) -> Readiness {
        if self.nodes.here(key).is_some() {
            return Readiness::Ready;
        }
        if self.nodes.entries.contains_key(&key) {
            return Readiness::Loading;
        }
        // A shard that takes no more writes cannot make dirty nodes clean; reads go on, beyond the bound by what they load.
        if !self.nodes.make_room() && self.fault.is_none() {
            self.checkpoint.want();
            return Readiness::Full;
        }
        self.bring(io, key)
    }

    /// The same for a node that is needed together with others that are pinned for it: beyond the bound if it must be, by what the
    /// parts under way look through. Never [`Readiness::Full`].
    pub(super) fn require_beyond<I: Io>(&mut self, io: &mut I, key: NodeKey) -> Readiness {
        if self.nodes.here(key).is_some() {
            return Readiness::Ready;
        }
        if self.nodes.entries.contains_key(&key) {
            return Readiness::Loading;
        }
        self.nodes.make_room();
        self.bring(io, key)
    }

    fn bring<I: Io>(&mut self, io: &mut I, key: NodeKey) -> Readiness {
        if self.nodes.table.get(key).is_none() {
            self.nodes.insert(MapNode::new(key));
            return Readiness::Ready;
        }
        self.nodes.entries.insert(key, Entry::Loading(Load::default()));
        self.load_page(io, key);
        Readiness::Loading
    }

    /// Reads the next page of a loading node, or lines it up for a buffer.
    fn load_page<I: Io>(&mut self, io: &mut I, key: NodeKey) {
        let Some(Entry::Loading(load)) = self.nodes.entries.get_mut(&key) else { return };
        assert!(!load.reading, "one page of a node at a time");
        let page = load.bytes.len() / PAGE_BYTES;
        let entry = self.nodes.table.get(key).expect("a loading node has pages");
        let place = entry.iter().nth(page).expect("a node is complete after its last page").place;
        let Some(lent) = self.scratch.take(PAGE_BYTES) else {
            self.nodes.stalled.push_back(key);
            return;
        };
        load.rest = lent.rest;
        load.reading = true;
        let run = Run { file: u16::from(place.device()), offset: place.offset() };
        self.submit_read(io, Owner::NodePage(key), run, lent.buf);
    }

    /// Loads that waited for a buffer try again.
    pub(super) fn resume_loads<I: Io>(&mut self, io: &mut I) {
        for _ in 0..self.nodes.stalled.len() {
            if let Some(key) = self.nodes.stalled.pop_front() {
                self.load_page(io, key);
            }
        }
    }

    /// A page of a loading node is here.
    pub(super) fn on_node_page<I: Io>(
        &mut self,
        io: &mut I,
        key: NodeKey,
        buf: Buf,
        failed: Option<&Verdict>,
        out: &mut Vec<Event>,
    ) {
        let Some(Entry::Loading(load)) = self.nodes.entries.get_mut(&key) else { panic!("a page of no loading node") };
        load.reading = false;
        load.bytes.extend_from_slice(&buf);
        let lent = Lent { buf, rest: load.rest.take() };
        self.scratch.give(lent);
        if failed.is_some() {
            return self.load_failed(key, None, out);
        }
        let entry = self.nodes.table.get(key).expect("a loading node has pages");
        if load.bytes.len() < entry.len() * PAGE_BYTES {
            return self.load_page(io, key);
        }
        let pages: Vec<&[u8]> = load.bytes.chunks(PAGE_BYTES).collect();
        match decode_node(key, entry, &pages, self.seed, self.space.geometry()) {
            Ok(map) => {
                let waiters = std::mem::take(&mut load.waiters);
                self.stats.nodes_loaded += 1;
                self.nodes.insert(map);
                self.ready.extend(waiters);
            }
            Err(error) => self.load_failed(key, Some(format!("map node {}: {error}", key.range)), out),
        }
    }

    /// Answers those who waited. A page that is wrong faults its volume (I4); one that cannot be read now may be later.
    fn load_failed(&mut self, key: NodeKey, wrong: Option<String>, out: &mut Vec<Event>) {
        let Some(Entry::Loading(load)) = self.nodes.entries.remove(&key) else {
            panic!("only a loading node fails to")
        };
        self.nodes.failures += 1;
        let wrong = self.give_up(key, wrong);
        if let Some(why) = wrong {
            self.fault_volume(key.volume, why, out);
        }
        for part in load.waiters {
            let Some(state) = self.parts.get_mut(part) else { continue };
            let changes = state.part.command.changes_data();
            let faulted = self.volumes.get(&key.volume).is_some_and(|volume| volume.fault.is_some());
            let status = match (faulted, changes) {
                (true, _) => Status::VolumeFaulted,
                (false, true) => Status::WriteFault,
                (false, false) => Status::UnrecoveredRead,
            };
            self.finish(part, status, out);
        }
        self.checkpoint.load_failed(key);
    }

    /// Gives the node up for good where somebody would wait for it for ever: the journal, that cannot let go of records which
    /// its pages lack (so that in the end no other volume could write), or the erasure of its volume.
    fn give_up(&mut self, key: NodeKey, wrong: Option<String>) -> Option<String> {
        // What cannot be read now may be later; what is read and wrong will stay so.
        let patience = if wrong.is_some() { Pressure::Checkpoint } else { Pressure::Reserve };
        let holds = self.nodes.overlay.contains_key(&key) && self.commit.ring.pressure() >= patience;
        if holds || !self.volumes.contains_key(&key.volume) {
            self.nodes.condemn(key);
        }
        wrong.or_else(|| holds.then(|| format!("map node {} cannot be read, and its records are given up", key.range)))
    }

    /// Answers nothing but faults for this volume from now on.
    pub(super) fn fault_volume(&mut self, volume: VolumeId, why: String, out: &mut Vec<Event>) {
        if let Some(entry) = self.volumes.get_mut(&volume)
            && entry.fault.is_none()
        {
            entry.fault = Some(why.clone());
            out.push(Event::Fault { volume: Some(volume), why });
        }
    }

    /// Keeps the part's node from being evicted until [`Shard::unpin`].
    pub(super) fn pin(&mut self, key: PartKey) {
        let state = self.parts.at(key);
        let (volume, start) = (state.part.volume, state.part.start);
        if !state.pins.contains(&volume) {
            state.pins.push(volume);
            self.nodes.pin_node(NodeKey::of(volume, (start / CLUSTER) as u32).0);
        }
    }

    pub(super) fn unpin(&mut self, key: PartKey) {
        let state = self.parts.at(key);
        let cluster = (state.part.start / CLUSTER) as u32;
        for volume in state.pins.drain(..) {
            self.nodes.unpin_node(NodeKey::of(volume, cluster).0);
        }
    }
}
