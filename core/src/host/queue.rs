//! One queue: a connection, the commands in flight on it, and how its PDUs become their ends.
//!
//! ```text
//! Closed --dial--> Dialling --connected--> Greeting --ICResp--> Open
//!    ^                 |                      |                   |
//!    |                 +----------- down -----+-------------------+
//!    +--(everything lent to the ring is back)-- Draining
//! ```
//! A command's buffers may be lent to a send or to a direct receive; a command ends, and a broken queue gives its commands
//! back, only when they have returned. What is on a queue that broke is for the association to send again.

use std::collections::VecDeque;
use std::net::SocketAddr;

use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Completion, ErrorKind, Instant, Io, IoError, Op, Payload, SocketId, Token};

use super::error::{HostError, HostErrorKind};
use super::inbox::Inbox;
use super::outbox::Outbox;
use super::slot::{Data, Slot};
use crate::wire::command::Sqe;
use crate::wire::completion::Cqe;
use crate::wire::pdu::Agreed;

/// What of a queue's token says which operation it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Dial,
    Send,
    Receive,
    ReceiveDirectly,
    /// The wait for the bell of RDMA devices, which is of no queue.
    Bell,
}

/// A token's fields: whose `Io` user, which queue, which of its connections, which operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueToken {
    pub(super) space: u16,
    pub(super) queue: u8,
    pub(super) part: Part,
    pub(super) connection: u32,
}

impl QueueToken {
    pub(super) fn encode(self) -> Token {
        let part = match self.part {
            Part::Dial => 0,
            Part::Send => 1,
            Part::Receive => 2,
            Part::ReceiveDirectly => 3,
            Part::Bell => 4,
        };
        Token(u64::from(self.space) << 48 | u64::from(self.queue) << 40 | part << 32 | u64::from(self.connection))
    }

    pub(super) fn decode(token: Token) -> Self {
        let part = match token.0 >> 32 & 0xff {
            0 => Part::Dial,
            1 => Part::Send,
            2 => Part::Receive,
            3 => Part::ReceiveDirectly,
            4 => Part::Bell,
            other => panic!("token {token:?} names part {other} of a queue"),
        };
        Self { space: (token.0 >> 48) as u16, queue: (token.0 >> 40) as u8, part, connection: token.0 as u32 }
    }
}

#[derive(Debug)]
pub(super) enum State {
    Closed,
    Dialling,
    Greeting {
        socket: SocketId,
    },
    Open {
        socket: SocketId,
        agreed: Agreed,
        /// Data of one H2CData PDU, bytes.
        h2c_max: usize,
    },
    Draining,
}

/// What a queue tells its association.
#[derive(Debug)]
pub(super) enum QueueEvent<O> {
    /// The connection is greeted: commands may be sent.
    Greeted,
    /// A command ended.
    Finished { cqe: Cqe, buf: Option<Buf>, owner: O },
    /// The connection is gone or unusable; [`Queue::close`] is next.
    Down(HostError),
}

/// Something to be sent when the outbox is free.
#[derive(Debug)]
pub(super) enum Pending {
    Greeting,
    Capsule { cid: u16 },
    Data { cid: u16, ttag: u16, offset: usize, len: usize, last: bool },
}

/// A command that a broken queue gives back.
#[derive(Debug)]
pub(super) struct Orphan<O> {
    pub(super) buf: Option<Buf>,
    pub(super) owner: O,
    /// Whether any byte of it may have reached the target.
    pub(super) sent: bool,
    /// Order of submission.
    pub(super) order: u64,
}

/// One queue.
#[derive(Debug)]
pub(super) struct Queue<O> {
    pub(super) space: u16,
    pub(super) index: u8,
    pub(super) connection: u32,
    pub(super) state: State,
    /// Operations of this queue that the ring owns.
    in_ring: u32,
    pub(super) slots: Vec<Option<Slot<O>>>,
    free: Vec<u16>,
    pub(super) pending: VecDeque<Pending>,
    pub(super) outbox: Outbox,
    pub(super) inbox: Inbox,
    receiving: bool,
    /// The command whose data is arriving, where the next byte goes and where this PDU's data began.
    pub(super) arriving: Option<super::receive::Arriving>,
    pub(super) events: VecDeque<QueueEvent<O>>,
    pub(super) digests: (bool, bool),
    submitted: u64,
    /// Commands that were answered while a send still holds parts of them.
    pub(super) answered_lent: Vec<u16>,
}

impl<O> Queue<O> {
    pub(super) fn new(space: u16, index: u8, depth: u16, digests: (bool, bool)) -> Self {
        Self {
            space,
            index,
            connection: 0,
            state: State::Closed,
            in_ring: 0,
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            pending: VecDeque::with_capacity(usize::from(depth) + 1),
            outbox: Outbox::default(),
            inbox: Inbox::new(),
            receiving: false,
            arriving: None,
            events: VecDeque::new(),
            digests,
            submitted: 0,
            answered_lent: Vec::new(),
        }
    }

