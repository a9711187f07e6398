//! RDMA of a target: the devices are opened once, and each reactor has its own way to them.
//!
//! A machine without RDMA, or without what a device needs, is no reason not to start: it is said what is missing, and everything else
//! is served.

use std::net::SocketAddr;
use std::path::Path;

use ringway_reactor::buf::BufPool;

use super::assembly::Fabric;
use super::config::TargetConfig;
use crate::transport::RdmaTransport;

/// What the target has of RDMA.
pub(super) struct Rdma {
    #[cfg(feature = "rdma")]
    opened: Option<ringway_rdma::rdma::Rdma>,
    numa: Vec<Option<u16>>,
}

impl Rdma {
    /// Opens the devices, if the target is to listen on any, with all reactors' buffers.
    #[cfg(feature = "rdma")]
    pub(super) fn open(config: &TargetConfig, pools: &[&'static BufPool]) -> Rdma {
        let numa = config.cores.iter().map(|&core| memory_node(Path::new("/sys/devices/system/cpu"), core)).collect();
        if config.rdma_listeners.is_empty() {
            return Rdma { opened: None, numa };
        }
        match ringway_rdma::rdma::Rdma::open(pools) {
            Ok(opened) => {
                for device in opened.found() {
                    tracing::info!(device, "RDMA");
                }
                Rdma { opened: Some(opened), numa }
            }
            Err(why) => {
                off(config, &why.to_string());
                Rdma { opened: None, numa }
            }
        }
    }

    /// This program was built without RDMA.
    #[cfg(not(feature = "rdma"))]
    pub(super) fn open(config: &TargetConfig, _pools: &[&'static BufPool]) -> Rdma {
        if !config.rdma_listeners.is_empty() {
            off(config, "this program was built without it (cargo build --features rdma)");
        }
        Rdma {
            numa: config.cores.iter().map(|&core| memory_node(Path::new("/sys/devices/system/cpu"), core)).collect(),
        }
    }

    /// A reactor's way to the devices.
    pub(super) fn fabric(&self, reactor: usize) -> Fabric {
        #[cfg(feature = "rdma")]
        let verbs = self.opened.as_ref().and_then(|opened| match opened.endpoint() {
            Ok(verbs) => Some(verbs),
            Err(error) => {
                tracing::warn!(reactor, %error, "RDMA is off on this reactor");
                None
            }
        });
        #[cfg(not(feature = "rdma"))]
        let verbs = {
            let _ = reactor;
            None
        };
        Fabric { verbs, numa: self.numa.clone() }
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
