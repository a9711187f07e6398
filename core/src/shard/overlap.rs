//! Who waits for whom on the same 4 KiB blocks: first come, first served.
//!
//! A part claims one interval of blocks of one stripe, at once and whole, so that there is no order in which two parts could
//! wait for each other. A claim waits for every earlier conflicting one, running or itself waiting; so a steady stream of
//! small writes cannot starve a large one.
//!
//! Work in the background claims whole clusters the same way, so that it and writes never meet.
//!
//! Invariant: `blockers` of a claim is the number of earlier claims in its list that conflict with it.

use std::ops::Range;

use rustc_hash::FxHashMap;

use super::parts::PartKey;
use crate::ids::VolumeId;

/// A stripe of a volume on this shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StripeKey {
    pub(crate) volume: VolumeId,
    pub(crate) stripe: u32,
}

/// Who claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claimant {
    Part(PartKey),
    /// A job in the background, by its slot.
    Job(u32),
}

/// What else may run on the same blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Others that only look.
    Shared,
    /// Nothing.
    Exclusive,
}

#[derive(Debug)]
struct Entry {
    who: Claimant,
    first: u32,
    end: u32,
    claim: Claim,
    blockers: u32,
}

impl Entry {
    fn conflicts(&self, other: &Entry) -> bool {
        let apart = self.end <= other.first || other.end <= self.first;
        !apart && (self.claim == Claim::Exclusive || other.claim == Claim::Exclusive)
    }
}

#[derive(Debug, Default)]
pub(crate) struct OverlapTable {
    stripes: FxHashMap<StripeKey, Vec<Entry>>,
    /// Lists of stripes nobody uses now, so that a busy shard stops allocating.
    spare: Vec<Vec<Entry>>,
}

impl OverlapTable {
    /// Claims `blocks` of `stripe`; false if `who` has to wait until [`OverlapTable::release`] names it.
    pub(crate) fn claim(&mut self, stripe: StripeKey, who: Claimant, blocks: Range<u32>, claim: Claim) -> bool {
        assert!(blocks.start < blocks.end, "a claim is of at least one block");
        let entries = self.stripes.entry(stripe).or_insert_with(|| self.spare.pop().unwrap_or_default());
        let mut entry = Entry { who, first: blocks.start, end: blocks.end, claim, blockers: 0 };
        entry.blockers = entries.iter().filter(|earlier| earlier.conflicts(&entry)).count() as u32;
        let granted = entry.blockers == 0;
        entries.push(entry);
        granted
    }

    /// Gives the claim of `who` up, whether it was granted or still waits, and appends those that may go now.
    pub(crate) fn release(&mut self, stripe: StripeKey, who: Claimant, granted: &mut Vec<Claimant>) {
        let entries = self.stripes.get_mut(&stripe).expect("a claim has its stripe in the table");
        let at = entries.iter().position(|entry| entry.who == who).expect("only a claim that was made is released");
        // Not swap_remove: the order is the queue.
        let gone = entries.remove(at);
        for later in &mut entries[at..] {
            if gone.conflicts(later) {
                later.blockers -= 1;
                if later.blockers == 0 {
                    granted.push(later.who);
                }
            }
        }
        if entries.is_empty() {
            let list = self.stripes.remove(&stripe).expect("it was just there");
            self.spare.push(list);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.stripes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRIPE: StripeKey = StripeKey { volume: VolumeId(1), stripe: 0 };

    fn part(n: u32) -> Claimant {
        Claimant::Part(PartKey::for_test(n))
    }

    fn released(table: &mut OverlapTable, n: u32) -> Vec<Claimant> {
        let mut granted = Vec::new();
        table.release(STRIPE, part(n), &mut granted);
        granted
    }

    #[test]
    fn writes_of_one_block_go_in_the_order_in_which_they_came() {
        let mut table = OverlapTable::default();
        assert!(table.claim(STRIPE, part(1), 0..1, Claim::Exclusive));
        assert!(!table.claim(STRIPE, part(2), 0..4, Claim::Exclusive));
        assert!(!table.claim(STRIPE, part(3), 3..4, Claim::Exclusive));
        assert!(table.claim(STRIPE, part(4), 4..5, Claim::Exclusive));
        assert_eq!(released(&mut table, 1), [part(2)]);
        assert_eq!(released(&mut table, 2), [part(3)]);
        assert_eq!(released(&mut table, 4), []);
        assert_eq!(released(&mut table, 3), []);
        assert!(table.is_empty());
    }

    #[test]
    fn a_waiting_claim_that_is_given_up_lets_the_next_one_go() {
        let mut table = OverlapTable::default();
        assert!(table.claim(STRIPE, part(1), 0..1, Claim::Exclusive));
        assert!(!table.claim(STRIPE, part(2), 0..2, Claim::Exclusive));
        assert!(!table.claim(STRIPE, part(3), 1..2, Claim::Exclusive));
        assert_eq!(released(&mut table, 2), [part(3)]);
        assert_eq!(released(&mut table, 1), []);
        assert_eq!(released(&mut table, 3), []);
    }

    #[test]
    fn readers_share_and_a_waiting_writer_is_not_overtaken() {
        let mut table = OverlapTable::default();
        assert!(table.claim(STRIPE, part(1), 0..2, Claim::Shared));
        assert!(table.claim(STRIPE, part(2), 0..2, Claim::Shared));
        assert!(!table.claim(STRIPE, part(3), 1..2, Claim::Exclusive));
        assert!(!table.claim(STRIPE, part(4), 1..2, Claim::Shared));
        assert_eq!(released(&mut table, 1), []);
        assert_eq!(released(&mut table, 2), [part(3)]);
        assert_eq!(released(&mut table, 3), [part(4)]);
        assert_eq!(released(&mut table, 4), []);
    }
}
