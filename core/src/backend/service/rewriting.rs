//! Worn packs are rewritten after a collection has named them; `backend/rewrite.rs` says how, here is who is asked meanwhile.
//!
//! It runs in the task that collects, so that no collection sees what is half done. A failure costs what was put so far, which the next
//! collection deletes.

use std::collections::BTreeSet;

use super::Desk;
use crate::backend::api::{BackendAnswer, BackendRequest, Renewal};
use crate::backend::collect::{Collector, mark};
use crate::backend::names::Attempt;
use crate::backend::pack::PackRef;
use crate::backend::remote::{Patience, Remote};
use crate::backend::rewrite::Rewriting;
use crate::backend::sync::publish;
use crate::backend::url::BackendUrl;
use crate::control::{ControlAnswer, ControlError, ControlErrorKind, ControlRequest};
use crate::ids::AttemptId;
use crate::snapshot::sync::SyncReport;

impl Desk {
    /// Rewrites what a pass has named, of manifests that are `live`. Returns the bytes of blocks that were copied.
    pub(super) async fn rewrite(
        &self,
        collector: &Collector,
        live: &BTreeSet<Attempt>,
        worn: &BTreeSet<PackRef>,
        patience: &Patience,
    ) -> Result<u64, ControlError> {
        let (remote, settings) = self.remote()?;
        let plans = collector.plan(live, worn, patience).await.map_err(|error| failed(&error))?;
        let mut bytes = 0;
        for plan in plans {
            self.rewrite_one(&remote, &settings.url, &plan, patience).await?;
            bytes += plan.bytes();
            self.around.metrics.backend.rewritten_bytes.add(plan.bytes());
        }
        if bytes > 0 {
            tracing::info!(
                bytes,
                "what is needed of worn packs on the backend was copied; they go after the grace time"
            );
            self.nudge();
        }
        Ok(bytes)
    }

    async fn rewrite_one(
        &self,
        remote: &Remote,
        at: &BackendUrl,
        plan: &Rewriting,
        patience: &Patience,
    ) -> Result<(), ControlError> {
        let count = plan.manifests.len() as u32;
        let ids = match self.access.ask(ControlRequest::Backend(BackendRequest::Attempts { count })).await? {
            ControlAnswer::Backend(BackendAnswer::Attempts(ids)) => ids,
            other => {
                return Err(ControlError::new(ControlErrorKind::Internal, format!("the owner answered {other:?}")));
            }
        };
        let nonce = super::jobs::nonce();
        let names: Vec<Attempt> = ids.iter().map(|id| Attempt { id: id.0, nonce }).collect();
        let manifests = plan.copy(remote, &names, patience).await.map_err(|error| failed(&error))?;
        let olds = plan.manifests.iter().map(|(old, _)| *old);
        let renewals: Vec<_> = olds.zip(names).map(|(old, new)| Renewal { old, new }).collect();
        self.owner(BackendRequest::Note(renewals.clone())).await?;
        for (renewal, manifest) in renewals.iter().zip(&manifests) {
            publish(remote, renewal.new, manifest, patience).await.map_err(|error| failed(&error))?;
        }
        self.owner(BackendRequest::Replace { at: at.clone(), renewals: renewals.clone() }).await?;
        // Of snapshots that were removed meanwhile the new manifests are collected.
        let kept = self.kept().await?;
        for Renewal { new, .. } in renewals.into_iter().filter(|renewal| kept.live.contains(&renewal.new)) {
            match mark(remote, new, (self.around.unix_s)(), patience).await {
                Ok(()) => (self.around.reports)(SyncReport::Settled { attempt: AttemptId(new.id) }),
                // The collector tries again with each pass.
                Err(error) => tracing::warn!(%new, %error, "a manifest that was put anew could not be marked"),
            }
        }
        Ok(())
    }
}

fn failed(error: &impl std::fmt::Display) -> ControlError {
    ControlError::new(ControlErrorKind::Unavailable, error.to_string())
}
