//! A null volume as a virtual machine's disk, beside qemu-storage-daemon's export of its null device: the same independent client
//! (the crate `virtio-driver`), polling, on a ring of 1024.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use memmap2::MmapMut;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::AsRawFd;
use tempfile::TempDir;
use virtio_driver::{
    EventFd, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};

use super::target::TargetProcess;
use super::{Bar, Failed, Goal, Options, Side, Waits, interleave};
use crate::cpu;

/// Requests in flight, and how many times the peer's figure is asked for.
const DEPTHS: [(usize, f64); 3] = [(1, 6.0), (32, 2.5), (128, 2.5)];
const BLOCK_BYTES: usize = 4096;
const RING: u16 = 1024;
const VOLUME_BYTES: u64 = 1 << 30;
/// Looks at the ring between two looks at the clock.
const LOOKS: u32 = 256;
const READY_WITHIN: Duration = Duration::from_secs(20);
/// A request that takes longer is lost.
const STUCK: Duration = Duration::from_secs(10);

pub(super) fn run(options: &Options) -> Result<Vec<Bar>, Failed> {
    let target = TargetProcess::start(options, "null:4GiB", &[])?;
    target.create_volume("bench", "1GiB")?;
    let ours = target.export("bench")?;
    let null = format!("driver=null-co,node-name=null,size={VOLUME_BYTES}");
    let peer = Peer::start(options, &null, |socket| export("null", socket))?;
    let mut bars = Vec::new();
    for (depth, goal) in DEPTHS {
        let name = format!("vhost-user-blk null volume, 4 KiB read, depth {depth}, beside qemu-storage-daemon");
        bars.push(interleave(
            name,
            Some(Goal::AtLeast(goal)),
            options.pairs,
            || reads(options, &ours, (depth, VOLUME_BYTES), target.pid(), Waits::Polling),
            || reads(options, &peer.socket, (depth, VOLUME_BYTES), peer.pid(), Waits::Polling),
        )?);
    }
    drop(peer);
    target.stop()?;
    Ok(bars)
}

/// Arguments that export a node as a virtual machine's disk.
pub(super) fn export(node: &str, socket: &Path) -> Vec<String> {
    let socket = socket.display();
    let export = format!(
        "type=vhost-user-blk,id=export,node-name={node},writable=on,num-queues=1,addr.type=unix,addr.path={socket}"
    );
    vec!["--export".to_owned(), export]
}

/// qemu-storage-daemon on the target's core, with one device exported; killed when dropped.
pub(super) struct Peer {
    pub(super) child: Child,
    /// Where it is exported.
    pub(super) socket: PathBuf,
    _dir: TempDir,
}

