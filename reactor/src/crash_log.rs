//! Records that outlive the process and not the machine (history C3).
//!
//! A write that changes the map is acknowledged once its record is in here: a copy into a shared mapping, no I/O. After SIGKILL the
//! next process replays what the durable journal lacks. A host that lives on through our restart sends again only what was in
//! flight, never what was acknowledged.
//!
//! File: a header page (who it belongs to, the boot it is good for, the tail), then a ring of records, each with its position, LSN, length
//! and CRC. Positions only grow, so that what is left of an earlier round is told from what is new. A torn record, or
//! garbage, ends the replay. The file is not trusted: owner, type, size and every field are checked.
//!
//! A log is named after its pool and after the very file or device that the pool is on, so that a copy of the pool neither takes
//! nor spoils what the original has acknowledged.
//!
//! Invariants: LSNs ascend; a record is replayed until [`RecordLog::truncate`] has passed it; what was written for another pool,
//! copy, shard, boot or a generation that others have overtaken is never replayed.

mod map;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{FallocateFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::sim::SimLog;
use map::Map;

/// No room until the log is truncated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Where records survive the death of the process.
pub trait RecordLog {
    /// Keeps one record; LSNs ascend.
    fn append(&mut self, lsn: u64, record: &[u8]) -> Result<(), Full>;
    /// Forgets records up to and including `durable`.
    fn truncate(&mut self, durable: u64);
    /// Whole records that are there, ascending: those of a process that died, and what was appended since.
    fn replay(&self) -> Vec<(u64, Vec<u8>)>;
}

impl RecordLog for SimLog {
    fn append(&mut self, lsn: u64, record: &[u8]) -> Result<(), Full> {
        SimLog::append(self, lsn, record).map_err(|_| Full)
    }
    fn truncate(&mut self, durable: u64) {
        SimLog::truncate(self, durable);
    }
    fn replay(&self) -> Vec<(u64, Vec<u8>)> {
        SimLog::replay(self)
    }
}

/// What a record costs beside its bytes.
const RECORD_HEADER: usize = 32;
/// Positions are multiples of it.
const ALIGN: usize = 8;
const HEADER_LEN: usize = 4096;
const MAGIC: [u8; 8] = *b"RWCRASH\0";
const VERSION: u32 = 2;
/// Offsets of the words in the header page that change; each on a cache line of its own.
const TAIL_AT: usize = 128;
const GENERATION_AT: usize = 192;
const CAPACITY_MIN: u64 = 4096;
const CAPACITY_MAX: u64 = 1 << 30;
/// At 10 GB/s positions reach it after 14 years.
const POSITION_MAX: u64 = 1 << 62;
/// Memory that lives as long as the machine, and that no service manager empties when a service ends.
const SHARED_MEMORY: &str = "/dev/shm";
/// How long the lock is waited for: a process that starts a child lends it every descriptor until the child's exec.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// Whose log it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashLogConfig {
    /// Where it lies: [`shared_memory`] where there is such a thing.
    pub folder: PathBuf,
    /// The pool.
    pub pool: [u8; 16],
    /// Which copy of the pool: see [`instance_of`].
    pub instance: [u8; 16],
    /// The shard of it.
    pub shard: u32,
    /// The boot generation that this open of the pool is about to make durable. Open the logs BEFORE it is durable: a log is
    /// replayed if it was last opened with this generation or the one before, so that no other process has had the pool in between.
    pub generation: u64,
    /// Bytes of the ring, for a new file.
    pub capacity: u64,
}

/// What was found at open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// There was no log.
    Nothing,
    /// The log of a process that died on this very boot of the machine: replay it.
    Records(usize),
    /// Something that must not be replayed, and why; it was replaced.
    Stale(String),
}

/// Why there is no log.
#[derive(Debug, Error)]
pub enum CrashLogError {
    /// Another process has it.
    #[error("the crash log {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// Somebody else's file is in its place.
    #[error(
        "{} is not a crash log of ours ({why}); start as the user who served the pool before, or remove the file: what was \
         acknowledged and not flushed is then lost",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A ring of that size cannot be.
    #[error("a crash log of {0} bytes: from 4096 bytes to 1 GiB, in multiples of 4096, is possible")]
    Capacity(u64),
    /// The kernel refused.
    #[error("cannot {action} the crash log {}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's words.
        source: std::io::Error,
    },
}

