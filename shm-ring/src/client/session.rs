//! A client's connection, and the next one after it.
//!
//! ```text
//! up --socket closed, Bye--> down --offered again, welcomed--> up, one generation on
//!                              \--refused for good, or patience at its end--> lost
//! ```
//! Whoever of the queues notices that the target is gone tries to get the next connection, one attempt at a time; the others
//! see the generation change and move over, each by itself. Nothing in the shared memory is reset for that: what an earlier
//! connection left there carries an earlier generation.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ringway_reactor::event::EventFd;
use ringway_reactor::shared::{SharedError, SharedMemory};
use rustix::event::{PollFd, PollFlags, Timespec};
use thiserror::Error;

use super::ConnectOptions;
use super::buffer::Arena;
use crate::door::Bells;
use crate::layout::{Layout, LayoutError};
use crate::line::{Line, Received};
use crate::message::{HOST_NQN_MAX, Hello, Message, Reason, VOLUME_NAME_MAX, VolumeInfo, WRITER, WRITER_AGAIN};

/// How often to try to get a target back.
const RETRY: Duration = Duration::from_millis(20);
/// How long one attempt waits for its answer: a fence of what a dead connection left in flight takes its device time.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Why a client is not connected.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The queues or sizes.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A name that is too long, or empty.
    #[error("the {what} has {len} bytes: 1 to {max} are possible")]
    Name {
        /// Which.
        what: &'static str,
        /// Its length.
        len: usize,
        /// At most.
        max: usize,
    },
    /// The memory cannot be had.
    #[error(transparent)]
    Memory(#[from] SharedError),
    /// Nobody listens.
    #[error("cannot reach a target at {path}: {source}; is one running with this runtime folder (`ringway serve`)?")]
    Unreachable {
        /// The socket.
        path: String,
        /// The kernel's words.
        source: io::Error,
    },
    /// The target says no.
    #[error("the target refuses: {text}")]
    Refused {
        /// To match on.
        reason: Reason,
        /// To read.
        text: String,
    },
    /// It does not answer, or not as it should.
    #[error("the target at {path} {what}")]
    Answer {
        /// The socket.
        path: String,
        /// What it did.
        what: String,
    },
}

impl ConnectError {
    /// Whether another attempt may succeed while a target is being replaced.
    fn is_passing(&self) -> bool {
        match self {
            ConnectError::Unreachable { .. } | ConnectError::Answer { .. } => true,
            ConnectError::Refused { reason, .. } => reason.is_passing() || *reason == Reason::Ended,
            _ => false,
        }
    }
}

/// One connection.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) generation: u32,
    pub(super) line: Arc<Line>,
    pub(super) bells: Vec<Bells>,
}

#[derive(Debug)]
enum State {
    Up,
    Down { since: Instant, tried: Option<Instant> },
    Lost,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// The connection that is up, or was last.
    session: Session,
    info: VolumeInfo,
    /// Used up, whether the connection came about or not.
    last_generation: u32,
}

/// What the queues and buffers of a client share.
#[derive(Debug)]
pub(super) struct Shared {
    options: ConnectOptions,
    pub(super) layout: Layout,
    memfd: OwnedFd,
    pub(super) memory: Arc<SharedMemory>,
    arena: Mutex<Arena>,
    inner: Mutex<Inner>,
    /// Of the connection that is up, or was last.
    generation: AtomicU32,
    lost: AtomicBool,
}

impl Shared {
    pub(super) fn connect(options: ConnectOptions) -> Result<Arc<Shared>, ConnectError> {
        let layout = Layout::new(options.queues, options.depth, options.data_bytes)?;
        for (what, len, max) in [
            ("volume's name", options.volume.len(), VOLUME_NAME_MAX),
            ("host's NQN", options.host.nqn.len(), HOST_NQN_MAX),
        ] {
            if !(1..=max).contains(&len) {
                return Err(ConnectError::Name { what, len, max });
            }
        }
        let (memfd, memory) = SharedMemory::create("ringway-shm", layout.total_bytes() as usize)?;
        if options.populate {
            let area = layout.data_offset() as usize..layout.total_bytes() as usize;
            if let Err(error) = memory.populate(area) {
                // Before Linux 5.14, or short of memory: then page by page, as it is used.
                tracing::debug!(%error, "the data area is not allocated at once");
            }
        }
        let arena = Mutex::new(Arena::new(layout.data_bytes()));
        let (session, info) = attach(&options, layout, &memfd, &memory, 1, options.patience.max(ANSWER_WITHIN))?;
        let inner = Inner { state: State::Up, session, info, last_generation: 1 };
        Ok(Arc::new(Shared {
            options,
            layout,
            memfd,
            memory,
            arena,
            inner: Mutex::new(inner),
            generation: AtomicU32::new(1),
            lost: AtomicBool::new(false),
        }))
    }

