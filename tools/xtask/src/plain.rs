//! The plain build needs Rust and gcc, and nothing else: it is made where everything else that builds look for is a stub that
//! fails and says who called it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crate::command::{cargo, run, target_dir};

/// What build scripts of crates like to call. `cc` and `gcc` stay, and what gcc calls: as, ld.
const ABSENT: &[&str] = &[
    "cmake",
    "make",
    "gmake",
    "ninja",
    "meson",
    "clang",
    "clang++",
    "clang-cl",
    "llvm-config",
    "ld.lld",
    "lld",
    "g++",
    "c++",
    "gfortran",
    "pkg-config",
    "pkgconf",
    "autoconf",
    "automake",
    "libtool",
    "nasm",
    "yasm",
    "perl",
    "python",
    "python3",
    "go",
    "protoc",
    "bindgen",
    "git",
    "curl",
    "wget",
];
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// Builds the binary from nothing, so that every build script runs. Without optimisation: what is proved is the same.
pub(crate) fn build() -> Result<(), String> {
    let folder = target_dir().join("plain");
    let stubs = folder.join("stubs");
    let called = folder.join("called");
    let fail = |why: std::io::Error| format!("{}: {why}", folder.display());
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(fail)?;
    }
    fs::create_dir_all(&stubs).map_err(fail)?;
    for name in ABSENT {
        put_stub(&stubs, name, &called).map_err(fail)?;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(stubs).chain(std::env::split_paths(&path)))
        .map_err(|why| format!("PATH: {why}"))?;
    let mut command = cargo(["build", "--package", "ringway", "--locked", "--target-dir"]);
    command.arg(folder.join("build")).env("PATH", path);
    command.env("CARGO_PROFILE_DEV_OPT_LEVEL", "0").env("CARGO_PROFILE_DEV_DEBUG", "false");
    // Not this build's, which may have been given others.
    for name in ["CC", "CXX", "CFLAGS", "CXXFLAGS", "LD", "AR"] {
        command.env_remove(name);
    }
    let built = run(command, LIMIT);
    let callers = fs::read_to_string(&called).unwrap_or_default();
    if !callers.is_empty() {
        return Err(format!("the plain build called what a machine with gcc alone has not:\n{callers}"));
    }
    built?;
    // A hundred megabytes that nobody needs.
    fs::remove_dir_all(&folder).map_err(fail)
}

/// A program that fails, and remembers that it was called and with what.
fn put_stub(folder: &Path, name: &str, called: &Path) -> std::io::Result<()> {
    let file = folder.join(name);
    let called = called.display();
    fs::write(
        &file,
        format!(
            "#!/bin/sh\necho \"{name} $*\" >> '{called}'\necho '{name}: not on a machine with gcc alone' >&2\nexit 127\n"
        ),
    )?;
    fs::set_permissions(&file, Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_stub_fails_and_remembers_who_called() {
        let folder = std::env::temp_dir().join(format!("ringway-stub-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let called = folder.join("called");
        put_stub(&folder, "cmake", &called).expect("a stub");
        let status = Command::new(folder.join("cmake")).arg("--version").status();
        assert!(status.is_ok_and(|status| status.code() == Some(127)));
        assert_eq!(fs::read_to_string(&called).expect("it was noted"), "cmake --version\n");
        fs::remove_dir_all(&folder).expect("the folder goes");
    }
}
