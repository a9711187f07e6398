//! [`Io`] on the kernel's ring.
//!
//! Devices always go through the ring, with registered files and buffers. Sockets that were active a moment ago are read and
//! written by direct non-blocking calls from [`Io::poll`], since on a polled connection that saves arming and firing a poll in the
//! kernel for each message (measured in docs/internals/reactor.md); a socket that stays quiet, or a reactor about to sleep,
//! hands its receive to the ring, so that every source is armed while it sleeps.
//!
//! Invariants: every operation submitted completes exactly once; the kernel holds nothing that is not in the table; an enter
//! happens only if there is something to submit or to run.

mod error;
mod in_flight;
mod registered;
mod ring;
mod sockets;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::{opcode, types::Fd};
use rustix::event::EventfdFlags;
use rustix::fs::FallocateFlags;

use crate::buf::BufPool;
use crate::clock::Clock;
use crate::data::Data;
use crate::event::EventFd;
use crate::files::{FileKind, OpenFile};
use crate::io::{
    Completion, ErrorKind, FileId, FileInfo, Instant, Io, IoError, ListenerId, NewFile, Op, Payload, Socket, SocketId,
    Token, Wait, Wake,
};
use crate::shared::SharedMemory;
use in_flight::{Extra, Table, Target, WAKE, Whereabouts};
use registered::Registered;
use ring::Ring;
pub use ring::UringError;
use sockets::Sockets;

/// How receives and sends of sockets are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SocketPath {
    /// By direct calls while active, by the ring while quiet.
    #[default]
    Adaptive,
    /// By the ring alone.
    Ring,
}

/// What a ring is made of.
#[derive(Clone, Debug)]
pub struct UringConfig {
    /// Entries of the submission queue, a power of two; four times as many completions fit.
    pub entries: u32,
    /// The pools of all reactors of this process, each at its own index.
    pub pools: Vec<&'static BufPool>,
    /// Which of them is this reactor's.
    pub own_pool: usize,
    /// The most files and devices that can be added.
    pub files_max: u32,
    /// Cores for the kernel's workers (fsync, hole punch): those without a reactor. Empty leaves them where the kernel puts them.
    pub worker_cores: Vec<usize>,
    /// How sockets are read and written.
    pub sockets: SocketPath,
}

impl UringConfig {
    /// Defaults for reactor `own_pool` of those that have `pools`.
    #[must_use]
    pub fn new(pools: Vec<&'static BufPool>, own_pool: usize) -> Self {
        Self {
            entries: 1024,
            pools,
            own_pool,
            files_max: 256,
            worker_cores: Vec::new(),
            sockets: SocketPath::default(),
        }
    }
}

/// A file or device, and how it is reached.
enum Device {
    Ring(Target),
    /// Memory is copied at once: a file in memory would go to a worker thread each time.
    Memory(OpenFile),
    Null,
}

/// Parts of peers' memory that can be registered at once. The kernel has room for 16,384 entries.
const PARTS_MAX: u16 = 8192;
/// How long a dropped ring waits for its operations before it leaks them.
const DRAIN: Duration = Duration::from_secs(5);
/// The longest single sleep; deadlines beyond it sleep again.
const SLEEP_MAX_NS: u64 = 3_600_000_000_000;

/// A reactor's ring. Made on any thread, bound to the one that first polls it.
pub struct UringIo {
    ring: Ring,
    table: Table,
    /// Operations that found the ring full, in order.
    queue: VecDeque<usize>,
    ready: Vec<Completion>,
    reaped: Vec<(u64, i32)>,
    devices: Vec<Device>,
    infos: Vec<FileInfo>,
    sockets: Sockets,
    clock: Clock,
    now: Instant,
    waker: Arc<EventWaker>,
    /// A poll on the waker is in the ring.
    wake_armed: bool,
    /// A wake-up came while nobody slept.
    woken: bool,
    /// A device that needs no waiting has completed something: the next poll delivers it before it looks at sockets.
    hurry: bool,
    /// The last poll did.
    hurried: bool,
    pool: &'static BufPool,
    fixed_buffers: u16,
    /// Memory of peers behind the pools in the table of buffers.
    registered: Registered,
    files_max: u32,
    notes: Vec<String>,
    enabled: bool,
}

struct EventWaker(OwnedFd);

