//! Counters that cost a few nanoseconds to write and are summed by whoever reads them.
//!
//! Every [`Counter`] and [`Gauge`] has one writing thread: the reactor that owns the shard, the turn or the connection. An
//! addition is therefore a plain load and store (no locked instruction); a reader on another thread sees a recent value and
//! never a torn one. Locks are taken only where a volume or a connection comes or goes, and by the reader.

mod steps;

use std::array;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::steps::{SnapshotMetrics, SnapshotStep};
use crate::event::EventKind;
use crate::ids::{ShardId, VolumeId};
use crate::request::Command;
use crate::transport::nbd::wire::Kind;

/// A number that grows. One thread writes it.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only ever from the thread that owns this counter.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The value of a moment ago.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down. One thread writes it.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Replaces the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Adds `n`.
    pub fn rise(&self, n: u64) {
        self.set(self.get() + n);
    }

    /// Takes `n` away.
    ///
    /// # Panics
    /// If less than `n` was there: something ended twice.
    pub fn fall(&self, n: u64) {
        self.set(self.get().checked_sub(n).expect("what falls has risen before"));
    }

    /// The value of a moment ago.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Buckets of a [`Histogram`]: four a power of two from 256 ns to 8.6 s, so a quantile is at most a quarter too high.
pub const LATENCY_BUCKETS: usize = 96;

/// Where a latency is counted. Log-linear: exact below 1 us in steps of 256 ns, then four buckets a power of two.
#[must_use]
pub fn latency_bucket(ns: u64) -> usize {
    let v = ns >> 8;
    if v < 4 {
        return v as usize;
    }
    let exponent = v.ilog2() as usize;
    let quarter = (v >> (exponent - 2)) as usize & 3;
    ((exponent - 1) * 4 + quarter).min(LATENCY_BUCKETS - 1)
}

/// The nanoseconds that no latency of this bucket reaches (the last bucket has no such bound and takes all above).
#[must_use]
pub fn latency_bucket_end_ns(bucket: usize) -> u64 {
    if bucket < 4 {
        return (bucket as u64 + 1) << 8;
    }
    let exponent = bucket / 4 + 1;
    (4 + bucket as u64 % 4 + 1) << (exponent - 2 + 8)
}

/// Latencies of one kind of operation. One thread writes it.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; LATENCY_BUCKETS],
    sum_ns: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: array::from_fn(|_| Counter::default()), sum_ns: Counter::default() }
    }
}

impl Histogram {
    /// Counts one operation.
    pub fn record(&self, ns: u64) {
        self.buckets[latency_bucket(ns)].add(1);
        self.sum_ns.add(ns);
    }
}

/// What a reader makes of one or more [`Histogram`]s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatencyTotals {
    /// Operations in each bucket.
    pub buckets: [u64; LATENCY_BUCKETS],
    /// Nanoseconds of all operations.
    pub sum_ns: u64,
}

impl Default for LatencyTotals {
    fn default() -> Self {
        LatencyTotals { buckets: [0; LATENCY_BUCKETS], sum_ns: 0 }
    }
}

impl LatencyTotals {
    /// Adds what `histogram` holds now.
    pub fn add(&mut self, histogram: &Histogram) {
        for (total, bucket) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *total += bucket.get();
        }
        self.sum_ns = self.sum_ns.wrapping_add(histogram.sum_ns.get());
    }

    /// Adds another total.
    pub fn merge(&mut self, other: &LatencyTotals) {
        for (total, bucket) in self.buckets.iter_mut().zip(&other.buckets) {
            *total += bucket;
        }
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
    }

    /// Operations counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Nanoseconds that the fraction `quantile` of the operations stayed below; 0 where none was counted.
    #[must_use]
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        let rank = (self.count() as f64 * quantile).ceil() as u64;
        let mut below = 0;
        self.buckets
            .iter()
            .position(|&count| {
                below += count;
                below >= rank && below > 0
            })
            .map_or(0, latency_bucket_end_ns)
    }
}

