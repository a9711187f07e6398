//! The seam between the engine and the machine: operations go in by value, completions come back by value.
//!
//! An operation owns the buffers that the kernel reads or fills; from `submit` until its completion is reaped nobody else
//! can touch them, by ownership and not by convention. There is no way to ask whether an operation is finished other than
//! [`Io::poll`], which is also the only place that waits.

use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::buf::{Buf, BufPool};
use crate::data::{Data, Piece};
use crate::event::EventFd;
use crate::files::OpenFile;
use crate::shared::SharedMemory;

/// Nanoseconds on the monotonic clock of this process (or of the simulation). Not comparable across processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// Far enough that nothing is ever due then.
    pub const NEVER: Instant = Instant(u64::MAX);

    /// This instant moved `ns` nanoseconds later, saturating at [`Instant::NEVER`].
    #[must_use]
    pub fn plus_ns(self, ns: u64) -> Instant {
        Instant(self.0.saturating_add(ns))
    }

    /// Nanoseconds from `earlier` to this instant, 0 if it is the later one.
    #[must_use]
    pub fn since_ns(self, earlier: Instant) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Chosen by the submitter, returned verbatim with the completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// A device or file that this [`Io`] knows, numbered in the order in which it was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u16);

/// A connected socket attached to this [`Io`]. Never reused while an operation on it is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketId(pub u32);

/// A listening socket of this [`Io`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerId(pub u32);

/// A connected socket between two reactors: accepted or connected by one, attached by another.
#[derive(Debug)]
pub enum Socket {
    /// A file descriptor of this process.
    Os(OwnedFd),
    /// A number of the simulated network.
    Sim(u64),
}

/// A device that a running reactor is to know from now on. Clones are the same device, one for each reactor.
#[derive(Clone, Debug)]
pub enum NewFile {
    /// Open in this process.
    Os(OpenFile),
    /// A number of the simulated world.
    Sim(u16),
}

/// One operation. Offsets and lengths are bytes; device offsets, lengths and buffers are multiples of the file's logical
/// block size.
#[derive(Debug)]
pub enum Op {
    /// Fills the whole of `data`. A short read is [`ErrorKind::UnexpectedEnd`].
    Read { file: FileId, offset: u64, data: Data },
    /// Writes the whole of `data`. With `durable` it completes when the data is on stable storage (RWF_DSYNC).
    Write { file: FileId, offset: u64, data: Data, durable: bool },
    /// Everything whose completion was reaped before this was submitted is on stable storage when it completes
    /// (fdatasync).
    Barrier { file: FileId },
    /// Gives the range back to whatever lies below; it reads as zero afterwards (hole punch, or device discard).
    Deallocate { file: FileId, offset: u64, len: u64 },
    /// One connection from `listener`. Stays in flight until one arrives or the listener is closed.
    Accept { listener: ListenerId },
    /// One outgoing connection.
    Connect { addr: SocketAddr },
    /// At least one byte into the front of `buf`; zero bytes mean that the peer closed.
    Recv { socket: SocketId, buf: Buf },
    /// All bytes of all of `bufs`, in order. At most one `Send` may be in flight on a socket.
    Send { socket: SocketId, bufs: Vec<Piece> },
    /// Completes when the event is signalled, and resets it unless it is watched; at once if it is signalled already.
    WaitEvent { event: Arc<EventFd> },
    /// Signals the event, without ever waiting for whoever else holds it.
    Signal { event: Arc<EventFd> },
}

/// What an operation gives back besides its result: everything it owned, or what it made.
#[derive(Debug)]
pub enum Payload {
    /// Nothing was owned ([`Op::Barrier`], [`Op::Deallocate`], events, a failed [`Op::Accept`] or [`Op::Connect`]).
    None,
    /// The memory of a read or a write.
    Data(Data),
    /// The buffer of a receive.
    Buf(Buf),
    /// The pieces of a send; the vector is handed back so that it can be used again.
    Bufs(Vec<Piece>),
    /// The connection of an accept or a connect, not yet attached, and the peer's address.
    Socket(Socket, SocketAddr),
}

/// The end of one operation.
#[derive(Debug)]
pub struct Completion {
    /// The token given at submission.
    pub token: Token,
    /// Bytes moved, or why not.
    pub result: Result<usize, IoError>,
    /// What the operation owned.
    pub payload: Payload,
}

