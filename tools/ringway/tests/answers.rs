//! What scripts rely on: the fields of every answer in JSON, the exit code of every kind of failure, the metrics.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use common::{Place, finish, ringway, run, spawn};
use prometheus_parse::{Sample, Scrape, Value};
use rustix::process::Signal;
use serde_json::Value as Json;

const VOLUME: &str = "allocated allowed_hosts attached_hosts created_unix_s exclusive fault id lba_bytes name nqn parent shards size uuid";
const POOL: &str =
    "boot_generation dead_shards devices format_version growing read_only shards size slab_bytes used uuid volumes";
const MADE: &str = "devices journal_bytes shards size slab_bytes uuid";

/// The fields of an object in alphabetical order.
fn fields(object: &Json) -> String {
    let mut names: Vec<&str> = object.as_object().expect("an object").keys().map(String::as_str).collect();
    names.sort_unstable();
    names.join(" ")
}

#[test]
fn every_command_answers_in_json_with_the_fields_it_always_had() {
    let place = Place::new();
    let pool = place.pool();
    let pool = pool.to_str().unwrap();
    let out = place.path("out");
    let out = out.to_str().unwrap();
    let format = ["pool", "format", pool, "--size", "256MiB", "--shards", "2", "--allocate", "sparse", "--json"];
    assert_eq!(fields(&run(format).json()), MADE);
    let daemon = place.serve(&[]);
    assert_eq!(fields(&daemon.ready), "control cores listeners pid pool ready");
    let host = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
    for command in [
        &["volume", "create", "a", "16MiB"][..],
        &["volume", "show", "a"],
        &["volume", "resize", "a", "32MiB"],
        &["volume", "rename", "a", "b"],
        &["volume", "hosts", "b", host],
        &["volume", "hosts", "b"],
    ] {
        let answer = place.run(&[command, &["--json"]].concat()).json();
        assert_eq!(fields(&answer), VOLUME, "{command:?}");
    }
    assert_eq!(fields(&place.run(&["volume", "list", "--json"]).json()[0]), VOLUME);
    for command in [&["volume", "export", "b", out][..], &["volume", "import", "c", out]] {
        let answer = place.run(&[command, &["--json"]].concat()).json();
        assert_eq!((fields(&answer), fields(&answer["volume"])), ("data size volume".into(), VOLUME.into()));
    }
    assert_eq!(place.run(&["volume", "remove", "c", "--json"]).json(), serde_json::json!({ "removed": "c" }));
    let device = "atomic_write_unit deallocates fault number path size";
    let shown = place.run(&["pool", "show", "--json"]).json();
    assert_eq!((fields(&shown), fields(&shown["devices"][0])), (POOL.into(), device.into()));

    let target = format!("{}/b", daemon.listener());
    let bench = ["bench", &target, "--mix", "write", "--operations", "10", "--verify", "--json"];
    let report = run(bench).json();
    let of_run = "block_bytes client_cpu_ns depth elapsed errors iops operations outage_max pattern queues reconnects \
                  resent seed steal_percent target target_cpu_ns unknown verify";
    assert_eq!(fields(&report), of_run);
    let operation = "failed iops latency mb_per_s operation operations";
    assert_eq!(fields(&report["operations"][0]), operation);
    assert_eq!(fields(&report["operations"][0]["latency"]), "max_us mean_us p50_us p999_us p99_us");
    assert_eq!(fields(&report["verify"]), "examples faults units_checked units_swept");
    assert_eq!(daemon.stop().code, Some(0));

    let offline = run(["pool", "show", pool, "--json"]).json();
    assert_eq!((fields(&offline), fields(&offline["devices"][0])), (POOL.into(), device.into()));
    let looked = run(["inspect", pool, "--json"]).json();
    assert_eq!(
        fields(&looked),
        "boot_generation clean devices findings shards slab_bytes slabs slabs_free uuid volumes"
    );
    let shard = "checkpoint clusters_leaked clusters_metadata clusters_unneeded clusters_used findings last_lsn replayed shard slabs volumes";
    assert_eq!(fields(&looked["shards"][0]), shard);
    let grown = run(["pool", "grow", pool, "--size", "64MiB", "--allocate", "sparse", "--json"]).json();
    assert_eq!(fields(&grown), "device devices serve shards size slab_bytes uuid");
}

