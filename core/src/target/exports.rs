//! Exports on the machine: opens their sockets, tells the transport of their kind who connects, closes them.
//!
//! ```text
//! add:    bind the socket -> the owner records it, durably -> accept -> answer     (refused or failed: the socket goes again)
//! remove: the owner records it -> close the socket, end its connections -> answer
//! start:  the catalog's exports are opened; one whose socket cannot be had is listed with the reason and tried again at the
//!         next start: a target with one bad path serves the rest
//! ```
//! It stands before the owner as a [`ControlPort`]; calls that are not about exports pass through.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::config::TargetConfig;
use super::nbd::bind_port;
use super::on_demand::OnDemand;
use super::running::Port;
use super::unix::{Bound, Remote, SocketAccess, SocketNumber, SocketType, bind, make_folder};
use crate::control::{ControlAnswer, ControlCall, ControlError, ControlErrorKind, ControlPort, ControlRequest, Reply};
use crate::export::{
    Export, ExportAdd, ExportInfo, ExportKind, ExportRecord, Place, check_socket_path, place, socket_below,
};
use crate::ids::ExportId;
use crate::transport::VhostShared;

/// The transport of one kind of export. Its functions are called on the thread that accepts and on reactor 0, and do not wait.
pub trait ServeExport: Send + Sync {
    /// Clients of the export may come from now on.
    fn opened(&self, _export: &Arc<Export>) {}

    /// A client has connected.
    fn connected(&self, export: &Arc<Export>, connection: OwnedFd);

    /// The export is gone: its connections end.
    fn removed(&self, export: ExportId);

    /// Clients connected now.
    fn connections(&self, export: ExportId) -> u32;
}

/// The transports, by kind.
pub type Servers = BTreeMap<ExportKind, Arc<dyn ServeExport>>;

/// How long a starting target waits for a port that a killed one may still have (history C4).
const PORT_PATIENCE: Duration = Duration::from_secs(3);

/// See the module's description.
pub(super) struct Exports {
    shared: Arc<Shared>,
    port: Port,
}

pub(super) struct Shared {
    pub(super) runtime: PathBuf,
    pub(super) access: SocketAccess,
    /// Clients from beyond loopback need no certificate of ours.
    insecure: bool,
    /// There is a certificate.
    has_tls: bool,
    servers: Servers,
    pub(super) remote: Remote,
    open: Mutex<BTreeMap<ExportId, Open>>,
    /// Where each volume has a socket of its own.
    pub(super) volumes: Option<Arc<VhostShared>>,
    on_demand: Mutex<OnDemand>,
}

/// An export of the catalog, and its socket or why it has none.
pub(super) struct Open {
    pub(super) export: Arc<Export>,
    socket: Result<SocketNumber, String>,
}

impl Open {
    /// Whether another export may have the same socket.
    fn is_shared_with(&self, add: &ExportAdd) -> bool {
        self.export.kind == add.kind && add.kind.shares_sockets()
    }
}

/// Where the clients of an export come from.
enum Listener {
    Fresh(Bound),
    /// Another export of the same kind has it already.
    Shared(SocketNumber),
}

