//! One ring on its reactor: chains become requests, requests that have ended become used entries.
//!
//! ```text
//! running --pop--> requests --on_done--> push --publish--> signal
//!    |  stop                                       (nothing in flight)
//!    +----------> stopping ------------------------------------------> gone
//! ```
//! Invariants: a chain is pushed exactly once, when its last piece has ended; a ring that is gone has nothing in flight, neither
//! requests nor operations on its events.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use ringway_reactor::data::Data;
use ringway_reactor::event::EventFd;
use ringway_reactor::io::{Instant, Io, Op};
use ringway_reactor::shared::{SharedBuf, TableRefs};
use ringway_shm_ring::virtqueue::{Chain, Head, Place, RingError, VirtQueue};
use slab::Slab;
use smallvec::SmallVec;

use super::blk::BlkStatus;
use super::mail::{RingSetup, Stopped};
use super::parse::{self, Piece, Work};
use super::{Cx, token};
use crate::export::Polling;
use crate::limits::REQUEST_BYTES_MAX;
use crate::request::{Command, Done, Request, Status};
use crate::tokens;
use crate::transport::{ConnectionSeen, Peer};

/// Chains taken from one ring in one turn at most, so that a turn has an end and the other rings have theirs.
const CHAINS_PER_TURN: usize = 256;
/// Chains taken before the first of them is looked at: the lines of their headers, which the driver's core has, come meanwhile.
pub(super) const BATCH: usize = 16;
/// Pieces of one request in flight at most: enough to keep every shard at work.
const PIECES_MAX: u32 = 16;

/// How far a ring has come.
enum Phase {
    Running,
    /// Takes no more chains. Nobody waits for the answer where the target itself stops.
    Stopping {
        abandon: bool,
        reply: Option<Sender<Stopped>>,
    },
    /// Its driver has broken it, or its memory has gone: neither looked at nor written to.
    Broken,
    /// Only operations on its events are left.
    Gone,
}

/// A chain in flight.
struct Running {
    head: Head,
    status_at: Place,
    status_addr: u64,
    written: u32,
    /// Pieces sent and not back.
    outstanding: u32,
    worst: Status,
    more: Option<Box<More>>,
}

/// What most requests do not have.
#[derive(Default)]
struct More {
    /// What is not yet sent.
    rest: Option<Work>,
    /// Guest addresses that are written to, where they are logged.
    dirty: Vec<(u64, u64)>,
    /// Where the data of a read in one piece that goes through a buffer belongs.
    bounced: Option<SharedBuf>,
}

enum Slot {
    Request(Running),
    /// One of several pieces of a request.
    Piece {
        request: usize,
        bounced: Option<SharedBuf>,
    },
}

/// A piece that waits for a buffer to go through.
struct Starved {
    slot: usize,
    piece: Piece,
}

/// Plain counters of a ring.
#[derive(Clone, Copy, Default)]
struct Counts {
    chains: u64,
    /// Of data, from the guest and to it.
    bytes_in: u64,
    bytes_out: u64,
}

/// One ring.
pub(super) struct Ring {
    index: usize,
    /// What every device takes without a copy: pieces of memory that start on a multiple and are a multiple long.
    alignment: u32,
    setup: Box<RingSetup>,
    queue: VirtQueue,
    refs: TableRefs,
    phase: Phase,
    slots: Slab<Slot>,
    starved: SmallVec<[Starved; 2]>,
    /// The driver was asked for a kick; until it comes there is nothing to look for.
    armed: bool,
    /// An operation waits for the kick.
    awaiting: bool,
    /// An operation interrupts the driver; and it has to be interrupted again after it.
    signalling: bool,
    signal_again: bool,
    is_listed: bool,
    last_work: Instant,
    counts: Counts,
}

