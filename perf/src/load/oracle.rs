//! What every unit of a region may hold: the last write issued, acknowledged and covered by a flush.
//!
//! Three words a unit. The words may lie in a shared mapping of a file: then they outlive a SIGKILL of the generator, since
//! a store to such a mapping is in the kernel's hands at once, and a later run verifies what the killed one was promised.
//!
//! Invariants: flushed <= acknowledged <= issued in sequence; a unit has at most one write in flight (the generator never
//! overlaps its own writes); sequences are never reused by a writer.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use memmap2::MmapMut;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::block::{Content, Stamp};

/// The content of that sequence is zeros (trim, write zeroes).
const ZEROS: u64 = 1 << 63;
/// On `issued`: an earlier write whose end is unknown may also be what is there.
/// On `acknowledged`: the unit is in the list that the next flush covers.
/// On `flushed`: zeros were asked for since.
const MARK: u64 = 1 << 62;
const SEQUENCE: u64 = MARK - 1;
const WORDS_PER_UNIT: usize = 3;
const HEADER_BYTES: usize = 4096;
const MAGIC: u64 = 0x3145_4c43_4152_4f52; // "RORACLE1"

/// What a verified run is about: the region and who writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The namespace's UUID.
    pub volume: Uuid,
    /// The run that writes.
    pub writer: u64,
    /// Bytes from the start of the volume to unit 0.
    pub start: u64,
    /// Bytes of a unit.
    pub unit_bytes: u32,
    /// Units of the region.
    pub units: u64,
    /// Whether the region held nothing but zeros before the first write.
    pub fresh: bool,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FileHeader {
    magic: u64,
    volume: [u8; 16],
    writer: u64,
    start: u64,
    units: u64,
    next_sequence: u64,
    unit_bytes: u32,
    fresh: u32,
}
const _: () = assert!(size_of::<FileHeader>() == 64);

/// What a read must honour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    /// Everything acknowledged is there: the target ran on, or was killed and its machine lives.
    Acknowledged,
    /// Everything covered by a flush is there: the target's machine lost power.
    Flushed,
}

/// What is wrong with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// A write that a flush covered is not there.
    Lost,
    /// An acknowledged write, not yet flushed, is not there.
    Stale,
    /// Parts of two writes.
    Torn,
    /// Another block's or another volume's data.
    Misdirected,
    /// Data or zeros that nobody wrote there.
    Unasked,
    /// Nothing that a generator writes.
    Garbage,
}

/// One unit that does not hold what it may hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What is wrong.
    pub kind: FaultKind,
    /// Bytes from the start of the volume.
    pub offset: u64,
    /// What was found, what was promised.
    pub detail: String,
}

enum Words {
    Memory(Vec<u64>),
    File(MmapMut),
}

/// Units acknowledged before a flush was issued: they are durable when it succeeds.
#[derive(Debug, Default)]
pub struct Covered(Vec<(u32, u64)>);

/// The state of a region.
pub struct Oracle {
    identity: Identity,
    words: Words,
    next_sequence: u64,
    /// Units acknowledged since the last flush was issued, each once.
    unflushed: Vec<u32>,
}

impl Oracle {
    /// An oracle that lives as long as this process.
    #[must_use]
    pub fn in_memory(identity: Identity) -> Self {
        let words = Words::Memory(vec![0; identity.units as usize * WORDS_PER_UNIT]);
        Self { identity, words, next_sequence: 1, unflushed: Vec::new() }
    }

    /// An oracle in a new file (an existing one is replaced).
    pub fn create(path: &Path, identity: Identity) -> std::io::Result<Self> {
        let bytes = HEADER_BYTES as u64 + identity.units * (WORDS_PER_UNIT * 8) as u64;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        file.set_len(bytes)?;
        let words = Words::File(map(&file)?);
        let mut oracle = Self { identity, words, next_sequence: 1, unflushed: Vec::new() };
        oracle.save_header();
        Ok(oracle)
    }

    /// The oracle that an earlier run left in a file. What it had in flight stays possible.
    pub fn open(path: &Path) -> Result<Self, OracleError> {
        let bad = |why: String| OracleError { path: path.to_owned(), why };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(|e| bad(e.to_string()))?;
        let words = map(&file).map_err(|e| bad(e.to_string()))?;
        let (header, rest) =
            FileHeader::read_from_prefix(&words[..]).map_err(|_| bad("shorter than its header".into()))?;
        if header.magic != MAGIC {
            return Err(bad("not an oracle file of ringway bench".into()));
        }
        let expected = HEADER_BYTES - size_of::<FileHeader>() + header.units as usize * WORDS_PER_UNIT * 8;
        if rest.len() != expected {
            return Err(bad(format!("has {} bytes after its header, expected {expected}", rest.len())));
        }
        let identity = Identity {
            volume: Uuid::from_bytes(header.volume),
            writer: header.writer,
            start: header.start,
            unit_bytes: header.unit_bytes,
            units: header.units,
            fresh: header.fresh != 0,
        };
        let mut oracle =
            Self { identity, words: Words::File(words), next_sequence: header.next_sequence, unflushed: vec![] };
        oracle.relist_unflushed();
        Ok(oracle)
    }

