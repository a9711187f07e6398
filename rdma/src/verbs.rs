//! The seam between a transport and the network card: work goes in by value, what happened comes back by value.
//!
//! A reactor has one [`Verbs`]. Work owns the buffers that the card reads or fills; from [`Verbs::post`] until its
//! [`Event::Done`] nobody else can touch them, by ownership and not by convention. Each work comes back exactly once, whatever
//! becomes of its queue pair: with its result, or flushed. Nothing here waits; [`Verbs::bell`] is what a reactor sleeps on.
//!
//! The life of a queue pair, as its owner sees it:
//!
//! ```text
//! connect --> Established --> (Done ...) --> Disconnected --> Done ... (flushed) --> Gone
//! accept  -->      |                             ^
//!                  +-- Refused --> Done ... --> Gone
//! disconnect, at any time:                       Done ... (flushed) --> Gone
//! ```

use std::any::Any;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use ringway_reactor::buf::Buf;
use ringway_reactor::data::Piece;
use ringway_reactor::event::EventFd;
use ringway_reactor::io::Instant;

/// A queue pair of this [`Verbs`]. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QpId(pub u64);

/// A listening address of this [`Verbs`]. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId(pub u64);

/// A device, numbered in the order in which this process found it; the same for all its reactors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub u16);

/// Memory that the owner of the key may be asked to read or write: the peer's, or ours as told to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Remote {
    /// Virtual address in the memory's owner.
    pub address: u64,
    /// Remote key (steering tag).
    pub key: u32,
}

/// A device that can be used, and its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its number.
    pub id: DeviceId,
    /// As `ibv_devinfo` calls it.
    pub name: String,
    /// The memory node it is attached to, where the system says.
    pub numa: Option<u16>,
    /// Work requests of one send or receive queue, at most.
    pub queue_entries_max: u32,
    /// RDMA reads that one queue pair may have outstanding at its peer, at most.
    pub reads_out_max: u8,
    /// RDMA reads that one queue pair answers at a time, at most.
    pub reads_in_max: u8,
    /// It was removed; there will be no new queue pairs on it.
    pub gone: bool,
}

/// How a queue pair is made. What a device cannot give is lowered where that changes nothing for the owner (`reads_*`), and
/// refused otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSpec {
    /// Receives posted and not come back, at most.
    pub receives: u32,
    /// Sends, reads and writes posted and not come back, at most.
    pub sends: u32,
    /// RDMA reads of ours at the peer at a time (initiator depth); further ones wait here, and do not hold up what is no read.
    pub reads_out: u8,
    /// RDMA reads of the peer's that we answer at a time (responder resources).
    pub reads_in: u8,
}

/// One work request. Owns its buffers; comes back in [`Event::Done`].
#[derive(Debug)]
pub enum Work {
    /// One message of the peer: its first bytes fill `head`, what follows goes to `data`. A message longer than both breaks the
    /// queue pair.
    Receive { head: Buf, data: Option<Buf> },
    /// One message. `invalidate` is a key of the peer's that may not be used any more once it has arrived.
    Send { buf: Buf, invalidate: Option<u32> },
    /// Fills the whole of `buf` from the peer's memory. May be overtaken by sends and writes that were posted later.
    Read { buf: Buf, from: Remote },
    /// Writes the whole of `data` to the peer's memory. A send posted later arrives later.
    Write { data: Piece, to: Remote },
}

impl Work {
    /// Bytes of its buffers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Work::Receive { head, data } => head.len() + data.as_ref().map_or(0, |data| data.len()),
            Work::Send { buf, .. } | Work::Read { buf, .. } => buf.len(),
            Work::Write { data, .. } => data.len(),
        }
    }

    /// Whether it goes to the receive queue.
    #[must_use]
    pub fn is_receive(&self) -> bool {
        matches!(self, Work::Receive { .. })
    }
}

