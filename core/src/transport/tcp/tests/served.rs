//! Our own host against the transport: every command, both digests, many segmentations.

use std::time::Duration;

use ringway_reactor::sim::{SimIo, World};

use super::*;
use crate::host::{ControllerKind, Event, Host, HostConfig, HostRequest, Outcome};

struct Pair {
    target: Target,
    io: SimIo,
    host: Host,
    events: Vec<Event>,
    _world: World,
}

impl Pair {
    fn connect(seed: u64, change: impl FnOnce(&mut HostConfig)) -> Pair {
        Self::connect_to(seed, |_| {}, change)
    }

    fn connect_to(seed: u64, target: impl FnOnce(&mut TransportConfig), change: impl FnOnce(&mut HostConfig)) -> Pair {
        let world = world(seed);
        let target = Target::new(&world, target);
        let mut config = HostConfig {
            controller: ControllerKind::Io { queues: 2, depth: 16 },
            ..HostConfig::new(target.addr, "nqn.2026-11.io.ringway:vm1")
        };
        change(&mut config);
        let mut io = world.outside();
        let mut host = Host::new(config);
        host.start(&mut io);
        let mut pair = Pair { target, io, host, events: Vec::new(), _world: world };
        pair.until("the connection", |event| matches!(event, Event::Ready(_)));
        pair
    }

    fn turn(&mut self) {
        self.target.turn();
        let mut completions = Vec::new();
        let until = self.host.next_deadline().min(self.io.now().plus_ns(10_000_000));
        self.io.poll(Wait::Until(until), &mut completions);
        completions.into_iter().for_each(|completion| self.host.on_completion(&mut self.io, completion));
        self.host.turn(&mut self.io);
        self.events.extend(self.host.events());
    }

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
        let bytes = if command == Command::Read { len as usize } else { data.map_or(0, <[u8]>::len) };
        let mut buf = (bytes > 0).then(|| self.io.buffers().get(bytes).expect("the test holds few buffers"));
        if let (Some(buf), Some(data)) = (&mut buf, data) {
            buf.copy_from_slice(data);
        }
        let request = HostRequest { user, command, offset, len, buf };
        self.host.submit(&mut self.io, request).map_err(|(_, error)| error).expect("the host takes it");
    }

    fn end_of(&mut self, user: u64) -> (Outcome, Vec<u8>) {
        let event = self.until("the end of a command", |event| matches!(event, Event::Completed(c) if c.user == user));
        let Event::Completed(completed) = event else { unreachable!() };
        (completed.outcome, completed.buf.map_or_else(Vec::new, |buf| buf.to_vec()))
    }

    fn done(&mut self, command: Command, offset: u64, len: u32, data: Option<&[u8]>) -> (Outcome, Vec<u8>) {
        self.submit(1, command, offset, len, data);
        self.end_of(1)
    }
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31 + seed * 7919) >> 3) as u8).collect()
}

fn digests(config: &mut HostConfig) {
    (config.header_digest, config.data_digest) = (true, true);
}

#[test]
fn what_is_written_is_read_back_for_all_sizes_with_and_without_digests() {
    for (seed, change) in [(1, (|_: &mut HostConfig| {}) as fn(&mut HostConfig)), (2, digests)] {
        let mut pair = Pair::connect(seed, change);
        for (at, len) in [512, 4096, 8192, 8704, 65536, 262_144].into_iter().enumerate() {
            let data = pattern(at, len);
            let offset = (at as u64) << 20;
            assert!(pair.done(Command::Write { fua: at % 2 == 0 }, offset, len as u32, Some(&data)).0.is_success());
            assert_eq!(pair.done(Command::Read, offset, len as u32, None), (Outcome::Success, data));
        }
        assert!(pair.done(Command::Flush, 0, 0, None).0.is_success());
        assert!(pair.done(Command::WriteZeroes { fua: false, deallocate: true }, 0, 4096, None).0.is_success());
        assert!(pair.done(Command::Deallocate, 1 << 20, 4096, None).0.is_success());
        assert_eq!(pair.done(Command::Read, 1 << 20, 4096, None).1, vec![0; 4096]);
    }
}

