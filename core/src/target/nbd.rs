//! Network block devices as one kind of export, and the ports that they have.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with, sockopt};

use super::exports::ServeExport;
use super::unix::Bound;
use crate::control::{ControlError, ControlErrorKind};
use crate::export::{Export, port_name};
use crate::ids::ExportId;
use crate::transport::NbdServer;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// How often to look whether a port is free by now.
const RETRY: Duration = Duration::from_millis(20);

impl ServeExport for NbdServer {
    fn opened(&self, export: &Arc<Export>) {
        self.open(export);
    }

    fn connected(&self, export: &Arc<Export>, connection: OwnedFd) {
        self.connect(export, connection);
    }

    fn removed(&self, export: ExportId) {
        self.end(export);
    }

    fn connections(&self, export: ExportId) -> u32 {
        NbdServer::connections(self, export)
    }
}

/// Listens on a port, of which 0 picks one; waits so long for one that a killed target may still have (history C4).
#[expect(clippy::disallowed_methods, reason = "a control thread waits for the kernel, not for the engine's clock")]
pub(super) fn bind_port(addr: SocketAddr, tls: bool, patience: Duration) -> Result<Bound, ControlError> {
    let refused = |errno: Errno| {
        let kind = match errno {
            Errno::ADDRINUSE => ControlErrorKind::Busy,
            Errno::ACCESS | Errno::PERM => ControlErrorKind::Denied,
            Errno::ADDRNOTAVAIL => ControlErrorKind::NotFound,
            _ => ControlErrorKind::Internal,
        };
        ControlError::new(
            kind,
            format!("cannot listen on {}: {errno}; name another address or port", port_name(addr, tls)),
        )
    };
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None).map_err(refused)?;
    sockopt::set_socket_reuseaddr(&socket, true).map_err(refused)?;
    let begun = Instant::now();
    loop {
        match bind(&socket, &addr) {
            Ok(()) => break,
            Err(Errno::ADDRINUSE) if begun.elapsed() < patience => std::thread::sleep(RETRY),
            Err(errno) => return Err(refused(errno)),
        }
    }
    listen(&socket, BACKLOG).map_err(refused)?;
    let bound: SocketAddr = getsockname(&socket).and_then(TryInto::try_into).map_err(refused)?;
    Ok(Bound::port(socket, port_name(bound, tls).into()))
}
