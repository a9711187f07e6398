//! Without root, with the 8 MiB of locked memory that Debian gives a user: the whole demo.

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use common::{finish, spawn};

/// `nobody`, where the tests run as root.
const NOBODY: u32 = 65534;
const MEMLOCK: &str = "--memlock=8388608:8388608";

#[test]
fn the_demo_runs_without_root_and_with_little_memory_to_lock() {
    // Not below the build's folder, which others need not be able to enter, and not in memory.
    let dir = tempfile::Builder::new().prefix("ringway-user-").tempdir_in("/var/tmp").unwrap();
    let binary = dir.path().join("ringway");
    fs::copy(env!("CARGO_BIN_EXE_ringway"), &binary).unwrap();
    let mut command = Command::new("prlimit");
    command.arg(MEMLOCK);
    if rustix::process::geteuid().is_root() {
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
        let user = NOBODY.to_string();
        command.args(["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "--no-new-privs"]);
        command.current_dir(home);
    } else {
        command.current_dir(dir.path());
    }
    command.arg(&binary).args(["demo", "--dir", ".", "--keep", "--seconds", "1", "--size", "64MiB", "--json"]);
    command.env_remove("RINGWAY_RUNTIME_DIR").env_remove("XDG_RUNTIME_DIR");
    let home = command.get_current_dir().unwrap().to_owned();
    let report = finish(spawn(&mut command)).json();
    let rows = report["rows"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["faults"] == 0 && row["errors"] == 0), "{report}");
    assert!(rows.iter().any(|row| row["verified"].as_u64() > Some(0)), "{report}");
    assert_eq!(report["restart"]["blocks_read_back"], (64 << 20) / 4096);
    // It says what would make it faster.
    let log = fs::read_to_string(kept(&home).join("target.log")).unwrap();
    assert!(log.contains("LimitMEMLOCK"), "{log}");
    // The clients of the native ring were served from memory that is not registered.
    assert!(log.contains("memory of a client cannot be registered"), "{log}");
    assert!(rows.iter().any(|row| row["transport"] == "shm"), "{report}");
}

fn kept(home: &Path) -> std::path::PathBuf {
    let mut entries = fs::read_dir(home).unwrap().map(|entry| entry.unwrap().path());
    entries.find(|path| path.to_string_lossy().contains("ringway-demo-")).expect("the demo's folder was kept")
}
