//! The command line: what there is, what it takes, and examples. Nothing is done here.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::backend::{BackendCommand, RESTORE_EXAMPLES, RestoreArgs};
use crate::config::Settings;
use crate::endpoint::PoolPlace;
use crate::events::EventsArgs;
use crate::export::ExportCommand;
use crate::failure::EXIT_CODES;
use crate::libvirt_xml::LibvirtXmlArgs;
use crate::qemu_args::QemuArgsArgs;
use crate::size::Size;
use crate::snapshot::{CloneArgs, SnapshotCommand};
use crate::stream::StreamCommand;

/// Block storage over NVMe/TCP from files, devices or memory: one reactor a core, durable by default.
#[derive(Parser, Debug)]
#[command(name = "ringway", version, after_help = AFTER_HELP.as_str(), max_term_width = 110)]
pub(crate) struct Cli {
    /// Answer in JSON, failures too
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What can be done.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Show it all: format, serve, load, kill, restart, verify
    #[command(
        after_help = "Examples:\n  ringway demo\n  ringway demo --dir /mnt/nvme --seconds 10 --size 4GiB\n  ringway demo --keep --json | jq .rows"
    )]
    Demo(crate::demo::DemoArgs),
    /// Serve a pool until SIGTERM or SIGINT
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Box<ServeArgs>),
    /// Make, look at and grow pools
    #[command(
        subcommand,
        after_help = "Examples:\n  ringway pool format ./ringway-data --size 10GiB\n  ringway pool show ./ringway-data"
    )]
    Pool(PoolCommand),
    /// Make, look at, change and remove volumes of the running target
    #[command(
        subcommand,
        after_help = "Examples:\n  ringway volume create vm1 20GiB\n  ringway volume import vm2 disk.img\n  ringway volume list"
    )]
    Volume(VolumeCommand),
    /// Make, look at, roll back to and remove snapshots of the running target's volumes
    #[command(
        subcommand,
        after_help = "Examples:\n  ringway snapshot create vm1 before-upgrade --timeout 120s\n  ringway snapshot list vm1\n  ringway snapshot rollback vm1@before-upgrade"
    )]
    Snapshot(SnapshotCommand),
    /// Make clones independent of what they lie over, in the background
    #[command(subcommand, after_help = "Examples:\n  ringway stream start vm2 --follow\n  ringway stream list")]
    Stream(StreamCommand),
    /// Show what happens to volumes, snapshots, streams and the pool's space
    #[command(after_help = crate::events::EXAMPLES)]
    Events(EventsArgs),
    /// Print the running target's metrics, as Prometheus reads them
    #[command(
        after_help = "Examples:\n  ringway metrics | grep ringway_rdma_posted\n  ringway metrics --json | jq -r .text"
    )]
    Metrics(DaemonArgs),
    /// Give volumes to virtual machines and to clients of network block devices, through sockets and ports of their own
    #[command(subcommand, after_help = "Example:\n  ringway export list")]
    Export(ExportCommand),
    /// Print the disk element by which libvirt attaches a volume
    #[command(
        after_help = "Examples:\n  ringway libvirt-xml vm1\n  ringway libvirt-xml vm1 --transport nbd --target vdb\n\nIt goes below <devices>: virsh attach-device GUEST disk.xml, or into what `virsh define` reads."
    )]
    LibvirtXml(LibvirtXmlArgs),
    /// Turn <source protocol='openvstorage' ...> of a disk or a machine, on standard input, into arguments of QEMU
    #[command(after_help = "Example:\n  ringway qemu-args < disk.xml")]
    QemuArgs(QemuArgsArgs),
    /// Say where snapshots are stored, and look at what is stored there
    #[command(subcommand, after_help = "Examples:\n  ringway backend set file:///backup\n  ringway backend list")]
    Backend(BackendCommand),
    /// Make a volume of a snapshot that is stored on a backend, by this pool or by any other
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore(RestoreArgs),
    /// Check a pool that nobody serves, without changing it
    #[command(
        after_help = "Examples:\n  ringway inspect ./ringway-data\n  ringway inspect ./ringway-data --json | jq .faults"
    )]
    Inspect(InspectArgs),
    /// Say what on this machine costs a target speed, with what changes it and what changes it back
    #[command(after_help = crate::doctor::EXAMPLES)]
    Doctor(crate::doctor::DoctorArgs),
    /// Load one volume of a target with verified reads and writes
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(Box<crate::bench::BenchArgs>),
    /// Print what completes these commands in a shell
    #[command(after_help = "Examples:\n  source <(ringway completions bash)\n  ringway completions fish | source")]
    Completions(crate::shell::CompletionsArgs),
    /// Write the manual pages of all commands
    #[command(after_help = "Example:\n  ringway man ~/.local/share/man/man1")]
    Man(crate::shell::ManArgs),
}

