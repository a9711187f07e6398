//! The floor of TCP: two pinned threads, plain non-blocking sockets, both polling; 72 bytes out, 4,120 back, so many at a time.
//!
//! Each side takes all that has arrived and answers all of it with one send. There are two of them, since it can be argued what an
//! echo of messages is: one that counts bytes and one that knows its messages.

mod bytes;
mod messages;

use std::io::{self, ErrorKind};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::cpu;

/// A command capsule.
pub const REQUEST_BYTES: usize = 72;
/// A data PDU with 4 KiB.
pub const REPLY_BYTES: usize = 24 + 4096;

/// What an echo takes note of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// How many bytes there are.
    Bytes,
    /// Each message.
    Messages,
}

/// What one run of the echo gave.
#[derive(Clone, Copy, Debug)]
pub struct EchoResult {
    /// Messages there and back, a second.
    pub per_second: f64,
    /// CPU time of the client a message, nanoseconds.
    pub client_cpu_ns: f64,
}

/// Runs the echo for `time` with `depth` messages in flight, the server on `server_core`, the client on `client_core`.
pub fn run(by: By, depth: usize, time: Duration, server_core: usize, client_core: usize) -> io::Result<EchoResult> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    thread::scope(|scope| {
        let server = scope.spawn(move || -> io::Result<()> {
            cpu::pin(server_core)?;
            let stream = listener.accept()?.0;
            stream.set_nodelay(true)?;
            let served = match by {
                By::Bytes => bytes::serve(&stream),
                By::Messages => messages::serve(&stream, depth),
            };
            match served {
                // The client has seen enough.
                Err(error) if is_over(&error) => Ok(()),
                other => other,
            }
        });
        // Not on this thread: what it starts later, a target say, would inherit the one core.
        let client = scope.spawn(move || -> io::Result<EchoResult> {
            cpu::pin(client_core)?;
            let stream = TcpStream::connect(addr)?;
            stream.set_nodelay(true)?;
            match by {
                By::Bytes => bytes::load(&stream, depth, time),
                By::Messages => messages::load(&stream, depth, time),
            }
        });
        let result = client.join().expect("the echo client does not panic");
        server.join().expect("the echo server does not panic")?;
        result
    })
}

/// A connection that the client has left.
fn is_over(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_go_there_and_back() {
        let cores = cpu::allowed();
        for by in [By::Bytes, By::Messages] {
            for depth in [1, 200] {
                let result = run(by, depth, Duration::from_millis(50), cores[0], *cores.last().unwrap()).unwrap();
                assert!(result.per_second > 0.0 && result.client_cpu_ns > 0.0, "{result:?}");
            }
        }
    }
}
