//! `cargo xtask test`: every test there is, in one command.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::command::{cargo, describe, output, run_reading, succeeded, succeeds, target_dir};
use crate::report::{Counts, Failure, Report, Skip};
use crate::{fio_engine, fuzz, install, plain, qemu, sanitize, tgt, vm};

/// The crash tests replay tens of thousands of cuts; on two busy cores that stays far below this.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// Where tests write that they could not run: `skip` in tools/ringway/tests/common.
const SKIPS: &str = "RINGWAY_TEST_SKIPS";

/// What the builds of every test leave below the target folder, measured from nothing, and room for the pools of the tests.
const ROOM_GIB: u64 = 12;

/// A short run of each fuzz target: it proves that the target builds and that its seeds pass, and looks a little further.
const FUZZ_SECONDS: u64 = 15;

pub(crate) fn run(quick: bool) -> Report {
    let mut report = Report::new();
    if !report.step("room on the disk", room) {
        return report;
    }
    let groups: &[install::Group] = if quick {
        &[install::Group::Build]
    } else {
        &[install::Group::Build, install::Group::Vm, install::Group::Fuzz, install::Group::Bench, install::Group::Tgt]
    };
    if !report.step("what the tests need", || install::ensure(groups)) {
        return report;
    }
    workspace(&mut report);
    report.counted("orderings of the mailbox and of the native ring under loom", || runner(loom(), LIMIT, libtest));
    if quick {
        report.left_out(
            "the plain build, the test VM (cargo xtask vm), the fio engine (cargo xtask fio-engine), the QEMU driver \
             (cargo xtask qemu), tgt (cargo xtask tgt), the address sanitizer (cargo xtask sanitize) and the fuzz targets (cargo xtask fuzz)",
        );
    } else {
        report.step("plain build with gcc alone", plain::build);
        fio_engine::run_in(&mut report, &fio_engine::Options::default());
        qemu::run_in(&mut report, &qemu::Options::default());
        tgt::run_in(&mut report, &tgt::Options::default());
        vm::run_in(&mut report, &vm::Options::default());
        sanitize::run_in(&mut report, true);
        fuzz::run_in(&mut report, FUZZ_SECONDS, &[]);
    }
    report
}

/// A disk that fills in the middle fails in a hundred places, none of which says so.
fn room() -> Result<(), String> {
    let target = target_dir();
    std::fs::create_dir_all(&target).map_err(|error| format!("{}: {error}", target.display()))?;
    let kib = |program: &str, arguments: &[&str]| -> Result<u64, String> {
        let mut command = Command::new(program);
        command.args(arguments).arg(&target);
        let printed = output(command)?;
        let number = printed.split_whitespace().find_map(|word| word.parse::<u64>().ok());
        number.ok_or_else(|| format!("{program} printed no number: {printed}"))
    };
    let free = kib("df", &["-k", "--output=avail"])?;
    let built = kib("du", &["-sk"])?;
    if (free + built) >> 20 >= ROOM_GIB {
        return Ok(());
    }
    Err(format!(
        "{} is on a disk with {} MiB free and holds {} MiB: the builds of the tests need {ROOM_GIB} GiB together. Make room, or set \
         CARGO_TARGET_DIR to a larger disk",
        target.display(),
        free >> 10,
        built >> 10
    ))
}

/// Every interleaving of the atomics of the mailbox and of the native ring. With another cfg everything below it is built again, so in a folder of its own.
fn loom() -> Command {
    let mut command =
        cargo(["test", "--package", "ringway-reactor", "--package", "ringway-shm-ring", "--lib", "--target-dir"]);
    command.arg(target_dir().join("loom")).arg("loom_").env("RUSTFLAGS", "--cfg loom");
    command
}

/// Unit, simulation, crash and black-box tests: all that cargo knows of.
fn workspace(report: &mut Report) {
    let skips = target_dir().join("test-skips");
    let _ = std::fs::remove_file(&skips);
    run_workspace(report, &skips);
    // A test that cannot run on this machine says so in this file; no runner would show it.
    for line in std::fs::read_to_string(&skips).unwrap_or_default().lines() {
        let (name, why) = line.split_once(": ").unwrap_or((line, "no reason given"));
        report.skip(name, why, Skip::FailsInCi);
    }
}

