//! Who has work for a reactor, and whether it sleeps: one bit a sender, one flag, and the protocol that never loses a wake-up.
//!
//! The two edges (history H13): a sender publishes its bit, then looks at `parked`; a receiver sets `parked`, then looks at
//! the bits. Store followed by load of another word may be reordered, on x86 too, so both sides put a SeqCst fence between.
//! Of the two loads at least one sees the other side's store: either the receiver does not sleep, or the sender wakes it.

#[cfg(all(loom, test))]
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
#[cfg(not(all(loom, test)))]
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// Pending bits and the parked flag of one receiver.
pub(super) struct Signal {
    /// Bit n: sender n published something since the receiver last took the bits.
    pending: Box<[AtomicU64]>,
    parked: AtomicBool,
}

impl Signal {
    pub(super) fn new(senders: usize) -> Self {
        Self { pending: (0..senders.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(), parked: AtomicBool::new(false) }
    }

    /// Sender: what was pushed before this is to be received. Follow it with [`Signal::must_wake`] after a SeqCst fence
    /// ([`sender_fence`]; one serves any number of receivers).
    pub(super) fn publish(&self, sender: usize) {
        // Release: the pushes happen before the receiver's `take`. Partner: the Acquire swap in `take`.
        self.pending[sender / 64].fetch_or(1 << (sender % 64), Ordering::Release);
    }

    /// Sender, after [`sender_fence`]: whether this sender is the one that has to wake the receiver.
    pub(super) fn must_wake(&self) -> bool {
        // Relaxed: ordered after `publish` by `sender_fence`. Partner: the store in `park`, by way of its fence.
        // The swap elects one of several senders; what the receiver then finds was published by `publish`'s Release.
        self.parked.load(Ordering::Relaxed) && self.parked.swap(false, Ordering::Relaxed)
    }

    /// Receiver: calls `each` for every sender that published since the last call.
    pub(super) fn take(&self, mut each: impl FnMut(usize)) {
        for (index, word) in self.pending.iter().enumerate() {
            // Relaxed: a stale 0 is caught by the next turn, or by `park`, which looks again behind its fence.
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            // Acquire: partner is the Release in `publish`.
            let mut bits = word.swap(0, Ordering::Acquire);
            while bits != 0 {
                each(index * 64 + bits.trailing_zeros() as usize);
                bits &= bits - 1;
            }
        }
    }

    /// Receiver: announces sleep. `false` means that work came in between: do not sleep.
    pub(super) fn park(&self) -> bool {
        // Relaxed, ordered before the loads below by the fence. Partner: the load in `must_wake`, by way of `sender_fence`.
        // A swap, here and in `unpark`, although a store would do: loom does not know that nothing comes between the two
        // halves of the sender's swap, and the price is paid only by who goes to sleep.
        self.parked.swap(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.pending.iter().any(|word| word.load(Ordering::Relaxed) != 0) {
            self.unpark();
            return false;
        }
        true
    }

    /// Receiver: awake again.
    pub(super) fn unpark(&self) {
        // Relaxed: a sender that still sees `true` wakes somebody who is awake, which ends the next sleep early, no more.
        self.parked.swap(false, Ordering::Relaxed);
    }
}

/// Between a sender's [`Signal::publish`] and [`Signal::must_wake`]. Partner: the fence in [`Signal::park`].
pub(super) fn sender_fence() {
    fence(Ordering::SeqCst);
}

/// Run with `RUSTFLAGS="--cfg loom" cargo test -p ringway-reactor --lib loom`.
#[cfg(all(loom, test))]
mod loom_tests {
    use super::*;
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    /// The ring is an atomic counter per sender, the eventfd a counter under a lock: a lost wake-up is a deadlock, which loom reports.
    fn every_item_arrives(senders: usize, items: u64) {
        let mut model = loom::model::Builder::new();
        // Unbounded, one sender with two items passed too, in two minutes. Without either fence this bound finds the sleep.
        model.preemption_bound = Some(3);
        model.check(move || {
            let shared = Arc::new((Signal::new(senders), Mutex::new(false), Condvar::new(), AtomicU64::new(0)));
            let threads: Vec<_> = (0..senders)
                .map(|number| {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || {
                        for _ in 0..items {
                            shared.3.fetch_add(1, Ordering::Relaxed);
                            shared.0.publish(number);
                            sender_fence();
                            if shared.0.must_wake() {
                                let mut woken = shared.1.lock().unwrap();
                                *woken = true;
                                shared.2.notify_one();
                            }
                        }
                    })
                })
                .collect();
            let mut received = 0;
            while received < items * senders as u64 {
                shared.0.take(|_| received = shared.3.load(Ordering::Relaxed));
                if received < items * senders as u64 && shared.0.park() {
                    let mut woken = shared.1.lock().unwrap();
                    while !*woken {
                        woken = shared.2.wait(woken).unwrap();
                    }
                    *woken = false;
                    drop(woken);
                    shared.0.unpark();
                }
            }
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }

    #[test]
    fn loom_h13_a_receiver_never_sleeps_on_the_work_of_one_sender() {
        every_item_arrives(1, 2);
    }

    #[test]
    fn loom_h13_a_receiver_never_sleeps_on_the_work_of_two_senders() {
        every_item_arrives(2, 1);
    }
}
