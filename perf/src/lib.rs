//! Load generators and comparisons with peers. `METHOD.md` says how the figures come about.

pub mod bars;
pub mod cpu;
pub mod echo;
pub mod load;
pub mod pools;
pub mod responder;
