//! A target that is killed under load and comes back: what was acknowledged is there, what was not is sent again, and each
//! command ends once.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringway_core::target::{Allocation, FormatOptions, PoolSpec, format};
use ringway_shm_ring::client::{Client, ConnectOptions, Queue};

use crate::peer::start;
use crate::rig::{MIB, config, create, options, pattern, serve, stop, volume};

const BLOCKS: u64 = 2048;

fn prepare(folder: &Path) {
    let pool = PoolSpec::Path(folder.join("pool"));
    let made = FormatOptions {
        size: Some(96 * MIB),
        shards: Some(2),
        allocation: Allocation::Sparse,
        ..FormatOptions::default()
    };
    format(&pool, &made, &mut |_| {}).unwrap();
    let target = serve(config(pool, folder));
    create(&target, volume("vm1", 32 * MIB));
    stop(target);
}

#[test]
fn a_target_that_is_killed_under_load_loses_nothing_and_answers_nothing_twice() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    prepare(dir.path());
    let mut target = start("target", dir.path());
    let started = Instant::now();
    let client = loop {
        match Client::connect(ConnectOptions { queues: 3, depth: 32, ..options(dir.path(), "vm1", 1) }) {
            Ok(client) => break client,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(30), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut loads = Vec::new();
        for half in 0..2u64 {
            let mut queue = client.take_queue().unwrap();
            let (client, over) = (&client, &over);
            loads.push(scope.spawn(move || {
                // Block to the seed of its last acknowledged write; and what is in flight.
                let (mut acknowledged, mut in_flight) = (HashMap::new(), HashMap::new());
                let (mut number, mut ended, mut answers) = (half, Vec::new(), 0u64);
                loop {
                    let stopping = over.load(Ordering::Relaxed);
                    if stopping && in_flight.is_empty() {
                        break;
                    }
                    while !stopping && in_flight.len() < 24 {
                        let block = number.wrapping_mul(0x9E37_79B9) % (BLOCKS / 2) * 2 + half;
                        if in_flight.values().any(|&busy| busy == block) {
                            number += 2;
                            continue;
                        }
                        let mut buffer = client.alloc(4096).unwrap();
                        buffer.copy_from_slice(&pattern(block * 4096, 4096, number));
                        queue.write(block * 4096, buffer, false, number).unwrap();
                        in_flight.insert(number, block);
                        number += 2;
                    }
                    queue.ring();
                    if queue.poll(&mut ended) == 0 {
                        queue.wait(Duration::from_millis(20), &mut ended);
                    }
                    for completion in ended.drain(..) {
                        assert!(completion.status.is_success(), "{}", completion.status);
                        let block = in_flight.remove(&completion.tag).expect("a command ends once");
                        acknowledged.insert(block, completion.tag);
                        answers += 1;
                    }
                }
                let mut back = vec![0; 4096];
                for (block, seed) in acknowledged {
                    queue.read_at(block * 4096, &mut back).unwrap();
                    assert!(back == pattern(block * 4096, 4096, seed), "block {block}: write {seed} is lost");
                }
                answers
            }));
        }
        let counting = scope.spawn(|| count_up(client.take_queue().unwrap(), &over));
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(400));
            target.kill();
            target = start("target", dir.path());
        }
        std::thread::sleep(Duration::from_millis(800));
        over.store(true, Ordering::Relaxed);
        for load in loads {
            assert!(load.join().unwrap() > 100);
        }
        assert!(counting.join().unwrap() > 20);
    });
    target.kill();
}

/// Compares and writes, one step after the other. A step that was on its way when the target was killed is done or not, never
/// done and then called a failure: it is not sent again.
fn count_up(mut queue: Queue, over: &AtomicBool) -> u64 {
    let block = |value: u64| value.to_le_bytes().repeat(64);
    let at = BLOCKS * 4096;
    let (mut value, mut now) = (0, vec![0; 512]);
    while !over.load(Ordering::Relaxed) {
        match queue.compare_and_write_at(at, &block(value), &block(value + 1), false) {
            Ok(done) => assert!(done, "nobody else writes there, and it was not {value}"),
            Err(error) => {
                assert!(error.to_string().contains("is not known"), "{error}");
                queue.read_at(at, &mut now).unwrap();
                if now == block(value) {
                    continue;
                }
            }
        }
        value += 1;
        queue.read_at(at, &mut now).unwrap();
        assert!(now == block(value), "after step {value}");
    }
    value
}
