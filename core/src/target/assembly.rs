//! From an open pool to the reactors' nodes: the same steps on the machine and in the simulator.
//!
//! ```text
//! open pool -> Plan (shared) -> Plan::recover (each reactor its own shards, in parallel) -> Plan::node (each reactor)
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use ringway_rdma::verbs::Verbs;
use ringway_reactor::io::{FileId, FileInfo, Instant, Io, Wait};
use uuid::Uuid;

use crate::backend::settings::BackendSettings;
use crate::catalog::{CatalogLog, CatalogState};
use crate::checkpoint::RING_BYTES;
use crate::control::TargetInfo;
use crate::controller::registry::Registry;
use crate::directory::Directory;
use crate::export::ExportRecord;
use crate::ids::{Epoch, ShardId, VolumeId};
use crate::metrics::Metrics;
use crate::node::fetch::FetchPort;
use crate::node::interest::Interests;
use crate::node::owner::{
    CatalogPlace, FirstFlush, NewDevices, Owner, OwnerParts, PoolFacts, Store, Surroundings, Untold, directory_of,
};
use crate::node::{Node, NodeParts};
use crate::pool::{Layout, OpenPool};
use crate::shard::{OpenError, Opened, Progress, RecordLog, Recovery, RecoverySpec, Region, ShardConfig, TokenBase};
use crate::snapshot::sync::SyncPort;
use crate::tokens;
use crate::transport::{
    LaterVerbs, NbdConfig, NbdShared, NbdTransport, RdmaTransport, ShmConfig, ShmTransport, TcpTransport,
    TransportConfig, Transports, VhostShared, VhostTransport,
};

/// The device with everything but data.
const META: FileId = FileId(0);

/// What the surroundings give a target, beside its pool.
pub struct Surrounds {
    /// Reactors.
    pub reactors: usize,
    /// Bounds and times of the shards; the map cache is for all of them.
    pub shard: ShardConfig,
    /// What the target says of itself.
    pub target: TargetInfo,
    /// Paths of the devices.
    pub paths: Vec<String>,
    /// What is known of the devices.
    pub files: Vec<FileInfo>,
    /// For so long hosts are told, by failing flushes, that the machine has failed under them; 0: they are not.
    pub lost_writes_notice_ns: u64,
    /// How long a stopping target waits for what is in flight.
    pub drain_timeout_ns: u64,
}

/// What reactor 0 alone needs.
pub struct Sources {
    /// Seconds since 1970.
    pub unix_s: Box<dyn Fn() -> u64 + Send>,
    /// An identity that nothing else has.
    pub new_uuid: Box<dyn FnMut() -> Uuid + Send>,
    /// Gets devices ready to join.
    pub new_devices: Box<dyn NewDevices>,
    /// Who stores snapshots elsewhere; none: what is durable in the pool is synced.
    pub sync_port: Option<Box<dyn SyncPort>>,
}

/// A reactor's way to RDMA devices, and where the reactors are.
#[derive(Default)]
pub struct Fabric {
    /// `None` where there is none.
    pub verbs: Option<Box<dyn Verbs>>,
    /// Where there may be some later.
    pub later: Option<LaterVerbs>,
    /// The memory node of each reactor's core, where known.
    pub numa: Vec<Option<u16>>,
}

/// What all reactors of a target share. Sent to each of their threads.
pub struct Plan {
    reactors: usize,
    placement: Arc<[u16]>,
    shard: ShardConfig,
    layout: Layout,
    /// As it was opened; the owner goes on from there.
    state: CatalogState,
    log: CatalogLog,
    registry: Arc<Registry>,
    directory: Arc<Directory>,
    vhost: Arc<VhostShared>,
    nbd: Arc<NbdShared>,
    epoch: Arc<AtomicU64>,
    metrics: Arc<Metrics>,
    first_flush: Arc<FirstFlush>,
    interests: Arc<Interests>,
    facts: PoolFacts,
    target: TargetInfo,
    drain_timeout_ns: u64,
}

/// What recovery could not bring back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damaged {
    /// Volumes that lost records: to which shard, and how.
    pub volumes: Vec<(ShardId, VolumeId, String)>,
    /// Shards that cannot be opened, and why. Nothing on them is changed.
    pub dead: Vec<(ShardId, String)>,
}

impl Damaged {
    /// Of several reactors together.
    pub fn extend(&mut self, more: Damaged) {
        self.volumes.extend(more.volumes);
        self.dead.extend(more.dead);
    }
}

/// The shards of one reactor, as far as they could be opened.
pub struct Recovered<L> {
    /// Ready for parts.
    pub opened: Vec<Opened<L>>,
    /// Those that could not be opened, and why: volumes with stripes there are faulted, the others are served (I4).
    pub dead: Vec<(ShardId, String)>,
}

