//! Exports from outside: their sockets, their list, restarts.

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use common::{Daemon, Ended, Place, run};
use ringway_shm_ring::client::{Client, ConnectOptions};
use serde_json::Value;

const POOL_ARGS: &[&str] = &["--pool-size", "256MiB"];

/// Build folders are deep and a socket's path has 107 bytes: the runtime folder is elsewhere.
struct Home {
    place: Place,
    runtime: tempfile::TempDir,
}

impl Home {
    fn new() -> Home {
        Home { place: Place::new(), runtime: tempfile::Builder::new().prefix("ringway-").tempdir().unwrap() }
    }

    fn serve(&self, args: &[&str]) -> Daemon {
        let runtime = self.runtime.path().to_str().unwrap();
        self.place.serve(&[&["--runtime", runtime], args].concat())
    }

    fn export(&self, args: &str) -> Ended {
        let all: Vec<&str> = ["export"].into_iter().chain(args.split(' ')).collect();
        self.place.run(&all)
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.runtime.path().join(name)
    }
}

fn sockets(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|export| export["socket"].as_str().unwrap()).collect()
}

#[test]
fn an_export_is_made_shown_found_again_after_a_kill_and_removed() {
    let home = Home::new();
    let daemon = home.serve(POOL_ARGS);
    home.place.run(&["volume", "create", "db/log", "64MiB"]);
    let made = home.export("add vhost-user db/log --queues 4 --polling busy --read-only --json").json();
    let socket = home.socket("vhost/db%2Flog.sock");
    assert_eq!(made["socket"], socket.to_str().unwrap());
    assert_eq!((&made["kind"], &made["polling"], &made["queues"]), (&"vhost-user".into(), &"busy".into(), &4.into()));
    assert_eq!((&made["read_only"], &made["pin_guest"], &made["fault"]), (&true.into(), &false.into(), &Value::Null));
    let found = fs::symlink_metadata(&socket).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.mode() & 0o777, 0o600);
    UnixStream::connect(&socket).unwrap();
    home.export("add vhost-user db/log").fails(4, "has its socket at");

    let elsewhere = home.socket("disk.sock");
    home.export(&format!("add vhost-user db/log --socket {} --json", elsewhere.display())).json();
    home.place.run(&["volume", "remove", "db/log", "--force"]).fails(8, "vhost/db%2Flog.sock");
    home.place.run(&["volume", "rename", "db/log", "log", "--json"]).json();

    daemon.kill();
    let _daemon = home.serve(&["--socket-mode", "0660", "--control-mode", "0600"]);
    let list = home.export("list --json").json();
    assert_eq!(sockets(&list), [elsewhere.to_str().unwrap(), socket.to_str().unwrap()]);
    assert!(list.as_array().unwrap().iter().all(|export| export["volume"] == "log" && export["fault"].is_null()));
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o660);
    assert_eq!(fs::metadata(home.place.control()).unwrap().mode() & 0o777, 0o600);
    UnixStream::connect(&socket).unwrap();

    home.export("remove log").fails(2, "several exports");
    home.export(&format!("remove {} --json", elsewhere.display())).json();
    home.export("remove log --json").json();
    home.export("remove log").fails(3, "export list");
    let text = home.export("list");
    assert!(text.code == Some(0) && text.stdout.starts_with("export  kind"), "{text:?}");
    home.place.run(&["volume", "remove", "log", "--json"]).json();
    // Closing is told to the thread that accepts; the answer does not wait for it.
    while socket.exists() {
        std::thread::yield_now();
    }
}

