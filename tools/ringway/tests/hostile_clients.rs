//! Clients that break the protocol, stop reading, or vanish, on real sockets: a verified load beside them is not disturbed.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use common::{Daemon, Place, finish, ringway, spawn};
use rustix::process::Signal;

const ICREQ: u8 = 0;
const ICRESP: u8 = 1;
const TERMINATION: u8 = 3;
const CAPSULE: u8 = 4;
const RESPONSE: u8 = 5;

fn connect(daemon: &Daemon) -> TcpStream {
    let socket = TcpStream::connect(daemon.listener().trim_start_matches("tcp://")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    socket
}

/// Common header: type, flags, length of the header, offset of the data, length of it all.
fn header(kind: u8, header_bytes: u8, bytes: u32) -> Vec<u8> {
    [&[kind, 0, header_bytes, 0][..], &bytes.to_le_bytes()].concat()
}

fn greeting() -> Vec<u8> {
    let mut pdu = header(ICREQ, 128, 128);
    pdu.resize(128, 0);
    pdu
}

/// A connection that has agreed on the plainest terms.
fn greeted(daemon: &Daemon) -> TcpStream {
    let mut socket = connect(daemon);
    socket.write_all(&greeting()).unwrap();
    let mut answer = [0; 128];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!(answer[0], ICRESP);
    socket
}

/// What the target says before it ends the connection; it may say nothing.
fn last_words(mut socket: TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _ = socket.read_to_end(&mut answer);
    answer
}

fn submission(opcode: u8, bytes: u32) -> Vec<u8> {
    let mut pdu = header(CAPSULE, 72, bytes);
    pdu.resize(72, 0);
    pdu[8] = opcode;
    pdu[10] = 0x17; // command identifier
    pdu[12] = 1; // namespace
    pdu[8 + 32..8 + 36].copy_from_slice(&4096_u32.to_le_bytes());
    pdu[8 + 39] = 0x5a; // over the transport
    pdu
}

/// Noise that is the same each time.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(|_| byte()).collect()
}

fn break_the_protocol(daemon: &Daemon) {
    // Not this protocol at all.
    let mut socket = connect(daemon);
    socket.write_all(b"GET / HTTP/1.1\r\nhost: target\r\n\r\n").unwrap();
    last_words(socket);
    for seed in 0..32 {
        let mut socket = if seed % 2 == 0 { connect(daemon) } else { greeted(daemon) };
        let _ = socket.write_all(&noise(seed, 20_000));
        let _ = socket.shutdown(Shutdown::Write);
        last_words(socket);
    }
    // A PDU longer than agreed: refused by its header, whatever would follow.
    let mut socket = greeted(daemon);
    socket.write_all(&submission(2, u32::MAX)).unwrap();
    assert_eq!(last_words(socket).first(), Some(&TERMINATION));
    // A second greeting.
    let mut socket = greeted(daemon);
    socket.write_all(&greeting()).unwrap();
    assert_eq!(last_words(socket).first(), Some(&TERMINATION));
    // A read on a queue that is not connected ends with a status, and the connection goes on.
    let mut socket = greeted(daemon);
    for _ in 0..2 {
        socket.write_all(&submission(2, 72)).unwrap();
        let mut response = [0; 24];
        socket.read_exact(&mut response).unwrap();
        let status = u16::from_le_bytes([response[22], response[23]]) >> 1;
        assert_eq!((response[0], response[20], status & 0x7ff), (RESPONSE, 0x17, 0x0c), "{response:?}");
    }
    // Gone in the middle of a PDU, with an end and without.
    for cut in [1, 60, 128, 150] {
        let mut socket = connect(daemon);
        socket.write_all(&[greeting(), submission(1, 4096)].concat()[..cut]).unwrap();
        if cut % 2 == 0 {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

#[test]
fn hostile_clients_are_ended_one_by_one_and_nobody_else_is_disturbed() {
    let place = Place::new();
    let daemon = place.serve(&["--pool-size", "512MiB"]);
    for volume in ["good", "bad"] {
        place.run(&["volume", "create", volume, "64MiB", "--json"]).json();
    }
    let target = |volume: &str| format!("{}/{volume}", daemon.listener());
    let fill = ["--mix", "write", "--pattern", "seq", "--block", "256KiB", "--operations", "256", "--json"];
    finish(spawn(ringway(["bench", &target("bad")]).args(fill))).json();
    let load = ["--verify", "--fresh", "--mix", "write=50,read=45,flush=5", "--time", "12", "--sweep", "acknowledged"];
    let good = spawn(ringway(["bench", &target("good")]).args(load).args(["--timeout", "8", "--json"]));

    // Two that ask for much and read nothing of it, one that writes and stops in the middle of it.
    let greedy = ["--block", "256KiB", "--depth", "128", "--time", "60"];
    let stopped: Vec<_> = ["read", "read", "write"]
        .map(|mix| spawn(ringway(["bench", &target("bad"), "--mix", mix]).args(greedy)))
        .into_iter()
        .collect();
    std::thread::sleep(Duration::from_millis(1500));
    stopped.iter().for_each(|client| client.signal(Signal::STOP));
    break_the_protocol(&daemon);
    std::thread::sleep(Duration::from_secs(2));
    // And then they are no more.
    stopped.into_iter().for_each(common::Running::kill);

    let report = finish(good).json();
    assert_eq!(report["verify"]["faults"].as_object().map(serde_json::Map::len), Some(0), "{report}");
    assert_eq!((&report["reconnects"], report["errors"].as_object().map(serde_json::Map::len)), (&0.into(), Some(0)));
    // Everything of theirs comes back: the volume can be had again, and the target stops in good order.
    let check = ["--mix", "read", "--block", "256KiB", "--operations", "256", "--json"];
    finish(spawn(ringway(["bench", &target("bad")]).args(check))).json();
    let ended = daemon.stop();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
}

#[test]
fn sigterm_under_load_finishes_what_is_in_flight_and_closes_the_pool_in_good_order() {
    let place = Place::new();
    let daemon = place.serve(&["--pool-size", "256MiB"]);
    place.run(&["volume", "create", "vm1", "32MiB", "--json"]).json();
    let listener = daemon.listener();
    let (target, oracle) = (format!("{listener}/vm1"), place.path("oracle"));
    let load = ["--verify", "--fresh", "--mix", "write=80,read=20", "--depth", "64", "--queues", "2", "--time", "5"];
    let running = spawn(
        ringway(["bench", &target, "--oracle", oracle.to_str().unwrap(), "--sweep", "acknowledged", "--json"])
            .args(load),
    );
    std::thread::sleep(Duration::from_millis(1500));
    let ended = daemon.stop();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let looked = common::run(["inspect", place.pool().to_str().unwrap(), "--json"]).json();
    assert_eq!((&looked["clean"], looked["findings"].as_array().map(Vec::len)), (&true.into(), Some(0)), "{looked}");
    let replayed = |shard: &serde_json::Value| shard["replayed"] == 0;
    assert!(looked["shards"].as_array().unwrap().iter().all(replayed), "{looked}");
    let _daemon = place.serve(&["--listen", &listener]);
    let report = finish(running).json();
    assert_eq!(report["verify"]["faults"].as_object().map(serde_json::Map::len), Some(0), "{report}");
    assert!(report["reconnects"].as_u64() >= Some(1), "{report}");
}
