//! `cargo xtask fio-engine`: the shared object that Debian 12's fio loads, and its tests.
//!
//! No package has fio's headers, so its sources are fetched and configured. A test is a script in tools/fio-engine/tests whose name is the sentence it proves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;

use crate::built;
use crate::command::{self, cargo, root, target_dir};
use crate::debian_source::Source;
use crate::install;
use crate::report::Report;

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
const TEST_LIMIT: Duration = Duration::from_secs(5 * 60);

pub(crate) fn run(options: &Options) -> Report {
    let mut report = Report::new();
    if report.step("what the fio engine needs", || install::ensure(&[install::Group::Build, install::Group::Bench])) {
        run_in(&mut report, options);
    }
    report
}

pub(crate) fn run_in(report: &mut Report, options: &Options) {
    let mut headers = PathBuf::new();
    let fetched = report.step("headers of fio", || {
        headers = self::headers()?;
        Ok(())
    });
    let mut engine = PathBuf::new();
    let built = fetched
        && report.step("fio engine builds", || {
            engine = build(&headers)?;
            println!("{}", engine.display());
            Ok(())
        });
    if !built || options.no_tests {
        return;
    }
    let mut ringway = PathBuf::new();
    let served = report.step("a target for its tests builds", || {
        ringway = built::program("ringway")?;
        Ok(())
    });
    if !served {
        return;
    }
    let mut tests = Vec::new();
    report.step("tests of the fio engine", || {
        tests = select(&root().join("tools/fio-engine/tests"), &options.tests)?;
        Ok(())
    });
    for test in tests {
        let name = test.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        report.step(&format!("fio: {}", name.replace('_', " ")), || {
            let mut command = Command::new(&test);
            command.env("RINGWAY", &ringway).env("ENGINE", &engine);
            command::run(command, TEST_LIMIT)
        });
    }
}

/// Scripts whose names have one of `chosen` in them, or all.
pub(crate) fn select(folder: &Path, chosen: &[String]) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|why| format!("{}: {why}", folder.display()))?;
    let mut tests: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension().is_some_and(|is| is == "sh") && path.file_name().is_some_and(|name| name != "rig.sh")
        })
        .filter(|path| chosen.is_empty() || chosen.iter().any(|part| path.to_string_lossy().contains(part.as_str())))
        .collect();
    tests.sort();
    if tests.is_empty() { Err(format!("no test has one of {chosen:?} in its name")) } else { Ok(tests) }
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

/// Compiles the engine and links it with what it calls.
fn build(headers: &Path) -> Result<PathBuf, String> {
    command::run(cargo(["build", "--release", "--package", "ringway-fio-engine"]), BUILD_LIMIT)?;
    let folder = root().join("tools/fio-engine/c");
    let release = target_dir().join("release");
    let engine = release.join("libringway-fio.so");
    let mut gcc = Command::new("gcc");
    gcc.args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-D_GNU_SOURCE"]);
    gcc.arg("-include").arg(headers.join("config-host.h")).arg("-I").arg(headers).arg("-I").arg(&folder);
    gcc.arg("-o").arg(&engine).arg(folder.join("engine.c")).arg(release.join("libringway_fio_engine.a"));
    // Nothing of ours is seen by fio but the engine itself.
    gcc.args(["-Wl,--exclude-libs,ALL", "-Wl,--gc-sections", "-lpthread", "-ldl", "-lm", "-lgcc_s"]);
    command::run(gcc, BUILD_LIMIT)?;
    Ok(engine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_but_the_rig_is_a_test_and_a_name_that_none_has_is_an_error() {
        let folder = root().join("tools/fio-engine/tests");
        let all = select(&folder, &[]).expect("there are tests");
        assert!(all.len() > 5 && all.iter().all(|test| !test.ends_with("rig.sh")));
        assert_eq!(select(&folder, &["trimmed".to_owned()]).expect("there is one").len(), 1);
        assert!(select(&folder, &["no such".to_owned()]).is_err());
    }
}