#[test]
fn what_is_in_the_way_of_a_socket_is_left_alone_unless_it_is_a_leftover() {
    let home = Home::new();
    let daemon = home.serve(POOL_ARGS);
    home.place.run(&["volume", "create", "v", "64MiB"]);
    let at = home.socket("s");
    let add = format!("add vhost-user v --socket {}", at.display());
    let listener = UnixListener::bind(&at).unwrap();
    home.export(&add).fails(8, "somebody listens");
    drop(listener);
    fs::remove_file(&at).unwrap();
    fs::write(&at, "precious").unwrap();
    home.export(&add).fails(4, "no socket");
    let link = home.socket("link");
    symlink(&at, &link).unwrap();
    home.export(&format!("add vhost-user v --socket {}", link.display())).fails(4, "symbolic link");
    assert_eq!(fs::read(&at).unwrap(), b"precious");
    home.export("add vhost-user v --socket /no/such/folder/s").fails(3, "/no/such/folder/s");
    home.export("add vhost-user nope").fails(3, "no volume named");
    // What failed has left nothing behind.
    assert_eq!(home.export("list --json").json(), Value::Array(Vec::new()));
    let left: Vec<_> = fs::read_dir(home.socket("vhost")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["v.sock"], "and the volume has its own socket");

    // A path that is taken at the next start costs that export, and says so; the rest is served.
    fs::remove_file(&at).unwrap();
    home.export(&format!("{add} --json")).json();
    home.export("add vhost-user v --json").json();
    assert_eq!(daemon.stop().code, Some(0));
    assert!(!at.exists(), "a socket outlived its daemon");
    fs::write(&at, "precious").unwrap();
    let _daemon = home.serve(&[]);
    let list = home.export("list --json").json();
    let faults: Vec<bool> = list.as_array().unwrap().iter().map(|export| export["fault"].is_string()).collect();
    assert_eq!(faults, [true, false], "{list}");
    assert!(home.export("list").stdout.contains("closed: "));
    assert_eq!(fs::read(&at).unwrap(), b"precious");
}

#[test]
fn a_socket_below_the_runtime_folder_that_would_be_too_long_says_how_to_shorten_it() {
    let home = Home::new();
    let _daemon = home.serve(&["--pool", "mem:256MiB"]);
    let name = "x".repeat(120);
    home.place.run(&["volume", "create", &name, "1MiB", "--json"]).json();
    home.export(&format!("add vhost-user {name}")).fails(2, "--socket");
    let short = home.socket("s");
    home.export(&format!("add vhost-user {name} --socket {} --json", short.display())).json();
}

#[test]
fn a_runtime_folder_with_a_long_path_serves_rings_and_says_why_it_has_no_disks() {
    let home = Home::new();
    let long = home.socket(&"r".repeat(120));
    let runtime = long.to_str().unwrap();
    let _daemon = home.place.serve(&["--pool", "mem:256MiB", "--runtime", runtime]);
    home.place.run(&["volume", "create", "v", "1MiB", "--json"]).json();
    home.export("add vhost-user v").fails(2, "shorter --runtime");
    let client = Client::connect(ConnectOptions::new(long.join("shm.sock"), "v")).unwrap();
    client.take_queue().unwrap().write_at(0, &[7; 512], false).unwrap();
}

