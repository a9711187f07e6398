//! One host's relation to one controller, shared by the connections that make it up.
//!
//! ```text
//! connected --CC.EN--> enabled --CC.EN cleared, shutdown--> ended      (any of these) --a connection lost, silence--> dead
//! ```
//! "Ended" and "dead" are final. An association lives and dies whole: a connection that is lost with commands outstanding
//! takes the others with it, and a host that comes back does so under a new number (history C11). An I/O queue that closes
//! with nothing outstanding leaves the rest alone, since a host that shuts down closes these first; queues are not deleted
//! one by one, so its number is not given out again.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ringway_reactor::io::Instant;

use super::connect::Path;
use super::logs::ErrorLog;
use crate::directory::Subsystem;
use crate::ids::{AssociationId, VolumeId};
use crate::wire::completion::NvmeStatus;

/// A host as it presents itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostIdentity {
    /// Its NQN.
    pub nqn: String,
    /// Its 128-bit identifier.
    pub id: [u8; 16],
}

/// What an association is with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControllerKind {
    /// A controller of the discovery subsystem.
    Discovery,
    /// A controller of a subsystem with namespaces.
    Io(Subsystem),
}

/// How far an association has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AssociationState {
    /// Properties can be read and written, nothing else.
    Connected,
    /// Commands are taken.
    Enabled,
    /// Disabled or shut down: the host may look at the controller's status, and goes.
    Ended,
    /// Its connections are to be closed; nothing of it is answered.
    Dead,
}

impl AssociationState {
    fn of(word: u8) -> AssociationState {
        match word {
            0 => AssociationState::Connected,
            1 => AssociationState::Enabled,
            2 => AssociationState::Ended,
            _ => AssociationState::Dead,
        }
    }
}

/// Keep alive timeouts are rounded up to this (KAS), milliseconds: the host's clock and its scheduler are not ours.
pub const KEEP_ALIVE_STEP_MS: u32 = 1000;

/// One host's relation to one controller.
#[derive(Debug)]
pub struct Association {
    /// Never reused while the process lives.
    pub id: AssociationId,
    /// The controller's number, unique among those that live.
    pub controller_id: u16,
    /// Who.
    pub host: HostIdentity,
    /// With what.
    pub kind: ControllerKind,
    /// The two ends of the admin connection.
    pub path: Path,
    /// A volume of it has one host at a time.
    pub exclusive: bool,
    /// Only ever grows, so that every reactor may act on what it sees without asking again.
    state: AtomicU8,
    heard_ns: AtomicU64,
    keep_alive_ms: AtomicU32,
    io_queues: AtomicU32,
    io_connected: AtomicBool,
    write_through: AtomicBool,
    on_record: AtomicU8,
    errors: Mutex<ErrorLog>,
}

/// Whether the catalog says, durably, that this host has attached the volumes: what is written before that could be lost with the
/// machine and nobody would know whom to tell (history C3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRecord {
    /// Not yet.
    Asked,
    /// It does.
    Yes,
    /// It takes no more changes.
    Never,
}

impl Association {
    pub(super) fn new(
        id: AssociationId,
        controller_id: u16,
        host: HostIdentity,
        kind: ControllerKind,
        path: Path,
        (now, keep_alive_ms): (Instant, u32),
        exclusive: bool,
    ) -> Association {
        let association = Association {
            id,
            controller_id,
            host,
            kind,
            path,
            exclusive,
            state: AtomicU8::new(0),
            heard_ns: AtomicU64::new(now.0),
            keep_alive_ms: AtomicU32::new(0),
            io_queues: AtomicU32::new(u32::from(crate::limits::IO_QUEUES_MAX)),
            io_connected: AtomicBool::new(false),
            write_through: AtomicBool::new(false),
            on_record: AtomicU8::new(0),
            errors: Mutex::new(ErrorLog::new(path.transport)),
        };
        association.set_keep_alive_ms(keep_alive_ms);
        association
    }

    /// How far it has come.
    pub fn state(&self) -> AssociationState {
        // Acquire pairs with the release in `advance`: who sees "enabled" sees what was configured before.
        AssociationState::of(self.state.load(Ordering::Acquire))
    }

