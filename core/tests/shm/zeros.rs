//! Blocks that were never written: who writes the zeros, and that it is done.

use std::time::{Duration, Instant};

use ringway_core::target::PoolSpec;
use ringway_shm_ring::client::Command;
use ringway_shm_ring::ring::ZEROS;

use crate::peer::Peer;
use crate::rig::{MIB, config, connect, create, pattern, serve, stop, volume};

/// Reads the first block of an empty volume into memory full of 7s: what the completion says, and what the memory then holds.
fn read_of_nothing(peer: &Peer) -> (u32, Vec<u8>) {
    let at = peer.layout.data_offset() as usize;
    peer.memory.write(at, &[7; 4096]);
    let mut queue = peer.queue();
    queue.submit(Command::read(0, 8).with_data(0, 4096).with_cid(1).words());
    peer.nudge();
    let started = Instant::now();
    loop {
        if let Some(completion) = queue.take() {
            assert_eq!((completion.cid, completion.status), (1, 0));
            let mut seen = vec![9; 4096];
            peer.memory.read(at, &mut seen);
            return (completion.result, seen);
        }
        assert!(started.elapsed() < Duration::from_secs(10), "the read does not end");
    }
}

#[test]
fn zeros_are_written_for_a_client_that_does_not_say_that_it_writes_them_itself_and_promised_to_one_that_does() {
    for pool in [PoolSpec::Null(256 * MIB), PoolSpec::Memory(256 * MIB)] {
        let dir = tempfile::tempdir().unwrap();
        let target = serve(config(pool, dir.path()));
        create(&target, volume("v", 16 * MIB));
        let plain = Peer::greet(dir.path(), "v", 16, |_| {});
        assert_eq!(read_of_nothing(&plain), (0, vec![0; 4096]));
        drop(plain);
        let told = Peer::greet(dir.path(), "v", 16, |hello| hello.zeroes_itself = true);
        assert_eq!(read_of_nothing(&told), (ZEROS, vec![7; 4096]));
        drop(told);
        stop(target);
    }
}

#[test]
fn a_buffer_full_of_something_else_reads_as_zeros_where_nothing_was_written_and_as_data_where_something_was() {
    let dir = tempfile::tempdir().unwrap();
    let target = serve(config(PoolSpec::Memory(256 * MIB), dir.path()));
    create(&target, volume("v", 64 * MIB));
    let client = connect(dir.path(), "v");
    let mut queue = client.take_queue().unwrap();
    let written = pattern(0, 4096, 1);
    // In the middle of a cluster, and the last block before a stripe of another shard.
    for at in [8192, MIB - 4096] {
        queue.write_at(at, &written, false).unwrap();
    }
    // Starts in a hole, in data, at the end of data; whole blocks and parts of them; across two shards.
    for (at, len) in
        [(0, 4096), (4096, 12288), (8192, 8192), (MIB - 8192, 16384), (512, 1024), (7680, 1024), (0, 65536)]
    {
        let mut area = client.alloc(len).unwrap();
        area.fill(7);
        queue.read(at, area, 0).unwrap();
        let mut ended = Vec::new();
        while queue.wait(Duration::from_secs(10), &mut ended) == 0 {}
        let completion = ended.pop().unwrap();
        assert!(completion.status.is_success(), "{}", completion.status);
        let seen = completion.buffer.unwrap();
        for (nth, &byte) in seen.iter().enumerate() {
            let place = at + nth as u64;
            let start = [8192, MIB - 4096].into_iter().find(|start| (*start..start + 4096).contains(&place));
            let expected = start.map_or(0, |start| written[(place - start) as usize]);
            assert_eq!(byte, expected, "byte {place} of {len} at {at}");
        }
    }
    stop(target);
}
