//! The catalog's owner, on reactor 0: decides what exists, one durable change after the other.
//!
//! ```text
//! task (control call, slab wanted, volume erased, host attached) -> plan: records, or a refusal
//!   -> frame to both copies of the catalog, durable -> apply -> act: publish the directory, grant the slab, answer
//! ```
//! A change is acted upon only after it is durable in both copies (history H2); one is on its way at a time. A call that
//! changes the directory is answered once every reactor works with the new one. A failed write is final for this run: no
//! further change is taken, since nobody knows which of the copies has it; what needs no change goes on.

mod asking;
mod attach;
mod backend;
mod calls;
mod diff;
mod exports;
mod growing;
mod publish;
mod show;
mod slabs;
mod snapshots;
mod stopping;
mod store;
mod streams;
mod telling;
mod thresholds;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use ringway_reactor::io::{Completion, FileInfo, Instant, Io};
use uuid::Uuid;

pub use attach::{FirstFlush, Promise, Untold};
pub use growing::{GrowProgress, NewDevices, Prepared, Wanted};
pub use publish::{Surroundings, directory_of};
pub use store::{CatalogPlace, Store};

use super::message::Message;
use crate::catalog::CatalogRecord;
use crate::control::{ControlAnswer, ControlError, ControlErrorKind, ControlRequest, Reply, TargetInfo};
use crate::controller::association::HostIdentity;
use crate::controller::registry::Registry;
use crate::directory::Directory;
use crate::event::Event;
use crate::ids::{AssociationId, ExportId, RequestId, ShardId, VolumeId};
use crate::metrics::Metrics;
use crate::pool::Superblock;
use crate::request::{Request, Status};
use crate::snapshot::asked::SnapshotTimes;
use crate::snapshot::sync::SyncPort;
use crate::space::{Geometry, SlabId};
use growing::Growth;
use publish::Publishing;
use slabs::Slabs;
use snapshots::{Caller, Outcome, Snapshots, Work};
use stopping::Stage;
use streams::Streams;
use telling::Telling;
use thresholds::Thresholds;

/// Set in the ids of requests that the owner makes.
pub(crate) const FROM_OWNER: u64 = 1 << 62;

/// What is known of the pool; it changes only by growing.
#[derive(Clone, Debug)]
pub struct PoolFacts {
    /// Given at format.
    pub uuid: Uuid,
    /// Version of the format.
    pub format_version: u32,
    /// This boot.
    pub generation: u32,
    /// How its devices are cut.
    pub geometry: Arc<Geometry>,
    /// Paths of its devices, by number.
    pub paths: Vec<String>,
    /// What is known of them.
    pub files: Vec<FileInfo>,
    /// Bytes that every device keeps whole over power loss.
    pub atomic_unit: u32,
    /// Device 0's superblock.
    pub first: Superblock,
}

/// What an owner is made of.
pub struct OwnerParts {
    pub reactors: usize,
    /// The reactor of each shard.
    pub placement: Arc<[u16]>,
    pub store: Store,
    pub pool: PoolFacts,
    pub target: TargetInfo,
    pub registry: Arc<Registry>,
    /// As the reactors were started with it.
    pub directory: Arc<Directory>,
    pub metrics: Arc<Metrics>,
    /// Volumes of which recovery said that records are lost, by shard.
    pub damaged: Vec<(ShardId, VolumeId, String)>,
    /// Shards that could not be opened, and why.
    pub dead: Vec<(ShardId, String)>,
    /// The word that stamps are read from.
    pub epoch: Arc<AtomicU64>,
    /// Who stores snapshots elsewhere.
    pub sync_port: Option<Box<dyn SyncPort>>,
    /// How long stopping waits for what is in flight.
    pub drain_timeout_ns: u64,
    /// Seconds since 1970.
    pub unix_s: Box<dyn Fn() -> u64 + Send>,
    /// An identity that nothing else has.
    pub new_uuid: Box<dyn FnMut() -> Uuid + Send>,
    /// Gets devices ready to join.
    pub new_devices: Box<dyn NewDevices>,
}

