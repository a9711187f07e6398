//! A volume of a file pool, over NVMe/TCP, against fio on a file of the same file system.

use std::path::Path;
use std::process::Command;

use rand::RngCore;
use ringway_core::host::Target;
use serde::Deserialize;

use super::target::TargetProcess;
use super::{Bar, Failed, Goal, Options, Side, interleave, polled_load, shm, vhost};
use crate::load::{self, Limit, LoadConfig, Mix, Pattern, Silent};

const DEPTHS: [(u32, f64); 3] = [(1, 0.85), (32, 0.95), (128, 0.95)];
/// The same through shared memory.
const SHARED_DEPTHS: [(u32, f64); 3] = [(1, 0.9), (32, 0.97), (128, 0.97)];
/// A sequential fill goes in requests of this size.
const FILL_BYTES: u32 = 256 << 10;

pub(super) fn run(options: &Options) -> Result<Vec<Bar>, Failed> {
    let dir = tempfile::tempdir_in(&options.dir)?;
    let file = dir.path().join("fio");
    let pool = dir.path().join("pool");
    let pool_bytes = (options.file_bytes + options.file_bytes / 8 + (512 << 20)).to_string();
    fio(options, &file, "write", 32, true)?;
    let pool = pool.to_str().ok_or("the folder's name is not text")?;
    let target = TargetProcess::start(options, pool, &["--pool-size", &pool_bytes])?;
    let volume = target.create_volume("bench", &options.file_bytes.to_string())?;
    fill(options, &volume)?;
    let pid = target.pid();
    let mut bars = Vec::new();
    for (depth, goal) in DEPTHS {
        for (what, mix) in [("randread", Mix::READ), ("randwrite", Mix::WRITE)] {
            let kind = if what == "randread" { "read" } else { "overwrite" };
            bars.push(interleave(
                format!("file pool, 4 KiB {kind}, depth {depth}, against fio"),
                Some(Goal::AtLeast(goal)),
                options.pairs,
                || Ok(Side::from(&polled_load(options, &volume, depth, mix, pid)?)),
                || fio(options, &file, what, depth, false),
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
            || shm::reads(options, &ring, (depth as usize, options.file_bytes), pid).map(|(side, _)| side),
            || fio(options, &file, "randread", depth, false),
        )?);
    }
    for (depth, goal) in SHARED_DEPTHS {
        bars.push(interleave(
            format!("file pool as a vhost-user disk, 4 KiB read, depth {depth}, against fio"),
            Some(Goal::AtLeast(goal)),
            options.pairs,
            || vhost::reads(options, &disk, (depth as usize, options.file_bytes), pid),
            || fio(options, &file, "randread", depth, false),
        )?);
    }
    target.stop()?;
    Ok(bars)
}

/// Maps every cluster: overwrites are then in place.
fn fill(options: &Options, volume: &Target) -> Result<(), Failed> {
    let mut config = LoadConfig::new(volume.clone());
    config.pattern = Pattern::Sequential;
    config.mix = Mix::WRITE;
    config.block_bytes = FILL_BYTES;
    config.depth = 16;
    config.limit = Some(Limit::Operations(options.file_bytes / u64::from(FILL_BYTES)));
    let report = load::run(&config, &mut Silent)?;
    if report.is_clean() { Ok(()) } else { Err(format!("filling the volume failed: {:?}", report.errors).into()) }
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
