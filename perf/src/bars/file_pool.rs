//! A volume of a file pool against fio on a file of the same file system: the engine alone, on one thread as fio is, and then
//! the same volume as clients reach it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use rand::RngCore;
use ringway_core::request::Command as Request;
use ringway_core::target::{FormatOptions, InProcess, PoolSpec, TargetConfig};
use serde::Deserialize;
use tempfile::TempDir;

use super::engine::{BLOCK_BYTES, Engine};
use super::target::TargetProcess;
use super::{Bar, Failed, Goal, Options, Side, Waits, interleave, polled_load, shm, vhost};
use crate::cpu;
use crate::load::Mix;

const DEPTHS: [(u32, f64); 3] = [(1, 0.85), (32, 0.95), (128, 0.95)];
/// The same through shared memory.
const SHARED_DEPTHS: [(u32, f64); 3] = [(1, 0.9), (32, 0.97), (128, 0.97)];
/// A sequential fill goes in requests of this size.
const FILL_BYTES: u32 = 256 << 10;

/// Its name.
const VOLUME: &str = "bench";

/// What is compared: fio's file, written whole, and the folder of a pool.
struct Files {
    /// Both are gone with it.
    _folder: TempDir,
    file: PathBuf,
    pool: PathBuf,
}

impl Files {
    fn new(options: &Options) -> Result<Files, Failed> {
        let folder = tempfile::tempdir_in(&options.dir)?;
        let (file, pool) = (folder.path().join("fio"), folder.path().join("pool"));
        fio(options, &file, "write", 32, true)?;
        Ok(Files { _folder: folder, file, pool })
    }
}

/// Runs `measure` on a thread of its own: it is pinned, and later ones are not to inherit that.
fn apart<T: Send>(measure: impl FnOnce() -> Result<T, Failed> + Send) -> Result<T, Failed> {
    thread::scope(|scope| {
        scope.spawn(measure).join().map_err(|_| "the thread of the target in this process panicked")?
    })
}

/// The engine alone.
pub(super) fn run(options: &Options) -> Result<Vec<Bar>, Failed> {
    let files = Files::new(options)?;
    apart(|| in_process(options, &files))
}

/// The same behind a socket, a ring, and as a disk of a virtual machine.
pub(super) fn run_served(options: &Options) -> Result<Vec<Bar>, Failed> {
    let files = Files::new(options)?;
    // The pool and the volume stay.
    apart(|| filled(options, &files.pool).map(drop))?;
    served(options, &files)
}

/// Each pattern of fio, what we call it, and how it is asked for.
const PATTERNS: [(&str, &str, Mix, Request); 2] = [
    ("randread", "read", Mix::READ, Request::Read),
    ("randwrite", "overwrite", Mix::WRITE, Request::Write { fua: false }),
];

/// An engine on a new pool, with every cluster of its volume mapped: overwrites are then in place. Pins this thread.
fn filled(options: &Options, pool: &Path) -> Result<Engine, Failed> {
    let mut config = TargetConfig::new(PoolSpec::Path(pool.to_owned()), vec![options.target_core]);
    let size = options.file_bytes + options.file_bytes / 8 + (512 << 20);
    config.format = Some(FormatOptions { size: Some(size), ..FormatOptions::default() });
    // Beside the pool, and gone with it.
    config.runtime = pool.with_extension("runtime");
    std::fs::create_dir_all(&config.runtime)?;
    let target = InProcess::open(&config)?;
    // Not before: the kernel's workers get the other cores.
    cpu::pin(options.target_core)?;
    let mut engine = Engine::new(target, VOLUME, options.file_bytes)?;
    engine.fill(options.file_bytes, u64::from(FILL_BYTES), FILL_BYTES)?;
    Ok(engine)
}

/// On one pinned thread, as fio is.
fn in_process(options: &Options, files: &Files) -> Result<Vec<Bar>, Failed> {
    let mut engine = filled(options, &files.pool)?;
    let mut bars = Vec::new();
    for (depth, goal) in DEPTHS {
        for (what, kind, _, command) in PATTERNS {
            let mut ours = || {
                let before = cpu::of_thread();
                let range = (options.file_bytes, u64::from(BLOCK_BYTES));
                let (requests, elapsed) = engine.run(command, range, depth as usize, options.time)?;
                let cpu_ns = (cpu::of_thread() - before).as_nanos() as f64 / requests.max(1) as f64;
                let figure = requests as f64 / elapsed.as_secs_f64();
                Ok(Side { figure, client_cpu_ns: None, target_cpu_ns: Some(cpu_ns) })
            };
            bars.push(interleave(
                format!("file pool in process, {kind}, depth {depth}, against fio"),
                Some(Goal::AtLeast(goal)),
                options.pairs,
                &mut ours,
                || fio(options, &files.file, what, depth, false),
            )?);
        }
    }
    Ok(bars)
}

