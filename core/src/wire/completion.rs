//! The completion queue entry (base 3.3.3.2) and the status that it carries (base 3.3.3.2.1).

use std::fmt;

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A completion queue entry: 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Cqe {
    /// `0-7` Depends on the command (dwords 0 and 1).
    pub result: U64,
    /// `8-9` Submission queue head pointer; 0xFFFF where flow control is off.
    pub sq_head: U16,
    /// `10-11` Submission queue identifier; reserved over fabrics.
    pub sq_id: U16,
    /// `12-13` The command that ended.
    pub cid: U16,
    /// `14-15` Status in bits 15:1; bit 0 is the phase tag, which fabrics do not use.
    pub status: U16,
}

const _: () = assert!(size_of::<Cqe>() == 16);

impl Cqe {
    /// The end of command `cid`.
    #[must_use]
    pub fn new(cid: u16, sq_head: u16, result: u64, status: NvmeStatus) -> Cqe {
        Cqe {
            result: result.into(),
            sq_head: sq_head.into(),
            sq_id: U16::ZERO,
            cid: cid.into(),
            status: (status.0 << 1).into(),
        }
    }

    /// How the command ended.
    #[must_use]
    pub fn nvme_status(&self) -> NvmeStatus {
        NvmeStatus(self.status.get() >> 1)
    }
}

/// The 15-bit status field: code (bits 7:0), code type (10:8), command retry delay (12:11), more (13), do not retry (14).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct NvmeStatus(pub u16);

const DNR: u16 = 1 << 14;
const CODE: u16 = 0x7FF;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $sct:literal, $sc:literal;)*) => {
        impl NvmeStatus {
            $($(#[$doc])* pub const $name: NvmeStatus = NvmeStatus($sct << 8 | $sc);)*

            /// The name of its code, whatever its other bits say.
            #[must_use]
            pub fn name(self) -> &'static str {
                $(if self.is(NvmeStatus::$name) { return stringify!($name); })*
                "UNKNOWN"
            }
        }
    };
}

codes! {
    /// Generic.
    SUCCESS = 0, 0x00;
    /// The opcode is reserved or not supported.
    INVALID_OPCODE = 0, 0x01;
    /// A field has a reserved or unsupported value.
    INVALID_FIELD = 0, 0x02;
    /// The identifier is in use.
    COMMAND_ID_CONFLICT = 0, 0x03;
    /// The data could not be moved.
    DATA_TRANSFER_ERROR = 0, 0x04;
    /// The target's own fault.
    INTERNAL_ERROR = 0, 0x06;
    /// By an Abort command.
    ABORT_REQUESTED = 0, 0x07;
    /// Its queue is gone.
    ABORTED_SQ_DELETION = 0, 0x08;
    /// The other of the two failed.
    ABORTED_FAILED_FUSED = 0, 0x09;
    /// The other of the two did not come.
    ABORTED_MISSING_FUSED = 0, 0x0A;
    /// No such namespace.
    INVALID_NAMESPACE_OR_FORMAT = 0, 0x0B;
    /// Not at this point, for instance before Connect or before the controller is enabled.
    COMMAND_SEQUENCE_ERROR = 0, 0x0C;
    /// More descriptors than the controller takes.
    INVALID_NUMBER_OF_SGL_DESCRIPTORS = 0, 0x0E;
    /// The descriptor's length is not the command's.
    DATA_SGL_LENGTH_INVALID = 0, 0x0F;
    /// Not a descriptor that this transport knows.
    SGL_DESCRIPTOR_TYPE_INVALID = 0, 0x11;
    /// The fused pair is larger than what is atomic.
    ATOMIC_WRITE_UNIT_EXCEEDED = 0, 0x14;
    /// Outside the capsule.
    SGL_OFFSET_INVALID = 0, 0x16;
    /// The host identifier is not consistent.
    HOST_ID_INCONSISTENT = 0, 0x18;
    /// Nothing heard from the host in time.
    KEEP_ALIVE_TIMEOUT = 0, 0x19;
    /// Not a timeout that the controller takes.
    KEEP_ALIVE_TIMEOUT_INVALID = 0, 0x1A;
    /// The namespace is write protected.
    NAMESPACE_WRITE_PROTECTED = 0, 0x20;
    /// The command was interrupted; the host should send it again.
    COMMAND_INTERRUPTED = 0, 0x21;
    /// The transport failed while the command ran.
    TRANSIENT_TRANSPORT_ERROR = 0, 0x22;
    /// Beyond the end of the namespace.
    LBA_OUT_OF_RANGE = 0, 0x80;
    /// No space in the pool.
    CAPACITY_EXCEEDED = 0, 0x81;
    /// The volume answers no I/O.
    NAMESPACE_NOT_READY = 0, 0x82;
    /// Somebody else has reserved it.
    RESERVATION_CONFLICT = 0, 0x83;
    /// Command specific: more Asynchronous Event Requests than the limit.
    ASYNC_EVENT_LIMIT_EXCEEDED = 1, 0x05;
    /// No such log page.
    INVALID_LOG_PAGE = 1, 0x09;
    /// The feature cannot be saved.
    FEATURE_NOT_SAVEABLE = 1, 0x0D;
    /// The feature cannot be changed.
    FEATURE_NOT_CHANGEABLE = 1, 0x0E;
    /// The feature belongs to the whole controller.
    FEATURE_NOT_NAMESPACE_SPECIFIC = 1, 0x0F;
    /// Fabrics: the record format of Connect is not supported.
    CONNECT_INCOMPATIBLE_FORMAT = 1, 0x80;
    /// Fabrics: no controller left, or the volume has its one writer.
    CONNECT_CONTROLLER_BUSY = 1, 0x81;
    /// Fabrics: a parameter of Connect; the result says which.
    CONNECT_INVALID_PARAMETERS = 1, 0x82;
    /// Fabrics: ask discovery again.
    CONNECT_RESTART_DISCOVERY = 1, 0x83;
    /// Fabrics: this host may not.
    CONNECT_INVALID_HOST = 1, 0x84;
    /// Media: the write failed.
    WRITE_FAULT = 2, 0x80;
    /// The read failed.
    UNRECOVERED_READ_ERROR = 2, 0x81;
    /// Compare found other data.
    COMPARE_FAILURE = 2, 0x85;
}

impl NvmeStatus {
    /// The same, and trying again is of no use.
    #[must_use]
    pub const fn dnr(self) -> NvmeStatus {
        NvmeStatus(self.0 | DNR)
    }

    /// Whether trying again is of no use.
    #[must_use]
    pub const fn do_not_retry(self) -> bool {
        self.0 & DNR != 0
    }

    /// Whether it has the code and code type of `other`, whatever the other bits say.
    #[must_use]
    pub const fn is(self, other: NvmeStatus) -> bool {
        self.0 & CODE == other.0 & CODE
    }

    /// Whether the command succeeded.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.is(NvmeStatus::SUCCESS)
    }

    /// Status code type (bits 10:8).
    #[must_use]
    pub const fn code_type(self) -> u8 {
        (self.0 >> 8 & 7) as u8
    }

    /// Status code (bits 7:0).
    #[must_use]
    pub const fn code(self) -> u8 {
        self.0 as u8
    }
}

impl fmt::Debug for NvmeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for NvmeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dnr = if self.do_not_retry() { ", do not retry" } else { "" };
        write!(f, "{} (type {}, code {:#04x}{dnr})", self.name(), self.code_type(), self.code())
    }
}

impl std::error::Error for NvmeStatus {}
