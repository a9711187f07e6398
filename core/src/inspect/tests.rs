//! A small shard on a device made by hand, sound at first, then with one thing wrong at a time.

use uuid::Uuid;

use super::*;
use crate::checkpoint::{CheckpointHeader, Chunks, HEADER_BYTES, Image, RING_BYTES, encode_image};
use crate::checksum::Seed;
use crate::ids::{Epoch, Lsn};
use crate::journal::{Group, Position, Ring};
use crate::limits::CLUSTER;
use crate::map::{
    BlockState, BlockStates, MapNode, NodeKey, NodePages, PAGE_BYTES, PageRef, PageTable, Record, Version, encode_node,
};
use crate::space::{Geometry, Place, SlabArea, SlabBitmap, SlabId};
use crate::volume::{Parent, VolumeRecord};

const SHARD: ShardId = ShardId(1);
const JOURNAL: u64 = 64 << 10;
const JOURNAL_BYTES: u64 = 256 << 10;
const SLABS: u64 = 1 << 20;
const VOLUME: VolumeId = VolumeId(7);
const GENERATION: u64 = 3;
const BOOT: u32 = 2;

fn seed() -> Seed {
    Seed::pool(Uuid::from_u128(9))
}

fn geometry() -> Geometry {
    Geometry::new(4 << 20, vec![SlabArea { start: SLABS, slabs: 2 }])
}

fn cluster(n: u64) -> Place {
    Place::new(0, crate::space::CLASS_CLUSTER, SLABS + n * CLUSTER)
}

fn version(n: u64) -> Version {
    Version { birth: Epoch(1 << 32 | 5), place: cluster(n), states: BlockStates::ABSENT.with(0..3, BlockState::Data) }
}

fn set(at: u32, n: u64) -> Record {
    Record::Set { volume: VOLUME, cluster: at, version: version(n), freed: Place::NONE }
}

/// What the shard is made of. Clusters 0, 1: data by the checkpoint; 2: data by the journal; 10: map pages; 11: the image.
struct Shard {
    device: Vec<u8>,
    spec: ShardSpec,
}

/// `pages` are the records that the map page has, `bits` the clusters of the checkpoint's bitmap.
fn shard(pages: &[Record], bits: u64, journal: &[Record]) -> Shard {
    let mut device = vec![0; 9 << 20];
    let key = NodeKey { volume: VOLUME, range: 0 };
    let mut node = MapNode::new(key);
    for (lsn, record) in pages.iter().enumerate() {
        let _ = node.apply(Lsn(lsn as u64 + 1), record);
    }
    let page = cluster(10).page(0);
    let at = page.offset() as usize;
    let crc = encode_node(&node, 0, GENERATION, seed().shard(SHARD), &mut device[at..at + PAGE_BYTES]);
    let mut table = PageTable::default();
    table.insert(key, NodePages::new(GENERATION, vec![PageRef { place: page, crc }]));
    let image =
        Image { table, bitmaps: vec![SlabBitmap { slab: SlabId::new(0, 0), words: vec![bits] }], ..Image::default() };
    let stream = encode_image(&image.table, &image.bitmaps, &image.mapped, &image.tidied);
    let image_bytes = stream.len() as u64;
    let chunks = Chunks::image(stream, SHARD, GENERATION, seed().shard(SHARD));
    let at = cluster(11).offset() as usize;
    let chunk = chunks.encode(0, cluster(11), &mut device[at..at + chunks.bytes(0)]);
    let header = CheckpointHeader {
        generation: GENERATION,
        boot: 1,
        start: Position::FIRST,
        level: 0,
        image_bytes,
        chunks: vec![chunk],
    };
    let at = header.slot() as usize;
    header.encode(SHARD, seed().shard(SHARD), &mut device[at..at + HEADER_BYTES]);
    let mut ring = Ring::new((JOURNAL_BYTES / 4096) as u32, SHARD, BOOT, seed().shard(SHARD));
    for record in pages.iter().chain(journal) {
        let mut group = Group::default();
        assert!(group.push(ring.lsn_next(), record));
        let mut bytes = vec![0; group.blocks() as usize * 4096];
        let sealed = ring.seal(&group, &mut bytes).unwrap();
        let at = (JOURNAL + Ring::offset(sealed.block)) as usize;
        device[at..at + bytes.len()].copy_from_slice(&bytes);
        ring.written();
    }
    let volume = VolumeRecord {
        id: VOLUME,
        name: "v".into(),
        uuid: Uuid::nil(),
        size: 1 << 20,
        lba_bytes: 512,
        shards: vec![SHARD],
        created_unix_s: 0,
        exclusive: false,
        allowed_hosts: Vec::new(),
        cuts: Vec::new(),
        dead: Vec::new(),
        view: None,
        parent: None,
    };
    let spec = ShardSpec {
        id: SHARD,
        seed: seed(),
        boot: BOOT,
        headers: 0,
        journal: JOURNAL,
        journal_bytes: JOURNAL_BYTES,
        geometry: geometry().into(),
        slabs: [SlabId::new(0, 0)].into(),
        volumes: [(VOLUME, volume)].into(),
        removed: [].into(),
        dump: false,
    };
    Shard { device, spec }
}

