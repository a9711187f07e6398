//! Snapshots on their way into the backend: those of groups that wait for it, and sealed ones behind their callers' backs.
//!
//! ```text
//! directory with the snapshot on every reactor -> start -> Progress* -> ManifestAboutToBePut -> attempt noted, durable
//!   -> go_on -> Synced -> the group's record, or SnapshotSynced -> committed (the marker) -> Settled -> forgotten
//! ```
//! An attempt is on record before its manifest can exist, and stays there until somebody has said that nothing is left to do
//! for it, restarts included (C14).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ringway_reactor::io::Instant;

use super::group::Group;
use super::{GroupId, Outcome, Owner, Work};
use crate::catalog::{CatalogRecord, SyncedRecord};
use crate::control::{ControlError, ControlErrorKind};
use crate::ids::{AttemptId, VolumeId};
use crate::node::owner::{Plan, Task, Then};
use crate::snapshot::asked::SyncProgress;
use crate::snapshot::name::full_name;
use crate::snapshot::sync::{NotedAttempt, SyncJob, SyncPort, SyncReport};
use crate::volume::{SnapshotView, VolumeRecord};

/// After the backend has refused a sealed snapshot, nanoseconds until it is asked again.
const RETRY_NS: u64 = 30_000_000_000;

/// One of them.
pub(super) struct Sync {
    job: SyncJob,
    /// As reactors read it, while the catalog does not have it.
    record: Option<Arc<VolumeRecord>>,
    pub(super) progress: SyncProgress,
    pub(super) error: Option<String>,
    step: Step,
    /// When it was begun, and when the backend had it.
    since: Instant,
    stored: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Reactors are to know the snapshot first: the directory of this number.
    Publishing(u64),
    Running,
    /// The record that says so is on its way.
    Stored,
    /// It is tried again then.
    Failed(Instant),
}

/// All of them, and who does it.
pub(super) struct Syncs {
    port: Option<Box<dyn SyncPort>>,
    running: BTreeMap<AttemptId, Sync>,
    /// Manifests that the catalog spoke of when the backend last heard.
    manifests: BTreeSet<(VolumeId, String)>,
    resumed: bool,
}

impl Syncs {
    pub(super) fn new(port: Option<Box<dyn SyncPort>>) -> Syncs {
        Syncs { port, running: BTreeMap::new(), manifests: BTreeSet::new(), resumed: false }
    }

    /// See [`SyncPort::let_go`].
    pub(super) fn let_go(&mut self) {
        if let Some(port) = &mut self.port {
            port.let_go();
        }
    }

    pub(super) fn of_attempt(&self, attempt: AttemptId) -> Option<&Sync> {
        self.running.get(&attempt)
    }

    pub(super) fn of_snapshot(&self, snapshot: VolumeId) -> Option<(AttemptId, &Sync)> {
        self.running.iter().find(|(_, sync)| sync.job.snapshot == snapshot).map(|(&attempt, sync)| (attempt, sync))
    }

    /// Microseconds that storing a snapshot took which is stored by now.
    pub(super) fn took_us(&self, snapshot: VolumeId) -> Option<u64> {
        let (_, sync) = self.of_snapshot(snapshot)?;
        Some(sync.stored?.since_ns(sync.since) / 1000)
    }

    /// Whether something of the volume is on its way.
    pub(super) fn is_syncing(&self, origin: VolumeId) -> bool {
        self.running.values().any(|sync| sync.job.origin == origin)
    }

    pub(super) fn next_retry(&self) -> Instant {
        let retry = |sync: &Sync| match sync.step {
            Step::Failed(at) => at,
            _ => Instant::NEVER,
        };
        self.running.values().map(retry).min().unwrap_or(Instant::NEVER)
    }

    /// Snapshots that reactors have to know though the catalog does not.
    pub(super) fn pending(&self) -> impl Iterator<Item = &Arc<VolumeRecord>> {
        self.running.values().filter_map(|sync| sync.record.as_ref())
    }
}

impl Owner {
    /// Whether snapshots are to be stored elsewhere before they are synced.
    pub(super) fn has_backend(&self) -> bool {
        self.snapshots.syncs.port.as_ref().is_some_and(|port| port.is_set())
    }

