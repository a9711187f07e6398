//! What a connection is for: nothing yet, a controller's admin queue, or one of its I/O queues.
//!
//! A connection's first command is Connect. One that makes an association is answered only when nothing is left of the host's
//! former associations with the same volumes (history C11): what those still had on its way must not land after what the
//! host sends now. One that makes an I/O queue is answered only when the catalog has on record, durably, that the host has
//! attached the volumes (history C3): after the machine has failed it could not be told what it lost otherwise.

use std::sync::Arc;

use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Instant, Io};

use super::command::Answer;
use super::connection::{Connection, Phase};
use super::{Cx, STALL_NS, TransportEvent};
use crate::controller::admin::{AdminAction, AdminQueue, Verdict};
use crate::controller::association::{Association, ControllerKind, OnRecord};
use crate::controller::connect::{Path, first_command};
use crate::controller::queue::IoQueue;
use crate::controller::registry::Connected;
use crate::ids::AssociationId;
use crate::wire::DISCOVERY_NQN;
use crate::wire::command::Sqe;
use crate::wire::completion::NvmeStatus;

/// What a connection is for.
#[derive(Debug)]
pub(super) enum Queue {
    /// No Connect has succeeded yet.
    Unconnected,
    /// Its Connect waits for the fences of former associations; `slot` will be answered.
    Fencing { admin: Box<AdminQueue>, slot: usize },
    /// Its Connect waits for the record that its host has attached the volumes; `slot` will be answered.
    Attaching { io: Box<IoState>, slot: usize },
    /// The admin queue of its association.
    Admin { admin: Box<AdminQueue>, head: u16 },
    /// An I/O queue.
    Io(IoState),
}

/// An I/O queue of this connection.
#[derive(Debug)]
pub(super) struct IoState {
    pub(super) queue: IoQueue,
    pub(super) association: Arc<Association>,
    /// Entries taken, modulo the queue's size: SQHD.
    head: u16,
    /// The first half of a fused pair, until the next command.
    pub(super) fused_first: Option<usize>,
}

impl Queue {
    /// Commands that may be outstanding.
    pub(super) fn entries(&self) -> usize {
        match self {
            Queue::Unconnected | Queue::Fencing { .. } | Queue::Attaching { .. } => 1,
            Queue::Admin { admin, .. } => usize::from(admin.entries()),
            Queue::Io(io) => usize::from(io.queue.entries()),
        }
    }

    /// A command was taken.
    pub(super) fn advance_head(&mut self) {
        let entries = self.entries() as u16;
        if let Queue::Admin { head, .. } | Queue::Io(IoState { head, .. }) = self {
            *head = (*head + 1) % entries;
        }
    }

    /// SQHD of the next completion; 0xFFFF where flow control is off (base 6.3).
    pub(super) fn head(&self) -> u16 {
        match self {
            Queue::Io(io) if !io.queue.sq_flow_control() => 0xFFFF,
            Queue::Io(io) => io.head,
            Queue::Admin { admin, head } if admin.sq_flow_control() => *head,
            Queue::Admin { .. } => 0xFFFF,
            Queue::Unconnected | Queue::Fencing { .. } | Queue::Attaching { .. } => 0,
        }
    }

    /// Whether a successful read may do without a response capsule (tcp 3.4.1: only without SQ flow control).
    pub(super) fn elides_responses(&self) -> bool {
        matches!(self, Queue::Io(io) if !io.queue.sq_flow_control())
    }

    /// A command was refused before it ran.
    pub(super) fn refused(&mut self, sqe: &Sqe, status: NvmeStatus, now: Instant) {
        if let Queue::Admin { admin, .. } = self {
            admin.refuse(sqe, status, now);
        }
    }

    /// Whether no Connect has succeeded yet.
    pub(super) fn is_unconnected(&self) -> bool {
        matches!(self, Queue::Unconnected)
    }

    /// Its number; 0 is the admin queue, or none yet.
    pub(super) fn number(&self) -> u16 {
        match self {
            Queue::Io(io) => io.queue.queue_id(),
            Queue::Attaching { io, .. } => io.queue.queue_id(),
            Queue::Unconnected | Queue::Fencing { .. } | Queue::Admin { .. } => 0,
        }
    }

    /// The subsystem that it belongs to; empty before Connect.
    pub(super) fn subsystem(&self) -> &str {
        match self.association().map(|association| &association.kind) {
            Some(ControllerKind::Io(subsystem)) => &subsystem.nqn,
            Some(ControllerKind::Discovery) => DISCOVERY_NQN,
            None => "",
        }
    }

