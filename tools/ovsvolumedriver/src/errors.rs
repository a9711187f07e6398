//! How calls fail: -1 or NULL, errno, and words that `ovs_last_error` gives to this thread.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};
use std::thread;
use std::time::{Duration, Instant};

use ringway_client::{Refusal, errno};
use ringway_core::control::{ControlError, ControlErrorKind};

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// The control interface's kinds, as the calls about volumes and snapshots report them.
pub(crate) fn of_control(error: &ControlError) -> Refusal {
    let number = match error.kind {
        ControlErrorKind::Invalid => errno::EINVAL,
        ControlErrorKind::NotFound => errno::ENOENT,
        ControlErrorKind::Exists => errno::EEXIST,
        ControlErrorKind::NoSpace => errno::ENOSPC,
        ControlErrorKind::Busy => errno::EBUSY,
        ControlErrorKind::Denied => errno::EACCES,
        ControlErrorKind::TimedOut => errno::ETIMEDOUT,
        ControlErrorKind::Needed => errno::ENOTEMPTY,
        ControlErrorKind::Internal | ControlErrorKind::Unavailable | ControlErrorKind::Corrupt => errno::EIO,
    };
    Refusal::new(number, error.message.as_str())
}

/// How long what is refused as busy is tried again: the target may not have noticed yet that a context was destroyed just now.
const BUSY: Duration = Duration::from_secs(1);
/// Between two attempts.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// Tries until it is not refused as busy, or that has gone on for a moment.
pub(crate) fn patiently<T>(mut attempt: impl FnMut() -> Result<T, Refusal>) -> Result<T, Refusal> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Err(refusal) if refusal.errno == errno::EBUSY && begun.elapsed() < BUSY => thread::sleep(BUSY_PAUSE),
            result => return result,
        }
    }
}

/// A call's argument is wrong.
pub(crate) fn invalid(why: impl Into<String>) -> Refusal {
    Refusal::new(errno::EINVAL, why)
}

/// Remembers why, and sets errno.
fn tell(refusal: &Refusal) {
    let words = CString::new(refusal.why.replace('\0', " ")).unwrap_or_default();
    LAST.with(|last| *last.borrow_mut() = words);
    // SAFETY: this thread's errno.
    unsafe { *libc::__errno_location() = refusal.errno };
}

/// 0 or what a call returns, or -1 and errno.
pub(crate) fn number<T: From<i8>>(result: Result<T, Refusal>) -> T {
    result.unwrap_or_else(|refusal| {
        tell(&refusal);
        T::from(-1)
    })
}

/// 0, or -1 and errno.
pub(crate) fn status(result: Result<(), Refusal>) -> c_int {
    number(result.map(|()| 0))
}

/// What a call returns, or NULL and errno.
pub(crate) fn pointer<T>(result: Result<*mut T, Refusal>) -> *mut T {
    result.unwrap_or_else(|refusal| {
        tell(&refusal);
        std::ptr::null_mut()
    })
}

/// Why the last call of this thread that failed did, in words; they are good until the next one fails. Never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn ovs_last_error() -> *const c_char {
    LAST.with(|last| last.borrow().as_ptr())
}
