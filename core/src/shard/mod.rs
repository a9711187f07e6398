//! One shard: the blocks of every volume that live on it, their map, its journal and its share of the space.
//!
//! Single-threaded and without waiting: the node feeds it, and it answers through [`Event`]s. Where a write goes:
//!
//! ```text
//! submit      -> parts.rs        taken into the table, queued
//! execute     -> this file       volume known? claim on its blocks (overlap.rs), map node ready (nodes.rs)
//!             -> write.rs        version and place chosen, stamped with the epoch word; straight to the device,
//!                sector.rs       or through a scratch buffer where it covers a block in part
//! completion  -> write.rs        map changed, record made (commit.rs), crash log, answer
//! later       -> commit.rs       barrier, journal group: durable; checkpoint.rs: map pages, so that the journal may forget
//! ```
//! Invariants: a part is answered exactly once and gives its buffer back; what it took (claim, openings, pins, scratch) it gives
//! back before; a map change has a record with the next LSN, and nothing is answered that this record could still take back.

mod advance;
mod ahead;
pub mod api;
mod asking;
mod background;
mod checkpoint;
mod commit;
mod compare;
mod copying;
mod course;
mod deallocate;
mod erase;
mod fault;
mod fetching;
mod giving;
mod levels;
mod mapped;
mod nodes;
mod ops;
mod overlap;
mod parts;
mod read;
mod reclaim;
mod recover;
mod scratch;
mod sealing;
mod sector;
mod submit;
mod targets;
pub mod verify;
mod write;

use std::collections::VecDeque;
use std::sync::Arc;

use ringway_reactor::io::{FileInfo, Instant, Io};
use rustc_hash::FxHashMap;

pub use api::{
    Answer, Ask, ChangedRange, Event, FileSet, LogFull, Part, PartDone, RecordLog, ShardConfig, Stats, TokenBase,
};
pub use fetching::{ClusterData, Fetch, Fetched, RangeMap, Wanted};
pub use recover::{OpenError, Opened, Progress, Recovery, RecoverySpec, Region};

use self::background::Background;
use self::checkpoint::Checkpoint;
use self::commit::Commit;
use self::fetching::Fetching;
use self::giving::Giving;
use self::mapped::Mapped;
use self::nodes::{NodeCache, Readiness};
use self::ops::OpTable;
use self::overlap::{Claim, Claimant, OverlapTable, StripeKey};
use self::parts::{PartKey, PartTable, Stage};
use self::scratch::Scratch;
use self::sealing::Sealing;
use self::targets::Openings;
use crate::checksum::Seed;
use crate::ids::{AssociationId, Epoch, ShardId, VolumeId};
use crate::limits::{BLOCK, CLUSTER, STRIPE};
use crate::map::{BlockState, BlockStates, NodeKey, Views};
use crate::request::{Command, Status};
use crate::space::{Geometry, Place, SlabId, Space};
use crate::volume::VolumeRecord;

/// Parts that wait for something of the shard's; each list is queued again when there may be more of it.
#[derive(Debug, Default)]
struct Parked {
    journal: Vec<PartKey>,
    space: Vec<PartKey>,
    nodes: Vec<PartKey>,
    scratch: VecDeque<PartKey>,
}

#[derive(Debug)]
struct Volume {
    /// With the cuts of snapshots that are being made.
    record: Arc<VolumeRecord>,
    /// As the catalog has it.
    given: Arc<VolumeRecord>,
    /// Everybody who may look at it.
    views: Arc<Views>,
    /// Why it answers nothing but faults.
    fault: Option<String>,
}

/// An association that has ended.
#[derive(Clone, Copy, Debug)]
struct Fence {
    association: AssociationId,
    token: u64,
    /// Its parts that have started and not ended.
    left: usize,
}

/// How far asking for another slab has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlabRequest {
    None,
    Asked,
    /// The pool had none.
    Refused {
        until: Instant,
    },
}

