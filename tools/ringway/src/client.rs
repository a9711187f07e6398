//! The other end of the control interface, for our own commands.

use std::path::PathBuf;

use ringway_client::control::{Caller, Method, Way, segment};
use ringway_core::backend::api::{
    BackendCheck, BackendFrom, BackendInfo, BackendRestore, BackendSet, CheckedSnapshot, CollectInfo, StoredSnapshot,
};
use ringway_core::control::{
    ChangedBlocks, ControlError, PoolGrow, PoolGrown, PoolInfo, TargetInfo, VolumeCreate, VolumeInfo,
};
use ringway_core::export::{ExportAdd, ExportInfo};
use ringway_core::ids::ExportId;
use ringway_core::snapshot::asked::{SnapshotCreate, SnapshotInfo, VolumeClone};
use ringway_core::stream::{StreamInfo, StreamStart, StreamStepped};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::snapshots::NewSnapshot;
use crate::api::streams::{NewSpeed, StepFrom};
use crate::api::{NewHosts, NewName, NewSize};
use crate::failure::Failure;

/// The calls of one daemon by name.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    caller: Caller,
}

impl Client {
    /// The one behind this socket.
    pub(crate) fn new(socket: PathBuf) -> Client {
        Client { caller: Caller::new(socket) }
    }

    /// The one that is reached so.
    pub(crate) fn by(way: Result<Way, ControlError>) -> Client {
        Client { caller: Caller::by(way) }
    }

    /// Who makes the calls.
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    pub(crate) fn target(&self) -> Result<TargetInfo, Failure> {
        self.call(Method::GET, "/v1/target", None::<&()>)
    }

    pub(crate) fn pool(&self) -> Result<PoolInfo, Failure> {
        self.call(Method::GET, "/v1/pool", None::<&()>)
    }

    pub(crate) fn pool_grow(&self, grow: &PoolGrow) -> Result<PoolGrown, Failure> {
        self.call(Method::POST, "/v1/pool/devices", Some(grow))
    }

    /// As Prometheus reads it.
    pub(crate) fn metrics(&self) -> Result<String, Failure> {
        Ok(self.caller.text("/metrics")?)
    }

    pub(crate) fn volumes(&self) -> Result<Vec<VolumeInfo>, Failure> {
        self.call(Method::GET, "/v1/volumes", None::<&()>)
    }

    pub(crate) fn volume(&self, name: &str) -> Result<VolumeInfo, Failure> {
        self.call(Method::GET, &path(name, ""), None::<&()>)
    }

    pub(crate) fn volume_create(&self, create: &VolumeCreate) -> Result<VolumeInfo, Failure> {
        self.call(Method::POST, "/v1/volumes", Some(create))
    }

    pub(crate) fn volume_resize(&self, name: &str, size: u64) -> Result<VolumeInfo, Failure> {
        self.call(Method::PUT, &path(name, "/size"), Some(&NewSize { size }))
    }

    pub(crate) fn volume_rename(&self, name: &str, to: &str) -> Result<VolumeInfo, Failure> {
        self.call(Method::PUT, &path(name, "/name"), Some(&NewName { name: to.to_owned() }))
    }

    pub(crate) fn volume_set_hosts(&self, name: &str, hosts: &[String]) -> Result<VolumeInfo, Failure> {
        self.call(Method::PUT, &path(name, "/hosts"), Some(&NewHosts { hosts: hosts.to_vec() }))
    }

    pub(crate) fn volume_remove(&self, name: &str, force: bool) -> Result<(), Failure> {
        let query = if force { "?force=true" } else { "" };
        let _: serde_json::Value = self.call(Method::DELETE, &path(name, query), None::<&()>)?;
        Ok(())
    }

    /// Snapshots of a volume, or of all.
    pub(crate) fn snapshots(&self, volume: Option<&str>) -> Result<Vec<SnapshotInfo>, Failure> {
        let query = volume.map_or(String::new(), |name| format!("&volume={}", segment(name)));
        self.call(Method::GET, &format!("/v1/snapshots?space=true{query}"), None::<&()>)
    }

    pub(crate) fn snapshot(&self, name: &str) -> Result<SnapshotInfo, Failure> {
        let found: Vec<SnapshotInfo> = self.call(Method::GET, &snapshot_path(name, ""), None::<&()>)?;
        found.into_iter().next().ok_or_else(|| Failure::internal("the daemon's answer has no snapshot"))
    }

    pub(crate) fn snapshot_create(&self, create: &SnapshotCreate) -> Result<Vec<SnapshotInfo>, Failure> {
        self.call(Method::POST, "/v1/snapshots", Some(&NewSnapshot::from(create)))
    }

    pub(crate) fn snapshot_remove(&self, name: &str, force: bool) -> Result<(), Failure> {
        let query = if force { "?force=true" } else { "" };
        let _: serde_json::Value = self.call(Method::DELETE, &snapshot_path(name, query), None::<&()>)?;
        Ok(())
    }

