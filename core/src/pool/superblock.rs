//! The superblock: who a device is, and where everything is. Two copies a device, static but for the generation (H14).
//!
//! ```text
//!   0 magic "RINGWAY\0"     8 checksum of bytes 12..4096   12 format version u32
//!  16 compatible features u64       24 read-only-compatible u64      32 incompatible u64
//!  40 pool UUID            56 device UUID         72 device number u16    74 devices u16     76 shards u16    78 zero
//!  80 device bytes u64     88 block bytes u32     92 power-fail atomic unit u32              96 flags u32 (1: 4 KiB assumed atomic)
//! 100 cluster bytes u32   104 slab bytes u64     112 slab area start u64                    120 slabs u32
//! 124 reserve, clusters a shard u32             128 checkpoint rings start u64              136 catalog A u64   144 catalog B u64
//! 152 catalog copy bytes u64                    160 journals start u64                      168 journal bytes u64
//! 176 boot generation u32 180 zero             184 created, seconds since 1970 u64          192 reserved
//! ```
//! Offsets are bytes from the start of the device; those from 128 to 176 are of device 0 and 0 elsewhere. The checksum has no
//! seed, since the pool is not known before.

use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::error::BadSuperblock;
use super::layout::{JOURNAL_BYTES_MAX, SLAB_BYTES_MAX, SLAB_BYTES_MIN, SUPERBLOCK_AREA, slab_end};
use crate::catalog::COPY_BYTES;
use crate::limits::{BLOCK, CLUSTER, DEVICES_MAX, SHARDS_MAX};
use crate::space::{SLABS_PER_DEVICE_MAX, SlabArea};

const MAGIC: [u8; 8] = *b"RINGWAY\0";
/// Version of the format that is written, and the only one that is read.
pub const FORMAT: u32 = 1;
const UNCHECKED: usize = 12;
const ASSUMED: u32 = 1;

/// Features that this version has: none beyond the first format's.
const INCOMPATIBLE: u64 = 0;
const RO_COMPATIBLE: u64 = 0;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    crc: U32,
    version: U32,
    compatible: U64,
    ro_compatible: U64,
    incompatible: U64,
    pool: [u8; 16],
    uuid: [u8; 16],
    number: U16,
    devices: U16,
    shards: U16,
    zero: U16,
    bytes: U64,
    block: U32,
    atomic_unit: U32,
    flags: U32,
    cluster: U32,
    slab_bytes: U64,
    slab_start: U64,
    slabs: U32,
    reserve: U32,
    checkpoints: U64,
    catalog: [U64; 2],
    catalog_bytes: U64,
    journals: U64,
    journal_bytes: U64,
    generation: U32,
    zero_too: U32,
    created: U64,
    reserved: [[u8; 976]; 4],
}

const _: () = assert!(size_of::<Raw>() == BLOCK as usize);
const _: () = assert!(std::mem::offset_of!(Raw, bytes) == 80 && std::mem::offset_of!(Raw, generation) == 176);

/// Features of a pool that later versions may add. A pool with an unknown incompatible one is not opened, with an unknown
/// read-only-compatible one only for reading; unknown compatible ones do not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// May be ignored.
    pub compatible: u64,
    /// May be ignored by readers.
    pub ro_compatible: u64,
    /// May not be ignored.
    pub incompatible: u64,
}

/// What one device says of itself and of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Features of later versions.
    pub flags: Flags,
    /// The pool.
    pub pool: Uuid,
    /// This device.
    pub uuid: Uuid,
    /// Its number.
    pub number: u16,
    /// Devices of the pool when this device joined it.
    pub devices: u16,
    /// Shards of the pool.
    pub shards: u16,
    /// Bytes of the device at format.
    pub bytes: u64,
    /// Bytes that the device kept whole over power loss, at format.
    pub atomic_unit: u32,
    /// Whoever made the pool said that 4 KiB are kept whole whatever the device says.
    pub assume_atomic_4k: bool,
    /// Bytes of a slab.
    pub slab_bytes: u64,
    /// Where this device's slabs are.
    pub slabs: SlabArea,
    /// Clusters a shard keeps back from data.
    pub reserve_clusters: u32,
    /// Start of the checkpoint rings; device 0 only.
    pub checkpoints: u64,
    /// Starts of the catalog's copies; device 0 only.
    pub catalog: [u64; 2],
    /// Start of the journals; device 0 only.
    pub journals: u64,
    /// Bytes of a journal; device 0 only.
    pub journal_bytes: u64,
    /// How often the pool has been opened for writing.
    pub generation: u32,
    /// Seconds since 1970.
    pub created_unix_s: u64,
}

