//! One queue: commands one way, completions the other, and who sleeps.
//!
//! A command's slot holds its *ticket*, `generation << 32 | position + 1`, which the client stores last; the target polls the
//! slot at its own position for the ticket it expects. So a command and its doorbell are one cache line, and what an earlier
//! connection left in the ring is nothing. Completions go back the same way. There are no shared indices to scribble on.
//!
//! Each command carries how many completions its client has consumed. From that the target checks, on its own copy, that the
//! command has a slot and its completion will have room: a client that stops consuming, or lies, ends its own connection.
//!
//! Pairs of orderings (partners carry the same letter):
//!
//! - A: the client stores a ticket with Release; the target loads it with Acquire, then reads the command.
//! - B: the target stores a completion's ticket with Release; the client loads it with Acquire, then reads the completion. The
//!   target's reads of the command, and all that the device did to the data area, come before.
//! - C: the target sets `target_asleep`, fences, looks for commands; the client stores a ticket, fences, looks at `target_asleep`.
//!   One of the two sees the other's store (Dekker): the target does not sleep, or the client rings.
//! - D: the same the other way round, with completions and `client_asleep`.

use std::sync::atomic::Ordering;

use thiserror::Error;

use crate::command::{COMMAND_BYTES, CONSUMED, CommandWords, TICKET};
use crate::words::Words;

/// Bytes of a completion.
pub const COMPLETION_BYTES: usize = 16;

/// Bytes between words of different writers: two lines, which processors fetch together.
const APART: usize = 128;
/// The target's flag: written by the target, and reset by the client that rings.
const TARGET_ASLEEP: usize = 0;
/// The client's flag, the other way round.
const CLIENT_ASLEEP: usize = APART;
/// Where commands start.
const COMMANDS: usize = 2 * APART;

/// Where a queue lies in its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePlace {
    base: usize,
    entries: u32,
}

impl QueuePlace {
    pub(crate) fn new(base: usize, entries: u16) -> QueuePlace {
        assert!(entries.is_power_of_two(), "positions are masked");
        QueuePlace { base, entries: u32::from(entries) }
    }

    /// Bytes of a queue.
    #[must_use]
    pub const fn bytes(entries: u16) -> usize {
        COMMANDS + entries as usize * (COMMAND_BYTES + COMPLETION_BYTES)
    }

    /// Its first byte.
    #[must_use]
    pub fn base(&self) -> usize {
        self.base
    }

    fn command(&self, position: u32) -> usize {
        self.base + COMMANDS + (position & (self.entries - 1)) as usize * COMMAND_BYTES
    }

    fn completion(&self, position: u32) -> usize {
        let first = self.base + COMMANDS + self.entries as usize * COMMAND_BYTES;
        first + (position & (self.entries - 1)) as usize * COMPLETION_BYTES
    }
}

fn ticket(generation: u32, position: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(position.wrapping_add(1))
}

/// How a client broke the rules of the ring; its connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// More commands than the queue has entries, counted to the consumption of their completions.
    #[error("command {position} came while {unconsumed} before it were not done with: the queue has {entries} entries")]
    Overrun {
        /// Which command.
        position: u32,
        /// Those before it whose completions were not consumed, as the client says.
        unconsumed: u32,
        /// Of the queue.
        entries: u32,
    },
    /// Completions are said to be consumed that were never posted.
    #[error("command {position} says that {consumed} completions were consumed, of {posted} posted")]
    Consumed {
        /// Which command.
        position: u32,
        /// As the client says.
        consumed: u32,
        /// As we know.
        posted: u32,
    },
}

/// [`Completion::result`] of a Read whose data are zeros that the target has not written: the client does, where it said that it
/// would. A reserved bit of dword 0, which NVMe's Read leaves to nobody.
pub const ZEROS: u32 = 1 << 31;

/// The end of a command, as the client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The command.
    pub cid: u16,
    /// The 15-bit status of NVMe; 0 is success.
    pub status: u16,
    /// Dword 0, where a command returns something.
    pub result: u32,
}

