//! Questions about the map of a volume: what has changed since a cut, what only one cut keeps, and, as a question that changes
//! something, filling a clone with what it looks through for (C9). Each is about one range of the volume (one map node here), and is
//! answered by [`Event::Answer`]; so whoever asks goes on range by range, at his own pace, and nothing here grows with the volume.

use ringway_reactor::io::Io;

use super::Shard;
use super::api::{Event, RecordLog};
use super::background::Went;
use super::copying::{Aim, End};
use super::course::chain_of;
use super::fetching::{AHEAD, Who};
use super::levels::{Gathered, Level, Open, Pins};
use super::nodes::Readiness;
use super::parts::Segment;
use crate::ids::{Epoch, VolumeId};
use crate::limits::{BLOCK, BLOCKS_PER_CLUSTER, CLUSTER, CLUSTERS_PER_RANGE};
use crate::map::{BlockState, MapNode, NodeKey, Version, View, ones};
use crate::request::Status;

/// How often a fill looks for space before it gives up, a few milliseconds apart: what has just been freed is there by then. Each look makes
/// the shard write a checkpoint, so that a full one must not be looked at for ever.
const REFUSED_MAX: u32 = 16;

/// What is asked, of range `range`: local clusters `range * 128 .. (range + 1) * 128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Which blocks of a volume (or, with its id, of a snapshot) may differ from what it held at the cut `after`; without that:
    /// which it holds as data, its parents' included.
    Changed { volume: VolumeId, after: Option<Epoch>, range: u32 },
    /// Copy what views of a clone have from its parent to the bottom of its map. Once `most` bytes were copied, or more, the
    /// answer's `next` is the range itself: ask again.
    Fill { volume: VolumeId, range: u32, most: u64 },
    /// Bytes that are kept for one cut of a volume alone.
    Held { volume: VolumeId, range: u32 },
}

/// What is answered. `next`: the first range after the one asked for that there is something to ask about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Ask::Changed`], ascending.
    Changed { ranges: Vec<ChangedRange>, next: Option<u32> },
    /// To [`Ask::Fill`].
    Filled { copied: u64, next: Option<u32> },
    /// To [`Ask::Held`], by cut.
    Held { unique: Vec<(Epoch, u64)>, next: Option<u32> },
}

/// Blocks that may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChangedRange {
    /// Bytes from the start of the volume.
    pub offset: u64,
    /// Bytes, whole blocks of 4 KiB; the last of a volume may end beyond it.
    pub len: u64,
    /// Data is there now; otherwise zeros.
    pub data: bool,
}

/// A question under way.
#[derive(Debug)]
pub(super) struct Asking {
    token: u64,
    ask: Ask,
    /// Of a fill: clusters of the range that are done, bytes copied, and the cluster that is being filled.
    index: u32,
    copied: u64,
    working: Option<u32>,
    /// How often it has found no space for its copy.
    refused: u32,
    /// A node was on its way.
    seeking: Option<(NodeKey, u64)>,
    pins: Pins,
    /// Blocks by cluster that the backend may have something for, and up to which cluster they have been fetched.
    absent: Open,
}

/// Why there is no answer yet.
enum Wait {
    Nowhere,
    Later,
    Over(Status),
}

impl Ask {
    fn volume(self) -> VolumeId {
        match self {
            Ask::Changed { volume, .. } | Ask::Fill { volume, .. } | Ask::Held { volume, .. } => volume,
        }
    }

    fn range(self) -> u32 {
        match self {
            Ask::Changed { range, .. } | Ask::Fill { range, .. } | Ask::Held { range, .. } => range,
        }
    }
}

impl<L: RecordLog> Shard<L> {
    /// Takes a question; [`Event::Answer`] follows.
    pub fn ask(&mut self, token: u64, ask: Ask) {
        self.calm = false;
        let asking = Asking {
            token,
            ask,
            index: 0,
            copied: 0,
            working: None,
            refused: 0,
            seeking: None,
            pins: Pins::new(),
            absent: Open::new(),
        };
        self.background.asking.push_back(asking);
    }

    /// Goes on with each question once.
    pub(super) fn advance_asking<I: Io>(&mut self, io: &mut I, out: &mut Vec<Event>) -> Went {
        let mut went = Went::Nowhere;
        for _ in 0..self.background.asking.len() {
            let mut asking = self.background.asking.pop_front().expect("counted");
            let answer = match self.answer(io, &mut asking) {
                Ok(answer) => Ok(answer),
                Err(Wait::Over(status)) => Err(status),
                Err(wait) => {
                    if matches!(wait, Wait::Later) {
                        went = Went::Later;
                    }
                    self.background.asking.push_back(asking);
                    continue;
                }
            };
            let range = asking.ask.range();
            for volume in asking.pins.drain(..) {
                self.nodes.unpin_node(NodeKey { volume, range });
            }
            out.push(Event::Answer { token: asking.token, answer });
        }
        went
    }