fn sound() -> Shard {
    shard(&[set(0, 0), set(1, 1)], 0b11, &[set(2, 2)])
}

impl Shard {
    fn inspect(&self) -> ShardReport {
        inspect_shard(&self.spec, &mut |device, offset, len| {
            assert_eq!(device, 0);
            let bytes = self.device.get(offset as usize..offset as usize + len);
            bytes.map(<[u8]>::to_vec).ok_or_else(|| format!("{len} bytes at {offset} are beyond the end"))
        })
    }

    /// The only fault that is found, with its volume.
    #[track_caller]
    fn fault(&self) -> (Option<VolumeId>, String) {
        let report = self.inspect();
        let faults: Vec<_> = report.findings.iter().filter(|finding| finding.severity == Severity::Fault).collect();
        assert_eq!(faults.len(), 1, "{report:#?}");
        (faults[0].volume, faults[0].what.clone())
    }
}

#[test]
fn a_sound_shard_has_no_findings_and_its_clusters_are_counted() {
    let report = sound().inspect();
    assert_eq!(report.findings, []);
    assert_eq!((report.checkpoint, report.replayed, report.last_lsn), (GENERATION, 3, Lsn(3)));
    assert_eq!((report.clusters_used, report.clusters_leaked), (3, 0));
    assert_eq!(report.volumes[&VOLUME], VolumeUse { nodes: 1, clusters: 3 });
}

#[test]
fn a_dump_has_a_line_for_each_record_and_node() {
    let mut shard = sound();
    shard.spec.dump = true;
    let dump = shard.inspect().dump;
    let count = |what: &str| dump.iter().filter(|line| line.starts_with(what)).count();
    assert_eq!((count("checkpoint 3"), count("journal"), count("map of volume 7 range 0")), (1, 3, 1), "{dump:#?}");
}

#[test]
fn a_rotten_map_page_is_a_fault_of_its_volume() {
    let mut shard = sound();
    shard.device[cluster(10).offset() as usize + 100] ^= 1;
    let (volume, what) = shard.fault();
    assert!(volume == Some(VOLUME) && what.contains("checksum"), "{what}");
}

#[test]
fn a_rotten_image_is_a_fault_and_leaves_nothing_to_look_at() {
    let mut shard = sound();
    shard.device[cluster(11).offset() as usize + 100] ^= 1;
    let report = shard.inspect();
    assert_eq!(report.findings.len(), 2, "{report:#?}");
    assert!(report.findings[1].what.contains("no checkpoint"));
}

#[test]
fn a_torn_header_is_a_note_and_a_shard_without_any_is_lost() {
    let mut shard = sound();
    let slot = (GENERATION as usize + 1) % (RING_BYTES / HEADER_BYTES);
    let header = GENERATION as usize * HEADER_BYTES;
    shard.device.copy_within(header..header + HEADER_BYTES, slot * HEADER_BYTES);
    shard.device[slot * HEADER_BYTES + 50] ^= 1;
    let report = shard.inspect();
    assert_eq!(report.findings.iter().map(|finding| finding.severity).collect::<Vec<_>>(), [Severity::Note]);
    shard.device[header + 50] ^= 1;
    assert!(shard.fault().1.contains("no checkpoint"));
}

#[test]
fn a_lost_journal_group_that_a_later_one_vouches_for_is_a_fault_of_its_volume() {
    let mut shard = shard(&[set(0, 0), set(1, 1)], 0b11, &[set(2, 2), set(3, 3)]);
    // The third of four groups: the fourth says that it was durable.
    shard.device[(JOURNAL + 2 * 4096 + 650) as usize] ^= 1;
    let (volume, what) = shard.fault();
    assert!(volume == Some(VOLUME) && what.contains("journal group 3"), "{what}");
}

#[test]
fn a_torn_journal_tail_is_a_note() {
    let mut shard = sound();
    shard.device[(JOURNAL + 2 * 4096 + 650) as usize] ^= 1;
    let report = shard.inspect();
    assert_eq!(report.replayed, 2);
    assert!(report.findings.iter().all(|finding| finding.severity == Severity::Note), "{report:#?}");
    assert!(report.findings[0].what.contains("torn"), "{report:#?}");
}

