//! NVMe/RDMA connections of one reactor, on its [`Verbs`].
//!
//! `admission` checks what a host says before it connects and deals connections out to reactors; `connection` is the life of one queue
//! pair; `command` takes capsules, moves their data and makes requests of them; `answer` sends what they led to. What cannot go on now
//! waits in its connection and is tried again in a later turn.
//!
//! No byte of data is copied on the way: a capsule's own data is received into the buffer from which the device writes it, data in
//! the host's memory is read into that buffer, and what the device has read is written to the host's memory from where it lies.
//!
//! Invariant: memory that the card may still write belongs to the [`Verbs`], by ownership, and memory that a device works on to its
//! request; a connection keeps its place until the last of both is back.

mod admission;
mod answer;
mod command;
mod connection;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use ringway_rdma::verbs::{ConnectRequest, Counts, Event, ListenerId, QpId, Verbs, VerbsError};
use ringway_reactor::io::{Instant, Io, Op};
use rustc_hash::FxHashMap;
use slab::Slab;

use super::{ConnectionSeen, TransportConfig, TransportEvent, TransportStats};
use crate::controller::registry::Registry;
use crate::directory::Directory;
use crate::ids::AssociationId;
use crate::node::message::Message;
use crate::request::Done;
use crate::tokens;
use admission::Spread;
use connection::Connection;

/// A host that takes nothing for this long is given up: it must not hold buffers for ever.
const STALL_NS: u64 = 30_000_000_000;
/// How often deadlines, and lost listeners, are looked at.
const TICK_NS: u64 = 500_000_000;
/// How soon to try again what waits for a fence or a buffer.
const RETRY_NS: u64 = 1_000_000;

/// What reactors tell each other.
#[derive(Debug)]
pub enum Mail {
    /// From reactor 0: a host's connection for the receiver to serve.
    Serve(Box<ConnectRequest>),
}

/// What connections share within one call.
struct Cx<'a, I> {
    io: &'a mut I,
    verbs: &'a mut dyn Verbs,
    out: &'a mut Vec<TransportEvent>,
    config: &'a TransportConfig,
    registry: &'a Arc<Registry>,
    directory: &'a Arc<Directory>,
    stats: &'a mut TransportStats,
    /// Connections that wait for a buffer, a fence or a record.
    starved: &'a mut Vec<usize>,
    /// No new command is taken.
    draining: bool,
}

/// An address at which hosts are waited for.
struct Listener {
    addr: SocketAddr,
    /// `None` while its device or its address is away.
    id: Option<ListenerId>,
}

mod token {
    pub(super) const BELL: u8 = 0;
}

/// Gives a reactor its way to RDMA devices once there are some.
pub type LaterVerbs = Box<dyn FnMut() -> Option<Box<dyn Verbs>> + Send>;

/// The NVMe/RDMA connections of one reactor.
pub struct RdmaTransport {
    config: TransportConfig,
    registry: Arc<Registry>,
    directory: Arc<Directory>,
    /// `None` where there is no RDMA.
    verbs: Option<Box<dyn Verbs>>,
    /// Where there is none yet: asked from time to time.
    later: Option<LaterVerbs>,
    connections: Slab<Connection>,
    by_qp: FxHashMap<QpId, usize>,
    listeners: Vec<Listener>,
    /// Where hosts were last said to be waited for, for discovery.
    told: Vec<SocketAddr>,
    /// On reactor 0.
    spread: Spread,
    starved: Vec<usize>,
    /// Bytes of buffers that lie ready for capsules.
    receive_bytes: usize,
    events: Vec<Event>,
    stats: TransportStats,
    /// The wait for the bell is in the ring.
    waiting: bool,
    next_tick: Instant,
    last_turn: Instant,
    last_number: u64,
    draining: bool,
}

