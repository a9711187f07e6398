//! `cargo xtask check`: everything that can be said about the code without running it.

use std::time::Duration;

use crate::command::{self, cargo, succeeds};
use crate::report::{Report, Skip};
use crate::{direction, install, tidy};

/// A cold build of every crate on two busy cores takes under ten minutes.
const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);

pub(crate) fn run() -> Report {
    let mut report = Report::new();
    if report.step("what the checks need", || install::ensure(&[install::Group::Build])) {
        source(&mut report);
        dependencies(&mut report);
    }
    report
}

fn source(report: &mut Report) {
    report.step("tidiness", || tidy::check(&command::root()));
    report.step("direction of dependencies", direction::check);
    report.step("formatting", || command::run(cargo(["fmt", "--all", "--check"]), BUILD_LIMIT));
    report.step("clippy", || {
        let arguments = ["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
        command::run(cargo(arguments), BUILD_LIMIT)
    });
    report.step("documentation", || {
        // Private items too, and links to them: who reads these pages works on the code.
        let mut command = cargo(["doc", "--workspace", "--no-deps", "--all-features", "--document-private-items"]);
        command.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links");
        command::run(command, BUILD_LIMIT)
    });
}

fn dependencies(report: &mut Report) {
    if !report.step("cargo-deny is installed", || install::ensure_cargo_tool("cargo-deny")) {
        return;
    }
    report.step("licences, bans and sources", || {
        command::run(cargo(["deny", "--log-level", "error", "check", "licenses", "bans", "sources"]), BUILD_LIMIT)
    });
    // The database is a git repository that not every build machine reaches. That is the one skip a CI run may have.
    if succeeds(cargo(["deny", "fetch", "db"])) {
        let check = || command::run(cargo(["deny", "--log-level", "error", "check", "advisories"]), BUILD_LIMIT);
        report.step("advisories", check);
    } else {
        let why = "the advisory database cannot be fetched from here; run `cargo deny check advisories` where it can";
        report.skip("advisories", why, Skip::AllowedInCi);
    }
}
