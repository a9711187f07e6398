//! The echo that counts bytes: it knows how long messages are and never looks at one. Everything is received into one place and sent from
//! another.

use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::{EchoResult, REPLY_BYTES, REQUEST_BYTES};
use crate::cpu;

const BUFFER_BYTES: usize = 256 << 10;

/// Reads what is there; `None` if nothing is.
fn receive(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match recv(stream.as_fd(), buffer, RecvFlags::DONTWAIT) {
        Ok((0, _)) => Err(ErrorKind::UnexpectedEof.into()),
        Ok((bytes, _)) => Ok(Some(bytes)),
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sends up to `owed` bytes, whatever they are; returns how many.
fn send_some(stream: &TcpStream, buffer: &[u8], owed: usize) -> io::Result<usize> {
    match send(stream.as_fd(), &buffer[..owed.min(buffer.len())], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(bytes) => Ok(bytes),
        Err(Errno::AGAIN) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn serve(stream: &TcpStream) -> io::Result<()> {
    let (mut inbound, outbound) = (vec![0; BUFFER_BYTES], vec![0xa5; BUFFER_BYTES]);
    let (mut unread, mut owed) = (0, 0);
    loop {
        match receive(stream, &mut inbound) {
            Ok(Some(bytes)) => {
                unread += bytes;
                owed += unread / REQUEST_BYTES * REPLY_BYTES;
                unread %= REQUEST_BYTES;
            }
            Ok(None) if owed == 0 => std::hint::spin_loop(),
            Ok(None) => {}
            Err(error) => return Err(error),
        }
        if owed > 0 {
            owed -= send_some(stream, &outbound, owed)?;
        }
    }
}

pub(super) fn load(stream: &TcpStream, depth: usize, time: Duration) -> io::Result<EchoResult> {
    let (mut inbound, outbound) = (vec![0; BUFFER_BYTES], vec![0x5a; BUFFER_BYTES]);
    let (mut unread, mut owed, mut done) = (0, depth * REQUEST_BYTES, 0_u64);
    let (begun, cpu_begun) = (Instant::now(), cpu::of_thread());
    let mut turns = 0_u32;
    loop {
        if owed > 0 {
            owed -= send_some(stream, &outbound, owed)?;
        }
        if let Some(bytes) = receive(stream, &mut inbound)? {
            unread += bytes;
            let replies = unread / REPLY_BYTES;
            unread %= REPLY_BYTES;
            done += replies as u64;
            owed += replies * REQUEST_BYTES;
        }
        turns = turns.wrapping_add(1);
        // A loaded machine may not have run the server yet.
        if turns.is_multiple_of(64) && done > 0 && begun.elapsed() >= time {
            break;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let cpu_ns = (cpu::of_thread() - cpu_begun).as_nanos() as f64;
    Ok(EchoResult { per_second: done as f64 / seconds, client_cpu_ns: cpu_ns / done.max(1) as f64 })
}
