//! Connect: what a host must say to get a queue, and the answer when it says something else (base 6.3).

use std::net::SocketAddr;

use ringway_shm_ring::message::WRITER_AGAIN;

use super::association::HostIdentity;
use crate::limits::{IO_QUEUES_MAX, QUEUE_ENTRIES_MAX};
use crate::volume::{Lease, split_lease};
use crate::wire::command::{FABRICS, Fuse, Sqe};
use crate::wire::completion::NvmeStatus;
use crate::wire::fabrics::{
    CATTR_NO_SQ_FLOW_CONTROL, CATTR_QUEUE_DELETION, CONNECT_DATA_BYTES, Connect, ConnectData, invalid_parameter,
    parameter,
};
use crate::wire::log_page::TransportType;
use crate::wire::sgl::{Capsule, DataPlace};
use crate::wire::{NQN_MAX, text};

/// A Connect that was refused: status, and the result that says which parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub status: NvmeStatus,
    /// Dword 0 of the completion.
    pub result: u64,
}

impl From<NvmeStatus> for Refusal {
    fn from(status: NvmeStatus) -> Refusal {
        Refusal { status, result: 0 }
    }
}

/// A parameter of the command is not valid.
pub(crate) fn bad_command(offset: u16) -> Refusal {
    Refusal { status: NvmeStatus::CONNECT_INVALID_PARAMETERS.dnr(), result: invalid_parameter(offset, false) }
}

/// A parameter in the data is not valid.
pub(crate) fn bad_data(offset: u16) -> Refusal {
    Refusal { status: NvmeStatus::CONNECT_INVALID_PARAMETERS.dnr(), result: invalid_parameter(offset, true) }
}

/// The two ends of the connection on which a command came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The listener's address.
    pub local: SocketAddr,
    /// The host's.
    pub peer: SocketAddr,
    /// What lies between.
    pub transport: TransportType,
}

impl Path {
    /// Whether host and target are on one machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.peer.ip().to_canonical().is_loopback()
    }
}

/// The first command of a queue: a Connect, and where its data is. Anything else comes before its time.
pub fn first_command(sqe: &Sqe, capsule: impl Into<Capsule>) -> Result<(Connect, DataPlace), Refusal> {
    let Some(connect) = Connect::of(sqe) else {
        let known = sqe.opcode == FABRICS || sqe.direction().is_ok();
        let status = if known { NvmeStatus::COMMAND_SEQUENCE_ERROR } else { NvmeStatus::INVALID_OPCODE };
        return Err(status.dnr().into());
    };
    if sqe.fuse()? != Fuse::Normal || sqe.reserved_flags() != 0 {
        return Err(NvmeStatus::INVALID_FIELD.dnr().into());
    }
    let data = sqe.sgl.locate(capsule)?;
    if data.len() as usize != CONNECT_DATA_BYTES {
        return Err(NvmeStatus::DATA_SGL_LENGTH_INVALID.dnr().into());
    }
    Ok((connect, data))
}

/// A Connect whose fields are each valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) queue_id: u16,
    pub(super) entries: u16,
    pub(super) sq_flow_control: bool,
    pub(super) keep_alive_ms: u32,
    pub(super) host: HostIdentity,
    pub(super) controller_id: u16,
    pub(super) subsystem_nqn: String,
    /// Said behind the subsystem's name.
    pub(super) lease: Option<Lease>,
}

impl Wish {
    pub(super) fn check(connect: &Connect, data: &[u8]) -> Result<Wish, Refusal> {
        let data = ConnectData::read(data).ok_or(NvmeStatus::DATA_SGL_LENGTH_INVALID.dnr())?;
        if connect.record_format.get() != 0 {
            return Err(NvmeStatus::CONNECT_INCOMPATIBLE_FORMAT.dnr().into());
        }
        let queue_id = connect.queue_id.get();
        if queue_id > IO_QUEUES_MAX {
            return Err(bad_command(parameter::QUEUE_ID));
        }
        let entries = connect.sq_size.get().saturating_add(1);
        if !(2..=QUEUE_ENTRIES_MAX).contains(&entries) {
            return Err(bad_command(parameter::SQ_SIZE));
        }
        if connect.attributes & CATTR_QUEUE_DELETION != 0 {
            return Err(bad_command(parameter::ATTRIBUTES));
        }
        let named = text::nqn_with(&data.subsystem_nqn, WRITER_AGAIN.len());
        let (subsystem_nqn, lease) = split_lease(named.ok_or(bad_data(parameter::DATA_SUBSYSTEM_NQN))?);
        if subsystem_nqn.len() > NQN_MAX {
            return Err(bad_data(parameter::DATA_SUBSYSTEM_NQN));
        }
        let host_nqn = text::nqn(&data.host_nqn).ok_or(bad_data(parameter::DATA_HOST_NQN))?;
        if data.host_id == [0; 16] {
            // Two hosts that do not say who they are could not be told apart when one comes back.
            return Err(bad_data(parameter::DATA_HOST_ID));
        }
        Ok(Wish {
            queue_id,
            entries,
            sq_flow_control: connect.attributes & CATTR_NO_SQ_FLOW_CONTROL == 0,
            keep_alive_ms: connect.keep_alive_ms.get(),
            host: HostIdentity { nqn: host_nqn.to_owned(), id: data.host_id },
            controller_id: data.controller_id.get(),
            subsystem_nqn: subsystem_nqn.to_owned(),
            lease,
        })
    }
}
