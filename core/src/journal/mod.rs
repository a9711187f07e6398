//! One shard's journal: a ring of 4 KiB blocks on device 0 that carries groups of map records.
//!
//! A group starts on its own block and is never rewritten; one group of a shard is in flight at a time, so that a group exists
//! only after every group before it was durable. `docs/internals/journal.md` has the format and the recovery table.
//!
//! The writer: records go into a [`Group`] as they are made; [`Ring::seal`] turns it into bytes and a position; when the write
//! is durable, [`Ring::written`]. A checkpoint asks [`Ring::position_of`] where replay would start and gives space back with
//! [`Ring::release`] when its header is durable.

mod group;
mod recovery;
mod ring;

pub use group::{BadGroup, GROUP_BLOCKS_MAX, GROUP_BYTES_MAX, Group, GroupHeader, VolumeList};
pub use recovery::{
    Damage, Decision, Evidence, Later, Link, Lost, RecoverError, Recovered, Slot, Spoken, decide, recover,
};
pub use ring::{Full, Position, Pressure, Ring, Sealed};
