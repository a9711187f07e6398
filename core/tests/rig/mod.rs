//! One shard on simulated disks, what surrounds it played by the test, and a model of what it promised.
//!
//! The model is per sector of 512 bytes: which writes were submitted, which are acknowledged, which are durable. Writes of one
//! 4 KiB block take effect in the order of their submission, so "at least as new as" is a number.
#![expect(dead_code, unreachable_pub, reason = "each test binary uses its part of the rig")]

pub mod backend;
pub mod lines;
pub mod model;
pub mod views;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use ringway_core::checkpoint::{CheckpointHeader, HEADER_BYTES, RING_BYTES, read_ring};
use ringway_core::checksum::Seed;
use ringway_core::ids::{AssociationId, AttemptId, Epoch, Lsn, ShardId, VolumeId};
use ringway_core::request::{Command, Status};
use ringway_core::shard::verify::Verification;
use ringway_core::shard::{
    Answer, Event, FileSet, LogFull, Opened, Part, PartDone, Progress, RecordLog, Recovery, RecoverySpec, Region,
    Shard, ShardConfig, TokenBase,
};
use ringway_core::space::{Geometry, SlabArea, SlabId};
use ringway_core::volume::VolumeRecord;
use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Completion, FileId, Io, IoError, Op, Token, Wait};
use ringway_reactor::sim::{DiskConfig, DiskId, Image, SimIo, SimLog, World, WorldConfig};
use uuid::Uuid;

pub const MIB: u64 = 1 << 20;
const SHARD: ShardId = ShardId(0);
const KIND_SHARD: u8 = 1;
const KIND_BARRIER: u8 = 2;
const HEADERS: u64 = 64 << 10;
const JOURNAL: u64 = MIB;
const SLABS: u64 = 4 * MIB;

pub struct Log(SimLog);

impl RecordLog for Log {
    fn append(&mut self, lsn: Lsn, record: &[u8]) -> Result<(), LogFull> {
        self.0.append(lsn.0, record).map_err(|_| LogFull)
    }
    fn truncate(&mut self, durable: Lsn) {
        self.0.truncate(durable.0);
    }
    fn replay(&mut self) -> Vec<(Lsn, Vec<u8>)> {
        self.0.replay().into_iter().map(|(lsn, bytes)| (Lsn(lsn), bytes)).collect()
    }
}

/// What the catalog would say; survives every crash.
#[derive(Clone)]
pub struct Setup {
    pub disk: DiskConfig,
    pub disks: u16,
    pub slab_bytes: u64,
    pub slabs_per_disk: u32,
    pub journal_blocks: u64,
    pub log_bytes: usize,
    pub reserve: u64,
    pub config: ShardConfig,
    pub boot: u32,
    pub owned: Vec<SlabId>,
    pub volumes: Vec<Arc<VolumeRecord>>,
    pub removed: Vec<VolumeId>,
    /// Volumes that a shard has said to have lost records.
    pub suspect: Vec<VolumeId>,
    /// What clones look through to.
    pub backend: backend::Backend,
}

pub fn volume(id: u32, size: u64, lba_bytes: u32) -> VolumeRecord {
    VolumeRecord {
        id: VolumeId(id),
        name: format!("v{id}"),
        uuid: Uuid::from_u128(u128::from(id)),
        size,
        lba_bytes,
        shards: vec![SHARD],
        created_unix_s: 0,
        exclusive: false,
        allowed_hosts: Vec::new(),
        cuts: Vec::new(),
        dead: Vec::new(),
        view: None,
        parent: None,
    }
}

impl Setup {
    pub fn new() -> Setup {
        Setup {
            disk: DiskConfig { size: 40 * MIB, ..DiskConfig::default() },
            disks: 1,
            slab_bytes: MIB,
            slabs_per_disk: 32,
            journal_blocks: 256,
            log_bytes: 64 << 10,
            reserve: 6,
            config: ShardConfig { commit_interval_ns: 20_000_000, ..ShardConfig::default() },
            boot: 0,
            owned: Vec::new(),
            volumes: vec![Arc::new(volume(1, 4 * MIB, 512)), Arc::new(volume(2, 4 * MIB, 512))],
            removed: Vec::new(),
            suspect: Vec::new(),
            backend: backend::Backend::default(),
        }
    }

