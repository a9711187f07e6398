//! NVMe/TCP connections of one reactor.
//!
//! `stream` brings bytes, `connection` cuts them into PDUs, `command` turns capsules into requests and ended requests into
//! answers, which `stream` batches. Nothing here waits: what cannot go on now is on one of the lists of [`TcpTransport`] and is
//! tried again in a later turn.

mod admin;
mod command;
mod connection;
mod patience;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};
use std::ops::Add;
use std::sync::Arc;

use ringway_reactor::io::{Completion, Instant, Io, ListenerId, Op, Payload, Socket};
use slab::Slab;

use crate::controller::registry::Registry;
use crate::directory::Directory;
use crate::ids::{AssociationId, RequestId, VolumeId};
use crate::node::message::Message;
use crate::request::{Done, Request};
use crate::transport::ConnectionSeen;
use connection::{Connection, Phase};
use patience::Patience;

/// A peer that takes or sends nothing for this long, while it owes us something, is given up: a stuck peer must not hold
/// buffers for ever.
const STALL_NS: u64 = 30_000_000_000;
/// How often deadlines are looked at.
const TICK_NS: u64 = 500_000_000;
/// How soon to try again what waits for a fence or a buffer.
const RETRY_NS: u64 = 1_000_000;

/// Bounds of one reactor's connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportConfig {
    /// Which reactor this is, and how many there are.
    pub reactor: usize,
    pub reactors: usize,
    /// Connections at most; more are closed as they come.
    pub connections_max: usize,
    /// Bytes of data buffers that one connection's commands may hold; beyond it they wait.
    pub connection_bytes_max: usize,
    /// Bytes of data buffers that writes waiting for their data may hold together: the rest of the pool is for commands that
    /// need nothing more from their peers, so that those who wait cannot starve those who do not.
    pub receiving_bytes_max: usize,
    /// Of these, bytes that one connection's may hold: a peer that is slow, on purpose or not, leaves room for the others. One
    /// command is always let in.
    pub connection_receiving_max: usize,
}

impl TransportConfig {
    /// Bounds for a reactor with `buffer_bytes` of buffers.
    #[must_use]
    pub fn new(reactor: usize, reactors: usize, buffer_bytes: usize) -> Self {
        Self {
            reactor,
            reactors,
            connections_max: 4096,
            connection_bytes_max: buffer_bytes / 4,
            receiving_bytes_max: buffer_bytes / 2,
            connection_receiving_max: buffer_bytes / 16,
        }
    }
}

/// A connection on its way to the reactor that will serve it.
#[derive(Debug)]
pub struct Adopted {
    /// Connected, not yet attached.
    pub socket: Socket,
    /// The host's end.
    pub peer: SocketAddr,
    /// The address by which it was reached.
    pub local: SocketAddr,
}

/// What a transport wants from its node.
#[derive(Debug)]
pub enum TransportEvent {
    /// Do this; [`TcpTransport::on_done`] follows exactly once.
    Request { id: RequestId, request: Request },
    /// An association has ended: fence it.
    AssociationDead(AssociationId),
    /// A host attaches this volume: put that on record, and say so to the registry.
    Attached { volume: VolumeId },
    /// A new connection belongs to another reactor.
    Handover { to: usize, adopted: Adopted },
    /// For a transport of the same kind on another reactor.
    Mail { to: usize, message: Message },
}

/// Plain counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransportStats {
    /// Connections taken.
    pub accepted: u64,
    /// Connections closed, for whatever reason.
    pub closed: u64,
    /// Connections that broke the protocol.
    pub terminated: u64,
    /// Commands taken.
    pub commands: u64,
    /// Bytes copied between buffers on the way in: data that came together with its header.
    pub bytes_copied: u64,
    /// Commands that had to wait for a buffer.
    pub waited_for_buffer: u64,
}

impl Add for TransportStats {
    type Output = TransportStats;

    fn add(self, other: TransportStats) -> TransportStats {
        TransportStats {
            accepted: self.accepted + other.accepted,
            closed: self.closed + other.closed,
            terminated: self.terminated + other.terminated,
            commands: self.commands + other.commands,
            bytes_copied: self.bytes_copied + other.bytes_copied,
            waited_for_buffer: self.waited_for_buffer + other.waited_for_buffer,
        }
    }
}

