//! `ringway bench`: the load generator of `perf`, with its settings read off the command line.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ringway_client::{runtime_folder, shm_socket};
use ringway_core::control::ControlErrorKind;
use ringway_core::host::{Target, Transport};
use ringway_perf::load::{self, Bar, Limit, LoadConfig, LoadError, LoadReport, Mix, Pattern, Promise, Verify};
use ringway_reactor::pin::check_cores;

use crate::attached::host_failure;
use crate::failure::Failure;
use crate::output::{Format, columns};
use crate::size::Size;

/// What to load, how, and what to check.
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// The volume, tcp://HOST:PORT/VOLUME, rdma://HOST:PORT/VOLUME or shm:VOLUME; a snapshot, VOLUME@SNAPSHOT, is only read
    #[arg(value_parser = |text: &str| Target::parse(text))]
    pub(crate) target: Target,
    /// Reach it over this instead of what its spelling says
    #[arg(long, value_enum, value_name = "TRANSPORT")]
    pub(crate) transport: Option<Over>,
    /// Runtime folder of the target, for shm: [default: as for every command]
    #[arg(long, value_name = "DIR")]
    pub(crate) runtime: Option<PathBuf>,
    /// Operations and their weights: read, write, fua, trim, zeroes, flush
    #[arg(long, default_value = "read")]
    pub(crate) mix: Mix,
    /// Order of offsets: seq, rand, zipf or zipf:EXPONENT
    #[arg(long, default_value = "rand")]
    pub(crate) pattern: Pattern,
    /// Bytes of one operation
    #[arg(long, value_name = "SIZE", default_value = "4096")]
    pub(crate) block: Size,
    /// Operations in flight
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) depth: u32,
    /// I/O queues, a connection each
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) queues: u16,
    /// For how long to load; 0 only verifies
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub(crate) time: Duration,
    /// Stop after so many operations instead
    #[arg(long, value_name = "N", conflicts_with = "time")]
    pub(crate) operations: Option<u64>,
    /// Operations a second at most
    #[arg(long, value_name = "N")]
    pub(crate) rate: Option<u64>,
    /// First byte of the region that is loaded
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub(crate) region_start: Size,
    /// Bytes of the region [default: up to the volume's end]
    #[arg(long, value_name = "SIZE")]
    pub(crate) region: Option<Size>,
    /// Repeat the offsets of the run with this seed
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Stamp every block that is written and check every block that is read
    #[arg(long)]
    pub(crate) verify: bool,
    /// Keep what was promised in this file, so that it outlives a kill of this program
    #[arg(long, value_name = "FILE", requires = "verify")]
    pub(crate) oracle: Option<PathBuf>,
    /// Go on from the promises of an earlier run
    #[arg(long, requires = "oracle")]
    pub(crate) resume: bool,
    /// The region has never been written: anything but zeros is a fault
    #[arg(long, requires = "verify")]
    pub(crate) fresh: bool,
    /// Read the whole region afterwards and hold it to this promise
    #[arg(long, value_enum, value_name = "PROMISE", requires = "verify")]
    pub(crate) sweep: Option<Sweep>,
    /// Spin instead of sleeping: lower latency, a whole core
    #[arg(long)]
    pub(crate) poll: bool,
    /// Run on this core
    #[arg(long, value_name = "N")]
    pub(crate) core: Option<usize>,
    /// Header digests on the wire
    #[arg(long)]
    pub(crate) header_digest: bool,
    /// Data digests on the wire
    #[arg(long)]
    pub(crate) data_digest: bool,
    /// Attach as this host [default: a new one]
    #[arg(long, value_name = "NQN")]
    pub(crate) host_nqn: Option<String>,
    /// The target's process, for its CPU time
    #[arg(long, value_name = "PID")]
    pub(crate) target_pid: Option<u32>,
    /// For how long to try to reconnect before giving up
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub(crate) reconnect: Duration,
    /// After how long without an answer a connection is made anew
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

/// Over what a volume is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Over {
    /// NVMe/TCP
    Tcp,
    /// NVMe/RDMA
    Rdma,
}

impl Over {
    /// The same volume at the same place, over this.
    fn instead(self, target: Target) -> Target {
        let transport = match (self, target.transport) {
            (Over::Tcp, Transport::Rdma { host, port }) => Transport::Tcp { host, port },
            (Over::Rdma, Transport::Tcp { host, port }) => Transport::Rdma { host, port },
            (_, transport) => transport,
        };
        Target { transport, ..target }
    }
}

/// What a sweep holds the volume to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sweep {
    /// Everything acknowledged is there: the machine lived on
    Acknowledged,
    /// Everything covered by a flush is there: the machine lost power
    Flushed,
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| format!("{text:?} is not a time; write seconds, such as 10 or 0.5"))
}

