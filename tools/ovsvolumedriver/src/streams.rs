//! `ovs_stream_*`: a clone is made independent of the snapshot that it lies over, by jobs of the target; and their events.
//!
//! A listener has a thread of its own, which runs the callback, one event after the other. It comes back to a target that restarts, with
//! the number of the last event that it told: so each is told once.

use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ringway_client::control::{Caller, Method, Stop, Told, segment};
use ringway_client::{Refusal, errno};
use ringway_core::control::{ControlError, ControlErrorKind};
use ringway_core::event::{Event, EventKind};
use ringway_core::stream::{OnError, StreamInfo, StreamRequest, StreamStart, StreamStatus, StreamStepped};
use serde_json::{Value, json};

use crate::ctx::{OvsCtx, forks, given, without_signals};
use crate::errors::{invalid, number, of_control, pointer, status};
use crate::live::{self, Kind};
use crate::volumes::{named, pack};

/// Bytes of the text of an error in [`OvsStreamInfo`], its 0 included.
const ERROR_BYTES: usize = 256;
/// Longer than any target is away: a listener ends when it is told to.
const FOR_EVER: Duration = Duration::MAX;

/// `ovs_stream_info_t`: public.
#[repr(C)]
pub struct OvsStreamInfo {
    /// The job's number; that of the event of its start, too.
    pub job: u64,
    /// Bytes gone through; never goes back.
    pub cur: u64,
    /// Bytes to go through.
    pub end: u64,
    /// Bytes copied.
    pub copied: u64,
    /// Bytes a second at most; 0: no limit.
    pub speed: u64,
    /// `OVS_STREAM_RUNNING` and so on.
    pub status: c_int,
    /// `OVS_STREAM_REPORT` and so on.
    pub on_error: c_int,
    /// The error it has met last; empty: none.
    pub error: [c_char; ERROR_BYTES],
}

const _: () = assert!(size_of::<OvsStreamInfo>() == 48 + ERROR_BYTES);

/// `ovs_stream_event_t`: public; good during the callback.
#[repr(C)]
pub struct OvsStreamEvent {
    /// Ascending; who gives the last one that he has seen goes on after it.
    pub number: u64,
    /// The job.
    pub job: u64,
    /// Bytes copied, at its end.
    pub bytes: u64,
    /// `OVS_STREAM_STARTED` and so on.
    pub kind: c_int,
    /// An errno, where it has failed.
    pub error: c_int,
    /// The clone.
    pub volume: *const c_char,
    /// What there is to say of it; may be empty.
    pub text: *const c_char,
}

const _: () = assert!(size_of::<OvsStreamEvent>() == 48);

/// `ovs_stream_callback_t`.
pub type OvsStreamCallback = Option<extern "C" fn(*const OvsStreamEvent, *mut c_void)>;

/// `ovs_stream_listener_t`.
pub struct OvsStreamListener {
    stop: Arc<Stop>,
    thread: JoinHandle<()>,
    /// As of a context: its thread is in one process alone.
    forks: u32,
}

/// Kinds that a listener is told of, with their numbers in the header.
const KINDS: [(EventKind, c_int); 7] = [
    (EventKind::StreamStarted, 1),
    (EventKind::StreamCompleted, 2),
    (EventKind::StreamFailed, 3),
    (EventKind::StreamCancelled, 4),
    (EventKind::StreamPaused, 5),
    (EventKind::StreamResumed, 6),
    (EventKind::StreamError, 7),
];
/// Events up to this number are not kept any more.
const LOST: c_int = 8;
/// The listener is over, and why.
const OVER: c_int = 9;

const ON_ERROR: [OnError; 3] = [OnError::Report, OnError::Stop, OnError::Ignore];
const STATUS: [StreamStatus; 4] =
    [StreamStatus::Running, StreamStatus::Finishing, StreamStatus::Retrying, StreamStatus::Paused];

