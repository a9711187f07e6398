//! What may be asked about a backend, and what is answered.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::clones::{CloneSource, HeldSource};
use super::names::Attempt;
use super::settings::BackendSettings;
use super::url::BackendUrl;
use crate::control::VolumeCreate;
use crate::ids::AttemptId;

/// A call about the backend. Those that talk to it may take as long as it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendRequest {
    /// Where it is and how it does; answered with [`BackendAnswer::Info`].
    Show,
    /// Another one, or none; answered with [`BackendAnswer::Info`] when the catalog has it.
    Set(BackendSet),
    /// What is stored; answered with [`BackendAnswer::Stored`].
    List(BackendFrom),
    /// Reads what a snapshot needs; answered with [`BackendAnswer::Checked`].
    Check(BackendCheck),
    /// Makes a volume of a stored snapshot; answered with the volume when it is whole.
    Restore(BackendRestore),
    /// Deletes what is needed no more, now; answered with [`BackendAnswer::Collected`].
    Collect,
    /// From our own thread to the catalog's owner: these settings are to be recorded.
    Record { settings: Option<BackendSettings>, force: bool },
    /// From our own thread to the catalog's owner: a reference may be put in the name of a clone that does not exist yet.
    Hold { holder: Uuid, source: CloneSource },
    /// From our own thread to the catalog's owner: the reference is not there any more.
    Released { holder: Uuid },
    /// From our own thread to the catalog's owner: a clone of what is held in its name; answered with the volume.
    Clone { holder: Uuid, create: VolumeCreate },
    /// From our own thread to the catalog's owner: what clones here look through to; answered with [`BackendAnswer::Held`].
    Held,
    /// From our own thread to the catalog's owner: what must be kept; answered with [`BackendAnswer::Kept`].
    Kept,
    /// From our own thread to the catalog's owner: so many new numbers of attempts; answered with [`BackendAnswer::Attempts`].
    Attempts { count: u32 },
    /// From our own thread to the catalog's owner: these new manifests may be there from now on.
    Note(Vec<Renewal>),
    /// From our own thread to the catalog's owner: they take the place of the old ones, if this is the backend still. Answered also
    /// where the snapshot of one is gone.
    Replace { at: BackendUrl, renewals: Vec<Renewal> },
}

/// A manifest that says the same as another of the same snapshot, with other places for its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The one that the catalog has.
    pub old: Attempt,
    /// The one that is to take its place.
    pub new: Attempt,
}

impl BackendRequest {
    /// Whether the thread of the backend asks it, and the owner of the catalog answers.
    #[must_use]
    pub fn is_for_the_owner(&self) -> bool {
        match self {
            BackendRequest::Record { .. }
            | BackendRequest::Hold { .. }
            | BackendRequest::Released { .. }
            | BackendRequest::Clone { .. }
            | BackendRequest::Held
            | BackendRequest::Attempts { .. }
            | BackendRequest::Note(_)
            | BackendRequest::Replace { .. }
            | BackendRequest::Kept => true,
            BackendRequest::Show
            | BackendRequest::Set(_)
            | BackendRequest::List(_)
            | BackendRequest::Check(_)
            | BackendRequest::Restore(_)
            | BackendRequest::Collect => false,
        }
    }
}

/// A backend to be used from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendSet {
    /// None: snapshots are durable in the pool, and nowhere else.
    pub settings: Option<BackendSettings>,
    /// Although snapshots are stored at the present one: their objects are at the new place, or are given up.
    #[serde(default)]
    pub force: bool,
}

/// Which backend is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendFrom {
    /// None: the pool's own.
    #[serde(default)]
    pub from: Option<BackendUrl>,
}

/// A stored snapshot to be checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendCheck {
    /// Where; none: the pool's own.
    #[serde(default)]
    pub from: Option<BackendUrl>,
    /// `VOLUME@SNAPSHOT` or the name of a manifest; none: all of this pool's.
    #[serde(default)]
    pub snapshot: Option<String>,
    /// Read every block too, not only maps and indexes.
    #[serde(default)]
    pub data: bool,
}

