//! A walk over the nodes of a volume whose views have changed, in search of clusters with more versions than their views need.
//!
//! A node is done with when a look at it finds nothing to do and no job works on it. The walk is begun only when every operation
//! has ended that was under way as the views changed: a read of a snapshot that has gone may still be at the device, and must not
//! see what is copied over its blocks.

use std::sync::Arc;

use ringway_reactor::io::{Instant, Io};
use smallvec::SmallVec;

use super::Shard;
use super::api::RecordLog;
use super::background::{Background, LATER_NS, Went};
use super::copying::{Aim, End};
use super::nodes::Readiness;
use crate::checkpoint::TidiedViews;
use crate::ids::{Lsn, VolumeId};
use crate::limits::CLUSTERS_PER_RANGE;
use crate::map::{MapNode, NodeKey, Tidy, Version, Views, tidy};

/// After a walk on which something could not be read, copied or recorded, nanoseconds.
const RETRY_NS: u64 = 1_000_000_000;

/// The versions of a cluster, newest first.
pub(super) type Chain = SmallVec<[Version; 8]>;

/// See the module.
#[derive(Debug)]
pub(super) struct Course {
    pub(super) volume: VolumeId,
    /// What the map will be tidy for.
    views: Arc<Views>,
    /// Nodes to look at, the last first; `None` until it has begun.
    todo: Option<Vec<NodeKey>>,
    /// Every operation before this one was under way when the views changed.
    ticket: u64,
    /// Not before: something could not be done the last time.
    begin_at: Instant,
    /// Where the look at the node goes on, and whether it has found something before.
    index: u32,
    found: bool,
    /// Clusters of the node that cannot be tidied now, and whether there have been any.
    skip: u128,
    skipped: bool,
    /// The node was on its way, and so many had failed to come by then.
    seeking: Option<u64>,
    /// Views have gone since the walk began: what it has passed may have more to spare by now.
    again: bool,
}

/// What the map of a volume is tidy for, as soon as a record is durable.
#[derive(Clone, Debug, Default)]
pub(super) struct Tidied {
    pub(super) views: Arc<Views>,
    lsn: Lsn,
    /// As long as it is not.
    before: Arc<Views>,
}

impl Background {
    /// The map is tidy for these views too: there are only more of them.
    pub(super) fn widen(&mut self, volume: VolumeId, views: &Views) {
        let tidied = self.tidied.entry(volume).or_default();
        tidied.views = Arc::new(tidied.views.and(views));
        tidied.before = Arc::new(tidied.before.and(views));
    }

    /// The map is tidy for these views once the record is durable.
    fn settle(&mut self, volume: VolumeId, views: Arc<Views>, lsn: Lsn) {
        let tidied = self.tidied.entry(volume).or_default();
        tidied.before = std::mem::replace(&mut tidied.views, views);
        tidied.lsn = lsn;
    }

    /// Whether a walk is under way that may give clusters back. Not while a job waits for writes of its cluster: one of those may
    /// be the very write that would wait for the job.
    pub(super) fn may_free_space(&self, now: Instant) -> bool {
        let stuck = self.jobs.iter().any(|(_, job)| job.waits_for_writes());
        !stuck && self.courses.iter().any(|course| course.begin_at <= now)
    }

    /// What the map is tidy for as of the journal's durable end, for a checkpoint.
    pub(super) fn tidied_durably(&self, durable: Lsn) -> Vec<TidiedViews> {
        let of = |(&volume, tidied): (&VolumeId, &Tidied)| {
            let views = if tidied.lsn <= durable { &tidied.views } else { &tidied.before };
            TidiedViews { volume, views: (**views).clone() }
        };
        let mut all: Vec<TidiedViews> = self.tidied.iter().map(of).collect();
        all.retain(|tidied| tidied.views != Views::default());
        all.sort_by_key(|tidied| tidied.volume);
        all
    }

    /// What a checkpoint has kept.
    pub(super) fn recovered(tidied: Vec<TidiedViews>) -> Background {
        let entry = |TidiedViews { volume, views }| {
            let views = Arc::new(views);
            (volume, Tidied { before: Arc::clone(&views), views, lsn: Lsn(0) })
        };
        let mut background = Background::default();
        background.tidied = tidied.into_iter().map(entry).collect();
        background
    }
}

impl<L: RecordLog> Shard<L> {
    /// Walks over all of a volume's nodes.
    pub(super) fn begin_course(&mut self, volume: VolumeId) {
        self.calm = false;
        if self.background.courses.iter().all(|course| course.volume != volume) {
            let (views, ticket) = (Arc::clone(&self.volumes[&volume].views), self.ops.next_ticket());
            self.background.courses.push_back(Course::new(volume, views, ticket));
        }
    }

    /// The views of a volume have changed while a walk over its nodes is under way.
    pub(super) fn correct_course(&mut self, volume: VolumeId) {
        let (views, ticket) = (&self.volumes[&volume].views, self.ops.next_ticket());
        let course = self.background.courses.iter_mut().find(|course| course.volume == volume);
        if let Some(course) = course
            && course.views != *views
        {
            course.again |= !course.views.are_all_in(views);
            (course.views, course.ticket, course.index) = (Arc::clone(views), ticket, 0);
        }
    }

