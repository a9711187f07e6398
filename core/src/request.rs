//! One request on its way from a transport to the shards and back.

use ringway_reactor::data::Data;

use crate::ids::{AssociationId, RequestId, VolumeId};

/// What is to be done to a byte range of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Fills the data.
    Read,
    /// Writes the data; with `fua` it is on stable storage when it completes.
    Write { fua: bool },
    /// Everything of this volume that completed before is on stable storage when it completes.
    Flush,
    /// Afterwards the range reads as zeros; `deallocate` allows giving its space back.
    WriteZeroes { fua: bool, deallocate: bool },
    /// Gives space back; whole blocks then read as zeros.
    Deallocate,
    /// Compares the data with what is stored.
    Compare,
    /// Compares with the first half of the data and, where equal, writes the second half: one logical block, atomic
    /// against every other command on that block (NVM command set, fused operations).
    CompareAndWrite { fua: bool },
}

impl Command {
    /// Whether it can change what a later read returns.
    #[must_use]
    pub fn changes_data(self) -> bool {
        !matches!(self, Command::Read | Command::Flush | Command::Compare)
    }
}

/// A checked request: range inside the volume, aligned to its logical block, buffer as long as the command needs.
#[derive(Debug)]
pub struct Request {
    /// Who asks; parts of a dead association that have not started are dropped.
    pub association: AssociationId,
    /// What it is about.
    pub volume: VolumeId,
    /// What to do.
    pub command: Command,
    /// Bytes from the start of the volume. 0 for [`Command::Flush`].
    pub offset: u64,
    /// Bytes of the range; at most [`crate::limits::REQUEST_BYTES_MAX`] where there is a buffer.
    pub len: u32,
    /// `len` bytes (twice that for [`Command::CompareAndWrite`]) where data moves. A peer's memory is aligned to the devices'
    /// logical block, piece by piece ([`Data::is_aligned`]): the transport copies what is not.
    pub data: Option<Data>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Done.
    Success,
    /// The range ends beyond the volume.
    LbaOutOfRange,
    /// A field has a value that cannot be.
    InvalidField,
    /// Compare found other data.
    CompareFailure,
    /// The pool has no space for it.
    CapacityExceeded,
    /// The device failed a write, or an earlier barrier failed and the pool has not been reopened since.
    WriteFault,
    /// The device failed a read.
    UnrecoveredRead,
    /// The volume is faulted: a record of its map is damaged.
    VolumeFaulted,
    /// The volume is gone.
    VolumeGone,
    /// The volume or the pool is read-only.
    WriteProtected,
    /// The client's memory could not be reached.
    DataTransfer,
    /// Its association ended before it started.
    Aborted,
    /// What was not fetched yet could not be fetched from the backend, although that was tried for as long as the clone says.
    BackendUnavailable,
    /// So much waits for the backend that no more may: to be sent again.
    Busy,
    /// A bug of ours, contained.
    Internal,
}

impl Status {
    /// The worse of two parts of one request: the first that is not success stays.
    #[must_use]
    pub fn and(self, other: Status) -> Status {
        if self == Status::Success { other } else { self }
    }
}

/// The end of one request. Each submitted request ends exactly once.
#[derive(Debug)]
pub struct Done {
    /// The number the transport chose.
    pub id: RequestId,
    /// How it ended.
    pub status: Status,
    /// The request's memory, filled where it was a successful read.
    pub data: Option<Data>,
}