    fn token(&self, part: Part) -> Token {
        QueueToken { space: self.space, queue: self.index, part, connection: self.connection }.encode()
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Nothing of this queue is in the ring and it has no connection.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Commands that could be submitted now.
    pub(super) fn room(&self) -> usize {
        self.free.len()
    }

    /// Commands in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Begins a connection.
    pub(super) fn dial<I: Io>(&mut self, io: &mut I, addr: SocketAddr) {
        assert!(self.is_closed() && self.in_ring == 0 && self.in_flight() == 0, "dialled twice");
        self.connection = self.connection.wrapping_add(1);
        self.inbox.reset();
        self.state = State::Dialling;
        self.in_ring += 1;
        io.submit(self.token(Part::Dial), Op::Connect { addr });
    }

    /// Ends the connection, if there is one. Commands stay until [`Queue::orphans`] takes them.
    pub(super) fn close<I: Io>(&mut self, io: &mut I) {
        match self.state {
            State::Greeting { socket } | State::Open { socket, .. } => io.close(socket),
            State::Closed | State::Dialling | State::Draining => {}
        }
        if !self.is_closed() {
            self.state = State::Draining;
            self.settle();
        }
    }

    fn settle(&mut self) {
        if self.in_ring == 0 && matches!(self.state, State::Draining) {
            self.state = State::Closed;
        }
    }

    /// Takes what was in flight on a closed queue, in the order in which it was submitted.
    pub(super) fn orphans(&mut self) -> Vec<Orphan<O>> {
        assert!(self.is_closed(), "the ring still owns something of this queue");
        self.pending.clear();
        self.arriving = None;
        self.answered_lent.clear();
        self.events.clear();
        let mut orphans = Vec::new();
        for cid in 0..self.slots.len() as u16 {
            if let Some(slot) = self.slots[usize::from(cid)].take() {
                self.free.push(cid);
                orphans.push(slot.into_orphan());
            }
        }
        orphans.sort_by_key(|orphan| orphan.order);
        orphans
    }

    /// Takes a command on; it goes out with the next [`Queue::flush`].
    ///
    /// # Panics
    /// If there is no room or the queue is not open.
    pub(super) fn submit(&mut self, mut sqe: Sqe, data: Data, owner: O, now: Instant, deadline: Instant) -> u16 {
        assert!(self.is_open(), "commands go to open queues");
        let cid = self.free.pop().expect("the caller asked for room");
        sqe.cid = cid.into();
        self.submitted += 1;
        let slot = Slot::new(sqe, data, owner, now, deadline, self.submitted);
        assert!(self.slots[usize::from(cid)].replace(slot).is_none(), "a free cid has no command");
        self.pending.push_back(Pending::Capsule { cid });
        cid
    }

    /// Whether [`Queue::flush`] would send something.
    pub(super) fn wants_flush(&self) -> bool {
        let connected = matches!(self.state, State::Greeting { .. } | State::Open { .. });
        connected && !self.pending.is_empty() && !self.outbox.is_sending()
    }

    /// Sends what is pending, if no send is in flight.
    pub(super) fn flush<I: Io>(&mut self, io: &mut I) {
        let (socket, agreed) = match self.state {
            State::Greeting { socket } => (socket, Agreed::default()),
            State::Open { socket, agreed, .. } => (socket, agreed),
            State::Closed | State::Dialling | State::Draining => return,
        };
        if self.pending.is_empty() || !self.outbox.ready(io.buffers()) {
            return;
        }
        while self.outbox.has_room() {
            let Some(pending) = self.pending.pop_front() else { break };
            self.encode(&pending, &agreed);
        }
        if let Some(op) = self.outbox.take(socket) {
            self.in_ring += 1;
            io.submit(self.token(Part::Send), op);
        }
    }

    /// Posts a receive if none is in flight.
    pub(super) fn receive<I: Io>(&mut self, io: &mut I) {
        let (State::Greeting { socket } | State::Open { socket, .. }) = self.state else { return };
        if self.receiving {
            return;
        }
        let (part, buf) = match (self.inbox.direct(), &self.arriving) {
            (Some(len), Some(arriving)) => {
                let slot =
                    self.slots[usize::from(arriving.cid)].as_mut().expect("data arrives for a command in flight");
                (Part::ReceiveDirectly, slot.lend_for_receive(arriving.at, len))
            }
            _ => match self.inbox.lend(io.buffers()) {
                Some(buf) => (Part::Receive, buf),
                None => return,
            },
        };
        self.receiving = true;
        self.in_ring += 1;
        io.submit(self.token(part), Op::Recv { socket, buf });
    }

    /// An operation of this queue ended. Completions of earlier connections cannot come: a queue is dialled again only when
    /// everything is back.
    pub(super) fn on_completion<I: Io>(&mut self, io: &mut I, token: QueueToken, completion: Completion, peer: &str) {
        assert_eq!(token.connection, self.connection, "a completion of an earlier connection");
        self.in_ring -= 1;
        let dead = matches!(self.state, State::Draining);
        match (token.part, completion.payload) {
            (Part::Dial, Payload::Socket(socket, _)) if !dead => self.connected(io, socket, peer),
            (Part::Dial, _) if !dead => {
                let error = completion.result.expect_err("a connect without a socket failed");
                self.down(connect_error(peer, error));
            }
            (Part::Dial, _) => {}
            (Part::Send, Payload::Bufs(bufs)) => {
                let Self { outbox, slots, .. } = self;
                outbox.reclaim(bufs, |cid, buf| {
                    slots[usize::from(cid)].as_mut().expect("a lent part keeps its command").give_back(buf);
                });
                self.finish_returned();
                self.check(completion.result, dead, peer, "sending");
            }
            (Part::Receive, Payload::Buf(buf)) => {
                self.receiving = false;
                self.inbox.reclaim(buf, *completion.result.as_ref().unwrap_or(&0));
                if let Some(received) = self.check(completion.result, dead, peer, "receiving") {
                    self.received(received, peer);
                }
            }
            (Part::ReceiveDirectly, Payload::Buf(buf)) => {
                self.receiving = false;
                self.returned_directly(buf, *completion.result.as_ref().unwrap_or(&0));
                if let Some(received) = self.check(completion.result, dead, peer, "receiving") {
                    self.received(received, peer);
                }
            }
            (part, payload) => panic!("{part:?} came back with {payload:?}"),
        }
        self.settle();
    }

    fn connected<I: Io>(&mut self, io: &mut I, socket: ringway_reactor::io::Socket, peer: &str) {
        match io.attach(socket) {
            Ok(socket) => {
                self.state = State::Greeting { socket };
                self.pending.push_back(Pending::Greeting);
            }
            Err(error) => self.down(HostError {
                kind: HostErrorKind::Local,
                context: format!("connect {peer}: the new socket cannot be used: {error}"),
                source: Some(error),
            }),
        }
    }

    /// Turns a failed operation into [`QueueEvent::Down`], once.
    fn check(&mut self, result: Result<usize, IoError>, dead: bool, peer: &str, what: &str) -> Option<usize> {
        match result {
            _ if dead => None,
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.down(HostError {
                    kind: HostErrorKind::Disconnected,
                    context: format!("{peer}: connection lost while {what}: {error}"),
                    source: Some(error),
                });
                None
            }
        }
    }

