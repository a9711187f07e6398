//! The log of pages that were written to, one bit each: a guest that moves to another machine while it runs copies those again.
//!
//! Pages that the log has no room for are not logged: a front end that makes its log too small loses its own guest's data.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringway_reactor::shared::SharedMemory;

/// Bytes that one bit stands for (VHOST_LOG_PAGE).
const PAGE: u64 = 4096;

/// A front end's log.
#[derive(Debug)]
pub struct DirtyLog {
    memory: Arc<SharedMemory>,
    /// Of its first byte in the mapping; a multiple of 8.
    offset: usize,
    /// Whole words.
    words: usize,
}

impl DirtyLog {
    /// The log in `bytes` bytes of `memory` at `offset`.
    ///
    /// # Panics
    /// If they do not lie in it, or do not start on a word.
    #[must_use]
    pub fn new(memory: Arc<SharedMemory>, offset: usize, bytes: usize) -> DirtyLog {
        assert!(offset.is_multiple_of(8) && offset.checked_add(bytes).is_some_and(|end| end <= memory.len()));
        DirtyLog { memory, offset, words: bytes / 8 }
    }

    /// The `len` bytes at guest address `addr` were written to, before this.
    pub fn mark(&self, addr: u64, len: u64) {
        let Some(last) = len.checked_sub(1) else { return };
        let (mut page, last) = (addr / PAGE, addr.saturating_add(last) / PAGE);
        while page <= last {
            let word = page / 64;
            if word >= self.words as u64 {
                return;
            }
            let up_to = last.min(word * 64 + 63);
            let count = up_to - page + 1;
            let bits = (u64::MAX >> (64 - count)) << (page % 64);
            let at = self.offset + word as usize * 8;
            // The bits are numbered by bytes, so that words are little-endian. Release: what was written to the pages comes
            // before their bits; the front end takes bits by an atomic exchange.
            self.memory.fetch_or_u64(at, bits.to_le(), Ordering::Release);
            page = up_to + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_that_a_range_touches_has_its_bit() {
        let (_fd, memory) = SharedMemory::create("log", 4096).unwrap();
        let log = DirtyLog::new(Arc::clone(&memory), 8, 16);
        for (addr, len) in
            [(0, 1), (4095, 2), (63 * PAGE, 2 * PAGE), (127 * PAGE, 1 << 30), (u64::MAX, 1), (9 * PAGE, 0)]
        {
            log.mark(addr, len);
        }
        let mut seen = [0; 32];
        memory.read(0, &mut seen);
        let mut expected = [0; 32];
        for page in [0, 1, 63, 64, 127] {
            expected[8 + page / 8] |= 1 << (page % 8);
        }
        assert_eq!(seen, expected, "nothing beyond the log, and nothing before it");
    }
}
