//! What every client relies on.

use std::time::{Duration, Instant};

use ringway_core::control::ControlRequest;
use ringway_core::metrics::{ConnectionMetrics, ReactorMetrics};
use ringway_core::target::PoolSpec;
use ringway_shm_ring::client::{Client, ConnectError, ConnectOptions, Polling, Queue, Reject};
use ringway_shm_ring::message::Reason;

use crate::rig::{MIB, call, config, connect, create, options, pattern, serve, stop, volume};

#[test]
fn what_a_client_writes_it_reads_again_by_every_kind_of_command() {
    let dir = tempfile::tempdir().unwrap();
    let target = serve(config(PoolSpec::Memory(256 * MIB), dir.path()));
    create(&target, volume("vm1", 64 * MIB));
    let client = connect(dir.path(), "vm1");
    let info = client.volume();
    assert_eq!((info.size, info.block_bytes, info.read_only), (64 * MIB, 512, false));
    let mut queue = client.take_queue().unwrap();
    assert!(client.take_queue().is_none());

    // Longer than one command, across stripes; then a single sector inside.
    let data = pattern(MIB - 8192, 3 << 20, 1);
    queue.write_at(MIB - 8192, &data, false).unwrap();
    let mut back = vec![0; data.len()];
    queue.read_at(MIB - 8192, &mut back).unwrap();
    assert!(back == data);
    queue.write_at(MIB + 512, &pattern(0, 512, 2), true).unwrap();
    queue.read_at(MIB, &mut back[..4096]).unwrap();
    assert!(
        back[..512] == data[8192..8704]
            && back[512..1024] == pattern(0, 512, 2)
            && back[1024..4096] == data[9216..12288]
    );
    queue.flush_now().unwrap();

    queue.write_zeroes_at(MIB, 4096, true).unwrap();
    queue.deallocate_at(2 * MIB, 65536).unwrap();
    for (offset, len) in [(MIB, 4096), (2 * MIB, 65536)] {
        let mut back = vec![1; len];
        queue.read_at(offset, &mut back).unwrap();
        assert!(back.iter().all(|&byte| byte == 0), "at {offset}");
    }

    let mut same = client.alloc(512).unwrap();
    same.fill(0);
    queue.compare(MIB, same, 1).unwrap();
    let mut other = client.alloc(512).unwrap();
    other.fill(9);
    queue.compare(MIB, other, 2).unwrap();
    let mut ended = Vec::new();
    while ended.len() < 2 {
        queue.wait(Duration::from_secs(10), &mut ended);
    }
    ended.sort_by_key(|completion| completion.tag);
    assert!(ended[0].status.is_success());
    assert_eq!(ended[1].status.code(), (2, 0x85), "{}", ended[1].status);
    stop(target);
}

#[test]
fn every_command_of_a_full_queue_ends_once_with_its_own_data_on_each_of_four_queues() {
    let dir = tempfile::tempdir().unwrap();
    let target = serve(config(PoolSpec::Memory(512 * MIB), dir.path()));
    create(&target, volume("vm1", 256 * MIB));
    let client = Client::connect(ConnectOptions { queues: 4, depth: 32, ..options(dir.path(), "vm1", 1) }).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let mut queue = client.take_queue().unwrap();
            let client = &client;
            scope.spawn(move || {
                let place = |number: u64| thread * 64 * MIB + number * 4096 * 37 % (63 * MIB) / 4096 * 4096;
                let (mut next, mut ended, mut left) = (0, Vec::new(), 4096);
                while left > 0 {
                    while next < 4096 {
                        let Some(mut buffer) = client.alloc(4096) else { break };
                        buffer.copy_from_slice(&pattern(place(next), 4096, 7));
                        match queue.write(place(next), buffer, false, next) {
                            Ok(()) => next += 1,
                            Err(rejected) => {
                                assert_eq!((rejected.why, rejected.buffer.is_some()), (Reject::Full, true));
                                break;
                            }
                        }
                    }
                    queue.ring();
                    if queue.poll(&mut ended) == 0 {
                        queue.wait(Duration::from_secs(10), &mut ended);
                    }
                    for completion in ended.drain(..) {
                        assert!(completion.status.is_success(), "{}", completion.status);
                        left -= 1;
                    }
                }
                assert_eq!(queue.outstanding(), 0);
                let mut back = vec![0; 4096];
                for number in (0..4096).step_by(17) {
                    queue.read_at(place(number), &mut back).unwrap();
                    assert!(back == pattern(place(number), 4096, 7));
                }
            });
        }
    });
    stop(target);
}

