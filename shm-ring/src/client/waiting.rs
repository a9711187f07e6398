//! The calls that submit one command and wait for it, with data of the caller's own: for programs that do one thing at a time.

use std::io;
use std::time::{Duration, Instant};

use super::buffer::Buffer;
use super::queue::{Completion, Queue, Reject, Rejected};
use super::status::COMPARE_FAILURE;

/// How long the calls that wait for one command poll before they sleep.
const SPIN: Duration = Duration::from_micros(20);

impl Queue {
    /// Reads into `into` from byte `offset` of the volume, and waits for it. Both are multiples of its logical block.
    pub fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let step = self.request_bytes_max as usize;
        for (nth, piece) in into.chunks_mut(step).enumerate() {
            let buffer = self.buffer(piece.len())?;
            let done = self.run(|queue| queue.read(offset + (nth * step) as u64, buffer, 0))?;
            piece.copy_from_slice(&done.expect("a read gives its buffer back"));
        }
        Ok(())
    }

    /// Writes `from` to byte `offset` of the volume, and waits for it.
    pub fn write_at(&mut self, offset: u64, from: &[u8], fua: bool) -> io::Result<()> {
        let step = self.request_bytes_max as usize;
        for (nth, piece) in from.chunks(step).enumerate() {
            let mut buffer = self.buffer(piece.len())?;
            buffer.copy_from_slice(piece);
            self.run(|queue| queue.write(offset + (nth * step) as u64, buffer, fua, 0))?;
        }
        Ok(())
    }

    /// [`Queue::compare_and_write`] of one logical block, and waits for it. `false`: the block holds something else.
    pub fn compare_and_write_at(&mut self, offset: u64, compare: &[u8], write: &[u8], fua: bool) -> io::Result<bool> {
        let mut both = self.buffer(compare.len() + write.len())?;
        both[..compare.len()].copy_from_slice(compare);
        both[compare.len()..].copy_from_slice(write);
        if compare.len() != write.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, Reject::Unaligned));
        }
        match self.end_of(|queue| queue.compare_and_write(offset, both, fua, 0))?.status {
            status if status.is_success() => Ok(true),
            status if status.code() == COMPARE_FAILURE => Ok(false),
            status => Err(io::Error::other(status)),
        }
    }

    /// [`Queue::flush`], and waits for it.
    pub fn flush_now(&mut self) -> io::Result<()> {
        self.run(|queue| queue.flush(0)).map(drop)
    }

    /// [`Queue::write_zeroes`], and waits for it.
    pub fn write_zeroes_at(&mut self, offset: u64, len: u64, deallocate: bool) -> io::Result<()> {
        self.run(|queue| queue.write_zeroes(offset, len, deallocate, 0)).map(drop)
    }

    /// [`Queue::deallocate`], and waits for it.
    pub fn deallocate_at(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.run(|queue| queue.deallocate(offset, len, 0)).map(drop)
    }

    fn buffer(&self, len: usize) -> io::Result<Buffer> {
        Buffer::take(&self.shared, len)
            .ok_or_else(|| io::Error::new(io::ErrorKind::OutOfMemory, "the data area has no room for it"))
    }

    fn run(&mut self, submit: impl FnOnce(&mut Queue) -> Result<(), Rejected>) -> io::Result<Option<Buffer>> {
        let completion = self.end_of(submit)?;
        if completion.status.is_success() { Ok(completion.buffer) } else { Err(io::Error::other(completion.status)) }
    }

    fn end_of(&mut self, submit: impl FnOnce(&mut Queue) -> Result<(), Rejected>) -> io::Result<Completion> {
        if self.outstanding() > 0 {
            let text = "a call that waits is for a queue with nothing outstanding";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        submit(self).map_err(|rejected| io::Error::new(io::ErrorKind::InvalidInput, rejected.why))?;
        self.ring();
        let mut ended = Vec::with_capacity(1);
        let started = Instant::now();
        while self.poll(&mut ended) == 0 {
            if started.elapsed() > SPIN && self.wait(Duration::MAX, &mut ended) > 0 {
                break;
            }
            std::hint::spin_loop();
        }
        Ok(ended.pop().expect("one was outstanding, and one has ended"))
    }
}
