//! Requests of one connection, from header to answer.
//!
//! ```text
//! header --> slot --pieces, as buffers allow--> node --on_done--> slot --last piece--> answered, slot free
//!    \--refused: its data is read and dropped--> answered
//! ```
//! A slot is the request's permit: it is taken with the header and given back with the last word of the answer. A piece has one
//! buffer of at most [`REQUEST_BYTES_MAX`]; pieces of one request run side by side. The data of a write is received piece by piece, in order.
//! Pressure never fails a request: without a buffer it waits, and the socket with it.

use ringway_reactor::data::Data;
use ringway_reactor::io::Io;

use super::answer::Ready;
use super::connection::{Connection, Phase, REQUESTS_MAX, Serving};
use super::wire::{Asked, Kind, PAYLOAD_MAX, command_flag, errno, error_of};
use super::{Cx, TransportEvent};
use crate::limits::{BLOCK, DEALLOCATE_BYTES_MAX, REQUEST_BYTES_MAX, STRIPE, WRITE_ZEROES_BYTES_MAX};
use crate::request::{Command, Done, Request, Status};
use crate::tokens;
use crate::transport::stream::Inflow;

/// Devices transfer multiples of this in place.
const SECTOR: u64 = 512;

/// How the data of a read goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// None does.
    Nothing,
    /// Piece by piece, as they end.
    Chunks,
    /// All of it at once, when all of it is there.
    Whole,
    /// In order, beginning when the first is there: what fails later can only end the connection (proto.md, "Simple reply message").
    Stream,
}

/// One request and its permit.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) asked: Asked,
    pub(super) shape: Shape,
    /// Bytes for which pieces were sent.
    cursor: u32,
    /// Pieces sent and not back.
    outstanding: u32,
    /// The first error, and where.
    pub(super) failed: Option<(u32, u64)>,
    /// Of [`Shape::Whole`] and [`Shape::Stream`]: what is there and cannot go yet, by its place.
    pub(super) early: Vec<(u32, Data)>,
    /// Of [`Shape::Stream`]: bytes that are on their way.
    pub(super) sent: u32,
    pub(super) begun: bool,
    /// What it has changed is being made durable.
    flushing: bool,
    is_queued: bool,
}

/// A piece of a request, at the shards.
#[derive(Clone, Copy, Debug)]
pub(super) struct PieceOf {
    slot: usize,
    at: u32,
    len: u32,
    command: Command,
    /// Bytes of buffer.
    held: u32,
}

/// A write whose data is coming.
#[derive(Clone, Copy, Debug)]
pub(super) enum Writing {
    /// For this request.
    Into { slot: usize, at: u32 },
    /// Of a request that is refused: so much is dropped, then this is answered.
    Dropping { left: u32, cookie: u64, error: u32 },
}

/// Whether another piece could be sent.
enum Issued {
    Yes,
    /// No buffer, or too much is held.
    Wait,
    /// There is none for now.
    NoMore,
}

/// Bytes of the next piece of `left` bytes at `offset`: as much as fits a buffer, but what is not aligned to a device's block is
/// split off, so that the rest starts on one, in its buffer as well.
fn cut(offset: u64, left: u32) -> u32 {
    let len = left.min(REQUEST_BYTES_MAX);
    let within = offset % BLOCK;
    if within == 0 {
        return if u64::from(len) % SECTOR != 0 && u64::from(len) > BLOCK {
            (u64::from(len) / BLOCK * BLOCK) as u32
        } else {
            len
        };
    }
    let crosses = offset % STRIPE + u64::from(len) > STRIPE;
    if (offset | u64::from(len)).is_multiple_of(SECTOR) && !crosses { len } else { len.min((BLOCK - within) as u32) }
}

impl Connection {
    /// Whether another request may be begun.
    pub(super) fn has_room(&self) -> bool {
        self.requests.len() < REQUESTS_MAX && self.issuing.is_empty() && self.unsent.is_empty()
    }

