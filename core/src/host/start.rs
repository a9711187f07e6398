//! The start sequence of an association, and what follows an asynchronous event.
//!
//! ```text
//! Greet -> Connect -> Capabilities -> Enable -> Status (<-> StatusPause) -> Controller -+-> ready (discovery)
//!   QueueCount -> EventConfig -> Namespace -> Descriptors -> IoQueues -> ready   <------+
//! ```

use std::fmt;

use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Instant, Io};
use uuid::Uuid;

use super::api::{ControllerKind, Event, HostConfig, Namespace};
use super::association::{Host, Notice, Owner, Phase};
use super::error::{HostError, HostErrorKind};
use super::layout::command::{Completion as Cqe, Sqe};
use super::layout::fabrics;
use super::layout::identify;
use super::queue::Queue;
use super::slot::Data;
use crate::limits::REQUEST_BYTES_MAX;

/// Bytes of an Identify answer, the longest read of the start sequence.
pub(super) const SCRATCH_BYTES: usize = 4096;
/// Between two looks at whether the controller is ready.
const STATUS_PAUSE_NS: u64 = 1_000_000;
/// While no buffer is free.
const PRESSURE_PAUSE_NS: u64 = 5_000_000;
/// The only namespace of a subsystem of ours.
pub(super) const NSID: u32 = 1;

/// What the start sequence waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Greet,
    Connect,
    Capabilities,
    Enable,
    Status,
    StatusPause {
        until: Instant,
    },
    Controller,
    QueueCount,
    EventConfig,
    Namespace,
    Descriptors,
    /// So many I/O queues are connected.
    IoQueues {
        connected: u16,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Greet => "connecting",
            Step::Connect => "joining the subsystem",
            Step::Capabilities => "reading the controller's capabilities",
            Step::Enable => "enabling the controller",
            Step::Status | Step::StatusPause { .. } => "waiting for the controller to become ready",
            Step::Controller => "identifying the controller",
            Step::QueueCount => "asking for queues",
            Step::EventConfig => "asking for events",
            Step::Namespace => "identifying the volume",
            Step::Descriptors => "reading the volume's identity",
            Step::IoQueues { .. } => "connecting the I/O queues",
        })
    }
}

impl Host {
    /// Begins a connection; without a buffer for the start sequence a moment later.
    pub(super) fn begin_start<I: Io>(&mut self, io: &mut I) {
        if self.scratch.is_none() {
            self.scratch = io.buffers().get(SCRATCH_BYTES);
        }
        if self.scratch.is_none() {
            self.phase = Phase::Pausing { until: io.now().plus_ns(PRESSURE_PAUSE_NS) };
            return;
        }
        let deadline = io.now().plus_ns(self.config.connect_timeout.as_nanos() as u64);
        self.phase = Phase::Opening { step: Step::Greet, deadline };
        self.queues_granted = 0;
        self.notice_pending = false;
        self.queues[0].dial(io, self.config.addr);
    }

    fn step_to(&mut self, next: Step) {
        if let Phase::Opening { step, .. } = &mut self.phase {
            *step = next;
        }
    }

    fn step(&self) -> Option<Step> {
        match self.phase {
            Phase::Opening { step, .. } => Some(step),
            _ => None,
        }
    }

    pub(super) fn run_start_timer<I: Io>(&mut self, io: &mut I, now: Instant) {
        if let Some(Step::StatusPause { until }) = self.step()
            && now >= until
        {
            self.step_to(Step::Status);
            self.start_command(io, fabrics::property_get(fabrics::PROPERTY_CSTS, false));
        }
    }

    /// A command without data.
    fn start_command<I: Io>(&mut self, io: &mut I, sqe: Sqe) {
        self.submit_to(io, 0, sqe, Data::None, Owner::Start);
    }

    /// A command that fills the scratch buffer.
    fn start_read<I: Io>(&mut self, io: &mut I, sqe: Sqe) {
        let scratch = self.scratch.take().expect("one command of the start sequence at a time");
        self.submit_to(io, 0, sqe, Data::In(scratch), Owner::Start);
    }

    /// A queue's connection is greeted: join it to the association.
    pub(super) fn on_greeted<I: Io>(&mut self, io: &mut I, queue: usize) {
        let Some(step) = self.step() else { return };
        let Some(mut data) = io.buffers().get(fabrics::CONNECT_DATA_BYTES) else {
            let context = format!("{}: no buffer is free for connecting", self.config.name);
            return self.break_down(io, HostError::new(HostErrorKind::TimedOut, context));
        };
        let controller = if queue == 0 { fabrics::CONTROLLER_ANY } else { self.controller_id };
        let HostConfig { host_id, subsystem_nqn, host_nqn, .. } = &self.config;
        if let Err(why) = fabrics::connect_data(&mut data, *host_id, controller, subsystem_nqn, host_nqn) {
            return self.break_down(io, HostError::new(HostErrorKind::Invalid, why));
        }
        let entries = self.queues[queue].slots.len() as u16;
        let keep_alive_ms = if queue == 0 { self.config.keep_alive.as_millis() as u32 } else { 0 };
        let sqe = fabrics::connect(queue as u16, entries, keep_alive_ms);
        if step == Step::Greet {
            self.step_to(Step::Connect);
        }
        self.submit_to(io, queue, sqe, Data::Out { buf: data, in_capsule: true }, Owner::Start);
    }

