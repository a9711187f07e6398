//! RDMA in the style of the reactor's seam: work goes in by value and owns its buffers, what happened comes back by value.
//!
//! [`verbs::Verbs`] is implemented twice: by rdma-core, and by a seeded twin without hardware.

pub mod verbs;
