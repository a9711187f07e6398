//! The allocator against a model, and each history it must stop.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::space::SlabArea;

fn space(slabs: u32, reserve: u64) -> Space {
    // 1 MiB slabs: 16 clusters, so that a word has bits beyond the slab.
    let geometry = Geometry::new(1 << 20, vec![SlabArea { start: 1 << 20, slabs: slabs + 1 }]);
    let mut space = Space::new(Arc::new(geometry), reserve);
    for number in 0..slabs {
        space.add_slab(SlabId::new(0, number));
    }
    space
}

fn reclaim(space: &mut Space, durable: u64, oldest: Ticket) -> Vec<Place> {
    let mut released = Vec::new();
    space.reclaim(Lsn(durable), oldest, &mut released);
    released
}

#[test]
fn consecutive_allocations_are_consecutive_on_the_device_and_each_is_given_once() {
    let mut space = space(2, 0);
    let places: Vec<_> = (0..32).map(|_| space.alloc().unwrap()).collect();
    assert!(places.windows(2).all(|pair| pair[1].offset() == pair[0].offset() + 65536));
    assert_eq!(space.alloc(), Err(AllocError::Full { slabs: 2 }));
}

#[test]
fn c7_a_freed_cluster_is_reused_only_when_its_unmapping_is_durable_and_older_operations_have_ended() {
    let mut space = space(1, 0);
    let places: Vec<_> = (0..16).map(|_| space.alloc().unwrap()).collect();
    for (n, &place) in places.iter().enumerate() {
        space.settle(place, Lsn(n as u64 + 1));
    }
    reclaim(&mut space, 16, Ticket::NEVER);
    space.free(places[3], Lsn(17), Ticket(9));
    assert_eq!(space.alloc(), Err(AllocError::Quarantined { quarantined: 1 }));
    assert_eq!(space.quarantine_lsn(), Some(Lsn(17)));
    assert_eq!(reclaim(&mut space, 16, Ticket::NEVER), [], "the record is not durable");
    assert_eq!(reclaim(&mut space, 17, Ticket(8)), [], "an operation of before is in flight");
    assert_eq!(reclaim(&mut space, 17, Ticket(9)), [places[3]]);
    assert_eq!(space.alloc(), Ok(places[3]));
}

#[test]
fn h7_data_stops_at_the_reserve_and_metadata_does_not() {
    let mut space = space(1, 3);
    for _ in 0..13 {
        space.alloc().unwrap();
    }
    assert!(space.alloc().is_err());
    assert_eq!(space.available(), 0);
    for _ in 0..3 {
        space.alloc_chunk().unwrap();
    }
    assert!(space.alloc_chunk().is_err());
}

#[test]
fn a_page_cluster_gives_sixteen_pages_and_is_free_after_the_last_is() {
    let mut space = space(1, 0);
    let pages: Vec<_> = (0..17).map(|_| space.alloc_page().unwrap()).collect();
    assert_eq!(pages.iter().collect::<BTreeSet<_>>().len(), 17);
    assert_eq!((space.counts().metadata, space.pages_in_use()), (2, 17));
    for &page in &pages {
        space.free_page(page);
    }
    assert_eq!((space.counts().metadata, space.counts().free), (0, 16));
}

#[test]
fn a_page_named_twice_or_inside_a_data_cluster_is_refused() {
    let mut space = space(1, 0);
    let data = space.geometry().place(SlabId::new(0, 0), 4);
    space.mark_used(data).unwrap();
    assert!(space.mark_page(data.page(2)).is_err());
    let page = space.geometry().place(SlabId::new(0, 0), 5).page(2);
    space.mark_page(page).unwrap();
    assert!(space.mark_page(page).is_err());
    assert!(space.mark_page(Place::from_raw(u64::MAX)).is_err());
    assert!(space.mark_chunk(data).is_err());
}

#[test]
fn places_in_slabs_of_others_are_refused() {
    let mut space = space(2, 0);
    let foreign = space.geometry().place(SlabId::new(0, 2), 0);
    assert_eq!(space.mark_used(foreign), Err(UnknownPlace(foreign)));
    assert_eq!(space.mark_free(foreign), Err(UnknownPlace(foreign)));
    assert!(!space.owns(foreign));
}