fn place_in<T: PartialEq>(all: &[T], one: &T) -> c_int {
    all.iter().position(|known| known == one).expect("each is listed") as c_int
}

/// A text with its 0; what a 0 is in is told without.
fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

fn ask<A: serde::de::DeserializeOwned>(
    ctx: &OvsCtx,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<A, Refusal> {
    ctx.control.call(method, path, body).map_err(|error| of_control(&error))
}

fn path(volume: &str, rest: &str) -> String {
    format!("/v1/streams/{}{rest}", segment(volume))
}

/// Starts a job that makes a clone independent, and returns when it is on record. `job`, unless NULL, is set to its number.
///
/// # Safety
/// The name ends in 0; `job` is NULL or writable; `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_stream_start(
    ctx: *mut OvsCtx,
    volume_name: *const c_char,
    speed: u64,
    on_error: c_int,
    job: *mut u64,
) -> c_int {
    let start = || {
        // SAFETY: by the caller's promise.
        let (ctx, name) = unsafe { named(ctx, volume_name) }?;
        let unknown = || invalid(format!("on_error {on_error} is none of OVS_STREAM_REPORT, _STOP and _IGNORE"));
        let on_error = usize::try_from(on_error).ok().and_then(|at| ON_ERROR.get(at)).ok_or_else(unknown)?;
        let start =
            StreamStart { volume: name.to_owned(), speed: Some(speed).filter(|&speed| speed > 0), on_error: *on_error };
        StreamRequest::Start(start.clone()).check().map_err(|error| of_control(&error))?;
        let begun: Result<StreamInfo, _> = ctx.control.call(Method::POST, "/v1/streams", Some(&start));
        let begun = begun.map_err(|error| of_control(&error))?;
        // SAFETY: by the caller's promise.
        if let Some(job) = unsafe { job.as_mut() } {
            *job = begun.job.0;
        }
        Ok(())
    };
    status(start())
}

/// Copies one increment from `*cursor` on, waits for it, and sets `*cursor` to where to go on. Where that is `*end` the clone is
/// independent, durably.
///
/// # Safety
/// `cursor` and `end` are writable; the rest as for [`ovs_stream_start`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_stream_step(
    ctx: *mut OvsCtx,
    volume_name: *const c_char,
    cursor: *mut u64,
    end: *mut u64,
) -> c_int {
    let step = || {
        // SAFETY: by the caller's promise.
        let (ctx, name) = unsafe { named(ctx, volume_name) }?;
        // SAFETY: as above.
        let (Some(cursor), Some(end)) = (unsafe { cursor.as_mut() }, unsafe { end.as_mut() }) else {
            return Err(invalid("the cursor, or the end, is NULL"));
        };
        let stepped: StreamStepped = ask(ctx, Method::POST, &path(name, "/step"), Some(&json!({ "cursor": *cursor })))?;
        (*cursor, *end) = (stepped.cursor, stepped.end);
        Ok(())
    };
    status(step())
}

/// How far a job is; `ENOENT` where the volume has none.
///
/// # Safety
/// `info` is writable; the rest as for [`ovs_stream_start`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_stream_info(
    ctx: *mut OvsCtx,
    volume_name: *const c_char,
    info: *mut OvsStreamInfo,
) -> c_int {
    let look = || {
        // SAFETY: by the caller's promise.
        let (ctx, name) = unsafe { named(ctx, volume_name) }?;
        if info.is_null() {
            return Err(invalid("the place for the answer is NULL"));
        }
        let found: StreamInfo = ask(ctx, Method::GET, &path(name, ""), None)?;
        let mut error = [0; ERROR_BYTES];
        let text = found.error.unwrap_or_default();
        for (to, byte) in error[..ERROR_BYTES - 1].iter_mut().zip(text.bytes()) {
            *to = byte as c_char;
        }
        let shown = OvsStreamInfo {
            job: found.job.0,
            cur: found.cur,
            end: found.end,
            copied: found.copied,
            speed: found.speed.unwrap_or(0),
            status: place_in(&STATUS, &found.status),
            on_error: place_in(&ON_ERROR, &found.on_error),
            error,
        };
        // SAFETY: not null, and writable by the caller's promise.
        unsafe { info.write(shown) };
        Ok(())
    };
    status(look())
}

