//! Snapshots: what a cut of a pool's volumes is made of.
//!
//! The states of a snapshot that is being made, and what moves it between them, are the owner's
//! (`crate::node::owner::snapshots`); what a shard does for it is in `crate::shard` (`sealing.rs`). Here is what both, and those
//! who store snapshots elsewhere, talk about.

pub mod asked;
pub mod deadline;
pub mod name;
pub mod promise;
pub mod sync;
