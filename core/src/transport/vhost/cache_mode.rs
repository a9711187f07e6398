//! Whether a guest has switched its disk's write cache off, kept while its target is replaced.
//!
//! No message of vhost-user tells a successor: the guest has said it once, to a process that is gone. It is noted by a file beside the
//! disk's socket, in a folder that lives as long as this machine does, as the guest itself. A guest that has stopped its rings in
//! order takes the note with it; one that died may leave it to the next guest of this disk, which then has its writes on stable storage
//! until it says otherwise.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The note of one disk.
#[derive(Debug)]
pub(super) struct CacheMode(PathBuf);

impl CacheMode {
    /// Of the disk behind this socket.
    pub(super) fn of(socket: &Path) -> CacheMode {
        let mut path = socket.as_os_str().to_owned();
        path.push(".write-through");
        CacheMode(path.into())
    }

    /// Whether writes may stay in a cache, as far as is noted.
    pub(super) fn is_write_back(&self) -> bool {
        // Whatever is there is a note: the safe answer.
        fs::symlink_metadata(&self.0).is_err()
    }

    /// Notes it. Where that is not possible the guest is served all the same, and the log says what a restart would cost.
    pub(super) fn note(&self, write_back: bool) {
        let noted = if write_back {
            match fs::remove_file(&self.0) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        } else {
            match fs::File::options().write(true).create_new(true).open(&self.0) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                _ => Ok(()),
            }
        };
        if let Err(error) = noted {
            tracing::warn!(
                path = %self.0.display(),
                %error,
                "how a guest wants its write cache cannot be noted: the next target will not know it"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_was_switched_off_is_off_for_whoever_looks_next_until_it_is_switched_on() {
        let dir = tempfile::tempdir().unwrap();
        let mode = || CacheMode::of(&dir.path().join("v.sock"));
        assert!(mode().is_write_back());
        for _ in 0..2 {
            mode().note(false);
            assert!(!mode().is_write_back() && CacheMode::of(&dir.path().join("w.sock")).is_write_back());
        }
        for _ in 0..2 {
            mode().note(true);
            assert!(mode().is_write_back());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        CacheMode::of(&dir.path().join("none/v.sock")).note(false);
    }
}
