//! Seeds for tests that may go on for as long as they are given: `cargo xtask soak`.

#![expect(clippy::disallowed_methods, reason = "how long a test goes on is no matter of the simulated clock")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Without RINGWAY_SOAK_SECONDS the first `usual` seeds, the same every time. With it, seeds that nobody has tried, one after
/// the other until the time is up; RINGWAY_SOAK_SEED says where to begin, to see a failure again.
pub(crate) fn seeds(usual: u64) -> Box<dyn Iterator<Item = u64>> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let Some(seconds) = number("RINGWAY_SOAK_SECONDS") else { return Box::new(0..usual) };
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
    let first = number("RINGWAY_SOAK_SEED").unwrap_or_else(now);
    let until = Instant::now() + Duration::from_secs(seconds);
    println!("soak for {seconds} s from seed {first}");
    Box::new((first..).take_while(move |&seed| seed == first || Instant::now() < until))
}