/// Kinds of operation that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OperationKind {
    /// Reads.
    Read,
    /// Writes, FUA or not.
    Write,
    /// Flushes.
    Flush,
    /// Write zeroes and deallocate.
    Trim,
    /// Compare, and compare and write.
    Compare,
}

impl OperationKind {
    /// In the order of their counters.
    pub const ALL: [OperationKind; 5] =
        [OperationKind::Read, OperationKind::Write, OperationKind::Flush, OperationKind::Trim, OperationKind::Compare];

    /// As the metric's label says it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            OperationKind::Read => "read",
            OperationKind::Write => "write",
            OperationKind::Flush => "flush",
            OperationKind::Trim => "trim",
            OperationKind::Compare => "compare",
        }
    }
}

impl From<Command> for OperationKind {
    fn from(command: Command) -> Self {
        match command {
            Command::Read => OperationKind::Read,
            Command::Write { .. } => OperationKind::Write,
            Command::Flush => OperationKind::Flush,
            Command::WriteZeroes { .. } | Command::Deallocate => OperationKind::Trim,
            Command::Compare | Command::CompareAndWrite { .. } => OperationKind::Compare,
        }
    }
}

/// Counters of one kind of operation.
#[derive(Debug, Default)]
pub struct OperationMetrics {
    /// Time from the shard's receipt of a part of a request to its completion; its count is the number of operations.
    pub latency: Histogram,
    /// Bytes of completed operations.
    pub bytes: Counter,
    /// Operations that ended with another status than success.
    pub errors: Counter,
}

/// What one shard did for one volume. Written by the shard's reactor alone.
#[derive(Debug, Default)]
pub struct VolumeMetrics {
    operations: [OperationMetrics; OperationKind::ALL.len()],
    /// Operations now in flight.
    pub in_flight: Gauge,
    /// Operations that came from another reactor's transport by mailbox.
    pub hops: Counter,
    /// Bytes copied by the CPU between buffers; 0 on the direct path.
    pub bytes_copied: Counter,
    /// Bytes of clusters that the volume maps on the shard.
    pub allocated_bytes: Gauge,
}

impl VolumeMetrics {
    /// One operation has arrived; `hopped` if from another reactor.
    pub fn begin(&self, hopped: bool) {
        self.in_flight.rise(1);
        self.hops.add(u64::from(hopped));
    }

    /// One operation has ended.
    pub fn finish(&self, kind: OperationKind, bytes: u64, latency_ns: u64, success: bool) {
        self.in_flight.fall(1);
        let operation = &self.operations[kind as usize];
        operation.latency.record(latency_ns);
        if success {
            operation.bytes.add(bytes);
        } else {
            operation.errors.add(1);
        }
    }
}

/// The sum of one or more [`VolumeMetrics`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeTotals {
    /// By [`OperationKind::ALL`].
    pub operations: [OperationTotals; OperationKind::ALL.len()],
    /// Operations now in flight.
    pub in_flight: u64,
    /// Operations that crossed a mailbox.
    pub hops: u64,
    /// Bytes copied by the CPU.
    pub bytes_copied: u64,
    /// Bytes of clusters mapped.
    pub allocated_bytes: u64,
}

/// The sum of one or more [`OperationMetrics`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperationTotals {
    /// Latencies; their count is the number of operations.
    pub latency: LatencyTotals,
    /// Bytes of completed operations.
    pub bytes: u64,
    /// Operations that failed.
    pub errors: u64,
}

impl VolumeTotals {
    fn add(&mut self, metrics: &VolumeMetrics) {
        for (total, operation) in self.operations.iter_mut().zip(&metrics.operations) {
            total.latency.add(&operation.latency);
            total.bytes += operation.bytes.get();
            total.errors += operation.errors.get();
        }
        self.in_flight += metrics.in_flight.get();
        self.hops += metrics.hops.get();
        self.bytes_copied += metrics.bytes_copied.get();
        self.allocated_bytes += metrics.allocated_bytes.get();
    }

    fn merge(&mut self, other: &VolumeTotals) {
        for (total, operation) in self.operations.iter_mut().zip(&other.operations) {
            total.latency.merge(&operation.latency);
            total.bytes += operation.bytes;
            total.errors += operation.errors;
        }
        self.in_flight += other.in_flight;
        self.hops += other.hops;
        self.bytes_copied += other.bytes_copied;
        self.allocated_bytes += other.allocated_bytes;
    }
}

