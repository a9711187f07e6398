//! `ringway demo`: the whole of it in half a minute, on files, without root.
//!
//! Formats a pool, starts the target as a child process on pinned cores, makes a volume, loads it through a real socket with
//! every block verified, kills the target with SIGKILL in the middle of a write load, starts it again, and reads every
//! block back.

mod child;
mod report;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use clap::Args;
use ringway_core::control::VolumeCreate;
use ringway_core::host::Target as TargetName;
use ringway_perf::load::{self, Limit, LoadConfig, LoadReport, Mix, Promise, RingReads, Snapshot, Stage, Verify};
use ringway_reactor::pin::{CoreList, allowed_cores, check_cores, parse_core_list};

use self::child::{Target, TargetCommand, this_binary};
use self::report::{DemoReport, Restart, Row};
use crate::bench::load_failure;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::Format;
use crate::size::Size;

/// The demo's volume.
const VOLUME: &str = "demo";
/// Reactors that the demo takes at most.
const REACTORS_MAX: usize = 4;

/// `ringway demo`.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// Work below this folder [default: a temporary one, not in memory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Leave the pool and the log
    #[arg(long)]
    keep: bool,
    /// Seconds of each load
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Size of the volume
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    size: Size,
    /// Cores of the target [default: half of the allowed ones, at most 4]
    #[arg(long, value_name = "LIST")]
    cores: Option<String>,
}

/// Which core does what.
struct Cores {
    allowed: Vec<usize>,
    target: Vec<usize>,
    load: Option<usize>,
}

pub(crate) fn run(args: &DemoArgs, format: Format) -> Result<(), Failure> {
    if args.size.0 < 16 << 20 || !args.size.0.is_multiple_of(4096) {
        return Err(Failure::usage(format!(
            "a demo volume has 16 MiB or more in whole 4096-byte blocks, not {}",
            args.size
        )));
    }
    let cores = choose_cores(args.cores.as_deref())?;
    let interrupted = watch_for_interrupt()?;
    let place = Place::make(args)?;
    let say = |what: &str| {
        if format == Format::Text {
            eprintln!("{what}");
        }
    };
    let mut demo =
        Demo { seconds: args.seconds, size: args.size.0, cores, place, interrupted, say: &say, rows: Vec::new() };
    let outcome = demo.perform();
    let kept = demo.place.finish(args.keep);
    let report = outcome?;
    format.print(&report, |report| report.text(kept.as_deref()));
    report.judge()
}

fn choose_cores(list: Option<&str>) -> Result<Cores, Failure> {
    let denied = |error: &dyn std::fmt::Display| {
        Failure::new(ringway_core::control::ControlErrorKind::Denied, error.to_string())
    };
    let allowed = allowed_cores().map_err(|error| denied(&error))?;
    let target = match list {
        Some(list) => {
            let cores = parse_core_list(list).map_err(|error| Failure::usage(error.to_string()))?;
            check_cores(&cores).map_err(|error| denied(&error))?;
            cores
        }
        None => allowed[..(allowed.len() / 2).clamp(1, REACTORS_MAX)].to_vec(),
    };
    let load = allowed.iter().copied().rev().find(|core| !target.contains(core));
    Ok(Cores { allowed, target, load })
}

/// Set when the user presses Ctrl-C: the demo then stops early and still cleans up.
fn watch_for_interrupt() -> Result<Arc<AtomicBool>, Failure> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&flag);
    let failed = |error: std::io::Error| Failure::internal(format!("cannot watch for signals: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    std::thread::spawn(move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            seen.store(true, Ordering::Relaxed);
        }
    });
    Ok(flag)
}

/// Where the demo works.
struct Place {
    dir: PathBuf,
    /// Removed at the end unless asked to be kept.
    temporary: Option<tempfile::TempDir>,
}

impl Place {
    fn make(args: &DemoArgs) -> Result<Place, Failure> {
        let base = match &args.dir {
            Some(dir) => {
                std::fs::create_dir_all(dir).map_err(|error| Failure::io("make", dir, &error))?;
                dir.clone()
            }
            None => disk_folder(),
        };
        let temporary = tempfile::Builder::new()
            .prefix("ringway-demo-")
            .tempdir_in(&base)
            .map_err(|error| Failure::io("make a folder in", &base, &error))?;
        Ok(Place { dir: temporary.path().to_owned(), temporary: Some(temporary) })
    }

