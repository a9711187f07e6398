//! Who answers the caller of a snapshot: whoever first takes the promise out of `Pending`.
//!
//! ```text
//! Pending --expire (deadline thread or reactor tick), withdraw--> Over      the caller is answered at once, nothing was recorded
//! Pending --commit (the coordinator, before it writes the record)--> Committing --answer--> the truth
//! ```
//! The swap to `Committing` is the point of no return (history C14): behind it the answer is what the catalog's write comes to.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ringway_reactor::io::Instant;

use crate::control::{ControlAnswer, ControlError, ControlErrorKind, Reply};

/// What a snapshot that is being made waits for, as its caller is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Its turn.
    Start,
    /// Shards that are to be armed.
    Arm,
    /// Shards that are to seal.
    Seal,
    /// The backend.
    Sync,
    /// An older snapshot of one of its volumes, which comes first.
    Order,
    /// The catalog: the time left is too short for a write.
    Commit,
}

impl Waiting {
    const ALL: [Waiting; 6] =
        [Waiting::Start, Waiting::Arm, Waiting::Seal, Waiting::Sync, Waiting::Order, Waiting::Commit];

    /// In words.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Waiting::Start => "it had not begun",
            Waiting::Arm => "it was waiting for shards to be armed",
            Waiting::Seal => "it was waiting for shards to seal the cut",
            Waiting::Sync => "it was being stored in the backend",
            Waiting::Order => "it was waiting for an older snapshot of the same volume",
            Waiting::Commit => "too little time was left to record it",
        }
    }
}

const PENDING: u8 = 0;
const OVER: u8 = 1;
const COMMITTING: u8 = 2;

/// An answer that is owed, and until when.
pub struct Promise {
    fate: AtomicU8,
    waiting: AtomicU8,
    /// What has gone wrong last there.
    trouble: Mutex<Option<String>>,
    reply: Mutex<Option<Reply>>,
    name: String,
    begun: Instant,
    timeout: Option<Duration>,
    deadline: Instant,
    /// When an expiry was answered, nanoseconds; 0: it was not.
    expired_at: AtomicU64,
}

impl fmt::Debug for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Promise({:?}, fate {})", self.name, self.fate.load(Ordering::Relaxed))
    }
}

impl Promise {
    /// Made at `now`; no `timeout`: for as long as it takes. `name` is what the caller asked for.
    #[must_use]
    pub fn new(name: String, now: Instant, timeout: Option<Duration>, reply: Reply) -> Promise {
        let ns = |timeout: Duration| u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        let deadline = timeout.map_or(Instant::NEVER, |timeout| Instant(now.0.saturating_add(ns(timeout))));
        let waiting = AtomicU8::new(Waiting::Start as u8);
        Promise {
            fate: AtomicU8::new(PENDING),
            waiting,
            trouble: Mutex::new(None),
            reply: Mutex::new(Some(reply)),
            name,
            begun: now,
            timeout,
            deadline,
            expired_at: AtomicU64::new(0),
        }
    }

