//! What a shard does for a snapshot: it arms the volume, learns the cut, and seals it.
//!
//! ```text
//! arm      -> Arming --(execute: the word of this tick)--> Armed { since }      answers Event::Armed
//! seal     -> Sealing { cut } --(own word > cut, no running write stamped <= cut, journal room)--> Journaled { lsn }
//!          -> --(the record is durable, and with it what came before)--> Sealed  answers Event::Sealed
//! release  -> gone: the catalog has the cut by now, or nobody ever will
//! ```
//! From `Armed` on each step of the epoch word counts as a cut of the volume: a write redirects where a step lies between the
//! version's birth and its own stamp. `since` is the word that this shard read in the tick whose end sends the answer, so the
//! coordinator's step, which comes after all answers, is one of those that count (C2). From `Sealing` on only the cut itself
//! counts; it stands among the cuts of the shard's own copy of the volume's record.
//!
//! Stamps at a shard ascend. So once its word is beyond the cut, and no write stamped up to the cut is running, nothing it does
//! can change what the volume was at the cut: no client has a say in that, since what waits for its client is not stamped (C1).

use std::sync::Arc;

use super::Shard;
use super::api::{Event, RecordLog};
use super::parts::Stage;
use crate::ids::{AttemptId, Epoch, Lsn, VolumeId};
use crate::map::Record;
use crate::volume::VolumeRecord;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Arming,
    Armed { since: Epoch },
    Sealing { cut: Epoch },
    Journaled { cut: Epoch, lsn: Lsn },
    Sealed { cut: Epoch },
}