/// Why a work did not do what it was to do. Each but [`WorkError::Flushed`] breaks its queue pair: [`Event::Disconnected`] follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum WorkError {
    #[error("the queue pair was gone before it ran")]
    Flushed,
    #[error("a message was longer than the buffer for it, or a request longer than its buffers")]
    LocalLength,
    #[error("the device found the work request inconsistent")]
    LocalOperation,
    #[error("a local buffer is not registered for what was asked")]
    LocalProtection,
    #[error("the peer read or wrote memory it may not")]
    LocalAccess,
    #[error("the peer answered with what is no answer")]
    BadResponse,
    #[error("the peer found the request invalid: a message longer than its buffer, or too many reads")]
    RemoteInvalid,
    #[error("the peer's memory may not be read or written: a wrong key, or beyond its region")]
    RemoteAccess,
    #[error("the peer could not do it")]
    RemoteOperation,
    #[error("the peer does not answer")]
    RetryExceeded,
    #[error("the peer posts no receives")]
    RnrExceeded,
    #[error("the peer gave it up")]
    RemoteAborted,
    #[error("the device failed")]
    Fatal,
    #[error("completion status {0}")]
    Other(u32),
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A peer wants to connect.
    Request(ConnectRequest),
    /// Both sides are ready. On the accepting side a receive may have come back before.
    Established {
        qp: QpId,
        /// What the other side said when it accepted, padded with zeros; empty on the accepting side.
        private: Vec<u8>,
        /// RDMA reads that we may have at the peer at a time.
        reads_out: u8,
    },
    /// There is no connection, and will be none; [`Event::Gone`] follows.
    Refused { qp: QpId, why: Refusal },
    /// The end of one work.
    Done {
        qp: QpId,
        token: u64,
        work: Work,
        /// Bytes: those received, for a receive; those of its buffers otherwise.
        result: Result<u32, WorkError>,
        /// A key of ours that the peer has invalidated with this message.
        invalidated: Option<u32>,
    },
    /// The peer has left, or the queue pair broke: nothing more is sent. Everything comes back, then [`Event::Gone`] follows; it
    /// needs no [`Verbs::disconnect`].
    Disconnected { qp: QpId, why: Ending },
    /// The queue pair is destroyed. All its work came back before, and the card reads and writes nothing of it any more.
    Gone { qp: QpId },
    /// The address of this listener is gone from its device, which may come back: listen again.
    ListenerLost { listener: ListenerId },
    /// A device can be used that was not there before.
    DeviceAdded { device: DeviceId },
    /// A device was removed: its queue pairs end, each with its own events.
    DeviceGone { device: DeviceId },
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The peer said no, with these bytes, padded with zeros.
    #[error("the peer refused the connection")]
    Rejected(Vec<u8>),
    /// Nobody listens there.
    #[error("nobody listens there")]
    NobodyListens,
    /// No device leads there.
    #[error("no RDMA device leads to that address: {0}")]
    NoRoute(String),
    /// No answer.
    #[error("no answer: {0}")]
    Unreachable(String),
    /// This side could not make what it takes.
    #[error("{0}")]
    Failed(String),
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The peer disconnected, or is gone.
    Peer,
    /// A work request failed.
    Work(WorkError),
    /// The device reported the queue pair broken.
    Fatal,
    /// The device was removed.
    DeviceGone,
    /// The address moved to another device or port.
    AddressChanged,
}

/// A peer that waits for an answer. May be moved to another reactor of the same process and accepted there. Dropping it refuses.
pub struct ConnectRequest {
    /// Where it arrived.
    pub listener: ListenerId,
    /// On which device.
    pub device: DeviceId,
    /// The memory node of that device.
    pub numa: Option<u16>,
    /// The peer's address.
    pub peer: SocketAddr,
    /// The address it has reached us by.
    pub local: SocketAddr,
    /// What it said, padded with zeros.
    pub private: Vec<u8>,
    /// RDMA reads of ours that it answers at a time.
    pub peer_reads_in: u8,
    /// RDMA reads that it will have at us at a time.
    pub peer_reads_out: u8,
    /// What the implementation knows it by.
    pub(crate) ticket: Box<dyn Any + Send>,
}

impl fmt::Debug for ConnectRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectRequest({} -> {}, {} private bytes)", self.peer, self.local, self.private.len())
    }
}

/// A buffer of ours that the peer may read and write. Whoever lent it gets it back by [`Verbs::withdraw`]; dropped, it is lost.
#[derive(Debug)]
#[must_use = "a buffer that is lent comes back by `withdraw` alone"]
pub struct Lent {
    /// Where the peer finds it.
    pub remote: Remote,
    /// Bytes.
    pub len: u32,
    /// The implementation's number of it.
    pub(crate) number: u64,
}

