//! What a simulated fabric knows, and what happens in it when time passes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use ringway_reactor::buf::{Buf, BufPool};
use ringway_reactor::io::{Instant, Wake};
use ringway_reactor::sim::Rng;

use super::SimConfig;
use crate::hardware::{Noticed, Reaped};
use crate::verbs::{Device, Ending, ListenerId, QpId, Refusal, Remote, WorkError};

/// Bytes of private data as connections really carry them: padded, to these.
const REFUSAL_BYTES: usize = 148;
const ACCEPT_BYTES: usize = 196;

/// Errors that chance chooses from: all that a completion can have.
const ERRORS: [WorkError; 13] = [
    WorkError::LocalLength,
    WorkError::LocalOperation,
    WorkError::LocalProtection,
    WorkError::LocalAccess,
    WorkError::BadResponse,
    WorkError::RemoteInvalid,
    WorkError::RemoteAccess,
    WorkError::RemoteOperation,
    WorkError::RetryExceeded,
    WorkError::RnrExceeded,
    WorkError::RemoteAborted,
    WorkError::Fatal,
    WorkError::Other(21),
];

/// A queue pair, wherever it is.
pub(super) type Which = (usize, QpId);

/// One endpoint.
pub(super) struct End {
    pub(super) device: Device,
    wake: Option<Arc<dyn Wake>>,
    /// Completions, with what a receive or read is to be filled with.
    pub(super) completions: VecDeque<(Reaped, Vec<u8>)>,
    pub(super) noticed: VecDeque<Noticed>,
    silent: bool,
}

impl End {
    pub(super) fn new(device: Device, wake: Option<Arc<dyn Wake>>) -> End {
        End { device, wake, completions: VecDeque::new(), noticed: VecDeque::new(), silent: false }
    }
}

pub(super) enum Kind {
    Send {
        bytes: Vec<u8>,
        invalidate: Option<u32>,
    },
    Write {
        bytes: Vec<u8>,
        to: Remote,
    },
    Read {
        len: usize,
        from: Remote,
    },
    /// The device refuses it: its buffer is not registered.
    Unregistered,
}

pub(super) struct Outgoing {
    pub(super) number: u64,
    pub(super) signalled: bool,
    pub(super) kind: Kind,
}

#[derive(Default)]
pub(super) struct Qp {
    peer: Option<Which>,
    broken: bool,
    pub(super) outgoing: VecDeque<Outgoing>,
    /// Number and room of each receive.
    pub(super) receives: VecDeque<(u64, usize)>,
    /// The head of what goes out is on its way.
    moving: bool,
    retries: u32,
    to_fail: VecDeque<WorkError>,
}

struct Region {
    owner: usize,
    address: u64,
    bytes: Vec<u8>,
}

/// A peer that waits for an answer.
pub(super) struct Asked {
    pub(super) from: Which,
    pub(super) reads_in: u8,
}

/// A request on its way to a listener.
pub(super) struct ToShow {
    pub(super) request: u64,
    pub(super) end: usize,
    pub(super) listener: ListenerId,
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) private: Vec<u8>,
    pub(super) reads_in: u8,
    pub(super) reads_out: u8,
}

pub(super) enum Happening {
    Resolved { which: Which, to: SocketAddr },
    Ask { from: Which, to: SocketAddr, private: Vec<u8>, reads_in: u8, reads_out: u8 },
    Refused { which: Which, why: Refusal },
    Established { which: Which, private: Vec<u8> },
    Arrive { which: Which },
    Left { which: Which },
    Unanswered { which: Which },
}

pub(super) struct World {
    config: SimConfig,
    rng: Rng,
    pub(super) now: Instant,
    order: u64,
    agenda: BTreeMap<(Instant, u64), Happening>,
    pub(super) ends: Vec<End>,
    pub(super) qps: BTreeMap<Which, Qp>,
    pub(super) listeners: BTreeMap<SocketAddr, (usize, ListenerId)>,
    pub(super) asked: BTreeMap<u64, Asked>,
    /// Requests that are to be shown to their listeners, which needs a ticket and is done by the hardware.
    pub(super) to_show: Vec<ToShow>,
    regions: HashMap<u32, Region>,
    pools: Vec<&'static BufPool>,
    last_key: u32,
    next_address: u64,
}

impl World {
    pub(super) fn new(seed: u64, config: SimConfig) -> World {
        World {
            config,
            rng: Rng::new(seed),
            now: Instant(0),
            order: 0,
            agenda: BTreeMap::new(),
            ends: Vec::new(),
            qps: BTreeMap::new(),
            listeners: BTreeMap::new(),
            asked: BTreeMap::new(),
            to_show: Vec::new(),
            regions: HashMap::new(),
            pools: Vec::new(),
            last_key: 0x100,
            next_address: 0x7f00_0000_0000,
        }
    }

