//! One queue pair as its endpoint knows it: its state, and the work that it owns.
//!
//! Work is *waiting* until the device may have it, then *given*, in the order of the device, until its completion says that it or a
//! later one of the same queue has ended. Completions of one queue come in order, so an unsignalled work has ended well when a later
//! one is reported: had it failed, it would have been reported itself.
//!
//! Invariants: a work is in exactly one place; the newest work given is signalled, so that all that is given comes back without
//! anything further being posted; reads at the peer never exceed what was agreed.

use std::collections::VecDeque;

use ringway_reactor::io::Instant;

use crate::hardware::{Granted, Item};
use crate::verbs::{Counts, QpId, QueueSpec, Work, WorkError};

/// Positions count to this and start again; far more than a queue has entries.
const POSITIONS: u32 = 1 << 31;
const SLOT_BITS: u32 = 20;
const SERIAL_BITS: u32 = 12;

/// Where a queue pair is. Drawn at the top of `verbs.rs`.
#[derive(Debug)]
pub(crate) enum State {
    /// Address and route are being looked up; no queue pair at the device yet.
    Resolving { private: Vec<u8>, until: Instant },
    /// The peer was asked.
    Connecting { until: Instant },
    /// The answer goes out with the next flush.
    Accepting { private: Vec<u8> },
    /// The peer has the answer, or will have.
    Answered { until: Instant },
    /// Both sides are ready.
    Ready,
    /// What is given comes back flushed; at this instant the queue pair is destroyed whether or not it did.
    Ending { until: Instant },
}

/// What an endpoint numbers queue pairs by: a place in its table, and a serial that makes them unique.
pub(crate) fn qp_id(serial: u64, slot: usize) -> QpId {
    assert!(slot < 1 << SLOT_BITS, "an endpoint has a million queue pairs at most");
    QpId(serial << SLOT_BITS | slot as u64)
}

pub(crate) fn slot_of(qp: QpId) -> usize {
    (qp.0 & ((1 << SLOT_BITS) - 1)) as usize
}

/// The number that a device knows a work request by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Number {
    pub(crate) slot: usize,
    /// The lower bits of the serial, which tell a completion that comes after its queue pair was destroyed.
    serial: u64,
    pub(crate) is_receive: bool,
    position: u32,
}

impl Number {
    fn new(qp: QpId, is_receive: bool, position: u32) -> Number {
        let serial = qp.0 >> SLOT_BITS & ((1 << SERIAL_BITS) - 1);
        Number { slot: slot_of(qp), serial, is_receive, position }
    }

    fn word(self) -> u64 {
        let upper = (self.slot as u64) << SERIAL_BITS | self.serial;
        upper << 32 | u64::from(self.is_receive) << 31 | u64::from(self.position)
    }

    pub(crate) fn parse(word: u64) -> Number {
        Number {
            slot: (word >> (32 + SERIAL_BITS)) as usize,
            serial: word >> 32 & ((1 << SERIAL_BITS) - 1),
            is_receive: word >> 31 & 1 == 1,
            position: word as u32 % POSITIONS,
        }
    }

    pub(crate) fn is_of(self, qp: QpId) -> bool {
        Number::new(qp, self.is_receive, self.position) == self
    }
}

/// A work and its owner's token.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) token: u64,
    pub(crate) work: Work,
}

/// A work that the device has.
#[derive(Debug)]
struct Given {
    entry: Entry,
    signalled: bool,
}

/// A queue of the device: what it was given and has not reported.
#[derive(Debug)]
struct Queue {
    is_receive: bool,
    given: VecDeque<Given>,
    /// Position of the next.
    next: u32,
}

impl Queue {
    fn new(is_receive: bool, capacity: u32) -> Queue {
        Queue { is_receive, given: VecDeque::with_capacity(capacity as usize), next: 0 }
    }

    fn push(&mut self, entry: Entry, signalled: bool) {
        self.given.push_back(Given { entry, signalled });
        self.next = (self.next + 1) % POSITIONS;
    }

