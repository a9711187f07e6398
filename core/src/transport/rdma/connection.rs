//! One connection: a queue pair, from its acceptance to the last buffer given back.
//!
//! ```text
//! (accepted) Open --peer leaves, violation, kill, work fails--> Closing --queue pair gone, requests ended--> (slot free)
//! ```
//! A closing connection keeps its slot until the card has given back everything (the queue pair is gone) and so have the shards: what
//! either of them still holds must not meet a stranger. Each of its buffers is with one of them, or here; none is given back while
//! the card may still write it.
//!
//! Credits: as many receives are posted as the queue has entries; the one that a command came in is posted again right before its
//! answer. So a host that keeps to its queue always finds one, and one that does not is held up by its own card.

use std::collections::VecDeque;
use std::net::SocketAddr;

use ringway_rdma::verbs::{Counts, Ending, QpId, Work as Post, WorkError};
use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Instant, Io};
use slab::Slab;

use super::admission::receive_bytes;
use super::answer::Answer;
use super::command::Slot;
use super::{Cx, STALL_NS};
use crate::ids::AssociationId;
use crate::limits::IN_CAPSULE_BYTES_RDMA;
use crate::transport::session::Queue;
use crate::transport::{ConnectionSeen, Peer, TransportEvent};
use crate::wire::command::SQE_BYTES;
use crate::wire::completion::Cqe;
use crate::wire::rdma::QueueWish;

/// Entries of the send queue for each of the submission queue: a read and an answer with data, and as much again that the card has
/// done without having said so.
pub(super) const SENDS_PER_ENTRY: u32 = 6;
/// Responses that may be on their way, for each entry.
pub(super) const REPLIES_PER_ENTRY: u32 = 2;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Capsules flow.
    Open,
    /// Its queue pair ends; what is in flight comes back.
    Closing,
}

/// What a work's token says, beside the slot of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Posted {
    Receive,
    Reply,
    Data,
    Read { slot: usize },
}

impl Posted {
    fn token(self) -> u64 {
        match self {
            Posted::Receive => 0,
            Posted::Reply => 1,
            Posted::Data => 2,
            Posted::Read { slot } => 3 | (slot as u64) << 8,
        }
    }
}

/// One NVMe/RDMA connection.
pub(super) struct Connection {
    pub(super) index: usize,
    number: u64,
    /// `None` before it is accepted.
    qp: Option<QpId>,
    /// The queue pair is destroyed.
    qp_gone: bool,
    established: bool,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) wish: QueueWish,
    pub(super) phase: Phase,
    pub(super) queue: Queue,
    pub(super) commands: Slab<Slot>,
    /// For the entries of capsules, and for responses, as long as they are not posted.
    heads: Vec<Buf>,
    pub(super) replies: Vec<Buf>,
    /// For the data of capsules, before the first receives are posted.
    capsules: Vec<Buf>,
    receive_bytes: usize,
    /// Receives that have not come back.
    receives: u32,
    /// Works of the send queue that have not come back, and how many there may be.
    posted: u32,
    posted_max: u32,
    /// Commands that wait for a data buffer or for room in the send queue, in order.
    pub(super) bufferless: VecDeque<usize>,
    /// Fused pairs that wait for a buffer for both.
    pub(super) pairs: Vec<usize>,
    /// Commands whose answer waits for room or for the buffer of the next capsule.
    pub(super) unanswered: VecDeque<(usize, Answer)>,
    starving: bool,
    /// The last moment at which the card had done something for the host.
    last_progress: Instant,
    pub(super) requests_in_flight: usize,
    /// Bytes of buffers that commands hold, and of those that are on their way to the host.
    pub(super) bytes_held: usize,
    pub(super) bytes_writing: usize,
    pub(super) commands_taken: u64,
}

