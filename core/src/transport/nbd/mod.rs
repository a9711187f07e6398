//! NBD: volumes as network block devices, over unix sockets and TCP.
//!
//! ```text
//! thread that accepts --mail--> a reactor: negotiation (negotiate) --admission (shared)--> transmission (command)
//!                                          bytes <--stream--> TLS, where agreed (tls)      --requests--> node --> shards
//! ```
//! A connection lives on one reactor from its first byte to its last. Its requests are cut into pieces of one buffer each, as many at
//! a time as its share of memory allows; beyond that its socket is not read. Nothing of a client is trusted: what it does wrong
//! ends its request or its connection.

mod answer;
mod command;
mod connection;
mod extents;
pub mod negotiate;
mod server;
mod shared;
mod tls;
pub mod wire;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use ringway_reactor::io::{Completion, Instant, Io, Payload, Socket};
use slab::Slab;

use crate::directory::Directory;
use crate::ids::{AssociationId, ExportId};
use crate::request::Done;
use crate::tokens;
use crate::transport::{ConnectionSeen, TransportEvent};
use connection::Connection;
use extents::Answered;
pub use server::NbdServer;
pub use shared::NbdShared;

/// How often deadlines are looked at.
const TICK_NS: u64 = 500_000_000;
/// How soon to try again what waits for a buffer or for a predecessor.
const RETRY_NS: u64 = 1_000_000;

/// Bounds of one reactor's connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdConfig {
    /// Which reactor this is.
    pub reactor: usize,
    /// Connections at most; more are closed as they come.
    pub connections_max: usize,
    /// Bytes of data buffers that one connection's requests and answers may hold; beyond it they wait. One piece is always let in.
    pub connection_bytes_max: usize,
    /// Bytes of data buffers that wait for data of clients, all connections together: the rest is for those who need nothing more
    /// from theirs.
    pub receiving_bytes_max: usize,
}

impl NbdConfig {
    /// Bounds for a reactor with `buffer_bytes` of buffers.
    #[must_use]
    pub fn new(reactor: usize, buffer_bytes: usize) -> NbdConfig {
        NbdConfig {
            reactor,
            connections_max: 1024,
            connection_bytes_max: buffer_bytes / 16,
            receiving_bytes_max: buffer_bytes / 4,
        }
    }
}

/// A client that has connected.
#[derive(Debug)]
pub struct Arrived {
    pub(super) socket: Socket,
    /// For logs and metrics.
    pub(super) peer: String,
    /// The socket that it came to: what it can have there is asked for when it asks.
    pub(super) listener: PathBuf,
}

/// To a reactor.
#[derive(Debug)]
pub enum Mail {
    /// Serve this client.
    Adopt(Box<Arrived>),
    /// The export is gone: its connections end.
    End(ExportId),
}

/// Plain counters of one reactor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NbdStats {
    /// Connections taken.
    pub accepted: u64,
    /// Connections that broke the protocol.
    pub broken: u64,
    /// Requests that were none.
    pub malformed: u64,
    /// Bytes copied between buffers on the way in.
    pub bytes_copied: u64,
    /// Requests that had to wait for a buffer.
    pub waited_for_buffer: u64,
    /// Requests, by [`wire::Kind::place`].
    pub requests: [u64; wire::Kind::NAMES.len()],
    /// Those of them that were answered with an error.
    pub errors: [u64; wire::Kind::NAMES.len()],
    /// Bytes that those of them ask for that are requests.
    pub bytes: [u64; wire::Kind::NAMES.len()],
}

impl NbdStats {
    /// One has come.
    fn came(&mut self, asked: &wire::Asked) {
        self.requests[asked.kind.place()] += 1;
    }

    /// It is one.
    fn begun(&mut self, asked: &wire::Asked) {
        // What those two have for a length means nothing.
        if !matches!(asked.kind, wire::Kind::Flush | wire::Kind::Disconnect) {
            self.bytes[asked.kind.place()] += u64::from(asked.len);
        }
    }

    /// It is answered with an error.
    fn failed(&mut self, asked: &wire::Asked) {
        self.errors[asked.kind.place()] += 1;
    }
}

