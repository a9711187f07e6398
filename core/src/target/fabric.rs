//! RDMA of a target: the devices are opened once, and each reactor has its own way to them.
//!
//! A machine without RDMA, or without what a device needs, is no reason not to start: it is said what is missing, and everything else
//! is served. What may still come, a device or the module for connections, is waited for by a thread of its own.

use std::net::SocketAddr;
use std::path::Path;

use ringway_reactor::buf::BufPool;

use super::assembly::Fabric;
use super::config::TargetConfig;
use crate::transport::RdmaTransport;

/// What the target has of RDMA.
pub(super) struct Rdma {
    devices: Option<waiting::Devices>,
    numa: Vec<Option<u16>>,
}

impl Rdma {
    /// Opens the devices, if the target is to listen on any, with all reactors' buffers.
    pub(super) fn open(config: &TargetConfig, pools: &[&'static BufPool]) -> Rdma {
        let numa = config.cores.iter().map(|&core| memory_node(Path::new("/sys/devices/system/cpu"), core)).collect();
        let devices = if config.rdma_listeners.is_empty() { None } else { waiting::open(config, pools) };
        Rdma { devices, numa }
    }

    /// A reactor's way to the devices.
    pub(super) fn fabric(&self, reactor: usize) -> Fabric {
        let fabric = self.devices.as_ref().map_or_else(Fabric::default, |devices| waiting::fabric(devices, reactor));
        Fabric { numa: self.numa.clone(), ..fabric }
    }
}

/// Devices that are there, or may come.
#[cfg(feature = "rdma")]
mod waiting {
    use std::sync::{Arc, OnceLock};
    use std::thread;
    use std::time::Duration;

    use ringway_rdma::rdma::Rdma as Opened;
    use ringway_rdma::verbs::Verbs;
    use ringway_reactor::buf::BufPool;

    use super::{Fabric, TargetConfig, off};

    /// How often it is looked whether there is RDMA now.
    const EVERY: Duration = Duration::from_secs(1);

    /// Filled once there are any.
    pub(super) type Devices = Arc<OnceLock<Opened>>;

    pub(super) fn open(config: &TargetConfig, pools: &[&'static BufPool]) -> Option<Devices> {
        let devices = Devices::default();
        match Opened::open(pools) {
            Ok(opened) => fill(&devices, opened),
            Err(why) if why.may_pass() => {
                tracing::warn!(%why, "RDMA is off until that changes; everything else is served");
                if let Err(why) = wait(&devices, pools.to_vec()) {
                    tracing::warn!(%why, "no RDMA device will be waited for");
                }
            }
            Err(why) => {
                off(config, &why.to_string());
                return None;
            }
        }
        Some(devices)
    }

    /// Ends soon after the target, or with the first device.
    #[expect(
        clippy::disallowed_methods,
        reason = "a thread beside the reactors waits for a person, not for the engine's clock"
    )]
    fn wait(devices: &Devices, pools: Vec<&'static BufPool>) -> std::io::Result<()> {
        let devices = Arc::downgrade(devices);
        let look = move || {
            loop {
                thread::sleep(EVERY);
                let Some(devices) = devices.upgrade() else { return };
                match Opened::open(&pools) {
                    Ok(opened) => return fill(&devices, opened),
                    Err(why) if why.may_pass() => {}
                    Err(why) => return tracing::warn!(%why, "RDMA stays off; everything else is served"),
                }
            }
        };
        thread::Builder::new().name("rdma-wait".to_owned()).spawn(look).map(drop)
    }

    fn fill(devices: &Devices, opened: Opened) {
        for device in opened.found() {
            tracing::info!(device, "RDMA");
        }
        if let Err(why) = opened.watch() {
            tracing::warn!(%why, "RDMA devices that come or go later may not be noticed");
        }
        assert!(devices.set(opened).is_ok(), "one thread looks for devices");
    }

    pub(super) fn fabric(devices: &Devices, reactor: usize) -> Fabric {
        let Some(opened) = devices.get() else {
            let devices = Arc::clone(devices);
            let later = move || devices.get().and_then(|opened| endpoint(opened, reactor));
            return Fabric { later: Some(Box::new(later)), ..Fabric::default() };
        };
        Fabric { verbs: endpoint(opened, reactor), ..Fabric::default() }
    }

    fn endpoint(opened: &Opened, reactor: usize) -> Option<Box<dyn Verbs>> {
        opened.endpoint().map_err(|error| tracing::warn!(reactor, %error, "RDMA is off on this reactor")).ok()
    }
}

/// This program was built without RDMA.
#[cfg(not(feature = "rdma"))]
mod waiting {
    use std::convert::Infallible;

    use ringway_reactor::buf::BufPool;

    use super::{Fabric, TargetConfig, off};

    pub(super) type Devices = Infallible;

    pub(super) fn open(config: &TargetConfig, _: &[&'static BufPool]) -> Option<Devices> {
        off(config, "this program was built without it (cargo build --features rdma)");
        None
    }

    pub(super) fn fabric(devices: &Devices, _: usize) -> Fabric {
        match *devices {}
    }
}

fn off(config: &TargetConfig, why: &str) {
    let asked: Vec<_> = config.rdma_listeners.iter().map(|addr| format!("rdma://{addr}")).collect();
    tracing::warn!(listeners = asked.join(" "), why, "RDMA is off; everything else is served");
}

/// Listens where it can; what cannot be listened at now is tried again as devices come.
pub(super) fn listen(rdma: &mut RdmaTransport, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    if !rdma.is_on() {
        return Vec::new(); // said already
    }
    let listen = |&addr: &SocketAddr| match rdma.listen(addr) {
        Ok(addr) => Some(addr),
        Err(error) => {
            tracing::warn!(listener = %format_args!("rdma://{addr}"), %error, "not listening there yet; trying again");
            None
        }
    };
    addresses.iter().filter_map(listen).collect()
}

/// The memory node of a core, where the system has several and says so.
fn memory_node(cpus: &Path, core: usize) -> Option<u16> {
    let entries = std::fs::read_dir(cpus.join(format!("cpu{core}"))).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.into_iter().find_map(|name| name.strip_prefix("node")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_node_of_a_core_is_what_the_system_says_if_it_says_so() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("cpu3/node1")).unwrap();
        std::fs::create_dir_all(dir.path().join("cpu4/cache")).unwrap();
        let found: Vec<_> = [3, 4, 5].map(|core| memory_node(dir.path(), core)).into();
        assert_eq!(found, [Some(1), None, None]);
    }
}
