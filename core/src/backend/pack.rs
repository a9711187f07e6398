//! A pack: an index, then blocks of 4 KiB, each compressed where that pays and each with a checksum of its own.
//!
//! ```text
//! | frame | index: which block of the volume, bytes as stored, how, checksum | block | block | ...
//! ```
//!
//! The index lies in front: one read of a known length gets it, and any block is then one read away. A block's checksum is seeded with
//! whose block it is and where, so that a block at the wrong place is as wrong as a spoiled one.

use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::frame::{Corrupt, decode, encode, reference_crc};
use super::names::{Attempt, Object};
use crate::ids::VolumeId;
use crate::limits::BLOCK;

/// Bytes of blocks, as stored, at which a pack is full.
pub const PACK_BYTES: usize = 8 << 20;
/// Blocks at which a pack is full, however well they compress: what they occupy in memory when read is at most 32 MiB.
pub const PACK_BLOCKS_MAX: usize = 8192;
/// A compressed block is kept if it saves an eighth: less is not worth the time to read it.
const PAYS: usize = BLOCK_BYTES - BLOCK_BYTES / 8;
/// After so many blocks in a row that did not compress, only one in so many is tried.
const DISCOURAGED: u32 = 32;
const TRIED_THEN: u32 = 8;
const BLOCK_BYTES: usize = BLOCK as usize;

/// How a block is stored.
const RAW: u8 = 0;
const LZ4: u8 = 1;

/// One block in a pack's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// Which block of the volume.
    block: u64,
    /// Bytes as stored.
    stored: u16,
    compression: u8,
    crc: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Index {
    volume: VolumeId,
    blocks: Vec<Entry>,
}

/// How a manifest refers to a pack. Whoever has this knows how much to read, and whether what came is what was meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PackRef {
    /// Who made it.
    pub by: Attempt,
    /// Which of its packs.
    pub sequence: u32,
    /// Blocks in it.
    pub blocks: u32,
    /// Bytes of frame and index.
    pub index_bytes: u32,
    /// Checksum of frame and index.
    pub index_crc: u32,
}

impl PackRef {
    /// The pack's object.
    #[must_use]
    pub fn object(&self) -> Object {
        Object::Pack { by: self.by, sequence: self.sequence }
    }
}

fn block_crc(pool: Uuid, volume: VolumeId, block: u64, data: &[u8]) -> u32 {
    let mut crc = crc32c::crc32c(pool.as_bytes());
    crc = crc32c::crc32c_append(crc, &volume.0.to_le_bytes());
    crc = crc32c::crc32c_append(crc, &block.to_le_bytes());
    crc32c::crc32c_append(crc, data)
}

/// A pack that is being filled.
#[derive(Debug)]
pub struct PackWriter {
    pool: Uuid,
    volume: VolumeId,
    by: Attempt,
    sequence: u32,
    index: Vec<Entry>,
    data: Vec<u8>,
    scratch: Vec<u8>,
    failures: u32,
}

/// A full pack, ready to go.
#[derive(Clone, Debug)]
pub struct FinishedPack {
    /// How it is referred to.
    pub reference: PackRef,
    /// Frame and index.
    pub head: Bytes,
    /// Blocks.
    pub data: Bytes,
}

impl PackWriter {
    /// An empty one.
    #[must_use]
    pub fn new(pool: Uuid, volume: VolumeId, by: Attempt, sequence: u32) -> Self {
        let scratch = vec![0; lz4_flex::block::get_maximum_output_size(BLOCK_BYTES)];
        Self { pool, volume, by, sequence, index: Vec::new(), data: Vec::new(), scratch, failures: 0 }
    }

    /// Which of its attempt's packs it is.
    #[must_use]
    pub fn sequence(&self) -> u32 {
        self.sequence
    }

