//! Reads: look each block up, then fill the client's own buffer from where it lives.
//!
//! A read waits for nobody, unless the volume's logical block is larger than what the device writes atomically: then it
//! waits for writes of the same blocks, or it could see half of one.

use ringway_reactor::data::Data;
use ringway_reactor::io::Io;

use super::api::{Event, RecordLog};
use super::levels::Level;
use super::ops::Owner;
use super::parts::{PartKey, PartState, Run, Segment, Stage, Step};
use super::{Shard, clusters_of};
use crate::limits::{BLOCK, CLUSTER};
use crate::map::{NodeKey, Source, View};
use crate::request::{Command, Status};

impl<L: RecordLog> Shard<L> {
    pub(super) fn start_read<I: Io>(&mut self, io: &mut I, key: PartKey, out: &mut Vec<Event>) {
        let word = self.word;
        let state = self.parts.at(key);
        state.stamp = Some(word);
        let (start, len) = (state.part.start, state.part.len);
        let level = Level { volume: state.part.volume, at: state.part.view };
        let direct = (start | u64::from(len)) % u64::from(self.logical_block) == 0
            && (start % BLOCK == 0 || self.logical_block == 512)
            && state.part.data.as_ref().is_some_and(|data| data.starts_aligned(self.logical_block));
        let mut segments = std::mem::take(&mut state.segments);
        for piece in clusters_of(start, len) {
            if direct {
                self.look_up(level, piece.cluster, piece.start, piece.end, &mut segments);
            } else {
                let step = Step {
                    target: 0,
                    segment: Some(segments.len()),
                    cluster: piece.cluster,
                    start: piece.start,
                    end: piece.end,
                };
                segments.push(Segment { data: None, at: None, len: piece.end - piece.start });
                self.parts.at(key).steps.push(step);
            }
        }
        let state = self.parts.at(key);
        state.segments = segments;
        state.split_data();
        for segment in state.segments.iter_mut().filter(|segment| direct && segment.at.is_none()) {
            segment.data = segment.data.take().map(Data::zeroed);
        }
        if !direct {
            self.pin(key);
        }
        self.submit_segments(io, key, false, out);
    }

    /// Starts a read of whole blocks for which one version of one cluster decides, of a node that is here: at the device, or it is
    /// zeros and done. False for all others: they have not been touched.
    pub(super) fn read_at_once<I: Io>(&mut self, io: &mut I, key: PartKey, out: &mut Vec<Event>) -> bool {
        let Some(state) = self.parts.get_mut(key) else { return true };
        let part = &mut state.part;
        let (start, len) = (part.start, part.len);
        let within = (start % CLUSTER) as u32;
        let simple = part.command == Command::Read
            && state.stage == Stage::Queued
            && part.view.is_none()
            && (start | u64::from(len)).is_multiple_of(BLOCK)
            && within + len <= CLUSTER as u32;
        let Some(volume) = self.volumes.get(&part.volume) else { return false };
        let Some(data) = part.data.as_ref().filter(|data| data.is_aligned(self.logical_block)) else { return false };
        if !simple || volume.fault.is_some() || volume.record.lba_bytes > self.atomic_unit {
            return false;
        }
        assert!(data.len() == len as usize, "a read has as much memory as it reads");
        let (node, index) = NodeKey::of(part.volume, (start / CLUSTER) as u32);
        let blocks = within / BLOCK as u32..(within + len) / BLOCK as u32;
        let view = View::live(&volume.record.dead);
        let Some(source) = self.nodes.here(node).and_then(|node| node.whole(index, blocks, view)) else { return false };
        let Source::Device(place) = source else {
            if source == Source::Below && volume.record.parent.is_some() {
                return false;
            }
            part.data = part.data.take().map(Data::zeroed);
            self.finish(key, Status::Success, out);
            return true;
        };
        let run = Run { file: u16::from(place.device()), offset: place.offset() + u64::from(within) };
        let data = part.data.take().expect("it was just looked at");
        state.stamp = Some(self.word);
        state.stage = Stage::Device;
        state.outstanding = 1;
        self.submit_read(io, Owner::Whole { part: key }, run, data);
        true
    }

    /// A read that was started at once is done.
    pub(super) fn on_whole(&mut self, key: PartKey, data: Data, out: &mut Vec<Event>) {
        let state = self.parts.at(key);
        state.part.data = Some(data);
        state.outstanding = 0;
        let status = state.status;
        self.finish(key, status, out);
    }
}

/// Appends `len` bytes at `run`, to the last segment where they continue it.
pub(super) fn push_run(segments: &mut Vec<Segment>, run: Option<Run>, len: u32) {
    if let Some(last) = segments.last_mut() {
        let continues = match (last.at, run) {
            (Some(last_run), Some(run)) => {
                last_run.file == run.file && last_run.offset + u64::from(last.len) == run.offset
            }
            (None, None) => true,
            _ => false,
        };
        if continues {
            last.len += len;
            return;
        }
    }
    segments.push(Segment { data: None, at: run, len });
}

impl PartState {
    /// Splits the part's buffer along its segments.
    pub(super) fn split_data(&mut self) {
        let mut rest = self.part.data.take().expect("a part that moves data has some");
        let count = self.segments.len();
        for (number, segment) in self.segments.iter_mut().enumerate() {
            if number + 1 == count {
                // What lies beyond the last segment (the second half of a compare-and-write) stays with it.
                segment.data = Some(rest);
                return;
            }
            let tail = rest.split_off(segment.len as usize);
            segment.data = Some(std::mem::replace(&mut rest, tail));
        }
    }

    /// Joins the segments again into the part's buffer.
    pub(super) fn join_data(&mut self) {
        let mut segments = self.segments.drain(..);
        if let Some(first) = segments.next() {
            let mut data = first.data.expect("nothing is at the device any more");
            for segment in segments {
                data.join(segment.data.expect("nothing is at the device any more"));
            }
            self.part.data = Some(data);
        }
    }
}
