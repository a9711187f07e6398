//! Admin and fabrics commands of one connection, and what its queue's state means for it: see [`crate::transport::session`].

use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Instant, Io};

use super::command::Answer;
use super::connection::{Connection, Phase};
use super::{Cx, STALL_NS, TransportEvent};
use crate::controller::admin::{AdminAction, Verdict};
use crate::controller::connect::Path;
use crate::ids::AssociationId;
use crate::transport::session::{Around, Awaited, Queue};
use crate::wire::command::Sqe;
use crate::wire::completion::NvmeStatus;
use crate::wire::log_page::TransportType;

impl Connection {
    pub(super) fn association_id(&self) -> Option<AssociationId> {
        self.queue.association_id()
    }

    /// An admin or fabrics command whose data is here.
    pub(super) fn run_admin<I: Io>(&mut self, cx: &mut Cx<'_, I>, slot: usize, sqe: &Sqe, buf: Option<Buf>) {
        match &self.queue {
            Queue::Unconnected => self.run_connect(cx, slot, sqe, buf.as_deref().unwrap_or(&[])),
            Queue::Fencing { .. } | Queue::Attaching { .. } => {
                self.answer(cx, slot, Answer::status(NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr()));
            }
            Queue::Admin { .. } => self.run_controller(cx, slot, sqe, buf),
            Queue::Io(_) => unreachable!("an I/O queue refuses these before they run"),
        }
    }

    fn run_controller<I: Io>(&mut self, cx: &mut Cx<'_, I>, slot: usize, sqe: &Sqe, mut buf: Option<Buf>) {
        let Queue::Admin { admin, .. } = &mut self.queue else { unreachable!("matched by the caller") };
        match admin.on_command(sqe, buf.as_deref_mut().unwrap_or(&mut []), cx.directory, cx.io.now()) {
            AdminAction::Complete { result, status } => self.answer(cx, slot, Answer { status, result, data: None }),
            AdminAction::SendData { result } => {
                self.answer(cx, slot, Answer { status: NvmeStatus::SUCCESS, result, data: buf.map(Into::into) });
            }
            AdminAction::Hold => {
                self.commands.remove(slot);
            }
        }
        self.answer_ended(cx);
    }

    /// Answers what was held and has ended.
    fn answer_ended<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        while let Queue::Admin { admin, .. } = &mut self.queue
            && let Some(held) = admin.take_completion()
        {
            self.answer_held(cx, held.cid, Answer { status: held.status, result: held.result, data: None });
        }
    }

    /// The volumes changed.
    pub(super) fn on_directory<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        let Queue::Admin { admin, .. } = &mut self.queue else { return };
        match admin.on_directory(cx.directory) {
            Verdict::Keep => self.answer_ended(cx),
            Verdict::End => self.close(cx, "its host may not attach the volume any more"),
        }
    }

    fn run_connect<I: Io>(&mut self, cx: &mut Cx<'_, I>, slot: usize, sqe: &Sqe, data: &[u8]) {
        let path = Path { local: self.local, peer: self.peer, transport: TransportType::Tcp };
        let around = Around { registry: cx.registry, directory: cx.directory, now: cx.io.now() };
        match self.queue.connect(slot, (sqe, data), path, &around, cx.out) {
            Ok(()) => self.await_connect(cx),
            Err(refusal) => {
                tracing::warn!(peer = %self.peer, status = %refusal.status, "a Connect is refused");
                self.answer(cx, slot, Answer { status: refusal.status, result: refusal.result, data: None });
            }
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

    /// The connection is closing: its association ends with it, unless all was answered and the host left in peace.
    pub(super) fn leave_queue<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        let fence = self.queue.leave(self.commands.is_empty(), cx.registry);
        cx.out.extend(fence.map(TransportEvent::AssociationDead));
    }

    /// Ends what has waited too long.
    pub(super) fn check_deadlines<I: Io>(&mut self, cx: &mut Cx<'_, I>, now: Instant) {
        if self.phase == Phase::Closing {
            return;
        }
        if let Some(why) = self.queue.ended(now) {
            tracing::info!(peer = %self.peer, why, "a connection is given up");
            return self.close(cx, why);
        }
        let idle_ns = now.since_ns(self.last_progress);
        let owes = self.waits_for_peer() || matches!(self.phase, Phase::AwaitInit | Phase::Terminating);
        let unconnected = matches!(self.queue, Queue::Unconnected);
        if idle_ns > STALL_NS && (owes || unconnected) {
            return self.close(cx, "the peer neither sent nor took what it owes");
        }
        self.check_patience(cx);
    }

    /// Whether a drained connection has nothing left to answer.
    pub(super) fn is_settled(&self) -> bool {
        self.commands.is_empty() && self.output.is_idle()
    }
}
