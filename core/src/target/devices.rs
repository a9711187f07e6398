//! The files and devices of a pool: found, opened, locked; or made.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use ringway_reactor::files::{Access, FileError, OpenFile, Progress};
use ringway_reactor::uring::{UringConfig, UringIo};
use uuid::Uuid;

use super::buffers;
use super::config::{FormatOptions, PoolSpec};
use super::error::StartError;
use crate::pool::{self, Layout, LayoutOptions, PoolError};
use crate::space::{Geometry, SlabArea};

/// Shards of a pool where nothing is said: as many as reactors are worth having, as long as each gets some gigabytes.
const SHARDS_DEFAULT: u64 = 8;
const SHARD_BYTES_WANTED: u64 = 256 << 20;
/// A slab of a null pool.
const NULL_SLAB: u64 = 64 << 20;
/// Metadata of a null pool, beside a journal and a slab a shard.
const NULL_METADATA: u64 = 16 << 20;

/// A pool's devices, open and locked.
pub(super) struct Devices {
    pub(super) files: Vec<OpenFile>,
    pub(super) paths: Vec<String>,
    /// Whether it ends with the process.
    pub(super) volatile: bool,
    /// Bytes that only seem to be there.
    pub(super) null_bytes: Option<u64>,
}

type Watch<'a> = &'a mut dyn FnMut(&Progress);

impl Devices {
    /// What is there.
    pub(super) fn open(spec: &PoolSpec, progress: Watch<'_>) -> Result<Devices, StartError> {
        let paths = match spec {
            PoolSpec::Path(path) => device_paths(path)?,
            PoolSpec::Devices(paths) => paths.clone(),
            PoolSpec::Memory(_) | PoolSpec::Null(_) => unreachable!("memory is made, not opened"),
        };
        let open = |path: &PathBuf| OpenFile::open(path, Access::ReadWrite, progress);
        let files = paths.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        Ok(Devices::of_paths(files, &paths))
    }

    fn of_paths(files: Vec<OpenFile>, paths: &[PathBuf]) -> Devices {
        for note in files.iter().flat_map(OpenFile::notes) {
            tracing::info!("{note}");
        }
        // Whoever reads them may have another working directory.
        let paths = paths.iter().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
        let paths = paths.map(|path| path.display().to_string()).collect();
        Devices { files, paths, volatile: false, null_bytes: None }
    }

    /// Makes them, and a pool on them.
    pub(super) fn format(spec: &PoolSpec, options: &FormatOptions, progress: Watch<'_>) -> Result<Devices, StartError> {
        let mut options = options.clone();
        let mut created = None;
        let mut devices = match spec {
            PoolSpec::Path(path) if !is_block_device(path) => {
                vec![created.insert(create_file(path, &options, progress)?).clone()]
            }
            PoolSpec::Path(path) => vec![path.clone()],
            PoolSpec::Devices(paths) => paths.clone(),
            PoolSpec::Memory(bytes) => return Devices::memory(*bytes, &options),
            PoolSpec::Null(bytes) => {
                options.slab_bytes = Some(NULL_SLAB);
                options.journal_bytes = Some(1 << 20);
                let shards = *options.shards.get_or_insert(SHARDS_DEFAULT as u16);
                let metadata = NULL_METADATA + u64::from(shards) * ((2 << 20) + NULL_SLAB);
                let mut devices = Devices::memory(metadata, &options)?;
                devices.files.push(OpenFile::null(*bytes));
                devices.paths = vec!["metadata in memory".to_owned(), "null".to_owned()];
                devices.null_bytes = Some(*bytes);
                return Ok(devices);
            }
        };
        let open = |path: &PathBuf| OpenFile::open(path, Access::ReadWrite, progress);
        let files = devices.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        write_pool(&files, &options).inspect_err(|_| {
            if let Some(file) = created {
                // The first error is the one to report; a file that stays behind is named in the next attempt.
                let _ = fs::remove_file(file);
            }
        })?;
        Ok(Devices::of_paths(files, &std::mem::take(&mut devices)))
    }

    fn memory(bytes: u64, options: &FormatOptions) -> Result<Devices, StartError> {
        let files = vec![OpenFile::memory(bytes)?];
        write_pool(&files, options)?;
        Ok(Devices { files, paths: vec!["mem".to_owned()], volatile: true, null_bytes: None })
    }

    /// A ring for the steps before anything is served, with these devices.
    pub(super) fn setup_ring(&self) -> Result<UringIo, StartError> {
        // A null device has no superblock to read.
        let real = self.files.len() - usize::from(self.null_bytes.is_some());
        setup_ring(&self.files[..real])
    }

