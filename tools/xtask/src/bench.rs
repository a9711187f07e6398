//! `cargo xtask bench`: the benchmark program of perf, built as a release, with what it compares itself to.
//!
//! `cargo xtask bench rdma` is a test of the VM, the one place with RDMA: it counts what an operation costs, and compares its CPU time
//! with that of the kernel's target. Emulated times are no more than that.

use std::time::Duration;

use crate::command::{self, cargo, target_dir};
use crate::report::Report;
use crate::{install, ovsvolumedriver, qemu, vm};

/// Interleaved pairs and medians take their time.
const LIMIT: Duration = Duration::from_secs(4 * 3600);

pub(crate) fn run(arguments: &[String]) -> Report {
    if arguments == ["rdma"] {
        return vm::run(&vm::Options::chosen(&["over_rdma_an_operation_costs"], None));
    }
    let mut report = Report::new();
    if report.step("what the benchmarks need", || install::ensure(&[install::Group::Build, install::Group::Bench])) {
        // For the groups that need them, which run when they are named, or none is.
        let groups = || arguments.iter().take_while(|argument| argument.as_str() != "--");
        let all = !groups().any(|group| !group.starts_with('-'));
        let wanted = |name: &str| all || groups().any(|group| group == name);
        let driver = target_dir().join("release/qemu");
        if wanted("convert") && !report.step("the QEMU driver builds", || qemu::release(&driver)) {
            return report;
        }
        if wanted("library") {
            ovsvolumedriver::run_in(&mut report, None);
        }
        report.step("benchmarks", || {
            let mut command = cargo(["run", "--release", "--package", "ringway-perf", "--bin", "ringway-perf", "--"]);
            command.args(arguments).env("RINGWAY_QEMU", driver.join("bin/ringway-qemu"));
            command::run(command, LIMIT)
        });
    }
    report
}