    pub(super) fn register(&mut self, pool: &'static BufPool) {
        self.pools.push(pool);
    }

    pub(super) fn is_registered(&self, buf: &Buf) -> bool {
        self.pools.iter().any(|pool| std::ptr::eq(*pool, buf.pool()))
    }

    /// Lets what is due happen.
    pub(super) fn run_until(&mut self, now: Instant) {
        while let Some(entry) = self.agenda.first_entry()
            && entry.key().0 <= now
        {
            let ((at, _), happening) = entry.remove_entry();
            self.now = self.now.max(at);
            self.apply(happening);
        }
        self.now = self.now.max(now);
    }

    pub(super) fn next_deadline(&self) -> Instant {
        self.agenda.first_key_value().map_or(Instant::NEVER, |((at, _), _)| *at)
    }

    fn after(&mut self, ns: u64, happening: Happening) {
        self.order += 1;
        self.agenda.insert((self.now.plus_ns(ns), self.order), happening);
        // Whoever sleeps does so until a deadline it took before: it has to take it again.
        self.ends.iter().filter_map(|end| end.wake.as_ref()).for_each(|wake| wake.wake());
    }

    pub(super) fn soon(&mut self, happening: Happening) {
        let delay = self.rng.within(&self.config.delay_ns);
        self.after(delay, happening);
    }

    fn notice(&mut self, end: usize, noticed: Noticed) {
        self.ends[end].noticed.push_back(noticed);
        if let Some(wake) = &self.ends[end].wake {
            wake.wake();
        }
    }

    fn complete(&mut self, end: usize, number: u64, result: Result<u32, WorkError>, bytes: Vec<u8>, key: Option<u32>) {
        let reaped = Reaped { number, result, invalidated: key };
        self.ends[end].completions.push_back((reaped, bytes));
        if let Some(wake) = &self.ends[end].wake {
            wake.wake();
        }
    }

    fn apply(&mut self, happening: Happening) {
        match happening {
            Happening::Resolved { which: (end, qp), to } => {
                let gone = self.ends[end].device.gone;
                let why = Refusal::NoRoute(format!("no device leads to {to}"));
                self.notice(end, if gone { Noticed::Refused { qp, why } } else { Noticed::Resolved { qp } });
            }
            Happening::Ask { from, to, private, reads_in, reads_out } => {
                self.ask(from, to, private, reads_in, reads_out);
            }
            Happening::Refused { which: (end, qp), why } => self.notice(end, Noticed::Refused { qp, why }),
            Happening::Established { which: (end, qp), private } => {
                if self.qps.get(&(end, qp)).is_some_and(|qp| !qp.broken) {
                    self.notice(end, Noticed::Established { qp, private, reads_out: None });
                }
            }
            Happening::Arrive { which } => self.arrive(which),
            Happening::Unanswered { which } => self.fail_head(which, WorkError::RetryExceeded),
            Happening::Left { which: (end, qp) } => {
                if self.qps.get(&(end, qp)).is_some_and(|qp| !qp.broken) {
                    self.notice(end, Noticed::Broken { qp, why: Ending::Peer });
                }
            }
        }
    }

