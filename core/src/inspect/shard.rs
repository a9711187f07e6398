//! One shard: checkpoint headers, image, journal, every map node, and whether map and bitmaps agree.
//!
//! Goes on after a fault wherever there is something left to look at. It reads what recovery would read and every map page
//! besides, through code of its own only where recovery takes shortcuts: the decoding is the product's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::bits::Clusters;
use super::{Finding, Severity};
use crate::checkpoint::{CheckpointHeader, Image, RING_BYTES, decode_image, decode_index, join_chunks, read_ring};
use crate::checksum::Seed;
use crate::ids::{Lsn, ShardId, VolumeId};
use crate::journal::{VolumeList, recover};
use crate::limits::{CLUSTER, CLUSTERS_PER_RANGE};
use crate::map::{MapNode, NodeKey, NodePages, PAGE_BYTES, Record, Version, Views, decode_node};
use crate::space::{Geometry, Place, SlabId};
use crate::volume::VolumeRecord;

/// Reads bytes of a device: number, offset, length. An error is text to be shown.
pub type ReadAt<'a> = &'a mut dyn FnMut(u16, u64, usize) -> Result<Vec<u8>, String>;

/// What superblock and catalog say about a shard.
#[derive(Clone, Debug)]
pub struct ShardSpec {
    /// Which shard.
    pub id: ShardId,
    /// That of the pool.
    pub seed: Seed,
    /// The newest boot.
    pub boot: u32,
    /// Where on device 0 its ring of checkpoint headers starts.
    pub headers: u64,
    /// Where on device 0 its journal starts.
    pub journal: u64,
    /// Bytes of its journal.
    pub journal_bytes: u64,
    /// The pool's slabs.
    pub geometry: Arc<Geometry>,
    /// Those that are its own.
    pub slabs: BTreeSet<SlabId>,
    /// The catalog's volumes with stripes here.
    pub volumes: BTreeMap<VolumeId, VolumeRecord>,
    /// Removed, and perhaps not yet erased here.
    pub removed: BTreeSet<VolumeId>,
    /// Fill [`ShardReport::dump`].
    pub dump: bool,
}

/// What one volume occupies of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeUse {
    /// Map nodes.
    pub nodes: u64,
    /// Clusters with data.
    pub clusters: u64,
}

/// What was found in a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardReport {
    /// Which shard.
    pub shard: ShardId,
    /// Number of the checkpoint that recovery would take.
    pub checkpoint: u64,
    /// Journal records that it would replay.
    pub replayed: u64,
    /// The last of them.
    pub last_lsn: Lsn,
    /// Clusters that its bitmaps say data is in.
    pub clusters_used: u64,
    /// Clusters of map pages and of the checkpoint.
    pub clusters_metadata: u64,
    /// Of those with data, clusters that no map node names: lost space, harmless otherwise.
    pub clusters_leaked: u64,
    /// Clusters of versions that neither a volume nor a snapshot nor a clone needs any more: the shard frees them in the background
    /// when it is served.
    #[serde(default)]
    pub clusters_unneeded: u64,
    /// Slabs of its own.
    pub slabs: u64,
    /// By volume.
    pub volumes: BTreeMap<VolumeId, VolumeUse>,
    /// What is wrong or worth knowing.
    pub findings: Vec<Finding>,
    /// Where asked for: the checkpoint, every journal record and every map node, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dump: Vec<String>,
}

/// Looks at one shard.
pub fn inspect_shard(spec: &ShardSpec, read: ReadAt<'_>) -> ShardReport {
    let report = ShardReport { shard: spec.id, slabs: spec.slabs.len() as u64, ..ShardReport::default() };
    let mut look = Look { spec, seed: spec.seed.shard(spec.id), read, report };
    let Some((header, image, chunks)) = look.checkpoint() else { return look.report };
    look.report.checkpoint = header.generation;
    look.dump(|| {
        let (generation, start) = (header.generation, header.start);
        format!(
            "checkpoint {generation} of {} chunks, {} nodes, replay from {start:?}",
            chunks.len(),
            image.table.len()
        )
    });
    look.relations();
    let records = look.journal(&header);
    for (lsn, record) in &records {
        look.dump(|| format!("journal {lsn}: {record:?}"));
    }
    look.map(&image, &chunks, &records);
    look.report
}

