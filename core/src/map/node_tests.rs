//! Map nodes against a model that keeps every version of every block in a plain list.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::map::record::tests::{geometry, record};
use crate::space::SlabId;

const VOLUME: VolumeId = VolumeId(1);
const KEY: NodeKey = NodeKey { volume: VOLUME, range: 0 };

type Model = BTreeMap<(u32, Epoch), Version>;

fn apply_to_model(model: &mut Model, record: &Record) {
    match *record {
        Record::Set { cluster, version, .. } if !version.is_void() => {
            model.insert((cluster, version.birth), version);
        }
        Record::Set { cluster, version: Version { birth, .. }, .. } | Record::Drop { cluster, birth, .. } => {
            model.remove(&(cluster, birth));
        }
        Record::DropRange { .. } => model.clear(),
        Record::Free { .. } | Record::Seal { .. } | Record::Release { .. } => {}
    }
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    proptest::collection::vec(record(), 0..60).prop_map(|mut records| {
        records.retain(|record| NodeKey::of_record(record) == Some(KEY));
        // Few clusters, so that chains grow.
        for record in &mut records {
            if let Record::Set { cluster, .. } | Record::Drop { cluster, .. } = record {
                *cluster %= 4;
            }
        }
        records
    })
}

fn built(records: &[Record]) -> MapNode {
    let mut node = MapNode::new(KEY);
    for (n, record) in records.iter().enumerate() {
        assert_eq!(node.apply(Lsn(n as u64 + 1), record), Applied::Changed);
    }
    node
}

proptest! {
    #[test]
    fn every_block_of_every_view_resolves_as_a_plain_list_of_versions_would(
        records in records(), at in 0u64..22, dead in proptest::collection::vec((0u64..20, 1u64..10), 0..3),
    ) {
        let node = built(&records);
        let mut model = Model::new();
        records.iter().for_each(|record| apply_to_model(&mut model, record));
        let dead: Vec<_> = dead.iter().map(|&(after, len)| (Epoch(after), Epoch(after + len))).collect();
        for view in [View::live(&dead), View::at(Epoch(at), &dead)] {
            for index in 0..5 {
                let segments = node.lookup(index, 0..16, view);
                let mut next = 0;
                for pair in segments.windows(2) {
                    prop_assert_ne!(pair[0].source, pair[1].source);
                }
                for segment in segments.iter() {
                    prop_assert_eq!(segment.first, next);
                    next += segment.count;
                    for block in segment.blocks() {
                        let seen = model.range((index, Epoch(0))..=(index, Epoch(u64::MAX))).rev().map(|(_, version)| version);
                        let expected = seen.filter(|version| view.sees(version.birth)).find_map(|version| {
                            match version.states.get(block) {
                                BlockState::Absent => None,
                                BlockState::Data => Some(Source::Device(version.place)),
                                BlockState::Zero => Some(Source::Zero),
                            }
                        });
                        prop_assert_eq!(segment.source, expected.unwrap_or(Source::Below));
                    }
                }
                prop_assert_eq!(next, 16);
            }
        }
    }

    #[test]
    fn replaying_from_any_earlier_record_ends_the_same(records in records(), from: prop::sample::Index) {
        let node = built(&records);
        let mut again = node.clone();
        let from = if records.is_empty() { 0 } else { from.index(records.len()) };
        for (n, record) in records.iter().enumerate().skip(from) {
            prop_assert_eq!(again.apply(Lsn(n as u64 + 1), record), Applied::Already);
        }
        prop_assert_eq!(&again, &node);
        // Also onto a page that is older than the newest record.
        let mut half = built(&records[..from]);
        for (n, record) in records.iter().enumerate() {
            half.apply(Lsn(n as u64 + 1), record);
        }
        prop_assert_eq!(half, node);
    }

    #[test]
    fn the_records_that_drop_a_node_empty_it_and_free_each_of_its_places(records in records()) {
        let mut node = built(&records);
        let mut expected: Vec<_> = node.versions().map(|(_, v)| v.place).filter(|p| p.is_some()).collect();
        let drops = node.drop_records();
        let mut freed: Vec<_> = drops.iter().flat_map(|record| record.freed().to_vec()).collect();
        expected.sort();
        freed.sort();
        prop_assert_eq!(freed, expected);
        for (n, record) in drops.iter().enumerate() {
            node.apply(Lsn(1000 + n as u64), record);
        }
        prop_assert!(node.is_empty() && node.older_count() == 0);
    }
}

