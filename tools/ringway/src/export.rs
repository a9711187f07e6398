//! `ringway export ...`: asks the running target to open sockets for its volumes.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use ringway_core::control::ControlErrorKind;
use ringway_core::export::{EXPORT_QUEUES_DEFAULT, ExportAdd, ExportInfo, ExportKind, Place, Polling, place};

use crate::cli::DaemonArgs;
use crate::failure::Failure;
use crate::output::{Format, columns, facts};
use crate::volume::client;

/// `ringway export ...`.
#[derive(Subcommand, Debug)]
pub(crate) enum ExportCommand {
    /// Open a socket for a volume; it is there again after a restart
    #[command(subcommand, after_help = "Example:\n  ringway export add vhost-user vm1")]
    Add(AddCommand),
    /// List all exports
    #[command(after_help = "Example:\n  ringway export list --json | jq -r '.[].socket'")]
    List(DaemonArgs),
    /// Take an export away; who is attached through it loses it
    #[command(
        after_help = "Examples:\n  ringway export remove vm1                       # if vm1 has one export\n  ringway export remove /run/vm1/disk.sock\n  ringway export remove 3                         # by number, see `ringway export list`"
    )]
    Remove(RemoveArgs),
}

/// `ringway export add ...`: what for.
#[derive(Subcommand, Debug)]
pub(crate) enum AddCommand {
    /// A disk of a virtual machine, by vhost-user-blk: QEMU, libvirt, cloud-hypervisor
    #[command(after_help = VHOST_USER_EXAMPLES)]
    VhostUser(VhostUserArgs),
    /// A network block device: QEMU, libvirt, nbd-client, qemu-img, libnbd, blktap
    #[command(after_help = NBD_EXAMPLES)]
    Nbd(NbdArgs),
}

const VHOST_USER_EXAMPLES: &str = "\
Examples:
  ringway export add vhost-user vm1                       # vhost/vm1.sock below the runtime folder
  ringway export add vhost-user vm1 --socket /run/vm1/disk.sock --queues 4 --polling busy
  qemu-system-x86_64 -m 1G -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem \\
    -chardev socket,id=vm1,path=/run/ringway/vhost/vm1.sock,reconnect=1 -device vhost-user-blk-pci,chardev=vm1 ...

QEMU has to reach the socket: run it as the daemon's user, or serve with --socket-group and --socket-mode 0660.";

