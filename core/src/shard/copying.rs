//! Jobs in the background: one cluster each, under a claim on all of its blocks, so that no write to it is on its way.
//!
//! ```text
//! Claim -> [plan -> records -> plan ..] -> Read -> Write -> records -> plan .. -> over
//! ```
//! A plan is made from the map as it is; a copy that has ended changes the map only if the same plan would be made again. What was
//! copied lies in blocks that nobody sees until a record says so; a crash before that leaves the versions as they were.

use std::sync::Arc;

use ringway_reactor::buf::Buf;
use ringway_reactor::data::Data;
use ringway_reactor::io::{Instant, Io};

use super::Shard;
use super::api::RecordLog;
use super::commit::Use;
use super::course::chain_of;
use super::fetching::ClusterData;
use super::levels::{Gathered, Level, Open, Pins};
use super::nodes::Readiness;
use super::ops::{Kind, Owner};
use super::overlap::{Claim, Claimant, StripeKey};
use super::parts::{Run, Segment};
use super::scratch::Lent;
use crate::ids::VolumeId;
use crate::limits::{BLOCK, BLOCKS_PER_CLUSTER, CLUSTERS_PER_STRIPE};
use crate::map::{BlockState, BlockStates, NodeKey, Record, Source, Tidy, Version, Views, filled, ones, tidy};
use crate::request::Status;
use crate::space::{Place, Ticket};

const B: u32 = BLOCK as u32;
/// Records of one change.
const RECORDS: usize = 2;

/// What a job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aim {
    /// No more versions than views need.
    Tidy,
    /// The newest version of a long chain leaves nothing to those below (H4).
    Thicken,
    /// No view looks through to the parent any more (C9).
    Fill,
    /// What has come from a backend goes to the bottom.
    Fetched,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Done,
    /// It could not go on for now.
    Later,
    Failed(Status),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Writes of the cluster are before it.
    Claim,
    /// It can go on.
    Ready,
    Reading,
    Writing,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) volume: VolumeId,
    pub(super) cluster: u32,
    pub(super) aim: Aim,
    pub(super) began: Instant,
    /// Bytes moved at the device.
    pub(super) copied: u64,
    stage: Stage,
    pins: Pins,
    /// A node was on its way, and so many had failed to come by then.
    seeking: Option<(NodeKey, u64)>,
    copy: Option<Copy>,
    /// What has come from a backend.
    pub(super) fetched: Option<Arc<ClusterData>>,
}

impl Job {
    /// Whether writes of its cluster are before it.
    pub(super) fn waits_for_writes(&self) -> bool {
        self.stage == Stage::Claim
    }
}

/// A copy under way.
#[derive(Debug)]
struct Copy {
    plan: Plan,
    views: Arc<Views>,
    /// The place was taken for it just now.
    fresh: bool,
    pieces: Vec<Segment>,
    rest: Option<Buf>,
    outstanding: u32,
    status: Status,
}

/// What is to be copied, and what the map says afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// As it will be; without a place: one is to be taken.
    pub(super) kept: Version,
    pub(super) gone: Option<Version>,
    /// Bits 0 to 15, and where their bytes are, ascending.
    pub(super) blocks: u16,
    pub(super) sources: Vec<(Run, u32)>,
}

/// What comes next.
pub(super) enum Next {
    /// Look again.
    Again,
    /// An event will call.
    Wait,
    /// Copy.
    Copy(Plan),
    End(End),
}

impl<L: RecordLog> Shard<L> {
    pub(super) fn start_job<I: Io>(&mut self, io: &mut I, volume: VolumeId, cluster: u32, aim: Aim) {
        self.start_job_with(io, volume, cluster, aim, None);
    }

    pub(super) fn start_job_with<I: Io>(
        &mut self,
        io: &mut I,
        volume: VolumeId,
        cluster: u32,
        aim: Aim,
        fetched: Option<Arc<ClusterData>>,
    ) {
        let job = Job {
            volume,
            cluster,
            aim,
            began: self.now,
            copied: 0,
            stage: Stage::Claim,
            pins: Pins::new(),
            seeking: None,
            copy: None,
            fetched,
        };
        let id = self.background.jobs.insert(job) as u32;
        let (stripe, blocks) = whole_cluster(volume, cluster);
        if self.overlap.claim(stripe, Claimant::Job(id), blocks, Claim::Exclusive) {
            self.background.jobs[id as usize].stage = Stage::Ready;
            self.step_job(io, id);
        } else {
            // A write that waits for space may have the claim: it is not to wait for this job.
            self.space_changed = true;
        }
    }

