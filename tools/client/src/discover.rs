//! Whether a target answers, and what it lists.

use std::net::SocketAddr;

use ringway_core::host::{Discovered, DiscoveryReader, HostConfig};
use ringway_core::wire::DISCOVERY_NQN;
use ringway_reactor::buf::{BufPoolConfig, PAGE};
use ringway_reactor::io::{Io, Wait};
use ringway_reactor::uring::{UringConfig, UringIo};

use crate::address::Addresses;
use crate::pool::Pool;
use crate::refusal::{Refusal, errno};

/// Asks the target's discovery service what there is; one attempt an address.
///
/// # Errors
/// Why it could not be asked, of the last address.
pub fn discover(addresses: &Addresses) -> Result<Vec<Discovered>, Refusal> {
    let mut answer = discover_at(addresses.first());
    for &other in addresses.others() {
        if answer.is_ok() {
            break;
        }
        answer = discover_at(other);
    }
    answer
}

fn discover_at(addr: SocketAddr) -> Result<Vec<Discovered>, Refusal> {
    let pool = Pool::take(BufPoolConfig { classes: vec![(PAGE, 16), (16 << 10, 4), (64 << 10, 2)] });
    let mut io = UringIo::new(&UringConfig::new(vec![pool.buffers()], 0))
        .map_err(|error| Refusal::new(errno::EIO, format!("no ring: {error}")))?;
    let mut reader = DiscoveryReader::new(HostConfig::new(addr, DISCOVERY_NQN));
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
