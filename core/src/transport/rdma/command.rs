//! Commands of one connection, from capsule to request.
//!
//! ```text
//! capsule --> Bufferless --buffer, RDMA READ posted--> Reading --read done--> Running --request ended--> answered, slot free
//!     \            \------------------ nothing to read ------------------------/
//!      \-- data in the capsule: it lies where the device will write it from ---/
//! ```
//! A slot is the command's permit: taken with the capsule, given back with the answer, so each command is answered once.
//! Pressure never fails a command: without a buffer, or without room in the send queue, it stays `Bufferless`, and those that come
//! after it wait behind it.

use ringway_rdma::verbs::{Remote, Work as Post};
use ringway_reactor::buf::Buf;
use ringway_reactor::data::Data;
use ringway_reactor::io::Io;

use super::answer::Answer;
use super::connection::{Connection, Phase};
use super::{Cx, TransportEvent};
use crate::controller::status;
use crate::ids::VolumeId;
use crate::request::{Command, Done, Request};
use crate::tokens;
use crate::transport::fused::{self, Half, Next};
use crate::transport::session::Queue;
use crate::transport::work::{Checked, NextRange, Work, check};
use crate::wire::command::{Direction, SQE_BYTES, Sqe};
use crate::wire::completion::NvmeStatus;
use crate::wire::sgl::{Capsule, DataPlace, KeyedMemory};

/// How far a command has come.
#[derive(Debug)]
pub(super) enum Stage {
    /// Needs a buffer for its data, and room to read it if it comes from the host.
    Bufferless { read: bool },
    /// The card reads its data from the host.
    Reading,
    /// All of its data is here, and it waits: for the other half of its pair.
    Complete(Buf),
    /// At the shards, or being answered.
    Running,
}

/// One command and its permit.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) cid: u16,
    work: Work,
    stage: Stage,
    /// Decided before its data was complete: how it ends once it is.
    verdict: Option<NvmeStatus>,
    /// Bytes of data.
    len: usize,
    /// Where they are in the host's memory, if that is where they are.
    pub(super) at: Option<KeyedMemory>,
    /// Bytes counted against the connection.
    pub(super) held: usize,
    /// The buffer of its capsule's data: whole, or what lies behind the data that the command works with.
    pub(super) capsule: Option<Buf>,
}

impl Half for Slot {
    fn work(&self) -> &Work {
        &self.work
    }

    fn work_mut(&mut self) -> &mut Work {
        &mut self.work
    }

    fn verdict(&mut self) -> &mut Option<NvmeStatus> {
        &mut self.verdict
    }

    fn data(&self) -> Option<&Buf> {
        match &self.stage {
            Stage::Complete(buf) => Some(buf),
            _ => None,
        }
    }
}

/// How a command's data comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coming {
    /// With the capsule, from this byte on.
    Here { offset: usize },
    /// The card reads it.
    Read,
    /// It goes to the host, or there is none.
    Not,
}

fn remote(at: KeyedMemory) -> Remote {
    Remote { address: at.address, key: at.key }
}

impl Connection {
    /// A command capsule of `len` bytes.
    pub(super) fn take_capsule<I: Io>(&mut self, cx: &mut Cx<'_, I>, head: Buf, capsule: Option<Buf>, len: usize) {
        let entry = Sqe::read(&head).copied().filter(|_| len >= SQE_BYTES);
        self.keep_head(head);
        let Some(sqe) = entry else { return self.violate(cx, "a capsule is shorter than a command") };
        if cx.draining {
            return; // its connection closes, and its host sends it again to who comes next
        }
        if self.queue.is_dead() {
            return self.close(cx, "its association has ended");
        }
        if self.commands.len() >= self.queue.entries() {
            return self.violate(cx, "it sends more commands than its queue has entries");
        }
        cx.stats.commands += 1;
        self.commands_taken += 1;
        self.queue.advance_head(cx.io.now());
        match self.classify(cx, &sqe, len - SQE_BYTES) {
            Ok((work, len, coming, at)) => self.begin_command(cx, (sqe.cid.get(), work), (len, coming), at, capsule),
            Err(status) => {
                self.queue.refused(&sqe, status, cx.io.now());
                let index = self.insert(sqe.cid.get(), Work::Admin(Box::default()), capsule);
                self.pair(cx, index);
                self.answer(cx, index, Answer::status(status));
            }
        }
    }

