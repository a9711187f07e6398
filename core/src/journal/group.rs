//! A group of records as blocks, and back.
//!
//! ```text
//!    0 magic "RWJG"            4 checksum of bytes 8..640 of the header     8 checksum of the body (640 .. 640 + body bytes)
//!   12 format u16             14 shard u16
//!   16 boot generation u32    20 lap u32           24 sequence u64          32 first LSN u64
//!   40 records u32            44 body bytes u32    48 blocks u32            52 header checksum of the previous group
//!   56 durable LSN when sealed u64                 64 flags u32             68 volumes in this group u16 | in the previous u16
//!   72 reserved              128 volumes of this group, 64 * u32           384 volumes of the previous group, 64 * u32
//!  640 records
//! ```
//! Both checksums are seeded with pool, shard and boot generation. A list of 0xFFFF volumes means "any".

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::checksum::Seed;
use crate::ids::{Lsn, ShardId, VolumeId};
use crate::limits::BLOCK;
use crate::map::{RECORD_BYTES_MAX, Record};

/// Bytes of the largest group: one registered buffer holds it.
pub const GROUP_BYTES_MAX: usize = 256 << 10;
/// Blocks of the largest group.
pub const GROUP_BLOCKS_MAX: u32 = (GROUP_BYTES_MAX / BLOCK as usize) as u32;

const MAGIC: U32 = U32::from_bytes(*b"RWJG");
const FORMAT: u16 = 1;
const LISTED_MAX: usize = 64;
const ANY: u16 = u16::MAX;
const HEADER_BYTES: usize = 640;
/// Bytes that the header's checksum leaves out: magic and itself.
const UNCHECKED: usize = 8;

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);
const _: () = assert!(HEADER_BYTES + RECORD_BYTES_MAX <= GROUP_BYTES_MAX);

#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawHeader {
    magic: U32,
    crc_header: U32,
    crc_body: U32,
    format: U16,
    shard: U16,
    generation: U32,
    lap: U32,
    sequence: U64,
    lsn_first: U64,
    records: U32,
    body_bytes: U32,
    blocks: U32,
    previous_crc: U32,
    durable: U64,
    flags: U32,
    volumes: U16,
    previous_volumes: U16,
    reserved: [u8; 56],
    listed: [U32; LISTED_MAX],
    previous_listed: [U32; LISTED_MAX],
}

/// The volumes that a group's records are about: at most 64, else any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeList {
    /// These, ascending.
    Some(Vec<VolumeId>),
    /// Too many to list: any volume with a stripe on the shard.
    Any,
}

impl Default for VolumeList {
    fn default() -> VolumeList {
        VolumeList::Some(Vec::new())
    }
}

impl VolumeList {
    /// Adds one.
    pub fn insert(&mut self, volume: VolumeId) {
        let VolumeList::Some(list) = self else { return };
        match list.binary_search(&volume) {
            Ok(_) => {}
            Err(_) if list.len() == LISTED_MAX => *self = VolumeList::Any,
            Err(at) => list.insert(at, volume),
        }
    }

    fn encode(&self, out: &mut [U32; LISTED_MAX]) -> U16 {
        match self {
            VolumeList::Any => ANY.into(),
            VolumeList::Some(list) => {
                out.iter_mut().zip(list).for_each(|(raw, volume)| *raw = volume.0.into());
                (list.len() as u16).into()
            }
        }
    }

    /// A list that makes no sense names nobody, so it means any.
    fn decode(count: U16, listed: &[U32; LISTED_MAX]) -> VolumeList {
        match listed.get(..usize::from(count.get())) {
            Some(listed) => VolumeList::Some(listed.iter().map(|raw| VolumeId(raw.get())).collect()),
            None => VolumeList::Any,
        }
    }
}