/// `ringway export add vhost-user`.
#[derive(Args, Debug)]
pub(crate) struct VhostUserArgs {
    /// The volume
    pub(crate) volume: String,
    /// Where the machine connects [default: vhost/VOLUME.sock in the runtime folder, with `/` written %2F]
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// The most queues that the machine may set up
    #[arg(long, value_name = "N", default_value_t = EXPORT_QUEUES_DEFAULT)]
    pub(crate) queues: u16,
    /// How the target looks for the machine's requests
    #[arg(long, value_enum, value_name = "HOW", default_value_t = PollingArg::Adaptive)]
    pub(crate) polling: PollingArg,
    /// Register the machine's memory with the kernel: a little faster; never with a balloon or free page reporting
    #[arg(long)]
    pub(crate) pin_guest: bool,
    /// Refuse writes
    #[arg(long)]
    pub(crate) read_only: bool,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

const NBD_EXAMPLES: &str = "\
Examples:
  ringway export add nbd vm1                              # nbd/vm1.sock below the runtime folder
  ringway export add nbd vm1 --listen tcp://127.0.0.1:10809
  ringway export add nbd vm2@monday --listen tcp://127.0.0.1:10809
  ringway export add nbd vm1 --listen tls://10.0.0.1:10809
  qemu-img info 'nbd+unix:///vm1?socket=/run/ringway/nbd/vm1.sock'
  nbdinfo --list nbd://127.0.0.1

Several volumes may have one socket: clients name the one they want. A snapshot is read-only. For tls:// the target needs
--tls-cert and --tls-key; with these, clients may ask for TLS on the other sockets too. An address that other machines
reach needs tls://, or a target that was started with --insecure.";

/// `ringway export add nbd`.
#[derive(Args, Debug)]
pub(crate) struct NbdArgs {
    /// The volume, or a snapshot VOLUME@SNAPSHOT
    pub(crate) volume: String,
    /// Where clients connect: a unix socket, or a port, of which 0 picks one [default: nbd/VOLUME.sock in the runtime folder,
    /// with `/` written %2F]
    #[arg(long, visible_alias = "socket", value_name = "PATH|tcp://ADDR:PORT|tls://ADDR:PORT")]
    pub(crate) listen: Option<PathBuf>,
    /// Refuse writes
    #[arg(long)]
    pub(crate) read_only: bool,
    /// For clients that name no export and expect to be told at once what they get (blktap's oldest, Linux before 3.x)
    #[arg(long)]
    pub(crate) oldstyle: bool,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// How a target looks for requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PollingArg {
    /// Poll for as long as the machine is connected: the shortest way, for a whole core
    Busy,
    /// Poll while there is work and for a moment after, then sleep
    Adaptive,
    /// Sleep, and be woken for each batch: the least CPU time
    Interrupt,
}

impl From<PollingArg> for Polling {
    fn from(arg: PollingArg) -> Polling {
        match arg {
            PollingArg::Busy => Polling::Busy,
            PollingArg::Adaptive => Polling::Adaptive,
            PollingArg::Interrupt => Polling::Interrupt,
        }
    }
}

/// `ringway export remove`.
#[derive(Args, Debug)]
pub(crate) struct RemoveArgs {
    /// Its number, its socket, or its volume where that has one export
    #[arg(value_name = "NUMBER|SOCKET|VOLUME")]
    pub(crate) export: String,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

pub(crate) fn run(command: ExportCommand, format: Format) -> Result<(), Failure> {
    match command {
        ExportCommand::Add(AddCommand::VhostUser(args)) => {
            let add = vhost_user(&args)?;
            format.print(&client(&args.daemon).export_add(&add)?, show);
        }
        ExportCommand::Add(AddCommand::Nbd(args)) => {
            let add = nbd(&args)?;
            format.print(&client(&args.daemon).export_add(&add)?, show);
        }
        ExportCommand::List(daemon) => format.print(&client(&daemon).exports()?, |exports| list(exports)),
        ExportCommand::Remove(args) => {
            let client = client(&args.daemon);
            let export = find(client.exports()?, &args.export)?;
            client.export_remove(export.id)?;
            format.print(&serde_json::json!({ "removed": export.id, "socket": export.socket }), |_| {
                format!("removed export {} of {}: {}", export.id, export.volume, export.socket.display())
            });
        }
    }
    Ok(())
}

/// What to ask for, checked before the daemon is looked for.
fn vhost_user(args: &VhostUserArgs) -> Result<ExportAdd, Failure> {
    let add = ExportAdd {
        socket: args.socket.as_deref().map(absolute).transpose()?,
        queues: args.queues,
        polling: args.polling.into(),
        pin_guest: args.pin_guest,
        read_only: args.read_only,
        ..ExportAdd::new(ExportKind::VhostUser, args.volume.as_str())
    };
    add.check()?;
    Ok(add)
}

fn nbd(args: &NbdArgs) -> Result<ExportAdd, Failure> {
    let kind = if args.oldstyle { ExportKind::NbdOldstyle } else { ExportKind::Nbd };
    let socket = match &args.listen {
        Some(port) if port.to_str().is_some_and(|port| port.contains("://")) => port.to_str().map(str::to_owned),
        Some(path) => Some(absolute(path)?),
        None => None,
    };
    let add = ExportAdd { socket, read_only: args.read_only, ..ExportAdd::new(kind, args.volume.as_str()) };
    add.check()?;
    Ok(add)
}

/// How clients name an export of NBD.
pub(crate) fn nbd_uri(export: &ExportInfo) -> String {
    let oldstyle = export.kind == ExportKind::NbdOldstyle;
    let name = if oldstyle { String::new() } else { uri_escaped(&export.volume, b"/@") };
    match place(&export.socket) {
        Place::Tcp { addr, tls } => format!("{}://{addr}/{name}", if tls { "nbds" } else { "nbd" }),
        Place::Path(path) => {
            let socket = uri_escaped(&path.to_string_lossy(), b"/");
            format!("nbd+unix:///{name}?socket={socket}")
        }
    }
}

/// Text as a part of a URI, with `%XX` for what is neither unreserved (RFC 3986, 2.3) nor in `kept`.
fn uri_escaped(text: &str, kept: &[u8]) -> String {
    let escape = |byte: u8| match byte {
        _ if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || kept.contains(&byte) => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

/// A relative path starts here, wherever the daemon was started.
fn absolute(path: &Path) -> Result<String, Failure> {
    let whole = std::path::absolute(path).map_err(|error| Failure::io("make sense of", path, &error))?;
    whole
        .into_os_string()
        .into_string()
        .map_err(|path| Failure::usage(format!("socket {} is not UTF-8; give it a name that is", path.display())))
}

/// The export that is meant. A number is one before it is a volume's name.
fn find(exports: Vec<ExportInfo>, meant: &str) -> Result<ExportInfo, Failure> {
    if let Some(at) = exports.iter().position(|export| export.id.to_string() == meant) {
        return Ok(exports.into_iter().nth(at).expect("just found"));
    }
    let by_socket = exports.iter().any(|export| export.socket == Path::new(meant));
    let is_meant =
        |export: &ExportInfo| if by_socket { export.socket == Path::new(meant) } else { export.volume == meant };
    let mut of_volume: Vec<_> = exports.into_iter().filter(is_meant).collect();
    match of_volume.len() {
        0 => Err(Failure::new(
            ControlErrorKind::NotFound,
            format!(
                "no export has the number, the socket or the volume {meant:?}; `ringway export list` shows what there is"
            ),
        )),
        1 => Ok(of_volume.remove(0)),
        _ => {
            let named: Vec<String> =
                of_volume.iter().map(|export| format!("{} ({})", export.id, export.socket.display())).collect();
            let what = if by_socket { "socket" } else { "volume" };
            Err(Failure::usage(format!("{what} {meant:?} has several exports: say which of {}", named.join(", "))))
        }
    }
}

fn show(export: &ExportInfo) -> String {
    let yes = |flag: bool| if flag { "yes" } else { "no" }.to_owned();
    let mut lines = vec![
        ("export", export.id.to_string()),
        ("kind", export.kind.name().to_owned()),
        ("volume", export.volume.clone()),
        ("socket", export.socket.display().to_string()),
    ];
    match export.kind {
        ExportKind::VhostUser => lines.extend([
            ("queues", export.queues.to_string()),
            ("polling", export.polling.name().to_owned()),
            ("guest memory pinned", yes(export.pin_guest)),
        ]),
        ExportKind::Nbd | ExportKind::NbdOldstyle => lines.push(("uri", nbd_uri(export))),
    }
    lines.extend([("read-only", yes(export.read_only)), ("state", state(export))]);
    facts(&lines)
}

fn state(export: &ExportInfo) -> String {
    match (&export.fault, export.connections) {
        (Some(why), _) => format!("closed: {why}"),
        (None, 0) => "waiting".to_owned(),
        (None, 1) => "connected".to_owned(),
        (None, several) => format!("{several} connected"),
    }
}

/// Whether it has queues, and somebody to be polled for.
fn is_disk(export: &ExportInfo) -> bool {
    export.kind == ExportKind::VhostUser
}

fn list(exports: &[ExportInfo]) -> String {
    let rows: Vec<Vec<String>> = exports
        .iter()
        .map(|export| {
            vec![
                export.id.to_string(),
                export.kind.name().to_owned(),
                export.volume.clone(),
                if is_disk(export) { export.queues.to_string() } else { "-".to_owned() },
                if is_disk(export) { export.polling.name() } else { "-" }.to_owned(),
                if export.read_only { "read-only" } else { "read-write" }.to_owned(),
                export.socket.display().to_string(),
                state(export),
            ]
        })
        .collect();
    columns(&["export", "kind", "volume", "queues", "polling", "access", "socket", "state"], &rows)
}

#[cfg(test)]
mod tests {
    use ringway_core::ids::{ExportId, VolumeId};

    use super::*;

    fn export(id: u32, volume: &str, socket: &str) -> ExportInfo {
        ExportInfo {
            id: ExportId(id),
            kind: ExportKind::VhostUser,
            volume: volume.into(),
            volume_id: VolumeId(id),
            socket: socket.into(),
            queues: 1,
            polling: Polling::Adaptive,
            pin_guest: false,
            read_only: false,
            connections: 0,
            fault: None,
        }
    }

    #[test]
    fn an_export_is_found_by_number_socket_or_volume() {
        let all =
            || vec![export(1, "a", "/s/a"), export(2, "b", "/s/b"), export(3, "b", "/s/c"), export(4, "1", "/s/d")];
        for (meant, id) in [("1", 1), ("a", 1), ("/s/c", 3), ("3", 3)] {
            assert_eq!(find(all(), meant).unwrap().id, ExportId(id), "{meant}");
        }
        let several = find(all(), "b").unwrap_err();
        assert!(several.exit_code() == 2 && several.message.contains("2 (/s/b), 3 (/s/c)"), "{several}");
        assert_eq!(find(all(), "c").unwrap_err().exit_code(), 3);
    }

    #[test]
    fn an_nbd_export_is_named_as_clients_name_it() {
        let named = |kind, volume: &str, socket: &str| nbd_uri(&ExportInfo { kind, ..export(1, volume, socket) });
        assert_eq!(
            named(ExportKind::Nbd, "db/log@a", "/run/a b/nbd/db%2Flog.sock"),
            "nbd+unix:///db/log@a?socket=/run/a%20b/nbd/db%252Flog.sock"
        );
        assert_eq!(named(ExportKind::Nbd, "v", "tcp://[::1]:10809"), "nbd://[::1]:10809/v");
        assert_eq!(named(ExportKind::Nbd, "v", "tls://10.0.0.1:1"), "nbds://10.0.0.1:1/v");
        assert_eq!(named(ExportKind::NbdOldstyle, "v", "/s"), "nbd+unix:///?socket=/s");
    }

    #[test]
    fn a_relative_socket_starts_where_the_command_was_given() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute(Path::new("x.sock")).unwrap(), here.join("x.sock").to_str().unwrap());
        assert_eq!(absolute(Path::new("/x.sock")).unwrap(), "/x.sock");
    }
}
