//! `cargo xtask fio-engine`: the shared object that Debian 12's fio loads, and its tests.
//!
//! No package has fio's headers, so its sources are taken from where apt's others come from, by an apt whose state is in the build's
//! folder, and configured there. A test is a script in tools/fio-engine/tests whose name is the sentence it proves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;

use crate::built;
use crate::command::{self, cargo, output, root, target_dir};
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
const PACKAGE: &str = "fio=3.33-3";
const FOLDER: &str = "fio-3.33";
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
    if let Some(given) = std::env::var_os("FIO_SOURCE") {
        return Ok(given.into());
    }
    let work = target_dir().join("fio-engine");
    let sources = work.join(FOLDER);
    if sources.join("config-host.h").is_file() {
        return Ok(sources);
    }
    let io = |what: &Path, why: std::io::Error| format!("{}: {why}", what.display());
    for folder in ["apt/parts", "apt/lists/partial", "apt/archives/partial"] {
        fs::create_dir_all(work.join(folder)).map_err(|why| io(&work, why))?;
    }
    let parts = work.join("apt/parts/fio.sources");
    let mirror = mirror()?;
    let listed = format!(
        "Types: deb-src\nURIs: {mirror}\nSuites: bookworm\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    );
    fs::write(&parts, listed).map_err(|why| io(&parts, why))?;
    let status = work.join("apt/status");
    fs::write(&status, "").map_err(|why| io(&status, why))?;
    let conf = work.join("apt/conf");
    fs::write(&conf, configuration(&work.join("apt"))).map_err(|why| io(&conf, why))?;
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.arg("-qq").args(arguments).env("APT_CONFIG", &conf).current_dir(&work);
        command::run(command, FETCH_LIMIT)
    };
    apt(&["update"])?;
    apt(&["source", "--download-only", "--tar-only", PACKAGE])?;
    let mut tar = Command::new("tar");
    tar.args(["-xf", "fio_3.33.orig.tar.gz"]).current_dir(&work);
    command::run(tar, FETCH_LIMIT)?;
    let mut configure = Command::new("./configure");
    configure.current_dir(&sources);
    // Hundreds of lines about libraries that the headers do not ask for.
    command::run_reading(configure, FETCH_LIMIT, |_| false)
        .and_then(|status| command::succeeded("configure", status))?;
    Ok(sources)
}

/// Where this machine's apt has Debian 12 from.
fn mirror() -> Result<String, String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(REPO_URI)", "Codename: bookworm", "Origin: Debian"]);
    let listed = output(command)?;
    listed.lines().next().map(str::to_owned).ok_or_else(|| {
        "apt has no Debian 12 (bookworm) source; run apt-get update, or set FIO_SOURCE to configured sources of fio 3.33".to_owned()
    })
}

/// An apt with a state of its own, so that the machine's is left alone.
fn configuration(apt: &Path) -> String {
    let apt = apt.display();
    format!(
        "Dir::Etc::sourcelist \"/dev/null\"; Dir::Etc::sourceparts \"{apt}/parts\"; Dir::Etc::preferencesparts \"/dev/null\";\n\
         Dir::State::lists \"{apt}/lists\"; Dir::State::status \"{apt}/status\"; Dir::Cache \"{apt}\";\n\
         Dir::Cache::archives \"{apt}/archives\"; APT::Sandbox::User \"\"; Debug::NoLocking \"1\"; APT::Architecture \"amd64\";\n"
    )
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
