//! The words of a ring: naturally aligned 64-bit words in shared memory, by byte offset.
//!
//! A trait, so that loom's own atomics can stand in for the mapping when the protocol is checked.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringway_reactor::shared::SharedMemory;

/// Words that both sides read and write.
pub trait Words {
    /// The word at byte `offset`.
    fn load(&self, offset: usize, order: Ordering) -> u64;

    /// Replaces the word at byte `offset`.
    fn store(&self, offset: usize, value: u64, order: Ordering);

    /// A sequentially consistent fence.
    fn fence(&self);
}

impl Words for SharedMemory {
    #[inline]
    fn load(&self, offset: usize, order: Ordering) -> u64 {
        self.load_u64(offset, order)
    }

    #[inline]
    fn store(&self, offset: usize, value: u64, order: Ordering) {
        self.store_u64(offset, value, order);
    }

    #[inline]
    fn fence(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}

impl<W: Words> Words for Arc<W> {
    #[inline]
    fn load(&self, offset: usize, order: Ordering) -> u64 {
        (**self).load(offset, order)
    }

    #[inline]
    fn store(&self, offset: usize, value: u64, order: Ordering) {
        (**self).store(offset, value, order);
    }

    #[inline]
    fn fence(&self) {
        (**self).fence();
    }
}