    /// When the call arrived, on CLOCK_MONOTONIC.
    #[must_use]
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// When it expires, on CLOCK_MONOTONIC.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether nobody has decided yet.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.fate.load(Ordering::Acquire) == PENDING
    }

    /// For the answer of an expiry.
    pub fn waits_for(&self, what: Waiting) {
        self.waiting.store(what as u8, Ordering::Relaxed);
    }

    /// For the answer of an expiry too: why what it waits for takes so long; none: it goes on.
    pub fn held_up_by(&self, why: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// The record is about to be written. False if it is over already: then it must not be.
    #[must_use]
    pub fn commit(&self) -> bool {
        self.swap(COMMITTING)
    }

    /// How long after the deadline its expiry was answered; none if it did not expire.
    #[must_use]
    pub fn late_ns(&self) -> Option<u64> {
        let at = self.expired_at.load(Ordering::Relaxed);
        (at > 0).then(|| Instant(at).since_ns(self.deadline))
    }

    /// The deadline has passed, it is `now`. Whether this was first; then the caller has its answer.
    pub fn expire(&self, now: Instant) -> bool {
        let first = self.withdraw(|| {
            let waiting = Waiting::ALL[usize::from(self.waiting.load(Ordering::Relaxed))];
            let within = self.timeout.map_or(String::new(), |timeout| format!(" within {timeout:?}"));
            let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
            let trouble = trouble.map_or(String::new(), |why| format!(" ({why})"));
            ControlError::new(
                ControlErrorKind::TimedOut,
                format!("{} was not made{within}: {}{trouble}; nothing is left of it", self.name, waiting.text()),
            )
        });
        if first {
            self.expired_at.store(now.0.max(1), Ordering::Relaxed);
        }
        first
    }

    /// It will not be kept, for this reason. Whether nobody had decided before; then the caller has this answer.
    pub fn withdraw(&self, why: impl FnOnce() -> ControlError) -> bool {
        let first = self.swap(OVER);
        if first {
            self.answer(Err(why()));
        }
        first
    }

    /// The answer, by who swapped.
    pub fn answer(&self, answer: Result<ControlAnswer, ControlError>) {
        if let Some(reply) = self.take_reply() {
            reply(answer);
        }
    }

    /// The way to the caller, for who answers later.
    pub fn take_reply(&self) -> Option<Reply> {
        self.reply.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn swap(&self, to: u8) -> bool {
        // AcqRel: who loses sees that the winner answers, and does nothing else.
        self.fate.compare_exchange(PENDING, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    fn promise(timeout: Option<Duration>) -> (Promise, mpsc::Receiver<Result<ControlAnswer, ControlError>>) {
        let (sender, receiver) = mpsc::channel();
        let reply: Reply = Box::new(move |answer| sender.send(answer).expect("the test listens"));
        (Promise::new("snapshot vm1@s".into(), Instant(5), timeout, reply), receiver)
    }

    #[test]
    fn c14_after_the_swap_to_committing_no_deadline_answers() {
        let (promise, answers) = promise(Some(Duration::from_nanos(10)));
        assert_eq!(promise.deadline(), Instant(15));
        assert!(promise.commit() && !promise.expire(Instant(20)) && !promise.commit());
        assert!(answers.try_recv().is_err());
        promise.answer(Ok(ControlAnswer::Done));
        assert_eq!(answers.try_iter().collect::<Vec<_>>(), [Ok(ControlAnswer::Done)]);
    }

    #[test]
    fn c14_after_expiry_nothing_is_committed_and_the_caller_knows_what_it_waited_for() {
        let (promise, answers) = promise(Some(Duration::from_millis(500)));
        promise.waits_for(Waiting::Seal);
        assert!(promise.expire(Instant(20)) && !promise.commit() && !promise.expire(Instant(20)));
        let error = answers.try_recv().unwrap().unwrap_err();
        assert_eq!(error.kind, ControlErrorKind::TimedOut);
        assert!(error.message.contains("500ms") && error.message.contains("seal"), "{error}");
        assert_eq!(promise.late_ns(), Some(0), "the deadline is half a second away");
        promise.answer(Ok(ControlAnswer::Done));
        assert!(answers.try_recv().is_err(), "it is answered once");
    }

    #[test]
    fn a_missed_deadline_says_what_the_store_said_last() {
        let (promise, answers) = promise(Some(Duration::from_secs(3)));
        promise.waits_for(Waiting::Sync);
        promise.held_up_by(Some("the disk is full".to_owned()));
        promise.held_up_by(Some("cannot put x: refused".to_owned()));
        assert!(promise.expire(Instant(4_000_000_000)));
        let error = answers.try_recv().unwrap().unwrap_err();
        assert!(error.message.contains("stored in the backend (cannot put x: refused);"), "{error}");
    }

    #[test]
    fn a_promise_without_a_timeout_never_expires_by_itself() {
        assert_eq!(promise(None).0.deadline(), Instant::NEVER);
    }

    #[test]
    fn c14_of_many_who_swap_at_once_one_wins() {
        for _ in 0..200 {
            let (promise, answers) = promise(Some(Duration::ZERO));
            let promise = Arc::new(promise);
            let won: usize = std::thread::scope(|scope| {
                let racers: Vec<_> = (0..4)
                    .map(|n| {
                        let promise = &promise;
                        scope.spawn(move || {
                            usize::from(if n % 2 == 0 { promise.expire(Instant(20)) } else { promise.commit() })
                        })
                    })
                    .collect();
                racers.into_iter().map(|racer| racer.join().expect("no panic")).sum()
            });
            assert_eq!(won, 1);
            let expired = promise.take_reply().is_none();
            assert_eq!(answers.try_iter().count(), usize::from(expired), "only an expiry has answered by now");
        }
    }
}
