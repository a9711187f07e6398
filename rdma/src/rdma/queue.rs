//! Completion queues, and what is posted.
//!
//! Who keeps what: a completion queue belongs to its [`CompletionQueue`], which the queue pairs on it hold by its device's
//! `Local` (`hardware.rs`). Addresses in work requests are those of buffers that the endpoint keeps where they are until the
//! work is reported or its queue pair destroyed. The requests themselves are read by the call that posts them.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_mummy_sys as sys;
use ringway_reactor::buf::Buf;
use ringway_reactor::data::Piece;
use sys::{ibv_wc_status as status, ibv_wr_opcode as opcode};

use super::connection::{Id, set_non_blocking};
use super::device::OpenDevice;
use crate::hardware::{Item, Reaped};
use crate::verbs::{QueueSpec, Work, WorkError};

/// Sends up to this size are copied into the request: responses are 16 bytes, command capsules 64.
const INLINE_MAX: u32 = 64;
/// Completions taken by one call.
const BATCH: usize = 64;

/// What rings when a completion queue has something that was asked for.
pub(super) struct CompletionChannel {
    channel: NonNull<sys::ibv_comp_channel>,
    /// The context it was made with.
    _device: Arc<OpenDevice>,
}

// SAFETY: may be used on any thread, by one at a time, as `&mut` sees to.
unsafe impl Send for CompletionChannel {}

impl CompletionChannel {
    pub(super) fn new(device: &Arc<OpenDevice>) -> io::Result<CompletionChannel> {
        // SAFETY: the context lives as long as the process.
        let channel = unsafe { sys::ibv_create_comp_channel(device.verbs()) };
        let channel = NonNull::new(channel).ok_or_else(io::Error::last_os_error)?;
        let channel = CompletionChannel { channel, _device: Arc::clone(device) };
        set_non_blocking(channel.fd())?;
        Ok(channel)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel, and its descriptor, are there until this is dropped, which is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.channel.as_ref().fd) }
    }

    /// Takes what has rung.
    pub(super) fn take(&mut self) {
        loop {
            let (mut queue, mut context) = (ptr::null_mut(), ptr::null_mut());
            // SAFETY: alive; the queue that it names is acknowledged below, before anybody destroys it.
            if unsafe { sys::ibv_get_cq_event(self.channel.as_ptr(), &raw mut queue, &raw mut context) } != 0 {
                return;
            }
            // SAFETY: as above.
            unsafe { sys::ibv_ack_cq_events(queue, 1) };
        }
    }
}

impl Drop for CompletionChannel {
    fn drop(&mut self) {
        // SAFETY: its completion queues were destroyed before: their owner keeps them in front of it.
        unsafe { sys::ibv_destroy_comp_channel(self.channel.as_ptr()) };
    }
}

/// A completion queue.
pub(super) struct CompletionQueue {
    queue: NonNull<sys::ibv_cq>,
    pub(super) entries: u32,
}

// SAFETY: may be used on any thread, by one at a time, as `&mut` sees to.
unsafe impl Send for CompletionQueue {}

impl CompletionQueue {
    pub(super) fn new(device: &OpenDevice, channel: &CompletionChannel, entries: u32) -> io::Result<CompletionQueue> {
        // SAFETY: the context lives as long as the process, the channel longer than the queue (see its drop).
        let queue =
            unsafe { sys::ibv_create_cq(device.verbs(), entries as i32, ptr::null_mut(), channel.channel.as_ptr(), 0) };
        let queue = NonNull::new(queue).ok_or_else(io::Error::last_os_error)?;
        Ok(CompletionQueue { queue, entries })
    }

    /// Makes the queue pair of a connection, with its completions going here; how many bytes of a send go inline. The caller keeps
    /// this queue and the device until the connection is dropped.
    pub(super) fn make_queue_pair(&self, id: &mut Id, device: &OpenDevice, spec: &QueueSpec) -> io::Result<u32> {
        let mut last = None;
        // Some devices have no inline data at all.
        for inline_max in [INLINE_MAX, 0] {
            // SAFETY: all-zero is a valid value of this plain structure.
            let mut attributes: sys::ibv_qp_init_attr = unsafe { std::mem::zeroed() };
            attributes.send_cq = self.queue.as_ptr();
            attributes.recv_cq = self.queue.as_ptr();
            attributes.qp_type = sys::ibv_qp_type::IBV_QPT_RC;
            attributes.cap = sys::ibv_qp_cap {
                max_send_wr: spec.sends,
                max_recv_wr: spec.receives,
                max_send_sge: 1,
                max_recv_sge: 2,
                max_inline_data: inline_max,
            };
            // SAFETY: domain and completion queue are of the device that the identifier is on, and outlive its queue pair: whoever
            // has them keeps them while there are queue pairs, and drops them after these.
            match unsafe { id.make_queue_pair(device.domain(), &mut attributes) } {
                Ok(()) => return Ok(inline_max.min(attributes.cap.max_inline_data)),
                Err(why) => last = Some(why),
            }
        }
        Err(last.expect("it was tried"))
    }

