//! Commands: checked, put on a queue, and ended.

use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Instant, Io};
use zerocopy::IntoBytes;

use super::api::{AdminRequest, Completed, Event, HostRequest, Outcome};
use super::association::{Half, HalfEnded, Host, IoOwner, Owner, Phase};
use super::error::{HostError, HostErrorKind};
use super::slot::Data;
use super::start::NSID;
use crate::request::Command;
use crate::wire::command::{Fuse, Sqe, nvm};
use crate::wire::completion::Cqe;
use crate::wire::dsm::DsmRange;

/// Commands that wait for room or for a connection, in multiples of what the queues hold.
const WAITING_FACTOR: usize = 2;

impl Host {
    pub(super) fn capacity(&self) -> usize {
        self.queues[1..].iter().map(|queue| queue.depth()).sum::<usize>()
    }

    /// Takes a command. It goes out with the next [`Host::turn`]; while there is no connection it waits.
    ///
    /// # Errors
    /// Gives the request back, with the reason, if the host is over, if it cannot be made as it is, or if too many wait.
    pub fn submit<I: Io>(&mut self, io: &mut I, request: HostRequest) -> Result<(), (HostRequest, HostError)> {
        if let Err(error) = self.check(&request) {
            return Err((request, error));
        }
        if self.is_ready() && self.waiting.is_empty() {
            match self.place(io, request) {
                Ok(()) => return Ok(()),
                Err(request) => self.waiting.push_back(request),
            }
            return Ok(());
        }
        if self.waiting.len() >= WAITING_FACTOR * self.capacity() {
            let context = format!("{}: {} commands wait already", self.config.name, self.waiting.len());
            return Err((request, HostError::new(HostErrorKind::Invalid, context)));
        }
        self.waiting.push_back(request);
        Ok(())
    }

    fn check(&self, request: &HostRequest) -> Result<(), HostError> {
        let invalid =
            |why: String| Err(HostError::new(HostErrorKind::Invalid, format!("{:?}: {why}", request.command)));
        if self.is_over() || matches!(self.phase, Phase::Closing) {
            return Err(HostError::new(HostErrorKind::Closed, format!("{}: the host is closed", self.config.name)));
        }
        let Some(namespace) = &self.namespace else { return invalid("the volume is not known yet".into()) };
        let lba = u64::from(namespace.lba_bytes);
        if !request.offset.is_multiple_of(lba) || !u64::from(request.len).is_multiple_of(lba) {
            return invalid(format!("{} bytes at {} are not whole blocks of {lba}", request.len, request.offset));
        }
        if (request.len == 0) != (request.command == Command::Flush) {
            return invalid("a flush has no range, everything else has one".into());
        }
        let buffer = match request.command {
            Command::Read | Command::Write { .. } | Command::Compare => request.len as usize,
            Command::CompareAndWrite { .. } => 2 * request.len as usize,
            Command::Flush | Command::WriteZeroes { .. } | Command::Deallocate => 0,
        };
        if request.buf.as_ref().map_or(0, |buf| buf.len()) != buffer {
            return invalid(format!("needs a buffer of {buffer} bytes"));
        }
        if buffer > 0 && request.len > namespace.request_bytes_max {
            return invalid(format!("{} bytes, the target takes {}", request.len, namespace.request_bytes_max));
        }
        if u64::from(request.len) / lba > 1 << 16 {
            return invalid(format!("{} bytes are more than 65536 blocks of {lba}", request.len));
        }
        Ok(())
    }

    /// Sends a command to the controller.
    ///
    /// # Errors
    /// Gives the request back if there is no connection or no room.
    pub fn submit_admin<I: Io>(&mut self, io: &mut I, request: AdminRequest) -> Result<(), AdminRequest> {
        // Some entries stay free for keep-alive and for what an event makes necessary.
        if !self.is_ready() || self.queues[0].room() < 8 {
            return Err(request);
        }
        let data = request.buf.map_or(Data::None, Data::In);
        self.submit_to(io, 0, request.sqe, data, Owner::Admin { user: request.user });
        Ok(())
    }

    pub(super) fn submit_to<I: Io>(&mut self, io: &I, queue: usize, sqe: Sqe, data: Data, owner: Owner) {
        let now = io.now();
        let deadline = match owner {
            Owner::EventRequest => Instant::NEVER,
            _ => now.plus_ns(self.config.command_timeout.as_nanos() as u64),
        };
        self.queues[queue].submit(sqe, data, owner, now, deadline);
    }

    /// Puts a request on a queue; gives it back if none has room, or no buffer is free for it.
    pub(super) fn place<I: Io>(&mut self, io: &mut I, mut request: HostRequest) -> Result<(), HostRequest> {
        let fused = matches!(request.command, Command::CompareAndWrite { .. });
        let needed = if fused { 2 } else { 1 };
        let count = usize::from(self.queues_granted);
        let found =
            (0..count).map(|n| 1 + (self.next_queue + n) % count).find(|&queue| self.queues[queue].room() >= needed);
        let Some(queue) = found else { return Err(request) };
        let namespace = self.namespace.as_ref().expect("a ready host knows its volume");
        let sqe = encode(request.command, request.offset, request.len, namespace.lba_bytes);
        let owner = IoOwner {
            user: request.user,
            command: request.command,
            offset: request.offset,
            len: request.len,
            half: Half::Whole,
        };
        let in_capsule = request.len as usize <= self.in_capsule_max;
        let data = match request.command {
            Command::Read => Data::In(request.buf.take().expect("checked")),
            Command::Write { .. } | Command::Compare => {
                Data::Out { buf: request.buf.take().expect("checked"), in_capsule }
            }
            Command::Flush | Command::WriteZeroes { .. } => Data::None,
            Command::Deallocate => {
                let Some(mut ranges) = io.buffers().get(size_of::<DsmRange>()) else { return Err(request) };
                let lba = namespace.lba_bytes;
                let range = DsmRange::new(request.offset / u64::from(lba), request.len / lba);
                ranges.copy_from_slice(range.as_bytes());
                Data::Out { buf: ranges, in_capsule: true }
            }
            Command::CompareAndWrite { fua } => {
                self.place_pair(io, queue, request, fua, in_capsule);
                self.next_queue = queue;
                return Ok(());
            }
        };
        self.submit_to(io, queue, sqe, data, Owner::Io(owner));
        self.next_queue = queue;
        Ok(())
    }

