//! What reactors tell each other, and what control threads tell them.

use std::net::SocketAddr;
use std::sync::Arc;

use ringway_reactor::io::{FileId, IoError, NewFile};

use super::inside::InsideCall;
use super::owner::Prepared;
use crate::control::{ControlCall, ControlError};
use crate::directory::Directory;
use crate::ids::{AssociationId, AttemptId, Epoch, ShardId, VolumeId};
use crate::request::Status;
use crate::shard::{Answer, Ask, Fetched, Part, PartDone};
use crate::snapshot::asked::SnapshotCreate;
use crate::snapshot::promise::Promise;
use crate::snapshot::sync::SyncReport;
use crate::space::{Geometry, SlabId};
use crate::transport::{Adopted, nbd, rdma, shm, vhost};

/// One message. Messages of one reactor to another arrive in the order sent.
#[derive(Debug)]
pub enum Message {
    /// A part for a shard that lives on the receiver.
    Part { shard: ShardId, part: Part },
    /// A part's end, for the reactor on which its request runs.
    PartDone(PartDone),
    /// To the home reactor of a device: make durable what this shard has seen complete.
    AskBarrier { file: FileId, shard: ShardId, ticket: u64 },
    /// The answer.
    BarrierDone { shard: ShardId, ticket: u64, result: Result<(), IoError> },
    /// A connection for the receiver to serve.
    Adopt(Adopted),
    /// For the transport of native rings.
    Shm(shm::Mail),
    /// For the RDMA transport.
    Rdma(rdma::Mail),
    /// To the catalog's reactor: where the RDMA transport waits for hosts now.
    RdmaPorts(Vec<SocketAddr>),
    /// The volumes changed: replace the directory, tell the shards and the hosts, answer [`Message::Published`].
    Publish { directory: Arc<Directory>, seq: u64 },
    /// This reactor works with directory `seq`.
    Published { seq: u64 },
    /// An association is dead: stop sending its parts, and say so to every reactor with [`Message::FencePassed`].
    Fence { association: AssociationId, origin: usize },
    /// The sender will send no more parts of this association. Once all reactors said so, and what had started has ended,
    /// the origin gets [`Message::Fenced`].
    FencePassed { association: AssociationId, origin: usize },
    /// Nothing of this association is left on the sender.
    Fenced { association: AssociationId },
    /// To the catalog's reactor: a shard runs out of slabs.
    AskSlab { shard: ShardId, urgent: bool },
    /// A slab now belongs to the shard, durably.
    SlabGranted { shard: ShardId, slab: SlabId },
    /// There is none.
    NoSlab { shard: ShardId },
    /// The pool has no slab for another shard: give one back, or say that there is none.
    WantSlab { shard: ShardId },
    /// To the catalog's reactor: the slab is empty and its shard does not use it any more, durably.
    SlabReleased { shard: ShardId, slab: SlabId },
    /// To the catalog's reactor, the other answer to [`Message::WantSlab`].
    SlabKept { shard: ShardId },
    /// To the catalog's reactor: a shard holds nothing of a removed volume any more.
    Erased { shard: ShardId, volume: VolumeId },
    /// To the catalog's reactor: a fault that outlives the request that met it; no volume means the whole shard.
    Fault { shard: ShardId, volume: Option<VolumeId>, why: String },
    /// To the catalog's reactor: a host attached a volume for writing for the first time since it was clean.
    Attached { volume: VolumeId },
    /// A snapshot of the volume is to be made: from its next tick on the shard counts steps of the epoch word as cuts of it.
    Arm { shard: ShardId, attempt: AttemptId, volume: VolumeId },
    /// To the catalog's reactor: the shard does.
    Armed { shard: ShardId, attempt: AttemptId },
    /// The volume was cut: make what it was then final and durable.
    Seal { shard: ShardId, attempt: AttemptId, cut: Epoch },
    /// To the catalog's reactor: it is, or cannot be made so.
    Sealed { shard: ShardId, attempt: AttemptId, failed: Option<String> },
    /// The attempt is over. Where it has succeeded, the directory with its cut came before.
    Release { shard: ShardId, attempt: AttemptId },
    /// From a control thread to the catalog's reactor: snapshots to be made, whose deadline is watched already.
    Cut { create: SnapshotCreate, promise: Arc<Promise> },
    /// From the thread of deadlines: a promise is over.
    Expired,
    /// From who stores snapshots elsewhere.
    Sync(SyncReport),
    /// From the control thread of a vhost-user connection.
    Vhost(vhost::Mail),
    /// From the thread that accepts, to the reactor that is to serve a client.
    Nbd(nbd::Mail),
    /// To the catalog's reactor: a host was told that the machine failed under it.
    Told { volume: VolumeId, host: String },
    /// To the catalog's reactor: a device is ready to join, or why not.
    Prepared(Result<Box<Prepared>, ControlError>),
    /// A device joins: the ring is to know it. Answered by [`Message::FileAdded`].
    AddFile { id: FileId, file: NewFile },
    /// The sender's ring knows it, or why not.
    FileAdded(Result<(), IoError>),
    /// The device has joined: the pool is cut so from now on.
    Grown(Arc<Geometry>),
    /// From a control thread to the catalog's reactor.
    Control(ControlCall),
    /// A question of the catalog's reactor about a shard's map.
    Ask { shard: ShardId, token: u64, ask: Ask },
    /// The answer.
    Answered { shard: ShardId, token: u64, answer: Result<Answer, Status> },
    /// From who fetches: what a shard wanted of a backend, or that it cannot be had.
    Fetched { shard: ShardId, token: u64, outcome: Result<Fetched, Status> },
    /// A request of a thread of this process, to reactor 0.
    Inside(Box<InsideCall>),
    /// Take nothing new and finish what is in flight.
    Quiet,
    /// Nothing is in flight on the sender.
    IsQuiet,
    /// Every reactor is quiet: the shards make everything durable.
    Drain,
    /// The sender is drained.
    Drained,
    /// Leave the loop.
    Stop,
}
