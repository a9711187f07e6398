//! Exports: volumes given to one kind of client through a socket of their own, and how eagerly they are polled for.
//!
//! An [`ExportRecord`] is what the catalog keeps, so that an export comes back after a restart. An [`Export`] is the same with
//! the path of its socket made definite: what a transport serves. A socket is named at [`ExportAdd`] and keeps that name whatever
//! becomes of its volume's: who attached through it comes back to it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ringway_reactor::socket_path::SOCKET_PATH_MAX;
use serde::{Deserialize, Serialize};

use crate::control::ControlError;
use crate::ids::{ExportId, VolumeId};
use crate::snapshot::name::check_any_name;

/// Queues of an export at most: one for each processor of a large guest.
pub const EXPORT_QUEUES_MAX: u16 = 128;
/// Queues of an export that names none. A guest uses as many of them as it has processors; those it does not use cost nothing.
pub const EXPORT_QUEUES_DEFAULT: u16 = 16;

/// Who an export is for. The order is part of the catalog's format: new kinds go to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportKind {
    /// A virtual machine's virtio-blk disk, by the vhost-user protocol.
    VhostUser,
    /// Clients of network block devices, who ask for it by name: several exports may have one socket.
    Nbd,
    /// The same for clients that expect to be told at once what they get (the oldstyle negotiation).
    NbdOldstyle,
}

impl ExportKind {
    /// As it is spelled on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ExportKind::VhostUser => "vhost-user",
            ExportKind::Nbd => "nbd",
            ExportKind::NbdOldstyle => "nbd-oldstyle",
        }
    }

    /// The folder below the runtime folder that has the sockets of exports that name none.
    #[must_use]
    pub fn folder(self) -> &'static str {
        match self {
            ExportKind::VhostUser => "vhost",
            ExportKind::Nbd | ExportKind::NbdOldstyle => "nbd",
        }
    }

    /// Whether several exports of this kind may have one socket, where clients say which they want.
    #[must_use]
    pub fn shares_sockets(self) -> bool {
        self == ExportKind::Nbd
    }
}

/// How a reactor looks for an export's work. The order is part of the catalog's format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Polling {
    /// It sleeps, and is woken by the client's doorbell for each batch: the least CPU time, the longest way.
    Interrupt,
    /// It polls while there is work and for a moment after, then sleeps.
    #[default]
    Adaptive,
    /// It polls for as long as a client is connected: the shortest way, for a whole core.
    Busy,
}

impl Polling {
    /// As it is spelled on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Polling::Interrupt => "interrupt",
            Polling::Adaptive => "adaptive",
            Polling::Busy => "busy",
        }
    }
}

/// Where clients connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// A unix socket.
    Path(&'a Path),
    /// A port; with `tls` nothing goes over it in the open.
    Tcp { addr: SocketAddr, tls: bool },
}

const TCP: &str = "tcp://";
const TLS: &str = "tls://";

/// Takes a socket's name apart. `Err`: it is a port, and no address with one.
fn place_of(socket: &str) -> Result<Place<'_>, &str> {
    let port = |addr: &'_ str, tls| addr.parse().map(|addr| Place::Tcp { addr, tls }).ok();
    if let Some(addr) = socket.strip_prefix(TCP) {
        return port(addr, false).ok_or(socket);
    }
    match socket.strip_prefix(TLS) {
        Some(addr) => port(addr, true).ok_or(socket),
        None => Ok(Place::Path(Path::new(socket))),
    }
}

/// Where the clients of a socket connect. What looks like a port and is none is the path that it is then.
#[must_use]
pub fn place(socket: &Path) -> Place<'_> {
    socket.to_str().and_then(|socket| place_of(socket).ok()).unwrap_or(Place::Path(socket))
}

/// The name of a port as an export's socket.
#[must_use]
pub fn port_name(addr: SocketAddr, tls: bool) -> String {
    format!("{}{addr}", if tls { TLS } else { TCP })
}

/// Whether nothing goes over this socket in the open.
#[must_use]
pub fn is_secure(socket: &Path) -> bool {
    socket.to_str().is_some_and(|socket| socket.starts_with(TLS))
}

