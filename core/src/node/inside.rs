//! Requests of this process's own threads (a sync that reads, a restore that writes), on reactor 0.
//!
//! They come by the queue of control threads and go the way of every request. Few run at a time and the rest waits here without a
//! buffer, so that however many there are, clients keep theirs.
//!
//! What looks through to a backend may wait for that as long as its clone's patience goes. So those requests are counted volume by
//! volume, and apart from all others: who reads such a volume waits for its backend, and nobody with him.

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;
use ringway_reactor::buf::BufPool;
use ringway_reactor::data::Data;
use slab::Slab;

use crate::ids::{AssociationId, RequestId, VolumeId};
use crate::limits::REQUEST_BYTES_MAX;
use crate::request::{Command, Done, Request, Status};

/// Set in the ids of requests that come from here.
pub(super) const FROM_INSIDE: u64 = 1 << 61;
/// Requests at a time, and bytes of buffers that they have.
const ORDINARY: Room = Room { requests: 64, bytes: 2 << 20 };
/// The same of each volume that looks through to a backend. As many of them are read at a time as snapshots are stored.
const LOOKING_THROUGH: Room = Room { requests: 8, bytes: 512 << 10 };

/// Takes how a request ended, and what a read has read. Runs on reactor 0, so it must not block.
pub type InsideReply = Box<dyn FnOnce(Status, Vec<u8>) + Send>;

/// A request of a thread of this process.
pub struct InsideCall {
    /// Of which volume, or snapshot.
    pub volume: VolumeId,
    /// A read, a write or a flush.
    pub command: Command,
    /// Bytes from its start; with `len` whole logical blocks.
    pub offset: u64,
    /// At most [`REQUEST_BYTES_MAX`].
    pub len: u32,
    /// What a write writes.
    pub data: Bytes,
    /// Called once.
    pub reply: InsideReply,
}

impl fmt::Debug for InsideCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InsideCall({:?} of {} at {}+{})", self.command, self.volume, self.offset, self.len)
    }
}

#[derive(Clone, Copy)]
struct Room {
    requests: usize,
    bytes: usize,
}

struct Running {
    reply: InsideReply,
    read: bool,
    /// Of its buffer.
    bytes: usize,
    /// Whose lane it is in.
    lane: Option<VolumeId>,
}

/// Requests that are counted together.
#[derive(Default)]
struct Lane {
    /// All of this volume, which looks through to a backend; none: of all others.
    of: Option<VolumeId>,
    waiting: VecDeque<Box<InsideCall>>,
    running: usize,
    running_bytes: usize,
}

impl Lane {
    /// Whether a call may run beside those that do. One always may.
    fn has_room(&self, call: &InsideCall) -> bool {
        let room = if self.of.is_some() { LOOKING_THROUGH } else { ORDINARY };
        let fits = self.running_bytes + call.len as usize <= room.bytes;
        self.running < room.requests && (fits || self.running == 0)
    }

    /// What may start now.
    fn next(&self) -> Option<&InsideCall> {
        self.waiting.front().map(|call| &**call).filter(|call| self.has_room(call))
    }
}

/// See the module's description.
#[derive(Default)]
pub(super) struct Inside {
    lanes: Vec<Lane>,
    running: Slab<Running>,
    /// The buffers had run out: asked again next turn.
    starved: bool,
}

impl Inside {
    /// Takes a call; `through`: its volume looks through to a backend.
    pub(super) fn push(&mut self, call: Box<InsideCall>, through: bool) {
        assert!(call.len <= REQUEST_BYTES_MAX, "one request is one buffer");
        let of = through.then_some(call.volume);
        let at = self.lanes.iter().position(|lane| lane.of == of).unwrap_or_else(|| {
            self.lanes.push(Lane { of, ..Lane::default() });
            self.lanes.len() - 1
        });
        self.lanes[at].waiting.push_back(call);
    }

    /// Whether there is something to start now.
    pub(super) fn busy(&self) -> bool {
        !self.starved && self.lanes.iter().any(|lane| lane.next().is_some())
    }

