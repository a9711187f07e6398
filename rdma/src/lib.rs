//! RDMA in the style of the reactor's seam: work goes in by value and owns its buffers, what happened comes back by value.
//!
//! [`verbs::Verbs`] is implemented once, by an endpoint that knows queue pairs and what became of their work, and an endpoint stands on
//! hardware of one of two kinds: rdma-core (feature `verbs`), or a seeded twin without devices ([`sim`]). So what the tests of a
//! transport run is the product's own bookkeeping.

mod endpoint;
mod hardware;
mod pair;
#[cfg(feature = "verbs")]
pub mod rdma;
#[cfg(any(test, feature = "verbs"))]
mod room;
pub mod sim;
#[cfg(test)]
mod tests;
pub mod verbs;
