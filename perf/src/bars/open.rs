//! Opening a pool whose target was killed in the middle of a load, however much it maps.

use std::process::Command;

use ringway_core::limits::CLUSTER;

use super::target::TargetProcess;
use super::{Bar, Failed, Goal, Options};
use crate::cpu;
use crate::load::{self, Limit, LoadConfig, Mix, Pattern, Progress, Silent, Snapshot};

/// Bytes of the one write in each cluster.
const WRITE_BYTES: u32 = 4096;
/// Data is sparse, maps are real: this much more than the mapped bytes holds them.
const METADATA_BYTES: u64 = 4 << 30;

pub(super) fn run(options: &Options) -> Result<Vec<Bar>, Failed> {
    let dir = tempfile::tempdir_in(&options.dir)?;
    let pool = dir.path().join("pool");
    let pool = pool.to_str().ok_or("the folder's name is not text")?;
    let bytes = (options.mapped_bytes + options.mapped_bytes / 16 + METADATA_BYTES).to_string();
    let formatted = Command::new(&options.target)
        .args(["pool", "format", pool, "--size", &bytes, "--allocate", "sparse"])
        .output()?;
    if !formatted.status.success() {
        return Err(format!("ringway pool format: {}", String::from_utf8_lossy(&formatted.stderr).trim()).into());
    }
    let mut target = TargetProcess::start(options, pool, &[])?;
    let volume = target.create_volume("bench", &options.mapped_bytes.to_string())?;
    let mut config = LoadConfig::new(volume.clone());
    config.mix = Mix::WRITE;
    config.pattern = Pattern::Stride(CLUSTER / u64::from(WRITE_BYTES));
    config.block_bytes = WRITE_BYTES;
    config.depth = 128;
    config.limit = Some(Limit::Operations(options.mapped_bytes / CLUSTER));
    let report = load::run(&config, &mut Silent)?;
    if !report.is_clean() {
        return Err(format!("mapping the volume failed: {:?}", report.errors).into());
    }
    let steal = cpu::steal();
    let mut samples = Vec::new();
    for _ in 0..options.pairs {
        target = kill_under_load(options, target, &config, pool)?;
        samples.push(target.took.as_secs_f64());
    }
    target.stop()?;
    let name = format!("open after SIGKILL under load, {} GiB mapped", options.mapped_bytes >> 30);
    Ok(vec![Bar::alone(name, "s", samples, Goal::AtMost(1.0), cpu::steal_percent(steal, cpu::steal()))])
}

/// Kills the target while it writes at random, and starts it again.
fn kill_under_load(
    options: &Options,
    target: TargetProcess,
    mapped: &LoadConfig,
    pool: &str,
) -> Result<TargetProcess, Failed> {
    let mut config = mapped.clone();
    config.pattern = Pattern::Random;
    config.limit = Some(Limit::Time(options.time * 10));
    config.reconnect_for = std::time::Duration::ZERO;
    let mut running = Some(target);
    let mut killed = Ok(());
    let mut killer = |snapshot: &Snapshot| {
        if snapshot.elapsed >= options.time
            && let Some(target) = running.take()
        {
            killed = target.kill();
        }
        std::ops::ControlFlow::Continue(())
    };
    // The run ends with the connection: that the target is gone is what is wanted.
    let ended = load::run(&config, &mut killer as &mut dyn Progress);
    killed?;
    if running.is_some() {
        return Err(format!("the load ended before its target was killed: {ended:?}").into());
    }
    TargetProcess::start(options, pool, &[])
}
