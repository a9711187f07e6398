//! One shard: the blocks of every volume that live on it, their map, its journal and its share of the space.
//!
//! Single-threaded and without waiting: the node feeds it, and it answers through [`Event`]s.
//!
//! ```text
//! Recovery::start(io, RecoverySpec { .. }) -> Recovery;  recovery.on_completion(io, slot, completion) -> Option<Result<Opened, OpenError>>
//! shard.submit(part)                            queues only
//! shard.execute(io, word, &mut events)          runs everything that is ready, stamped `word`
//! shard.on_completion(io, slot, completion, &mut events)
//! shard.on_barrier(io, ticket, Result<(), IoError>, &mut events)
//! shard.on_slab(slab, place of its first cluster, clusters) / shard.on_no_slab()
//! shard.on_volume(Arc<VolumeRecord>) / shard.on_volume_removed(VolumeId)
//! shard.fence(association, token)               Event::Fenced follows
//! shard.tick(now), shard.next_deadline() -> Instant, shard.busy() -> bool
//! shard.drain()                                 Event::Drained follows
//! shard.stats() -> Stats, shard.is_idle() -> bool
//! ```

pub mod api;

pub use api::{Event, FileSet, LogFull, Part, PartDone, RecordLog, ShardConfig, Stats, TokenBase};
