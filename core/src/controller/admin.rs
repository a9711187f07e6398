//! The admin queue of one association: its commands, and the events that its host waits for.
//!
//! A connection calls [`AdminQueue::reply_len`] when a capsule has arrived, finds a buffer of that many bytes, and calls
//! [`AdminQueue::on_command`]. What [`AdminQueue::data_in`] knows brings its data from the host: the buffer holds that then.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use ringway_reactor::io::Instant;

use super::association::{Association, AssociationState, ControllerKind};
use super::events::Events;
use super::features::{self, Features};
use super::logs::{self, ErrorLog};
use super::properties::Properties;
use super::usage::Usages;
use super::vendor::{self, Front, Requests};
use super::{discovery, identify};
use crate::directory::{Directory, Port, SpaceLevel, VolumeEntry};
use crate::ids::VolumeId;
use crate::wire::command::{FABRICS, Fuse, PSDT_SGL, Sqe, admin};
use crate::wire::completion::NvmeStatus;
use crate::wire::fabrics::{PropertyFields, kind};
use crate::wire::features::AsyncEvent;
use crate::wire::identify::{IDENTIFY_BYTES, write_namespace_list};
use crate::wire::log_page::{WARNING_READ_ONLY, copy_window, page};
use crate::wire::sgl::{Capsule, DataPlace};

/// What a command led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminAction {
    /// Answer now.
    Complete {
        /// Dwords 0 and 1.
        result: u64,
        /// How it ended.
        status: NvmeStatus,
    },
    /// The buffer is filled: send it whole, then answer with success.
    SendData {
        /// Dwords 0 and 1.
        result: u64,
    },
    /// It stays outstanding; its end comes out of [`AdminQueue::take_completion`].
    Hold,
}

/// The end of a command that was held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldCompletion {
    /// Which.
    pub cid: u16,
    /// Dwords 0 and 1.
    pub result: u64,
    /// How it ended.
    pub status: NvmeStatus,
}

/// What a change of the directory means for an association.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on. There may be something in [`AdminQueue::take_completion`].
    Keep,
    /// Its host may not attach the volume any more: end it.
    End,
}

/// What a host was last told about a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    nsid: u32,
    /// Size and whether it answers I/O; `None` when it is not active.
    state: Option<(u64, bool)>,
}

/// What a host was last told, to find out what changed.
#[derive(Debug, Default)]
struct Told {
    namespaces: Vec<Seen>,
    space: SpaceLevel,
    read_only: bool,
    /// Volumes in the discovery log, with their names.
    listed: Vec<(VolumeId, String)>,
    /// Where they are, in the same log.
    ports: Vec<Port>,
}

/// The admin queue of one association.
#[derive(Debug)]
pub struct AdminQueue {
    association: Arc<Association>,
    entries: u16,
    sq_flow_control: bool,
    properties: Properties,
    features: Features,
    events: Events,
    usages: Arc<dyn Usages>,
    /// Namespaces that changed since the host read the list.
    changed: BTreeSet<u32>,
    told: Told,
    aborted: VecDeque<u16>,
    /// Control that came this way.
    requests: Requests,
}

impl AdminQueue {
    pub(super) fn new(
        association: Arc<Association>,
        (entries, sq_flow_control): (u16, bool),
        directory: &Directory,
        usages: Arc<dyn Usages>,
        front: Arc<Front>,
    ) -> AdminQueue {
        let requests = Requests::new(front, association.host.nqn.clone());
        let told = Told::of(&association, directory);
        AdminQueue {
            association,
            entries,
            sq_flow_control,
            properties: Properties::default(),
            features: Features::default(),
            events: Events::default(),
            usages,
            changed: BTreeSet::new(),
            told,
            aborted: VecDeque::new(),
            requests,
        }
    }

    /// What it belongs to.
    #[must_use]
    pub fn association(&self) -> &Arc<Association> {
        &self.association
    }

    /// Commands that may be outstanding, plus one.
    #[must_use]
    pub fn entries(&self) -> u16 {
        self.entries
    }

    /// Whether completions carry a submission queue head; 0xFFFF otherwise.
    #[must_use]
    pub fn sq_flow_control(&self) -> bool {
        self.sq_flow_control
    }

    /// Where the data is that a command brings, for one that does; the rest is for [`AdminQueue::reply_len`]. `Err` is the command's
    /// end, to be given to [`AdminQueue::refuse`].
    pub fn data_in(&self, sqe: &Sqe, capsule: impl Into<Capsule>) -> Option<Result<DataPlace, NvmeStatus>> {
        let capsule = capsule.into();
        let checked = || {
            self.check_time(sqe)?;
            check_fields(sqe)?;
            self.requests.check_send(sqe, capsule)
        };
        (sqe.opcode == vendor::SEND).then(checked)
    }