struct Look<'a> {
    spec: &'a ShardSpec,
    seed: Seed,
    read: ReadAt<'a>,
    report: ShardReport,
}

impl Look<'_> {
    fn say(&mut self, severity: Severity, volume: Option<VolumeId>, what: impl Into<String>) {
        let shard = Some(self.spec.id);
        self.report.findings.push(Finding { severity, shard, volume, what: what.into() });
    }

    fn dump(&mut self, line: impl FnOnce() -> String) {
        if self.spec.dump {
            self.report.dump.push(line());
        }
    }

    /// The newest checkpoint whose image is whole, with the clusters of its chunks.
    fn checkpoint(&mut self) -> Option<(CheckpointHeader, Image, Vec<Place>)> {
        let bytes = match (self.read)(0, self.spec.headers, RING_BYTES) {
            Ok(bytes) => bytes,
            Err(why) => {
                self.say(Severity::Fault, None, format!("the checkpoint headers cannot be read: {why}"));
                return None;
            }
        };
        let ring = read_ring(&bytes, self.spec.id, self.seed, &self.spec.geometry);
        for (slot, why) in &ring.damaged {
            // The slot that was being written when the machine stopped looks like this.
            self.say(Severity::Note, None, format!("checkpoint header {slot}: {why}"));
        }
        for header in ring.newest_first {
            match self.image(&header) {
                Ok((image, chunks)) => return Some((header, image, chunks)),
                Err(why) => {
                    self.say(Severity::Fault, None, format!("checkpoint {} is damaged: {why}", header.generation));
                }
            }
        }
        let names: Vec<&str> = self.spec.volumes.values().map(|volume| volume.name.as_str()).collect();
        let whose = if names.is_empty() { "no volume lies on it".to_owned() } else { names.join(", ") };
        self.say(Severity::Fault, None, format!("no checkpoint of this shard can be read; not served: {whose}"));
        None
    }

    fn image(&mut self, header: &CheckpointHeader) -> Result<(Image, Vec<Place>), String> {
        let (mut refs, mut places) = (header.chunks.clone(), Vec::new());
        for level in (0..=header.level).rev() {
            let mut chunks = Vec::new();
            for chunk in &refs {
                chunks.push((self.read)(chunk.place.file().0, chunk.place.offset(), chunk.bytes as usize)?);
            }
            places.extend(refs.iter().map(|chunk| chunk.place));
            let bytes: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let stream = join_chunks(header, level, &refs, &bytes, self.spec.id, self.seed)
                .map_err(|error| error.to_string())?;
            if level == 0 {
                let image = decode_image(&stream, &self.spec.geometry).map_err(|error| error.to_string())?;
                return Ok((image, places));
            }
            refs = decode_index(&stream, &self.spec.geometry).map_err(|error| error.to_string())?;
        }
        unreachable!("level 0 is the image")
    }

    /// What recovery would replay.
    fn journal(&mut self, header: &CheckpointHeader) -> Vec<(Lsn, Record)> {
        let spec = self.spec;
        let bytes = match (self.read)(0, spec.journal, spec.journal_bytes as usize) {
            Ok(bytes) => bytes,
            Err(why) => {
                self.say(Severity::Fault, None, format!("the journal cannot be read: {why}"));
                return Vec::new();
            }
        };
        // As the next boot would see it: groups of the newest one are not from the future.
        let recovered = recover(&bytes, spec.id, spec.boot + 1, self.seed, header.start, &spec.geometry);
        let recovered = match recovered {
            Ok(recovered) => recovered,
            Err(error) => {
                self.say(Severity::Fault, None, error.to_string());
                return Vec::new();
            }
        };
        for damage in &recovered.damage {
            let what = format!("journal group {} at block {} is lost", damage.sequence, damage.block);
            match &damage.volumes {
                VolumeList::Some(volumes) => {
                    volumes.iter().for_each(|&volume| self.say(Severity::Fault, Some(volume), what.clone()));
                }
                VolumeList::Any => self.say(Severity::Fault, None, format!("{what}, and with it whose it was")),
            }
        }
        if let Some(torn) = recovered.torn {
            self.say(
                Severity::Note,
                None,
                format!("journal group {torn} is torn; nothing in it was acknowledged as durable"),
            );
        }
        self.report.replayed = recovered.records.len() as u64;
        self.report.last_lsn = recovered.ring.durable();
        recovered.records
    }

    /// Walks over every node and holds what they name against the bitmaps.
    fn map(&mut self, image: &Image, chunks: &[Place], records: &[(Lsn, Record)]) {
        let geometry = &self.spec.geometry;
        let mut used = Clusters::of(&image.bitmaps);
        let mut by_node: BTreeMap<NodeKey, Vec<&(Lsn, Record)>> = BTreeMap::new();
        for entry in records {
            let record = &entry.1;
            for &place in record.freed() {
                used.set(geometry, place, false);
            }
            if let Some(place) = record.used() {
                used.set(geometry, place, true);
            }
            if let Some(key) = NodeKey::of_record(record) {
                by_node.entry(key).or_default().push(entry);
            }
        }
        let metadata = self.metadata(image, chunks, &used);
        let mut named = Clusters::default();
        for (key, pages) in image.table.iter() {
            let replay = by_node.remove(&key).unwrap_or_default();
            if let Some(node) = self.load(key, pages, &replay) {
                self.node(&node, &used, &metadata, &mut named);
            }
        }
        for (key, replay) in by_node {
            let node = replayed(MapNode::new(key), &replay);
            self.node(&node, &used, &metadata, &mut named);
        }
        // A slab that was given back is named by the journal's past, and empty at its end.
        let strays: Vec<SlabId> = used.slabs().filter(|slab| !self.spec.slabs.contains(slab)).collect();
        for slab in strays {
            self.say(
                Severity::Fault,
                None,
                format!("slab {slab} is not this shard's any more, and it has clusters there"),
            );
        }
        self.report.clusters_used = used.count();
        self.report.clusters_metadata = metadata.count();
        self.report.clusters_leaked = used.count_without(&named);
        if self.report.clusters_leaked > 0 && !self.report.findings.iter().any(|f| f.severity == Severity::Fault) {
            let what = format!("{} clusters are in use and named by no volume", self.report.clusters_leaked);
            self.say(Severity::Note, None, what);
        }
    }

    /// Clusters of map pages and checkpoint chunks: nobody else may have them.
    fn metadata(&mut self, image: &Image, chunks: &[Place], used: &Clusters) -> Clusters {
        let geometry = &self.spec.geometry;
        let mut metadata = Clusters::default();
        let mut pages = BTreeSet::new();
        let mut wrong = Vec::new();
        for page in image.table.iter().flat_map(|(_, pages)| pages.iter()) {
            if !pages.insert(page.place.raw()) {
                wrong.push(format!("{:?} is a page of two map nodes", page.place));
            }
            metadata.set(geometry, cluster_of(page.place), true);
        }
        for &chunk in chunks {
            if metadata.set(geometry, chunk, true) {
                wrong.push(format!("{chunk:?} is a chunk of the checkpoint and something else"));
            }
        }
        for &place in
            chunks.iter().chain(&pages.iter().map(|&raw| cluster_of(Place::from_raw(raw))).collect::<Vec<_>>())
        {
            if used.has(geometry, place) {
                wrong.push(format!("{place:?} holds metadata, and the bitmap says that it holds data"));
            }
            if geometry.slab_of(place).is_none_or(|(slab, _)| !self.spec.slabs.contains(&slab)) {
                wrong.push(format!("{place:?} holds metadata in a slab that is not this shard's"));
            }
        }
        wrong.dedup();
        wrong.into_iter().for_each(|what| self.say(Severity::Fault, None, what));
        metadata
    }

    fn load(&mut self, key: NodeKey, entry: &NodePages, replay: &[&(Lsn, Record)]) -> Option<MapNode> {
        let mut pages = Vec::new();
        for page in entry.iter() {
            match (self.read)(page.place.file().0, page.place.offset(), PAGE_BYTES) {
                Ok(bytes) => pages.push(bytes),
                Err(why) => {
                    self.say(Severity::Fault, Some(key.volume), format!("map range {}: {why}", key.range));
                    return None;
                }
            }
        }
        let bytes: Vec<&[u8]> = pages.iter().map(Vec::as_slice).collect();
        match decode_node(key, entry, &bytes, self.seed, &self.spec.geometry) {
            Ok(node) => Some(replayed(node, replay)),
            Err(why) => {
                self.say(Severity::Fault, Some(key.volume), format!("map range {}: {why}", key.range));
                None
            }
        }
    }

    fn node(&mut self, node: &MapNode, used: &Clusters, metadata: &Clusters, named: &mut Clusters) {
        let (geometry, key) = (&self.spec.geometry, node.key());
        if node.is_empty() {
            return;
        }
        let volume = Some(key.volume);
        let record = self.spec.volumes.get(&key.volume);
        if record.is_none() && !self.spec.removed.contains(&key.volume) {
            self.say(Severity::Fault, volume, format!("map range {} belongs to no volume of the catalog", key.range));
        }
        if let Some(record) = record {
            self.count_unneeded(node, record);
        }
        let mut clusters = 0;
        for (index, version) in node.versions() {
            let place = version.place;
            if place.is_none() {
                continue;
            }
            clusters += 1;
            let cluster = key.cluster(index);
            let mut wrong = Vec::new();
            if geometry.slab_of(place).is_none_or(|(slab, _)| !self.spec.slabs.contains(&slab)) {
                wrong.push("lies in a slab that is not this shard's");
            }
            if named.set(geometry, place, true) {
                wrong.push("is named by another version as well");
            }
            if metadata.has(geometry, place) {
                wrong.push("holds metadata");
            }
            if !used.has(geometry, place) {
                wrong.push("is free, so that somebody else may get it");
            }
            if record.is_some_and(|record| beyond(record, self.spec.id, cluster)) {
                wrong.push("is beyond the end of the volume");
            }
            for wrong in wrong {
                self.say(Severity::Fault, volume, format!("cluster {cluster}: {place:?} {wrong}"));
            }
        }
        self.dump(|| {
            let versions = node.versions().map(|(index, version)| format!("{index}: {version:?}"));
            format!("map of volume {} range {}: {}", key.volume, key.range, versions.collect::<Vec<_>>().join("; "))
        });
        let entry = self.report.volumes.entry(key.volume).or_default();
        entry.nodes += 1;
        entry.clusters += clusters;
    }
}