    /// Names the file that a directory lacks.
    pub(super) fn name_missing(&self, spec: &PoolSpec, error: PoolError) -> StartError {
        match (spec, error) {
            (PoolSpec::Path(path), PoolError::Missing { found, expected }) if path.is_dir() => {
                StartError::MissingDevice { path: file_in(path, found), expected }
            }
            (_, error) => error.into(),
        }
    }

    /// Lets go of files that turned out not to be part of the pool.
    pub(super) fn keep(&mut self, devices: usize) {
        if self.null_bytes.is_none() {
            self.files.truncate(devices);
            self.paths.truncate(devices);
        }
    }

    /// In a null pool, all space is on the device that is none; its metadata has a device in memory.
    pub(super) fn geometry(&self, geometry: &Geometry) -> Option<Geometry> {
        let bytes = self.null_bytes?;
        let first = SlabArea { slabs: 0, ..geometry.areas()[0] };
        let slab = geometry.slab_bytes();
        let null = SlabArea { start: 1 << 20, slabs: (bytes.saturating_sub(1 << 20) / slab) as u32 };
        Some(Geometry::new(slab, vec![first, null]))
    }
}

pub(super) fn setup_ring(files: &[OpenFile]) -> Result<UringIo, StartError> {
    let mut io = UringIo::new(&UringConfig { entries: 64, ..UringConfig::new(vec![buffers::setup()], 0) })?;
    for file in files {
        io.add_file(file)?;
    }
    Ok(io)
}

fn write_pool(files: &[OpenFile], options: &FormatOptions) -> Result<(), StartError> {
    let bytes: u64 = files.iter().map(|file| file.info().size).sum();
    let mut io = setup_ring(files)?;
    let options = pool::FormatOptions {
        uuid: Uuid::new_v4(),
        device_uuids: files.iter().map(|_| Uuid::new_v4()).collect(),
        shards: shards(options, bytes),
        layout: layout_options(options),
        assume_atomic_4k: options.assume_atomic_4k,
        force: options.force,
        created_unix_s: super::unix_s(),
        backend: options.backend.clone(),
    };
    pool::format(&mut io, &options, &mut |_| {})?;
    Ok(())
}

/// Of a pool of so many bytes.
fn shards(options: &FormatOptions, bytes: u64) -> u16 {
    options.shards.unwrap_or_else(|| (bytes / SHARD_BYTES_WANTED).clamp(1, SHARDS_DEFAULT) as u16)
}

fn layout_options(options: &FormatOptions) -> LayoutOptions {
    LayoutOptions { journal_bytes: options.journal_bytes, slab_bytes: options.slab_bytes, ..LayoutOptions::default() }
}

pub(super) fn is_block_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

pub(super) fn file_in(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("device-{number}.ringway"))
}

/// The device behind a path, or the files in a directory.
fn device_paths(path: &Path) -> Result<Vec<PathBuf>, StartError> {
    // Whatever is no directory says itself what it is when it is opened; a device that is missing is no empty pool.
    if path.exists() && !path.is_dir() || lacks_device(path) {
        return Ok(vec![path.to_owned()]);
    }
    let files: Vec<_> = (0..).map(|number| file_in(path, number)).take_while(|file| file.exists()).collect();
    if files.is_empty() { Err(StartError::NoPool(path.to_owned())) } else { Ok(files) }
}

/// A device's name without a device: a slip, and no place for files.
fn lacks_device(path: &Path) -> bool {
    path.starts_with("/dev") && !path.exists()
}

fn create_file(folder: &Path, options: &FormatOptions, progress: Watch<'_>) -> Result<PathBuf, StartError> {
    if lacks_device(folder) {
        return Err(FileError::NotFound(folder.to_owned()).into());
    }
    if folder.exists() && !folder.is_dir() {
        let what = format!("{} is neither a directory nor a block device; a pool needs one of them", folder.display());
        return Err(StartError::Invalid(what));
    }
    let Some(size) = options.size else {
        return Err(StartError::Invalid(format!(
            "a pool in the directory {} needs a size; give one such as 10G",
            folder.display()
        )));
    };
    let size = size / 4096 * 4096;
    // Before anything is made, or an old pool is removed.
    Layout::compute(&[size], shards(options, size), &layout_options(options))?;
    let failed = |what: &str| {
        let what = format!("cannot {what} {}", folder.display());
        move |source| StartError::System { what, source }
    };
    fs::create_dir_all(folder).map_err(failed("make the directory"))?;
    let file = file_in(folder, 0);
    if file.exists() {
        if !options.force {
            return Err(StartError::PoolExists(folder.to_owned()));
        }
        for old in device_paths(folder)? {
            // Locked by a running target, it is not ours to remove.
            drop(OpenFile::open(&old, Access::ReadWrite, progress)?);
            fs::remove_file(&old).map_err(failed("remove the old pool in"))?;
        }
    }
    OpenFile::create(&file, size, options.allocation, progress)?;
    Ok(file)
}
