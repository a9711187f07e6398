//! The real binary from outside: commands that run to their end, and daemons that never outlive their test.

#![expect(dead_code, unreachable_pub, reason = "each test binary uses its part of this")]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than any single step takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Says that a test cannot run on this machine. CI forbids it; `cargo xtask test` shows it at its end.
#[track_caller]
pub fn skip(test: &str, why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} cannot run: {why}");
    eprintln!("SKIP {test}: {why}");
    if let Some(file) = std::env::var_os("RINGWAY_TEST_SKIPS") {
        let mut file = std::fs::File::options().create(true).append(true).open(file).unwrap();
        writeln!(file, "{test}: {why}").unwrap();
    }
}

/// A command of the binary under test.
pub fn ringway<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    // What the tester's own environment says about daemons is nobody's business here.
    command.env_remove("RINGWAY_RUNTIME_DIR").env_remove("XDG_RUNTIME_DIR").env("RUST_BACKTRACE", "1").args(args);
    command
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Of a command that had to succeed, stdout as JSON.
    #[track_caller]
    pub fn json(self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Of a command that had to end with this code.
    #[track_caller]
    pub fn ends(&self, code: i32) {
        self.ends_in(&[code]);
    }

    /// Of a command that had to end with one of these codes.
    #[track_caller]
    pub fn ends_in(&self, codes: &[i32]) {
        assert!(self.code.is_some_and(|code| codes.contains(&code)), "{codes:?} expected: {self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
    }

    /// Of a command that had to fail with `code`, saying `says`.
    #[track_caller]
    pub fn fails(&self, code: i32, says: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stderr.contains(says), "{says:?} is not said in {self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Ended {
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs a command to its end; one that hangs is killed and fails the test.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ended {
    finish(spawn(&mut ringway(args)))
}

/// A started command. Killed when dropped.
#[derive(Debug)]
pub struct Running(Option<Child>);

/// Starts a command with its output kept.
#[track_caller]
pub fn spawn(command: &mut Command) -> Running {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    Running(Some(child))
}

impl Running {
    pub fn kill(mut self) {
        kill(self.0.take().as_mut());
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.0.as_ref().expect("it runs")), signal).unwrap();
    }

    pub fn is_over(&mut self) -> bool {
        self.0.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        kill(self.0.as_mut());
    }
}

fn kill(child: Option<&mut Child>) {
    if let Some(child) = child {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Waits for the end.
#[track_caller]
pub fn finish(mut running: Running) -> Ended {
    let mut child = running.0.take().expect("a running command is finished once");
    let stdout = drain(child.stdout.take().expect("stdout is a pipe"));
    let stderr = drain(child.stderr.take().expect("stderr is a pipe"));
    let status = wait(&mut child, PATIENCE);
    if status.is_none() {
        kill(Some(&mut child));
    }
    let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
    let status = status.unwrap_or_else(|| panic!("it did not end within {PATIENCE:?}\n{stdout}\n{stderr}"));
    Ended { code: status.code(), stdout, stderr }
}

fn drain(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(5));
    }
    None
}

/// A folder with a pool and a daemon's runtime folder.
#[derive(Debug)]
pub struct Place {
    dir: TempDir,
}

impl Place {
    pub fn new() -> Place {
        // Below the build's folder, which is on a disk: a pool needs O_DIRECT.
        let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
        Place { dir: tempfile::Builder::new().prefix("t-").tempdir_in(base).unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn pool(&self) -> PathBuf {
        self.path("pool")
    }

    /// Formats a small pool, quickly.
    pub fn format(&self) {
        let pool = self.pool();
        let args = ["pool", "format", "--size", "256MiB", "--allocate", "sparse", "--json"];
        run(args.iter().map(OsStr::new).chain([pool.as_os_str()])).json();
    }

    /// A command for the daemon of this place.
    pub fn run(&self, args: &[&str]) -> Ended {
        run(self.with_control(args))
    }

    pub fn with_control(&self, args: &[&str]) -> Vec<String> {
        let mut all: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        all.extend(["--control".to_owned(), self.control().display().to_string()]);
        all
    }

    /// What is behind a path of the control socket: status line and headers in lower case, and the body.
    pub fn get(&self, path: &str) -> (String, String) {
        let mut socket = UnixStream::connect(self.control()).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), body.to_owned())
    }

    pub fn metrics(&self) -> String {
        self.get("/metrics").1
    }

    /// A short name: a socket's path has at most 107 bytes, and build folders are deep.
    pub fn control(&self) -> PathBuf {
        let name = self.dir.path().file_name().unwrap().to_str().unwrap();
        std::env::temp_dir().join(format!("ringway-{name}.sock"))
    }

    /// Starts a daemon here.
    #[track_caller]
    pub fn serve(&self, args: &[&str]) -> Daemon {
        match self.try_serve(args) {
            Ok(daemon) => daemon,
            Err(ended) => panic!("the daemon did not become ready: {ended:?}"),
        }
    }

    /// The runtime folder, unless `args` have another, and there the crash log: who kills a daemon leaves nothing in /dev/shm.
    fn folders(&self, args: &[&str]) -> Vec<PathBuf> {
        let log = ["--crash-log".into(), self.path("run")];
        let runtime = ["--runtime".into(), self.path("run")];
        let given = args.contains(&"--runtime");
        log.into_iter().chain(runtime.into_iter().filter(|_| !given)).collect()
    }

    /// A daemon with nothing but these arguments, cores and a control socket.
    #[track_caller]
    pub fn serve_plainly(&self, args: &[&str]) -> Daemon {
        let mut command = ringway(["serve", "--die-with-parent", "--control"]);
        command.arg(self.control()).args(["--cores", &first_cores()]).args(args);
        Daemon::start(&mut command).unwrap_or_else(|ended| panic!("the daemon did not become ready: {ended:?}"))
    }

    /// Pool and listeners come from the file.
    #[track_caller]
    pub fn serve_with_config(&self, config: &str) -> Daemon {
        let mut command = ringway(["serve", "--die-with-parent", "--config", config, "--control"]);
        command.arg(self.control()).args(["--cores", &first_cores()]).args(self.folders(&[]));
        Daemon::start(&mut command).unwrap_or_else(|ended| panic!("the daemon did not become ready: {ended:?}"))
    }

    #[track_caller]
    pub fn try_serve(&self, args: &[&str]) -> Result<Daemon, Ended> {
        let mut command = ringway(["serve", "--die-with-parent", "--control"]);
        command.arg(self.control()).args(["--cores", &first_cores()]);
        command.args(self.folders(args));
        if !args.contains(&"--pool") {
            command.arg("--pool").arg(self.pool());
        }
        if !args.contains(&"--listen") {
            command.args(["--listen", "tcp://127.0.0.1:0"]);
        }
        Daemon::start(command.args(args))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.control());
        let _ = std::fs::remove_file(self.control().with_extension("sock.lock"));
    }
}

