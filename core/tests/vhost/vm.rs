//! A virtual machine's front end and driver: what a monitor tells a disk's socket, and what its guest does to the rings.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_reactor::shared::SharedMemory;
use ringway_shm_ring::virtqueue::driver::{Driver, Piece};
use ringway_shm_ring::virtqueue::{GuestMemory, GuestRegion, RingConfig};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

pub(crate) const MIB: u64 = 1 << 20;

/// Kinds of request.
pub(crate) const READ: u32 = 0;
pub(crate) const WRITE: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const GET_ID: u32 = 8;
pub(crate) const DISCARD: u32 = 11;
pub(crate) const WRITE_ZEROES: u32 = 13;
/// Ends of request.
pub(crate) const OK: u8 = 0;
pub(crate) const IO_ERROR: u8 = 1;
pub(crate) const UNSUPPORTED: u8 = 2;

/// Feature bits.
pub(crate) const F_FLUSH: u64 = 1 << 9;
pub(crate) const F_CONFIG_WCE: u64 = 1 << 11;
pub(crate) const F_LOG_ALL: u64 = 1 << 26;
pub(crate) const F_INDIRECT: u64 = 1 << 28;
pub(crate) const F_EVENT_IDX: u64 = 1 << 29;
pub(crate) const F_PROTOCOL: u64 = 1 << 30;
pub(crate) const F_VERSION_1: u64 = 1 << 32;
pub(crate) const F_PACKED: u64 = 1 << 34;
/// What every driver takes.
pub(crate) const F_BASE: u64 = F_VERSION_1 | F_PROTOCOL | F_FLUSH | F_CONFIG_WCE;

/// What a machine agrees on.
#[derive(Clone, Copy)]
pub(crate) struct Wish {
    pub(crate) features: u64,
    pub(crate) queues: usize,
    pub(crate) entries: u16,
    pub(crate) memory: u64,
    /// The memfd can be truncated.
    pub(crate) unsealed: bool,
    pub(crate) inflight: bool,
}

impl Default for Wish {
    fn default() -> Wish {
        let features = F_BASE | F_INDIRECT | F_EVENT_IDX;
        Wish { features, queues: 1, entries: 128, memory: 16 * MIB, unsealed: false, inflight: false }
    }
}

/// The front end's addresses begin there.
const USER: u64 = 1 << 40;
/// Where requests' headers and status bytes are.
const HEADERS: u64 = MIB;
/// Where data is.
pub(crate) const DATA: u64 = 4 * MIB;

/// Memory for requests in flight, which outlives a connection.
pub(crate) type Inflight = Arc<(VhostUserInflight, File)>;

/// A virtual machine.
pub(crate) struct Vm {
    pub(crate) frontend: Frontend,
    pub(crate) wish: Wish,
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) drivers: Vec<Driver>,
    pub(crate) calls: Vec<EventFd>,
    pub(crate) kicks: Vec<EventFd>,
    pub(crate) errors: Vec<EventFd>,
    pub(crate) inflight: Option<Inflight>,
}

pub(crate) fn create_memory(len: u64, unsealed: bool) -> (OwnedFd, Arc<SharedMemory>) {
    if !unsealed {
        return SharedMemory::create("guest", len as usize).unwrap();
    }
    let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, len).unwrap();
    let memory = SharedMemory::map(&fd, 0, len as usize).unwrap();
    (fd, memory)
}

pub(crate) fn region_info(guest: u64, len: u64, offset: u64, fd: &OwnedFd) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: guest,
        memory_size: len,
        userspace_addr: USER + guest,
        mmap_offset: offset,
        mmap_handle: fd.as_raw_fd(),
    }
}

