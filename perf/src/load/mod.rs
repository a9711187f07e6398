//! The verified load generator of `ringway bench` and `ringway demo`.

pub mod block;
mod config;
mod line;
pub mod oracle;
pub mod pattern;
mod progress;
mod region;
mod report;
mod ring;
mod run;
mod stats;

use std::net::ToSocketAddrs;

use rand::RngCore;
use ringway_core::directory::VOLUME_NQN_PREFIX;
use ringway_core::host::{ControllerKind, HostConfig, HostError, Reconnect};
use ringway_reactor::uring::{UringConfig, UringIo};

pub use config::{Limit, LoadConfig, Mix, Pattern, Verify};
pub use oracle::{Fault, FaultKind, Promise};
pub use progress::{Bar, Progress, Silent, Snapshot, Stage};
pub use report::{Latency, LoadReport, OperationReport, VerifyReport};
pub use ring::{RingReads, RingReport, ring_reads};

use crate::{cpu, pools};

/// Why a run could not be made, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// What was asked for cannot be done.
    #[error("{0}")]
    Config(String),
    /// The connection to the target could not be made, or was given up.
    #[error(transparent)]
    Host(#[from] HostError),
    /// An oracle file cannot be used.
    #[error(transparent)]
    Oracle(#[from] oracle::OracleError),
    /// This machine lacks something.
    #[error("{0}")]
    Local(String),
}

/// Runs a load on the calling thread.
///
/// # Errors
/// If it cannot be made, or the connection is given up. Operations that the target fails, and units that are not as they
/// were promised, are in the report.
pub fn run(config: &LoadConfig, progress: &mut dyn Progress) -> Result<LoadReport, LoadError> {
    config.check().map_err(LoadError::Config)?;
    let seed = config.seed.unwrap_or_else(|| rand::rng().next_u64());
    let pool = pools::rent(pools::for_host(config.depth, config.block_bytes, config.queues));
    let host = line::Line::of(config, pool.pool())?;
    let before = cpu::allowed();
    if let Some(core) = config.core {
        cpu::pin(core).map_err(|error| LoadError::Local(error.to_string()))?;
    }
    let result = UringIo::new(&UringConfig::new(vec![pool.pool()], 0))
        .map_err(|error| LoadError::Local(error.to_string()))
        .and_then(|io| {
            let mut run = run::Run::begin(io, host, config, seed, progress)?;
            run.all()?;
            Ok(run.report(seed))
        });
    if config.core.is_some() {
        cpu::unpin(&before);
    }
    result
}

/// The host of a run.
fn host_config(config: &LoadConfig) -> Result<HostConfig, LoadError> {
    let (transport, name, port) = config.target.remote().map_err(|error| LoadError::Config(error.to_string()))?;
    let nqn = format!("{VOLUME_NQN_PREFIX}{}", config.target.name());
    let unknown =
        |why: &str| LoadError::Config(format!("{}: the address of {name:?} is not known: {why}", config.target));
    let mut addresses = (name, port).to_socket_addrs().map_err(|error| unknown(&error.to_string()))?;
    let addr = addresses.next().ok_or_else(|| unknown("it has none"))?;
    let depth = config.depth.div_ceil(config.queues.into()).max(1) as u16;
    let mut host = HostConfig::new(addr, nqn);
    host.transport = transport;
    host.name = format!("{transport}://{addr}");
    host.controller = ControllerKind::Io { queues: config.queues, depth };
    (host.header_digest, host.data_digest) = (config.header_digest, config.data_digest);
    host.command_timeout = config.command_timeout;
    host.reconnect = Reconnect { give_up_after: config.reconnect_for, ..Reconnect::default() };
    if let Some(nqn) = &config.host_nqn {
        host.host_nqn.clone_from(nqn);
    }
    Ok(host)
}

#[cfg(test)]
mod tests;
