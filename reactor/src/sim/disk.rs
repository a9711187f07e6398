//! What one simulated disk holds: what readers see, what power loss leaves, and the writes between the two.
//!
//! Invariants: a sector's stored content is the newest of those that were made persistent, by the order in which they
//! landed; a write leaves `unflushed` exactly once, by a barrier or by power loss; `order` holds the reaped ones alone, in
//! the order of their reaping, and none that a failed barrier has doomed.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use slab::Slab;

use super::page::{IdMap, Image, PAGE, Page, PageMap, SECTOR, SECTORS, page_of, put, split, zero};
use super::rng::Rng;

/// A page that this world has touched.
#[derive(Clone)]
struct Cell {
    seen: Page,
    stored: Page,
    /// Landing number of the write whose content `stored` holds, sector by sector.
    stored_by: [u64; SECTORS],
}

/// One write that is in the cache alone.
#[derive(Clone)]
struct Unflushed {
    /// Its place in the order of landing; `u64::MAX` for one that has not landed.
    landed: u64,
    pieces: Vec<Piece>,
}

/// The part of a write in one page. Only `range` of `data` is the write's own.
#[derive(Clone)]
struct Piece {
    page: u64,
    range: Range<usize>,
    data: Page,
}

/// Names a write in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WriteKey(u32);

/// A write that was at the device when the power failed: what of it has not landed.
pub(super) enum Pending<'a> {
    Bytes(u64, &'a [u8]),
    Zeroes(u64, u64),
}

/// What readers see and what is persistent.
#[derive(Clone)]
struct Surface {
    base: Arc<PageMap>,
    cells: IdMap<u64, Cell>,
}

/// The content of a disk and of its cache.
pub(super) struct Disk {
    size: u64,
    atomic: u64,
    surface: Surface,
    unflushed: Slab<Unflushed>,
    order: VecDeque<(u64, WriteKey)>,
    landings: u64,
    reapings: u64,
}

/// What power loss did to one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Kept,
    Lost,
    Torn,
}

/// How many writes met which fate.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Losses {
    pub kept: u64,
    pub lost: u64,
    pub torn: u64,
}

impl Surface {
    fn cell(&mut self, page: u64) -> &mut Cell {
        self.cells.entry(page).or_insert_with(|| {
            let data = self.base.get(&page).cloned().unwrap_or_else(zero);
            Cell { seen: data.clone(), stored: data, stored_by: [0; SECTORS] }
        })
    }

    /// Whether the page may hold anything but zeroes.
    fn holds(&self, page: u64) -> bool {
        self.cells.contains_key(&page) || self.base.contains_key(&page)
    }

    /// Makes `range` of a piece persistent where nothing newer already is.
    fn store(&mut self, landed: u64, piece: &Piece, range: Range<usize>) {
        let cell = self.cell(piece.page);
        if range.len() == PAGE && cell.stored_by.iter().all(|&by| by < landed) {
            cell.stored = piece.data.clone();
            cell.stored_by = [landed; SECTORS];
            return;
        }
        for sector in range.start / SECTOR..range.end / SECTOR {
            if cell.stored_by[sector] < landed {
                let bytes = sector * SECTOR..(sector + 1) * SECTOR;
                Arc::make_mut(&mut cell.stored)[bytes.clone()].copy_from_slice(&piece.data[bytes]);
                cell.stored_by[sector] = landed;
            }
        }
    }

    fn image(&self, size: u64, of: impl Fn(&Cell) -> &Page) -> Image {
        let mut pages = (*self.base).clone();
        for (&page, cell) in &self.cells {
            put(&mut pages, page, of(cell).clone());
        }
        Image { size, pages: Arc::new(pages) }
    }

    /// Applies to each write a fate of its own, in random order, and forgets the cache.
    fn cut(&mut self, atomic: u64, mut writes: Vec<Unflushed>, rng: &mut Rng) -> Losses {
        // A cache that was just written out, or one that had not begun, is as likely as anything between the two.
        let whole = match rng.below(8) {
            0 => Some(Fate::Kept),
            1 => Some(Fate::Lost),
            _ => None,
        };
        let mut losses = Losses::default();
        match whole {
            // All was written out, so it is what readers saw.
            Some(_) => writes.sort_unstable_by_key(|write| write.landed),
            None => rng.shuffle(&mut writes),
        }
        for write in &mut writes {
            let fate = whole.unwrap_or_else(|| match rng.below(3) {
                0 => Fate::Kept,
                1 => Fate::Lost,
                _ => Fate::Torn,
            });
            match fate {
                Fate::Kept => {
                    losses.kept += 1;
                    self.keep_units(write, atomic, |_| true);
                }
                Fate::Lost => losses.lost += 1,
                Fate::Torn => {
                    losses.torn += 1;
                    let tear = Tear::of(write, atomic, rng);
                    self.keep_units(write, atomic, |unit| tear.keeps(unit));
                }
            }
        }
        for cell in self.cells.values_mut() {
            cell.seen = cell.stored.clone();
        }
        losses
    }

