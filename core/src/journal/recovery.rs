//! What a journal's bytes mean after a crash: which records to replay, where to cut, what is damaged.
//!
//! A pure function over the region. It looks at one slot after another, from the replay start of the chosen checkpoint; for
//! each, [`decide`] is the whole table. One group is in flight at a time, so at most the last one can be torn by a crash;
//! whatever a later group vouches for was durable, and its loss is damage, never a tail (C13).

use thiserror::Error;

use super::group::{GroupHeader, VolumeList};
use super::ring::{End, Position, Ring};
use crate::checksum::Seed;
use crate::ids::{Lsn, ShardId};
use crate::limits::BLOCK;
use crate::map::{BadRecord, Decoded, Record, Records};
use crate::space::Geometry;

/// What is where the next group is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The expected group, whole.
    Valid,
    /// Its header is whole, its records are not.
    BadBody,
    /// No header with the expected number: nothing, garbage, or a group of an earlier lap.
    Nothing,
}

/// How the group in the slot goes with the one before it. [`Link::Continues`] where there is nothing to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// It names the header checksum of the one before and its LSN follows.
    Continues,
    /// An older boot wrote it than the one before it: left by a dead process, void (C4).
    Stale,
    /// It is not older, and follows another group than the one that is there.
    Broken,
}

/// What groups with higher numbers say, those of boots older than the one before the slot left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Later {
    /// There is none.
    None,
    /// There are some; none says that the slot's records were durable.
    Silent,
    /// One says that the slot's records were durable.
    Vouches,
}

/// Who lists the volumes of the slot's group beside its own header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// The group right after it.
    Next,
    /// No group.
    Nobody,
}

/// Everything a decision rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The slot.
    pub slot: Slot,
    /// Its group and the one before.
    pub link: Link,
    /// Groups after it.
    pub later: Later,
    /// Who else lists its volumes.
    pub spoken: Spoken,
}

/// Where the volumes of lost records are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// In the slot's own header.
    Own,
    /// In the next group's header.
    Next,
    /// Nowhere: any volume with a stripe here.
    Any,
}

/// What to do with a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Take its records.
    Replay,
    /// Acknowledged records are lost here. Fault their volumes and go on behind it.
    Damage(Lost),
    /// The group before was not what this one followed: its volumes, as this one lists them, are faulted. Then judge this slot
    /// again as one that continues.
    DamageBefore,
    /// The journal ends here; what is there was never acknowledged.
    End,
}

/// The recovery table.
#[must_use]
pub fn decide(evidence: Evidence) -> Decision {
    let Evidence { slot, link, later, spoken } = evidence;
    match (slot, link, later, spoken) {
        (Slot::Valid, Link::Continues, _, _) => Decision::Replay,
        (Slot::Valid | Slot::BadBody, Link::Broken, _, _) => Decision::DamageBefore,
        (Slot::BadBody, Link::Continues, Later::Vouches, _) => Decision::Damage(Lost::Own),
        // From here on the slot holds nothing of ours, or a torn group.
        (_, _, Later::Vouches, Spoken::Next) => Decision::Damage(Lost::Next),
        (_, _, Later::Vouches, Spoken::Nobody) => Decision::Damage(Lost::Any),
        (_, _, Later::None | Later::Silent, _) => Decision::End,
    }
}

/// Acknowledged records that are lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Block of the region.
    pub block: u32,
    /// Number of the group.
    pub sequence: u64,
    /// First LSN that is lost.
    pub lsn: Lsn,
    /// Whose records: these volumes are faulted.
    pub volumes: VolumeList,
}

/// What recovery found.
#[derive(Debug)]
pub struct Recovered {
    /// Records to replay, in order; LSNs have gaps only where there is damage.
    pub records: Vec<(Lsn, Record)>,
    /// What is lost.
    pub damage: Vec<Damage>,
    /// The number of a group that was cut off as torn, if there was one: nothing in it was acknowledged.
    pub torn: Option<u64>,
    /// The writer, continuing behind the last group.
    pub ring: Ring,
}

/// A journal that must not be replayed by this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RecoverError {
    /// A record kind that may not be skipped.
    #[error("journal of shard {shard}, group {sequence}: {source}")]
    Record {
        /// Whose journal.
        shard: ShardId,
        /// Which group.
        sequence: u64,
        /// Which record.
        source: BadRecord,
    },
    /// A group of a boot that has not been yet: the superblocks are older than the journal.
    #[error(
        "journal of shard {shard}, block {block}: written by boot {found}, but the superblocks say this is boot {boot}"
    )]
    Future {
        /// Whose journal.
        shard: ShardId,
        /// Where.
        block: u32,
        /// As found.
        found: u32,
        /// This boot.
        boot: u32,
    },
    /// The checkpoint's replay start is not in the region.
    #[error("journal of shard {shard}: the checkpoint starts replay at block {block} of {blocks}")]
    Start {
        /// Whose journal.
        shard: ShardId,
        /// As the checkpoint says.
        block: u32,
        /// Of the region.
        blocks: u32,
    },
}

