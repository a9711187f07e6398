//! How commands end.

use std::fmt;

/// Code type and code of a compare that found something else (nvm figure 18).
pub(super) const COMPARE_FAILURE: (u8, u8) = (2, 0x85);
/// Aborted since the other one of a pair failed (base figure 95).
pub(super) const FAILED_FUSED: (u8, u8) = (0, 0x09);

/// How a command ended: the 15-bit status of NVMe.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u16);

impl Status {
    /// It is done.
    pub const SUCCESS: Status = Status(0);
    /// The target is gone and did not come back: whether the command was done is not known (host pathing error).
    pub const LOST: Status = Status(0x370);
    /// The target was replaced while a compare-and-write was on its way: whether it was done is not known, and it is not sent
    /// again, since it would not find what it has written itself. The block says which (command aborted by host).
    pub const UNDECIDED: Status = Status(0x371);

    /// Whether it is done.
    #[must_use]
    pub fn is_success(self) -> bool {
        self.0 & 0x7FF == 0
    }

    /// Code type and code (base figures 94 to 99), without "do not retry" and the like.
    #[must_use]
    pub fn code(self) -> (u8, u8) {
        ((self.0 >> 8 & 7) as u8, self.0 as u8)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.code() {
            (0, 0x00) => "success",
            (0, 0x01) => "invalid opcode",
            (0, 0x02) => "invalid field",
            (0, 0x04) => "the client's memory could not be reached",
            (0, 0x06) => "internal error of the target",
            (0, 0x08) => "aborted",
            (0, 0x0B) => "the volume is gone",
            (0, 0x0F) => "the data's length is not the command's",
            (0, 0x16) => "the data does not lie in the data area",
            (0, 0x20) => "write protected",
            (0, 0x80) => "beyond the end of the volume",
            (0, 0x81) => "the pool is full",
            (0, 0x82) => "the volume is faulted",
            (2, 0x80) => "write fault",
            (2, 0x81) => "unrecovered read error",
            COMPARE_FAILURE => "compare failure",
            (3, 0x70) => "the target is gone",
            (3, 0x71) => "the target was replaced: whether it was done is not known",
            _ => "error",
        };
        write!(f, "{text} (type {}, code {:#04x})", self.code().0, self.code().1)
    }
}

impl std::error::Error for Status {}
