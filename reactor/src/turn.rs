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

    /// Everything was pulled: run what is ready. The only place that sends.
    fn execute(&mut self, io: &mut I, mail: &mut Endpoint<M>);

    /// The earliest instant at which [`Application::execute`] has to run although nothing arrives.
    fn next_deadline(&self) -> Instant;

    /// There is work that waits for nothing but the next turn.
    fn busy(&self) -> bool;
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
            stats: TurnStats::default(),
        }
    }

    /// Sets for how long to poll after the last work; `u64::MAX` never sleeps.
    pub fn set_polling_ns(&mut self, polling_ns: u64) {
        self.polling_ns = polling_ns;
    }

    /// One turn. With `wait_allowed` it may sleep in the ring until there is something to do. Returns whether it did anything.
    pub fn turn(&mut self, wait_allowed: bool) -> bool {
        let park = wait_allowed && !self.application.busy() && self.mail.prepare_park();
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
        let worked = worked || self.application.busy() || self.application.next_deadline() <= self.io.now();
        self.application.execute(&mut self.io, &mut self.mail);
        self.mail.flush();
        if worked {
            self.stats.worked += 1;
            self.last_work = self.io.now();
        } else {
            self.stats.empty += 1;
        }
        worked
    }

    /// Turns until `done`: polls for a while after the last work, then sleeps.
    pub fn run(&mut self, mut done: impl FnMut(&mut A) -> bool) {
        while !done(&mut self.application) {
            let idle_ns = self.io.now().since_ns(self.last_work);
            self.turn(idle_ns >= self.polling_ns);
        }
    }

    /// What it did so far.
    pub fn stats(&self) -> TurnStats {
        self.stats
    }

    /// The application.
    pub fn application(&mut self) -> &mut A {
        &mut self.application
    }

    /// The ring.
    pub fn io(&mut self) -> &mut I {
        &mut self.io
    }

    /// Application and ring together, for what happens outside a turn (start and stop).
    pub fn parts(&mut self) -> (&mut A, &mut I, &mut Endpoint<M>) {
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
