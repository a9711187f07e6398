//! The files and devices of a pool: opened past the page cache, locked on the very description that does the I/O, and
//! described as the engine must know them.
//!
//! Exclusion is flock on the open file description that is registered with the rings (history C4): a killed process's ring is torn
//! down by a kernel worker, later than `waitpid` says, and only this lock stays held until the last of its writes has landed.
//! So opening retries, and says for whom it waits.
//!
//! Invariant: an [`OpenFile`] made read-write holds the exclusive lock until its last clone, and the last ring it is
//! registered with, is gone.

mod geometry;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, FlockOperation, MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::buf::PAGE;
use crate::io::FileInfo;

/// How long opening waits for the lock: a ring with I/O in flight was seen to hold it 57 ms after its process was gone; a device
/// that times out takes its 30 s.
pub const LOCK_WAIT: Duration = Duration::from_secs(30);
const LOCK_RETRY: Duration = Duration::from_millis(10);
const WRITE_CHUNK: usize = 1 << 20;

/// What lies behind an [`OpenFile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A file on a file system, opened with O_DIRECT.
    Regular,
    /// A block device, opened with O_DIRECT and O_EXCL.
    Block,
    /// Memory of this process: gone when it ends.
    Memory,
    /// Nothing: writes vanish, reads give zeros, both at once.
    Null,
}

/// What is done with the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Exclusive.
    ReadWrite,
    /// Shared with other readers, never with a writer.
    ReadOnly,
}

/// How the space of a new pool file is obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Reserved and written once: an overwrite never allocates, so it neither leaves the ring (history H15) nor fails for space.
    Written,
    /// Reserved, not written: the first write of each extent changes the file system's metadata.
    Reserved,
    /// Nothing reserved: a full file system turns into write errors.
    Sparse,
}

/// What a long step is doing; to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Somebody holds the lock.
    Waiting {
        /// The file.
        path: PathBuf,
        /// Who, and why it may take a moment.
        holder: String,
        /// For how long so far.
        waited: Duration,
    },
    /// Bytes written of the file's size.
    Writing {
        /// So far.
        done: u64,
        /// In all.
        total: u64,
    },
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Progress::Waiting { path, holder, waited } => {
                write!(f, "{} is locked by {holder}: waiting ({:.1} s)", path.display(), waited.as_secs_f32())
            }
            Progress::Writing { done, total } => write!(f, "{} of {} MiB written", done >> 20, total >> 20),
        }
    }
}

/// Why a file cannot be used. Every text names the file and what would be right.
#[derive(Debug, Error)]
pub enum FileError {
    /// There is none.
    #[error("{} does not exist", .0.display())]
    NotFound(PathBuf),
    /// There is one already.
    #[error("{} exists already; remove it or choose another place", .0.display())]
    Exists(PathBuf),
    /// It cannot do I/O past the page cache.
    #[error("{}: {file_system} cannot do direct I/O (O_DIRECT); put the pool on ext4, xfs or btrfs, on a block device, or use mem:SIZE", path.display())]
    NoDirectIo {
        /// The file.
        path: PathBuf,
        /// What it lies on.
        file_system: String,
    },
    /// Another process has it.
    #[error("{} is in use by {holder} (waited {:.1} s)", path.display(), waited.as_secs_f32())]
    InUse {
        /// The file.
        path: PathBuf,
        /// Who, as far as /proc tells.
        holder: String,
        /// For how long.
        waited: Duration,
    },
    /// It is something else.
    #[error("{} is {what}; a pool needs a regular file or a block device", path.display())]
    WrongType {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The file system has no room.
    #[error("no space for {}: {needed} bytes needed, {available} available", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// Its size.
        needed: u64,
        /// What the file system has for us.
        available: u64,
    },
    /// Its blocks are larger than the engine's.
    #[error("{} has logical blocks of {logical_block} bytes; at most 4096 are supported", path.display())]
    LargeBlocks {
        /// The file.
        path: PathBuf,
        /// Bytes.
        logical_block: u32,
    },
    /// A size that no pool file can have.
    #[error("a size of {size} bytes for {}: it has to be a multiple of 4096 and not 0", path.display())]
    BadSize {
        /// The file.
        path: PathBuf,
        /// Bytes.
        size: u64,
    },
    /// The kernel refused.
    #[error("cannot {action} {}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's words.
        source: std::io::Error,
    },
}