/// A stored snapshot to be made a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendRestore {
    /// Where; none: the pool's own.
    #[serde(default)]
    pub from: Option<BackendUrl>,
    /// `VOLUME@SNAPSHOT` or the name of a manifest.
    pub snapshot: String,
    /// The volume's name; none: as it was.
    #[serde(default)]
    pub name: Option<String>,
    /// Also one whose snapshot may never have been committed.
    #[serde(default)]
    pub unconfirmed: bool,
    /// At once: a clone, whose blocks are fetched when somebody reads them.
    #[serde(default)]
    pub lazy: bool,
    /// Seconds after which a read of that clone that gets nothing from the backend fails; none:
    /// [`super::clones::CLONE_PATIENCE_S_DEFAULT`].
    #[serde(default)]
    pub patience_s: Option<u32>,
    /// One writer at a time.
    #[serde(default)]
    pub exclusive: bool,
    /// Host NQNs that may attach.
    #[serde(default)]
    pub allowed_hosts: Vec<String>,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq)]
pub enum BackendAnswer {
    Info(Box<BackendInfo>),
    Stored(Vec<StoredSnapshot>),
    Checked(Vec<CheckedSnapshot>),
    Collected(CollectInfo),
    Kept(KeptManifests),
    Held(Vec<HeldSource>),
    Attempts(Vec<AttemptId>),
}

/// What the catalog needs of the backend, by names of manifests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptManifests {
    /// Of snapshots, and those that the next sync builds upon.
    pub live: Vec<String>,
    /// Of attempts on record that came to nothing or are under way.
    pub noted: Vec<String>,
    /// This boot: attempts of later ones cannot be.
    pub generation: u32,
}

/// The backend as seen from outside.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BackendInfo {
    /// None: there is no backend.
    pub settings: Option<BackendSettings>,
    /// Why it cannot be used now, or why the last try of something failed while nothing has succeeded since.
    pub trouble: Option<String>,
    /// Snapshots on their way.
    pub syncs: Vec<SyncInfo>,
    /// Volumes on their way back.
    pub restores: Vec<RestoreInfo>,
    /// Clones of which something was wanted since the target was started.
    #[serde(default)]
    pub clones: Vec<CloneInfo>,
    /// The last collection.
    pub collected: Option<CollectInfo>,
    /// Bytes sent and read since the target was started.
    pub sent: u64,
    pub read: u64,
}

/// A snapshot on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncInfo {
    /// `VOLUME@SNAPSHOT`.
    pub name: String,
    /// Bytes of the volume that were looked at, and of it.
    pub walked: u64,
    pub size: u64,
    /// Bytes of changed blocks, and as sent.
    pub changed: u64,
    pub sent: u64,
    /// What holds it up.
    pub trouble: Option<String>,
}

/// A volume on its way back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreInfo {
    /// What it will be called.
    pub name: String,
    /// Bytes written, and in all.
    pub written: u64,
    pub total: u64,
    /// What holds it up.
    pub trouble: Option<String>,
}

/// A clone that looks through to a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneInfo {
    /// The volume.
    pub name: String,
    /// What it is a clone of, and where that is.
    pub of: String,
    /// Bytes of blocks that were fetched for it.
    pub fetched: u64,
    /// Why nothing can be fetched now.
    pub trouble: Option<String>,
}

/// A collection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectInfo {
    /// Seconds since 1970.
    pub unix_s: u64,
    pub deleted: u64,
    pub deleted_bytes: u64,
    pub kept_bytes: u64,
    /// Manifests that are removed here and wait for the grace time, or for a pool that reads them.
    pub waiting: u64,
    /// Bytes of blocks that were copied out of packs of which little is needed; those go after the grace time.
    #[serde(default)]
    pub rewritten_bytes: u64,
    /// Why nothing was collected.
    pub failed: Option<String>,
}

/// A snapshot on the backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSnapshot {
    /// `VOLUME@SNAPSHOT`, as it was called when it was made.
    pub name: String,
    /// The pool that made it.
    pub pool: Uuid,
    /// Its manifest.
    pub manifest: Attempt,
    /// Bytes of the volume.
    pub size: u64,
    /// Bytes of blocks with data.
    pub data: u64,
    pub lba_bytes: u32,
    /// Seconds since 1970.
    pub created_unix_s: u64,
    pub state: StoredState,
    /// Pools that read it, and clones that look through to it.
    pub readers: Vec<Uuid>,
    /// Why its manifest cannot be read; then nothing but pool, manifest and state is known.
    pub damaged: Option<String>,
}

/// How sure a stored snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredState {
    /// Its pool has committed it.
    Synced,
    /// It was put and not confirmed: it may never have been.
    Unconfirmed,
    /// Its pool is about to delete it.
    Going,
}

/// A snapshot whose objects were read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedSnapshot {
    pub name: String,
    pub pool: Uuid,
    pub manifest: Attempt,
    /// Bytes of blocks that are there.
    pub bytes: u64,
    /// What is wrong; none: nothing.
    pub damaged: Option<String>,
}