    /// Its cluster is at rest.
    pub(super) fn job_may_go(&mut self, id: u32) {
        self.calm = false;
        self.background.jobs[id as usize].stage = Stage::Ready;
    }

    pub(super) fn step_jobs<I: Io>(&mut self, io: &mut I) {
        let ready = self.background.jobs.iter().filter(|(_, job)| job.stage == Stage::Ready);
        let ready: Vec<u32> = ready.map(|(id, _)| id as u32).collect();
        ready.into_iter().for_each(|id| self.step_job(io, id));
    }

    fn step_job<I: Io>(&mut self, io: &mut I, id: u32) {
        loop {
            let next = match self.background.jobs[id as usize].copy.take() {
                Some(copy) => self.end_copy(id, copy),
                None => self.plan_job(io, id),
            };
            match next {
                Next::Again => {}
                Next::Wait => return,
                Next::Copy(plan) => match self.begin_copy(io, id, plan) {
                    Next::End(end) => return self.end_job(id, end),
                    _ => return,
                },
                Next::End(end) => return self.end_job(id, end),
            }
        }
    }

    fn end_job(&mut self, id: u32, end: End) {
        let mut job = self.background.jobs.remove(id as usize);
        for volume in job.pins.drain(..) {
            self.nodes.unpin_node(NodeKey::of(volume, job.cluster).0);
        }
        let (stripe, _) = whole_cluster(job.volume, job.cluster);
        self.give_claim_up(stripe, Claimant::Job(id));
        self.job_ended(&job, end);
    }

    // ---- plans

    fn plan_job<I: Io>(&mut self, io: &mut I, id: u32) -> Next {
        let Job { volume, cluster, aim, .. } = self.background.jobs[id as usize];
        if self.fault.is_some() || self.draining {
            return Next::End(End::Failed(Status::WriteFault));
        }
        match self.volumes.get(&volume) {
            None => return Next::End(End::Failed(Status::VolumeGone)),
            Some(known) if known.fault.is_some() => return Next::End(End::Failed(Status::VolumeFaulted)),
            // What is fetched was there before any cut, named or not.
            Some(_) if aim != Aim::Fetched && !self.may_work_on(volume) => return Next::End(End::Later),
            Some(_) => {}
        }
        let (key, _) = NodeKey::of(volume, cluster);
        if let Err(next) = self.job_node(io, id, key) {
            return next;
        }
        assert!(self.openings.newest(volume, cluster).is_none(), "no write of a claimed cluster is on its way");
        let purpose = if aim == Aim::Tidy { Use::Unmap } else { Use::Write };
        if !self.commit.has_room(self.changing + RECORDS, purpose) || !self.map_has_room() {
            self.commit.force();
            self.checkpoint.want();
            return Next::End(End::Later);
        }
        match aim {
            Aim::Tidy => self.plan_tidy(volume, cluster),
            Aim::Thicken => self.plan_thick(io, id),
            Aim::Fill => self.plan_fill(io, id),
            Aim::Fetched => self.plan_fetched(id),
        }
    }

    /// Sees to it that the job's own node is here, and stays.
    fn job_node<I: Io>(&mut self, io: &mut I, id: u32, key: NodeKey) -> Result<(), Next> {
        let seeking = self.background.jobs[id as usize].seeking;
        if let Some((sought, failures)) = seeking
            && self.nodes.has_failed(sought, Some(failures))
        {
            return Err(Next::End(End::Failed(Status::UnrecoveredRead)));
        }
        if self.background.jobs[id as usize].pins.contains(&key.volume) {
            return Ok(());
        }
        match self.require(io, key) {
            Readiness::Ready => {
                self.nodes.pin_node(key);
                self.background.jobs[id as usize].pins.push(key.volume);
                Ok(())
            }
            Readiness::Loading => {
                self.background.jobs[id as usize].seeking = Some((key, self.nodes.failures()));
                Err(Next::Wait)
            }
            Readiness::Full => Err(Next::End(End::Later)),
        }
    }

