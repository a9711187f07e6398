//! A command in flight: its submission entry, its data and where the data's parts are.

use ringway_reactor::buf::Buf;
use ringway_reactor::io::Instant;

use super::error::HostError;
use super::queue::Orphan;
use crate::wire::command::Sqe;
use crate::wire::completion::Cqe;

/// Which way a command's data goes.
#[derive(Debug)]
pub(super) enum Data {
    /// None.
    None,
    /// To the host: the whole buffer is asked for.
    In(Buf),
    /// To the controller, within the capsule or when it asks.
    Out { buf: Buf, in_capsule: bool },
}

/// Where a command's data is now.
#[derive(Debug)]
enum Place {
    None,
    /// `front` is all of it, but for `lent` bytes behind `front` and then `behind` during a direct receive.
    In {
        front: Buf,
        behind: Option<Buf>,
        len: usize,
        received: usize,
    },
    /// Sent parts that came back, parts still lent, and what is not sent yet, in this order.
    Out {
        back: Option<Buf>,
        unsent: Option<Buf>,
        in_capsule: bool,
        len: usize,
        sent: usize,
    },
}

/// A command in flight on a queue.
#[derive(Debug)]
pub(super) struct Slot<O> {
    pub(super) sqe: Sqe,
    place: Place,
    /// Parts now owned by a send or a receive.
    parts_lent: u32,
    cqe: Option<Cqe>,
    pub(super) owner: O,
    pub(super) deadline: Instant,
    #[expect(dead_code, reason = "shown by Debug when a command times out")]
    issued: Instant,
    order: u64,
    encoded: bool,
}

impl<O> Slot<O> {
    pub(super) fn new(sqe: Sqe, data: Data, owner: O, issued: Instant, deadline: Instant, order: u64) -> Self {
        let place = match data {
            Data::None => Place::None,
            Data::In(front) => {
                let len = front.len();
                Place::In { front, behind: None, len, received: 0 }
            }
            Data::Out { buf, in_capsule } => {
                let len = buf.len();
                Place::Out { back: None, unsent: Some(buf), in_capsule, len, sent: 0 }
            }
        };
        Self { sqe, place, parts_lent: 0, cqe: None, owner, deadline, issued, order, encoded: false }
    }

    /// The capsule is being written: data that travels in it, and how much is asked for otherwise.
    pub(super) fn encode(&mut self) -> (Option<Buf>, usize) {
        self.encoded = true;
        match &mut self.place {
            Place::None => (None, 0),
            Place::In { len, .. } => (None, *len),
            Place::Out { in_capsule: false, len, .. } => (None, *len),
            Place::Out { unsent, len, sent, .. } => {
                self.parts_lent += 1;
                *sent = *len;
                (Some(unsent.take().expect("a capsule is written once")), *len)
            }
        }
    }

    /// `len` bytes at `offset`, which the controller asked for, to be lent to a send.
    pub(super) fn lend_for_send(&mut self, offset: usize, len: usize) -> Buf {
        let Place::Out { unsent, sent, .. } = &mut self.place else { panic!("the request was checked by expects") };
        assert!(*sent == offset, "requests for data are answered in order");
        let mut part = unsent.take().expect("there is unsent data");
        if len < part.len() {
            *unsent = Some(part.split_off(len));
        }
        *sent += len;
        self.parts_lent += 1;
        part
    }

    /// Whether the controller may ask for `len` bytes at `offset` now, `asked` bytes being asked for already.
    pub(super) fn expects(&self, offset: usize, len: usize) -> Result<(), HostError> {
        match &self.place {
            Place::Out { in_capsule: false, len: whole, sent, .. }
                if len > 0 && offset == *sent && offset + len <= *whole =>
            {
                Ok(())
            }
            place => {
                Err(HostError::protocol(format!("the target asks for {len} bytes at {offset} of {}", describe(place))))
            }
        }
    }

