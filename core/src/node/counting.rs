//! What the shards count, copied to where other threads read it.

use ringway_reactor::io::Instant;

use super::Node;
use crate::limits::CLUSTER;
use crate::shard::RecordLog;

/// How often: the thresholds of a filling pool and the metrics need no more.
const COUNT_NS: u64 = 100_000_000;

impl<L: RecordLog> Node<L> {
    /// Copies the counters now and then.
    pub(super) fn count(&mut self, now: Instant) {
        if !self.uncounted || now < self.next_count {
            return;
        }
        self.uncounted = false;
        self.next_count = now.plus_ns(COUNT_NS);
        for shard in self.shards.iter().flatten() {
            let (stats, metrics) = (shard.stats(), self.metrics.shard(shard.id()));
            metrics.allocated_bytes.set(stats.clusters_used * CLUSTER);
            for record in self.directory.volumes_of(shard.id()) {
                metrics.volume(record.id).allocated_bytes.set(shard.mapped_by(record.id) * CLUSTER);
            }
            metrics.journal_groups.add(stats.groups - metrics.journal_groups.get());
            metrics.checkpoints.add(stats.checkpoints - metrics.checkpoints.get());
            metrics.map_page_loads.add(stats.nodes_loaded - metrics.map_page_loads.get());
        }
    }
}