impl Exports {
    /// Opens what the catalog has.
    pub(super) fn start<'a>(
        records: impl Iterator<Item = &'a ExportRecord>,
        port: Port,
        remote: Remote,
        config: &TargetConfig,
        servers: Servers,
        volumes: Option<Arc<VhostShared>>,
    ) -> Exports {
        // Clients are told the path and may be elsewhere.
        let runtime = std::path::absolute(&config.runtime).unwrap_or_else(|_| config.runtime.clone());
        let access = config.socket_access;
        let (open, on_demand) = (Mutex::default(), Mutex::default());
        let (insecure, has_tls) = (config.insecure, config.tls.is_some());
        let shared = Arc::new(Shared { runtime, access, insecure, has_tls, servers, remote, open, volumes, on_demand });
        for record in records {
            let export = Arc::new(record.below(&shared.runtime));
            match shared.bind(&export, PORT_PATIENCE) {
                Ok(bound) => shared.accept(export, bound),
                Err(error) => {
                    tracing::error!(export = record.id.0, %error, "an export cannot be opened");
                    shared.open().insert(record.id, Open { export, socket: Err(error.message) });
                }
            }
        }
        if let Some(volumes) = &shared.volumes {
            let follower = Arc::downgrade(&shared);
            volumes.set_listener(move || {
                if let Some(shared) = follower.upgrade() {
                    shared.follow();
                }
            });
            shared.follow();
            shared.wait_for_sockets();
        }
        Exports { shared, port }
    }

    fn add(&self, mut add: ExportAdd, call: ControlCall) {
        let bound = match self.shared.prepare(&add) {
            Ok(bound) => bound,
            Err(error) => {
                // What had to give way comes back.
                self.shared.follow();
                return call.answer(Err(error));
            }
        };
        let (_, reply) = call.into_parts();
        if let Listener::Fresh(bound) = &bound
            && add.socket.as_ref().is_some_and(|socket| socket.contains("://"))
        {
            // A port that was picked stays.
            add.socket = bound.path().to_str().map(str::to_owned);
        }
        let request = ControlRequest::ExportAdd(add);
        let shared = Arc::clone(&self.shared);
        let reply = move |answer| match answer {
            Ok(ControlAnswer::Export(info)) => {
                let info: ExportInfo = info;
                let export = Arc::new(info.export(&shared.runtime));
                shared.accept(Arc::clone(&export), bound);
                reply(Ok(ControlAnswer::Export(ExportInfo { socket: export.socket.clone(), ..info })));
            }
            other => {
                if let Listener::Fresh(bound) = bound {
                    shared.unclaim(bound.path());
                    shared.remote.discard(bound);
                }
                shared.follow();
                reply(other);
            }
        };
        self.port.control(ControlCall::new(request, reply));
    }

    /// Passes the call on; it is answered when the sockets of volumes are those of the volumes as they are then.
    fn pass_and_follow(&self, call: ControlCall) {
        let (request, reply): (ControlRequest, Reply) = call.into_parts();
        let shared = Arc::clone(&self.shared);
        let reply = move |answer: Result<ControlAnswer, ControlError>| {
            let remote = shared.remote.clone();
            remote.run(move || {
                shared.follow_volumes();
                reply(answer);
            });
        };
        self.port.control(ControlCall::new(request, reply));
    }

    /// Passes the call on; `then` looks at its answer before it goes back.
    fn pass(&self, call: ControlCall, then: impl FnOnce(&Arc<Shared>, &mut ControlAnswer) + Send + 'static) {
        let (request, reply): (ControlRequest, Reply) = call.into_parts();
        let shared = Arc::clone(&self.shared);
        let reply = move |mut answer: Result<ControlAnswer, ControlError>| {
            if let Ok(answer) = &mut answer {
                then(&shared, answer);
            }
            reply(answer);
        };
        self.port.control(ControlCall::new(request, reply));
    }
}

impl ControlPort for Exports {
    fn control(&self, call: ControlCall) {
        match call.request.clone() {
            ControlRequest::ExportAdd(add) => self.add(add, call),
            ControlRequest::ExportRemove { id } => self.pass(call, move |shared, _| shared.close(id)),
            ControlRequest::ExportList => self.pass(call, |shared, answer| {
                if let ControlAnswer::Exports(exports) = answer {
                    exports.iter_mut().for_each(|export| shared.complete(export));
                }
            }),
            ControlRequest::VolumeCreate(_)
            | ControlRequest::VolumeRename { .. }
            | ControlRequest::VolumeRemove { .. }
            | ControlRequest::VolumeSetHosts { .. }
                if self.shared.volumes.is_some() =>
            {
                self.pass_and_follow(call);
            }
            _ => self.port.control(call),
        }
    }
}

impl Shared {
    pub(super) fn open(&self) -> MutexGuard<'_, BTreeMap<ExportId, Open>> {
        // What a panic elsewhere left is whole: each change is one insertion or removal.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn on_demand(&self) -> MutexGuard<'_, OnDemand> {
        // As above.
        self.on_demand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the thread that accepts follow the volumes.
    fn follow(self: &Arc<Self>) {
        if self.volumes.is_some() {
            let shared = Arc::clone(self);
            self.remote.run(move || shared.follow_volumes());
        }
    }

    /// A volume's own socket gives way to an export. Whoever is attached through it stays so.
    fn claim(&self, path: &Path) {
        let mut on_demand = self.on_demand();
        on_demand.claimed.insert(path.to_owned());
        let Some(number) = on_demand.socket_at(path) else { return };
        on_demand.forget(path);
        drop(on_demand);
        self.remote.close(number);
        self.wait_for_sockets();
    }

    /// Until the thread that accepts has done what it was told.
    fn wait_for_sockets(&self) {
        let (done, wait) = std::sync::mpsc::channel();
        self.remote.run(move || {
            // Somebody waits, below.
            let _ = done.send(());
        });
        // An error: that thread has ended, and with it every socket.
        let _ = wait.recv();
    }

