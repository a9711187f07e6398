//! SIGKILL of the real binary under a load over shared memory: what was acknowledged is there, what was not answered is sent again to
//! the next target, and each command ends once.

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::Place;
use ringway_shm_ring::client::{Client, ConnectOptions, Host, Queue, Status};

const KILLS: u64 = 8;
const BLOCK: u64 = 4096;
const BLOCKS: u64 = 4096;
/// In flight on a queue.
const DEPTH: usize = 24;
const QUEUES: u64 = 2;

/// Bytes that say which write of which block they are.
fn pattern(block: u64, number: u64) -> Vec<u8> {
    let word = |nth: u64| (block << 40 ^ number ^ nth << 20).wrapping_mul(0xD6E8_FEB8_6659_FD93).to_le_bytes();
    (0..BLOCK / 8).flat_map(word).collect()
}

fn connect(runtime: &Path) -> Client {
    let id = [7; 16];
    let options = ConnectOptions {
        queues: QUEUES as u16 + 1,
        depth: 32,
        data_bytes: 16 << 20,
        host: Host { nqn: Host::nqn_of(id), id },
        ..ConnectOptions::new(runtime.join("shm.sock"), "vm1")
    };
    Client::connect(options).unwrap_or_else(|error| panic!("{error}"))
}

/// What a command that is in flight does to its block.
#[derive(Clone, Copy)]
enum Change {
    Write,
    Clear,
    Flush,
}

/// One thread with one queue, and blocks that are its own.
struct Load<'a> {
    client: &'a Client,
    queue: Queue,
    half: u64,
    next: u64,
    in_flight: HashMap<u64, (u64, Change)>,
    /// Block to its last write that was acknowledged; `None`: it was cleared.
    acknowledged: HashMap<u64, Option<u64>>,
}

impl Load<'_> {
    fn submit(&mut self) {
        let number = self.next;
        self.next += 1;
        let block = number.wrapping_mul(0x9E37_79B9) % (BLOCKS / QUEUES) * QUEUES + self.half;
        if self.in_flight.values().any(|&(busy, _)| busy == block) {
            return;
        }
        let at = block * BLOCK;
        let change = match number % 32 {
            0 => {
                self.queue.flush(number).unwrap();
                self.in_flight.insert(number, (u64::MAX - number, Change::Flush));
                return;
            }
            1 => {
                self.queue.deallocate(at, BLOCK, number).unwrap();
                Change::Clear
            }
            2 => {
                self.queue.write_zeroes(at, BLOCK, true, number).unwrap();
                Change::Clear
            }
            other => {
                let mut buffer = self.client.alloc(BLOCK as usize).unwrap();
                buffer.copy_from_slice(&pattern(block, number));
                self.queue.write(at, buffer, other == 3, number).unwrap();
                Change::Write
            }
        };
        self.in_flight.insert(number, (block, change));
    }

    /// Until told to stop; returns how many commands ended.
    fn run(mut self, over: &AtomicBool) -> u64 {
        let (mut ended, mut answers) = (Vec::new(), 0);
        loop {
            let stopping = over.load(Ordering::Relaxed);
            if stopping && self.in_flight.is_empty() {
                break;
            }
            while !stopping && self.in_flight.len() < DEPTH {
                self.submit();
            }
            self.queue.ring();
            if self.queue.poll(&mut ended) == 0 {
                self.queue.wait(Duration::from_millis(20), &mut ended);
            }
            for completion in ended.drain(..) {
                let (block, change) = self.in_flight.remove(&completion.tag).expect("a command ends once");
                assert!(completion.status.is_success(), "command {}: {}", completion.tag, completion.status);
                match change {
                    Change::Write => self.acknowledged.insert(block, Some(completion.tag)),
                    Change::Clear => self.acknowledged.insert(block, None),
                    Change::Flush => None,
                };
                answers += 1;
            }
        }
        self.check();
        answers
    }

    fn check(&mut self) {
        let mut back = vec![0; BLOCK as usize];
        for (&block, &write) in &self.acknowledged {
            self.queue.read_at(block * BLOCK, &mut back).unwrap();
            let expected = write.map_or(vec![0; BLOCK as usize], |number| pattern(block, number));
            assert!(back == expected, "block {block}: what write {write:?} has left is lost");
        }
    }
}

/// Compares and writes, one step after the other. A step that was on its way when the target was killed is done or not, never
/// done and then called a failure: it is not sent again.
fn count_up(mut queue: Queue, over: &AtomicBool) -> u64 {
    let block = |value: u64| value.to_le_bytes().repeat(64);
    let at = BLOCKS * BLOCK;
    let (mut value, mut now) = (0, vec![0; 512]);
    while !over.load(Ordering::Relaxed) {
        match queue.compare_and_write_at(at, &block(value), &block(value + 1), false) {
            Ok(done) => assert!(done, "nobody else writes there, and it was not {value}"),
            Err(error) => {
                assert_eq!(error.to_string(), Status::UNDECIDED.to_string());
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

#[test]
fn a_target_that_is_killed_under_load_over_shared_memory_resumes_what_was_in_flight() {
    let place = Place::new();
    let mut daemon = place.serve(&["--pool-size", "256MiB"]);
    place.run(&["volume", "create", "vm1", "32MiB", "--json"]).json();
    let client = connect(&place.path("run"));
    let over = AtomicBool::new(false);
    let daemon = thread::scope(|scope| {
        let loads: Vec<_> = (0..QUEUES)
            .map(|half| {
                let queue = client.take_queue().unwrap();
                let (in_flight, acknowledged) = (HashMap::new(), HashMap::new());
                let load = Load { client: &client, queue, half, next: 0, in_flight, acknowledged };
                scope.spawn(|| load.run(&over))
            })
            .collect();
        let counting = scope.spawn(|| count_up(client.take_queue().unwrap(), &over));
        for kill in 0..KILLS {
            // Different each time, the same in every run.
            thread::sleep(Duration::from_millis(100 + kill * 71 % 200));
            daemon.kill();
            daemon = place.serve(&[]);
        }
        thread::sleep(Duration::from_millis(300));
        over.store(true, Ordering::Relaxed);
        let answers: Vec<u64> = loads.into_iter().map(|load| load.join().unwrap()).collect();
        let steps = counting.join().unwrap();
        println!("{KILLS} kills; commands answered: {answers:?}; compare-and-writes: {steps}");
        assert!(answers.iter().all(|&answers| answers > 500) && steps > 20, "{answers:?} {steps}");
        daemon
    });
    drop(client);
    // Everything was answered, nothing is left behind: it stops at once.
    assert_eq!(daemon.stop().code, Some(0));
}
