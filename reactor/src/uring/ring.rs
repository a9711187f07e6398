//! The kernel's ring, with everything that is unsafe about it.
//!
//! The contract that makes [`Ring::push`] sound is the caller's in-flight table: an entry's memory (its buffer's slot in a pool that is
//! never freed, or a box in the table) is in the table before the entry is visible to the kernel, and stays there until the
//! completion was reaped. Dropping the table waits for that, or leaks it.

use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::thread::ThreadId;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, opcode, squeue};
use thiserror::Error;

use crate::buf::BufPool;
use crate::shared::SharedMemory;

/// Why there is no ring.
#[derive(Debug, Error)]
pub enum UringError {
    /// io_uring_setup refused.
    #[error("io_uring is not available: {source}{hint}")]
    Setup {
        /// The kernel's words.
        source: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// The kernel is too old.
    #[error("this kernel's io_uring lacks {}; Linux 5.11 is the oldest that works, 6.1 the oldest that is fast", .0.join(", "))]
    TooOld(Vec<&'static str>),
    /// A registration failed.
    #[error("cannot register {what} with the ring")]
    Register {
        /// What.
        what: &'static str,
        /// The kernel's words.
        source: io::Error,
    },
}

/// Every operation that is used, for the probe.
const OPCODES: [(u8, &str); 15] = [
    (opcode::Read::CODE, "READ"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::Readv::CODE, "READV"),
    (opcode::Writev::CODE, "WRITEV"),
    (opcode::ReadFixed::CODE, "READ_FIXED"),
    (opcode::WriteFixed::CODE, "WRITE_FIXED"),
    (opcode::Fsync::CODE, "FSYNC"),
    (opcode::Fallocate::CODE, "FALLOCATE"),
    (opcode::Accept::CODE, "ACCEPT"),
    (opcode::Connect::CODE, "CONNECT"),
    (opcode::Recv::CODE, "RECV"),
    (opcode::SendMsg::CODE, "SENDMSG"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
    (opcode::PollRemove::CODE, "POLL_REMOVE"),
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
];

/// How completions reach user space, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Completion work runs in our own calls alone (Linux 6.1).
    Deferred,
    /// It runs at any of our system calls, never by interrupting us (Linux 5.19).
    Cooperative,
    /// As the kernel likes.
    Plain,
}

/// One submission and one completion queue.
pub(super) struct Ring {
    ring: IoUring,
    /// The one thread that may enter, once enabled.
    owner: Option<ThreadId>,
}

impl Ring {
    /// Makes a ring that any thread may still set up; it works after [`Ring::enable`]. The notes say what this kernel lacks.
    pub(super) fn new(entries: u32, notes: &mut Vec<String>) -> Result<Self, UringError> {
        let mut refused = None;
        for mode in [Mode::Deferred, Mode::Cooperative, Mode::Plain] {
            match Self::builder(mode, entries).build(entries) {
                Ok(ring) => {
                    match mode {
                        Mode::Deferred => {}
                        Mode::Cooperative => notes.push(
                            "this kernel's io_uring lacks DEFER_TASKRUN (Linux 6.1): completions cost more CPU time".to_owned(),
                        ),
                        Mode::Plain => notes.push(
                            "this kernel's io_uring lacks DEFER_TASKRUN (Linux 6.1) and COOP_TASKRUN (5.19): completions \
                             interrupt the reactor"
                                .to_owned(),
                        ),
                    }
                    let ring = Self { ring, owner: None };
                    ring.probe()?;
                    return Ok(ring);
                }
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = Some(error),
                Err(error) => return Err(Self::setup_error(error)),
            }
        }
        Err(Self::setup_error(refused.expect("the last mode was refused too")))
    }

    fn builder(mode: Mode, entries: u32) -> io_uring::Builder {
        let mut builder = IoUring::builder();
        builder.setup_r_disabled().setup_cqsize(entries * 4).dontfork();
        match mode {
            Mode::Deferred => {
                builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
            }
            Mode::Cooperative => {
                builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
            }
            Mode::Plain => {}
        }
        builder
    }

    fn setup_error(source: io::Error) -> UringError {
        let hint = match source.raw_os_error() {
            Some(libc::ENOSYS) => " (the kernel was built without it, or is older than 5.11)",
            Some(libc::EPERM | libc::EACCES) => {
                " (forbidden here: look at sysctl kernel.io_uring_disabled and at the container's seccomp profile)"
            }
            Some(libc::ENOMEM) => " (no memory to lock for its queues: raise `ulimit -l`)",
            Some(libc::EMFILE | libc::ENFILE) => " (too many open files: raise `ulimit -n`)",
            _ => "",
        };
        UringError::Setup { source, hint }
    }

    fn probe(&self) -> Result<(), UringError> {
        let mut probe = Probe::new();
        self.ring
            .submitter()
            .register_probe(&mut probe)
            .map_err(|source| UringError::Register { what: "a probe of its operations", source })?;
        let mut missing: Vec<_> =
            OPCODES.iter().filter(|known| !probe.is_supported(known.0)).map(|known| known.1).collect();
        if !self.ring.params().is_feature_ext_arg() {
            missing.push("waiting with a timeout (EXT_ARG)");
        }
        if !self.ring.params().is_feature_nodrop() {
            missing.push("completions that are never dropped (NODROP)");
        }
        if missing.is_empty() { Ok(()) } else { Err(UringError::TooOld(missing)) }
    }

    /// A table of `slots` files, empty.
    pub(super) fn register_file_table(&self, slots: u32) -> Result<(), UringError> {
        self.ring
            .submitter()
            .register_files_sparse(slots)
            .map_err(|source| UringError::Register { what: "a table of files", source })
    }

    /// Puts `fd` into a slot; the table holds the description open, and locked, from now on.
    pub(super) fn register_file(&self, slot: u32, fd: RawFd) -> Result<(), UringError> {
        match self.ring.submitter().register_files_update(slot, &[fd]) {
            Ok(_) => Ok(()),
            Err(source) => Err(UringError::Register { what: "a file", source }),
        }
    }

    /// The arenas of `pools` as buffers 0, 1, 2 ..., with room for `more` behind them where the kernel can (Linux 5.19).
    pub(super) fn register_buffers(&self, pools: &[&'static BufPool], more: u16) -> io::Result<()> {
        let arenas: Vec<_> = pools
            .iter()
            .map(|pool| {
                let (start, len) = pool.arena();
                libc::iovec { iov_base: start.as_ptr().cast(), iov_len: len }
            })
            .collect();
        let submitter = self.ring.submitter();
        // SAFETY: arenas live as long as the process and are never mapped anew, so that the pages that get pinned here are
        // the ones that a `Buf` of the pool sees.
        unsafe {
            if submitter.register_buffers_sparse(arenas.len() as u32 + u32::from(more)).is_err() {
                return submitter.register_buffers(&arenas);
            }
            let registered = submitter.register_buffers_update(0, &arenas, None);
            if registered.is_err() {
                // Best effort: the empty table costs nothing, and what failed is reported.
                let _ = submitter.unregister_buffers();
            }
            registered
        }
    }

    /// A part of a peer's memory as buffer `index`.
    pub(super) fn register_memory(&self, index: u16, memory: &SharedMemory, part: &Range<usize>) -> io::Result<()> {
        let start = memory.as_ptr().wrapping_add(part.start).cast();
        let part = libc::iovec { iov_base: start, iov_len: part.len() };
        // SAFETY: the caller keeps the mapping until `release_memory`.
        unsafe { self.ring.submitter().register_buffers_update(u32::from(index), &[part], None) }
    }

    /// Buffer `index` is empty again; the kernel lets go of its pages when the last operation on them has ended.
    pub(super) fn release_memory(&self, index: u16) {
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: an empty entry points nowhere.
        let released = unsafe { self.ring.submitter().register_buffers_update(u32::from(index), &[nothing], None) };
        released.expect("an entry that was filled can be emptied");
    }

    /// Keeps the kernel's workers (fsync, hole punch, allocating writes) on `cores`.
    pub(super) fn set_worker_cores(&self, cores: &[usize]) -> io::Result<()> {
        // SAFETY: a cpu_set_t is a plain bit set, of which all zeros is the empty one.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for &core in cores {
            if core >= libc::CPU_SETSIZE as usize {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            // SAFETY: the core is below the size of the set.
            unsafe { libc::CPU_SET(core, &mut set) };
        }
        self.ring.submitter().register_iowq_aff(&set)
    }

    /// Starts the ring for the calling thread, the only one to use it from now on.
    pub(super) fn enable(&mut self) -> io::Result<()> {
        assert!(self.owner.is_none(), "a ring is enabled once");
        self.ring.submitter().register_enable_rings()?;
        self.owner = Some(std::thread::current().id());
        Ok(())
    }

    /// Whether the calling thread is the one that enabled the ring.
    pub(super) fn is_mine(&self) -> bool {
        self.owner == Some(std::thread::current().id())
    }

    /// Puts an entry into the submission queue; `false` if it is full.
    pub(super) fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: what the entry points to is in the caller's in-flight table until the completion is reaped (see above).
        unsafe { self.ring.submission().push(entry).is_ok() }
    }

    /// Hands over what was pushed and runs completion work; no system call if there is neither.
    pub(super) fn turn(&mut self) {
        let queue = self.ring.submission();
        let unsubmitted = queue.len() as u32;
        let idle = unsubmitted == 0 && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        if idle {
            return;
        }
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is passed, and as many entries were pushed as are announced.
        let entered = unsafe { self.ring.submitter().enter::<libc::sigset_t>(unsubmitted, 0, flags, None) };
        check(entered);
    }

    /// Hands over what was pushed and sleeps until a completion or for `ns` nanoseconds.
    pub(super) fn wait(&mut self, ns: u64) {
        let timeout = Timespec::new().sec(ns / 1_000_000_000).nsec((ns % 1_000_000_000) as u32);
        check(self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timeout)));
    }

    /// Takes all completions as `(user data, result)`.
    pub(super) fn reap(&mut self, out: &mut Vec<(u64, i32)>) {
        out.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
    }
}

fn check(entered: io::Result<usize>) {
    let Err(error) = entered else { return };
    match error.raw_os_error() {
        // Slept long enough; interrupted; short of memory or of room for completions: the next turn tries again.
        Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => {}
        // Not an error of a device, which would be a completion: the ring itself is misused or gone.
        _ => panic!("io_uring_enter: {error}"),
    }
}

/// A descriptor that a completion of accept made.
pub(super) fn adopt(fd: RawFd) -> std::os::fd::OwnedFd {
    // SAFETY: the kernel made it for this completion, which is reaped once; nobody else knows it.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) }
}
