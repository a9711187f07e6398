//! What a connection sends: headers and data gathered into one `Send` at a time.
//!
//! Everything that becomes ready while a send is in flight goes out with the next one. Headers are carved out of one small
//! buffer and joined where they follow each other, so that a batch of responses is one piece; read data is sent from the very
//! buffer that the device filled.

use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Io, Op, SocketId, Token};

/// Pieces in one send: the kernel takes 1,024 (UIO_MAXIOV).
const PIECES_MAX: usize = 512;
/// Bytes of the buffer that headers are carved from.
const HEADERS: usize = 4096;

/// The outgoing side of one connection.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// Ready to be sent, in order.
    ready: Vec<Buf>,
    /// An empty vector to swap with when a batch goes out.
    spare: Vec<Buf>,
    /// Where the next header goes; `None` when it has to be taken from the pool.
    headers: Option<Buf>,
    in_flight: bool,
    /// Bytes of `ready` and of the send in flight.
    held: usize,
    /// Bytes handed to the socket so far.
    pub(super) bytes_sent: u64,
}

impl Output {
    /// Whether two headers are certain to find room.
    pub(super) fn has_room(&mut self, io: &impl Io) -> bool {
        if self.headers.as_ref().is_none_or(|buf| buf.len() < 512) {
            self.headers = io.buffers().get(HEADERS);
        }
        self.headers.is_some()
    }

    /// Appends a header of at most 256 bytes, written by `write`, which returns its length. `false` if there is no buffer for
    /// it now: try again in a later turn.
    #[must_use]
    pub(super) fn header(&mut self, io: &impl Io, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        if self.headers.as_ref().is_none_or(|buf| buf.len() < 256) {
            self.headers = io.buffers().get(HEADERS);
        }
        let Some(mut piece) = self.headers.take() else { return false };
        let len = write(&mut piece[..256]);
        self.held += len;
        self.headers = Some(piece.split_off(len));
        match self.ready.last_mut() {
            Some(last) if last.is_followed_by(&piece) => last.join(piece),
            _ => self.ready.push(piece),
        }
        true
    }

    /// Appends data.
    pub(super) fn data(&mut self, buf: Buf) {
        self.held += buf.len();
        self.ready.push(buf);
    }

    /// Whether there is something that no send carries yet.
    pub(super) fn is_pending(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether nothing is pending and nothing in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.ready.is_empty() && !self.in_flight
    }

    /// Bytes of buffers that wait to be sent or are being sent.
    pub(super) fn bytes_held(&self) -> usize {
        self.held
    }

    /// Whether a send is in flight.
    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight
    }

    /// Submits everything pending as one send, unless one is in flight.
    pub(super) fn submit(&mut self, io: &mut impl Io, socket: SocketId, token: Token) {
        if self.in_flight || self.ready.is_empty() {
            return;
        }
        let rest = if self.ready.len() > PIECES_MAX {
            self.ready.split_off(PIECES_MAX)
        } else {
            std::mem::take(&mut self.spare)
        };
        let bufs = std::mem::replace(&mut self.ready, rest);
        self.in_flight = true;
        io.submit(token, Op::Send { socket, bufs });
    }

    /// The send in flight ended; its buffers go back to their pools.
    pub(super) fn completed(&mut self, mut bufs: Vec<Buf>, result: usize) {
        assert!(self.in_flight, "a send completes once");
        self.in_flight = false;
        self.bytes_sent += result as u64;
        self.held -= bufs.iter().map(|buf| buf.len()).sum::<usize>();
        bufs.clear();
        self.spare = bufs;
    }

    /// Drops what will never be sent.
    pub(super) fn clear(&mut self) {
        self.held -= self.ready.drain(..).map(|buf| buf.len()).sum::<usize>();
        self.headers = None;
    }
}