/// Connects and agrees on features.
pub(crate) fn greet(socket: &PathBuf, features: u64) -> Frontend {
    let mut frontend = Frontend::connect(socket, 4).unwrap();
    frontend.set_owner().unwrap();
    let offered = frontend.get_features().unwrap();
    assert_eq!(features & !offered, 0, "{offered:#x} is offered");
    frontend.set_features(features).unwrap();
    let protocol = frontend.get_protocol_features().unwrap();
    use VhostUserProtocolFeatures as P;
    let wanted =
        P::MQ | P::CONFIG | P::CONFIGURE_MEM_SLOTS | P::REPLY_ACK | P::INFLIGHT_SHMFD | P::BACKEND_REQ | P::LOG_SHMFD;
    assert!(protocol.contains(wanted), "{protocol:?} is offered");
    frontend.set_protocol_features(wanted).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend
}

impl Vm {
    pub(crate) fn new(socket: &PathBuf, wish: Wish) -> Vm {
        let (fd, shared) = create_memory(wish.memory, wish.unsealed);
        let region = GuestRegion { guest: 0, len: wish.memory, user: USER, memory: shared, offset: 0 };
        let memory = Arc::new(GuestMemory::new(vec![region]).unwrap());
        let drivers = (0..wish.queues).map(|queue| Driver::new(ring(queue, &wish), Arc::clone(&memory))).collect();
        let event = || EventFd::new(libc_nonblock()).unwrap();
        let events = |count| (0..count).map(|_| event()).collect::<Vec<_>>();
        let mut vm = Vm {
            frontend: greet(socket, wish.features),
            wish,
            fd: Arc::new(fd),
            memory,
            drivers,
            calls: events(wish.queues),
            kicks: events(wish.queues),
            errors: events(wish.queues),
            inflight: None,
        };
        vm.begin(true);
        vm
    }

    /// Another connection for the same machine, as after its target has gone.
    pub(crate) fn reconnect(&mut self, socket: &PathBuf) {
        // The old one goes first, or it would be served on.
        self.frontend = Frontend::from_stream(UnixStream::pair().unwrap().0, 4);
        self.frontend = greet(socket, self.wish.features);
        self.begin(false);
    }

    fn begin(&mut self, fresh: bool) {
        if self.wish.inflight {
            let wanted = VhostUserInflight::new(0, 0, self.wish.queues as u16, self.wish.entries);
            if fresh {
                self.inflight = Some(Arc::new(self.frontend.get_inflight_fd(&wanted).unwrap()));
            }
            let inflight = self.inflight.as_ref().unwrap();
            self.frontend.set_inflight_fd(&inflight.0, inflight.1.as_raw_fd()).unwrap();
        }
        let len = self.wish.memory;
        self.frontend.set_mem_table(&[region_info(0, len, 0, &self.fd)]).unwrap();
        for queue in 0..self.wish.queues {
            self.frontend.set_vring_num(queue, self.wish.entries).unwrap();
            // As QEMU does where its target has gone: what it knows of is stale.
            let packed = self.wish.features & F_PACKED != 0;
            let base = if packed { 1 << 15 } else { self.drivers[queue].used() };
            self.frontend.set_vring_base(queue, base).unwrap();
            self.set_address(queue, None);
            self.frontend.set_vring_call(queue, &self.calls[queue]).unwrap();
            self.frontend.set_vring_err(queue, &self.errors[queue]).unwrap();
            self.frontend.set_vring_kick(queue, &self.kicks[queue]).unwrap();
            self.frontend.set_vring_enable(queue, true).unwrap();
        }
    }

    pub(crate) fn set_address(&self, queue: usize, log_addr: Option<u64>) {
        let config = self.drivers[queue].config();
        let data = VringConfigData {
            queue_max_size: self.wish.entries,
            queue_size: self.wish.entries,
            flags: u32::from(log_addr.is_some()),
            desc_table_addr: USER + config.desc,
            used_ring_addr: USER + config.device,
            avail_ring_addr: USER + config.driver,
            log_addr,
        };
        self.frontend.set_vring_addr(queue, &data).unwrap();
    }

    fn header_of(queue: usize, id: u16) -> u64 {
        HEADERS + queue as u64 * 0x1_0000 + u64::from(id) * 64
    }