    /// Whether a piece may hold so many bytes. The first always may.
    fn may_hold<I>(&self, cx: &Cx<'_, I>, bytes: usize) -> bool {
        let held = self.bytes_held + self.bytes_leaving();
        held == 0 || held + bytes <= cx.config.connection_bytes_max
    }

    /// A request has come.
    pub(super) fn begin<I: Io>(&mut self, cx: &mut Cx<'_, I>, serving: Serving, asked: Asked) {
        cx.stats.came(&asked);
        let agreed = serving.agreed;
        let refusal = match cx.directory.volume(serving.volume) {
            None => Some(errno::ESHUTDOWN),
            Some(record) => asked.refusal(record.size, serving.read_only, agreed.allocation),
        };
        // A chunk holds all of it: more than a buffer would be cut.
        let too_long = asked.kind == Kind::Read && asked.has(command_flag::DF) && asked.len > REQUEST_BYTES_MAX;
        let refusal = refusal.or(too_long.then_some(errno::EOVERFLOW));
        if let Some(error) = refusal {
            cx.stats.malformed += 1;
            cx.stats.failed(&asked);
            return self.refuse(cx, serving, asked, error);
        }
        cx.stats.begun(&asked);
        match asked.kind {
            Kind::Disconnect => {
                self.leaving = true;
                return self.leave_if_settled(cx);
            }
            // Nothing is kept in memory that could be read ahead of time.
            Kind::Cache => return self.say(cx, Ready::Simple { error: 0, cookie: asked.cookie }),
            Kind::Flush => {}
            _ if asked.len == 0 => return self.say_done(cx, serving, &asked),
            _ => {}
        }
        let shape = match asked.kind {
            Kind::Read if agreed.structured && !asked.has(command_flag::DF) => Shape::Chunks,
            Kind::Read if asked.len <= REQUEST_BYTES_MAX => Shape::Whole,
            Kind::Read => Shape::Stream,
            _ => Shape::Nothing,
        };
        let slot = self.requests.insert(Slot {
            asked,
            shape,
            cursor: 0,
            outstanding: 0,
            failed: None,
            early: Vec::new(),
            sent: 0,
            begun: false,
            flushing: false,
            is_queued: false,
        });
        match asked.kind {
            Kind::Write => {
                self.writing = Some(Writing::Into { slot, at: 0 });
                self.supply(cx);
            }
            Kind::BlockStatus => self.ask_allocation(cx, serving, slot),
            _ => {
                self.queue(slot);
                self.issue(cx);
            }
        }
    }

    fn refuse<I: Io>(&mut self, cx: &mut Cx<'_, I>, serving: Serving, asked: Asked, error: u32) {
        let cookie = asked.cookie;
        if asked.kind == Kind::Write && asked.len > 0 {
            self.writing = Some(Writing::Dropping { left: asked.len, cookie, error });
            self.supply(cx);
        } else {
            self.say_error(cx, serving, &asked, error, None);
        }
    }

    /// A request that ended well, without data.
    fn say_done<I: Io>(&mut self, cx: &mut Cx<'_, I>, serving: Serving, asked: &Asked) {
        let cookie = asked.cookie;
        let structured = asked.kind == Kind::Read && serving.agreed.structured;
        self.say(cx, if structured { Ready::Nothing { cookie } } else { Ready::Simple { error: 0, cookie } });
    }

    pub(super) fn say_error<I: Io>(
        &mut self,
        cx: &mut Cx<'_, I>,
        serving: Serving,
        asked: &Asked,
        error: u32,
        offset: Option<u64>,
    ) {
        let cookie = asked.cookie;
        let structured = serving.agreed.structured && matches!(asked.kind, Kind::Read | Kind::BlockStatus);
        self.say(cx, if structured { Ready::Error { cookie, error, offset } } else { Ready::Simple { error, cookie } });
    }