    fn answer<I: Io>(&mut self, io: &mut I, asking: &mut Asking) -> Result<Answer, Wait> {
        let volume = self.volumes.get(&asking.ask.volume()).ok_or(Wait::Over(Status::VolumeGone))?;
        let level = match volume.record.view {
            Some(view) => Level { volume: view.origin, at: Some(view.epoch) },
            None => Level { volume: asking.ask.volume(), at: None },
        };
        let known = self.volumes.get(&level.volume).ok_or(Wait::Over(Status::VolumeGone))?;
        if known.fault.is_some() {
            return Err(Wait::Over(Status::VolumeFaulted));
        }
        match asking.ask {
            Ask::Changed { after: Some(after), range, .. } => {
                let too_new = level.at.is_some_and(|at| after > at);
                if too_new || !known.views.keeps(after) {
                    return Err(Wait::Over(Status::InvalidField));
                }
                self.node_for(io, asking, level.volume)?;
                Ok(Answer::Changed {
                    ranges: self.changed(level, after, range),
                    next: self.next_of(level, range, false),
                })
            }
            Ask::Changed { after: None, range, .. } => {
                self.node_for(io, asking, level.volume)?;
                self.parents_for(io, asking, level)?;
                let ranges = self.held_as_data(level, range, &asking.absent);
                Ok(Answer::Changed { ranges, next: self.next_of(level, range, true) })
            }
            Ask::Held { range, .. } => {
                self.node_for(io, asking, level.volume)?;
                Ok(Answer::Held {
                    unique: self.kept_for_one(level.volume, range),
                    next: self.next_of(level, range, false),
                })
            }
            Ask::Fill { range, most, .. } => self.fill_range(io, asking, level.volume, range, most),
        }
    }

    /// Sees to it that the node asked about is here, and stays.
    fn node_for<I: Io>(&mut self, io: &mut I, asking: &mut Asking, volume: VolumeId) -> Result<(), Wait> {
        let key = NodeKey { volume, range: asking.ask.range() };
        if let Some((sought, failures)) = asking.seeking
            && self.nodes.has_failed(sought, Some(failures))
        {
            return Err(Wait::Over(Status::UnrecoveredRead));
        }
        if asking.pins.contains(&volume) {
            return Ok(());
        }
        match self.require(io, key) {
            Readiness::Ready => {
                self.nodes.pin_node(key);
                asking.pins.push(volume);
                Ok(())
            }
            Readiness::Loading => {
                asking.seeking = Some((key, self.nodes.failures()));
                Err(Wait::Nowhere)
            }
            Readiness::Full => Err(Wait::Later),
        }
    }

    fn parents_for<I: Io>(&mut self, io: &mut I, asking: &mut Asking, level: Level) -> Result<(), Wait> {
        let first = asking.ask.range() * CLUSTERS_PER_RANGE;
        let open: Open = (first..first + CLUSTERS_PER_RANGE).map(|cluster| (cluster, u16::MAX)).collect();
        match self.gather_below(io, level, open, &mut asking.pins) {
            Ok(Gathered::Ready) => Ok(()),
            Ok(Gathered::Loading(key)) => {
                asking.seeking = Some((key, self.nodes.failures()));
                Err(Wait::Nowhere)
            }
            // Which clusters it has anything for is enough to know.
            Ok(Gathered::Absent(bottom, absent)) => match self.backend_map(bottom, asking.ask.range()) {
                Ok(Some(_)) => {
                    asking.absent = absent;
                    Ok(())
                }
                Ok(None) => Err(Wait::Nowhere),
                Err(status) => Err(Wait::Over(status)),
            },
            Err(status) => Err(Wait::Over(status)),
        }
    }

    /// The next range of which a volume, or with `parents` one that it looks through to, has a node.
    fn next_of(&self, level: Level, range: u32, parents: bool) -> Option<u32> {
        let from = range.checked_add(1)?;
        let mut next = self.nodes.next_range(level.volume, from);
        let mut level = level;
        while parents && let Ok(Some((below, _))) = self.below(level) {
            next = next.into_iter().chain(self.nodes.next_range(below.volume, from)).min();
            level = below;
        }
        if parents && let Some(size) = self.backend_below(level) {
            // What is not known may be anything, as far as the snapshot goes.
            let beyond = || (self.reach(level.volume, from * CLUSTERS_PER_RANGE, size) > 0).then_some(from);
            let there = self.fetching.map(level.volume, range).map_or_else(beyond, |map| map.next);
            next = next.into_iter().chain(there).min();
        }
        next
    }

