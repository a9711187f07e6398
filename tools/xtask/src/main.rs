//! `cargo xtask`: one command for each thing that keeps the repository honest.
//!
//! Every subcommand ends with a line `N passed, N failed` and exits non-zero unless everything passed. Nothing is left out
//! without a line that says so; a SKIP counts as a failure where `CI=true`, but for the one named in `check`.

mod bench;
mod built;
mod check;
mod command;
mod debian_source;
mod direction;
mod fio_engine;
mod fuzz;
mod install;
mod ovsvolumedriver;
mod plain;
mod qemu;
mod report;
mod sanitize;
mod scripts;
mod soak;
mod test;
mod tgt;
mod tidy;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::report::Report;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Checks, tests and measurements of this repository", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Formatting, clippy, licences and advisories, direction of dependencies, documentation, tidiness
    Check,
    /// Every test: unit, simulation, black box, crash, the test VM, a short run of each fuzz target
    Test {
        /// Only what cargo runs: leave out the plain build, the test VM and the fuzz targets
        #[arg(long)]
        quick: bool,
    },
    /// The tests that run longer than two minutes, for as long as they are given
    Soak {
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=10_080))]
        minutes: u64,
    },
    /// Tests in the test VM, where Linux's own initiators attach
    Vm(vm::Options),
    /// Each fuzz target
    Fuzz {
        /// How long each target runs
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=604_800))]
        seconds: u64,
        /// Targets; all where none is named
        targets: Vec<String>,
    },
    /// The tests of the files with unsafe code, under the address sanitizer
    Sanitize {
        /// Only the crates that have them: leave out the target's tests that go through them
        #[arg(long)]
        short: bool,
    },
    /// The engine that Debian's fio loads, target/release/libringway-fio.so, and its tests
    FioEngine(fio_engine::Options),
    /// The backing store that Debian's tgt loads, target/tgt/bs_openvstorage.so, and its tests
    Tgt(tgt::Options),
    /// The C library libovsvolumedriver.so.1, with its header and its pkg-config file
    Ovsvolumedriver(ovsvolumedriver::Options),
    /// The block driver for openvstorage volumes that stock QEMU loads, and its tests
    Qemu(qemu::Options),
    /// The benchmarks; arguments go to the benchmark program. `rdma` counts what an operation costs over RDMA, in the test VM
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let task = Arguments::parse().task;
    if let Err(why) = std::env::set_current_dir(command::root()) {
        eprintln!("xtask: {}: {why}", command::root().display());
        return ExitCode::FAILURE;
    }
    let report = match task {
        Task::Check => check::run(),
        Task::Test { quick } => test::run(quick),
        Task::Soak { minutes } => soak::run(minutes),
        Task::Vm(options) => vm::run(&options),
        Task::Fuzz { seconds, targets } => fuzz::run(seconds, &targets),
        Task::Sanitize { short } => sanitize::run(short),
        Task::FioEngine(options) => fio_engine::run(&options),
        Task::Tgt(options) => tgt::run(&options),
        Task::Ovsvolumedriver(options) => ovsvolumedriver::run(&options),
        Task::Qemu(options) => qemu::run(&options),
        Task::Bench { arguments } => bench::run(&arguments),
    };
    finish(report)
}

fn finish(report: Report) -> ExitCode {
    if report.finish() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
