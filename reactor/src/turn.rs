//! The tick: pull everything, then execute, then send. The same code under the kernel's ring and under the simulator.
//!
//! Order in a turn, which the cut protocol rests on: completions, messages, control, and only then
//! [`Application::execute`], which reads the epoch word once and runs what is ready; nothing is pulled after that. Messages go
//! out last. A reactor polls while there was work a moment ago and sleeps in the ring, with every source armed, when there was not.

use std::sync::Arc;

use crate::io::{Completion, Instant, Io, Wait, Wake};
use crate::mailbox::Endpoint;

/// How long a reactor goes on polling after the last turn that did something, nanoseconds. A sleep and its wake-up cost about
/// 5 to 50 us; longer polling burns a core for clients that have left.
pub const POLLING_NS_DEFAULT: u64 = 50_000;

/// What runs on a reactor.
pub trait Application<I: Io, M> {
    /// An operation that was submitted to `io` ended.
    fn on_completion(&mut self, io: &mut I, completion: Completion);

    /// Reactor `from` sent `message`.
    fn on_message(&mut self, io: &mut I, from: usize, message: M);

    /// A control thread sent `message`.
    fn on_control(&mut self, io: &mut I, message: M);

    /// Everything was pulled but what lies in peers' rings, which is pulled first: run what is ready. The only place that sends.
    /// Returns whether a peer's ring had something, which the loop cannot see.
    fn execute(&mut self, io: &mut I, mail: &mut Endpoint<M>) -> bool;

    /// The loop is about to sleep: ask the peers whose rings are polled to ring a bell, then look at their rings once more.
    /// `false` if there was something: then it does not sleep.
    fn before_sleep(&mut self, _io: &mut I) -> bool {
        true
    }

    /// Whether [`Application::execute`] looks at rings of peers, so that it has to run although nothing else happened.
    fn has_peers(&self) -> bool {
        true
    }

    /// What the loop has counted so far, before each [`Application::execute`]; for those who show it.
    fn observe(&mut self, _stats: &TurnStats) {}

    /// The earliest instant at which [`Application::execute`] has to run although nothing arrives.
    fn next_deadline(&self) -> Instant;

    /// There is work that waits for nothing but the next turn.
    fn busy(&self) -> bool;

    /// How eagerly to look for more, with the time of the last turn.
    fn eagerness(&self, _now: Instant) -> Eagerness {
        Eagerness::Adaptive
    }
}

/// How a reactor goes on after a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Eagerness {
    /// It sleeps as soon as there is nothing to do.
    Never,
    /// It polls for a while after the last work.
    #[default]
    Adaptive,
    /// It polls.
    Always,
}

/// What a reactor did so far; plain numbers, summed by the reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnStats {
    /// Turns that did something.
    pub worked: u64,
    /// Turns that found nothing.
    pub empty: u64,
    /// Sleeps in the ring.
    pub sleeps: u64,
    /// Completions reaped.
    pub completions: u64,
    /// Messages received from other reactors (and from itself).
    pub messages: u64,
}

/// One reactor: its ring, its mail and its application.
pub struct Reactor<I, M, A> {
    io: I,
    mail: Endpoint<M>,
    application: A,
    completions: Vec<Completion>,
    messages: Vec<(usize, M)>,
    control: Vec<M>,
    polling_ns: u64,
    last_work: Instant,
    /// When the application has to run although nothing arrives, as of the last time it ran: at once while it is busy.
    due: Instant,
    stats: TurnStats,
}

impl<I: Io, M: Send, A: Application<I, M>> Reactor<I, M, A> {
    /// Joins the three; the mesh learns how to wake this reactor.
    pub fn new(io: I, mut mail: Endpoint<M>, application: A) -> Self {
        mail.set_waker(io.waker());
        let last_work = io.now();
        Self {
            io,
            mail,
            application,
            completions: Vec::with_capacity(1024),
            messages: Vec::with_capacity(1024),
            control: Vec::new(),
            polling_ns: POLLING_NS_DEFAULT,
            last_work,
            due: Instant(0),
            stats: TurnStats::default(),
        }
    }

    /// Sets for how long to poll after the last work; `u64::MAX` never sleeps.
    pub fn set_polling_ns(&mut self, polling_ns: u64) {
        self.polling_ns = polling_ns;
    }

