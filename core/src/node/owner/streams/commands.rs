//! What callers ask about streams, and what the catalog hears of them.

use super::{Outcome, Owner, Purpose, Run, Waits, Work};
use crate::catalog::{CatalogRecord, StreamRecord, VolumeEntry};
use crate::control::{ControlAnswer, ControlError, ControlErrorKind, Reply};
use crate::event::{Event, EventKind};
use crate::ids::{JobId, VolumeId};
use crate::node::owner::{Plan, Task, Then, catalog_failed};
use crate::stream::{OnError, StreamInfo, StreamRequest, StreamStart, StreamStatus, StreamStepped};

impl Owner {
    /// A call about streams: answered at once, or put in line for the catalog.
    pub(in crate::node::owner) fn on_stream(&mut self, request: StreamRequest, reply: Reply) {
        if let Err(error) = request.check() {
            return reply(Err(error));
        }
        let work = match request {
            StreamRequest::List => return reply(Ok(ControlAnswer::Streams(self.all_streams()))),
            StreamRequest::Info { volume } => {
                return reply(self.job_named(&volume).map(|(id, _)| ControlAnswer::Stream(self.stream_info(id))));
            }
            StreamRequest::Step { volume, cursor } => return self.begin_step(&volume, cursor, reply),
            StreamRequest::Start(start) => Work::Start(start, reply),
            StreamRequest::SetSpeed { volume, speed } => Work::SetSpeed(volume, speed, reply),
            StreamRequest::Resume { volume } => Work::Resume(volume, reply),
            StreamRequest::Abort { volume } => Work::Abort(volume, reply),
        };
        self.tasks.push_back(Task::Stream(work));
    }

    /// The catalog's writer is free for this.
    pub(in crate::node::owner) fn plan_stream(&mut self, work: Work) -> Plan {
        let (planned, reply) = match work {
            Work::Start(start, reply) => (self.plan_start(&start), reply),
            Work::SetSpeed(volume, speed, reply) => (self.plan_speed(&volume, speed), reply),
            Work::Resume(volume, reply) => (self.plan_resume(&volume), reply),
            Work::Abort(volume, reply) => return self.plan_abort(&volume, reply),
            Work::Finish(volume, number) => return self.plan_finish(volume, number),
            Work::Broken(volume, number, error) => return self.plan_broken(volume, number, &error),
            Work::Keep(volume, number) => return self.plan_keep(volume, number),
        };
        match planned {
            Ok((volume, records)) => Plan::Change(records, Then::Stream(Outcome::Show(volume, reply))),
            Err(error) => {
                reply(Err(error));
                Plan::Nothing
            }
        }
    }

    /// The catalog takes no more changes.
    pub(in crate::node::owner) fn refuse_stream_work(&mut self, work: Work, why: &str) {
        match work {
            Work::Start(_, reply) | Work::SetSpeed(_, _, reply) | Work::Resume(_, reply) | Work::Abort(_, reply) => {
                reply(Err(catalog_failed(why)));
            }
            Work::Finish(volume, number) | Work::Broken(volume, number, _) | Work::Keep(volume, number) => {
                self.stream_unrecorded(volume, number, why);
            }
        }
    }

