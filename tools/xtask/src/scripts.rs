//! Tests that are scripts: each one's name is the sentence it proves, `rig.sh` is what they share.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{self, root};
use crate::report::Report;

/// None of them waits for longer than this.
const LIMIT: Duration = Duration::from_secs(5 * 60);

/// Runs the scripts in `folder` whose names have one of `chosen` in them, or all, each as a step of its own; `of` says what they test.
pub(crate) fn run_in(
    report: &mut Report,
    (of, folder): (&str, &str),
    chosen: &[String],
    run: impl Fn(&Path) -> Result<(), String>,
) {
    let mut tests = Vec::new();
    report.step(&format!("tests of {of}"), || {
        tests = select(&root().join(folder), chosen)?;
        Ok(())
    });
    for test in tests {
        let name = test.file_stem().unwrap_or_default().to_string_lossy().replace('_', " ");
        report.step(&format!("{of}: {name}"), || run(&test));
    }
}

/// Runs one of them with these variables.
pub(crate) fn run(mut command: Command, variables: &[(&str, &Path)]) -> Result<(), String> {
    command.envs(variables.iter().copied());
    command::run(command, LIMIT)
}

fn select(folder: &Path, chosen: &[String]) -> Result<Vec<PathBuf>, String> {
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
