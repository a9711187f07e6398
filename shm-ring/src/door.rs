//! The target's door: one thread that lets clients in and notices when they go. Who listens brings the connections.
//!
//! The thread does what may take a moment: it waits for Hello, maps the memory and checks it. What it delivers is ready for the
//! reactors. It keeps watching each socket: a client that has died is reported before anything that was said after its death.
//!
//! ```text
//! accepted --Hello--> offered --(the target's answer goes past this thread)--> gone, when either side closes
//!     \--5 s without Hello, or a bad one--> refused
//! ```

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringway_reactor::event::EventFd;
use ringway_reactor::shared::{SharedError, SharedMemory};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::SealFlags;

use crate::layout::LayoutError;
use crate::line::{Line, Received};
use crate::message::{Hello, Message, Reason};

/// How long a client may take to say Hello.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// Clients at most that have connected and not yet said Hello.
const WAITING_MAX: usize = 64;

/// Bounds of a target's door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Bytes of one connection's memory.
    pub memory_bytes: u64,
    /// Bytes of all connections' memory: they are the clients' bytes, but our page tables and the kernel's pins.
    pub memory_bytes_in_all: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { connections: 256, memory_bytes: 4 << 30, memory_bytes_in_all: 64 << 30 }
    }
}

/// What wakes whom on one queue.
#[derive(Clone, Debug)]
pub struct Bells {
    /// Signalled by the client.
    pub commands: Arc<EventFd>,
    /// Signalled by the target.
    pub completions: Arc<EventFd>,
}

/// A client that asks to be let in. Its memory is mapped and as large as it says.
#[derive(Debug)]
pub struct Offer {
    /// Never reused while the process lives.
    pub number: u64,
    /// What it wants.
    pub hello: Hello,
    /// To it.
    pub line: Arc<Line>,
    /// Sealed, mapped, header checked.
    pub memory: Arc<SharedMemory>,
    /// One pair a queue.
    pub bells: Vec<Bells>,
}

impl Offer {
    /// Tells the client that it is attached, and gives it the bells.
    pub fn welcome(&self, info: crate::message::VolumeInfo) -> io::Result<()> {
        let bells = self.bells.iter().flat_map(|bells| [bells.commands.as_fd(), bells.completions.as_fd()]);
        self.line.send(&Message::Welcome(info), &bells.collect::<Vec<_>>())
    }

    /// Tells the client that it is not attached, and why.
    pub fn refuse(&self, reason: Reason, text: &str) {
        refuse(&self.line, reason, text);
    }
}

/// What the door's thread reports.
#[derive(Debug)]
pub enum Knock {
    /// Somebody asks to be let in.
    Offer(Box<Offer>),
    /// The socket of this offer is closed, by whichever side.
    Gone(u64),
}

/// Where whoever listens brings connections in; any number of threads may.
#[derive(Clone, Debug)]
pub struct Entrance {
    sender: Sender<OwnedFd>,
    bell: Arc<EventFd>,
}

impl Entrance {
    /// Brings a connected SEQPACKET socket in.
    pub fn enter(&self, socket: OwnedFd) {
        // A door that is closed closes the socket.
        let _ = self.sender.send(socket);
        ring(&self.bell);
    }
}

fn ring(bell: &EventFd) {
    if let Err(error) = bell.signal() {
        tracing::error!(%error, "the thread of shared memory cannot be woken");
    }
}

/// The door's thread; dropped, it closes the door. Those inside stay.
#[derive(Debug)]
pub struct Door {
    entrance: Entrance,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    /// Starts the thread. `deliver` is called on it and must not wait.
    pub fn open(limits: Limits, deliver: impl FnMut(Knock) + Send + 'static) -> io::Result<Door> {
        let (sender, entered) = channel();
        let bell = Arc::new(EventFd::new()?);
        let stop = Arc::new(AtomicBool::new(false));
        let keeping = Keeping {
            entered,
            bell: Arc::clone(&bell),
            stop: Arc::clone(&stop),
            limits,
            deliver,
            waiting: BTreeMap::new(),
            inside: BTreeMap::new(),
            last: 0,
        };
        let thread = std::thread::Builder::new().name("ringway-shm".into()).spawn(move || keeping.run())?;
        Ok(Door { entrance: Entrance { sender, bell }, stop, thread: Some(thread) })
    }

