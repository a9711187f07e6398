//! Starting: devices, superblocks, logs, generation, catalog, one thread a core, shards, listeners.
//!
//! ```text
//! this thread                                   each reactor's thread
//! open and lock the devices (C4)
//! open the logs for the next generation, then make it durable (C3, C15)
//! start the threads ----------------------->    pin, ring, recover its shards
//! all have: go on    <-----------------------   recovered, or why not
//!                    ----------------------->   reactor 0: node, listens, turns until stopped
//! listeners          <-----------------------
//!                    ----------------------->   the others: node, turns until stopped
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use ringway_reactor::buf::BufPool;
use ringway_reactor::files::{OpenFile, Progress};
use ringway_reactor::io::{Io, IoError, ListenerId, Wait};
use ringway_reactor::mailbox::{Endpoint, Injector, Mesh};
use ringway_reactor::pin::{allowed_cores, check_cores, pin_current};
use ringway_reactor::turn::Reactor;
use ringway_reactor::uring::{UringConfig, UringIo};
use uuid::Uuid;

use super::assembly::{Damaged, Plan, Sources, Surrounds};
use super::buffers;
use super::config::{PoolSpec, TargetConfig};
use super::devices::Devices;
use super::error::StartError;
use super::exports::{Exports, ServeExport, Servers};
use super::fabric::{self, Rdma};
use super::grow::Grower;
use super::log::ProcessLog;
use super::log_place::{Logs, PoolLogs, open_logs};
use super::running::{Port, RunningTarget, Ways};
use super::shm::Entry;
use super::tls::server_config;
use super::unix::UnixSockets;
use crate::backend::service::{BackendThread, Surroundings};
use crate::catalog::CatalogRecord;
use crate::control::TargetInfo;
use crate::export::ExportKind;
use crate::ids::ShardId;
use crate::node::Node;
use crate::node::fetch::FetchPort;
use crate::node::message::Message;
use crate::node::owner::NewDevices;
use crate::pool::{self, OpenOptions, OpenPool};
use crate::shard::ShardConfig;
use crate::snapshot::sync::SyncPort;
use crate::transport::{NbdServer, VhostServer};

/// Messages of one reactor to another that fit its ring; more wait with the sender.
pub(super) const MAILBOX: usize = 256;
/// How long a port may still belong to the ring of a killed target (C4), nanoseconds, and how often to look.
const LISTEN_WAIT_NS: u64 = 3_000_000_000;
const LISTEN_RETRY_NS: u64 = 20_000_000;
const EADDRINUSE: i32 = 98;

/// Where a target listens.
#[derive(Clone, Debug, Default)]
pub(super) struct Listening {
    pub(super) tcp: Vec<SocketAddr>,
    pub(super) rdma: Vec<SocketAddr>,
}

