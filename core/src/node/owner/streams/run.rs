//! A run from stretch to stretch, to its end or its error.

use std::mem;

use ringway_reactor::io::Instant;

use super::{Owner, Purpose, Run, Waits, Work};
use crate::control::{ControlAnswer, ControlError, ControlErrorKind, ControlRequest, FillStep, Filled};
use crate::ids::{AssociationId, RequestId, VolumeId};
use crate::limits::CLUSTER;
use crate::node::owner::asking::{Asker, stretch_bytes};
use crate::node::owner::{Answer, FROM_OWNER, Task};
use crate::request::{Command, Request, Status};
use crate::stream::{OnError, StreamStepped};

/// How often the catalog hears where a job is: what a restart walks over again.
const KEEP_NS: u64 = 5_000_000_000;
/// After an error, and at most after many.
const RETRY_NS: u64 = 1_000_000_000;
const RETRY_NS_MAX: u64 = 30_000_000_000;
/// A job with a speed limit copies what it may in a second by so many questions.
const SLICES: u64 = 4;

impl Owner {
    /// Makes runs what the catalog says of jobs.
    pub(in crate::node::owner) fn follow_streams(&mut self) {
        if !self.is_running() {
            return;
        }
        let (state, now) = (self.store.state(), self.streams.now);
        let gone = |(&volume, run): (&VolumeId, &Run)| {
            (run.job().is_none() && state.volume(volume).is_none()).then_some(volume)
        };
        let gone: Vec<VolumeId> = self.streams.runs.iter().filter_map(gone).collect();
        for volume in gone {
            let why = ControlError::new(ControlErrorKind::NotFound, "the volume is gone");
            self.end_step(volume, Err(why));
        }
        let state = self.store.state();
        self.streams.runs.retain(|&volume, run| {
            let Purpose::Job(known) = &mut run.purpose else { return true };
            let Some(record) = state.stream(volume).filter(|record| record.job == known.job) else { return false };
            let hurried = known.speed != record.speed;
            known.clone_from(record);
            run.waits = match (run.waits, &record.paused) {
                (Waits::Recording, Some(_)) => Waits::Resumption,
                (Waits::Resumption, None) => {
                    run.error = None;
                    Waits::Until(now)
                }
                (Waits::Until(_), _) if hurried => Waits::Until(now),
                (waits, _) => waits,
            };
            true
        });
        for record in state.streams() {
            if !self.streams.runs.contains_key(&record.volume) {
                let volume = &state.volume(record.volume).expect("it is of a volume").record;
                let end = volume.parent.map_or(volume.size, |parent| parent.size.min(volume.size));
                self.streams.add(record.volume, Purpose::Job(record.clone()), record.cursor.min(end), end);
            }
        }
        let jobs = self.streams.runs.values().filter(|run| run.job().is_some());
        let (paused, running): (Vec<&Run>, _) = jobs.partition(|run| run.waits == Waits::Resumption);
        self.metrics.streams.running.set(running.len() as u64);
        self.metrics.streams.paused.set(paused.len() as u64);
    }

    /// Goes on with whatever is due.
    pub(in crate::node::owner) fn advance_streams(&mut self, now: Instant) {
        self.streams.now = now;
        // One that was recorded while an increment was under way.
        if self.streams.jobs() < self.store.state().streams().count() {
            self.follow_streams();
        }
        if self.streams.runs.is_empty() || !self.is_running() {
            return;
        }
        let due = |(&volume, run): (&VolumeId, &Run)| match run.waits {
            Waits::Until(then) if then <= now => Some(volume),
            _ => None,
        };
        let due: Vec<VolumeId> = self.streams.runs.iter().filter_map(due).collect();
        for volume in due {
            if self.streams.runs[&volume].walked {
                self.flush_stream(volume);
            } else {
                self.fill_stream(volume);
            }
        }
    }

