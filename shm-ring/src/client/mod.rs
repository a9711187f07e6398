//! The side of a program that uses a volume over shared memory.
//!
//! ```no_run
//! # use ringway_shm_ring::client::{Client, ConnectOptions};
//! let client = Client::connect(ConnectOptions::new("/run/ringway/shm.sock", "vm1")).unwrap();
//! let mut queue = client.take_queue().unwrap();
//! let buffer = client.alloc(4096).unwrap();
//! queue.read(0, buffer, 7).unwrap(); // submitted; the buffer belongs to the queue until the command has ended
//! queue.ring(); // once a batch: wakes a target that sleeps
//! let mut ended = Vec::new();
//! while queue.poll(&mut ended) == 0 {} // or queue.wait(...), which sleeps
//! assert!(ended[0].status.is_success() && ended[0].tag == 7);
//! let first_block = ended.pop().unwrap().buffer.unwrap();
//! # drop(first_block);
//! ```
//! [`Queue::read_at`] and its like do all of that for one command at a time.
//!
//! A client outlives its target. The memory is the client's; when the target goes and another one comes, the client offers the
//! same memory again, takes what the old target has still answered, and sends again what it has not. Nothing is answered twice:
//! completions carry the number of their connection, and the old target's are taken before the new one is sent anything.

mod buffer;
mod host;
mod queue;
mod session;
mod status;
mod waiting;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use buffer::{Buffer, RawBuffer};
pub use host::Host;
pub use queue::{Completion, Queue, Reject, Rejected};
pub use session::ConnectError;
pub use status::Status;

pub use crate::command::Command;
pub use crate::message::{Polling, VolumeInfo};
use session::Shared;

/// What a client is connected with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    /// `shm.sock` in the target's runtime folder.
    pub socket: PathBuf,
    /// The volume's name.
    pub volume: String,
    /// Who this host is.
    pub host: Host,
    /// Be the volume's one writer of those that ask for that, or be refused.
    pub lease: bool,
    /// Queues; each is used by one thread at a time.
    pub queues: u16,
    /// Commands that may be outstanding on a queue: a power of two, 2 to 1024.
    pub depth: u16,
    /// Bytes of the data area, from which [`Client::alloc`] takes.
    pub data_bytes: u64,
    /// How long to wait, each time that the target is gone, for it to come back; and to be let in at first, where that is longer
    /// than the ten seconds that a target may take.
    pub patience: Duration,
    /// How the target looks for this client's commands.
    pub polling: Polling,
    /// Allocate the whole data area at once, some 0.1 s a 100 MiB, and not as it is used. The target registers with its rings what
    /// is there when the client attaches.
    pub populate: bool,
}

impl ConnectOptions {
    /// One queue of 128 commands and 64 MiB of data, as this machine.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>, volume: impl Into<String>) -> ConnectOptions {
        ConnectOptions {
            socket: socket.into(),
            volume: volume.into(),
            host: Host::of_this_machine(),
            lease: false,
            queues: 1,
            depth: 128,
            data_bytes: 64 << 20,
            patience: Duration::from_secs(60),
            polling: Polling::default(),
            populate: true,
        }
    }
}

/// A volume, attached over shared memory. Dropped with all of its queues and buffers, it is detached.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    /// Indices that were not taken.
    untaken: Mutex<Vec<u16>>,
}

impl Client {
    /// Attaches a volume. Waits until the target has let this client in, or refused it.
    pub fn connect(options: ConnectOptions) -> Result<Client, ConnectError> {
        let untaken = Mutex::new((0..options.queues).rev().collect());
        Ok(Client { shared: Shared::connect(options)?, untaken })
    }

    /// The volume, as the target last said.
    #[must_use]
    pub fn volume(&self) -> VolumeInfo {
        self.shared.info()
    }

    fn untaken(&self) -> MutexGuard<'_, Vec<u16>> {
        // A panic elsewhere leaves a list that is whole.
        self.untaken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A queue that nobody has taken; `None` when all are.
    #[must_use]
    pub fn take_queue(&self) -> Option<Queue> {
        let index = self.untaken().pop()?;
        Some(Queue::new(Arc::clone(&self.shared), index))
    }

    /// A buffer of `len` bytes in the data area, zeroed or as its last owner left it; it starts on a multiple of 4096. `None`
    /// when there is no room.
    #[must_use]
    pub fn alloc(&self, len: usize) -> Option<Buffer> {
        Buffer::take(&self.shared, len)
    }

    /// The data area's addresses in this process, for telling whether memory lies in it.
    #[must_use]
    pub fn data_addresses(&self) -> Range<usize> {
        let start = self.shared.data_start().addr();
        start..start + self.shared.data_bytes()
    }

    /// Whether the target was given up: every command ends with [`Status::LOST`].
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.shared.is_lost()
    }
}