#[test]
fn a_load_reaches_a_volume_and_its_snapshots_over_tcp_and_over_shared_memory() {
    let place = Place::new();
    let daemon = place.serve(&["--pool-size", "256MiB"]);
    place.run(&["volume", "create", "vm1", "16MiB"]).ends(0);
    let runtime = place.path("run");
    let shm = ["--runtime", runtime.to_str().unwrap()];
    let mixed = ["--mix", "write=4,read=4,trim=1,zeroes=1,flush=1", "--operations", "3000", "--depth", "16"];
    let verified = ["--verify", "--fresh", "--sweep", "acknowledged", "--json"];
    let report = run([&["bench", "shm:vm1"][..], &shm, &mixed, &verified].concat()).json();
    assert!(report["verify"]["units_checked"].as_u64().is_some_and(|units| units > 500), "{report}");
    assert!(report["verify"]["units_swept"].as_u64().is_some_and(|units| units > 500), "{report}");
    place.run(&["snapshot", "create", "vm1", "s", "--timeout", "20s"]).ends(0);
    let tcp = format!("{}/vm1@s", daemon.listener());
    for target in [tcp.as_str(), "shm:vm1@s"] {
        let of = |mix| run([&["bench", target, "--operations", "200", "--mix", mix][..], &shm].concat());
        of("read").ends(0);
        of("write").fails(1, "operations failed");
    }
    run([&["bench", "shm:none"][..], &shm].concat()).fails(3, "no volume none");
    run([&["bench", "shm:vm1", "--queues", "2"][..], &shm].concat()).fails(2, "one queue");
    run(["bench", "shm:vm1", "--runtime", "/no/such/folder"]).fails(6, "/no/such/folder");
    assert_eq!(daemon.stop().code, Some(0));
}

/// Of each exit code that `ringway --help` lists, a way to it.
#[test]
fn every_exit_code_of_the_table_is_given_for_what_the_table_says() {
    let place = Place::new();
    let daemon = place.serve(&["--pool-size", "256MiB"]);
    let listener = daemon.listener();
    place.run(&["volume", "create", "vm1", "8MiB"]).ends(0);
    place.run(&["volume", "create", "vm1", "8QiB"]).ends(2);
    place.run(&["volume", "show", "vm2"]).ends(3);
    run(["bench", &format!("{listener}/vm2")]).fails(3, "vm2");
    place.run(&["volume", "create", "vm1", "8MiB"]).ends(4);
    let too_large = place.path("too-large");
    let format = ["pool", "format", too_large.to_str().unwrap(), "--size", "12TiB", "--allocate", "reserved"];
    run(format).fails(5, "no space");
    assert_eq!(fs::read_dir(&too_large).unwrap().count(), 0, "what could not be made was left behind");
    run(["volume", "list", "--control", "/no/such/socket"]).ends(6);
    run(["bench", "tcp://127.0.0.1:1/vm1"]).fails(6, "127.0.0.1:1");
    let foreign = place.path("foreign");
    fs::write(&foreign, [7; 8192]).unwrap();
    run(["inspect", foreign.to_str().unwrap()]).ends(7);
    place.try_serve(&["--listen", &listener, "--pool", "mem:256MiB"]).unwrap_err().ends(8);
    let other = place.path("other.sock");
    let serve = ["serve", "--pool", "mem:256MiB", "--listen", &listener, "--control", other.to_str().unwrap()];
    finish(spawn(ringway(serve).arg("--runtime").arg(place.path("run2")))).fails(8, "the port is in use");
    run(["serve", "--cores", "1000"]).ends(9);
    place.run(&["volume", "hosts", "vm1", "nqn.2026-11.org.example:somebody"]).ends(0);
    run(["bench", &format!("{listener}/vm1")]).fails(9, "not");
    place.run(&["volume", "hosts", "vm1"]).ends(0);

    // Written behind the back of the one who keeps count.
    let target = format!("{listener}/vm1");
    let oracle = place.path("oracle");
    let bench = |rest: &[&str]| run(["bench", &target, "--verify"].iter().chain(rest));
    let counted = ["--oracle", oracle.to_str().unwrap()];
    let whole = ["--mix", "write", "--pattern", "seq", "--operations", "2048"];
    bench(&[&counted[..], &whole, &["--fresh"]].concat()).ends(0);
    bench(&whole).ends(0);
    let judged = bench(&[&counted[..], &["--resume", "--time", "0", "--sweep", "acknowledged"]].concat());
    judged.fails(10, "verification failed");

    // A second signal does not wait for the drain: a client that keeps the target busy does not matter either.
    let load = spawn(&mut ringway(["bench", &target, "--mix", "write", "--time", "60"]));
    daemon.signal(Signal::TERM);
    daemon.signal(Signal::TERM);
    let ended = daemon.wait();
    assert!(ended.code == Some(0) || ended.code == Some(1), "{ended:?}");
    load.kill();
    // The pool is full for good: what does not fit is an error of the operations.
    let daemon = place.serve(&[]);
    place.run(&["volume", "create", "large", "1GiB"]).ends(0);
    let target = format!("{}/large", daemon.listener());
    let bench = ["bench", &target, "--mix", "write", "--pattern", "seq", "--block", "256KiB", "--operations", "2000"];
    run(bench).fails(1, "CAPACITY_EXCEEDED");
}

