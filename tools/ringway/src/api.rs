//! The control interface: HTTP/JSON over a unix socket, on a thread of its own.
//!
//! ```text
//! GET    /v1/target                     the running target
//! GET    /v1/pool                       the pool
//! POST   /v1/pool/devices               PoolGrow; answered when the pool has grown
//! POST   /v1/pool/sync                  make everything acknowledged so far durable
//! GET    /v1/volumes                    all volumes
//! POST   /v1/volumes                    VolumeCreate
//! GET    /v1/volumes/{name}             one volume; `/` in a name is written %2F
//! PUT    /v1/volumes/{name}/size        {"size": bytes}
//! PUT    /v1/volumes/{name}/name        {"name": new}
//! PUT    /v1/volumes/{name}/hosts       {"hosts": [nqn, ...]}
//! DELETE /v1/volumes/{name}?force=true  remove it
//! GET    /v1/volumes/{name}/allocated   see `allocated.rs`
//! …      /v1/snapshots, /v1/clones      see `snapshots.rs`
//! …      /v1/streams                    see `streams.rs`
//! GET    /v1/events                     see `events.rs`
//! GET    /v1/exports                    all exports
//! POST   /v1/exports                    ExportAdd
//! DELETE /v1/exports/{id}               take an export away
//! GET    /v1/backend                    where snapshots are stored, and what is on its way there
//! PUT    /v1/backend                    BackendSet
//! POST   /v1/backend/list               BackendFrom; what is stored
//! POST   /v1/backend/check              BackendCheck; answered when everything was read
//! POST   /v1/backend/restore            BackendRestore; answered when the volume is whole
//! POST   /v1/backend/collect            delete what is needed no more
//! GET    /metrics                       Prometheus
//! ```
//!
//! A failure is `{"error": {"kind": ..., "message": ...}}` with the status of its kind.

mod allocated;
mod events;
pub(crate) mod snapshots;
pub(crate) mod streams;

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
pub(crate) use ringway_client::control::ErrorBody;
use ringway_core::backend::api::{
    BackendAnswer, BackendCheck, BackendFrom, BackendRequest, BackendRestore, BackendSet,
};
use ringway_core::control::{
    ControlAnswer, ControlCall, ControlError, ControlErrorKind, ControlPort, ControlRequest, PoolGrow, VolumeCreate,
};
use ringway_core::export::ExportAdd;
use ringway_core::ids::ExportId;
use ringway_core::metrics::Metrics;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::metrics_text;

/// What the routes need.
#[derive(Clone)]
pub(crate) struct Node {
    /// Takes the calls.
    pub(crate) port: Arc<dyn ControlPort>,
    /// Read without asking anybody.
    pub(crate) metrics: Arc<Metrics>,
}

/// Body of `PUT …/size`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewSize {
    pub(crate) size: u64,
}

/// Body of `PUT …/name`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewName {
    pub(crate) name: String,
}

/// Body of `PUT …/hosts`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewHosts {
    pub(crate) hosts: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveQuery {
    #[serde(default)]
    force: bool,
}

/// All routes.
pub(crate) fn routes(node: Node) -> Router {
    Router::new()
        .route("/v1/target", get(|State(node): State<Node>| ask(node, ControlRequest::TargetShow)))
        .route("/v1/pool", get(|State(node): State<Node>| ask(node, ControlRequest::PoolShow)))
        .route("/v1/pool/devices", post(pool_grow))
        .route("/v1/pool/sync", post(|State(node): State<Node>| ask(node, ControlRequest::Sync)))
        .route("/v1/volumes", get(|State(node): State<Node>| ask(node, ControlRequest::VolumeList)).post(volume_create))
        .route("/v1/volumes/{name}", get(volume_show).delete(volume_remove))
        .route("/v1/volumes/{name}/size", put(volume_resize))
        .route("/v1/volumes/{name}/name", put(volume_rename))
        .route("/v1/volumes/{name}/hosts", put(volume_set_hosts))
        .route("/v1/exports", get(|State(node): State<Node>| ask(node, ControlRequest::ExportList)).post(export_add))
        .route("/v1/exports/{id}", delete(export_remove))
        .route("/v1/backend", get(|State(node): State<Node>| about(node, BackendRequest::Show)).put(backend_set))
        .route("/v1/backend/list", post(backend_list))
        .route("/v1/backend/check", post(backend_check))
        .route("/v1/backend/restore", post(backend_restore))
        .route("/v1/backend/collect", post(|State(node): State<Node>| about(node, BackendRequest::Collect)))
        .route("/metrics", get(metrics))
        .merge(allocated::routes())
        .merge(snapshots::routes())
        .merge(streams::routes())
        .merge(events::routes())
        .fallback(|| async {
            Refused(ControlError::new(ControlErrorKind::NotFound, "no such path; see docs/operating/control.md"))
        })
        .method_not_allowed_fallback(|| async {
            Refused(ControlError::invalid("this path does not take that method; see docs/operating/control.md"))
        })
        .with_state(node)
}

