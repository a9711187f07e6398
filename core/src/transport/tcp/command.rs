//! Commands of one connection, from capsule to answer.
//!
//! ```text
//! capsule --> Bufferless --buffer--> Receiving --data complete--> Running --request ended--> answered, slot free
//!                  \------------------ nothing to receive ----------/
//! ```
//! A slot is the command's permit: taken with the capsule, given back with the answer, so each command is answered once.
//! Pressure never fails a command: without a buffer it stays `Bufferless`. A command whose data is in its capsule stops the
//! stream there, since its data is next; the others let the stream go on.

use ringway_reactor::buf::Buf;
use ringway_reactor::data::Data;
use ringway_reactor::io::Io;
use zerocopy::little_endian::{U16, U32};

use super::connection::{Connection, Phase};
use super::{Cx, TransportEvent};
use crate::controller::status;
use crate::ids::{RequestId, VolumeId};
use crate::request::{Command, Done, Request};
use crate::tokens;
use crate::transport::fused::{self, Half, Next};
use crate::transport::session::Queue;
use crate::transport::stream::Inflow;
use crate::transport::work::{Checked, Work, check};
use crate::wire::command::{Direction, Sqe};
use crate::wire::completion::{Cqe, NvmeStatus};
use crate::wire::pdu::{self, CapsuleResp, FatalStatus, Frame, PduType, Termination, Transfer, flags};
use crate::wire::sgl::DataPlace;

/// How far a command has come.
#[derive(Debug)]
enum State {
    /// Needs a buffer of `len` bytes.
    Bufferless { len: usize, data: Coming },
    /// Data of the peer is on its way into the buffer. `None` while the stream has it.
    Receiving { buf: Option<Buf>, received: usize },
    /// All of its data is here, and it waits: for the other half of its pair.
    Complete(Buf),
    /// At the shards, or being answered.
    Running,
    /// Waits for room for its header.
    Answering(Answer),
}

/// How a command's data comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coming {
    /// Right behind the header.
    InCapsule { digest: bool },
    /// When we ask for it.
    OnRequest,
    /// None comes: it goes out, or there is none.
    Not,
}

/// The end of a command.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: NvmeStatus,
    pub(super) result: u64,
    pub(super) data: Option<Data>,
}

impl Answer {
    pub(super) fn status(status: NvmeStatus) -> Answer {
        Answer { status, result: 0, data: None }
    }
}

/// One command and its permit.
#[derive(Debug)]
pub(super) struct Slot {
    cid: u16,
    work: Work,
    state: State,
    /// Decided before its data was complete: how it ends once it is.
    verdict: Option<NvmeStatus>,
    /// Bytes of data to receive, or to send.
    len: usize,
    /// Bytes counted against the connection, and those counted as waiting for the peer.
    held: usize,
    receiving: usize,
    /// The tick in which the peer began to owe its data.
    since: u64,
}

impl Slot {
    pub(super) fn cid(&self) -> u16 {
        self.cid
    }

    /// Bytes counted as waiting for the peer.
    pub(super) fn receiving(&self) -> usize {
        self.receiving
    }

    /// Whether data of the peer may come for it.
    pub(super) fn is_receiving(&self) -> bool {
        matches!(self.state, State::Receiving { buf: Some(_), .. })
    }

    /// Since which tick the peer owes it data, if it does.
    pub(super) fn receiving_since(&self) -> Option<u64> {
        matches!(self.state, State::Receiving { .. }).then_some(self.since)
    }

    /// A tick in which the peer had no chance to send it.
    pub(super) fn excuse(&mut self) {
        self.since += 1;
    }

    /// Its buffer, the bytes received, and the bytes wanted. The buffer comes back with [`Slot::receive_back`].
    pub(super) fn receive_into(&mut self) -> (Buf, usize, usize) {
        match &mut self.state {
            State::Receiving { buf, received } => (buf.take().expect("checked: it is receiving"), *received, self.len),
            state => unreachable!("asked to receive in {state:?}"),
        }
    }

    pub(super) fn receive_back(&mut self, back: Buf) {
        match &mut self.state {
            State::Receiving { buf, .. } => *buf = Some(back),
            state => unreachable!("a buffer comes back in {state:?}"),
        }
    }
}

