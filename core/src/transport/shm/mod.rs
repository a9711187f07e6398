//! Native rings of one reactor: queues in memory that clients on this machine share, polled each turn.
//!
//! Reactor 0 admits (`admission`): a client that asks to be let in gets an association by the rules of Connect, and its
//! queues are dealt out to the reactors in turn. Each then belongs to one reactor (`queue`), which takes commands out of it,
//! makes requests whose data lies where the client put it, and posts their completions. The association lives as long as the
//! client's socket: the door's thread sees it close, and the association is fenced like any other (history C11).
//!
//! Invariant: a queue's memory, and the place of each request in flight, stay until its last request has ended.

mod admission;
mod queue;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use ringway_reactor::io::{Completion, Instant, Io, Op};
use ringway_reactor::shared::MemoryTable;
use ringway_shm_ring::door::{Bells, Offer};
use ringway_shm_ring::layout::Layout;
use ringway_shm_ring::line::Line;
use ringway_shm_ring::message::Reason;
use slab::Slab;

use super::pins::Pins;
use super::{ConnectionSeen, TransportEvent, TransportStats};
use crate::controller::association::Association;
use crate::controller::registry::Registry;
use crate::directory::Directory;
use crate::export::Polling;
use crate::ids::{AssociationId, RequestId};
use crate::node::interest::Interests;
use crate::node::message::Message;
use crate::request::{Done, Request};
use crate::tokens;
use admission::Admitted;
use queue::{Served, Sight};

/// How soon to look again at what waits for a fence or a buffer.
const RETRY_NS: u64 = 1_000_000;

/// Which reactor this is, and how many there are.
#[derive(Clone, Debug)]
pub struct ShmConfig {
    pub reactor: usize,
    pub reactors: usize,
    /// How its clients are polled for.
    pub interests: Arc<Interests>,
}

/// What the door, and reactors, tell each other.
#[derive(Debug)]
pub enum Mail {
    /// From the door to reactor 0: a client asks to be let in.
    Offer(Box<Offer>),
    /// From the door to reactor 0: the socket of this client is closed.
    Gone(u64),
    /// From reactor 0: serve this queue.
    Serve(Box<Seat>),
    /// To reactor 0: a queue of this client is served.
    Serving(u64),
    /// From reactor 0 to all: this client's requests may come here.
    Register(ClientMemory),
    /// To all: they come no more, and none is in flight.
    Release(ClientMemory),
}

/// The memory of a client that is or was attached.
#[derive(Clone, Debug)]
pub struct ClientMemory(Arc<Connection>);

/// A queue on its way to the reactor that will serve it.
#[derive(Debug)]
pub struct Seat {
    connection: Arc<Connection>,
    index: u16,
    bells: Bells,
}

/// What the queues of one client share.
#[derive(Debug)]
struct Connection {
    /// As the door counts.
    number: u64,
    association: Arc<Association>,
    line: Arc<Line>,
    /// Its one area is the client's memory.
    table: Arc<MemoryTable>,
    layout: Layout,
    generation: u32,
    polling: Polling,
    /// The client's process, for people.
    pid: Option<i32>,
    /// Queues that may still have something in flight.
    queues: AtomicUsize,
}

mod token {
    use ringway_reactor::io::Token;

    use crate::tokens;

    pub(super) const WAIT: u8 = 0;
    pub(super) const SIGNAL: u8 = 1;

    pub(super) fn wait(queue: usize) -> Token {
        tokens::operation(tokens::SHM, WAIT, queue)
    }

    pub(super) fn signal() -> Token {
        tokens::operation(tokens::SHM, SIGNAL, 0)
    }

    pub(super) use crate::tokens::parse;
}

/// The native rings of one reactor.
pub struct ShmTransport {
    config: ShmConfig,
    registry: Arc<Registry>,
    directory: Arc<Directory>,
    queues: Slab<Served>,
    /// Those that are polled.
    polled: Vec<usize>,
    /// Those that have posted completions since the last flush.
    posted: Vec<usize>,
    /// On reactor 0: clients by the door's number.
    admitted: BTreeMap<u64, Admitted>,
    /// The reactor of the next queue.
    next_reactor: usize,
    /// Peers were asked to ring.
    armed: bool,
    /// A command waits for a buffer.
    stalled: bool,
    /// The clients' data areas.
    pins: Pins,
    /// Clients whose last queue has gone here, to be told to all reactors.
    left: Vec<Arc<Connection>>,
    draining: bool,
    last_turn: Instant,
    stats: TransportStats,
}

