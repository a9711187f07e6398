//! What a request moves its data in: a buffer of our own, or memory that a peer shares with us.
//!
//! A [`Buf`] is ours alone and can be looked at. A [`SharedBuf`] lies in memory that another process may write at any moment: it
//! has no slice, only copies, and nothing that was read from it once is read again. A blank buffer stands for zeros that nobody
//! has written yet: who only passes them on never has to.

use std::borrow::Cow;
use std::ops::Deref;

use crate::buf::Buf;
use crate::shared::SharedBuf;

/// What is sent as zeros lies here, a page's worth of cache for all of it together.
static ZEROS: [u8; ZEROS_MAX] = [0; ZEROS_MAX];

/// One [`Piece`] has no more zeros.
pub const ZEROS_MAX: usize = 64 << 10;

/// A piece of what is sent: a buffer, or zeros that are nobody's.
#[derive(Debug)]
pub enum Piece {
    /// Bytes of this buffer.
    Own(Buf),
    /// So many zeros, at most [`ZEROS_MAX`].
    Zeros(usize),
}

impl Deref for Piece {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Piece::Own(buf) => buf,
            Piece::Zeros(len) => &ZEROS[..*len],
        }
    }
}

impl From<Buf> for Piece {
    fn from(buf: Buf) -> Piece {
        Piece::Own(buf)
    }
}

/// The bytes of one request, or of a part of it. Moves by value: to the device and back.
#[derive(Debug)]
pub enum Data {
    /// A buffer of this process.
    Own(Buf),
    /// Zeros, and a buffer of this process to write them to for whoever wants to look at them. What it holds now is somebody
    /// else's: only this type gets at it.
    Blank(Blank),
    /// A peer's memory, in place.
    Shared(SharedBuf),
    /// Zeros, and a peer's memory into which the peer itself writes them: see [`MemoryTable::of_peer_that_zeroes`].
    ///
    /// [`MemoryTable::of_peer_that_zeroes`]: crate::shared::MemoryTable::of_peer_that_zeroes
    SharedBlank(SharedBlank),
}

/// A peer's memory that is to hold zeros and does not yet.
#[derive(Debug)]
pub struct SharedBlank(SharedBuf);

impl SharedBlank {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The memory as it is, for whoever tells its peer that it is to be zeros.
    #[must_use]
    pub fn unwritten(self) -> SharedBuf {
        self.0
    }

    fn written(mut self) -> SharedBuf {
        self.0.zero();
        self.0
    }
}

/// A buffer that is to hold zeros and does not yet.
#[derive(Debug)]
pub struct Blank(Buf);

