//! One connection: from the first byte to the last buffer given back.
//!
//! ```text
//! AwaitInit --ICReq--> Open --peer closes, error, kill--> Closing --nothing in flight--> (slot free)
//!      \--garbage--> Terminating --C2HTermReq sent--> Closing
//! ```
//! A closing connection keeps its slot until the kernel has given back its receive and its send, and the shards have given
//! back its requests: their completions must not meet a stranger.

use std::net::SocketAddr;

use ringway_reactor::buf::Buf;
use ringway_reactor::data::Piece;
use ringway_reactor::io::{Instant, Io, SocketId};
use slab::Slab;
use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32};

use super::command::Slot;
use super::patience::Owing;
use super::{Cx, token};
use crate::limits::REQUEST_BYTES_MAX;
use crate::transport::session::Queue;
use crate::transport::stream::{Inflow, Input, Output};
use crate::transport::{ConnectionSeen, Peer};
use crate::wire::pdu::{
    self, Agreed, COMMON, CapsuleCmd, Common, FatalStatus, Frame, HEADER_MAX, InitConnection, PduType, Reader, TermReq,
    Termination, Transfer,
};

/// Data of one H2CData PDU that we take (MAXH2CDATA): a whole request, so that one R2T is answered by one PDU.
pub(super) const H2C_DATA_MAX: u32 = REQUEST_BYTES_MAX;

/// Commands that a connection may begin in one turn. Its next ones begin after these are answered, if they can be at once: so the peer
/// has something to do meanwhile, the same few buffers are used again while they are in the cache, and nobody else waits for long.
const TURN_COMMANDS: u64 = 32;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing but an ICReq is welcome.
    AwaitInit,
    /// Capsules flow.
    Open,
    /// A termination request is on its way out; nothing is read any more.
    Terminating,
    /// The socket is closed; what is in flight comes back.
    Closing,
}

/// Why parsing stops for now.
enum Step {
    /// A PDU, or a part of one, was taken: go on.
    Again,
    /// More bytes are needed.
    Starved,
    /// A command needs a buffer that is not to be had now.
    Stalled,
}

/// One NVMe/TCP connection.
pub(super) struct Connection {
    pub(super) index: usize,
    number: u64,
    pub(super) commands_taken: u64,
    pub(super) socket: SocketId,
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) phase: Phase,
    pub(super) agreed: Agreed,
    pub(super) queue: Queue,
    pub(super) input: Input,
    pub(super) output: Output,
    pub(super) inflow: Option<Inflow>,
    pub(super) commands: Slab<Slot>,
    /// Commands whose answer waits for a header buffer.
    pub(super) unanswered: Vec<usize>,
    /// Commands that wait for a data buffer while the stream goes on.
    pub(super) bufferless: Vec<usize>,
    /// A capsule whose in-capsule data waits for a buffer: the stream stands still.
    pub(super) stalled: Option<usize>,
    /// Fused pairs that wait for a buffer for both.
    pub(super) pairs: Vec<usize>,
    /// Whether it stands in the line of those who wait for a buffer or a fence: once, or each turn would lengthen the line by
    /// every command that waits, and the next one by as many for each of those.
    starving: bool,
    /// Whether it stands in the line of those who have had their share of a turn.
    sated: bool,
    /// The last moment at which the peer sent or took a byte.
    pub(super) last_progress: Instant,
    pub(super) requests_in_flight: usize,
    /// Bytes of buffers that commands of this connection hold; those on their way out are the output's.
    pub(super) bytes_held: usize,
    pub(super) owing: Owing,
}

impl Connection {
    pub(super) fn new(
        (index, number): (usize, u64),
        socket: SocketId,
        peer: SocketAddr,
        local: SocketAddr,
        now: Instant,
        ticks: u64,
    ) -> Self {
        Self {
            index,
            number,
            commands_taken: 0,
            socket,
            peer,
            local,
            phase: Phase::AwaitInit,
            agreed: Agreed::default(),
            queue: Queue::Unconnected,
            input: Input::new(),
            output: Output::default(),
            inflow: None,
            commands: Slab::new(),
            unanswered: Vec::new(),
            bufferless: Vec::new(),
            stalled: None,
            pairs: Vec::new(),
            starving: false,
            sated: false,
            last_progress: now,
            requests_in_flight: 0,
            bytes_held: 0,
            owing: Owing::new(ticks),
        }
    }