/// A log in a file.
pub struct CrashLog {
    map: Map,
    capacity: u64,
    seed: u32,
    head: u64,
    tail: u64,
    /// Where each record that is kept ends.
    kept: VecDeque<(u64, u64)>,
    found: Found,
    path: PathBuf,
}

/// The part of the header page that is written once.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    pool: [u8; 16],
    boot: [u8; 16],
    instance: [u8; 16],
    shard: u32,
    capacity: u64,
    /// Random: what an earlier file with the same pages held never passes the CRC.
    nonce: u64,
}

impl Header {
    const LEN: usize = 88;

    fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..32].copy_from_slice(&self.pool);
        out[32..48].copy_from_slice(&self.boot);
        out[48..52].copy_from_slice(&self.shard.to_le_bytes());
        out[56..64].copy_from_slice(&self.capacity.to_le_bytes());
        out[64..72].copy_from_slice(&self.nonce.to_le_bytes());
        out[72..88].copy_from_slice(&self.instance);
        let crc = crc32c::crc32c(&out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, String> {
        if bytes[..8] != MAGIC {
            return Err("its magic is another".to_owned());
        }
        let mut plain = *bytes;
        plain[12..16].fill(0);
        if crc32c::crc32c(&plain) != word32(bytes, 12) {
            return Err("its header's checksum is wrong".to_owned());
        }
        if word32(bytes, 8) != VERSION {
            return Err(format!("its version is {}, {VERSION} is understood", word32(bytes, 8)));
        }
        let sixteen = |at: usize| bytes[at..at + 16].try_into().expect("sixteen bytes");
        Ok(Self {
            pool: sixteen(16),
            boot: sixteen(32),
            instance: sixteen(72),
            shard: word32(bytes, 48),
            capacity: word64(bytes, 56),
            nonce: word64(bytes, 64),
        })
    }

    fn seed(&self) -> u32 {
        crc32c::crc32c(&self.encode())
    }
}

fn word32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn word64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// This boot of the machine.
pub fn boot_id() -> std::io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let number = u128::from_str_radix(&digits, 16).map_err(std::io::Error::other)?;
    Ok(number.to_be_bytes())
}

/// The folder for logs on this machine, if it has one that is memory.
#[must_use]
pub fn shared_memory() -> Option<PathBuf> {
    // linux/magic.h: TMPFS_MAGIC.
    let tmpfs = |found: rustix::fs::StatFs| found.f_type == 0x0102_1994;
    rustix::fs::statfs(SHARED_MEMORY).is_ok_and(tmpfs).then(|| PathBuf::from(SHARED_MEMORY))
}

/// Tells the file or device at `path` from every copy of it, as long as the machine runs.
pub fn instance_of(path: &Path) -> std::io::Result<[u8; 16]> {
    let found = std::fs::metadata(path)?;
    if found.file_type().is_block_device() {
        return Ok(u128::from(found.rdev()).to_be_bytes());
    }
    // Numbers of removed files are used again; file systems that know no time of birth have to do without.
    let since = |born: SystemTime| born.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    Ok((u128::from(found.ino()) << 64 | u128::from(found.created().map_or(0, since))).to_be_bytes())
}

impl CrashLog {
    /// Opens the log that a process has left, if it is there and may be replayed; otherwise says why not, and changes nothing.
    pub fn find(config: &CrashLogConfig) -> Result<Result<Self, String>, CrashLogError> {
        let path = config.path();
        let boot = boot_id().map_err(|source| no_boot(config, source))?;
        let (fd, len) = match open_file(&path, OFlags::empty()) {
            Ok(opened) => opened,
            Err(CrashLogError::System { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Err(format!("{} does not exist", path.display())));
            }
            Err(error) => return Err(error),
        };
        match existing(&fd, len, config, boot) {
            Ok(header) => Self::resumed(fd, &header, config).map(Ok),
            Err(why) => Ok(Err(format!("{}: {why}", path.display()))),
        }
    }

