//! Opening a pool whose target was killed, however much it maps: once as a generator leaves it with a journal as full as it gets,
//! and after SIGKILLs in the middle of a load.

use super::mapped::{MappedPool, Tail, VOLUME};
use super::target::TargetProcess;
use super::{Bar, Failed, Goal, Options};
use crate::cpu;
use crate::load::{self, Limit, LoadConfig, Mix, Pattern, Progress, Silent, Snapshot};
use ringway_core::limits::STRIPE;

const WRITE_BYTES: u32 = 4096;
const DEPTH: u32 = 128;
const MIB: f64 = (1 << 20) as f64;
/// What the target is told to hold of decoded map, and what reading every page may make it grow by: an eighth for the tables
/// around it.
const CACHE: (&str, f64) = ("64MiB", 72.0);
const CACHE_ARGUMENTS: [&str; 2] = ["--map-cache", CACHE.0];

pub(super) fn run(options: &Options) -> Result<Vec<Bar>, Failed> {
    let gib = options.mapped_bytes >> 30;
    let made = MappedPool::make(&options.dir, options.mapped_bytes, Tail::Full)?;
    eprintln!("  {} map pages and {} records to replay were written", made.nodes, made.records);
    let pool = made.path()?;
    let steal = cpu::steal();
    let mut target = TargetProcess::start(options, pool, &CACHE_ARGUMENTS)?;
    let first = target.took.as_secs_f64();
    let volume = target.volume(VOLUME)?;
    let mut config = LoadConfig::new(volume);
    config.mix = Mix::READ;
    config.block_bytes = WRITE_BYTES;
    config.depth = DEPTH;
    // One block in each stripe: every map page is loaded, most more than once.
    config.pattern = Pattern::Stride(STRIPE / u64::from(WRITE_BYTES));
    config.limit = Some(Limit::Operations(options.mapped_bytes / STRIPE));
    let before = target.resident_bytes()?;
    read(&config)?;
    let grown = target.resident_bytes()?.saturating_sub(before) as f64 / MIB;
    let mut samples = Vec::new();
    for _ in 0..options.pairs {
        let volume = target.volume(VOLUME)?;
        config.target = volume;
        target = kill_under_load(options, target, &config, pool)?;
        samples.push(target.took.as_secs_f64());
        config.target = target.volume(VOLUME)?;
        config.pattern = Pattern::Random;
        config.limit = Some(Limit::Time(options.time));
        read(&config)?;
    }
    target.stop()?;
    let steal = cpu::steal_percent(steal, cpu::steal());
    let bar = |name: String, unit, samples, most| Bar::alone(name, unit, samples, Goal::AtMost(most), steal);
    Ok(vec![
        bar(format!("open, {gib} GiB mapped, fullest journal"), "s", vec![first], 1.0),
        bar(format!("open after SIGKILL under load, {gib} GiB mapped"), "s", samples, 1.0),
        bar(format!("growth by reading {gib} GiB, {} map cache", CACHE.0), "MiB", vec![grown], CACHE.1),
    ])
}

fn read(config: &LoadConfig) -> Result<(), Failed> {
    let report = load::run(config, &mut Silent)?;
    if report.is_clean() {
        Ok(())
    } else {
        Err(format!("reading the mapped volume failed: {:?}", report.errors).into())
    }
}

/// Kills the target while it is written to at random, and starts it again.
fn kill_under_load(
    options: &Options,
    target: TargetProcess,
    mapped: &LoadConfig,
    pool: &str,
) -> Result<TargetProcess, Failed> {
    let mut config = mapped.clone();
    config.mix = Mix::WRITE;
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
    TargetProcess::start(options, pool, &CACHE_ARGUMENTS)
}
