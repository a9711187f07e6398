//! The backend's thread: takes jobs and calls, and never keeps a reactor waiting.
//!
//! ```text
//! reactor 0 --SyncPort----> queue --+                            +--> store (tokio, on this thread)
//! front ends --Backend call-> queue +-> this thread's loop, tasks +
//!            <--replies, reports----+                            +--> node: reads, writes, control calls, by its queues
//! ```
//! Whoever sends to the queue does not wait. The runtime is made on a thread of its own, with an affinity of its own, so that no worker
//! of it inherits a reactor's core; deadlines are watched elsewhere (history H16), so a job that compresses delays none.

mod access;
mod calls;
mod clones;
mod collecting;
mod jobs;
mod restoring;
mod rewriting;
mod survey;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use rustix::thread::{CpuSet, sched_setaffinity};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

pub use access::InsidePort;

use super::api::{BackendInfo, BackendRequest, CollectInfo};
use super::remote::{Patience, Remote, SpeedLimit, Trouble};
use super::settings::BackendSettings;
use crate::control::{ControlCall, ControlError, ControlErrorKind, ControlPort, ControlRequest, Reply};
use crate::ids::{AttemptId, ShardId};
use crate::metrics::Metrics;
use crate::node::fetch::{FetchPort, FetchReplies};
use crate::shard::Fetch;
use crate::snapshot::sync::{NotedAttempt, SyncJob, SyncPort, SyncReports};
use access::PoolAccess;
use clones::{Clones, FetchCall};
use jobs::Jobs;
use restoring::Restores;

/// What the thread needs of its surroundings.
pub struct Surroundings {
    /// Whose snapshots these are.
    pub pool: Uuid,
    /// Takes control calls, without those about the backend coming back here.
    pub control: Arc<dyn ControlPort>,
    /// Takes requests.
    pub inside: InsidePort,
    /// Where what shards have wanted goes.
    pub fetched: FetchReplies,
    /// Where reports of jobs go.
    pub reports: SyncReports,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
    /// Seconds since 1970.
    pub unix_s: fn() -> u64,
    /// Credentials for a store, if they are in a file.
    pub credentials: Option<PathBuf>,
    /// Cores for the thread; none: wherever the system likes.
    pub cores: Vec<usize>,
}

/// Something to do.
enum Order {
    Start(SyncJob),
    GoOn(AttemptId),
    Committed(NotedAttempt),
    Cancel(AttemptId),
    /// There may be something to collect.
    Nudge,
    Call(BackendRequest, Reply),
    /// Something of a clone is wanted.
    Fetch(FetchCall),
    /// Clones may need something no more.
    LetGo,
    Stop,
}

/// The running thread. Dropped, it ends, and with it everything that it was doing.
pub struct BackendThread {
    orders: Orders,
    thread: Option<JoinHandle<()>>,
    set: Arc<AtomicBool>,
    fetched: FetchReplies,
}

/// What all tasks of the thread share.
struct Desk {
    around: Surroundings,
    access: PoolAccess,
    open: Mutex<Open>,
    /// What there is to collect, and when; see `collecting`.
    collect: watch::Sender<u64>,
    collected: Mutex<Option<CollectInfo>>,
    /// Trouble of everything that is not a job of its own.
    trouble: Arc<Trouble>,
    jobs: Jobs,
    restores: Restores,
    clones: Clones,
    /// Read by the coordinator of snapshots.
    set: Arc<AtomicBool>,
}

/// The backend as it is set, and opened if it could be.
struct Open {
    settings: Option<BackendSettings>,
    remote: Option<Remote>,
}

impl BackendThread {
    /// Starts it.
    pub fn start(around: Surroundings, settings: Option<BackendSettings>) -> io::Result<BackendThread> {
        let (orders, taken) = mpsc::unbounded_channel();
        let set = Arc::new(AtomicBool::new(settings.is_some()));
        let tell = Arc::clone(&set);
        let fetched = Arc::clone(&around.fetched);
        let thread = thread::Builder::new().name("ringway-backend".to_owned()).spawn(move || {
            let cores = around.cores.clone();
            keep_to(&cores);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(16).build();
            match runtime {
                Ok(runtime) => {
                    runtime.block_on(Desk::run(around, settings, tell, taken));
                    // What hangs in a dead network file system must not keep the target from stopping.
                    runtime.shutdown_background();
                }
                Err(error) => tracing::error!(%error, "the backend's thread cannot start: snapshots are not stored"),
            }
        })?;
        Ok(BackendThread { orders: Orders(orders), thread: Some(thread), set, fetched })
    }

