//! Buffers in the data area, and who has which part of it.
//!
//! Invariant: parts that were given out do not overlap, so that a [`Buffer`]'s slice is its own. The target writes to it only
//! while a command is in flight, and then the queue owns the buffer and nobody has its slice. A buffer that a lost target may still
//! write to is never given back.

use std::collections::BTreeMap;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use super::session::Shared;

const PAGE: u64 = 4096;

/// The free parts of a data area, by offset: pages, first fit, neighbours joined.
#[derive(Debug)]
pub(super) struct Arena(BTreeMap<u64, u64>);

impl Arena {
    pub(super) fn new(bytes: u64) -> Arena {
        Arena(BTreeMap::from([(0, bytes)]))
    }

    fn take(&mut self, len: u64) -> Option<u64> {
        let (&offset, &free) = self.0.iter().find(|&(_, &free)| free >= len)?;
        self.0.remove(&offset);
        if free > len {
            self.0.insert(offset + len, free - len);
        }
        Some(offset)
    }

    fn give_back(&mut self, mut offset: u64, mut len: u64) {
        if let Some((&before, &free)) = self.0.range(..offset).next_back()
            && before + free == offset
        {
            self.0.remove(&before);
            (offset, len) = (before, free + len);
        }
        if let Some(free) = self.0.remove(&(offset + len)) {
            len += free;
        }
        self.0.insert(offset, len);
    }
}

/// A piece of the data area that belongs to whoever has this.
pub struct Buffer {
    shared: Arc<Shared>,
    start: NonNull<u8>,
    offset: u64,
    len: u32,
}

// SAFETY: the bytes belong to the buffer alone; the mapping belongs to no thread and lives as long as `shared`.
unsafe impl Send for Buffer {}
// SAFETY: a shared buffer is only read.
unsafe impl Sync for Buffer {}

/// A buffer that was taken apart, for programs in other languages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawBuffer {
    /// Its first byte in this process.
    pub start: *mut u8,
    /// Its offset in the data area, for [`super::Queue::submit_raw`].
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

fn pages(len: u32) -> u64 {
    u64::from(len).next_multiple_of(PAGE)
}

impl Buffer {
    pub(super) fn take(shared: &Arc<Shared>, len: usize) -> Option<Buffer> {
        let len = u32::try_from(len).ok().filter(|&len| len > 0)?;
        let offset = shared.arena().take(pages(len))?;
        let start = shared.data_start().wrapping_add(offset as usize);
        let start = NonNull::new(start).expect("a mapping is not at 0");
        Some(Buffer { shared: Arc::clone(shared), start, offset, len })
    }

    /// Its offset in the data area.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes it apart; [`Buffer::from_raw`] puts it together again, or its part of the data area stays taken.
    #[must_use]
    pub fn into_raw(self) -> RawBuffer {
        let buffer = ManuallyDrop::new(self);
        // SAFETY: the buffer is not used again, so that its reference moves out of it; `from_raw` is given another.
        drop(unsafe { std::ptr::read(&buffer.shared) });
        RawBuffer { start: buffer.start.as_ptr(), offset: buffer.offset, len: buffer.len }
    }

    /// Undoes [`Buffer::into_raw`].
    ///
    /// # Safety
    /// `raw` came from a buffer of this client, was not put together since, and no command uses it.
    #[must_use]
    pub unsafe fn from_raw(client: &super::Client, raw: RawBuffer) -> Buffer {
        let start = NonNull::new(raw.start).expect("it came from a buffer");
        Buffer { shared: Arc::clone(&client.shared), start, offset: raw.offset, len: raw.len }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes of the mapping that `shared` keeps, given to this buffer alone; no command is in flight on it, since
        // the queue would own it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len as usize) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len as usize) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.shared.arena().give_back(self.offset, pages(self.len));
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes at {} of the data area)", self.len, self.offset)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_out_does_not_overlap_and_what_comes_back_joins_its_neighbours() {
        let mut arena = Arena::new(5 * PAGE);
        let parts: Vec<_> = (0..5).map(|_| arena.take(PAGE).unwrap()).collect();
        assert_eq!(parts, [0, PAGE, 2 * PAGE, 3 * PAGE, 4 * PAGE]);
        assert_eq!(arena.take(PAGE), None);
        for offset in [PAGE, 3 * PAGE, 2 * PAGE] {
            arena.give_back(offset, PAGE);
        }
        assert_eq!(arena.0, BTreeMap::from([(PAGE, 3 * PAGE)]));
        assert_eq!((arena.take(4 * PAGE), arena.take(2 * PAGE)), (None, Some(PAGE)));
        for (offset, len) in [(0, 1), (4 * PAGE, 1), (PAGE, 2)] {
            arena.give_back(offset, len * PAGE);
        }
        assert_eq!(arena.0, BTreeMap::from([(0, 5 * PAGE)]));
    }
}
