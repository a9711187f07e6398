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
/// Entries of a queue (MQES + 1): twice the depth at which throughput stops to grow, and few enough that all of a
/// connection's commands fit its share of memory.
pub const QUEUE_ENTRIES_MAX: u16 = 256;
/// Bytes of data in a command capsule: a 4 KiB or 8 KiB write needs no R2T.
pub const IN_CAPSULE_BYTES: u32 = 8 << 10;
/// The same over RDMA, where each command that a host might send has its buffer lying ready: a page.
pub const IN_CAPSULE_BYTES_RDMA: u32 = 4 << 10;
/// I/O queues of one association: Linux opens one a core.
pub const IO_QUEUES_MAX: u16 = 128;
/// Asynchronous Event Requests outstanding on one admin queue: one a kind of event, and one to spare.
pub const EVENT_REQUESTS_MAX: usize = 4;
/// Associations of one process: 1024 volumes attached by four hosts each.
pub const ASSOCIATIONS_MAX: usize = 4096;
/// Bytes of one Write Zeroes: a command that needs no data must not hold a queue for seconds.
pub const WRITE_ZEROES_BYTES_MAX: u32 = 32 << 20;
/// Bytes of one request that a Dataset Management is cut into: its length has 32 bits, a range up to 64.
pub const DEALLOCATE_BYTES_MAX: u32 = 1 << 30;

const _: () = assert!(WRITE_ZEROES_BYTES_MAX.is_power_of_two() && WRITE_ZEROES_BYTES_MAX as u64 >= BLOCK);
const _: () = assert!((DEALLOCATE_BYTES_MAX as u64).is_multiple_of(STRIPE));
const _: () = assert!(BLOCKS_PER_CLUSTER * 2 == u32::BITS);
const _: () = assert!(STRIPE.is_multiple_of(CLUSTER) && REQUEST_BYTES_MAX as u64 <= STRIPE);
const _: () = assert!(CLUSTERS_PER_RANGE.is_multiple_of(CLUSTERS_PER_STRIPE));

/// Volumes that have a socket of their own without being asked for: a descriptor each, of the 1,024 that a process commonly has. The
/// others are exported by name.
pub const VOLUME_SOCKETS_MAX: usize = 512;
