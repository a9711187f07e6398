//! A device: its protection domain, and the registered memory of this process.
//!
//! Who keeps what: contexts belong to librdmacm, which opens each device once a process and keeps it for as long as the process
//! runs; of a device that was removed we close the descriptors ourselves ([`Held`]). Protection domain and regions belong to
//! [`OpenDevice`]; everything made with them holds an `Arc` of it. Pools are never freed, so what is registered stays mapped.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rdma_mummy_sys as sys;
use ringway_reactor::buf::{Buf, BufPool, BufPoolConfig};
use ringway_reactor::data::ZEROS_MAX;

use super::Unavailable;
use crate::verbs::{Device, DeviceId};

/// As in verbs.h.
const LINK_LAYER_ETHERNET: u8 = 2;

/// A context of librdmacm's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opened(pub(super) NonNull<sys::ibv_context>);

// SAFETY: contexts are made by librdmacm, live as long as the process, and verbs on them may be called from any thread.
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}

/// The state of a device's first port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Port {
    pub(super) active: bool,
    pub(super) link: &'static str,
    pub(super) mtu: u32,
}

/// A registered range.
struct Region(NonNull<sys::ibv_mr>);

impl Region {
    fn register(pd: NonNull<sys::ibv_pd>, start: *mut u8, len: usize, access: u32) -> io::Result<Region> {
        // SAFETY: the range is a pool's arena, which is never freed; `pd` is alive: its owner is making or holding this region.
        let region = unsafe { sys::ibv_reg_mr(pd.as_ptr(), start.cast(), len, access as i32) };
        NonNull::new(region).map(Region).ok_or_else(io::Error::last_os_error)
    }

    fn local_key(&self) -> u32 {
        // SAFETY: a region is alive until it is dropped.
        unsafe { self.0.as_ref() }.lkey
    }

    fn remote_key(&self) -> u32 {
        // SAFETY: as above.
        unsafe { self.0.as_ref() }.rkey
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more: queue pairs, which would, hold the device and with it this region.
        let failed = unsafe { sys::ibv_dereg_mr(self.0.as_ptr()) };
        if failed != 0 {
            tracing::warn!("a memory region stays registered: {}", io::Error::from_raw_os_error(failed));
        }
    }
}

/// Bounds of a device that queues are made by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) completions_max: u32,
}

/// What the system knows a device by for as long as it is there: the inode of its folder in sysfs. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place(u64);

/// The devices that the system lists, whether or not somebody has them open.
pub(super) fn listed() -> Vec<Place> {
    let Ok(entries) = std::fs::read_dir("/sys/class/infiniband_verbs") else { return Vec::new() };
    let devices = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("uverbs"));
    devices.filter_map(|entry| place(&entry.path().to_string_lossy())).collect()
}

fn place(folder: &str) -> Option<Place> {
    std::fs::metadata(folder).ok().map(|folder| Place(folder.ino()))
}

/// A context, as long as something of ours is made with it.
///
/// librdmacm does not close the context of a device that was removed, if there is no other device; and some drivers (soft RoCE) let
/// the removal of a device wait until nobody has it open. So once the last of ours is gone from a device that was removed, its two
/// descriptors are replaced by others that lead nowhere: librdmacm, to which they belong, may still close them.
struct Held {
    verbs: Opened,
    gone: AtomicBool,
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.gone.load(Ordering::Relaxed) {
            return;
        }
        let nowhere = match File::open("/dev/null") {
            Ok(file) => file,
            Err(why) => return tracing::warn!("a device that was removed stays open: {why}"),
        };
        // SAFETY: a context stays allocated for as long as the process runs: we hold librdmacm's list (see [`all`]).
        let descriptors = unsafe { [(*self.verbs.0.as_ptr()).cmd_fd, (*self.verbs.0.as_ptr()).async_fd] };
        for descriptor in descriptors {
            // SAFETY: both are open descriptors of the context and stay so, of something else. Nothing of ours uses the context any
            // more, which this is the last owner of; librdmacm marks it dead before it opens another device.
            if unsafe { libc::dup3(nowhere.as_raw_fd(), descriptor, libc::O_CLOEXEC) } < 0 {
                tracing::warn!("a device that was removed stays open: {}", io::Error::last_os_error());
            }
        }
    }
}

/// A device with this process's memory registered.
pub(super) struct OpenDevice {
    /// Before the domain, in which they are.
    regions: Vec<Region>,
    /// The same memory once more, for peers to read and write; only for pools of which something was lent.
    lendable: Mutex<Vec<Option<Region>>>,
    zeros: Region,
    pd: Domain,
    /// Behind all that is made with it.
    held: Held,
    place: Option<Place>,
    info: Device,
    pub(super) bounds: Bounds,
    pools: Vec<&'static BufPool>,
    zeros_at: Buf,
}