    fn resumed(fd: OwnedFd, header: &Header, config: &CrashLogConfig) -> Result<Self, CrashLogError> {
        let mut log = Self::mapped(fd, header, Found::Nothing, &config.path())?;
        log.recover();
        log.map.store(GENERATION_AT, config.generation);
        Ok(log)
    }

    /// Opens the log of a shard, or makes it. See [`CrashLog::found`] for what was there.
    pub fn open(config: &CrashLogConfig) -> Result<Self, CrashLogError> {
        let boot = boot_id().map_err(|source| no_boot(config, source))?;
        Self::open_on_boot(config, boot)
    }

    fn open_on_boot(config: &CrashLogConfig, boot: [u8; 16]) -> Result<Self, CrashLogError> {
        if !(CAPACITY_MIN..=CAPACITY_MAX).contains(&config.capacity) || !config.capacity.is_multiple_of(4096) {
            return Err(CrashLogError::Capacity(config.capacity));
        }
        let path = config.path();
        let (fd, len) = open_file(&path, OFlags::CREATE)?;
        let found = if len == 0 { Ok(None) } else { existing(&fd, len, config, boot).map(Some) };
        let stale = match found {
            Ok(Some(header)) => return Self::resumed(fd, &header, config),
            Ok(None) => Found::Nothing,
            Err(why) => Found::Stale(why),
        };
        let mut nonce = [0; 8];
        rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| system("number", &path, errno))?;
        let header = Header {
            pool: config.pool,
            boot,
            instance: config.instance,
            shard: config.shard,
            capacity: config.capacity,
            nonce: u64::from_le_bytes(nonce),
        };
        let len = HEADER_LEN as u64 + config.capacity;
        rustix::fs::ftruncate(&fd, 0)
            .and_then(|()| rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, len))
            .map_err(|errno| system("reserve the space of", &path, errno))?;
        let mut log = Self::mapped(fd, &header, stale, &path)?;
        log.map.store(GENERATION_AT, config.generation);
        // Last: without its header the file is nobody's.
        log.map.write(0, &header.encode());
        Ok(log)
    }

    fn mapped(fd: OwnedFd, header: &Header, found: Found, path: &Path) -> Result<Self, CrashLogError> {
        let map = Map::new(fd, HEADER_LEN + header.capacity as usize).map_err(|source| CrashLogError::System {
            action: "map",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            map,
            capacity: header.capacity,
            seed: header.seed(),
            head: 0,
            tail: 0,
            kept: VecDeque::new(),
            found,
            path: path.to_owned(),
        })
    }

    /// What was there at open; to be logged if it is [`Found::Stale`].
    #[must_use]
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in use of the ring's.
    #[must_use]
    pub fn used(&self) -> (u64, u64) {
        (self.head - self.tail, self.capacity)
    }

    /// Walks from the stored tail to the last whole record.
    fn recover(&mut self) {
        self.tail = self.map.load(TAIL_AT);
        self.head = self.tail;
        while let Some((lsn, len)) = self.record_at(self.head) {
            self.head += framed(len);
            self.kept.push_back((lsn, self.head));
        }
        self.found = Found::Records(self.kept.len());
    }

    /// The record at `position` if it is whole and follows what is kept: its LSN and length.
    fn record_at(&self, position: u64) -> Option<(u64, usize)> {
        let free = self.capacity - (position - self.tail);
        let mut header = [0; RECORD_HEADER];
        if free < framed(0) {
            return None;
        }
        self.copy_out(position, &mut header);
        let (lsn, len) = (word64(&header, 8), word32(&header, 16));
        let follows = self.kept.back().is_none_or(|&(last, _)| last < lsn);
        if word64(&header, 0) != position || !follows || framed(len as usize) > free {
            return None;
        }
        let mut bytes = vec![0; len as usize];
        self.copy_out(position + RECORD_HEADER as u64, &mut bytes);
        (self.crc(&header[..RECORD_HEADER - 8], &bytes) == word32(&header, 24)).then_some((lsn, len as usize))
    }

    fn crc(&self, header: &[u8], bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c_append(self.seed, header), bytes)
    }

    /// In at most two pieces: the ring goes round.
    fn copy_out(&self, position: u64, out: &mut [u8]) {
        let at = (position % self.capacity) as usize;
        let first = out.len().min(self.capacity as usize - at);
        let (front, back) = out.split_at_mut(first);
        self.map.read(HEADER_LEN + at, front);
        self.map.read(HEADER_LEN, back);
    }

    fn copy_in(&mut self, position: u64, bytes: &[u8]) {
        let at = (position % self.capacity) as usize;
        let (front, back) = bytes.split_at(bytes.len().min(self.capacity as usize - at));
        self.map.write(HEADER_LEN + at, front);
        self.map.write(HEADER_LEN, back);
    }
}

