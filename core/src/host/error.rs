//! What can go wrong between a host and its target: a kind to match on, words to read, a source to chain.

use ringway_reactor::io::IoError;

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostErrorKind {
    /// Nobody listens there. Worth trying again.
    Refused,
    /// The connection ended. Worth trying again.
    Disconnected,
    /// No answer in time. Worth trying again.
    TimedOut,
    /// A digest did not match what was received. Worth trying again.
    Digest,
    /// The target says that there is no such volume.
    NoSuchVolume,
    /// The target does not allow this host.
    NotAllowed,
    /// The volume has another writer.
    Busy,
    /// The target answered what the specification does not allow, or said that we did.
    Protocol,
    /// The controller refused or failed a command of the start sequence.
    Controller,
    /// The request cannot be made as it is.
    Invalid,
    /// This machine lacks something (memory, a kernel feature, name resolution).
    Local,
    /// The host was closed.
    Closed,
}

impl HostErrorKind {
    /// Whether another attempt may succeed without anybody changing anything but the target's being there.
    #[must_use]
    pub fn passes(self) -> bool {
        use HostErrorKind::{Controller, Digest, Disconnected, Refused, TimedOut};
        matches!(self, Refused | Disconnected | TimedOut | Digest | Controller)
    }
}

/// An error of a host.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{context}")]
pub struct HostError {
    /// To match on.
    pub kind: HostErrorKind,
    /// To read: what was tried, what happened, what would help.
    pub context: String,
    /// What the ring said, where it did.
    #[source]
    pub source: Option<IoError>,
}

impl HostError {
    /// An error of ours or of the protocol.
    #[must_use]
    pub fn new(kind: HostErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// A protocol error.
    #[must_use]
    pub fn protocol(context: impl Into<String>) -> Self {
        Self::new(HostErrorKind::Protocol, context)
    }

    /// The same error with what was being done in front.
    #[must_use]
    pub fn during(mut self, what: &str) -> Self {
        self.context = format!("{what}: {}", self.context);
        self
    }
}