/// What one shard did. Written by its reactor alone.
#[derive(Debug, Default)]
pub struct ShardMetrics {
    volumes: Mutex<ShardVolumes>,
    /// Bytes of clusters in use by data and maps.
    pub allocated_bytes: Gauge,
    /// Journal groups written.
    pub journal_groups: Counter,
    /// Bytes of journal groups written.
    pub journal_bytes: Counter,
    /// Bytes of the journal that the next opening would replay.
    pub journal_used_bytes: Gauge,
    /// Checkpoints completed.
    pub checkpoints: Counter,
    /// Map pages read on demand.
    pub map_page_loads: Counter,
    /// Map nodes in memory.
    pub map_nodes: Gauge,
}

#[derive(Debug, Default)]
struct ShardVolumes {
    live: BTreeMap<VolumeId, Arc<VolumeMetrics>>,
    /// What removed volumes have counted: a shard's counters never go back.
    retired: VolumeTotals,
}

impl ShardMetrics {
    /// The counters of `volume` on this shard, made on first use. For the volume's table entry, not for every request.
    pub fn volume(&self, volume: VolumeId) -> Arc<VolumeMetrics> {
        Arc::clone(locked(&self.volumes).live.entry(volume).or_default())
    }

    /// The volume is gone; what it counted stays in the shard's totals.
    pub fn retire(&self, volume: VolumeId) {
        let mut volumes = locked(&self.volumes);
        if let Some(metrics) = volumes.live.remove(&volume) {
            volumes.retired.add(&metrics);
            volumes.retired.in_flight = 0;
            volumes.retired.allocated_bytes = 0;
        }
    }

    /// Bytes of clusters that `volume` maps on this shard, 0 where nothing is known of it.
    pub fn allocated_bytes(&self, volume: VolumeId) -> u64 {
        locked(&self.volumes).live.get(&volume).map_or(0, |metrics| metrics.allocated_bytes.get())
    }

    /// The sum over all volumes that this shard has ever served.
    pub fn totals(&self) -> VolumeTotals {
        let volumes = locked(&self.volumes);
        let mut totals = volumes.retired.clone();
        volumes.live.values().for_each(|metrics| totals.add(metrics));
        totals
    }
}

/// What one reactor did. Written by its thread alone.
#[derive(Debug, Default)]
pub struct ReactorMetrics {
    /// Turns that found nothing to do.
    pub polls_empty: Counter,
    /// Turns that found work.
    pub polls_busy: Counter,
    /// Times it slept in its ring.
    pub sleeps: Counter,
    /// Messages sent to other reactors.
    pub messages_sent: Counter,
    /// Messages that did not fit a mailbox at once and waited their turn.
    pub messages_delayed: Counter,
    /// Bytes that its transports copied between buffers.
    pub bytes_copied: Counter,
    /// Requests of virtual machines that were none.
    pub commands_malformed: Counter,
    /// Commands that had to wait for a buffer to go through.
    pub waits_for_buffer: Counter,
    /// Connections accepted, and queues in shared memory taken over.
    pub connections_accepted: Counter,
    /// Connections refused or ended because the peer broke the protocol.
    pub protocol_errors: Counter,
    /// What clients of network block devices have asked, by the place of its kind.
    pub nbd: [NbdCounters; Kind::NAMES.len()],
    /// Bytes of clients' memory that are registered with its ring.
    pub registered_bytes: Gauge,
    /// Buffers of its pool in use.
    pub buffers_in_use: Gauge,
    /// Device operations in flight.
    pub device_in_flight: Gauge,
}

/// What requests of one kind of network block devices came to, on one reactor.
#[derive(Debug, Default)]
pub struct NbdCounters {
    /// How many.
    pub requests: Counter,
    /// Those that were answered with an error.
    pub errors: Counter,
    /// Bytes that they ask for, but for those that are no requests.
    pub bytes: Counter,
}

