//! The shards that live on this reactor, and which of them have something to do.
//!
//! A turn runs the shards that something has happened to, those whose time has come, and those that wait for what is shared
//! with others and announces itself to nobody; not the rest, so that a turn costs what it does and not what the reactor has.
//!
//! Invariant: who gets at a shard to change it has put it in the queue by that ([`Local::find`] is the only way).

use ringway_reactor::io::Instant;

use crate::ids::ShardId;
use crate::shard::{RecordLog, Shard};

/// A few device operations: what is waited for mostly comes sooner, and makes a turn by itself.
const LOOK_AGAIN_NS: u64 = 20_000;

/// Shards by number, and the queue of those that are to run.
pub(super) struct Local<L> {
    /// `None` where it lives elsewhere.
    slots: Vec<Option<Slot<L>>>,
    ids: Vec<ShardId>,
    queue: Vec<ShardId>,
    /// The queue of the turn that is running.
    running: Vec<ShardId>,
    /// One of the queue was touched, and does not only wait for others.
    touched: bool,
    /// The first of the shards' deadlines, as of when each last ran.
    soonest: Instant,
    /// When the queue was last run.
    ran: Instant,
}

struct Slot<L> {
    shard: Shard<L>,
    queued: bool,
    deadline: Instant,
}

impl<L: RecordLog> Local<L> {
    /// All of them are to run once.
    pub(super) fn new(shards: Vec<Shard<L>>, numbers: usize) -> Self {
        let mut slots: Vec<Option<Slot<L>>> = (0..numbers).map(|_| None).collect();
        let ids: Vec<ShardId> = shards.iter().map(Shard::id).collect();
        for shard in shards {
            let number = usize::from(shard.id().0);
            slots[number] = Some(Slot { shard, queued: true, deadline: Instant::NEVER });
        }
        let queue = ids.clone();
        Self { slots, ids, queue, running: Vec::new(), touched: true, soonest: Instant::NEVER, ran: Instant(0) }
    }

    pub(super) fn ids(&self) -> &[ShardId] {
        &self.ids
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Shard<L>> {
        self.slots.iter().flatten().map(|slot| &slot.shard)
    }

    /// A shard that something happens to: it runs in the next [`Local::run`].
    ///
    /// # Panics
    /// If it lives elsewhere.
    pub(super) fn touch(&mut self, id: ShardId) -> &mut Shard<L> {
        self.find(id).expect("a shard is spoken to where it lives")
    }

    /// The same, for a shard that may not have been opened.
    pub(super) fn find(&mut self, id: ShardId) -> Option<&mut Shard<L>> {
        let slot = self.slots[usize::from(id.0)].as_mut()?;
        self.touched = true;
        if !slot.queued {
            slot.queued = true;
            self.queue.push(id);
        }
        Some(&mut slot.shard)
    }

    /// Runs those that have something to do.
    pub(super) fn run(&mut self, now: Instant, mut execute: impl FnMut(ShardId, &mut Shard<L>)) {
        if self.soonest <= now {
            self.queue_due(now);
        }
        self.touched = false;
        self.ran = now;
        std::mem::swap(&mut self.queue, &mut self.running);
        let mut later = false;
        for id in self.running.drain(..) {
            let slot = self.slots[usize::from(id.0)].as_mut().expect("it was queued");
            execute(id, &mut slot.shard);
            // With each turn, whatever that is about: nobody tells it when there is more of what it waits for.
            slot.queued = slot.shard.wants_every_turn();
            if slot.queued {
                self.queue.push(id);
            }
            let before = std::mem::replace(&mut slot.deadline, slot.shard.next_deadline());
            self.soonest = self.soonest.min(slot.deadline);
            later |= before == self.soonest && slot.deadline > before;
        }
        if later {
            self.soonest = self.slots.iter().flatten().map(|slot| slot.deadline).min().unwrap_or(Instant::NEVER);
        }
    }

    fn queue_due(&mut self, now: Instant) {
        for &id in &self.ids {
            let slot = self.slots[usize::from(id.0)].as_mut().expect("it lives here");
            if slot.deadline <= now && !slot.queued {
                slot.queued = true;
                self.queue.push(id);
            }
        }
    }

    /// When [`Local::run`] has to be called although nothing was touched. Who waits for what announces itself to nobody looks
    /// again soon, also where no other event makes a turn.
    pub(super) fn next_deadline(&self) -> Instant {
        if self.queue.is_empty() { self.soonest } else { self.soonest.min(self.ran.plus_ns(LOOK_AGAIN_NS)) }
    }

    /// Whether [`Local::run`] has something to do at once.
    pub(super) fn busy(&self) -> bool {
        self.touched
    }
}
