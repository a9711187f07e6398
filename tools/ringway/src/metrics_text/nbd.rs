//! Network block devices: what their clients ask.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;
use ringway_core::metrics::{Counter, NbdCounters, ReactorMetrics};
use ringway_core::transport::nbd::wire::Kind;

use super::counters;

pub(super) fn encode(encoder: &mut DescriptorEncoder, reactors: &[ReactorMetrics]) -> fmt::Result {
    let of = |value: fn(&NbdCounters) -> &Counter| {
        let sum = |place: usize| reactors.iter().map(|reactor| value(&reactor.nbd[place]).get()).sum::<u64>();
        let labelled = |(place, name): (usize, &&str)| (vec![("operation", (*name).to_owned())], sum(place));
        Kind::NAMES.iter().enumerate().map(labelled).collect::<Vec<_>>()
    };
    counters(encoder, "nbd_requests", "Requests of network block devices, by kind", &of(|all| &all.requests))?;
    counters(encoder, "nbd_errors", "Those of them that were answered with an error", &of(|all| &all.errors))?;
    counters(encoder, "nbd_bytes", "Bytes that they ask for", &of(|all| &all.bytes))
}
