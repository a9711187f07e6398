//! Whatever is done to volumes, snapshots and clones, in any order: each shows what it should, crashes or not, and nothing is kept
//! that nobody needs.

mod rig;
mod soak;

use rig::Setup;
use rig::lines::{Act, Lines};
use ringway_reactor::sim::{CrashPoint, Rng};

fn setup() -> Setup {
    let mut setup = Setup::new();
    setup.config.commit_interval_ns = 3_000_000;
    setup.journal_blocks = 96;
    setup
}

/// What the short sequences are made of: each kind of operation in the places where it meets others.
fn alphabet() -> Vec<Act> {
    vec![
        Act::Write { nth: 0, first: 8, count: 8, fua: false },
        Act::Write { nth: 0, first: 12, count: 6, fua: false },
        Act::Write { nth: 1, first: 9, count: 1, fua: false },
        Act::Discard { nth: 0, first: 8, count: 16 },
        Act::Zeroes { nth: 0, first: 4, count: 8 },
        Act::Zeroes { nth: 1, first: 8, count: 12 },
        Act::Flush { nth: 0 },
        Act::Cut { nth: 0 },
        Act::Cut { nth: 1 },
        Act::Remove { nth: 0 },
        Act::RollBack { nth: 0 },
        Act::Clone { nth: 0 },
        Act::Fill { nth: 0 },
        Act::Stream { nth: 0 },
        Act::Grow { nth: 0 },
    ]
}

/// What they begin with: nothing; data under a snapshot; a clone beside it that has been written to.
fn beginnings() -> Vec<Vec<Act>> {
    let data = Act::Write { nth: 0, first: 0, count: 24, fua: false };
    let (cut, clone) = (Act::Cut { nth: 0 }, Act::Clone { nth: 0 });
    let more = Act::Write { nth: 0, first: 10, count: 3, fua: false };
    let of_clone = Act::Write { nth: 1, first: 15, count: 9, fua: false };
    vec![vec![], vec![data, cut, more], vec![data, cut, clone, of_clone]]
}

fn run(seed: u64, acts: &[Act], ending: u64) {
    let told = std::panic::catch_unwind(|| {
        let mut lines = Lines::new(seed, setup());
        for &act in acts {
            assert!(lines.act(act));
            lines.check(None);
        }
        lines.check_differences();
        let lines = match ending {
            0 => lines,
            1 => lines.crash(false),
            _ => lines.crash(true),
        };
        lines.finish();
    });
    if told.is_err() {
        panic!("seed {seed}, ending {ending}: {acts:?}");
    }
}

#[test]
fn all_sequences_of_up_to_three_operations_show_what_a_plain_array_would() {
    let (alphabet, mut count) = (alphabet(), 0);
    for beginning in beginnings() {
        for &first in &alphabet {
            for &second in &alphabet {
                for &third in &alphabet {
                    let acts: Vec<Act> = beginning.iter().copied().chain([first, second, third]).collect();
                    run(count, &acts, count % 3);
                    count += 1;
                }
            }
        }
    }
    println!("{count} sequences");
}

fn any_act(rng: &mut Rng) -> Act {
    let nth = rng.below(3) as usize;
    let first = rng.below(30) as u32;
    let longest = if rng.one_in(3) { 24 } else { 9 };
    let count = 1 + rng.below(longest) as u32;
    match rng.below(24) {
        0..8 => Act::Write { nth, first, count, fua: rng.one_in(5) },
        8 => Act::Write { nth, first: first / 8 * 8, count: 8, fua: false },
        9..11 => Act::Discard { nth, first, count: count + 8 },
        11..13 => Act::Zeroes { nth, first, count },
        13 => Act::Flush { nth },
        14..17 => Act::Cut { nth },
        17 => Act::Remove { nth: rng.below(6) as usize },
        18 => Act::RollBack { nth: rng.below(6) as usize },
        19 => Act::Clone { nth: rng.below(4) as usize },
        20 => Act::Fill { nth },
        21 => Act::Stream { nth },
        22 => Act::Grow { nth },
        _ => Act::Tidy,
    }
}

#[test]
fn soak_long_sequences_with_crashes_between_show_what_a_plain_array_would() {
    for seed in soak::seeds(600) {
        let mut rng = Rng::new(seed);
        let mut setup = setup();
        if rng.one_in(3) {
            setup.config.map_cache_bytes = 1;
        }
        if rng.one_in(3) {
            setup.disk.logical_block = 4096;
        }
        let mut lines = Lines::new(seed, setup);
        for nth in 0..60 {
            let act = any_act(&mut rng);
            assert!(lines.act(act), "seed {seed}");
            if rng.one_in(4) {
                lines.check(None);
            }
            if rng.one_in(25) {
                let power_loss = rng.one_in(2);
                println!("seed {seed} after {nth}: crash, power loss {power_loss}");
                lines = lines.crash(power_loss);
            }
        }
        lines.check_differences();
        lines.finish();
    }
}

/// The same life is ended at each operation of the device.
fn every_point(seed: u64, power_loss: bool, point: fn(u64) -> CrashPoint) -> u64 {
    for n in 1.. {
        let mut rng = Rng::new(seed);
        let mut lines = Lines::new(seed, setup());
        lines.rig.world.crash_after(point(n));
        let mut acts = beginnings().swap_remove(1 + seed as usize % 2);
        acts.extend((0..50).map(|_| any_act(&mut rng)));
        acts.push(Act::Tidy);
        println!("seed {seed} at mutation {n}, power loss {power_loss}");
        if acts.into_iter().all(|act| lines.act(act)) {
            return n - 1;
        }
        lines.crash(power_loss).finish();
    }
    unreachable!("a life has an end")
}

#[test]
fn i1_i2_hold_for_snapshots_and_clones_when_the_process_dies_at_any_operation() {
    let both = [CrashPoint::Submitted as fn(u64) -> CrashPoint, CrashPoint::Completed];
    let crashes: u64 = (0..60).map(|seed| every_point(seed, false, both[seed as usize % 2])).sum();
    println!("{crashes} crashes");
    assert!(crashes > 800, "{crashes} crashes");
}

#[test]
fn i1_i2_hold_for_snapshots_and_clones_when_the_power_fails_at_any_operation() {
    let both = [CrashPoint::Submitted as fn(u64) -> CrashPoint, CrashPoint::Completed];
    let crashes: u64 = (100..160).map(|seed| every_point(seed, true, both[seed as usize % 2])).sum();
    println!("{crashes} crashes");
    assert!(crashes > 800, "{crashes} crashes");
}
