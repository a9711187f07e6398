//! One queue of a client: commands in, completions out, and the move to the next connection.
//!
//! A command keeps its slot, and the slot the words that were sent, until it has ended: that is what is sent again when the
//! target was replaced. The order of what is sent again is that of the first time.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_reactor::shared::SharedMemory;
use rustix::event::{PollFd, PollFlags};
use thiserror::Error;

use super::buffer::Buffer;
use super::session::{Session, Shared, timespec};
use super::status::{self, Status};
use crate::command::{Command, range_bytes};
use crate::door::Bells;
use crate::line::Line;
use crate::ring::{ClientQueue, ZEROS};

/// Polls without a completion after which the socket is looked at: some tens of microseconds.
const LOOK_AFTER: u32 = 4096;
/// How long a sleep without a limit lasts at most: the socket is looked at in between.
const SLEEP_MAX: Duration = Duration::from_millis(500);

/// A command that has ended.
#[derive(Debug)]
pub struct Completion {
    /// As given with the command.
    pub tag: u64,
    /// How it ended.
    pub status: Status,
    /// The command's buffer. Not given back if the target is lost, since what it began may still land there.
    pub buffer: Option<Buffer>,
}

/// Why a command was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Reject {
    /// As many commands are outstanding as the queue is deep.
    #[error("the queue is full: take completions first")]
    Full,
    /// Offset or length is no multiple of the volume's logical block.
    #[error("offset and length are multiples of the volume's logical block, and the length is not 0")]
    Unaligned,
    /// Longer than one command may be.
    #[error("one command does not move or cover so much: see the volume's limits")]
    TooLong,
    /// The list of ranges has no room in the data area.
    #[error("the data area is full")]
    NoMemory,
    /// The target was given up.
    #[error("the target is gone and did not come back")]
    Lost,
}

/// A command that was not taken, and its buffer.
#[derive(Debug, Error)]
#[error("{why}")]
pub struct Rejected {
    /// Why.
    pub why: Reject,
    /// As it was.
    pub buffer: Option<Buffer>,
}

impl From<Reject> for Rejected {
    fn from(why: Reject) -> Rejected {
        Rejected { why, buffer: None }
    }
}

/// Data of a command in flight.
#[derive(Debug, Default)]
enum Held {
    #[default]
    Nothing,
    /// Goes back to the caller.
    Buffer(Buffer),
    /// A list of ranges of our own.
    Ranges(Buffer),
    /// The first of a fused pair: its buffer is in the other one's slot.
    FirstHalf { second: u16 },
    /// The second, with how the first has ended.
    SecondHalf { buffer: Buffer, first: Option<Status> },
}

impl Held {
    /// What goes back to the caller.
    fn buffer(self) -> Option<Buffer> {
        match self {
            Held::Buffer(buffer) | Held::SecondHalf { buffer, .. } => Some(buffer),
            Held::Nothing | Held::Ranges(_) | Held::FirstHalf { .. } => None,
        }
    }

    fn is_half(&self) -> bool {
        matches!(self, Held::FirstHalf { .. } | Held::SecondHalf { .. })
    }
}

#[derive(Debug, Default)]
struct Slot {
    command: Option<Command>,
    held: Held,
    tag: u64,
    /// Order of submission.
    number: u64,
}

/// One queue, for one thread at a time.
#[derive(Debug)]
pub struct Queue {
    pub(super) shared: Arc<Shared>,
    index: u16,
    ring: ClientQueue<Arc<SharedMemory>>,
    generation: u32,
    line: Arc<Line>,
    bells: Bells,
    slots: Vec<Slot>,
    free: Vec<u16>,
    submitted: u64,
    /// Something was submitted since the target was last looked after.
    unrung: bool,
    empty_polls: u32,
    block_bytes: u32,
    pub(super) request_bytes_max: u32,
    write_zeroes_bytes_max: u32,
}

impl Queue {
    pub(super) fn new(shared: Arc<Shared>, index: u16) -> Queue {
        // It may be down already: the queue then moves over.
        let session = shared.session();
        let info = shared.info();
        let (memory, place) = (Arc::clone(&shared.memory), shared.layout.queue(index));
        let entries = shared.layout.entries();
        Queue {
            ring: ClientQueue::new(memory, place, session.generation),
            generation: session.generation,
            line: session.line,
            bells: session.bells[usize::from(index)].clone(),
            shared,
            index,
            slots: (0..entries).map(|_| Slot::default()).collect(),
            free: (0..entries).rev().collect(),
            submitted: 0,
            unrung: false,
            empty_polls: 0,
            block_bytes: info.block_bytes,
            request_bytes_max: info.request_bytes_max,
            write_zeroes_bytes_max: info.write_zeroes_bytes_max,
        }
    }

