//! The seam between who cuts snapshots and who stores them outside the pool.
//!
//! ```text
//! coordinator (reactor 0)                           storing side (a thread of its own)
//!   SyncPort::start(job)  ------------------------>   reads the snapshot, uploads
//!                         <------------------------   SyncReport::Progress (as often as it likes)
//!                         <------------------------   SyncReport::ManifestAboutToBePut
//!   attempt noted, durable; SyncPort::go_on  ------>  puts the manifest
//!                         <------------------------   SyncReport::Synced | Failed
//!   commit record durable; SyncPort::committed  --->  puts the marker
//!   or: SyncPort::cancel (expired, or the commit failed): deletes the attempt's objects until they are found absent twice
//!                         <------------------------   SyncReport::Settled: nothing is left to do for this attempt
//! ```
//! The attempt is on record before its manifest can exist, so that after a crash somebody knows of it (C14). One attempt is one
//! volume's: a group has one a volume and is committed when all are synced.

use std::sync::Arc;

use crate::ids::{AttemptId, Epoch, VolumeId};

/// A manifest that holds all of a volume as it was at `epoch`: what the next sync uploads is the difference to it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Base {
    /// The cut that is stored.
    pub epoch: Epoch,
    /// The name of its manifest.
    pub manifest: String,
}

/// A sealed snapshot to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncJob {
    /// Of this try; in the names of all its objects. Never reused.
    pub attempt: AttemptId,
    /// Reads go to this volume id, like those of any volume.
    pub snapshot: VolumeId,
    /// The volume that was cut.
    pub origin: VolumeId,
    /// Its UUID: whose objects these are.
    pub origin_uuid: uuid::Uuid,
    /// `VOLUME@SNAPSHOT`, for whoever looks into the backend.
    pub name: String,
    /// The snapshot's own UUID.
    pub uuid: uuid::Uuid,
    /// Bytes at the cut.
    pub size: u64,
    /// 512 or 4096.
    pub lba_bytes: u32,
    /// Seconds since 1970, UTC.
    pub created_unix_s: u64,
    /// The cut.
    pub epoch: Epoch,
    /// What is stored of the volume already; none: all of it is to be walked.
    pub base: Option<Base>,
    /// Nanoseconds on CLOCK_MONOTONIC at which the coordinator gives up; none: never. To pace by, not to watch: the coordinator
    /// cancels.
    pub deadline_ns: Option<u64>,
}

/// What the storing side tells the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncReport {
    /// So many bytes of what is to be uploaded are; 0 in all while that is not known.
    Progress {
        /// Of which job.
        attempt: AttemptId,
        /// Bytes.
        done: u64,
        /// Bytes.
        total: u64,
    },
    /// What the store said last, while it is tried again; none: it goes on.
    HeldUp {
        /// Which job.
        attempt: AttemptId,
        /// For whoever reads it.
        why: Option<String>,
    },
    /// Everything but the manifest is stored. The manifest may be put after [`SyncPort::go_on`], not before.
    ManifestAboutToBePut {
        /// Of which job.
        attempt: AttemptId,
        /// The name it will have.
        manifest: String,
    },
    /// The manifest is stored, durably.
    Synced {
        /// Of which job.
        attempt: AttemptId,
        /// Its name.
        manifest: String,
    },
    /// It will not be stored, whatever time it is given. What can be retried is retried there, without a word.
    Failed {
        /// Of which job.
        attempt: AttemptId,
        /// For whoever reads it.
        why: String,
    },
    /// The marker is there, or nothing of a cancelled attempt is: the catalog may forget it.
    Settled {
        /// Of which attempt.
        attempt: AttemptId,
    },
}

impl SyncReport {
    /// Which attempt it is about.
    #[must_use]
    pub fn attempt(&self) -> AttemptId {
        match self {
            SyncReport::Progress { attempt, .. }
            | SyncReport::HeldUp { attempt, .. }
            | SyncReport::ManifestAboutToBePut { attempt, .. }
            | SyncReport::Synced { attempt, .. }
            | SyncReport::Failed { attempt, .. }
            | SyncReport::Settled { attempt } => *attempt,
        }
    }
}

/// An attempt that the catalog knows of: its manifest may exist in the backend.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NotedAttempt {
    /// Its number.
    pub attempt: AttemptId,
    /// The volume that was cut.
    pub origin: VolumeId,
    /// The snapshot that it was to become.
    pub snapshot: VolumeId,
    /// The cut.
    pub epoch: Epoch,
    /// The name of its manifest.
    pub manifest: String,
}

/// Who stores snapshots. Called on reactor 0, so nothing here may block; reports come back through [`SyncReports`].
pub trait SyncPort: Send {
    /// Whether there is somewhere to store them now; where there is not, what is durable in the pool is synced.
    fn is_set(&self) -> bool {
        true
    }

    /// Begins a job.
    fn start(&mut self, job: SyncJob);
    /// The attempt is on record: its manifest may be put.
    fn go_on(&mut self, attempt: AttemptId);
    /// The snapshot exists, durably: the marker may be put. Also after a restart, for attempts that were committed and whose
    /// marker nobody has heard of.
    fn committed(&mut self, attempt: &NotedAttempt);
    /// The snapshot will not exist (or does not, after a restart): stop, and delete what was stored. Attempts that were never
    /// noted are cancelled by number alone.
    fn cancel(&mut self, attempt: AttemptId, noted: Option<&NotedAttempt>);
    /// A synced snapshot was removed: its manifest may be collected.
    fn removed(&mut self, origin: VolumeId, manifest: &str);
    /// Clones may need something on a backend no more; the catalog says what is held there.
    fn let_go(&mut self) {}
}

/// The way back: gives a report to the coordinator, from any thread, without blocking.
pub type SyncReports = Arc<dyn Fn(SyncReport) + Send + Sync>;
