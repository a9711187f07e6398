//! The state of a simulated world: its clock, what is due when, and what each reactor has to take.
//!
//! Invariants: time never goes back; an event happens once; completions of a reactor wait in `ready` in the order in which
//! they happened.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{self, AtomicBool};

use slab::Slab;

use crate::io::{Completion, Instant, IoError, Payload, Token, Wait, Wake};

use super::WorldConfig;
use super::device::{Device, InFlight};
use super::disk::WriteKey;
use super::fault::Injected;
use super::log::Records;
use super::net::Net;
use super::page::IdMap;
use super::rng::Rng;

/// A device that a completion without one names.
pub(super) const NO_DEVICE: usize = usize::MAX;

/// A completion that its reactor has not taken.
pub(super) struct Ready {
    pub(super) token: Token,
    pub(super) result: Result<usize, IoError>,
    pub(super) payload: Payload,
    pub(super) device: usize,
    /// Writes in the cache that a barrier covers once this is taken.
    pub(super) keys: [Option<WriteKey>; 2],
}

/// One simulated ring.
pub(super) struct Reactor {
    /// The life of the target process that it belongs to; none if it is outside and outlives every crash.
    pub(super) life: Option<u32>,
    pub(super) ready: VecDeque<Ready>,
    pub(super) in_flight: usize,
    /// Until when it sleeps, if it sleeps.
    pub(super) asleep: Option<Instant>,
    pub(super) wake: Arc<SimWake>,
    pub(super) dead: bool,
    /// The number of its last poll, of all polls of the world.
    pub(super) polled: u64,
}

impl Reactor {
    /// Whether a turn of it would find something.
    fn runnable(&self, now: u64) -> bool {
        !self.dead
            && (!self.ready.is_empty()
                || self.wake.0.load(atomic::Ordering::Acquire)
                || self.asleep.is_none_or(|until| until.0 <= now))
    }
}

/// Ends a simulated sleep.
pub(super) struct SimWake(pub(super) AtomicBool);

impl Wake for SimWake {
    fn wake(&self) {
        self.0.store(true, atomic::Ordering::Release);
    }
}

/// What happens at some moment.
pub(super) enum What {
    Device { key: u32, serial: u64, first: bool },
    Net(super::net::NetEvent),
}

struct Event {
    at: u64,
    tie: u64,
    what: What,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    /// The earliest is the greatest, for a heap that gives its greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.tie).cmp(&(self.at, self.tie))
    }
}

/// When the target stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashPoint {
    /// When so many more mutating operations (writes, barriers, deallocations) have been submitted; the last of them is at
    /// the device, unfinished.
    Submitted(u64),
    /// When so many more mutating operations have been finished by the device; nobody hears of the last of them.
    Completed(u64),
    /// At this moment.
    At(Instant),
}

/// Everything of a world.
pub(super) struct State {
    pub(super) config: WorldConfig,
    pub(super) rng: Rng,
    pub(super) now: u64,
    events: BinaryHeap<Event>,
    ties: u64,
    pub(super) serial: u64,
    pub(super) devices: Vec<Device>,
    pub(super) ops: Slab<InFlight>,
    pub(super) strays: u64,
    pub(super) reactors: Vec<Reactor>,
    pub(super) life: u32,
    pub(super) net: Net,
    pub(super) logs: IdMap<u32, Records>,
    pub(super) injected: Injected,
    pub(super) mutations_submitted: u64,
    pub(super) mutations_completed: u64,
    pub(super) crash_submitted: u64,
    pub(super) crash_completed: u64,
    pub(super) crash_at: u64,
    pub(super) crashed: bool,
    pub(super) unwinds: bool,
    hash: u64,
    pub(super) polls: u64,
    /// The last poll that found something or did not wait: what its reactor did then may have given work to any other.
    busy_poll: u64,
    /// Polls in a row that found nothing and nothing to wait for.
    fruitless: u32,
}

/// A reactor that has not polled for so many polls a reactor gets no turns from the harness, and nobody waits for it.
const POLLS_ABSENT: u64 = 16;

