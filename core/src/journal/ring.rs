//! The writer's arithmetic: where the next group goes, what is still needed, how full it is.
//!
//! ```text
//!      tail                         head
//!  ----|== groups replay may need ==|---- free ----   (around the end; a group is never split by it)
//! ```
//! Invariants: `head` never passes `tail`, which is at or before the replay start of the oldest checkpoint that may still be
//! chosen (H18); groups are sealed one at a time.

use std::collections::VecDeque;

use thiserror::Error;

use super::group::{Group, Sealing, VolumeList};
use crate::checksum::Seed;
use crate::ids::{Lsn, ShardId};
use crate::limits::BLOCK;

/// Where replay starts: a group, and the first record of it that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Block of the region.
    pub block: u32,
    /// Number of the group that is, or will be, there.
    pub sequence: u64,
    /// First record to replay.
    pub lsn: Lsn,
}

impl Position {
    /// The start of a new journal.
    pub const FIRST: Position = Position { block: 0, sequence: 1, lsn: Lsn(1) };
}

/// How full the journal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Nothing to do.
    None,
    /// Half full: a checkpoint should run.
    Checkpoint,
    /// Three quarters full: what is left is for freeing space and for the checkpoint; new writes that change the map wait.
    Reserve,
}

/// The journal has no room for this group until a checkpoint releases some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the journal has no room for {blocks} blocks, {free} are free")]
pub struct Full {
    /// Asked for.
    pub blocks: u32,
    /// Free in one piece.
    pub free: u32,
}

/// A group that is to be written, durably, at `block`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Block of the region.
    pub block: u32,
    /// Blocks, all of which are written.
    pub blocks: u32,
    /// Number of the group.
    pub sequence: u64,
    /// The journal is durable up to here when the write is.
    pub durable_then: Lsn,
}

#[derive(Clone, Copy, Debug)]
struct Live {
    block: u32,
    sequence: u64,
    lsn_first: Lsn,
}

/// One shard's journal as its writer sees it.
#[derive(Debug)]
pub struct Ring {
    seed: Seed,
    shard: ShardId,
    generation: u32,
    blocks: u32,
    head: u32,
    lap: u32,
    /// Of the next group.
    sequence: u64,
    /// After the last sealed record.
    lsn_next: Lsn,
    durable: Lsn,
    previous_crc: u32,
    previous_volumes: VolumeList,
    /// Groups from the tail on, in order.
    live: VecDeque<Live>,
    /// The one group that is being written.
    sealed: Option<Sealed>,
}

/// What a writer continues from: the end of recovery, or of a new journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) block: u32,
    pub(super) lap: u32,
    pub(super) sequence: u64,
    pub(super) lsn_next: Lsn,
    pub(super) previous_crc: u32,
    pub(super) previous_volumes: VolumeList,
    /// Groups that are still needed: (block, sequence, first LSN).
    pub(super) live: Vec<(u32, u64, Lsn)>,
}

impl End {
    pub(super) fn at(start: Position) -> End {
        End {
            block: start.block,
            lap: 0,
            sequence: start.sequence,
            lsn_next: start.lsn,
            previous_crc: 0,
            previous_volumes: VolumeList::default(),
            live: Vec::new(),
        }
    }
}

impl Ring {
    /// The journal of a shard that has never been written, in a region of `blocks` blocks. `seed` is that of the pool and shard.
    #[must_use]
    pub fn new(blocks: u32, shard: ShardId, generation: u32, seed: Seed) -> Ring {
        Ring::resume(blocks, shard, generation, seed, End::at(Position::FIRST))
    }

    pub(super) fn resume(blocks: u32, shard: ShardId, generation: u32, seed: Seed, end: End) -> Ring {
        assert!(end.block < blocks && end.lsn_next.0 > 0);
        let live =
            end.live.into_iter().map(|(block, sequence, lsn_first)| Live { block, sequence, lsn_first }).collect();
        Ring {
            seed,
            shard,
            generation,
            blocks,
            head: end.block,
            lap: end.lap,
            sequence: end.sequence,
            lsn_next: end.lsn_next,
            durable: Lsn(end.lsn_next.0 - 1),
            previous_crc: end.previous_crc,
            previous_volumes: end.previous_volumes,
            live,
            sealed: None,
        }
    }

    /// Blocks of the region.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Every record up to here is durable.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// The LSN that the next group starts with.
    #[must_use]
    pub fn lsn_next(&self) -> Lsn {
        self.lsn_next
    }

