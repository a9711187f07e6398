//! What lies on a backend, found by looking there and nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::time::sleep;
use uuid::Uuid;

use super::Desk;
use crate::backend::api::{BackendCheck, CheckedSnapshot, StoredSnapshot, StoredState};
use crate::backend::names::{Attempt, Object};
use crate::backend::reader::Reader;
use crate::backend::remote::{Patience, Remote, RemoteError};
use crate::backend::settings::BackendSettings;
use crate::backend::sync::read_manifest;
use crate::backend::url::BackendUrl;
use crate::control::{ControlError, ControlErrorKind};
use crate::snapshot::name::full_name;

/// Manifests read at a time.
const READS: usize = 8;
/// Who made a snapshot is told of it by the catalog's commit, and the marker is put next: whoever asks for it at once waits for that.
const MARKER_LOOKS: usize = 10;
const MARKER_WAIT: Duration = Duration::from_millis(200);

/// An error of the store's as a front end tells it.
pub(super) fn told(error: &RemoteError) -> ControlError {
    let kind = match error {
        RemoteError::Corrupt { .. } | RemoteError::NotKept(_) => ControlErrorKind::Corrupt,
        RemoteError::Store(error) => match error.kind {
            crate::backend::store::StoreErrorKind::Missing | crate::backend::store::StoreErrorKind::NoBucket => {
                ControlErrorKind::NotFound
            }
            crate::backend::store::StoreErrorKind::Denied => ControlErrorKind::Denied,
            crate::backend::store::StoreErrorKind::Full => ControlErrorKind::NoSpace,
            _ => ControlErrorKind::Unavailable,
        },
    };
    ControlError::new(kind, error.to_string())
}

impl Desk {
    /// The backend at `from`, or the pool's own.
    pub(super) fn remote_at(&self, from: Option<&BackendUrl>) -> Result<(Remote, Patience), ControlError> {
        match from {
            None => {
                let (remote, settings) = self.remote()?;
                Ok((remote, self.patience(&settings)))
            }
            Some(url) => {
                let settings = BackendSettings::new(url.clone());
                let remote = self.open_remote(&settings)?;
                // Somebody else's trouble is not shown as our backend's.
                let patience = Patience { trouble: Arc::default(), ..self.patience(&settings) };
                Ok((remote, patience))
            }
        }
    }

    /// Everything that is stored there, of all pools, by name.
    pub(super) async fn stored(
        &self,
        remote: &Remote,
        patience: &Patience,
    ) -> Result<Vec<StoredSnapshot>, ControlError> {
        let objects = remote.list_all(patience).await.map_err(|error| told(&error))?;
        let mut manifests: Vec<(Uuid, Attempt)> = Vec::new();
        let (mut marked, mut going) = (BTreeSet::new(), BTreeSet::new());
        let mut readers: BTreeMap<(Uuid, Attempt), Vec<Uuid>> = BTreeMap::new();
        for ((pool, object), _) in objects {
            match object {
                Object::Manifest(attempt) => manifests.push((pool, attempt)),
                Object::Marker(attempt) => drop(marked.insert((pool, attempt))),
                Object::Tombstone(attempt) => drop(going.insert((pool, attempt))),
                Object::Reference { of, holder } => readers.entry((pool, of)).or_default().push(holder),
                Object::Pack { .. } | Object::Map { .. } => {}
            }
        }
        let mut stored: Vec<_> = stream::iter(manifests)
            .map(|(pool, attempt)| async move {
                let found = read_manifest(&remote.of_pool(pool), attempt, patience).await;
                (pool, attempt, found)
            })
            .buffer_unordered(READS)
            .map(|(pool, attempt, found)| {
                let key = (pool, attempt);
                let state = match (going.contains(&key), marked.contains(&key)) {
                    (true, _) => StoredState::Going,
                    (false, true) => StoredState::Synced,
                    (false, false) => StoredState::Unconfirmed,
                };
                let readers = readers.get(&key).cloned().unwrap_or_default();
                describe(pool, attempt, found, state, readers)
            })
            .collect()
            .await;
        stored.sort_by(|a, b| (&a.name, a.created_unix_s, a.manifest).cmp(&(&b.name, b.created_unix_s, b.manifest)));
        Ok(stored)
    }

