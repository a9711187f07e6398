//! One request as the driver laid it out: memory to read from, then memory to write to.

use super::area::{DESCRIPTOR, parse};
use super::guest::{GuestMemory, Unmapped};
use super::{CHAIN_MIN_BOUND, Head, RingError, flag};

/// One descriptor's memory, as the driver named it; nothing says that it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Guest address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
}

/// A chain that was taken from a ring. Used again for the next one, so that taking one allocates nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    head: Head,
    /// Readable ones first.
    ranges: Vec<Range>,
    readable: usize,
    readable_bytes: u64,
    writable_bytes: u64,
}

impl Chain {
    /// An empty one, to be filled.
    #[must_use]
    pub fn new() -> Chain {
        Chain::default()
    }

    /// What its ring knows it by.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// Memory to read from.
    #[must_use]
    pub fn readable(&self) -> &[Range] {
        &self.ranges[..self.readable]
    }

    /// Memory to write to.
    #[must_use]
    pub fn writable(&self) -> &[Range] {
        &self.ranges[self.readable..]
    }

    /// Bytes to read from.
    #[must_use]
    pub fn readable_bytes(&self) -> u64 {
        self.readable_bytes
    }

    /// Bytes to write to.
    #[must_use]
    pub fn writable_bytes(&self) -> u64 {
        self.writable_bytes
    }

    /// Copies bytes of the readable part from its byte `at` on.
    pub fn read(&self, memory: &GuestMemory, at: u64, to: &mut [u8]) -> Result<(), Unmapped> {
        // The header nearly always fills the first descriptor.
        if at == 0
            && let Some(first) = self.readable().first()
            && first.len as usize >= to.len()
        {
            return memory.read(first.addr, to);
        }
        let mut rest = to;
        for range in cut(self.readable(), at, rest.len() as u64) {
            let (here, more) = std::mem::take(&mut rest).split_at_mut(range.len as usize);
            memory.read(range.addr, here)?;
            rest = more;
        }
        assert!(rest.is_empty(), "callers look at the length before they read");
        Ok(())
    }

    /// `len` bytes of the readable part from its byte `at` on.
    pub fn readable_from(&self, at: u64, len: u64) -> impl Iterator<Item = Range> + Clone + '_ {
        cut(self.readable(), at, len)
    }

    /// `len` bytes of the writable part from its byte `at` on.
    pub fn writable_from(&self, at: u64, len: u64) -> impl Iterator<Item = Range> + Clone + '_ {
        cut(self.writable(), at, len)
    }

    pub(super) fn clear(&mut self) {
        self.ranges.clear();
        (self.readable, self.readable_bytes, self.writable_bytes) = (0, 0, 0);
    }

    pub(super) fn set_head(&mut self, head: Head) {
        self.head = head;
    }

    /// Appends a descriptor. `bound` is how many there may be.
    pub(super) fn push(&mut self, addr: u64, len: u32, writable: bool, bound: u16) -> Result<(), RingError> {
        if self.ranges.len() >= usize::from(bound) {
            return Err(RingError::Endless(bound));
        }
        if writable {
            self.writable_bytes += u64::from(len);
        } else if self.readable == self.ranges.len() {
            self.readable += 1;
            self.readable_bytes += u64::from(len);
        } else {
            return Err(RingError::ReadAfterWrite);
        }
        self.ranges.push(Range { addr, len });
        Ok(())
    }

    /// Appends an indirect table. Split ones are chained by their next fields, packed ones are taken in order.
    pub(super) fn push_indirect(
        &mut self,
        memory: &GuestMemory,
        (addr, len): (u64, u32),
        chained: bool,
        bound: u16,
    ) -> Result<(), RingError> {
        let bad = RingError::BadIndirect { addr, len };
        let entries = len / DESCRIPTOR as u32;
        if len == 0 || !len.is_multiple_of(DESCRIPTOR as u32) || entries > u32::from(u16::MAX) {
            return Err(bad);
        }
        let (mut index, mut seen) = (0, 0);
        loop {
            let mut bytes = [0; DESCRIPTOR];
            let at = addr.checked_add(u64::from(index) * DESCRIPTOR as u64).ok_or(bad)?;
            memory.read(at, &mut bytes).map_err(|_| bad)?;
            let (addr, len, third, fourth) = parse(bytes);
            let (flags, next) = if chained { (third, fourth) } else { (fourth, 0) };
            if flags & flag::INDIRECT != 0 {
                return Err(RingError::MisplacedIndirect);
            }
            self.push(addr, len, flags & flag::WRITE != 0, bound)?;
            seen += 1;
            let more = if chained { flags & flag::NEXT != 0 } else { seen < entries };
            if !more {
                return Ok(());
            }
            index = if chained { u32::from(next) } else { index + 1 };
            if index >= entries {
                return Err(RingError::NoDescriptor { index: next, size: entries as u16 });
            }
        }
    }
}

/// How many descriptors a chain of a ring of `size` may have.
pub(super) fn bound(size: u16) -> u16 {
    size.max(CHAIN_MIN_BOUND)
}

/// `len` bytes of `ranges` from byte `at` on.
fn cut(ranges: &[Range], at: u64, len: u64) -> impl Iterator<Item = Range> + Clone + '_ {
    ranges
        .iter()
        .scan((at, len), |(skip, left), range| {
            if *left == 0 {
                return None;
            }
            let skipped = (*skip).min(u64::from(range.len));
            *skip -= skipped;
            let here = (u64::from(range.len) - skipped).min(*left);
            *left -= here;
            Some(Range { addr: range.addr.saturating_add(skipped), len: here as u32 })
        })
        .filter(|range| range.len > 0)
}