/// The clones that have a job, as `ovs_list_volumes` lists volumes.
///
/// # Safety
/// `names` has room for `*size` bytes; `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_stream_list(ctx: *mut OvsCtx, names: *mut c_char, size: *mut usize) -> c_int {
    let list = || {
        // SAFETY: by the caller's promise.
        let (ctx, size) = unsafe { (given(ctx)?, size.as_mut().ok_or_else(|| invalid("the size is NULL"))?) };
        let found: Vec<StreamInfo> = ask(ctx, Method::GET, "/v1/streams", None)?;
        // SAFETY: by the caller's promise.
        unsafe { pack(found.iter().map(|info| info.volume.as_str()), names, size) }
    };
    number(list())
}

/// Another limit of speed, at once.
///
/// # Safety
/// As for [`ovs_stream_start`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_stream_set_speed(ctx: *mut OvsCtx, volume_name: *const c_char, speed: u64) -> c_int {
    let body = json!({ "speed": Some(speed).filter(|&speed| speed > 0) });
    // SAFETY: by the caller's promise.
    let named = unsafe { named(ctx, volume_name) };
    status(named.and_then(|(ctx, name)| ask::<Value>(ctx, Method::PUT, &path(name, "/speed"), Some(&body)).map(drop)))
}

/// Goes on with a job that an error has paused.
///
/// # Safety
/// As for [`ovs_stream_start`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_stream_resume(ctx: *mut OvsCtx, volume_name: *const c_char) -> c_int {
    // SAFETY: by the caller's promise.
    let named = unsafe { named(ctx, volume_name) };
    status(named.and_then(|(ctx, name)| ask::<Value>(ctx, Method::POST, &path(name, "/resume"), None).map(drop)))
}

/// Ends a job, at once; what was copied and the parent stay.
///
/// # Safety
/// As for [`ovs_stream_start`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_stream_abort(ctx: *mut OvsCtx, volume_name: *const c_char) -> c_int {
    // SAFETY: by the caller's promise.
    let named = unsafe { named(ctx, volume_name) };
    status(named.and_then(|(ctx, name)| ask::<Value>(ctx, Method::DELETE, &path(name, ""), None).map(drop)))
}

/// Who is told, on the listener's thread.
struct Listening {
    callback: extern "C" fn(*const OvsStreamEvent, *mut c_void),
    /// An address that only the callback knows the meaning of.
    argument: usize,
}

impl Listening {
    fn tell(&self, (kind, number): (c_int, u64), event: Option<&Event>, error: c_int, text: &str) {
        let (volume, text) = (c_text(event.map_or("", |event| &event.name)), c_text(text));
        let told = OvsStreamEvent {
            number,
            job: event.and_then(|event| event.job).map_or(0, |job| job.0),
            bytes: event.and_then(|event| event.bytes).unwrap_or(0),
            kind,
            error,
            volume: volume.as_ptr(),
            text: text.as_ptr(),
        };
        (self.callback)(&told, std::ptr::with_exposed_provenance_mut(self.argument));
    }

    fn heard(&self, told: &Told) {
        match told {
            Told::Lost(lost) => self.tell((LOST, lost.to), None, 0, "these events are not kept any more"),
            Told::Event(event) => {
                let Some((_, kind)) = KINDS.iter().find(|(kind, _)| *kind == event.kind) else { return };
                let error = if event.kind == EventKind::StreamFailed { errno_of(event) } else { 0 };
                self.tell((*kind, event.number), Some(event), error, &event.text);
            }
        }
    }
}