    // ---- data of writes

    /// Gives the next data of a write somewhere to go. `false`: there is nowhere now.
    pub(super) fn supply<I: Io>(&mut self, cx: &mut Cx<'_, I>) -> bool {
        let discard = |left: u32| Inflow {
            slot: None,
            buf: None,
            start: 0,
            at: 0,
            end: left as usize,
            digest: false,
            last: false,
        };
        let (slot, at) = match self.writing {
            None => return true,
            Some(Writing::Dropping { left, .. }) => {
                self.inflow = Some(discard(left.min(PAYLOAD_MAX)));
                return true;
            }
            Some(Writing::Into { slot, at }) => (slot, at),
        };
        let request = &self.requests[slot];
        let Asked { offset, len, .. } = request.asked;
        if request.failed.is_some() {
            // The rest is nobody's.
            self.inflow = Some(discard(len - at));
            return true;
        }
        let piece = cut(offset + u64::from(at), len - at);
        let bytes = piece as usize;
        let room = *cx.receiving_bytes == 0 || *cx.receiving_bytes + bytes <= cx.config.receiving_bytes_max;
        let buf = if room && self.may_hold(cx, bytes) { cx.io.buffers().get(bytes) } else { None };
        let Some(buf) = buf else {
            if self.may_hold(cx, bytes) {
                *cx.pressed = cx.ticks;
            }
            cx.stats.waited_for_buffer += 1;
            self.starve(cx);
            return false;
        };
        self.bytes_held += bytes;
        *cx.receiving_bytes += bytes;
        self.owing_since = Some(cx.ticks);
        self.inflow =
            Some(Inflow { slot: Some(slot), buf: Some(buf), start: 0, at: 0, end: bytes, digest: false, last: false });
        true
    }

    /// The data of a piece is here, or what is dropped.
    pub(super) fn data_arrived<I: Io>(&mut self, cx: &mut Cx<'_, I>, serving: Serving, inflow: Inflow) {
        let count = inflow.end as u32;
        match self.writing.take().expect("data comes for a write") {
            Writing::Dropping { left, cookie, error } if left > count => {
                self.writing = Some(Writing::Dropping { left: left - count, cookie, error });
            }
            Writing::Dropping { cookie, error, .. } => self.say(cx, Ready::Simple { error, cookie }),
            Writing::Into { slot, at } => {
                let whole = at + count == self.requests[slot].asked.len;
                if !whole {
                    self.writing = Some(Writing::Into { slot, at: at + count });
                }
                match inflow.buf {
                    Some(buf) => {
                        *cx.receiving_bytes -= count as usize;
                        self.owing_since = None;
                        let fua = self.requests[slot].asked.has(command_flag::FUA);
                        self.requests[slot].cursor += count;
                        let piece = PieceOf { slot, at, len: count, command: Command::Write { fua }, held: count };
                        self.send(cx, serving, piece, Some(buf.into()));
                    }
                    None => {
                        self.requests[slot].cursor += count;
                        self.finish_if_done(cx, slot);
                    }
                }
            }
        }
        if self.writing.is_some() {
            self.supply(cx);
        }
    }

    // ---- pieces

    fn queue(&mut self, slot: usize) {
        if !std::mem::replace(&mut self.requests[slot].is_queued, true) {
            self.issuing.push_back(slot);
        }
    }

