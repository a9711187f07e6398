//! NVMe/TCP, 4 KiB reads, against echoes of the same messages: what the protocol, the target and the host add to the sockets.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use ringway_core::host::Target;

use super::target::TargetProcess;
use super::{Bar, Failed, Goal, Options, Side, beside_echoes, polled_load};
use crate::load::Mix;
use crate::responder;

/// Depth, and what is asked for of the echo.
const DEPTHS: [(u32, f64); 3] = [(1, 0.8), (32, 0.65), (128, 0.65)];

/// As large as the volume of the `inprocess` group: its map stays in the cache, as what is measured here is the way of a request and not memory.
const VOLUME: &str = "1GiB";

/// Our target with a null volume, our host, one core each.
pub(super) fn run(options: &Options) -> Result<Vec<Bar>, Failed> {
    let target = TargetProcess::start(options, "null:64GiB", &[])?;
    let volume = target.create_volume("bench", VOLUME)?;
    let pid = target.pid();
    let mut bars = Vec::new();
    for (depth, goal) in DEPTHS {
        let mut ours = || Ok(Side::from(&polled_load(options, &volume, depth, Mix::READ, pid)?));
        bars.extend(beside_echoes(options, "NVMe/TCP null volume", depth, Some(Goal::AtLeast(goal)), &mut ours)?);
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
            let mut bars = Vec::new();
            for (depth, _) in DEPTHS {
                let mut ours = || Ok(Side::from(&polled_load(options, &target, depth, Mix::READ, 0)?));
                bars.extend(beside_echoes(options, "host on a bare responder", depth, None, &mut ours)?);
            }
            Ok(bars)
        };
        let bars = run();
        over.store(true, Ordering::Relaxed);
        responder.join().expect("the responder does not panic")?;
        bars
    })
}