impl RdmaTransport {
    /// No connections yet; with no `verbs` there will be none. `numa` is the memory node of each reactor's core, where known.
    #[must_use]
    pub fn new(
        config: TransportConfig,
        registry: Arc<Registry>,
        directory: Arc<Directory>,
        verbs: Option<Box<dyn Verbs>>,
        numa: Vec<Option<u16>>,
    ) -> Self {
        Self {
            spread: Spread::new(config.reactors, numa),
            config,
            registry,
            directory,
            verbs,
            later: None,
            connections: Slab::new(),
            by_qp: FxHashMap::default(),
            listeners: Vec::new(),
            told: Vec::new(),
            starved: Vec::new(),
            receive_bytes: 0,
            events: Vec::new(),
            stats: TransportStats::default(),
            waiting: false,
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
            verbs: self.verbs.as_deref_mut().expect("connections are of its making"),
            out,
            config: &self.config,
            registry: &self.registry,
            directory: &self.directory,
            stats: &mut self.stats,
            starved: &mut self.starved,
            draining: self.draining,
        };
        Some(f(connection, &mut cx))
    }

    /// There is no RDMA yet: asks `later` for it from time to time.
    pub fn expect_devices(&mut self, later: LaterVerbs) {
        self.later = Some(later);
    }

    /// Whether there is RDMA on this reactor, or may be later.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.verbs.is_some() || self.later.is_some()
    }

    /// Waits for hosts at `addr`, whose connections are dealt out to the reactors. Returns the address with its port. An address that
    /// no device has yet is tried again.
    pub fn listen(&mut self, addr: SocketAddr) -> Result<SocketAddr, VerbsError> {
        let listening = match &mut self.verbs {
            Some(verbs) => verbs.listen(addr),
            None => Err(VerbsError::NoDevice(addr)),
        };
        let (id, addr) = match &listening {
            Ok((id, addr)) => (Some(*id), *addr),
            Err(_) => (None, addr),
        };
        self.listeners.push(Listener { addr, id });
        self.told.extend(id.map(|_| addr));
        listening.map(|(_, addr)| addr)
    }

    /// Asks whether there are devices now, if there were none. Whether there are, for the first time.
    fn find_devices(&mut self) -> bool {
        if self.verbs.is_some() {
            return false;
        }
        let Some(verbs) = self.later.as_mut().and_then(|later| later()) else { return false };
        (self.verbs, self.later) = (Some(verbs), None);
        true
    }

    /// Says where hosts are waited for, if that has changed.
    fn tell_ports(&mut self, out: &mut Vec<TransportEvent>) {
        let now = self.listeners.iter().filter(|listener| listener.id.is_some()).map(|listener| listener.addr);
        if !self.draining && !now.clone().eq(self.told.iter().copied()) {
            self.told = now.collect();
            out.push(TransportEvent::Mail { to: 0, message: Message::RdmaPorts(self.told.clone()) });
        }
    }

    /// Takes what the card has done. Returns whether there was something.
    pub fn pull<I: Io>(&mut self, io: &mut I, out: &mut Vec<TransportEvent>) -> bool {
        let Some(verbs) = &mut self.verbs else { return false };
        self.last_turn = io.now();
        if !self.waiting
            && let Some(event) = verbs.bell()
        {
            self.waiting = true;
            io.submit(tokens::operation(tokens::RDMA, token::BELL, 0), Op::WaitEvent { event });
        }
        let mut events = std::mem::take(&mut self.events);
        verbs.poll(self.last_turn, &mut events);
        let any = !events.is_empty();
        for event in events.drain(..) {
            self.on_event(io, event, out);
        }
        self.events = events;
        any
    }

    /// The bell rang, or is waited for no more.
    pub fn on_completion(&mut self) {
        self.waiting = false;
        if let Some(verbs) = &mut self.verbs {
            verbs.rang();
        }
    }

    fn on_event<I: Io>(&mut self, io: &mut I, event: Event, out: &mut Vec<TransportEvent>) {
        match event {
            Event::Request(request) => self.deal(io, request, out),
            Event::Established { qp, .. } => self.at(io, out, qp, |connection, _| connection.on_established()),
            Event::Refused { qp, why } => {
                self.at(io, out, qp, |connection, cx| connection.close(cx, &why.to_string()));
            }
            Event::Done { qp, token, work, result, .. } => {
                self.at(io, out, qp, |connection, cx| connection.on_work_done(cx, token, work, result));
            }
            Event::Disconnected { qp, why } => {
                self.at(io, out, qp, |connection, cx| connection.on_disconnected(cx, why));
            }
            Event::Gone { qp } => self.at(io, out, qp, |connection, cx| connection.on_gone(cx)),
            Event::ListenerLost { listener } => {
                for lost in self.listeners.iter_mut().filter(|known| known.id == Some(listener)) {
                    tracing::warn!(address = %lost.addr, "the RDMA device of a listener is gone, or has lost its address: waiting for it");
                    lost.id = None;
                }
                self.tell_ports(out);
            }
            Event::DeviceAdded { device } => {
                // Each reactor hears of it; one of them says it.
                if self.config.reactor == 0 {
                    tracing::info!(device = self.device_name(device), "an RDMA device can be used");
                }
                self.listen_again();
                self.tell_ports(out);
            }
            Event::DeviceGone { device } => {
                let (device, reactor) = (self.device_name(device), self.config.reactor);
                tracing::warn!(device, reactor, "an RDMA device is gone: its connections end");
            }
        }
    }

    fn device_name(&self, id: ringway_rdma::verbs::DeviceId) -> String {
        let devices = self.verbs.as_ref().map_or(Vec::new(), |verbs| verbs.devices());
        devices.into_iter().find(|device| device.id == id).map_or("?".to_owned(), |device| device.name)
    }

    /// Does something with the connection of a queue pair, and takes it off the table if that was its end.
    fn at<I: Io>(
        &mut self,
        io: &mut I,
        out: &mut Vec<TransportEvent>,
        qp: QpId,
        f: impl FnOnce(&mut Connection, &mut Cx<'_, I>),
    ) {
        let index = *self.by_qp.get(&qp).expect("a queue pair is known until all of it is back");
        self.with(io, out, index, f);
        self.remove_if_gone(index);
    }

    fn remove_if_gone(&mut self, index: usize) {
        if self.connections.get(index).is_some_and(Connection::is_gone) {
            let connection = self.connections.remove(index);
            self.by_qp.remove(&connection.qp());
            self.receive_bytes -= connection.receive_bytes();
        }
    }

    /// A request ended.
    pub fn on_done<I: Io>(&mut self, io: &mut I, done: Done, out: &mut Vec<TransportEvent>) {
        let (index, slot) = tokens::request_place(done.id);
        self.with(io, out, index, |connection, cx| connection.on_done(cx, slot, done))
            .expect("a connection stays until its requests have ended");
        self.remove_if_gone(index);
    }

    /// The volumes changed; hosts that asked to be told are told.
    pub fn on_directory<I: Io>(&mut self, io: &mut I, directory: &Arc<Directory>, out: &mut Vec<TransportEvent>) {
        self.directory = Arc::clone(directory);
        self.each(io, out, |connection, cx| connection.on_directory(cx));
    }

    /// Closes the association's connections on this reactor.
    pub fn kill_association<I: Io>(&mut self, io: &mut I, association: AssociationId, out: &mut Vec<TransportEvent>) {
        self.each(io, out, |connection, cx| {
            if connection.association_id() == Some(association) {
                connection.close(cx, "its association has ended");
            }
        });
    }

    fn each<I: Io>(
        &mut self,
        io: &mut I,
        out: &mut Vec<TransportEvent>,
        mut f: impl FnMut(&mut Connection, &mut Cx<'_, I>),
    ) {
        let indices: Vec<_> = self.connections.iter().map(|(index, _)| index).collect();
        for index in indices {
            self.with(io, out, index, &mut f);
            self.remove_if_gone(index);
        }
    }

    /// What waits for buffers, fences or deadlines.
    pub fn tick<I: Io>(&mut self, io: &mut I, out: &mut Vec<TransportEvent>) {
        for index in std::mem::take(&mut self.starved) {
            self.with(io, out, index, |connection, cx| connection.retry(cx));
        }
        let now = io.now();
        self.last_turn = now;
        if self.draining && self.connections.iter().all(|(_, connection)| connection.is_settled()) {
            // Together, once everything that was taken is answered: a host that lost one of them would give up on the others.
            self.each(io, out, |connection, cx| connection.close(cx, "the target is stopping"));
        }
        if now < self.next_tick {
            return;
        }
        self.next_tick = now.plus_ns(TICK_NS);
        let found = self.find_devices();
        self.listen_again();
        self.tell_ports(out);
        if found {
            // Its bell has to be in the ring before the reactor sleeps.
            self.pull(io, out);
        }
        self.each(io, out, |connection, cx| connection.check_deadlines(cx, now));
    }

    /// Tries listeners again whose device was away.
    fn listen_again(&mut self) {
        let Some(verbs) = &mut self.verbs else { return };
        for listener in self.listeners.iter_mut().filter(|listener| listener.id.is_none() && !self.draining) {
            if let Ok((id, _)) = verbs.listen(listener.addr) {
                tracing::info!(address = %listener.addr, "listening: a device has the address now");
                listener.id = Some(id);
            }
        }
    }

    /// Gives the card what the turn has led to.
    pub fn flush(&mut self) {
        if let Some(verbs) = &mut self.verbs {
            verbs.flush();
        }
    }

    /// Whether [`RdmaTransport::pull`] has to look at the card in every turn.
    #[must_use]
    pub fn has_queues(&self) -> bool {
        !self.connections.is_empty()
    }

    /// The reactor is about to sleep: asks the card to ring, and looks once more. `false` if there was something.
    pub fn before_sleep(&mut self) -> bool {
        self.verbs.as_mut().is_none_or(|verbs| verbs.arm())
    }

    /// When [`RdmaTransport::tick`] has to run although nothing arrives.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        let verbs = self.verbs.as_ref().map_or(Instant::NEVER, |verbs| verbs.next_deadline());
        let lost = self.listeners.iter().any(|listener| listener.id.is_none());
        let mine = match (self.connections.is_empty() && !lost, self.starved.is_empty() && !self.draining) {
            (true, _) => Instant::NEVER,
            (false, true) => self.next_tick,
            // A buffer that comes free, or a fence that ends elsewhere, is no event here.
            (false, false) => self.next_tick.min(self.last_turn.plus_ns(RETRY_NS)),
        };
        verbs.min(mine)
    }

    /// Takes no new connection and no new command; connections close once what they have in flight is answered.
    pub fn drain<I: Io>(&mut self, io: &mut I) {
        self.draining = true;
        self.later = None;
        let Some(verbs) = &mut self.verbs else { return };
        self.listeners.iter_mut().filter_map(|listener| listener.id.take()).for_each(|id| verbs.close_listener(id));
        if let (true, Some(event)) = (self.waiting, verbs.bell()) {
            io.forget_event(&event);
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
        self.connections.iter().map(|(_, connection)| connection.seen(self.counts(connection.qp())))
    }

    fn counts(&self, qp: QpId) -> Counts {
        self.verbs.as_ref().and_then(|verbs| verbs.counts(qp)).unwrap_or_default()
    }

    /// Connections now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }
}

/// The event for another reactor that a connection is its.
fn handover(to: usize, request: ConnectRequest) -> TransportEvent {
    TransportEvent::Mail { to, message: Message::Rdma(Mail::Serve(Box::new(request))) }
}
