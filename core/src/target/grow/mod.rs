//! Adding a device to a pool: the files around [`crate::pool::Joining`].
//!
//! A file is made under another name, which opening does not look for, and gets its own when its superblocks are durable. A block
//! device joins a pool in a directory by a link that is named like a file. Both ways, [`offline`] of a pool that nobody serves and
//! [`online`] of one that this process serves, take these steps in this order, and then make the catalog's record durable.

mod offline;
mod online;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use ringway_reactor::files::{Access, Allocation, OpenFile, Progress};
use uuid::Uuid;

use super::config::PoolSpec;
use super::devices::{file_in, is_block_device};
use super::error::StartError;
use crate::pool::{GrowOptions, Joining};

pub use offline::{Grown, grow};
pub(super) use online::{Grower, NeverGrows};

/// What a pool gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addition {
    /// Another file in its directory.
    File {
        /// Bytes.
        size: u64,
        /// How its space is obtained.
        allocation: Allocation,
    },
    /// A block device, whole.
    Device {
        /// Which.
        path: PathBuf,
        /// Whatever is on it.
        force: bool,
    },
}

impl Addition {
    fn is_file(&self) -> bool {
        matches!(self, Addition::File { .. })
    }

    fn options(&self) -> GrowOptions {
        GrowOptions {
            uuid: Uuid::new_v4(),
            force: matches!(self, Addition::Device { force: true, .. }),
            created_unix_s: super::unix_s(),
        }
    }
}

/// The place of a pool's next device.
struct Site {
    /// The pool's directory, if it is in one.
    folder: Option<PathBuf>,
    /// Devices that the pool has.
    known: Vec<PathBuf>,
    /// Files that earlier attempts left, found to be just that.
    left_over: Vec<PathBuf>,
}

/// A device without superblocks yet.
struct Newcomer {
    file: OpenFile,
    /// The file as it is called until it is ready; or the block device.
    path: PathBuf,
    is_file: bool,
}

impl Site {
    /// Makes or opens the device, and locks it.
    fn obtain(
        &self,
        addition: &Addition,
        joining: &Joining,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Newcomer, StartError> {
        let (file, path) = match (addition, &self.folder) {
            (Addition::File { size, allocation }, Some(folder)) => {
                let size = size / 4096 * 4096;
                joining.check_size(size)?;
                let unnamed = folder.join(format!("device-{}.ringway.new", self.known.len()));
                // Nobody else makes one: device 0 is locked, and a target has one growth at a time.
                remove(&unnamed)?;
                (OpenFile::create(&unnamed, size, *allocation, progress)?, unnamed)
            }
            (Addition::Device { path, .. }, _) => {
                if self.known.iter().any(|of_pool| same(of_pool, path)) {
                    let what = format!("{} is part of the pool already", path.display());
                    return Err(StartError::Invalid(what));
                }
                (OpenFile::open(path, Access::ReadWrite, progress)?, path.clone())
            }
            (Addition::File { .. }, None) => unreachable!("checked by `folder_of`"),
        };
        Ok(Newcomer { file, path, is_file: addition.is_file() })
    }

    /// Gives a device whose superblocks are durable its name in the pool's directory, durably; returns how it is called.
    fn name(&self, newcomer: &Newcomer) -> Result<PathBuf, StartError> {
        let Some(folder) = &self.folder else { return Ok(newcomer.path.clone()) };
        self.left_over.iter().try_for_each(|path| remove(path))?;
        let named = file_in(folder, self.known.len());
        let linked =
            if newcomer.is_file { fs::rename(&newcomer.path, &named) } else { symlink(&newcomer.path, &named) };
        linked.map_err(|source| system("make", &named, source))?;
        let synced = fs::File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|source| system("sync the folder of", &named, source))?;
        Ok(named)
    }

    /// How the pool is named once the device has joined.
    fn spec(&self, spec: &PoolSpec, newcomer: &Newcomer) -> PoolSpec {
        match &self.folder {
            Some(_) => spec.clone(),
            None => PoolSpec::Devices(self.known.iter().chain([&newcomer.path]).cloned().collect()),
        }
    }
}

impl Newcomer {
    /// It does not join: a file that was made for it goes.
    fn discard(&self) {
        if self.is_file {
            // The first error is the one to report; what stays behind is not looked at by anybody.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The directory of the pool, if it is in one. Refuses what cannot be.
fn folder_of(spec: &PoolSpec, addition: &Addition) -> Result<Option<PathBuf>, StartError> {
    let folder = match spec {
        PoolSpec::Memory(_) | PoolSpec::Null(_) => {
            let what = format!("{spec} lives in the process that serves it and cannot grow; serve a larger one");
            return Err(StartError::Invalid(what));
        }
        PoolSpec::Path(path) if path.is_file() => {
            let what = format!("{} is one file of a pool; name the directory that it is in", path.display());
            return Err(StartError::Invalid(what));
        }
        PoolSpec::Path(path) if !is_block_device(path) => Some(path.clone()),
        PoolSpec::Path(_) | PoolSpec::Devices(_) => None,
    };
    match addition {
        Addition::File { .. } if folder.is_none() => {
            let what = format!("{spec} is on block devices; add another one (`--device`)");
            Err(StartError::Invalid(what))
        }
        // Of any other path, a directory's link would lead somewhere else.
        Addition::Device { path, .. } if !path.is_absolute() || !is_block_device(path) => {
            Err(StartError::Invalid(format!("{} is no block device with an absolute path", path.display())))
        }
        _ => Ok(folder),
    }
}

fn same(one: &Path, other: &Path) -> bool {
    match (fs::canonicalize(one), fs::canonicalize(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

fn remove(path: &Path) -> Result<(), StartError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(system("remove what an earlier attempt left,", path, source))
        }
        _ => Ok(()),
    }
}

fn system(what: &str, path: &Path, source: std::io::Error) -> StartError {
    StartError::System { what: format!("cannot {what} {}", path.display()), source }
}
