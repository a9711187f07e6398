//! vhost-user-blk: volumes as the disks of virtual machines, through rings in their memory.
//!
//! ```text
//! front end --unix socket--> control thread of its connection (device) --mail--> reactors: one ring each (ring)
//!                                                                               ring --requests--> node --> shards
//! ```
//! A control thread speaks the protocol and blocks where it likes; reactors only ever see rings that are whole: memory, addresses and
//! features do not change under one, it is stopped and started anew. Guests' data is read and written in place. Nothing of a
//! front end or a guest is trusted: what it does wrong ends its request, its ring or its connection.

mod blk;
mod cache_mode;
mod connection;
mod device;
mod mail;
mod mapping;
mod parse;
mod pinning;
mod ring;
mod server;

use std::sync::Arc;

use ringway_reactor::io::{Completion, Instant, Io};
use ringway_shm_ring::virtqueue::Chain;
use rustc_hash::FxHashMap;
use slab::Slab;

use super::ConnectionSeen;
use super::pins::Pins;
use crate::directory::Directory;
use crate::ids::{AssociationId, RequestId};
use crate::request::{Done, Request};
use crate::tokens;
pub use mail::{Mail, RingId};
use ring::Ring;
pub use server::{VhostServer, VhostShared};

/// How long a ring is looked at after its last chain before its driver is asked to kick, nanoseconds.
const REST_NS: u64 = 50_000;
/// How soon to try again what waits for a buffer.
const RETRY_NS: u64 = 1_000_000;

/// Plain counters of one reactor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VhostStats {
    /// Rings started.
    pub started: u64,
    /// Chains taken.
    pub chains: u64,
    /// Chains given back.
    pub completed: u64,
    /// Requests that were none.
    pub malformed: u64,
    /// Rings that their drivers broke.
    pub broken: u64,
    /// Bytes that could not be moved in place.
    pub bytes_copied: u64,
    /// Requests that had to wait for a buffer.
    pub waited_for_buffer: u64,
}

/// What rings share within one call.
struct Cx<'a, I> {
    io: &'a mut I,
    requests: &'a mut Vec<(RequestId, Request)>,
    directory: &'a Directory,
    stats: &'a mut VhostStats,
    /// Rings with something to show their drivers.
    dirty: &'a mut Vec<usize>,
}

/// Tokens of this transport's operations.
mod token {
    use ringway_reactor::io::Token;

    use crate::tokens;

    pub(super) const KICK: u8 = 0;
    pub(super) const CALL: u8 = 1;
    pub(super) const ERROR: u8 = 2;

    pub(super) fn kick(ring: usize) -> Token {
        tokens::operation(tokens::VHOST, KICK, ring)
    }

    pub(super) fn call(ring: usize) -> Token {
        tokens::operation(tokens::VHOST, CALL, ring)
    }

    pub(super) fn error() -> Token {
        tokens::operation(tokens::VHOST, ERROR, 0)
    }

    pub(super) use crate::tokens::parse;
}

/// The rings of one reactor.
pub struct VhostTransport {
    shared: Arc<VhostShared>,
    directory: Arc<Directory>,
    rings: Slab<Ring>,
    by_id: FxHashMap<RingId, usize>,
    dirty: Vec<usize>,
    /// Further pieces of requests that have begun, for the next turn.
    continued: Vec<(RequestId, Request)>,
    chains: Box<[Chain; ring::BATCH]>,
    stats: VhostStats,
    /// Guests' memory, where their exports want that.
    pins: Pins,
    last_turn: Instant,
    draining: bool,
}

impl VhostTransport {
    /// No rings yet.
    #[must_use]
    pub fn new(shared: Arc<VhostShared>, directory: Arc<Directory>) -> Self {
        Self {
            shared,
            directory,
            rings: Slab::new(),
            by_id: FxHashMap::default(),
            dirty: Vec::new(),
            continued: Vec::new(),
            chains: Box::default(),
            stats: VhostStats::default(),
            pins: Pins::default(),
            last_turn: Instant(0),
            draining: false,
        }
    }

    /// A control thread wants something.
    pub fn on_mail<I: Io>(&mut self, io: &mut I, mail: Mail) {
        match mail {
            Mail::Start(setup, reply) => {
                let started = self.start(io, setup);
                // Nobody waits any more if the connection's thread has ended.
                let _ = reply.send(started);
            }
            Mail::Stop { ring, abandon, reply } => {
                if let Some(&index) = self.by_id.get(&ring) {
                    self.rings[index].stop(io, abandon, Some(reply));
                    self.remove_if_gone(index);
                }
            }
            Mail::SetCall { ring, call, reply } => {
                if let Some(&index) = self.by_id.get(&ring) {
                    self.rings[index].set_call(io, call);
                }
                let _ = reply.send(());
            }
            Mail::Pin(area, part) => self.pins.want(&area, part, false),
            Mail::Unpin(areas, reply) => {
                for area in &areas {
                    self.pins.release(io, area);
                }
                let _ = reply.send(());
            }
        }
    }

