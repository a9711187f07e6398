//! `cargo xtask bench`: measures every bar, prints a table, and writes JSON where asked.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Parser;
use ringway_perf::bars::{self, Bar, Failed, GROUPS, Options};
use ringway_perf::cpu;

/// Sets Ringway beside its peers on this machine; perf/METHOD.md says how.
#[derive(Parser, Debug)]
#[command(name = "ringway-perf")]
struct Arguments {
    /// Groups of bars: host, null, file, file-served, inprocess, shm, vhost, nbd, library, open, ram, idle, snapshots, snapshot-times,
    /// clones, convert [default: all]
    #[arg(value_name = "GROUP")]
    groups: Vec<String>,
    /// Seconds of each side of each pair
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Interleaved pairs of each bar
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    pairs: u8,
    /// Write all figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The target's binary [default: built from this workspace]
    #[arg(long, value_name = "FILE")]
    target: Option<PathBuf>,
    /// The folder whose file system is measured [default: where builds go]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// GiB of the file and of the volume that are compared
    #[arg(long, default_value_t = 4)]
    file_gib: u64,
    /// GiB that the opened pool maps; its map pages take a two-thousandth of it on disk
    #[arg(long, default_value_t = 1024)]
    mapped_gib: u64,
    /// The folder with libovsvolumedriver [default: where `cargo xtask ovsvolumedriver` puts it]
    #[arg(long, value_name = "DIR")]
    library: Option<PathBuf>,
    /// Core of the target [default: the first allowed one]
    #[arg(long)]
    target_core: Option<usize>,
    /// Core of the client [default: the last allowed one]
    #[arg(long)]
    client_core: Option<usize>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match measure(&arguments) {
        Ok(bars) if bars.iter().all(|bar| bar.met() != Some(false)) => ExitCode::SUCCESS,
        Ok(_) => {
            eprintln!("a bar was missed");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<Vec<Bar>, Failed> {
    let known = GROUPS.map(|(name, _)| name);
    if let Some(unknown) = arguments.groups.iter().find(|group| !known.contains(&group.as_str())) {
        return Err(format!("there is no group {unknown:?}; there are {}", known.join(", ")).into());
    }
    let cores = cpu::allowed();
    let options = Options {
        time: Duration::try_from_secs_f64(arguments.seconds)?,
        pairs: arguments.pairs.into(),
        target: arguments.target.clone().map_or_else(build_target, Ok)?,
        dir: arguments.dir.clone().map_or_else(build_folder, Ok)?,
        file_bytes: arguments.file_gib << 30,
        mapped_bytes: arguments.mapped_gib << 30,
        library: arguments.library.clone().map_or_else(|| build_folder().map(|dir| dir.join("ovsvolumedriver")), Ok)?,
        target_core: arguments.target_core.unwrap_or(cores[0]),
        client_core: arguments.client_core.unwrap_or(cores[cores.len() - 1]),
    };
    if options.target_core == options.client_core {
        eprintln!(
            "note: target and client share core {}: two polling threads on it measure each other",
            options.client_core
        );
    }
    let mut all = Vec::new();
    let mut failed = Vec::new();
    for (name, run) in GROUPS {
        if !arguments.groups.is_empty() && !arguments.groups.iter().any(|group| group == name) {
            continue;
        }
        eprintln!("{name} ...");
        match run(&options) {
            Ok(bars) => all.extend(bars),
            // The others are worth having.
            Err(error) => failed.push(format!("{name}: {error}")),
        }
    }
    print!("{}", bars::table(&all));
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_string_pretty(&all)?)?;
    }
    if failed.is_empty() { Ok(all) } else { Err(failed.join("\n").into()) }
}

/// The folder of this binary, which is on a real disk where builds are.
fn build_folder() -> Result<PathBuf, Failed> {
    let binary = std::env::current_exe()?;
    Ok(binary.parent().unwrap_or(Path::new(".")).to_owned())
}

/// Builds the daemon beside this binary.
fn build_target() -> Result<PathBuf, Failed> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status =
        Command::new(cargo).args(["build", "--release", "--package", "ringway", "--bin", "ringway"]).status()?;
    if !status.success() {
        return Err("the target could not be built".into());
    }
    Ok(build_folder()?.join("ringway"))
}
