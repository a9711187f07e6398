//! Nanoseconds since the process began, read from the time stamp counter.
//!
//! `clock_gettime` costs 45 to 70 ns on virtual machines, a counter read 10 to 20. The counter is calibrated against
//! CLOCK_MONOTONIC and anchored to it again each second (history H16: a calibration that is 8 ppm off is a millisecond off after two minutes), so
//! that it never strays further than what the drift of one second makes. Where the counter is not invariant the clock falls
//! back to CLOCK_MONOTONIC itself. Deadlines that somebody is promised use CLOCK_MONOTONIC.
//!
//! Invariant: a clock never goes backwards, also across an anchoring. All clocks of a process share one origin.

use std::sync::OnceLock;
use std::time::{Duration, Instant as StdInstant};

use crate::io::Instant;

const ANCHOR_EVERY_NS: u64 = 1_000_000_000;
/// How long the first calibration watches both clocks. Its error, some 100 ns in 2 ms or 50 ppm, is gone after a second.
const FIRST_CALIBRATION: Duration = Duration::from_millis(2);

fn origin() -> StdInstant {
    static ORIGIN: OnceLock<StdInstant> = OnceLock::new();
    *ORIGIN.get_or_init(StdInstant::now)
}

/// CLOCK_MONOTONIC, on the scale of [`Instant`].
#[must_use]
pub fn monotonic() -> Instant {
    Instant(origin().elapsed().as_nanos() as u64)
}

/// The counter, calibrated; one a reactor.
#[derive(Debug)]
pub struct Clock {
    source: Source,
    /// What was last returned.
    last: u64,
}

#[derive(Debug)]
enum Source {
    Monotonic,
    Counter(Anchor),
}

/// `ns = anchor.ns + (ticks - anchor.ticks) * scale / 2^32`
#[derive(Debug)]
struct Anchor {
    ticks: u64,
    ns: u64,
    /// Nanoseconds a tick, 32 bits behind the point.
    scale: u64,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock {
    /// Calibrates, which takes 2 ms once a process, if the counter is invariant.
    #[must_use]
    pub fn new() -> Self {
        static SCALE: OnceLock<Option<u64>> = OnceLock::new();
        let scale = *SCALE.get_or_init(|| {
            if !counter::is_invariant() {
                tracing::warn!("the time stamp counter is not invariant here: using CLOCK_MONOTONIC, 50 ns a read");
                return None;
            }
            let (ticks, ns) = pair();
            std::thread::sleep(FIRST_CALIBRATION);
            let (ticks_later, ns_later) = pair();
            (ticks_later > ticks).then(|| scale_of(ticks_later - ticks, ns_later - ns))
        });
        let source = match scale {
            Some(scale) => {
                let (ticks, ns) = pair();
                Source::Counter(Anchor { ticks, ns, scale })
            }
            None => Source::Monotonic,
        };
        Self { source, last: monotonic().0 }
    }

    /// The time now.
    pub fn now(&mut self) -> Instant {
        let ns = match &mut self.source {
            Source::Monotonic => monotonic().0,
            Source::Counter(anchor) => {
                let ns = anchor.ns_at(counter::read());
                if ns.wrapping_sub(anchor.ns) > ANCHOR_EVERY_NS {
                    anchor.renew();
                }
                ns
            }
        };
        self.last = self.last.max(ns);
        Instant(self.last)
    }

    /// The time now, without the bookkeeping of [`Clock::now`].
    #[must_use]
    pub fn peek(&self) -> Instant {
        let ns = match &self.source {
            Source::Monotonic => monotonic().0,
            Source::Counter(anchor) => anchor.ns_at(counter::read()),
        };
        Instant(ns.max(self.last))
    }
}

impl Anchor {
    fn ns_at(&self, ticks: u64) -> u64 {
        let elapsed = ticks.saturating_sub(self.ticks);
        self.ns + ((u128::from(elapsed) * u128::from(self.scale)) >> 32) as u64
    }

    fn renew(&mut self) {
        let (ticks, ns) = pair();
        if ticks > self.ticks && ns > self.ns {
            *self = Anchor { ticks, ns, scale: scale_of(ticks - self.ticks, ns - self.ns) };
        }
    }
}

fn scale_of(ticks: u64, ns: u64) -> u64 {
    ((u128::from(ns) << 32) / u128::from(ticks)) as u64
}

/// Both clocks at one moment: the tightest of a few tries, so that an interrupt in between does not count.
fn pair() -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..8 {
        let before = counter::read();
        let ns = monotonic().0;
        let after = counter::read();
        let width = after.saturating_sub(before);
        if width < best.0 {
            best = (width, before + width / 2, ns);
        }
    }
    (best.1, best.2)
}

#[cfg(target_arch = "x86_64")]
mod counter {
    use std::arch::x86_64::{__cpuid, _rdtsc};

    /// CPUID 8000_0007H, EDX bit 8: ticks at one rate in every power state.
    pub(super) fn is_invariant() -> bool {
        let said_by_cpu = __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & (1 << 8) != 0;
        // A hypervisor may hide the bit while the kernel, which watches the counter, trusts it.
        let trusted_by_kernel =
            std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource")
                .is_ok_and(|name| name.trim() == "tsc");
        said_by_cpu || trusted_by_kernel
    }

    pub(super) fn read() -> u64 {
        // SAFETY: every x86_64 has the instruction; Linux leaves it open to user space.
        unsafe { _rdtsc() }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod counter {
    pub(super) fn is_invariant() -> bool {
        false
    }

    pub(super) fn read() -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_follows_clock_monotonic_and_never_goes_back() {
        let mut clock = Clock::new();
        let started = StdInstant::now();
        let mut last = clock.now();
        let mut worst = 0;
        while started.elapsed() < Duration::from_millis(1300) {
            let before = monotonic().0;
            let now = clock.now();
            let after = monotonic().0;
            assert!(now >= last && clock.peek() >= now);
            last = now;
            worst = worst.max(before.saturating_sub(now.0)).max(now.0.saturating_sub(after));
        }
        assert!(worst < 500_000, "{worst} ns off after an anchoring");
    }

    #[test]
    fn two_clocks_share_an_origin() {
        let (mut a, mut b) = (Clock::new(), Clock::new());
        let apart = a.now().0.abs_diff(b.now().0);
        assert!(apart < 5_000_000, "{apart} ns apart");
    }
}