impl Blank {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The buffer, with zeros in it.
    #[must_use]
    pub fn written(mut self) -> Buf {
        self.0.fill(0);
        self.0
    }
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
            Data::Blank(blank) => blank.len(),
            Data::Shared(shared) => shared.len(),
            Data::SharedBlank(blank) => blank.len(),
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
            Data::Blank(blank) => Data::Blank(Blank(blank.0.split_off(at))),
            Data::Shared(shared) => Data::Shared(shared.split_off(at)),
            Data::SharedBlank(blank) => Data::SharedBlank(SharedBlank(blank.0.split_off(at))),
        }
    }

    /// Takes back what [`Data::split_off`] returned.
    ///
    /// # Panics
    /// If `rest` is not what follows this.
    pub fn join(&mut self, rest: Data) {
        match (self, rest) {
            (Data::Blank(blank), Data::Blank(rest)) => blank.0.join(rest.0),
            (Data::SharedBlank(blank), Data::SharedBlank(rest)) => blank.0.join(rest.0),
            (front, mut rest) => {
                front.write_out();
                rest.write_out();
                match (front, rest) {
                    (Data::Own(buf), Data::Own(rest)) => buf.join(rest),
                    (Data::Shared(shared), Data::Shared(rest)) => shared.join(rest),
                    _ => panic!("parts of one request join"),
                }
            }
        }
    }

    /// Makes it zeros: a peer's memory at once, unless that peer does it itself; a buffer of ours when somebody looks.
    #[must_use]
    pub fn zeroed(self) -> Data {
        match self {
            Data::Own(buf) => Data::Blank(Blank(buf)),
            Data::Blank(blank) => Data::Blank(blank),
            Data::Shared(shared) if shared.table().peer_zeroes() => Data::SharedBlank(SharedBlank(shared)),
            Data::Shared(mut shared) => {
                shared.zero();
                Data::Shared(shared)
            }
            Data::SharedBlank(blank) => Data::SharedBlank(blank),
        }
    }

    /// Writes zeros that are only promised. Devices take no others.
    pub fn write_out(&mut self) {
        match self {
            Data::Own(_) | Data::Shared(_) => {}
            Data::Blank(blank) => {
                blank.0.fill(0);
                *self = Data::Own(blank.0.split_off(0));
            }
            Data::SharedBlank(blank) => *self = Data::Shared(SharedBlank(blank.0.split_off(0)).written()),
        }
    }

    /// Copies from its byte `at` on to `to`.
    ///
    /// # Panics
    /// If that ends beyond it.
    pub fn copy_to(&self, at: usize, to: &mut [u8]) {
        match self {
            Data::Own(buf) => to.copy_from_slice(&buf[at..at + to.len()]),
            Data::Blank(_) | Data::SharedBlank(_) => {
                assert!(at + to.len() <= self.len(), "{} bytes at {at} of {}", to.len(), self.len());
                to.fill(0);
            }
            Data::Shared(shared) => shared.copy_to(at, to),
        }
    }

    /// Copies `from` to its byte `at`.
    ///
    /// # Panics
    /// If that ends beyond it.
    pub fn copy_from(&mut self, at: usize, from: &[u8]) {
        self.write_out();
        match self {
            Data::Own(buf) => buf[at..at + from.len()].copy_from_slice(from),
            Data::Blank(_) | Data::SharedBlank(_) => unreachable!("it was just written out"),
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
            Data::Blank(_) | Data::SharedBlank(_) => {
                assert!(at + other.len() <= self.len(), "{} bytes at {at} of {}", other.len(), self.len());
                other.iter().all(|&byte| byte == 0)
            }
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
            Data::Own(buf) | Data::Blank(Blank(buf)) => {
                (buf.as_ptr() as usize | buf.len()).is_multiple_of(unit as usize)
            }
            Data::Shared(shared) | Data::SharedBlank(SharedBlank(shared)) => shared.is_aligned(unit),
        }
    }

    /// Whether a device with logical blocks of `unit` bytes takes as many whole blocks from its start on as there are.
    #[must_use]
    pub fn starts_aligned(&self, unit: u32) -> bool {
        match self {
            Data::Own(buf) | Data::Blank(Blank(buf)) => (buf.as_ptr() as usize).is_multiple_of(unit as usize),
            Data::Shared(shared) | Data::SharedBlank(SharedBlank(shared)) => shared.starts_aligned(unit),
        }
    }

    /// Copies all of it to the front of a peer's memory.
    ///
    /// # Panics
    /// If that is shorter.
    pub fn copy_to_peer(&self, to: &mut SharedBuf) {
        match self {
            Data::Own(buf) => to.copy_from(0, buf),
            Data::Blank(blank) => {
                assert!(blank.len() == to.len(), "zeros for all of it");
                to.zero();
            }
            Data::Shared(shared) | Data::SharedBlank(SharedBlank(shared)) => {
                panic!("a peer's memory is not copied to a peer: {shared:?}")
            }
        }
    }

    /// The bytes of a buffer of ours.
    ///
    /// # Panics
    /// As [`Data::into_own`].
    #[must_use]
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        match self {
            Data::Own(buf) => Cow::Borrowed(buf),
            Data::Blank(blank) => Cow::Owned(vec![0; blank.len()]),
            Data::Shared(shared) | Data::SharedBlank(SharedBlank(shared)) => {
                panic!("a buffer comes back where one was given: {shared:?}")
            }
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
            Data::Blank(blank) => blank.written(),
            Data::Shared(shared) | Data::SharedBlank(SharedBlank(shared)) => {
                panic!("a buffer comes back where one was given: {shared:?}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::buf::{BufPool, BufPoolConfig};
    use crate::shared::{MemoryTable, SharedMemory};

    /// What its last owner left is 7s.
    fn stale(pool: &'static BufPool, len: usize) -> Data {
        let mut buf = pool.get(len).unwrap();
        buf.fill(7);
        Data::Own(buf)
    }

    #[test]
    fn nobody_sees_what_a_blank_buffer_held_before() {
        let pool = BufPool::leak(&BufPoolConfig { classes: vec![(4096, 4)] }, 0);
        let blank = || stale(pool, 64).zeroed();
        assert!(matches!(blank(), Data::Blank(_)));
        assert_eq!(*blank().into_own(), [0; 64]);
        assert_eq!(*blank().bytes(), [0; 64]);
        assert!(blank().equals(60, &[0; 4]) && !blank().equals(60, &[0, 0, 0, 7]));
        let mut seen = [9; 8];
        blank().copy_to(56, &mut seen);
        assert_eq!(seen, [0; 8]);
        let mut half = blank();
        half.copy_from(32, &[1; 32]);
        assert_eq!(half.bytes().iter().map(|&byte| u32::from(byte)).sum::<u32>(), 32);
    }

    #[test]
    fn a_peer_that_zeroes_its_memory_is_left_to_it_until_something_else_joins_or_a_device_takes_it() {
        let (_fd, memory) = SharedMemory::create("peer", 8192).unwrap();
        let seen = || {
            let mut seen = vec![9; 8192];
            memory.read(0, &mut seen);
            (seen[..4096].to_vec(), seen[4096..].to_vec())
        };
        let whole = |table: &Arc<MemoryTable>| {
            memory.write(0, &[7; 8192]);
            Data::Shared(SharedBuf::one(Arc::clone(table), (0, 0, 8192)).unwrap())
        };
        let (sevens, zeros) = (vec![7; 4096], vec![0; 4096]);
        let other = MemoryTable::new(vec![Arc::clone(&memory)]);
        assert!(matches!(whole(&other).zeroed(), Data::Shared(_)));
        assert_eq!(seen(), (zeros.clone(), zeros.clone()));
        let table = MemoryTable::of_peer_that_zeroes(vec![Arc::clone(&memory)]);
        // Both halves, one, and the other.
        for (front_blank, back_blank) in [(true, true), (true, false), (false, true)] {
            let mut front = whole(&table);
            let back = front.split_off(4096);
            let blank = |data: Data, blank: bool| if blank { data.zeroed() } else { data };
            let (mut front, back) = (blank(front, front_blank), blank(back, back_blank));
            assert_eq!(seen(), (sevens.clone(), sevens.clone()));
            front.join(back);
            assert_eq!(matches!(front, Data::SharedBlank(_)), front_blank && back_blank);
            if front_blank && back_blank {
                assert!(front.equals(0, &[0; 8192]));
                front.write_out();
            }
            let half = |blank: bool| if blank { zeros.clone() } else { sevens.clone() };
            assert_eq!(seen(), (half(front_blank), half(back_blank)));
        }
    }

    #[test]
    fn blank_and_written_parts_of_one_buffer_join() {
        let pool = BufPool::leak(&BufPoolConfig { classes: vec![(4096, 4)] }, 0);
        for (front_blank, back_blank) in [(true, true), (true, false), (false, true), (false, false)] {
            let mut front = stale(pool, 64);
            let back = front.split_off(40);
            let blank = |data: Data, blank: bool| if blank { data.zeroed() } else { data };
            let (mut whole, back) = (blank(front, front_blank), blank(back, back_blank));
            whole.join(back);
            let bytes = whole.into_own();
            assert!(bytes[..40].iter().all(|&byte| byte == if front_blank { 0 } else { 7 }));
            assert!(bytes[40..].iter().all(|&byte| byte == if back_blank { 0 } else { 7 }));
        }
        assert_eq!(pool.in_use(), 0);
    }
}
