//! Checkpoints through their whole way to bytes and back, and what rot does to them.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::checkpoint::*;
use crate::checksum::Seed;
use crate::ids::{Lsn, ShardId};
use crate::journal::Position;
use crate::space::SlabArea;

const SHARD: ShardId = ShardId(1);

fn geometry() -> Geometry {
    Geometry::new(4 << 20, vec![SlabArea { start: 1 << 20, slabs: 400 }])
}

fn seed() -> Seed {
    Seed::pool(Uuid::from_u128(4)).shard(SHARD)
}

fn image(nodes: u32, slabs: u32) -> Image {
    let mut image = Image::default();
    let page = |n: u32| geometry().place(SlabId::new(0, n / 64 % 400), n % 64).page(n % 16);
    for n in 0..nodes {
        let key = NodeKey { volume: VolumeId(1 + n % 3), range: n };
        let pages = (0..=n % 5 / 4).map(|more| PageRef { place: page(n + more), crc: n ^ more }).collect();
        image.table.insert(key, NodePages::new(u64::from(n), pages));
    }
    for n in 0..slabs {
        image.bitmaps.push(SlabBitmap { slab: SlabId::new(0, n), words: vec![u64::from(n) << 7] });
    }
    image
}

/// Header and every chunk by level and number, as if on disk.
fn written(image: &Image, generation: u64) -> (CheckpointHeader, Vec<Vec<Vec<u8>>>) {
    let start = Position { block: 5, sequence: 9, lsn: Lsn(77) };
    let mut chunks = Chunks::image(
        encode_image(&image.table, &image.bitmaps, &image.mapped, &image.tidied),
        SHARD,
        generation,
        seed(),
    );
    let image_bytes = chunks.stream_bytes();
    let mut levels = Vec::new();
    let mut next_cluster = 0;
    loop {
        let (mut bytes, mut refs) = (Vec::new(), Vec::new());
        for nth in 0..chunks.count() {
            let mut out = vec![0xAA; chunks.bytes(nth)];
            let place = geometry().place(SlabId::new(0, next_cluster / 64), next_cluster % 64);
            refs.push(chunks.encode(nth, place, &mut out));
            bytes.push(out);
            next_cluster += 1;
        }
        levels.push(bytes);
        if refs.len() <= CHUNKS_MAX {
            let level = chunks.level();
            return (CheckpointHeader { generation, boot: 3, start, level, image_bytes, chunks: refs }, levels);
        }
        chunks = Chunks::index(&chunks, &refs);
    }
}

#[derive(Debug)]
#[expect(dead_code, reason = "printed when a test fails")]
enum Bad {
    Chunk(BadChunk),
    Image(BadImage),
}

fn read(header: &CheckpointHeader, levels: &[Vec<Vec<u8>>]) -> Result<Image, Bad> {
    let mut refs = header.chunks.clone();
    for level in (0..=header.level).rev() {
        let bytes: Vec<_> = levels[usize::from(level)].iter().map(Vec::as_slice).collect();
        let stream = join_chunks(header, level, &refs, &bytes, SHARD, seed()).map_err(Bad::Chunk)?;
        if level == 0 {
            return decode_image(&stream, &geometry()).map_err(Bad::Image);
        }
        refs = decode_index(&stream, &geometry()).map_err(Bad::Chunk)?;
    }
    unreachable!("level 0 is read last")
}

#[test]
fn images_of_every_size_come_back_as_they_were_written() {
    for (nodes, slabs, level) in [(0, 0, 0), (1, 1, 0), (5000, 100, 0), (500_000, 400, 1)] {
        let image = image(nodes, slabs);
        let (header, levels) = written(&image, 6);
        assert_eq!(header.level, level, "{nodes} nodes");
        assert_eq!(read(&header, &levels).unwrap(), image);
    }
}

#[test]
fn an_empty_stream_is_the_image_that_format_leaves() {
    let header = CheckpointHeader::first(1);
    assert_eq!(read(&header, &[vec![]]).unwrap(), Image::default());
    assert_eq!(header.start, Position::FIRST);
}