/// A socket as a record has it, made definite by who has the runtime folder `runtime`.
#[must_use]
pub fn socket_below(runtime: &Path, socket: &Path) -> PathBuf {
    let is_port = socket.to_str().is_some_and(|socket| matches!(place_of(socket), Ok(Place::Tcp { .. }) | Err(_)));
    // An absolute path replaces what it is joined to.
    if is_port { socket.to_owned() } else { runtime.join(socket) }
}

/// An export as the catalog keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportRecord {
    /// Not used by another export of this pool.
    pub id: ExportId,
    /// Who it is for.
    pub kind: ExportKind,
    /// What it gives.
    pub volume: VolumeId,
    /// A path, absolute or below the runtime folder of whoever serves the pool; or `tcp://ADDR:PORT`, `tls://ADDR:PORT`.
    pub socket: String,
    /// The most queues that a client may set up.
    pub queues: u16,
    /// How its work is looked for.
    pub polling: Polling,
    /// The client's memory is registered with the reactors' rings. Never for a guest that gives memory back while it runs
    /// (balloon, free page reporting): reads would land in pages that it has no more.
    pub pin_guest: bool,
    /// Writes are refused.
    pub read_only: bool,
}

/// An export that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// As in its record.
    pub id: ExportId,
    /// As in its record.
    pub kind: ExportKind,
    /// What it gives.
    pub volume: VolumeId,
    /// Where its clients connect: an absolute path, or a port as the record has it.
    pub socket: PathBuf,
    /// The most queues that a client may set up.
    pub queues: u16,
    /// How its work is looked for.
    pub polling: Polling,
    /// The client's memory is registered with the reactors' rings.
    pub pin_guest: bool,
    /// Writes are refused.
    pub read_only: bool,
}

impl ExportRecord {
    /// Whether both may have the same socket.
    #[must_use]
    pub fn shares_socket_with(&self, other: &ExportRecord) -> bool {
        self.kind == other.kind && self.kind.shares_sockets() && self.volume != other.volume
    }

    /// What is to be served by who has the runtime folder `runtime`.
    #[must_use]
    pub fn below(&self, runtime: &Path) -> Export {
        Export {
            id: self.id,
            kind: self.kind,
            volume: self.volume,
            socket: socket_below(runtime, Path::new(&self.socket)),
            queues: self.queues,
            polling: self.polling,
            pin_guest: self.pin_guest,
            read_only: self.read_only,
        }
    }
}

impl Export {
    /// Where its clients connect.
    #[must_use]
    pub fn place(&self) -> Place<'_> {
        place(&self.socket)
    }
}

/// An export to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportAdd {
    /// Who it is for.
    pub kind: ExportKind,
    /// The volume's name.
    pub volume: String,
    /// An absolute path; for NBD also `tcp://ADDR:PORT` or `tls://ADDR:PORT`; none: `vhost/VOLUME.sock` or `nbd/VOLUME.sock` below the
    /// runtime folder.
    #[serde(default)]
    pub socket: Option<String>,
    /// The most queues that a client may set up.
    #[serde(default = "queues_default")]
    pub queues: u16,
    /// How its work is looked for.
    #[serde(default)]
    pub polling: Polling,
    /// Register the client's memory.
    #[serde(default)]
    pub pin_guest: bool,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
}

fn queues_default() -> u16 {
    EXPORT_QUEUES_DEFAULT
}

impl ExportAdd {
    /// An export of `volume` with nothing said.
    #[must_use]
    pub fn new(kind: ExportKind, volume: impl Into<String>) -> ExportAdd {
        ExportAdd {
            kind,
            volume: volume.into(),
            socket: None,
            queues: EXPORT_QUEUES_DEFAULT,
            polling: Polling::default(),
            pin_guest: false,
            read_only: false,
        }
    }