impl Ring {
    pub(super) fn new<I: Io>(index: usize, setup: Box<RingSetup>, io: &I) -> Result<Ring, String> {
        let queue = VirtQueue::new(&setup.config, &setup.memory, setup.inflight.clone(), setup.used_log.clone())
            .map_err(|error| error.to_string())?;
        if queue.left_over() > 0 {
            tracing::info!(export = setup.device.name, requests = queue.left_over(), "requests in flight are resumed");
        }
        Ok(Ring {
            index,
            refs: setup.memory.refs(),
            alignment: io.files().iter().map(|file| file.logical_block).max().unwrap_or(1),
            setup,
            queue,
            phase: Phase::Running,
            slots: Slab::with_capacity(64),
            starved: SmallVec::new(),
            armed: false,
            awaiting: false,
            signalling: false,
            signal_again: false,
            is_listed: false,
            last_work: io.now(),
            counts: Counts::default(),
        })
    }

    /// What there is to know of it.
    pub(super) fn seen(&self) -> ConnectionSeen<'_> {
        let Counts { chains, bytes_in, bytes_out } = self.counts;
        ConnectionSeen {
            number: tokens::connection(tokens::VHOST, self.setup.id.0),
            peer: Peer::Disk(&self.setup.device.name),
            queue: self.setup.number,
            subsystem: &self.setup.device.subsystem,
            commands: chains,
            bytes_received: bytes_in,
            bytes_sent: bytes_out,
            in_flight: self.slots.iter().filter(|(_, slot)| matches!(slot, Slot::Request(_))).count() as u64,
            fabric: None,
        }
    }

    pub(super) fn setup(&self) -> &RingSetup {
        &self.setup
    }

    /// Interrupts the driver by `call` from now on, and once at once: what it was not told before, by this ring or a predecessor that
    /// died, it then looks for itself.
    pub(super) fn set_call<I: Io>(&mut self, io: &mut I, call: Option<Arc<EventFd>>) {
        self.setup.call = call;
        self.signal(io);
    }

    /// As [`Ring::set_call`], for a ring that has just begun.
    pub(super) fn greet<I: Io>(&mut self, io: &mut I) {
        self.signal(io);
    }

    /// Nothing of it is left.
    pub(super) fn is_removable(&self) -> bool {
        matches!(self.phase, Phase::Gone) && !self.awaiting && !self.signalling
    }

    pub(super) fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Gone)
    }

    fn is_polled(&self) -> bool {
        matches!(self.phase, Phase::Running) && (!self.armed || self.setup.kick.is_none())
    }

    /// Takes what the driver has made available. Returns whether there was something.
    pub(super) fn pull<I: Io>(&mut self, cx: &mut Cx<'_, I>, chains: &mut [Chain; BATCH]) -> bool {
        let takes = match self.phase {
            Phase::Running => self.is_polled(),
            // What a predecessor took has to end before the ring can.
            Phase::Stopping { .. } => self.queue.left_over() > 0,
            Phase::Broken | Phase::Gone => false,
        };
        if !takes || !self.starved.is_empty() {
            return false;
        }
        let mut taken = 0;
        while taken < CHAINS_PER_TURN && self.starved.is_empty() {
            let popped = self.pop_some(chains);
            let count = *popped.as_ref().unwrap_or_else(|(count, _)| count);
            for chain in &chains[..count] {
                self.begin(cx, chain);
            }
            taken += count;
            match popped {
                Ok(BATCH) => {}
                Ok(_) => break,
                Err((_, error)) => {
                    self.break_off(cx, error);
                    return true;
                }
            }
        }
        if taken > 0 {
            self.last_work = cx.io.now();
            self.check_memory();
            cx.stats.chains += taken as u64;
            self.counts.chains += taken as u64;
            return true;
        }
        if self.rests(cx.io.now()) {
            return !self.arm(cx.io);
        }
        false
    }

    /// Takes chains, how many; and those before the one that the driver has broken it with.
    fn pop_some(&mut self, chains: &mut [Chain; BATCH]) -> Result<usize, (usize, RingError)> {
        for (count, chain) in chains.iter_mut().enumerate() {
            if matches!(self.phase, Phase::Stopping { .. }) && self.queue.left_over() == 0 {
                return Ok(count);
            }
            match self.queue.pop(&self.setup.memory, chain) {
                Ok(true) => parse::prefetch(chain, &self.setup.memory),
                Ok(false) => return Ok(count),
                Err(error) => return Err((count, error)),
            }
        }
        Ok(BATCH)
    }

    /// Whether to wait for a kick rather than look again and again.
    fn rests(&self, now: Instant) -> bool {
        match self.setup.device.polling {
            Polling::Busy => false,
            Polling::Adaptive => now.since_ns(self.last_work) > super::REST_NS,
            Polling::Interrupt => true,
        }
    }

    /// Asks for a kick. `false`: there is something already, or the driver never kicks.
    pub(super) fn arm<I: Io>(&mut self, io: &mut I) -> bool {
        if self.armed || !matches!(self.phase, Phase::Running) {
            return true;
        }
        let Some(kick) = &self.setup.kick else { return false };
        if self.setup.device.polling == Polling::Busy || !self.starved.is_empty() {
            return false;
        }
        if !self.queue.arm() {
            self.queue.disarm();
            return false;
        }
        self.armed = true;
        if !self.awaiting {
            self.awaiting = true;
            io.submit(token::kick(self.index), Op::WaitEvent { event: Arc::clone(kick) });
        }
        true
    }

    /// The driver has kicked, or the wait was given up. A stop may have come in between.
    pub(super) fn kicked(&mut self) {
        self.awaiting = false;
        if std::mem::take(&mut self.armed) && matches!(self.phase, Phase::Running) {
            self.queue.disarm();
        }
    }

    fn begin<I: Io>(&mut self, cx: &mut Cx<'_, I>, chain: &Chain) {
        let Some((status_at, status_addr)) = parse::status_place(chain, &self.setup.memory) else {
            // It cannot be told how its request ended; it gets its memory back.
            cx.stats.malformed += 1;
            self.queue.push(chain.head(), 0);
            self.list(cx);
            return;
        };
        let running = Running {
            head: chain.head(),
            status_at,
            status_addr,
            written: chain.writable_bytes().min(u64::from(u32::MAX)) as u32,
            outstanding: 0,
            worst: Status::Success,
            more: None,
        };
        let volume = cx.directory.volume(self.setup.device.volume);
        match parse::work(chain, (&self.setup.memory, &mut self.refs), &self.setup.device, volume) {
            Ok(work) => {
                let mut running = running;
                if self.setup.log.is_some() {
                    let dirty = parse::written_ranges(chain);
                    running.more = Some(Box::new(More { dirty, ..More::default() }));
                }
                let slot = self.slots.insert(Slot::Request(running));
                self.send(cx, slot, work);
            }
            Err(status) => {
                cx.stats.malformed += u64::from(status != BlkStatus::Ok);
                self.complete(cx, &running, status);
            }
        }
    }

    /// Sends a request that has just begun.
    fn send<I: Io>(&mut self, cx: &mut Cx<'_, I>, slot: usize, mut work: Work) {
        match work.take_whole() {
            Some(piece) => {
                self.request(slot).outstanding = 1;
                self.send_piece(cx, slot, piece);
            }
            None => self.send_pieces(cx, slot, work),
        }
    }

    /// Sends of a request as many pieces as may be in flight at a time.
    fn send_pieces<I: Io>(&mut self, cx: &mut Cx<'_, I>, slot: usize, mut work: Work) {
        while self.request(slot).outstanding < PIECES_MAX {
            let Some(piece) = work.take_piece(REQUEST_BYTES_MAX) else { break };
            self.request(slot).outstanding += 1;
            let part = self.slots.insert(Slot::Piece { request: slot, bounced: None });
            self.send_piece(cx, part, piece);
        }
        if !work.is_empty() {
            self.more(slot).rest = Some(work);
        }
    }

    fn request(&mut self, slot: usize) -> &mut Running {
        match &mut self.slots[slot] {
            Slot::Request(running) => running,
            Slot::Piece { .. } => unreachable!("a piece is no request"),
        }
    }

    fn more(&mut self, slot: usize) -> &mut More {
        self.request(slot).more.get_or_insert_default()
    }

    fn send_piece<I: Io>(&mut self, cx: &mut Cx<'_, I>, slot: usize, mut piece: Piece) {
        let data = match piece.data.take() {
            None => None,
            Some(shared) if shared.is_aligned(self.alignment) => Some(Data::Shared(shared)),
            Some(shared) => {
                let Some(mut buf) = cx.io.buffers().get(shared.len()) else {
                    cx.stats.waited_for_buffer += 1;
                    piece.data = Some(shared);
                    self.starved.push(Starved { slot, piece });
                    return;
                };
                cx.stats.bytes_copied += shared.len() as u64;
                if piece.command == Command::Read {
                    match &mut self.slots[slot] {
                        Slot::Piece { bounced, .. } => *bounced = Some(shared),
                        Slot::Request(running) => running.more.get_or_insert_default().bounced = Some(shared),
                    }
                } else {
                    shared.copy_to(0, &mut buf);
                }
                Some(Data::Own(buf))
            }
        };
        let counted =
            if piece.command == Command::Read { &mut self.counts.bytes_out } else { &mut self.counts.bytes_in };
        *counted += data.as_ref().map_or(0, Data::len) as u64;
        let device = &self.setup.device;
        let request = Request {
            association: device.association,
            volume: device.volume,
            command: piece.command,
            offset: piece.offset,
            len: piece.len,
            data,
        };
        cx.requests.push((tokens::request(tokens::VHOST, self.index, slot), request));
    }

    /// Buffers may have come free.
    pub(super) fn retry<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        for Starved { slot, piece } in std::mem::take(&mut self.starved) {
            self.send_piece(cx, slot, piece);
        }
    }

    pub(super) fn is_starved(&self) -> bool {
        !self.starved.is_empty()
    }

    /// A request of this ring has ended.
    pub(super) fn on_done<I: Io>(&mut self, cx: &mut Cx<'_, I>, slot: usize, done: Done) {
        let (request, bounced) = match &mut self.slots[slot] {
            Slot::Request(running) => (slot, running.more.as_mut().and_then(|more| more.bounced.take())),
            Slot::Piece { request, bounced } => (*request, bounced.take()),
        };
        if request != slot {
            self.slots.remove(slot);
        }
        if let (Some(mut shared), Some(data)) = (bounced, &done.data)
            && done.status == Status::Success
        {
            data.copy_to_peer(&mut shared);
        }
        if done.status != Status::Success {
            self.check_memory();
        }
        if let Some(Data::Shared(shared)) = done.data {
            self.refs.take_back(shared);
        }
        let running = self.request(request);
        running.outstanding -= 1;
        running.worst = running.worst.and(done.status);
        let worst = running.worst;
        if worst == Status::Success
            && let Some(rest) = running.more.as_mut().and_then(|more| more.rest.take())
        {
            self.send_pieces(cx, request, rest);
            return;
        }
        if running.outstanding == 0 {
            let Slot::Request(running) = self.slots.remove(request) else { unreachable!("looked at above") };
            let status = if worst == Status::Success { BlkStatus::Ok } else { BlkStatus::IoError };
            self.complete(cx, &running, status);
        }
    }

    fn complete<I: Io>(&mut self, cx: &mut Cx<'_, I>, running: &Running, status: BlkStatus) {
        self.list(cx);
        if matches!(self.phase, Phase::Broken | Phase::Stopping { abandon: true, .. }) {
            return;
        }
        let memory = self.setup.memory.memory(running.status_at);
        memory.write(running.status_at.offset as usize, &[status as u8]);
        if let Some(log) = &self.setup.log {
            log.mark(running.status_addr, 1);
            for (addr, len) in running.more.iter().flat_map(|more| &more.dirty) {
                log.mark(*addr, *len);
            }
        }
        self.queue.push(running.head, running.written);
        cx.stats.completed += 1;
    }

    /// Has [`Ring::flush`] called at the end of this turn.
    fn list<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        if !self.is_listed {
            self.is_listed = true;
            cx.dirty.push(self.index);
        }
    }

    /// Shows the driver what has ended, and ends the ring where that was the last.
    pub(super) fn flush<I: Io>(&mut self, io: &mut I) {
        self.is_listed = false;
        if matches!(self.phase, Phase::Broken | Phase::Gone) {
            self.finish_if_idle(io);
            return;
        }
        if self.queue.is_dirty() && self.queue.publish() {
            self.signal(io);
        }
        self.finish_if_idle(io);
    }

    fn signal<I: Io>(&mut self, io: &mut I) {
        let Some(call) = &self.setup.call else { return };
        if self.signalling {
            self.signal_again = true;
            return;
        }
        self.signalling = true;
        io.submit(token::call(self.index), Op::Signal { event: Arc::clone(call) });
    }

    pub(super) fn signalled<I: Io>(&mut self, io: &mut I) {
        self.signalling = false;
        if std::mem::take(&mut self.signal_again) && !self.is_gone() {
            self.signal(io);
        }
    }

    /// Takes no more chains. The reply comes when nothing is in flight.
    pub(super) fn stop<I: Io>(&mut self, io: &mut I, abandon: bool, reply: Option<Sender<Stopped>>) {
        match self.phase {
            Phase::Running => self.phase = Phase::Stopping { abandon, reply },
            // Asked again by somebody else: the connection's end overtakes the target's.
            Phase::Stopping { reply: ref mut waiting, .. } => {
                if reply.is_some() {
                    *waiting = reply;
                }
            }
            Phase::Broken => self.phase = Phase::Stopping { abandon: true, reply },
            Phase::Gone => {
                if let Some(reply) = reply {
                    let _ = reply.send(Stopped { base: self.queue.base() });
                }
            }
        }
        self.finish_if_idle(io);
    }

    fn finish_if_idle<I: Io>(&mut self, io: &mut I) {
        let Phase::Stopping { abandon, reply } = &mut self.phase else { return };
        // An abandoned one leaves the rest to its successor.
        if !self.slots.is_empty() || !(*abandon || (self.queue.left_over() == 0 && !self.queue.is_dirty())) {
            return;
        }
        if let Some(reply) = reply.take() {
            // Nobody waits any more if its thread was stopped.
            let _ = reply.send(Stopped { base: self.queue.base() });
        }
        self.phase = Phase::Gone;
        if let (true, Some(kick)) = (self.awaiting, &self.setup.kick) {
            io.forget_event(kick);
        }
    }

    /// Whether it has ended, or will not while its driver does nothing.
    pub(super) fn is_quiet(&self) -> bool {
        match self.phase {
            Phase::Gone => true,
            Phase::Broken => self.slots.is_empty(),
            Phase::Running | Phase::Stopping { .. } => false,
        }
    }

    fn check_memory(&mut self) {
        if self.setup.memory.is_faulted() && !matches!(self.phase, Phase::Broken | Phase::Gone) {
            self.setup.device.hang_up("its guest's memory has shrunk under us");
            if matches!(self.phase, Phase::Running) {
                self.phase = Phase::Broken;
            }
        }
    }

    fn break_off<I: Io>(&mut self, cx: &mut Cx<'_, I>, error: RingError) {
        cx.stats.broken += 1;
        self.check_memory();
        tracing::warn!(export = self.setup.device.name, %error, "a ring is broken and not served until it is started anew");
        if let Some(event) = &self.setup.error {
            // Nothing depends on when it arrives, so that nobody waits for its end.
            cx.io.submit(token::error(), Op::Signal { event: Arc::clone(event) });
        }
        if matches!(self.phase, Phase::Running) {
            self.phase = Phase::Broken;
        }
        self.list(cx);
    }
}
