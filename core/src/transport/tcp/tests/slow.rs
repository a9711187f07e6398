//! Peers that owe data and take their time, on purpose: they hold up others only so long.

use ringway_reactor::io::Instant;
use ringway_reactor::sim::World;
use zerocopy::{FromBytes, IntoBytes};

use super::hostile::{Rogue, agreed, capsule};
use super::*;
use crate::host::{ControllerKind, Event, Host, HostConfig, HostRequest, Outcome};
use crate::wire::command::{Sqe, nvm};
use crate::wire::fabrics::{self, Configuration, Connect, ConnectData, Property};
use crate::wire::pdu::{self, FatalStatus, PduType, TermReq, Transfer};
use crate::wire::sgl::Sgl;

const SECOND: u64 = 1_000_000_000;
const PIECE: u32 = 64 << 10;
/// Room for data that is on its way: four pieces, two of one connection.
const ROOM: usize = 4 * PIECE as usize;

fn small(config: &mut TransportConfig) {
    config.receiving_bytes_max = ROOM;
    config.connection_receiving_max = ROOM / 2;
}

/// A rogue with an I/O queue of its own association, which needs no keep alive; its admin connection has to stay.
fn attach(world: &World, target: &mut Target, n: u8) -> [Rogue; 2] {
    attach_for(world, target, n, 0)
}

/// The same with a keep alive timeout.
fn attach_for(world: &World, target: &mut Target, n: u8, keep_alive_ms: u32) -> [Rogue; 2] {
    let nqn = format!("nqn.2014-08.org.nvmexpress:uuid:rogue-{n}");
    let data = |controller| ConnectData::new([n; 16], controller, "nqn.2026-11.io.ringway:vm1", &nqn);
    let mut admin = Rogue::connect(world, target);
    admin.greet(target);
    let command = |rogue: &mut Rogue, target: &mut Target, sqe: Sqe, data: &[u8]| {
        let sqe = if data.is_empty() { sqe } else { sqe.with_data(Sgl::in_capsule(data.len() as u32)) };
        rogue.send(&capsule(sqe, data));
        let cqe = rogue.completion(target);
        assert!(cqe.nvme_status().is_success(), "{cqe:?}");
        cqe.result.get()
    };
    let controller =
        command(&mut admin, target, Connect::new(0, 32, keep_alive_ms).sqe(), data(0xFFFF).as_bytes()) as u16;
    let enable = fabrics::property_set(Property::Configuration, Configuration::ENABLE.0.into());
    command(&mut admin, target, enable, &[]);
    let mut queue = Rogue::connect(world, target);
    queue.greet(target);
    command(&mut queue, target, Connect::new(1, 32, 0).sqe(), data(controller).as_bytes());
    [admin, queue]
}

fn write(cid: u16, len: u32) -> Sqe {
    Sqe::on_blocks(nvm::WRITE, 1, 0, len / 512).with_cid(cid).with_data(Sgl::transport(len))
}

/// The head of an H2CData PDU for the first R2T received, and the data's first byte.
fn first_bytes(rogue: &Rogue, len: u32) -> Vec<u8> {
    let r2t = Transfer::read_from_bytes(&rogue.received[..24]).unwrap();
    assert_eq!(r2t.common.pdu_type, PduType::R2t as u8);
    let header = Transfer {
        common: pdu::common(PduType::H2cData, pdu::flags::LAST, &agreed(), len as usize),
        cccid: r2t.cccid,
        ttag: r2t.ttag,
        offset: 0.into(),
        length: len.into(),
        reserved: [0; 4],
    };
    [header.as_bytes(), &[0x55]].concat()
}

/// An honest host beside them.
struct Honest {
    io: SimIo,
    host: Host,
    done: Vec<Outcome>,
}

impl Honest {
    fn attach(world: &World, target: &mut Target) -> Honest {
        let config = HostConfig {
            controller: ControllerKind::Io { queues: 1, depth: 8 },
            ..HostConfig::new(target.addr, "nqn.2026-11.io.ringway:vm1")
        };
        let mut honest = Honest { io: world.outside(), host: Host::new(config), done: Vec::new() };
        honest.host.start(&mut honest.io);
        for _ in 0..20_000 {
            target.turn();
            if honest.turn().iter().any(|event| matches!(event, Event::Ready(_))) {
                return honest;
            }
        }
        panic!("it is not attached");
    }

    fn turn(&mut self) -> Vec<Event> {
        let mut completions = Vec::new();
        let until = self.host.next_deadline().min(self.io.now().plus_ns(1_000_000));
        self.io.poll(Wait::Until(until), &mut completions);
        completions.into_iter().for_each(|completion| self.host.on_completion(&mut self.io, completion));
        self.host.turn(&mut self.io);
        let events: Vec<_> = self.host.events().collect();
        for event in &events {
            match event {
                Event::Completed(completed) => self.done.push(completed.outcome),
                Event::Lost(error) => panic!("an honest host lost its connection: {error}"),
                _ => {}
            }
        }
        events
    }

