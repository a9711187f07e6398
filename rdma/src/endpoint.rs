//! [`Verbs`] on hardware: which queue pairs there are, what each waits for, and what became of their work.
//!
//! Invariants: a work posted comes back exactly once; nothing given to a device comes back before the device reported it or its
//! queue pair was destroyed; [`Event::Gone`] is the last event of a queue pair.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use ringway_reactor::buf::Buf;
use ringway_reactor::event::EventFd;
use ringway_reactor::io::Instant;
use slab::Slab;

use crate::hardware::{Hardware, Noticed, Reaped};
use crate::pair::{Ended, Entry, Number, Pair, State, qp_id, slot_of};
use crate::verbs::{
    ConnectRequest, Counts, Device, Ending, Event, Lent, ListenerId, QpId, QueueSpec, Refusal, Verbs, VerbsError, Work,
    WorkError,
};

/// How long a connection may take to come about: an address that nobody answers must not hold buffers for ever.
const CONNECT_NS: u64 = 10_000_000_000;
/// How long a broken queue pair waits for its work to come back flushed before it is destroyed with it.
const FLUSH_NS: u64 = 1_000_000_000;
/// Private data of the first message (the shortest that a connection carries), bytes.
pub(crate) const PRIVATE_MAX: usize = 56;

/// One reactor's queue pairs.
pub(crate) struct Endpoint<H> {
    /// The first to be dropped: it destroys its queue pairs, and only then do their buffers go back.
    hardware: H,
    pairs: Slab<Pair>,
    last_serial: u64,
    last_listener: u64,
    lent: Slab<Buf>,
    /// Queue pairs with something to give.
    dirty: Vec<QpId>,
    deadlines: BTreeSet<(Instant, QpId)>,
    /// What happened between polls.
    ready: Vec<Event>,
    now: Instant,
    rang: bool,
    reaped: Vec<Reaped>,
    noticed: Vec<Noticed>,
    ended: Vec<Ended>,
    /// What queue pairs that are gone did, and what is counted for none.
    past: Counts,
}

impl<H: Hardware> Endpoint<H> {
    pub(crate) fn new(hardware: H) -> Self {
        Self {
            hardware,
            pairs: Slab::new(),
            last_serial: 0,
            last_listener: 0,
            lent: Slab::new(),
            dirty: Vec::new(),
            deadlines: BTreeSet::new(),
            ready: Vec::new(),
            now: Instant(0),
            // What was there before is looked for by the first poll.
            rang: true,
            reaped: Vec::new(),
            noticed: Vec::new(),
            ended: Vec::new(),
            past: Counts::default(),
        }
    }

    fn pair(&mut self, qp: QpId) -> Option<&mut Pair> {
        self.pairs.get_mut(slot_of(qp)).filter(|pair| pair.id == qp)
    }

    fn add(&mut self, state: State, spec: &QueueSpec) -> QpId {
        self.last_serial += 1;
        let entry = self.pairs.vacant_entry();
        let qp = qp_id(self.last_serial, entry.key());
        entry.insert(Pair::new(qp, state, *spec));
        qp
    }

    fn mark(&mut self, qp: QpId) {
        let Some(pair) = self.pair(qp) else { return };
        if !pair.dirty {
            pair.dirty = true;
            self.dirty.push(qp);
        }
    }

    /// Hands what has ended to its owner.
    fn give_back(&mut self, qp: QpId) {
        for (entry, result) in self.ended.drain(..) {
            let pair = self.pairs.get_mut(slot_of(qp)).filter(|pair| pair.id == qp);
            count(pair.map_or(&mut self.past, |pair| &mut pair.counts), result);
            let Entry { token, work } = entry;
            self.ready.push(Event::Done { qp, token, work, result, invalidated: None });
        }
    }

    /// Gives the device what waits at one queue pair.
    fn flush_pair(&mut self, qp: QpId) {
        let Some(pair) = self.pairs.get_mut(slot_of(qp)).filter(|pair| pair.id == qp) else { return };
        pair.dirty = false;
        if pair.is_ending() || matches!(pair.state, State::Resolving { .. }) {
            return;
        }
        if let Some(from) = pair.give_receives() {
            pair.counts.doorbells += 1;
            if let Err(taken) = self.hardware.receive(qp, pair.receive_items(from)) {
                pair.refused(true, from, taken, &mut self.ended);
                return self.broke(qp, Ending::Work(WorkError::LocalOperation));
            }
        }
        if let State::Accepting { private } = &mut pair.state {
            let (private, spec) = (std::mem::take(private), pair.agreed());
            return match self.hardware.accept(qp, &spec, &private) {
                Ok(()) => {
                    let until = self.now.plus_ns(CONNECT_NS);
                    self.deadlines.insert((until, qp));
                    pair.state = State::Answered { until };
                }
                Err(error) => self.refuse(qp, Refusal::Failed(error.to_string())),
            };
        }
        if let State::Ready = pair.state
            && let Some(from) = pair.give_sends()
        {
            pair.counts.doorbells += 1;
            if let Err(taken) = self.hardware.send(qp, pair.send_items(from)) {
                pair.refused(false, from, taken, &mut self.ended);
                self.broke(qp, Ending::Work(WorkError::LocalOperation));
            }
        }
    }

