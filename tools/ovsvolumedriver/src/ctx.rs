//! Contexts: `ovs_ctx_new`, `ovs_ctx_init`, `ovs_ctx_destroy`.

use std::collections::BTreeSet;
use std::ffi::{c_char, c_int};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use ringway_client::control::Caller;
use ringway_client::{Engine, Host, Options, Refusal, Request, Way, control_socket, discover, errno, runtime_folder};
use ringway_core::host::HostConfig;
use ringway_core::limits::VOLUME_NAME_MAX;
use ringway_core::snapshot::name::split_name;
use uuid::Uuid;

use crate::attr::{OvsContextAttr, Place, copy, text};
use crate::errors::{invalid, patiently, pointer, status};
use crate::live::{self, Kind};
use crate::operation::Ending;

/// With high availability, how long a target may be away.
const OUTAGE_MAX: Duration = Duration::from_secs(600);
/// Bytes of shared memory that `ovs_allocate` gives out, and through which other buffers are copied.
const SEGMENT_BYTES: u64 = 64 << 20;
/// Bytes of buffers for large requests over a network.
const NETWORK_BYTES: u64 = 8 << 20;
/// Bytes of a request for which there are as many buffers as requests in flight.
const SMALL_BYTES: u64 = 16 << 10;

/// How a volume was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Read,
    Write,
    ReadWrite,
}

/// A context with its volume.
pub(crate) struct Open {
    pub(crate) engine: Engine<Ending>,
    pub(crate) volume: String,
    pub(crate) mode: Mode,
}

/// `ovs_ctx_t`.
pub struct OvsCtx {
    attr: OvsContextAttr,
    /// Where its volume is.
    way: Way,
    /// As whom it attaches its volume: two contexts are not the same writer.
    host: Uuid,
    pub(crate) control: Caller,
    open: OnceLock<Open>,
    opening: Mutex<()>,
    /// Addresses of what `ovs_allocate` gave out.
    buffers: Mutex<BTreeSet<usize>>,
    /// Forks of this process before it was made: its threads are in one process alone.
    forks: u32,
}

fn way_of(place: &Place) -> Way {
    match place {
        Place::Shm => Way::shm(None),
        Place::Tcp(addresses) => Way::Tcp(addresses.clone()),
        Place::Rdma(addresses) => Way::Rdma(addresses.clone()),
    }
}

static FORKS: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Forks of this process so far: what was made before one belongs to the other process.
pub(crate) fn forks() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

fn watch_forks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the function only counts, and the library stays loaded (it is linked with nodelete).
        unsafe { libc::pthread_atfork(None, None, Some(on_fork)) };
    });
}

/// Runs `start` with all signals blocked, so that threads it starts leave them to the program's own.
pub(crate) fn without_signals<T>(start: impl FnOnce() -> T) -> T {
    // SAFETY: both sets are plain data that the calls fill.
    let before = unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&mut all);
        // Faults of a thread's own making cannot wait.
        for fault in [libc::SIGBUS, libc::SIGSEGV, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGABRT] {
            libc::sigdelset(&mut all, fault);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        before
    };
    let made = start();
    // SAFETY: it is the mask from before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut()) };
    made
}

impl OvsCtx {
    fn new(attr: OvsContextAttr) -> Result<OvsCtx, Refusal> {
        let place = attr.place.as_ref();
        let way = way_of(place.ok_or_else(|| invalid("no transport is set: call ovs_ctx_attr_set_transport"))?);
        if !matches!(way, Way::Shm(_)) {
            discover(&way)?;
        }
        watch_forks();
        let control = attr
            .control
            .clone()
            .map_or_else(|| Caller::new(control_socket(&runtime_folder(None))), |way| Caller::by(Ok(way)));
        Ok(OvsCtx {
            attr,
            control,
            way,
            host: HostConfig::fresh_id(),
            open: OnceLock::new(),
            opening: Mutex::new(()),
            buffers: Mutex::default(),
            forks: forks(),
        })
    }

    fn options(&self, volume: &str, mode: Mode) -> Result<Options, Refusal> {
        let way = self.way.clone();
        let shm = matches!(way, Way::Shm(_));
        Ok(Options {
            host_nqn: Some(Host::of_this_machine().nqn),
            host_id: Some(*self.host.as_bytes()),
            depth: self.attr.depth as u32,
            block_bytes: SMALL_BYTES,
            spare_bytes: if shm { SEGMENT_BYTES } else { NETWORK_BYTES },
            reconnect: if self.attr.high_availability { OUTAGE_MAX } else { Duration::ZERO },
            lease: mode != Mode::Read && !self.attr.shared,
            ..Options::new(way, volume)?
        })
    }

