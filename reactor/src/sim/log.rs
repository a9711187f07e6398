//! The simulated twin of the crash log: memory that outlives the process and not the machine (history C3).
//!
//! Invariant: a record that was appended is there for the next process, whole and in order, until it is truncated or the
//! power fails.

use std::collections::VecDeque;

use super::World;

/// What a log keeps beside the bytes of a record: its number, length and checksum.
const RECORD_OVERHEAD: usize = 24;

/// The records of one log.
#[derive(Default)]
pub(super) struct Records {
    records: VecDeque<(u64, Vec<u8>)>,
    used: usize,
}

/// The log has no room until it is truncated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimLogFull;

/// One log as one process has it open. What a dead process appends or truncates has no effect.
pub struct SimLog {
    world: World,
    number: u32,
    life: u32,
    capacity: usize,
}

impl SimLog {
    pub(super) fn new(world: World, number: u32, capacity: usize) -> Self {
        let life = world.0.borrow().life;
        Self { world, number, life, capacity }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Records) -> T) -> Option<T> {
        let mut state = self.world.0.borrow_mut();
        if state.crashed || state.life != self.life {
            return None;
        }
        Some(change(state.logs.entry(self.number).or_default()))
    }

    /// Keeps one record.
    pub fn append(&mut self, lsn: u64, record: &[u8]) -> Result<(), SimLogFull> {
        let capacity = self.capacity;
        let kept = self.with(|log| {
            let used = log.used + record.len() + RECORD_OVERHEAD;
            if used > capacity {
                return Err(SimLogFull);
            }
            assert!(log.records.back().is_none_or(|&(last, _)| last < lsn), "numbers ascend, {lsn} does not");
            log.used = used;
            log.records.push_back((lsn, record.to_vec()));
            Ok(())
        });
        kept.unwrap_or(Ok(()))
    }

    /// Forgets records up to and including `durable`.
    pub fn truncate(&mut self, durable: u64) {
        self.with(|log| {
            while log.records.front().is_some_and(|&(lsn, _)| lsn <= durable) {
                let (_, record) = log.records.pop_front().expect("just seen");
                log.used -= record.len() + RECORD_OVERHEAD;
            }
        });
    }

    /// The records that are there, in order: of an earlier process too, if the machine has lived since.
    #[must_use]
    pub fn replay(&self) -> Vec<(u64, Vec<u8>)> {
        self.with(|log| log.records.iter().cloned().collect()).unwrap_or_default()
    }
}
