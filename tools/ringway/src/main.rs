//! The Ringway daemon and its command line, one binary.
//!
//! `cli` says what there is, each command has a module, `failure` has the exit codes.

mod api;
mod attached;
mod backend;
mod bench;
mod cli;
mod client;
mod config;
mod demo;
mod doctor;
mod endpoint;
mod engine;
mod events;
mod export;
mod failure;
mod front;
mod inspect;
mod libvirt_xml;
mod logging;
mod metrics;
mod metrics_text;
mod output;
mod pool;
mod pool_show;
mod qemu_args;
mod remote;
mod runtime;
mod serve;
mod shell;
mod size;
mod snapshot;
mod snapshot_diff;
mod stream;
mod volume;
mod volume_image;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::failure::Failure;
use crate::output::Format;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return wrong_usage(&error),
    };
    let format = if cli.json { Format::Json } else { Format::Text };
    let result = match cli.command {
        Command::Demo(args) => demo::run(&args, format),
        Command::Serve(args) => serve::run(*args, engine::start),
        Command::Pool(command) => pool::run(command, format),
        Command::Volume(command) => volume::run(command, format),
        Command::Snapshot(command) => snapshot::run(command, format),
        Command::Stream(command) => stream::run(command, format),
        Command::Events(args) => events::run(&args, format),
        Command::Metrics(daemon) => metrics::run(&daemon, format),
        Command::Export(command) => export::run(command, format),
        Command::LibvirtXml(args) => libvirt_xml::run(&args, format),
        Command::QemuArgs(_) => qemu_args::run(format),
        Command::Backend(command) => backend::run(command, format),
        Command::Restore(args) => backend::restore(&args, format),
        Command::Completions(args) => {
            shell::completions(&args);
            Ok(())
        }
        Command::Man(args) => shell::man(&args, format),
        Command::Doctor(args) => doctor::run(&args, format),
        Command::Inspect(args) => inspect::run(&args, format),
        Command::Bench(args) => bench::run(*args, format),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            format.print_failure(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Help and version are answers; everything else is a failure like any other, in JSON where that was asked for.
fn wrong_usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && std::env::args_os().any(|arg| arg == "--json") {
        let failure = Failure::usage(error.to_string().trim().trim_start_matches("error: "));
        Format::Json.print_failure(&failure);
        return ExitCode::from(failure.exit_code());
    }
    // A closed stdout is no failure of ours.
    let _ = error.print();
    ExitCode::from(error.exit_code() as u8)
}
