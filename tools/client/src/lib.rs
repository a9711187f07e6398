//! A volume of Ringway for a program: over shared memory or NVMe/TCP, chosen by name. Under the fio engine and the libraries that
//! other programs load.
//!
//! [`Options`] say which volume and which way. A [`Session`] cuts requests to what the target takes and puts their ends together; a
//! carrier moves the pieces: `tcp` or `shm`. A session belongs to one thread, the only one that submits to its ring. [`Engine`] is a
//! session with a thread of its own, for programs with several: they hand requests over, and are told their ends.
//!
//! Buffers are the program's own, [`CallerMemory`]; those of [`Area`] lie in the memory that is shared with the target, and are
//! moved without a copy.

mod address;
#[cfg(feature = "control")]
pub mod control;
mod desk;
mod discover;
mod engine;
mod memory;
mod options;
mod pool;
mod refusal;
mod runtime;
mod session;
mod shm;
mod tcp;

pub use address::{Addresses, BadAddress};
pub use discover::discover;
pub use engine::{Done, Engine, Request};
pub use memory::CallerMemory;
pub use options::{Options, Transport, Way};
pub use refusal::{Refusal, errno};
pub use ringway_core::host::Discovered;
pub use ringway_shm_ring::client::{Host, RawBuffer};
pub use runtime::{control_socket, runtime_folder, shm_socket};
pub use session::{Ended, Session, Volume, What};
pub use shm::Area;