#[test]
fn each_volume_has_a_socket_while_it_is_served_that_comes_and_goes_with_it() {
    let home = Home::new();
    let daemon = home.serve(POOL_ARGS);
    let volume = |args: &str| home.place.run(&["volume"].into_iter().chain(args.split(' ')).collect::<Vec<_>>()).json();
    let listens = |name: &str| UnixStream::connect(home.socket("vhost").join(name)).is_ok();
    volume("create a/b 1MiB --json");
    assert!(listens("a%2Fb.sock"), "it is there when the volume is");
    assert_eq!(fs::metadata(home.socket("vhost/a%2Fb.sock")).unwrap().mode() & 0o777, 0o600);
    volume("rename a/b c --json");
    assert!(listens("c.sock") && !home.socket("vhost/a%2Fb.sock").exists());
    // A list of hosts says who may; a virtual machine is none of them.
    let host = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
    volume(&format!("create listed 1MiB --host {host} --json"));
    assert!(!home.socket("vhost/listed.sock").exists());
    volume(&format!("hosts c {host} --json"));
    assert!(!home.socket("vhost/c.sock").exists());
    volume("hosts c --json");
    assert!(listens("c.sock"));
    // An export takes its place, and gives it back.
    volume("create d 1MiB --json");
    let made = || fs::metadata(home.socket("vhost/d.sock")).map(|found| (found.ctime(), found.ctime_nsec())).unwrap();
    let before = made();
    home.export("add vhost-user d --read-only --json").json();
    assert!(listens("d.sock") && made() != before, "the socket is still the volume's own");
    assert_eq!(home.export("list --json").json().as_array().unwrap().len(), 1);
    home.export("remove d --json").json();
    let started = std::time::Instant::now();
    while !listens("d.sock") {
        assert!(started.elapsed().as_secs() < 10, "the volume's own socket has not come back");
    }
    // Refused, and the volume keeps its own.
    home.export("add vhost-user d --socket /no/such/folder/s").fails(3, "/no/such/folder/s");
    assert!(listens("d.sock"));
    volume("create gone 1MiB --json");
    daemon.kill();
    // What a killed target has left of a volume that is gone is removed at the next start, and nothing else.
    let left = home.socket("vhost/never.sock");
    drop(UnixListener::bind(&left).unwrap());
    fs::write(home.socket("vhost/letter.sock"), "dear").unwrap();
    let daemon = home.serve(&[]);
    assert!(listens("d.sock") && listens("gone.sock") && !left.exists() && home.socket("vhost/letter.sock").exists());
    volume("remove gone --force --json");
    assert!(!home.socket("vhost/gone.sock").exists());
    assert_eq!(daemon.stop().code, Some(0));
    assert!(!home.socket("vhost/d.sock").exists(), "a socket outlived its daemon");
}

#[test]
fn a_wrong_command_line_is_refused_before_anybody_is_asked() {
    for (line, says) in [
        ("export add vhost-user", "<VOLUME>"),
        ("export add vhost-user a:b", "A-Z a-z 0-9"),
        ("export add vhost-user v --queues 0", "1 to 128"),
        ("export add vhost-user v --polling always", "adaptive"),
        ("export add vhost-usr v", "vhost-user"),
        ("export remove", "<NUMBER|SOCKET|VOLUME>"),
        ("serve --control-mode rw", "0660"),
    ] {
        run(line.split(' ')).fails(2, says);
    }
    let place = Place::new();
    for args in [&["export", "add", "vhost-user", "v"][..], &["export", "list"], &["export", "remove", "v"]] {
        place.run(args).fails(6, "ringway serve");
    }
    let help = run(["export", "add", "vhost-user", "--help"]);
    assert!(help.code == Some(0) && help.stdout.contains("vhost-user-blk-pci"), "{help:?}");
}

/// CPU time of all threads of a process so far, in the kernel's steps of 10 ms.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    // State is the first field after the name; user and system time are the 12th and 13th.
    after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[test]
fn exports_that_nobody_uses_cost_next_to_nothing() {
    let home = Home::new();
    let daemon = home.serve(&["--pool", "mem:256MiB"]);
    for (name, polling) in [("a", "busy"), ("b", "adaptive"), ("c", "interrupt")] {
        home.place.run(&["volume", "create", name, "1MiB", "--json"]).json();
        home.export(&format!("add vhost-user {name} --polling {polling} --json")).json();
    }
    std::thread::sleep(std::time::Duration::from_millis(500));
    let before = cpu_ticks(daemon.pid());
    std::thread::sleep(std::time::Duration::from_secs(3));
    let used = cpu_ticks(daemon.pid()) - before;
    // A polling reactor would use 300, of which a busy machine may leave a third.
    assert!(used <= 10, "{} ms of CPU time in 3 s", used * 10);
}