/// Passes a request to the node and its answer back.
async fn ask(node: Node, request: ControlRequest) -> Result<Response, Refused> {
    Ok(respond(call(&node, request).await?))
}

/// The same of a call that makes something.
async fn make(node: Node, request: ControlRequest) -> Result<Response, Refused> {
    let mut response = ask(node, request).await?;
    *response.status_mut() = StatusCode::CREATED;
    Ok(response)
}

/// The node's answer.
async fn call(node: &Node, request: ControlRequest) -> Result<ControlAnswer, Refused> {
    let (sender, receiver) = oneshot::channel();
    // A client that went away in the meantime does not want its answer; the request itself is carried out.
    node.port.control(ControlCall::new(request, move |answer| drop(sender.send(answer))));
    let answer = receiver.await.map_err(|_| {
        Refused(ControlError::new(ControlErrorKind::Unavailable, "the target stopped before it answered"))
    })?;
    answer.map_err(Refused)
}

fn respond(answer: ControlAnswer) -> Response {
    match answer {
        ControlAnswer::Done => Json(serde_json::json!({})).into_response(),
        ControlAnswer::Volume(volume) => Json(volume).into_response(),
        ControlAnswer::Volumes(volumes) => Json(volumes).into_response(),
        ControlAnswer::Pool(pool) => Json(pool).into_response(),
        ControlAnswer::Grown(grown) => Json(grown).into_response(),
        ControlAnswer::Target(target) => Json(target).into_response(),
        ControlAnswer::Snapshots(snapshots) => Json(snapshots).into_response(),
        ControlAnswer::Export(export) => Json(export).into_response(),
        ControlAnswer::Exports(exports) => Json(exports).into_response(),
        ControlAnswer::Changed(changed) => Json(changed).into_response(),
        ControlAnswer::Filled(filled) => Json(filled).into_response(),
        ControlAnswer::SnapshotSpace(space) => Json(space).into_response(),
        ControlAnswer::Stream(stream) => Json(stream).into_response(),
        ControlAnswer::Streams(streams) => Json(streams).into_response(),
        ControlAnswer::Stepped(stepped) => Json(stepped).into_response(),
        ControlAnswer::Events(events) => Json(events).into_response(),
        ControlAnswer::Backend(answer) => backend_answer(answer),
    }
}

async fn pool_grow(State(node): State<Node>, body: Result<Json<PoolGrow>, JsonRejection>) -> Result<Response, Refused> {
    ask(node, ControlRequest::PoolGrow(body?.0)).await
}

async fn volume_create(
    State(node): State<Node>,
    body: Result<Json<VolumeCreate>, JsonRejection>,
) -> Result<Response, Refused> {
    let create = body?.0;
    create.check().map_err(Refused)?;
    make(node, ControlRequest::VolumeCreate(create)).await
}

async fn volume_show(State(node): State<Node>, name: VolumeName) -> Result<Response, Refused> {
    ask(node, ControlRequest::VolumeShow { name: name?.0 }).await
}

async fn volume_remove(
    State(node): State<Node>,
    name: VolumeName,
    query: Result<Query<RemoveQuery>, QueryRejection>,
) -> Result<Response, Refused> {
    ask(node, ControlRequest::VolumeRemove { name: name?.0, force: query?.0.force }).await
}

