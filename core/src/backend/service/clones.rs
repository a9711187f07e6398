//! Clones of snapshots that are on a backend alone: made at once, and what somebody reads of them is fetched.
//!
//! ```text
//! clone    the catalog: held in the clone's name -> reference object -> no tombstone -> manifest read -> the catalog: the clone exists
//! fetch    a shard's wish -> the clone's reader, opened when first wanted -> blocks, checked -> the shard's reactor
//! release  the catalog holds what no clone needs (removed, populated, or never made) -> reference deleted -> the catalog: released
//! ```
//! What is held is on record before the reference is put, and until it was deleted: so none is left behind, whatever dies when.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OnceCell, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use super::Desk;
use super::restoring::failed;
use super::survey::told;
use crate::backend::api::{BackendAnswer, BackendRequest, BackendRestore, CloneInfo, StoredSnapshot};
use crate::backend::clones::{CLONE_PATIENCE_S_DEFAULT, CloneSource, HeldSource, check_patience};
use crate::backend::manifest::Reference;
use crate::backend::reader::Reader;
use crate::backend::remote::{Patience, RemoteError, Trouble};
use crate::backend::restore::{hold, release};
use crate::control::{ControlAnswer, ControlError, ControlErrorKind, ControlRequest, VolumeCreate, VolumeInfo};
use crate::ids::{ShardId, VolumeId};
use crate::limits::{BLOCKS_PER_CLUSTER, CLUSTER, CLUSTERS_PER_RANGE};
use crate::node::fetch::FetchReplies;
use crate::request::Status;
use crate::shard::{ClusterData, Fetch, Fetched, RangeMap, Wanted};
use crate::volume::VolumeRecord;

/// Clones whose maps are kept in memory, the last used ones.
const OPEN_MAX: usize = 16;
/// Reads of the backend for one clone at a time.
const READS_MAX: usize = 16;
/// A reference that could not be deleted is tried again.
const RELEASE_AGAIN: Duration = Duration::from_secs(30);

/// A shard's wish. Dropped unanswered, it says that the target is stopping.
pub(super) struct FetchCall {
    shard: ShardId,
    fetch: Fetch,
    /// From then on its clone's patience counts.
    since: Instant,
    replies: Option<FetchReplies>,
}

impl FetchCall {
    pub(super) fn new(shard: ShardId, fetch: Fetch, replies: FetchReplies) -> Self {
        Self { shard, fetch, since: Instant::now(), replies: Some(replies) }
    }

    fn answer(mut self, outcome: Result<Fetched, Status>) {
        if let Some(replies) = self.replies.take() {
            replies(self.shard, self.fetch.token, outcome);
        }
    }
}

impl Drop for FetchCall {
    fn drop(&mut self) {
        if let Some(replies) = self.replies.take() {
            replies(self.shard, self.fetch.token, Err(Status::BackendUnavailable));
        }
    }
}

/// A clone, open for reading.
struct OpenClone {
    reader: Reader,
    places: Semaphore,
}

/// A clone of which something was wanted.
struct Clone {
    volume: VolumeId,
    /// As it was called then.
    name: String,
    source: CloneSource,
    open: OnceCell<OpenClone>,
    trouble: Arc<Trouble>,
    /// Why the last wish was not fulfilled, until one is.
    failing: Mutex<Option<String>>,
    fetched: AtomicU64,
}

/// See the module's description.
#[derive(Default)]
pub(super) struct Clones {
    /// The last used one last.
    known: Mutex<Vec<Arc<Clone>>>,
    /// References that are put for clones which do not exist yet.
    making: Mutex<BTreeSet<Uuid>>,
    wanted: Notify,
}

impl Clones {
    pub(super) fn info(&self) -> Vec<CloneInfo> {
        let of = |clone: &Arc<Clone>| CloneInfo {
            name: clone.name.clone(),
            of: clone.source.shown(),
            fetched: clone.fetched.load(Ordering::Relaxed),
            trouble: clone.failing.lock().clone().or_else(|| clone.trouble.last()),
        };
        self.known.lock().iter().map(of).collect()
    }

    /// They may be elsewhere.
    pub(super) fn close_all(&self) {
        self.known.lock().clear();
    }

    /// There may be something to release.
    pub(super) fn let_go(&self) {
        self.wanted.notify_one();
    }

    fn known(&self, volume: VolumeId) -> Option<Arc<Clone>> {
        let mut known = self.known.lock();
        let at = known.iter().position(|clone| clone.volume == volume)?;
        let clone = known.remove(at);
        known.push(Arc::clone(&clone));
        Some(clone)
    }

    /// The same from now on for everybody.
    fn add(&self, clone: Clone) -> Arc<Clone> {
        let mut known = self.known.lock();
        if let Some(there) = known.iter().find(|there| there.volume == clone.volume) {
            return Arc::clone(there);
        }
        let clone = Arc::new(clone);
        known.push(Arc::clone(&clone));
        if known.len() > OPEN_MAX {
            known.remove(0);
        }
        clone
    }
}