/// One shard, recovered and running. See [`Recovery`] for how it comes to be.
pub struct Shard<L> {
    id: ShardId,
    seed: Seed,
    /// This boot.
    generation: u32,
    tokens: TokenBase,
    config: ShardConfig,
    /// Largest logical block among the devices.
    logical_block: u32,
    /// Smallest write that a device may tear.
    atomic_unit: u32,
    /// The epoch word of this tick.
    word: Epoch,
    now: Instant,
    volumes: FxHashMap<VolumeId, Volume>,
    fences: Vec<Fence>,
    parts: PartTable,
    ready: VecDeque<PartKey>,
    /// Nothing but parts can make [`Shard::advance`] do anything, and since it last ran no part has.
    calm: bool,
    parked: Parked,
    granted: Vec<Claimant>,
    overlap: OverlapTable,
    openings: Openings,
    /// Map changes that have started and have no record yet: journal room is kept for each.
    changing: usize,
    ops: OpTable,
    nodes: NodeCache,
    space: Space,
    mapped: Mapped,
    space_changed: bool,
    slab_request: SlabRequest,
    giving: Giving,
    sealing: Sealing,
    fetching: Fetching,
    /// Clusters let go that still need a hole.
    released: Vec<Place>,
    holes: slab::Slab<reclaim::Hole>,
    journal_changed: bool,
    nodes_changed: bool,
    scratch: Scratch,
    commit: Commit,
    checkpoint: Checkpoint,
    erasing: VecDeque<erase::Erasure>,
    background: Background,
    /// Volumes that have lost records of their map: what they name may be another's.
    suspect: Vec<VolumeId>,
    log: L,
    /// Why no write is taken any more.
    fault: Option<String>,
    draining: bool,
    drained: bool,
    stats: Stats,
}

/// What recovery makes a shard of.
struct Parts {
    space: Space,
    mapped: Mapped,
    nodes: NodeCache,
    commit: Commit,
    checkpoint: Checkpoint,
    scratch: Scratch,
    background: Background,
}

impl<L: RecordLog> Shard<L> {
    fn new(spec: RecoverySpec<L>, seed: Seed, files: &[FileInfo], parts: Parts) -> Shard<L> {
        let Parts { space, mapped, nodes, commit, checkpoint, scratch, background } = parts;
        let (logical_block, atomic_unit) = units(files);
        let volumes = spec.volumes.into_iter().map(|record| (record.id, Volume::new(record)));
        let mut shard = Shard {
            id: spec.id,
            seed,
            generation: spec.generation,
            tokens: spec.tokens,
            config: spec.config,
            logical_block,
            atomic_unit,
            word: Epoch::first_of(spec.generation),
            now: Instant(0),
            volumes: volumes.collect(),
            fences: Vec::new(),
            parts: PartTable::default(),
            ready: VecDeque::new(),
            calm: false,
            parked: Parked::default(),
            granted: Vec::new(),
            overlap: OverlapTable::default(),
            openings: Openings::default(),
            changing: 0,
            ops: OpTable::default(),
            nodes,
            space,
            mapped,
            released: Vec::new(),
            holes: slab::Slab::new(),
            journal_changed: false,
            nodes_changed: false,
            space_changed: false,
            slab_request: SlabRequest::None,
            giving: Giving::default(),
            sealing: Sealing::default(),
            fetching: Fetching::default(),
            scratch,
            commit,
            checkpoint,
            erasing: VecDeque::new(),
            background,
            suspect: spec.suspect,
            log: spec.log,
            fault: None,
            draining: false,
            drained: false,
            stats: Stats::default(),
        };
        shard.find_all_views();
        for volume in spec.removed {
            shard.on_volume_removed(volume, &mut Vec::new());
        }
        shard
    }

    /// Takes a part. Nothing runs before [`Shard::execute`].
    pub fn submit(&mut self, part: Part) {
        for fence in self.fences.iter_mut().filter(|fence| fence.association == part.association) {
            fence.left += 1;
        }
        let (node, index) = NodeKey::of(part.volume, (part.start / CLUSTER) as u32);
        if let Some(node) = self.nodes.get(node) {
            node.prefetch(index);
        }
        let key = self.parts.insert(part);
        self.ready.push_back(key);
    }

    /// Runs everything that can go on. What starts now is stamped `word`, which the caller has read after it pulled
    /// everything that had arrived (C1).
    pub fn execute<I: Io>(&mut self, io: &mut I, word: Epoch, out: &mut Vec<Event>) {
        assert!(word >= self.word, "the epoch word went back from {} to {word}", self.word);
        self.word = word;
        self.now = io.now();
        if self.sealing.is_fresh() {
            self.finish_arming(out);
        }
        self.unpark_scratch(io, out);
        loop {
            while let Some(key) = self.ready.pop_front() {
                if !self.read_at_once(io, key, out) {
                    self.calm = false;
                    self.run(io, key, out);
                }
            }
            if self.calm {
                return;
            }
            self.advance(io, out);
            if self.ready.is_empty() {
                self.calm = self.is_calm();
                return;
            }
        }
    }

    /// Whether [`Shard::execute`] has something to do at once.
    #[must_use]
    pub fn busy(&self) -> bool {
        // Who waited is told of a change in the next turn, not when the next deadline comes.
        !self.ready.is_empty() || self.has_changed() || self.sealing.is_fresh()
    }