    fn unclaim(&self, path: &Path) {
        self.on_demand().claimed.remove(path);
    }

    /// The socket of an export that is to be made.
    fn prepare(&self, add: &ExportAdd) -> Result<Listener, ControlError> {
        add.check()?;
        let path = socket_below(&self.runtime, Path::new(&add.socket()));
        if let Some(other) = self.open().values().find(|open| open.export.socket == path && !open.is_shared_with(add)) {
            return Err(ControlError::new(
                ControlErrorKind::Exists,
                format!(
                    "export {} has its socket at {} already; remove it first, or name another socket",
                    other.export.id,
                    path.display()
                ),
            ));
        }
        self.claim(&path);
        self.bind_at(&path, add.kind, Duration::ZERO).inspect_err(|_| self.unclaim(&path))
    }

    fn bind(&self, export: &Export, patience: Duration) -> Result<Listener, ControlError> {
        self.bind_at(&export.socket, export.kind, patience)
    }

    fn bind_at(&self, path: &Path, kind: ExportKind, patience: Duration) -> Result<Listener, ControlError> {
        let here = |open: &Open| open.export.socket == path && kind.shares_sockets() && open.export.kind == kind;
        if let Some(number) = self.open().values().filter(|open| here(open)).find_map(|open| open.socket.clone().ok()) {
            return Ok(Listener::Shared(number));
        }
        if let Place::Tcp { addr, tls } = place(path) {
            self.check_port(addr, tls)?;
            return bind_port(addr, tls, patience).map(Listener::Fresh);
        }
        check_socket_path(path)?;
        let folder = self.runtime.join(kind.folder());
        if path.starts_with(&folder) {
            make_folder(&folder)?;
        }
        bind(path, SocketType::STREAM, self.access).map(Listener::Fresh)
    }

    /// Whether a port may be opened: nobody beyond this machine gets in unless he is to, or the line is closed to others.
    fn check_port(&self, addr: std::net::SocketAddr, tls: bool) -> Result<(), ControlError> {
        if tls && !self.has_tls {
            return Err(ControlError::new(
                ControlErrorKind::Denied,
                format!("tls://{addr} needs a certificate; start the target with --tls-cert and --tls-key"),
            ));
        }
        if !tls && !self.insecure && !addr.ip().is_loopback() {
            return Err(ControlError::new(
                ControlErrorKind::Denied,
                format!(
                    "tcp://{addr} can be reached from other machines, and whoever reaches it may read and write; use \
                     tls://{addr}, or start the target with --insecure"
                ),
            ));
        }
        Ok(())
    }

    /// Begins to accept for an export.
    fn accept(&self, export: Arc<Export>, listener: Listener) {
        if let Some(server) = self.servers.get(&export.kind) {
            server.opened(&export);
        }
        let number = match listener {
            Listener::Fresh(bound) => self.listen(&export, bound),
            Listener::Shared(number) => number,
        };
        let (id, socket) = (export.id, export.socket.clone());
        self.open().insert(id, Open { export, socket: Ok(number) });
        self.unclaim(&socket);
    }

    /// Clients of the socket go to the transport.
    pub(super) fn listen(&self, export: &Arc<Export>, bound: Bound) -> SocketNumber {
        let server = self.servers.get(&export.kind).map(Arc::clone);
        let served = Arc::clone(export);
        self.remote.listen(
            bound,
            Box::new(move |connection| match &server {
                Some(server) => server.connected(&served, connection),
                None => {
                    tracing::warn!(export = served.id.0, "nobody serves exports of this kind: the client is sent away");
                }
            }),
        )
    }

    /// The connections of an export end.
    pub(super) fn end(&self, export: &Export) {
        if let Some(server) = self.servers.get(&export.kind) {
            server.removed(export.id);
        }
    }

    fn close(self: &Arc<Self>, id: ExportId) {
        let Some(open) = self.open().remove(&id) else { return };
        if let Ok(number) = open.socket
            && !self.open().values().any(|other| other.socket == Ok(number))
        {
            self.remote.close(number);
        }
        self.end(&open.export);
        self.follow();
    }

    /// Adds what the owner does not know.
    fn complete(&self, info: &mut ExportInfo) {
        info.socket = socket_below(&self.runtime, &info.socket);
        if let Some(Open { socket: Err(why), .. }) = self.open().get(&info.id) {
            info.fault = Some(why.clone());
        }
        info.connections = self.servers.get(&info.kind).map_or(0, |server| server.connections(info.id));
    }
}
