//! One pinned thread, one io_uring, one tick.
//!
//! Everything nondeterministic a storage engine needs enters through [`io::Io`]: device and socket operations, time and
//! waiting. It is implemented twice, by the kernel's ring and by a seeded simulator, so that the product's own code is
//! what the crash tests run.

pub mod buf;
pub mod clock;
pub mod crash_log;
pub mod data;
pub mod event;
pub mod files;
pub mod io;
pub mod mailbox;
pub mod pin;
pub mod prefetch;
pub mod priority;
pub mod shared;
pub mod sim;
pub mod socket_path;
pub mod timer;
pub mod turn;
pub mod uring;
