//! A target in a simulated world: the product's own steps from disks to reactors, and the turns that the threads would give.

pub(crate) mod model;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use ringway_core::control::{
    Allocate, ControlAnswer, ControlCall, ControlError, ControlRequest, PoolGrow, PoolGrown, PoolInfo, TargetInfo,
    VolumeCreate, VolumeInfo,
};
use ringway_core::ids::{AssociationId, AttemptId, RequestId, VolumeId};
use ringway_core::metrics::Metrics;
use ringway_core::node::Node;
use ringway_core::node::message::Message;
use ringway_core::node::owner::{NewDevices, Prepared, Wanted};
use ringway_core::pool::{self, FormatOptions, GrowOptions, LayoutOptions, OpenOptions};
use ringway_core::request::{Command, Done, Request, Status};
use ringway_core::shard::ShardConfig;
use ringway_core::snapshot::sync::{NotedAttempt, SyncJob, SyncPort, SyncReport};
use ringway_core::target::assembly::{Damaged, Fabric, Plan, Sources, Surrounds};
use ringway_core::target::log::Kept;
use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Io, ListenerId, NewFile};
use ringway_reactor::mailbox::{Injector, Mesh};
use ringway_reactor::sim::{Crashed, DiskConfig, Ended, SimIo, SimLog, World, WorldConfig};
use ringway_reactor::turn::Reactor;
use uuid::Uuid;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const BLOCK: u64 = 4096;

pub(crate) type SimNode = Node<Kept<SimLog>>;
pub(crate) type SimReactor = Reactor<SimIo, Message, SimNode>;

/// How long hosts are told that the machine failed under them.
const LOST_WRITES_NOTICE_NS: u64 = 20_000_000;

/// What a target is made of.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) disks: Vec<DiskConfig>,
    pub(crate) reactors: usize,
    pub(crate) shards: u16,
    pub(crate) slab_bytes: u64,
    pub(crate) mailbox: usize,
    pub(crate) shard: ShardConfig,
    pub(crate) log_bytes: usize,
    pub(crate) machine_restarted: bool,
    /// Where reactor 0 listens.
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) net: WorldConfig,
    /// Who stores snapshots elsewhere.
    pub(crate) backend: Option<Backend>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            disks: vec![DiskConfig { size: 96 * MIB, ..DiskConfig::default() }],
            reactors: 2,
            shards: 3,
            slab_bytes: 4 * MIB,
            mailbox: 256,
            shard: ShardConfig { commit_interval_ns: 20_000_000, ..ShardConfig::default() },
            log_bytes: 64 << 10,
            machine_restarted: false,
            listen: None,
            net: WorldConfig::default(),
            backend: None,
        }
    }
}

/// Devices that a growth waits for; the test makes them.
type Queue = Arc<Mutex<VecDeque<Wanted>>>;

struct SimDevices(Queue);

impl NewDevices for SimDevices {
    fn prepare(&mut self, wanted: Wanted) -> Result<(), ControlError> {
        let size = wanted.grow.size.expect("a file");
        wanted.joining.check_size(size).map_err(|error| ControlError::invalid(error.to_string()))?;
        self.0.lock().unwrap().push_back(wanted);
        Ok(())
    }
}

/// A backend that does what it is asked, or never gets anywhere; what it was asked, and what it has to say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backend {
    pub(crate) stuck: bool,
    pub(crate) fails: bool,
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
    pub(crate) started: Arc<Mutex<BTreeMap<AttemptId, String>>>,
    pub(crate) says: Arc<Mutex<VecDeque<SyncReport>>>,
}

impl Backend {
    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }

    fn say(&self, report: SyncReport) {
        if !self.stuck {
            self.says.lock().unwrap().push_back(report);
        }
    }
}