    /// Takes all that is there.
    pub(super) fn reap(&mut self, reaped: &mut Vec<Reaped>) {
        loop {
            // SAFETY: all-zero is a valid value of this plain structure.
            let mut completions: [sys::ibv_wc; BATCH] = unsafe { std::mem::zeroed() };
            // SAFETY: fills at most so many.
            let count = unsafe { sys::ibv_poll_cq(self.queue.as_ptr(), BATCH as i32, completions.as_mut_ptr()) };
            if count < 0 {
                // The queue itself is broken, which only its device can have done.
                tracing::warn!("a completion queue cannot be read: {count}");
                return;
            }
            reaped.extend(completions[..count as usize].iter().map(one));
            if (count as usize) < BATCH {
                return;
            }
        }
    }

    /// Has the channel ring for the next completion.
    pub(super) fn arm(&mut self) -> io::Result<()> {
        // SAFETY: alive.
        let failed = unsafe { sys::ibv_req_notify_cq(self.queue.as_ptr(), 0) };
        if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: its queue pairs were destroyed before: their owner keeps them in front of it. Its events are acknowledged.
        let failed = unsafe { sys::ibv_destroy_cq(self.queue.as_ptr()) };
        if failed != 0 {
            tracing::warn!("a completion queue stays: {}", io::Error::from_raw_os_error(failed));
        }
    }
}

fn one(completion: &sys::ibv_wc) -> Reaped {
    let result = match error(completion.status) {
        None => Ok(completion.byte_len),
        Some(error) => Err(error),
    };
    let invalidates = completion.wc_flags & sys::ibv_wc_flags::IBV_WC_WITH_INV.0 != 0;
    // SAFETY: with this flag it is this part of the union.
    let key = || unsafe { completion.imm_data_invalidated_rkey_union.invalidated_rkey };
    Reaped { number: completion.wr_id, result, invalidated: (result.is_ok() && invalidates).then(key) }
}

/// What a status means.
pub(super) fn error(status: status::Type) -> Option<WorkError> {
    Some(match status {
        status::IBV_WC_SUCCESS => return None,
        status::IBV_WC_LOC_LEN_ERR => WorkError::LocalLength,
        status::IBV_WC_LOC_QP_OP_ERR => WorkError::LocalOperation,
        status::IBV_WC_LOC_PROT_ERR => WorkError::LocalProtection,
        status::IBV_WC_WR_FLUSH_ERR => WorkError::Flushed,
        status::IBV_WC_BAD_RESP_ERR => WorkError::BadResponse,
        status::IBV_WC_LOC_ACCESS_ERR => WorkError::LocalAccess,
        status::IBV_WC_REM_INV_REQ_ERR => WorkError::RemoteInvalid,
        status::IBV_WC_REM_ACCESS_ERR => WorkError::RemoteAccess,
        status::IBV_WC_REM_OP_ERR => WorkError::RemoteOperation,
        status::IBV_WC_RETRY_EXC_ERR | status::IBV_WC_RESP_TIMEOUT_ERR => WorkError::RetryExceeded,
        status::IBV_WC_RNR_RETRY_EXC_ERR => WorkError::RnrExceeded,
        status::IBV_WC_REM_ABORT_ERR => WorkError::RemoteAborted,
        status::IBV_WC_FATAL_ERR => WorkError::Fatal,
        other => WorkError::Other(other),
    })
}

/// Work requests on their way to a device: written here, read by the call that posts them.
#[derive(Default)]
pub(super) struct Requests {
    sends: Vec<sys::ibv_send_wr>,
    receives: Vec<sys::ibv_recv_wr>,
    ranges: Vec<sys::ibv_sge>,
}

// SAFETY: the pointers in it lead into itself and are written anew before each use.
unsafe impl Send for Requests {}

