//! Buffer pools outlive everything that might still write to them, so they are never freed: a target that stops leaves its own
//! to the next one of this process.

use std::sync::{Mutex, OnceLock, PoisonError};

use ringway_reactor::buf::{BufPool, BufPoolConfig};

static SPARE: Mutex<Vec<&'static BufPool>> = Mutex::new(Vec::new());

/// A pool of about `bytes` for reactor `index`.
pub(super) fn take(index: usize, bytes: usize) -> &'static BufPool {
    let config = config(bytes);
    let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
    let fits = |pool: &&BufPool| pool.index() as usize == index && pool.bytes() == config.bytes() && pool.in_use() == 0;
    match spare.iter().position(fits) {
        Some(at) => spare.swap_remove(at),
        None => BufPool::leak(&config, index as u16),
    }
}

/// The reactor that had it is gone.
pub(super) fn give_back(pool: &'static BufPool) {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner).push(pool);
}

/// For the steps before anything is served.
pub(super) fn setup() -> &'static BufPool {
    static POOL: OnceLock<&'static BufPool> = OnceLock::new();
    POOL.get_or_init(|| BufPool::leak(&BufPoolConfig { classes: vec![(4096, 16), (256 << 10, 8)] }, 0))
}

/// The default mixture of sizes, scaled.
fn config(bytes: usize) -> BufPoolConfig {
    let model = BufPoolConfig::default();
    let whole = model.bytes();
    let scaled =
        |&(size, count): &(usize, usize)| (size, (count as u128 * bytes as u128 / whole as u128).max(8) as usize);
    BufPoolConfig { classes: model.classes.iter().map(scaled).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_has_every_size_however_small_it_is_and_is_used_again() {
        for bytes in [1 << 20, 64 << 20, 1 << 30] {
            assert!(config(bytes).classes.iter().all(|&(_, count)| count >= 8), "{bytes}");
        }
        assert_eq!(config(64 << 20).bytes(), BufPoolConfig::default().bytes());
        let pool = take(7, 4 << 20);
        give_back(pool);
        assert!(std::ptr::eq(take(7, 4 << 20), pool));
    }
}