impl SyncPort for Backend {
    fn start(&mut self, job: SyncJob) {
        let base = job.base.map_or("nothing".to_owned(), |base| base.manifest);
        self.note(format!("start {} from {base}", job.name));
        let attempt = job.attempt;
        self.started.lock().unwrap().insert(attempt, job.name.clone());
        if self.fails {
            return self.say(SyncReport::Failed { attempt, why: "the bucket is missing".into() });
        }
        self.say(SyncReport::Progress { attempt, done: 1, total: 2 });
        self.say(SyncReport::ManifestAboutToBePut { attempt, manifest: format!("m-{}", job.name) });
    }

    fn go_on(&mut self, attempt: AttemptId) {
        let name = self.started.lock().unwrap()[&attempt].clone();
        self.note("go on".into());
        self.say(SyncReport::Synced { attempt, manifest: format!("m-{name}") });
    }

    fn committed(&mut self, attempt: &NotedAttempt) {
        self.note(format!("committed {}", attempt.manifest));
        self.say(SyncReport::Settled { attempt: attempt.attempt });
    }

    fn cancel(&mut self, attempt: AttemptId, noted: Option<&NotedAttempt>) {
        self.note(format!("cancel {}", noted.map_or("what was not noted", |noted| &noted.manifest)));
        if noted.is_some() {
            self.say(SyncReport::Settled { attempt });
        }
    }

    fn removed(&mut self, _: VolumeId, manifest: &str) {
        self.note(format!("removed {manifest}"));
    }
}

/// A target that runs.
pub(crate) struct Target {
    pub(crate) world: World,
    pub(crate) setup: Setup,
    pub(crate) reactors: Vec<SimReactor>,
    pub(crate) injector: Injector<Message>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) done: BTreeMap<RequestId, Done>,
    pub(crate) generation: u32,
    wanted: Queue,
    next: u64,
}

/// An answer that may not be there yet.
pub(crate) type Pending = Arc<Mutex<Option<Result<ControlAnswer, ControlError>>>>;

impl Target {
    /// A new world with a new pool, opened.
    pub(crate) fn new(seed: u64, setup: Setup) -> Target {
        let world = World::new(seed, setup.net.clone());
        for disk in &setup.disks {
            world.add_disk(disk.clone());
        }
        let mut io = world.io();
        let options = FormatOptions {
            shards: setup.shards,
            layout: LayoutOptions {
                journal_bytes: Some(MIB),
                slab_bytes: Some(setup.slab_bytes),
                ..LayoutOptions::default()
            },
            uuid: Uuid::from_u128(0x77),
            device_uuids: (0..setup.disks.len()).map(|n| Uuid::from_u128(0x7700 + n as u128)).collect(),
            assume_atomic_4k: false,
            force: false,
            created_unix_s: 1_790_000_000,
            backend: None,
        };
        pool::format(&mut io, &options, &mut |_| {}).expect("a pool can be made");
        drop(io);
        Target::open(world, setup)
    }

    /// The next process, on whatever is on the disks.
    pub(crate) fn open(world: World, setup: Setup) -> Target {
        Target::try_open(world, setup).unwrap_or_else(|why| panic!("{why}"))
    }

