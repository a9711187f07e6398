//! What a clone looks through to may be on a backend alone: it is fetched when somebody wants to know it, once, and goes to the
//! bottom of the clone's map, below everything that was ever written to the clone.
//!
//! ```text
//! a part, a question: blocks that nothing here decides -> wanted -> Event::Fetch ..(seconds, maybe).. on_fetched
//!   -> job (copying.rs): claims the cluster, copies those blocks that still nobody decides, records the version
//!   -> the part runs again as if it had just come, with the word of that tick; a question goes on
//! ```
//! Nothing here waits: a part that does holds no claim, no node, no scratch buffer and no device operation (H17), so that what
//! does not need the backend goes on: other volumes, and writes of whole blocks to this one. How much may wait is bounded; beyond
//! that the client is told to come again.
//!
//! Who reads front to back has the next clusters fetched too, after all that somebody waits for (ahead.rs).
//!
//! Which clusters of a range hold anything at all is asked first, and kept, within a bound: what the backend has nothing for is
//! zeros, needs no version, and is known so from then on.
//!
//! Invariant: a block that no version decides is as it is on the backend. So a fetch may be forgotten at any point, by a crash too.

use std::collections::VecDeque;
use std::sync::Arc;

use ringway_reactor::data::Data;
use ringway_reactor::io::{Instant, Io};
use rustc_hash::FxHashMap;

use super::Shard;
use super::ahead::{Ahead, UNDER_WAY_MAX};
use super::api::{Event, RecordLog};
use super::background::LATER_NS;
use super::copying::{Aim, End, Job, Next, Plan};
use super::course::chain_of;
use super::levels::Open;
use super::parts::{PartKey, Stage};
use crate::ids::VolumeId;
use crate::limits::{BLOCK, CLUSTERS_PER_RANGE};
use crate::map::{BlockState, BlockStates, NodeKey, Version, ones};
use crate::request::Status;
use crate::space::Place;
use crate::volume::VolumeRecord;

/// Fetches at a time; each may be a cluster in memory.
pub(super) const FETCHES_MAX: usize = 16;
/// Parts that may wait, and which part of a reactor's buffers they may hold meanwhile.
const PARTS_MAX: usize = 8192;
const BUFFERS_PART: usize = 4;
/// Ranges whose map is kept: half a TiB of a volume.
const MAPS_MAX: usize = 65_536;
/// How often is looked for space for what was fetched, a few milliseconds apart, before those who wait are told that there is none.
const REFUSED_MAX: u32 = 16;
/// Clusters that are wanted and nobody waits for yet, at the most.
const LATER_MAX: usize = 64;
/// Clusters that a question has fetched ahead.
pub(super) const AHEAD: usize = 8;

/// Something of a clone that is on a backend.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// Returned with the answer.
    pub token: u64,
    /// The clone.
    pub record: Arc<VolumeRecord>,
    /// The place of this shard in its list.
    pub nth: usize,
    /// What of it.
    pub wanted: Wanted,
}

/// What is to be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Which clusters of local range `range` hold anything; answered with [`Fetched::Map`].
    Map { range: u32 },
    /// The blocks of a local cluster; answered with [`Fetched::Cluster`].
    Cluster { cluster: u32 },
}

/// What was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    Map(RangeMap),
    Cluster(ClusterData),
}

/// Which clusters of a range hold anything on the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeMap {
    /// A bit a cluster.
    pub data: u128,
    /// The first range after it that may hold something.
    pub next: Option<u32>,
}

/// The blocks of a cluster, as they are on the backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterData {
    /// Those with data, bits 0 to 15; the others are zeros.
    pub blocks: u16,
    /// The bytes of those, ascending, 4 KiB each.
    pub bytes: Vec<u8>,
}

