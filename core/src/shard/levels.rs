//! Looking through: a snapshot is its origin's nodes at a cut, and what no version of a clone decides its parent does, at the cut
//! that was cloned, and so on down.
//!
//! A clone has the shards and the stripes of its parent, so that everything below a cluster is the same cluster of other volumes on
//! the same shard (H9). What is at the device holds a ticket like any other operation: no cluster of a parent is given to anybody
//! while a clone reads it (C7).
//!
//! Invariant: what is looked through is pinned, top first, before the next level is asked for; so a part that waits for a node
//! finds the others where they were.

use ringway_reactor::io::Io;
use smallvec::SmallVec;

use super::api::RecordLog;
use super::nodes::Readiness;
use super::parts::{PartKey, Run, Segment, Stage};
use super::read::push_run;
use super::{Shard, clusters_of};
use crate::ids::{Epoch, VolumeId};
use crate::limits::{BLOCK, BLOCKS_PER_CLUSTER, CLUSTER};
use crate::map::{NodeKey, Source, View};
use crate::request::{Command, Status};

/// Whose nodes, and as of when; `None`: now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) volume: VolumeId,
    pub(super) at: Option<Epoch>,
}

/// Volumes whose node of one range is pinned.
pub(super) type Pins = SmallVec<[VolumeId; 2]>;

/// Blocks by cluster that nothing has decided yet: bits 0 to 15.
pub(super) type Open = SmallVec<[(u32, u16); 4]>;

/// Whether everything that decides is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Gathered {
    Ready,
    /// This node is on its way.
    Loading(NodeKey),
    /// These blocks of this volume, which looks through to a backend, may have to be fetched.
    Absent(VolumeId, Open),
}

impl<L: RecordLog> Shard<L> {
    /// Whether a part may start at all, and whose nodes it is about: from here on it names the volume that has them. True: what
    /// those do not decide is a parent's.
    pub(super) fn admit(&mut self, key: PartKey) -> Result<bool, Status> {
        let state = self.parts.at(key);
        let command = state.part.command;
        let volume = self.volumes.get(&state.asked).ok_or(Status::VolumeGone)?;
        if volume.fault.is_some() {
            return Err(Status::VolumeFaulted);
        }
        let changes = command.changes_data() || command == Command::Flush;
        if changes && self.fault.is_some() {
            return Err(Status::WriteFault);
        }
        let Some(view) = volume.record.view else { return Ok(volume.record.parent.is_some()) };
        if command.changes_data() {
            return Err(Status::WriteProtected);
        }
        let origin = self.volumes.get(&view.origin).ok_or(Status::VolumeGone)?;
        if origin.fault.is_some() {
            return Err(Status::VolumeFaulted);
        }
        state.part.volume = view.origin;
        state.part.view = Some(view.epoch);
        Ok(origin.record.parent.is_some())
    }

    /// Whose nodes decide what those of `level` do not, and up to which byte of the volume. What a backend decides no nodes do: see
    /// [`Shard::backend_below`].
    pub(super) fn below(&self, level: Level) -> Result<Option<(Level, u64)>, Status> {
        let Some(parent) = self.volumes.get(&level.volume).and_then(|volume| volume.record.parent) else {
            return Ok(None);
        };
        if parent.is_on_backend() {
            return Ok(None);
        }
        let volume = self.volumes.get(&parent.volume).ok_or(Status::VolumeGone)?;
        if volume.fault.is_some() {
            return Err(Status::VolumeFaulted);
        }
        Ok(Some((Level { volume: parent.volume, at: Some(parent.epoch) }, parent.size)))
    }

    /// Up to which byte a backend decides what the nodes of `level` do not.
    pub(super) fn backend_below(&self, level: Level) -> Option<u64> {
        let parent = self.volumes.get(&level.volume)?.record.parent?;
        parent.is_on_backend().then_some(parent.size)
    }

