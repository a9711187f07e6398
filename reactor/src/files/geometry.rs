//! What the system tells about a file or device: sizes, blocks, what tears, who holds the lock.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;

use super::{FileError, FileKind, system};
use crate::io::FileInfo;

/// TMPFS_MAGIC and RAMFS_MAGIC of statfs(2).
const MEMORY_FILE_SYSTEMS: [(u32, &str); 2] = [(0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs")];

/// ext4, xfs, btrfs.
const PUNCHING_FILE_SYSTEMS: [u32; 3] = [0xef53, 0x5846_5342, 0x9123_683e];

/// Measures an open file; the notes say what had to be assumed.
pub(super) fn measure(fd: &OwnedFd, kind: FileKind, path: &Path) -> Result<(FileInfo, Vec<String>), FileError> {
    // A device node lies in devtmpfs, which says that it is a tmpfs; what the node stands for does not.
    if kind != FileKind::Block
        && let Some(file_system) = memory_file_system(fd)
    {
        return Err(FileError::NoDirectIo { path: path.to_owned(), file_system });
    }
    let size = rustix::fs::seek(fd, SeekFrom::End(0)).map_err(|errno| system("size", path, errno))?;
    let stat = rustix::fs::fstat(fd).map_err(|errno| system("look at", path, errno))?;
    let queue = queue_of(if kind == FileKind::Block { stat.st_rdev } else { stat.st_dev });
    let mut notes = Vec::new();
    let info = match kind {
        FileKind::Block => FileInfo {
            size,
            logical_block: rustix::fs::ioctl_blksszget(fd)
                .map_err(|errno| system("ask the block size of", path, errno))?,
            atomic_write_unit: atomic_unit(&queue, path, &mut notes),
            deallocates: number(&queue, "write_zeroes_max_bytes") > 0 && number(&queue, "discard_max_bytes") > 0,
        },
        _ => FileInfo {
            size,
            logical_block: direct_io_block(fd, &queue, path, &mut notes),
            // Larger atomic writes of the device do not survive the file system's own splitting.
            atomic_write_unit: atomic_unit(&queue, path, &mut notes).min(4096),
            deallocates: punches_holes(fd, size),
        },
    };
    Ok((info, notes))
}

/// Whether holes can be punched: tried behind the end, where nothing is. A file that was opened for reading cannot be asked; its
/// file system is known or taken to do without.
fn punches_holes(fd: &OwnedFd, size: u64) -> bool {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(fd, flags, size.next_multiple_of(4096), 4096) {
        Err(Errno::BADF) => {
            rustix::fs::fstatfs(fd).is_ok_and(|found| PUNCHING_FILE_SYSTEMS.contains(&(found.f_type as u32)))
        }
        tried => tried.is_ok(),
    }
}

/// Smallest aligned unit that O_DIRECT takes: statx says (Linux 6.1), or the device below.
fn direct_io_block(fd: &OwnedFd, queue: &Option<PathBuf>, path: &Path, notes: &mut Vec<String>) -> u32 {
    if let Ok(found) = rustix::fs::statx(fd, "", rustix::fs::AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        && found.stx_mask & StatxFlags::DIOALIGN.bits() != 0
        && found.stx_dio_offset_align > 0
    {
        return found.stx_dio_offset_align.max(512);
    }
    match number(queue, "logical_block_size") {
        0 => {
            notes.push(format!("{}: alignment of direct I/O unknown, 4096 assumed", path.display()));
            4096
        }
        block => block as u32,
    }
}

fn atomic_unit(queue: &Option<PathBuf>, path: &Path, notes: &mut Vec<String>) -> u32 {
    let atomic = number(queue, "atomic_write_unit_max_bytes");
    let unit = if atomic > 0 { atomic } else { number(queue, "physical_block_size") };
    if unit == 0 {
        notes.push(format!(
            "{}: the device below does not tell what it writes atomically, 512 bytes assumed",
            path.display()
        ));
        return 512;
    }
    let unit = unit.min(1 << 30) as u32;
    // A power of two by definition; rounded down in case a driver says otherwise.
    1 << unit.ilog2()
}

/// The folder `queue` of the disk with this number; a partition's is its parent's.
fn queue_of(device: u64) -> Option<PathBuf> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let mut disk = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    if disk.join("partition").exists() {
        disk.pop();
    }
    Some(disk.join("queue")).filter(|queue| queue.exists())
}

/// A number in a file of `queue`, 0 if there is none.
fn number(queue: &Option<PathBuf>, name: &str) -> u64 {
    queue
        .as_ref()
        .and_then(|queue| std::fs::read_to_string(queue.join(name)).ok())
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// The name of the file system if it is one in memory. (Newer kernels accept O_DIRECT there.)
pub(super) fn memory_file_system(fd: &OwnedFd) -> Option<String> {
    let magic = rustix::fs::fstatfs(fd).ok()?.f_type as u32;
    MEMORY_FILE_SYSTEMS.iter().find(|known| known.0 == magic).map(|known| known.1.to_owned())
}

/// The type of the file system that `path` is on, as the mount table tells.
pub(super) fn file_system_of(path: &Path) -> String {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            Some((words.next()?, words.next()?))
        })
        .filter(|(point, _)| folder.starts_with(point))
        .max_by_key(|(point, _)| point.len())
        .map_or_else(|| "its file system".to_owned(), |(_, kind)| kind.to_owned())
}

/// Who holds the lock, from /proc/locks, with what is known about that process.
pub(super) fn holder_of(path: &Path) -> String {
    let unknown = "another process".to_owned();
    let Ok(found) = std::fs::metadata(path) else { return unknown };
    let (major, minor) = (rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()));
    let wanted = format!("{major:02x}:{minor:02x}:{}", found.ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let Some(pid) = locks.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        (words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&wanted.as_str())).then(|| words[4].to_owned())
    }) else {
        return unknown;
    };
    if pid == std::process::id().to_string() {
        return format!("this process ({pid})");
    }
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim()),
        Err(_) => format!("process {pid}, which has ended: the kernel is finishing its I/O"),
    }
}
