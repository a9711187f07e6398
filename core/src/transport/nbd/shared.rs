//! What the connections of all reactors share: which exports a socket has, who has which volume, and who is let in.
//!
//! A client tells nobody who it is: several connections to a volume may be one client's, or many clients'. What can be known is that
//! one is gone. A new connection to a volume is let in when every connection to it that its peer has left is gone with everything
//! that it had in flight: so nothing of a client that died lands after what its successor does (history C11). An exclusive
//! volume has one connection at a time.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ringway_reactor::io::Socket;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::negotiate::{Offer, Tls};
use super::wire::flag;
use crate::controller::registry::Registry;
use crate::directory::Directory;
use crate::export::{Export, ExportKind, is_secure};
use crate::ids::{AssociationId, ExportId, VolumeId};

/// See the module's description.
pub struct NbdShared {
    registry: Arc<Registry>,
    tls: OnceLock<Arc<rustls::ServerConfig>>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// By socket, in the order in which they were opened.
    listening: BTreeMap<PathBuf, Vec<Arc<Export>>>,
    /// Connections that were admitted and are not gone.
    live: BTreeMap<u64, Live>,
    /// By reactor, those that negotiate too.
    connections: Vec<usize>,
    last_number: u64,
}

struct Live {
    export: ExportId,
    volume: VolumeId,
    association: AssociationId,
    /// Our end of it once more, to see whether the other is still there.
    socket: Option<OwnedFd>,
    closing: bool,
}

/// Whether a client is let in.
pub(super) enum Admission {
    In(AssociationId),
    /// Others have to end first: ask again soon.
    Wait,
    Refused(String),
}

/// Our end of a socket, once more.
pub(super) fn second_end(socket: &Socket) -> Option<OwnedFd> {
    match socket {
        Socket::Os(fd) => fd.try_clone().ok(),
        Socket::Sim(_) => None,
    }
}

