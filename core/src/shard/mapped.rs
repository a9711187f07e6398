//! How many clusters each volume maps on this shard, exactly, without walking the map.
//!
//! A record that maps a place counts one up, a record that frees places counts as many down. A checkpoint keeps the counts as of
//! the journal's durable end; recovery goes on from there, and takes each replayed record beyond it by what it does to the bitmap,
//! since the same place may be named by several records.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::checkpoint::MappedCounts;
use crate::ids::{Lsn, VolumeId};

/// Clusters mapped, by volume.
#[derive(Debug, Default)]
pub(super) struct Mapped {
    counts: FxHashMap<VolumeId, u64>,
    /// Changes whose records are not known to be durable, oldest first.
    pending: VecDeque<(Lsn, VolumeId, i64)>,
}

impl Mapped {
    /// What a checkpoint has kept.
    pub(super) fn recovered(kept: &MappedCounts) -> Mapped {
        Mapped { counts: kept.clusters.iter().copied().collect(), pending: VecDeque::new() }
    }

    /// The record with `lsn` changed what `volume` maps.
    pub(super) fn change(&mut self, lsn: Lsn, volume: VolumeId, by: i64) {
        if by != 0 {
            self.apply(volume, by);
            self.pending.push_back((lsn, volume, by));
        }
    }

    fn apply(&mut self, volume: VolumeId, by: i64) {
        let count = self.counts.entry(volume).or_default();
        // Below zero only where the journal lost records: a cluster then counts for who had it, and is freed by who has it.
        *count = count.saturating_add_signed(by);
        if *count == 0 {
            self.counts.remove(&volume);
        }
    }

    /// Records up to here are durable.
    pub(super) fn settle(&mut self, durable: Lsn) {
        while self.pending.front().is_some_and(|&(lsn, ..)| lsn <= durable) {
            self.pending.pop_front();
        }
    }

    /// The counts as of the journal's durable end, for a checkpoint.
    pub(super) fn durable(&mut self, durable: Lsn) -> MappedCounts {
        self.settle(durable);
        let mut counts: FxHashMap<VolumeId, i64> = self.counts.iter().map(|(&volume, &n)| (volume, n as i64)).collect();
        // Up and down may follow each other within what is pending: only the sum has to come out right.
        for &(_, volume, by) in &self.pending {
            *counts.entry(volume).or_default() -= by;
        }
        let whole = |(volume, count): (VolumeId, i64)| (volume, count.max(0) as u64);
        let mut clusters: Vec<_> = counts.into_iter().map(whole).filter(|&(_, count)| count != 0).collect();
        clusters.sort_unstable();
        MappedCounts { lsn: durable, clusters }
    }

    /// Clusters that `volume` maps now.
    pub(super) fn of(&self, volume: VolumeId) -> u64 {
        self.counts.get(&volume).copied().unwrap_or(0)
    }

    /// By volume.
    pub(super) fn iter(&self) -> impl Iterator<Item = (VolumeId, u64)> {
        self.counts.iter().map(|(&volume, &count)| (volume, count))
    }
}
