//! What a host is told and what it tells.

use std::net::SocketAddr;
use std::time::Duration;

use ringway_reactor::buf::Buf;
use uuid::Uuid;

use super::error::HostError;
use crate::request::Command;
use crate::wire::command::Sqe;
use crate::wire::completion::NvmeStatus;
use crate::wire::log_page::TransportType;

/// What kind of controller to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControllerKind {
    /// A volume: so many I/O queues of so many commands each.
    Io { queues: u16, depth: u16 },
    /// The discovery service: no I/O queues, no namespace.
    Discovery,
}

/// How to come back after a broken connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reconnect {
    /// The pause after the first failed attempt; it doubles from there.
    pub first: Duration,
    /// The longest pause.
    pub most: Duration,
    /// How long an outage may last before the host gives up. Zero gives up at once.
    pub give_up_after: Duration,
    /// How long the very first connection may be tried. Zero is one attempt.
    pub wait_for_target: Duration,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(20),
            most: Duration::from_secs(2),
            give_up_after: Duration::from_secs(600),
            wait_for_target: Duration::ZERO,
        }
    }
}

/// One association with one subsystem.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Over what.
    pub transport: TransportType,
    /// Where the target listens.
    pub addr: SocketAddr,
    /// Other addresses of the same target: each attempt to connect takes the next of all, in turn.
    pub others: Vec<SocketAddr>,
    /// How the user spelled it, for messages.
    pub name: String,
    /// Which subsystem.
    pub subsystem_nqn: String,
    /// Be its one writer of those that ask for that, or be refused.
    pub lease: bool,
    /// Who we are.
    pub host_nqn: String,
    /// Which incarnation of us: the same for every association of this process.
    pub host_id: Uuid,
    /// What to ask for.
    pub controller: ControllerKind,
    /// Ask for digests of headers.
    pub header_digest: bool,
    /// Ask for digests of data.
    pub data_digest: bool,
    /// The target ends the association after this long without a sign of life; zero is never.
    pub keep_alive: Duration,
    /// A command that takes longer breaks the connection; it is then sent again on the next one.
    pub command_timeout: Duration,
    /// The whole start sequence takes no longer.
    pub connect_timeout: Duration,
    /// How to come back.
    pub reconnect: Reconnect,
    /// The upper 16 bits of every token of this host: several users of one `Io` are told apart by it.
    pub token_space: u16,
}

/// An identifier that no other host has. From the kernel: a generator in this process would give all that fork from it the
/// same one, and hosts of one identifier end each other's associations.
fn fresh_host_id() -> Uuid {
    let mut bytes = [0; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    assert_eq!(filled, Ok(bytes.len()), "the kernel gives 16 random bytes at once");
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

impl HostConfig {
    /// An identifier that no other host has.
    #[must_use]
    pub fn fresh_id() -> Uuid {
        fresh_host_id()
    }

    /// Over TCP, one queue of 128 commands, no digests.
    #[must_use]
    pub fn new(addr: SocketAddr, subsystem_nqn: impl Into<String>) -> Self {
        let host_id = fresh_host_id();
        Self {
            transport: TransportType::Tcp,
            addr,
            others: Vec::new(),
            name: format!("tcp://{addr}"),
            subsystem_nqn: subsystem_nqn.into(),
            lease: false,
            host_nqn: format!("nqn.2014-08.org.nvmexpress:uuid:{host_id}"),
            host_id,
            controller: ControllerKind::Io { queues: 1, depth: 128 },
            header_digest: false,
            data_digest: false,
            keep_alive: Duration::from_secs(15),
            command_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            reconnect: Reconnect::default(),
            token_space: 0,
        }
    }

    /// The same over RDMA.
    #[must_use]
    pub fn rdma(self) -> Self {
        Self { transport: TransportType::Rdma, name: format!("rdma://{}", self.addr), ..self }
    }
}

/// One command for the volume.
#[derive(Debug)]
pub struct HostRequest {
    /// Comes back with the end of the command.
    pub user: u64,
    /// What to do.
    pub command: Command,
    /// Bytes from the start of the volume, a multiple of the logical block.
    pub offset: u64,
    /// Bytes of the range, a multiple of the logical block.
    pub len: u32,
    /// As long as the command moves data: `len` bytes, twice that for compare-and-write, none otherwise.
    pub buf: Option<Buf>,
}

/// One command for the controller.
#[derive(Debug)]
pub struct AdminRequest {
    /// Comes back with the end of the command.
    pub user: u64,
    /// The submission entry; command id and data pointer are filled in.
    pub sqe: Sqe,
    /// Where its data goes, if it has any; its length is what is asked for.
    pub buf: Option<Buf>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Success,
    /// The controller says no.
    Failed(NvmeStatus),
    /// It was in flight when the connection broke and must not be sent twice: it may have been done or not.
    Unknown,
    /// The host gave up or was closed before an answer came.
    Gone,
}

impl Outcome {
    /// Whether it was done.
    #[must_use]
    pub fn is_success(self) -> bool {
        self == Outcome::Success
    }
}

/// The end of one command.
#[derive(Debug)]
pub struct Completed {
    /// The submitter's number.
    pub user: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// The request's buffer.
    pub buf: Option<Buf>,
    /// Dword 0 of the completion, for commands that return something there.
    pub result: u32,
}

/// The namespace of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Bytes of the volume.
    pub size: u64,
    /// Bytes of a logical block.
    pub lba_bytes: u32,
    /// The volume's UUID; nil where the target names none.
    pub uuid: Uuid,
    /// Bytes of the largest request.
    pub request_bytes_max: u32,
    /// I/O queues that were granted.
    pub queues: u16,
}

/// What a host tells.
#[derive(Debug)]
pub enum Event {
    /// The first connection stands. `None` for a discovery controller.
    Ready(Option<Namespace>),
    /// The connection broke (or could not be made yet) and is being made anew; commands wait.
    Lost(HostError),
    /// It stands again; so many commands were sent again.
    Reconnected { resent: usize, outage: Duration },
    /// A command ended.
    Completed(Completed),
    /// The volume has another size.
    Resized(Namespace),
    /// The host gave up; every command has ended as [`Outcome::Gone`] or [`Outcome::Unknown`].
    Failed(HostError),
    /// [`super::Host::close`] has finished.
    Closed,
}