    pub(super) fn arena(&self) -> MutexGuard<'_, Arena> {
        // A panic elsewhere leaves the list as it was between two changes.
        self.arena.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // As above.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn data_start(&self) -> *mut u8 {
        self.memory.as_ptr().wrapping_add(self.layout.data_offset() as usize)
    }

    pub(super) fn data_bytes(&self) -> usize {
        self.layout.data_bytes() as usize
    }

    pub(super) fn info(&self) -> VolumeInfo {
        let mut inner = self.inner();
        self.listen(&mut inner);
        inner.info
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    pub(super) fn generation(&self) -> u32 {
        // Relaxed: who sees it change takes the lock.
        self.generation.load(Ordering::Relaxed)
    }

    /// The connection that is up, or was last.
    pub(super) fn session(&self) -> Session {
        self.inner().session.clone()
    }

    /// Whether a connection is up, as far as is known.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.inner().state, State::Up)
    }

    /// Looks at the socket, and tries to get a target back where there is none. Takes a moment where there is none. Another
    /// thread that is at it is left alone.
    pub(super) fn look(&self) {
        let Ok(mut inner) = self.inner.try_lock() else { return };
        self.listen(&mut inner);
        let State::Down { since, tried } = &mut inner.state else { return };
        let since = *since;
        if tried.is_some_and(|tried| tried.elapsed() < RETRY) {
            return;
        }
        *tried = Some(Instant::now());
        inner.last_generation += 1;
        let generation = inner.last_generation;
        match attach(&self.options, self.layout, &self.memfd, &self.memory, generation, ANSWER_WITHIN) {
            Ok((session, info)) => {
                tracing::info!(volume = self.options.volume, generation, "the target is back");
                inner.info = info;
                (inner.state, inner.session) = (State::Up, session);
                self.generation.store(generation, Ordering::Relaxed);
            }
            Err(error) if error.is_passing() && since.elapsed() < self.options.patience => {}
            Err(error) => {
                tracing::error!(volume = self.options.volume, %error, "the target is given up");
                inner.state = State::Lost;
                self.lost.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Takes what the target has said.
    fn listen(&self, inner: &mut Inner) {
        if !matches!(inner.state, State::Up) {
            return;
        }
        let line = Arc::clone(&inner.session.line);
        loop {
            let why = match line.receive() {
                Ok(Received::Nothing) => return,
                Ok(Received::Message(Message::Changed(info), _)) => {
                    inner.info = info;
                    continue;
                }
                Ok(Received::Message(Message::Bye(_, text), _)) => text,
                Ok(Received::Closed) => "it has closed the connection".into(),
                Ok(Received::Message(..)) => "it says what makes no sense now".into(),
                Ok(Received::Garbage(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            tracing::warn!(volume = self.options.volume, "the target is gone ({why}): waiting for another");
            inner.state = State::Down { since: Instant::now(), tried: None };
            return;
        }
    }
}

/// Offers the memory and waits for the answer.
fn attach(
    options: &ConnectOptions,
    layout: Layout,
    memfd: &OwnedFd,
    memory: &Arc<SharedMemory>,
    generation: u32,
    within: Duration,
) -> Result<(Session, VolumeInfo), ConnectError> {
    let path = || options.socket.display().to_string();
    let unreachable = |source| ConnectError::Unreachable { path: path(), source };
    let line = Line::connect(&options.socket).map_err(unreachable)?;
    layout.write_header(&**memory, generation);
    let hello = Hello {
        generation,
        layout,
        host_id: options.host.id,
        host_nqn: options.host.nqn.clone(),
        volume: match (options.lease, generation) {
            (false, _) => options.volume.clone(),
            (true, 1) => format!("{}{WRITER}", options.volume),
            (true, _) => format!("{}{WRITER_AGAIN}", options.volume),
        },
        polling: options.polling,
        zeroes_itself: true,
    };
    line.send(&Message::Hello(hello), &[memfd.as_fd()]).map_err(unreachable)?;
    let answer = |what: String| ConnectError::Answer { path: path(), what };
    let deadline = Instant::now() + within;
    loop {
        match line.receive().map_err(unreachable)? {
            Received::Nothing => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(answer(format!("has not answered within {within:?}")));
                }
                wait_readable(&line, left).map_err(unreachable)?;
            }
            Received::Message(Message::Welcome(info), descriptors) => {
                let bells = bells(descriptors, layout.queues()).map_err(answer)?;
                return Ok((Session { generation, line: Arc::new(line), bells }, info));
            }
            Received::Message(Message::Refused(reason, text), _) => return Err(ConnectError::Refused { reason, text }),
            Received::Message(..) => return Err(answer("answers what makes no sense".into())),
            Received::Garbage(error) => return Err(answer(format!("answers what is no message: {error}"))),
            Received::Closed => return Err(answer("has closed the connection".into())),
        }
    }
}

fn bells(descriptors: Vec<OwnedFd>, queues: u16) -> Result<Vec<Bells>, String> {
    if descriptors.len() != 2 * usize::from(queues) {
        return Err(format!("sent {} bells for {queues} queues", descriptors.len()));
    }
    let wrong = |error: io::Error| format!("sent a bell that is none: {error}");
    let mut events = descriptors.into_iter().map(|fd| EventFd::from_peer(fd).map(Arc::new).map_err(wrong));
    let mut bells = Vec::new();
    while let (Some(commands), Some(completions)) = (events.next(), events.next()) {
        bells.push(Bells { commands: commands?, completions: completions? });
    }
    Ok(bells)
}

pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs().min(1 << 30) as i64, tv_nsec: duration.subsec_nanos().into() }
}

fn wait_readable(line: &Line, within: Duration) -> io::Result<()> {
    match rustix::event::poll(&mut [PollFd::new(line, PollFlags::IN)], Some(&timespec(within))) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
