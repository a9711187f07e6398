//! The catalog: what exists. Volumes, slabs and their shards, devices, attachments, faults.
//!
//! A small log of its own on device 0, in two copies far apart, each of two halves; recovered before any shard, and truth where
//! a shard disagrees (H2). A record is durable in both copies before anyone acts on it.
//!
//! Writing: [`CatalogLog::append`] gives a [`Frame`] to be written, durably, to both copies; where it says
//! [`AppendError::NeedsCompaction`], [`CatalogLog::compact`] gives the frames of a snapshot, for the other half, to be written to
//! both copies first. One write at a time; a failed one is final for this run.

mod frame;
mod jobs;
mod log;
mod record;
mod recovery;
#[cfg(test)]
mod snapshot_tests;
mod snapshots;
mod state;

pub use frame::{BadFrame, Frame};
pub use jobs::StreamRecord;
pub use log::{AppendError, COPY_BYTES, CatalogLog, HALF_BYTES};
pub use record::{BadCatalogRecord, CatalogRecord, KeptLogs, kind};
pub use recovery::{CatalogError, RecoveredCatalog, Repair, recover};
pub use snapshots::{
    CloneRecord, CutRecord, RemainsRecord, RollbackRecord, SnapshotEntry, SnapshotRecord, SyncedRecord,
};
pub use state::{ApplyError, CatalogState, Device, Fault, Removed, VolumeEntry};
