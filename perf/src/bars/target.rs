//! The target as a process of its own, as users run it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ringway_core::host::Target;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tempfile::TempDir;

use super::{Failed, Options};

/// Formatting writes the whole pool.
const READY_WITHIN: Duration = Duration::from_secs(600);
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// The line that `ringway serve` prints; more may come in it.
#[derive(Debug, Deserialize)]
struct Ready {
    listeners: Vec<String>,
}

/// A running target; killed when dropped.
#[derive(Debug)]
pub(super) struct TargetProcess {
    child: Child,
    binary: std::path::PathBuf,
    runtime: TempDir,
    listener: String,
    /// From its start until it was ready.
    pub(super) took: Duration,
}

impl TargetProcess {
    /// Starts it on the target's core and waits until it is ready.
    pub(super) fn start(options: &Options, pool: &str, arguments: &[&str]) -> Result<Self, Failed> {
        Self::start_with(options, pool, arguments, &[])
    }

    /// The same with an allocator that gives back what is freed: what starting needed for a moment would otherwise be used for
    /// what comes later, which would seem to take no memory.
    pub(super) fn start_to_weigh(options: &Options, pool: &str) -> Result<Self, Failed> {
        let giving_back = [("MALLOC_TRIM_THRESHOLD_", "0"), ("MALLOC_MMAP_THRESHOLD_", "65536")];
        Self::start_with(options, pool, &[], &giving_back)
    }

    fn start_with(
        options: &Options,
        pool: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Self, Failed> {
        let runtime = TempDir::new()?;
        let begun = Instant::now();
        let mut child = Command::new(&options.target)
            .args(["serve", "--die-with-parent", "--log", "warn", "--listen", "tcp://127.0.0.1:0", "--pool", pool])
            .args(["--cores", &options.target_core.to_string()])
            .arg("--runtime")
            .arg(runtime.path())
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", options.target.display()))?;
        let stdout = child.stdout.take().expect("stdout was asked to be a pipe");
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Nobody listens after the first line; reading on keeps the pipe from filling.
                let _ = sender.send(line);
            }
        });
        let line = receiver.recv_timeout(READY_WITHIN);
        let took = begun.elapsed();
        let ready = line.ok().and_then(|line| serde_json::from_str::<Ready>(&line).ok());
        let listener = ready.and_then(|ready| ready.listeners.first().cloned());
        let mut process = Self { child, binary: options.target.clone(), runtime, listener: String::new(), took };
        process.listener =
            listener.ok_or_else(|| format!("the target on {pool} did not become ready; its log is above"))?;
        Ok(process)
    }

    /// Its runtime folder.
    pub(super) fn runtime(&self) -> &std::path::Path {
        self.runtime.path()
    }

    /// `tcp://HOST:PORT`.
    pub(super) fn address(&self) -> &str {
        self.listener.trim_end_matches('/')
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: no drain, no checkpoint.
    pub(super) fn kill(mut self) -> Result<(), Failed> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// A command of the same binary about this target.
    pub(super) fn command(&self, arguments: &[&str]) -> Result<Output, Failed> {
        let output = Command::new(&self.binary).args(arguments).arg("--runtime").arg(self.runtime.path()).output()?;
        if !output.status.success() {
            return Err(format!("ringway {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
        }
        Ok(output)
    }

    /// Makes a volume and returns how to reach it.
    pub(super) fn create_volume(&self, name: &str, size: &str) -> Result<Target, Failed> {
        self.command(&["volume", "create", name, size])?;
        self.volume(name)
    }

    /// Exports a volume to virtual machines and returns the socket.
    pub(super) fn export(&self, name: &str) -> Result<std::path::PathBuf, Failed> {
        self.command(&["export", "add", "vhost-user", name, "--queues", "1"])?;
        Ok(self.runtime.path().join(format!("vhost/{name}.sock")))
    }

    /// How to reach a volume that is there.
    pub(super) fn volume(&self, name: &str) -> Result<Target, Failed> {
        Ok(Target::parse(&format!("{}/{name}", self.listener.trim_end_matches('/')))?)
    }

    /// Resident memory, bytes.
    pub(super) fn resident_bytes(&self) -> Result<u64, Failed> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS in its status")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    }

    /// SIGTERM, and waits for its end.
    pub(super) fn stop(mut self) -> Result<(), Failed> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let deadline = Instant::now() + STOP_WITHIN;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return if status.success() { Ok(()) } else { Err(format!("the target ended with {status}").into()) };
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err(format!("the target did not stop within {STOP_WITHIN:?}").into())
    }
}

impl Drop for TargetProcess {
    fn drop(&mut self) {
        // After stop it has ended, and both do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