    /// One turn. With `wait_allowed` it may sleep in the ring until there is something to do. Returns whether it did anything.
    pub fn turn(&mut self, wait_allowed: bool) -> bool {
        // The peers' bells are asked for before the mail's, which is undone by `unpark` alone.
        let park = wait_allowed
            && !self.application.busy()
            && self.application.before_sleep(&mut self.io)
            && self.mail.prepare_park();
        let wait = if park { Wait::Until(self.application.next_deadline()) } else { Wait::No };
        self.io.poll(wait, &mut self.completions);
        if park {
            self.mail.unpark();
            self.stats.sleeps += 1;
        }
        self.mail.receive(&mut self.messages);
        self.mail.receive_control(&mut self.control);
        let worked = !(self.completions.is_empty() && self.messages.is_empty() && self.control.is_empty());
        self.stats.completions += self.completions.len() as u64;
        self.stats.messages += self.messages.len() as u64;
        for completion in self.completions.drain(..) {
            self.application.on_completion(&mut self.io, completion);
        }
        for (from, message) in self.messages.drain(..) {
            self.application.on_message(&mut self.io, from, message);
        }
        for message in self.control.drain(..) {
            self.application.on_control(&mut self.io, message);
        }
        // What is due changes only when the application runs: turns that find nothing do not ask again, or a request that comes
        // next would wait for the answer.
        let worked = worked || self.due <= self.io.now();
        let worked = if worked || self.application.has_peers() { self.execute() || worked } else { false };
        self.mail.flush();
        if worked {
            self.stats.worked += 1;
            self.last_work = self.io.now();
        } else {
            self.stats.empty += 1;
        }
        worked
    }

    /// Everything was pulled: lets the application run.
    fn execute(&mut self) -> bool {
        self.application.observe(&self.stats);
        let worked = self.application.execute(&mut self.io, &mut self.mail);
        self.due = if self.application.busy() { Instant(0) } else { self.application.next_deadline() };
        worked
    }

    /// Turns until `done`: polls for a while after the last work, then sleeps.
    pub fn run(&mut self, mut done: impl FnMut(&mut A) -> bool) {
        while !done(&mut self.application) {
            let now = self.io.now();
            let wait_allowed = match self.application.eagerness(now) {
                Eagerness::Never => true,
                Eagerness::Adaptive => now.since_ns(self.last_work) >= self.polling_ns,
                Eagerness::Always => false,
            };
            self.turn(wait_allowed);
        }
    }

    /// What it did so far.
    pub fn stats(&self) -> TurnStats {
        self.stats
    }

    /// The application.
    pub fn application(&mut self) -> &mut A {
        self.due = Instant(0);
        &mut self.application
    }

    /// The ring.
    pub fn io(&mut self) -> &mut I {
        &mut self.io
    }

    /// Application and ring together, for what happens outside a turn (start and stop).
    pub fn parts(&mut self) -> (&mut A, &mut I, &mut Endpoint<M>) {
        self.due = Instant(0);
        (&mut self.application, &mut self.io, &mut self.mail)
    }

    /// Something that ends this reactor's sleep.
    pub fn waker(&self) -> Arc<dyn Wake> {
        self.io.waker()
    }

