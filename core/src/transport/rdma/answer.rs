//! Answers: the next receive, the data, the response, posted in this order and rung for together at the end of the turn.
//!
//! The receive comes first, so that a host that has its answer finds room for its next command. Data and response go to the same
//! queue pair in this order, so the data is in the host's memory when the response is there (rdma 3.3).

use ringway_rdma::verbs::{Remote, Work as Post};
use ringway_reactor::buf::Buf;
use ringway_reactor::data::{Data, Piece, ZEROS_MAX};
use ringway_reactor::io::Io;
use zerocopy::IntoBytes;

use super::Cx;
use super::connection::{Connection, Phase};
use crate::controller::admin::{AdminAction, Verdict};
use crate::controller::connect::{Path, Refusal, bad_command, bad_data};
use crate::limits::{IN_CAPSULE_BYTES_RDMA, REQUEST_BYTES_MAX};
use crate::transport::session::{Around, Awaited, Queue};
use crate::transport::work::Work;
use crate::wire::command::Sqe;
use crate::wire::completion::{Cqe, NvmeStatus};
use crate::wire::fabrics::{Connect, ConnectData, parameter};
use crate::wire::log_page::TransportType;
use crate::wire::sgl::KeyedMemory;

/// Works of the longest answer: zeros go out in parts, then the response.
const WORKS_MAX: u32 = (REQUEST_BYTES_MAX as usize).div_ceil(ZEROS_MAX) as u32 + 1;

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

