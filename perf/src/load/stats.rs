//! Counting while a run goes on.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hdrhistogram::Histogram;
use ringway_core::host::{HostError, Outcome};

use super::config::LoadConfig;
use super::pattern::Step;
use super::report::{Latency, LoadReport, OperationReport, VerifyReport};
use crate::cpu;

const NAMES: [&str; 6] = ["read", "write", "write_fua", "trim", "zeroes", "flush"];
/// The longest latency told apart from longer ones: ten minutes.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

struct Kind {
    latency: Histogram<u64>,
    failed: u64,
}

/// What a run counts.
pub(super) struct Stats {
    kinds: Vec<Kind>,
    /// Operations that ended, failed ones included.
    pub(super) ended: u64,
    pub(super) verify: VerifyReport,
    pub(super) outages: u64,
    errors: BTreeMap<String, u64>,
    outage_max: Duration,
    reconnects: u64,
    resent: u64,
    unknown: u64,
    elapsed: Duration,
    client_cpu: Duration,
    target_cpu: Option<(u32, Duration)>,
    steal: Option<(u64, u64)>,
    client_cpu_ns: f64,
    target_cpu_ns: Option<f64>,
    steal_percent: Option<f64>,
}

fn index(step: Step) -> usize {
    match step {
        Step::Read => 0,
        Step::Write { fua: false } => 1,
        Step::Write { fua: true } => 2,
        Step::Trim => 3,
        Step::Zeroes => 4,
        Step::Flush => 5,
    }
}

impl Stats {
    pub(super) fn new() -> Self {
        let kind = || Kind {
            latency: Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are in order"),
            failed: 0,
        };
        Self {
            kinds: NAMES.iter().map(|_| kind()).collect(),
            ended: 0,
            verify: VerifyReport::default(),
            outages: 0,
            errors: BTreeMap::new(),
            outage_max: Duration::ZERO,
            reconnects: 0,
            resent: 0,
            unknown: 0,
            elapsed: Duration::ZERO,
            client_cpu: Duration::ZERO,
            target_cpu: None,
            steal: None,
            client_cpu_ns: 0.0,
            target_cpu_ns: None,
            steal_percent: None,
        }
    }

    pub(super) fn begin(&mut self, config: &LoadConfig) {
        self.client_cpu = cpu::of_thread();
        let pid = config.target_pid.load(Ordering::Relaxed);
        self.target_cpu = cpu::of_process(pid).map(|time| (pid, time));
        self.steal = cpu::steal();
    }

    pub(super) fn end(&mut self, elapsed: Duration, config: &LoadConfig) {
        self.elapsed = elapsed;
        let each = |time: Duration| time.as_nanos() as f64 / self.ended.max(1) as f64;
        let pid = config.target_pid.load(Ordering::Relaxed);
        self.target_cpu_ns = match (self.target_cpu, cpu::of_process(pid)) {
            (Some((before_pid, before)), Some(after)) if before_pid == pid => Some(each(after.saturating_sub(before))),
            _ => None,
        };
        self.client_cpu_ns = each(cpu::of_thread() - self.client_cpu);
        self.steal_percent = cpu::steal_percent(self.steal, cpu::steal());
    }

    pub(super) fn record(&mut self, step: Step, latency_ns: u64, outcome: Outcome) {
        self.ended += 1;
        let kind = &mut self.kinds[index(step)];
        if outcome.is_success() {
            kind.latency.saturating_record(latency_ns.max(1));
        } else {
            kind.failed += 1;
            self.unknown += u64::from(outcome == Outcome::Unknown);
            *self.errors.entry(describe(outcome)).or_default() += 1;
        }
    }

    pub(super) fn failed_sweep(&mut self, outcome: Outcome) {
        *self.errors.entry(format!("verifying read: {}", describe(outcome))).or_default() += 1;
    }

    pub(super) fn flushes(&self) -> u64 {
        self.kinds[index(Step::Flush)].latency.len()
    }

    pub(super) fn lost(&mut self, error: &HostError) {
        self.outages += u64::from(self.reconnects == self.outages);
        tracing::debug!("{error}");
    }

    pub(super) fn reconnected(&mut self, resent: u64, outage: Duration) {
        self.reconnects += 1;
        self.resent += resent;
        self.outage_max = self.outage_max.max(outage);
    }

    /// The report; `seed` repeats the same offsets.
    pub(super) fn report(self, config: &LoadConfig, seed: u64, swept: u64) -> LoadReport {
        let seconds = self.elapsed.as_secs_f64();
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let operations = self.kinds.iter().zip(NAMES).filter(|(kind, _)| kind.latency.len() + kind.failed > 0);
        let operations: Vec<_> = operations
            .map(|(kind, name)| {
                let count = kind.latency.len();
                let bytes = if name == "flush" { 0 } else { count * u64::from(config.block_bytes) };
                OperationReport {
                    operation: name.to_owned(),
                    operations: count,
                    failed: kind.failed,
                    iops: per_second(count),
                    mb_per_s: per_second(bytes) / 1e6,
                    latency: Latency::of(&kind.latency),
                }
            })
            .collect();
        let verify = VerifyReport { units_swept: swept, ..self.verify };
        LoadReport {
            target: config.target.to_string(),
            pattern: format!("{:?}", config.pattern).to_lowercase(),
            block_bytes: config.block_bytes,
            depth: config.depth,
            queues: config.queues,
            seed,
            elapsed: self.elapsed,
            iops: operations.iter().map(|operation| operation.iops).sum(),
            operations,
            errors: self.errors,
            client_cpu_ns: self.client_cpu_ns,
            target_cpu_ns: self.target_cpu_ns,
            reconnects: self.reconnects,
            outage_max: self.outage_max,
            resent: self.resent,
            unknown: self.unknown,
            steal_percent: self.steal_percent,
            verify: config.verify.enabled.then_some(verify),
        }
    }
}

fn describe(outcome: Outcome) -> String {
    match outcome {
        Outcome::Success => "success".into(),
        Outcome::Failed(status) => status.to_string(),
        Outcome::Unknown => "end unknown".into(),
        Outcome::Gone => "connection given up".into(),
    }
}
