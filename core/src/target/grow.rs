//! Adding a device to a pool that nobody serves: the files around [`crate::pool::prepare_device`].
//!
//! A file is made under another name, which opening does not look for, and gets its own when its superblocks are durable. A block
//! device joins a pool in a directory by a link that is named like a file.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use ringway_reactor::files::{Access, Allocation, FileError, OpenFile, Progress};
use uuid::Uuid;

use super::config::PoolSpec;
use super::devices::{Devices, file_in, is_block_device, setup_ring};
use super::error::StartError;
use crate::pool::{self, GrowOptions, OpenPool};

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

/// A pool that has grown.
#[derive(Debug)]
pub struct Grown {
    /// As it is found now.
    pub pool: OpenPool,
    /// How it is named from now on.
    pub spec: PoolSpec,
    /// The device that joined.
    pub device: PathBuf,
}

/// Adds a device to a pool that nobody serves.
pub fn grow(spec: &PoolSpec, addition: &Addition, progress: &mut dyn FnMut(&Progress)) -> Result<Grown, StartError> {
    let folder = check(spec, addition)?;
    let devices = Devices::open(spec, progress).map_err(|error| served(spec, error))?;
    let found = pool::inspect(&mut devices.setup_ring()?).map_err(|error| devices.name_missing(spec, error))?;
    let count = found.superblocks.len();
    let paths: Vec<PathBuf> = devices.paths[..count].iter().map(PathBuf::from).collect();
    let left_over: Vec<PathBuf> = devices.paths[count..].iter().map(PathBuf::from).collect();
    let mut files = devices.files;
    files.truncate(count);
    let (file, name) = match (addition, folder) {
        (Addition::File { size, allocation }, Some(folder)) => {
            let size = size / 4096 * 4096;
            let minimum = pool::joining_bytes_min(found.layout.geometry.slab_bytes());
            if size < minimum {
                let device = count as u16;
                return Err(pool::PoolError::TooSmallToJoin { device, found: size, minimum }.into());
            }
            let unnamed = folder.join(format!("device-{count}.ringway.new"));
            // Nobody else makes one: device 0 is locked.
            remove(&unnamed)?;
            (OpenFile::create(&unnamed, size, *allocation, progress)?, Some((folder, unnamed)))
        }
        (Addition::Device { path, .. }, folder) => {
            if paths.iter().any(|of_pool| same(of_pool, path)) {
                let what = format!("{} is part of the pool already", path.display());
                return Err(StartError::Invalid(what));
            }
            (OpenFile::open(path, Access::ReadWrite, progress)?, folder.map(|folder| (folder, path.clone())))
        }
        (Addition::File { .. }, None) => unreachable!("checked above"),
    };
    files.push(file);
    let options = GrowOptions {
        uuid: Uuid::new_v4(),
        force: matches!(addition, Addition::Device { force: true, .. }),
        created_unix_s: super::unix_s(),
    };
    let is_file = matches!(addition, Addition::File { .. });
    let device = join(&files, &options, name.as_ref(), is_file, count, &left_over).inspect_err(|_| {
        if let (true, Some((_, unnamed))) = (is_file, &name) {
            // The first error is the one to report; what stays behind is not looked at by anybody.
            let _ = fs::remove_file(unnamed);
        }
    })?;
    let (device, spec) = match (device, addition, spec) {
        (Some(named), ..) => (named, spec.clone()),
        (None, Addition::Device { path, .. }, _) => {
            let all = paths.iter().chain([path]).cloned().collect();
            (path.clone(), PoolSpec::Devices(all))
        }
        (None, Addition::File { .. }, _) => unreachable!("a file is in the pool's directory"),
    };
    Ok(Grown { pool: pool::inspect(&mut setup_ring(&files)?)?, spec, device })
}

/// Superblocks, the name in the directory, the catalog's record, each durable before the next. Returns the name.
fn join(
    files: &[OpenFile],
    options: &GrowOptions,
    name: Option<&(PathBuf, PathBuf)>,
    is_file: bool,
    number: usize,
    left_over: &[PathBuf],
) -> Result<Option<PathBuf>, StartError> {
    let mut io = setup_ring(files)?;
    let growing = pool::prepare_device(&mut io, options)?;
    let named = match name {
        Some((folder, from)) => {
            // What earlier attempts left, as opening has found.
            left_over.iter().try_for_each(|path| remove(path))?;
            let named = file_in(folder, number);
            let linked = if is_file { fs::rename(from, &named) } else { symlink(from, &named) };
            linked.map_err(|source| system("make", &named, source))?;
            let synced = fs::File::open(folder).and_then(|folder| folder.sync_all());
            synced.map_err(|source| system("sync the folder of", &named, source))?;
            Some(named)
        }
        None => None,
    };
    growing.commit(&mut io)?;
    Ok(named)
}

/// The directory of the pool, if it is in one. Refuses what cannot be.
fn check(spec: &PoolSpec, addition: &Addition) -> Result<Option<PathBuf>, StartError> {
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

fn served(spec: &PoolSpec, error: StartError) -> StartError {
    match error {
        StartError::File(FileError::InUse { path, holder, waited }) => {
            let holder =
                format!("{holder}: pool {spec} grows only while it is not served; stop its target and run this again");
            StartError::File(FileError::InUse { path, holder, waited })
        }
        other => other,
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