impl Connection {
    /// Answers a command and frees its slot, now or when there is room.
    pub(super) fn answer<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize, answer: Answer) {
        if self.phase == Phase::Closing {
            return;
        }
        // Those that wait already are first.
        if !self.unanswered.is_empty() || !self.may_answer(cx, index) {
            self.unanswered.push_back((index, answer));
            return self.starve(cx);
        }
        self.post_answer(cx, index, answer);
    }

    /// Answers what waits, as far as there is room now.
    pub(super) fn answer_waiting<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        while let Some(&(index, _)) = self.unanswered.front()
            && self.may_answer(cx, index)
        {
            let (index, answer) = self.unanswered.pop_front().expect("just looked at");
            self.post_answer(cx, index, answer);
        }
        if !self.unanswered.is_empty() {
            self.starve(cx);
        }
    }

    /// Whether there is room for an answer, and a buffer for the data of the capsule that it allows.
    fn may_answer<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize) -> bool {
        if !self.has_room(WORKS_MAX) || self.replies.is_empty() {
            return false;
        }
        let takes_data = self.takes_data();
        let slot = &mut self.commands[index];
        let whole = |buf: &Buf| buf.len() == IN_CAPSULE_BYTES_RDMA as usize;
        if takes_data && !slot.capsule.as_ref().is_some_and(whole) {
            slot.capsule = cx.io.buffers().get(IN_CAPSULE_BYTES_RDMA as usize);
        }
        !takes_data || slot.capsule.is_some()
    }

    fn post_answer<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize, answer: Answer) {
        let slot = self.commands.remove(index);
        self.bytes_held -= slot.held;
        self.post_receive(cx, slot.capsule);
        let moved = slot.at;
        if let (Some(data), Some(at)) = (answer.data, moved) {
            self.post_reply_data(cx, data, at);
        }
        let cqe = Cqe::new(slot.cid, self.queue.head(), answer.result, answer.status);
        let mut reply = self.replies.pop().expect("checked by the caller");
        reply.copy_from_slice(cqe.as_bytes());
        let invalidate = moved.filter(|at| at.invalidate).map(|at| at.key);
        self.post_reply(cx, reply, invalidate);
    }

    /// Data from where the device has put it to where the host wants it.
    fn post_reply_data<I: Io>(&mut self, cx: &mut Cx<'_, I>, data: Data, at: KeyedMemory) {
        let Data::Blank(blank) = data else {
            let to = Remote { address: at.address, key: at.key };
            return self.post_data(cx, Post::Write { data: Piece::Own(data.into_own()), to }, 0);
        };
        let mut done = 0;
        while done < blank.len() {
            let zeros = (blank.len() - done).min(ZEROS_MAX);
            let to = Remote { address: at.address.wrapping_add(done as u64), key: at.key };
            self.post_data(cx, Post::Write { data: Piece::Zeros(zeros), to }, 0);
            done += zeros;
        }
    }

    // ---- admin and fabrics commands

    /// An admin or fabrics command whose data is here.
    pub(super) fn run_admin<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize, sqe: &Sqe, buf: Option<Buf>) {
        match &self.queue {
            Queue::Unconnected => self.run_connect(cx, index, sqe, buf),
            Queue::Fencing { .. } | Queue::Attaching { .. } => {
                self.answer(cx, index, Answer::status(NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr()));
            }
            Queue::Admin { .. } => self.run_controller(cx, index, sqe, buf),
            Queue::Io(_) => unreachable!("an I/O queue refuses these before they run"),
        }
    }

    fn run_controller<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize, sqe: &Sqe, mut buf: Option<Buf>) {
        let Queue::Admin { admin, .. } = &mut self.queue else { unreachable!("matched by the caller") };
        match admin.on_command(sqe, buf.as_deref_mut().unwrap_or(&mut []), cx.directory, cx.io.now()) {
            AdminAction::Complete { result, status } => {
                self.answer(cx, index, Answer { status, result, data: None });
            }
            AdminAction::SendData { result } => {
                let data = buf.map(Into::into);
                self.answer(cx, index, Answer { status: NvmeStatus::SUCCESS, result, data });
            }
            AdminAction::Hold => {
                self.commands.remove(index);
            }
        }
        self.answer_ended(cx);
    }

    /// Answers what was held and has ended.
    fn answer_ended<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        while let Queue::Admin { admin, .. } = &mut self.queue
            && let Some(held) = admin.take_completion()
        {
            let index = self.insert(held.cid, Work::Hints, None);
            self.answer(cx, index, Answer { status: held.status, result: held.result, data: None });
        }
    }

    /// The volumes changed.
    pub(super) fn on_directory<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        if self.phase == Phase::Closing {
            return;
        }
        let Queue::Admin { admin, .. } = &mut self.queue else { return };
        match admin.on_directory(cx.directory) {
            Verdict::Keep => self.answer_ended(cx),
            Verdict::End => self.close(cx, "its host may not attach the volume any more"),
        }
    }

    fn run_connect<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize, sqe: &Sqe, buf: Option<Buf>) {
        let data = buf.as_deref().unwrap_or(&[]);
        let path = Path { local: self.local, peer: self.peer, transport: TransportType::Rdma };
        let around = Around { registry: cx.registry, directory: cx.directory, now: cx.io.now() };
        let connected =
            self.check_said(sqe, data).and_then(|()| self.queue.connect(index, (sqe, data), path, &around, cx.out));
        self.keep_capsule(index, buf);
        match connected {
            Ok(()) => self.await_connect(cx),
            Err(refusal) => {
                tracing::warn!(peer = %self.peer, status = %refusal.status, "a Connect is refused");
                self.answer(cx, index, Answer { status: refusal.status, result: refusal.result, data: None });
            }
        }
    }

    /// A Connect says the same as the private data of its connection (rdma figure 5).
    fn check_said(&self, sqe: &Sqe, data: &[u8]) -> Result<(), Refusal> {
        let Some(connect) = Connect::of(sqe) else { return Ok(()) };
        if connect.queue_id.get() != self.wish.queue_id {
            return Err(bad_command(parameter::QUEUE_ID));
        }
        if connect.sq_size.get().saturating_add(1) > self.wish.entries {
            return Err(bad_command(parameter::SQ_SIZE));
        }
        let said = ConnectData::read(data).map(|data| data.controller_id.get());
        match (self.wish.controller_id, said) {
            (Some(wished), Some(said)) if wished != said => Err(bad_data(parameter::DATA_CONTROLLER_ID)),
            _ => Ok(()),
        }
    }

    /// Answers a Connect once nothing is left of the host's former associations, and its host is on record.
    pub(super) fn await_connect<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        match self.queue.go_on(cx.registry) {
            Awaited::Nothing => {}
            Awaited::Wait => self.starve(cx),
            Awaited::Answer { slot, status, result } => self.answer(cx, slot, Answer { status, result, data: None }),
        }
    }
}
