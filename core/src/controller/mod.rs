//! Controllers: what a host finds behind a connection. Checks every command and answers those that move no blocks.
//!
//! A connection hands its first capsule to [`connect::first_command`] and [`registry::Registry::connect`]; that makes it an
//! [`admin::AdminQueue`] or a [`queue::IoQueue`]. Nothing here does I/O, knows a socket or waits: what has to happen later
//! comes out of [`admin::AdminQueue::take_completion`], and time is given by the caller.

pub mod admin;
pub mod association;
pub mod connect;
mod discovery;
mod events;
mod features;
mod identify;
pub mod io;
mod logs;
mod properties;
pub mod queue;
pub mod registry;
pub mod status;
pub mod usage;
pub mod vendor;

#[cfg(test)]
mod tests;
