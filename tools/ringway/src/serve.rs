//! `ringway serve`: checks everything, starts the engine, serves the control socket, waits for a signal, drains.
//!
//! Threads: the reactors belong to the engine and pin themselves. The control thread (HTTP, signals) is kept off their
//! cores where there are others. The main thread starts and stops the engine and otherwise sleeps.

use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use ringway_client::control::Token;
use ringway_core::backend::api::{BackendAnswer, BackendRequest, BackendSet};
use ringway_core::backend::settings::BackendSettings;
use ringway_core::control::{ControlAnswer, ControlCall, ControlPort, ControlRequest};
use ringway_core::controller::vendor::Front;
use ringway_core::metrics::Metrics;
use ringway_core::target::unix::SocketAccess;
use ringway_core::target::{TlsFiles, server_config};
use ringway_core::wire::log_page::TransportType;
use ringway_reactor::pin::{allowed_cores, check_cores, parse_core_list};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::api::{Node, routes};
use crate::cli::ServeArgs;
use crate::config::Settings;
use crate::endpoint::{ControlListen, Listen, PoolPlace};
use crate::failure::Failure;
use crate::front::HttpFront;
use crate::logging::LogFilter;
use crate::output::write_line;
use crate::remote::Remote;
use crate::runtime::{ControlSocket, control_socket, folder, prepare_folder};
use crate::size::Size;

/// Reactors where nothing is said: more would take a large machine's memory and cores without being asked.
const REACTORS_DEFAULT_MAX: usize = 8;

/// Settings made definite and checked, nothing touched yet.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) pool: PoolPlace,
    /// For a pool that is formatted on first use.
    pub(crate) pool_size: Option<Size>,
    pub(crate) cores: Vec<usize>,
    pub(crate) listeners: Vec<Listen>,
    pub(crate) insecure: bool,
    pub(crate) buffers: Option<Size>,
    pub(crate) map_cache: Option<Size>,
    pub(crate) polling: Option<Duration>,
    pub(crate) lost_writes_notice: Option<Duration>,
    pub(crate) runtime: PathBuf,
    pub(crate) socket_access: SocketAccess,
    pub(crate) crash_log: Option<PathBuf>,
    pub(crate) backend_credentials: Option<PathBuf>,
    remote: Option<(Vec<ControlListen>, TlsFiles, PathBuf)>,
    control_hosts: Vec<String>,
    /// Where snapshots are to be stored, if something is said; `Some(None)`: in the pool alone.
    pub(crate) backend: Option<Option<BackendSettings>>,
    pub(crate) tls: Option<TlsFiles>,
    control: PathBuf,
    control_access: SocketAccess,
}

impl Plan {
    pub(crate) fn of(settings: &Settings) -> Result<Plan, Failure> {
        Ok(Plan {
            pool: settings.pool(),
            pool_size: settings.pool_size,
            cores: cores(settings.cores.as_deref())?,
            listeners: settings.listeners(),
            insecure: settings.insecure.unwrap_or(false),
            buffers: settings.buffers,
            map_cache: settings.map_cache,
            polling: settings.polling_us.map(Duration::from_micros),
            lost_writes_notice: settings.lost_writes_notice_ms.map(Duration::from_millis),
            runtime: folder(settings.runtime.as_deref()),
            crash_log: settings.crash_log.clone(),
            backend_credentials: settings.backend_credentials.clone(),
            remote: settings.remote_control()?,
            control_hosts: settings.control_hosts()?,
            backend: settings.backend.as_deref().map(crate::backend::settings).transpose()?,
            tls: settings.tls()?,
            control: control_socket(settings.control.as_deref(), settings.runtime.as_deref()),
            socket_access: settings.socket_access()?,
            control_access: settings.control_access()?,
        })
    }
}

/// The cores of `list`, or those that a target takes if it is not told.
pub(crate) fn cores(list: Option<&str>) -> Result<Vec<usize>, Failure> {
    let denied = |error: &dyn std::fmt::Display| {
        Failure::new(ringway_core::control::ControlErrorKind::Denied, error.to_string())
    };
    let Some(list) = list else {
        let mut cores = allowed_cores().map_err(|error| denied(&error))?;
        cores.truncate(REACTORS_DEFAULT_MAX);
        return Ok(cores);
    };
    let cores = parse_core_list(list).map_err(|error| Failure::usage(error.to_string()))?;
    check_cores(&cores).map_err(|error| denied(&error))?;
    Ok(cores)
}

