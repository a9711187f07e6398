//! Buffers for simulated reactors: one pool a thread, used again by every world and by every later thread, since pools are
//! never freed and tests make tens of thousands of worlds on thousands of threads.

use std::sync::{Mutex, PoisonError};

use crate::buf::{BufPool, BufPoolConfig};

/// Pools that no thread uses.
static SPARE: Mutex<Vec<&'static BufPool>> = Mutex::new(Vec::new());

/// Gives the pool back when its thread ends.
struct Lease(&'static BufPool);

impl Drop for Lease {
    fn drop(&mut self) {
        // A pool with buffers out would make the next world depend on this one.
        if self.0.in_use() == 0 {
            SPARE.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
        }
    }
}

thread_local! {
    static MINE: Lease = Lease(spare());
}

fn spare() -> &'static BufPool {
    let spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    spare.unwrap_or_else(|| {
        let classes = vec![(4096, 512), (16 << 10, 128), (64 << 10, 64), (256 << 10, 32)];
        BufPool::leak(&BufPoolConfig { classes }, 0)
    })
}

/// The pool of this thread.
pub(super) fn mine() -> &'static BufPool {
    MINE.with(|lease| lease.0)
}