    /// Snapshots that reactors are to know though the catalog does not.
    pub(in crate::node::owner) fn pending_snapshots(&self) -> Vec<Arc<VolumeRecord>> {
        let known = |record: &&Arc<VolumeRecord>| self.store.state().volume(record.id).is_some();
        self.snapshots.syncs.pending().filter(|record| !known(record)).cloned().collect()
    }

    /// What a crash or a stop has left: sealed snapshots are stored on, attempts are finished or cleared up.
    pub(in crate::node::owner) fn resume_syncs(&mut self) {
        if self.snapshots.syncs.resumed || !self.has_backend() {
            return;
        }
        self.snapshots.syncs.resumed = true;
        self.snapshots.syncs.manifests = self.manifests();
        let noted: Vec<NotedAttempt> = self.store.state().attempts().cloned().collect();
        for noted in noted {
            let manifest = (noted.origin, noted.manifest.clone());
            let committed = self.snapshots.syncs.manifests.contains(&manifest);
            let port = self.snapshots.syncs.port.as_mut().expect("just seen");
            if committed { port.committed(&noted) } else { port.cancel(noted.attempt, Some(&noted)) }
        }
        let state = self.store.state();
        let unsynced =
            |entry: &&crate::catalog::VolumeEntry| entry.snapshot.as_ref().is_some_and(|facts| !facts.synced);
        let sealed: Vec<VolumeId> = state.volumes().filter(unsynced).map(|entry| entry.record.id).collect();
        for snapshot in sealed {
            self.sync_sealed(snapshot);
        }
    }

    /// Every manifest that the catalog speaks of.
    fn manifests(&self) -> BTreeSet<(VolumeId, String)> {
        let state = self.store.state();
        let snapshots = state.volumes().filter_map(|entry| {
            let (view, facts) = (entry.record.view?, entry.snapshot.as_ref()?);
            facts.manifest.clone().map(|manifest| (view.origin, manifest))
        });
        let bases = state
            .volumes()
            .filter_map(|entry| state.base_of(entry.record.id).map(|base| (entry.record.id, base.manifest.clone())));
        snapshots.chain(bases).collect()
    }

    /// Tells the backend of manifests that nobody needs any more.
    pub(in crate::node::owner) fn follow_manifests(&mut self) {
        if !self.has_backend() {
            return;
        }
        let now = self.manifests();
        let before = std::mem::replace(&mut self.snapshots.syncs.manifests, now);
        let Syncs { port: Some(port), manifests, .. } = &mut self.snapshots.syncs else { return };
        for (origin, manifest) in before.difference(manifests) {
            port.removed(*origin, manifest);
        }
    }

    /// The members of a sealed group are to be stored before they exist.
    pub(super) fn sync_group(&mut self, id: GroupId) {
        let group = &self.snapshots.groups[&id];
        let state = self.store.state();
        let cut = group.cut().expect("it is sealed");
        let mut begun = Vec::new();
        for member in &group.members {
            let Some(origin) = state.volume(member.origin) else { continue };
            let record = VolumeRecord {
                id: member.id,
                name: full_name(&origin.record.name, &group.name),
                uuid: member.uuid,
                size: member.size,
                created_unix_s: group.created_unix_s,
                exclusive: false,
                cuts: Vec::new(),
                dead: Vec::new(),
                view: Some(SnapshotView { origin: member.origin, epoch: cut }),
                parent: None,
                ..origin.record.clone()
            };
            let deadline = group.promise.deadline();
            begun.push((member.attempt, record, (deadline != Instant::NEVER).then_some(deadline.0)));
        }
        for (attempt, record, deadline_ns) in begun {
            let job = self.job(attempt, &record, deadline_ns);
            self.begin_sync(job, Some(Arc::new(record)));
        }
        let seq = self.publish(None);
        for sync in self.snapshots.syncs.running.values_mut().filter(|sync| sync.step == Step::Publishing(0)) {
            sync.step = Step::Publishing(seq);
        }
    }

    /// A sealed snapshot, which exists, is to be stored.
    fn sync_sealed(&mut self, snapshot: VolumeId) {
        let Some(entry) = self.store.state().volume(snapshot) else { return };
        let record = entry.record.clone();
        let attempt = self.snapshots.new_attempt();
        let job = self.job(attempt, &record, None);
        self.begin_sync(job.clone(), None);
        self.start_sync(attempt);
    }