/// What the header of a group says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupHeader {
    /// The boot that wrote it.
    pub generation: u32,
    /// How often the ring had been around.
    pub lap: u32,
    /// Number of the group; consecutive over boots.
    pub sequence: u64,
    /// LSN of its first record; the others follow without gaps.
    pub lsn_first: Lsn,
    /// How many records.
    pub records: u32,
    /// Bytes of its records.
    pub body_bytes: u32,
    /// Blocks of the whole group.
    pub blocks: u32,
    /// Header checksum of the group before it; 0 for the first of a pool.
    pub previous_crc: u32,
    /// The journal was durable up to here when this was sealed.
    pub durable: Lsn,
    /// Volumes of its records.
    pub volumes: VolumeList,
    /// Volumes of the previous group's records.
    pub previous_volumes: VolumeList,
    /// Checksum of this header.
    pub crc: u32,
    crc_body: u32,
}

/// Why a block starts no group of this journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadGroup {
    /// No magic: never written, or the inside of a group.
    #[error("no journal group starts here")]
    NoMagic,
    /// Torn, rotten, or of another pool or shard.
    #[error("the header's checksum does not match")]
    HeaderChecksum,
    /// The header is whole and has a value that cannot be.
    #[error("the header has an impossible {0}")]
    Field(&'static str),
}

impl GroupHeader {
    /// The LSN after its last record.
    #[must_use]
    pub fn lsn_end(&self) -> Lsn {
        Lsn(self.lsn_first.0 + u64::from(self.records))
    }

    /// The header at the start of `bytes`, which are all that is left of the region. `seed` is that of pool and shard.
    pub fn decode(bytes: &[u8], shard: ShardId, seed: Seed) -> Result<GroupHeader, BadGroup> {
        let (raw, _) = RawHeader::ref_from_prefix(bytes).map_err(|_| BadGroup::NoMagic)?;
        if raw.magic != MAGIC {
            return Err(BadGroup::NoMagic);
        }
        let seed = seed.generation(u64::from(raw.generation.get()));
        if seed.of(&raw.as_bytes()[UNCHECKED..]) != raw.crc_header.get() {
            return Err(BadGroup::HeaderChecksum);
        }
        let (body, blocks) = (raw.body_bytes.get() as usize, raw.blocks.get());
        let checks = [
            (raw.format.get() == FORMAT, "format version"),
            (raw.shard.get() == shard.0, "shard"),
            (raw.flags.get() == 0, "flag of a later version"),
            ((1..=GROUP_BLOCKS_MAX).contains(&blocks), "number of blocks"),
            (body <= GROUP_BYTES_MAX && (HEADER_BYTES + body).div_ceil(BLOCK as usize) == blocks as usize, "length"),
            (blocks as usize * BLOCK as usize <= bytes.len(), "end beyond the region"),
            (raw.records.get() > 0 && raw.records.get() as usize <= body / 8, "number of records"),
            (raw.sequence.get() > 0 && raw.lsn_first.get() > 0, "sequence"),
            (raw.sequence.get() < u64::MAX / 2 && raw.lsn_first.get() < u64::MAX / 2, "sequence"),
            (raw.durable.get() < raw.lsn_first.get(), "durable LSN"),
        ];
        if let Some(&(_, field)) = checks.iter().find(|(good, _)| !good) {
            return Err(BadGroup::Field(field));
        }
        Ok(GroupHeader {
            generation: raw.generation.get(),
            lap: raw.lap.get(),
            sequence: raw.sequence.get(),
            lsn_first: Lsn(raw.lsn_first.get()),
            records: raw.records.get(),
            body_bytes: raw.body_bytes.get(),
            blocks,
            previous_crc: raw.previous_crc.get(),
            durable: Lsn(raw.durable.get()),
            volumes: VolumeList::decode(raw.volumes, &raw.listed),
            previous_volumes: VolumeList::decode(raw.previous_volumes, &raw.previous_listed),
            crc: raw.crc_header.get(),
            crc_body: raw.crc_body.get(),
        })
    }

