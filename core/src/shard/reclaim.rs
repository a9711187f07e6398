//! Freed clusters on their way back: out of quarantine, a hole punched where that is wanted, free.
//!
//! Invariant: nothing is at the device for a cluster that may be given out, neither an operation that looked it up before it
//! was unmapped (C7) nor a hole.

use ringway_reactor::io::Io;

use super::Shard;
use super::api::RecordLog;
use super::parts::Run;
use crate::limits::CLUSTER;
use crate::space::{Place, Ticket};

/// Holes at the device at once: punching is nobody's hurry.
const HOLES_MAX: usize = 4;

/// Consecutive clusters that are given back to the file or device below.
#[derive(Debug)]
pub(super) struct Hole {
    clusters: Vec<Place>,
}

impl<L: RecordLog> Shard<L> {
    /// Lets go of what is neither mapped durably nor looked at by anybody any more.
    pub(super) fn reclaim(&mut self) {
        let (durable, oldest) = (self.commit.durable(), Ticket(self.ops.oldest_ticket()));
        let before = self.released.len();
        if self.config.punch_holes {
            self.space.reclaim_to_punch(durable, oldest, &mut self.released);
            return;
        }
        self.space.reclaim(durable, oldest, &mut self.released);
        self.space_changed |= self.released.len() > before;
        self.released.clear();
    }

    /// Punches holes where clusters were let go, neighbours together.
    pub(super) fn punch<I: Io>(&mut self, io: &mut I) {
        if self.released.is_empty() || self.holes.len() >= HOLES_MAX {
            return;
        }
        self.released.sort_unstable_by(|a, b| b.cmp(a));
        while self.holes.len() < HOLES_MAX
            && let Some(first) = self.released.pop()
        {
            let mut clusters = vec![first];
            let follows =
                |last: &Place, next: &Place| last.device() == next.device() && last.offset() + CLUSTER == next.offset();
            while let Some(next) = self.released.pop_if(|next| follows(&clusters[clusters.len() - 1], next)) {
                clusters.push(next);
            }
            let (run, len) = (Run { file: first.file().0, offset: first.offset() }, clusters.len() as u64 * CLUSTER);
            let hole = self.holes.insert(Hole { clusters }) as u32;
            self.submit_punch(io, hole, run, len);
        }
    }

    /// The hole is there, or could not be made: its clusters are free either way.
    pub(super) fn on_punched(&mut self, hole: u32) {
        let hole = self.holes.remove(hole as usize);
        hole.clusters.into_iter().for_each(|place| self.space.punched(place));
        self.space_changed = true;
    }
}