impl Peer {
    /// `export` says how, given the socket.
    pub(super) fn start(
        options: &Options,
        blockdev: &str,
        export: impl FnOnce(&Path) -> Vec<String>,
    ) -> Result<Peer, Failed> {
        let dir = TempDir::new()?;
        let socket = dir.path().join("peer.sock");
        let child = Command::new("taskset")
            .args(["--cpu-list", &options.target_core.to_string(), "qemu-storage-daemon", "--blockdev", blockdev])
            .args(export(&socket))
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| format!("qemu-storage-daemon by taskset: {error}"))?;
        let peer = Peer { child, socket, _dir: dir };
        let begun = Instant::now();
        while !peer.socket.exists() {
            if begun.elapsed() > READY_WITHIN {
                return Err("qemu-storage-daemon does not open its socket".into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(peer)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Random reads of a disk of so many bytes, `depth` at a time, on a connection of their own; `pid` is who serves it.
pub(super) fn reads(
    options: &Options,
    socket: &Path,
    disk: (usize, u64),
    pid: u32,
    waits: Waits,
) -> Result<Side, Failed> {
    client(options, socket, disk, (Asks::Reads, options.time, waits), pid)
}

/// The same with writes, for `time`, by a client that polls.
pub(super) fn writes(
    options: &Options,
    socket: &Path,
    disk: (usize, u64),
    pid: u32,
    time: Duration,
) -> Result<Side, Failed> {
    client(options, socket, disk, (Asks::Writes, time, Waits::Polling), pid)
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    Reads,
    Writes,
}

fn client(
    options: &Options,
    socket: &Path,
    disk: (usize, u64),
    how: (Asks, Duration, Waits),
    pid: u32,
) -> Result<Side, Failed> {
    let (socket, core) = (socket.to_owned(), options.client_core);
    // A thread of its own: it is pinned, and what is started later is not to inherit that.
    thread::spawn(move || load(&socket, disk, how, core, pid)).join().map_err(|_| "the client panicked")?
}

/// Takes what has ended from the ring.
fn take_ended(queue: &mut VirtioBlkQueue<'_, usize>, ended: &mut Vec<usize>) -> Result<(), Failed> {
    for completion in queue.completions() {
        if completion.ret != 0 {
            return Err(format!("a request ended with {}", completion.ret).into());
        }
        ended.push(completion.context);
    }
    Ok(())
}

/// Sleeps until the device interrupts, which it was asked for before the last look.
fn sleep(bell: &EventFd) -> Result<(), Failed> {
    let stuck = Timespec { tv_sec: STUCK.as_secs() as i64, tv_nsec: 0 };
    if poll(&mut [PollFd::new(bell, PollFlags::IN)], Some(&stuck))? > 0 {
        bell.read()?;
    }
    Ok(())
}

fn load(
    socket: &Path,
    (depth, bytes): (usize, u64),
    (asks, time, waits): (Asks, Duration, Waits),
    core: usize,
    pid: u32,
) -> Result<Side, Failed> {
    cpu::pin(core)?;
    let features = (VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX).bits()
        | VirtioBlkFeatureFlags::FLUSH.bits();
    let path = socket.to_str().ok_or("a socket's path is text")?;
    let mut transport: Box<VirtioBlkTransport> = Box::new(VhostUser::new(path, features)?);
    let mut queue = VirtioBlkQueue::<usize>::setup_queues(&mut *transport, 1, RING)?.remove(0);
    let file = tempfile::tempfile_in("/dev/shm")?;
    file.set_len((depth * BLOCK_BYTES) as u64)?;
    // SAFETY: the file is ours and the device's; nobody truncates it, and its content is never looked at.
    let mut memory = unsafe { MmapMut::map_mut(&file) }?;
    transport.map_mem_region(memory.as_mut_ptr() as usize, memory.len(), file.as_raw_fd(), 0)?;
    queue.set_used_notif_enabled(false);
    let notifier = transport.get_submission_notifier(0);
    let bell = transport.get_completion_fd(0);
    let mut random = SmallRng::from_os_rng();
    let mut ended: Vec<usize> = (0..depth).collect();
    let (client, target) = (cpu::of_thread(), cpu::of_process(pid));
    let (mut requests, begun, mut last) = (0u64, Instant::now(), Instant::now());
    let elapsed = loop {
        for _ in 0..LOOKS {
            for slot in ended.drain(..) {
                let offset = random.random_range(0..bytes / BLOCK_BYTES as u64) * BLOCK_BYTES as u64;
                let block = &mut memory[slot * BLOCK_BYTES..][..BLOCK_BYTES];
                match asks {
                    Asks::Reads => queue.read(offset, block, slot)?,
                    Asks::Writes => queue.write(offset, block, slot)?,
                }
            }
            if queue.avail_notif_needed() {
                notifier.notify()?;
            }
            take_ended(&mut queue, &mut ended)?;
            if ended.is_empty() && waits == Waits::Asleep {
                queue.set_used_notif_enabled(true);
                take_ended(&mut queue, &mut ended)?;
                if ended.is_empty() {
                    sleep(&bell)?;
                }
                queue.set_used_notif_enabled(false);
            }
            requests += ended.len() as u64;
        }
        if !ended.is_empty() {
            last = Instant::now();
        }
        if last.elapsed() > STUCK {
            return Err("requests do not end any more".into());
        }
        if begun.elapsed() >= time {
            break begun.elapsed();
        }
    };
    let an_operation = |spent: Duration| spent.as_nanos() as f64 / requests as f64;
    Ok(Side {
        figure: requests as f64 / elapsed.as_secs_f64(),
        client_cpu_ns: Some(an_operation(cpu::of_thread() - client)),
        target_cpu_ns: cpu::of_process(pid).zip(target).map(|(after, before)| an_operation(after - before)),
    })
}
