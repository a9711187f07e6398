//! Whether a target answers, and what it lists.

use std::net::SocketAddr;

use ringway_core::host::{Discovered, DiscoveryReader, HostConfig, rdma_devices};
use ringway_core::wire::DISCOVERY_NQN;
use ringway_core::wire::log_page::TransportType;
use ringway_reactor::buf::{BufPoolConfig, PAGE};
use ringway_reactor::io::{Io, Wait};
use ringway_reactor::uring::{UringConfig, UringIo};

use crate::options::Way;
use crate::pool::Pool;
use crate::refusal::{Refusal, errno};

/// Asks the target's discovery service what there is; one attempt an address.
///
/// # Errors
/// Why it could not be asked, of the last address; `EINVAL` for shared memory, which has no such service.
pub fn discover(way: &Way) -> Result<Vec<Discovered>, Refusal> {
    let (addresses, transport) = match way {
        Way::Shm(_) => return Err(Refusal::new(errno::EINVAL, "shared memory lists nothing: ask the control socket")),
        Way::Tcp(addresses) => (addresses, TransportType::Tcp),
        Way::Rdma(addresses) => (addresses, TransportType::Rdma),
    };
    let mut answer = discover_at(addresses.first(), transport);
    for &other in addresses.others() {
        if answer.is_ok() {
            break;
        }
        answer = discover_at(other, transport);
    }
    answer
}

fn discover_at(addr: SocketAddr, transport: TransportType) -> Result<Vec<Discovered>, Refusal> {
    let pool = Pool::take(BufPoolConfig { classes: vec![(PAGE, 16), (16 << 10, 4), (64 << 10, 2)] });
    let mut io = UringIo::new(&UringConfig::new(vec![pool.buffers()], 0))
        .map_err(|error| Refusal::new(errno::EIO, format!("no ring: {error}")))?;
    let config = HostConfig::new(addr, DISCOVERY_NQN);
    let mut reader = match transport {
        TransportType::Tcp => DiscoveryReader::new(config),
        TransportType::Rdma => {
            let verbs = rdma_devices(pool.buffers()).map_err(|error| Refusal::from(&error))?;
            DiscoveryReader::over_rdma(config.rdma(), verbs)
        }
    };
    reader.start(&mut io);
    let mut completions = Vec::new();
    loop {
        if let Some(result) = reader.turn(&mut io) {
            return result.map_err(|error| Refusal::from(&error));
        }
        io.poll(Wait::Until(reader.next_deadline()), &mut completions);
        completions.drain(..).for_each(|completion| reader.on_completion(&mut io, completion));
    }
}