impl CrashLogConfig {
    /// The file of this shard's log.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let (pool, copy) = (u128::from_be_bytes(self.pool), u128::from_be_bytes(self.instance));
        self.folder.join(format!("ringway-{pool:032x}-{copy:032x}-{}.crashlog", self.shard))
    }
}

/// Bytes of the ring that a record of `len` takes.
fn framed(len: usize) -> u64 {
    (RECORD_HEADER + len).next_multiple_of(ALIGN) as u64
}

impl RecordLog for CrashLog {
    fn append(&mut self, lsn: u64, record: &[u8]) -> Result<(), Full> {
        if let Some(&(last, _)) = self.kept.back() {
            assert!(last < lsn, "LSNs ascend: {lsn} after {last}");
        }
        let size = framed(record.len());
        if size > self.capacity - (self.head - self.tail) {
            return Err(Full);
        }
        let mut header = [0; RECORD_HEADER];
        header[..8].copy_from_slice(&self.head.to_le_bytes());
        header[8..16].copy_from_slice(&lsn.to_le_bytes());
        header[16..20].copy_from_slice(&(record.len() as u32).to_le_bytes());
        let crc = self.crc(&header[..RECORD_HEADER - 8], record);
        header[24..28].copy_from_slice(&crc.to_le_bytes());
        self.copy_in(self.head + RECORD_HEADER as u64, record);
        self.copy_in(self.head, &header);
        self.head += size;
        self.kept.push_back((lsn, self.head));
        Ok(())
    }

    fn truncate(&mut self, durable: u64) {
        let before = self.tail;
        while let Some(&(lsn, end)) = self.kept.front()
            && lsn <= durable
        {
            self.kept.pop_front();
            self.tail = end;
        }
        if self.tail != before {
            self.map.store(TAIL_AT, self.tail);
        }
    }

    fn replay(&self) -> Vec<(u64, Vec<u8>)> {
        let mut position = self.tail;
        self.kept
            .iter()
            .map(|&(lsn, end)| {
                let mut header = [0; RECORD_HEADER];
                self.copy_out(position, &mut header);
                let mut bytes = vec![0; word32(&header, 16) as usize];
                self.copy_out(position + RECORD_HEADER as u64, &mut bytes);
                position = end;
                (lsn, bytes)
            })
            .collect()
    }
}

fn no_boot(config: &CrashLogConfig, source: std::io::Error) -> CrashLogError {
    CrashLogError::System { action: "tell the boot of this machine for", path: config.folder.clone(), source }
}

fn system(action: &'static str, path: &Path, errno: Errno) -> CrashLogError {
    CrashLogError::System { action, path: path.to_owned(), source: errno.into() }
}

