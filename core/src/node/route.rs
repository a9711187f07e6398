//! Requests in flight on this reactor: cut into parts by shard, put together again when the parts come back.
//!
//! A part never crosses a stripe, so it is contiguous in its shard. A request with a buffer has at most two parts, each with
//! its own range of that buffer. A range without a buffer (write zeroes, deallocate) may be terabytes: it is worked off stripe
//! by stripe with [`WINDOW`] parts in flight.

use std::sync::Arc;

use ringway_reactor::data::Data;
use ringway_reactor::io::Instant;
use slab::Slab;

use crate::ids::{AssociationId, RequestId, ShardId};
use crate::limits::{CLUSTER, REQUEST_BYTES_MAX, STRIPE};
use crate::request::{Command, Done, Request, Status};
use crate::shard::{Part, PartDone};
use crate::volume::VolumeRecord;

/// Parts of one bufferless request in flight: enough to keep every shard at work, few enough not to bury other requests.
const WINDOW: u32 = 32;

/// A part's number: where its request waits for it, and which part it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartId {
    /// The reactor on which the request runs.
    pub reactor: u16,
    /// The request's slot there.
    pub slot: u32,
    /// Which of its parts.
    pub index: u16,
}

impl PartId {
    /// As the opaque number that a shard carries.
    #[must_use]
    pub fn pack(self) -> u64 {
        u64::from(self.reactor) << 48 | u64::from(self.index) << 32 | u64::from(self.slot)
    }

    /// From the opaque number.
    #[must_use]
    pub fn unpack(id: u64) -> PartId {
        PartId { reactor: (id >> 48) as u16, index: (id >> 32) as u16, slot: id as u32 }
    }
}

struct Running {
    id: RequestId,
    request: Request,
    volume: Arc<VolumeRecord>,
    status: Status,
    /// Parts sent and not back.
    outstanding: u32,
    /// Next byte to send a part for, and the end of the range.
    cursor: u64,
    end: u64,
    data: [Option<Data>; 2],
    started: Instant,
}

/// A request that has ended, with what the metrics want to know.
#[derive(Debug)]
pub struct Finished {
    /// For the transport.
    pub done: Done,
    /// What it was.
    pub command: Command,
    /// Of which volume.
    pub volume: Arc<VolumeRecord>,
    /// Bytes of its range.
    pub len: u32,
    /// From its start here to its end.
    pub latency_ns: u64,
}

/// The requests in flight on one reactor.
pub struct Router {
    reactor: u16,
    running: Slab<Running>,
}

impl Router {
    /// None in flight.
    #[must_use]
    pub fn new(reactor: u16) -> Self {
        Self { reactor, running: Slab::with_capacity(1024) }
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.running.len()
    }

    /// Starts `request` on `volume` (`None`: it is gone). Appends its first parts to `parts`, or ends it at once.
    pub fn start(
        &mut self,
        id: RequestId,
        mut request: Request,
        volume: Option<&Arc<VolumeRecord>>,
        now: Instant,
        parts: &mut Vec<(ShardId, Part)>,
    ) -> Option<Done> {
        let refuse = |request: Request, status| Some(Done { id, status, data: request.data });
        let Some(volume) = volume else { return refuse(request, Status::VolumeGone) };
        let (begin, len) = (request.offset, u64::from(request.len));
        if begin.checked_add(len).is_none_or(|end| end > volume.size) {
            return refuse(request, Status::LbaOutOfRange);
        }
        if request.command != Command::Flush && len == 0 {
            return refuse(request, Status::Success);
        }
        if let Some(data) = &request.data {
            let wanted = if matches!(request.command, Command::CompareAndWrite { .. }) { 2 * len } else { len };
            assert!(
                data.len() as u64 == wanted && request.len <= REQUEST_BYTES_MAX,
                "the transport checked {request:?}"
            );
        }
        let data = request.data.take();
        let slot = self.running.insert(Running {
            id,
            request,
            volume: volume.clone(),
            status: Status::Success,
            outstanding: 0,
            cursor: begin,
            end: begin + len,
            data: [None, None],
            started: now,
        });
        match (self.running[slot].request.command, data) {
            (Command::Flush, _) => self.send_flush(slot, parts),
            (_, Some(data)) => self.send_data(slot, data, parts),
            (_, None) => self.send_window(slot, parts),
        }
        None
    }

