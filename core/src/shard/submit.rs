//! To the device and back: every operation of a shard is submitted and reaped here.

use ringway_reactor::data::Data;
use ringway_reactor::io::{Completion, FileId, Io, Op, Payload};

use super::Shard;
use super::api::{Event, RecordLog};
use super::fault::{self, Verdict};
use super::ops::{Kind, Owner};
use super::parts::{PartKey, Run, Stage};
use crate::request::Status;

impl<L: RecordLog> Shard<L> {
    pub(super) fn submit_read<I: Io>(&mut self, io: &mut I, owner: Owner, run: Run, data: impl Into<Data>) {
        let data = data.into();
        self.stats.device_reads += 1;
        let slot = self.ops.insert(owner, Kind::Read, run.file);
        io.submit(self.tokens.token(slot), Op::Read { file: FileId(run.file), offset: run.offset, data });
    }

    pub(super) fn submit_write<I: Io>(
        &mut self,
        io: &mut I,
        owner: Owner,
        run: Run,
        data: impl Into<Data>,
        kind: Kind,
    ) {
        let data = data.into();
        self.stats.device_writes += 1;
        let durable = kind == Kind::DurableWrite;
        let slot = self.ops.insert(owner, kind, run.file);
        io.submit(self.tokens.token(slot), Op::Write { file: FileId(run.file), offset: run.offset, data, durable });
    }

    pub(super) fn submit_punch<I: Io>(&mut self, io: &mut I, hole: u32, run: Run, len: u64) {
        let slot = self.ops.insert(Owner::Punch { hole }, Kind::Deallocate, run.file);
        io.submit(self.tokens.token(slot), Op::Deallocate { file: FileId(run.file), offset: run.offset, len });
    }

    /// Sends the part's segments that have a place, then goes on with its steps.
    pub(super) fn submit_segments<I: Io>(&mut self, io: &mut I, key: PartKey, write: bool, out: &mut Vec<Event>) {
        let state = self.parts.at(key);
        state.stage = Stage::Device;
        let kind = if state.durable { Kind::DurableWrite } else { Kind::Write };
        let mut segments = std::mem::take(&mut state.segments);
        let count = segments.iter().filter(|segment| segment.at.is_some()).count() as u32;
        state.outstanding = count;
        for (number, segment) in segments.iter_mut().enumerate() {
            let Some(run) = segment.at else { continue };
            let data = segment.data.take().expect("the data was just split");
            let owner = Owner::Segment { part: key, segment: number as u32 };
            if write {
                self.submit_write(io, owner, run, data, kind);
            } else {
                self.submit_read(io, owner, run, data);
            }
        }
        self.parts.at(key).segments = segments;
        if count == 0 {
            self.next_step(io, key, out);
        }
    }

    /// An operation of this shard came back. What waited for it goes on; nothing new starts before [`Shard::execute`].
    pub fn on_completion<I: Io>(&mut self, io: &mut I, slot: u32, completion: Completion, out: &mut Vec<Event>) {
        let op = self.ops.remove(slot);
        self.calm &= matches!(op.owner, Owner::Whole { .. }) && completion.result.is_ok();
        if op.kind == Kind::Write && completion.result.is_ok() {
            self.commit.dirty.insert(op.file);
        }
        let failed = completion.result.err().map(|error| {
            let verdict = fault::classify(op.owner, op.kind, error);
            if let Verdict::Shard(why) = &verdict {
                self.fail_shard(why.clone(), out);
            }
            verdict
        });
        let data = match completion.payload {
            Payload::Data(data) => Some(data),
            _ => None,
        };
        let given_back = "a read or write gives its memory back";
        match op.owner {
            Owner::Whole { part } => {
                self.note_failure(part, failed.as_ref());
                self.on_whole(part, data.expect(given_back), out);
            }
            Owner::Segment { part, segment } => {
                self.note_failure(part, failed.as_ref());
                self.on_segment(io, part, segment, data.expect(given_back), out);
            }
            Owner::Scratch { part, piece } => {
                self.note_failure(part, failed.as_ref());
                self.on_scratch(io, part, piece, data.expect(given_back).into_own(), out);
            }
            Owner::NodePage(node) => {
                self.on_node_page(io, node, data.expect(given_back).into_own(), failed.as_ref(), out);
            }
            Owner::Group => self.on_group(io, data.expect(given_back).into_own(), failed.is_some(), out),
            Owner::Job { job, piece } => {
                let status = match &failed {
                    Some(Verdict::Part(status)) => *status,
                    _ => Status::Success,
                };
                self.on_job_op(io, job, piece, data.expect(given_back), status);
            }
            Owner::Punch { hole } => self.on_punched(hole),
            Owner::Checkpoint { nth } => {
                self.on_checkpoint_op(io, nth, data.expect(given_back).into_own(), failed.is_some(), out);
            }
        }
    }

    fn note_failure(&mut self, part: PartKey, failed: Option<&Verdict>) {
        if let Some(Verdict::Part(status)) = failed {
            let state = self.parts.at(part);
            state.status = state.status.and(*status);
        }
    }

    fn on_segment<I: Io>(&mut self, io: &mut I, key: PartKey, segment: u32, data: Data, out: &mut Vec<Event>) {
        let state = self.parts.at(key);
        state.segments[segment as usize].data = Some(data);
        state.outstanding -= 1;
        if state.outstanding == 0 {
            self.next_step(io, key, out);
        }
    }

    /// Takes no more writes, for good: parts that wait for something durable cannot get it.
    pub(super) fn fail_shard(&mut self, why: String, out: &mut Vec<Event>) {
        if self.fault.is_some() {
            return;
        }
        out.push(Event::Fault { volume: None, why: why.clone() });
        self.fault = Some(why);
        let stuck: Vec<PartKey> =
            self.parts.iter().filter(|(_, state)| state.stage == Stage::Committing).map(|(key, _)| key).collect();
        for key in stuck {
            self.finish(key, Status::WriteFault, out);
        }
        self.commit.forget_waiters();
        self.unpark_all();
    }

    /// Queues everything again that waits for room of some kind.
    pub(super) fn unpark_all(&mut self) {
        self.ready.append(&mut self.parked.journal.drain(..).collect());
        self.ready.append(&mut self.parked.space.drain(..).collect());
        self.ready.append(&mut self.parked.nodes.drain(..).collect());
    }

    /// Gives parts that wait for a scratch buffer another try, in order.
    pub(super) fn unpark_scratch<I: Io>(&mut self, io: &mut I, out: &mut Vec<Event>) {
        for _ in 0..self.parked.scratch.len() {
            let Some(key) = self.parked.scratch.pop_front() else { return };
            let waiting = self.parts.get_mut(key).is_some_and(|state| state.stage == Stage::Scratch);
            if !waiting {
                continue;
            }
            self.next_step(io, key, out);
            if self.parked.scratch.back() == Some(&key) {
                self.parked.scratch.rotate_right(1);
                return;
            }
        }
    }
}
