//! Rings against drivers written here from the specification, and what broken and hostile drivers do.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use ringway_reactor::shared::SharedMemory;

use super::driver::{Driver, Piece};
use super::*;

const DESC: u64 = 0x1000;
const DRIVER: u64 = 0x6000;
const DEVICE: u64 = 0x8000;
const INDIRECT: u64 = 0x2_0000;
const DATA: u64 = 0x4_0000;
/// The last descriptor's room in the memory.
const END: u64 = (1 << 20) - 16;

/// A driver, and what tests want of it.
struct Guest(Driver);

impl std::ops::Deref for Guest {
    type Target = Driver;
    fn deref(&self) -> &Driver {
        &self.0
    }
}

impl std::ops::DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut Driver {
        &mut self.0
    }
}

fn piece(addr: u64, len: u32, write: bool) -> Piece {
    Piece { addr, len, write }
}

impl Guest {
    fn new(packed: bool, size: u16) -> Guest {
        let shared = SharedMemory::create("guest", 1 << 20).unwrap().1;
        let region = GuestRegion { guest: 0, len: 1 << 20, user: 0, memory: shared, offset: 0 };
        let base = if packed { 0x8000_8000 } else { 0 };
        let (desc, driver, device) = (DESC, DRIVER, DEVICE);
        let config = RingConfig { size, desc, driver, device, packed, event_idx: false, indirect: true, base };
        let memory = Arc::new(GuestMemory::new(vec![region]).unwrap());
        Guest(Driver::new(config, memory))
    }

    fn queue(&self) -> VirtQueue {
        VirtQueue::new(self.config(), self.memory(), None, None).unwrap()
    }

    fn queue_with(&self, region: &InflightRegion) -> VirtQueue {
        VirtQueue::new(self.config(), self.memory(), Some(region.clone()), None).unwrap()
    }

    /// A ring that begins where the driver is.
    fn queue_at_next(&self) -> VirtQueue {
        let (next, wrap) = self.next();
        let packed = self.config().packed;
        let word = u32::from(next | u16::from(wrap && packed) << 15);
        let base = if packed { word | word << 16 } else { word };
        VirtQueue::new(&RingConfig { base, ..*self.config() }, self.memory(), None, None).unwrap()
    }

    fn region(&self) -> InflightRegion {
        let (packed, size) = (self.config().packed, self.config().size);
        let memory = SharedMemory::create("inflight", inflight_bytes(packed, size)).unwrap().1;
        InflightRegion::new(memory, 0, packed, size)
    }
}

fn pop(queue: &mut VirtQueue, driver: &Guest) -> Option<Chain> {
    let mut chain = Chain::new();
    queue.pop(driver.memory(), &mut chain).unwrap().then_some(chain)
}

const READ_4K: [Piece; 3] = [
    Piece { addr: DATA, len: 16, write: false },
    Piece { addr: DATA + 4096, len: 4096, write: true },
    Piece { addr: DATA + 16, len: 1, write: true },
];

fn both(test: impl Fn(bool)) {
    test(false);
    test(true);
}

#[test]
fn a_chain_comes_out_as_it_was_laid_and_goes_back_when_published() {
    both(|packed| {
        let mut driver = Guest::new(packed, 8);
        let mut queue = driver.queue();
        assert!(pop(&mut queue, &driver).is_none());
        let id = driver.offer(&READ_4K);
        let chain = pop(&mut queue, &driver).unwrap();
        assert_eq!(chain.head().id, id);
        assert_eq!(chain.readable(), [Range { addr: DATA, len: 16 }]);
        assert_eq!(chain.writable(), [Range { addr: DATA + 4096, len: 4096 }, Range { addr: DATA + 16, len: 1 }]);
        assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (16, 4097));
        assert!(pop(&mut queue, &driver).is_none());
        queue.push(chain.head(), 4097);
        assert_eq!(driver.take_used(), None);
        assert!(queue.is_dirty() && queue.publish(), "the driver has not said that it does not want to be told");
        assert_eq!(driver.take_used(), Some((id, 4097)));
        assert!(!queue.is_dirty() && !queue.publish());
    });
}

