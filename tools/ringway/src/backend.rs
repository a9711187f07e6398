//! `ringway backend ...` and `ringway restore`: where snapshots are stored, what is there, and volumes made of that.

use std::thread;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use ringway_core::backend::api::{
    BackendCheck, BackendFrom, BackendInfo, BackendRestore, BackendSet, CheckedSnapshot, CollectInfo, StoredSnapshot,
    StoredState,
};
use ringway_core::backend::settings::{BackendSettings, GRACE_S_DEFAULT, PATIENCE_S_DEFAULT};
use ringway_core::backend::url::BackendUrl;
use ringway_core::control::ControlErrorKind;

use crate::cli::DaemonArgs;
use crate::failure::Failure;
use crate::output::{Format, columns, facts};
use crate::size::Size;
use crate::volume::client;

/// How often the daemon is asked how far it is.
const LOOK: Duration = Duration::from_millis(200);

/// `ringway backend ...`.
#[derive(Subcommand, Debug)]
pub(crate) enum BackendCommand {
    /// Show where snapshots are stored, what is on its way, and what holds it up
    #[command(after_help = "Examples:\n  ringway backend show\n  ringway backend show --json | jq .syncs")]
    Show(DaemonArgs),
    /// Store snapshots there from now on
    #[command(after_help = SET_EXAMPLES)]
    Set(SetArgs),
    /// List the snapshots that are stored on a backend, whoever has made them
    #[command(
        after_help = "Examples:\n  ringway backend list\n  ringway backend list --from s3://backups/site-a?endpoint=https://s3.example.com"
    )]
    List(FromArgs),
    /// Read what stored snapshots need, and say what is damaged
    #[command(after_help = "Examples:\n  ringway backend check\n  ringway backend check vm1@monday --data")]
    Check(CheckArgs),
    /// Delete now what no snapshot needs any more; it happens by itself too
    #[command(after_help = "Example:\n  ringway backend collect")]
    Collect(DaemonArgs),
}

const SET_EXAMPLES: &str = "\
Examples:
  ringway backend set file:///mnt/backup                     # a folder, every object fsynced
  ringway backend set s3://backups/pool-1?region=eu-central-1
  ringway backend set s3://backups?endpoint=http://10.0.0.9:9000 --speed 100MiB
  ringway backend set none                                   # synced means durable in the pool

Credentials come from the daemon's environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ...) or from the file that
`ringway serve --backend-credentials` names.";

pub(crate) const RESTORE_EXAMPLES: &str = "\
Examples:
  ringway restore vm1@before-upgrade --as vm1-old
  ringway restore vm1@monday --from file:///mnt/backup       # on another host, with another pool
  ringway restore 0000000100000007-1a2b3c4d --from s3://backups/site-a
  ringway restore vm1@monday --lazy --as vm2                 # at once; blocks are fetched when they are read

The volume appears when it is whole. What is read stays on the backend until then, whatever its own pool removes. With --lazy it
appears at once, as a clone, and what it looks through to stays there until the clone is removed or populated.";

