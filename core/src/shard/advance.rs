//! What a shard does besides the parts: commit rounds, checkpoints, erasure, slabs, and waking those who wait for room.

use ringway_reactor::io::{Instant, Io};

use super::api::{Event, RecordLog};
use super::parts::{PartKey, Stage};
use super::{Shard, SlabRequest};
use crate::request::Status;

/// A shard asks for another slab when it has fewer free clusters than this part of a slab left.
const LOW_SPACE_PART: u64 = 8;
/// After the pool had no slab left, nanoseconds until it is asked again.
const REFUSED_NS: u64 = 1_000_000_000;

impl<L: RecordLog> Shard<L> {
    /// Everything that can go on without a part.
    pub(super) fn advance<I: Io>(&mut self, io: &mut I, out: &mut Vec<Event>) {
        self.reclaim();
        self.punch(io);
        self.resume_loads(io);
        self.advance_erasure(io, out);
        self.advance_commit(io, out);
        self.advance_checkpoint(io, out);
        // A checkpoint may want its round at once.
        self.advance_commit(io, out);
        self.ask_for_slab(false, out);
        self.unpark();
        self.advance_drain(out);
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

    /// The part needs more clusters than there are: it waits as long as some may come, and fails only in a full pool (H7).
    pub(super) fn park_for_space(&mut self, key: PartKey, out: &mut Vec<Event>) {
        if self.space.quarantine_lsn().is_some_and(|lsn| lsn > self.commit.durable()) {
            self.commit.force();
        }
        let quarantined = self.space.counts().quarantined > 0;
        if !quarantined {
            self.ask_for_slab(true, out);
        }
        let asked = matches!(self.slab_request, SlabRequest::Asked { .. });
        let in_hand = !self.openings.is_empty() || !self.erasing.is_empty();
        if !quarantined && !asked && !in_hand {
            return self.finish(key, Status::CapacityExceeded, out);
        }
        self.parts.at(key).stage = Stage::Parked;
        self.parked.space.push(key);
        self.stats.waits += 1;
    }

    fn ask_for_slab(&mut self, urgent: bool, out: &mut Vec<Event>) {
        let low = u64::from(self.space.geometry().clusters_per_slab()) / LOW_SPACE_PART;
        let wanted = urgent || self.space.available() < low;
        let may_ask = match self.slab_request {
            SlabRequest::None => true,
            SlabRequest::Asked { urgent: asked } => urgent && !asked,
            SlabRequest::Refused { until } => self.now >= until,
        };
        if wanted && may_ask && self.fault.is_none() && !self.draining {
            self.slab_request = SlabRequest::Asked { urgent };
            out.push(Event::NeedSlab { urgent });
        }
    }

    /// The pool has no slab left.
    pub fn on_no_slab(&mut self) {
        self.slab_request = SlabRequest::Refused { until: self.now.plus_ns(REFUSED_NS) };
        self.space_changed = true;
    }

    fn advance_drain(&mut self, out: &mut Vec<Event>) {
        if !self.draining || self.drained || self.parts.len() > 0 || self.ops.len() > 0 {
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
        self.commit.due().min(self.checkpoint.due())
    }
}