fn ring(headers: &[&CheckpointHeader]) -> Vec<u8> {
    let mut ring = vec![0; RING_BYTES];
    for header in headers {
        let at = header.slot() as usize;
        header.encode(SHARD, seed(), &mut ring[at..at + HEADER_BYTES]);
    }
    ring
}

#[test]
fn the_newest_whole_header_counts_and_a_torn_one_falls_back_to_the_one_before() {
    let headers: Vec<_> = (1..=11).map(|generation| written(&image(10, 2), generation).0).collect();
    let mut ring = ring(&headers.iter().collect::<Vec<_>>());
    let found = read_ring(&ring, SHARD, seed(), &geometry());
    assert_eq!(found.newest_first.iter().map(|h| h.generation).collect::<Vec<_>>(), [11, 10, 9, 8, 7, 6, 5, 4]);
    assert_eq!((&found.newest_first[0], found.damaged.len()), (&headers[10], 0));
    ring[headers[10].slot() as usize + 3000] ^= 1;
    let found = read_ring(&ring, SHARD, seed(), &geometry());
    assert_eq!((&found.newest_first[0], &found.damaged[..]), (&headers[9], &[(3, BadHeader::Checksum)][..]));
}

#[test]
fn a_header_of_another_shard_or_in_another_slot_is_refused() {
    let header = written(&image(10, 2), 5).0;
    let good = ring(&[&header]);
    let other = ShardId(2);
    let found = read_ring(&good, other, Seed::pool(Uuid::from_u128(4)).shard(other), &geometry());
    assert_eq!((found.newest_first.len(), found.damaged.len()), (0, 1));
    let mut moved = vec![0; RING_BYTES];
    let at = header.slot() as usize;
    moved[..HEADER_BYTES].copy_from_slice(&good[at..at + HEADER_BYTES]);
    assert_eq!(read_ring(&moved, SHARD, seed(), &geometry()).newest_first, []);
}

proptest! {
    #[test]
    fn any_changed_bit_of_a_header_or_chunk_is_noticed(bit in 0usize..HEADER_BYTES * 8, chunk_bit: prop::sample::Index) {
        let (header, mut levels) = written(&image(300, 3), 5);
        let mut ring = ring(&[&header]);
        ring[header.slot() as usize + bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(read_ring(&ring, SHARD, seed(), &geometry()).newest_first, []);
        let bit = chunk_bit.index(levels[0][0].len() * 8);
        levels[0][0][bit / 8] ^= 1 << (bit % 8);
        prop_assert!(matches!(read(&header, &levels), Err(Bad::Chunk(BadChunk::Checksum { .. }))), "not noticed");
    }

    #[test]
    fn a_hostile_stream_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 1u32..3) {
        let mut stream = Vec::new();
        section(&mut stream, kind, MUST_UNDERSTAND, |out| out.extend(&bytes[..bytes.len() / 8 * 8]));
        let _ = decode_image(&stream, &geometry());
        let _ = decode_image(&bytes, &geometry());
    }

    #[test]
    fn a_truncated_or_changed_stream_is_an_error_or_an_image(at: prop::sample::Index, with: u8, cut: prop::sample::Index) {
        let image = image(50, 3);
        let stream = encode_image(&image.table, &image.bitmaps, &image.mapped, &image.tidied);
        let mut changed = stream.clone();
        changed[at.index(stream.len())] = with;
        let _ = decode_image(&changed, &geometry());
        let cut = cut.index(stream.len());
        if let Ok(short) = decode_image(&stream[..cut], &geometry()) {
            prop_assert!(short.bitmaps.is_empty(), "cut at {} of {}", cut, stream.len());
        }
    }
}

#[test]
fn a_section_of_a_later_version_is_skipped_only_where_it_may_be() {
    let mut stream = encode_image(&PageTable::default(), &[], &MappedCounts::default(), &[]);
    stream.extend(9u32.to_le_bytes());
    stream.extend(0u32.to_le_bytes());
    stream.extend(8u64.to_le_bytes());
    stream.extend([1; 8]);
    assert_eq!(decode_image(&stream, &geometry()), Ok(Image::default()));
    let at = stream.len() - 20;
    stream[at] = 1;
    assert_eq!(decode_image(&stream, &geometry()), Err(BadImage::Unknown(9)));
}