    /// Whether data of `len` bytes at `offset` may arrive for it.
    pub(super) fn accepts(&self, offset: usize, len: usize) -> Result<(), HostError> {
        match &self.place {
            Place::In { len: whole, received, .. }
                if self.cqe.is_none()
                    && offset.checked_add(len).is_some_and(|end| end <= *whole)
                    && received + len <= *whole =>
            {
                Ok(())
            }
            place => {
                Err(HostError::protocol(format!("the target sent {len} bytes at {offset} for {}", describe(place))))
            }
        }
    }

    /// Copies arrived bytes.
    pub(super) fn place(&mut self, at: usize, bytes: &[u8]) {
        let Place::In { front, received, .. } = &mut self.place else { panic!("the arrival was checked by accepts") };
        front[at..at + bytes.len()].copy_from_slice(bytes);
        *received += bytes.len();
    }

    /// The range `at..at + len` of its buffer, for a direct receive.
    pub(super) fn lend_for_receive(&mut self, at: usize, len: usize) -> Buf {
        let Place::In { front, behind, .. } = &mut self.place else { panic!("the arrival was checked by accepts") };
        let mut lent = front.split_off(at);
        assert!(behind.replace(lent.split_off(len)).is_none(), "one direct receive at a time");
        self.parts_lent += 1;
        lent
    }

    /// The buffer of a direct receive came back with `bytes` filled.
    pub(super) fn return_received(&mut self, lent: Buf, bytes: usize) {
        let Place::In { front, behind, received, .. } = &mut self.place else { panic!("lent for a receive") };
        front.join(lent);
        front.join(behind.take().expect("kept while the middle was lent"));
        *received += bytes;
        self.parts_lent -= 1;
    }

    /// A part that was lent to a send came back.
    pub(super) fn give_back(&mut self, part: Buf) {
        let Place::Out { back, .. } = &mut self.place else { panic!("lent for a send") };
        match back {
            Some(front) => front.join(part),
            None => *back = Some(part),
        }
        self.parts_lent -= 1;
    }

    /// The data digest of `offset..offset + len`.
    pub(super) fn digest(&self, offset: usize, len: usize) -> u32 {
        let Place::In { front, .. } = &self.place else { panic!("digests are computed over arrived data") };
        crc32c::crc32c(&front[offset..offset + len])
    }

    /// The controller answered.
    pub(super) fn answer(&mut self, cqe: Cqe) -> Result<(), HostError> {
        if self.cqe.is_some() {
            return Err(HostError::protocol(format!("command {} was answered twice", self.sqe.cid)));
        }
        if let Place::In { len, received, .. } = &self.place
            && cqe.nvme_status().is_success()
            && received < len
        {
            return Err(HostError::protocol(format!("success after {received} of {len} bytes of data")));
        }
        self.cqe = Some(cqe);
        Ok(())
    }

    pub(super) fn lent(&self) -> bool {
        self.parts_lent > 0
    }

    fn whole(place: Place) -> Option<Buf> {
        match place {
            Place::None => None,
            Place::In { front, behind, .. } => {
                assert!(behind.is_none(), "part of the buffer is lent");
                Some(front)
            }
            Place::Out { back: Some(mut front), unsent, .. } => {
                if let Some(rest) = unsent {
                    front.join(rest);
                }
                Some(front)
            }
            Place::Out { back: None, unsent, .. } => unsent,
        }
    }

    pub(super) fn into_finished(self) -> (Cqe, Option<Buf>, O) {
        assert!(self.parts_lent == 0, "part of the buffer is lent");
        (self.cqe.expect("finished commands are answered"), Self::whole(self.place), self.owner)
    }

    pub(super) fn into_orphan(self) -> Orphan<O> {
        assert!(self.parts_lent == 0, "part of the buffer is lent");
        Orphan { buf: Self::whole(self.place), owner: self.owner, sent: self.encoded, order: self.order }
    }
}

fn describe(place: &Place) -> String {
    match place {
        Place::None => "a command without data".into(),
        Place::In { len, received, .. } => format!("a read of {len} bytes, {received} received"),
        Place::Out { len, sent, .. } => format!("a write of {len} bytes, {sent} sent"),
    }
}