    /// Checks a command against its queue: what it is, how many bytes of data it has, how they come, and where they are.
    fn classify<I>(
        &self,
        cx: &Cx<'_, I>,
        sqe: &Sqe,
        capsule_data: usize,
    ) -> Result<(Work, usize, Coming, Option<KeyedMemory>), NvmeStatus> {
        let Checked { work, direction, place, len } =
            check(&self.queue, sqe, Capsule::rdma(capsule_data), cx.directory)?;
        Ok(match (direction, place) {
            (Direction::None, _) => (work, 0, Coming::Not, None),
            _ if len == 0 => (work, 0, Coming::Not, None),
            (Direction::HostToController, DataPlace::InCapsule { offset, .. }) => {
                (work, len, Coming::Here { offset: offset as usize }, None)
            }
            (Direction::HostToController, DataPlace::Keyed { at, .. }) => (work, len, Coming::Read, Some(at)),
            (Direction::ControllerToHost, DataPlace::Keyed { at, .. }) => (work, len, Coming::Not, Some(at)),
            // There is no room in a response capsule: nothing that takes part in I/O comes so.
            (Direction::ControllerToHost, DataPlace::InCapsule { .. }) => (work, 0, Coming::Not, None),
            (_, DataPlace::Transport { .. }) => unreachable!("not known to NVMe/RDMA"),
        })
    }

    fn begin_command<I: Io>(
        &mut self,
        cx: &mut Cx<'_, I>,
        (cid, work): (u16, Work),
        (len, coming): (usize, Coming),
        at: Option<KeyedMemory>,
        capsule: Option<Buf>,
    ) {
        let index = self.insert(cid, work, capsule);
        let slot = &mut self.commands[index];
        (slot.len, slot.at) = (len, at);
        self.pair(cx, index);
        if let Coming::Here { offset } = coming {
            let slot = &mut self.commands[index];
            let mut buf = slot.capsule.take().expect("a capsule that has data has a buffer for it");
            if offset > 0 {
                // The device wants it aligned; hosts put it at the beginning.
                buf.copy_within(offset..offset + len, 0);
                cx.stats.bytes_copied += len as u64;
            }
            slot.capsule = Some(buf.split_off(len));
            return self.data_here(cx, index, buf);
        }
        self.commands[index].stage = Stage::Bufferless { read: coming == Coming::Read };
        // In order: one that needs less does not go past one that waits.
        let behind = len > 0 && !self.bufferless.is_empty();
        if behind || !self.supply(cx, index) {
            cx.stats.waited_for_buffer += 1;
            self.bufferless.push_back(index);
            self.starve(cx);
        }
    }

    pub(super) fn insert(&mut self, cid: u16, work: Work, capsule: Option<Buf>) -> usize {
        let stage = Stage::Running;
        self.commands.insert(Slot { cid, work, stage, verdict: None, len: 0, at: None, held: 0, capsule })
    }

