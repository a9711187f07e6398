//! A pool: its devices, what is where on them, and how it is made and opened.
//!
//! Straight-line code over any [`ringway_reactor::io::Io`]: it runs before reactors serve anything, so it may wait for each
//! operation. What it finds wrong it says with device, copy, what was found and what would be right.

pub mod blocking;
mod check;
mod error;
mod format;
mod grow;
mod layout;
mod open;
mod superblock;

pub use check::{check_lba, check_unit};
pub use error::{BadSuperblock, PoolError};
pub use format::{FormatOptions, Progress, format};
pub use grow::{GrowOptions, Growing, Joining, joined, prepare_device};
pub use layout::{DEVICE_BYTES_MIN, Layout, LayoutOptions, SUPERBLOCK_AREA, joining_bytes_min};
pub use open::{Notice, OpenOptions, OpenPool, inspect, open};
pub use superblock::{FORMAT as FORMAT_VERSION, Flags, Superblock};