fn get(place: &Place, path: &str) -> (String, String) {
    let mut socket = UnixStream::connect(place.control()).unwrap();
    write!(socket, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.to_ascii_lowercase(), body.to_owned())
}

/// Every sample's family was described before it, and no series comes twice.
fn check_shape(body: &str) {
    assert!(body.ends_with("# EOF\n"), "OpenMetrics ends with a mark");
    let (mut described, mut seen) = (Vec::new(), BTreeMap::new());
    for line in body.lines().filter(|line| *line != "# EOF") {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').expect("a family has a help text");
            assert!(text.contains(' '), "{line}");
            described.push(name.to_owned());
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(described.iter().any(|name| series.starts_with(name.as_str())), "{line} has no help text");
            assert!(seen.insert(series.to_owned(), ()).is_none(), "{series} comes twice");
        }
    }
}

fn sum(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let of = samples.iter().filter(|s| s.metric == name && labels.iter().all(|(k, v)| s.labels.get(k) == Some(v)));
    of.map(|sample| match &sample.value {
        Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => *value,
        other => panic!("{name} is {other:?}"),
    })
    .sum()
}

#[test]
fn metrics_are_read_by_a_prometheus_parser_and_add_up() {
    let place = Place::new();
    let daemon = place.serve(&["--pool-size", "256MiB"]);
    for volume in ["vm1", "db/log"] {
        place.run(&["volume", "create", volume, "16MiB", "--lba", "4096", "--json"]).json();
        let target = format!("{}/{volume}", daemon.listener());
        let bench = ["bench", &target, "--mix", "write=50,read=50", "--operations", "1000", "--verify", "--json"];
        run(bench).json();
    }
    // A reactor copies what it has counted ten times a second.
    let deadline = Instant::now() + Duration::from_secs(20);
    let (head, body) = loop {
        let (head, body) = get(&place, "/metrics");
        let counted = body.lines().any(|line| line.starts_with("ringway_pool_used_bytes ") && !line.ends_with(" 0"));
        if counted || Instant::now() > deadline {
            break (head, body);
        }
        thread::sleep(Duration::from_millis(20));
    };
    assert!(head.starts_with("http/1.1 200") && head.contains("application/openmetrics-text"), "{head}");
    check_shape(&body);
    let samples = Scrape::parse(body.lines().map(|line| Ok(line.to_owned()))).unwrap().samples;
    for kind in ["read", "write"] {
        let by_volume: f64 = ["vm1", "db/log"]
            .iter()
            .map(|volume| {
                let done = sum(&samples, "ringway_volume_operations_total", &[("volume", volume), ("operation", kind)]);
                let bytes = sum(&samples, "ringway_volume_bytes_total", &[("volume", volume), ("operation", kind)]);
                assert!(done > 100.0 && bytes == done * 4096.0, "{volume} {kind}: {done} operations, {bytes} bytes");
                done
            })
            .sum();
        let by_shard = sum(&samples, "ringway_shard_operations_total", &[("operation", kind)]);
        assert!((by_shard - by_volume).abs() < 0.5, "{kind}: {by_shard} of shards, {by_volume} of volumes");
        let counted = sum(&samples, "ringway_volume_latency_seconds_count", &[("operation", kind)]);
        assert!((counted - by_volume).abs() < 0.5, "{kind}: {counted} latencies of {by_volume} operations");
    }
    for (name, least) in [
        ("ringway_pool_size_bytes", 1.0),
        ("ringway_pool_used_bytes", 65536.0),
        ("ringway_reactor_polls_busy_total", 1.0),
        ("ringway_reactor_polls_empty_total", 1.0),
        ("ringway_shard_journal_groups_total", 1.0),
    ] {
        assert!(sum(&samples, name, &[]) >= least, "{name}");
    }
    for (name, value) in [("ringway_volume_errors_total", 0.0), ("ringway_pool_read_only", 0.0)] {
        assert!(samples.iter().any(|sample| sample.metric == name), "{name} is missing");
        assert!((sum(&samples, name, &[]) - value).abs() < 0.5, "{name}");
    }
    assert!(get(&place, "/v1/nothing").0.starts_with("http/1.1 404"));
}