impl Requests {
    /// Posts sends, reads and writes with one doorbell; in the error, how many were taken.
    pub(super) fn send<'a>(
        &mut self,
        qp: NonNull<sys::ibv_qp>,
        device: &OpenDevice,
        inline_max: u32,
        items: impl Iterator<Item = Item<'a>>,
    ) -> Result<(), usize> {
        self.sends.clear();
        self.ranges.clear();
        let mut strange = None;
        for item in items {
            let Some((request, range)) = send_request(device, inline_max, &item) else {
                strange = Some(self.sends.len());
                break;
            };
            self.sends.push(request);
            self.ranges.push(range);
        }
        for nth in 0..self.sends.len() {
            self.sends[nth].sg_list = &raw mut self.ranges[nth];
            self.sends[nth].num_sge = i32::from(self.ranges[nth].length > 0);
        }
        for nth in 1..self.sends.len() {
            self.sends[nth - 1].next = &raw mut self.sends[nth];
        }
        let Some(first) = self.sends.first_mut() else { return strange.map_or(Ok(()), Err) };
        let mut bad = ptr::null_mut();
        // SAFETY: the queue pair is alive; requests and ranges are for the call; the buffers they name stay where they are until the
        // work is reported or the queue pair destroyed, as the endpoint sees to.
        let failed = unsafe { sys::ibv_post_send(qp.as_ptr(), first, &raw mut bad) };
        if failed != 0 {
            return Err(self.sends.iter().position(|request| ptr::eq(request, bad)).unwrap_or(0));
        }
        strange.map_or(Ok(()), Err)
    }

    /// The same for receives.
    pub(super) fn receive<'a>(
        &mut self,
        qp: NonNull<sys::ibv_qp>,
        device: &OpenDevice,
        items: impl Iterator<Item = Item<'a>>,
    ) -> Result<(), usize> {
        self.receives.clear();
        self.ranges.clear();
        let mut strange = None;
        for item in items {
            let Work::Receive { head, data } = item.work else { unreachable!("sends have a queue of their own") };
            let second = data.as_ref().map(|data| own(device, data));
            let (Some(head), None | Some(Some(_))) = (own(device, head), second) else {
                strange = Some(self.receives.len());
                break;
            };
            self.ranges.push(head);
            self.ranges.push(second.flatten().unwrap_or(sys::ibv_sge { addr: 0, length: 0, lkey: 0 }));
            let num_sge = 1 + i32::from(second.is_some());
            self.receives.push(sys::ibv_recv_wr {
                wr_id: item.number,
                next: ptr::null_mut(),
                sg_list: ptr::null_mut(),
                num_sge,
            });
        }
        for nth in 0..self.receives.len() {
            self.receives[nth].sg_list = &raw mut self.ranges[nth * 2];
        }
        for nth in 1..self.receives.len() {
            self.receives[nth - 1].next = &raw mut self.receives[nth];
        }
        let Some(first) = self.receives.first_mut() else { return strange.map_or(Ok(()), Err) };
        let mut bad = ptr::null_mut();
        // SAFETY: as for sends.
        let failed = unsafe { sys::ibv_post_recv(qp.as_ptr(), first, &raw mut bad) };
        if failed != 0 {
            return Err(self.receives.iter().position(|request| ptr::eq(request, bad)).unwrap_or(0));
        }
        strange.map_or(Ok(()), Err)
    }
}

/// A buffer as a device reads it; `None` if it is not registered.
fn own(device: &OpenDevice, buf: &Buf) -> Option<sys::ibv_sge> {
    let lkey = device.local_key(buf)?;
    Some(sys::ibv_sge { addr: buf.as_ptr() as u64, length: buf.len() as u32, lkey })
}

fn send_request(device: &OpenDevice, inline_max: u32, item: &Item<'_>) -> Option<(sys::ibv_send_wr, sys::ibv_sge)> {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut request: sys::ibv_send_wr = unsafe { std::mem::zeroed() };
    request.wr_id = item.number;
    if item.signalled {
        request.send_flags |= sys::ibv_send_flags::IBV_SEND_SIGNALED.0;
    }
    let range = match item.work {
        Work::Send { buf, invalidate } => {
            request.opcode = opcode::IBV_WR_SEND;
            if let Some(key) = invalidate {
                request.opcode = opcode::IBV_WR_SEND_WITH_INV;
                request.imm_data_invalidated_rkey_union.invalidated_rkey = *key;
            }
            if buf.len() as u32 <= inline_max {
                request.send_flags |= sys::ibv_send_flags::IBV_SEND_INLINE.0;
            }
            own(device, buf)?
        }
        Work::Read { buf, from } => {
            request.opcode = opcode::IBV_WR_RDMA_READ;
            request.wr.rdma = sys::rdma_t { remote_addr: from.address, rkey: from.key };
            own(device, buf)?
        }
        Work::Write { data, to } => {
            request.opcode = opcode::IBV_WR_RDMA_WRITE;
            request.wr.rdma = sys::rdma_t { remote_addr: to.address, rkey: to.key };
            match data {
                Piece::Own(buf) => own(device, buf)?,
                Piece::Zeros(len) => {
                    let (addr, lkey) = device.zeros();
                    sys::ibv_sge { addr, length: *len as u32, lkey }
                }
            }
        }
        Work::Receive { .. } => unreachable!("receives have a queue of their own"),
    };
    Some((request, range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_but_success_is_an_error() {
        assert_eq!(error(status::IBV_WC_SUCCESS), None);
        let all: Vec<WorkError> = (1..24).map(|status| error(status).expect("an error")).collect();
        assert_eq!(all.iter().filter(|error| **error == WorkError::Flushed).count(), 1);
        assert!(all.contains(&WorkError::Other(status::IBV_WC_GENERAL_ERR)));
    }
}