    fn start<I: Io>(&mut self, io: &mut I, setup: Box<mail::RingSetup>) -> Result<(), String> {
        if self.draining {
            return Err("the target is stopping".to_owned());
        }
        let id = setup.id;
        let entry = self.rings.vacant_entry();
        let index = entry.key();
        entry.insert(Ring::new(index, setup, io)?).greet(io);
        self.stats.started += 1;
        self.by_id.insert(id, index);
        Ok(())
    }

    fn remove_if_gone(&mut self, index: usize) {
        let Some(ring) = self.rings.get(index) else { return };
        if ring.is_gone() {
            self.by_id.remove(&ring.setup().id);
        }
        if ring.is_removable() {
            self.rings.remove(index);
        }
    }

    /// An operation of this transport ended.
    pub fn on_completion<I: Io>(&mut self, io: &mut I, completion: &Completion) {
        let (kind, index) = token::parse(completion.token);
        match kind {
            token::KICK => self.rings[index].kicked(),
            token::CALL => self.rings[index].signalled(io),
            token::ERROR => return,
            kind => unreachable!("operation {kind} was never submitted"),
        }
        self.remove_if_gone(index);
    }

    /// A request ended.
    pub fn on_done<I: Io>(&mut self, io: &mut I, done: Done) {
        let (index, slot) = tokens::request_place(done.id);
        let (directory, stats, dirty) = (&*self.directory, &mut self.stats, &mut self.dirty);
        let mut cx = Cx { io, requests: &mut self.continued, directory, stats, dirty };
        self.rings[index].on_done(&mut cx, slot, done);
    }

    /// Takes what drivers have made available. Returns whether there was something.
    pub fn pull<I: Io>(&mut self, io: &mut I, requests: &mut Vec<(RequestId, Request)>) -> bool {
        requests.append(&mut self.continued);
        let mut found = false;
        for (_, ring) in &mut self.rings {
            let (directory, stats, dirty) = (&*self.directory, &mut self.stats, &mut self.dirty);
            let mut cx = Cx { io, requests, directory, stats, dirty };
            if ring.is_starved() {
                ring.retry(&mut cx);
            }
            found |= ring.pull(&mut cx, &mut self.chains);
        }
        self.last_turn = io.now();
        self.pins.step(io);
        found
    }

    /// The volumes changed.
    pub fn on_directory(&mut self, directory: &Arc<Directory>) {
        self.directory = Arc::clone(directory);
        self.shared.published(directory);
    }

    /// Ends the connections of an association.
    pub fn kill_association(&mut self, association: AssociationId) {
        let of = |ring: &&Ring| ring.setup().device.association == association && !ring.is_gone();
        if let Some((_, ring)) = self.rings.iter().find(|(_, ring)| of(ring)) {
            ring.setup().device.hang_up("its volume is no longer there for it");
        }
    }

    /// Shows drivers what has ended.
    pub fn flush<I: Io>(&mut self, io: &mut I) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            if let Some(ring) = self.rings.get_mut(index) {
                ring.flush(io);
                self.remove_if_gone(index);
            }
        }
        self.dirty = dirty;
    }

    /// Asks all drivers for a kick. `false` if one has something already, or never kicks.
    pub fn before_sleep<I: Io>(&mut self, io: &mut I) -> bool {
        self.rings.iter_mut().all(|(_, ring)| ring.arm(io))
    }

    /// When [`VhostTransport::pull`] has to run although nothing arrives.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        if self.rings.iter().any(|(_, ring)| ring.is_starved()) {
            self.last_turn.plus_ns(RETRY_NS)
        } else {
            Instant::NEVER
        }
    }

    /// Whether there is something to do at once.
    #[must_use]
    pub fn busy(&self) -> bool {
        !self.dirty.is_empty() || self.pins.busy() || !self.continued.is_empty()
    }

    /// Takes no new ring and no new chain; what is in flight ends.
    pub fn drain<I: Io>(&mut self, io: &mut I) {
        self.draining = true;
        let indices: Vec<usize> = self.rings.iter().map(|(index, _)| index).collect();
        for index in indices {
            self.rings[index].stop(io, false, None);
            self.remove_if_gone(index);
        }
    }

    /// Whether a drained transport has nothing left.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.draining && self.rings.iter().all(|(_, ring)| ring.is_quiet())
    }

    /// What there is to know of each ring.
    pub fn seen(&self) -> impl Iterator<Item = ConnectionSeen<'_>> {
        self.rings.iter().filter(|(_, ring)| !ring.is_gone()).map(|(_, ring)| ring.seen())
    }

    /// Counters as of now.
    #[must_use]
    pub fn stats(&self) -> VhostStats {
        self.stats
    }

    /// Bytes of guests' memory that are registered.
    #[must_use]
    pub fn registered_bytes(&self) -> u64 {
        self.pins.bytes()
    }

    /// Whether there is more to be registered.
    #[must_use]
    pub fn is_registering(&self) -> bool {
        self.pins.busy()
    }

    /// Rings now.
    #[must_use]
    pub fn rings(&self) -> usize {
        self.by_id.len()
    }
}
