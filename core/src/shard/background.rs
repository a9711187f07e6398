//! What a shard does for the sake of later: versions that no view needs any more go, chains stay short, clones get what they look
//! through for.
//!
//! ```text
//! views of a volume changed -> course.rs   walks over its nodes, finds clusters that are not tidy      \
//! the 8th partial version (H4)             that cluster                                                 > job (copying.rs): claims the cluster,
//! a question (asking.rs): fill (C9)        the clusters of a range, one after the other                /    copies, changes the map
//! ```
//! All of it can be left at any point and done again: a job changes the map by records each of which leaves every view as it is.
//! What is known to be tidy is kept with the checkpoint; whatever else there is to do follows from the catalog and the map.
//!
//! Foreground comes first: few jobs at once, no scratch buffer while a part waits for one, and after each job a pause of twice
//! what it took while parts are under way. In a shard that is short of space the pause is left out and more jobs run, since
//! tidying gives clusters back.

use std::collections::VecDeque;
use std::sync::Arc;

use ringway_reactor::io::{Instant, Io};
use rustc_hash::FxHashMap;

use super::api::{Event, RecordLog};
use super::asking::Asking;
use super::copying::{Aim, End, Job};
use super::course::{Course, Tidied, is_tidy};
use super::{Shard, Volume};
use crate::ids::{Epoch, VolumeId};
use crate::limits::CLUSTERS_PER_RANGE;
use crate::map::{Record, Views};
use crate::volume::VolumeRecord;

/// Jobs at once, and where space is short.
const JOBS: usize = 2;
const JOBS_IN_NEED: usize = 8;
/// Partial versions one after the other, when the newest of them is filled (H4).
pub(super) const PARTIAL_MAX: usize = 8;
/// Clusters that wait to be filled: a write that makes a chain longer still finds the place for it again.
const THICK_MAX: usize = 4096;
/// After something that can go on only when others have, nanoseconds.
pub(super) const LATER_NS: u64 = 5_000_000;
/// The longest pause after a job.
const PAUSE_NS_MAX: u64 = 50_000_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Background {
    pub(super) jobs: slab::Slab<Job>,
    /// Volumes whose nodes are walked over, in turn.
    pub(super) courses: VecDeque<Course>,
    /// What the map of a volume is known to be tidy for. None: for the live volume alone.
    pub(super) tidied: FxHashMap<VolumeId, Tidied>,
    thick: VecDeque<(VolumeId, u32)>,
    pub(super) asking: VecDeque<Asking>,
    /// Fills that have ended, for those who asked: volume, cluster, how, bytes.
    filled: Vec<(VolumeId, u32, End, u64)>,
    /// No job starts before.
    resume_at: Instant,
    /// A job found no space.
    pub(super) wants_space: bool,
    /// When it can go on without any event.
    next: Option<Instant>,
}

impl Background {
    /// Whether there is nothing to do.
    pub(super) fn is_calm(&self) -> bool {
        self.jobs.is_empty() && self.courses.is_empty() && self.thick.is_empty() && self.asking.is_empty()
    }

    pub(super) fn due(&self) -> Instant {
        self.next.unwrap_or(Instant::NEVER)
    }

    /// Whether a job works on this volume.
    pub(super) fn works_on(&self, volume: VolumeId) -> bool {
        self.jobs.iter().any(|(_, job)| job.volume == volume)
    }

    pub(super) fn has_job(&self, volume: VolumeId, cluster: u32) -> bool {
        self.jobs.iter().any(|(_, job)| job.volume == volume && job.cluster == cluster)
    }

    /// How the fill of a cluster has ended.
    pub(super) fn take_filled(&mut self, volume: VolumeId, cluster: u32) -> Option<(End, u64)> {
        let at = self.filled.iter().position(|&(of, number, ..)| (of, number) == (volume, cluster))?;
        let (.., end, copied) = self.filled.swap_remove(at);
        Some((end, copied))
    }

    /// Whether clients come first for now; it is gone on with when that is over.
    pub(super) fn is_paused(&self, now: Instant) -> bool {
        now < self.resume_at
    }

