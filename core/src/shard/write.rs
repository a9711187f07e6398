//! Writes: choose where each cluster's bytes go, send the client's own buffer there, and only when the data is at the device
//! let the map say so.
//!
//! ```text
//! resolve (no effect) -> journal room, space? -> targets taken -> device -> steps (sector.rs) -> map, record, crash log -> answer
//! ```
//! An overwrite of data blocks of a version that no cut protects is one device write: no record, no allocation. A failed
//! write leaves the map as it was and gives back what was taken for it.

use ringway_reactor::io::Io;

use super::api::{Event, RecordLog};
use super::commit::Use;
use super::parts::{PartKey, Run, Segment, Stage, Step};
use super::read::push_run;
use super::targets::Target;
use super::{Piece, Shard, clusters_of};
use crate::ids::{Epoch, Lsn, VolumeId};
use crate::limits::BLOCK;
use crate::map::{BlockStates, Record, Version, View};
use crate::request::{Command, Status};
use crate::space::Place;

const B: u32 = BLOCK as u32;

/// Where a write to a cluster belongs, before anything is taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    /// Birth of the version it goes to.
    pub(super) birth: Epoch,
    /// Its place, or none yet.
    pub(super) place: Place,
    /// Blocks of that version that are data, as the low bits of [`BlockStates`].
    pub(super) data: u32,
}

impl<L: RecordLog> Shard<L> {
    pub(super) fn start_write<I: Io>(&mut self, io: &mut I, key: PartKey, fua: bool, out: &mut Vec<Event>) {
        let state = self.parts.at(key);
        let (volume, start, len) = (state.part.volume, state.part.start, state.part.len);
        if !self.take_targets(key, clusters_of(start, len), out) {
            return;
        }
        let unmapped = self.parts.at(key).targets.iter().any(|target| target.gains != 0);
        let mapped_by = self.nodes.lsn(volume, start);
        let durable = fua && !unmapped && mapped_by <= self.commit.durable();
        let state = self.parts.at(key);
        state.durable = durable;
        // An overwrite is worth no more than the record that maps what it overwrites (C3, C5).
        state.lsn = mapped_by;
        // The second part of a request that was split begins wherever the first one ended in memory.
        let logical = self.logical_block;
        let state = self.parts.at(key);
        let aligned = start.is_multiple_of(u64::from(logical))
            && state.part.data.as_ref().is_some_and(|data| data.starts_aligned(logical));
        for (number, piece) in clusters_of(start, len).enumerate() {
            self.lay_out(key, number, piece, aligned);
        }
        let state = self.parts.at(key);
        state.split_data();
        let steps = !state.steps.is_empty();
        if unmapped || steps {
            self.pin(key);
        }
        self.submit_segments(io, key, true, out);
    }

    /// Chooses and takes the target of each piece, all or none; false if the part was parked or ended.
    pub(super) fn take_targets(
        &mut self,
        key: PartKey,
        pieces: impl Iterator<Item = Piece> + Clone,
        out: &mut Vec<Event>,
    ) -> bool {
        let stamp = self.word;
        let volume = self.parts.at(key).part.volume;
        let (mut changes, mut places) = (0, 0u64);
        for piece in pieces.clone() {
            let to = self.resolve(volume, piece.cluster, stamp);
            changes += usize::from(piece.blocks() & !to.data != 0);
            places += u64::from(to.place.is_none());
        }
        if changes > 0 && !self.journal_admits(key, changes, Use::Write) {
            return false;
        }
        if places > 0 && !self.has_space(places) {
            self.park_for_space(key, places, out);
            return false;
        }
        if changes > 0 && !self.map_has_room() {
            self.park_for_map(key);
            return false;
        }
        let mut targets = std::mem::take(&mut self.parts.at(key).targets);
        for piece in pieces {
            let to = self.resolve(volume, piece.cluster, stamp);
            let gains = piece.blocks() & !to.data;
            let fresh = to.place.is_none();
            let place = if fresh { self.space.alloc().expect("there are as many as were counted") } else { to.place };
            if gains != 0 {
                self.openings.join(volume, piece.cluster, to.birth, place, fresh);
            }
            targets.push(Target { cluster: piece.cluster, birth: to.birth, place, gains });
        }
        let state = self.parts.at(key);
        state.targets = targets;
        state.stamp = Some(stamp);
        self.changing += changes;
        true
    }

    /// Which version a write stamped `stamp` goes to: a new one exactly if a cut lies between the newest and the stamp.
    pub(super) fn resolve(&self, volume: VolumeId, cluster: u32, stamp: Epoch) -> Resolved {
        let (node, index) = self.nodes.ready(volume, cluster);
        let mapped = node.newest(index);
        let opening = self.openings.newest(volume, cluster);
        let (birth, place) = match (mapped, opening) {
            (None, None) => return Resolved { birth: stamp, place: Place::NONE, data: 0 },
            (Some(mapped), None) => (mapped.birth, mapped.place),
            (Some(mapped), Some(opening)) if mapped.birth > opening.birth => (mapped.birth, mapped.place),
            (_, Some(opening)) => (opening.birth, opening.place),
        };
        assert!(birth <= stamp, "stamps of a shard ascend: {birth} is born after {stamp}");
        let record = &self.volumes[&volume].record;
        // A version that a rollback made void shows nothing of what is written to it (H10).
        if self.redirects(volume, birth, stamp) || !View::live(&record.dead).sees(birth) {
            return Resolved { birth: stamp, place: Place::NONE, data: 0 };
        }
        let data = mapped
            .filter(|mapped| mapped.birth == birth)
            .map_or(0, |mapped| mapped.states.raw() & BlockStates::DATA.raw());
        Resolved { birth, place, data }
    }