    /// It is durable.
    pub(in crate::node::owner) fn act_stream(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Show(volume, reply) => reply(Ok(ControlAnswer::Stream(self.stream_info(volume)))),
            Outcome::Ended(reply) => reply(Ok(ControlAnswer::Done)),
            Outcome::Finished(volume) => self.stream_finished(volume),
            Outcome::Noted(volume, number) => self.stream_noted(volume, number),
        }
    }

    /// It could not be written, and is void.
    pub(in crate::node::owner) fn refuse_stream(&mut self, outcome: Outcome, why: &str) {
        match outcome {
            Outcome::Show(_, reply) | Outcome::Ended(reply) => reply(Err(catalog_failed(why))),
            Outcome::Finished(volume) => {
                let number = self.streams.runs.get(&volume).map(|run| run.number);
                number.into_iter().for_each(|number| self.stream_unrecorded(volume, number, why));
            }
            Outcome::Noted(volume, number) => self.stream_unrecorded(volume, number, why),
        }
    }

    /// Records that end the stream of a volume which is about to go.
    pub(in crate::node::owner) fn stream_goes(&self, volume: VolumeId) -> Vec<CatalogRecord> {
        let Some(record) = self.store.state().stream(volume) else { return Vec::new() };
        let event = self.stream_event(EventKind::StreamCancelled, volume, Some(record.job)).with_bytes(record.copied);
        vec![CatalogRecord::StreamEnded(volume), CatalogRecord::EventTold(event)]
    }

    /// That nobody streams the volume, which somebody wants to do something else with.
    pub(in crate::node::owner) fn check_not_streamed(&self, name: &str, id: VolumeId) -> Result<(), ControlError> {
        if !self.streams.runs.contains_key(&id) && self.store.state().stream(id).is_none() {
            return Ok(());
        }
        Err(ControlError::new(
            ControlErrorKind::Busy,
            format!(
                "volume {name:?} is being streamed: `ringway stream info {name}` shows how far it is; wait for the end of it, or end it: \
                 `ringway stream abort {name}`"
            ),
        ))
    }

    // ---- what speaks for and against it

    /// The volume of a name and its job.
    fn job_named(&self, name: &str) -> Result<(VolumeId, &StreamRecord), ControlError> {
        let id = self.named_volume(name)?.record.id;
        let job = self.store.state().stream(id).ok_or_else(|| {
            ControlError::new(
                ControlErrorKind::NotFound,
                format!(
                    "volume {name:?} is not being streamed; `ringway stream list` shows what is, and `ringway events --since 0 \
                     --once` how streams have ended"
                ),
            )
        })?;
        Ok((id, job))
    }

    /// A volume that lies over something, and nobody streams.
    fn streamable(&self, name: &str) -> Result<&VolumeEntry, ControlError> {
        let entry = self.named_volume(name)?;
        self.check_not_streamed(name, entry.record.id)?;
        let state = self.store.state();
        if let Some(why) = crate::node::owner::publish::fault_of(state, &self.dead, &entry.record) {
            let why = format!("volume {name:?} is not served, so it cannot be streamed: {why}");
            return Err(ControlError::new(ControlErrorKind::Corrupt, why));
        }
        Ok(entry)
    }

    fn plan_start(&mut self, start: &StreamStart) -> Result<(VolumeId, Vec<CatalogRecord>), ControlError> {
        let name = &start.volume;
        let entry = self.streamable(name)?;
        if entry.record.parent.is_none() {
            return Err(ControlError::invalid(format!(
                "volume {name:?} lies over no snapshot: it is no clone, or is independent already"
            )));
        }
        let (id, parent) = (entry.record.id, self.parent_name(entry).unwrap_or_default());
        let job = JobId(self.store.state().last_event() + 1);
        let record = StreamRecord {
            volume: id,
            job,
            speed: start.speed.filter(|&speed| speed > 0),
            on_error: start.on_error,
            cursor: 0,
            copied: 0,
            started_unix_s: (self.unix_s)(),
            paused: None,
        };
        let kept = CatalogRecord::StreamKept(record);
        if !self.store.has_room(&kept) {
            return Err(ControlError::new(
                ControlErrorKind::NoSpace,
                "the pool's catalog has no room for another stream; remove volumes or snapshots first",
            ));
        }
        // The first event of this change: its number is the job's.
        let event = self.stream_event(EventKind::StreamStarted, id, Some(job)).with_text(parent);
        Ok((id, vec![kept, CatalogRecord::EventTold(event)]))
    }

    /// A record of the job as it is now, changed by `change`.
    fn kept_with(&self, id: VolumeId, change: impl FnOnce(&mut StreamRecord)) -> CatalogRecord {
        let mut record = self.store.state().stream(id).expect("looked up").clone();
        if let Some(run) = self.streams.runs.get(&id) {
            (record.cursor, record.copied) = (run.farthest, run.copied);
        }
        change(&mut record);
        CatalogRecord::StreamKept(record)
    }

    fn plan_speed(&self, name: &str, speed: Option<u64>) -> Result<(VolumeId, Vec<CatalogRecord>), ControlError> {
        let (id, _) = self.job_named(name)?;
        let speed = speed.filter(|&speed| speed > 0);
        Ok((id, vec![self.kept_with(id, |record| record.speed = speed)]))
    }

    fn plan_resume(&self, name: &str) -> Result<(VolumeId, Vec<CatalogRecord>), ControlError> {
        let (id, job) = self.job_named(name)?;
        if job.paused.is_none() {
            return Err(ControlError::invalid(format!("the stream of {name:?} is not paused")));
        }
        let event = self.stream_event(EventKind::StreamResumed, id, Some(job.job));
        Ok((id, vec![self.kept_with(id, |record| record.paused = None), CatalogRecord::EventTold(event)]))
    }

    fn plan_abort(&self, name: &str, reply: Reply) -> Plan {
        match self.job_named(name) {
            Ok((id, job)) => {
                let copied = self.streams.runs.get(&id).map_or(job.copied, |run| run.copied);
                let event = self.stream_event(EventKind::StreamCancelled, id, Some(job.job)).with_bytes(copied);
                let records = vec![CatalogRecord::StreamEnded(id), CatalogRecord::EventTold(event)];
                Plan::Change(records, Then::Stream(Outcome::Ended(reply)))
            }
            Err(error) => {
                reply(Err(error));
                Plan::Nothing
            }
        }
    }

    fn plan_finish(&mut self, volume: VolumeId, number: u64) -> Plan {
        let there = self.store.state().volume(volume).is_some();
        let Some(run) = self.streams.run(volume, number).filter(|_| there) else { return Plan::Nothing };
        let (job, copied) = (run.job_id(), run.copied);
        let event = self.stream_event(EventKind::StreamCompleted, volume, job).with_bytes(copied);
        let mut records = vec![CatalogRecord::Detached(volume)];
        records.extend(job.map(|_| CatalogRecord::StreamEnded(volume)));
        records.push(CatalogRecord::EventTold(event));
        Plan::Change(records, Then::Stream(Outcome::Finished(volume)))
    }

    /// A job has met an error that it does not get over by itself.
    fn plan_broken(&mut self, volume: VolumeId, number: u64, error: &ControlError) -> Plan {
        let Some(run) = self.streams.run(volume, number) else { return Plan::Nothing };
        let copied = run.copied;
        let Some((job, on_error)) = run.job().map(|record| (record.job, record.on_error)) else { return Plan::Nothing };
        let told = |kind| -> Event {
            let event = self.stream_event(kind, volume, Some(job)).with_text(&error.message).with_bytes(copied);
            Event { code: Some(error.kind.exit_code()), ..event }
        };
        let records = match on_error {
            OnError::Report => {
                vec![CatalogRecord::StreamEnded(volume), CatalogRecord::EventTold(told(EventKind::StreamFailed))]
            }
            OnError::Stop => {
                let event = told(EventKind::StreamPaused);
                let kept = self.kept_with(volume, |record| record.paused = Some(event.text.clone()));
                vec![kept, CatalogRecord::EventTold(event)]
            }
            OnError::Ignore => vec![CatalogRecord::EventTold(told(EventKind::StreamError))],
        };
        Plan::Change(records, Then::Stream(Outcome::Noted(volume, number)))
    }

    fn plan_keep(&mut self, volume: VolumeId, number: u64) -> Plan {
        let Some(run) = self.streams.run(volume, number).filter(|run| run.job().is_some()) else {
            return Plan::Nothing;
        };
        run.kept = (run.farthest, run.kept.1);
        let kept = self.kept_with(volume, |_| {});
        Plan::Change(vec![kept], Then::Stream(Outcome::Noted(volume, number)))
    }

    // ---- increments

    fn begin_step(&mut self, name: &str, cursor: u64, reply: Reply) {
        let (id, parent, size) = match self.streamable(name) {
            Ok(entry) => (entry.record.id, entry.record.parent, entry.record.size),
            Err(error) => return reply(Err(error)),
        };
        let Some(parent) = parent else {
            return reply(Ok(ControlAnswer::Stepped(StreamStepped { cursor: size, end: size, copied: 0 })));
        };
        let end = size.min(parent.size);
        if cursor >= end {
            return reply(Err(ControlError::invalid(format!(
                "cursor {cursor} is beyond the {end} bytes that {name:?} may have from its parent; begin at 0, then give what the step \
                 before has answered"
            ))));
        }
        self.streams.add(id, Purpose::Step(reply), cursor, end);
    }

    // ---- what is shown

    fn all_streams(&self) -> Vec<StreamInfo> {
        let mut all: Vec<_> = self.store.state().streams().map(|record| self.stream_info(record.volume)).collect();
        all.sort_by(|a, b| a.volume.cmp(&b.volume));
        all
    }

    /// A job that the catalog has.
    fn stream_info(&self, id: VolumeId) -> StreamInfo {
        let state = self.store.state();
        let (record, entry) = (state.stream(id).expect("looked up"), state.volume(id).expect("it is of a volume"));
        let run = self.streams.runs.get(&id);
        let end = entry.record.parent.map_or(entry.record.size, |parent| parent.size.min(entry.record.size));
        StreamInfo {
            job: record.job,
            volume: entry.record.name.clone(),
            id,
            parent: self.parent_name(entry),
            cur: run.map_or(record.cursor, |run| run.farthest).min(end),
            end,
            copied: run.map_or(record.copied, |run| run.copied),
            speed: record.speed,
            on_error: record.on_error,
            status: run.map_or(StreamStatus::Running, Run::status),
            error: run.and_then(|run| run.error.clone()),
            started_unix_s: record.started_unix_s,
        }
    }
}

impl Run {
    fn status(&self) -> StreamStatus {
        match self.waits {
            Waits::Resumption => StreamStatus::Paused,
            _ if self.error.is_some() => StreamStatus::Retrying,
            Waits::Flushing => StreamStatus::Finishing,
            _ if self.walked => StreamStatus::Finishing,
            _ => StreamStatus::Running,
        }
    }
}