#[test]
fn chains_go_back_in_any_order_over_many_laps() {
    both(|packed| {
        let mut driver = Guest::new(packed, 7 + u16::from(!packed));
        let mut queue = driver.queue();
        let mut in_flight = VecDeque::new();
        let (mut offered, mut returned) = (0u32, 0u32);
        while returned < 300_000 {
            while driver.room() >= 3 && offered % 5 != 4 {
                driver.offer(&READ_4K[..1 + offered as usize % 3]);
                offered += 1;
            }
            offered += u32::from(offered % 5 == 4);
            while let Some(chain) = pop(&mut queue, &driver) {
                in_flight.push_front(chain.head());
            }
            for _ in 0..1 + returned % 3 {
                if let Some(head) = in_flight.remove(returned as usize % in_flight.len().max(1)) {
                    queue.push(head, returned);
                }
            }
            let _ = queue.publish();
            while driver.take_used().is_some() {
                returned += 1;
            }
            returned += 1;
        }
    });
}

#[test]
fn indirect_tables_are_followed_and_their_faults_found() {
    both(|packed| {
        let mut driver = Guest::new(packed, 8);
        let mut queue = driver.queue();
        let id = driver.offer_indirect(INDIRECT, &READ_4K);
        let chain = pop(&mut queue, &driver).unwrap();
        assert_eq!((chain.head().id, chain.readable_bytes(), chain.writable_bytes()), (id, 16, 4097));
        let offer = |driver: &mut Guest, addr: u64, len: u32| {
            if packed {
                driver.offer_packed(5, &[piece(addr, len, false)], flag::INDIRECT);
            } else {
                driver.descriptor(DESC, 5, addr, len, flag::INDIRECT, 5);
                driver.offer_head(5);
            }
        };
        for (addr, len, expected) in [
            (INDIRECT, 0, RingError::BadIndirect { addr: INDIRECT, len: 0 }),
            (INDIRECT, 47, RingError::BadIndirect { addr: INDIRECT, len: 47 }),
            (1 << 20, 48, RingError::BadIndirect { addr: 1 << 20, len: 48 }),
            (END, 48, RingError::BadIndirect { addr: END, len: 48 }),
            (u64::MAX - 15, 48, RingError::BadIndirect { addr: u64::MAX - 15, len: 48 }),
        ] {
            // The last 16 bytes of the memory: a table that begins there and ends nowhere.
            driver.descriptor(END, 0, DATA, 1, if packed { 0 } else { flag::NEXT }, if packed { 0 } else { 1 });
            let mut queue = driver.queue_at_next();
            offer(&mut driver, addr, len);
            assert_eq!(queue.pop(driver.memory(), &mut Chain::new()), Err(expected));
        }
        // A table in a table.
        let nested = if packed { (0, flag::INDIRECT) } else { (flag::INDIRECT, 0) };
        driver.descriptor(INDIRECT, 0, INDIRECT, 48, nested.0, nested.1);
        let mut queue = driver.queue_at_next();
        offer(&mut driver, INDIRECT, 48);
        assert_eq!(queue.pop(driver.memory(), &mut Chain::new()), Err(RingError::MisplacedIndirect));
        // Not negotiated.
        driver.config_mut().indirect = false;
        let mut queue = driver.queue_at_next();
        offer(&mut driver, INDIRECT, 48);
        assert_eq!(queue.pop(driver.memory(), &mut Chain::new()), Err(RingError::MisplacedIndirect));
    });
}

