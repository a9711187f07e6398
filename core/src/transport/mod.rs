//! Transports: capsules out of sockets, answers back into them.

pub mod tcp;

pub use tcp::{Adopted, ConnectionSeen, TcpTransport, TransportConfig, TransportEvent, TransportStats};
