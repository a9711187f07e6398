//! Properties of a controller (base 3.1.3): enabled once, shut down or disabled once.
//!
//! A host that wants the controller again after that connects again: an association survives its controller's reset only so
//! that the host may read the status (base 3.3.2).

use super::association::{Association, AssociationState, ControllerKind};
use crate::limits::QUEUE_ENTRIES_MAX;
use crate::wire::completion::NvmeStatus;
use crate::wire::fabrics::{
    CSTS_FATAL, CSTS_READY, CSTS_SHUTDOWN_COMPLETE, Capabilities, Configuration, Property, VERSION_2_0,
};

/// Ready within this many units of 500 ms: it is a matter of one command, but a busy core may be late.
const READY_TIMEOUT: u8 = 20;

/// What the properties of one controller say.
#[derive(Debug, Default)]
pub(super) struct Properties {
    configuration: Configuration,
    status: u32,
}

impl Properties {
    pub(super) fn get(&self, property: Property) -> u64 {
        match property {
            Property::Capabilities => Capabilities::new(QUEUE_ENTRIES_MAX, READY_TIMEOUT).0,
            Property::Version => u64::from(VERSION_2_0),
            Property::Configuration => u64::from(self.configuration.0),
            Property::Status => u64::from(self.status),
            Property::ReadyTimeouts => u64::from(READY_TIMEOUT),
        }
    }

    pub(super) fn set(&mut self, property: Property, value: u64, association: &Association) -> Result<(), NvmeStatus> {
        if property != Property::Configuration {
            return Err(NvmeStatus::INVALID_FIELD.dnr());
        }
        let Ok(value) = u32::try_from(value) else {
            return Err(NvmeStatus::INVALID_FIELD.dnr());
        };
        let (old, new) = (self.configuration, Configuration(value));
        if new.enable() && !old.enable() {
            if association.state() != AssociationState::Connected {
                return Err(NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr());
            }
            self.enable(new, association);
        }
        if new.shutdown() != 0 && old.shutdown() == 0 {
            // What was acknowledged outlives this process, and what was flushed a power failure: nothing is left to write.
            association.advance(AssociationState::Ended);
            self.status |= CSTS_SHUTDOWN_COMPLETE;
        }
        if !new.enable() && old.enable() {
            association.advance(AssociationState::Ended);
            self.status &= !(CSTS_READY | CSTS_FATAL);
        }
        self.configuration = new;
        Ok(())
    }

    /// A configuration that we cannot serve is a fatal status, not an error of the command (base 3.1.3.5).
    fn enable(&mut self, new: Configuration, association: &Association) {
        let entries_fit = match association.kind {
            ControllerKind::Discovery => true,
            ControllerKind::Io(_) => new.sq_entry_log2() == 6 && new.cq_entry_log2() == 4,
        };
        if entries_fit && new.command_sets() == 0 && new.page_size() == 0 && new.arbitration() == 0 {
            association.advance(AssociationState::Enabled);
            self.status |= CSTS_READY;
        } else {
            self.status |= CSTS_FATAL;
        }
    }
}