#[test]
fn a_full_queue_of_mixed_commands_ends_each_exactly_once_under_any_segmentation() {
    for seed in 0..20 {
        let mut pair = Pair::connect(seed, |config| {
            if seed % 2 == 0 {
                digests(config);
            }
        });
        for round in 0..20u64 {
            for user in 0..30 {
                let offset = (user * 16) << 12;
                let len = 4096 << (user % 5);
                let data = pattern((round * 31 + user) as usize, len);
                if (round + user) % 3 == 0 {
                    pair.submit(user, Command::Read, offset, len as u32, None);
                } else {
                    pair.submit(user, Command::Write { fua: false }, offset, len as u32, Some(&data));
                }
            }
            for user in 0..30 {
                assert!(pair.end_of(user).0.is_success());
            }
        }
        assert_eq!(pair.target.transport.stats().terminated, 0);
    }
}

#[test]
fn compare_and_write_wins_once() {
    let mut pair = Pair::connect(3, |_| {});
    let (old, new) = (vec![0u8; 512], vec![9u8; 512]);
    let both = [old.clone(), new.clone()].concat();
    let command = Command::CompareAndWrite { fua: false };
    assert!(pair.done(command, 4096, 512, Some(&both)).0.is_success());
    assert!(!pair.done(command, 4096, 512, Some(&both)).0.is_success());
    assert_eq!(pair.done(Command::Read, 4096, 512, None).1, new);
    assert!(pair.done(Command::Compare, 4096, 512, Some(&new)).0.is_success());
    assert!(!pair.done(Command::Compare, 4096, 512, Some(&old)).0.is_success());
}

#[test]
fn a_resize_reaches_the_host() {
    let mut pair = Pair::connect(4, |_| {});
    for _ in 0..200 {
        pair.turn();
    }
    let grown = VolumeRecord { size: 2 * VOLUME_BYTES as u64, ..record() };
    let mut events = Vec::new();
    pair.target.transport.on_directory(&mut pair.target.io, directory(2, grown), &mut events);
    let Event::Resized(namespace) = pair.until("the notice", |event| matches!(event, Event::Resized(_))) else {
        unreachable!()
    };
    assert_eq!(namespace.size, 2 * VOLUME_BYTES as u64);
}

#[test]
fn without_buffers_commands_wait_and_none_fails() {
    let mut pair = Pair::connect_to(
        5,
        |config| (config.connection_bytes_max, config.receiving_bytes_max) = (64 << 10, 64 << 10),
        |_| {},
    );
    for user in 0..30 {
        let data = pattern(user as usize, 65536);
        pair.submit(user, Command::Write { fua: false }, user << 16, 65536, Some(&data));
    }
    for user in 0..30 {
        assert!(pair.end_of(user).0.is_success());
    }
    assert!(pair.target.transport.stats().waited_for_buffer > 0);
    let data = pattern(29, 65536);
    assert_eq!(pair.done(Command::Read, 29 << 16, 65536, None).1, data);
}

#[test]
fn c11_a_host_that_connects_again_is_answered_only_after_the_fence_of_its_former_association() {
    let mut pair = Pair::connect(6, |_| {});
    pair.target.hold = true;
    pair.target.fence_at_once = false;
    let data = pattern(1, 4096);
    pair.submit(1, Command::Write { fua: false }, 0, 4096, Some(&data));
    for _ in 0..200 {
        pair.turn();
    }
    assert_eq!(pair.target.held.len(), 1, "the first copy is at the shards");
    pair._world.break_connections();
    for _ in 0..2000 {
        pair.turn();
    }
    assert!(!pair.host.is_ready(), "what was in flight is not fenced");
    assert_eq!(pair.target.held.len(), 1);
    // The first copy ends, late; then the fence does.
    pair.target.hold = false;
    pair.turn();
    pair.target.fence_all();
    pair.target.fence_at_once = true;
    assert!(pair.end_of(1).0.is_success());
    assert!(pair.events.iter().any(|event| matches!(event, Event::Reconnected { resent: 1, .. })));
}