impl ClusterData {
    /// Copies some of its blocks one after the other.
    pub(super) fn copy_to(&self, blocks: u16, to: &mut [u8]) {
        assert!(blocks & !self.blocks == 0, "only blocks that have data");
        let size = BLOCK as usize;
        for (target, block) in to.chunks_exact_mut(size).zip(ones(blocks)) {
            let at = (self.blocks & ((1 << block) - 1)).count_ones() as usize * size;
            target.copy_from_slice(&self.bytes[at..at + size]);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Map(VolumeId, u32),
    Cluster(VolumeId, u32),
}

impl Key {
    fn volume(self) -> VolumeId {
        let (Key::Map(volume, _) | Key::Cluster(volume, _)) = self;
        volume
    }
}

/// Who wants something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Part(PartKey),
    Question,
}

#[derive(Debug, Default)]
struct Want {
    parts: Vec<PartKey>,
    question: bool,
    /// How often there was no space for it.
    refused: u32,
    /// Of a cluster, once it is here.
    data: Option<Arc<ClusterData>>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Fetching {
    wanted: FxHashMap<Key, Want>,
    /// Of these, those that are not asked for yet.
    queue: VecDeque<Key>,
    /// The same of those that nobody waits for yet.
    later: VecDeque<Key>,
    pub(super) ahead: FxHashMap<VolumeId, Ahead>,
    asked: FxHashMap<u64, Key>,
    next_token: u64,
    /// Clusters that are here and wait for their job.
    here: VecDeque<(VolumeId, u32)>,
    maps: FxHashMap<(VolumeId, u32), RangeMap>,
    /// How it ended for questions: bytes that were copied.
    ended: Vec<(VolumeId, u32, Result<u64, Status>)>,
    /// Parts that cannot get what they wait for.
    failed: Vec<(PartKey, Status)>,
    waiting: usize,
    waiting_bytes: usize,
    /// A job has to be tried again.
    retry_at: Option<Instant>,
}

impl Fetching {
    /// Nothing to do before something arrives.
    pub(super) fn is_calm(&self) -> bool {
        !self.may_ask() && self.here.is_empty() && self.failed.is_empty()
    }

    pub(super) fn due(&self) -> Instant {
        match self.retry_at {
            // A question has wanted it, after what is wanted was asked for in this turn.
            _ if self.may_ask() || !self.failed.is_empty() => Instant(0),
            _ if self.here.is_empty() => Instant::NEVER,
            Some(at) => at,
            None => Instant(0),
        }
    }

    fn may_ask(&self) -> bool {
        let under_way = self.under_way();
        !self.queue.is_empty() && under_way < FETCHES_MAX || !self.later.is_empty() && under_way < UNDER_WAY_MAX
    }

    /// What is asked for next.
    fn next(&mut self) -> Option<Key> {
        let may = self.may_ask();
        let next = if may { self.queue.pop_front() } else { None };
        next.or_else(|| if may { self.later.pop_front() } else { None })
    }

    /// Asked for, here, or being written.
    fn under_way(&self) -> usize {
        self.wanted.len().saturating_sub(self.queue.len() + self.later.len())
    }

    /// Whether the backend may have something for this cluster.
    pub(super) fn may_have(&self, volume: VolumeId, cluster: u32) -> bool {
        let (range, index) = (cluster / CLUSTERS_PER_RANGE, cluster % CLUSTERS_PER_RANGE);
        self.map(volume, range).is_none_or(|map| map.data >> index & 1 == 1)
    }

    /// What the backend has of a range, if that is known.
    pub(super) fn map(&self, volume: VolumeId, range: u32) -> Option<RangeMap> {
        self.maps.get(&(volume, range)).copied()
    }

    /// What came of a cluster of this range that a question wanted.
    pub(super) fn take_ended(&mut self, volume: VolumeId, range: u32) -> Option<Result<u64, Status>> {
        let of = |&(v, cluster, _): &(VolumeId, u32, _)| (v, cluster / CLUSTERS_PER_RANGE) == (volume, range);
        let at = self.ended.iter().position(of)?;
        Some(self.ended.swap_remove(at).2)
    }

    /// Nobody asks any more.
    pub(super) fn forget_ended(&mut self) {
        self.ended.clear();
    }

