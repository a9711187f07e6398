//! Over NVMe/TCP or NVMe/RDMA, by our own host. Data is copied between the program's buffers and those that are registered with the ring.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_core::directory::VOLUME_NQN_PREFIX;
use ringway_core::host::{
    Completed, ControllerKind, Event, Host, HostConfig, HostRequest, Namespace, Outcome, Reconnect, rdma_devices,
};
use ringway_core::request::Command;
use ringway_core::wire::completion::NvmeStatus;
use ringway_core::wire::log_page::TransportType;
use ringway_reactor::buf::{BufPoolConfig, PAGE};
use ringway_reactor::io::{Completion, Io, Wait, Wake};
use ringway_reactor::uring::{UringConfig, UringIo};
use slab::Slab;
use uuid::Uuid;

use crate::address::Addresses;
use crate::options::Options;
use crate::pool::Pool;
use crate::refusal::{Refusal, errno};
use crate::session::{Carrier, Piece, PieceEnded, Volume, What};

/// The largest request of any target of ours, and of most others: bounds the buffers before the target is asked.
const REQUEST_BYTES: u64 = ringway_core::limits::REQUEST_BYTES_MAX as u64;
/// A queue's commands at most.
const QUEUE_DEPTH_MAX: u32 = ringway_core::limits::QUEUE_ENTRIES_MAX as u32 - 1;
/// How long a close may take; a target that is gone does not answer.
const CLOSE: Duration = Duration::from_secs(2);

/// An association with a volume's subsystem.
pub(crate) struct Tcp {
    io: UringIo,
    host: Host,
    namespace: Namespace,
    completions: Vec<Completion>,
    /// Pieces with the host; their places are the host's numbers for them.
    pieces: Slab<Piece>,
    room: usize,
    /// What was last said of an outage: each of its attempts to connect would say the same again.
    said: String,
    tell: fn(&str),
    /// Behind all that has buffers of it.
    _pool: Pool,
}

impl Tcp {
    pub(crate) fn connect(options: &Options, addresses: &Addresses, transport: TransportType) -> Result<Tcp, Refusal> {
        let local = |why: String| Refusal::new(errno::EIO, why);
        let config = host_config(options, addresses);
        let pool = Pool::take(buffers(options));
        let mut io = UringIo::new(&UringConfig::new(vec![pool.buffers()], 0))
            .map_err(|error| local(format!("no ring: {error}")))?;
        let mut host = match transport {
            TransportType::Tcp => Host::new(config),
            TransportType::Rdma => {
                let verbs = rdma_devices(pool.buffers()).map_err(|error| Refusal::from(&error))?;
                Host::over_rdma(config.rdma(), verbs)
            }
        };
        host.start(&mut io);
        let mut completions = Vec::new();
        let namespace = loop {
            let until = host.next_deadline();
            turn(&mut io, &mut host, Wait::Until(until), &mut completions);
            match host.next_event() {
                Some(Event::Ready(Some(namespace))) => break namespace,
                Some(Event::Ready(None)) => return Err(local("the target gave a volume without a namespace".into())),
                // At another address of the target it may be better: what is final is said as such.
                Some(Event::Failed(error)) => return Err(Refusal::from(&error)),
                _ => {}
            }
        };
        let room = options.depth as usize * pieces_of(options) as usize;
        let (pieces, tell) = (Slab::with_capacity(room), options.tell);
        Ok(Tcp { io, host, namespace, completions, pieces, room, said: String::new(), tell, _pool: pool })
    }

    fn ended(&mut self, completed: &Completed) -> PieceEnded {
        let mut piece = self.pieces.remove(completed.user as usize);
        let errno = match completed.outcome {
            Outcome::Success => 0,
            Outcome::Failed(status) => errno_of(status),
            Outcome::Unknown => errno::EIO,
            Outcome::Gone => errno::ESHUTDOWN,
        };
        if let (What::Read, 0, Some(buf), Some(memory)) = (piece.what, errno, &completed.buf, &mut piece.memory) {
            memory.copy_from(buf);
        }
        (piece.request, errno)
    }
}

fn turn(io: &mut UringIo, host: &mut Host, wait: Wait, completions: &mut Vec<Completion>) {
    host.flush(io);
    io.poll(wait, completions);
    for completion in completions.drain(..) {
        host.on_completion(io, completion);
    }
    host.turn(io);
}

fn pieces_of(options: &Options) -> u64 {
    options.block_bytes.div_ceil(REQUEST_BYTES)
}

/// Data of everything in flight; a page for each trim's range; what the queues send from and receive into; some of the largest.
fn buffers(options: &Options) -> BufPoolConfig {
    let connections = usize::from(options.queues) + 1;
    let depth = options.depth as usize * pieces_of(options) as usize;
    let largest = (options.block_bytes.min(REQUEST_BYTES) as usize).next_multiple_of(PAGE);
    let mut classes = vec![(PAGE, depth + 2 * connections + 8)];
    let spare = options.spare_bytes.div_ceil(REQUEST_BYTES) as usize;
    let wanted =
        [(16 << 10, 2 * connections), (64 << 10, connections), (largest, depth), (REQUEST_BYTES as usize, spare)];
    for (size, count) in wanted {
        match classes.iter_mut().find(|class| class.0 == size) {
            Some(class) => class.1 += count,
            None => classes.push((size, count)),
        }
    }
    classes.sort_unstable();
    BufPoolConfig { classes }
}

