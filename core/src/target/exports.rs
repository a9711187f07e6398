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

use super::config::TargetConfig;
use super::running::Port;
use super::unix::{Bound, Remote, SocketAccess, SocketNumber, SocketType, bind, make_folder};
use crate::control::{ControlAnswer, ControlCall, ControlError, ControlErrorKind, ControlPort, ControlRequest, Reply};
use crate::export::{Export, ExportAdd, ExportInfo, ExportKind, ExportRecord, check_socket_path};
use crate::ids::ExportId;

/// The transport of one kind of export. Its functions are called on the thread that accepts and on reactor 0, and do not wait.
pub trait ServeExport: Send + Sync {
    /// A client has connected.
    fn connected(&self, export: &Arc<Export>, connection: OwnedFd);

    /// The export is gone: its connections end.
    fn removed(&self, export: ExportId);

    /// Clients connected now.
    fn connections(&self, export: ExportId) -> u32;
}

/// The transports, by kind.
pub type Servers = BTreeMap<ExportKind, Arc<dyn ServeExport>>;

/// See the module's description.
pub(super) struct Exports {
    shared: Arc<Shared>,
    port: Port,
}

struct Shared {
    runtime: PathBuf,
    access: SocketAccess,
    servers: Servers,
    remote: Remote,
    open: Mutex<BTreeMap<ExportId, Open>>,
}

/// An export of the catalog, and its socket or why it has none.
struct Open {
    export: Arc<Export>,
    socket: Result<SocketNumber, String>,
}

impl Exports {
    /// Opens what the catalog has.
    pub(super) fn start<'a>(
        records: impl Iterator<Item = &'a ExportRecord>,
        port: Port,
        remote: Remote,
        config: &TargetConfig,
        servers: Servers,
    ) -> Exports {
        // Clients are told the path and may be elsewhere.
        let runtime = std::path::absolute(&config.runtime).unwrap_or_else(|_| config.runtime.clone());
        let access = config.socket_access;
        let shared = Arc::new(Shared { runtime, access, servers, remote, open: Mutex::default() });
        for record in records {
            let export = Arc::new(record.below(&shared.runtime));
            match shared.bind(&export.socket, export.kind) {
                Ok(bound) => shared.accept(export, bound),
                Err(error) => {
                    tracing::error!(export = record.id.0, %error, "an export cannot be opened");
                    shared.open().insert(record.id, Open { export, socket: Err(error.message) });
                }
            }
        }
        Exports { shared, port }
    }

    fn add(&self, add: &ExportAdd, call: ControlCall) {
        let bound = match self.shared.prepare(add) {
            Ok(bound) => bound,
            Err(error) => return call.answer(Err(error)),
        };
        let (request, reply) = call.into_parts();
        let shared = Arc::clone(&self.shared);
        let reply = move |answer| match answer {
            Ok(ControlAnswer::Export(info)) => {
                let info: ExportInfo = info;
                let export = Arc::new(info.export(&shared.runtime));
                shared.accept(Arc::clone(&export), bound);
                reply(Ok(ControlAnswer::Export(ExportInfo { socket: export.socket.clone(), ..info })));
            }
            other => {
                shared.remote.discard(bound);
                reply(other);
            }
        };
        self.port.control(ControlCall::new(request, reply));
    }

    /// Passes the call on; `then` looks at its answer before it goes back.
    fn pass(&self, call: ControlCall, then: impl FnOnce(&Shared, &mut ControlAnswer) + Send + 'static) {
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
            ControlRequest::ExportAdd(add) => self.add(&add, call),
            ControlRequest::ExportRemove { id } => self.pass(call, move |shared, _| shared.close(id)),
            ControlRequest::ExportList => self.pass(call, |shared, answer| {
                if let ControlAnswer::Exports(exports) = answer {
                    exports.iter_mut().for_each(|export| shared.complete(export));
                }
            }),
            _ => self.port.control(call),
        }
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, BTreeMap<ExportId, Open>> {
        // What a panic elsewhere left is whole: each change is one insertion or removal.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The socket of an export that is to be made.
    fn prepare(&self, add: &ExportAdd) -> Result<Bound, ControlError> {
        add.check()?;
        let path = self.runtime.join(add.socket());
        if let Some(other) = self.open().values().find(|open| open.export.socket == path) {
            return Err(ControlError::new(
                ControlErrorKind::Exists,
                format!(
                    "export {} has its socket at {} already; remove it first, or name another socket",
                    other.export.id,
                    path.display()
                ),
            ));
        }
        self.bind(&path, add.kind)
    }

    fn bind(&self, path: &Path, kind: ExportKind) -> Result<Bound, ControlError> {
        check_socket_path(path)?;
        let folder = self.runtime.join(kind.folder());
        if path.starts_with(&folder) {
            make_folder(&folder)?;
        }
        bind(path, SocketType::STREAM, self.access)
    }

    /// Begins to accept for an export.
    fn accept(&self, export: Arc<Export>, bound: Bound) {
        let id = export.id;
        let server = self.servers.get(&export.kind).map(Arc::clone);
        let served = Arc::clone(&export);
        let number = self.remote.listen(
            bound,
            Box::new(move |connection| match &server {
                Some(server) => server.connected(&served, connection),
                None => tracing::warn!(export = id.0, "nobody serves exports of this kind: the client is sent away"),
            }),
        );
        self.open().insert(id, Open { export, socket: Ok(number) });
    }

    fn close(&self, id: ExportId) {
        let Some(open) = self.open().remove(&id) else { return };
        if let Ok(number) = open.socket {
            self.remote.close(number);
        }
        if let Some(server) = self.servers.get(&open.export.kind) {
            server.removed(id);
        }
    }

    /// Adds what the owner does not know.
    fn complete(&self, info: &mut ExportInfo) {
        info.socket = self.runtime.join(&info.socket);
        if let Some(Open { socket: Err(why), .. }) = self.open().get(&info.id) {
            info.fault = Some(why.clone());
        }
        info.connections = self.servers.get(&info.kind).map_or(0, |server| server.connections(info.id));
    }
}
