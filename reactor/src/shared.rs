//! Memory that another process shares with us, and may write, shrink or leave at any moment.
//!
//! Three things make it safe to use. Nobody gets a reference into it: loads and stores are atomic or volatile copies between it and
//! memory of our own. It stays mapped while anything refers to it: each mapping is behind an [`Arc`], and so is each operation that
//! the kernel carries out on it. And a page that the peer took away under us (`ftruncate` of a file that is not sealed) faults into
//! [`on_fault`], which puts a page of zeros there and marks the mapping, so that its owner ends that one connection; the
//! kernel's own accesses end with EFAULT instead.
//!
//! Invariant: a mapping is in [`GUARDED`] from before its first access until after its last.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::buf::PAGE;
use crate::prefetch::prefetch_for_write;

/// Mappings of a process at most: a guest has a handful, a ring one.
const MAPPINGS_MAX: usize = 4096;

/// A guarded range of addresses; free where `start` is 0.
struct Guard {
    start: AtomicUsize,
    end: AtomicUsize,
    faulted: AtomicBool,
}

static GUARDED: [Guard; MAPPINGS_MAX] =
    [const { Guard { start: AtomicUsize::new(0), end: AtomicUsize::new(0), faulted: AtomicBool::new(false) } };
        MAPPINGS_MAX];

/// The action that was there before ours, for faults that are not ours.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs [`on_fault`] once.
fn guard_faults() {
    PREVIOUS.get_or_init(|| {
        // SAFETY: both structures are plain data for which zeros are a value; the handler only does what a signal handler may
        // (atomics, mmap, sigaction).
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK;
            let mut previous: libc::sigaction = std::mem::zeroed();
            let done = libc::sigaction(libc::SIGBUS, &action, &mut previous);
            assert_eq!(done, 0, "SIGBUS can be caught");
            previous
        }
    });
}

/// A page that was there when the memory was mapped is not any more.
extern "C" fn on_fault(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    // Acquire pairs with the release of `SharedMemory::map`: who sees a start sees its end.
    let guard = GUARDED.iter().find(|guard| {
        let start = guard.start.load(Ordering::Acquire);
        start != 0 && address >= start && address < guard.end.load(Ordering::Relaxed)
    });
    if let Some(guard) = guard {
        let page = address & !(PAGE - 1);
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: the page lies in a mapping of ours that is in use right now (somebody faulted in it), so that nothing else is
        // replaced; the access is repeated and finds zeros.
        let mapped =
            unsafe { libc::mmap(page as *mut libc::c_void, PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if mapped != libc::MAP_FAILED {
            guard.faulted.store(true, Ordering::Release);
            return;
        }
    }
    // Not ours: whatever was there before gets it when the access is repeated.
    if let Some(previous) = PREVIOUS.get() {
        // SAFETY: it is the action that sigaction returned.
        unsafe { libc::sigaction(libc::SIGBUS, previous, std::ptr::null_mut()) };
    }
}

/// Why memory of a peer is not taken.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// The kernel refused.
    #[error("memory of {len} bytes cannot be mapped: {source}")]
    Map {
        /// Its length.
        len: usize,
        /// The kernel's words.
        source: io::Error,
    },
    /// It is not where it was said to be.
    #[error("the memory's file has {size} bytes, which do not hold {len} bytes at offset {offset}")]
    Short {
        /// Bytes of the file.
        size: u64,
        /// What was to be mapped.
        offset: u64,
        /// Its length.
        len: usize,
    },
    /// Its file may shrink.
    #[error(
        "the memory is not sealed against shrinking and growing (F_SEAL_SHRINK, F_SEAL_GROW): seal the memfd before sending it"
    )]
    NotSealed,
    /// A range that is not in it.
    #[error("{len} bytes at offset {offset} do not lie in {size} bytes of memory")]
    OutOfBounds {
        /// Where it was to start.
        offset: u64,
        /// How long it was to be.
        len: u64,
        /// What there is.
        size: usize,
    },
    /// Too many at once.
    #[error("{MAPPINGS_MAX} pieces of memory are mapped already")]
    TooMany,
}

/// One mapping.
pub struct SharedMemory {
    start: NonNull<u8>,
    len: usize,
    /// Its place in [`GUARDED`].
    guard: usize,
}

