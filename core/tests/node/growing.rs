//! A pool that gets another device while it is served.

use ringway_core::control::{ControlAnswer, ControlErrorKind, ControlRequest};
use ringway_core::request::Status;
use ringway_reactor::sim::{CrashPoint, DiskConfig, DiskId, Ended, Fault, OpKind};

use crate::load::Driver;
use crate::rig::model::End;
use crate::rig::{MIB, Pending, Setup, Target, creation};
use crate::space::{PIECE, fill};

#[test]
fn a_full_pool_that_grows_while_it_is_served_takes_writes_again_without_a_restart() {
    let mut target = Target::new(1, Setup::default());
    let big = target.create("big", 1 << 30).id;
    let written = fill(&mut target, big, 1 << 30);
    target.pass_ns(2_000_000_000);
    assert!(target.metrics.pool.threshold_percent.get() >= 80, "{:?}", target.pool());
    let before = target.pool();
    assert_eq!(target.write(big, written, &vec![1; PIECE]), Status::CapacityExceeded);

    let grown = target.grow(128 * MIB).unwrap();
    // At once: the answer says that no shard believes any more that the pool is full.
    assert_eq!(target.write(big, written, &vec![7; PIECE]), Status::Success);
    let slabs = (128 * MIB - MIB - 4096) / (4 * MIB);
    assert_eq!((grown.devices, grown.size), (2, before.size + slabs * 4 * MIB));
    let shown = target.pool();
    assert_eq!((shown.size, shown.devices.len(), shown.growing), (grown.size, 2, None));
    assert_eq!(shown.devices[1].size, 128 * MIB);
    assert_eq!(target.metrics.pool.size_bytes.get(), grown.size);
    assert!(target.metrics.pool.threshold_percent.get() < 80, "{shown:?}");

    // All of the new space can be had, and then the pool is full again and says so.
    let more = fill(&mut target, big, 1 << 30);
    assert!(more > written + 100 * MIB, "{written} then {more}");
    target.pass_ns(2_000_000_000);
    assert!(target.metrics.pool.threshold_percent.get() >= 80, "{:?}", target.pool());
    assert_eq!(target.flush(big), Status::Success);

    for power_loss in [false, true] {
        target = if power_loss { target.power_loss() } else { target.kill() };
        assert_eq!(target.pool().devices.len(), 2);
        for offset in (0..more).step_by(PIECE) {
            let expected = offset as u8 | 1;
            assert_eq!(target.read(big, offset, 4096), Ok(vec![expected; 4096]), "byte {offset}");
        }
    }
    target.stop();
}

#[test]
fn a_pool_grows_again_and_again_and_its_volumes_use_all_of_it() {
    let mut target = Target::new(2, Setup { reactors: 3, shards: 5, ..Setup::default() });
    let big = target.create("big", 1 << 30).id;
    for n in 1..5 {
        let written = fill(&mut target, big, 1 << 30);
        // Several slabs for each shard, or the first that gets none ends the filling.
        let grown = target.grow((32 + n) * 2 * MIB).unwrap();
        assert_eq!(u64::from(grown.devices), n + 1);
        assert!(fill(&mut target, big, 1 << 30) > written + 8 * MIB);
    }
    let mut target = target.restart();
    assert_eq!(target.pool().devices.len(), 5);
    assert_eq!(target.flush(big), Status::Success);
    target.stop();
}

#[test]
fn what_cannot_join_is_refused_and_the_pool_serves_on_and_grows_later() {
    let mut target = Target::new(3, Setup::default());
    let volume = target.create("a", 8 * MIB).id;
    let error = target.grow(MIB).unwrap_err();
    assert!(error.message.contains("at least"), "{error}");
    // One at a time.
    let first = target.ask_growth(32 * MIB);
    assert!(target.run_until_wanted(&first));
    let second = target.ask_growth(32 * MIB);
    target.run_until(|_| second.lock().unwrap().is_some());
    let second = second.lock().unwrap().take().unwrap().unwrap_err();
    assert_eq!(second.kind, ControlErrorKind::Busy, "{second}");
    assert!(target.pool().growing.is_some());
    target.prepare_device().unwrap();
    assert_eq!(target.write(volume, 0, &[1; 4096]), Status::Success);
    target.run_until(|_| first.lock().unwrap().is_some());
    assert!(matches!(first.lock().unwrap().take(), Some(Ok(ControlAnswer::Grown(_)))));
    assert_eq!(target.pool().devices.len(), 2);
    target.stop();
}

#[test]
fn h8_a_volume_made_meanwhile_that_the_new_device_would_tear_keeps_it_out() {
    let mut target = Target::new(4, Setup::default());
    let pending = target.ask_growth(32 * MIB);
    assert!(target.run_until_wanted(&pending));
    let mut large = creation("large", 8 * MIB, None);
    large.lba_bytes = 4096;
    target.call(ControlRequest::VolumeCreate(large)).unwrap();
    target.setup.disks[0] = DiskConfig { atomic_write_unit: 512, ..target.setup.disks[0].clone() };
    target.prepare_device().unwrap();
    target.run_until(|_| pending.lock().unwrap().is_some());
    let error = pending.lock().unwrap().take().unwrap().unwrap_err();
    assert_eq!(error.kind, ControlErrorKind::Invalid, "{error}");
    assert_eq!(target.pool().devices.len(), 1);
    target.restart().stop();
}

