//! What lets a caller on another machine in: one line of a file that only its owner may read.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ringway_core::control::{ControlError, ControlErrorKind};

/// Shorter ones can be guessed.
const TOKEN_BYTES_MIN: usize = 20;
/// So that nobody takes a file for one that is none.
const TOKEN_BYTES_MAX: usize = 1024;

/// What a client has to know.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// Reads a file that only its owner may read.
    ///
    /// # Errors
    /// `NotFound` and the like for the file; `Denied` where others may read it; `Invalid` for what is no token.
    pub fn read(path: &Path) -> Result<Token, ControlError> {
        let failed = |error: io::Error| {
            let kind = match error.kind() {
                io::ErrorKind::NotFound => ControlErrorKind::NotFound,
                io::ErrorKind::PermissionDenied => ControlErrorKind::Denied,
                io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidData => {
                    ControlErrorKind::Invalid
                }
                _ => ControlErrorKind::Internal,
            };
            ControlError::new(kind, format!("cannot read the token {}: {error}", path.display()))
        };
        let mode = fs::metadata(path).map_err(failed)?.mode();
        if mode & 0o077 != 0 {
            let path = path.display();
            return Err(ControlError::new(
                ControlErrorKind::Denied,
                format!("the token in {path} may be read or changed by others than its owner; `chmod 600 {path}`"),
            ));
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        let token = text.trim();
        let length = TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX;
        if !length.contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ControlError::invalid(format!(
                "the token in {} is not one: it is one line of {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} printable characters \
                 without spaces (`openssl rand -hex 32` makes one)",
                path.display()
            )));
        }
        Ok(Token(token.to_owned()))
    }

    /// The value of a request's `authorization`.
    #[must_use]
    pub fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions, write};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_is_one_long_word_in_a_file_of_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let read = |text: &str, mode: u32| {
            write(&path, text).unwrap();
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            Token::read(&path)
        };
        let token = read("0123456789abcdef0123\n", 0o600).unwrap();
        assert_eq!(token.header(), "Bearer 0123456789abcdef0123");
        assert!(!format!("{token:?}").contains("0123"));
        for (text, mode, kind, says) in [
            ("0123456789abcdef0123", 0o640, ControlErrorKind::Denied, "chmod 600"),
            ("0123456789abcdef012", 0o600, ControlErrorKind::Invalid, "20 to 1024"),
            ("", 0o600, ControlErrorKind::Invalid, "openssl rand"),
            ("0123456789abcdef 0123", 0o600, ControlErrorKind::Invalid, "without spaces"),
        ] {
            let error = read(text, mode).unwrap_err();
            assert!(error.kind == kind && error.message.contains(says), "{error:?}");
        }
        assert_eq!(Token::read(&dir.path().join("none")).unwrap_err().kind, ControlErrorKind::NotFound);
    }
}
