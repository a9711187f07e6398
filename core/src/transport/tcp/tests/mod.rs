//! The transport on the simulated network, before a volume that is a vector of bytes.

mod hostile;
mod served;
mod slow;

use std::sync::Arc;

use ringway_reactor::io::{Io, Wait};
use ringway_reactor::sim::{SimIo, World, WorldConfig};

use super::*;
use crate::ids::VolumeId;
use crate::request::Command;
use crate::volume::VolumeRecord;

pub(super) use crate::transport::testing::{VOLUME_BYTES, directory, execute, record};

/// A target whose volume is memory: requests end in the order in which they came, a few a turn.
pub(super) struct Target {
    pub(super) io: SimIo,
    pub(super) transport: TcpTransport,
    pub(super) events: Vec<TransportEvent>,
    pub(super) store: Vec<u8>,
    pub(super) registry: Arc<Registry>,
    pub(super) addr: SocketAddr,
    /// Requests that are held back until told otherwise.
    pub(super) held: Vec<(RequestId, Request)>,
    pub(super) hold: bool,
    pub(super) fences: Vec<AssociationId>,
    pub(super) fence_at_once: bool,
    /// Volumes whose hosts are to be put on record.
    pub(super) attaching: Vec<VolumeId>,
    pub(super) record_at_once: bool,
}

impl Target {
    pub(super) fn new(world: &World, change: impl FnOnce(&mut TransportConfig)) -> Target {
        let mut io = world.outside();
        let registry = Arc::new(Registry::default());
        let mut config = TransportConfig::new(0, 1, io.buffers().bytes());
        change(&mut config);
        let mut transport = TcpTransport::new(config, Arc::clone(&registry), directory(1, record()));
        let (listener, addr) = io.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        transport.listen(&mut io, listener, addr);
        Target {
            io,
            transport,
            events: Vec::new(),
            store: vec![0; VOLUME_BYTES],
            registry,
            addr,
            held: Vec::new(),
            hold: false,
            fences: Vec::new(),
            fence_at_once: true,
            attaching: Vec::new(),
            record_at_once: true,
        }
    }

    /// One turn of the reactor that this stands for.
    pub(super) fn turn(&mut self) {
        let mut completions = Vec::new();
        let until = self.transport.next_deadline().min(self.io.now().plus_ns(10_000_000));
        let wait = if self.transport.busy() { Wait::No } else { Wait::Until(until) };
        self.io.poll(wait, &mut completions);
        for completion in completions {
            self.transport.on_completion(&mut self.io, completion, &mut self.events);
        }
        self.transport.tick(&mut self.io, &mut self.events);
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            match event {
                TransportEvent::Request { id, request } => self.held.push((id, request)),
                TransportEvent::AssociationDead(association) => self.fences.push(association),
                TransportEvent::Attached { volume } => self.attaching.push(volume),
                TransportEvent::Handover { .. } | TransportEvent::Mail { .. } => {}
            }
        }
        self.events = events;
        if self.record_at_once {
            self.record(true);
        }
        if self.fence_at_once {
            self.fence_all();
        }
        if !self.hold {
            for (id, request) in std::mem::take(&mut self.held) {
                let done = execute(&mut self.store, id, request);
                self.transport.on_done(&mut self.io, done, &mut self.events);
            }
        }
        self.transport.flush(&mut self.io);
    }

    /// Puts on record who has attached, or says that nobody can be.
    pub(super) fn record(&mut self, known: bool) {
        for volume in std::mem::take(&mut self.attaching) {
            let hosts = self.registry.attached_hosts(volume).into_iter().collect();
            let writer = self.registry.writer(volume);
            self.registry.set_on_record(volume, &hosts, writer.as_ref(), known);
        }
    }

    pub(super) fn fence_all(&mut self) {
        for association in std::mem::take(&mut self.fences) {
            self.transport.kill_association(&mut self.io, association, &mut self.events);
            self.registry.fenced(association);
        }
    }
}

pub(super) fn world(seed: u64) -> World {
    World::new(seed, WorldConfig::default())
}
