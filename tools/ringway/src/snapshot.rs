//! `ringway snapshot ...`: asks the running target.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use ringway_core::backend::api::BackendRestore;
use ringway_core::backend::url::BadUrl;
use ringway_core::snapshot::asked::{
    Patience, SnapshotCreate, SnapshotInfo, SnapshotState, TIMEOUT_MAX, VolumeClone, check_full_name,
};

use crate::cli::DaemonArgs;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Format, columns, facts, utc};
use crate::size::Size;
use crate::snapshot_diff::DiffArgs;
use crate::volume::{client, print_one};
use crate::volume_image;

/// How often to ask how far a snapshot is.
const LOOK: Duration = Duration::from_millis(200);

/// `ringway snapshot ...`.
#[derive(Subcommand, Debug)]
pub(crate) enum SnapshotCommand {
    /// Cut one volume, or several at the same instant
    #[command(after_help = CREATE_EXAMPLES)]
    Create(CreateArgs),
    /// List snapshots, those included that are being made
    #[command(
        after_help = "Examples:\n  ringway snapshot list\n  ringway snapshot list vm1 --json | jq -r '.[] | select(.state == \"synced\") | .name'"
    )]
    List(ListArgs),
    /// Show one snapshot
    #[command(after_help = "Example:\n  ringway snapshot show vm1@before-upgrade")]
    Show(NamedArgs),
    /// Remove a snapshot, or give up one that is being made; its space comes back in the background
    #[command(
        after_help = "Examples:\n  ringway snapshot remove vm1@before-upgrade\n  ringway snapshot remove vm1@before-upgrade --force   # although a host is attached to it"
    )]
    Remove(RemoveArgs),
    /// Take a volume back to a snapshot; later snapshots of it are dropped
    #[command(after_help = ROLLBACK_EXAMPLES)]
    Rollback(RemoveArgs),
    /// List the ranges that have changed between two snapshots of a volume, or one and now
    #[command(after_help = crate::snapshot_diff::EXAMPLES)]
    Diff(DiffArgs),
    /// Write a snapshot's content to a raw image; runs of zeros become holes
    #[command(
        after_help = "Examples:\n  ringway snapshot export vm1@before-upgrade disk.img\n  ringway snapshot export vm1@before-upgrade disk.img --overwrite"
    )]
    Export(ExportArgs),
}

const CREATE_EXAMPLES: &str = "\
Examples:
  ringway snapshot create vm1 before-upgrade                 # until it is synced, however long that takes
  ringway snapshot create vm1 before-upgrade --timeout 120s  # or within two minutes, or not at all (exit code 11)
  ringway snapshot create vm1,vm1-log nightly --timeout 500ms
  ringway snapshot create vm1 quick --no-wait                # exists when this returns; synced behind

Without a backend, synced means durable in the pool. A snapshot that misses its deadline leaves nothing behind, and its
name is free. No I/O is held for a snapshot. It is attached like a volume, read-only: tcp://HOST:PORT/vm1@before-upgrade.";

const ROLLBACK_EXAMPLES: &str = "\
Examples:
  ringway snapshot rollback vm1@before-upgrade
  ringway snapshot rollback vm1@before-upgrade --force   # ends what hosts have open

What was written since is gone. Hosts that have the volume attached keep stale caches, so there must be none; --force ends
their associations. Refused while a clone lies over a snapshot that would be dropped.";