#[test]
fn data_that_is_not_aligned_is_moved_all_the_same_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let target = serve(config(PoolSpec::Memory(256 * MIB), dir.path()));
    create(&target, volume("vm1", 64 * MIB));
    let client = connect(dir.path(), "vm1");
    let mut queue = client.take_queue().unwrap();
    let ends = |queue: &mut Queue| {
        let mut ended = Vec::new();
        while queue.wait(Duration::from_secs(10), &mut ended) == 0 {}
        let completion = ended.pop().unwrap();
        assert!(completion.status.is_success(), "{}", completion.status);
        completion.buffer.unwrap()
    };
    let mut area = client.alloc(64 << 10).unwrap();
    area[104..4200].copy_from_slice(&pattern(0, 4096, 3));
    queue.write_part(4096, area, 104..4200, false, 0).unwrap();
    let mut area = ends(&mut queue);
    for start in [8192 + 40, 16384] {
        queue.read_part(4096, area, start..start + 4096, 0).unwrap();
        area = ends(&mut queue);
        assert!(area[start..start + 4096] == pattern(0, 4096, 3));
    }
    let copied = || target.metrics().reactors.iter().map(|reactor| reactor.bytes_copied.get()).sum::<u64>();
    let started = Instant::now();
    while copied() < 8192 && started.elapsed() < Duration::from_secs(10) {
        queue.read_at(0, &mut [0; 512]).unwrap();
    }
    assert_eq!(copied(), 8192, "one write and one read were not aligned");
    stop(target);
}

#[test]
fn commands_that_cannot_be_are_refused_where_they_are_made_or_by_the_target() {
    let dir = tempfile::tempdir().unwrap();
    let target = serve(config(PoolSpec::Null(256 * MIB), dir.path()));
    create(&target, volume("vm1", 64 * MIB));
    let client = connect(dir.path(), "vm1");
    let mut queue = client.take_queue().unwrap();
    let why = |result: Result<(), ringway_shm_ring::client::Rejected>| result.unwrap_err().why;
    assert_eq!(why(queue.read(100, client.alloc(512).unwrap(), 0)), Reject::Unaligned);
    assert_eq!(why(queue.read(0, client.alloc(513).unwrap(), 0)), Reject::Unaligned);
    assert_eq!(why(queue.read(0, client.alloc(MIB as usize).unwrap(), 0)), Reject::TooLong);
    assert_eq!(why(queue.write_zeroes(0, 1 << 30, false, 0)), Reject::TooLong);
    let error = queue.read_at(64 * MIB, &mut [0; 512]).unwrap_err();
    assert!(error.to_string().contains("beyond the end of the volume"), "{error}");
    let buffer = client.alloc(4096).unwrap();
    for _ in 0..queue.depth() {
        queue.flush(0).unwrap();
    }
    let rejected = queue.read(0, buffer, 5).unwrap_err();
    assert!(rejected.why == Reject::Full && rejected.buffer.is_some());
    stop(target);
}

