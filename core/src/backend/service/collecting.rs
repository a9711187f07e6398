//! When collections take place: some time after something was removed or given up, again while something waits, and now and then.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::Desk;
use crate::backend::api::{BackendAnswer, BackendRequest, CollectInfo, KeptManifests};
use crate::backend::collect::{CollectError, Collector, Kept, Pass};
use crate::backend::names::Attempt;
use crate::backend::settings::BackendSettings;
use crate::backend::url::BackendUrl;
use crate::control::{ControlAnswer, ControlError, ControlErrorKind, ControlRequest};
use crate::ids::AttemptId;
use crate::snapshot::sync::SyncReport;

/// A collection follows what made it worth while by so much: removals come in groups.
const AFTER: Duration = Duration::from_secs(2);
/// Without any reason: what landed late is found at the latest then.
const ANYWAY: Duration = Duration::from_secs(3600);

impl Desk {
    /// There may be something to collect.
    pub(super) fn nudge(&self) {
        self.collect.send_modify(|wanted| *wanted += 1);
    }

    /// One collection after the other, as long as the thread lives.
    pub(super) async fn collect_for_ever(self: Arc<Self>, mut wanted: watch::Receiver<u64>) {
        let mut next = Instant::now() + AFTER;
        let mut collector: Option<(BackendUrl, u32, Collector)> = None;
        loop {
            tokio::select! {
                () = sleep_until(next) => {}
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    next = next.min(Instant::now() + AFTER);
                    continue;
                }
            }
            next = Instant::now() + ANYWAY;
            let Ok((remote, settings)) = self.remote() else { continue };
            let same =
                |(url, grace, _): &(BackendUrl, u32, Collector)| *url == settings.url && *grace == settings.grace_s;
            if !collector.as_ref().is_some_and(same) {
                let fresh = Collector::new(remote, settings.grace());
                collector = Some((settings.url.clone(), settings.grace_s, fresh));
            }
            let (_, _, collector) = collector.as_mut().expect("there is one now");
            if self.collect_once(collector, &settings).await {
                next = Instant::now() + settings.grace() + AFTER;
            }
        }
    }

    /// Whether there is more to do after the grace time.
    async fn collect_once(&self, collector: &mut Collector, settings: &BackendSettings) -> bool {
        let (given_up, live) = (Mutex::new(BTreeSet::new()), Mutex::new(BTreeSet::new()));
        let unix_s = (self.around.unix_s)();
        let patience = self.patience(settings);
        let ask = || async {
            let kept = self.kept().await.map_err(|error| error.message)?;
            given_up.lock().clone_from(&kept.given_up);
            live.lock().clone_from(&kept.live);
            Ok(kept)
        };
        let (pass, failed) = match collector.pass(unix_s, &patience, ask).await {
            Ok(pass) => (pass, None),
            Err(error) => {
                if !matches!(error, CollectError::Remote(_)) {
                    tracing::error!(%error, "the backend is not collected");
                }
                (Pass::default(), Some(error.to_string()))
            }
        };
        for gone in &pass.gone {
            (self.around.reports)(SyncReport::Settled { attempt: AttemptId(gone.id) });
        }
        let metrics = &self.around.metrics.backend;
        metrics.deleted_objects.add(pass.deleted);
        metrics.kept_bytes.set(pass.kept_bytes);
        metrics.collect_failed.set(u64::from(failed.is_some()));
        let live = live.into_inner();
        let rewritten_bytes = self.rewrite(collector, &live, &pass.worn, &patience).await.unwrap_or_else(|error| {
            tracing::warn!(
                error = error.message,
                "packs of which little is needed could not be rewritten; tried again"
            );
            0
        });
        let more = pass.waiting > 0 || given_up.lock().len() > pass.gone.len() || failed.is_some();
        *self.collected.lock() = Some(CollectInfo {
            unix_s,
            deleted: pass.deleted,
            deleted_bytes: pass.deleted_bytes,
            kept_bytes: pass.kept_bytes,
            waiting: pass.waiting,
            rewritten_bytes,
            failed,
        });
        more
    }

    /// A collection for whoever asks for one. Tombstones that it puts stand for the grace time all the same.
    pub(super) async fn collect_now(&self) -> Result<CollectInfo, ControlError> {
        self.remote()?;
        let before = self.collected.lock().clone();
        self.nudge();
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = self.collected.lock().clone();
            if let Some(info) = now.filter(|info| Some(info) != before.as_ref()) {
                return Ok(info);
            }
        }
    }

    /// What the catalog and the jobs need. Jobs first: one that commits in between is in both.
    pub(super) async fn kept(&self) -> Result<Kept, ControlError> {
        let (running, bases) = self.jobs.attempts();
        let answer = self.access.ask(ControlRequest::Backend(BackendRequest::Kept)).await?;
        let ControlAnswer::Backend(BackendAnswer::Kept(KeptManifests { live, noted, generation })) = answer else {
            return Err(ControlError::new(ControlErrorKind::Internal, "the catalog's owner answered something else"));
        };
        let parse =
            |names: Vec<String>| -> BTreeSet<Attempt> { names.iter().filter_map(|name| name.parse().ok()).collect() };
        let mut live = parse(live);
        live.extend(bases);
        let noted = parse(noted);
        let given_up = noted.iter().filter(|by| !running.contains(by) && !live.contains(by)).copied().collect();
        Ok(Kept { live, running, given_up, highest: u64::from(generation) << 32 | u64::from(u32::MAX) })
    }
}