/// Opens and locks the file, and makes sure that it is ours; also its length.
fn open_file(path: &Path, create: OFlags) -> Result<(OwnedFd, u64), CrashLogError> {
    let foreign = |why: String| CrashLogError::Foreign { path: path.to_owned(), why };
    let flags = create | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| match errno {
        Errno::LOOP => foreign("it is a symbolic link".to_owned()),
        Errno::ISDIR => foreign("it is a directory".to_owned()),
        Errno::ACCESS if path.symlink_metadata().is_ok() => {
            foreign("another user's, and nobody else may open it".to_owned())
        }
        _ => system("open", path, errno),
    })?;
    let stat = rustix::fs::fstat(&fd).map_err(|errno| system("look at", path, errno))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(foreign("it is no regular file".to_owned()));
    }
    let user = rustix::process::geteuid().as_raw();
    if stat.st_uid != user {
        return Err(foreign(format!("it belongs to user {}, this is user {user}", stat.st_uid)));
    }
    // Others must be able neither to write it nor to cut it short under the mapping.
    rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(|errno| system("protect", path, errno))?;
    let started = Instant::now();
    loop {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok((fd, stat.st_size as u64)),
            Err(Errno::WOULDBLOCK) if started.elapsed() < LOCK_WAIT => std::thread::sleep(Duration::from_millis(2)),
            Err(Errno::WOULDBLOCK) => return Err(CrashLogError::InUse(path.to_owned())),
            Err(errno) => return Err(system("lock", path, errno)),
        }
    }
}

/// The header of a file that may be replayed; otherwise why not.
fn existing(fd: &OwnedFd, len: u64, config: &CrashLogConfig, boot: [u8; 16]) -> Result<Header, String> {
    let mut page = [0; HEADER_LEN];
    match rustix::io::pread(fd, &mut page, 0) {
        Ok(HEADER_LEN) => {}
        Ok(short) => return Err(format!("it ends after {short} bytes")),
        Err(errno) => return Err(format!("it cannot be read: {errno}")),
    }
    let header = Header::decode(page[..Header::LEN].try_into().expect("the front of a page"))?;
    let last = word64(&page, GENERATION_AT);
    if header.pool != config.pool || header.shard != config.shard || header.instance != config.instance {
        return Err("it belongs to another pool, copy or shard".to_owned());
    }
    if header.boot != boot {
        return Err("the machine was restarted since; what it kept in memory was lost with it".to_owned());
    }
    if last != config.generation && last.checked_add(1) != Some(config.generation) {
        return Err(format!(
            "it was last open with generation {last} of the pool, which is now at {}: another process had the pool since",
            config.generation
        ));
    }
    let tail = word64(&page, TAIL_AT);
    if tail > POSITION_MAX || !tail.is_multiple_of(ALIGN as u64) {
        return Err(format!("its tail, {tail}, is no position"));
    }
    let valid = (CAPACITY_MIN..=CAPACITY_MAX).contains(&header.capacity) && header.capacity.is_multiple_of(4096);
    if !valid || len != HEADER_LEN as u64 + header.capacity {
        return Err(format!("its length {len} does not fit its capacity {}", header.capacity));
    }
    // Holes would be filled at the first store, or not at all if memory is short.
    rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, len).map_err(|errno| format!("its pages: {errno}"))?;
    Ok(header)
}

/// LSN and bytes, in order.
type Records = VecDeque<(u64, Vec<u8>)>;

/// A log in memory; clones are the same log, so that one may survive what stands for a killed process.
#[derive(Clone, Debug)]
pub struct MemoryLog {
    records: Arc<Mutex<Records>>,
    capacity: usize,
}

impl MemoryLog {
    /// An empty log with room for `capacity` bytes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { records: Arc::default(), capacity }
    }
}

impl RecordLog for MemoryLog {
    fn append(&mut self, lsn: u64, record: &[u8]) -> Result<(), Full> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let used: u64 = records.iter().map(|(_, record)| framed(record.len())).sum();
        if used + framed(record.len()) > self.capacity as u64 {
            return Err(Full);
        }
        assert!(records.back().is_none_or(|&(last, _)| last < lsn), "LSNs ascend");
        records.push_back((lsn, record.to_vec()));
        Ok(())
    }

    fn truncate(&mut self, durable: u64) {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        while records.front().is_some_and(|&(lsn, _)| lsn <= durable) {
            records.pop_front();
        }
    }

    fn replay(&self) -> Vec<(u64, Vec<u8>)> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests;
