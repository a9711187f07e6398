//! `cargo xtask soak`: the tests that want more than two minutes.
//!
//! They are ordinary tests with `soak` in their name, and tests in the VM whose names begin so, which run a short form of themselves
//! under `cargo xtask test`. Here they find in RINGWAY_SOAK_SECONDS how long each of them may go on; those in the VM, where all is ten to
//! fifty times slower, at least ten minutes. The build is that of the tests: its debug assertions are wanted here, and it is there
//! already.

use std::time::Duration;

use crate::command::{cargo, output};
use crate::report::Report;
use crate::{install, test, vm};

/// Seconds that each soak test may take.
pub(crate) const SECONDS: &str = "RINGWAY_SOAK_SECONDS";
const FILTER: &str = "soak";
/// In the VM, at least.
const IN_VM_SECONDS_MIN: u64 = 600;
/// A build, and what a test takes over its time to stop and check.
const SLACK: Duration = Duration::from_secs(45 * 60);

pub(crate) fn run(minutes: u64) -> Report {
    let mut report = Report::new();
    let mut tests = 0;
    let listed = report.step("which tests soak", || {
        tests = count()?;
        if tests == 0 { Err(format!("no test has {FILTER} in its name")) } else { Ok(()) }
    });
    if listed {
        let each = (minutes * 60 / tests).max(1);
        report.say(&format!("{tests} soak tests, {each} s each"));
        report.counted("soak", || {
            let limit = Duration::from_secs(minutes * 60) + SLACK;
            test::selected(FILTER, (SECONDS, &each.to_string()), limit)
        });
        if report.step("what the test VM needs", || install::ensure(&[install::Group::Build, install::Group::Vm])) {
            vm::run_in(&mut report, &vm::Options::chosen(&["soak_"], Some(each.max(IN_VM_SECONDS_MIN))));
        }
    }
    report
}

fn count() -> Result<u64, String> {
    let list = output(cargo(["test", "--workspace", "--all-features", "--quiet", FILTER, "--", "--list"]))?;
    Ok(list.lines().filter(|line| line.ends_with(": test")).count() as u64)
}
