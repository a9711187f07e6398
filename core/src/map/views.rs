//! Everybody who may still look at a volume: the volume itself, and each cut that is kept. What none of them sees may go.
//!
//! Views are numbered: the cuts in their order, then the live volume. A version is seen by a stretch of these numbers without a
//! gap: from the first cut at or after its birth up to the first view that a rollback has made blind to it. So the views of a
//! cluster fall into few classes whose members see the same, however many cuts there are.

use std::ops::Range;

use super::states::BlockState;
use super::version::Version;
use crate::ids::Epoch;
use crate::volume::VolumeRecord;

/// All views of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Views {
    /// Ascending, each once.
    points: Vec<Epoch>,
    dead: Vec<(Epoch, Epoch)>,
    /// Blocks that no version decides are a parent's.
    parent: bool,
}

/// What a version is needed for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Blocks that some view has from it, or that it hides from one.
    pub blocks: u16,
    /// The cut, if no view but this one needs it.
    pub only: Option<Epoch>,
}

/// What the versions of one cluster are needed for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Of each version, newest first.
    pub versions: Vec<Need>,
    /// Blocks that in some view no version decides.
    pub undecided: u16,
}

impl Views {
    /// The live volume and its state at each of `cuts`, in any order; `dead` as in its record; `parent`: it has one.
    #[must_use]
    pub fn new(mut cuts: Vec<Epoch>, dead: &[(Epoch, Epoch)], parent: bool) -> Views {
        cuts.sort_unstable();
        cuts.dedup();
        Views { points: cuts, dead: dead.to_vec(), parent }
    }