    /// A part came back. Returns the request if that was its last.
    pub fn part_done(&mut self, done: PartDone, now: Instant, parts: &mut Vec<(ShardId, Part)>) -> Option<Finished> {
        let part = PartId::unpack(done.id);
        assert_eq!(part.reactor, self.reactor, "a part returns to the reactor that sent it");
        let slot = part.slot as usize;
        let running = &mut self.running[slot];
        running.outstanding -= 1;
        running.status = running.status.and(done.status);
        if let Some(data) = done.data {
            let before = running.data[usize::from(part.index)].replace(data);
            assert!(before.is_none(), "a part comes back once");
        }
        if running.status == Status::Success && running.cursor < running.end {
            self.send_window(slot, parts);
        }
        (self.running[slot].outstanding == 0).then(|| self.finish(slot, now))
    }

    /// The association is dead: its requests send no further parts.
    pub fn stop_association(&mut self, association: AssociationId) {
        for (_, running) in self.running.iter_mut() {
            if running.request.association == association && running.cursor < running.end {
                running.cursor = running.end;
                running.status = running.status.and(Status::Aborted);
            }
        }
    }

    fn finish(&mut self, slot: usize, now: Instant) -> Finished {
        let running = self.running.remove(slot);
        let [first, second] = running.data;
        let data = match (first, second) {
            (Some(mut front), Some(back)) => {
                front.join(back);
                Some(front)
            }
            (front, None) => front,
            (None, Some(_)) => unreachable!("a second part without a first"),
        };
        Finished {
            done: Done { id: running.id, status: running.status, data },
            command: running.request.command,
            volume: running.volume,
            len: running.request.len,
            latency_ns: now.since_ns(running.started),
        }
    }

    fn send_flush(&mut self, slot: usize, parts: &mut Vec<(ShardId, Part)>) {
        let running = &mut self.running[slot];
        running.cursor = running.end;
        running.outstanding = running.volume.shards.len() as u32;
        for &shard in &running.volume.shards {
            parts.push((shard, part(self.reactor, slot, 0, &running.request, 0, 0, None)));
        }
    }

    fn send_data(&mut self, slot: usize, mut data: Data, parts: &mut Vec<(ShardId, Part)>) {
        let running = &mut self.running[slot];
        running.cursor = running.end;
        let (offset, len) = (running.request.offset, u64::from(running.request.len));
        let front = (STRIPE - offset % STRIPE).min(len);
        let back = (front < len).then(|| data.split_off(front as usize));
        running.outstanding = 1 + u32::from(back.is_some());
        for (index, data, offset, len) in [(0, Some(data), offset, front), (1, back, offset + front, len - front)] {
            if data.is_some() {
                let at = running.volume.locate(offset);
                let start = u64::from(at.cluster) * CLUSTER + u64::from(at.offset);
                parts.push((at.shard, part(self.reactor, slot, index, &running.request, start, len as u32, data)));
            }
        }
    }

    fn send_window(&mut self, slot: usize, parts: &mut Vec<(ShardId, Part)>) {
        let running = &mut self.running[slot];
        while running.outstanding < WINDOW && running.cursor < running.end {
            let offset = running.cursor;
            let len = (STRIPE - offset % STRIPE).min(running.end - offset);
            running.cursor += len;
            running.outstanding += 1;
            let at = running.volume.locate(offset);
            let start = u64::from(at.cluster) * CLUSTER + u64::from(at.offset);
            parts.push((at.shard, part(self.reactor, slot, 0, &running.request, start, len as u32, None)));
        }
    }
}

fn part(reactor: u16, slot: usize, index: u16, request: &Request, start: u64, len: u32, data: Option<Data>) -> Part {
    Part {
        id: PartId { reactor, slot: slot as u32, index }.pack(),
        association: request.association,
        volume: request.volume,
        command: request.command,
        start,
        len,
        data,
        view: None,
    }
}