// SAFETY: all access is by atomics or by copies that tolerate any other writer; the mapping belongs to no thread.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Maps `len` bytes of `file` from `offset` on, readable and writable.
    pub fn map(file: impl AsFd, offset: u64, len: usize) -> Result<Arc<SharedMemory>, SharedError> {
        let refused = |source: rustix::io::Errno| SharedError::Map { len, source: source.into() };
        let size = rustix::fs::fstat(&file).map_err(refused)?.st_size as u64;
        if len == 0 || offset.checked_add(len as u64).is_none_or(|end| end > size) {
            return Err(SharedError::Short { size, offset, len });
        }
        guard_faults();
        // SAFETY: a new mapping at a place of the kernel's choice; what it holds is only accessed as the module says.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                file,
                offset,
            )
        }
        .map_err(refused)?;
        let start = NonNull::new(start.cast()).expect("a mapping is not at 0");
        match claim_guard(start.as_ptr() as usize, len) {
            Some(guard) => Ok(Arc::new(SharedMemory { start, len, guard })),
            None => {
                // SAFETY: just mapped, and nobody knows of it.
                let _ = unsafe { rustix::mm::munmap(start.as_ptr().cast(), len) };
                Err(SharedError::TooMany)
            }
        }
    }

    /// As [`SharedMemory::map`] of the whole file, which has to be sealed so that it can neither shrink nor grow.
    pub fn map_sealed(file: impl AsFd) -> Result<Arc<SharedMemory>, SharedError> {
        let seals = rustix::fs::fcntl_get_seals(&file).unwrap_or(SealFlags::empty());
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return Err(SharedError::NotSealed);
        }
        let refused = |source: rustix::io::Errno| SharedError::Map { len: 0, source: source.into() };
        let size = rustix::fs::fstat(&file).map_err(refused)?.st_size;
        Self::map(file, 0, usize::try_from(size).unwrap_or(0))
    }

    /// A new memfd of `len` bytes, zeroed, sealed against shrinking, growing and unsealing; and its mapping.
    pub fn create(name: &str, len: usize) -> Result<(OwnedFd, Arc<SharedMemory>), SharedError> {
        let refused = |source: rustix::io::Errno| SharedError::Map { len, source: source.into() };
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map_err(refused)?;
        rustix::fs::ftruncate(&fd, len as u64).map_err(refused)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).map_err(refused)?;
        let memory = Self::map(&fd, 0, len)?;
        Ok((fd, memory))
    }

    /// Bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "nothing empty can be mapped")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Address of its first byte in this process, for the ring's registration and for tables that translate addresses.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Whether the peer took a page of it away while we used it. Its owner ends the connection.
    #[must_use]
    pub fn is_faulted(&self) -> bool {
        GUARDED[self.guard].faulted.load(Ordering::Acquire)
    }

    /// The address of `len` bytes at `offset`.
    fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes at offset {offset} of {} bytes of shared memory",
            self.len
        );
        // SAFETY: inside the mapping, checked above.
        unsafe { self.start.add(offset) }
    }

    fn atomic_u16(&self, offset: usize) -> &AtomicU16 {
        let at = self.at(offset, 2);
        assert!(at.as_ptr().addr().is_multiple_of(2), "a 16-bit word at offset {offset}");
        // SAFETY: in bounds, aligned, mapped as long as `self`; both sides access it by atomics, and one that does not only harms
        // what it reads itself.
        unsafe { AtomicU16::from_ptr(at.as_ptr().cast()) }
    }

    /// Its own among all that are mapped in this process, and small.
    #[must_use]
    pub fn number(&self) -> usize {
        self.guard
    }

    /// Allocates the pages of a part that are not there yet, so that nobody waits for that later.
    pub fn populate(&self, part: Range<usize>) -> io::Result<()> {
        let start = self.at(part.start, part.len());
        let advice = rustix::mm::Advice::LinuxPopulateWrite;
        // SAFETY: within the mapping, whose contents it does not change.
        Ok(unsafe { rustix::mm::madvise(start.as_ptr().cast(), part.len(), advice) }?)
    }

    /// Whether all pages of a part are there at this moment. It starts on a page.
    #[must_use]
    pub fn is_populated(&self, part: Range<usize>) -> bool {
        let start = self.at(part.start, part.len());
        let mut pages = vec![0u8; part.len().div_ceil(PAGE)];
        // SAFETY: within the mapping, and there is a byte for each of its pages.
        let asked = unsafe { libc::mincore(start.as_ptr().cast(), part.len(), pages.as_mut_ptr()) };
        asked == 0 && pages.iter().all(|page| page & 1 == 1)
    }

    fn atomic_u32(&self, offset: usize) -> &AtomicU32 {
        let at = self.at(offset, 4);
        assert!(at.as_ptr().addr().is_multiple_of(4), "a 32-bit word at offset {offset}");
        // SAFETY: as for 16 bits.
        unsafe { AtomicU32::from_ptr(at.as_ptr().cast()) }
    }

    fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        let at = self.at(offset, 8);
        assert!(at.as_ptr().addr().is_multiple_of(8), "a 64-bit word at offset {offset}");
        // SAFETY: as for 16 bits.
        unsafe { AtomicU64::from_ptr(at.as_ptr().cast()) }
    }

    /// One 16-bit word. Words are naturally aligned and in bounds, or these calls panic: their offsets are checked where they
    /// come in.
    #[must_use]
    pub fn load_u16(&self, offset: usize, order: Ordering) -> u16 {
        self.atomic_u16(offset).load(order)
    }

    /// One 32-bit word.
    #[must_use]
    pub fn load_u32(&self, offset: usize, order: Ordering) -> u32 {
        self.atomic_u32(offset).load(order)
    }

    /// One 64-bit word.
    #[must_use]
    pub fn load_u64(&self, offset: usize, order: Ordering) -> u64 {
        self.atomic_u64(offset).load(order)
    }

    /// Stores a 16-bit word.
    pub fn store_u16(&self, offset: usize, value: u16, order: Ordering) {
        self.atomic_u16(offset).store(value, order);
    }

    /// Stores a 32-bit word.
    pub fn store_u32(&self, offset: usize, value: u32, order: Ordering) {
        self.atomic_u32(offset).store(value, order);
    }

    /// Stores a 64-bit word.
    pub fn store_u64(&self, offset: usize, value: u64, order: Ordering) {
        self.atomic_u64(offset).store(value, order);
    }

    /// Sets bits of a 64-bit word; returns what it was.
    pub fn fetch_or_u64(&self, offset: usize, bits: u64, order: Ordering) -> u64 {
        self.atomic_u64(offset).fetch_or(bits, order)
    }

    /// Copies `to.len()` bytes from `offset` on. What the peer writes meanwhile may be seen in part.
    pub fn read(&self, offset: usize, to: &mut [u8]) {
        let from = self.at(offset, to.len());
        // SAFETY: in bounds; `to` is ours alone, and raw copies make no claim about who else writes the source.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr(), to.len()) };
    }

    /// Copies `N` bytes from `offset` on: a descriptor or a command, looked at only in the copy.
    #[must_use]
    pub fn read_array<const N: usize>(&self, offset: usize) -> [u8; N] {
        let from = self.at(offset, N);
        // SAFETY: in bounds; any bytes are an array of bytes. Volatile, so that the copy is made once and here.
        unsafe { from.as_ptr().cast::<[u8; N]>().read_volatile() }
    }

    /// Copies `from` to `offset`.
    pub fn write(&self, offset: usize, from: &[u8]) {
        let to = self.at(offset, from.len());
        // SAFETY: as for `read`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), from.len()) };
    }

    /// The line at `offset` will be written soon; and until then read, if at all.
    #[inline]
    pub fn prefetch_for_write(&self, offset: usize) {
        prefetch_for_write(self.at(offset, 1).as_ptr());
    }

    /// Fills `len` bytes at `offset` with zeros.
    pub fn zero(&self, offset: usize, len: usize) {
        let to = self.at(offset, len);
        // SAFETY: in bounds, as for `write`.
        unsafe { std::ptr::write_bytes(to.as_ptr(), 0, len) };
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the last owner is gone, and with it every operation that pointed here.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        assert!(unmapped.is_ok(), "our own mapping can be unmapped");
        GUARDED[self.guard].start.store(0, Ordering::Release);
    }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedMemory({} bytes)", self.len)
    }
}

