//! libovsvolumedriver against the real binary: programs in C, compiled by gcc, do what programs of Open vStorage's library rely on.

mod common;
mod volume;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Daemon, Place};
use ringway_core::host::Outcome;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use volume::Volume;

/// Longer than all behaviours take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// The crate's folder.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ovsvolumedriver")
}

/// The static library that was built for this test, which depends on it.
fn archive() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let built = fs::read_dir(program.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("libringway_ovsvolumedriver") && name.ends_with(".a")
    };
    let newest = built.filter(named).max_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
    newest.expect("a dependency of this test")
}

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A place with a target, and the library linked beside it.
struct Rig {
    place: Place,
    daemon: Option<Daemon>,
    port: u16,
}

impl Rig {
    fn new() -> Rig {
        let place = Place::new();
        succeed(Command::new(sources().join("link.sh")).arg(archive()).arg(place.path("lib")));
        place.format();
        fs::create_dir(place.path("run")).unwrap();
        symlink(place.control(), place.path("run/control.sock")).unwrap();
        let mut rig = Rig { place, daemon: None, port: 0 };
        rig.start();
        rig
    }

    /// Starts the target, at the port that it had.
    fn start(&mut self) {
        let (pool, run) = (self.place.pool(), self.place.path("run"));
        let listen = format!("tcp://127.0.0.1:{}", self.port);
        let (pool, run) = (pool.to_str().unwrap(), run.to_str().unwrap());
        let args = ["--pool", pool, "--runtime", run, "--crash-log", run, "--listen", &listen];
        let daemon = self.place.serve_plainly(&args);
        let address: SocketAddr = daemon.listener().strip_prefix("tcp://").unwrap().parse().unwrap();
        self.port = address.port();
        self.daemon = Some(daemon);
    }

    fn kill(&mut self) {
        self.daemon.take().unwrap().kill();
    }

    /// Compiles a program of `tests` as the manual says.
    fn compile(&self, name: &str) -> PathBuf {
        let (folder, program) = (self.place.path("lib"), self.place.path(name));
        let source = sources().join("tests").join(format!("{name}.c"));
        let mut gcc = Command::new("gcc");
        gcc.args([
            "-std=gnu11",
            "-O1",
            "-g",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-nonnull",
            "-Wno-sign-compare",
            "-pthread",
        ]);
        gcc.arg("-I").arg(folder.join("include")).arg("-o").arg(&program).arg(source);
        succeed(gcc.arg("-L").arg(folder.join("lib")).arg("-lovsvolumedriver"));
        program
    }

    fn command(&self, program: &Path, transport: &str, port: u16) -> Command {
        let mut command = Command::new(program);
        command.args([transport, "127.0.0.1", &port.to_string()]);
        command.env("LD_LIBRARY_PATH", self.place.path("lib/lib")).env("RINGWAY_RUNTIME_DIR", self.place.path("run"));
        command
    }
}

/// A program that runs; killed when dropped.
struct Program(Child);