    /// Sends pieces of those who have some, in order, as long as there are buffers.
    pub(super) fn issue<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        let Phase::Open(serving) = self.phase else { return };
        while let Some(&slot) = self.issuing.front() {
            match self.issue_one(cx, serving, slot) {
                Issued::Yes => {}
                Issued::NoMore => {
                    self.issuing.pop_front();
                    self.requests[slot].is_queued = false;
                }
                Issued::Wait => return self.starve(cx),
            }
        }
    }

    fn issue_one<I: Io>(&mut self, cx: &mut Cx<'_, I>, serving: Serving, slot: usize) -> Issued {
        let Slot { asked, cursor, outstanding, ref failed, flushing, .. } = self.requests[slot];
        let left = asked.len.saturating_sub(cursor);
        let offset = asked.offset.saturating_add(u64::from(cursor));
        let fua = asked.has(command_flag::FUA);
        if asked.kind == Kind::Flush || flushing {
            if outstanding == 0 {
                self.send(cx, serving, PieceOf { slot, at: 0, len: 0, command: Command::Flush, held: 0 }, None);
            }
            return Issued::NoMore;
        }
        if left == 0 || failed.is_some() {
            return Issued::NoMore;
        }
        let deallocates = !asked.has(command_flag::NO_HOLE);
        let (command, len, held) = match asked.kind {
            Kind::Read => (Command::Read, cut(offset, left), true),
            Kind::WriteZeroes if !deallocates => (Command::Write { fua }, cut(offset, left), true),
            // One after the other: each is spread over all shards.
            _ if outstanding > 0 => return Issued::NoMore,
            Kind::WriteZeroes => {
                (Command::WriteZeroes { fua, deallocate: true }, left.min(WRITE_ZEROES_BYTES_MAX), false)
            }
            Kind::Trim => (Command::Deallocate, left.min(DEALLOCATE_BYTES_MAX), false),
            kind => unreachable!("{kind:?} has no pieces"),
        };
        let mut data = None;
        if held {
            let buf = if self.may_hold(cx, len as usize) { cx.io.buffers().get(len as usize) } else { None };
            let Some(mut buf) = buf else {
                if self.may_hold(cx, len as usize) {
                    *cx.pressed = cx.ticks;
                }
                cx.stats.waited_for_buffer += 1;
                return Issued::Wait;
            };
            if asked.kind == Kind::WriteZeroes {
                buf.fill(0);
            }
            self.bytes_held += len as usize;
            data = Some(buf.into());
        }
        self.requests[slot].cursor += len;
        let held = if held { len } else { 0 };
        self.send(cx, serving, PieceOf { slot, at: cursor, len, command, held }, data);
        Issued::Yes
    }

    fn send<I>(&mut self, cx: &mut Cx<'_, I>, serving: Serving, piece: PieceOf, data: Option<Data>) {
        let request = &mut self.requests[piece.slot];
        request.outstanding += 1;
        let offset = if piece.command == Command::Flush { 0 } else { request.asked.offset + u64::from(piece.at) };
        let request = Request {
            association: serving.association,
            volume: serving.volume,
            command: piece.command,
            offset,
            len: piece.len,
            data,
        };
        self.in_flight += 1;
        let number = self.pieces.insert(piece);
        cx.out.push(TransportEvent::Request { id: tokens::request(tokens::NBD, self.index, number), request });
    }

    /// A piece has ended.
    pub(super) fn on_done<I: Io>(&mut self, cx: &mut Cx<'_, I>, piece: usize, done: Done) {
        self.in_flight -= 1;
        let piece = self.pieces.remove(piece);
        if self.phase == Phase::Closing {
            return;
        }
        let slot = piece.slot;
        let request = &mut self.requests[slot];
        request.outstanding -= 1;
        let offset = request.asked.offset.saturating_add(u64::from(piece.at));
        if done.status != Status::Success {
            request.failed = request.failed.or(Some((error_of(done.status, piece.command), offset)));
        }
        let data = if piece.command == Command::Read && request.failed.is_none() { done.data } else { None };
        match data {
            Some(data) => self.deliver(cx, slot, piece.at, data),
            None => self.bytes_held -= piece.held as usize,
        }
        if self.requests.contains(slot) {
            self.finish_if_done(cx, slot);
        }
        self.leave_if_settled(cx);
        if self.phase != Phase::Closing {
            self.resume(cx);
        }
    }

    /// Whether all of it was sent and is back.
    pub(super) fn is_over(&self, slot: usize) -> bool {
        let request = &self.requests[slot];
        let all = request.cursor == request.asked.len || request.failed.is_some() || request.asked.kind == Kind::Flush;
        let is_coming = matches!(self.writing, Some(Writing::Into { slot: to, .. }) if to == slot);
        all && request.outstanding == 0 && !is_coming
    }

    fn finish_if_done<I: Io>(&mut self, cx: &mut Cx<'_, I>, slot: usize) {
        let Phase::Open(serving) = self.phase else { return };
        if !self.is_over(slot) {
            let request = &self.requests[slot];
            if matches!(request.asked.kind, Kind::Trim | Kind::WriteZeroes) {
                self.queue(slot);
            }
            return;
        }
        let request = &mut self.requests[slot];
        let asked = request.asked;
        let is_trim = asked.kind == Kind::Trim && asked.has(command_flag::FUA);
        if is_trim && request.failed.is_none() && !std::mem::replace(&mut request.flushing, true) {
            // Giving back has no durable form of its own.
            self.queue(slot);
            return self.issue(cx);
        }
        if request.is_queued {
            self.issuing.retain(|&queued| queued != slot);
        }
        let request = self.requests.remove(slot);
        let early: usize = request.early.iter().map(|(_, data)| data.len()).sum();
        match request.failed {
            None if request.shape == Shape::Whole => self.say_whole(cx, serving, request),
            None if request.shape == Shape::Nothing => self.say_done(cx, serving, &asked),
            // Its last piece was its last word.
            None => {}
            Some((error, offset)) => {
                cx.stats.failed(&asked);
                self.bytes_held -= early;
                if request.begun && request.shape == Shape::Stream {
                    return self.close(cx, "a read fails of which a part was sent already");
                }
                self.say_error(cx, serving, &asked, error, Some(offset));
            }
        }
    }

    /// The connection closes: nobody is there to be answered.
    pub(super) fn drop_requests<I>(&mut self, cx: &mut Cx<'_, I>) {
        if let Some(inflow) = &self.inflow
            && inflow.slot.is_some()
        {
            *cx.receiving_bytes -= inflow.end;
        }
        self.writing = None;
        self.owing_since = None;
        self.requests.clear();
        self.issuing.clear();
        self.unsent.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_fill_buffers_and_what_is_not_aligned_is_split_off() {
        let max = REQUEST_BYTES_MAX;
        for (offset, left, len) in [
            (0, 4096, 4096),
            (0, max * 3, max),
            (0, 10, 10),
            (0, 4097, 4096),
            (4096, 8191, 4096),
            (512, 8192, 8192),
            (1, 8192, 4095),
            (1, 10, 10),
            (511, 512, 512),
            (4095, 4096, 1),
            // A second half would start in the middle of its buffer's block.
            (STRIPE - 512, 8192, 512),
            (STRIPE - 4096, 8192, 8192),
            (512, max, max),
        ] {
            assert_eq!(cut(offset, left), len, "{left} at {offset}");
        }
    }

    #[test]
    fn every_request_comes_to_an_end_piece_by_piece() {
        for offset in [0, 1, 511, 512, 4095, 4096, STRIPE - 1, STRIPE - 512] {
            for len in [1u32, 512, 4097, max_odd(), 1 << 20] {
                let (mut at, mut pieces) = (0, 0);
                while at < len {
                    let piece = cut(offset + u64::from(at), len - at);
                    assert!(piece > 0 && piece <= REQUEST_BYTES_MAX);
                    at += piece;
                    pieces += 1;
                }
                assert!(at == len && pieces <= len / REQUEST_BYTES_MAX + 4, "{len} at {offset}: {pieces}");
            }
        }
    }

    fn max_odd() -> u32 {
        REQUEST_BYTES_MAX + 77
    }
}
