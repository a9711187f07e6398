//! Sparse, shared content: what a simulated disk holds, in pages that worlds share until one of them writes.
//!
//! Invariant: a page that is all zero is never in a map, so a formatted but empty region costs nothing and two images with
//! the same content have the same pages.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, LazyLock};

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;
/// Bytes of the smallest thing that is tracked on its own.
pub(super) const SECTOR: usize = 512;
/// Sectors of a page.
pub(super) const SECTORS: usize = PAGE / SECTOR;

/// One page of content; written only where it has one owner.
pub(super) type Page = Arc<Frame>;
pub(super) type PageMap = IdMap<u64, Page>;

static ZERO: LazyLock<Page> = LazyLock::new(|| Arc::new(Frame::of(&[0u8; PAGE])));

/// Frames that a thread keeps, 16 MiB: giving a world's pages back to the system and faulting them in again for the next
/// one took more time than all the rest of a world.
const SPARE_FRAMES: usize = 4096;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// The bytes of a page.
#[derive(Debug)]
pub(super) struct Frame(Box<[u8]>);

impl Frame {
    fn of(bytes: &[u8]) -> Self {
        let spare = SPARE.try_with(|spare| spare.borrow_mut().pop()).ok().flatten();
        match spare {
            Some(mut frame) => {
                frame.copy_from_slice(bytes);
                Self(frame)
            }
            None => Self(Box::from(bytes)),
        }
    }
}

impl Clone for Frame {
    fn clone(&self) -> Self {
        Self::of(&self.0)
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let frame = std::mem::take(&mut self.0);
        // A thread that ends has no list any more.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_FRAMES {
                spare.push(frame);
            }
        });
    }
}

impl Deref for Frame {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Frame {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

pub(super) fn zero() -> Page {
    ZERO.clone()
}

/// A page of these bytes; every zero page is the same one.
pub(super) fn page_of(bytes: &[u8]) -> Page {
    if *bytes == ZERO[..] { zero() } else { Arc::new(Frame::of(bytes)) }
}

/// The parts of `[offset, offset + len)` page by page: page number, and the range within that page.
pub(super) fn split(offset: u64, len: u64) -> impl Iterator<Item = (u64, Range<usize>)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let page = at / PAGE as u64;
            let from = (at % PAGE as u64) as usize;
            let to = ((end - at) as usize).min(PAGE - from) + from;
            at += (to - from) as u64;
            (page, from..to)
        })
    })
}

/// Multiplies instead of SipHash: keys are small numbers of our own making, and iteration order is the same in every run.
#[derive(Clone, Copy, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u16(&mut self, n: u16) {
        self.write_u64(u64::from(n));
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

pub(super) type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;

/// The content of a disk at one moment. Cloning is free; worlds made from one image share its pages. May be sent to other
/// threads.
#[derive(Clone, Debug)]
pub struct Image {
    pub(super) size: u64,
    pub(super) pages: Arc<PageMap>,
}

impl Image {
    /// All zero.
    #[must_use]
    pub fn zeroed(size: u64) -> Self {
        Self { size, pages: Arc::default() }
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Pages of 4 KiB that are not all zero.
    #[must_use]
    pub fn pages_used(&self) -> usize {
        self.pages.len()
    }

    /// Fills `into` from `offset` on.
    ///
    /// # Panics
    /// If the range leaves the image.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        assert!(offset + into.len() as u64 <= self.size, "read of {} at {offset} leaves the image", into.len());
        let mut done = 0;
        for (page, range) in split(offset, into.len() as u64) {
            let part = &mut into[done..done + range.len()];
            done += range.len();
            match self.pages.get(&page) {
                Some(data) => part.copy_from_slice(&data[range]),
                None => part.fill(0),
            }
        }
    }

    /// `len` bytes from `offset` on.
    #[must_use]
    pub fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(offset, &mut bytes);
        bytes
    }

    /// Changes bytes, for damaging what a test is about to open.
    ///
    /// # Panics
    /// If the range leaves the image.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        assert!(offset + bytes.len() as u64 <= self.size, "write of {} at {offset} leaves the image", bytes.len());
        let pages = Arc::make_mut(&mut self.pages);
        let mut done = 0;
        for (page, range) in split(offset, bytes.len() as u64) {
            let part = &bytes[done..done + range.len()];
            done += range.len();
            let mut data = pages.remove(&page).unwrap_or_else(zero);
            Arc::make_mut(&mut data)[range].copy_from_slice(part);
            put(pages, page, page_of(&data));
        }
    }

    /// A number of the content: equal for equal images, different for different ones but for chance.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut numbers: Vec<u64> = self.pages.keys().copied().collect();
        numbers.sort_unstable();
        let mut hasher = IdHasher::default();
        for number in numbers {
            hasher.write_u64(number);
            for word in self.pages[&number].chunks_exact(8) {
                hasher.write_u64(u64::from_le_bytes(word.try_into().expect("eight bytes")));
            }
        }
        hasher.finish()
    }
}

/// Stores a page, or forgets it if it is zero.
pub(super) fn put(pages: &mut PageMap, number: u64, page: Page) {
    if Arc::ptr_eq(&page, &ZERO) || page[..] == ZERO[..] {
        pages.remove(&number);
    } else {
        pages.insert(number, page);
    }
}
