//! The shard's operations at the device, and the tickets that keep freed clusters from being used again too early (C7).
//!
//! Each operation takes the next ticket when it is submitted. What is freed now may be used again when every ticket up to
//! now has come back: no operation that looked the cluster up before is then still on its way.

use std::collections::VecDeque;

use super::parts::PartKey;
use crate::map::NodeKey;

/// Whose operation it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// All of a part's data at once, of a read.
    Whole { part: PartKey },
    /// Segment `segment` of a part's own buffer.
    Segment { part: PartKey, segment: u32 },
    /// Piece `piece` of the scratch buffer of a part's current step.
    Scratch { part: PartKey, piece: u32 },
    /// The next page of a map node.
    NodePage(NodeKey),
    /// The journal group under way.
    Group,
    /// A hole where clusters were that have been let go.
    Punch { hole: u32 },
    /// Piece `piece` of a copy in the background.
    Job { job: u32, piece: u32 },
    /// Operation `nth` of the checkpoint's current step.
    Checkpoint { nth: u32 },
}

/// What the device was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    DurableWrite,
    Deallocate,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight {
    pub(crate) owner: Owner,
    pub(crate) kind: Kind,
    pub(crate) file: u16,
    ticket: u64,
}

/// In-flight operations by slot.
#[derive(Debug)]
pub(crate) struct OpTable {
    slots: slab::Slab<InFlight>,
    /// Whether ticket `base + i` has come back.
    window: VecDeque<bool>,
    base: u64,
}

impl Default for OpTable {
    fn default() -> Self {
        // Ticket 0 is none.
        Self { slots: slab::Slab::new(), window: VecDeque::new(), base: 1 }
    }
}

impl OpTable {
    /// Notes an operation about to be submitted; its slot.
    pub(crate) fn insert(&mut self, owner: Owner, kind: Kind, file: u16) -> u32 {
        let ticket = self.next_ticket();
        self.window.push_back(false);
        self.slots.insert(InFlight { owner, kind, file, ticket }) as u32
    }

    /// Takes a completed operation out.
    pub(crate) fn remove(&mut self, slot: u32) -> InFlight {
        let op = self.slots.remove(slot as usize);
        self.window[(op.ticket - self.base) as usize] = true;
        while self.window.front() == Some(&true) {
            self.window.pop_front();
            self.base += 1;
        }
        op
    }

    /// The ticket the next operation gets: everything looked up so far has a smaller one.
    pub(crate) fn next_ticket(&self) -> u64 {
        self.base + self.window.len() as u64
    }

    /// The smallest ticket still out, or the next if none is.
    pub(crate) fn oldest_ticket(&self) -> u64 {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_ticket_moves_only_when_everything_before_it_has_come_back() {
        let mut ops = OpTable::default();
        let slots: Vec<u32> = (0..3).map(|_| ops.insert(Owner::Group, Kind::Read, 0)).collect();
        let freed_at = ops.next_ticket();
        ops.remove(slots[2]);
        ops.remove(slots[1]);
        assert_eq!(ops.oldest_ticket(), 1);
        let later = ops.insert(Owner::Group, Kind::Read, 0);
        ops.remove(slots[0]);
        assert_eq!(ops.oldest_ticket(), freed_at);
        ops.remove(later);
        assert_eq!((ops.oldest_ticket(), ops.len()), (5, 0));
    }
}
