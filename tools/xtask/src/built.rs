//! Programs for tests that cargo does not run itself: those that the workspace's tests were built with. Any other choice of packages has
//! other features, and would build most of what there is once more.

use std::path::PathBuf;
use std::time::Duration;

use crate::command::{cargo, run, target_dir};

const LIMIT: Duration = Duration::from_secs(40 * 60);

/// A program or, as `examples/NAME`, an example; built, if it is not yet.
pub(crate) fn program(name: &str) -> Result<PathBuf, String> {
    run(cargo(["test", "--no-run", "--quiet", "--workspace", "--all-features"]), LIMIT)?;
    Ok(target_dir().join("debug").join(name))
}

/// A static library that the workspace's tests were built with; `program` has built it.
pub(crate) fn archive(name: &str) -> Result<PathBuf, String> {
    let folder = target_dir().join("debug/deps");
    let entries = std::fs::read_dir(&folder).map_err(|why| format!("{}: {why}", folder.display()))?;
    let prefix = format!("lib{name}-");
    let named = |path: &PathBuf| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        file.starts_with(&prefix) && file.ends_with(".a")
    };
    let built = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(named);
    let newest = built.max_by_key(|path| path.metadata().and_then(|file| file.modified()).ok());
    newest.ok_or_else(|| format!("{} has no {prefix}*.a", folder.display()))
}
