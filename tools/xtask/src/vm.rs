//! `cargo xtask vm`: tests in the test VM of tools/vm, where Linux's own initiators attach to the target.
//!
//! A test is a script in tools/vm/tests whose name is the sentence it proves. Its first lines say what it needs:
//! `# limit: SECONDS`, `# disk: SIZE` (the pool's virtio disk), `# kernels: backports bookworm`; and, where something has to run on
//! the host beside the guest, `# host: NAME`: tests/host-NAME.sh, whose first line is further QEMU arguments. `# target: ringway` is of
//! a test that shows nothing with the kernel's target.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::command::{self, root, target_dir};
use crate::report::Report;
use crate::{built, fio_engine, install};

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Which target the guest attaches to
    #[arg(long, value_enum, default_value_t)]
    target: Target,
    /// Tests whose names have one of these in them; all where none is given
    tests: Vec<String>,
    /// For how long those go on that soak
    #[arg(skip)]
    soak: Option<u64>,
}

impl Options {
    /// Our target, and these tests; those that soak go on for `soak` seconds.
    pub(crate) fn chosen(tests: &[&str], soak: Option<u64>) -> Options {
        Options { tests: tests.iter().map(|&name| name.to_owned()).collect(), soak, ..Options::default() }
    }
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Target {
    /// Our own
    #[default]
    Ringway,
    /// The kernel's: proves the tests and the VM, and tells a fault of theirs from one of ours
    Kernel,
}

/// A test on one kernel.
#[derive(Debug, PartialEq, Eq)]
struct Test {
    script: String,
    kernel: String,
    limit: u64,
    disk: u64,
    /// What runs on the host meanwhile.
    host: Option<String>,
    /// Only against our own target.
    ours: bool,
}

/// Tests that start their guests themselves: their names, and their scripts in tools/vm.
const ON_THE_HOST: [(&str, &str); 2] = [
    ("a_libvirt_guest_keeps_its_disk_through_a_kill_of_the_target", "libvirt"),
    ("a_guest_moves_to_another_qemu_while_it_writes_to_its_disk", "migrate"),
];
const ON_THE_HOST_LIMIT: Duration = Duration::from_secs(7 * 60);
const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);
/// Images are built from a mirror over the network.
const IMAGE_LIMIT: Duration = Duration::from_secs(15 * 60);

pub(crate) fn run(options: &Options) -> Report {
    let mut report = Report::new();
    // fio's sources are what its engine is compiled against.
    if report.step("what the test VM needs", || install::ensure(&[install::Group::Build, install::Group::Vm])) {
        run_in(&mut report, options);
    }
    report
}

pub(crate) fn run_in(report: &mut Report, options: &Options) {
    let folder = root().join("tools/vm/tests");
    let mut tests = Vec::new();
    let ready = report.step("tests for the VM", || {
        tests = select(all_tests(&folder)?, &options.tests)?;
        // What stands on the host is ours.
        tests.retain(|test| test.host.is_none() && !test.ours || options.target == Target::Ringway);
        Ok(())
    });
    let share = target_dir().join("vm/share");
    if !ready || !report.step("what the guest shares", || fill_share(&share, &folder, options.target)) {
        return;
    }
    for (name, script) in ON_THE_HOST {
        let is_chosen = options.tests.is_empty() || options.tests.iter().any(|chosen| name.contains(chosen.as_str()));
        if is_chosen && options.target == Target::Ringway {
            report.step(&name.replace('_', " "), || on_the_host(script, &share));
        }
    }
    let mut kernels: Vec<String> = tests.iter().map(|test| test.kernel.clone()).collect();
    kernels.sort();
    kernels.dedup();
    for kernel in kernels {
        if report.step(&format!("VM image with the kernel of {kernel}"), || image(&kernel)) {
            for test in tests.iter().filter(|test| test.kernel == kernel) {
                let name = test.script.trim_end_matches(".sh").replace('_', " ");
                report.step(&format!("VM, kernel of {kernel}: {name}"), || boot(test, &share, options.soak));
            }
        }
    }
}

