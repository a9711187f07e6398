//! What the demo found out, as a table and as JSON.

use std::path::Path;
use std::time::Duration;

use ringway_perf::load::{LoadReport, RingReport};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::columns;
use crate::size::Size;

/// One load.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    operation: String,
    transport: &'static str,
    depth: u32,
    iops: f64,
    p50_us: f64,
    p99_us: f64,
    /// Target and load generator together are two cores; this is the target alone.
    target_cpu_us: Option<f64>,
    /// 4 KiB blocks read and found to be what was written there.
    verified: u64,
    /// Acknowledged writes that are not there.
    lost: u64,
    /// All faults: lost, torn, misdirected and the rest.
    faults: u64,
    errors: u64,
}

impl Row {
    pub(super) fn of(operation: &str, depth: u32, report: &LoadReport) -> Row {
        // A mix shows the operation that there is most of.
        let main = report.operations.iter().max_by_key(|operation| operation.operations);
        let verify = report.verify.clone().unwrap_or_default();
        Row {
            operation: operation.to_owned(),
            transport: "tcp",
            depth,
            iops: report.iops,
            p50_us: main.map_or(0.0, |operation| operation.latency.p50_us),
            p99_us: main.map_or(0.0, |operation| operation.latency.p99_us),
            target_cpu_us: report.target_cpu_ns.map(|ns| ns / 1000.0),
            verified: verify.units_checked,
            lost: verify.lost(),
            faults: verify.fault_count(),
            errors: report.errors.values().sum(),
        }
    }

    pub(super) fn of_ring(operation: &str, depth: u16, report: &RingReport) -> Row {
        Row {
            operation: operation.to_owned(),
            transport: "shm",
            depth: depth.into(),
            iops: report.iops,
            p50_us: report.p50_us,
            p99_us: report.p99_us,
            target_cpu_us: report.target_cpu_ns.map(|ns| ns / 1000.0),
            verified: report.verified,
            lost: 0,
            faults: report.faults,
            errors: report.errors,
        }
    }
}

/// The kill in the middle.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Restart {
    operations_before_kill: u64,
    /// From the start of the new process until it answered.
    ready_after_s: f64,
    /// As the host saw it.
    outage_s: f64,
    reconnects: u64,
    commands_resent: u64,
    blocks_read_back: u64,
}

impl Restart {
    pub(super) fn of(operations_before_kill: u64, ready_after: Duration, report: &LoadReport) -> Restart {
        Restart {
            operations_before_kill,
            ready_after_s: ready_after.as_secs_f64(),
            outage_s: report.outage_max.as_secs_f64(),
            reconnects: report.reconnects,
            commands_resent: report.resent,
            blocks_read_back: report.verify.as_ref().map_or(0, |verify| verify.units_swept),
        }
    }
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct DemoReport {
    pub(super) cores: Vec<usize>,
    pub(super) size: u64,
    pub(super) rows: Vec<Row>,
    pub(super) restart: Restart,
}

impl DemoReport {
    /// The table and what to do next.
    pub(super) fn text(&self, kept: Option<&Path>) -> String {
        let head = ["operation", "over", "depth", "IOPS", "p50 us", "p99 us", "CPU us/op", "verified", "lost"];
        let rows: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| {
                vec![
                    row.operation.clone(),
                    row.transport.to_owned(),
                    row.depth.to_string(),
                    format!("{:.0}", row.iops),
                    format!("{:.1}", row.p50_us),
                    format!("{:.1}", row.p99_us),
                    row.target_cpu_us.map_or("-".to_owned(), |us| format!("{us:.1}")),
                    row.verified.to_string(),
                    row.lost.to_string(),
                ]
            })
            .collect();
        let restart = &self.restart;
        let mut text = format!("\n{}", columns(&head, &rows));
        text += &format!(
            "\nKilled by SIGKILL in the middle of writes; ready again {:.2} s after its start. The host was back {:.2} s \
             after it noticed,\nand sent {} commands again. All {} blocks of the volume ({}) were read back and compared.\n",
            restart.ready_after_s,
            restart.outage_s,
            restart.commands_resent,
            restart.blocks_read_back,
            Size(self.size),
        );
        if let Some(dir) = kept {
            text += &format!(
                "\nKept in {}; serve it again:\n  ringway serve --pool {}\n",
                dir.display(),
                dir.join("pool").display()
            );
        }
        text += "\nServe a pool of your own and attach to it:\n  \
                 ringway serve &\n  \
                 ringway volume create vm1 1GiB\n  \
                 nvme connect -t tcp -a 127.0.0.1 -s 4420 -n nqn.2026-11.io.ringway:vm1     # as root, after modprobe nvme-tcp\n  \
                 ringway bench tcp://127.0.0.1:4420/vm1 --verify --mix read=70,write=30    # without root\n";
        text
    }

    /// The demo fails if a single block is not what it must be.
    pub(super) fn judge(&self) -> Result<(), Failure> {
        let faults: u64 = self.rows.iter().map(|row| row.faults).sum();
        let errors: u64 = self.rows.iter().map(|row| row.errors).sum();
        if faults > 0 {
            return Err(Failure::verification(format!("{faults} blocks are not what was written there")));
        }
        if errors > 0 {
            return Err(Failure::internal(format!("{errors} operations failed")));
        }
        if self.restart.reconnects == 0 || self.restart.blocks_read_back * 4096 < self.size {
            return Err(Failure::internal("the volume was not read back after the kill"));
        }
        Ok(())
    }
}
