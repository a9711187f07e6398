//! The other end of the control interface, for our own commands.

mod way;

use std::path::PathBuf;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ringway_core::backend::api::{
    BackendCheck, BackendFrom, BackendInfo, BackendRestore, BackendSet, CheckedSnapshot, CollectInfo, StoredSnapshot,
};
use ringway_core::control::{
    ChangedBlocks, ControlErrorKind, PoolGrow, PoolGrown, PoolInfo, TargetInfo, VolumeCreate, VolumeInfo,
};
use ringway_core::export::{ExportAdd, ExportInfo};
use ringway_core::ids::ExportId;
use ringway_core::snapshot::asked::{SnapshotCreate, SnapshotInfo, VolumeClone};
use ringway_core::stream::{StreamInfo, StreamStart, StreamStepped};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use self::way::Way;
use crate::api::snapshots::NewSnapshot;
use crate::api::streams::{NewSpeed, StepFrom};
use crate::api::{ErrorBody, NewHosts, NewName, NewSize};
use crate::failure::Failure;

/// What may stand in one path segment as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-');

/// Talks to one daemon; every call makes a connection of its own.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// What is wrong with it is told by the first call: the command may have more to say before.
    way: Result<Way, Failure>,
}

impl Client {
    /// The one behind this socket.
    pub(crate) fn new(socket: PathBuf) -> Client {
        Client { way: Ok(Way::Socket(socket)) }
    }

    /// The one that is reached so.
    pub(crate) fn by(way: Result<Way, Failure>) -> Client {
        Client { way }
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
        let mut text = Vec::new();
        self.listen("/metrics", &mut |piece| {
            text.extend_from_slice(piece);
            Ok(())
        })?;
        String::from_utf8(text).map_err(|_| Failure::internal("the daemon's metrics are no text"))
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
        let query = volume.map_or(String::new(), |name| format!("&volume={}", utf8_percent_encode(name, SEGMENT)));
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
        let to = to.map_or(String::new(), |to| format!("&to={}", utf8_percent_encode(to, SEGMENT)));
        self.call(Method::GET, &snapshot_path(from, &format!("/diff?cursor={cursor}{to}")), None::<&()>)
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
        let (status, bytes) = self.exchange(method, path, body)?;
        let broken = |error| Failure::internal(format!("the daemon's answer to {path} is not understood: {error}"));
        if (200..300).contains(&status) {
            serde_json::from_slice(&bytes).map_err(broken)
        } else {
            let body: ErrorBody = serde_json::from_slice(&bytes).map_err(broken)?;
            Err(body.error.into())
        }
    }

    /// Reads what the daemon sends for as long as it sends something, piece by piece.
    pub(crate) fn listen(&self, path: &str, each: &mut dyn FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        self.with_answer(Method::GET, path, None::<&()>, async |mut response, lost| {
            if response.status() != StatusCode::OK {
                let bytes = response.into_body().collect().await.map_err(lost)?.to_bytes();
                let body: ErrorBody = serde_json::from_slice(&bytes)
                    .map_err(|error| Failure::internal(format!("the daemon's refusal is not understood: {error}")))?;
                return Err(body.error.into());
            }
            // Its end is the end of the target; who wants to go on connects again.
            while let Some(Ok(frame)) = response.frame().await {
                if let Some(bytes) = frame.data_ref() {
                    each(bytes)?;
                }
            }
            Ok(())
        })
    }

    fn exchange(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<(u16, Bytes), Failure> {
        self.with_answer(method, path, body, async |response, lost| {
            let status = response.status().as_u16();
            Ok((status, response.into_body().collect().await.map_err(lost)?.to_bytes()))
        })
    }

    /// Sends a request, and lets `take` have the answer while the connection is open.
    fn with_answer<A>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        take: impl AsyncFnOnce(Response<Incoming>, &dyn Fn(hyper::Error) -> Failure) -> Result<A, Failure>,
    ) -> Result<A, Failure> {
        let body = body.map(|body| serde_json::to_vec(body).expect("requests are serialisable")).unwrap_or_default();
        let way = self.way.clone()?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "ringway")
            .header(header::CONTENT_TYPE, "application/json");
        if let Way::Remote(remote) = &way {
            request = request.header(header::AUTHORIZATION, remote.token.header());
        }
        let request = request.body(Full::<Bytes>::from(body)).expect("the path is percent-encoded");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::internal(format!("cannot start the client: {error}")))?;
        runtime.block_on(async {
            let stream = way.connect().await?;
            let lost = |error: hyper::Error| {
                Failure::new(
                    ControlErrorKind::Unavailable,
                    format!("the daemon on {} stopped answering: {error}", way.name()),
                )
            };
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
            let driver = tokio::task::spawn(connection);
            let response = sender.send_request(request).await.map_err(lost)?;
            let taken = take(response, &lost).await;
            driver.abort();
            taken
        })
    }
}

fn stream_path(volume: &str, rest: &str) -> String {
    format!("/v1/streams/{}{rest}", utf8_percent_encode(volume, SEGMENT))
}

fn snapshot_path(name: &str, rest: &str) -> String {
    format!("/v1/snapshots/{}{rest}", utf8_percent_encode(name, SEGMENT))
}

fn path(name: &str, rest: &str) -> String {
    format!("/v1/volumes/{}{rest}", utf8_percent_encode(name, SEGMENT))
}
