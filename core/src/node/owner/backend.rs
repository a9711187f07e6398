//! What the catalog knows of the backend: which one it is, and what of it is needed.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::Owner;
use super::calls::Planned;
use crate::backend::api::{BackendAnswer, BackendRequest, KeptManifests, Renewal};
use crate::backend::settings::BackendSettings;
use crate::backend::url::BackendUrl;
use crate::catalog::{CatalogRecord, CloneRecord};
use crate::control::{ControlAnswer, ControlError, ControlErrorKind, VolumeCreate};
use crate::ids::AttemptId;
use crate::snapshot::sync::NotedAttempt;
use crate::volume::{Parent, VolumeRecord};

impl Owner {
    /// What must be kept there.
    pub(super) fn kept_manifests(&self) -> ControlAnswer {
        let state = self.store.state();
        let snapshots = state.volumes().filter_map(|entry| entry.snapshot.as_ref()?.manifest.clone());
        let bases = state.volumes().filter_map(|entry| Some(state.base_of(entry.record.id)?.manifest.clone()));
        ControlAnswer::Backend(BackendAnswer::Kept(KeptManifests {
            live: snapshots.chain(bases).collect::<BTreeSet<_>>().into_iter().collect(),
            noted: state.attempts().map(|noted| noted.manifest.clone()).collect(),
            generation: self.pool.generation,
        }))
    }

    /// What clones here look through to.
    pub(super) fn held_sources(&self) -> ControlAnswer {
        ControlAnswer::Backend(BackendAnswer::Held(self.store.state().held_sources()))
    }

    /// Something is held that no clone needs any more: who holds it is told, with every change until it is released.
    pub(super) fn follow_clones(&mut self) {
        if self.store.state().held_sources().iter().any(|held| held.volume.is_none()) {
            self.snapshots.let_go();
        }
    }

    pub(super) fn plan_backend(&mut self, request: &BackendRequest) -> Result<Planned, ControlError> {
        match request {
            BackendRequest::Record { settings, force } => self.plan_settings(settings.as_ref(), *force),
            BackendRequest::Hold { holder, source } => {
                let record = CatalogRecord::SourceHeld(*holder, source.clone());
                self.check_room(&record)?;
                Ok((vec![record], None))
            }
            BackendRequest::Released { holder } => Ok((vec![CatalogRecord::SourceReleased(*holder)], None)),
            BackendRequest::Note(renewals) => self.plan_renewals(renewals),
            BackendRequest::Replace { at, renewals } => self.plan_replacements(at, renewals),
            BackendRequest::Clone { holder, create } => self.plan_lazy_clone(*holder, create),
            _ => Err(ControlError::new(
                ControlErrorKind::Unavailable,
                "this target was started without its thread for backends; `ringway serve` has one",
            )),
        }
    }

    /// Numbers for attempts of our own thread.
    pub(super) fn new_attempts(&mut self, count: u32) -> ControlAnswer {
        let attempts = (0..count).map(|_| self.snapshots.new_attempt()).collect();
        ControlAnswer::Backend(BackendAnswer::Attempts(attempts))
    }

    /// New manifests may be there: on record before they are (C14).
    fn plan_renewals(&self, renewals: &[Renewal]) -> Result<Planned, ControlError> {
        let noted = |renewal: &Renewal| {
            let held = self.store.state().holder_of(&renewal.old.to_string());
            let (origin, snapshot, epoch) = held.ok_or_else(|| {
                ControlError::new(
                    ControlErrorKind::NotFound,
                    format!("no snapshot has manifest {} any more", renewal.old),
                )
            })?;
            let (attempt, manifest) = (AttemptId(renewal.new.id), renewal.new.to_string());
            let record = CatalogRecord::AttemptNoted(NotedAttempt { attempt, origin, snapshot, epoch, manifest });
            self.check_room(&record)?;
            Ok(record)
        };
        Ok((renewals.iter().map(noted).collect::<Result<_, ControlError>>()?, None))
    }

    /// They take the place of the old ones.
    fn plan_replacements(&self, at: &BackendUrl, renewals: &[Renewal]) -> Result<Planned, ControlError> {
        let state = self.store.state();
        if state.backend().map(|settings| &settings.url) != Some(at) {
            let why = format!("the pool's backend is not {at} any more");
            return Err(ControlError::new(ControlErrorKind::Busy, why));
        }
        let replaced = renewals.iter().filter_map(|Renewal { old, new }| {
            let (old, new) = (old.to_string(), new.to_string());
            let (origin, ..) = state.holder_of(&old)?;
            Some(CatalogRecord::ManifestReplaced(origin, old, new))
        });
        Ok((replaced.collect(), None))
    }

    /// A volume like any other, over what is held in its name.
    fn plan_lazy_clone(&mut self, holder: Uuid, create: &VolumeCreate) -> Result<Planned, ControlError> {
        let (records, id) = self.plan_create(create)?;
        let [CatalogRecord::VolumeCreated(volume)] = &records[..] else { unreachable!("a volume is created") };
        let volume = VolumeRecord { uuid: holder, ..volume.clone() };
        let record = CatalogRecord::CloneCreated(CloneRecord { volume, parent: Parent::on_backend(create.size) });
        self.check_room(&record)?;
        Ok((vec![record], id))
    }

    fn check_room(&self, record: &CatalogRecord) -> Result<(), ControlError> {
        if self.store.has_room(record) {
            return Ok(());
        }
        let why = "the pool's catalog has no room for another volume; remove one first";
        Err(ControlError::new(ControlErrorKind::NoSpace, why))
    }

    fn plan_settings(&self, settings: Option<&BackendSettings>, force: bool) -> Result<Planned, ControlError> {
        let state = self.store.state();
        let place = |settings: Option<&BackendSettings>| settings.map(|s| s.url.clone());
        let moves = place(state.backend()) != place(settings);
        let KeptManifests { live, noted, .. } = match self.kept_manifests() {
            ControlAnswer::Backend(BackendAnswer::Kept(kept)) => kept,
            other => unreachable!("{other:?} is not what is kept"),
        };
        let clones = state.held_sources().into_iter().filter(|held| held.source.from.is_none()).count();
        if let (true, false, Some(present)) = (moves, force, state.backend())
            && live.len() + noted.len() + clones > 0
        {
            let needed = if clones == 0 { String::new() } else { format!(", and {clones} clones need what is there") };
            return Err(ControlError::new(
                ControlErrorKind::Busy,
                format!(
                    "{} snapshots are stored at {}{needed}; remove them first, or use force if their objects are at the new \
                     place or may be given up",
                    live.len(),
                    present.url
                ),
            ));
        }
        let same = state.backend() == settings;
        let change = (!same).then(|| CatalogRecord::BackendSet(settings.cloned()));
        Ok((change.into_iter().collect(), None))
    }
}
