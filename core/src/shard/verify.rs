//! Does the map agree with the bitmaps? Every cluster is named by exactly one version, or free, or metadata.
//!
//! For tests and `ringway inspect`: the shard is drained, so that nothing is pending and the quarantine is empty.

use std::collections::BTreeMap;

use ringway_reactor::io::Io;

use super::Shard;
use super::api::RecordLog;
use super::course::is_tidy;
use super::nodes::Readiness;
use crate::ids::VolumeId;
use crate::limits::CLUSTERS_PER_RANGE;
use crate::map::{MapNode, NodeKey, Views};
use crate::space::{Place, SlabBitmap};

/// A walk over the map that is under way.
#[derive(Debug, Default)]
pub struct Verification {
    todo: Option<Vec<NodeKey>>,
    named: BTreeMap<Place, NodeKey>,
    /// What is wrong, in words.
    pub problems: Vec<String>,
    /// Clusters with more versions than their views need, in words: right, and not tidy yet.
    pub untidy: Vec<String>,
    /// The most versions that a look at one block may have to pass (H4).
    pub longest_walk: usize,
}

impl Verification {
    fn look_at_chains(&mut self, node: &MapNode, views: &Views) {
        for index in 0..CLUSTERS_PER_RANGE {
            let mut run = 0;
            for version in node.chain(index) {
                run += 1;
                self.longest_walk = self.longest_walk.max(run);
                if !version.states.any_absent() {
                    run = 0;
                }
            }
            if !is_tidy(node, index, views) {
                let chain: Vec<_> = node.chain(index).collect();
                self.untidy.push(format!("{:?} cluster {index}: {chain:?} for {views:?}", node.key()));
            }
        }
    }
}

impl<L: RecordLog> Shard<L> {
    /// Whether nothing is left to be done in the background.
    #[must_use]
    pub fn is_tidy(&self) -> bool {
        self.background.is_calm() && self.nodes.replayed.is_empty()
    }

    /// Goes on with the walk; true when it is over. Nodes that have to be loaded arrive by completions.
    pub fn verify<I: Io>(&mut self, io: &mut I, walk: &mut Verification) -> bool {
        let nodes = &self.nodes;
        walk.todo.get_or_insert_with(|| nodes.all());
        while let Some(&key) = walk.todo.as_ref().and_then(|todo| todo.last()) {
            match self.require(io, key) {
                Readiness::Ready => {}
                Readiness::Loading => return false,
                Readiness::Full => {
                    walk.problems.push(format!("node {key:?} has no room in the cache of a drained shard"));
                    return true;
                }
            }
            walk.todo.as_mut().expect("a node of it is here").pop();
            let node = self.nodes.get(key).expect("it is ready");
            if let Some(volume) = self.volumes.get(&key.volume) {
                walk.look_at_chains(node, &volume.views);
            }
            for (index, version) in node.versions() {
                if version.is_void() {
                    walk.problems.push(format!("{key:?} cluster {index}: a version that says nothing"));
                }
                if version.place.is_none() {
                    continue;
                }
                // A place without data is right: a crash between a discard and the end of a write on its way there leaves
                // one, and the next write or discard of the cluster uses or frees it.
                if let Some(other) = walk.named.insert(version.place, key) {
                    walk.problems.push(format!("{:?} is named by {other:?} and {key:?}", version.place));
                }
            }
        }
        self.compare_bitmaps(walk);
        true
    }

    fn compare_bitmaps(&self, walk: &mut Verification) {
        let geometry = self.space.geometry();
        let mut image = self.space.image();
        for (&place, key) in &walk.named {
            let at = geometry.slab_of(place);
            let word = at.and_then(|(slab, cluster)| {
                let bitmap = image.iter_mut().find(|bitmap| bitmap.slab == slab)?;
                Some((&mut bitmap.words[cluster as usize / 64], 1u64 << (cluster % 64)))
            });
            match word {
                Some((word, bit)) if *word & bit != 0 => *word &= !bit,
                Some(_) => walk.problems.push(format!("{place:?} of {key:?} is free, metadata or not durably mapped")),
                None => walk.problems.push(format!("{place:?} of {key:?} is in no slab of this shard")),
            }
        }
        let leaked = |bitmap: &SlabBitmap| bitmap.words.iter().map(|word| word.count_ones()).sum::<u32>();
        for bitmap in image.iter().filter(|bitmap| leaked(bitmap) > 0) {
            walk.problems.push(format!("slab {}: {} clusters in use that nothing names", bitmap.slab, leaked(bitmap)));
        }
        let (held_pages, held_chunks) = self.checkpoint.held();
        let pages = self.nodes.table.iter().map(|(_, pages)| pages.len()).sum::<usize>() + held_pages.len();
        if self.space.pages_in_use() != pages as u64 {
            walk.problems.push(format!("{} map pages in use, {pages} are named", self.space.pages_in_use()));
        }
        let mut by_volume: BTreeMap<VolumeId, u64> = BTreeMap::new();
        walk.named.values().for_each(|key| *by_volume.entry(key.volume).or_default() += 1);
        if !self.mapped.iter().collect::<BTreeMap<_, _>>().eq(&by_volume) {
            let counted: BTreeMap<_, _> = self.mapped.iter().collect();
            walk.problems.push(format!("volumes map {by_volume:?} clusters, {counted:?} are counted"));
        }
        let counts = self.space.counts();
        if counts.quarantined > 0 || counts.data != walk.named.len() as u64 {
            walk.problems.push(format!("{} places named, {held_chunks:?} chunks, but {counts:?}", walk.named.len()));
        }
    }

    /// Where the pages of a volume's map are.
    #[must_use]
    pub fn page_places(&self, volume: VolumeId) -> Vec<Place> {
        self.nodes.table.of_volume(volume).flat_map(|(_, pages)| pages.iter().map(|page| page.place)).collect()
    }

    /// What a drained shard must not hold any more.
    #[must_use]
    pub fn leaks(&self) -> Vec<&'static str> {
        let held = [
            (self.parts.len() > 0, "parts"),
            (self.ops.len() > 0, "operations at the device"),
            (!self.overlap.is_empty(), "claims"),
            (!self.openings.is_empty(), "openings"),
            (self.changing != 0, "journal room"),
            (!self.nodes.is_settled(), "pins or loads"),
            (!self.scratch.is_whole(), "scratch"),
            (!self.fences.is_empty(), "fences"),
            (!self.background.jobs.is_empty(), "jobs in the background"),
            (!self.background.asking.is_empty(), "questions"),
        ];
        held.iter().filter(|(held, _)| *held).map(|&(_, what)| what).collect()
    }

    /// Everything that is waiting, for the message of a failed test.
    #[must_use]
    pub fn describe(&self) -> String {
        format!(
            "parts {} ready {} parked {:?} ops {} commit {:?}/{:?} checkpoint {:?} fault {:?}",
            self.parts.len(),
            self.ready.len(),
            self.parked,
            self.ops.len(),
            self.commit.durable(),
            self.commit.last(),
            self.checkpoint,
            self.fault
        )
    }
}