    fn fill_stream(&mut self, volume: VolumeId) {
        let now = self.streams.now;
        let shards = self.store.state().volume(volume).map_or(1, |entry| entry.record.shards.len() as u64);
        let run = self.streams.runs.get_mut(&volume).expect("it is due");
        run.waits = Waits::Filling(now);
        let speed = run.job().and_then(|record| record.speed);
        let most = speed.map_or(u64::MAX, |speed| (speed / SLICES / shards).max(CLUSTER));
        let (cursor, number) = (run.cursor, run.number);
        self.ask(ControlRequest::Fill(FillStep { volume, cursor }), most, Asker::Stream(volume, number));
    }

    /// The shards have filled a stretch, or could not.
    pub(in crate::node::owner) fn stream_filled(
        &mut self,
        volume: VolumeId,
        number: u64,
        answer: Result<ControlAnswer, ControlError>,
    ) {
        let now = self.streams.now;
        let Some(run) = self.streams.run(volume, number) else { return };
        let Waits::Filling(began) = run.waits else { unreachable!("a stretch is asked for once") };
        match answer {
            Ok(ControlAnswer::Filled(Filled { next, copied })) => {
                run.copied += copied;
                self.metrics.streams.copied_bytes.add(copied);
                match next.filter(|&next| next < run.end) {
                    Some(next) => run.go_to(next),
                    None => run.end_walk(now),
                }
                if let Some(speed) = run.job().and_then(|record| record.speed) {
                    let paced = began.plus_ns((u128::from(copied) * 1_000_000_000 / u128::from(speed)) as u64);
                    run.waits = Waits::Until(run.due().max(paced));
                }
                self.stretch_done(volume, number);
            }
            Ok(other) => unreachable!("{other:?} is no answer to a fill"),
            Err(error) => self.stream_broken(volume, number, error),
        }
    }

    /// An increment is answered after one stretch, unless that was the last; where a job is, the catalog hears now and then.
    fn stretch_done(&mut self, volume: VolumeId, number: u64) {
        let now = self.streams.now;
        let Some(run) = self.streams.run(volume, number) else { return };
        match &run.purpose {
            Purpose::Step(_) if run.farthest < run.end => {
                let stepped = StreamStepped { cursor: run.cursor, end: run.end, copied: run.copied };
                if let Some(Run { purpose: Purpose::Step(reply), .. }) = self.streams.runs.remove(&volume) {
                    reply(Ok(ControlAnswer::Stepped(stepped)));
                }
            }
            Purpose::Job(_) if run.farthest > run.kept.0 && now.since_ns(run.kept.1) >= KEEP_NS => {
                run.kept = (run.farthest, now);
                self.tasks.push_back(Task::Stream(Work::Keep(volume, number)));
            }
            _ => {}
        }
    }

    /// What was copied is made durable: the link may not go before.
    fn flush_stream(&mut self, volume: VolumeId) {
        let flush = self.next_sync;
        self.next_sync += 1;
        let run = self.streams.runs.get_mut(&volume).expect("it is due");
        run.waits = Waits::Flushing;
        let number = run.number;
        self.streams.flushes.insert(flush, (volume, number));
        let request = Request {
            association: AssociationId::default(),
            volume,
            command: Command::Flush,
            offset: 0,
            len: 0,
            data: None,
        };
        self.requests.push((RequestId(FROM_OWNER | flush), request));
    }

    /// Whether this was a flush of a stream.
    pub(in crate::node::owner) fn stream_flushed(&mut self, flush: u64, status: Status) -> bool {
        let Some((volume, number)) = self.streams.flushes.remove(&flush) else { return false };
        let Some(run) = self.streams.run(volume, number) else { return true };
        if status == Status::Success {
            run.waits = Waits::Recording;
            self.tasks.push_back(Task::Stream(Work::Finish(volume, number)));
        } else {
            let why = format!("what was copied could not be made durable: {status:?}; the log says of which device");
            self.stream_broken(volume, number, ControlError::new(ControlErrorKind::Internal, why));
        }
        true
    }

