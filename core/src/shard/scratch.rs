//! Buffers of the shard's own: for read-modify-write, compare, map pages, journal groups and checkpoints.
//!
//! The pool of the reactor is shared with its clients, who may hold all of it while they wait for us. So that we never wait
//! for them in turn, a shard keeps reserves from the start: one that parts and map loads share, one each for the
//! journal and the checkpoint. Whoever holds a reserve waits for nothing but the device, and holds only one.

use ringway_reactor::buf::{Buf, BufPool};

use crate::limits::CLUSTER;

/// A buffer lent by [`Scratch`]; goes back by [`Scratch::give`].
#[derive(Debug)]
pub(crate) struct Lent {
    pub(crate) buf: Buf,
    /// What is left of the reserve while its front is lent.
    pub(crate) rest: Option<Buf>,
}

/// The reserve that parts and map loads share.
#[derive(Debug)]
pub(crate) struct Scratch {
    pool: &'static BufPool,
    reserve: Option<Buf>,
}

/// Bytes of a reserve: the largest stretch that goes through a scratch buffer at once.
pub(crate) const RESERVE_BYTES: usize = CLUSTER as usize;

impl Scratch {
    /// `reserve` has [`RESERVE_BYTES`].
    pub(crate) fn new(pool: &'static BufPool, reserve: Buf) -> Scratch {
        Scratch { pool, reserve: Some(reserve) }
    }

    /// A buffer of `len` bytes; `None` is pressure: somebody will give one back.
    pub(crate) fn take(&mut self, len: usize) -> Option<Lent> {
        assert!(len <= RESERVE_BYTES, "{len} bytes go through a scratch buffer of {RESERVE_BYTES}");
        if let Some(buf) = self.pool.get(len) {
            return Some(Lent { buf, rest: None });
        }
        let mut buf = self.reserve.take()?;
        let rest = buf.split_off(len);
        Some(Lent { buf, rest: Some(rest) })
    }

    /// Takes a buffer back.
    pub(crate) fn give(&mut self, lent: Lent) {
        if let Some(rest) = lent.rest {
            let mut buf = lent.buf;
            buf.join(rest);
            assert!(self.reserve.is_none() && buf.len() == RESERVE_BYTES, "the reserve comes back once and whole");
            self.reserve = Some(buf);
        }
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.reserve.is_some()
    }
}

#[cfg(test)]
mod tests {
    use ringway_reactor::buf::BufPoolConfig;

    use super::*;

    #[test]
    fn an_exhausted_pool_leaves_one_at_a_time_the_reserve() {
        let pool = BufPool::leak(&BufPoolConfig { classes: vec![(RESERVE_BYTES, 2)] }, 0);
        let mut scratch = Scratch::new(pool, pool.get(RESERVE_BYTES).unwrap());
        let client = pool.get(4096).unwrap();
        let lent = scratch.take(8192).unwrap();
        assert_eq!(lent.buf.len(), 8192);
        assert!(scratch.take(4096).is_none());
        scratch.give(lent);
        assert!(scratch.is_whole());
        drop(client);
        assert!(scratch.take(RESERVE_BYTES).is_some());
    }
}
