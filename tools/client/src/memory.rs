//! Buffers of the program's own, as addresses: the program owns them, and leaves them alone until their request has ended.

use std::ptr::NonNull;

/// A range of a buffer of the program's, for the time of one request.
///
/// Invariant, which [`CallerMemory::new`] asks for: from queue to end of the request the range stays valid and nobody but the session
/// reads or writes it.
#[derive(Debug)]
pub struct CallerMemory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the range belongs to no thread: by the promise made to `new` nobody else uses it, wherever this value is.
unsafe impl Send for CallerMemory {}

impl CallerMemory {
    /// `len` bytes at `start`; `None` for a null pointer.
    ///
    /// # Safety
    /// The range is valid for reads and writes until this value and all that was split off it are dropped, and is used by nobody else until then.
    #[must_use]
    pub unsafe fn new(start: *mut u8, len: usize) -> Option<CallerMemory> {
        NonNull::new(start).map(|start| CallerMemory { start, len })
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it is.
    pub(crate) fn address(&self) -> usize {
        self.start.addr().get()
    }

    /// Keeps the first `at` bytes and returns the rest.
    ///
    /// # Panics
    /// If `at` is over the length.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> CallerMemory {
        assert!(at <= self.len, "{at} bytes of {}", self.len);
        // SAFETY: `at` is inside the range or at its end.
        let rest = CallerMemory { start: unsafe { self.start.add(at) }, len: self.len - at };
        self.len = at;
        rest
    }

    /// Copies its content to `to`, which is as long.
    pub fn copy_to(&self, to: &mut [u8]) {
        assert_eq!(to.len(), self.len);
        // SAFETY: valid for reads by the promise made to `new`; `to` is a buffer of the session, so they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(self.start.as_ptr(), to.as_mut_ptr(), self.len) }
    }

    /// Fills it from `from`, which is as long.
    pub fn copy_from(&mut self, from: &[u8]) {
        assert_eq!(from.len(), self.len);
        // SAFETY: valid for writes by the promise made to `new`; `from` is a buffer of the session, so they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.start.as_ptr(), self.len) }
    }
}

/// Memory of our own that requests are made of.
#[derive(Debug)]
pub(crate) struct Bounce(Box<[u8]>);

impl Bounce {
    pub(crate) fn new(len: usize) -> Bounce {
        Bounce(vec![0; len].into_boxed_slice())
    }

    /// All of it, for one request. Who has the bounce keeps it until that request has ended, and looks at its bytes before or after.
    pub(crate) fn lend(&mut self) -> CallerMemory {
        // SAFETY: `desk` keeps the bounce beside the request that has this, and reads or writes its bytes only when that has ended.
        unsafe { CallerMemory::new(self.0.as_mut_ptr(), self.0.len()) }.expect("a box is not at null")
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
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