    /// Number of the next group.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether a group is being written.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        self.sealed.is_some()
    }

    /// Blocks between tail and head, those skipped at the end of the region included.
    #[must_use]
    pub fn used(&self) -> u32 {
        match self.live.front() {
            None => 0,
            Some(tail) if tail.block < self.head => self.head - tail.block,
            Some(tail) => self.blocks - tail.block + self.head,
        }
    }

    /// How full it is.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        let used = u64::from(self.used());
        let blocks = u64::from(self.blocks);
        if used * 4 >= blocks * 3 {
            Pressure::Reserve
        } else if used * 2 >= blocks {
            Pressure::Checkpoint
        } else {
            Pressure::None
        }
    }

    /// Where a group of `blocks` would go, and whether that is around the end.
    fn fit(&self, blocks: u32) -> Result<(u32, bool), Full> {
        let tail = self.live.front().map(|live| live.block);
        let (ahead, around) = match tail {
            // Head at the tail with live groups means full.
            Some(tail) if tail >= self.head => (tail - self.head, 0),
            Some(tail) => (self.blocks - self.head, tail),
            None => (self.blocks - self.head, self.head),
        };
        if blocks <= ahead {
            Ok((self.head, false))
        } else if blocks <= around {
            Ok((0, true))
        } else {
            Err(Full { blocks, free: ahead.max(around) })
        }
    }

    /// Whether a group of `blocks` has room now.
    #[must_use]
    pub fn has_room(&self, blocks: u32) -> bool {
        self.fit(blocks).is_ok()
    }

    /// Gives the group its position and writes its bytes to `out`, which is `group.blocks()` blocks long. The caller writes
    /// them there, durably, and then calls [`Ring::written`]; a write that fails is final, since its blocks may hold anything.
    ///
    /// # Panics
    /// If a group is being written, the group is empty or does not start at [`Ring::lsn_next`].
    pub fn seal(&mut self, group: &Group, out: &mut [u8]) -> Result<Sealed, Full> {
        assert!(self.sealed.is_none(), "one group at a time");
        assert_eq!(group.lsn_first(), self.lsn_next, "the journal has no gaps");
        let blocks = group.blocks();
        let (block, around) = self.fit(blocks)?;
        if around {
            self.lap = self.lap.wrapping_add(1);
        }
        let sealing = Sealing {
            seed: self.seed,
            shard: self.shard,
            generation: self.generation,
            lap: self.lap,
            sequence: self.sequence,
            previous_crc: self.previous_crc,
            durable: self.durable,
            previous_volumes: &self.previous_volumes,
        };
        self.previous_crc = group.encode(&sealing, out);
        self.previous_volumes = group.volumes().clone();
        let durable_then = Lsn(group.lsn_end().0 - 1);
        let sealed = Sealed { block, blocks, sequence: self.sequence, durable_then };
        self.live.push_back(Live { block, sequence: self.sequence, lsn_first: group.lsn_first() });
        self.head = block + blocks;
        if self.head == self.blocks {
            self.head = 0;
            self.lap = self.lap.wrapping_add(1);
        }
        self.sequence += 1;
        self.lsn_next = group.lsn_end();
        self.sealed = Some(sealed);
        Ok(sealed)
    }

    /// The group being written is durable; returns what the journal is durable up to now.
    ///
    /// # Panics
    /// If none is being written.
    pub fn written(&mut self) -> Lsn {
        let sealed = self.sealed.take().expect("a group is being written");
        assert!(sealed.durable_then > self.durable);
        self.durable = sealed.durable_then;
        self.durable
    }

    /// Where replay has to start so that record `lsn` and all later ones are replayed. `lsn` is at most [`Ring::lsn_next`].
    ///
    /// # Panics
    /// If the group with `lsn` has been released.
    #[must_use]
    pub fn position_of(&self, lsn: Lsn) -> Position {
        assert!(lsn <= self.lsn_next, "record {lsn} is not in the journal, the next is {}", self.lsn_next);
        if lsn == self.lsn_next {
            return Position { block: self.head, sequence: self.sequence, lsn };
        }
        let after = self.live.partition_point(|live| live.lsn_first <= lsn);
        assert!(after > 0, "record {lsn} has been released");
        let live = &self.live[after - 1];
        Position { block: live.block, sequence: live.sequence, lsn }
    }

    /// Gives back every group before `start`: only when no checkpoint that may still be chosen starts earlier.
    pub fn release(&mut self, start: Position) {
        while self.live.front().is_some_and(|live| live.sequence < start.sequence) {
            self.live.pop_front();
        }
    }

    /// Byte of the region at which a block is.
    #[must_use]
    pub fn offset(block: u32) -> u64 {
        u64::from(block) * BLOCK
    }
}
