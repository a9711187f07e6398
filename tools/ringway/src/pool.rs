//! `ringway pool ...`.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use ringway_core::control::{self, GrowthInfo, PoolGrow, PoolGrown};
use ringway_core::pool::OpenPool;
use ringway_core::target::{self, Addition, Allocation, FormatOptions, PoolSpec, Progress, StartError};
use serde::Serialize;
use uuid::Uuid;

use crate::cli::{Allocate, FormatArgs, PoolCommand, PoolGrowArgs};
use crate::client::Client;
use crate::endpoint::PoolPlace;
use crate::failure::Failure;
use crate::output::{Format, facts};
use crate::pool_show;
use crate::size::Size;
use crate::volume::client;

/// How often the daemon is asked how far it is.
const LOOK: Duration = Duration::from_millis(200);

pub(crate) fn run(command: PoolCommand, format: Format) -> Result<(), Failure> {
    match command {
        PoolCommand::Format(args) => make(&args, format)?,
        PoolCommand::Show(args) => pool_show::run(&args, format)?,
        PoolCommand::Grow(args) => grow(args, format)?,
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
        allocation: args.allocate.into(),
        shards: args.shards,
        slab_bytes: args.slab.map(|size| size.0),
        journal_bytes: args.journal.map(|size| size.0),
        assume_atomic_4k: args.assume_atomic_4k,
        force: args.force,
        backend: args.backend.as_deref().map(crate::backend::settings).transpose()?.flatten(),
    };
    let formatted = watched(format, |progress| target::format(&args.pool.0, &options, progress))
        .map_err(|failure| failure.of_pool(&args.pool.0))?;
    format.print(&Made::of(&formatted), Made::text);
    Ok(())
}

fn bar(format: Format) -> ProgressBar {
    match format {
        Format::Json => ProgressBar::hidden(),
        Format::Text => ProgressBar::new(0)
            .with_style(ProgressStyle::with_template("[{bar:40}] {msg}").expect("the template is valid")),
    }
}

/// Runs a long step with a bar that shows how far it is.
fn watched<T>(
    format: Format,
    step: impl FnOnce(&mut dyn FnMut(&Progress)) -> Result<T, StartError>,
) -> Result<T, Failure> {
    let bar = bar(format);
    let outcome = step(&mut |progress: &Progress| {
        if let Progress::Writing { done, total } = progress {
            bar.set_length(*total);
            bar.set_position(*done);
        }
        bar.set_message(progress.to_string());
    });
    bar.finish_and_clear();
    outcome.map_err(|error| Failure::from(&error))
}

impl From<Allocate> for control::Allocate {
    fn from(allocate: Allocate) -> control::Allocate {
        match allocate {
            Allocate::Written => control::Allocate::Written,
            Allocate::Reserved => control::Allocate::Reserved,
            Allocate::Sparse => control::Allocate::Sparse,
        }
    }
}

impl From<Allocate> for Allocation {
    fn from(allocate: Allocate) -> Allocation {
        match allocate {
            Allocate::Written => Allocation::Written,
            Allocate::Reserved => Allocation::Reserved,
            Allocate::Sparse => Allocation::Sparse,
        }
    }
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

fn grow(args: PoolGrowArgs, format: Format) -> Result<(), Failure> {
    // The daemon has another working directory, and a link in the pool's directory leads from there.
    let absolute = |path: PathBuf| std::path::absolute(&path).map_err(|error| Failure::io("find", &path, &error));
    let device = args.device.map(absolute).transpose()?;
    let size = args.size.map(|size| size.0);
    let grown = match args.pool {
        Some(pool) => grow_offline(&pool, device, size, args.allocate, args.force, format)?,
        None => {
            let grow = PoolGrow { device, size, allocate: args.allocate.into(), force: args.force };
            grow_online(&client(&args.daemon), &grow, format)?
        }
    };
    format.print(&grown, grown_text);
    Ok(())
}

fn grow_offline(
    pool: &PoolPlace,
    device: Option<PathBuf>,
    size: Option<u64>,
    allocate: Allocate,
    force: bool,
    format: Format,
) -> Result<PoolGrown, Failure> {
    let addition = match (device, size) {
        (Some(path), _) => Addition::Device { path, force },
        (None, Some(size)) => Addition::File { size, allocation: allocate.into() },
        (None, None) => unreachable!("one of the two is required"),
    };
    let grown = watched(format, |progress| target::grow(&pool.0, &addition, progress))
        .map_err(|failure| failure.of_pool(&pool.0))?;
    let made = Made::of(&grown.pool);
    Ok(PoolGrown {
        device: grown.device.display().to_string(),
        serve: grown.spec.to_string(),
        uuid: made.uuid,
        size: made.size,
        devices: made.devices as u16,
        shards: made.shards,
        slab_bytes: made.slab_bytes,
    })
}

/// Asks the daemon, and shows how far it is until it answers.
fn grow_online(daemon: &Client, grow: &PoolGrow, format: Format) -> Result<PoolGrown, Failure> {
    thread::scope(|scope| {
        let asked = scope.spawn(|| daemon.pool_grow(grow));
        let bar = bar(format);
        while !asked.is_finished() {
            thread::sleep(LOOK);
            // Should this fail, the call itself says why.
            if let Some(GrowthInfo { written, total }) = daemon.pool().ok().and_then(|pool| pool.growing)
                && total > 0
            {
                bar.set_length(total);
                bar.set_position(written);
                bar.set_message(Progress::Writing { done: written, total }.to_string());
            }
        }
        bar.finish_and_clear();
        asked.join().unwrap_or_else(|_| Err(Failure::internal("the thread that asked has panicked".to_owned())))
    })
}

fn grown_text(grown: &PoolGrown) -> String {
    facts(&[
        ("added", grown.device.clone()),
        ("serve it by", format!("--pool {}", grown.serve)),
        ("pool", grown.uuid.to_string()),
        ("space", Size(grown.size).to_string()),
        ("devices", grown.devices.to_string()),
        ("shards", grown.shards.to_string()),
        ("slab", Size(grown.slab_bytes).to_string()),
    ])
}
