//! Where the logs lie that survive the process: chosen once, written down in the catalog, found again from there (history C3).
//!
//! ```text
//! the pool was closed in good order, or the machine has been restarted:   choose a folder, make new logs
//! the last process died on this very boot of the machine:                 its logs, in the folder that the catalog names
//!     one of them is not there:                                           lost as by power: said, and hosts are told
//! ```
//! The folder is written down together with the boot, so before the first write is acknowledged. What the next process is
//! started with, another runtime folder for example, does not matter.

use std::path::{Path, PathBuf};

use ringway_reactor::crash_log::{CrashLog, CrashLogConfig, CrashLogError, Found, boot_id, instance_of, shared_memory};

use super::config::TargetConfig;
use super::devices::Devices;
use super::error::StartError;
use super::log::{Kept, ProcessLog};
use crate::catalog::KeptLogs;
use crate::ids::ShardId;
use crate::pool::OpenPool;

/// Bytes of each shard's log: some ten thousand map changes within a commit interval.
const LOG_BYTES: u64 = 4 << 20;

/// The log of each shard.
pub(super) type Logs = Vec<(ShardId, ProcessLog)>;

/// The logs of a pool.
pub(super) struct PoolLogs {
    pub(super) logs: Logs,
    /// For the catalog; `None`: the pool does not outlive the process either.
    pub(super) kept: Option<KeptLogs>,
    /// Acknowledged writes of the last process may be lost: the machine was restarted, or the logs are gone.
    pub(super) lost: bool,
    /// Nobody needs these files once the pool is closed in good order.
    pub(super) paths: Vec<PathBuf>,
}

/// Finds or makes the logs of `found`, for its next generation.
pub(super) fn open_logs(config: &TargetConfig, devices: &Devices, found: &OpenPool) -> Result<PoolLogs, StartError> {
    let shards = (0..found.layout.shards).map(ShardId);
    if devices.volatile {
        let logs = shards.map(|shard| (shard, ProcessLog::Nothing)).collect();
        return Ok(PoolLogs { logs, kept: None, lost: false, paths: Vec::new() });
    }
    let machine = boot_id().map_err(system("cannot tell the boot of this machine"))?;
    let device = Path::new(&devices.paths[0]);
    let names = Names {
        pool: found.uuid.into_bytes(),
        instance: instance_of(device).map_err(system("cannot look at the pool's first device"))?,
        generation: u64::from(found.generation) + 1,
        shards: found.layout.shards,
    };
    let left = found.catalog.logs().filter(|left| !found.clean && left.machine == machine);
    let (logs, folder, lost) = match left {
        Some(left) => names.find(Path::new(&left.folder), config)?,
        None => {
            let (logs, folder) = names.make(config)?;
            (logs, folder, !found.clean)
        }
    };
    let paths = logs.iter().map(|log| log.path().to_owned()).collect();
    let logs = shards.zip(logs).map(|(shard, log)| (shard, ProcessLog::Shared(Kept(log)))).collect();
    let kept = Some(KeptLogs { machine, folder: folder.display().to_string() });
    Ok(PoolLogs { logs, kept, lost, paths })
}

fn system(what: &str) -> impl FnOnce(std::io::Error) -> StartError + use<> {
    let what = what.to_owned();
    move |source| StartError::System { what, source }
}

/// Whose logs they are.
struct Names {
    pool: [u8; 16],
    instance: [u8; 16],
    generation: u64,
    shards: u16,
}

impl Names {
    /// What each shard's log is opened with, in the order of the shards.
    fn of<'a>(&'a self, folder: &'a Path) -> impl Iterator<Item = CrashLogConfig> + 'a {
        (0..self.shards).map(|shard| CrashLogConfig {
            folder: folder.to_owned(),
            pool: self.pool,
            instance: self.instance,
            shard: u32::from(shard),
            generation: self.generation,
            capacity: LOG_BYTES,
        })
    }

    /// The logs of the process before, where it left them; whether any is lost.
    fn find(&self, left: &Path, config: &TargetConfig) -> Result<(Vec<CrashLog>, PathBuf, bool), StartError> {
        let mut found = Vec::new();
        for of in self.of(left) {
            let log = CrashLog::find(&of)?;
            match &log {
                Ok(log) => told(log, of.shard),
                Err(why) => tracing::warn!(
                    shard = of.shard,
                    why,
                    "the log of the process before is gone, although this machine has not been restarted: writes that were \
                     acknowledged and not flushed may be lost, and hosts learn so at their next flush; targets in containers \
                     need one /dev/shm, or a folder given by --crash-log, that outlives each of them"
                ),
            }
            found.push(log);
        }
        if found.iter().all(Result::is_err) {
            let (logs, folder) = self.make(config)?;
            return Ok((logs, folder, true));
        }
        let lost = found.iter().any(Result::is_err);
        let logs = found.into_iter().zip(self.of(left)).map(|(log, of)| log.or_else(|_| CrashLog::open(&of)));
        Ok((logs.collect::<Result<_, _>>()?, left.to_owned(), lost))
    }

    /// New logs, in the best folder there is.
    fn make(&self, config: &TargetConfig) -> Result<(Vec<CrashLog>, PathBuf), StartError> {
        // Whoever looks for them has another working directory.
        let absolute = |folder: &Path| std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        if let Some(folder) = &config.crash_log {
            std::fs::create_dir_all(folder).map_err(system(&format!("cannot make {}", folder.display())))?;
            return Ok((self.make_in(folder)?, absolute(folder)));
        }
        if let Some(folder) = shared_memory() {
            match self.make_in(&folder) {
                Ok(logs) => return Ok((logs, folder)),
                // Not for this user, or too small: Docker gives a container 64 MiB.
                Err(error @ CrashLogError::System { .. }) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    folder = %config.runtime.display(),
                    "the log that survives this process does not fit shared memory and lies in the runtime folder, which has to \
                     outlive the process"
                ),
                Err(error) => return Err(error.into()),
            }
        } else {
            tracing::warn!(
                folder = %config.runtime.display(),
                "/dev/shm is no memory here: the log that survives this process lies in the runtime folder, which has to outlive \
                 the process"
            );
        }
        Ok((self.make_in(&config.runtime)?, absolute(&config.runtime)))
    }

    /// All of them, or none.
    fn make_in(&self, folder: &Path) -> Result<Vec<CrashLog>, CrashLogError> {
        let mut logs: Vec<CrashLog> = Vec::new();
        for of in self.of(folder) {
            match CrashLog::open(&of) {
                Ok(log) => {
                    told(&log, of.shard);
                    logs.push(log);
                }
                Err(error) => {
                    // The one that failed may be there in part.
                    let paths = logs.iter().map(|log| log.path().to_owned()).chain([of.path()]).collect::<Vec<_>>();
                    if matches!(error, CrashLogError::System { .. }) {
                        forget(&paths);
                    }
                    return Err(error);
                }
            }
        }
        Ok(logs)
    }
}

/// Removes logs that nobody needs any more. While they are, the pool is still locked, or the next process's would go.
pub(super) fn forget(paths: &[PathBuf]) {
    for path in paths {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "a crash log that is no longer needed cannot be removed");
            }
            _ => {}
        }
    }
}

fn told(log: &CrashLog, shard: u32) {
    match log.found() {
        Found::Records(0) | Found::Nothing => {}
        Found::Records(count) => tracing::info!(shard, count, "records of a process that died are replayed"),
        Found::Stale(why) => tracing::warn!(shard, why, "an old crash log is not replayed"),
    }
}