/// What connections share within one call.
struct Cx<'a, I> {
    io: &'a mut I,
    out: &'a mut Vec<TransportEvent>,
    config: &'a NbdConfig,
    shared: &'a Arc<NbdShared>,
    directory: &'a Arc<Directory>,
    stats: &'a mut NbdStats,
    /// Connections with something to send.
    dirty: &'a mut Vec<usize>,
    /// Connections that wait for a buffer, or to be admitted.
    starved: &'a mut VecDeque<usize>,
    /// Connections that have had their share of this turn and have more to read.
    sated: &'a mut Vec<usize>,
    /// Connections that were closed.
    closing: &'a mut Vec<usize>,
    /// Bytes of buffers that wait for data of clients.
    receiving_bytes: &'a mut usize,
    /// Ticks so far, and the tick in which somebody last found no buffer.
    ticks: u64,
    pressed: &'a mut u64,
    /// For answers about allocation, which come from reactor 0; and how many are to come.
    answers: &'a Sender<Answered>,
    open_questions: &'a mut usize,
    /// No new request is taken.
    draining: bool,
}

/// Tokens of this transport's operations.
mod token {
    use ringway_reactor::io::Token;

    use crate::tokens;

    pub(super) const RECEIVE: u8 = 0;
    pub(super) const SEND: u8 = 1;

    pub(super) fn receive(connection: usize) -> Token {
        tokens::operation(tokens::NBD, RECEIVE, connection)
    }

    pub(super) fn send(connection: usize) -> Token {
        tokens::operation(tokens::NBD, SEND, connection)
    }

    pub(super) use crate::tokens::parse;
}

/// The NBD connections of one reactor.
pub struct NbdTransport {
    config: NbdConfig,
    shared: Arc<NbdShared>,
    directory: Arc<Directory>,
    connections: Slab<Connection>,
    dirty: Vec<usize>,
    starved: VecDeque<usize>,
    sated: Vec<usize>,
    closing: Vec<usize>,
    receiving_bytes: usize,
    ticks: u64,
    pressed: u64,
    answers: Sender<Answered>,
    answered: Receiver<Answered>,
    open_questions: usize,
    stats: NbdStats,
    next_tick: Instant,
    last_turn: Instant,
    draining: bool,
}

impl NbdTransport {
    /// No connections yet.
    #[must_use]
    pub fn new(config: NbdConfig, shared: Arc<NbdShared>, directory: Arc<Directory>) -> NbdTransport {
        let (answers, answered) = channel();
        NbdTransport {
            config,
            shared,
            directory,
            connections: Slab::new(),
            dirty: Vec::new(),
            starved: VecDeque::new(),
            sated: Vec::new(),
            closing: Vec::new(),
            receiving_bytes: 0,
            ticks: 0,
            // Long ago.
            pressed: 0,
            answers,
            answered,
            open_questions: 0,
            stats: NbdStats::default(),
            next_tick: Instant(0),
            last_turn: Instant(0),
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
            shared: &self.shared,
            directory: &self.directory,
            stats: &mut self.stats,
            dirty: &mut self.dirty,
            starved: &mut self.starved,
            sated: &mut self.sated,
            closing: &mut self.closing,
            receiving_bytes: &mut self.receiving_bytes,
            ticks: self.ticks,
            pressed: &mut self.pressed,
            answers: &self.answers,
            open_questions: &mut self.open_questions,
            draining: self.draining,
        };
        Some(f(connection, &mut cx))
    }

    /// The thread that accepts has something for this reactor.
    pub fn on_mail<I: Io>(&mut self, io: &mut I, mail: Mail, out: &mut Vec<TransportEvent>) {
        match mail {
            Mail::Adopt(arrived) => self.adopt(io, *arrived, out),
            Mail::End(export) => {
                for index in self.indices() {
                    self.with(io, out, index, |connection, cx| connection.end_export(cx, export));
                    self.remove_if_gone(index);
                }
            }
        }
    }

    fn adopt<I: Io>(&mut self, io: &mut I, arrived: Arrived, out: &mut Vec<TransportEvent>) {
        let Arrived { socket, peer, listener } = arrived;
        let refused = |why: &str| {
            tracing::warn!(peer, "an NBD client is refused: {why}");
            self.shared.never_served(self.config.reactor);
        };
        if self.draining {
            return refused("the target is stopping");
        }
        if self.connections.len() >= self.config.connections_max {
            return refused("there are as many as are taken");
        }
        let watched = shared::second_end(&socket);
        let socket = match io.attach(socket) {
            Ok(socket) => socket,
            Err(error) => return refused(&error.to_string()),
        };
        self.stats.accepted += 1;
        let number = self.shared.next_number();
        let index = self.connections.vacant_key();
        let connection = Connection::new((index, number), socket, watched, (peer, listener), self.ticks);
        self.connections.insert(connection);
        self.with(io, out, index, |connection, cx| connection.greet(cx));
        self.remove_if_gone(index);
    }

