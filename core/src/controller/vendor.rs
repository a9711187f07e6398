//! Control requests as vendor-specific admin commands, so that a host needs no other port than that of its volumes.
//!
//! ```text
//! C1h  to the controller    data: {"method": "POST", "path": "/v1/snapshots", "body": {...}}, as on the control socket
//!                           CDW10: its bytes. Result: a ticket.
//! C2h  from the controller  CDW10: the ticket; CDW11: at which byte of the reply to begin; CDW12: bit 0: forget it
//!                           data: the reply from there on, zeros behind its end; all zeros while there is none
//! reply: 0..4 the HTTP status, 4..8 the bytes of the JSON that follows, 8..16 zero, JSON
//! ```
//! A reply is kept until a command has read its end, forgets it, or the association ends. Only hosts that the target's
//! configuration names may do this: control is of the whole pool and not of the volume that a host has attached.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::wire::command::Sqe;
use crate::wire::completion::NvmeStatus;
use crate::wire::sgl::{Capsule, DataPlace};

/// Opcode of a request; its two low bits say that data goes to the controller (base figure 138).
pub const SEND: u8 = 0xC1;
/// Opcode of fetching a reply; its low bits say that data comes from the controller.
pub const RECEIVE: u8 = 0xC2;
/// Bytes of a request: a group of the most volumes with the longest names fits.
pub const REQUEST_BYTES_MAX: u32 = 128 << 10;
/// Bytes before the JSON of a reply.
pub const HEAD_BYTES: usize = 16;
/// Requests of one association whose replies were not fetched to their end.
pub const TICKETS_MAX: usize = 4;
/// Bytes that one command fetches.
const FETCH_BYTES_MAX: u32 = 128 << 10;

/// What came of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrontReply {
    /// As HTTP says it.
    pub status: u16,
    /// JSON.
    pub body: Vec<u8>,
}

/// Takes a reply, on any thread.
pub type FrontAnswer = Box<dyn FnOnce(FrontReply) + Send>;

/// Who carries out requests: what answers on the control socket. Called on reactors, so it must not block.
pub trait ControlFront: Send + Sync {
    /// Carries out a request of a host, which may be anything but too long.
    fn request(&self, host: &str, request: Vec<u8>, answer: FrontAnswer);
}

/// Who carries requests out, and for which hosts; nobody, until it is set.
#[derive(Default)]
pub struct Front(OnceLock<(Vec<String>, Arc<dyn ControlFront>)>);

impl fmt::Debug for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Front({:?})", self.0.get().map(|(hosts, _)| hosts))
    }
}

impl Front {
    /// From now on these hosts may. Only the first call counts.
    pub fn set(&self, hosts: Vec<String>, front: Arc<dyn ControlFront>) {
        // A second one would be a second daemon in this process, which nobody makes.
        let _ = self.0.set((hosts, front));
    }

    fn of(&self, host: &str) -> Option<&Arc<dyn ControlFront>> {
        self.0.get().filter(|(hosts, _)| hosts.iter().any(|allowed| allowed == host)).map(|(_, front)| front)
    }
}

/// A request that was taken; its reply once there is one.
type Ticket = Arc<Mutex<Option<Vec<u8>>>>;

/// The requests of one association.
#[derive(Debug)]
pub(super) struct Requests {
    front: Arc<Front>,
    host: String,
    tickets: BTreeMap<u32, Ticket>,
    last: u32,
}

impl Requests {
    pub(super) fn new(front: Arc<Front>, host: String) -> Requests {
        Requests { front, host, tickets: BTreeMap::new(), last: 0 }
    }

    /// Whether its host may send any.
    pub(super) fn are_allowed(&self) -> bool {
        self.front().is_ok()
    }

    /// To hosts that may not, these commands do not exist.
    fn front(&self) -> Result<&Arc<dyn ControlFront>, NvmeStatus> {
        self.front.of(&self.host).ok_or(NvmeStatus::INVALID_OPCODE.dnr())
    }

    /// Where the data of a [`SEND`] is, which has to be whole before [`Requests::send`].
    pub(super) fn check_send(&self, sqe: &Sqe, capsule: Capsule) -> Result<DataPlace, NvmeStatus> {
        self.front()?;
        let place = sqe.sgl.locate(capsule)?;
        if place.len() != sqe.cdw10.get() || !(1..=REQUEST_BYTES_MAX).contains(&place.len()) {
            return Err(NvmeStatus::DATA_SGL_LENGTH_INVALID.dnr());
        }
        Ok(place)
    }

    /// Bytes that a [`RECEIVE`] returns.
    pub(super) fn check_receive(&self, sqe: &Sqe, capsule: Capsule) -> Result<u32, NvmeStatus> {
        self.front()?;
        if !self.tickets.contains_key(&sqe.cdw10.get()) {
            return Err(NvmeStatus::INVALID_FIELD.dnr());
        }
        match sqe.sgl.locate(capsule)? {
            DataPlace::Transport { len } | DataPlace::Keyed { len, .. }
                if (HEAD_BYTES as u32..=FETCH_BYTES_MAX).contains(&len) =>
            {
                Ok(len)
            }
            DataPlace::Transport { .. } | DataPlace::Keyed { .. } => Err(NvmeStatus::DATA_SGL_LENGTH_INVALID.dnr()),
            DataPlace::InCapsule { .. } => Err(NvmeStatus::SGL_DESCRIPTOR_TYPE_INVALID.dnr()),
        }
    }

    /// Takes a request; the result is its ticket.
    pub(super) fn send(&mut self, data: &[u8]) -> Result<u32, NvmeStatus> {
        let front = Arc::clone(self.front()?);
        if self.tickets.len() >= TICKETS_MAX {
            // Once replies are fetched there is room again.
            return Err(NvmeStatus::COMMAND_SEQUENCE_ERROR);
        }
        self.last = self.last.wrapping_add(1).max(1);
        let ticket = Ticket::default();
        self.tickets.insert(self.last, Arc::clone(&ticket));
        let answer = move |reply: FrontReply| {
            let mut bytes = vec![0; HEAD_BYTES];
            bytes[..4].copy_from_slice(&u32::from(reply.status).to_le_bytes());
            bytes[4..8].copy_from_slice(&(reply.body.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&reply.body);
            *ticket.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
        };
        front.request(&self.host, data.to_vec(), Box::new(answer));
        Ok(self.last)
    }

    /// Fetches what there is of a reply.
    pub(super) fn receive(&mut self, sqe: &Sqe, out: &mut [u8]) -> Result<(), NvmeStatus> {
        let (number, offset, forget) = (sqe.cdw10.get(), sqe.cdw11.get() as usize, sqe.cdw12.get() & 1 != 0);
        out.fill(0);
        let ticket = self.tickets.get(&number).ok_or(NvmeStatus::INVALID_FIELD.dnr())?;
        let mut at_end = false;
        if let Some(reply) = &*ticket.lock().unwrap_or_else(PoisonError::into_inner) {
            let rest = reply.get(offset..).ok_or(NvmeStatus::INVALID_FIELD.dnr())?;
            let len = rest.len().min(out.len());
            out[..len].copy_from_slice(&rest[..len]);
            at_end = len == rest.len();
        }
        if at_end || forget {
            self.tickets.remove(&number);
        }
        Ok(())
    }
}
