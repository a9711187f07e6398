//! Buffers of the program's own, as addresses: the program owns them, and leaves them alone until their request has ended.

use std::ptr::NonNull;

/// Ranges of the program's, for the time of one request: mostly one, several where its data lies scattered.
///
/// Invariant, which [`CallerMemory::new`] and [`CallerMemory::gather`] ask for: from queue to end of the request the ranges stay valid and
/// nobody but the session reads or writes them.
#[derive(Debug)]
pub struct CallerMemory {
    first: Part,
    /// Those behind it.
    more: Vec<Part>,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the ranges belong to no thread: by the promise made to `new` or `gather` nobody else uses them, wherever this value is.
unsafe impl Send for CallerMemory {}

impl CallerMemory {
    /// `len` bytes at `start`; `None` for a null pointer.
    ///
    /// # Safety
    /// The range is valid for reads and writes until this value and all that was split off it are dropped, and is used by nobody else until then.
    #[must_use]
    pub unsafe fn new(start: *mut u8, len: usize) -> Option<CallerMemory> {
        NonNull::new(start).map(|start| CallerMemory { first: Part { start, len }, more: Vec::new() })
    }

    /// Several ranges as one, in their order; `None` for a null pointer, or where there is no range with a byte.
    ///
    /// # Safety
    /// As for [`CallerMemory::new`], for each; where they are written no two overlap.
    #[must_use]
    pub unsafe fn gather(ranges: impl IntoIterator<Item = (*mut u8, usize)>) -> Option<CallerMemory> {
        let part = |(start, len)| NonNull::new(start).map(|start| Part { start, len });
        let mut parts = ranges.into_iter().filter(|&(_, len)| len > 0).map(part);
        let first = parts.next()??;
        Some(CallerMemory { first, more: parts.collect::<Option<_>>()? })
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts().map(|part| part.len).sum()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.first).chain(&self.more)
    }

    /// Where it is, if in one place.
    pub(crate) fn address(&self) -> Option<usize> {
        self.more.is_empty().then(|| self.first.start.addr().get())
    }

    /// Keeps the first `at` bytes and returns the rest.
    ///
    /// # Panics
    /// If `at` is over the length.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> CallerMemory {
        if at <= self.first.len {
            let rest = self.first.split_off(at);
            return CallerMemory { first: rest, more: std::mem::take(&mut self.more) };
        }
        let mut before = self.first.len;
        for place in 0..self.more.len() {
            let part = &mut self.more[place];
            if at <= before + part.len {
                let first = part.split_off(at - before);
                let more = self.more.split_off(place + 1);
                return CallerMemory { first, more };
            }
            before += part.len;
        }
        panic!("{at} bytes of {before}");
    }

    /// Copies its content to `to`, which is as long.
    pub fn copy_to(&self, mut to: &mut [u8]) {
        assert_eq!(to.len(), self.len());
        for part in self.parts() {
            let (here, rest) = to.split_at_mut(part.len);
            // SAFETY: valid for reads by the promise made to `new`; `to` is a buffer of the session, so they do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(part.start.as_ptr(), here.as_mut_ptr(), part.len) }
            to = rest;
        }
    }

    /// Fills it from `from`, which is as long.
    pub fn copy_from(&mut self, mut from: &[u8]) {
        assert_eq!(from.len(), self.len());
        for part in self.parts() {
            let (here, rest) = from.split_at(part.len);
            // SAFETY: valid for writes by the promise made to `new`; `from` is a buffer of the session, so they do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(here.as_ptr(), part.start.as_ptr(), part.len) }
            from = rest;
        }
    }
}

impl Part {
    /// Keeps the first `at` bytes and returns the rest.
    fn split_off(&mut self, at: usize) -> Part {
        assert!(at <= self.len, "{at} bytes of {}", self.len);
        // SAFETY: `at` is inside the range or at its end.
        let rest = Part { start: unsafe { self.start.add(at) }, len: self.len - at };
        self.len = at;
        rest
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
    #[test]
    fn scattered_pieces_are_one_buffer_wherever_it_is_cut() {
        let all: Vec<u8> = (0..12).collect();
        for at in 0..=12 {
            let (mut a, mut b, mut c) = ([0; 3], [0; 4], [0; 5]);
            let ranges = [(a.as_mut_ptr(), 3), (std::ptr::null_mut(), 0), (b.as_mut_ptr(), 4), (c.as_mut_ptr(), 5)];
            // SAFETY: the arrays outlive both pieces and are not looked at meanwhile.
            let mut first = unsafe { CallerMemory::gather(ranges) }.unwrap();
            let mut rest = first.split_off(at);
            assert_eq!((first.len(), rest.len()), (at, 12 - at));
            first.copy_from(&all[..at]);
            rest.copy_from(&all[at..]);
            let mut copy = vec![0; 12 - at];
            rest.copy_to(&mut copy);
            assert_eq!(copy, all[at..]);
            assert_eq!([&a[..], &b, &c].concat(), all);
        }
        let mut one = [0; 1];
        // SAFETY: a null pointer is refused.
        assert!(unsafe { CallerMemory::gather([(one.as_mut_ptr(), 1), (std::ptr::null_mut(), 1)]) }.is_none());
    }
}