#[test]
fn a_silent_host_is_ended_by_its_keep_alive_timeout_and_leaves_nothing_behind() {
    let mut pair = Pair::connect(7, |config| config.keep_alive = Duration::from_secs(2));
    let before = pair.target.transport.connections();
    assert_eq!(before, 3);
    // The host gets no more turns.
    for _ in 0..5000 {
        pair.target.turn();
        pair._world.advance_ns(2_000_000);
    }
    assert_eq!(pair.target.transport.connections(), 0);
    assert!(pair.target.registry.is_empty());
}

#[test]
fn a_drained_transport_answers_what_it_has_taken_and_closes() {
    let mut pair = Pair::connect(8, |_| {});
    let data = pattern(2, 4096);
    pair.submit(1, Command::Write { fua: false }, 0, 4096, Some(&data));
    pair.target.hold = true;
    for _ in 0..200 {
        pair.turn();
    }
    pair.target.transport.drain(&mut pair.target.io);
    for _ in 0..200 {
        pair.turn();
    }
    assert!(!pair.target.transport.is_quiet());
    pair.target.hold = false;
    for _ in 0..2000 {
        pair.target.turn();
    }
    assert!(pair.target.transport.is_quiet());
    // Whether the answer or the end of another connection reaches the host first is the network's business; the write is done.
    assert_eq!(pair.target.store[..4096], data);
}

#[test]
fn every_command_ends_exactly_once_wherever_connections_break() {
    for seed in 0..60 {
        let mut pair = Pair::connect(100 + seed, |_| {});
        for round in 0..4u64 {
            for user in 0..30 {
                let data = pattern((round * 31 + user) as usize, 4096);
                match user % 3 {
                    0 => pair.submit(user, Command::Flush, 0, 0, None),
                    1 => pair.submit(user, Command::Read, user << 12, 4096, None),
                    _ => pair.submit(user, Command::Write { fua: false }, user << 12, 4096, Some(&data)),
                }
            }
            for _ in 0..pair._world.pick(60) {
                pair.turn();
            }
            if round % 2 == 0 {
                pair._world.break_connections();
            } else {
                // Answers and the end of every connection are there when the host looks again.
                for _ in 0..20 {
                    pair.target.turn();
                    pair._world.advance_ns(100_000);
                }
                for association in 0..8 {
                    let mut events = std::mem::take(&mut pair.target.events);
                    let id = AssociationId(association);
                    pair.target.transport.kill_association(&mut pair.target.io, id, &mut events);
                    pair.target.events = events;
                }
                pair._world.advance_ns(2_000_000);
            }
            for user in 0..30 {
                assert!(pair.end_of(user).0.is_success(), "seed {seed}, round {round}, command {user}");
            }
            assert!(!pair.events.iter().any(|event| matches!(event, Event::Completed(_))), "a command ended twice");
        }
    }
}

#[test]
fn i5_a_connection_stands_once_in_the_line_for_a_buffer_however_many_answers_wait() {
    let mut pair = Pair::connect(77, |_| {});
    let mut waited = 0;
    // Headers are carved from one buffer: it takes some rounds until it is used up while no other is to be had.
    for _ in 0..50 {
        pair.target.hold = true;
        (1..=12).for_each(|user| pair.submit(user, Command::Flush, 0, 0, None));
        while pair.target.held.len() < 12 {
            pair.turn();
        }
        let mut all: Vec<_> = std::iter::from_fn(|| pair.target.io.buffers().get(1)).collect();
        pair.target.hold = false;
        for _ in 0..6 {
            pair.target.turn();
            let line = pair.target.transport.starved.len();
            waited = waited.max(line);
            assert!(line <= pair.target.transport.connections(), "{line} places in the line");
        }
        all.clear();
        (1..=12).for_each(|user| assert!(pair.end_of(user).0.is_success()));
    }
    assert!(waited > 0, "no answer ever had to wait");
}

#[test]
fn a_command_that_comes_after_its_association_has_died_waits_for_the_next_one() {
    let mut pair = Pair::connect(25, |_| {});
    let ended = pair.target.registry.end_all(VolumeId(7));
    assert_eq!(ended.len(), 1);
    pair.submit(1, Command::Write { fua: false }, 0, 4096, Some(&pattern(1, 4096)));
    pair.until("the loss", |event| matches!(event, Event::Lost(_)));
    pair.target.fences.extend(ended);
    assert!(pair.end_of(1).0.is_success());
}
