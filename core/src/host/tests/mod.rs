//! The host against a small scripted target on the simulated network.

mod peer;

use std::time::Duration;

use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Io, Wait};
use ringway_reactor::sim::{SimIo, World, WorldConfig};

use super::*;
use crate::request::Command;
use crate::wire::completion::NvmeStatus;
use peer::{Behaviour, Peer};

struct Pair {
    peer: Peer<SimIo>,
    io: SimIo,
    host: Host,
    events: Vec<Event>,
}

fn config(peer: &Peer<SimIo>) -> HostConfig {
    HostConfig { controller: ControllerKind::Io { queues: 2, depth: 8 }, ..HostConfig::new(peer.addr, "nqn.test:v") }
}

impl Pair {
    fn new(seed: u64, behaviour: Behaviour, change: impl FnOnce(&mut HostConfig)) -> Self {
        let world = World::new(seed, WorldConfig::default());
        let peer = Peer::new(world.outside(), 4420, behaviour);
        let mut config = config(&peer);
        change(&mut config);
        let mut io = world.outside();
        let mut host = Host::new(config);
        host.start(&mut io);
        Self { peer, io, host, events: Vec::new() }
    }

    fn connected(seed: u64, behaviour: Behaviour) -> Self {
        Self::connected_with(seed, behaviour, |_| {})
    }

    fn connected_with(seed: u64, behaviour: Behaviour, change: impl FnOnce(&mut HostConfig)) -> Self {
        let mut pair = Self::new(seed, behaviour, change);
        pair.until("the connection", |event| matches!(event, Event::Ready(_)));
        pair
    }

    fn turn(&mut self) {
        self.peer.turn();
        let mut completions = Vec::new();
        let until = self.host.next_deadline().min(self.io.now().plus_ns(10_000_000));
        self.io.poll(Wait::Until(until), &mut completions);
        completions.into_iter().for_each(|completion| self.host.on_completion(&mut self.io, completion));
        self.host.turn(&mut self.io);
        self.events.extend(self.host.events());
    }

    /// Turns until an event comes, and returns it.
    fn until(&mut self, what: &str, mut wanted: impl FnMut(&Event) -> bool) -> Event {
        for _ in 0..200_000 {
            if let Some(at) = self.events.iter().position(&mut wanted) {
                return self.events.remove(at);
            }
            self.turn();
        }
        panic!("{what} did not come; events: {:?}", self.events);
    }

    fn submit(&mut self, user: u64, command: Command, offset: u64, len: u32, data: Option<&[u8]>) {
        let bytes = match command {
            Command::Read => len as usize,
            _ => data.map_or(0, <[u8]>::len),
        };
        let mut buf = (bytes > 0).then(|| self.io.buffers().get(bytes).unwrap());
        if let (Some(buf), Some(data)) = (&mut buf, data) {
            buf.copy_from_slice(data);
        }
        self.host
            .submit(&mut self.io, HostRequest { user, command, offset, len, buf })
            .map_err(|(_, error)| error)
            .unwrap();
        self.host.flush(&mut self.io);
    }

    fn end(&mut self, user: u64) -> (Outcome, Option<Buf>) {
        let event = self.until("an end", |event| matches!(event, Event::Completed(done) if done.user == user));
        let Event::Completed(done) = event else { unreachable!() };
        (done.outcome, done.buf)
    }

    fn write(&mut self, user: u64, offset: u64, data: &[u8]) -> Outcome {
        self.submit(user, Command::Write { fua: false }, offset, data.len() as u32, Some(data));
        self.end(user).0
    }

    fn read(&mut self, user: u64, offset: u64, len: u32) -> Vec<u8> {
        self.submit(user, Command::Read, offset, len, None);
        let (outcome, buf) = self.end(user);
        assert_eq!(outcome, Outcome::Success);
        buf.unwrap().to_vec()
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|n| (n / 512) as u8 ^ (n % 251) as u8 ^ seed).collect()
}