    pub(crate) fn snapshot_rollback(&self, name: &str, force: bool) -> Result<VolumeInfo, Failure> {
        let query = if force { "/rollback?force=true" } else { "/rollback" };
        self.call(Method::POST, &snapshot_path(name, query), None::<&()>)
    }

    pub(crate) fn volume_clone(&self, clone: &VolumeClone) -> Result<VolumeInfo, Failure> {
        self.call(Method::POST, "/v1/clones", Some(clone))
    }

    /// One stretch of what has changed between two snapshots of a volume, or one and now.
    pub(crate) fn snapshot_diff(&self, from: &str, to: Option<&str>, cursor: u64) -> Result<ChangedBlocks, Failure> {
        let to = to.map_or(String::new(), |to| format!("&to={}", segment(to)));
        self.call(Method::GET, &snapshot_path(from, &format!("/diff?cursor={cursor}{to}")), None::<&()>)
    }

    /// What of a volume or a snapshot holds anything, from `cursor` on.
    pub(crate) fn volume_data(&self, name: &str, cursor: u64) -> Result<ChangedBlocks, Failure> {
        self.call(Method::GET, &path(name, &format!("/allocated?cursor={cursor}")), None::<&()>)
    }

    pub(crate) fn streams(&self) -> Result<Vec<StreamInfo>, Failure> {
        self.call(Method::GET, "/v1/streams", None::<&()>)
    }

    pub(crate) fn stream(&self, volume: &str) -> Result<StreamInfo, Failure> {
        self.call(Method::GET, &stream_path(volume, ""), None::<&()>)
    }

    pub(crate) fn stream_start(&self, start: &StreamStart) -> Result<StreamInfo, Failure> {
        self.call(Method::POST, "/v1/streams", Some(start))
    }

    pub(crate) fn stream_step(&self, volume: &str, cursor: u64) -> Result<StreamStepped, Failure> {
        self.call(Method::POST, &stream_path(volume, "/step"), Some(&StepFrom { cursor }))
    }

    pub(crate) fn stream_speed(&self, volume: &str, speed: Option<u64>) -> Result<StreamInfo, Failure> {
        self.call(Method::PUT, &stream_path(volume, "/speed"), Some(&NewSpeed { speed }))
    }

    pub(crate) fn stream_resume(&self, volume: &str) -> Result<StreamInfo, Failure> {
        self.call(Method::POST, &stream_path(volume, "/resume"), None::<&()>)
    }

    pub(crate) fn stream_abort(&self, volume: &str) -> Result<(), Failure> {
        let _: serde_json::Value = self.call(Method::DELETE, &stream_path(volume, ""), None::<&()>)?;
        Ok(())
    }

    pub(crate) fn exports(&self) -> Result<Vec<ExportInfo>, Failure> {
        self.call(Method::GET, "/v1/exports", None::<&()>)
    }

    pub(crate) fn export_add(&self, add: &ExportAdd) -> Result<ExportInfo, Failure> {
        self.call(Method::POST, "/v1/exports", Some(add))
    }

    pub(crate) fn export_remove(&self, id: ExportId) -> Result<(), Failure> {
        let _: serde_json::Value = self.call(Method::DELETE, &format!("/v1/exports/{id}"), None::<&()>)?;
        Ok(())
    }

    pub(crate) fn backend(&self) -> Result<BackendInfo, Failure> {
        self.call(Method::GET, "/v1/backend", None::<&()>)
    }

    pub(crate) fn backend_set(&self, set: &BackendSet) -> Result<BackendInfo, Failure> {
        self.call(Method::PUT, "/v1/backend", Some(set))
    }

    pub(crate) fn backend_list(&self, from: &BackendFrom) -> Result<Vec<StoredSnapshot>, Failure> {
        self.call(Method::POST, "/v1/backend/list", Some(from))
    }

    pub(crate) fn backend_check(&self, check: &BackendCheck) -> Result<Vec<CheckedSnapshot>, Failure> {
        self.call(Method::POST, "/v1/backend/check", Some(check))
    }

    pub(crate) fn backend_restore(&self, restore: &BackendRestore) -> Result<VolumeInfo, Failure> {
        self.call(Method::POST, "/v1/backend/restore", Some(restore))
    }

    pub(crate) fn backend_collect(&self) -> Result<CollectInfo, Failure> {
        self.call(Method::POST, "/v1/backend/collect", None::<&()>)
    }

    fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<A, Failure> {
        Ok(self.caller.call(method, path, body)?)
    }
}

fn stream_path(volume: &str, rest: &str) -> String {
    format!("/v1/streams/{}{rest}", segment(volume))
}

fn snapshot_path(name: &str, rest: &str) -> String {
    format!("/v1/snapshots/{}{rest}", segment(name))
}

fn path(name: &str, rest: &str) -> String {
    format!("/v1/volumes/{}{rest}", segment(name))
}
