//! A map node as pages of 4 KiB, and back.
//!
//! Page 0 has the 128 newest versions and up to 40 older ones, each further page up to 168. Pages are copy-on-write; the
//! checksum of a page stands in the page table, so that a lost or misdirected write is seen (C8), and is seeded with pool,
//! shard and generation. Each page also says which it is, for the inspector.

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::node::{MapNode, NodeKey};
use super::table::NodePages;
use super::version::RawVersion;
use crate::checksum::Seed;
use crate::ids::Lsn;
use crate::limits::CLUSTERS_PER_RANGE;
use crate::space::Geometry;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;

const MAGIC: u32 = u32::from_le_bytes(*b"RWMP");
const FORMAT: u16 = 1;
const CLUSTERS: usize = CLUSTERS_PER_RANGE as usize;
const OLDER_FIRST: usize = 40;
const OLDER_NEXT: usize = 168;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: U32,
    format: U16,
    /// Number of the page in its node.
    nth: U16,
    volume: U32,
    range: U32,
    /// Of the checkpoint it was written for.
    generation: U64,
    /// Newest change it has.
    last_lsn: U64,
    /// Pages of the node.
    pages: U16,
    /// Older versions on this page.
    older: U16,
    reserved: [u8; 28],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FirstPage {
    header: Header,
    newest: [RawVersion; CLUSTERS],
    older: [RawVersion; OLDER_FIRST],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct NextPage {
    header: Header,
    older: [RawVersion; OLDER_NEXT],
}

const _: () = assert!(size_of::<Header>() == 64);
const _: () = assert!(size_of::<FirstPage>() == PAGE_BYTES);
const _: () = assert!(size_of::<NextPage>() == PAGE_BYTES);

/// Why pages are not the node that the page table promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadPage {
    /// The page table lists another number of pages than were given, or none.
    #[error("{found} pages where the page table lists {expected}")]
    Count {
        /// Given.
        found: usize,
        /// Listed.
        expected: usize,
    },
    /// The bytes are not those that were written.
    #[error("page {nth} has checksum {found:#010x}, the page table says {expected:#010x}")]
    Checksum {
        /// Which page.
        nth: usize,
        /// Computed.
        found: u32,
        /// Listed.
        expected: u32,
    },
    /// A page with the right checksum says it is another one, or has a value that cannot be.
    #[error("page {nth} has an impossible {field}")]
    Field {
        /// Which page.
        nth: usize,
        /// Which field.
        field: &'static str,
    },
}

impl MapNode {
    /// Pages it takes on disk.
    #[must_use]
    pub fn page_count(&self) -> usize {
        1 + self.older_count().saturating_sub(OLDER_FIRST).div_ceil(OLDER_NEXT)
    }
}

/// Writes page `nth` of `node` to `out` and returns its checksum for the page table. `seed` is that of pool and shard.
///
/// # Panics
/// If `out` is no page, or the node has no such page.
pub fn encode_node(node: &MapNode, nth: usize, generation: u64, seed: Seed, out: &mut [u8]) -> u32 {
    assert!(out.len() == PAGE_BYTES && nth < node.page_count(), "page {nth} of {}", node.page_count());
    let (skip, room) = if nth == 0 { (0, OLDER_FIRST) } else { (OLDER_FIRST + (nth - 1) * OLDER_NEXT, OLDER_NEXT) };
    let header = Header {
        magic: MAGIC.into(),
        format: FORMAT.into(),
        nth: (nth as u16).into(),
        volume: node.key().volume.0.into(),
        range: node.key().range.into(),
        generation: generation.into(),
        last_lsn: node.last_lsn().0.into(),
        pages: u16::try_from(node.page_count()).expect("a node has less than 65536 pages").into(),
        older: ((node.older_count() - skip).min(room) as u16).into(),
        reserved: [0; 28],
    };
    out.fill(0);
    let older = node.older().skip(skip).map(|(index, version)| RawVersion::of(version, index));
    if nth == 0 {
        let page = FirstPage::mut_from_bytes(out).expect("a page");
        page.header = header;
        for (index, raw) in page.newest.iter_mut().enumerate() {
            *raw = node.newest(index as u32).map_or(RawVersion::EMPTY, |version| RawVersion::of(version, index as u8));
        }
        page.older.iter_mut().zip(older).for_each(|(raw, version)| *raw = version);
    } else {
        let page = NextPage::mut_from_bytes(out).expect("a page");
        page.header = header;
        page.older.iter_mut().zip(older).for_each(|(raw, version)| *raw = version);
    }
    seed.generation(generation).of(out)
}

