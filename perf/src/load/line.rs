//! How a load reaches its volume: the NVMe host, over TCP or RDMA, or a ring in shared memory behind the same calls.
//!
//! Over shared memory each operation's data is copied between the load's buffer and the data area, once: the load's own numbers are
//! those of a program that does so. (`ring_reads`, and the fio engine, read in place.)

use std::collections::VecDeque;
use std::time::Duration;

use ringway_core::host::{
    Completed, Event, Host, HostError, HostErrorKind, HostRequest, Namespace, Outcome, Transport, rdma_devices,
};
use ringway_core::request::Command;
use ringway_core::wire::completion::NvmeStatus;
use ringway_reactor::buf::{Buf, BufPool};
use ringway_reactor::io::{Completion, Instant, Io, Wait};
use ringway_shm_ring::client::{self, Client, ConnectError, ConnectOptions, Queue, Rejected, Status};
use ringway_shm_ring::message::Reason;
use uuid::Uuid;

use super::config::LoadConfig;
use super::{LoadError, host_config};

const PAGE: u64 = 4096;

/// One way or the other.
pub(super) enum Line {
    Host(Box<Host>),
    Shm(Box<Ring>),
}

impl Line {
    /// For `config`; a host over RDMA lends buffers of `pool` to its target.
    pub(super) fn of(config: &LoadConfig, pool: &'static BufPool) -> Result<Line, LoadError> {
        match config.target.transport {
            Transport::Shm => Ring::new(config).map(Box::new).map(Line::Shm),
            Transport::Rdma { .. } => {
                let host = host_config(config)?;
                Ok(Line::Host(Box::new(Host::over_rdma(host, rdma_devices(pool)?))))
            }
            Transport::Tcp { .. } => Ok(Line::Host(Box::new(Host::new(host_config(config)?)))),
        }
    }

    pub(super) fn start<I: Io>(&mut self, io: &mut I) {
        match self {
            Line::Host(host) => host.start(io),
            Line::Shm(ring) => ring.start(),
        }
    }

    pub(super) fn poll<I: Io>(&mut self, io: &mut I, wait: Wait, completions: &mut Vec<Completion>) {
        match self {
            Line::Host(_) => io.poll(wait, completions),
            Line::Shm(ring) => {
                ring.poll(io, wait);
                // For the time.
                io.poll(Wait::No, completions);
            }
        }
    }

    pub(super) fn on_completion<I: Io>(&mut self, io: &mut I, completion: Completion) {
        match self {
            Line::Host(host) => host.on_completion(io, completion),
            Line::Shm(_) => unreachable!("a ring has nothing in the kernel's"),
        }
    }

    pub(super) fn turn<I: Io>(&mut self, io: &mut I) {
        if let Line::Host(host) = self {
            host.turn(io);
        }
    }

    pub(super) fn flush<I: Io>(&mut self, io: &mut I) {
        match self {
            Line::Host(host) => host.flush(io),
            Line::Shm(ring) => ring.open.iter_mut().for_each(|open| open.queue.ring()),
        }
    }

    pub(super) fn next_deadline(&self) -> Instant {
        match self {
            Line::Host(host) => host.next_deadline(),
            Line::Shm(_) => Instant::NEVER,
        }
    }

    /// Whether an event waits that no completion announces.
    pub(super) fn has_event(&self) -> bool {
        matches!(self, Line::Shm(ring) if !ring.events.is_empty())
    }

    pub(super) fn next_event(&mut self) -> Option<Event> {
        match self {
            Line::Host(host) => host.next_event(),
            Line::Shm(ring) => ring.events.pop_front(),
        }
    }

    pub(super) fn submit<I: Io>(&mut self, io: &mut I, request: HostRequest) -> Result<(), LoadError> {
        match self {
            Line::Host(host) => host.submit(io, request).map_err(|(_, error)| LoadError::Host(error)),
            Line::Shm(ring) => ring.submit(request).map_err(LoadError::Host),
        }
    }

    pub(super) fn close<I: Io>(&mut self, io: &mut I) {
        match self {
            Line::Host(host) => host.close(io),
            Line::Shm(ring) => ring.open = None,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        match self {
            Line::Host(host) => host.is_over(),
            Line::Shm(ring) => ring.open.is_none(),
        }
    }
}

struct Open {
    client: Client,
    queue: Queue,
}

/// A ring in shared memory.
pub(super) struct Ring {
    options: ConnectOptions,
    open: Option<Open>,
    events: VecDeque<Event>,
    /// By the number of their request: the load's own buffers.
    in_flight: Vec<Option<Buf>>,
    ended: Vec<client::Completion>,
}

impl Ring {
    fn new(config: &LoadConfig) -> Result<Ring, LoadError> {
        if config.queues > 1 || config.header_digest || config.data_digest {
            return Err(LoadError::Config("shared memory has one queue a client, and no digests".into()));
        }
        let (volume, socket) = (config.target.name(), config.shm_socket.clone());
        let socket = socket.ok_or_else(|| LoadError::Config("the target's runtime folder is not known".into()))?;
        let mut options = ConnectOptions::new(socket, volume);
        options.depth = u16::try_from(config.depth.next_power_of_two())
            .map_err(|_| LoadError::Config(format!("depth {} is more than a ring has", config.depth)))?
            .max(2);
        let each = u64::from(config.block_bytes).next_multiple_of(PAGE) + PAGE;
        options.data_bytes = u64::from(config.depth) * each;
        options.patience = config.reconnect_for;
        if let Some(nqn) = &config.host_nqn {
            options.host.nqn.clone_from(nqn);
        }
        let in_flight = (0..config.depth).map(|_| None).collect();
        Ok(Ring { options, open: None, events: VecDeque::new(), in_flight, ended: Vec::new() })
    }

