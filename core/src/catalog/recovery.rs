//! From the bytes of both copies to the state, what to repair, and what is damaged.
//!
//! Both copies hold the same frames at the same offsets, so they are read in step: a frame counts if it is whole in either.
//! Of all halves the one with the highest number whose snapshot is whole counts; within it the walk ends at the first frame
//! that is whole in neither copy, if no later one is whole anywhere (a frame that was never acted upon). If a later one is, the
//! frame is damage: it faults the volume its header names, and the pool is refused where no header names one.

use std::collections::BTreeSet;

use thiserror::Error;

use super::frame::{BadFrame, FrameHeader};
use super::log::{COPY_BYTES, CatalogLog, HALF_BYTES};
use super::record::{BadCatalogRecord, CatalogRecord};
use super::state::{ApplyError, CatalogState};
use crate::checksum::Seed;
use crate::ids::VolumeId;
use crate::limits::BLOCK;

const STEP: usize = BLOCK as usize;

/// Bytes to be written to one copy so that it holds what the other one does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// 0 or 1.
    pub copy: usize,
    /// From the start of the copy.
    pub offset: u64,
    /// A multiple of 4096.
    pub bytes: Vec<u8>,
}

/// A catalog as found.
#[derive(Debug)]
pub struct RecoveredCatalog {
    /// What exists. Volumes whose records are damaged are faulted in it.
    pub state: CatalogState,
    /// The writer. Only after the repairs are durable.
    pub log: CatalogLog,
    /// What one copy lacks.
    pub repairs: Vec<Repair>,
    /// Volumes faulted because a record about them is lost: compact soon, so that the fault itself is kept.
    pub damaged: Vec<VolumeId>,
}

/// A catalog that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CatalogError {
    /// Neither half of either copy holds a whole snapshot.
    #[error("both copies of the catalog are damaged: no half holds a whole snapshot; nothing was changed")]
    NoSnapshot,
    /// The newest half has lost its snapshot after it was in use.
    #[error("half {half} (number {number}) of the catalog is the newest and its snapshot is damaged in both copies")]
    Snapshot {
        /// 0 or 1.
        half: usize,
        /// Its number.
        number: u64,
    },
    /// A frame is lost and nothing says whom it was about.
    #[error(
        "frame {sequence} of the catalog, block {block} of half {half}, is damaged in both copies, and it may be about any volume"
    )]
    Frame {
        /// 0 or 1.
        half: usize,
        /// Of the half.
        block: usize,
        /// Its number.
        sequence: u64,
    },
    /// A frame that is whole says what cannot be understood.
    #[error("frame {sequence} of the catalog: {source}")]
    Record {
        /// Its number.
        sequence: u64,
        /// What is wrong.
        source: BadFrame,
    },
    /// A record contradicts the ones before it.
    #[error("frame {sequence} of the catalog: {source}")]
    Apply {
        /// Its number.
        sequence: u64,
        /// What it contradicts.
        source: ApplyError,
    },
}

/// Reads both copies of [`COPY_BYTES`]. `seed` is the pool's, `boot` is this boot.
///
/// # Panics
/// If a copy has another length.
pub fn recover(copies: [&[u8]; 2], boot: u32, seed: Seed) -> Result<RecoveredCatalog, CatalogError> {
    assert!(copies.iter().all(|copy| copy.len() == COPY_BYTES));
    let mut best: Option<Walk<'_>> = None;
    let mut newest_used: Option<(u64, usize)> = None;
    let mut next_number = 1;
    for half in 0..2 {
        let pair = copies.map(|copy| &copy[half * HALF_BYTES..(half + 1) * HALF_BYTES]);
        let found = Half::scan(pair, seed);
        newest_used = newest_used.max(found.newest_used().map(|number| (number, half)));
        for number in found.numbers() {
            next_number = next_number.max(number + 1);
            let walk = Walk::new(&found, half, number);
            if walk.snapshot_whole && best.as_ref().is_none_or(|best| best.number < number) {
                best = Some(walk);
            }
        }
    }
    match (best, newest_used) {
        (None, None) => Err(CatalogError::NoSnapshot),
        (None, Some((number, half))) => Err(CatalogError::Snapshot { half, number }),
        (Some(best), Some((number, half))) if number > best.number => Err(CatalogError::Snapshot { half, number }),
        (Some(best), _) => best.finish(copies, boot, seed, next_number),
    }
}

/// One half in both copies, every block of it looked at.
struct Half<'a> {
    pair: [&'a [u8]; 2],
    seed: Seed,
    /// `(copy, block, header)` of every frame whose header is whole.
    headers: Vec<(usize, usize, FrameHeader)>,
}