    /// A command of the start sequence ended.
    pub(super) fn on_start_finished<I: Io>(&mut self, io: &mut I, queue: usize, cqe: &Cqe, buf: Option<Buf>) {
        let Some(step) = self.step() else { return };
        if !cqe.is_success() {
            let optional = matches!(step, Step::EventConfig | Step::Descriptors);
            if !optional {
                let error = self.start_error(step, cqe);
                return self.break_down(io, error);
            }
        }
        match step {
            Step::Connect | Step::IoQueues { .. } => drop(buf),
            _ if buf.is_some() => self.scratch = buf,
            _ => {}
        }
        if let Err(error) = self.advance(io, queue, step, cqe) {
            self.break_down(io, error.during(&self.config.name.clone()));
        }
    }

    fn start_error(&self, step: Step, cqe: &Cqe) -> HostError {
        let (name, nqn) = (&self.config.name, &self.config.subsystem_nqn);
        let status = cqe.status();
        if step == Step::Connect && status == fabrics::CONNECT_INVALID_HOST {
            let context = format!("connect {name}: the target does not allow host {} at {nqn}", self.config.host_nqn);
            return HostError::new(HostErrorKind::NotAllowed, context);
        }
        if step == Step::Connect && status == fabrics::CONNECT_INVALID_PARAMETERS {
            let context =
                format!("connect {name}: the target has no subsystem {nqn}; `ringway volume list` shows what it has");
            return HostError::new(HostErrorKind::NoSuchVolume, context);
        }
        HostError::new(HostErrorKind::Controller, format!("connect {name}: {status} while {step}"))
    }

    fn advance<I: Io>(&mut self, io: &mut I, queue: usize, step: Step, cqe: &Cqe) -> Result<(), HostError> {
        match step {
            Step::Greet | Step::StatusPause { .. } => return Err(HostError::protocol("an answer to nothing")),
            Step::Connect => {
                self.controller_id = cqe.result() as u16;
                self.step_to(Step::Capabilities);
                self.start_command(io, fabrics::property_get(fabrics::PROPERTY_CAP, true));
            }
            Step::Capabilities => {
                let entries = (cqe.result64() & 0xffff) as usize + 1;
                self.limit_depth(entries);
                self.step_to(Step::Enable);
                self.start_command(io, fabrics::property_set(fabrics::PROPERTY_CC, fabrics::CC_ENABLE));
            }
            Step::Enable => {
                self.step_to(Step::Status);
                self.start_command(io, fabrics::property_get(fabrics::PROPERTY_CSTS, false));
            }
            Step::Status => {
                let status = cqe.result();
                if status & fabrics::CSTS_FATAL != 0 {
                    return Err(HostError::new(HostErrorKind::Controller, "the controller reports a fatal status"));
                }
                if status & fabrics::CSTS_READY == 0 {
                    self.step_to(Step::StatusPause { until: io.now().plus_ns(STATUS_PAUSE_NS) });
                } else {
                    self.step_to(Step::Controller);
                    self.start_read(io, identify::command(identify::CNS_CONTROLLER, 0));
                }
            }
            Step::Controller => self.on_controller(io)?,
            Step::QueueCount => {
                let granted = (cqe.result() & 0xffff).min(cqe.result() >> 16) as u16;
                self.queues_granted = granted.saturating_add(1).min(self.queues.len() as u16 - 1);
                self.step_to(Step::EventConfig);
                self.start_command(io, Sqe::set_features(Sqe::FEATURE_ASYNC_EVENTS, 1 << 8));
            }
            Step::EventConfig => {
                self.step_to(Step::Namespace);
                self.start_read(io, identify::command(identify::CNS_NAMESPACE, NSID));
            }
            Step::Namespace => {
                let known = self.namespace;
                let namespace = self.parse_namespace()?;
                if known.is_some_and(|known| known.lba_bytes != namespace.lba_bytes) {
                    return Err(HostError::protocol("the volume came back with another logical block"));
                }
                self.namespace = Some(namespace);
                if known.is_some_and(|known| known.size != namespace.size) {
                    self.events.push_back(Event::Resized(namespace));
                }
                self.step_to(Step::Descriptors);
                self.start_read(io, identify::command(identify::CNS_DESCRIPTORS, NSID));
            }
            Step::Descriptors => {
                if cqe.is_success() {
                    let scratch = self.scratch.as_ref().expect("given back above");
                    let namespace = self.namespace.as_mut().expect("identified before");
                    namespace.uuid = identify::uuid_of_descriptors(scratch).unwrap_or(namespace.uuid);
                }
                self.step_to(Step::IoQueues { connected: 0 });
                let (addr, granted) = (self.config.addr, usize::from(self.queues_granted));
                self.queues[1..=granted].iter_mut().for_each(|queue| queue.dial(io, addr));
            }
            Step::IoQueues { connected } => {
                assert!(queue > 0, "the admin queue joined before");
                let connected = connected + 1;
                self.step_to(Step::IoQueues { connected });
                if connected == self.queues_granted {
                    self.opened(io);
                }
            }
        }
        Ok(())
    }

