//! Who is attached: the associations of this process, under one lock that only Connect and the end of a connection take.
//!
//! Invariants: a controller number belongs to one association until that is fenced; an association that is dead is fenced
//! before its host gets another one with the same subsystem (history C11); a queue number is taken at most once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringway_reactor::io::Instant;

use super::admin::AdminQueue;
use super::association::{Association, AssociationState, ControllerKind, HostIdentity};
use super::connect::{Path, Refusal, Wish, bad_command, bad_data};
use super::queue::IoQueue;
use super::usage::{Uncounted, Usages};
use super::vendor::Front;
use crate::directory::{Directory, Subsystem};
use crate::ids::{AssociationId, VolumeId};
use crate::limits::ASSOCIATIONS_MAX;
use crate::volume::{Lease, VolumeRecord};
use crate::wire::DISCOVERY_NQN;
use crate::wire::completion::NvmeStatus;
use crate::wire::fabrics::{CNTLID_DYNAMIC, Connect, parameter};
use crate::wire::log_page::TransportType;

/// The highest controller number that may be given away (base figure 386).
const CONTROLLER_ID_MAX: u16 = 0xFFEF;

/// Controllers that live or await their fence; below the numbers there are, so that a free one is always found.
const CONTROLLERS_MAX: usize = 0xF000;

/// The associations of this process.
#[derive(Debug)]
pub struct Registry {
    associations_max: usize,
    usages: Arc<dyn Usages>,
    /// Who carries out control that comes by admin commands.
    front: Arc<Front>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    last_association: u64,
    last_controller_id: u16,
    by_controller: BTreeMap<u16, Entry>,
    /// Those on this machine that have no controller.
    locals: Vec<Local>,
    /// Volumes that nobody may attach for the time being.
    held: BTreeSet<VolumeId>,
    /// Who was the writer last, of volumes that had one by lease.
    writers: BTreeMap<VolumeId, HostIdentity>,
}

/// Somebody on this machine who has a volume by another way than a controller: a virtual machine.
#[derive(Debug)]
struct Local {
    id: AssociationId,
    volume: VolumeId,
    who: String,
    /// Its volume is gone, or was given to another.
    dead: bool,
}

#[derive(Debug)]
struct Entry {
    association: Arc<Association>,
    queues: BTreeSet<u16>,
    /// Its host is the one writer of the volumes.
    writer: bool,
}

/// A queue that was connected. Its Connect is answered with the association's controller number as the result.
#[derive(Debug)]
pub enum Connected {
    /// The first of an association.
    Admin {
        /// Its state.
        queue: Box<AdminQueue>,
        /// Older associations that have ended by this: the caller fences them.
        superseded: Vec<AssociationId>,
    },
    /// Another one.
    Io(IoQueue),
}

impl Connected {
    /// The association that the queue belongs to.
    #[must_use]
    pub fn association(&self) -> &Arc<Association> {
        match self {
            Connected::Admin { queue, .. } => queue.association(),
            Connected::Io(queue) => queue.association(),
        }
    }
}

impl Default for Registry {
    fn default() -> Self {
        Registry::new(ASSOCIATIONS_MAX)
    }
}

impl Registry {
    /// Nobody is attached; at most `associations_max` can be.
    #[must_use]
    pub fn new(associations_max: usize) -> Registry {
        assert!((1..CONTROLLERS_MAX).contains(&associations_max));
        Registry { associations_max, usages: Arc::new(Uncounted), front: Arc::default(), inner: Mutex::default() }
    }

    /// Likewise, with what its controllers tell of their volumes' use.
    #[must_use]
    pub fn counted_by(self, usages: Arc<dyn Usages>) -> Registry {
        Registry { usages, ..self }
    }

