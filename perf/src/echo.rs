//! The floor of TCP: two pinned threads, plain non-blocking sockets, both polling; 72 bytes out, 4,120 back, so many at a time.
//!
//! It does what a target and a host do to a socket for 4 KiB reads and nothing else: each side takes all that has arrived and
//! answers all of it with one send.

use std::io::{self, ErrorKind};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::cpu;

/// A command capsule.
pub const REQUEST_BYTES: usize = 72;
/// A data PDU with 4 KiB.
pub const REPLY_BYTES: usize = 24 + 4096;
const BUFFER_BYTES: usize = 256 << 10;

/// What one run of the echo gave.
#[derive(Clone, Copy, Debug)]
pub struct EchoResult {
    /// Messages there and back, a second.
    pub per_second: f64,
    /// CPU time of the client a message, nanoseconds.
    pub client_cpu_ns: f64,
}

/// Runs the echo for `time` with `depth` messages in flight, the server on `server_core`, the client on `client_core`.
pub fn run(depth: usize, time: Duration, server_core: usize, client_core: usize) -> io::Result<EchoResult> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    thread::scope(|scope| {
        let server = scope.spawn(move || -> io::Result<()> {
            cpu::pin(server_core)?;
            serve(&listener.accept()?.0)
        });
        // Not on this thread: what it starts later, a target say, would inherit the one core.
        let client = scope.spawn(move || -> io::Result<EchoResult> {
            cpu::pin(client_core)?;
            load(&TcpStream::connect(addr)?, depth, time)
        });
        let result = client.join().expect("the echo client does not panic");
        server.join().expect("the echo server does not panic")?;
        result
    })
}

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

fn serve(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
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
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        if owed > 0 {
            match send_some(stream, &outbound, owed) {
                Ok(sent) => owed -= sent,
                // The client has seen enough.
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn load(stream: &TcpStream, depth: usize, time: Duration) -> io::Result<EchoResult> {
    stream.set_nodelay(true)?;
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
        if turns.is_multiple_of(64) && begun.elapsed() >= time {
            break;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let cpu_ns = (cpu::of_thread() - cpu_begun).as_nanos() as f64;
    Ok(EchoResult { per_second: done as f64 / seconds, client_cpu_ns: cpu_ns / done.max(1) as f64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_go_there_and_back() {
        let cores = cpu::allowed();
        let result = run(4, Duration::from_millis(50), cores[0], *cores.last().unwrap()).unwrap();
        assert!(result.per_second > 0.0 && result.client_cpu_ns > 0.0, "{result:?}");
    }
}