    /// The body of the group that starts at `bytes[0]`, if its checksum matches.
    #[must_use]
    pub fn body<'a>(&self, bytes: &'a [u8], seed: Seed) -> Option<&'a [u8]> {
        let body = bytes.get(HEADER_BYTES..HEADER_BYTES + self.body_bytes as usize)?;
        (seed.generation(u64::from(self.generation)).of(body) == self.crc_body).then_some(body)
    }
}

/// Records on their way into the journal, in LSN order without gaps.
#[derive(Clone, Debug, Default)]
pub struct Group {
    body: Vec<u8>,
    lsn_first: Lsn,
    records: u32,
    volumes: VolumeList,
}

impl Group {
    /// Adds a record; `false` if the group is full, which leaves it as it was: seal it and start another.
    ///
    /// # Panics
    /// If `lsn` does not follow the last one.
    #[must_use]
    pub fn push(&mut self, lsn: Lsn, record: &Record) -> bool {
        if HEADER_BYTES + self.body.len() + record.encoded_len() > GROUP_BYTES_MAX {
            return false;
        }
        if self.records == 0 {
            self.lsn_first = lsn;
        }
        assert_eq!(lsn, self.lsn_end(), "LSNs of a group have no gaps");
        record.encode(&mut self.body);
        self.records += 1;
        // A record without a volume frees clusters of some volume that is gone; losing it leaks them and harms nobody.
        if let Some(volume) = record.volume() {
            self.volumes.insert(volume);
        }
        true
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// How many records.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.records
    }

    /// The first record's LSN.
    #[must_use]
    pub fn lsn_first(&self) -> Lsn {
        self.lsn_first
    }

    /// The LSN after the last record's.
    #[must_use]
    pub fn lsn_end(&self) -> Lsn {
        Lsn(self.lsn_first.0 + u64::from(self.records))
    }

    /// Blocks it takes on disk.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        (HEADER_BYTES + self.body.len()).div_ceil(BLOCK as usize) as u32
    }

    pub(super) fn volumes(&self) -> &VolumeList {
        &self.volumes
    }

    /// Writes it to `out`, which is as long as its blocks, and returns the header's checksum.
    pub(super) fn encode(&self, at: &Sealing<'_>, out: &mut [u8]) -> u32 {
        assert!(!self.is_empty() && out.len() == self.blocks() as usize * BLOCK as usize);
        let seed = at.seed.generation(u64::from(at.generation));
        let (mut listed, mut previous_listed) = ([U32::ZERO; LISTED_MAX], [U32::ZERO; LISTED_MAX]);
        let mut header = RawHeader {
            magic: MAGIC,
            crc_header: U32::ZERO,
            crc_body: seed.of(&self.body).into(),
            format: FORMAT.into(),
            shard: at.shard.0.into(),
            generation: at.generation.into(),
            lap: at.lap.into(),
            sequence: at.sequence.into(),
            lsn_first: self.lsn_first.0.into(),
            records: self.records.into(),
            body_bytes: (self.body.len() as u32).into(),
            blocks: self.blocks().into(),
            previous_crc: at.previous_crc.into(),
            durable: at.durable.0.into(),
            flags: U32::ZERO,
            volumes: self.volumes.encode(&mut listed),
            previous_volumes: at.previous_volumes.encode(&mut previous_listed),
            reserved: [0; 56],
            listed,
            previous_listed,
        };
        let crc = seed.of(&header.as_bytes()[UNCHECKED..]);
        header.crc_header = crc.into();
        out.fill(0);
        out[..HEADER_BYTES].copy_from_slice(header.as_bytes());
        out[HEADER_BYTES..HEADER_BYTES + self.body.len()].copy_from_slice(&self.body);
        crc
    }
}

/// What a group's header says beyond its records.
pub(super) struct Sealing<'a> {
    pub(super) seed: Seed,
    pub(super) shard: ShardId,
    pub(super) generation: u32,
    pub(super) lap: u32,
    pub(super) sequence: u64,
    pub(super) previous_crc: u32,
    pub(super) durable: Lsn,
    pub(super) previous_volumes: &'a VolumeList,
}
