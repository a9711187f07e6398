//! Streams and events in the catalog: the content of their records, and what each changes.

use serde::{Deserialize, Serialize};

use super::state::{ApplyError, CatalogState};
use crate::event::{EVENTS_KEPT, Event};
use crate::ids::{JobId, VolumeId};
use crate::stream::OnError;

/// A stream as the catalog keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamRecord {
    /// The clone.
    pub volume: VolumeId,
    /// The job, of which this may be a later state.
    pub job: JobId,
    /// Bytes a second to copy at most.
    pub speed: Option<u64>,
    /// What it does about an error.
    pub on_error: OnError,
    /// Bytes that it had gone through. Not all that it has copied need be durable: the walk before its end starts at the beginning.
    pub cursor: u64,
    /// Bytes that it had copied.
    pub copied: u64,
    /// Seconds since 1970, UTC.
    pub started_unix_s: u64,
    /// The error for which it waits to be resumed.
    pub paused: Option<String>,
}

impl CatalogState {
    /// The clones that are streamed, by id.
    pub fn streams(&self) -> impl Iterator<Item = &StreamRecord> {
        self.streams.values()
    }

    /// How a clone is streamed, if it is.
    #[must_use]
    pub fn stream(&self, volume: VolumeId) -> Option<&StreamRecord> {
        self.streams.get(&volume)
    }

    /// The events that are kept, by number.
    pub fn events(&self) -> impl DoubleEndedIterator<Item = &Event> {
        self.events.iter()
    }

    /// The number of the last event; 0: there has never been one.
    #[must_use]
    pub fn last_event(&self) -> u64 {
        self.events.back().map_or(0, |event| event.number)
    }

    pub(super) fn keep_stream(&mut self, stream: &StreamRecord) -> Result<(), ApplyError> {
        let volume = stream.volume;
        if self.entry(volume)?.record.is_snapshot() {
            return Err(ApplyError::Field { volume, field: "stream: it is a snapshot" });
        }
        self.streams.insert(volume, stream.clone());
        Ok(())
    }

    pub(super) fn tell(&mut self, event: &Event) -> Result<(), ApplyError> {
        if event.number <= self.last_event() {
            return Err(ApplyError::EventNumber(event.number));
        }
        if self.events.len() == EVENTS_KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event.clone());
        Ok(())
    }
}
