//! `ringway pool show`: the running target's pool, or one that nobody serves, which is then opened for reading.

use std::path::{Path, PathBuf};

use ringway_core::control::{DeviceInfo, PoolInfo};
use ringway_core::limits::CLUSTER;
use ringway_core::pool::FORMAT_VERSION;

use crate::cli::PoolShowArgs;
use crate::failure::Failure;
use crate::inspect::{self, Looked};
use crate::output::{Format, columns, facts};
use crate::size::Size;
use crate::volume::client;

pub(crate) fn run(args: &PoolShowArgs, format: Format) -> Result<(), Failure> {
    let daemon = client(&args.daemon);
    let Some(place) = &args.pool else {
        format.print(&daemon.pool()?, show);
        return Ok(());
    };
    let files = inspect::pool_files(place)?;
    // A daemon that serves something else, or none at all: then the pool itself is asked.
    let served = daemon.pool().ok().filter(|pool| pool.devices.iter().any(|device| is_one_of(&device.path, &files)));
    match served {
        Some(pool) => format.print(&pool, show),
        None => format.print(&unserved(&inspect::look(place, false, format)?), |pool| {
            format!("{}\nNobody serves it; `ringway serve --pool {}` does.\n", show(pool), place.0)
        }),
    }
    Ok(())
}

fn is_one_of(device: &str, files: &[PathBuf]) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    let device = real(Path::new(device));
    device.is_some() && files.iter().any(|file| real(file) == device)
}

/// As the target would say it, with the boot that was the last.
fn unserved(looked: &Looked) -> PoolInfo {
    let report = &looked.report;
    let clusters: u64 = report.shards.iter().map(|shard| shard.clusters_used + shard.clusters_metadata).sum();
    let read_only = match report.faults() {
        0 => None,
        faults => Some(format!("{faults} faults, which `ringway inspect` lists")),
    };
    let devices = report.devices.iter().zip(&looked.devices);
    PoolInfo {
        uuid: report.uuid,
        format_version: FORMAT_VERSION,
        boot_generation: report.boot_generation,
        shards: report.shards.len() as u16,
        slab_bytes: report.slab_bytes,
        size: report.slabs * report.slab_bytes,
        used: clusters * CLUSTER,
        read_only,
        dead_shards: Vec::new(),
        devices: devices
            .map(|(device, (path, file))| DeviceInfo {
                number: device.number,
                path: std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string(),
                size: file.size,
                atomic_write_unit: file.atomic_write_unit,
                deallocates: file.deallocates,
                fault: None,
            })
            .collect(),
        volumes: report.volumes.len() as u32,
        growing: None,
    }
}

pub(crate) fn show(pool: &PoolInfo) -> String {
    let head = facts(&[
        ("pool", pool.uuid.to_string()),
        ("space", format!("{} of {} used ({} %)", Size(pool.used), Size(pool.size), pool.used_percent())),
        ("shards", pool.shards.to_string()),
        ("slab", Size(pool.slab_bytes).to_string()),
        ("volumes", pool.volumes.to_string()),
        ("format version", pool.format_version.to_string()),
        ("boot generation", pool.boot_generation.to_string()),
        (
            "growing",
            pool.growing.map_or("no".to_owned(), |growth| {
                format!("{} of {} written", Size(growth.written), Size(growth.total))
            }),
        ),
        ("state", pool.read_only.as_ref().map_or("online".to_owned(), |why| format!("read-only: {why}"))),
        ("shards lost", if pool.dead_shards.is_empty() { "none".to_owned() } else { pool.dead_shards.join("; ") }),
    ]);
    let rows: Vec<Vec<String>> = pool
        .devices
        .iter()
        .map(|device| {
            vec![
                device.number.to_string(),
                device.path.clone(),
                Size(device.size).to_string(),
                Size(u64::from(device.atomic_write_unit)).to_string(),
                if device.deallocates { "yes" } else { "no" }.to_owned(),
                device.fault.clone().unwrap_or_else(|| "online".to_owned()),
            ]
        })
        .collect();
    format!("{head}\n{}", columns(&["device", "path", "size", "atomic", "discards", "state"], &rows))
}
