//! Buffer pools for runs that follow one another in one process: an arena is never given back, so it is used again.

use std::sync::Mutex;

use ringway_reactor::buf::{BufPool, BufPoolConfig, PAGE};

static IDLE: Mutex<Vec<(BufPoolConfig, &'static BufPool)>> = Mutex::new(Vec::new());

/// A pool in use by one run.
#[derive(Debug)]
pub struct Rented {
    config: BufPoolConfig,
    pool: &'static BufPool,
}

impl Rented {
    /// The pool; its index is 0.
    #[must_use]
    pub fn pool(&self) -> &'static BufPool {
        self.pool
    }
}

impl Drop for Rented {
    fn drop(&mut self) {
        // What a cancelled operation may still hold makes this pool useless for the next run; that is rare and only costs memory.
        if self.pool.in_use() == 0 {
            let mut idle = IDLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            idle.push((self.config.clone(), self.pool));
        }
    }
}

/// An idle pool of this shape, or a new one.
#[must_use]
pub fn rent(config: BufPoolConfig) -> Rented {
    let mut idle = IDLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let found = idle.iter().position(|(shape, _)| *shape == config).map(|at| idle.swap_remove(at).1);
    let pool = found.unwrap_or_else(|| BufPool::leak(&config, 0));
    Rented { config, pool }
}

/// What a host with so many operations of such a size needs: their buffers, and what its queues send from and receive into.
#[must_use]
pub fn for_host(depth: u32, block_bytes: u32, queues: u16) -> BufPoolConfig {
    let connections = usize::from(queues) + 1;
    // Trims take a page each for their range; the start sequence takes some.
    let mut classes = vec![(PAGE, depth as usize + 2 * connections + 8)];
    let mut add = |size: usize, count: usize| match classes.iter_mut().find(|class| class.0 == size) {
        Some(class) => class.1 += count,
        None => classes.push((size, count)),
    };
    add(16 << 10, 2 * connections);
    add(64 << 10, connections);
    add((block_bytes as usize).next_multiple_of(PAGE), depth as usize);
    classes.sort_unstable();
    BufPoolConfig { classes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_used_again_once_everything_is_back() {
        let config = for_host(3, 8192, 1);
        let first = rent(config.clone());
        let address = first.pool().arena().0;
        let kept = first.pool().get(100).unwrap();
        drop(first);
        let second = rent(config.clone());
        assert_ne!(second.pool().arena().0, address, "something of it is out");
        drop(kept);
        let address = second.pool().arena().0;
        drop(second);
        assert_eq!(rent(config).pool().arena().0, address);
    }
}