    /// The same for nodes of parents.
    fn job_parents<I: Io>(&mut self, io: &mut I, id: u32, level: Level, open: Open) -> Result<(), Next> {
        let mut pins = std::mem::take(&mut self.background.jobs[id as usize].pins);
        let gathered = self.gather_below(io, level, open, &mut pins);
        let failures = self.nodes.failures();
        let job = &mut self.background.jobs[id as usize];
        job.pins = pins;
        match gathered {
            Ok(Gathered::Ready) => Ok(()),
            Ok(Gathered::Loading(key)) => {
                job.seeking = Some((key, failures));
                Err(Next::Wait)
            }
            // Chains are not worth a fetch; who fills asks for it first.
            Ok(Gathered::Absent(..)) if job.aim == Aim::Thicken => Err(Next::End(End::Done)),
            Ok(Gathered::Absent(..)) => Err(Next::End(End::Later)),
            Err(status) => Err(Next::End(End::Failed(status))),
        }
    }

    fn plan_tidy(&mut self, volume: VolumeId, cluster: u32) -> Next {
        let (node, index) = self.nodes.ready(volume, cluster);
        match tidy(&chain_of(node, index), &self.volumes[&volume].views) {
            Tidy::Clean => Next::End(End::Done),
            Tidy::Drop(version) => {
                self.drop_version(volume, cluster, version);
                Next::Again
            }
            Tidy::Merge { kept, gone, blocks: 0 } => {
                self.put(volume, cluster, kept, false);
                self.drop_version(volume, cluster, gone);
                Next::Again
            }
            Tidy::Merge { kept, gone, blocks } => {
                let sources = runs(blocks).map(|(first, count)| (Run::of(gone.place, first * B), count * B)).collect();
                Next::Copy(Plan { kept, gone: Some(gone), blocks, sources })
            }
        }
    }

    fn plan_thick<I: Io>(&mut self, io: &mut I, id: u32) -> Next {
        let Job { volume, cluster, .. } = self.background.jobs[id as usize];
        let live = Level { volume, at: None };
        let (node, index) = self.nodes.ready(volume, cluster);
        let top = node.seen(index, self.view_of(live)).next().copied();
        let Some(top) = top.filter(|_| node.partial_run(index) >= super::background::PARTIAL_MAX) else {
            return Next::End(End::Done);
        };
        let open = top.states.blocks(BlockState::Absent);
        if open == 0 {
            return Next::End(End::Done);
        }
        if let Err(next) = self.job_parents(io, id, live, Open::from_slice(&[(cluster, open)])) {
            return next;
        }
        let mut found = Found::default();
        let (node, index) = self.nodes.ready(volume, cluster);
        let below = node.lookup_below(index, 0..BLOCKS_PER_CLUSTER, top.birth, self.view_of(live));
        for segment in below.iter() {
            let blocks = segment.blocks().fold(0u16, |bits, block| bits | 1 << block) & open;
            for (first, count) in runs(blocks) {
                match segment.source {
                    Source::Device(place) => found.add(first, Run::of(place, first * B), count * B),
                    Source::Zero => {}
                    Source::Below => self.find_below(live, cluster, first, count, &mut found),
                }
            }
        }
        let kept = filled(top, found.blocks);
        if found.blocks == 0 {
            self.put(volume, cluster, kept, false);
            return Next::End(End::Done);
        }
        Next::Copy(Plan { kept, gone: None, blocks: found.blocks, sources: found.sources })
    }

    fn plan_fill<I: Io>(&mut self, io: &mut I, id: u32) -> Next {
        let Job { volume, cluster, .. } = self.background.jobs[id as usize];
        let Some(parent) = self.volumes[&volume].record.parent else { return Next::End(End::Done) };
        let views = Arc::clone(&self.volumes[&volume].views);
        let (node, index) = self.nodes.ready(volume, cluster);
        let chain = chain_of(node, index);
        let open = views.needs(&chain).undecided & self.behind(volume, cluster);
        if open == 0 {
            return Next::End(End::Done);
        }
        // As of a moment before the first version: nothing of the clone itself decides.
        let bottom = Level { volume, at: Some(parent.epoch) };
        if let Err(next) = self.job_parents(io, id, bottom, Open::from_slice(&[(cluster, open)])) {
            return next;
        }
        let mut found = Found::default();
        for (first, count) in runs(open) {
            self.find_below(bottom, cluster, first, count, &mut found);
        }
        if found.blocks == 0 {
            return Next::End(End::Done);
        }
        // The oldest version will do where every view sees it.
        let everybody = 0..views.points().len() + 1;
        let oldest = chain.last().copied().filter(|oldest| views.seeing(oldest.birth) == everybody);
        let none = Version { birth: parent.epoch, place: Place::NONE, states: BlockStates::ABSENT };
        let bottom = oldest.unwrap_or(none);
        let kept = Version { states: bottom.states.with_bits(found.blocks, BlockState::Data), ..bottom };
        Next::Copy(Plan { kept, gone: None, blocks: found.blocks, sources: found.sources })
    }

