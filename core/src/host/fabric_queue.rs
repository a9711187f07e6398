//! One queue over RDMA: a queue pair, the commands in flight on it, and how its messages become their ends.
//!
//! ```text
//! Closed --dial--> Dialling --Established--> Open
//!    ^                 |                       |
//!    |                 +-------- down ---------+
//!    +--(the queue pair is gone)-- Draining
//! ```
//! A command's buffer is lent to the target from the capsule on until the response: it reads and writes it where it lies. It is the
//! caller's again once the target has answered, or once the queue pair is gone; before that nobody looks at it.
//! A small write travels in its capsule, which costs a copy here and saves a round trip.

use std::collections::VecDeque;
use std::net::SocketAddr;

use ringway_rdma::verbs::{Event, Lent, QpId, QueueSpec, Refusal, Verbs, VerbsError, Work as Post};
use ringway_reactor::buf::{Buf, BufPool};
use ringway_reactor::io::Instant;
use zerocopy::{FromBytes, IntoBytes};

use super::error::{HostError, HostErrorKind};
use super::queue::{Orphan, QueueEvent};
use super::slot::Data;
use crate::wire::command::{FABRICS, SQE_BYTES, Sqe};
use crate::wire::completion::Cqe;
use crate::wire::rdma::{CmAccept, CmReject, CmRequest, CmStatus};
use crate::wire::sgl::{KeyedMemory, Sgl};

/// RDMA READs that the target may have at us at a time, where the device takes as many.
const READS_IN: u8 = 16;
/// Capsules that may be on their way, for each command: those that have arrived may not have been said so yet.
const CAPSULES_PER_COMMAND: usize = 2;

#[derive(Debug)]
enum State {
    Closed,
    Dialling,
    Open,
    Draining,
}

/// Where a command's buffer is.
#[derive(Debug)]
enum Place {
    None,
    /// Here: nothing of it was sent yet, or a copy travels in the capsule.
    Here(Buf),
    /// The target may read or write it.
    Lent(Lent),
}

#[derive(Debug)]
struct Slot<O> {
    sqe: Sqe,
    place: Place,
    in_capsule: bool,
    owner: O,
    deadline: Instant,
    order: u64,
    sent: bool,
}

/// One queue over RDMA.
#[derive(Debug)]
pub(super) struct FabricQueue<O> {
    pub(super) index: u8,
    state: State,
    qp: Option<QpId>,
    slots: Vec<Option<Slot<O>>>,
    free: Vec<u16>,
    /// Commands to be sent.
    pending: VecDeque<u16>,
    /// For entries of capsules, as long as they are not on their way.
    heads: Vec<Buf>,
    /// Capsules on their way.
    capsules: usize,
    /// Commands that the target takes at a time.
    credits: usize,
    /// Bytes of data that a capsule may have.
    pub(super) in_capsule_max: usize,
    pub(super) events: VecDeque<QueueEvent<O>>,
    submitted: u64,
}

impl<O> FabricQueue<O> {
    pub(super) fn new(index: u8, depth: u16) -> Self {
        Self {
            index,
            state: State::Closed,
            qp: None,
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            pending: VecDeque::with_capacity(usize::from(depth)),
            heads: Vec::new(),
            capsules: 0,
            credits: usize::from(depth),
            in_capsule_max: 0,
            events: VecDeque::new(),
            submitted: 0,
        }
    }

    pub(super) fn qp(&self) -> Option<QpId> {
        self.qp
    }

    pub(super) fn depth(&self) -> usize {
        self.slots.len()
    }

