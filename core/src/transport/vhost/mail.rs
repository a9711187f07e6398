//! What control threads and reactors tell each other about rings.
//!
//! A control thread sends and waits for the answer; a reactor never waits. A ring belongs to one reactor from its start to its
//! end, and everything that changes under it (memory, addresses, features) does so while it is stopped: its requests have ended, so
//! that nothing of the old is in use when the control thread answers its front end.

use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use ringway_reactor::event::EventFd;
use ringway_reactor::shared::SharedMemory;
use ringway_shm_ring::virtqueue::{DirtyLog, GuestMemory, InflightRegion, RingConfig, UsedLog};

use crate::export::Polling;
use crate::ids::{AssociationId, VolumeId};

/// A ring that was started; never used again in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RingId(pub u64);

/// What a reactor needs to serve a ring.
pub struct RingSetup {
    pub(super) id: RingId,
    /// Its queue.
    pub(super) number: u16,
    pub(super) config: RingConfig,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) inflight: Option<InflightRegion>,
    pub(super) log: Option<Arc<DirtyLog>>,
    pub(super) used_log: Option<UsedLog>,
    /// `None`: the driver never kicks, the ring is polled.
    pub(super) kick: Option<Arc<EventFd>>,
    pub(super) call: Option<Arc<EventFd>>,
    pub(super) error: Option<Arc<EventFd>>,
    pub(super) device: Arc<DeviceState>,
}

/// What all rings of a connection share with its control thread.
pub(super) struct DeviceState {
    pub(super) volume: VolumeId,
    pub(super) association: AssociationId,
    pub(super) read_only: bool,
    pub(super) polling: Polling,
    /// Writes may stay in a cache until a flush.
    pub(super) write_back: AtomicBool,
    /// To be shut where its guest's memory has gone: ends the control thread's wait for the front end.
    pub(super) socket: UnixStream,
    /// For messages.
    pub(super) name: String,
    /// The volume's NQN, for metrics.
    pub(super) subsystem: String,
}

impl DeviceState {
    pub(super) fn is_write_back(&self) -> bool {
        self.write_back.load(Ordering::Relaxed)
    }

    /// Ends the connection, from whichever thread.
    pub(super) fn hang_up(&self, why: &str) {
        tracing::warn!(export = self.name, why, "a vhost-user connection is ended");
        // Already closed by the other side: all the same.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

/// How a ring ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Where the next one begins.
    pub base: u32,
}

/// To a reactor.
pub enum Mail {
    /// Serve this ring. Answered with why not, if it cannot be.
    Start(Box<RingSetup>, Sender<Result<(), String>>),
    /// End it: take no more, answer when nothing is in flight. `abandon`: its front end has gone, and the guest is not to see what
    /// ends from here on, since a successor will carry it out again.
    Stop { ring: RingId, abandon: bool, reply: Sender<Stopped> },
    /// Interrupt the driver by this from now on.
    SetCall { ring: RingId, call: Option<Arc<EventFd>>, reply: Sender<()> },
    /// Register this part with the ring, when there is time. Its pages are there; parts of one memory come in order.
    Pin(Arc<SharedMemory>, Range<usize>),
    /// Undo that. Nothing is in flight on it, on any reactor.
    Unpin(Vec<Arc<SharedMemory>>, Sender<()>),
}

impl std::fmt::Debug for Mail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Mail::Start(setup, _) => write!(f, "Start({:?})", setup.id),
            Mail::Stop { ring, abandon, .. } => write!(f, "Stop({ring:?}, abandon: {abandon})"),
            Mail::SetCall { ring, .. } => write!(f, "SetCall({ring:?})"),
            Mail::Pin(_, part) => write!(f, "Pin({part:?})"),
            Mail::Unpin(areas, _) => write!(f, "Unpin({} areas)", areas.len()),
        }
    }
}
