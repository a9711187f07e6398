//! What has to go through a scratch buffer: writes and zeroes that cover a block in part, compares, and everything that is
//! not aligned to the device's logical block. One step after the other, one scratch buffer at a time.
//!
//! ```text
//! next_step -> Scratch (no buffer free)? -> Filling (read the blocks covered in part) -> merge -> Patching (write whole blocks)
//! ```
//! The claim on the blocks is held throughout, and the fill comes from the view below: an absent block of a new version is
//! filled with what the older version has there, not with zeros (C6).

use ringway_reactor::buf::Buf;
use ringway_reactor::data::Data;
use ringway_reactor::io::Io;

use super::Shard;
use super::api::{Event, RecordLog};
use super::levels::Level;
use super::ops::{Kind, Owner};
use super::parts::{PartKey, Run, Segment, Stage, Step};
use super::scratch::Lent;
use crate::limits::BLOCK;
use crate::request::{Command, Status};

const B: u32 = BLOCK as u32;

impl Step {
    /// Bytes of the cluster that the scratch buffer holds: whole blocks.
    fn scratch_range(&self) -> (u32, u32) {
        (self.start / B * B, self.end.div_ceil(B) * B)
    }
}

impl<L: RecordLog> Shard<L> {
    /// Goes on with the part's next step, or completes it.
    pub(super) fn next_step<I: Io>(&mut self, io: &mut I, key: PartKey, out: &mut Vec<Event>) {
        let state = self.parts.at(key);
        if state.step < state.steps.len() && !self.is_still_there(key) {
            let state = self.parts.at(key);
            state.status = state.status.and(Status::VolumeGone);
        }
        let state = self.parts.at(key);
        if state.status != Status::Success || state.step == state.steps.len() {
            return self.complete(key, out);
        }
        let (from, to) = state.steps[state.step].scratch_range();
        let Some(lent) = self.scratch.take((to - from) as usize) else {
            state.stage = Stage::Scratch;
            self.parked.scratch.push_back(key);
            self.stats.waits += 1;
            return;
        };
        self.fill(io, key, lent, out);
    }

    /// Reads what the step needs of the stored blocks.
    fn fill<I: Io>(&mut self, io: &mut I, key: PartKey, lent: Lent, out: &mut Vec<Event>) {
        let state = self.parts.at(key);
        state.stage = Stage::Filling;
        let step = state.steps[state.step];
        let (level, command) = (Level { volume: state.part.volume, at: state.part.view }, state.part.command);
        let whole = !matches!(command, Command::Write { .. } | Command::WriteZeroes { .. });
        let mut pieces = std::mem::take(&mut state.scratch);
        let (from, to) = step.scratch_range();
        for block in from / B..to / B {
            let covered = step.start <= block * B && (block + 1) * B <= step.end;
            if covered && !whole {
                super::read::push_run(&mut pieces, None, B);
            } else {
                self.look_up(level, step.cluster, block * B, (block + 1) * B, &mut pieces);
            }
        }
        let state = self.parts.at(key);
        state.scratch_rest = lent.rest;
        split_along(lent.buf, &mut pieces);
        state.outstanding = pieces.iter().filter(|piece| piece.at.is_some()).count() as u32;
        let outstanding = state.outstanding;
        for (number, piece) in pieces.iter_mut().enumerate() {
            match piece.at {
                Some(run) => {
                    let data = piece.data.take().expect("the buffer was just split");
                    self.submit_read(io, Owner::Scratch { part: key, piece: number as u32 }, run, data);
                }
                None => piece.data = piece.data.take().map(Data::zeroed),
            }
        }
        self.parts.at(key).scratch = pieces;
        if !matches!(command, Command::Read | Command::Compare) {
            self.stats.read_modify_writes += 1;
        }
        if outstanding == 0 {
            self.filled(io, key, out);
        }
    }