    pub fn geometry(&self) -> Geometry {
        Geometry::new(
            self.slab_bytes,
            vec![SlabArea { start: SLABS, slabs: self.slabs_per_disk }; usize::from(self.disks)],
        )
    }

    fn seed() -> Seed {
        Seed::pool(Uuid::from_u128(7)).shard(SHARD)
    }

    /// What formatting leaves: one checkpoint of nothing.
    pub fn formatted(&self) -> Vec<Image> {
        let mut first = Image::zeroed(self.disk.size);
        let header = CheckpointHeader::first(0);
        let mut bytes = vec![0; HEADER_BYTES];
        header.encode(SHARD, Self::seed(), &mut bytes);
        first.write(HEADERS + header.slot(), &bytes);
        let mut images = vec![first];
        images.extend((1..self.disks).map(|_| Image::zeroed(self.disk.size)));
        images
    }

    /// A world with disks that hold `images`.
    pub fn world(&self, seed: u64, images: &[Image]) -> World {
        let world = World::new(seed, WorldConfig::default());
        for image in images {
            world.add_disk_from(self.disk.clone(), image);
        }
        world
    }

    pub fn headers(&self) -> Region {
        Region { file: FileId(0), offset: HEADERS, len: RING_BYTES as u64 }
    }

    /// Checkpoint headers that are whole on the first disk, newest first.
    pub fn checkpoints(&self, world: &World) -> Vec<CheckpointHeader> {
        let ring = world.bytes(DiskId(0), HEADERS, RING_BYTES);
        read_ring(&ring, SHARD, Setup::seed(), &self.geometry()).newest_first
    }

    /// The newest checkpoint header rots if it is newer than number `known`; the number of the one before.
    pub fn rot_header_after(&self, known: u64, world: &World) -> Option<u64> {
        let newest = self.checkpoints(world).remove(0);
        (newest.generation > known).then(|| {
            world.rot(DiskId(0), HEADERS + newest.slot(), HEADER_BYTES as u64);
            newest.generation - 1
        })
    }

    pub fn journal(&self) -> Region {
        Region { file: FileId(0), offset: JOURNAL, len: self.journal_blocks * 4096 }
    }
}

/// What opening a pool does before its shards: what a killed process had written is read as if it were durable, so it must be.
fn make_durable(io: &mut SimIo, disks: u16) {
    let mut completions = Vec::new();
    for file in 0..disks {
        io.submit(Token(0), Op::Barrier { file: FileId(file) });
        while completions.is_empty() {
            io.poll(Wait::Until(ringway_reactor::io::Instant::NEVER), &mut completions);
        }
        completions.clear();
    }
}

struct Barriers {
    tickets: HashMap<u64, (usize, Result<(), IoError>)>,
    /// By slot: the ticket.
    ops: HashMap<u32, u64>,
    next: u32,
}

pub struct Rig {
    pub world: World,
    pub setup: Setup,
    pub io: SimIo,
    pub shard: Shard<Log>,
    pub word: u64,
    pub done: VecDeque<PartDone>,
    pub events: Vec<Event>,
    pub faults: Vec<String>,
    pub faulted: Vec<VolumeId>,
    pub notes: Vec<String>,
    pub replayed: (usize, usize),
    pub fenced: Vec<u64>,
    pub erased: Vec<VolumeId>,
    pub armed: Vec<AttemptId>,
    pub sealed: Vec<(AttemptId, Option<String>)>,
    pub drained: bool,
    pub answers: Vec<(u64, Result<Answer, Status>)>,
    /// Slabs that the shard gave back, and how often it was asked for one and had none.
    pub given_back: u64,
    pub kept_slabs: u64,
    /// Whether the pool gives more slabs.
    pub give_slabs: bool,
    pub backend: backend::Backend,
    barriers: Barriers,
    completions: Vec<Completion>,
    next_id: u64,
}