/// A place in [`GUARDED`] for a new mapping.
fn claim_guard(start: usize, len: usize) -> Option<usize> {
    /// No address: claimed, and not yet filled in.
    const CLAIMED: usize = usize::MAX;
    GUARDED.iter().position(|guard| {
        if guard.start.compare_exchange(0, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return false;
        }
        guard.end.store(start + len, Ordering::Relaxed);
        guard.faulted.store(false, Ordering::Relaxed);
        // Release pairs with the handler's acquire.
        guard.start.store(start, Ordering::Release);
        true
    })
}

/// The mappings that one connection's requests may lie in: one for a ring, one for each region of a guest. Requests in flight hold
/// the table they were checked against, so that a region leaves the address space when the last of them has ended.
#[derive(Debug)]
pub struct MemoryTable {
    areas: Vec<Arc<SharedMemory>>,
    peer_zeroes: bool,
}

impl MemoryTable {
    /// Areas are named by their place.
    #[must_use]
    pub fn new(areas: Vec<Arc<SharedMemory>>) -> Arc<MemoryTable> {
        Arc::new(MemoryTable { areas, peer_zeroes: false })
    }

    /// Of a peer that makes zeros of what it is told is zeros, so that nobody else has to: it costs least where the memory is used.
    #[must_use]
    pub fn of_peer_that_zeroes(areas: Vec<Arc<SharedMemory>>) -> Arc<MemoryTable> {
        Arc::new(MemoryTable { areas, peer_zeroes: true })
    }