/// The number for a failure of which an event has the exit code.
fn errno_of(event: &Event) -> c_int {
    let known = ControlErrorKind::ALL.into_iter().find(|kind| Some(kind.exit_code()) == event.code);
    of_control(&ControlError::new(known.unwrap_or(ControlErrorKind::Internal), "")).errno
}

/// Calls `callback` for each event of streams with a number above `since`, on a thread of its own, until `ovs_stream_unlisten`;
/// `OVS_STREAM_FROM_NOW`: for those that come. A target that restarts is come back to.
///
/// # Safety
/// `callback` may be called from another thread with `argument`; `ctx` is of `ovs_ctx_new` and not being destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_stream_listen(
    ctx: *mut OvsCtx,
    since: u64,
    callback: OvsStreamCallback,
    argument: *mut c_void,
) -> *mut OvsStreamListener {
    let listen = || {
        // SAFETY: by the caller's promise.
        let control = unsafe { given(ctx) }?.control.clone();
        let callback = callback.ok_or_else(|| invalid("the callback is NULL"))?;
        let listening = Listening { callback, argument: argument.expose_provenance() };
        let refused = |error: ControlError| of_control(&error);
        // Asked at once, so that nothing that comes after this call is missed, and a wrong number is told by it.
        let newest = control.newest_event().map_err(refused)?;
        let since = if since == u64::MAX { newest } else { since };
        if since > newest {
            return Err(invalid(format!("no event has number {since} yet: the newest has {newest}")));
        }
        let stop = Arc::new(Stop::default());
        let of_thread = Arc::clone(&stop);
        let thread = without_signals(|| {
            let body = move || listen_on(&control, since, &of_thread, &listening);
            thread::Builder::new().name("ringway-events".into()).spawn(body)
        });
        let thread = thread.map_err(|error| Refusal::new(errno::EIO, format!("no thread: {error}")))?;
        let listener = Box::into_raw(Box::new(OvsStreamListener { stop, thread, forks: forks() }));
        live::enter(Kind::Listener, listener);
        Ok(listener)
    };
    pointer(listen())
}

fn listen_on(control: &Caller, since: u64, stop: &Stop, listening: &Listening) {
    let mut reached = since;
    while !stop.is_stopped() {
        let followed = control.follow_events(reached, FOR_EVER, Some(stop), &mut |told| {
            if stop.is_stopped() {
                return;
            }
            reached = match &told {
                Told::Event(event) => event.number,
                Told::Lost(lost) => lost.to,
            };
            listening.heard(&told);
        });
        match followed {
            Ok(()) => {}
            // It was there when the listener began: it is starting.
            Err(error) if error.kind == ControlErrorKind::Unavailable => thread::sleep(Duration::from_millis(100)),
            Err(error) if stop.is_stopped() => drop(error),
            Err(error) => {
                return listening.tell((OVER, reached), None, of_control(&error).errno, &error.message);
            }
        }
    }
}

/// Ends a listener: when this returns the callback does not run and will not. `EDEADLK` in the callback itself.
///
/// # Safety
/// No other call ends the same one at the same time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ovs_stream_unlisten(listener: *mut OvsStreamListener) -> c_int {
    let end = || {
        let unknown = || invalid("this is no listener of ovs_stream_listen, or was ended before");
        if !live::knows(Kind::Listener, listener) {
            return Err(unknown());
        }
        // SAFETY: it came from `ovs_stream_listen` and was not ended.
        let (own, made) = unsafe { ((*listener).thread.thread().id(), (*listener).forks) };
        if own == thread::current().id() {
            return Err(Refusal::new(libc::EDEADLK, "a callback cannot wait for its own end"));
        }
        if !live::leave(Kind::Listener, listener) {
            return Err(unknown());
        }
        if made == forks() {
            // SAFETY: as above, and this is the one time that it leaves.
            let OvsStreamListener { stop, thread, .. } = *unsafe { Box::from_raw(listener) };
            stop.stop();
            let _ = thread.join();
        }
        // Else its thread is in the other process.
        Ok(())
    };
    status(end())
}
