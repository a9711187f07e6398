//! Objects of a backend that lies: whatever the bytes are, each is refused or is what its name says, within its bounds.
//!
//! The first byte says what they are taken for, the second whether checksums are made to fit, so that what lies behind them is
//! reached too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway_core::backend::frame::{FRAME_BYTES, decode, encode};
use ringway_core::backend::manifest::{CHUNK_BLOCKS, ChunkMap, Manifest};
use ringway_core::backend::names::{Attempt, Object};
use ringway_core::backend::pack::{PackIndex, PackRef};
use ringway_core::ids::VolumeId;
use uuid::Uuid;

const POOL: Uuid = Uuid::from_u128(1);
const BY: Attempt = Attempt { id: 1, nonce: 2 };

fuzz_target!(|bytes: &[u8]| {
    let [kind, forge, bytes @ ..] = bytes else { return };
    let object = match kind % 3 {
        0 => Object::Pack { by: BY, sequence: 3 },
        1 => Object::Map { by: BY, sequence: 3 },
        _ => Object::Manifest(BY),
    };
    let forged;
    let bytes = if forge % 2 == 1 {
        // A frame of ours around a body of theirs.
        forged = ringway_core::backend::frame::forge(POOL, object, forge / 2 % 2, bytes);
        &forged[..]
    } else {
        bytes
    };
    match kind % 3 {
        0 => pack(bytes),
        1 => map(object, bytes),
        _ => manifest(object, bytes),
    }
});

fn pack(bytes: &[u8]) {
    let head = bytes.len().min(1 << 16);
    let crc = ringway_core::backend::frame::reference_crc(&bytes[..head]);
    for blocks in 0..4 {
        let reference = PackRef { by: BY, sequence: 3, blocks, index_bytes: head as u32, index_crc: crc };
        let Ok(index) = PackIndex::decode(POOL, VolumeId(4), &reference, &bytes[..head]) else { continue };
        assert!(head >= FRAME_BYTES);
        let whole = index.range(0..blocks);
        assert_eq!(whole.end, index.object_bytes());
        let stored = vec![kind_of(bytes); (whole.end - whole.start) as usize];
        let mut out = Vec::new();
        if index.unpack(0..blocks, 0, &stored, &mut out).is_ok() {
            assert_eq!(out.len(), blocks as usize * 4096);
        }
    }
}

fn kind_of(bytes: &[u8]) -> u8 {
    bytes.last().copied().unwrap_or(0)
}

fn map(object: Object, bytes: &[u8]) {
    let Ok(decoded) = decode::<ChunkMap>(POOL, object, bytes) else { return };
    let map = decoded.body;
    if map.check(map.chunk).is_err() {
        return;
    }
    let mut end = 0;
    for extent in map.lookup(0..CHUNK_BLOCKS) {
        assert!(extent.start >= end && extent.end() <= CHUNK_BLOCKS && extent.count > 0);
        assert!(extent.slot + extent.count <= map.packs[extent.pack as usize].blocks);
        end = extent.end();
    }
    let again = encode(POOL, object, &map);
    assert_eq!(decode::<ChunkMap>(POOL, object, &again).expect("what was written is read").body, map);
}

fn manifest(object: Object, bytes: &[u8]) {
    let Ok(decoded) = decode::<Manifest>(POOL, object, bytes) else { return };
    let manifest = decoded.body;
    if manifest.check().is_err() {
        return;
    }
    for chunk in &manifest.chunks {
        assert_eq!(manifest.chunk(chunk.chunk), Some(chunk));
        assert!(chunk.range().start <= chunk.range().end);
    }
    let again = encode(POOL, object, &manifest);
    assert_eq!(decode::<Manifest>(POOL, object, &again).expect("what was written is read").body, manifest);
}