impl Look<'_> {
    /// Versions that are there only because nobody has cleared them away yet.
    fn count_unneeded(&mut self, node: &MapNode, record: &VolumeRecord) {
        let views = Views::of(record, self.spec.volumes.values());
        for index in (0..CLUSTERS_PER_RANGE).filter(|&index| node.newest(index).is_some()) {
            let chain: Vec<Version> = node.chain(index).copied().collect();
            let needs = views.needs(&chain).versions;
            let unneeded =
                chain.iter().zip(needs).filter(|(version, need)| version.place.is_some() && need.blocks == 0);
            self.report.clusters_unneeded += unneeded.count() as u64;
        }
    }

    /// Whether everything that a volume looks through is there.
    fn relations(&mut self) {
        let spec = self.spec;
        for record in spec.volumes.values() {
            let needed =
                record.view.map(|view| view.origin).into_iter().chain(record.parent.map(|parent| parent.volume));
            for other in needed.filter(|other| !spec.volumes.contains_key(other)) {
                let what = format!("{:?} shows blocks of volume {other}, which is not in the catalog", record.name);
                self.say(Severity::Fault, Some(record.id), what);
            }
            let Some(parent) = record.parent else { continue };
            let kept = spec.volumes.get(&parent.volume).is_some_and(|of| of.cuts.contains(&parent.epoch));
            if !kept {
                let what = format!(
                    "{:?} is a clone of volume {} at {}, and no such cut is kept",
                    record.name, parent.volume, parent.epoch
                );
                self.say(Severity::Fault, Some(record.id), what);
            }
        }
    }
}

fn replayed(mut node: MapNode, records: &[&(Lsn, Record)]) -> MapNode {
    for (lsn, record) in records {
        let _ = node.apply(*lsn, record);
    }
    node
}

/// The cluster that a map page is cut from.
fn cluster_of(page: Place) -> Place {
    Place::new(page.device(), crate::space::CLASS_CLUSTER, page.offset() / CLUSTER * CLUSTER)
}

/// Whether not even the first byte of a cluster is in its volume.
fn beyond(record: &VolumeRecord, shard: ShardId, cluster: u32) -> bool {
    record.shards.iter().position(|&of| of == shard).is_none_or(|nth| record.offset_of(nth, cluster) >= record.size)
}
