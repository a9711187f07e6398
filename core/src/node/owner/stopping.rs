//! Stopping in order: no new work anywhere, nothing in flight anywhere, everything durable everywhere, then the catalog says so.

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
}

impl Owner {
    pub(super) fn is_running(&self) -> bool {
        self.stage == Stage::Running
    }

    /// Whether the pool is being closed, and nobody may ask for anything any more.
    pub(super) fn begin_stop(&mut self) {
        if self.stage == Stage::Running {
            self.stage = Stage::Quieting(self.reactors);
            self.send_all(|| Message::Quiet);
        }
    }

    pub(super) fn reactor_quiet(&mut self) {
        let Stage::Quieting(left) = &mut self.stage else { panic!("a reactor is quiet that nobody silenced") };
        *left -= 1;
        if *left == 0 {
            self.stage = Stage::Draining(self.reactors);
            self.send_all(|| Message::Drain);
        }
    }

    pub(super) fn reactor_drained(&mut self) {
        let Stage::Draining(left) = &mut self.stage else { panic!("a reactor is drained too early") };
        *left -= 1;
        if *left > 0 {
            return;
        }
        self.stage = Stage::Closing;
        if self.faulted_shards.is_empty() {
            self.tasks.push_back(Task::Close);
        } else {
            // Something acknowledged may not be durable: the next opening has to look.
            self.stop_all();
        }
    }

    pub(super) fn stop_all(&mut self) {
        self.send_all(|| Message::Stop);
    }
}
