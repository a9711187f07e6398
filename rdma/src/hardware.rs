//! What an endpoint stands on: devices, queue pairs and connections, without memory of what was posted.
//!
//! Hardware never owns a buffer. It is shown work when that is posted ([`Item`]) and names it by the number it was given when it is
//! done; the endpoint keeps the work, and its buffers where they are, until then or until [`Hardware::destroy`] has returned.

use std::net::SocketAddr;
use std::sync::Arc;

use ringway_reactor::buf::Buf;
use ringway_reactor::event::EventFd;
use ringway_reactor::io::Instant;

use crate::verbs::{
    ConnectRequest, Device, DeviceId, Ending, ListenerId, QpId, QueueSpec, Refusal, Remote, VerbsError, Work, WorkError,
};

/// One work request as it is given to a device.
pub(crate) struct Item<'a> {
    pub(crate) number: u64,
    /// Reported by a completion of its own; the others are known to be done with the next that is.
    pub(crate) signalled: bool,
    pub(crate) work: &'a Work,
}

/// One completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reaped {
    pub(crate) number: u64,
    /// Bytes received, for a receive.
    pub(crate) result: Result<u32, WorkError>,
    pub(crate) invalidated: Option<u32>,
}

/// What a device gave when a queue pair was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Granted {
    pub(crate) device: DeviceId,
    /// Bytes of a send that are copied into the request.
    pub(crate) inline_max: u32,
    /// RDMA reads at the peer, at most.
    pub(crate) reads_out: u8,
    /// RDMA reads of the peer's, at most.
    pub(crate) reads_in: u8,
}

/// What was noticed besides completions.
#[derive(Debug)]
pub(crate) enum Noticed {
    Request(ConnectRequest),
    /// Address and route are known: the queue pair can be made.
    Resolved {
        qp: QpId,
    },
    Refused {
        qp: QpId,
        why: Refusal,
    },
    Established {
        qp: QpId,
        private: Vec<u8>,
        reads_out: Option<u8>,
    },
    Broken {
        qp: QpId,
        why: Ending,
    },
    ListenerLost {
        listener: ListenerId,
    },
    DeviceAdded {
        device: DeviceId,
    },
    DeviceGone {
        device: DeviceId,
    },
}

/// The devices of one reactor. Queue pairs are named by their endpoint; a call for one that is not known does nothing.
pub(crate) trait Hardware: Send {
    /// A peer that waits for an answer; dropping it refuses.
    type Ticket: Send + 'static;

    fn devices(&self) -> Vec<Device>;
    fn listen(&mut self, listener: ListenerId, addr: SocketAddr) -> Result<SocketAddr, VerbsError>;
    fn close_listener(&mut self, listener: ListenerId);
    fn reject(&mut self, ticket: Self::Ticket, private: &[u8]);

    /// The queue pair for a peer that waits. Receives can be posted to it; the peer does not know yet.
    fn take(&mut self, qp: QpId, ticket: Self::Ticket, spec: &QueueSpec) -> Result<Granted, VerbsError>;
    fn accept(&mut self, qp: QpId, spec: &QueueSpec, private: &[u8]) -> Result<(), VerbsError>;

    /// Begins to connect; [`Noticed::Resolved`] or [`Noticed::Refused`] follows.
    fn resolve(&mut self, qp: QpId, to: SocketAddr) -> Result<(), VerbsError>;
    /// The queue pair for a resolved address.
    fn make(&mut self, qp: QpId, spec: &QueueSpec) -> Result<Granted, VerbsError>;
    fn connect(&mut self, qp: QpId, spec: &QueueSpec, private: &[u8]) -> Result<(), VerbsError>;

    /// Nothing more goes out or comes in: what is posted comes back flushed, and the peer is told.
    fn break_off(&mut self, qp: QpId);
    /// The queue pair ends. Once this has returned nothing that was posted to it is read or written; completions of it may still
    /// be reaped.
    fn destroy(&mut self, qp: QpId);

    /// Rings the doorbell of the send queue for all of `items`; in the error, how many were taken.
    fn send<'a>(&mut self, qp: QpId, items: impl Iterator<Item = Item<'a>>) -> Result<(), usize>;
    /// The same for the receive queue.
    fn receive<'a>(&mut self, qp: QpId, items: impl Iterator<Item = Item<'a>>) -> Result<(), usize>;
    /// A read or receive has ended well, and its buffers are at hand: for hardware that cannot write to memory by itself.
    fn fill(&mut self, number: u64, work: &mut Work);

    fn lend(&mut self, qp: QpId, buf: &Buf) -> Result<Remote, VerbsError>;
    fn withdraw(&mut self, remote: Remote, buf: &mut Buf);

    fn reap(&mut self, now: Instant, reaped: &mut Vec<Reaped>);
    /// `rang`: the bell has rung since the last time.
    fn look(&mut self, now: Instant, rang: bool, noticed: &mut Vec<Noticed>);
    fn arm(&mut self) -> bool;
    fn bell(&self) -> Option<Arc<EventFd>>;
    fn next_deadline(&self) -> Instant;
}
