//! RDMA devices of this machine, by rdma-core.
//!
//! The libraries are looked for when the process starts (they are opened by name, never linked), so that the same program runs
//! where they are not. [`Rdma::open`] says what is missing in words that say what to do.

mod connection;
mod device;
mod hardware;
mod queue;
mod watch;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use ringway_reactor::buf::BufPool;
use ringway_reactor::event::EventFd;

use crate::endpoint::Endpoint;
use crate::verbs::{Device, DeviceId, Verbs, VerbsError};
use connection::Channel;
use device::{OpenDevice, Port};
use hardware::RdmaHardware;

/// Why there is no RDMA.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// rdma-core is not there.
    #[error(
        "rdma-core is not installed: librdmacm.so.1 or libibverbs.so.1 is missing (Debian: librdmacm1 and ibverbs-providers)"
    )]
    NotInstalled,
    /// The kernel's side of connections is not there.
    #[error("/dev/infiniband/rdma_cm is not there: modprobe rdma_ucm")]
    NoConnectionModule,
    /// There is no device.
    #[error("no RDMA device (ibv_devices lists none)")]
    NoDevice,
    /// Not allowed.
    #[error("no permission for /dev/infiniband/*: {0}")]
    NoPermission(io::Error),
    /// Buffers cannot be locked in memory.
    #[error(
        "{device}: registering {bytes} bytes of buffers: {why}. The limit on locked memory is {limit}: set LimitMEMLOCK=infinity, or ulimit -l"
    )]
    LockedMemory { device: String, bytes: usize, limit: String, why: io::Error },
    /// It was there.
    #[error("the device was removed")]
    Removed,
    /// The device lacks something.
    #[error("{device} lacks what is needed: {what}")]
    Lacks { device: String, what: String },
    /// Something else.
    #[error("{what}: {why}")]
    System { what: &'static str, why: io::Error },
}

impl Unavailable {
    /// Whether it may pass while the program runs: a card that is put in, a module that is loaded.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Unavailable::NoDevice | Unavailable::NoConnectionModule)
    }
}

/// The RDMA devices of a process, with its buffers registered. One for all reactors; clones are the same one.
#[derive(Clone)]
pub struct Rdma(Arc<Shared>);

/// What reactors share.
struct Shared {
    pools: Vec<&'static BufPool>,
    devices: Mutex<Vec<Known>>,
    /// Reactors, which are told when a device has come or gone.
    reactors: Mutex<Vec<Weak<EventFd>>>,
}

/// A device, in the order of the numbers.
struct Known {
    info: Device,
    verbs: device::Opened,
    /// While it is there.
    open: Option<Arc<OpenDevice>>,
}

impl Shared {
    fn devices(&self) -> MutexGuard<'_, Vec<Known>> {
        self.devices.lock().expect("nothing panics with the list of devices")
    }

    /// The device that a connection is on, opened if it is new here.
    fn of(&self, verbs: device::Opened) -> Result<Arc<OpenDevice>, Unavailable> {
        let mut devices = self.devices();
        let mut open = devices.iter().filter_map(|known| known.open.as_ref());
        if let Some(device) = open.find(|device| device.is(verbs)) {
            return Ok(Arc::clone(device));
        }
        // Not one that was removed; and looked up at librdmacm, which keeps it from then on (see [`device::all`]).
        if devices.iter().any(|known| known.verbs == verbs) || !device::all()?.contains(&verbs) {
            return Err(Unavailable::Removed);
        }
        let device = Arc::new(OpenDevice::open(verbs, DeviceId(devices.len() as u16), &self.pools)?);
        devices.push(Known { info: device.info(), verbs, open: Some(Arc::clone(&device)) });
        drop(devices);
        self.tell();
        Ok(device)
    }

    /// The device was removed: it is closed when nobody has a queue pair on it.
    fn forget(&self, id: DeviceId) {
        let known = &mut self.devices()[usize::from(id.0)];
        known.info.gone = true;
        if let Some(open) = known.open.take() {
            open.set_gone();
            self.tell();
        }
    }

    /// Whether this was the context of a device that was removed.
    fn is_gone(&self, verbs: device::Opened) -> bool {
        self.devices().iter().any(|known| known.verbs == verbs && known.info.gone)
    }

    fn reactors(&self) -> MutexGuard<'_, Vec<Weak<EventFd>>> {
        self.reactors.lock().expect("nothing panics with the list of reactors")
    }

    /// Devices have changed: every reactor has a look.
    fn tell(&self) {
        for reactor in self.reactors().iter().filter_map(Weak::upgrade) {
            if let Err(why) = reactor.signal() {
                tracing::warn!("a reactor does not hear of RDMA devices: {why}");
            }
        }
    }

    fn infos(&self) -> Vec<Device> {
        self.devices().iter().map(|known| known.info.clone()).collect()
    }
}

impl Rdma {
    /// Finds the devices and registers `pools`, each at the place its index says, with each of them. A device that cannot be used
    /// is told in the log and left out; if there is none that can, that is the error. May be called again later.
    ///
    /// # Panics
    /// If a pool is not at the place its index says.
    pub fn open(pools: &[&'static BufPool]) -> Result<Rdma, Unavailable> {
        assert!(pools.iter().enumerate().all(|(place, pool)| pool.index() as usize == place));
        drop(Channel::open()?);
        let (devices, reactors) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        let shared = Shared { pools: pools.to_vec(), devices, reactors };
        let mut last = Unavailable::NoDevice;
        for verbs in device::all()? {
            if let Err(error) = shared.of(verbs) {
                tracing::warn!("an RDMA device is not used: {error}");
                last = error;
            }
        }
        if shared.devices().is_empty() { Err(last) } else { Ok(Rdma(Arc::new(shared))) }
    }

    /// From now on devices are noticed that come, and those that go although nobody is connected on them, by a thread that ends
    /// soon after the last owner of this.
    pub fn watch(&self) -> io::Result<()> {
        watch::start(&self.0)
    }

    /// Devices that can be used, those that are gone included.
    #[must_use]
    pub fn devices(&self) -> Vec<Device> {
        self.0.infos()
    }

    /// What there is, a line for each device, for whoever starts the program.
    #[must_use]
    pub fn found(&self) -> Vec<String> {
        let devices = self.0.devices();
        devices
            .iter()
            .filter_map(|known| known.open.as_ref())
            .map(|device| found(&device.info(), device.port()))
            .collect()
    }

    /// One reactor's access.
    pub fn endpoint(&self) -> Result<Box<dyn Verbs>, VerbsError> {
        let hardware = RdmaHardware::new(Arc::clone(&self.0))?;
        Ok(Box::new(Endpoint::new(hardware)))
    }
}

fn found(info: &Device, port: Option<Port>) -> String {
    let port = port.map_or_else(
        || "its port does not answer".to_owned(),
        |port| format!("port {}, {}, MTU {}", if port.active { "active" } else { "down" }, port.link, port.mtu),
    );
    let numa = info.numa.map_or_else(String::new, |node| format!(", memory node {node}"));
    format!(
        "{}: {port}{numa}, {} work requests a queue, {} reads out and {} in",
        info.name, info.queue_entries_max, info.reads_out_max, info.reads_in_max
    )
}
