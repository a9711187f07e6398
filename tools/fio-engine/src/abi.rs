//! The C interface; `c/ringway.h` declares the same. Texts go into a buffer of the caller's, cut to its length.

use std::ffi::{CStr, c_char, c_void};
use std::time::Duration;

use ringway_client::{Area, CallerMemory, RawBuffer, Refusal, Session, What};

use crate::options::Given;

/// `struct ringway_options`: texts may be null.
#[repr(C)]
pub struct RingwayOptions {
    transport: *const c_char,
    volume: *const c_char,
    host: *const c_char,
    host_nqn: *const c_char,
    runtime: *const c_char,
    block_bytes: u64,
    port: u32,
    queues: u32,
    depth: u32,
    reconnect_s: u32,
}

/// `struct ringway_volume`.
#[repr(C)]
pub struct RingwayVolume {
    size: u64,
    block_bytes: u32,
}

/// `struct ringway_ended`.
#[repr(C)]
pub struct RingwayEnded {
    user: u64,
    error: i32,
}

const _: () = assert!(size_of::<RingwayOptions>() == 64 && size_of::<RingwayVolume>() == 16);
const _: () = assert!(size_of::<RingwayEnded>() == 16);

/// A session, opaque to C.
pub struct RingwaySession {
    session: Session,
    /// What [`ringway_alloc`] gave out.
    taken: Option<Taken>,
}

/// A part of the memory that is shared with the target.
struct Taken {
    area: Area,
    buffer: RawBuffer,
}

/// # Safety
/// Null, or a text that ends in 0.
unsafe fn text(from: *const c_char) -> Option<String> {
    if from.is_null() {
        return None;
    }
    // SAFETY: not null, and a text by the caller's promise.
    let text = unsafe { CStr::from_ptr(from) }.to_string_lossy().into_owned();
    Some(text).filter(|text| !text.is_empty())
}

/// # Safety
/// `why` has room for `room` bytes.
unsafe fn tell(refusal: &Refusal, why: *mut c_char, room: usize) -> i32 {
    if !why.is_null() && room > 0 {
        let len = refusal.why.len().min(room - 1);
        // SAFETY: `len` bytes and the end mark fit by the caller's promise.
        unsafe {
            std::ptr::copy_nonoverlapping(refusal.why.as_ptr(), why.cast(), len);
            why.add(len).write(0);
        }
    }
    refusal.errno
}

/// Opens a session and says what its volume is. 0 and `*session`, or an errno and `why`.
///
/// # Safety
/// `options` and its texts are readable, `session` and `volume` writable, `why` has room for `why_room` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ringway_open(
    options: *const RingwayOptions,
    session: *mut *mut RingwaySession,
    volume: *mut RingwayVolume,
    why: *mut c_char,
    why_room: usize,
) -> i32 {
    // SAFETY: readable by the caller's promise.
    let given = unsafe {
        let options = &*options;
        Given {
            transport: text(options.transport),
            volume: text(options.volume),
            host: text(options.host),
            host_nqn: text(options.host_nqn),
            runtime: text(options.runtime),
            port: options.port,
            queues: options.queues,
            depth: options.depth,
            block_bytes: options.block_bytes,
            reconnect_s: options.reconnect_s,
        }
    };
    match given.check().and_then(|options| Session::open(&options)) {
        Ok(open) => {
            let found = open.volume();
            // SAFETY: writable by the caller's promise.
            unsafe {
                volume.write(RingwayVolume { size: found.size, block_bytes: found.block_bytes });
                session.write(Box::into_raw(Box::new(RingwaySession { session: open, taken: None })));
            }
            0
        }
        // SAFETY: there is room by the caller's promise.
        Err(refusal) => unsafe { tell(&refusal, why, why_room) },
    }
}

