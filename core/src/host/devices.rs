//! RDMA devices for a host.

use ringway_rdma::verbs::Verbs;
use ringway_reactor::buf::BufPool;

use super::error::{HostError, HostErrorKind};

/// This thread's way to the machine's RDMA devices, with which `pool` is registered: for [`super::Host::over_rdma`].
#[cfg(feature = "rdma")]
pub fn rdma_devices(pool: &'static BufPool) -> Result<Box<dyn Verbs>, HostError> {
    let off = |why: String| HostError::new(HostErrorKind::Local, format!("RDMA is off: {why}"));
    let opened = ringway_rdma::rdma::Rdma::open(&[pool]).map_err(|why| off(why.to_string()))?;
    opened.endpoint().map_err(|error| off(error.to_string()))
}

/// This thread's way to the machine's RDMA devices, for which this program was not built.
#[cfg(not(feature = "rdma"))]
pub fn rdma_devices(_pool: &'static BufPool) -> Result<Box<dyn Verbs>, HostError> {
    let why = "RDMA is off: this program was built without it (cargo build --features rdma)";
    Err(HostError::new(HostErrorKind::Local, why))
}
