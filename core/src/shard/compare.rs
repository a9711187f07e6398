//! Compare, and compare-and-write: read the blocks under their claim, compare, and write only where all is equal.
//!
//! Nothing else runs on these blocks in between, so of two hosts that race for a lock by compare-and-write one wins. One
//! logical block is the largest compare-and-write (ACWU): it lies in one block, and so in one cluster.

use ringway_reactor::io::Io;

use super::api::{Event, RecordLog};
use super::parts::{PartKey, Segment, Step};
use super::{Shard, clusters_of};
use crate::limits::BLOCK;

impl<L: RecordLog> Shard<L> {
    pub(super) fn start_compare<I: Io>(&mut self, io: &mut I, key: PartKey, out: &mut Vec<Event>) {
        let word = self.word;
        let state = self.parts.at(key);
        state.stamp = Some(word);
        for piece in clusters_of(state.part.start, state.part.len) {
            let segment = Some(state.segments.len());
            state.segments.push(Segment { data: None, at: None, len: piece.end - piece.start });
            state.steps.push(Step { target: 0, segment, cluster: piece.cluster, start: piece.start, end: piece.end });
        }
        state.split_data();
        self.pin(key);
        self.submit_segments(io, key, false, out);
    }

    pub(super) fn start_compare_and_write<I: Io>(&mut self, io: &mut I, key: PartKey, out: &mut Vec<Event>) {
        let state = self.parts.at(key);
        let (start, len) = (state.part.start, state.part.len);
        assert!(start % BLOCK + u64::from(len) <= BLOCK, "a compare-and-write is of one logical block");
        if !self.take_targets(key, clusters_of(start, len), out) {
            return;
        }
        let mapped_by = self.nodes.lsn(self.parts.at(key).part.volume, start);
        let state = self.parts.at(key);
        state.lsn = mapped_by;
        let piece = clusters_of(start, len).next().expect("one block lies in one cluster");
        // The buffer stays whole: what is compared, then what is written.
        state.segments.push(Segment { data: None, at: None, len: 2 * len });
        state.steps.push(Step {
            target: 0,
            segment: Some(0),
            cluster: piece.cluster,
            start: piece.start,
            end: piece.end,
        });
        state.split_data();
        self.pin(key);
        self.submit_segments(io, key, true, out);
    }
}
