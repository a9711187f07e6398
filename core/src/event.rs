//! Events: what has happened to volumes, snapshots, streams and the pool's space, numbered, in the catalog.
//!
//! An event is written with the change that it tells of, by one write of the catalog: so it is told exactly if the change took place,
//! and never before it is durable. Numbers ascend and are never reused; who remembers the last one he has seen gets each event
//! exactly once, also over restarts of the target. The catalog keeps the last [`EVENTS_KEPT`].

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

use crate::ids::{JobId, VolumeId};

/// How many the catalog keeps: as many as one call can cause, and a small part of its room.
pub const EVENTS_KEPT: usize = 256;
/// Callers that wait for the next event at once.
pub const LISTENERS_MAX: usize = 256;
/// The longest time that one call waits for an event.
pub const WAIT_MAX: Duration = Duration::from_secs(60);
/// Bytes of text in one, so that the catalog's room is bounded.
const TEXT_MAX: usize = 400;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A volume was made; `bytes`: its size.
    VolumeCreated,
    /// A volume was made over a snapshot; `text`: that one's name.
    VolumeCloned,
    /// It is gone.
    VolumeRemoved,
    /// It has grown; `bytes`: its size now.
    VolumeResized,
    /// It has another name; `text`: the former one.
    VolumeRenamed,
    /// It was taken back to a snapshot.
    VolumeRolledBack,
    /// Something of it is lost, and it is not served; `text`: what.
    VolumeFaulted,
    /// A snapshot exists, and is synced; `bytes`: its size; `text`: how many microseconds each step of its making took, but the last.
    SnapshotCreated,
    /// A snapshot exists; storing it goes on. `bytes`, `text`: as above.
    SnapshotSealed,
    /// A sealed one is stored; `text`: how many microseconds that took, of the try that succeeded.
    SnapshotSynced,
    /// It is gone.
    SnapshotRemoved,
    /// A stream began; `job`: its number; `text`: what the clone lies over.
    StreamStarted,
    /// The clone needs its parent no more, and the link is gone; `bytes`: copied. The last event of its job.
    StreamCompleted,
    /// The stream was given up for an error; `text`: which; `code`: what a command of this failure exits with. The last event of its job.
    StreamFailed,
    /// Somebody has ended it. The last event of its job.
    StreamCancelled,
    /// It has met an error and waits for somebody to resume it; `text`: which.
    StreamPaused,
    /// Somebody has resumed it.
    StreamResumed,
    /// It has met an error and goes on; `text`: which.
    StreamError,
    /// The pool is fuller than the `bytes` percent that this says, or emptier again than the threshold above that.
    SpaceLevel,
    /// The pool has another device; `bytes`: its size.
    PoolGrown,
    /// Of a later version: its number.
    Other(u16),
}

/// Every kind with its number in the catalog, which never changes, and its name.
const KINDS: [(EventKind, u16, &str); 20] = [
    (EventKind::VolumeCreated, 1, "volume_created"),
    (EventKind::VolumeCloned, 2, "volume_cloned"),
    (EventKind::VolumeRemoved, 3, "volume_removed"),
    (EventKind::VolumeResized, 4, "volume_resized"),
    (EventKind::VolumeRenamed, 5, "volume_renamed"),
    (EventKind::VolumeRolledBack, 6, "volume_rolled_back"),
    (EventKind::VolumeFaulted, 7, "volume_faulted"),
    (EventKind::SnapshotCreated, 16, "snapshot_created"),
    (EventKind::SnapshotSealed, 17, "snapshot_sealed"),
    (EventKind::SnapshotSynced, 18, "snapshot_synced"),
    (EventKind::SnapshotRemoved, 19, "snapshot_removed"),
    (EventKind::StreamStarted, 32, "stream_started"),
    (EventKind::StreamCompleted, 33, "stream_completed"),
    (EventKind::StreamFailed, 34, "stream_failed"),
    (EventKind::StreamCancelled, 35, "stream_cancelled"),
    (EventKind::StreamPaused, 36, "stream_paused"),
    (EventKind::StreamResumed, 37, "stream_resumed"),
    (EventKind::StreamError, 38, "stream_error"),
    (EventKind::SpaceLevel, 48, "space_level"),
    (EventKind::PoolGrown, 49, "pool_grown"),
];

impl EventKind {
    /// Its number in the catalog.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            EventKind::Other(code) => code,
            known => KINDS.iter().find(|(kind, ..)| *kind == known).expect("every kind is listed").1,
        }
    }

    /// The kind of this number.
    #[must_use]
    pub fn of_code(code: u16) -> EventKind {
        KINDS.iter().find(|(_, number, _)| *number == code).map_or(EventKind::Other(code), |(kind, ..)| *kind)
    }

    /// Whether a job's last event is of this kind.
    #[must_use]
    pub fn ends_a_stream(self) -> bool {
        matches!(self, EventKind::StreamCompleted | EventKind::StreamFailed | EventKind::StreamCancelled)
    }

    fn of_name(name: &str) -> Option<EventKind> {
        let known = KINDS.iter().find(|(.., known)| *known == name).map(|(kind, ..)| *kind);
        known.or_else(|| name.strip_prefix("kind_")?.parse().ok().map(EventKind::Other))
    }
}