/// With a core for the client and a network stack more than fio has.
fn served(options: &Options, files: &Files) -> Result<Vec<Bar>, Failed> {
    let target = TargetProcess::start(options, files.pool.to_str().ok_or("the folder's name is not text")?, &[])?;
    let (volume, pid) = (target.volume(VOLUME)?, target.pid());
    let mut bars = Vec::new();
    for (depth, goal) in DEPTHS {
        for (what, kind, mix, _) in PATTERNS {
            bars.push(interleave(
                format!("file pool over TCP, {kind}, depth {depth}, against fio"),
                Some(Goal::AtLeast(goal)),
                options.pairs,
                || Ok(Side::from(&polled_load(options, &volume, depth, mix, pid)?)),
                || fio(options, &files.file, what, depth, false),
            )?);
        }
    }
    let disk = target.export("bench")?;
    let ring = target.runtime().join("shm.sock");
    for (depth, goal) in SHARED_DEPTHS {
        bars.push(interleave(
            format!("file pool over the native ring, 4 KiB read, depth {depth}, against fio"),
            Some(Goal::AtLeast(goal)),
            options.pairs,
            || {
                shm::reads(options, &ring, (depth as usize, options.file_bytes), pid, Waits::Asleep)
                    .map(|(side, _)| side)
            },
            || fio(options, &files.file, "randread", depth, false),
        )?);
    }
    for (depth, goal) in SHARED_DEPTHS {
        bars.push(interleave(
            format!("file pool as a vhost-user disk, 4 KiB read, depth {depth}, against fio"),
            Some(Goal::AtLeast(goal)),
            options.pairs,
            || vhost::reads(options, &disk, (depth as usize, options.file_bytes), pid, Waits::Asleep),
            || fio(options, &files.file, "randread", depth, false),
        )?);
    }
    target.stop()?;
    Ok(bars)
}

#[derive(Debug, Deserialize)]
struct FioOutput {
    jobs: Vec<FioJob>,
}

#[derive(Debug, Deserialize)]
struct FioJob {
    read: FioSide,
    write: FioSide,
    usr_cpu: f64,
    sys_cpu: f64,
}

#[derive(Debug, Deserialize)]
struct FioSide {
    iops: f64,
}

/// One fio run on the target's core; a fresh seed each time, since a used one reads what the host has cached. `fill` writes the
/// whole file once instead of for a time.
fn fio(options: &Options, file: &Path, what: &str, depth: u32, fill: bool) -> Result<Side, Failed> {
    let mut command = Command::new("fio");
    command.args(["--name=peer", "--ioengine=io_uring", "--fixedbufs=1", "--registerfiles=1", "--direct=1"]);
    command.args(["--thread=1", "--output-format=json", "--norandommap=1", "--randrepeat=0"]);
    command.arg(format!("--filename={}", file.display())).arg(format!("--size={}", options.file_bytes));
    command.arg(format!("--rw={what}")).arg(format!("--iodepth={depth}"));
    command
        .arg(format!("--randseed={}", rand::rng().next_u32()))
        .arg(format!("--cpus_allowed={}", options.target_core));
    if fill {
        command.arg(format!("--bs={FILL_BYTES}"));
    } else {
        command.args(["--bs=4096", "--time_based=1"]).arg(format!("--runtime={}ms", options.time.as_millis()));
    }
    run_fio(&mut command)
}

/// One run that prints JSON.
pub(super) fn run_fio(command: &mut Command) -> Result<Side, Failed> {
    let output = command.output().map_err(|error| format!("fio: {error}; `apt install fio` has it"))?;
    if !output.status.success() {
        return Err(format!("fio: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    parse_fio(&output.stdout)
}

fn parse_fio(output: &[u8]) -> Result<Side, Failed> {
    // Warnings may come before the JSON.
    let begins = output.iter().position(|&byte| byte == b'{').ok_or("fio printed no JSON")?;
    let parsed: FioOutput = serde_json::from_slice(&output[begins..])?;
    let job = parsed.jobs.first().ok_or("fio ran no job")?;
    let iops = job.read.iops + job.write.iops;
    let busy = (job.usr_cpu + job.sys_cpu) / 100.0;
    Ok(Side { figure: iops, client_cpu_ns: Some(busy * 1e9 / iops.max(1.0)), target_cpu_ns: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fios_figures_are_read_past_its_warnings() {
        let output =
            b"note: something\n{\"fio version\": \"3.33\", \"jobs\": [{\"read\": {\"iops\": 1000.0, \"bw\": 1},
            \"write\": {\"iops\": 0.0}, \"usr_cpu\": 10.0, \"sys_cpu\": 15.0}]}";
        let side = parse_fio(output).unwrap();
        assert_eq!((side.figure, side.client_cpu_ns), (1000.0, Some(250_000.0)));
        assert!(parse_fio(b"fio: unknown engine").unwrap_err().to_string().contains("no JSON"));
    }
}
