//! A null volume as a network block device over a unix socket, beside qemu-storage-daemon's export of its null device: fio's engine
//! `nbd`, which is libnbd, reads from both.

use std::path::Path;
use std::process::Command;

use rand::RngCore;

use super::file_pool::run_fio;
use super::target::TargetProcess;
use super::vhost::Peer;
use super::{Bar, Failed, Goal, Options, Side, interleave};
use crate::cpu;

const DEPTHS: [u32; 3] = [1, 32, 128];
/// What is asked for of the peer's figure.
const GOAL: f64 = 1.5;
const VOLUME_BYTES: u64 = 1 << 30;

pub(super) fn run(options: &Options) -> Result<Vec<Bar>, Failed> {
    let target = TargetProcess::start(options, "null:4GiB", &[])?;
    target.create_volume("bench", "1GiB")?;
    target.command(&["export", "add", "nbd", "bench"])?;
    let ours = target.runtime().join("nbd/bench.sock");
    // What nobody has written is told as a hole, without data: that would be no comparison.
    fio(options, &ours, Load::Fill, target.pid())?;
    let null = format!("driver=null-co,node-name=null,size={VOLUME_BYTES}");
    let peer = Peer::start(options, &null, |socket| {
        let server = format!("addr.type=unix,addr.path={}", socket.display());
        let export = "type=nbd,id=null,node-name=null,name=bench,writable=on".to_owned();
        vec!["--nbd-server".to_owned(), server, "--export".to_owned(), export]
    })?;
    let mut bars = Vec::new();
    for depth in DEPTHS {
        let name = format!("NBD null volume, 4 KiB read, depth {depth}, beside qemu-storage-daemon");
        bars.push(interleave(
            name,
            Some(Goal::AtLeast(GOAL)),
            options.pairs,
            || fio(options, &ours, Load::Reads(depth), target.pid()),
            || fio(options, &peer.socket, Load::Reads(depth), peer.pid()),
        )?);
    }
    drop(peer);
    target.stop()?;
    Ok(bars)
}

#[derive(Clone, Copy, Debug)]
enum Load {
    /// Every block is written once.
    Fill,
    /// Random reads, so many at a time.
    Reads(u32),
}

/// One run on the client's core.
fn fio(options: &Options, socket: &Path, load: Load, pid: u32) -> Result<Side, Failed> {
    let mut command = Command::new("fio");
    command.args(["--name=nbd", "--ioengine=nbd", "--thread=1", "--output-format=json", "--norandommap=1"]);
    command.arg(format!("--uri=nbd+unix:///bench?socket={}", socket.display())).arg(format!("--size={VOLUME_BYTES}"));
    command.arg(format!("--cpus_allowed={}", options.client_core));
    match load {
        Load::Fill => command.args(["--rw=write", "--bs=256k", "--iodepth=4"]),
        Load::Reads(depth) => command
            .args(["--rw=randread", "--bs=4k", "--randrepeat=0", "--time_based=1"])
            .arg(format!("--randseed={}", rand::rng().next_u32()))
            .arg(format!("--iodepth={depth}"))
            .arg(format!("--runtime={}ms", options.time.as_millis())),
    };
    let before = cpu::of_process(pid);
    let side = run_fio(&mut command)?;
    let operations = side.figure * options.time.as_secs_f64();
    let of = |(after, before): (std::time::Duration, std::time::Duration)| {
        after.saturating_sub(before).as_nanos() as f64 / operations
    };
    Ok(Side { target_cpu_ns: cpu::of_process(pid).zip(before).map(of), ..side })
}