    /// The connection does not come about.
    fn refuse(&mut self, qp: QpId, why: Refusal) {
        if self.pair(qp).is_some_and(|pair| !pair.is_ending()) {
            self.ready.push(Event::Refused { qp, why });
            self.end(qp);
        }
    }

    /// The connection, or the queue pair, is no more.
    fn broke(&mut self, qp: QpId, why: Ending) {
        let Some(pair) = self.pair(qp).filter(|pair| !pair.is_ending()) else { return self.give_back(qp) };
        let was_connecting = matches!(pair.state, State::Resolving { .. } | State::Connecting { .. });
        self.give_back(qp);
        self.ready.push(match why {
            why if was_connecting => Event::Refused { qp, why: Refusal::Unreachable(format!("{why:?}")) },
            why => Event::Disconnected { qp, why },
        });
        self.end(qp);
    }

    /// Breaks a queue pair off; what is posted comes back.
    fn end(&mut self, qp: QpId) {
        let until = self.now.plus_ns(FLUSH_NS);
        let Some(pair) = self.pairs.get_mut(slot_of(qp)).filter(|pair| pair.id == qp) else { return };
        let waits_for = match pair.state {
            State::Resolving { until, .. } | State::Connecting { until } | State::Answered { until } => Some(until),
            State::Accepting { .. } | State::Ready => None,
            State::Ending { .. } => return,
        };
        if let Some(before) = waits_for {
            self.deadlines.remove(&(before, qp));
        }
        pair.state = State::Ending { until };
        pair.drain_waiting(&mut self.ended);
        self.hardware.break_off(qp);
        self.deadlines.insert((until, qp));
        self.give_back(qp);
        self.finish_if_empty(qp);
    }

    fn finish_if_empty(&mut self, qp: QpId) {
        if self.pair(qp).is_some_and(|pair| pair.is_ending() && !pair.has_given()) {
            self.finish(qp);
        }
    }

    /// Destroys a queue pair that is ending, with all that did not come back by itself.
    fn finish(&mut self, qp: QpId) {
        self.hardware.destroy(qp);
        let pair = &mut self.pairs[slot_of(qp)];
        let State::Ending { until } = pair.state else { unreachable!("only what is ending is destroyed") };
        self.deadlines.remove(&(until, qp));
        pair.drain(&mut self.ended);
        self.give_back(qp);
        let pair = self.pairs.remove(slot_of(qp));
        add(&mut self.past, &pair.counts);
        self.ready.push(Event::Gone { qp });
    }

    fn apply_reaped(&mut self, reaped: Reaped) {
        let number = Number::parse(reaped.number);
        let pair = self.pairs.get_mut(number.slot).filter(|pair| number.is_of(pair.id));
        let Some(pair) = pair else {
            // Of a queue pair that was destroyed meanwhile, whose work came back then.
            self.past.completions += 1;
            return;
        };
        let qp = pair.id;
        pair.counts.completions += 1;
        if !pair.complete(number, reaped.result, &mut self.ended) {
            tracing::warn!(?qp, ?number, "a device reports work that it was not given");
            return;
        }
        if let (Ok(_), Some((entry, _))) = (reaped.result, self.ended.last_mut()) {
            self.hardware.fill(reaped.number, &mut entry.work);
        }
        let has_reads = pair.has_reads_to_give();
        let last = self.ready.len() + self.ended.len() - 1;
        self.give_back(qp);
        if let Event::Done { invalidated, .. } = &mut self.ready[last] {
            *invalidated = reaped.invalidated;
        }
        match reaped.result {
            Ok(_) if has_reads => self.mark(qp),
            Ok(_) => {}
            Err(WorkError::Flushed) => self.broke(qp, Ending::Fatal),
            Err(error) => self.broke(qp, Ending::Work(error)),
        }
        self.finish_if_empty(qp);
    }

    fn apply_noticed(&mut self, noticed: Noticed) {
        match noticed {
            Noticed::Request(request) => self.ready.push(Event::Request(request)),
            Noticed::Resolved { qp } => self.resolved(qp),
            Noticed::Refused { qp, why } => self.refuse(qp, why),
            Noticed::Established { qp, private, reads_out } => self.established(qp, private, reads_out),
            Noticed::Broken { qp, why } => self.broke(qp, why),
            Noticed::ListenerLost { listener } => self.ready.push(Event::ListenerLost { listener }),
            Noticed::DeviceAdded { device } => self.ready.push(Event::DeviceAdded { device }),
            Noticed::DeviceGone { device } => {
                self.ready.push(Event::DeviceGone { device });
                let on_it = |pair: &&Pair| pair.granted.is_some_and(|granted| granted.device == device);
                let all: Vec<QpId> = self.pairs.iter().map(|(_, pair)| pair).filter(on_it).map(|p| p.id).collect();
                for qp in all {
                    self.broke(qp, Ending::DeviceGone);
                }
            }
        }
    }

