//! Streams and events by the real binary: with a progress bar, under guests that write, and over kills.

mod common;
mod volume;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use common::{Daemon, Place, finish, ringway, spawn};
use ringway_core::host::Outcome;
use serde_json::Value;
use volume::Volume;

const MIB: u64 = 1 << 20;
/// Of the parent that has data.
const DATA: u64 = 24 * MIB;
const PIECE: usize = 128 << 10;

fn pattern(at: u64) -> Vec<u8> {
    vec![(at / PIECE as u64) as u8 | 1; PIECE]
}

/// `vm1` with data, a snapshot `a` of it, and its clone `vm2`.
fn family(place: &Place, daemon: &Daemon) {
    place.run(&["volume", "create", "vm1", "64MiB"]).ends(0);
    let mut parent = Volume::attach(&daemon.listener(), "vm1");
    for at in (0..DATA).step_by(PIECE) {
        assert_eq!(parent.write(at, &pattern(at)), Outcome::Success);
    }
    assert_eq!(parent.flush(), Outcome::Success);
    drop(parent);
    place.run(&["snapshot", "create", "vm1", "a"]).ends(0);
    place.run(&["volume", "clone", "vm1@a", "vm2"]).ends(0);
}

/// Events by number.
fn events(place: &Place, since: u64) -> Vec<Value> {
    let ended = place.run(&["events", "--once", "--since", &since.to_string(), "--json"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stdout.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn last_events(place: &Place) -> Vec<(String, u64)> {
    let ends = ["stream_completed", "stream_failed", "stream_cancelled"];
    let of = |event: &Value| (event["kind"].as_str().unwrap().to_owned(), event["job"].as_u64().unwrap_or(0));
    events(place, 0).iter().map(of).filter(|(kind, _)| ends.contains(&kind.as_str())).collect()
}

fn parent(place: &Place) -> Value {
    place.run(&["volume", "show", "vm2", "--json"]).json()["parent"].clone()
}

fn check(daemon: &Daemon, but: &[(u64, u8)]) {
    let mut clone = Volume::attach(&daemon.listener(), "vm2");
    for at in (0..DATA).step_by(PIECE) {
        let mut expected = pattern(at);
        for &(place, value) in but.iter().filter(|(place, _)| (at..at + PIECE as u64).contains(place)) {
            let from = (place - at) as usize;
            expected[from..from + 4096].fill(value);
        }
        assert!(clone.read(at, PIECE) == expected, "{at} reads otherwise");
    }
}

#[test]
fn a_stream_is_followed_to_its_end_while_a_guest_writes_and_the_parent_can_go() {
    let place = Place::new();
    let daemon = place.serve(&["--pool-size", "256MiB"]);
    family(&place, &daemon);
    let followed = spawn(
        ringway(place.with_control(&["stream", "start", "vm2", "--speed", "16MiB/s", "--follow", "--json"]))
            .arg("--on-error=stop"),
    );
    let mut guest = Volume::attach(&daemon.listener(), "vm2");
    let mut written = Vec::new();
    for n in 0..40u64 {
        // Some of them where the stream has been, some where it is yet to come.
        let at = n * 37 % 96 * (256 << 10) + 8192;
        assert_eq!(guest.write(at, &[200 + n as u8; 4096]), Outcome::Success);
        written.push((at, 200 + n as u8));
        thread::sleep(Duration::from_millis(10));
    }
    let last = finish(followed).json();
    assert_eq!((last["kind"].as_str(), last["name"].as_str()), (Some("stream_completed"), Some("vm2")));
    assert_eq!(parent(&place), Value::Null);
    place.run(&["stream", "info", "vm2"]).fails(3, "is not being streamed");
    place.run(&["snapshot", "remove", "vm1@a"]).ends(0);
    place.run(&["volume", "remove", "vm1"]).ends(0);
    drop(guest);
    check(&daemon, &written);
    daemon.kill();
    let daemon = place.serve(&[]);
    check(&daemon, &written);
    assert_eq!(last_events(&place), [("stream_completed".to_owned(), last["job"].as_u64().unwrap())]);
    daemon.stop().ends(0);
}

#[test]
fn a_stream_that_is_killed_in_its_middle_goes_on_and_ends_exactly_once() {
    let place = Place::new();
    let mut daemon = place.serve(&["--pool-size", "256MiB"]);
    family(&place, &daemon);
    let listen = daemon.listener();
    let begun = place.run(&["stream", "start", "vm2", "--speed", "4MiB", "--json"]).json();
    let follower = spawn(&mut ringway(place.with_control(&["stream", "info", "vm2", "--follow", "--json"])));
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(700));
        let before = place.run(&["stream", "info", "vm2", "--json"]).json();
        assert_eq!(before["job"], begun["job"]);
        daemon.kill();
        daemon = place.serve(&["--listen", &listen]);
    }
    let info = place.run(&["stream", "info", "vm2", "--json"]).json();
    assert_eq!((info["job"].as_u64(), info["speed"].as_u64()), (begun["job"].as_u64(), Some(4 * MIB)));
    place.run(&["stream", "set-speed", "vm2", "0"]).ends(0);
    let last = finish(follower).json();
    assert_eq!((last["kind"].as_str(), &last["job"]), (Some("stream_completed"), &begun["job"]));
    daemon.kill();
    let daemon = place.serve(&["--listen", &listen]);
    assert_eq!(last_events(&place), [("stream_completed".to_owned(), begun["job"].as_u64().unwrap())]);
    assert_eq!(parent(&place), Value::Null);
    place.run(&["snapshot", "remove", "vm1@a"]).ends(0);
    check(&daemon, &[]);
    daemon.stop().ends(0);
}

#[test]
fn streams_are_listed_slowed_aborted_and_stepped_and_wrong_commands_say_what_would_be_right() {
    let place = Place::new();
    let daemon = place.serve(&["--pool-size", "256MiB"]);
    family(&place, &daemon);
    place.run(&["stream", "start", "vm2", "--speed", "1"]).ends(0);
    let listed = place.run(&["stream", "list"]);
    assert!(listed.stdout.contains("vm1@a") && listed.stdout.contains("running"), "{listed:?}");
    for (args, code, says) in [
        (&["stream", "start", "vm2"][..], 8, "stream abort vm2"),
        (&["stream", "start", "vm1"], 2, "is no clone"),
        (&["stream", "start", "vm9"], 3, "vm9"),
        (&["stream", "start", "vm1@a"], 2, "is a snapshot"),
        (&["stream", "start", "vm2", "--on-error", "panic"], 2, "report, stop and ignore"),
        (&["stream", "start", "vm2", "--speed", "fast"], 2, "not a size"),
        (&["stream", "step", "vm2"], 8, "stream info vm2"),
        (&["stream", "resume", "vm2"], 2, "is not paused"),
        (&["stream", "abort", "vm1"], 3, "is not being streamed"),
        (&["snapshot", "remove", "vm1@a"], 12, "stream start vm2"),
        (&["volume", "remove", "vm2"], 8, "stream abort vm2"),
        (&["events", "--since", "100000", "--once"], 2, "no event has number 100000"),
        (&["events", "--since", "soon"], 2, "invalid value"),
    ] {
        place.run(args).fails(code, says);
    }
    let begun = Instant::now();
    place.run(&["stream", "abort", "vm2"]).ends(0);
    assert!(begun.elapsed() < Duration::from_secs(5), "abort returns at once");
    assert_eq!(parent(&place), "vm1@a");
    let (mut cursor, mut end) = (0, 1);
    while cursor < end {
        let step = place.run(&["stream", "step", "vm2", "--cursor", &cursor.to_string(), "--json"]).json();
        assert!(step["cursor"].as_u64().unwrap() > cursor, "{step}");
        (cursor, end) = (step["cursor"].as_u64().unwrap(), step["end"].as_u64().unwrap());
    }
    assert_eq!(parent(&place), Value::Null);
    check(&daemon, &[]);
    daemon.stop().ends(0);
}

/// What a path sends as a stream, until it holds `says`.
fn sent(place: &Place, path: &str, header: &str, says: &str) -> String {
    let mut stream = UnixStream::connect(place.control()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n{header}\r\n").unwrap();
    let (mut all, mut buf) = (String::new(), [0; 4096]);
    while !all.contains(says) {
        let count = stream.read(&mut buf).expect("something comes");
        assert!(count > 0, "it ended without {says:?}: {all}");
        all += &String::from_utf8_lossy(&buf[..count]);
    }
    all
}

#[test]
fn events_are_a_stream_that_goes_on_where_its_client_was_over_kills_too() {
    let place = Place::new();
    let daemon = place.serve(&["--pool-size", "128MiB"]);
    let listen = daemon.listener();
    let mut follower = spawn(&mut ringway(place.with_control(&["events", "--since", "0", "--json"])));
    place.run(&["volume", "create", "a", "16MiB"]).ends(0);
    let text = sent(&place, "/v1/events?since=0", "", "\"name\":\"a\"");
    assert!(text.contains("text/event-stream") && text.contains("id: 1\nevent: volume_created\ndata: {"), "{text}");
    daemon.kill();
    let daemon = place.serve(&["--listen", &listen]);
    place.run(&["snapshot", "create", "a", "s"]).ends(0);
    // The header of a client that connects again wins over what its address says.
    let text = sent(&place, "/v1/events?since=0", "Last-Event-ID: 1\r\n", "snapshot_created");
    assert!(text.contains("id: 2\n") && !text.contains("id: 1\n"), "{text}");
    let text = sent(&place, "/v1/events", "Last-Event-ID: x\r\n", "}}");
    assert!(text.starts_with("HTTP/1.1 400"), "{text}");
    // Somebody listens as it happens.
    let (control, ready) = (place.control(), std::sync::mpsc::channel());
    let listening = thread::spawn(move || {
        let mut stream = UnixStream::connect(control).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        write!(stream, "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let (mut all, mut buf) = (String::new(), [0; 4096]);
        while !all.contains("volume_removed") {
            let count = stream.read(&mut buf).expect("something comes");
            assert!(count > 0, "it ended: {all}");
            all += &String::from_utf8_lossy(&buf[..count]);
            let _ = ready.0.send(());
        }
        all
    });
    ready.1.recv_timeout(Duration::from_secs(30)).expect("the head of the answer comes at once");
    place.run(&["snapshot", "remove", "a@s"]).ends(0);
    place.run(&["volume", "remove", "a"]).ends(0);
    let text = listening.join().unwrap();
    assert!(text.contains("id: 3\nevent: snapshot_removed") && !text.contains("id: 2\n"), "{text}");
    let kinds: Vec<_> = events(&place, 0).iter().map(|event| event["kind"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["volume_created", "snapshot_created", "snapshot_removed", "volume_removed"]);
    assert!(place.run(&["events", "--once"]).stdout.contains("snapshot_removed    a@s"));
    // The follower has lived through the kill, and has seen each of them once.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) && !follower.is_over() {
        thread::sleep(Duration::from_millis(100));
    }
    follower.signal(rustix::process::Signal::TERM);
    let seen = finish(follower).stdout;
    let numbers: Vec<_> =
        seen.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3, 4], "{seen}");
    daemon.stop().ends(0);
}

#[test]
fn differences_are_listed_and_a_snapshot_is_written_to_an_image() {
    let place = Place::new();
    let daemon = place.serve(&["--pool-size", "128MiB"]);
    place.run(&["volume", "create", "vm1", "16MiB"]).ends(0);
    let mut volume = Volume::attach(&daemon.listener(), "vm1");
    assert_eq!(volume.write(0, &[1; 4096]), Outcome::Success);
    place.run(&["snapshot", "create", "vm1", "a"]).ends(0);
    assert_eq!(volume.write(MIB, &[2; 8192]), Outcome::Success);
    place.run(&["snapshot", "create", "vm1", "b"]).ends(0);
    assert_eq!(volume.write(2 * MIB, &[3; 4096]), Outcome::Success);
    let between = place.run(&["snapshot", "diff", "vm1@a", "vm1@b", "--json"]).json();
    assert_eq!(between["ranges"].to_string(), r#"[{"data":true,"len":8192,"offset":1048576}]"#);
    assert_eq!(between["changed"], 8192);
    let until_now = place.run(&["snapshot", "diff", "vm1@a"]);
    assert!(until_now.stdout.contains("2097152         4096 data"), "{until_now:?}");
    assert!(until_now.stdout.ends_with("12 KiB changed from vm1@a to vm1\n"), "{until_now:?}");
    place.run(&["snapshot", "diff", "vm1@b", "vm1@a"]).fails(2, "older one first");
    place.run(&["snapshot", "diff", "vm1"]).fails(2, "VOLUME@SNAPSHOT");
    let image = place.path("b.img");
    let file = image.to_str().unwrap();
    place.run(&["snapshot", "export", "vm1@b", file]).ends(0);
    let bytes = std::fs::read(&image).unwrap();
    assert_eq!(bytes.len() as u64, 16 * MIB);
    assert!(bytes[..4096] == [1; 4096] && bytes[MIB as usize..MIB as usize + 8192] == [2; 8192]);
    assert!(bytes[2 * MIB as usize..].iter().all(|&byte| byte == 0), "what came later is not in it");
    use std::os::unix::fs::MetadataExt;
    assert!(std::fs::metadata(&image).unwrap().blocks() * 512 < MIB, "it is sparse");
    place.run(&["snapshot", "export", "vm1@b", file]).fails(4, "--overwrite");
    place.run(&["snapshot", "export", "vm1@b", file, "--overwrite"]).ends(0);
    place.run(&["snapshot", "export", "vm1@z", &format!("{file}2")]).fails(3, "vm1@z");
    drop(volume);
    daemon.stop().ends(0);
}
