//! The network.

use std::net::SocketAddr;

use super::*;
use crate::io::{ErrorKind, ListenerId, Socket, SocketId};

const ACCEPT: u64 = 500;
const CONNECT: u64 = 501;

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

struct Pair {
    world: World,
    target: SimIo,
    host: SimIo,
    listener: ListenerId,
    addr: SocketAddr,
    /// The connection, at the target and at the host.
    at: SocketId,
    from: SocketId,
    done: Vec<Completion>,
}

fn pair(seed: u64) -> Pair {
    pair_in(World::new(seed, WorldConfig { window: 10_000, ..WorldConfig::default() }))
}

fn pair_in(world: World) -> Pair {
    let (mut target, mut host) = (world.io(), world.outside());
    let (listener, addr) = target.listen(any_port()).unwrap();
    assert_ne!(addr.port(), 0);
    target.submit(Token(ACCEPT), Op::Accept { listener });
    host.submit(Token(CONNECT), Op::Connect { addr });
    let from = socket(&mut host, CONNECT);
    let at = socket(&mut target, ACCEPT);
    Pair { world, target, host, listener, addr, at, from, done: Vec::new() }
}

fn socket(io: &mut SimIo, token: u64) -> SocketId {
    match wait(io, token).payload {
        Payload::Socket(socket, _) => io.attach(socket).unwrap(),
        other => panic!("no socket but {other:?}"),
    }
}

impl Pair {
    fn send(&mut self, token: u64, bytes: &[u8]) {
        let mut bufs = Vec::new();
        for part in bytes.chunks(1500) {
            let mut buf = self.host.buffers().get(part.len()).unwrap();
            buf.copy_from_slice(part);
            bufs.push(buf.into());
        }
        self.host.submit(Token(token), Op::Send { socket: self.from, bufs });
    }

    fn recv(&mut self, token: u64) -> Result<Vec<u8>, IoError> {
        let buf = self.target.buffers().get(4096).unwrap();
        self.target.submit(Token(token), Op::Recv { socket: self.at, buf });
        let done = wait(&mut self.target, token);
        match done.payload {
            Payload::Buf(buf) => done.result.map(|len| buf[..len].to_vec()),
            other => panic!("a receive gives its buffer back, not {other:?}"),
        }
    }

    /// What has completed at the host so far.
    fn host_done(&mut self, token: u64) -> Option<Result<usize, IoError>> {
        self.host.poll(Wait::No, &mut self.done);
        self.done.iter().find(|done| done.token == Token(token)).map(|done| done.result)
    }
}

fn numbers(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

#[test]
fn bytes_arrive_in_order_however_they_are_cut() {
    let mut cuts = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let mut pair = pair(seed);
        let sent = numbers(9_000);
        pair.send(1, &sent);
        let mut got = Vec::new();
        let mut parts = 0;
        while got.len() < sent.len() {
            got.extend(pair.recv(2).unwrap());
            parts += 1;
        }
        assert_eq!(got, sent);
        cuts.insert(parts);
    }
    assert!(cuts.len() > 4, "cut into {cuts:?} parts");
}

#[test]
fn a_peer_that_does_not_read_keeps_a_send_in_flight() {
    let mut pair = pair(1);
    pair.send(1, &numbers(10_000));
    pair.world.advance_ns(10_000_000_000);
    assert_eq!(pair.host_done(1), Some(Ok(10_000)), "as much as the window takes is sent");
    pair.send(2, &numbers(10_000));
    pair.world.advance_ns(10_000_000_000);
    assert_eq!(pair.host_done(2), None, "no more until something is read");
    let mut got = 0;
    while got < 20_000 {
        got += pair.recv(3).unwrap().len();
    }
    assert_eq!(pair.host_done(2), Some(Ok(10_000)));
}

