//! The image's stream: sections, each with kind, flags and length, so that a later version can add one.
//!
//! ```text
//! section: kind u32 | flags u32 (bit 0: must understand) | bytes u64 | content, padded to 8
//! 1 page table: per node volume u32 | range u32 | generation u64 | pages u32 | zero u32, per page place u64 | crc u32 | zero u32
//! 2 bitmaps: per slab slab u32 | words u32 | words u64 each
//! 3 reserved for accounting of snapshots
//! 4 mapped clusters: as of lsn u64, then per volume id u32 | zero u32 | clusters u64
//! 5 views that a volume's map is tidy for, may be skipped: id u32 | has a parent u32 | cuts u32 | dead u32, the cuts u64 each, the
//!   dead intervals u64 | u64 each
//! ```

use std::collections::BTreeSet;

use thiserror::Error;

use crate::ids::{Epoch, Lsn, VolumeId};
use crate::map::{NodeKey, NodePages, PageRef, PageTable, Views};
use crate::space::{Geometry, Place, SlabBitmap, SlabId};

const MUST_UNDERSTAND: u32 = 1;
const TABLE: u32 = 1;
const BITMAPS: u32 = 2;
const MAPPED: u32 = 4;
const TIDIED: u32 = 5;

/// Clusters that each volume maps, as of a position in the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MappedCounts {
    /// Records up to here are counted.
    pub lsn: Lsn,
    /// Ascending by volume.
    pub clusters: Vec<(VolumeId, u64)>,
}

/// A volume's map has no version that none of these views needs, and no two that they see alike. Without an entry: for the live
/// volume alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TidiedViews {
    /// Whose map.
    pub volume: VolumeId,
    /// For whom.
    pub views: Views,
}

/// What a checkpoint holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Where each node's pages are.
    pub table: PageTable,
    /// Which clusters of each slab hold data.
    pub bitmaps: Vec<SlabBitmap>,
    /// How many clusters each volume maps.
    pub mapped: MappedCounts,
    /// What each volume's map is tidy for, by volume.
    pub tidied: Vec<TidiedViews>,
}

