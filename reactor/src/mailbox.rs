//! Messages between reactors, and from control threads to a reactor.
//!
//! A mesh has one SPSC ring for each ordered pair of reactors and one bitmap a receiver that says which rings have
//! something, so that a turn looks at one word and not at every peer. Nobody ever waits on a push (history H13): what does not
//! fit a ring waits in the sender's own backlog, in order, and goes out in a later turn; callers bound what they send by their
//! permits.
//!
//! Invariants: messages of one sender to one receiver arrive in the order sent; a receiver that sleeps is woken by the first
//! message published after it announced its sleep; a reactor with a backlog does not sleep.

mod signal;

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use crossbeam_queue::SegQueue;
use rtrb::{Consumer, Producer, RingBuffer};

use crate::io::Wake;
use signal::{Signal, sender_fence};

/// What others share of a receiver.
struct Inbox<T> {
    signal: Signal,
    waker: OnceLock<Arc<dyn Wake>>,
    control: SegQueue<T>,
    /// The bit of the control threads: one past the reactors.
    control_bit: usize,
}

impl<T> Inbox<T> {
    /// After [`sender_fence`].
    fn wake_if_parked(&self) {
        if self.signal.must_wake() {
            self.waker.get().expect("a reactor has its waker before it parks").wake();
        }
    }
}

/// Makes the endpoints of all reactors of a process.
pub struct Mesh<T>(std::marker::PhantomData<T>);

impl<T: Send> Mesh<T> {
    /// One endpoint for each of `reactors`, in order; `capacity` messages fit the ring of a pair.
    ///
    /// # Panics
    /// If either is 0.
    #[must_use]
    #[expect(clippy::new_ret_no_self, reason = "a mesh is nothing but its endpoints")]
    pub fn new(reactors: usize, capacity: usize) -> Vec<Endpoint<T>> {
        assert!(reactors > 0 && capacity > 0, "a mesh has reactors and its rings have room");
        let inboxes: Arc<[Inbox<T>]> = (0..reactors)
            .map(|_| Inbox {
                signal: Signal::new(reactors + 1),
                waker: OnceLock::new(),
                control: SegQueue::new(),
                control_bit: reactors,
            })
            .collect();
        let mut endpoints: Vec<_> = (0..reactors)
            .map(|index| Endpoint {
                index,
                inboxes: Arc::clone(&inboxes),
                outgoing: Vec::with_capacity(reactors),
                incoming: Vec::with_capacity(reactors),
                unpublished: Vec::with_capacity(reactors),
                backlog_len: 0,
            })
            .collect();
        for from in 0..reactors {
            for to in 0..reactors {
                // A reactor's ring to itself stays empty: its own messages go through the backlog alone.
                let (producer, consumer) = RingBuffer::new(if from == to { 1 } else { capacity });
                endpoints[from].outgoing.push(Lane { producer, backlog: VecDeque::new(), unpublished: false });
                endpoints[to].incoming.push(consumer);
            }
        }
        endpoints
    }
}

struct Lane<T> {
    producer: Producer<T>,
    backlog: VecDeque<T>,
    unpublished: bool,
}

/// One reactor's end of the mesh.
pub struct Endpoint<T> {
    index: usize,
    inboxes: Arc<[Inbox<T>]>,
    outgoing: Vec<Lane<T>>,
    incoming: Vec<Consumer<T>>,
    /// Peers whose ring got something since the last flush.
    unpublished: Vec<usize>,
    /// Messages in all backlogs.
    backlog_len: usize,
}

impl<T: Send> Endpoint<T> {
    /// Which reactor this is.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Reactors in the mesh, this one included.
    #[must_use]
    pub fn peers(&self) -> usize {
        self.inboxes.len()
    }