    pub(super) fn later(&mut self, now: Instant) {
        self.resume_at = self.resume_at.max(now.plus_ns(LATER_NS));
    }
}

/// What one look at the background came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Went {
    /// There may be more to do at once.
    On,
    /// An event will say so, or there is nothing.
    Nowhere,
    /// Somebody else has to go on first.
    Later,
    /// Not before then.
    Until(Instant),
}

impl<L: RecordLog> Shard<L> {
    /// Whether nothing may be tidied of a volume for now: a cut that nobody can name yet may lie between any two of its versions.
    fn is_unsettled(&self, volume: VolumeId) -> bool {
        self.sealing.is_armed(volume)
    }

    pub(super) fn may_work_on(&self, volume: VolumeId) -> bool {
        let known = self.volumes.get(&volume);
        known.is_some_and(|known| known.fault.is_none()) && !self.is_unsettled(volume)
    }

    /// Goes on with what is under way, and starts more.
    pub(super) fn advance_background<I: Io>(&mut self, io: &mut I, out: &mut Vec<Event>) {
        self.background.next = None;
        if self.background.is_calm() && self.nodes.replayed.is_empty() {
            return;
        }
        self.step_jobs(io);
        let asked = self.advance_asking(io, out);
        if self.background.asking.is_empty() {
            self.background.filled.clear();
            self.fetching.forget_ended();
        }
        if self.fault.is_some() || self.draining {
            self.background.courses.clear();
            self.background.thick.clear();
            return;
        }
        self.look_at_replayed();
        if std::mem::take(&mut self.background.wants_space) {
            self.ask_for_slab(true, out);
        }
        let paused = self.background.is_paused(self.now);
        let went = if paused { Went::Nowhere } else { self.start_jobs(io) };
        let due = |went: Went| match went {
            Went::On => Some(self.now),
            Went::Later => Some(self.now.plus_ns(LATER_NS)),
            Went::Until(then) => Some(then),
            Went::Nowhere => None,
        };
        let pause = paused.then_some(self.background.resume_at);
        self.background.next = [due(asked), due(went), pause].into_iter().flatten().min();
    }

    fn is_short_of_space(&self) -> bool {
        let counts = self.space.counts();
        counts.free < counts.total / 10
    }

    fn start_jobs<I: Io>(&mut self, io: &mut I) -> Went {
        let most = if self.is_short_of_space() { JOBS_IN_NEED } else { JOBS };
        if self.background.jobs.len() >= most {
            return Went::Nowhere;
        }
        // What gives space back first.
        let went = self.advance_course(io, most);
        while self.background.jobs.len() < most
            && let Some((volume, cluster)) = self.background.thick.pop_front()
        {
            if self.may_work_on(volume) && !self.background.has_job(volume, cluster) {
                self.start_job(io, volume, cluster, Aim::Thicken);
            }
        }
        went
    }

    /// A job is over: pace, and tell whom it concerns.
    pub(super) fn job_ended(&mut self, job: &Job, end: End) {
        if job.aim == Aim::Fetched {
            return self.fetched_ended(job, end);
        }
        let took = self.now.0.saturating_sub(job.began.0);
        // A fill gives no space back: it is not hurried where that is short.
        let hurried = job.aim != Aim::Fill && self.is_short_of_space();
        if self.parts.len() > 0 && job.copied > 0 && !hurried {
            let pause = (2 * took).min(PAUSE_NS_MAX);
            self.background.resume_at = self.background.resume_at.max(self.now.plus_ns(pause));
        }
        if end == End::Later {
            self.background.later(self.now);
        }
        match job.aim {
            Aim::Tidy => self.tidied_one(job.volume, job.cluster, end),
            Aim::Fill => self.background.filled.push((job.volume, job.cluster, end, job.copied)),
            Aim::Thicken if end == End::Later => self.thicken(job.volume, job.cluster),
            Aim::Thicken | Aim::Fetched => {}
        }
    }

    /// A record has changed a cluster's versions.
    pub(super) fn watch_chain(&mut self, record: &Record) {
        let Record::Set { volume, cluster, .. } = *record else { return };
        let (node, index) = self.nodes.ready(volume, cluster);
        if node.has_older(index) && node.partial_run(index) >= PARTIAL_MAX {
            self.thicken(volume, cluster);
        }
    }