    /// The killed run's list of unflushed units is gone: make it anew from the words.
    fn relist_unflushed(&mut self) {
        for unit in 0..self.identity.units {
            let record = self.record(unit);
            let (flushed, acknowledged) = (record[0] & SEQUENCE, record[1] & SEQUENCE);
            if acknowledged > flushed {
                record[1] |= MARK;
                self.unflushed.push(unit as u32);
            } else {
                record[1] &= !MARK;
            }
        }
    }

    fn save_header(&mut self) {
        let header = FileHeader {
            magic: MAGIC,
            volume: *self.identity.volume.as_bytes(),
            writer: self.identity.writer,
            start: self.identity.start,
            units: self.identity.units,
            next_sequence: self.next_sequence,
            unit_bytes: self.identity.unit_bytes,
            fresh: u32::from(self.identity.fresh),
        };
        if let Words::File(map) = &mut self.words {
            map[..size_of::<FileHeader>()].copy_from_slice(header.as_bytes());
        }
    }

    /// What this is about.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    fn words(&mut self) -> &mut [u64] {
        match &mut self.words {
            Words::Memory(words) => words,
            Words::File(map) => <[u64]>::mut_from_bytes(&mut map[HEADER_BYTES..])
                .expect("a mapping is page-aligned and its length was checked"),
        }
    }

    fn record(&mut self, unit: u64) -> &mut [u64; WORDS_PER_UNIT] {
        let at = unit as usize * WORDS_PER_UNIT;
        (&mut self.words()[at..at + WORDS_PER_UNIT]).try_into().expect("three words a unit")
    }

    /// A sequence for a write of `units` from `unit` on, noted before it is sent.
    pub fn issue(&mut self, unit: u64, units: u64, zeros: bool) -> u64 {
        let sequence = self.next_sequence;
        assert!(sequence < SEQUENCE, "62 bits of sequences are not used up");
        self.next_sequence += 1;
        self.save_header();
        for unit in unit..unit + units {
            let [flushed, acknowledged, issued] = self.record(unit);
            // An earlier write whose end was never learnt may surface until a newer one is acknowledged.
            let unsettled = *issued & SEQUENCE != *acknowledged & SEQUENCE || *issued & MARK != 0;
            *issued = sequence | if zeros { ZEROS } else { 0 } | if unsettled { MARK } else { 0 };
            if zeros {
                *flushed |= MARK;
            }
        }
        sequence
    }

    /// The write `sequence` of `units` from `unit` on succeeded; with `durable` it was a FUA.
    pub fn acknowledge(&mut self, unit: u64, units: u64, sequence: u64, durable: bool) {
        for unit in unit..unit + units {
            let [flushed, acknowledged, issued] = self.record(unit);
            assert_eq!(*issued & SEQUENCE, sequence, "a unit has at most one write in flight");
            *issued &= !MARK;
            let listed = *acknowledged & MARK;
            *acknowledged = *issued | listed;
            if durable {
                *flushed = *issued;
            } else if listed == 0 {
                *acknowledged |= MARK;
                self.unflushed.push(unit as u32);
            }
        }
    }

    /// A flush is about to be issued: it covers what is acknowledged now.
    pub fn begin_flush(&mut self) -> Covered {
        let listed = std::mem::take(&mut self.unflushed);
        let covered = listed.into_iter().map(|unit| {
            let acknowledged = &mut self.record(u64::from(unit))[1];
            *acknowledged &= !MARK;
            (unit, *acknowledged)
        });
        Covered(covered.collect())
    }

    /// The flush succeeded.
    pub fn end_flush(&mut self, covered: Covered) {
        for (unit, word) in covered.0 {
            let [flushed, _, issued] = self.record(u64::from(unit));
            if word & SEQUENCE > *flushed & SEQUENCE {
                let zeros_since = *flushed & MARK != 0 && *issued & SEQUENCE > word & SEQUENCE;
                *flushed = word | if zeros_since { MARK } else { 0 };
            }
        }
    }

    /// The flush failed or its end is unknown: it promised nothing.
    pub fn abandon_flush(&mut self, covered: Covered) {
        for (unit, _) in covered.0 {
            let acknowledged = &mut self.record(u64::from(unit))[1];
            if *acknowledged & MARK == 0 {
                *acknowledged |= MARK;
                self.unflushed.push(unit);
            }
        }
    }

    /// Whether anything was ever issued for the unit.
    pub fn touched(&mut self, unit: u64) -> bool {
        self.record(unit)[2] & SEQUENCE != 0
    }

    /// Whether the unit may hold `content`.
    pub fn judge(&mut self, unit: u64, content: &Content, promise: Promise) -> Result<(), Fault> {
        let identity = self.identity;
        let offset = identity.start + unit * u64::from(identity.unit_bytes);
        let fault = |kind, detail| Err(Fault { kind, offset, detail });
        let [flushed, acknowledged, issued] = *self.record(unit);
        let last = issued & SEQUENCE;
        match *content {
            Content::Torn { first, other } => {
                fault(FaultKind::Torn, format!("sectors of write {first} and of write {other}, last issued {last}"))
            }
            Content::Garbage if last != 0 || identity.fresh => {
                fault(FaultKind::Garbage, format!("no block of this generator, last issued {last}"))
            }
            // What lay there before the first write is not known.
            Content::Garbage => Ok(()),
            Content::Whole(stamp) if stamp.volume != identity.volume || stamp.offset != offset => {
                fault(FaultKind::Misdirected, format!("block of volume {} at offset {}", stamp.volume, stamp.offset))
            }
            Content::Whole(stamp) if stamp.writer != identity.writer => {
                let before = Found::Before(format!("write {} of an earlier run {:x}", stamp.sequence, stamp.writer));
                judge_sequence(before, [flushed, acknowledged, issued], promise, &identity)
                    .or_else(|(k, d)| fault(k, d))
            }
            Content::Whole(Stamp { sequence, .. }) => {
                judge_sequence(Found::Write(sequence), [flushed, acknowledged, issued], promise, &identity)
                    .or_else(|(k, d)| fault(k, d))
            }
            Content::Zero => judge_sequence(Found::Zeros, [flushed, acknowledged, issued], promise, &identity)
                .or_else(|(k, d)| fault(k, d)),
        }
    }
}

