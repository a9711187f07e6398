//! One queue of a client: commands out of its ring, requests, completions into its ring.
//!
//! ```text
//! ring --take, copied out--> checked --data in place--> running --request ended--> posted, slot free
//!                               \--not aligned, or two fused: a buffer, or the queue stalls until there is one--/
//! ```
//! A slot is the command's permit. The ring has checked that there is one for each command that it gives out, and room for its
//! completion. What a client changes in its memory afterwards changes what is written, and nothing else: each byte of a
//! command or of a list of ranges is read once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringway_reactor::data::Data;
use ringway_reactor::event::EventFd;
use ringway_reactor::io::Io;
use ringway_reactor::shared::{SharedBuf, SharedMemory, TableRefs};
use ringway_shm_ring::command::CommandWords;
use ringway_shm_ring::door::bye;
use ringway_shm_ring::message::Reason;
use ringway_shm_ring::ring::{Completion, TargetQueue, Violation, ZEROS};
use zerocopy::transmute;

use super::{Connection, Seat, TransportStats};
use crate::controller::io::{IoCommand, IoSight, IoWork, check_shared, deallocations, fuse};
use crate::controller::status;
use crate::directory::Directory;
use crate::ids::{RequestId, VolumeId};
use crate::node::interest::Interest;
use crate::request::{Command, Done, Request};
use crate::tokens;
use crate::transport::{ConnectionSeen, Peer};
use crate::wire::command::{Fuse, Sqe};
use crate::wire::completion::NvmeStatus;
use crate::wire::dsm::DsmRange;

/// What a queue works with for a moment.
pub(super) struct Sight<'a> {
    pub(super) directory: &'a Directory,
    pub(super) stats: &'a mut TransportStats,
    /// The queue's own place.
    pub(super) index: usize,
}

/// What is behind a command in flight.
#[derive(Debug, Default)]
enum Work {
    /// One request, data in place or none.
    #[default]
    Plain,
    /// Read into a buffer of ours, to be copied there.
    Copied(SharedBuf),
    /// Dataset Management: what is left to deallocate, last first.
    Ranges { volume: VolumeId, left: Vec<(u64, u32)> },
    /// Compare and Write, fused: the Write's identifier.
    Fused { second: u16 },
}

#[derive(Debug, Default)]
struct Slot {
    cid: u16,
    work: Work,
}

/// A command that was taken: it waits for the second one of a fused pair, or for a buffer.
#[derive(Debug)]
struct Taken {
    cid: u16,
    io: IoCommand,
    offset: u64,
    /// Of a fused pair: identifier and offset of the other one.
    second: Option<(u16, u64)>,
}

/// Plain counters of a queue.
#[derive(Debug, Default)]
struct Counts {
    commands: u64,
    /// Of data, from the client and to it.
    bytes_in: u64,
    bytes_out: u64,
}

/// A queue's number fits: see [`ringway_shm_ring::QUEUES_MAX`].
const QUEUE_BITS: u32 = 6;
const _: () = assert!(ringway_shm_ring::QUEUES_MAX <= 1 << QUEUE_BITS);

/// A queue that is served.
#[derive(Debug)]
pub(super) struct Served {
    ring: TargetQueue<Arc<SharedMemory>>,
    connection: Arc<Connection>,
    index: u16,
    counts: Counts,
    /// As many as the ring has entries.
    slots: Vec<Slot>,
    free: Vec<u16>,
    commands: Option<Arc<EventFd>>,
    /// A wait for `commands` is in flight.
    waited: bool,
    completions: Arc<EventFd>,
    stalled: Option<Taken>,
    /// The first of a fused pair, whose second has to be the very next command.
    first_half: Option<Taken>,
    data_offset: u64,
    data_bytes: u64,
    /// Data has to start on a multiple of this, and be a multiple long, to be moved in place.
    unit: u64,
    /// To the connection's memory.
    refs: TableRefs,
    /// On the list of those that have posted.
    listed: bool,
    closing: bool,
    /// Its reactor polls for it.
    _interest: Interest,
}

