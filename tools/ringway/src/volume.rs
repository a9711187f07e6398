//! `ringway volume ...`: asks the running target.

use std::path::PathBuf;

use ringway_client::control::Way;
use ringway_core::control::{VolumeCreate, VolumeInfo, check_volume_size};
use ringway_core::ids::ShardId;

use crate::cli::{CreateArgs, DaemonArgs, ShapeArgs, VolumeCommand};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Format, columns, facts};
use crate::runtime::control_socket;
use crate::size::Size;
use crate::{snapshot, volume_image};

pub(crate) fn run(command: VolumeCommand, format: Format) -> Result<(), Failure> {
    match command {
        VolumeCommand::Create(args) => {
            let create = creation(&args)?;
            print_one(format, &client(&args.daemon).volume_create(&create)?);
        }
        VolumeCommand::List(daemon) => format.print(&client(&daemon).volumes()?, |volumes| list(volumes)),
        VolumeCommand::Show(args) => print_one(format, &client(&args.daemon).volume(&args.name)?),
        VolumeCommand::Resize(args) => {
            print_one(format, &client(&args.daemon).volume_resize(&args.name, args.size.0)?);
        }
        VolumeCommand::Rename(args) => print_one(format, &client(&args.daemon).volume_rename(&args.name, &args.to)?),
        VolumeCommand::Hosts(args) => {
            print_one(format, &client(&args.daemon).volume_set_hosts(&args.name, &args.hosts)?);
        }
        VolumeCommand::Remove(args) => {
            client(&args.daemon).volume_remove(&args.name, args.force)?;
            format.print(&serde_json::json!({ "removed": args.name }), |_| format!("removed {}", args.name));
        }
        VolumeCommand::Clone(args) => snapshot::clone(&args, format)?,
        VolumeCommand::Import(args) => volume_image::import(&client(&args.daemon), &args, format)?,
        VolumeCommand::Export(args) => {
            volume_image::export(&client(&args.daemon), &args.name, &args.file, args.overwrite, format)?;
        }
    }
    Ok(())
}

/// The daemon that these flags name.
pub(crate) fn client(daemon: &DaemonArgs) -> Client {
    let file = |given: &Option<PathBuf>, variable: &str| {
        given.clone().or_else(|| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from))
    };
    let control = control_socket(daemon.control.as_deref(), daemon.runtime.as_deref());
    let authority = file(&daemon.control_ca, "RINGWAY_CONTROL_CA");
    let token = file(&daemon.control_token_file, "RINGWAY_CONTROL_TOKEN_FILE");
    Client::by(Way::of(&control, authority.as_deref(), token.as_deref()))
}

fn creation(args: &CreateArgs) -> Result<VolumeCreate, Failure> {
    shaped(&args.name, args.size, &args.shape)
}

/// What to ask for, checked before the daemon is looked for: a wrong argument is wrong whether it runs or not.
pub(crate) fn shaped(name: &str, size: Size, shape: &ShapeArgs) -> Result<VolumeCreate, Failure> {
    let create = VolumeCreate {
        name: name.to_owned(),
        size: size.0,
        lba_bytes: shape.lba,
        shards: shape.shards.as_ref().map(|shards| shards.iter().copied().map(ShardId).collect()),
        exclusive: shape.exclusive,
        allowed_hosts: shape.hosts.clone(),
    };
    create.check()?;
    check_volume_size(create.size, create.lba_bytes)?;
    Ok(create)
}

pub(crate) fn print_one(format: Format, volume: &VolumeInfo) {
    format.print(volume, show);
}

fn show(volume: &VolumeInfo) -> String {
    let joined = |hosts: &[String], none: &str| if hosts.is_empty() { none.to_owned() } else { hosts.join(", ") };
    let shards: Vec<String> = volume.shards.iter().map(ShardId::to_string).collect();
    facts(&[
        ("name", volume.name.clone()),
        ("size", format!("{} ({} bytes)", Size(volume.size), volume.size)),
        ("allocated", Size(volume.allocated).to_string()),
        ("block size", volume.lba_bytes.to_string()),
        ("shards", shards.join(",")),
        ("nqn", volume.nqn.clone()),
        ("uuid", volume.uuid.to_string()),
        ("exclusive", if volume.exclusive { "yes" } else { "no" }.to_owned()),
        ("allowed hosts", joined(&volume.allowed_hosts, "any where the listener allows that")),
        ("attached", joined(&volume.attached_hosts, "no host")),
        ("parent", volume.parent.clone().unwrap_or_else(|| "none".to_owned())),
        ("state", volume.fault.as_ref().map_or("online".to_owned(), |why| format!("faulted: {why}"))),
    ])
}

fn list(volumes: &[VolumeInfo]) -> String {
    let rows: Vec<Vec<String>> = volumes
        .iter()
        .map(|volume| {
            vec![
                volume.name.clone(),
                Size(volume.size).to_string(),
                Size(volume.allocated).to_string(),
                volume.lba_bytes.to_string(),
                volume.shards.len().to_string(),
                volume.attached_hosts.len().to_string(),
                if volume.fault.is_some() { "faulted" } else { "online" }.to_owned(),
            ]
        })
        .collect();
    columns(&["name", "size", "allocated", "block", "shards", "hosts", "state"], &rows)
}