    fn changed(&self, level: Level, after: Epoch, range: u32) -> Vec<ChangedRange> {
        let mut found = Ranges::default();
        let Some(node) = self.nodes.get(NodeKey { volume: level.volume, range }) else { return Vec::new() };
        let (now, then) = (self.view_of(level), self.view_of(Level { at: Some(after), ..level }));
        for index in (0..CLUSTERS_PER_RANGE).filter(|&index| node.newest(index).is_some()) {
            let cluster = node.key().cluster(index);
            let (base, behind) = (self.offset_of(level.volume, cluster), self.behind(level.volume, cluster));
            let (now, then) = (deciders(node, index, now), deciders(node, index, then));
            for (block, (now, then)) in (0u32..).zip(now.into_iter().zip(then)) {
                let zeros = |decider: Option<(Epoch, BlockState)>| {
                    decider.map_or(behind & 1 << block == 0, |(_, state)| state == BlockState::Zero)
                };
                if now != then && !(zeros(now) && zeros(then)) {
                    found.add(base + u64::from(block) * BLOCK, BLOCK, !zeros(now));
                }
            }
        }
        found.0
    }

    /// With blocks that may be on the backend, by cluster.
    fn held_as_data(&self, level: Level, range: u32, absent: &Open) -> Vec<ChangedRange> {
        let mut found = Ranges::default();
        let mut segments: Vec<Segment> = Vec::new();
        for cluster in range * CLUSTERS_PER_RANGE..(range + 1) * CLUSTERS_PER_RANGE {
            segments.clear();
            self.look_up(level, cluster, 0, CLUSTER as u32, &mut segments);
            let (base, mut at) = (self.offset_of(level.volume, cluster), 0);
            let mut held = absent.iter().find(|(number, _)| *number == cluster).map_or(0, |&(_, blocks)| blocks);
            for segment in &segments {
                let first = at / BLOCK as u32;
                at += segment.len;
                if segment.at.is_some() {
                    held |= (first..at / BLOCK as u32).fold(0, |bits, block| bits | 1 << block);
                }
            }
            for block in ones(held) {
                found.add(base + u64::from(block) * BLOCK, BLOCK, true);
            }
        }
        found.0
    }

    fn kept_for_one(&self, volume: VolumeId, range: u32) -> Vec<(Epoch, u64)> {
        let mut unique: std::collections::BTreeMap<Epoch, u64> = std::collections::BTreeMap::new();
        let Some(node) = self.nodes.get(NodeKey { volume, range }) else { return Vec::new() };
        let views = &self.volumes[&volume].views;
        for index in (0..CLUSTERS_PER_RANGE).filter(|&index| node.newest(index).is_some()) {
            let chain = chain_of(node, index);
            for (version, need) in chain.iter().zip(views.needs(&chain).versions) {
                if let Some(cut) = need.only.filter(|_| version.place.is_some()) {
                    *unique.entry(cut).or_default() += CLUSTER;
                }
            }
        }
        unique.into_iter().collect()
    }

    /// One cluster after the other; what has to be fetched, some at a time.
    fn fill_range<I: Io>(
        &mut self,
        io: &mut I,
        asking: &mut Asking,
        volume: VolumeId,
        range: u32,
        most: u64,
    ) -> Result<Answer, Wait> {
        let Some(parent) = self.volumes[&volume].record.parent else {
            return Ok(Answer::Filled { copied: asking.copied, next: None });
        };
        if self.fault.is_some() {
            return Err(Wait::Over(Status::WriteFault));
        }
        if !self.may_work_on(volume) {
            // A cut that nobody can name yet may look through where the volume does not any more.
            return Err(Wait::Later);
        }
        if parent.is_on_backend() {
            return self.fetch_range(io, asking, volume, range, most);
        }
        loop {
            if let Some(cluster) = asking.working {
                match self.background.take_filled(volume, cluster) {
                    None => return Err(Wait::Nowhere),
                    Some((End::Done, copied)) => {
                        asking.copied += copied;
                        asking.index = cluster % CLUSTERS_PER_RANGE + 1;
                        (asking.working, asking.refused) = (None, 0);
                    }
                    Some((End::Later, _)) => {
                        asking.working = None;
                        asking.refused += u32::from(!self.has_space(1));
                        if asking.refused >= REFUSED_MAX {
                            return Err(Wait::Over(Status::CapacityExceeded));
                        }
                        return Err(Wait::Later);
                    }
                    Some((End::Failed(status), _)) => return Err(Wait::Over(status)),
                }
            }
            self.node_for(io, asking, volume)?;
            let clusters = (asking.index..CLUSTERS_PER_RANGE).map(|index| range * CLUSTERS_PER_RANGE + index);
            let Some(cluster) = clusters.clone().find(|&cluster| self.open_blocks(volume, cluster) != 0) else {
                let next = self.next_of(Level { volume, at: None }, range, true);
                return Ok(Answer::Filled { copied: asking.copied, next });
            };
            asking.index = cluster % CLUSTERS_PER_RANGE;
            if asking.copied >= most {
                return Ok(Answer::Filled { copied: asking.copied, next: Some(range) });
            }
            if self.background.has_job(volume, cluster) {
                return Err(Wait::Later);
            }
            if self.background.is_paused(self.now) && !self.draining {
                return Err(Wait::Nowhere);
            }
            self.fetch_for_fill(io, asking, volume, cluster)?;
            asking.working = Some(cluster);
            self.start_job(io, volume, cluster, Aim::Fill);
        }
    }

