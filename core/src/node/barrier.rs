//! One barrier coalescer a device, on the device's home reactor.
//!
//! However many shards ask, at most one barrier of a device is in flight and one is gathering. A request joins only the
//! gathering one: the one in flight may have been submitted before the writes that the request is about completed. A failed
//! barrier is sticky: the kernel reports a write-back error once per open file, so success after a failure says nothing about
//! what the failed one should have covered.

use ringway_reactor::io::{FileId, IoError};

use crate::ids::ShardId;

/// Who waits for a barrier, and the number by which it will know the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// The shard that asked.
    pub shard: ShardId,
    /// Its own number.
    pub ticket: u64,
}

/// The barriers of one device.
#[derive(Debug)]
pub struct Coalescer {
    file: FileId,
    /// Covered by the barrier that the device is working on; empty when there is none.
    in_flight: Vec<Waiter>,
    /// Will be covered by the next one.
    gathering: Vec<Waiter>,
    failed: Option<IoError>,
}

/// What a request for a barrier led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// Submit a barrier on this file now.
    Submit(FileId),
    /// One is in flight; the request waits for the next.
    Gathered,
    /// An earlier barrier failed: answer this at once.
    Failed(IoError),
}

impl Coalescer {
    /// A device without barriers.
    #[must_use]
    pub fn new(file: FileId) -> Self {
        Self { file, in_flight: Vec::new(), gathering: Vec::new(), failed: None }
    }

    /// `waiter` wants everything whose completion it has reaped to be on stable storage.
    pub fn ask(&mut self, waiter: Waiter) -> Asked {
        if let Some(error) = self.failed {
            return Asked::Failed(error);
        }
        if self.in_flight.is_empty() {
            self.in_flight.push(waiter);
            Asked::Submit(self.file)
        } else {
            self.gathering.push(waiter);
            Asked::Gathered
        }
    }

    /// The barrier in flight ended. Moves those it covered to `answered`; `true` means submit the next one now.
    pub fn complete(&mut self, result: Result<(), IoError>, answered: &mut Vec<Waiter>) -> bool {
        assert!(!self.in_flight.is_empty(), "a barrier that nobody asked for has completed");
        answered.append(&mut self.in_flight);
        if let Err(error) = result {
            self.failed = Some(error);
            // The gathering ones must not be answered by a later success either.
            answered.append(&mut self.gathering);
            return false;
        }
        std::mem::swap(&mut self.in_flight, &mut self.gathering);
        !self.in_flight.is_empty()
    }

    /// The failure that made this device unusable for barriers, if any.
    #[must_use]
    pub fn failed(&self) -> Option<IoError> {
        self.failed
    }
}

/// Barriers that a shard of this reactor waits for, over several devices.
#[derive(Debug, Default)]
pub struct OpenBarriers {
    open: Vec<Open>,
}

#[derive(Debug)]
struct Open {
    waiter: Waiter,
    devices_left: usize,
    failed: Option<IoError>,
}

impl OpenBarriers {
    /// `waiter` waits for `devices` devices.
    pub fn begin(&mut self, waiter: Waiter, devices: usize) {
        assert!(devices > 0, "a barrier over no device has ended before it began");
        self.open.push(Open { waiter, devices_left: devices, failed: None });
    }

    /// One device has answered. Returns the outcome once it was the last.
    pub fn answered(&mut self, waiter: Waiter, result: Result<(), IoError>) -> Option<Result<(), IoError>> {
        let at = self.open.iter().position(|open| open.waiter == waiter).expect("only what was asked is answered");
        let open = &mut self.open[at];
        open.devices_left -= 1;
        open.failed = open.failed.or(result.err());
        (open.devices_left == 0).then(|| self.open.swap_remove(at).failed.map_or(Ok(()), Err))
    }
}

#[cfg(test)]
mod tests {
    use ringway_reactor::io::ErrorKind;

    use super::*;

    fn waiter(ticket: u64) -> Waiter {
        Waiter { shard: ShardId(0), ticket }
    }

    #[test]
    fn h1_a_flush_joins_only_a_barrier_that_is_not_yet_submitted() {
        let mut coalescer = Coalescer::new(FileId(0));
        assert_eq!(coalescer.ask(waiter(1)), Asked::Submit(FileId(0)));
        assert_eq!(coalescer.ask(waiter(2)), Asked::Gathered);
        assert_eq!(coalescer.ask(waiter(3)), Asked::Gathered);
        let mut answered = Vec::new();
        assert!(coalescer.complete(Ok(()), &mut answered));
        assert_eq!(answered, [waiter(1)]);
        answered.clear();
        assert!(!coalescer.complete(Ok(()), &mut answered));
        assert_eq!(answered, [waiter(2), waiter(3)]);
    }

    #[test]
    fn h1_a_failed_barrier_fails_those_who_gathered_and_all_who_come_later() {
        let mut coalescer = Coalescer::new(FileId(0));
        let error = IoError { kind: ErrorKind::Device, errno: 5 };
        let _ = coalescer.ask(waiter(1));
        let _ = coalescer.ask(waiter(2));
        let mut answered = Vec::new();
        assert!(!coalescer.complete(Err(error), &mut answered));
        assert_eq!(answered, [waiter(1), waiter(2)]);
        assert_eq!(coalescer.ask(waiter(3)), Asked::Failed(error));
    }
}
