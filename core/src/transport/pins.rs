//! Memory of clients that is registered with this reactor's ring, so that the kernel need not look its pages up for each operation.
//!
//! A slice a turn: the kernel takes a moment for each, and whoever else is served here shall not notice. What cannot be registered
//! (the limit on locked memory, the size of the ring's table) is used by its plain addresses, in place all the same.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use ringway_reactor::io::{Io, IoError};
use ringway_reactor::shared::SharedMemory;

/// Bytes registered in one turn: well under a millisecond of the kernel's time where the pages are there.
pub(super) const SLICE: usize = 16 << 20;

/// What is to be registered of one memory.
#[derive(Debug)]
struct Wanted {
    memory: Arc<SharedMemory>,
    left: Range<usize>,
    /// Parts whose pages its owner has not allocated are left out: nobody allocates for a stranger.
    present_only: bool,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Pins {
    wanted: VecDeque<Wanted>,
    held: Vec<(Arc<SharedMemory>, u64)>,
    /// One refusal was told; they come by the dozen.
    told: bool,
}

impl Pins {
    /// Registers this part, when there is time.
    pub(super) fn want(&mut self, memory: &Arc<SharedMemory>, part: Range<usize>, present_only: bool) {
        self.wanted.push_back(Wanted { memory: Arc::clone(memory), left: part, present_only });
    }

    /// Registers a slice. For once a turn.
    #[inline]
    pub(super) fn step<I: Io>(&mut self, io: &mut I) {
        if !self.wanted.is_empty() {
            self.register(io);
        }
    }

    fn register<I: Io>(&mut self, io: &mut I) {
        let Some(wanted) = self.wanted.front_mut() else { return };
        let Range { start, end } = wanted.left;
        let slice = start..end.min(start + SLICE);
        wanted.left.start = slice.end;
        let memory = Arc::clone(&wanted.memory);
        let is_wanted = !wanted.present_only || memory.is_populated(slice.clone());
        let is_done = wanted.left.is_empty();
        let bytes = slice.len() as u64;
        let refused = if is_wanted { io.register_memory(&memory, slice).err() } else { None };
        if refused.is_some() || is_done {
            self.wanted.pop_front();
        }
        match refused {
            Some(error) => self.tell(&memory, error),
            None if is_wanted => match self.held.iter_mut().find(|(held, _)| Arc::ptr_eq(held, &memory)) {
                Some((_, held)) => *held += bytes,
                None => self.held.push((memory, bytes)),
            },
            None => {}
        }
    }

    fn tell(&mut self, memory: &SharedMemory, error: IoError) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                bytes = memory.len(),
                %error,
                "memory of a client cannot be registered with the ring, whole or in part: it is used all the same, at some cost an \
                 operation; `ulimit -l` bounds what a user may lock"
            );
        }
    }

    /// Undoes it, for what has been registered of this memory.
    pub(super) fn release<I: Io>(&mut self, io: &mut I, memory: &Arc<SharedMemory>) {
        self.wanted.retain(|wanted| !Arc::ptr_eq(&wanted.memory, memory));
        if let Some(at) = self.held.iter().position(|(held, _)| Arc::ptr_eq(held, memory)) {
            self.held.swap_remove(at);
            io.release_memory(memory);
        }
    }

    /// Bytes registered.
    pub(super) fn bytes(&self) -> u64 {
        self.held.iter().map(|&(_, bytes)| bytes).sum()
    }

    /// Whether there is more to register.
    pub(super) fn busy(&self) -> bool {
        !self.wanted.is_empty()
    }
}
