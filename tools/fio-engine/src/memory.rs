//! fio's own buffers, as addresses: fio owns them and waits with them.

use std::ptr::NonNull;

/// A range of a buffer of fio's, for the time of one request.
///
/// Invariant, which `abi` asks of fio: from queue to end of the request the range stays valid and nobody but the session reads or
/// writes it.
#[derive(Debug)]
pub(crate) struct CallerMemory {
    start: NonNull<u8>,
    len: usize,
}

impl CallerMemory {
    /// `len` bytes at `start`; `None` for a null pointer.
    ///
    /// # Safety
    /// The range is valid for reads and writes until this value and all that was split off it are dropped, and is used by nobody else until then.
    pub(crate) unsafe fn new(start: *mut u8, len: usize) -> Option<CallerMemory> {
        NonNull::new(start).map(|start| CallerMemory { start, len })
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where it is.
    pub(crate) fn address(&self) -> usize {
        self.start.addr().get()
    }

    /// Keeps the first `at` bytes and returns the rest.
    ///
    /// # Panics
    /// If `at` is over the length.
    pub(crate) fn split_off(&mut self, at: usize) -> CallerMemory {
        assert!(at <= self.len, "{at} bytes of {}", self.len);
        // SAFETY: `at` is inside the range or at its end.
        let rest = CallerMemory { start: unsafe { self.start.add(at) }, len: self.len - at };
        self.len = at;
        rest
    }

    /// Copies its content to `to`, which is as long.
    pub(crate) fn copy_to(&self, to: &mut [u8]) {
        assert_eq!(to.len(), self.len);
        // SAFETY: valid for reads by the promise made to `new`; `to` is a buffer of the session, so they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(self.start.as_ptr(), to.as_mut_ptr(), self.len) }
    }

    /// Fills it from `from`, which is as long.
    pub(crate) fn copy_from(&mut self, from: &[u8]) {
        assert_eq!(from.len(), self.len);
        // SAFETY: valid for writes by the promise made to `new`; `from` is a buffer of the session, so they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.start.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_buffer_are_where_they_were() {
        let mut bytes = *b"abcdefgh";
        // SAFETY: the array outlives both pieces and is not looked at meanwhile.
        let mut first = unsafe { CallerMemory::new(bytes.as_mut_ptr(), bytes.len()) }.unwrap();
        let mut rest = first.split_off(3);
        let mut copy = [0; 5];
        rest.copy_to(&mut copy);
        first.copy_from(b"xyz");
        rest.copy_from(b"12345");
        assert_eq!((first.len(), rest.len(), &copy), (3, 5, b"defgh"));
        assert_eq!(&bytes, b"xyz12345");
        // SAFETY: a null pointer is refused.
        assert!(unsafe { CallerMemory::new(std::ptr::null_mut(), 1) }.is_none());
    }
}