    /// A stretch could not be filled, or the copies not be made durable.
    fn stream_broken(&mut self, volume: VolumeId, number: u64, error: ControlError) {
        let now = self.streams.now;
        let shards = self.store.state().volume(volume).map_or(1, |entry| entry.record.shards.len());
        let Some(run) = self.streams.run(volume, number) else { return };
        let known = run.error.as_deref() == Some(error.message.as_str());
        let on_error = match &run.purpose {
            Purpose::Job(record) => record.on_error,
            Purpose::Step(_) => return self.end_step(volume, Err(error)),
        };
        tracing::warn!(%volume, %on_error, error = error.message, "a stream has met an error");
        run.error = Some(error.message.clone());
        if on_error != OnError::Ignore {
            run.waits = Waits::Recording;
            return self.tasks.push_back(Task::Stream(Work::Broken(volume, number, error)));
        }
        run.whole = false;
        if run.walked {
            run.waits = Waits::Until(run.back_off(now));
        } else {
            let stretch = stretch_bytes(shards);
            let next = (run.cursor / stretch + 1) * stretch;
            if next < run.end { run.go_to(next) } else { run.end_walk(now) }
        }
        if !known {
            self.tasks.push_back(Task::Stream(Work::Broken(volume, number, error)));
        }
    }

    /// An error, or a cursor, is on record.
    pub(super) fn stream_noted(&mut self, volume: VolumeId, number: u64) {
        let now = self.streams.now;
        if let Some(run) = self.streams.run(volume, number)
            && run.waits == Waits::Recording
        {
            run.waits = Waits::Until(now);
        }
    }

    /// Something is not on record: it is tried again.
    pub(super) fn stream_unrecorded(&mut self, volume: VolumeId, number: u64, why: &str) {
        let now = self.streams.now;
        let Some(run) = self.streams.run(volume, number).filter(|run| run.waits == Waits::Recording) else { return };
        if let Purpose::Step(_) = run.purpose {
            return self.end_step(volume, Err(crate::node::owner::catalog_failed(why)));
        }
        run.error = Some(why.to_owned());
        run.waits = Waits::Until(run.back_off(now));
    }

    /// The link is gone, durably; told when every reactor works without it.
    pub(super) fn stream_finished(&mut self, volume: VolumeId) {
        tracing::info!(%volume, "a clone needs its parent no more");
        let answer = match self.streams.runs.remove(&volume) {
            Some(Run { purpose: Purpose::Step(reply), end, copied, .. }) => {
                let stepped = ControlAnswer::Stepped(StreamStepped { cursor: end, end, copied });
                Some((reply, Answer::Now(Box::new(stepped))))
            }
            // A job that the catalog does not have any more is no run any more.
            _ => None,
        };
        self.publish(answer);
    }

    fn end_step(&mut self, volume: VolumeId, answer: Result<ControlAnswer, ControlError>) {
        if let Some(Run { purpose: Purpose::Step(reply), .. }) = self.streams.runs.remove(&volume) {
            reply(answer);
        }
    }

    /// Nothing is gone on with in this process; the next one does with what the catalog has.
    pub(in crate::node::owner) fn stop_streams(&mut self) {
        for (_, run) in mem::take(&mut self.streams.runs) {
            if let Purpose::Step(reply) = run.purpose {
                reply(Err(ControlError::new(ControlErrorKind::Unavailable, "the target is stopping")));
            }
        }
    }
}

impl Run {
    /// The walk goes on here.
    fn go_to(&mut self, cursor: u64) {
        self.cursor = cursor;
        self.farthest = self.farthest.max(cursor);
        self.waits = Waits::Until(Instant(0));
    }

    /// Every stretch up to the end was looked at.
    fn end_walk(&mut self, now: Instant) {
        self.farthest = self.end;
        self.waits = Waits::Until(now);
        if self.whole {
            self.walked = true;
            self.error = None;
            return;
        }
        if self.error.is_some() {
            self.waits = Waits::Until(self.back_off(now));
        }
        (self.cursor, self.whole) = (0, true);
    }

    /// When to try again.
    fn back_off(&mut self, now: Instant) -> Instant {
        let ns = (RETRY_NS << self.errors.min(5)).min(RETRY_NS_MAX);
        self.errors += 1;
        now.plus_ns(ns)
    }

    fn due(&self) -> Instant {
        match self.waits {
            Waits::Until(then) => then,
            _ => Instant(0),
        }
    }
}