    /// The blocks are in the scratch buffer: copy out, compare, or merge and write.
    pub(super) fn filled<I: Io>(&mut self, io: &mut I, key: PartKey, out: &mut Vec<Event>) {
        let mut lent = self.take_scratch(key);
        let state = self.parts.at(key);
        let step = state.steps[state.step];
        let (from, _) = step.scratch_range();
        let (first, end) = ((step.start - from) as usize, (step.end - from) as usize);
        let stored = &mut lent.buf[first..end];
        let segment =
            step.segment.map(|number| state.segments[number].data.as_mut().expect("the client's bytes are here"));
        let mut patch = false;
        if state.status == Status::Success {
            match (state.part.command, segment) {
                (Command::Read, Some(client)) => client.copy_from(0, stored),
                (Command::Write { .. }, Some(client)) => {
                    client.copy_to(0, stored);
                    patch = true;
                }
                (Command::WriteZeroes { .. }, None) => {
                    stored.fill(0);
                    patch = true;
                }
                (Command::Compare | Command::CompareAndWrite { .. }, Some(client)) if !client.equals(0, stored) => {
                    state.status = Status::CompareFailure;
                }
                (Command::Compare, Some(_)) => {}
                (Command::CompareAndWrite { .. }, Some(client)) => {
                    client.copy_to(stored.len(), stored);
                    patch = true;
                }
                (command, _) => unreachable!("{command:?} has no step of this kind"),
            }
        }
        if patch {
            self.patch(io, key, lent);
        } else {
            self.scratch.give(lent);
            self.parts.at(key).step += 1;
            self.next_step(io, key, out);
        }
    }

    /// Writes the merged blocks to the step's target.
    fn patch<I: Io>(&mut self, io: &mut I, key: PartKey, lent: Lent) {
        let state = self.parts.at(key);
        state.stage = Stage::Patching;
        let step = state.steps[state.step];
        let place = state.targets[step.target].place;
        let run = Run { file: u16::from(place.device()), offset: place.offset() + u64::from(step.scratch_range().0) };
        state.outstanding = 1;
        state.scratch_rest = lent.rest;
        state.scratch.push(Segment { data: None, at: Some(run), len: lent.buf.len() as u32 });
        let kind = if state.durable { Kind::DurableWrite } else { Kind::Write };
        self.submit_write(io, Owner::Scratch { part: key, piece: 0 }, run, lent.buf, kind);
    }

    /// An operation on the scratch buffer is back.
    pub(super) fn on_scratch<I: Io>(&mut self, io: &mut I, key: PartKey, piece: u32, buf: Buf, out: &mut Vec<Event>) {
        let state = self.parts.at(key);
        state.scratch[piece as usize].data = Some(buf.into());
        state.outstanding -= 1;
        if state.outstanding > 0 {
            return;
        }
        if state.stage == Stage::Filling {
            return self.filled(io, key, out);
        }
        assert_eq!(state.stage, Stage::Patching);
        state.step += 1;
        let lent = self.take_scratch(key);
        self.scratch.give(lent);
        self.next_step(io, key, out);
    }

    /// The scratch buffer in one piece again.
    fn take_scratch(&mut self, key: PartKey) -> Lent {
        let state = self.parts.at(key);
        let mut pieces =
            state.scratch.drain(..).map(|piece| piece.data.expect("nothing is at the device any more").into_own());
        let mut buf = pieces.next().expect("a step has a scratch buffer");
        pieces.for_each(|piece| buf.join(piece));
        Lent { buf, rest: state.scratch_rest.take() }
    }
}

fn split_along(buf: Buf, pieces: &mut [Segment]) {
    let mut rest = buf;
    let count = pieces.len();
    for (number, piece) in pieces.iter_mut().enumerate() {
        let tail = rest.split_off(if number + 1 == count { rest.len() } else { piece.len as usize });
        piece.data = Some(std::mem::replace(&mut rest, tail).into());
    }
}