    /// The controller takes fewer commands a queue than asked for.
    fn limit_depth(&mut self, entries: usize) {
        for queue in &mut self.queues[1..] {
            if queue.slots.len() > entries {
                let digests = (self.config.header_digest, self.config.data_digest);
                *queue = Queue::new(self.config.token_space, queue.index, entries as u16, digests);
            }
        }
    }

    fn on_controller<I: Io>(&mut self, io: &mut I) -> Result<(), HostError> {
        let scratch = self.scratch.as_ref().expect("given back above");
        let controller = identify::controller(scratch);
        let capsule = controller.ioccsz as usize * 16;
        if capsule < 64 {
            return Err(HostError::protocol(format!("capsules of {capsule} bytes hold no command")));
        }
        // Data in a capsule begins right behind the command, or is not used.
        self.in_capsule_max = if controller.icdoff == 0 { capsule - 64 } else { 0 };
        let mdts = if controller.mdts == 0 {
            u32::MAX
        } else {
            4096_u32.checked_shl(controller.mdts.into()).unwrap_or(u32::MAX)
        };
        self.request_bytes_max = mdts.min(REQUEST_BYTES_MAX);
        match self.config.controller {
            ControllerKind::Discovery => self.opened(io),
            ControllerKind::Io { queues, .. } => {
                self.step_to(Step::QueueCount);
                let zero_based = u32::from(queues - 1);
                self.start_command(io, Sqe::set_features(Sqe::FEATURE_QUEUES, zero_based << 16 | zero_based));
            }
        }
        Ok(())
    }

    /// The scratch buffer as an Identify Namespace answer.
    fn parse_namespace(&self) -> Result<Namespace, HostError> {
        let scratch = self.scratch.as_ref().expect("given back by the command before");
        let read = identify::namespace(scratch);
        let lba_bytes = Some(read.lba_shift).filter(|shift| (9..=12).contains(shift)).map(|shift| 1_u32 << shift);
        let Some(lba_bytes) = lba_bytes else {
            return Err(HostError::protocol("the volume's logical block is neither 512 nor 4096 bytes"));
        };
        let size = read.nsze.checked_mul(u64::from(lba_bytes)).filter(|&size| size > 0);
        let Some(size) = size else {
            return Err(HostError::new(HostErrorKind::NoSuchVolume, "the subsystem has no namespace 1"));
        };
        let uuid = self.namespace.map_or(Uuid::from_bytes(read.nguid), |known| known.uuid);
        Ok(Namespace { size, lba_bytes, uuid, request_bytes_max: self.request_bytes_max, queues: self.queues_granted })
    }

    /// The controller says that something happened.
    pub(super) fn on_event<I: Io>(&mut self, io: &mut I, cqe: &Cqe) {
        if !cqe.is_success() || !self.is_ready() {
            return;
        }
        let (kind, information) = (cqe.result() & 7, cqe.result() >> 8 & 0xff);
        // Notice: namespace attribute changed. Others are the target's own business.
        if kind == 2 && information == 0 {
            self.notice_pending = true;
        }
        self.submit_to(io, 0, Sqe::async_event_request(), Data::None, Owner::EventRequest);
    }

    /// Reads the log page that a notice asks to be read, when the scratch buffer is free.
    pub(super) fn read_notice<I: Io>(&mut self, io: &mut I) {
        if self.notice_pending && self.namespace.is_some() && self.queues[0].room() > 1 && self.scratch.is_some() {
            self.notice_pending = false;
            let scratch = self.scratch.take().expect("looked at above");
            let sqe = identify::get_log_page(identify::LOG_CHANGED_NAMESPACES, 0, scratch.len() as u32);
            self.submit_to(io, 0, sqe, Data::In(scratch), Owner::Notice(Notice::Log));
        }
    }

    pub(super) fn on_notice_finished<I: Io>(&mut self, io: &mut I, notice: Notice, cqe: &Cqe, buf: Option<Buf>) {
        match notice {
            Notice::Log => {
                let scratch = buf.expect("it was read into");
                let sqe = identify::command(identify::CNS_NAMESPACE, NSID);
                self.submit_to(io, 0, sqe, Data::In(scratch), Owner::Notice(Notice::Namespace));
            }
            Notice::Namespace => {
                self.scratch = buf;
                let before = self.namespace;
                if let (true, Ok(namespace)) = (cqe.is_success(), self.parse_namespace())
                    && before.is_some_and(|before| before.size != namespace.size)
                {
                    self.namespace = Some(namespace);
                    self.events.push_back(Event::Resized(namespace));
                }
            }
        }
    }
}