/// One change that somebody wants.
enum Task {
    /// A control call that changes something.
    Call(ControlRequest, Reply),
    /// A control call about exports.
    Export(ControlRequest, Reply),
    /// A device that is ready joins the pool.
    Join(Box<Prepared>, Reply),
    /// A slab for a shard.
    Grant { shard: ShardId },
    /// A shard gives a slab back.
    TakeBack { shard: ShardId, slab: SlabId },
    /// No shard holds anything of it any more.
    Erased(VolumeId),
    /// Hosts attached for writing.
    Attached(VolumeId),
    /// This host knows now that the machine failed under it.
    Told(VolumeId, String),
    /// A volume has lost something.
    Faulted { volume: VolumeId, shard: Option<ShardId>, why: String },
    /// Something about snapshots.
    Snapshot(Work),
    /// Something about streams.
    Stream(streams::Work),
    /// Something has happened that no record tells.
    Say(Event),
    /// The pool is closed in good order.
    Close,
}

/// What is done once a change is durable.
enum Then {
    /// Publish; then answer.
    Publish(Option<(Reply, Answer)>),
    /// The pool has another device.
    Grow(Box<Prepared>, Reply),
    /// Those who attached it are on record.
    Attached(VolumeId),
    /// Answer with this export, or that it is done.
    Exported(Reply, Option<ExportId>),
    /// Tell the shard.
    Grant { shard: ShardId, slab: SlabId },
    /// Somebody else may have the slab.
    TakenBack { shard: ShardId, slab: SlabId },
    /// Something about snapshots.
    Snapshot(Outcome),
    /// Something about streams.
    Stream(streams::Outcome),
    /// Leave the loops.
    Stop,
    /// Nothing.
    Rest,
}

/// What a call is answered with once every reactor works with the change.
enum Answer {
    /// This volume as it is by then; that it is done if there is none.
    About(Option<VolumeId>),
    /// These snapshots, which it has made.
    Snapshots(Vec<VolumeId>, SnapshotTimes),
    /// This.
    Now(Box<ControlAnswer>),
}

/// What a task comes to.
enum Plan {
    /// These records, then that.
    Change(Vec<CatalogRecord>, Then),
    /// Nothing is to be written.
    Nothing,
}

/// A flush of every volume, for [`ControlRequest::Sync`].
struct Syncing {
    left: usize,
    worst: Status,
    reply: Reply,
}

/// See the module's description.
pub struct Owner {
    reactors: usize,
    placement: Arc<[u16]>,
    store: Store,
    pool: PoolFacts,
    target: TargetInfo,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    tasks: VecDeque<Task>,
    /// The change on its way to the disk.
    then: Option<Then>,
    publishing: Publishing,
    slabs: Slabs,
    snapshots: Snapshots,
    streams: Streams,
    telling: Telling,
    /// Ids below were given to volumes and snapshots, those included that the catalog does not know yet.
    next_volume: u32,
    growth: Option<Growth>,
    new_devices: Box<dyn NewDevices>,
    /// Shards that still hold something of a removed volume.
    erasing: BTreeMap<VolumeId, BTreeSet<ShardId>>,
    /// Shards that take no more writes, and why.
    faulted_shards: BTreeMap<ShardId, String>,
    /// Shards that could not be opened, and why: they get no mail, no volume, and nothing of theirs goes to others.
    dead: BTreeMap<ShardId, String>,
    syncs: BTreeMap<u64, Syncing>,
    next_sync: u64,
    asking: asking::Asking,
    /// For the node to start.
    requests: Vec<(RequestId, Request)>,
    thresholds: Thresholds,
    stage: Stage,
    /// When stopping no longer waits.
    give_up: Instant,
    drain_timeout_ns: u64,
    outbox: Vec<(usize, Message)>,
    /// Associations that a removal has ended, to be fenced.
    ended: Vec<AssociationId>,
    unix_s: Box<dyn Fn() -> u64 + Send>,
    new_uuid: Box<dyn FnMut() -> Uuid + Send>,
}