impl Desk {
    // ---- clones are made

    /// Makes a volume at once over a stored snapshot.
    pub(super) async fn clone_lazily(
        &self,
        wanted: &BackendRestore,
        stored: &StoredSnapshot,
        name: &str,
        patience: &Patience,
    ) -> Result<VolumeInfo, ControlError> {
        let patience_s = wanted.patience_s.unwrap_or(CLONE_PATIENCE_S_DEFAULT);
        check_patience(patience_s).map_err(ControlError::invalid)?;
        let source = CloneSource {
            from: wanted.from.clone(),
            pool: stored.pool,
            manifest: stored.manifest,
            name: stored.name.clone(),
            patience_s,
        };
        let holder = Uuid::new_v4();
        self.clones.making.lock().insert(holder);
        let outcome = self.make_clone(holder, &source, (wanted, name), patience).await;
        self.clones.making.lock().remove(&holder);
        if outcome.is_err() {
            self.clones.let_go();
        }
        outcome
    }

    async fn make_clone(
        &self,
        holder: Uuid,
        source: &CloneSource,
        (wanted, name): (&BackendRestore, &str),
        patience: &Patience,
    ) -> Result<VolumeInfo, ControlError> {
        self.owner(BackendRequest::Hold { holder, source: source.clone() }).await?;
        let (remote, _) = self.remote_at(source.from.as_ref())?;
        let remote = remote.of_pool(source.pool);
        let reference = Reference { holder, volume_name: name.to_owned(), unix_s: (self.around.unix_s)() };
        hold(&remote, source.manifest, &reference, patience).await.map_err(|error| failed(&error))?;
        let reader = Reader::open(remote, source.manifest, patience).await.map_err(|error| told(&error))?;
        let create = VolumeCreate {
            name: name.to_owned(),
            size: reader.manifest.of.size,
            lba_bytes: reader.manifest.of.lba_bytes,
            shards: None,
            exclusive: wanted.exclusive,
            allowed_hosts: wanted.allowed_hosts.clone(),
        };
        match self.owner(BackendRequest::Clone { holder, create }).await? {
            ControlAnswer::Volume(volume) => Ok(volume),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn owner(&self, request: BackendRequest) -> Result<ControlAnswer, ControlError> {
        self.access.ask(ControlRequest::Backend(request)).await
    }

    async fn held(&self) -> Result<Vec<HeldSource>, ControlError> {
        match self.owner(BackendRequest::Held).await? {
            ControlAnswer::Backend(BackendAnswer::Held(held)) => Ok(held),
            other => Err(unexpected(&other)),
        }
    }

    // ---- what is wanted of them is fetched

    /// One wish, answered within the clone's patience.
    pub(super) async fn fetch(self: Arc<Self>, call: FetchCall) {
        let outcome = self.fetch_for(&call).await;
        let metrics = &self.around.metrics.backend;
        match &outcome {
            Ok(Fetched::Cluster(data)) => metrics.fetched_bytes.add(data.bytes.len() as u64),
            Ok(Fetched::Map(_)) => {}
            Err(_) => metrics.fetches_failed.add(1),
        }
        call.answer(outcome);
    }

    async fn fetch_for(&self, call: &FetchCall) -> Result<Fetched, Status> {
        let record = &call.fetch.record;
        let clone = match self.clones.known(record.id) {
            Some(clone) => clone,
            None => self.find_clone(record).await.map_err(|error| {
                tracing::warn!(volume = record.name, error = error.message, "a clone's source is not known");
                Status::BackendUnavailable
            })?,
        };
        let until = call.since + Duration::from_secs(u64::from(clone.source.patience_s));
        let patience = Patience { until: Some(until), longest: None, trouble: Arc::clone(&clone.trouble) };
        let failure = match timeout_at(until, self.fetch_of(&clone, &call.fetch, &patience)).await {
            Ok(Ok(fetched)) => {
                if clone.failing.lock().take().is_some() {
                    tracing::info!(volume = clone.name, "blocks of a clone can be fetched again");
                }
                return Ok(fetched);
            }
            Ok(Err(failure)) => failure,
            Err(_) => {
                let last = clone.trouble.last().unwrap_or_else(|| "it does not answer".to_owned());
                let why = format!("nothing came within {} s: {last}", clone.source.patience_s);
                (Status::BackendUnavailable, why)
            }
        };
        let (status, why) = failure;
        if clone.failing.lock().replace(why.clone()).is_none() {
            let of = clone.source.shown();
            tracing::warn!(volume = clone.name, of, why, "blocks of a clone cannot be fetched; reads of them fail");
        }
        Err(status)
    }

    async fn find_clone(&self, record: &VolumeRecord) -> Result<Arc<Clone>, ControlError> {
        let held = self.held().await?;
        let held = held.into_iter().find(|held| held.volume == Some(record.id));
        let gone = || ControlError::new(ControlErrorKind::NotFound, "the catalog does not know what it is a clone of");
        let source = held.ok_or_else(gone)?.source;
        Ok(self.clones.add(Clone {
            volume: record.id,
            name: record.name.clone(),
            source,
            open: OnceCell::new(),
            trouble: Arc::default(),
            failing: Mutex::default(),
            fetched: AtomicU64::new(0),
        }))
    }

    async fn fetch_of(&self, clone: &Clone, fetch: &Fetch, patience: &Patience) -> Result<Fetched, (Status, String)> {
        let open = || async {
            let (remote, _) = self
                .remote_at(clone.source.from.as_ref())
                .map_err(|error| (Status::BackendUnavailable, error.message))?;
            let remote = remote.of_pool(clone.source.pool);
            let reader = Reader::open(remote, clone.source.manifest, patience).await.map_err(|error| seen(&error))?;
            Ok::<_, (Status, String)>(OpenClone { reader, places: Semaphore::new(READS_MAX) })
        };
        let open = clone.open.get_or_try_init(open).await?;
        let _place = open.places.acquire().await.expect("it is never closed");
        let reader = &open.reader;
        let at = |cluster| fetch.record.offset_of(fetch.nth, cluster);
        match fetch.wanted {
            Wanted::Cluster { cluster } => {
                let read = reader.blocks(at(cluster), BLOCKS_PER_CLUSTER, patience).await;
                let (blocks, bytes) = read.map_err(|error| seen(&error))?;
                clone.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                Ok(Fetched::Cluster(ClusterData { blocks, bytes }))
            }
            Wanted::Map { range } => {
                let mut data = 0;
                for index in 0..CLUSTERS_PER_RANGE {
                    let cluster = range * CLUSTERS_PER_RANGE + index;
                    let any = reader.has_any(at(cluster), BLOCKS_PER_CLUSTER, patience).await;
                    data |= u128::from(any.map_err(|error| seen(&error))?) << index;
                }
                let stride = u64::from(CLUSTERS_PER_RANGE) * CLUSTER * fetch.record.shards.len() as u64;
                let next = reader.next_data((u64::from(range) + 1) * stride).map(|at| (at / stride) as u32);
                Ok(Fetched::Map(RangeMap { data, next }))
            }
        }
    }

    // ---- what nobody needs any more is released

    /// Looks at the start, whenever somebody says so, and again while something is left.
    pub(super) async fn release_for_ever(self: Arc<Self>) {
        loop {
            while !self.release_unneeded().await {
                sleep(RELEASE_AGAIN).await;
            }
            self.clones.wanted.notified().await;
        }
    }

    /// Whether nothing is left to release.
    async fn release_unneeded(&self) -> bool {
        let held = match self.held().await {
            Ok(held) => held,
            // The target is stopping; the next start looks again.
            Err(_) => return true,
        };
        let making = self.clones.making.lock().clone();
        let unneeded = held.iter().filter(|held| held.volume.is_none() && !making.contains(&held.holder));
        let needed: BTreeSet<_> = held.iter().filter_map(|held| held.volume).collect();
        self.clones.known.lock().retain(|clone| needed.contains(&clone.volume));
        let mut all = true;
        for HeldSource { holder, source, .. } in unneeded {
            match self.release_one(*holder, source).await {
                Ok(()) => {
                    tracing::info!(of = source.shown(), "a snapshot on a backend is held no more");
                    // Its owner may be ourselves.
                    self.nudge();
                }
                Err(why) => {
                    tracing::warn!(
                        of = source.shown(),
                        why,
                        "a reference on a backend cannot be deleted yet; tried again"
                    );
                    all = false;
                }
            }
        }
        all
    }

    async fn release_one(&self, holder: Uuid, source: &CloneSource) -> Result<(), String> {
        let (remote, patience) = self.remote_at(source.from.as_ref()).map_err(|error| error.message)?;
        let patience = Patience { trouble: Arc::default(), ..patience };
        let remote = remote.of_pool(source.pool);
        release(&remote, source.manifest, holder, &patience).await.map_err(|error| error.to_string())?;
        self.owner(BackendRequest::Released { holder }).await.map(drop).map_err(|error| error.message)
    }
}

/// What a reader of the clone is told, and what the log is.
fn seen(error: &RemoteError) -> (Status, String) {
    let lost = matches!(error, RemoteError::Corrupt { .. }) || error.is_missing();
    (if lost { Status::UnrecoveredRead } else { Status::BackendUnavailable }, error.to_string())
}

fn unexpected(answer: &ControlAnswer) -> ControlError {
    ControlError::new(ControlErrorKind::Internal, format!("the owner answered {answer:?}"))
}