/// What connections share within one call.
pub(super) struct Cx<'a, I> {
    pub(super) io: &'a mut I,
    pub(super) out: &'a mut Vec<TransportEvent>,
    pub(super) config: &'a TransportConfig,
    pub(super) registry: &'a Arc<Registry>,
    pub(super) directory: &'a Arc<Directory>,
    pub(super) stats: &'a mut TransportStats,
    /// Connections with something to send.
    pub(super) dirty: &'a mut Vec<usize>,
    /// Connections that wait for a buffer.
    pub(super) starved: &'a mut VecDeque<usize>,
    /// Connections that have had their share of this turn and have more to read.
    pub(super) sated: &'a mut Vec<usize>,
    /// Connections that were closed.
    pub(super) closing: &'a mut Vec<usize>,
    /// Bytes of buffers that wait for data from their peers.
    pub(super) receiving_bytes: &'a mut usize,
    /// Who waits for more of them, and how long others may hold them.
    patience: &'a mut Patience,
    /// No new command is taken.
    pub(super) draining: bool,
}

/// Tokens of this transport's operations.
pub(super) mod token {
    use ringway_reactor::io::Token;

    use crate::tokens;

    pub(super) const RECEIVE: u8 = 0;
    pub(super) const SEND: u8 = 1;
    pub(super) const ACCEPT: u8 = 2;

    pub(super) fn receive(connection: usize) -> Token {
        tokens::operation(tokens::TCP, RECEIVE, connection)
    }

    pub(super) fn send(connection: usize) -> Token {
        tokens::operation(tokens::TCP, SEND, connection)
    }

    pub(super) fn accept(listener: usize) -> Token {
        tokens::operation(tokens::TCP, ACCEPT, listener)
    }

    pub(super) use crate::tokens::parse;
}

struct Listener {
    id: ListenerId,
    local: SocketAddr,
}

/// The address by which the host reached us: discovery tells it to connect there, which it could not to a wildcard.
fn with_local(socket: Socket, listener: SocketAddr) -> (Socket, SocketAddr) {
    match socket {
        Socket::Os(fd) if listener.ip().is_unspecified() => {
            let stream = TcpStream::from(fd);
            let local = stream.local_addr().unwrap_or(listener);
            (Socket::Os(stream.into()), local)
        }
        socket => (socket, listener),
    }
}

/// The NVMe/TCP connections of one reactor.
pub struct TcpTransport {
    config: TransportConfig,
    registry: Arc<Registry>,
    directory: Arc<Directory>,
    connections: Slab<Connection>,
    listeners: Vec<Listener>,
    next_reactor: usize,
    dirty: Vec<usize>,
    starved: VecDeque<usize>,
    sated: Vec<usize>,
    closing: Vec<usize>,
    receiving_bytes: usize,
    patience: Patience,
    stats: TransportStats,
    next_tick: Instant,
    last_turn: Instant,
    last_number: u64,
    draining: bool,
}

impl TcpTransport {
    /// No connections yet.
    #[must_use]
    pub fn new(config: TransportConfig, registry: Arc<Registry>, directory: Arc<Directory>) -> Self {
        Self {
            config,
            registry,
            directory,
            connections: Slab::new(),
            listeners: Vec::new(),
            next_reactor: 0,
            dirty: Vec::new(),
            starved: VecDeque::new(),
            sated: Vec::new(),
            closing: Vec::new(),
            receiving_bytes: 0,
            patience: Patience::default(),
            stats: TransportStats::default(),
            next_tick: Instant(0),
            last_turn: Instant(0),
            last_number: 0,
            draining: false,
        }
    }

