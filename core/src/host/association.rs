//! One host's association with one subsystem: the start sequence, commands, keep-alive, and coming back after a break.
//!
//! ```text
//! Idle --start--> Opening --start sequence done--> Ready
//!                    |                               |
//!                    +--------- any error -----------+--> Breaking --(queues drained)--> Pausing --(pause over)--> Opening
//!                                                              |
//!                                                              +--> Failed (given up), Closed (asked to)
//! ```
//! Commands in flight at a break are kept, in order, and sent again on the next connection ahead of new ones; the target
//! sees to it that nothing of the old association runs after the new one is accepted (C11). A compare-and-write is never
//! sent twice: it ends as `Outcome::Unknown`.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use ringway_rdma::verbs::Verbs;
use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Completion, Instant, Io, Token};

use super::api::{ControllerKind, Event, HostConfig, HostRequest, Namespace};
use super::error::{HostError, HostErrorKind};
use super::fabric_queue::FabricQueue;
use super::link::{Fabric, Link, subject};
use super::queue::{Queue, QueueEvent, QueueToken};
use super::slot::Data;
use super::start::Step;
use crate::request::Command;
use crate::wire::command::{Sqe, admin};
use crate::wire::completion::Cqe;
use crate::wire::log_page::TransportType;

/// Commands of the admin queue. One entry of its ring stays empty, and the Linux target refuses more than 32 entries over RDMA.
const ADMIN_DEPTH: u16 = 31;
/// Whose a command is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner {
    /// A step of the start sequence, or what follows an event.
    Start,
    /// A volume changed: the log page that says so, or its namespace, is being read.
    Notice(Notice),
    KeepAlive,
    /// The controller answers when something happened.
    EventRequest,
    Admin {
        user: u64,
    },
    Io(IoOwner),
}

/// What follows "namespace changed".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    Log,
    Namespace,
}

/// What a command has to be sent again from.
#[derive(Clone, Copy, Debug)]
pub(super) struct IoOwner {
    pub(super) user: u64,
    pub(super) command: Command,
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) half: Half,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Whole,
    /// The compare of a fused pair.
    First {
        pair: u64,
    },
    /// The write of a fused pair.
    Second {
        pair: u64,
    },
}

/// The first half of a fused pair to end waits for the other.
#[derive(Debug)]
pub(super) struct HalfEnded {
    pub(super) pair: u64,
    pub(super) cqe: Option<Cqe>,
    pub(super) buf: Option<Buf>,
}

#[derive(Debug)]
pub(super) enum Phase {
    Idle,
    Opening { step: Step, deadline: Instant },
    Ready { keep_alive_due: Instant },
    Breaking { error: HostError },
    Pausing { until: Instant },
    Closing,
    Closed,
    Failed,
}

/// An outage, or the time before the first connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    pub(super) since: Instant,
    pub(super) attempts: u32,
}

/// An NVMe host with one association. Driven by its owner: completions in, [`Host::turn`] once a tick, events out.
#[derive(Debug)]
pub struct Host {
    pub(super) config: HostConfig,
    /// Queue 0 is the admin queue.
    pub(super) queues: Vec<Link<Owner>>,
    /// RDMA devices, if that is the way.
    pub(super) fabric: Option<Fabric>,
    pub(super) phase: Phase,
    pub(super) events: VecDeque<Event>,
    pub(super) waiting: VecDeque<HostRequest>,
    pub(super) outage: Option<Outage>,
    pub(super) namespace: Option<Namespace>,
    /// Bytes of data that may travel in a capsule of an I/O queue.
    pub(super) in_capsule_max: usize,
    /// The controller's smallest page, the unit of MDTS.
    pub(super) page_bytes_min: u64,
    /// Bytes of the largest request.
    pub(super) request_bytes_max: u32,
    /// I/O queues of this connection.
    pub(super) queues_granted: u16,
    pub(super) controller_id: u16,
    /// For the data of the start sequence and of notices; `None` while a command has it.
    pub(super) scratch: Option<Buf>,
    pub(super) notice_pending: bool,
    pub(super) halves: Vec<HalfEnded>,
    pub(super) pairs: u64,
    pub(super) next_queue: usize,
    scan_due: Instant,
    pub(super) resent: usize,
    /// The first connection stood once.
    pub(super) was_ready: bool,
    /// Which of the addresses is tried, or stands.
    pub(super) address_index: usize,
}

/// A queue of `depth` commands, over what the configuration says.
pub(super) fn link(config: &HostConfig, index: u8, depth: u16) -> Link<Owner> {
    match config.transport {
        TransportType::Tcp => {
            let digests = (config.header_digest, config.data_digest);
            Link::Tcp(Queue::new(config.token_space, index, depth, digests))
        }
        TransportType::Rdma => Link::Rdma(FabricQueue::new(index, depth)),
    }
}

