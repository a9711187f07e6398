//! What a shard does besides the parts: commit rounds, checkpoints, erasure, slabs, and waking those who wait for room.

use ringway_reactor::io::{Instant, Io};

use super::api::{Event, RecordLog};
use super::parts::{PartKey, Stage};
use super::{Shard, SlabRequest};
use crate::limits::CLUSTER;
use crate::map::PAGE_BYTES;
use crate::request::Status;

/// A shard asks for another slab when it has fewer free clusters than this part of a slab left.
pub(super) const LOW_SPACE_PART: u64 = 8;
/// Bytes of a checkpoint's image for each node with one page.
const IMAGE_BYTES_A_NODE: u64 = 40;
/// After the pool had no slab left, nanoseconds until it is asked again.
const REFUSED_NS: u64 = 100_000_000;

impl<L: RecordLog> Shard<L> {
    /// Everything that can go on without a part.
    pub(super) fn advance<I: Io>(&mut self, io: &mut I, out: &mut Vec<Event>) {
        self.reclaim();
        self.punch(io);
        self.resume_loads(io);
        self.advance_erasure(io, out);
        self.advance_sealing(out);
        self.advance_fetching(io, out);
        self.advance_background(io, out);
        self.answer_unfetched(out);
        self.advance_commit(io, out);
        self.advance_checkpoint(io, out);
        // A checkpoint may want its round at once.
        self.advance_commit(io, out);
        self.advance_giving(io, out);
        self.ask_for_slab(false, out);
        self.unpark();
        self.advance_drain(out);
    }

    /// Whether there is more of something that parts may wait for.
    pub(super) fn has_changed(&self) -> bool {
        self.journal_changed || self.space_changed || self.nodes_changed
    }

    /// Queues again who waited for something of which there is more now.
    fn unpark(&mut self) {
        if std::mem::take(&mut self.journal_changed) {
            self.ready.extend(self.parked.journal.drain(..));
        }
        if std::mem::take(&mut self.space_changed) {
            self.ready.extend(self.parked.space.drain(..));
        }
        if std::mem::take(&mut self.nodes_changed) {
            self.ready.extend(self.parked.nodes.drain(..));
        }
    }

    /// Whether data may take so many more clusters: what a checkpoint would now need for changed nodes stays free, or a pool full
    /// of lone clusters could never write its map again (H18). The reserve alone is for a map that is dense.
    pub(super) fn has_space(&self, places: u64) -> bool {
        let left = self.space.available().checked_sub(places);
        left.is_some_and(|left| self.checkpoint_fits(left) || self.nodes.changed_pages() == 0)
    }

    /// Whether another node may be changed that was clean. Pages are replaced, and the old ones held for two checkpoints: so one
    /// of them takes at most a third of what is left.
    pub(super) fn map_has_room(&self) -> bool {
        self.checkpoint_fits(self.space.counts().free / 3) || self.nodes.changed_pages() == 0
    }

    fn checkpoint_fits(&self, clusters: u64) -> bool {
        self.checkpoint_surely_fits(clusters) || self.checkpoint_clusters(self.nodes.changed_pages()) <= clusters
    }

    /// The same, known at once; it may say no where there would be room.
    pub(super) fn checkpoint_surely_fits(&self, clusters: u64) -> bool {
        self.checkpoint_clusters(self.nodes.changed_pages_bound()) <= clusters
    }

    fn checkpoint_clusters(&self, pages: usize) -> u64 {
        let image = (self.nodes.table.len() + pages) as u64 * IMAGE_BYTES_A_NODE + self.space.counts().total / 8;
        (pages as u64 + 1).div_ceil(CLUSTER / PAGE_BYTES as u64) + image.div_ceil(CLUSTER)
    }

    /// The part would change a node, and has to wait until a checkpoint has written those that are changed already.
    pub(super) fn park_for_map(&mut self, key: PartKey) {
        self.parts.at(key).stage = Stage::Parked;
        self.parked.space.push(key);
        self.stats.waits += 1;
        self.checkpoint.want();
    }

