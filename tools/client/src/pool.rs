//! Buffers of sessions. A pool lives as long as the process, so one that a session has done with is the next one's.

use std::sync::{Mutex, MutexGuard, PoisonError};

use ringway_reactor::buf::{BufPool, BufPoolConfig};

/// Pools that nobody uses.
static UNUSED: Mutex<Vec<(BufPoolConfig, &'static BufPool)>> = Mutex::new(Vec::new());

fn unused() -> MutexGuard<'static, Vec<(BufPoolConfig, &'static BufPool)>> {
    // A panic elsewhere leaves a list that is whole.
    UNUSED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The buffers of one session. To be dropped after all that may have some of them.
pub(crate) struct Pool {
    config: BufPoolConfig,
    buffers: &'static BufPool,
}

impl Pool {
    pub(crate) fn take(config: BufPoolConfig) -> Pool {
        let mut unused = unused();
        let known = unused.iter().position(|(of, _)| *of == config).map(|at| unused.swap_remove(at).1);
        drop(unused);
        let buffers = known.unwrap_or_else(|| BufPool::leak(&config, 0));
        Pool { config, buffers }
    }

    pub(crate) fn buffers(&self) -> &'static BufPool {
        self.buffers
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        unused().push((self.config.clone(), self.buffers));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_one_after_the_other_use_the_same_memory() {
        let config = BufPoolConfig { classes: vec![(4096, 3)] };
        let first = Pool::take(config.clone());
        let second = Pool::take(config.clone());
        assert!(!std::ptr::eq(first.buffers(), second.buffers()));
        let was = first.buffers();
        drop(first);
        assert!(std::ptr::eq(Pool::take(config).buffers(), was));
    }
}