impl Owner {
    /// The owner of an open catalog. Volumes whose removal was not finished are erased on.
    #[must_use]
    pub fn new(parts: OwnerParts) -> Self {
        let state = parts.store.state();
        let erasing = state.removed().map(|(id, removed)| (id, removed.shards.iter().copied().collect())).collect();
        let slabs = Slabs::new(parts.pool.geometry.slabs(), |slab| state.owner(slab).is_some());
        let tasks = parts
            .damaged
            .into_iter()
            .map(|(shard, volume, why)| Task::Faulted { volume, shard: Some(shard), why })
            .collect();
        let size = parts.pool.geometry.slab_count() * parts.pool.geometry.slab_bytes();
        parts.metrics.pool.size_bytes.set(size);
        for entry in state.volumes() {
            parts.metrics.name_volume(entry.record.id, &entry.record.name);
            if let Some((nqn, id)) = entry.writer.clone() {
                parts.registry.remember_writer(entry.record.id, HostIdentity { nqn, id });
            }
        }
        let dead: BTreeMap<ShardId, String> = parts.dead.into_iter().collect();
        for &shard in dead.keys() {
            // Nobody can say how much of it is in use.
            let held = state.slabs_of(shard).count() as u64 * parts.pool.geometry.slab_bytes();
            parts.metrics.shard(shard).allocated_bytes.set(held);
        }
        let generation = parts.pool.generation;
        let telling = Telling::new(state.last_event());
        let mut owner = Self {
            reactors: parts.reactors,
            placement: parts.placement,
            publishing: Publishing::new(parts.directory, parts.pool.generation),
            store: parts.store,
            pool: parts.pool,
            target: parts.target,
            registry: parts.registry,
            metrics: parts.metrics,
            tasks,
            then: None,
            slabs,
            snapshots: Snapshots::new(parts.epoch, generation, parts.sync_port),
            streams: Streams::default(),
            telling,
            next_volume: 0,
            growth: None,
            new_devices: parts.new_devices,
            erasing,
            faulted_shards: BTreeMap::new(),
            dead,
            syncs: BTreeMap::new(),
            next_sync: 0,
            asking: asking::Asking::default(),
            requests: Vec::new(),
            thresholds: Thresholds::new(size),
            stage: Stage::Running,
            give_up: Instant::NEVER,
            drain_timeout_ns: parts.drain_timeout_ns,
            outbox: Vec::new(),
            ended: Vec::new(),
            unix_s: parts.unix_s,
            new_uuid: parts.new_uuid,
        };
        owner.follow_streams();
        if owner.dead.is_empty() {
            owner.count_faults();
        } else {
            let _ = owner.publish(None);
        }
        owner
    }

    /// Where the target listens, once that is known, over TCP and over RDMA: each tells of the other where there are both.
    pub fn set_listeners(&mut self, tcp: Vec<std::net::SocketAddr>, rdma: Vec<std::net::SocketAddr>) {
        let both = !tcp.is_empty() && !rdma.is_empty();
        (self.target.listeners, self.target.rdma_listeners) = (tcp, rdma);
        if both {
            let _ = self.publish(None);
        }
    }

    /// Mail. Nothing is done before [`Owner::execute`].
    pub(super) fn on_message(&mut self, message: Message) {
        match message {
            Message::Control(call) => self.on_call(call),
            Message::Published { seq } => self.published(seq),
            Message::RdmaPorts(ports) => {
                self.target.rdma_listeners = ports;
                let _ = self.publish(None);
            }
            Message::AskSlab { shard, .. } => self.tasks.push_back(Task::Grant { shard }),
            Message::SlabReleased { shard, slab } => self.tasks.push_back(Task::TakeBack { shard, slab }),
            Message::SlabKept { shard } => self.slab_kept(shard),
            Message::Erased { shard, volume } => self.shard_erased(shard, volume),
            Message::Attached { volume } => self.tasks.push_back(Task::Attached(volume)),
            Message::Told { volume, host } => self.tasks.push_back(Task::Told(volume, host)),
            Message::Fault { shard, volume, why } => self.shard_fault(shard, volume, why),
            Message::Answered { shard, token, answer } => self.answered(shard, token, answer),
            Message::Prepared(outcome) => self.prepared(outcome),
            Message::FileAdded(result) => self.file_added(result),
            Message::Cut { create, promise } => self.on_create(create, Caller::Promised(promise)),
            Message::Armed { shard, attempt } => self.armed(shard, attempt),
            Message::Sealed { shard, attempt, failed } => self.sealed(shard, attempt, failed),
            Message::Expired => {}
            Message::Sync(report) => self.sync_report(report),
            Message::Quiet => self.begin_stop(),
            Message::IsQuiet => self.reactor_quiet(),
            Message::Drained => self.reactor_drained(),
            other => unreachable!("the catalog's owner gets {other:?}"),
        }
    }

