//! `ringway inspect`: checks a pool that nobody serves. Opens its devices for reading, under a lock that keeps writers out.

use std::path::PathBuf;

use indicatif::ProgressBar;
use ringway_core::control::ControlErrorKind;
use ringway_core::inspect::{PoolReport, Severity, inspect_pool};
use ringway_core::pool::PoolError;
use ringway_core::target::{PoolSpec, Progress, StartError};
use ringway_reactor::buf::{BufPool, BufPoolConfig};
use ringway_reactor::files::{Access, OpenFile};
use ringway_reactor::io::FileInfo;
use ringway_reactor::uring::{UringConfig, UringIo};

use crate::cli::InspectArgs;
use crate::endpoint::PoolPlace;
use crate::failure::Failure;
use crate::output::{Format, columns, facts};
use crate::size::Size;

pub(crate) fn run(args: &InspectArgs, format: Format) -> Result<(), Failure> {
    let Looked { report, .. } = look(&args.pool, args.dump, format)?;
    format.print(&report, show);
    match report.faults() {
        0 => Ok(()),
        faults => Err(Failure::new(
            ControlErrorKind::Corrupt,
            format!("{} is damaged: {faults} faults, listed above", args.pool.0),
        )),
    }
}

/// What was found, and of what.
pub(crate) struct Looked {
    pub(crate) report: PoolReport,
    /// By number.
    pub(crate) devices: Vec<(PathBuf, FileInfo)>,
}

/// Reads everything about a pool but its data.
pub(crate) fn look(pool: &PoolPlace, dump: bool, format: Format) -> Result<Looked, Failure> {
    let bar = match format {
        Format::Json => ProgressBar::hidden(),
        Format::Text => ProgressBar::new_spinner(),
    };
    let mut waiting = |progress: &Progress| bar.set_message(progress.to_string());
    let pools = vec![BufPool::leak(&BufPoolConfig { classes: vec![(4096, 16), (256 << 10, 8)] }, 0)];
    let internal = |error: &dyn std::fmt::Display| Failure::internal(format!("cannot set up a ring: {error}"));
    let mut io = UringIo::new(&UringConfig::new(pools, 0)).map_err(|error| internal(&error))?;
    let mut devices = Vec::new();
    for path in pool_files(pool)? {
        let file = OpenFile::open(&path, Access::ReadOnly, &mut waiting)
            .map_err(|error| Failure::from(&StartError::File(error)))?;
        io.add_file(&file).map_err(|error| internal(&error))?;
        devices.push((path, file.info()));
    }
    let report = inspect_pool(&mut io, dump, &mut |shard| bar.set_message(format!("shard {shard}")));
    bar.finish_and_clear();
    let report = report.map_err(|error| {
        let kind = match error {
            PoolError::Io { .. } | PoolError::Buffers(_) => ControlErrorKind::Internal,
            _ => ControlErrorKind::Corrupt,
        };
        Failure::new(kind, format!("pool {}: {error}", pool.0))
    })?;
    Ok(Looked { report, devices })
}

/// The pool's files in the order of their numbers; a path that is no directory is the pool's only device.
pub(crate) fn pool_files(pool: &PoolPlace) -> Result<Vec<PathBuf>, Failure> {
    let folder = match &pool.0 {
        PoolSpec::Path(path) if path.is_dir() => path,
        PoolSpec::Path(path) => return Ok(vec![path.clone()]),
        PoolSpec::Devices(paths) => return Ok(paths.clone()),
        PoolSpec::Memory(_) | PoolSpec::Null(_) => {
            return Err(Failure::usage(format!(
                "{} is gone with the target that serves it; name a directory or a block device",
                pool.0
            )));
        }
    };
    let unreadable = |error: std::io::Error| Failure::io("read", folder, &error);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let number = name.strip_prefix("device-").and_then(|rest| rest.strip_suffix(".ringway")?.parse::<u16>().ok());
        files.extend(number.map(|number| (number, path)));
    }
    files.sort();
    if files.is_empty() {
        return Err(Failure::new(
            ControlErrorKind::NotFound,
            format!("{} holds no pool: it has no file device-0.ringway", folder.display()),
        ));
    }
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

fn show(report: &PoolReport) -> String {
    let used: u64 = report.volumes.iter().map(|volume| volume.allocated).sum();
    let mut text = facts(&[
        ("pool", report.uuid.to_string()),
        ("devices", report.devices.len().to_string()),
        ("shards", report.shards.len().to_string()),
        ("slabs", format!("{} of {}, {} free", report.slabs, Size(report.slab_bytes), report.slabs_free)),
        ("boot generation", report.boot_generation.to_string()),
        (
            "closed in good order",
            if report.clean { "yes" } else { "no: the next start replays the journals" }.to_owned(),
        ),
        ("data", Size(used).to_string()),
        ("faults", report.faults().to_string()),
    ]);
    let volumes: Vec<Vec<String>> = report
        .volumes
        .iter()
        .map(|volume| {
            vec![
                volume.id.to_string(),
                volume.name.clone(),
                Size(volume.size).to_string(),
                Size(volume.allocated).to_string(),
                volume.nodes.to_string(),
                volume.attached_hosts.len().to_string(),
            ]
        })
        .collect();
    text += &format!("\n{}", columns(&["id", "volume", "size", "allocated", "map nodes", "hosts"], &volumes));
    let shards: Vec<Vec<String>> = report
        .shards
        .iter()
        .map(|shard| {
            vec![
                shard.shard.to_string(),
                shard.checkpoint.to_string(),
                shard.replayed.to_string(),
                shard.slabs.to_string(),
                shard.clusters_used.to_string(),
                shard.clusters_leaked.to_string(),
            ]
        })
        .collect();
    text += &format!("\n{}", columns(&["shard", "checkpoint", "to replay", "slabs", "clusters", "leaked"], &shards));
    for finding in report.all_findings() {
        let severity = match finding.severity {
            Severity::Note => "note",
            Severity::Fault => "FAULT",
        };
        let shard = finding.shard.map_or_else(String::new, |shard| format!(" shard {shard}"));
        let volume = finding.volume.map_or_else(String::new, |volume| format!(" volume {volume}"));
        text += &format!("\n{severity}{shard}{volume}: {}", finding.what);
    }
    for shard in &report.shards {
        for line in &shard.dump {
            text += &format!("\nshard {}: {line}", shard.shard);
        }
    }
    text
}
