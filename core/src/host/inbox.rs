//! What a queue receives: bytes gathered into PDUs.
//!
//! Bytes arrive in a staging buffer; headers are read there, data is copied from there into the command's buffer while it is
//! hot. What of a PDU's data is not in the staging buffer yet, and is large, is received straight into the command's buffer.
//!
//! ```text
//! Header --(header complete)--> Padding --> Data --(data complete)--> Digest --> Header
//!    \--(PDU without data)--> Header
//! ```

use ringway_reactor::buf::{Buf, BufPool};

use zerocopy::FromBytes;

use super::error::{HostError, HostErrorKind};
use crate::limits::REQUEST_BYTES_MAX;
use crate::wire::pdu::{self, Agreed, COMMON, Common, DIGEST, Frame, HEADER_MAX, PduType, Reader, Transfer};

/// Bytes of the staging buffer.
const STAGING_BYTES: usize = 64 << 10;
/// From this many missing bytes on, data is received straight into the command's buffer: below it another receive costs more
/// than the copy.
pub(super) const DIRECT_MIN: usize = 16 << 10;

/// A PDU header, whole and with its digest checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeaderBytes {
    pub(super) pdu_type: PduType,
    bytes: [u8; HEADER_MAX],
}

impl HeaderBytes {
    fn of(frame: &Frame, header: &[u8]) -> Self {
        let mut bytes = [0; HEADER_MAX];
        bytes[..header.len()].copy_from_slice(header);
        Self { pdu_type: frame.pdu_type, bytes }
    }

    /// The header as the layout of its type.
    pub(super) fn read<T: FromBytes>(&self) -> T {
        T::read_from_prefix(&self.bytes).expect("no header is longer").0
    }
}

/// What comes out of the received bytes, in order.
#[derive(Debug)]
pub(super) enum Arrival {
    /// A PDU without data.
    Pdu(HeaderBytes),
    /// The header of a data PDU and its bytes of data; they go to the command that it names.
    Data(Transfer, usize),
    /// The data of the last such PDU is in its buffer; the digest that came with it, where digests are on.
    DataComplete(Option<u32>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Header,
    Padding { skip: usize, data: usize },
    Data { left: usize },
    Digest,
}

/// Gathers PDUs.
#[derive(Debug)]
pub(super) struct Inbox {
    staging: Option<Buf>,
    /// Bytes before the range that the receive in flight fills.
    front: Option<Buf>,
    start: usize,
    end: usize,
    phase: Phase,
    agreed: Agreed,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self { staging: None, front: None, start: 0, end: 0, phase: Phase::Header, agreed: Agreed::default() }
    }

    /// A new connection: nothing received, digests off until agreed.
    pub(super) fn reset(&mut self) {
        assert!(self.front.is_none(), "reset only with no receive in flight");
        *self = Self { staging: self.staging.take(), ..Self::new() };
    }

    /// Digests from here on.
    pub(super) fn agree(&mut self, agreed: Agreed) {
        self.agreed = agreed;
    }

