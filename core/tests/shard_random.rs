//! Random commands against the model: overlapping, unaligned, across cuts, in little space, with crashes between.

mod rig;
mod soak;

use rig::model::{Driver, Load};
use rig::{Rig, Setup, volume};
use ringway_reactor::io::Io;
use ringway_reactor::sim::{Faults, Rng};
use std::sync::Arc;

fn run(seed: u64, setup: Setup, load: Load, steps: u64) -> Driver {
    let mut driver = Driver::new(seed, setup, load);
    for _ in 0..steps {
        driver.step().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    driver.settle().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    driver
}

fn check_and_drain(seed: u64, mut driver: Driver) -> Rig {
    driver.model.check(&mut driver.rig, false).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    driver.rig.drain_and_verify();
    driver.rig
}

fn wide() -> Setup {
    let mut setup = Setup::new();
    setup.volumes = vec![Arc::new(volume(1, 32 << 20, 512)), Arc::new(volume(2, 32 << 20, 512))];
    setup
}

#[test]
fn every_read_shows_what_the_model_allows() {
    for seed in 0..40 {
        let driver = run(seed, wide(), Load::default(), 600);
        assert!(driver.answered > 300);
        check_and_drain(seed, driver);
    }
}

#[test]
fn snapshots_that_come_and_go_under_load_leave_nothing_behind() {
    let mut dropped = 0;
    for seed in 1200..1240 {
        let mut setup = wide();
        if seed % 4 == 0 {
            setup.config.map_cache_bytes = 1;
        }
        let load = Load { removals: true, ..Load::default() };
        let mut driver = Driver::new(seed, setup, load);
        for life in 0..3 {
            for _ in 0..400 {
                driver.step().unwrap_or_else(|why| panic!("seed {seed} life {life}: {why}"));
            }
            if life < 2 {
                driver = driver.crash(life == 0).unwrap_or_else(|why| panic!("seed {seed} life {life}: {why}"));
            }
        }
        driver.settle().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        driver.model.check(&mut driver.rig, false).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        dropped += driver.rig.shard.stats().versions_dropped;
        driver.rig.look_over();
        driver.rig.settle_background();
        driver.model.check(&mut driver.rig, false).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        driver.rig.settle_and_verify();
    }
    assert!(dropped > 200, "{dropped} versions");
}

#[test]
fn a_shard_goes_on_through_crash_after_crash() {
    for seed in 100..130 {
        let mut driver = Driver::new(seed, wide(), Load::default());
        for life in 0..8 {
            for _ in 0..120 {
                driver.step().unwrap_or_else(|why| panic!("seed {seed} life {life}: {why}"));
            }
            let power_loss = driver.rng.one_in(2);
            driver = driver.crash(power_loss).unwrap_or_else(|why| {
                panic!("seed {seed} life {life}, {}: {why}", if power_loss { "power loss" } else { "kill" })
            });
        }
        check_and_drain(seed, driver);
    }
}

#[test]
fn a_tiny_map_cache_makes_parts_wait_and_never_fail() {
    for seed in 200..210 {
        let mut setup = wide();
        setup.config.map_cache_bytes = 1;
        let driver = run(seed, setup, Load::default(), 500);
        assert_eq!(driver.failed, driver.compare_failures, "seed {seed}");
        assert!(driver.rig.shard.stats().nodes_loaded > 5);
        check_and_drain(seed, driver);
    }
}

#[test]
fn h18_a_tiny_journal_makes_writes_wait_for_checkpoints_and_never_fail() {
    for seed in 300..310 {
        let mut setup = wide();
        setup.journal_blocks = 64;
        setup.config.commit_interval_ns = 1_000_000;
        let driver = run(seed, setup, Load { in_flight: 24, fua_one_in: 2, ..Load::default() }, 2500);
        assert_eq!(driver.failed, driver.compare_failures, "seed {seed}");
        assert!(driver.rig.shard.stats().checkpoints > 2, "{:?}", driver.rig.shard.stats());
        check_and_drain(seed, driver);
    }
}

#[test]
fn a_full_crash_log_makes_answers_wait_for_the_journal() {
    for seed in 400..410 {
        let mut setup = wide();
        setup.log_bytes = 256;
        let mut driver = Driver::new(seed, setup, Load::default());
        for life in 0..4 {
            for _ in 0..150 {
                driver.step().unwrap_or_else(|why| panic!("seed {seed} life {life}: {why}"));
            }
            driver = driver.crash(false).unwrap_or_else(|why| panic!("seed {seed} life {life}: {why}"));
        }
        check_and_drain(seed, driver);
    }
}

#[test]
fn h7_little_space_is_reused_through_the_quarantine_and_only_a_full_pool_fails() {
    let mut full = 0;
    for seed in 500..515 {
        let mut setup = wide();
        // 48 clusters for volumes that want 48, and each cut wants them again.
        setup.slabs_per_disk = 3;
        let driver = run(seed, setup, Load { errors: true, cuts: 2, ..Load::default() }, 800);
        full += u64::from(driver.failed > driver.compare_failures);
        check_and_drain(seed, driver);
    }
    assert!(full > 0, "this test wants to see a full pool too");
}

#[test]
fn sectors_of_512_bytes_work_on_a_device_with_blocks_of_4096() {
    for seed in 600..610 {
        let mut setup = wide();
        setup.disk.logical_block = 4096;
        let mut driver = run(seed, setup, Load::default(), 400);
        driver = driver.crash(seed % 2 == 0).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        check_and_drain(seed, driver);
    }
}

#[test]
fn h8_blocks_of_4096_bytes_are_never_torn_where_the_device_writes_them_whole() {
    for seed in 700..720 {
        let mut setup = wide();
        setup.volumes = vec![Arc::new(volume(1, 32 << 20, 4096)), Arc::new(volume(2, 32 << 20, 4096))];
        let mut driver = run(seed, setup, Load::default(), 300);
        driver = driver.crash(true).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        check_and_drain(seed, driver);
    }
}

#[test]
fn two_devices_and_a_torn_sector_unit_change_nothing() {
    for seed in 800..810 {
        let mut setup = wide();
        setup.disks = 2;
        setup.disk.atomic_write_unit = 512;
        let mut driver = run(seed, setup, Load::default(), 300);
        driver = driver.crash(seed % 2 == 0).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        check_and_drain(seed, driver);
    }
}

#[test]
fn errors_of_the_device_are_reported_and_nothing_else_is_lost() {
    for seed in 900..930 {
        let mut driver = Driver::new(seed, wide(), Load { errors: true, ..Load::default() });
        let faults = Faults { read_error: 10_000, write_error: 10_000, no_space: 2_000, ..Faults::default() };
        driver.rig.world.set_faults(driver.rig.disk(0), faults);
        for _ in 0..400 {
            driver.step().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        }
        driver.settle().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        driver.rig.world.set_faults(driver.rig.disk(0), Faults::default());
        let power_loss = seed % 2 == 0;
        driver = driver.crash(power_loss).unwrap_or_else(|why| panic!("seed {seed}, power loss {power_loss}: {why}"));
        check_and_drain(seed, driver);
    }
}

#[test]
fn clients_that_hold_every_buffer_do_not_stop_the_shard() {
    for seed in 1000..1005 {
        let mut setup = wide();
        setup.config.map_cache_bytes = 1;
        let mut driver = Driver::new(seed, setup, Load { in_flight: 40, ..Load::default() });
        let mut held = Vec::new();
        for _ in 0..400 {
            driver.step().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            while let Some(buf) = driver.rig.io.buffers().get(4096) {
                held.push(buf);
            }
            driver.settle().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            held.clear();
        }
        check_and_drain(seed, driver);
    }
}

#[test]
fn holes_are_punched_only_where_nothing_is() {
    for seed in 1100..1115 {
        let mut setup = wide();
        setup.config.punch_holes = true;
        setup.slabs_per_disk = 5;
        let mut driver = Driver::new(seed, setup, Load { errors: true, cuts: 1, ..Load::default() });
        for life in 0..4 {
            for _ in 0..200 {
                driver.step().unwrap_or_else(|why| panic!("seed {seed} life {life}: {why}"));
            }
            driver = driver.crash(life % 2 == 0).unwrap_or_else(|why| panic!("seed {seed} life {life}: {why}"));
        }
        check_and_drain(seed, driver);
    }
}

/// A shard, a load and a way to end that nobody chose.
fn any_shape(rng: &mut Rng) -> (Setup, Load) {
    let mut setup = wide();
    let lba = if rng.one_in(3) { 4096 } else { 512 };
    setup.volumes = (1..=2).map(|id| Arc::new(volume(id, 32 << 20, lba))).collect();
    setup.disks = 1 + rng.below(2) as u16;
    if rng.one_in(3) {
        setup.slabs_per_disk = 3 + rng.below(4) as u32;
    }
    if rng.one_in(3) {
        setup.journal_blocks = 64 + rng.below(64);
    }
    if rng.one_in(3) {
        setup.log_bytes = 256 << rng.below(6);
    }
    if rng.one_in(3) {
        setup.config.map_cache_bytes = 1;
    }
    setup.config.punch_holes = rng.one_in(2);
    setup.config.commit_interval_ns = 1_000_000 << rng.below(6);
    if lba == 512 && rng.one_in(3) {
        setup.disk.atomic_write_unit = 512;
    }
    // Space may be short in any of these.
    let load = Load {
        in_flight: 1 + rng.below(40) as usize,
        cuts: rng.below(5) as usize,
        fua_one_in: 1 + rng.below(16),
        errors: true,
        removals: rng.one_in(2),
        ..Load::default()
    };
    (setup, load)
}

#[test]
fn soak_a_shard_of_any_shape_goes_on_through_crash_after_crash() {
    for seed in soak::seeds(20) {
        let mut rng = Rng::new(seed);
        let (setup, load) = any_shape(&mut rng);
        let mut driver = Driver::new(seed, setup, load);
        for life in 0..1 + rng.below(6) {
            for _ in 0..rng.below(400) {
                driver.step().unwrap_or_else(|why| panic!("seed {seed} life {life}: {why}"));
            }
            let power_loss = rng.one_in(2);
            driver = driver
                .crash(power_loss)
                .unwrap_or_else(|why| panic!("seed {seed} life {life}, power loss {power_loss}: {why}"));
        }
        check_and_drain(seed, driver);
    }
}
