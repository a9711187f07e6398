//! How long a peer may hold what others need, and who is next.
//!
//! Data on its way from a peer, and data that a peer does not take, hold buffers. A peer that sends a byte now and then shows
//! progress, so progress is not what is asked for: a transfer has an end by when it is over. That limit is shorter while
//! somebody waits for room, and the shorter the more do, so that all who wait have had their turn within [`PRESSED_TICKS`]
//! although everybody before them is hostile.
//!
//! Room for data that is on its way is given in the order in which connections came to wait for it, one command a turn: neither
//! newcomers nor commands that need less go past, or one who needs much would wait for ever. Who was ended waits behind.
//!
//! Time is counted in ticks of the transport, not read off the clock: a reactor that stood still has not given its peers a chance.

use std::collections::VecDeque;

use ringway_reactor::io::Io;

use super::connection::{Connection, Phase};
use super::{Cx, TICK_NS};
use crate::wire::pdu::{FatalStatus, Termination};

/// No transfer takes longer: a host's own timeout for a command is 30 s where nothing is said.
const TRANSFER_TICKS: u64 = 30_000_000_000 / TICK_NS;
/// While somebody waits, all turns of those who do take no longer together: a third of that, so that who waits is served before
/// its host gives up.
const PRESSED_TICKS: u64 = 10_000_000_000 / TICK_NS;
/// How long a refusal counts as somebody waiting: those who wait try again much more often.
const PRESSURE_TICKS: u64 = 2;

/// The transport's patience, and the line of connections that wait for room to receive.
#[derive(Debug, Default)]
pub(super) struct Patience {
    ticks: u64,
    line: VecDeque<usize>,
    /// Bytes of the commands that wait there.
    wanted: usize,
    /// When somebody last found no room.
    refused: Option<u64>,
}

impl Patience {
    /// Half a second has passed in which peers could be heard.
    pub(super) fn tick(&mut self) {
        self.ticks += 1;
    }

    /// Now, in ticks.
    pub(super) fn now(&self) -> u64 {
        self.ticks
    }

    /// Somebody finds no room that others hold.
    pub(super) fn refuse(&mut self) {
        self.refused = Some(self.ticks);
    }

    /// Whether this connection may take room to receive, as far as others are concerned.
    fn is_turn_of(&self, connection: usize) -> bool {
        self.line.front().is_none_or(|&first| first == connection)
    }

    /// How long a transfer may take as of now, where there is so much room for all.
    fn limit(&self, room: usize) -> u64 {
        let pressed = self.refused.is_some_and(|at| at + PRESSURE_TICKS >= self.ticks);
        if !pressed {
            return TRANSFER_TICKS;
        }
        let turns = 1 + self.wanted / room.max(1);
        (PRESSED_TICKS / turns as u64).max(1)
    }
}

/// What one connection's transfers hold, and since when.
#[derive(Debug)]
pub(super) struct Owing {
    /// Since the connection was taken.
    began: u64,
    /// Bytes of buffers that wait for data of the peer.
    pub(super) receiving: usize,
    /// Bytes for which it stands in the line; 0: it does not.
    wanted: usize,
    /// Bytes sent as of the tick in which their number last changed, and that tick.
    sent: (u64, u64),
}

impl Owing {
    pub(super) fn new(now: u64) -> Owing {
        Owing { began: now, receiving: 0, wanted: 0, sent: (0, now) }
    }
}

impl Connection {
    /// Whether a command of this connection may take `bytes` of the room for data that is on its way. If not it waits in line.
    pub(super) fn may_receive<I>(&mut self, cx: &mut Cx<'_, I>, bytes: usize) -> bool {
        let own = self.owing.receiving == 0 || self.owing.receiving + bytes <= cx.config.connection_receiving_max;
        if !own {
            // It waits for itself alone, and lets others by.
            self.leave_line(cx);
            return false;
        }
        let room = *cx.receiving_bytes == 0 || *cx.receiving_bytes + bytes <= cx.config.receiving_bytes_max;
        if room && cx.patience.is_turn_of(self.index) {
            return true;
        }
        cx.patience.refuse();
        if self.owing.wanted == 0 {
            cx.patience.line.push_back(self.index);
            cx.patience.wanted += bytes;
            self.owing.wanted = bytes;
        }
        false
    }

    /// It has the room that it waited for, or does not want it any more; for more it waits again.
    pub(super) fn leave_line<I>(&mut self, cx: &mut Cx<'_, I>) {
        let wanted = std::mem::take(&mut self.owing.wanted);
        if wanted > 0 {
            cx.patience.wanted -= wanted;
            cx.patience.line.retain(|&connection| connection != self.index);
        }
    }

    /// Ends a connection whose transfers, or whose greeting, take too long.
    pub(super) fn check_patience<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        let now = cx.patience.now();
        let sent = self.output.bytes_sent;
        if !self.output.is_in_flight() || sent != self.owing.sent.0 {
            self.owing.sent = (sent, now);
        }
        if self.phase == Phase::Closing {
            return;
        }
        if self.stalled.is_some() || !self.input.is_posted() {
            // It is we who do not read: a command before these has no buffer.
            self.commands.iter_mut().for_each(|(_, slot)| slot.excuse());
        }
        let limit = cx.patience.limit(cx.config.receiving_bytes_max);
        let late = |since: u64| now.saturating_sub(since) > limit;
        if self.commands.iter().filter_map(|(_, slot)| slot.receiving_since()).any(late) {
            tracing::warn!(peer = %self.peer, "the data of a command does not come to its end");
            // Told why where that can be told at once (tcp 3.5); a peer that takes nothing either would only hold more.
            return if self.output.is_idle() && self.phase == Phase::Open {
                self.terminate(cx, Termination { status: FatalStatus::LimitExceeded, information: 0 });
            } else {
                self.close(cx, "the data of a command took too long");
            };
        }
        if late(self.owing.sent.1) {
            tracing::warn!(peer = %self.peer, "what was sent is not taken");
            return self.close(cx, "the peer took too long to take what was sent");
        }
        let greeting = self.phase == Phase::AwaitInit || self.queue.is_unconnected();
        if greeting && now - self.owing.began > TRANSFER_TICKS {
            self.close(cx, "no Connect has come");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_wait_the_less_time_each_has_and_all_have_had_their_turn_in_ten_seconds() {
        let mut patience = Patience { ticks: 100, ..Patience::default() };
        assert_eq!(patience.limit(1000), TRANSFER_TICKS);
        patience.refuse();
        for (wanted, limit) in [(0, 20), (999, 20), (1000, 10), (3000, 5), (50_000, 1)] {
            patience.wanted = wanted;
            assert_eq!(patience.limit(1000), limit, "{wanted}");
        }
        patience.ticks += PRESSURE_TICKS + 1;
        assert_eq!(patience.limit(1000), TRANSFER_TICKS, "nobody has asked for a while");
    }
}
