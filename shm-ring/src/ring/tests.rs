//! The protocol of one queue, both sides in one thread; what two threads may see of each other is loom's.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, fence};

use proptest::prelude::*;

use super::*;
use crate::command::Command;

/// Words that nobody shares.
pub(crate) struct HeapWords(Vec<AtomicU64>);

impl HeapWords {
    pub(crate) fn new(bytes: usize) -> HeapWords {
        HeapWords((0..bytes / 8).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Words for HeapWords {
    fn load(&self, offset: usize, order: Ordering) -> u64 {
        self.0[offset / 8].load(order)
    }

    fn store(&self, offset: usize, value: u64, order: Ordering) {
        self.0[offset / 8].store(value, order);
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

type Pair = (ClientQueue<Arc<HeapWords>>, TargetQueue<Arc<HeapWords>>, Arc<HeapWords>);

fn pair(entries: u16, generation: u32) -> Pair {
    let words = Arc::new(HeapWords::new(QueuePlace::bytes(entries)));
    let place = QueuePlace::new(0, entries);
    let client = ClientQueue::new(Arc::clone(&words), place, generation);
    (client, TargetQueue::new(Arc::clone(&words), place, generation), words)
}

fn numbered(cid: u16) -> CommandWords {
    Command::read(u64::from(cid) * 8, 8).with_data(u64::from(cid) * 4096, 4096).with_cid(cid).words()
}

fn done(cid: u16) -> Completion {
    Completion { cid, status: cid & 0x7FFF, result: u32::from(cid) * 3 }
}

#[test]
fn commands_arrive_in_order_and_completions_in_theirs_over_many_laps() {
    let (mut client, mut target, _) = pair(4, 9);
    for lap in 0..100u16 {
        for cid in lap * 4..lap * 4 + 4 {
            assert!(client.has_room());
            client.submit(numbered(cid));
        }
        assert!(!client.has_room());
        for cid in lap * 4..lap * 4 + 4 {
            assert!(target.has_command());
            assert_eq!(target.take(), Ok(Some(numbered(cid))));
        }
        assert_eq!((target.take(), target.outstanding()), (Ok(None), 4));
        assert_eq!(client.take(), None);
        for cid in (lap * 4..lap * 4 + 4).rev() {
            target.post(done(cid));
        }
        for cid in (lap * 4..lap * 4 + 4).rev() {
            assert_eq!(client.take(), Some(done(cid)));
        }
        assert_eq!(client.take(), None);
    }
}

#[test]
fn positions_go_round_through_zero() {
    let (mut client, mut target, _) = pair(2, 1);
    (client.tail, client.consumed, target.head, target.posted) = (u32::MAX, u32::MAX, u32::MAX, u32::MAX);
    for cid in 0..6 {
        client.submit(numbered(cid));
        assert_eq!(target.take(), Ok(Some(numbered(cid))));
        target.post(done(cid));
        assert_eq!(client.take(), Some(done(cid)));
    }
    assert_eq!(client.tail, 5);
}

#[test]
fn what_an_earlier_connection_left_in_the_ring_is_nothing() {
    let (mut client, mut target, words) = pair(4, 1);
    for cid in 0..3 {
        client.submit(numbered(cid));
    }
    assert_eq!(target.take(), Ok(Some(numbered(0))));
    target.post(done(0));
    let place = QueuePlace::new(0, 4);
    let mut client = ClientQueue::new(Arc::clone(&words), place, 2);
    let mut target = TargetQueue::new(words, place, 2);
    assert_eq!((client.take(), target.take()), (None, Ok(None)));
    client.submit(numbered(7));
    assert_eq!(target.take(), Ok(Some(numbered(7))));
    assert_eq!(target.take(), Ok(None));
}

#[test]
fn a_command_that_is_changed_after_it_was_taken_stays_what_it_was() {
    let (mut client, mut target, words) = pair(2, 1);
    client.submit(numbered(1));
    let taken = target.take().unwrap().unwrap();
    for word in 0..8 {
        words.store(COMMANDS + 8 * word, u64::MAX, Ordering::Relaxed);
    }
    assert_eq!(taken, numbered(1));
    // The scribbled ticket is nobody's: the queue goes on with what comes next.
    client.submit(numbered(2));
    assert_eq!(target.take(), Ok(Some(numbered(2))));
}

#[test]
fn a_client_that_stops_consuming_is_stopped_at_the_depth_of_its_queue() {
    let (mut client, mut target, words) = pair(4, 1);
    for cid in 0..4 {
        client.submit(numbered(cid));
        target.take().unwrap().unwrap();
        target.post(done(cid));
    }
    // It goes on as if it had consumed, and does not say so.
    let at = QueuePlace::new(0, 4).command(4);
    words.store(at + 8 * CONSUMED, 0, Ordering::Relaxed);
    words.store(at + 8 * TICKET, ticket(1, 4), Ordering::Relaxed);
    let violation = target.take().unwrap_err();
    assert_eq!(violation, Violation::Overrun { position: 4, unconsumed: 4, entries: 4 });
    assert!(violation.to_string().contains("has 4 entries"), "{violation}");
    // None of the completions it has not consumed was overwritten.
    for cid in 0..4 {
        assert_eq!(client.take(), Some(done(cid)));
    }
}

#[test]
fn a_client_that_consumed_what_was_never_posted_is_found_out() {
    let (_, mut target, words) = pair(4, 1);
    for position in 0..2u32 {
        let at = QueuePlace::new(0, 4).command(position);
        words.store(at + 8 * CONSUMED, u64::from(position), Ordering::Relaxed);
        words.store(at + 8 * TICKET, ticket(1, position), Ordering::Relaxed);
    }
    target.take().unwrap().unwrap();
    assert_eq!(target.take(), Err(Violation::Consumed { position: 1, consumed: 1, posted: 0 }));
    assert_eq!(target.outstanding(), 1);
}

#[test]
fn a_bell_is_rung_once_and_only_for_who_sleeps() {
    let (mut client, mut target, _) = pair(4, 1);
    client.submit(numbered(0));
    assert!(!client.must_ring(), "the target polls");
    target.take().unwrap().unwrap();
    target.arm();
    target.fence();
    assert!(!target.has_command());
    client.submit(numbered(1));
    assert!(client.must_ring());
    assert!(!client.must_ring(), "it was rung");
    target.disarm();
    target.post(done(0));
    assert!(!target.must_ring(), "the client polls");
    assert!(!client.arm(), "there is a completion");
    client.take().unwrap();
    assert!(client.arm());
    target.take().unwrap().unwrap();
    target.post(done(1));
    assert!(target.is_unannounced() && target.must_ring() && !target.is_unannounced());
    assert!(!target.must_ring());
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Submit,
    Take,
    Post(usize),
    Consume,
    /// Writes a word anywhere.
    Scribble(usize, u64),
}

fn honest() -> impl Strategy<Value = Step> {
    prop_oneof![Just(Step::Submit), Just(Step::Take), any::<usize>().prop_map(Step::Post), Just(Step::Consume)]
}

fn hostile() -> impl Strategy<Value = Step> {
    let value = prop_oneof![any::<u64>(), 0u64..20, (0u64..20).prop_map(|low| 1 << 32 | low)];
    prop_oneof![4 => honest(), 1 => (any::<usize>(), value).prop_map(|(at, value)| Step::Scribble(at, value))]
}

proptest! {
    #[test]
    fn every_command_is_taken_once_and_completed_once(log in 1u32..5, steps in prop::collection::vec(honest(), 0..400)) {
        let entries = 1u16 << log;
        let (mut client, mut target, _) = pair(entries, 3);
        let (mut next, mut submitted, mut running, mut posted) = (0u16, VecDeque::new(), Vec::new(), VecDeque::new());
        for step in steps {
            match step {
                Step::Submit if client.has_room() => {
                    client.submit(numbered(next));
                    submitted.push_back(next);
                    next += 1;
                }
                Step::Take => {
                    let expected = submitted.pop_front();
                    prop_assert_eq!(target.take(), Ok(expected.map(numbered)));
                    running.extend(expected);
                }
                Step::Post(which) if !running.is_empty() => {
                    let cid = running.swap_remove(which % running.len());
                    target.post(done(cid));
                    posted.push_back(cid);
                }
                Step::Consume => prop_assert_eq!(client.take(), posted.pop_front().map(done)),
                _ => {}
            }
            prop_assert_eq!(target.outstanding() as usize, running.len());
            prop_assert_eq!(client.outstanding() as usize, submitted.len() + running.len() + posted.len());
        }
    }

    #[test]
    fn whatever_a_client_scribbles_the_target_stays_within_its_bounds(steps in prop::collection::vec(hostile(), 0..400)) {
        let (mut client, mut target, words) = pair(4, 1);
        for step in steps {
            match step {
                Step::Submit if client.has_room() => client.submit(numbered(1)),
                Step::Take => match target.take() {
                    Ok(_) => prop_assert!(target.outstanding() <= 4),
                    // Its connection ends here.
                    Err(_) => return Ok(()),
                },
                Step::Post(_) if target.outstanding() > 0 => target.post(done(1)),
                Step::Consume => drop(client.take()),
                Step::Scribble(at, value) => words.store(at % QueuePlace::bytes(4) / 8 * 8, value, Ordering::Relaxed),
                _ => {}
            }
        }
    }
}
