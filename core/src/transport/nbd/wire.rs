//! NBD on the wire (the protocol's document doc/proto.md, "NBD protocol"): magic numbers, requests, replies. All fields are big-endian.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::request::{Command, Status};

/// `NBDMAGIC`.
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// What follows [`MAGIC`] in the oldstyle negotiation.
pub const OLD_MAGIC: u64 = 0x0000_4202_8186_1253;
/// Before each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x3_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Bytes of data that one read or write moves at most, as NBD_INFO_BLOCK_SIZE tells it; what clients take for granted where they do
/// not ask.
pub const PAYLOAD_MAX: u32 = 32 << 20;

/// Transmission flags.
pub mod flag {
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Flags of a request.
pub mod command_flag {
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Errors (their numbers are Linux's, on every system).
pub mod errno {
    pub const EPERM: u32 = 1;
    pub const EIO: u32 = 5;
    pub const ENOMEM: u32 = 12;
    pub const EINVAL: u32 = 22;
    pub const ENOSPC: u32 = 28;
    pub const EOVERFLOW: u32 = 75;
    pub const ENOTSUP: u32 = 95;
    pub const ESHUTDOWN: u32 = 108;
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
    BlockStatus,
    /// Of no number that we know.
    Unknown(u16),
}

impl Kind {
    fn of(number: u16) -> Kind {
        match number {
            0 => Kind::Read,
            1 => Kind::Write,
            2 => Kind::Disconnect,
            3 => Kind::Flush,
            4 => Kind::Trim,
            5 => Kind::Cache,
            6 => Kind::WriteZeroes,
            7 => Kind::BlockStatus,
            other => Kind::Unknown(other),
        }
    }

    /// Flags that a request of this kind may have.
    #[must_use]
    pub fn flags(self) -> u16 {
        use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, REQ_ONE};
        match self {
            // FUA does no harm where nothing is written: clients set it on whatever they send.
            Kind::Read => FUA | DF,
            Kind::Write | Kind::Trim | Kind::Flush | Kind::Cache | Kind::Disconnect => FUA,
            Kind::WriteZeroes => FUA | NO_HOLE | FAST_ZERO,
            Kind::BlockStatus => FUA | REQ_ONE,
            Kind::Unknown(_) => 0,
        }
    }

    /// Names of all kinds, by [`Kind::place`]; of unknown ones there is one.
    pub const NAMES: [&str; 9] =
        ["read", "write", "disconnect", "flush", "trim", "cache", "write_zeroes", "block_status", "unknown"];

    /// Where it is in lists of all kinds.
    #[must_use]
    pub fn place(self) -> usize {
        match self {
            Kind::Read => 0,
            Kind::Write => 1,
            Kind::Disconnect => 2,
            Kind::Flush => 3,
            Kind::Trim => 4,
            Kind::Cache => 5,
            Kind::WriteZeroes => 6,
            Kind::BlockStatus => 7,
            Kind::Unknown(_) => 8,
        }
    }

    /// Whether it changes the volume.
    #[must_use]
    pub fn changes(self) -> bool {
        matches!(self, Kind::Write | Kind::Trim | Kind::WriteZeroes)
    }
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RequestHeader {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    offset: U64,
    len: U32,
}

/// Bytes of a request before its data.
pub const REQUEST_BYTES: usize = 28;
const _: () = assert!(size_of::<RequestHeader>() == REQUEST_BYTES);

/// A request as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    pub kind: Kind,
    pub flags: u16,
    /// Chosen by the client, returned with the reply.
    pub cookie: u64,
    /// Bytes from the start.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

impl Asked {
    /// Reads one off the front; `Ok(None)` if there is not all of it yet, `Err` if it is none: the stream cannot be followed any more.
    pub fn parse(bytes: &[u8]) -> Result<Option<Asked>, BadMagic> {
        let Ok((header, _)) = RequestHeader::read_from_prefix(bytes) else { return Ok(None) };
        if header.magic.get() != REQUEST_MAGIC {
            return Err(BadMagic);
        }
        Ok(Some(Asked {
            kind: Kind::of(header.kind.get()),
            flags: header.flags.get(),
            cookie: header.cookie.get(),
            offset: header.offset.get(),
            len: header.len.get(),
        }))
    }

    /// As a client sends it.
    #[must_use]
    pub fn encode(&self, kind: u16) -> [u8; REQUEST_BYTES] {
        let header = RequestHeader {
            magic: REQUEST_MAGIC.into(),
            flags: self.flags.into(),
            kind: kind.into(),
            cookie: self.cookie.into(),
            offset: self.offset.into(),
            len: self.len.into(),
        };
        header.as_bytes().try_into().expect("as long as a header")
    }

    /// Whether it has this flag.
    #[must_use]
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// The error that it is answered with before it is begun, on an export of `size` bytes.
    #[must_use]
    pub fn refusal(&self, size: u64, read_only: bool, contexts: bool) -> Option<u32> {
        if matches!(self.kind, Kind::Unknown(_)) || self.flags & !self.kind.flags() != 0 {
            return Some(errno::EINVAL);
        }
        if self.kind.changes() && read_only {
            return Some(errno::EPERM);
        }
        if matches!(self.kind, Kind::Flush | Kind::Disconnect) {
            return None;
        }
        let inside = self.offset.checked_add(u64::from(self.len)).is_some_and(|end| end <= size);
        if !inside {
            let is_write = matches!(self.kind, Kind::Write | Kind::WriteZeroes);
            return Some(if is_write { errno::ENOSPC } else { errno::EINVAL });
        }
        match self.kind {
            Kind::Read | Kind::Write if self.len > PAYLOAD_MAX => Some(errno::EINVAL),
            Kind::BlockStatus if !contexts || self.len == 0 => Some(errno::EINVAL),
            // Space is taken by writing, which is no faster than if the client does it.
            Kind::WriteZeroes if self.has(command_flag::FAST_ZERO) && self.has(command_flag::NO_HOLE) => {
                Some(errno::ENOTSUP)
            }
            _ => None,
        }
    }
}

/// A request that does not begin as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadMagic;

/// How a request of ours that ended so is reported.
#[must_use]
pub fn error_of(status: Status, command: Command) -> u32 {
    match status {
        Status::Success => 0,
        Status::LbaOutOfRange if command.changes_data() => errno::ENOSPC,
        Status::LbaOutOfRange | Status::InvalidField => errno::EINVAL,
        Status::CapacityExceeded => errno::ENOSPC,
        Status::WriteProtected => errno::EPERM,
        Status::VolumeGone | Status::Aborted => errno::ESHUTDOWN,
        // It would hold more than it may: nothing is wrong with what was asked for, and the same may be served later.
        Status::Busy => errno::ENOMEM,
        Status::WriteFault
        | Status::UnrecoveredRead
        | Status::VolumeFaulted
        | Status::CompareFailure
        | Status::DataTransfer
        | Status::BackendUnavailable
        | Status::Internal => errno::EIO,
    }
}

/// Bytes of a simple reply before its data.
pub const SIMPLE_BYTES: usize = 16;

/// Writes a simple reply; returns its length.
pub fn simple(error: u32, cookie: u64, out: &mut [u8]) -> usize {
    out[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out[4..8].copy_from_slice(&error.to_be_bytes());
    out[8..SIMPLE_BYTES].copy_from_slice(&cookie.to_be_bytes());
    SIMPLE_BYTES
}

/// Types of structured replies' chunks.
pub mod chunk {
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR: u16 = (1 << 15) + 1;
    pub const ERROR_OFFSET: u16 = (1 << 15) + 2;
}

/// Bytes of a chunk's header.
pub const CHUNK_BYTES: usize = 20;

/// Writes the header of a chunk whose content has `len` bytes; returns its length.
pub fn chunk_header(done: bool, kind: u16, cookie: u64, len: u32, out: &mut [u8]) -> usize {
    out[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    out[4..6].copy_from_slice(&u16::from(done).to_be_bytes());
    out[6..8].copy_from_slice(&kind.to_be_bytes());
    out[8..16].copy_from_slice(&cookie.to_be_bytes());
    out[16..CHUNK_BYTES].copy_from_slice(&len.to_be_bytes());
    CHUNK_BYTES
}

/// Writes the header of a chunk with data, and where the data belongs.
pub fn data_header(done: bool, cookie: u64, offset: u64, len: u32, out: &mut [u8]) -> usize {
    chunk_header(done, chunk::OFFSET_DATA, cookie, len + 8, out);
    out[CHUNK_BYTES..CHUNK_BYTES + 8].copy_from_slice(&offset.to_be_bytes());
    CHUNK_BYTES + 8
}

/// Writes a chunk that stands for zeros.
pub fn hole(done: bool, cookie: u64, offset: u64, len: u32, out: &mut [u8]) -> usize {
    chunk_header(done, chunk::OFFSET_HOLE, cookie, 12, out);
    out[CHUNK_BYTES..CHUNK_BYTES + 8].copy_from_slice(&offset.to_be_bytes());
    out[CHUNK_BYTES + 8..CHUNK_BYTES + 12].copy_from_slice(&len.to_be_bytes());
    CHUNK_BYTES + 12
}

/// Writes the chunk that ends a request in an error, at an offset where one is to blame.
pub fn error_chunk(cookie: u64, error: u32, offset: Option<u64>, out: &mut [u8]) -> usize {
    let kind = if offset.is_some() { chunk::ERROR_OFFSET } else { chunk::ERROR };
    let len = 6 + if offset.is_some() { 8 } else { 0 };
    chunk_header(true, kind, cookie, len, out);
    let body = &mut out[CHUNK_BYTES..];
    body[..4].copy_from_slice(&error.to_be_bytes());
    // No message: clients have words of their own for errors.
    body[4..6].fill(0);
    if let Some(offset) = offset {
        body[6..14].copy_from_slice(&offset.to_be_bytes());
    }
    CHUNK_BYTES + len as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(kind: Kind, flags: u16, offset: u64, len: u32) -> Asked {
        Asked { kind, flags, cookie: 7, offset, len }
    }

    #[test]
    fn a_request_is_read_as_it_was_written_and_nothing_else_is_one() {
        let one = asked(Kind::WriteZeroes, command_flag::NO_HOLE, 1 << 40, 77);
        let bytes = one.encode(6);
        assert_eq!(Asked::parse(&bytes), Ok(Some(one)));
        assert_eq!(Asked::parse(&bytes[..27]), Ok(None));
        let mut wrong = bytes;
        wrong[0] ^= 1;
        assert_eq!(Asked::parse(&wrong), Err(BadMagic));
        assert_eq!(Asked::parse(&one.encode(9)).unwrap().unwrap().kind, Kind::Unknown(9));
        for number in 0..9 {
            assert_eq!(Kind::of(number).place(), usize::from(number), "{}", Kind::NAMES[usize::from(number)]);
        }
    }

    #[test]
    fn what_a_request_is_refused_for_has_the_error_that_the_protocol_names() {
        use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE};
        let size = 1 << 20;
        for (request, read_only, expected) in [
            (asked(Kind::Read, DF, 0, 1 << 20), true, None),
            (asked(Kind::Read, 0, 1, 1 << 20), false, Some(errno::EINVAL)),
            (asked(Kind::Read, 0, u64::MAX, 2), false, Some(errno::EINVAL)),
            (asked(Kind::Write, FUA, 1, 1 << 20), false, Some(errno::ENOSPC)),
            (asked(Kind::Write, 0, 0, 1), true, Some(errno::EPERM)),
            (asked(Kind::Trim, 0, 0, 1), true, Some(errno::EPERM)),
            (asked(Kind::WriteZeroes, DF, 0, 1), false, Some(errno::EINVAL)),
            (asked(Kind::WriteZeroes, FAST_ZERO, 0, 1), false, None),
            (asked(Kind::WriteZeroes, FAST_ZERO | NO_HOLE, 0, 1), false, Some(errno::ENOTSUP)),
            (asked(Kind::Flush, 0, u64::MAX, u32::MAX), true, None),
            (asked(Kind::BlockStatus, 0, 0, 0), false, Some(errno::EINVAL)),
            (asked(Kind::BlockStatus, 0, 0, 1), false, None),
            (asked(Kind::Unknown(9), 0, 0, 0), false, Some(errno::EINVAL)),
        ] {
            assert_eq!(request.refusal(size, read_only, true), expected, "{request:?}");
        }
        assert_eq!(asked(Kind::BlockStatus, 0, 0, 1).refusal(size, false, false), Some(errno::EINVAL));
        let large = asked(Kind::Read, 0, 0, PAYLOAD_MAX + 1);
        assert_eq!(large.refusal(1 << 40, false, true), Some(errno::EINVAL));
    }

    #[test]
    fn replies_have_the_lengths_and_fields_of_the_protocol() {
        let mut out = [0xFF; 64];
        assert_eq!(simple(5, 0x0102, &mut out), 16);
        assert_eq!(out[..16], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(data_header(true, 1, 512, 4096, &mut out), 28);
        assert_eq!((&out[4..8], &out[16..28]), (&[0, 1, 0, 1][..], &[0, 0, 16, 8, 0, 0, 0, 0, 0, 0, 2, 0][..]));
        assert_eq!(hole(false, 1, 512, 4096, &mut out), 32);
        assert_eq!(
            (&out[4..8], &out[16..20], &out[28..32]),
            (&[0, 0, 0, 2][..], &[0, 0, 0, 12][..], &[0, 0, 16, 0][..])
        );
        assert_eq!(error_chunk(1, errno::EIO, Some(9), &mut out), 34);
        assert_eq!(
            (&out[6..8], &out[16..34]),
            (&[0x80, 2][..], &[0, 0, 0, 14, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9][..])
        );
        assert_eq!(error_chunk(1, errno::EIO, None, &mut out), 26);
    }
}
