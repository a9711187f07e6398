//! The first 64 bytes of every object and of every piece of a map: what it is, whose it is, and the checksum of what follows.
//!
//! What a backend returns is taken for hostile: nothing of an object is used before its frame was checked against the name
//! under which it was asked for, and no length in it is trusted beyond the bytes that are there.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use uuid::Uuid;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::names::{Attempt, Object};

/// Bytes of a frame.
pub const FRAME_BYTES: usize = size_of::<Frame>();
/// Written into every object; a reader refuses what is newer.
pub const FORMAT_VERSION: u16 = 1;
/// The body is postcard, as it is.
pub const BODY_PLAIN: u8 = 0;
/// The body is a length (u32) and then postcard compressed by LZ4's block format.
pub const BODY_LZ4: u8 = 1;
/// The largest body after decompression: a map of a whole chunk in single blocks fits.
const BODY_BYTES_MAX: usize = 64 << 20;

const MAGIC: [u8; 8] = *b"RINGWAYB";

/// What an object is, as its frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Pack = 1,
    Map = 2,
    Manifest = 3,
    Marker = 4,
    Tombstone = 5,
    Reference = 6,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Frame {
    magic: [u8; 8],
    version: U16,
    kind: u8,
    /// [`BODY_PLAIN`] or [`BODY_LZ4`].
    compression: u8,
    /// The key that encrypts it; 0: none. Nothing else yet.
    key: U32,
    pool: [u8; 16],
    attempt: U64,
    nonce: U32,
    sequence: U32,
    /// Bytes of the body that follows, as stored.
    body_bytes: U32,
    /// Of the body as stored, seeded with the bytes of this frame up to here.
    body_crc: U32,
    /// 0.
    reserved: U32,
    /// Of this frame up to here.
    crc: U32,
}

const _: () = assert!(FRAME_BYTES == 64);

