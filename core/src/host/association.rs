//! One host's association with one subsystem: the start sequence, commands, keep-alive, and coming back after a break.
//!
//! ```text
//! Idle --start--> Opening --start sequence done--> Ready
//!                    |                               |
//!                    +--------- any error -----------+--> Breaking --(queues drained)--> Pausing --(pause over)--> Opening
//!                                                              |
//!                                                              +--> Failed (given up), Closed (asked to)
//! ```
//! Commands in flight at a break are kept, in order, and sent again on the next connection ahead of new ones; the target
//! sees to it that nothing of the old association runs after the new one is accepted (C11). A compare-and-write is never
//! sent twice: it ends as [`Outcome::Unknown`].

use std::collections::VecDeque;
use std::time::Duration;

use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Completion, Instant, Io, Token};

use super::api::{
    AdminRequest, Completed, ControllerKind, Event, HostConfig, HostRequest, Namespace, Outcome,
};
use super::error::{HostError, HostErrorKind};
use super::queue::{Orphan, Queue, QueueEvent, QueueToken};
use super::slot::Data;
use super::start::Step;
use crate::request::Command;
use super::layout::command::{Completion as Cqe, Sqe};

/// Entries of the admin queue.
const ADMIN_DEPTH: u16 = 32;
/// Commands that wait for room or for a connection, in multiples of what the queues hold.
const WAITING_FACTOR: usize = 2;

/// Whose a command is.
#[derive(Debug)]
pub(super) enum Owner {
    /// A step of the start sequence, or what follows an event.
    Start,
    /// A volume changed: the log page that says so, or its namespace, is being read.
    Notice(Notice),
    KeepAlive,
    /// The controller answers when something happened.
    EventRequest,
    Admin { user: u64 },
    Io(IoOwner),
}

/// What follows "namespace changed".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    Log,
    Namespace,
}

/// What a command has to be sent again from.
#[derive(Clone, Copy, Debug)]
pub(super) struct IoOwner {
    pub(super) user: u64,
    pub(super) command: Command,
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) half: Half,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Whole,
    /// The compare of a fused pair.
    First { pair: u64 },
    /// The write of a fused pair.
    Second { pair: u64 },
}

/// The first half of a fused pair to end waits for the other.
#[derive(Debug)]
struct HalfEnded {
    pair: u64,
    cqe: Option<Cqe>,
    buf: Option<Buf>,
}

#[derive(Debug)]
pub(super) enum Phase {
    Idle,
    Opening { step: Step, deadline: Instant },
    Ready { keep_alive_due: Instant },
    Breaking { error: HostError },
    Pausing { until: Instant },
    Closing,
    Closed,
    Failed,
}

/// An outage, or the time before the first connection.
#[derive(Clone, Copy, Debug)]
struct Outage {
    since: Instant,
    attempts: u32,
}

/// An NVMe/TCP host with one association. Driven by its owner: completions in, [`Host::turn`] once a tick, events out.
#[derive(Debug)]
pub struct Host {
    pub(super) config: HostConfig,
    /// Queue 0 is the admin queue.
    pub(super) queues: Vec<Queue<Owner>>,
    pub(super) phase: Phase,
    pub(super) events: VecDeque<Event>,
    waiting: VecDeque<HostRequest>,
    outage: Option<Outage>,
    pub(super) namespace: Option<Namespace>,
    /// Bytes of data that may travel in a capsule of an I/O queue.
    pub(super) in_capsule_max: usize,
    /// Bytes of the largest request.
    pub(super) request_bytes_max: u32,
    /// I/O queues of this connection.
    pub(super) queues_granted: u16,
    pub(super) controller_id: u16,
    /// For the data of the start sequence and of notices; `None` while a command has it.
    pub(super) scratch: Option<Buf>,
    pub(super) notice_pending: bool,
    halves: Vec<HalfEnded>,
    pairs: u64,
    next_queue: usize,
    scan_due: Instant,
    resent: usize,
    /// The first connection stood once.
    was_ready: bool,
}

