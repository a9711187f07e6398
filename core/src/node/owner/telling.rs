//! Events: written with the change that they tell of, and told to those who listen once every reactor works with it.
//!
//! ```text
//! records of a change -> the events they come to are appended -> one frame, durable -> directory in use everywhere -> listeners
//! ```

use std::collections::VecDeque;

use ringway_reactor::io::Instant;

use super::{Owner, Plan, Snapshots, Then};
use crate::catalog::{CatalogRecord, CatalogState, CutRecord};
use crate::control::{ControlAnswer, ControlError, ControlErrorKind, Reply};
use crate::event::{Event, EventKind, EventList, EventQuery, LISTENERS_MAX, WAIT_MAX};
use crate::ids::VolumeId;
use crate::snapshot::name::full_name;

/// Who is told, and how far.
#[derive(Default)]
pub(super) struct Telling {
    /// Events up to this one may be told.
    told: u64,
    /// Events up to the second number, once the directory of the first is in use.
    coming: VecDeque<(u64, u64)>,
    listeners: Vec<Listener>,
    /// As of this turn.
    now: Instant,
}

/// A caller that waits for an event.
struct Listener {
    since: u64,
    until: Instant,
    reply: Reply,
}

impl Telling {
    pub(super) fn new(told: u64) -> Telling {
        Telling { told, ..Telling::default() }
    }

    /// When somebody has waited long enough.
    pub(super) fn next_deadline(&self) -> Instant {
        self.listeners.iter().map(|listener| listener.until).min().unwrap_or(Instant::NEVER)
    }
}

impl Owner {
    /// Appends the events that these records come to, and numbers those that are there already.
    pub(super) fn add_events(&self, records: &mut Vec<CatalogRecord>) {
        let state = self.store.state();
        let found: Vec<Event> = records.iter().flat_map(|record| events_of(state, record, &self.snapshots)).collect();
        records.extend(found.into_iter().map(CatalogRecord::EventTold));
        let mut number = state.last_event();
        for record in records {
            if let CatalogRecord::EventTold(event) = record {
                number += 1;
                (event.number, event.unix_s) = (number, (self.unix_s)());
            }
        }
    }

    /// An event that no other record tells.
    pub(super) fn plan_say(&self, event: Event) -> Plan {
        Plan::Change(vec![CatalogRecord::EventTold(event)], Then::Rest)
    }

    /// A change is durable and acted upon: what it tells waits for the directory that it came to.
    pub(super) fn change_made(&mut self) {
        let last = self.store.state().last_event();
        let known = self.telling.coming.back().map_or(self.telling.told, |&(_, known)| known);
        for event in self.store.state().events().filter(|event| event.number > known) {
            self.metrics.streams.count(event.kind);
        }
        if known < last {
            self.telling.coming.push_back((self.publishing.newest(), last));
        }
    }

    /// Somebody asks for events.
    pub(super) fn on_events(&mut self, query: EventQuery, reply: Reply) {
        let told = self.telling.told;
        let Some(since) = query.since else { return reply(Ok(self.event_list(told))) };
        // Those that are durable and not yet told may have been seen by who was told of their changes.
        let last = self.store.state().last_event();
        if since > last {
            return reply(Err(ControlError::invalid(format!(
                "no event has number {since} yet, the last one is {last}: this is another pool, or a number too high; begin at {last} \
                 or below"
            ))));
        }
        if since < told || query.wait_ms == 0 {
            return reply(Ok(self.event_list(since)));
        }
        if self.telling.listeners.len() >= LISTENERS_MAX {
            let why = format!("{LISTENERS_MAX} callers wait for events already; end some, or ask without waiting");
            return reply(Err(ControlError::new(ControlErrorKind::Busy, why)));
        }
        let wait_ns = query.wait_ms.min(WAIT_MAX.as_millis() as u64) * 1_000_000;
        let until = self.telling.now.plus_ns(wait_ns);
        self.telling.listeners.push(Listener { since, until, reply });
    }

    fn event_list(&self, since: u64) -> ControlAnswer {
        let told = self.telling.told;
        let events = self.store.state().events();
        let events = events.filter(|event| (since + 1..=told).contains(&event.number)).cloned().collect();
        let oldest = self.store.state().events().next().map_or(0, |event| event.number);
        ControlAnswer::Events(EventList { events, oldest, newest: told })
    }

