//! The routes of snapshots and clones.
//!
//! ```text
//! GET    /v1/snapshots?volume=NAME&space=true  snapshots of a volume, or of all; also what space each holds
//! POST   /v1/snapshots                       {"volumes": [...], "name": ..., "timeout_ms": n}
//! GET    /v1/snapshots/{name}                one, `VOLUME@SNAPSHOT`; `/` in a name is written %2F
//! DELETE /v1/snapshots/{name}?force=true     remove it, or give up one that is being made
//! POST   /v1/snapshots/{name}/rollback?force=true&holder=UUID  take its volume back to it, though that host has it
//! GET    /v1/snapshots/{name}/diff?to=NAME&cursor=N  what a later one, or the volume, has other than it; stretch by stretch
//! POST   /v1/clones                          VolumeClone
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::{get, post};
use ringway_core::control::{ControlAnswer, ControlRequest, HeldQuery, RollbackBy};
use ringway_core::snapshot::asked::{DiffQuery, Patience, SnapshotCreate, SnapshotInfo, SnapshotState, VolumeClone};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Node, Refused, RemoveQuery, VolumeName, ask, call, make, respond};

/// Body of `POST /v1/snapshots`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewSnapshot {
    pub(crate) volumes: Vec<String>,
    pub(crate) name: String,
    /// Milliseconds; 0, or none: for ever; negative: not at all.
    #[serde(default)]
    pub(crate) timeout_ms: f64,
}

impl From<&SnapshotCreate> for NewSnapshot {
    fn from(create: &SnapshotCreate) -> NewSnapshot {
        let timeout_ms = match create.patience {
            Patience::Within(timeout) => timeout.as_secs_f64() * 1000.0,
            Patience::Forever => 0.0,
            Patience::NoWait => -1.0,
        };
        NewSnapshot { volumes: create.volumes.clone(), name: create.name.clone(), timeout_ms }
    }
}

impl NewSnapshot {
    fn into_create(self) -> SnapshotCreate {
        let patience = if self.timeout_ms < 0.0 {
            Patience::NoWait
        } else if self.timeout_ms == 0.0 {
            Patience::Forever
        } else {
            // What is out of range is refused by the check, with the range.
            Patience::Within(Duration::try_from_secs_f64(self.timeout_ms / 1000.0).unwrap_or(Duration::MAX))
        };
        SnapshotCreate { volumes: self.volumes, name: self.name, patience }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    volume: Option<String>,
    /// Also how much space each holds: all of the volumes' maps are looked at.
    #[serde(default)]
    space: bool,
}

pub(super) fn routes() -> axum::Router<Node> {
    axum::Router::new()
        .route("/v1/snapshots", get(list).post(create))
        .route("/v1/snapshots/{name}", get(show).delete(remove))
        .route("/v1/snapshots/{name}/rollback", post(rollback))
        .route("/v1/snapshots/{name}/diff", get(diff))
        .route("/v1/clones", post(clone))
}

async fn list(State(node): State<Node>, query: Result<Query<ListQuery>, QueryRejection>) -> Result<Response, Refused> {
    let ListQuery { volume, space } = query?.0;
    let mut answer = call(&node, ControlRequest::SnapshotList { volume }).await?;
    if let (true, ControlAnswer::Snapshots(snapshots)) = (space, &mut answer) {
        add_space(&node, snapshots).await;
    }
    Ok(respond(answer))
}

/// What each of them alone keeps, added up over the maps of their volumes.
async fn add_space(node: &Node, snapshots: &mut [SnapshotInfo]) {
    let origins: BTreeSet<_> = snapshots.iter().map(|info| info.origin).collect();
    'volumes: for volume in origins {
        let mut held: BTreeMap<String, u64> = BTreeMap::new();
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            let query = HeldQuery { volume, cursor: at };
            // Of a volume that is faulted, or was just removed, it is not known.
            let Ok(ControlAnswer::SnapshotSpace(space)) = call(node, ControlRequest::SnapshotSpace(query)).await else {
                continue 'volumes;
            };
            for (cut, bytes) in space.unique {
                *held.entry(cut.to_string()).or_default() += bytes;
            }
            cursor = space.next;
        }
        let known = snapshots.iter_mut().filter(|info| info.origin == volume && info.state != SnapshotState::Pending);
        for info in known {
            info.held = info.cut.as_ref().map(|cut| held.get(cut).copied().unwrap_or(0));
        }
    }
}

async fn create(State(node): State<Node>, body: Result<Json<NewSnapshot>, JsonRejection>) -> Result<Response, Refused> {
    let create = body?.0.into_create();
    create.check().map_err(Refused)?;
    make(node, ControlRequest::SnapshotCreate(create)).await
}

async fn show(State(node): State<Node>, name: VolumeName) -> Result<Response, Refused> {
    ask(node, ControlRequest::SnapshotShow { name: name?.0 }).await
}

async fn remove(
    State(node): State<Node>,
    name: VolumeName,
    query: Result<Query<RemoveQuery>, QueryRejection>,
) -> Result<Response, Refused> {
    ask(node, ControlRequest::SnapshotRemove { name: name?.0, force: query?.0.force }).await
}

async fn rollback(
    State(node): State<Node>,
    name: VolumeName,
    query: Result<Query<RollbackQuery>, QueryRejection>,
) -> Result<Response, Refused> {
    let by = match query?.0 {
        RollbackQuery { force: true, .. } => RollbackBy::Force,
        RollbackQuery { holder: Some(host), .. } => RollbackBy::Holder(*host.as_bytes()),
        RollbackQuery { .. } => RollbackBy::Anybody,
    };
    ask(node, ControlRequest::SnapshotRollback { name: name?.0, by }).await
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RollbackQuery {
    #[serde(default)]
    force: bool,
    /// The host identifier of who asks: what that one has open is no obstacle.
    holder: Option<Uuid>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiffTo {
    to: Option<String>,
    #[serde(default)]
    cursor: u64,
}

async fn diff(
    State(node): State<Node>,
    name: VolumeName,
    query: Result<Query<DiffTo>, QueryRejection>,
) -> Result<Response, Refused> {
    let DiffTo { to, cursor } = query?.0;
    ask(node, ControlRequest::SnapshotDiff(DiffQuery { from: name?.0, to, cursor })).await
}

async fn clone(State(node): State<Node>, body: Result<Json<VolumeClone>, JsonRejection>) -> Result<Response, Refused> {
    let clone = body?.0;
    clone.check().map_err(Refused)?;
    make(node, ControlRequest::VolumeClone(clone)).await
}
