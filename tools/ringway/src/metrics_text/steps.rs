//! Snapshots and streams: how many, and where the time of snapshots goes.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use ringway_core::metrics::{SnapshotMetrics, SnapshotStep, StreamMetrics};

use super::{Labels, counters, gauges, octaves};

pub(super) fn encode(encoder: &mut DescriptorEncoder, metrics: &SnapshotMetrics) -> fmt::Result {
    let of = |outcome: &str, value| (vec![("outcome", outcome.to_owned())], value);
    let outcomes =
        [of("made", metrics.made.get()), of("expired", metrics.expired.get()), of("failed", metrics.failed.get())];
    counters(encoder, "snapshot_calls", "Calls for snapshots that have ended, by how", &outcomes)?;
    let mut family = encoder.encode_descriptor(
        "snapshot_step",
        "Time of each step of a snapshot's making",
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    for step in SnapshotStep::ALL {
        let totals = metrics.totals(step);
        let labels: Labels = vec![("step", step.name().to_owned())];
        let metric = &mut family.encode_family(&labels)?;
        metric.encode_histogram::<Labels>(totals.sum_ns as f64 / 1e9, totals.count(), &octaves(&totals), None)?;
    }
    let mut metric = encoder.encode_descriptor(
        "snapshot_expiry_late",
        "Time from a missed deadline to its answer",
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    let late = metrics.late_totals();
    metric.encode_histogram::<Labels>(late.sum_ns as f64 / 1e9, late.count(), &octaves(&late), None)
}

pub(super) fn encode_streams(encoder: &mut DescriptorEncoder, metrics: &StreamMetrics) -> fmt::Result {
    let one = |value| vec![(Vec::new(), value)];
    let of = |outcome: &str, value| (vec![("outcome", outcome.to_owned())], value);
    counters(encoder, "streams_started", "Streams that were started", &one(metrics.started.get()))?;
    let outcomes = [
        of("completed", metrics.completed.get()),
        of("failed", metrics.failed.get()),
        of("cancelled", metrics.cancelled.get()),
    ];
    counters(
        encoder,
        "streams_ended",
        "Streams that have ended, by how; a last increment completes one too",
        &outcomes,
    )?;
    counters(encoder, "stream_errors", "Errors that streams have met", &one(metrics.errors.get()))?;
    counters(encoder, "stream_copied_bytes", "Bytes that streams have copied", &one(metrics.copied_bytes.get()))?;
    gauges(encoder, "streams_running", "Streams that run", &one(metrics.running.get()))?;
    gauges(encoder, "streams_paused", "Streams that wait to be resumed", &one(metrics.paused.get()))
}