    /// Nothing of this queue is with the card and it has no connection.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    pub(super) fn room(&self) -> usize {
        let in_flight = self.slots.len() - self.free.len();
        self.free.len().min(self.credits.saturating_sub(in_flight))
    }

    pub(super) fn wants_flush(&self) -> bool {
        matches!(self.state, State::Open) && !self.pending.is_empty() && self.capsules < self.capsules_max()
    }

    fn capsules_max(&self) -> usize {
        CAPSULES_PER_COMMAND * self.slots.len()
    }

    /// Begins a connection, for I/O queues to controller `controller`.
    pub(super) fn dial(
        &mut self,
        verbs: &mut dyn Verbs,
        pool: &'static BufPool,
        to: SocketAddr,
        controller: u16,
        peer: &str,
    ) {
        assert!(self.is_closed() && self.qp.is_none() && self.capsules == 0, "dialled twice");
        self.state = State::Dialling;
        self.credits = self.slots.len();
        self.heads.clear();
        // One entry of a ring stays empty: so many commands need one more.
        let entries = self.slots.len() as u16 + 1;
        let spec = QueueSpec {
            receives: u32::from(entries),
            sends: self.capsules_max() as u32,
            reads_out: 0,
            reads_in: READS_IN,
        };
        let request = CmRequest::new(u16::from(self.index), entries, controller);
        let Some(answers) = self.take_buffers(pool, entries) else {
            let context = format!("connect {peer}: no buffer is free for a queue");
            return self.down(HostError::new(HostErrorKind::TimedOut, context));
        };
        match verbs.connect(to, &spec, request.as_bytes()) {
            Ok(qp) => {
                self.qp = Some(qp);
                for head in answers {
                    verbs.post(qp, 0, Post::Receive { head, data: None });
                }
            }
            Err(error) => self.down(local_error(peer, &error)),
        }
    }

    /// Buffers for capsules, kept here, and for responses.
    fn take_buffers(&mut self, pool: &'static BufPool, entries: u16) -> Option<Vec<Buf>> {
        self.heads = pool.pieces(SQE_BYTES, self.capsules_max())?;
        pool.pieces(size_of::<Cqe>(), usize::from(entries))
    }

    /// Ends the connection, if there is one. Commands stay until [`FabricQueue::orphans`] takes them.
    pub(super) fn close(&mut self, verbs: &mut dyn Verbs) {
        if self.is_closed() {
            return;
        }
        self.state = State::Draining;
        match self.qp {
            Some(qp) => verbs.disconnect(qp),
            None => self.state = State::Closed,
        }
    }

    /// Takes what was in flight on a closed queue, in the order in which it was submitted.
    pub(super) fn orphans(&mut self) -> Vec<Orphan<O>> {
        assert!(self.is_closed(), "the card still has something of this queue");
        self.pending.clear();
        self.events.clear();
        self.heads.clear();
        let mut orphans = Vec::new();
        for cid in 0..self.slots.len() as u16 {
            if let Some(slot) = self.slots[usize::from(cid)].take() {
                self.free.push(cid);
                let buf = match slot.place {
                    Place::None => None,
                    Place::Here(buf) => Some(buf),
                    Place::Lent(_) => unreachable!("withdrawn when the queue pair was gone"),
                };
                orphans.push(Orphan { buf, owner: slot.owner, sent: slot.sent, order: slot.order });
            }
        }
        orphans.sort_by_key(|orphan| orphan.order);
        orphans
    }

    /// Takes a command on; it goes out with the next [`FabricQueue::flush`].
    ///
    /// # Panics
    /// If there is no room or the queue is not open.
    pub(super) fn submit(&mut self, mut sqe: Sqe, data: Data, owner: O, deadline: Instant) {
        assert!(matches!(self.state, State::Open), "commands go to open queues");
        let cid = self.free.pop().expect("the caller asked for room");
        sqe.cid = cid.into();
        self.submitted += 1;
        // Fabrics commands, and those of the admin queue, are 64 bytes and no more (rdma 3.3).
        let with_data = self.index > 0 && sqe.opcode != FABRICS;
        let (place, in_capsule) = match data {
            Data::None => (Place::None, false),
            Data::In(buf) => (Place::Here(buf), false),
            Data::Out { buf, in_capsule } => {
                let fits = in_capsule && with_data && buf.len() <= self.in_capsule_max;
                (Place::Here(buf), fits)
            }
        };
        let slot = Slot { sqe, place, in_capsule, owner, deadline, order: self.submitted, sent: false };
        assert!(self.slots[usize::from(cid)].replace(slot).is_none(), "a free cid has no command");
        self.pending.push_back(cid);
    }

    /// Sends what is pending, as far as there is room.
    pub(super) fn flush(&mut self, verbs: &mut dyn Verbs, pool: &'static BufPool, peer: &str) {
        let (State::Open, Some(qp)) = (&self.state, self.qp) else { return };
        while self.capsules < self.capsules_max()
            && let Some(cid) = self.pending.pop_front()
        {
            let slot = self.slots[usize::from(cid)].as_mut().expect("a pending command is in flight");
            match capsule(slot, &mut self.heads, verbs, qp, pool) {
                Ok(buf) => {
                    slot.sent = true;
                    self.capsules += 1;
                    verbs.post(qp, 0, Post::Send { buf, invalidate: None });
                }
                Err(error) => return self.down(local_error(peer, &error)),
            }
        }
    }

    /// Something happened to this queue's queue pair.
    pub(super) fn on_event(&mut self, verbs: &mut dyn Verbs, event: Event, peer: &str) {
        match event {
            Event::Established { private, .. } => self.established(&private, peer),
            Event::Refused { why, .. } => self.down(refused(peer, &why)),
            Event::Disconnected { why, .. } => {
                let context = format!("{peer}: connection lost: {why:?}");
                self.down(HostError::new(HostErrorKind::Disconnected, context));
                self.state = State::Draining;
            }
            Event::Done { work: Post::Receive { head, .. }, result, .. } => {
                if let (Ok(len), State::Open) = (result, &self.state) {
                    self.answered(verbs, head, len as usize, peer);
                }
            }
            Event::Done { work: Post::Send { buf, .. }, .. } => {
                self.capsules -= 1;
                if buf.len() == SQE_BYTES {
                    self.heads.push(buf);
                }
            }
            Event::Done { .. } => {}
            Event::Gone { .. } => self.gone(verbs, peer),
            other => unreachable!("{other:?} is of no queue pair"),
        }
    }

    fn established(&mut self, private: &[u8], peer: &str) {
        if !matches!(self.state, State::Dialling) {
            return;
        }
        match CmAccept::check(private) {
            Some(credits) => {
                // Its ring too has one entry that stays empty.
                self.credits = usize::from(credits).saturating_sub(1).max(1);
                self.state = State::Open;
                self.events.push_back(QueueEvent::Greeted);
            }
            None => {
                let context = "the target accepts with private data that is none of NVMe";
                self.down(HostError::protocol(context).during(peer));
            }
        }
    }

    /// A response has come.
    fn answered(&mut self, verbs: &mut dyn Verbs, head: Buf, len: usize, peer: &str) {
        let cqe = Cqe::read_from_prefix(&head).ok().filter(|_| len == size_of::<Cqe>());
        let Some((cqe, _)) = cqe else {
            return self.down(HostError::protocol(format!("a response of {len} bytes")).during(peer));
        };
        if let Some(qp) = self.qp {
            verbs.post(qp, 0, Post::Receive { head, data: None });
        }
        let cid = cqe.cid.get();
        let slot = self.slots.get_mut(usize::from(cid)).and_then(|slot| slot.take_if(|slot| slot.sent));
        let Some(slot) = slot else {
            let context = format!("an answer to command {cid}, which is not in flight");
            return self.down(HostError::protocol(context).during(peer));
        };
        self.free.push(cid);
        let buf = match slot.place {
            Place::None => None,
            Place::Here(buf) => Some(buf),
            Place::Lent(lent) => Some(verbs.withdraw(lent)),
        };
        self.events.push_back(QueueEvent::Finished { cqe, buf, owner: slot.owner });
    }

    /// The queue pair is destroyed: the card reads and writes nothing of it any more.
    fn gone(&mut self, verbs: &mut dyn Verbs, peer: &str) {
        self.down(HostError::new(HostErrorKind::Disconnected, format!("{peer}: connection lost")));
        self.qp = None;
        self.capsules = 0;
        for slot in self.slots.iter_mut().flatten() {
            slot.place = match std::mem::replace(&mut slot.place, Place::None) {
                Place::Lent(lent) => Place::Here(verbs.withdraw(lent)),
                place => place,
            };
        }
        self.state = State::Closed;
    }

    /// Tells the association once that the connection is of no use.
    fn down(&mut self, error: HostError) {
        let told = self.events.iter().any(|event| matches!(event, QueueEvent::Down(_)));
        if !told && !matches!(self.state, State::Draining | State::Closed) {
            self.events.push_back(QueueEvent::Down(error));
        }
    }

    pub(super) fn earliest_deadline(&self) -> Option<(Instant, u16)> {
        let slots = self.slots.iter().zip(0_u16..);
        slots.filter_map(|(slot, cid)| Some((slot.as_ref()?.deadline, cid))).min()
    }
}

