//! A queue, whatever carries it: a TCP connection or an RDMA queue pair. The association sees no difference.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;

use ringway_rdma::verbs::{Event, QpId, Verbs};
use ringway_reactor::io::{Instant, Io, Op};

use super::fabric_queue::FabricQueue;
use super::queue::{Orphan, Part, Queue, QueueEvent, QueueToken};
use super::slot::Data;
use crate::wire::command::Sqe;

/// The way to RDMA devices of a host that uses them.
pub(super) struct Fabric {
    verbs: Box<dyn Verbs>,
    events: Vec<Event>,
    /// The wait for the bell is in the ring.
    waiting: bool,
    /// No bell is wanted any more.
    silenced: bool,
    /// The card has something that no bell will ring for.
    more: bool,
}

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fabric").field("total", &self.verbs.total()).finish_non_exhaustive()
    }
}

impl Fabric {
    pub(super) fn new(verbs: Box<dyn Verbs>) -> Fabric {
        Fabric { verbs, events: Vec::new(), waiting: false, silenced: false, more: false }
    }

    fn bell_token(space: u16) -> QueueToken {
        QueueToken { space, queue: 0, part: Part::Bell, connection: 0 }
    }

    /// Takes what the card has done.
    pub(super) fn poll<I: Io>(&mut self, io: &mut I, space: u16) -> std::vec::Drain<'_, Event> {
        if let (false, false, Some(event)) = (self.waiting, self.silenced, self.verbs.bell()) {
            self.waiting = true;
            io.submit(Self::bell_token(space).encode(), Op::WaitEvent { event });
        }
        self.verbs.poll(io.now(), &mut self.events);
        self.events.drain(..)
    }

    /// The bell rang, or is waited for no more.
    pub(super) fn rang(&mut self) {
        self.waiting = false;
        self.verbs.rang();
    }

    /// Gives the card what was posted, and asks it to ring for what comes.
    pub(super) fn flush(&mut self) {
        self.verbs.flush();
        self.more = !self.verbs.arm();
    }

    /// The host is over: nothing of it stays in the ring.
    pub(super) fn silence<I: Io>(&mut self, io: &mut I) {
        self.silenced = true;
        if let (true, Some(event)) = (self.waiting, self.verbs.bell()) {
            io.forget_event(&event);
        }
    }

    pub(super) fn is_silent(&self) -> bool {
        !self.waiting
    }

    pub(super) fn next_deadline(&self) -> Instant {
        if self.more { Instant(0) } else { self.verbs.next_deadline() }
    }
}

/// What a queue is connected to.
pub(super) struct Dial<'a> {
    pub(super) addr: SocketAddr,
    /// The controller that an I/O queue belongs to.
    pub(super) controller: u16,
    /// How the user spelled it.
    pub(super) name: &'a str,
}

/// One queue.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a host has as many as it has queues, and never moves them")]
pub(super) enum Link<O> {
    Tcp(Queue<O>),
    Rdma(FabricQueue<O>),
}

const WITH_FABRIC: &str = "a host over RDMA has its devices";

impl<O> Link<O> {
    pub(super) fn index(&self) -> u8 {
        match self {
            Link::Tcp(queue) => queue.index,
            Link::Rdma(queue) => queue.index,
        }
    }

    /// Commands that it can hold.
    pub(super) fn depth(&self) -> usize {
        match self {
            Link::Tcp(queue) => queue.slots.len(),
            Link::Rdma(queue) => queue.depth(),
        }
    }