/// A file or device, open and locked. Clones share the description: register one with each reactor's ring.
#[derive(Clone, Debug)]
pub struct OpenFile {
    fd: Option<Arc<OwnedFd>>,
    kind: FileKind,
    info: FileInfo,
    notes: Vec<String>,
}

impl OpenFile {
    /// Opens what is there. Waits up to [`LOCK_WAIT`] for the lock and calls `progress` meanwhile.
    pub fn open(path: &Path, access: Access, progress: &mut dyn FnMut(&Progress)) -> Result<OpenFile, FileError> {
        let kind = kind_of(path)?;
        let mut flags = OFlags::DIRECT | OFlags::CLOEXEC;
        flags |= if access == Access::ReadWrite { OFlags::RDWR } else { OFlags::RDONLY };
        if kind == FileKind::Block && access == Access::ReadWrite {
            flags |= OFlags::EXCL;
        }
        let fd = retry_while_busy(path, progress, || rustix::fs::open(path, flags, Mode::empty()))?;
        Self::lock_and_measure(fd, kind, path, access, progress)
    }

    /// Makes a new pool file of `size` bytes; one that could not be finished is removed again.
    pub fn create(
        path: &Path,
        size: u64,
        allocation: Allocation,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<OpenFile, FileError> {
        if size == 0 || !size.is_multiple_of(PAGE as u64) {
            return Err(FileError::BadSize { path: path.to_owned(), size });
        }
        let flags = OFlags::DIRECT | OFlags::CLOEXEC | OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
        let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| open_error(path, errno))?;
        let made = allocate(&fd, path, size, allocation, progress)
            .and_then(|()| Self::lock_and_measure(fd, FileKind::Regular, path, Access::ReadWrite, progress));
        if made.is_err() {
            // The first error is the one to report; a file that stays behind is named in the next attempt.
            let _ = std::fs::remove_file(path);
        }
        made
    }

    /// Memory that lives as long as this and its clones.
    pub fn memory(size: u64) -> Result<OpenFile, FileError> {
        let path = PathBuf::from(format!("mem:{size}"));
        if size == 0 || !size.is_multiple_of(PAGE as u64) {
            return Err(FileError::BadSize { path, size });
        }
        let fd = rustix::fs::memfd_create("ringway", MemfdFlags::CLOEXEC)
            .and_then(|fd| rustix::fs::ftruncate(&fd, size).map(|()| fd))
            .map_err(|errno| system("make", &path, errno))?;
        let info = FileInfo { size, logical_block: 512, atomic_write_unit: 4096, deallocates: true };
        Ok(Self { fd: Some(Arc::new(fd)), kind: FileKind::Memory, info, notes: Vec::new() })
    }

    /// A device that does nothing, for benchmarks.
    #[must_use]
    pub fn null(size: u64) -> OpenFile {
        let info = FileInfo { size, logical_block: 512, atomic_write_unit: 4096, deallocates: true };
        Self { fd: None, kind: FileKind::Null, info, notes: Vec::new() }
    }

    /// What the engine must know.
    #[must_use]
    pub fn info(&self) -> FileInfo {
        self.info
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> FileKind {
        self.kind
    }

    /// What was assumed because the system did not tell; to be logged.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The description, absent for the null device.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(|fd| fd.as_fd())
    }

    fn lock_and_measure(
        fd: OwnedFd,
        kind: FileKind,
        path: &Path,
        access: Access,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<OpenFile, FileError> {
        let operation = match access {
            Access::ReadWrite => FlockOperation::NonBlockingLockExclusive,
            Access::ReadOnly => FlockOperation::NonBlockingLockShared,
        };
        retry_while_busy(path, progress, || rustix::fs::flock(&fd, operation))?;
        let (info, notes) = geometry::measure(&fd, kind, path)?;
        if info.logical_block > PAGE as u32 {
            return Err(FileError::LargeBlocks { path: path.to_owned(), logical_block: info.logical_block });
        }
        Ok(OpenFile { fd: Some(Arc::new(fd)), kind, info, notes })
    }
}

fn system(action: &'static str, path: &Path, errno: Errno) -> FileError {
    FileError::System { action, path: path.to_owned(), source: errno.into() }
}

fn kind_of(path: &Path) -> Result<FileKind, FileError> {
    let found = std::fs::metadata(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => FileError::NotFound(path.to_owned()),
        _ => FileError::System { action: "look at", path: path.to_owned(), source },
    })?;
    let kind = found.file_type();
    let what = match kind {
        _ if kind.is_file() => return Ok(FileKind::Regular),
        _ if kind.is_block_device() => return Ok(FileKind::Block),
        _ if kind.is_dir() => "a directory",
        _ if kind.is_char_device() => "a character device",
        _ if kind.is_socket() => "a socket",
        _ => "neither",
    };
    Err(FileError::WrongType { path: path.to_owned(), what })
}

