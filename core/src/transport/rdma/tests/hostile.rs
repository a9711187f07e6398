//! Hosts that do not keep to the rules: each harms its own connection, and nobody else's.

use ringway_rdma::verbs::{Ending, QueueSpec, Refusal, Remote, Work as Post, WorkError};
use ringway_reactor::buf::Buf;
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::wire::command::{Sqe, nvm};
use crate::wire::completion::{Cqe, NvmeStatus};
use crate::wire::fabrics::{CNTLID_DYNAMIC, CONNECT_DATA_BYTES, Connect, ConnectData};
use crate::wire::rdma::{CmReject, CmRequest, CmStatus};
use crate::wire::sgl::{KeyedMemory, Sgl};

const ENTRIES: u16 = 8;

/// An endpoint that posts whatever a test likes, beside an honest host.
struct Raw {
    pair: Pair,
    io: SimIo,
    verbs: Box<dyn Verbs>,
    endpoint: EndpointId,
    events: Vec<Event>,
    answers: Vec<Cqe>,
}

impl Raw {
    fn new(seed: u64) -> Raw {
        let pair = Pair::connect(seed);
        let io = pair.world.outside();
        let (verbs, endpoint) = pair.fabric.endpoint(io.buffers(), None, None);
        Raw { pair, io, verbs, endpoint, events: Vec::new(), answers: Vec::new() }
    }

    fn turn(&mut self) {
        self.pair.turn();
        self.io.poll(Wait::Until(self.io.now().plus_ns(1000)), &mut Vec::new());
        self.verbs.flush();
        self.verbs.poll(self.io.now(), &mut self.events);
        let answer = |event: &Event| match event {
            Event::Done { work: Post::Receive { head, .. }, result: Ok(_), .. } => {
                Some(Cqe::read_from_prefix(head).unwrap().0)
            }
            _ => None,
        };
        self.answers.extend(self.events.iter().filter_map(answer));
        self.events.retain(|event| answer(event).is_none());
    }

    fn until<T>(&mut self, what: &str, mut found: impl FnMut(&mut Raw) -> Option<T>) -> T {
        for _ in 0..100_000 {
            if let Some(found) = found(self) {
                return found;
            }
            self.turn();
        }
        panic!("{what} did not come: {:?}", self.events);
    }

    fn spec(entries: u16) -> QueueSpec {
        QueueSpec { receives: u32::from(entries), sends: 64, reads_out: 0, reads_in: 4 }
    }

    fn dial(&mut self, private: &[u8], spec: &QueueSpec, receives: usize) -> QpId {
        let qp = self.verbs.connect(self.pair.target.addr, spec, private).unwrap();
        for _ in 0..receives {
            let head = self.buf(&[0; 16]);
            self.verbs.post(qp, 0, Post::Receive { head, data: None });
        }
        qp
    }

    fn refused(&mut self, private: &[u8], spec: &QueueSpec) -> CmStatus {
        self.dial(private, spec, 0);
        let why = self.until("a refusal", |raw| {
            raw.events.iter().find_map(|event| match event {
                Event::Refused { why: Refusal::Rejected(private), .. } => CmReject::check(private),
                Event::Established { .. } => panic!("it was accepted"),
                _ => None,
            })
        });
        self.events.clear();
        why
    }

    /// A connection that stands.
    fn connected(&mut self, receives: usize) -> QpId {
        let request = CmRequest::new(0, ENTRIES, 0);
        let qp = self.dial(request.as_bytes(), &Self::spec(ENTRIES), receives);
        self.until("the connection", |raw| {
            raw.events.iter().any(|event| matches!(event, Event::Established { .. })).then_some(())
        });
        qp
    }

