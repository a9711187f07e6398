//! `cargo xtask bench`: the benchmark program of perf, built as a release, with what it compares itself to.

use std::time::Duration;

use crate::command::{self, cargo};
use crate::install;
use crate::report::Report;

/// Interleaved pairs and medians take their time.
const LIMIT: Duration = Duration::from_secs(4 * 3600);

pub(crate) fn run(arguments: &[String]) -> Report {
    let mut report = Report::new();
    if report.step("what the benchmarks need", || install::ensure(&[install::Group::Build, install::Group::Bench])) {
        report.step("benchmarks", || {
            let mut command = cargo(["run", "--release", "--package", "ringway-perf", "--bin", "ringway-perf", "--"]);
            command.args(arguments);
            command::run(command, LIMIT)
        });
    }
    report
}
