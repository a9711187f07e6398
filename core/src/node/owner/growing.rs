//! Another device for a pool that is served.
//!
//! ```text
//! call -> prepare (a thread of its own: file made, superblocks durable, named) -> Message::Prepared
//!      -> Message::AddFile to every reactor, all answer -> catalog record, durable -> Message::Grown to every reactor
//!      -> new directory, all answer -> the call is answered
//! ```
//! Every ring knows the device before the record exists, since a pool with a record of a device that a shard cannot reach could
//! not go on; and no shard hears of a slab on it before it has heard of the device, since messages to a reactor arrive in order.
//! A crash before the record leaves a device that the next opening ignores, one after it a pool that has grown.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringway_reactor::io::{FileId, FileInfo, IoError, NewFile};

use super::{Answer, Owner, Plan, Task, Then};
use crate::control::{ControlAnswer, ControlError, ControlErrorKind, GrowthInfo, PoolGrow, PoolGrown, Reply};
use crate::node::message::Message;
use crate::pool::{Joining, PoolError, Superblock, joined};
use crate::space::Geometry;

/// What gets devices ready to join, on a thread that is no reactor's: that may take minutes.
pub trait NewDevices: Send {
    /// Begins, or says why that cannot be. The outcome comes to reactor 0 as [`Message::Prepared`], unless the target stops first.
    fn prepare(&mut self, wanted: Wanted) -> Result<(), ControlError>;
}

/// A device to be made ready.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What the caller asked for.
    pub grow: PoolGrow,
    /// What the device has to know of the pool.
    pub joining: Joining,
    /// Paths of the devices that the pool has.
    pub paths: Vec<String>,
    /// To be kept up to date.
    pub progress: Arc<GrowProgress>,
}

/// How far a growth has come; written by one thread, read by others.
#[derive(Debug, Default)]
pub struct GrowProgress {
    written: AtomicU64,
    total: AtomicU64,
}

