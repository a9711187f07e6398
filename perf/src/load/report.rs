//! What a load run found out.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::oracle::{Fault, FaultKind};

/// Faults shown one by one.
const EXAMPLES_MAX: usize = 20;

/// Latency of one kind of operation, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub mean_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

impl Latency {
    /// From a histogram of nanoseconds.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            mean_us: histogram.mean() / 1000.0,
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max() as f64 / 1000.0,
        }
    }
}

/// One kind of operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperationReport {
    /// `read`, `write`, `write_fua`, `trim`, `zeroes`, `flush`.
    pub operation: String,
    /// Ended with success.
    pub operations: u64,
    /// Ended otherwise.
    pub failed: u64,
    /// A second, over the time of the load.
    pub iops: f64,
    /// Megabytes (10^6) a second.
    pub mb_per_s: f64,
    /// From submission to completion, outages included.
    pub latency: Latency,
}

/// What verification found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Units read and judged, during the load and in the sweep.
    pub units_checked: u64,
    /// Of these, in the sweep.
    pub units_swept: u64,
    /// How many units were at fault, by kind.
    pub faults: BTreeMap<String, u64>,
    /// The first of them.
    pub examples: Vec<Fault>,
}

impl VerifyReport {
    /// Adds one.
    pub fn add(&mut self, fault: Fault) {
        *self.faults.entry(kind_name(fault.kind).to_owned()).or_default() += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(fault);
        }
    }

    /// Units at fault.
    #[must_use]
    pub fn fault_count(&self) -> u64 {
        self.faults.values().sum()
    }

    /// Units whose acknowledged or flushed data is not there.
    #[must_use]
    pub fn lost(&self) -> u64 {
        [FaultKind::Lost, FaultKind::Stale].iter().filter_map(|&kind| self.faults.get(kind_name(kind))).sum()
    }
}

/// How a fault is called in reports.
#[must_use]
pub(crate) fn kind_name(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::Lost => "lost",
        FaultKind::Stale => "stale",
        FaultKind::Torn => "torn",
        FaultKind::Misdirected => "misdirected",
        FaultKind::Unasked => "unasked",
        FaultKind::Garbage => "garbage",
    }
}

/// The outcome of [`super::run()`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// As spelled.
    pub target: String,
    pub pattern: String,
    pub block_bytes: u32,
    pub depth: u32,
    pub queues: u16,
    /// To repeat the same offsets.
    pub seed: u64,
    /// The load, without connecting, the last flush and the sweep.
    pub elapsed: Duration,
    /// One for each kind that occurred.
    pub operations: Vec<OperationReport>,
    /// All kinds.
    pub iops: f64,
    /// How operations failed, by status.
    pub errors: BTreeMap<String, u64>,
    /// CPU time of this process an operation, nanoseconds. A polling generator takes a whole core.
    pub client_cpu_ns: f64,
    /// CPU time of the target an operation, nanoseconds, where its process is known and stayed the same.
    pub target_cpu_ns: Option<f64>,
    /// Connections that broke and came back.
    pub reconnects: u64,
    /// The longest time without a connection.
    pub outage_max: Duration,
    /// Commands sent again.
    pub resent: u64,
    /// Commands whose end is unknown.
    pub unknown: u64,
    /// Percent of CPU time that went to other tenants of the machine.
    pub steal_percent: Option<f64>,
    /// `None` without verification.
    pub verify: Option<VerifyReport>,
}

impl LoadReport {
    /// Operations that ended with success.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.operations.iter().map(|operation| operation.operations).sum()
    }

    /// Nothing failed and no unit is at fault.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.errors.is_empty() && self.verify.as_ref().is_none_or(|verify| verify.fault_count() == 0)
    }
}