    /// A write of the catalog ended.
    pub(super) fn on_completion(&mut self, completion: &Completion) {
        self.store.on_completion(completion);
    }

    /// Goes on with whatever can go on.
    pub(super) fn execute<I: Io>(&mut self, io: &mut I, outbox: &mut Vec<(usize, Message)>) {
        self.advance_snapshots(io.now());
        self.advance_streams(io.now());
        loop {
            if let Some(result) = self.store.take_result(io.now()) {
                let then = self.then.take().expect("a write has its consequence");
                match result {
                    Ok(()) => {
                        self.follow_streams();
                        self.act(then);
                        self.change_made();
                    }
                    Err(why) => self.refuse(then, &why),
                }
            }
            if !self.store.is_idle() || !self.next_task() {
                break;
            }
        }
        self.store.advance(io);
        self.check_thresholds(io.now());
        self.check_patience(io.now());
        self.tell(io.now());
        outbox.append(&mut self.outbox);
    }

    /// Plans tasks until one needs a write. Whether it came to an end at once.
    fn next_task(&mut self) -> bool {
        let Some(task) = self.tasks.pop_front() else { return false };
        match self.plan(task) {
            Plan::Change(mut records, then) => {
                self.add_events(&mut records);
                self.then = Some(then);
                self.store.write(records);
                false
            }
            Plan::Nothing => true,
        }
    }

    fn plan(&mut self, task: Task) -> Plan {
        if let Some(why) = self.store.fault() {
            let why = why.to_owned();
            self.refuse_task(task, &why);
            return Plan::Nothing;
        }
        match task {
            Task::Call(request, reply) => match self.plan_call(&request) {
                Ok((records, volume)) if records.is_empty() => {
                    reply(Ok(self.answer_about(volume)));
                    Plan::Nothing
                }
                Ok((records, volume)) => Plan::Change(records, Then::Publish(Some((reply, Answer::About(volume))))),
                Err(error) => {
                    reply(Err(error));
                    Plan::Nothing
                }
            },
            Task::Export(request, reply) => self.plan_export(&request, reply),
            Task::Join(prepared, reply) => self.plan_join(prepared, reply),
            Task::Grant { shard } => self.plan_grant(shard),
            Task::TakeBack { shard, slab } => self.plan_take_back(shard, slab),
            Task::Erased(volume) => self.plan_erased(volume),
            Task::Attached(volume) => self.plan_attached(volume),
            Task::Told(volume, host) => self.plan_told(volume, host),
            Task::Faulted { volume, shard, why } => self.plan_fault(volume, shard, why),
            Task::Snapshot(work) => self.plan_snapshot(work),
            Task::Stream(work) => self.plan_stream(work),
            Task::Say(event) => self.plan_say(event),
            Task::Close => Plan::Change(vec![CatalogRecord::Closed(self.pool.generation)], Then::Stop),
        }
    }

    fn act(&mut self, then: Then) {
        match then {
            Then::Publish(answer) => drop(self.publish(answer)),
            Then::Snapshot(outcome) => self.act_snapshot(outcome),
            Then::Stream(outcome) => self.act_stream(outcome),
            Then::Exported(reply, shown) => reply(Ok(self.answer_export(shown))),
            Then::Grow(prepared, reply) => self.grown(prepared, reply),
            Then::Grant { shard, slab } => self.grant(shard, slab),
            Then::TakenBack { shard, slab } => self.taken_back(shard, slab),
            Then::Stop => {
                self.stage = Stage::Closed;
                self.stop_all();
            }
            Then::Attached(volume) => self.attached(volume),
            Then::Rest => {}
        }
    }

