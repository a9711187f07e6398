//! Looking at a pool that nobody serves, without changing it: is what it says about itself true?
//!
//! Every checksum on the way from the superblock to the last map page is checked, the journal is replayed in memory, and the
//! map is held against the bitmaps: each cluster is named by one version of one volume, or free, or metadata (I2, I4). User
//! data has no checksums and is not read.

mod bits;
mod pool;
mod shard;

#[cfg(test)]
mod tests;

pub use pool::{DeviceReport, PoolReport, VolumeReport, inspect_pool};
pub use shard::{ReadAt, ShardReport, ShardSpec, VolumeUse, inspect_shard};

use serde::{Deserialize, Serialize};

use crate::ids::{ShardId, VolumeId};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing; nothing is lost and nothing is at risk.
    Note,
    /// Something that was acknowledged is lost, or a volume cannot be trusted.
    Fault,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// Where, if in one shard.
    pub shard: Option<ShardId>,
    /// Whose, if one volume's.
    pub volume: Option<VolumeId>,
    /// In words.
    pub what: String,
}
