//! Slabs on their way back to the pool (H7): one shard's deleted data makes room for the others.
//!
//! ```text
//! empty -> not used any more -> Release record, durable -> Event::SlabReleased -> the catalog says that nobody owns it
//! ```
//! A slab is empty when the unmapping of its last cluster is durable, nothing is at the device for it, and neither of the last
//! two checkpoints has pages or chunks there. The record goes into a later group of the journal than what emptied the slab, so
//! that group is vouched for: if it rots, that is damage and not a tail (C13), before another shard's data can be taken for ours.
//!
//! One empty slab is kept for what comes next, unless another shard has to go without.

use ringway_reactor::io::Io;

use super::Shard;
use super::advance::LOW_SPACE_PART;
use super::api::{Event, RecordLog};
use crate::ids::Lsn;
use crate::map::Record;
use crate::space::SlabId;

/// Empty slabs that a shard keeps although it needs none.
const SPARE: usize = 1;
/// Checkpoints that are made for the sake of a slab that another shard wants: the last two hold what they name.
const CHECKPOINTS: u64 = 3;

/// What goes back, and who asks for it.
#[derive(Debug, Default)]
pub(super) struct Giving {
    /// Released by this record.
    leaving: Option<(SlabId, Lsn)>,
    /// The pool has none for a shard that needs one.
    wanted: Option<Wanted>,
}

/// What is done to give one ends with checkpoint `until`; after checkpoint `looked` there was nothing yet.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    until: u64,
    looked: Option<u64>,
}

impl Giving {
    /// Whether something is on its way.
    pub(super) fn is_active(&self) -> bool {
        self.leaving.is_some() || self.wanted.is_some()
    }
}

impl<L: RecordLog> Shard<L> {
    /// The pool has no slab for a shard that needs one; [`Event::SlabReleased`] or [`Event::SlabKept`] follows.
    pub fn on_slab_wanted(&mut self) {
        self.calm = false;
        self.giving.wanted = Some(Wanted { until: self.stats.checkpoints + CHECKPOINTS, looked: None });
    }

    /// Gives back what can be.
    pub(super) fn advance_giving<I: Io>(&mut self, io: &mut I, out: &mut Vec<Event>) {
        if let Some((slab, lsn)) = self.giving.leaving {
            if self.commit.durable() < lsn {
                if self.fault.is_some() {
                    return self.keep_slabs(out);
                }
                self.commit.force();
                return self.advance_commit(io, out);
            }
            self.giving = Giving::default();
            out.push(Event::SlabReleased(slab));
        }
        let keep = if self.giving.wanted.is_some() { 0 } else { SPARE };
        if self.giving.wanted.is_none() && self.space.empty_slabs() <= keep {
            return;
        }
        if self.fault.is_some() || self.draining {
            return self.keep_slabs(out);
        }
        if self.space.empty_slabs() <= keep || !self.can_do_without_one() {
            return self.make_one_empty(out);
        }
        if !self.journal_has_room(1) {
            self.checkpoint.want();
            return self.commit.force();
        }
        let slab = self.space.last_empty_slab().expect("there are some");
        self.space.remove_slab(slab).expect("nothing of it is in use");
        let lsn = self.record(&Record::Release { slab });
        self.giving.leaving = Some((slab, lsn));
        self.commit.force();
        self.advance_commit(io, out);
    }

    /// Checkpoints until one is empty, if they may help whoever wants one.
    fn make_one_empty(&mut self, out: &mut Vec<Event>) {
        let made = self.stats.checkpoints;
        let Some(wanted) = &mut self.giving.wanted else { return };
        if wanted.looked == Some(made) {
            return;
        }
        wanted.looked = Some(made);
        if made >= wanted.until || !self.space.may_empty_a_slab() {
            return self.keep_slabs(out);
        }
        self.commit.force();
        self.checkpoint.want();
    }

    fn keep_slabs(&mut self, out: &mut Vec<Event>) {
        if self.giving.wanted.take().is_some() {
            out.push(Event::SlabKept);
        }
    }

    /// Whether reserve, map and the next writes have room without an empty slab.
    fn can_do_without_one(&self) -> bool {
        let slab = u64::from(self.space.geometry().clusters_per_slab());
        let left = self.space.available().checked_sub(slab);
        let free = self.space.counts().free - slab;
        left.is_some_and(|left| left >= slab / LOW_SPACE_PART) && self.checkpoint_surely_fits(free / 3)
    }
}