    /// What there is to know of it.
    pub(super) fn seen(&self) -> ConnectionSeen<'_> {
        ConnectionSeen {
            number: self.number,
            peer: Peer::Socket(self.peer),
            queue: self.queue.number(),
            subsystem: self.queue.subsystem(),
            commands: self.commands_taken,
            bytes_received: self.input.bytes_received,
            bytes_sent: self.output.bytes_sent,
            in_flight: self.commands.len() as u64,
            fabric: None,
        }
    }

    /// Whether its slot may be given to another connection.
    pub(super) fn is_gone(&self) -> bool {
        self.phase == Phase::Closing
            && !self.input.is_posted()
            && !self.output.is_in_flight()
            && self.requests_in_flight == 0
    }

    /// Tries again in a later turn.
    pub(super) fn starve<I>(&mut self, cx: &mut Cx<'_, I>) {
        if !std::mem::replace(&mut self.starving, true) {
            cx.starved.push_back(self.index);
        }
    }

    /// Its turn in the line has come.
    pub(super) fn served(&mut self) {
        self.starving = false;
    }

    /// A receive ended.
    pub(super) fn on_received<I: Io>(&mut self, cx: &mut Cx<'_, I>, buf: Buf, count: usize) {
        self.input.completed(buf, count, self.inflow.as_mut());
        if self.phase == Phase::Closing {
            self.input.clear();
            self.inflow = None;
            return;
        }
        if count == 0 {
            self.close(cx, "the peer closed the connection");
            return;
        }
        self.last_progress = cx.io.now();
        self.advance(cx);
    }

    /// Reads on for as long as there is something to read and somewhere to put it, then posts the next receive. After a turn's
    /// share of commands it is called again in the next turn.
    pub(super) fn advance<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        let enough = self.commands_taken + TURN_COMMANDS;
        while matches!(self.phase, Phase::AwaitInit | Phase::Open) && !self.input.is_posted() {
            if cx.draining && self.inflow.is_none() && !self.commands.iter().any(|(_, slot)| slot.is_receiving()) {
                return;
            }
            if self.commands_taken >= enough {
                if !std::mem::replace(&mut self.sated, true) {
                    cx.sated.push(self.index);
                }
                return;
            }
            let step = if self.inflow.is_some() { self.take_data(cx) } else { self.take_header(cx) };
            match step {
                Ok(Step::Again) => {}
                Ok(Step::Stalled) => {
                    self.starve(cx);
                    return;
                }
                Ok(Step::Starved) => {
                    if !self.input.post(cx.io, self.socket, token::receive(self.index), self.inflow.as_mut()) {
                        self.starve(cx);
                    }
                    return;
                }
                Err(termination) => self.terminate(cx, termination),
            }
        }
    }

    /// The next turn has come for what the last one left unread.
    pub(super) fn go_on<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        self.sated = false;
        self.advance(cx);
    }

    /// Data of a PDU whose header was taken before.
    fn take_data<I: Io>(&mut self, cx: &mut Cx<'_, I>) -> Result<Step, Termination> {
        let inflow = self.inflow.as_mut().expect("called with data to come");
        let before = inflow.at;
        let whole = self.input.fill(inflow);
        cx.stats.bytes_copied += (inflow.at - before) as u64;
        if !whole {
            return Ok(Step::Starved);
        }
        if inflow.digest {
            let Some(found) = self.input.unread().first_chunk::<4>() else { return Ok(Step::Starved) };
            let found = u32::from_le_bytes(*found);
            self.input.consume(4);
            let intact = inflow.buf.as_ref().is_none_or(|buf| crc32c::crc32c(&buf[inflow.start..inflow.end]) == found);
            let inflow = self.inflow.take().expect("looked at above");
            self.data_arrived(cx, inflow, intact)?;
            return Ok(Step::Again);
        }
        let inflow = self.inflow.take().expect("looked at above");
        self.data_arrived(cx, inflow, true)?;
        Ok(Step::Again)
    }

    /// The header of the next PDU, and what it starts.
    fn take_header<I: Io>(&mut self, cx: &mut Cx<'_, I>) -> Result<Step, Termination> {
        if self.stalled.is_some() {
            return Ok(Step::Stalled);
        }
        let unread = self.input.unread();
        let Some((common, _)) = unread.get(..COMMON).and_then(|bytes| Common::read_from_prefix(bytes).ok()) else {
            return Ok(Step::Starved);
        };
        let frame = Frame::check(&common, Reader::Controller, &self.agreed, self.data_max())?;
        // Padding between header and data belongs to neither; it is taken with the header.
        let header_len = if frame.data_len > 0 { frame.data_offset } else { frame.header_len };
        let Some(header) = unread.get(..header_len) else {
            return Ok(Step::Starved);
        };
        pdu::check_header_digest(&frame, header)?;
        if frame.pdu_type == PduType::CapsuleCmd && self.phase == Phase::Open {
            // What nearly every PDU is: copied once.
            let (capsule, _) = CapsuleCmd::read_from_prefix(header).expect("as long as checked");
            self.input.consume(header_len);
            self.take_command(cx, &frame, &capsule.sqe)?;
            return Ok(Step::Again);
        }
        let mut copy = [0; HEADER_MAX];
        let kept = frame.pdu_type.header_len();
        copy[..kept].copy_from_slice(&header[..kept]);
        self.input.consume(header_len);
        self.take_pdu(cx, &frame, &copy[..kept])?;
        Ok(Step::Again)
    }

    /// Data of one PDU may have at most this many bytes.
    fn data_max(&self) -> usize {
        if self.phase == Phase::AwaitInit { 0 } else { H2C_DATA_MAX as usize }
    }

    fn take_pdu<I: Io>(&mut self, cx: &mut Cx<'_, I>, frame: &Frame, header: &[u8]) -> Result<(), Termination> {
        let sequence = |ok: bool| {
            if ok { Ok(()) } else { Err(Termination { status: FatalStatus::Sequence, information: 0 }) }
        };
        match frame.pdu_type {
            PduType::IcReq => {
                sequence(self.phase == Phase::AwaitInit)?;
                self.initialize(cx, &InitConnection::read_from_bytes(header).expect("as long as checked"))
            }
            // The others have been taken already.
            PduType::CapsuleCmd => sequence(false),
            PduType::H2cData => {
                sequence(self.phase == Phase::Open)?;
                self.take_transfer(frame, &Transfer::read_from_bytes(header).expect("as long as checked"))
            }
            PduType::H2cTermReq => {
                let term = TermReq::read_from_bytes(header).expect("as long as checked");
                tracing::info!(peer = %self.peer, status = term.fes.get(), "the host terminates its connection");
                self.close(cx, "the host sent a termination request");
                Ok(())
            }
            _ => unreachable!("checked against what a host may send"),
        }
    }

    /// ICReq (section 3.6.2.2): agree, answer, open.
    fn initialize<I: Io>(&mut self, cx: &mut Cx<'_, I>, request: &InitConnection) -> Result<(), Termination> {
        let unsupported = |offset| Err(Termination { status: FatalStatus::UnsupportedParameter, information: offset });
        if request.pfv.get() != 0 {
            return unsupported(8);
        }
        if request.pda > 31 {
            return unsupported(10);
        }
        self.agreed = Agreed {
            header_digest: request.digests & 1 != 0,
            data_digest: request.digests & 2 != 0,
            pda: (u32::from(request.pda) + 1) * 4,
        };
        let response = InitConnection {
            common: pdu::common(PduType::IcResp, 0, &self.agreed, 0),
            pfv: U16::new(0),
            pda: 0,
            digests: request.digests & 3,
            limit: U32::new(H2C_DATA_MAX),
            reserved: [0; 112],
        };
        if !self.output.header(cx.io, |out| pdu::write_header(&response, false, out)) {
            self.close(cx, "no buffer is free for the answer to its first PDU");
            return Ok(());
        }
        cx.dirty.push(self.index);
        self.phase = Phase::Open;
        Ok(())
    }

    /// H2CData (section 3.6.2.7): the answer to one of our R2Ts, in order.
    fn take_transfer(&mut self, frame: &Frame, transfer: &Transfer) -> Result<(), Termination> {
        let slot = usize::from(transfer.ttag.get());
        let (offset, length) = (transfer.offset.get() as usize, transfer.length.get() as usize);
        let wrong = |status, information| Err(Termination { status, information });
        let Some(command) = self.commands.get_mut(slot).filter(|command| command.is_receiving()) else {
            return wrong(FatalStatus::InvalidHeader, 10);
        };
        if command.cid() != transfer.cccid.get() {
            return wrong(FatalStatus::InvalidHeader, 8);
        }
        if length != frame.data_len || length == 0 {
            return wrong(FatalStatus::InvalidHeader, 16);
        }
        let (buf, received, wanted) = command.receive_into();
        if offset != received || length > wanted - received {
            command.receive_back(buf);
            return wrong(FatalStatus::DataOutOfRange, 12);
        }
        self.inflow = Some(Inflow {
            slot: Some(slot),
            buf: Some(buf),
            start: offset,
            at: offset,
            end: offset + length,
            digest: frame.has_data_digest(),
            last: frame.flags & pdu::flags::LAST != 0,
        });
        Ok(())
    }

    /// Tells the peer what is wrong, then closes (section 3.5: a fatal error ends the connection).
    pub(super) fn terminate<I: Io>(&mut self, cx: &mut Cx<'_, I>, termination: Termination) {
        tracing::warn!(peer = %self.peer, %termination, "a connection is terminated");
        cx.stats.terminated += 1;
        let header = TermReq {
            common: pdu::common(PduType::C2hTermReq, 0, &self.agreed, 0),
            fes: U16::new(termination.status as u16),
            fei: termination.information.to_le_bytes(),
            reserved: [0; 10],
        };
        if self.phase != Phase::AwaitInit && self.output.header(cx.io, |out| pdu::write_header(&header, false, out)) {
            self.phase = Phase::Terminating;
            cx.dirty.push(self.index);
        } else {
            self.close(cx, "its first bytes are not an ICReq");
        }
    }

    /// A send ended.
    pub(super) fn on_sent<I: Io>(&mut self, cx: &mut Cx<'_, I>, bufs: Vec<Piece>, count: usize) {
        self.output.completed(bufs, count);
        self.last_progress = cx.io.now();
        match self.phase {
            Phase::Terminating if self.output.is_idle() => self.close(cx, "terminated"),
            Phase::Closing => self.output.clear(),
            _ if self.output.is_pending() => cx.dirty.push(self.index),
            _ => {}
        }
    }

    /// Closes the socket; what is in flight comes back to a connection that no longer answers.
    pub(super) fn close<I: Io>(&mut self, cx: &mut Cx<'_, I>, why: &str) {
        if self.phase == Phase::Closing {
            return;
        }
        tracing::debug!(peer = %self.peer, why, "a connection closes");
        self.phase = Phase::Closing;
        cx.io.close(self.socket);
        cx.stats.closed += 1;
        self.leave_queue(cx);
        self.leave_line(cx);
        *cx.receiving_bytes -= self.commands.iter().map(|(_, slot)| slot.receiving()).sum::<usize>();
        self.stalled = None;
        if !self.input.is_posted() {
            self.inflow = None;
        }
        self.input.clear();
        self.output.clear();
        cx.closing.push(self.index);
    }
}