/// Every way in which data travels.
fn behaviours() -> Vec<Behaviour> {
    let mut all = Vec::new();
    for digests in [(false, false), (true, false), (false, true), (true, true)] {
        for (in_capsule, h2c_max, r2t_max) in [(8192, 131_072, usize::MAX), (0, 8192, 20_480), (4096, 4096, usize::MAX)]
        {
            for (c2h_max, success_flag, cpda) in [(usize::MAX, true, 0), (3000, false, 3)] {
                let base = Behaviour { digests, in_capsule, h2c_max, r2t_max, ..Behaviour::default() };
                all.push(Behaviour { c2h_max, success_flag, cpda, ..base });
            }
        }
    }
    all
}

#[test]
fn the_start_sequence_ends_with_the_volumes_size_and_identity() {
    let mut pair = Pair::new(1, Behaviour::default(), |_| {});
    let event = pair.until("the connection", |event| matches!(event, Event::Ready(_)));
    let Event::Ready(Some(namespace)) = event else { panic!("{event:?}") };
    assert_eq!((namespace.size, namespace.lba_bytes, namespace.request_bytes_max), (4096 * 512, 512, 256 << 10));
    assert_eq!(namespace.uuid.as_bytes(), &[0xab; 16]);
    pair.peer.connects.sort_unstable();
    assert_eq!(pair.peer.connects, [0, 1, 2]);
}

#[test]
fn data_arrives_whole_whichever_way_it_travels() {
    for (seed, behaviour) in (0..).zip(behaviours()) {
        let said = format!("{behaviour:?}");
        let digests = behaviour.digests;
        let mut pair = Pair::connected_with(seed, behaviour, |config| {
            (config.header_digest, config.data_digest) = digests;
        });
        for (user, len) in (1..).zip([512, 4096, 8192, 12_288, 65_536, 262_144]) {
            let data = pattern(len, user as u8);
            assert_eq!(pair.write(user, 1024, &data), Outcome::Success, "{said}");
            assert!(pair.peer.disk[1024..1024 + len] == data, "write of {len}: {said}");
            assert!(pair.read(user, 1024, len as u32) == data, "read of {len}: {said}");
        }
    }
}

#[test]
fn many_commands_at_once_end_each_once_with_its_own_data() {
    for seed in 0..20 {
        let mut pair = Pair::connected(seed, Behaviour { in_capsule: 4096, c2h_max: 4096, ..Behaviour::default() });
        for user in 0..24 {
            let len = if user % 3 == 0 { 16_384 } else { 4096 };
            pair.submit(
                user,
                Command::Write { fua: false },
                user * 16_384,
                len,
                Some(&pattern(len as usize, user as u8)),
            );
        }
        (0..24).for_each(|user| assert_eq!(pair.end(user).0, Outcome::Success));
        for user in 0..24 {
            pair.submit(user, Command::Read, user * 16_384, if user % 3 == 0 { 16_384 } else { 4096 }, None);
        }
        for user in (0..24).rev() {
            let (outcome, buf) = pair.end(user);
            let buf = buf.unwrap();
            assert!(outcome.is_success() && buf[..] == pattern(buf.len(), user as u8), "seed {seed}, command {user}");
        }
    }
}

#[test]
fn commands_without_a_buffer_reach_the_target_as_meant() {
    let mut pair = Pair::connected(3, Behaviour::default());
    pair.peer.disk.fill(1);
    pair.submit(1, Command::Flush, 0, 0, None);
    pair.submit(2, Command::WriteZeroes { fua: true, deallocate: true }, 4096, 8192, None);
    pair.submit(3, Command::Deallocate, 16_384, 4096, None);
    for user in 1..=3 {
        let (outcome, buf) = pair.end(user);
        assert!(outcome.is_success() && buf.is_none());
    }
    let zeros: Vec<usize> = (0..pair.peer.disk.len()).filter(|&at| pair.peer.disk[at] == 0).collect();
    let expected: Vec<usize> = (4096..12_288).chain(16_384..20_480).collect();
    assert!(zeros == expected);
}

#[test]
fn a_compare_and_write_is_one_command_with_one_end() {
    let mut pair = Pair::connected(4, Behaviour::default());
    let (old, new) = (pattern(512, 0), pattern(512, 9));
    pair.peer.disk[512..1024].copy_from_slice(&old);
    let both = [&old[..], &new[..]].concat();
    pair.submit(1, Command::CompareAndWrite { fua: false }, 512, 512, Some(&both));
    let (outcome, buf) = pair.end(1);
    assert!(outcome.is_success() && buf.unwrap()[..] == both);
    assert!(pair.peer.disk[512..1024] == new);
    pair.submit(2, Command::CompareAndWrite { fua: false }, 512, 512, Some(&both));
    assert_eq!(pair.end(2).0, Outcome::Failed(NvmeStatus(0x285)));
    assert!(pair.peer.disk[512..1024] == new);
}

