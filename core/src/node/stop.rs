//! Stopping: quiet everywhere, then drained everywhere, then the catalog is closed cleanly.

use ringway_reactor::io::Io;

use super::message::Message;
use super::{Node, Stopping};
use crate::shard::RecordLog;

impl<L: RecordLog> Node<L> {
    /// Takes nothing new; connections close when what they have in flight has ended.
    pub(super) fn quiet<I: Io>(&mut self, io: &mut I) {
        self.transports.drain(io);
        self.inside.stop();
        self.stopping = Stopping::Quieting;
    }

    /// Every reactor is quiet, so no part is on its way: the shards make everything durable.
    pub(super) fn drain(&mut self) {
        assert!(self.serving.in_flight() == 0, "every reactor was quiet");
        self.stopping = Stopping::Draining { shards_left: self.local.ids().len() };
        self.local.ids().to_vec().into_iter().for_each(|id| self.local.touch(id).drain());
    }

    /// Tells the catalog's reactor how far this one has come, once a stage.
    pub(super) fn stop_step(&mut self) {
        match self.stopping {
            Stopping::Quieting
                if self.transports.is_quiet() && self.router.in_flight() == 0 && self.serving.in_flight() == 0 =>
            {
                self.stopping = Stopping::Quiet;
                self.send(0, Message::IsQuiet);
            }
            Stopping::Draining { shards_left: 0 } => {
                self.stopping = Stopping::Drained;
                self.send(0, Message::Drained);
            }
            _ => {}
        }
    }
}