    /// Bytes that the command returns if it succeeds: the length of the buffer for [`AdminQueue::on_command`]. `Err` is the
    /// command's end, to be given to [`AdminQueue::refuse`].
    pub fn reply_len(&self, sqe: &Sqe, capsule: impl Into<Capsule>) -> Result<u32, NvmeStatus> {
        let capsule = capsule.into();
        self.check_time(sqe)?;
        if sqe.opcode == FABRICS {
            return Ok(0);
        }
        check_fields(sqe)?;
        let len = match sqe.opcode {
            // Its data was to come before; to hosts that may not use it, it does not exist.
            vendor::SEND if self.requests.are_allowed() => return Err(NvmeStatus::INVALID_FIELD.dnr()),
            vendor::RECEIVE => return self.requests.check_receive(sqe, capsule),
            admin::IDENTIFY => IDENTIFY_BYTES as u32,
            admin::GET_LOG_PAGE => logs::check(sqe, &self.association)?,
            admin::GET_FEATURES => features::data_len(sqe),
            _ => 0,
        };
        if len > 0 {
            match sqe.sgl.locate(capsule)? {
                DataPlace::Transport { len: given } | DataPlace::Keyed { len: given, .. } if given == len => {}
                DataPlace::Transport { .. } | DataPlace::Keyed { .. } => {
                    return Err(NvmeStatus::DATA_SGL_LENGTH_INVALID.dnr());
                }
                DataPlace::InCapsule { .. } => return Err(NvmeStatus::SGL_DESCRIPTOR_TYPE_INVALID.dnr()),
            }
        }
        Ok(len)
    }

    /// Before the controller is enabled and after it has ended only its properties can be used (base 3.3.2).
    fn check_time(&self, sqe: &Sqe) -> Result<(), NvmeStatus> {
        let property = sqe.opcode == FABRICS && matches!(sqe.fabrics_type(), kind::PROPERTY_GET | kind::PROPERTY_SET);
        if property || self.association.state() == AssociationState::Enabled {
            Ok(())
        } else {
            Err(NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr())
        }
    }

    /// Notes a command that [`AdminQueue::reply_len`] refused.
    pub fn refuse(&mut self, sqe: &Sqe, status: NvmeStatus, now: Instant) -> AdminAction {
        self.association.hear(now);
        self.association.errors().record(ErrorLog::of_command(sqe, status));
        AdminAction::Complete { result: 0, status }
    }

    /// Does what a command says. `out` has the length that [`AdminQueue::reply_len`] returned for it.
    pub fn on_command(&mut self, sqe: &Sqe, out: &mut [u8], directory: &Directory, now: Instant) -> AdminAction {
        self.association.hear(now);
        let ended = self.check_time(sqe).and_then(|()| match sqe.opcode {
            FABRICS => self.on_fabrics(sqe),
            admin::ASYNC_EVENT_REQUEST => return_hold(self.events.request(sqe.cid.get())),
            _ => self.on_admin(sqe, out, directory).map(Some),
        });
        match ended {
            Ok(None) => AdminAction::Hold,
            Ok(Some(result)) if out.is_empty() || sqe.opcode == vendor::SEND => {
                AdminAction::Complete { result, status: NvmeStatus::SUCCESS }
            }
            Ok(Some(result)) => AdminAction::SendData { result },
            Err(status) => self.refuse(sqe, status, now),
        }
    }

    fn on_fabrics(&mut self, sqe: &Sqe) -> Result<Option<u64>, NvmeStatus> {
        let fields = PropertyFields::of(sqe);
        let property = fields.property.ok_or(NvmeStatus::INVALID_FIELD.dnr());
        match sqe.fabrics_type() {
            kind::PROPERTY_GET => Ok(Some(self.properties.get(property?))),
            kind::PROPERTY_SET => {
                self.properties.set(property?, fields.value, &self.association)?;
                Ok(Some(0))
            }
            kind::CONNECT => Err(NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr()),
            _ => Err(NvmeStatus::INVALID_OPCODE.dnr()),
        }
    }

    fn on_admin(&mut self, sqe: &Sqe, out: &mut [u8], directory: &Directory) -> Result<u64, NvmeStatus> {
        match sqe.opcode {
            admin::IDENTIFY => {
                let page = out.try_into().expect("as long as reply_len says");
                identify::identify(sqe, &self.association, directory, &*self.usages, page).map(|()| 0)
            }
            admin::GET_LOG_PAGE => self.get_log_page(sqe, out, directory).map(|()| 0),
            admin::GET_FEATURES => self.features.get(sqe, &self.association, &self.events, out).map(u64::from),
            admin::SET_FEATURES => self.features.set(sqe, &self.association, &mut self.events).map(u64::from),
            vendor::SEND => self.requests.send(out).map(u64::from),
            vendor::RECEIVE => self.requests.receive(sqe, out).map(|()| 0),
            admin::KEEP_ALIVE => Ok(0),
            admin::ABORT if self.is_discovery() => Err(NvmeStatus::INVALID_OPCODE.dnr()),
            admin::ABORT => Ok(self.abort(sqe)),
            _ => Err(NvmeStatus::INVALID_OPCODE.dnr()),
        }
    }

    fn is_discovery(&self) -> bool {
        self.association.kind == ControllerKind::Discovery
    }