    /// Stores the units of a write that `keep` chooses.
    fn keep_units(&mut self, write: &Unflushed, atomic: u64, keep: impl Fn(u64) -> bool) {
        for piece in &write.pieces {
            let start = piece.page * PAGE as u64;
            let (mut at, end) = (start + piece.range.start as u64, start + piece.range.end as u64);
            while at < end {
                let unit = at / atomic;
                let to = end.min((unit + 1) * atomic);
                if keep(unit) {
                    self.settle(write.landed, piece, (at - start) as usize..(to - start) as usize);
                }
                at = to;
            }
        }
    }

    /// Stores a range at power loss: over what a barrier made persistent only if it landed later, over any other leftover
    /// of the cache always.
    fn settle(&mut self, landed: u64, piece: &Piece, range: Range<usize>) {
        let cell = self.cell(piece.page);
        for sector in range.start / SECTOR..range.end / SECTOR {
            if cell.stored_by[sector] < landed {
                let bytes = sector * SECTOR..(sector + 1) * SECTOR;
                Arc::make_mut(&mut cell.stored)[bytes.clone()].copy_from_slice(&piece.data[bytes]);
            }
        }
    }
}

/// Which units of a torn write survive.
enum Tear {
    Before(u64),
    From(u64),
    Subset(u64),
}

impl Tear {
    fn of(write: &Unflushed, atomic: u64, rng: &mut Rng) -> Tear {
        let unit = |piece: &Piece, at: usize| (piece.page * PAGE as u64 + at as u64) / atomic;
        let (Some(first), Some(last)) = (write.pieces.first(), write.pieces.last()) else { return Tear::Subset(0) };
        let (first, last) = (unit(first, first.range.start), unit(last, last.range.end - 1));
        match rng.below(3) {
            0 => Tear::Before(first + rng.below(last - first + 2)),
            1 => Tear::From(first + rng.below(last - first + 2)),
            _ => Tear::Subset(rng.bits()),
        }
    }

    fn keeps(&self, unit: u64) -> bool {
        match *self {
            Tear::Before(limit) => unit < limit,
            Tear::From(limit) => unit >= limit,
            Tear::Subset(salt) => Rng::new(salt ^ unit.wrapping_mul(0xa076_1d64_78bd_642f)).bits() & 1 == 1,
        }
    }
}

impl Disk {
    pub(super) fn new(image: &Image, atomic: u64) -> Self {
        Self {
            size: image.size,
            atomic,
            surface: Surface { base: image.pages.clone(), cells: IdMap::default() },
            unflushed: Slab::new(),
            order: VecDeque::new(),
            landings: 0,
            reapings: 0,
        }
    }

