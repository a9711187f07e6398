//! The NVMe host, over TCP or RDMA.

mod api;
mod association;
mod breaks;
mod commands;
mod devices;
mod discovery;
mod error;
mod fabric_queue;
mod inbox;
mod link;
mod outbox;
mod queue;
mod receive;
mod send;
mod slot;
mod start;
mod target;

pub use api::{AdminRequest, Completed, ControllerKind, Event, HostConfig, HostRequest, Namespace, Outcome, Reconnect};
pub use association::Host;
pub use devices::rdma_devices;
pub use discovery::{Discovered, DiscoveryReader};
pub use error::{HostError, HostErrorKind};
pub use target::{BadTarget, PORT_DEFAULT, Target, Transport};

#[cfg(test)]
mod tests;
