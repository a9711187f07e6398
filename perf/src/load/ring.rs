//! Random reads over shared memory, each block checked: it has to hold what was written to that very place.
//!
//! For a volume that was filled by [`super::run()`]: every unit says where it belongs. Only whether it is the newest is not checked.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rand::{Rng, SeedableRng};
use ringway_shm_ring::client::{Buffer, Client, Completion, ConnectOptions, Queue, Reject};

use super::LoadError;
use super::block::{Content, classify};
use crate::cpu;

/// What takes longer counts as this: a minute.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// Bytes of a read.
const UNIT: usize = 4096;
/// Between two looks at the clock.
const LOOK_EVERY: u64 = 64;

/// What to read.
#[derive(Clone, Debug)]
pub struct RingReads<'a> {
    /// `shm.sock` of the target.
    pub socket: &'a Path,
    /// The volume.
    pub volume: &'a str,
    /// Reads in flight.
    pub depth: u16,
    /// For so long.
    pub time: Duration,
    /// On this core.
    pub core: Option<usize>,
    /// The target's process.
    pub target_pid: u32,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct RingReport {
    /// Reads a second.
    pub iops: f64,
    /// From submission to end, microseconds.
    pub p50_us: f64,
    /// The same.
    pub p99_us: f64,
    /// CPU time of the target for each read, nanoseconds.
    pub target_cpu_ns: Option<f64>,
    /// Units that were what they have to be.
    pub verified: u64,
    /// Units that were not.
    pub faults: u64,
    /// Reads that failed.
    pub errors: u64,
}

struct Run {
    queue: Queue,
    blocks: u64,
    random: rand::rngs::SmallRng,
    /// By tag: which block, and since when.
    lanes: Vec<(u64, Instant)>,
    latency: Histogram<u64>,
    verified: u64,
    faults: u64,
    errors: u64,
}

/// Reads at random on the calling thread until the time is over, or `tick` breaks it off.
///
/// # Errors
/// If the volume cannot be attached, or the target is lost.
pub fn ring_reads(load: &RingReads<'_>, mut tick: impl FnMut() -> ControlFlow<()>) -> Result<RingReport, LoadError> {
    let local = |why: String| LoadError::Local(why);
    let mut options = ConnectOptions::new(load.socket, load.volume);
    options.depth = load.depth.next_power_of_two().max(2);
    options.data_bytes = (UNIT * usize::from(load.depth)) as u64;
    let client = Client::connect(options).map_err(|error| local(error.to_string()))?;
    let queue = client.take_queue().expect("a client has a queue");
    let allowed = cpu::allowed();
    if let Some(core) = load.core {
        cpu::pin(core).map_err(|error| local(error.to_string()))?;
    }
    let mut run = Run {
        queue,
        blocks: client.volume().size / UNIT as u64,
        random: rand::rngs::SmallRng::from_os_rng(),
        lanes: vec![(0, Instant::now()); usize::from(load.depth)],
        latency: Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("three digits are possible"),
        verified: 0,
        faults: 0,
        errors: 0,
    };
    let buffers = (0..load.depth).map(|_| client.alloc(UNIT).expect("the data area has room for each"));
    let report = run.run(buffers.collect(), load, &mut tick);
    if load.core.is_some() {
        cpu::unpin(&allowed);
    }
    report
}

impl Run {
    fn run(
        &mut self,
        buffers: Vec<Buffer>,
        load: &RingReads<'_>,
        tick: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<RingReport, LoadError> {
        let target_before = cpu::of_process(load.target_pid);
        let begun = Instant::now();
        for (lane, buffer) in buffers.into_iter().enumerate() {
            self.read(lane, buffer)?;
        }
        let (mut ended, mut looks, mut over) = (Vec::new(), 0_u64, false);
        let mut in_flight = usize::from(load.depth);
        let mut elapsed = Duration::ZERO;
        while in_flight > 0 {
            self.queue.ring();
            self.queue.poll(&mut ended);
            for completion in ended.drain(..) {
                let lane = completion.tag as usize;
                let buffer = self.judge(completion)?;
                if over {
                    in_flight -= 1;
                } else {
                    self.read(lane, buffer)?;
                }
            }
            looks += 1;
            if !over && looks.is_multiple_of(LOOK_EVERY) {
                elapsed = begun.elapsed();
                over = elapsed >= load.time || tick().is_break();
            }
        }
        let count = self.verified + self.faults + self.errors;
        let target = cpu::of_process(load.target_pid).zip(target_before);
        let us = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1000.0;
        Ok(RingReport {
            iops: count as f64 / elapsed.as_secs_f64(),
            p50_us: us(0.5),
            p99_us: us(0.99),
            target_cpu_ns: target.map(|(after, before)| (after - before).as_nanos() as f64 / count.max(1) as f64),
            verified: self.verified,
            faults: self.faults,
            errors: self.errors,
        })
    }

    fn read(&mut self, lane: usize, buffer: Buffer) -> Result<(), LoadError> {
        let block = self.random.random_range(0..self.blocks);
        self.lanes[lane] = (block, Instant::now());
        let offset = block * UNIT as u64;
        self.queue.read(offset, buffer, lane as u64).map_err(|rejected| match rejected.why {
            Reject::Lost => LoadError::Local("the target is gone".to_owned()),
            why => LoadError::Local(format!("a read was not taken: {why}")),
        })
    }

    fn judge(&mut self, completion: Completion) -> Result<Buffer, LoadError> {
        let (block, issued) = self.lanes[completion.tag as usize];
        let Some(buffer) = completion.buffer else {
            return Err(LoadError::Local("the target is gone".to_owned()));
        };
        self.latency.saturating_record(issued.elapsed().as_nanos() as u64);
        match classify(&buffer) {
            _ if !completion.status.is_success() => self.errors += 1,
            Content::Whole(stamp) if stamp.offset == block * UNIT as u64 => self.verified += 1,
            _ => self.faults += 1,
        }
        Ok(buffer)
    }
}
