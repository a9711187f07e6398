//! Numbers that must not be mixed up.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id! {
    /// A volume of this pool. Never reused; 0 is no volume.
    VolumeId(u32)
}
id! {
    /// An export of this pool.
    ExportId(u32)
}
id! {
    /// A try to make a snapshot of a volume: boot generation in the upper half, like an epoch, so that it is never reused.
    AttemptId(u64)
}
id! {
    /// A stream of this pool: the number of the event that tells of its start. Never reused.
    JobId(u64)
}
id! {
    /// A shard of the pool, fixed at format.
    ShardId(u16)
}
id! {
    /// A connection's association (host and controller). Never reused while the process lives; 0 is the target itself.
    AssociationId(u64)
}
id! {
    /// Position in one shard's sequence of map records; the first record has 1, and 0 means none.
    Lsn(u64)
}
id! {
    /// A request in flight, chosen by the transport that submitted it.
    RequestId(u64)
}

/// `boot generation << 32 | counter`. Compared as one number; never reused, since the generation is durable before the
/// first stamp of a boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The first epoch of a boot.
    #[must_use]
    pub fn first_of(generation: u32) -> Epoch {
        Epoch(u64::from(generation) << 32 | 1)
    }

    /// The boot that stamped it.
    #[must_use]
    pub fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> 32, self.0 as u32)
    }
}
