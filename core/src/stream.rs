//! Streaming: a clone gets what it still has from its parent, until it needs that one no more. What callers ask, and what they are
//! shown; `node/owner/streams` does it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::control::ControlError;
use crate::ids::{JobId, VolumeId};
use crate::volume::check_name;

/// What a stream does about an error: something cannot be read, or the pool has no space for the copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// It ends, and says why. What was copied and the link to the parent stay.
    #[default]
    Report,
    /// It pauses until somebody resumes or aborts it.
    Stop,
    /// It goes on with the rest, and tries again what it has left out, until nothing is left or somebody aborts it.
    Ignore,
}

impl fmt::Display for OnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            OnError::Report => "report",
            OnError::Stop => "stop",
            OnError::Ignore => "ignore",
        })
    }
}

impl FromStr for OnError {
    type Err = String;

    fn from_str(text: &str) -> Result<OnError, String> {
        [OnError::Report, OnError::Stop, OnError::Ignore]
            .into_iter()
            .find(|known| known.to_string() == text)
            .ok_or_else(|| format!("{text:?} is none of report, stop and ignore"))
    }
}

/// A stream to be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamStart {
    /// The clone.
    pub volume: String,
    /// Bytes a second to copy at most; none, or 0: as fast as clients leave room for.
    #[serde(default)]
    pub speed: Option<u64>,
    /// What to do about an error.
    #[serde(default)]
    pub on_error: OnError,
}

/// What may be asked about streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamRequest {
    /// Answered when the job is on record.
    Start(StreamStart),
    /// One increment of a volume that no job streams, from `cursor` on; answered when it is done.
    Step { volume: String, cursor: u64 },
    /// One job.
    Info { volume: String },
    /// All jobs, by volume.
    List,
    /// Another limit, at once; see [`StreamStart::speed`].
    SetSpeed { volume: String, speed: Option<u64> },
    /// Goes on with a job that an error has paused.
    Resume { volume: String },
    /// Ends a job; what was copied and the link to the parent stay.
    Abort { volume: String },
}

impl StreamRequest {
    /// What can be told without knowing the pool.
    pub fn check(&self) -> Result<(), ControlError> {
        let name = match self {
            StreamRequest::List => return Ok(()),
            StreamRequest::Start(start) => &start.volume,
            StreamRequest::Step { volume, .. }
            | StreamRequest::Info { volume }
            | StreamRequest::SetSpeed { volume, .. }
            | StreamRequest::Resume { volume }
            | StreamRequest::Abort { volume } => volume,
        };
        if name.contains('@') {
            return Err(ControlError::invalid(format!(
                "{name:?} is a snapshot, which lies over nothing; name the clone (`ringway volume clone {name} NAME` makes one)"
            )));
        }
        check_name(name).map_err(|bad| ControlError::invalid(bad.to_string()))
    }
}

/// How a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamStatus {
    /// It copies, or waits for its turn.
    Running,
    /// Everything is copied: it is made durable, and the link goes.
    Finishing,
    /// It has met an error, and tries again soon.
    Retrying,
    /// It has met an error, and waits to be resumed.
    Paused,
}

/// A job as seen from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamInfo {
    /// Its number, which its events have too; never reused within its pool.
    pub job: JobId,
    /// The clone.
    pub volume: String,
    /// Its number.
    pub id: VolumeId,
    /// What it lies over.
    pub parent: Option<String>,
    /// Bytes that it has gone through; never goes back.
    pub cur: u64,
    /// Bytes to go through. `cur / end` is the progress; equal: everything was copied, the link is about to go.
    pub end: u64,
    /// Bytes copied: what the clone had already, and what the parent had as zeros, is not.
    pub copied: u64,
    /// Bytes a second to copy at most.
    pub speed: Option<u64>,
    /// What it does about an error.
    pub on_error: OnError,
    /// How it is.
    pub status: StreamStatus,
    /// The error it has met last, unless it has got over it.
    pub error: Option<String>,
    /// Seconds since 1970, UTC.
    pub started_unix_s: u64,
}

/// An increment is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamStepped {
    /// Where to go on; equal to `end`: the volume is independent, durably.
    pub cursor: u64,
    /// Where it ends.
    pub end: u64,
    /// Bytes copied by this increment.
    pub copied: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_about_an_error_is_spelled_as_it_is_shown() {
        for known in [OnError::Report, OnError::Stop, OnError::Ignore] {
            assert_eq!(known.to_string().parse(), Ok(known));
        }
        let why = "panic".parse::<OnError>().unwrap_err();
        assert!(why.contains("report, stop and ignore"), "{why}");
    }

    #[test]
    fn only_names_of_volumes_are_taken() {
        let info = |volume: &str| StreamRequest::Info { volume: volume.into() }.check();
        assert_eq!(info("a/b"), Ok(()));
        assert_eq!(StreamRequest::List.check(), Ok(()));
        assert!(info("vm1@a").unwrap_err().message.contains("volume clone vm1@a"));
        assert!(info("").unwrap_err().message.contains("is empty"));
    }
}