impl Host {
    /// A host that is not connected yet; [`Host::over_rdma`] is for those whose transport that is.
    #[must_use]
    pub fn new(config: HostConfig) -> Self {
        let mut queues = vec![link(&config, 0, ADMIN_DEPTH)];
        if let ControllerKind::Io { queues: count, depth } = config.controller {
            assert!((1..=128).contains(&count) && depth >= 1, "{count} queues of {depth} commands");
            queues.extend((1..=count).map(|index| link(&config, index as u8, depth)));
        }
        Self {
            config,
            queues,
            fabric: None,
            phase: Phase::Idle,
            events: VecDeque::new(),
            waiting: VecDeque::new(),
            outage: None,
            namespace: None,
            in_capsule_max: 0,
            page_bytes_min: 4096,
            request_bytes_max: 0,
            queues_granted: 0,
            controller_id: 0,
            scratch: None,
            notice_pending: false,
            halves: Vec::new(),
            pairs: 0,
            next_queue: 1,
            scan_due: Instant(0),
            resent: 0,
            was_ready: false,
            address_index: 0,
        }
    }

    /// Where the target is looked for.
    pub(super) fn address(&self) -> SocketAddr {
        self.address_index.checked_sub(1).map_or(self.config.addr, |other| self.config.others[other])
    }

    /// A host that is not connected yet, and will be over RDMA.
    ///
    /// # Panics
    /// If its configuration says another transport.
    #[must_use]
    pub fn over_rdma(config: HostConfig, verbs: Box<dyn Verbs>) -> Self {
        assert_eq!(config.transport, TransportType::Rdma, "the configuration says over what it goes");
        Self { fabric: Some(Fabric::new(verbs)), ..Self::new(config) }
    }

    /// Begins the first connection.
    ///
    /// # Panics
    /// If it was started before, or was made without the devices that its transport needs.
    pub fn start<I: Io>(&mut self, io: &mut I) {
        assert_eq!(self.config.transport == TransportType::Rdma, self.fabric.is_some(), "made for its transport");
        assert!(matches!(self.phase, Phase::Idle), "a host is started once");
        self.outage = Some(Outage { since: io.now_precise(), attempts: 0 });
        self.phase = Phase::Pausing { until: io.now_precise() };
        self.turn(io);
    }

    /// Whether an operation's completion belongs to this host.
    #[must_use]
    pub fn owns(&self, token: Token) -> bool {
        (token.0 >> 48) as u16 == self.config.token_space
    }

    /// What it was told at [`Host::new`].
    #[must_use]
    pub fn config(&self) -> &HostConfig {
        &self.config
    }

