//! A crash at every operation: the same run is stopped at each submitted and each finished write, by death of the process and
//! by loss of power, opened again, checked against the model, and checked for leaks.

mod rig;

use std::sync::Arc;

use rig::model::{Driver, Load};
use rig::{Rig, Setup, volume};
use ringway_reactor::sim::{CrashPoint, Rng, World};

fn small() -> Setup {
    let mut setup = Setup::new();
    setup.journal_blocks = 96;
    setup.config.commit_interval_ns = 3_000_000;
    setup.volumes = vec![Arc::new(volume(1, 32 << 20, 512)), Arc::new(volume(2, 32 << 20, 512))];
    setup
}

/// Seeds a test tries: `RINGWAY_CRASH_SEEDS` for a longer run.
fn seeds(usual: u64) -> u64 {
    std::env::var("RINGWAY_CRASH_SEEDS").map_or(usual, |seeds| seeds.parse().expect("RINGWAY_CRASH_SEEDS is a number"))
}

/// Runs until the crash point or the end; false at the end.
fn run_to(driver: &mut Driver, steps: u64) -> Result<bool, String> {
    for _ in 0..steps {
        driver.step()?;
        if driver.rig.world.crashed() {
            return Ok(true);
        }
    }
    driver.settle()?;
    Ok(driver.rig.world.crashed())
}

fn every_point(seed: u64, power_loss: bool, point: fn(u64) -> CrashPoint) -> u64 {
    every_point_of(seed, &small(), &Load { cuts: 2, ..Load::default() }, power_loss, point)
}

fn every_point_of(seed: u64, setup: &Setup, load: &Load, power_loss: bool, point: fn(u64) -> CrashPoint) -> u64 {
    for n in 1.. {
        let mut driver = Driver::new(seed, setup.clone(), load.clone());
        driver.rig.world.crash_after(point(n));
        let told = |why: String| format!("seed {seed} at mutation {n}, power loss {power_loss}: {why}");
        let crashed = run_to(&mut driver, 220).map_err(told).unwrap_or_else(|why| panic!("{why}"));
        if !crashed {
            return n - 1;
        }
        let mut driver = driver.crash(power_loss).map_err(told).unwrap_or_else(|why| panic!("{why}"));
        // What recovery left is a shard like any other.
        if n % 8 == 0 {
            for _ in 0..40 {
                driver.step().map_err(told).unwrap_or_else(|why| panic!("{why}"));
            }
            driver.settle().map_err(told).unwrap_or_else(|why| panic!("{why}"));
            driver.model.check(&mut driver.rig, false).map_err(told).unwrap_or_else(|why| panic!("{why}"));
        }
        driver.rig.drain_and_verify();
    }
    unreachable!("a run has an end")
}

#[test]
fn i1_i2_hold_when_the_process_dies_at_any_submitted_operation() {
    let crashes: u64 = (0..seeds(8)).map(|seed| every_point(1000 * seed, false, CrashPoint::Submitted)).sum();
    assert!(crashes > 800, "{crashes} crashes");
}

#[test]
fn i1_i2_hold_when_the_process_dies_at_any_finished_operation() {
    let crashes: u64 = (0..seeds(8)).map(|seed| every_point(1000 * seed + 10, false, CrashPoint::Completed)).sum();
    assert!(crashes > 800, "{crashes} crashes");
}

#[test]
fn i1_i2_hold_when_the_power_fails_at_any_submitted_operation() {
    let crashes: u64 = (0..seeds(8)).map(|seed| every_point(1000 * seed + 20, true, CrashPoint::Submitted)).sum();
    assert!(crashes > 800, "{crashes} crashes");
}

#[test]
fn i1_i2_hold_when_the_power_fails_at_any_finished_operation() {
    let crashes: u64 = (0..seeds(8)).map(|seed| every_point(1000 * seed + 30, true, CrashPoint::Completed)).sum();
    assert!(crashes > 800, "{crashes} crashes");
}

#[test]
fn i1_i2_hold_at_any_operation_while_snapshots_go_and_their_versions_are_merged() {
    let load = Load { cuts: 4, removals: true, ..Load::default() };
    let mut crashes = 0;
    for seed in 0..seeds(3) {
        for (n, point) in
            [CrashPoint::Submitted as fn(u64) -> CrashPoint, CrashPoint::Completed].into_iter().enumerate()
        {
            for power_loss in [false, true] {
                crashes += every_point_of(7000 + 10 * seed + n as u64, &small(), &load, power_loss, point);
            }
        }
    }
    assert!(crashes > 400, "{crashes} crashes");
}

