//! The states of a queue pair on a device that says what the test wants: runs recorded on soft RoCE, and what no device would say.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use ringway_reactor::event::EventFd;
use ringway_reactor::sim::Rng;

use super::*;
use crate::endpoint::Endpoint;
use crate::hardware::{Granted, Hardware, Item, Noticed, Reaped};
use crate::verbs::{Device, DeviceId};

/// What the test and the device share.
#[derive(Default)]
struct Script {
    /// Numbers of work given and not reported, sends and receives, in the order in which they were given.
    sends: Vec<(u64, bool)>,
    receives: Vec<u64>,
    reaped: Vec<Reaped>,
    noticed: Vec<Noticed>,
    /// The next post takes only so many.
    takes: Option<usize>,
    broken_off: usize,
    destroyed: usize,
}

#[derive(Clone, Default)]
struct Scripted(Arc<Mutex<Script>>);

impl Scripted {
    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.0.lock().unwrap()
    }

    fn report(&self, number: u64, result: Result<u32, WorkError>) {
        self.script().reaped.push(Reaped { number, result, invalidated: None });
    }
}

impl Hardware for Scripted {
    type Ticket = ();

    fn devices(&self) -> Vec<Device> {
        Vec::new()
    }
    fn listen(&mut self, _: ListenerId, addr: SocketAddr) -> Result<SocketAddr, VerbsError> {
        Ok(addr)
    }
    fn close_listener(&mut self, _: ListenerId) {}
    fn reject(&mut self, (): (), _: &[u8]) {}
    fn take(&mut self, qp: QpId, (): (), spec: &QueueSpec) -> Result<Granted, VerbsError> {
        self.make(qp, spec)
    }
    fn accept(&mut self, _: QpId, _: &QueueSpec, _: &[u8]) -> Result<(), VerbsError> {
        Ok(())
    }
    fn resolve(&mut self, qp: QpId, _: SocketAddr) -> Result<(), VerbsError> {
        self.script().noticed.push(Noticed::Resolved { qp });
        Ok(())
    }
    fn make(&mut self, _: QpId, spec: &QueueSpec) -> Result<Granted, VerbsError> {
        let (reads_out, reads_in) = (spec.reads_out, spec.reads_in);
        Ok(Granted { device: DeviceId(0), inline_max: 0, reads_out, reads_in })
    }
    fn connect(&mut self, qp: QpId, _: &QueueSpec, _: &[u8]) -> Result<(), VerbsError> {
        self.script().noticed.push(Noticed::Established { qp, private: Vec::new(), reads_out: None });
        Ok(())
    }
    fn break_off(&mut self, _: QpId) {
        self.script().broken_off += 1;
    }
    fn destroy(&mut self, _: QpId) {
        self.script().destroyed += 1;
    }
    fn send<'a>(&mut self, _: QpId, items: impl Iterator<Item = Item<'a>>) -> Result<(), usize> {
        let mut script = self.script();
        let takes = script.takes.take();
        for (nth, item) in items.enumerate() {
            if takes == Some(nth) {
                return Err(nth);
            }
            script.sends.push((item.number, item.signalled));
        }
        Ok(())
    }
    fn receive<'a>(&mut self, _: QpId, items: impl Iterator<Item = Item<'a>>) -> Result<(), usize> {
        let mut script = self.script();
        script.receives.extend(items.map(|item| item.number));
        Ok(())
    }
    fn fill(&mut self, _: u64, _: &mut Work) {}
    fn lend(&mut self, _: QpId, _: &Buf) -> Result<Remote, VerbsError> {
        Err(VerbsError::NotRegistered)
    }
    fn withdraw(&mut self, _: Remote, _: &mut Buf) {}
    fn reap(&mut self, _: Instant, reaped: &mut Vec<Reaped>) {
        reaped.append(&mut self.script().reaped);
    }
    fn look(&mut self, _: Instant, _: bool, noticed: &mut Vec<Noticed>) {
        noticed.append(&mut self.script().noticed);
    }
    fn arm(&mut self) -> bool {
        true
    }
    fn bell(&self) -> Option<Arc<EventFd>> {
        None
    }
    fn next_deadline(&self) -> Instant {
        Instant::NEVER
    }
}

