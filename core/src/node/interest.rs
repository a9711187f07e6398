//! How eagerly the reactors look for work, by what the connected clients asked for.
//!
//! A client holds an [`Interest`] for as long as it is connected. The reactor of a *busy* one never sleeps. Work of an *interrupt*
//! client makes nobody poll: a reactor that has seen nothing else for a moment sleeps as soon as it has nothing to do. Everything else
//! is *adaptive*. Sockets count as adaptive clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ringway_reactor::io::Instant;
use ringway_reactor::turn::Eagerness;

use crate::export::Polling;

/// An adaptive client that was heard of this lately may send again: longer than a reactor polls, and short beside what a client
/// that is idle leaves between two requests.
const RECENT_NS: u64 = 200_000;

/// Clients of a whole target by how they are polled for. Changed when one comes or goes, read each turn: relaxed, since a turn more
/// or less with the old policy does no harm.
#[derive(Debug)]
pub struct Interests {
    /// By reactor.
    busy: Box<[AtomicU32]>,
    adaptive: AtomicU32,
    interrupt: AtomicU32,
    /// Connected sockets, by reactor.
    sockets: Box<[AtomicU32]>,
}

/// One client's interest; ends when it is dropped.
#[derive(Debug)]
pub struct Interest {
    of: Arc<Interests>,
    reactor: usize,
    polling: Polling,
}

impl Interests {
    /// For so many reactors, without clients.
    #[must_use]
    pub fn new(reactors: usize) -> Arc<Interests> {
        let zeros = || (0..reactors).map(|_| AtomicU32::new(0)).collect();
        Arc::new(Interests {
            busy: zeros(),
            adaptive: AtomicU32::new(0),
            interrupt: AtomicU32::new(0),
            sockets: zeros(),
        })
    }

    /// A client has come whose requests `reactor` takes.
    #[must_use]
    pub fn attach(self: &Arc<Self>, reactor: usize, polling: Polling) -> Interest {
        self.count(reactor, polling).fetch_add(1, Ordering::Relaxed);
        Interest { of: Arc::clone(self), reactor, polling }
    }

    fn count(&self, reactor: usize, polling: Polling) -> &AtomicU32 {
        match polling {
            Polling::Busy => &self.busy[reactor],
            Polling::Adaptive => &self.adaptive,
            Polling::Interrupt => &self.interrupt,
        }
    }

    /// So many sockets are connected on `reactor`.
    pub(super) fn set_sockets(&self, reactor: usize, count: usize) {
        self.sockets[reactor].store(count as u32, Ordering::Relaxed);
    }

    /// Whether a part that another reactor sent may come from a client for whom it is worth polling.
    pub(super) fn any_but_interrupt(&self) -> bool {
        let any = |counts: &[AtomicU32]| counts.iter().any(|count| count.load(Ordering::Relaxed) > 0);
        self.polls_rings() || any(&self.sockets)
    }

    /// Whether what a ring brings may come from a client for whom it is worth polling.
    pub(super) fn polls_rings(&self) -> bool {
        self.adaptive.load(Ordering::Relaxed) > 0 || self.busy.iter().any(|count| count.load(Ordering::Relaxed) > 0)
    }

    /// Whether `reactor` has a busy client.
    pub(super) fn never_sleeps(&self, reactor: usize) -> bool {
        self.busy[reactor].load(Ordering::Relaxed) > 0
    }

    /// How `reactor` goes on, if it last heard of an adaptive client at `heard`.
    pub(super) fn eagerness(&self, reactor: usize, now: Instant, heard: Instant) -> Eagerness {
        if self.never_sleeps(reactor) {
            Eagerness::Always
        } else if self.interrupt.load(Ordering::Relaxed) == 0 || now.since_ns(heard) < RECENT_NS {
            Eagerness::Adaptive
        } else {
            Eagerness::Never
        }
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        self.of.count(self.reactor, self.polling).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_client_keeps_its_own_reactor_awake_and_no_other() {
        let interests = Interests::new(2);
        let busy = interests.attach(1, Polling::Busy);
        let now = Instant(1_000_000_000);
        assert_eq!(
            [0, 1].map(|reactor| interests.eagerness(reactor, now, Instant(0))),
            [Eagerness::Adaptive, Eagerness::Always]
        );
        drop(busy);
        assert_eq!(interests.eagerness(1, now, Instant(0)), Eagerness::Adaptive);
    }

    #[test]
    fn nobody_polls_for_an_interrupt_client_unless_an_adaptive_one_was_heard_of() {
        let interests = Interests::new(1);
        let now = Instant(1_000_000_000);
        let interrupt = interests.attach(0, Polling::Interrupt);
        assert_eq!(interests.eagerness(0, now, Instant(0)), Eagerness::Never);
        assert!(!interests.polls_rings() && !interests.any_but_interrupt());
        let adaptive = interests.attach(0, Polling::Adaptive);
        assert!(interests.polls_rings() && interests.any_but_interrupt());
        assert_eq!(interests.eagerness(0, now, Instant(now.0 - RECENT_NS + 1)), Eagerness::Adaptive);
        assert_eq!(interests.eagerness(0, now, Instant(now.0 - RECENT_NS)), Eagerness::Never);
        drop(adaptive);
        interests.set_sockets(0, 1);
        assert!(!interests.polls_rings() && interests.any_but_interrupt());
        drop(interrupt);
        assert_eq!(interests.eagerness(0, now, Instant(0)), Eagerness::Adaptive);
    }
}