impl Step {
    fn cut(self) -> Option<Epoch> {
        match self {
            Step::Arming | Step::Armed { .. } => None,
            Step::Sealing { cut } | Step::Journaled { cut, .. } | Step::Sealed { cut } => Some(cut),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Boundary {
    attempt: AttemptId,
    volume: VolumeId,
    step: Step,
}

/// The snapshots that are being made of this shard's volumes.
#[derive(Debug, Default)]
pub(super) struct Sealing {
    boundaries: Vec<Boundary>,
    /// Something was told since the last tick.
    fresh: bool,
    /// A seal waits for room in the journal.
    starved: bool,
}

impl Sealing {
    /// Whether something was told since the last tick.
    pub(super) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Whether steps of the word may be cuts of the volume that nobody has named yet.
    pub(super) fn is_armed(&self, volume: VolumeId) -> bool {
        self.of(volume).any(|boundary| boundary.step.cut().is_none())
    }

    /// Whether an armed boundary lies between a version and a write.
    pub(super) fn redirects(&self, volume: VolumeId, birth: Epoch, stamp: Epoch) -> bool {
        self.of(volume).any(|boundary| match boundary.step {
            // What runs before the tick is at hand was stamped before.
            Step::Armed { since } => birth < stamp && since < stamp,
            _ => false,
        })
    }

    /// Whether it goes on without anything that happens to the shard.
    pub(super) fn wants_turn(&self) -> bool {
        self.starved
    }

    /// Whether a seal is on its way.
    pub(super) fn is_sealing(&self) -> bool {
        self.boundaries.iter().any(|boundary| matches!(boundary.step, Step::Sealing { .. } | Step::Journaled { .. }))
    }

    fn of(&self, volume: VolumeId) -> impl Iterator<Item = &Boundary> {
        self.boundaries.iter().filter(move |boundary| boundary.volume == volume)
    }

    /// `record` with the cuts that the catalog does not know yet.
    pub(super) fn with_cuts(&self, record: &Arc<VolumeRecord>) -> Arc<VolumeRecord> {
        let missing = |cut: &Epoch| !record.cuts.contains(cut);
        let more: Vec<Epoch> = self.of(record.id).filter_map(|boundary| boundary.step.cut()).filter(missing).collect();
        if more.is_empty() {
            return Arc::clone(record);
        }
        let mut record = VolumeRecord::clone(record);
        record.cuts.extend(more);
        record.cuts.sort_unstable();
        record.cuts.dedup();
        Arc::new(record)
    }
}

impl<L: RecordLog> Shard<L> {
    /// Every step of the word from the one this shard next sees counts as a cut of the volume; [`Event::Armed`] follows.
    pub fn arm(&mut self, attempt: AttemptId, volume: VolumeId) {
        self.calm = false;
        self.sealing.fresh = true;
        self.sealing.boundaries.push(Boundary { attempt, volume, step: Step::Arming });
    }

    /// The word of this tick is known, and nothing has run in it yet.
    pub(super) fn finish_arming(&mut self, out: &mut Vec<Event>) {
        self.sealing.fresh = false;
        for boundary in &mut self.sealing.boundaries {
            if boundary.step == Step::Arming {
                boundary.step = Step::Armed { since: self.word };
                out.push(Event::Armed(boundary.attempt));
            }
        }
    }

    /// The volume was cut at `cut`; [`Event::Sealed`] follows.
    ///
    /// # Panics
    /// If the attempt was not armed here.
    pub fn seal(&mut self, attempt: AttemptId, cut: Epoch) {
        self.calm = false;
        self.sealing.fresh = true;
        let found = self.sealing.boundaries.iter_mut().find(|boundary| boundary.attempt == attempt);
        let boundary = found.expect("what is cut was armed");
        let Step::Armed { since } = boundary.step else { panic!("a boundary is cut once, after it was armed") };
        assert!(since <= cut, "the cut {cut} is a step of the word after it was armed at {since}");
        boundary.step = Step::Sealing { cut };
        let volume = boundary.volume;
        self.recall(volume);
    }

    /// The attempt is over: the catalog has the cut, or nothing of it is to be left.
    pub fn release(&mut self, attempt: AttemptId) {
        self.calm = false;
        let Some(at) = self.sealing.boundaries.iter().position(|boundary| boundary.attempt == attempt) else { return };
        let volume = self.sealing.boundaries.swap_remove(at).volume;
        self.recall(volume);
    }

    /// The volume's record as the catalog gave it, with the cuts of now.
    fn recall(&mut self, volume: VolumeId) {
        if let Some(known) = self.volumes.get(&volume) {
            let given = Arc::clone(&known.given);
            self.on_volume(given);
        }
    }

    /// Whether a write stamped `stamp` must leave a version born at `birth` alone.
    pub(super) fn redirects(&self, volume: VolumeId, birth: Epoch, stamp: Epoch) -> bool {
        self.volumes[&volume].record.redirects(birth, stamp) || self.sealing.redirects(volume, birth, stamp)
    }

    /// Seals what can be sealed.
    pub(super) fn advance_sealing(&mut self, out: &mut Vec<Event>) {
        self.sealing.starved = false;
        for at in 0..self.sealing.boundaries.len() {
            let Boundary { attempt, volume, step } = self.sealing.boundaries[at];
            match step {
                Step::Sealing { cut } | Step::Journaled { cut, .. } if self.fault.is_some() => {
                    let failed = self.fault.clone();
                    self.sealing.boundaries[at].step = Step::Sealed { cut };
                    out.push(Event::Sealed { attempt, failed });
                }
                Step::Sealing { cut } if self.word > cut && !self.changes_at(volume, cut) => {
                    if !self.journal_has_room(1) {
                        self.sealing.starved = true;
                        self.commit.force();
                        self.checkpoint.want();
                        continue;
                    }
                    let lsn = self.record(&Record::Seal { volume, cut });
                    self.commit.force();
                    self.sealing.boundaries[at].step = Step::Journaled { cut, lsn };
                }
                Step::Journaled { cut, lsn } if lsn <= self.commit.durable() => {
                    self.sealing.boundaries[at].step = Step::Sealed { cut };
                    out.push(Event::Sealed { attempt, failed: None });
                }
                _ => {}
            }
        }
    }

    /// Whether a write is running that belongs to the volume as it is at `cut`. One that only waits for the journal has
    /// changed all it ever will, and the seal's record is behind its own.
    fn changes_at(&self, volume: VolumeId, cut: Epoch) -> bool {
        self.parts.iter().any(|(_, state)| {
            state.part.volume == volume
                && state.stamp.is_some_and(|stamp| stamp <= cut)
                && state.stage != Stage::Committing
                && state.part.command.changes_data()
        })
    }
}
