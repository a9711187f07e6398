//! Another process: a client that keeps no rule. It is this test binary, started again with
//! [`PART`] saying what to be.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ringway_reactor::event::EventFd;
use ringway_reactor::shared::SharedMemory;
use ringway_shm_ring::client::Command;
use ringway_shm_ring::layout::Layout;
use ringway_shm_ring::line::{Line, Received};
use ringway_shm_ring::message::{Hello, Message, Polling, Reason};
use ringway_shm_ring::ring::ClientQueue;

use crate::rig::MIB;

/// What the other process is to be, and the folder of the target.
const PART: &str = "RINGWAY_TEST_SHM_PART";

/// A process that ends with whoever started it.
pub(crate) struct Other(Child);

impl Other {
    /// Whether it ended well.
    pub(crate) fn wait(&mut self) -> bool {
        self.0.wait().unwrap().success()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the other process.
pub(crate) fn start(part: &str, folder: &Path) -> Other {
    let child = Process::new(std::env::current_exe().unwrap())
        .args(["--exact", "peer::plays_the_part_that_another_test_gave_it", "--nocapture"])
        .env(PART, format!("{part} {}", folder.display()))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    Other(child)
}

#[test]
fn plays_the_part_that_another_test_gave_it() {
    let Ok(given) = std::env::var(PART) else { return };
    let (part, folder) = given.split_once(' ').unwrap();
    let folder = PathBuf::from(folder);
    match part {
        "scribbler" => scribble(&folder),
        "dier" => die(&folder),
        other => panic!("no part {other}"),
    }
}

/// A connection without the client library: whatever it wants to say or write, it can.
pub(crate) struct Peer {
    pub(crate) line: Line,
    pub(crate) memory: Arc<SharedMemory>,
    pub(crate) layout: Layout,
    pub(crate) generation: u32,
    bell: EventFd,
}

pub(crate) fn hello(layout: Layout, volume: &str) -> Hello {
    let host_nqn = "nqn.2014-08.org.nvmexpress:uuid:evil".to_owned();
    let (volume, polling) = (volume.to_owned(), Polling::Adaptive);
    Hello { generation: 5, layout, host_id: [66; 16], host_nqn, volume, polling, zeroes_itself: false }
}

/// Sends Hello with whatever descriptors, and waits for the answer.
pub(crate) fn knock(folder: &Path, hello: &Hello, descriptors: &[&OwnedFd]) -> (Line, Message, Vec<OwnedFd>) {
    let line = Line::connect(&folder.join("shm.sock")).unwrap();
    let borrowed: Vec<_> = descriptors.iter().map(|fd| fd.as_fd()).collect();
    line.send(&Message::Hello(hello.clone()), &borrowed).unwrap();
    let (answer, bells) = hear_all(&line);
    (line, answer, bells)
}

/// The target's next word.
pub(crate) fn hear(line: &Line) -> Message {
    hear_all(line).0
}

fn hear_all(line: &Line) -> (Message, Vec<OwnedFd>) {
    let started = Instant::now();
    loop {
        match line.receive().unwrap() {
            Received::Message(message, descriptors) => return (message, descriptors),
            Received::Nothing => {
                assert!(started.elapsed() < Duration::from_secs(20), "the target says nothing");
                std::thread::sleep(Duration::from_millis(1));
            }
            other => panic!("{other:?}"),
        }
    }
}

impl Peer {
    pub(crate) fn connect(folder: &Path, volume: &str, entries: u16) -> Peer {
        Peer::greet(folder, volume, entries, |_| {})
    }

    /// With a Hello that `changed` has its way with.
    pub(crate) fn greet(folder: &Path, volume: &str, entries: u16, changed: impl FnOnce(&mut Hello)) -> Peer {
        let layout = Layout::new(1, entries, MIB).unwrap();
        let (memfd, memory) = SharedMemory::create("peer", layout.total_bytes() as usize).unwrap();
        let mut hello = hello(layout, volume);
        changed(&mut hello);
        layout.write_header(&*memory, hello.generation);
        let (line, answer, bells) = knock(folder, &hello, &[&memfd]);
        assert!(matches!(answer, Message::Welcome(_)), "{answer:?}");
        let bell = EventFd::from_peer(bells.into_iter().next().unwrap()).unwrap();
        Peer { line, memory, layout, generation: hello.generation, bell }
    }

    pub(crate) fn queue(&self) -> ClientQueue<Arc<SharedMemory>> {
        ClientQueue::new(Arc::clone(&self.memory), self.layout.queue(0), self.generation)
    }

    /// Rings, whether or not the target sleeps.
    pub(crate) fn nudge(&self) {
        self.bell.signal().unwrap();
    }
}

/// Valid tickets on nonsense, nonsense on valid tickets, and every word of the queue changed all the time.
fn scribble(folder: &Path) {
    let mut random = StdRng::seed_from_u64(7);
    for _ in 0..40 {
        let peer = Peer::connect(folder, "evil", 32);
        let (base, end) = (peer.layout.queue(0).base(), peer.layout.data_offset() as usize);
        let mut queue = peer.queue();
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(50) {
            for _ in 0..64 {
                let at = random.random_range(base..end) / 8 * 8;
                let value = if random.random_bool(0.5) { random.random() } else { random.random_range(0..64) };
                peer.memory.store_u64(at, value, Ordering::Relaxed);
            }
            if queue.has_room() {
                let mut words = if random.random_bool(0.5) {
                    Command::write(random.random_range(0..1 << 12), random.random_range(1..600), false)
                        .with_data(random.random_range(0..2 * MIB), random.random_range(0..1 << 19))
                        .with_cid(random.random())
                        .words()
                } else {
                    std::array::from_fn(|_| random.random())
                };
                words[0] = words[0] & !0xFF | random.random_range(0..16u64);
                queue.submit(words);
            }
            while queue.take().is_some() {}
            peer.nudge();
        }
    }
}

/// Dies with a queue full of writes.
fn die(folder: &Path) {
    let peer = Peer::connect(folder, "evil", 128);
    let mut queue = peer.queue();
    for cid in 0..128 {
        queue.submit(Command::write(u64::from(cid) * 8, 8, false).with_data(0, 4096).with_cid(cid).words());
    }
    peer.nudge();
    std::process::abort();
}

/// Whether the target has sent this peer away, and why.
pub(crate) fn sent_away(peer: &Peer) -> (Reason, String) {
    match hear(&peer.line) {
        Message::Bye(reason, text) => (reason, text),
        other => panic!("{other:?}"),
    }
}