#[test]
fn after_a_failed_catalog_write_the_pool_has_not_grown_and_goes_on() {
    let mut target = Target::new(5, Setup::default());
    let volume = target.create("a", 8 * MIB).id;
    assert_eq!(target.write(volume, 0, &[1; 4096]), Status::Success);
    assert_eq!(target.flush(volume), Status::Success);
    target.pass_ns(1_000_000_000);
    let pending = target.ask_growth(32 * MIB);
    assert!(target.run_until_wanted(&pending));
    target.prepare_device().unwrap();
    target.world.inject(DiskId(0), OpKind::Write, 1, Fault::Error);
    target.run_until(|_| pending.lock().unwrap().is_some());
    let error = pending.lock().unwrap().take().unwrap().unwrap_err();
    assert_eq!(error.kind, ControlErrorKind::Internal, "{error}");
    assert_eq!(target.pool().devices.len(), 1);
    assert_eq!(target.write(volume, 0, &[2; 4096]), Status::Success);
    // Whether the record is in one copy is for the next opening to find out.
    let mut target = target.kill();
    assert!(target.pool().devices.len() <= 2);
    assert_eq!(target.read(volume, 0, 4096), Ok(vec![2; 4096]));
    target.stop();
}

#[test]
fn a_target_that_stops_while_it_grows_stops_in_good_order() {
    for prepared in [false, true] {
        let mut target = Target::new(6, Setup::default());
        target.create("a", 8 * MIB);
        let pending = target.ask_growth(32 * MIB);
        assert!(target.run_until_wanted(&pending));
        if prepared {
            target.prepare_device().unwrap();
        }
        target.stop();
        if prepared {
            let outcome = pending.lock().unwrap().take().unwrap();
            assert!(outcome.is_ok() || outcome.unwrap_err().kind == ControlErrorKind::Unavailable);
        }
        let Target { world, setup, reactors, .. } = target;
        drop(reactors);
        let mut target = Target::open(world, setup);
        assert_eq!(target.volumes().len(), 1);
        target.grow(32 * MIB).unwrap();
        target.stop();
    }
}

/// What became of one growth under load.
struct Outcome {
    answered: bool,
    crashed: bool,
}

/// Grows under load. `before` is the crash point before the device is prepared, `after` the one once it is.
fn grow_under_load(driver: &mut Driver, before: Option<CrashPoint>, after: Option<CrashPoint>) -> Outcome {
    let pending = driver.target().ask_growth(48 * MIB);
    let answered = |pending: &Pending| matches!(*pending.lock().unwrap(), Some(Ok(ControlAnswer::Grown(_))));
    let crashed = |pending: &Pending| Outcome { answered: answered(pending), crashed: true };
    assert!(driver.target().run_until_wanted(&pending));
    if let Some(point) = before {
        driver.target().world.crash_after(point);
    }
    if driver.target().prepare_device().is_err() {
        return crashed(&pending);
    }
    if let Some(point) = after {
        driver.target().world.crash_after(point);
    }
    for _ in 0..200 {
        if !driver.step().unwrap() {
            return crashed(&pending);
        }
    }
    let settled = driver.target().run(1_000_000, |_| pending.lock().unwrap().is_some());
    Outcome { answered: answered(&pending), crashed: settled == Ended::Crashed }
}

#[test]
fn a_crash_at_each_step_of_growing_under_load_leaves_a_whole_pool_with_the_device_or_without_it() {
    let mut outcomes = [0, 0, 0];
    for seed in 0..60 {
        let mut driver = Driver::new(1000 + seed, Setup::default());
        for _ in 0..60 {
            assert!(driver.step().unwrap());
        }
        let n = 1 + seed / 6;
        let (before, after) = match seed % 6 {
            // The device's own superblocks: two writes, two barriers.
            0 => (Some(CrashPoint::Submitted(1 + n % 5)), None),
            1 => (Some(CrashPoint::Completed(1 + n % 5)), None),
            // Everything behind, among the load's own operations.
            2 | 3 => (None, Some(CrashPoint::Submitted(n * 3))),
            _ => (None, Some(CrashPoint::Completed(n * 4))),
        };
        let outcome = grow_under_load(&mut driver, before, after);
        let end = if seed % 2 == 0 { End::Kill } else { End::PowerLoss };
        driver.crash(end).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        let devices = driver.target().pool().devices.len();
        assert!(devices == 2 || !outcome.answered, "seed {seed}: it was answered, and the device is not there");
        outcomes[devices - 1] += 1;
        outcomes[2] += usize::from(outcome.crashed);
        if devices == 1 {
            driver.target().grow(48 * MIB).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
        for _ in 0..60 {
            assert!(driver.step().unwrap());
        }
        driver.settle().unwrap();
        driver.check(End::None).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        driver.target().stop();
    }
    assert!(outcomes[0] > 10 && outcomes[1] > 10 && outcomes[2] > 40, "both happened: {outcomes:?}");
}
