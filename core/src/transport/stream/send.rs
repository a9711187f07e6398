//! What a connection sends: headers and data gathered into one `Send` at a time.
//!
//! Everything that becomes ready while a send is in flight goes out with the next one. Headers are written one behind the other into
//! one small buffer, which is cut only where data comes between them, so that a batch of responses is one piece; read data is sent
//! from the very buffer that the device filled.

use ringway_reactor::buf::Buf;
use ringway_reactor::data::{Data, Piece, ZEROS_MAX};
use ringway_reactor::io::{Io, Op, SocketId, Token};

/// Pieces in one send: the kernel takes 1,024 (UIO_MAXIOV).
const PIECES_MAX: usize = 512;
/// Bytes of the buffer that headers are carved from.
const HEADERS: usize = 4096;
/// No header with its digest and its padding is longer, nor what stands between the data of one answer and that of the next.
const HEADER_ROOM: usize = 256;

/// The outgoing side of one connection.
#[derive(Debug, Default)]
pub(in crate::transport) struct Output {
    /// Ready to be sent, in order.
    ready: Vec<Piece>,
    /// An empty vector to swap with when a batch goes out.
    spare: Vec<Piece>,
    /// Where headers go, `written` bytes of it not cut off yet; `None` when it has to be taken from the pool.
    headers: Option<Buf>,
    written: usize,
    in_flight: bool,
    /// Bytes of `ready` and of the send in flight.
    held: usize,
    /// Bytes handed to the socket so far.
    pub(in crate::transport) bytes_sent: u64,
}

impl Output {
    /// Whether `count` headers are certain to find room: takes a buffer for them if there is none.
    pub(in crate::transport) fn has_room(&mut self, io: &impl Io, count: usize) -> bool {
        if self.headers.as_ref().is_none_or(|buf| buf.len() < self.written + count * HEADER_ROOM) {
            self.cut();
            self.headers = io.buffers().get(HEADERS);
        }
        self.headers.is_some()
    }

    /// Appends a header, written by `write`, which returns its length. `false` if there is no buffer for it now: try again in a
    /// later turn.
    #[must_use]
    pub(in crate::transport) fn header(&mut self, io: &impl Io, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        if !self.has_room(io, 1) {
            return false;
        }
        let headers = self.headers.as_mut().expect("there is room");
        let len = write(&mut headers[self.written..self.written + HEADER_ROOM]);
        self.written += len;
        self.held += len;
        true
    }

    /// Appends data. Zeros hold no buffer.
    pub(in crate::transport) fn data(&mut self, data: Data) {
        self.cut();
        self.held += data.len();
        match data {
            Data::Blank(blank) => {
                let mut left = blank.len();
                while left > 0 {
                    let zeros = left.min(ZEROS_MAX);
                    self.ready.push(Piece::Zeros(zeros));
                    left -= zeros;
                }
            }
            data => self.ready.push(Piece::Own(data.into_own())),
        }
    }

    /// Makes a piece of the headers written so far.
    fn cut(&mut self) {
        if self.written > 0 {
            let mut piece = self.headers.take().expect("headers are written to a buffer");
            self.headers = Some(piece.split_off(std::mem::take(&mut self.written)));
            self.ready.push(Piece::Own(piece));
        }
    }

    /// Whether there is something that no send carries yet.
    pub(in crate::transport) fn is_pending(&self) -> bool {
        !self.ready.is_empty() || self.written > 0
    }

    /// Whether nothing is pending and nothing in flight.
    pub(in crate::transport) fn is_idle(&self) -> bool {
        !self.is_pending() && !self.in_flight
    }

    /// Bytes of buffers that wait to be sent or are being sent.
    pub(in crate::transport) fn bytes_held(&self) -> usize {
        self.held
    }

    /// Whether a send is in flight.
    pub(in crate::transport) fn is_in_flight(&self) -> bool {
        self.in_flight
    }

    /// Submits everything pending as one send, unless one is in flight.
    pub(in crate::transport) fn submit(&mut self, io: &mut impl Io, socket: SocketId, token: Token) {
        if self.in_flight || !self.is_pending() {
            return;
        }
        self.cut();
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
    pub(in crate::transport) fn completed(&mut self, mut bufs: Vec<Piece>, result: usize) {
        assert!(self.in_flight, "a send completes once");
        self.in_flight = false;
        self.bytes_sent += result as u64;
        self.held -= bufs.iter().map(|buf| buf.len()).sum::<usize>();
        bufs.clear();
        self.spare = bufs;
    }

    /// Takes everything pending, for who sends it in another form.
    pub(in crate::transport) fn take(&mut self) -> Vec<Piece> {
        self.cut();
        let pieces = std::mem::take(&mut self.ready);
        self.held -= pieces.iter().map(|piece| piece.len()).sum::<usize>();
        pieces
    }

    /// Drops what will never be sent.
    pub(in crate::transport) fn clear(&mut self) {
        self.held -= self.ready.drain(..).map(|buf| buf.len()).sum::<usize>() + std::mem::take(&mut self.written);
        self.headers = None;
    }
}