/// Its name, `snake_case`.
impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, KINDS.iter().find(|(kind, ..)| kind == self)) {
            (_, Some((.., name))) => f.pad(name),
            (kind, None) => f.pad(&format!("kind_{}", kind.code())),
        }
    }
}

/// A name for people, a number on the disk.
impl Serialize for EventKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_u16(self.code())
        }
    }
}

impl<'de> Deserialize<'de> for EventKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<EventKind, D::Error> {
        if deserializer.is_human_readable() {
            let name = String::deserialize(deserializer)?;
            EventKind::of_name(&name).ok_or_else(|| de::Error::custom(format!("{name:?} is no kind of event")))
        } else {
            u16::deserialize(deserializer).map(EventKind::of_code)
        }
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Ascending, from 1; never reused within its pool.
    pub number: u64,
    /// Seconds since 1970, UTC.
    pub unix_s: u64,
    /// What has happened.
    pub kind: EventKind,
    /// To which volume or snapshot, by the name that it had then; empty: to the pool.
    pub name: String,
    /// The volume, that of a snapshot included.
    pub volume: Option<VolumeId>,
    /// The stream.
    pub job: Option<JobId>,
    /// See the kind.
    pub bytes: Option<u64>,
    /// See the kind.
    pub code: Option<u8>,
    /// See the kind.
    pub text: String,
}

impl Event {
    /// An event of this kind, not numbered yet.
    #[must_use]
    pub fn new(kind: EventKind, volume: Option<VolumeId>, name: impl Into<String>) -> Event {
        let name = name.into();
        Event { number: 0, unix_s: 0, kind, name, volume, job: None, bytes: None, code: None, text: String::new() }
    }

    /// The same with this text, or as much of it as is kept.
    #[must_use]
    pub fn with_text(mut self, text: impl Into<String>) -> Event {
        self.text = text.into();
        let end = (0..=TEXT_MAX.min(self.text.len())).rev().find(|&at| self.text.is_char_boundary(at));
        self.text.truncate(end.unwrap_or(0));
        self
    }

    /// The same with this figure.
    #[must_use]
    pub fn with_bytes(self, bytes: u64) -> Event {
        Event { bytes: Some(bytes), ..self }
    }

    /// The same, of this job.
    #[must_use]
    pub fn of_job(self, job: Option<JobId>) -> Event {
        Event { job, ..self }
    }
}

/// Asks for events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventQuery {
    /// Those with higher numbers; none: no event, only what the newest one's number is.
    pub since: Option<u64>,
    /// Milliseconds to wait for one where there is none; at most [`WAIT_MAX`].
    #[serde(default)]
    pub wait_ms: u64,
}

/// What is kept of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventList {
    /// Ascending.
    pub events: Vec<Event>,
    /// The number of the oldest that is still kept; what was before it is lost to those who have not seen it. 0: there is none.
    pub oldest: u64,
    /// The number of the newest; 0: there has never been one.
    pub newest: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_number_and_a_name_of_its_own_and_is_found_by_both() {
        for (n, (kind, code, name)) in KINDS.iter().enumerate() {
            assert!(KINDS[..n].iter().all(|(_, other, called)| other < code && called != name), "{name}");
            assert_eq!((EventKind::of_code(*code), EventKind::of_name(name)), (*kind, Some(*kind)));
            assert_eq!((kind.code(), kind.to_string().as_str()), (*code, *name));
        }
        let later = EventKind::Other(999);
        assert_eq!((EventKind::of_code(999), EventKind::of_name("kind_999")), (later, Some(later)));
        assert_eq!(later.to_string(), "kind_999");
        assert_eq!(EventKind::of_name("nonsense"), None);
    }

    #[test]
    fn an_event_has_a_name_for_people_and_a_number_on_the_disk_also_one_of_a_later_version() {
        for kind in [EventKind::StreamFailed, EventKind::Other(999)] {
            let event =
                Event::new(kind, Some(VolumeId(3)), "vm1").with_text("why").with_bytes(7).of_job(Some(JobId(9)));
            let text = serde_json::to_string(&event).unwrap();
            assert!(text.contains(&format!("\"kind\":\"{kind}\"")), "{text}");
            assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
            assert_eq!(postcard::from_bytes::<Event>(&postcard::to_stdvec(&event).unwrap()).unwrap(), event);
        }
        assert!(serde_json::from_str::<EventKind>("\"nonsense\"").is_err());
    }

    #[test]
    fn a_text_that_is_too_long_is_cut_between_two_characters() {
        let event = Event::new(EventKind::StreamError, None, "").with_text("ä".repeat(1000));
        assert_eq!(event.text, "ä".repeat(TEXT_MAX / 2));
        let event = Event::new(EventKind::StreamError, None, "").with_text(format!("x{}", "ä".repeat(1000)));
        assert_eq!(event.text.len(), TEXT_MAX - 1);
    }
}
