//! Which errors of the device are fatal to what: the one place that decides.
//!
//! A failed read or write of data is its part's (or its job's in the background, that then leaves things as they were), and so is memory of its client that is not there. A failed read of a map page is for those who wait for the page. A journal group
//! or a barrier that failed leaves unknown what is on stable storage: the shard takes no more writes until the pool has been
//! opened again and its journal checked. A checkpoint that failed is tried again: nothing has been released for it.

use ringway_reactor::io::{ErrorKind, IoError};

use super::ops::{Kind, Owner};
use crate::request::Status;

/// What an error is fatal to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// To the part: it ends so.
    Part(Status),
    /// To the attempt: it may be repeated.
    Attempt(IoError),
    /// To the shard's writes, until the pool is opened again.
    Shard(String),
}

pub(crate) fn classify(owner: Owner, kind: Kind, error: IoError) -> Verdict {
    match (owner, kind) {
        (Owner::Whole { .. } | Owner::Segment { .. }, _) if error.kind == ErrorKind::Memory => {
            Verdict::Part(Status::DataTransfer)
        }
        (Owner::Whole { .. } | Owner::Segment { .. } | Owner::Scratch { .. } | Owner::Job { .. }, Kind::Read) => {
            Verdict::Part(Status::UnrecoveredRead)
        }
        (Owner::Whole { .. } | Owner::Segment { .. } | Owner::Scratch { .. } | Owner::Job { .. }, _) => {
            Verdict::Part(match error.kind {
                ErrorKind::NoSpace => Status::CapacityExceeded,
                _ => Status::WriteFault,
            })
        }
        // A hole that could not be punched costs the file below some space.
        (Owner::NodePage { .. } | Owner::Checkpoint { .. } | Owner::Punch { .. }, _) => Verdict::Attempt(error),
        (Owner::Group, _) => Verdict::Shard(format!("a journal group could not be written: {error}")),
    }
}

/// Why a shard stops after a failed barrier.
pub(crate) fn barrier(error: IoError) -> String {
    format!("a barrier failed, what completed before it may be lost: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::VolumeId;
    use crate::map::NodeKey;

    #[test]
    fn every_kind_of_operation_has_its_verdict() {
        let error = IoError { kind: ErrorKind::Device, errno: 5 };
        let full = IoError { kind: ErrorKind::NoSpace, errno: 28 };
        let part = crate::shard::parts::PartKey::for_test(0);
        let segment = Owner::Segment { part, segment: 0 };
        let scratch = Owner::Scratch { part, piece: 0 };
        for owner in [segment, scratch] {
            assert_eq!(classify(owner, Kind::Read, error), Verdict::Part(Status::UnrecoveredRead));
            assert_eq!(classify(owner, Kind::Write, error), Verdict::Part(Status::WriteFault));
            assert_eq!(classify(owner, Kind::DurableWrite, full), Verdict::Part(Status::CapacityExceeded));
        }
        let gone = IoError { kind: ErrorKind::Memory, errno: 14 };
        assert_eq!(classify(segment, Kind::Read, gone), Verdict::Part(Status::DataTransfer));
        assert_eq!(classify(segment, Kind::Write, gone), Verdict::Part(Status::DataTransfer));
        let page = Owner::NodePage(NodeKey { volume: VolumeId(1), range: 0 });
        assert_eq!(classify(page, Kind::Read, error), Verdict::Attempt(error));
        assert_eq!(classify(Owner::Checkpoint { nth: 0 }, Kind::Write, error), Verdict::Attempt(error));
        assert_eq!(classify(Owner::Punch { hole: 0 }, Kind::Deallocate, error), Verdict::Attempt(error));
        assert!(matches!(classify(Owner::Group, Kind::DurableWrite, error), Verdict::Shard(_)));
    }
}