    /// See [`MemoryTable::of_peer_that_zeroes`].
    #[must_use]
    pub fn peer_zeroes(&self) -> bool {
        self.peer_zeroes
    }

    /// The areas.
    #[must_use]
    pub fn areas(&self) -> &[Arc<SharedMemory>] {
        &self.areas
    }

    /// Whether the peer took a page of any of them away.
    #[must_use]
    pub fn is_faulted(&self) -> bool {
        self.areas.iter().any(|area| area.is_faulted())
    }

    /// `len` bytes at `offset` of an area, which has to be there and to hold them.
    fn segment(&self, part: (u16, u64, u32)) -> Result<Segment, SharedError> {
        let (area, offset, len) = part;
        let memory = self.areas.get(usize::from(area)).ok_or_else(|| self.outside(part))?;
        if offset.checked_add(u64::from(len)).is_none_or(|end| end > memory.len as u64) {
            return Err(self.outside(part));
        }
        Ok(Segment { at: memory.at(offset as usize, len as usize), len, area })
    }

    /// Why such a part is none.
    fn outside(&self, (area, offset, len): (u16, u64, u32)) -> SharedError {
        let size = self.areas.get(usize::from(area)).map_or(0, |memory| memory.len);
        SharedError::OutOfBounds { offset, len: u64::from(len), size }
    }
}

/// One contiguous piece.
#[derive(Clone, Copy, Debug)]
struct Segment {
    at: NonNull<u8>,
    len: u32,
    area: u16,
}

/// References to one table, to be given to requests and taken back from them.
///
/// A count that every request changes twice costs little by itself; but it waits for all stores before it, those to lines that the
/// peer's core holds among them.
#[derive(Debug)]
pub struct TableRefs {
    table: Arc<MemoryTable>,
    spare: Vec<Arc<MemoryTable>>,
}

impl TableRefs {
    /// More than so many are not kept: some deep queue's worth.
    const SPARE_MAX: usize = 1024;

    /// None given out.
    #[must_use]
    pub fn new(table: &Arc<MemoryTable>) -> TableRefs {
        TableRefs { table: Arc::clone(table), spare: Vec::new() }
    }

    /// One for a request.
    #[inline]
    #[must_use]
    pub fn take(&mut self) -> Arc<MemoryTable> {
        self.spare.pop().unwrap_or_else(|| Arc::clone(&self.table))
    }

    /// That of a request which has ended.
    #[inline]
    pub fn take_back(&mut self, buf: SharedBuf) {
        if self.spare.len() < Self::SPARE_MAX && Arc::ptr_eq(&buf.table, &self.table) {
            self.spare.push(buf.table);
        }
    }
}

/// A range of a peer's memory, in one piece or several. It keeps its memory mapped; it excludes nobody from it.
pub struct SharedBuf {
    table: Arc<MemoryTable>,
    segments: Segments,
    len: u32,
}

enum Segments {
    /// Nearly all requests, without an allocation.
    One(Segment),
    Many(Vec<Segment>),
}

// SAFETY: the addresses lie in mappings that `table` keeps; see `SharedMemory`.
unsafe impl Send for SharedBuf {}

