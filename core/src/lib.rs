//! The Ringway target. `docs/ARCHITECTURE.md` follows one request through it.
//!
//! A request passes: `transport` (capsule out of a socket) -> `controller` (command checked) -> `request` (cut into parts by
//! shard) -> `shard` (stamped, looked up, executed) -> `reactor::io` (the device) and back by value.
#![forbid(unsafe_code)]

pub mod backend;
pub mod catalog;
pub mod checkpoint;
pub mod checksum;
pub mod control;
pub mod controller;
pub mod directory;
pub mod event;
pub mod export;
pub mod host;
pub mod ids;
pub mod inspect;
pub mod journal;
pub mod limits;
pub mod map;
pub mod metrics;
pub mod node;
pub mod pool;
pub mod request;
pub mod shard;
pub mod snapshot;
pub mod space;
pub mod stream;
pub mod target;
pub mod tokens;
pub mod transport;
pub mod volume;
pub mod wire;