impl<L> Recovered<L> {
    /// What the catalog's owner has to know.
    #[must_use]
    pub fn damaged(&self) -> Damaged
    where
        L: RecordLog,
    {
        let of = |opened: &Opened<L>| {
            let shard = opened.shard.id();
            let why = format!("shard {shard}: records of its map are lost");
            opened.faulted.iter().map(|&volume| (shard, volume, why.clone())).collect::<Vec<_>>()
        };
        Damaged { volumes: self.opened.iter().flat_map(of).collect(), dead: self.dead.clone() }
    }
}

impl Plan {
    /// Decides who does what.
    #[must_use]
    pub fn new(pool: OpenPool, surrounds: Surrounds) -> Plan {
        let Surrounds { reactors, mut shard, target, paths, files, lost_writes_notice_ns, drain_timeout_ns } =
            surrounds;
        // Given for all shards together.
        shard.map_cache_bytes /= usize::from(pool.layout.shards);
        let shards = usize::from(pool.layout.shards);
        let version = u64::from(pool.generation) << 32;
        let now = Surroundings { insecure: target.insecure, ..Surroundings::default() };
        let untold: Untold = pool.catalog.volumes().map(|entry| (entry.record.id, entry.untold.clone())).collect();
        let first_flush = FirstFlush::new(untold, lost_writes_notice_ns);
        let metrics = Metrics::new(reactors, shards);
        let directory = Arc::new(directory_of(&pool.catalog, &BTreeMap::new(), version, now, None, &[]));
        let registry = Arc::new(Registry::default().counted_by(Arc::clone(&metrics) as _));
        Plan {
            reactors,
            placement: (0..shards).map(|shard| (shard % reactors) as u16).collect(),
            shard,
            nbd: NbdShared::new(reactors, Arc::clone(&registry)),
            registry,
            vhost: VhostShared::new(reactors, Arc::clone(&directory)),
            directory,
            epoch: Arc::new(AtomicU64::new(Epoch::first_of(pool.generation).0)),
            metrics,
            first_flush,
            interests: Interests::new(reactors),
            facts: PoolFacts {
                uuid: pool.uuid,
                format_version: crate::pool::FORMAT_VERSION,
                generation: pool.generation,
                geometry: Arc::clone(&pool.layout.geometry),
                paths,
                files,
                atomic_unit: pool.atomic_unit,
                first: pool.superblocks[0].clone(),
            },
            layout: pool.layout,
            state: pool.catalog,
            log: pool.log,
            target,
            drain_timeout_ns,
        }
    }

    /// The counters.
    #[must_use]
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// What virtual machines' connections share.
    #[must_use]
    pub fn vhost(&self) -> Arc<VhostShared> {
        Arc::clone(&self.vhost)
    }

    /// What NBD connections share.
    #[must_use]
    pub fn nbd(&self) -> Arc<NbdShared> {
        Arc::clone(&self.nbd)
    }

