//! Rings over memory that another process shares: Ringway's own submission and completion queues.
//!
//! `docs/internals/shm-ring.md` has the layout and the rules. Both sides are here, since each is the other's test: the
//! target's ([`door`], [`ring`]) believes nothing that it reads, [`client`] (a feature) is what a program links to use a volume.
//!
//! ```text
//! client                                            target
//! connect to shm.sock, Hello + memfd -------------> [`door`]: seals, sizes, mapping; then admission, queues to reactors
//!        <------------------------ Welcome + bells
//! command into its slot, ticket last -------------> polled by the queue's reactor; copied out once, then looked at
//!        <----------- completion into its slot, ticket last
//! ```

pub mod command;
pub mod door;
pub mod layout;
pub mod line;
pub mod message;
pub mod ring;
pub mod virtqueue;
pub mod words;

#[cfg(feature = "client")]
pub mod client;

/// Queues of one connection at most: two bells each have to fit one message of 253 descriptors.
pub const QUEUES_MAX: u16 = 64;
/// Entries of a queue at most, a power of two: eight times the depth at which throughput stops to grow.
pub const ENTRIES_MAX: u16 = 1024;
/// Entries of a queue at least.
pub const ENTRIES_MIN: u16 = 2;
