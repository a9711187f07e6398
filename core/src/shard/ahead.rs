//! Reading ahead of who reads a clone front to back: the next clusters come from the backend while he works on these.
//!
//! Only reads that have to wait are seen here. One that comes at most a window behind what was fetched ahead goes on where the one before
//! was; each of those doubles the window, and any other closes it. What nobody waits for is asked for last, leaves some of the fetches to
//! those who do wait, and takes no space of a pool that has none left to give.

use std::ops::Range;

use super::api::RecordLog;
use super::fetching::FETCHES_MAX;
use super::{Shard, SlabRequest};
use crate::ids::VolumeId;
use crate::limits::CLUSTERS_PER_RANGE;

/// Clusters ahead: a MiB for each shard.
const WINDOW_MAX: u32 = 16;
/// Fetches under way beside which nothing is fetched ahead.
pub(super) const UNDER_WAY_MAX: usize = FETCHES_MAX - 4;
/// How far behind what was fetched ahead a read may come: several are under way, and not in order.
const NEAR: u32 = 2 * WINDOW_MAX;

/// Where who reads a clone is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ahead {
    /// The last cluster that somebody waited for.
    seen: u32,
    /// Up to here was asked for.
    next: u32,
    window: u32,
}

impl Ahead {
    /// After a first read that had to wait, of clusters up to `last`.
    fn after(last: u32) -> Ahead {
        Ahead { seen: last, next: last + 1, window: 0 }
    }

    /// The next one, of `first..=last`: which clusters to fetch ahead of it.
    fn go_on(&mut self, first: u32, last: u32) -> Range<u32> {
        if first > self.next || self.next - first > NEAR {
            *self = Ahead::after(last);
            return 0..0;
        }
        if last <= self.seen {
            // Another one waits for the same.
            return 0..0;
        }
        self.seen = last;
        self.window = (self.window * 2).clamp(2, WINDOW_MAX);
        let from = self.next.max(last + 1);
        let to = (last + 1).saturating_add(self.window).max(from);
        self.next = to;
        from..to
    }
}

impl<L: RecordLog> Shard<L> {
    /// A part waits for clusters of one range of a clone: those that it will want next are fetched too.
    pub(super) fn read_ahead(&mut self, volume: VolumeId, first: u32, last: u32) {
        let Some(ahead) = self.fetching.ahead.get_mut(&volume) else {
            self.fetching.ahead.insert(volume, Ahead::after(last));
            return;
        };
        // Of another range the node and the map may not be here.
        let end = (last / CLUSTERS_PER_RANGE + 1) * CLUSTERS_PER_RANGE;
        let clusters = ahead.go_on(first, last);
        ahead.next = ahead.next.min(end);
        if matches!(self.slab_request, SlabRequest::Refused { .. }) {
            return;
        }
        for cluster in clusters.start..clusters.end.min(end) {
            let wanted = self.fetching.may_have(volume, cluster) && self.undecided(volume, cluster) != 0;
            if wanted && !self.fetching.want_later(volume, cluster) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_grows_for_who_goes_on_and_closes_for_who_jumps() {
        let mut ahead = Ahead::after(4);
        assert_eq!(ahead.go_on(5, 5), 6..8);
        assert_eq!(ahead.go_on(6, 6), 8..11, "he waits for what is on its way, and more of it is sent after");
        assert_eq!(ahead.go_on(11, 12), 13..21);
        assert_eq!(ahead.go_on(13, 14), 21..31);
        assert_eq!(ahead.go_on(14, 14), 0..0, "who waits for the same is no step");
        assert_eq!(ahead.go_on(15, 15), 31..32, "what was asked for is not asked for again");
        assert_eq!(ahead.go_on(90, 90), 0..0);
        assert_eq!(ahead, Ahead::after(90));
        assert_eq!(ahead.go_on(40, 41), 0..0);
        assert_eq!(ahead.go_on(42, 42), 43..45);
    }
}
