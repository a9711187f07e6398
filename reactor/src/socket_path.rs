//! Paths of unix sockets: the kernel takes 107 bytes of one, and a longer one is reached by way of its folder, opened.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Bytes of a socket's path: `sun_path` has 108, and its end mark is one of them.
pub const SOCKET_PATH_MAX: usize = 107;

/// A path that the kernel takes, for as long as this lives.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    /// Keeps the number in `path` its own.
    _folder: Option<OwnedFd>,
}

impl SocketPath {
    /// Of a path of any length, whose last part is no longer than [`SOCKET_PATH_MAX`] less some twenty bytes.
    pub fn of(path: &Path) -> io::Result<SocketPath> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} names no socket", path.display())));
        };
        if path.as_os_str().len() <= SOCKET_PATH_MAX {
            return Ok(SocketPath { path: path.to_owned(), _folder: None });
        }
        let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
        if short.as_os_str().len() > SOCKET_PATH_MAX {
            let text = format!("{} is too long for a socket's name", Path::new(name).display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(SocketPath { path: short, _folder: Some(folder) })
    }

    /// For `bind` and `connect`.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_socket_is_made_and_found_however_long_the_path_of_its_folder_is() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        for path in [dir.path().join("s"), deep.join("s"), deep.join("n".repeat(80))] {
            let listener = UnixListener::bind(SocketPath::of(&path).unwrap().as_path()).unwrap();
            assert!(path.exists());
            UnixStream::connect(SocketPath::of(&path).unwrap().as_path()).unwrap();
            drop(listener);
        }
        let error = SocketPath::of(&deep.join("n".repeat(107))).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
        assert!(SocketPath::of(Path::new("/")).is_err());
        assert_eq!(SocketPath::of(&dir.path().join("none/x")).unwrap().as_path(), dir.path().join("none/x"));
    }
}