    fn thicken(&mut self, volume: VolumeId, cluster: u32) {
        let thick = &mut self.background.thick;
        if thick.len() < THICK_MAX && !thick.contains(&(volume, cluster)) {
            thick.push_back((volume, cluster));
        }
    }

    // ---- views

    /// Views of every volume, as the records of all say.
    pub(super) fn find_all_views(&mut self) {
        let mut lookers: FxHashMap<VolumeId, Vec<Arc<VolumeRecord>>> = FxHashMap::default();
        for Volume { record, .. } in self.volumes.values() {
            let seen = record.view.map(|view| view.origin).into_iter().chain(record.parent.map(|parent| parent.volume));
            seen.for_each(|id| lookers.entry(id).or_default().push(Arc::clone(record)));
        }
        let ids: Vec<VolumeId> = self.volumes.keys().copied().collect();
        for id in ids {
            let lookers = lookers.remove(&id).unwrap_or_default();
            let record = Arc::clone(&self.volumes[&id].record);
            self.set_views(id, Views::of(&record, lookers.iter().map(|record| &**record)));
        }
    }

    /// A record has come, gone or changed: who may look at what it names?
    pub(super) fn views_may_have_changed(&mut self, before: Option<&VolumeRecord>, now: Option<&VolumeRecord>) {
        let mut concerned: Vec<VolumeId> = Vec::new();
        for record in before.into_iter().chain(now) {
            concerned.push(record.id);
            concerned.extend(record.view.map(|view| view.origin));
            concerned.extend(record.parent.map(|parent| parent.volume));
        }
        concerned.sort_unstable();
        concerned.dedup();
        concerned.into_iter().for_each(|id| self.find_views(id));
    }

    fn find_views(&mut self, id: VolumeId) {
        let Some(volume) = self.volumes.get(&id) else { return };
        let views = Views::of(&volume.record, self.volumes.values().map(|other| &*other.record));
        self.set_views(id, views);
    }

    fn set_views(&mut self, id: VolumeId, views: Views) {
        let volume = self.volumes.get_mut(&id).expect("just seen");
        if volume.record.is_snapshot() {
            return;
        }
        if *volume.views != views {
            volume.views = Arc::new(views);
        }
        self.follow_views(id);
    }

    /// What is tidy for the views there were may not be for those there are.
    fn follow_views(&mut self, id: VolumeId) {
        let views = Arc::clone(&self.volumes[&id].views);
        let before = self.background.tidied.get(&id).map(|tidied| Arc::clone(&tidied.views)).unwrap_or_default();
        self.correct_course(id);
        if *views != *before {
            self.background.widen(id, &views);
        }
        if !before.are_all_in(&views) {
            self.begin_course(id);
        }
    }

    /// Nodes have come that recovery had records for: a cut between two of their versions may have gone with the process, and no
    /// checkpoint knew of it.
    pub(super) fn look_at_replayed(&mut self) {
        for key in std::mem::take(&mut self.nodes.replayed) {
            let (Some(volume), Some(node)) = (self.volumes.get(&key.volume), self.nodes.get(key)) else { continue };
            if (0..CLUSTERS_PER_RANGE).any(|index| !is_tidy(node, index, &volume.views)) {
                let gone = Views::new(vec![Epoch(0)], volume.views.dead(), false);
                self.background.widen(key.volume, &gone);
                self.begin_course(key.volume);
            }
        }
    }

    /// The volume is gone, and with it everything that was to be done for it.
    pub(super) fn forget_background(&mut self, volume: VolumeId) {
        let background = &mut self.background;
        background.courses.retain(|course| course.volume != volume);
        background.thick.retain(|&(of, _)| of != volume);
        background.tidied.remove(&volume);
    }
}

impl Volume {
    pub(super) fn new(record: Arc<VolumeRecord>) -> Volume {
        Volume { given: Arc::clone(&record), record, views: Arc::default(), fault: None }
    }
}