    fn submit(&mut self, command: Command, len: u32) {
        let mut buf = self.io.buffers().get(len as usize).unwrap();
        buf.fill(0xAA);
        let request = HostRequest { user: 0, command, offset: 1 << 20, len, buf: Some(buf) };
        self.host.submit(&mut self.io, request).map_err(|(_, error)| error).unwrap();
    }
}

/// Until when `done` is true, a second at a time, in which each rogue sends a byte.
fn drip(
    target: &mut Target,
    rogues: &mut [[Rogue; 2]],
    honest: &mut Honest,
    seconds: u64,
    mut done: impl FnMut(&Target, &[[Rogue; 2]], &Honest) -> bool,
) -> Option<u64> {
    let begun = target.io.now();
    let passed = |target: &Target| target.io.now().since_ns(begun) / SECOND;
    let mut dripped = Instant(0);
    while passed(target) < seconds {
        if done(target, rogues, honest) {
            return Some(passed(target));
        }
        let drips = target.io.now().since_ns(dripped) > 2 * SECOND;
        if drips {
            dripped = target.io.now();
        }
        for rogue in rogues.iter_mut().flatten() {
            if drips && rogue.drips && !rogue.closed {
                rogue.send(&[0x55]);
            }
            target.turn();
            rogue.turn();
        }
        target.turn();
        honest.turn();
    }
    None
}

fn dripping(world: &World, target: &mut Target, n: u8) -> [Rogue; 2] {
    let mut rogue = attach(world, target, n);
    let queue = &mut rogue[1];
    for cid in 0..4 {
        queue.send(&capsule(write(cid, PIECE), &[]));
    }
    queue.run(target, |queue| queue.received.len() >= 24);
    if queue.received.len() >= 24 {
        let bytes = first_bytes(queue, PIECE);
        queue.send(&bytes);
        queue.drips = true;
    }
    rogue
}

#[test]
fn i3_peers_that_drip_their_data_hold_an_honest_one_up_for_ten_seconds_and_no_longer() {
    let world = world(40);
    let mut target = Target::new(&world, small);
    let mut honest = Honest::attach(&world, &mut target);
    let mut rogues: Vec<_> = (1..=6).map(|n| dripping(&world, &mut target, n)).collect();
    honest.submit(Command::Write { fua: false }, 4 * PIECE);
    honest.submit(Command::Write { fua: false }, PIECE);
    let waited = drip(&mut target, &mut rogues, &mut honest, 60, |_, _, honest| honest.done.len() == 2);
    let waited = waited.expect("an honest host's writes end");
    assert!(waited <= 12, "{waited} s");
    assert_eq!(honest.done, [Outcome::Success, Outcome::Success]);
    let ended = rogues.iter_mut().filter(|[_, queue]| queue.closed).count();
    assert!(ended >= 2, "those who held it up are gone: {ended}");
    let last = rogues.iter().find(|[_, queue]| queue.closed).map(|[_, queue]| &queue.received).unwrap();
    let term = TermReq::read_from_bytes(&last[last.len() - 24..]).unwrap();
    assert_eq!((term.common.pdu_type, term.fes.get()), (PduType::C2hTermReq as u8, FatalStatus::LimitExceeded as u16));
}

#[test]
fn i3_a_peer_alone_that_drips_is_ended_after_half_a_minute_and_one_that_is_slow_is_not() {
    let world = world(41);
    let mut target = Target::new(&world, small);
    let mut honest = Honest::attach(&world, &mut target);
    let mut rogues = vec![dripping(&world, &mut target, 1)];
    let ended = drip(&mut target, &mut rogues, &mut honest, 60, |_, rogues, _| rogues[0][1].closed);
    assert!(ended.is_some_and(|seconds| (29..=33).contains(&seconds)), "{ended:?}");
    assert_eq!(target.transport.receiving_bytes, 0);

    // 64 KiB in eight seconds.
    let [_admin, mut slow] = attach(&world, &mut target, 2);
    slow.send(&capsule(write(1, PIECE), &[]));
    assert!(slow.run(&mut target, |slow| slow.received.len() >= 24));
    let head = first_bytes(&slow, PIECE);
    slow.received.clear();
    slow.send(&head);
    for piece in [vec![0x55; 8191]].into_iter().chain(std::iter::repeat_n(vec![0x55; 8192], 7)) {
        slow.send(&piece);
        let until = target.io.now().plus_ns(SECOND);
        while target.io.now() < until {
            target.turn();
            slow.turn();
        }
    }
    assert!(slow.status(&mut target).is_success());
}

