//! A connection ends: everything comes back from the ring, what was in flight is kept or told, and what is next is decided.

use ringway_reactor::buf::Buf;
use ringway_reactor::io::Io;

use super::api::{Event, HostRequest, Outcome};
use super::association::{Half, HalfEnded, Host, IoOwner, Outage, Owner, Phase};
use super::commands::{join_halves, outcome};
use super::error::{HostError, HostErrorKind};
use super::link::Link;
use super::queue::{Orphan, QueueEvent};
use super::start::SCRATCH_BYTES;
use crate::request::Command;
use crate::wire::completion::{Cqe, NvmeStatus};

impl Host {
    /// Ends the connection because of `error`; what is in flight stays for the next one.
    pub(super) fn break_down<I: Io>(&mut self, io: &mut I, error: HostError) {
        if !matches!(self.phase, Phase::Opening { .. } | Phase::Ready { .. }) {
            return;
        }
        self.outage.get_or_insert(Outage { since: io.now(), attempts: 0 });
        self.phase = Phase::Breaking { error };
        self.queues.iter_mut().for_each(|queue| queue.close(io, &mut self.fabric));
        self.finish_breaking(io);
    }

    /// Ends the host: what is in flight ends as gone or unknown, then comes [`Event::Closed`].
    pub fn close<I: Io>(&mut self, io: &mut I) {
        match self.phase {
            Phase::Closed | Phase::Failed => self.events.push_back(Event::Closed),
            _ => {
                self.phase = Phase::Closing;
                self.queues.iter_mut().for_each(|queue| queue.close(io, &mut self.fabric));
                self.finish_breaking(io);
            }
        }
    }

    /// When everything is back from the ring: keep what was in flight, and decide what is next.
    pub(super) fn finish_breaking<I: Io>(&mut self, io: &mut I) {
        if !self.queues.iter().all(Link::is_closed) {
            return;
        }
        self.collect_orphans();
        let now = io.now();
        let phase = std::mem::replace(&mut self.phase, Phase::Closing);
        let Phase::Breaking { error } = phase else {
            self.end_all(Outcome::Gone);
            self.phase = Phase::Closed;
            self.silence(io);
            self.events.push_back(Event::Closed);
            return;
        };
        let outage = self.outage.as_mut().expect("a break begins an outage");
        outage.attempts += 1;
        let outage = *outage;
        let reconnect = &self.config.reconnect;
        let (limit, passes) = match self.was_ready {
            // A target that is starting may not list its volumes yet: keep trying whatever it says.
            // But another writer has come between, and what was not answered must not land over what it wrote.
            true => (reconnect.give_up_after, error.kind != HostErrorKind::Busy),
            false => (reconnect.wait_for_target, error.kind.passes() || error.kind == HostErrorKind::NoSuchVolume),
        };
        self.address_index = (self.address_index + 1) % (1 + self.config.others.len());
        let untried = !self.was_ready && outage.attempts as usize <= self.config.others.len();
        if untried {
            self.phase = Phase::Pausing { until: now };
            self.events.push_back(Event::Lost(error));
            return;
        }
        if !passes || now.since_ns(outage.since) >= limit.as_nanos() as u64 {
            self.end_all(Outcome::Gone);
            self.phase = Phase::Failed;
            self.silence(io);
            self.events.push_back(Event::Failed(error));
            return;
        }
        let doublings = (outage.attempts - 1).min(16);
        let pause = (reconnect.first * (1 << doublings)).min(reconnect.most);
        self.phase = Phase::Pausing { until: now.plus_ns(pause.as_nanos() as u64) };
        self.events.push_back(Event::Lost(error));
    }

    fn silence<I: Io>(&mut self, io: &mut I) {
        if let Some(fabric) = &mut self.fabric {
            fabric.silence(io);
        }
    }

    /// Takes the buffer of the start sequence and of notices back. The data of a Connect has another length and is not kept.
    fn keep_scratch(&mut self, buf: Option<Buf>) {
        self.scratch = buf.filter(|buf| buf.len() == SCRATCH_BYTES).or(self.scratch.take());
    }

    /// Answers that arrived together with the end of another queue's connection are answers all the same: their commands are no
    /// orphans, and nobody else will end them.
    fn deliver_answers(&mut self) {
        for queue in 0..self.queues.len() {
            while let Some(event) = self.queues[queue].events().pop_front() {
                let QueueEvent::Finished { cqe, buf, owner } = event else { continue };
                match owner {
                    Owner::Start | Owner::Notice(_) => self.keep_scratch(buf),
                    Owner::KeepAlive | Owner::EventRequest => {}
                    Owner::Admin { user } => self.complete(user, outcome(&cqe), buf, cqe.result.get() as u32),
                    Owner::Io(io) => self.on_io_finished(io, cqe, buf),
                }
            }
        }
    }

    fn collect_orphans(&mut self) {
        self.deliver_answers();
        let mut again = Vec::new();
        for queue in 0..self.queues.len() {
            for orphan in self.queues[queue].orphans() {
                let Orphan { owner, buf, sent, .. } = orphan;
                match owner {
                    Owner::Start | Owner::Notice(_) => self.keep_scratch(buf),
                    Owner::KeepAlive | Owner::EventRequest => {}
                    Owner::Admin { user } => self.complete(user, Outcome::Unknown, buf, 0),
                    Owner::Io(io) => match io.half {
                        Half::Whole => {
                            self.resent += usize::from(sent);
                            let buf = if io.command == Command::Deallocate { None } else { buf };
                            again.push(HostRequest {
                                user: io.user,
                                command: io.command,
                                offset: io.offset,
                                len: io.len,
                                buf,
                            });
                        }
                        half => self.orphan_half(io, half, buf, sent, &mut again),
                    },
                }
            }
        }
        again.into_iter().rev().for_each(|request| self.waiting.push_front(request));
        assert!(self.halves.is_empty(), "both halves of a pair are on one queue");
        self.notice_pending = true;
    }

    /// A half of a pair on a broken queue: only a pair of which nothing was sent may go out again.
    fn orphan_half(&mut self, io: IoOwner, half: Half, buf: Option<Buf>, sent: bool, again: &mut Vec<HostRequest>) {
        let (Half::First { pair } | Half::Second { pair }) = half else { unreachable!("whole commands are no halves") };
        let other = self.halves.iter().position(|ended| ended.pair == pair).map(|at| self.halves.swap_remove(at));
        let Some(other) = other else {
            // The first half goes out first: if it was not sent, nothing was.
            let cqe = sent.then(|| Cqe::new(0, 0, 0, NvmeStatus::SUCCESS));
            return self.halves.push(HalfEnded { pair, cqe, buf });
        };
        let buf = join_halves(half, buf, other.buf);
        if sent || other.cqe.is_some() {
            self.complete(io.user, Outcome::Unknown, buf, 0);
        } else {
            again.push(HostRequest { user: io.user, command: io.command, offset: io.offset, len: io.len, buf });
        }
    }

    fn end_all(&mut self, outcome: Outcome) {
        while let Some(request) = self.waiting.pop_front() {
            self.complete(request.user, outcome, request.buf, 0);
        }
    }
}
