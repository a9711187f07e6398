//! Memory of peers that is registered with the ring: which part of which is which entry of the table of buffers.
//!
//! Invariant: the parts of one memory do not overlap and are in order; an entry is one part's or free.

use std::ops::Range;
use std::sync::Arc;

use crate::shared::SharedMemory;

struct Part {
    range: Range<usize>,
    index: u16,
}

struct Memory {
    memory: Arc<SharedMemory>,
    parts: Vec<Part>,
}

/// See the module's description.
pub(super) struct Registered {
    /// By [`SharedMemory::number`], which no two that are mapped share.
    memories: Vec<Option<Memory>>,
    free: Vec<u16>,
}

impl Registered {
    /// Nothing, with room for as many entries.
    pub(super) fn new(entries: Range<u16>) -> Registered {
        Registered { memories: Vec::new(), free: entries.rev().collect() }
    }

    /// An entry that is free.
    pub(super) fn free_entry(&self) -> Option<u16> {
        self.free.last().copied()
    }

    /// The entry of [`Registered::free_entry`] has this part now.
    pub(super) fn insert(&mut self, memory: &Arc<SharedMemory>, range: Range<usize>) {
        let number = memory.number();
        if self.memories.len() <= number {
            self.memories.resize_with(number + 1, || None);
        }
        let held =
            self.memories[number].get_or_insert_with(|| Memory { memory: Arc::clone(memory), parts: Vec::new() });
        assert!(Arc::ptr_eq(&held.memory, memory), "a number is one memory's while that is mapped");
        assert!(held.parts.last().is_none_or(|last| last.range.end <= range.start), "parts come in order");
        let index = self.free.pop().expect("asked for before");
        held.parts.push(Part { range, index });
    }

    /// The entries that this memory had.
    pub(super) fn remove(&mut self, memory: &Arc<SharedMemory>) -> Vec<u16> {
        let held = self.memories.get_mut(memory.number()).and_then(Option::take);
        let entries: Vec<u16> = held.iter().flat_map(|held| &held.parts).map(|part| part.index).collect();
        self.free.extend(&entries);
        entries
    }

    /// The entry in which these bytes of a memory lie whole.
    #[inline]
    pub(super) fn find(&self, memory: &SharedMemory, at: usize, len: usize) -> Option<u16> {
        let held = self.memories.get(memory.number())?.as_ref()?;
        let behind = held.parts.partition_point(|part| part.range.start <= at);
        let part = &held.parts[behind.checked_sub(1)?];
        (at + len <= part.range.end).then_some(part.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_one_part_is_found_and_what_crosses_two_or_lies_in_none_is_not() {
        let (_one, memory) = SharedMemory::create("one", 1 << 20).unwrap();
        let (_two, other) = SharedMemory::create("two", 1 << 20).unwrap();
        let mut registered = Registered::new(5..8);
        assert_eq!(registered.find(&memory, 0, 1), None);
        for range in [4096..8192, 8192..16384] {
            assert!(registered.free_entry().is_some());
            registered.insert(&memory, range);
        }
        registered.insert(&other, 0..4096);
        assert_eq!(registered.free_entry(), None);
        for (at, len, entry) in [
            (0, 4096, None),
            (4096, 4096, Some(5)),
            (4096, 4097, None),
            (8191, 1, Some(5)),
            (8192, 8192, Some(6)),
            (12288, 8192, None),
            (16384, 1, None),
        ] {
            assert_eq!(registered.find(&memory, at, len), entry, "{len} bytes at {at}");
        }
        assert_eq!(registered.find(&other, 100, 100), Some(7));
        assert_eq!(registered.remove(&memory), [5, 6]);
        assert_eq!((registered.find(&memory, 4096, 1), registered.find(&other, 0, 1)), (None, Some(7)));
        assert!(registered.free_entry().is_some() && registered.remove(&memory).is_empty());
    }
}
