//! A null volume over the native ring: its client polls on one core, the target on another, and nothing else is measured.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use ringway_shm_ring::client::{Buffer, Client, Completion, ConnectOptions};

use super::target::TargetProcess;
use super::{Bar, Failed, Goal, Options, Side, Waits, median};
use crate::cpu;

/// Requests in flight, and operations a second that are asked for.
const DEPTHS: [(usize, f64); 3] = [(1, 1e6), (32, 6e6), (128, 6e6)];
/// Microseconds at most, of the median request at depth 1.
const MEDIAN_US: f64 = 1.0;
const BLOCK_BYTES: usize = 4096;
const VOLUME_BYTES: u64 = 1 << 30;
/// Looks at the ring between two looks at the clock.
const LOOKS: u32 = 256;
/// A request that takes longer is lost.
const STUCK: Duration = Duration::from_secs(10);
/// One request in so many is timed: reading the clock costs a good part of what is measured.
const TIMED: u64 = 16;

pub(super) fn run(options: &Options) -> Result<Vec<Bar>, Failed> {
    let target = TargetProcess::start(options, "null:4GiB", &[])?;
    target.create_volume("bench", "1GiB")?;
    let socket = target.runtime().join("shm.sock");
    let mut bars = Vec::new();
    for (depth, goal) in DEPTHS {
        let (mut samples, mut medians, mut sides) = (Vec::new(), Vec::new(), Vec::new());
        let steal = cpu::steal();
        for _ in 0..options.pairs {
            let (side, median_us) = reads(options, &socket, (depth, VOLUME_BYTES), target.pid(), Waits::Polling)?;
            samples.push(side.figure);
            medians.push(median_us);
            sides.push(side);
        }
        let steal = cpu::steal_percent(steal, cpu::steal());
        let name = format!("native ring, null volume, 4 KiB read, depth {depth}");
        let mut bar = Bar::alone(name, "operations/s", samples, Goal::AtLeast(goal), steal);
        bar.client_cpu_ns = Some(median(sides.iter().filter_map(|side| side.client_cpu_ns).collect()));
        let target_ns: Vec<f64> = sides.iter().filter_map(|side| side.target_cpu_ns).collect();
        bar.target_cpu_ns = (!target_ns.is_empty()).then(|| median(target_ns));
        bars.push(bar);
        if depth == 1 {
            let name = "native ring, null volume, 4 KiB read, depth 1, median".to_owned();
            bars.push(Bar::alone(name, "us", medians, Goal::AtMost(MEDIAN_US), steal));
        }
    }
    target.stop()?;
    Ok(bars)
}

/// Random reads of a disk of so many bytes, `depth` at a time, on a connection of their own; `pid` is who serves it. Returns also
/// the median request in microseconds.
pub(super) fn reads(
    options: &Options,
    socket: &Path,
    disk: (usize, u64),
    pid: u32,
    waits: Waits,
) -> Result<(Side, f64), Failed> {
    let (socket, time, core) = (socket.to_owned(), options.time, options.client_core);
    // A thread of its own: it is pinned, and what is started later is not to inherit that.
    thread::spawn(move || load(&socket, disk, (time, waits), core, pid)).join().map_err(|_| "the client panicked")?
}

fn load(
    socket: &Path,
    (depth, bytes): (usize, u64),
    (time, waits): (Duration, Waits),
    core: usize,
    pid: u32,
) -> Result<(Side, f64), Failed> {
    cpu::pin(core)?;
    let client = Client::connect(ConnectOptions { data_bytes: 16 << 20, ..ConnectOptions::new(socket, "bench") })?;
    let mut queue = client.take_queue().ok_or("a client has a queue")?;
    let taken: Option<Vec<Buffer>> = (0..depth).map(|_| client.alloc(BLOCK_BYTES)).collect();
    let mut buffers = taken.ok_or("the data area is too small")?;
    let mut random = SmallRng::from_os_rng();
    let mut ended: Vec<Completion> = Vec::with_capacity(depth);
    let mut took: Vec<u32> = Vec::with_capacity(1 << 20);
    let (cpu_client, cpu_target) = (cpu::of_thread(), cpu::of_process(pid));
    let (mut requests, begun, mut last) = (0u64, Instant::now(), Instant::now());
    let (mut number, mut timed) = (0u64, None);
    let elapsed = loop {
        let before = requests;
        for _ in 0..LOOKS {
            for buffer in buffers.drain(..) {
                let offset = random.random_range(0..bytes / BLOCK_BYTES as u64) * BLOCK_BYTES as u64;
                number += 1;
                if timed.is_none() && number.is_multiple_of(TIMED) {
                    timed = Some((number, Instant::now()));
                }
                queue.read(offset, buffer, number)?;
            }
            queue.ring();
            requests += match waits {
                Waits::Polling => queue.poll(&mut ended),
                Waits::Asleep => queue.wait(STUCK, &mut ended),
            } as u64;
            for completion in ended.drain(..) {
                if let Some((number, since)) = timed
                    && number == completion.tag
                {
                    took.push(since.elapsed().as_nanos() as u32);
                    timed = None;
                }
                if !completion.status.is_success() {
                    return Err(format!("a read ended with {}", completion.status).into());
                }
                buffers.extend(completion.buffer);
            }
        }
        if requests > before {
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
    took.sort_unstable();
    let median_ns = took.get(took.len() / 2).copied().ok_or("no request was timed")?;
    let side = Side {
        figure: requests as f64 / elapsed.as_secs_f64(),
        client_cpu_ns: Some(an_operation(cpu::of_thread() - cpu_client)),
        target_cpu_ns: cpu::of_process(pid).zip(cpu_target).map(|(after, before)| an_operation(after - before)),
    };
    Ok((side, f64::from(median_ns) / 1000.0))
}