    /// An operation of this transport ended.
    pub fn on_completion<I: Io>(&mut self, io: &mut I, completion: Completion, out: &mut Vec<TransportEvent>) {
        let (kind, index) = token::parse(completion.token);
        match (kind, completion.payload) {
            (token::RECEIVE, Payload::Buf(buf)) => {
                // An error ends a connection as a clean end does.
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
            (kind, payload) => unreachable!("operation {kind} came back with {payload:?}"),
        }
        self.remove_if_gone(index);
    }

    fn remove_if_gone(&mut self, index: usize) {
        if self.connections.get(index).is_some_and(Connection::is_gone) {
            let gone = self.connections.remove(index);
            self.shared.gone(gone.number(), self.config.reactor);
        }
    }

    /// A request ended.
    pub fn on_done<I: Io>(&mut self, io: &mut I, done: Done, out: &mut Vec<TransportEvent>) {
        let (index, piece) = tokens::request_place(done.id);
        self.with(io, out, index, |connection, cx| connection.on_done(cx, piece, done))
            .expect("a connection stays until its requests have ended");
        self.remove_if_gone(index);
    }

    /// The volumes changed.
    pub fn on_directory(&mut self, directory: &Arc<Directory>) {
        self.directory = Arc::clone(directory);
    }

    /// Closes the association's connection.
    pub fn kill_association<I: Io>(&mut self, io: &mut I, association: AssociationId, out: &mut Vec<TransportEvent>) {
        for index in self.indices() {
            self.with(io, out, index, |connection, cx| {
                if connection.association() == Some(association) {
                    connection.close(cx, "its association has ended");
                }
            });
            self.remove_if_gone(index);
        }
    }

    fn indices(&self) -> Vec<usize> {
        self.connections.iter().map(|(index, _)| index).collect()
    }

    /// What waits for its next share, for buffers, answers or deadlines.
    pub fn tick<I: Io>(&mut self, io: &mut I, out: &mut Vec<TransportEvent>) {
        if self.open_questions > 0 {
            self.take_answers(io, out);
        }
        for _ in 0..self.starved.len() {
            let index = self.starved.pop_front().expect("counted above");
            self.with(io, out, index, |connection, cx| connection.retry(cx));
        }
        let sated = self.sated.len();
        for at in 0..sated {
            self.with(io, out, self.sated[at], |connection, cx| connection.go_on(cx));
        }
        self.sated.drain(..sated);
        let now = io.now();
        self.last_turn = now;
        if self.draining {
            for index in self.indices() {
                self.with(io, out, index, |connection, cx| connection.leave_if_settled(cx));
                self.remove_if_gone(index);
            }
        }
        if now < self.next_tick {
            return;
        }
        self.next_tick = now.plus_ns(TICK_NS);
        self.ticks += 1;
        for index in self.indices() {
            self.with(io, out, index, |connection, cx| connection.check_deadlines(cx));
            self.remove_if_gone(index);
        }
    }

    fn take_answers<I: Io>(&mut self, io: &mut I, out: &mut Vec<TransportEvent>) {
        while let Ok(answered) = self.answered.try_recv() {
            self.open_questions -= 1;
            self.with(io, out, answered.connection, |connection, cx| {
                // Another may have its place by now.
                if connection.number() == answered.number {
                    connection.on_allocation(cx, answered);
                }
            });
        }
    }

    /// Submits one send for each connection that has something to say.
    pub fn flush<I: Io>(&mut self, io: &mut I) {
        for index in self.dirty.drain(..) {
            if let Some(connection) = self.connections.get_mut(index)
                && !connection.flush(io)
                && connection.begin_to_starve()
            {
                self.starved.push_back(index);
            }
        }
        while let Some(index) = self.closing.pop() {
            self.remove_if_gone(index);
        }
    }

    /// When [`NbdTransport::tick`] has to run although nothing arrives.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        match (self.connections.is_empty(), self.starved.is_empty() && !self.draining) {
            (true, _) => Instant::NEVER,
            (false, true) => self.next_tick,
            (false, false) => self.next_tick.min(self.last_turn.plus_ns(RETRY_NS)),
        }
    }

    /// Whether there is something to do at once.
    #[must_use]
    pub fn busy(&self) -> bool {
        !self.dirty.is_empty() || !self.sated.is_empty() || !self.closing.is_empty()
    }

    /// Takes no new connection and no new request; connections close once what they have in flight is answered.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether a drained transport has nothing left.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.draining && self.connections.is_empty()
    }

    /// Counters as of now.
    #[must_use]
    pub fn stats(&self) -> NbdStats {
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