/// An endpoint on a scripted device, with one queue pair that is connected.
struct Machine {
    device: Scripted,
    verbs: Endpoint<Scripted>,
    pool: &'static BufPool,
    qp: QpId,
    now: u64,
    out: BTreeSet<u64>,
    last: u64,
    said: Vec<String>,
    gone: bool,
}

impl Machine {
    fn new() -> Machine {
        let device = Scripted::default();
        let mut verbs = Endpoint::new(device.clone());
        let qp = verbs.connect("10.0.0.1:1".parse().unwrap(), &SPEC, b"").unwrap();
        let (pool, out) = (pool(), BTreeSet::new());
        let mut machine = Machine { device, verbs, pool, qp, now: 1, out, last: 0, said: Vec::new(), gone: false };
        machine.poll();
        machine.poll();
        assert_eq!(std::mem::take(&mut machine.said), ["Established"]);
        machine
    }

    fn post(&mut self, kind: u64) -> u64 {
        self.last += 1;
        let mut buf = self.pool.get(64).unwrap();
        buf.truncate(16);
        let at = Remote { address: 0, key: 0 };
        let work = match kind {
            0 => Work::Receive { head: buf, data: None },
            1 => Work::Send { buf, invalidate: None },
            2 => Work::Write { data: buf.into(), to: at },
            _ => Work::Read { buf, from: at },
        };
        self.out.insert(self.last);
        self.verbs.post(self.qp, self.last, work);
        self.last
    }

    fn poll(&mut self) {
        let mut events = Vec::new();
        self.verbs.poll(Instant(self.now), &mut events);
        for event in events {
            assert!(!self.gone || matches!(event, Event::Done { result: Err(WorkError::Flushed), .. }), "{event:?}");
            match event {
                Event::Done { token, result, .. } => {
                    assert!(self.out.remove(&token), "{token} comes back once");
                    self.said.push(format!("{token} {result:?}"));
                }
                Event::Gone { .. } => {
                    assert!(self.out.is_empty(), "all came back before");
                    self.gone = true;
                    self.said.push("Gone".to_owned());
                }
                Event::Established { .. } => self.said.push("Established".to_owned()),
                event => self.said.push(format!("{event:?}").replace(&format!("{:?}", self.qp), "qp")),
            }
        }
    }

    /// The device never says what became of the rest.
    fn expire(&mut self) {
        self.now += 2_000_000_000;
        self.poll();
    }
}

#[test]
fn a_run_recorded_on_soft_roce_in_which_the_peer_reads_what_it_may_not() {
    // The asking side: receives posted, one read of memory that was not lent.
    let mut machine = Machine::new();
    for _ in 0..3 {
        machine.post(0);
    }
    machine.post(3);
    machine.post(1);
    machine.poll();
    let script = machine.device.script();
    let (sends, receives) = (script.sends.clone(), script.receives.clone());
    drop(script);
    // As it came: the read, then flushes of both queues, the receives' first.
    machine.device.report(sends[0].0, Err(WorkError::RemoteAccess));
    receives.iter().for_each(|&number| machine.device.report(number, Err(WorkError::Flushed)));
    machine.device.report(sends[1].0, Err(WorkError::Flushed));
    machine.poll();
    assert_eq!(
        machine.said,
        [
            "4 Err(RemoteAccess)",
            "Disconnected { qp: qp, why: Work(RemoteAccess) }",
            "1 Err(Flushed)",
            "2 Err(Flushed)",
            "3 Err(Flushed)",
            "5 Err(Flushed)",
            "Gone"
        ]
    );
    let script = machine.device.script();
    assert_eq!((script.broken_off, script.destroyed), (1, 1));
}