impl Half for Slot {
    fn work(&self) -> &Work {
        &self.work
    }

    fn work_mut(&mut self) -> &mut Work {
        &mut self.work
    }

    fn verdict(&mut self) -> &mut Option<NvmeStatus> {
        &mut self.verdict
    }

    fn data(&self) -> Option<&Buf> {
        match &self.state {
            State::Complete(buf) => Some(buf),
            _ => None,
        }
    }
}

/// Connection and slot in a request's number.
pub(super) fn request_id(connection: usize, slot: usize) -> RequestId {
    tokens::request(tokens::TCP, connection, slot)
}

/// The way back.
pub(super) fn parse_request_id(id: RequestId) -> (usize, usize) {
    tokens::request_place(id)
}

impl Connection {
    /// A command capsule.
    pub(super) fn take_command<I: Io>(
        &mut self,
        cx: &mut Cx<'_, I>,
        frame: &Frame,
        sqe: &Sqe,
    ) -> Result<(), Termination> {
        if self.queue.is_dead() {
            self.close(cx, "its association has ended");
            return Ok(());
        }
        if self.commands.len() >= self.queue.entries() {
            // The host overran its own queue: nothing it says from here on can be trusted.
            return Err(Termination { status: FatalStatus::Sequence, information: 0 });
        }
        cx.stats.commands += 1;
        self.commands_taken += 1;
        self.queue.advance_head(cx.io.now());
        match self.classify(cx, frame, sqe) {
            Ok((work, len, data)) => {
                if frame.data_len > 0 && !matches!(data, Coming::InCapsule { .. }) {
                    self.discard_data(frame);
                }
                let slot = self.insert(sqe, work, len, State::Bufferless { len, data });
                self.pair(cx, slot);
                // In order: one that needs less does not go past one that waits.
                let behind = data == Coming::OnRequest && !self.bufferless.is_empty();
                if behind || !self.supply(cx, slot) {
                    cx.stats.waited_for_buffer += 1;
                    self.starve(cx);
                    match data {
                        Coming::InCapsule { .. } => self.stalled = Some(slot),
                        _ => self.bufferless.push(slot),
                    }
                }
            }
            Err(status) => {
                self.discard_data(frame);
                self.queue.refused(sqe, status, cx.io.now());
                let slot = self.insert(sqe, Work::Admin(Box::default()), 0, State::Running);
                self.pair(cx, slot);
                self.answer(cx, slot, Answer::status(status));
            }
        }
        Ok(())
    }

    /// Checks a command against its queue: what it is, how many bytes of data it has, and how they come.
    fn classify<I>(&self, cx: &Cx<'_, I>, frame: &Frame, sqe: &Sqe) -> Result<(Work, usize, Coming), NvmeStatus> {
        let Checked { work, direction, place, len } = check(&self.queue, sqe, frame.data_len.into(), cx.directory)?;
        let data = match (direction, place) {
            (Direction::None, _) => return Ok((work, 0, Coming::Not)),
            (Direction::ControllerToHost, _) => Coming::Not,
            _ if len == 0 => Coming::Not,
            (Direction::HostToController, DataPlace::InCapsule { offset: 0, .. }) if len == frame.data_len => {
                Coming::InCapsule { digest: frame.has_data_digest() }
            }
            // Data in the capsule starts at its beginning and fills it (ICDOFF is 0).
            (Direction::HostToController, DataPlace::InCapsule { .. }) => {
                return Err(NvmeStatus::SGL_OFFSET_INVALID.dnr());
            }
            (Direction::HostToController, DataPlace::Transport { .. }) => Coming::OnRequest,
            (Direction::HostToController, DataPlace::Keyed { .. }) => unreachable!("not known to NVMe/TCP"),
        };
        Ok((work, len, data))
    }

    /// Ends a command of the admin queue that had been taken before and held.
    pub(super) fn answer_held<I: Io>(&mut self, cx: &mut Cx<'_, I>, cid: u16, answer: Answer) {
        let sqe = Sqe::default().with_cid(cid);
        let slot = self.insert(&sqe, Work::Hints, 0, State::Running);
        self.answer(cx, slot, answer);
    }