#[test]
fn only_an_empty_slab_leaves() {
    let mut space = space(2, 0);
    let place = space.alloc().unwrap();
    let (used, empty) = (SlabId::new(0, 0), SlabId::new(0, 1));
    assert_eq!(space.remove_slab(used), Err(SlabInUse(used)));
    space.remove_slab(empty).unwrap();
    assert_eq!(space.remove_slab(empty), Err(SlabInUse(empty)));
    space.give_back(place);
    assert_eq!(space.counts().free, 16);
    assert!(space.alloc().is_ok());
}

#[derive(Clone, Debug)]
enum Step {
    Alloc,
    Settle(usize),
    GiveBack(usize),
    Free(usize),
    Page,
    FreePage(usize),
    Commit(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => Just(Step::Alloc),
        4 => any::<usize>().prop_map(Step::Settle),
        1 => any::<usize>().prop_map(Step::GiveBack),
        3 => any::<usize>().prop_map(Step::Free),
        1 => Just(Step::Page),
        1 => any::<usize>().prop_map(Step::FreePage),
        2 => (0u64..6).prop_map(Step::Commit),
    ];
    proptest::collection::vec(step, 0..200)
}

/// A replayed record: maps or frees a place.
#[derive(Clone, Copy)]
enum Replay {
    Used(Place),
    Free(Place),
}

proptest! {
    /// Crash after any history: image of any checkpoint + replay of the durable records = what is mapped durably.
    #[test]
    fn an_image_and_the_durable_records_after_it_give_exactly_the_durably_mapped_clusters(
        steps in steps(), image_at in 0usize..200,
    ) {
        let mut space = space(3, 0);
        let (mut hand, mut mapped, mut pages) = (Vec::new(), Vec::new(), Vec::new());
        let mut log: Vec<Replay> = Vec::new();
        let mut durable = 0u64;
        let (mut image, mut replay_from) = (space.image(), 0u64);
        for (n, step) in steps.iter().enumerate() {
            match *step {
                Step::Alloc => hand.extend(space.alloc()),
                Step::Settle(i) if !hand.is_empty() => {
                    let place: Place = hand.swap_remove(i % hand.len());
                    log.push(Replay::Used(place));
                    space.settle(place, Lsn(log.len() as u64));
                    mapped.push(place);
                }
                Step::GiveBack(i) if !hand.is_empty() => space.give_back(hand.swap_remove(i % hand.len())),
                Step::Free(i) if !mapped.is_empty() => {
                    let place: Place = mapped.swap_remove(i % mapped.len());
                    log.push(Replay::Free(place));
                    space.free(place, Lsn(log.len() as u64), Ticket(n as u64));
                }
                Step::Page => pages.extend(space.alloc_page()),
                Step::FreePage(i) if !pages.is_empty() => space.free_page(pages.swap_remove(i % pages.len())),
                Step::Commit(n) => {
                    durable = (durable + n).min(log.len() as u64);
                    // Every second commit has an old operation in flight.
                    let oldest = if n % 2 == 0 { Ticket::NEVER } else { Ticket(n) };
                    reclaim(&mut space, durable, oldest);
                }
                _ => {}
            }
            if n == image_at {
                (image, replay_from) = (space.image(), durable);
            }
            let counts = space.counts();
            prop_assert_eq!(counts.data as usize, hand.len() + mapped.len());
        }
        // A replay may start earlier than the image.
        for from in [replay_from, replay_from / 2, 0] {
            let mut again = self::space(3, 0);
            for bitmap in &image {
                again.load_bitmap(bitmap).unwrap();
            }
            for record in &log[from as usize..durable as usize] {
                match *record {
                    Replay::Used(place) => again.mark_used(place).unwrap(),
                    Replay::Free(place) => again.mark_free(place).unwrap(),
                };
            }
            again.recovered(Lsn(durable));
            let mut expected = BTreeSet::new();
            for record in &log[..durable as usize] {
                match *record {
                    Replay::Used(place) => expected.insert(place),
                    Replay::Free(place) => expected.remove(&place),
                };
            }
            prop_assert_eq!(again.counts().data as usize, expected.len());
            prop_assert!(expected.iter().all(|&place| again.is_used(place)));
        }
    }
}