/// The connection has one queue less; the last one says good-bye. Returns whether this was the last.
pub(super) fn leave(connection: &Connection) -> bool {
    // AcqRel: the last sees what the others have done before.
    let last = connection.queues.fetch_sub(1, Ordering::AcqRel) == 1;
    if last {
        let dead = connection.association.is_dead();
        let reason = if dead { Reason::Ended } else { Reason::Stopping };
        bye(&connection.line, reason, "the target serves this client no more");
    }
    last
}

impl Served {
    pub(super) fn new(seat: Seat, unit: u32, interest: Interest) -> Served {
        let Seat { connection, index, bells } = seat;
        let layout = connection.layout;
        let memory = Arc::clone(&connection.table.areas()[0]);
        let entries = layout.entries();
        Served {
            ring: TargetQueue::new(memory, layout.queue(index), connection.generation),
            refs: TableRefs::new(&connection.table),
            connection,
            index,
            counts: Counts::default(),
            slots: (0..entries).map(|_| Slot::default()).collect(),
            free: (0..entries).rev().collect(),
            commands: Some(bells.commands),
            waited: true,
            completions: bells.completions,
            stalled: None,
            first_half: None,
            data_offset: layout.data_offset(),
            data_bytes: layout.data_bytes(),
            unit: u64::from(unit),
            listed: false,
            closing: false,
            _interest: interest,
        }
    }

    /// What there is to know of it.
    pub(super) fn seen(&self) -> ConnectionSeen<'_> {
        let association = &self.connection.association;
        ConnectionSeen {
            number: tokens::connection(tokens::SHM, self.connection.number << QUEUE_BITS | u64::from(self.index)),
            peer: Peer::Process(self.connection.pid),
            queue: self.index,
            subsystem: association.subsystem().map_or("", |subsystem| &subsystem.nqn),
            commands: self.counts.commands,
            bytes_received: self.counts.bytes_in,
            bytes_sent: self.counts.bytes_out,
            in_flight: u64::from(self.ring.outstanding()),
            fabric: None,
        }
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// What its client rings.
    pub(super) fn bell(&self) -> Arc<EventFd> {
        Arc::clone(self.commands.as_ref().expect("it is there until the queue is gone"))
    }

