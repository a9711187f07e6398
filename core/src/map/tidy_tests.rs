//! Tidying against what the views show before and after, for chains, cuts and rollbacks that nobody chose.

use proptest::prelude::*;

use super::*;
use crate::ids::{Epoch, Lsn, VolumeId};
use crate::limits::BLOCKS_PER_CLUSTER;
use crate::map::{MapNode, NodeKey, Record, Source, View};
use crate::space::Place;

/// Content of a device: by place and block, whose content it is (birth of the version that was written).
type Blocks = std::collections::HashMap<(Place, u32), u64>;

fn place(nth: u64) -> Place {
    Place::new(0, 4, (1 << 20) + nth * 65536)
}

fn chain() -> impl Strategy<Value = Vec<Version>> {
    let version = (1u64..60, proptest::collection::vec(0u32..3, 16), any::<bool>());
    proptest::collection::vec(version, 0..7).prop_map(|versions| {
        let mut chain: Vec<Version> = Vec::new();
        for (nth, (birth, states, empty)) in versions.into_iter().enumerate() {
            let mut raw = states.iter().enumerate().fold(0, |raw, (block, state)| raw | state << (2 * block));
            if empty {
                raw &= !0x5555_5555;
            }
            let states = BlockStates::from_raw(raw).unwrap();
            let place = if states.any_data() { place(nth as u64) } else { Place::NONE };
            let version = Version { birth: Epoch(birth), place, states };
            if !version.is_void() && chain.iter().all(|other| other.birth != version.birth) {
                chain.push(version);
            }
        }
        chain.sort_by_key(|version| std::cmp::Reverse(version.birth));
        chain
    })
}

fn node_of(chain: &[Version]) -> MapNode {
    let mut node = MapNode::new(NodeKey { volume: VolumeId(1), range: 0 });
    for (nth, &version) in chain.iter().enumerate() {
        let record = Record::Set { volume: VolumeId(1), cluster: 0, version, freed: Place::NONE };
        node.apply(Lsn(nth as u64 + 1), &record);
    }
    node
}

/// What a view shows, block by block: whose data, `None` for zeros, 0 for what no version decides.
fn shown(chain: &[Version], view: View<'_>, device: &Blocks, parent: bool) -> Vec<Option<u64>> {
    let node = node_of(chain);
    let mut all = Vec::new();
    for segment in node.lookup(0, 0..BLOCKS_PER_CLUSTER, view).iter() {
        all.extend(segment.blocks().map(|block| match segment.source {
            Source::Device(place) => Some(device[&(place, block)]),
            Source::Zero => None,
            Source::Below => parent.then_some(0),
        }));
    }
    all
}

fn all_shown(chain: &[Version], views: &Views, device: &Blocks, parent: bool) -> Vec<Vec<Option<u64>>> {
    let at = views.points().iter().map(|&cut| View::at(cut, views.dead()));
    at.chain([View::live(views.dead())]).map(|view| shown(chain, view, device, parent)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn every_step_leaves_every_view_as_it_was_and_the_last_leaves_nothing_to_spare(
        chain in chain(), cuts in proptest::collection::vec(1u64..60, 0..4), dead in proptest::option::of((1u64..40, 1u64..20)),
        parent: bool,
    ) {
        let dead: Vec<_> = dead.iter().map(|&(after, len)| (Epoch(after), Epoch(after + len))).collect();
        // A rollback takes the cuts of its interval along.
        let kept = cuts.into_iter().map(Epoch).filter(|&cut| dead.iter().all(|&(after, up_to)| cut <= after || cut > up_to));
        let views = Views::new(kept.collect(), &dead, parent);
        let mut device = Blocks::new();
        for version in chain.iter().filter(|version| version.place.is_some()) {
            device.extend((0..16).map(|block| ((version.place, block), version.birth.0)));
        }
        let before = all_shown(&chain, &views, &device, parent);
        let mut chain = chain;
        for step in 0.. {
            prop_assert!(step < 64, "it does not end: {:?}", chain);
            match tidy(&chain, &views) {
                Tidy::Clean => break,
                Tidy::Drop(version) => chain.retain(|other| *other != version),
                Tidy::Merge { kept, gone, blocks } => {
                    for block in crate::map::ones(blocks) {
                        let content = device[&(gone.place, block)];
                        device.insert((kept.place, block), content);
                    }
                    prop_assert_eq!(&all_shown(&chain, &views, &device, parent), &before, "copied, not recorded");
                    let at = chain.iter().position(|other| other.birth == kept.birth).unwrap();
                    chain[at] = kept;
                    prop_assert!(kept.is_sound());
                    prop_assert_eq!(&all_shown(&chain, &views, &device, parent), &before, "one record");
                    chain.retain(|other| other.birth != gone.birth);
                }
            }
            prop_assert_eq!(&all_shown(&chain, &views, &device, parent), &before);
        }
        // One version for each stretch of views at most, and each is needed.
        let needs = views.needs(&chain);
        prop_assert!(needs.versions.iter().all(|need| need.blocks != 0));
        let stretches: Vec<_> = chain.iter().map(|version| views.seeing(version.birth)).collect();
        prop_assert!(stretches.windows(2).all(|pair| pair[0] != pair[1]), "{:?}", chain);
    }
}
