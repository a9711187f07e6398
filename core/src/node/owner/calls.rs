//! Control calls: what each of them changes, and what speaks against it.

use super::asking::Asker;
use super::snapshots::{Caller, Work};
use super::{FROM_OWNER, Owner, Syncing, Task};
use crate::backend::api::BackendRequest;
use crate::catalog::{CatalogRecord, VolumeEntry};
use crate::control::{
    ControlAnswer, ControlCall, ControlError, ControlErrorKind, ControlRequest, Reply, VolumeCreate, check_host_nqn,
    check_volume_size,
};
use crate::ids::{AssociationId, RequestId, ShardId, VolumeId};
use crate::pool::check_lba;
use crate::request::{Command, Done, Request, Status};
use crate::volume::{VolumeRecord, check_name};

/// Records of a change, and the volume that the answer shows; no volume: it is done.
pub(super) type Planned = (Vec<CatalogRecord>, Option<VolumeId>);

impl Owner {
    /// A call: answered at once if it changes nothing.
    pub(super) fn on_call(&mut self, call: ControlCall) {
        if !self.is_running() {
            // Dropped, it says that the target is stopping.
            return;
        }
        let (request, reply) = call.into_parts();
        match request {
            ControlRequest::VolumeList => reply(Ok(ControlAnswer::Volumes(self.all_volumes()))),
            ControlRequest::VolumeShow { name } => {
                reply(self.named(&name).map(|entry| ControlAnswer::Volume(self.volume_info(entry))));
            }
            ControlRequest::PoolShow => reply(Ok(ControlAnswer::Pool(self.pool_info()))),
            ControlRequest::TargetShow => reply(Ok(ControlAnswer::Target(self.target_info()))),
            ControlRequest::ExportList => reply(Ok(ControlAnswer::Exports(self.all_exports()))),
            ControlRequest::PoolGrow(grow) => match grow.check() {
                Ok(()) => self.begin_growth(grow, reply),
                Err(error) => reply(Err(error)),
            },
            ControlRequest::SnapshotList { volume } => reply(self.list_snapshots(volume.as_deref())),
            ControlRequest::SnapshotShow { name } => reply(self.show_snapshot(&name)),
            ControlRequest::SnapshotCreate(create) => self.on_create(create, Caller::unpromised(reply)),
            ControlRequest::SnapshotRollback { name, by } => {
                self.tasks.push_back(Task::Snapshot(Work::Rollback(name, by, reply)));
            }
            ControlRequest::Sync => self.sync(reply),
            ControlRequest::Changed(_) | ControlRequest::Fill(_) | ControlRequest::SnapshotSpace(_) => {
                self.ask(request, u64::MAX, Asker::Caller(reply));
            }
            ControlRequest::SnapshotDiff(query) => self.diff(&query, reply),
            ControlRequest::Stream(request) => self.on_stream(request, reply),
            ControlRequest::Events(query) => self.on_events(query, reply),
            ControlRequest::Backend(BackendRequest::Held) => reply(Ok(self.held_sources())),
            ControlRequest::Backend(BackendRequest::Kept) => reply(Ok(self.kept_manifests())),
            ControlRequest::Backend(BackendRequest::Attempts { count }) => reply(Ok(self.new_attempts(count))),
            ControlRequest::ExportAdd(_) | ControlRequest::ExportRemove { .. } => {
                self.tasks.push_back(Task::Export(request, reply));
            }
            request => self.tasks.push_back(Task::Call(request, reply)),
        }
    }

    fn named(&self, name: &str) -> Result<&VolumeEntry, ControlError> {
        self.store.state().volume_named(name).ok_or_else(|| ControlError::no_such_volume(name))
    }

    /// A volume that can be changed.
    pub(super) fn named_volume(&self, name: &str) -> Result<&VolumeEntry, ControlError> {
        let entry = self.named(name)?;
        if entry.record.is_snapshot() {
            return Err(ControlError::invalid(format!(
                "{name:?} is a snapshot, which does not change; name the volume without \"@…\", or see `ringway snapshot --help`"
            )));
        }
        Ok(entry)
    }

    /// What a call changes. No records: it is as asked already.
    pub(super) fn plan_call(&mut self, request: &ControlRequest) -> Result<Planned, ControlError> {
        match request {
            ControlRequest::VolumeCreate(create) => self.plan_create(create),
            ControlRequest::VolumeResize { name, size } => self.plan_resize(name, *size),
            ControlRequest::VolumeRename { name, to } => self.plan_rename(name, to),
            ControlRequest::VolumeRemove { name, force } => self.plan_remove(name, *force),
            ControlRequest::SnapshotRemove { name, force } => Ok((self.plan_remove_snapshot(name, *force)?, None)),
            ControlRequest::VolumeClone(clone) => self.plan_clone(clone),
            ControlRequest::VolumeSetHosts { name, hosts } => {
                hosts.iter().try_for_each(|nqn| check_host_nqn(nqn))?;
                let record = &self.named_volume(name)?.record;
                let same = record.allowed_hosts == *hosts;
                let change = (!same).then(|| CatalogRecord::HostsAllowed(record.id, hosts.clone()));
                Ok((change.into_iter().collect(), Some(record.id)))
            }
            ControlRequest::Backend(request) => self.plan_backend(request),
            other => unreachable!("{other:?} changes nothing"),
        }
    }

