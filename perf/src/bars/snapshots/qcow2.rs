//! For scale: the same with internal snapshots of a qcow2 image, by qemu-storage-daemon, whose disk the crate `virtio-driver` writes to as
//! a virtual machine does. It is another client than ours; so each is held to itself without snapshots.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::vhost::{Peer, export, writes};
use super::super::{Bar, Failed, Options, interleave};
use super::overwrites::KEPT;
use super::{DEPTH, meanwhile, window};

/// The name of the disk inside the daemon.
const DISK: &str = "disk";
const READY_WITHIN: Duration = Duration::from_secs(20);

pub(super) fn beside_none(options: &Options, bytes: u64) -> Result<Bar, Failed> {
    let folder = tempfile::tempdir_in(&options.dir)?;
    let image = folder.path().join("image.qcow2");
    let created = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-o", "preallocation=full"])
        .arg(&image)
        .arg(bytes.to_string())
        .status()?;
    if !created.success() {
        return Err(format!("qemu-img cannot make {}: {created}", image.display()).into());
    }
    let monitor = folder.path().join("monitor.sock");
    let file = format!("driver=file,node-name=file,cache.direct=on,aio=native,filename={}", image.display());
    let peer = Peer::start(options, &file, |socket| {
        let qcow2 = format!("driver=qcow2,node-name={DISK},file=file,cache.direct=on");
        let chardev = format!("socket,id=monitor,server=on,wait=off,path={}", monitor.display());
        let more = ["--blockdev", &qcow2, "--chardev", &chardev, "--monitor", "chardev=monitor"].map(str::to_owned);
        more.into_iter().chain(export(DISK, socket)).collect()
    })?;
    let mut monitor = Monitor::connect(&monitor)?;
    let disk = (DEPTH as usize, bytes);
    let alone = || writes(options, &peer.socket, disk, peer.child.id(), window(options));
    // Not measured: what the first writes of all do to caches and to the file system.
    alone()?;
    let cut = || {
        let mut made = 0;
        let each = |count: u64| {
            monitor.run("blockdev-snapshot-internal-sync", &json!({"device": DISK, "name": format!("s{count}")}))?;
            made = count + 1;
            count.checked_sub(KEPT).map_or(Ok(()), |old| monitor.remove(old))
        };
        let side = meanwhile(options, Duration::from_secs(1), each, alone)?;
        (made.saturating_sub(KEPT)..made).try_for_each(|old| monitor.remove(old))?;
        Ok(side)
    };
    let name =
        "for scale, qcow2 by qemu-storage-daemon: 4 KiB random writes, an internal snapshot every second, beside none";
    let bar = interleave(name.into(), None, options.pairs, cut, alone)?;
    drop(peer);
    folder.close()?;
    Ok(bar)
}

/// Who commands the daemon, in its own language.
struct Monitor {
    asks: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Monitor {
    fn connect(socket: &Path) -> Result<Monitor, Failed> {
        let begun = Instant::now();
        let asks = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if begun.elapsed() > READY_WITHIN => {
                    return Err(format!("qemu-storage-daemon does not open its monitor: {error}").into());
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let answers = BufReader::new(asks.try_clone()?);
        let mut monitor = Monitor { asks, answers };
        monitor.run("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// A command to its end. Greetings and events are let pass.
    fn run(&mut self, command: &str, arguments: &Value) -> Result<(), Failed> {
        writeln!(self.asks, "{}", json!({"execute": command, "arguments": arguments}))?;
        loop {
            let mut line = String::new();
            if self.answers.read_line(&mut line)? == 0 {
                return Err("qemu-storage-daemon has ended".into());
            }
            let answer: Value = serde_json::from_str(&line)?;
            if let Some(error) = answer.get("error") {
                return Err(format!("{command}: {error}").into());
            }
            if answer.get("return").is_some() {
                return Ok(());
            }
        }
    }

    fn remove(&mut self, snapshot: u64) -> Result<(), Failed> {
        let name = format!("s{snapshot}");
        self.run("blockdev-snapshot-delete-internal-sync", &json!({"device": DISK, "name": name}))
    }
}
