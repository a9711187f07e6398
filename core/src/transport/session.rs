//! What a host's connection is for, whatever carries it: nothing yet, a controller's admin queue, or one of its I/O queues.
//!
//! A connection's first command is Connect. One that makes an association is answered only when nothing is left of the host's
//! former associations with the same volumes (history C11): what those still had on its way must not land after what the
//! host sends now. One that makes an I/O queue is answered only when the catalog has on record, durably, that the host has
//! attached the volumes (history C3): after the machine has failed it could not be told what it lost otherwise.

use std::sync::Arc;

use ringway_reactor::io::Instant;

use super::TransportEvent;
use crate::controller::admin::AdminQueue;
use crate::controller::association::{Association, ControllerKind, OnRecord};
use crate::controller::connect::{Path, Refusal, first_command};
use crate::controller::queue::IoQueue;
use crate::controller::registry::{Connected, Registry};
use crate::directory::Directory;
use crate::ids::AssociationId;
use crate::wire::DISCOVERY_NQN;
use crate::wire::command::Sqe;
use crate::wire::completion::NvmeStatus;
use crate::wire::sgl::Capsule;

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
    pub(super) fn advance_head(&mut self, now: Instant) {
        // Any command is a sign of life: hosts do not send Keep Alive while others are answered (CTRATT, traffic-based keep alive).
        if let Some(association) = self.association() {
            association.hear(now);
        }
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

    /// What it belongs to, from Connect on.
    pub(super) fn association(&self) -> Option<&Arc<Association>> {
        match self {
            Queue::Unconnected => None,
            Queue::Fencing { admin, .. } | Queue::Admin { admin, .. } => Some(admin.association()),
            Queue::Attaching { io, .. } => Some(&io.association),
            Queue::Io(io) => Some(&io.association),
        }
    }

    /// The association it belongs to, from Connect on.
    pub(super) fn association_id(&self) -> Option<AssociationId> {
        self.association().map(|association| association.id)
    }

    /// The first command: a Connect, in command slot `slot`, whose data is here. It is answered by [`Queue::go_on`].
    pub(super) fn connect(
        &mut self,
        slot: usize,
        (sqe, data): (&Sqe, &[u8]),
        path: Path,
        around: &Around<'_>,
        out: &mut Vec<TransportEvent>,
    ) -> Result<(), Refusal> {
        let capsule = Capsule { data: data.len(), transport: path.transport };
        let (connect, _) = first_command(sqe, capsule)?;
        match around.registry.connect(&connect, data, path, around.directory, around.now)? {
            Connected::Admin { queue: admin, superseded } => {
                out.extend(superseded.into_iter().map(TransportEvent::AssociationDead));
                *self = Queue::Fencing { admin, slot };
            }
            Connected::Io(queue) => {
                let association = Arc::clone(queue.association());
                if association.on_record() != OnRecord::Yes {
                    for namespace in association.subsystem().map_or(&[][..], |subsystem| &subsystem.namespaces) {
                        out.push(TransportEvent::Attached { volume: namespace.volume });
                    }
                }
                let io = Box::new(IoState { queue, association, head: 1, fused_first: None });
                *self = Queue::Attaching { io, slot };
            }
        }
        Ok(())
    }

    /// Goes on with a Connect that waits: for fences, or for the record that the host has attached the volumes.
    pub(super) fn go_on(&mut self, registry: &Registry) -> Awaited {
        let (slot, status, result) = match self {
            Queue::Fencing { admin, .. } if !registry.unfenced(admin.association()).is_empty() => return Awaited::Wait,
            Queue::Attaching { io, .. } if io.association.on_record() == OnRecord::Asked => return Awaited::Wait,
            Queue::Fencing { admin, slot } => {
                (*slot, NvmeStatus::SUCCESS, u64::from(admin.association().controller_id))
            }
            Queue::Attaching { io, slot } if io.association.on_record() == OnRecord::Yes => {
                (*slot, NvmeStatus::SUCCESS, u64::from(io.association.controller_id))
            }
            Queue::Attaching { slot, .. } => {
                tracing::error!("a host is refused: that it attaches cannot be put on record");
                (*slot, NvmeStatus::INTERNAL_ERROR, 0)
            }
            Queue::Unconnected | Queue::Admin { .. } | Queue::Io(_) => return Awaited::Nothing,
        };
        *self = match std::mem::replace(self, Queue::Unconnected) {
            Queue::Fencing { admin, .. } => Queue::Admin { admin, head: 1 },
            Queue::Attaching { io, .. } => Queue::Io(*io),
            other => other,
        };
        Awaited::Answer { slot, status, result }
    }

    /// Its connection ends: its association with it, unless all was answered and the host left in peace. Returns the association
    /// that is to be fenced.
    pub(super) fn leave(&self, all_answered: bool, registry: &Registry) -> Option<AssociationId> {
        let peaceful = matches!(self, Queue::Io(_)) && all_answered;
        let association = self.association()?;
        (!peaceful && registry.end(association)).then_some(association.id)
    }

    /// Whether its association has ended, so that nothing of its host's is taken any more. What still comes is not answered: an error
    /// would be the application's, where a closed connection is something that its host comes back from.
    pub(super) fn is_dead(&self) -> bool {
        self.association().is_some_and(|association| association.is_dead())
    }

    /// Why its connection is to be closed at `now`, if it is: its association has ended, or its host is silent.
    pub(super) fn ended(&self, now: Instant) -> Option<&'static str> {
        if self.is_dead() {
            return Some("its association has ended");
        }
        match self {
            Queue::Admin { admin, .. } if admin.association().silent_until() <= now => {
                Some("the keep alive timeout has passed")
            }
            _ => None,
        }
    }
}

/// What a Connect is checked against.
pub(super) struct Around<'a> {
    pub(super) registry: &'a Registry,
    pub(super) directory: &'a Directory,
    pub(super) now: Instant,
}

/// How far a Connect has come that was taken before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    /// There is none.
    Nothing,
    /// Ask again later.
    Wait,
    /// Answer the command in this slot.
    Answer { slot: usize, status: NvmeStatus, result: u64 },
}
