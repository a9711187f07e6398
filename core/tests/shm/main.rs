//! Native rings end to end: a target on this machine, and clients that share memory with it.

mod basics;
mod rig;
