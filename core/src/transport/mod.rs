//! Transports: commands out of sockets and rings, answers back into them.
//!
//! A node has one of each kind. What they have in common is here: the number of a request says which kind made it, and each call
//! of the node goes to all kinds, or to the one that it concerns. Sockets deliver by completions; rings are polled, in
//! [`Transports::pull`], which a turn calls before it reads the epoch word.

mod fused;
pub mod nbd;
mod pins;
pub mod rdma;
mod session;
pub mod shm;
mod stream;
pub mod tcp;
#[cfg(test)]
mod testing;
pub mod vhost;
mod work;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use ringway_rdma::verbs::Counts;
use ringway_reactor::io::{Completion, Instant, Io};

pub use nbd::{NbdConfig, NbdServer, NbdShared, NbdTransport};
pub use rdma::{LaterVerbs, RdmaTransport};
pub use shm::{ShmConfig, ShmTransport};
pub use tcp::{Adopted, TcpTransport, TransportConfig, TransportEvent, TransportStats};
pub use vhost::{VhostServer, VhostShared, VhostTransport};

use crate::directory::Directory;
use crate::ids::{AssociationId, RequestId};
use crate::request::{Done, Request};
use crate::tokens;

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub enum Peer<'a> {
    /// A host, by its address.
    Socket(SocketAddr),
    /// A host, by its address on an RDMA fabric.
    Fabric(SocketAddr),
    /// A process of this machine.
    Process(Option<i32>),
    /// A virtual machine, by the socket that its disk is attached to.
    Disk(&'a str),
    /// A client of a network block device, with where it comes from or to.
    Nbd(&'a str),
}

impl fmt::Display for Peer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Socket(addr) => addr.fmt(f),
            Peer::Fabric(addr) => write!(f, "rdma:{addr}"),
            Peer::Process(Some(pid)) => write!(f, "shm:{pid}"),
            Peer::Process(None) => f.write_str("shm:"),
            Peer::Disk(socket) => write!(f, "vhost-user:{socket}"),
            Peer::Nbd(peer) => f.write_str(peer),
        }
    }
}

/// One connection, or one queue in shared memory, as it is shown.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionSeen<'a> {
    /// Never used again on this reactor.
    pub number: u64,
    /// The other end.
    pub peer: Peer<'a>,
    /// 0 is the admin queue, or a connection without a queue.
    pub queue: u16,
    /// Empty before Connect.
    pub subsystem: &'a str,
    /// Commands taken.
    pub commands: u64,
    /// Bytes in and out: of everything on a socket, of data in shared memory.
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// Commands that are not yet answered.
    pub in_flight: u64,
    /// What its queue pair did, if it has one.
    pub fabric: Option<Counts>,
}

/// The transports of one reactor.
pub struct Transports {
    /// Connections by NVMe/TCP.
    pub tcp: TcpTransport,
    /// Connections by NVMe/RDMA.
    pub rdma: RdmaTransport,
    /// Native rings.
    pub shm: ShmTransport,
    /// Rings in the memory of virtual machines.
    pub vhost: VhostTransport,
    /// Network block devices.
    pub nbd: NbdTransport,
}

impl Transports {
    /// An operation that a transport of `kind` submitted has ended.
    pub fn on_completion<I: Io>(
        &mut self,
        io: &mut I,
        kind: u8,
        completion: Completion,
        out: &mut Vec<TransportEvent>,
    ) {
        match kind {
            tokens::TCP => self.tcp.on_completion(io, completion, out),
            tokens::RDMA => self.rdma.on_completion(),
            tokens::SHM => self.shm.on_completion(io, &completion),
            tokens::VHOST => self.vhost.on_completion(io, &completion),
            tokens::NBD => self.nbd.on_completion(io, completion, out),
            kind => unreachable!("no transport submits operations of kind {kind}"),
        }
    }

    /// A request ended.
    pub fn on_done<I: Io>(
        &mut self,
        io: &mut I,
        done: Done,
        requests: &mut Vec<(RequestId, Request)>,
        out: &mut Vec<TransportEvent>,
    ) {
        match tokens::request_kind(done.id) {
            tokens::SHM => self.shm.on_done(io, done, requests),
            tokens::TCP => self.tcp.on_done(io, done, out),
            tokens::RDMA => self.rdma.on_done(io, done, out),
            tokens::VHOST => self.vhost.on_done(io, done),
            tokens::NBD => self.nbd.on_done(io, done, out),
            kind => unreachable!("no transport makes requests of kind {kind}"),
        }
    }