    /// Abort (base 5.1): bit 0 of the result says that the command was not aborted. Only what waits without end is; anything
    /// else is about to end by itself.
    fn abort(&mut self, sqe: &Sqe) -> u64 {
        let (queue, cid) = (sqe.cdw10.get() as u16, (sqe.cdw10.get() >> 16) as u16);
        let aborted = queue == 0 && self.events.abort(cid);
        if aborted {
            self.aborted.push_back(cid);
        }
        u64::from(!aborted)
    }

    fn get_log_page(&mut self, sqe: &Sqe, out: &mut [u8], directory: &Directory) -> Result<(), NvmeStatus> {
        let fields = sqe.log_page_fields();
        let beyond = |len: u64| if fields.offset > len { Err(NvmeStatus::INVALID_FIELD.dnr()) } else { Ok(()) };
        match fields.page {
            page::DISCOVERY => {
                beyond(discovery::len(&self.association, directory))?;
                discovery::read(&self.association, directory, fields.offset, out);
            }
            page::CHANGED_NAMESPACES => {
                beyond(IDENTIFY_BYTES as u64)?;
                let mut list = [0; IDENTIFY_BYTES];
                write_namespace_list(self.changed.iter().copied(), 0, &mut list);
                copy_window(&list, fields.offset, out);
                if !fields.keep_event {
                    self.changed.clear();
                }
            }
            other => {
                let mut whole = logs::whole(other, &self.association, directory, &*self.usages);
                if other == page::COMMAND_EFFECTS && self.requests.are_allowed() {
                    logs::claim(&mut whole, &[vendor::SEND, vendor::RECEIVE]);
                }
                beyond(whole.len() as u64)?;
                copy_window(&whole, fields.offset, out);
            }
        }
        if !fields.keep_event {
            self.events.page_read(fields.page);
        }
        Ok(())
    }

    /// The end of a command that was held, if one has ended. To be asked after each command and each change of the directory.
    pub fn take_completion(&mut self) -> Option<HeldCompletion> {
        if let Some(cid) = self.aborted.pop_front() {
            return Some(HeldCompletion { cid, result: 0, status: NvmeStatus::ABORT_REQUESTED });
        }
        if self.association.state() != AssociationState::Enabled {
            return None;
        }
        let (cid, event) = self.events.take()?;
        Some(HeldCompletion { cid, result: u64::from(event.0), status: NvmeStatus::SUCCESS })
    }

    /// The volumes changed.
    pub fn on_directory(&mut self, directory: &Directory) -> Verdict {
        let now = Told::of(&self.association, directory);
        let before = std::mem::replace(&mut self.told, now);
        for (seen, old) in self.told.namespaces.iter().zip(&before.namespaces) {
            if seen != old {
                self.changed.insert(seen.nsid);
                self.events.raise(AsyncEvent::NAMESPACE_CHANGED);
            }
        }
        if self.told.space > before.space {
            self.events.raise(AsyncEvent::SPARE_BELOW_THRESHOLD);
        }
        if self.told.read_only && !before.read_only {
            assert!(logs::critical_warning(directory) & WARNING_READ_ONLY != 0, "the log says what the event says");
            self.events.raise(AsyncEvent::RELIABILITY_DEGRADED);
        }
        if (&self.told.listed, &self.told.ports) != (&before.listed, &before.ports) {
            self.events.raise(AsyncEvent::DISCOVERY_CHANGED);
        }
        if self.may_stay(directory) { Verdict::Keep } else { Verdict::End }
    }

    fn may_stay(&self, directory: &Directory) -> bool {
        let Some(subsystem) = self.association.subsystem() else { return true };
        let loopback = self.association.path.is_loopback();
        let volumes = subsystem.namespaces.iter().filter_map(|namespace| directory.volume(namespace.volume));
        volumes.into_iter().all(|record| directory.may_attach(record, &self.association.host.nqn, loopback))
    }
}

/// What every admin command has in common.
fn check_fields(sqe: &Sqe) -> Result<(), NvmeStatus> {
    if sqe.fuse()? != Fuse::Normal || sqe.psdt() != PSDT_SGL || sqe.reserved_flags() != 0 {
        return Err(NvmeStatus::INVALID_FIELD.dnr());
    }
    Ok(())
}

/// An event request that was taken is answered later.
fn return_hold(taken: Result<(), NvmeStatus>) -> Result<Option<u64>, NvmeStatus> {
    taken.map(|()| None)
}

impl Told {
    fn of(association: &Association, directory: &Directory) -> Told {
        let state = |entry: &VolumeEntry| (entry.record.size, entry.fault.is_none());
        let namespaces = association.subsystem().map_or(Vec::new(), |subsystem| {
            let seen = subsystem.namespaces.iter();
            seen.map(|n| Seen { nsid: n.nsid, state: directory.entry(n.volume).map(state) }).collect()
        });
        let (listed, ports) = match association.kind {
            ControllerKind::Discovery => {
                let visible = discovery::visible(association, directory);
                let listed = visible.map(|entry| (entry.record.id, entry.record.name.clone())).collect();
                (listed, directory.ports().to_vec())
            }
            ControllerKind::Io(_) => (Vec::new(), Vec::new()),
        };
        Told { namespaces, space: directory.space(), read_only: directory.read_only(), listed, ports }
    }
}
