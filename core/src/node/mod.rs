//! One reactor's share of the target: its connections, its shards, and the messages between.
//!
//! A turn pulls everything (completions, messages), then [`Node::execute`] starts the requests that arrived, reads the epoch
//! word once, runs the shards, and sends what came of it. Nothing is pulled between reading the word and running the shards:
//! stamps at a shard are then monotone, and a cut is local to it (histories C1 and C2).
//!
//! ```text
//! transport --Request--> router --Part--> shard (here, or by mailbox) --PartDone--> router --Done--> transport
//! ```

pub mod barrier;
mod counting;
mod events;
pub mod fence;
pub mod fetch;
pub mod inside;
pub mod interest;
mod local;
pub mod message;
pub mod owner;
mod parts;
pub mod route;
mod said;
mod serving;
mod stop;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringway_reactor::io::{Completion, FileId, Instant, Io};
use ringway_reactor::mailbox::Endpoint;
use ringway_reactor::turn::{Application, Eagerness, TurnStats};
use rustc_hash::FxHashMap;

use crate::controller::registry::Registry;
use crate::directory::Directory;
use crate::ids::{Epoch, RequestId, ShardId};
use crate::metrics::{ConnectionMetrics, Metrics};
use crate::request::{Done, Request};
use crate::shard::{Part, PartDone, RecordLog, Shard, TokenBase};
use crate::tokens;
use crate::transport::{TransportEvent, Transports};
use barrier::{Coalescer, OpenBarriers, Waiter};
use fence::Fences;
use fetch::FetchPort;
use inside::Inside;
use interest::Interests;
use local::Local;
use message::Message;
use owner::{FirstFlush, Owner};
use route::Router;
use said::Said;
use serving::Serving;

/// How far a stopping node has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopping {
    No,
    /// Nothing new is taken; what is in flight ends.
    Quieting,
    /// Nothing is in flight here.
    Quiet,
    /// Nothing is in flight on any reactor: the shards make everything durable.
    Draining {
        shards_left: usize,
    },
    Drained,
    /// Leave the loop.
    Stopped,
}

/// What a node is made of.
pub struct NodeParts<L> {
    pub index: usize,
    pub reactors: usize,
    /// The reactor of each shard.
    pub placement: Arc<[u16]>,
    /// Those that live here.
    pub shards: Vec<Shard<L>>,
    pub transports: Transports,
    pub registry: Arc<Registry>,
    pub directory: Arc<Directory>,
    pub epoch: Arc<AtomicU64>,
    pub metrics: Arc<Metrics>,
    /// Volumes whose hosts are to learn that the machine has failed.
    pub first_flush: Arc<FirstFlush>,
    /// Who is polled for, and how.
    pub interests: Arc<Interests>,
    /// Who fetches what clones have on a backend; none: nobody can.
    pub fetch_port: Option<Arc<dyn FetchPort>>,
    /// On reactor 0.
    pub owner: Option<Owner>,
}

/// One reactor's share of the target.
pub struct Node<L> {
    index: usize,
    reactors: usize,
    placement: Arc<[u16]>,
    local: Local<L>,
    transports: Transports,
    registry: Arc<Registry>,
    router: Router,
    serving: Serving,
    directory: Arc<Directory>,
    epoch: Arc<AtomicU64>,
    metrics: Arc<Metrics>,
    first_flush: Arc<FirstFlush>,
    interests: Arc<Interests>,
    fetch_port: Option<Arc<dyn FetchPort>>,
    /// When something came last from a client for whom it is worth polling.
    heard: Instant,
    /// Parts of other reactors came since the last turn.
    parts_came: bool,
    owner: Option<Owner>,
    next_count: Instant,
    /// Something has happened since the counters were copied.
    uncounted: bool,
    turns: TurnStats,
    messages_sent: u64,
    connections: FxHashMap<u64, Arc<ConnectionMetrics>>,
    coalescers: BTreeMap<FileId, Coalescer>,
    barriers: OpenBarriers,
    fences: Fences,
    requests: Vec<(RequestId, Request)>,
    inside: Inside,
    transport_events: Vec<TransportEvent>,
    said: Said,
    /// Parts of other reactors that ended here, and all other mail, sent at the end of the turn.
    outbox: Vec<(usize, Message)>,
    returned: Vec<PartDone>,
    parts: Vec<(ShardId, Part)>,
    done: Vec<Done>,
    answered: Vec<Waiter>,
    stopping: Stopping,
}