#[test]
fn what_was_in_flight_at_a_break_is_sent_again_and_ends_once() {
    for seed in 0..30 {
        let mut pair = Pair::connected(seed, Behaviour { in_capsule: 4096, ..Behaviour::default() });
        pair.peer.behaviour.break_after = Some(1 + seed as u32 % 12);
        for user in 0..12 {
            let len = if user % 2 == 0 { 16_384 } else { 4096 };
            pair.submit(
                user,
                Command::Write { fua: false },
                user * 16_384,
                len,
                Some(&pattern(len as usize, user as u8)),
            );
        }
        (0..12).for_each(|user| assert_eq!(pair.end(user).0, Outcome::Success, "seed {seed}"));
        assert!(pair.events.iter().any(|event| matches!(event, Event::Lost(_))), "seed {seed}: it broke");
        let resent = pair.events.iter().find_map(|event| match event {
            Event::Reconnected { resent, .. } => Some(*resent),
            _ => None,
        });
        assert!(resent.is_some_and(|resent| resent >= 1), "seed {seed}: {resent:?}");
        for user in 0..12 {
            let len = if user % 2 == 0 { 16_384 } else { 4096 };
            assert!(pair.peer.disk[user * 16_384..][..len] == pattern(len, user as u8), "seed {seed}, write {user}");
        }
        pair.peer.connects.sort_unstable();
        assert_eq!(pair.peer.connects, [0, 0, 1, 1, 2, 2]);
    }
}

#[test]
fn c11_a_compare_and_write_whose_answer_was_lost_is_reported_unknown_and_never_sent_again() {
    let mut pair = Pair::connected(5, Behaviour::default());
    pair.peer.behaviour.break_after = Some(2);
    let both = [pattern(512, 0), pattern(512, 9)].concat();
    pair.peer.disk[..512].copy_from_slice(&both[..512]);
    pair.submit(1, Command::CompareAndWrite { fua: false }, 0, 512, Some(&both));
    let (outcome, buf) = pair.end(1);
    assert!(outcome == Outcome::Unknown && buf.unwrap()[..] == both);
    pair.until("the reconnect", |event| matches!(event, Event::Reconnected { .. }));
    assert!(pair.read(2, 0, 512) == both[512..], "it had won");
    assert_eq!(pair.peer.executed, [(5, 0), (1, 0), (2, 0)]);
}

#[test]
fn commands_submitted_while_there_is_no_connection_wait_for_it() {
    let mut pair = Pair::connected(6, Behaviour::default());
    pair.peer.drop_all();
    pair.until("the break", |event| matches!(event, Event::Lost(_)));
    assert_eq!(pair.write(1, 0, &pattern(512, 1)), Outcome::Success);
    assert!(pair.peer.disk[..512] == pattern(512, 1));
}

#[test]
fn a_command_without_an_answer_breaks_the_connection_and_is_sent_again() {
    let mut pair =
        Pair::connected_with(7, Behaviour::default(), |config| config.command_timeout = Duration::from_millis(500));
    pair.peer.behaviour.silent = true;
    pair.submit(1, Command::Write { fua: false }, 0, 512, Some(&pattern(512, 1)));
    let lost = pair.until("the break", |event| matches!(event, Event::Lost(_)));
    let Event::Lost(error) = lost else { unreachable!() };
    assert!(error.kind == HostErrorKind::TimedOut && error.context.contains("not answered within 500ms"), "{error}");
    pair.peer.behaviour.silent = false;
    assert_eq!(pair.end(1).0, Outcome::Success);
}

#[test]
fn damaged_data_is_noticed_by_its_digest_and_read_again() {
    let behaviour = Behaviour { digests: (false, true), ..Behaviour::default() };
    let mut pair = Pair::connected_with(8, behaviour, |config| config.data_digest = true);
    pair.peer.disk[..4096].copy_from_slice(&pattern(4096, 3));
    pair.peer.behaviour.corrupt = 1;
    assert!(pair.read(1, 0, 4096) == pattern(4096, 3));
    let lost = pair.until("the break", |event| matches!(event, Event::Lost(_)));
    assert!(matches!(lost, Event::Lost(error) if error.kind == HostErrorKind::Digest));
}