/// The target's side.
#[derive(Debug)]
pub struct TargetQueue<W> {
    words: W,
    place: QueuePlace,
    generation: u32,
    /// Commands taken.
    head: u32,
    /// Completions posted.
    posted: u32,
    /// Completions were posted since the last look at `client_asleep`.
    unannounced: bool,
    armed: bool,
}

impl<W: Words> TargetQueue<W> {
    /// A queue from which nothing was taken.
    pub fn new(words: W, place: QueuePlace, generation: u32) -> Self {
        let queue = TargetQueue { words, place, generation, head: 0, posted: 0, unannounced: false, armed: false };
        // What an earlier target left there says nothing.
        queue.words.store(place.base + TARGET_ASLEEP, 0, Ordering::Relaxed);
        queue
    }

    /// Commands taken and not yet completed: at most the queue's entries, whatever the client does.
    #[must_use]
    pub fn outstanding(&self) -> u32 {
        self.head.wrapping_sub(self.posted)
    }

    /// Whether there is a command.
    #[inline]
    #[must_use]
    pub fn has_command(&self) -> bool {
        let at = self.place.command(self.head);
        self.words.load(at + 8 * TICKET, Ordering::Relaxed) == ticket(self.generation, self.head)
    }

    /// The next command, copied out of the ring: what the client writes there from now on counts for nothing.
    #[inline]
    pub fn take(&mut self) -> Result<Option<CommandWords>, Violation> {
        let at = self.place.command(self.head);
        // A: Acquire. A ticket that is not ours yet, or scribbled over, is no command.
        if self.words.load(at + 8 * TICKET, Ordering::Acquire) != ticket(self.generation, self.head) {
            return Ok(None);
        }
        let mut command: CommandWords = std::array::from_fn(|word| self.words.load(at + 8 * word, Ordering::Relaxed));
        let consumed = command[CONSUMED] as u32;
        let unconsumed = self.head.wrapping_sub(consumed);
        if unconsumed >= self.place.entries {
            return Err(Violation::Overrun { position: self.head, unconsumed, entries: self.place.entries });
        }
        if unconsumed < self.outstanding() {
            return Err(Violation::Consumed { position: self.head, consumed, posted: self.posted });
        }
        // Both are reserved words to whoever reads the command.
        command[TICKET] = 0;
        command[CONSUMED] = 0;
        self.head = self.head.wrapping_add(1);
        Ok(Some(command))
    }

    /// Ends a command. There is room: `take` has checked it.
    #[inline]
    pub fn post(&mut self, completion: Completion) {
        assert!(self.outstanding() > 0, "a command completes once");
        let at = self.place.completion(self.posted);
        let word = u64::from(completion.result)
            | u64::from(completion.cid) << 32
            // As in NVMe: status in bits 15:1.
            | u64::from(completion.status << 1) << 48;
        self.words.store(at + 8, word, Ordering::Relaxed);
        // B: Release.
        self.words.store(at, ticket(self.generation, self.posted), Ordering::Release);
        self.posted = self.posted.wrapping_add(1);
        self.unannounced = true;
    }

    /// Whether completions were posted whose client has not been looked after.
    #[must_use]
    pub fn is_unannounced(&self) -> bool {
        self.unannounced
    }

    /// After a fence that follows the posts (one serves many queues): whether the client sleeps and is to be woken.
    #[inline]
    pub fn must_ring(&mut self) -> bool {
        self.unannounced = false;
        let at = self.place.base + CLIENT_ASLEEP;
        // D: behind the fence. Relaxed: whoever is rung finds the completions by B.
        let asleep = self.words.load(at, Ordering::Relaxed) != 0;
        if asleep {
            self.words.store(at, 0, Ordering::Relaxed);
        }
        asleep
    }

    /// Announces sleep; the caller fences ([`TargetQueue::fence`], one serves many queues) and then asks
    /// [`TargetQueue::has_command`].
    pub fn arm(&mut self) {
        self.armed = true;
        // C: before the fence.
        self.words.store(self.place.base + TARGET_ASLEEP, 1, Ordering::Relaxed);
    }