    fn job(&self, attempt: AttemptId, record: &VolumeRecord, deadline_ns: Option<u64>) -> SyncJob {
        let view = record.view.expect("a snapshot");
        let state = self.store.state();
        SyncJob {
            attempt,
            snapshot: record.id,
            origin: view.origin,
            origin_uuid: state.volume(view.origin).map_or(uuid::Uuid::nil(), |origin| origin.record.uuid),
            name: record.name.clone(),
            uuid: record.uuid,
            size: record.size,
            lba_bytes: record.lba_bytes,
            created_unix_s: record.created_unix_s,
            epoch: view.epoch,
            base: state.base_of(view.origin).filter(|base| base.epoch < view.epoch).cloned(),
            deadline_ns,
        }
    }

    fn begin_sync(&mut self, job: SyncJob, record: Option<Arc<VolumeRecord>>) {
        let progress = SyncProgress { done: 0, total: 0 };
        let since = self.snapshots.now;
        let sync = Sync { record, progress, error: None, step: Step::Publishing(0), job, since, stored: None };
        self.snapshots.syncs.running.insert(sync.job.attempt, sync);
    }

    fn start_sync(&mut self, attempt: AttemptId) {
        let Syncs { port: Some(port), running, .. } = &mut self.snapshots.syncs else { return };
        let sync = running.get_mut(&attempt).expect("it was begun");
        sync.step = Step::Running;
        port.start(sync.job.clone());
    }

    /// Every reactor works with directory `seq`: what it was published for can be read.
    pub(in crate::node::owner) fn directory_in_use(&mut self, seq: u64) {
        let waits = |sync: &Sync| matches!(sync.step, Step::Publishing(wanted) if wanted != 0 && wanted <= seq);
        let syncs = self.snapshots.syncs.running.iter();
        let ready: Vec<_> = syncs.filter(|(_, sync)| waits(sync)).map(|(&attempt, _)| attempt).collect();
        ready.into_iter().for_each(|attempt| self.start_sync(attempt));
    }

    /// The attempt is over before it was stored. Whether reactors know its snapshot by it alone.
    pub(super) fn stop_sync(&mut self, attempt: AttemptId) -> bool {
        let Some(sync) = self.snapshots.syncs.running.remove(&attempt) else { return false };
        let noted = self.store.state().attempt(attempt).cloned();
        if let Some(port) = &mut self.snapshots.syncs.port {
            port.cancel(attempt, noted.as_ref());
        }
        sync.record.is_some()
    }

    /// What the backend says.
    pub(in crate::node::owner) fn sync_report(&mut self, report: SyncReport) {
        let attempt = report.attempt();
        if let SyncReport::Settled { .. } = report {
            self.tasks.push_back(Task::Snapshot(Work::Settle(attempt)));
            return;
        }
        let now = self.snapshots.now;
        // It may have been given up meanwhile; the backend knows by now, or will soon.
        let Some(sync) = self.snapshots.syncs.running.get_mut(&attempt) else { return };
        match report {
            SyncReport::Progress { done, total, .. } => sync.progress = SyncProgress { done, total },
            SyncReport::HeldUp { why, .. } => {
                sync.error.clone_from(&why);
                if let Some(group) = self.group_of(attempt).and_then(|id| self.snapshots.groups.get(&id)) {
                    group.promise.held_up_by(why);
                }
            }
            SyncReport::ManifestAboutToBePut { manifest, .. } => {
                self.tasks.push_back(Task::Snapshot(Work::Note(attempt, manifest)));
            }
            SyncReport::Synced { manifest, .. } => {
                (sync.step, sync.stored) = (Step::Stored, Some(now));
                self.stored(attempt, manifest);
            }
            SyncReport::Failed { why, .. } => self.sync_failed(attempt, why),
            SyncReport::Settled { .. } => unreachable!("seen above"),
        }
    }

    fn stored(&mut self, attempt: AttemptId, manifest: String) {
        match self.group_of(attempt) {
            Some(id) => {
                let now = self.snapshots.now;
                self.snapshots.groups.get_mut(&id).expect("looked up").synced(attempt, manifest, now);
            }
            None => self.tasks.push_back(Task::Snapshot(Work::Stored(attempt, manifest))),
        }
    }

