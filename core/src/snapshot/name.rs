//! Names of snapshots, and of volumes with a snapshot: `vm1@before-upgrade`.

use std::fmt;

use crate::volume::{BadName, check_name};

/// Bytes of a snapshot's name.
pub const SNAPSHOT_NAME_MAX: usize = 127;

/// Between the volume and the snapshot.
pub const SEPARATOR: char = '@';

/// Why a name is not one of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadSnapshotName {
    /// As given.
    pub name: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl fmt::Display for BadSnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "snapshot name {:?} {}; a name is 1 to {SNAPSHOT_NAME_MAX} bytes of A-Z a-z 0-9 . _ -, not starting with - or .",
            self.name, self.why
        )
    }
}

impl std::error::Error for BadSnapshotName {}

/// Checks a snapshot's name: like a volume's, without `/`, and shorter.
pub fn check_snapshot_name(name: &str) -> Result<(), BadSnapshotName> {
    let bad = |why| Err(BadSnapshotName { name: name.to_owned(), why });
    if name.is_empty() {
        return bad("is empty");
    }
    if name.len() > SNAPSHOT_NAME_MAX {
        return bad("is too long");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return bad("has a character that is not allowed");
    }
    if name.starts_with(['-', '.']) {
        return bad("starts with - or .");
    }
    Ok(())
}

/// How a snapshot is called among volumes.
#[must_use]
pub fn full_name(volume: &str, snapshot: &str) -> String {
    format!("{volume}{SEPARATOR}{snapshot}")
}

/// The volume and the snapshot of `VOLUME@SNAPSHOT`; no snapshot where there is no `@`.
#[must_use]
pub fn split_name(name: &str) -> (&str, Option<&str>) {
    match name.split_once(SEPARATOR) {
        Some((volume, snapshot)) => (volume, Some(snapshot)),
        None => (name, None),
    }
}

/// Checks what may be a volume's name or `VOLUME@SNAPSHOT`.
pub fn check_any_name(name: &str) -> Result<(), String> {
    let (volume, snapshot) = split_name(name);
    check_name(volume).map_err(|bad: BadName| bad.to_string())?;
    snapshot.map_or(Ok(()), |snapshot| check_snapshot_name(snapshot).map_err(|bad| bad.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_be_taken_apart_wrongly_are_refused() {
        for good in ["before-upgrade", "1", "A.b_c", &"x".repeat(127)] {
            assert_eq!(check_snapshot_name(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", ".a", "a/b", "a@b", "a:b", "a,b", "a b", "ä", &"x".repeat(128)] {
            let error = check_snapshot_name(bad).unwrap_err().to_string();
            assert!(error.contains("1 to 127 bytes"), "{error}");
        }
    }

    #[test]
    fn a_full_name_is_taken_apart_at_its_only_at_sign() {
        assert_eq!(split_name("a/b@c"), ("a/b", Some("c")));
        assert_eq!(split_name("a/b"), ("a/b", None));
        assert_eq!(full_name("a/b", "c"), "a/b@c");
        assert_eq!(check_any_name("a/b@c"), Ok(()));
        for bad in ["a@", "@b", "a@b@c", "a@b/c", "a:b"] {
            assert!(check_any_name(bad).is_err(), "{bad}");
        }
    }
}
