//! `ringway libvirt-xml VOLUME`: the disk element by which a stock libvirt attaches a volume.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use ringway_core::control::ControlErrorKind;
use ringway_core::export::{ExportInfo, ExportKind, Place, file_name, place};

use crate::cli::DaemonArgs;
use crate::failure::Failure;
use crate::output::Format;
use crate::runtime::folder;
use crate::volume::client;

/// `ringway libvirt-xml`.
#[derive(Args, Debug)]
pub(crate) struct LibvirtXmlArgs {
    /// The volume, or a snapshot VOLUME@SNAPSHOT
    pub(crate) volume: String,
    /// How the machine reaches it
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Transport::Vhostuser)]
    pub(crate) transport: Transport,
    /// The name of the disk in the machine's description
    #[arg(long, value_name = "DEV", default_value = "vda", value_parser = target_dev)]
    pub(crate) target: String,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// How a machine reaches its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// Shared memory, by vhost-user-blk: the shortest way; the machine's memory has to be shared
    Vhostuser,
    /// A network block device: any machine, and from other hosts too
    Nbd,
}

fn target_dev(text: &str) -> Result<String, String> {
    let is_one = text.len() <= 16 && text.strip_prefix("vd").is_some_and(|rest| !rest.is_empty());
    if is_one && text.bytes().all(|byte| byte.is_ascii_lowercase()) {
        Ok(text.to_owned())
    } else {
        Err("a virtio disk is called vda, vdb and so on".to_owned())
    }
}

pub(crate) fn run(args: &LibvirtXmlArgs, format: Format) -> Result<(), Failure> {
    let client = client(&args.daemon);
    let exports = client.exports()?;
    let of_kind = |kinds: &[ExportKind]| {
        exports
            .iter()
            .find(|export| export.volume == args.volume && kinds.contains(&export.kind) && export.fault.is_none())
    };
    let xml = match args.transport {
        Transport::Vhostuser => {
            let (socket, read_only) = match of_kind(&[ExportKind::VhostUser]) {
                Some(export) => (export.socket.clone(), export.read_only),
                None => (own_socket(args)?, false),
            };
            vhost_user(&socket, &args.target, read_only)
        }
        Transport::Nbd => {
            let export = of_kind(&[ExportKind::Nbd, ExportKind::NbdOldstyle]).ok_or_else(|| {
                Failure::new(
                    ControlErrorKind::NotFound,
                    format!("{0:?} has no NBD export; make one: `ringway export add nbd {0}`", args.volume),
                )
            })?;
            nbd(export, &args.target)
        }
    };
    format.print(&serde_json::json!({ "xml": xml }), |_| xml.clone());
    Ok(())
}

/// The socket that a volume has without being asked for.
fn own_socket(args: &LibvirtXmlArgs) -> Result<PathBuf, Failure> {
    let runtime = folder(args.daemon.runtime.as_deref());
    let socket = runtime.join(ExportKind::VhostUser.folder()).join(format!("{}.sock", file_name(&args.volume)));
    if socket.exists() {
        return std::path::absolute(&socket).map_err(|error| Failure::io("make sense of", &socket, &error));
    }
    Err(Failure::new(
        ControlErrorKind::NotFound,
        format!(
            "{0:?} has no socket for a virtual machine at {1}; make one: `ringway export add vhost-user {0}`",
            args.volume,
            socket.display()
        ),
    ))
}

fn vhost_user(socket: &Path, target: &str, read_only: bool) -> String {
    let read_only = if read_only { "\n  <readonly/>" } else { "" };
    format!(
        "<!-- the domain needs: <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking> -->\n\
         <disk type='vhostuser' device='disk'>\n  \
         <driver name='qemu' type='raw'/>\n  \
         <source type='unix' path='{}'>\n    \
         <reconnect enabled='yes' timeout='1'/>\n  \
         </source>\n  \
         <target dev='{target}' bus='virtio'/>{read_only}\n\
         </disk>",
        escaped(&socket.to_string_lossy())
    )
}