    fn received(&mut self, bytes: usize, peer: &str) {
        if bytes == 0 {
            let context = format!("{peer}: the target closed the connection");
            return self.down(HostError::new(HostErrorKind::Disconnected, context));
        }
        if let Err(error) = self.gather() {
            self.down(error.during(peer));
        }
    }

    pub(super) fn down(&mut self, error: HostError) {
        let told = self.events.iter().any(|event| matches!(event, QueueEvent::Down(_)));
        if !told && !matches!(self.state, State::Draining | State::Closed) {
            self.events.push_back(QueueEvent::Down(error));
        }
    }

    /// Ends the command `cid`.
    pub(super) fn finish(&mut self, cid: u16) {
        let slot = self.slots[usize::from(cid)].take().expect("a finished command is in flight");
        self.free.push(cid);
        let (cqe, buf, owner) = slot.into_finished();
        self.events.push_back(QueueEvent::Finished { cqe, buf, owner });
    }

    /// Ends commands that were answered before their data came back from a send.
    fn finish_returned(&mut self) {
        for at in (0..self.answered_lent.len()).rev() {
            let cid = self.answered_lent[at];
            let slot = self.slots[usize::from(cid)].as_ref().expect("an answered command with lent parts is in flight");
            if !slot.lent() {
                self.answered_lent.swap_remove(at);
                self.finish(cid);
            }
        }
    }

    /// The earliest deadline among the commands in flight and its command.
    pub(super) fn earliest_deadline(&self) -> Option<(Instant, u16)> {
        let slots = self.slots.iter().zip(0_u16..);
        slots.filter_map(|(slot, cid)| Some((slot.as_ref()?.deadline, cid))).min()
    }
}

fn connect_error(peer: &str, error: IoError) -> HostError {
    const ECONNREFUSED: i32 = 111;
    let (kind, hint) = match error.kind {
        ErrorKind::Disconnected if error.errno == ECONNREFUSED || error.errno == 0 => {
            (HostErrorKind::Refused, "refused; is the target running there?")
        }
        ErrorKind::Disconnected => (HostErrorKind::Refused, "not reachable; is the address right?"),
        _ => (HostErrorKind::Refused, "failed"),
    };
    HostError { kind, context: format!("connect {peer}: {hint} ({error})"), source: Some(error) }
}
