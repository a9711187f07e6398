//! One request of the program's until its end is known.
//!
//! ```text
//! Running --waiter--> Awaited --end--> Ended
//!    \------------------end-----------/
//! ```
//! The end takes the lock only if somebody waits.

use std::ffi::c_void;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringway_client::{Done, Refusal, errno};

use crate::errors::invalid;

const RUNNING: u32 = 0;
const AWAITED: u32 = 1;
const ENDED: u32 = 2;
/// How long to look before sleeping.
const SPIN: Duration = Duration::from_micros(30);

/// `ovs_callback_t`.
pub type OvsCallback = Option<extern "C" fn(*mut OvsCompletion, *mut c_void)>;

/// `ovs_completion_t`.
pub struct OvsCompletion {
    callback: extern "C" fn(*mut OvsCompletion, *mut c_void),
    /// An address that only the callback knows the meaning of.
    argument: usize,
    state: Mutex<Completed>,
    signalled: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct Completed {
    /// Bytes, or an errno.
    ended: Option<Result<usize, i32>>,
    signalled: bool,
}

impl OvsCompletion {
    pub(crate) fn new(
        callback: extern "C" fn(*mut OvsCompletion, *mut c_void),
        argument: *mut c_void,
    ) -> OvsCompletion {
        let (state, signalled) = (Mutex::default(), Condvar::new());
        OvsCompletion { callback, argument: argument.expose_provenance(), state, signalled }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Completed> {
        // A panic elsewhere leaves two plain values.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its request has ended: the callback runs.
    fn end(self: &Arc<Self>, result: Result<usize, i32>) {
        self.state().ended = Some(result);
        // The callback may release it; ours is a reference of its own.
        (self.callback)(Arc::as_ptr(self).cast_mut(), std::ptr::with_exposed_provenance_mut(self.argument));
    }

    pub(crate) fn result(&self) -> Result<usize, Refusal> {
        let in_progress = || Refusal::new(errno::EINPROGRESS, "its request has not ended");
        let ended = self.state().ended.ok_or_else(in_progress)?;
        ended.map_err(|number| Refusal::new(number, "its request has failed"))
    }

    pub(crate) fn signal(&self) {
        self.state().signalled = true;
        self.signalled.notify_all();
    }

    pub(crate) fn wait(&self, deadline: Option<Deadline>) -> Result<(), Refusal> {
        let mut state = self.state();
        while !state.signalled {
            state = match deadline.map(Deadline::left) {
                None => self.signalled.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(None) => return Err(expired()),
                Some(Some(left)) => self.signalled.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        Ok(())
    }
}

fn expired() -> Refusal {
    Refusal::new(errno::EAGAIN, "the time has passed")
}

/// A moment of CLOCK_REALTIME.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(SystemTime);

impl Deadline {
    /// `EINVAL` for what is no time.
    pub(crate) fn of(time: &libc::timespec) -> Result<Deadline, Refusal> {
        let nanos = u32::try_from(time.tv_nsec).ok().filter(|&nanos| nanos < 1_000_000_000);
        let nanos = nanos.ok_or_else(|| invalid("tv_nsec is not from 0 to 999999999"))?;
        // What is before 1970 has passed.
        let since = Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanos);
        UNIX_EPOCH.checked_add(since).map(Deadline).ok_or_else(|| invalid("no clock goes so far"))
    }

    /// Time until then; none: it has passed.
    fn left(self) -> Option<Duration> {
        self.0.duration_since(SystemTime::now()).ok().filter(|left| !left.is_zero())
    }
}

/// See the module's description.
pub struct Operation {
    state: AtomicU32,
    errno: AtomicI32,
    bytes: AtomicUsize,
    lock: Mutex<()>,
    ended: Condvar,
    completion: Option<Arc<OvsCompletion>>,
}

impl Operation {
    pub(crate) fn new(completion: Option<Arc<OvsCompletion>>) -> Arc<Operation> {
        Arc::new(Operation {
            state: AtomicU32::new(RUNNING),
            errno: AtomicI32::new(0),
            bytes: AtomicUsize::new(0),
            lock: Mutex::new(()),
            ended: Condvar::new(),
            completion,
        })
    }

    /// It has ended.
    pub(crate) fn end(&self, result: Result<usize, i32>) {
        self.errno.store(result.err().unwrap_or(0), Ordering::Relaxed);
        self.bytes.store(result.unwrap_or(0), Ordering::Relaxed);
        // Release pairs with the acquire of `result`; the callback below may free the program's side.
        if self.state.swap(ENDED, Ordering::AcqRel) == AWAITED {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.ended.notify_all();
        }
        if let Some(completion) = &self.completion {
            completion.end(result);
        }
    }

    /// Bytes or an errno, once it has ended.
    pub(crate) fn result(&self) -> Option<Result<usize, i32>> {
        (self.state.load(Ordering::Acquire) == ENDED).then(|| match self.errno.load(Ordering::Relaxed) {
            0 => Ok(self.bytes.load(Ordering::Relaxed)),
            number => Err(number),
        })
    }

    /// Waits for its end.
    pub(crate) fn wait(&self, deadline: Option<Deadline>) -> Result<(), Refusal> {
        let begun = Instant::now();
        while begun.elapsed() < SPIN {
            if self.result().is_some() {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // Failing is as good: it has ended, or somebody else waits as well.
        let _ = self.state.compare_exchange(RUNNING, AWAITED, Ordering::AcqRel, Ordering::Acquire);
        while self.result().is_none() {
            guard = match deadline.map(Deadline::left) {
                None => self.ended.wait(guard).unwrap_or_else(PoisonError::into_inner),
                Some(None) => return Err(expired()),
                Some(Some(left)) => self.ended.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        Ok(())
    }
}

/// Tells an operation of its request's end.
pub(crate) struct Ending {
    pub(crate) operation: Arc<Operation>,
    /// What it returns when all is well.
    pub(crate) bytes: usize,
}

impl Done for Ending {
    fn done(self, number: i32) {
        self.operation.end(if number == 0 { Ok(self.bytes) } else { Err(gone(number)) });
    }
}

/// Statuses of a target end in other numbers than these: with them nobody is there any more who could answer.
fn gone(number: i32) -> i32 {
    let gone = [
        errno::ENOENT,
        errno::EACCES,
        errno::EBUSY,
        errno::ECONNRESET,
        errno::ECONNREFUSED,
        errno::ETIMEDOUT,
        errno::ESHUTDOWN,
    ];
    if gone.contains(&number) { errno::ESHUTDOWN } else { number }
}