impl Superblock {
    /// Its block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; BLOCK as usize];
        let raw = Raw::mut_from_bytes(&mut out).expect("one block");
        raw.magic = MAGIC;
        raw.version = FORMAT.into();
        raw.compatible = self.flags.compatible.into();
        raw.ro_compatible = self.flags.ro_compatible.into();
        raw.incompatible = self.flags.incompatible.into();
        raw.pool = self.pool.into_bytes();
        raw.uuid = self.uuid.into_bytes();
        raw.number = self.number.into();
        raw.devices = self.devices.into();
        raw.shards = self.shards.into();
        raw.bytes = self.bytes.into();
        raw.block = (BLOCK as u32).into();
        raw.atomic_unit = self.atomic_unit.into();
        raw.flags = if self.assume_atomic_4k { ASSUMED } else { 0 }.into();
        raw.cluster = (CLUSTER as u32).into();
        raw.slab_bytes = self.slab_bytes.into();
        raw.slab_start = self.slabs.start.into();
        raw.slabs = self.slabs.slabs.into();
        raw.reserve = self.reserve_clusters.into();
        raw.checkpoints = self.checkpoints.into();
        raw.catalog = self.catalog.map(U64::from);
        raw.catalog_bytes = (COPY_BYTES as u64).into();
        raw.journals = self.journals.into();
        raw.journal_bytes = self.journal_bytes.into();
        raw.generation = self.generation.into();
        raw.created = self.created_unix_s.into();
        raw.crc = crc32c::crc32c(&raw.as_bytes()[UNCHECKED..]).into();
        out
    }

    /// The superblock in a block, every field of it checked on its own; how devices fit each other is for [`super::open()`].
    pub fn decode(bytes: &[u8]) -> Result<Superblock, BadSuperblock> {
        let raw = Raw::ref_from_bytes(bytes).map_err(|_| BadSuperblock::Field("length"))?;
        if bytes.iter().all(|&byte| byte == 0) {
            return Err(BadSuperblock::Empty);
        }
        if raw.magic != MAGIC {
            return Err(BadSuperblock::Foreign(raw.magic));
        }
        let found = crc32c::crc32c(&bytes[UNCHECKED..]);
        if found != raw.crc.get() {
            return Err(BadSuperblock::Checksum { found, expected: raw.crc.get() });
        }
        if raw.version.get() != FORMAT {
            return Err(BadSuperblock::Version { found: raw.version.get(), known: FORMAT });
        }
        let unknown = raw.incompatible.get() & !INCOMPATIBLE | raw.ro_compatible.get() & !RO_COMPATIBLE;
        if unknown != 0 {
            return Err(BadSuperblock::Features(unknown));
        }
        match impossible(raw) {
            Some(field) => Err(BadSuperblock::Field(field)),
            None => Ok(raw.read()),
        }
    }
}

/// The first field that cannot be.
fn impossible(raw: &Raw) -> Option<&'static str> {
    let (number, devices) = (usize::from(raw.number.get()), usize::from(raw.devices.get()));
    let (bytes, slab, start, slabs) =
        (raw.bytes.get(), raw.slab_bytes.get(), raw.slab_start.get(), u64::from(raw.slabs.get()));
    let unit = raw.atomic_unit.get();
    // Products of these two fit, since each is bounded.
    let sound = slab.is_power_of_two() && (SLAB_BYTES_MIN..=SLAB_BYTES_MAX).contains(&slab);
    let counted = (1..=u64::from(SLABS_PER_DEVICE_MAX)).contains(&slabs);
    let inside = || start.checked_add(slabs * slab).is_some_and(|end| end <= slab_end(number, bytes));
    let checks = [
        (devices <= DEVICES_MAX && number < devices, "device number"),
        ((1..=SHARDS_MAX).contains(&raw.shards.get()), "number of shards"),
        (bytes < 1 << 60, "size"),
        (u64::from(raw.block.get()) == BLOCK, "block size"),
        (u64::from(raw.cluster.get()) == CLUSTER, "cluster size"),
        (unit.is_power_of_two() && unit >= 512, "power-fail atomic unit"),
        (sound, "slab size"),
        (counted, "number of slabs"),
        (start >= SUPERBLOCK_AREA && start % CLUSTER == 0, "start of the slabs"),
        (sound && counted && inside(), "end of the slabs"),
        (u64::from(raw.reserve.get()) <= slab / CLUSTER / 2, "reserve"),
        (number != 0 || raw.catalog_bytes.get() == COPY_BYTES as u64, "size of the catalog"),
        (number != 0 || (BLOCK..=JOURNAL_BYTES_MAX).contains(&raw.journal_bytes.get()), "size of the journals"),
    ];
    checks.iter().find(|(good, _)| !good).map(|&(_, field)| field)
}

