//! Snapshots on their way to the backend.
//!
//! ```text
//! start -> (a place among those that run) -> upload -> ManifestAboutToBePut -> go_on -> publish -> Synced -> committed -> marker -> Settled
//! cancel, at any time: the task is dropped and with it what it had under way; what it has put is collected
//! ```
//! An attempt counts as running, so that nothing of it is collected, from before its first put until it is committed, is cancelled,
//! or has failed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

use super::Desk;
use crate::backend::api::SyncInfo;
use crate::backend::collect::mark;
use crate::backend::manifest::Subject;
use crate::backend::names::Attempt;
use crate::backend::remote::{Patience, Remote, Trouble};
use crate::backend::sync::{UploadJob, UploadProgress, publish, upload};
use crate::ids::AttemptId;
use crate::snapshot::name::split_name;
use crate::snapshot::sync::{NotedAttempt, SyncJob, SyncReport};

/// Jobs at a time: each has up to six packs in memory, or reads ahead.
const JOBS_MAX: usize = 4;
/// How often the coordinator hears how far a job is.
const REPORT_EVERY: std::time::Duration = std::time::Duration::from_millis(500);

/// How often is looked whether something holds it up: a deadline's answer says so.
const TROUBLE_EVERY: std::time::Duration = std::time::Duration::from_millis(50);

/// A job that was started.
struct Job {
    attempt: Attempt,
    /// The manifest that it builds upon.
    base: Option<Attempt>,
    name: String,
    progress: Arc<UploadProgress>,
    trouble: Arc<Trouble>,
    go_on: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

/// All of them.
pub(super) struct Jobs {
    running: Mutex<BTreeMap<AttemptId, Job>>,
    places: Arc<Semaphore>,
}

impl Default for Jobs {
    fn default() -> Self {
        Self { running: Mutex::default(), places: Arc::new(Semaphore::new(JOBS_MAX)) }
    }
}

impl Jobs {
    pub(super) fn go_on(&self, id: AttemptId) {
        if let Some(go_on) = self.running.lock().get_mut(&id).and_then(|job| job.go_on.take()) {
            // A task that has just been called off does not listen.
            let _ = go_on.send(());
        }
    }

    fn cancel(&self, id: AttemptId) {
        if let Some(job) = self.running.lock().remove(&id) {
            job.task.abort();
        }
    }

    /// Attempts under way, and the manifests that they build upon.
    pub(super) fn attempts(&self) -> (BTreeSet<Attempt>, BTreeSet<Attempt>) {
        let running = self.running.lock();
        let attempts = running.values().map(|job| job.attempt).collect();
        (attempts, running.values().filter_map(|job| job.base).collect())
    }

    pub(super) fn info(&self) -> Vec<SyncInfo> {
        let of = |job: &Job| SyncInfo {
            name: job.name.clone(),
            walked: job.progress.walked.load(Ordering::Relaxed),
            size: job.progress.size.load(Ordering::Relaxed),
            changed: job.progress.changed.load(Ordering::Relaxed),
            sent: job.progress.sent.load(Ordering::Relaxed),
            trouble: job.trouble.last(),
        };
        self.running.lock().values().map(of).collect()
    }
}

/// What keeps attempts apart that an old copy of a pool would number alike.
pub(super) fn nonce() -> u32 {
    uuid::Uuid::new_v4().as_u128() as u32
}

impl Desk {
    pub(super) fn start_job(self: &Arc<Self>, job: SyncJob) {
        let id = job.attempt;
        let (remote, _) = match self.remote() {
            Ok(open) => open,
            Err(error) => return (self.around.reports)(SyncReport::Failed { attempt: id, why: error.message }),
        };
        let attempt = Attempt { id: id.0, nonce: nonce() };
        let upload_job = upload_job(&job, attempt);
        let (progress, trouble): (Arc<UploadProgress>, Arc<Trouble>) = Default::default();
        let (go_on, may_go_on) = oneshot::channel();
        let (desk, seen) = (Arc::clone(self), Arc::clone(&progress));
        let patience = Patience::endless(Arc::clone(&trouble));
        let base = upload_job.base.map(|(attempt, _)| attempt);
        // The task must find itself among the running ones.
        let mut running = self.jobs.running.lock();
        let task = tokio::spawn(async move {
            let _place = desk.jobs.places.acquire().await.expect("it is never closed");
            let outcome = tokio::select! {
                outcome = desk.carry_out(&remote, id, &upload_job, &seen, &patience, may_go_on) => outcome,
                never = desk.tell_progress(id, &seen) => never,
                never = desk.tell_trouble(id, &patience.trouble) => never,
            };
            let metrics = &desk.around.metrics.backend;
            metrics.sent_bytes.add(seen.sent.load(Ordering::Relaxed));
            match outcome {
                Ok(()) => {
                    metrics.synced.add(1);
                    (desk.around.reports)(SyncReport::Synced { attempt: id, manifest: attempt.to_string() });
                }
                Err(why) => {
                    metrics.failed.add(1);
                    desk.ended(id);
                    desk.nudge();
                    (desk.around.reports)(SyncReport::Failed { attempt: id, why });
                }
            }
        });
        let job = Job { attempt, base, name: job.name, progress, trouble, go_on: Some(go_on), task };
        running.insert(id, job);
        self.around.metrics.backend.running.set(running.len() as u64);
    }