enum Found {
    Write(u64),
    Zeros,
    Before(String),
}

fn judge_sequence(
    found: Found,
    record: [u64; 3],
    promise: Promise,
    identity: &Identity,
) -> Result<(), (FaultKind, String)> {
    let [flushed, acknowledged, issued] = record;
    let floor = match promise {
        Promise::Acknowledged => acknowledged,
        Promise::Flushed => flushed,
    };
    let sequence = |word: u64| word & SEQUENCE;
    let any_between = promise == Promise::Flushed || issued & MARK != 0;
    let missing = |what: String| {
        let kind = if sequence(flushed) != 0 { FaultKind::Lost } else { FaultKind::Stale };
        let detail = format!(
            "{what}, acknowledged {}{}, flushed {}",
            sequence(acknowledged),
            if acknowledged & ZEROS != 0 { " (zeros)" } else { "" },
            sequence(flushed)
        );
        Err((kind, detail))
    };
    match found {
        Found::Before(_) if floor & SEQUENCE == 0 && !identity.fresh => Ok(()),
        Found::Before(what) if sequence(issued) == 0 => Err((FaultKind::Unasked, what)),
        Found::Before(what) => missing(what),
        Found::Zeros => {
            let is_floor = sequence(floor) == 0 || floor & ZEROS != 0;
            let in_flight = issued & ZEROS != 0;
            let between = any_between && flushed & MARK != 0;
            if is_floor || in_flight || between { Ok(()) } else { missing("zeros".into()) }
        }
        Found::Write(found) if found > sequence(issued) => {
            Err((FaultKind::Unasked, format!("write {found}, but the last issued is {}", sequence(issued))))
        }
        Found::Write(found) => {
            let is_floor = found == sequence(floor) && floor & ZEROS == 0;
            let in_flight = found == sequence(issued) && issued & ZEROS == 0;
            if is_floor || in_flight || any_between && found > sequence(floor) {
                Ok(())
            } else if found >= sequence(flushed) && sequence(flushed) != sequence(acknowledged) {
                Err((FaultKind::Stale, format!("write {found}, acknowledged {}", sequence(acknowledged))))
            } else {
                missing(format!("write {found}"))
            }
        }
    }
}

fn map(file: &std::fs::File) -> std::io::Result<MmapMut> {
    // SAFETY: the file is this run's own; a truncation by somebody else while it is mapped would be a SIGBUS, as for any
    // mapping, and the documentation of --oracle says to leave the file alone.
    unsafe { MmapMut::map_mut(file) }
}

/// An oracle file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("oracle file {path}: {why}", path = path.display())]
pub struct OracleError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

#[cfg(test)]
mod tests;
