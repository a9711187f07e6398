//! A client that keeps no rule harms itself alone: beside each there is one that keeps them, and notices nothing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringway_core::target::{PoolSpec, RunningTarget};
use ringway_reactor::shared::SharedMemory;
use ringway_shm_ring::client::{Command, Queue};
use ringway_shm_ring::layout::Layout;
use ringway_shm_ring::line::Line;
use ringway_shm_ring::message::{Message, Reason};

use crate::peer::{Peer, hear, hello, knock, sent_away, start};
use crate::rig::{MIB, config, connect, create, pattern, serve, stop, volume};

fn target(folder: &Path) -> RunningTarget {
    let target = serve(config(PoolSpec::Memory(256 * MIB), folder));
    create(&target, volume("good", 16 * MIB));
    create(&target, volume("evil", 16 * MIB));
    target
}

/// Writes and reads again, all the time, until told to stop.
fn honest_rounds(mut queue: Queue, over: &AtomicBool) -> u64 {
    let mut rounds = 0;
    let mut back = vec![0; 8192];
    while !over.load(Ordering::Relaxed) {
        let offset = rounds * 8192 % (16 * MIB);
        let data = pattern(offset, 8192, rounds);
        queue.write_at(offset, &data, rounds % 64 == 0).unwrap();
        queue.read_at(offset, &mut back).unwrap();
        assert!(back == data, "round {rounds}: what was written is not what was read");
        rounds += 1;
    }
    rounds
}

#[test]
fn a_client_that_scribbles_over_its_ring_disturbs_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let target = target(dir.path());
    let client = connect(dir.path(), "good");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let queue = client.take_queue().unwrap();
        let honest = scope.spawn(|| honest_rounds(queue, &over));
        let mut peer = start("scribbler", dir.path());
        assert!(peer.wait());
        over.store(true, Ordering::Relaxed);
        assert!(honest.join().unwrap() > 50);
    });
    drop(Peer::connect(dir.path(), "evil", 2));
    stop(target);
}

#[test]
fn clients_that_die_with_full_queues_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let target = target(dir.path());
    let client = connect(dir.path(), "good");
    let mut queue = client.take_queue().unwrap();
    for round in 0..5 {
        let mut peers: Vec<_> = (0..3).map(|_| start("dier", dir.path())).collect();
        for peer in &mut peers {
            assert!(!peer.wait());
        }
        queue.write_at(0, &pattern(0, 4096, round), true).unwrap();
        // Nothing of the dead lands after this write of the same host.
        let next = Peer::connect(dir.path(), "evil", 2);
        drop(next);
    }
    drop((queue, client));
    stop(target);
}

#[test]
fn a_client_that_stops_consuming_is_bounded_by_its_queue_and_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let target = target(dir.path());
    let peer = Peer::connect(dir.path(), "evil", 4);
    let mut queue = peer.queue();
    let read = |cid: u16| Command::read(0, 8).with_data(0, 4096).with_cid(cid).words();
    for cid in 0..4 {
        queue.submit(read(cid));
    }
    peer.nudge();
    // It goes on without having taken one completion, by a queue that does not know of the first four.
    let started = Instant::now();
    while !queue.has_completion() {
        assert!(started.elapsed() < Duration::from_secs(10));
    }
    let at = peer.layout.queue(0).base() + 256;
    for (word, value) in read(4).into_iter().enumerate() {
        peer.memory.store_u64(at + 8 * word, value, Ordering::Relaxed);
    }
    peer.memory.store_u64(at + 8, u64::from(peer.generation) << 32 | 5, Ordering::Release);
    peer.nudge();
    let (reason, text) = sent_away(&peer);
    assert!(reason == Reason::Violation && text.contains("the queue has 4 entries"), "{text}");
    let errors = || target.metrics().reactors.iter().map(|reactor| reactor.protocol_errors.get()).sum::<u64>();
    let mut queue = connect(dir.path(), "good").take_queue().unwrap();
    while errors() == 0 {
        queue.read_at(0, &mut [0; 512]).unwrap();
        assert!(started.elapsed() < Duration::from_secs(10), "it is not counted");
    }
    stop(target);
}