/// Why an object is not what its name says.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Corrupt {
    #[error("it has {got} bytes where at least {wanted} are needed")]
    Short { got: usize, wanted: usize },
    #[error("it is not an object of ringway's")]
    Foreign,
    #[error("its format has version {0}; this ringway reads version {FORMAT_VERSION}")]
    Newer(u16),
    #[error("its {0} does not match its checksum")]
    Checksum(&'static str),
    #[error("it is another object: its {0} is not that of its name")]
    Misplaced(&'static str),
    #[error("it is encrypted with key {0}, and this ringway has no keys")]
    Encrypted(u32),
    #[error("{0}")]
    Nonsense(&'static str),
}

/// The identity of a frame: kind, attempt and number.
fn identity(object: Object) -> (Kind, Attempt, u32) {
    let kind = match object {
        Object::Manifest(_) => Kind::Manifest,
        Object::Marker(_) => Kind::Marker,
        Object::Tombstone(_) => Kind::Tombstone,
        Object::Reference { .. } => Kind::Reference,
        Object::Pack { .. } => Kind::Pack,
        Object::Map { .. } => Kind::Map,
    };
    let sequence = match object {
        Object::Pack { sequence, .. } | Object::Map { sequence, .. } => sequence,
        _ => 0,
    };
    (kind, object.attempt(), sequence)
}

/// A frame and its body: the whole of a small object, the index of a pack, or a piece of a map.
pub fn encode<T: Serialize>(pool: Uuid, object: Object, body: &T) -> Vec<u8> {
    let plain = postcard::to_stdvec(body).expect("our own structures can be written");
    let packed = lz4_flex::compress_prepend_size(&plain);
    let (compression, body) = if packed.len() < plain.len() { (BODY_LZ4, packed) } else { (BODY_PLAIN, plain) };
    forge(pool, object, compression, &body)
}

/// A frame around any body: valid checksums say nothing of what they cover, and readers are tested with that.
pub fn forge(pool: Uuid, object: Object, compression: u8, body: &[u8]) -> Vec<u8> {
    let (kind, attempt, sequence) = identity(object);
    let mut frame = Frame {
        magic: MAGIC,
        version: U16::new(FORMAT_VERSION),
        kind: kind as u8,
        compression,
        key: U32::new(0),
        pool: *pool.as_bytes(),
        attempt: U64::new(attempt.id),
        nonce: U32::new(attempt.nonce),
        sequence: U32::new(sequence),
        body_bytes: U32::new(u32::try_from(body.len()).expect("bodies are bounded")),
        body_crc: U32::new(0),
        reserved: U32::new(0),
        crc: U32::new(0),
    };
    frame.body_crc = U32::new(body_crc(&frame, body));
    frame.crc = U32::new(header_crc(&frame));
    let mut bytes = Vec::with_capacity(FRAME_BYTES + body.len());
    bytes.extend_from_slice(frame.as_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn body_crc(frame: &Frame, body: &[u8]) -> u32 {
    let before = std::mem::offset_of!(Frame, body_crc);
    crc32c::crc32c_append(crc32c::crc32c(&frame.as_bytes()[..before]), body)
}

fn header_crc(frame: &Frame) -> u32 {
    crc32c::crc32c(&frame.as_bytes()[..FRAME_BYTES - size_of::<U32>()])
}

/// A body that was checked, and where it ended.
#[derive(Debug)]
pub struct Decoded<T> {
    /// What it says.
    pub body: T,
    /// Bytes of frame and body: what follows them is not covered by their checksum.
    pub bytes: usize,
    /// The checksum of frame and body, by which others refer to them.
    pub crc: u32,
}

/// The checksum by which others refer to an encoded frame and body.
#[must_use]
pub fn reference_crc(encoded: &[u8]) -> u32 {
    crc32c::crc32c(encoded)
}

/// Reads a frame and its body at the start of `bytes`, as the object of this name.
pub fn decode<T: DeserializeOwned>(pool: Uuid, object: Object, bytes: &[u8]) -> Result<Decoded<T>, Corrupt> {
    let short = |wanted| Corrupt::Short { got: bytes.len(), wanted };
    let (frame, rest) = Frame::read_from_prefix(bytes).map_err(|_| short(FRAME_BYTES))?;
    if frame.magic != MAGIC {
        return Err(Corrupt::Foreign);
    }
    if header_crc(&frame) != frame.crc.get() {
        return Err(Corrupt::Checksum("header"));
    }
    if frame.version.get() != FORMAT_VERSION {
        return Err(Corrupt::Newer(frame.version.get()));
    }
    if frame.key.get() != 0 {
        return Err(Corrupt::Encrypted(frame.key.get()));
    }
    check_identity(&frame, pool, object)?;
    let wanted = frame.body_bytes.get() as usize;
    let body = rest.get(..wanted).ok_or_else(|| short(FRAME_BYTES + wanted))?;
    if body_crc(&frame, body) != frame.body_crc.get() {
        return Err(Corrupt::Checksum("body"));
    }
    let bytes_in_all = FRAME_BYTES + wanted;
    Ok(Decoded {
        body: read_body(frame.compression, body)?,
        bytes: bytes_in_all,
        crc: reference_crc(&bytes[..bytes_in_all]),
    })
}

fn check_identity(frame: &Frame, pool: Uuid, object: Object) -> Result<(), Corrupt> {
    let (kind, attempt, sequence) = identity(object);
    if frame.kind != kind as u8 {
        return Err(Corrupt::Misplaced("kind"));
    }
    if frame.pool != *pool.as_bytes() {
        return Err(Corrupt::Misplaced("pool"));
    }
    if (frame.attempt.get(), frame.nonce.get()) != (attempt.id, attempt.nonce) {
        return Err(Corrupt::Misplaced("attempt"));
    }
    if frame.sequence.get() != sequence {
        return Err(Corrupt::Misplaced("number"));
    }
    Ok(())
}

fn read_body<T: DeserializeOwned>(compression: u8, body: &[u8]) -> Result<T, Corrupt> {
    let plain;
    let body = match compression {
        BODY_PLAIN => body,
        BODY_LZ4 => {
            plain = decompress(body)?;
            &plain
        }
        _ => return Err(Corrupt::Nonsense("its body is compressed in a way that this ringway does not know")),
    };
    let (value, rest) = postcard::take_from_bytes(body)
        .map_err(|_| Corrupt::Nonsense("its body has a valid checksum and no meaning"))?;
    if !rest.is_empty() {
        return Err(Corrupt::Nonsense("its body goes on after its end"));
    }
    Ok(value)
}

fn decompress(body: &[u8]) -> Result<Vec<u8>, Corrupt> {
    let nonsense = Corrupt::Nonsense("its body cannot be decompressed");
    let Some((length, packed)) = body.split_first_chunk::<4>() else { return Err(nonsense) };
    let length = u32::from_le_bytes(*length) as usize;
    // LZ4 makes at most 255 bytes of one: a length beyond that lies, and is not allocated.
    if length > BODY_BYTES_MAX || length > packed.len().saturating_mul(255) {
        return Err(nonsense);
    }
    let plain = lz4_flex::decompress(packed, length).map_err(|_| nonsense.clone())?;
    if plain.len() == length { Ok(plain) } else { Err(nonsense) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: Object = Object::Pack { by: Attempt { id: 5, nonce: 6 }, sequence: 7 };

    fn encoded() -> Vec<u8> {
        encode(Uuid::from_u128(1), OBJECT, &vec![1_u64, 2, 3])
    }

    #[test]
    fn what_was_written_is_read_again_also_with_bytes_behind_it() {
        for length in [0, 1, 5000] {
            let body: Vec<u64> = (0..length).map(|n| n / 7).collect();
            let mut bytes = encode(Uuid::from_u128(1), OBJECT, &body);
            let (end, crc) = (bytes.len(), reference_crc(&bytes));
            bytes.extend_from_slice(b"blocks");
            let decoded: Decoded<Vec<u64>> = decode(Uuid::from_u128(1), OBJECT, &bytes).unwrap();
            assert_eq!((decoded.body, decoded.bytes, decoded.crc), (body, end, crc));
        }
    }

    #[test]
    fn any_bit_that_flips_is_seen() {
        let whole = encoded();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<Vec<u64>>(Uuid::from_u128(1), OBJECT, &bytes).is_err(), "bit {bit}");
        }
        for length in 0..whole.len() {
            let cut = decode::<Vec<u64>>(Uuid::from_u128(1), OBJECT, &whole[..length]);
            assert!(matches!(cut, Err(Corrupt::Short { .. })), "{length} bytes: {cut:?}");
        }
    }

    #[test]
    fn a_valid_object_under_another_name_is_refused() {
        let whole = encoded();
        let by = Attempt { id: 5, nonce: 6 };
        let read = |pool: u128, object| decode::<Vec<u64>>(Uuid::from_u128(pool), object, &whole).unwrap_err();
        assert_eq!(read(2, OBJECT), Corrupt::Misplaced("pool"));
        assert_eq!(read(1, Object::Map { by, sequence: 7 }), Corrupt::Misplaced("kind"));
        assert_eq!(read(1, Object::Pack { by, sequence: 8 }), Corrupt::Misplaced("number"));
        assert_eq!(
            read(1, Object::Pack { by: Attempt { id: 5, nonce: 5 }, sequence: 7 }),
            Corrupt::Misplaced("attempt")
        );
    }

    #[test]
    fn a_length_that_lies_costs_no_memory() {
        let mut body = u32::MAX.to_le_bytes().to_vec();
        body.extend_from_slice(&[0; 64]);
        assert!(decompress(&body).is_err());
        assert!(decompress(&[1]).is_err());
    }
}
