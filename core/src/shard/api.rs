//! What goes into a shard and what comes out of it: parts, events, and the ports it needs.
//!
//! A shard never calls back. Whatever it wants from its surroundings (a barrier, a slab, an answer to be sent) is an
//! [`Event`] appended to the list that its caller passes in, so that one place, the node, decides what happens next.

use ringway_reactor::data::Data;
use ringway_reactor::io::{Instant, Token};

pub use super::asking::{Answer, Ask, ChangedRange};
use super::fetching::Fetch;
use crate::ids::{AssociationId, AttemptId, Epoch, Lsn, ShardId, VolumeId};
use crate::request::{Command, Status};
use crate::space::SlabId;

/// The part of a request that belongs to one shard. It never crosses a stripe, so that it is contiguous there.
#[derive(Debug)]
pub struct Part {
    /// Chosen by the node, returned with [`PartDone`].
    pub id: u64,
    /// Who asks.
    pub association: AssociationId,
    /// What it is about.
    pub volume: VolumeId,
    /// What to do. A [`Command::Flush`] has no range.
    pub command: Command,
    /// Bytes from the start of the volume's clusters on this shard: cluster * 64 KiB + offset in the cluster.
    pub start: u64,
    /// Bytes of the range.
    pub len: u32,
    /// As in [`crate::request::Request`].
    pub data: Option<Data>,
    /// Read the volume as it was at the end of this epoch; `None` is the live volume. Reads only.
    pub view: Option<Epoch>,
}

/// The end of a part. Each submitted part ends exactly once.
#[derive(Debug)]
pub struct PartDone {
    /// From [`Part::id`].
    pub id: u64,
    /// How it ended.
    pub status: Status,
    /// The part's memory, always given back.
    pub data: Option<Data>,
}

/// A set of the pool's devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSet([u64; 4]);

impl FileSet {
    /// Adds device `file`.
    pub fn insert(&mut self, file: u16) {
        self.0[usize::from(file) / 64] |= 1 << (file % 64);
    }

    /// Takes device `file` out.
    pub fn remove(&mut self, file: u16) {
        self.0[usize::from(file) / 64] &= !(1 << (file % 64));
    }

    /// Whether device `file` is in it.
    #[must_use]
    pub fn contains(&self, file: u16) -> bool {
        self.0[usize::from(file) / 64] & (1 << (file % 64)) != 0
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    /// Adds everything in `other`.
    pub fn extend(&mut self, other: FileSet) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine |= theirs;
        }
    }

    /// Its devices, ascending.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        (0..256u16).filter(move |&file| self.contains(file))
    }
}

/// What a shard wants from the node, or has to tell it.
#[derive(Debug)]
pub enum Event {
    /// A part ended.
    Done(PartDone),
    /// Everything completed so far on `files` is to be made durable; answer with [`super::Shard::on_barrier`]. At most one
    /// ticket of a shard is open.
    Barrier { ticket: u64, files: FileSet },
    /// Free space runs low (`urgent`: parts wait for it); answer with [`super::Shard::on_slab`] or
    /// [`super::Shard::on_no_slab`]. At most one request of a shard is open.
    NeedSlab { urgent: bool },
    /// This slab is empty and will not be used, durably: the pool may have it.
    SlabReleased(SlabId),
    /// The answer to [`super::Shard::on_slab_wanted`] where nothing can be given.
    SlabKept,
    /// Every part of the association that had started has ended, and no other will start.
    Fenced { association: AssociationId, token: u64 },
    /// Nothing of the removed volume is left on this shard, durably.
    Erased(VolumeId),
    /// A fault that outlives the part that met it. `None`: the whole shard takes no more writes.
    Fault { volume: Option<VolumeId>, why: String },
    /// The volume is armed for this attempt at a snapshot: every step of the epoch word counts as a cut of it.
    Armed(AttemptId),
    /// What the volume was at the cut is final here, and durable; or it cannot be made so, and why.
    Sealed { attempt: AttemptId, failed: Option<String> },
    /// The answer to [`super::Shard::ask`].
    Answer { token: u64, answer: Result<Answer, Status> },
    /// Something of a clone is on a backend and wanted here; answered by [`super::Shard::on_fetched`].
    Fetch(Fetch),
    /// The final commit and checkpoint are durable, nothing is in flight and nothing is held.
    Drained,
}