    /// Messages that wait for room in a ring, or for this reactor's own next turn.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.backlog_len
    }

    /// Sends `message` to reactor `to`; it is seen there after the next [`Endpoint::flush`]. Never fails, never waits. A
    /// message to oneself arrives with the next [`Endpoint::receive`].
    ///
    /// # Panics
    /// If there is no reactor `to`.
    pub fn send(&mut self, to: usize, message: T) {
        let lane = &mut self.outgoing[to];
        let rejected = if to == self.index || !lane.backlog.is_empty() {
            Some(message)
        } else {
            lane.producer.push(message).err().map(|rtrb::PushError::Full(message)| message)
        };
        match rejected {
            Some(message) => {
                lane.backlog.push_back(message);
                self.backlog_len += 1;
            }
            None if !lane.unpublished => {
                lane.unpublished = true;
                self.unpublished.push(to);
            }
            None => {}
        }
    }

    /// Moves backlogs into rings that have room again, then publishes everything sent and wakes whoever sleeps.
    pub fn flush(&mut self) {
        if self.backlog_len > 0 {
            self.refill();
        }
        if self.unpublished.is_empty() {
            return;
        }
        for &to in &self.unpublished {
            self.inboxes[to].signal.publish(self.index);
        }
        sender_fence();
        for to in self.unpublished.drain(..) {
            self.outgoing[to].unpublished = false;
            self.inboxes[to].wake_if_parked();
        }
    }

    fn refill(&mut self) {
        for (to, lane) in self.outgoing.iter_mut().enumerate() {
            if to == self.index {
                continue;
            }
            while !lane.backlog.is_empty() && !lane.producer.is_full() {
                let message = lane.backlog.pop_front().expect("not empty, looked at above");
                assert!(lane.producer.push(message).is_ok(), "only this end pushes, and there was room");
                self.backlog_len -= 1;
                if !lane.unpublished {
                    lane.unpublished = true;
                    self.unpublished.push(to);
                }
            }
        }
    }

    /// Appends what the reactors sent to this one as `(from, message)`. At most a ringful a peer, so a turn has an end.
    pub fn receive(&mut self, out: &mut Vec<(usize, T)>) {
        let own = &mut self.outgoing[self.index].backlog;
        self.backlog_len -= own.len();
        out.extend(own.drain(..).map(|message| (self.index, message)));
        let (inbox, incoming) = (&self.inboxes[self.index], &mut self.incoming);
        inbox.signal.take(|from| {
            if from == inbox.control_bit {
                return; // `receive_control` looks at the queue itself
            }
            let ring = &mut incoming[from];
            let chunk = ring.read_chunk(ring.slots()).expect("as many as were there a moment ago");
            out.extend(chunk.into_iter().map(|message| (from, message)));
        });
    }

    /// Appends what control threads sent.
    pub fn receive_control(&mut self, out: &mut Vec<T>) {
        let inbox = &self.inboxes[self.index];
        // Asked first: a pop that finds nothing costs a fence, and this is asked in every turn. What is pushed meanwhile is found by
        // the next turn, or before sleep.
        while !inbox.control.is_empty()
            && let Some(message) = inbox.control.pop()
        {
            out.push(message);
        }
    }

    /// The way in for control threads; any number of them.
    #[must_use]
    pub fn injector(&self) -> Injector<T> {
        Injector { inboxes: Arc::clone(&self.inboxes), to: self.index }
    }

    /// What ends this reactor's sleep. To be set once, before the first [`Endpoint::prepare_park`];
    /// [`crate::turn::Reactor::new`] does.
    ///
    /// # Panics
    /// If it was set before.
    pub fn set_waker(&mut self, waker: Arc<dyn Wake>) {
        assert!(self.inboxes[self.index].waker.set(waker).is_ok(), "a reactor has one waker");
    }

    /// Announces that this reactor is about to sleep. `false`: there is work, do not. After `true` every sender wakes it,
    /// until [`Endpoint::unpark`].
    pub fn prepare_park(&mut self) -> bool {
        assert!(self.unpublished.is_empty(), "a reactor flushes before it sleeps");
        let inbox = &self.inboxes[self.index];
        self.backlog_len == 0 && inbox.signal.park()
    }

    /// Awake again: senders need not wake this reactor.
    pub fn unpark(&mut self) {
        self.inboxes[self.index].signal.unpark();
    }
}

/// Sends to one reactor from any thread that is not a reactor.
pub struct Injector<T> {
    inboxes: Arc<[Inbox<T>]>,
    to: usize,
}

impl<T> Clone for Injector<T> {
    fn clone(&self) -> Self {
        Self { inboxes: Arc::clone(&self.inboxes), to: self.to }
    }
}