    /// Nobody wants it yet, and somebody may soon. False if no more is to be fetched ahead.
    pub(super) fn want_later(&mut self, volume: VolumeId, cluster: u32) -> bool {
        let key = Key::Cluster(volume, cluster);
        if self.later.len() < LATER_MAX && !self.wanted.contains_key(&key) {
            self.later.push_back(key);
            self.wanted.insert(key, Want::default());
        }
        self.later.len() < LATER_MAX
    }

    fn want(&mut self, key: Key, who: Option<Who>) {
        let queue = &mut self.queue;
        if let Some(at) = self.later.iter().position(|&later| later == key) {
            self.later.remove(at);
            queue.push_back(key);
        }
        let want = self.wanted.entry(key).or_insert_with(|| {
            queue.push_back(key);
            Want::default()
        });
        match who {
            Some(Who::Part(part)) => want.parts.push(part),
            Some(Who::Question) => want.question = true,
            None => {}
        }
    }

    /// It cannot be had.
    fn fail(&mut self, key: Key, status: Status) {
        let Some(want) = self.wanted.remove(&key) else { return };
        self.failed.extend(want.parts.into_iter().map(|part| (part, status)));
        if want.question {
            let cluster = match key {
                Key::Map(_, range) => range * CLUSTERS_PER_RANGE,
                Key::Cluster(_, cluster) => cluster,
            };
            self.ended.push((key.volume(), cluster, Err(status)));
        }
    }
}

impl<L: RecordLog> Shard<L> {
    /// Parks a part until blocks of `bottom` are here, without anything that others may need.
    pub(super) fn wait_for_backend<I: Io>(
        &mut self,
        io: &I,
        key: PartKey,
        bottom: VolumeId,
        open: &Open,
    ) -> Result<(), Status> {
        let part = &self.parts.at(key).part;
        let held = part.data.as_ref().filter(|data| !matches!(data, Data::Shared(_))).map_or(0, Data::len);
        let fetching = &mut self.fetching;
        let bytes_max = io.buffers().bytes() / BUFFERS_PART;
        // One always may, or the smallest of pools would never get anywhere.
        if fetching.waiting > 0 && (fetching.waiting == PARTS_MAX || fetching.waiting_bytes + held > bytes_max) {
            return Err(Status::Busy);
        }
        fetching.waiting += 1;
        fetching.waiting_bytes += held;
        self.release_claim(key);
        self.unpin(key);
        let state = self.parts.at(key);
        state.stage = Stage::Parked;
        state.awaits_backend = Some(held);
        self.stats.waits += 1;
        self.want_below(bottom, open, Who::Part(key));
        Ok(())
    }

    /// The part does not wait for the backend any more.
    pub(super) fn leave_backend(&mut self, key: PartKey) {
        if let Some(held) = self.parts.at(key).awaits_backend.take() {
            self.fetching.waiting -= 1;
            self.fetching.waiting_bytes -= held;
        }
    }

    /// Blocks of clusters of one range are wanted. Whoever wants them is told of the first and looks again.
    pub(super) fn want_below(&mut self, bottom: VolumeId, open: &Open, who: Who) {
        self.calm = false;
        let (first, _) = open[0];
        let range = first / CLUSTERS_PER_RANGE;
        if self.fetching.map(bottom, range).is_none() {
            return self.fetching.want(Key::Map(bottom, range), Some(who));
        }
        for (nth, &(cluster, _)) in open.iter().enumerate() {
            let told = (nth == 0 || who == Who::Question).then_some(who);
            self.fetching.want(Key::Cluster(bottom, cluster), told);
        }
        if who != Who::Question {
            self.read_ahead(bottom, first, open[open.len() - 1].0);
        }
    }

    /// Blocks of a cluster that a backend decides, if the node that would decide them is here.
    pub(super) fn undecided(&self, volume: VolumeId, cluster: u32) -> u16 {
        let (key, index) = NodeKey::of(volume, cluster);
        let Some(node) = self.nodes.get(key) else { return 0 };
        self.volumes[&volume].views.needs(&chain_of(node, index)).undecided & self.behind(volume, cluster)
    }