// SAFETY: protection domain and regions are only named to verbs, which may be called from any thread; the buffer of zeros is never
// looked at nor written.
unsafe impl Sync for OpenDevice {}
// SAFETY: as above.
unsafe impl Send for OpenDevice {}

struct Domain(NonNull<sys::ibv_pd>);

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: the last owner: regions were dropped before, queue pairs hold the device.
        let failed = unsafe { sys::ibv_dealloc_pd(self.0.as_ptr()) };
        if failed != 0 {
            tracing::warn!("a protection domain stays: {}", io::Error::from_raw_os_error(failed));
        }
    }
}

/// The devices that librdmacm has found.
pub(super) fn all() -> Result<Vec<Opened>, Unavailable> {
    let mut count = 0;
    // SAFETY: fills `count` and returns a list of so many, ended by a null, or null.
    let list = unsafe { sys::rdma_get_devices(&raw mut count) };
    if list.is_null() {
        return Err(Unavailable::NoDevice);
    }
    // SAFETY: the list has `count` entries until it is freed; the contexts in it are librdmacm's own and stay.
    let found = unsafe { std::slice::from_raw_parts(list, count as usize) }.to_vec();
    // The list is kept: freeing it would let librdmacm close contexts that nobody is connected on yet, and free those of devices that
    // were removed.
    Ok(found.into_iter().filter_map(NonNull::new).map(Opened).collect())
}

