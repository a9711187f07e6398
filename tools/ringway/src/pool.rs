//! `ringway pool ...`.

use ringway_core::control::{PoolGrow, PoolInfo};

use crate::cli::{PoolCommand, PoolGrowArgs};
use crate::failure::Failure;
use crate::output::{Format, columns, facts};
use crate::size::Size;
use crate::volume::client;

pub(crate) fn run(command: PoolCommand, format: Format) -> Result<(), Failure> {
    match command {
        PoolCommand::Show(args) => {
            let pool = client(&args.daemon).pool()?;
            format.print(&pool, show);
        }
        PoolCommand::Grow(args) => format.print(&grow(args)?, show),
    }
    Ok(())
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