/// What became of a poll.
pub(super) enum Polled {
    Done,
    Crashed,
}

impl State {
    pub(super) fn new(seed: u64, config: WorldConfig) -> Self {
        Self {
            config,
            rng: Rng::new(seed),
            now: 1_000_000,
            events: BinaryHeap::new(),
            ties: 0,
            serial: 0,
            devices: Vec::new(),
            ops: Slab::new(),
            strays: 0,
            reactors: Vec::new(),
            life: 0,
            net: Net::default(),
            logs: IdMap::default(),
            injected: Injected::default(),
            mutations_submitted: 0,
            mutations_completed: 0,
            crash_submitted: u64::MAX,
            crash_completed: u64::MAX,
            crash_at: u64::MAX,
            crashed: false,
            unwinds: false,
            hash: seed,
            polls: 0,
            busy_poll: 0,
            fruitless: 0,
        }
    }

    pub(super) fn trace(&mut self, words: &[u64]) {
        for &word in words {
            self.hash = (self.hash.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    pub(super) fn trace_hash(&self) -> u64 {
        self.hash ^ (self.hash >> 31)
    }

    pub(super) fn schedule(&mut self, at: u64, what: What) {
        self.ties += 1;
        self.events.push(Event { at, tie: self.ties, what });
    }

    pub(super) fn push(&mut self, reactor: usize, ready: Ready) {
        let reactor = &mut self.reactors[reactor];
        if !reactor.dead {
            reactor.ready.push_back(ready);
        }
    }

    pub(super) fn check_crash(&mut self) {
        if self.mutations_submitted >= self.crash_submitted
            || self.mutations_completed >= self.crash_completed
            || self.now >= self.crash_at
        {
            self.crash();
        }
    }

    pub(super) fn crash(&mut self) {
        self.crashed = true;
        (self.crash_submitted, self.crash_completed, self.crash_at) = (u64::MAX, u64::MAX, u64::MAX);
    }

    /// Whether this reactor has stopped: its process is dead, or stands still until the harness says how it died.
    pub(super) fn stopped(&self, reactor: usize) -> bool {
        let reactor = &self.reactors[reactor];
        reactor.dead || (self.crashed && reactor.life == Some(self.life))
    }

    /// When the next event is due.
    pub(super) fn next_event(&self) -> Option<u64> {
        self.events.peek().map(|event| event.at)
    }

    /// Lets everything happen that is due by `until`.
    pub(super) fn advance(&mut self, until: u64) {
        while self.events.peek().is_some_and(|event| event.at <= until) {
            let event = self.events.pop().expect("just seen");
            self.now = self.now.max(event.at);
            if self.now >= self.crash_at {
                self.crash();
            }
            match event.what {
                What::Device { key, serial, first } => self.fire_device(key, serial, first),
                What::Net(event) => self.fire_net(event),
            }
        }
        self.now = self.now.max(until);
        if self.now >= self.crash_at {
            self.crash();
        }
    }

    /// [`crate::io::Io::poll`] of one reactor.
    pub(super) fn poll(&mut self, me: usize, wait: Wait, out: &mut Vec<Completion>) -> Polled {
        self.polls += 1;
        self.reactors[me].polled = self.polls;
        self.reactors[me].asleep = None;
        let step = self.rng.below(self.config.poll_ns * 2) + 1;
        self.advance(self.now + step);
        let mut quiet = false;
        if !self.stopped(me)
            && let Wait::Until(until) = wait
            && !self.reactors[me].wake.0.swap(false, atomic::Ordering::AcqRel)
        {
            quiet = self.sleep(me, until);
        }
        if self.stopped(me) {
            self.count_fruitless(true);
            return Polled::Crashed;
        }
        self.take(me, out);
        if !quiet {
            self.busy_poll = self.polls;
        }
        Polled::Done
    }

    /// Somebody gave a reactor's ring, or the world, something to do: nobody sleeps until all have had a turn.
    pub(super) fn stir(&mut self) {
        self.busy_poll = self.polls;
    }

    /// Moves time on until `me` has something to do; only a step if others may have, so that they get their turns. Mail is
    /// not seen here, hence: others sleep only if they came to sleep after the last poll of anybody that found something.
    /// Returns whether `me` still has nothing to do.
    fn sleep(&mut self, me: usize, until: Instant) -> bool {
        self.reactors[me].asleep = Some(until);
        let alive = self.reactors.iter().filter(|reactor| !reactor.dead).count() as u64;
        let absent = self.polls.saturating_sub(POLLS_ABSENT * alive);
        loop {
            if self.stopped(me) || self.reactors[me].runnable(self.now) {
                self.reactors[me].asleep = None;
                self.reactors[me].wake.0.store(false, atomic::Ordering::Release);
                self.fruitless = 0;
                return false;
            }
            let mut due = self.next_event().unwrap_or(u64::MAX).min(until.0).min(self.crash_at);
            for (number, other) in self.reactors.iter().enumerate() {
                if number == me || other.polled < absent || self.stopped(number) {
                    continue;
                }
                if other.polled <= self.busy_poll || other.runnable(self.now) {
                    return true;
                }
                due = due.min(other.asleep.map_or(u64::MAX, |until| until.0));
            }
            if due == u64::MAX {
                self.count_fruitless(false);
                return true;
            }
            self.advance(due);
        }
    }

    /// Ends a run that can only spin: a hang is found, not waited for.
    fn count_fruitless(&mut self, crashed: bool) {
        self.fruitless += 1;
        if self.fruitless > self.config.hang_polls {
            self.fruitless = 0;
            assert!(
                !crashed,
                "a reactor goes on polling after its process has crashed; run it inside World::until_crash"
            );
            panic!(
                "hang: {} polls in a row while nothing is due, nobody is woken and no deadline is set",
                self.config.hang_polls
            );
        }
    }

    /// Gives a reactor its completions, now and then not all of them at once.
    fn take(&mut self, me: usize, out: &mut Vec<Completion>) {
        let waiting = self.reactors[me].ready.len();
        let taken =
            if waiting > 1 && self.rng.one_in(8) { 1 + self.rng.below(waiting as u64) as usize } else { waiting };
        for _ in 0..taken {
            let ready = self.reactors[me].ready.pop_front().expect("as many as were counted");
            self.reactors[me].in_flight -= 1;
            if ready.device != NO_DEVICE {
                self.reap_keys(ready.device, ready.keys);
            }
            out.push(Completion { token: ready.token, result: ready.result, payload: ready.payload });
        }
    }

    /// The process of these reactors is gone: nobody takes what is ready, and what had landed counts as finished.
    pub(super) fn bury(&mut self, gone: impl Fn(&Reactor) -> bool) {
        for number in 0..self.reactors.len() {
            if !self.reactors[number].dead && gone(&self.reactors[number]) {
                self.bury_one(number);
            }
        }
    }

    fn bury_one(&mut self, number: usize) {
        let reactor = &mut self.reactors[number];
        reactor.dead = true;
        reactor.in_flight = 0;
        for ready in std::mem::take(&mut reactor.ready) {
            if ready.device != NO_DEVICE {
                self.reap_keys(ready.device, ready.keys);
            }
        }
    }

    /// The target process is gone; reactors made from now on belong to the next.
    pub(super) fn end_life(&mut self) {
        self.life += 1;
        self.crashed = false;
        (self.crash_submitted, self.crash_completed, self.crash_at) = (u64::MAX, u64::MAX, u64::MAX);
    }

    /// One reactor ends in good order: what it has at the devices lands before anything else happens.
    pub(super) fn retire(&mut self, reactor: usize) {
        self.close_listeners(reactor);
        self.orphan_sockets(|_, owner| owner == Some(reactor), true);
        while !self.stopped(reactor) && self.has_ops(reactor) {
            let next = self.next_event().expect("what is at a device is due at some time");
            self.advance(next);
        }
        if !self.stopped(reactor) {
            self.bury_one(reactor);
        }
    }
}