    /// Who carries out control that comes by admin commands.
    #[must_use]
    pub fn front(&self) -> &Arc<Front> {
        &self.front
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves the tables as they were between two statements; each of these keeps them whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects a queue, or says why not.
    pub fn connect(
        &self,
        connect: &Connect,
        data: &[u8],
        path: Path,
        directory: &Directory,
        now: Instant,
    ) -> Result<Connected, Refusal> {
        let wish = Wish::check(connect, data)?;
        if wish.queue_id == 0 { self.connect_admin(&wish, path, directory, now) } else { self.connect_io(&wish, now) }
    }

    fn connect_admin(
        &self,
        wish: &Wish,
        path: Path,
        directory: &Directory,
        now: Instant,
    ) -> Result<Connected, Refusal> {
        if wish.controller_id != CNTLID_DYNAMIC {
            // There are no controllers before somebody connects (dynamic controller model).
            return Err(bad_data(parameter::DATA_CONTROLLER_ID));
        }
        let kind = if wish.subsystem_nqn == DISCOVERY_NQN {
            ControllerKind::Discovery
        } else {
            let unknown = bad_data(parameter::DATA_SUBSYSTEM_NQN);
            ControllerKind::Io(directory.find_subsystem(&wish.subsystem_nqn).ok_or(unknown)?)
        };
        let mut inner = self.inner();
        let mut exclusive = false;
        if let ControllerKind::Io(subsystem) = &kind {
            admit(subsystem, wish, path, directory)?;
            inner.check_not_held(subsystem)?;
            exclusive = inner.check_exclusive(subsystem, wish, directory)? | inner.check_lease(subsystem, wish)?;
        }
        if inner.by_controller.len() >= CONTROLLERS_MAX {
            return Err(NvmeStatus::CONNECT_CONTROLLER_BUSY.into());
        }
        let superseded = inner.supersede(&kind, wish, path);
        if inner.entries().filter(|entry| !entry.association.is_dead()).count() >= self.associations_max {
            assert!(superseded.is_empty(), "who ends one may have one, and those that ended are told to the caller");
            return Err(NvmeStatus::CONNECT_CONTROLLER_BUSY.into());
        }
        let association = inner.enter(wish, kind, path, now, exclusive);
        let (usages, front) = (Arc::clone(&self.usages), Arc::clone(&self.front));
        let queue = AdminQueue::new(association, (wish.entries, wish.sq_flow_control), directory, usages, front);
        Ok(Connected::Admin { queue: Box::new(queue), superseded })
    }

    /// Attaches a volume to a host on this machine that came by no NVMe connection: the same rules hold, and its association is
    /// enabled at once. Nothing of the host's is ended by it, since each of its connections is known to live.
    pub fn attach_host(
        &self,
        host: HostIdentity,
        (subsystem, lease): (Subsystem, Option<Lease>),
        directory: &Directory,
        now: Instant,
    ) -> Result<Arc<Association>, Refusal> {
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let path = Path { local: here, peer: here, transport: TransportType::Tcp };
        let wish = Wish {
            queue_id: 0,
            entries: 0,
            sq_flow_control: false,
            keep_alive_ms: 0,
            host,
            controller_id: CNTLID_DYNAMIC,
            subsystem_nqn: subsystem.nqn.clone(),
            lease,
        };
        let mut inner = self.inner();
        admit(&subsystem, &wish, path, directory)?;
        inner.check_not_held(&subsystem)?;
        let exclusive = inner.check_exclusive(&subsystem, &wish, directory)? | inner.check_lease(&subsystem, &wish)?;
        let living = inner.entries().filter(|entry| !entry.association.is_dead()).count();
        if inner.by_controller.len() >= CONTROLLERS_MAX || living >= self.associations_max {
            return Err(NvmeStatus::CONNECT_CONTROLLER_BUSY.into());
        }
        let association = inner.enter(&wish, ControllerKind::Io(subsystem), path, now, exclusive);
        association.advance(AssociationState::Enabled);
        Ok(association)
    }

    fn connect_io(&self, wish: &Wish, now: Instant) -> Result<Connected, Refusal> {
        let mut inner = self.inner();
        let entry = inner.by_controller.get_mut(&wish.controller_id).ok_or(bad_data(parameter::DATA_CONTROLLER_ID))?;
        let association = &entry.association;
        let subsystem = association.subsystem().ok_or(bad_command(parameter::QUEUE_ID))?;
        if subsystem.nqn != wish.subsystem_nqn {
            return Err(bad_data(parameter::DATA_SUBSYSTEM_NQN));
        }
        if association.host.nqn != wish.host.nqn {
            return Err(bad_data(parameter::DATA_HOST_NQN));
        }
        if association.host.id != wish.host.id {
            return Err(bad_data(parameter::DATA_HOST_ID));
        }
        match association.state() {
            AssociationState::Enabled => {}
            AssociationState::Dead => return Err(bad_data(parameter::DATA_CONTROLLER_ID)),
            AssociationState::Connected | AssociationState::Ended => {
                return Err(NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr().into());
            }
        }
        if wish.queue_id > association.io_queues() {
            return Err(bad_command(parameter::QUEUE_ID));
        }
        if !entry.queues.insert(wish.queue_id) {
            // In use: connecting it again comes at the wrong time (base 3.3.1).
            return Err(NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr().into());
        }
        association.set_io_connected();
        association.hear(now);
        Ok(Connected::Io(IoQueue::new(Arc::clone(association), wish.queue_id, wish.entries, wish.sq_flow_control)))
    }

    /// A connection of `association` is gone, or its host is silent: it ends whole. Returns whether it was alive; if so
    /// the caller fences it.
    pub fn end(&self, association: &Association) -> bool {
        association.advance(AssociationState::Dead)
    }

    /// Attaches `who` on this machine to a volume, or says why not. What it does in there stops with the association's end, as for
    /// any other; [`Registry::detach_local`] follows when it has gone and nothing of it is left.
    pub fn attach_local(&self, record: &VolumeRecord, who: &str) -> Result<AssociationId, String> {
        let mut inner = self.inner();
        if inner.held.contains(&record.id) {
            return Err(format!("volume {:?} is being rolled back", record.name));
        }
        if record.exclusive
            && let Some(other) = inner.hosts(record.id).next()
        {
            return Err(format!("volume {:?} is exclusive, and attached by {other}", record.name));
        }
        inner.last_association += 1;
        let id = AssociationId(inner.last_association);
        inner.locals.push(Local { id, volume: record.id, who: who.to_owned(), dead: false });
        Ok(id)
    }

    /// Nothing of it is left.
    pub fn detach_local(&self, association: AssociationId) {
        self.inner().locals.retain(|local| local.id != association);
    }

    /// Nothing of `association` is left anywhere.
    pub fn fenced(&self, association: AssociationId) {
        let mut inner = self.inner();
        let id = inner.entries().find(|entry| entry.association.id == association).map(|e| e.association.controller_id);
        if let Some(id) = id {
            let entry = inner.by_controller.remove(&id).expect("found above");
            assert!(entry.association.is_dead(), "only what is dead is fenced");
        }
    }

    /// Associations of the same host with the same volumes that are dead and not yet fenced (of any host, where a volume is
    /// exclusive): until there is none, the Connect that made `association` is not answered.
    #[must_use]
    pub fn unfenced(&self, association: &Association) -> Vec<AssociationId> {
        let inner = self.inner();
        let older = |other: &Association| {
            other.id < association.id
                && other.is_dead()
                && (other.host == association.host || association.exclusive)
                && same_volumes(&other.kind, &association.kind)
        };
        inner.entries().map(|entry| &entry.association).filter(|other| older(other)).map(|other| other.id).collect()
    }

    /// NQNs of those that have `volume` attached now and are not the host of this identifier.
    #[must_use]
    pub fn others_attached(&self, volume: VolumeId, host: [u8; 16]) -> Vec<String> {
        let inner = self.inner();
        let locals = inner.locals.iter().filter(|local| local.volume == volume && !local.dead);
        let others = inner.living(volume).filter(|association| association.host.id != host);
        let all = others.map(|association| &association.host.nqn).chain(locals.map(|local| &local.who));
        let all: BTreeSet<_> = all.cloned().collect();
        all.into_iter().collect()
    }

    /// NQNs of the hosts that have `volume` attached now.
    #[must_use]
    pub fn attached_hosts(&self, volume: VolumeId) -> Vec<String> {
        let inner = self.inner();
        let hosts: BTreeSet<&str> = inner.hosts(volume).collect();
        hosts.into_iter().map(str::to_owned).collect()
    }

    /// The NQN of an association's host, as long as it is known here.
    #[must_use]
    pub fn host_of(&self, association: AssociationId) -> Option<String> {
        let inner = self.inner();
        let entry = inner.entries().find(|entry| entry.association.id == association);
        entry.map(|entry| entry.association.host.nqn.clone())
    }

    /// The catalog says durably that these hosts have attached `volume`, and who was its one writer last; or (`known` is false) takes no
    /// more changes. Whoever waits for that at a Connect goes on.
    pub fn set_on_record(
        &self,
        volume: VolumeId,
        hosts: &BTreeSet<String>,
        writer: Option<&HostIdentity>,
        known: bool,
    ) {
        let inner = self.inner();
        let is_there = |entry: &&Entry| {
            let host = &entry.association.host;
            hosts.contains(&host.nqn) && (!known || !entry.writer || writer == Some(host))
        };
        let concerned = inner.living_entries(volume).filter(is_there);
        concerned.for_each(|entry| entry.association.set_on_record(known));
    }

    /// Who is the one writer of `volume`, or was it last.
    #[must_use]
    pub fn writer(&self, volume: VolumeId) -> Option<HostIdentity> {
        self.inner().writers.get(&volume).cloned()
    }

    /// As a process before this one has left it.
    pub fn remember_writer(&self, volume: VolumeId, writer: HostIdentity) {
        self.inner().writers.insert(volume, writer);
    }

    /// Nobody attaches `volume` until [`Registry::unhold`]; whoever tries is told to try again.
    pub fn hold(&self, volume: VolumeId) {
        self.inner().held.insert(volume);
    }

    /// The volume may be attached again.
    pub fn unhold(&self, volume: VolumeId) {
        self.inner().held.remove(&volume);
    }

    /// Whether nothing of any association with `volume` is left anywhere: none lives, and each that died is fenced.
    #[must_use]
    pub fn is_settled(&self, volume: VolumeId) -> bool {
        let inner = self.inner();
        let of = |association: &Association| {
            association.subsystem().is_some_and(|s| s.namespaces.iter().any(|n| n.volume == volume))
        };
        let left = inner.entries().any(|entry| of(&entry.association));
        !left && inner.locals.iter().all(|local| local.volume != volume || local.dead)
    }

    /// Ends all associations with `volume`; the caller fences those returned.
    #[must_use]
    pub fn end_all(&self, volume: VolumeId) -> Vec<AssociationId> {
        let mut inner = self.inner();
        let ended = inner.living(volume).filter(|association| association.advance(AssociationState::Dead));
        let mut ended: Vec<_> = ended.map(|association| association.id).collect();
        for local in inner.locals.iter_mut().filter(|local| local.volume == volume && !local.dead) {
            local.dead = true;
            ended.push(local.id);
        }
        ended
    }

    /// Associations that live.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner().entries().filter(|entry| !entry.association.is_dead()).count()
    }