    /// Appends the segments and steps of one cluster's stretch of a write. `aligned`: the part's first byte is that of a logical block of
    /// the device, and so it lies in memory.
    fn lay_out(&mut self, key: PartKey, number: usize, piece: Piece, aligned: bool) {
        let logical = self.logical_block;
        let state = self.parts.at(key);
        let target = state.targets[number];
        let Piece { cluster, start, end } = piece;
        let mut step = |from: u32, to: u32, segments: &mut Vec<Segment>| {
            let segment = Some(segments.len());
            segments.push(Segment { data: None, at: None, len: to - from });
            state.steps.push(Step { target: number, segment, cluster, start: from, end: to });
        };
        let segments = &mut state.segments;
        if !aligned {
            return step(start, end, segments);
        }
        let direct = |block: u32, edge: u32| target.gains & (1 << (2 * block)) == 0 && edge.is_multiple_of(logical);
        let (mut from, mut to) = (start, end);
        if start % B != 0 && !direct(start / B, start) {
            from = ((start / B + 1) * B).min(end);
            step(start, from, segments);
        }
        let tail = (end % B != 0 && from < end && !direct(end / B, end)).then(|| end / B * B);
        if let Some(tail) = tail {
            to = tail.max(from);
        }
        if from < to {
            let run = Run { file: u16::from(target.place.device()), offset: target.place.offset() + u64::from(from) };
            push_run(segments, Some(run), to - from);
        }
        if to < end {
            step(to, end, segments);
        }
    }

    /// The device has everything: the map says so, and the answer goes out or waits for what it promises.
    pub(super) fn complete_write(&mut self, key: PartKey, out: &mut Vec<Event>) {
        let ok = self.parts.at(key).status == Status::Success;
        self.settle_targets(key, ok);
        let state = self.parts.at(key);
        let fua = match state.part.command {
            Command::Write { fua } | Command::WriteZeroes { fua, .. } | Command::CompareAndWrite { fua } => fua,
            _ => false,
        };
        self.answer_change(key, fua, out);
    }

    /// Ends the part's part in the openings: with `ok` its blocks are data from now on.
    fn settle_targets(&mut self, key: PartKey, ok: bool) {
        let state = self.parts.at(key);
        let volume = state.part.volume;
        let mut targets = std::mem::take(&mut state.targets);
        for target in targets.drain(..).filter(|target| target.gains != 0) {
            self.changing -= 1;
            if ok {
                let lsn = self.gain(volume, target);
                self.parts.at(key).lsn = lsn;
            }
            if let Some(opening) = self.openings.leave(volume, target.cluster, target.birth) {
                // Who waits for space may get it, or has nothing left to wait for.
                self.space_changed = true;
                if opening.fresh {
                    self.space.give_back(opening.place);
                } else {
                    self.drop_empty_place(volume, target.cluster, target.birth);
                }
            }
        }
        self.parts.at(key).targets = targets;
    }

    /// Blocks of a version become data: map, record, crash log.
    fn gain(&mut self, volume: VolumeId, target: Target) -> Lsn {
        let Target { cluster, birth, place, gains } = target;
        let (node, index) = self.nodes.ready(volume, cluster);
        let before = node.version(index, birth).copied();
        assert!(before.is_none_or(|before| before.place.is_none() || before.place == place), "a version has one place");
        let raw = before.map_or(0, |before| before.states.raw()) & !(gains << 1) | gains;
        let states = BlockStates::from_raw(raw).expect("a block that becomes data is nothing else");
        let version = Version { birth, place, states };
        let lsn = self.record(&Record::Set { volume, cluster, version, freed: Place::NONE });
        if before.is_none_or(|before| before.place.is_none()) {
            self.mapped.change(lsn, volume, 1);
        }
        if self.openings.settle(volume, cluster, birth) {
            self.space.settle(place, lsn);
        }
        lsn
    }

    /// What changed is answered when it outlives the process, and with `fua` the machine.
    pub(super) fn answer_change(&mut self, key: PartKey, fua: bool, out: &mut Vec<Event>) {
        let state = self.parts.at(key);
        let (status, lsn, durable) = (state.status, state.lsn, state.durable);
        let waits = if status != Status::Success {
            false
        } else if fua {
            !durable
        } else {
            lsn > self.commit.kept()
        };
        if !waits {
            return self.finish(key, status, out);
        }
        // Blocks and map are as they will be: others may go on while this waits for the journal.
        self.release_claim(key);
        self.parts.at(key).stage = Stage::Committing;
        self.wait_for_round(key, out);
    }
}
