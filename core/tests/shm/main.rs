//! Native rings end to end: a target on this machine, and clients that share memory with it.
#![expect(clippy::disallowed_methods, reason = "a client has a clock of its own")]

mod basics;
mod copies;
mod hostile;
mod peer;
mod rig;
mod zeros;