#[test]
fn i3_data_in_a_capsule_that_drips_is_ended_too() {
    let world = world(42);
    let mut target = Target::new(&world, small);
    let mut honest = Honest::attach(&world, &mut target);
    let mut rogue = attach(&world, &mut target, 1);
    let sqe = Sqe::on_blocks(nvm::WRITE, 1, 0, 16).with_cid(1).with_data(Sgl::in_capsule(8192));
    rogue[1].send(&capsule(sqe, &[0; 8192])[..100]);
    rogue[1].drips = true;
    let mut rogues = vec![rogue];
    let ended = drip(&mut target, &mut rogues, &mut honest, 60, |_, rogues, _| rogues[0][1].closed);
    assert!(ended.is_some_and(|seconds| (29..=33).contains(&seconds)), "{ended:?}");
    honest.submit(Command::Write { fua: false }, 4096);
    assert!(drip(&mut target, &mut [], &mut honest, 5, |_, _, honest| honest.done == [Outcome::Success]).is_some());
}

#[test]
fn i3_a_greeting_that_drips_is_ended_before_it_becomes_a_queue() {
    let world = world(43);
    let mut target = Target::new(&world, small);
    let mut honest = Honest::attach(&world, &mut target);
    let mut rogue = [Rogue::connect(&world, &mut target), Rogue::connect(&world, &mut target)];
    rogue[1].greet(&mut target);
    rogue.iter_mut().for_each(|rogue| rogue.drips = true);
    let mut rogues = vec![rogue];
    let closed = |_: &Target, rogues: &[[Rogue; 2]], _: &Honest| rogues[0].iter().all(|rogue| rogue.closed);
    let ended = drip(&mut target, &mut rogues, &mut honest, 60, closed);
    assert!(ended.is_some_and(|seconds| seconds <= 35), "{ended:?}");
}

#[test]
fn a_large_write_is_not_overtaken_for_ever_by_small_ones() {
    let world = world(44);
    let mut target = Target::new(&world, small);
    let mut large = Honest::attach(&world, &mut target);
    let mut small: Vec<_> = (0..6).map(|_| Honest::attach(&world, &mut target)).collect();
    for honest in &mut small {
        for _ in 0..6 {
            honest.submit(Command::Write { fua: false }, PIECE);
        }
    }
    large.submit(Command::Write { fua: false }, 4 * PIECE);
    let mut others = 0;
    while large.done.is_empty() {
        target.turn();
        large.turn();
        for honest in &mut small {
            honest.turn();
            for _ in std::mem::take(&mut honest.done) {
                others += 1;
                honest.submit(Command::Write { fua: false }, PIECE);
            }
        }
        assert!(others < 400, "{others} small ones have gone past");
    }
    assert_eq!(large.done, [Outcome::Success]);
}

#[test]
fn c3_the_connect_of_an_io_queue_is_answered_only_when_its_host_is_on_record() {
    for known in [true, false] {
        let world = world(45);
        let mut target = Target::new(&world, |_| {});
        target.record_at_once = false;
        let [mut admin, mut queue] = [(); 2].map(|()| Rogue::connect(&world, &mut target));
        let data = |controller| {
            ConnectData::new([9; 16], controller, "nqn.2026-11.io.ringway:vm1", "nqn.2014-08.org.nvmexpress:uuid:h")
        };
        admin.greet(&mut target);
        let connect = |queue: u16| Connect::new(queue, 32, 0).sqe().with_data(Sgl::in_capsule(1024));
        admin.send(&capsule(connect(0), data(0xFFFF).as_bytes()));
        let controller = admin.completion(&mut target).result.get() as u16;
        admin.send(&capsule(fabrics::property_set(Property::Configuration, Configuration::ENABLE.0.into()), &[]));
        assert!(admin.status(&mut target).is_success());
        queue.greet(&mut target);
        queue.send(&capsule(connect(1), data(controller).as_bytes()));
        assert!(!queue.run(&mut target, |queue| !queue.received.is_empty()), "it waits");
        assert_eq!(target.attaching.len(), 1);
        target.record(known);
        let status = queue.status(&mut target);
        assert_eq!(status.is_success(), known, "{status}");
        if known {
            // The next queue of the same association needs not wait.
            let mut next = Rogue::connect(&world, &mut target);
            next.greet(&mut target);
            next.send(&capsule(connect(2), data(controller).as_bytes()));
            assert!(next.status(&mut target).is_success());
            assert!(target.attaching.is_empty());
        }
    }
}

#[test]
fn i_o_alone_keeps_an_association_alive_and_silence_ends_it() {
    let world = world(46);
    let mut target = Target::new(&world, |_| {});
    let [mut admin, mut queue] = attach_for(&world, &mut target, 1, 2000);
    for round in 0..20 {
        let sqe = Sqe::new(nvm::FLUSH, 1).with_cid(round);
        queue.send(&capsule(sqe, &[]));
        let cqe = queue.completion(&mut target);
        assert!(cqe.nvme_status().is_success(), "round {round}: {cqe:?}");
        world.advance_ns(SECOND / 2);
        target.turn();
    }
    assert_eq!(target.transport.connections(), 2, "five timeouts have passed without a Keep Alive");
    for _ in 0..10 {
        world.advance_ns(SECOND / 2);
        for _ in 0..10 {
            target.turn();
            admin.turn();
            queue.turn();
        }
    }
    assert!(admin.closed && queue.closed);
    assert_eq!(target.transport.connections(), 0);
}
