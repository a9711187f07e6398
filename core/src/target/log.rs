//! The logs that survive the process, as the shards know them.

use ringway_reactor::crash_log::{self, CrashLog};

use crate::ids::Lsn;
use crate::shard::{LogFull, RecordLog};

/// Any log of the reactor crate: in a shared mapping, or simulated.
pub struct Kept<L>(pub L);

impl<L: crash_log::RecordLog> RecordLog for Kept<L> {
    fn append(&mut self, lsn: Lsn, record: &[u8]) -> Result<(), LogFull> {
        self.0.append(lsn.0, record).map_err(|crash_log::Full| LogFull)
    }

    fn truncate(&mut self, durable: Lsn) {
        self.0.truncate(durable.0);
    }

    fn replay(&mut self) -> Vec<(Lsn, Vec<u8>)> {
        self.0.replay().into_iter().map(|(lsn, record)| (Lsn(lsn), record)).collect()
    }
}

/// The log of a shard on a machine.
pub enum ProcessLog {
    /// In memory that outlives the process.
    Shared(Kept<CrashLog>),
    /// The pool itself does not outlive the process, so nothing has to be kept for the next one.
    Nothing,
}

impl RecordLog for ProcessLog {
    fn append(&mut self, lsn: Lsn, record: &[u8]) -> Result<(), LogFull> {
        match self {
            ProcessLog::Shared(log) => log.append(lsn, record),
            ProcessLog::Nothing => Ok(()),
        }
    }

    fn truncate(&mut self, durable: Lsn) {
        if let ProcessLog::Shared(log) = self {
            log.truncate(durable);
        }
    }

    fn replay(&mut self) -> Vec<(Lsn, Vec<u8>)> {
        match self {
            ProcessLog::Shared(log) => log.replay(),
            ProcessLog::Nothing => Vec::new(),
        }
    }
}
