//! Snapshots on a backend that volumes here look through to.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::names::Attempt;
use super::url::BackendUrl;
use crate::ids::VolumeId;

/// How long a read of a clone goes on trying without success where nothing is said: Linux gives a command up after 30 s.
pub const CLONE_PATIENCE_S_DEFAULT: u32 = 20;
/// The longest: an hour.
const CLONE_PATIENCE_S_MAX: u32 = 3600;

/// What a clone looks through to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneSource {
    /// Where; none: wherever the pool's own backend is.
    pub from: Option<BackendUrl>,
    /// The pool that put it there.
    pub pool: Uuid,
    /// Its manifest.
    pub manifest: Attempt,
    /// As it was called: `VOLUME@SNAPSHOT`.
    pub name: String,
    /// Seconds after which a read that gets nothing fails.
    pub patience_s: u32,
}

impl CloneSource {
    /// For whoever asks what a volume is a clone of.
    #[must_use]
    pub fn shown(&self) -> String {
        match &self.from {
            Some(url) => format!("{} on {url}", self.name),
            None => format!("{} on the pool's backend", self.name),
        }
    }
}

/// What is wrong with the seconds that a clone's reads go on trying, if something is.
pub fn check_patience(seconds: u32) -> Result<(), String> {
    if (1..=CLONE_PATIENCE_S_MAX).contains(&seconds) {
        return Ok(());
    }
    Err(format!(
        "a patience of {seconds} s is out of range; reads of a clone wait for 1 to {CLONE_PATIENCE_S_MAX} seconds"
    ))
}

/// A snapshot that this pool keeps its owner from deleting, by a reference object named after `holder`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldSource {
    /// The clone's UUID.
    pub holder: Uuid,
    /// What is held.
    pub source: CloneSource,
    /// The clone that looks through to it; none: nobody does, any more or yet.
    pub volume: Option<VolumeId>,
}
