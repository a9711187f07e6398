//! TLS of a connection, where it was agreed on: records in, plain bytes out, and back. The bytes of a connection without it never
//! come here.
//!
//! rustls keeps no socket: what it wants to send is taken from it into buffers, what was received is given to it.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;

use ringway_reactor::data::{Data, Piece};
use ringway_reactor::io::{Io, SocketId, Token};
use rustls::{ServerConfig, ServerConnection};

use crate::transport::stream::{Inflow, Output};

/// Bytes of the buffers in which records go out.
const OUT: usize = 64 << 10;
/// Records that are sent before the next ones are made.
const OUT_MAX: usize = 1 << 20;

/// An encrypted connection.
pub(super) struct TlsStream {
    session: ServerConnection,
    /// Received and decrypted, `at` bytes of it read.
    plain: Vec<u8>,
    at: usize,
    /// To be sent, for want of buffers.
    records: Vec<u8>,
    pub(super) wire: Output,
}

impl TlsStream {
    pub(super) fn new(config: &Arc<ServerConfig>) -> Result<TlsStream, rustls::Error> {
        let mut session = ServerConnection::new(Arc::clone(config))?;
        // What goes in is bounded by what a connection may hold.
        session.set_buffer_limit(None);
        Ok(TlsStream { session, plain: Vec::new(), at: 0, records: Vec::new(), wire: Output::default() })
    }

    /// Whether the two sides still greet each other.
    pub(super) fn is_shaking(&self) -> bool {
        self.session.is_handshaking()
    }

    /// Takes records.
    pub(super) fn receive(&mut self, mut records: &[u8]) -> io::Result<()> {
        self.plain.drain(..std::mem::take(&mut self.at));
        while !records.is_empty() {
            self.session.read_tls(&mut records)?;
            self.session.process_new_packets().map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
            match self.session.reader().read_to_end(&mut self.plain) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                // All there is for now; or the peer says that no more comes, which the end of its socket says again.
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn unread(&self) -> &[u8] {
        &self.plain[self.at..]
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.at += count;
        assert!(self.at <= self.plain.len(), "only what was received is read");
    }

    /// Moves unread bytes into the inflow's buffer; whether all of its data is there.
    pub(super) fn fill(&mut self, inflow: &mut Inflow) -> bool {
        let count = (inflow.end - inflow.at).min(self.unread().len());
        if let Some(buf) = &mut inflow.buf {
            buf[inflow.at..inflow.at + count].copy_from_slice(&self.plain[self.at..self.at + count]);
        }
        inflow.at += count;
        self.consume(count);
        inflow.at == inflow.end
    }

    /// Whether there is something to send beside what is being sent.
    pub(super) fn is_pending(&self) -> bool {
        self.session.wants_write() || !self.records.is_empty() || self.wire.is_pending()
    }

    /// Bytes that wait to be sent.
    pub(super) fn bytes_held(&self) -> usize {
        self.records.len() + self.wire.bytes_held()
    }

    /// Makes records of plain pieces, and sends what it can. `false`: there is no buffer for the rest now.
    pub(super) fn flush(&mut self, io: &mut impl Io, socket: SocketId, token: Token, plain: &mut Output) -> bool {
        if self.wire.bytes_held() < OUT_MAX && !self.session.is_handshaking() {
            for piece in plain.take() {
                write_plain(&mut self.session, &piece);
            }
        }
        while self.session.wants_write() {
            self.session.write_tls(&mut self.records).expect("a vector takes everything");
        }
        let mut at = 0;
        while at < self.records.len() {
            let len = (self.records.len() - at).min(OUT);
            let Some(mut buf) = io.buffers().get(len) else { break };
            buf.copy_from_slice(&self.records[at..at + len]);
            self.wire.data(Data::Own(buf));
            at += len;
        }
        self.records.drain(..at);
        self.wire.submit(io, socket, token);
        self.records.is_empty()
    }
}

fn write_plain(session: &mut ServerConnection, piece: &Piece) {
    session.writer().write_all(piece).expect("its buffer has no bound");
}