    fn buf(&self, bytes: &[u8]) -> Buf {
        let mut buf = self.io.buffers().get(bytes.len().max(1)).unwrap();
        buf.truncate(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    fn send(&mut self, qp: QpId, bytes: &[u8]) {
        let buf = self.buf(bytes);
        self.verbs.post(qp, 1, Post::Send { buf, invalidate: None });
    }

    fn answer(&mut self) -> Cqe {
        self.until("an answer", |raw| raw.answers.pop())
    }

    /// An admin queue that is joined to an association.
    fn joined(&mut self) -> QpId {
        let qp = self.connected(usize::from(ENTRIES));
        let data = ConnectData::new([7; 16], CNTLID_DYNAMIC, "nqn.2026-11.io.ringway:vm1", "nqn.hostile");
        let lent = self.verbs.lend(qp, self.buf(data.as_bytes())).unwrap();
        let at = KeyedMemory { address: lent.remote.address, key: lent.remote.key, invalidate: false };
        let sqe = Connect::new(0, ENTRIES, 0).sqe().with_data(Sgl::keyed(CONNECT_DATA_BYTES as u32, at)).with_cid(1);
        self.send(qp, sqe.as_bytes());
        assert!(self.answer().nvme_status().is_success());
        drop(self.verbs.withdraw(lent));
        qp
    }

    /// The connection ends, whoever else is connected goes on, and nothing of it is left.
    fn ends_alone(mut self) {
        self.until("the end", |raw| {
            let ended = |event: &Event| matches!(event, Event::Disconnected { .. } | Event::Gone { .. });
            raw.events.iter().any(ended).then_some(())
        });
        self.leaves_no_trace();
    }

    fn leaves_no_trace(mut self) {
        self.pair.until_connections(3);
        self.pair.still_serves(5);
        let Raw { pair, verbs, events, .. } = self;
        drop((verbs, events));
        pair.leaves_nothing();
    }
}

fn memory(address: u64, key: u32) -> KeyedMemory {
    KeyedMemory { address, key, invalidate: false }
}

#[test]
fn private_data_that_is_wrong_is_refused_with_the_status_for_it() {
    let mut raw = Raw::new(1);
    let request = CmRequest::new(1, ENTRIES, 0);
    let with = |at: usize, value: u16| {
        let mut bytes = request.as_bytes().to_vec();
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    let spec = Raw::spec(ENTRIES);
    for (private, status) in [
        (with(0, 9), CmStatus::InvalidRecordFormat),
        (with(2, 500), CmStatus::InvalidQueueId),
        (with(4, 0), CmStatus::InvalidHostReceives),
        (with(6, 4000), CmStatus::InvalidHostSends),
        (with(6, 0), CmStatus::InvalidHostSends),
    ] {
        assert_eq!(raw.refused(&private, &spec), status);
    }
    assert_eq!(raw.refused(request.as_bytes(), &QueueSpec { reads_in: 0, ..spec }), CmStatus::InvalidReadsTaken);
    raw.leaves_no_trace();
}

#[test]
fn a_capsule_shorter_than_a_command_ends_its_connection() {
    for (seed, len) in [(2, 0), (3, 1), (4, 63)] {
        let mut raw = Raw::new(seed);
        let qp = raw.connected(8);
        raw.send(qp, &[0; 64][..len]);
        raw.ends_alone();
    }
}

#[test]
fn a_capsule_longer_than_its_receive_ends_its_connection() {
    let mut raw = Raw::new(5);
    let qp = raw.connected(8);
    raw.send(qp, &[0; 65]);
    raw.ends_alone();
}

#[test]
fn two_commands_at_once_before_connect_are_more_than_the_queue_has() {
    let mut raw = Raw::new(6);
    let qp = raw.connected(8);
    // The first waits for data that it says is in memory that is not there; the other overtakes the read.
    let sqe = Connect::new(0, ENTRIES, 0).sqe();
    raw.send(qp, sqe.with_data(Sgl::keyed(1024, memory(0, 0))).as_bytes());
    raw.send(qp, sqe.as_bytes());
    raw.ends_alone();
}

#[test]
fn more_commands_than_the_queue_has_are_held_up_by_the_senders_own_card() {
    let mut raw = Raw::new(7);
    let qp = raw.joined();
    // Event requests are answered when something happens; those that are too many have an error.
    for cid in 0..32 {
        let sqe = Sqe::new(crate::wire::command::admin::ASYNC_EVENT_REQUEST, 0).with_cid(cid);
        raw.send(qp, sqe.as_bytes());
    }
    raw.ends_alone();
}

#[test]
fn descriptors_that_are_wrong_have_the_status_for_them_and_the_queue_goes_on() {
    let mut raw = Raw::new(8);
    let qp = raw.joined();
    let enable = crate::wire::fabrics::property_set(
        crate::wire::fabrics::Property::Configuration,
        crate::wire::fabrics::Configuration::ENABLE.0.into(),
    );
    let head = raw.buf(&[0; 16]);
    raw.verbs.post(qp, 0, Post::Receive { head, data: None });
    raw.send(qp, enable.as_bytes());
    assert!(raw.answer().nvme_status().is_success());
    let identify = Sqe::identify(1, 0);
    for (sgl, status) in [
        (Sgl::transport(4096), NvmeStatus::SGL_DESCRIPTOR_TYPE_INVALID),
        (Sgl { kind: 0x30, ..Sgl::default() }, NvmeStatus::SGL_DESCRIPTOR_TYPE_INVALID),
        (Sgl::in_capsule(0), NvmeStatus::SGL_DESCRIPTOR_TYPE_INVALID),
        (Sgl::in_capsule(1), NvmeStatus::DATA_SGL_LENGTH_INVALID),
        (Sgl::keyed(0, memory(0, 0)), NvmeStatus::DATA_SGL_LENGTH_INVALID),
        (Sgl::keyed(4095, memory(0, 0)), NvmeStatus::DATA_SGL_LENGTH_INVALID),
    ] {
        let head = raw.buf(&[0; 16]);
        raw.verbs.post(qp, 0, Post::Receive { head, data: None });
        raw.send(qp, identify.with_data(sgl).as_bytes());
        let answer = raw.answer().nvme_status();
        assert!(answer.is(status) && answer.do_not_retry(), "{sgl:?}: {answer}");
    }
    let io = Sqe::on_blocks(nvm::READ, 1, 0, 1).with_data(Sgl::keyed(512, memory(0, 0)));
    let head = raw.buf(&[0; 16]);
    raw.verbs.post(qp, 0, Post::Receive { head, data: None });
    raw.send(qp, io.as_bytes());
    assert!(!raw.answer().nvme_status().is_success(), "I/O does not belong on the admin queue");
    raw.verbs.disconnect(qp);
    raw.ends_alone();
}

#[test]
fn keys_that_fail_end_the_connection_that_named_them_whichever_way_the_data_was_to_go() {
    for (seed, key) in [(9, 0), (10, 0xDEAD_BEEF)] {
        let mut raw = Raw::new(seed);
        let qp = raw.connected(8);
        let sqe = Connect::new(0, ENTRIES, 0).sqe().with_data(Sgl::keyed(1024, memory(0x1000, key)));
        raw.send(qp, sqe.as_bytes());
        raw.ends_alone();
        let mut raw = Raw::new(seed + 100);
        let qp = raw.joined();
        let enable = crate::wire::fabrics::property_set(
            crate::wire::fabrics::Property::Configuration,
            crate::wire::fabrics::Configuration::ENABLE.0.into(),
        );
        raw.send(qp, enable.as_bytes());
        raw.answer();
        raw.send(qp, Sqe::identify(1, 0).with_data(Sgl::keyed(4096, memory(0x1000, key))).as_bytes());
        raw.ends_alone();
    }
}

#[test]
fn memory_beyond_what_was_lent_ends_the_connection() {
    let mut raw = Raw::new(11);
    let qp = raw.connected(8);
    let lent = raw.verbs.lend(qp, raw.buf(&[1; 512])).unwrap();
    let at = memory(lent.remote.address, lent.remote.key);
    raw.send(qp, Connect::new(0, ENTRIES, 0).sqe().with_data(Sgl::keyed(1024, at)).as_bytes());
    raw.until("the end", |raw| raw.events.iter().any(|event| matches!(event, Event::Gone { .. })).then_some(()));
    drop(raw.verbs.withdraw(lent));
    raw.leaves_no_trace();
}

#[test]
fn a_host_that_posts_no_receives_loses_its_own_connection() {
    let mut raw = Raw::new(12);
    let qp = raw.connected(0);
    raw.send(qp, Sqe::new(0x7F, 4).as_bytes());
    raw.ends_alone();
}

#[test]
fn a_host_that_vanishes_with_reads_outstanding_leaves_nothing() {
    let mut raw = Raw::new(13);
    let qp = raw.connected(8);
    let lent = raw.verbs.lend(qp, raw.buf(&[1; 1024])).unwrap();
    let at = memory(lent.remote.address, lent.remote.key);
    raw.send(qp, Connect::new(0, ENTRIES, 0).sqe().with_data(Sgl::keyed(1024, at)).as_bytes());
    raw.verbs.flush();
    raw.verbs.poll(raw.io.now(), &mut raw.events);
    raw.pair.fabric.silence(raw.endpoint);
    drop(raw.verbs.withdraw(lent));
    raw.leaves_no_trace();
}

#[test]
fn a_host_that_reads_the_targets_memory_is_refused_by_the_card() {
    let mut raw = Raw::new(14);
    let request = CmRequest::new(0, ENTRIES, 0);
    let spec = QueueSpec { reads_out: 4, ..Raw::spec(ENTRIES) };
    let qp = raw.dial(request.as_bytes(), &spec, 8);
    let buf = raw.buf(&[0; 64]);
    raw.verbs.post(qp, 2, Post::Read { buf, from: Remote { address: 0x1000, key: 1 } });
    raw.until("the failure", |raw| {
        let failed = |event: &Event| match event {
            Event::Done { token: 2, result, .. } => result.is_err(),
            Event::Disconnected { why, .. } => *why != Ending::Work(WorkError::Flushed),
            _ => false,
        };
        raw.events.iter().any(failed).then_some(())
    });
    raw.verbs.disconnect(qp);
    raw.ends_alone();
}

#[test]
fn whatever_bytes_a_host_sends_the_others_are_served() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    for seed in 40..60 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut raw = Raw::new(seed);
        let qp = if seed % 2 == 0 { raw.joined() } else { raw.connected(8) };
        let mut posted = 0;
        for _ in 0..40 {
            let mut bytes = vec![0; if rng.random_range(0..8) == 0 { rng.random_range(0..70) } else { 64 }];
            rng.fill(&mut bytes[..]);
            if bytes.len() == 64 && rng.random_bool(0.7) {
                // Nearly right: something is taken, and something else in it is wrong.
                bytes[0] = [0x7F, 0x06, 0x02, 0x0C, 0x09, 0x0A, 0x18][rng.random_range(0..7)];
                bytes[1] = 0x40;
                bytes[39] = [0x40, 0x4F, 0x01, 0x5A][rng.random_range(0..4)];
                bytes[34] = 0;
            }
            while posted < raw.answers.len() {
                posted += 1;
                let head = raw.buf(&[0; 16]);
                raw.verbs.post(qp, 0, Post::Receive { head, data: None });
            }
            raw.send(qp, &bytes);
            (0..rng.random_range(0..6)).for_each(|_| raw.turn());
        }
        raw.verbs.disconnect(qp);
        raw.until("the end", |raw| raw.events.iter().any(|event| matches!(event, Event::Gone { .. })).then_some(()));
        raw.leaves_no_trace();
    }
}
