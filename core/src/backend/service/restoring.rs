//! Volumes that come back from a backend.
//!
//! A volume that is not whole yet must not be taken for one: it is filled under another name, attachable by nobody, and gets its own
//! name, durably, when everything is in it and durable. A restore that was cut short leaves a volume of that other name; the next
//! restore of the same name removes it and begins again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::Desk;
use super::survey::told;
use crate::backend::api::{BackendRestore, RestoreInfo};
use crate::backend::manifest::Reference;
use crate::backend::reader::Reader;
use crate::backend::remote::{Patience, Remote, Trouble};
use crate::backend::restore::{RestoreError, RestoreProgress, hold, release, restore};
use crate::control::{
    ControlAnswer, ControlError, ControlErrorKind, ControlRequest, VolumeCreate, VolumeInfo, check_host_nqn,
};
use crate::ids::VolumeId;
use crate::snapshot::name::split_name;
use crate::volume::check_name;

/// Before the name of a volume that is not whole yet.
const UNFINISHED: &str = "restoring/";
/// The only host that may attach it: none has this name.
const NOBODY: &str = "nqn.2026-11.io.ringway:restoring";

struct Restore {
    name: String,
    progress: Arc<RestoreProgress>,
    trouble: Arc<Trouble>,
}

/// Those that are under way.
#[derive(Default)]
pub(super) struct Restores(Mutex<Vec<Restore>>);

impl Restores {
    pub(super) fn info(&self) -> Vec<RestoreInfo> {
        let of = |restore: &Restore| RestoreInfo {
            name: restore.name.clone(),
            written: restore.progress.written.load(Ordering::Relaxed),
            total: restore.progress.total.load(Ordering::Relaxed),
            trouble: restore.trouble.last(),
        };
        self.0.lock().iter().map(of).collect()
    }

    fn begin(&self, restore: Restore) -> Result<(), ControlError> {
        let mut all = self.0.lock();
        if all.iter().any(|other| other.name == restore.name) {
            return Err(ControlError::new(
                ControlErrorKind::Busy,
                format!("volume {:?} is being restored already", restore.name),
            ));
        }
        all.push(restore);
        Ok(())
    }

    fn end(&self, name: &str) {
        self.0.lock().retain(|restore| restore.name != name);
    }
}

impl Desk {
    /// Makes a volume of a stored snapshot.
    pub(super) async fn restore(&self, wanted: &BackendRestore) -> Result<VolumeInfo, ControlError> {
        let (remote, patience) = self.remote_at(wanted.from.as_ref())?;
        let patience = Patience { trouble: Arc::default(), ..patience };
        let stored = self.find(&remote, &wanted.snapshot, wanted.unconfirmed, &patience).await?;
        let name = wanted.name.clone().unwrap_or_else(|| split_name(&stored.name).0.to_owned());
        check_name(&name).map_err(|bad| ControlError::invalid(bad.to_string()))?;
        wanted.allowed_hosts.iter().try_for_each(|nqn| check_host_nqn(nqn))?;
        if self.access.ask(ControlRequest::VolumeShow { name: name.clone() }).await.is_ok() {
            return Err(ControlError::volume_exists(&name));
        }
        if wanted.lazy {
            return self.clone_lazily(wanted, &stored, &name, &patience).await;
        }
        let progress = Arc::new(RestoreProgress::default());
        let trouble = Arc::clone(&patience.trouble);
        self.restores.begin(Restore { name: name.clone(), progress: Arc::clone(&progress), trouble })?;
        let remote = remote.of_pool(stored.pool);
        let unix_s = (self.around.unix_s)();
        let reference = Reference { holder: self.around.pool, volume_name: name.clone(), unix_s };
        let outcome = match hold(&remote, stored.manifest, &reference, &patience).await {
            Ok(()) => {
                let outcome = self.fill(&remote, &stored, &name, wanted, &progress, &patience).await;
                if let Err(error) = release(&remote, stored.manifest, self.around.pool, &patience).await {
                    tracing::warn!(%error, "the reference to a snapshot that was restored stays; its owner keeps the snapshot's objects");
                }
                outcome
            }
            Err(error) => Err(failed(&error)),
        };
        self.restores.end(&name);
        outcome
    }

    async fn fill(
        &self,
        remote: &Remote,
        stored: &crate::backend::api::StoredSnapshot,
        name: &str,
        wanted: &BackendRestore,
        progress: &RestoreProgress,
        patience: &Patience,
    ) -> Result<VolumeInfo, ControlError> {
        let reader = Reader::open(remote.clone(), stored.manifest, patience).await.map_err(|error| told(&error))?;
        let unfinished = unfinished_name(name);
        // Left by a restore that was cut short.
        let left = ControlRequest::VolumeRemove { name: unfinished.clone(), force: true };
        match self.access.ask(left).await {
            Ok(_) => tracing::info!(name, "a restore that was cut short begins again"),
            Err(error) if error.kind == ControlErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let create = VolumeCreate {
            name: unfinished.clone(),
            size: reader.manifest.of.size,
            lba_bytes: reader.manifest.of.lba_bytes,
            shards: None,
            exclusive: wanted.exclusive,
            allowed_hosts: vec![NOBODY.to_owned()],
        };
        let made = self.volume(ControlRequest::VolumeCreate(create)).await?;
        let outcome = self.finish(&reader, made.id, (&unfinished, name), wanted, progress, patience).await;
        if outcome.is_err() {
            let remove = ControlRequest::VolumeRemove { name: unfinished, force: true };
            if let Err(error) = self.access.ask(remove).await {
                tracing::warn!(%error, "the volume of a restore that failed is still there");
            }
        }
        outcome
    }

    async fn finish(
        &self,
        reader: &Reader,
        volume: VolumeId,
        (unfinished, name): (&str, &str),
        wanted: &BackendRestore,
        progress: &RestoreProgress,
        patience: &Patience,
    ) -> Result<VolumeInfo, ControlError> {
        restore(reader, &self.access, volume, progress, patience).await.map_err(|error| failed(&error))?;
        self.around.metrics.backend.restored_bytes.add(progress.written.load(Ordering::Relaxed));
        // Whole and durable: from its name on it is a volume like any other.
        self.volume(ControlRequest::VolumeRename { name: unfinished.to_owned(), to: name.to_owned() }).await?;
        let hosts = wanted.allowed_hosts.clone();
        self.volume(ControlRequest::VolumeSetHosts { name: name.to_owned(), hosts }).await
    }

    async fn volume(&self, request: ControlRequest) -> Result<VolumeInfo, ControlError> {
        match self.access.ask(request).await? {
            ControlAnswer::Volume(volume) => Ok(volume),
            other => Err(ControlError::new(ControlErrorKind::Internal, format!("the owner answered {other:?}"))),
        }
    }
}

/// A name of its own for every name, and never too long.
fn unfinished_name(name: &str) -> String {
    let whole = format!("{UNFINISHED}{name}");
    if check_name(&whole).is_ok() { whole } else { format!("{UNFINISHED}{:08x}", crc32c::crc32c(name.as_bytes())) }
}

pub(super) fn failed(error: &RestoreError) -> ControlError {
    match error {
        RestoreError::Remote(error) => told(error),
        RestoreError::Going => ControlError::new(ControlErrorKind::NotFound, error.to_string()),
        RestoreError::Sink(_) => ControlError::new(ControlErrorKind::Internal, error.to_string()),
    }
}
