//! `cargo xtask qemu`: the block driver that stock QEMU loads, and its tests.
//!
//! The driver is built by tools/qemu/build, which fetches QEMU's headers as apt has them. A test is a script in tools/qemu/tests whose name
//! is the sentence it proves; each runs with the programs of both versions of QEMU that Debian 12 has, its own and that of backports.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use clap::Args;

use crate::command::{self, output, root, target_dir};
use crate::report::Report;
use crate::{built, install, ovsvolumedriver, scripts};

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Build a release for the installed QEMU and put it there, without tests
    #[arg(long, value_name = "FOLDER", conflicts_with = "tests")]
    prefix: Option<PathBuf>,
    /// Tests whose names have one of these in them; all where none is given
    tests: Vec<String>,
}

/// Of Debian 12, as apt calls them.
const SUITES: [&str; 2] = ["bookworm", "bookworm-backports"];
const BUILD_LIMIT: Duration = Duration::from_secs(10 * 60);

pub(crate) fn run(options: &Options) -> Report {
    let mut report = Report::new();
    let groups = [install::Group::Build, install::Group::Vm, install::Group::Bench];
    if let Some(prefix) = &options.prefix {
        report.step("the driver builds", || release(prefix));
    } else if report.step("what the tests of the driver need", || install::ensure(&groups)) {
        run_in(&mut report, options);
    }
    report
}

/// For the installed QEMU, with a library that is optimised.
pub(crate) fn release(prefix: &Path) -> Result<(), String> {
    ovsvolumedriver::build(&target_dir().join("release/ovsvolumedriver"))?;
    let mut build = Command::new(root().join("tools/qemu/build"));
    build.arg("--prefix").arg(prefix);
    command::run(build, BUILD_LIMIT)
}

pub(crate) fn run_in(report: &mut Report, options: &Options) {
    let work = target_dir().join("qemu-driver");
    let prefix = work.join("installed");
    let mut ringway = PathBuf::new();
    let mut programs = Vec::new();
    let ready = report.step("a target and the library for the tests of the QEMU driver build", || {
        ringway = built::program("ringway")?;
        let mut link = Command::new(root().join("tools/ovsvolumedriver/link.sh"));
        link.arg(built::archive("ringway_ovsvolumedriver")?).arg(work.join("library"));
        command::run(link, BUILD_LIMIT)
    }) && report.step("programs of both versions of QEMU", || {
        programs = SUITES.iter().map(|suite| stock(&work, suite)).collect::<Result<_, _>>()?;
        Ok(())
    }) && report.step("the QEMU driver builds", || build(&work, &prefix));
    if !ready {
        return;
    }
    scripts::run_in(report, ("the QEMU driver", "tools/qemu/tests"), &options.tests, |test| {
        with_both(&programs, |folder| {
            scripts::run(Command::new(test), &[("RINGWAY", &ringway), ("DRIVER", &prefix), ("QEMU", folder)])
        })
    });
}

/// Each mostly waits: both at a time.
fn with_both(programs: &[PathBuf], run: impl Fn(&Path) -> Result<(), String> + Sync) -> Result<(), String> {
    let run = &run;
    let ends: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = programs.iter().map(|folder| scope.spawn(move || run(folder))).collect();
        running.into_iter().map(|one| one.join().unwrap_or_else(|_| Err("its thread panicked".into()))).collect()
    });
    let failed: Vec<String> = SUITES
        .iter()
        .zip(ends)
        .filter_map(|(suite, end)| end.err().map(|why| format!("with the QEMU of {suite}: {why}")))
        .collect();
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
}

/// Where the programs of QEMU of this suite are.
fn stock(work: &Path, suite: &str) -> Result<PathBuf, String> {
    let mut fetch = Command::new(root().join("tools/qemu/stock"));
    fetch.arg(work).arg(suite);
    output(fetch).map(|printed| PathBuf::from(printed.trim()))
}

/// For both versions, which apt names.
fn build(work: &Path, prefix: &Path) -> Result<(), String> {
    let mut show = Command::new("apt-cache");
    show.args(["showsrc", "qemu"]).env("APT_CONFIG", work.join("apt/conf"));
    let shown = output(show)?;
    let versions: Vec<&str> = shown.lines().filter_map(|line| line.strip_prefix("Version: ")).collect();
    if versions.len() < SUITES.len() {
        return Err(format!("apt knows the sources of QEMU {versions:?}: those of {SUITES:?} are wanted"));
    }
    let mut build = Command::new(root().join("tools/qemu/build"));
    build.arg("--prefix").arg(prefix).arg("--work").arg(work).arg("--library").arg(work.join("library")).args(versions);
    command::run(build, BUILD_LIMIT)
}