#[test]
fn a_hostile_split_ring_ends_in_an_error_and_never_outside_its_memory() {
    let fresh = || Guest::new(false, 8);
    let fails = |driver: &Guest| driver.queue().pop(driver.memory(), &mut Chain::new()).unwrap_err();

    let driver = fresh();
    driver.set_word(DRIVER + 2, 9);
    assert_eq!(fails(&driver), RingError::IndexJump { from: 0, to: 9, size: 8 });

    let mut driver = fresh();
    driver.offer_head(8);
    assert_eq!(fails(&driver), RingError::NoDescriptor { index: 8, size: 8 });

    let mut driver = fresh();
    driver.descriptor(DESC, 0, DATA, 1, flag::NEXT, 300);
    driver.offer_head(0);
    assert_eq!(fails(&driver), RingError::NoDescriptor { index: 300, size: 8 });

    let mut driver = fresh();
    driver.descriptor(DESC, 0, DATA, 1, flag::NEXT, 1);
    driver.descriptor(DESC, 1, DATA, 1, flag::NEXT, 0);
    driver.offer_head(0);
    assert_eq!(fails(&driver), RingError::Endless(8));

    let mut driver = fresh();
    driver.offer(&[piece(DATA, 1, true), piece(DATA, 1, false)]);
    assert_eq!(fails(&driver), RingError::ReadAfterWrite);

    // More in flight than the ring has, by offering the same head again and again.
    let mut driver = fresh();
    let mut queue = driver.queue();
    driver.descriptor(DESC, 0, DATA, 1, 0, 0);
    for _ in 0..8 {
        driver.offer_head(0);
        assert!(pop(&mut queue, &driver).is_some());
    }
    driver.offer_head(0);
    assert_eq!(queue.pop(driver.memory(), &mut Chain::new()), Err(RingError::Overcommitted(8)));

    // Addresses that are nowhere are the request's business, not the ring's.
    let mut driver = fresh();
    driver.offer(&[piece(u64::MAX - 5, u32::MAX, false)]);
    let chain = pop(&mut driver.queue(), &driver).unwrap();
    assert!(chain.read(driver.memory(), 0, &mut [0; 16]).is_err());
    assert!(
        driver
            .memory()
            .data(&mut driver.memory().refs(), chain.readable_from(0, 512).map(|range| (range.addr, range.len)))
            .is_err()
    );
}

#[test]
fn a_hostile_packed_ring_ends_in_an_error() {
    let driver = Guest::new(true, 8);
    for index in 0..8 {
        driver.descriptor(DESC, index, DATA, 1, 0, flag::AVAIL | flag::NEXT);
    }
    assert_eq!(driver.queue().pop(driver.memory(), &mut Chain::new()), Err(RingError::Overcommitted(8)));

    // Made available again although nothing was used.
    let mut driver = Guest::new(true, 4);
    let mut queue = driver.queue();
    for _ in 0..4 {
        driver.offer_packed(0, &[piece(DATA, 1, true)], 0);
        assert!(pop(&mut queue, &driver).is_some());
    }
    driver.offer_packed(0, &[piece(DATA, 1, true)], 0);
    assert_eq!(queue.pop(driver.memory(), &mut Chain::new()), Err(RingError::Overcommitted(4)));
}

#[test]
fn a_ring_that_is_not_there_is_refused_with_what_is_wrong() {
    let driver = Guest::new(false, 8);
    let new = |config: RingConfig| VirtQueue::new(&config, driver.memory(), None, None).err().unwrap();
    let good = *driver.config();
    assert_eq!(new(RingConfig { size: 12, ..good }), SetupError::Size(12));
    assert_eq!(new(RingConfig { size: 0, ..good }), SetupError::Size(0));
    assert!(matches!(new(RingConfig { desc: 1 << 20, ..good }), SetupError::Unmapped { what: "descriptor table", .. }));
    assert!(matches!(
        new(RingConfig { device: (1 << 20) - 64, ..good }),
        SetupError::Unmapped { what: "used ring", .. }
    ));
    assert!(matches!(new(RingConfig { driver: DRIVER + 1, ..good }), SetupError::Alignment { align: 2, .. }));
    assert!(matches!(new(RingConfig { base: 1 << 16, ..good }), SetupError::Base { .. }));
    let packed = RingConfig { packed: true, ..good };
    assert!(matches!(new(RingConfig { base: 0x8009_8009, ..packed }), SetupError::Base { .. }));
    assert!(matches!(new(RingConfig { device: DEVICE + 2, ..packed }), SetupError::Alignment { align: 4, .. }));
}

