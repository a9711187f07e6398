//! A target that serves.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use ringway_reactor::clock::monotonic;
use ringway_reactor::files::OpenFile;
use ringway_reactor::mailbox::Injector;
use ringway_shm_ring::door::Door;
use thiserror::Error;

use super::log_place::forget;
use super::start::Listening;
use super::unix::UnixSockets;
use crate::backend::service::BackendThread;
use crate::control::{ControlCall, ControlPort, ControlRequest};
use crate::controller::vendor::Front;
use crate::metrics::Metrics;
use crate::node::message::Message;
use crate::snapshot::deadline::Deadlines;
use crate::snapshot::promise::Promise;

/// A target that did not end in good order. Nothing that was promised is lost: the next start recovers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the target stopped without closing its pool in good order (the log says why); the next start recovers it")]
pub struct StopError;

/// A target that serves. Dropped without [`RunningTarget::join`], it goes on serving.
pub struct RunningTarget {
    injector: Injector<Message>,
    ways: Ways,
    metrics: Arc<Metrics>,
    listeners: Listening,
    threads: Vec<JoinHandle<bool>>,
    /// Holds the pool's lock until nobody else can mistake our logs for theirs.
    files: Arc<[OpenFile]>,
    log_paths: Vec<PathBuf>,
}

/// What serves callers and clients of this machine, beside the reactors.
pub(super) struct Ways {
    pub(super) control: Arc<dyn ControlPort>,
    /// Control that comes by admin commands.
    pub(super) front: Arc<Front>,
    pub(super) sockets: UnixSockets,
    pub(super) backend: BackendThread,
    /// Lives as long as the target.
    pub(super) _door: Option<Door>,
}

/// The way of control calls to reactor 0.
pub(super) struct Port {
    injector: Injector<Message>,
    /// Where somebody else watches over deadlines than the reactor itself.
    deadlines: Option<Deadlines>,
}

impl Port {
    /// Deadlines are looked at by the reactor's own turns.
    pub(super) fn new(injector: Injector<Message>) -> Port {
        Port { injector, deadlines: None }
    }

    /// Deadlines have a thread of their own, on `cores` where there are any.
    pub(super) fn watched(injector: Injector<Message>, cores: Vec<usize>) -> std::io::Result<Port> {
        let expired = injector.clone();
        let deadlines = Deadlines::start(cores, move || expired.send(Message::Expired))?;
        Ok(Port { injector, deadlines: Some(deadlines) })
    }
}

impl ControlPort for Port {
    fn control(&self, call: ControlCall) {
        match (&call.request, &self.deadlines) {
            (ControlRequest::SnapshotCreate(_), Some(deadlines)) => {
                let (ControlRequest::SnapshotCreate(create), reply) = call.into_parts() else {
                    unreachable!("just seen");
                };
                // The time runs from here on, whenever the reactor comes to it.
                let timeout = create.patience.timeout();
                let promise = Arc::new(Promise::new(create.full_names(), monotonic(), timeout, reply));
                if timeout.is_some() {
                    deadlines.watch(&promise);
                }
                self.injector.send(Message::Cut { create, promise });
            }
            _ => self.injector.send(Message::Control(call)),
        }
    }
}

impl RunningTarget {
    pub(super) fn new(
        injector: Injector<Message>,
        ways: Ways,
        metrics: Arc<Metrics>,
        listeners: Listening,
        threads: Vec<JoinHandle<bool>>,
        (files, log_paths): (Arc<[OpenFile]>, Vec<PathBuf>),
    ) -> Self {
        Self { injector, ways, metrics, listeners, threads, files, log_paths }
    }

    /// Where it listens; port 0 is resolved.
    #[must_use]
    pub fn listeners(&self) -> Vec<SocketAddr> {
        self.listeners.tcp.clone()
    }

    /// Where it listens for NVMe/RDMA; fewer than asked for where this machine has none.
    #[must_use]
    pub fn rdma_listeners(&self) -> Vec<SocketAddr> {
        self.listeners.rdma.clone()
    }

    /// Takes control calls.
    #[must_use]
    pub fn control(&self) -> Arc<dyn ControlPort> {
        Arc::clone(&self.ways.control)
    }

    /// Where to say who carries out control that comes by admin commands.
    #[must_use]
    pub fn front(&self) -> Arc<Front> {
        Arc::clone(&self.ways.front)
    }

    /// Its counters.
    #[must_use]
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Begins to stop: nothing new is taken, what is in flight is answered, everything is made durable. More than once does no harm.
    pub fn shutdown(&self) {
        self.ways.sockets.remote().close_all();
        self.injector.send(Message::Quiet);
    }

    /// Waits until it has stopped.
    pub fn join(mut self) -> Result<(), StopError> {
        // What it reads of the reactors they refuse by now.
        self.ways.backend.stop();
        // A reactor that panics ends the process, so every thread returns.
        let clean = self.threads.into_iter().all(|thread| thread.join().unwrap_or(false));
        if clean {
            forget(&self.log_paths);
        }
        drop(self.files);
        if clean { Ok(()) } else { Err(StopError) }
    }
}
