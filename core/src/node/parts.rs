//! Requests to parts, parts to shards, and the way back.

use ringway_reactor::io::{Instant, Io};

use super::inside::{FROM_INSIDE, InsideCall};
use super::message::Message;
use super::owner::{FROM_OWNER, Promise};
use super::route::PartId;
use super::{Node, Stopping};
use crate::ids::{ShardId, VolumeId};
use crate::request::{Command, Done, Status};
use crate::shard::{Part, PartDone, RecordLog};
use crate::tokens::FROM_TRANSPORT;
use crate::transport::TransportEvent;

impl<L: RecordLog> Node<L> {
    /// What the connections want.
    pub(super) fn take_transport_events(&mut self) {
        let mut events = std::mem::take(&mut self.transport_events);
        for event in events.drain(..) {
            match event {
                TransportEvent::Request { id, request } => self.requests.push((id, request)),
                TransportEvent::AssociationDead(association) => self.begin_fence(association),
                TransportEvent::Attached { volume } => self.send(0, Message::Attached { volume }),
                TransportEvent::Handover { to, adopted } => self.send(to, Message::Adopt(adopted)),
                TransportEvent::Mail { to, message } => self.send(to, message),
            }
        }
        self.transport_events = events;
    }

    /// A request of a thread of this process; a node that stops takes none.
    pub(super) fn take_inside(&mut self, call: Box<InsideCall>) {
        let through = self.looks_through_to_a_backend(call.volume);
        self.inside.push(call, through);
        if self.stopping != Stopping::No {
            self.inside.stop();
        }
    }

    /// Whether what a volume or a snapshot holds may be on a backend alone.
    fn looks_through_to_a_backend(&self, volume: VolumeId) -> bool {
        let mut at = volume;
        while let Some(record) = self.directory.volume(at) {
            match (record.view, record.parent) {
                (Some(view), _) => at = view.origin,
                (None, Some(parent)) if parent.is_on_backend() => return true,
                (None, Some(parent)) => at = parent.volume,
                (None, None) => return false,
            }
        }
        false
    }

    /// Cuts the requests that have arrived into parts and sends those on their way.
    pub(super) fn start_requests<I: Io>(&mut self, io: &mut I, now: Instant) {
        let mut requests = std::mem::take(&mut self.requests);
        for (id, request) in requests.drain(..) {
            // What a connection took before it was told to stop is finished; it closes when that is answered.
            if !matches!(self.stopping, Stopping::No | Stopping::Quieting) {
                self.answer(io, Done { id, status: Status::Aborted, data: request.data });
                continue;
            }
            let entry = self.directory.entry(request.volume);
            if entry.is_some_and(|entry| entry.fault.is_some()) {
                self.answer(io, Done { id, status: Status::VolumeFaulted, data: request.data });
                continue;
            }
            let promises = matches!(
                request.command,
                Command::Flush
                    | Command::Write { fua: true }
                    | Command::WriteZeroes { fua: true, .. }
                    | Command::CompareAndWrite { fua: true }
            );
            let mut told = None;
            if promises && id.0 & (FROM_OWNER | FROM_INSIDE) == 0 {
                let host = || self.registry.host_of(request.association);
                match self.first_flush.promise(request.volume, request.association, now, host) {
                    Promise::Given => {}
                    Promise::GivenAgain(host) => told = Some(Message::Told { volume: request.volume, host }),
                    Promise::Denied(host) => {
                        tracing::warn!(volume = %request.volume, host, "its host is told that writes before the failure of this machine may be lost");
                        self.answer(io, Done { id, status: Status::WriteFault, data: request.data });
                        continue;
                    }
                }
            }
            let volume = entry.map(|entry| &entry.record);
            if let Some(done) = self.router.start(id, request, volume, &mut self.parts) {
                self.answer(io, done);
            }
            if let Some(told) = told {
                self.send(0, told);
            }
        }
        // Answers may have led to more.
        requests.append(&mut self.requests);
        self.requests = requests;
        self.send_parts(now);
    }

    fn send_parts(&mut self, now: Instant) {
        let mut parts = std::mem::take(&mut self.parts);
        for (shard, part) in parts.drain(..) {
            let reactor = usize::from(self.placement[usize::from(shard.0)]);
            if reactor == self.index {
                self.take_part(now, shard, part, false);
            } else {
                self.send(reactor, Message::Part { shard, part });
            }
        }
        self.parts = parts;
    }

    /// A part for a shard that lives here.
    pub(super) fn take_part(&mut self, now: Instant, shard: ShardId, mut part: Part, hopped: bool) {
        let Some(home) = self.local.find(shard) else { return self.refuse_part(part) };
        self.serving.begin(shard, &mut part, now, hopped);
        home.submit(part);
    }

    /// The part's shard could not be opened.
    fn refuse_part(&mut self, part: Part) {
        let done = PartDone { id: part.id, status: Status::VolumeFaulted, data: part.data };
        let origin = usize::from(PartId::unpack(done.id).reactor);
        if origin == self.index {
            self.returned.push(done);
        } else {
            self.send(origin, Message::PartDone(done));
        }
    }

    /// A shard of this reactor is done with a part.
    pub(super) fn part_ended<I: Io>(&mut self, io: &mut I, now: Instant, mut done: PartDone) {
        self.serving.end(&mut done, now);
        let origin = usize::from(PartId::unpack(done.id).reactor);
        if origin == self.index {
            self.take_part_done(io, now, done);
        } else {
            self.send(origin, Message::PartDone(done));
        }
    }

    /// Parts that came back from other reactors.
    pub(super) fn take_returned<I: Io>(&mut self, io: &mut I, now: Instant) {
        let mut returned = std::mem::take(&mut self.returned);
        for done in returned.drain(..) {
            self.take_part_done(io, now, done);
        }
        self.returned = returned;
    }

    fn take_part_done<I: Io>(&mut self, io: &mut I, now: Instant, done: PartDone) {
        if let Some(done) = self.router.part_done(done, &mut self.parts) {
            self.answer(io, done);
        }
        if !self.parts.is_empty() {
            self.send_parts(now);
        }
    }

    pub(super) fn answer<I: Io>(&mut self, io: &mut I, done: Done) {
        if done.id.0 & FROM_TRANSPORT != 0 {
            self.transports.on_done(io, done, &mut self.requests, &mut self.transport_events);
        } else if done.id.0 & FROM_INSIDE != 0 {
            self.inside.done(done);
        } else if done.id.0 & FROM_OWNER != 0 {
            self.owner.as_mut().expect("it made the request").on_done(&done);
        } else {
            self.done.push(done);
        }
    }
}