    /// Tells what may be told by now, to those who wait.
    pub(super) fn tell(&mut self, now: Instant) {
        self.telling.now = now;
        while let Some(&(seq, number)) = self.telling.coming.front()
            && self.publishing.is_in_use(seq)
        {
            self.telling.told = number;
            self.telling.coming.pop_front();
        }
        let told = self.telling.told;
        if self.telling.listeners.iter().all(|listener| listener.since >= told && listener.until > now) {
            return;
        }
        for listener in std::mem::take(&mut self.telling.listeners) {
            if listener.since < told || listener.until <= now {
                let list = self.event_list(listener.since);
                (listener.reply)(Ok(list));
            } else {
                self.telling.listeners.push(listener);
            }
        }
    }

    /// Nothing will be told any more.
    pub(super) fn dismiss_listeners(&mut self) {
        for listener in self.telling.listeners.drain(..) {
            let why = "the target is stopping; ask again with the number of the last event when it is back";
            (listener.reply)(Err(ControlError::new(ControlErrorKind::Unavailable, why)));
        }
    }
}

/// What a record tells, as seen before it takes effect. `made` knows how long snapshots took.
fn events_of(state: &CatalogState, record: &CatalogRecord, made: &Snapshots) -> Vec<Event> {
    let name = |id: VolumeId| state.volume(id).map_or_else(String::new, |entry| entry.record.name.clone());
    let of = |kind, id: VolumeId| Event::new(kind, Some(id), name(id));
    let one = match record {
        CatalogRecord::VolumeCreated(made) => {
            Event::new(EventKind::VolumeCreated, Some(made.id), &made.name).with_bytes(made.size)
        }
        CatalogRecord::CloneCreated(clone) => {
            let mut snapshots = state.snapshots_of(clone.parent.volume);
            let parent = snapshots.find(|(epoch, _)| *epoch == clone.parent.epoch);
            let parent = parent.map(|(_, entry)| entry.record.name.clone());
            let held = || state.held_sources().into_iter().find(|held| held.holder == clone.volume.uuid);
            let parent = parent.or_else(|| Some(held()?.source.shown())).unwrap_or_default();
            Event::new(EventKind::VolumeCloned, Some(clone.volume.id), &clone.volume.name).with_text(parent)
        }
        CatalogRecord::VolumeRemoved(id) => of(EventKind::VolumeRemoved, *id),
        CatalogRecord::VolumeResized(id, size) => of(EventKind::VolumeResized, *id).with_bytes(*size),
        CatalogRecord::VolumeRenamed(id, to) => {
            Event::new(EventKind::VolumeRenamed, Some(*id), to).with_text(name(*id))
        }
        CatalogRecord::VolumeFaulted(id, _, why) => of(EventKind::VolumeFaulted, *id).with_text(why),
        CatalogRecord::RolledBack(rollback) => {
            let mut snapshots = state.snapshots_of(rollback.volume);
            let to = snapshots.find(|(epoch, _)| *epoch == rollback.to);
            let to = to.map_or_else(String::new, |(_, entry)| entry.record.name.clone());
            of(EventKind::VolumeRolledBack, rollback.volume).with_text(to)
        }
        CatalogRecord::SnapshotsCommitted(cut) => {
            return of_cut(state, cut, EventKind::SnapshotCreated, &made.times_of(cut.epoch));
        }
        CatalogRecord::SnapshotsSealed(cut) => {
            return of_cut(state, cut, EventKind::SnapshotSealed, &made.times_of(cut.epoch));
        }
        CatalogRecord::SnapshotSynced(synced) => {
            Event::new(EventKind::SnapshotSynced, Some(synced.origin), name(synced.snapshot))
                .with_text(made.sync_time_of(synced.snapshot))
        }
        CatalogRecord::SnapshotRemains(remains) if state.volume(remains.snapshot).is_some() => {
            Event::new(EventKind::SnapshotRemoved, Some(remains.origin), name(remains.snapshot))
        }
        CatalogRecord::DeviceAdded(_, _, size) => Event::new(EventKind::PoolGrown, None, "").with_bytes(*size),
        _ => return Vec::new(),
    };
    vec![one]
}

fn of_cut(state: &CatalogState, cut: &CutRecord, kind: EventKind, times: &str) -> Vec<Event> {
    let of = |snapshot: &crate::catalog::SnapshotRecord| {
        let origin = state.volume(snapshot.origin).map_or("", |entry| entry.record.name.as_str());
        Event::new(kind, Some(snapshot.origin), full_name(origin, &snapshot.name))
            .with_bytes(snapshot.size)
            .with_text(times)
    };
    cut.snapshots.iter().map(of).collect()
}