#[test]
fn data_outside_the_data_area_and_lengths_that_lie_end_their_command_alone() {
    let dir = tempfile::tempdir().unwrap();
    let target = target(dir.path());
    let peer = Peer::connect(dir.path(), "evil", 16);
    let mut queue = peer.queue();
    let read = Command::read(0, 8);
    let cases = [
        (read.with_data(MIB, 4096), 0x16),
        (read.with_data(u64::MAX - 100, 4096), 0x16),
        (read.with_data(MIB - 4095, 4096), 0x16),
        (read.with_data(0, 8192), 0x0F),
        (read.with_data(0, 0), 0x0F),
        (Command::read(u64::MAX, 8).with_data(0, 4096), 0x80),
        (Command::read(16 * MIB / 512 - 4, 8).with_data(0, 4096), 0x80),
        (Command::deallocate(256).with_data(MIB - 16, 16), 0x0F),
        (read.with_data(MIB - 4096, 4096), 0),
    ];
    for (cid, (command, _)) in (0..).zip(&cases) {
        queue.submit(command.with_cid(cid).words());
    }
    peer.nudge();
    let started = Instant::now();
    let mut ended = 0;
    while ended < cases.len() {
        if let Some(completion) = queue.take() {
            let (_, code) = cases[usize::from(completion.cid)];
            assert_eq!(completion.status & 0xFF, code, "command {}", completion.cid);
            ended += 1;
        }
        assert!(started.elapsed() < Duration::from_secs(10));
    }
    stop(target);
}

#[test]
fn memory_that_may_shrink_or_lies_about_itself_is_refused_with_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let target = target(dir.path());
    let layout = Layout::new(1, 32, MIB).unwrap();
    let (sealed, memory) = SharedMemory::create("peer", layout.total_bytes() as usize).unwrap();
    let hello = hello(layout, "evil");
    let file = std::fs::File::create_new(dir.path().join("file")).unwrap();
    file.set_len(layout.total_bytes()).unwrap();
    let file = std::os::fd::OwnedFd::from(file);
    let (small, _) = SharedMemory::create("small", 1 << 20).unwrap();
    let refused = |hello, descriptors: &[&std::os::fd::OwnedFd]| match knock(dir.path(), hello, descriptors).1 {
        Message::Refused(Reason::Memory, text) => text,
        other => panic!("{other:?}"),
    };
    let text = refused(&hello, &[&file]);
    assert!(text.contains("no memfd") || text.contains("F_SEAL_SHRINK"), "{text}");
    assert!(refused(&hello, &[&small]).contains("1048576 bytes"), "a size that is not its layout's");
    assert!(refused(&hello, &[]).contains("0 descriptors"), "no memory at all");
    assert!(refused(&hello, &[&sealed, &small]).contains("2 descriptors"), "too much memory");
    let text = refused(&hello, &[&sealed]);
    assert!(text.contains("magic number"), "an empty header: {text}");
    layout.write_header(&*memory, hello.generation + 1);
    assert!(refused(&hello, &[&sealed]).contains("generation"), "another generation");
    // Nothing at all, and garbage.
    let silent = Line::connect(&dir.path().join("shm.sock")).unwrap();
    let info = connect(dir.path(), "good").volume();
    let babbler = Line::connect(&dir.path().join("shm.sock")).unwrap();
    babbler.send(&Message::Welcome(info), &[]).unwrap();
    assert!(matches!(hear(&babbler), Message::Refused(Reason::Malformed, _)));
    drop(silent);
    stop(target);
}