#[test]
fn after_a_close_the_peer_reads_what_was_sent_and_then_the_end() {
    let mut pair = pair(1);
    pair.send(1, &numbers(5_000));
    wait(&mut pair.host, 1);
    pair.host.close(pair.from);
    let mut got = Vec::new();
    loop {
        match pair.recv(2).unwrap() {
            part if part.is_empty() => break,
            part => got.extend(part),
        }
    }
    assert_eq!(got, numbers(5_000));
}

#[test]
fn a_half_closed_connection_still_carries_the_other_direction() {
    let mut pair = pair(1);
    pair.host.half_close(pair.from);
    assert_eq!(pair.recv(1), Ok(Vec::new()));
    let buf = filled(&pair.target, 100, 9);
    pair.target.submit(Token(2), Op::Send { socket: pair.at, bufs: vec![buf.into()] });
    let buf = filled(&pair.host, 100, 0);
    pair.host.submit(Token(3), Op::Recv { socket: pair.from, buf });
    assert!(wait(&mut pair.host, 3).result.unwrap() > 0);
}

#[test]
fn close_cancels_what_is_in_flight_and_gives_the_buffers_back() {
    let mut pair = pair(1);
    let buf = filled(&pair.target, 100, 0);
    pair.target.submit(Token(1), Op::Recv { socket: pair.at, buf });
    pair.target.close(pair.at);
    let done = wait(&mut pair.target, 1);
    assert_eq!(done.result.unwrap_err().kind, ErrorKind::Cancelled);
    assert!(matches!(done.payload, Payload::Buf(buf) if buf.len() == 100));
    pair.target.submit(Token(2), Op::Accept { listener: pair.listener });
    pair.target.close_listener(pair.listener);
    assert_eq!(result(&mut pair.target, 2).unwrap_err().kind, ErrorKind::Cancelled);
}

#[test]
fn a_broken_connection_is_seen_by_both_sides_at_times_of_their_own() {
    let (mut target_first, mut host_first) = (0, 0);
    for seed in 0..60 {
        let mut pair = pair(seed);
        pair.send(1, &numbers(3_000));
        pair.host.break_connection(pair.from);
        for io_at in [0, 1] {
            let (io, socket) = if io_at == 0 { (&mut pair.target, pair.at) } else { (&mut pair.host, pair.from) };
            let buf = filled(io, 4096, 0);
            io.submit(Token(7), Op::Recv { socket, buf });
        }
        let mut seen = [None, None];
        while seen.contains(&None) {
            pair.world.advance_ns(10_000);
            for (number, io) in [&mut pair.target, &mut pair.host].into_iter().enumerate() {
                let mut out = Vec::new();
                io.poll(Wait::No, &mut out);
                if let Some(done) = out.iter().find(|done| done.token == Token(7)) {
                    assert_eq!(done.result.unwrap_err().kind, ErrorKind::Disconnected, "nothing sent before arrives");
                    seen[number] = Some(io.now());
                }
            }
        }
        target_first += u64::from(seen[0] < seen[1]);
        host_first += u64::from(seen[1] < seen[0]);
    }
    assert!(target_first > 10 && host_first > 10, "{target_first} and {host_first}");
}

#[test]
fn a_resend_on_a_new_connection_may_overtake_the_old_one() {
    let mut overtaken = 0;
    for seed in 0..100 {
        let mut pair = pair(seed);
        pair.target.submit(Token(ACCEPT), Op::Accept { listener: pair.listener });
        pair.host.submit(Token(CONNECT), Op::Connect { addr: pair.addr });
        let second_from = socket(&mut pair.host, CONNECT);
        let second_at = socket(&mut pair.target, ACCEPT);
        for (socket, byte) in [(pair.from, 1), (second_from, 2)] {
            let buf = filled(&pair.host, 8, byte);
            pair.host.submit(Token(9), Op::Send { socket, bufs: vec![buf.into()] });
        }
        for (token, socket) in [(11, pair.at), (12, second_at)] {
            let buf = filled(&pair.target, 8, 0);
            pair.target.submit(Token(token), Op::Recv { socket, buf });
        }
        let first = drain(&mut pair.target).first().unwrap().token;
        overtaken += u64::from(first == Token(12));
    }
    assert!((20..80).contains(&overtaken), "overtaken {overtaken} times");
}