#[test]
fn nobody_listening_and_a_refusal_say_what_to_do() {
    let world = World::new(1, WorldConfig::default());
    let mut io = world.outside();
    let mut host = Host::new(HostConfig::new("127.0.0.1:4420".parse().unwrap(), "nqn.test:v"));
    host.start(&mut io);
    let error = loop {
        let mut completions = Vec::new();
        io.poll(Wait::Until(host.next_deadline()), &mut completions);
        completions.into_iter().for_each(|completion| host.on_completion(&mut io, completion));
        host.turn(&mut io);
        if let Some(Event::Failed(error)) = host.next_event() {
            break error;
        }
    };
    assert!(error.kind == HostErrorKind::Refused && error.context.contains("is the target running there?"), "{error}");
    assert!(host.is_over());
    for (status, kind, words) in [
        (0x182, HostErrorKind::NoSuchVolume, "no subsystem nqn.test:v"),
        (0x184, HostErrorKind::NotAllowed, "does not allow host"),
    ] {
        let mut pair = Pair::new(2, Behaviour { refuse: Some(status), ..Behaviour::default() }, |_| {});
        let failed = pair.until("the failure", |event| matches!(event, Event::Failed(_)));
        let Event::Failed(error) = failed else { unreachable!() };
        assert!(error.kind == kind && error.context.contains(words), "{error}");
    }
}

#[test]
fn a_host_that_gives_up_ends_every_command() {
    let mut pair = Pair::connected_with(9, Behaviour::default(), |config| {
        config.reconnect.give_up_after = Duration::from_secs(3);
    });
    pair.peer.behaviour.silent = true;
    pair.submit(1, Command::Write { fua: false }, 0, 512, Some(&pattern(512, 1)));
    pair.peer.behaviour.refuse = Some(0x182);
    (0..50).for_each(|_| pair.turn());
    pair.peer.drop_all();
    assert_eq!(pair.end(1).0, Outcome::Gone);
    pair.until(
        "the failure",
        |event| matches!(event, Event::Failed(error) if error.kind == HostErrorKind::NoSuchVolume),
    );
    let request = HostRequest { user: 2, command: Command::Flush, offset: 0, len: 0, buf: None };
    let (_, error) = pair.host.submit(&mut pair.io, request).unwrap_err();
    assert_eq!(error.kind, HostErrorKind::Closed);
}

#[test]
fn where_one_address_does_not_answer_the_next_is_tried_at_first_and_after_a_break() {
    let nobody = |n: u16| std::net::SocketAddr::from(([127, 0, 0, 1], 9000 + n));
    let mut pair = Pair::new(31, Behaviour::default(), |config| {
        config.others = vec![nobody(1), config.addr];
        config.addr = nobody(0);
    });
    pair.until("the connection", |event| matches!(event, Event::Ready(_)));
    assert_eq!(pair.write(1, 0, &pattern(4096, 1)), Outcome::Success);
    pair.peer.drop_all();
    pair.until("a reconnect", |event| matches!(event, Event::Reconnected { .. }));
    assert_eq!(pair.read(2, 0, 4096), pattern(4096, 1));
}

#[test]
fn closing_ends_every_command_and_leaves_nothing_in_the_ring() {
    let mut pair = Pair::connected(10, Behaviour::default());
    pair.peer.behaviour.silent = true;
    pair.submit(1, Command::Write { fua: false }, 0, 512, Some(&pattern(512, 1)));
    pair.host.close(&mut pair.io);
    assert_eq!(pair.end(1).0, Outcome::Gone);
    pair.until("the end", |event| matches!(event, Event::Closed));
    assert!(pair.host.is_over() && pair.io.in_flight() == 0);
}