impl Connection {
    /// A connection for what a host asks, with the buffers that its queue needs; `None` if there are not as many.
    pub(super) fn new<I: Io>(
        (index, number): (usize, u64),
        (local, peer): (SocketAddr, SocketAddr),
        wish: QueueWish,
        posted_max: u32,
        io: &mut I,
    ) -> Option<Connection> {
        let (pool, entries) = (io.buffers(), usize::from(wish.entries));
        let with_data = if wish.queue_id == 0 { 0 } else { entries };
        let capsules: Option<Vec<_>> = (0..with_data).map(|_| pool.get(IN_CAPSULE_BYTES_RDMA as usize)).collect();
        Some(Connection {
            index,
            number,
            qp: None,
            qp_gone: false,
            established: false,
            local,
            peer,
            wish,
            phase: Phase::Open,
            queue: Queue::Unconnected,
            commands: Slab::new(),
            heads: pool.pieces(SQE_BYTES, entries)?,
            replies: pool.pieces(size_of::<Cqe>(), REPLIES_PER_ENTRY as usize * entries)?,
            capsules: capsules?,
            receive_bytes: receive_bytes(&wish),
            receives: 0,
            posted: 0,
            posted_max,
            bufferless: VecDeque::new(),
            pairs: Vec::new(),
            unanswered: VecDeque::new(),
            starving: false,
            last_progress: io.now(),
            requests_in_flight: 0,
            bytes_held: 0,
            bytes_writing: 0,
            commands_taken: 0,
        })
    }

    /// It is accepted.
    pub(super) fn begin(&mut self, qp: QpId) {
        self.qp = Some(qp);
    }

    pub(super) fn qp(&self) -> QpId {
        self.qp.expect("it was accepted")
    }

    pub(super) fn receive_bytes(&self) -> usize {
        self.receive_bytes
    }

    /// Whether capsules come with data.
    pub(super) fn takes_data(&self) -> bool {
        self.wish.queue_id > 0
    }

