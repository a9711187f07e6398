//! Fences: proof that nothing of a dead association is in any mailbox or at any device (history C11).
//!
//! 1. The origin tells every reactor that the association is dead.
//! 2. Each stops sending its parts, then tells every reactor so: since messages of a pair arrive in order, whoever has heard
//!    this from all has received every part there will ever be.
//! 3. Each then fences its shards, which drop what has not started and wait for what has.
//! 4. Each tells the origin.

use std::collections::BTreeMap;

use crate::ids::AssociationId;

/// The fences that pass through one reactor.
#[derive(Debug, Default)]
pub struct Fences {
    passing: BTreeMap<AssociationId, Passing>,
    /// Fences that began here: how many reactors have not yet answered.
    begun: BTreeMap<AssociationId, usize>,
}

#[derive(Debug)]
struct Passing {
    origin: usize,
    /// Reactors that may still send parts.
    senders: usize,
    /// Shards here that have not yet answered.
    shards: usize,
}

impl Fences {
    /// A fence begins here. `false` if it already had.
    pub fn begin(&mut self, association: AssociationId, reactors: usize) -> bool {
        if self.begun.contains_key(&association) {
            return false;
        }
        self.begun.insert(association, reactors);
        true
    }

    /// Whether a fence that began here has not yet ended.
    #[must_use]
    pub fn is_open(&self, association: AssociationId) -> bool {
        self.begun.contains_key(&association)
    }

    /// A reactor will send no more parts. `true` once that was the last: fence the shards now.
    pub fn passed(&mut self, association: AssociationId, origin: usize, reactors: usize, shards: usize) -> bool {
        let passing = self.passing.entry(association).or_insert(Passing { origin, senders: reactors, shards });
        passing.senders -= 1;
        passing.senders == 0
    }

    /// A shard here has nothing left of it (or there is no shard here). Returns the origin once that was the last.
    pub fn shard_fenced(&mut self, association: AssociationId) -> Option<usize> {
        let passing = self.passing.get_mut(&association).expect("a shard answers a fence that passes");
        passing.shards = passing.shards.saturating_sub(1);
        if passing.shards > 0 {
            return None;
        }
        self.passing.remove(&association).map(|passing| passing.origin)
    }

    /// A reactor has nothing left of it. `true` once that was the last.
    pub fn answered(&mut self, association: AssociationId) -> bool {
        let left = self.begun.get_mut(&association).expect("reactors answer a fence that began here");
        *left -= 1;
        if *left == 0 {
            self.begun.remove(&association);
            return true;
        }
        false
    }
}
