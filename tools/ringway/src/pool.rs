//! `ringway pool ...`.

use indicatif::{ProgressBar, ProgressStyle};
use ringway_core::control::{PoolGrow, PoolInfo};
use ringway_core::pool::OpenPool;
use ringway_core::target::{self, Allocation, FormatOptions, PoolSpec, Progress};
use serde::Serialize;
use uuid::Uuid;

use crate::cli::{Allocate, FormatArgs, PoolCommand, PoolGrowArgs};
use crate::failure::Failure;
use crate::output::{Format, columns, facts};
use crate::size::Size;
use crate::volume::client;

pub(crate) fn run(command: PoolCommand, format: Format) -> Result<(), Failure> {
    match command {
        PoolCommand::Format(args) => make(&args, format)?,
        PoolCommand::Show(args) => {
            let pool = client(&args.daemon).pool()?;
            format.print(&pool, show);
        }
        PoolCommand::Grow(args) => format.print(&grow(args)?, show),
    }
    Ok(())
}

fn make(args: &FormatArgs, format: Format) -> Result<(), Failure> {
    if let PoolSpec::Memory(_) | PoolSpec::Null(_) = args.pool.0 {
        return Err(Failure::usage(format!(
            "{} is formatted by `ringway serve` each time it starts; name a directory or a block device",
            String::from(args.pool.clone())
        )));
    }
    let options = FormatOptions {
        size: args.size.map(|size| size.0),
        allocation: match args.allocate {
            Allocate::Written => Allocation::Written,
            Allocate::Reserved => Allocation::Reserved,
            Allocate::Sparse => Allocation::Sparse,
        },
        shards: args.shards,
        slab_bytes: args.slab.map(|size| size.0),
        journal_bytes: args.journal.map(|size| size.0),
        assume_atomic_4k: args.assume_atomic_4k,
        force: args.force,
    };
    let bar = match format {
        Format::Json => ProgressBar::hidden(),
        Format::Text => ProgressBar::new(0)
            .with_style(ProgressStyle::with_template("[{bar:40}] {msg}").expect("the template is valid")),
    };
    let mut progress = |progress: &Progress| {
        if let Progress::Writing { done, total } = progress {
            bar.set_length(*total);
            bar.set_position(*done);
        }
        bar.set_message(progress.to_string());
    };
    let formatted = target::format(&args.pool.0, &options, &mut progress).map_err(|error| Failure::from(&error))?;
    bar.finish_and_clear();
    format.print(&Made::of(&formatted), Made::text);
    Ok(())
}

/// A pool that was just made.
#[derive(Debug, Serialize)]
struct Made {
    uuid: Uuid,
    shards: u16,
    slab_bytes: u64,
    /// Bytes that volumes, their maps included, can use.
    size: u64,
    devices: usize,
    journal_bytes: u64,
}

impl Made {
    fn of(pool: &OpenPool) -> Made {
        let geometry = &pool.layout.geometry;
        Made {
            uuid: pool.uuid,
            shards: pool.layout.shards,
            slab_bytes: geometry.slab_bytes(),
            size: geometry.slab_count() * geometry.slab_bytes(),
            devices: pool.superblocks.len(),
            journal_bytes: pool.layout.journal_bytes,
        }
    }

    fn text(&self) -> String {
        facts(&[
            ("pool", self.uuid.to_string()),
            ("space", Size(self.size).to_string()),
            ("devices", self.devices.to_string()),
            ("shards", self.shards.to_string()),
            ("slab", Size(self.slab_bytes).to_string()),
            ("journal", format!("{} a shard", Size(self.journal_bytes))),
        ])
    }
}

fn grow(args: PoolGrowArgs) -> Result<PoolInfo, Failure> {
    // The daemon has another working directory.
    let device =
        args.device.map(|device| std::path::absolute(&device).map_err(|error| Failure::io("find", &device, &error)));
    client(&args.daemon).pool_grow(&PoolGrow { device: device.transpose()?, size: args.size.map(|size| size.0) })
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
        ("state", pool.read_only.as_ref().map_or("online".to_owned(), |why| format!("read-only: {why}"))),
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