    /// Its bell is waited for no more.
    pub(super) fn unbell(&mut self) {
        self.waited = false;
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    pub(super) fn close(&mut self) {
        self.closing = true;
        // Nobody is there to be answered.
        (self.stalled, self.first_half) = (None, None);
    }

    /// Whether nothing is in flight.
    pub(super) fn is_settled(&self) -> bool {
        self.free.len() == self.slots.len() && self.stalled.is_none()
    }

    pub(super) fn is_gone(&self) -> bool {
        self.closing && !self.waited && self.is_settled()
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    pub(super) fn arm(&mut self) {
        self.ring.arm();
    }

    pub(super) fn disarm(&mut self) {
        self.ring.disarm();
    }

    pub(super) fn has_command(&self) -> bool {
        self.stalled.is_none() && self.ring.has_command()
    }

    /// Whether it has posted and is to be put on the list of those.
    pub(super) fn takes_posted(&mut self) -> bool {
        let takes = self.ring.is_unannounced() && !self.listed;
        self.listed |= takes;
        takes
    }

    /// Off the list; the bell to ring, if the client sleeps.
    pub(super) fn rings(&mut self) -> Option<Arc<EventFd>> {
        self.listed = false;
        self.ring.must_ring().then(|| Arc::clone(&self.completions))
    }

    /// Takes what there is, at most as much as there are slots. Returns whether there was something.
    pub(super) fn pull<I: Io>(
        &mut self,
        io: &mut I,
        mut sight: Sight<'_>,
        requests: &mut Vec<(RequestId, Request)>,
    ) -> Result<bool, Violation> {
        let mut pulled = false;
        if let Some(stalled) = self.stalled.take() {
            pulled = self.start(io, &mut sight, stalled, requests);
        }
        let mut budget = self.slots.len();
        while budget > 0 && self.stalled.is_none() {
            let Some(words) = self.ring.take()? else { break };
            budget -= 1;
            pulled = true;
            self.counts.commands += 1;
            sight.stats.commands += 1;
            self.command(io, &mut sight, words, requests);
        }
        Ok(pulled)
    }

    fn command<I: Io>(
        &mut self,
        io: &mut I,
        sight: &mut Sight<'_>,
        words: CommandWords,
        requests: &mut Vec<(RequestId, Request)>,
    ) {
        let sqe: Sqe = transmute!(words);
        let cid = sqe.cid.get();
        let association = &self.connection.association;
        let namespaces = &association.subsystem().expect("a client attaches a volume").namespaces;
        let sees = IoSight { namespaces, directory: sight.directory, write_through: association.write_through() };
        let (half, taken) = match check_shared(&sqe, self.data_bytes, &sees) {
            Ok((command, offset)) => (command.fuse, Taken { cid, io: command, offset, second: None }),
            Err(status) => {
                self.end_first_half();
                return self.post(cid, status);
            }
        };
        if half == Fuse::Second {
            match self.first_half.take() {
                Some(first) => self.join(io, sight, first, &taken, requests),
                None => self.post(cid, NvmeStatus::ABORTED_MISSING_FUSED.dnr()),
            }
            return;
        }
        self.end_first_half();
        if half == Fuse::First {
            self.first_half = Some(taken);
        } else {
            self.start(io, sight, taken, requests);
        }
    }

    /// What came next was not its second half.
    fn end_first_half(&mut self) {
        if let Some(first) = self.first_half.take() {
            self.post(first.cid, NvmeStatus::ABORTED_MISSING_FUSED.dnr());
        }
    }

    /// Makes one command of two (base 3.4.2).
    fn join<I: Io>(
        &mut self,
        io: &mut I,
        sight: &mut Sight<'_>,
        mut first: Taken,
        second: &Taken,
        requests: &mut Vec<(RequestId, Request)>,
    ) {
        let work = match sight.directory.volume(first.io.volume) {
            Some(record) => fuse(&first.io, &second.io, record),
            None => Err(NvmeStatus::INVALID_NAMESPACE_OR_FORMAT.dnr()),
        };
        match work {
            Ok(work) => {
                first.io.work = work;
                first.second = Some((second.cid, second.offset));
                self.start(io, sight, first, requests);
            }
            Err(status) => {
                self.post(first.cid, status);
                self.post(second.cid, NvmeStatus::ABORTED_FAILED_FUSED.dnr());
            }
        }
    }

    /// Begins a command, or stalls the queue where there is no buffer for it. Returns whether it began.
    fn start<I: Io>(
        &mut self,
        io: &mut I,
        sight: &mut Sight<'_>,
        wanted: Taken,
        requests: &mut Vec<(RequestId, Request)>,
    ) -> bool {
        let Taken { cid, io: IoCommand { volume, work, data, .. }, offset, second } = wanted;
        let (command, at, len) = match work {
            IoWork::Request { command, offset, len } => (command, offset, len),
            IoWork::Deallocate { ranges } => {
                self.begin_ranges(sight, cid, (volume, ranges, offset), requests);
                return true;
            }
            IoWork::Hints => {
                self.post(cid, NvmeStatus::SUCCESS);
                return true;
            }
        };
        let data_len = data.len();
        let counted = if command == Command::Read { &mut self.counts.bytes_out } else { &mut self.counts.bytes_in };
        *counted += u64::from(data_len);
        let (mut work, mut moved) = (Work::Plain, None);
        if let Some((second, second_offset)) = second {
            let half = data_len as usize;
            let Some(mut both) = io.buffers().get(2 * half) else {
                sight.stats.waited_for_buffer += 1;
                self.stalled = Some(wanted);
                return false;
            };
            self.read_area(offset, &mut both[..half]);
            self.read_area(second_offset, &mut both[half..]);
            sight.stats.bytes_copied += 2 * u64::from(data_len);
            (work, moved) = (Work::Fused { second }, Some(Data::Own(both)));
        } else if data_len > 0 {
            let place = self.data_offset + offset;
            let shared = SharedBuf::one(self.refs.take(), (0, place, data_len));
            let shared = shared.expect("checked against the data area");
            if (offset | u64::from(data_len)).is_multiple_of(self.unit) {
                moved = Some(Data::Shared(shared));
            } else {
                let Some(mut buf) = io.buffers().get(data_len as usize) else {
                    sight.stats.waited_for_buffer += 1;
                    self.stalled = Some(wanted);
                    return false;
                };
                sight.stats.bytes_copied += u64::from(data_len);
                if command == Command::Read {
                    work = Work::Copied(shared);
                } else {
                    shared.copy_to(0, &mut buf);
                }
                moved = Some(Data::Own(buf));
            }
        }
        let slot = self.hold(cid, work);
        let request = self.request(volume, command, (at, len), moved);
        requests.push((tokens::request(tokens::SHM, sight.index, slot), request));
        true
    }

    fn request(&self, volume: VolumeId, command: Command, (offset, len): (u64, u32), data: Option<Data>) -> Request {
        Request { association: self.connection.association.id, volume, command, offset, len, data }
    }

    /// Copies out of the data area, each byte once. The range was checked with its command.
    fn read_area(&self, offset: u64, to: &mut [u8]) {
        self.connection.table.areas()[0].read((self.data_offset + offset) as usize, to);
    }

    fn hold(&mut self, cid: u16, work: Work) -> usize {
        let slot = usize::from(self.free.pop().expect("the ring gives out no more commands than it has entries"));
        self.slots[slot] = Slot { cid, work };
        slot
    }

    /// Dataset Management (nvm 3.2.3): its ranges are copied out once, checked, and then deallocated one after the other.
    fn begin_ranges(
        &mut self,
        sight: &mut Sight<'_>,
        cid: u16,
        (volume, count, offset): (VolumeId, u16, u64),
        requests: &mut Vec<(RequestId, Request)>,
    ) {
        let mut bytes = vec![0; usize::from(count) * size_of::<DsmRange>()];
        self.read_area(offset, &mut bytes);
        let checked = match sight.directory.volume(volume) {
            Some(record) => deallocations(&bytes, count, record).map(Iterator::collect),
            None => Err(NvmeStatus::INVALID_NAMESPACE_OR_FORMAT.dnr()),
        };
        let mut left: Vec<(u64, u32)> = match checked {
            Ok(left) => left,
            Err(status) => return self.post(cid, status),
        };
        left.reverse();
        let Some(range) = left.pop() else { return self.post(cid, NvmeStatus::SUCCESS) };
        let slot = self.hold(cid, Work::Ranges { volume, left });
        let request = self.request(volume, Command::Deallocate, range, None);
        requests.push((tokens::request(tokens::SHM, sight.index, slot), request));
    }

    /// A request ended.
    #[inline]
    pub(super) fn on_done(&mut self, index: usize, slot: usize, done: Done, requests: &mut Vec<(RequestId, Request)>) {
        let status = status::of(done.status);
        let mut second_half = None;
        match &mut self.slots[slot].work {
            Work::Plain => {}
            Work::Fused { second } => second_half = Some(*second),
            Work::Copied(shared) => {
                if let (true, false, Some(data)) = (status.is_success(), self.closing, &done.data) {
                    data.copy_to_peer(shared);
                }
            }
            Work::Ranges { volume, left } if status.is_success() && !self.closing => {
                if let Some(range) = left.pop() {
                    let volume = *volume;
                    let request = self.request(volume, Command::Deallocate, range, None);
                    requests.push((tokens::request(tokens::SHM, index, slot), request));
                    return;
                }
            }
            Work::Ranges { .. } => {}
        }
        let Slot { cid, work } = std::mem::take(&mut self.slots[slot]);
        drop(work);
        let mut result = 0;
        match done.data {
            Some(Data::Shared(shared)) => self.refs.take_back(shared),
            Some(Data::SharedBlank(blank)) => {
                result = ZEROS;
                self.refs.take_back(blank.unwritten());
            }
            Some(Data::Own(_) | Data::Blank(_)) | None => {}
        }
        self.free.push(slot as u16);
        if self.closing {
            return;
        }
        if let Some(second) = second_half {
            let (first_status, second_status) = status::of_fused(done.status);
            self.post(cid, first_status);
            self.post(second, second_status);
        } else {
            let result = if status.is_success() { result } else { 0 };
            self.ring.post(Completion { cid, status: status.0, result });
        }
    }

    fn post(&mut self, cid: u16, status: NvmeStatus) {
        self.ring.post(Completion { cid, status: status.0, result: 0 });
    }
}