    /// Blocks in it.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.index.len() as u32
    }

    /// Whether another block would be too many.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.data.len() + BLOCK_BYTES > PACK_BYTES || self.index.len() >= PACK_BLOCKS_MAX
    }

    /// Adds a block and says its slot.
    pub fn push(&mut self, block: u64, data: &[u8]) -> u32 {
        assert_eq!(data.len(), BLOCK_BYTES, "a block is a block");
        assert!(!self.is_full(), "a full pack is sent away first");
        let slot = self.blocks();
        let crc = block_crc(self.pool, self.volume, block, data);
        let worth_a_try = self.failures < DISCOURAGED || slot.is_multiple_of(TRIED_THEN);
        let packed = if worth_a_try {
            lz4_flex::block::compress_into(data, &mut self.scratch).expect("the output has the size that it may need")
        } else {
            BLOCK_BYTES
        };
        let (stored, compression) = if packed <= PAYS { (&self.scratch[..packed], LZ4) } else { (data, RAW) };
        self.failures = if compression == LZ4 { 0 } else { self.failures.saturating_add(1) };
        self.data.extend_from_slice(stored);
        self.index.push(Entry { block, stored: stored.len() as u16, compression, crc });
        slot
    }

    /// Nothing more goes in.
    #[must_use]
    pub fn finish(self) -> FinishedPack {
        let object = Object::Pack { by: self.by, sequence: self.sequence };
        let blocks = self.index.len() as u32;
        let head = encode(self.pool, object, &Index { volume: self.volume, blocks: self.index });
        let reference = PackRef {
            by: self.by,
            sequence: self.sequence,
            blocks,
            index_bytes: head.len() as u32,
            index_crc: reference_crc(&head),
        };
        FinishedPack { reference, head: head.into(), data: self.data.into() }
    }
}

/// A pack's index that was checked: where each block lies in the object.
#[derive(Debug)]
pub struct PackIndex {
    pool: Uuid,
    volume: VolumeId,
    blocks: Vec<Entry>,
    /// Where each block begins in the object; one more for the end.
    begins: Vec<u32>,
}

impl PackIndex {
    /// Reads the head of the pack that `reference` means.
    pub fn decode(pool: Uuid, volume: VolumeId, reference: &PackRef, head: &[u8]) -> Result<PackIndex, Corrupt> {
        let decoded = decode::<Index>(pool, reference.object(), head)?;
        if decoded.bytes != reference.index_bytes as usize || decoded.crc != reference.index_crc {
            return Err(Corrupt::Checksum("index, as the manifest knows it,"));
        }
        let Index { volume: of, blocks } = decoded.body;
        if of != volume {
            return Err(Corrupt::Misplaced("volume"));
        }
        if blocks.len() != reference.blocks as usize || blocks.len() > PACK_BLOCKS_MAX {
            return Err(Corrupt::Nonsense("its index has another number of blocks than the manifest says"));
        }
        let mut begins = Vec::with_capacity(blocks.len() + 1);
        let mut at = reference.index_bytes;
        for entry in &blocks {
            begins.push(at);
            let stored = usize::from(entry.stored);
            let fits = match entry.compression {
                RAW => stored == BLOCK_BYTES,
                LZ4 => stored <= PAYS,
                _ => return Err(Corrupt::Nonsense("a block is compressed in a way that this ringway does not know")),
            };
            if !fits {
                return Err(Corrupt::Nonsense("a block has a length that it cannot have"));
            }
            at = at.checked_add(u32::from(entry.stored)).ok_or(Corrupt::Nonsense("it is longer than a pack can be"))?;
        }
        begins.push(at);
        Ok(PackIndex { pool, volume, blocks, begins })
    }

    /// Bytes of the whole object.
    #[must_use]
    pub fn object_bytes(&self) -> u64 {
        u64::from(*self.begins.last().expect("there is one more than blocks"))
    }

    /// Where slots lie in the object.
    #[must_use]
    pub fn range(&self, slots: Range<u32>) -> Range<u64> {
        assert!(slots.start <= slots.end && slots.end as usize <= self.blocks.len(), "slots of this pack");
        u64::from(self.begins[slots.start as usize])..u64::from(self.begins[slots.end as usize])
    }

