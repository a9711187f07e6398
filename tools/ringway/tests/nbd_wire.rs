//! NBD byte by byte: the negotiations that stock programs do not do, unaligned requests against a copy, hostile clients, sharing
//! rules, kills.

mod common;
mod nbd_peer;

use std::time::{Duration, Instant};

use nbd_peer::{Home, Peer};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;

/// Numbers that look random and are the same each time.
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 20) % end
    }
}

#[test]
fn tapdisk_and_oldstyle_clients_get_what_they_expect() {
    let home = Home::new();
    let _daemon = home.serve(&[]);
    home.create("v", "8MiB");
    home.add("v");
    let mut tapdisk = Peer::connect(&home.socket("nbd/v.sock"));
    tapdisk.take(18);
    // It sends no flags that mean anything, and the name with its NUL.
    tapdisk.send(&0u32.to_be_bytes());
    tapdisk.option(1, b"tapdisk_client\0");
    let told = tapdisk.take(8 + 2 + 124);
    assert_eq!(told[..8], (8u64 << 20).to_be_bytes());
    tapdisk.ask(WRITE, 0, 1, 512, 3);
    tapdisk.send(b"abc");
    assert_eq!(tapdisk.simple_reply(), (0, 1));

    let old = home.socket("old.sock");
    home.export(&format!("add nbd v --oldstyle --listen {} --json", old.display())).json();
    let mut old = Peer::connect(&old);
    let greeting = old.take(152);
    assert_eq!(greeting[..16], *b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53");
    assert_eq!(greeting[16..24], (8u64 << 20).to_be_bytes());
    old.ask(READ, 0, 2, 511, 5);
    assert_eq!((old.simple_reply(), old.take(5)), ((0, 2), b"\0abc\0".to_vec()));
    old.ask(DISCONNECT, 0, 3, 0, 0);
    assert!(old.is_closed());
}

#[test]
fn any_bytes_that_are_written_zeroed_or_trimmed_are_read_back() {
    let home = Home::new();
    let _daemon = home.serve(&[]);
    const SIZE: u64 = 6 << 20;
    home.create("v", "6MiB");
    home.add("v");
    let socket = home.socket("nbd/v.sock");
    let (mut simple, mut structured) = (Peer::simple(&socket, b"v"), Peer::structured(&socket, "v"));
    let mut copy = vec![0u8; SIZE as usize];
    let mut rng = Rng(0x5EED);
    for round in 0..300u64 {
        // Mostly small, around edges of blocks and stripes, and now and then longer than a buffer.
        let len = [7, 513, 5000, 70_000, 600_000, 2_500_000][rng.below(6) as usize];
        let len = 1 + rng.below(len);
        let edge = [1, 512, 4096, 65536, 1 << 20][rng.below(5) as usize];
        let offset = (rng.below(SIZE / edge) * edge + rng.below(3)).min(SIZE - len);
        let range = offset as usize..(offset + len) as usize;
        match rng.below(5) {
            0 | 1 => {
                let bytes: Vec<u8> = (0..len).map(|at| (at * 31 + round) as u8).collect();
                simple.ask(WRITE, rng.below(2) as u16, round, offset, len as u32);
                simple.send(&bytes);
                assert_eq!(simple.simple_reply(), (0, round));
                copy[range].copy_from_slice(&bytes);
            }
            2 => {
                // With FUA, NO_HOLE or neither.
                structured.ask(ZEROES, rng.below(4) as u16, round, offset, len as u32);
                assert_eq!(structured.simple_reply(), (0, round));
                copy[range].fill(0);
            }
            _ => {
                structured.ask(READ, 0, round, offset, len as u32);
                let answer = structured.structured_reply(round, offset, len as usize);
                assert_eq!(answer.error, 0);
                assert!(answer.data == copy[range.clone()], "round {round}: {len} bytes at {offset} by chunks");
                simple.ask(READ, 0, round, offset, len as u32);
                assert_eq!(simple.simple_reply(), (0, round));
                assert!(simple.take(len as usize) == copy[range], "round {round}: {len} bytes at {offset} in one");
            }
        }
    }
    simple.ask(TRIM, 1, 1, 0, 2 << 20);
    assert_eq!(simple.simple_reply(), (0, 1));
    simple.ask(FLUSH, 0, 2, 0, 0);
    assert_eq!(simple.simple_reply(), (0, 2));
    simple.ask(CACHE, 0, 3, 0, 4096);
    assert_eq!(simple.simple_reply(), (0, 3));
    simple.ask(READ, 0, 4, 0, 2 << 20);
    assert_eq!(simple.simple_reply(), (0, 4));
    assert!(simple.take(2 << 20).iter().all(|&byte| byte == 0));
}

#[test]
fn what_cannot_be_done_is_answered_and_the_next_request_is_served() {
    let home = Home::new();
    let _daemon = home.serve(&[]);
    home.create("v", "64MiB");
    home.add("v");
    let mut peer = Peer::simple(&home.socket("nbd/v.sock"), b"v");
    let end = 64 << 20;
    for (kind, flags, offset, len, error) in [
        (READ, 0, end, 1, EINVAL),
        (READ, 0, u64::MAX, u32::MAX, EINVAL),
        (READ, 0, 0, (32 << 20) + 1, EINVAL),
        (TRIM, 0, end - 1, 2, EINVAL),
        (ZEROES, 0, end - 1, 2, ENOSPC),
        (ZEROES, 16 | 2, 0, 4096, ENOTSUP),
        (ZEROES, 16, 0, 4096, 0),
        (STATUS, 0, 0, 4096, EINVAL),
        (8, 0, 0, 0, EINVAL),
        (99, 0xFFFF, 0, 0, EINVAL),
        (READ, 0x8000, 0, 1, EINVAL),
        (READ, 0, 0, 0, 0),
    ] {
        peer.ask(kind, flags, 7, offset, len);
        assert_eq!(peer.simple_reply(), (error, 7), "{kind} {flags:#x} {offset} {len}");
    }
    for (offset, len) in [(end - 1, 2), (u64::MAX, 4096), (0, (32 << 20) + 4096)] {
        peer.ask(WRITE, 0, 8, offset, len);
        peer.send(&vec![1; len as usize]);
        assert_eq!(peer.simple_reply().0, if offset == 0 { EINVAL } else { ENOSPC }, "{offset} {len}");
    }
    peer.ask(WRITE, 0, 9, 0, 32 << 20);
    peer.send(&vec![1; 32 << 20]);
    assert_eq!(peer.simple_reply(), (0, 9));
    peer.ask(READ, 0, 10, 1, (32 << 20) - 1);
    assert_eq!(peer.simple_reply(), (0, 10));
    assert!(peer.take((32 << 20) - 1).iter().all(|&byte| byte == 1));
    let mut chunks = Peer::structured(&home.socket("nbd/v.sock"), "v");
    chunks.ask(READ, 4, 1, 0, 256 << 10);
    assert_eq!(chunks.structured_reply(1, 0, 256 << 10).chunks, [1], "one chunk where the client wants no more");
    chunks.ask(READ, 4, 2, 0, 1 << 20);
    assert_eq!(chunks.structured_reply(2, 0, 1 << 20).error, 75);
    chunks.ask(READ, 0, 3, 40 << 20, 128 << 10);
    assert_eq!(chunks.structured_reply(3, 40 << 20, 128 << 10).chunks, [2], "zeros that nobody wrote are a hole");
    home.export("add nbd v --read-only --listen tcp://127.0.0.1:0 --json").json();
    let read_only = home.socket("ro.sock");
    home.export(&format!("add nbd v --read-only --listen {} --json", read_only.display())).json();
    let mut peer = Peer::simple(&read_only, b"");
    for (kind, len) in [(TRIM, 4096), (ZEROES, 4096)] {
        peer.ask(kind, 0, 1, 0, len);
        assert_eq!(peer.simple_reply(), (EPERM, 1));
    }
    peer.ask(WRITE, 0, 2, 0, 3);
    peer.send(b"xyz");
    assert_eq!(peer.simple_reply(), (EPERM, 2));
    // Each kind is counted, and so are its errors; the figures are gathered a few times a second.
    let counted = |what: &str, operation: &str, count: u64| {
        let line = format!("ringway_nbd_{what}_total{{operation=\"{operation}\"}} {count}\n");
        let begun = Instant::now();
        while !home.place.metrics().contains(&line) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{line} in {}", home.place.metrics());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    counted("requests", "write", 5);
    counted("errors", "write", 4);
    counted("bytes", "write", 32 << 20);
    counted("requests", "unknown", 2);
    counted("errors", "unknown", 2);
    counted("errors", "trim", 2);
    counted("errors", "block_status", 1);
    counted("requests", "flush", 0);
}

#[test]
fn hostile_clients_harm_nobody_but_themselves() {
    let home = Home::new();
    let daemon = home.serve(&["--buffers", "16MiB"]);
    home.create("v", "64MiB");
    home.add("v");
    let socket = home.socket("nbd/v.sock");
    // Some that stop in the middle of everything, and some that send what is nothing.
    let mut stuck = Vec::new();
    for _ in 0..40 {
        let mut half = Peer::simple(&socket, b"v");
        half.ask(WRITE, 0, 1, 0, 1 << 20);
        half.send(&[1; 100]);
        let mut deaf = Peer::simple(&socket, b"v");
        for cookie in 0..20 {
            deaf.ask(READ, 0, cookie, 0, 8 << 20);
        }
        stuck.extend([half, deaf, Peer::connect(&socket)]);
    }
    for garbage in [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0xFF; 4096], &[0; 64]] {
        let mut peer = Peer::connect(&socket);
        peer.take(18);
        peer.send(garbage);
        assert!(peer.is_closed(), "{garbage:?}");
        let mut peer = Peer::simple(&socket, b"v");
        peer.send(&garbage.repeat(4));
        assert!(peer.is_closed(), "{garbage:?}");
    }
    let mut unknown = Peer::greeted(&socket);
    unknown.option(1, b"no such export");
    assert!(unknown.is_closed());
    let started = Instant::now();
    let mut peer = Peer::simple(&socket, b"v");
    peer.0.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    for cookie in 0..50 {
        peer.ask(WRITE, 0, cookie, cookie * 300_000, 300_000);
        peer.send(&vec![cookie as u8; 300_000]);
        assert_eq!(peer.simple_reply(), (0, cookie));
    }
    assert!(started.elapsed() < Duration::from_secs(60));
    drop(stuck);
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn an_exclusive_volume_has_one_connection_and_the_next_comes_when_it_is_gone() {
    let home = Home::new();
    let _daemon = home.serve(&[]);
    home.place.run(&["volume", "create", "x", "4MiB", "--exclusive", "--json"]).json();
    home.add("x");
    let socket = home.socket("nbd/x.sock");
    let mut first = Peer::greeted(&socket);
    first.option(1, b"x");
    let flags = first.take(10);
    assert_eq!(flags[8] & 1, 0, "CAN_MULTI_CONN is not for what has one connection");
    assert_eq!(home.export("list --json").json()[0]["connections"], 1);
    let mut second = Peer::greeted(&socket);
    second.option(7, b"\0\0\0\x01x\0\0");
    let (kind, why) = second.reply();
    assert_eq!(kind, (1 << 31) + 2);
    assert!(String::from_utf8(why).unwrap().contains("exclusive"));
    first.ask(WRITE, 0, 1, 0, 4096);
    first.send(&[7; 4096]);
    drop(first);
    // It may still choose, and gets it once the first has gone with all that it had in flight.
    second.option(1, b"x");
    second.take(10);
    second.ask(READ, 0, 2, 0, 4096);
    assert_eq!(second.simple_reply(), (0, 2));
    assert_eq!(second.take(4096), [7; 4096], "what came before its end was done before");
    // A disk of a virtual machine, or a host, does not get it meanwhile, nor is it removed without force.
    home.place.run(&["volume", "remove", "x"]).fails(8, "export");
}

#[test]
fn a_killed_target_loses_nothing_that_was_acknowledged_and_a_stopped_one_answers_first() {
    let home = Home::new();
    let daemon = home.serve(&[]);
    home.create("v", "32MiB");
    home.add("v");
    let socket = home.socket("nbd/v.sock");
    let mut peer = Peer::simple(&socket, b"v");
    for cookie in 0..64 {
        peer.ask(WRITE, 0, cookie, cookie * 300_001, 100_001);
        peer.send(&vec![cookie as u8 + 1; 100_001]);
        assert_eq!(peer.simple_reply(), (0, cookie));
    }
    daemon.kill();
    assert!(peer.is_closed());
    let daemon = home.serve(&[]);
    let mut peer = Peer::structured(&socket, "v");
    for cookie in 0..64 {
        peer.ask(READ, 0, cookie, cookie * 300_001, 100_001);
        let read = peer.structured_reply(cookie, cookie * 300_001, 100_001);
        assert!(read.data.iter().all(|&byte| byte == cookie as u8 + 1), "write {cookie} is lost");
    }
    for cookie in 0..16 {
        peer.ask(READ, 0, cookie, 0, 64 << 10);
    }
    for cookie in 0..16 {
        peer.structured_reply(cookie, 0, 64 << 10);
    }
    assert_eq!(daemon.stop().code, Some(0));
    assert!(peer.is_closed() && !socket.exists());
}

#[test]
fn removing_an_export_ends_its_connections_and_no_others() {
    let home = Home::new();
    let _daemon = home.serve(&[]);
    home.create("a", "4MiB");
    home.create("b", "4MiB");
    let shared = home.socket("both.sock");
    for volume in ["a", "b"] {
        home.export(&format!("add nbd {volume} --listen {} --json", shared.display())).json();
    }
    let (mut a, mut b) = (Peer::simple(&shared, b"a"), Peer::simple(&shared, b"b"));
    home.export(&format!("remove {}", shared.display())).fails(2, "several exports");
    home.export("remove a --json").json();
    assert!(a.is_closed());
    b.ask(FLUSH, 0, 1, 0, 0);
    assert_eq!(b.simple_reply(), (0, 1));
    // The socket is still there for the other, which is the only one now.
    Peer::simple(&shared, b"");
    home.export("remove b --json").json();
    let started = Instant::now();
    while shared.exists() {
        assert!(started.elapsed() < Duration::from_secs(10));
    }
    assert!(b.is_closed());
}
