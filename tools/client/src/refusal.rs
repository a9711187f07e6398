//! How something that cannot be is told: a number that programs match on, and words.

use ringway_core::host::{HostError, HostErrorKind};

/// The numbers that programs get, as Linux has them.
pub mod errno {
    pub const EPERM: i32 = 1;
    pub const ENOENT: i32 = 2;
    pub const EIO: i32 = 5;
    pub const EBADF: i32 = 9;
    pub const EAGAIN: i32 = 11;
    pub const ENOMEM: i32 = 12;
    pub const EACCES: i32 = 13;
    pub const EFAULT: i32 = 14;
    pub const EBUSY: i32 = 16;
    pub const EEXIST: i32 = 17;
    pub const EINVAL: i32 = 22;
    pub const EFBIG: i32 = 27;
    pub const ENOSPC: i32 = 28;
    pub const EROFS: i32 = 30;
    pub const ERANGE: i32 = 34;
    pub const ENOSYS: i32 = 38;
    pub const ENOTEMPTY: i32 = 39;
    pub const EOPNOTSUPP: i32 = 95;
    pub const ECONNRESET: i32 = 104;
    pub const ESHUTDOWN: i32 = 108;
    pub const ETIMEDOUT: i32 = 110;
    pub const ECONNREFUSED: i32 = 111;
    pub const EINPROGRESS: i32 = 115;
    pub const ECANCELED: i32 = 125;
}

/// Why something cannot be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// To match on, of [`errno`].
    pub errno: i32,
    /// To read.
    pub why: String,
}

impl Refusal {
    /// A refusal with this number and these words.
    pub fn new(errno: i32, why: impl Into<String>) -> Refusal {
        Refusal { errno, why: why.into() }
    }
}

impl From<&HostError> for Refusal {
    fn from(error: &HostError) -> Refusal {
        let (errno, advice) = match error.kind {
            HostErrorKind::NoSuchVolume => (errno::ENOENT, "; `ringway volume list` shows what there is"),
            HostErrorKind::NotAllowed => {
                (errno::EACCES, "; `ringway volume hosts` says who may attach, hostnqn= who we are")
            }
            HostErrorKind::Refused => (errno::ECONNREFUSED, "; is `ringway serve` running there?"),
            HostErrorKind::Disconnected => (errno::ECONNRESET, ""),
            HostErrorKind::TimedOut => (errno::ETIMEDOUT, ""),
            HostErrorKind::Busy => (errno::EBUSY, ""),
            HostErrorKind::Invalid => (errno::EINVAL, ""),
            HostErrorKind::Closed => (errno::ESHUTDOWN, ""),
            HostErrorKind::Digest | HostErrorKind::Protocol | HostErrorKind::Controller | HostErrorKind::Local => {
                (errno::EIO, "")
            }
        };
        Refusal::new(errno, format!("{error}{advice}"))
    }
}
