//! Starting and stopping a whole target: pool files, recovery, one thread a core.

pub mod assembly;
mod buffers;
mod config;
mod devices;
mod error;
pub mod exports;
mod fabric;
mod grow;
mod in_process;
pub mod log;
mod log_place;
mod nbd;
mod on_demand;
mod running;
pub mod shm;
mod start;
mod tls;
pub mod unix;
mod vhost;

pub use config::{Allocation, FormatOptions, PoolSpec, TargetConfig};
pub use error::StartError;
pub use grow::{Addition, Grown, grow};
pub use in_process::InProcess;
pub use ringway_reactor::files::Progress;
pub use running::{RunningTarget, StopError};
pub use start::start;
pub use tls::{TlsFiles, certificates, server_config};

use crate::pool::OpenPool;

/// Makes a pool. What is there already is not touched unless the options say so.
pub fn format(
    pool: &PoolSpec,
    options: &FormatOptions,
    progress: &mut dyn FnMut(&Progress),
) -> Result<OpenPool, StartError> {
    if matches!(pool, PoolSpec::Memory(_) | PoolSpec::Null(_)) {
        return Err(StartError::Invalid(format!(
            "{pool} lives in the process that serves it; there is nothing to format"
        )));
    }
    let devices = devices::Devices::format(pool, options, progress)?;
    Ok(crate::pool::inspect(&mut devices.setup_ring()?)?)
}

/// Seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the one place where a target on a machine gets its wall clock")]
fn unix_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
