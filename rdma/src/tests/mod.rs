//! Two endpoints on a simulated fabric: everything that [`crate::verbs`] promises, without hardware.

mod faults;
mod machine;
mod storm;

use std::collections::BTreeMap;

use ringway_reactor::buf::{Buf, BufPool, BufPoolConfig};
use ringway_reactor::data::Piece;
use ringway_reactor::io::Instant;

use crate::sim::{EndpointId, Fabric};
use crate::verbs::{Ending, Event, ListenerId, QpId, QueueSpec, Refusal, Remote, Verbs, VerbsError, Work, WorkError};

const SPEC: QueueSpec = QueueSpec { receives: 8, sends: 16, reads_out: 4, reads_in: 4 };

fn pool() -> &'static BufPool {
    BufPool::leak(&BufPoolConfig { classes: vec![(4096, 256), (65536, 8)] }, 0)
}

/// One endpoint, what happened at it, and what it has out.
struct Side {
    verbs: Box<dyn Verbs>,
    id: EndpointId,
    events: Vec<Event>,
    out: BTreeMap<u64, QpId>,
    last_token: u64,
}

impl Side {
    fn new(fabric: &Fabric, pool: &'static BufPool) -> Side {
        let (verbs, id) = fabric.endpoint(pool, None, None);
        Side { verbs, id, events: Vec::new(), out: BTreeMap::new(), last_token: 0 }
    }

    fn post(&mut self, qp: QpId, work: Work) -> u64 {
        self.last_token += 1;
        self.out.insert(self.last_token, qp);
        self.verbs.post(qp, self.last_token, work);
        self.last_token
    }

    fn receive(&mut self, qp: QpId, pool: &'static BufPool) -> u64 {
        let mut head = pool.get(4096).unwrap();
        head.truncate(64);
        let data = pool.get(4096);
        self.post(qp, Work::Receive { head, data })
    }

    /// Polls; each work comes back once, and none after its queue pair is gone.
    fn poll(&mut self, now: Instant) {
        let from = self.events.len();
        self.verbs.poll(now, &mut self.events);
        for event in &self.events[from..] {
            match event {
                Event::Done { qp, token, .. } => {
                    assert_eq!(self.out.remove(token), Some(*qp), "a work comes back once, from its own queue pair");
                }
                Event::Gone { qp } => {
                    assert!(self.out.values().all(|other| other != qp), "all came back before");
                    assert_eq!(self.verbs.counts(*qp), None);
                }
                _ => {}
            }
        }
    }

    fn result(&self, token: u64) -> Option<&Result<u32, WorkError>> {
        self.events.iter().find_map(|event| match event {
            Event::Done { token: other, result, .. } if *other == token => Some(result),
            _ => None,
        })
    }

    /// Takes a work out of what happened.
    fn take(&mut self, token: u64) -> (Work, Result<u32, WorkError>, Option<u32>) {
        let of = |event: &Event| matches!(event, Event::Done { token: other, .. } if *other == token);
        let place = self.events.iter().position(of).expect("it came back");
        let Event::Done { work, result, invalidated, .. } = self.events.remove(place) else { unreachable!() };
        (work, result, invalidated)
    }

    fn has(&self, what: impl Fn(&Event) -> bool) -> bool {
        self.events.iter().any(what)
    }

    fn is_gone(&self, qp: QpId) -> bool {
        self.has(|event| matches!(event, Event::Gone { qp: other } if *other == qp))
    }

    fn ending(&self, qp: QpId) -> Option<Ending> {
        self.events.iter().find_map(|event| match event {
            Event::Disconnected { qp: other, why } if *other == qp => Some(*why),
            _ => None,
        })
    }
}

/// A host, a target and their clock.
struct Two {
    fabric: Fabric,
    pool: &'static BufPool,
    host: Side,
    target: Side,
    listener: ListenerId,
    at: std::net::SocketAddr,
    now: u64,
}

impl Two {
    fn new(fabric: Fabric) -> Two {
        let pool = pool();
        let (host, mut target) = (Side::new(&fabric, pool), Side::new(&fabric, pool));
        let (listener, at) = target.verbs.listen("10.0.0.1:4420".parse().unwrap()).unwrap();
        Two { fabric, pool, host, target, listener, at, now: 0 }
    }

    fn pass(&mut self, ns: u64) {
        for _ in 0..64 {
            self.now += ns / 64;
            self.host.poll(Instant(self.now));
            self.target.poll(Instant(self.now));
        }
    }