    pub(super) fn view_of(&self, level: Level) -> View<'_> {
        let dead = &self.volumes[&level.volume].record.dead;
        level.at.map_or(View::live(dead), |epoch| View::at(epoch, dead))
    }

    /// Bytes of a cluster, whole blocks, within the first `size` bytes of a volume that lies as `volume` does.
    pub(super) fn reach(&self, volume: VolumeId, cluster: u32, size: u64) -> u32 {
        let record = &self.volumes[&volume].record;
        let nth =
            record.shards.iter().position(|&shard| shard == self.id).expect("a part is of a volume that lies here");
        let left = size.saturating_sub(record.offset_of(nth, cluster)).min(CLUSTER);
        (left.div_ceil(BLOCK) * BLOCK) as u32
    }

    /// The blocks of a cluster that a parent may have something for.
    pub(super) fn behind(&self, volume: VolumeId, cluster: u32) -> u16 {
        let Some(parent) = self.volumes[&volume].record.parent else { return 0 };
        first_blocks(self.reach(volume, cluster, parent.size))
    }

    /// Appends where the bytes `start..end` of `cluster` are, as few runs as possible.
    pub(super) fn look_up(&self, level: Level, cluster: u32, start: u32, end: u32, segments: &mut Vec<Segment>) {
        let (node, index) = self.nodes.ready(level.volume, cluster);
        let blocks = start / BLOCK as u32..end.div_ceil(BLOCK as u32);
        for found in node.lookup(index, blocks, self.view_of(level)).iter() {
            let from = (found.first * BLOCK as u32).max(start);
            let to = ((found.first + found.count) * BLOCK as u32).min(end);
            match found.source {
                Source::Device(place) => push_run(segments, Some(Run::of(place, from)), to - from),
                Source::Zero => push_run(segments, None, to - from),
                Source::Below => self.look_below(level, cluster, from, to, segments),
            }
        }
    }

    /// The same for bytes that no version of `level` decides. What a backend would have to decide is here by now, unless it is zeros.
    pub(super) fn look_below(&self, level: Level, cluster: u32, from: u32, to: u32, segments: &mut Vec<Segment>) {
        let below = self.below(level).expect("what is looked through has been gathered");
        let Some((next, size)) = below else { return push_run(segments, None, to - from) };
        let reach = self.reach(level.volume, cluster, size).clamp(from, to);
        if from < reach {
            self.look_up(next, cluster, from, reach, segments);
        }
        if reach < to {
            push_run(segments, None, to - reach);
        }
    }

    /// Takes out of `open` what the versions of `level` decide, and what the level below does not reach.
    fn decide(&self, level: Level, size_below: u64, open: &mut Open) {
        let view = self.view_of(level);
        for (cluster, blocks) in open.iter_mut() {
            let (node, index) = self.nodes.ready(level.volume, *cluster);
            let mut below = 0;
            for found in node.lookup(index, 0..BLOCKS_PER_CLUSTER, view).iter() {
                if found.source == Source::Below {
                    below |= found.blocks().fold(0, |bits, block| bits | 1u16 << block);
                }
            }
            *blocks &= below & first_blocks(self.reach(level.volume, *cluster, size_below));
        }
        open.retain(|(_, blocks)| *blocks != 0);
    }

    /// Sees to it that every node is here that decides something of `open`; that of `level` is. Each is pinned, and in `pins`.
    pub(super) fn gather_below<I: Io>(
        &mut self,
        io: &mut I,
        mut level: Level,
        mut open: Open,
        pins: &mut Pins,
    ) -> Result<Gathered, Status> {
        let Some(&(cluster, _)) = open.first() else { return Ok(Gathered::Ready) };
        loop {
            let (key, _) = NodeKey::of(level.volume, cluster);
            if !pins.contains(&level.volume) {
                self.nodes.pin_node(key);
                pins.push(level.volume);
            }
            let Some((next, size)) = self.below(level)? else { return Ok(self.gather_backend(level, open)) };
            self.decide(level, size, &mut open);
            if open.is_empty() {
                return Ok(Gathered::Ready);
            }
            let (key, _) = NodeKey::of(next.volume, cluster);
            match self.require_beyond(io, key) {
                Readiness::Ready => level = next,
                _ => return Ok(Gathered::Loading(key)),
            }
        }
    }

    /// What is left of `open` at the bottom of a chain, the node of which is here.
    fn gather_backend(&self, level: Level, mut open: Open) -> Gathered {
        let Some(size) = self.backend_below(level) else { return Gathered::Ready };
        self.decide(level, size, &mut open);
        open.retain(|(cluster, _)| self.fetching.may_have(level.volume, *cluster));
        if open.is_empty() { Gathered::Ready } else { Gathered::Absent(level.volume, open) }
    }

    /// Sees to it that the nodes of parents that a part looks through are here; its own is. False if it was parked.
    pub(super) fn gather_parents<I: Io>(&mut self, io: &mut I, key: PartKey) -> Result<bool, Status> {
        let state = self.parts.at(key);
        let (part, open) = (&state.part, looked_at(state.part.command, state.part.start, state.part.len));
        let level = Level { volume: part.volume, at: part.view };
        let mut pins = std::mem::take(&mut state.pins);
        let gathered = self.gather_below(io, level, open, &mut pins);
        let state = self.parts.at(key);
        state.pins = pins;
        match gathered? {
            Gathered::Ready => Ok(true),
            Gathered::Loading(node) => {
                state.stage = Stage::Parked;
                self.nodes.wait_for(node, key);
                Ok(false)
            }
            Gathered::Absent(bottom, open) => self.wait_for_backend(io, key, bottom, &open).map(|()| false),
        }
    }

    /// Whether what a part with steps left looks through is still there: a volume of its chain may have gone while it waited.
    pub(super) fn is_still_there(&mut self, key: PartKey) -> bool {
        let state = self.parts.at(key);
        let (asked, volume, at, start) = (state.asked, state.part.volume, state.part.view, state.part.start);
        if !self.volumes.contains_key(&asked) || !self.volumes.contains_key(&volume) {
            return false;
        }
        if self.volumes[&volume].record.parent.is_none() {
            return true;
        }
        let mut open = looked_at(state.part.command, start, state.part.len);
        let mut level = Level { volume, at };
        while let Ok(below) = self.below(level) {
            let Some((next, size)) = below else { return true };
            self.decide(level, size, &mut open);
            if open.is_empty() {
                return true;
            }
            let (node, _) = NodeKey::of(next.volume, (start / CLUSTER) as u32);
            if self.nodes.get(node).is_none() {
                return false;
            }
            level = next;
        }
        false
    }
}