/// Below `ringway --help`.
static AFTER_HELP: LazyLock<String> = LazyLock::new(|| {
    format!(
        "Examples:\n  ringway demo\n  ringway serve &\n  ringway volume create vm1 20GiB\n  \
         ringway bench tcp://127.0.0.1:4420/vm1 --verify\n\n{EXIT_CODES}"
    )
});

const SERVE_EXAMPLES: &str = "\
Examples:
  ringway serve                                           # ./ringway-data on loopback
  ringway serve --pool /dev/nvme1n1 --cores 2-5 --listen tcp://10.0.0.1:4420
  ringway serve --listen tcp://10.0.0.1:4420 --listen rdma://10.0.0.1:4420   # RDMA where the machine has it
  ringway serve --config /etc/ringway.toml
  ringway serve --pool mem:1GiB --listen tcp://127.0.0.1:0  # port 0 picks one
  ringway serve --control-listen https://10.0.0.1:4421 --tls-cert c.pem --tls-key k.pem --control-token-file token

One line of JSON with the addresses is printed when the target is ready. SIGTERM and SIGINT finish what is in flight
and stop; SIGHUP rereads the configuration file and applies its log filter.";

const BENCH_EXAMPLES: &str = "\
Examples:
  ringway bench tcp://127.0.0.1:4420/vm1 --mix read --depth 32 --time 10
  ringway bench rdma://10.0.0.1:4420/vm1 --mix write --verify
  ringway bench tcp://127.0.0.1:4420/vm1 --mix read=70,write=29,flush=1 --verify --oracle vm1.oracle
  ringway bench tcp://127.0.0.1:4420/vm1 --verify --oracle vm1.oracle --resume --sweep acknowledged --time 0";

/// `ringway serve`.
#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// Read settings from this TOML file; flags win over it
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// End when the parent process ends (for the demo and tests)
    #[arg(long, hide = true)]
    pub(crate) die_with_parent: bool,
}

/// Where the daemon is found.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct DaemonArgs {
    /// Control socket of the daemon, or https://HOST:PORT of one on another machine [default: control.sock in the runtime folder]
    #[arg(long, value_name = "SOCKET|https://HOST:PORT")]
    pub(crate) control: Option<PathBuf>,
    /// With https: the daemon's certificate, or that of who signed it, PEM [default: $RINGWAY_CONTROL_CA]
    #[arg(long, value_name = "FILE")]
    pub(crate) control_ca: Option<PathBuf>,
    /// With https: the file with the daemon's token [default: $RINGWAY_CONTROL_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    pub(crate) control_token_file: Option<PathBuf>,
    /// Runtime folder of the daemon [default: $RINGWAY_RUNTIME_DIR, /run/ringway as root, or $XDG_RUNTIME_DIR/ringway]
    #[arg(long, value_name = "DIR")]
    pub(crate) runtime: Option<PathBuf>,
}

/// `ringway pool ...`.
#[derive(Subcommand, Debug)]
pub(crate) enum PoolCommand {
    /// Make a pool
    #[command(
        after_help = "Examples:\n  ringway pool format ./ringway-data --size 10GiB\n  ringway pool format /dev/nvme1n1 --shards 8"
    )]
    Format(FormatArgs),
    /// Show the running target's pool, or one that nobody serves
    #[command(after_help = "Examples:\n  ringway pool show\n  ringway pool show ./ringway-data")]
    Show(PoolShowArgs),
    /// Add a file or a block device to the running target's pool, or to one that nobody serves
    #[command(
        after_help = "Examples:\n  ringway pool grow --size 10GiB\n  ringway pool grow --device /dev/nvme2n1\n  ringway pool grow ./ringway-data --size 10GiB\n\nWithout a pool, the running target's grows while it is served; a pool that is named is one that nobody serves."
    )]
    Grow(PoolGrowArgs),
}

