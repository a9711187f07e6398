//! What a queue sends: PDUs of one turn gathered into one send, data parts by reference.
//!
//! Headers are written one after the other into a buffer of this outbox; data parts are the commands' own buffers, lent to
//! the send and given back in order when it completes. One send is in flight at most, as [`Op::Send`] asks.

use std::collections::VecDeque;

use ringway_reactor::buf::{Buf, BufPool};
use ringway_reactor::data::Piece;
use ringway_reactor::io::{Op, SocketId};

/// Bytes of headers of one send: 227 capsules of 72 bytes.
const HEADER_BYTES: usize = 16 << 10;
/// A header with its digest and padding never needs more (PDO is at most 255).
const HEADER_ROOM: usize = 264;
/// Parts of one send, below the kernel's limit of 1024.
const PARTS_MAX: usize = 512;

/// Whose a part of a send is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Outbox,
    Command(u16),
}

/// Gathers PDUs and lends them to the ring.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// The header buffer not lent, whole or the part behind what was cut off for this batch.
    headers: Option<Buf>,
    /// Bytes written at the front of `headers` and not yet cut off.
    filled: usize,
    parts: Vec<Piece>,
    owners: VecDeque<Owner>,
    /// Header buffer of the send in flight, behind what was lent.
    tail: Option<Buf>,
    spare: Option<Buf>,
    in_flight: bool,
}

impl Outbox {
    /// Whether a batch can be begun: nothing is in flight and there is a header buffer.
    pub(super) fn ready(&mut self, pool: &'static BufPool) -> bool {
        if self.in_flight {
            return false;
        }
        if self.headers.is_none() {
            self.headers = self.spare.take().or_else(|| pool.get(HEADER_BYTES));
        }
        self.headers.is_some()
    }

    /// Whether a send is in flight.
    pub(super) fn is_sending(&self) -> bool {
        self.in_flight
    }

    /// Whether one more header and one data part with a digest fit.
    pub(super) fn has_room(&self) -> bool {
        let left = self.headers.as_ref().map_or(0, |headers| headers.len() - self.filled);
        left >= 2 * HEADER_ROOM && self.parts.len() + 3 <= PARTS_MAX
    }

    /// Appends header bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let at = self.filled;
        let headers = self.headers.as_mut().expect("pushed between ready and take");
        headers[at..at + bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
    }

    /// Appends zeros: padding before data.
    pub(super) fn pad(&mut self, len: usize) {
        let at = self.filled;
        let headers = self.headers.as_mut().expect("pushed between ready and take");
        headers[at..at + len].fill(0);
        self.filled += len;
    }

    /// Appends data that belongs to command `cid`, without copying it.
    pub(super) fn lend(&mut self, cid: u16, data: Buf) {
        self.cut();
        self.parts.push(Piece::Own(data));
        self.owners.push_back(Owner::Command(cid));
    }

    fn cut(&mut self) {
        if self.filled == 0 {
            return;
        }
        let mut front = self.headers.take().expect("filled bytes lie in a buffer");
        self.headers = Some(front.split_off(self.filled));
        self.filled = 0;
        self.parts.push(Piece::Own(front));
        self.owners.push_back(Owner::Outbox);
    }

    /// The send of everything gathered, or `None` if there is nothing.
    pub(super) fn take(&mut self, socket: SocketId) -> Option<Op> {
        self.cut();
        if self.parts.is_empty() {
            return None;
        }
        assert!(!self.in_flight && self.tail.is_none(), "one send is in flight at most");
        self.in_flight = true;
        self.tail = self.headers.take();
        Some(Op::Send { socket, bufs: std::mem::take(&mut self.parts) })
    }

    /// Takes the parts of a completed send back: data goes to `give_back`, headers are kept for a later batch.
    pub(super) fn reclaim(&mut self, mut bufs: Vec<Piece>, mut give_back: impl FnMut(u16, Buf)) {
        assert!(self.in_flight && bufs.len() == self.owners.len(), "a send gives back what it was lent");
        self.in_flight = false;
        let mut whole: Option<Buf> = None;
        for piece in bufs.drain(..) {
            let Piece::Own(buf) = piece else { unreachable!("only buffers were lent") };
            match self.owners.pop_front().expect("as many owners as parts") {
                Owner::Command(cid) => give_back(cid, buf),
                Owner::Outbox => match &mut whole {
                    Some(front) => front.join(buf),
                    None => whole = Some(buf),
                },
            }
        }
        let tail = self.tail.take().expect("a send in flight has a tail");
        self.spare = Some(match whole {
            Some(mut front) => {
                front.join(tail);
                front
            }
            None => tail,
        });
        if self.parts.capacity() == 0 {
            self.parts = bufs;
        }
    }
}

#[cfg(test)]
mod tests {
    use ringway_reactor::buf::BufPoolConfig;

    use super::*;

    #[test]
    fn a_batch_keeps_the_order_of_headers_and_data_and_gives_everything_back() {
        let pool = BufPool::leak(&BufPoolConfig { classes: vec![(4096, 4), (HEADER_BYTES, 2)] }, 0);
        let mut outbox = Outbox::default();
        for _ in 0..3 {
            assert!(outbox.ready(pool) && outbox.has_room());
            outbox.push(b"one");
            outbox.push(b"two");
            let mut data = pool.get(4).unwrap();
            data.copy_from_slice(b"data");
            outbox.lend(7, data);
            outbox.pad(2);
            let Some(Op::Send { bufs, .. }) = outbox.take(SocketId(1)) else { panic!("there is a batch") };
            assert!(!outbox.ready(pool), "one send at a time");
            let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
            assert_eq!(bytes, b"onetwodata\0\0");
            let mut back = Vec::new();
            outbox.reclaim(bufs, |cid, buf| back.push((cid, buf.to_vec())));
            assert_eq!(back, [(7, b"data".to_vec())]);
        }
        drop(outbox);
        assert_eq!(pool.in_use(), 0);
    }
}