    fn start(&mut self) {
        let event = match Client::connect(self.options.clone()) {
            Ok(client) => {
                let info = client.volume();
                let queue = client.take_queue().expect("a client has a queue");
                self.open = Some(Open { client, queue });
                Event::Ready(Some(Namespace {
                    size: info.size,
                    lba_bytes: info.block_bytes,
                    uuid: identity(&self.options.volume),
                    request_bytes_max: info.request_bytes_max,
                    queues: 1,
                }))
            }
            Err(error) => Event::Failed(HostError::new(kind(&error), error.to_string())),
        };
        self.events.push_back(event);
    }

    fn poll<I: Io>(&mut self, io: &I, wait: Wait) {
        let Some(open) = &mut self.open else { return };
        if open.queue.poll(&mut self.ended) == 0
            && let Wait::Until(until) = wait
        {
            let left = Duration::from_nanos(until.since_ns(io.now_precise()));
            open.queue.wait(left, &mut self.ended);
        }
        for completion in self.ended.drain(..) {
            let mut buf = self.in_flight[completion.tag as usize].take();
            if let (Some(buf), Some(data)) = (&mut buf, &completion.buffer) {
                buf.copy_from_slice(data);
            }
            let outcome = match completion.status {
                status if status.is_success() => Outcome::Success,
                Status::LOST => Outcome::Gone,
                Status::UNDECIDED => Outcome::Unknown,
                Status(word) => Outcome::Failed(NvmeStatus(word)),
            };
            self.events.push_back(Event::Completed(Completed { user: completion.tag, outcome, buf, result: 0 }));
        }
        if open.client.is_lost() {
            let why = "the target is gone and did not come back";
            self.events.push_back(Event::Failed(HostError::new(HostErrorKind::Disconnected, why)));
        }
    }

    fn submit(&mut self, request: HostRequest) -> Result<(), HostError> {
        let refused = |why: String| HostError::new(HostErrorKind::Invalid, why);
        let HostRequest { user, command, offset, len, buf } = request;
        let Open { client, queue } = self.open.as_mut().ok_or_else(|| refused("the ring is closed".into()))?;
        let data = || client.alloc(len as usize).ok_or_else(|| refused("the data area is full".into()));
        let taken: Result<(), Rejected> = match command {
            Command::Read => queue.read(offset, data()?, user),
            Command::Write { fua } => {
                let mut data = data()?;
                data.copy_from_slice(buf.as_ref().expect("a write has its data"));
                queue.write(offset, data, fua, user)
            }
            Command::Flush => queue.flush(user),
            Command::WriteZeroes { deallocate, .. } => queue.write_zeroes(offset, len.into(), deallocate, user),
            Command::Deallocate => queue.deallocate(offset, len.into(), user),
            Command::Compare | Command::CompareAndWrite { .. } => {
                return Err(refused(format!("{command:?} is no operation of a load")));
            }
        };
        taken.map_err(|rejected| refused(rejected.why.to_string()))?;
        self.in_flight[user as usize] = buf;
        Ok(())
    }
}

/// Shared memory does not say a volume's UUID: what is written is stamped with its name.
fn identity(volume: &str) -> Uuid {
    let mut bytes = [0_u8; 16];
    for (at, byte) in volume.bytes().enumerate() {
        bytes[at % 16] = bytes[at % 16].rotate_left(3) ^ byte;
    }
    Uuid::from_bytes(bytes)
}

fn kind(error: &ConnectError) -> HostErrorKind {
    match error {
        ConnectError::Refused { reason: Reason::NoVolume, .. } => HostErrorKind::NoSuchVolume,
        ConnectError::Refused { reason: Reason::Denied, .. } => HostErrorKind::NotAllowed,
        ConnectError::Refused { reason: Reason::Busy, .. } => HostErrorKind::Busy,
        ConnectError::Unreachable { .. } => HostErrorKind::Refused,
        ConnectError::Layout(_) | ConnectError::Name { .. } => HostErrorKind::Invalid,
        _ => HostErrorKind::Controller,
    }
}