/// `ringway pool format`.
#[derive(Args, Debug)]
pub(crate) struct FormatArgs {
    /// A directory for the pool's file (made if need be), a block device, or several, separated by commas
    #[arg(value_name = "DIR|DEVICE")]
    pub(crate) pool: PoolPlace,
    /// Bytes of the pool's file; a block device is taken whole
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Option<Size>,
    /// How the space of the file is obtained
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Allocate::Written)]
    pub(crate) allocate: Allocate,
    /// Number of shards: the most reactors that the pool can ever keep busy
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) shards: Option<u16>,
    /// Bytes of a slab, the piece in which shards get their space: a power of two
    #[arg(long, value_name = "SIZE")]
    pub(crate) slab: Option<Size>,
    /// Bytes of each shard's journal
    #[arg(long, value_name = "SIZE")]
    pub(crate) journal: Option<Size>,
    /// Trust the devices with 4 KiB writes that their power-fail atomic unit does not cover
    #[arg(long)]
    pub(crate) assume_atomic_4k: bool,
    /// Where snapshots will be stored, as `ringway backend set` takes it [default: none]
    #[arg(long, value_name = "URL")]
    pub(crate) backend: Option<String>,
    /// Format even if a pool, or something else, is there; all of it is lost
    #[arg(long)]
    pub(crate) force: bool,
}

/// How the space of a pool's file is obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Allocate {
    /// Written once: no later write has to allocate in the file system
    Written,
    /// Reserved in the file system, not written
    Reserved,
    /// Neither: the file system may be full when a write comes
    Sparse,
}

/// `ringway pool show`.
#[derive(Args, Debug)]
pub(crate) struct PoolShowArgs {
    /// A pool, served or not; without it the running target is asked for its own
    #[arg(value_name = "DIR|DEVICE")]
    pub(crate) pool: Option<PoolPlace>,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// `ringway pool grow`.
#[derive(Args, Debug)]
#[group(id = "space", required = true, multiple = false, args = ["size", "device"])]
pub(crate) struct PoolGrowArgs {
    /// A pool that nobody serves, by its directory or its block devices, separated by commas; without it the running target's
    #[arg(value_name = "DIR|DEVICE")]
    pub(crate) pool: Option<PoolPlace>,
    /// Add a file of this size to the pool's directory
    #[arg(long, visible_alias = "add", value_name = "SIZE")]
    pub(crate) size: Option<Size>,
    /// Add a block device
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<PathBuf>,
    /// How the space of the file is obtained
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Allocate::Written, conflicts_with = "device")]
    pub(crate) allocate: Allocate,
    /// Add the block device whatever is on it; all of that is lost
    #[arg(long, requires = "device")]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// `ringway volume ...`.
#[derive(Subcommand, Debug)]
pub(crate) enum VolumeCommand {
    /// Make a volume; it takes space as it is written
    #[command(
        after_help = "Examples:\n  ringway volume create vm1 20GiB\n  ringway volume create db/log 4GiB --lba 4096 --shards 0"
    )]
    Create(CreateArgs),
    /// List all volumes
    #[command(after_help = "Examples:\n  ringway volume list\n  ringway volume list --json | jq -r '.[].name'")]
    List(DaemonArgs),
    /// Show one volume
    #[command(after_help = "Example:\n  ringway volume show vm1")]
    Show(NamedArgs),
    /// Grow a volume; attached hosts see it at once
    #[command(after_help = "Example:\n  ringway volume resize vm1 40GiB")]
    Resize(ResizeArgs),
    /// Give a volume another name
    #[command(after_help = "Example:\n  ringway volume rename vm1 web/vm1")]
    Rename(RenameArgs),
    /// Say which hosts may attach; none: any host where the listener allows that
    #[command(after_help = "Example:\n  ringway volume hosts vm1 \"$(cat /etc/nvme/hostnqn)\"")]
    Hosts(HostsArgs),
    /// Remove a volume and everything in it
    #[command(
        after_help = "Examples:\n  ringway volume remove vm1\n  ringway volume remove vm1 --force      # although a host is attached"
    )]
    Remove(RemoveArgs),
    /// Make a volume over a snapshot: writable at once, and it takes space as it is written
    #[command(after_help = "Example:\n  ringway volume clone vm1@before-upgrade vm1-test")]
    Clone(CloneArgs),
    /// Make a volume from a raw image
    #[command(after_help = "Example:\n  ringway volume import vm1 disk.img")]
    Import(ImportArgs),
    /// Write a volume's content to a raw image; runs of zeros become holes
    #[command(after_help = "Example:\n  ringway volume export vm1 disk.img")]
    Export(ExportArgs),
}