impl GrowProgress {
    /// So many bytes of the new file's are written.
    pub fn set(&self, written: u64, total: u64) {
        self.written.store(written, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    fn info(&self) -> GrowthInfo {
        GrowthInfo { written: self.written.load(Ordering::Relaxed), total: self.total.load(Ordering::Relaxed) }
    }
}

/// A device whose superblocks are durable, and that has its name.
#[derive(Debug)]
pub struct Prepared {
    /// As written.
    pub superblock: Superblock,
    /// What is known of it.
    pub info: FileInfo,
    /// For the reactors.
    pub file: NewFile,
    /// Where it is.
    pub path: PathBuf,
    /// How the pool is named from then on.
    pub serve: String,
}

/// How far a growth has come.
pub(super) struct Growth {
    progress: Arc<GrowProgress>,
    state: State,
}

enum State {
    /// The device is made ready elsewhere.
    Preparing(Reply),
    /// The reactors add it to their rings.
    Adding { prepared: Box<Prepared>, reply: Reply, left: usize, failed: Option<IoError> },
    /// The catalog's record is planned or on its way.
    Recording,
}

impl Owner {
    /// What `pool show` says of a growth that is under way.
    pub(super) fn growth_info(&self) -> Option<GrowthInfo> {
        self.growth.as_ref().map(|growth| growth.progress.info())
    }

    /// A call for more space.
    pub(super) fn begin_growth(&mut self, grow: PoolGrow, reply: Reply) {
        if let Some(why) = self.store.fault() {
            return reply(Err(super::catalog_failed(why)));
        }
        if self.growth.is_some() {
            let why = "the pool is growing already; `ringway pool show` says how far that is";
            return reply(Err(ControlError::new(ControlErrorKind::Busy, why)));
        }
        let progress = Arc::new(GrowProgress::default());
        let wanted =
            Wanted { grow, joining: self.joining(), paths: self.pool.paths.clone(), progress: Arc::clone(&progress) };
        match self.new_devices.prepare(wanted) {
            Ok(()) => self.growth = Some(Growth { progress, state: State::Preparing(reply) }),
            Err(error) => reply(Err(error)),
        }
    }

    fn joining(&self) -> Joining {
        Joining::new(&self.pool.first, self.pool.generation, self.store.state())
    }

    /// The device is ready, or cannot be.
    pub(super) fn prepared(&mut self, outcome: Result<Box<Prepared>, ControlError>) {
        let growth = self.growth.take().expect("what was asked for is prepared once");
        let State::Preparing(reply) = growth.state else { unreachable!("a device is prepared once") };
        if !self.is_running() {
            // Dropped, the reply says nothing: so it is told here. The device is ignored by the next opening.
            return reply(Err(stopping()));
        }
        let prepared = match outcome {
            Ok(prepared) => prepared,
            Err(error) => {
                tracing::warn!(%error, "the pool does not grow");
                return reply(Err(error));
            }
        };
        let (id, file) = (FileId(prepared.superblock.number), prepared.file.clone());
        self.send_all(|| Message::AddFile { id, file: file.clone() });
        let state = State::Adding { prepared, reply, left: self.reactors, failed: None };
        self.growth = Some(Growth { state, ..growth });
    }

    /// A reactor knows the device, or cannot.
    pub(super) fn file_added(&mut self, result: Result<(), IoError>) {
        let growth = self.growth.as_mut().expect("a file is added for a growth");
        let State::Adding { left, failed, .. } = &mut growth.state else { unreachable!("reactors answer once") };
        *left -= 1;
        *failed = failed.or(result.err());
        if *left > 0 {
            return;
        }
        let Some(Growth { state: State::Adding { prepared, reply, failed, .. }, progress }) = self.growth.take() else {
            unreachable!("looked at above");
        };
        if let Some(error) = failed {
            let why = format!("{} cannot be added to every reactor's ring: {error}", prepared.path.display());
            return reply(Err(ControlError::new(ControlErrorKind::Internal, why)));
        }
        if !self.is_running() {
            return reply(Err(stopping()));
        }
        self.growth = Some(Growth { state: State::Recording, progress });
        self.tasks.push_back(Task::Join(prepared, reply));
    }

    /// The record that makes the device part of the pool, unless something that happened meanwhile speaks against it.
    pub(super) fn plan_join(&mut self, prepared: Box<Prepared>, reply: Reply) -> Plan {
        let record = joined(&prepared.superblock);
        // A volume may have been made that this device would tear.
        let fits = self.joining().check_atomic_unit(prepared.info.atomic_write_unit).map_err(refused);
        let room = self.store.has_room(&record).then_some(()).ok_or_else(|| {
            ControlError::new(ControlErrorKind::NoSpace, "the pool's catalog has no room for another device")
        });
        if let Err(error) = fits.and(room) {
            self.growth = None;
            reply(Err(error));
            return Plan::Nothing;
        }
        Plan::Change(vec![record], Then::Grow(prepared, reply))
    }

    /// The record is durable: the device is the pool's.
    pub(super) fn grown(&mut self, prepared: Box<Prepared>, reply: Reply) {
        self.growth = None;
        let Prepared { superblock, info, path, serve, .. } = *prepared;
        let mut areas = self.pool.geometry.areas().to_vec();
        assert_eq!(areas.len(), usize::from(superblock.number), "devices join one after the other");
        areas.push(superblock.slabs);
        let unit = self.joining().trusted_unit(info.atomic_write_unit);
        self.pool.geometry = Arc::new(Geometry::new(superblock.slab_bytes, areas));
        self.pool.atomic_unit = self.pool.atomic_unit.min(unit);
        self.pool.paths.push(path.display().to_string());
        self.pool.files.push(info);
        let geometry = &self.pool.geometry;
        self.slabs.add(geometry.slabs().filter(|slab| u16::from(slab.device()) == superblock.number));
        let size = geometry.slab_count() * geometry.slab_bytes();
        let geometry = Arc::clone(geometry);
        self.metrics.pool.size_bytes.set(size);
        self.thresholds.resize(size);
        tracing::info!(device = %path.display(), size, "the pool has grown");
        self.send_all(|| Message::Grown(Arc::clone(&geometry)));
        self.answer_waiting();
        let grown = PoolGrown {
            device: path.display().to_string(),
            serve,
            uuid: self.pool.uuid,
            size,
            devices: self.pool.paths.len() as u16,
            shards: self.placement.len() as u16,
            slab_bytes: geometry.slab_bytes(),
        };
        // Answered by every reactor behind the message above: from then on no shard thinks that the pool is full.
        self.look_at_use();
        self.publish(Some((reply, Answer::Now(Box::new(ControlAnswer::Grown(grown))))));
    }
}

fn stopping() -> ControlError {
    ControlError::new(ControlErrorKind::Unavailable, "the target is stopping; the pool has not grown")
}

fn refused(error: PoolError) -> ControlError {
    crate::target::StartError::from(error).into()
}
