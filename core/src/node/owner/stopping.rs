//! Stopping in order: no new work anywhere, nothing in flight anywhere, everything durable everywhere, then the catalog says so.

use ringway_reactor::io::Instant;

use super::{Owner, Task};
use crate::node::message::Message;

/// How far stopping has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Running,
    /// So many reactors still have something in flight.
    Quieting(usize),
    /// So many reactors are not yet drained.
    Draining(usize),
    /// The catalog is being closed.
    Closing,
    /// It is closed: the next opening has nothing to recover.
    Closed,
    /// Somebody did not take their last answers: what is in flight is given up.
    GivenUp,
}

impl Owner {
    pub(super) fn is_running(&self) -> bool {
        self.stage == Stage::Running
    }

    /// Whether the pool is being closed, and nobody may ask for anything any more.
    pub(super) fn begin_stop(&mut self) {
        if self.stage == Stage::Running {
            self.stage = Stage::Quieting(self.reactors);
            self.give_up_all();
            self.stop_streams();
            self.dismiss_listeners();
            self.send_all(|| Message::Quiet);
        }
    }

    pub(super) fn reactor_quiet(&mut self) {
        let Stage::Quieting(left) = &mut self.stage else {
            assert_eq!(self.stage, Stage::GivenUp, "a reactor is quiet that nobody silenced");
            return;
        };
        *left -= 1;
        if *left == 0 {
            self.stage = Stage::Draining(self.reactors);
            self.send_all(|| Message::Drain);
        }
    }

    pub(super) fn reactor_drained(&mut self) {
        let Stage::Draining(left) = &mut self.stage else {
            assert_eq!(self.stage, Stage::GivenUp, "a reactor is drained too early");
            return;
        };
        *left -= 1;
        if *left > 0 {
            return;
        }
        self.stage = Stage::Closing;
        if self.faulted_shards.is_empty() && self.dead.is_empty() {
            self.tasks.push_back(Task::Close);
        } else {
            // Something acknowledged may not be durable: the next opening has to look.
            self.stop_all();
        }
    }

    /// Gives up what does not end in time. Its hosts have no answer, and the next opening recovers.
    pub(super) fn check_patience(&mut self, now: Instant) {
        match self.stage {
            Stage::Quieting(left) | Stage::Draining(left) => {
                if self.give_up == Instant::NEVER {
                    self.give_up = now.plus_ns(self.drain_timeout_ns);
                } else if now >= self.give_up {
                    tracing::warn!(reactors = left, "what is in flight does not end: stopping without it");
                    self.stage = Stage::GivenUp;
                    self.give_up = Instant::NEVER;
                    self.stop_all();
                }
            }
            _ => self.give_up = Instant::NEVER,
        }
    }

    /// Whether the pool was closed in good order.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.stage == Stage::Closed
    }

    pub(super) fn stop_all(&mut self) {
        self.send_all(|| Message::Stop);
    }
}
