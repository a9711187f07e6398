//! The target as a child process of this very binary: started, killed, started again, never left behind.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::failure::Failure;
use crate::serve::Ready;

/// A pool of a gigabyte is formatted within this, even on a slow disk; recovery takes much less.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// Draining writes at most the journal and a checkpoint.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// How to start it.
#[derive(Clone, Debug)]
pub(super) struct TargetCommand {
    pub(super) pool: PathBuf,
    pub(super) runtime: PathBuf,
    pub(super) cores: String,
    pub(super) log: PathBuf,
    /// Port 0 at first, then the one it got.
    pub(super) listen: String,
    /// Cores that the child may use, whatever this thread is pinned to when it starts it.
    pub(super) allowed: Vec<usize>,
}

/// A running target. Killed when dropped.
pub(super) struct Target {
    child: Child,
    pub(super) ready: Ready,
    /// From start to ready.
    pub(super) took: Duration,
}

impl Target {
    /// Starts it and waits until it is ready.
    pub(super) fn start(command: &TargetCommand) -> Result<Target, Failure> {
        let begun = Instant::now();
        let log = File::options()
            .create(true)
            .append(true)
            .open(&command.log)
            .map_err(|error| Failure::io("write", &command.log, &error))?;
        let mut target = this_binary()?;
        target
            .arg("serve")
            .arg("--die-with-parent")
            .arg("--pool")
            .arg(&command.pool)
            .arg("--runtime")
            .arg(&command.runtime)
            .arg("--crash-log")
            .arg(&command.runtime)
            .args(["--cores", &command.cores, "--listen", &command.listen])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = spawn_unpinned(&mut target, &command.allowed)
            .map_err(|error| Failure::internal(format!("cannot start the target: {error}")))?;
        let stdout = child.stdout.take().expect("stdout was asked to be a pipe");
        match first_line(stdout, READY_WITHIN).and_then(|line| serde_json::from_str(&line).ok()) {
            Some(ready) => Ok(Target { child, ready, took: begun.elapsed() }),
            None => {
                // It has ended, or never will be ready.
                let _ = child.kill();
                let _ = child.wait();
                Err(Failure::internal(format!("the target did not start: {}", tail(&command.log))))
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: no drain, no flush, no farewell.
    pub(super) fn kill(mut self) -> Result<(), Failure> {
        self.child
            .kill()
            .and_then(|()| self.child.wait())
            .map(drop)
            .map_err(|error| Failure::internal(format!("cannot kill the target: {error}")))
    }

    /// SIGTERM, and its exit status.
    pub(super) fn stop(mut self) -> Result<ExitStatus, Failure> {
        let failed = |error: std::io::Error| Failure::internal(format!("cannot stop the target: {error}"));
        kill_process(Pid::from_child(&self.child), Signal::TERM).map_err(|errno| failed(errno.into()))?;
        let deadline = Instant::now() + STOP_WITHIN;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().map_err(failed)? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err(Failure::internal(format!("the target did not stop within {} s", STOP_WITHIN.as_secs())))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // After kill and stop it is gone and reaped already, and this does nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child inherits the affinity of the thread that starts it, and the load's thread is pinned to one core.
fn spawn_unpinned(command: &mut Command, allowed: &[usize]) -> std::io::Result<Child> {
    let before = sched_getaffinity(None)?;
    let mut all = CpuSet::new();
    allowed.iter().for_each(|&core| all.set(core));
    sched_setaffinity(None, &all)?;
    let child = command.spawn();
    sched_setaffinity(None, &before)?;
    child
}

/// A command of this binary.
pub(super) fn this_binary() -> Result<Command, Failure> {
    let path = std::env::current_exe()
        .map_err(|error| Failure::internal(format!("cannot find this program's own file: {error}")))?;
    Ok(Command::new(path))
}

/// The first line of `from`, if it comes in time. What follows is read and dropped, so that the writer never blocks.
fn first_line(from: impl std::io::Read + Send + 'static, within: Duration) -> Option<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver.recv_timeout(within).ok()
}

/// The last lines of a log, to be shown where it will be deleted.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
