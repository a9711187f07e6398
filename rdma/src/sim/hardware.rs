//! One endpoint's side of a simulated fabric.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};

use ringway_reactor::buf::Buf;
use ringway_reactor::data::Piece;
use ringway_reactor::event::EventFd;
use ringway_reactor::io::Instant;

use super::Fabric;
use super::world::{Happening, Kind, Outgoing, Qp, World};
use crate::endpoint::PRIVATE_MAX;
use crate::hardware::{Granted, Hardware, Item, Noticed, Reaped};
use crate::verbs::{ConnectRequest, Device, ListenerId, QpId, QueueSpec, Remote, VerbsError, Work, WorkError};

/// Bytes that go out inline.
const INLINE_MAX: u32 = 64;

pub(super) struct SimHardware {
    fabric: Fabric,
    end: usize,
    /// What the receives and reads last reaped are to be filled with.
    filled: HashMap<u64, Vec<u8>>,
    /// Where queue pairs that are being connected go.
    to: HashMap<QpId, SocketAddr>,
    /// Who asked for those that are being accepted.
    asked: HashMap<QpId, Ticket>,
}

/// A request that was not answered.
pub(super) struct Ticket {
    world: Weak<Mutex<World>>,
    request: Option<u64>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let (Some(request), Some(world)) = (self.request, self.world.upgrade()) {
            Fabric(world).world().refuse(request, &[]);
        }
    }
}

impl SimHardware {
    pub(super) fn new(fabric: Fabric, end: usize) -> SimHardware {
        SimHardware { fabric, end, filled: HashMap::new(), to: HashMap::new(), asked: HashMap::new() }
    }

    /// Makes a queue pair within the bounds of the device.
    fn make_qp(&self, world: &mut World, qp: QpId, spec: &QueueSpec) -> Result<Granted, VerbsError> {
        let device = &world.ends[self.end].device;
        if device.gone {
            return Err(VerbsError::Gone);
        }
        let asked = spec.receives.max(spec.sends);
        if asked > device.queue_entries_max {
            let (has, what) = (device.queue_entries_max, "work requests a queue");
            return Err(VerbsError::TooMuch { device: device.name.clone(), what, has, asked });
        }
        let reads_out = spec.reads_out.min(device.reads_out_max);
        let reads_in = spec.reads_in.min(device.reads_in_max);
        let granted = Granted { device: device.id, inline_max: INLINE_MAX, reads_out, reads_in };
        world.qps.insert((self.end, qp), Qp::default());
        Ok(granted)
    }

    /// Shows requests to their listeners, each with a ticket.
    fn show(&self, world: &mut World) {
        for mut asked in std::mem::take(&mut world.to_show) {
            asked.private.resize(PRIVATE_MAX, 0);
            let ticket = Ticket { world: Arc::downgrade(&self.fabric.0), request: Some(asked.request) };
            let device = &world.ends[asked.end].device;
            let request = ConnectRequest {
                listener: asked.listener,
                device: device.id,
                numa: device.numa,
                peer: asked.peer,
                local: asked.local,
                private: asked.private,
                peer_reads_in: asked.reads_in,
                peer_reads_out: asked.reads_out,
                ticket: Box::new(ticket),
            };
            world.ends[asked.end].noticed.push_back(Noticed::Request(request));
        }
    }
}

impl Hardware for SimHardware {
    type Ticket = Ticket;

    fn devices(&self) -> Vec<Device> {
        vec![self.fabric.world().ends[self.end].device.clone()]
    }

    fn listen(&mut self, listener: ListenerId, mut addr: SocketAddr) -> Result<SocketAddr, VerbsError> {
        let mut world = self.fabric.world();
        if world.ends[self.end].device.gone {
            return Err(VerbsError::NoDevice(addr));
        }
        if addr.port() == 0 {
            let taken = |port: u16| world.listeners.keys().any(|addr| addr.port() == port);
            addr.set_port((40_000..).find(|&port| !taken(port)).expect("a port is free"));
        }
        if world.listeners.contains_key(&addr) {
            return Err(VerbsError::AddressInUse(addr));
        }
        world.listeners.insert(addr, (self.end, listener));
        Ok(addr)
    }