    /// Commands outstanding.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Commands that may be outstanding.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.slots.len()
    }

    /// Reads from byte `offset` of the volume; the buffer's length is the read's.
    pub fn read(&mut self, offset: u64, buffer: Buffer, tag: u64) -> Result<(), Rejected> {
        let whole = 0..buffer.len();
        self.read_part(offset, buffer, whole, tag)
    }

    /// Reads into a part of the buffer. One that starts on a multiple of 4096 is moved without a copy.
    ///
    /// # Panics
    /// If that is no part of it.
    pub fn read_part(&mut self, offset: u64, buffer: Buffer, part: Range<usize>, tag: u64) -> Result<(), Rejected> {
        self.move_data(Command::read, offset, (buffer, part), tag)
    }

    /// Writes the buffer to byte `offset` of the volume; with `fua` it is on stable storage when the command ends.
    pub fn write(&mut self, offset: u64, buffer: Buffer, fua: bool, tag: u64) -> Result<(), Rejected> {
        let whole = 0..buffer.len();
        self.write_part(offset, buffer, whole, fua, tag)
    }

    /// Writes a part of the buffer; as for [`Queue::read_part`].
    ///
    /// # Panics
    /// If that is no part of it.
    pub fn write_part(
        &mut self,
        offset: u64,
        buffer: Buffer,
        part: Range<usize>,
        fua: bool,
        tag: u64,
    ) -> Result<(), Rejected> {
        self.move_data(|first, blocks| Command::write(first, blocks, fua), offset, (buffer, part), tag)
    }

    /// Compares the buffer with what is stored; ends with a compare failure where it differs.
    pub fn compare(&mut self, offset: u64, buffer: Buffer, tag: u64) -> Result<(), Rejected> {
        let whole = 0..buffer.len();
        self.move_data(Command::compare, offset, (buffer, whole), tag)
    }

    /// Compares the first half of the buffer with the logical block at `offset` and, where that is the same, writes the second
    /// half there; nothing comes between the two. The buffer has two logical blocks. Takes two places in the queue. Not
    /// carried out again when the target is replaced: see [`Status::UNDECIDED`].
    pub fn compare_and_write(&mut self, offset: u64, both: Buffer, fua: bool, tag: u64) -> Result<(), Rejected> {
        let len = both.len() / 2;
        let why = match self.blocks(offset, len as u64, self.block_bytes) {
            Ok(_) if both.len() != 2 * len => Reject::Unaligned,
            Ok(_) if self.shared.is_lost() => Reject::Lost,
            Ok(_) if self.free.len() < 2 => Reject::Full,
            Ok((first, blocks)) => {
                let (at, len) = (both.offset(), len as u32);
                let compare = Command::compare(first, blocks).fused_first().with_data(at, len);
                let write = Command::write(first, blocks, fua).fused_second().with_data(at + u64::from(len), len);
                let second = self.free[self.free.len() - 2];
                self.submit(compare, Held::FirstHalf { second }, tag)?;
                return self.submit(write, Held::SecondHalf { buffer: both, first: None }, tag);
            }
            Err(why) => why,
        };
        Err(Rejected { why, buffer: Some(both) })
    }

    /// Everything that has ended before is on stable storage when this ends.
    pub fn flush(&mut self, tag: u64) -> Result<(), Rejected> {
        self.submit(Command::flush(), Held::Nothing, tag)
    }

    /// Afterwards the range reads as zeros; `deallocate` allows giving its space back.
    pub fn write_zeroes(&mut self, offset: u64, len: u64, deallocate: bool, tag: u64) -> Result<(), Rejected> {
        let (first, blocks) = self.blocks(offset, len, self.write_zeroes_bytes_max)?;
        self.submit(Command::write_zeroes(first, blocks, deallocate, false), Held::Nothing, tag)
    }

    /// Gives the space of the range back: it reads as zeros afterwards.
    pub fn deallocate(&mut self, offset: u64, len: u64, tag: u64) -> Result<(), Rejected> {
        let (first, blocks) = self.blocks(offset, len, u32::MAX)?;
        if self.free.is_empty() {
            return Err(Reject::Full.into());
        }
        let mut list = Buffer::take(&self.shared, 16).ok_or(Reject::NoMemory)?;
        list.copy_from_slice(&range_bytes(first, blocks));
        let command = Command::deallocate(1).with_data(list.offset(), 16);
        self.submit(command, Held::Ranges(list), tag)
    }

    fn blocks(&self, offset: u64, len: u64, max: u32) -> Result<(u64, u32), Reject> {
        let block = u64::from(self.block_bytes);
        if len == 0 || !(offset | len).is_multiple_of(block) {
            return Err(Reject::Unaligned);
        }
        if len > u64::from(max) {
            return Err(Reject::TooLong);
        }
        Ok((offset / block, (len / block) as u32))
    }

    fn move_data(
        &mut self,
        command: impl FnOnce(u64, u32) -> Command,
        offset: u64,
        (buffer, part): (Buffer, Range<usize>),
        tag: u64,
    ) -> Result<(), Rejected> {
        let Range { start, end } = part;
        assert!(start <= end && end <= buffer.len(), "{start}..{end} of {} bytes", buffer.len());
        match self.blocks(offset, (end - start) as u64, self.request_bytes_max) {
            Ok((first, blocks)) => {
                let command = command(first, blocks).with_data(buffer.offset() + start as u64, (end - start) as u32);
                self.submit(command, Held::Buffer(buffer), tag)
            }
            Err(why) => Err(Rejected { why, buffer: Some(buffer) }),
        }
    }

    /// Submits a command whose data, if it has any, lies at `offset` of the data area.
    ///
    /// # Safety
    /// That range was taken by [`Buffer::into_raw`], and is not accessed in a way that conflicts with the command until it has
    /// ended; nor afterwards, if it ended with [`Status::LOST`].
    pub unsafe fn submit_raw(&mut self, command: Command, offset: u64, len: u32, tag: u64) -> Result<(), Reject> {
        let command = if len > 0 { command.with_data(offset, len) } else { command };
        self.submit(command, Held::Nothing, tag).map_err(|rejected| rejected.why)
    }

    #[inline]
    fn submit(&mut self, command: Command, held: Held, tag: u64) -> Result<(), Rejected> {
        let lost = self.shared.is_lost();
        let free = if lost { None } else { self.free.pop() };
        let Some(slot) = free else {
            let why = if lost { Reject::Lost } else { Reject::Full };
            return Err(Rejected { why, buffer: held.buffer() });
        };
        let command = command.with_cid(slot);
        self.submitted += 1;
        self.slots[usize::from(slot)] = Slot { command: Some(command), held, tag, number: self.submitted };
        self.ring.submit(command.words());
        self.unrung = true;
        Ok(())
    }

    /// After submissions, one or several: wakes the target if it sleeps.
    #[inline]
    pub fn ring(&mut self) {
        if !self.unrung {
            return;
        }
        self.unrung = false;
        if self.ring.must_ring() {
            // The counter of an eventfd does not fill up by ones; a target that is gone is noticed by the socket.
            let _ = self.bells.commands.signal();
        }
    }

    /// Takes what has ended, without sleeping (but for moments while the target is being replaced). Returns how many.
    #[inline]
    pub fn poll(&mut self, ended: &mut Vec<Completion>) -> usize {
        let before = ended.len();
        self.take(ended);
        if ended.len() > before {
            self.empty_polls = 0;
            return ended.len() - before;
        }
        self.empty_polls += 1;
        if self.empty_polls >= LOOK_AFTER {
            self.empty_polls = 0;
            self.ring();
            self.look(ended);
        }
        ended.len() - before
    }

    #[inline]
    fn take(&mut self, ended: &mut Vec<Completion>) {
        while let Some(completion) = self.ring.take() {
            // What names no command of ours is the target's mistake, and nothing to us.
            let Some(slot) = self.slots.get_mut(usize::from(completion.cid)) else { continue };
            let Some(command) = slot.command.take() else { continue };
            let (tag, held) = (slot.tag, std::mem::take(&mut slot.held));
            self.free.push(completion.cid);
            let status = Status(completion.status);
            if completion.result & ZEROS != 0 {
                // What the target would else have written from the other core, line by line.
                let (offset, len) = command.data();
                self.shared.memory.zero((self.shared.layout.data_offset() + offset) as usize, len as usize);
            }
            match held {
                Held::FirstHalf { second } => self.first_ended(second, status),
                Held::SecondHalf { buffer, first } => {
                    // Whichever of the two says why; the other only says that it went with it.
                    let says_why = |first: &Status| !first.is_success() && first.code() != status::FAILED_FUSED;
                    let status = first.filter(says_why).unwrap_or(status);
                    ended.push(Completion { tag, status, buffer: Some(buffer) });
                }
                held => ended.push(Completion { tag, status, buffer: held.buffer() }),
            }
        }
    }

    /// The first of a pair has ended, before the second does.
    #[cold]
    fn first_ended(&mut self, second: u16, status: Status) {
        if let Held::SecondHalf { first, .. } = &mut self.slots[usize::from(second)].held {
            *first = Some(status);
        }
    }

    /// Looks after the connection.
    #[cold]
    fn look(&mut self, ended: &mut Vec<Completion>) {
        self.shared.look();
        if self.shared.is_lost() {
            self.give_up(ended);
        } else if self.shared.generation() != self.generation {
            self.move_over(self.shared.session(), ended);
        }
    }

    /// Goes on with the next connection. The former target is gone, or has fenced what it knew of this client, so that what is in
    /// the ring is all that it has answered.
    fn move_over(&mut self, session: Session, ended: &mut Vec<Completion>) {
        self.take(ended);
        let place = self.shared.layout.queue(self.index);
        self.ring = ClientQueue::new(Arc::clone(&self.shared.memory), place, session.generation);
        self.generation = session.generation;
        self.bells = session.bells[usize::from(self.index)].clone();
        self.line = session.line;
        self.end_pairs(ended);
        let mut again: Vec<_> =
            self.slots.iter().filter_map(|slot| slot.command.map(|command| (slot.number, command))).collect();
        again.sort_unstable_by_key(|&(number, _)| number);
        tracing::info!(queue = self.index, commands = again.len(), "what was not answered is sent again");
        for (_, command) in again {
            self.ring.submit(command.words());
        }
        self.unrung = true;
        self.ring();
    }

    /// What would not be the same if it were done twice is not sent again.
    fn end_pairs(&mut self, ended: &mut Vec<Completion>) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.held.is_half() && slot.command.take().is_some() {
                self.free.push(index as u16);
                // The former target's operations have ended: nothing lands in the buffer any more.
                if let Some(buffer) = std::mem::take(&mut slot.held).buffer() {
                    ended.push(Completion { tag: slot.tag, status: Status::UNDECIDED, buffer: Some(buffer) });
                }
            }
        }
    }

    /// No target comes back.
    fn give_up(&mut self, ended: &mut Vec<Completion>) {
        self.take(ended);
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.command.take().is_some() {
                let held = std::mem::take(&mut slot.held);
                self.free.push(index as u16);
                if !matches!(held, Held::FirstHalf { .. }) {
                    ended.push(Completion { tag: slot.tag, status: Status::LOST, buffer: None });
                }
                // What a target began may still land in it: it stays taken.
                if let Held::Buffer(buffer) | Held::Ranges(buffer) | Held::SecondHalf { buffer, .. } = held {
                    let _ = buffer.into_raw();
                }
            }
        }
    }

    /// Sleeps until something has ended, or for `timeout`; rings before it does. What has ended comes out of
    /// [`Queue::poll`].
    pub fn wait(&mut self, timeout: Duration, ended: &mut Vec<Completion>) -> usize {
        self.wait_or(timeout, None, ended)
    }

    /// [`Queue::wait`], which also returns when `other` becomes readable.
    pub fn wait_or(&mut self, timeout: Duration, other: Option<BorrowedFd<'_>>, ended: &mut Vec<Completion>) -> usize {
        let before = ended.len();
        let deadline = Instant::now().checked_add(timeout);
        loop {
            self.ring();
            self.take(ended);
            self.look(ended);
            let left = deadline.map_or(SLEEP_MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            if ended.len() > before || left.is_zero() {
                return ended.len() - before;
            }
            if self.ring.arm() {
                let up = self.shared.is_up();
                let bell = &*self.bells.completions;
                // Without another one the bell stands in for it: the same twice. So it does for the line of a target that is gone, which
                // would end each sleep: that it has hung up is told whether one asks or not.
                let other_fd = other.unwrap_or(bell.as_fd());
                let line = if up { self.line.as_fd() } else { bell.as_fd() };
                let mut polled = [
                    PollFd::new(bell, PollFlags::IN),
                    PollFd::new(&line, PollFlags::IN),
                    PollFd::new(&other_fd, PollFlags::IN),
                ];
                let short = if up { SLEEP_MAX } else { Duration::from_millis(5) };
                // Interrupted or not, the loop looks at everything again.
                let _ = rustix::event::poll(&mut polled, Some(&timespec(left.min(short))));
                let called = other.is_some() && !polled[2].revents().is_empty();
                self.ring.disarm();
                let _ = self.bells.completions.take();
                if called {
                    self.take(ended);
                    return ended.len() - before;
                }
            }
        }
    }

    /// The descriptor that becomes readable when something ends after [`Queue::arm`], for programs that sleep on several. It
    /// changes when the target is replaced, which [`Queue::poll`] notices: such programs wake now and then.
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bells.completions.as_fd()
    }

    /// Asks the target to ring [`Queue::bell`] for what ends from now on. `false`: something has ended already. To be followed by
    /// [`Queue::disarm`] before the next poll.
    pub fn arm(&mut self) -> bool {
        self.ring();
        self.ring.arm()
    }

    /// Awake again.
    pub fn disarm(&mut self) {
        self.ring.disarm();
        // An eventfd that was not rung has nothing to take.
        let _ = self.bells.completions.take();
    }
}