impl Segments {
    fn as_slice(&self) -> &[Segment] {
        match self {
            Segments::One(segment) => std::slice::from_ref(segment),
            Segments::Many(list) => list,
        }
    }
}

impl SharedBuf {
    /// `parts` in order, each `(area, offset in it, bytes)`; empty ones are left out.
    pub fn new(
        table: &Arc<MemoryTable>,
        parts: impl IntoIterator<Item = (u16, u64, u32)>,
    ) -> Result<SharedBuf, SharedError> {
        let mut whole = SharedBuf { table: Arc::clone(table), segments: Segments::Many(Vec::new()), len: 0 };
        for (area, offset, len) in parts {
            let segment = table.segment((area, offset, len))?;
            whole.len = whole.len.checked_add(len).ok_or_else(|| table.outside((area, offset, len)))?;
            whole.push(segment);
        }
        Ok(whole)
    }

    /// `len` bytes at `offset` of area `area`: what nearly every request is. It takes over a reference to the table.
    pub fn one(table: Arc<MemoryTable>, part: (u16, u64, u32)) -> Result<SharedBuf, SharedError> {
        let segment = table.segment(part)?;
        Ok(SharedBuf { table, segments: Segments::One(segment), len: segment.len })
    }

    fn push(&mut self, segment: Segment) {
        if segment.len == 0 {
            return;
        }
        match &mut self.segments {
            Segments::One(last) => {
                if !last.takes(&segment) {
                    self.segments = Segments::Many(vec![*last, segment]);
                }
            }
            Segments::Many(list) if list.is_empty() => self.segments = Segments::One(segment),
            Segments::Many(list) => {
                if !list.last_mut().expect("it is not empty").takes(&segment) {
                    list.push(segment);
                }
            }
        }
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The table that it was checked against.
    #[must_use]
    pub fn table(&self) -> &Arc<MemoryTable> {
        &self.table
    }

    /// Pieces of memory that are not contiguous.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.segments.as_slice().len()
    }