/// The node that `pages` hold, checked against its entry in the page table: checksum, identity, and every field.
pub fn decode_node(
    key: NodeKey,
    entry: &NodePages,
    pages: &[&[u8]],
    seed: Seed,
    geometry: &Geometry,
) -> Result<MapNode, BadPage> {
    if pages.len() != entry.len() {
        return Err(BadPage::Count { found: pages.len(), expected: entry.len() });
    }
    let mut node = MapNode::new(key);
    for (nth, (&bytes, listed)) in pages.iter().zip(entry.iter()).enumerate() {
        let bad = |field| BadPage::Field { nth, field };
        let found = seed.generation(entry.generation).of(bytes);
        if found != listed.crc {
            return Err(BadPage::Checksum { nth, found, expected: listed.crc });
        }
        let (header, newest, older): (_, &[RawVersion], &[RawVersion]) = if nth == 0 {
            let page = FirstPage::ref_from_bytes(bytes).map_err(|_| bad("length"))?;
            (&page.header, &page.newest, &page.older)
        } else {
            let page = NextPage::ref_from_bytes(bytes).map_err(|_| bad("length"))?;
            (&page.header, &[], &page.older)
        };
        check_header(header, key, entry, nth, older.len())?;
        if nth == 0 {
            node = MapNode::loaded(key, Lsn(header.last_lsn.get()));
        } else if header.last_lsn.get() != node.last_lsn().0 {
            return Err(bad("LSN"));
        }
        for (index, raw) in newest.iter().enumerate().filter(|(_, raw)| raw.birth.get() != 0) {
            node.set(index as u32, raw.check(geometry).ok_or(bad("newest version"))?);
        }
        for raw in &older[..usize::from(header.older.get())] {
            let version = raw.check(geometry).ok_or(bad("older version"))?;
            if usize::from(raw.cluster) >= CLUSTERS {
                return Err(bad("cluster of an older version"));
            }
            let above = node.newest(u32::from(raw.cluster));
            if above.is_none_or(|above| above.birth <= version.birth) {
                return Err(bad("order of versions"));
            }
            node.set(u32::from(raw.cluster), version);
        }
    }
    if node.page_count() != entry.len() {
        return Err(BadPage::Count { found: entry.len(), expected: node.page_count() });
    }
    Ok(node)
}