    /// Where blocks that no version of `level` decides are at the device, as far as they are.
    fn find_below(&self, level: Level, cluster: u32, first: u32, count: u32, found: &mut Found) {
        let mut segments: Vec<Segment> = Vec::new();
        self.look_below(level, cluster, first * B, (first + count) * B, &mut segments);
        let mut at = first;
        for segment in segments {
            if let Some(run) = segment.at {
                found.add(at, run, segment.len);
            }
            at += segment.len / B;
        }
    }

    // ---- copies

    fn begin_copy<I: Io>(&mut self, io: &mut I, id: u32, mut plan: Plan) -> Next {
        let fresh = plan.kept.place.is_none();
        if fresh && !self.has_space(1) {
            // More may come: from quarantine, or from the pool.
            let hopeless =
                self.space.counts().quarantined == 0 && matches!(self.slab_request, super::SlabRequest::Refused { .. });
            self.commit.force();
            self.background.wants_space = true;
            if self.space.available() > 0 {
                // What there is has to do for the map as it would be written now.
                self.checkpoint.want();
            }
            return Next::End(if hopeless { End::Failed(Status::CapacityExceeded) } else { End::Later });
        }
        let bytes = (plan.blocks.count_ones() * B) as usize;
        // Those who wait for a buffer were first.
        let lent = if self.parked.scratch.is_empty() { self.scratch.take(bytes) } else { None };
        let Some(lent) = lent else { return Next::End(End::Later) };
        if fresh {
            plan.kept.place = self.space.alloc().expect("there is space for one");
        }
        self.changing += RECORDS;
        let job = &mut self.background.jobs[id as usize];
        let views = Arc::clone(&self.volumes[&job.volume].views);
        job.copied += bytes as u64;
        let mut buf = lent.buf;
        let (mut pieces, kind) = match &job.fetched {
            Some(fetched) => {
                fetched.copy_to(plan.blocks, &mut buf);
                job.stage = Stage::Writing;
                (targets_of(&plan), Some(Kind::Write))
            }
            None => {
                job.stage = Stage::Reading;
                (pieces_of(plan.sources.iter().copied()), None)
            }
        };
        split_along(buf, &mut pieces);
        let outstanding = pieces.len() as u32;
        job.copy = Some(Copy { plan, views, fresh, pieces, rest: lent.rest, outstanding, status: Status::Success });
        self.submit_pieces(io, id, kind);
        Next::Wait
    }

    /// Sends every piece of the buffer to the device; `write`: of what kind.
    fn submit_pieces<I: Io>(&mut self, io: &mut I, id: u32, write: Option<Kind>) {
        let copy = self.background.jobs[id as usize].copy.as_mut().expect("a copy is under way");
        let sent: Vec<(Run, Data)> = copy
            .pieces
            .iter_mut()
            .map(|piece| (piece.at.expect("each has its run"), piece.data.take().expect("it is here")))
            .collect();
        for (piece, (run, data)) in sent.into_iter().enumerate() {
            let owner = Owner::Job { job: id, piece: piece as u32 };
            match write {
                Some(kind) => self.submit_write(io, owner, run, data, kind),
                None => self.submit_read(io, owner, run, data),
            }
        }
    }

    /// A piece has come back.
    pub(super) fn on_job_op<I: Io>(&mut self, io: &mut I, id: u32, piece: u32, data: Data, status: Status) {
        let job = &mut self.background.jobs[id as usize];
        let copy = job.copy.as_mut().expect("a copy is under way");
        copy.pieces[piece as usize].data = Some(data);
        copy.status = copy.status.and(status);
        copy.outstanding -= 1;
        if copy.outstanding > 0 {
            return;
        }
        if job.stage == Stage::Writing || copy.status != Status::Success {
            job.stage = Stage::Ready;
            return;
        }
        let buf = joined(&mut copy.pieces);
        copy.pieces = targets_of(&copy.plan);
        split_along(buf, &mut copy.pieces);
        copy.outstanding = copy.pieces.len() as u32;
        job.stage = Stage::Writing;
        self.submit_pieces(io, id, Some(Kind::Write));
    }