impl<'a> Half<'a> {
    fn scan(pair: [&'a [u8]; 2], seed: Seed) -> Half<'a> {
        let mut headers = Vec::new();
        for (copy, bytes) in pair.iter().enumerate() {
            for block in 0..HALF_BYTES / STEP {
                if let Ok(header) = FrameHeader::decode(&bytes[block * STEP..], seed) {
                    headers.push((copy, block, header));
                }
            }
        }
        Half { pair, seed, headers }
    }

    fn numbers(&self) -> BTreeSet<u64> {
        self.headers.iter().map(|(.., header)| header.number).collect()
    }

    /// The highest number under which something was appended: its snapshot was whole once.
    fn newest_used(&self) -> Option<u64> {
        self.headers.iter().filter(|(.., header)| !header.snapshot).map(|(.., header)| header.number).max()
    }

    /// The payload of the frame with this header at `block`, from a copy that has it whole.
    fn payload(&self, block: usize, number: u64, sequence: Option<u64>) -> Found<'a> {
        let fits = |header: &FrameHeader| header.number == number && sequence.is_none_or(|s| s == header.sequence);
        let mut found = Found::Nothing;
        for &(copy, _, header) in self.headers.iter().filter(|&&(_, at, header)| at == block && fits(&header)) {
            match header.payload(&self.pair[copy][block * STEP..], self.seed) {
                Some(payload) => return Found::Whole(header, payload),
                None => found = Found::HeaderOnly(header),
            }
        }
        found
    }

    /// Whether some whole frame of this number comes after `sequence`.
    fn has_later(&self, number: u64, sequence: u64) -> bool {
        self.headers.iter().any(|&(copy, block, header)| {
            header.number == number
                && header.sequence > sequence
                && header.payload(&self.pair[copy][block * STEP..], self.seed).is_some()
        })
    }
}

enum Found<'a> {
    Whole(FrameHeader, &'a [u8]),
    HeaderOnly(FrameHeader),
    Nothing,
}

/// The frames of one half under one number.
struct Walk<'a> {
    half: usize,
    number: u64,
    snapshot_whole: bool,
    /// Block, header and payload of each whole frame.
    frames: Vec<(usize, FrameHeader, &'a [u8])>,
    /// Volumes of lost frames.
    damaged: Vec<VolumeId>,
    /// A lost frame that no header speaks for.
    refused: Option<CatalogError>,
    block: usize,
    sequence: u64,
}

impl<'a> Walk<'a> {
    fn new(found: &Half<'a>, half: usize, number: u64) -> Walk<'a> {
        let mut walk = Walk {
            half,
            number,
            snapshot_whole: false,
            frames: Vec::new(),
            damaged: Vec::new(),
            refused: None,
            block: 0,
            sequence: 0,
        };
        let mut expected = None;
        while walk.block < HALF_BYTES / STEP {
            match found.payload(walk.block, number, expected) {
                Found::Whole(header, payload) if header.snapshot != walk.snapshot_whole => {
                    walk.frames.push((walk.block, header, payload));
                    walk.snapshot_whole |= header.snapshot_end;
                    walk.block += header.blocks as usize;
                    walk.sequence = header.sequence + 1;
                }
                Found::HeaderOnly(header) if walk.snapshot_whole && found.has_later(number, header.sequence) => {
                    match header.volume {
                        Some(volume) => walk.damaged.push(volume),
                        None => walk.refused = Some(walk.lost()),
                    }
                    walk.block += header.blocks as usize;
                    walk.sequence = header.sequence + 1;
                }
                _ => {
                    if walk.snapshot_whole && found.has_later(number, walk.sequence) {
                        walk.refused = Some(walk.lost());
                    }
                    break;
                }
            }
            expected = Some(walk.sequence);
        }
        walk
    }

    fn lost(&self) -> CatalogError {
        CatalogError::Frame { half: self.half, block: self.block, sequence: self.sequence }
    }

    fn finish(
        self,
        copies: [&[u8]; 2],
        boot: u32,
        seed: Seed,
        next_number: u64,
    ) -> Result<RecoveredCatalog, CatalogError> {
        if let Some(refused) = self.refused {
            return Err(refused);
        }
        let mut state = CatalogState::default();
        for (_, header, payload) in &self.frames {
            let sequence = header.sequence;
            let records = header.records(payload).map_err(|source| CatalogError::Record { sequence, source })?;
            for record in records {
                match state.apply(&record) {
                    Ok(()) => {}
                    // What follows a lost record about a volume may not fit; the volume is faulted anyway.
                    Err(_) if record.volume().is_some_and(|volume| self.damaged.contains(&volume)) => {}
                    Err(source) => return Err(CatalogError::Apply { sequence, source }),
                }
            }
        }
        for &volume in &self.damaged {
            let why = "a catalog record about this volume is damaged in both copies".to_owned();
            let fault = CatalogRecord::VolumeFaulted(volume, None, why);
            state.apply(&fault).expect("any volume can be faulted");
        }
        let Self { half, number, block, sequence, .. } = self;
        let log = CatalogLog { seed, boot, half, number, next_number, block, sequence };
        let repairs = self.repairs(copies);
        Ok(RecoveredCatalog { state, log, repairs, damaged: self.damaged })
    }

    /// Each frame that one copy lacks.
    fn repairs(&self, copies: [&[u8]; 2]) -> Vec<Repair> {
        let mut repairs = Vec::new();
        for (block, header, payload) in &self.frames {
            let start = self.half * HALF_BYTES + block * STEP;
            let range = start..start + header.blocks as usize * STEP;
            let [a, b] = copies.map(|copy| &copy[range.clone()]);
            if a == b {
                continue;
            }
            // The whole one is where the payload was taken from.
            let whole = usize::from(!a.as_ptr_range().contains(&payload.as_ptr()));
            let bytes = copies[whole][range].to_vec();
            repairs.push(Repair { copy: 1 - whole, offset: start as u64, bytes });
        }
        repairs
    }
}

impl CatalogError {
    /// Whether a later version of Ringway could open this pool.
    #[must_use]
    pub fn needs_later_version(&self) -> bool {
        matches!(self, CatalogError::Record { source: BadFrame::Record(BadCatalogRecord::Unknown(_)), .. })
    }
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
