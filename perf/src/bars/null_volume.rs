//! NVMe/TCP against the echo of the same messages: what the protocol, the target and the host add to the sockets.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use ringway_core::host::Target;

use super::target::TargetProcess;
use super::{Bar, Failed, Goal, Options, Side, echo_side, interleave, polled_load};
use crate::load::Mix;
use crate::responder;

/// Depth, and what is asked for of the echo.
const DEPTHS: [(u32, f64); 3] = [(1, 0.8), (32, 0.65), (128, 0.65)];

/// Our target with a null volume, our host, one core each.
pub(super) fn run(options: &Options) -> Result<Vec<Bar>, Failed> {
    let target = TargetProcess::start(options, "null:64GiB", &[])?;
    let volume = target.create_volume("bench", "16GiB")?;
    let pid = target.pid();
    let mut bars = Vec::new();
    for (depth, goal) in DEPTHS {
        bars.push(interleave(
            format!("NVMe/TCP null volume, 4 KiB read, depth {depth}"),
            Some(Goal::AtLeast(goal)),
            options.pairs,
            || Ok(Side::from(&polled_load(options, &volume, depth, Mix::READ, pid)?)),
            || echo_side(options, depth),
        )?);
    }
    target.stop()?;
    Ok(bars)
}

/// Our host alone, against a responder of plain sockets.
pub(super) fn host_alone(options: &Options) -> Result<Vec<Bar>, Failed> {
    let over = AtomicBool::new(false);
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        let responder = scope.spawn(|| {
            responder::serve(options.target_core, &over, move |addr| {
                // Who asked for it waits for the address, unless it panicked.
                let _ = tell.send(addr);
            })
        });
        let run = || -> Result<Vec<Bar>, Failed> {
            let target = Target::parse(&format!("tcp://{}/null", told.recv()?))?;
            let bars = DEPTHS.iter().map(|&(depth, _)| {
                let name = format!("host on a bare responder, 4 KiB read, depth {depth}");
                let ours = || Ok(Side::from(&polled_load(options, &target, depth, Mix::READ, 0)?));
                interleave(name, None, options.pairs, ours, || echo_side(options, depth))
            });
            bars.collect()
        };
        let bars = run();
        over.store(true, Ordering::Relaxed);
        responder.join().expect("the responder does not panic")?;
        bars
    })
}