fn on_the_host(script: &str, share: &Path) -> Result<(), String> {
    let work = share.with_file_name(script);
    if work.exists() {
        fs::remove_dir_all(&work).map_err(|why| format!("{}: {why}", work.display()))?;
    }
    fs::create_dir_all(&work).map_err(|why| format!("{}: {why}", work.display()))?;
    let mut command = Command::new(root().join("tools/vm").join(script));
    command.arg(&work).env("RINGWAY", share.join("ringway"));
    command::run(command, IMAGE_LIMIT + ON_THE_HOST_LIMIT)
}

fn image(kernel: &str) -> Result<(), String> {
    let mut command = Command::new(root().join("tools/vm/image"));
    command.env("VM_KERNEL", kernel);
    command::run(command, IMAGE_LIMIT)
}

/// A folder of its own: the guest is root in it.
fn fill_share(share: &Path, tests: &Path, target: Target) -> Result<(), String> {
    let fail = |what: &Path, why: std::io::Error| format!("{}: {why}", what.display());
    if share.exists() {
        fs::remove_dir_all(share).map_err(|why| fail(share, why))?;
    }
    fs::create_dir_all(share.join("tests")).map_err(|why| fail(share, why))?;
    for file in files(tests)? {
        let name = file.file_name().unwrap_or_default();
        fs::copy(&file, share.join("tests").join(name)).map_err(|why| fail(&file, why))?;
    }
    let peer = match target {
        Target::Kernel => "kernel",
        Target::Ringway => {
            put_stripped(&built::program("ringway")?, &share.join("ringway"))?;
            put_stripped(&fio_engine::of_tests()?, &share.join("libringway-fio.so"))?;
            "ringway"
        }
    };
    put_stripped(&built::program("examples/ping")?, &share.join("verbs-ping"))?;
    let named = share.join("tests/target");
    fs::write(&named, peer).map_err(|why| fail(&named, why))
}

/// Without what debuggers want, which is most of it, over an emulated wire.
fn put_stripped(program: &Path, to: &Path) -> Result<(), String> {
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(to).arg(program);
    command::run(strip, BUILD_LIMIT)
}

fn boot(test: &Test, share: &Path, soak: Option<u64>) -> Result<(), String> {
    // What a test takes that does not soak, and what one takes beside its soaking.
    let soak = soak.filter(|_| test.script.starts_with("soak_"));
    let limit = test.limit + soak.unwrap_or(0);
    let disk = share.with_file_name("pool.raw");
    let file = fs::File::create(&disk).map_err(|why| format!("{}: {why}", disk.display()))?;
    file.set_len(test.disk).map_err(|why| format!("{}: {why}", disk.display()))?;
    let beside = test.host.as_ref().map(|name| Beside::start(name, share)).transpose()?;
    let mut command = Command::new(root().join("tools/vm/vmrun"));
    command.env("VM_KERNEL", &test.kernel);
    if let Some(beside) = &beside {
        command.args(["-x", &beside.arguments]);
    }
    command.arg("-d").arg(share).arg("-b").arg(&disk).args(["-t", &limit.to_string()]);
    if let Some(seconds) = soak {
        command.args(["-e", &format!("{}={seconds}", crate::soak::SECONDS)]);
    }
    command.arg("-l").arg(share.with_file_name("console.log"));
    command.args(["bash", &format!("tests/{}", test.script)]);
    // The script's own limit comes first and says more.
    let result = command::run(command, Duration::from_secs(limit + 60));
    // A sparse file, but the next test's disk must be empty, and a failed test's is worth a look.
    if result.is_ok() {
        fs::remove_file(&disk).map_err(|why| format!("{}: {why}", disk.display()))?;
    }
    result
}

/// A script on the host; told to end, by the end of its stdin, when dropped.
struct Beside {
    child: Child,
    arguments: String,
}