    /// The staging range for the next receive; `None` is pressure. Unread bytes move to the front.
    pub(super) fn lend(&mut self, pool: &'static BufPool) -> Option<Buf> {
        let mut staging = match self.staging.take() {
            Some(staging) => staging,
            None => pool.get(STAGING_BYTES)?,
        };
        let unread = self.end - self.start;
        assert!(unread < 2 * HEADER_MAX, "what is left over is less than a header");
        if self.start > 0 {
            staging.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, unread);
        }
        if unread == 0 {
            return Some(staging);
        }
        let rest = staging.split_off(unread);
        self.front = Some(staging);
        Some(rest)
    }

    /// Takes the lent range back, `received` bytes of it filled.
    pub(super) fn reclaim(&mut self, lent: Buf, received: usize) {
        let whole = match self.front.take() {
            Some(mut front) => {
                front.join(lent);
                front
            }
            None => lent,
        };
        self.staging = Some(whole);
        self.end += received;
    }

    /// Data still missing that is not in the staging buffer, if it is worth its own receive.
    pub(super) fn direct(&self) -> Option<usize> {
        match self.phase {
            Phase::Data { left } if left >= DIRECT_MIN && self.start == self.end => Some(left),
            _ => None,
        }
    }

    /// `len` bytes of data were received directly.
    pub(super) fn received_directly(&mut self, len: usize) {
        let Phase::Data { left } = self.phase else { unreachable!("direct receives happen within data only") };
        assert!(len <= left, "a receive fills no more than it was lent");
        self.phase = Phase::Data { left: left - len };
    }

    /// The next PDU or end of data. `place` takes data bytes for the current PDU, in order. `None`: more bytes are needed.
    pub(super) fn next(&mut self, mut place: impl FnMut(&[u8])) -> Result<Option<Arrival>, HostError> {
        loop {
            let unread = match &self.staging {
                Some(staging) => &staging[self.start..self.end],
                None => &[],
            };
            match self.phase {
                Phase::Header => {
                    let Some((frame, header)) = parse(unread, &self.agreed)? else { return Ok(None) };
                    self.start += frame.header_len;
                    // What a termination quotes is not needed: it ends the connection anyway.
                    if frame.data_len == 0 || frame.pdu_type == PduType::C2hTermReq {
                        return Ok(Some(Arrival::Pdu(HeaderBytes::of(&frame, header))));
                    }
                    let skip = frame.data_offset - frame.header_len;
                    self.phase = Phase::Padding { skip, data: frame.data_len };
                    let (transfer, _) = Transfer::read_from_prefix(header).expect("as long as a data PDU's");
                    return Ok(Some(Arrival::Data(transfer, frame.data_len)));
                }
                Phase::Padding { skip, data } => {
                    let skipped = skip.min(unread.len());
                    self.start += skipped;
                    if skipped < skip {
                        self.phase = Phase::Padding { skip: skip - skipped, data };
                        return Ok(None);
                    }
                    self.phase = Phase::Data { left: data };
                }
                Phase::Data { left: 0 } if self.agreed.data_digest => self.phase = Phase::Digest,
                Phase::Data { left: 0 } => {
                    self.phase = Phase::Header;
                    return Ok(Some(Arrival::DataComplete(None)));
                }
                Phase::Data { .. } if unread.is_empty() => return Ok(None),
                Phase::Data { left } => {
                    let len = left.min(unread.len());
                    place(&unread[..len]);
                    self.start += len;
                    self.phase = Phase::Data { left: left - len };
                }
                Phase::Digest => {
                    let Some(digest) = unread.first_chunk::<DIGEST>() else { return Ok(None) };
                    let digest = u32::from_le_bytes(*digest);
                    self.start += DIGEST;
                    self.phase = Phase::Header;
                    return Ok(Some(Arrival::DataComplete(Some(digest))));
                }
            }
        }
    }
}

/// The frame and header at the front of `unread`; `None` until it is whole.
fn parse<'a>(unread: &'a [u8], agreed: &Agreed) -> Result<Option<(Frame, &'a [u8])>, HostError> {
    let Some(common) = unread.first_chunk::<COMMON>() else { return Ok(None) };
    let common = Common::read_from_bytes(common).expect("as long as it is");
    let frame = Frame::check(&common, Reader::Host, agreed, REQUEST_BYTES_MAX as usize).map_err(|refused| {
        let kind = common.pdu_type;
        HostError::protocol(format!("the target sent a PDU of type {kind:#04x} with a wrong header: {refused:?}"))
    })?;
    if unread.len() < frame.header_len {
        return Ok(None);
    }
    pdu::check_header_digest(&frame, &unread[..frame.header_len]).map_err(|_| {
        HostError::new(HostErrorKind::Digest, format!("header digest of a {:?} does not match", frame.pdu_type))
    })?;
    Ok(Some((frame, &unread[..frame.pdu_type.header_len()])))
}
