//! Every bound, with its reason.

/// Bytes of a block: the unit of block states, of the overlap table and of device alignment.
pub const BLOCK: u64 = 4096;
/// Bytes of a cluster: the unit of allocation.
pub const CLUSTER: u64 = 64 << 10;
/// Blocks of a cluster: two state bits each fill one `u32`.
pub const BLOCKS_PER_CLUSTER: u32 = (CLUSTER / BLOCK) as u32;
/// Bytes of a stripe: a 256 KiB request touches at most two, and sequential readers still use every shard.
pub const STRIPE: u64 = 1 << 20;
/// Clusters of a stripe.
pub const CLUSTERS_PER_STRIPE: u32 = (STRIPE / CLUSTER) as u32;
/// Consecutive shard-local clusters of one map node: their newest versions fill three quarters of a 4 KiB page.
pub const CLUSTERS_PER_RANGE: u32 = 128;
/// Bytes of the largest read or write (MDTS): one registered buffer holds it.
pub const REQUEST_BYTES_MAX: u32 = 256 << 10;
/// Bytes of the largest volume.
pub const VOLUME_BYTES_MAX: u64 = 64 << 40;
/// Bytes of a volume's name.
pub const VOLUME_NAME_MAX: usize = 200;
/// Shards of a pool: more would make the mailbox mesh and a guest flush needlessly wide.
pub const SHARDS_MAX: u16 = 256;
/// Devices of a pool: a place has eight bits for it.
pub const DEVICES_MAX: usize = 256;

const _: () = assert!(BLOCKS_PER_CLUSTER * 2 == u32::BITS);
const _: () = assert!(STRIPE % CLUSTER == 0 && REQUEST_BYTES_MAX as u64 <= STRIPE);
const _: () = assert!(CLUSTERS_PER_RANGE % CLUSTERS_PER_STRIPE == 0);