#[test]
fn a_resize_is_seen_while_connected_and_after_a_break() {
    let mut pair = Pair::connected(11, Behaviour::default());
    (0..100).for_each(|_| pair.turn());
    pair.peer.resize(8192);
    let event = pair.until("the resize", |event| matches!(event, Event::Resized(_)));
    assert!(matches!(event, Event::Resized(namespace) if namespace.size == 8192 * 512));
    pair.peer.drop_all();
    pair.peer.resize(16_384);
    let event = pair.until("the resize", |event| matches!(event, Event::Resized(_)));
    assert!(matches!(event, Event::Resized(namespace) if namespace.size == 16_384 * 512));
}

#[test]
fn keep_alives_go_out_while_nothing_else_does() {
    let mut pair =
        Pair::connected_with(12, Behaviour::default(), |config| config.keep_alive = Duration::from_millis(300));
    let begun = pair.io.now();
    while pair.io.now().since_ns(begun) < 1_000_000_000 {
        pair.turn();
    }
    assert!((8..=12).contains(&pair.peer.keep_alives), "{}", pair.peer.keep_alives);
}

#[test]
fn the_controllers_no_is_passed_on_with_the_buffer() {
    let mut pair = Pair::connected(13, Behaviour { fail_io: Some(0x81), ..Behaviour::default() });
    pair.submit(1, Command::Read, 0, 4096, None);
    let (outcome, buf) = pair.end(1);
    assert_eq!((outcome, buf.unwrap().len()), (Outcome::Failed(NvmeStatus(0x81)), 4096));
}

#[test]
fn requests_that_cannot_be_made_come_back_with_the_reason() {
    let mut pair = Pair::connected(14, Behaviour::default());
    let mut refused = |command, offset, len, bytes: usize| {
        let buf = (bytes > 0).then(|| pair.io.buffers().get(bytes).unwrap());
        let request = HostRequest { user: 1, command, offset, len, buf };
        pair.host.submit(&mut pair.io, request).unwrap_err().1.context
    };
    assert!(refused(Command::Read, 100, 512, 512).contains("whole blocks of 512"));
    assert!(refused(Command::Read, 0, 512, 1024).contains("a buffer of 512 bytes"));
    assert!(refused(Command::Flush, 0, 512, 0).contains("a flush has no range"));
    assert!(refused(Command::WriteZeroes { fua: false, deallocate: false }, 0, 1 << 30, 0).contains("65536 blocks"));
}

fn discover(mut behaviour: Behaviour) -> Result<Vec<Discovered>, HostError> {
    behaviour.subsystem_nqn = crate::wire::DISCOVERY_NQN.into();
    let world = World::new(15, WorldConfig::default());
    let mut peer = Peer::new(world.outside(), 4420, behaviour);
    let mut io = world.outside();
    let mut reader = DiscoveryReader::new(HostConfig::new(peer.addr, ""));
    reader.start(&mut io);
    for _ in 0..100_000 {
        peer.turn();
        let mut completions = Vec::new();
        io.poll(Wait::Until(reader.next_deadline().min(io.now().plus_ns(10_000_000))), &mut completions);
        completions.into_iter().for_each(|completion| reader.on_completion(&mut io, completion));
        if let Some(result) = reader.turn(&mut io) {
            assert_eq!(io.in_flight(), 0);
            return result;
        }
    }
    panic!("no result");
}

#[test]
fn a_discovery_log_is_read_in_parts_and_anew_when_it_changes_meanwhile() {
    for discovered in [0, 1, 4, 11] {
        for discovery_changes in [0, 3] {
            let found = discover(Behaviour { discovered, discovery_changes, ..Behaviour::default() }).unwrap();
            let names: Vec<_> = found.iter().map(|entry| entry.subsystem_nqn.clone()).collect();
            assert_eq!(names, (0..discovered).map(|n| format!("nqn.test:v{n}")).collect::<Vec<_>>());
            assert!(
                found.iter().all(|entry| entry.address == "127.0.0.1" && entry.port == "4420" && entry.has_volumes)
            );
        }
    }
}

#[test]
fn a_discovery_log_that_never_holds_still_or_is_endless_is_given_up() {
    let error = discover(Behaviour { discovered: 2, discovery_changes: 1000, ..Behaviour::default() }).unwrap_err();
    assert!(error.context.contains("changes faster"), "{error}");
    let error = discover(Behaviour { refuse: Some(0x184), ..Behaviour::default() }).unwrap_err();
    assert_eq!(error.kind, HostErrorKind::NotAllowed);
}