    fn resolved(&mut self, qp: QpId) {
        let Some(pair) = self.pairs.get_mut(slot_of(qp)).filter(|pair| pair.id == qp) else { return };
        let State::Resolving { private, until } = &mut pair.state else { return };
        let (private, until, spec) = (std::mem::take(private), *until, pair.spec);
        pair.state = State::Connecting { until };
        let made = self.hardware.make(qp, &spec);
        pair.granted = made.as_ref().ok().copied();
        let agreed = pair.agreed();
        let connected = made.and_then(|_| self.hardware.connect(qp, &agreed, &private));
        match connected {
            Ok(()) => self.mark(qp),
            Err(error) => self.refuse(qp, Refusal::Failed(error.to_string())),
        }
    }

    fn established(&mut self, qp: QpId, private: Vec<u8>, reads_out: Option<u8>) {
        let Some(pair) = self.pairs.get_mut(slot_of(qp)).filter(|pair| pair.id == qp) else { return };
        let (State::Connecting { until } | State::Answered { until }) = pair.state else { return };
        self.deadlines.remove(&(until, qp));
        pair.state = State::Ready;
        let granted = pair.granted.as_mut().expect("a queue pair that is connected was made");
        granted.reads_out = granted.reads_out.min(reads_out.unwrap_or(u8::MAX));
        self.ready.push(Event::Established { qp, private, reads_out: granted.reads_out });
        self.mark(qp);
    }

    fn expire(&mut self) {
        while let Some(&(until, qp)) = self.deadlines.first()
            && until <= self.now
        {
            self.deadlines.pop_first();
            match self.pair(qp).map(|pair| &pair.state) {
                Some(State::Resolving { .. } | State::Connecting { .. }) => {
                    let seconds = CONNECT_NS / 1_000_000_000;
                    self.refuse(qp, Refusal::Unreachable(format!("not connected after {seconds} s")));
                }
                Some(State::Answered { .. }) => self.broke(qp, Ending::Peer),
                Some(State::Ending { .. }) => self.finish(qp),
                Some(State::Accepting { .. } | State::Ready) | None => {}
            }
        }
    }

    fn flush_dirty(&mut self) {
        // Breaking one marks no other.
        let mut dirty = std::mem::take(&mut self.dirty);
        for qp in dirty.drain(..) {
            self.flush_pair(qp);
        }
        assert!(self.dirty.is_empty(), "nothing is marked while what is marked is flushed");
        self.dirty = dirty;
    }
}

/// Counts one work that came back.
fn count(counts: &mut Counts, result: Result<u32, WorkError>) {
    match result {
        Ok(_) => counts.succeeded += 1,
        Err(error) => {
            counts.failed += 1;
            match error {
                WorkError::Flushed => counts.flushed += 1,
                WorkError::RnrExceeded => counts.rnr_exceeded += 1,
                WorkError::RetryExceeded => counts.retry_exceeded += 1,
                _ => {}
            }
        }
    }
}

/// Adds what one did to what all did.
fn add(all: &mut Counts, one: &Counts) {
    all.receives += one.receives;
    all.sends += one.sends;
    all.reads += one.reads;
    all.writes += one.writes;
    all.doorbells += one.doorbells;
    all.signalled += one.signalled;
    all.completions += one.completions;
    all.succeeded += one.succeeded;
    all.failed += one.failed;
    all.flushed += one.flushed;
    all.rnr_exceeded += one.rnr_exceeded;
    all.retry_exceeded += one.retry_exceeded;
    all.bytes_in += one.bytes_in;
    all.bytes_out += one.bytes_out;
    all.bytes_inline += one.bytes_inline;
    all.bytes_copied += one.bytes_copied;
    all.reads_waited += one.reads_waited;
    all.polls += one.polls;
    all.polls_found += one.polls_found;
    all.credits += one.credits;
}

impl<H: Hardware> Verbs for Endpoint<H> {
    fn devices(&self) -> Vec<Device> {
        self.hardware.devices()
    }

    fn listen(&mut self, addr: SocketAddr) -> Result<(ListenerId, SocketAddr), VerbsError> {
        self.last_listener += 1;
        let listener = ListenerId(self.last_listener);
        let addr = self.hardware.listen(listener, addr)?;
        Ok((listener, addr))
    }