    fn association(&self) -> Option<&Arc<Association>> {
        match self {
            Queue::Unconnected => None,
            Queue::Fencing { admin, .. } | Queue::Admin { admin, .. } => Some(admin.association()),
            Queue::Attaching { io, .. } => Some(&io.association),
            Queue::Io(io) => Some(&io.association),
        }
    }
}

impl Connection {
    pub(super) fn association_id(&self) -> Option<AssociationId> {
        self.queue.association().map(|association| association.id)
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
        let path = Path { local: self.local, peer: self.peer };
        let connected = first_command(sqe, data.len())
            .and_then(|(connect, _)| cx.registry.connect(&connect, data, path, cx.directory, cx.io.now()));
        match connected {
            Ok(Connected::Admin { queue: admin, superseded }) => {
                for association in superseded {
                    cx.out.push(TransportEvent::AssociationDead(association));
                }
                self.queue = Queue::Fencing { admin, slot };
                self.await_fences(cx);
            }
            Ok(Connected::Io(queue)) => {
                let association = Arc::clone(queue.association());
                if association.on_record() != OnRecord::Yes {
                    for namespace in association.subsystem().map_or(&[][..], |subsystem| &subsystem.namespaces) {
                        cx.out.push(TransportEvent::Attached { volume: namespace.volume });
                    }
                }
                let io = Box::new(IoState { queue, association, head: 1, fused_first: None });
                self.queue = Queue::Attaching { io, slot };
                self.await_record(cx);
            }
            Err(refusal) => {
                tracing::warn!(peer = %self.peer, status = %refusal.status, "a Connect is refused");
                self.answer(cx, slot, Answer { status: refusal.status, result: refusal.result, data: None });
            }
        }
    }

    /// Answers a Connect once nothing is left of the host's former associations.
    pub(super) fn await_fences<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        let Queue::Fencing { admin, slot } = &self.queue else { return };
        if !cx.registry.unfenced(admin.association()).is_empty() {
            self.starve(cx);
            return;
        }
        let (slot, result) = (*slot, u64::from(admin.association().controller_id));
        let Queue::Fencing { admin, .. } = std::mem::replace(&mut self.queue, Queue::Unconnected) else {
            unreachable!("looked at above");
        };
        self.queue = Queue::Admin { admin, head: 1 };
        self.answer(cx, slot, Answer { status: NvmeStatus::SUCCESS, result, data: None });
    }

    /// Answers a Connect of an I/O queue once its host is on record.
    pub(super) fn await_record<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        let Queue::Attaching { io, slot } = &self.queue else { return };
        let (slot, result, known) = (*slot, u64::from(io.association.controller_id), io.association.on_record());
        if known == OnRecord::Asked {
            self.starve(cx);
            return;
        }
        let Queue::Attaching { io, .. } = std::mem::replace(&mut self.queue, Queue::Unconnected) else {
            unreachable!("looked at above");
        };
        self.queue = Queue::Io(*io);
        if known == OnRecord::Yes {
            return self.answer(cx, slot, Answer { status: NvmeStatus::SUCCESS, result, data: None });
        }
        tracing::error!(peer = %self.peer, "a host is refused: that it attaches cannot be put on record");
        self.answer(cx, slot, Answer::status(NvmeStatus::INTERNAL_ERROR));
    }

    /// The connection is closing: its association ends with it, unless all was answered and the host left in peace.
    pub(super) fn leave_queue<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        let peaceful = matches!(self.queue, Queue::Io(_)) && self.commands.is_empty();
        if let Some(association) = self.queue.association()
            && !peaceful
            && cx.registry.end(association)
        {
            cx.out.push(TransportEvent::AssociationDead(association.id));
        }
    }

    /// Ends what has waited too long.
    pub(super) fn check_deadlines<I: Io>(&mut self, cx: &mut Cx<'_, I>, now: Instant) {
        if self.phase == Phase::Closing {
            return;
        }
        let association = self.queue.association();
        if association.is_some_and(|association| association.is_dead()) {
            return self.close(cx, "its association has ended");
        }
        if let Queue::Admin { admin, .. } = &self.queue
            && admin.association().silent_until() <= now
        {
            tracing::warn!(peer = %self.peer, "the host's keep alive timeout has passed");
            return self.close(cx, "the keep alive timeout has passed");
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