impl Wake for EventWaker {
    fn wake(&self) {
        // Fails only when 2^64 wake-ups wait already, which wakes as well.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl UringIo {
    /// Sets a ring up. What the system lacks, and works without, is in [`UringIo::notes`] and in the log.
    ///
    /// # Panics
    /// If a pool is not at the place its index says.
    pub fn new(config: &UringConfig) -> Result<Self, UringError> {
        assert!(config.pools.iter().enumerate().all(|(place, pool)| pool.index() as usize == place));
        let mut notes = Vec::new();
        let ring = Ring::new(config.entries, &mut notes)?;
        ring.register_file_table(config.files_max)?;
        let fixed_buffers = match ring.register_buffers(&config.pools, PARTS_MAX) {
            Ok(()) => config.pools.len() as u16,
            Err(error) => {
                notes.push(no_fixed_buffers(&config.pools, &error));
                0
            }
        };
        if !config.worker_cores.is_empty()
            && let Err(error) = ring.set_worker_cores(&config.worker_cores)
        {
            notes.push(format!("the kernel's I/O workers stay on the reactors' cores (IOWQ_AFF: {error})"));
        }
        let waker = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| UringError::Register { what: "a waker", source: errno.into() })?;
        for note in &notes {
            tracing::warn!("{note}");
        }
        let mut clock = Clock::new();
        let now = clock.now();
        Ok(Self {
            ring,
            table: Table::with_capacity(config.entries as usize * 2),
            queue: VecDeque::new(),
            ready: Vec::with_capacity(config.entries as usize),
            reaped: Vec::with_capacity(config.entries as usize * 4),
            devices: Vec::new(),
            infos: Vec::new(),
            sockets: Sockets::new(config.sockets),
            clock,
            now,
            waker: Arc::new(EventWaker(waker)),
            wake_armed: false,
            woken: false,
            hurry: false,
            hurried: false,
            pool: config.pools[config.own_pool],
            fixed_buffers,
            registered: Registered::new(if fixed_buffers > 0 {
                fixed_buffers..fixed_buffers + PARTS_MAX
            } else {
                0..0
            }),
            files_max: config.files_max,
            notes,
            enabled: false,
        })
    }

    /// What this system lacks and what it costs.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether buffers are registered with the ring.
    #[must_use]
    pub fn has_fixed_buffers(&self) -> bool {
        self.fixed_buffers > 0
    }

    /// Adds a device; the ring keeps its description, and the lock on it, until it is gone.
    pub fn add_file(&mut self, file: &OpenFile) -> Result<FileId, UringError> {
        let id = FileId(self.devices.len() as u16);
        self.set_file(id, file)?;
        Ok(id)
    }

    fn set_file(&mut self, id: FileId, file: &OpenFile) -> Result<(), UringError> {
        let (slot, count) = (u32::from(id.0), self.devices.len());
        let at = usize::from(id.0);
        assert!(at == count || at + 1 == count, "file {at} of {count} is neither the next nor the last");
        let device = match file.kind() {
            FileKind::Null => Device::Null,
            FileKind::Memory => Device::Memory(file.clone()),
            FileKind::Regular | FileKind::Block => {
                if slot >= self.files_max {
                    return Err(UringError::Register {
                        what: "one more file",
                        source: std::io::Error::other(format!("the table has {} slots", self.files_max)),
                    });
                }
                let fd = file.fd().expect("only the null device has no descriptor");
                self.ring.register_file(slot, fd.as_raw_fd())?;
                Device::Ring(Target { slot, fixed_buffers: self.fixed_buffers })
            }
        };
        self.devices.truncate(at);
        self.infos.truncate(at);
        self.devices.push(device);
        self.infos.push(file.info());
        Ok(())
    }