/// `ringway snapshot create`.
#[derive(Args, Debug)]
pub(crate) struct CreateArgs {
    /// The volume, or several, separated by commas: all are cut at the same instant, and all of the snapshots exist or none
    #[arg(value_name = "VOLUME[,VOLUME...]", value_delimiter = ',', required = true)]
    pub(crate) volumes: Vec<String>,
    /// 1 to 127 bytes of A-Z a-z 0-9 . _ -
    pub(crate) name: String,
    /// Give it up unless it is synced by then, such as 120s, 500ms, 2m; 0 waits for ever, a negative one does not wait
    #[arg(long, value_name = "TIME", default_value = "0", allow_hyphen_values = true, value_parser = parse_timeout)]
    pub(crate) timeout: Patience,
    /// Return when it exists, and sync it behind
    #[arg(long, conflicts_with = "timeout")]
    pub(crate) no_wait: bool,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// `ringway snapshot list`.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// Of this volume [default: of all]
    pub(crate) volume: Option<String>,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// A snapshot by name.
#[derive(Args, Debug)]
pub(crate) struct NamedArgs {
    /// The snapshot
    #[arg(value_name = "VOLUME@SNAPSHOT")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// `ringway snapshot remove`, `ringway snapshot rollback`.
#[derive(Args, Debug)]
pub(crate) struct RemoveArgs {
    /// The snapshot
    #[arg(value_name = "VOLUME@SNAPSHOT")]
    pub(crate) name: String,
    /// Although hosts are attached: they lose what they have open
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// `ringway snapshot export`.
#[derive(Args, Debug)]
pub(crate) struct ExportArgs {
    /// The snapshot
    #[arg(value_name = "VOLUME@SNAPSHOT")]
    pub(crate) name: String,
    /// The image to make
    pub(crate) file: PathBuf,
    /// Replace a file that is there already
    #[arg(long)]
    pub(crate) overwrite: bool,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// `ringway volume clone`.
#[derive(Args, Debug)]
pub(crate) struct CloneArgs {
    /// What it lies over
    #[arg(value_name = "VOLUME@SNAPSHOT")]
    pub(crate) snapshot: String,
    /// The new volume: 1 to 200 bytes of A-Z a-z 0-9 . _ / -
    pub(crate) name: String,
    /// The snapshot as it is on a backend, though this pool may not have it: blocks are fetched when they are read
    #[arg(long, value_name = "URL|backend")]
    pub(crate) from: Option<String>,
    /// Seconds after which a read that gets nothing from the backend fails [default: 20]
    #[arg(long, value_name = "SECONDS", requires = "from")]
    pub(crate) patience: Option<u32>,
    /// One writer at a time
    #[arg(long)]
    pub(crate) exclusive: bool,
    /// A host NQN that may attach; may be repeated
    #[arg(long = "host", value_name = "NQN")]
    pub(crate) hosts: Vec<String>,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// A deadline: a number of seconds, or one with a unit.
pub(crate) fn parse_timeout(text: &str) -> Result<Patience, String> {
    let wrong = || {
        format!(
            "{text:?} is no time; give seconds, or a number with ms, s, m or h, such as 500ms or 2m; 0 waits for ever, a negative \
             one does not wait"
        )
    };
    let trimmed = text.trim();
    let (negative, rest) = trimmed.strip_prefix('-').map_or((false, trimmed), |rest| (true, rest));
    let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, unit) = rest.split_at(digits);
    let seconds_a_unit = match unit.trim() {
        "ms" => 0.001,
        "" | "s" | "sec" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<f64>().map_err(|_| wrong())? * seconds_a_unit;
    if negative && seconds > 0.0 {
        return Ok(Patience::NoWait);
    }
    if seconds == 0.0 {
        return Ok(Patience::Forever);
    }
    let timeout = Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
    if timeout.is_zero() || timeout > TIMEOUT_MAX {
        return Err(format!("{text:?} is out of range; a timeout has 1 ns to 366 days, and 0 waits for ever"));
    }
    Ok(Patience::Within(timeout))
}

pub(crate) fn run(command: SnapshotCommand, format: Format) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Create(args) => {
            let patience = if args.no_wait { Patience::NoWait } else { args.timeout };
            let create = SnapshotCreate { volumes: args.volumes, name: args.name, patience };
            create.check()?;
            let made = with_progress(&client(&args.daemon), &create)?;
            format.print(&made, |made| made.iter().map(created).collect::<Vec<_>>().join("\n"));
        }
        SnapshotCommand::List(args) => {
            let snapshots = client(&args.daemon).snapshots(args.volume.as_deref())?;
            format.print(&snapshots, |snapshots| list(snapshots));
        }
        SnapshotCommand::Show(args) => {
            check_full_name(&args.name)?;
            format.print(&client(&args.daemon).snapshot(&args.name)?, show);
        }
        SnapshotCommand::Remove(args) => {
            check_full_name(&args.name)?;
            client(&args.daemon).snapshot_remove(&args.name, args.force)?;
            format.print(&serde_json::json!({ "removed": args.name }), |_| format!("removed {}", args.name));
        }
        SnapshotCommand::Rollback(args) => {
            check_full_name(&args.name)?;
            let volume = client(&args.daemon).snapshot_rollback(&args.name, args.force)?;
            format.print(&volume, |volume| format!("{} is as it was at {}", volume.name, args.name));
        }
        SnapshotCommand::Diff(args) => crate::snapshot_diff::run(&args, format)?,
        SnapshotCommand::Export(args) => {
            check_full_name(&args.name)?;
            volume_image::export(&client(&args.daemon), &args.name, &args.file, args.overwrite, format)?;
        }
    }
    Ok(())
}

/// `ringway volume clone`.
pub(crate) fn clone(args: &CloneArgs, format: Format) -> Result<(), Failure> {
    if let Some(from) = &args.from {
        let url = |text: &str| {
            text.parse().map_err(|error: BadUrl| Failure::usage(format!("{error}, or backend: the pool's own")))
        };
        let wanted = BackendRestore {
            from: if from == "backend" { None } else { Some(url(from)?) },
            snapshot: args.snapshot.clone(),
            name: Some(args.name.clone()),
            unconfirmed: false,
            lazy: true,
            patience_s: args.patience,
            exclusive: args.exclusive,
            allowed_hosts: args.hosts.clone(),
        };
        print_one(format, &client(&args.daemon).backend_restore(&wanted)?);
        return Ok(());
    }
    let clone = VolumeClone {
        snapshot: args.snapshot.clone(),
        name: args.name.clone(),
        exclusive: args.exclusive,
        allowed_hosts: args.hosts.clone(),
    };
    clone.check()?;
    print_one(format, &client(&args.daemon).volume_clone(&clone)?);
    Ok(())
}

/// Makes them; somebody who looks on is shown how far they are.
fn with_progress(client: &Client, create: &SnapshotCreate) -> Result<Vec<SnapshotInfo>, Failure> {
    if create.patience == Patience::NoWait || !std::io::stderr().is_terminal() {
        return client.snapshot_create(create);
    }
    let (sender, ended) = channel();
    let (asked, caller) = (create.clone(), client.clone());
    thread::spawn(move || drop(sender.send(caller.snapshot_create(&asked))));
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}").expect("the template is right"));
    let first = format!("{}@{}", create.volumes[0], create.name);
    loop {
        match ended.recv_timeout(LOOK) {
            Ok(outcome) => {
                bar.finish_and_clear();
                return outcome;
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Ok(info) = client.snapshot(&first) {
                    bar.set_message(progress(&info));
                    bar.tick();
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Err(Failure::internal("the caller's thread has ended")),
        }
    }
}

fn progress(info: &SnapshotInfo) -> String {
    let left = info.deadline_ms.map_or(String::new(), |ms| format!(", {:.1} s left", ms as f64 / 1000.0));
    format!("{}: {}{left}", info.name, state(info))
}

/// How far it is, in words.
fn state(info: &SnapshotInfo) -> String {
    let name = match info.state {
        SnapshotState::Pending => "pending",
        SnapshotState::Sealed => "sealed",
        SnapshotState::Synced => "synced",
    };
    match (&info.sync, &info.sync_error) {
        (_, Some(why)) => format!("{name}, not stored: {why}"),
        (Some(sync), None) if sync.total > 0 => format!("{name}, {} of {} stored", Size(sync.done), Size(sync.total)),
        _ => name.to_owned(),
    }
}

fn created(info: &SnapshotInfo) -> String {
    let times = info.times.map_or(String::new(), |times| {
        format!(
            " (cut after {} us, sealed {} us later, synced {} us later)",
            times.cut_us,
            times.sealed_us,
            times.synced_us + times.committed_us
        )
    });
    format!("{} is {}{times}", info.name, state(info))
}

fn show(info: &SnapshotInfo) -> String {
    let joined = |names: &[String], none: &str| if names.is_empty() { none.to_owned() } else { names.join(", ") };
    facts(&[
        ("name", info.name.clone()),
        ("state", state(info)),
        ("size", format!("{} ({} bytes)", Size(info.size), info.size)),
        ("held alone", info.held.map_or("not known".to_owned(), |held| Size(held).to_string())),
        ("created", format!("{} UTC", utc(info.created_unix_s))),
        ("cut", info.cut.clone().unwrap_or_else(|| "not yet".to_owned())),
        ("deadline", info.deadline_ms.map_or("none".to_owned(), |ms| format!("in {ms} ms"))),
        ("nqn", info.nqn.clone()),
        ("uuid", info.uuid.to_string()),
        ("clones", joined(&info.clones, "none")),
        ("attached", joined(&info.attached_hosts, "no host")),
    ])
}

fn list(snapshots: &[SnapshotInfo]) -> String {
    let rows: Vec<Vec<String>> = snapshots
        .iter()
        .map(|info| {
            vec![
                info.name.clone(),
                Size(info.size).to_string(),
                info.held.map_or("-".to_owned(), |held| Size(held).to_string()),
                utc(info.created_unix_s),
                info.deadline_ms.map_or("-".to_owned(), |ms| format!("{:.1} s", ms as f64 / 1000.0)),
                info.clones.len().to_string(),
                state(info),
            ]
        })
        .collect();
    columns(&["name", "size", "held", "created", "deadline", "clones", "state"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_a_number_with_or_without_a_unit_and_its_sign_has_a_meaning() {
        for (text, expected) in [
            ("120s", Patience::Within(Duration::from_secs(120))),
            ("120", Patience::Within(Duration::from_secs(120))),
            ("500ms", Patience::Within(Duration::from_millis(500))),
            ("1.5s", Patience::Within(Duration::from_millis(1500))),
            ("2m", Patience::Within(Duration::from_secs(120))),
            ("1h", Patience::Within(Duration::from_secs(3600))),
            ("0", Patience::Forever),
            ("0s", Patience::Forever),
            ("-1", Patience::NoWait),
            ("-1s", Patience::NoWait),
        ] {
            assert_eq!(parse_timeout(text), Ok(expected), "{text}");
        }
        for bad in ["", "soon", "s", "1d", "--1", "1..2", "9999999h", "NaN", "1e9", "∞"] {
            let why = parse_timeout(bad).unwrap_err();
            assert!(why.contains("500ms") || why.contains("366 days"), "{bad}: {why}");
        }
    }
}
