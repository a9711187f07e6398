//! Every order in which two threads may see each other's words, to a bound.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p ringway-shm-ring --lib --release loom`.

use loom::sync::atomic::{AtomicU64, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::*;

/// The words of one queue. Flags and slots are where they are in memory, without the gaps between.
struct LoomWords(Vec<AtomicU64>);

const ENTRIES: u16 = 2;

fn index(offset: usize) -> usize {
    match offset {
        TARGET_ASLEEP => 0,
        CLIENT_ASLEEP => 1,
        offset => 2 + (offset - COMMANDS) / 8,
    }
}

impl Words for LoomWords {
    fn load(&self, offset: usize, order: Ordering) -> u64 {
        self.0[index(offset)].load(order)
    }

    fn store(&self, offset: usize, value: u64, order: Ordering) {
        self.0[index(offset)].store(value, order);
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// An eventfd.
#[derive(Default)]
struct Bell(Mutex<bool>, Condvar);

impl Bell {
    fn ring(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_one();
    }

    fn wait(&self) {
        let mut rung = self.0.lock().unwrap();
        while !*rung {
            rung = self.1.wait(rung).unwrap();
        }
        *rung = false;
    }
}

struct Shared {
    words: LoomWords,
    to_target: Bell,
    to_client: Bell,
    /// Written by the device before a completion, read by the client after it.
    data: AtomicU64,
}

impl Words for Arc<Shared> {
    fn load(&self, offset: usize, order: Ordering) -> u64 {
        self.words.load(offset, order)
    }

    fn store(&self, offset: usize, value: u64, order: Ordering) {
        self.words.store(offset, value, order);
    }

    fn fence(&self) {
        self.words.fence();
    }
}

fn serve(shared: &Arc<Shared>, commands: u32) {
    let mut queue = TargetQueue::new(Arc::clone(shared), QueuePlace::new(0, ENTRIES), 1);
    let mut served = 0;
    while served < commands {
        queue.disarm();
        while let Some(command) = queue.take().expect("the client is honest") {
            let cid = (command[0] >> 16) as u16;
            // The command is whole: every word is its own number.
            assert_eq!((command[3], command[7]), (u64::from(cid) + 30, u64::from(cid) + 70), "A");
            shared.data.store(u64::from(cid) + 100, Ordering::Relaxed);
            queue.post(Completion { cid, status: 0, result: 0 });
            served += 1;
        }
        if queue.is_unannounced() {
            queue.fence();
            if queue.must_ring() {
                shared.to_client.ring();
            }
        }
        if served < commands {
            queue.arm();
            queue.fence();
            if !queue.has_command() {
                shared.to_target.wait();
            }
        }
    }
}

fn every_command_is_answered(commands: u32, preemptions: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(move || {
        let words = LoomWords((0..index(QueuePlace::bytes(ENTRIES))).map(|_| AtomicU64::new(0)).collect());
        let shared =
            Arc::new(Shared { words, to_target: Bell::default(), to_client: Bell::default(), data: AtomicU64::new(0) });
        let target = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || serve(&shared, commands))
        };
        let mut queue = ClientQueue::new(Arc::clone(&shared), QueuePlace::new(0, ENTRIES), 1);
        for number in 0..commands {
            let mut command = [0; 8];
            (command[0], command[3], command[7]) =
                (u64::from(number) << 16, u64::from(number) + 30, u64::from(number) + 70);
            queue.submit(command);
            if queue.must_ring() {
                shared.to_target.ring();
            }
            let completion = loop {
                if let Some(completion) = queue.take() {
                    break completion;
                }
                if queue.arm() {
                    shared.to_client.wait();
                    queue.disarm();
                }
            };
            assert_eq!(u32::from(completion.cid), number);
            assert_eq!(shared.data.load(Ordering::Relaxed), u64::from(number) + 100, "B");
        }
        target.join().unwrap();
    });
}

#[test]
fn loom_h13_neither_side_sleeps_on_the_others_work() {
    every_command_is_answered(2, 3);
}