#[test]
fn who_may_not_attach_is_told_why() {
    let dir = tempfile::tempdir().unwrap();
    let error = Client::connect(options(dir.path(), "vm1", 1)).unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }) && error.to_string().contains("shm.sock"), "{error}");
    let target = serve(config(PoolSpec::Null(256 * MIB), dir.path()));
    let allowed = options(dir.path(), "", 7).host.nqn;
    create(&target, ringway_core::control::VolumeCreate { allowed_hosts: vec![allowed], ..volume("listed", MIB) });
    create(&target, ringway_core::control::VolumeCreate { exclusive: true, ..volume("alone", MIB) });
    let refused = |volume, host| match Client::connect(options(dir.path(), volume, host)) {
        Err(ConnectError::Refused { reason, text }) => (reason, text),
        other => panic!("{other:?}"),
    };
    let (reason, text) = refused("nothing", 1);
    assert!(reason == Reason::NoVolume && text.contains("no volume nothing"), "{text}");
    let (reason, text) = refused("listed", 1);
    assert!(reason == Reason::Denied && text.contains("not on the list"), "{text}");
    drop(Client::connect(options(dir.path(), "listed", 7)).unwrap());
    let first = Client::connect(options(dir.path(), "alone", 1)).unwrap();
    assert_eq!(refused("alone", 2).0, Reason::Busy);
    // The same host may come twice; when both are gone, another may.
    let second = Client::connect(options(dir.path(), "alone", 1)).unwrap();
    drop((first, second));
    let started = Instant::now();
    while Client::connect(options(dir.path(), "alone", 2)).is_err() {
        assert!(started.elapsed() < Duration::from_secs(10), "a client that left still holds its volume");
    }
    stop(target);
}

#[test]
fn a_volume_has_one_client_that_asked_to_be_its_writer_and_any_that_did_not() {
    let dir = tempfile::tempdir().unwrap();
    let target = serve(config(PoolSpec::Memory(256 * MIB), dir.path()));
    create(&target, volume("vm1", 8 * MIB));
    let writer = |number| ConnectOptions { lease: true, ..options(dir.path(), "vm1", number) };
    let first = Client::connect(writer(1)).unwrap();
    let refused = Client::connect(writer(2)).unwrap_err();
    assert!(matches!(&refused, ConnectError::Refused { reason: Reason::Busy, .. }), "{refused}");
    let beside = connect(dir.path(), "vm1");
    beside.take_queue().unwrap().flush_now().unwrap();
    drop((first, beside));
    let started = Instant::now();
    while Client::connect(writer(2)).is_err() {
        assert!(started.elapsed() < Duration::from_secs(10), "a client that left still is the writer");
    }
    stop(target);
}

#[test]
fn a_client_hears_of_a_new_size_and_of_the_end_of_its_volume() {
    let dir = tempfile::tempdir().unwrap();
    let target = serve(config(PoolSpec::Memory(256 * MIB), dir.path()));
    create(&target, volume("vm1", 8 * MIB));
    let client =
        Client::connect(ConnectOptions { patience: Duration::from_millis(300), ..options(dir.path(), "vm1", 1) })
            .unwrap();
    let mut queue = client.take_queue().unwrap();
    assert!(queue.read_at(12 * MIB, &mut [0; 512]).is_err());
    call(&target, ControlRequest::VolumeResize { name: "vm1".into(), size: 16 * MIB }).unwrap();
    let started = Instant::now();
    while client.volume().size != 16 * MIB {
        assert!(started.elapsed() < Duration::from_secs(10), "the client was not told");
    }
    queue.read_at(12 * MIB, &mut [0; 512]).unwrap();
    stop(target);
    // Nobody comes back.
    let error = queue.read_at(0, &mut [0; 512]).unwrap_err();
    assert!(error.to_string().contains("the target is gone"), "{error}");
    assert!(client.is_lost());
    assert_eq!(queue.flush(0).unwrap_err().why, Reject::Lost);
}