    pub(crate) fn try_open(world: World, setup: Setup) -> Result<Target, String> {
        let mut ios: Vec<SimIo> = (0..setup.reactors).map(|_| world.io()).collect();
        let options = OpenOptions { lost: setup.machine_restarted, ..OpenOptions::default() };
        let pool = pool::open(&mut ios[0], &options).map_err(|error| error.to_string())?;
        let generation = pool.generation;
        let devices = pool.superblocks.len();
        let wanted = Queue::default();
        let target = TargetInfo {
            version: "test".into(),
            pid: 1,
            listeners: Vec::new(),
            rdma_listeners: Vec::new(),
            cores: (0..setup.reactors).collect(),
            connections: 0,
            insecure: false,
        };
        let plan = Plan::new(
            pool,
            Surrounds {
                reactors: setup.reactors,
                shard: setup.shard.clone(),
                target,
                paths: (0..devices).map(|n| format!("disk {n}")).collect(),
                files: ios[0].files()[..devices].to_vec(),
                lost_writes_notice_ns: LOST_WRITES_NOTICE_NS,
                drain_timeout_ns: 10_000_000_000,
            },
        );
        let mut recovered = Vec::new();
        for (reactor, io) in ios.iter_mut().enumerate() {
            let log = |shard: ringway_core::ids::ShardId| Kept(world.log(u32::from(shard.0), setup.log_bytes));
            recovered.push(plan.recover(io, reactor, log).map_err(|error| error.to_string())?);
        }
        let mut damaged = Damaged::default();
        recovered.iter().for_each(|recovered| damaged.extend(recovered.damaged()));
        let mesh = Mesh::new(setup.reactors, setup.mailbox);
        let injector = mesh[0].injector();
        let reactors = ios.into_iter().zip(mesh).zip(recovered).enumerate().map(|(n, ((mut io, mail), recovered))| {
            let mut uuids = u128::from(generation) << 64;
            let sources = Sources {
                unix_s: Box::new(|| 1_790_000_000),
                new_uuid: Box::new(move || {
                    uuids += 1;
                    Uuid::from_u128(uuids)
                }),
                new_devices: Box::new(SimDevices(Arc::clone(&wanted))),
                sync_port: setup.backend.clone().map(|backend| Box::new(backend) as _),
            };
            let first = (n == 0).then(|| (sources, damaged.clone()));
            let buffers = io.buffers().bytes();
            let mut node = plan.node(n, recovered, buffers, None, Fabric::default(), first);
            if let (0, Some(addr)) = (n, setup.listen) {
                let (id, addr) = listen(&mut io, addr);
                node.transports().tcp.listen(&mut io, id, addr);
            }
            Reactor::new(io, mail, node)
        });
        let reactors = reactors.collect();
        let metrics = plan.metrics();
        Ok(Target { world, setup, reactors, injector, metrics, done: BTreeMap::new(), generation, wanted, next: 0 })
    }

    /// Gives turns until `until` or a crash.
    pub(crate) fn run(&mut self, turns: u64, mut until: impl FnMut(&BTreeMap<RequestId, Done>) -> bool) -> Ended {
        let done = &mut self.done;
        let world = self.world.clone();
        world.run(
            &mut self.reactors,
            turns,
            |reactor| {
                reactor.turn(true);
            },
            |reactors| {
                for reactor in reactors {
                    done.extend(reactor.application().take_done().map(|ended| (ended.id, ended)));
                }
                until(done)
            },
        )
    }

    /// Gives turns until `until`, in which nothing may crash or hang.
    pub(crate) fn run_until(&mut self, until: impl FnMut(&BTreeMap<RequestId, Done>) -> bool) {
        assert_eq!(self.run(2_000_000, until), Ended::Done);
    }

    /// Lets so much time pass.
    pub(crate) fn pass_ns(&mut self, ns: u64) {
        let (world, until) = (self.world.clone(), self.world.now().plus_ns(ns));
        self.run_until(|_| world.now() >= until);
    }

    // ---- requests

    pub(crate) fn buf(&mut self, bytes: &[u8]) -> Buf {
        let mut buf = self.reactors[0].io().buffers().get(bytes.len()).expect("a buffer for the test");
        buf.copy_from_slice(bytes);
        buf
    }

    pub(crate) fn submit(&mut self, reactor: usize, request: Request) -> RequestId {
        self.next += 1;
        let id = RequestId(self.next);
        self.reactors[reactor].application().submit(id, request);
        self.world.stir();
        id
    }

    /// A request of association 1, by any reactor.
    pub(crate) fn request(
        &mut self,
        volume: VolumeId,
        command: Command,
        offset: u64,
        len: u32,
        bytes: Option<&[u8]>,
    ) -> RequestId {
        let reactor = self.world.pick(self.reactors.len());
        let buf = bytes.map(|bytes| self.buf(bytes));
        let association = AssociationId(1);
        self.submit(reactor, Request { association, volume, command, offset, len, data: buf.map(Into::into) })
    }