    pub(super) fn plan_create(&mut self, create: &VolumeCreate) -> Result<Planned, ControlError> {
        create.check()?;
        let state = self.store.state();
        if state.volume_named(&create.name).is_some() {
            return Err(ControlError::volume_exists(&create.name));
        }
        let count = self.placement.len() as u16;
        let alive = || (0..count).map(ShardId).filter(|shard| !self.dead.contains_key(shard)).collect();
        let shards = create.shards.clone().unwrap_or_else(alive);
        if let Some(beyond) = shards.iter().find(|shard| shard.0 >= count) {
            return Err(ControlError::invalid(format!(
                "shard {beyond} does not exist; this pool has shards 0 to {}",
                count - 1
            )));
        }
        let dead = shards.iter().find_map(|shard| self.dead.get(shard));
        if let Some(why) = dead.or_else(|| self.dead.values().next().filter(|_| shards.is_empty())) {
            return Err(ControlError::new(
                ControlErrorKind::Corrupt,
                format!("{why}; a new volume must keep away from that shard (`ringway pool show` lists those)"),
            ));
        }
        check_lba(create.lba_bytes, self.pool.atomic_unit, false)
            .map_err(|error| ControlError::invalid(error.to_string()))?;
        let id = self.new_volume_id();
        let record = VolumeRecord {
            id,
            name: create.name.clone(),
            uuid: (self.new_uuid)(),
            size: create.size,
            lba_bytes: create.lba_bytes,
            shards,
            created_unix_s: (self.unix_s)(),
            exclusive: create.exclusive,
            allowed_hosts: create.allowed_hosts.clone(),
            cuts: Vec::new(),
            dead: Vec::new(),
            view: None,
            parent: None,
        };
        let created = CatalogRecord::VolumeCreated(record);
        if !self.store.has_room(&created) {
            return Err(ControlError::new(
                ControlErrorKind::NoSpace,
                "the pool's catalog has no room for another volume; remove one first",
            ));
        }
        Ok((vec![created], Some(id)))
    }

    fn plan_resize(&self, name: &str, size: u64) -> Result<Planned, ControlError> {
        let record = &self.named_volume(name)?.record;
        check_volume_size(size, record.lba_bytes)?;
        if size < record.size {
            return Err(ControlError::shrink_refused(name, record.size, size));
        }
        let change = (size > record.size).then_some(CatalogRecord::VolumeResized(record.id, size));
        Ok((change.into_iter().collect(), Some(record.id)))
    }

    fn plan_rename(&self, name: &str, to: &str) -> Result<Planned, ControlError> {
        check_name(to).map_err(|bad| ControlError::invalid(bad.to_string()))?;
        let id = self.named_volume(name)?.record.id;
        if name == to {
            return Ok((Vec::new(), Some(id)));
        }
        if self.store.state().volume_named(to).is_some() {
            return Err(ControlError::volume_exists(to));
        }
        Ok((vec![CatalogRecord::VolumeRenamed(id, to.to_owned())], Some(id)))
    }

    fn plan_remove(&mut self, name: &str, force: bool) -> Result<Planned, ControlError> {
        let id = self.named_volume(name)?.record.id;
        self.check_not_exported(name, id)?;
        self.check_no_snapshots(name, id)?;
        let attached = self.attached_hosts(id);
        if !attached.is_empty() && !force {
            return Err(ControlError::new(
                ControlErrorKind::Busy,
                format!(
                    "volume {name:?} is attached by {}; detach it there first, or use force, and those hosts lose it",
                    attached.join(", ")
                ),
            ));
        }
        if !force {
            self.check_not_streamed(name, id)?;
        }
        let mut records = self.stream_goes(id);
        records.push(CatalogRecord::VolumeRemoved(id));
        Ok((records, None))
    }

    /// Flushes every volume, by requests like any other.
    fn sync(&mut self, reply: Reply) {
        let number = self.next_sync;
        self.next_sync += 1;
        let live = self.store.state().volumes().filter(|entry| !entry.record.is_snapshot());
        let volumes: Vec<_> = live.map(|entry| entry.record.id).collect();
        if volumes.is_empty() {
            return reply(Ok(ControlAnswer::Done));
        }
        self.syncs.insert(number, Syncing { left: volumes.len(), worst: Status::Success, reply });
        self.requests.extend(volumes.into_iter().map(|volume| {
            let request = Request {
                association: AssociationId::default(),
                volume,
                command: Command::Flush,
                offset: 0,
                len: 0,
                data: None,
            };
            (RequestId(FROM_OWNER | number), request)
        }));
    }

    /// A request of the owner's ended.
    pub(in crate::node) fn on_done(&mut self, done: &Done) {
        let number = done.id.0 & !FROM_OWNER;
        if self.stream_flushed(number, done.status) {
            return;
        }
        let syncing = self.syncs.get_mut(&number).expect("it was begun");
        syncing.left -= 1;
        // A volume that was removed meanwhile has nothing left to lose.
        if done.status != Status::VolumeGone {
            syncing.worst = syncing.worst.and(done.status);
        }
        if syncing.left > 0 {
            return;
        }
        let syncing = self.syncs.remove(&number).expect("just seen");
        (syncing.reply)(match syncing.worst {
            Status::Success => Ok(ControlAnswer::Done),
            worst => Err(ControlError::new(
                ControlErrorKind::Internal,
                format!("not everything could be made durable: {worst:?}; the log says of which device or volume"),
            )),
        });
    }
}