    /// Goes on to `to`. Returns whether that was a step forward.
    pub(super) fn advance(&self, to: AssociationState) -> bool {
        let to = match to {
            AssociationState::Connected => 0,
            AssociationState::Enabled => 1,
            AssociationState::Ended => 2,
            AssociationState::Dead => 3,
        };
        self.state.fetch_max(to, Ordering::AcqRel) < to
    }

    /// Whether its connections are to be closed.
    pub fn is_dead(&self) -> bool {
        self.state() == AssociationState::Dead
    }

    /// The subsystem, unless it is that of discovery.
    #[must_use]
    pub fn subsystem(&self) -> Option<&Subsystem> {
        match &self.kind {
            ControllerKind::Discovery => None,
            ControllerKind::Io(subsystem) => Some(subsystem),
        }
    }

    /// A sign of life at `now`. Writes the shared word at most ten times a second, so that queues on many cores do not
    /// fight for it.
    pub fn hear(&self, now: Instant) {
        let before = self.heard_ns.load(Ordering::Relaxed);
        if now.0 > before.saturating_add(100_000_000) {
            self.heard_ns.fetch_max(now.0, Ordering::Relaxed);
        }
    }

    /// When it counts as dead unless something is heard; [`Instant::NEVER`] without a keep alive timeout.
    pub fn silent_until(&self) -> Instant {
        match self.keep_alive_ms() {
            0 => Instant::NEVER,
            // `hear` may lag by 100 ms; the host need not pay for that.
            ms => Instant(self.heard_ns.load(Ordering::Relaxed)).plus_ns((u64::from(ms) + 100) * 1_000_000),
        }
    }

    /// The keep alive timeout, rounded up; 0 is off.
    pub fn keep_alive_ms(&self) -> u32 {
        self.keep_alive_ms.load(Ordering::Relaxed)
    }

    pub(super) fn set_keep_alive_ms(&self, ms: u32) {
        let rounded = ms.div_ceil(KEEP_ALIVE_STEP_MS).saturating_mul(KEEP_ALIVE_STEP_MS);
        self.keep_alive_ms.store(rounded, Ordering::Relaxed);
    }

    /// I/O queues that it may have.
    pub fn io_queues(&self) -> u16 {
        self.io_queues.load(Ordering::Relaxed) as u16
    }

    pub(super) fn set_io_queues(&self, queues: u16) {
        self.io_queues.store(u32::from(queues), Ordering::Relaxed);
    }

    /// Whether an I/O queue was ever connected: their number is settled then.
    pub(super) fn io_connected(&self) -> bool {
        self.io_connected.load(Ordering::Relaxed)
    }

    pub(super) fn set_io_connected(&self) {
        self.io_connected.store(true, Ordering::Relaxed);
    }

    /// The controller's error log. Its entries are whole whoever panics.
    pub(super) fn errors(&self) -> MutexGuard<'_, ErrorLog> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A command on I/O queue `queue` failed at block `lba` of a volume: kept for the host to look up, unless that is what the host
    /// asked for.
    pub fn note_failure(&self, queue: u16, cid: u16, status: NvmeStatus, volume: VolumeId, lba: u64) {
        if status.is(NvmeStatus::COMPARE_FAILURE) || status.is(NvmeStatus::ABORTED_SQ_DELETION) {
            return;
        }
        let namespaces = self.subsystem().map_or(&[][..], |subsystem| &subsystem.namespaces);
        let nsid = namespaces.iter().find(|namespace| namespace.volume == volume).map_or(0, |namespace| namespace.nsid);
        self.errors().record(ErrorLog::of_io(queue, cid, status, (nsid, lba)));
    }

    /// Whether the catalog knows of it.
    pub fn on_record(&self) -> OnRecord {
        match self.on_record.load(Ordering::Acquire) {
            0 => OnRecord::Asked,
            1 => OnRecord::Yes,
            _ => OnRecord::Never,
        }
    }

    /// The catalog knows of it, or never will. What it once knows it does not forget while anybody is attached.
    pub(super) fn set_on_record(&self, known: bool) {
        let to = if known { 1 } else { 2 };
        // Release pairs with the acquire above: who sees it sees a catalog that has it.
        let _ = self.on_record.compare_exchange(0, to, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Whether the host has switched the volatile write cache off.
    pub fn write_through(&self) -> bool {
        self.write_through.load(Ordering::Relaxed)
    }

    pub(super) fn set_write_through(&self, write_through: bool) {
        self.write_through.store(write_through, Ordering::Relaxed);
    }
}
