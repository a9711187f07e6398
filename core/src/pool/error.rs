//! What can be wrong with a pool.

use ringway_reactor::io::IoError;
use thiserror::Error;
use uuid::Uuid;

use crate::catalog::{AppendError, CatalogError};

/// Why a block is no superblock of ours.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadSuperblock {
    /// All zero.
    #[error("is empty")]
    Empty,
    /// Something else is there.
    #[error("starts with {0:02x?}, which is not Ringway's: it belongs to another program")]
    Foreign([u8; 8]),
    /// Torn or rotten.
    #[error("has checksum {found:#010x} and says {expected:#010x}")]
    Checksum {
        /// Computed.
        found: u32,
        /// As it says.
        expected: u32,
    },
    /// Of a later version.
    #[error("has format version {found}, this Ringway understands up to {known}")]
    Version {
        /// As it says.
        found: u32,
        /// The newest known.
        known: u32,
    },
    /// Of a later version that kept the number.
    #[error("needs features {0:#x} that this Ringway does not have")]
    Features(u64),
    /// Whole, with a value that cannot be.
    #[error("has an impossible {0}")]
    Field(&'static str),
}

/// Why a pool was not made, not opened, or not changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// A device failed.
    #[error("device {device}: {what} of {len} bytes at {offset} failed: {source}")]
    Io {
        /// Its number.
        device: u16,
        /// Read, write, barrier.
        what: &'static str,
        /// Bytes from its start.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The device's answer.
        source: IoError,
    },
    /// The reactor's buffers are smaller than this code needs.
    #[error("no buffer of {0} bytes is free: give the reactor a buffer class of at least that size")]
    Buffers(usize),
    /// No devices, or more than a pool can have.
    #[error("a pool has 1 to 256 devices, not {0}")]
    Devices(usize),
    /// Too few or too many shards.
    #[error("a pool has 1 to 256 shards, not {0}")]
    Shards(u16),
    /// The device is too small.
    #[error("device {device} has {found} bytes; with {shards} shards it needs at least {minimum}")]
    TooSmall {
        /// Its number.
        device: u16,
        /// Bytes.
        found: u64,
        /// Bytes.
        minimum: u64,
        /// Shards asked for.
        shards: u16,
    },
    /// The device has no room for a single slab of the pool.
    #[error(
        "device {device} has {found} bytes; to join this pool it needs at least {minimum}: its superblocks and one slab"
    )]
    TooSmallToJoin {
        /// The number it would have.
        device: u16,
        /// Bytes.
        found: u64,
        /// Bytes.
        minimum: u64,
    },
    /// An option of format that cannot be.
    #[error("{option} is {found}; it must be {right}")]
    Option {
        /// Which.
        option: &'static str,
        /// As given.
        found: u64,
        /// What would be right.
        right: &'static str,
    },
    /// The device's blocks are too large.
    #[error("device {device} has logical blocks of {found} bytes; Ringway needs a power of two of at most 4096")]
    LogicalBlock {
        /// Its number.
        device: u16,
        /// Bytes.
        found: u32,
    },
    /// Format would overwrite something.
    #[error("device {device} {found}; use --force to overwrite it")]
    InUse {
        /// Its number.
        device: u16,
        /// What is there.
        found: String,
    },
    /// Neither copy of the superblock is whole.
    #[error("device {device} is no Ringway device: its first block {front}, the copy at its end {back}")]
    NoSuperblock {
        /// Its number.
        device: u16,
        /// What is wrong with the first.
        front: BadSuperblock,
        /// What is wrong with the copy.
        back: BadSuperblock,
    },
    /// The devices are not those of one pool.
    #[error("device {device} belongs to pool {found}, device 0 to pool {expected}")]
    OtherPool {
        /// Its number.
        device: u16,
        /// Its pool.
        found: Uuid,
        /// The pool of device 0.
        expected: Uuid,
    },
    /// The devices are not in their order.
    #[error("device {device} says that it is device {found}: give the devices in the order in which the pool was made")]
    Order {
        /// Where it was given.
        device: u16,
        /// What it says.
        found: u16,
    },
    /// A device is missing, or there is one too many.
    #[error(
        "the pool has {expected} devices, {found} were given: name all of them, in the order in which they joined the pool"
    )]
    Missing {
        /// Devices given.
        found: usize,
        /// Devices the pool has.
        expected: usize,
    },
    /// The device has become smaller.
    #[error("device {device} has {found} bytes, it had {expected} when the pool was made")]
    Shrunk {
        /// Its number.
        device: u16,
        /// Bytes now.
        found: u64,
        /// Bytes then.
        expected: u64,
    },
    /// The device tears where it did not.
    #[error(
        "device {device} now keeps {found} bytes whole over power loss, {expected} when the pool was made: volumes with LBAs \
         of 4096 bytes could be torn; use --assume-atomic-4k if you know better"
    )]
    Tears {
        /// Its number.
        device: u16,
        /// Bytes now.
        found: u32,
        /// Bytes then.
        expected: u32,
    },
    /// A device that is to join tears what volumes of the pool need whole.
    #[error(
        "device {device} keeps {found} bytes whole over power loss, and there are volumes with LBAs of {lba} bytes, which it could \
         tear: add a device that keeps {lba} bytes whole"
    )]
    TearsVolumes {
        /// The number it would have.
        device: u16,
        /// Bytes.
        found: u32,
        /// Bytes of the largest LBA of a volume.
        lba: u32,
    },
    /// A volume's LBA is larger than what the device keeps whole.
    #[error(
        "LBAs of {lba} bytes need devices that keep {lba} bytes whole over power loss; this pool's keep {unit}: use 512, or make \
         the pool with --assume-atomic-4k if you know better"
    )]
    Lba {
        /// Bytes.
        lba: u32,
        /// Bytes.
        unit: u32,
    },
    /// The superblock and the devices do not fit each other.
    #[error("the superblock of device {device} has an impossible {field}")]
    Layout {
        /// Its number.
        device: u16,
        /// Which field.
        field: &'static str,
    },
    /// 4,294,967,295 boots.
    #[error("the pool has been opened as often as it can be")]
    Generations,
    /// The catalog cannot be used.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The catalog has no room.
    #[error(transparent)]
    CatalogRoom(#[from] AppendError),
    /// The catalog names another device than the one there.
    #[error("the catalog says that device {device} is {expected}, its superblock says {found}")]
    OtherDevice {
        /// Its number.
        device: u16,
        /// By its superblock.
        found: Uuid,
        /// By the catalog.
        expected: Uuid,
    },
}