impl Program {
    fn start(command: &mut Command) -> Program {
        Program(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Waits until it says `word`; it goes on by [`Program::goes_on`].
    #[track_caller]
    fn says(&mut self, word: &str) {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        if line.trim() != word {
            panic!("{line:?} where {word:?} was to be said: {}", self.errors());
        }
    }

    fn goes_on(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    fn errors(&mut self) -> String {
        let _ = self.0.kill();
        let mut text = String::new();
        let _ = self.0.stderr.take().unwrap().read_to_string(&mut text);
        text
    }

    /// Waits for its end, which has to be a good one.
    #[track_caller]
    fn succeeds(mut self) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break Some(status);
            }
            if begun.elapsed() > PATIENCE {
                break None;
            }
            thread::sleep(Duration::from_millis(20));
        };
        assert!(status.is_some_and(|status| status.success()), "{status:?}: {}", self.errors());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn over_shared_memory_the_library_does_what_its_programs_rely_on() {
    let rig = Rig::new();
    Program::start(&mut rig.command(&rig.compile("conformance"), "shm", 0)).succeeds();
}

#[test]
fn over_tcp_the_library_does_what_its_programs_rely_on() {
    let rig = Rig::new();
    Program::start(&mut rig.command(&rig.compile("conformance"), "tcp", rig.port)).succeeds();
}

#[test]
fn a_target_that_goes_away_ends_every_call_with_a_number_and_one_that_comes_back_costs_no_error() {
    let mut rig = Rig::new();
    let away = rig.compile("away");
    rig.place.run(&["volume", "create", "away", "1MiB"]).ends(0);
    for transport in ["tcp", "shm"] {
        let mut program = Program::start(rig.command(&away, transport, rig.port).arg("high_availability"));
        program.says("running");
        program.goes_on();
        for _ in 0..2 {
            thread::sleep(Duration::from_millis(1500));
            rig.kill();
            rig.start();
        }
        program.succeeds();
        let mut program = Program::start(rig.command(&away, transport, rig.port).arg("unmount_while_doing_io"));
        program.says("running");
        program.goes_on();
        thread::sleep(Duration::from_millis(300));
        rig.kill();
        program.succeeds();
        rig.start();
    }
}

#[test]
fn a_writer_that_was_cut_off_is_told_so_after_restarts_of_the_target_too() {
    let mut rig = Rig::new();
    let away = rig.compile("away");
    rig.place.run(&["volume", "create", "away", "1MiB"]).ends(0);
    for transport in ["tcp", "shm"] {
        let mut first = Program::start(rig.command(&away, transport, rig.port).arg("passed_over"));
        first.says("running");
        let signal = |which| kill_process(Pid::from_child(&first.0), which).unwrap();
        signal(Signal::STOP);
        rig.kill();
        rig.start();
        Program::start(rig.command(&away, transport, rig.port).arg("successor")).succeeds();
        rig.kill();
        rig.start();
        signal(Signal::CONT);
        first.goes_on();
        first.succeeds();
        Program::start(rig.command(&away, transport, rig.port).arg("check_successor")).succeeds();
    }
}

/// The same certificate as for commands on another machine.
#[test]
fn over_tls_with_a_token_the_library_controls_a_target_elsewhere() {
    let mut rig = Rig::new();
    rig.kill();
    let token = rig.place.path("token");
    fs::write(&token, "8a1c5f0e93d74b26a0b7-ringway-test").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let tls = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls");
    let (certificate, key) = (tls.join("certificate.pem"), tls.join("key.pem"));
    let file = |path: &Path| path.to_str().unwrap().to_owned();
    let daemon = rig.place.serve(&[
        "--control-listen",
        "https://127.0.0.1:0",
        "--control-token-file",
        &file(&token),
        "--tls-cert",
        &file(&certificate),
        "--tls-key",
        &file(&key),
    ]);
    let port = daemon.listener().rsplit_once(':').unwrap().1.parse().unwrap();
    let url = daemon.ready["control_listeners"][0].as_str().unwrap().to_owned();
    let program = rig.compile("elsewhere");
    let mut command = rig.command(&program, "tcp", port);
    // No target of this machine is to be found by it.
    command.env("RINGWAY_RUNTIME_DIR", rig.place.path("nowhere"));
    command.args([&url, &file(&certificate), &file(&token), &file(&tls.join("other-certificate.pem"))]);
    Program::start(&mut command).succeeds();
    assert!(rig.place.run(&["volume", "list"]).stdout.contains("elsewhere"));
    daemon.stop().ends(0);
}

#[test]
fn what_is_no_target_is_told_from_one() {
    let rig = Rig::new();
    let away = rig.compile("away");
    for greeting in [None, Some(&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..])] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let program = Program::start(rig.command(&away, "tcp", port).arg("not_a_target"));
        // Kept open: it accepts and says nothing, or something else.
        let (mut stream, _) = listener.accept().unwrap();
        if let Some(greeting) = greeting {
            stream.write_all(greeting).unwrap();
        }
        program.succeeds();
    }
}

#[test]
fn the_shared_object_has_its_name_and_the_functions_of_its_interface_and_no_others() {
    let rig = Rig::new();
    let object = rig.place.path("lib/lib/libovsvolumedriver.so.1");
    let header = succeed(Command::new("readelf").arg("-d").arg(&object));
    assert!(header.contains("Library soname: [libovsvolumedriver.so.1]"), "{header}");
    let symbols = succeed(Command::new("nm").args(["-D", "--defined-only", "--with-symbol-versions"]).arg(&object));
    let functions: Vec<&str> = symbols.lines().filter_map(|line| line.split(" T ").nth(1)).collect();
    let of = |version: &str| functions.iter().filter(|name| name.ends_with(version)).count();
    assert_eq!((of("@@OVSVOLUMEDRIVER_1"), of("@@RINGWAY_1"), functions.len()), (42, 25, 67), "{functions:?}");
}

