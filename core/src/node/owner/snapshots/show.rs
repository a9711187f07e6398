//! What is shown of snapshots, those included that are being made.

use super::Owner;
use super::group::Group;
use crate::catalog::VolumeEntry;
use crate::control::{ControlAnswer, ControlError};
use crate::directory::volume_nqn;
use crate::ids::VolumeId;
use crate::snapshot::asked::{SnapshotInfo, SnapshotState, SnapshotTimes, check_full_name};
use crate::snapshot::name::full_name;

impl Owner {
    /// The snapshots of a volume, or of all.
    pub(in crate::node::owner) fn list_snapshots(&self, volume: Option<&str>) -> Result<ControlAnswer, ControlError> {
        let state = self.store.state();
        let only = match volume {
            Some(name) => Some(state.volume_named(name).ok_or_else(|| ControlError::no_such_volume(name))?.record.id),
            None => None,
        };
        let mut origins: Vec<_> = state.volumes().filter(|entry| !entry.record.is_snapshot()).collect();
        origins.retain(|entry| only.is_none_or(|only| only == entry.record.id));
        origins.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        let mut shown = Vec::new();
        for origin in origins {
            shown.extend(state.snapshots_of(origin.record.id).map(|(_, entry)| self.snapshot_info(entry)));
            shown.extend(self.pending_infos(origin));
        }
        Ok(ControlAnswer::Snapshots(shown))
    }

    /// One snapshot.
    pub(in crate::node::owner) fn show_snapshot(&self, name: &str) -> Result<ControlAnswer, ControlError> {
        let (volume, _) = check_full_name(name)?;
        if let Some(origin) = self.store.state().volume_named(volume)
            && let Some(pending) = self.pending_infos(origin).find(|info| info.name == name)
        {
            return Ok(ControlAnswer::Snapshots(vec![pending]));
        }
        let (entry, _) = self.named_snapshot(name)?;
        Ok(ControlAnswer::Snapshots(vec![self.snapshot_info(entry)]))
    }

    /// What a clone lies over.
    pub(in crate::node::owner) fn parent_name(&self, entry: &VolumeEntry) -> Option<String> {
        let parent = entry.record.parent?;
        if let Some(source) = self.store.state().source_of(entry) {
            return Some(source.shown());
        }
        let mut snapshots = self.store.state().snapshots_of(parent.volume);
        snapshots.find(|&(epoch, _)| epoch == parent.epoch).map(|(_, snapshot)| snapshot.record.name.clone())
    }

    /// The answer of a call that has made these.
    pub(in crate::node::owner) fn answer_snapshots(&self, made: &[VolumeId], times: SnapshotTimes) -> ControlAnswer {
        // One may have been removed by the next call already.
        let entries = made.iter().filter_map(|&id| self.store.state().volume(id));
        let infos = entries.map(|entry| SnapshotInfo { times: Some(times), ..self.snapshot_info(entry) });
        ControlAnswer::Snapshots(infos.collect())
    }

    fn snapshot_info(&self, entry: &VolumeEntry) -> SnapshotInfo {
        let record = &entry.record;
        let (view, facts) = (record.view.expect("a snapshot"), entry.snapshot.as_ref().expect("a snapshot"));
        let sync = self.snapshots.syncs.of_snapshot(record.id).map(|(_, sync)| sync);
        SnapshotInfo {
            id: record.id,
            origin: view.origin,
            name: record.name.clone(),
            nqn: volume_nqn(record),
            uuid: record.uuid,
            size: record.size,
            created_unix_s: record.created_unix_s,
            cut: Some(view.epoch.to_string()),
            state: if facts.synced { SnapshotState::Synced } else { SnapshotState::Sealed },
            sync: sync.map(|sync| sync.progress),
            sync_error: sync.and_then(|sync| sync.error.clone()),
            deadline_ms: None,
            held: None,
            clones: self.clone_names(view),
            attached_hosts: self.attached_hosts(record.id),
            times: None,
        }
    }

    /// Those of a volume that are being made, in the order of their calls.
    fn pending_infos<'a>(&'a self, origin: &'a VolumeEntry) -> impl Iterator<Item = SnapshotInfo> + 'a {
        let groups = self.snapshots.groups.values();
        groups.filter_map(move |group| self.pending_info(group, origin))
    }

    fn pending_info(&self, group: &Group, origin: &VolumeEntry) -> Option<SnapshotInfo> {
        let member = group.members.iter().find(|member| member.origin == origin.record.id)?;
        let deadline = group.promise.deadline();
        let left = deadline.since_ns(self.snapshots.now) / 1_000_000;
        let name = full_name(&origin.record.name, &group.name);
        let record = crate::volume::VolumeRecord { name, uuid: member.uuid, ..origin.record.clone() };
        let sync = self.snapshots.syncs.of_attempt(member.attempt);
        Some(SnapshotInfo {
            id: member.id,
            origin: member.origin,
            nqn: volume_nqn(&record),
            name: record.name,
            uuid: member.uuid,
            size: member.size,
            created_unix_s: group.created_unix_s,
            cut: group.cut().map(|cut| cut.to_string()),
            state: SnapshotState::Pending,
            sync: sync.map(|sync| sync.progress),
            sync_error: None,
            deadline_ms: (deadline != ringway_reactor::io::Instant::NEVER).then_some(left),
            held: None,
            clones: Vec::new(),
            attached_hosts: Vec::new(),
            times: None,
        })
    }
}
