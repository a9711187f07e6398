//! Memory: what a mapped cluster takes in the map cache, and what a connection takes that does nothing.

use ringway_core::limits::{CLUSTERS_PER_RANGE, STRIPE};

use super::idle::{CONNECTIONS_EACH, Idle};
use super::mapped::{MappedPool, Tail, VOLUME};
use super::target::TargetProcess;
use super::{Bar, Failed, Goal, Options};
use crate::load::{self, Limit, LoadConfig, Mix, Pattern, Silent};

/// Mapped bytes whose every node fits the cache: 8,192 nodes, 1,048,576 clusters.
const MAPPED_BYTES: u64 = 64 << 30;
const READ_BYTES: u32 = 4096;
const DEPTH: u32 = 32;
const IDLE_CONNECTIONS: [u16; 2] = [64, 512];

pub(super) fn run(options: &Options) -> Result<Vec<Bar>, Failed> {
    let mut bars = vec![mapped_cluster(options)?];
    bars.extend(idle_connections(options)?);
    Ok(bars)
}

/// What the target grows by when it loads every node of a filled map: all of it, not only what the cache counts.
fn mapped_cluster(options: &Options) -> Result<Bar, Failed> {
    let made = MappedPool::make(&options.dir, MAPPED_BYTES, Tail::None)?;
    let target = TargetProcess::start_to_weigh(options, made.path()?)?;
    let mut config = LoadConfig::new(target.volume(VOLUME)?);
    config.mix = Mix::READ;
    config.depth = DEPTH;
    config.block_bytes = READ_BYTES;
    // What the first requests of all make it allocate is not the map's: some reads of one node before.
    config.pattern = Pattern::Stride(MAPPED_BYTES / u64::from(READ_BYTES));
    config.limit = Some(Limit::Operations(20_000));
    read(&config)?;
    let before = target.resident_bytes()?;
    config.pattern = Pattern::Stride(STRIPE / u64::from(READ_BYTES));
    config.limit = Some(Limit::Operations(MAPPED_BYTES / STRIPE));
    read(&config)?;
    let grown = target.resident_bytes()?.saturating_sub(before);
    target.stop()?;
    let each = grown as f64 / (made.nodes * u64::from(CLUSTERS_PER_RANGE)) as f64;
    let name = "map cache, a mapped cluster".to_owned();
    Ok(Bar::alone(name, "bytes", vec![each], Goal::AtMost(32.0), None))
}

fn read(config: &LoadConfig) -> Result<(), Failed> {
    let report = load::run(config, &mut Silent)?;
    if report.is_clean() {
        Ok(())
    } else {
        Err(format!("reading the mapped volume failed: {:?}", report.errors).into())
    }
}

fn idle_connections(options: &Options) -> Result<Vec<Bar>, Failed> {
    let target = TargetProcess::start_to_weigh(options, "null:64GiB")?;
    let volume = target.create_volume("bench", "16GiB")?;
    let most = IDLE_CONNECTIONS[1] / CONNECTIONS_EACH as u16;
    let mut idle = Idle::new(&volume, most)?;
    // One association first: what the first connection of all allocates is not the price of the others.
    idle.grow_to(1)?;
    let before = target.resident_bytes()?;
    let mut bars = Vec::new();
    for connections in IDLE_CONNECTIONS {
        idle.grow_to(connections / CONNECTIONS_EACH as u16)?;
        let grown = target.resident_bytes()?.saturating_sub(before) as f64;
        let each = grown / f64::from(connections - CONNECTIONS_EACH as u16) / 1024.0;
        let name = format!("memory of an idle connection, {connections} of them");
        bars.push(Bar::alone(name, "KiB", vec![each], Goal::AtMost(32.0), None));
    }
    idle.close();
    target.stop()?;
    Ok(bars)
}
