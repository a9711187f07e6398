//! A null volume inside this process: what the path from the router to the device and back costs, without a transport.

use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use ringway_core::control::{ControlAnswer, ControlCall, ControlRequest, VolumeCreate};
use ringway_core::ids::{AssociationId, RequestId, VolumeId};
use ringway_core::limits::CLUSTER;
use ringway_core::request::{Command, Done, Request, Status};
use ringway_core::target::InProcess;
use ringway_reactor::buf::Buf;

use super::{Bar, Failed, Goal, Options};
use crate::cpu;

/// Requests in flight, and what is asked for.
const DEPTHS: [(usize, Option<f64>); 3] = [(1, None), (32, Some(5e6)), (128, Some(5e6))];
const BLOCK_BYTES: u32 = 4096;
const POOL_BYTES: u64 = 4 << 30;
/// Each cluster of it is mapped: reads go to the device, and their map nodes are more than the CPU's nearest cache holds.
const VOLUME_BYTES: u64 = 1 << 30;
/// Turns between two looks at the clock.
const TURNS: u32 = 256;

pub(super) fn run(options: &Options) -> Result<Vec<Bar>, Failed> {
    // A thread of its own: it is pinned, and the client's later ones are not to inherit that.
    thread::scope(|scope| {
        let measured = scope.spawn(|| measure(options));
        measured.join().map_err(|_| "the thread of the target in this process panicked")?
    })
}

fn measure(options: &Options) -> Result<Vec<Bar>, Failed> {
    cpu::pin(options.target_core)?;
    let mut client = Client::new(InProcess::null(POOL_BYTES)?)?;
    client.map_all()?;
    let mut bars = Vec::new();
    for (depth, goal) in DEPTHS {
        let (mut samples, mut cpu_ns) = (Vec::new(), Vec::new());
        let steal = cpu::steal();
        // Once unmeasured: every node is then in the cache.
        client.read(depth, options.time / 4)?;
        for _ in 0..options.pairs {
            let before = cpu::of_thread();
            let (requests, elapsed) = client.read(depth, options.time)?;
            samples.push(requests as f64 / elapsed.as_secs_f64());
            cpu_ns.push((cpu::of_thread() - before).as_nanos() as f64 / requests as f64);
        }
        let name = format!("in-process null volume, 4 KiB read, depth {depth}");
        let goal_or_any = Goal::AtLeast(goal.unwrap_or(0.0));
        let mut bar = Bar::alone(name, "operations/s", samples, goal_or_any, cpu::steal_percent(steal, cpu::steal()));
        bar.goal = goal.map(Goal::AtLeast);
        bar.target_cpu_ns = Some(super::median(cpu_ns));
        bars.push(bar);
    }
    Ok(bars)
}

/// Who asks the target on its own thread.
struct Client {
    target: InProcess,
    volume: VolumeId,
    random: SmallRng,
    ended: Vec<Done>,
}

impl Client {
    fn new(mut target: InProcess) -> Result<Client, Failed> {
        let create = VolumeCreate {
            name: "bench".into(),
            size: VOLUME_BYTES,
            lba_bytes: BLOCK_BYTES,
            shards: None,
            exclusive: false,
            allowed_hosts: Vec::new(),
        };
        let (tell, told) = mpsc::channel();
        let call = ControlCall::new(ControlRequest::VolumeCreate(create), move |answer| {
            // Who asked waits for it, unless it panicked.
            let _ = tell.send(answer);
        });
        target.control().control(call);
        let answer = loop {
            target.turn();
            match told.try_recv() {
                Ok(answer) => break answer?,
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Err("the target dropped a control call".into()),
            }
        };
        let ControlAnswer::Volume(volume) = answer else { return Err(format!("not a volume: {answer:?}").into()) };
        Ok(Client { target, volume: volume.id, random: SmallRng::from_os_rng(), ended: Vec::new() })
    }

    fn submit(&mut self, slot: u64, command: Command, offset: u64, buf: Buf) {
        let request = Request {
            association: AssociationId(1),
            volume: self.volume,
            command,
            offset,
            len: BLOCK_BYTES,
            data: Some(buf.into()),
        };
        self.target.submit(RequestId(slot), request);
    }

    fn buffer(&self) -> Result<Buf, Failed> {
        self.target.buffers().get(BLOCK_BYTES as usize).ok_or_else(|| "the pool has no buffer left".into())
    }

    /// Takes what has ended; each gives its buffer back.
    fn turn(&mut self) -> Result<(), Failed> {
        self.target.turn();
        self.ended.extend(self.target.take_done());
        match self.ended.iter().find(|done| done.status != Status::Success) {
            Some(failed) => Err(format!("a request of the null volume ended with {:?}", failed.status).into()),
            None => Ok(()),
        }
    }

    /// Writes one block of each cluster.
    fn map_all(&mut self) -> Result<(), Failed> {
        for cluster in 0..VOLUME_BYTES / CLUSTER {
            let buf = self.buffer()?;
            self.submit(0, Command::Write { fua: false }, cluster * CLUSTER, buf);
            while self.ended.is_empty() {
                self.turn()?;
            }
            self.ended.clear();
        }
        Ok(())
    }

    /// Reads mapped blocks at random, `depth` at a time; how many were read in which time.
    fn read(&mut self, depth: usize, time: Duration) -> Result<(u64, Duration), Failed> {
        for slot in 0..depth as u64 {
            let (offset, buf) = (self.offset(), self.buffer()?);
            self.submit(slot, Command::Read, offset, buf);
        }
        let (mut requests, begun) = (0, Instant::now());
        let elapsed = loop {
            for _ in 0..TURNS {
                self.turn()?;
                requests += self.ended.len() as u64;
                let mut ended = std::mem::take(&mut self.ended);
                for done in ended.drain(..) {
                    let (offset, buf) =
                        (self.offset(), done.data.ok_or("a read did not give its buffer back")?.into_own());
                    self.submit(done.id.0, Command::Read, offset, buf);
                }
                self.ended = ended;
            }
            if begun.elapsed() >= time {
                break begun.elapsed();
            }
        };
        let mut left = depth;
        while left > 0 {
            self.turn()?;
            left -= self.ended.drain(..).count();
        }
        Ok((requests, elapsed))
    }

    /// A block that is mapped: the first of any cluster.
    fn offset(&mut self) -> u64 {
        self.random.random_range(0..VOLUME_BYTES / CLUSTER) * CLUSTER
    }
}