/// A started engine: reactors run, the pool is recovered, listeners answer.
pub(crate) trait Engine {
    /// Takes control calls.
    fn port(&self) -> Arc<dyn ControlPort>;
    /// Where to say who carries out control that comes by admin commands.
    fn front(&self) -> Arc<Front>;
    /// Its counters.
    fn metrics(&self) -> Arc<Metrics>;
    /// Where it listens; port 0 is resolved.
    fn listeners(&self) -> Vec<(TransportType, SocketAddr)>;
    /// Finishes what is in flight, makes everything durable and stops.
    fn stop(self: Box<Self>) -> Result<(), Failure>;
}

/// Printed when the target is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub(crate) struct Ready {
    pub(crate) ready: bool,
    pub(crate) pid: u32,
    /// As `--listen` takes them.
    pub(crate) listeners: Vec<String>,
    pub(crate) control: PathBuf,
    /// Where other machines may control it, as `--control` takes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) control_listeners: Vec<String>,
    pub(crate) pool: PoolPlace,
    pub(crate) cores: Vec<usize>,
}

/// Serves until a signal; `start` makes the engine.
pub(crate) fn run(
    args: ServeArgs,
    start: impl FnOnce(&Plan) -> Result<Box<dyn Engine>, Failure>,
) -> Result<(), Failure> {
    if args.die_with_parent {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .map_err(|errno| Failure::internal(format!("cannot watch the parent process: {errno}")))?;
    }
    let reread = move || -> Result<Settings, Failure> {
        let file = args.config.as_deref().map(Settings::read).transpose()?.unwrap_or_default();
        Ok(file.overridden_by(args.settings.clone()))
    };
    let settings = reread()?;
    let plan = Plan::of(&settings)?;
    let log = LogFilter::start(settings.log.as_deref())?;
    prepare_folder(&plan.runtime)?;
    let mut socket = ControlSocket::bind(&plan.control, plan.control_access)?;
    let remote = bind_remote(&plan)?;
    let engine = start(&plan)?;
    if let Some(wanted) = &plan.backend
        && let Err(failure) = use_backend(&*engine.port(), wanted.as_ref())
    {
        return stop_after(engine, Err(failure));
    }
    let ready = Ready {
        ready: true,
        pid: std::process::id(),
        listeners: engine.listeners().iter().map(|(transport, addr)| format!("{transport}://{addr}")).collect(),
        control: socket.path.clone(),
        control_listeners: remote.as_ref().map_or(Vec::new(), Remote::addresses),
        pool: plan.pool.clone(),
        cores: plan.cores.clone(),
    };
    let (stop, stopped) = mpsc::channel();
    let control = ControlThread {
        node: Node { port: engine.port(), metrics: engine.metrics() },
        listener: socket.take_listener(),
        remote,
        front: (engine.front(), plan.control_hosts),
        reactor_cores: plan.cores,
        ready,
        reload: Box::new(move || reload(&reread, &settings, &log)),
        stop,
    };
    let thread = thread::Builder::new()
        .name("ringway-control".into())
        .spawn(move || control.run())
        .map_err(|error| Failure::internal(format!("cannot start the control thread: {error}")))?;
    let reason = match stopped.recv() {
        Ok(reason) => reason,
        // It ended without having been told to: its error is the reason to stop.
        Err(_) => return stop_after(engine, thread.join().expect("the control thread does not panic")),
    };
    tracing::info!(reason, "draining");
    engine.stop()?;
    tracing::info!("stopped");
    Ok(())
}

/// Certificates, token and ports are looked at before the pool is touched.
fn bind_remote(plan: &Plan) -> Result<Option<Remote>, Failure> {
    let Some((listen, tls, token)) = &plan.remote else { return Ok(None) };
    let tls = server_config(tls).map_err(Failure::usage)?;
    Remote::bind(listen, tls, Token::read(token)?).map(Some)
}

/// Sees to it that the pool's record names this backend. One that it names already is not looked at: the target serves without it.
fn use_backend(port: &dyn ControlPort, wanted: Option<&BackendSettings>) -> Result<(), Failure> {
    let recorded = match call(port, BackendRequest::Show)? {
        ControlAnswer::Backend(BackendAnswer::Info(info)) => info.settings,
        other => return Err(Failure::internal(format!("the target answered {other:?}"))),
    };
    let place = |settings: Option<&BackendSettings>| settings.map(|settings| settings.url.clone());
    if place(recorded.as_ref()) == place(wanted) {
        return Ok(());
    }
    call(port, BackendRequest::Set(BackendSet { settings: wanted.cloned(), force: false })).map(drop)
}

fn call(port: &dyn ControlPort, request: BackendRequest) -> Result<ControlAnswer, Failure> {
    let (tell, told) = mpsc::channel();
    port.control(ControlCall::new(ControlRequest::Backend(request), move |answer| drop(tell.send(answer))));
    let answer = told.recv().map_err(|_| Failure::internal("the target did not answer".to_owned()))?;
    answer.map_err(|error| Failure::new(error.kind, error.message))
}