    /// Takes what lies in the rings and queues that are polled. Returns whether there was something.
    pub fn pull<I: Io>(
        &mut self,
        io: &mut I,
        requests: &mut Vec<(RequestId, Request)>,
        out: &mut Vec<TransportEvent>,
    ) -> bool {
        let pulled = self.shm.pull(io, requests, out);
        let pulled = self.rdma.pull(io, out) || pulled;
        self.vhost.pull(io, requests) || pulled
    }

    /// Whether [`Transports::pull`] has rings to look at: then it is called in every turn, whether or not anything else happened.
    #[must_use]
    pub fn has_rings(&self) -> bool {
        self.shm.has_rings() || self.vhost.rings() > 0 || self.rdma.has_queues()
    }

    /// The reactor is about to sleep: asks for bells, and looks once more. `false` if there was something.
    pub fn before_sleep<I: Io>(&mut self, io: &mut I) -> bool {
        let idle = self.shm.before_sleep();
        let idle = self.rdma.before_sleep() && idle;
        self.vhost.before_sleep(io) && idle
    }

    /// The volumes changed.
    pub fn on_directory<I: Io>(&mut self, io: &mut I, directory: &Arc<Directory>, out: &mut Vec<TransportEvent>) {
        self.tcp.on_directory(io, Arc::clone(directory), out);
        self.rdma.on_directory(io, directory, out);
        self.shm.on_directory(directory, out);
        self.vhost.on_directory(directory);
        self.nbd.on_directory(directory);
    }

    /// The association is dead: nothing more of it is taken, and nothing is answered.
    pub fn kill_association<I: Io>(&mut self, io: &mut I, association: AssociationId, out: &mut Vec<TransportEvent>) {
        self.tcp.kill_association(io, association, out);
        self.rdma.kill_association(io, association, out);
        self.shm.kill_association(io, association);
        self.vhost.kill_association(association);
        self.nbd.kill_association(io, association, out);
    }

    /// What there is to know of each connection and queue.
    pub fn seen(&self) -> impl Iterator<Item = ConnectionSeen<'_>> {
        let sockets = self.tcp.seen().chain(self.rdma.seen()).chain(self.nbd.seen());
        sockets.chain(self.shm.seen()).chain(self.vhost.seen())
    }

    /// What waits for buffers, fences or deadlines.
    pub fn tick<I: Io>(&mut self, io: &mut I, out: &mut Vec<TransportEvent>) {
        self.tcp.tick(io, out);
        self.rdma.tick(io, out);
        self.shm.tick(io, out);
        self.nbd.tick(io, out);
    }

    /// Sends what the turn has led to.
    pub fn flush<I: Io>(&mut self, io: &mut I) {
        self.tcp.flush(io);
        self.rdma.flush();
        self.shm.flush(io);
        self.vhost.flush(io);
        self.nbd.flush(io);
    }

    /// When [`Transports::tick`] has to run although nothing arrives.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        let sockets = self.tcp.next_deadline().min(self.rdma.next_deadline()).min(self.nbd.next_deadline());
        sockets.min(self.shm.next_deadline()).min(self.vhost.next_deadline())
    }

    /// Whether memory of clients is being registered.
    #[must_use]
    pub fn is_registering(&self) -> bool {
        self.shm.is_registering() || self.vhost.is_registering()
    }

    /// Whether there is something to do at once.
    #[must_use]
    pub fn busy(&self) -> bool {
        self.tcp.busy() || self.shm.busy() || self.vhost.busy() || self.nbd.busy()
    }

    /// Takes nothing new.
    pub fn drain<I: Io>(&mut self, io: &mut I) {
        self.tcp.drain(io);
        self.rdma.drain(io);
        self.shm.drain();
        self.vhost.drain(io);
        self.nbd.drain();
    }

    /// Whether drained transports have nothing left.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let sockets = self.tcp.is_quiet() && self.rdma.is_quiet() && self.nbd.is_quiet();
        sockets && self.shm.is_quiet() && self.vhost.is_quiet()
    }
}
