//! CRC32C with a seed that says whose bytes they are.
//!
//! A block that belongs to another pool, another shard or another boot has a wrong checksum even where its content is whole,
//! so a misdirected or left-over write is never taken for ours.

use uuid::Uuid;

use crate::ids::ShardId;

/// The start value of a checksum: each step mixes in one more thing the bytes must belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(u32);

impl Seed {
    /// Bytes of this pool.
    #[must_use]
    pub fn pool(uuid: Uuid) -> Seed {
        Seed(crc32c::crc32c(uuid.as_bytes()))
    }

    /// Bytes of this shard.
    #[must_use]
    pub fn shard(self, shard: ShardId) -> Seed {
        Seed(crc32c::crc32c_append(self.0, &shard.0.to_le_bytes()))
    }

    /// Bytes of this generation (boot, checkpoint or page, as the structure says).
    #[must_use]
    pub fn generation(self, generation: u64) -> Seed {
        Seed(crc32c::crc32c_append(self.0, &generation.to_le_bytes()))
    }

    /// The checksum of `bytes`.
    #[must_use]
    pub fn of(self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.0, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_of_another_pool_shard_or_generation_have_another_checksum() {
        let own = Seed::pool(Uuid::from_u128(1)).shard(ShardId(1)).generation(1);
        for other in [
            Seed::pool(Uuid::from_u128(2)).shard(ShardId(1)).generation(1),
            Seed::pool(Uuid::from_u128(1)).shard(ShardId(2)).generation(1),
            Seed::pool(Uuid::from_u128(1)).shard(ShardId(1)).generation(2),
        ] {
            assert_ne!(own.of(b"group"), other.of(b"group"));
        }
    }
}
