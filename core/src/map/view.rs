//! Which versions a reader sees, and what a lookup answers.

use std::ops::{Deref, Range};

use crate::ids::Epoch;
use crate::limits::{BLOCK, BLOCKS_PER_CLUSTER};
use crate::space::Place;

/// The state of a volume at an epoch, or now.
///
/// A version is seen if it was born at or before `at` and not in an interval that a rollback made void. A rollback after
/// `at` does not concern this view: a snapshot keeps what it had.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    at: Epoch,
    dead: &'a [(Epoch, Epoch)],
}

impl<'a> View<'a> {
    /// What the volume holds now. `dead` are the volume's void intervals `(after, up to]`.
    #[must_use]
    pub fn live(dead: &'a [(Epoch, Epoch)]) -> View<'a> {
        View { at: Epoch(u64::MAX), dead }
    }

    /// What the volume held at cut `epoch`.
    #[must_use]
    pub fn at(epoch: Epoch, dead: &'a [(Epoch, Epoch)]) -> View<'a> {
        View { at: epoch, dead }
    }

    /// Nothing born later is part of it.
    #[must_use]
    pub fn until(&self) -> Epoch {
        self.at
    }

    /// Whether a version born at `birth` is part of this view.
    #[must_use]
    pub fn sees(&self, birth: Epoch) -> bool {
        birth <= self.at && !self.dead.iter().any(|&(after, up_to)| up_to <= self.at && after < birth && birth <= up_to)
    }
}

/// Where the blocks of a segment come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The same blocks of this cluster.
    Device(Place),
    /// Zeros, whatever is below.
    Zero,
    /// No version says anything: the parent decides, and zeros where there is none.
    Below,
}

/// A run of blocks of one cluster with one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First block, 0..16.
    pub first: u32,
    /// How many blocks.
    pub count: u32,
    /// Where they come from.
    pub source: Source,
}

impl Segment {
    /// Its blocks.
    #[must_use]
    pub fn blocks(&self) -> Range<u32> {
        self.first..self.first + self.count
    }

    /// Byte of the device at which it starts, where it comes from one.
    #[must_use]
    pub fn device_offset(&self) -> Option<u64> {
        match self.source {
            Source::Device(place) => Some(place.offset() + u64::from(self.first) * BLOCK),
            Source::Zero | Source::Below => None,
        }
    }
}

/// The answer of a lookup: segments in order, without gaps, neighbours with different sources. No heap.
#[derive(Clone, Debug)]
pub struct Segments {
    items: [Segment; BLOCKS_PER_CLUSTER as usize],
    len: usize,
}

impl Segments {
    pub(super) fn new() -> Segments {
        let none = Segment { first: 0, count: 0, source: Source::Below };
        Segments { items: [none; BLOCKS_PER_CLUSTER as usize], len: 0 }
    }

    /// Adds the next blocks, joining them to the last segment where the source is the same.
    pub(super) fn push(&mut self, first: u32, count: u32, source: Source) {
        if let Some(last) = self.items[..self.len].last_mut() {
            assert_eq!(last.first + last.count, first, "segments have no gaps");
            if last.source == source {
                last.count += count;
                return;
            }
        }
        self.items[self.len] = Segment { first, count, source };
        self.len += 1;
    }
}

impl Deref for Segments {
    type Target = [Segment];
    fn deref(&self) -> &[Segment] {
        &self.items[..self.len]
    }
}