    pub(crate) fn wait(&mut self, id: RequestId) -> Done {
        self.run_until(|done| done.contains_key(&id));
        self.done.remove(&id).expect("just seen")
    }

    pub(crate) fn write(&mut self, volume: VolumeId, offset: u64, bytes: &[u8]) -> Status {
        let id = self.request(volume, Command::Write { fua: false }, offset, bytes.len() as u32, Some(bytes));
        self.wait(id).status
    }

    pub(crate) fn read(&mut self, volume: VolumeId, offset: u64, len: usize) -> Result<Vec<u8>, Status> {
        let id = self.request(volume, Command::Read, offset, len as u32, Some(&vec![0xEE; len]));
        let done = self.wait(id);
        if done.status == Status::Success {
            Ok(done.data.expect("its buffer").bytes().to_vec())
        } else {
            Err(done.status)
        }
    }

    pub(crate) fn flush(&mut self, volume: VolumeId) -> Status {
        let id = self.request(volume, Command::Flush, 0, 0, None);
        self.wait(id).status
    }

    // ---- control

    pub(crate) fn ask(&mut self, request: ControlRequest) -> Pending {
        let pending = Pending::default();
        let place = Arc::clone(&pending);
        let call = ControlCall::new(request, move |answer| *place.lock().unwrap() = Some(answer));
        self.injector.send(Message::Control(call));
        self.world.stir();
        pending
    }

    pub(crate) fn call(&mut self, request: ControlRequest) -> Result<ControlAnswer, ControlError> {
        let pending = self.ask(request);
        self.run_until(|_| pending.lock().unwrap().is_some());
        pending.lock().unwrap().take().expect("just seen")
    }

    pub(crate) fn create(&mut self, name: &str, size: u64) -> VolumeInfo {
        self.create_on(name, size, None)
    }

    pub(crate) fn create_on(&mut self, name: &str, size: u64, shards: Option<Vec<u16>>) -> VolumeInfo {
        volume(self.call(ControlRequest::VolumeCreate(creation(name, size, shards))).expect("it can be made"))
    }