    /// The one that is called so.
    pub(super) async fn find(
        &self,
        remote: &Remote,
        wanted: &str,
        unconfirmed: bool,
        patience: &Patience,
    ) -> Result<StoredSnapshot, ControlError> {
        let by_manifest = wanted.parse::<Attempt>().ok();
        let called = |snapshot: &&StoredSnapshot| {
            by_manifest.map_or(snapshot.name == wanted, |manifest| snapshot.manifest == manifest)
        };
        let mut stored = self.stored(remote, patience).await?;
        for _ in 0..MARKER_LOOKS {
            let is = |state| stored.iter().filter(called).any(|snapshot| snapshot.state == state);
            if unconfirmed || is(StoredState::Synced) || !is(StoredState::Unconfirmed) {
                break;
            }
            sleep(MARKER_WAIT).await;
            stored = self.stored(remote, patience).await?;
        }
        let found: Vec<_> = stored.iter().filter(called).collect();
        let usable = |snapshot: &&&StoredSnapshot| match snapshot.state {
            StoredState::Synced => true,
            StoredState::Unconfirmed => unconfirmed,
            StoredState::Going => false,
        };
        let fits: Vec<_> = found.iter().filter(usable).collect();
        match (fits.as_slice(), found.first()) {
            ([one], _) => match &one.damaged {
                None => Ok((**one).clone()),
                Some(why) => Err(ControlError::new(ControlErrorKind::Corrupt, why.clone())),
            },
            ([], None) => {
                let names: BTreeSet<_> = stored.iter().map(|snapshot| snapshot.name.as_str()).take(20).collect();
                let there = if names.is_empty() {
                    "nothing".to_owned()
                } else {
                    names.into_iter().collect::<Vec<_>>().join(", ")
                };
                Err(ControlError::new(
                    ControlErrorKind::NotFound,
                    format!("no snapshot {wanted:?} is stored there; there is {there}"),
                ))
            }
            ([], Some(unusable)) => Err(ControlError::new(
                ControlErrorKind::NotFound,
                match unusable.state {
                    StoredState::Going => format!("{wanted:?} is about to be deleted by the pool that made it"),
                    _ => format!(
                        "{wanted:?} was never confirmed by the pool that made it: it may not be a snapshot at all; ask for it \
                         with --unconfirmed, if that pool is lost"
                    ),
                },
            )),
            (several, _) => {
                let list: Vec<_> = several.iter().map(|one| format!("{} of pool {}", one.manifest, one.pool)).collect();
                Err(ControlError::new(
                    ControlErrorKind::Invalid,
                    format!(
                        "{} snapshots are called {wanted:?}; name one by its manifest: {}",
                        list.len(),
                        list.join(", ")
                    ),
                ))
            }
        }
    }

    /// Reads what snapshots need.
    pub(super) async fn check(&self, check: &BackendCheck) -> Result<Vec<CheckedSnapshot>, ControlError> {
        let (remote, patience) = self.remote_at(check.from.as_ref())?;
        let wanted = match &check.snapshot {
            Some(name) => vec![self.find(&remote, name, true, &patience).await?],
            None => {
                let all = self.stored(&remote, &patience).await?;
                let ours = |one: &StoredSnapshot| check.from.is_some() || one.pool == self.around.pool;
                all.into_iter().filter(|one| ours(one) && one.state == StoredState::Synced).collect()
            }
        };
        let mut checked = Vec::new();
        for one in wanted {
            let reader = Reader::open(remote.of_pool(one.pool), one.manifest, &patience).await;
            let outcome = match reader {
                Ok(reader) => reader.check(check.data, &patience).await,
                Err(error) => Err(error),
            };
            let (bytes, damaged) = match outcome {
                Ok(bytes) => (bytes, None),
                Err(error @ RemoteError::Corrupt { .. }) => (0, Some(error.to_string())),
                Err(error) if error.is_missing() => (0, Some(error.to_string())),
                Err(error) => return Err(told(&error)),
            };
            checked.push(CheckedSnapshot { name: one.name, pool: one.pool, manifest: one.manifest, bytes, damaged });
        }
        Ok(checked)
    }
}

fn describe(
    pool: Uuid,
    manifest: Attempt,
    found: Result<Arc<crate::backend::manifest::Manifest>, RemoteError>,
    state: StoredState,
    readers: Vec<Uuid>,
) -> StoredSnapshot {
    match found {
        Ok(root) => StoredSnapshot {
            name: full_name(&root.of.volume_name, &root.of.snapshot_name),
            pool,
            manifest,
            size: root.of.size,
            data: root.blocks * crate::limits::BLOCK,
            lba_bytes: root.of.lba_bytes,
            created_unix_s: root.of.created_unix_s,
            state,
            readers,
            damaged: None,
        },
        Err(error) => StoredSnapshot {
            name: String::new(),
            pool,
            manifest,
            size: 0,
            data: 0,
            lba_bytes: 0,
            created_unix_s: 0,
            state,
            readers,
            damaged: Some(error.to_string()),
        },
    }
}
