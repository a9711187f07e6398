//! The daemon from outside: starting, volumes, the control socket, stopping.

mod common;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use common::{Place, ringway, run, spawn};
use rustix::process::Signal;

const POOL_ARGS: &[&str] = &["--pool-size", "256MiB"];

#[test]
fn volumes_are_made_shown_changed_and_are_there_after_a_restart() {
    let place = Place::new();
    let daemon = place.serve(POOL_ARGS);
    assert!(daemon.listener().starts_with("tcp://127.0.0.1:") && !daemon.listener().ends_with(":0"));

    let made = place.run(&["volume", "create", "db/log", "64MiB", "--lba", "4096", "--json"]).json();
    assert_eq!((made["size"].as_u64(), made["lba_bytes"].as_u64()), (Some(64 << 20), Some(4096)));
    assert_eq!(made["nqn"], "nqn.2026-11.io.ringway:db/log");
    place.run(&["volume", "create", "db/log", "1MiB"]).fails(4, "exists already");
    assert_eq!(place.run(&["volume", "resize", "db/log", "1GiB", "--json"]).json()["size"], 1 << 30);
    place.run(&["volume", "resize", "db/log", "64MiB"]).fails(2, "can only grow");
    assert_eq!(place.run(&["volume", "rename", "db/log", "log", "--json"]).json()["name"], "log");
    place.run(&["volume", "show", "db/log"]).fails(3, "no volume named");
    let host = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
    assert_eq!(place.run(&["volume", "hosts", "log", host, "--json"]).json()["allowed_hosts"][0], host);
    place.run(&["volume", "create", "gone", "1MiB"]);
    place.run(&["volume", "remove", "gone"]);
    place.run(&["volume", "remove", "gone"]).fails(3, "no volume named");

    let stopped = daemon.stop();
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    let daemon = place.serve(&[]);
    let volumes = place.run(&["volume", "list", "--json"]).json();
    assert_eq!(volumes.as_array().unwrap().len(), 1);
    assert_eq!((&volumes[0]["name"], &volumes[0]["uuid"]), (&"log".into(), &made["uuid"]));
    assert_eq!(volumes[0]["allowed_hosts"][0], host);
    drop(daemon);
}

#[test]
fn acknowledged_changes_of_volumes_survive_a_kill() {
    let place = Place::new();
    let daemon = place.serve(POOL_ARGS);
    for n in 0..5 {
        place.run(&["volume", "create", &format!("v{n}"), "1MiB", "--json"]).json();
    }
    place.run(&["volume", "remove", "v0", "--json"]).json();
    daemon.kill();
    let _daemon = place.serve(&[]);
    let volumes = place.run(&["volume", "list", "--json"]).json();
    let names: Vec<&str> = volumes.as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["v1", "v2", "v3", "v4"]);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("tcp://{}", taken.local_addr().unwrap());
    let ended = Place::new().try_serve(&["--pool", "mem:256MiB", "--listen", &listen]).unwrap_err();
    ended.fails(8, &taken.local_addr().unwrap().port().to_string());
}

#[test]
fn two_daemons_do_not_share_a_control_socket_and_the_first_goes_on() {
    let place = Place::new();
    let _first = place.serve(&["--pool", "mem:256MiB"]);
    place.try_serve(&["--pool", "mem:256MiB"]).unwrap_err().fails(8, "another ringway daemon");
    place.run(&["volume", "list", "--json"]).json();
}

#[test]
fn a_second_daemon_waits_for_the_pool_and_then_says_who_has_it() {
    let place = Place::new();
    let first = place.serve(POOL_ARGS);
    let control = place.path("second.sock");
    let ended = run([
        "serve",
        "--pool",
        place.pool().to_str().unwrap(),
        "--control",
        control.to_str().unwrap(),
        "--runtime",
        place.path("run2").to_str().unwrap(),
        "--listen",
        "tcp://127.0.0.1:0",
    ]);
    ended.fails(8, "in use by");
    assert!(ended.stderr.contains(&first.pid().to_string()), "{ended:?}");
    place.run(&["volume", "list", "--json"]).json();
}

