//! Requests of this process's own threads (a sync that reads, a restore that writes), on reactor 0.
//!
//! They come by the queue of control threads and go the way of every request. Few run at a time and the rest waits here without a
//! buffer, so that however many there are, clients keep theirs.

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
const RUNNING_MAX: usize = 16;
const RUNNING_BYTES_MAX: usize = 2 << 20;

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

struct Running {
    reply: InsideReply,
    read: bool,
    /// Of its buffer.
    bytes: usize,
}

/// See the module's description.
#[derive(Default)]
pub(super) struct Inside {
    waiting: VecDeque<Box<InsideCall>>,
    running: Slab<Running>,
    running_bytes: usize,
    /// The buffers had run out: asked again next turn.
    starved: bool,
}

impl Inside {
    pub(super) fn push(&mut self, call: Box<InsideCall>) {
        assert!(call.len <= REQUEST_BYTES_MAX, "one request is one buffer");
        self.waiting.push_back(call);
    }

    /// Whether a call may run beside those that do. One always may.
    fn has_room(&self, call: &InsideCall) -> bool {
        let fits = self.running_bytes + call.len as usize <= RUNNING_BYTES_MAX;
        self.running.len() < RUNNING_MAX && (fits || self.running.is_empty())
    }

    /// Whether there is something to start now.
    pub(super) fn busy(&self) -> bool {
        self.waiting.front().is_some_and(|call| self.has_room(call)) && !self.starved
    }

    /// Starts what may run.
    pub(super) fn start(&mut self, buffers: &'static BufPool, requests: &mut Vec<(RequestId, Request)>) {
        self.starved = false;
        while let Some(call) = self.waiting.front().filter(|call| self.has_room(call)) {
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
            let call = self.waiting.pop_front().expect("it was looked at");
            let bytes = data.as_ref().map_or(0, |_| call.len as usize);
            self.running_bytes += bytes;
            let slot = self.running.insert(Running { reply: call.reply, read, bytes });
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

    /// One has ended.
    pub(super) fn done(&mut self, done: Done) {
        let Running { reply, read, bytes } = self.running.remove((done.id.0 & !FROM_INSIDE) as usize);
        self.running_bytes -= bytes;
        let data = match done.data {
            Some(data) if read && done.status == Status::Success => data.bytes().into_owned(),
            _ => Vec::new(),
        };
        reply(done.status, data);
    }

    /// The node stops: what has not started will not.
    pub(super) fn stop(&mut self) {
        for call in self.waiting.drain(..) {
            (call.reply)(Status::Aborted, Vec::new());
        }
    }
}