/// `ringway volume create`.
#[derive(Args, Debug)]
pub(crate) struct CreateArgs {
    /// 1 to 200 bytes of A-Z a-z 0-9 . _ / -
    pub(crate) name: String,
    /// Such as 20GiB
    pub(crate) size: Size,
    #[command(flatten)]
    pub(crate) shape: ShapeArgs,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// What is fixed when a volume is made.
#[derive(Args, Clone, Debug)]
pub(crate) struct ShapeArgs {
    /// Logical block size: 512 or 4096
    #[arg(long, value_name = "BYTES", default_value_t = 512)]
    pub(crate) lba: u32,
    /// Shards that hold it, such as 0,2; one pins it whole [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) shards: Option<Vec<u16>>,
    /// One writer at a time
    #[arg(long)]
    pub(crate) exclusive: bool,
    /// A host NQN that may attach; may be repeated
    #[arg(long = "host", value_name = "NQN")]
    pub(crate) hosts: Vec<String>,
}

/// A volume by name.
#[derive(Args, Debug)]
pub(crate) struct NamedArgs {
    /// The volume
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// `ringway volume resize`.
#[derive(Args, Debug)]
pub(crate) struct ResizeArgs {
    /// The volume
    pub(crate) name: String,
    /// Its new size, not below the present one
    pub(crate) size: Size,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// `ringway volume rename`.
#[derive(Args, Debug)]
pub(crate) struct RenameArgs {
    /// The volume
    pub(crate) name: String,
    /// Its new name
    pub(crate) to: String,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// `ringway volume hosts`.
#[derive(Args, Debug)]
pub(crate) struct HostsArgs {
    /// The volume
    pub(crate) name: String,
    /// Host NQNs; these replace the present ones
    #[arg(value_name = "NQN")]
    pub(crate) hosts: Vec<String>,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// `ringway volume remove`.
#[derive(Args, Debug)]
pub(crate) struct RemoveArgs {
    /// The volume
    pub(crate) name: String,
    /// Even if a host is attached
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// `ringway volume import`.
#[derive(Args, Debug)]
pub(crate) struct ImportArgs {
    /// The volume to make
    pub(crate) name: String,
    /// A raw image; its size is rounded up to whole logical blocks
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) shape: ShapeArgs,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// `ringway volume export`.
#[derive(Args, Debug)]
pub(crate) struct ExportArgs {
    /// The volume
    pub(crate) name: String,
    /// The image to make
    pub(crate) file: PathBuf,
    /// Replace a file that is there already
    #[arg(long)]
    pub(crate) overwrite: bool,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// `ringway inspect`.
#[derive(Args, Debug)]
pub(crate) struct InspectArgs {
    /// A pool that nobody serves: its directory, or its block devices, separated by commas
    #[arg(value_name = "DIR|DEVICE")]
    pub(crate) pool: PoolPlace,
    /// Show every record of the journals and the catalog too
    #[arg(long)]
    pub(crate) dump: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Every command on the way to a leaf, with its name as it is typed.
    fn every_command(at: &clap::Command, name: &str, found: &mut Vec<(String, clap::Command)>) {
        found.push((name.to_owned(), at.clone()));
        for below in at.get_subcommands() {
            every_command(below, &format!("{name} {}", below.get_name()), found);
        }
    }

    #[test]
    fn the_help_of_every_command_has_an_example_that_is_a_command_line() {
        let mut commands = Vec::new();
        every_command(&Cli::command(), "ringway", &mut commands);
        assert!(commands.len() > 15, "{}", commands.len());
        for (name, mut command) in commands {
            let help = command.render_help().to_string();
            let (_, examples) = help.split_once("Example").unwrap_or_else(|| panic!("{name} --help has no example"));
            let lines = examples.lines().skip(1).take_while(|line| line.starts_with("  "));
            let mut lines = lines.map(str::trim).filter(|line| line.starts_with("ringway ")).peekable();
            assert!(lines.peek().is_some_and(|line| line.starts_with(&name)), "{name}: {examples}");
            for line in lines {
                // Up to a comment, a pipe, a redirection or a background mark, which are the shell's.
                let words = line.split_whitespace().take_while(|word| !["#", "|", "&", "<"].contains(word));
                let parsed = Cli::try_parse_from(words.map(|word| word.trim_matches('"')));
                if line.contains("$(") {
                    continue;
                }
                assert!(parsed.is_ok(), "{name}: {line}: {}", parsed.unwrap_err());
            }
        }
    }

    #[test]
    fn a_switch_that_is_absent_does_not_override_the_configuration_file() {
        let settings = |line: &str| match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Serve(serve) => serve.settings,
            other => panic!("{other:?} is not serve"),
        };
        assert_eq!(settings("ringway serve").insecure, None);
        assert_eq!(settings("ringway serve --insecure").insecure, Some(true));
        assert_eq!(settings("ringway serve"), Settings::default());
        assert_eq!(
            settings("ringway serve --listen tcp://127.0.0.1:1 --listen tcp://127.0.0.1:2").listen.unwrap().len(),
            2
        );
    }
}