    /// A part's way from the queue to its command.
    fn run<I: Io>(&mut self, io: &mut I, key: PartKey, out: &mut Vec<Event>) {
        let Some(state) = self.parts.get_mut(key) else { return };
        if !matches!(state.stage, Stage::Queued | Stage::Overlap | Stage::Parked) {
            return;
        }
        let command = state.part.command;
        self.leave_backend(key);
        let clone = match self.admit(key) {
            Ok(clone) => clone,
            Err(status) => return self.finish(key, status, out),
        };
        if command == Command::Flush {
            return self.start_flush(key, out);
        }
        if !self.claim(key) {
            return;
        }
        let part = &self.parts.at(key).part;
        let (volume, start) = (part.volume, part.start);
        match self.require_node(io, volume, (start / CLUSTER) as u32) {
            Readiness::Ready => {}
            Readiness::Loading => {
                self.parts.at(key).stage = Stage::Parked;
                self.nodes.wait(volume, (start / CLUSTER) as u32, key);
                return;
            }
            Readiness::Full => {
                self.parts.at(key).stage = Stage::Parked;
                self.parked.nodes.push(key);
                self.stats.waits += 1;
                return;
            }
        }
        if clone {
            match self.gather_parents(io, key) {
                Ok(true) => {}
                Ok(false) => return,
                Err(status) => return self.finish(key, status, out),
            }
        }
        self.parts.at(key).stage = Stage::Queued;
        match command {
            Command::Read => self.start_read(io, key, out),
            Command::Write { fua } => self.start_write(io, key, fua, out),
            Command::WriteZeroes { fua, .. } => self.start_zeroes(io, key, fua, out),
            Command::Deallocate => self.start_zeroes(io, key, false, out),
            Command::Compare => self.start_compare(io, key, out),
            Command::CompareAndWrite { .. } => self.start_compare_and_write(io, key, out),
            Command::Flush => unreachable!("a flush has no blocks"),
        }
    }

    /// Claims the part's blocks; false if it has to wait for others on them.
    fn claim(&mut self, key: PartKey) -> bool {
        let lba_torn = |record: &VolumeRecord, unit: u32| record.lba_bytes > unit;
        let state = self.parts.at(key);
        if state.claimed.is_some() {
            return true;
        }
        let part = &state.part;
        let claim = match part.command {
            Command::Read if lba_torn(&self.volumes[&part.volume].record, self.atomic_unit) => Claim::Shared,
            Command::Read => return true,
            _ => Claim::Exclusive,
        };
        assert!(part.len > 0, "a part with blocks has at least one byte");
        let within = part.start % STRIPE;
        let blocks = (within / BLOCK) as u32..(within + u64::from(part.len)).div_ceil(BLOCK) as u32;
        let stripe = StripeKey { volume: part.volume, stripe: (part.start / STRIPE) as u32 };
        state.claimed = Some(stripe);
        let granted = self.overlap.claim(stripe, Claimant::Part(key), blocks, claim);
        if !granted {
            state.stage = Stage::Overlap;
            self.stats.overlaps += 1;
        }
        granted
    }

    /// Gives the part's claim up and queues those that waited for it.
    fn release_claim(&mut self, key: PartKey) {
        if let Some(stripe) = self.parts.at(key).claimed.take() {
            self.give_claim_up(stripe, Claimant::Part(key));
        }
    }

    fn give_claim_up(&mut self, stripe: StripeKey, who: Claimant) {
        let mut granted = std::mem::take(&mut self.granted);
        self.overlap.release(stripe, who, &mut granted);
        for who in granted.drain(..) {
            match who {
                Claimant::Part(key) => self.ready.push_back(key),
                Claimant::Job(job) => self.job_may_go(job),
            }
        }
        self.granted = granted;
    }

    /// Everything a command wanted done at the device is done, or has failed.
    fn complete(&mut self, key: PartKey, out: &mut Vec<Event>) {
        match self.parts.at(key).part.command {
            Command::Write { .. }
            | Command::WriteZeroes { .. }
            | Command::Deallocate
            | Command::CompareAndWrite { .. } => {
                self.complete_write(key, out);
            }
            Command::Read | Command::Compare => {
                let status = self.parts.at(key).status;
                self.finish(key, status, out);
            }
            Command::Flush => unreachable!("a flush has no device operation of its own"),
        }
    }

    /// Answers a part.
    fn finish(&mut self, key: PartKey, status: Status, out: &mut Vec<Event>) {
        self.release_claim(key);
        self.unpin(key);
        self.leave_backend(key);
        let state = self.parts.at(key);
        state.join_data();
        let (id, association) = (state.part.id, state.part.association);
        let data = state.part.data.take();
        self.parts.remove(key);
        self.stats.parts += 1;
        out.push(Event::Done(PartDone { id, status, data }));
        if !self.fences.is_empty() {
            self.leave_fences(association, out);
        }
    }

