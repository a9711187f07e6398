//! The routes of streams.
//!
//! ```text
//! GET    /v1/streams                 all streams
//! POST   /v1/streams                 StreamStart; answered when the job is on record
//! GET    /v1/streams/{name}          one, by its volume; `/` in a name is written %2F
//! PUT    /v1/streams/{name}/speed    {"speed": bytes a second, or null}; counts at once
//! POST   /v1/streams/{name}/resume   go on after an error
//! POST   /v1/streams/{name}/step     {"cursor": n}; one increment, answered with StreamStepped
//! DELETE /v1/streams/{name}          end it
//! ```

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::Response;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use ringway_core::control::ControlRequest;
use ringway_core::stream::{StreamRequest, StreamStart};
use serde::{Deserialize, Serialize};

use super::{Node, Refused, VolumeName, ask, make};

/// Body of `PUT …/speed`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewSpeed {
    pub(crate) speed: Option<u64>,
}

/// Body of `POST …/step`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StepFrom {
    pub(crate) cursor: u64,
}

pub(super) fn routes() -> Router<Node> {
    Router::new()
        .route("/v1/streams", get(|State(node): State<Node>| about(node, StreamRequest::List)).post(start))
        .route("/v1/streams/{name}", get(info).delete(abort))
        .route("/v1/streams/{name}/speed", put(set_speed))
        .route("/v1/streams/{name}/resume", post(resume))
        .route("/v1/streams/{name}/step", post(step))
}

async fn about(node: Node, request: StreamRequest) -> Result<Response, Refused> {
    ask(node, ControlRequest::Stream(request)).await
}

async fn start(State(node): State<Node>, body: Result<Json<StreamStart>, JsonRejection>) -> Result<Response, Refused> {
    make(node, ControlRequest::Stream(StreamRequest::Start(body?.0))).await
}

async fn info(State(node): State<Node>, name: VolumeName) -> Result<Response, Refused> {
    about(node, StreamRequest::Info { volume: name?.0 }).await
}

async fn set_speed(
    State(node): State<Node>,
    name: VolumeName,
    body: Result<Json<NewSpeed>, JsonRejection>,
) -> Result<Response, Refused> {
    about(node, StreamRequest::SetSpeed { volume: name?.0, speed: body?.0.speed }).await
}

async fn resume(State(node): State<Node>, name: VolumeName) -> Result<Response, Refused> {
    about(node, StreamRequest::Resume { volume: name?.0 }).await
}

async fn step(
    State(node): State<Node>,
    name: VolumeName,
    body: Result<Json<StepFrom>, JsonRejection>,
) -> Result<Response, Refused> {
    about(node, StreamRequest::Step { volume: name?.0, cursor: body?.0.cursor }).await
}

async fn abort(State(node): State<Node>, name: VolumeName) -> Result<Response, Refused> {
    about(node, StreamRequest::Abort { volume: name?.0 }).await
}