    /// Takes the reactor apart; the ring's operations in flight go with it.
    pub fn into_parts(self) -> (A, I, Endpoint<M>) {
        (self.application, self.io, self.mail)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::buf::{BufPool, BufPoolConfig};
    use crate::io::Token;
    use crate::mailbox::Mesh;
    use crate::uring::{UringConfig, UringIo};

    /// Passes a counter to its neighbour until it is `last`; `u64::MAX` stops it.
    struct Relay {
        index: usize,
        last: u64,
        to_send: Vec<u64>,
        stopped: bool,
        deadline: Instant,
        fired: u64,
        seen: u64,
        eagerness: Eagerness,
    }

    impl<I: Io> Application<I, u64> for Relay {
        fn on_completion(&mut self, _: &mut I, completion: Completion) {
            assert_eq!(completion.token, Token(u64::MAX), "nothing was submitted");
        }
        fn on_message(&mut self, _: &mut I, from: usize, message: u64) {
            assert_ne!(from, self.index);
            self.seen += 1;
            if message < self.last {
                self.to_send.push(message + 1);
            } else {
                self.stopped = true;
                self.to_send.push(message);
            }
        }
        fn on_control(&mut self, _: &mut I, message: u64) {
            if message == u64::MAX { self.stopped = true } else { self.to_send.push(message) }
        }
        fn execute(&mut self, io: &mut I, mail: &mut Endpoint<u64>) -> bool {
            for message in self.to_send.drain(..) {
                mail.send(1 - self.index, message);
            }
            if io.now() >= self.deadline {
                self.fired += 1;
                self.deadline = io.now().plus_ns(5_000_000);
            }
            false
        }
        fn next_deadline(&self) -> Instant {
            self.deadline
        }
        fn busy(&self) -> bool {
            false
        }
        fn eagerness(&self, _: Instant) -> Eagerness {
            self.eagerness
        }
    }

    /// Two reactors on threads; `start` is injected into the first.
    fn relays(
        last: u64,
        polling_ns: u64,
        start: impl FnOnce(crate::mailbox::Injector<u64>),
    ) -> Vec<(TurnStats, Relay)> {
        eager_relays(last, polling_ns, Eagerness::Adaptive, start)
    }

    fn eager_relays(
        last: u64,
        polling_ns: u64,
        eagerness: Eagerness,
        start: impl FnOnce(crate::mailbox::Injector<u64>),
    ) -> Vec<(TurnStats, Relay)> {
        let mails = Mesh::new(2, 4);
        let injector = mails[0].injector();
        let threads: Vec<_> = mails
            .into_iter()
            .map(|mail| {
                std::thread::spawn(move || {
                    let pool = BufPool::leak(&BufPoolConfig { classes: vec![(4096, 4)] }, 0);
                    let io = UringIo::new(&UringConfig { entries: 8, ..UringConfig::new(vec![pool], 0) }).unwrap();
                    let index = mail.index();
                    let deadline = io.now().plus_ns(5_000_000);
                    let to_send = Vec::new();
                    let relay = Relay { index, last, to_send, stopped: false, deadline, fired: 0, seen: 0, eagerness };
                    let mut reactor = Reactor::new(io, mail, relay);
                    reactor.set_polling_ns(polling_ns);
                    reactor.run(|relay| relay.stopped);
                    let stats = reactor.stats();
                    (stats, reactor.into_parts().0)
                })
            })
            .collect();
        start(injector);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }

    #[test]
    fn h13_reactors_that_sleep_at_once_still_pass_every_message() {
        let done = relays(20_000, 0, |injector| injector.send(0));
        assert_eq!(done.iter().map(|(_, relay)| relay.seen).sum::<u64>(), 20_002);
        assert!(done[0].0.sleeps > 100, "{:?}", done[0].0);
    }

    #[test]
    fn reactors_that_poll_pass_every_message_too() {
        let done = relays(2_000, 20_000, |injector| injector.send(0));
        assert_eq!(done.iter().map(|(_, relay)| relay.seen).sum::<u64>(), 2_002);
    }

    #[test]
    fn a_reactor_that_is_not_to_poll_sleeps_whenever_it_has_nothing_to_do_and_one_that_is_never_does() {
        let started_later = |injector: crate::mailbox::Injector<u64>| {
            std::thread::sleep(Duration::from_millis(100));
            injector.send(0);
        };
        for (stats, _) in eager_relays(200, u64::MAX, Eagerness::Never, started_later) {
            assert!(stats.sleeps >= 20 && stats.empty <= stats.sleeps, "{stats:?}");
        }
        for (stats, _) in eager_relays(200, 0, Eagerness::Always, started_later) {
            assert!(stats.sleeps == 0 && stats.empty > 1_000, "{stats:?}");
        }
    }

    #[test]
    fn an_idle_reactor_sleeps_and_its_timers_fire() {
        let done = relays(3, POLLING_NS_DEFAULT, |injector| {
            std::thread::sleep(Duration::from_millis(300));
            injector.send(0);
        });
        let (stats, relay) = &done[0];
        assert!(
            (20..=62).contains(&relay.fired),
            "every 5 ms for 300 ms, at the latest the next turn: {}",
            relay.fired
        );
        assert!(stats.sleeps >= 20 && stats.empty < 1_000_000, "{stats:?}");
    }
}