#[test]
fn the_driver_is_told_exactly_when_it_wants_to_be() {
    let mut driver = Guest::new(false, 8);
    driver.config_mut().event_idx = true;
    let mut queue = driver.queue();
    let mut wanted = |driver: &mut Guest, event: u16| {
        driver.set_word(DRIVER + 4 + 16, event);
        driver.offer(&READ_4K[..1]);
        let head = pop(&mut queue, driver).unwrap().head();
        queue.push(head, 0);
        let told = queue.publish();
        driver.take_used().unwrap();
        told
    };
    // Used index goes 0 -> 1 -> 2 -> 3: an event index is passed once.
    assert_eq!([wanted(&mut driver, 0), wanted(&mut driver, 0), wanted(&mut driver, 2)], [true, false, true]);

    let mut driver = Guest::new(false, 8);
    let mut queue = driver.queue();
    driver.set_word(DRIVER, 1);
    driver.offer(&READ_4K[..1]);
    let head = pop(&mut queue, &driver).unwrap().head();
    queue.push(head, 0);
    assert!(!queue.publish());

    for (event_idx, flags, place, expected) in [
        (false, 0, 0, true),
        (false, 1, 0, false),
        (true, 1, 0x8000, false),
        (true, 2, 0x8000, true),
        (true, 2, 0x8001, false),
        (true, 2, 0x0000, false),
    ] {
        let mut driver = Guest::new(true, 8);
        driver.config_mut().event_idx = event_idx;
        let mut queue = driver.queue();
        driver.set_word(DRIVER, place);
        driver.set_word(DRIVER + 2, flags);
        driver.offer(&READ_4K[..1]);
        let head = pop(&mut queue, &driver).unwrap().head();
        queue.push(head, 0);
        assert_eq!(queue.publish(), expected, "{event_idx} {flags} {place:#x}");
    }
}

#[test]
fn arming_asks_for_a_kick_and_looks_once_more() {
    both(|packed| {
        for event_idx in [false, true] {
            let mut driver = Guest::new(packed, 8);
            driver.config_mut().event_idx = event_idx;
            let mut queue = driver.queue();
            let offer = |driver: &mut Guest, queue: &mut VirtQueue| {
                driver.offer(&READ_4K[..1]);
                let wanted = driver.wants_kick();
                let head = pop(queue, driver).unwrap().head();
                queue.push(head, 0);
                let _ = queue.publish();
                driver.take_used().unwrap();
                wanted
            };
            for _ in 0..20 {
                assert!(!offer(&mut driver, &mut queue), "polled from the start");
                assert!(queue.arm());
                assert!(offer(&mut driver, &mut queue), "packed: {packed}, event index: {event_idx}");
                queue.disarm();
            }
            driver.offer(&READ_4K);
            assert!(!queue.arm(), "there is something");
            queue.disarm();
            assert!(pop(&mut queue, &driver).is_some());
            assert!(queue.arm());
        }
    });
}

#[test]
fn what_the_device_writes_to_its_ring_is_logged() {
    both(|packed| {
        let mut driver = Guest::new(packed, 8);
        let bits = SharedMemory::create("log", 4096).unwrap().1;
        let used = UsedLog {
            log: Arc::new(DirtyLog::new(Arc::clone(&bits), 0, 4096)),
            ring: if packed { DESC } else { DEVICE },
            device: DEVICE,
        };
        let mut queue = VirtQueue::new(driver.config(), driver.memory(), None, Some(used)).unwrap();
        driver.offer(&READ_4K);
        let head = pop(&mut queue, &driver).unwrap().head();
        assert_eq!(bits.load_u64(0, Ordering::Acquire), 0);
        queue.push(head, 0);
        let _ = queue.publish();
        assert_eq!(bits.load_u64(0, Ordering::Acquire), if packed { 1 << 1 } else { 1 << 8 });
        assert!(queue.arm());
        assert_eq!(bits.load_u64(0, Ordering::Acquire), if packed { 1 << 1 | 1 << 8 } else { 1 << 8 });
    });
}

#[test]
fn a_packed_ring_of_a_front_end_that_knows_only_split_bases_begins_in_its_first_lap() {
    let mut driver = Guest::new(true, 4);
    driver.config_mut().base = 0;
    driver.offer(&READ_4K);
    let mut queue = driver.queue();
    let head = pop(&mut queue, &driver).unwrap().head();
    queue.push(head, 1);
    let _ = queue.publish();
    driver.take_used().unwrap();
    driver.offer(&READ_4K[..1]);
    let head = pop(&mut queue, &driver).unwrap().head();
    queue.push(head, 1);
    let _ = queue.publish();
    driver.take_used().unwrap();
    assert_eq!((driver.next(), queue.base()), ((0, false), 0), "the second lap begins");
    // The same base now means what it says.
    driver.offer(&READ_4K);
    assert!(pop(&mut driver.queue(), &driver).is_some());
}

