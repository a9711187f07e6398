//! Where a daemon of this machine is found (docs/operating/control.md).

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The runtime folder: the one given, else RINGWAY_RUNTIME_DIR, else /run/ringway as root, else `ringway` below XDG_RUNTIME_DIR,
/// else `ringway-UID` below /tmp. It is not touched.
#[must_use]
pub fn runtime_folder(given: Option<&Path>) -> PathBuf {
    let uid = rustix::process::geteuid().as_raw();
    folder_from(given, uid, |name| env::var_os(name).filter(|value| !value.is_empty()))
}

fn folder_from(given: Option<&Path>, uid: u32, var: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    if let Some(given) = given {
        return given.to_owned();
    }
    if let Some(dir) = var("RINGWAY_RUNTIME_DIR") {
        return dir.into();
    }
    if uid == 0 {
        return "/run/ringway".into();
    }
    match var("XDG_RUNTIME_DIR") {
        Some(dir) => PathBuf::from(dir).join("ringway"),
        None => format!("/tmp/ringway-{uid}").into(),
    }
}

/// Where the daemon with this runtime folder takes rings.
#[must_use]
pub fn shm_socket(runtime: &Path) -> PathBuf {
    runtime.join("shm.sock")
}

/// Where the daemon with this runtime folder takes control calls.
#[must_use]
pub fn control_socket(runtime: &Path) -> PathBuf {
    runtime.join("control.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_looked_for_in_one_order_by_everybody() {
        let var = |set: &'static [(&str, &str)]| {
            move |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        let all = var(&[("RINGWAY_RUNTIME_DIR", "/r"), ("XDG_RUNTIME_DIR", "/x")]);
        let xdg = var(&[("XDG_RUNTIME_DIR", "/x")]);
        let none = var(&[]);
        assert_eq!(folder_from(Some(Path::new("/g")), 7, all), Path::new("/g"));
        assert_eq!(folder_from(None, 0, all), Path::new("/r"));
        assert_eq!(folder_from(None, 0, xdg), Path::new("/run/ringway"));
        assert_eq!(folder_from(None, 7, xdg), Path::new("/x/ringway"));
        assert_eq!(folder_from(None, 7, none), Path::new("/tmp/ringway-7"));
    }
}