    /// For the coordinator of snapshots.
    #[must_use]
    pub fn sync_port(&self) -> Box<dyn SyncPort> {
        Box::new(Storer { orders: self.orders.clone(), set: Arc::clone(&self.set) })
    }

    /// For the reactors.
    #[must_use]
    pub fn fetch_port(&self) -> Arc<dyn FetchPort> {
        Arc::new(Fetcher { orders: self.orders.clone(), replies: Arc::clone(&self.fetched) })
    }

    /// Stands before `next` and takes the calls about the backend.
    #[must_use]
    pub fn control_port(&self, next: Arc<dyn ControlPort>) -> Arc<dyn ControlPort> {
        Arc::new(CallPort { orders: self.orders.clone(), next })
    }

    /// Ends everything that it is doing. Jobs end without a report, calls with word that the target is stopping.
    pub fn stop(&mut self) {
        self.orders.give(Order::Stop);
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so; what it was doing is found by the next start.
            let _ = thread.join();
        }
    }
}

impl Drop for BackendThread {
    fn drop(&mut self) {
        self.stop();
    }
}

fn keep_to(cores: &[usize]) {
    if cores.is_empty() {
        return;
    }
    let mut set = CpuSet::new();
    cores.iter().for_each(|&core| set.set(core));
    if let Err(error) = sched_setaffinity(None, &set) {
        tracing::warn!(%error, ?cores, "the backend's thread stays on the reactors' cores");
    }
}

/// The queue of orders, as others see it.
#[derive(Clone)]
struct Orders(mpsc::UnboundedSender<Order>);

impl Orders {
    fn give(&self, order: Order) {
        // A thread that has ended answers nobody; a call that is dropped says so itself.
        let _ = self.0.send(order);
    }
}

/// Who stores snapshots, as their coordinator sees it.
struct Storer {
    orders: Orders,
    set: Arc<AtomicBool>,
}

impl SyncPort for Storer {
    fn is_set(&self) -> bool {
        self.set.load(Ordering::Relaxed)
    }

    fn start(&mut self, job: SyncJob) {
        self.orders.give(Order::Start(job));
    }

    fn go_on(&mut self, attempt: AttemptId) {
        self.orders.give(Order::GoOn(attempt));
    }

    fn committed(&mut self, attempt: &NotedAttempt) {
        self.orders.give(Order::Committed(attempt.clone()));
    }

    fn cancel(&mut self, attempt: AttemptId, _noted: Option<&NotedAttempt>) {
        // Which attempts are on record is asked of the catalog, after each listing.
        self.orders.give(Order::Cancel(attempt));
    }

    fn removed(&mut self, _origin: crate::ids::VolumeId, _manifest: &str) {
        self.orders.give(Order::Nudge);
    }

    fn let_go(&mut self) {
        self.orders.give(Order::LetGo);
    }
}

/// Who fetches, as reactors see it.
struct Fetcher {
    orders: Orders,
    replies: FetchReplies,
}

impl FetchPort for Fetcher {
    fn fetch(&self, shard: ShardId, fetch: Fetch) {
        self.orders.give(Order::Fetch(FetchCall::new(shard, fetch, Arc::clone(&self.replies))));
    }
}

struct CallPort {
    orders: Orders,
    next: Arc<dyn ControlPort>,
}