fn version(birth: u64, cluster: Option<u32>, states: BlockStates) -> Version {
    let place = cluster.map_or(Place::NONE, |cluster| geometry().place(SlabId::new(0, 0), cluster));
    Version { birth: Epoch(birth), place, states }
}

fn set(cluster: u32, version: Version) -> Record {
    Record::Set { volume: VOLUME, cluster, version, freed: Place::NONE }
}

#[test]
fn c6_a_block_zeroed_after_a_cut_hides_the_older_data_and_the_cut_still_has_it() {
    let old = version(5, Some(0), BlockStates::DATA);
    let zeroed = version(9, None, BlockStates::ABSENT.with(3..4, BlockState::Zero));
    let node = built(&[set(7, old), set(7, zeroed)]);
    let live = node.lookup(7, 2..5, View::live(&[]));
    assert_eq!(
        live.iter().map(|s| s.source).collect::<Vec<_>>(),
        [Source::Device(old.place), Source::Zero, Source::Device(old.place)]
    );
    assert_eq!(node.lookup(7, 2..5, View::at(Epoch(8), &[])).len(), 1);
    assert_eq!(node.lookup_below(7, 3..4, Epoch(9), View::live(&[]))[0].source, Source::Device(old.place));
}

#[test]
fn c9_filling_the_bottom_of_a_chain_changes_only_what_was_below_it() {
    let top = version(9, Some(1), BlockStates::ABSENT.with(0..8, BlockState::Data));
    let fill = version(2, Some(2), BlockStates::DATA);
    let node = built(&[set(0, top), set(0, fill)]);
    let live = node.lookup(0, 0..16, View::live(&[]));
    assert_eq!((live[0].source, live[1].source), (Source::Device(top.place), Source::Device(fill.place)));
    assert_eq!(node.newest(0), Some(&top));
}

#[test]
fn h10_a_rollback_hides_what_was_written_after_its_target_but_not_from_snapshots_before_it() {
    let node = built(&[
        set(0, version(5, Some(0), BlockStates::DATA)),
        set(0, version(15, Some(1), BlockStates::DATA)),
        set(0, version(25, Some(2), BlockStates::DATA)),
    ]);
    let place = |view| match node.lookup(0, 0..1, view)[0].source {
        Source::Device(place) => place.offset(),
        _ => 0,
    };
    let of = |cluster| geometry().place(SlabId::new(0, 0), cluster).offset();
    let dead = [(Epoch(10), Epoch(30))];
    assert_eq!(place(View::live(&dead)), of(0));
    assert_eq!(place(View::at(Epoch(20), &dead)), of(1), "a snapshot between target and rollback keeps its data");
    assert_eq!(place(View::at(Epoch(40), &dead)), of(0));
}

#[test]
fn a_node_stays_dirty_from_the_first_change_that_no_finished_write_had() {
    let mut node =
        built(&[set(0, version(5, Some(0), BlockStates::DATA)), set(1, version(5, Some(1), BlockStates::DATA))]);
    assert_eq!((node.first_dirty(), node.last_lsn()), (Some(Lsn(1)), Lsn(2)));
    node.begin_write();
    node.apply(Lsn(3), &set(2, version(5, Some(2), BlockStates::DATA)));
    assert_eq!(node.first_dirty(), Some(Lsn(1)));
    node.end_write(false);
    assert_eq!(node.first_dirty(), Some(Lsn(1)));
    node.begin_write();
    node.apply(Lsn(4), &set(3, version(5, Some(3), BlockStates::DATA)));
    node.end_write(true);
    assert_eq!(node.first_dirty(), Some(Lsn(4)));
    node.begin_write();
    node.end_write(true);
    assert_eq!(node.first_dirty(), None);
}

#[test]
fn a_filled_node_takes_at_most_32_bytes_a_cluster() {
    let mut node = MapNode::new(KEY);
    for cluster in 0..128 {
        node.apply(Lsn(u64::from(cluster) + 1), &set(cluster, version(1, Some(cluster % 64), BlockStates::DATA)));
    }
    assert!(node.bytes() <= 32 * 128, "{} bytes", node.bytes());
    assert_eq!(node.mapped(), 128);
}
