//! The start sequence of an association, and what follows an asynchronous event.
//!
//! ```text
//! Greet -> Connect -> Capabilities -> Enable -> Status (<-> StatusPause) -> Controller -+-> ready (discovery)
//!   QueueCount -> EventConfig -> Namespace -> Descriptors -> IoQueues -> ready   <------+
//! ```

use std::fmt;

use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Instant, Io};
use ringway_shm_ring::message::{WRITER, WRITER_AGAIN};
use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use super::api::{ControllerKind, Event, HostConfig, Namespace};
use super::association::{Host, Notice, Owner, Phase, link};
use super::error::{HostError, HostErrorKind};
use super::link::Dial;
use super::slot::Data;
use crate::limits::REQUEST_BYTES_MAX;
use crate::wire::command::{Sqe, admin};
use crate::wire::completion::{Cqe, NvmeStatus};
use crate::wire::fabrics::{self, Capabilities, Configuration, Connect, ConnectData, Property};
use crate::wire::features::{self, AsyncEvent};
use crate::wire::identify::{IdentifyController, IdentifyNamespace, NamespaceDescriptors, cns};
use crate::wire::log_page::page;
use crate::wire::{NQN_MAX, NSID_ALL};

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
        let to = Dial { addr: self.address(), controller: 0, name: &self.config.name };
        self.queues[0].dial(io, &mut self.fabric, &to);
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
            self.start_command(io, fabrics::property_get(Property::Status));
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
        let controller = if queue == 0 { fabrics::CNTLID_DYNAMIC } else { self.controller_id };
        let HostConfig { host_id, subsystem_nqn, host_nqn, .. } = &self.config;
        let bad = [subsystem_nqn, host_nqn].into_iter().find(|nqn| nqn.is_empty() || nqn.len() > NQN_MAX);
        if let Some(nqn) = bad.cloned() {
            let context = format!("{nqn:?} is not a name of 1 to {NQN_MAX} bytes");
            return self.break_down(io, HostError::new(HostErrorKind::Invalid, context));
        }
        let lease = match (self.config.lease, self.was_ready) {
            (false, _) => "",
            (true, false) => WRITER,
            (true, true) => WRITER_AGAIN,
        };
        let subsystem = format!("{subsystem_nqn}{lease}");
        let connect = ConnectData::new(*host_id.as_bytes(), controller, &subsystem, host_nqn);
        data.copy_from_slice(connect.as_bytes());
        // One entry of a ring stays empty: so many commands need one more.
        let entries = self.queues[queue].depth() as u16 + 1;
        let keep_alive_ms = if queue == 0 { self.config.keep_alive.as_millis() as u32 } else { 0 };
        let sqe = Connect::new(queue as u16, entries, keep_alive_ms).sqe();
        if step == Step::Greet {
            self.step_to(Step::Connect);
        }
        self.submit_to(io, queue, sqe, Data::Out { buf: data, in_capsule: true }, Owner::Start);
    }

    /// A command of the start sequence ended.
    pub(super) fn on_start_finished<I: Io>(&mut self, io: &mut I, queue: usize, cqe: &Cqe, buf: Option<Buf>) {
        let Some(step) = self.step() else { return };
        if !cqe.nvme_status().is_success() {
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
        let status = cqe.nvme_status();
        if step == Step::Connect && status.is(NvmeStatus::CONNECT_INVALID_HOST) {
            let context = format!("connect {name}: the target does not allow host {} at {nqn}", self.config.host_nqn);
            return HostError::new(HostErrorKind::NotAllowed, context);
        }
        if step == Step::Connect && status.is(NvmeStatus::RESERVATION_CONFLICT) {
            let context = format!("connect {name}: {nqn} has another writer, or had one meanwhile");
            return HostError::new(HostErrorKind::Busy, context);
        }
        if step == Step::Connect && status.is(NvmeStatus::CONNECT_INVALID_PARAMETERS) {
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
                self.controller_id = cqe.result.get() as u32 as u16;
                self.step_to(Step::Capabilities);
                self.start_command(io, fabrics::property_get(Property::Capabilities));
            }
            Step::Capabilities => {
                let capabilities = Capabilities(cqe.result.get());
                self.limit_depth(capabilities.queue_entries_max());
                self.page_bytes_min = capabilities.page_bytes_min();
                self.step_to(Step::Enable);
                self.start_command(io, fabrics::property_set(Property::Configuration, Configuration::ENABLE.0.into()));
            }
            Step::Enable => {
                self.step_to(Step::Status);
                self.start_command(io, fabrics::property_get(Property::Status));
            }
            Step::Status => {
                let status = cqe.result.get() as u32;
                if status & fabrics::CSTS_FATAL != 0 {
                    return Err(HostError::new(HostErrorKind::Controller, "the controller reports a fatal status"));
                }
                if status & fabrics::CSTS_READY == 0 {
                    self.step_to(Step::StatusPause { until: io.now().plus_ns(STATUS_PAUSE_NS) });
                } else {
                    self.step_to(Step::Controller);
                    self.start_read(io, Sqe::identify(cns::CONTROLLER, 0));
                }
            }
            Step::Controller => self.on_controller(io)?,
            Step::QueueCount => {
                let granted = features::queues_of(cqe.result.get() as u32)
                    .map_or(0, |(submission, completion)| submission.min(completion));
                if granted == 0 {
                    return Err(HostError::protocol("the target grants no I/O queue"));
                }
                self.queues_granted = granted.min(self.queues.len() as u16 - 1);
                self.step_to(Step::EventConfig);
                self.start_command(
                    io,
                    Sqe::set_features(features::ASYNC_EVENT_CONFIGURATION, features::EVENT_NAMESPACE),
                );
            }
            Step::EventConfig => {
                self.step_to(Step::Namespace);
                self.start_read(io, Sqe::identify(cns::NAMESPACE, NSID));
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
                self.start_read(io, Sqe::identify(cns::NAMESPACE_DESCRIPTORS, NSID));
            }
            Step::Descriptors => {
                if cqe.nvme_status().is_success() {
                    let scratch = self.scratch.as_ref().expect("given back above");
                    let namespace = self.namespace.as_mut().expect("identified before");
                    let found = NamespaceDescriptors::read(scratch).uuid.map(Uuid::from_bytes);
                    namespace.uuid = found.unwrap_or(namespace.uuid);
                }
                self.step_to(Step::IoQueues { connected: 0 });
                let (addr, granted) = (self.address(), usize::from(self.queues_granted));
                let to = Dial { addr, controller: self.controller_id, name: &self.config.name };
                let (queues, fabric) = (&mut self.queues[1..=granted], &mut self.fabric);
                queues.iter_mut().for_each(|queue| queue.dial(io, fabric, &to));
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
    fn limit_depth(&mut self, entries: u32) {
        let depth = entries.saturating_sub(1).max(1) as usize;
        for queue in &mut self.queues[1..] {
            if queue.depth() > depth {
                *queue = link(&self.config, queue.index(), depth as u16);
            }
        }
    }

    fn on_controller<I: Io>(&mut self, io: &mut I) -> Result<(), HostError> {
        let scratch = self.scratch.as_ref().expect("given back above");
        let (controller, _) = IdentifyController::ref_from_prefix(scratch).expect("the scratch buffer holds an answer");
        // Data in a capsule begins right behind the command, or is not used.
        self.in_capsule_max = if controller.icdoff.get() == 0 { controller.in_capsule_bytes() as usize } else { 0 };
        let in_capsule = self.in_capsule_max;
        self.queues[1..].iter_mut().for_each(|queue| queue.set_in_capsule(in_capsule));
        let largest = controller.transfer_bytes_max(self.page_bytes_min).unwrap_or(u64::MAX);
        self.request_bytes_max = largest.min(u64::from(REQUEST_BYTES_MAX)) as u32;
        match self.config.controller {
            ControllerKind::Discovery => self.opened(io),
            ControllerKind::Io { queues, .. } => {
                self.step_to(Step::QueueCount);
                let wanted = features::number_of_queues(queues, queues);
                self.start_command(io, Sqe::set_features(features::NUMBER_OF_QUEUES, wanted));
            }
        }
        Ok(())
    }

    /// The scratch buffer as an Identify Namespace answer.
    fn parse_namespace(&self) -> Result<Namespace, HostError> {
        let scratch = self.scratch.as_ref().expect("given back by the command before");
        let (read, _) = IdentifyNamespace::ref_from_prefix(scratch).expect("the scratch buffer holds an answer");
        let lba_bytes = read.lba_bytes().filter(|&bytes| bytes <= 4096);
        let Some(lba_bytes) = lba_bytes else {
            return Err(HostError::protocol("the volume's logical block is neither 512 nor 4096 bytes"));
        };
        let size = read.nsze.get().checked_mul(u64::from(lba_bytes)).filter(|&size| size > 0);
        let Some(size) = size else {
            return Err(HostError::new(HostErrorKind::NoSuchVolume, "the subsystem has no namespace 1"));
        };
        let uuid = self.namespace.map_or(Uuid::from_bytes(read.nguid), |known| known.uuid);
        Ok(Namespace { size, lba_bytes, uuid, request_bytes_max: self.request_bytes_max, queues: self.queues_granted })
    }

    /// The controller says that something happened.
    pub(super) fn on_event<I: Io>(&mut self, io: &mut I, cqe: &Cqe) {
        if !cqe.nvme_status().is_success() || !self.is_ready() {
            return;
        }
        // Other events are the target's own business.
        if AsyncEvent(cqe.result.get() as u32) == AsyncEvent::NAMESPACE_CHANGED {
            self.notice_pending = true;
        }
        self.submit_to(io, 0, Sqe::new(admin::ASYNC_EVENT_REQUEST, 0), Data::None, Owner::EventRequest);
    }

    /// Reads the log page that a notice asks to be read, when the scratch buffer is free.
    pub(super) fn read_notice<I: Io>(&mut self, io: &mut I) {
        if self.notice_pending && self.namespace.is_some() && self.queues[0].room() > 1 && self.scratch.is_some() {
            self.notice_pending = false;
            let scratch = self.scratch.take().expect("looked at above");
            let sqe = Sqe::get_log_page(page::CHANGED_NAMESPACES, NSID_ALL, 0, scratch.len() as u32, false);
            self.submit_to(io, 0, sqe, Data::In(scratch), Owner::Notice(Notice::Log));
        }
    }

    pub(super) fn on_notice_finished<I: Io>(&mut self, io: &mut I, notice: Notice, cqe: &Cqe, buf: Option<Buf>) {
        match notice {
            Notice::Log => {
                let scratch = buf.expect("it was read into");
                let sqe = Sqe::identify(cns::NAMESPACE, NSID);
                self.submit_to(io, 0, sqe, Data::In(scratch), Owner::Notice(Notice::Namespace));
            }
            Notice::Namespace => {
                self.scratch = buf;
                let before = self.namespace;
                if let (true, Ok(namespace)) = (cqe.nvme_status().is_success(), self.parse_namespace())
                    && before.is_some_and(|before| before.size != namespace.size)
                {
                    self.namespace = Some(namespace);
                    self.events.push_back(Event::Resized(namespace));
                }
            }
        }
    }
}
