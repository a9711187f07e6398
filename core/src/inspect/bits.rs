//! One bit a cluster, slab by slab.

use std::collections::BTreeMap;

use crate::space::{Geometry, Place, SlabBitmap, SlabId};

/// A set of clusters.
#[derive(Clone, Debug, Default)]
pub(super) struct Clusters {
    slabs: BTreeMap<SlabId, Vec<u64>>,
}

impl Clusters {
    /// The set that a checkpoint's bitmaps are.
    pub(super) fn of(bitmaps: &[SlabBitmap]) -> Clusters {
        Clusters { slabs: bitmaps.iter().map(|bitmap| (bitmap.slab, bitmap.words.to_vec())).collect() }
    }

    /// Adds or removes the cluster at `place`; whether it was there. A place in no slab is never there.
    pub(super) fn set(&mut self, geometry: &Geometry, place: Place, present: bool) -> bool {
        let Some((slab, cluster)) = geometry.slab_of(place) else { return false };
        let words = geometry.clusters_per_slab().div_ceil(64) as usize;
        let word = &mut self.slabs.entry(slab).or_insert_with(|| vec![0; words])[cluster as usize / 64];
        let bit = 1 << (cluster % 64);
        let before = *word & bit != 0;
        *word = if present { *word | bit } else { *word & !bit };
        before
    }

    pub(super) fn has(&self, geometry: &Geometry, place: Place) -> bool {
        geometry.slab_of(place).is_some_and(|(slab, cluster)| {
            self.slabs.get(&slab).is_some_and(|words| words[cluster as usize / 64] >> (cluster % 64) & 1 != 0)
        })
    }

    /// Slabs that have some.
    pub(super) fn slabs(&self) -> impl Iterator<Item = SlabId> {
        self.slabs.iter().filter(|(_, words)| words.iter().any(|&word| word != 0)).map(|(&slab, _)| slab)
    }

    pub(super) fn count(&self) -> u64 {
        self.slabs.values().flatten().map(|word| u64::from(word.count_ones())).sum()
    }

    /// How many of these are not in `others`.
    pub(super) fn count_without(&self, others: &Clusters) -> u64 {
        let missing = |slab: &SlabId, words: &[u64]| {
            let other = others.slabs.get(slab);
            let words = words.iter().enumerate();
            words.map(|(n, word)| u64::from((word & !other.map_or(0, |other| other[n])).count_ones())).sum::<u64>()
        };
        self.slabs.iter().map(|(slab, words)| missing(slab, words)).sum()
    }
}