    /// Makes a request available, and kicks if the device wants that.
    pub(crate) fn submit(&mut self, queue: usize, kind: u32, sector: u64, data: &[Piece]) -> u16 {
        let indirect = self.wish.features & F_INDIRECT != 0;
        let driver = &mut self.drivers[queue];
        // The chain's id is that of its first descriptor, known before it is taken: all free ones go round in order.
        let at = |id| Self::header_of(queue, id);
        let id = driver.next_id();
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.memory.write(at(id), &header).unwrap();
        self.memory.write(at(id) + 16, &[0xEE]).unwrap();
        let mut pieces = vec![Piece { addr: at(id), len: 16, write: false }];
        pieces.extend_from_slice(data);
        pieces.push(Piece { addr: at(id) + 16, len: 1, write: true });
        let taken = if indirect {
            // Room for a table of 128.
            let table = 2 * MIB + queue as u64 * 0x8_0000 + u64::from(id) * 2048;
            driver.offer_indirect(table, &pieces)
        } else {
            driver.offer(&pieces)
        };
        assert_eq!(taken, id);
        if driver.wants_kick() {
            self.kicks[queue].write(1).unwrap();
        }
        id
    }

    /// The next request that has ended, and how.
    pub(crate) fn poll(&mut self, queue: usize) -> Option<(u16, u8)> {
        let (id, _) = self.drivers[queue].take_used()?;
        let mut status = [0];
        self.memory.read(Self::header_of(queue, id) + 16, &mut status).unwrap();
        Some((id, status[0]))
    }

    pub(crate) fn wait(&mut self, queue: usize) -> (u16, u8) {
        let begun = Instant::now();
        loop {
            if let Some(ended) = self.poll(queue) {
                return ended;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "a request does not end");
            std::thread::yield_now();
        }
    }

    /// One request to its end.
    pub(crate) fn request(&mut self, queue: usize, kind: u32, sector: u64, data: &[Piece]) -> u8 {
        let id = self.submit(queue, kind, sector, data);
        let (ended, status) = self.wait(queue);
        assert_eq!(ended, id);
        status
    }

    pub(crate) fn write(&mut self, queue: usize, sector: u64, bytes: &[u8]) -> u8 {
        self.memory.write(DATA, bytes).unwrap();
        self.request(queue, WRITE, sector, &[out(DATA, bytes.len() as u32)])
    }

    pub(crate) fn read(&mut self, queue: usize, sector: u64, len: u32) -> Vec<u8> {
        self.memory.write(DATA, &vec![0xCC; len as usize]).unwrap();
        assert_eq!(self.request(queue, READ, sector, &[back(DATA, len)]), OK);
        let mut bytes = vec![0; len as usize];
        self.memory.read(DATA, &mut bytes).unwrap();
        bytes
    }

    /// A discard or write zeroes of one range.
    pub(crate) fn erase(&mut self, queue: usize, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let mut range = [0; 16];
        range[..8].copy_from_slice(&sector.to_le_bytes());
        range[8..12].copy_from_slice(&sectors.to_le_bytes());
        range[12..].copy_from_slice(&flags.to_le_bytes());
        self.memory.write(DATA, &range).unwrap();
        self.request(queue, kind, 0, &[out(DATA, 16)])
    }
}

fn libc_nonblock() -> i32 {
    0o4000
}

fn ring(queue: usize, wish: &Wish) -> RingConfig {
    let at = queue as u64 * 0x1_0000;
    RingConfig {
        size: wish.entries,
        desc: at,
        driver: at + 0x6000,
        device: at + 0x8000,
        packed: wish.features & F_PACKED != 0,
        event_idx: wish.features & F_EVENT_IDX != 0,
        indirect: wish.features & F_INDIRECT != 0,
        base: 0,
    }
}

/// Memory that the device reads.
pub(crate) fn out(addr: u64, len: u32) -> Piece {
    Piece { addr, len, write: false }
}

/// Memory that the device writes.
pub(crate) fn back(addr: u64, len: u32) -> Piece {
    Piece { addr, len, write: true }
}
