//! The process or the machine dies at any moment: what was acknowledged, or flushed, is there (I1), and nothing else (I2).

use std::collections::BTreeSet;

use ringway_reactor::sim::CrashPoint;

use crate::load::Driver;
use crate::rig::model::End;
use crate::rig::{Setup, Target};
use crate::soak;

/// Rounds of load, each with an end at a random point.
fn rounds(seed: u64, ends: impl Fn(u64) -> End, setup: Setup) -> u64 {
    let mut driver = Driver::new(seed, setup);
    let mut rng = driver.target().world.rng();
    let mut crashes = 0;
    for round in 0..4 {
        let after = rng.below(500);
        let point = if rng.one_in(2) { CrashPoint::Submitted(after) } else { CrashPoint::Completed(after) };
        driver.target().world.crash_after(point);
        let end = ends(seed + round);
        let context = |why: String| format!("seed {seed} round {round} {end:?} {point:?}: {why}");
        let mut lives = true;
        for _ in 0..400 {
            lives = driver.step().map_err(context).unwrap_or_else(|why| panic!("{why}"));
            if !lives {
                break;
            }
        }
        crashes += u64::from(!lives);
        driver.crash(end).map_err(context).unwrap_or_else(|why| panic!("{why}"));
    }
    driver.target().stop();
    crashes
}

fn setup(seed: u64) -> Setup {
    Setup { reactors: 1 + seed as usize % 3, shards: 2 + (seed % 3) as u16, ..Setup::default() }
}

#[test]
fn i1_i2_hold_over_several_shards_when_the_process_dies() {
    let crashes: u64 = (0..12).map(|seed| rounds(seed, |_| End::Kill, setup(seed))).sum();
    assert!(crashes > 24, "{crashes} crashes");
}

#[test]
fn i1_i2_hold_over_several_shards_when_the_power_fails() {
    let crashes: u64 = (100..112).map(|seed| rounds(seed, |_| End::PowerLoss, setup(seed))).sum();
    assert!(crashes > 24, "{crashes} crashes");
}

#[test]
fn i1_i2_hold_when_the_process_dies_and_then_the_power_fails() {
    let either = |n: u64| if n.is_multiple_of(2) { End::Kill } else { End::PowerLoss };
    let crashes: u64 = (200..212).map(|seed| rounds(seed, either, setup(seed))).sum();
    assert!(crashes > 24, "{crashes} crashes");
}

#[test]
fn c15_no_boot_uses_the_generation_of_another_however_early_it_dies() {
    for power_loss in [false, true] {
        let mut generations = BTreeSet::new();
        let mut target = Target::new(300, Setup::default());
        target.create("vm1", 1 << 20);
        generations.insert(target.generation);
        let Target { world, setup, reactors, .. } = target;
        let end = || if power_loss { world.power_loss() } else { world.kill() };
        end();
        drop(reactors);
        let mut opened = 0;
        for n in 1..40 {
            world.quiesce();
            world.crash_after(CrashPoint::Completed(n));
            match world.until_crash(|| Target::open(world.clone(), setup.clone())) {
                Ok(target) => {
                    assert!(generations.insert(target.generation), "generation {} twice", target.generation);
                    assert!(generations.last() == Some(&target.generation), "generations only grow");
                    opened += 1;
                    end();
                    drop(target);
                }
                Err(_) => end(),
            }
        }
        assert!(opened > 5, "{opened} openings came to their end");
    }
}

#[test]
fn soak_i1_i2_hold_over_several_shards_through_any_ends() {
    for seed in soak::seeds(6) {
        let any = |n: u64| match n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 62 {
            0 | 1 => End::PowerLoss,
            _ => End::Kill,
        };
        rounds(seed, any, setup(seed));
    }
}
