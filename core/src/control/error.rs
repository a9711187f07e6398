//! How what was asked of a node fails: a kind for programs, words for people.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::ExportId;

/// What kind of failure it is, to match on. Each has an HTTP status and an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlErrorKind {
    /// A bug of ours, or a device error.
    Internal,
    /// The request cannot be right, whatever the pool holds.
    Invalid,
    /// No such volume, pool, device or path.
    NotFound,
    /// The name is taken, or the pool is there already.
    Exists,
    /// The pool, a file system or memory has no room.
    NoSpace,
    /// The target is not running, cannot be reached, or is stopping.
    Unavailable,
    /// A pool or a volume is damaged, of another program, or of a future version.
    Corrupt,
    /// Somebody else has it: a pool open elsewhere, a port in use, an attached volume.
    Busy,
    /// Not allowed: cores, sockets, a host that is not on the list.
    Denied,
    /// The deadline has passed, and nothing was done.
    TimedOut,
    /// Something else depends on it: a clone on a snapshot, a snapshot on its volume.
    Needed,
}

impl ControlErrorKind {
    /// Every kind.
    pub const ALL: [ControlErrorKind; 11] = [
        ControlErrorKind::Internal,
        ControlErrorKind::Invalid,
        ControlErrorKind::NotFound,
        ControlErrorKind::Exists,
        ControlErrorKind::NoSpace,
        ControlErrorKind::Unavailable,
        ControlErrorKind::Corrupt,
        ControlErrorKind::Busy,
        ControlErrorKind::Denied,
        ControlErrorKind::TimedOut,
        ControlErrorKind::Needed,
    ];

    /// The HTTP status that carries it.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            ControlErrorKind::Internal | ControlErrorKind::Corrupt => 500,
            ControlErrorKind::Invalid => 400,
            ControlErrorKind::NotFound => 404,
            ControlErrorKind::Exists | ControlErrorKind::Needed => 409,
            ControlErrorKind::TimedOut => 504,
            ControlErrorKind::NoSpace => 507,
            ControlErrorKind::Unavailable => 503,
            ControlErrorKind::Busy => 423,
            ControlErrorKind::Denied => 403,
        }
    }

    /// The exit code of the command line; 0 is success.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            ControlErrorKind::Internal => 1,
            ControlErrorKind::Invalid => 2,
            ControlErrorKind::NotFound => 3,
            ControlErrorKind::Exists => 4,
            ControlErrorKind::NoSpace => 5,
            ControlErrorKind::Unavailable => 6,
            ControlErrorKind::Corrupt => 7,
            ControlErrorKind::Busy => 8,
            ControlErrorKind::Denied => 9,
            ControlErrorKind::TimedOut => 11,
            ControlErrorKind::Needed => 12,
        }
    }
}

/// A failure: a kind to match on, and a message that names what was wrong and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlError {
    /// To match on.
    pub kind: ControlErrorKind,
    /// To read.
    pub message: String,
}

impl ControlError {
    /// An error of this kind.
    pub fn new(kind: ControlErrorKind, message: impl Into<String>) -> ControlError {
        ControlError { kind, message: message.into() }
    }

    /// The request cannot be right.
    pub fn invalid(message: impl Into<String>) -> ControlError {
        ControlError::new(ControlErrorKind::Invalid, message)
    }

    /// No export of this number.
    #[must_use]
    pub fn no_such_export(id: ExportId) -> ControlError {
        ControlError::new(
            ControlErrorKind::NotFound,
            format!("no export has number {id}; `ringway export list` shows what there is"),
        )
    }

    /// No volume of this name.
    #[must_use]
    pub fn no_such_volume(name: &str) -> ControlError {
        ControlError::new(
            ControlErrorKind::NotFound,
            format!("no volume named {name:?}; `ringway volume list` shows what there is"),
        )
    }

    /// No snapshot of this name.
    #[must_use]
    pub fn no_such_snapshot(name: &str) -> ControlError {
        let (volume, _) = crate::snapshot::name::split_name(name);
        ControlError::new(
            ControlErrorKind::NotFound,
            format!("no snapshot named {name:?}; `ringway snapshot list {volume}` shows what there is"),
        )
    }

    /// A volume of this name is there already.
    #[must_use]
    pub fn volume_exists(name: &str) -> ControlError {
        ControlError::new(
            ControlErrorKind::Exists,
            format!("a volume named {name:?} exists already; choose another name, or remove that one first"),
        )
    }

    /// A smaller size was asked for.
    #[must_use]
    pub fn shrink_refused(name: &str, from: u64, to: u64) -> ControlError {
        ControlError::invalid(format!(
            "volume {name:?} has {from} bytes and would lose data at {to}; a volume can only grow"
        ))
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ControlError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_an_exit_code_of_its_own() {
        let codes: std::collections::BTreeSet<_> = ControlErrorKind::ALL.iter().map(|kind| kind.exit_code()).collect();
        assert_eq!(codes.len(), ControlErrorKind::ALL.len());
        assert!(!codes.contains(&0));
    }
}