    /// What can be told without knowing the pool.
    pub fn check(&self) -> Result<(), ControlError> {
        check_any_name(&self.volume).map_err(ControlError::invalid)?;
        if self.queues == 0 || self.queues > EXPORT_QUEUES_MAX {
            return Err(ControlError::invalid(format!(
                "{} queues are not possible; an export has 1 to {EXPORT_QUEUES_MAX}",
                self.queues
            )));
        }
        if let Some(socket) = self.socket.as_ref().filter(|socket| socket.contains("://")) {
            return self.check_port(socket);
        }
        match &self.socket {
            Some(socket) if !socket.starts_with('/') || socket.ends_with('/') || socket.contains('\0') => {
                Err(ControlError::invalid(format!(
                    "socket {socket:?} is no absolute path of a file; write it like /run/vm1/disk.sock"
                )))
            }
            Some(socket) => check_socket_path(Path::new(socket)),
            None => Ok(()),
        }
    }

    fn check_port(&self, socket: &str) -> Result<(), ControlError> {
        const EXAMPLE: &str =
            "write it like tcp://127.0.0.1:10809, or tls://10.0.0.1:10809 where the target has a certificate";
        let place = if socket.starts_with(TCP) || socket.starts_with(TLS) { place_of(socket) } else { Err(socket) };
        match (self.kind, place) {
            (ExportKind::VhostUser, _) => Err(ControlError::invalid(format!(
                "socket {socket:?} is not for a virtual machine's disk, which shares memory: give the path of a unix socket"
            ))),
            (_, Err(_) | Ok(Place::Path(_))) => {
                Err(ControlError::invalid(format!("{socket:?} is no address to listen on; {EXAMPLE}")))
            }
            (ExportKind::NbdOldstyle, Ok(Place::Tcp { tls: true, .. })) => Err(ControlError::invalid(format!(
                "{socket:?} is not possible for oldstyle clients, which know no TLS; use tcp://"
            ))),
            _ => Ok(()),
        }
    }

    /// The socket as its record will have it.
    #[must_use]
    pub fn socket(&self) -> String {
        self.socket.clone().unwrap_or_else(|| format!("{}/{}.sock", self.kind.folder(), file_name(&self.volume)))
    }
}

/// A volume's name as a file's name.
#[must_use]
pub fn file_name(volume: &str) -> String {
    volume.replace('/', "%2F")
}

/// Checks that any client will be able to name this socket to the kernel: virtual machine monitors know no way around its bound.
pub fn check_socket_path(path: &Path) -> Result<(), ControlError> {
    let len = path.as_os_str().len();
    if len > SOCKET_PATH_MAX {
        return Err(ControlError::invalid(format!(
            "the socket's path {} has {len} bytes, and a socket's has at most {SOCKET_PATH_MAX}; give a shorter one by --socket, \
             or start the target with a shorter --runtime",
            path.display()
        )));
    }
    Ok(())
}

/// An export as seen from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportInfo {
    /// Not used by another export of this pool.
    pub id: ExportId,
    /// Who it is for.
    pub kind: ExportKind,
    /// The volume's name, as it is now.
    pub volume: String,
    /// And its number.
    pub volume_id: VolumeId,
    /// Where its clients connect.
    pub socket: PathBuf,
    /// The most queues that a client may set up.
    pub queues: u16,
    /// How its work is looked for.
    pub polling: Polling,
    /// The client's memory is registered.
    pub pin_guest: bool,
    /// Writes are refused.
    pub read_only: bool,
    /// Clients connected now.
    pub connections: u32,
    /// Why nobody can connect, if so.
    pub fault: Option<String>,
}

impl ExportInfo {
    /// What its record says, with nobody connected.
    #[must_use]
    pub fn of_record(record: &ExportRecord, volume: &str) -> ExportInfo {
        ExportInfo {
            id: record.id,
            kind: record.kind,
            volume: volume.to_owned(),
            volume_id: record.volume,
            socket: PathBuf::from(&record.socket),
            queues: record.queues,
            polling: record.polling,
            pin_guest: record.pin_guest,
            read_only: record.read_only,
            connections: 0,
            fault: None,
        }
    }