impl Host {
    /// A host that is not connected yet.
    #[must_use]
    pub fn new(config: HostConfig) -> Self {
        let digests = (config.header_digest, config.data_digest);
        let mut queues = vec![Queue::new(config.token_space, 0, ADMIN_DEPTH, digests)];
        if let ControllerKind::Io { queues: count, depth } = config.controller {
            assert!((1..=128).contains(&count) && depth >= 2, "{count} queues of {depth} commands");
            queues.extend((1..=count).map(|index| Queue::new(config.token_space, index as u8, depth, digests)));
        }
        Self {
            config,
            queues,
            phase: Phase::Idle,
            events: VecDeque::new(),
            waiting: VecDeque::new(),
            outage: None,
            namespace: None,
            in_capsule_max: 0,
            request_bytes_max: 0,
            queues_granted: 0,
            controller_id: 0,
            scratch: None,
            notice_pending: false,
            halves: Vec::new(),
            pairs: 0,
            next_queue: 1,
            scan_due: Instant(0),
            resent: 0,
            was_ready: false,
        }
    }

    /// Begins the first connection.
    ///
    /// # Panics
    /// If it was started before.
    pub fn start<I: Io>(&mut self, io: &mut I) {
        assert!(matches!(self.phase, Phase::Idle), "a host is started once");
        self.outage = Some(Outage { since: io.now_precise(), attempts: 0 });
        self.phase = Phase::Pausing { until: io.now_precise() };
        self.turn(io);
    }

    /// Whether an operation's completion belongs to this host.
    #[must_use]
    pub fn owns(&self, token: Token) -> bool {
        (token.0 >> 48) as u16 == self.config.token_space
    }

    /// What it was told at [`Host::new`].
    #[must_use]
    pub fn config(&self) -> &HostConfig {
        &self.config
    }