#[test]
fn a_run_recorded_on_soft_roce_in_which_the_peer_leaves() {
    let mut machine = Machine::new();
    machine.post(0);
    machine.post(2);
    machine.post(1);
    machine.poll();
    let script = machine.device.script();
    let (sends, receives) = (script.sends.clone(), script.receives.clone());
    drop(script);
    assert_eq!(sends.iter().map(|&(_, signalled)| signalled).collect::<Vec<_>>(), [false, true]);
    machine.device.report(sends[1].0, Ok(0));
    machine.poll();
    let qp = machine.qp;
    machine.device.script().noticed.push(Noticed::Broken { qp, why: Ending::Peer });
    machine.poll();
    machine.device.report(receives[0], Err(WorkError::Flushed));
    machine.poll();
    assert_eq!(machine.said, ["2 Ok(16)", "3 Ok(16)", "Disconnected { qp: qp, why: Peer }", "1 Err(Flushed)", "Gone"]);
}

#[test]
fn what_a_device_never_reports_comes_back_when_the_queue_pair_is_destroyed() {
    let mut machine = Machine::new();
    for kind in [0, 1, 2, 3, 3, 3, 3, 3, 0] {
        machine.post(kind);
    }
    machine.poll();
    machine.verbs.disconnect(machine.qp);
    machine.poll();
    assert!(!machine.gone && machine.device.script().destroyed == 0, "{:?}", machine.said);
    machine.expire();
    assert!(machine.gone && machine.out.is_empty());
    assert_eq!((machine.pool.in_use(), machine.device.script().destroyed), (0, 1));
    // A completion that comes after that is nobody's.
    let late = machine.device.script().sends[0].0;
    machine.device.report(late, Ok(0));
    let said = machine.said.len();
    machine.poll();
    assert_eq!(machine.said.len(), said);
}

#[test]
fn a_device_that_takes_only_a_part_of_a_chain_breaks_the_queue_pair() {
    let mut machine = Machine::new();
    for _ in 0..4 {
        machine.post(1);
    }
    machine.device.script().takes = Some(2);
    machine.poll();
    assert_eq!(machine.said[..2], ["3 Err(LocalOperation)", "4 Err(Flushed)"]);
    machine.expire();
    assert!(machine.gone);
    assert_eq!(machine.pool.in_use(), 0);
}

/// A device that says anything: numbers it was never given, numbers twice, statuses in any order, or nothing.
fn anything(seed: u64) {
    const STATUSES: [Result<u32, WorkError>; 5] = [
        Ok(16),
        Err(WorkError::Flushed),
        Err(WorkError::RemoteAccess),
        Err(WorkError::RnrExceeded),
        Err(WorkError::Other(21)),
    ];
    let mut rng = Rng::new(seed);
    let mut machine = Machine::new();
    for _ in 0..200 {
        if machine.out.len() < SPEC.receives as usize {
            let kind = rng.below(4);
            machine.post(kind);
        }
        let all: Vec<u64> = {
            let script = machine.device.script();
            script.sends.iter().map(|&(number, _)| number).chain(script.receives.iter().copied()).collect()
        };
        // Mostly what a device says, now and then what it never would.
        let number = match rng.below(8) {
            0 => rng.bits(),
            _ if all.is_empty() => continue,
            1 => all[rng.below(all.len() as u64) as usize] ^ (1 << rng.below(64)),
            _ => all[rng.below(all.len() as u64) as usize],
        };
        let status = if rng.one_in(20) { STATUSES[1 + rng.below(4) as usize] } else { STATUSES[0] };
        machine.device.report(number, status);
        machine.now += rng.below(50_000_000);
        machine.poll();
        if rng.one_in(100) {
            machine.verbs.disconnect(machine.qp);
        }
    }
    machine.verbs.disconnect(machine.qp);
    machine.poll();
    machine.expire();
    assert!(machine.gone && machine.out.is_empty(), "seed {seed}");
    assert_eq!((machine.pool.in_use(), machine.device.script().destroyed), (0, 1), "seed {seed}");
}

#[test]
fn whatever_a_device_says_each_work_comes_back_once_and_the_queue_pair_goes() {
    for seed in 0..300 {
        anything(seed);
    }
}

#[test]
fn a_chain_of_many_is_signalled_once_and_rung_once() {
    let mut machine = Machine::new();
    for _ in 0..8 {
        machine.post(2);
        machine.post(1);
    }
    machine.poll();
    let counts = machine.verbs.counts(machine.qp).unwrap();
    assert_eq!((counts.writes, counts.sends, counts.signalled, counts.doorbells), (8, 8, 1, 1));
}