    pub(crate) fn pool(&mut self) -> PoolInfo {
        match self.call(ControlRequest::PoolShow) {
            Ok(ControlAnswer::Pool(pool)) => pool,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn volumes(&mut self) -> Vec<VolumeInfo> {
        match self.call(ControlRequest::VolumeList) {
            Ok(ControlAnswer::Volumes(volumes)) => volumes,
            other => panic!("{other:?}"),
        }
    }

    /// Gives turns, and passes on what the backend says, until it says nothing more.
    pub(crate) fn settle(&mut self) {
        loop {
            self.pass_ns(5_000_000);
            let backend = self.setup.backend.clone().expect("there is one");
            let said: Vec<SyncReport> = backend.says.lock().unwrap().drain(..).collect();
            if said.is_empty() {
                return;
            }
            said.into_iter().for_each(|report| self.injector.send(Message::Sync(report)));
            self.world.stir();
        }
    }

    /// What the backend was asked since the last look.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.setup.backend.as_ref().expect("there is one").asked.lock().unwrap())
    }

    // ---- growing

    /// Gives turns until a growth waits for its device. False if it never will.
    pub(crate) fn run_until_wanted(&mut self, pending: &Pending) -> bool {
        let wanted = Arc::clone(&self.wanted);
        self.run_until(|_| !wanted.lock().unwrap().is_empty() || pending.lock().unwrap().is_some());
        !wanted.lock().unwrap().is_empty()
    }

    /// Does what on a machine a thread would: makes the device, or finds the one that an earlier attempt left, and writes its
    /// superblocks; says so to the target. `Err` if that crashes meanwhile.
    pub(crate) fn prepare_device(&mut self) -> Result<(), Crashed> {
        let wanted = self.wanted.lock().unwrap().pop_front().expect("a growth waits for its device");
        let number = wanted.joining.number();
        let mut io = self.world.io();
        if io.files().len() == usize::from(number) {
            drop(io);
            let size = wanted.grow.size.expect("a file");
            self.world.add_disk(DiskConfig { size, ..self.setup.disks[0].clone() });
            io = self.world.io();
        }
        let attempt = self.world.now().0;
        let options = GrowOptions {
            uuid: Uuid::from_u128(0x9900 << 64 | u128::from(attempt)),
            force: false,
            created_unix_s: 1_790_000_001,
        };
        let superblock = self.world.until_crash(|| wanted.joining.prepare(&mut io, &options))?;
        let prepared = superblock.map(|superblock| {
            Box::new(Prepared {
                info: io.files()[usize::from(number)],
                file: NewFile::Sim(superblock.number),
                path: format!("disk {}", superblock.number).into(),
                serve: "the same disks".into(),
                superblock,
            })
        });
        let prepared = prepared.map_err(|error| ControlError::invalid(error.to_string()));
        self.injector.send(Message::Prepared(prepared));
        self.world.stir();
        Ok(())
    }

    pub(crate) fn ask_growth(&mut self, size: u64) -> Pending {
        let allocate = Allocate::Sparse;
        self.ask(ControlRequest::PoolGrow(PoolGrow { device: None, size: Some(size), allocate, force: false }))
    }

    pub(crate) fn grow(&mut self, size: u64) -> Result<PoolGrown, ControlError> {
        let pending = self.ask_growth(size);
        if self.run_until_wanted(&pending) {
            self.prepare_device().expect("nothing crashes");
        }
        self.run_until(|_| pending.lock().unwrap().is_some());
        match pending.lock().unwrap().take().expect("just seen") {
            Ok(ControlAnswer::Grown(grown)) => Ok(grown),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        }
    }

    // ---- ends

    /// Stops in good order and opens again.
    pub(crate) fn restart(mut self) -> Target {
        self.stop();
        let Target { world, setup, reactors, .. } = self;
        drop(reactors);
        Target::open(world, setup)
    }

    pub(crate) fn stop(&mut self) {
        self.injector.send(Message::Quiet);
        self.world.stir();
        let stopped = |reactor: &mut SimReactor| reactor.application().is_stopped();
        let world = self.world.clone();
        let ended = world.run(
            &mut self.reactors,
            2_000_000,
            |reactor| {
                reactor.turn(true);
            },
            |reactors| reactors.iter_mut().all(stopped),
        );
        assert_eq!(ended, Ended::Done);
    }

    /// The process dies; the next one opens the pool.
    pub(crate) fn kill(self) -> Target {
        let Target { world, setup, reactors, .. } = self;
        world.kill();
        drop(reactors);
        world.quiesce();
        Target::open(world, Setup { machine_restarted: false, ..setup })
    }

    /// The machine dies; the next process opens the pool.
    pub(crate) fn power_loss(self) -> Target {
        let Target { world, setup, reactors, .. } = self;
        world.power_loss();
        drop(reactors);
        Target::open(world, Setup { machine_restarted: true, ..setup })
    }
}

/// The port of a process that died is free a moment later.
fn listen(io: &mut SimIo, addr: SocketAddr) -> (ListenerId, SocketAddr) {
    for _ in 0..1000 {
        if let Ok(listener) = io.listen(addr) {
            return listener;
        }
        io.world().advance_ns(1_000_000);
    }
    panic!("{addr} stays in use")
}

pub(crate) fn creation(name: &str, size: u64, shards: Option<Vec<u16>>) -> VolumeCreate {
    VolumeCreate {
        name: name.into(),
        size,
        lba_bytes: 512,
        shards: shards.map(|shards| shards.into_iter().map(ringway_core::ids::ShardId).collect()),
        exclusive: false,
        allowed_hosts: Vec::new(),
    }
}

pub(crate) fn volume(answer: ControlAnswer) -> VolumeInfo {
    match answer {
        ControlAnswer::Volume(volume) => volume,
        other => panic!("not a volume: {other:?}"),
    }
}