fn open_error(path: &Path, errno: Errno) -> FileError {
    match errno {
        Errno::NOENT => FileError::NotFound(path.to_owned()),
        Errno::EXIST => FileError::Exists(path.to_owned()),
        Errno::INVAL => FileError::NoDirectIo { path: path.to_owned(), file_system: geometry::file_system_of(path) },
        _ => system("open", path, errno),
    }
}

/// Tries until the lock (EWOULDBLOCK) or the device (EBUSY: mounted, or held by O_EXCL) is free.
fn retry_while_busy<T>(
    path: &Path,
    progress: &mut dyn FnMut(&Progress),
    mut attempt: impl FnMut() -> Result<T, Errno>,
) -> Result<T, FileError> {
    let started = Instant::now();
    let mut told: Option<Instant> = None;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(Errno::WOULDBLOCK | Errno::BUSY) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(open_error(path, errno)),
        }
        let waited = started.elapsed();
        if waited >= LOCK_WAIT {
            return Err(FileError::InUse { path: path.to_owned(), holder: geometry::holder_of(path), waited });
        }
        if told.is_none_or(|at| at.elapsed() >= Duration::from_secs(1)) {
            told = Some(Instant::now());
            progress(&Progress::Waiting { path: path.to_owned(), holder: geometry::holder_of(path), waited });
        }
        std::thread::sleep(LOCK_RETRY);
    }
}

fn allocate(
    fd: &OwnedFd,
    path: &Path,
    size: u64,
    allocation: Allocation,
    progress: &mut dyn FnMut(&Progress),
) -> Result<(), FileError> {
    if let Some(file_system) = geometry::memory_file_system(fd) {
        return Err(FileError::NoDirectIo { path: path.to_owned(), file_system });
    }
    rustix::fs::ftruncate(fd, size).map_err(|errno| system("size", path, errno))?;
    if allocation != Allocation::Sparse {
        let available = || rustix::fs::fstatvfs(fd).map_or(u64::MAX, |fs| fs.f_bavail * fs.f_frsize);
        let no_space = |available| FileError::NoSpace { path: path.to_owned(), needed: size, available };
        // Asked first: ext4 takes all there is, from everybody, before it says that it was not enough.
        let before = available();
        if size > before {
            return Err(no_space(before));
        }
        rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, size).map_err(|errno| match errno {
            Errno::NOSPC | Errno::DQUOT => no_space(available()),
            _ => system("reserve the space of", path, errno),
        })?;
    }
    if allocation == Allocation::Written {
        write_zeros(fd, path, size, progress)?;
    }
    rustix::fs::fsync(fd).map_err(|errno| system("sync", path, errno))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| FileError::System {
        action: "sync the folder of",
        path: path.to_owned(),
        source,
    })
}

fn write_zeros(fd: &OwnedFd, path: &Path, size: u64, progress: &mut dyn FnMut(&Progress)) -> Result<(), FileError> {
    // A page more than needed: O_DIRECT wants it aligned, and a Vec does not promise that.
    let memory = vec![0u8; WRITE_CHUNK + PAGE];
    let start = memory.as_ptr().align_offset(PAGE);
    let mut done = 0;
    while done < size {
        let len = (size - done).min(WRITE_CHUNK as u64) as usize;
        match rustix::io::pwrite(fd, &memory[start..start + len], done) {
            Ok(0) => return Err(system("write", path, Errno::IO)),
            Ok(written) => done += written as u64,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(system("write", path, errno)),
        }
        progress(&Progress::Writing { done, total: size });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
