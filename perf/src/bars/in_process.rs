//! A null volume inside this process: what the path from the router to the device and back costs, without a transport.

use std::thread;

use ringway_core::limits::CLUSTER;
use ringway_core::request::Command;
use ringway_core::target::InProcess;

use super::engine::{BLOCK_BYTES, Engine};
use super::{Bar, Failed, Goal, Options};
use crate::cpu;

/// Requests in flight, and what is asked for.
const DEPTHS: [(usize, Option<f64>); 3] = [(1, None), (32, Some(5e6)), (128, Some(5e6))];
const POOL_BYTES: u64 = 4 << 30;
/// Each cluster of it is mapped: reads go to the device, and their map nodes are more than the CPU's nearest cache holds.
const VOLUME_BYTES: u64 = 1 << 30;

pub(super) fn run(options: &Options) -> Result<Vec<Bar>, Failed> {
    // A thread of its own: it is pinned, and the client's later ones are not to inherit that.
    thread::scope(|scope| {
        let measured = scope.spawn(|| measure(options));
        measured.join().map_err(|_| "the thread of the target in this process panicked")?
    })
}

fn measure(options: &Options) -> Result<Vec<Bar>, Failed> {
    cpu::pin(options.target_core)?;
    let mut engine = Engine::new(InProcess::null(POOL_BYTES)?, "bench", VOLUME_BYTES)?;
    // One block of each cluster, which are those that are read.
    engine.fill(VOLUME_BYTES, CLUSTER, BLOCK_BYTES)?;
    let mut bars = Vec::new();
    for (depth, goal) in DEPTHS {
        let mut read = |time| engine.run(Command::Read, (VOLUME_BYTES, CLUSTER), depth, time);
        let (mut samples, mut cpu_ns) = (Vec::new(), Vec::new());
        let steal = cpu::steal();
        // Once unmeasured: every node is then in the cache.
        read(options.time / 4)?;
        for _ in 0..options.pairs {
            let before = cpu::of_thread();
            let (requests, elapsed) = read(options.time)?;
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