#[derive(Clone, Debug)]
enum Step {
    Offer(usize),
    Pop,
    Push(usize),
    Publish,
    Kill,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1..4usize).prop_map(Step::Offer),
        4 => Just(Step::Pop),
        3 => any::<usize>().prop_map(Step::Push),
        2 => Just(Step::Publish),
        1 => Just(Step::Kill),
    ];
    proptest::collection::vec(step, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whoever takes over after a kill gets exactly the chains that were taken and that the driver has not seen the end of, in the
    /// order in which they were taken, and then the rest; the front end's own idea of the base does not matter.
    #[test]
    fn a_successor_takes_up_exactly_what_was_in_flight(packed: bool, steps in steps(), stale_base: u8) {
        let mut driver = Guest::new(packed, 16);
        let region = driver.region();
        let mut queue = driver.queue_with(&region);
        let mut offered = VecDeque::new();
        // Taken and not seen to end by the driver, with whether it was pushed.
        let mut taken: Vec<(Chain, bool)> = Vec::new();
        for step in steps {
            match step {
                Step::Offer(count) if driver.room() >= count => offered.push_back(driver.offer(&READ_4K[..count])),
                Step::Offer(_) => {}
                Step::Pop => {
                    // Publishes what was pushed.
                    let chain = pop(&mut queue, &driver);
                    taken.retain(|(_, pushed)| !pushed);
                    prop_assert_eq!(chain.as_ref().map(|chain| chain.head().id), offered.pop_front());
                    taken.extend(chain.map(|chain| (chain, false)));
                    while driver.take_used().is_some() {}
                }
                Step::Push(which) => {
                    let left: Vec<usize> = (0..taken.len()).filter(|&at| !taken[at].1).collect();
                    if let Some(&at) = left.get(which % left.len().max(1)) {
                        let head = taken[at].0.head();
                        if packed {
                            // One at a time: those before it are shown.
                            taken.retain(|(_, pushed)| !pushed);
                        }
                        queue.push(head, 0);
                        let pushed = taken.iter_mut().find(|(chain, _)| chain.head() == head);
                        pushed.expect("it is in flight").1 = true;
                        while driver.take_used().is_some() {}
                    }
                }
                Step::Publish => {
                    let _ = queue.publish();
                    taken.retain(|(_, pushed)| !pushed);
                    while driver.take_used().is_some() {}
                }
                Step::Kill => {
                    if !packed {
                        driver.config_mut().base = u32::from(driver.used().wrapping_sub(u16::from(stale_base % 3)));
                    }
                    queue = driver.queue_with(&region);
                    prop_assert_eq!(queue.left_over(), taken.len());
                    for (old, pushed) in &mut taken {
                        let again = pop(&mut queue, &driver).unwrap();
                        prop_assert_eq!(again.head().id, old.head().id);
                        prop_assert_eq!(again.readable(), old.readable());
                        prop_assert_eq!(again.writable(), old.writable());
                        (*old, *pushed) = (again, false);
                    }
                }
            }
        }
        while driver.take_used().is_some() {}
        prop_assert_eq!(driver.outstanding(), offered.len() + taken.len());
    }

    /// A region that somebody has scribbled on is refused or gives chains that are checked: nothing panics.
    #[test]
    fn a_region_full_of_anything_does_no_harm(
        packed: bool,
        bytes in proptest::collection::vec(any::<u8>(), 32 + 32 * 8),
        version in 0..3u16,
    ) {
        let mut driver = Guest::new(packed, 8);
        let memory = SharedMemory::create("inflight", inflight_bytes(packed, 8)).unwrap().1;
        memory.write(0, &bytes[..memory.len().min(bytes.len())]);
        memory.store_u16(8, version, Ordering::Relaxed);
        memory.store_u16(10, 8, Ordering::Relaxed);
        let region = InflightRegion::new(memory, 0, packed, 8);
        driver.offer(&READ_4K);
        let Ok(mut queue) = VirtQueue::new(driver.config(), driver.memory(), Some(region), None) else { return Ok(()) };
        let mut chain = Chain::new();
        let mut heads = Vec::new();
        while let Ok(true) = queue.pop(driver.memory(), &mut chain) {
            heads.push(chain.head());
        }
        for head in heads {
            queue.push(head, 1);
        }
        let _ = queue.publish();
    }
}