fn stop_after(engine: Box<dyn Engine>, outcome: Result<(), Failure>) -> Result<(), Failure> {
    engine.stop()?;
    outcome
}

/// Rereads the configuration file; what needs a restart is said and left alone.
fn reload(reread: &dyn Fn() -> Result<Settings, Failure>, running: &Settings, log: &LogFilter) {
    // A parser's message has several lines, a log entry one.
    let refused = |failure: &Failure| {
        let why = failure.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        tracing::error!(why, "the configuration was not reread");
    };
    let settings = match reread() {
        Ok(settings) => settings,
        Err(failure) => return refused(&failure),
    };
    if let Err(failure) = log.change(settings.log.as_deref()) {
        return refused(&failure);
    }
    let rest = Settings { log: running.log.clone(), ..settings.clone() };
    if rest == *running {
        tracing::info!(log = settings.log.as_deref(), "reread the configuration");
    } else {
        tracing::warn!(log = settings.log.as_deref(), "reread the log filter; other changes need a restart");
    }
}

struct ControlThread {
    node: Node,
    listener: UnixListener,
    remote: Option<Remote>,
    front: (Arc<Front>, Vec<String>),
    reactor_cores: Vec<usize>,
    ready: Ready,
    reload: Box<dyn Fn() + Send>,
    stop: mpsc::Sender<&'static str>,
}

impl ControlThread {
    fn run(self) -> Result<(), Failure> {
        leave_cores(&self.reactor_cores);
        let failed = |error: std::io::Error| Failure::internal(format!("the control thread failed: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        runtime.block_on(self.serve()).map_err(failed)
    }

    async fn serve(self) -> std::io::Result<()> {
        let mut signals = Signals::install()?;
        self.listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(self.listener)?;
        let routes = routes(self.node);
        let (front, hosts) = self.front;
        if !hosts.is_empty() {
            front.set(hosts, Arc::new(HttpFront::new(routes.clone())));
        }
        if let Some(remote) = self.remote {
            remote.serve(&routes)?;
        }
        let server = tokio::spawn(async move { axum::serve(listener, routes).await });
        // Only now: who reads this line may connect at once.
        write_line(&serde_json::to_string(&self.ready).expect("addresses are serialisable"));
        let reason = loop {
            match signals.next().await {
                Received::Reload => (self.reload)(),
                Received::Stop(reason) => break reason,
            }
        };
        // The socket answers while the engine drains; the process ends when that is done.
        let _ = self.stop.send(reason);
        loop {
            if let Received::Stop(reason) = signals.next().await {
                stop_at_once(reason);
            }
            if server.is_finished() {
                return Ok(());
            }
        }
    }
}

enum Received {
    Reload,
    Stop(&'static str),
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn install() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Received {
        tokio::select! {
            _ = self.terminate.recv() => Received::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Received::Stop("SIGINT"),
            _ = self.hang_up.recv() => Received::Reload,
        }
    }
}

/// A second signal while draining: no worse than a kill, which the engine survives.
#[expect(clippy::exit, reason = "whoever asks twice does not want to wait for the drain")]
fn stop_at_once(reason: &'static str) -> ! {
    tracing::warn!(reason, "stopping at once; what was acknowledged is recovered at the next start");
    std::process::exit(1);
}

/// Moves this thread to cores without a reactor, if there are such.
fn leave_cores(reactor_cores: &[usize]) {
    let Ok(allowed) = allowed_cores() else { return };
    let others: Vec<usize> = allowed.into_iter().filter(|core| !reactor_cores.contains(core)).collect();
    if others.is_empty() {
        return;
    }
    let mut set = CpuSet::new();
    others.iter().for_each(|&core| set.set(core));
    if let Err(error) = sched_setaffinity(None, &set) {
        tracing::warn!(%error, ?others, "the control thread stays on the reactors' cores");
    }
}

#[cfg(test)]
mod tests {
    use ringway_core::target::PoolSpec;

    use super::*;

    #[test]
    fn cores_that_do_not_exist_are_named() {
        let failure = Plan::of(&Settings { cores: Some("4000".into()), ..Settings::default() }).unwrap_err();
        assert!(failure.message.contains("4000"), "{failure}");
        let failure = Plan::of(&Settings { cores: Some("0-".into()), ..Settings::default() }).unwrap_err();
        assert_eq!(failure.exit_code(), 2);
    }

    #[test]
    fn without_settings_a_pool_in_this_folder_is_served_on_loopback() {
        let plan = Plan::of(&Settings::default()).unwrap();
        assert_eq!(plan.pool, PoolPlace(PoolSpec::Path("ringway-data".into())));
        assert!(plan.listeners.iter().all(|listen| listen.addr.ip().is_loopback()));
        assert!(!plan.insecure && !plan.cores.is_empty());
    }
}
