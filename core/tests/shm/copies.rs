//! No byte is copied on the way of aligned data: gigabytes are moved, and the counter stays where it was.

use std::time::{Duration, Instant};

use ringway_core::target::{PoolSpec, RunningTarget};
use ringway_shm_ring::client::{Buffer, ConnectOptions};

use crate::rig::{MIB, config, create, options, serve, stop, volume};

const GIB: u64 = 1 << 30;

fn copied(target: &RunningTarget) -> u64 {
    target.metrics().reactors.iter().map(|reactor| reactor.bytes_copied.get()).sum()
}

fn moves(target: &RunningTarget, folder: &std::path::Path, bytes: u64) {
    let (size, request) = (64 * MIB, 256 << 10);
    let client =
        ringway_shm_ring::client::Client::connect(ConnectOptions { depth: 16, ..options(folder, "vm1", 1) }).unwrap();
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