    fn close_listener(&mut self, listener: ListenerId) {
        self.fabric.world().listeners.retain(|_, of| *of != (self.end, listener));
    }

    fn reject(&mut self, mut ticket: Ticket, private: &[u8]) {
        if let Some(request) = ticket.request.take() {
            self.fabric.world().refuse(request, private);
        }
    }

    fn take(&mut self, qp: QpId, ticket: Ticket, spec: &QueueSpec) -> Result<Granted, VerbsError> {
        // Declared before the lock is taken: where this fails the ticket refuses, which locks.
        let ticket = ticket;
        let mut world = self.fabric.world();
        let request = ticket.request.expect("a ticket is used once");
        let reads_in = world.asked.get(&request).ok_or(VerbsError::Gone)?.reads_in;
        let mut granted = self.make_qp(&mut world, qp, spec)?;
        granted.reads_out = granted.reads_out.min(reads_in);
        drop(world);
        self.asked.insert(qp, ticket);
        Ok(granted)
    }

    fn accept(&mut self, qp: QpId, _: &QueueSpec, private: &[u8]) -> Result<(), VerbsError> {
        let mut ticket = self.asked.remove(&qp).ok_or(VerbsError::Gone)?;
        let request = ticket.request.take().expect("a ticket is used once");
        let mut world = self.fabric.world();
        let asker = world.asked.remove(&request).ok_or(VerbsError::Gone)?.from;
        let taker = (self.end, qp);
        if !world.join(asker, taker) {
            world.soon(Happening::Left { which: taker });
            return Ok(());
        }
        world.established(asker, taker, private);
        Ok(())
    }

    fn resolve(&mut self, qp: QpId, to: SocketAddr) -> Result<(), VerbsError> {
        self.to.insert(qp, to);
        self.fabric.world().soon(Happening::Resolved { which: (self.end, qp), to });
        Ok(())
    }

    fn make(&mut self, qp: QpId, spec: &QueueSpec) -> Result<Granted, VerbsError> {
        self.make_qp(&mut self.fabric.world(), qp, spec)
    }

    fn connect(&mut self, qp: QpId, spec: &QueueSpec, private: &[u8]) -> Result<(), VerbsError> {
        let to = self.to.remove(&qp).ok_or(VerbsError::Gone)?;
        let (private, from) = (private.to_vec(), (self.end, qp));
        let (reads_in, reads_out) = (spec.reads_in, spec.reads_out);
        self.fabric.world().soon(Happening::Ask { from, to, private, reads_in, reads_out });
        Ok(())
    }

    fn break_off(&mut self, qp: QpId) {
        self.to.remove(&qp);
        drop(self.asked.remove(&qp));
        let (mut world, which) = (self.fabric.world(), (self.end, qp));
        if !world.is_broken(which) {
            world.break_qp(which);
        }
        world.tell_peer(which);
    }

    fn destroy(&mut self, qp: QpId) {
        // Completions that were not reaped stay, as they do with soft RoCE.
        self.fabric.world().qps.remove(&(self.end, qp));
    }

