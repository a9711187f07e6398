//! `cargo xtask fuzz`: the targets of core/fuzz, by cargo-fuzz.
//!
//! The committed seeds are read and never written: what a run finds goes to the target folder, crashes included.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{self, cargo, root, target_dir};
use crate::install;
use crate::report::Report;

/// Building a target with the address sanitizer takes minutes on two busy cores.
const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);
/// Beyond its own limit libFuzzer still finishes the input it is at.
const SLACK: Duration = Duration::from_secs(60);

pub(crate) fn run(seconds: u64, targets: &[String]) -> Report {
    let mut report = Report::new();
    if report.step("what fuzzing needs", || install::ensure(&[install::Group::Fuzz])) {
        run_in(&mut report, seconds, targets);
    }
    report
}

pub(crate) fn run_in(report: &mut Report, seconds: u64, chosen: &[String]) {
    let mut targets = Vec::new();
    let listed = report.step("fuzz targets and cargo-fuzz", || {
        targets = select(all_targets(&folder())?, chosen)?;
        install::ensure_cargo_tool("cargo-fuzz")
    });
    if !listed || !report.step("fuzz targets build", || command::run(cargo_fuzz("build", &[]), BUILD_LIMIT)) {
        return;
    }
    for target in targets {
        report.step(&format!("fuzz target {target}, {seconds} s"), || fuzz(&target, seconds));
    }
}

fn fuzz(target: &str, seconds: u64) -> Result<(), String> {
    let seeds = folder().join("seeds").join(target);
    let found = target_dir().join("fuzz/corpus").join(target);
    let crashes = target_dir().join("fuzz/crashes").join(target);
    for folder in [&found, &crashes] {
        std::fs::create_dir_all(folder).map_err(|why| format!("{}: {why}", folder.display()))?;
    }
    let mut command = cargo_fuzz("run", &[target]);
    // The first folder is where new inputs go.
    command.arg(found).arg(seeds).arg("--");
    command.arg(format!("-max_total_time={seconds}")).arg(format!("-artifact_prefix={}/", crashes.display()));
    // One input must neither hang nor eat the machine.
    command.args(["-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1", "-verbosity=0"]);
    command::run(command, BUILD_LIMIT + Duration::from_secs(seconds) + SLACK)
        .map_err(|why| format!("{why}\nits input is in {}", crashes.display()))
}

/// The sanitizer's flags are for nightly compilers; RUSTC_BOOTSTRAP makes the stable one take them.
fn cargo_fuzz(verb: &str, arguments: &[&str]) -> Command {
    let mut command = cargo(["fuzz", verb]);
    command.arg("--fuzz-dir").arg(folder()).arg("--target-dir").arg(target_dir().join("fuzz/build"));
    command.args(arguments).env("RUSTC_BOOTSTRAP", "1");
    command
}

fn folder() -> PathBuf {
    root().join("core/fuzz")
}

/// A target is a file in fuzz_targets; each has to have seeds.
fn all_targets(folder: &Path) -> Result<Vec<String>, String> {
    let sources = folder.join("fuzz_targets");
    let entries = std::fs::read_dir(&sources).map_err(|why| format!("{}: {why}", sources.display()))?;
    let mut targets: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    targets.sort();
    for target in &targets {
        let seeds = folder.join("seeds").join(target);
        if std::fs::read_dir(&seeds).map_or(0, Iterator::count) == 0 {
            return Err(format!("fuzz target {target} has no seeds: {} is empty", seeds.display()));
        }
    }
    if targets.is_empty() { Err(format!("{}: no fuzz target", sources.display())) } else { Ok(targets) }
}

fn select(all: Vec<String>, chosen: &[String]) -> Result<Vec<String>, String> {
    match chosen.iter().find(|name| !all.contains(name)) {
        Some(name) => Err(format!("no fuzz target {name}; there are: {}", all.join(", "))),
        None if chosen.is_empty() => Ok(all),
        None => Ok(chosen.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_of_the_repository_has_seeds() {
        assert!(all_targets(&folder()).is_ok_and(|targets| !targets.is_empty()));
    }

    #[test]
    fn an_unknown_target_is_refused_by_name() {
        let all = vec!["pdu".to_owned()];
        assert!(select(all.clone(), &["pud".to_owned()]).is_err_and(|why| why.contains("pud") && why.contains("pdu")));
        assert_eq!(select(all.clone(), &[]), Ok(all));
    }
}
