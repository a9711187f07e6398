//! Where the writes under way will put what they carry.
//!
//! A write that turns blocks of a cluster into data needs a version with a place, and that version may not exist yet: it
//! enters the map only when the data is at the device. Until then it stands here as an *opening*, so that a second write to
//! the same new cluster joins the place instead of taking another, and so that a discard does not give away a place that
//! a write is on its way to. A write of blocks that are data already needs no opening: its claim on the blocks keeps them.
//!
//! Invariants: an opening has at least one writer; at most one opening a (volume, cluster, birth); births of one cluster's
//! openings ascend.

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::ids::{Epoch, VolumeId};
use crate::space::Place;

/// Where one cluster's stretch of a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) cluster: u32,
    /// Birth of the version it belongs to.
    pub(crate) birth: Epoch,
    pub(crate) place: Place,
    /// Blocks that become data by it, the low bits of [`crate::map::BlockStates`]. Not 0 exactly if it counts as a writer of an opening.
    pub(crate) gains: u32,
}

/// A version that is being written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) birth: Epoch,
    pub(crate) place: Place,
    pub(crate) writers: u32,
    /// No record names the place yet.
    pub(crate) fresh: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Openings {
    clusters: FxHashMap<(VolumeId, u32), SmallVec<[Opening; 2]>>,
}

impl Openings {
    /// The opening with the newest birth.
    pub(crate) fn newest(&self, volume: VolumeId, cluster: u32) -> Option<&Opening> {
        self.clusters.get(&(volume, cluster)).and_then(|openings| openings.last())
    }

    pub(crate) fn find(&self, volume: VolumeId, cluster: u32, birth: Epoch) -> Option<&Opening> {
        self.clusters.get(&(volume, cluster))?.iter().find(|opening| opening.birth == birth)
    }

    /// Counts one more writer of the version born at `birth`, whose place is `place`; `fresh` if the place was taken for it
    /// just now.
    pub(crate) fn join(&mut self, volume: VolumeId, cluster: u32, birth: Epoch, place: Place, fresh: bool) {
        let openings = self.clusters.entry((volume, cluster)).or_default();
        if let Some(opening) = openings.iter_mut().find(|opening| opening.birth == birth) {
            assert!(opening.place == place && !fresh, "writers of one version share its place");
            opening.writers += 1;
            return;
        }
        assert!(openings.last().is_none_or(|newest| newest.birth < birth), "stamps of a shard ascend");
        openings.push(Opening { birth, place, writers: 1, fresh });
    }

    /// A record names the place now; whether this was the first that did.
    pub(crate) fn settle(&mut self, volume: VolumeId, cluster: u32, birth: Epoch) -> bool {
        let openings = self.clusters.get_mut(&(volume, cluster)).expect("a writer has its opening");
        let opening = openings.iter_mut().find(|opening| opening.birth == birth).expect("a writer has its opening");
        std::mem::take(&mut opening.fresh)
    }

    /// Counts one writer less; the opening if that was the last.
    pub(crate) fn leave(&mut self, volume: VolumeId, cluster: u32, birth: Epoch) -> Option<Opening> {
        let openings = self.clusters.get_mut(&(volume, cluster)).expect("a writer has its opening");
        let at = openings.iter().position(|opening| opening.birth == birth).expect("a writer has its opening");
        openings[at].writers -= 1;
        if openings[at].writers > 0 {
            return None;
        }
        let opening = openings.remove(at);
        if openings.is_empty() {
            self.clusters.remove(&(volume, cluster));
        }
        Some(opening)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.clusters.is_empty()
    }
}
