//! Text in fixed fields: space-padded ASCII of Identify, and NUL-padded names.

use super::NQN_MAX;

/// `text` in a field padded with spaces (base 1.4.2); what does not fit is cut, what is not printable becomes `?`.
#[must_use]
pub fn space_padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (byte, from) in field.iter_mut().zip(text.bytes()) {
        *byte = if from.is_ascii_graphic() || from == b' ' { from } else { b'?' };
    }
    field
}

/// `text` in a field filled up with NULs.
///
/// # Panics
/// If it does not leave room for one NUL: what is sent was checked before.
#[must_use]
pub fn nul_padded<const N: usize>(text: &str) -> [u8; N] {
    assert!(text.len() < N, "{text:?} does not fit {N} bytes with its NUL");
    let mut field = [0; N];
    field[..text.len()].copy_from_slice(text.as_bytes());
    field
}

/// The text before the trailing spaces or NULs of a field; `None` if it is not UTF-8.
#[must_use]
pub fn trimmed(field: &[u8]) -> Option<&str> {
    let end = field.iter().rposition(|&byte| byte != b' ' && byte != 0).map_or(0, |last| last + 1);
    std::str::from_utf8(&field[..end]).ok()
}

/// The NQN in a 256-byte field: NUL-terminated, 1 to 223 bytes of printable UTF-8 starting with `nqn.` (base 4.5).
#[must_use]
pub fn nqn(field: &[u8; 256]) -> Option<&str> {
    nqn_with(field, 0)
}

/// [`nqn`], with so many bytes behind it that are not of the name.
#[must_use]
pub fn nqn_with(field: &[u8; 256], more: usize) -> Option<&str> {
    let end = field.iter().position(|&byte| byte == 0)?;
    let text = std::str::from_utf8(&field[..end]).ok()?;
    let fits = text.len() <= NQN_MAX + more && text.starts_with("nqn.") && !text.chars().any(char::is_control);
    fits.then_some(text)
}
