//! No byte is copied on the way of aligned data: gigabytes are moved, and the counter stays where it was.

use std::time::{Duration, Instant};

use ringway_core::target::{Allocation, FormatOptions, PoolSpec, RunningTarget, format};
use ringway_shm_ring::client::{Buffer, Client, ConnectOptions, Queue};

use crate::rig::{MIB, config, create, options, pattern, serve, stop, volume};

const GIB: u64 = 1 << 30;

fn copied(target: &RunningTarget) -> u64 {
    target.metrics().reactors.iter().map(|reactor| reactor.bytes_copied.get()).sum()
}

fn moves(target: &RunningTarget, folder: &std::path::Path, bytes: u64) {
    let (size, request) = (64 * MIB, 256 << 10);
    let client = Client::connect(ConnectOptions { depth: 16, ..options(folder, "vm1", 1) }).unwrap();
    let mut queue = client.take_queue().unwrap();
    let mut idle: Vec<Buffer> = (0..16).map(|_| client.alloc(request as usize).unwrap()).collect();
    let (mut moved, mut ended, mut done) = (0, Vec::new(), 0);
    while done < bytes {
        while moved < bytes
            && let Some(buffer) = idle.pop()
        {
            // A page further each time: every stripe is crossed in every way that whole blocks can.
            let offset = moved / request * (request + 4096) % (size - request) / 4096 * 4096;
            if (moved / request).is_multiple_of(2) {
                queue.write(offset, buffer, false, 0).unwrap();
            } else {
                queue.read(offset, buffer, 0).unwrap();
            }
            moved += request;
        }
        queue.ring();
        if queue.poll(&mut ended) == 0 {
            queue.wait(Duration::from_secs(10), &mut ended);
        }
        for completion in ended.drain(..) {
            assert!(completion.status.is_success(), "{}", completion.status);
            idle.push(completion.buffer.unwrap());
            done += request;
        }
    }
    // One that is not aligned moves the counter, so that a counter at rest means something.
    let before = copied(target);
    assert_eq!(before, 0, "aligned data was copied");
    queue.read_part(0, client.alloc(8192).unwrap(), 8..4104, 0).unwrap();
    queue.wait(Duration::from_secs(10), &mut ended);
    let started = Instant::now();
    while copied(target) != 4096 {
        queue.wait(Duration::from_millis(10), &mut ended);
        queue.read_at(0, &mut [0; 512]).unwrap();
        assert!(started.elapsed() < Duration::from_secs(10), "{} bytes were copied", copied(target));
    }
}

#[test]
fn four_gigabytes_of_a_memory_pool_are_moved_without_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let target = serve(config(PoolSpec::Memory(256 * MIB), dir.path()));
    create(&target, volume("vm1", 64 * MIB));
    moves(&target, dir.path(), 4 * GIB);
    stop(target);
}

#[test]
fn four_gigabytes_of_a_null_pool_are_moved_without_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let target = serve(config(PoolSpec::Null(4 * GIB), dir.path()));
    create(&target, volume("vm1", 64 * MIB));
    moves(&target, dir.path(), 4 * GIB);
    stop(target);
}

#[test]
fn a_clients_data_area_is_registered_with_every_reactor_and_let_go_with_the_client() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let pool = PoolSpec::Path(dir.path().join("pool"));
    let made = FormatOptions {
        size: Some(256 * MIB),
        shards: Some(4),
        allocation: Allocation::Sparse,
        ..FormatOptions::default()
    };
    format(&pool, &made, &mut |_| {}).unwrap();
    let target = serve(config(pool, dir.path()));
    create(&target, volume("vm1", 64 * MIB));
    let registered = || target.metrics().reactors.iter().map(|reactor| reactor.registered_bytes.get()).sum::<u64>();
    let becomes = |bytes: u64, queue: Option<&mut Queue>| {
        let (started, mut queue) = (Instant::now(), queue);
        while registered() != bytes {
            // Counters are copied where something goes on.
            queue.iter_mut().for_each(|queue| queue.read_at(0, &mut vec![0; 8 << 20]).unwrap());
            assert!(started.elapsed() < Duration::from_secs(10), "{} bytes are registered, not {bytes}", registered());
        }
    };
    let reactors = target.metrics().reactors.len() as u64;
    // More than is registered in one turn, and no multiple of that.
    let area = 40 * MIB;
    let wants = |populate| ConnectOptions { data_bytes: area, populate, depth: 16, ..options(dir.path(), "vm1", 1) };
    let client = Client::connect(wants(true)).unwrap();
    let mut queue = client.take_queue().unwrap();
    becomes(area * reactors, Some(&mut queue));
    // Every part of the area, parts of requests that cross from one slice into the next among them.
    let whole = client.alloc(33 << 20).unwrap();
    let mut ended = Vec::new();
    let mut buffer = Some(whole);
    for place in (0..132u64).map(|nth| nth * (256 << 10)) {
        let mut whole = buffer.take().unwrap();
        let part = (place as usize + 4096)..(place as usize + 4096 + (256 << 10)).min(33 << 20);
        let len = part.len();
        whole[part.clone()].copy_from_slice(&pattern(place, len, 5));
        queue.write_part(place, whole, part.clone(), false, 0).unwrap();
        while queue.wait(Duration::from_secs(10), &mut ended) == 0 {}
        let mut whole = ended.pop().filter(|done| done.status.is_success()).unwrap().buffer.unwrap();
        whole[part.clone()].fill(0);
        queue.read_part(place, whole, part.clone(), 0).unwrap();
        while queue.wait(Duration::from_secs(10), &mut ended) == 0 {}
        let whole = ended.pop().filter(|done| done.status.is_success()).unwrap().buffer.unwrap();
        assert!(whole[part] == pattern(place, len, 5), "at {place}");
        buffer = Some(whole);
    }
    assert_eq!(copied(&target), 0);
    drop((buffer, queue, client));
    becomes(0, None);
    // Nobody allocates for a client that has not: what it has not touched is not registered.
    let client = Client::connect(wants(false)).unwrap();
    let mut queue = client.take_queue().unwrap();
    queue.write_at(0, &[1; 4096], false).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(registered(), 0);
    stop(target);
}