    /// What there is to know of it.
    pub(super) fn seen(&self, counts: Counts) -> ConnectionSeen<'_> {
        ConnectionSeen {
            number: crate::tokens::connection(crate::tokens::RDMA, self.number),
            peer: Peer::Fabric(self.peer),
            queue: self.wish.queue_id,
            subsystem: self.queue.subsystem(),
            commands: self.commands_taken,
            bytes_received: counts.bytes_in,
            bytes_sent: counts.bytes_out,
            in_flight: self.commands.len() as u64,
            fabric: Some(counts),
        }
    }

    pub(super) fn association_id(&self) -> Option<AssociationId> {
        self.queue.association_id()
    }

    /// Whether its slot may be given to another connection.
    pub(super) fn is_gone(&self) -> bool {
        // What was posted to a queue pair that had ended already comes back after its end.
        let back = self.posted == 0 && self.receives == 0;
        self.phase == Phase::Closing && self.qp_gone && back && self.requests_in_flight == 0
    }

    /// Whether a drained connection has nothing left to answer, and its last answers are with the host.
    pub(super) fn is_settled(&self) -> bool {
        self.phase == Phase::Closing || self.commands.is_empty() && self.posted == 0
    }

    /// Tries again in a later turn.
    pub(super) fn starve<I>(&mut self, cx: &mut Cx<'_, I>) {
        if !std::mem::replace(&mut self.starving, true) {
            cx.starved.push(self.index);
        }
    }

    // ---- the queue pair

    /// The first receives: one for each entry, before the host may send.
    pub(super) fn post_receives<I>(&mut self, cx: &mut Cx<'_, I>) {
        while !self.heads.is_empty() {
            let data = if self.takes_data() { self.capsules.pop() } else { None };
            self.post_receive(cx, data);
        }
    }

    /// Room for one more command.
    pub(super) fn post_receive<I>(&mut self, cx: &mut Cx<'_, I>, data: Option<Buf>) {
        let head = self.heads.pop().expect("there are as many as there are entries");
        self.receives += 1;
        cx.verbs.post(self.qp(), Posted::Receive.token(), Post::Receive { head, data });
    }

    /// Whether `count` more works fit the send queue.
    pub(super) fn has_room(&self, count: u32) -> bool {
        self.posted + count <= self.posted_max
    }

    fn post<I>(&mut self, cx: &mut Cx<'_, I>, posted: Posted, work: Post) {
        self.posted += 1;
        cx.verbs.post(self.qp(), posted.token(), work);
    }

    /// A response.
    pub(super) fn post_reply<I>(&mut self, cx: &mut Cx<'_, I>, buf: Buf, invalidate: Option<u32>) {
        self.post(cx, Posted::Reply, Post::Send { buf, invalidate });
    }

    /// Data on its way to or from the host, the latter for the command in `slot`.
    pub(super) fn post_data<I>(&mut self, cx: &mut Cx<'_, I>, work: Post, slot: usize) {
        match work {
            Post::Read { .. } => self.post(cx, Posted::Read { slot }, work),
            _ => {
                self.bytes_writing += work.bytes();
                self.post(cx, Posted::Data, work);
            }
        }
    }

    pub(super) fn on_established(&mut self) {
        self.established = true;
    }

    /// A work has come back.
    pub(super) fn on_work_done<I: Io>(
        &mut self,
        cx: &mut Cx<'_, I>,
        token: u64,
        work: Post,
        result: Result<u32, WorkError>,
    ) {
        let open = self.phase == Phase::Open;
        let count = if work.is_receive() { &mut self.receives } else { &mut self.posted };
        *count -= 1;
        if result.is_ok() {
            self.last_progress = cx.io.now();
        }
        let bytes = work.bytes();
        match (work, result) {
            (Post::Receive { head, data }, Ok(len)) if open => self.take_capsule(cx, head, data, len as usize),
            (Post::Read { buf, .. }, Ok(_)) if open => self.data_here(cx, (token >> 8) as usize, buf),
            (Post::Send { buf, .. }, _) => self.replies.push(buf),
            (Post::Write { data, .. }, _) => {
                drop(data);
                self.bytes_writing -= bytes;
            }
            // It failed, and with it the queue pair; or nobody is there any more. The buffers go back to their pool.
            (Post::Receive { .. } | Post::Read { .. }, _) => {}
        }
        if open && !self.unanswered.is_empty() {
            self.answer_waiting(cx);
        }
    }

    /// The peer has left, or the queue pair broke.
    pub(super) fn on_disconnected<I: Io>(&mut self, cx: &mut Cx<'_, I>, why: Ending) {
        if let Ending::Work(error) = why
            && self.phase == Phase::Open
        {
            tracing::warn!(peer = %self.peer, queue = self.wish.queue_id, %error, "an RDMA connection broke");
        }
        self.close(cx, "its queue pair has ended");
    }

    /// The queue pair is destroyed.
    pub(super) fn on_gone<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        self.close(cx, "its queue pair is gone");
        self.qp_gone = true;
    }

    /// The host has broken the protocol.
    pub(super) fn violate<I: Io>(&mut self, cx: &mut Cx<'_, I>, why: &str) {
        tracing::warn!(peer = %self.peer, queue = self.wish.queue_id, why, "an RDMA connection is terminated");
        cx.stats.terminated += 1;
        self.close(cx, why);
    }

    /// Ends the queue pair; what is in flight comes back to a connection that no longer answers.
    pub(super) fn close<I: Io>(&mut self, cx: &mut Cx<'_, I>, why: &str) {
        if self.phase == Phase::Closing {
            return;
        }
        tracing::debug!(peer = %self.peer, queue = self.wish.queue_id, why, "an RDMA connection closes");
        self.phase = Phase::Closing;
        cx.stats.closed += 1;
        cx.verbs.disconnect(self.qp());
        let fence = self.queue.leave(self.commands.is_empty(), cx.registry);
        cx.out.extend(fence.map(TransportEvent::AssociationDead));
        self.unanswered.clear();
        self.bufferless.clear();
        self.pairs.clear();
    }

    /// Ends what has waited too long.
    pub(super) fn check_deadlines<I: Io>(&mut self, cx: &mut Cx<'_, I>, now: Instant) {
        if self.phase == Phase::Closing {
            return;
        }
        if let Some(why) = self.queue.ended(now) {
            tracing::info!(peer = %self.peer, why, "an RDMA connection is given up");
            return self.close(cx, why);
        }
        let owes = self.posted > 0 || !self.established || self.queue.is_unconnected();
        if owes && now.since_ns(self.last_progress) > STALL_NS {
            self.close(cx, "the host neither sends nor takes what it owes");
        }
    }

    /// Tries again what waits for a buffer, for room, for a fence or for a record.
    pub(super) fn retry<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        self.starving = false;
        if self.phase == Phase::Closing {
            return;
        }
        self.await_connect(cx);
        self.answer_waiting(cx);
        for index in std::mem::take(&mut self.pairs) {
            self.run_pair(cx, index);
        }
        while let Some(&index) = self.bufferless.front()
            && self.supply(cx, index)
        {
            self.bufferless.pop_front();
        }
        if !self.bufferless.is_empty() {
            self.starve(cx);
        }
    }

    /// A receive's head may be used again.
    pub(super) fn keep_head(&mut self, head: Buf) {
        self.heads.push(head);
    }
}