fn host_config(options: &Options, addresses: &Addresses) -> HostConfig {
    let mut config = HostConfig::new(addresses.first(), format!("{VOLUME_NQN_PREFIX}{}", options.volume));
    config.others = addresses.others().to_vec();
    let depth = (options.depth * pieces_of(options) as u32).div_ceil(options.queues.into());
    config.controller = ControllerKind::Io { queues: options.queues, depth: depth.clamp(1, QUEUE_DEPTH_MAX) as u16 };
    config.keep_alive = options.keep_alive;
    config.lease = options.lease;
    config.reconnect = Reconnect { give_up_after: options.reconnect, ..Reconnect::default() };
    if let Some(nqn) = &options.host_nqn {
        config.host_nqn.clone_from(nqn);
    }
    if let Some(id) = options.host_id {
        config.host_id = Uuid::from_bytes(id);
    }
    config
}

fn errno_of(status: NvmeStatus) -> i32 {
    let known = [
        (NvmeStatus::CAPACITY_EXCEEDED, errno::ENOSPC),
        (NvmeStatus::LBA_OUT_OF_RANGE, errno::EINVAL),
        (NvmeStatus::INVALID_FIELD, errno::EINVAL),
        (NvmeStatus::NAMESPACE_WRITE_PROTECTED, errno::EROFS),
        (NvmeStatus::INVALID_OPCODE, errno::EOPNOTSUPP),
    ];
    known.iter().find(|(of, _)| status.is(*of)).map_or(errno::EIO, |&(_, errno)| errno)
}

impl Carrier for Tcp {
    fn volume(&self) -> Volume {
        let Namespace { size, lba_bytes, request_bytes_max, uuid, .. } = self.namespace;
        let (largest, uuid) = (request_bytes_max.min(REQUEST_BYTES as u32), Some(uuid).filter(|uuid| !uuid.is_nil()));
        Volume { size, block_bytes: lba_bytes, request_bytes_max: largest, uuid }
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.io.waker()
    }

    fn submit(&mut self, piece: Piece) -> Result<(), Piece> {
        if self.pieces.len() == self.room {
            return Err(piece);
        }
        let buf = match &piece.memory {
            None => None,
            Some(memory) => {
                let Some(mut buf) = self.io.buffers().get(memory.len()) else { return Err(piece) };
                if piece.what == What::Write {
                    memory.copy_to(&mut buf);
                }
                Some(buf)
            }
        };
        let command = match piece.what {
            What::Read => Command::Read,
            What::Write => Command::Write { fua: false },
            What::Flush => Command::Flush,
            What::Trim => Command::Deallocate,
            What::Zero => Command::WriteZeroes { fua: false, deallocate: true },
        };
        let (offset, len) = (piece.offset, piece.len);
        let user = self.pieces.insert(piece) as u64;
        let request = HostRequest { user, command, offset, len, buf };
        self.host.submit(&mut self.io, request).map_err(|_| self.pieces.remove(user as usize))
    }

    fn turn(&mut self, until: Option<Instant>, ended: &mut Vec<PieceEnded>) -> Result<(), Refusal> {
        let wait = until.map_or(Wait::No, |until| {
            let left = until.saturating_duration_since(Instant::now()).as_nanos() as u64;
            Wait::Until(self.io.now_precise().plus_ns(left).min(self.host.next_deadline()))
        });
        turn(&mut self.io, &mut self.host, wait, &mut self.completions);
        let mut over = None;
        while let Some(event) = self.host.next_event() {
            match event {
                Event::Completed(completed) => {
                    let one = self.ended(&completed);
                    ended.push(one);
                }
                Event::Lost(error) => {
                    let says = error.to_string();
                    if says != self.said {
                        (self.tell)(&format!("{says}; connecting again"));
                        self.said = says;
                    }
                }
                Event::Reconnected { resent, outage } => {
                    self.said.clear();
                    (self.tell)(&format!("connected again after {outage:.1?}, {resent} commands sent again"));
                }
                Event::Failed(error) => over = Some(Refusal::from(&error)),
                Event::Closed => over = Some(Refusal::new(errno::ESHUTDOWN, "the session is closed")),
                Event::Resized(namespace) => self.namespace = namespace,
                Event::Ready(_) => {}
            }
        }
        over.map_or(Ok(()), Err)
    }

    fn close(&mut self) {
        let give_up = Instant::now() + CLOSE;
        self.host.close(&mut self.io);
        while !self.host.is_over() && Instant::now() < give_up {
            let soon = self.io.now_precise().plus_ns(10_000_000);
            turn(&mut self.io, &mut self.host, Wait::Until(soon), &mut self.completions);
        }
    }
}
