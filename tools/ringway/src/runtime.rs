//! The runtime folder: where the daemon puts its sockets and where every local client looks for them.
//!
//! `--runtime DIR`, else RINGWAY_RUNTIME_DIR, else /run/ringway as root, else `ringway` below XDG_RUNTIME_DIR, else
//! `ringway-UID` below /tmp. The last is checked to belong to this user, since anybody may create names there.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use ringway_core::control::ControlErrorKind;
use ringway_core::target::unix::SocketAccess;
use ringway_reactor::socket_path::SocketPath;
use rustix::fs::{FlockOperation, flock};

use crate::failure::Failure;

/// Where the folder is, without touching it.
pub(crate) fn folder(given: Option<&Path>) -> PathBuf {
    ringway_client::runtime_folder(given)
}

/// Where the control socket is, without touching it.
pub(crate) fn control_socket(control: Option<&Path>, runtime: Option<&Path>) -> PathBuf {
    control.map_or_else(|| ringway_client::control_socket(&folder(runtime)), Path::to_owned)
}

/// Makes the folder if need be and checks that nobody else can put something there.
pub(crate) fn prepare_folder(path: &Path) -> Result<(), Failure> {
    let uid = rustix::process::geteuid().as_raw();
    // Sockets in root's folder have their own modes; a user's folder is that user's alone.
    let mode = if uid == 0 { 0o755 } else { 0o700 };
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|error| Failure::io("make the runtime folder", path, &error))?;
    let found = fs::metadata(path).map_err(|error| Failure::io("look at the runtime folder", path, &error))?;
    if found.uid() != uid && found.uid() != 0 {
        return Err(Failure::new(
            ControlErrorKind::Denied,
            format!(
                "the runtime folder {} belongs to user {}, not to you ({uid}); give another one by --runtime",
                path.display(),
                found.uid()
            ),
        ));
    }
    if found.mode() & 0o002 != 0 {
        return Err(Failure::new(
            ControlErrorKind::Denied,
            format!(
                "the runtime folder {} may be written by anybody; take that away (chmod o-w) or give another one by --runtime",
                path.display()
            ),
        ));
    }
    Ok(())
}

/// The control socket of a running daemon. Removed from the file system on drop.
pub(crate) struct ControlSocket {
    pub(crate) path: PathBuf,
    listener: Option<UnixListener>,
    /// Held for the life of the daemon: a socket whose lock is free is a leftover.
    _lock: File,
}

impl ControlSocket {
    /// Takes the place and listens there; what an earlier daemon left behind is replaced, a running one is not.
    pub(crate) fn bind(path: &Path, access: SocketAccess) -> Result<ControlSocket, Failure> {
        let lock_path = with_suffix(path, ".lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|error| Failure::io("make", &lock_path, &error))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Failure::new(
                    ControlErrorKind::Busy,
                    format!(
                        "another ringway daemon answers on {}; stop it, or give this one a place of its own by --runtime or \
                         --control",
                        path.display()
                    ),
                ));
            }
            Err(errno) => return Err(Failure::io("lock", &lock_path, &errno.into())),
        }
        let listener = bind_with_access(path, access.mode, access.group)
            .map_err(|error| Failure::io("listen on the control socket", path, &error))?;
        Ok(ControlSocket { path: path.to_owned(), listener: Some(listener), _lock: lock })
    }

    /// The listener, once.
    pub(crate) fn take_listener(&mut self) -> UnixListener {
        self.listener.take().expect("the listener is taken once")
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the control socket could not be removed");
        }
    }
}

/// Binds under another name and renames, so that the socket never exists with other permissions than asked.
fn bind_with_access(path: &Path, mode: u32, group: Option<u32>) -> io::Result<UnixListener> {
    let fresh = with_suffix(path, ".new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(SocketPath::of(&fresh)?.as_path())?;
    fs::set_permissions(&fresh, Permissions::from_mode(mode))?;
    if let Some(group) = group {
        chown(&fresh, None, Some(group))?;
    }
    fs::rename(&fresh, path)?;
    Ok(listener)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// A group by name or number.
pub(crate) fn group_id(group: &str) -> Result<u32, Failure> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let table = Path::new("/etc/group");
    let text = fs::read_to_string(table).map_err(|error| Failure::io("read", table, &error))?;
    text.lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&group))
        .and_then(|fields| fields.get(2)?.parse().ok())
        .ok_or_else(|| Failure::usage(format!("no group named {group:?} in /etc/group; give its name or its number")))
}

/// Reads permission bits as `chmod` does.
pub(crate) fn parse_mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|&mode| mode <= 0o777 && mode & 0o600 == 0o600)
        .ok_or_else(|| format!("{text:?} is not a socket mode; write octal digits that let the owner in, such as 0660"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_daemons_socket_is_not_taken_and_a_leftover_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let access = SocketAccess { mode: 0o660, group: None };
        let first = ControlSocket::bind(&path, access).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        let Err(busy) = ControlSocket::bind(&path, access) else { panic!("two daemons share a socket") };
        assert!(busy.exit_code() == 8 && busy.message.contains("--runtime"), "{busy}");
        drop(first);
        assert!(!path.exists());

        fs::write(&path, "left behind").unwrap();
        let again = ControlSocket::bind(&path, access).unwrap();
        drop(again);
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        prepare_folder(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
        assert!(prepare_folder(&open).unwrap_err().message.contains("chmod o-w"));
    }

    #[test]
    fn modes_and_groups_are_checked() {
        assert_eq!(parse_mode("0660"), Ok(0o660));
        for bad in ["", "9", "rw", "01777", "0060"] {
            assert!(parse_mode(bad).unwrap_err().contains("0660"), "{bad}");
        }
        assert_eq!(group_id("0").unwrap(), 0);
        assert!(group_id("no such group").unwrap_err().message.contains("/etc/group"));
    }
}
