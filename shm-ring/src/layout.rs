//! Where things lie in a connection's memory: one memfd with a header, the queues and the data area.
//!
//! ```text
//! 0          header (4 KiB): what this memory is, for whoever looks at it
//! 4096       queue 0: flags, commands, completions; then queue 1 ..., each from a page on
//! ...        data area, from a page on, to the end
//! ```
//! The layout follows from three numbers, which the client says in its Hello and again in the header. The target computes
//! with its own copy of the three and never looks at the header again.

use std::sync::atomic::Ordering;

use thiserror::Error;

use crate::ring::QueuePlace;
use crate::words::Words;
use crate::{ENTRIES_MAX, ENTRIES_MIN, QUEUES_MAX};

/// "RINGSHM1", as a little-endian number.
pub const MAGIC: u64 = u64::from_le_bytes(*b"RINGSHM1");
/// Version of layout, ring and messages.
pub const VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: u64 = PAGE;

const PAGE: u64 = 4096;

/// Offsets of the header's words.
mod header {
    pub(super) const MAGIC: usize = 0;
    /// Version in the lower half, generation in the upper.
    pub(super) const VERSION: usize = 8;
    /// Queues in the lower half, entries of each in the upper.
    pub(super) const QUEUES: usize = 16;
    pub(super) const DATA_BYTES: usize = 24;
    pub(super) const TOTAL_BYTES: usize = 32;
}

/// Why a layout is not one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// No queues, or too many.
    #[error("{0} queues: 1 to {QUEUES_MAX} are possible")]
    Queues(u16),
    /// A depth that cannot be.
    #[error("{0} entries a queue: a power of two from {ENTRIES_MIN} to {ENTRIES_MAX} is possible")]
    Entries(u16),
    /// A data area that is no area.
    #[error("a data area of {0} bytes: a multiple of 4096 is wanted, at least one and less than 2^40")]
    Data(u64),
    /// The header says something else than the message that came with it.
    #[error("the memory's header says {found} for its {what}, where {expected} was announced")]
    Header {
        /// Which word.
        what: &'static str,
        /// What it holds.
        found: u64,
        /// What it should.
        expected: u64,
    },
}

/// The three numbers, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    queues: u16,
    entries: u16,
    data_bytes: u64,
}

impl Layout {
    /// Checks the three numbers.
    pub fn new(queues: u16, entries: u16, data_bytes: u64) -> Result<Layout, LayoutError> {
        if !(1..=QUEUES_MAX).contains(&queues) {
            return Err(LayoutError::Queues(queues));
        }
        if !(ENTRIES_MIN..=ENTRIES_MAX).contains(&entries) || !entries.is_power_of_two() {
            return Err(LayoutError::Entries(entries));
        }
        if data_bytes == 0 || !data_bytes.is_multiple_of(PAGE) || data_bytes >= 1 << 40 {
            return Err(LayoutError::Data(data_bytes));
        }
        Ok(Layout { queues, entries, data_bytes })
    }

    /// Queues.
    #[must_use]
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// Commands that may be outstanding on a queue.
    #[must_use]
    pub fn entries(&self) -> u16 {
        self.entries
    }

    /// Bytes of the data area.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    fn queue_bytes(&self) -> u64 {
        (QueuePlace::bytes(self.entries) as u64).next_multiple_of(PAGE)
    }

    /// Where the data area starts.
    #[must_use]
    pub fn data_offset(&self) -> u64 {
        HEADER_BYTES + u64::from(self.queues) * self.queue_bytes()
    }

    /// Bytes of the whole memory.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.data_offset() + self.data_bytes
    }

    /// Where queue `index` lies.
    ///
    /// # Panics
    /// If there is no such queue.
    #[must_use]
    pub fn queue(&self, index: u16) -> QueuePlace {
        assert!(index < self.queues, "queue {index} of {}", self.queues);
        QueuePlace::new((HEADER_BYTES + u64::from(index) * self.queue_bytes()) as usize, self.entries)
    }

    fn words(&self, generation: u32) -> [(&'static str, usize, u64); 5] {
        [
            ("magic number", header::MAGIC, MAGIC),
            ("version and generation", header::VERSION, u64::from(VERSION) | u64::from(generation) << 32),
            ("queues and entries", header::QUEUES, u64::from(self.queues) | u64::from(self.entries) << 32),
            ("bytes of data", header::DATA_BYTES, self.data_bytes),
            ("bytes in all", header::TOTAL_BYTES, self.total_bytes()),
        ]
    }

    /// Client: says what the memory is.
    pub fn write_header(&self, words: &impl Words, generation: u32) {
        for (_, offset, value) in self.words(generation) {
            words.store(offset, value, Ordering::Relaxed);
        }
    }

    /// Target: whether the header says what the message said. Each word is read once.
    pub fn check_header(&self, words: &impl Words, generation: u32) -> Result<(), LayoutError> {
        for (what, offset, expected) in self.words(generation) {
            let found = words.load(offset, Ordering::Relaxed);
            if found != expected {
                return Err(LayoutError::Header { what, found, expected });
            }
        }
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::ring::tests::HeapWords;

    #[test]
    fn the_parts_follow_each_other_without_overlap_and_end_at_the_total() {
        for (queues, entries) in [(1, 2), (3, 32), (QUEUES_MAX, ENTRIES_MAX)] {
            let layout = Layout::new(queues, entries, 1 << 20).unwrap();
            let mut end = HEADER_BYTES as usize;
            for index in 0..queues {
                let place = layout.queue(index);
                assert!(place.base() >= end && place.base().is_multiple_of(4096));
                end = place.base() + QueuePlace::bytes(entries);
            }
            assert!(layout.data_offset() as usize >= end && layout.data_offset().is_multiple_of(4096));
            assert_eq!(layout.total_bytes(), layout.data_offset() + (1 << 20));
        }
    }

    #[test]
    fn numbers_that_cannot_be_are_refused_by_name() {
        for (queues, entries, data, text) in [
            (0, 32, 4096, "0 queues"),
            (QUEUES_MAX + 1, 32, 4096, "65 queues"),
            (1, 1, 4096, "1 entries"),
            (1, 48, 4096, "48 entries"),
            (1, 2048, 4096, "2048 entries"),
            (1, 32, 0, "0 bytes"),
            (1, 32, 5000, "5000 bytes"),
            (1, 32, 1 << 40, "1099511627776 bytes"),
        ] {
            let error = Layout::new(queues, entries, data).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_header_that_differs_in_any_word_is_refused() {
        let layout = Layout::new(2, 32, 8192).unwrap();
        let words = HeapWords::new(4096);
        layout.write_header(&words, 7);
        assert_eq!(layout.check_header(&words, 7), Ok(()));
        assert!(layout.check_header(&words, 8).is_err());
        for (what, offset, value) in layout.words(7) {
            words.store(offset, value ^ 1, Ordering::Relaxed);
            let error = layout.check_header(&words, 7).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
            words.store(offset, value, Ordering::Relaxed);
        }
    }
}