    fn place_pair<I: Io>(&mut self, io: &mut I, queue: usize, request: HostRequest, fua: bool, in_capsule: bool) {
        self.pairs += 1;
        let pair = self.pairs;
        let HostRequest { user, command, offset, len, buf } = request;
        let lba = self.namespace.as_ref().expect("a ready host knows its volume").lba_bytes;
        let mut compare = buf.expect("checked");
        let write = compare.split_off(len as usize);
        let owner = |half| Owner::Io(IoOwner { user, command, offset, len, half });
        let first = encode(Command::Compare, offset, len, lba).with_fuse(Fuse::First);
        let second = encode(Command::Write { fua }, offset, len, lba).with_fuse(Fuse::Second);
        self.submit_to(io, queue, first, Data::Out { buf: compare, in_capsule }, owner(Half::First { pair }));
        self.submit_to(io, queue, second, Data::Out { buf: write, in_capsule }, owner(Half::Second { pair }));
    }

    pub(super) fn complete(&mut self, user: u64, outcome: Outcome, buf: Option<Buf>, result: u32) {
        self.events.push_back(Event::Completed(Completed { user, outcome, buf, result }));
    }

    pub(super) fn on_finished<I: Io>(&mut self, io: &mut I, queue: usize, cqe: Cqe, buf: Option<Buf>, owner: Owner) {
        match owner {
            Owner::Start => self.on_start_finished(io, queue, &cqe, buf),
            Owner::Notice(notice) => self.on_notice_finished(io, notice, &cqe, buf),
            Owner::EventRequest => self.on_event(io, &cqe),
            Owner::KeepAlive if cqe.nvme_status().is_success() => {}
            Owner::KeepAlive => {
                let context = format!("{}: keep-alive was refused: {}", self.config.name, cqe.nvme_status());
                self.break_down(io, HostError::new(HostErrorKind::Disconnected, context));
            }
            Owner::Admin { user } => self.complete(user, outcome(&cqe), buf, cqe.result.get() as u32),
            Owner::Io(io) => self.on_io_finished(io, cqe, buf),
        }
    }

    pub(super) fn on_io_finished(&mut self, io: IoOwner, cqe: Cqe, buf: Option<Buf>) {
        match io.half {
            Half::Whole => {
                let buf = if io.command == Command::Deallocate { None } else { buf };
                self.complete(io.user, outcome(&cqe), buf, cqe.result.get() as u32);
            }
            half => self.on_half(io, half, cqe, buf),
        }
    }

    pub(super) fn on_half(&mut self, io: IoOwner, half: Half, cqe: Cqe, buf: Option<Buf>) {
        let (Half::First { pair } | Half::Second { pair }) = half else { unreachable!("whole commands are no halves") };
        let other = self.halves.iter().position(|ended| ended.pair == pair).map(|at| self.halves.swap_remove(at));
        let Some(other) = other else { return self.halves.push(HalfEnded { pair, cqe: Some(cqe), buf }) };
        let other_cqe = other.cqe.expect("an answered half has its completion");
        let (first, second) = if matches!(half, Half::First { .. }) { (cqe, other_cqe) } else { (other_cqe, cqe) };
        let said = if first.nvme_status().is_success() { second } else { first };
        let buf = join_halves(half, buf, other.buf);
        self.complete(io.user, outcome(&said), buf, said.result.get() as u32);
    }
}

pub(super) fn join_halves(half: Half, buf: Option<Buf>, other: Option<Buf>) -> Option<Buf> {
    let (mut first, second) = if matches!(half, Half::First { .. }) { (buf?, other?) } else { (other?, buf?) };
    first.join(second);
    Some(first)
}

pub(super) fn outcome(cqe: &Cqe) -> Outcome {
    if cqe.nvme_status().is_success() { Outcome::Success } else { Outcome::Failed(cqe.nvme_status()) }
}

/// The submission entry of a request; its data pointer is filled in when the capsule is written.
fn encode(command: Command, offset: u64, len: u32, lba_bytes: u32) -> Sqe {
    let on_blocks = |opcode| Sqe::on_blocks(opcode, NSID, offset / u64::from(lba_bytes), len / lba_bytes);
    let with_fua = |sqe: Sqe, fua: bool| if fua { sqe.with_fua() } else { sqe };
    match command {
        Command::Flush => Sqe::flush(NSID),
        Command::Deallocate => Sqe::deallocate(NSID, 1),
        Command::Read => on_blocks(nvm::READ),
        Command::Compare => on_blocks(nvm::COMPARE),
        Command::Write { fua } | Command::CompareAndWrite { fua } => with_fua(on_blocks(nvm::WRITE), fua),
        Command::WriteZeroes { fua, deallocate } => {
            let sqe = with_fua(on_blocks(nvm::WRITE_ZEROES), fua);
            if deallocate { sqe.with_deallocate() } else { sqe }
        }
    }
}