    /// The volume, once the first connection stood.
    #[must_use]
    pub fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_ref()
    }

    /// Whether commands go out at once.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready { .. })
    }

    /// Whether it is over: nothing of this host is in the ring.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Failed | Phase::Closed)
    }

    fn capacity(&self) -> usize {
        self.queues[1..].iter().map(|queue| queue.slots.len()).sum::<usize>()
    }

    /// Takes a command. It goes out with the next [`Host::turn`]; while there is no connection it waits.
    ///
    /// # Errors
    /// Gives the request back, with the reason, if the host is over, if it cannot be made as it is, or if too many wait.
    pub fn submit<I: Io>(&mut self, io: &mut I, request: HostRequest) -> Result<(), (HostRequest, HostError)> {
        if let Err(error) = self.check(&request) {
            return Err((request, error));
        }
        if self.is_ready() && self.waiting.is_empty() {
            match self.place(io, request) {
                Ok(()) => return Ok(()),
                Err(request) => self.waiting.push_back(request),
            }
            return Ok(());
        }
        if self.waiting.len() >= WAITING_FACTOR * self.capacity() {
            let context = format!("{}: {} commands wait already", self.config.name, self.waiting.len());
            return Err((request, HostError::new(HostErrorKind::Invalid, context)));
        }
        self.waiting.push_back(request);
        Ok(())
    }

    fn check(&self, request: &HostRequest) -> Result<(), HostError> {
        let invalid = |why: String| Err(HostError::new(HostErrorKind::Invalid, format!("{:?}: {why}", request.command)));
        if self.is_over() || matches!(self.phase, Phase::Closing) {
            return Err(HostError::new(HostErrorKind::Closed, format!("{}: the host is closed", self.config.name)));
        }
        let Some(namespace) = &self.namespace else { return invalid("the volume is not known yet".into()) };
        let lba = u64::from(namespace.lba_bytes);
        if !request.offset.is_multiple_of(lba) || !u64::from(request.len).is_multiple_of(lba) {
            return invalid(format!("{} bytes at {} are not whole blocks of {lba}", request.len, request.offset));
        }
        if (request.len == 0) != (request.command == Command::Flush) {
            return invalid("a flush has no range, everything else has one".into());
        }
        let buffer = match request.command {
            Command::Read | Command::Write { .. } | Command::Compare => request.len as usize,
            Command::CompareAndWrite { .. } => 2 * request.len as usize,
            Command::Flush | Command::WriteZeroes { .. } | Command::Deallocate => 0,
        };
        if request.buf.as_ref().map_or(0, |buf| buf.len()) != buffer {
            return invalid(format!("needs a buffer of {buffer} bytes"));
        }
        if buffer > 0 && request.len > namespace.request_bytes_max {
            return invalid(format!("{} bytes, the target takes {}", request.len, namespace.request_bytes_max));
        }
        if request.len as u64 / lba > 1 << 16 {
            return invalid(format!("{} bytes are more than 65536 blocks of {lba}", request.len));
        }
        Ok(())
    }

    /// Sends a command to the controller.
    ///
    /// # Errors
    /// Gives the request back if there is no connection or no room.
    pub fn submit_admin<I: Io>(&mut self, io: &mut I, request: AdminRequest) -> Result<(), AdminRequest> {
        // Some entries stay free for keep-alive and for what an event makes necessary.
        if !self.is_ready() || self.queues[0].room() < 8 {
            return Err(request);
        }
        let data = request.buf.map_or(Data::None, Data::In);
        self.submit_to(io, 0, request.sqe, data, Owner::Admin { user: request.user });
        Ok(())
    }

    pub(super) fn submit_to<I: Io>(&mut self, io: &I, queue: usize, sqe: Sqe, data: Data, owner: Owner) {
        let now = io.now();
        let deadline = match owner {
            Owner::EventRequest => Instant::NEVER,
            _ => now.plus_ns(self.config.command_timeout.as_nanos() as u64),
        };
        self.queues[queue].submit(sqe, data, owner, now, deadline);
    }

    /// Puts a request on a queue; gives it back if none has room, or no buffer is free for it.
    fn place<I: Io>(&mut self, io: &mut I, mut request: HostRequest) -> Result<(), HostRequest> {
        let fused = matches!(request.command, Command::CompareAndWrite { .. });
        let needed = if fused { 2 } else { 1 };
        let count = usize::from(self.queues_granted);
        let found = (0..count).map(|n| 1 + (self.next_queue + n) % count).find(|&queue| self.queues[queue].room() >= needed);
        let Some(queue) = found else { return Err(request) };
        let namespace = self.namespace.as_ref().expect("a ready host knows its volume");
        let sqe = Sqe::for_request(request.command, request.offset, request.len, namespace.lba_bytes);
        let owner = IoOwner {
            user: request.user,
            command: request.command,
            offset: request.offset,
            len: request.len,
            half: Half::Whole,
        };
        let in_capsule = request.len as usize <= self.in_capsule_max;
        let data = match request.command {
            Command::Read => Data::In(request.buf.take().expect("checked")),
            Command::Write { .. } | Command::Compare => Data::Out { buf: request.buf.take().expect("checked"), in_capsule },
            Command::Flush | Command::WriteZeroes { .. } => Data::None,
            Command::Deallocate => {
                let Some(mut ranges) = io.buffers().get(16) else { return Err(request) };
                ranges.copy_from_slice(&Sqe::deallocate_range(request.offset, request.len, namespace.lba_bytes));
                Data::Out { buf: ranges, in_capsule: true }
            }
            Command::CompareAndWrite { fua } => {
                self.place_pair(io, queue, request, fua, in_capsule);
                self.next_queue = queue;
                return Ok(());
            }
        };
        self.submit_to(io, queue, sqe, data, Owner::Io(owner));
        self.next_queue = queue;
        Ok(())
    }

    fn place_pair<I: Io>(&mut self, io: &mut I, queue: usize, request: HostRequest, fua: bool, in_capsule: bool) {
        self.pairs += 1;
        let pair = self.pairs;
        let HostRequest { user, command, offset, len, buf } = request;
        let lba = self.namespace.as_ref().expect("a ready host knows its volume").lba_bytes;
        let mut compare = buf.expect("checked");
        let write = compare.split_off(len as usize);
        let owner = |half| Owner::Io(IoOwner { user, command, offset, len, half });
        let mut first = Sqe::for_request(Command::Compare, offset, len, lba);
        first.set_fused_first();
        let mut second = Sqe::for_request(Command::Write { fua }, offset, len, lba);
        second.set_fused_second();
        self.submit_to(io, queue, first, Data::Out { buf: compare, in_capsule }, owner(Half::First { pair }));
        self.submit_to(io, queue, second, Data::Out { buf: write, in_capsule }, owner(Half::Second { pair }));
    }

    /// Hands an operation's end to the queue it belongs to. Call [`Host::turn`] when all of a tick are in.
    pub fn on_completion<I: Io>(&mut self, io: &mut I, completion: Completion) {
        let token = QueueToken::decode(completion.token);
        let queue = &mut self.queues[usize::from(token.queue)];
        queue.on_completion(io, token, completion, &self.config.name);
    }

    /// Applies what has arrived, runs timers, sends what is to be sent.
    pub fn turn<I: Io>(&mut self, io: &mut I) {
        for queue in 0..self.queues.len() {
            while let Some(event) = self.queues[queue].events.pop_front() {
                match event {
                    QueueEvent::Greeted => self.on_greeted(io, queue),
                    QueueEvent::Finished { cqe, buf, owner } => self.on_finished(io, queue, cqe, buf, owner),
                    QueueEvent::Down(error) => self.break_down(io, error),
                }
            }
        }
        self.run_timers(io);
        if self.is_ready() {
            while let Some(request) = self.waiting.pop_front() {
                if let Err(request) = self.place(io, request) {
                    self.waiting.push_front(request);
                    break;
                }
            }
            self.read_notice(io);
        }
        self.flush(io);
    }

    /// Sends what was submitted since the last [`Host::turn`].
    pub fn flush<I: Io>(&mut self, io: &mut I) {
        for queue in &mut self.queues {
            queue.flush(io);
            queue.receive(io);
        }
    }

    /// Events since the last call, in order.
    pub fn events(&mut self) -> impl Iterator<Item = Event> + '_ {
        self.events.drain(..)
    }

    /// The next event, if there is one.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Host::turn`] has to run although nothing arrives.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        match &self.phase {
            Phase::Idle | Phase::Closed | Phase::Failed => Instant::NEVER,
            Phase::Breaking { .. } | Phase::Closing => Instant::NEVER,
            Phase::Pausing { until } => *until,
            Phase::Opening { deadline, step } => match step {
                Step::StatusPause { until } => (*until).min(*deadline),
                _ => *deadline,
            },
            Phase::Ready { keep_alive_due } => (*keep_alive_due).min(self.scan_due),
        }
    }

    fn run_timers<I: Io>(&mut self, io: &mut I) {
        let now = io.now();
        match &self.phase {
            Phase::Opening { deadline, step } => {
                if now >= *deadline {
                    let context = format!("{}: no answer within {:?} while {step}", self.config.name, self.config.connect_timeout);
                    self.break_down(io, HostError::new(HostErrorKind::TimedOut, context));
                } else {
                    self.run_start_timer(io, now);
                }
            }
            Phase::Ready { keep_alive_due } => {
                if now >= *keep_alive_due {
                    self.send_keep_alive(io, now);
                }
                if now >= self.scan_due {
                    self.scan_deadlines(io, now);
                }
            }
            Phase::Pausing { until } if now >= *until => self.begin_start(io),
            Phase::Breaking { .. } | Phase::Closing => self.finish_breaking(io),
            Phase::Pausing { .. } | Phase::Idle | Phase::Closed | Phase::Failed => {}
        }
    }

    fn send_keep_alive<I: Io>(&mut self, io: &mut I, now: Instant) {
        if self.queues[0].room() > 0 {
            self.submit_to(io, 0, Sqe::keep_alive(), Data::None, Owner::KeepAlive);
        }
        self.phase = Phase::Ready { keep_alive_due: self.keep_alive_after(now) };
    }

    fn keep_alive_after(&self, now: Instant) -> Instant {
        match self.config.keep_alive.as_nanos() as u64 {
            0 => Instant::NEVER,
            // Two in one timeout: one lost wake-up is not the end of the association.
            ns => now.plus_ns(ns / 3),
        }
    }

    fn scan_deadlines<I: Io>(&mut self, io: &mut I, now: Instant) {
        self.scan_due = now.plus_ns((self.config.command_timeout.as_nanos() as u64 / 8).clamp(1_000_000, 1_000_000_000));
        let earliest = self.queues.iter().filter_map(|queue| Some((queue.earliest_deadline()?, queue.index))).min();
        if let Some(((deadline, cid), queue)) = earliest
            && now >= deadline
        {
            let context = format!(
                "{}: command {cid} on queue {queue} was not answered within {:?}",
                self.config.name, self.config.command_timeout
            );
            self.break_down(io, HostError::new(HostErrorKind::TimedOut, context));
        }
    }

    /// The start sequence is through.
    pub(super) fn opened<I: Io>(&mut self, io: &mut I) {
        let now = io.now();
        self.phase = Phase::Ready { keep_alive_due: self.keep_alive_after(now) };
        self.scan_due = now;
        let outage = self.outage.take().expect("an opening ends an outage");
        if self.was_ready {
            let outage = Duration::from_nanos(now.since_ns(outage.since));
            self.events.push_back(Event::Reconnected { resent: std::mem::take(&mut self.resent), outage });
        } else {
            self.was_ready = true;
            self.events.push_back(Event::Ready(self.namespace));
        }
        self.submit_to(io, 0, Sqe::async_event_request(), Data::None, Owner::EventRequest);
    }

    /// Ends the connection because of `error`; what is in flight stays for the next one.
    pub(super) fn break_down<I: Io>(&mut self, io: &mut I, error: HostError) {
        if !matches!(self.phase, Phase::Opening { .. } | Phase::Ready { .. }) {
            return;
        }
        self.outage.get_or_insert(Outage { since: io.now(), attempts: 0 });
        self.phase = Phase::Breaking { error };
        self.queues.iter_mut().for_each(|queue| queue.close(io));
        self.finish_breaking(io);
    }

    /// Ends the host: what is in flight ends as gone or unknown, then comes [`Event::Closed`].
    pub fn close<I: Io>(&mut self, io: &mut I) {
        match self.phase {
            Phase::Closed | Phase::Failed => self.events.push_back(Event::Closed),
            _ => {
                self.phase = Phase::Closing;
                self.queues.iter_mut().for_each(|queue| queue.close(io));
                self.finish_breaking(io);
            }
        }
    }

    /// When everything is back from the ring: keep what was in flight, and decide what is next.
    fn finish_breaking<I: Io>(&mut self, io: &mut I) {
        if !self.queues.iter().all(Queue::is_closed) {
            return;
        }
        self.collect_orphans();
        let now = io.now();
        let phase = std::mem::replace(&mut self.phase, Phase::Closing);
        let Phase::Breaking { error } = phase else {
            self.end_all(Outcome::Gone);
            self.phase = Phase::Closed;
            self.events.push_back(Event::Closed);
            return;
        };
        let outage = self.outage.as_mut().expect("a break begins an outage");
        outage.attempts += 1;
        let outage = *outage;
        let reconnect = &self.config.reconnect;
        let (limit, passes) = match self.was_ready {
            // A target that is starting may not list its volumes yet: keep trying whatever it says.
            true => (reconnect.give_up_after, true),
            false => (reconnect.wait_for_target, error.kind.passes() || error.kind == HostErrorKind::NoSuchVolume),
        };
        if !passes || now.since_ns(outage.since) >= limit.as_nanos() as u64 {
            self.end_all(Outcome::Gone);
            self.phase = Phase::Failed;
            self.events.push_back(Event::Failed(error));
            return;
        }
        let doublings = (outage.attempts - 1).min(16);
        let pause = (reconnect.first * (1 << doublings)).min(reconnect.most);
        self.phase = Phase::Pausing { until: now.plus_ns(pause.as_nanos() as u64) };
        self.events.push_back(Event::Lost(error));
    }

    fn collect_orphans(&mut self) {
        let mut again = Vec::new();
        for queue in 0..self.queues.len() {
            for orphan in self.queues[queue].orphans() {
                let Orphan { owner, buf, sent, .. } = orphan;
                match owner {
                    Owner::Start | Owner::Notice(_) => self.scratch = buf,
                    Owner::KeepAlive | Owner::EventRequest => {}
                    Owner::Admin { user } => self.complete(user, Outcome::Unknown, buf, 0),
                    Owner::Io(io) => match io.half {
                        Half::Whole => {
                            self.resent += usize::from(sent);
                            let buf = if io.command == Command::Deallocate { None } else { buf };
                            again.push(HostRequest { user: io.user, command: io.command, offset: io.offset, len: io.len, buf });
                        }
                        half => self.orphan_half(io, half, buf, sent, &mut again),
                    },
                }
            }
        }
        again.into_iter().rev().for_each(|request| self.waiting.push_front(request));
        assert!(self.halves.is_empty(), "both halves of a pair are on one queue");
        self.notice_pending = true;
    }

    /// A half of a pair on a broken queue: only a pair of which nothing was sent may go out again.
    fn orphan_half(&mut self, io: IoOwner, half: Half, buf: Option<Buf>, sent: bool, again: &mut Vec<HostRequest>) {
        let (Half::First { pair } | Half::Second { pair }) = half else { unreachable!("whole commands are no halves") };
        let other = self.halves.iter().position(|ended| ended.pair == pair).map(|at| self.halves.swap_remove(at));
        let Some(other) = other else {
            // The first half goes out first: if it was not sent, nothing was.
            let cqe = sent.then(|| Cqe::success(0));
            return self.halves.push(HalfEnded { pair, cqe, buf });
        };
        let buf = join_halves(half, buf, other.buf);
        if sent || other.cqe.is_some() {
            self.complete(io.user, Outcome::Unknown, buf, 0);
        } else {
            again.push(HostRequest { user: io.user, command: io.command, offset: io.offset, len: io.len, buf });
        }
    }

    fn end_all(&mut self, outcome: Outcome) {
        while let Some(request) = self.waiting.pop_front() {
            self.complete(request.user, outcome, request.buf, 0);
        }
    }

    fn complete(&mut self, user: u64, outcome: Outcome, buf: Option<Buf>, result: u32) {
        self.events.push_back(Event::Completed(Completed { user, outcome, buf, result }));
    }

    fn on_finished<I: Io>(&mut self, io: &mut I, queue: usize, cqe: Cqe, buf: Option<Buf>, owner: Owner) {
        match owner {
            Owner::Start => self.on_start_finished(io, queue, &cqe, buf),
            Owner::Notice(notice) => self.on_notice_finished(io, notice, &cqe, buf),
            Owner::EventRequest => self.on_event(io, &cqe),
            Owner::KeepAlive if cqe.is_success() => {}
            Owner::KeepAlive => {
                let context = format!("{}: keep-alive was refused: {}", self.config.name, cqe.status());
                self.break_down(io, HostError::new(HostErrorKind::Disconnected, context));
            }
            Owner::Admin { user } => self.complete(user, outcome(&cqe), buf, cqe.result()),
            Owner::Io(io) => match io.half {
                Half::Whole => {
                    let buf = if io.command == Command::Deallocate { None } else { buf };
                    self.complete(io.user, outcome(&cqe), buf, cqe.result());
                }
                half => self.on_half(io, half, cqe, buf),
            },
        }
    }

    fn on_half(&mut self, io: IoOwner, half: Half, cqe: Cqe, buf: Option<Buf>) {
        let (Half::First { pair } | Half::Second { pair }) = half else { unreachable!("whole commands are no halves") };
        let other = self.halves.iter().position(|ended| ended.pair == pair).map(|at| self.halves.swap_remove(at));
        let Some(other) = other else { return self.halves.push(HalfEnded { pair, cqe: Some(cqe), buf }) };
        let other_cqe = other.cqe.expect("an answered half has its completion");
        let (first, second) = if matches!(half, Half::First { .. }) { (cqe, other_cqe) } else { (other_cqe, cqe) };
        let said = if first.is_success() { second } else { first };
        let buf = join_halves(half, buf, other.buf);
        self.complete(io.user, outcome(&said), buf, said.result());
    }
}

fn join_halves(half: Half, buf: Option<Buf>, other: Option<Buf>) -> Option<Buf> {
    let (mut first, second) = if matches!(half, Half::First { .. }) { (buf?, other?) } else { (other?, buf?) };
    first.join(second);
    Some(first)
}

fn outcome(cqe: &Cqe) -> Outcome {
    if cqe.is_success() { Outcome::Success } else { Outcome::Failed(cqe.status()) }
}