/// What one connection did. Written by its reactor alone.
#[derive(Debug)]
pub struct ConnectionMetrics {
    /// Who and what, for the label.
    pub label: ConnectionLabel,
    /// Capsules received.
    pub commands: Counter,
    /// Bytes received; in shared memory those of data.
    pub bytes_received: Counter,
    /// Bytes sent.
    pub bytes_sent: Counter,
    /// Commands in flight.
    pub in_flight: Gauge,
    /// Of its queue pair, where it has one.
    pub fabric: Option<QueuePairMetrics>,
}

/// What one RDMA queue pair did. Written by its reactor alone.
#[derive(Debug, Default)]
pub struct QueuePairMetrics {
    /// Work requests given to the card: receives; sends; RDMA reads; RDMA writes.
    pub posted: [Counter; 4],
    /// Works that came back: done; failed, those that were flushed included.
    pub completed: [Counter; 2],
    /// Calls that gave the card one or more.
    pub doorbells: Counter,
    /// Work requests that had a completion of their own.
    pub signalled: Counter,
    /// RDMA reads that waited for others to end.
    pub reads_waited: Counter,
    /// Messages given up because the host posts no receives (RNR), and work because it does not answer.
    pub rnr_exceeded: Counter,
    pub retry_exceeded: Counter,
    /// Receives that lie ready: what the host may send.
    pub credits: Gauge,
}

/// Names one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionLabel {
    /// The peer's address, after `rdma:` if it comes so; `shm:PID` for a program, `vhost-user:SOCKET` for a virtual machine.
    pub peer: String,
    /// The reactor that polls it.
    pub reactor: u16,
    /// Its queue; 0 is the admin queue.
    pub queue: u16,
    /// The subsystem it is connected to.
    pub subsystem: String,
}

/// The pool as a whole. Written by the catalog's owner alone.
#[derive(Debug, Default)]
pub struct PoolMetrics {
    /// Bytes that volumes can use.
    pub size_bytes: Gauge,
    /// The highest threshold (80, 90, 95 percent) that use has reached, or 0.
    pub threshold_percent: Gauge,
    /// 1 after a failed barrier or a lost device: no more writes until the pool is reopened.
    pub read_only: Gauge,
    /// Volumes that answer no I/O.
    pub faulted_volumes: Gauge,
    /// Shards that could not be opened.
    pub dead_shards: Gauge,
}

/// Streams. Written by the catalog's owner alone.
#[derive(Debug, Default)]
pub struct StreamMetrics {
    /// Jobs that were started.
    pub started: Counter,
    /// Clones that need their parents no more.
    pub completed: Counter,
    /// Jobs that were given up for an error.
    pub failed: Counter,
    /// Jobs that somebody has ended, or that went with their volume.
    pub cancelled: Counter,
    /// Errors that were met, those that a job goes on after included.
    pub errors: Counter,
    /// Bytes that were copied, by increments too.
    pub copied_bytes: Counter,
    /// Jobs that run.
    pub running: Gauge,
    /// Jobs that wait for somebody to resume them.
    pub paused: Gauge,
}

impl StreamMetrics {
    /// Counts what was told of a job.
    pub fn count(&self, told: EventKind) {
        let counters: &[&Counter] = match told {
            EventKind::StreamStarted => &[&self.started],
            EventKind::StreamCompleted => &[&self.completed],
            EventKind::StreamFailed => &[&self.failed, &self.errors],
            EventKind::StreamCancelled => &[&self.cancelled],
            EventKind::StreamPaused | EventKind::StreamError => &[&self.errors],
            _ => &[],
        };
        counters.iter().for_each(|counter| counter.add(1));
    }
}

/// The backend. Written by its own thread alone.
#[derive(Debug, Default)]
pub struct BackendMetrics {
    /// Snapshots that were stored.
    pub synced: Counter,
    /// Snapshots that the backend did not take.
    pub failed: Counter,
    /// Bytes of objects that were sent for them.
    pub sent_bytes: Counter,
    /// Snapshots on their way.
    pub running: Gauge,
    /// Objects that collections deleted.
    pub deleted_objects: Counter,
    /// Bytes of blocks that were copied out of packs of which little was needed.
    pub rewritten_bytes: Counter,
    /// Bytes that the last collection left there.
    pub kept_bytes: Gauge,
    /// 1 while the last collection failed.
    pub collect_failed: Gauge,
    /// Bytes of volumes that were restored.
    pub restored_bytes: Counter,
    /// Bytes of blocks that were fetched for clones.
    pub fetched_bytes: Counter,
    /// Fetches that came to nothing.
    pub fetches_failed: Counter,
}