    /// What is to be served by who has the runtime folder `runtime`.
    #[must_use]
    pub fn export(&self, runtime: &Path) -> Export {
        Export {
            id: self.id,
            kind: self.kind,
            volume: self.volume_id,
            socket: socket_below(runtime, &self.socket),
            queues: self.queues,
            polling: self.polling,
            pin_guest: self.pin_guest,
            read_only: self.read_only,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(volume: &str) -> ExportAdd {
        ExportAdd::new(ExportKind::VhostUser, volume)
    }

    #[test]
    fn a_socket_is_where_it_was_asked_for_or_below_the_runtime_folder() {
        assert_eq!(add("db/log").socket(), "vhost/db%2Flog.sock");
        let record = ExportRecord {
            id: ExportId(1),
            kind: ExportKind::VhostUser,
            volume: VolumeId(1),
            socket: add("db/log").socket(),
            queues: 1,
            polling: Polling::Busy,
            pin_guest: false,
            read_only: true,
        };
        assert_eq!(record.below(Path::new("/run/ringway")).socket, Path::new("/run/ringway/vhost/db%2Flog.sock"));
        let elsewhere = ExportRecord { socket: "/vm/disk.sock".into(), ..record };
        let export = elsewhere.below(Path::new("/run/ringway"));
        assert_eq!((export.socket.as_path(), export.read_only), (Path::new("/vm/disk.sock"), true));
    }

    #[test]
    fn what_an_export_cannot_be_is_refused_with_what_it_can_be() {
        let good = ExportAdd { socket: Some("/a/b.sock".into()), ..add("v") };
        assert_eq!((good.check(), add("v").check()), (Ok(()), Ok(())));
        for (wrong, says) in [
            (add("a:b"), "A-Z a-z 0-9"),
            (ExportAdd { queues: 0, ..good.clone() }, "1 to 128"),
            (ExportAdd { queues: 129, ..good.clone() }, "1 to 128"),
            (ExportAdd { socket: Some("b.sock".into()), ..good.clone() }, "absolute path"),
            (ExportAdd { socket: Some("/run/".into()), ..good.clone() }, "absolute path"),
            (ExportAdd { socket: Some("/a\0b".into()), ..good.clone() }, "absolute path"),
            (ExportAdd { socket: Some(format!("/{}", "x".repeat(107))), ..good.clone() }, "at most 107"),
        ] {
            let error = wrong.check().unwrap_err();
            assert!(error.message.contains(says), "{error}");
        }
    }

    #[test]
    fn an_nbd_export_may_have_a_port_and_a_disk_may_not() {
        let nbd = |kind, socket: &str| ExportAdd { socket: Some(socket.into()), ..ExportAdd::new(kind, "v") };
        for good in ["tcp://127.0.0.1:0", "tls://[::1]:10809", "/run/x.sock"] {
            assert_eq!(nbd(ExportKind::Nbd, good).check(), Ok(()), "{good}");
        }
        for (kind, socket, says) in [
            (ExportKind::Nbd, "tcp://localhost", "tcp://127.0.0.1:10809"),
            (ExportKind::Nbd, "udp://127.0.0.1:1", "tcp://127.0.0.1:10809"),
            (ExportKind::Nbd, "x.sock", "absolute path"),
            (ExportKind::NbdOldstyle, "tls://127.0.0.1:1", "know no TLS"),
            (ExportKind::VhostUser, "tcp://127.0.0.1:1", "shares memory"),
        ] {
            let error = nbd(kind, socket).check().unwrap_err();
            assert!(error.message.contains(says), "{socket}: {error}");
        }
        assert_eq!(ExportAdd::new(ExportKind::Nbd, "a/b").socket(), "nbd/a%2Fb.sock");
        let runtime = Path::new("/run/r");
        assert_eq!(socket_below(runtime, Path::new("tcp://127.0.0.1:1")), Path::new("tcp://127.0.0.1:1"));
        assert_eq!(socket_below(runtime, Path::new("nbd/v.sock")), Path::new("/run/r/nbd/v.sock"));
        assert!(is_secure(Path::new("tls://[::1]:1")) && !is_secure(Path::new("/tls://")));
    }

    #[test]
    fn a_request_for_an_export_needs_no_more_than_its_kind_and_volume() {
        let parsed: ExportAdd = postcard::from_bytes(&postcard::to_stdvec(&add("v")).unwrap()).unwrap();
        assert_eq!(parsed, add("v"));
        assert_eq!((Polling::default(), add("v").queues), (Polling::Adaptive, EXPORT_QUEUES_DEFAULT));
        assert!(Polling::Busy > Polling::Adaptive && Polling::Adaptive > Polling::Interrupt);
    }
}
