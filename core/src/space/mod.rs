//! Where bytes live: places, slabs, and one shard's allocator.
//!
//! Space is handed to shards in slabs (catalog records); inside its slabs a shard allocates clusters by itself. Only the
//! owner shard's ring touches a shard's clusters.

mod allocator;
mod geometry;
mod pages;
mod place;
mod quarantine;

pub use allocator::{AllocError, Counts, Purpose, SlabBitmap, SlabInUse, Space, UnknownPlace};
pub use geometry::{Geometry, SLABS_PER_DEVICE_MAX, SlabArea, SlabId};
pub use place::{CLASS_CLUSTER, CLASS_PAGE, Place};
pub use quarantine::Ticket;