/// All counters of a node.
#[derive(Debug)]
pub struct Metrics {
    /// By reactor.
    pub reactors: Box<[ReactorMetrics]>,
    /// By shard.
    pub shards: Box<[ShardMetrics]>,
    /// The pool.
    pub pool: PoolMetrics,
    /// Snapshots that are being made.
    pub snapshots: SnapshotMetrics,
    /// Streams of clones.
    pub streams: StreamMetrics,
    /// The backend.
    pub backend: BackendMetrics,
    names: Mutex<BTreeMap<VolumeId, String>>,
    connections: Mutex<BTreeMap<u64, Arc<ConnectionMetrics>>>,
}

impl Metrics {
    /// Counters at zero.
    #[must_use]
    pub fn new(reactors: usize, shards: usize) -> Arc<Metrics> {
        Arc::new(Metrics {
            reactors: (0..reactors).map(|_| ReactorMetrics::default()).collect(),
            shards: (0..shards).map(|_| ShardMetrics::default()).collect(),
            pool: PoolMetrics::default(),
            snapshots: SnapshotMetrics::default(),
            streams: StreamMetrics::default(),
            backend: BackendMetrics::default(),
            names: Mutex::default(),
            connections: Mutex::default(),
        })
    }

    /// The counters of one shard.
    pub fn shard(&self, shard: ShardId) -> &ShardMetrics {
        &self.shards[usize::from(shard.0)]
    }

    /// A volume has come, or has another name.
    pub fn name_volume(&self, volume: VolumeId, name: &str) {
        locked(&self.names).insert(volume, name.to_owned());
    }

    /// A volume is gone.
    pub fn forget_volume(&self, volume: VolumeId) {
        locked(&self.names).remove(&volume);
        self.shards.iter().for_each(|shard| shard.retire(volume));
    }

    /// A connection has come; `number` is its own for the life of the process. With an RDMA queue pair, or without.
    pub fn connection(&self, number: u64, label: ConnectionLabel, queue_pair: bool) -> Arc<ConnectionMetrics> {
        let metrics = Arc::new(ConnectionMetrics {
            fabric: queue_pair.then(QueuePairMetrics::default),
            label,
            commands: Counter::default(),
            bytes_received: Counter::default(),
            bytes_sent: Counter::default(),
            in_flight: Gauge::default(),
        });
        let before = locked(&self.connections).insert(number, Arc::clone(&metrics));
        assert!(before.is_none(), "connection {number} is new");
        metrics
    }

    /// A connection is gone.
    pub fn forget_connection(&self, number: u64) {
        locked(&self.connections).remove(&number);
    }

    /// Connections now.
    pub fn connections(&self) -> Vec<Arc<ConnectionMetrics>> {
        locked(&self.connections).values().cloned().collect()
    }

    /// Name and sum over the shards of every volume.
    pub fn volumes(&self) -> Vec<(String, VolumeTotals)> {
        let names = locked(&self.names).clone();
        let mut totals: BTreeMap<VolumeId, VolumeTotals> = BTreeMap::new();
        for shard in &self.shards {
            for (&volume, metrics) in &locked(&shard.volumes).live {
                totals.entry(volume).or_default().add(metrics);
            }
        }
        names.into_iter().map(|(volume, name)| (name, totals.remove(&volume).unwrap_or_default())).collect()
    }

    /// The sum over the shards of one volume.
    pub fn volume_totals(&self, volume: VolumeId) -> VolumeTotals {
        let mut totals = VolumeTotals::default();
        for shard in &self.shards {
            if let Some(metrics) = locked(&shard.volumes).live.get(&volume) {
                totals.add(metrics);
            }
        }
        totals
    }

