//! Discard and write zeroes: whole blocks change state in the map, at once; edges of write zeroes go through sector.rs.
//!
//! A block becomes *zero* where an older version has data under it, or a parent may have, which must not show through again (C6),
//! and *absent* otherwise. A version without data blocks gives its place up, unless a write is on its way there.

use ringway_reactor::io::Io;

use super::api::{Event, RecordLog};
use super::commit::Use;
use super::levels::Level;
use super::parts::{PartKey, Segment, Stage, Step};
use super::{Piece, Shard, clusters_of};
use crate::ids::{Epoch, Lsn, VolumeId};
use crate::limits::{BLOCK, BLOCKS_PER_CLUSTER, CLUSTER};
use crate::map::{BlockState, BlockStates, Record, Source, Version, View};
use crate::request::Command;
use crate::space::{Place, Ticket};

const B: u64 = BLOCK;

impl<L: RecordLog> Shard<L> {
    pub(super) fn start_zeroes<I: Io>(&mut self, io: &mut I, key: PartKey, fua: bool, out: &mut Vec<Event>) {
        let state = self.parts.at(key);
        let (volume, start, end) = (state.part.volume, state.part.start, state.part.start + u64::from(state.part.len));
        let (first, last) = (start.div_ceil(B) * B, end / B * B);
        let mut edges: [Option<Piece>; 2] = [None; 2];
        if matches!(state.part.command, Command::WriteZeroes { .. }) {
            let head = (start < first).then(|| edge(start, end.min(first)));
            let tail = (last < end && last >= first).then(|| edge(last, end));
            edges = [head, tail].map(|piece| piece.filter(|piece| self.has_data(volume, *piece)));
        }
        let whole = if first < last { (last - first) as u32 } else { 0 };
        let changes = clusters_of(first, whole).count() + edges.iter().flatten().count();
        if changes > 0 && !self.journal_admits(key, changes, Use::Unmap) {
            return;
        }
        if changes > 0 && !self.map_has_room() {
            return self.park_for_map(key);
        }
        if !self.take_targets(key, edges.iter().flatten().copied(), out) {
            return;
        }
        let stamp = self.word;
        // Zeros that others have made are worth no more than their record (C3, C5).
        self.parts.at(key).lsn = self.nodes.lsn(volume, start);
        for piece in clusters_of(first, whole) {
            if let Some(lsn) = self.clear(volume, piece.cluster, piece.blocks(), stamp) {
                self.parts.at(key).lsn = lsn;
            }
        }
        let unmapped = self.nodes.lsn(volume, start) > self.commit.durable();
        let state = self.parts.at(key);
        for (target, piece) in edges.into_iter().flatten().enumerate() {
            let Piece { cluster, start, end } = piece;
            state.steps.push(Step { target, segment: None, cluster, start, end });
        }
        let steps = !state.steps.is_empty();
        state.durable = fua && !steps && !unmapped;
        state.stage = Stage::Device;
        if steps {
            self.pin(key);
        }
        self.next_step(io, key, out);
    }

    /// Whether the stretch reads as anything but zeros.
    fn has_data(&self, volume: VolumeId, piece: Piece) -> bool {
        let mut runs: Vec<Segment> = Vec::new();
        self.look_up(Level { volume, at: None }, piece.cluster, piece.start, piece.end, &mut runs);
        runs.iter().any(|run| run.at.is_some())
    }

    /// Makes `blocks` of a cluster read as zeros; the record if that changed anything.
    pub(super) fn clear(&mut self, volume: VolumeId, cluster: u32, blocks: u32, stamp: Epoch) -> Option<Lsn> {
        let birth = self.resolve(volume, cluster, stamp).birth;
        let behind = self.behind(volume, cluster);
        let (node, index) = self.nodes.ready(volume, cluster);
        let view = View::live(&self.volumes[&volume].record.dead);
        let mut version = node.version(index, birth).copied().unwrap_or(Version {
            birth,
            place: Place::NONE,
            states: BlockStates::ABSENT,
        });
        let before = version;
        for found in node.lookup_below(index, 0..BLOCKS_PER_CLUSTER, birth, view).iter() {
            for block in found.blocks() {
                let shows = match found.source {
                    Source::Device(_) => true,
                    Source::Zero => false,
                    Source::Below => behind & 1 << block != 0,
                };
                let cleared = blocks & (1 << (2 * block)) != 0;
                let state = match version.states.get(block) {
                    _ if cleared && shows => BlockState::Zero,
                    // What it hid may have gone with a snapshot: then it hides nothing any more.
                    BlockState::Zero if !shows => BlockState::Absent,
                    _ if cleared => BlockState::Absent,
                    other => other,
                };
                version.states = version.states.with(block..block + 1, state);
            }
        }
        let idle_place = version.place.is_some()
            && !version.states.any_data()
            && self.openings.find(volume, cluster, birth).is_none();
        (version != before || idle_place).then(|| self.store(volume, cluster, version))
    }

    /// Gives up the place of a version in which the last write on its way left no data.
    pub(super) fn drop_empty_place(&mut self, volume: VolumeId, cluster: u32, birth: Epoch) {
        let (node, index) = self.nodes.ready(volume, cluster);
        if let Some(&version) = node.version(index, birth)
            && version.place.is_some()
            && !version.states.any_data()
        {
            self.store(volume, cluster, version);
        }
    }

    /// Puts a version into the map that may have lost its last data block.
    fn store(&mut self, volume: VolumeId, cluster: u32, mut version: Version) -> Lsn {
        let mut freed = Place::NONE;
        if !version.states.any_data() && self.openings.find(volume, cluster, version.birth).is_none() {
            freed = std::mem::replace(&mut version.place, Place::NONE);
        }
        let lsn = self.record(&if version.is_void() {
            Record::Drop { volume, cluster, birth: version.birth, freed }
        } else {
            Record::Set { volume, cluster, version, freed }
        });
        if freed.is_some() {
            self.mapped.change(lsn, volume, -1);
            self.space.free(freed, lsn, Ticket(self.ops.next_ticket()));
        }
        lsn
    }
}

/// A stretch of less than a block.
fn edge(start: u64, end: u64) -> Piece {
    let cluster = (start / CLUSTER) as u32;
    let base = start / CLUSTER * CLUSTER;
    Piece { cluster, start: (start - base) as u32, end: (end - base) as u32 }
}