impl<T: Send> Injector<T> {
    /// Queues `message` and wakes the reactor if it sleeps. Never waits; callers bound what they have unanswered.
    pub fn send(&self, message: T) {
        let inbox = &self.inboxes[self.to];
        inbox.control.push(message);
        inbox.signal.publish(inbox.control_bit);
        sender_fence();
        inbox.wake_if_parked();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn drain(endpoint: &mut Endpoint<u32>) -> Vec<(usize, u32)> {
        let mut out = Vec::new();
        endpoint.receive(&mut out);
        out
    }

    #[test]
    fn a_message_is_seen_after_the_flush_and_not_before() {
        let mut ends = Mesh::new(3, 4);
        ends[0].send(2, 7);
        assert!(drain(&mut ends[2]).is_empty());
        ends[0].flush();
        assert_eq!(drain(&mut ends[2]), [(0, 7)]);
        assert!(drain(&mut ends[2]).is_empty());
    }

    #[test]
    fn h13_full_rings_both_ways_neither_block_nor_reorder() {
        let mut ends = Mesh::new(2, 2);
        for number in 0..7 {
            ends[0].send(1, number);
            ends[1].send(0, 100 + number);
        }
        assert_eq!((ends[0].backlog(), ends[1].backlog()), (5, 5));
        let mut got = [Vec::new(), Vec::new()];
        for _ in 0..5 {
            for (end, got) in ends.iter_mut().zip(&mut got) {
                end.flush();
                got.extend(drain(end).into_iter().map(|(_, message)| message));
            }
        }
        assert_eq!(got[1], (0..7).collect::<Vec<_>>());
        assert_eq!(got[0], (100..107).collect::<Vec<_>>());
    }

    #[test]
    fn a_reactor_with_a_backlog_does_not_sleep() {
        let mut ends = Mesh::new(2, 1);
        ends[0].send(1, 1);
        ends[0].send(1, 2);
        ends[0].flush();
        assert!(!ends[0].prepare_park());
        assert_eq!(drain(&mut ends[1]), [(0, 1)]);
        ends[0].flush();
        assert!(ends[0].prepare_park());
        assert_eq!(drain(&mut ends[1]), [(0, 2)]);
    }

    #[test]
    fn a_message_to_oneself_arrives_in_the_next_turn() {
        let mut ends = Mesh::new(1, 1);
        ends[0].send(0, 5);
        ends[0].flush();
        assert!(!ends[0].prepare_park());
        assert_eq!(drain(&mut ends[0]), [(0, 5)]);
        assert!(ends[0].prepare_park());
    }

    #[test]
    fn only_a_parked_reactor_is_woken_and_only_once() {
        let mut ends = Mesh::new(3, 4);
        let count = Arc::new(Count::default());
        ends[1].set_waker(Arc::clone(&count) as Arc<dyn Wake>);
        ends[0].send(1, 1);
        ends[0].flush();
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        assert!(!ends[1].prepare_park(), "the message is still there");
        drain(&mut ends[1]);
        assert!(ends[1].prepare_park());
        for from in [0, 2] {
            ends[from].send(1, 2);
            ends[from].flush();
        }
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn control_threads_wake_a_parked_reactor_and_their_messages_keep_it_awake() {
        let mut ends = Mesh::new(1, 1);
        let count = Arc::new(Count::default());
        ends[0].set_waker(Arc::clone(&count) as Arc<dyn Wake>);
        let injector = ends[0].injector();
        assert!(ends[0].prepare_park());
        std::thread::spawn(move || injector.clone().send(9)).join().unwrap();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        ends[0].unpark();
        assert!(!ends[0].prepare_park());
        let mut out = Vec::new();
        ends[0].receive(&mut Vec::new());
        ends[0].receive_control(&mut out);
        assert_eq!(out, [9]);
        assert!(ends[0].prepare_park());
    }

    #[test]
    fn seventy_reactors_need_two_words_and_all_are_heard() {
        let mut ends = Mesh::new(70, 1);
        for from in (0..70).filter(|&from| from != 33) {
            ends[from].send(33, from as u32);
            ends[from].flush();
        }
        let mut got = drain(&mut ends[33]);
        got.sort_unstable();
        assert_eq!(got.len(), 69);
        assert!(got.iter().all(|&(from, message)| from as u32 == message));
    }
}