    /// The attempt is over before it is committed.
    pub(super) fn cancel(&self, id: AttemptId) {
        self.jobs.cancel(id);
        self.ended(id);
        self.nudge();
    }

    fn ended(&self, id: AttemptId) {
        let mut running = self.jobs.running.lock();
        running.remove(&id);
        self.around.metrics.backend.running.set(running.len() as u64);
    }

    async fn carry_out(
        &self,
        remote: &Remote,
        id: AttemptId,
        job: &UploadJob,
        progress: &UploadProgress,
        patience: &Patience,
        may_go_on: oneshot::Receiver<()>,
    ) -> Result<(), String> {
        // A store takes puts into a bucket that is not there, some do: asked first, for what there are fewest of.
        remote.list_kind("tombstones", patience).await.map_err(|error| error.to_string())?;
        let manifest =
            upload(remote, &self.access, job, progress, patience).await.map_err(|error| error.to_string())?;
        let name = job.attempt.to_string();
        (self.around.reports)(SyncReport::ManifestAboutToBePut { attempt: id, manifest: name });
        may_go_on.await.map_err(|_| "it was called off".to_owned())?;
        publish(remote, job.attempt, &manifest, patience).await.map_err(|error| error.to_string())
    }

    /// Never ends.
    async fn tell_progress(&self, id: AttemptId, progress: &UploadProgress) -> Result<(), String> {
        loop {
            tokio::time::sleep(REPORT_EVERY).await;
            let (done, total) = (progress.walked.load(Ordering::Relaxed), progress.size.load(Ordering::Relaxed));
            (self.around.reports)(SyncReport::Progress { attempt: id, done, total });
        }
    }

    /// Never ends.
    async fn tell_trouble(&self, id: AttemptId, trouble: &Trouble) -> Result<(), String> {
        let mut told = None;
        loop {
            tokio::time::sleep(TROUBLE_EVERY).await;
            let why = trouble.last();
            if why != told {
                told.clone_from(&why);
                (self.around.reports)(SyncReport::HeldUp { attempt: id, why });
            }
        }
    }

    /// The snapshot exists: the marker says so to other pools.
    pub(super) fn committed(self: &Arc<Self>, noted: NotedAttempt) {
        let desk = Arc::clone(self);
        tokio::spawn(async move {
            let Ok(attempt) = noted.manifest.parse::<Attempt>() else {
                return tracing::error!(
                    manifest = noted.manifest,
                    "the catalog has a manifest of a name that we did not give"
                );
            };
            if let Ok((remote, _)) = desk.remote() {
                let patience = Patience::endless(Arc::clone(&desk.trouble));
                match mark(&remote, attempt, (desk.around.unix_s)(), &patience).await {
                    Ok(()) => (desk.around.reports)(SyncReport::Settled { attempt: noted.attempt }),
                    // The collector tries again with each pass.
                    Err(error) => tracing::warn!(%attempt, %error, "a snapshot that exists could not be marked so"),
                }
            }
            desk.ended(noted.attempt);
        });
    }
}

fn upload_job(job: &SyncJob, attempt: Attempt) -> UploadJob {
    let (volume, snapshot) = split_name(&job.name);
    UploadJob {
        attempt,
        snapshot: job.snapshot,
        of: Subject {
            volume: job.origin,
            volume_name: volume.to_owned(),
            volume_uuid: job.origin_uuid,
            snapshot_name: snapshot.unwrap_or_default().to_owned(),
            snapshot_uuid: job.uuid,
            size: job.size,
            lba_bytes: job.lba_bytes,
            epoch: job.epoch,
            created_unix_s: job.created_unix_s,
        },
        base: job.base.as_ref().and_then(|base| Some((base.manifest.parse().ok()?, base.epoch))),
    }
}