impl Raw {
    fn read(&self) -> Superblock {
        Superblock {
            flags: Flags {
                compatible: self.compatible.get(),
                ro_compatible: self.ro_compatible.get(),
                incompatible: self.incompatible.get(),
            },
            pool: Uuid::from_bytes(self.pool),
            uuid: Uuid::from_bytes(self.uuid),
            number: self.number.get(),
            devices: self.devices.get(),
            shards: self.shards.get(),
            bytes: self.bytes.get(),
            atomic_unit: self.atomic_unit.get(),
            assume_atomic_4k: self.flags.get() & ASSUMED != 0,
            slab_bytes: self.slab_bytes.get(),
            slabs: SlabArea { start: self.slab_start.get(), slabs: self.slabs.get() },
            reserve_clusters: self.reserve.get(),
            checkpoints: self.checkpoints.get(),
            catalog: self.catalog.map(U64::get),
            journals: self.journals.get(),
            journal_bytes: self.journal_bytes.get(),
            generation: self.generation.get(),
            created_unix_s: self.created.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn superblock() -> Superblock {
        Superblock {
            flags: Flags::default(),
            pool: Uuid::from_u128(1),
            uuid: Uuid::from_u128(2),
            number: 0,
            devices: 1,
            shards: 2,
            bytes: 1 << 30,
            atomic_unit: 512,
            assume_atomic_4k: true,
            slab_bytes: 16 << 20,
            slabs: SlabArea { start: 21 << 20, slabs: 60 },
            reserve_clusters: 32,
            checkpoints: 65536,
            catalog: [131_072, (1 << 30) - (4 << 20) - 4096],
            journals: 131_072 + (4 << 20),
            journal_bytes: 8 << 20,
            generation: 7,
            created_unix_s: 1_800_000_000,
        }
    }

    #[test]
    fn a_superblock_comes_back_as_it_was_written() {
        assert_eq!(Superblock::decode(&superblock().encode()), Ok(superblock()));
    }

    #[test]
    fn the_bytes_of_version_1_stay_readable() {
        let bytes = superblock().encode();
        assert_eq!(&bytes[..16], b"RINGWAY\0\xaa\xd9\x13\xa4\x01\0\0\0");
    }

    #[test]
    fn each_kind_of_wrong_block_is_told_apart() {
        let decode = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = superblock().encode();
            change(&mut bytes);
            let crc = crc32c::crc32c(&bytes[UNCHECKED..]);
            bytes[8..12].copy_from_slice(&crc.to_le_bytes());
            Superblock::decode(&bytes).unwrap_err()
        };
        assert_eq!(Superblock::decode(&[0; 4096]), Err(BadSuperblock::Empty));
        assert_eq!(decode(&|bytes| bytes[0] = b'X'), BadSuperblock::Foreign(*b"XINGWAY\0"));
        assert_eq!(decode(&|bytes| bytes[12] = 2), BadSuperblock::Version { found: 2, known: 1 });
        assert_eq!(decode(&|bytes| bytes[32] = 4), BadSuperblock::Features(4));
        assert_eq!(decode(&|bytes| bytes[76] = 0), BadSuperblock::Field("number of shards"));
        assert_eq!(decode(&|bytes| bytes[104..112].fill(0xFF)), BadSuperblock::Field("slab size"));
        assert_eq!(decode(&|bytes| bytes[120..124].fill(0xFF)), BadSuperblock::Field("number of slabs"));
        // A compatible feature does not matter.
        let mut bytes = superblock();
        bytes.flags.compatible = 9;
        assert!(Superblock::decode(&bytes.encode()).is_ok());
    }

    proptest! {
        #[test]
        fn any_changed_bit_is_noticed(bit in 0usize..4096 * 8) {
            let mut bytes = superblock().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Superblock::decode(&bytes).is_err());
        }

        #[test]
        fn a_forged_superblock_is_refused_or_has_its_slabs_inside_the_device(
            at in 12usize..192, with in proptest::collection::vec(any::<u8>(), 1..9),
        ) {
            let mut bytes = superblock().encode();
            bytes[at..at + with.len()].copy_from_slice(&with);
            let crc = crc32c::crc32c(&bytes[UNCHECKED..]);
            bytes[8..12].copy_from_slice(&crc.to_le_bytes());
            if let Ok(superblock) = Superblock::decode(&bytes) {
                let end = superblock.slabs.start + u64::from(superblock.slabs.slabs) * superblock.slab_bytes;
                prop_assert!(end <= superblock.bytes);
            }
        }
    }
}