    /// Gives a command the buffer that it needs and lets it go on. `false` if there is none now, or no room to read.
    pub(super) fn supply<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize) -> bool {
        let slot = &mut self.commands[index];
        let Stage::Bufferless { read } = slot.stage else { return true };
        let len = slot.len;
        if len == 0 {
            slot.stage = Stage::Running;
            self.run(cx, index, None);
            return true;
        }
        // A single command always fits, whatever the bounds say.
        let held = self.bytes_held + self.bytes_writing;
        if held > 0 && held + len > cx.config.connection_bytes_max || read && !self.has_room(1) {
            return false;
        }
        let Some(buf) = cx.io.buffers().get(len) else { return false };
        self.bytes_held += len;
        let slot = &mut self.commands[index];
        slot.held = len;
        if read {
            slot.stage = Stage::Reading;
            let from = remote(slot.at.expect("what is read is in the host's memory"));
            self.post_data(cx, Post::Read { buf, from }, index);
        } else {
            slot.stage = Stage::Running;
            self.run(cx, index, Some(buf));
        }
        true
    }

    /// A command's data is here.
    pub(super) fn data_here<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize, buf: Buf) {
        let slot = &mut self.commands[index];
        if matches!(slot.work, Work::Fused { .. }) {
            slot.stage = Stage::Complete(buf);
            return self.run_pair(cx, index);
        }
        slot.stage = Stage::Running;
        self.run(cx, index, Some(buf));
    }

    /// Everything the command needs is here.
    fn run<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize, buf: Option<Buf>) {
        match &mut self.commands[index].work {
            &mut Work::Io { volume, command, offset, len } => {
                self.request(cx, index, volume, command, (offset, len), buf);
            }
            work @ Work::Ranges { .. } => {
                let next = work.next_range(buf.as_deref(), cx.directory);
                self.keep_capsule(index, buf);
                self.go_on_with(cx, index, next);
            }
            Work::Hints => {
                self.keep_capsule(index, buf);
                self.answer(cx, index, Answer::status(NvmeStatus::SUCCESS));
            }
            Work::Fused { .. } => unreachable!("a pair runs when both halves are complete"),
            Work::Admin(sqe) => {
                let sqe = **sqe;
                self.run_admin(cx, index, &sqe, buf);
            }
        }
    }

    /// The front of a capsule's data buffer has done its duty: the whole of it is ready for another capsule.
    pub(super) fn keep_capsule(&mut self, index: usize, front: Option<Buf>) {
        let Some(slot) = self.commands.get_mut(index) else { return };
        if let (Some(mut front), Some(rest)) = (front, slot.capsule.take()) {
            if front.is_followed_by(&rest) {
                front.join(rest);
                slot.capsule = Some(front);
            } else {
                slot.capsule = Some(rest);
            }
        }
    }

    fn request<I>(
        &mut self,
        cx: &mut Cx<'_, I>,
        index: usize,
        volume: VolumeId,
        command: Command,
        (offset, len): (u64, u32),
        buf: Option<Buf>,
    ) {
        let Queue::Io(queue) = &self.queue else { unreachable!("only I/O queues have requests") };
        let request =
            Request { association: queue.association.id, volume, command, offset, len, data: buf.map(Into::into) };
        self.requests_in_flight += 1;
        cx.out.push(TransportEvent::Request { id: tokens::request(tokens::RDMA, self.index, index), request });
    }

    /// Dataset Management: the next of its ranges is due, or there is none.
    fn go_on_with<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize, next: Result<Option<NextRange>, NvmeStatus>) {
        match next {
            Ok(Some((volume, range))) => self.request(cx, index, volume, Command::Deallocate, range, None),
            Ok(None) => self.answer(cx, index, Answer::status(NvmeStatus::SUCCESS)),
            Err(status) => self.answer(cx, index, Answer::status(status)),
        }
    }

    /// A request ended.
    pub(super) fn on_done<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize, done: Done) {
        self.requests_in_flight -= 1;
        if self.phase == Phase::Closing {
            return; // the buffer goes back to its pool; nobody is there to be answered
        }
        let status = status::of(done.status);
        let slot = &mut self.commands[index];
        if !status.is_success() {
            slot.work.note_failure(&self.queue, slot.cid, status, cx.directory);
        }
        match &mut slot.work {
            work @ Work::Ranges { .. } if status.is_success() => {
                let next = work.next_range(None, cx.directory);
                self.go_on_with(cx, index, next);
            }
            Work::Fused { .. } => self.pair_done(cx, index, status::of_fused(done.status)),
            Work::Io { command: Command::Read, .. } if status.is_success() => {
                self.answer(cx, index, Answer { status, result: 0, data: done.data });
            }
            _ => {
                if let Some(Data::Own(buf)) = done.data {
                    self.keep_capsule(index, Some(buf));
                }
                self.answer(cx, index, Answer::status(status));
            }
        }
    }

    // ---- fused pairs

    /// A command has come: joins it with the first half that waits, or ends that half.
    fn pair<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize) {
        let Queue::Io(queue) = &mut self.queue else { return };
        if let Some(alone) = fused::pair(&mut self.commands, &mut queue.fused_first, index, cx.directory) {
            self.run_pair(cx, alone);
        }
    }

    /// A half has all of its data, or stays alone: runs the pair if the other half has its data too.
    pub(super) fn run_pair<I: Io>(&mut self, cx: &mut Cx<'_, I>, index: usize) {
        match fused::next(&mut self.commands, index, cx.directory) {
            Next::Wait => {}
            Next::EndAlone(status) => {
                self.take_half(index);
                self.answer(cx, index, Answer::status(status));
            }
            Next::End { first, statuses } => self.pair_done(cx, first, statuses),
            Next::Run { first, second, volume, command, range } => {
                let Some(both) = fused::gather(cx.io, &self.commands, first, second) else {
                    self.pairs.push(first);
                    return self.starve(cx);
                };
                cx.stats.bytes_copied += both.len() as u64;
                self.take_half(first);
                self.take_half(second);
                self.request(cx, first, volume, command, range, Some(both));
            }
        }
    }

    /// Takes a half's data; its capsule's buffer is ready for another.
    fn take_half(&mut self, index: usize) {
        if let Stage::Complete(buf) = std::mem::replace(&mut self.commands[index].stage, Stage::Running) {
            self.keep_capsule(index, Some(buf));
        }
    }

    /// Both halves end.
    fn pair_done<I: Io>(&mut self, cx: &mut Cx<'_, I>, first: usize, statuses: (NvmeStatus, NvmeStatus)) {
        let second = fused::second_of(&self.commands, first);
        self.take_half(first);
        self.take_half(second);
        self.answer(cx, first, Answer::status(statuses.0));
        self.answer(cx, second, Answer::status(statuses.1));
    }
}