    /// Which clusters of a range the backend has something for, if that is known by now; it is asked for otherwise.
    pub(super) fn backend_map(&mut self, volume: VolumeId, range: u32) -> Result<Option<RangeMap>, Status> {
        let map = self.fetching.map(volume, range);
        if map.is_none() {
            if let Some(Err(status)) = self.fetching.take_ended(volume, range) {
                return Err(status);
            }
            self.calm = false;
            self.fetching.want(Key::Map(volume, range), Some(Who::Question));
        }
        Ok(map)
    }

    /// Asks for what is wanted, and begins to write what is here.
    pub(super) fn advance_fetching<I: Io>(&mut self, io: &mut I, out: &mut Vec<Event>) {
        while let Some(key) = self.fetching.next() {
            let record = self.volumes.get(&key.volume()).map(|volume| Arc::clone(&volume.record));
            let known = record.filter(|record| record.parent.is_some_and(|parent| parent.is_on_backend()));
            let Some(record) = known else {
                self.fetching.fail(key, Status::VolumeGone);
                continue;
            };
            let nth = record.shards.iter().position(|&shard| shard == self.id).expect("the volume lies here");
            let wanted = match key {
                Key::Map(_, range) => Wanted::Map { range },
                Key::Cluster(_, cluster) => Wanted::Cluster { cluster },
            };
            let token = self.fetching.next_token;
            self.fetching.next_token += 1;
            self.fetching.asked.insert(token, key);
            out.push(Event::Fetch(Fetch { token, record, nth, wanted }));
        }
        if self.fetching.retry_at.is_some_and(|at| at > self.now) {
            return;
        }
        self.fetching.retry_at = None;
        for _ in 0..self.fetching.here.len() {
            let (volume, cluster) = self.fetching.here.pop_front().expect("counted");
            let want = self.fetching.wanted.get(&Key::Cluster(volume, cluster));
            let Some(data) = want.and_then(|want| want.data.clone()) else { continue };
            if self.background.has_job(volume, cluster) {
                self.try_again(volume, cluster);
            } else {
                self.start_job_with(io, volume, cluster, Aim::Fetched, Some(data));
            }
        }
    }

    fn try_again(&mut self, volume: VolumeId, cluster: u32) {
        self.fetching.here.push_back((volume, cluster));
        self.fetching.retry_at = Some(self.now.plus_ns(LATER_NS));
    }

    /// Answers those who cannot get what they wait for.
    pub(super) fn answer_unfetched(&mut self, out: &mut Vec<Event>) {
        for (key, status) in std::mem::take(&mut self.fetching.failed) {
            if self.parts.get_mut(key).is_some_and(|state| state.awaits_backend.is_some()) {
                self.finish(key, status, out);
            }
        }
    }

    /// Something has come, or cannot be had: [`Status::BackendUnavailable`], or [`Status::UnrecoveredRead`] where it is damaged.
    pub fn on_fetched(&mut self, token: u64, outcome: Result<Fetched, Status>) {
        self.calm = false;
        let Some(key) = self.fetching.asked.remove(&token) else { return };
        let Some(want) = self.fetching.wanted.get_mut(&key) else { return };
        match (key, outcome) {
            (Key::Map(volume, range), Ok(Fetched::Map(map))) => {
                if self.fetching.maps.len() >= MAPS_MAX {
                    self.fetching.maps.clear();
                }
                self.fetching.maps.insert((volume, range), map);
                self.wake(key);
            }
            (Key::Cluster(volume, cluster), Ok(Fetched::Cluster(data))) => {
                assert!(
                    data.bytes.len() == data.blocks.count_ones() as usize * BLOCK as usize,
                    "a block has its bytes"
                );
                want.data = Some(Arc::new(data));
                self.fetching.here.push_back((volume, cluster));
            }
            (_, Err(status)) => self.fetching.fail(key, status),
            (key, Ok(other)) => unreachable!("{key:?} is answered with {other:?}"),
        }
    }