    /// Polls until nothing is to happen within 30 s.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            self.host.poll(Instant(self.now));
            self.target.poll(Instant(self.now));
            let next = self.host.verbs.next_deadline().min(self.target.verbs.next_deadline());
            if next > Instant(self.now + 30_000_000_000) {
                return;
            }
            self.now = self.now.max(next.0);
        }
        panic!("it never settles");
    }

    /// A connection, with receives posted on both sides: host's and target's queue pair.
    fn connect(&mut self) -> (QpId, QpId) {
        self.connect_with(SPEC, SPEC)
    }

    fn connect_with(&mut self, host: QueueSpec, target: QueueSpec) -> (QpId, QpId) {
        let hosts = self.host.verbs.connect(self.at, &host, b"hello").unwrap();
        let request = self.request();
        assert_eq!(&request.private[..6], b"hello\0");
        let targets = self.target.verbs.accept(request, &target, b"welcome").unwrap();
        for _ in 0..4 {
            self.target.receive(targets, self.pool);
            self.host.receive(hosts, self.pool);
        }
        self.settle();
        let said =
            |event: &Event| matches!(event, Event::Established { private, .. } if private.starts_with(b"welcome\0"));
        assert!(self.host.has(said), "{:?}", self.host.events);
        assert!(self.target.has(|event| matches!(event, Event::Established { .. })));
        self.host.events.clear();
        self.target.events.clear();
        (hosts, targets)
    }

    fn request(&mut self) -> crate::verbs::ConnectRequest {
        for _ in 0..1_000 {
            self.pass(64_000);
            let place = self.target.events.iter().position(|event| matches!(event, Event::Request(_)));
            if let Some(place) = place {
                let Event::Request(request) = self.target.events.remove(place) else { unreachable!() };
                return request;
            }
        }
        panic!("no request arrives");
    }

    fn buf(&self, len: usize, fill: u8) -> Buf {
        let mut buf = self.pool.get(len).unwrap();
        buf.fill(fill);
        buf
    }

    /// Ends everything; nothing may be left anywhere.
    fn end(mut self, pairs: &[(QpId, QpId)]) {
        for &(host, target) in pairs {
            self.host.verbs.disconnect(host);
            self.target.verbs.disconnect(target);
        }
        self.settle();
        assert!(self.host.out.is_empty() && self.target.out.is_empty());
        self.host.events.clear();
        self.target.events.clear();
        assert_eq!((self.pool.in_use(), self.fabric.queue_pairs(), self.fabric.lent()), (0, 0, 0));
    }
}

#[test]
fn a_command_fetches_what_it_writes_and_delivers_what_it_reads_without_a_copy() {
    let mut two = Two::new(Fabric::new(1));
    let (host, target) = two.connect();
    let written = two.host.verbs.lend(host, two.buf(4096, 0xaa)).unwrap();
    let read = two.host.verbs.lend(host, two.buf(8192, 0)).unwrap();
    let capsule = two.host.post(host, Work::Send { buf: two.buf(64, 7), invalidate: None });
    two.settle();
    assert_eq!(two.host.result(capsule), Some(&Ok(64)));
    let (Work::Receive { head, .. }, Ok(64), None) = two.target.take(1) else { panic!() };
    assert_eq!(*head, [7; 64]);
    drop(head);

    let fetch = two.target.post(target, Work::Read { buf: two.buf(4096, 0), from: written.remote });
    let first = Remote { address: read.remote.address + 4096, ..read.remote };
    let deliver = two.target.post(target, Work::Write { data: two.buf(4096, 0xbb).into(), to: first });
    let zeros = two.target.post(target, Work::Write { data: Piece::Zeros(4096), to: read.remote });
    let key = read.remote.key;
    let answer = two.target.post(target, Work::Send { buf: two.buf(16, 9), invalidate: Some(key) });
    let signalled = two.target.verbs.counts(target).unwrap().signalled;
    two.settle();
    for token in [deliver, zeros, answer] {
        assert!(matches!(two.target.result(token), Some(Ok(_))));
    }
    let (Work::Read { buf, .. }, Ok(4096), None) = two.target.take(fetch) else { panic!() };
    assert!(buf.iter().all(|&byte| byte == 0xaa));
    let (Work::Receive { head, .. }, Ok(16), invalidated) = two.host.take(1) else { panic!() };
    assert_eq!((head[..16].to_vec(), invalidated), (vec![9; 16], Some(key)));
    let (read, written) = (two.host.verbs.withdraw(read), two.host.verbs.withdraw(written));
    assert!(read[..4096].iter().all(|&byte| byte == 0) && read[4096..].iter().all(|&byte| byte == 0xbb));

    let counts = two.target.verbs.counts(target).unwrap();
    assert_eq!((counts.reads, counts.writes, counts.sends, counts.bytes_copied), (1, 2, 1, 0));
    assert_eq!(counts.signalled - signalled, 2, "the read, and the last of the chain");
    drop((head, buf, read, written));
    two.end(&[(host, target)]);
}

#[test]
fn a_message_fills_the_head_and_then_the_page() {
    let mut two = Two::new(Fabric::new(2));
    let (host, target) = two.connect();
    let mut capsule = two.buf(4096, 5);
    capsule[..64].fill(1);
    two.host.post(host, Work::Send { buf: capsule, invalidate: None });
    two.settle();
    let (Work::Receive { head, data: Some(data) }, Ok(4096), None) = two.target.take(1) else { panic!() };
    assert_eq!(*head, [1; 64]);
    assert!(data[..4032].iter().all(|&byte| byte == 5));
    assert_eq!(data.as_ptr() as usize % 4096, 0);
    drop((head, data));
    two.end(&[(host, target)]);
}

