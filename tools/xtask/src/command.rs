//! Programs we start: where they run, what they print, how long they may take.
//!
//! Nothing started here outlives its time limit, nor does what it started itself. They stay in the terminal's process group,
//! so that Ctrl-C ends all of them.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// The repository.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Where builds of the workspace are put.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The cargo that runs us, so that its toolchain is used throughout.
pub(crate) fn cargo<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(arguments: I) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    command
}

/// The file of that name on the search path, or in the folders of root's programs.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .chain(home.map(|home| home.join("bin")))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// Runs to the end with the terminal as it is.
pub(crate) fn run(mut command: Command, limit: Duration) -> Result<(), String> {
    let named = describe(&command);
    let mut child = start(&mut command, &named)?;
    succeeded(&named, wait(&mut child, &named, limit)?)
}

/// Runs to the end and gives each line of its output to `line`, which says whether to print it.
pub(crate) fn run_reading(
    mut command: Command,
    limit: Duration,
    mut line: impl FnMut(&str) -> bool,
) -> Result<ExitStatus, String> {
    let named = describe(&command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = start(&mut command, &named)?;
    let (sender, lines) = mpsc::channel();
    forward(child.stdout.take(), sender.clone());
    forward(child.stderr.take(), sender);
    let deadline = Instant::now() + limit;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(text) => {
                if line(&text) {
                    println!("{text}");
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                kill(&mut child);
                return Err(format!("{named}: killed after {} s", limit.as_secs()));
            }
        }
    }
    wait(&mut child, &named, deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1)))
}

/// Runs to the end and returns what it wrote to its standard output.
pub(crate) fn output(mut command: Command) -> Result<String, String> {
    let named = describe(&command);
    let output = command.stderr(Stdio::inherit()).output().map_err(|why| format!("{named}: {why}"))?;
    succeeded(&named, output.status)?;
    String::from_utf8(output.stdout).map_err(|why| format!("{named}: its output is not UTF-8: {why}"))
}

/// Whether it ran and succeeded; its output is dropped.
pub(crate) fn succeeds(mut command: Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

pub(crate) fn succeeded(named: &str, status: ExitStatus) -> Result<(), String> {
    if status.success() { Ok(()) } else { Err(format!("{named}: {status}")) }
}

/// A command as one would type it, without its environment.
pub(crate) fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut text = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

fn start(command: &mut Command, named: &str) -> Result<Child, String> {
    command.spawn().map_err(|why| format!("{named}: {why}"))
}

fn forward(stream: Option<impl Read + Send + 'static>, to: mpsc::Sender<String>) {
    let Some(stream) = stream else { return };
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        // A test may print bytes that are no text: they must not end the reading.
        while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
            if to.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
}

fn wait(child: &mut Child, named: &str, limit: Duration) -> Result<ExitStatus, String> {
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            Ok(None) => {
                kill(child);
                return Err(format!("{named}: killed after {} s", limit.as_secs()));
            }
            Err(why) => return Err(format!("{named}: {why}")),
        }
    }
}

/// Ends the child and everything it started.
fn kill(child: &mut Child) {
    let mut doomed = vec![child.id()];
    let parents = parents();
    let mut next = 0;
    while let Some(&parent) = doomed.get(next) {
        doomed.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(process, _)| process));
        next += 1;
    }
    let list: Vec<String> = doomed.iter().map(u32::to_string).collect();
    // The shell's own kill: a minimal machine has no other. Some may have ended meanwhile, which is what was wanted.
    let _ = Command::new("sh").args(["-c", &format!("kill -9 {}", list.join(" "))]).stderr(Stdio::null()).status();
    let _ = child.wait();
}

/// Every process of the machine with its parent.
fn parents() -> Vec<(u32, u32)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let parent = |process: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // PID (NAME) STATE PARENT ...; the name may hold anything, parentheses included.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|process| Some((process, parent(process)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(text: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", text]);
        command
    }

    #[test]
    fn every_line_of_both_streams_is_read() {
        let mut lines = Vec::new();
        let read = |line: &str| {
            lines.push(line.to_owned());
            false
        };
        let status = run_reading(shell("echo one; echo two >&2; printf three"), Duration::from_secs(20), read);
        lines.sort();
        assert!(status.is_ok_and(|status| status.success()));
        assert_eq!(lines, ["one", "three", "two"]);
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_what_it_started() {
        let begun = Instant::now();
        let result = run_reading(shell("sleep 600 & sleep 600"), Duration::from_millis(200), |_| false);
        assert!(result.is_err_and(|why| why.contains("killed after")));
        assert!(begun.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn a_command_that_fails_is_an_error_that_names_it() {
        let result = run(shell("exit 3"), Duration::from_secs(20));
        assert_eq!(result, Err("sh -c exit 3: exit status: 3".to_owned()));
    }
}
