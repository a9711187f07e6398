//! A session with a thread of its own, for programs with several threads: requests are handed over by a queue without a lock, and
//! their ends are told on the session's thread.
//!
//! Why a thread and not a lock around the session: a ring has one thread that submits to it, keep-alives and reconnects go on while
//! the program does something else, and callbacks need a thread in any case (docs/decisions/0220-a-session-has-a-thread-of-its-own.md).
//!
//! The thread looks for work for a while after the last, then sleeps:
//! ```text
//! thread:   asleep = true; fence; queue empty? -> sleep        program: push; fence; asleep? -> wake
//! ```
//! Both fences are sequentially consistent, so that one of the two sees what the other did.
//!
//! Invariant: each request that was handed over ends exactly once, also when the target is given up or the engine stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering, fence};
use std::sync::mpsc;
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use crossbeam_queue::SegQueue;
use ringway_reactor::io::Wake;

use crate::desk::Desk;
use crate::memory::CallerMemory;
use crate::options::Options;
use crate::refusal::{Refusal, errno};
use crate::session::{Session, Volume, What};
use crate::shm::Area;

/// How long to look for work before sleeping: below a sleep and its wake-up.
const SPIN: Duration = Duration::from_micros(50);
/// A sleep is no longer than this.
const SLEEP_MAX: Duration = Duration::from_millis(500);
/// How long requests in flight may take when the engine is stopped.
const STOP: Duration = Duration::from_secs(5);

/// Who is told of a request's end, on the session's thread: it must not wait for another request.
pub trait Done: Send + 'static {
    /// It has ended: 0, or why not.
    fn done(self, errno: i32);
}

/// One request.
#[derive(Debug)]
pub struct Request<D> {
    /// What to do.
    pub what: What,
    /// Bytes from the start of the volume; of any value where data moves, else multiples of a block.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// As long, where data moves.
    pub memory: Option<CallerMemory>,
    /// Who is told.
    pub done: D,
}

struct Shared<D> {
    inbox: SegQueue<Request<D>>,
    asleep: AtomicBool,
    stop: AtomicBool,
    /// Why nothing goes on; 0 while it does.
    over: AtomicI32,
    size: AtomicU64,
}

/// A volume that is attached, for any number of threads.
pub struct Engine<D: Done> {
    shared: Arc<Shared<D>>,
    waker: Arc<dyn Wake>,
    volume: Volume,
    area: Option<Area>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread says once it has attached the volume.
type Opened = (Volume, Option<Area>, Arc<dyn Wake>);

impl<D: Done> Engine<D> {
    /// Attaches the volume, on a thread that it starts.
    ///
    /// # Errors
    /// Why it cannot be, in words for a user.
    pub fn open(options: Options) -> Result<Engine<D>, Refusal> {
        let shared = Arc::new(Shared {
            inbox: SegQueue::new(),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            over: AtomicI32::new(0),
            size: AtomicU64::new(0),
        });
        let (told, tell) = mpsc::sync_channel::<Result<Opened, Refusal>>(1);
        let of_thread = Arc::clone(&shared);
        let body = move || match Session::open(&options) {
            Ok(session) => {
                let _ = told.send(Ok((session.volume(), session.area(), session.waker())));
                run(session, &of_thread);
            }
            Err(refusal) => drop(told.send(Err(refusal))),
        };
        let local = |why: String| Refusal::new(errno::EIO, why);
        let thread = thread::Builder::new().name("ringway-client".into()).spawn(body);
        let thread = thread.map_err(|error| local(format!("no thread: {error}")))?;
        let opened = tell.recv().unwrap_or_else(|_| Err(local("the thread of the session has died".into())));
        match opened {
            Ok((volume, area, waker)) => {
                shared.size.store(volume.size, Ordering::Relaxed);
                Ok(Engine { shared, waker, volume, area, thread: Some(thread) })
            }
            Err(refusal) => {
                let _ = thread.join();
                Err(refusal)
            }
        }
    }

    /// The volume, with its size as the target last said.
    #[must_use]
    pub fn volume(&self) -> Volume {
        Volume { size: self.shared.size.load(Ordering::Relaxed), ..self.volume }
    }

    /// The program has changed the size by another way; what the target says of it later counts again.
    pub fn resized(&self, size: u64) {
        self.shared.size.store(size, Ordering::Relaxed);
    }

    /// Memory that needs no copy on its way, where there is such.
    #[must_use]
    pub fn area(&self) -> Option<&Area> {
        self.area.as_ref()
    }

    /// Why nothing goes on any more; 0 while it does.
    #[must_use]
    pub fn over(&self) -> i32 {
        self.shared.over.load(Ordering::Acquire)
    }

    /// The thread on which ends are told.
    #[must_use]
    pub fn thread(&self) -> ThreadId {
        self.thread.as_ref().expect("it runs as long as the engine").thread().id()
    }

    /// Hands a request over. Its end is told whatever happens; while the target takes no more it waits.
    pub fn submit(&self, request: Request<D>) {
        self.shared.inbox.push(request);
        // With the fence of the thread that falls asleep.
        fence(Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::Relaxed) {
            self.wake();
        }
    }

    fn wake(&self) {
        self.waker.wake();
        // Where the target was given up it sleeps by itself.
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl<D: Done> Drop for Engine<D> {
    /// Waits for what is in flight, some seconds at most, and detaches the volume.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run<D: Done>(mut session: Session, shared: &Shared<D>) {
    let mut desk = Desk::new();
    let mut idle_since: Option<Instant> = None;
    let mut stopping: Option<Instant> = None;
    let mut known_size = session.volume().size;
    loop {
        let mut busy = false;
        while let Some(request) = shared.inbox.pop() {
            desk.take(&mut session, request);
            busy = true;
        }
        let over = session.turn(None).err();
        while let Some(ended) = session.take_ended() {
            desk.ended(&mut session, ended);
            busy = true;
        }
        let size = session.volume().size;
        if std::mem::replace(&mut known_size, size) != size {
            shared.size.store(size, Ordering::Relaxed);
        }
        if let Some(over) = &over {
            shared.over.store(over.errno, Ordering::Release);
        }
        if shared.stop.load(Ordering::SeqCst) {
            let since = *stopping.get_or_insert_with(Instant::now);
            if (desk.is_empty() && shared.inbox.is_empty()) || since.elapsed() > STOP {
                break;
            }
        }
        if busy {
            idle_since = None;
            continue;
        }
        let since = *idle_since.get_or_insert_with(Instant::now);
        if since.elapsed() < SPIN {
            std::hint::spin_loop();
            continue;
        }
        sleep(&mut session, shared, over.is_some(), stopping.is_some());
    }
    session.close();
    desk.end_all(errno::ESHUTDOWN);
    while let Some(request) = shared.inbox.pop() {
        request.done.done(errno::ESHUTDOWN);
    }
}

fn sleep<D: Done>(session: &mut Session, shared: &Shared<D>, over: bool, stopping: bool) {
    shared.asleep.store(true, Ordering::Relaxed);
    // With the fence of whoever hands something over.
    fence(Ordering::SeqCst);
    if shared.inbox.is_empty() && (stopping || !shared.stop.load(Ordering::SeqCst)) {
        if over {
            thread::park_timeout(SLEEP_MAX);
        } else {
            // What it returns is seen by the next turn.
            let _ = session.turn(Some(Instant::now() + SLEEP_MAX));
        }
    }
    shared.asleep.store(false, Ordering::Relaxed);
}
