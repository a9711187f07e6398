//! What callers ask about snapshots and clones, and what they are shown.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::name::{check_snapshot_name, split_name};
use crate::control::{ControlError, check_host_nqn};
use crate::ids::VolumeId;
use crate::volume::check_name;

/// Volumes that one call may cut together: their record has to fit one write of the catalog.
pub const GROUP_MAX: usize = 256;
/// The longest deadline that is one; beyond, wait for ever.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(366 * 86_400);

/// How long a caller waits for its snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Patience {
    /// Until they are synced, or this has passed: then there are none.
    Within(Duration),
    /// Until they are synced.
    #[default]
    Forever,
    /// Until they are sealed: they are synced behind.
    NoWait,
}

impl Patience {
    /// How long, if there is an end to it.
    #[must_use]
    pub fn timeout(self) -> Option<Duration> {
        match self {
            Patience::Within(timeout) => Some(timeout),
            Patience::Forever | Patience::NoWait => None,
        }
    }
}

/// Snapshots to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// What is cut, together.
    pub volumes: Vec<String>,
    /// What each of the snapshots is called.
    pub name: String,
    /// How long to wait.
    #[serde(default)]
    pub patience: Patience,
}

impl SnapshotCreate {
    /// What can be told without knowing the pool.
    pub fn check(&self) -> Result<(), ControlError> {
        check_snapshot_name(&self.name).map_err(|bad| ControlError::invalid(bad.to_string()))?;
        if self.volumes.is_empty() || self.volumes.len() > GROUP_MAX {
            return Err(ControlError::invalid(format!(
                "{} volumes are named; a snapshot is of 1 to {GROUP_MAX} volumes",
                self.volumes.len()
            )));
        }
        for (n, volume) in self.volumes.iter().enumerate() {
            check_origin(volume)?;
            if self.volumes[..n].contains(volume) {
                return Err(ControlError::invalid(format!("volume {volume:?} is named twice; name each once")));
            }
        }
        match self.patience {
            Patience::Within(timeout) if timeout.is_zero() || timeout > TIMEOUT_MAX => {
                Err(ControlError::invalid(format!(
                    "a timeout of {timeout:?} is out of range; it is positive and at most 366 days, 0 waits for ever, and a \
                     negative one does not wait"
                )))
            }
            _ => Ok(()),
        }
    }

    /// For messages.
    #[must_use]
    pub fn full_names(&self) -> String {
        let names: Vec<_> = self.volumes.iter().map(|volume| format!("{volume}@{}", self.name)).collect();
        match &names[..] {
            [one] => format!("snapshot {one}"),
            many => format!("snapshots {}", many.join(", ")),
        }
    }
}

/// Checks the name of a volume that is to be cut.
fn check_origin(volume: &str) -> Result<(), ControlError> {
    if let (_, Some(_)) = split_name(volume) {
        return Err(ControlError::invalid(format!(
            "{volume:?} is a snapshot, and a snapshot has no snapshots; clone it (`ringway volume clone {volume} NAME`) and \
             snapshot the clone"
        )));
    }
    check_name(volume).map_err(|bad| ControlError::invalid(bad.to_string()))
}

/// Checks that a name is one of a snapshot, and takes it apart.
pub fn check_full_name(name: &str) -> Result<(&str, &str), ControlError> {
    let (volume, Some(snapshot)) = split_name(name) else {
        return Err(ControlError::invalid(format!("{name:?} is not a snapshot; name it as VOLUME@SNAPSHOT")));
    };
    check_name(volume).map_err(|bad| ControlError::invalid(bad.to_string()))?;
    check_snapshot_name(snapshot).map_err(|bad| ControlError::invalid(bad.to_string()))?;
    Ok((volume, snapshot))
}

/// A clone to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeClone {
    /// What it lies over, `VOLUME@SNAPSHOT`.
    pub snapshot: String,
    /// The new volume's name.
    pub name: String,
    /// One writer at a time.
    #[serde(default)]
    pub exclusive: bool,
    /// Host NQNs that may attach it.
    #[serde(default)]
    pub allowed_hosts: Vec<String>,
}

impl VolumeClone {
    /// What can be told without knowing the pool.
    pub fn check(&self) -> Result<(), ControlError> {
        check_full_name(&self.snapshot)?;
        check_name(&self.name).map_err(|bad| ControlError::invalid(bad.to_string()))?;
        self.allowed_hosts.iter().try_for_each(|nqn| check_host_nqn(nqn))
    }
}

/// Asks what has changed between two snapshots of a volume, or one and now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffQuery {
    /// The older one, `VOLUME@SNAPSHOT`.
    pub from: String,
    /// A later one of the same volume; none, or the volume's name: what the volume holds by the time of the answer.
    #[serde(default)]
    pub to: Option<String>,
    /// Where to go on: 0, then [`crate::control::ChangedBlocks::next`].
    #[serde(default)]
    pub cursor: u64,
}