#[test]
fn a_compare_and_write_writes_where_it_finds_what_was_expected_and_no_two_do_so_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let target = serve(config(PoolSpec::Memory(256 * MIB), dir.path()));
    create(&target, volume("vm1", 64 * MIB));
    let client = Client::connect(ConnectOptions { queues: 4, depth: 8, ..options(dir.path(), "vm1", 1) }).unwrap();
    // A counter in one block, which four queues count up: each success saw what the one before has written.
    let block = |value: u64| value.to_le_bytes().repeat(64);
    let successes: u64 = std::thread::scope(|scope| {
        let count = || {
            let mut queue = client.take_queue().unwrap();
            scope.spawn(move || {
                let (mut seen, mut successes) = (0, 0);
                let mut now = vec![0; 512];
                while successes < 200 {
                    if queue.compare_and_write_at(3584, &block(seen), &block(seen + 1), false).unwrap() {
                        (seen, successes) = (seen + 1, successes + 1);
                    } else {
                        queue.read_at(3584, &mut now).unwrap();
                        assert!(now[8..] == now[..504], "half of a write was seen");
                        seen = u64::from_le_bytes(now[..8].try_into().unwrap());
                    }
                }
                successes
            })
        };
        let counting: Vec<_> = (0..4).map(|_| count()).collect();
        counting.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let client = connect(dir.path(), "vm1");
    let mut queue = client.take_queue().unwrap();
    let mut now = vec![0; 512];
    queue.read_at(3584, &mut now).unwrap();
    assert!(now == block(successes), "{successes} successes");
    // Two blocks are more than are compared and written at once (ACWU is 0).
    let both = client.alloc(2048).unwrap();
    assert_eq!(queue.compare_and_write(0, both, false, 0).unwrap_err().why, Reject::TooLong);
    stop(target);
}

#[test]
fn each_queue_is_shown_with_its_client_its_commands_and_its_bytes_while_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let target = serve(config(PoolSpec::Memory(256 * MIB), dir.path()));
    create(&target, volume("vm1", 64 * MIB));
    let client = Client::connect(ConnectOptions { queues: 2, ..options(dir.path(), "vm1", 1) }).unwrap();
    let (mut first, mut second) = (client.take_queue().unwrap(), client.take_queue().unwrap());
    first.write_at(0, &[1; 12288], false).unwrap();
    first.flush_now().unwrap();
    second.read_at(0, &mut [0; 8192]).unwrap();
    let shown = || {
        let mut shown: Vec<_> = target.metrics().connections();
        shown.sort_by_key(|one| one.label.queue);
        let counts = |one: &ConnectionMetrics| (one.commands.get(), one.bytes_received.get(), one.bytes_sent.get());
        shown.iter().map(|one| (one.label.clone(), counts(one), one.in_flight.get())).collect::<Vec<_>>()
    };
    let started = Instant::now();
    while shown().iter().map(|one| one.1).collect::<Vec<_>>() != [(2, 12288, 0), (1, 0, 8192)] {
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", shown());
    }
    for (nth, (label, _, in_flight)) in shown().iter().enumerate() {
        assert_eq!((label.peer.clone(), in_flight), (format!("shm:{}", std::process::id()), &0));
        assert_eq!((label.subsystem.as_str(), label.queue), ("nqn.2026-11.io.ringway:vm1", nth as u16));
    }
    drop((first, second, client));
    while !shown().is_empty() {
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", shown());
    }
    stop(target);
}

#[test]
fn a_client_that_rests_lets_its_reactors_sleep_unless_it_wants_them_to_poll() {
    let dir = tempfile::tempdir().unwrap();
    let target = serve(config(PoolSpec::Null(256 * MIB), dir.path()));
    create(&target, volume("vm1", 64 * MIB));
    for polling in [Polling::Interrupt, Polling::Adaptive, Polling::Busy] {
        let client = Client::connect(ConnectOptions { polling, ..options(dir.path(), "vm1", 1) }).unwrap();
        let mut queue = client.take_queue().unwrap();
        // It is heard all the same, after rests that are longer than anybody polls and after shorter ones.
        for round in 0..50u64 {
            std::thread::sleep(Duration::from_micros(round % 5 * 100));
            queue.read_at(round * 4096, &mut [0; 4096]).unwrap();
        }
        let turns = || -> u64 {
            let of = |reactor: &ReactorMetrics| reactor.polls_empty.get() + reactor.polls_busy.get();
            target.metrics().reactors.iter().map(of).sum()
        };
        std::thread::sleep(Duration::from_millis(300));
        let before = turns();
        std::thread::sleep(Duration::from_secs(1));
        let (turned, polls) = (turns() - before, polling == Polling::Busy);
        assert!(if polls { turned > 10_000 } else { turned < 500 }, "{polling:?}: {turned} turns in a second");
    }
    stop(target);
}
