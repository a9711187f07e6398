//! `ringway doctor`: looks at the machine that a target runs on, and says what costs it speed. It changes nothing.
//!
//! `source` reads files, or a record of them; `machine` makes facts of them; `cores` and `devices` make findings of facts.

mod cores;
mod devices;
mod finding;
mod machine;
mod source;
#[cfg(test)]
mod tests;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use ringway_core::control::ControlErrorKind;
use serde::Serialize;

use crate::cli::DaemonArgs;
use crate::endpoint::PoolPlace;
use crate::failure::Failure;
use crate::inspect;
use crate::output::Format;
use crate::serve::cores as cores_or_default;
use crate::volume::client;
use finding::{Finding, Remedy};
use machine::Machine;
use source::{Record, Source, Subject};

pub(crate) const EXAMPLES: &str = "\
Examples:
  ringway doctor                              # of the target that runs here, or of the one that would
  ringway doctor --cores 2-5 --pool /dev/nvme0n1
  ringway doctor --json | jq '.findings[] | select(.rank == \"high\")'
  ringway doctor --record machine.json        # to be looked at elsewhere:
  ringway doctor --replay machine.json";

/// Bytes of buffers that a reactor registers unless it is told otherwise.
const BUFFERS_DEFAULT: u64 = 64 << 20;

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
    /// Cores of the reactors, such as 0,2-3 [default: those of the running target, or those it would take]
    #[arg(long, value_name = "LIST")]
    pub(crate) cores: Option<String>,
    /// The pool whose devices count [default: that of the running target]
    #[arg(long, value_name = "DIR|DEVICE")]
    pub(crate) pool: Option<PoolPlace>,
    /// Seconds for which interrupts and stolen time are counted
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    pub(crate) seconds: f64,
    /// Keep everything that was read in this file
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
    /// Look at such a file instead of this machine
    #[arg(long, value_name = "FILE", conflicts_with_all = ["record", "cores", "pool"])]
    pub(crate) replay: Option<PathBuf>,
}

/// The audit, worst first.
#[derive(Debug, Serialize)]
struct Report {
    subject: Subject,
    findings: Vec<Finding>,
    /// Files that may not be read: what they would show is not in the findings.
    not_seen: Vec<String>,
}

pub(crate) fn run(args: &DoctorArgs, format: Format) -> Result<(), Failure> {
    let source = match &args.replay {
        Some(path) => Source::recorded(Record::open(path)?),
        None => {
            if !(0.1..=60.0).contains(&args.seconds) {
                return Err(Failure::usage(format!("--seconds {}: between 0.1 and 60", args.seconds)));
            }
            Source::machine(subject(args)?, Duration::from_secs_f64(args.seconds))
        }
    };
    let report = examine(&source);
    if let Some(path) = &args.record {
        let record = serde_json::to_vec_pretty(&source.into_record()).expect("a record is serialisable");
        fs::write(path, record).map_err(|error| Failure::io("write the record", path, &error))?;
    }
    format.print(&report, show);
    Ok(())
}

fn examine(source: &Source) -> Report {
    let subject = source.subject();
    let machine = Machine::read(source);
    let mut findings = cores::findings(&machine, &subject);
    findings.extend(devices::findings(&machine, &subject));
    findings.sort_by_key(|finding| finding.rank);
    Report { subject, findings, not_seen: source.denied() }
}

/// What runs here, or would.
fn subject(args: &DoctorArgs) -> Result<Subject, Failure> {
    if args.daemon.control.as_ref().is_some_and(|control| control.starts_with("https:")) {
        let what = "--control https://…: only the machine that the target runs on can be looked at; run `ringway doctor --record` there";
        return Err(Failure::usage(what));
    }
    let daemon = client(&args.daemon);
    let is_named = args.daemon.control.is_some() || args.daemon.runtime.is_some();
    let target = match daemon.target() {
        Ok(target) => Some(target),
        Err(failure) if failure.is(ControlErrorKind::Unavailable) && !is_named => None,
        Err(failure) => return Err(failure),
    };
    let cores = match (&args.cores, &target) {
        (None, Some(target)) => target.cores.clone(),
        (list, _) => cores_or_default(list.as_deref())?,
    };
    let paths: Vec<PathBuf> = match (&args.pool, &target) {
        (Some(place), _) => inspect::pool_files(place)?,
        (None, Some(_)) => daemon.pool()?.devices.into_iter().map(|device| device.path.into()).collect(),
        (None, None) => Vec::new(),
    };
    let mut devices: Vec<String> = paths.iter().flat_map(|path| devices_of(path)).collect();
    devices.sort();
    devices.dedup();
    Ok(Subject {
        cores,
        is_running: target.is_some(),
        pid: target.map(|target| target.pid),
        devices,
        buffer_bytes: BUFFERS_DEFAULT,
    })
}

/// The whole disks below a file or a block device, by name; none where it has no such thing, as in memory.
fn devices_of(path: &Path) -> Vec<String> {
    let Ok(meta) = fs::metadata(path) else { return Vec::new() };
    let number = if meta.file_type().is_block_device() { meta.rdev() } else { meta.dev() };
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let Ok(folder) = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")) else { return Vec::new() };
    whole_disks(&folder)
}

fn whole_disks(folder: &Path) -> Vec<String> {
    if folder.join("partition").exists() {
        return folder.parent().map_or(Vec::new(), whole_disks);
    }
    // What lies on other devices (device mapper, RAID) is as fast as those.
    let below = fs::read_dir(folder.join("slaves")).into_iter().flatten().flatten();
    let below: Vec<String> =
        below.filter_map(|entry| fs::canonicalize(entry.path()).ok()).flat_map(|disk| whole_disks(&disk)).collect();
    if below.is_empty() {
        return folder.file_name().map(|name| name.to_string_lossy().into_owned()).into_iter().collect();
    }
    below
}

fn show(report: &Report) -> String {
    let cores = ringway_reactor::pin::CoreList(report.subject.cores.clone());
    let whose =
        if report.subject.is_running { "the target's reactors" } else { "the reactors of a target started now" };
    let devices = match report.subject.devices.as_slice() {
        [] => "no block device is known below its pool".to_owned(),
        devices => format!("its pool is on {}", devices.join(", ")),
    };
    let mut text = format!("{whose} are on cores {cores}; {devices}\n");
    if report.findings.is_empty() {
        text += "nothing was found that would make it faster\n";
    }
    for (number, finding) in report.findings.iter().enumerate() {
        text += &format!("\n{}. [{}] {}\n", number + 1, finding.rank.name(), finding.what);
        for line in &finding.evidence {
            text += &format!("     seen:   {line}\n");
        }
        text += &format!("     cost:   {}\n", finding.cost);
        match &finding.remedy {
            Remedy::Commands { change, undo } => {
                change.iter().for_each(|command| text += &format!("     change: {command}\n"));
                undo.iter().for_each(|command| text += &format!("     undo:   {command}\n"));
            }
            Remedy::Elsewhere { advice } => text += &format!("     needs:  {advice}\n"),
        }
    }
    if !report.not_seen.is_empty() {
        text += &format!("\nnot seen, for want of permission: {}\n", report.not_seen.join(", "));
    }
    text
}