    fn insert(&mut self, sqe: &Sqe, work: Work, len: usize, state: State) -> usize {
        let cid = sqe.cid.get();
        self.commands.insert(Slot { cid, work, state, verdict: None, len, held: 0, receiving: 0, since: 0 })
    }

    /// Data behind a refused command goes nowhere.
    fn discard_data(&mut self, frame: &Frame) {
        if frame.data_len > 0 {
            let digest = frame.has_data_digest();
            self.inflow =
                Some(Inflow { slot: None, buf: None, start: 0, at: 0, end: frame.data_len, digest, last: true });
        }
    }

    /// Gives a command the buffer that it needs and lets it go on. `false` if there is none now.
    fn supply<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize) -> bool {
        let slot = &mut self.commands[index];
        let State::Bufferless { len, data } = slot.state else { return true };
        let cid = slot.cid;
        if len == 0 {
            slot.state = State::Running;
            self.run(cx, index, None);
            return true;
        }
        let receiving = if data == Coming::OnRequest { len } else { 0 };
        // A single command always fits, whatever the bounds say.
        let held = self.bytes_held + self.output.bytes_held();
        let fits = held == 0 || held + len <= cx.config.connection_bytes_max;
        if !fits {
            // It waits for itself alone.
            self.leave_line(cx);
            return false;
        }
        if receiving > 0 && !self.may_receive(cx, receiving) {
            return false;
        }
        let Some(buf) = cx.io.buffers().get(len) else {
            cx.patience.refuse();
            return false;
        };
        if data == Coming::OnRequest {
            let r2t = Transfer {
                common: pdu::common(PduType::R2t, 0, &self.agreed, 0),
                cccid: U16::new(cid),
                ttag: U16::new(index as u16),
                offset: U32::new(0),
                length: U32::new(len as u32),
                reserved: [0; 4],
            };
            let header_digest = self.agreed.header_digest;
            if !self.output.header(cx.io, |out| pdu::write_header(&r2t, header_digest, out)) {
                return false;
            }
            cx.dirty.push(self.index);
        }
        self.bytes_held += len;
        *cx.receiving_bytes += receiving;
        self.owing.receiving += receiving;
        if receiving > 0 {
            self.leave_line(cx);
        }
        let slot = &mut self.commands[index];
        (slot.held, slot.receiving, slot.since) = (len, receiving, cx.patience.now());
        match data {
            Coming::Not => {
                slot.state = State::Running;
                self.run(cx, index, Some(buf));
            }
            Coming::InCapsule { digest } => {
                slot.state = State::Receiving { buf: None, received: 0 };
                self.inflow =
                    Some(Inflow { slot: Some(index), buf: Some(buf), start: 0, at: 0, end: len, digest, last: true });
            }
            Coming::OnRequest => slot.state = State::Receiving { buf: Some(buf), received: 0 },
        }
        true
    }

    /// The data of one PDU is here.
    pub(super) fn data_arrived<I: Io>(
        &mut self,
        cx: &mut Cx<'_, I>,
        inflow: Inflow,
        intact: bool,
    ) -> Result<(), Termination> {
        let (Some(index), Some(buf)) = (inflow.slot, inflow.buf) else { return Ok(()) };
        let slot = &mut self.commands[index];
        if !intact {
            tracing::warn!(peer = %self.peer, cid = slot.cid, "a data digest is wrong");
            slot.verdict = Some(NvmeStatus::TRANSIENT_TRANSPORT_ERROR);
        }
        if inflow.end < slot.len {
            slot.state = State::Receiving { buf: Some(buf), received: inflow.end };
            // The last PDU of a transfer that is not complete: the rest will never come.
            let status = FatalStatus::DataOutOfRange;
            return if inflow.last { Err(Termination { status, information: 16 }) } else { Ok(()) };
        }
        let received = std::mem::take(&mut slot.receiving);
        *cx.receiving_bytes -= received;
        self.owing.receiving -= received;
        if matches!(slot.work, Work::Fused { .. }) {
            slot.state = State::Complete(buf);
            self.run_pair(cx, index);
            return Ok(());
        }
        slot.state = State::Running;
        match slot.verdict {
            Some(status) => self.answer(cx, index, Answer::status(status)),
            None => self.run(cx, index, Some(buf)),
        }
        Ok(())
    }

    /// Everything the command needs is here.
    fn run<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize, buf: Option<Buf>) {
        match &mut self.commands[index].work {
            &mut Work::Io { volume, command, offset, len } => {
                self.request(cx, index, volume, command, (offset, len), buf);
            }
            Work::Ranges { .. } => self.run_ranges(cx, index, buf.as_deref()),
            Work::Hints => self.answer(cx, index, Answer::status(NvmeStatus::SUCCESS)),
            Work::Fused { .. } => unreachable!("a pair runs when both halves are complete"),
            Work::Admin(sqe) => {
                let sqe = **sqe;
                self.run_admin(cx, index, &sqe, buf);
            }
        }
    }

    fn request<I>(
        &mut self,
        cx: &mut Cx<'_, I>,
        index: usize,
        volume: VolumeId,
        command: Command,
        (offset, len): (u64, u32),
        buf: Option<Buf>,
    ) {
        let Queue::Io(queue) = &self.queue else { unreachable!("only I/O queues have requests") };
        let request =
            Request { association: queue.association.id, volume, command, offset, len, data: buf.map(Into::into) };
        self.requests_in_flight += 1;
        cx.out.push(TransportEvent::Request { id: request_id(self.index, index), request });
    }

    /// Dataset Management (nvm 3.2.3): its ranges are here, or the next of them is due.
    fn run_ranges<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize, data: Option<&[u8]>) {
        match self.commands[index].work.next_range(data, cx.directory) {
            Ok(Some((volume, range))) => self.request(cx, index, volume, Command::Deallocate, range, None),
            Ok(None) => self.answer(cx, index, Answer::status(NvmeStatus::SUCCESS)),
            Err(status) => self.answer(cx, index, Answer::status(status)),
        }
    }

    /// A request ended.
    pub(super) fn on_done<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize, done: Done) {
        self.requests_in_flight -= 1;
        if self.phase == Phase::Closing {
            return; // the buffer goes back to its pool; nobody is there to be answered
        }
        let status = status::of(done.status);
        if !status.is_success() {
            let slot = &self.commands[index];
            slot.work.note_failure(&self.queue, slot.cid, status, cx.directory);
        }
        match &self.commands[index].work {
            Work::Ranges { .. } if status.is_success() => self.run_ranges(cx, index, None),
            Work::Fused { .. } => self.pair_done(cx, index, status::of_fused(done.status)),
            Work::Io { command: Command::Read, .. } if status.is_success() => {
                self.answer(cx, index, Answer { status, result: 0, data: done.data });
            }
            _ => self.answer(cx, index, Answer::status(status)),
        }
    }

    /// Writes a command's answer and frees its slot, now or when there is room for the header.
    pub(super) fn answer<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize, answer: Answer) {
        if let Some(answer) = self.write_answer(cx, index, answer) {
            self.commands[index].state = State::Answering(answer);
            self.unanswered.push(index);
            self.starve(cx);
            return;
        }
        let slot = self.commands.remove(index);
        self.bytes_held -= slot.held;
        *cx.receiving_bytes -= slot.receiving;
        self.owing.receiving -= slot.receiving;
        cx.dirty.push(self.index);
    }

    /// `None` once it is written; the answer back if there is no room.
    fn write_answer<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize, answer: Answer) -> Option<Answer> {
        let cid = self.commands[index].cid;
        let agreed = self.agreed;
        let elided = answer.status.is_success() && answer.data.is_some() && self.queue.elides_responses();
        let response = CapsuleResp {
            common: pdu::common(PduType::CapsuleResp, 0, &agreed, 0),
            cqe: Cqe::new(cid, self.queue.head(), answer.result, answer.status),
        };
        let Some(data) = answer.data else {
            let written = self.output.header(cx.io, |out| pdu::write_header(&response, agreed.header_digest, out));
            return (!written).then(|| Answer { data: None, ..answer });
        };
        let header = Transfer {
            common: pdu::common(
                PduType::C2hData,
                flags::LAST | if elided { flags::SUCCESS } else { 0 },
                &agreed,
                data.len(),
            ),
            cccid: U16::new(cid),
            ttag: U16::new(0),
            offset: U32::new(0),
            length: U32::new(data.len() as u32),
            reserved: [0; 4],
        };
        let offset = agreed.data_offset(PduType::C2hData);
        if !self.output.has_room(cx.io, 2) {
            return Some(Answer { data: Some(data), ..answer });
        }
        let written = self.output.header(cx.io, |out| {
            let len = pdu::write_header(&header, agreed.header_digest, out);
            out[len..offset].fill(0);
            offset
        });
        assert!(written, "room was made above");
        let digest = agreed.data_digest.then(|| crc32c::crc32c(&data.bytes()));
        self.output.data(data);
        if elided && digest.is_none() {
            return None;
        }
        let written = self.output.header(cx.io, |out| {
            let mut len = 0;
            if let Some(digest) = digest {
                out[..4].copy_from_slice(&digest.to_le_bytes());
                len = 4;
            }
            if !elided {
                len += pdu::write_header(&response, agreed.header_digest, &mut out[len..]);
            }
            len
        });
        assert!(written, "room was made above");
        None
    }

    /// Tries again what waited for a buffer.
    pub(super) fn retry<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        self.served();
        if matches!(self.phase, Phase::Closing | Phase::Terminating) {
            return;
        }
        self.await_connect(cx);
        for index in std::mem::take(&mut self.unanswered) {
            match std::mem::replace(&mut self.commands[index].state, State::Running) {
                State::Answering(answer) => self.answer(cx, index, answer),
                state => unreachable!("a command without answer is {state:?}"),
            }
        }
        for first in std::mem::take(&mut self.pairs) {
            self.run_pair(cx, first);
        }
        let waiting = std::mem::take(&mut self.bufferless);
        for (at, &index) in waiting.iter().enumerate() {
            if !self.supply(cx, index) {
                self.bufferless.extend(&waiting[at..]);
                break;
            }
        }
        if let Some(index) = self.stalled
            && self.supply(cx, index)
        {
            self.stalled = None;
        }
        if !self.bufferless.is_empty() || self.stalled.is_some() {
            self.starve(cx);
        }
        if self.stalled.is_none() && !self.input.is_posted() {
            self.advance(cx);
        }
    }

    /// Whether the peer owes us data or the reading of data.
    pub(super) fn waits_for_peer(&self) -> bool {
        self.output.is_in_flight()
            || self.inflow.is_some()
            || self.commands.iter().any(|(_, slot)| matches!(slot.state, State::Receiving { .. }))
    }

    // ---- fused pairs

    /// A command has come: joins it with the first half that waits, or ends that half.
    fn pair<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize) {
        let Queue::Io(queue) = &mut self.queue else { return };
        if let Some(alone) = fused::pair(&mut self.commands, &mut queue.fused_first, index, cx.directory) {
            self.run_pair(cx, alone);
        }
    }

    /// A half has all of its data, or stays alone: runs the pair if the other half has its data too.
    pub(super) fn run_pair<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize) {
        match fused::next(&mut self.commands, index, cx.directory) {
            Next::Wait => {}
            Next::EndAlone(status) => {
                self.take_half(index);
                self.answer(cx, index, Answer::status(status));
            }
            Next::End { first, statuses } => self.pair_done(cx, first, statuses),
            Next::Run { first, second, volume, command, range } => {
                let Some(both) = fused::gather(cx.io, &self.commands, first, second) else {
                    self.pairs.push(first);
                    return self.starve(cx);
                };
                cx.stats.bytes_copied += both.len() as u64;
                self.take_half(first);
                self.take_half(second);
                self.request(cx, first, volume, command, range, Some(both));
            }
        }
    }

    /// A half's data goes.
    fn take_half(&mut self, index: usize) {
        if matches!(self.commands[index].state, State::Complete(_)) {
            self.commands[index].state = State::Running;
        }
    }

    /// Both halves end.
    fn pair_done<I: Io>(&mut self, cx: &mut Cx<'_, I>, first: usize, statuses: (NvmeStatus, NvmeStatus)) {
        let second = fused::second_of(&self.commands, first);
        self.take_half(first);
        self.take_half(second);
        self.answer(cx, first, Answer::status(statuses.0));
        self.answer(cx, second, Answer::status(statuses.1));
    }
}