/// Why a stream is no image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadImage {
    /// It ends in the middle.
    #[error("the checkpoint image ends within its {0}")]
    Short(&'static str),
    /// A value that cannot be.
    #[error("the checkpoint image has an impossible {0}")]
    Field(&'static str),
    /// A section of a later version that must not be skipped.
    #[error("the checkpoint image has a section of kind {0}, which only a later version of Ringway understands")]
    Unknown(u32),
}

/// The stream of an image.
#[must_use]
pub fn encode_image(
    table: &PageTable,
    bitmaps: &[SlabBitmap],
    mapped: &MappedCounts,
    tidied: &[TidiedViews],
) -> Vec<u8> {
    let mut out =
        Vec::with_capacity(64 + table.len() * 40 + bitmaps.iter().map(|b| 8 + b.words.len() * 8).sum::<usize>());
    section(&mut out, TABLE, MUST_UNDERSTAND, |out| {
        for (key, entry) in table.iter() {
            out.extend(key.volume.0.to_le_bytes());
            out.extend(key.range.to_le_bytes());
            out.extend(entry.generation.to_le_bytes());
            out.extend((entry.len() as u32).to_le_bytes());
            out.extend([0; 4]);
            for page in entry.iter() {
                out.extend(page.place.raw().to_le_bytes());
                out.extend(page.crc.to_le_bytes());
                out.extend([0; 4]);
            }
        }
    });
    section(&mut out, BITMAPS, MUST_UNDERSTAND, |out| {
        for bitmap in bitmaps {
            out.extend(bitmap.slab.0.to_le_bytes());
            out.extend((bitmap.words.len() as u32).to_le_bytes());
            out.extend(bitmap.words.iter().flat_map(|word| word.to_le_bytes()));
        }
    });
    section(&mut out, MAPPED, MUST_UNDERSTAND, |out| {
        out.extend(mapped.lsn.0.to_le_bytes());
        for (volume, clusters) in &mapped.clusters {
            out.extend(volume.0.to_le_bytes());
            out.extend([0; 4]);
            out.extend(clusters.to_le_bytes());
        }
    });
    if !tidied.is_empty() {
        section(&mut out, TIDIED, 0, |out| tidied.iter().for_each(|entry| encode_tidied(entry, out)));
    }
    out
}

fn encode_tidied(entry: &TidiedViews, out: &mut Vec<u8>) {
    let (cuts, dead) = (entry.views.points(), entry.views.dead());
    let parent = u32::from(entry.views.has_parent());
    for field in [entry.volume.0, parent, cuts.len() as u32, dead.len() as u32] {
        out.extend(field.to_le_bytes());
    }
    out.extend(cuts.iter().flat_map(|cut| cut.0.to_le_bytes()));
    out.extend(dead.iter().flat_map(|(after, up_to)| [after.0.to_le_bytes(), up_to.0.to_le_bytes()]).flatten());
}

fn section(out: &mut Vec<u8>, kind: u32, flags: u32, content: impl FnOnce(&mut Vec<u8>)) {
    out.extend(kind.to_le_bytes());
    out.extend(flags.to_le_bytes());
    let length_at = out.len();
    out.extend([0; 8]);
    content(out);
    let length = (out.len() - length_at - 8) as u64;
    assert!(length.is_multiple_of(8), "sections are multiples of 8 bytes");
    out[length_at..length_at + 8].copy_from_slice(&length.to_le_bytes());
}

/// The image in a stream. Every place is checked to lie in a slab of the pool; whether it lies in one of this shard's is for
/// [`crate::space::Space`] to say. An empty stream is an empty image.
pub fn decode_image(stream: &[u8], geometry: &Geometry) -> Result<Image, BadImage> {
    let mut image = Image::default();
    let mut rest = Cursor { bytes: stream, part: "sections" };
    while !rest.bytes.is_empty() {
        let (kind, flags, length) = (rest.u32()?, rest.u32()?, rest.u64()?);
        let length = usize::try_from(length).map_err(|_| BadImage::Field("section length"))?;
        let bytes = rest.take(length)?;
        match kind {
            TABLE => decode_table(bytes, geometry, &mut image.table)?,
            BITMAPS => decode_bitmaps(bytes, geometry, &mut image.bitmaps)?,
            MAPPED => image.mapped = decode_mapped(bytes)?,
            TIDIED => image.tidied = decode_tidied(bytes)?,
            _ if flags & MUST_UNDERSTAND == 0 => {}
            _ => return Err(BadImage::Unknown(kind)),
        }
    }
    Ok(image)
}

fn decode_table(bytes: &[u8], geometry: &Geometry, table: &mut PageTable) -> Result<(), BadImage> {
    let mut rest = Cursor { bytes, part: "page table" };
    while !rest.bytes.is_empty() {
        let key = NodeKey { volume: VolumeId(rest.u32()?), range: rest.u32()? };
        let (generation, count, _) = (rest.u64()?, rest.u32()?, rest.u32()?);
        if key.volume.0 == 0 || count == 0 || count > u32::from(u16::MAX) {
            return Err(BadImage::Field("page table entry"));
        }
        // The count is hostile: grow as pages are found.
        let mut pages = Vec::new();
        for _ in 0..count {
            let (place, crc, _) = (Place::from_raw(rest.u64()?), rest.u32()?, rest.u32()?);
            if !geometry.holds_page(place) {
                return Err(BadImage::Field("place of a map page"));
            }
            pages.push(PageRef { place, crc });
        }
        if table.insert(key, NodePages::new(generation, pages)).is_some() {
            return Err(BadImage::Field("node, listed twice"));
        }
    }
    Ok(())
}

fn decode_bitmaps(bytes: &[u8], geometry: &Geometry, bitmaps: &mut Vec<SlabBitmap>) -> Result<(), BadImage> {
    let mut rest = Cursor { bytes, part: "bitmaps" };
    let clusters = geometry.clusters_per_slab();
    let mut seen: BTreeSet<_> = bitmaps.iter().map(|bitmap| bitmap.slab).collect();
    while !rest.bytes.is_empty() {
        let (slab, words) = (SlabId(rest.u32()?), rest.u32()?);
        if !geometry.has_slab(slab) || !seen.insert(slab) {
            return Err(BadImage::Field("slab"));
        }
        if words != clusters.div_ceil(64) {
            return Err(BadImage::Field("length of a bitmap"));
        }
        let words: Vec<u64> = (0..words).map(|_| rest.u64()).collect::<Result<_, _>>()?;
        if !clusters.is_multiple_of(64) && words[words.len() - 1] >> (clusters % 64) != 0 {
            return Err(BadImage::Field("cluster beyond its slab"));
        }
        bitmaps.push(SlabBitmap { slab, words });
    }
    Ok(())
}

fn decode_mapped(bytes: &[u8]) -> Result<MappedCounts, BadImage> {
    let mut rest = Cursor { bytes, part: "mapped clusters" };
    let mut mapped = MappedCounts { lsn: Lsn(rest.u64()?), clusters: Vec::new() };
    while !rest.bytes.is_empty() {
        let (volume, _, clusters) = (VolumeId(rest.u32()?), rest.u32()?, rest.u64()?);
        if mapped.clusters.last().is_some_and(|&(before, _)| before >= volume) {
            return Err(BadImage::Field("order of volumes"));
        }
        mapped.clusters.push((volume, clusters));
    }
    Ok(mapped)
}

fn decode_tidied(bytes: &[u8]) -> Result<Vec<TidiedViews>, BadImage> {
    let mut rest = Cursor { bytes, part: "views" };
    let mut all: Vec<TidiedViews> = Vec::new();
    while !rest.bytes.is_empty() {
        let (volume, parent, cuts, dead) = (VolumeId(rest.u32()?), rest.u32()?, rest.u32()?, rest.u32()?);
        if all.last().is_some_and(|before| before.volume >= volume) || parent > 1 {
            return Err(BadImage::Field("order of views"));
        }
        // The counts are hostile: grow as they are found.
        let (mut points, mut intervals) = (Vec::new(), Vec::new());
        for _ in 0..cuts {
            points.push(Epoch(rest.u64()?));
        }
        for _ in 0..dead {
            intervals.push((Epoch(rest.u64()?), Epoch(rest.u64()?)));
        }
        all.push(TidiedViews { volume, views: Views::new(points, &intervals, parent == 1) });
    }
    Ok(all)
}

struct Cursor<'a> {
    bytes: &'a [u8],
    part: &'static str,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], BadImage> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(BadImage::Short(self.part))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, BadImage> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    fn u64(&mut self) -> Result<u64, BadImage> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes")))
    }
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