    /// Those of a volume, as the records of all volumes, snapshots and clones say.
    #[must_use]
    pub fn of<'a>(record: &VolumeRecord, all: impl Iterator<Item = &'a VolumeRecord>) -> Views {
        let mut cuts = record.cuts.clone();
        for other in all {
            cuts.extend(other.view.filter(|view| view.origin == record.id).map(|view| view.epoch));
            cuts.extend(other.parent.filter(|parent| parent.volume == record.id).map(|parent| parent.epoch));
        }
        Views::new(cuts, &record.dead, record.parent.is_some())
    }

    /// The cuts, ascending.
    #[must_use]
    pub fn points(&self) -> &[Epoch] {
        &self.points
    }

    /// Intervals that rollbacks made void.
    #[must_use]
    pub fn dead(&self) -> &[(Epoch, Epoch)] {
        &self.dead
    }

    /// Whether what no version decides is a parent's.
    #[must_use]
    pub fn has_parent(&self) -> bool {
        self.parent
    }

    /// Whether `cut` is one of them.
    #[must_use]
    pub fn keeps(&self, cut: Epoch) -> bool {
        self.points.binary_search(&cut).is_ok()
    }

    /// Whether what is tidy for these is tidy for `other` too: nothing of these has gone.
    #[must_use]
    pub fn are_all_in(&self, other: &Views) -> bool {
        self.dead == other.dead && (!self.parent || other.parent) && self.points.iter().all(|&point| other.keeps(point))
    }

    /// These and `other`'s.
    #[must_use]
    pub fn and(&self, other: &Views) -> Views {
        let points = self.points.iter().chain(&other.points).copied().collect();
        Views::new(points, &self.dead, self.parent || other.parent)
    }

    /// The numbers of the views that see a version born at `birth`.
    #[must_use]
    pub fn seeing(&self, birth: Epoch) -> Range<usize> {
        let first = self.points.partition_point(|&point| point < birth);
        let blind =
            self.dead.iter().filter(|&&(after, up_to)| after < birth && birth <= up_to).map(|&(_, up_to)| up_to);
        let end =
            blind.min().map_or(self.points.len() + 1, |up_to| self.points.partition_point(|&point| point < up_to));
        first..end.max(first)
    }

    /// What the versions of a cluster, newest first, are needed for.
    #[must_use]
    pub fn needs(&self, chain: &[Version]) -> Needs {
        let seeing: Vec<Range<usize>> = chain.iter().map(|version| self.seeing(version.birth)).collect();
        let mut edges: Vec<usize> = seeing.iter().flat_map(|seen| [seen.start, seen.end]).collect();
        edges.extend([0, self.points.len() + 1]);
        edges.sort_unstable();
        edges.dedup();
        let mut needs = Needs { versions: vec![Need::default(); chain.len()], undecided: 0 };
        // By how many views each version is needed, and the last of them.
        let mut by: Vec<(usize, usize)> = vec![(0, 0); chain.len()];
        for class in edges.windows(2) {
            let seen = (0..chain.len()).filter(|&nth| seeing[nth].contains(&class[0]));
            let (needed, undecided) = self.needed_by_one(chain, &seen.collect::<Vec<_>>());
            needs.undecided |= undecided;
            for (nth, blocks) in needed {
                needs.versions[nth].blocks |= blocks;
                by[nth] = (by[nth].0 + class[1] - class[0], class[0]);
            }
        }
        for (need, (count, view)) in needs.versions.iter_mut().zip(by) {
            need.only = self.points.get(view).copied().filter(|_| count == 1);
        }
        needs
    }

    /// What a view that sees the versions `seen` of the chain needs of each, and the blocks that none of them decides.
    fn needed_by_one(&self, chain: &[Version], seen: &[usize]) -> (Vec<(usize, u16)>, u16) {
        let mut open = u16::MAX;
        // Blocks that the versions from here down would show as something else than zeros.
        let mut shown_below = vec![if self.parent { u16::MAX } else { 0 }; seen.len() + 1];
        for (at, &nth) in seen.iter().enumerate().rev() {
            let states = chain[nth].states;
            let kept = shown_below[at + 1] & states.blocks(BlockState::Absent);
            shown_below[at] = kept | states.blocks(BlockState::Data);
        }
        let mut needed = Vec::new();
        for (at, &nth) in seen.iter().enumerate() {
            let states = chain[nth].states;
            let blocks =
                open & (states.blocks(BlockState::Data) | states.blocks(BlockState::Zero) & shown_below[at + 1]);
            if blocks != 0 {
                needed.push((nth, blocks));
            }
            open &= states.blocks(BlockState::Absent);
            if open == 0 {
                break;
            }
        }
        (needed, open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::{BlockStates, View};
    use crate::space::Place;

    fn views(cuts: &[u64], dead: &[(u64, u64)]) -> Views {
        let dead: Vec<_> = dead.iter().map(|&(after, up_to)| (Epoch(after), Epoch(up_to))).collect();
        Views::new(cuts.iter().map(|&cut| Epoch(cut)).collect(), &dead, false)
    }

    #[test]
    fn the_views_that_see_a_version_are_those_that_say_so_one_by_one() {
        let views = views(&[10, 20, 35, 50], &[(20, 30), (40, 45)]);
        for birth in 1..60 {
            let seeing = views.seeing(Epoch(birth));
            for nth in 0..=views.points.len() {
                let view = views.points.get(nth).map_or(View::live(&views.dead), |&at| View::at(at, &views.dead));
                assert_eq!(seeing.contains(&nth), view.sees(Epoch(birth)), "birth {birth}, view {nth}");
            }
        }
    }

    #[test]
    fn a_version_is_needed_for_what_it_shows_or_hides() {
        let version = |birth, states| Version { birth: Epoch(birth), place: Place::NONE, states };
        let zero = BlockStates::ABSENT.with(0..4, BlockState::Zero);
        let data =
            Version { place: Place::from_raw(1), ..version(5, BlockStates::ABSENT.with(0..2, BlockState::Data)) };
        let chain = [version(15, zero), data];
        let kept = views(&[10], &[]).needs(&chain);
        // Zeros over nothing hide nothing, and the data is the snapshot's alone.
        assert_eq!(kept.versions[0], Need { blocks: 0b11, only: None });
        assert_eq!(kept.versions[1], Need { blocks: 0b11, only: Some(Epoch(10)) });
        let gone = views(&[], &[]).needs(&chain);
        assert_eq!((gone.versions[0].blocks, gone.versions[1].blocks), (0b11, 0));
        assert_eq!(views(&[], &[]).needs(&chain[..1]).versions[0].blocks, 0);
        let clone = Views { parent: true, ..views(&[], &[]) };
        assert_eq!(clone.needs(&chain[..1]), Needs { versions: vec![Need { blocks: 15, only: None }], undecided: !15 });
    }
}