    /// Memory that it takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.blocks.len() * (size_of::<Entry>() + size_of::<u32>())
    }

    /// Puts the blocks of `slots`, found in `stored` as read from [`PackIndex::range`], one after another into `out`. They must be
    /// the volume's blocks from `block` on.
    pub fn unpack(&self, slots: Range<u32>, block: u64, stored: &[u8], out: &mut Vec<u8>) -> Result<(), Corrupt> {
        let range = self.range(slots.clone());
        let wanted = (range.end - range.start) as usize;
        if stored.len() != wanted {
            return Err(Corrupt::Short { got: stored.len(), wanted });
        }
        for (expected, slot) in (block..).zip(slots) {
            let entry = &self.blocks[slot as usize];
            if entry.block != expected {
                return Err(Corrupt::Misplaced("block"));
            }
            let begin = (u64::from(self.begins[slot as usize]) - range.start) as usize;
            let stored = &stored[begin..begin + usize::from(entry.stored)];
            let start = out.len();
            out.resize(start + BLOCK_BYTES, 0);
            let block = &mut out[start..];
            if entry.compression == RAW {
                block.copy_from_slice(stored);
            } else if !lz4_flex::block::decompress_into(stored, block).is_ok_and(|bytes| bytes == BLOCK_BYTES) {
                return Err(Corrupt::Nonsense("a block cannot be decompressed"));
            }
            if block_crc(self.pool, self.volume, expected, block) != entry.crc {
                return Err(Corrupt::Checksum("block"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POOL: Uuid = Uuid::from_u128(3);
    const BY: Attempt = Attempt { id: 1, nonce: 2 };

    /// Blocks of many kinds: zeros, text, noise.
    fn block(seed: u64) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        (0..BLOCK_BYTES)
            .map(|at| match seed % 3 {
                0 => 0,
                1 => (at / 100) as u8,
                _ => {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as u8
                }
            })
            .collect()
    }

    fn pack(blocks: &[u64]) -> (FinishedPack, Vec<u8>) {
        let mut writer = PackWriter::new(POOL, VolumeId(4), BY, 9);
        for (slot, &seed) in blocks.iter().enumerate() {
            assert_eq!(writer.push(100 + slot as u64, &block(seed)), slot as u32);
        }
        let pack = writer.finish();
        let whole = [&pack.head[..], &pack.data[..]].concat();
        (pack, whole)
    }

    fn read(pack: &PackRef, whole: &[u8], slots: Range<u32>) -> Result<Vec<u8>, Corrupt> {
        let index = PackIndex::decode(POOL, VolumeId(4), pack, whole)?;
        let range = index.range(slots.clone());
        let stored = whole.get(range.start as usize..range.end as usize).unwrap_or_default();
        let mut out = Vec::new();
        index.unpack(slots.clone(), 100 + u64::from(slots.start), stored, &mut out)?;
        Ok(out)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_run_of_blocks_comes_back_as_it_went_in(blocks in prop::collection::vec(0_u64..50, 1..60), from in 0_u32..60, to in 0_u32..60) {
            let (pack, whole) = pack(&blocks);
            let from = from.min(blocks.len() as u32);
            let to = to.clamp(from, blocks.len() as u32);
            let expected: Vec<u8> = blocks[from as usize..to as usize].iter().flat_map(|&seed| block(seed)).collect();
            prop_assert_eq!(read(&pack.reference, &whole, from..to).unwrap(), expected);
        }

        #[test]
        fn a_pack_with_any_byte_changed_never_gives_other_data(blocks in prop::collection::vec(0_u64..50, 1..8), at in any::<prop::sample::Index>(), flip in 1_u8..) {
            let (pack, mut whole) = pack(&blocks);
            let at = at.index(whole.len());
            whole[at] ^= flip;
            let expected: Vec<u8> = blocks.iter().flat_map(|&seed| block(seed)).collect();
            if let Ok(got) = read(&pack.reference, &whole, 0..blocks.len() as u32) {
                prop_assert_eq!(got, expected);
            }
        }
    }

    #[test]
    fn a_valid_pack_of_another_volume_or_with_another_index_is_refused() {
        let (one, whole) = pack(&[1, 2, 3]);
        let (other, _) = pack(&[1, 2, 4]);
        assert_eq!(
            PackIndex::decode(POOL, VolumeId(5), &one.reference, &whole).unwrap_err(),
            Corrupt::Misplaced("volume")
        );
        assert!(matches!(
            PackIndex::decode(POOL, VolumeId(4), &other.reference, &whole).unwrap_err(),
            Corrupt::Checksum(_)
        ));
    }

    #[test]
    fn a_block_at_another_place_of_the_volume_is_refused() {
        let (pack, whole) = pack(&[1, 2, 3]);
        let index = PackIndex::decode(POOL, VolumeId(4), &pack.reference, &whole).unwrap();
        let range = index.range(0..1);
        let stored = &whole[range.start as usize..range.end as usize];
        assert_eq!(index.unpack(0..1, 101, stored, &mut Vec::new()), Err(Corrupt::Misplaced("block")));
    }

    #[test]
    fn noise_is_stored_as_it_is_and_text_is_not() {
        let (noise, _) = pack(&[2; 100]);
        let (text, _) = pack(&[1; 100]);
        assert_eq!(noise.data.len(), 100 * BLOCK_BYTES);
        assert!(text.data.len() < 100 * BLOCK_BYTES / 8, "{} bytes", text.data.len());
    }

    #[test]
    fn a_pack_is_full_before_it_is_larger_than_a_pack_may_be() {
        let mut writer = PackWriter::new(POOL, VolumeId(4), BY, 0);
        let noise = block(2);
        let mut blocks = 0;
        while !writer.is_full() {
            writer.push(blocks, &noise);
            blocks += 1;
        }
        assert_eq!(blocks, (PACK_BYTES / BLOCK_BYTES) as u64);
        assert!(writer.finish().data.len() <= PACK_BYTES);
    }
}
