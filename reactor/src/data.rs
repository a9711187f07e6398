//! What a request moves its data in: a buffer of our own, or memory that a peer shares with us.
//!
//! A [`Buf`] is ours alone and can be looked at. A [`SharedBuf`] lies in memory that another process may write at any moment: it
//! has no slice, only copies, and nothing that was read from it once is read again.

use crate::buf::Buf;
use crate::shared::SharedBuf;

/// The bytes of one request, or of a part of it. Moves by value: to the device and back.
#[derive(Debug)]
pub enum Data {
    /// A buffer of this process.
    Own(Buf),
    /// A peer's memory, in place.
    Shared(SharedBuf),
}

impl From<Buf> for Data {
    fn from(buf: Buf) -> Data {
        Data::Own(buf)
    }
}

impl From<SharedBuf> for Data {
    fn from(shared: SharedBuf) -> Data {
        Data::Shared(shared)
    }
}

impl Data {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Data::Own(buf) => buf.len(),
            Data::Shared(shared) => shared.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps the first `at` bytes and returns an owner of the rest.
    ///
    /// # Panics
    /// If `at` is over the length.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Data {
        match self {
            Data::Own(buf) => Data::Own(buf.split_off(at)),
            Data::Shared(shared) => Data::Shared(shared.split_off(at)),
        }
    }

    /// Takes back what [`Data::split_off`] returned.
    ///
    /// # Panics
    /// If `rest` is not what follows this.
    pub fn join(&mut self, rest: Data) {
        match (self, rest) {
            (Data::Own(buf), Data::Own(rest)) => buf.join(rest),
            (Data::Shared(shared), Data::Shared(rest)) => shared.join(rest),
            _ => panic!("parts of one request join"),
        }
    }

    /// Fills it with zeros.
    pub fn zero(&mut self) {
        match self {
            Data::Own(buf) => buf.fill(0),
            Data::Shared(shared) => shared.zero(),
        }
    }

    /// Copies from its byte `at` on to `to`.
    ///
    /// # Panics
    /// If that ends beyond it.
    pub fn copy_to(&self, at: usize, to: &mut [u8]) {
        match self {
            Data::Own(buf) => to.copy_from_slice(&buf[at..at + to.len()]),
            Data::Shared(shared) => shared.copy_to(at, to),
        }
    }

    /// Copies `from` to its byte `at`.
    ///
    /// # Panics
    /// If that ends beyond it.
    pub fn copy_from(&mut self, at: usize, from: &[u8]) {
        match self {
            Data::Own(buf) => buf[at..at + from.len()].copy_from_slice(from),
            Data::Shared(shared) => shared.copy_from(at, from),
        }
    }

    /// Whether its bytes from `at` on are `other`.
    ///
    /// # Panics
    /// If that ends beyond it.
    #[must_use]
    pub fn equals(&self, at: usize, other: &[u8]) -> bool {
        match self {
            Data::Own(buf) => buf[at..at + other.len()] == *other,
            Data::Shared(shared) => {
                let mut seen = [0; 512];
                other.chunks(seen.len()).enumerate().all(|(nth, chunk)| {
                    let seen = &mut seen[..chunk.len()];
                    shared.copy_to(at + nth * 512, seen);
                    seen == chunk
                })
            }
        }
    }

    /// Whether a device with logical blocks of `unit` bytes takes it as it is: each piece of memory starts on a multiple and is
    /// a multiple long.
    #[must_use]
    pub fn is_aligned(&self, unit: u32) -> bool {
        match self {
            Data::Own(buf) => (buf.as_ptr() as usize | buf.len()).is_multiple_of(unit as usize),
            Data::Shared(shared) => shared.is_aligned(unit),
        }
    }

    /// The buffer, where it is ours, to be looked at.
    ///
    /// # Panics
    /// As [`Data::into_own`].
    #[must_use]
    pub fn own(&self) -> &Buf {
        match self {
            Data::Own(buf) => buf,
            Data::Shared(shared) => panic!("a buffer comes back where one was given: {shared:?}"),
        }
    }

    /// The buffer, where it is ours.
    ///
    /// # Panics
    /// If it is a peer's memory: whoever submits only buffers gets only buffers back.
    #[must_use]
    pub fn into_own(self) -> Buf {
        match self {
            Data::Own(buf) => buf,
            Data::Shared(shared) => panic!("a buffer comes back where one was given: {shared:?}"),
        }
    }
}