    /// Splits `self` into one connection and what all connections share.
    fn with<I: Io, R>(
        &mut self,
        io: &mut I,
        out: &mut Vec<TransportEvent>,
        index: usize,
        f: impl FnOnce(&mut Connection, &mut Cx<'_, I>) -> R,
    ) -> Option<R> {
        let connection = self.connections.get_mut(index)?;
        let mut cx = Cx {
            io,
            out,
            config: &self.config,
            registry: &self.registry,
            directory: &self.directory,
            stats: &mut self.stats,
            dirty: &mut self.dirty,
            starved: &mut self.starved,
            sated: &mut self.sated,
            closing: &mut self.closing,
            receiving_bytes: &mut self.receiving_bytes,
            patience: &mut self.patience,
            draining: self.draining,
        };
        Some(f(connection, &mut cx))
    }

    /// Takes connections from an open listener, and hands them to the reactors in turn.
    pub fn listen<I: Io>(&mut self, io: &mut I, id: ListenerId, local: SocketAddr) {
        io.submit(token::accept(self.listeners.len()), Op::Accept { listener: id });
        self.listeners.push(Listener { id, local });
    }

    /// Serves a connection.
    pub fn adopt<I: Io>(&mut self, io: &mut I, adopted: Adopted, out: &mut Vec<TransportEvent>) {
        if self.draining || self.connections.len() >= self.config.connections_max {
            tracing::warn!(peer = %adopted.peer, "a connection is refused: {}", if self.draining { "stopping" } else { "too many" });
            return;
        }
        let socket = match io.attach(adopted.socket) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(peer = %adopted.peer, %error, "a connection cannot be served");
                return;
            }
        };
        self.stats.accepted += 1;
        self.last_number += 1;
        let number = self.last_number;
        let index = self.connections.vacant_key();
        let now = io.now();
        self.connections.insert(Connection::new(
            (index, number),
            socket,
            adopted.peer,
            adopted.local,
            now,
            self.patience.now(),
        ));
        self.with(io, out, index, |connection, cx| connection.advance(cx));
    }

    /// An operation of this transport ended.
    pub fn on_completion<I: Io>(&mut self, io: &mut I, completion: Completion, out: &mut Vec<TransportEvent>) {
        let (kind, index) = token::parse(completion.token);
        match (kind, completion.payload) {
            (token::RECEIVE, Payload::Buf(buf)) => {
                // An error ends a connection as a clean end does; what was in flight is fenced.
                let count = completion.result.unwrap_or(0);
                self.with(io, out, index, |connection, cx| connection.on_received(cx, buf, count));
            }
            (token::SEND, Payload::Bufs(bufs)) => {
                self.with(io, out, index, |connection, cx| {
                    connection.on_sent(cx, bufs, completion.result.unwrap_or(0));
                    if let Err(error) = completion.result {
                        connection.close(cx, &error.to_string());
                    }
                });
            }
            (token::ACCEPT, payload) => self.accepted(io, index, payload, out),
            (kind, payload) => unreachable!("operation {kind} came back with {payload:?}"),
        }
        self.remove_if_gone(index, kind);
    }

    fn accepted<I: Io>(&mut self, io: &mut I, listener: usize, payload: Payload, out: &mut Vec<TransportEvent>) {
        if let Payload::Socket(socket, peer) = payload {
            let (socket, local) = with_local(socket, self.listeners[listener].local);
            let adopted = Adopted { socket, peer, local };
            let to = self.next_reactor;
            self.next_reactor = (to + 1) % self.config.reactors;
            if to == self.config.reactor {
                self.adopt(io, adopted, out);
            } else {
                out.push(TransportEvent::Handover { to, adopted });
            }
        }
        if !self.draining {
            io.submit(token::accept(listener), Op::Accept { listener: self.listeners[listener].id });
        }
    }

    fn remove_if_gone(&mut self, index: usize, kind: u8) {
        if kind != token::ACCEPT && self.connections.get(index).is_some_and(Connection::is_gone) {
            self.connections.remove(index);
        }
    }

    /// A request ended.
    pub fn on_done<I: Io>(&mut self, io: &mut I, done: Done, out: &mut Vec<TransportEvent>) {
        let (index, slot) = command::parse_request_id(done.id);
        self.with(io, out, index, |connection, cx| connection.on_done(cx, slot, done))
            .expect("a connection stays until its requests have ended");
        self.remove_if_gone(index, token::RECEIVE);
    }

    /// The volumes changed; hosts that asked to be told are told.
    pub fn on_directory<I: Io>(&mut self, io: &mut I, directory: Arc<Directory>, out: &mut Vec<TransportEvent>) {
        self.directory = directory;
        for index in self.indices() {
            self.with(io, out, index, |connection, cx| connection.on_directory(cx));
        }
    }

    /// Closes the association's connections on this reactor.
    pub fn kill_association<I: Io>(&mut self, io: &mut I, association: AssociationId, out: &mut Vec<TransportEvent>) {
        for index in self.indices() {
            self.with(io, out, index, |connection, cx| {
                if connection.association_id() == Some(association) {
                    connection.close(cx, "its association has ended");
                }
            });
            self.remove_if_gone(index, token::RECEIVE);
        }
    }

    fn indices(&self) -> Vec<usize> {
        self.connections.iter().map(|(index, _)| index).collect()
    }

    /// What waits for its next share, for buffers, fences or deadlines.
    pub fn tick<I: Io>(&mut self, io: &mut I, out: &mut Vec<TransportEvent>) {
        for _ in 0..self.starved.len() {
            let index = self.starved.pop_front().expect("counted above");
            self.with(io, out, index, |connection, cx| connection.retry(cx));
        }
        // A connection that came to this place meanwhile has nothing to read yet, which does no harm.
        let sated = self.sated.len();
        for at in 0..sated {
            self.with(io, out, self.sated[at], |connection, cx| connection.go_on(cx));
        }
        self.sated.drain(..sated);
        let now = io.now();
        self.last_turn = now;
        if self.draining {
            self.close_settled(io, out);
        }
        if now < self.next_tick {
            return;
        }
        self.next_tick = now.plus_ns(TICK_NS);
        self.patience.tick();
        for index in self.indices() {
            self.with(io, out, index, |connection, cx| connection.check_deadlines(cx, now));
            self.remove_if_gone(index, token::RECEIVE);
        }
    }

    /// A drained transport's connections go together once everything that was taken is answered: a host that lost one of
    /// them would give up on the others.
    fn close_settled<I: Io>(&mut self, io: &mut I, out: &mut Vec<TransportEvent>) {
        if !self.connections.iter().all(|(_, connection)| connection.is_settled()) {
            return;
        }
        for index in self.indices() {
            self.with(io, out, index, |connection, cx| connection.close(cx, "the target is stopping"));
            self.remove_if_gone(index, token::RECEIVE);
        }
    }

    /// Submits one send for each connection that has something to say.
    pub fn flush<I: Io>(&mut self, io: &mut I) {
        for index in self.dirty.drain(..) {
            if let Some(connection) = self.connections.get_mut(index)
                && connection.phase != Phase::Closing
            {
                connection.output.submit(io, connection.socket, token::send(index));
            }
        }
        for index in self.closing.drain(..) {
            if self.connections.get(index).is_some_and(Connection::is_gone) {
                self.connections.remove(index);
            }
        }
    }

    /// When [`TcpTransport::tick`] has to run although nothing arrives.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        match (self.connections.is_empty(), self.starved.is_empty() && !self.draining) {
            (true, _) => Instant::NEVER,
            (false, true) => self.next_tick,
            // A buffer that comes free, or a fence that ends elsewhere, is no event here.
            (false, false) => self.next_tick.min(self.last_turn.plus_ns(RETRY_NS)),
        }
    }

    /// Whether [`TcpTransport::flush`] has something to do at once.
    #[must_use]
    pub fn busy(&self) -> bool {
        !self.dirty.is_empty() || !self.sated.is_empty() || !self.closing.is_empty()
    }

    /// Takes no new connection and no new command; connections close once what they have in flight is answered.
    pub fn drain<I: Io>(&mut self, io: &mut I) {
        self.draining = true;
        // They stay in the table: an accept may still come back with a connection.
        for listener in &self.listeners {
            io.close_listener(listener.id);
        }
    }

    /// Whether a drained transport has nothing left.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.draining && self.connections.is_empty()
    }

    /// Counters as of now.
    #[must_use]
    pub fn stats(&self) -> TransportStats {
        self.stats
    }

    /// What there is to know of each connection.
    pub fn seen(&self) -> impl Iterator<Item = ConnectionSeen<'_>> {
        self.connections.iter().map(|(_, connection)| connection.seen())
    }

    /// Connections now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }
}
