//! What a target is started with, and what a pool is formatted with.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use ringway_reactor::files::Allocation;

use super::tls::TlsFiles;
use super::unix::SocketAccess;
use crate::backend::settings::BackendSettings;

/// Where a pool lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolSpec {
    /// A directory with one or more pool files, or one block device: which of them is seen when it is opened.
    Path(PathBuf),
    /// Several block devices, in the order in which they were formatted.
    Devices(Vec<PathBuf>),
    /// So many bytes of memory of this process, gone with it.
    Memory(u64),
    /// So many bytes that forget what is written and read as zeros.
    Null(u64),
}

impl fmt::Display for PoolSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PoolSpec::Path(path) => write!(f, "{}", path.display()),
            PoolSpec::Devices(paths) => {
                let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
                f.write_str(&names.join(","))
            }
            PoolSpec::Memory(bytes) => write!(f, "mem:{bytes}"),
            PoolSpec::Null(bytes) => write!(f, "null:{bytes}"),
        }
    }
}

/// How a pool is made. What is not given is chosen to suit its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatOptions {
    /// Bytes of the pool file; a block device is taken whole, memory has its size in its name.
    pub size: Option<u64>,
    /// How the space of the file is obtained.
    pub allocation: Allocation,
    /// Shards: the most reactors that the pool can ever keep busy.
    pub shards: Option<u16>,
    /// Bytes of a slab, a power of two.
    pub slab_bytes: Option<u64>,
    /// Bytes of each shard's journal.
    pub journal_bytes: Option<u64>,
    /// The devices keep 4 KiB whole over power loss, whatever they say.
    pub assume_atomic_4k: bool,
    /// Whether a pool, or something else, that is there already is overwritten.
    pub force: bool,
    /// Where snapshots will be stored, if not in the pool alone.
    pub backend: Option<BackendSettings>,
}

impl Default for FormatOptions {
    fn default() -> Self {
        Self {
            size: None,
            allocation: Allocation::Written,
            shards: None,
            slab_bytes: None,
            journal_bytes: None,
            assume_atomic_4k: false,
            force: false,
            backend: None,
        }
    }
}

/// What a target is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetConfig {
    /// The pool to serve.
    pub pool: PoolSpec,
    /// Formats the pool so where nothing is there yet. Memory and null pools are always formatted, by default options if none are
    /// given.
    pub format: Option<FormatOptions>,
    /// One reactor on each of these cores.
    pub cores: Vec<usize>,
    /// Where to listen for NVMe/TCP; port 0 picks one.
    pub listeners: Vec<SocketAddr>,
    /// Where to listen for NVMe/RDMA, if this machine has it.
    pub rdma_listeners: Vec<SocketAddr>,
    /// Hosts from beyond loopback may attach to volumes without a list of hosts.
    pub insecure: bool,
    /// Where sockets live, and the log that survives the process where this machine has no better place for it.
    pub runtime: PathBuf,
    /// Who may connect to the sockets of exports and of the native ring.
    pub socket_access: SocketAccess,
    /// The folder of the log that survives the process but not the machine; `None` is /dev/shm. A process that died has left it
    /// where the pool's catalog says, whatever this says now.
    pub crash_log: Option<PathBuf>,
    /// Credentials for the pool's backend, if they are in a file and not in the environment.
    pub backend_credentials: Option<PathBuf>,
    /// The target's certificate, where connections are to be encrypted.
    pub tls: Option<TlsFiles>,
    /// Serve programs of this machine over shared memory, by [`super::shm::SOCKET`] in the runtime folder.
    pub shm: bool,
    /// Give each volume a socket of its own for a virtual machine, below the runtime folder.
    pub volume_sockets: bool,
    /// Bytes of registered buffers of each reactor.
    pub buffer_bytes: usize,
    /// Bytes of decoded map in memory, all shards together.
    pub map_cache_bytes: usize,
    /// A map change is durable at the latest this long after it was made.
    pub commit_interval: Duration,
    /// After the machine failed under attached volumes, fail the flushes of each host for this long from its first on, so that it learns
    /// that writes it believes in may be gone (history C3). Zero: it is not told.
    pub lost_writes_notice: Duration,
    /// Give freed space back to the file system or device below.
    pub punch_holes: bool,
    /// How long a reactor polls after the last work before it sleeps.
    pub polling: Duration,
    /// How long a stopping target waits for hosts to take their last answers.
    pub drain_timeout: Duration,
}

impl TargetConfig {
    /// Defaults for everything but the pool, on these cores.
    #[must_use]
    pub fn new(pool: PoolSpec, cores: Vec<usize>) -> Self {
        Self {
            pool,
            format: None,
            cores,
            listeners: Vec::new(),
            rdma_listeners: Vec::new(),
            insecure: false,
            runtime: std::env::temp_dir(),
            socket_access: SocketAccess::default(),
            crash_log: None,
            backend_credentials: None,
            tls: None,
            shm: false,
            volume_sockets: false,
            buffer_bytes: 64 << 20,
            map_cache_bytes: 256 << 20,
            commit_interval: Duration::from_millis(500),
            lost_writes_notice: Duration::from_secs(1),
            punch_holes: true,
            polling: Duration::from_nanos(ringway_reactor::turn::POLLING_NS_DEFAULT),
            drain_timeout: Duration::from_secs(10),
        }
    }
}
