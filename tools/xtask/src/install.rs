//! What the tests need on the machine. As root it is installed; otherwise the very commands are printed and the step fails.

use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::command::{cargo, find_program, root, run};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// Building every feature of every crate.
    Build,
    /// The test VM.
    Vm,
    /// The fuzz targets.
    Fuzz,
    /// Other programs to measure beside, and to test against.
    Bench,
    /// tgt, what proves it, and what keeps it apart from the machine's.
    Tgt,
}

/// One program: what needs it, and the package that has it.
struct Need {
    group: Group,
    program: &'static str,
    package: &'static str,
}

const fn need(group: Group, program: &'static str, package: &'static str) -> Need {
    Need { group, program, package }
}

const NEEDS: &[Need] = &[
    need(Group::Build, "gcc", "gcc"),
    // The manual of the library in C is followed by a test.
    need(Group::Build, "pkg-config", "pkg-config"),
    // The feature `rdma`: bindings to rdma-core are made by cmake and libclang. The plain build needs gcc alone.
    need(Group::Build, "cmake", "cmake"),
    need(Group::Build, "clang", "clang"),
    need(Group::Build, LIBCLANG, "libclang-dev"),
    need(Group::Vm, "qemu-system-x86_64", VM),
    // With objcopy, for the QEMU driver.
    need(Group::Vm, "python3", VM),
    need(Group::Vm, "readelf", VM),
    need(Group::Vm, "xz", VM),
    need(Group::Vm, "zstd", VM),
    need(Group::Vm, "mke2fs", VM),
    need(Group::Vm, "libvirtd", VM),
    need(Group::Vm, "virsh", VM),
    // libFuzzer is C++
    need(Group::Fuzz, "g++", "g++"),
    need(Group::Bench, "fio", "fio"),
    need(Group::Bench, "qemu-storage-daemon", "qemu-utils"),
    need(Group::Bench, "nbdinfo", "libnbd-bin"),
    need(Group::Bench, "nbdkit", "nbdkit"),
    need(Group::Bench, "openssl", "openssl"),
    need(Group::Tgt, "tgtd", "tgt"),
    need(Group::Tgt, "iscsi-test-cu", "libiscsi-bin"),
    need(Group::Tgt, "ip", "iproute2"),
    need(Group::Tgt, "python3", "python3"),
];

/// Installed by tools/vm/install-host, which takes QEMU from backports.
const VM: &str = "tools/vm/install-host";
/// A library, not a program: looked for where Debian has it.
const LIBCLANG: &str = "libclang.so";
const INSTALL_LIMIT: Duration = Duration::from_secs(20 * 60);

/// Makes sure of everything these groups need.
pub(crate) fn ensure(groups: &[Group]) -> Result<(), String> {
    let missing = missing(groups);
    if missing.is_empty() {
        return Ok(());
    }
    let programs: Vec<&str> = missing.iter().map(|need| need.program).collect();
    if !is_root() {
        return Err(format!("missing: {}. As root:\n{}", programs.join(", "), lines_to_type(&missing)));
    }
    println!("installing what has {}", programs.join(", "));
    let packages = packages(&missing);
    if !packages.is_empty() {
        // A fresh machine has sources but no lists.
        apt(&["update"])?;
        apt(&[&["install", "--yes", "--no-install-recommends"], packages.as_slice()].concat())?;
    }
    if missing.iter().any(|need| need.package == VM) {
        run(Command::new(root().join(VM)), INSTALL_LIMIT)?;
    }
    let left: Vec<&str> = self::missing(groups).iter().map(|need| need.program).collect();
    if left.is_empty() { Ok(()) } else { Err(format!("installed, and still missing: {}", left.join(", "))) }
}

/// Builds a cargo subcommand into cargo's own folder unless it is there.
pub(crate) fn ensure_cargo_tool(name: &str) -> Result<(), String> {
    if find_program(name).is_some() {
        return Ok(());
    }
    println!("{name} is not installed: cargo install --locked {name} (minutes, once)");
    run(cargo(["install", "--locked", name]), INSTALL_LIMIT)
}

fn missing(groups: &[Group]) -> Vec<&'static Need> {
    NEEDS.iter().filter(|need| groups.contains(&need.group) && !is_there(need.program)).collect()
}

fn is_there(program: &str) -> bool {
    if program == LIBCLANG { has_libclang() } else { find_program(program).is_some() }
}

fn has_libclang() -> bool {
    if let Some(folder) = std::env::var_os("LIBCLANG_PATH") {
        return Path::new(&folder).exists();
    }
    // /usr/lib/llvm-14/lib/libclang.so and the like.
    let Ok(versions) = std::fs::read_dir("/usr/lib") else { return false };
    let folders = versions.flatten().map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("/llvm"));
    folders.map(|folder| folder.join("lib")).any(|folder| folder.join(LIBCLANG).exists())
}

fn packages(missing: &[&'static Need]) -> Vec<&'static str> {
    let mut packages: Vec<&str> = missing.iter().map(|need| need.package).filter(|package| *package != VM).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn lines_to_type(missing: &[&'static Need]) -> String {
    let mut lines = String::new();
    let packages = packages(missing);
    if !packages.is_empty() {
        let _ = writeln!(lines, "    apt-get install --yes --no-install-recommends {}", packages.join(" "));
    }
    if missing.iter().any(|need| need.package == VM) {
        let _ = writeln!(lines, "    {VM}");
    }
    lines
}

fn apt(arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new("apt-get");
    command.args(["-qq", "-o", "Dpkg::Use-Pty=0"]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    run(command, INSTALL_LIMIT)
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_names_every_package_once() {
        let needs: Vec<&Need> = NEEDS.iter().collect();
        let lines = lines_to_type(&needs);
        for need in NEEDS {
            assert_eq!(lines.matches(&format!(" {}", need.package)).count(), 1, "{} in\n{lines}", need.package);
        }
    }

    #[test]
    fn a_program_that_is_there_is_not_missing() {
        assert!(
            missing(&[Group::Build]).iter().all(|need| need.program != "gcc"),
            "the tests run where gcc linked them"
        );
    }
}
