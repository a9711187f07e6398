//! The thread that answers callers whose deadline has passed, whatever the reactors are doing (history H16).
//!
//! It waits on CLOCK_MONOTONIC, before every other thread where the kernel lets it, and does nothing else; the reactors' ticks look at the same deadlines, and the first swap answers.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use ringway_reactor::clock::monotonic;
use ringway_reactor::pin::run_on;
use ringway_reactor::priority::run_before_others;

use super::promise::Promise;

/// How long it sleeps with nothing to watch.
const IDLE: Duration = Duration::from_secs(3600);

/// Watches over promises. Dropped, its thread ends.
#[derive(Clone, Debug)]
pub struct Deadlines(Sender<Arc<Promise>>);

impl Deadlines {
    /// Starts the thread, on `cores` where there are any. `expired` is called on it after each promise that it has answered.
    pub fn start(cores: Vec<usize>, expired: impl Fn() + Send + 'static) -> std::io::Result<Deadlines> {
        let (sender, receiver) = channel();
        let work = move || {
            if !cores.is_empty()
                && let Err(error) = run_on(&cores)
            {
                tracing::warn!(%error, "the thread of deadlines shares a reactor's core");
            }
            if let Err(error) = run_before_others() {
                // Once a start: it is as good as ever where the machine is not busy.
                tracing::info!(
                    %error,
                    "the thread of deadlines has no real-time priority: on busy cores a missed deadline is answered later \
                     (CAP_SYS_NICE or LimitRTPRIO=1 allow it)"
                );
            }
            watch(&receiver, &expired);
        };
        thread::Builder::new().name("ringway-deadline".to_owned()).spawn(work)?;
        Ok(Deadlines(sender))
    }

    /// Expires it at its deadline, if nobody has decided by then.
    pub fn watch(&self, promise: &Arc<Promise>) {
        // A thread that has ended leaves it to the reactors' ticks.
        let _ = self.0.send(Arc::clone(promise));
    }
}

/// Ordered by deadline.
struct Watched(Arc<Promise>);

impl PartialEq for Watched {
    fn eq(&self, other: &Self) -> bool {
        self.0.deadline() == other.0.deadline()
    }
}

impl Eq for Watched {}

impl PartialOrd for Watched {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Watched {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.deadline().cmp(&other.0.deadline())
    }
}

fn watch(arrived: &Receiver<Arc<Promise>>, expired: &impl Fn()) {
    let mut waiting: BinaryHeap<Reverse<Watched>> = BinaryHeap::new();
    loop {
        let now = monotonic();
        while let Some(Reverse(first)) = waiting.peek() {
            let decided = !first.0.is_pending();
            if !decided && first.0.deadline() > now {
                break;
            }
            if !decided && first.0.expire(monotonic()) {
                expired();
            }
            waiting.pop();
        }
        let next = waiting
            .peek()
            .map_or(IDLE, |Reverse(first)| Duration::from_nanos(first.0.deadline().0.saturating_sub(now.0)).min(IDLE));
        match arrived.recv_timeout(next) {
            Ok(promise) => waiting.push(Reverse(Watched(promise))),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::ControlErrorKind;

    #[test]
    fn h16_each_of_a_thousand_deadlines_is_answered_in_its_order_and_not_before() {
        let deadlines = Deadlines::start(Vec::new(), || {}).expect("a thread");
        let (sender, answers) = channel();
        let begun = monotonic();
        let promises: Vec<_> = (0..1000u64)
            .map(|n| {
                let sender = sender.clone();
                let timeout = Duration::from_micros(200_000 + n * 37 % 1000 * 50);
                let reply =
                    Box::new(move |answer| sender.send((timeout, monotonic(), answer)).expect("the test listens"));
                let promise = Arc::new(Promise::new("x".into(), begun, Some(timeout), reply));
                deadlines.watch(&promise);
                promise
            })
            .collect();
        let answered: Vec<_> = answers.iter().take(1000).collect();
        assert!(promises.iter().all(|promise| !promise.is_pending()));
        assert!(answered.is_sorted_by_key(|&(timeout, ..)| timeout), "the earliest first");
        for (timeout, at, answer) in answered {
            assert!(at.since_ns(begun) >= timeout.as_nanos() as u64, "none before its time");
            assert_eq!(answer.unwrap_err().kind, ControlErrorKind::TimedOut);
        }
    }

    #[test]
    fn a_promise_that_was_decided_is_left_alone() {
        let deadlines = Deadlines::start(Vec::new(), || {}).expect("a thread");
        let (sender, answers) = channel();
        let reply = Box::new(move |answer| sender.send(answer).expect("the test listens"));
        let promise = Arc::new(Promise::new("x".into(), monotonic(), Some(Duration::from_millis(20)), reply));
        deadlines.watch(&promise);
        assert!(promise.commit());
        assert!(answers.recv_timeout(Duration::from_millis(40)).is_err());
    }
}