impl ControlPort for CallPort {
    fn control(&self, call: ControlCall) {
        let inner = matches!(&call.request, ControlRequest::Backend(request) if request.is_for_the_owner());
        match &call.request {
            ControlRequest::Backend(_) if !inner => {
                let (request, reply) = call.into_parts();
                let ControlRequest::Backend(request) = request else { unreachable!("it is about the backend") };
                if let Err(mpsc::error::SendError(Order::Call(_, reply))) =
                    self.orders.0.send(Order::Call(request, reply))
                {
                    reply(Err(ControlError::new(ControlErrorKind::Unavailable, "the target is stopping")));
                }
            }
            _ => self.next.control(call),
        }
    }
}

impl Desk {
    async fn run(
        around: Surroundings,
        settings: Option<BackendSettings>,
        set: Arc<AtomicBool>,
        mut orders: mpsc::UnboundedReceiver<Order>,
    ) {
        let access = PoolAccess::new(Arc::clone(&around.control), Arc::clone(&around.inside));
        let (collect, wanted) = watch::channel(0);
        let desk = Arc::new(Desk {
            around,
            access,
            open: Mutex::new(Open { settings, remote: None }),
            collect,
            collected: Mutex::new(None),
            trouble: Arc::default(),
            jobs: Jobs::default(),
            restores: Restores::default(),
            clones: Clones::default(),
            set,
        });
        tokio::spawn(Arc::clone(&desk).collect_for_ever(wanted));
        tokio::spawn(Arc::clone(&desk).release_for_ever());
        while let Some(order) = orders.recv().await {
            match order {
                Order::Start(job) => desk.start_job(job),
                Order::GoOn(attempt) => desk.jobs.go_on(attempt),
                Order::Committed(noted) => desk.committed(noted),
                Order::Cancel(attempt) => desk.cancel(attempt),
                Order::Nudge => desk.nudge(),
                Order::LetGo => desk.clones.let_go(),
                Order::Fetch(call) => drop(tokio::spawn(Arc::clone(&desk).fetch(call))),
                Order::Stop => break,
                Order::Call(request, reply) => {
                    let desk = Arc::clone(&desk);
                    tokio::spawn(async move { reply(desk.call(request).await) });
                }
            }
        }
    }

    /// The backend, open. Where it could not be opened before, it is tried again.
    fn remote(&self) -> Result<(Remote, BackendSettings), ControlError> {
        let mut open = self.open.lock();
        let Some(settings) = open.settings.clone() else {
            return Err(ControlError::new(
                ControlErrorKind::NotFound,
                "the pool has no backend; give it one: `ringway backend set file:///FOLDER` or s3://BUCKET/PREFIX",
            ));
        };
        if let Some(remote) = &open.remote {
            return Ok((remote.clone(), settings));
        }
        let remote = self.open_remote(&settings)?;
        settings.url.sweep(self.around.pool);
        open.remote = Some(remote.clone());
        Ok((remote, settings))
    }

    fn open_remote(&self, settings: &BackendSettings) -> Result<Remote, ControlError> {
        let objects = settings.url.open(self.around.credentials.as_deref());
        let objects = objects.map_err(|error| ControlError::new(ControlErrorKind::Unavailable, error.to_string()))?;
        Ok(Remote::new(objects, self.around.pool, Arc::new(SpeedLimit::new(settings.speed))))
    }

    /// Patience for what has no deadline of its own.
    fn patience(&self, settings: &BackendSettings) -> Patience {
        Patience { until: None, longest: Some(settings.patience()), trouble: Arc::clone(&self.trouble) }
    }

    fn info(&self) -> BackendInfo {
        let (settings, remote) = {
            let open = self.open.lock();
            (open.settings.clone(), open.remote.clone())
        };
        let unopened = settings.is_some().then(|| self.remote().err()).flatten().map(|error| error.message);
        let traffic = |of: fn(&super::remote::Traffic) -> u64| remote.as_ref().map_or(0, |remote| of(&remote.traffic));
        BackendInfo {
            settings,
            trouble: unopened.or_else(|| self.trouble.last()),
            syncs: self.jobs.info(),
            restores: self.restores.info(),
            clones: self.clones.info(),
            collected: self.collected.lock().clone(),
            sent: traffic(|traffic| traffic.sent.load(Ordering::Relaxed)),
            read: traffic(|traffic| traffic.read.load(Ordering::Relaxed)),
        }
    }
}
