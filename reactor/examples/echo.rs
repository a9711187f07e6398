//! What a polled connection costs: 72 bytes out, 4,120 back, on loopback, one server core and one client core.
//!
//! `cargo run --release -p ringway-reactor --example echo -- [ms a point] [rounds]` compares, interleaved in one run, a server of
//! bare recv and send calls with a server on the reactor's ring, its sockets by direct calls or by the ring. The client is the
//! same bare one for all of them. Prints the median of the rounds and its ratio to the bare server's.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringway_reactor::buf::{Buf, BufPool, BufPoolConfig};
use ringway_reactor::data::Piece;
use ringway_reactor::io::{Completion, Io, Op, Payload, Socket, SocketId, Token, Wait};
use ringway_reactor::pin;
use ringway_reactor::uring::{SocketPath, UringConfig, UringIo};

const QUESTION: usize = 72;
const ANSWER: usize = 4120;
const HEADER: usize = 24;
const DEPTH_MAX: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Server {
    Bare,
    Ring(SocketPath),
}

fn would_block(result: std::io::Result<usize>) -> Option<usize> {
    match result {
        Ok(moved) => Some(moved),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
        Err(_) => Some(0),
    }
}

/// Answers whatever whole questions have come, all in one write.
fn serve_bare(mut stream: TcpStream) {
    stream.set_nonblocking(true).unwrap();
    let mut questions = vec![0u8; QUESTION * DEPTH_MAX];
    let answers = vec![7u8; ANSWER * DEPTH_MAX];
    let (mut have, mut owed) = (0, 0);
    loop {
        if owed > 0 {
            match would_block(stream.write(&answers[..owed])) {
                Some(0) => return,
                Some(written) => owed -= written,
                None => {}
            }
        }
        if owed == 0 {
            match would_block(stream.read(&mut questions[have..])) {
                Some(0) => return,
                Some(received) => have += received,
                None => continue,
            }
            owed = have / QUESTION * ANSWER;
            have %= QUESTION;
        }
    }
}

struct RingServer {
    io: UringIo,
    socket: SocketId,
    have: usize,
    spare: Vec<Piece>,
    vector: Option<Vec<Piece>>,
    room: Option<Buf>,
    open: bool,
}

impl RingServer {
    fn new(stream: TcpStream, sockets: SocketPath) -> Self {
        let pool = BufPool::leak(&BufPoolConfig { classes: vec![(4096, 512), (16 << 10, 4)] }, 0);
        let config = UringConfig { sockets, ..UringConfig::new(vec![pool], 0) };
        let mut io = UringIo::new(&config).unwrap();
        let socket = io.attach(Socket::Os(stream.into())).unwrap();
        // All headers in one slot, as a transport would: a page for each costs a third of the rate at depth 128.
        let mut headers = pool.get(HEADER * DEPTH_MAX).unwrap();
        let mut spare = Vec::with_capacity(2 * DEPTH_MAX);
        for _ in 0..DEPTH_MAX {
            let rest = headers.split_off(HEADER);
            spare.push(std::mem::replace(&mut headers, rest).into());
            spare.push(pool.get(ANSWER - HEADER).unwrap().into());
        }
        let room = pool.get(QUESTION * DEPTH_MAX);
        Self { io, socket, have: 0, spare, vector: Some(Vec::with_capacity(2 * DEPTH_MAX)), room, open: true }
    }

    /// One receive and one send in flight; each answer is a header and a page, as in NVMe/TCP.
    fn serve(mut self) {
        let mut done = Vec::with_capacity(64);
        while self.open {
            if self.have / QUESTION > 0
                && let Some(mut answers) = self.vector.take()
            {
                let count = self.have / QUESTION;
                self.have %= QUESTION;
                answers.extend(self.spare.drain(self.spare.len() - 2 * count..));
                self.io.submit(Token(1), Op::Send { socket: self.socket, bufs: answers });
            }
            if let Some(buf) = self.room.take() {
                self.io.submit(Token(2), Op::Recv { socket: self.socket, buf });
            }
            self.io.poll(Wait::No, &mut done);
            for completion in done.drain(..) {
                self.apply(completion);
            }
        }
    }

    fn apply(&mut self, completion: Completion) {
        match completion.payload {
            Payload::Bufs(mut bufs) => {
                self.spare.append(&mut bufs);
                self.vector = Some(bufs);
                self.open &= completion.result.is_ok();
            }
            Payload::Buf(buf) => {
                self.have += completion.result.unwrap_or(0);
                self.open &= completion.result.is_ok_and(|received| received > 0);
                self.room = Some(buf);
            }
            _ => {}
        }
    }
}

/// Round trips a second at `depth`.
fn measure(server: Server, depth: usize, time: Duration, cores: [usize; 2]) -> f64 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let ready = Arc::new(AtomicBool::new(false));
    let serving = {
        let ready = Arc::clone(&ready);
        std::thread::spawn(move || {
            pin::pin_current(cores[0]).unwrap();
            let (stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            match server {
                Server::Bare => {
                    ready.store(true, Ordering::Release);
                    serve_bare(stream);
                }
                Server::Ring(path) => {
                    let server = RingServer::new(stream, path);
                    ready.store(true, Ordering::Release);
                    server.serve();
                }
            }
        })
    };
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_nonblocking(true).unwrap();
    while !ready.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
    let rate = ask(&mut stream, depth, time);
    drop(stream);
    serving.join().unwrap();
    rate
}

fn ask(stream: &mut TcpStream, depth: usize, time: Duration) -> f64 {
    let questions = vec![1u8; QUESTION * depth];
    let mut answers = vec![0u8; ANSWER * depth];
    let (mut to_send, mut received, mut trips) = (depth * QUESTION, 0, 0u64);
    let started = Instant::now();
    loop {
        if to_send > 0
            && let Some(written) = would_block(stream.write(&questions[..to_send]))
        {
            to_send -= written;
        }
        if let Some(moved) = would_block(stream.read(&mut answers)) {
            assert!(moved > 0, "the server went away");
            received += moved;
            let whole = received / ANSWER;
            received %= ANSWER;
            trips += whole as u64;
            to_send += whole * QUESTION;
        }
        let elapsed = started.elapsed();
        if elapsed >= time {
            return trips as f64 / elapsed.as_secs_f64();
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>().expect("a number"));
    let time = Duration::from_millis(arguments.next().unwrap_or(500));
    let rounds = arguments.next().unwrap_or(5);
    let allowed = pin::allowed_cores().unwrap();
    assert!(allowed.len() >= 2, "two cores are needed, allowed: {allowed:?}");
    pin::pin_current(allowed[1]).unwrap();
    let servers = [Server::Bare, Server::Ring(SocketPath::Adaptive), Server::Ring(SocketPath::Ring)];
    println!("{:>6} {:>24} {:>12} {:>8}", "depth", "server", "trips/s", "of bare");
    for depth in [1, 32, DEPTH_MAX] {
        let mut rates = [const { Vec::new() }; 3];
        for _ in 0..rounds {
            for (server, rates) in servers.iter().zip(&mut rates) {
                rates.push(measure(*server, depth, time, [allowed[0], allowed[1]]));
            }
        }
        let medians = rates.map(|mut rates| {
            rates.sort_by(f64::total_cmp);
            rates[rates.len() / 2]
        });
        for (server, median) in servers.iter().zip(medians) {
            println!("{depth:>6} {:>24} {median:>12.0} {:>8.2}", format!("{server:?}"), median / medians[0]);
        }
    }
}
