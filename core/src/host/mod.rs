//! The NVMe/TCP host.

mod target;

pub use target::{BadTarget, PORT_DEFAULT, Target, Transport};
