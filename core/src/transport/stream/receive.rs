//! The incoming byte stream of a connection: where the next bytes go.
//!
//! One receive is in flight at a time. Headers and small data go through a staging buffer, which one receive may fill with
//! dozens of capsules; once a large transfer is all that is left to expect, the socket is read straight into the command's
//! buffer.

use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Io, Op, SocketId, Token};

/// Bytes of the staging buffer: some 200 command capsules, or three with 4 KiB of data each. An idle connection holds one.
pub(in crate::transport) const STAGING: usize = 16 << 10;
/// Data still to come from which on it is received in place: below, one receive that also brings the next header is cheaper.
const DIRECT_MIN: usize = 4096;

/// Data of one PDU on its way into a command's buffer.
#[derive(Debug)]
pub(in crate::transport) struct Inflow {
    /// The command's slot; `None` discards the data.
    pub(in crate::transport) slot: Option<usize>,
    /// The command's whole buffer. `None` only while discarding, or while a direct receive has it.
    pub(in crate::transport) buf: Option<Buf>,
    /// Where this PDU's data starts in the buffer.
    pub(in crate::transport) start: usize,
    /// Where the next byte goes.
    pub(in crate::transport) at: usize,
    /// Where this PDU's data ends.
    pub(in crate::transport) end: usize,
    /// Whether a data digest follows.
    pub(in crate::transport) digest: bool,
    /// The last data PDU of this transfer.
    pub(in crate::transport) last: bool,
}

/// Where a receive in flight puts its bytes.
#[derive(Debug)]
enum Posted {
    No,
    /// Behind the unread bytes of the staging buffer.
    Staging,
    /// Into a command's buffer, of which these are the ends.
    Direct {
        front: Buf,
        back: Buf,
    },
}

/// The incoming side of one connection.
#[derive(Debug)]
pub(in crate::transport) struct Input {
    /// Bytes `begin..end` are received and unread.
    staging: Option<Buf>,
    begin: usize,
    end: usize,
    posted: Posted,
    pub(in crate::transport) bytes_received: u64,
}

impl Input {
    pub(in crate::transport) fn new() -> Self {
        Self { staging: None, begin: 0, end: 0, posted: Posted::No, bytes_received: 0 }
    }

    /// Received and unread.
    pub(in crate::transport) fn unread(&self) -> &[u8] {
        self.staging.as_ref().map_or(&[], |staging| &staging[self.begin..self.end])
    }

    /// Marks the first `count` unread bytes as read.
    pub(in crate::transport) fn consume(&mut self, count: usize) {
        self.begin += count;
        assert!(self.begin <= self.end, "only what was received is read");
    }

    /// Moves unread bytes into the inflow's buffer; whether all of its data is there.
    pub(in crate::transport) fn fill(&mut self, inflow: &mut Inflow) -> bool {
        let count = (inflow.end - inflow.at).min(self.end - self.begin);
        if count > 0 {
            if let (Some(buf), Some(staging)) = (&mut inflow.buf, &self.staging) {
                buf[inflow.at..inflow.at + count].copy_from_slice(&staging[self.begin..self.begin + count]);
            }
            inflow.at += count;
            self.consume(count);
        }
        inflow.at == inflow.end
    }

    /// Whether a receive is in flight.
    pub(in crate::transport) fn is_posted(&self) -> bool {
        !matches!(self.posted, Posted::No)
    }

    /// Posts the next receive. `inflow` is the data expected now, if any. `false` if there is no staging buffer to be had now.
    #[must_use]
    pub(in crate::transport) fn post(
        &mut self,
        io: &mut impl Io,
        socket: SocketId,
        token: Token,
        inflow: Option<&mut Inflow>,
    ) -> bool {
        assert!(!self.is_posted(), "one receive at a time");
        if let Some(inflow) = inflow
            && self.begin == self.end
            && inflow.end - inflow.at >= DIRECT_MIN
            && let Some(mut front) = inflow.buf.take()
        {
            let mut buf = front.split_off(inflow.at);
            let back = buf.split_off(inflow.end - inflow.at);
            self.posted = Posted::Direct { front, back };
            io.submit(token, Op::Recv { socket, buf });
            return true;
        }
        if self.staging.is_none() {
            self.staging = io.buffers().get(STAGING);
        }
        let Some(staging) = &mut self.staging else { return false };
        staging.copy_within(self.begin..self.end, 0);
        self.end -= self.begin;
        self.begin = 0;
        assert!(self.end < STAGING, "a header is smaller than the staging buffer");
        let buf = staging.split_off(self.end);
        self.posted = Posted::Staging;
        io.submit(token, Op::Recv { socket, buf });
        true
    }

    /// The receive in flight brought `count` bytes.
    pub(in crate::transport) fn completed(&mut self, buf: Buf, count: usize, inflow: Option<&mut Inflow>) {
        self.bytes_received += count as u64;
        match std::mem::replace(&mut self.posted, Posted::No) {
            Posted::No => panic!("a receive completes once"),
            Posted::Staging => {
                self.staging.as_mut().expect("its front half stayed here").join(buf);
                self.end += count;
            }
            Posted::Direct { mut front, back } => {
                front.join(buf);
                front.join(back);
                let inflow = inflow.expect("a direct receive belongs to an inflow");
                inflow.buf = Some(front);
                inflow.at += count;
            }
        }
    }

    /// Gives the staging buffer back; nothing more will be read.
    pub(in crate::transport) fn clear(&mut self) {
        if !self.is_posted() {
            self.staging = None;
            (self.begin, self.end) = (0, 0);
        }
    }
}
