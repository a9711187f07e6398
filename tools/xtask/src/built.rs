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
