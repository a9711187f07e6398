//! A connected I/O queue: what its connection needs to check each command.

use std::sync::Arc;

use super::association::{Association, AssociationState};
use super::io::{IoCommand, IoSight, check_io};
use crate::directory::Directory;
use crate::wire::command::Sqe;
use crate::wire::completion::NvmeStatus;
use crate::wire::sgl::Capsule;

/// A connected I/O queue.
#[derive(Debug)]
pub struct IoQueue {
    association: Arc<Association>,
    queue_id: u16,
    entries: u16,
    sq_flow_control: bool,
}

impl IoQueue {
    pub(super) fn new(association: Arc<Association>, queue_id: u16, entries: u16, sq_flow_control: bool) -> IoQueue {
        assert!(association.subsystem().is_some(), "discovery has no I/O queues");
        IoQueue { association, queue_id, entries, sq_flow_control }
    }

    /// What it belongs to.
    #[must_use]
    pub fn association(&self) -> &Arc<Association> {
        &self.association
    }

    /// 1 and up.
    #[must_use]
    pub fn queue_id(&self) -> u16 {
        self.queue_id
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

    /// Whether its connection is to be closed: the controller was disabled or shut down, or is dead.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.association.state() >= AssociationState::Ended
    }

    /// Checks a command that came in `capsule`.
    pub fn check(
        &self,
        sqe: &Sqe,
        capsule: impl Into<Capsule>,
        directory: &Directory,
    ) -> Result<IoCommand, NvmeStatus> {
        if self.association.state() != AssociationState::Enabled {
            return Err(NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr());
        }
        let subsystem = self.association.subsystem().expect("checked when it was made");
        let context =
            IoSight { namespaces: &subsystem.namespaces, directory, write_through: self.association.write_through() };
        check_io(sqe, capsule, &context)
    }
}