    /// Bytes of the pool in use.
    pub fn used_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.allocated_bytes.get()).sum()
    }

    /// The sum over all shards.
    pub fn totals(&self) -> VolumeTotals {
        let mut totals = VolumeTotals::default();
        self.shards.iter().for_each(|shard| totals.merge(&shard.totals()));
        totals
    }
}

/// Counters stay readable when a thread has panicked: they are whole at every moment.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_latency_lies_in_the_bucket_that_counts_it(ns in 0_u64..8_500_000_000) {
            let bucket = latency_bucket(ns);
            prop_assert!(ns < latency_bucket_end_ns(bucket));
            prop_assert!(bucket == 0 || ns >= latency_bucket_end_ns(bucket - 1));
        }
    }

    #[test]
    fn the_buckets_end_four_to_a_power_of_two_and_the_last_takes_the_rest() {
        assert_eq!((0..6).map(latency_bucket_end_ns).collect::<Vec<_>>(), [256, 512, 768, 1024, 1280, 1536]);
        assert_eq!(latency_bucket(u64::MAX), LATENCY_BUCKETS - 1);
        assert_eq!(latency_bucket_end_ns(LATENCY_BUCKETS - 1), 1 << 33);
    }

    #[test]
    fn quantiles_are_at_most_a_quarter_too_high() {
        let histogram = Histogram::default();
        (1..=1000).for_each(|us| histogram.record(us * 1000));
        let mut totals = LatencyTotals::default();
        totals.add(&histogram);
        assert_eq!(totals.count(), 1000);
        for (quantile, exact) in [(0.5, 500_000), (0.99, 990_000)] {
            let found = totals.quantile_ns(quantile);
            assert!(found >= exact && found <= exact / 4 * 5, "{quantile}: {found} for {exact}");
        }
        assert_eq!(LatencyTotals::default().quantile_ns(0.99), 0);
    }

    #[test]
    fn a_volume_is_summed_over_its_shards_and_a_shard_keeps_what_a_removed_volume_counted() {
        let metrics = Metrics::new(1, 2);
        metrics.name_volume(VolumeId(7), "vm1");
        for shard in &metrics.shards {
            let volume = shard.volume(VolumeId(7));
            volume.begin(true);
            volume.begin(false);
            volume.finish(OperationKind::Write, 4096, 10_000, true);
        }
        let (name, totals) = metrics.volumes().pop().unwrap();
        assert_eq!((name.as_str(), totals.in_flight, totals.hops), ("vm1", 2, 2));
        assert_eq!(totals.operations[OperationKind::Write as usize].bytes, 8192);

        metrics.forget_volume(VolumeId(7));
        assert!(metrics.volumes().is_empty());
        let shard = metrics.shard(ShardId(1)).totals();
        assert_eq!(shard.operations[OperationKind::Write as usize].latency.count(), 1);
        assert_eq!(shard.in_flight, 0);
    }

    #[test]
    fn a_failed_operation_is_an_error_and_moves_no_bytes() {
        let shard = ShardMetrics::default();
        let volume = shard.volume(VolumeId(1));
        volume.begin(false);
        volume.finish(Command::Deallocate.into(), 65536, 5, false);
        let trim = &shard.totals().operations[OperationKind::Trim as usize];
        assert_eq!((trim.errors, trim.bytes, trim.latency.count()), (1, 0, 1));
    }

    #[test]
    #[should_panic(expected = "what falls has risen before")]
    fn an_operation_that_ends_twice_is_a_bug() {
        Gauge::default().fall(1);
    }

    #[test]
    fn connections_come_and_go() {
        let metrics = Metrics::new(1, 1);
        let label = ConnectionLabel {
            peer: "127.0.0.1:5".into(),
            reactor: 0,
            queue: 1,
            subsystem: "nqn.2026-11.io.ringway:vm1".into(),
        };
        let connection = metrics.connection(3, label, false);
        connection.commands.add(2);
        assert_eq!(metrics.connections()[0].commands.get(), 2);
        metrics.forget_connection(3);
        assert!(metrics.connections().is_empty());
    }
}