/// Two reactors where there are two cores.
fn first_cores() -> String {
    let allowed = ringway_reactor::pin::allowed_cores().unwrap();
    ringway_reactor::pin::CoreList(allowed.into_iter().take(2).collect()).to_string()
}

/// A daemon that is ready. Killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Option<Child>,
    pub ready: Value,
    stderr: mpsc::Receiver<String>,
}

impl Daemon {
    fn start(command: &mut Command) -> Result<Daemon, Ended> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = lines(child.stdout.take().expect("stdout is a pipe"));
        let stderr = lines(child.stderr.take().expect("stderr is a pipe"));
        match stdout.recv_timeout(PATIENCE) {
            Ok(line) => {
                let ready = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                Ok(Daemon { child: Some(child), ready, stderr })
            }
            Err(_) => {
                let status = wait(&mut child, Duration::from_secs(1));
                kill(Some(&mut child));
                let stderr = stderr.iter().collect::<Vec<_>>().join("\n");
                Err(Ended { code: status.and_then(|status| status.code()), stdout: String::new(), stderr })
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// `tcp://ADDR:PORT` of the first listener.
    pub fn listener(&self) -> String {
        self.ready["listeners"][0].as_str().unwrap().to_owned()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().expect("the daemon runs")), signal).unwrap();
    }

    /// SIGKILL, and gone when this returns.
    pub fn kill(mut self) {
        kill(self.child.take().as_mut());
    }

    /// SIGTERM; the exit code and what was logged.
    #[track_caller]
    pub fn stop(self) -> Ended {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits for its end, which somebody has seen to.
    #[track_caller]
    pub fn wait(mut self) -> Ended {
        let mut child = self.child.take().expect("the daemon runs");
        let status = wait(&mut child, PATIENCE);
        kill(Some(&mut child));
        let stderr = self.stderr.iter().collect::<Vec<_>>().join("\n");
        let status = status.unwrap_or_else(|| panic!("the daemon did not stop:\n{stderr}"));
        Ended { code: status.code(), stdout: String::new(), stderr }
    }

    /// Waits for a line of the log that contains `says`.
    #[track_caller]
    pub fn logs(&self, says: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while let Ok(line) = self.stderr.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if line.contains(says) {
                return line;
            }
            seen.push(line);
        }
        panic!("{says:?} was not logged; this was: {seen:#?}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        kill(self.child.as_mut());
    }
}

fn lines(from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}
