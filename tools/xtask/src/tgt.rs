//! `cargo xtask tgt`: the backing store that Debian 12's tgtd loads, and its tests.
//!
//! It is compiled against the headers of tgt, which no package has. A test is a script in tools/tgt/tests whose name is the sentence it
//! proves; it runs where the network, /run and /usr/lib/tgt are its own, so the manual's lines are run as they stand there.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;

use crate::built;
use crate::command::{self, root, target_dir};
use crate::debian_source::Source;
use crate::report::Report;
use crate::{install, ovsvolumedriver, scripts};

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Only build it
    #[arg(long)]
    no_tests: bool,
    /// Tests whose names have one of these in them; all where none is given
    tests: Vec<String>,
}

/// As Debian 12 has it: the layout of its structures is checked where the module is compiled.
const SOURCE: Source = Source {
    package: "tgt=1:1.0.85-1+deb12u1",
    archive: "tgt_1.0.85.orig.tar.gz",
    folder: "tgt-1.0.85",
    place: "tgt",
    instead: "TGT_SOURCE",
};
const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);

/// What was built.
pub(crate) struct Built {
    /// bs_openvstorage.so.
    pub(crate) module: PathBuf,
    /// The folder with libovsvolumedriver.so.1.
    pub(crate) library: PathBuf,
}

pub(crate) fn run(options: &Options) -> Report {
    let mut report = Report::new();
    if report.step("what tgt needs", || install::ensure(&[install::Group::Build, install::Group::Tgt])) {
        run_in(&mut report, options);
    }
    report
}

pub(crate) fn run_in(report: &mut Report, options: &Options) {
    let mut ringway = PathBuf::new();
    let mut built = None;
    let ready = report.step("headers of tgt", || sources().map(drop))
        && report.step("backing store of tgt builds", || {
            let made = if options.no_tests { released()? } else { with_programs_of_tests()? };
            println!("{}", made.module.display());
            built = Some(made);
            if !options.no_tests {
                ringway = built::program("ringway")?;
            }
            Ok(())
        });
    let Some(built) = built.filter(|_| ready && !options.no_tests) else { return };
    scripts::run_in(report, ("tgt", "tools/tgt/tests"), &options.tests, |test| {
        // Its own network, with all ports; its own mounts, with all folders.
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--"]).arg(test);
        scripts::run(command, &[("RINGWAY", &ringway), ("MODULE", &built.module), ("LIBRARY", &built.library)])
    });
}

/// With the library as users have it.
fn released() -> Result<Built, String> {
    let prefix = target_dir().join("tgt");
    ovsvolumedriver::build(&prefix)?;
    compile(&prefix)
}

/// With the library that the tests of the workspace were built with.
pub(crate) fn with_programs_of_tests() -> Result<Built, String> {
    built::program("ringway")?;
    let prefix = target_dir().join("tgt");
    let mut link = Command::new(root().join("tools/ovsvolumedriver/link.sh"));
    link.arg(built::archive("ringway_ovsvolumedriver")?).arg(&prefix);
    command::run(link, BUILD_LIMIT)?;
    compile(&prefix)
}

fn sources() -> Result<PathBuf, String> {
    std::env::var_os(SOURCE.instead).map_or_else(|| SOURCE.fetch(), |given| Ok(given.into()))
}

/// Compiles the module beside the library that it is linked with.
fn compile(prefix: &Path) -> Result<Built, String> {
    let module = prefix.join("bs_openvstorage.so");
    let mut compile = Command::new(root().join("tools/tgt/build.sh"));
    compile.arg(sources()?.join("usr")).arg(prefix).arg(&module);
    command::run(compile, BUILD_LIMIT)?;
    Ok(Built { module, library: prefix.join("lib") })
}