    /// One part less that its association's fences wait for.
    fn leave_fences(&mut self, association: AssociationId, out: &mut Vec<Event>) {
        self.fences.retain_mut(|fence| {
            fence.left -= usize::from(fence.association == association);
            if fence.left == 0 {
                out.push(Event::Fenced { association, token: fence.token });
            }
            fence.left > 0
        });
    }

    /// Drops the association's parts that have not started; [`Event::Fenced`] follows when the others have ended (C11).
    pub fn fence(&mut self, association: AssociationId, token: u64, out: &mut Vec<Event>) {
        self.calm = false;
        let waiting: Vec<PartKey> = self
            .parts
            .iter()
            .filter(|(_, state)| state.part.association == association && state.stamp.is_none())
            .map(|(key, _)| key)
            .collect();
        for key in waiting {
            self.finish(key, Status::Aborted, out);
        }
        match self.parts.iter().filter(|(_, state)| state.part.association == association).count() {
            0 => out.push(Event::Fenced { association, token }),
            left => self.fences.push(Fence { association, token, left }),
        }
    }

    /// A volume of the catalog, new or changed.
    pub fn on_volume(&mut self, given: Arc<VolumeRecord>) {
        self.calm = false;
        let id = given.id;
        let record = self.sealing.with_cuts(&given);
        let before = match self.volumes.get_mut(&id) {
            Some(volume) => {
                volume.given = given;
                Some(std::mem::replace(&mut volume.record, Arc::clone(&record)))
            }
            None => {
                self.volumes.insert(id, Volume { given, ..Volume::new(Arc::clone(&record)) });
                None
            }
        };
        if before.as_ref().is_some_and(|before| before.parent != record.parent) {
            self.forget_fetches(id);
        }
        self.views_may_have_changed(before.as_deref(), Some(&record));
    }

    /// A slab that the catalog has durably given to this shard.
    pub fn on_slab(&mut self, slab: SlabId) {
        self.calm = false;
        self.space.add_slab(slab);
        self.slab_request = SlabRequest::None;
        self.space_changed = true;
    }

    /// The pool has another device, and may have slabs for this shard again.
    pub fn on_grown(&mut self, geometry: Arc<Geometry>, files: &[FileInfo]) {
        self.space.set_geometry(geometry);
        (self.logical_block, self.atomic_unit) = units(files);
        if matches!(self.slab_request, SlabRequest::Refused { .. }) {
            self.slab_request = SlabRequest::None;
        }
        self.space_changed = true;
    }

    /// Commits and checkpoints; [`Event::Drained`] follows when nothing is left to do. Parts may no longer be submitted.
    pub fn drain(&mut self) {
        self.calm = false;
        self.draining = true;
    }

    /// Which shard this is.
    #[must_use]
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// Whether nothing is in flight and nobody waits for anything.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.parts.len() == 0 && self.ops.len() == 0 && self.ready.is_empty()
    }

    /// Clusters that `volume` maps here now.
    #[must_use]
    pub fn mapped_by(&self, volume: VolumeId) -> u64 {
        self.mapped.of(volume)
    }

    /// Counters as of now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let counts = self.space.counts();
        Stats {
            clusters_free: counts.free,
            clusters_used: counts.data,
            clusters_quarantined: counts.quarantined,
            ..self.stats
        }
    }
}

/// The largest logical block and the smallest atomic unit of the devices.
fn units(files: &[FileInfo]) -> (u32, u32) {
    let logical = files.iter().map(|file| file.logical_block).max();
    let atomic = files.iter().map(|file| file.atomic_write_unit).min();
    (logical.unwrap_or(512), atomic.unwrap_or(512))
}

/// The stretch of a range that lies in one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    cluster: u32,
    /// Bytes from the start of the cluster.
    start: u32,
    end: u32,
}

impl Piece {
    /// The blocks it touches, as the low bits of [`BlockStates`].
    fn blocks(&self) -> u32 {
        let blocks = self.start / BLOCK as u32..self.end.div_ceil(BLOCK as u32);
        BlockStates::ABSENT.with(blocks, BlockState::Data).raw()
    }
}

/// The stretches of `start..start + len`, cluster by cluster.
fn clusters_of(start: u64, len: u32) -> impl Iterator<Item = Piece> + Clone {
    let end = start + u64::from(len);
    let clusters = if len == 0 { 0..0 } else { start / CLUSTER..end.div_ceil(CLUSTER) };
    clusters.map(move |cluster| {
        let base = cluster * CLUSTER;
        Piece {
            cluster: cluster as u32,
            start: start.saturating_sub(base) as u32,
            end: (end - base).min(CLUSTER) as u32,
        }
    })
}