fn nbd(export: &ExportInfo, target: &str) -> String {
    let (host, tls) = match place(&export.socket) {
        Place::Path(path) => (format!("<host transport='unix' socket='{}'/>", escaped(&path.to_string_lossy())), false),
        Place::Tcp { addr, tls } => (format!("<host name='{}' port='{}'/>", addr.ip(), addr.port()), tls),
    };
    let name = match export.kind {
        ExportKind::NbdOldstyle => String::new(),
        _ => format!(" name='{}'", escaped(&export.volume)),
    };
    let tls = if tls { " tls='yes'" } else { "" };
    let read_only = if export.read_only || export.volume.contains('@') { "\n  <readonly/>" } else { "" };
    format!(
        "<disk type='network' device='disk'>\n  \
         <driver name='qemu' type='raw' cache='none' discard='unmap'/>\n  \
         <source protocol='nbd'{name}{tls}>\n    \
         {host}\n    \
         <reconnect delay='60'/>\n  \
         </source>\n  \
         <target dev='{target}' bus='virtio'/>{read_only}\n\
         </disk>"
    )
}

/// Text between single quotes.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use ringway_core::export::Polling;
    use ringway_core::ids::{ExportId, VolumeId};

    use super::*;

    fn export(volume: &str, socket: &str) -> ExportInfo {
        ExportInfo {
            id: ExportId(1),
            kind: ExportKind::Nbd,
            volume: volume.into(),
            volume_id: VolumeId(1),
            socket: socket.into(),
            queues: 1,
            polling: Polling::Adaptive,
            pin_guest: false,
            read_only: false,
            connections: 0,
            fault: None,
        }
    }

    /// The element, and its attributes by name.
    fn read(xml: &str, element: &str) -> Option<Vec<(String, String)>> {
        let document = roxmltree::Document::parse(xml).unwrap();
        let found = document.descendants().find(|node| node.has_tag_name(element))?;
        Some(found.attributes().map(|a| (a.name().to_owned(), a.value().to_owned())).collect())
    }

    fn pairs(pairs: &[(&str, &str)]) -> Option<Vec<(String, String)>> {
        Some(pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    #[test]
    fn a_disk_element_says_where_the_disk_is_whatever_its_name() {
        let xml = nbd(&export("db/a", "/run/it's <here> & now"), "vdb");
        assert_eq!(read(&xml, "host"), pairs(&[("transport", "unix"), ("socket", "/run/it's <here> & now")]));
        assert_eq!(read(&xml, "source"), pairs(&[("protocol", "nbd"), ("name", "db/a")]));
        assert_eq!(read(&xml, "target"), pairs(&[("dev", "vdb"), ("bus", "virtio")]));
        assert_eq!(read(&xml, "readonly"), None);
        let secure = nbd(&export("a@s", "tls://[::1]:10809"), "vda");
        assert_eq!(read(&secure, "host"), pairs(&[("name", "::1"), ("port", "10809")]));
        assert_eq!(read(&secure, "source"), pairs(&[("protocol", "nbd"), ("name", "a@s"), ("tls", "yes")]));
        assert_eq!(read(&secure, "readonly"), Some(Vec::new()));
        let old = nbd(&ExportInfo { kind: ExportKind::NbdOldstyle, ..export("a", "/s") }, "vda");
        assert_eq!(read(&old, "source"), pairs(&[("protocol", "nbd")]));
        let shared = vhost_user(Path::new("/run/r/vhost/v.sock"), "vda", true);
        assert_eq!(read(&shared, "source"), pairs(&[("type", "unix"), ("path", "/run/r/vhost/v.sock")]));
        assert_eq!(read(&shared, "readonly"), Some(Vec::new()));
    }

    #[test]
    fn a_disk_is_called_as_virtio_disks_are() {
        assert!(target_dev("vdz").is_ok() && target_dev("vdaa").is_ok());
        for wrong in ["vd", "sda", "vd1", "vda'", ""] {
            assert!(target_dev(wrong).is_err(), "{wrong}");
        }
    }
}