    /// Commands that could be submitted now.
    pub(super) fn room(&self) -> usize {
        match self {
            Link::Tcp(queue) => queue.room(),
            Link::Rdma(queue) => queue.room(),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        match self {
            Link::Tcp(queue) => queue.is_closed(),
            Link::Rdma(queue) => queue.is_closed(),
        }
    }

    pub(super) fn qp(&self) -> Option<QpId> {
        match self {
            Link::Tcp(_) => None,
            Link::Rdma(queue) => queue.qp(),
        }
    }

    pub(super) fn events(&mut self) -> &mut VecDeque<QueueEvent<O>> {
        match self {
            Link::Tcp(queue) => &mut queue.events,
            Link::Rdma(queue) => &mut queue.events,
        }
    }

    /// Bytes of data that a capsule of this queue may have.
    pub(super) fn set_in_capsule(&mut self, bytes: usize) {
        match self {
            Link::Tcp(_) => {} // it sends what it is told to
            Link::Rdma(queue) => queue.in_capsule_max = bytes,
        }
    }

    /// Begins a connection.
    pub(super) fn dial<I: Io>(&mut self, io: &mut I, fabric: &mut Option<Fabric>, to: &Dial<'_>) {
        match self {
            Link::Tcp(queue) => queue.dial(io, to.addr),
            Link::Rdma(queue) => {
                let fabric = fabric.as_mut().expect(WITH_FABRIC);
                queue.dial(fabric.verbs.as_mut(), io.buffers(), to.addr, to.controller, to.name);
            }
        }
    }

    /// Ends the connection, if there is one. Commands stay until [`Link::orphans`] takes them.
    pub(super) fn close<I: Io>(&mut self, io: &mut I, fabric: &mut Option<Fabric>) {
        match self {
            Link::Tcp(queue) => queue.close(io),
            Link::Rdma(queue) => queue.close(fabric.as_mut().expect(WITH_FABRIC).verbs.as_mut()),
        }
    }

    /// Takes what was in flight on a closed queue, in the order in which it was submitted.
    pub(super) fn orphans(&mut self) -> Vec<Orphan<O>> {
        match self {
            Link::Tcp(queue) => queue.orphans(),
            Link::Rdma(queue) => queue.orphans(),
        }
    }

    /// Takes a command on; it goes out with the next [`Link::flush`].
    pub(super) fn submit(&mut self, sqe: Sqe, data: Data, owner: O, now: Instant, deadline: Instant) {
        match self {
            Link::Tcp(queue) => {
                queue.submit(sqe, data, owner, now, deadline);
            }
            Link::Rdma(queue) => queue.submit(sqe, data, owner, deadline),
        }
    }

    /// Whether [`Link::flush`] would send something.
    pub(super) fn wants_flush(&self) -> bool {
        match self {
            Link::Tcp(queue) => queue.wants_flush(),
            Link::Rdma(queue) => queue.wants_flush(),
        }
    }

    /// Sends what is pending, and receives.
    pub(super) fn flush<I: Io>(&mut self, io: &mut I, fabric: &mut Option<Fabric>, peer: &str) {
        match self {
            Link::Tcp(queue) => {
                queue.flush(io);
                queue.receive(io);
            }
            Link::Rdma(queue) => {
                let fabric = fabric.as_mut().expect(WITH_FABRIC);
                queue.flush(fabric.verbs.as_mut(), io.buffers(), peer);
            }
        }
    }

    /// Something happened to this queue's queue pair.
    pub(super) fn on_fabric_event(&mut self, fabric: &mut Option<Fabric>, event: Event, peer: &str) {
        if let (Link::Rdma(queue), Some(fabric)) = (self, fabric) {
            queue.on_event(fabric.verbs.as_mut(), event, peer);
        }
    }

    /// The earliest deadline among the commands in flight and its command.
    pub(super) fn earliest_deadline(&self) -> Option<(Instant, u16)> {
        match self {
            Link::Tcp(queue) => queue.earliest_deadline(),
            Link::Rdma(queue) => queue.earliest_deadline(),
        }
    }
}

/// The queue pair that an event is about, where it is about one.
pub(super) fn subject(event: &Event) -> Option<QpId> {
    match event {
        Event::Established { qp, .. }
        | Event::Refused { qp, .. }
        | Event::Done { qp, .. }
        | Event::Disconnected { qp, .. }
        | Event::Gone { qp } => Some(*qp),
        Event::Request(_) | Event::ListenerLost { .. } | Event::DeviceAdded { .. } | Event::DeviceGone { .. } => None,
    }
}