#[test]
fn reads_wait_for_each_other_and_hold_nothing_else_up() {
    let mut two = Two::new(Fabric::new(3));
    let (host, target) = two.connect_with(QueueSpec { reads_in: 2, ..SPEC }, SPEC);
    let lent = two.host.verbs.lend(host, two.buf(4096, 3)).unwrap();
    let reads: Vec<u64> =
        (0..8).map(|_| two.target.post(target, Work::Read { buf: two.buf(512, 0), from: lent.remote })).collect();
    two.target.post(target, Work::Send { buf: two.buf(16, 1), invalidate: None });
    two.target.verbs.flush();
    let counts = two.target.verbs.counts(target).unwrap();
    assert_eq!((counts.reads, counts.sends, counts.reads_waited), (2, 1, 6));
    two.settle();
    assert!(reads.iter().all(|&token| two.target.result(token) == Some(&Ok(512))));
    drop(two.host.verbs.withdraw(lent));
    two.end(&[(host, target)]);
}

#[test]
fn what_is_posted_before_the_connection_is_there_goes_out_when_it_is() {
    let mut two = Two::new(Fabric::new(4));
    let host = two.host.verbs.connect(two.at, &SPEC, b"").unwrap();
    let early = two.host.post(host, Work::Send { buf: two.buf(64, 1), invalidate: None });
    let request = two.request();
    let target = two.target.verbs.accept(request, &SPEC, b"").unwrap();
    two.target.receive(target, two.pool);
    two.settle();
    assert_eq!(two.host.result(early), Some(&Ok(64)));
    assert_eq!(two.target.result(1), Some(&Ok(64)));
    two.end(&[(host, target)]);
}

#[test]
fn a_request_may_be_accepted_refused_with_a_reason_or_dropped() {
    let mut two = Two::new(Fabric::new(5));
    let first = two.host.verbs.connect(two.at, &SPEC, b"one").unwrap();
    let waits = two.host.receive(first, two.pool);
    let request = two.request();
    two.target.verbs.reject(request, b"no such queue");
    let second = two.host.verbs.connect(two.at, &SPEC, b"two").unwrap();
    drop(two.request());
    two.settle();
    let reason = |event: &Event, qp: QpId, with: &[u8]| matches!(event, Event::Refused { qp: other, why: Refusal::Rejected(said) } if *other == qp && said.starts_with(with));
    assert!(two.host.has(|event| reason(event, first, b"no such queue\0")));
    assert!(two.host.has(|event| reason(event, second, b"\0")));
    assert_eq!(two.host.result(waits), Some(&Err(WorkError::Flushed)));
    assert!(two.host.is_gone(first) && two.host.is_gone(second));
    two.end(&[]);
}

#[test]
fn nobody_at_an_address_and_nobody_who_answers_end_a_connection_too() {
    let mut two = Two::new(Fabric::new(6));
    two.target.verbs.close_listener(two.listener);
    let qp = two.host.verbs.connect(two.at, &SPEC, b"").unwrap();
    two.settle();
    let nobody = |event: &Event| matches!(event, Event::Refused { why: Refusal::NobodyListens, .. });
    assert!(two.host.has(nobody) && two.host.is_gone(qp));
    two.target.verbs.listen(two.at).unwrap();
    two.fabric.silence(two.target.id);
    let qp = two.host.verbs.connect(two.at, &SPEC, b"").unwrap();
    two.settle();
    let unanswered = |event: &Event| matches!(event, Event::Refused { why: Refusal::Unreachable(_), .. });
    assert!(two.host.has(unanswered) && two.host.is_gone(qp));
    two.end(&[]);
}

#[test]
fn what_is_posted_to_a_queue_pair_that_is_gone_comes_back_flushed() {
    let mut two = Two::new(Fabric::new(7));
    let (host, target) = two.connect();
    two.host.verbs.disconnect(host);
    two.settle();
    assert_eq!(two.target.ending(target), Some(Ending::Peer));
    assert!(two.host.is_gone(host) && two.target.is_gone(target));
    let late = two.host.post(host, Work::Send { buf: two.buf(16, 0), invalidate: None });
    assert_eq!(two.host.verbs.next_deadline(), Instant(0));
    two.pass(64);
    assert_eq!(two.host.result(late), Some(&Err(WorkError::Flushed)));
    two.end(&[]);
}

#[test]
fn a_queue_that_is_deeper_than_the_device_is_refused_with_its_bound() {
    let mut two = Two::new(Fabric::new(8));
    two.host.verbs.connect(two.at, &SPEC, b"").unwrap();
    let request = two.request();
    let error = two.target.verbs.accept(request, &QueueSpec { sends: 10_000, ..SPEC }, b"").unwrap_err();
    assert!(matches!(error, VerbsError::TooMuch { has: 8192, asked: 10_000, .. }), "{error}");
    two.settle();
    two.end(&[]);
}