impl OpenDevice {
    /// Makes what this process needs on a device.
    pub(super) fn open(verbs: Opened, id: DeviceId, pools: &[&'static BufPool]) -> Result<OpenDevice, Unavailable> {
        let name = name(verbs);
        // SAFETY: all-zero is a valid value of this plain structure, which is filled by the call.
        let mut attributes: sys::ibv_device_attr = unsafe { std::mem::zeroed() };
        // SAFETY: the context lives as long as the process.
        let failed = unsafe { sys::ibv_query_device(verbs.0.as_ptr(), &raw mut attributes) };
        if failed != 0 {
            return Err(Unavailable::System { what: "ibv_query_device", why: io::Error::from_raw_os_error(failed) });
        }
        if attributes.max_sge < 2 {
            return Err(Unavailable::Lacks { device: name, what: "two ranges in a receive".to_owned() });
        }
        // SAFETY: as above.
        let pd = NonNull::new(unsafe { sys::ibv_alloc_pd(verbs.0.as_ptr()) })
            .ok_or_else(|| Unavailable::System { what: "ibv_alloc_pd", why: io::Error::last_os_error() })?;
        let domain = Domain(pd);
        let locked = |bytes: usize, why: io::Error| match why.raw_os_error() {
            Some(libc::ENOMEM | libc::EAGAIN | libc::EPERM) => {
                Unavailable::LockedMemory { device: name.clone(), bytes, limit: memory_limit(), why }
            }
            _ => Unavailable::System { what: "ibv_reg_mr", why },
        };
        let mut regions = Vec::new();
        for pool in pools {
            let (start, len) = pool.arena();
            let region = Region::register(pd, start.as_ptr(), len, sys::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0);
            regions.push(region.map_err(|why| locked(len, why))?);
        }
        let zeros_at = zeros();
        let zeros = Region::register(pd, zeros_at.as_ptr(), ZEROS_MAX, 0).map_err(|why| locked(ZEROS_MAX, why))?;
        let info = Device {
            id,
            numa: numa_node(&name),
            name,
            queue_entries_max: attributes.max_qp_wr as u32,
            reads_out_max: attributes.max_qp_init_rd_atom.clamp(0, 255) as u8,
            reads_in_max: attributes.max_qp_rd_atom.clamp(0, 255) as u8,
            gone: false,
        };
        Ok(OpenDevice {
            regions,
            lendable: Mutex::new(pools.iter().map(|_| None).collect()),
            zeros,
            pd: domain,
            held: Held { verbs, gone: AtomicBool::new(false) },
            place: sysfs_folder(verbs).as_deref().and_then(place),
            info,
            bounds: Bounds { completions_max: attributes.max_cqe as u32 },
            pools: pools.to_vec(),
            zeros_at,
        })
    }

    pub(super) fn info(&self) -> Device {
        Device { gone: self.is_gone(), ..self.info.clone() }
    }

    pub(super) fn is(&self, verbs: Opened) -> bool {
        self.held.verbs == verbs
    }

    /// Where the system lists it; `None` where it did not say.
    pub(super) fn place(&self) -> Option<Place> {
        self.place
    }

    pub(super) fn verbs(&self) -> *mut sys::ibv_context {
        self.held.verbs.0.as_ptr()
    }

    pub(super) fn domain(&self) -> *mut sys::ibv_pd {
        self.pd.0.as_ptr()
    }

    pub(super) fn is_gone(&self) -> bool {
        self.held.gone.load(Ordering::Relaxed)
    }

    /// Marks it removed.
    pub(super) fn set_gone(&self) {
        self.held.gone.store(true, Ordering::Relaxed);
    }

    /// The key by which the device itself gets at a buffer; `None` if it is of no pool of this process.
    pub(super) fn local_key(&self, buf: &Buf) -> Option<u32> {
        let index = usize::from(buf.pool().index());
        let registered = self.pools.get(index).is_some_and(|pool| std::ptr::eq(*pool, buf.pool()));
        registered.then(|| self.regions[index].local_key())
    }

    /// Address and key of zeros, [`ZEROS_MAX`] of them.
    pub(super) fn zeros(&self) -> (u64, u32) {
        (self.zeros_at.as_ptr() as u64, self.zeros.local_key())
    }

    /// The key by which a peer gets at a buffer.
    pub(super) fn remote_key(&self, buf: &Buf) -> io::Result<Option<u32>> {
        if self.local_key(buf).is_none() {
            return Ok(None);
        }
        let index = usize::from(buf.pool().index());
        let mut lendable = self.lendable.lock().expect("nothing panics with the list of regions");
        if lendable[index].is_none() {
            use sys::ibv_access_flags as access;
            let flags =
                access::IBV_ACCESS_LOCAL_WRITE | access::IBV_ACCESS_REMOTE_READ | access::IBV_ACCESS_REMOTE_WRITE;
            let (start, len) = buf.pool().arena();
            lendable[index] = Some(Region::register(self.pd.0, start.as_ptr(), len, flags.0)?);
        }
        Ok(lendable[index].as_ref().map(Region::remote_key))
    }

    /// Its first port, where it answers.
    pub(super) fn port(&self) -> Option<Port> {
        // SAFETY: all-zero is a valid value of this plain structure.
        let mut port: sys::ibv_port_attr = unsafe { std::mem::zeroed() };
        // SAFETY: fills `port`; the context lives as long as the process.
        let failed = unsafe { sys::ibv_query_port(self.verbs(), 1, &raw mut port) };
        (failed == 0).then(|| Port {
            active: port.state == sys::ibv_port_state::IBV_PORT_ACTIVE,
            link: if port.link_layer == LINK_LAYER_ETHERNET { "Ethernet" } else { "InfiniBand" },
            mtu: 128 << port.active_mtu,
        })
    }
}

fn name(verbs: Opened) -> String {
    // SAFETY: a context names its device, whose name is ended by a zero and lives as long.
    let name = unsafe { sys::ibv_get_device_name((*verbs.0.as_ptr()).device) };
    if name.is_null() {
        return "a device without a name".to_owned();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

fn sysfs_folder(verbs: Opened) -> Option<String> {
    // SAFETY: a context names its device, in which the folder is a text ended by a zero.
    let folder = unsafe { CStr::from_ptr((*(*verbs.0.as_ptr()).device).dev_path.as_ptr()) };
    folder.to_str().ok().map(str::to_owned)
}

fn numa_node(name: &str) -> Option<u16> {
    let text = std::fs::read_to_string(format!("/sys/class/infiniband/{name}/device/numa_node")).ok()?;
    // -1 where the machine has only one.
    text.trim().parse().ok()
}

/// The limit on locked memory, in words.
fn memory_limit() -> String {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    match line.and_then(|line| line.split_whitespace().next()) {
        Some("unlimited") => "unlimited".to_owned(),
        Some(bytes) => format!("{bytes} bytes"),
        None => "not known".to_owned(),
    }
}

/// Zeros that nobody writes, one range for all devices.
fn zeros() -> Buf {
    static POOL: Mutex<Option<&'static BufPool>> = Mutex::new(None);
    let mut pool = POOL.lock().expect("nothing panics with the pool of zeros");
    // One slot for each time a device is opened: a region is registered and given back with its own.
    let pool = pool.get_or_insert_with(|| BufPool::leak(&BufPoolConfig { classes: vec![(ZEROS_MAX, 64)] }, u16::MAX));
    pool.get(ZEROS_MAX).expect("fewer than 64 devices at a time")
}
