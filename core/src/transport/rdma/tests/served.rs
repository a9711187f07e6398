//! Our own host against the transport: every command, losses, and what it costs.

use std::time::Duration;

use super::*;
use crate::host::DiscoveryReader;
use crate::volume::VolumeRecord;
use crate::wire::log_page::TransportType;

#[test]
fn what_is_written_is_read_back_for_all_sizes_and_no_byte_of_it_is_copied() {
    let mut pair = Pair::connect(1);
    for (at, len) in [512, 4096, 4608, 8192, 65536, 262_144].into_iter().enumerate() {
        let data = pattern(at, len);
        let offset = (at as u64) << 20;
        assert!(pair.done(Command::Write { fua: at % 2 == 0 }, offset, len as u32, Some(&data)).0.is_success());
        assert_eq!(pair.done(Command::Read, offset, len as u32, None), (Outcome::Success, data));
    }
    assert!(pair.done(Command::Flush, 0, 0, None).0.is_success());
    assert!(pair.done(Command::WriteZeroes { fua: false, deallocate: true }, 0, 4096, None).0.is_success());
    assert!(pair.done(Command::Deallocate, 1 << 20, 4096, None).0.is_success());
    assert_eq!(pair.done(Command::Read, 1 << 20, 4096, None).1, vec![0; 4096]);
    assert_eq!(pair.target.transport.stats().bytes_copied, 0);
}

#[test]
fn a_read_of_4_kib_costs_one_receive_one_write_and_one_send() {
    let mut pair = Pair::connect(2);
    pair.done(Command::Read, 0, 4096, None);
    let total = |pair: &Pair| pair.target.transport.verbs.as_ref().unwrap().total();
    let before = total(&pair);
    for _ in 0..32 {
        pair.done(Command::Read, 4096, 4096, None);
    }
    let after = total(&pair);
    assert_eq!((after.receives - before.receives, after.writes - before.writes), (32, 32));
    assert_eq!((after.sends - before.sends, after.reads - before.reads), (32, 0));
    assert!(after.doorbells - before.doorbells <= 64, "write and send share a doorbell");
    assert!(after.signalled - before.signalled <= 32, "at most one completion for both");
    assert_eq!(after.bytes_copied, 0);
}