/// docs/edges/libovsvolumedriver.md, "One working command".
#[test]
fn the_manuals_program_is_built_as_the_manual_says_and_works() {
    let rig = Rig::new();
    rig.place.run(&["volume", "create", "vm1", "64MiB"]).ends(0);
    let mut config = Command::new("pkg-config");
    config.args(["--cflags", "--libs", "libovsvolumedriver"]);
    config.env("PKG_CONFIG_PATH", rig.place.path("lib/lib/pkgconfig"));
    let said = match config.output() {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap(),
        found => return common::skip("the manual's program", &format!("pkg-config is needed: {found:?}")),
    };
    let program = rig.place.path("hello");
    let mut gcc = Command::new("gcc");
    gcc.arg(sources().join("tests/hello.c")).arg("-o").arg(&program).args(said.split_whitespace());
    succeed(&mut gcc);
    let mut hello = Command::new(&program);
    hello
        .arg("vm1")
        .env("LD_LIBRARY_PATH", rig.place.path("lib/lib"))
        .env("RINGWAY_RUNTIME_DIR", rig.place.path("run"));
    let printed = succeed(&mut hello);
    assert!(printed.starts_with("hello-") && printed.ends_with(": hello, volume\n"), "{printed:?}");
    let snapshot = printed.split(':').next().unwrap();
    rig.place.run(&["snapshot", "show", &format!("vm1@{snapshot}")]).ends(0);
}

// ---- the rows of the streaming proposal, by each way

const ROWS: [&str; 6] = ["step", "continuous", "abort", "info", "list", "event"];

impl Rig {
    /// `vm1` with 16 MiB of data, and a clone of its snapshot for each name.
    fn family(&self, clones: &[String]) {
        self.place.run(&["volume", "create", "vm1", "32MiB"]).ends(0);
        let mut parent = Volume::attach(&self.daemon.as_ref().unwrap().listener(), "vm1");
        for at in (0..16 << 20).step_by(128 << 10) {
            assert_eq!(parent.write(at, &vec![7; 128 << 10]), Outcome::Success);
        }
        assert_eq!(parent.flush(), Outcome::Success);
        assert_eq!(parent.read(4096, 4096), [7; 4096]);
        drop(parent);
        self.place.run(&["snapshot", "create", "vm1", "a"]).ends(0);
        for clone in clones {
            self.place.run(&["volume", "clone", "vm1@a", clone]).ends(0);
        }
    }

    fn parent(&self, clone: &str) -> Value {
        self.place.run(&["volume", "show", clone, "--json"]).json()["parent"].clone()
    }