/// What went wrong, to match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The device or file reported an error (EIO, ENXIO, EBADMSG ...).
    Device,
    /// No space left below (ENOSPC, EDQUOT): a sparse pool file on a full file system.
    NoSpace,
    /// Fewer bytes than asked: the file ends earlier than the pool says.
    UnexpectedEnd,
    /// The connection is gone (reset, broken pipe, timed out, refused).
    Disconnected,
    /// A peer's memory is not there (EFAULT): it took away what it had shared.
    Memory,
    /// The operation was cancelled because its socket or listener was closed, or its event forgotten.
    Cancelled,
    /// Anything else; the errno says what.
    Other,
}

/// An error of one operation: kind to match on, errno to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoError {
    /// What to do about it.
    pub kind: ErrorKind,
    /// The positive errno as the kernel gave it, 0 where there was none.
    pub errno: i32,
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.errno == 0 {
            write!(f, "{:?}", self.kind)
        } else {
            write!(f, "{}", std::io::Error::from_raw_os_error(self.errno))
        }
    }
}

impl std::error::Error for IoError {}

/// How long [`Io::poll`] may wait for the first completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Submit what is queued, take what is there, return.
    No,
    /// Sleep until a completion, a wake-up or this instant, whichever is first.
    Until(Instant),
}

/// Wakes a reactor that sleeps in [`Io::poll`]; callable from any thread, never blocks. A wake-up that arrives while it
/// does not sleep makes its next sleep return at once.
pub trait Wake: Send + Sync {
    /// Ends the current or the next sleep.
    fn wake(&self);
}

/// What the engine must know about a device before it trusts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Bytes.
    pub size: u64,
    /// Smallest aligned unit of a read or write, bytes (power of two, at most 4096).
    pub logical_block: u32,
    /// Largest aligned write that power loss leaves either whole or undone, bytes (power of two).
    pub atomic_write_unit: u32,
    /// Whether `Deallocate` gives space back.
    pub deallocates: bool,
}

/// One reactor's access to devices, sockets and time. Not shared between threads.
pub trait Io {
    /// The time as of the last [`Io::poll`]: one value a tick.
    fn now(&self) -> Instant;

    /// The time at this very moment; costs a counter read.
    fn now_precise(&self) -> Instant;

    /// Accepts `op`; its completion comes out of a later [`Io::poll`] exactly once. Never fails and never blocks: what does
    /// not fit the ring yet waits in order (callers bound what they have in flight by permits).
    fn submit(&mut self, token: Token, op: Op);

    /// Submits what is queued and appends completions to `completions`. The only place that waits.
    fn poll(&mut self, wait: Wait, completions: &mut Vec<Completion>);

    /// Operations submitted and not yet reaped.
    fn in_flight(&self) -> usize;

    /// Files in the order of their [`FileId`].
    fn files(&self) -> &[FileInfo];

    /// Makes `file` this reactor's next file, or its last one in place of what was added there and never used.
    ///
    /// # Panics
    /// If `id` is neither.
    fn put_file(&mut self, id: FileId, file: &NewFile) -> Result<(), IoError>;

    /// Takes a connected socket over.
    fn attach(&mut self, socket: Socket) -> Result<SocketId, IoError>;

    /// Cancels what is in flight on `socket` (each completes, [`ErrorKind::Cancelled`] or otherwise) and closes it. The id is
    /// dead for the caller at once.
    fn close(&mut self, socket: SocketId);

    /// Opens a listening TCP socket; returns its id and the address it got (port 0 picks one).
    fn listen(&mut self, addr: SocketAddr) -> Result<(ListenerId, SocketAddr), IoError>;

    /// Stops listening; an accept in flight completes as cancelled.
    fn close_listener(&mut self, listener: ListenerId);

    /// Cancels the waits for `event`: each completes, [`ErrorKind::Cancelled`] or otherwise.
    fn forget_event(&mut self, event: &Arc<EventFd>);

    /// Registers a part of a peer's memory with the ring, so that operations that lie in it save the kernel looking its pages up.
    /// The pages that are there now are the ones that will be read and written: not for memory whose owner replaces pages (a
    /// guest with a balloon, history C12). At most 1 GiB, behind the parts of this memory that were registered before; it takes
    /// the kernel some milliseconds for each 100 MiB, and far longer where the pages are not there yet.
    fn register_memory(&mut self, memory: &Arc<SharedMemory>, part: Range<usize>) -> Result<(), IoError>;

    /// Undoes [`Io::register_memory`] for all parts of the memory; without it they stay locked and mapped. Nothing may be in
    /// flight on it.
    fn release_memory(&mut self, memory: &Arc<SharedMemory>);

    /// The buffers of this reactor, registered with its ring where the kernel allows.
    fn buffers(&self) -> &'static BufPool;

    /// Something that ends this reactor's sleep.
    fn waker(&self) -> Arc<dyn Wake>;
}