#[test]
fn a_full_queue_of_mixed_commands_ends_each_exactly_once_in_any_order_of_events() {
    for seed in 0..8 {
        let mut pair = Pair::connect(seed);
        for round in 0..10u64 {
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
fn compare_and_write_wins_once_in_the_capsule_and_beyond_it() {
    let mut pair = Pair::connect(3);
    let (old, new) = (vec![0u8; 512], vec![9u8; 512]);
    let both = [old.clone(), new.clone()].concat();
    let command = Command::CompareAndWrite { fua: false };
    assert!(pair.done(command, 4096, 512, Some(&both)).0.is_success());
    assert!(!pair.done(command, 4096, 512, Some(&both)).0.is_success());
    assert_eq!(pair.done(Command::Read, 4096, 512, None).1, new);
    let long = [new, vec![0; 7680]].concat();
    assert!(pair.done(Command::Compare, 4096, 8192, Some(&long)).0.is_success());
    assert!(!pair.done(Command::Compare, 0, 8192, Some(&long)).0.is_success());
}

#[test]
fn a_resize_reaches_the_host() {
    let mut pair = Pair::connect(4);
    pair.turns(200);
    let grown = VolumeRecord { size: 2 * VOLUME_BYTES as u64, ..record() };
    let mut events = Vec::new();
    pair.target.transport.on_directory(&mut pair.target.io, &directory(2, grown), &mut events);
    let HostEvent::Resized(namespace) = pair.until("the notice", |event| matches!(event, HostEvent::Resized(_))) else {
        unreachable!()
    };
    assert_eq!(namespace.size, 2 * VOLUME_BYTES as u64);
}

#[test]
fn discovery_over_rdma_lists_the_volume_where_it_was_reached() {
    let world = World::new(5, WorldConfig::default());
    let fabric = Fabric::new(5);
    let mut target = Target::new(&world, &fabric);
    let mut io = world.outside();
    let (verbs, _) = fabric.endpoint(io.buffers(), None, None);
    let mut reader = DiscoveryReader::over_rdma(HostConfig::new(target.addr, "").rdma(), verbs);
    reader.start(&mut io);
    for _ in 0..100_000 {
        target.turn();
        io.poll(Wait::Until(io.now().plus_ns(STEP_NS)), &mut Vec::new());
        if let Some(found) = reader.turn(&mut io) {
            let found = found.unwrap();
            assert_eq!(found.len(), 1);
            assert_eq!((found[0].transport, found[0].address.as_str()), (Some(TransportType::Rdma), "10.0.0.1"));
            return;
        }
    }
    panic!("the log was not read");
}

#[test]
fn connections_that_are_cut_under_load_lose_nothing_and_leave_nothing() {
    for seed in 10..16 {
        let mut pair = Pair::connect(seed);
        for round in 0..4u64 {
            for user in 0..24 {
                let data = pattern((round * 37 + user) as usize, 16384);
                pair.submit(user, Command::Write { fua: false }, user << 16, 16384, Some(&data));
            }
            pair.turns((seed + round) as usize % 5);
            let qps: Vec<_> = pair.target.transport.by_qp.keys().copied().collect();
            pair.fabric.cut(pair.target.endpoint, qps[round as usize % qps.len()]);
            for user in 0..24 {
                assert!(pair.end_of(user).0.is_success());
            }
            for user in 0..24 {
                let expected = pattern((round * 37 + user) as usize, 16384);
                assert_eq!(pair.done(Command::Read, user << 16, 16384, None), (Outcome::Success, expected));
            }
        }
        assert!(pair.events.iter().any(|event| matches!(event, HostEvent::Reconnected { .. })));
        pair.leaves_nothing();
    }
}

#[test]
fn a_connection_that_is_cut_keeps_its_place_until_the_device_has_done() {
    let mut pair = Pair::connect(20);
    pair.target.hold = true;
    pair.submit(1, Command::Write { fua: false }, 0, 65536, Some(&pattern(1, 65536)));
    pair.submit(2, Command::Read, 1 << 20, 65536, None);
    pair.turns(200);
    assert_eq!(pair.target.held.len(), 2);
    pair.fabric.remove_device(pair.target.endpoint);
    pair.turns(2000);
    assert!(pair.target.transport.connections() > 0, "requests are with the device");
    assert!(pair.target.held.iter().all(|(_, request)| request.data.is_some()), "and so are their buffers");
    pair.target.hold = false;
    pair.leaves_nothing();
}

#[test]
fn a_device_that_goes_away_and_comes_back_is_listened_at_again_and_costs_no_error() {
    let mut pair = Pair::connect(21);
    pair.still_serves(1);
    pair.fabric.remove_device(pair.target.endpoint);
    pair.until("the loss", |event| matches!(event, HostEvent::Lost(_)));
    pair.submit(7, Command::Write { fua: false }, 0, 4096, Some(&pattern(9, 4096)));
    pair.turns(100);
    assert_eq!(pair.target.ports, [vec![]], "discovery does not send anybody there");
    pair.fabric.return_device(pair.target.endpoint);
    assert!(pair.end_of(7).0.is_success());
    assert_eq!(pair.target.ports, [vec![], vec![pair.target.addr]], "and does again");
    pair.still_serves(2);
}

#[test]
fn the_first_device_may_come_after_the_start() {
    let world = World::new(26, WorldConfig::default());
    let fabric = Fabric::new(26);
    let coming = Coming::default();
    let mut target = Target::without_devices(&world, &fabric, &coming);
    for _ in 0..100 {
        target.turn();
    }
    assert!(target.transport.is_on() && target.transport.connections() == 0 && target.ports.is_empty());
    coming.store(true, Ordering::Relaxed);
    while target.ports.is_empty() {
        assert!(target.io.now() < Instant(5_000_000_000), "the devices are found");
        target.turn();
    }
    let mut pair = Pair::with(target, world, fabric, |_| {});
    pair.until("the connection", |event| matches!(event, HostEvent::Ready(_)));
    assert_eq!(pair.target.ports, [vec![pair.target.addr]]);
    pair.still_serves(1);
    pair.leaves_nothing();
}

#[test]
fn work_that_fails_by_itself_now_and_then_costs_a_host_time_and_nothing_else() {
    for seed in 30..34 {
        let sim = SimConfig { failures_per_million: 2_000, ..SimConfig::default() };
        let mut pair = Pair::new(seed, sim, |config| config.reconnect.wait_for_target = Duration::from_secs(60));
        pair.until("the connection", |event| matches!(event, HostEvent::Ready(_)));
        for round in 0..40 {
            let data = pattern(round, 32768);
            assert!(pair.done(Command::Write { fua: false }, 0, 32768, Some(&data)).0.is_success());
            assert_eq!(pair.done(Command::Read, 0, 32768, None), (Outcome::Success, data));
        }
        pair.leaves_nothing();
    }
}

#[test]
fn a_host_that_says_nothing_any_more_is_given_up_when_its_keep_alive_has_passed() {
    let mut pair = Pair::connect_with(22, SimConfig::default(), |config| config.keep_alive = Duration::from_secs(1));
    pair.fabric.silence(pair.host_endpoint);
    for _ in 0..200_000 {
        pair.target.turn();
        if pair.target.transport.connections() == 0 {
            assert_eq!(pair.target.registry.len(), 0);
            return pair.leaves_nothing();
        }
    }
    panic!("the target still believes in it");
}

#[test]
fn a_target_that_drains_answers_what_it_has_taken_and_closes() {
    let mut pair = Pair::connect(23);
    pair.target.hold = true;
    pair.submit(1, Command::Write { fua: false }, 0, 8192, Some(&pattern(1, 8192)));
    pair.turns(100);
    pair.target.transport.drain(&mut pair.target.io);
    pair.turns(100);
    assert!(!pair.target.transport.is_quiet(), "a command is not answered yet");
    pair.target.hold = false;
    assert!(pair.end_of(1).0.is_success());
    pair.until_connections(0);
    assert!(pair.target.transport.is_quiet());
}

#[test]
fn commands_wait_for_buffers_and_none_fails() {
    let mut pair = Pair::connect(24);
    let pool = pair.target.io.buffers();
    for user in 0..20 {
        pair.submit(user, Command::Write { fua: false }, user << 16, 32768, Some(&pattern(user as usize, 32768)));
    }
    let hoard: Vec<_> = std::iter::from_fn(|| pool.get(4096)).collect();
    pair.turns(300);
    assert!(pair.target.transport.stats().waited_for_buffer > 0);
    drop(hoard);
    for user in 0..20 {
        assert!(pair.end_of(user).0.is_success());
    }
}

#[test]
fn a_command_that_comes_after_its_association_has_died_waits_for_the_next_one() {
    let mut pair = Pair::connect(25);
    let ended = pair.target.registry.end_all(VolumeId(7));
    assert_eq!(ended.len(), 1);
    pair.submit(1, Command::Write { fua: false }, 0, 4096, Some(&pattern(1, 4096)));
    pair.until("the loss", |event| matches!(event, HostEvent::Lost(_)));
    pair.target.fences.extend(ended);
    assert!(pair.end_of(1).0.is_success());
}