/// One run, and at each of its turns several contents that power loss could leave.
#[test]
fn i1_i2_hold_for_every_content_that_power_loss_may_leave_at_any_turn() {
    let mut images = 0u64;
    for seed in 200..200 + seeds(24) {
        let setup = small();
        let mut driver = Driver::new(seed, setup, Load { cuts: 2, ..Load::default() });
        let mut rng = Rng::new(seed);
        let mut before = (0, 0);
        for turn in 0..400 {
            driver.step().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            let now = driver.rig.world.mutations();
            if std::mem::replace(&mut before, now) == now {
                continue;
            }
            for branch in 0..3 {
                let image = driver.rig.world.power_loss_image(driver.rig.disk(0), &mut rng);
                let world = driver.rig.setup.world(seed ^ turn, &[image]);
                let mut rig = Rig::open(world, driver.rig.setup.clone());
                let checked = driver.model.check(&mut rig, true);
                checked.unwrap_or_else(|why| panic!("seed {seed} turn {turn} branch {branch}: {why}"));
                rig.drain_and_verify();
                images += 1;
            }
        }
    }
    println!("{images} images");
    assert!(images > 15_000, "{images} images");
}

/// Whenever the process dies, the newest checkpoint is found rotten: the one before has everything, at any moment of a life
/// that began with such a fall-back as well.
#[test]
fn h14_i1_i2_hold_when_the_newest_checkpoint_is_rotten_after_the_process_died() {
    let mut fallen_back = 0;
    for seed in 300..300 + seeds(24) {
        // A short journal wants many checkpoints.
        let setup = Setup { journal_blocks: 40, ..small() };
        let mut driver = Driver::new(seed, setup, Load { cuts: 2, ..Load::default() });
        let (mut rng, mut known) = (Rng::new(seed), 1);
        for life in 0..5 {
            let after = rng.below(400);
            let point = if rng.one_in(2) { CrashPoint::Submitted(after) } else { CrashPoint::Completed(after) };
            driver.rig.world.crash_after(point);
            let told = |why: String| format!("seed {seed} life {life}: {why}");
            run_to(&mut driver, 300).map_err(told).unwrap_or_else(|why| panic!("{why}"));
            // Two may not rot: before the next one, a checkpoint has to be made on top of what was fallen back to.
            let rot = |world: &World, setup: &Setup| {
                if let Some(before) = setup.rot_header_after(known, world) {
                    fallen_back += 1;
                    known = before;
                }
            };
            driver = driver.kill_and(rot).map_err(told).unwrap_or_else(|why| panic!("{why}"));
            assert_eq!(driver.rig.faulted, [], "seed {seed} life {life}: {:?}", driver.rig.notes);
        }
        driver.rig.drain_and_verify();
    }
    assert!(fallen_back > 60, "{fallen_back} times");
}

/// Slabs of four clusters, which empty all the time; what a shard gives back is overwritten at once by others.
fn crumbs() -> (Setup, Load) {
    let setup = Setup { slab_bytes: 256 << 10, slabs_per_disk: 128, reserve: 2, journal_blocks: 48, ..small() };
    (setup, Load { cuts: 0, forgetful: true, ..Load::default() })
}

#[test]
fn h7_i1_i2_hold_at_any_operation_of_a_shard_that_gives_slabs_back() {
    let (setup, load) = crumbs();
    let mut crashes = 0;
    for seed in 0..seeds(2) {
        for (n, point) in
            [CrashPoint::Submitted as fn(u64) -> CrashPoint, CrashPoint::Completed].into_iter().enumerate()
        {
            for power_loss in [false, true] {
                crashes += every_point_of(5000 + 10 * seed + n as u64, &setup, &load, power_loss, point);
            }
        }
    }
    assert!(crashes > 800, "{crashes} crashes");
}

#[test]
fn h7_a_shard_gives_slabs_back_and_takes_others_over_many_lives() {
    let (setup, load) = crumbs();
    let mut given_back = 0;
    for seed in 0..seeds(16) {
        let mut driver = Driver::new(6000 + seed, setup.clone(), load.clone());
        let (mut rng, mut known) = (Rng::new(seed), 1);
        for life in 0..6 {
            let told = |why: String| format!("seed {seed} life {life}: {why}");
            if rng.one_in(3) {
                driver.rig.world.crash_after(CrashPoint::Submitted(rng.below(500)));
            }
            run_to(&mut driver, 400).map_err(told).unwrap_or_else(|why| panic!("{why}"));
            given_back += driver.rig.given_back;
            let rot = rng.one_in(3);
            let next = if rng.one_in(2) {
                driver.crash(true)
            } else {
                driver.kill_and(|world, setup| {
                    // Two may not rot: before the next one, a checkpoint has to be made on top of what was fallen back to.
                    known = setup.rot_header_after(if rot { known } else { u64::MAX }, world).unwrap_or(known);
                })
            };
            driver = next.map_err(told).unwrap_or_else(|why| panic!("{why}"));
            assert_eq!(driver.rig.faulted, [], "seed {seed} life {life}: {:?}", driver.rig.notes);
        }
        driver.rig.drain_and_verify();
    }
    assert!(given_back > 80, "{given_back} slabs");
}