/// How far a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    /// It is being made, and may yet not come to be; nobody can attach it.
    Pending,
    /// It exists; the backend does not have all of it yet.
    Sealed,
    /// The backend has it, or where there is none, it is durable in the pool.
    Synced,
}

/// Where the time went, from the command on; microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotTimes {
    /// Until the cut.
    pub cut_us: u64,
    /// From there until every shard had sealed it, durably.
    pub sealed_us: u64,
    /// From there until the backend had it.
    pub synced_us: u64,
    /// From there until its record was durable.
    pub committed_us: u64,
}

/// The steps that have ended, as `NAME=MICROSECONDS`.
impl fmt::Display for SnapshotTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SnapshotTimes { cut_us, sealed_us, synced_us, committed_us } = *self;
        write!(f, "cut_us={cut_us} sealed_us={sealed_us}")?;
        for (name, us) in [("synced", synced_us), ("committed", committed_us)].into_iter().filter(|(_, us)| *us > 0) {
            write!(f, " {name}_us={us}")?;
        }
        Ok(())
    }
}

/// A snapshot as seen from outside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Its own, never reused.
    pub id: VolumeId,
    /// `VOLUME@SNAPSHOT`.
    pub name: String,
    /// The volume that was cut.
    pub origin: VolumeId,
    /// What `nvme connect -n` takes.
    pub nqn: String,
    /// NGUID and UUID of its namespace.
    pub uuid: Uuid,
    /// Bytes: those of the volume at the cut.
    pub size: u64,
    /// Seconds since 1970, UTC.
    pub created_unix_s: u64,
    /// The cut, `boot.counter`; none before it is made.
    pub cut: Option<String>,
    /// How far it is.
    pub state: SnapshotState,
    /// Bytes in the backend, of so many that it has to store; none where nothing is being stored.
    pub sync: Option<SyncProgress>,
    /// Why storing it has failed last, if it has.
    pub sync_error: Option<String>,
    /// Milliseconds until it is given up; none: it is not.
    pub deadline_ms: Option<u64>,
    /// Bytes that the pool would have free if it alone went; none where nobody asked for that, or it is not known.
    pub held: Option<u64>,
    /// Volumes that lie over it.
    pub clones: Vec<String>,
    /// Hosts attached now.
    pub attached_hosts: Vec<String>,
    /// How long its making took; of one that was just made.
    pub times: Option<SnapshotTimes>,
}

/// How far storing a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncProgress {
    /// Bytes stored.
    pub done: u64,
    /// Of so many; 0 while that is not known.
    pub total: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::ControlErrorKind;

    fn create() -> SnapshotCreate {
        SnapshotCreate { volumes: vec!["vm1".into()], name: "s".into(), patience: Patience::Forever }
    }

    #[test]
    fn what_a_snapshot_cannot_be_is_refused_with_what_it_can_be() {
        assert_eq!(create().check(), Ok(()));
        let many = (0..=GROUP_MAX).map(|n| format!("v{n}")).collect();
        for (wrong, says) in [
            (SnapshotCreate { name: "a/b".into(), ..create() }, "A-Z a-z 0-9 . _ -"),
            (SnapshotCreate { name: String::new(), ..create() }, "1 to 127 bytes"),
            (SnapshotCreate { volumes: vec![], ..create() }, "1 to 256 volumes"),
            (SnapshotCreate { volumes: many, ..create() }, "1 to 256 volumes"),
            (SnapshotCreate { volumes: vec!["a".into(), "b".into(), "a".into()], ..create() }, "twice"),
            (SnapshotCreate { volumes: vec!["vm1@s".into()], ..create() }, "a snapshot has no snapshots"),
            (SnapshotCreate { volumes: vec!["v:1".into()], ..create() }, "A-Z a-z 0-9 . _ / -"),
            (SnapshotCreate { patience: Patience::Within(Duration::ZERO), ..create() }, "0 waits for ever"),
            (SnapshotCreate { patience: Patience::Within(TIMEOUT_MAX * 2), ..create() }, "366 days"),
        ] {
            let error = wrong.check().unwrap_err();
            assert_eq!(error.kind, ControlErrorKind::Invalid);
            assert!(error.message.contains(says), "{error}");
        }
    }

    #[test]
    fn the_full_name_of_a_snapshot_has_both_parts() {
        assert_eq!(check_full_name("a/b@c"), Ok(("a/b", "c")));
        for bad in ["a", "a@", "@c", "a@b@c", "a@b/c"] {
            assert_eq!(check_full_name(bad).unwrap_err().kind, ControlErrorKind::Invalid, "{bad}");
        }
    }
}