impl<L: RecordLog> Node<L> {
    /// Puts a node together; its shards are recovered.
    #[must_use]
    pub fn new(parts: NodeParts<L>) -> Self {
        for shard in &parts.shards {
            let reactor = usize::from(parts.placement[usize::from(shard.id().0)]);
            assert!(reactor == parts.index, "a shard lives where it is placed");
        }
        Self {
            serving: Serving::new(parts.metrics.clone()),
            index: parts.index,
            reactors: parts.reactors,
            local: Local::new(parts.shards, parts.placement.len()),
            placement: parts.placement,
            transports: parts.transports,
            registry: parts.registry,
            router: Router::new(parts.index as u16),
            directory: parts.directory,
            epoch: parts.epoch,
            metrics: parts.metrics,
            first_flush: parts.first_flush,
            interests: parts.interests,
            fetch_port: parts.fetch_port,
            heard: Instant(0),
            parts_came: false,
            owner: parts.owner,
            next_count: Instant(0),
            uncounted: true,
            turns: TurnStats::default(),
            messages_sent: 0,
            connections: FxHashMap::default(),
            coalescers: BTreeMap::new(),
            barriers: OpenBarriers::default(),
            fences: Fences::default(),
            requests: Vec::with_capacity(1024),
            inside: Inside::default(),
            transport_events: Vec::with_capacity(1024),
            said: Said::with_capacity(1024),
            outbox: Vec::with_capacity(1024),
            returned: Vec::with_capacity(1024),
            parts: Vec::with_capacity(1024),
            done: Vec::with_capacity(1024),
            answered: Vec::new(),
            stopping: Stopping::No,
        }
    }

    /// Whether its loop may end.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopping == Stopping::Stopped
    }

    /// Submits a request that no connection sent (benchmarks and tests in the process); it ends in [`Node::take_done`].
    pub fn submit(&mut self, id: RequestId, request: Request) {
        self.requests.push((id, request));
    }

    /// Requests of [`Node::submit`] that have ended.
    pub fn take_done(&mut self) -> std::vec::Drain<'_, Done> {
        self.done.drain(..)
    }

    /// The connections of this reactor.
    pub fn transports(&mut self) -> &mut Transports {
        &mut self.transports
    }

    /// The catalog's owner, on its reactor.
    pub fn owner(&mut self) -> Option<&mut Owner> {
        self.owner.as_mut()
    }

    /// The shards that live here.
    pub fn shards(&self) -> impl Iterator<Item = &Shard<L>> {
        self.local.iter()
    }

    fn send(&mut self, to: usize, message: Message) {
        self.outbox.push((to, message));
    }

    /// The catalog's owner goes on; what it wants of the reactors is mail, what it wants of volumes is requests.
    fn execute_owner<I: Io>(&mut self, io: &mut I) {
        let Some(owner) = &mut self.owner else { return };
        owner.execute(io, &mut self.outbox);
        self.requests.extend(owner.take_requests());
        let ended: Vec<_> = owner.take_ended().collect();
        for association in ended {
            self.begin_fence(association);
        }
    }

    fn send_all(&mut self, message: impl Fn() -> Message) {
        for to in 0..self.reactors {
            self.outbox.push((to, message()));
        }
    }
}

impl<I: Io, L: RecordLog> Application<I, Message> for Node<L> {
    fn on_completion(&mut self, io: &mut I, completion: Completion) {
        let token = completion.token;
        match (token.0 >> 56) as u8 {
            tokens::SHARD => {
                let shard = TokenBase::shard_of(token);
                self.uncounted = true;
                let local = self.local.touch(shard);
                self.said.by(shard, |out| local.on_completion(io, TokenBase::slot_of(token), completion, out));
            }
            kind @ (tokens::TCP | tokens::RDMA | tokens::SHM | tokens::VHOST | tokens::NBD) => {
                // A read of what was never written, or a connection that comes, moves counters without a device.
                self.uncounted = true;
                if matches!(kind, tokens::TCP | tokens::RDMA | tokens::NBD) {
                    self.heard = io.now();
                }
                self.transports.on_completion(io, kind, completion, &mut self.transport_events);
            }
            tokens::BARRIER => self.barrier_completed(io, FileId(token.0 as u16), completion.result.map(drop)),
            tokens::CATALOG => {
                let owner = self.owner.as_mut().expect("catalog operations end where the catalog lives");
                owner.on_completion(&completion);
            }
            kind => unreachable!("nobody submits operations of kind {kind}"),
        }
    }