    /// Starts jobs, up to `most` at once, for the first course in line.
    pub(super) fn advance_course<I: Io>(&mut self, io: &mut I, most: usize) -> Went {
        let Some(mut course) = self.background.courses.pop_front() else { return Went::Nowhere };
        let volume = course.volume;
        if self.volumes.get(&volume).is_none_or(|known| known.fault.is_some()) {
            return Went::On;
        }
        if !self.may_work_on(volume) {
            self.background.courses.push_back(course);
            return Went::Later;
        }
        if self.now < course.begin_at {
            let begin_at = course.begin_at;
            self.background.courses.push_back(course);
            let all = self.background.courses.iter().map(|course| course.begin_at);
            return Went::Until(all.min().unwrap_or(begin_at).max(self.now.plus_ns(LATER_NS)));
        }
        if self.ops.oldest_ticket() < course.ticket {
            self.background.courses.push_back(course);
            return if self.background.courses.len() > 1 { Went::Later } else { Went::Nowhere };
        }
        let went = self.go_on(io, &mut course, most);
        match went {
            None => self.end_course(course),
            Some(_) => self.background.courses.push_front(course),
        }
        went.unwrap_or(Went::On)
    }

    /// One look at one node; `None` at the end of the walk.
    fn go_on<I: Io>(&mut self, io: &mut I, course: &mut Course, most: usize) -> Option<Went> {
        if course.todo.is_none() {
            let mut todo = self.nodes.of_volume(course.volume);
            todo.reverse();
            course.todo = Some(todo);
        }
        let key = *course.todo.as_ref().expect("just made").last()?;
        if self.nodes.has_failed(key, course.seeking) {
            course.todo.as_mut().expect("just made").pop();
            (course.seeking, course.skipped) = (None, true);
            return Some(Went::On);
        }
        match self.require(io, key) {
            Readiness::Ready => course.seeking = None,
            Readiness::Loading => {
                course.seeking = Some(self.nodes.failures());
                return Some(Went::Nowhere);
            }
            Readiness::Full => return Some(Went::Later),
        }
        self.look(io, course, key, most)
    }

    fn look<I: Io>(&mut self, io: &mut I, course: &mut Course, key: NodeKey, most: usize) -> Option<Went> {
        while course.index < CLUSTERS_PER_RANGE {
            let index = course.index;
            let node = self.nodes.get(key).expect("it is ready");
            if course.skip & 1 << index == 0 && !is_tidy(node, index, &course.views) {
                if self.background.jobs.len() >= most {
                    return Some(Went::Nowhere);
                }
                course.found = true;
                let cluster = key.cluster(index);
                if !self.background.has_job(course.volume, cluster) {
                    self.start_job(io, course.volume, cluster, Aim::Tidy);
                }
            }
            course.index += 1;
        }
        course.index = 0;
        let working = self.background.jobs.iter().any(|(_, job)| NodeKey::of(job.volume, job.cluster).0 == key);
        if working {
            return Some(Went::Nowhere);
        }
        if std::mem::take(&mut course.found) {
            return Some(Went::On);
        }
        course.skip = 0;
        course.todo.as_mut().expect("a node of it was looked at").pop();
        Some(Went::On)
    }

    fn end_course(&mut self, course: Course) {
        // Who waits for space has nothing left to wait for.
        self.space_changed = true;
        if course.again {
            return self.begin_course(course.volume);
        }
        self.stats.courses += 1;
        if course.skipped {
            let ticket = self.ops.next_ticket();
            let begin_at = self.now.plus_ns(RETRY_NS);
            let again = Course { begin_at, ..Course::new(course.volume, course.views, ticket) };
            return self.background.courses.push_back(again);
        }
        let lsn = self.commit.last();
        self.background.settle(course.volume, course.views, lsn);
    }

    /// A job of a course has ended.
    pub(super) fn tidied_one(&mut self, volume: VolumeId, cluster: u32, end: End) {
        let End::Failed(_) = end else { return };
        let (key, index) = NodeKey::of(volume, cluster);
        let course = self.background.courses.iter_mut().find(|course| course.volume == volume);
        if let Some(course) = course
            && course.todo.as_ref().and_then(|todo| todo.last()) == Some(&key)
        {
            course.skip |= 1 << index;
            course.skipped = true;
        }
    }
}

impl Course {
    fn new(volume: VolumeId, views: Arc<Views>, ticket: u64) -> Course {
        Course {
            volume,
            begin_at: Instant(0),
            views,
            todo: None,
            ticket,
            index: 0,
            found: false,
            skip: 0,
            skipped: false,
            seeking: None,
            again: false,
        }
    }
}

/// The versions of a cluster.
pub(super) fn chain_of(node: &MapNode, index: u32) -> Chain {
    node.chain(index).copied().collect()
}

pub(super) fn is_tidy(node: &MapNode, index: u32, views: &Views) -> bool {
    let Some(newest) = node.newest(index) else { return true };
    // What nearly every cluster is: one version with data that the live volume sees.
    if !node.has_older(index) && newest.states.any_data() && views.seeing(newest.birth).contains(&views.points().len())
    {
        return true;
    }
    tidy(&chain_of(node, index), views) == Tidy::Clean
}