fn run_workspace(report: &mut Report, skips: &Path) {
    let cargo = |arguments: &[&str]| {
        let mut command = cargo(arguments);
        command.env(SKIPS, skips);
        command
    };
    if succeeds(cargo(&["nextest", "--version"])) {
        report.counted("tests of the workspace", || {
            runner(cargo(&["nextest", "run", "--workspace", "--all-features", "--no-fail-fast"]), LIMIT, nextest)
        });
        report.counted("examples in the documentation", || {
            runner(cargo(&["test", "--doc", "--workspace", "--all-features", "--no-fail-fast"]), LIMIT, libtest)
        });
    } else {
        report.counted("tests of the workspace", || {
            runner(cargo(&["test", "--workspace", "--all-features", "--no-fail-fast"]), LIMIT, libtest)
        });
    }
}

/// Runs a `cargo test` of `sanitize`.
pub(crate) fn sanitized(command: Command, limit: Duration) -> Result<Counts, Failure> {
    runner(command, limit, libtest)
}

/// Runs the tests whose names have `filter` in them, one after the other.
pub(crate) fn selected(filter: &str, environment: (&str, &str), limit: Duration) -> Result<Counts, Failure> {
    let selected = ["test", "--workspace", "--all-features", "--no-fail-fast", filter];
    let mut command = cargo(selected);
    command.args(["--", "--nocapture", "--test-threads=1"]).env(environment.0, environment.1);
    runner(command, limit, libtest)
}

type Reader = fn(&str) -> Option<Counts>;

/// Runs a test runner, passes its output on and adds up its closing lines.
fn runner(command: Command, limit: Duration, read: Reader) -> Result<Counts, Failure> {
    let named = describe(&command);
    let mut counts = Counts::default();
    let result = run_reading(command, limit, |line| {
        if let Some(more) = read(line) {
            counts.passed += more.passed;
            counts.failed += more.failed;
            counts.skipped += more.skipped;
        }
        true
    });
    match result.and_then(|status| succeeded(&named, status)) {
        Ok(()) if counts.failed == 0 => Ok(counts),
        Ok(()) => Err(Failure { counts, why: format!("{named}: {} failed", counts.failed) }),
        Err(why) => Err(Failure { counts, why }),
    }
}

/// `Summary [   1.2s] 30 tests run: 27 passed (1 slow), 2 failed, 1 timed out, 0 skipped`
fn nextest(line: &str) -> Option<Counts> {
    let sums = line.trim_start().strip_prefix("Summary [")?.split_once(" run: ")?.1;
    let mut counts = Counts::default();
    for sum in sums.split(", ") {
        let (number, what) = sum.trim().split_once(' ')?;
        let number: u64 = number.parse().ok()?;
        match what.split(" (").next()? {
            "passed" => counts.passed += number,
            "skipped" => counts.skipped += number,
            _ => counts.failed += number,
        }
    }
    Some(counts)
}

/// `test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.01s`
fn libtest(line: &str) -> Option<Counts> {
    let sums = line.trim_start().strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut counts = Counts::default();
    for sum in sums.split("; ") {
        let Some((number, what)) = sum.trim().split_once(' ') else { continue };
        let Ok(number) = number.parse::<u64>() else { continue };
        match what {
            "passed" => counts.passed += number,
            "failed" => counts.failed += number,
            "ignored" => counts.skipped += number,
            _ => {}
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_of_nextest_is_read_whatever_went_wrong() {
        let line = "     Summary [  32.012s] 30 tests run: 26 passed (1 slow), 2 failed, 1 timed out, 1 exec failed, 3 skipped";
        assert_eq!(nextest(line), Some(Counts { passed: 26, failed: 4, skipped: 3 }));
        let line = "     Summary [   0.012s] 1 test run: 1 passed, 0 skipped";
        assert_eq!(nextest(line), Some(Counts { passed: 1, failed: 0, skipped: 0 }));
        assert_eq!(nextest("        PASS [   0.004s] core summary"), None);
    }

    #[test]
    fn the_closing_line_of_cargo_test_is_read() {
        let line = "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s";
        assert_eq!(libtest(line), Some(Counts { passed: 12, failed: 2, skipped: 1 }));
        assert_eq!(libtest("test core::works ... ok"), None);
    }
}