    /// What a clone's parents themselves look through to is to be here before a job holds the cluster.
    fn fetch_for_fill<I: Io>(
        &mut self,
        io: &mut I,
        asking: &mut Asking,
        volume: VolumeId,
        cluster: u32,
    ) -> Result<(), Wait> {
        let blocks = self.open_blocks(volume, cluster);
        let bottom = Level { volume, at: self.volumes[&volume].record.parent.map(|parent| parent.epoch) };
        match self.gather_below(io, bottom, Open::from_slice(&[(cluster, blocks)]), &mut asking.pins) {
            Ok(Gathered::Ready) => Ok(()),
            Ok(Gathered::Loading(key)) => {
                asking.seeking = Some((key, self.nodes.failures()));
                Err(Wait::Nowhere)
            }
            Ok(Gathered::Absent(bottom, absent)) => {
                while let Some(ended) = self.fetching.take_ended(bottom, cluster / CLUSTERS_PER_RANGE) {
                    ended.map_err(Wait::Over)?;
                }
                self.want_below(bottom, &absent, Who::Question);
                Err(Wait::Nowhere)
            }
            Err(status) => Err(Wait::Over(status)),
        }
    }

    /// Fetches what the backend has for a range of a clone that is at the bottom of its chain.
    fn fetch_range<I: Io>(
        &mut self,
        io: &mut I,
        asking: &mut Asking,
        volume: VolumeId,
        range: u32,
        most: u64,
    ) -> Result<Answer, Wait> {
        self.node_for(io, asking, volume)?;
        let Some(map) = self.backend_map(volume, range).map_err(Wait::Over)? else { return Err(Wait::Nowhere) };
        while let Some(ended) = self.fetching.take_ended(volume, range) {
            asking.copied += ended.map_err(Wait::Over)?;
        }
        let first = range * CLUSTERS_PER_RANGE;
        let clusters = (0..CLUSTERS_PER_RANGE).filter(|index| map.data >> index & 1 == 1).map(|index| first + index);
        let wanted = clusters.map(|cluster| (cluster, self.open_blocks(volume, cluster)));
        let wanted: Open = wanted.filter(|&(_, blocks)| blocks != 0).take(AHEAD).collect();
        if wanted.is_empty() {
            return Ok(Answer::Filled { copied: asking.copied, next: map.next });
        }
        if asking.copied >= most {
            return Ok(Answer::Filled { copied: asking.copied, next: Some(range) });
        }
        self.want_below(volume, &wanted, Who::Question);
        Err(Wait::Nowhere)
    }

    /// Blocks of a cluster that some view has from the parent, as far as the volume's own node tells.
    fn open_blocks(&self, volume: VolumeId, cluster: u32) -> u16 {
        let (node, index) = self.nodes.ready(volume, cluster);
        match self.behind(volume, cluster) {
            0 => 0,
            behind => self.volumes[&volume].views.needs(&chain_of(node, index)).undecided & behind,
        }
    }

    fn offset_of(&self, volume: VolumeId, cluster: u32) -> u64 {
        let record = &self.volumes[&volume].record;
        let nth = record.shards.iter().position(|&shard| shard == self.id).expect("the volume lies here");
        record.offset_of(nth, cluster)
    }
}

/// Which version decides each block of a cluster in a view.
fn deciders(node: &MapNode, index: u32, view: View<'_>) -> [Option<(Epoch, BlockState)>; BLOCKS_PER_CLUSTER as usize] {
    let mut found = [None; BLOCKS_PER_CLUSTER as usize];
    for Version { birth, states, .. } in node.seen(index, view) {
        for (block, slot) in found.iter_mut().enumerate().filter(|(_, slot)| slot.is_none()) {
            *slot = Some((*birth, states.get(block as u32))).filter(|(_, state)| *state != BlockState::Absent);
        }
    }
    found
}

/// Ranges, ascending, neighbours of a kind joined.
#[derive(Default)]
struct Ranges(Vec<ChangedRange>);

impl Ranges {
    fn add(&mut self, offset: u64, len: u64, data: bool) {
        match self.0.last_mut() {
            Some(last) if last.offset + last.len == offset && last.data == data => last.len += len,
            _ => self.0.push(ChangedRange { offset, len, data }),
        }
    }
}