    /// Awake again. A client that still sees the flag rings once for nothing.
    pub fn disarm(&mut self) {
        if self.armed {
            self.armed = false;
            self.words.store(self.place.base + TARGET_ASLEEP, 0, Ordering::Relaxed);
        }
    }

    /// Between stores and looks of pairs C and D.
    pub fn fence(&self) {
        self.words.fence();
    }
}

/// The client's side.
#[derive(Debug)]
pub struct ClientQueue<W> {
    words: W,
    place: QueuePlace,
    generation: u32,
    /// Commands submitted.
    tail: u32,
    /// Completions consumed.
    consumed: u32,
}

impl<W: Words> ClientQueue<W> {
    /// A queue on which nothing was submitted. No earlier queue in this memory had this generation.
    pub fn new(words: W, place: QueuePlace, generation: u32) -> Self {
        ClientQueue { words, place, generation, tail: 0, consumed: 0 }
    }

    /// Commands submitted whose completions were not consumed.
    #[must_use]
    pub fn outstanding(&self) -> u32 {
        self.tail.wrapping_sub(self.consumed)
    }

    /// Whether another command may be submitted.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.outstanding() < self.place.entries
    }

    /// Submits a command; the target sees it at once.
    ///
    /// # Panics
    /// If there is no room.
    #[inline]
    pub fn submit(&mut self, command: CommandWords) {
        assert!(self.has_room(), "callers ask for room");
        let at = self.place.command(self.tail);
        for (word, &value) in command.iter().enumerate() {
            if word != TICKET && word != CONSUMED {
                self.words.store(at + 8 * word, value, Ordering::Relaxed);
            }
        }
        self.words.store(at + 8 * CONSUMED, u64::from(self.consumed), Ordering::Relaxed);
        // A: Release.
        self.words.store(at + 8 * TICKET, ticket(self.generation, self.tail), Ordering::Release);
        self.tail = self.tail.wrapping_add(1);
    }

    /// After submissions, one or several: whether the target sleeps and is to be woken.
    #[inline]
    pub fn must_ring(&mut self) -> bool {
        // C: the fence between the ticket and the look.
        self.words.fence();
        let at = self.place.base + TARGET_ASLEEP;
        let asleep = self.words.load(at, Ordering::Relaxed) != 0;
        if asleep {
            // The ring that follows ends the sleep that was seen, or the next one early.
            self.words.store(at, 0, Ordering::Relaxed);
        }
        asleep
    }

    /// Whether there is a completion.
    #[inline]
    #[must_use]
    pub fn has_completion(&self) -> bool {
        let at = self.place.completion(self.consumed);
        self.words.load(at, Ordering::Relaxed) == ticket(self.generation, self.consumed)
    }

    /// The next completion.
    #[inline]
    pub fn take(&mut self) -> Option<Completion> {
        let at = self.place.completion(self.consumed);
        // B: Acquire.
        if self.words.load(at, Ordering::Acquire) != ticket(self.generation, self.consumed) {
            return None;
        }
        let word = self.words.load(at + 8, Ordering::Relaxed);
        self.consumed = self.consumed.wrapping_add(1);
        Some(Completion { cid: (word >> 32) as u16, status: (word >> 49) as u16, result: word as u32 })
    }

    /// Announces sleep. `false`: there is a completion, do not.
    pub fn arm(&mut self) -> bool {
        // D: the flag, the fence, the look.
        self.words.store(self.place.base + CLIENT_ASLEEP, 1, Ordering::Relaxed);
        self.words.fence();
        if self.has_completion() {
            self.disarm();
            return false;
        }
        true
    }

    /// Awake again.
    pub fn disarm(&mut self) {
        self.words.store(self.place.base + CLIENT_ASLEEP, 0, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
pub(crate) mod tests;

#[cfg(all(test, loom))]
mod loom_tests;
