//! The engine of `ringway serve`: `core`'s target, with our settings and our way to report.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringway_core::control::ControlPort;
use ringway_core::controller::vendor::Front;
use ringway_core::metrics::Metrics;
use ringway_core::target::{self, FormatOptions, PoolSpec, Progress, RunningTarget, TargetConfig};
use ringway_core::wire::log_page::TransportType;

use crate::failure::Failure;
use crate::serve::{Engine, Plan};
use crate::size::Size;

/// A pool that `serve` makes for itself is not larger unless asked: formatting writes it once.
const POOL_SIZE_DEFAULT: u64 = 4 << 30;

/// Opens or makes the pool and starts the reactors.
pub(crate) fn start(plan: &Plan) -> Result<Box<dyn Engine>, Failure> {
    let mut config = TargetConfig::new(plan.pool.0.clone(), plan.cores.clone());
    config.format = format_on_first_use(plan)?;
    let listeners = |transport| plan.listeners.iter().filter(move |listen| listen.transport == transport);
    config.listeners = listeners(TransportType::Tcp).map(|listen| listen.addr).collect();
    config.rdma_listeners = listeners(TransportType::Rdma).map(|listen| listen.addr).collect();
    config.insecure = plan.insecure;
    config.runtime.clone_from(&plan.runtime);
    config.socket_access = plan.socket_access;
    config.crash_log.clone_from(&plan.crash_log);
    config.backend_credentials.clone_from(&plan.backend_credentials);
    config.tls.clone_from(&plan.tls);
    config.shm = true;
    config.volume_sockets = true;
    if let Some(Size(bytes)) = plan.buffers {
        config.buffer_bytes =
            usize::try_from(bytes).map_err(|_| Failure::usage("the buffers do not fit this machine"))?;
    }
    if let Some(Size(bytes)) = plan.map_cache {
        config.map_cache_bytes =
            usize::try_from(bytes).map_err(|_| Failure::usage("the map cache does not fit this machine"))?;
    }
    if let Some(polling) = plan.polling {
        config.polling = polling;
    }
    if let Some(notice) = plan.lost_writes_notice {
        config.lost_writes_notice = notice;
    }
    let target =
        target::start(config, &mut log_progress).map_err(|error| Failure::from(&error).of_pool(&plan.pool.0))?;
    Ok(Box::new(Core(target)))
}

/// A directory that is empty, or not there yet, gets a pool; anything else has to be formatted by its own command.
fn format_on_first_use(plan: &Plan) -> Result<Option<FormatOptions>, Failure> {
    let path = match &plan.pool.0 {
        PoolSpec::Memory(_) | PoolSpec::Null(_) => return Ok(Some(FormatOptions::default())),
        PoolSpec::Devices(_) => return Ok(None),
        PoolSpec::Path(path) => path,
    };
    let empty = match std::fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_none(),
        // A folder that is missing above it, or a device, is more likely a slip than a wish for a pool there.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let above = path.parent().is_none_or(|above| above.as_os_str().is_empty() || above.is_dir());
            above && !path.starts_with("/dev")
        }
        // A block device; or whatever opening it will say.
        Err(_) => false,
    };
    if !empty {
        return Ok(None);
    }
    let size = match plan.pool_size {
        Some(Size(bytes)) => bytes,
        None => default_size(path)?,
    };
    tracing::info!(pool = %path.display(), size = %Size(size), "nothing is there yet: formatting a pool");
    Ok(Some(FormatOptions { size: Some(size), ..FormatOptions::default() }))
}

/// The default, or half of what the file system has free if that is less.
fn default_size(path: &Path) -> Result<u64, Failure> {
    let existing = path.ancestors().find(|at| at.is_dir()).map_or_else(|| PathBuf::from("."), Path::to_owned);
    let found = rustix::fs::statvfs(&existing).map_err(|errno| Failure::io("measure", &existing, &errno.into()))?;
    let half = found.f_bavail * found.f_frsize / 2;
    Ok(POOL_SIZE_DEFAULT.min(half >> 20 << 20))
}

fn log_progress(progress: &Progress) {
    match progress {
        Progress::Waiting { .. } => tracing::warn!("{progress}"),
        Progress::Writing { done, total } if done == total => tracing::info!("{progress}"),
        Progress::Writing { .. } => tracing::debug!("{progress}"),
    }
}

struct Core(RunningTarget);

impl Engine for Core {
    fn port(&self) -> Arc<dyn ControlPort> {
        self.0.control()
    }

    fn front(&self) -> Arc<Front> {
        self.0.front()
    }

    fn metrics(&self) -> Arc<Metrics> {
        self.0.metrics()
    }

    fn listeners(&self) -> Vec<(TransportType, SocketAddr)> {
        let tcp = self.0.listeners().into_iter().map(|addr| (TransportType::Tcp, addr));
        tcp.chain(self.0.rdma_listeners().into_iter().map(|addr| (TransportType::Rdma, addr))).collect()
    }

    fn stop(self: Box<Self>) -> Result<(), Failure> {
        self.0.shutdown();
        self.0.join().map_err(|error| Failure::internal(format!("the target did not stop cleanly: {error}")))
    }
}