    fn init(&self, volume: &str, mode: Mode) -> Result<(), Refusal> {
        let _one = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if self.open.get().is_some() {
            return Err(Refusal::new(errno::EBUSY, "the context has a volume: make another one"));
        }
        let options = self.options(volume, mode)?;
        if split_name(volume).1.is_some() && mode != Mode::Read {
            return Err(Refusal::new(errno::EROFS, "a snapshot is only read: open it with O_RDONLY"));
        }
        let shm = matches!(options.way, Way::Shm(_));
        let engine =
            without_signals(|| patiently(|| Engine::open(options.clone()))).map_err(|refusal| match refusal.errno {
                errno::ENOENT if shm => Refusal { errno: errno::EACCES, ..refusal },
                _ => refusal,
            })?;
        let open = Open { engine, volume: volume.to_owned(), mode };
        assert!(self.open.set(open).is_ok(), "one at a time, looked at above");
        Ok(())
    }

    /// What `ovs_ctx_init` opened.
    pub(crate) fn open(&self) -> Result<&Open, Refusal> {
        self.open.get().ok_or_else(|| invalid("the context has no volume: call ovs_ctx_init"))
    }

    /// Its host's identifier, if it has this volume open and comes back to it by itself when that is taken from it.
    pub(crate) fn returns_to(&self, volume: &str) -> Option<Uuid> {
        let holds = self.opened().is_some_and(|open| open.volume == volume);
        (holds && self.attr.high_availability).then_some(self.host)
    }

    /// As [`OvsCtx::open`], where there may be none.
    pub(crate) fn opened(&self) -> Option<&Open> {
        self.open.get()
    }

    pub(crate) fn buffers(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        // A panic elsewhere leaves a set that is whole.
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Hands a request over.
    pub(crate) fn submit(&self, request: Request<Ending>) {
        self.engine.submit(request);
    }

    /// Calls that wait must not come from a callback, which runs on the thread that they would wait for.
    pub(crate) fn check_may_wait(&self) -> Result<(), Refusal> {
        if thread::current().id() == self.engine.thread() {
            return Err(Refusal::new(libc::EDEADLK, "a callback must not wait for another request"));
        }
        Ok(())
    }
}

/// The context that the program means.
///
/// # Safety
/// NULL, or a context of `ovs_ctx_new` that nobody destroys during the call.
pub(crate) unsafe fn given<'a>(ctx: *const OvsCtx) -> Result<&'a OvsCtx, Refusal> {
    // SAFETY: null, or a context by the caller's promise.
    let ctx = unsafe { ctx.as_ref() }.ok_or_else(|| invalid("the context is NULL"))?;
    if ctx.forks != forks() {
        return Err(Refusal::new(errno::ESHUTDOWN, "a context belongs to the process that made it: make another one"));
    }
    Ok(ctx)
}

/// A context; over a network the target is asked at once whether it is there.
///
/// # Safety
/// NULL, or attributes of `ovs_ctx_attr_new` that nobody changes or destroys during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_ctx_new(attr: *const OvsContextAttr) -> *mut OvsCtx {
    // SAFETY: by the caller's promise.
    let made = unsafe { copy(attr) }.and_then(OvsCtx::new);
    pointer(made.map(|ctx| {
        let ctx = Box::into_raw(Box::new(ctx));
        live::enter(Kind::Context, ctx);
        ctx
    }))
}

/// Opens a volume, or with `O_RDONLY` a snapshot `VOLUME@SNAPSHOT`.
///
/// # Safety
/// `ctx` is of `ovs_ctx_new` and not being destroyed; the name ends in 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_ctx_init(ctx: *mut OvsCtx, volume_name: *const c_char, oflag: c_int) -> c_int {
    let init = || {
        // SAFETY: by the caller's promise.
        let (ctx, name) = unsafe { (given(ctx)?, text("the volume's name", volume_name)?) };
        if split_name(name).0.len() > VOLUME_NAME_MAX {
            return Err(invalid(format!("the volume's name has {} bytes, {VOLUME_NAME_MAX} are possible", name.len())));
        }
        let mode = match oflag {
            libc::O_RDONLY => Mode::Read,
            libc::O_WRONLY => Mode::Write,
            libc::O_RDWR => Mode::ReadWrite,
            _ => return Err(invalid(format!("flags {oflag:#x}: exactly O_RDONLY, O_WRONLY or O_RDWR"))),
        };
        ctx.init(name, mode)
    };
    status(init())
}

/// Waits for what is in flight, some seconds at most, and closes the volume.
///
/// # Safety
/// No other call uses the context, then or later.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_ctx_destroy(ctx: *mut OvsCtx) -> c_int {
    let destroy = || {
        if !live::knows(Kind::Context, ctx) {
            return Err(invalid("this is no context of ovs_ctx_new, or was destroyed before"));
        }
        // SAFETY: it came from `ovs_ctx_new` and was not destroyed.
        let (open, forks) = unsafe { ((*ctx).opened(), (*ctx).forks) };
        let here = forks == self::forks();
        if let (true, Some(open)) = (here, open) {
            open.check_may_wait()?;
        }
        if !live::leave(Kind::Context, ctx) {
            return Err(invalid("two threads destroy the context at once"));
        }
        if here {
            // SAFETY: as above, and this is the one time that it leaves.
            drop(unsafe { Box::from_raw(ctx) });
        }
        // Else its threads are in the other process, which uses it still: nothing of it is touched.
        Ok(())
    };
    status(destroy())
}