    fn sync_failed(&mut self, attempt: AttemptId, why: String) {
        if let Some(id) = self.group_of(attempt) {
            let why = format!("the backend does not take the snapshot: {why}");
            return self.give_up(id, ControlError::new(ControlErrorKind::Internal, why));
        }
        tracing::warn!(why, "a sealed snapshot could not be stored in the backend; it is tried again");
        let retry = self.snapshots.now.plus_ns(RETRY_NS);
        let noted = self.store.state().attempt(attempt).cloned();
        let Syncs { port: Some(port), running, .. } = &mut self.snapshots.syncs else { return };
        port.cancel(attempt, noted.as_ref());
        let sync = running.get_mut(&attempt).expect("looked up");
        (sync.error, sync.step) = (Some(why), Step::Failed(retry));
    }

    /// Sealed snapshots whose time has come are tried again, each by an attempt of its own.
    pub(super) fn retry_syncs(&mut self) {
        let now = self.snapshots.now;
        if self.snapshots.syncs.next_retry() > now {
            return;
        }
        let due = |sync: &Sync| matches!(sync.step, Step::Failed(at) if at <= now);
        let running = &mut self.snapshots.syncs.running;
        let failed: Vec<AttemptId> =
            running.iter().filter(|(_, sync)| due(sync)).map(|(&attempt, _)| attempt).collect();
        let failed = failed.into_iter().filter_map(|attempt| running.remove(&attempt));
        let again: Vec<_> = failed.map(|sync| (sync.job.snapshot, sync.error)).collect();
        for (snapshot, error) in again {
            self.sync_sealed(snapshot);
            let mut syncs = self.snapshots.syncs.running.values_mut();
            if let Some(sync) = syncs.find(|sync| sync.job.snapshot == snapshot) {
                sync.error = error;
            }
        }
    }

    // ---- the catalog

    /// The manifest may be put once the attempt is on record.
    pub(in crate::node::owner) fn plan_note(&self, attempt: AttemptId, manifest: String) -> Plan {
        let Some(sync) = self.snapshots.syncs.running.get(&attempt) else { return Plan::Nothing };
        let SyncJob { origin, snapshot, epoch, .. } = sync.job;
        let noted = NotedAttempt { attempt, origin, snapshot, epoch, manifest };
        Plan::Change(vec![CatalogRecord::AttemptNoted(noted)], Then::Snapshot(Outcome::Noted(attempt)))
    }

    /// It is.
    pub(in crate::node::owner) fn noted(&mut self, attempt: AttemptId) {
        let noted = self.store.state().attempt(attempt).cloned();
        let Syncs { port: Some(port), running, .. } = &mut self.snapshots.syncs else { return };
        if running.contains_key(&attempt) {
            port.go_on(attempt);
        } else {
            port.cancel(attempt, noted.as_ref());
        }
    }

    /// A sealed snapshot is stored.
    pub(in crate::node::owner) fn plan_stored(&mut self, attempt: AttemptId, manifest: String) -> Plan {
        let Some(sync) = self.snapshots.syncs.running.get(&attempt) else { return Plan::Nothing };
        let SyncJob { origin, snapshot, .. } = sync.job;
        if self.store.state().volume(snapshot).is_none() {
            self.stop_sync(attempt);
            return Plan::Nothing;
        }
        let synced = SyncedRecord { origin, snapshot, manifest: Some(manifest) };
        Plan::Change(vec![CatalogRecord::SnapshotSynced(synced)], Then::Snapshot(Outcome::Stored(attempt)))
    }

    /// That is on record.
    pub(in crate::node::owner) fn stored_on_record(&mut self, attempt: AttemptId) {
        self.mark(attempt);
        self.publish(None);
    }

    /// Nothing is left to do for the attempt.
    pub(in crate::node::owner) fn plan_settle(&self, attempt: AttemptId) -> Plan {
        match self.store.state().attempt(attempt) {
            Some(noted) => Plan::Change(vec![CatalogRecord::AttemptSettled(noted.origin, attempt)], Then::Rest),
            None => Plan::Nothing,
        }
    }

    /// A group exists: its markers may be put, or its members are stored from now on.
    pub(super) fn syncs_committed(&mut self, group: &Group) {
        if !self.has_backend() {
            return;
        }
        for member in &group.members {
            if member.manifest.is_some() {
                self.mark(member.attempt);
            } else {
                self.sync_sealed(member.id);
            }
        }
    }

    fn mark(&mut self, attempt: AttemptId) {
        self.snapshots.syncs.running.remove(&attempt);
        let noted = self.store.state().attempt(attempt).cloned();
        if let (Some(noted), Some(port)) = (noted, &mut self.snapshots.syncs.port) {
            port.committed(&noted);
        }
    }
}