#[test]
fn a_cluster_that_two_versions_name_is_a_fault() {
    let (volume, what) = shard(&[set(0, 0), set(1, 0)], 0b01, &[]).fault();
    assert!(volume == Some(VOLUME) && what.contains("another version"), "{what}");
}

#[test]
fn a_mapped_cluster_that_a_later_record_frees_is_a_fault() {
    let (volume, what) = shard(&[set(0, 0), set(1, 1)], 0b11, &[Record::Free { places: vec![cluster(1)] }]).fault();
    assert!(volume == Some(VOLUME) && what.contains("is free"), "{what}");
}

#[test]
fn a_used_cluster_that_nothing_names_is_a_note() {
    let report = shard(&[set(0, 0), set(1, 1)], 0b1_0011, &[]).inspect();
    assert_eq!((report.clusters_leaked, report.findings.len()), (1, 1), "{report:#?}");
    assert_eq!(report.findings[0].severity, Severity::Note);
}

#[test]
fn data_where_metadata_is_is_a_fault() {
    let report = shard(&[set(0, 0), set(1, 10)], 0b100_0000_0001, &[]).inspect();
    let faults: Vec<_> = report.findings.iter().map(|finding| finding.what.as_str()).collect();
    assert!(faults.iter().any(|what| what.contains("bitmap says that it holds data")), "{faults:#?}");
    assert!(faults.iter().any(|what| what.contains("cluster 1:") && what.contains("holds metadata")), "{faults:#?}");
}

#[test]
fn a_map_without_a_volume_is_a_fault_unless_the_volume_was_just_removed() {
    let mut shard = sound();
    shard.spec.volumes.clear();
    assert!(shard.fault().1.contains("no volume of the catalog"));
    shard.spec.removed.insert(VOLUME);
    assert_eq!(shard.inspect().findings, []);
}

#[test]
fn a_cluster_beyond_the_volume_or_in_a_foreign_slab_is_a_fault() {
    let mut small = sound();
    small.spec.volumes.get_mut(&VOLUME).unwrap().size = 2 * CLUSTER;
    assert!(small.fault().1.contains("beyond the end"));
    let mut foreign = sound();
    foreign.spec.slabs = [SlabId::new(0, 1)].into();
    assert!(foreign.inspect().findings.iter().any(|finding| finding.what.contains("not this shard's")));
}

#[test]
fn a_device_that_does_not_read_is_a_fault_and_no_panic() {
    let mut shard = sound();
    shard.device.truncate(JOURNAL as usize);
    let report = shard.inspect();
    assert!(
        report
            .findings
            .iter()
            .all(|finding| finding.what.contains("beyond the end") || finding.what.contains("no checkpoint"))
    );
    assert_eq!(shard.inspect().findings.len(), 2);
}

/// A version of cluster 0 that was born at `birth`, in place number `n`.
fn born(birth: u64, n: u64) -> Record {
    let version = Version { birth: Epoch(birth), ..version(n) };
    Record::Set { volume: VOLUME, cluster: 0, version, freed: Place::NONE }
}

#[test]
fn versions_that_snapshots_need_are_told_from_those_that_nobody_does() {
    let mut shard = shard(&[born(5, 0), born(15, 1)], 0b11, &[]);
    let report = shard.inspect();
    assert_eq!((report.clusters_used, report.clusters_leaked, report.clusters_unneeded), (2, 0, 1));
    shard.spec.volumes.get_mut(&VOLUME).unwrap().cuts = vec![Epoch(10)];
    let report = shard.inspect();
    assert_eq!((report.clusters_leaked, report.clusters_unneeded, report.findings.len()), (0, 0, 0));
}

#[test]
fn a_clone_of_a_cut_that_is_not_kept_is_a_fault() {
    let mut shard = sound();
    let parent = Parent { volume: VOLUME, epoch: Epoch(10), size: 1 << 20 };
    let clone = VolumeId(VOLUME.0 + 1);
    let record = VolumeRecord { id: clone, parent: Some(parent), ..shard.spec.volumes[&VOLUME].clone() };
    shard.spec.volumes.insert(clone, record);
    let (volume, what) = shard.fault();
    assert!(volume == Some(clone) && what.contains("no such cut is kept"), "{what}");
    shard.spec.volumes.get_mut(&VOLUME).unwrap().cuts = vec![Epoch(10)];
    assert_eq!(shard.inspect().findings.len(), 0);
    shard.spec.volumes.remove(&VOLUME);
    shard.spec.removed.insert(VOLUME);
    let found = shard.inspect().findings;
    assert!(found.iter().any(|found| found.what.contains("not in the catalog")), "{found:?}");
}
