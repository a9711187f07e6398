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

use super::layout::pdu;

use super::error::{HostError, HostErrorKind};

/// Bytes of the staging buffer.
const STAGING_BYTES: usize = 64 << 10;
/// From this many missing bytes on, data is received straight into the command's buffer: below it another receive costs more
/// than the copy.
pub(super) const DIRECT_MIN: usize = 16 << 10;
/// The longest header that a controller sends (ICResp).
const HEADER_MAX: usize = 128;
/// Header digest and data digest each.
const DIGEST: usize = 4;

/// A PDU header, whole and with its digest checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeaderBytes {
    pub(super) bytes: [u8; HEADER_MAX],
    pub(super) len: usize,
}

/// What comes out of the received bytes, in order.
#[derive(Debug)]
pub(super) enum Arrival {
    /// A PDU without data.
    Pdu(HeaderBytes),
    /// The header of a PDU with data; the data goes to the command that the queue names by [`Inbox::expect_data`].
    PduWithData(HeaderBytes),
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
    header_digest: bool,
    data_digest: bool,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            staging: None,
            front: None,
            start: 0,
            end: 0,
            phase: Phase::Header,
            header_digest: false,
            data_digest: false,
        }
    }

    /// A new connection: nothing received, digests off until agreed.
    pub(super) fn reset(&mut self) {
        assert!(self.front.is_none(), "reset only with no receive in flight");
        *self = Self { staging: self.staging.take(), ..Self::new() };
    }

    /// Digests from here on.
    pub(super) fn agree(&mut self, header_digest: bool, data_digest: bool) {
        self.header_digest = header_digest;
        self.data_digest = data_digest;
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
                    let Some((header, pdo_gap, data)) = parse(unread, self.header_digest)? else { return Ok(None) };
                    self.start += header.len + if self.digest_follows(&header) { DIGEST } else { 0 };
                    if data == 0 {
                        return Ok(Some(Arrival::Pdu(header)));
                    }
                    self.phase = Phase::Padding { skip: pdo_gap, data };
                    return Ok(Some(Arrival::PduWithData(header)));
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
                Phase::Data { left: 0 } if self.data_digest => self.phase = Phase::Digest,
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

    fn digest_follows(&self, header: &HeaderBytes) -> bool {
        self.header_digest && digested(header.bytes[0])
    }
}

/// Initialisation and termination PDUs carry no digest (NVMe/TCP 3.6).
fn digested(kind: u8) -> bool {
    !matches!(kind, pdu::IC_RESP | pdu::C2H_TERM)
}

/// The header at the front of `unread`, the gap between its end (digest included) and its data, and the data's length.
fn parse(unread: &[u8], header_digest: bool) -> Result<Option<(HeaderBytes, usize, usize)>, HostError> {
    if unread.len() < 8 {
        return Ok(None);
    }
    let (kind, flags, hlen, pdo) = (unread[0], unread[1], usize::from(unread[2]), usize::from(unread[3]));
    let plen = u32::from_le_bytes([unread[4], unread[5], unread[6], unread[7]]) as usize;
    let expected = match kind {
        pdu::IC_RESP => 128,
        pdu::CAPSULE_RESP | pdu::C2H_DATA | pdu::R2T | pdu::C2H_TERM => 24,
        other => {
            return Err(HostError::protocol(format!("the target sent a PDU of type {other:#04x}, unknown to a host")));
        }
    };
    if hlen != expected {
        return Err(HostError::protocol(format!(
            "PDU type {kind:#04x} has a header of {hlen} bytes, expected {expected}"
        )));
    }
    let hdgst = header_digest && digested(kind);
    if hdgst != (flags & pdu::FLAG_HEADER_DIGEST != 0) && kind != pdu::IC_RESP {
        return Err(HostError::protocol(format!("PDU type {kind:#04x} disagrees about header digests")));
    }
    let end = hlen + if hdgst { DIGEST } else { 0 };
    if unread.len() < end {
        return Ok(None);
    }
    let mut header = HeaderBytes { bytes: [0; HEADER_MAX], len: hlen };
    header.bytes[..hlen].copy_from_slice(&unread[..hlen]);
    if hdgst {
        let (computed, sent) =
            (crc32c::crc32c(&unread[..hlen]), u32::from_le_bytes(unread[hlen..end].try_into().expect("4")));
        if computed != sent {
            let context = format!("header digest of a PDU of type {kind:#04x} is {sent:08x}, computed {computed:08x}");
            return Err(HostError::new(HostErrorKind::Digest, context));
        }
    }
    let (gap, data) = match kind {
        pdu::C2H_DATA => {
            let data = u32::from_le_bytes(header.bytes[16..20].try_into().expect("4")) as usize;
            let gap = pdo
                .checked_sub(end)
                .ok_or_else(|| HostError::protocol(format!("data offset {pdo} lies in the header")))?;
            let ddgst = if flags & pdu::FLAG_DATA_DIGEST != 0 { DIGEST } else { 0 };
            if data == 0 || plen != pdo + data + ddgst {
                return Err(HostError::protocol(format!(
                    "a data PDU of {plen} bytes does not hold {data} bytes at {pdo}"
                )));
            }
            (gap, data)
        }
        // The header of the PDU that was refused follows; what is said here is enough to end the connection.
        pdu::C2H_TERM => (0, 0),
        _ if plen != end => {
            return Err(HostError::protocol(format!("PDU type {kind:#04x} has {plen} bytes, expected {end}")));
        }
        _ => (0, 0),
    };
    Ok(Some((header, gap, data)))
}