    /// The part needs more clusters than there are: it waits as long as some may come, and fails only in a full pool (H7).
    pub(super) fn park_for_space(&mut self, key: PartKey, places: u64, out: &mut Vec<Event>) {
        if self.space.quarantine_lsn().is_some_and(|lsn| lsn > self.commit.durable()) {
            self.commit.force();
        }
        let quarantined = self.space.counts().quarantined > 0;
        if !quarantined {
            self.ask_for_slab(true, out);
        }
        let asked = self.slab_request == SlabRequest::Asked;
        let tidying = self.background.may_free_space(self.now);
        let in_hand = !self.openings.is_empty() || !self.erasing.is_empty() || tidying;
        if !quarantined && !asked && !in_hand {
            if places <= self.space.available() {
                return self.park_for_map(key);
            }
            return self.finish(key, Status::CapacityExceeded, out);
        }
        self.parts.at(key).stage = Stage::Parked;
        self.parked.space.push(key);
        self.stats.waits += 1;
    }

    pub(super) fn ask_for_slab(&mut self, urgent: bool, out: &mut Vec<Event>) {
        let low = u64::from(self.space.geometry().clusters_per_slab()) / LOW_SPACE_PART;
        let wanted = urgent || self.space.available() < low;
        let may_ask = match self.slab_request {
            SlabRequest::None => true,
            SlabRequest::Asked => false,
            SlabRequest::Refused { until } => self.now >= until,
        };
        if wanted && may_ask && self.fault.is_none() && !self.draining {
            self.slab_request = SlabRequest::Asked;
            out.push(Event::NeedSlab { urgent });
        }
    }

    /// The pool has no slab left.
    pub fn on_no_slab(&mut self) {
        self.calm = false;
        self.slab_request = SlabRequest::Refused { until: self.now.plus_ns(REFUSED_NS) };
        self.space_changed = true;
    }

    /// Whether it has to run in each turn for the time being: it goes on by steps that no event announces, or waits for what
    /// it shares with others, and nobody says when there is more of that.
    #[must_use]
    pub fn wants_every_turn(&self) -> bool {
        let parked = &self.parked;
        let waiting = !(parked.journal.is_empty()
            && parked.space.is_empty()
            && parked.nodes.is_empty()
            && parked.scratch.is_empty());
        waiting
            || self.nodes.is_stalled()
            || !self.erasing.is_empty()
            || self.background.due() <= self.now
            || self.fetching.due() <= self.now
            || self.commit.is_forced()
            || self.checkpoint.is_between_steps()
            || self.giving.is_active()
            || self.sealing.wants_turn()
            || (self.draining && !self.drained)
    }

    /// Whether [`Shard::advance`] has nothing to do before a part, or the end of an operation of its own, makes it some.
    pub(super) fn is_calm(&self) -> bool {
        !self.has_changed()
            && !self.wants_every_turn()
            && self.slab_request == SlabRequest::None
            && self.background.is_calm()
            && self.fetching.is_calm()
            && self.nodes.replayed.is_empty()
            && self.released.is_empty()
            && !self.sealing.is_sealing()
            && self.space.is_calm()
            && self.commit.is_calm()
            && !self.checkpoint.is_running()
            && self.checkpoint.due() == Instant::NEVER
    }

    fn advance_drain(&mut self, out: &mut Vec<Event>) {
        if !self.draining
            || self.drained
            || self.parts.len() > 0
            || self.ops.len() > 0
            || !self.background.jobs.is_empty()
        {
            return;
        }
        if self.fault.is_none() {
            if !self.commit.is_idle() {
                return self.commit.force();
            }
            if self.checkpoint.is_running() {
                return;
            }
            if self.checkpoint.covered() < self.commit.last() {
                return self.checkpoint.want();
            }
        }
        self.drained = true;
        out.push(Event::Drained);
    }

    /// When [`Shard::execute`] has to run although nothing has arrived.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        if self.fault.is_some() {
            return Instant::NEVER;
        }
        // A shard that was refused a slab asks again then, if it still wants one.
        let refused = match self.slab_request {
            SlabRequest::Refused { until } if until > self.now => until,
            _ => Instant::NEVER,
        };
        self.commit.due().min(self.checkpoint.due()).min(self.background.due()).min(self.fetching.due()).min(refused)
    }
}
