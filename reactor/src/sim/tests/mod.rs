//! What the simulated world guarantees, and what it does to those who rely on more.

mod crashes;
mod determinism;
mod disks;
mod faults;
mod mail;
mod model;
mod sockets;
mod time;

use crate::buf::Buf;
use crate::io::{Completion, FileId, Instant, Io, IoError, Op, Payload, Token, Wait};

use super::{DiskConfig, DiskId, SimIo, World, WorldConfig};

const FILE: FileId = FileId(0);
const DISK: DiskId = DiskId(0);
const K4: u64 = 4096;

/// A world with one disk of 1 MiB.
fn world(seed: u64) -> World {
    world_with(seed, DiskConfig::default())
}

fn world_with(seed: u64, config: DiskConfig) -> World {
    let world = World::new(seed, WorldConfig::default());
    world.add_disk(DiskConfig { size: 1 << 20, ..config });
    world
}

fn filled(io: &SimIo, len: u64, byte: u8) -> Buf {
    let mut buf = io.buffers().get(len as usize).expect("a free buffer");
    buf.fill(byte);
    buf
}

fn write(io: &mut SimIo, token: u64, offset: u64, len: u64, byte: u8) {
    let buf = filled(io, len, byte);
    io.submit(Token(token), Op::Write { file: FILE, offset, data: buf.into(), durable: false });
}

fn barrier(io: &mut SimIo, token: u64) {
    io.submit(Token(token), Op::Barrier { file: FILE });
}

fn read(io: &mut SimIo, token: u64, offset: u64, len: u64) {
    let buf = filled(io, len, 0xAA);
    io.submit(Token(token), Op::Read { file: FILE, offset, data: buf.into() });
}

/// Polls until the operation has ended; what ends meanwhile is dropped.
fn wait(io: &mut SimIo, token: u64) -> Completion {
    let mut out = Vec::new();
    for _ in 0..10_000 {
        io.poll(Wait::Until(Instant::NEVER), &mut out);
        if let Some(at) = out.iter().position(|completion| completion.token == Token(token)) {
            return out.swap_remove(at);
        }
    }
    panic!("operation {token} does not end");
}

/// Polls until nothing is in flight.
fn drain(io: &mut SimIo) -> Vec<Completion> {
    let mut out = Vec::new();
    while io.in_flight() > 0 {
        io.poll(Wait::Until(Instant::NEVER), &mut out);
    }
    out
}

fn result(io: &mut SimIo, token: u64) -> Result<usize, IoError> {
    wait(io, token).result
}

fn written(io: &mut SimIo, offset: u64, len: u64, byte: u8) {
    write(io, 900, offset, len, byte);
    assert_eq!(result(io, 900), Ok(len as usize));
}

fn flushed(io: &mut SimIo) {
    barrier(io, 901);
    assert_eq!(result(io, 901), Ok(0));
}

/// The bytes of a range as a read returns them.
fn content(io: &mut SimIo, offset: u64, len: u64) -> Vec<u8> {
    read(io, 902, offset, len);
    let done = wait(io, 902);
    assert_eq!(done.result, Ok(len as usize));
    match done.payload {
        Payload::Data(data) => data.into_own().to_vec(),
        other => panic!("a read gives its buffer back, not {other:?}"),
    }
}

/// Runs a case with many seeds; a failure names the seed.
fn seeds(count: u64, case: impl Fn(u64)) {
    for seed in 0..count {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(seed)));
        assert!(outcome.is_ok(), "failed with seed {seed}");
    }
}