impl ShmTransport {
    /// No clients yet.
    #[must_use]
    pub fn new(config: ShmConfig, registry: Arc<Registry>, directory: Arc<Directory>) -> Self {
        ShmTransport {
            config,
            registry,
            directory,
            queues: Slab::new(),
            polled: Vec::new(),
            posted: Vec::new(),
            admitted: BTreeMap::new(),
            next_reactor: 0,
            armed: false,
            stalled: false,
            pins: Pins::default(),
            left: Vec::new(),
            draining: false,
            last_turn: Instant(0),
            stats: TransportStats::default(),
        }
    }

    /// Something for this transport.
    pub fn on_mail<I: Io>(&mut self, io: &mut I, mail: Mail, out: &mut Vec<TransportEvent>) {
        match mail {
            Mail::Offer(offer) => self.admit(*offer, io.now(), out),
            Mail::Gone(number) => self.gone(number, out),
            Mail::Serve(seat) => self.serve(io, *seat, out),
            Mail::Serving(number) => self.serving(number, out),
            Mail::Register(ClientMemory(connection)) => {
                // Gone already: what is registered now would be released by nobody. Acquire pairs with `leave`.
                if connection.queues.load(Ordering::Acquire) > 0 {
                    let area = connection.layout.data_offset() as usize..connection.layout.total_bytes() as usize;
                    self.pins.want(&connection.table.areas()[0], area, true);
                }
            }
            Mail::Release(ClientMemory(connection)) => self.pins.release(io, &connection.table.areas()[0]),
        }
    }

    fn serve<I: Io>(&mut self, io: &mut I, seat: Seat, out: &mut Vec<TransportEvent>) {
        let number = seat.connection.number;
        if self.draining || seat.connection.association.is_dead() {
            self.leave(&seat.connection);
            return;
        }
        let unit = io.files().iter().map(|file| file.logical_block).max().unwrap_or(512);
        let index = self.queues.vacant_key();
        let interest = self.config.interests.attach(self.config.reactor, seat.connection.polling);
        let served = Served::new(seat, unit, interest);
        io.submit(token::wait(index), Op::WaitEvent { event: served.bell() });
        self.queues.insert(served);
        self.polled.push(index);
        self.stats.accepted += 1;
        out.push(TransportEvent::Mail { to: 0, message: Message::Shm(Mail::Serving(number)) });
    }

    /// A wait or a ring has ended.
    pub fn on_completion<I: Io>(&mut self, io: &mut I, completion: &Completion) {
        let (kind, index) = token::parse(completion.token);
        if kind == token::SIGNAL {
            return; // its client sleeps no more, or is gone
        }
        let queue = &mut self.queues[index];
        if queue.is_closing() || completion.result.is_err() {
            queue.unbell();
            self.remove_if_gone(index);
        } else {
            io.submit(token::wait(index), Op::WaitEvent { event: queue.bell() });
        }
    }

    /// Takes the commands that lie in the rings. Returns whether there were any.
    #[inline]
    pub fn pull<I: Io>(
        &mut self,
        io: &mut I,
        requests: &mut Vec<(RequestId, Request)>,
        out: &mut Vec<TransportEvent>,
    ) -> bool {
        if self.polled.is_empty() || self.draining {
            return false;
        }
        let mut pulled = false;
        (self.stalled, self.last_turn) = (false, io.now());
        let mut at = 0;
        while let Some(&index) = self.polled.get(at) {
            at += 1;
            let queue = &mut self.queues[index];
            if self.armed {
                queue.disarm();
            }
            let sight = Sight { directory: &self.directory, stats: &mut self.stats, index };
            let taken = queue.pull(io, sight, requests);
            if queue.takes_posted() {
                self.posted.push(index);
            }
            self.stalled |= queue.is_stalled();
            match taken {
                Ok(taken) => pulled |= taken,
                Err(violation) => {
                    self.stats.terminated += 1;
                    let connection = queue.connection();
                    tracing::warn!(
                        pid = connection.pid,
                        host = connection.association.host.nqn,
                        "a client of shared memory broke the rules of its ring and is sent away: {violation}"
                    );
                    ringway_shm_ring::door::bye(&connection.line, Reason::Violation, &violation.to_string());
                    let association = Arc::clone(&connection.association);
                    if self.registry.end(&association) {
                        out.push(TransportEvent::AssociationDead(association.id));
                    }
                    self.kill_association(io, association.id);
                    at = 0;
                    pulled = true;
                }
            }
        }
        self.armed = false;
        pulled
    }

