//! The echo that knows its messages, with what any target and any host must do to a socket for 4 KiB reads, and nothing else.
//!
//! The server reads the number in each request and writes a fresh header for each reply, which it sends together with the page that is
//! that request's own; the client reads each header and copies the data into the page of its own that the request is for.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg};

use super::{EchoResult, REPLY_BYTES, REQUEST_BYTES};
use crate::cpu;

const BLOCK_BYTES: usize = 4096;
const HEADER_BYTES: usize = REPLY_BYTES - BLOCK_BYTES;
/// One receive takes 15 replies at most.
const INBOUND_BYTES: usize = 64 << 10;
/// Pieces of one send: 32 replies, as our target does. A whole queue of 128 would leave the client idle meanwhile.
const PARTS_MAX: usize = 64;

/// Bytes received and not yet read.
struct Inbound {
    bytes: Vec<u8>,
    begin: usize,
    end: usize,
}

impl Inbound {
    fn new() -> Self {
        Self { bytes: vec![0; INBOUND_BYTES], begin: 0, end: 0 }
    }

    /// Takes what has arrived behind what is unread, which moves to the front.
    fn receive(&mut self, stream: &TcpStream) -> io::Result<()> {
        self.bytes.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        match recv(stream.as_fd(), &mut self.bytes[self.end..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => Err(ErrorKind::UnexpectedEof.into()),
            Ok((bytes, _)) => {
                self.end += bytes;
                Ok(())
            }
            Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The next whole message of `len` bytes.
    fn message(&mut self, len: usize) -> Option<&[u8]> {
        let begin = self.begin;
        if self.end - begin < len {
            return None;
        }
        self.begin += len;
        Some(&self.bytes[begin..begin + len])
    }
}

/// A message's number, and its length, where NVMe/TCP has them or as near as makes no difference.
fn write_header(header: &mut [u8], number: u32, len: usize) {
    header.fill(0);
    header[4..8].copy_from_slice(&(len as u32).to_le_bytes());
    header[8..12].copy_from_slice(&number.to_le_bytes());
}

/// The number of a message that says it is `len` bytes long.
fn read_header(message: &[u8], len: usize) -> io::Result<u32> {
    let field = |at: usize| u32::from_le_bytes(message[at..at + 4].try_into().expect("four bytes"));
    if field(4) as usize == len { Ok(field(8)) } else { Err(io::Error::other("the echo lost its place in the stream")) }
}

/// What belongs to one request: the header of its reply, and the data.
struct Block {
    header: [u8; HEADER_BYTES],
    data: Page,
}

/// A block's data starts on a page, as a device wants it.
#[repr(align(4096))]
struct Page([u8; BLOCK_BYTES]);

fn blocks(depth: usize) -> Vec<Block> {
    (0..depth).map(|_| Block { header: [0; HEADER_BYTES], data: Page([0xa5; BLOCK_BYTES]) }).collect()
}

pub(super) fn serve(stream: &TcpStream, depth: usize) -> io::Result<()> {
    let mut inbound = Inbound::new();
    let mut blocks = blocks(depth);
    // Requests to be answered, in order, and the bytes of the first reply that are out.
    let (mut owed, mut sent) = (VecDeque::with_capacity(depth), 0);
    loop {
        inbound.receive(stream)?;
        while let Some(request) = inbound.message(REQUEST_BYTES) {
            let number = read_header(request, REQUEST_BYTES)?;
            let block = blocks.get_mut(number as usize).ok_or_else(|| io::Error::other("no such request"))?;
            write_header(&mut block.header, number, REPLY_BYTES);
            owed.push_back(number as usize);
        }
        if owed.is_empty() {
            std::hint::spin_loop();
            continue;
        }
        sent += match owed.len() {
            ..=4 => send_replies::<8>(stream, &blocks, &owed, sent)?,
            _ => send_replies::<PARTS_MAX>(stream, &blocks, &owed, sent)?,
        };
        let whole = sent / REPLY_BYTES;
        sent %= REPLY_BYTES;
        owed.drain(..whole);
    }
}

/// One send of at most `PARTS` pieces of the replies to `owed`, without the first `skip` bytes; returns how many bytes went.
fn send_replies<const PARTS: usize>(
    stream: &TcpStream,
    blocks: &[Block],
    owed: &VecDeque<usize>,
    mut skip: usize,
) -> io::Result<usize> {
    let mut parts = [IoSlice::new(&[]); PARTS];
    let mut count = 0;
    let bytes = owed.iter().take(PARTS / 2).flat_map(|&number| [&blocks[number].header[..], &blocks[number].data.0]);
    for bytes in bytes {
        let skipped = skip.min(bytes.len());
        skip -= skipped;
        if skipped < bytes.len() {
            parts[count] = IoSlice::new(&bytes[skipped..]);
            count += 1;
        }
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match sendmsg(stream.as_fd(), &parts[..count], &mut SendAncillaryBuffer::default(), flags) {
        Ok(bytes) => Ok(bytes),
        Err(Errno::AGAIN) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn load(stream: &TcpStream, depth: usize, time: Duration) -> io::Result<EchoResult> {
    let mut inbound = Inbound::new();
    let mut outbound: Vec<u8> = Vec::with_capacity(depth * REQUEST_BYTES);
    let mut blocks = blocks(depth);
    let ask = |outbound: &mut Vec<u8>, number: u32| {
        let begin = outbound.len();
        outbound.resize(begin + REQUEST_BYTES, 0);
        write_header(&mut outbound[begin..], number, REQUEST_BYTES);
    };
    (0..depth as u32).for_each(|number| ask(&mut outbound, number));
    let (mut sent, mut done) = (0, 0_u64);
    let (begun, cpu_begun) = (Instant::now(), cpu::of_thread());
    let mut turns = 0_u32;
    loop {
        if sent < outbound.len() {
            match send(stream.as_fd(), &outbound[sent..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(bytes) => sent += bytes,
                Err(Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
            if sent == outbound.len() {
                outbound.clear();
                sent = 0;
            }
        }
        inbound.receive(stream)?;
        while let Some(reply) = inbound.message(REPLY_BYTES) {
            let number = read_header(reply, REPLY_BYTES)?;
            let block = blocks.get_mut(number as usize).ok_or_else(|| io::Error::other("no such request"))?;
            block.data.0.copy_from_slice(&reply[HEADER_BYTES..]);
            done += 1;
            ask(&mut outbound, number);
        }
        turns = turns.wrapping_add(1);
        // A loaded machine may not have run the server yet.
        if turns.is_multiple_of(64) && done > 0 && begun.elapsed() >= time {
            break;
        }
    }
    std::hint::black_box(&blocks);
    let seconds = begun.elapsed().as_secs_f64();
    let cpu_ns = (cpu::of_thread() - cpu_begun).as_nanos() as f64;
    Ok(EchoResult { per_second: done as f64 / seconds, client_cpu_ns: cpu_ns / done.max(1) as f64 })
}
