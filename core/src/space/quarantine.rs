//! Freed clusters that may not be used again yet (C7).
//!
//! Invariant: entries are in the order of their records, so the front is always the first that can leave.

use std::collections::VecDeque;

use super::place::Place;
use crate::ids::Lsn;

/// Number of a device operation of one shard, given out in order. The first is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

impl Ticket {
    /// What "the oldest in flight" is when nothing is.
    pub const NEVER: Ticket = Ticket(u64::MAX);
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The record that unmapped it.
    lsn: Lsn,
    /// First operation that started after the unmapping, so could not have looked the place up.
    next_ticket: Ticket,
    place: Place,
}

#[derive(Debug, Default)]
pub(super) struct Quarantine {
    entries: VecDeque<Entry>,
}

impl Quarantine {
    pub(super) fn push(&mut self, place: Place, lsn: Lsn, next_ticket: Ticket) {
        if let Some(last) = self.entries.back() {
            assert!(last.lsn <= lsn && last.next_ticket <= next_ticket, "unmapped out of order: {last:?}, then {lsn}");
        }
        self.entries.push_back(Entry { lsn, next_ticket, place });
    }

    /// The next place whose unmapping is durable and that no operation in flight can have looked up.
    pub(super) fn pop(&mut self, durable: Lsn, oldest_in_flight: Ticket) -> Option<Place> {
        let front = self.entries.front()?;
        if front.lsn > durable || front.next_ticket > oldest_in_flight {
            return None;
        }
        self.entries.pop_front().map(|entry| entry.place)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Places whose unmapping is durable, waiting for operations only.
    pub(super) fn durably_free(&self, durable: Lsn) -> impl Iterator<Item = Place> {
        self.entries.iter().take_while(move |entry| entry.lsn <= durable).map(|entry| entry.place)
    }

    /// All of them.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        self.entries.iter().map(|entry| entry.place)
    }

    /// The newest record that some place waits for.
    pub(super) fn last_lsn(&self) -> Option<Lsn> {
        self.entries.back().map(|entry| entry.lsn)
    }
}