#[test]
fn the_control_socket_has_the_permissions_asked_for_and_goes_with_the_daemon() {
    let place = Place::new();
    let daemon = place.serve(&["--pool", "mem:256MiB", "--socket-mode", "0660"]);
    let mode = std::fs::metadata(place.control()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    assert_eq!(daemon.stop().code, Some(0));
    assert!(!place.control().exists());
}

#[test]
fn the_configuration_file_is_read_and_reread() {
    let place = Place::new();
    let file = place.path("ringway.toml");
    std::fs::write(&file, "pool = \"mem:256MiB\"\nlisten = [\"tcp://127.0.0.1:0\", \"tcp://127.0.0.1:0\"]\n").unwrap();
    let config = file.to_str().unwrap();
    let daemon = place.serve_with_config(config);
    assert_eq!(daemon.ready["listeners"].as_array().unwrap().len(), 2);
    std::fs::write(&file, "pool = \"mem:256MiB\"\nlog = \"debug\"\n").unwrap();
    daemon.signal(Signal::HUP);
    daemon.logs("other changes need a restart");
    std::fs::write(&file, "colour = 1\n").unwrap();
    daemon.signal(Signal::HUP);
    assert!(daemon.logs("was not reread").contains("colour"));
    place.run(&["volume", "list", "--json"]).json();
}

#[test]
fn metrics_are_read_off_the_control_socket() {
    let place = Place::new();
    let _daemon = place.serve(&["--pool", "mem:256MiB"]);
    place.run(&["volume", "create", "vm1", "1MiB", "--json"]).json();
    let text = place.metrics();
    assert!(text.contains(r#"ringway_volume_operations_total{volume="vm1",operation="read"} 0"#), "{text}");
    assert!(text.contains("ringway_pool_size_bytes "), "{text}");
}

#[test]
fn pools_that_cannot_be_served_are_refused_with_the_reason() {
    let place = Place::new();
    let foreign = place.path("image");
    std::fs::write(&foreign, vec![7_u8; 1 << 20]).unwrap();
    place.try_serve(&["--pool", foreign.to_str().unwrap()]).unwrap_err().fails(7, "image");
    place.try_serve(&["--pool", "/no/such/dir/pool"]).unwrap_err().fails(3, "/no/such/dir");
    let occupied = place.path("occupied");
    std::fs::create_dir(&occupied).unwrap();
    std::fs::write(occupied.join("letter.txt"), "dear").unwrap();
    place.try_serve(&["--pool", occupied.to_str().unwrap()]).unwrap_err().fails(3, "pool format");
    assert_eq!(std::fs::read_dir(&occupied).unwrap().count(), 1);
}

#[test]
fn formatting_does_not_overwrite_a_pool_unless_forced() {
    let place = Place::new();
    place.format();
    let pool = place.pool();
    let pool = pool.to_str().unwrap();
    run(["pool", "format", pool, "--size", "256MiB"]).fails(4, "force");
    run(["pool", "format", pool, "--size", "256MiB", "--allocate", "sparse", "--force", "--json"]).json();
}

#[test]
fn queues_are_spread_over_the_reactors_evenly() {
    let place = Place::new();
    let daemon = place.serve(&["--pool", "mem:256MiB"]);
    let reactors = daemon.ready["cores"].as_array().unwrap().len();
    place.run(&["volume", "create", "vm1", "16MiB", "--json"]).json();
    let target = format!("{}/vm1", daemon.listener());
    let _load = spawn(&mut ringway(["bench", &target, "--queues", "16", "--depth", "16", "--time", "60"]));
    // Its administrative queue is one more.
    let io_queues = |text: &str| -> Vec<usize> {
        let lines = text
            .lines()
            .filter(|line| line.starts_with("ringway_connection_commands_total{") && !line.contains(r#"queue="0""#));
        let mut on = vec![0; reactors];
        for line in lines {
            let (_, rest) = line.split_once(r#"reactor=""#).expect("a connection names its reactor");
            on[rest.split('"').next().unwrap().parse::<usize>().unwrap()] += 1;
        }
        on
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        let on = io_queues(&place.metrics());
        if on.iter().sum::<usize>() == 16 {
            let (least, most) = (on.iter().min().unwrap(), on.iter().max().unwrap());
            assert!(most - least <= 1, "connections on each reactor: {on:?}");
            return;
        }
        assert!(std::time::Instant::now() < deadline, "not every queue is connected: {on:?}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
