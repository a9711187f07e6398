//! `GET /v1/volumes/{name}/allocated?cursor=N&uuid=U`: where a volume or a snapshot has data, stretch by stretch; what is between reads
//! as zeros. With a UUID it is answered only for the volume that has it: a client that reached its volume by a network learns so that
//! this target is not the one that it reached.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::get;
use ringway_core::control::{ChangedQuery, ControlAnswer, ControlError, ControlErrorKind, ControlRequest};
use serde::Deserialize;

use super::{Node, Refused, VolumeName, ask, call};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct From {
    #[serde(default)]
    cursor: u64,
    uuid: Option<String>,
}

pub(super) fn routes() -> axum::Router<Node> {
    axum::Router::new().route("/v1/volumes/{name}/allocated", get(allocated))
}

async fn allocated(
    State(node): State<Node>,
    name: VolumeName,
    query: Result<Query<From>, QueryRejection>,
) -> Result<Response, Refused> {
    let (name, From { cursor, uuid }) = (name?.0, query?.0);
    let volume = match call(&node, ControlRequest::VolumeShow { name: name.clone() }).await? {
        ControlAnswer::Volume(volume) => volume,
        other => unreachable!("{other:?} is no answer to this"),
    };
    if let Some(uuid) = uuid.filter(|uuid| *uuid != volume.uuid.to_string()) {
        let why = format!("volume {name:?} of this target is {}, not {uuid}", volume.uuid);
        return Err(Refused(ControlError::new(ControlErrorKind::NotFound, why)));
    }
    ask(node, ControlRequest::Changed(ChangedQuery { volume: volume.id, after: None, cursor })).await
}
