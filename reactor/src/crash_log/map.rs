//! The shared mapping of a crash log's file, with everything that is unsafe about it.
//!
//! What is stored through a MAP_SHARED mapping is in the page cache at once and stays when the process is killed, whatever it was doing.
//! The file has all its pages from the start, so that a store never meets a full file system (SIGBUS).

use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

/// A file mapped whole. Not shared with other threads while it is written: `&mut self`.
pub(super) struct Map {
    start: NonNull<u8>,
    len: usize,
    /// Holds the lock on the file.
    _fd: OwnedFd,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is reached through this owner alone.
unsafe impl Send for Map {}

impl Map {
    /// Maps `len` bytes of `fd`, whose pages are there (fallocate) and which nobody else changes (lock, owner, mode).
    pub(super) fn new(fd: OwnedFd, len: usize) -> std::io::Result<Self> {
        assert!(len > 0, "there is something to map");
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &fd, 0)?
        };
        let start = NonNull::new(start.cast()).expect("mmap does not give out the null page");
        Ok(Self { start, len, _fd: fd })
    }

    pub(super) fn read(&self, at: usize, out: &mut [u8]) {
        assert!(at <= self.len && out.len() <= self.len - at, "inside the mapping");
        // SAFETY: inside the mapping, checked above; `out` is memory of ours and does not overlap it.
        unsafe { std::ptr::copy_nonoverlapping(self.start.as_ptr().add(at), out.as_mut_ptr(), out.len()) }
    }

    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at <= self.len && bytes.len() <= self.len - at, "inside the mapping");
        // SAFETY: inside the mapping, checked above; `bytes` is memory of ours and does not overlap it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr().add(at), bytes.len()) }
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.len, "an aligned word inside the mapping");
        // SAFETY: inside the mapping, which is page-aligned, so the word is aligned; any bits are a number.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(at).cast()) }
    }

    pub(super) fn load(&self, at: usize) -> u64 {
        // Acquire: partner is `store`, of this process or of one that died.
        u64::from_le(self.word(at).load(Ordering::Acquire))
    }

    /// Stores whole: a process that is killed leaves either the old or the new number.
    pub(super) fn store(&mut self, at: usize, value: u64) {
        // Release: what was written before is there when the number is. Partner: `load`.
        self.word(at).store(value.to_le(), Ordering::Release);
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; no reference into it outlives a method.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}
