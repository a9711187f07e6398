//! What shards ask for: barriers, slabs, fences; and what changes under them: the directory.

use std::sync::Arc;

use ringway_reactor::io::{FileId, Instant, Io, IoError, Op, Token};

use super::barrier::{Asked, Coalescer, Waiter};
use super::message::Message;
use super::{Node, Stopping};
use crate::directory::Directory;
use crate::ids::{AssociationId, ShardId};
use crate::request::{Done, Status};
use crate::shard::{Event, RecordLog};
use crate::space::Geometry;
use crate::tokens;

/// The catalog's reactor.
const OWNER: usize = 0;

impl<L: RecordLog> Node<L> {
    /// Everything that shards have said since the last turn. What these lead to may make them say more.
    pub(super) fn take_shard_events<I: Io>(&mut self, io: &mut I, now: Instant) {
        let mut said = std::mem::take(&mut self.said);
        for (shard, event) in said.drain() {
            match event {
                Event::Done(done) => self.part_ended(io, now, done),
                Event::Barrier { ticket, files } => {
                    let waiter = Waiter { shard, ticket };
                    self.barriers.begin(waiter, files.iter().count());
                    for file in files.iter() {
                        let home = usize::from(file) % self.reactors;
                        self.send(home, Message::AskBarrier { file: FileId(file), shard, ticket });
                    }
                }
                Event::NeedSlab { urgent } => self.send(OWNER, Message::AskSlab { shard, urgent }),
                Event::SlabReleased(slab) => self.send(OWNER, Message::SlabReleased { shard, slab }),
                Event::SlabKept => self.send(OWNER, Message::SlabKept { shard }),
                Event::Erased(volume) => self.send(OWNER, Message::Erased { shard, volume }),
                Event::Fault { volume, why } => self.send(OWNER, Message::Fault { shard, volume, why }),
                Event::Fenced { association, .. } => self.shard_fenced(association),
                Event::Armed(attempt) => self.send(OWNER, Message::Armed { shard, attempt }),
                Event::Sealed { attempt, failed } => self.send(OWNER, Message::Sealed { shard, attempt, failed }),
                Event::Answer { token, answer } => self.send(OWNER, Message::Answered { shard, token, answer }),
                Event::Fetch(fetch) => match &self.fetch_port {
                    Some(port) => port.fetch(shard, fetch),
                    None => {
                        let outcome = Err(Status::BackendUnavailable);
                        self.send(self.index, Message::Fetched { shard, token: fetch.token, outcome });
                    }
                },
                Event::Drained => self.shard_drained(),
            }
        }
        // Ending parts may have queued more; keep both.
        said.take_over(&mut self.said);
        self.said = said;
    }

    // ---- barriers

    /// To the home of a device: a shard wants a barrier.
    pub(super) fn ask_barrier<I: Io>(&mut self, io: &mut I, file: FileId, waiter: Waiter) {
        match self.coalescers.entry(file).or_insert_with(|| Coalescer::new(file)).ask(waiter) {
            Asked::Submit(file) => io.submit(barrier_token(file), Op::Barrier { file }),
            Asked::Gathered => {}
            Asked::Failed(error) => self.answer_barrier(waiter, Err(error)),
        }
    }

    /// A device has done a barrier, or failed to.
    pub(super) fn barrier_completed<I: Io>(&mut self, io: &mut I, file: FileId, result: Result<(), IoError>) {
        let mut answered = std::mem::take(&mut self.answered);
        let coalescer = self.coalescers.get_mut(&file).expect("a barrier that completes was asked for");
        if coalescer.complete(result, &mut answered) {
            io.submit(barrier_token(file), Op::Barrier { file });
        }
        if let Err(error) = result {
            tracing::error!(device = file.0, %error, "a barrier failed: no write is trusted on this device until the pool is reopened");
        }
        for waiter in answered.drain(..) {
            self.answer_barrier(waiter, result);
        }
        self.answered = answered;
    }

    fn answer_barrier(&mut self, waiter: Waiter, result: Result<(), IoError>) {
        let to = usize::from(self.placement[usize::from(waiter.shard.0)]);
        self.send(to, Message::BarrierDone { shard: waiter.shard, ticket: waiter.ticket, result });
    }

