//! `cargo xtask sanitize`: the tests of the files with unsafe code, under the address sanitizer.
//!
//! Those files are the reactor's (rings, buffers, shared memory) and the shared-memory client's. The short form runs the tests of
//! these two crates; the whole adds those of the target that go through them: native rings and virtual machines' disks, hostile peers
//! included.

use std::process::Command;
use std::time::Duration;

use crate::command::{cargo, target_dir};
use crate::install;
use crate::report::Report;
use crate::test::sanitized;

/// Everything is built again, the standard library's part excepted.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// Crates and options of cargo for each part.
const SHORT: &[&str] = &["--package", "ringway-reactor", "--package", "ringway-shm-ring", "--lib", "--tests"];
const REST: &[&str] = &["--package", "ringway-core", "--test", "shm", "--test", "vhost"];

pub(crate) fn run(short: bool) -> Report {
    let mut report = Report::new();
    if report.step("what the sanitizer needs", || install::ensure(&[install::Group::Build])) {
        run_in(&mut report, short);
    }
    report
}

pub(crate) fn run_in(report: &mut Report, short: bool) {
    report.counted("unsafe files under the address sanitizer", || sanitized(command(SHORT), LIMIT));
    if short {
        report.left_out("the target's tests under the address sanitizer (cargo xtask sanitize)");
    } else {
        report.counted("rings and disks under the address sanitizer", || sanitized(command(REST), LIMIT));
    }
}

/// The flag is for nightly compilers; RUSTC_BOOTSTRAP makes the stable one take it. In a folder of its own, since everything is
/// built otherwise.
fn command(what: &[&str]) -> Command {
    let mut command = cargo(["test", "--target", "x86_64-unknown-linux-gnu", "--all-features", "--no-fail-fast"]);
    command.args(what).arg("--target-dir").arg(target_dir().join("asan"));
    // A test of speed, which the sanitizer takes away.
    command.args(["--", "--skip", "costs_far_less_than"]);
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address");
    // What a dropped ring still holds is leaked on purpose: the kernel may write to it.
    command.env("ASAN_OPTIONS", "detect_leaks=0");
    command
}