    fn on_message(&mut self, io: &mut I, _from: usize, message: Message) {
        match message {
            Message::Part { shard, part } => {
                self.parts_came = true;
                self.take_part(io.now(), shard, part, true);
            }
            Message::PartDone(done) => self.returned.push(done),
            Message::AskBarrier { file, shard, ticket } => self.ask_barrier(io, file, Waiter { shard, ticket }),
            Message::BarrierDone { shard, ticket, result } => {
                self.barrier_answered(io, Waiter { shard, ticket }, result);
            }
            Message::Adopt(adopted) => self.transports.tcp.adopt(io, adopted, &mut self.transport_events),
            Message::Shm(mail) => {
                self.uncounted = true;
                self.transports.shm.on_mail(io, mail, &mut self.transport_events);
            }
            Message::Rdma(mail) => {
                self.uncounted = true;
                self.transports.rdma.on_mail(io, mail, &mut self.transport_events);
            }
            Message::Publish { directory, seq } => self.publish(io, directory, seq),
            Message::Fence { association, origin } => self.fence(io, association, origin),
            Message::FencePassed { association, origin } => self.fence_passed(association, origin),
            Message::Fenced { association } => {
                if self.fences.answered(association) {
                    self.registry.fenced(association);
                    if let Some(owner) = &mut self.owner {
                        owner.fenced(association);
                    }
                }
            }
            Message::AddFile { id, file } => {
                let result = io.put_file(id, &file);
                self.send(0, Message::FileAdded(result));
            }
            Message::Grown(geometry) => self.grown(io, &geometry),
            Message::SlabGranted { shard, slab } => self.local.touch(shard).on_slab(slab),
            Message::NoSlab { shard } => self.local.touch(shard).on_no_slab(),
            Message::WantSlab { shard } => self.local.touch(shard).on_slab_wanted(),
            Message::Arm { shard, attempt, volume } => self.local.touch(shard).arm(attempt, volume),
            Message::Seal { shard, attempt, cut } => self.local.touch(shard).seal(attempt, cut),
            Message::Release { shard, attempt } => self.local.touch(shard).release(attempt),
            // Nobody fetches here, or a simulation does.
            Message::Fetched { shard, token, outcome } => self.local.touch(shard).on_fetched(token, outcome),
            Message::Ask { shard, token, ask } => self.local.touch(shard).ask(token, ask),
            Message::Quiet => self.quiet(io),
            Message::Drain => self.drain(),
            Message::Stop => self.stopping = Stopping::Stopped,
            other => {
                let owner = self.owner.as_mut().expect("mail for the catalog goes to reactor 0");
                owner.on_message(other);
            }
        }
    }

    fn on_control(&mut self, io: &mut I, message: Message) {
        match message {
            Message::Shm(mail) => {
                self.uncounted = true;
                self.transports.shm.on_mail(io, mail, &mut self.transport_events);
            }
            Message::Vhost(mail) => {
                self.uncounted = true;
                self.transports.vhost.on_mail(io, mail);
            }
            Message::Nbd(mail) => {
                self.uncounted = true;
                self.transports.nbd.on_mail(io, mail, &mut self.transport_events);
            }
            Message::Inside(call) => self.take_inside(call),
            Message::Fetched { shard, token, outcome } => {
                self.uncounted = true;
                self.local.touch(shard).on_fetched(token, outcome);
            }
            message => {
                let owner = self.owner.as_mut().expect("control threads talk to reactor 0");
                owner.on_message(message);
            }
        }
    }

    fn execute(&mut self, io: &mut I, mail: &mut Endpoint<Message>) -> bool {
        let now = io.now();
        self.transports.tick(io, &mut self.transport_events);
        let pulled = self.transports.pull(io, &mut self.requests, &mut self.transport_events);
        let parts_came = std::mem::take(&mut self.parts_came);
        if pulled && self.interests.polls_rings() || parts_came && self.interests.any_but_interrupt() {
            self.heard = now;
        }
        self.take_transport_events();
        self.take_returned(io, now);
        self.inside.start(io.buffers(), &mut self.requests);
        self.start_requests(io, now);
        // Acquire pairs with the coordinator's fetch_add: whatever was pulled above was pulled before this is read.
        let word = Epoch(self.epoch.load(Ordering::Acquire));
        self.local.run(now, |id, shard| self.said.by(id, |out| shard.execute(io, word, out)));
        self.take_shard_events(io, now);
        self.count(io, now);
        self.execute_owner(io);
        self.stop_step();
        self.transports.flush(io);
        for (to, message) in self.outbox.drain(..) {
            self.messages_sent += u64::from(to != self.index);
            mail.send(to, message);
        }
        pulled
    }

    fn before_sleep(&mut self, io: &mut I) -> bool {
        self.transports.before_sleep(io)
    }

    fn eagerness(&self, now: Instant) -> Eagerness {
        self.interests.eagerness(self.index, now, self.heard)
    }

    fn has_peers(&self) -> bool {
        self.transports.has_rings()
    }

    fn observe(&mut self, stats: &TurnStats) {
        self.turns = *stats;
    }

    fn next_deadline(&self) -> Instant {
        let owner = self.owner.as_ref().map_or(Instant::NEVER, Owner::next_deadline);
        let count = if self.uncounted { self.next_count } else { Instant::NEVER };
        self.local.next_deadline().min(self.transports.next_deadline()).min(owner).min(count)
    }

    fn busy(&self) -> bool {
        !self.requests.is_empty()
            || !self.outbox.is_empty()
            || !self.returned.is_empty()
            || !self.said.is_empty()
            || !self.transport_events.is_empty()
            || self.owner.as_ref().is_some_and(Owner::busy)
            || self.transports.busy()
            || self.local.busy()
            || self.inside.busy()
    }
}