/// Reads a journal's region from `start` on. `seed` is that of pool and shard, `boot` this boot's generation, which no group
/// has yet.
pub fn recover(
    region: &[u8],
    shard: ShardId,
    boot: u32,
    seed: Seed,
    start: Position,
    geometry: &Geometry,
) -> Result<Recovered, RecoverError> {
    let blocks = (region.len() / BLOCK as usize) as u32;
    if start.block >= blocks || start.sequence == 0 || start.lsn.0 == 0 {
        return Err(RecoverError::Start { shard, block: start.block, blocks });
    }
    let mut candidates = Vec::new();
    for block in 0..blocks {
        if let Ok(header) = GroupHeader::decode(&region[Ring::offset(block) as usize..], shard, seed) {
            if header.generation >= boot {
                return Err(RecoverError::Future { shard, block, found: header.generation, boot });
            }
            candidates.push(Candidate { block, header });
        }
    }
    candidates.sort_by_key(|candidate| (candidate.header.sequence, candidate.block));
    let mut walk = Walk::new(region, shard, seed, geometry, candidates, start);
    while walk.step()? {}
    let ring = Ring::resume(blocks, shard, boot, seed, walk.end);
    Ok(Recovered { records: walk.records, damage: walk.damage, torn: walk.torn, ring })
}

#[derive(Clone, Debug)]
struct Candidate {
    block: u32,
    header: GroupHeader,
}

/// The walk over the slots. `end` is always what a writer would continue from if the journal ended here.
struct Walk<'a> {
    region: &'a [u8],
    shard: ShardId,
    seed: Seed,
    geometry: &'a Geometry,
    /// By sequence.
    candidates: Vec<Candidate>,
    start: Position,
    end: End,
    /// Header checksum and boot of the group before the slot, where it was seen.
    before: Option<(u32, u32)>,
    records: Vec<(Lsn, Record)>,
    damage: Vec<Damage>,
    torn: Option<u64>,
}