    /// Those who waited for this look again.
    fn wake(&mut self, key: Key) -> bool {
        let Some(want) = self.fetching.wanted.remove(&key) else { return false };
        let waiting = want.parts.into_iter();
        self.ready.extend(waiting);
        want.question
    }

    /// What was fetched is in the map, or cannot be brought there.
    pub(super) fn fetched_ended(&mut self, job: &Job, end: End) {
        self.calm = false;
        let (volume, cluster) = (job.volume, job.cluster);
        let key = Key::Cluster(volume, cluster);
        match end {
            End::Later => {
                let full = !self.has_space(1);
                let Some(want) = self.fetching.wanted.get_mut(&key) else { return };
                want.refused += u32::from(full);
                match want.refused < REFUSED_MAX {
                    true => self.try_again(volume, cluster),
                    false => self.fetching.fail(key, Status::CapacityExceeded),
                }
            }
            End::Done => {
                self.stats.clusters_fetched += 1;
                if self.wake(key) {
                    self.fetching.ended.push((volume, cluster, Ok(job.copied)));
                }
            }
            End::Failed(status) => self.fetching.fail(key, status),
        }
    }

    /// The volume is gone, or looks through to the backend no more: those who waited look again.
    pub(super) fn forget_fetches(&mut self, volume: VolumeId) {
        let of = |key: &Key| key.volume() == volume;
        let keys: Vec<Key> = self.fetching.wanted.keys().filter(|key| of(key)).copied().collect();
        self.fetching.queue.retain(|key| !of(key));
        self.fetching.later.retain(|key| !of(key));
        self.fetching.ahead.remove(&volume);
        self.fetching.here.retain(|&(other, _)| other != volume);
        self.fetching.maps.retain(|&(other, _), _| other != volume);
        for key in keys {
            self.wake(key);
        }
    }

    /// Those blocks of what was fetched that nobody has decided meanwhile, for any view, go to the bottom.
    pub(super) fn plan_fetched(&mut self, id: u32) -> Next {
        let Job { volume, cluster, .. } = self.background.jobs[id as usize];
        let fetched = Arc::clone(self.background.jobs[id as usize].fetched.as_ref().expect("it was fetched"));
        let parent = self.volumes[&volume].record.parent.filter(|parent| parent.is_on_backend());
        let Some(parent) = parent else { return Next::End(End::Done) };
        let views = Arc::clone(&self.volumes[&volume].views);
        let (key, index) = NodeKey::of(volume, cluster);
        let node = self.nodes.get(key).expect("the job's node is pinned");
        let chain = chain_of(node, index);
        let open = self.undecided(volume, cluster);
        if open == 0 {
            return Next::End(End::Done);
        }
        // The oldest version will do where every view sees it, also one that nobody can name yet.
        let everybody = 0..views.points().len() + 1;
        let settled = self.may_work_on(volume);
        let fits =
            |oldest: &Version| oldest.birth == parent.epoch || settled && views.seeing(oldest.birth) == everybody;
        let none = Version { birth: parent.epoch, place: Place::NONE, states: BlockStates::ABSENT };
        let bottom = chain.last().copied().filter(fits).unwrap_or(none);
        let (data, zero) = (open & fetched.blocks, open & !fetched.blocks);
        let states = bottom.states.with_bits(data, BlockState::Data).with_bits(zero, BlockState::Zero);
        let kept = Version { states, ..bottom };
        if data == 0 {
            self.put(volume, cluster, kept, false);
            return Next::Again;
        }
        Next::Copy(Plan { kept, gone: None, blocks: data, sources: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_that_are_copied_are_those_asked_for() {
        let block = |n: u8| vec![n; BLOCK as usize];
        let data = ClusterData { blocks: 0b1001_0110, bytes: [block(1), block(2), block(4), block(7)].concat() };
        let mut to = vec![0; 2 * BLOCK as usize];
        data.copy_to(0b1000_0100, &mut to);
        assert_eq!(to, [block(2), block(7)].concat());
    }
}