    /// Asks the clients to ring, and looks once more: `false` if there is a command.
    pub fn before_sleep(&mut self) -> bool {
        if self.polled.is_empty() || self.draining {
            return true;
        }
        self.armed = true;
        for &index in &self.polled {
            self.queues[index].arm();
        }
        // Pair C of the ring: the flags, this, the look at the commands. One for all queues.
        fence(Ordering::SeqCst);
        !self.polled.iter().any(|&index| self.queues[index].has_command())
    }

    /// A request ended.
    #[inline]
    pub fn on_done<I: Io>(&mut self, io: &mut I, done: Done, requests: &mut Vec<(RequestId, Request)>) {
        let (index, slot) = tokens::request_place(done.id);
        let queue = &mut self.queues[index];
        queue.on_done(index, slot, done, requests);
        if queue.takes_posted() {
            self.posted.push(index);
        }
        if queue.is_closing() {
            self.close(io, index);
        }
    }

    /// Rings for the clients that sleep.
    #[inline]
    pub fn flush<I: Io>(&mut self, io: &mut I) {
        if self.posted.is_empty() {
            return;
        }
        // Pair D of the ring: the completions, this, the look at who sleeps. One for all queues.
        fence(Ordering::SeqCst);
        for index in self.posted.drain(..) {
            if let Some(event) = self.queues.get_mut(index).and_then(Served::rings) {
                io.submit(token::signal(), Op::Signal { event });
            }
        }
    }

    /// What waits for fences, and for the end.
    pub fn tick<I: Io>(&mut self, io: &mut I, out: &mut Vec<TransportEvent>) {
        if !self.admitted.is_empty() {
            self.await_fences(out);
        }
        self.pins.step(io);
        for connection in self.left.drain(..) {
            for to in 0..self.config.reactors {
                let mail = Mail::Release(ClientMemory(Arc::clone(&connection)));
                out.push(TransportEvent::Mail { to, message: Message::Shm(mail) });
            }
        }
        if self.draining {
            for index in self.polled.clone() {
                if self.queues[index].is_settled() {
                    self.close(io, index);
                }
            }
        }
    }

    /// The association is dead: its queues are looked at no more.
    pub fn kill_association<I: Io>(&mut self, io: &mut I, association: AssociationId) {
        self.dismiss(association);
        let of_it = |queue: &Served| queue.connection().association.id == association;
        let dead: Vec<_> = self.queues.iter().filter(|(_, queue)| of_it(queue)).map(|(index, _)| index).collect();
        for index in dead {
            self.close(io, index);
        }
    }

    /// Looks at a queue no more; it goes when nothing of it is in flight.
    fn close<I: Io>(&mut self, io: &mut I, index: usize) {
        let queue = &mut self.queues[index];
        if !queue.is_closing() {
            queue.close();
            self.polled.retain(|&polled| polled != index);
            io.forget_event(&self.queues[index].bell());
        }
        self.remove_if_gone(index);
    }

    fn remove_if_gone(&mut self, index: usize) {
        if self.queues[index].is_gone() {
            let queue = self.queues.remove(index);
            self.stats.closed += 1;
            self.leave(queue.connection());
        }
    }

    fn leave(&mut self, connection: &Arc<Connection>) {
        if queue::leave(connection) {
            self.left.push(Arc::clone(connection));
        }
    }

    /// Whether there are rings to poll.
    #[must_use]
    pub fn has_rings(&self) -> bool {
        !self.polled.is_empty()
    }

    /// When [`ShmTransport::pull`] has to run although nothing arrives.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        let waits = self.stalled || (self.draining && !self.queues.is_empty()) || self.awaits_fence();
        if waits { self.last_turn.plus_ns(RETRY_NS) } else { Instant::NEVER }
    }

    /// Whether [`ShmTransport::flush`] has something to do at once.
    #[must_use]
    pub fn busy(&self) -> bool {
        !self.posted.is_empty() || !self.left.is_empty() || self.pins.busy()
    }

    /// Takes no further command; queues go once their commands are answered.
    pub fn drain(&mut self) {
        self.draining = true;
        self.turn_away();
    }

    /// Whether a drained transport has nothing left.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.draining && self.queues.is_empty()
    }

    /// Bytes of clients' memory that are registered.
    #[must_use]
    pub fn registered_bytes(&self) -> u64 {
        self.pins.bytes()
    }

    /// Whether there is more to be registered.
    #[must_use]
    pub fn is_registering(&self) -> bool {
        self.pins.busy()
    }

    /// What there is to know of each queue.
    pub fn seen(&self) -> impl Iterator<Item = ConnectionSeen<'_>> {
        self.queues.iter().map(|(_, queue)| queue.seen())
    }

    /// Counters as of now.
    #[must_use]
    pub fn stats(&self) -> TransportStats {
        self.stats
    }
}
