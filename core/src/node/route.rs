//! Requests in flight on this reactor: cut into parts by shard, put together again when the parts come back.
//!
//! A part never crosses a stripe, so it is contiguous in its shard. A request with a buffer has at most two parts, each with
//! its own range of that buffer. A range without a buffer (write zeroes, deallocate) may be terabytes: it is worked off stripe
//! by stripe with [`WINDOW`] parts in flight.

use std::sync::Arc;

use ringway_reactor::data::Data;
use slab::Slab;

use crate::ids::{AssociationId, RequestId, ShardId, VolumeId};
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
    association: AssociationId,
    of: VolumeId,
    command: Command,
    /// Where a range without a buffer goes on.
    volume: Option<Arc<VolumeRecord>>,
    status: Status,
    /// Parts sent and not back.
    outstanding: u32,
    /// Next byte to send a part for, and the end of the range.
    cursor: u64,
    end: u64,
    /// What has come back of data that two parts share.
    halves: Option<Box<[Option<Data>; 2]>>,
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
        request: Request,
        volume: Option<&Arc<VolumeRecord>>,
        parts: &mut Vec<(ShardId, Part)>,
    ) -> Option<Done> {
        let refuse = |request: Request, status| Some(Done { id, status, data: request.data });
        let Some(volume) = volume else { return refuse(request, Status::VolumeGone) };
        let (begin, len) = (request.offset, u64::from(request.len));
        if begin.checked_add(len).is_none_or(|end| end > volume.size) {
            return refuse(request, Status::LbaOutOfRange);
        }
        if volume.is_snapshot() && request.command.changes_data() {
            return refuse(request, Status::WriteProtected);
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
        let (command, data) = (request.command, request.data);
        let entry = self.running.vacant_entry();
        let slot = entry.key();
        let running = entry.insert(Running {
            id,
            association: request.association,
            of: request.volume,
            command,
            volume: None,
            status: Status::Success,
            outstanding: 0,
            cursor: begin,
            end: begin + len,
            halves: None,
        });
        match (command, data) {
            (Command::Flush, _) => running.send_flush(self.reactor, slot, volume, parts),
            (_, Some(data)) => running.send_data(self.reactor, slot, volume, begin, data, parts),
            (_, None) => {
                running.volume = Some(Arc::clone(volume));
                running.send_window(self.reactor, slot, parts);
            }
        }
        None
    }

    /// A part came back. Returns the request if that was its last.
    pub fn part_done(&mut self, done: PartDone, parts: &mut Vec<(ShardId, Part)>) -> Option<Done> {
        let part = PartId::unpack(done.id);
        assert_eq!(part.reactor, self.reactor, "a part returns to the reactor that sent it");
        let slot = part.slot as usize;
        let running = &mut self.running[slot];
        running.outstanding -= 1;
        running.status = running.status.and(done.status);
        let mut data = done.data;
        if let Some(halves) = &mut running.halves {
            let before = std::mem::replace(&mut halves[usize::from(part.index)], data.take());
            assert!(before.is_none(), "a part comes back once");
        }
        if running.status == Status::Success && running.cursor < running.end {
            running.send_window(self.reactor, slot, parts);
        }
        if running.outstanding > 0 {
            return None;
        }
        if let Some(halves) = running.halves.take() {
            data = Some(join(*halves));
        }
        let (id, status) = (running.id, running.status);
        self.running.remove(slot);
        Some(Done { id, status, data })
    }

    /// The association is dead: its requests send no further parts.
    pub fn stop_association(&mut self, association: AssociationId) {
        for (_, running) in self.running.iter_mut() {
            if running.association == association && running.cursor < running.end {
                running.cursor = running.end;
                running.status = running.status.and(Status::Aborted);
            }
        }
    }
}

impl Running {
    fn send_flush(&mut self, reactor: u16, slot: usize, volume: &VolumeRecord, parts: &mut Vec<(ShardId, Part)>) {
        self.cursor = self.end;
        self.outstanding = volume.shards.len() as u32;
        for &shard in &volume.shards {
            let id = PartId { reactor, slot: slot as u32, index: 0 };
            parts.push((shard, self.part(id, 0, 0, None)));
        }
    }

    fn send_data(
        &mut self,
        reactor: u16,
        slot: usize,
        volume: &VolumeRecord,
        offset: u64,
        mut data: Data,
        parts: &mut Vec<(ShardId, Part)>,
    ) {
        let len = self.end - offset;
        self.cursor = self.end;
        let front = (STRIPE - offset % STRIPE).min(len);
        self.outstanding = 1;
        if front < len {
            self.outstanding = 2;
            self.halves = Some(Box::default());
            let back = data.split_off(front as usize);
            let id = PartId { reactor, slot: slot as u32, index: 1 };
            let (shard, start) = place(volume, offset + front);
            parts.push((shard, self.part(id, start, (len - front) as u32, Some(back))));
        }
        let id = PartId { reactor, slot: slot as u32, index: 0 };
        let (shard, start) = place(volume, offset);
        parts.push((shard, self.part(id, start, front as u32, Some(data))));
    }

    fn send_window(&mut self, reactor: u16, slot: usize, parts: &mut Vec<(ShardId, Part)>) {
        let volume = self.volume.as_ref().expect("a range without a buffer keeps its volume");
        while self.outstanding < WINDOW && self.cursor < self.end {
            let offset = self.cursor;
            let len = (STRIPE - offset % STRIPE).min(self.end - offset);
            self.cursor += len;
            self.outstanding += 1;
            let id = PartId { reactor, slot: slot as u32, index: 0 };
            let (shard, start) = place(volume, offset);
            parts.push((shard, self.part(id, start, len as u32, None)));
        }
    }

    fn part(&self, id: PartId, start: u64, len: u32, data: Option<Data>) -> Part {
        Part {
            id: id.pack(),
            association: self.association,
            volume: self.of,
            command: self.command,
            start,
            len,
            data,
            view: None,
        }
    }
}

/// Both halves of a request's data, which came back in whatever order.
fn join([front, back]: [Option<Data>; 2]) -> Data {
    let (Some(mut front), Some(back)) = (front, back) else { panic!("each half comes back") };
    front.join(back);
    front
}

/// The shard of a byte of the volume, and where in the volume's clusters there it is.
fn place(volume: &VolumeRecord, offset: u64) -> (ShardId, u64) {
    let at = volume.locate(offset);
    (at.shard, u64::from(at.cluster) * CLUSTER + u64::from(at.offset))
}
