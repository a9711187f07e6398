//! `cargo xtask fio-engine`: the shared object that Debian 12's fio loads, and its tests.
//!
//! No package has fio's headers, so its sources are fetched and configured. A test is a script in tools/fio-engine/tests whose name is the sentence it proves.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;

use crate::built;
use crate::command::{self, cargo, root, target_dir};
use crate::debian_source::Source;
use crate::report::Report;
use crate::{install, scripts};

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Only build it
    #[arg(long)]
    no_tests: bool,
    /// Tests whose names have one of these in them; all where none is given
    tests: Vec<String>,
}

/// As Debian 12 has it: the layout of its structures is checked where the engine is compiled.
const SOURCE: Source = Source {
    package: "fio=3.33-3",
    archive: "fio_3.33.orig.tar.gz",
    folder: "fio-3.33",
    place: "fio-engine",
    instead: "FIO_SOURCE",
};
const FETCH_LIMIT: Duration = Duration::from_secs(5 * 60);
const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);

pub(crate) fn run(options: &Options) -> Report {
    let mut report = Report::new();
    if report.step("what the fio engine needs", || install::ensure(&[install::Group::Build, install::Group::Bench])) {
        run_in(&mut report, options);
    }
    report
}

/// The engine with the library that the workspace's tests were built with, which are built already.
pub(crate) fn of_tests() -> Result<PathBuf, String> {
    link(&headers()?, &built::archive("ringway_fio_engine")?, &target_dir().join("fio-engine"))
}

pub(crate) fn run_in(report: &mut Report, options: &Options) {
    let mut headers = PathBuf::new();
    let mut engine = PathBuf::new();
    let mut ringway = PathBuf::new();
    let ready = report.step("headers of fio", || {
        headers = self::headers()?;
        Ok(())
    }) && report.step("fio engine builds", || {
        if options.no_tests {
            // rdma-core is opened by name where it runs: the engine needs it for transport=rdma alone.
            let build = ["build", "--release", "--package", "ringway-fio-engine", "--features", "rdma"];
            command::run(cargo(build), BUILD_LIMIT)?;
            let release = target_dir().join("release");
            engine = link(&headers, &release.join("libringway_fio_engine.a"), &release)?;
        } else {
            ringway = built::program("ringway")?;
            engine = of_tests()?;
        }
        println!("{}", engine.display());
        Ok(())
    });
    if ready && !options.no_tests {
        scripts::run_in(report, ("fio", "tools/fio-engine/tests"), &options.tests, |test| {
            scripts::run(Command::new(test), &[("RINGWAY", &ringway), ("ENGINE", &engine)])
        });
    }
}

/// The folder with fio's sources, configured.
fn headers() -> Result<PathBuf, String> {
    if let Some(given) = std::env::var_os(SOURCE.instead) {
        return Ok(given.into());
    }
    let sources = SOURCE.fetch()?;
    if sources.join("config-host.h").is_file() {
        return Ok(sources);
    }
    let mut configure = Command::new("./configure");
    configure.current_dir(&sources);
    // Hundreds of lines about libraries that the headers do not ask for.
    command::run_reading(configure, FETCH_LIMIT, |_| false)
        .and_then(|status| command::succeeded("configure", status))?;
    Ok(sources)
}

/// Compiles the engine and links it with what it calls, into `to`.
fn link(headers: &Path, archive: &Path, to: &Path) -> Result<PathBuf, String> {
    let folder = root().join("tools/fio-engine/c");
    std::fs::create_dir_all(to).map_err(|why| format!("{}: {why}", to.display()))?;
    let engine = to.join("libringway-fio.so");
    let mut gcc = Command::new("gcc");
    gcc.args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-D_GNU_SOURCE"]);
    gcc.arg("-include").arg(headers.join("config-host.h")).arg("-I").arg(headers).arg("-I").arg(&folder);
    gcc.arg("-o").arg(&engine).arg(folder.join("engine.c")).arg(archive);
    // Nothing of ours is seen by fio but the engine itself.
    gcc.args(["-Wl,--exclude-libs,ALL", "-Wl,--gc-sections", "-lpthread", "-ldl", "-lm", "-lgcc_s"]);
    command::run(gcc, BUILD_LIMIT)?;
    Ok(engine)
}