    /// Whether nobody is attached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether this host may attach every volume of the subsystem from where it is.
fn admit(subsystem: &Subsystem, wish: &Wish, path: Path, directory: &Directory) -> Result<(), Refusal> {
    let allowed = subsystem
        .namespaces
        .iter()
        .filter_map(|namespace| directory.volume(namespace.volume))
        .all(|record| directory.may_attach(record, &wish.host.nqn, path.is_loopback()));
    if allowed { Ok(()) } else { Err(NvmeStatus::CONNECT_INVALID_HOST.dnr().into()) }
}

/// Whether two controllers lead to the same volumes, by whatever name.
fn same_volumes(a: &ControllerKind, b: &ControllerKind) -> bool {
    match (a, b) {
        (ControllerKind::Io(a), ControllerKind::Io(b)) => a.namespaces == b.namespaces,
        (ControllerKind::Discovery, ControllerKind::Discovery) => true,
        _ => false,
    }
}

impl Inner {
    fn entries(&self) -> impl Iterator<Item = &Entry> + '_ {
        self.by_controller.values()
    }

    fn living_entries(&self, volume: VolumeId) -> impl Iterator<Item = &Entry> + '_ {
        self.entries().filter(move |Entry { association, .. }| {
            !association.is_dead()
                && association.subsystem().is_some_and(|s| s.namespaces.iter().any(|n| n.volume == volume))
        })
    }

    fn living(&self, volume: VolumeId) -> impl Iterator<Item = &Arc<Association>> + '_ {
        self.living_entries(volume).map(|entry| &entry.association)
    }

    /// Who has `volume` attached.
    fn hosts(&self, volume: VolumeId) -> impl Iterator<Item = &str> + '_ {
        let locals = self.locals.iter().filter(move |local| local.volume == volume && !local.dead);
        let hosts = self.living(volume).map(|association| association.host.nqn.as_str());
        hosts.chain(locals.map(|local| local.who.as_str()))
    }

    fn check_not_held(&self, subsystem: &Subsystem) -> Result<(), Refusal> {
        let held = subsystem.namespaces.iter().any(|namespace| self.held.contains(&namespace.volume));
        if held { Err(NvmeStatus::CONNECT_CONTROLLER_BUSY.into()) } else { Ok(()) }
    }

    /// An exclusive volume has one host at a time; the host itself may come by several paths. Returns whether one is.
    fn check_exclusive(&self, subsystem: &Subsystem, wish: &Wish, directory: &Directory) -> Result<bool, Refusal> {
        let mut any = false;
        for namespace in &subsystem.namespaces {
            let exclusive = directory.volume(namespace.volume).is_some_and(|record| record.exclusive);
            let elsewhere = self.living(namespace.volume).any(|association| association.host != wish.host);
            let local = self.locals.iter().any(|local| local.volume == namespace.volume && !local.dead);
            if exclusive && (elsewhere || local) {
                return Err(NvmeStatus::CONNECT_CONTROLLER_BUSY.into());
            }
            any |= exclusive;
        }
        Ok(any)
    }

    /// Of those that ask to be a volume's one writer, one is at a time; and who was it before and comes back is not, if another has been
    /// since. Returns whether this one asks.
    fn check_lease(&self, subsystem: &Subsystem, wish: &Wish) -> Result<bool, Refusal> {
        let Some(lease) = wish.lease else { return Ok(false) };
        let elsewhere = |association: &Association, volume: VolumeId| {
            !association.is_dead()
                && association.host != wish.host
                && association.subsystem().is_some_and(|of| of.namespaces.iter().any(|one| one.volume == volume))
        };
        for namespace in &subsystem.namespaces {
            let volume = namespace.volume;
            let taken = self.entries().any(|entry| entry.writer && elsewhere(&entry.association, volume));
            let passed_on = lease == Lease::Resumed && self.writers.get(&volume).is_some_and(|last| *last != wish.host);
            if taken || passed_on {
                return Err(NvmeStatus::RESERVATION_CONFLICT.dnr().into());
            }
        }
        Ok(true)
    }

    /// A host that connects again by the very path of an association that lives has lost that one, even if we have not
    /// noticed: what of it still arrives must not land after what it sends now (history C11). Discovery keeps no data.
    fn supersede(&self, kind: &ControllerKind, wish: &Wish, path: Path) -> Vec<AssociationId> {
        let ControllerKind::Io(_) = kind else { return Vec::new() };
        let lost = |old: &Association| {
            old.host == wish.host
                && old.path.transport == path.transport
                && old.path.local == path.local
                && old.path.peer.ip() == path.peer.ip()
                && same_volumes(&old.kind, kind)
                && old.advance(AssociationState::Dead)
        };
        self.entries().map(|entry| &entry.association).filter(|old| lost(old)).map(|old| old.id).collect()
    }

    /// A new association, which nothing was found against.
    fn enter(
        &mut self,
        wish: &Wish,
        kind: ControllerKind,
        path: Path,
        now: Instant,
        exclusive: bool,
    ) -> Arc<Association> {
        let (host, alive, writer) = (wish.host.clone(), (now, wish.keep_alive_ms), wish.lease.is_some());
        if let (true, ControllerKind::Io(subsystem)) = (writer, &kind) {
            let volumes = subsystem.namespaces.iter().map(|namespace| namespace.volume);
            self.writers.extend(volumes.map(|volume| (volume, host.clone())));
        }
        let controller_id = self.free_controller_id();
        self.last_association += 1;
        let id = AssociationId(self.last_association);
        let association = Arc::new(Association::new(id, controller_id, host, kind, path, alive, exclusive));
        let entry = Entry { association: Arc::clone(&association), queues: BTreeSet::from([0]), writer };
        self.by_controller.insert(controller_id, entry);
        association
    }

    /// The next number that is free; numbers come round as late as possible, so that a late Connect of a queue meets nobody.
    fn free_controller_id(&mut self) -> u16 {
        loop {
            self.last_controller_id =
                if self.last_controller_id >= CONTROLLER_ID_MAX { 1 } else { self.last_controller_id + 1 };
            if !self.by_controller.contains_key(&self.last_controller_id) {
                return self.last_controller_id;
            }
        }
    }
}