#[test]
fn names_that_are_odd_are_refused_and_names_that_are_long_are_not() {
    let place = Place::new();
    let _daemon = place.serve(&["--pool", "mem:256MiB"]);
    let too_long = "x".repeat(201);
    for name in
        ["", " ", "a b", "a\nb", "\u{fc}", "a%2fb", "/a", "a/", "a//b", "..", "a/../b", "a:b", "a\"b", &too_long]
    {
        place.run(&["volume", "create", name, "1MiB"]).ends(2);
        place.run(&["volume", "show", name]).ends_in(&[2, 3]);
        let body = serde_json::json!({ "name": name, "size": 1 << 20 }).to_string();
        let mut socket = UnixStream::connect(place.control()).unwrap();
        let len = body.len();
        let head = "POST /v1/volumes HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json";
        write!(socket, "{head}\r\ncontent-length: {len}\r\n\r\n{body}").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("\"invalid\""), "{name:?}: {answer}");
    }
    for name in ["x".repeat(200), "a.b/c_d-e/0".to_owned(), "9".to_owned()] {
        assert_eq!(place.run(&["volume", "create", &name, "1MiB", "--json"]).json()["name"], name.as_str());
        assert_eq!(place.run(&["volume", "rename", &name, "other", "--json"]).json()["name"], "other");
        place.run(&["volume", "rename", "other", "a b"]).ends(2);
        place.run(&["volume", "remove", "other"]).ends(0);
    }
    assert_eq!(place.run(&["volume", "list", "--json"]).json().as_array().unwrap().len(), 0);
}

#[test]
fn sizes_that_cannot_be_are_refused_by_every_command_that_takes_one() {
    let place = Place::new();
    let _daemon = place.serve(&["--pool", "mem:256MiB"]);
    place.run(&["volume", "create", "vm1", "1MiB"]).ends(0);
    for size in ["0", "-1", "1.0001", "511", "1MiB+1", "64.5TiB", "99999999999999999999", "", "0x1000", "1 000"] {
        place.run(&["volume", "create", "--", "vm2", size]).ends(2);
        place.run(&["volume", "resize", "--", "vm1", size]).ends(2);
    }
    place.run(&["volume", "create", "vm3", "1537", "--lba", "512"]).fails(2, "512");
    place.run(&["volume", "create", "vm3", "512", "--lba", "4096"]).fails(2, "4096");
    place.run(&["volume", "resize", "vm1", "1048577"]).fails(2, "512");
    place.run(&["volume", "resize", "vm1", "512KiB"]).fails(2, "can only grow");
    place.run(&["volume", "create", "vm3", "1MiB", "--shards", "7000"]).ends(2);
    let small = place.path("small");
    run(["pool", "format", small.to_str().unwrap(), "--size", "1MiB"]).fails(2, "at least");
    run(["pool", "format", small.to_str().unwrap(), "--size", "1GiB", "--slab", "5MiB"]).fails(2, "power of two");
    assert_eq!(place.run(&["volume", "list", "--json"]).json().as_array().unwrap().len(), 1);
}