/// `ringway backend set`.
#[derive(Args, Debug)]
pub(crate) struct SetArgs {
    /// `file:///FOLDER`, `s3://BUCKET[/PREFIX][?endpoint=URL&region=REGION]`, or none
    #[arg(value_name = "URL|none")]
    pub(crate) url: String,
    /// At most so many bytes a second go there [default: no limit]
    #[arg(long, value_name = "SIZE")]
    pub(crate) speed: Option<Size>,
    /// Seconds that what was removed stays there, for pools that may be reading it
    #[arg(long, value_name = "SECONDS", default_value_t = GRACE_S_DEFAULT)]
    pub(crate) grace: u32,
    /// Seconds without success after which a restore gives up
    #[arg(long, value_name = "SECONDS", default_value_t = PATIENCE_S_DEFAULT)]
    pub(crate) patience: u32,
    /// Although snapshots are stored at the present place: their objects were moved along, or may be given up
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// `ringway backend list`.
#[derive(Args, Debug)]
pub(crate) struct FromArgs {
    /// Another backend than the pool's own
    #[arg(long, value_name = "URL")]
    pub(crate) from: Option<BackendUrl>,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// `ringway backend check`.
#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    /// A snapshot, or a manifest; without it all of this pool's
    #[arg(value_name = "VOLUME@SNAPSHOT|MANIFEST")]
    pub(crate) snapshot: Option<String>,
    /// Read every block, not only maps and indexes
    #[arg(long)]
    pub(crate) data: bool,
    /// Another backend than the pool's own
    #[arg(long, value_name = "URL")]
    pub(crate) from: Option<BackendUrl>,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// `ringway restore`.
#[derive(Args, Debug)]
pub(crate) struct RestoreArgs {
    /// A snapshot as it was called, or its manifest
    #[arg(value_name = "VOLUME@SNAPSHOT|MANIFEST")]
    pub(crate) snapshot: String,
    /// Another backend than the pool's own
    #[arg(long, value_name = "URL")]
    pub(crate) from: Option<BackendUrl>,
    /// The volume's name [default: as it was]
    #[arg(long = "as", value_name = "VOLUME")]
    pub(crate) name: Option<String>,
    /// Also a snapshot that its pool may never have committed
    #[arg(long)]
    pub(crate) unconfirmed: bool,
    /// At once, as a clone: each block is fetched from the backend when it is first read
    #[arg(long)]
    pub(crate) lazy: bool,
    /// Seconds after which a read of that clone that gets nothing from the backend fails [default: 20]
    #[arg(long, value_name = "SECONDS", requires = "lazy")]
    pub(crate) patience: Option<u32>,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

pub(crate) fn run(command: BackendCommand, format: Format) -> Result<(), Failure> {
    match command {
        BackendCommand::Show(daemon) => format.print(&client(&daemon).backend()?, show),
        BackendCommand::Set(args) => format.print(&client(&args.daemon).backend_set(&set(&args)?)?, show),
        BackendCommand::List(args) => {
            let from = BackendFrom { from: args.from };
            format.print(&client(&args.daemon).backend_list(&from)?, |stored| list(stored));
        }
        BackendCommand::Check(args) => {
            let check = BackendCheck { from: args.from, snapshot: args.snapshot, data: args.data };
            let checked = client(&args.daemon).backend_check(&check)?;
            format.print(&checked, |checked| checks(checked));
            let damaged = checked.iter().filter(|one| one.damaged.is_some()).count();
            if damaged > 0 {
                return Err(Failure::new(
                    ControlErrorKind::Corrupt,
                    format!("{damaged} of {} stored snapshots are damaged", checked.len()),
                ));
            }
        }
        BackendCommand::Collect(daemon) => format.print(&client(&daemon).backend_collect()?, collected),
    }
    Ok(())
}

fn set(args: &SetArgs) -> Result<BackendSet, Failure> {
    let settings = settings(&args.url)?.map(|settings| BackendSettings {
        speed: args.speed.map_or(0, |speed| speed.0),
        grace_s: args.grace,
        patience_s: args.patience,
        ..settings
    });
    Ok(BackendSet { settings, force: args.force })
}

/// A backend as the command line names it.
pub(crate) fn settings(url: &str) -> Result<Option<BackendSettings>, Failure> {
    if url == "none" {
        return Ok(None);
    }
    let url: BackendUrl = url.parse().map_err(|error| Failure::usage(format!("{error}, or none")))?;
    Ok(Some(BackendSettings::new(url)))
}

fn show(info: &BackendInfo) -> String {
    let Some(settings) = &info.settings else {
        return "backend: none; synced means durable in the pool".to_owned();
    };
    let mut lines = vec![
        ("backend", settings.url.to_string()),
        (
            "speed",
            if settings.speed == 0 { "no limit".to_owned() } else { format!("{} a second", Size(settings.speed)) },
        ),
        ("grace", format!("{} s", settings.grace_s)),
        ("patience", format!("{} s", settings.patience_s)),
        ("sent", Size(info.sent).to_string()),
        ("read", Size(info.read).to_string()),
    ];
    if let Some(trouble) = &info.trouble {
        lines.push(("trouble", trouble.clone()));
    }
    for sync in &info.syncs {
        let held = sync.trouble.as_ref().map_or(String::new(), |trouble| format!("; {trouble}"));
        let far = format!(
            "{}: {} of {} looked at, {} sent{held}",
            sync.name,
            Size(sync.walked),
            Size(sync.size),
            Size(sync.sent)
        );
        lines.push(("syncing", far));
    }
    for restore in &info.restores {
        let held = restore.trouble.as_ref().map_or(String::new(), |trouble| format!("; {trouble}"));
        lines.push((
            "restoring",
            format!("{}: {} of {}{held}", restore.name, Size(restore.written), Size(restore.total)),
        ));
    }
    for clone in &info.clones {
        let held = clone.trouble.as_ref().map_or(String::new(), |trouble| format!("; {trouble}"));
        lines.push(("clone", format!("{} of {}: {} fetched{held}", clone.name, clone.of, Size(clone.fetched))));
    }
    if let Some(last) = &info.collected {
        lines.push(("collected", collected(last)));
    }
    facts(&lines)
}

fn collected(info: &CollectInfo) -> String {
    match &info.failed {
        Some(why) => format!("nothing: {why}"),
        None => format!(
            "{} objects deleted ({}), {} kept, {} snapshots wait, {} copied out of worn packs",
            info.deleted,
            Size(info.deleted_bytes),
            Size(info.kept_bytes),
            info.waiting,
            Size(info.rewritten_bytes)
        ),
    }
}

fn list(stored: &[StoredSnapshot]) -> String {
    let row = |one: &StoredSnapshot| {
        let state = match (&one.damaged, one.state) {
            (Some(_), _) => "damaged",
            (None, StoredState::Synced) => "synced",
            (None, StoredState::Unconfirmed) => "unconfirmed",
            (None, StoredState::Going) => "going",
        };
        vec![
            if one.name.is_empty() { "?".to_owned() } else { one.name.clone() },
            Size(one.size).to_string(),
            Size(one.data).to_string(),
            state.to_owned(),
            one.manifest.to_string(),
            one.pool.to_string(),
        ]
    };
    let rows: Vec<_> = stored.iter().map(row).collect();
    columns(&["snapshot", "size", "data", "state", "manifest", "pool"], &rows)
}

fn checks(checked: &[CheckedSnapshot]) -> String {
    let row = |one: &CheckedSnapshot| {
        let outcome = one.damaged.clone().unwrap_or_else(|| "whole".to_owned());
        vec![one.name.clone(), Size(one.bytes).to_string(), one.manifest.to_string(), outcome]
    };
    let rows: Vec<_> = checked.iter().map(row).collect();
    columns(&["snapshot", "data", "manifest", "outcome"], &rows)
}

/// Asks the daemon, and shows how far it is until it answers.
pub(crate) fn restore(args: &RestoreArgs, format: Format) -> Result<(), Failure> {
    let wanted = BackendRestore {
        from: args.from.clone(),
        snapshot: args.snapshot.clone(),
        name: args.name.clone(),
        unconfirmed: args.unconfirmed,
        lazy: args.lazy,
        patience_s: args.patience,
        exclusive: false,
        allowed_hosts: Vec::new(),
    };
    let daemon = client(&args.daemon);
    let restored = thread::scope(|scope| {
        let asked = scope.spawn(|| daemon.backend_restore(&wanted));
        let bar = match format {
            Format::Json => ProgressBar::hidden(),
            Format::Text => ProgressBar::new(0)
                .with_style(ProgressStyle::with_template("[{bar:40}] {msg}").expect("the template is valid")),
        };
        while !asked.is_finished() {
            thread::sleep(LOOK);
            // Should this fail, the call itself says why.
            if let Some(restore) = daemon.backend().ok().and_then(|info| info.restores.into_iter().next()) {
                bar.set_length(restore.total.max(1));
                bar.set_position(restore.written);
                let far = format!("{} of {}", Size(restore.written), Size(restore.total));
                bar.set_message(restore.trouble.map_or(far.clone(), |trouble| format!("{far}; {trouble}")));
            }
        }
        bar.finish_and_clear();
        asked.join().unwrap_or_else(|_| Err(Failure::internal("the thread that asked has panicked".to_owned())))
    })?;
    let done = if args.lazy { "cloned" } else { "restored" };
    format.print(&restored, |volume| format!("{done} {} as {}, {}", args.snapshot, volume.name, Size(volume.size)));
    Ok(())
}