    /// The change could not be written.
    fn refuse(&mut self, then: Then, why: &str) {
        if self.store.fault().is_some() {
            tracing::error!(why, "the catalog takes no more changes until the pool is opened again");
            self.metrics.pool.read_only.set(1);
        } else {
            tracing::error!(why, "a change of the catalog could not be written and was made void");
        }
        match then {
            Then::Publish(Some((reply, _))) | Then::Exported(reply, _) => reply(Err(catalog_failed(why))),
            Then::Grow(_, reply) => {
                self.growth = None;
                reply(Err(catalog_failed(why)));
            }
            Then::Grant { shard, .. } => self.send_to_shard(shard, Message::NoSlab { shard }),
            // Nobody knows whose it is: nobody uses it before the pool is opened again.
            Then::TakenBack { shard, .. } => self.slab_kept(shard),
            Then::Snapshot(outcome) => self.refuse_snapshot(outcome, why),
            Then::Stream(outcome) => self.refuse_stream(outcome, why),
            Then::Stop => self.stop_all(),
            Then::Attached(volume) => self.not_attached(volume),
            Then::Publish(None) | Then::Rest => {}
        }
    }

    fn refuse_task(&mut self, task: Task, why: &str) {
        match task {
            Task::Call(_, reply) | Task::Export(_, reply) => reply(Err(catalog_failed(why))),
            Task::Join(_, reply) => {
                self.growth = None;
                reply(Err(catalog_failed(why)));
            }
            Task::Grant { shard } => self.send_to_shard(shard, Message::NoSlab { shard }),
            Task::TakeBack { shard, .. } => self.slab_kept(shard),
            Task::Snapshot(work) => self.refuse_snapshot_work(work, why),
            Task::Stream(work) => self.refuse_stream_work(work, why),
            Task::Close => self.stop_all(),
            Task::Attached(volume) => self.not_attached(volume),
            Task::Erased(_) | Task::Faulted { .. } | Task::Told(..) | Task::Say(_) => {}
        }
    }

    fn send_to_shard(&mut self, shard: ShardId, message: Message) {
        self.outbox.push((usize::from(self.placement[usize::from(shard.0)]), message));
    }

    fn send_all(&mut self, message: impl Fn() -> Message) {
        for to in 0..self.reactors {
            self.outbox.push((to, message()));
        }
    }

    /// An id that nothing has ever had.
    fn new_volume_id(&mut self) -> VolumeId {
        let id = self.next_volume.max(self.store.state().next_volume());
        self.next_volume = id + 1;
        VolumeId(id)
    }

    /// Requests for the node to start.
    pub(super) fn take_requests(&mut self) -> std::vec::Drain<'_, (RequestId, Request)> {
        self.requests.drain(..)
    }

    /// Associations that have ended, for the node to fence.
    pub(super) fn take_ended(&mut self) -> std::vec::Drain<'_, AssociationId> {
        self.ended.drain(..)
    }

    /// Whether [`Owner::execute`] has something to do at once.
    pub(super) fn busy(&self) -> bool {
        !self.outbox.is_empty()
            || !self.requests.is_empty()
            || !self.ended.is_empty()
            || self.store.busy()
            || (self.store.is_idle() && !self.tasks.is_empty())
    }

    /// When it has to run although nothing arrives.
    pub(super) fn next_deadline(&self) -> Instant {
        let jobs = self.streams.next_deadline().min(self.telling.next_deadline());
        self.store.next_deadline().min(self.thresholds.next_look()).min(self.give_up).min(self.next_expiry()).min(jobs)
    }
}

fn catalog_failed(why: &str) -> ControlError {
    ControlError::new(
        ControlErrorKind::Internal,
        format!("the pool's catalog could not be written ({why}); it takes changes again after a restart"),
    )
}