    /// Binds the ring to the calling thread, as the first [`Io::poll`] does otherwise.
    ///
    /// # Panics
    /// If the kernel refuses, which it has no reason to.
    pub fn enable(&mut self) {
        if self.enabled {
            return;
        }
        self.ring.enable().expect("a ring that was set up can be enabled");
        self.enabled = true;
        // The default slack of 50 us would be added to every sleep with a deadline.
        if let Err(error) = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1)) {
            tracing::warn!("timers of this reactor may be 50 us late (timer slack: {error})");
        }
    }

    fn finish(&mut self, key: usize, result: Result<usize, IoError>) {
        let entry = self.table.remove(key);
        let payload = match entry.op {
            Op::Read { data, .. } | Op::Write { data, .. } => Payload::Data(data),
            Op::Recv { buf, socket } => {
                self.sockets.received(socket);
                Payload::Buf(buf)
            }
            Op::Send { bufs, socket } => {
                self.sockets.sent(socket);
                Payload::Bufs(bufs)
            }
            Op::Accept { listener } => {
                self.sockets.accepted(listener, key);
                Payload::None
            }
            Op::Barrier { .. }
            | Op::Deallocate { .. }
            | Op::Connect { .. }
            | Op::WaitEvent { .. }
            | Op::Signal { .. } => Payload::None,
        };
        self.ready.push(Completion { token: entry.token, result, payload });
    }

    fn finish_at_once(&mut self, token: Token, result: Result<usize, IoError>, payload: Payload) {
        self.ready.push(Completion { token, result, payload });
    }

    /// Puts an operation of the table into the ring, or behind those that wait for room in it.
    fn hand_over(&mut self, key: usize) {
        if !(self.queue.is_empty() && self.push(key)) {
            self.table.get(key).whereabouts = Whereabouts::Queued;
            self.queue.push_back(key);
        }
    }

    /// For what was interrupted or is done in part.
    fn try_again(&mut self, key: usize) {
        if self.sockets.is_closed(&self.table.get(key).op) {
            self.finish(key, Err(error::CANCELLED));
        } else {
            self.hand_over(key);
        }
    }

    fn push(&mut self, key: usize) -> bool {
        let entry = match &self.table.get(key).op {
            Op::Read { file, .. } | Op::Write { file, .. } | Op::Barrier { file } | Op::Deallocate { file, .. } => {
                let Device::Ring(target) = self.devices[file.0 as usize] else {
                    unreachable!("other devices are done at once")
                };
                self.table.device_entry(key, target, &self.registered)
            }
            Op::Accept { listener } => {
                let fd = self.sockets.listener_fd(*listener);
                self.table.socket_entry(key, fd)
            }
            Op::Recv { socket, .. } | Op::Send { socket, .. } => {
                let fd = self.sockets.fd(*socket).as_raw_fd();
                self.table.socket_entry(key, fd)
            }
            Op::Connect { .. } => self.table.connect_entry(key),
            Op::WaitEvent { .. } | Op::Signal { .. } => self.table.event_entry(key),
        };
        // Visible to the kernel with the push: it is in the table since its submission.
        self.table.get(key).whereabouts = Whereabouts::Ring;
        self.ring.push(&entry)
    }

    fn refill(&mut self) {
        while let Some(&key) = self.queue.front() {
            if !self.push(key) {
                self.table.get(key).whereabouts = Whereabouts::Queued;
                return;
            }
            self.queue.pop_front();
        }
    }

    /// Pushes an entry that is no operation, making room if there is none.
    fn push_now(&mut self, entry: &io_uring::squeue::Entry) {
        while !self.ring.push(entry) {
            self.ring.turn();
            // Applied by the next `reap`: callers hold keys of operations that must not end under their hands.
            self.ring.reap(&mut self.reaped);
        }
    }

    fn cancel(&mut self, key: usize) {
        let user_data = self.table.user_data(key);
        let entry = opcode::AsyncCancel::new(user_data).build().user_data(in_flight::CANCEL);
        self.push_now(&entry);
    }

    fn reap(&mut self) {
        let mut reaped = std::mem::take(&mut self.reaped);
        self.ring.reap(&mut reaped);
        for (user_data, result) in reaped.drain(..) {
            match user_data {
                in_flight::CANCEL => {}
                WAKE => {
                    self.wake_armed = false;
                    self.woken = true;
                    let mut count = [0; 8];
                    // Resets the counter; there is nothing to do if a second wake-up was taken along.
                    let _ = rustix::io::read(&self.waker.0, &mut count);
                }
                _ => self.apply(self.table.key_of(user_data), result),
            }
        }
        self.reaped = reaped;
    }

    /// What a completion of the ring means for its operation.
    fn apply(&mut self, key: usize, result: i32) {
        if let Op::WaitEvent { .. } | Op::Signal { .. } = self.table.get(key).op {
            return self.apply_event(key, result);
        }
        if result < 0 && error::is_transient(-result) {
            return self.try_again(key);
        }
        let moved = result.max(0) as usize;
        let entry = self.table.get(key);
        match &entry.op {
            Op::Connect { addr } => {
                let peer = *addr;
                let (token, fd) = self.table.remove_connection(key);
                if result < 0 {
                    self.finish_at_once(token, Err(error::of_socket(-result)), Payload::None);
                } else {
                    self.finish_at_once(token, Ok(0), Payload::Socket(Socket::Os(fd), peer));
                }
            }
            Op::Accept { .. } => self.apply_accept(key, result),
            Op::Recv { .. } if result < 0 => self.finish(key, Err(error::of_socket(-result))),
            Op::Send { .. } if result < 0 => self.finish(key, Err(error::of_socket(-result))),
            Op::Recv { .. } => self.finish(key, Ok(moved)),
            Op::Send { bufs, .. } => {
                let total: usize = bufs.iter().map(|buf| buf.len()).sum();
                entry.done += moved;
                if entry.done < total { self.try_again(key) } else { self.finish(key, Ok(total)) }
            }
            _ if result < 0 => self.finish(key, Err(error::of_device(-result))),
            Op::Barrier { .. } | Op::Deallocate { .. } => self.finish(key, Ok(0)),
            Op::WaitEvent { .. } | Op::Signal { .. } => unreachable!("looked at above"),
            Op::Read { file, data, .. } | Op::Write { file, data, .. } => {
                let total = data.len();
                let block = self.infos[file.0 as usize].logical_block as usize;
                entry.done += moved;
                if entry.done >= total {
                    self.finish(key, Ok(total));
                } else if moved == 0 || !entry.done.is_multiple_of(block) {
                    self.finish(key, Err(error::SHORT));
                } else {
                    self.hand_over(key);
                }
            }
        }
    }

    fn apply_event(&mut self, key: usize, result: i32) {
        let entry = self.table.get(key);
        let polled = matches!(entry.op, Op::WaitEvent { .. }) && entry.done == 0;
        match -result {
            libc::EINTR => self.hand_over(key),
            libc::ECANCELED => self.finish(key, Err(error::CANCELLED)),
            _ if polled && result >= 0 => {
                if matches!(&entry.op, Op::WaitEvent { event } if event.is_watched()) {
                    return self.finish(key, Ok(0));
                }
                entry.done = 1;
                self.hand_over(key);
            }
            // Somebody else reset it, or its counter is full: it was signalled either way.
            libc::EAGAIN => self.finish(key, Ok(0)),
            _ if result < 0 => self.finish(key, Err(error::of_socket(-result))),
            _ => self.finish(key, Ok(0)),
        }
    }

    fn apply_accept(&mut self, key: usize, result: i32) {
        if result < 0 {
            return self.finish(key, Err(error::of_socket(-result)));
        }
        let accepted = ring::adopt(result);
        let Op::Accept { listener } = self.table.get(key).op else { unreachable!("looked at by the caller") };
        match sockets::peer_of(&accepted) {
            Ok(peer) => {
                let entry = self.table.remove(key);
                self.sockets.accepted(listener, key);
                self.finish_at_once(entry.token, Ok(0), Payload::Socket(Socket::Os(accepted), peer));
            }
            Err(failure) => self.finish(key, Err(failure)),
        }
    }

    /// One look at everything, without sleeping.
    fn pass(&mut self) {
        // What has ended already is delivered first: a try to receive that finds nothing would be 0.3 us more for those who wait for
        // it. Never twice in a row: operations on memory that follow each other must not keep everything else waiting.
        self.hurried = std::mem::take(&mut self.hurry) && !self.hurried;
        if self.hurried {
            return;
        }
        self.refill();
        self.ring.turn();
        self.reap();
        self.direct();
    }

    fn sleep(&mut self, deadline: Instant) {
        self.disarm_direct();
        if !self.wake_armed {
            let entry = opcode::PollAdd::new(Fd(self.waker.0.as_raw_fd()), libc::POLLIN as u32).build().user_data(WAKE);
            self.push_now(&entry);
            self.wake_armed = true;
            self.reap();
        }
        // Cancels and retries complete too: only what somebody waits for ends the sleep.
        while self.ready.is_empty() && !self.woken {
            self.now = self.clock.now();
            if self.now >= deadline {
                break;
            }
            self.refill();
            self.ring.wait(deadline.since_ns(self.now).min(SLEEP_MAX_NS));
            self.reap();
        }
        self.woken = false;
    }

    fn memory_op(file: &OpenFile, op: &mut Op) -> Result<usize, IoError> {
        let fd = file.fd().expect("memory has a descriptor");
        let mut done = 0;
        loop {
            let moved: std::io::Result<usize> = match op {
                Op::Read { offset, data, .. } if done < data.len() => match data {
                    Data::Blank(_) | Data::SharedBlank(_) => unreachable!("written out when it was submitted"),
                    Data::Own(buf) => {
                        rustix::io::pread(fd, &mut buf[done..], *offset + done as u64).map_err(Into::into)
                    }
                    Data::Shared(shared) => shared.read_file(done, fd, *offset + done as u64),
                },
                Op::Write { offset, data, .. } if done < data.len() => match data {
                    Data::Blank(_) | Data::SharedBlank(_) => unreachable!("written out when it was submitted"),
                    Data::Own(buf) => rustix::io::pwrite(fd, &buf[done..], *offset + done as u64).map_err(Into::into),
                    Data::Shared(shared) => shared.write_file(done, fd, *offset + done as u64),
                },
                Op::Deallocate { offset, len, .. } => {
                    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    return rustix::fs::fallocate(fd, mode, *offset, *len)
                        .map(|()| 0)
                        .map_err(|errno| error::of_device(errno.raw_os_error()));
                }
                _ => return Ok(done),
            };
            match moved {
                Ok(0) => return Err(error::SHORT),
                Ok(moved) => done += moved,
                Err(failure) if failure.kind() == std::io::ErrorKind::Interrupted => {}
                Err(failure) => return Err(error::of_device(failure.raw_os_error().unwrap_or(libc::EIO))),
            }
        }
    }

    fn submit_device(&mut self, token: Token, file: FileId, mut op: Op) {
        let device = &self.devices[file.0 as usize];
        if let Device::Null = device {
            return self.null_op(token, op);
        }
        if let Op::Read { data, .. } | Op::Write { data, .. } = &mut op {
            data.write_out();
        }
        let result = match device {
            Device::Ring(_) => {
                let key = self.table.insert(token, op, Whereabouts::Queued, Extra::None);
                return self.hand_over(key);
            }
            Device::Memory(memory) => Self::memory_op(memory, &mut op),
            Device::Null => unreachable!("looked at above"),
        };
        let payload = match op {
            Op::Read { data, .. } | Op::Write { data, .. } => Payload::Data(data),
            _ => Payload::None,
        };
        self.finish_at_once(token, result, payload);
        self.hurry = true;
    }

    /// Reads give zeros: the buffer holds what its last owner left.
    fn null_op(&mut self, token: Token, op: Op) {
        let (result, payload) = match op {
            Op::Read { data, .. } => (Ok(data.len()), Payload::Data(data.zeroed())),
            Op::Write { data, .. } => (Ok(data.len()), Payload::Data(data)),
            _ => (Ok(0), Payload::None),
        };
        self.finish_at_once(token, result, payload);
        self.hurry = true;
    }

    fn submit_connect(&mut self, token: Token, addr: SocketAddr) {
        match sockets::new_socket(addr) {
            Ok(fd) => {
                let extra = Extra::Connection(Box::new(in_flight::Address::new(addr)), fd);
                let key = self.table.insert(token, Op::Connect { addr }, Whereabouts::Queued, extra);
                self.hand_over(key);
            }
            Err(failure) => self.finish_at_once(token, Err(failure), Payload::None),
        }
    }
}