    /// Keeps the first `at` bytes and returns the rest.
    ///
    /// # Panics
    /// If `at` is over the length.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> SharedBuf {
        assert!(at <= self.len(), "split at {at} of {}", self.len);
        let empty = || Segments::Many(Vec::new());
        let all = std::mem::replace(&mut self.segments, empty());
        let mut rest = SharedBuf { table: Arc::clone(&self.table), segments: empty(), len: self.len - at as u32 };
        self.len = at as u32;
        let mut left = at as u32;
        for segment in all.as_slice() {
            let here = left.min(segment.len);
            left -= here;
            self.push(Segment { len: here, ..*segment });
            // SAFETY: `here` is within the segment.
            let at = unsafe { segment.at.add(here as usize) };
            rest.push(Segment { at, len: segment.len - here, ..*segment });
        }
        rest
    }

    /// Appends what [`SharedBuf::split_off`] returned.
    ///
    /// # Panics
    /// If it is of another table.
    #[expect(clippy::needless_pass_by_value, reason = "joining ends the other owner")]
    pub fn join(&mut self, rest: SharedBuf) {
        assert!(Arc::ptr_eq(&self.table, &rest.table), "parts of one request join");
        self.len += rest.len;
        for segment in rest.segments.as_slice() {
            self.push(*segment);
        }
    }

    /// Whether each piece starts on a multiple of `unit` and is a multiple long.
    #[must_use]
    pub fn is_aligned(&self, unit: u32) -> bool {
        self.segments
            .as_slice()
            .iter()
            .all(|piece| (piece.at.as_ptr() as usize | piece.len as usize).is_multiple_of(unit as usize))
    }

    /// Whether each piece starts on a multiple of `unit`, and each but the last is a multiple long.
    #[must_use]
    pub fn starts_aligned(&self, unit: u32) -> bool {
        let (pieces, unit) = (self.segments.as_slice(), unit as usize);
        let but_last = &pieces[..pieces.len().saturating_sub(1)];
        pieces.iter().all(|piece| (piece.at.as_ptr() as usize).is_multiple_of(unit))
            && but_last.iter().all(|piece| (piece.len as usize).is_multiple_of(unit))
    }

    /// Fills it with zeros.
    pub fn zero(&mut self) {
        for piece in self.segments.as_slice() {
            // SAFETY: in a mapping that `table` keeps, bounds checked at its making; see `SharedMemory::zero`.
            unsafe { std::ptr::write_bytes(piece.at.as_ptr(), 0, piece.len as usize) };
        }
    }

    /// Copies from its byte `at` on to `to`.
    ///
    /// # Panics
    /// If that ends beyond it.
    pub fn copy_to(&self, at: usize, mut to: &mut [u8]) {
        self.each_piece(at, to.len(), |from, len| {
            let (here, rest) = std::mem::take(&mut to).split_at_mut(len);
            to = rest;
            // SAFETY: `from` has `len` bytes in a mapping that `table` keeps; `here` is ours alone.
            unsafe { std::ptr::copy_nonoverlapping(from, here.as_mut_ptr(), len) };
        });
    }

    /// Copies `from` to its byte `at`.
    ///
    /// # Panics
    /// If that ends beyond it.
    pub fn copy_from(&mut self, at: usize, mut from: &[u8]) {
        self.each_piece(at, from.len(), |to, len| {
            let (here, rest) = from.split_at(len);
            from = rest;
            // SAFETY: as for `copy_to`, the other way.
            unsafe { std::ptr::copy_nonoverlapping(here.as_ptr(), to, len) };
        });
    }

    fn each_piece(&self, at: usize, len: usize, mut f: impl FnMut(*mut u8, usize)) {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len()), "{len} bytes at {at} of {}", self.len);
        let (mut skip, mut left) = (at, len);
        for piece in self.segments.as_slice() {
            let skipped = skip.min(piece.len as usize);
            skip -= skipped;
            let here = left.min(piece.len as usize - skipped);
            left -= here;
            if here > 0 {
                // SAFETY: `skipped + here` is within the piece.
                f(unsafe { piece.at.add(skipped) }.as_ptr(), here);
            }
        }
    }

    /// Area, address and length of what it is in one piece, from byte `done` on; `None` if it is in several.
    pub(crate) fn single(&self, done: usize) -> Option<(u16, *mut u8, u32)> {
        match self.segments.as_slice() {
            [piece] => {
                assert!(done <= piece.len as usize);
                // SAFETY: within the piece.
                Some((piece.area, unsafe { piece.at.add(done) }.as_ptr(), piece.len - done as u32))
            }
            _ => None,
        }
    }

    /// What is left after `done` bytes, as the kernel wants it; at most IOV_MAX pieces.
    pub(crate) fn vectors(&self, done: usize, out: &mut Vec<libc::iovec>) {
        out.clear();
        self.each_piece(done, self.len() - done, |at, len| {
            if out.len() < 1024 {
                out.push(libc::iovec { iov_base: at.cast(), iov_len: len });
            }
        });
    }

    /// Reads from a file that is memory itself, as `preadv`.
    pub(crate) fn read_file(&self, done: usize, file: impl AsFd, offset: u64) -> io::Result<usize> {
        self.vectored(done, |vectors, count| {
            // SAFETY: each vector lies in a mapping that `table` keeps until after the call; a page that is gone is EFAULT.
            unsafe { libc::preadv(raw(&file), vectors, count, offset as i64) }
        })
    }

    /// Writes to a file that is memory itself, as `pwritev`.
    pub(crate) fn write_file(&self, done: usize, file: impl AsFd, offset: u64) -> io::Result<usize> {
        self.vectored(done, |vectors, count| {
            // SAFETY: as for `read_file`.
            unsafe { libc::pwritev(raw(&file), vectors, count, offset as i64) }
        })
    }

    fn vectored(&self, done: usize, call: impl Fn(*const libc::iovec, i32) -> isize) -> io::Result<usize> {
        let mut vectors = Vec::new();
        self.vectors(done, &mut vectors);
        match call(vectors.as_ptr(), vectors.len() as i32) {
            moved if moved >= 0 => Ok(moved as usize),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn raw(file: &impl AsFd) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(&file.as_fd())
}

impl Segment {
    /// Grows by a piece that starts where it ends.
    fn takes(&mut self, next: &Segment) -> bool {
        let follows = self.area == next.area && self.at.as_ptr().wrapping_add(self.len as usize) == next.at.as_ptr();
        if follows {
            self.len += next.len;
        }
        follows
    }
}

impl fmt::Debug for SharedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBuf({} bytes in {} pieces)", self.len, self.pieces())
    }
}

#[cfg(test)]
mod tests;
