//! `cargo xtask ovsvolumedriver`: libovsvolumedriver.so.1 with its header and its pkg-config file.
//!
//! The tests of the workspace link the same by the same script, with what was built for them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;

use crate::command::{self, cargo, root, target_dir};
use crate::report::Report;

#[derive(Args)]
pub(crate) struct Options {
    /// Where to put lib/ and include/ [default: target/release/ovsvolumedriver]
    #[arg(long, value_name = "FOLDER")]
    prefix: Option<PathBuf>,
}

const LIMIT: Duration = Duration::from_secs(30 * 60);

pub(crate) fn run(options: &Options) -> Report {
    let mut report = Report::new();
    run_in(&mut report, options.prefix.as_deref());
    report
}

pub(crate) fn run_in(report: &mut Report, prefix: Option<&Path>) {
    report.step("libovsvolumedriver builds", || {
        let folder = prefix.map_or_else(|| target_dir().join("release/ovsvolumedriver"), Path::to_owned);
        build(&folder)?;
        println!("{}", folder.join("lib/libovsvolumedriver.so.1").display());
        Ok(())
    });
}

/// A release of it, with header and pkg-config file.
pub(crate) fn build(folder: &Path) -> Result<(), String> {
    command::run(cargo(["build", "--release", "--package", "ringway-ovsvolumedriver"]), LIMIT)?;
    let mut link = Command::new(root().join("tools/ovsvolumedriver/link.sh"));
    link.arg(target_dir().join("release/libringway_ovsvolumedriver.a")).arg(folder);
    command::run(link, LIMIT)
}