fn check_header(header: &Header, key: NodeKey, entry: &NodePages, nth: usize, room: usize) -> Result<(), BadPage> {
    let checks = [
        (header.magic.get() == MAGIC, "magic"),
        (header.format.get() == FORMAT, "format version"),
        (usize::from(header.nth.get()) == nth, "page number"),
        (header.volume.get() == key.volume.0, "volume"),
        (header.range.get() == key.range, "range"),
        (header.generation.get() == entry.generation, "generation"),
        (usize::from(header.pages.get()) == entry.len(), "number of pages"),
        (usize::from(header.older.get()) <= room, "number of older versions"),
    ];
    match checks.iter().find(|(good, _)| !good) {
        Some(&(_, field)) => Err(BadPage::Field { nth, field }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, ShardId, VolumeId};
    use crate::map::record::tests::{geometry, version};
    use crate::map::{PageRef, Record};
    use crate::space::Place;
    use proptest::prelude::*;
    use uuid::Uuid;

    const KEY: NodeKey = NodeKey { volume: VolumeId(7), range: 3 };

    fn seed() -> Seed {
        Seed::pool(Uuid::from_u128(5)).shard(ShardId(2))
    }

    fn written(node: &MapNode, generation: u64) -> (NodePages, Vec<Vec<u8>>) {
        let mut refs = Vec::new();
        let mut pages = Vec::new();
        for nth in 0..node.page_count() {
            let mut page = vec![0xEE; PAGE_BYTES];
            let crc = encode_node(node, nth, generation, seed(), &mut page);
            refs.push(PageRef { place: Place::new(0, 0, (1 << 20) + nth as u64 * 4096), crc });
            pages.push(page);
        }
        (NodePages::new(generation, refs), pages)
    }

    fn read(key: NodeKey, entry: &NodePages, pages: &[Vec<u8>]) -> Result<MapNode, BadPage> {
        decode_node(key, entry, &pages.iter().map(Vec::as_slice).collect::<Vec<_>>(), seed(), &geometry())
    }

    /// A clean node with up to several pages of versions.
    fn node() -> impl Strategy<Value = MapNode> {
        proptest::collection::vec((0u32..128, 1u64..500, version()), 0..700).prop_map(|versions| {
            let mut node = MapNode::new(KEY);
            for (lsn, (index, birth, version)) in versions.into_iter().enumerate() {
                // Most in few clusters, so that there are many pages.
                let index = if lsn % 4 == 0 { index } else { index % 3 };
                let version = super::super::Version { birth: Epoch(birth), ..version };
                let (volume, cluster) = (KEY.volume, KEY.cluster(index));
                node.apply(Lsn(lsn as u64 + 1), &Record::Set { volume, cluster, version, freed: Place::NONE });
            }
            node.begin_write();
            node.end_write(true);
            node
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn a_node_comes_back_from_its_pages_as_it_was(node in node(), generation: u64) {
            let (entry, pages) = written(&node, generation);
            prop_assert_eq!(read(KEY, &entry, &pages), Ok(node));
        }

        #[test]
        fn c8_a_torn_lost_or_misdirected_page_is_noticed(
            node in node(), page: prop::sample::Index, bit in 0usize..PAGE_BYTES * 8,
        ) {
            let (entry, mut pages) = written(&node, 4);
            let page = page.index(pages.len());
            pages[page][bit / 8] ^= 1 << (bit % 8);
            prop_assert!(matches!(read(KEY, &entry, &pages), Err(BadPage::Checksum { .. })), "a changed bit");
            let (_, pages) = written(&node, 5);
            prop_assert!(read(KEY, &entry, &pages).is_err(), "another generation");
        }

        #[test]
        fn a_page_forged_with_a_right_checksum_gives_a_sound_node_or_an_error(
            node in node(), at in 0usize..PAGE_BYTES, bytes in proptest::collection::vec(any::<u8>(), 1..24),
        ) {
            let (entry, mut pages) = written(&node, 4);
            for (n, byte) in bytes.into_iter().enumerate() {
                pages[0][(at + n) % PAGE_BYTES] = byte;
            }
            let refs = entry.iter().zip(&pages).map(|(listed, page)| {
                PageRef { place: listed.place, crc: seed().generation(4).of(page) }
            });
            let forged = NodePages::new(4, refs.collect());
            if let Ok(node) = read(KEY, &forged, &pages) {
                prop_assert!(node.versions().all(|(_, version)| version.is_sound()));
            }
        }
    }

    #[test]
    fn a_page_of_another_node_is_refused_even_with_its_own_checksum() {
        let (entry, pages) = written(&MapNode::new(KEY), 1);
        let other = NodeKey { volume: VolumeId(8), ..KEY };
        assert_eq!(read(other, &entry, &pages), Err(BadPage::Field { nth: 0, field: "volume" }));
        assert_eq!(read(KEY, &entry, &[]), Err(BadPage::Count { found: 0, expected: 1 }));
    }
}
