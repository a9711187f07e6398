//! Byte streams: what the transports over sockets have in common. One receive and one send are in flight at a time; bulk data goes
//! from the socket straight into a request's buffer, and out of it.

mod receive;
mod send;

pub(super) use receive::{Inflow, Input};
pub(super) use send::Output;
