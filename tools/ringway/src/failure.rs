//! How a command fails: a message for people, a code for scripts. The one table of exit codes is [`EXIT_CODES`].

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

use ringway_core::control::{ControlError, ControlErrorKind};
use ringway_core::target::StartError;
use serde::Serialize;

/// Printed below `ringway --help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   failed (device error, or a bug)
  2   wrong usage: an argument, a size, a name, a configuration file
  3   not found: volume, pool, path
  4   exists already
  5   no space left
  6   the target is not running or cannot be reached
  7   corrupt pool, or not a pool of this program or version
  8   busy: pool open elsewhere, port in use, volume attached
  9   not allowed: cores, sockets, hosts
  10  verification failed: data was lost, torn or misdirected
  11  timed out: nothing was done
  12  needed: a clone or a snapshot depends on it";

/// A failed command.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Failure {
    /// What scripts match on.
    pub(crate) kind: FailureKind,
    /// What was wrong, and what would be right.
    pub(crate) message: String,
}

/// Kinds of failure; those of the control interface and one of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum FailureKind {
    /// As a node answers it.
    Control(ControlErrorKind),
    /// Data read back is not what was written.
    Verification(VerificationFailed),
}

/// Serialised as `verification_failed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum VerificationFailed {
    /// The only value.
    VerificationFailed,
}

impl Failure {
    pub(crate) fn new(kind: ControlErrorKind, message: impl Into<String>) -> Failure {
        Failure { kind: FailureKind::Control(kind), message: message.into() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure::new(ControlErrorKind::Invalid, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Failure {
        Failure::new(ControlErrorKind::Internal, message)
    }

    pub(crate) fn verification(message: impl Into<String>) -> Failure {
        Failure { kind: FailureKind::Verification(VerificationFailed::VerificationFailed), message: message.into() }
    }

    /// Whether it is of this kind.
    pub(crate) fn is(&self, kind: ControlErrorKind) -> bool {
        self.kind == FailureKind::Control(kind)
    }

    /// An operating system's error about a path, with what was attempted.
    pub(crate) fn io(doing: &str, path: &Path, error: &io::Error) -> Failure {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ControlErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => ControlErrorKind::Exists,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ControlErrorKind::Denied,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory => {
                ControlErrorKind::NoSpace
            }
            io::ErrorKind::AddrInUse | io::ErrorKind::ResourceBusy => ControlErrorKind::Busy,
            io::ErrorKind::InvalidInput | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {
                ControlErrorKind::Invalid
            }
            _ => ControlErrorKind::Internal,
        };
        Failure::new(kind, format!("cannot {doing} {}: {error}", path.display()))
    }

    /// A pool that cannot be opened is named: what is wrong with it is told by device.
    pub(crate) fn of_pool(self, pool: &impl fmt::Display) -> Failure {
        if self.kind != FailureKind::Control(ControlErrorKind::Corrupt) {
            return self;
        }
        Failure { message: format!("pool {pool}: {self}"), ..self }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self.kind {
            FailureKind::Control(kind) => kind.exit_code(),
            FailureKind::Verification(_) => 10,
        }
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Failure {
        Failure::new(error.kind, error.message)
    }
}

impl From<&StartError> for Failure {
    /// With all that lies behind it.
    fn from(error: &StartError) -> Failure {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !message.contains(&cause_text) {
                message = format!("{message}: {cause_text}");
            }
            source = cause.source();
        }
        Failure::new(error.kind(), message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lists_every_exit_code_once() {
        let listed: Vec<u8> =
            EXIT_CODES.lines().skip(1).map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect();
        let mut given: Vec<u8> = ControlErrorKind::ALL.iter().map(|kind| kind.exit_code()).collect();
        given.extend([0, Failure::verification("").exit_code()]);
        given.sort_unstable();
        assert_eq!(listed, given);
    }

    #[test]
    fn a_failure_as_json_has_a_kind_and_a_message() {
        let json = |failure: Failure| serde_json::to_string(&failure).unwrap();
        assert_eq!(json(Failure::usage("x")), r#"{"kind":"invalid","message":"x"}"#);
        assert_eq!(json(Failure::verification("y")), r#"{"kind":"verification_failed","message":"y"}"#);
    }
}