#[test]
fn a_command_that_changes_after_it_was_submitted_was_what_it_was_when_it_was_taken() {
    let dir = tempfile::tempdir().unwrap();
    let target = target(dir.path());
    let client = connect(dir.path(), "good");
    let over = Arc::new(AtomicBool::new(false));
    let peer = Peer::connect(dir.path(), "evil", 32);
    let (memory, base) = (Arc::clone(&peer.memory), peer.layout.queue(0).base() + 256);
    std::thread::scope(|scope| {
        let queue = client.take_queue().unwrap();
        let honest = scope.spawn(|| honest_rounds(queue, &over));
        // The data pointer and the block flip between what is allowed and what is not, all the time.
        let flipper = {
            let over = Arc::clone(&over);
            scope.spawn(move || {
                let mut turn = 0u64;
                while !over.load(Ordering::Relaxed) {
                    for slot in 0..32 {
                        let value = if turn.is_multiple_of(2) { 0 } else { u64::MAX - 4096 };
                        memory.store_u64(base + slot * 64 + 24, value, Ordering::Relaxed);
                        memory.store_u64(base + slot * 64 + 40, value >> 1, Ordering::Relaxed);
                    }
                    turn += 1;
                }
            })
        };
        let mut queue = peer.queue();
        let (mut submitted, mut statuses) = (0u16, std::collections::BTreeMap::new());
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(1) {
            while queue.has_room() {
                queue.submit(Command::write(0, 8, false).with_data(0, 4096).with_cid(submitted % 32).words());
                submitted = submitted.wrapping_add(1);
            }
            peer.nudge();
            while let Some(completion) = queue.take() {
                *statuses.entry(completion.status & 0xFF).or_insert(0u64) += 1;
            }
        }
        over.store(true, Ordering::Relaxed);
        flipper.join().unwrap();
        assert!(honest.join().unwrap() > 20);
        assert!(statuses.keys().all(|code| [0, 0x16, 0x80].contains(code)), "{statuses:?}");
        assert!(statuses.values().sum::<u64>() > 100, "{statuses:?}");
    });
    stop(target);
}

#[test]
fn half_a_fused_pair_ends_with_what_is_missing_and_a_pair_that_does_not_fit_together_ends_whole() {
    let dir = tempfile::tempdir().unwrap();
    let target = target(dir.path());
    let peer = Peer::connect(dir.path(), "evil", 32);
    let mut queue = peer.queue();
    let compare = |block: u64, blocks: u32| Command::compare(block, blocks).fused_first().with_data(0, blocks * 512);
    let write =
        |block: u64, blocks: u32| Command::write(block, blocks, false).fused_second().with_data(512, blocks * 512);
    let (missing, failed, invalid) = (0x0A, 0x09, 0x02);
    let cases = [
        // A first one, and then something else; a second one alone.
        (compare(0, 1), missing),
        (Command::read(0, 1).with_data(0, 512), 0),
        (write(0, 1), missing),
        // Two first ones; the last of them gets its second.
        (compare(0, 1), missing),
        (compare(0, 1), 0),
        (write(0, 1), 0),
        // Different blocks; more than one; a second one that is wrong by itself; kinds that are not fused.
        (compare(0, 1), invalid),
        (write(1, 1), failed),
        (compare(0, 2), 0x14),
        (write(0, 2), failed),
        (compare(0, 1), missing),
        (write(0, 1).with_data(2 * MIB, 512), 0x16),
        (Command::read(0, 1).fused_first().with_data(0, 512), invalid),
        (Command::flush().fused_second(), invalid),
        // And one that nobody follows: the connection ends with it.
        (compare(0, 1), u16::MAX),
    ];
    for (cid, (command, _)) in (0..).zip(&cases) {
        queue.submit(command.with_cid(cid).words());
    }
    peer.nudge();
    let (started, mut ended) = (Instant::now(), 0);
    while ended < cases.len() - 1 {
        if let Some(completion) = queue.take() {
            assert_eq!(completion.status & 0xFF, cases[usize::from(completion.cid)].1, "command {}", completion.cid);
            ended += 1;
        }
        assert!(started.elapsed() < Duration::from_secs(10));
    }
    drop(peer);
    drop(Peer::connect(dir.path(), "evil", 32));
    stop(target);
}
