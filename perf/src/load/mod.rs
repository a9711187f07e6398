//! The verified load generator of `ringway bench` and `ringway demo`.

pub mod block;
mod config;
pub mod oracle;
pub mod pattern;

pub use config::{Limit, LoadConfig, Mix, Pattern, Verify};
pub use oracle::{Fault, FaultKind, Promise};
