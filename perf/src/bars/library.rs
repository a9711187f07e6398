//! libovsvolumedriver over shared memory, as a program in C uses it: 4 KiB random reads of a null volume from one thread, which looks at
//! its requests, or which leaves them to callbacks.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use tempfile::TempDir;

use super::target::TargetProcess;
use super::{Bar, Failed, Goal, Options, Side, interleave, median};
use crate::cpu;

/// Requests in flight.
const DEPTH: u32 = 32;
/// A second, of the program that looks.
const IOPS: f64 = 1e6;
/// Of those with callbacks, to those without.
const CALLBACKS: f64 = 0.7;

/// What the program prints.
#[derive(Debug, Deserialize)]
struct Printed {
    iops: f64,
    /// Of all its threads, an operation.
    cpu_ns: f64,
}

pub(super) fn run(options: &Options) -> Result<Vec<Bar>, Failed> {
    let work = TempDir::new()?;
    let program = compile(&options.library, work.path())?;
    let target = TargetProcess::start(options, "null:4GiB", &[])?;
    target.create_volume("bench", "1GiB")?;
    let load = |how: &str| -> Result<Side, Failed> {
        let mut command = Command::new(&program);
        command.args([how, "bench", &DEPTH.to_string(), &options.time.as_secs_f64().to_string()]);
        command.env("LD_LIBRARY_PATH", options.library.join("lib")).env("RINGWAY_RUNTIME_DIR", target.runtime());
        let before = cpu::of_process(target.pid());
        let output = command.output()?;
        if !output.status.success() {
            return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
        }
        let printed: Printed = serde_json::from_slice(&output.stdout)?;
        let operations = printed.iops * options.time.as_secs_f64();
        let taken = cpu::of_process(target.pid()).zip(before).map(|(after, before)| after.saturating_sub(before));
        Ok(Side {
            figure: printed.iops,
            client_cpu_ns: Some(printed.cpu_ns),
            target_cpu_ns: taken.map(|taken| taken.as_nanos() as f64 / operations),
        })
    };
    let name = format!("library over shared memory, 4 KiB read, depth {DEPTH}, callbacks beside looking");
    let mut callbacks =
        interleave(name, Some(Goal::AtLeast(CALLBACKS)), options.pairs, || load("callback"), || load("polled"))?;
    let looked: Vec<f64> = callbacks.samples.iter().filter_map(|(_, looked)| *looked).collect();
    let name = format!("library over shared memory, 4 KiB read, depth {DEPTH}, one thread that looks");
    let mut alone = Bar::alone(name, "operations/s", looked.clone(), Goal::AtLeast(IOPS), callbacks.steal_percent);
    alone.client_cpu_ns = callbacks.peer_cpu_ns.take();
    callbacks.peer = Some(median(looked));
    target.stop()?;
    Ok(vec![alone, callbacks])
}

/// The program, built as the manual says.
fn compile(library: &Path, folder: &Path) -> Result<PathBuf, Failed> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/ovsvolumedriver/tests/load.c");
    let program = folder.join("load");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-Wall", "-pthread", "-o"]).arg(&program).arg(source);
    gcc.arg("-I").arg(library.join("include")).arg("-L").arg(library.join("lib")).arg("-lovsvolumedriver");
    let output = gcc.output().map_err(|error| format!("gcc: {error}"))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{gcc:?}: {} (`cargo xtask ovsvolumedriver` makes the library)", why.trim()).into());
    }
    Ok(program)
}