    fn send<'a>(&mut self, qp: QpId, items: impl Iterator<Item = Item<'a>>) -> Result<(), usize> {
        let (mut world, which) = (self.fabric.world(), (self.end, qp));
        for (nth, item) in items.enumerate() {
            let kind = match item.work {
                Work::Send { buf, .. } | Work::Read { buf, .. } | Work::Write { data: Piece::Own(buf), .. }
                    if !world.is_registered(buf) =>
                {
                    Kind::Unregistered
                }
                Work::Send { buf, invalidate } => Kind::Send { bytes: buf.to_vec(), invalidate: *invalidate },
                Work::Write { data, to } => Kind::Write { bytes: data.to_vec(), to: *to },
                Work::Read { buf, from } => Kind::Read { len: buf.len(), from: *from },
                Work::Receive { .. } => unreachable!("receives have a queue of their own"),
            };
            let outgoing = Outgoing { number: item.number, signalled: item.signalled, kind };
            world.qps.get_mut(&which).ok_or(nth)?.outgoing.push_back(outgoing);
        }
        if world.is_broken(which) {
            world.break_qp(which);
        }
        world.move_on(which);
        Ok(())
    }

    fn receive<'a>(&mut self, qp: QpId, items: impl Iterator<Item = Item<'a>>) -> Result<(), usize> {
        let (mut world, which) = (self.fabric.world(), (self.end, qp));
        for (nth, item) in items.enumerate() {
            let Work::Receive { head, data } = item.work else { unreachable!("sends have a queue of their own") };
            if !world.is_registered(head) || data.as_ref().is_some_and(|data| !world.is_registered(data)) {
                return Err(nth);
            }
            world.qps.get_mut(&which).ok_or(nth)?.receives.push_back((item.number, item.work.bytes()));
        }
        if world.is_broken(which) {
            world.break_qp(which);
        }
        Ok(())
    }

    fn fill(&mut self, number: u64, work: &mut Work) {
        let Some(bytes) = self.filled.remove(&number) else { return };
        match work {
            Work::Receive { head, data } => {
                let first = bytes.len().min(head.len());
                head[..first].copy_from_slice(&bytes[..first]);
                if let Some(data) = data {
                    data[..bytes.len() - first].copy_from_slice(&bytes[first..]);
                }
            }
            Work::Read { buf, .. } => buf.copy_from_slice(&bytes),
            Work::Send { .. } | Work::Write { .. } => {}
        }
    }

    fn lend(&mut self, _: QpId, buf: &Buf) -> Result<Remote, VerbsError> {
        let mut world = self.fabric.world();
        if world.is_registered(buf) { Ok(world.lend(self.end, buf)) } else { Err(VerbsError::NotRegistered) }
    }

    fn withdraw(&mut self, remote: Remote, buf: &mut Buf) {
        self.fabric.world().withdraw(remote, buf);
    }

    fn reap(&mut self, now: Instant, reaped: &mut Vec<Reaped>) {
        let mut world = self.fabric.world();
        world.run_until(now);
        self.filled.clear();
        for (one, bytes) in world.ends[self.end].completions.drain(..) {
            if one.result != Err(WorkError::Flushed) && !bytes.is_empty() {
                self.filled.insert(one.number, bytes);
            }
            reaped.push(one);
        }
    }

    fn look(&mut self, now: Instant, _: bool, noticed: &mut Vec<Noticed>) {
        let mut world = self.fabric.world();
        world.run_until(now);
        self.show(&mut world);
        noticed.extend(world.ends[self.end].noticed.drain(..));
    }

    fn arm(&mut self) -> bool {
        let world = self.fabric.world();
        let end = &world.ends[self.end];
        end.noticed.is_empty() && end.completions.is_empty() && world.to_show.is_empty()
    }

    fn bell(&self) -> Option<Arc<EventFd>> {
        None
    }

    fn next_deadline(&self) -> Instant {
        if self.fabric.world().to_show.is_empty() { self.fabric.world().next_deadline() } else { Instant(0) }
    }
}

impl Drop for SimHardware {
    fn drop(&mut self) {
        self.asked.clear();
        let mut world = self.fabric.world();
        let mine: Vec<_> = world.qps.keys().filter(|(end, _)| *end == self.end).copied().collect();
        for which in mine {
            world.tell_peer(which);
            world.qps.remove(&which);
        }
        world.listeners.retain(|_, (end, _)| *end != self.end);
        world.ends[self.end].completions.clear();
        let unanswered = std::mem::take(&mut world.ends[self.end].noticed);
        drop(world);
        // Requests among them refuse, which locks.
        drop(unanswered);
    }
}