async fn volume_resize(
    State(node): State<Node>,
    name: VolumeName,
    body: Result<Json<NewSize>, JsonRejection>,
) -> Result<Response, Refused> {
    ask(node, ControlRequest::VolumeResize { name: name?.0, size: body?.0.size }).await
}

async fn volume_rename(
    State(node): State<Node>,
    name: VolumeName,
    body: Result<Json<NewName>, JsonRejection>,
) -> Result<Response, Refused> {
    ask(node, ControlRequest::VolumeRename { name: name?.0, to: body?.0.name }).await
}

async fn volume_set_hosts(
    State(node): State<Node>,
    name: VolumeName,
    body: Result<Json<NewHosts>, JsonRejection>,
) -> Result<Response, Refused> {
    ask(node, ControlRequest::VolumeSetHosts { name: name?.0, hosts: body?.0.hosts }).await
}

async fn export_add(
    State(node): State<Node>,
    body: Result<Json<ExportAdd>, JsonRejection>,
) -> Result<Response, Refused> {
    let add = body?.0;
    add.check().map_err(Refused)?;
    make(node, ControlRequest::ExportAdd(add)).await
}

async fn export_remove(State(node): State<Node>, id: Result<Path<u32>, PathRejection>) -> Result<Response, Refused> {
    ask(node, ControlRequest::ExportRemove { id: ExportId(id?.0) }).await
}

async fn about(node: Node, request: BackendRequest) -> Result<Response, Refused> {
    ask(node, ControlRequest::Backend(request)).await
}

async fn backend_set(
    State(node): State<Node>,
    body: Result<Json<BackendSet>, JsonRejection>,
) -> Result<Response, Refused> {
    about(node, BackendRequest::Set(body?.0)).await
}

async fn backend_list(
    State(node): State<Node>,
    body: Result<Json<BackendFrom>, JsonRejection>,
) -> Result<Response, Refused> {
    about(node, BackendRequest::List(body?.0)).await
}

async fn backend_check(
    State(node): State<Node>,
    body: Result<Json<BackendCheck>, JsonRejection>,
) -> Result<Response, Refused> {
    about(node, BackendRequest::Check(body?.0)).await
}

async fn backend_restore(
    State(node): State<Node>,
    body: Result<Json<BackendRestore>, JsonRejection>,
) -> Result<Response, Refused> {
    make(node, ControlRequest::Backend(BackendRequest::Restore(body?.0))).await
}

fn backend_answer(answer: BackendAnswer) -> Response {
    match answer {
        BackendAnswer::Info(info) => Json(info).into_response(),
        BackendAnswer::Stored(stored) => Json(stored).into_response(),
        BackendAnswer::Checked(checked) => Json(checked).into_response(),
        BackendAnswer::Collected(collected) => Json(collected).into_response(),
        // Only the backend's own thread asks for that.
        BackendAnswer::Kept(_) | BackendAnswer::Held(_) | BackendAnswer::Attempts(_) => {
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn metrics(State(node): State<Node>) -> Response {
    ([(header::CONTENT_TYPE, metrics_text::CONTENT_TYPE)], metrics_text::render(&node.metrics)).into_response()
}

/// The name out of the path, `%2F` already decoded.
type VolumeName = Result<Path<String>, PathRejection>;

/// A failure on its way out.
pub(crate) struct Refused(pub(crate) ControlError);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.kind.http_status()).expect("kinds have valid statuses");
        (status, Json(ErrorBody { error: self.0 })).into_response()
    }
}

impl From<JsonRejection> for Refused {
    fn from(rejection: JsonRejection) -> Refused {
        Refused(ControlError::invalid(rejection.body_text()))
    }
}

impl From<PathRejection> for Refused {
    fn from(rejection: PathRejection) -> Refused {
        Refused(ControlError::invalid(rejection.body_text()))
    }
}

impl From<QueryRejection> for Refused {
    fn from(rejection: QueryRejection) -> Refused {
        Refused(ControlError::invalid(rejection.body_text()))
    }
}

#[cfg(test)]
mod tests;
