//! What a session is opened with.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ringway_core::snapshot::name::check_any_name;

use crate::address::Addresses;
use crate::refusal::{Refusal, errno};
use crate::runtime::{runtime_folder, shm_socket};

/// How a target is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Memory that is shared with a target of this machine.
    Shm,
    /// NVMe/TCP.
    Tcp,
    /// NVMe/RDMA.
    Rdma,
}

impl Transport {
    /// By its name.
    ///
    /// # Errors
    /// `EINVAL`, with the names that there are.
    pub fn named(name: &str) -> Result<Transport, Refusal> {
        match name {
            "shm" => Ok(Transport::Shm),
            "tcp" => Ok(Transport::Tcp),
            "rdma" => Ok(Transport::Rdma),
            other => {
                let why = format!("transport={other} is none of Ringway's; write transport=shm, tcp or rdma");
                Err(Refusal::new(errno::EINVAL, why))
            }
        }
    }
}

/// Where the target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// The socket at which a target of this machine takes rings.
    Shm(PathBuf),
    /// Where it listens.
    Tcp(Addresses),
    /// Where it listens for RDMA.
    Rdma(Addresses),
}

/// What a session is opened with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the target is, and so by which transport.
    pub way: Way,
    /// `VOLUME` or `VOLUME@SNAPSHOT`.
    pub volume: String,
    /// As whom to attach; none: as this machine over shared memory, as nobody known over TCP.
    pub host_nqn: Option<String>,
    /// As which of that machine's hosts; none: over shared memory as the machine itself, unless it takes the lease, else as one of its own.
    pub host_id: Option<[u8; 16]>,
    /// I/O queues, each a connection of its own; one over shared memory.
    pub queues: u16,
    /// Requests in flight; more wait.
    pub depth: u32,
    /// Bytes of the largest request for which there are as many buffers as `depth`.
    pub block_bytes: u64,
    /// Bytes of buffers for which there are not: over shared memory also what [`crate::Area`] gives out.
    pub spare_bytes: u64,
    /// How long to try to get a target back that is gone; zero: not at all.
    pub reconnect: Duration,
    /// Be the volume's one writer of those that ask for that, or be refused with `EBUSY`.
    pub lease: bool,
    /// How often the target hears that the program lives although it asks for nothing; zero: never.
    pub keep_alive: Duration,
    /// Is told of outages, once each.
    pub tell: fn(&str),
}

impl Options {
    /// For a volume: one queue, requests up to 256 KiB, 64 of them in flight.
    ///
    /// # Errors
    /// `EINVAL` for what is no name.
    pub fn new(way: Way, volume: impl Into<String>) -> Result<Options, Refusal> {
        let volume = volume.into();
        check_any_name(&volume).map_err(|why| Refusal::new(errno::EINVAL, why))?;
        Ok(Options {
            way,
            volume,
            host_nqn: None,
            host_id: None,
            queues: 1,
            depth: 64,
            block_bytes: ringway_core::limits::REQUEST_BYTES_MAX.into(),
            spare_bytes: 1 << 20,
            reconnect: Duration::ZERO,
            lease: false,
            keep_alive: Duration::from_secs(15),
            tell: |_| {},
        })
    }

    /// How the target is reached.
    #[must_use]
    pub fn transport(&self) -> Transport {
        match self.way {
            Way::Shm(_) => Transport::Shm,
            Way::Tcp(_) => Transport::Tcp,
            Way::Rdma(_) => Transport::Rdma,
        }
    }
}

impl Way {
    /// To the target of this machine whose runtime folder this is; none: where every client looks for it.
    #[must_use]
    pub fn shm(runtime: Option<&Path>) -> Way {
        Way::Shm(shm_socket(&runtime_folder(runtime)))
    }
}
