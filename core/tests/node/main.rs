//! A whole target on simulated disks: several reactors, several shards, the catalog, stopping and crashing.

mod rig;
#[path = "../soak/mod.rs"]
mod soak;

mod catalog;
mod changed;
mod crashes;
mod cuts;
mod dead_shards;
mod deadlines;
mod fences;
mod growing;
mod hosts;
mod load;
mod requests;
mod snapshot_crashes;
mod snapshots;
mod space;
mod streams;
mod syncing;