    /// Who is attached.
    #[must_use]
    pub fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.registry)
    }

    /// Who is polled for, and how.
    #[must_use]
    pub fn interests(&self) -> Arc<Interests> {
        Arc::clone(&self.interests)
    }

    /// Where snapshots are stored, as the catalog was opened with it.
    #[must_use]
    pub fn backend(&self) -> Option<&BackendSettings> {
        self.state.backend()
    }

    /// Whose pool it is.
    #[must_use]
    pub fn pool(&self) -> Uuid {
        self.facts.uuid
    }

    /// The exports, as the catalog was opened with them.
    pub fn exports(&self) -> impl Iterator<Item = &ExportRecord> {
        self.state.exports()
    }

    /// The shards that live on a reactor.
    pub fn shards_of(&self, reactor: usize) -> impl Iterator<Item = ShardId> {
        let placed = self.placement.iter().enumerate();
        placed.filter(move |&(_, &at)| usize::from(at) == reactor).map(|(shard, _)| ShardId(shard as u16))
    }

    fn spec<L>(&self, id: ShardId, log: L) -> RecoverySpec<L> {
        let layout = &self.layout;
        RecoverySpec {
            id,
            tokens: TokenBase::new(tokens::SHARD, id),
            config: self.shard.clone(),
            pool: self.facts.uuid,
            generation: self.facts.generation,
            geometry: Arc::clone(&layout.geometry),
            reserve: u64::from(layout.reserve_clusters),
            headers: Region { file: META, offset: layout.checkpoint_ring(id), len: RING_BYTES as u64 },
            journal: Region { file: META, offset: layout.journal(id), len: layout.journal_bytes },
            slabs: self.state.slabs_of(id).collect(),
            volumes: self.directory.volumes_of(id).cloned().collect(),
            removed: self.directory.erasing_of(id).collect(),
            suspect: self
                .state
                .faults()
                .filter(|(_, fault)| fault.shard == Some(id))
                .map(|(volume, _)| volume)
                .collect(),
            log,
        }
    }

    /// Opens the shards of a reactor, all at once. `log` gives each its log. Fails only where nothing is wrong with the pool.
    pub fn recover<I: Io, L: RecordLog>(
        &self,
        io: &mut I,
        reactor: usize,
        mut log: impl FnMut(ShardId) -> L,
    ) -> Result<Recovered<L>, OpenError> {
        let mut running = BTreeMap::new();
        let (mut opened, mut dead) = (Vec::new(), Vec::new());
        for id in self.shards_of(reactor) {
            running.insert(id, Recovery::start(io, self.spec(id, log(id)))?);
        }
        let mut completions = Vec::new();
        while !running.is_empty() {
            io.poll(Wait::Until(Instant::NEVER), &mut completions);
            for completion in completions.drain(..) {
                let id = TokenBase::shard_of(completion.token);
                let recovery = running.remove(&id).expect("only shards that are being opened have reads in flight");
                match recovery.on_completion(io, completion) {
                    Ok(Progress::Reading(recovery)) => {
                        running.insert(id, *recovery);
                    }
                    Ok(Progress::Opened(shard)) => opened.push(*shard),
                    // Its slabs, its journal and its log stay as they are, for whoever repairs it.
                    Err(error) => dead.push((id, error.to_string())),
                }
            }
        }
        for shard in &opened {
            for note in &shard.notes {
                tracing::warn!("{note}");
            }
        }
        for (shard, why) in &dead {
            tracing::error!(%shard, why, "a shard cannot be opened: its volumes are faulted, the others are served");
        }
        Ok(Recovered { opened, dead })
    }

    /// A reactor's node. Reactor 0 gets `sources`, and what was damaged on all reactors.
    #[must_use]
    pub fn node<L: RecordLog>(
        &self,
        reactor: usize,
        recovered: Recovered<L>,
        buffer_bytes: usize,
        fetch_port: Option<Arc<dyn FetchPort>>,
        fabric: Fabric,
        first: Option<(Sources, Damaged)>,
    ) -> Node<L> {
        assert_eq!(first.is_some(), reactor == 0, "the catalog lives on reactor 0");
        let owner = first.map(|(sources, damaged)| self.owner(sources, damaged));
        let tcp = TcpTransport::new(
            TransportConfig::new(reactor, self.reactors, buffer_bytes),
            Arc::clone(&self.registry),
            Arc::clone(&self.directory),
        );
        let mut rdma = RdmaTransport::new(
            TransportConfig::new(reactor, self.reactors, buffer_bytes),
            Arc::clone(&self.registry),
            Arc::clone(&self.directory),
            fabric.verbs,
            fabric.numa,
        );
        if let Some(later) = fabric.later {
            rdma.expect_devices(later);
        }
        let vhost = VhostTransport::new(Arc::clone(&self.vhost), Arc::clone(&self.directory));
        let shm = ShmTransport::new(
            ShmConfig { reactor, reactors: self.reactors, interests: Arc::clone(&self.interests) },
            Arc::clone(&self.registry),
            Arc::clone(&self.directory),
        );
        let nbd = NbdTransport::new(
            NbdConfig::new(reactor, buffer_bytes),
            Arc::clone(&self.nbd),
            Arc::clone(&self.directory),
        );
        Node::new(NodeParts {
            index: reactor,
            reactors: self.reactors,
            placement: Arc::clone(&self.placement),
            shards: recovered.opened.into_iter().map(|opened| opened.shard).collect(),
            transports: Transports { tcp, rdma, shm, vhost, nbd },
            registry: Arc::clone(&self.registry),
            directory: Arc::clone(&self.directory),
            epoch: Arc::clone(&self.epoch),
            metrics: Arc::clone(&self.metrics),
            first_flush: Arc::clone(&self.first_flush),
            interests: Arc::clone(&self.interests),
            fetch_port,
            owner,
        })
    }

    fn owner(&self, sources: Sources, damaged: Damaged) -> Owner {
        let place = CatalogPlace { file: META, copies: self.layout.catalog };
        Owner::new(OwnerParts {
            reactors: self.reactors,
            placement: Arc::clone(&self.placement),
            store: Store::new(self.state.clone(), self.log.clone(), place),
            pool: self.facts.clone(),
            target: self.target.clone(),
            registry: Arc::clone(&self.registry),
            directory: Arc::clone(&self.directory),
            metrics: Arc::clone(&self.metrics),
            damaged: damaged.volumes,
            dead: damaged.dead,
            epoch: Arc::clone(&self.epoch),
            sync_port: sources.sync_port,
            drain_timeout_ns: self.drain_timeout_ns,
            unix_s: sources.unix_s,
            new_uuid: sources.new_uuid,
            new_devices: sources.new_devices,
        })
    }
}