    /// Starts what may run.
    pub(super) fn start(&mut self, buffers: &'static BufPool, requests: &mut Vec<(RequestId, Request)>) {
        self.starved = false;
        for lane in &mut self.lanes {
            while let Some(call) = lane.next() {
                let (read, write) = (call.command == Command::Read, matches!(call.command, Command::Write { .. }));
                let mut data = None;
                if read || write {
                    let Some(mut buf) = buffers.get(call.len as usize) else {
                        // Whoever gives one back wakes this reactor: clients' requests end here.
                        self.starved = true;
                        return;
                    };
                    if write {
                        buf.copy_from_slice(&call.data);
                    }
                    data = Some(Data::from(buf));
                }
                let call = lane.waiting.pop_front().expect("it was looked at");
                let bytes = data.as_ref().map_or(0, |_| call.len as usize);
                lane.running += 1;
                lane.running_bytes += bytes;
                let slot = self.running.insert(Running { reply: call.reply, read, bytes, lane: lane.of });
                let request = Request {
                    association: AssociationId::default(),
                    volume: call.volume,
                    command: call.command,
                    offset: call.offset,
                    len: call.len,
                    data,
                };
                requests.push((RequestId(FROM_INSIDE | slot as u64), request));
            }
        }
    }

    /// One has ended.
    pub(super) fn done(&mut self, done: Done) {
        let Running { reply, read, bytes, lane } = self.running.remove((done.id.0 & !FROM_INSIDE) as usize);
        let at = self.lanes.iter().position(|known| known.of == lane).expect("a lane stays while something of it runs");
        let known = &mut self.lanes[at];
        known.running -= 1;
        known.running_bytes -= bytes;
        if known.running == 0 && known.waiting.is_empty() {
            self.lanes.swap_remove(at);
        }
        let data = match done.data {
            Some(data) if read && done.status == Status::Success => data.bytes().into_owned(),
            _ => Vec::new(),
        };
        reply(done.status, data);
    }

    /// The node stops: what has not started will not.
    pub(super) fn stop(&mut self) {
        for call in self.lanes.iter_mut().flat_map(|lane| lane.waiting.drain(..)) {
            (call.reply)(Status::Aborted, Vec::new());
        }
        self.lanes.retain(|lane| lane.running > 0);
    }
}

#[cfg(test)]
mod tests {
    use ringway_reactor::buf::BufPoolConfig;

    use super::*;

    fn read_of(volume: u32) -> Box<InsideCall> {
        let (command, data) = (Command::Read, Bytes::new());
        Box::new(InsideCall {
            volume: VolumeId(volume),
            command,
            offset: 0,
            len: 4096,
            data,
            reply: Box::new(|_, _| {}),
        })
    }

    #[test]
    fn who_waits_for_a_backend_keeps_nobody_else_from_running() {
        let buffers = BufPool::leak(&BufPoolConfig { classes: vec![(4096, 128)] }, 0);
        let (mut inside, mut requests) = (Inside::default(), Vec::new());
        for _ in 0..100 {
            inside.push(read_of(1), true);
            inside.push(read_of(2), true);
        }
        inside.start(buffers, &mut requests);
        assert_eq!(requests.len(), 2 * LOOKING_THROUGH.requests, "each waits for its own backend");
        assert!(!inside.busy());
        (0..100).for_each(|_| inside.push(read_of(3), false));
        assert!(inside.busy());
        inside.start(buffers, &mut requests);
        assert_eq!(requests.len(), 2 * LOOKING_THROUGH.requests + ORDINARY.requests, "nobody waits with them");
        let of_the_second = requests.iter().position(|(_, request)| request.volume == VolumeId(2)).unwrap();
        let (id, request) = requests.swap_remove(of_the_second);
        inside.done(Done { id, status: Status::BackendUnavailable, data: request.data });
        let before = requests.len();
        inside.start(buffers, &mut requests);
        assert_eq!((requests.len(), requests.last().unwrap().1.volume), (before + 1, VolumeId(2)));
        inside.stop();
        for (id, request) in requests {
            inside.done(Done { id, status: Status::Success, data: request.data });
        }
        assert!(inside.lanes.is_empty() && inside.running.is_empty());
    }
}