impl NbdShared {
    /// For so many reactors; nobody is connected.
    #[must_use]
    pub fn new(reactors: usize, registry: Arc<Registry>) -> Arc<NbdShared> {
        let inner =
            Inner { listening: BTreeMap::new(), live: BTreeMap::new(), connections: vec![0; reactors], last_number: 0 };
        Arc::new(NbdShared { registry, tls: OnceLock::new(), inner: Mutex::new(inner) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Each change is one insertion or removal: what a panic elsewhere has left is whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections can be encrypted from now on. Said once, before anybody connects.
    pub fn set_tls(&self, config: Arc<rustls::ServerConfig>) {
        assert!(self.tls.set(config).is_ok(), "certificates are read once");
    }

    /// How connections are encrypted, if they can be.
    pub(super) fn tls(&self) -> Option<&Arc<rustls::ServerConfig>> {
        self.tls.get()
    }

    /// What connections to a socket can be.
    pub(super) fn tls_of(&self, listener: &Path) -> Tls {
        match (&self.tls.get(), is_secure(listener)) {
            (_, true) => Tls::Required,
            (Some(_), false) => Tls::Offered,
            (None, false) => Tls::None,
        }
    }

    pub(super) fn opened(&self, export: &Arc<Export>) {
        self.inner().listening.entry(export.socket.clone()).or_default().push(Arc::clone(export));
    }

    pub(super) fn closed(&self, id: ExportId) {
        self.inner().listening.retain(|_, exports| {
            exports.retain(|export| export.id != id);
            !exports.is_empty()
        });
    }

    /// The exports of a socket.
    pub(super) fn exports(&self, listener: &Path) -> Vec<Arc<Export>> {
        self.inner().listening.get(listener).cloned().unwrap_or_default()
    }

    /// Whether clients of this socket are greeted in the old way.
    pub(super) fn is_oldstyle(&self, listener: &Path) -> bool {
        let inner = self.inner();
        let exports = inner.listening.get(listener);
        exports.is_some_and(|exports| exports.iter().any(|export| export.kind == ExportKind::NbdOldstyle))
    }

    /// What the clients of a socket are offered. The index is the export's place in [`NbdShared::exports`].
    pub(super) fn offers(&self, listener: &Path, directory: &Directory) -> Vec<Offer> {
        let exports = self.exports(listener).into_iter().enumerate();
        let offer = |(index, export): (usize, Arc<Export>)| {
            let record = directory.volume(export.volume)?;
            let read_only = export.read_only || directory.is_write_protected(record);
            let what = if record.is_snapshot() { "a snapshot" } else { "a volume" };
            let access = if read_only { ", read-only" } else { "" };
            Some(Offer {
                index,
                name: record.name.clone(),
                size: record.size,
                flags: flags(read_only, record.exclusive),
                description: format!("{what} of Ringway{access}"),
            })
        };
        exports.filter_map(offer).collect()
    }

    pub(super) fn next_number(&self) -> u64 {
        let mut inner = self.inner();
        inner.last_number += 1;
        inner.last_number
    }

    /// The reactor with the fewest connections, which has one more now.
    pub(super) fn take_seat(&self) -> usize {
        let mut inner = self.inner();
        let least = inner.connections.iter().enumerate().min_by_key(|&(_, &count)| count);
        let (reactor, _) = least.expect("a target has a reactor");
        inner.connections[reactor] += 1;
        reactor
    }

    /// A client that had been given a seat was not served.
    pub(super) fn never_served(&self, reactor: usize) {
        let count = &mut self.inner().connections[reactor];
        *count = count.saturating_sub(1);
    }

    /// Lets a connection in, or says why not.
    pub(super) fn admit(
        &self,
        number: u64,
        export: &Export,
        directory: &Directory,
        socket: Option<&OwnedFd>,
        who: &str,
    ) -> Admission {
        let mut inner = self.inner();
        let still = inner.listening.get(&export.socket).is_some_and(|all| all.iter().any(|one| one.id == export.id));
        let Some(record) = directory.volume(export.volume).filter(|_| still) else {
            return Admission::Refused("the export is gone".to_owned());
        };
        if inner.live.values().any(|live| live.volume == export.volume && live.is_left()) {
            return Admission::Wait;
        }
        match self.registry.attach_local(record, who) {
            Ok(association) => {
                let socket = socket.and_then(|socket| socket.try_clone().ok());
                let (export, volume) = (export.id, export.volume);
                inner.live.insert(number, Live { export, volume, association, socket, closing: false });
                Admission::In(association)
            }
            Err(why) => Admission::Refused(why),
        }
    }

    /// The connection is closed; what it had in flight may not have ended.
    pub(super) fn closing(&self, number: u64) {
        if let Some(live) = self.inner().live.get_mut(&number) {
            // This end of it would keep it open for the other side.
            live.socket = None;
            live.closing = true;
        }
    }

    /// Nothing of the connection is left.
    pub(super) fn gone(&self, number: u64, reactor: usize) {
        let mut inner = self.inner();
        let count = &mut inner.connections[reactor];
        *count = count.saturating_sub(1);
        let live = inner.live.remove(&number);
        drop(inner);
        if let Some(live) = live {
            self.registry.detach_local(live.association);
        }
    }

    /// Connections that an export has now.
    pub(super) fn connections(&self, export: ExportId) -> u32 {
        self.inner().live.values().filter(|live| live.export == export && !live.closing).count() as u32
    }
}

impl Live {
    /// Whether its peer has left it, or we have.
    fn is_left(&self) -> bool {
        let Some(socket) = &self.socket else { return self.closing };
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::RDHUP)];
        let polled = rustix::event::poll(&mut fds, Some(&now));
        polled.is_err() || fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
    }
}

/// Transmission flags of a volume. What one connection flushes includes what others have been answered: several connections are as
/// good as one, where a volume may have several.
fn flags(read_only: bool, exclusive: bool) -> u16 {
    let always = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_CACHE;
    let several = if exclusive { 0 } else { flag::CAN_MULTI_CONN };
    let access =
        if read_only { flag::READ_ONLY } else { flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO };
    always | several | access
}