    /// Those from `from` on, as the device is to see them.
    fn items(&self, qp: QpId, from: usize) -> impl Iterator<Item = Item<'_>> {
        let first = self.first();
        self.given.range(from..).enumerate().map(move |(nth, given)| {
            let position = (first + (from + nth) as u32) % POSITIONS;
            let number = Number::new(qp, self.is_receive, position).word();
            Item { number, signalled: given.signalled, work: &given.entry.work }
        })
    }

    /// Position of the oldest.
    fn first(&self) -> u32 {
        (self.next + POSITIONS - self.given.len() as u32) % POSITIONS
    }

    /// The place of a position among those given, if it is there.
    fn place(&self, position: u32) -> Option<usize> {
        let place = (position + POSITIONS - self.first()) % POSITIONS;
        ((place as usize) < self.given.len()).then_some(place as usize)
    }

    /// Takes what the device refused back.
    fn refused(&mut self, from: usize) -> Vec<Entry> {
        let refused: Vec<Entry> = self.given.drain(from..).map(|given| given.entry).collect();
        self.next = (self.next + POSITIONS - refused.len() as u32) % POSITIONS;
        refused
    }
}

/// A work that has ended, and how.
pub(crate) type Ended = (Entry, Result<u32, WorkError>);

/// One queue pair.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) id: QpId,
    pub(crate) state: State,
    pub(crate) spec: QueueSpec,
    pub(crate) granted: Option<Granted>,
    pub(crate) counts: Counts,
    /// It is on its endpoint's list of those to flush.
    pub(crate) dirty: bool,
    sends: Queue,
    receives: Queue,
    waiting: VecDeque<Entry>,
    reads_waiting: VecDeque<Entry>,
    receives_waiting: VecDeque<Entry>,
    reads_at_peer: u32,
}

impl Pair {
    pub(crate) fn new(id: QpId, state: State, spec: QueueSpec) -> Pair {
        Pair {
            id,
            state,
            spec,
            granted: None,
            counts: Counts::default(),
            dirty: false,
            sends: Queue::new(false, spec.sends),
            receives: Queue::new(true, spec.receives),
            waiting: VecDeque::new(),
            reads_waiting: VecDeque::new(),
            receives_waiting: VecDeque::new(),
            reads_at_peer: 0,
        }
    }

    pub(crate) fn is_ending(&self) -> bool {
        matches!(self.state, State::Ending { .. })
    }

    /// What was asked for, as far as the device goes along.
    pub(crate) fn agreed(&self) -> QueueSpec {
        let Some(granted) = self.granted else { return self.spec };
        QueueSpec { reads_out: granted.reads_out, reads_in: granted.reads_in, ..self.spec }
    }

    /// Whether the device has anything of it.
    pub(crate) fn has_given(&self) -> bool {
        !(self.sends.given.is_empty() && self.receives.given.is_empty())
    }

    /// Takes work, to be given with the next flush.
    pub(crate) fn push(&mut self, entry: Entry) {
        if entry.work.is_receive() {
            let held = self.receives.given.len() + self.receives_waiting.len();
            assert!(held < self.spec.receives as usize, "more receives than the {} agreed", self.spec.receives);
            self.receives_waiting.push_back(entry);
        } else {
            let held = self.sends.given.len() + self.waiting.len() + self.reads_waiting.len();
            assert!(held < self.spec.sends as usize, "more sends than the {} agreed", self.spec.sends);
            self.waiting.push_back(entry);
        }
    }

    /// Makes the receives that wait given ones; returns where those begin.
    pub(crate) fn give_receives(&mut self) -> Option<usize> {
        let from = self.receives.given.len();
        self.counts.receives += self.receives_waiting.len() as u64;
        for entry in self.receives_waiting.drain(..) {
            self.receives.push(entry, true);
        }
        self.counts.credits = self.receives.given.len() as u64;
        (self.receives.given.len() > from).then_some(from)
    }

    /// Makes what may go out given; returns where that begins. The last is signalled, and each read, for which somebody waits.
    pub(crate) fn give_sends(&mut self) -> Option<usize> {
        let from = self.sends.given.len();
        let reads_max = u32::from(self.granted.map_or(0, |granted| granted.reads_out));
        while self.reads_at_peer < reads_max
            && let Some(entry) = self.reads_waiting.pop_front()
        {
            self.give_send(entry);
        }
        while let Some(entry) = self.waiting.pop_front() {
            if matches!(entry.work, Work::Read { .. }) && self.reads_at_peer >= reads_max {
                self.counts.reads_waited += 1;
                self.reads_waiting.push_back(entry);
            } else {
                self.give_send(entry);
            }
        }
        let given = self.sends.given.len();
        if given == from {
            return None;
        }
        let last = &mut self.sends.given[given - 1];
        self.counts.signalled += u64::from(!last.signalled);
        last.signalled = true;
        Some(from)
    }