impl<'a> Walk<'a> {
    fn new(
        region: &'a [u8],
        shard: ShardId,
        seed: Seed,
        geometry: &'a Geometry,
        candidates: Vec<Candidate>,
        start: Position,
    ) -> Walk<'a> {
        let mut end = End::at(start);
        // The next group must name the one before it even if that is not replayed: an older checkpoint may be chosen later.
        let prior = candidates.iter().filter(|candidate| candidate.header.sequence + 1 == start.sequence);
        if let Some(prior) = prior.max_by_key(|candidate| candidate.header.generation) {
            end.previous_crc = prior.header.crc;
            end.previous_volumes = prior.header.volumes.clone();
            end.lap = prior.header.lap;
        }
        let (records, damage) = (Vec::new(), Vec::new());
        Walk { region, shard, seed, geometry, candidates, start, end, before: None, records, damage, torn: None }
    }

    /// Judges one slot; `false` at the end of the journal.
    fn step(&mut self) -> Result<bool, RecoverError> {
        let found = self.expected();
        let records = match &found {
            Some(candidate) => self.body(candidate)?,
            None => None,
        };
        let slot = match (&found, &records) {
            (None, _) => Slot::Nothing,
            (Some(_), None) => Slot::BadBody,
            (Some(_), Some(_)) => Slot::Valid,
        };
        let link = found.as_ref().map_or(Link::Continues, |candidate| self.link(&candidate.header));
        // Where the group is whole and continues, nobody else is asked: a full journal is walked in linear time.
        let (later, next) = match (slot, link) {
            (Slot::Valid, Link::Continues) => (Later::None, None),
            _ => self.later(found.as_ref().filter(|_| link != Link::Stale)),
        };
        let spoken = match &next {
            Some(next) if next.header.sequence == self.end.sequence + 1 => Spoken::Next,
            _ => Spoken::Nobody,
        };
        match (decide(Evidence { slot, link, later, spoken }), found) {
            (Decision::Replay, Some(candidate)) => {
                self.replay(&candidate, records.expect("a valid slot has records"));
                Ok(true)
            }
            (Decision::DamageBefore, Some(candidate)) => {
                self.lose_before(&candidate);
                Ok(true)
            }
            (Decision::Damage(Lost::Own), Some(candidate)) => {
                self.lose(candidate.header.volumes.clone());
                self.pass(&candidate);
                Ok(true)
            }
            (Decision::Damage(lost), _) => {
                let next = next.expect("somebody vouches");
                let volumes = if lost == Lost::Next { next.header.previous_volumes.clone() } else { VolumeList::Any };
                self.lose(volumes);
                self.skip_to(&next);
                Ok(true)
            }
            (Decision::End, found) => {
                self.torn = found.filter(|_| slot == Slot::BadBody).map(|candidate| candidate.header.sequence);
                Ok(false)
            }
            (Decision::Replay | Decision::DamageBefore, None) => unreachable!("there is a group to judge"),
        }
    }

    /// The group with the expected number at the expected block, or around the end; of two, the one of the newer boot.
    fn expected(&self) -> Option<Candidate> {
        let sequence = self.end.sequence;
        let first = self.candidates.partition_point(|candidate| candidate.header.sequence < sequence);
        let here = |candidate: &&Candidate| candidate.block == self.end.block || candidate.block == 0;
        let same = self.candidates[first..].iter().take_while(|candidate| candidate.header.sequence == sequence);
        same.filter(here).max_by_key(|candidate| candidate.header.generation).cloned()
    }

    /// The group's records; `None` if they are not whole.
    fn body(&self, candidate: &Candidate) -> Result<Option<Vec<Record>>, RecoverError> {
        let header = &candidate.header;
        let bytes = &self.region[Ring::offset(candidate.block) as usize..];
        let Some(body) = header.body(bytes, self.seed) else { return Ok(None) };
        let mut records = Vec::with_capacity(header.records as usize);
        for decoded in Records::new(body, self.geometry) {
            match decoded {
                Ok(Decoded::Record(record)) => records.push(record),
                // It keeps its LSN: an empty free changes nothing.
                Ok(Decoded::Skipped) => records.push(Record::Free { places: Vec::new() }),
                Err(source @ BadRecord::Unknown { .. }) => {
                    return Err(RecoverError::Record { shard: self.shard, sequence: header.sequence, source });
                }
                Err(_) => return Ok(None),
            }
        }
        Ok((records.len() == header.records as usize).then_some(records))
    }

    fn link(&self, header: &GroupHeader) -> Link {
        match self.before {
            Some((_, generation)) if header.generation < generation => Link::Stale,
            Some((crc, _)) if header.previous_crc != crc || header.lsn_first != self.end.lsn_next => Link::Broken,
            Some(_) => Link::Continues,
            // The first slot: its records have to reach the replay start. After damage, nothing is known.
            None if header.sequence == self.start.sequence
                && !(header.lsn_first <= self.start.lsn && self.start.lsn < header.lsn_end()) =>
            {
                Link::Broken
            }
            None => Link::Continues,
        }
    }

    /// What groups behind the slot say of its records, and the first of them.
    fn later(&self, found: Option<&Candidate>) -> (Later, Option<Candidate>) {
        let last = found.map_or(self.end.lsn_next, |candidate| Lsn(candidate.header.lsn_end().0 - 1));
        let boot = self.before.map_or(0, |(_, generation)| generation);
        let later = |candidate: &&Candidate| {
            candidate.header.sequence > self.end.sequence && candidate.header.generation >= boot
        };
        let next = self.candidates.iter().filter(later).min_by_key(|candidate| {
            // Of two with one number, the newer boot's.
            (candidate.header.sequence, u32::MAX - candidate.header.generation)
        });
        let says = match next {
            None => Later::None,
            Some(_) if self.candidates.iter().filter(later).any(|candidate| candidate.header.durable >= last) => {
                Later::Vouches
            }
            Some(_) => Later::Silent,
        };
        (says, next.cloned())
    }

    fn replay(&mut self, candidate: &Candidate, records: Vec<Record>) {
        let first = candidate.header.lsn_first.0;
        let numbered = records.into_iter().enumerate().map(|(n, record)| (Lsn(first + n as u64), record));
        self.records.extend(numbered.filter(|&(lsn, _)| lsn >= self.start.lsn));
        self.pass(candidate);
    }

    /// Moves behind a group whose header is whole.
    fn pass(&mut self, candidate: &Candidate) {
        let header = &candidate.header;
        self.end.live.push((candidate.block, header.sequence, header.lsn_first));
        let behind = candidate.block + header.blocks;
        let around = u64::from(behind) * BLOCK == self.region.len() as u64;
        self.end.block = if around { 0 } else { behind };
        self.end.lap = if around { header.lap.wrapping_add(1) } else { header.lap };
        self.end.sequence = header.sequence + 1;
        self.end.lsn_next = header.lsn_end();
        self.end.previous_crc = header.crc;
        self.end.previous_volumes = header.volumes.clone();
        self.before = Some((header.crc, header.generation));
    }

    fn lose(&mut self, volumes: VolumeList) {
        let End { block, sequence, lsn_next: lsn, .. } = self.end;
        self.damage.push(Damage { block, sequence, lsn, volumes });
    }

    /// The group before the slot was replaced after this one was written.
    fn lose_before(&mut self, candidate: &Candidate) {
        self.lose(candidate.header.previous_volumes.clone());
        self.continue_at(candidate);
    }

    /// Goes on at the first group behind what is lost.
    fn skip_to(&mut self, next: &Candidate) {
        self.end.live.push((self.end.block, self.end.sequence, self.end.lsn_next));
        self.continue_at(next);
    }

    /// The slot of `candidate` is next, and nothing is known of what is before it.
    fn continue_at(&mut self, candidate: &Candidate) {
        self.end.block = candidate.block;
        self.end.sequence = candidate.header.sequence;
        self.end.lsn_next = candidate.header.lsn_first;
        // Its boot bounds those of later groups; its own checksum of the group before is taken as right.
        self.before = Some((candidate.header.previous_crc, candidate.header.generation));
    }
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