impl Beside {
    fn start(name: &str, share: &Path) -> Result<Beside, String> {
        let script = root().join(format!("tools/vm/tests/host-{name}.sh"));
        let fail = |why: std::io::Error| format!("{}: {why}", script.display());
        let work = share.with_file_name("host");
        if work.exists() {
            fs::remove_dir_all(&work).map_err(fail)?;
        }
        fs::create_dir_all(&work).map_err(fail)?;
        let mut command = Command::new("bash");
        command.arg(&script).env("RINGWAY", share.join("ringway")).env("SHARE", share).env("WORK", &work);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(fail)?;
        let mut arguments = String::new();
        let stdout = child.stdout.take().expect("stdout was asked to be a pipe");
        BufReader::new(stdout).read_line(&mut arguments).map_err(fail)?;
        let beside = Beside { child, arguments: arguments.trim().to_owned() };
        if beside.arguments.is_empty() {
            return Err(format!("{} did not become ready; its words are above", script.display()));
        }
        Ok(beside)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It ends what it has started.
        let _ = self.child.wait();
    }
}

fn all_tests(folder: &Path) -> Result<Vec<Test>, String> {
    let mut tests = Vec::new();
    for path in files(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Those with a dash are sourced by the tests.
        if name.ends_with(".sh") && !name.contains('-') {
            let text = fs::read_to_string(&path).map_err(|why| format!("{}: {why}", path.display()))?;
            tests.extend(read_header(&name, &text)?);
        }
    }
    Ok(tests)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|why| format!("{}: {why}", folder.display()))?;
    let mut files: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_file()).collect();
    files.sort();
    Ok(files)
}

/// The test on each of its kernels.
fn read_header(script: &str, text: &str) -> Result<Vec<Test>, String> {
    let field = |name: &str| {
        let prefix = format!("# {name}: ");
        text.lines()
            .find_map(|line| line.strip_prefix(prefix.as_str()))
            .ok_or(format!("{script}: no line `{prefix}...`"))
    };
    let limit = field("limit")?.parse().map_err(|why| format!("{script}: limit: {why}"))?;
    let disk = field("disk")?;
    let disk = disk.strip_suffix("GiB").and_then(|size| size.trim().parse::<u64>().ok());
    let disk = disk.ok_or(format!("{script}: disk: a whole number of GiB is wanted"))? << 30;
    let host = field("host").ok().map(str::to_owned);
    let ours = field("target").is_ok_and(|target| target == "ringway");
    let kernels = field("kernels")?.split_whitespace();
    let test = |kernel: &str| {
        let (script, kernel, host) = (script.to_owned(), kernel.to_owned(), host.clone());
        Test { script, kernel, limit, disk, host, ours }
    };
    Ok(kernels.map(test).collect())
}

fn select(all: Vec<Test>, chosen: &[String]) -> Result<Vec<Test>, String> {
    let scripts = all.iter().map(|test| test.script.as_str());
    let names: Vec<String> =
        scripts.chain(ON_THE_HOST.map(|(name, _)| name)).map(|name| format!("    {name}")).collect();
    let is_known = |name: &str| {
        ON_THE_HOST.iter().any(|(known, _)| known.contains(name)) || all.iter().any(|test| test.script.contains(name))
    };
    if let Some(unknown) = chosen.iter().find(|name| !is_known(name)) {
        return Err(format!("no VM test has {unknown} in its name; there are:\n{}", names.join("\n")));
    }
    let wanted = |test: &Test| chosen.is_empty() || chosen.iter().any(|name| test.script.contains(name.as_str()));
    Ok(all.into_iter().filter(wanted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_of_the_repository_says_what_it_needs() {
        let tests = all_tests(&root().join("tools/vm/tests")).expect("the headers are readable");
        assert!(tests.iter().any(|test| test.kernel == "bookworm"), "something runs on Debian 12's own kernel");
    }

    #[test]
    fn a_script_runs_once_on_each_of_its_kernels() {
        let tests = read_header("a.sh", "#!/bin/bash\n# limit: 60\n# disk: 2 GiB\n# kernels: backports bookworm\n");
        let test = |kernel: &str| {
            let (script, kernel) = ("a.sh".into(), kernel.into());
            Test { script, kernel, limit: 60, disk: 2 << 30, host: None, ours: false }
        };
        assert_eq!(tests, Ok(vec![test("backports"), test("bookworm")]));
        assert!(read_header("a.sh", "# limit: 60\n# kernels: x\n").is_err_and(|why| why.contains("# disk")));
    }

    #[test]
    fn a_test_that_does_not_exist_is_refused() {
        assert!(select(Vec::new(), &["nothing".to_owned()]).is_err());
    }
}