    fn close_listener(&mut self, listener: ListenerId) {
        self.hardware.close_listener(listener);
    }

    fn accept(&mut self, request: ConnectRequest, spec: &QueueSpec, private: &[u8]) -> Result<QpId, VerbsError> {
        if private.len() > PRIVATE_MAX {
            return Err(VerbsError::PrivateTooLong(private.len()));
        }
        let reads_in = request.peer_reads_in;
        let ticket =
            request.ticket.downcast::<H::Ticket>().expect("a request is accepted by the kind that reported it");
        let qp = self.add(State::Accepting { private: private.to_vec() }, spec);
        match self.hardware.take(qp, *ticket, spec) {
            Ok(mut granted) => {
                granted.reads_out = granted.reads_out.min(reads_in);
                self.pairs[slot_of(qp)].granted = Some(granted);
                self.mark(qp);
                Ok(qp)
            }
            Err(error) => {
                self.pairs.remove(slot_of(qp));
                Err(error)
            }
        }
    }

    fn reject(&mut self, request: ConnectRequest, private: &[u8]) {
        let ticket = request.ticket.downcast::<H::Ticket>().expect("a request is refused by the kind that reported it");
        self.hardware.reject(*ticket, private);
    }

    fn connect(&mut self, to: SocketAddr, spec: &QueueSpec, private: &[u8]) -> Result<QpId, VerbsError> {
        if private.len() > PRIVATE_MAX {
            return Err(VerbsError::PrivateTooLong(private.len()));
        }
        let until = self.now.plus_ns(CONNECT_NS);
        let qp = self.add(State::Resolving { private: private.to_vec(), until }, spec);
        if let Err(error) = self.hardware.resolve(qp, to) {
            self.pairs.remove(slot_of(qp));
            return Err(error);
        }
        self.deadlines.insert((until, qp));
        Ok(qp)
    }

    fn disconnect(&mut self, qp: QpId) {
        self.end(qp);
    }

    fn post(&mut self, qp: QpId, token: u64, work: Work) {
        match self.pair(qp).filter(|pair| !pair.is_ending()) {
            Some(pair) => {
                pair.push(Entry { token, work });
                self.mark(qp);
            }
            None => {
                self.ended.push((Entry { token, work }, Err(WorkError::Flushed)));
                self.give_back(qp);
            }
        }
    }

    fn lend(&mut self, qp: QpId, buf: Buf) -> Result<Lent, (Buf, VerbsError)> {
        match self.hardware.lend(qp, &buf) {
            Ok(remote) => {
                let len = buf.len() as u32;
                Ok(Lent { remote, len, number: self.lent.insert(buf) as u64 })
            }
            Err(error) => Err((buf, error)),
        }
    }

    fn withdraw(&mut self, lent: Lent) -> Buf {
        let mut buf = self.lent.remove(lent.number as usize);
        self.hardware.withdraw(lent.remote, &mut buf);
        buf
    }

    fn flush(&mut self) {
        self.flush_dirty();
    }

    fn poll(&mut self, now: Instant, events: &mut Vec<Event>) {
        self.now = self.now.max(now);
        self.flush_dirty();
        let mut noticed = std::mem::take(&mut self.noticed);
        self.hardware.look(self.now, std::mem::take(&mut self.rang), &mut noticed);
        for noticed in noticed.drain(..) {
            self.apply_noticed(noticed);
        }
        self.noticed = noticed;
        let mut reaped = std::mem::take(&mut self.reaped);
        self.hardware.reap(self.now, &mut reaped);
        self.past.polls += 1;
        self.past.polls_found += u64::from(!reaped.is_empty());
        for reaped in reaped.drain(..) {
            self.apply_reaped(reaped);
        }
        self.reaped = reaped;
        self.expire();
        // Reads that waited for others, and what waited for a connection.
        self.flush_dirty();
        events.append(&mut self.ready);
    }

    fn arm(&mut self) -> bool {
        self.ready.is_empty() && self.dirty.is_empty() && !self.rang && self.hardware.arm()
    }

    fn bell(&self) -> Option<Arc<EventFd>> {
        self.hardware.bell()
    }

    fn rang(&mut self) {
        self.rang = true;
    }

    fn next_deadline(&self) -> Instant {
        if !self.ready.is_empty() || !self.dirty.is_empty() {
            return Instant(0);
        }
        let own = self.deadlines.first().map_or(Instant::NEVER, |&(until, _)| until);
        own.min(self.hardware.next_deadline())
    }

    fn counts(&self, qp: QpId) -> Option<Counts> {
        self.pairs.get(slot_of(qp)).filter(|pair| pair.id == qp).map(|pair| pair.counts)
    }

    fn total(&self) -> Counts {
        let mut total = self.past;
        self.pairs.iter().for_each(|(_, pair)| add(&mut total, &pair.counts));
        total
    }
}
