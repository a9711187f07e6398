//! Why a target does not start. Every text says what was wrong and what would be right.

use std::net::SocketAddr;
use std::path::PathBuf;

use ringway_reactor::crash_log::CrashLogError;
use ringway_reactor::files::FileError;
use ringway_reactor::io::IoError;
use ringway_reactor::pin::PinError;
use ringway_reactor::uring::UringError;
use thiserror::Error;

use crate::control::{ControlError, ControlErrorKind};
use crate::pool::PoolError;
use crate::shard::OpenError;

/// Why a target does not start, or a pool is not formatted.
#[derive(Debug, Error)]
pub enum StartError {
    /// A pool file or device cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no pool.
    #[error("{} holds no pool; format one first (`ringway pool format`), or start with a pool size", .0.display())]
    NoPool(PathBuf),
    /// A file of the pool is gone.
    #[error("{} is missing: the pool has {expected} devices; put it back where it was", path.display())]
    MissingDevice {
        /// Where it has to be.
        path: PathBuf,
        /// Devices of the pool.
        expected: usize,
    },
    /// There is one already.
    #[error("{} holds a pool already; remove it, or format with force to lose what it holds", .0.display())]
    PoolExists(PathBuf),
    /// A request that cannot be right.
    #[error("{0}")]
    Invalid(String),
    /// The pool cannot be opened or made.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A shard cannot be opened.
    #[error(transparent)]
    Shard(#[from] OpenError),
    /// The ring cannot be set up.
    #[error(transparent)]
    Ring(#[from] UringError),
    /// The log that survives the process cannot be used.
    #[error(transparent)]
    CrashLog(#[from] CrashLogError),
    /// A core is not to be had.
    #[error(transparent)]
    Core(#[from] PinError),
    /// A listener cannot be opened.
    #[error("cannot listen on {addr}: {why}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// The kernel's error, and what would help.
        why: String,
        /// Its number.
        errno: i32,
    },
    /// A socket for clients of this machine.
    #[error("{0}")]
    Socket(ControlError),
    /// A system facility that the engine needs.
    #[error("{what}: {source}")]
    System {
        /// What was tried, and what would help.
        what: String,
        /// The kernel's error.
        source: std::io::Error,
    },
}

impl StartError {
    /// A listener's error, in words.
    #[must_use]
    pub fn listen(addr: SocketAddr, error: IoError) -> StartError {
        let why = match error.errno {
            errno::EADDRINUSE => {
                format!(
                    "the port is in use; stop who listens there (`ss -ltnp sport = :{}`), or choose another",
                    addr.port()
                )
            }
            errno::EADDRNOTAVAIL => {
                "no interface of this machine has that address (`ip address` lists them)".to_owned()
            }
            errno::EACCES => "ports below 1024 need CAP_NET_BIND_SERVICE; choose one above".to_owned(),
            _ => error.to_string(),
        };
        StartError::Listen { addr, why, errno: error.errno }
    }

    /// To match on; it has an exit code.
    #[must_use]
    pub fn kind(&self) -> ControlErrorKind {
        match self {
            StartError::File(error) => file_kind(error),
            StartError::NoPool(_) | StartError::MissingDevice { .. } => ControlErrorKind::NotFound,
            StartError::PoolExists(_) => ControlErrorKind::Exists,
            StartError::Invalid(_) => ControlErrorKind::Invalid,
            StartError::Core(_) => ControlErrorKind::Denied,
            StartError::Listen { errno, .. } => match *errno {
                errno::EADDRINUSE => ControlErrorKind::Busy,
                errno::EACCES => ControlErrorKind::Denied,
                _ => ControlErrorKind::Invalid,
            },
            StartError::Socket(error) => error.kind,
            StartError::Pool(error) => pool_kind(error),
            StartError::Shard(OpenError::Buffers(..)) => ControlErrorKind::NoSpace,
            StartError::Shard(OpenError::Read { .. }) => ControlErrorKind::Internal,
            StartError::Shard(_) => ControlErrorKind::Corrupt,
            StartError::CrashLog(CrashLogError::InUse(_)) => ControlErrorKind::Busy,
            StartError::CrashLog(CrashLogError::Foreign { .. }) => ControlErrorKind::Denied,
            StartError::System { source, .. } => system_kind(source),
            StartError::Ring(_) | StartError::CrashLog(_) => ControlErrorKind::Internal,
        }
    }
}

impl From<StartError> for ControlError {
    fn from(error: StartError) -> ControlError {
        ControlError::new(error.kind(), error.to_string())
    }
}

fn file_kind(error: &FileError) -> ControlErrorKind {
    match error {
        FileError::NotFound(_) => ControlErrorKind::NotFound,
        FileError::Exists(_) => ControlErrorKind::Exists,
        FileError::InUse { .. } => ControlErrorKind::Busy,
        FileError::NoSpace { .. } => ControlErrorKind::NoSpace,
        FileError::System { source, .. } => system_kind(source),
        FileError::NoDirectIo { .. }
        | FileError::WrongType { .. }
        | FileError::LargeBlocks { .. }
        | FileError::BadSize { .. } => ControlErrorKind::Invalid,
    }
}

fn system_kind(error: &std::io::Error) -> ControlErrorKind {
    match error.kind() {
        std::io::ErrorKind::NotFound => ControlErrorKind::NotFound,
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => ControlErrorKind::Denied,
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded | std::io::ErrorKind::FileTooLarge => {
            ControlErrorKind::NoSpace
        }
        _ => ControlErrorKind::Internal,
    }
}

fn pool_kind(error: &PoolError) -> ControlErrorKind {
    match error {
        PoolError::Io { .. } | PoolError::Buffers(_) => ControlErrorKind::Internal,
        PoolError::InUse { .. } => ControlErrorKind::Exists,
        PoolError::Devices(_)
        | PoolError::Shards(_)
        | PoolError::TooSmall { .. }
        | PoolError::TooSmallToJoin { .. }
        | PoolError::TearsVolumes { .. }
        | PoolError::Option { .. }
        | PoolError::LogicalBlock { .. }
        | PoolError::Tears { .. }
        | PoolError::Lba { .. } => ControlErrorKind::Invalid,
        _ => ControlErrorKind::Corrupt,
    }
}

/// The few numbers that listeners fail with, as Linux has them on every architecture.
mod errno {
    pub(super) const EACCES: i32 = 13;
    pub(super) const EADDRINUSE: i32 = 98;
    pub(super) const EADDRNOTAVAIL: i32 = 99;
}

#[cfg(test)]
mod tests {
    use ringway_reactor::io::ErrorKind;

    use super::*;

    #[test]
    fn a_port_in_use_is_named_and_has_the_exit_code_of_something_busy() {
        let error = StartError::listen(
            "127.0.0.1:4420".parse().unwrap(),
            IoError { kind: ErrorKind::Other, errno: errno::EADDRINUSE },
        );
        assert_eq!(error.kind(), ControlErrorKind::Busy);
        assert!(error.to_string().contains("127.0.0.1:4420") && error.to_string().contains("in use"), "{error}");
    }
}