    /// For whoever listens.
    #[must_use]
    pub fn entrance(&self) -> Entrance {
        self.entrance.clone()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        ring(&self.entrance.bell);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

struct Waiting {
    line: Arc<Line>,
    since: Instant,
}

struct Inside {
    line: Arc<Line>,
    memory_bytes: u64,
}

struct Keeping<F> {
    entered: Receiver<OwnedFd>,
    bell: Arc<EventFd>,
    stop: Arc<AtomicBool>,
    limits: Limits,
    deliver: F,
    waiting: BTreeMap<u64, Waiting>,
    inside: BTreeMap<u64, Inside>,
    last: u64,
}

impl<F: FnMut(Knock)> Keeping<F> {
    fn run(mut self) {
        loop {
            self.sleep();
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            self.look_inside();
            self.let_in();
            self.look_at_waiting();
        }
    }

    /// Until something happens.
    fn sleep(&self) {
        let mut polled = Vec::with_capacity(1 + self.waiting.len() + self.inside.len());
        polled.push(PollFd::new(&*self.bell, PollFlags::IN));
        polled.extend(self.waiting.values().map(|waiting| PollFd::new(&*waiting.line, PollFlags::IN)));
        polled.extend(self.inside.values().map(|inside| PollFd::new(&*inside.line, PollFlags::IN)));
        let timeout = (!self.waiting.is_empty()).then_some(Timespec { tv_sec: 1, tv_nsec: 0 });
        // Interrupted or not: what there is, is looked at.
        let _ = rustix::event::poll(&mut polled, timeout.as_ref());
        let _ = self.bell.take();
    }

    /// Whoever is gone is reported, and so is who says what is not in the protocol.
    fn look_inside(&mut self) {
        let mut gone = Vec::new();
        for (&number, inside) in &self.inside {
            match inside.line.receive() {
                Ok(Received::Nothing) => {}
                Ok(Received::Closed) | Err(_) => gone.push(number),
                Ok(Received::Message(..) | Received::Garbage(_)) => {
                    bye(&inside.line, Reason::Malformed, "a client says nothing after its Hello");
                    gone.push(number);
                }
            }
        }
        for number in gone {
            self.inside.remove(&number);
            (self.deliver)(Knock::Gone(number));
        }
    }

    fn let_in(&mut self) {
        while let Ok(socket) = self.entered.try_recv() {
            let line = Line::new(socket);
            if self.waiting.len() >= WAITING_MAX {
                refuse(&line, Reason::Limit, "too many clients come at once");
                continue;
            }
            self.last += 1;
            self.waiting.insert(self.last, Waiting { line: Arc::new(line), since: Instant::now() });
        }
    }

    fn look_at_waiting(&mut self) {
        let numbers: Vec<_> = self.waiting.keys().copied().collect();
        for number in numbers {
            let waiting = &self.waiting[&number];
            let line = Arc::clone(&waiting.line);
            match line.receive() {
                Ok(Received::Nothing) if waiting.since.elapsed() < HELLO_WITHIN => continue,
                Ok(Received::Nothing) => refuse(&line, Reason::Malformed, "no Hello came within 5 seconds"),
                Ok(Received::Closed) | Err(_) => {}
                Ok(Received::Garbage(error)) => refuse(&line, Reason::Malformed, &error.to_string()),
                Ok(Received::Message(Message::Hello(hello), descriptors)) => {
                    self.offer(number, line, hello, descriptors);
                }
                Ok(Received::Message(..)) => {
                    refuse(&line, Reason::Malformed, "a client's first message is Hello");
                }
            }
            self.waiting.remove(&number);
        }
    }

    fn offer(&mut self, number: u64, line: Arc<Line>, hello: Hello, descriptors: Vec<OwnedFd>) {
        match self.examine(&hello, descriptors) {
            Ok((memory, bells)) => {
                // A client that had gone before this one connected is gone by now, and reported first.
                self.look_inside();
                let memory_bytes = hello.layout.total_bytes();
                self.inside.insert(number, Inside { line: Arc::clone(&line), memory_bytes });
                (self.deliver)(Knock::Offer(Box::new(Offer { number, hello, line, memory, bells })));
            }
            Err((reason, text)) => {
                tracing::warn!(
                    pid = line.peer_pid(),
                    volume = hello.volume,
                    "a client of shared memory is refused: {text}"
                );
                refuse(&line, reason, &text);
            }
        }
    }

    fn examine(
        &self,
        hello: &Hello,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(Arc<SharedMemory>, Vec<Bells>), (Reason, String)> {
        let bytes = hello.layout.total_bytes();
        let mapped: u64 = self.inside.values().map(|inside| inside.memory_bytes).sum();
        let Limits { connections, memory_bytes, memory_bytes_in_all } = self.limits;
        if self.inside.len() >= connections {
            return Err((
                Reason::Limit,
                format!("{connections} clients are attached already, as many as there may be"),
            ));
        }
        if bytes > memory_bytes {
            let text = format!("{bytes} bytes of memory are more than the {memory_bytes} that one client may share");
            return Err((Reason::Memory, text));
        }
        if mapped + bytes > memory_bytes_in_all {
            let text =
                format!("all clients together may share {memory_bytes_in_all} bytes of memory, {mapped} are shared");
            return Err((Reason::Limit, text));
        }
        let count = descriptors.len();
        let [memfd]: [OwnedFd; 1] = descriptors.try_into().map_err(|_| {
            (Reason::Memory, format!("{count} descriptors came with Hello: one is wanted, of the memory"))
        })?;
        let memory = map(&memfd, bytes).map_err(|text| (Reason::Memory, text))?;
        let header = |error: LayoutError| (Reason::Memory, error.to_string());
        hello.layout.check_header(&*memory, hello.generation).map_err(header)?;
        let mut bells = Vec::new();
        for _ in 0..hello.layout.queues() {
            let new = || EventFd::new().map(Arc::new);
            let pair = new().and_then(|commands| new().map(|completions| Bells { commands, completions }));
            let lacking = |error: io::Error| (Reason::Internal, format!("the target lacks descriptors: {error}"));
            bells.push(pair.map_err(lacking)?);
        }
        Ok((memory, bells))
    }
}

/// Maps memory that cannot change its size, nor its seals.
fn map(memfd: &OwnedFd, bytes: u64) -> Result<Arc<SharedMemory>, String> {
    let wanted = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    let seals = rustix::fs::fcntl_get_seals(memfd).map_err(|_| "the memory is no memfd: make it with memfd_create")?;
    if !seals.contains(wanted) {
        return Err(format!("the memory has the seals {seals:?}: it needs F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_SEAL"));
    }
    if seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE) {
        return Err("the memory is sealed against writing: completions could not be written to it".into());
    }
    let size = rustix::fs::fstat(memfd).map_err(|errno| errno.to_string())?.st_size as u64;
    if size != bytes {
        return Err(format!("the memory has {size} bytes, and its layout {bytes}"));
    }
    SharedMemory::map_sealed(memfd).map_err(|error: SharedError| error.to_string())
}

/// Tells a client that was let in why that ends, and closes.
pub fn bye(line: &Line, reason: Reason, text: &str) {
    // One that does not read its messages goes without this one.
    let _ = line.send(&Message::Bye(reason, text.to_owned()), &[]);
    line.shut_down();
}

fn refuse(line: &Line, reason: Reason, text: &str) {
    // As above.
    let _ = line.send(&Message::Refused(reason, text.to_owned()), &[]);
    line.shut_down();
}
