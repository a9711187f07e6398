//! The node's counters as Prometheus reads them. One doc line a metric: its help text.

mod nbd;
mod steps;

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use ringway_core::metrics::{
    ConnectionLabel, ConnectionMetrics, Counter, LATENCY_BUCKETS, LatencyTotals, Metrics, OperationKind,
    QueuePairMetrics, ReactorMetrics, ShardMetrics, VolumeTotals, latency_bucket_end_ns,
};

/// Content type of [`render`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;

/// All metrics as text.
pub(crate) fn render(metrics: &Arc<Metrics>) -> String {
    let mut registry = Registry::with_prefix("ringway");
    registry.register_collector(Box::new(Snapshot::take(metrics)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string takes any text");
    text
}

/// One consistent set of sums for one scrape, so that count and buckets of a histogram agree.
#[derive(Debug)]
struct Snapshot {
    metrics: Arc<Metrics>,
    shards: Vec<VolumeTotals>,
    volumes: Vec<(String, VolumeTotals)>,
    connections: Vec<Arc<ConnectionMetrics>>,
}

impl Snapshot {
    fn take(metrics: &Arc<Metrics>) -> Snapshot {
        Snapshot {
            metrics: Arc::clone(metrics),
            shards: metrics.shards.iter().map(ShardMetrics::totals).collect(),
            volumes: metrics.volumes(),
            connections: metrics.connections(),
        }
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let shards: Vec<(Labels, &VolumeTotals)> =
            self.shards.iter().enumerate().map(|(n, totals)| (vec![("shard", n.to_string())], totals)).collect();
        let volumes: Vec<(Labels, &VolumeTotals)> =
            self.volumes.iter().map(|(name, totals)| (vec![("volume", name.clone())], totals)).collect();
        encode_work(&mut encoder, "shard", &shards)?;
        encode_work(&mut encoder, "volume", &volumes)?;
        self.encode_shards(&mut encoder)?;
        self.encode_reactors(&mut encoder)?;
        nbd::encode(&mut encoder, &self.metrics.reactors)?;
        self.encode_connections(&mut encoder)?;
        self.encode_queue_pairs(&mut encoder)?;
        self.encode_pool(&mut encoder)?;
        steps::encode(&mut encoder, &self.metrics.snapshots)?;
        steps::encode_streams(&mut encoder, &self.metrics.streams)?;
        self.encode_backend(&mut encoder)
    }
}

/// What shards and volumes are both measured by.
fn encode_work(encoder: &mut DescriptorEncoder, of: &str, all: &[(Labels, &VolumeTotals)]) -> fmt::Result {
    let by_kind = |totals: &VolumeTotals, labels: &Labels, value: fn(&VolumeTotals, OperationKind) -> u64| {
        OperationKind::ALL
            .map(|kind| {
                let mut labels = labels.clone();
                labels.push(("operation", kind.name().to_owned()));
                (labels, value(totals, kind))
            })
            .to_vec()
    };
    let spread = |value: fn(&VolumeTotals, OperationKind) -> u64| {
        all.iter().flat_map(|(labels, totals)| by_kind(totals, labels, value)).collect::<Vec<_>>()
    };
    let plain = |value: fn(&VolumeTotals) -> u64| {
        all.iter().map(|(labels, totals)| (labels.clone(), value(totals))).collect::<Vec<_>>()
    };
    counters(
        encoder,
        &format!("{of}_operations"),
        &format!("Operations completed, by {of} and kind"),
        &spread(|t, kind| t.operations[kind as usize].latency.count()),
    )?;
    counters(
        encoder,
        &format!("{of}_bytes"),
        &format!("Bytes of successful operations, by {of} and kind"),
        &spread(|t, kind| t.operations[kind as usize].bytes),
    )?;
    counters(
        encoder,
        &format!("{of}_errors"),
        &format!("Operations that ended with an error, by {of} and kind"),
        &spread(|t, kind| t.operations[kind as usize].errors),
    )?;
    gauges(encoder, &format!("{of}_in_flight"), "Operations now in flight", &plain(|t| t.in_flight))?;
    counters(
        encoder,
        &format!("{of}_hops"),
        "Operations that came from another core's transport by mailbox",
        &plain(|t| t.hops),
    )?;
    counters(
        encoder,
        &format!("{of}_copied_bytes"),
        "Bytes copied by the CPU between buffers; the direct path copies none",
        &plain(|t| t.bytes_copied),
    )?;
    encode_latency(encoder, of, all)
}

fn encode_latency(encoder: &mut DescriptorEncoder, of: &str, all: &[(Labels, &VolumeTotals)]) -> fmt::Result {
    let name = format!("{of}_latency");
    let mut family = encoder.encode_descriptor(
        &name,
        "Time from a shard's receipt of an operation to its completion",
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    for (labels, totals) in all {
        for kind in OperationKind::ALL {
            let latency = &totals.operations[kind as usize].latency;
            if latency.count() == 0 {
                continue;
            }
            let mut labels = labels.clone();
            labels.push(("operation", kind.name().to_owned()));
            let sum = latency.sum_ns as f64 / 1e9;
            let mut metric = family.encode_family(&labels)?;
            metric.encode_histogram::<Labels>(sum, latency.count(), &octaves(latency), None)?;
        }
    }
    Ok(())
}

/// `(bound in seconds, operations in this bucket)` with a bucket a power of two: four times fewer lines than are counted.
fn octaves(latency: &LatencyTotals) -> Vec<(f64, u64)> {
    let mut octaves: Vec<(f64, u64)> = (0..LATENCY_BUCKETS / 4)
        .map(|n| {
            let end = latency_bucket_end_ns(n * 4 + 3);
            (end as f64 / 1e9, latency.buckets[n * 4..][..4].iter().sum())
        })
        .collect();
    octaves.last_mut().expect("there are buckets").0 = f64::INFINITY;
    octaves
}

impl Snapshot {
    fn encode_shards(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let of = |value: fn(&ShardMetrics) -> u64| {
            self.metrics
                .shards
                .iter()
                .enumerate()
                .map(|(n, shard)| (vec![("shard", n.to_string())], value(shard)))
                .collect::<Vec<_>>()
        };
        gauges(
            encoder,
            "shard_allocated_bytes",
            "Bytes of clusters in use by data and maps",
            &of(|s| s.allocated_bytes.get()),
        )?;
        counters(encoder, "shard_journal_groups", "Journal groups written", &of(|s| s.journal_groups.get()))?;
        counters(encoder, "shard_journal_bytes", "Bytes of journal groups written", &of(|s| s.journal_bytes.get()))?;
        gauges(
            encoder,
            "shard_journal_used_bytes",
            "Bytes of the journal that the next opening would replay",
            &of(|s| s.journal_used_bytes.get()),
        )?;
        counters(encoder, "shard_checkpoints", "Checkpoints completed", &of(|s| s.checkpoints.get()))?;
        counters(encoder, "shard_map_page_loads", "Map pages read on demand", &of(|s| s.map_page_loads.get()))?;
        gauges(encoder, "shard_map_nodes", "Map nodes in memory", &of(|s| s.map_nodes.get()))
    }

    fn encode_reactors(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let of = |value: fn(&ReactorMetrics) -> u64| {
            self.metrics
                .reactors
                .iter()
                .enumerate()
                .map(|(n, reactor)| (vec![("reactor", n.to_string())], value(reactor)))
                .collect::<Vec<_>>()
        };
        counters(encoder, "reactor_polls_empty", "Turns that found nothing to do", &of(|r| r.polls_empty.get()))?;
        counters(encoder, "reactor_polls_busy", "Turns that found work", &of(|r| r.polls_busy.get()))?;
        counters(encoder, "reactor_sleeps", "Times the reactor slept in its ring", &of(|r| r.sleeps.get()))?;
        counters(encoder, "reactor_messages", "Messages sent to other reactors", &of(|r| r.messages_sent.get()))?;
        counters(
            encoder,
            "reactor_messages_delayed",
            "Messages that did not fit a mailbox at once and waited",
            &of(|r| r.messages_delayed.get()),
        )?;
        counters(
            encoder,
            "reactor_copied_bytes",
            "Bytes that transports copied between buffers",
            &of(|r| r.bytes_copied.get()),
        )?;
        counters(encoder, "reactor_connections", "Connections accepted", &of(|r| r.connections_accepted.get()))?;
        counters(
            encoder,
            "reactor_protocol_errors",
            "Connections ended because the peer broke the protocol",
            &of(|r| r.protocol_errors.get()),
        )?;
        counters(
            encoder,
            "reactor_malformed_commands",
            "Requests of virtual machines that were none",
            &of(|r| r.commands_malformed.get()),
        )?;
        counters(
            encoder,
            "reactor_waits_for_buffer",
            "Commands that had to wait for a buffer",
            &of(|r| r.waits_for_buffer.get()),
        )?;
        gauges(
            encoder,
            "reactor_registered_bytes",
            "Bytes of clients' memory registered with its ring",
            &of(|r| r.registered_bytes.get()),
        )?;
        gauges(encoder, "reactor_buffers_in_use", "Buffers of its pool in use", &of(|r| r.buffers_in_use.get()))?;
        gauges(encoder, "reactor_device_in_flight", "Device operations in flight", &of(|r| r.device_in_flight.get()))
    }

    fn encode_connections(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let of = |value: fn(&ConnectionMetrics) -> u64| {
            self.connections
                .iter()
                .map(|connection| {
                    let label = &connection.label;
                    let labels = vec![
                        ("peer", label.peer.clone()),
                        ("reactor", label.reactor.to_string()),
                        ("queue", label.queue.to_string()),
                        ("subsystem", label.subsystem.clone()),
                    ];
                    (labels, value(connection))
                })
                .collect::<Vec<_>>()
        };
        counters(encoder, "connection_commands", "Commands received", &of(|c| c.commands.get()))?;
        counters(encoder, "connection_received_bytes", "Bytes received", &of(|c| c.bytes_received.get()))?;
        counters(encoder, "connection_sent_bytes", "Bytes sent", &of(|c| c.bytes_sent.get()))?;
        gauges(encoder, "connection_in_flight", "Commands now in flight", &of(|c| c.in_flight.get()))
    }

    fn encode_queue_pairs(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let pairs: Vec<_> = self.connections.iter().filter_map(|c| Some((&c.label, c.fabric.as_ref()?))).collect();
        let labels = |label: &ConnectionLabel| {
            vec![
                ("peer", label.peer.clone()),
                ("reactor", label.reactor.to_string()),
                ("queue", label.queue.to_string()),
                ("subsystem", label.subsystem.clone()),
            ]
        };
        let of = |value: fn(&QueuePairMetrics) -> u64| -> Vec<_> {
            pairs.iter().map(|(label, pair)| (labels(label), value(pair))).collect()
        };
        let split = |name: &'static str, kinds: &[&'static str], of: fn(&QueuePairMetrics) -> &[Counter]| -> Vec<_> {
            let one = |(label, pair): &(&ConnectionLabel, &QueuePairMetrics)| {
                let counters = kinds.iter().zip(of(pair)).map(|(kind, counter)| (*kind, counter.get()));
                let labelled = counters.map(|(kind, value)| {
                    let mut labels = labels(label);
                    labels.push((name, kind.to_owned()));
                    (labels, value)
                });
                labelled.collect::<Vec<_>>()
            };
            pairs.iter().flat_map(one).collect()
        };
        counters(
            encoder,
            "rdma_posted",
            "Work requests given to the card",
            &split("work", &["receive", "send", "read", "write"], |p| &p.posted),
        )?;
        counters(
            encoder,
            "rdma_completed",
            "Works that came back, done or failed (flushed ones among these)",
            &split("result", &["done", "failed"], |p| &p.completed),
        )?;
        counters(encoder, "rdma_doorbells", "Calls that gave the card work", &of(|p| p.doorbells.get()))?;
        counters(encoder, "rdma_signalled", "Works that had a completion of their own", &of(|p| p.signalled.get()))?;
        counters(
            encoder,
            "rdma_reads_waited",
            "RDMA reads that waited for others to end",
            &of(|p| p.reads_waited.get()),
        )?;
        counters(
            encoder,
            "rdma_rnr_exceeded",
            "Messages given up because the host posts no receives",
            &of(|p| p.rnr_exceeded.get()),
        )?;
        counters(
            encoder,
            "rdma_retry_exceeded",
            "Works given up because the host does not answer",
            &of(|p| p.retry_exceeded.get()),
        )?;
        gauges(encoder, "rdma_credits", "Commands that the host may send now", &of(|p| p.credits.get()))
    }

    fn encode_backend(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let backend = &self.metrics.backend;
        let one = |value| [(Vec::new(), value)];
        counters(encoder, "backend_synced", "Snapshots that were stored on the backend", &one(backend.synced.get()))?;
        counters(encoder, "backend_failed", "Snapshots that the backend did not take", &one(backend.failed.get()))?;
        counters(encoder, "backend_sent_bytes", "Bytes sent for snapshots", &one(backend.sent_bytes.get()))?;
        counters(encoder, "backend_restored_bytes", "Bytes of volumes restored", &one(backend.restored_bytes.get()))?;
        counters(encoder, "backend_fetched_bytes", "Bytes fetched for clones", &one(backend.fetched_bytes.get()))?;
        counters(
            encoder,
            "backend_fetches_failed",
            "Fetches that came to nothing",
            &one(backend.fetches_failed.get()),
        )?;
        counters(
            encoder,
            "backend_deleted_objects",
            "Objects that collections deleted",
            &one(backend.deleted_objects.get()),
        )?;
        counters(
            encoder,
            "backend_rewritten_bytes",
            "Bytes copied out of packs of which little was needed",
            &one(backend.rewritten_bytes.get()),
        )?;
        gauges(encoder, "backend_running", "Snapshots on their way to the backend", &one(backend.running.get()))?;
        gauges(encoder, "backend_kept_bytes", "Bytes that the last collection left", &one(backend.kept_bytes.get()))?;
        gauges(
            encoder,
            "backend_collect_failed",
            "1 while the last collection failed: `ringway backend show` says why",
            &one(backend.collect_failed.get()),
        )
    }

    fn encode_pool(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let pool = &self.metrics.pool;
        let one = |value| [(Vec::new(), value)];
        gauges(encoder, "pool_size_bytes", "Bytes that volumes can use", &one(pool.size_bytes.get()))?;
        gauges(encoder, "pool_used_bytes", "Bytes in use by data and maps", &one(self.metrics.used_bytes()))?;
        gauges(
            encoder,
            "pool_threshold_percent",
            "Highest threshold (80, 90, 95) that use has reached, or 0",
            &one(pool.threshold_percent.get()),
        )?;
        gauges(
            encoder,
            "pool_dead_shards",
            "Shards that could not be opened; their volumes are faulted",
            &one(pool.dead_shards.get()),
        )?;
        gauges(
            encoder,
            "pool_faulted_volumes",
            "Volumes that answer no I/O because something of theirs is lost",
            &one(pool.faulted_volumes.get()),
        )?;
        gauges(
            encoder,
            "pool_read_only",
            "1 after a failed barrier or a lost device: no more writes until the pool is reopened",
            &one(pool.read_only.get()),
        )
    }
}

fn counters(encoder: &mut DescriptorEncoder, name: &str, help: &str, values: &[(Labels, u64)]) -> fmt::Result {
    let family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    each(family, values, |mut metric, value| metric.encode_counter::<Labels, _, u64>(&value, None))
}

fn gauges(encoder: &mut DescriptorEncoder, name: &str, help: &str, values: &[(Labels, u64)]) -> fmt::Result {
    let family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    each(family, values, |mut metric, value| metric.encode_gauge(&value))
}

fn each(
    mut family: MetricEncoder<'_>,
    values: &[(Labels, u64)],
    mut encode: impl FnMut(MetricEncoder<'_>, u64) -> fmt::Result,
) -> fmt::Result {
    // A family without labels would be written with empty braces.
    if let [(labels, value)] = values
        && labels.is_empty()
    {
        return encode(family, *value);
    }
    for (labels, value) in values {
        encode(family.encode_family(labels)?, *value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ringway_core::ids::VolumeId;
    use ringway_core::metrics::{ConnectionLabel, SnapshotStep};

    use super::*;

    fn metrics() -> Arc<Metrics> {
        let metrics = Metrics::new(1, 2);
        metrics.name_volume(VolumeId(1), "a/b");
        let volume = metrics.shards[1].volume(VolumeId(1));
        volume.begin(true);
        volume.begin(false);
        volume.finish(OperationKind::Read, 4096, 20_000, true);
        metrics.snapshots.step(SnapshotStep::Seal, 3_000_000);
        metrics.snapshots.made.add(1);
        metrics.pool.size_bytes.set(1 << 30);
        metrics.shards[0].allocated_bytes.set(65536);
        metrics.reactors[0].polls_empty.add(5);
        let label = ConnectionLabel {
            peer: "127.0.0.1:1".into(),
            reactor: 0,
            queue: 1,
            subsystem: "nqn.2026-11.io.ringway:a/b".into(),
        };
        let connection = metrics.connection(1, label, true);
        connection.commands.add(3);
        connection.fabric.as_ref().unwrap().posted[3].add(5);
        metrics
    }

    #[test]
    fn the_text_has_what_an_operator_asks_for() {
        let text = render(&metrics());
        for line in [
            r#"ringway_volume_operations_total{volume="a/b",operation="read"} 1"#,
            r#"ringway_shard_bytes_total{shard="1",operation="read"} 4096"#,
            r#"ringway_volume_in_flight{volume="a/b"} 1"#,
            r#"ringway_shard_hops_total{shard="1"} 1"#,
            r#"ringway_reactor_polls_empty_total{reactor="0"} 5"#,
            r#"ringway_connection_commands_total{peer="127.0.0.1:1",reactor="0",queue="1",subsystem="nqn.2026-11.io.ringway:a/b"} 3"#,
            r#"ringway_rdma_posted_total{peer="127.0.0.1:1",reactor="0",queue="1",subsystem="nqn.2026-11.io.ringway:a/b",work="write"} 5"#,
            r#"ringway_snapshot_calls_total{outcome="made"} 1"#,
            r#"ringway_snapshot_step_seconds_count{step="seal"} 1"#,
            r#"ringway_snapshot_step_seconds_count{step="sync"} 0"#,
            "ringway_snapshot_expiry_late_seconds_count 0",
            "ringway_pool_size_bytes 1073741824",
            "ringway_pool_used_bytes 65536",
            "# TYPE ringway_volume_latency_seconds histogram",
        ] {
            assert!(text.contains(line), "{line} is missing from:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn histogram_buckets_add_up_and_the_last_has_no_bound() {
        let text = render(&metrics());
        let buckets: Vec<&str> =
            text.lines().filter(|line| line.starts_with("ringway_volume_latency_seconds_bucket")).collect();
        assert_eq!(buckets.len(), LATENCY_BUCKETS / 4);
        // 20 us lie between the bounds 16.384 us and 32.768 us.
        let of = |bound: &str| buckets.iter().find(|line| line.contains(bound)).unwrap().ends_with(" 1");
        assert!(!of("le=\"0.000016384\"") && of("le=\"0.000032768\"") && of("le=\"+Inf\""), "{buckets:#?}");
    }

    #[test]
    fn every_metric_has_a_doc_line() {
        let text = render(&metrics());
        let named = |prefix: &str| {
            text.lines()
                .filter_map(|line| line.strip_prefix(prefix))
                .map(|rest| rest.split(' ').next().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        let types = named("# TYPE ");
        assert!(types.len() > 30, "{types:?}");
        assert_eq!(named("# HELP "), types);
    }
}