/// What a thread needs to become a reactor.
struct Seat {
    index: usize,
    core: usize,
    config: Arc<TargetConfig>,
    plan: Arc<Plan>,
    files: Arc<[OpenFile]>,
    pools: Arc<[&'static BufPool]>,
    worker_cores: Vec<usize>,
    rdma: Arc<Rdma>,
    /// On reactor 0: who stores snapshots elsewhere.
    sync_port: Option<Box<dyn SyncPort>>,
    fetch_port: Option<Arc<dyn FetchPort>>,
    mail: Endpoint<Message>,
    logs: Logs,
    reports: Sender<Report>,
    go: Receiver<Damaged>,
}

/// What a reactor's thread says while it starts.
enum Report {
    Recovered(Damaged),
    Listening(Listening),
    Failed(StartError),
}

/// Starts a target. Returns when it serves.
pub fn start(config: TargetConfig, progress: &mut dyn FnMut(&Progress)) -> Result<RunningTarget, StartError> {
    check_cores(&config.cores)?;
    if config.cores.is_empty() {
        return Err(StartError::Invalid("a target needs a core to run on".to_owned()));
    }
    let sockets = UnixSockets::start()
        .map_err(|source| StartError::System { what: "cannot start the thread that accepts".to_owned(), source })?;
    let mut devices = open_devices(&config, progress)?;
    let (pool, PoolLogs { mut logs, paths: log_paths, .. }) = open_pool(&config, &devices)?;
    devices.keep(pool.superblocks.len());
    let reactors = config.cores.len();
    let plan = Arc::new(Plan::new(pool, surrounds(&config, &devices)));
    if let Some(files) = &config.tls {
        plan.nbd().set_tls(server_config(files).map_err(StartError::Invalid)?);
    }
    let config = Arc::new(config);
    let pools: Arc<[_]> = (0..reactors).map(|index| buffers::take(index, config.buffer_bytes)).collect();
    let rdma = Arc::new(Rdma::open(&config, &pools));
    let files: Arc<[OpenFile]> = devices.files.into();
    let mesh = Mesh::new(reactors, MAILBOX);
    let injectors: Vec<_> = mesh.iter().map(Endpoint::injector).collect();
    let injector = injectors[0].clone();
    let entry = Entry::open(&config, injector.clone())?;
    let free_cores: Vec<usize> = allowed_cores()?.into_iter().filter(|core| !config.cores.contains(core)).collect();
    let backend = start_backend(&config, &plan, &injectors, free_cores.clone())?;
    let (reports, reported) = channel();
    let (mut threads, mut gos) = (Vec::new(), Vec::new());
    for (index, mail) in mesh.into_iter().enumerate() {
        let (go, wait) = channel();
        gos.push(go);
        let mine: Vec<ShardId> = plan.shards_of(index).collect();
        let seat = Seat {
            index,
            core: config.cores[index],
            config: Arc::clone(&config),
            plan: Arc::clone(&plan),
            files: Arc::clone(&files),
            pools: Arc::clone(&pools),
            worker_cores: free_cores.clone(),
            rdma: Arc::clone(&rdma),
            sync_port: (index == 0).then(|| backend.sync_port()),
            fetch_port: Some(backend.fetch_port()),
            mail,
            logs: logs.extract_if(.., |(shard, _)| mine.contains(shard)).collect(),
            reports: reports.clone(),
            go: wait,
        };
        let thread = thread::Builder::new().name(format!("ringway-{index}")).spawn(move || seat.run());
        threads.push(thread.map_err(|source| StartError::System { what: "cannot start a thread".to_owned(), source })?);
    }
    drop(reports);
    let metrics = plan.metrics();
    match begin(&reported, &gos, reactors) {
        Ok(listeners) => {
            let port = Port::watched(injector.clone(), free_cores)
                .map_err(|source| StartError::System { what: "cannot start a thread".to_owned(), source })?;
            let nbd = Arc::new(NbdServer::new(plan.nbd(), injectors.clone()));
            let vhost: Arc<dyn ServeExport> =
                Arc::new(VhostServer::new(plan.vhost(), injectors, plan.registry(), plan.interests()));
            let nbd: Arc<dyn ServeExport> = nbd;
            let oldstyle = Arc::clone(&nbd);
            let servers = Servers::from([
                (ExportKind::VhostUser, vhost),
                (ExportKind::Nbd, nbd),
                (ExportKind::NbdOldstyle, oldstyle),
            ]);
            let volumes = config.volume_sockets.then(|| plan.vhost());
            let exports = Exports::start(plan.exports(), port, sockets.remote(), &config, servers, volumes);
            let held = (files, log_paths);
            let door = entry.map(|entry| entry.listen(&sockets.remote()));
            let control = backend.control_port(Arc::new(exports));
            let front = Arc::clone(plan.registry().front());
            let ways = Ways { front, control, sockets, backend, _door: door };
            Ok(RunningTarget::new(injector, ways, metrics, listeners, threads, held))
        }
        Err(error) => {
            // Those that wait see that nobody will tell them to go on.
            drop(gos);
            threads.into_iter().for_each(|thread| drop(thread.join()));
            Err(error)
        }
    }
}

/// Its thread is made before any is pinned, and kept off the reactors' cores where there are others.
fn start_backend(
    config: &TargetConfig,
    plan: &Plan,
    injectors: &[Injector<Message>],
    cores: Vec<usize>,
) -> Result<BackendThread, StartError> {
    let injector = &injectors[0];
    let (inside, reports) = (injector.clone(), injector.clone());
    let homes: Vec<(ShardId, Injector<Message>)> = (0..injectors.len())
        .flat_map(|reactor| plan.shards_of(reactor).map(move |shard| (shard, reactor)))
        .map(|(shard, reactor)| (shard, injectors[reactor].clone()))
        .collect();
    let fetched = move |shard, token, outcome| {
        let (_, home) = homes.iter().find(|(id, _)| *id == shard).expect("it has asked from there");
        home.send(Message::Fetched { shard, token, outcome });
    };
    let around = Surroundings {
        pool: plan.pool(),
        control: Arc::new(Port::new(injector.clone())),
        inside: Arc::new(move |call| inside.send(Message::Inside(Box::new(call)))),
        fetched: Arc::new(fetched),
        reports: Arc::new(move |report| reports.send(Message::Sync(report))),
        metrics: plan.metrics(),
        unix_s: super::unix_s,
        credentials: config.backend_credentials.clone(),
        cores,
    };
    BackendThread::start(around, plan.backend().cloned())
        .map_err(|source| StartError::System { what: "cannot start the backend's thread".to_owned(), source })
}

/// All have recovered, then all go on, then reactor 0 listens.
fn begin(reported: &Receiver<Report>, gos: &[Sender<Damaged>], reactors: usize) -> Result<Listening, StartError> {
    let gone = || StartError::Invalid("a reactor's thread has ended before it began; the log says why".to_owned());
    let mut damaged = Damaged::default();
    for _ in 0..reactors {
        match reported.recv().map_err(|_| gone())? {
            Report::Recovered(more) => damaged.extend(more),
            Report::Failed(error) => return Err(error),
            Report::Listening(_) => unreachable!("nobody was told to go on"),
        }
    }
    // Reactor 0 first: if it cannot listen, the others must not have begun.
    gos[0].send(damaged).map_err(|_| gone())?;
    let listeners = match reported.recv().map_err(|_| gone())? {
        Report::Listening(listeners) => listeners,
        Report::Failed(error) => return Err(error),
        Report::Recovered(_) => unreachable!("each recovers once"),
    };
    for go in &gos[1..] {
        go.send(Damaged::default()).map_err(|_| gone())?;
    }
    Ok(listeners)
}

pub(super) fn open_devices(config: &TargetConfig, progress: &mut dyn FnMut(&Progress)) -> Result<Devices, StartError> {
    if matches!(config.pool, PoolSpec::Memory(_) | PoolSpec::Null(_)) {
        let options = config.format.clone().unwrap_or_default();
        return Devices::format(&config.pool, &options, progress);
    }
    match (Devices::open(&config.pool, progress), &config.format) {
        (Err(StartError::NoPool(_)), Some(options)) => Devices::format(&config.pool, options, progress),
        (opened, _) => opened,
    }
}

/// Superblocks and catalog; and the logs, opened for the next generation before that is durable, so that a crash between the
/// two leaves logs that the next process still takes for the last one's.
pub(super) fn open_pool(config: &TargetConfig, devices: &Devices) -> Result<(OpenPool, PoolLogs), StartError> {
    let mut io = devices.setup_ring()?;
    let found = pool::inspect(&mut io).map_err(|error| devices.name_missing(&config.pool, error))?;
    let mut logs = open_logs(config, devices, &found)?;
    let options = OpenOptions { logs: logs.kept.take(), lost: logs.lost, ..OpenOptions::default() };
    let mut pool = pool::open(&mut io, &options)?;
    for notice in &pool.notices {
        tracing::warn!("{notice}");
    }
    if let Some(geometry) = devices.geometry(&pool.layout.geometry) {
        // The slabs that each shard was given at format were on the metadata's device.
        let given: Vec<_> = pool.catalog.slabs().map(|(slab, _)| slab).collect();
        for slab in given {
            pool.catalog.apply(&CatalogRecord::SlabOwned(slab, None)).expect("a slab can always be given up");
        }
        pool.layout.geometry = Arc::new(geometry);
    }
    Ok((pool, logs))
}

pub(super) fn surrounds(config: &TargetConfig, devices: &Devices) -> Surrounds {
    Surrounds {
        reactors: config.cores.len(),
        shard: ShardConfig {
            // What a null device has forgotten cannot be read again.
            map_cache_bytes: if devices.null_bytes.is_some() { usize::MAX } else { config.map_cache_bytes },
            commit_interval_ns: config.commit_interval.as_nanos() as u64,
            punch_holes: config.punch_holes,
        },
        target: TargetInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            listeners: Vec::new(),
            rdma_listeners: Vec::new(),
            cores: config.cores.clone(),
            connections: 0,
            insecure: config.insecure,
        },
        paths: devices.paths.clone(),
        files: devices.files.iter().map(OpenFile::info).collect(),
        lost_writes_notice_ns: config.lost_writes_notice.as_nanos() as u64,
        drain_timeout_ns: config.drain_timeout.as_nanos() as u64,
    }
}