/// Where map records survive the death of the process, not that of the machine (C3). LSNs ascend without gaps.
pub trait RecordLog {
    /// Keeps one record; `Err` if there is no room until the log is truncated.
    fn append(&mut self, lsn: Lsn, record: &[u8]) -> Result<(), LogFull>;
    /// Forgets records up to and including `durable`.
    fn truncate(&mut self, durable: Lsn);
    /// Whole records left by a process that died, ascending; empty where the machine has been restarted since.
    fn replay(&mut self) -> Vec<(Lsn, Vec<u8>)>;
}

/// The log has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogFull;

/// Composes the tokens of a shard's operations so that the node can tell whose completion it reaps:
/// `kind << 56 | shard << 32 | slot`.
#[derive(Clone, Copy, Debug)]
pub struct TokenBase(u64);

impl TokenBase {
    /// `kind` is the node's number for "an operation of a shard".
    #[must_use]
    pub fn new(kind: u8, shard: ShardId) -> TokenBase {
        TokenBase(u64::from(kind) << 56 | u64::from(shard.0) << 32)
    }

    /// The token of operation `slot`.
    #[must_use]
    pub fn token(self, slot: u32) -> Token {
        Token(self.0 | u64::from(slot))
    }

    /// The shard in a token.
    #[must_use]
    pub fn shard_of(token: Token) -> ShardId {
        ShardId((token.0 >> 32) as u16)
    }

    /// The slot in a token, for [`super::Shard::on_completion`].
    #[must_use]
    pub fn slot_of(token: Token) -> u32 {
        token.0 as u32
    }
}

/// Bounds and times of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardConfig {
    /// Decoded map nodes kept in memory, bytes. At least a few nodes are kept whatever it says.
    pub map_cache_bytes: usize,
    /// A map change is durable at the latest this long after it was made.
    pub commit_interval_ns: u64,
    /// Whether freed clusters are given back to the file or device below.
    pub punch_holes: bool,
}

impl Default for ShardConfig {
    fn default() -> Self {
        Self { map_cache_bytes: 32 << 20, commit_interval_ns: 500_000_000, punch_holes: false }
    }
}

/// Plain counters, summed by whoever reads them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Parts ended.
    pub parts: u64,
    /// Device reads, of data and map.
    pub device_reads: u64,
    /// Device writes, of data, map and journal.
    pub device_writes: u64,
    /// Map records made.
    pub records: u64,
    /// Journal groups written.
    pub groups: u64,
    /// Barriers asked for.
    pub barriers: u64,
    /// Checkpoints made durable.
    pub checkpoints: u64,
    /// Map nodes read from the device.
    pub nodes_loaded: u64,
    /// Sub-block writes that had to read first.
    pub read_modify_writes: u64,
    /// Parts that waited for another part on the same blocks.
    pub overlaps: u64,
    /// Parts that waited for journal, space, buffers or map cache.
    pub waits: u64,
    /// Versions that no view needed any more and that went.
    pub versions_dropped: u64,
    /// Clusters of which something was copied in the background: merged, filled against long chains, or filled from a parent.
    pub clusters_copied: u64,
    /// Clusters that were fetched from a backend.
    pub clusters_fetched: u64,
    /// Walks over the nodes of a volume that came to their end.
    pub courses: u64,
    /// Free clusters.
    pub clusters_free: u64,
    /// Clusters that hold data of volumes.
    pub clusters_used: u64,
    /// Clusters that wait in quarantine.
    pub clusters_quarantined: u64,
}

/// When something is next due without any event; the node's timers wake the shard then.
pub type Deadline = Instant;