    /// Fills `into` with what readers see now.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) {
        let mut done = 0;
        for (page, range) in split(offset, into.len() as u64) {
            let part = &mut into[done..done + range.len()];
            done += range.len();
            let data = self.surface.cells.get(&page).map(|cell| &cell.seen).or_else(|| self.surface.base.get(&page));
            match data {
                Some(data) => part.copy_from_slice(&data[range]),
                None => part.fill(0),
            }
        }
    }

    /// A write reaches the cache: readers see it from now on.
    pub(super) fn land(&mut self, offset: u64, bytes: &[u8]) -> WriteKey {
        let mut pieces = Vec::with_capacity(bytes.len() / PAGE + 2);
        let mut done = 0;
        for (page, range) in split(offset, bytes.len() as u64) {
            let part = &bytes[done..done + range.len()];
            done += range.len();
            let cell = self.surface.cell(page);
            if part.len() == PAGE {
                cell.seen = page_of(part);
            } else {
                Arc::make_mut(&mut cell.seen)[range.clone()].copy_from_slice(part);
            }
            pieces.push(Piece { page, range, data: cell.seen.clone() });
        }
        self.cache(pieces)
    }

    /// A range becomes zero in the cache.
    pub(super) fn land_zeroes(&mut self, offset: u64, len: u64) -> WriteKey {
        let mut pieces = Vec::new();
        for (page, range) in self.held(offset, len) {
            let cell = self.surface.cell(page);
            if range.len() == PAGE {
                cell.seen = zero();
            } else {
                Arc::make_mut(&mut cell.seen)[range.clone()].fill(0);
            }
            pieces.push(Piece { page, range, data: cell.seen.clone() });
        }
        self.cache(pieces)
    }

    /// The pages of a range that may hold something: by page, or by what there is if that is less to look at.
    fn held(&self, offset: u64, len: u64) -> Vec<(u64, Range<usize>)> {
        let surface = &self.surface;
        if len / PAGE as u64 <= (surface.cells.len() + surface.base.len()) as u64 + 16 {
            return split(offset, len).filter(|(page, _)| surface.holds(*page)).collect();
        }
        let pages = offset / PAGE as u64..(offset + len).div_ceil(PAGE as u64);
        let mut found: Vec<u64> =
            surface.cells.keys().chain(surface.base.keys()).copied().filter(|page| pages.contains(page)).collect();
        found.sort_unstable();
        found.dedup();
        let part = |page: u64| {
            let start = page * PAGE as u64;
            let (from, to) = (offset.max(start), (offset + len).min(start + PAGE as u64));
            (page, (from - start) as usize..(to - start) as usize)
        };
        found.into_iter().map(part).collect()
    }

    fn cache(&mut self, pieces: Vec<Piece>) -> WriteKey {
        self.landings += 1;
        WriteKey(self.unflushed.insert(Unflushed { landed: self.landings, pieces }) as u32)
    }

    /// The completion of a write was taken: barriers submitted from now on cover it.
    pub(super) fn reap(&mut self, key: WriteKey) {
        self.reapings += 1;
        self.order.push_back((self.reapings, key));
    }

    /// What a barrier submitted now covers.
    pub(super) fn coverage(&self) -> u64 {
        self.reapings
    }

    /// A barrier succeeded: what it covers is persistent.
    pub(super) fn flush(&mut self, coverage: u64) {
        while let Some(&(reaped, key)) = self.order.front()
            && reaped <= coverage
        {
            self.order.pop_front();
            self.persist(key);
        }
    }

    /// A barrier failed: no later barrier will speak for what it covered (the kernel reports a write-back error once and
    /// marks the pages clean), and power loss may take it.
    pub(super) fn doom(&mut self, coverage: u64) {
        while self.order.front().is_some_and(|&(reaped, _)| reaped <= coverage) {
            self.order.pop_front();
        }
    }

    /// Makes one write persistent.
    pub(super) fn persist(&mut self, key: WriteKey) {
        let write = self.unflushed.remove(key.0 as usize);
        for piece in &write.pieces {
            self.surface.store(write.landed, piece, piece.range.clone());
        }
    }

    fn at_risk(&self, pending: &[Pending<'_>]) -> Vec<Unflushed> {
        let mut writes: Vec<Unflushed> = self.unflushed.iter().map(|(_, write)| write.clone()).collect();
        writes.extend(pending.iter().map(|pending| Unflushed { landed: u64::MAX, pieces: self.pieces(pending) }));
        writes
    }

    fn pieces(&self, pending: &Pending<'_>) -> Vec<Piece> {
        match *pending {
            Pending::Zeroes(offset, len) => {
                self.held(offset, len).into_iter().map(|(page, range)| Piece { page, range, data: zero() }).collect()
            }
            Pending::Bytes(offset, bytes) => {
                let mut done = 0;
                let piece = |(page, range): (u64, Range<usize>)| {
                    let part = &bytes[done..done + range.len()];
                    done += range.len();
                    let mut data = zero();
                    Arc::make_mut(&mut data)[range.clone()].copy_from_slice(part);
                    Piece { page, range, data }
                };
                split(offset, bytes.len() as u64).map(piece).collect()
            }
        }
    }

    /// The power fails: what is not persistent meets its fate, and the rest is all there is.
    pub(super) fn power_loss(&mut self, pending: &[Pending<'_>], rng: &mut Rng) -> Losses {
        let writes = self.at_risk(pending);
        self.unflushed.clear();
        self.order.clear();
        self.surface.cut(self.atomic, writes, rng)
    }

    /// One of the contents that power loss now could leave; the disk itself goes on.
    pub(super) fn power_loss_image(&self, pending: &[Pending<'_>], rng: &mut Rng) -> Image {
        let mut surface = self.surface.clone();
        surface.cut(self.atomic, self.at_risk(pending), rng);
        surface.image(self.size, |cell| &cell.stored)
    }

    /// What readers see now.
    pub(super) fn image(&self) -> Image {
        self.surface.image(self.size, |cell| &cell.seen)
    }

    /// Flips one bit of each sector of a range, in the cache and below it.
    pub(super) fn rot(&mut self, offset: u64, len: u64, rng: &mut Rng) {
        for (page, range) in split(offset, len) {
            let mut at = range.start;
            while at < range.end {
                let to = range.end.min((at / SECTOR + 1) * SECTOR);
                let byte = at + rng.below((to - at) as u64) as usize;
                let bit = 1u8 << rng.below(8);
                let cell = self.surface.cell(page);
                Arc::make_mut(&mut cell.seen)[byte] ^= bit;
                Arc::make_mut(&mut cell.stored)[byte] ^= bit;
                at = to;
            }
        }
    }

    /// Writes that are in the cache alone.
    pub(super) fn unflushed(&self) -> usize {
        self.unflushed.len()
    }
}
