//! What the pool's catalog says of its backend.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::url::BackendUrl;

/// How long a tombstone stands where nothing is said: longer than any request of another pool's is on its way.
pub const GRACE_S_DEFAULT: u32 = 600;
/// How long a read, or a restore, goes on trying without any success where nothing is said.
pub const PATIENCE_S_DEFAULT: u32 = 120;
/// The longest of both: a week.
const SECONDS_MAX: u32 = 7 * 86_400;

/// Where snapshots of a pool are stored, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendSettings {
    /// Where.
    pub url: BackendUrl,
    /// Bytes a second that go there at most; 0: no limit.
    #[serde(default)]
    pub speed: u64,
    /// Seconds that what was removed stays there, so that other pools' requests for it have ended or have said that they are.
    #[serde(default = "grace_default")]
    pub grace_s: u32,
    /// Seconds without success after which a read or a restore gives up. Snapshots have their own deadlines.
    #[serde(default = "patience_default")]
    pub patience_s: u32,
}

fn grace_default() -> u32 {
    GRACE_S_DEFAULT
}

fn patience_default() -> u32 {
    PATIENCE_S_DEFAULT
}

impl BackendSettings {
    /// Defaults for everything but the place.
    #[must_use]
    pub fn new(url: BackendUrl) -> Self {
        Self { url, speed: 0, grace_s: GRACE_S_DEFAULT, patience_s: PATIENCE_S_DEFAULT }
    }

    /// What is wrong with them, if something is.
    pub fn check(&self) -> Result<(), String> {
        for (what, seconds) in [("grace", self.grace_s), ("patience", self.patience_s)] {
            if seconds == 0 || seconds > SECONDS_MAX {
                return Err(format!(
                    "the backend's {what} of {seconds} s is out of range; it is 1 to {SECONDS_MAX} seconds"
                ));
            }
        }
        if self.speed > 0 && self.speed < 4096 {
            return Err(format!("a speed limit of {} bytes a second is below one block; 0 is no limit", self.speed));
        }
        Ok(())
    }

    /// How long a tombstone stands.
    #[must_use]
    pub fn grace(&self) -> Duration {
        Duration::from_secs(u64::from(self.grace_s))
    }

    /// How long is tried without success.
    #[must_use]
    pub fn patience(&self) -> Duration {
        Duration::from_secs(u64::from(self.patience_s))
    }
}