impl Rig {
    /// A new pool.
    pub fn new(seed: u64, setup: Setup) -> Rig {
        let world = setup.world(seed, &setup.formatted());
        Rig::open(world, setup)
    }

    /// Opens whatever is on the world's disks, as the next boot.
    pub fn open(world: World, setup: Setup) -> Rig {
        Rig::try_open(world, setup).unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn try_open(world: World, mut setup: Setup) -> Result<Rig, String> {
        setup.boot += 1;
        let mut io = world.io();
        make_durable(&mut io, setup.disks);
        let tokens = TokenBase::new(KIND_SHARD, SHARD);
        let spec = RecoverySpec {
            id: SHARD,
            tokens,
            config: setup.config.clone(),
            pool: Uuid::from_u128(7),
            generation: setup.boot,
            geometry: Arc::new(setup.geometry()),
            reserve: setup.reserve,
            headers: setup.headers(),
            journal: setup.journal(),
            slabs: setup.owned.clone(),
            volumes: setup.volumes.clone(),
            removed: setup.removed.clone(),
            suspect: setup.suspect.clone(),
            log: Log(world.log(0, setup.log_bytes)),
        };
        let mut recovery = Recovery::start(&mut io, spec).map_err(|error| error.to_string())?;
        let mut completions = Vec::new();
        let opened = loop {
            io.poll(Wait::Until(ringway_reactor::io::Instant::NEVER), &mut completions);
            match completions.pop() {
                None => continue,
                Some(completion) => match recovery.on_completion(&mut io, completion).map_err(|e| e.to_string())? {
                    Progress::Reading(reading) => recovery = *reading,
                    Progress::Opened(opened) => break *opened,
                },
            }
        };
        let Opened { shard, notes, faulted, replayed } = opened;
        setup.suspect.extend(&faulted);
        Ok(Rig {
            word: Epoch::first_of(setup.boot).0,
            world,
            io,
            shard,
            done: VecDeque::new(),
            events: Vec::new(),
            faults: Vec::new(),
            faulted,
            notes,
            replayed,
            fenced: Vec::new(),
            erased: Vec::new(),
            armed: Vec::new(),
            sealed: Vec::new(),
            drained: false,
            answers: Vec::new(),
            given_back: 0,
            kept_slabs: 0,
            give_slabs: true,
            backend: setup.backend.clone(),
            setup,
            barriers: Barriers { tickets: HashMap::new(), ops: HashMap::new(), next: 0 },
            completions,
            next_id: 0,
        })
    }

    /// One tick.
    pub fn turn(&mut self) {
        let wait = if self.shard.busy() { Wait::No } else { Wait::Until(self.shard.next_deadline()) };
        self.io.poll(wait, &mut self.completions);
        let mut events = std::mem::take(&mut self.events);
        for completion in std::mem::take(&mut self.completions) {
            let slot = TokenBase::slot_of(completion.token);
            if (completion.token.0 >> 56) as u8 == KIND_BARRIER {
                self.barrier_done(slot, completion.result.map(|_| ()), &mut events);
            } else {
                self.shard.on_completion(&mut self.io, slot, completion, &mut events);
            }
        }
        self.shard.execute(&mut self.io, Epoch(self.word), &mut events);
        while !events.is_empty() {
            for event in std::mem::take(&mut events) {
                self.on_event(event, &mut events);
            }
        }
        self.events = events;
    }

    pub(crate) fn on_event(&mut self, event: Event, events: &mut Vec<Event>) {
        match event {
            Event::Done(done) => self.done.push_back(done),
            Event::Barrier { ticket, files } => self.barrier(ticket, files),
            Event::NeedSlab { .. } => self.slab(),
            Event::Fenced { token, .. } => self.fenced.push(token),
            Event::SlabReleased(slab) => self.take_back(slab),
            Event::SlabKept => self.kept_slabs += 1,
            Event::Erased(volume) => self.erased.push(volume),
            Event::Fault { volume, why } => {
                self.faulted.extend(volume);
                self.faults.push(why);
            }
            Event::Armed(attempt) => self.armed.push(attempt),
            Event::Sealed { attempt, failed } => self.sealed.push((attempt, failed)),
            Event::Answer { token, answer } => self.answers.push((token, answer)),
            Event::Fetch(fetch) => self.on_fetch(fetch),
            Event::Drained => self.drained = true,
        }
        let _ = events;
    }

    fn slab(&mut self) {
        let next = self.setup.geometry().slabs().find(|slab| !self.setup.owned.contains(slab));
        match next.filter(|_| self.give_slabs) {
            Some(slab) => {
                self.setup.owned.push(slab);
                self.shard.on_slab(slab);
            }
            None => self.shard.on_no_slab(),
        }
    }

    /// Another shard has the slab at once, and writes all over it.
    fn take_back(&mut self, slab: SlabId) {
        let before = self.setup.owned.len();
        self.setup.owned.retain(|&owned| owned != slab);
        assert_eq!(self.setup.owned.len() + 1, before, "a shard gives back what is its own");
        let first = self.setup.geometry().place(slab, 0);
        self.world.rot(DiskId(u16::from(slab.device())), first.offset(), self.setup.slab_bytes);
        self.given_back += 1;
    }

    fn barrier(&mut self, ticket: u64, files: FileSet) {
        let count = files.iter().count();
        self.barriers.tickets.insert(ticket, (count, Ok(())));
        for file in files.iter() {
            let slot = self.barriers.next;
            self.barriers.next += 1;
            self.barriers.ops.insert(slot, ticket);
            self.io.submit(TokenBase::new(KIND_BARRIER, SHARD).token(slot), Op::Barrier { file: FileId(file) });
        }
    }

    fn barrier_done(&mut self, slot: u32, result: Result<(), IoError>, events: &mut Vec<Event>) {
        let ticket = self.barriers.ops.remove(&slot).expect("a barrier of ours");
        let entry = self.barriers.tickets.get_mut(&ticket).expect("a ticket of ours");
        entry.0 -= 1;
        entry.1 = entry.1.and(result);
        if entry.0 == 0 {
            let (_, result) = self.barriers.tickets.remove(&ticket).expect("just seen");
            self.shard.on_barrier(&mut self.io, ticket, result, events);
        }
    }

    pub fn submit(&mut self, volume: u32, command: Command, start: u64, len: u32, buf: Option<Buf>) -> u64 {
        self.submit_as(1, volume, command, start, len, buf, None)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a part")]
    pub fn submit_as(
        &mut self,
        association: u64,
        volume: u32,
        command: Command,
        start: u64,
        len: u32,
        buf: Option<Buf>,
        view: Option<Epoch>,
    ) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        self.shard.submit(Part {
            id,
            association: AssociationId(association),
            volume: VolumeId(volume),
            command,
            start,
            len,
            data: buf.map(Into::into),
            view,
        });
        id
    }

    pub fn fence(&mut self, association: u64, token: u64) {
        let mut events = std::mem::take(&mut self.events);
        self.shard.fence(AssociationId(association), token, &mut events);
        for event in std::mem::take(&mut events) {
            self.on_event(event, &mut events);
        }
        self.events = events;
    }

    /// Runs until the part is answered.
    pub fn wait(&mut self, id: u64) -> PartDone {
        for _ in 0..200_000 {
            if let Some(at) = self.done.iter().position(|done| done.id == id) {
                return self.done.remove(at).expect("just found");
            }
            self.turn();
        }
        panic!("part {id} is not answered: {}", self.shard.describe());
    }

    pub fn buf(&self, bytes: &[u8]) -> Buf {
        let mut buf = self.io.buffers().get(bytes.len()).expect("a buffer for the test");
        buf.copy_from_slice(bytes);
        buf
    }

    pub fn write(&mut self, volume: u32, start: u64, bytes: &[u8], fua: bool) -> Status {
        let buf = self.buf(bytes);
        let id = self.submit(volume, Command::Write { fua }, start, bytes.len() as u32, Some(buf));
        self.wait(id).status
    }

    pub fn read(&mut self, volume: u32, start: u64, len: u32) -> Result<Vec<u8>, Status> {
        self.read_at(volume, start, len, None)
    }

    pub fn read_at(&mut self, volume: u32, start: u64, len: u32, view: Option<Epoch>) -> Result<Vec<u8>, Status> {
        let mut buf = self.io.buffers().get(len as usize).expect("a buffer for the test");
        buf.fill(0xEE);
        let id = self.submit_as(1, volume, Command::Read, start, len, Some(buf), view);
        let done = self.wait(id);
        let buf = done.data.expect("a read gives its buffer back").into_own();
        if done.status == Status::Success { Ok(buf.to_vec()) } else { Err(done.status) }
    }

    pub fn command(&mut self, volume: u32, command: Command, start: u64, len: u32) -> Status {
        let id = self.submit(volume, command, start, len, None);
        self.wait(id).status
    }

    pub fn flush(&mut self, volume: u32) -> Status {
        self.command(volume, Command::Flush, 0, 0)
    }

    /// A cut of the volume: everything that has started is in, nothing that has not.
    pub fn cut(&mut self, id: u32) -> Epoch {
        let cut = Epoch(self.word);
        self.word += 1;
        self.change_volume(id, |volume| volume.cuts.push(cut));
        cut
    }

    pub fn change_volume(&mut self, id: u32, change: impl FnOnce(&mut VolumeRecord)) {
        let volume = self.setup.volumes.iter_mut().find(|volume| volume.id.0 == id).expect("such a volume");
        change(Arc::make_mut(volume));
        self.shard.on_volume(Arc::clone(volume));
    }

    pub fn remove_volume(&mut self, id: u32) {
        self.setup.volumes.retain(|volume| volume.id.0 != id);
        self.setup.removed.push(VolumeId(id));
        let mut events = std::mem::take(&mut self.events);
        self.shard.on_volume_removed(VolumeId(id), &mut events);
        for event in std::mem::take(&mut events) {
            self.on_event(event, &mut events);
        }
        self.events = events;
    }

    /// Stops in order, checks that nothing leaked and that map and bitmaps agree.
    pub fn drain_and_verify(&mut self) {
        self.shard.drain();
        for _ in 0..200_000 {
            if self.drained {
                break;
            }
            self.turn();
        }
        assert!(self.drained, "not drained: {}", self.shard.describe());
        assert_eq!(self.shard.leaks(), Vec::<&str>::new());
        let mut walk = Verification::default();
        while !self.shard.verify(&mut self.io, &mut walk) {
            self.turn();
        }
        assert_eq!(walk.problems, Vec::<String>::new());
    }

    /// The process dies; the next one opens when nothing of it is left.
    pub fn kill(self) -> Rig {
        self.kill_and(|_, _| {})
    }

    /// The process dies, and something befalls the disks before the next one opens.
    pub fn kill_and(self, then: impl FnOnce(&World, &Setup)) -> Rig {
        let Rig { world, setup, io, shard, .. } = self;
        world.kill();
        drop((io, shard));
        world.quiesce();
        then(&world, &setup);
        Rig::open(world, setup)
    }

    /// The machine loses power.
    pub fn power_loss(self) -> Rig {
        let Rig { world, setup, io, shard, .. } = self;
        world.power_loss();
        drop((io, shard));
        Rig::open(world, setup)
    }

    pub fn disk(&self, nth: u16) -> DiskId {
        DiskId(nth)
    }

    pub fn token(slot: u32) -> Token {
        TokenBase::new(KIND_SHARD, SHARD).token(slot)
    }
}