fn no_fixed_buffers(pools: &[&'static BufPool], error: &std::io::Error) -> String {
    let needed: usize = pools.iter().map(|pool| pool.bytes()).sum();
    let limit = match rustix::process::getrlimit(rustix::process::Resource::Memlock).current {
        Some(bytes) => format!("{} KiB", bytes >> 10),
        None => "unlimited".to_owned(),
    };
    format!(
        "buffers are not registered with the ring ({error}): {} KiB would have to be locked and the limit is {limit}; raise it \
         (`ulimit -l`, LimitMEMLOCK=) for less CPU time an operation",
        needed >> 10
    )
}

impl Io for UringIo {
    fn now(&self) -> Instant {
        self.now
    }

    fn now_precise(&self) -> Instant {
        self.clock.peek()
    }

    fn submit(&mut self, token: Token, op: Op) {
        match op {
            Op::Read { file, .. } | Op::Write { file, .. } | Op::Barrier { file } | Op::Deallocate { file, .. } => {
                self.submit_device(token, file, op);
            }
            Op::Recv { socket, .. } => self.submit_receive(token, socket, op),
            Op::Send { socket, .. } => self.submit_send(token, socket, op),
            Op::Accept { listener } => self.submit_accept(token, listener, op),
            Op::Connect { addr } => self.submit_connect(token, addr),
            Op::WaitEvent { .. } | Op::Signal { .. } => {
                let key = self.table.insert(token, op, Whereabouts::Queued, Extra::None);
                self.hand_over(key);
            }
        }
    }

    fn poll(&mut self, wait: Wait, completions: &mut Vec<Completion>) {
        self.enable();
        self.now = self.clock.now();
        self.pass();
        if let Wait::Until(deadline) = wait
            && self.ready.is_empty()
        {
            self.sleep(deadline);
            self.now = self.clock.now();
        }
        if completions.is_empty() {
            std::mem::swap(completions, &mut self.ready);
        } else {
            completions.append(&mut self.ready);
        }
    }

    fn in_flight(&self) -> usize {
        self.table.len() + self.ready.len()
    }

    fn files(&self) -> &[FileInfo] {
        &self.infos
    }

    fn put_file(&mut self, id: FileId, file: &NewFile) -> Result<(), IoError> {
        let NewFile::Os(file) = file else { return Err(error::of_device(libc::EBADF)) };
        self.set_file(id, file).map_err(|error| {
            tracing::error!(%error, file = id.0, "a device cannot be added to a ring");
            let UringError::Register { source, .. } = error else { unreachable!("only a registration can fail") };
            error::of_device(source.raw_os_error().unwrap_or(0))
        })
    }

    fn attach(&mut self, socket: Socket) -> Result<SocketId, IoError> {
        match socket {
            Socket::Os(fd) => self.sockets.attach(fd),
            Socket::Sim(_) => Err(error::of_socket(libc::ENOTSOCK)),
        }
    }

    fn close(&mut self, socket: SocketId) {
        self.close_socket(socket);
    }

    fn listen(&mut self, addr: SocketAddr) -> Result<(ListenerId, SocketAddr), IoError> {
        self.sockets.listen(addr)
    }

    fn close_listener(&mut self, listener: ListenerId) {
        self.close_listening(listener);
    }

    fn forget_event(&mut self, event: &Arc<EventFd>) {
        for (key, whereabouts) in self.table.waits_for(event) {
            if whereabouts == Whereabouts::Ring {
                self.cancel(key);
            } else {
                self.queue.retain(|&queued| queued != key);
                self.finish(key, Err(error::CANCELLED));
            }
        }
    }

    fn register_memory(&mut self, memory: &Arc<SharedMemory>, part: Range<usize>) -> Result<(), IoError> {
        assert!(part.start < part.end && part.end <= memory.len(), "{part:?} of {} bytes", memory.len());
        let refused = |errno| IoError { kind: ErrorKind::Other, errno };
        // Where not even our own buffers could be locked, nobody else's are tried.
        let lacking = if self.fixed_buffers == 0 { libc::ENOMEM } else { libc::ENOSPC };
        let index = self.registered.free_entry().ok_or(refused(lacking))?;
        self.ring
            .register_memory(index, memory, &part)
            .map_err(|failure| refused(failure.raw_os_error().unwrap_or(libc::EINVAL)))?;
        self.registered.insert(memory, part);
        Ok(())
    }

    fn release_memory(&mut self, memory: &Arc<SharedMemory>) {
        for index in self.registered.remove(memory) {
            self.ring.release_memory(index);
        }
    }

    fn buffers(&self) -> &'static BufPool {
        self.pool
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.waker) as Arc<dyn Wake>
    }
}

impl Drop for UringIo {
    /// Drains what the kernel holds, or leaks it: never frees it.
    fn drop(&mut self) {
        let started = std::time::Instant::now();
        if !self.enabled {
            return; // the kernel never looked at the ring
        }
        if self.ring.is_mine() {
            self.sockets.close_all();
            for key in self.table.keys_in_ring() {
                self.cancel(key);
            }
            // What is queued here or on a direct socket is ours alone; a retry would go to the ring again.
            self.queue.clear();
            while !self.table.keys_in_ring().is_empty() && started.elapsed() < DRAIN {
                self.ring.wait(10_000_000);
                self.reap();
            }
        }
        let held = self.table.keys_in_ring().len();
        if held > 0 {
            tracing::warn!("{held} operations are still with the kernel: their memory is left to it");
            self.table.leak();
        }
    }
}

#[cfg(test)]
mod tests;
