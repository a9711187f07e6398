//! What the catalog knows of the backend: which one it is, and what of it is needed.

use std::collections::BTreeSet;

use super::Owner;
use super::calls::Planned;
use crate::backend::api::{BackendAnswer, BackendRequest, KeptManifests};
use crate::catalog::CatalogRecord;
use crate::control::{ControlAnswer, ControlError, ControlErrorKind};

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

    pub(super) fn plan_backend(&self, request: &BackendRequest) -> Result<Planned, ControlError> {
        let BackendRequest::Record { settings, force } = request else {
            return Err(ControlError::new(
                ControlErrorKind::Unavailable,
                "this target was started without its thread for backends; `ringway serve` has one",
            ));
        };
        let state = self.store.state();
        let place = |settings: Option<&crate::backend::settings::BackendSettings>| settings.map(|s| s.url.clone());
        let moves = place(state.backend()) != place(settings.as_ref());
        let KeptManifests { live, noted, .. } = match self.kept_manifests() {
            ControlAnswer::Backend(BackendAnswer::Kept(kept)) => kept,
            other => unreachable!("{other:?} is not what is kept"),
        };
        if let (true, false, Some(present)) = (moves, *force, state.backend())
            && live.len() + noted.len() > 0
        {
            return Err(ControlError::new(
                ControlErrorKind::Busy,
                format!(
                    "{} snapshots are stored at {}; remove them first, or use force if their objects are at the new place \
                     or may be given up",
                    live.len(),
                    present.url
                ),
            ));
        }
        let same = state.backend() == settings.as_ref();
        let change = (!same).then(|| CatalogRecord::BackendSet(settings.clone()));
        Ok((change.into_iter().collect(), None))
    }
}