    /// Everything is at the device, or something failed.
    fn end_copy(&mut self, id: u32, mut copy: Copy) -> Next {
        self.changing -= RECORDS;
        self.scratch.give(Lent { buf: joined(&mut copy.pieces), rest: copy.rest.take() });
        let Job { volume, cluster, .. } = self.background.jobs[id as usize];
        let unchanged =
            self.fault.is_none() && self.volumes.get(&volume).is_some_and(|known| known.views == copy.views);
        let Plan { kept, gone, .. } = copy.plan;
        if copy.status != Status::Success || !unchanged {
            if copy.fresh {
                self.space.give_back(kept.place);
                self.space_changed = true;
            }
            return if copy.status == Status::Success { Next::Again } else { Next::End(End::Failed(copy.status)) };
        }
        self.put(volume, cluster, kept, copy.fresh);
        if let Some(gone) = gone {
            self.drop_version(volume, cluster, gone);
        }
        self.stats.clusters_copied += 1;
        Next::Again
    }

    /// A version is as said here now; `fresh`: with a place that was taken for it.
    pub(super) fn put(&mut self, volume: VolumeId, cluster: u32, version: Version, fresh: bool) {
        let lsn = self.record(&Record::Set { volume, cluster, version, freed: Place::NONE });
        if fresh {
            self.mapped.change(lsn, volume, 1);
            self.space.settle(version.place, lsn);
        }
    }

    fn drop_version(&mut self, volume: VolumeId, cluster: u32, version: Version) {
        let Version { birth, place, .. } = version;
        let lsn = self.record(&Record::Drop { volume, cluster, birth, freed: place });
        if place.is_some() {
            self.mapped.change(lsn, volume, -1);
            self.space.free(place, lsn, Ticket(self.ops.next_ticket()));
        }
        self.stats.versions_dropped += 1;
    }
}

/// Blocks that are at the device, ascending.
#[derive(Debug, Default)]
struct Found {
    blocks: u16,
    sources: Vec<(Run, u32)>,
}

impl Found {
    fn add(&mut self, first: u32, run: Run, len: u32) {
        for block in first..first + len / B {
            self.blocks |= 1 << block;
        }
        self.sources.push((run, len));
    }
}

/// The claim on a whole cluster.
fn whole_cluster(volume: VolumeId, cluster: u32) -> (StripeKey, std::ops::Range<u32>) {
    let first = cluster % CLUSTERS_PER_STRIPE * BLOCKS_PER_CLUSTER;
    (StripeKey { volume, stripe: cluster / CLUSTERS_PER_STRIPE }, first..first + BLOCKS_PER_CLUSTER)
}

/// Blocks next to each other: first and count, ascending.
fn runs(blocks: u16) -> impl Iterator<Item = (u32, u32)> {
    let starts = blocks & !(blocks << 1);
    ones(starts).map(move |first| (first, (!(blocks >> first)).trailing_zeros().min(BLOCKS_PER_CLUSTER - first)))
}

/// Where the blocks of a plan go.
fn targets_of(plan: &Plan) -> Vec<Segment> {
    let place = plan.kept.place;
    pieces_of(runs(plan.blocks).map(|(first, count)| (Run::of(place, first * B), count * B)))
}

fn pieces_of(runs: impl Iterator<Item = (Run, u32)>) -> Vec<Segment> {
    runs.map(|(run, len)| Segment { data: None, at: Some(run), len }).collect()
}

fn split_along(buf: Buf, pieces: &mut [Segment]) {
    let mut rest = Some(buf);
    let count = pieces.len();
    for (nth, piece) in pieces.iter_mut().enumerate() {
        let mut front = rest.take().expect("the pieces are as long as the buffer");
        if nth + 1 < count {
            rest = Some(front.split_off(piece.len as usize));
        }
        piece.data = Some(front.into());
    }
}

fn joined(pieces: &mut Vec<Segment>) -> Buf {
    let mut bufs = pieces.drain(..).map(|piece| piece.data.expect("nothing is at the device any more").into_own());
    let mut buf = bufs.next().expect("there is a piece");
    bufs.for_each(|piece| buf.join(piece));
    buf
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_the_blocks_next_to_each_other() {
        let of = |blocks| runs(blocks).collect::<Vec<_>>();
        assert_eq!(of(0), []);
        assert_eq!(of(u16::MAX), [(0, 16)]);
        assert_eq!(of(0b1000_0000_0110_1001), [(0, 1), (3, 1), (5, 2), (15, 1)]);
    }
}