    /// The volume, once the first connection stood.
    #[must_use]
    pub fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_ref()
    }

    /// Whether commands go out at once.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready { .. })
    }

    /// Whether it is over: nothing of this host is in the ring.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Failed | Phase::Closed) && self.fabric.as_ref().is_none_or(Fabric::is_silent)
    }

    /// Hands an operation's end to the queue it belongs to. Call [`Host::turn`] when all of a tick are in.
    pub fn on_completion<I: Io>(&mut self, io: &mut I, completion: Completion) {
        let token = QueueToken::decode(completion.token);
        match (&mut self.fabric, &mut self.queues[usize::from(token.queue)]) {
            (Some(fabric), _) => fabric.rang(),
            (None, Link::Tcp(queue)) => queue.on_completion(io, token, completion, &self.config.name),
            (None, Link::Rdma(_)) => unreachable!("a host over RDMA has its devices"),
        }
    }

    /// Applies what has arrived, runs timers, sends what is to be sent.
    pub fn turn<I: Io>(&mut self, io: &mut I) {
        self.take_fabric_events(io);
        for queue in 0..self.queues.len() {
            while let Some(event) = self.queues[queue].events().pop_front() {
                match event {
                    QueueEvent::Greeted => self.on_greeted(io, queue),
                    QueueEvent::Finished { cqe, buf, owner } => self.on_finished(io, queue, cqe, buf, owner),
                    QueueEvent::Down(error) => self.break_down(io, error),
                }
            }
        }
        self.run_timers(io);
        if self.is_ready() {
            while let Some(request) = self.waiting.pop_front() {
                if let Err(request) = self.place(io, request) {
                    self.waiting.push_front(request);
                    break;
                }
            }
            self.read_notice(io);
        }
        self.flush(io);
    }

    /// Sends what was submitted since the last [`Host::turn`].
    pub fn flush<I: Io>(&mut self, io: &mut I) {
        for queue in &mut self.queues {
            queue.flush(io, &mut self.fabric, &self.config.name);
        }
        if let Some(fabric) = &mut self.fabric {
            fabric.flush();
        }
    }

    /// Takes what RDMA devices have done.
    fn take_fabric_events<I: Io>(&mut self, io: &mut I) {
        let Some(fabric) = &mut self.fabric else { return };
        let events: Vec<_> = fabric.poll(io, self.config.token_space).collect();
        for event in events {
            let Some(qp) = subject(&event) else { continue };
            // What was posted to a queue pair that had ended already comes back after its end, to nobody.
            if let Some(queue) = self.queues.iter_mut().find(|queue| queue.qp() == Some(qp)) {
                queue.on_fabric_event(&mut self.fabric, event, &self.config.name);
            }
        }
    }

    /// Events since the last call, in order.
    pub fn events(&mut self) -> impl Iterator<Item = Event> + '_ {
        self.events.drain(..)
    }

    /// The next event, if there is one.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Host::turn`] has to run although nothing arrives: at once, if something waits to be sent.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        if self.queues.iter().any(Link::wants_flush) {
            return Instant(0);
        }
        let fabric = self.fabric.as_ref().map_or(Instant::NEVER, Fabric::next_deadline);
        fabric.min(self.phase_deadline())
    }

    fn phase_deadline(&self) -> Instant {
        match &self.phase {
            Phase::Idle | Phase::Closed | Phase::Failed => Instant::NEVER,
            Phase::Breaking { .. } | Phase::Closing => Instant::NEVER,
            Phase::Pausing { until } => *until,
            Phase::Opening { deadline, step } => match step {
                Step::StatusPause { until } => (*until).min(*deadline),
                _ => *deadline,
            },
            Phase::Ready { keep_alive_due } => (*keep_alive_due).min(self.scan_due),
        }
    }

    fn run_timers<I: Io>(&mut self, io: &mut I) {
        let now = io.now();
        match &self.phase {
            Phase::Opening { deadline, step } => {
                if now >= *deadline {
                    let context = format!(
                        "{}: no answer within {:?} while {step}",
                        self.config.name, self.config.connect_timeout
                    );
                    self.break_down(io, HostError::new(HostErrorKind::TimedOut, context));
                } else {
                    self.run_start_timer(io, now);
                }
            }
            Phase::Ready { keep_alive_due } => {
                if now >= *keep_alive_due {
                    self.send_keep_alive(io, now);
                }
                if now >= self.scan_due {
                    self.scan_deadlines(io, now);
                }
            }
            Phase::Pausing { until } if now >= *until => self.begin_start(io),
            Phase::Breaking { .. } | Phase::Closing => self.finish_breaking(io),
            Phase::Pausing { .. } | Phase::Idle | Phase::Closed | Phase::Failed => {}
        }
    }

    fn send_keep_alive<I: Io>(&mut self, io: &mut I, now: Instant) {
        if self.queues[0].room() > 0 {
            self.submit_to(io, 0, Sqe::new(admin::KEEP_ALIVE, 0), Data::None, Owner::KeepAlive);
        }
        self.phase = Phase::Ready { keep_alive_due: self.keep_alive_after(now) };
    }

    pub(super) fn keep_alive_after(&self, now: Instant) -> Instant {
        match self.config.keep_alive.as_nanos() as u64 {
            0 => Instant::NEVER,
            // Two in one timeout: one lost wake-up is not the end of the association.
            ns => now.plus_ns(ns / 3),
        }
    }

    fn scan_deadlines<I: Io>(&mut self, io: &mut I, now: Instant) {
        self.scan_due =
            now.plus_ns((self.config.command_timeout.as_nanos() as u64 / 8).clamp(1_000_000, 1_000_000_000));
        let earliest = self.queues.iter().filter_map(|queue| Some((queue.earliest_deadline()?, queue.index()))).min();
        if let Some(((deadline, cid), queue)) = earliest
            && now >= deadline
        {
            let context = format!(
                "{}: command {cid} on queue {queue} was not answered within {:?}",
                self.config.name, self.config.command_timeout
            );
            self.break_down(io, HostError::new(HostErrorKind::TimedOut, context));
        }
    }

    /// The start sequence is through.
    pub(super) fn opened<I: Io>(&mut self, io: &mut I) {
        let now = io.now();
        self.phase = Phase::Ready { keep_alive_due: self.keep_alive_after(now) };
        self.scan_due = now;
        let outage = self.outage.take().expect("an opening ends an outage");
        if self.was_ready {
            let outage = Duration::from_nanos(now.since_ns(outage.since));
            self.events.push_back(Event::Reconnected { resent: std::mem::take(&mut self.resent), outage });
        } else {
            self.was_ready = true;
            self.events.push_back(Event::Ready(self.namespace));
        }
        self.submit_to(io, 0, Sqe::new(admin::ASYNC_EVENT_REQUEST, 0), Data::None, Owner::EventRequest);
    }
}
