//! The side of the thread that accepts: hands each client to the reactor with the fewest, and ends those of exports that are gone.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ringway_reactor::io::Socket;
use ringway_reactor::mailbox::Injector;

use super::{Arrived, Mail, NbdShared};
use crate::export::{Export, Place};
use crate::ids::ExportId;
use crate::node::message::Message;

/// Serves NBD exports.
pub struct NbdServer {
    shared: Arc<NbdShared>,
    injectors: Vec<Injector<Message>>,
}

impl NbdServer {
    /// `injectors` lead to the reactors, in order.
    #[must_use]
    pub fn new(shared: Arc<NbdShared>, injectors: Vec<Injector<Message>>) -> NbdServer {
        NbdServer { shared, injectors }
    }

    /// An export can be had from now on.
    pub fn open(&self, export: &Arc<Export>) {
        self.shared.opened(export);
    }

    /// A client has connected to the socket of this export, and of others that have the same. Never waits.
    pub fn connect(&self, export: &Export, socket: OwnedFd) {
        let (socket, peer) = match export.place() {
            Place::Path(path) => (socket, format!("nbd:{}", path.display())),
            Place::Tcp { .. } => {
                let stream = TcpStream::from(socket);
                let peer = stream.peer_addr().map_or_else(|_| "nbd:".to_owned(), |addr| format!("nbd:{addr}"));
                (stream.into(), peer)
            }
        };
        let reactor = self.shared.take_seat();
        let arrived = Arrived { socket: Socket::Os(socket), peer, listener: export.socket.clone() };
        self.injectors[reactor].send(Message::Nbd(Mail::Adopt(Box::new(arrived))));
    }

    /// The export is gone: its connections end.
    pub fn end(&self, export: ExportId) {
        self.shared.closed(export);
        for injector in &self.injectors {
            injector.send(Message::Nbd(Mail::End(export)));
        }
    }

    /// Connections that an export has now.
    #[must_use]
    pub fn connections(&self, export: ExportId) -> u32 {
        self.shared.connections(export)
    }
}
