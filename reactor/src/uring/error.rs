//! Which kind of failure an errno is; decided here alone.

use crate::io::{ErrorKind, IoError};

/// Whether the same operation may simply be tried again.
pub(super) fn is_transient(errno: i32) -> bool {
    matches!(errno, libc::EINTR | libc::EAGAIN)
}

/// The failure of a device operation.
pub(super) fn of_device(errno: i32) -> IoError {
    let kind = match errno {
        libc::ENOSPC | libc::EDQUOT => ErrorKind::NoSpace,
        libc::ECANCELED => ErrorKind::Cancelled,
        libc::EFAULT => ErrorKind::Memory,
        libc::EINVAL | libc::EOPNOTSUPP | libc::EPERM | libc::EFBIG | libc::ENOMEM => ErrorKind::Other,
        // EIO, ENXIO, ENODEV, EBADMSG, EILSEQ, EREMOTEIO, ENOLINK, ENODATA, ETIMEDOUT, EROFS ...: what is stored there is in doubt.
        _ => ErrorKind::Device,
    };
    IoError { kind, errno }
}

/// The failure of an operation on a socket.
pub(super) fn of_socket(errno: i32) -> IoError {
    let kind = match errno {
        libc::ECONNRESET
        | libc::ECONNABORTED
        | libc::ECONNREFUSED
        | libc::EPIPE
        | libc::ETIMEDOUT
        | libc::ENOTCONN
        | libc::ESHUTDOWN
        | libc::EHOSTUNREACH
        | libc::EHOSTDOWN
        | libc::ENETUNREACH
        | libc::ENETDOWN => ErrorKind::Disconnected,
        libc::ECANCELED => ErrorKind::Cancelled,
        _ => ErrorKind::Other,
    };
    IoError { kind, errno }
}

/// Ended by ourselves.
pub(super) const CANCELLED: IoError = IoError { kind: ErrorKind::Cancelled, errno: libc::ECANCELED };

/// The file ends before the pool does.
pub(super) const SHORT: IoError = IoError { kind: ErrorKind::UnexpectedEnd, errno: 0 };