    /// Status and answer.
    fn http(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let mut socket = UnixStream::connect(self.place.control()).unwrap();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json");
        write!(socket, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    /// Kinds of the events of a clone, and of which job.
    fn events(&self, clone: &str) -> Vec<(String, u64)> {
        let kept = self.place.run(&["events", "--once", "--since", "0", "--json"]);
        let events = kept.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let streams = events.filter(|event| event["name"] == clone && event["job"].is_u64());
        streams.map(|event| (event["kind"].as_str().unwrap().to_owned(), event["job"].as_u64().unwrap())).collect()
    }

    #[track_caller]
    fn waits_for(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < PATIENCE, "{what}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// docs/edges/libovsvolumedriver.md, "Streaming": the column of C.
#[test]
fn each_row_of_the_streaming_proposal_is_there_in_c() {
    let mut rig = Rig::new();
    let program = rig.compile("streams");
    rig.family(&ROWS.map(|row| format!("c-{row}")));
    for row in ROWS {
        let clone = format!("c-{row}");
        let mut running = Program::start(rig.command(&program, "tcp", rig.port).args([row, &clone]));
        if row == "event" {
            running.says("running");
            rig.kill();
            rig.start();
            running.goes_on();
        }
        running.succeeds();
        let independent = !matches!(row, "abort" | "list");
        assert_eq!(rig.parent(&clone), if independent { Value::Null } else { "vm1@a".into() }, "{row}");
    }
    let last = rig.events("c-event");
    assert_eq!(last.iter().filter(|(kind, _)| kind == "stream_completed").count(), 1, "{last:?}");
}

/// Likewise: the column of HTTP.
#[test]
fn each_row_of_the_streaming_proposal_is_there_over_http() {
    let rig = Rig::new();
    rig.family(&ROWS.map(|row| format!("http-{row}")));
    let start = |clone: &str, speed: Value| {
        let (status, job) = rig.http("POST", "/v1/streams", &json!({ "volume": clone, "speed": speed }));
        assert_eq!(status, 201, "{job}");
        job["job"].as_u64().unwrap()
    };
    let (mut cursor, mut end) = (0, 1);
    while cursor < end {
        let (status, step) = rig.http("POST", "/v1/streams/http-step/step", &json!({ "cursor": cursor }));
        assert!(status == 200 && step["cursor"].as_u64().unwrap() > cursor, "{step}");
        (cursor, end) = (step["cursor"].as_u64().unwrap(), step["end"].as_u64().unwrap());
    }
    assert_eq!(rig.parent("http-step"), Value::Null);
    start("http-continuous", Value::Null);
    rig.waits_for("it is done", || rig.parent("http-continuous").is_null());
    start("http-abort", json!(1));
    assert_eq!(rig.http("POST", "/v1/streams", &json!({ "volume": "http-abort" })).0, 423);
    assert_eq!(rig.http("DELETE", "/v1/streams/http-abort", &Value::Null).0, 200);
    assert_eq!(rig.parent("http-abort"), "vm1@a");
    let job = start("http-info", json!(1));
    let (status, info) = rig.http("GET", "/v1/streams/http-info", &Value::Null);
    assert!(status == 200 && info["job"] == job && info["cur"].as_u64() < info["end"].as_u64(), "{info}");
    start("http-list", json!(1));
    let (_, list) = rig.http("GET", "/v1/streams", &Value::Null);
    let names: Vec<_> = list.as_array().unwrap().iter().map(|info| info["volume"].as_str().unwrap()).collect();
    assert_eq!(names, ["http-info", "http-list"]);
    let job = start("http-event", Value::Null);
    rig.waits_for("it is done", || rig.parent("http-event").is_null());
    let (_, sent) = rig.place.get("/v1/events?since=0&once=true");
    let of_job = sent.lines().filter(|line| line.starts_with("data:") && line.contains(&format!("\"job\":{job},")));
    let kinds: Vec<_> = of_job.map(|line| serde_json::from_str::<Value>(&line[5..]).unwrap()["kind"].clone()).collect();
    assert_eq!(kinds, ["stream_started", "stream_completed"]);
}

/// Likewise: the column of the command line.
#[test]
fn each_row_of_the_streaming_proposal_is_there_on_the_command_line() {
    let rig = Rig::new();
    rig.family(&ROWS.map(|row| format!("cli-{row}")));
    let run = |args: &[&str]| rig.place.run(args);
    let (mut cursor, mut end) = (0, 1);
    while cursor < end {
        let step = run(&["stream", "step", "cli-step", "--cursor", &cursor.to_string(), "--json"]).json();
        (cursor, end) = (step["cursor"].as_u64().unwrap(), step["end"].as_u64().unwrap());
    }
    assert_eq!(rig.parent("cli-step"), Value::Null);
    run(&["stream", "start", "cli-continuous", "--follow"]).ends(0);
    assert_eq!(rig.parent("cli-continuous"), Value::Null);
    run(&["stream", "start", "cli-abort", "--speed", "1"]).ends(0);
    run(&["stream", "abort", "cli-abort"]).ends(0);
    assert_eq!(rig.parent("cli-abort"), "vm1@a");
    run(&["stream", "start", "cli-info", "--speed", "1"]).ends(0);
    let info = run(&["stream", "info", "cli-info", "--json"]).json();
    assert!(info["cur"].as_u64() < info["end"].as_u64(), "{info}");
    run(&["stream", "start", "cli-list", "--speed", "1"]).ends(0);
    let list = run(&["stream", "list"]).stdout;
    assert!(list.contains("cli-info") && list.contains("cli-list") && !list.contains("cli-abort"), "{list}");
    let job = run(&["stream", "start", "cli-event", "--json"]).json()["job"].as_u64().unwrap();
    rig.waits_for("it is done", || rig.parent("cli-event").is_null());
    let told = ["stream_started", "stream_completed"].map(|kind| (kind.to_owned(), job));
    assert_eq!(rig.events("cli-event"), told);
}

/// docs/edges/libovsvolumedriver.md, "Streaming".
#[test]
fn the_manuals_second_program_follows_a_job_to_its_end() {
    let rig = Rig::new();
    rig.family(&["vm2".to_owned()]);
    let program = rig.compile("follow");
    let follow = |clone: &str| {
        let mut command = Command::new(&program);
        command.arg(clone).env("LD_LIBRARY_PATH", rig.place.path("lib/lib"));
        command.env("RINGWAY_RUNTIME_DIR", rig.place.path("run")).output().unwrap()
    };
    let done = follow("vm2");
    assert!(done.status.success() && done.stdout == b"vm2 is independent\n", "{done:?}");
    assert_eq!(rig.parent("vm2"), Value::Null);
    let refused = follow("vm2");
    assert!(!refused.status.success(), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no clone, or is independent already"), "{refused:?}");
}