#[test]
fn nobody_listening_refuses_and_an_address_is_taken_once() {
    let mut pair = pair(1);
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
    pair.host.submit(Token(1), Op::Connect { addr: nowhere });
    assert_eq!(result(&mut pair.host, 1).unwrap_err().errno, libc::ECONNREFUSED);
    assert_eq!(pair.target.listen(pair.addr).unwrap_err().errno, libc::EADDRINUSE);
    pair.target.close_listener(pair.listener);
    assert!(pair.target.listen(pair.addr).is_ok());
}

#[test]
fn a_killed_process_ends_its_connections_soon_and_frees_its_address_when_its_ring_is_gone() {
    let mut taken = 0;
    for seed in 0..50 {
        let mut pair = pair(seed);
        let buf = filled(&pair.host, 100, 0);
        pair.host.submit(Token(1), Op::Recv { socket: pair.from, buf });
        let killed = pair.world.now();
        pair.world.kill();
        let mut next = pair.world.io();
        taken += u64::from(next.listen(pair.addr).is_err());
        let ended = wait(&mut pair.host, 1).result;
        assert!(ended == Ok(0) || ended.unwrap_err().kind == ErrorKind::Disconnected);
        assert!(pair.host.now().since_ns(killed) < 1_000_000);
        pair.world.quiesce();
        drop(next);
        assert!(pair.world.io().listen(pair.addr).is_ok());
    }
    assert!(taken > 40, "taken {taken} times");
}

#[test]
fn the_peers_of_a_machine_without_power_learn_of_it_late() {
    let mut pair = pair(4);
    let buf = filled(&pair.host, 100, 0);
    pair.host.submit(Token(1), Op::Recv { socket: pair.from, buf });
    let before = pair.world.now();
    pair.world.power_loss();
    assert!(pair.world.io().listen(pair.addr).is_ok());
    assert_eq!(result(&mut pair.host, 1).unwrap_err().kind, ErrorKind::Disconnected);
    assert!(pair.host.now().since_ns(before) >= 1_000_000);
}

#[test]
fn connections_break_by_chance() {
    let config = WorldConfig { break_per_segment: 200_000, ..WorldConfig::default() };
    let broken = (0..50)
        .filter(|&seed| {
            let mut pair = pair_in(World::new(seed, config.clone()));
            let ok = (0..10).all(|_| {
                pair.send(1, &numbers(100));
                wait(&mut pair.host, 1).result.is_ok() && pair.recv(2).is_ok_and(|got| !got.is_empty())
            });
            !ok
        })
        .count();
    assert!((25..50).contains(&broken), "{broken} of 50 broke");
}

#[test]
fn a_connection_moves_to_another_reactor_by_its_number() {
    let mut pair = pair(1);
    let mut other = pair.world.io();
    pair.target.submit(Token(ACCEPT), Op::Accept { listener: pair.listener });
    pair.host.submit(Token(CONNECT), Op::Connect { addr: pair.addr });
    let from = socket(&mut pair.host, CONNECT);
    let Payload::Socket(socket, peer) = wait(&mut pair.target, ACCEPT).payload else { panic!("no socket") };
    assert!(peer.ip().is_loopback());
    let number = match &socket {
        Socket::Sim(number) => *number,
        Socket::Os(fd) => panic!("{fd:?} is not simulated"),
    };
    let at = other.attach(socket).unwrap();
    assert!(pair.target.attach(Socket::Sim(number)).is_err(), "it has one owner");
    let buf = filled(&other, 10, 3);
    other.submit(Token(1), Op::Send { socket: at, bufs: vec![buf.into()] });
    let buf = filled(&pair.host, 10, 0);
    pair.host.submit(Token(2), Op::Recv { socket: from, buf });
    assert!(wait(&mut pair.host, 2).result.unwrap() > 0);
}
