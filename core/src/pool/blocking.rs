//! One operation at a time, waited for: for code that runs before anything is served.
//!
//! Invariant: nothing else is in flight on the [`Io`] while one of these runs, so no completion of somebody else's is ever taken.

use std::ops::Range;

use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Completion, FileId, Instant, Io, Op, Payload, Token, Wait};

use super::error::PoolError;

/// Bytes moved at once.
const CHUNK: usize = 256 << 10;
const TOKEN: Token = Token(u64::MAX);

/// Submits `op` and waits for its completion.
///
/// # Panics
/// If something else is in flight.
pub fn run<I: Io>(io: &mut I, op: Op) -> Completion {
    assert_eq!(io.in_flight(), 0, "straight-line code has the reactor to itself");
    io.submit(TOKEN, op);
    let mut completions = Vec::new();
    loop {
        // A wake-up may end the wait early.
        io.poll(Wait::Until(Instant::NEVER), &mut completions);
        if let Some(completion) = completions.pop() {
            assert!(completions.is_empty() && completion.token == TOKEN, "one operation, one completion");
            return completion;
        }
    }
}

fn buffer<I: Io>(io: &I, len: usize) -> Result<Buf, PoolError> {
    io.buffers().get(len).ok_or(PoolError::Buffers(len))
}

fn chunk<I: Io>(io: &I) -> usize {
    CHUNK.min(io.buffers().largest())
}

/// Reads `len` bytes, a multiple of 4096, into memory.
pub fn read<I: Io>(io: &mut I, file: FileId, offset: u64, len: usize) -> Result<Vec<u8>, PoolError> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = offset + bytes.len() as u64;
        let part = chunk(io).min(len - bytes.len());
        let buf = buffer(io, part)?;
        let completion = run(io, Op::Read { file, offset: at, data: buf.into() });
        let failed = |source| PoolError::Io { device: file.0, what: "read", offset: at, len: part as u64, source };
        completion.result.map_err(failed)?;
        let Payload::Data(data) = completion.payload else { unreachable!("a read gives its buffer back") };
        let buf = data.into_own();
        bytes.extend_from_slice(&buf);
    }
    Ok(bytes)
}

/// Writes `bytes`, a multiple of 4096. Not durable before a [`barrier`].
pub fn write<I: Io>(io: &mut I, file: FileId, offset: u64, bytes: &[u8]) -> Result<(), PoolError> {
    let step = chunk(io);
    for (n, part) in bytes.chunks(step).enumerate() {
        let mut buf = buffer(io, part.len())?;
        buf.copy_from_slice(part);
        write_buf(io, file, offset + (n * step) as u64, buf)?;
    }
    Ok(())
}

fn write_buf<I: Io>(io: &mut I, file: FileId, offset: u64, buf: Buf) -> Result<(), PoolError> {
    let len = buf.len() as u64;
    let completion = run(io, Op::Write { file, offset, data: buf.into(), durable: false });
    completion.result.map_err(|source| PoolError::Io { device: file.0, what: "write", offset, len, source })?;
    Ok(())
}

/// Writes zeros, and reports the bytes of each part as they are written.
pub fn zero<I: Io>(io: &mut I, file: FileId, range: Range<u64>, written: &mut dyn FnMut(u64)) -> Result<(), PoolError> {
    let mut at = range.start;
    while at < range.end {
        let part = (chunk(io) as u64).min(range.end - at);
        let mut buf = buffer(io, part as usize)?;
        buf.fill(0);
        write_buf(io, file, at, buf)?;
        at += part;
        written(part);
    }
    Ok(())
}

/// Everything written before is on stable storage.
pub fn barrier<I: Io>(io: &mut I, file: FileId) -> Result<(), PoolError> {
    let completion = run(io, Op::Barrier { file });
    let failed = |source| PoolError::Io { device: file.0, what: "barrier", offset: 0, len: 0, source };
    completion.result.map_err(failed).map(|_| ())
}