    fn ask(&mut self, from: Which, to: SocketAddr, private: Vec<u8>, reads_in: u8, reads_out: u8) {
        let wildcard = SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), to.port());
        let listener = self.listeners.get(&to).or_else(|| self.listeners.get(&wildcard)).copied();
        match listener {
            Some((end, listener)) if !self.ends[end].device.gone && !self.ends[end].silent => {
                self.order += 1;
                let request = self.order;
                self.asked.insert(request, Asked { from, reads_in });
                let peer = SocketAddr::new([10, 0, 0, from.0 as u8 + 1].into(), 40_000 + from.1.0 as u16 % 20_000);
                self.to_show.push(ToShow { request, end, listener, peer, local: to, private, reads_in, reads_out });
                if let Some(wake) = &self.ends[end].wake {
                    wake.wake();
                }
            }
            Some(_) => {} // no answer: the asker's own patience ends
            None => self.soon(Happening::Refused { which: from, why: Refusal::NobodyListens }),
        }
    }

    /// The head of what a queue pair sends arrives at its peer.
    fn arrive(&mut self, which: Which) {
        let Some(qp) = self.qps.get_mut(&which) else { return };
        qp.moving = false;
        if qp.broken || qp.outgoing.is_empty() {
            return;
        }
        let by_chance = self.rng.chance(self.config.failures_per_million);
        let chosen = ERRORS[self.rng.below(ERRORS.len() as u64) as usize];
        let qp = self.qps.get_mut(&which).expect("looked at above");
        if let Some(error) = qp.to_fail.pop_front().or(by_chance.then_some(chosen)) {
            return self.fail_head(which, error);
        }
        let peer = qp.peer.filter(|peer| !self.ends[peer.0].silent);
        let Some(peer) = peer.filter(|peer| self.qps.get(peer).is_some_and(|qp| !qp.broken)) else {
            return self.after(self.config.retry_ns, Happening::Unanswered { which });
        };
        let qp = self.qps.get_mut(&which).expect("looked at above");
        let Outgoing { number, signalled, kind } = qp.outgoing.pop_front().expect("looked at above");
        let done = match &kind {
            Kind::Unregistered => Err(WorkError::LocalProtection),
            Kind::Write { bytes, to } => self.region(peer.0, *to, bytes.len()).map(|at| {
                at.copy_from_slice(bytes);
                Some(Vec::new())
            }),
            Kind::Read { len, from } => self.region(peer.0, *from, *len).map(|at| Some(at.to_vec())),
            Kind::Send { bytes, invalidate } => self.message(peer, bytes, *invalidate),
        };
        match done {
            Ok(Some(bytes)) => {
                let qp = self.qps.get_mut(&which).expect("a message to the peer removes nobody");
                qp.retries = 0;
                if signalled {
                    self.complete(which.0, number, Ok(bytes.len() as u32), bytes, None);
                }
                self.move_on(which);
            }
            Ok(None) => self.not_ready(which, Outgoing { number, signalled, kind }),
            Err(error) => {
                let qp = self.qps.get_mut(&which).expect("looked at above");
                qp.outgoing.push_front(Outgoing { number, signalled, kind });
                self.fail_head(which, error);
            }
        }
    }

    /// A message at its receiver; `None` if that is not ready.
    fn message(&mut self, to: Which, bytes: &[u8], invalidate: Option<u32>) -> Result<Option<Vec<u8>>, WorkError> {
        let qp = self.qps.get_mut(&to).expect("the caller looked");
        let Some((number, room)) = qp.receives.pop_front() else { return Ok(None) };
        if room < bytes.len() {
            self.complete(to.0, number, Err(WorkError::LocalLength), Vec::new(), None);
            self.break_qp(to);
            return Err(WorkError::RemoteInvalid);
        }
        if let Some(key) = invalidate
            && self.regions.get(&key).is_none_or(|region| region.owner != to.0)
        {
            self.qps.get_mut(&to).expect("looked at above").receives.push_front((number, room));
            return Err(WorkError::RemoteAccess);
        }
        if let Some(key) = invalidate {
            self.regions.get_mut(&key).expect("looked at above").address = 0;
        }
        self.complete(to.0, number, Ok(bytes.len() as u32), bytes.to_vec(), invalidate);
        Ok(Some(Vec::new()))
    }

    fn region(&mut self, owner: usize, remote: Remote, len: usize) -> Result<&mut [u8], WorkError> {
        let region = self.regions.get_mut(&remote.key).filter(|region| region.owner == owner && region.address != 0);
        let region = region.ok_or(WorkError::RemoteAccess)?;
        let at = remote.address.checked_sub(region.address).ok_or(WorkError::RemoteAccess)?;
        let end = at.checked_add(len as u64).filter(|&end| end <= region.bytes.len() as u64);
        let end = end.ok_or(WorkError::RemoteAccess)?;
        Ok(&mut region.bytes[at as usize..end as usize])
    }

    fn not_ready(&mut self, which: Which, head: Outgoing) {
        let qp = self.qps.get_mut(&which).expect("the caller looked");
        qp.outgoing.push_front(head);
        qp.retries += 1;
        if qp.retries > self.config.rnr_retries {
            return self.fail_head(which, WorkError::RnrExceeded);
        }
        qp.moving = true;
        self.after(self.config.rnr_delay_ns, Happening::Arrive { which });
    }

    fn fail_head(&mut self, which: Which, error: WorkError) {
        let Some(qp) = self.qps.get_mut(&which).filter(|qp| !qp.broken) else { return };
        let (peer, head) = (qp.peer, qp.outgoing.pop_front());
        if let Some(head) = head {
            self.complete(which.0, head.number, Err(error), Vec::new(), None);
        }
        self.break_qp(which);
        // The card of the side that was asked for what it refuses breaks its queue pair too.
        if let (Some(peer), WorkError::RemoteAccess | WorkError::RemoteInvalid) = (peer, error)
            && self.qps.get(&peer).is_some_and(|qp| !qp.broken)
        {
            self.break_qp(peer);
            self.notice(peer.0, Noticed::Broken { qp: peer.1, why: Ending::Fatal });
        }
    }

    /// Sends what is next.
    pub(super) fn move_on(&mut self, which: Which) {
        let Some(qp) = self.qps.get_mut(&which) else { return };
        if !qp.moving && !qp.outgoing.is_empty() && !qp.broken {
            qp.moving = true;
            self.soon(Happening::Arrive { which });
        }
    }

    /// The error state: all that is posted is flushed, each with a completion of its own.
    pub(super) fn break_qp(&mut self, which: Which) {
        let Some(qp) = self.qps.get_mut(&which) else { return };
        qp.broken = true;
        let sends = qp.outgoing.drain(..).map(|outgoing| outgoing.number);
        let all: Vec<u64> = sends.chain(qp.receives.drain(..).map(|(number, _)| number)).collect();
        for number in all {
            self.complete(which.0, number, Err(WorkError::Flushed), Vec::new(), None);
        }
    }

    /// The peer of a queue pair hears that it is gone.
    pub(super) fn tell_peer(&mut self, which: Which) {
        if let Some(peer) = self.qps.get(&which).and_then(|qp| qp.peer)
            && !self.ends[which.0].silent
        {
            self.soon(Happening::Left { which: peer });
        }
    }

    pub(super) fn join(&mut self, one: Which, other: Which) -> bool {
        if !self.qps.contains_key(&one) || self.qps.get(&other).is_none_or(|qp| qp.broken) {
            return false;
        }
        for (mine, peer) in [(one, other), (other, one)] {
            self.qps.get_mut(&mine).expect("looked at above").peer = Some(peer);
        }
        true
    }

    pub(super) fn is_broken(&self, which: Which) -> bool {
        self.qps.get(&which).is_none_or(|qp| qp.broken)
    }

    pub(super) fn refuse(&mut self, request: u64, private: &[u8]) {
        if let Some(asked) = self.asked.remove(&request) {
            let why = Refusal::Rejected(padded(private, REFUSAL_BYTES));
            self.soon(Happening::Refused { which: asked.from, why });
        }
    }

    pub(super) fn established(&mut self, asker: Which, taker: Which, private: &[u8]) {
        self.soon(Happening::Established { which: asker, private: padded(private, ACCEPT_BYTES) });
        // Its own card tells it after the asker knows: a message may arrive before.
        self.soon(Happening::Established { which: taker, private: Vec::new() });
    }

    pub(super) fn lend(&mut self, owner: usize, buf: &Buf) -> Remote {
        self.last_key += 0x101;
        let (key, address) = (self.last_key, self.next_address);
        self.next_address += (buf.len() as u64).next_multiple_of(4096) + 4096;
        self.regions.insert(key, Region { owner, address, bytes: buf.to_vec() });
        Remote { address, key }
    }

    pub(super) fn withdraw(&mut self, remote: Remote, buf: &mut Buf) {
        let region = self.regions.remove(&remote.key).expect("what is withdrawn was lent");
        buf.copy_from_slice(&region.bytes);
    }

    pub(super) fn lent(&self) -> usize {
        self.regions.len()
    }

    pub(super) fn queue_pairs(&self) -> usize {
        self.qps.len()
    }

    pub(super) fn cut(&mut self, end: usize, qp: QpId) {
        let which = (end, qp);
        self.tell_peer(which);
        self.soon(Happening::Left { which });
    }

    pub(super) fn fail_next(&mut self, end: usize, qp: QpId, error: WorkError) {
        if let Some(qp) = self.qps.get_mut(&(end, qp)) {
            qp.to_fail.push_back(error);
        }
    }

    pub(super) fn silence(&mut self, end: usize) {
        self.ends[end].silent = true;
    }

    pub(super) fn remove_device(&mut self, end: usize) {
        self.ends[end].device.gone = true;
        let on_it: Vec<Which> = self.qps.keys().filter(|(at, _)| *at == end).copied().collect();
        for which in on_it {
            self.break_qp(which);
            self.tell_peer(which);
        }
        let device = self.ends[end].device.id;
        self.notice(end, Noticed::DeviceGone { device });
        let lost: Vec<ListenerId> =
            self.listeners.values().filter(|(at, _)| *at == end).map(|&(_, listener)| listener).collect();
        self.listeners.retain(|_, (at, _)| *at != end);
        for listener in lost {
            self.notice(end, Noticed::ListenerLost { listener });
        }
    }

    pub(super) fn return_device(&mut self, end: usize) {
        self.ends[end].device.gone = false;
        let device = self.ends[end].device.id;
        self.notice(end, Noticed::DeviceAdded { device });
    }
}

fn padded(private: &[u8], to: usize) -> Vec<u8> {
    let mut private = private.to_vec();
    private.resize(to.max(private.len()), 0);
    private
}
