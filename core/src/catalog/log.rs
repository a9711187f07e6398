//! The writer's arithmetic: which half, which block, when to compact.

use thiserror::Error;

use super::frame::{FRAME_BYTES_MAX, Frame, Framing, PAYLOAD_MAX, encode_frame, frame_bytes};
use super::record::CatalogRecord;
use super::state::CatalogState;
use crate::checksum::Seed;
use crate::ids::VolumeId;
use crate::limits::BLOCK;

/// Bytes of a half.
pub const HALF_BYTES: usize = 2 << 20;
/// Bytes of a copy.
pub const COPY_BYTES: usize = 2 * HALF_BYTES;
/// Bytes of a snapshot beyond which no new volume may be made, so that what exists can always be changed and removed.
const SNAPSHOT_BYTES_MAX: usize = HALF_BYTES / 4 * 3;

/// Why records were not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AppendError {
    /// The half is full: write the frames of [`CatalogLog::compact`] to both copies, then append again.
    #[error("the catalog's half is full and has to be compacted")]
    NeedsCompaction,
    /// What exists does not fit half a copy, or these records do not fit one frame.
    #[error("{bytes} bytes of catalog do not fit {room}")]
    Full {
        /// Needed.
        bytes: usize,
        /// There.
        room: usize,
    },
}

/// Where the next frame goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogLog {
    pub(super) seed: Seed,
    pub(super) boot: u32,
    /// 0 or 1.
    pub(super) half: usize,
    /// Of the half's content; the highest whole one counts.
    pub(super) number: u64,
    /// Above every number that either half has frames of, those of a compaction that a crash cut short included.
    pub(super) next_number: u64,
    /// Block of the half.
    pub(super) block: usize,
    pub(super) sequence: u64,
}

impl CatalogLog {
    /// The log of a new pool and the frames that hold `state`, for both copies. `seed` is the pool's.
    pub fn format(seed: Seed, state: &CatalogState) -> Result<(CatalogLog, Vec<Frame>), AppendError> {
        // Half 1 of number 0 is what a new catalog would be compacted from.
        let mut log = CatalogLog { seed, boot: 0, half: 1, number: 0, next_number: 1, block: 0, sequence: 1 };
        let frames = log.compact(state)?;
        Ok((log, frames))
    }

    /// Frames written from now on say that this boot wrote them.
    pub fn set_boot(&mut self, boot: u32) {
        self.boot = boot;
    }

    /// A frame with these records; they take effect together or not at all. Written to both copies, durably, before anyone acts
    /// on them and before the next append.
    ///
    /// # Panics
    /// If there are no records.
    pub fn append(&mut self, records: &[CatalogRecord]) -> Result<Frame, AppendError> {
        assert!(!records.is_empty());
        let mut payload = Vec::new();
        records.iter().for_each(|record| record.encode(&mut payload));
        if payload.len() > PAYLOAD_MAX {
            return Err(AppendError::Full { bytes: payload.len(), room: PAYLOAD_MAX });
        }
        if self.block * BLOCK as usize + frame_bytes(payload.len()) > HALF_BYTES {
            return Err(AppendError::NeedsCompaction);
        }
        Ok(self.frame(&payload, records, false, false))
    }

    /// Frames that hold all of `state` in the other half. The log continues there.
    pub fn compact(&mut self, state: &CatalogState) -> Result<Vec<Frame>, AppendError> {
        let records = state.records();
        let parts = parts(&records)?;
        let bytes: usize = parts.iter().map(|(_, payload)| frame_bytes(payload.len())).sum();
        // The largest frame must fit behind it, or compaction would not help.
        let room = HALF_BYTES - FRAME_BYTES_MAX;
        if bytes > room {
            return Err(AppendError::Full { bytes, room });
        }
        (self.half, self.number, self.block) = (1 - self.half, self.next_number, 0);
        self.next_number += 1;
        let last = parts.len() - 1;
        Ok(parts.iter().enumerate().map(|(n, (part, payload))| self.frame(payload, part, true, n == last)).collect())
    }

    /// Whether there is room for another volume, `volume_bytes` of record, so that it can also be removed again.
    #[must_use]
    pub fn has_room_for_volume(&self, state: &CatalogState, volume_bytes: usize) -> bool {
        let records = state.records();
        let bytes =
            parts(&records).map(|parts| parts.iter().map(|(_, payload)| frame_bytes(payload.len())).sum::<usize>());
        bytes.is_ok_and(|bytes| bytes + frame_bytes(volume_bytes) <= SNAPSHOT_BYTES_MAX)
    }

    fn frame(&mut self, payload: &[u8], records: &[CatalogRecord], snapshot: bool, snapshot_end: bool) -> Frame {
        let Self { seed, boot, number, sequence, .. } = *self;
        let framing = Framing { seed, number, sequence, boot, snapshot, snapshot_end };
        let bytes = encode_frame(&framing, payload, records.len() as u32, one_volume(records));
        let offset = (self.half * HALF_BYTES + self.block * BLOCK as usize) as u64;
        self.block += bytes.len() / BLOCK as usize;
        self.sequence += 1;
        assert!(self.block * BLOCK as usize <= HALF_BYTES);
        Frame { offset, bytes }
    }
}

/// The volume that all of these are about.
fn one_volume(records: &[CatalogRecord]) -> Option<VolumeId> {
    let volume = records.first()?.volume();
    if records.iter().all(|record| record.volume() == volume) { volume } else { None }
}

type Part<'a> = (&'a [CatalogRecord], Vec<u8>);

/// Cuts records into runs that fit a frame each, with their bytes.
fn parts(records: &[CatalogRecord]) -> Result<Vec<Part<'_>>, AppendError> {
    let (mut parts, mut payload, mut first) = (Vec::new(), Vec::new(), 0);
    for (n, record) in records.iter().enumerate() {
        let before = payload.len();
        record.encode(&mut payload);
        if payload.len() > PAYLOAD_MAX {
            let next = payload.split_off(before);
            if next.len() > PAYLOAD_MAX {
                return Err(AppendError::Full { bytes: next.len(), room: PAYLOAD_MAX });
            }
            parts.push((&records[first..n], std::mem::replace(&mut payload, next)));
            first = n;
        }
    }
    parts.push((&records[first..], payload));
    Ok(parts)
}