    /// One device's answer to a shard of this reactor.
    pub(super) fn barrier_answered<I: Io>(&mut self, io: &mut I, waiter: Waiter, result: Result<(), IoError>) {
        if let Some(outcome) = self.barriers.answered(waiter, result) {
            let shard = self.local.touch(waiter.shard);
            self.said.by(waiter.shard, |out| shard.on_barrier(io, waiter.ticket, outcome, out));
        }
    }

    // ---- fences

    /// Whether something of the association, which ended here, may still be on its way.
    #[must_use]
    pub fn is_fencing(&self, association: AssociationId) -> bool {
        self.fences.is_open(association)
    }

    /// An association has ended here, or its volume has.
    pub fn begin_fence(&mut self, association: AssociationId) {
        if self.fences.begin(association, self.reactors) {
            let origin = self.index;
            self.send_all(|| Message::Fence { association, origin });
        }
    }

    /// An association is dead: stop sending its parts, and tell everybody.
    pub(super) fn fence<I: Io>(&mut self, io: &mut I, association: AssociationId, origin: usize) {
        self.transports.kill_association(io, association, &mut self.transport_events);
        let (dead, alive): (Vec<_>, Vec<_>) =
            self.requests.drain(..).partition(|(_, request)| request.association == association);
        self.requests = alive;
        for (id, request) in dead {
            self.answer(io, Done { id, status: Status::Aborted, data: request.data });
        }
        self.router.stop_association(association);
        self.send_all(|| Message::FencePassed { association, origin });
    }

    /// A reactor sends no more parts of a dead association.
    pub(super) fn fence_passed(&mut self, association: AssociationId, origin: usize) {
        if !self.fences.passed(association, origin, self.reactors, self.local.ids().len()) {
            return;
        }
        if self.local.ids().is_empty() {
            self.shard_fenced(association);
        }
        for id in self.local.ids().to_vec() {
            let shard = self.local.touch(id);
            self.said.by(id, |out| shard.fence(association, association.0, out));
        }
    }

    fn shard_fenced(&mut self, association: AssociationId) {
        if let Some(origin) = self.fences.shard_fenced(association) {
            self.send(origin, Message::Fenced { association });
        }
    }

    // ---- devices

    /// The pool has another device.
    pub(super) fn grown<I: Io>(&mut self, io: &I, geometry: &Arc<Geometry>) {
        for id in self.local.ids().to_vec() {
            self.local.touch(id).on_grown(Arc::clone(geometry), io.files());
        }
    }

    // ---- the directory

    /// The volumes changed.
    pub(super) fn publish<I: Io>(&mut self, io: &mut I, directory: Arc<Directory>, seq: u64) {
        for id in self.local.ids().to_vec() {
            for record in directory.volumes_of(id) {
                let known = self.directory.volume(record.id).is_some_and(|known| Arc::ptr_eq(known, record));
                if !known {
                    self.local.touch(id).on_volume(Arc::clone(record));
                }
            }
            for volume in directory.erasing_of(id) {
                self.forget_volume(id, volume);
            }
            // Snapshots that never came to be are on no list.
            let known: Vec<_> = self.directory.volumes_of(id).map(|record| record.id).collect();
            for volume in known.into_iter().filter(|&volume| directory.volume(volume).is_none()) {
                self.forget_volume(id, volume);
            }
        }
        self.transports.on_directory(io, &directory, &mut self.transport_events);
        self.directory = directory;
        self.send(OWNER, Message::Published { seq });
    }

    fn forget_volume(&mut self, shard: ShardId, volume: crate::ids::VolumeId) {
        self.serving.forget(shard, volume);
        let local = self.local.touch(shard);
        self.said.by(shard, |out| local.on_volume_removed(volume, out));
    }

    fn shard_drained(&mut self) {
        if let Stopping::Draining { shards_left } = &mut self.stopping {
            *shards_left -= 1;
        }
    }
}

fn barrier_token(file: FileId) -> Token {
    Token(u64::from(tokens::BARRIER) << 56 | u64::from(file.0))
}
