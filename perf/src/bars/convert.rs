//! `qemu-img convert` of an image of 2 GiB into a volume of a file pool through the block driver, beside the same into a file of the same
//! file system that qemu-storage-daemon exports by NBD.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use super::target::TargetProcess;
use super::vhost::Peer;
use super::{Bar, Failed, Goal, Options, Side, interleave};

const IMAGE_BYTES: u64 = 2 << 30;
const MIB: u64 = 1 << 20;
/// Where `cargo xtask bench` has put the driver; else what is in PATH is run.
const DRIVER: &str = "RINGWAY_QEMU";

pub(super) fn run(options: &Options) -> Result<Vec<Bar>, Failed> {
    let folder = tempfile::tempdir_in(&options.dir)?;
    let (image, file, pool) = (folder.path().join("image"), folder.path().join("peer"), folder.path().join("pool"));
    noise(&image)?;
    // Space that is there already, as the volume's is after the first run, which is not counted.
    noise(&file)?;
    let pool = pool.to_str().ok_or("the folder's name is not text")?;
    let target = TargetProcess::start(options, pool, &["--pool-size", "3GiB"])?;
    target.create_volume("bench", "2GiB")?;
    let runtime = target.runtime().to_owned();
    let into_file = format!("driver=file,filename={},node-name=disk,cache.direct=on,aio=io_uring", file.display());
    let peer = Peer::start(options, &into_file, |socket| {
        let listen = format!("addr.type=unix,addr.path={}", socket.display());
        let export = "type=nbd,id=disk,node-name=disk,writable=on".to_owned();
        vec!["--nbd-server".to_owned(), listen, "--export".to_owned(), export]
    })?;
    let driver = std::env::var_os(DRIVER).map_or_else(|| PathBuf::from("ringway-qemu"), PathBuf::from);
    let by_nbd = format!("nbd+unix:///disk?socket={}", peer.socket.display());
    let by_tcp = target.address().replace("tcp://", "openvstorage+tcp:") + "/bench";
    let mut bars = Vec::new();
    for (way, volume) in [("shared memory", "openvstorage:bench"), ("TCP", &by_tcp)] {
        let ours = || convert(options, Command::new(&driver).arg("qemu-img"), &image, volume, &runtime);
        // Maps the volume's clusters; brings the image into the page cache.
        ours()?;
        let bar = interleave(
            format!("qemu-img convert of 2 GiB over {way}, beside NBD of qemu-storage-daemon"),
            Some(Goal::AtLeast(1.0)),
            options.pairs,
            ours,
            || convert(options, &mut Command::new("qemu-img"), &image, &by_nbd, &runtime),
        )?;
        bars.push(Bar { unit: "MiB/s", ..bar });
    }
    drop(peer);
    target.stop()?;
    Ok(bars)
}

/// An image of random bytes, all of it written.
fn noise(path: &Path) -> Result<(), Failed> {
    let mut file = File::create(path)?;
    let mut random = SmallRng::seed_from_u64(rand::random());
    let mut bytes = vec![0; MIB as usize];
    for _ in 0..IMAGE_BYTES / MIB {
        random.fill_bytes(&mut bytes);
        file.write_all(&bytes)?;
    }
    file.sync_all()?;
    Ok(())
}

/// One copy, with its flush: MiB a second.
fn convert(options: &Options, img: &mut Command, from: &Path, to: &str, runtime: &Path) -> Result<Side, Failed> {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &options.client_core.to_string()]).arg(img.get_program()).args(img.get_args());
    command.args(["convert", "-n", "-f", "raw", "-O", "raw"]).arg(from).arg(to).env("RINGWAY_RUNTIME_DIR", runtime);
    let begun = Instant::now();
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("qemu-img convert to {to}: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    let figure = (IMAGE_BYTES / MIB) as f64 / begun.elapsed().as_secs_f64();
    Ok(Side { figure, ..Side::default() })
}