/// A reactor that panics has lost the state that acknowledged data depends on: the process ends, as it would by a kill, and the
/// next one recovers.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

impl Seat {
    /// The thread. Whether its node ended in good order.
    fn run(self) -> bool {
        let _guard = AbortOnPanic;
        let (reports, pool) = (self.reports.clone(), self.pools[self.index]);
        let ended = self.serve();
        buffers::give_back(pool);
        match ended {
            Ok(clean) => clean,
            Err(error) => {
                // Nobody listens any more if another thread has failed before.
                let _ = reports.send(Report::Failed(error));
                false
            }
        }
    }

    fn serve(mut self) -> Result<bool, StartError> {
        pin_current(self.core)?;
        let mut io = UringIo::new(&UringConfig {
            worker_cores: self.worker_cores.clone(),
            ..UringConfig::new(self.pools.to_vec(), self.index)
        })?;
        for file in self.files.iter() {
            io.add_file(file)?;
        }
        io.enable();
        let mut logs = std::mem::take(&mut self.logs);
        let recovered = self.plan.recover(&mut io, self.index, |shard| {
            let at = logs.iter().position(|(of, _)| *of == shard).expect("a log for each of its shards");
            logs.swap_remove(at).1
        })?;
        let _ = self.reports.send(Report::Recovered(recovered.damaged()));
        let Ok(damaged) = self.go.recv() else { return Ok(false) };
        let first = (self.index == 0).then(|| {
            let (spec, injector) = (self.config.pool.clone(), self.mail.injector());
            let grower = Box::new(Grower::new(spec, injector, self.worker_cores.clone()));
            (sources(grower, self.sync_port.take()), damaged)
        });
        let (fetch_port, fabric) = (self.fetch_port.take(), self.rdma.fabric(self.index));
        let buffers = self.config.buffer_bytes;
        let mut node = self.plan.node(self.index, recovered, buffers, fetch_port, fabric, first);
        if self.index == 0 {
            let listeners = listen(&mut io, &self.config.listeners)?;
            let tcp: Vec<_> = listeners.iter().map(|&(_, addr)| addr).collect();
            for (id, addr) in listeners {
                node.transports().tcp.listen(&mut io, id, addr);
            }
            let rdma = fabric::listen(&mut node.transports().rdma, &self.config.rdma_listeners);
            node.owner().expect("the catalog lives here").set_listeners(tcp.clone(), rdma.clone());
            let _ = self.reports.send(Report::Listening(Listening { tcp, rdma }));
        }
        drop(self.reports);
        let mut reactor = Reactor::new(io, self.mail, node);
        reactor.set_polling_ns(self.config.polling.as_nanos() as u64);
        reactor.run(|node: &mut Node<ProcessLog>| node.is_stopped());
        let (mut node, io, mut mail) = reactor.into_parts();
        // Calls that came too late: dropped, they say that the target is gone.
        mail.receive_control(&mut Vec::new());
        let clean = node.owner().is_none_or(|owner| owner.is_closed());
        drop(node);
        drop(io);
        Ok(clean)
    }
}

pub(super) fn sources(new_devices: Box<dyn NewDevices>, sync_port: Option<Box<dyn SyncPort>>) -> Sources {
    Sources { unix_s: Box::new(super::unix_s), new_uuid: Box::new(Uuid::new_v4), new_devices, sync_port }
}

fn listen(io: &mut UringIo, addresses: &[SocketAddr]) -> Result<Vec<(ListenerId, SocketAddr)>, StartError> {
    addresses.iter().map(|&addr| listen_one(io, addr).map_err(|error| StartError::listen(addr, error))).collect()
}

/// A killed target's ring holds its ports a moment longer than its process lives.
fn listen_one(io: &mut UringIo, addr: SocketAddr) -> Result<(ListenerId, SocketAddr), IoError> {
    let give_up = io.now_precise().plus_ns(LISTEN_WAIT_NS);
    loop {
        match io.listen(addr) {
            Err(error) if error.errno == EADDRINUSE && io.now_precise() < give_up => {
                let mut nothing = Vec::new();
                io.poll(Wait::Until(io.now_precise().plus_ns(LISTEN_RETRY_NS)), &mut nothing);
                assert!(nothing.is_empty(), "nothing is in flight before the node runs");
            }
            outcome => return outcome,
        }
    }
}
