//! What passed, what failed, what was left out, and how long each step took.
//!
//! A step is begun and ended with a line; the report ends with one line per step that did not pass, and the sum.

use std::io::Write;
use std::time::{Duration, Instant};

/// Tests that ran inside one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// Tests the runner left out: a skip.
    pub(crate) skipped: u64,
}

impl Counts {
    pub(crate) const ONE: Counts = Counts { passed: 1, failed: 0, skipped: 0 };
}

/// Why a step failed, and what of it had passed before.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) counts: Counts,
    pub(crate) why: String,
}

impl From<String> for Failure {
    fn from(why: String) -> Failure {
        Failure { counts: Counts::default(), why }
    }
}

/// Whether a step may be left out on a CI machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Skip {
    /// There is no way to run it there; it is said aloud.
    AllowedInCi,
    /// On a CI machine it is a failure.
    FailsInCi,
}

pub(crate) struct Report {
    started: Instant,
    ci: bool,
    sum: Counts,
    remarks: Vec<String>,
}

impl Report {
    pub(crate) fn new() -> Report {
        Report {
            started: Instant::now(),
            ci: std::env::var("CI").is_ok_and(|value| value == "true"),
            sum: Counts::default(),
            remarks: Vec::new(),
        }
    }

    /// Runs one step that is itself the test.
    pub(crate) fn step(&mut self, name: &str, run: impl FnOnce() -> Result<(), String>) -> bool {
        self.counted(name, || run().map(|()| Counts::ONE).map_err(Failure::from))
    }

    /// Runs one step that counts tests of its own.
    pub(crate) fn counted(&mut self, name: &str, run: impl FnOnce() -> Result<Counts, Failure>) -> bool {
        self.say(&format!("begin {name}"));
        let begun = Instant::now();
        let (counts, why) = match run() {
            Ok(counts) => (counts, None),
            // A step may fail where no test of it did: it did not build, or it was killed.
            Err(Failure { mut counts, why }) => {
                counts.failed = counts.failed.max(1);
                (counts, Some(why))
            }
        };
        self.sum.passed += counts.passed;
        self.sum.failed += counts.failed;
        let took = begun.elapsed().as_secs_f64();
        if counts.skipped > 0 {
            self.skip(name, &format!("the runner left out {} tests", counts.skipped), Skip::FailsInCi);
        }
        match why {
            None => {
                self.say(&format!("PASS  {name} ({} passed, {took:.1} s)", counts.passed));
                true
            }
            Some(why) => {
                self.say(&format!("FAIL  {name} ({took:.1} s): {why}"));
                self.remarks.push(format!("FAIL  {name}: {why}"));
                false
            }
        }
    }

    /// Says that a step cannot run here.
    pub(crate) fn skip(&mut self, name: &str, why: &str, skip: Skip) {
        let remark = if self.ci && skip == Skip::FailsInCi {
            self.sum.failed += 1;
            format!("FAIL  {name}: skipped, which CI does not allow: {why}")
        } else {
            self.sum.skipped += 1;
            format!("SKIP  {name}: {why}")
        };
        self.say(&remark);
        self.remarks.push(remark);
    }

    /// Says what the caller asked to leave out.
    pub(crate) fn left_out(&mut self, what: &str) {
        self.say(&format!("LEFT OUT as asked: {what}"));
    }

    pub(crate) fn say(&self, what: &str) {
        say(self.started.elapsed(), what);
    }

    /// Prints the summary; true if nothing failed and something passed.
    pub(crate) fn finish(self) -> bool {
        self.say(if self.remarks.is_empty() { "done" } else { "done, with:" });
        for remark in &self.remarks {
            println!("    {remark}");
        }
        let Counts { passed, failed, skipped } = self.sum;
        if skipped > 0 {
            println!("{skipped} skipped");
        }
        self.note_for_caller();
        println!("{passed} passed, {failed} failed");
        failed == 0 && passed > 0
    }

    /// Appends the sum to the file `.ci/run` adds up.
    fn note_for_caller(&self) {
        let Some(path) = std::env::var_os("XTASK_COUNTS") else { return };
        let noted = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{} {}", self.sum.passed, self.sum.failed));
        if let Err(why) = noted {
            eprintln!("xtask: {}: {why}", path.display());
        }
    }
}

fn say(elapsed: Duration, what: &str) {
    println!("[{:7.1} s] {what}", elapsed.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ci: bool) -> Report {
        Report { started: Instant::now(), ci, sum: Counts::default(), remarks: Vec::new() }
    }

    #[test]
    fn a_skip_fails_on_ci_unless_it_is_the_allowed_one() {
        for (ci, skip, failed) in [
            (true, Skip::FailsInCi, 1),
            (true, Skip::AllowedInCi, 0),
            (false, Skip::FailsInCi, 0),
            (false, Skip::AllowedInCi, 0),
        ] {
            let mut report = report(ci);
            report.skip("step", "no reason", skip);
            assert_eq!(report.sum.failed, failed);
            assert_eq!(report.remarks.len(), 1);
        }
    }

    #[test]
    fn a_step_that_fails_without_a_failed_test_counts_as_one_failure() {
        let mut report = report(false);
        let counts = Counts { passed: 4, failed: 0, skipped: 0 };
        assert!(!report.counted("step", || Err(Failure { counts, why: "killed".into() })));
        assert_eq!((report.sum.passed, report.sum.failed), (4, 1));
        assert!(!report.finish());
    }

    #[test]
    fn a_report_in_which_nothing_ran_is_no_success() {
        assert!(!report(false).finish());
    }

    #[test]
    fn tests_left_out_by_a_runner_fail_on_ci() {
        let mut report = report(true);
        report.counted("step", || Ok(Counts { passed: 4, failed: 0, skipped: 2 }));
        assert!(!report.finish());
    }
}
