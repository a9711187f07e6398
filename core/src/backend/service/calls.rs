//! Calls about the backend.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Desk;
use super::survey::told;
use crate::backend::api::{BackendAnswer, BackendRequest, BackendSet};
use crate::backend::settings::BackendSettings;
use crate::control::{ControlAnswer, ControlError, ControlErrorKind, ControlRequest};

impl Desk {
    pub(super) async fn call(self: &Arc<Self>, request: BackendRequest) -> Result<ControlAnswer, ControlError> {
        let answer = match request {
            BackendRequest::Show => BackendAnswer::Info(Box::new(self.info())),
            BackendRequest::Set(set) => {
                self.set(set).await?;
                BackendAnswer::Info(Box::new(self.info()))
            }
            BackendRequest::List(list) => {
                let (remote, patience) = self.remote_at(list.from.as_ref())?;
                BackendAnswer::Stored(self.stored(&remote, &patience).await?)
            }
            BackendRequest::Check(check) => BackendAnswer::Checked(self.check(&check).await?),
            BackendRequest::Restore(restore) => return Ok(ControlAnswer::Volume(self.restore(&restore).await?)),
            BackendRequest::Collect => BackendAnswer::Collected(self.collect_now().await?),
            BackendRequest::Record { .. }
            | BackendRequest::Kept
            | BackendRequest::Held
            | BackendRequest::Attempts { .. }
            | BackendRequest::Note(_)
            | BackendRequest::Replace { .. }
            | BackendRequest::Hold { .. }
            | BackendRequest::Released { .. }
            | BackendRequest::Clone { .. } => {
                unreachable!("the catalog's owner is asked that")
            }
        };
        Ok(ControlAnswer::Backend(answer))
    }

    /// Another backend. It is looked at before it is recorded: what nobody can reach is not a backend.
    async fn set(&self, set: BackendSet) -> Result<(), ControlError> {
        let remote = match &set.settings {
            None => None,
            Some(settings) => {
                settings.check().map_err(ControlError::invalid)?;
                Some(self.look_at(settings).await?)
            }
        };
        let record = BackendRequest::Record { settings: set.settings.clone(), force: set.force };
        self.access.ask(ControlRequest::Backend(record)).await?;
        {
            let mut open = self.open.lock();
            let same_place = open.settings.as_ref().map(|s| &s.url) == set.settings.as_ref().map(|s| &s.url);
            match (&open.remote, &set.settings) {
                // Jobs under way go on at the new speed.
                (Some(present), Some(settings)) if same_place => present.speed.set(settings.speed),
                _ => open.remote = remote,
            }
            self.set.store(set.settings.is_some(), Ordering::Relaxed);
            open.settings = set.settings;
        }
        self.clones.close_all();
        self.clones.let_go();
        self.nudge();
        Ok(())
    }

    async fn look_at(&self, settings: &BackendSettings) -> Result<crate::backend::remote::Remote, ControlError> {
        let remote = self.open_remote(settings)?;
        let patience = crate::backend::remote::Patience::of(std::time::Duration::from_secs(10));
        match remote.list_kind("markers", &patience).await {
            Ok(_) => Ok(remote),
            Err(error) => {
                let error = told(&error);
                let kind =
                    if error.kind == ControlErrorKind::Corrupt { ControlErrorKind::Unavailable } else { error.kind };
                Err(ControlError::new(kind, format!("the backend {} cannot be used: {}", settings.url, error.message)))
            }
        }
    }
}