    fn give_send(&mut self, entry: Entry) {
        let inline_max = self.granted.map_or(0, |granted| granted.inline_max) as usize;
        let bytes = entry.work.bytes();
        let counts = &mut self.counts;
        let signalled = match &entry.work {
            Work::Receive { .. } => unreachable!("receives have a queue of their own"),
            Work::Send { .. } => {
                counts.sends += 1;
                counts.bytes_out += bytes as u64;
                counts.bytes_inline += if bytes <= inline_max { bytes as u64 } else { 0 };
                false
            }
            Work::Write { .. } => {
                counts.writes += 1;
                counts.bytes_out += bytes as u64;
                false
            }
            Work::Read { .. } => {
                counts.reads += 1;
                counts.signalled += 1;
                self.reads_at_peer += 1;
                true
            }
        };
        self.sends.push(entry, signalled);
    }

    /// What was just given, for the device.
    pub(crate) fn send_items(&self, from: usize) -> impl Iterator<Item = Item<'_>> {
        self.sends.items(self.id, from)
    }

    pub(crate) fn receive_items(&self, from: usize) -> impl Iterator<Item = Item<'_>> {
        self.receives.items(self.id, from)
    }

    /// The device took only `taken` of what was given from `from` on: the first of the others failed, the rest never ran.
    pub(crate) fn refused(&mut self, is_receive: bool, from: usize, taken: usize, ended: &mut Vec<Ended>) {
        let queue = if is_receive { &mut self.receives } else { &mut self.sends };
        let refused = queue.refused(from + taken);
        for (nth, entry) in refused.into_iter().enumerate() {
            self.reads_at_peer -= u32::from(matches!(entry.work, Work::Read { .. }));
            ended.push((entry, Err(if nth == 0 { WorkError::LocalOperation } else { WorkError::Flushed })));
        }
    }

    /// The device reports `number`. `false` if it was not given that, which no device has a reason to say.
    pub(crate) fn complete(&mut self, number: Number, result: Result<u32, WorkError>, ended: &mut Vec<Ended>) -> bool {
        if number.is_receive {
            // Each is reported: one that is not the oldest would be somebody else's message.
            if self.receives.place(number.position) != Some(0) {
                return false;
            }
            let given = self.receives.given.pop_front().expect("the oldest is there");
            self.counts.bytes_in += u64::from(result.unwrap_or(0));
            self.counts.credits = self.receives.given.len() as u64;
            ended.push((given.entry, result));
            return true;
        }
        let Some(place) = self.sends.place(number.position) else { return false };
        for nth in 0..=place {
            let given = self.sends.given.pop_front().expect("all up to a place are there");
            let bytes = given.entry.work.bytes() as u32;
            let result = if nth == place { result.map(|_| bytes) } else { Ok(bytes) };
            if let Work::Read { .. } = given.entry.work {
                self.reads_at_peer -= 1;
                self.counts.bytes_in += u64::from(result.unwrap_or(0));
            }
            ended.push((given.entry, result));
        }
        true
    }

    /// Takes out what the device does not have: it comes back flushed.
    pub(crate) fn drain_waiting(&mut self, ended: &mut Vec<Ended>) {
        let all = [&mut self.waiting, &mut self.reads_waiting, &mut self.receives_waiting];
        ended.extend(all.into_iter().flat_map(|queue| queue.drain(..)).map(|entry| (entry, Err(WorkError::Flushed))));
    }

    /// Takes out everything. The device must have been made to forget it.
    pub(crate) fn drain(&mut self, ended: &mut Vec<Ended>) {
        for queue in [&mut self.sends, &mut self.receives] {
            ended.extend(queue.given.drain(..).map(|given| (given.entry, Err(WorkError::Flushed))));
        }
        self.reads_at_peer = 0;
        self.counts.credits = 0;
        self.drain_waiting(ended);
    }

    /// Whether reads wait that could go out now.
    pub(crate) fn has_reads_to_give(&self) -> bool {
        let reads_max = self.granted.map_or(0, |granted| granted.reads_out);
        !self.reads_waiting.is_empty() && self.reads_at_peer < u32::from(reads_max)
    }
}