/// Memory for the buffers of requests that needs no copy on its way; null where there is none. Once a session; it ends with it.
///
/// # Safety
/// `session` is open and used by this thread alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ringway_alloc(session: *mut RingwaySession, bytes: usize) -> *mut c_void {
    // SAFETY: by the caller's promise.
    let open = unsafe { &mut *session };
    let (None, Some(area)) = (&open.taken, open.session.area()) else { return std::ptr::null_mut() };
    let Some(buffer) = area.alloc(bytes) else { return std::ptr::null_mut() };
    open.taken = Some(Taken { area, buffer });
    buffer.start.cast()
}

/// Queues a request: 0 read, 1 write, 2 flush, 3 trim. 0, or an errno and `why`; then the request has not begun.
///
/// # Safety
/// `session` is open and used by this thread alone; `data` is `len` bytes that are the session's until the request's end, where data
/// moves; `why` has room for `why_room` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ringway_queue(
    session: *mut RingwaySession,
    what: u32,
    offset: u64,
    len: u64,
    data: *mut c_void,
    user: u64,
    why: *mut c_char,
    why_room: usize,
) -> i32 {
    let (what, moves) = match what {
        0 => (What::Read, true),
        1 => (What::Write, true),
        2 => (What::Flush, false),
        _ => (What::Trim, false),
    };
    // SAFETY: the range is the session's by the caller's promise; the session is open and ours.
    let (memory, session) = unsafe {
        let memory = if moves { CallerMemory::new(data.cast(), len as usize) } else { None };
        (memory, &mut (*session).session)
    };
    match session.queue(what, offset, len, memory, user) {
        Ok(()) => 0,
        // SAFETY: there is room by the caller's promise.
        Err(refusal) => unsafe { tell(&refusal, why, why_room) },
    }
}

/// Sends what was queued. 0 or an errno.
///
/// # Safety
/// `session` is open and used by this thread alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ringway_commit(session: *mut RingwaySession) -> i32 {
    // SAFETY: by the caller's promise.
    let session = unsafe { &mut (*session).session };
    session.commit().map_or_else(|refusal| refusal.errno, |()| 0)
}

/// Waits until `min` requests have ended, or so long (negative: for ever), and writes at most `max` ends. Their number, or a negative
/// errno where nothing more will come.
///
/// # Safety
/// `session` is open and used by this thread alone; `ended` has room for `max`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ringway_wait(
    session: *mut RingwaySession,
    min: u32,
    max: u32,
    timeout_ns: i64,
    ended: *mut RingwayEnded,
) -> i32 {
    // SAFETY: by the caller's promise.
    let session = unsafe { &mut (*session).session };
    let timeout = u64::try_from(timeout_ns).ok().map(Duration::from_nanos);
    let mut at = 0;
    let waited = session.wait(min as usize, max as usize, timeout, |one| {
        // SAFETY: at most `max` are given, and there is room for those.
        unsafe { ended.add(at).write(RingwayEnded { user: one.user, error: one.errno }) };
        at += 1;
    });
    waited.map_or_else(|refusal| -refusal.errno, |count| count as i32)
}

/// Why nothing goes on; an empty text if it does.
///
/// # Safety
/// `session` is open and used by this thread alone; `why` has room for `why_room` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ringway_why(session: *mut RingwaySession, why: *mut c_char, why_room: usize) {
    // SAFETY: by the caller's promise.
    unsafe {
        let text = (*session).session.why().unwrap_or_default();
        tell(&Refusal::new(0, text), why, why_room);
    }
}

/// Ends a session.
///
/// # Safety
/// `session` is open, and not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ringway_close(session: *mut RingwaySession) {
    // SAFETY: it came from `ringway_open`, by the caller's promise.
    let open = unsafe { Box::from_raw(session) };
    open.session.close();
    if let Some(Taken { area, buffer }) = open.taken {
        // SAFETY: it came from this session's area, once, and fio has freed it: it does so before it ends the engine.
        unsafe { area.free(buffer) };
    }
}
