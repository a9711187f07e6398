//! Reads: look each block up, then fill the client's own buffer from where it lives.
//!
//! A read waits for nobody, unless the volume's logical block is larger than what the device writes atomically: then it
//! waits for writes of the same blocks, or it could see half of one.

use ringway_reactor::io::Io;

use super::api::{Event, RecordLog};
use super::parts::{PartKey, PartState, Run, Segment, Step};
use super::{Shard, clusters_of};
use crate::ids::{Epoch, VolumeId};
use crate::limits::BLOCK;
use crate::map::{Source, View};

impl<L: RecordLog> Shard<L> {
    pub(super) fn start_read<I: Io>(&mut self, io: &mut I, key: PartKey, out: &mut Vec<Event>) {
        let word = self.word;
        let state = self.parts.at(key);
        state.stamp = Some(word);
        let (volume, start, len, view) = (state.part.volume, state.part.start, state.part.len, state.part.view);
        let direct = (start | u64::from(len)) % u64::from(self.logical_block) == 0
            && (start % BLOCK == 0 || self.logical_block == 512);
        let mut segments = std::mem::take(&mut state.segments);
        for piece in clusters_of(start, len) {
            if direct {
                self.look_up(volume, view, piece.cluster, piece.start, piece.end, &mut segments);
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
            segment.data.as_mut().expect("the data was just split").zero();
        }
        if !direct {
            self.pin(key);
        }
        self.submit_segments(io, key, false, out);
    }

    /// Appends where the bytes `start..end` of `cluster` are, as few runs as possible.
    pub(super) fn look_up(
        &self,
        volume: VolumeId,
        view: Option<Epoch>,
        cluster: u32,
        start: u32,
        end: u32,
        segments: &mut Vec<Segment>,
    ) {
        let (node, index) = self.nodes.ready(volume, cluster);
        let dead = &self.volumes[&volume].record.dead;
        let view = view.map_or(View::live(dead), |epoch| View::at(epoch, dead));
        let blocks = start / BLOCK as u32..end.div_ceil(BLOCK as u32);
        for found in node.lookup(index, blocks, view).iter() {
            let from = (found.first * BLOCK as u32).max(start);
            let to = ((found.first + found.count) * BLOCK as u32).min(end);
            let run = match found.source {
                Source::Device(place) => {
                    Some(Run { file: u16::from(place.device()), offset: place.offset() + u64::from(from) })
                }
                Source::Zero | Source::Below => None,
            };
            push_run(segments, run, to - from);
        }
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