impl BenchArgs {
    /// As the load generator takes it, checked.
    fn config(self) -> Result<LoadConfig, Failure> {
        let block_bytes = u32::try_from(self.block.0)
            .map_err(|_| Failure::usage(format!("block size {} is over the largest request", self.block)))?;
        if let Some(core) = self.core {
            check_cores(&[core]).map_err(|error| Failure::new(ControlErrorKind::Denied, error.to_string()))?;
        }
        let limit = match (self.operations, self.time) {
            (Some(operations), _) => Some(Limit::Operations(operations)),
            (None, Duration::ZERO) => None,
            (None, time) => Some(Limit::Time(time)),
        };
        let sweep = self.sweep.map(|sweep| match sweep {
            Sweep::Acknowledged => Promise::Acknowledged,
            Sweep::Flushed => Promise::Flushed,
        });
        let verify =
            Verify { enabled: self.verify, oracle: self.oracle, resume: self.resume, fresh: self.fresh, sweep };
        let config = LoadConfig {
            pattern: self.pattern,
            mix: self.mix,
            block_bytes,
            depth: self.depth,
            queues: self.queues,
            limit,
            rate: self.rate,
            region_start: self.region_start.0,
            region_bytes: self.region.map(|size| size.0),
            seed: self.seed,
            verify,
            polling: self.poll,
            core: self.core,
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            host_nqn: self.host_nqn,
            shm_socket: Some(shm_socket(&runtime_folder(self.runtime.as_deref()))),
            target_pid: Arc::new(AtomicU32::new(self.target_pid.unwrap_or(0))),
            reconnect_for: self.reconnect,
            command_timeout: self.timeout,
            ..LoadConfig::new(match self.transport {
                Some(over) => over.instead(self.target),
                None => self.target,
            })
        };
        config.check().map_err(Failure::usage)?;
        Ok(config)
    }
}

pub(crate) fn run(args: BenchArgs, format: Format) -> Result<(), Failure> {
    let config = args.config()?;
    let report = match format {
        Format::Json => load::run(&config, &mut load::Silent),
        Format::Text => load::run(&config, &mut Bar::default()),
    };
    let report = report.map_err(|error| load_failure(&error))?;
    format.print(&report, show);
    judge(&report)
}

/// A run that could not be made.
pub(crate) fn load_failure(error: &LoadError) -> Failure {
    let kind = match error {
        LoadError::Config(_) => ControlErrorKind::Invalid,
        LoadError::Host(host) => return host_failure(host),
        _ => ControlErrorKind::Internal,
    };
    Failure::new(kind, error.to_string())
}

/// Whether a finished run is a success.
pub(crate) fn judge(report: &LoadReport) -> Result<(), Failure> {
    if let Some(verify) = &report.verify
        && verify.fault_count() > 0
    {
        let kinds: Vec<String> = verify.faults.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let first = verify
            .examples
            .first()
            .map_or_else(String::new, |fault| format!("; the first at byte {}: {}", fault.offset, fault.detail));
        return Err(Failure::verification(format!("verification failed: {}{first}", kinds.join(", "))));
    }
    if !report.errors.is_empty() {
        let errors: Vec<String> = report.errors.iter().map(|(status, count)| format!("{count} x {status}")).collect();
        return Err(Failure::internal(format!("operations failed: {}", errors.join(", "))));
    }
    Ok(())
}

fn show(report: &LoadReport) -> String {
    let head =
        ["operation", "depth", "operations", "IOPS", "MB/s", "mean us", "p50 us", "p99 us", "p99.9 us", "max us"];
    let rows: Vec<Vec<String>> = report
        .operations
        .iter()
        .map(|operation| {
            let latency = &operation.latency;
            vec![
                operation.operation.clone(),
                report.depth.to_string(),
                operation.operations.to_string(),
                format!("{:.0}", operation.iops),
                format!("{:.1}", operation.mb_per_s),
                format!("{:.1}", latency.mean_us),
                format!("{:.1}", latency.p50_us),
                format!("{:.1}", latency.p99_us),
                format!("{:.1}", latency.p999_us),
                format!("{:.1}", latency.max_us),
            ]
        })
        .collect();
    let mut text = columns(&head, &rows);
    let cpu = report.target_cpu_ns.map_or_else(String::new, |ns| format!(", target {:.2} us", ns / 1000.0));
    text += &format!("CPU time an operation: client {:.2} us{cpu}\n", report.client_cpu_ns / 1000.0);
    if report.reconnects > 0 {
        text += &format!(
            "reconnected {} times, longest outage {:.2} s, {} commands sent again\n",
            report.reconnects,
            report.outage_max.as_secs_f64(),
            report.resent
        );
    }
    if let Some(verify) = &report.verify {
        text += &format!("{} blocks verified, {} at fault\n", verify.units_checked, verify.fault_count());
    }
    text + &format!("seed {}\n", report.seed)
}
