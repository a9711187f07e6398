//! How full the pool is: an event and a metric at 80, 90 and 95 percent, and a level that the transports tell their hosts.

use ringway_reactor::io::Instant;

use super::{Owner, Task};
use crate::directory::SpaceLevel;
use crate::event::{Event, EventKind};

/// A threshold is left only this far below it, or a pool at its edge would tell everybody again and again.
const HYSTERESIS: u64 = 2;
/// How often use is looked at.
const LOOK_NS: u64 = 500_000_000;

/// The highest threshold reached.
#[derive(Debug)]
pub(super) struct Thresholds {
    size: u64,
    level: SpaceLevel,
    next_look: Instant,
}

impl Thresholds {
    pub(super) fn new(size: u64) -> Self {
        Self { size, level: SpaceLevel::Below80, next_look: Instant(0) }
    }

    /// The pool has another size.
    pub(super) fn resize(&mut self, size: u64) {
        self.size = size;
    }

    pub(super) fn level(&self) -> SpaceLevel {
        self.level
    }

    pub(super) fn next_look(&self) -> Instant {
        self.next_look
    }

    /// The level at this use, if it is another one than before.
    fn changed(&mut self, used: u64) -> Option<SpaceLevel> {
        let percent = (u128::from(used) * 100).checked_div(u128::from(self.size)).unwrap_or(0) as u64;
        let (up, down) = (SpaceLevel::of_percent(percent), SpaceLevel::of_percent(percent + HYSTERESIS));
        // Up at the threshold itself, down only well below it.
        let level = if up > self.level { up } else { self.level.min(down) };
        (level != self.level).then(|| {
            self.level = level;
            level
        })
    }
}

/// The threshold that a level begins at, percent.
fn threshold(level: SpaceLevel) -> u64 {
    match level {
        SpaceLevel::Below80 => 0,
        SpaceLevel::Above80 => 80,
        SpaceLevel::Above90 => 90,
        SpaceLevel::Above95 => 95,
    }
}

impl Owner {
    /// Looks at the pool's use now and then.
    pub(super) fn check_thresholds(&mut self, now: Instant) {
        if now < self.thresholds.next_look {
            return;
        }
        self.thresholds.next_look = now.plus_ns(LOOK_NS);
        if self.look_at_use() {
            self.publish(None);
        }
    }

    /// Whether the level is another one now. It is told to metrics and log; who calls tells it to the hosts.
    pub(super) fn look_at_use(&mut self) -> bool {
        let used = self.metrics.used_bytes();
        let before = self.thresholds.level;
        let Some(level) = self.thresholds.changed(used) else { return false };
        let percent = threshold(level);
        if self.is_running() {
            let event = Event::new(EventKind::SpaceLevel, None, "").with_bytes(percent);
            self.tasks.push_back(Task::Say(event));
        }
        self.metrics.pool.threshold_percent.set(percent);
        let size = self.thresholds.size;
        if level > before {
            tracing::warn!(used, size, "the pool is more than {percent} % full");
        } else {
            tracing::info!(
                used,
                size,
                "the pool has space again: less than the next threshold above {percent} % is in use"
            );
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_told_once_on_the_way_up_and_once_on_the_way_down() {
        let mut thresholds = Thresholds::new(1000);
        let told: Vec<_> = [0, 799, 800, 810, 799, 800, 960, 949, 940, 929, 879, 779, 780, 0]
            .into_iter()
            .filter_map(|used| thresholds.changed(used).map(|level| (used, threshold(level))))
            .collect();
        assert_eq!(told, [(800, 80), (960, 95), (929, 90), (879, 80), (779, 0)]);
    }

    #[test]
    fn a_pool_that_grows_leaves_its_thresholds_and_meets_them_again() {
        let mut thresholds = Thresholds::new(1000);
        assert_eq!(thresholds.changed(960).map(threshold), Some(95));
        thresholds.resize(1100);
        assert_eq!(thresholds.changed(960).map(threshold), Some(80));
        thresholds.resize(2000);
        assert_eq!(thresholds.changed(960).map(threshold), Some(0));
        assert_eq!(thresholds.changed(1900).map(threshold), Some(95));
    }

    #[test]
    fn a_pool_without_space_is_not_full() {
        assert_eq!(Thresholds::new(0).changed(0), None);
    }
}