/// Why something cannot be set up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerbsError {
    /// No device has this address.
    #[error("no RDMA device has the address {0}")]
    NoDevice(SocketAddr),
    /// The address is taken.
    #[error("{0} is in use by another program")]
    AddressInUse(SocketAddr),
    /// The request, the queue pair or its device is gone.
    #[error("the peer or the device is gone")]
    Gone,
    /// The device has less than what was asked for.
    #[error("{device} has {has} {what}, and {asked} are needed")]
    TooMuch { device: String, what: &'static str, has: u32, asked: u32 },
    /// More private data than the connection's protocol carries.
    #[error("{0} bytes of private data are more than a connection's first message carries")]
    PrivateTooLong(usize),
    /// The buffer is of no pool that is registered with the device.
    #[error("the buffer is not registered with the device")]
    NotRegistered,
    /// The system said no.
    #[error("{what}: {why}")]
    System { what: &'static str, why: String },
}

/// What was done so far; plain numbers with one writer. Of one queue pair, or of all of a [`Verbs`] together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Work requests given to the device, by kind.
    pub receives: u64,
    pub sends: u64,
    pub reads: u64,
    pub writes: u64,
    /// Calls that gave it one or more.
    pub doorbells: u64,
    /// Work requests of the send queue that were to be reported by a completion of their own.
    pub signalled: u64,
    /// Completions taken from the device.
    pub completions: u64,
    /// Works that came back without error, and with one.
    pub succeeded: u64,
    pub failed: u64,
    /// Of the latter, flushed.
    pub flushed: u64,
    /// Of the latter, given up because the peer posted no receive, or did not answer.
    pub rnr_exceeded: u64,
    pub retry_exceeded: u64,
    /// Bytes of messages and RDMA data, in and out.
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Of the latter, copied into work requests (inline) rather than fetched by the device.
    pub bytes_inline: u64,
    /// Bytes copied between buffers by this crate. There is nothing that does.
    pub bytes_copied: u64,
    /// RDMA reads that waited for others to end.
    pub reads_waited: u64,
    /// Polls of completion queues, and those of them that found something.
    pub polls: u64,
    pub polls_found: u64,
    /// Receives posted and not come back: the credits that the peer has.
    pub credits: u64,
}

/// One reactor's access to RDMA devices. Not shared between threads.
pub trait Verbs: Send {
    /// Devices in the order of their [`DeviceId`], those that are gone included.
    fn devices(&self) -> Vec<Device>;

    /// Listens at `addr` on the device that has it, or on all for a wildcard; port 0 picks one.
    fn listen(&mut self, addr: SocketAddr) -> Result<(ListenerId, SocketAddr), VerbsError>;

    /// Stops listening; requests that were not answered are refused.
    fn close_listener(&mut self, listener: ListenerId);

    /// Says yes. The queue pair is there at once; the answer goes out with the next [`Verbs::flush`], after the receives that are
    /// posted until then.
    fn accept(&mut self, request: ConnectRequest, spec: &QueueSpec, private: &[u8]) -> Result<QpId, VerbsError>;

    /// Says no.
    fn reject(&mut self, request: ConnectRequest, private: &[u8]);

    /// Connects. [`Event::Established`] or [`Event::Refused`] follows; work may be posted at once.
    fn connect(&mut self, to: SocketAddr, spec: &QueueSpec, private: &[u8]) -> Result<QpId, VerbsError>;

    /// Ends a connection: what is posted comes back, finished or flushed, then [`Event::Gone`] follows. Nothing if it is ending.
    fn disconnect(&mut self, qp: QpId);

    /// Accepts work; its [`Event::Done`] comes out of a later [`Verbs::poll`] exactly once. Never fails and never blocks: what is
    /// posted to a queue pair that has ended comes back flushed.
    ///
    /// # Panics
    /// If there is more than the [`QueueSpec`] says.
    fn post(&mut self, qp: QpId, token: u64, work: Work);

    /// Lends `buf` to the peer, which may read and write it until it is withdrawn.
    fn lend(&mut self, qp: QpId, buf: Buf) -> Result<Lent, (Buf, VerbsError)>;

    /// Takes a lent buffer back. The peer must have done with it (it answered the command that named it), or the queue pair must be
    /// [`Event::Gone`].
    fn withdraw(&mut self, lent: Lent) -> Buf;

    /// Gives the devices what was posted: one doorbell for each queue.
    fn flush(&mut self);

    /// Flushes, and appends what happened. Never waits. `now` is the reactor's time, which never goes back.
    fn poll(&mut self, now: Instant, events: &mut Vec<Event>);

    /// The reactor is about to sleep: makes the bell ring for what comes. `false` if there is something already.
    fn arm(&mut self) -> bool;

    /// What to have in the reactor's ring at all times, by [`ringway_reactor::io::Op::WaitEvent`]: when it completes, the next poll
    /// looks everywhere. `None` for the twin, which wakes its reactor itself.
    fn bell(&self) -> Option<Arc<EventFd>>;

    /// The bell rang: the next [`Verbs::poll`] looks at what is seldom looked at (connections, devices).
    fn rang(&mut self);

    /// When [`Verbs::poll`] has to run although the bell does not ring.
    fn next_deadline(&self) -> Instant;

    /// What one queue pair did so far, until it is gone.
    fn counts(&self, qp: QpId) -> Option<Counts>;

    /// What all did together.
    fn total(&self) -> Counts;
}