    fn finish(&mut self, keep: bool) -> Option<PathBuf> {
        let temporary = self.temporary.take()?;
        keep.then(|| temporary.keep())
    }
}

/// The temporary folder, unless that is memory: then what the demo shows would not be about a disk.
fn disk_folder() -> PathBuf {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    let temporary = std::env::temp_dir();
    match rustix::fs::statfs(&temporary) {
        Ok(found) if found.f_type as u64 == TMPFS_MAGIC => PathBuf::from("."),
        _ => temporary,
    }
}

struct Demo<'a> {
    seconds: u64,
    size: u64,
    cores: Cores,
    place: Place,
    interrupted: Arc<AtomicBool>,
    say: &'a dyn Fn(&str),
    rows: Vec<Row>,
}

impl Demo<'_> {
    fn perform(&mut self) -> Result<DemoReport, Failure> {
        let mut command = TargetCommand {
            pool: self.place.dir.join("pool"),
            runtime: self.place.dir.join("run"),
            cores: CoreList(self.cores.target.clone()).to_string(),
            log: self.place.dir.join("target.log"),
            listen: "tcp://127.0.0.1:0".into(),
            allowed: self.cores.allowed.clone(),
        };
        // Room for the volume, what a crash leaves in quarantine, and maps.
        let pool_bytes = self.size * 2 + (512 << 20);
        (self.say)(&format!("formatting a pool of {} in {}", Size(pool_bytes), command.pool.display()));
        format_pool(&command.pool, pool_bytes)?;
        let target = Target::start(&command)?;
        (self.say)(&format!("target on cores {}, ready after {:.2} s", command.cores, target.took.as_secs_f64()));
        // After a restart the same address, since hosts come back to it.
        command.listen.clone_from(&target.ready.listeners[0]);
        Client::new(target.ready.control.clone()).volume_create(&VolumeCreate {
            name: VOLUME.into(),
            size: self.size,
            lba_bytes: 4096,
            shards: None,
            exclusive: false,
            allowed_hosts: Vec::new(),
        })?;
        let name = TargetName::parse(&format!("{}/{VOLUME}", command.listen))
            .map_err(|error| Failure::internal(error.to_string()))?;
        let pid = Arc::new(AtomicU32::new(target.pid()));
        self.loads(&name, &pid)?;
        let (target, restart) = self.kill_and_verify(&name, &pid, &command, target)?;
        let status = target.stop()?;
        if !status.success() {
            return Err(Failure::internal(format!("the target did not stop as it should: {status}")));
        }
        Ok(DemoReport {
            cores: self.cores.target.clone(),
            size: self.size,
            rows: std::mem::take(&mut self.rows),
            restart,
        })
    }

    fn config(&self, name: &TargetName, pid: &Arc<AtomicU32>) -> LoadConfig {
        LoadConfig {
            core: self.cores.load,
            target_pid: Arc::clone(pid),
            limit: Some(Limit::Time(Duration::from_secs(self.seconds))),
            seed: None,
            verify: Verify {
                enabled: true,
                oracle: Some(self.place.dir.join("oracle")),
                resume: true,
                fresh: false,
                sweep: None,
            },
            ..LoadConfig::new(name.clone())
        }
    }

    /// First the whole volume is written, so that what follows overwrites in place.
    fn loads(&mut self, name: &TargetName, pid: &Arc<AtomicU32>) -> Result<(), Failure> {
        let mut fill = self.config(name, pid);
        fill.pattern = load::Pattern::Sequential;
        fill.mix = Mix::WRITE;
        fill.block_bytes = 256 << 10;
        fill.limit = Some(Limit::Operations(self.size.div_ceil(256 << 10)));
        (fill.verify.resume, fill.verify.fresh) = (false, true);
        self.load("fill 256K", &fill)?;
        let kinds = [("randread 4K", Mix::READ, [1, 32, 128].as_slice()), ("randwrite 4K", Mix::WRITE, &[1, 32, 128])];
        for (operation, mix, depths) in kinds {
            for &depth in depths {
                let config = LoadConfig { mix, depth, ..self.config(name, pid) };
                self.load(operation, &config)?;
                if mix == Mix::READ {
                    self.read_by_ring(operation, depth as u16, pid)?;
                }
            }
        }
        Ok(())
    }

    fn load(&mut self, operation: &str, config: &LoadConfig) -> Result<(), Failure> {
        (self.say)(&format!("{operation}, depth {}", config.depth));
        let interrupted = Arc::clone(&self.interrupted);
        let report = load::run(config, &mut move |_: &Snapshot| stop_if(&interrupted)).map_err(|e| load_failure(&e))?;
        self.record(operation, config, &report)
    }

    /// The same reads over shared memory, each block checked too.
    fn read_by_ring(&mut self, operation: &str, depth: u16, pid: &AtomicU32) -> Result<(), Failure> {
        (self.say)(&format!("{operation}, depth {depth}, over shared memory"));
        let reads = RingReads {
            socket: &self.place.dir.join("run/shm.sock"),
            volume: VOLUME,
            depth,
            time: Duration::from_secs(self.seconds),
            core: self.cores.load,
            target_pid: pid.load(Ordering::Relaxed),
        };
        let report = load::ring_reads(&reads, || stop_if(&self.interrupted)).map_err(|error| load_failure(&error))?;
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Failure::internal("interrupted"));
        }
        self.rows.push(Row::of_ring(operation, depth, &report));
        Ok(())
    }

    fn record(&mut self, operation: &str, config: &LoadConfig, report: &LoadReport) -> Result<(), Failure> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Failure::internal("interrupted"));
        }
        self.rows.push(Row::of(operation, config.depth, report));
        Ok(())
    }

    /// Kills the target under writes and flushes, starts it again, and reads every block back.
    fn kill_and_verify(
        &mut self,
        name: &TargetName,
        pid: &Arc<AtomicU32>,
        command: &TargetCommand,
        target: Target,
    ) -> Result<(Target, Restart), Failure> {
        let mut config = self.config(name, pid);
        config.mix = Mix { write: 99, flush: 1, ..Mix::default() };
        // The load ends itself when the target has been killed and is back.
        config.limit = Some(Limit::Time(Duration::from_secs(self.seconds + 120)));
        config.verify.sweep = Some(Promise::Acknowledged);
        let kill_after = Duration::from_secs(self.seconds);
        let mut running = Some(target);
        let mut restarted = None;
        let mut cycle = |snapshot: &Snapshot| {
            let due = snapshot.stage == Stage::Loading && snapshot.elapsed >= kill_after && snapshot.flushes > 0;
            if due && let Some(target) = running.take() {
                let (operations, flushes) = (snapshot.operations, snapshot.flushes);
                (self.say)(&format!("SIGKILL after {operations} operations and {flushes} flushes"));
                restarted = Some((operations, target.kill().and_then(|()| Target::start(command))));
                if let Some((_, Ok(target))) = &restarted {
                    pid.store(target.pid(), Ordering::Relaxed);
                }
                return ControlFlow::Break(());
            }
            stop_if(&self.interrupted)
        };
        let report = load::run(&config, &mut cycle);
        let Some((operations_before, target)) = restarted else {
            report.map_err(|error| load_failure(&error))?;
            return Err(Failure::internal("the load ended before the target was killed"));
        };
        let target = target?;
        let report = report.map_err(|error| load_failure(&error))?;
        let restart = Restart::of(operations_before, target.took, &report);
        self.record("SIGKILL, then all 4K", &config, &report)?;
        Ok((target, restart))
    }
}

fn stop_if(interrupted: &AtomicBool) -> ControlFlow<()> {
    if interrupted.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// By the command that users have.
fn format_pool(pool: &Path, bytes: u64) -> Result<(), Failure> {
    let output = this_binary()?
        .args(["pool", "format", "--size", &bytes.to_string()])
        .arg(pool)
        .output()
        .map_err(|error| Failure::internal(format!("cannot run this program again: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::internal(format!("formatting failed: {}", said.trim().trim_start_matches("ringway: "))))
}