/// The blocks whose content a command has to know.
fn looked_at(command: Command, start: u64, len: u32) -> Open {
    let all = clusters_of(start, len).map(|piece| {
        let (first, end) = (piece.start / BLOCK as u32, piece.end.div_ceil(BLOCK as u32));
        (piece, first_blocks(end * BLOCK as u32) & !first_blocks(first * BLOCK as u32))
    });
    match command {
        Command::Read | Command::Compare | Command::CompareAndWrite { .. } => {
            all.map(|(piece, blocks)| (piece.cluster, blocks)).collect()
        }
        // Only what they cover in part.
        Command::Write { .. } | Command::WriteZeroes { .. } => all
            .map(|(piece, blocks)| {
                let (head, tail) = (piece.start.div_ceil(BLOCK as u32), piece.end / BLOCK as u32);
                let whole = first_blocks(tail * BLOCK as u32) & !first_blocks(head * BLOCK as u32);
                (piece.cluster, blocks & !whole)
            })
            .filter(|&(_, blocks)| blocks != 0)
            .collect(),
        Command::Deallocate | Command::Flush => Open::new(),
    }
}

/// The blocks of a cluster's first `bytes`.
fn first_blocks(bytes: u32) -> u16 {
    ((1u32 << (bytes / BLOCK as u32)) - 1) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_looks_only_at_the_blocks_that_it_covers_in_part() {
        let of = |command, start, len| looked_at(command, start, len).to_vec();
        let write = Command::Write { fua: false };
        assert_eq!(of(write, 0, 65536), []);
        assert_eq!(of(write, 512, 512), [(0, 1)]);
        assert_eq!(of(write, 4096 + 512, 3 * 4096), [(0, 0b10010)]);
        assert_eq!(of(write, CLUSTER - 512, 1024), [(0, 1 << 15), (1, 1)]);
        assert_eq!(of(Command::Read, 4096, 8192), [(0, 0b110)]);
        assert_eq!(of(Command::Deallocate, 512, 65536), []);
    }
}