/// The capsule of a command, whose data is lent to the target or copied into it.
fn capsule<O>(
    slot: &mut Slot<O>,
    heads: &mut Vec<Buf>,
    verbs: &mut dyn Verbs,
    qp: QpId,
    pool: &'static BufPool,
) -> Result<Buf, VerbsError> {
    slot.sqe.sgl = Sgl::keyed(0, KeyedMemory { address: 0, key: 0, invalidate: false });
    if let (true, Place::Here(data)) = (slot.in_capsule, &slot.place)
        && let Some(mut capsule) = pool.get(SQE_BYTES + data.len())
    {
        slot.sqe.sgl = Sgl::in_capsule(data.len() as u32);
        capsule[..SQE_BYTES].copy_from_slice(slot.sqe.as_bytes());
        capsule[SQE_BYTES..].copy_from_slice(data);
        return Ok(capsule);
    }
    if let Place::Here(data) = std::mem::replace(&mut slot.place, Place::None) {
        match verbs.lend(qp, data) {
            Ok(lent) => {
                let at = KeyedMemory { address: lent.remote.address, key: lent.remote.key, invalidate: false };
                slot.sqe.sgl = Sgl::keyed(lent.len, at);
                slot.place = Place::Lent(lent);
            }
            Err((data, error)) => {
                slot.place = Place::Here(data);
                return Err(error);
            }
        }
    }
    let mut head = heads.pop().expect("there are as many as capsules may be on their way");
    head.copy_from_slice(slot.sqe.as_bytes());
    Ok(head)
}

fn local_error(peer: &str, error: &VerbsError) -> HostError {
    let kind = match error {
        VerbsError::Gone => HostErrorKind::Disconnected,
        _ => HostErrorKind::Local,
    };
    HostError::new(kind, format!("connect {peer}: {error}"))
}

fn refused(peer: &str, why: &Refusal) -> HostError {
    let because = match why {
        Refusal::Rejected(private) => match CmReject::check(private) {
            Some(CmStatus::NoResources) => "the target has no room for another queue".to_owned(),
            Some(status) => return HostError::protocol(format!("the target refuses: {status}")).during(peer),
            None => "the target refuses".to_owned(),
        },
        Refusal::NobodyListens => "refused; is the target running there, and listening on RDMA?".to_owned(),
        other => other.to_string(),
    };
    HostError::new(HostErrorKind::Refused, format!("connect {peer}: {because}"))
}
