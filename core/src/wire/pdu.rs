//! NVMe/TCP protocol data units (NVMe/TCP transport specification 1.0, section 3.6).
//!
//! A PDU is header, optional header digest, padding, data, optional data digest. [`Frame::check`] looks at the eight common
//! bytes against what was negotiated and answers with exact positions, or with the termination that the specification asks
//! for. Nothing here trusts a length before it is checked.

use std::fmt;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::command::Sqe;
use super::completion::Cqe;

/// Bytes of a header or data digest (CRC32C).
pub const DIGEST: usize = 4;
/// Bytes of the common header.
pub const COMMON: usize = 8;
/// Bytes of the longest header (ICReq, ICResp).
pub const HEADER_MAX: usize = 128;
/// Bytes of an offending header that a termination request may quote (section 3.6.2.4).
pub const TERM_DATA_MAX: usize = 128;

/// PDU types (section 3.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PduType {
    IcReq = 0x00,
    IcResp = 0x01,
    H2cTermReq = 0x02,
    C2hTermReq = 0x03,
    CapsuleCmd = 0x04,
    CapsuleResp = 0x05,
    H2cData = 0x06,
    C2hData = 0x07,
    R2t = 0x09,
}

impl PduType {
    fn of(byte: u8) -> Option<PduType> {
        use PduType::*;
        [IcReq, IcResp, H2cTermReq, C2hTermReq, CapsuleCmd, CapsuleResp, H2cData, C2hData, R2t]
            .into_iter()
            .find(|&known| known as u8 == byte)
    }

    /// Bytes of its header without digest.
    #[must_use]
    pub const fn header_len(self) -> usize {
        match self {
            PduType::IcReq | PduType::IcResp => 128,
            PduType::CapsuleCmd => 72,
            PduType::H2cTermReq | PduType::C2hTermReq | PduType::CapsuleResp => 24,
            PduType::H2cData | PduType::C2hData | PduType::R2t => 24,
        }
    }

    fn is_from_host(self) -> bool {
        matches!(self, PduType::IcReq | PduType::H2cTermReq | PduType::CapsuleCmd | PduType::H2cData)
    }

    fn carries_data(self) -> bool {
        matches!(
            self,
            PduType::CapsuleCmd | PduType::H2cData | PduType::C2hData | PduType::H2cTermReq | PduType::C2hTermReq
        )
    }

    /// Connection set-up and termination never carry digests.
    fn carries_digests(self) -> bool {
        !matches!(self, PduType::IcReq | PduType::IcResp | PduType::H2cTermReq | PduType::C2hTermReq)
    }
}

/// Common header flags.
pub mod flags {
    /// A header digest follows the header.
    pub const HDGST: u8 = 1 << 0;
    /// A data digest follows the data.
    pub const DDGST: u8 = 1 << 1;
    /// The last data PDU of a command or of an R2T.
    pub const LAST: u8 = 1 << 2;
    /// C2HData: the command succeeded and no response capsule follows.
    pub const SUCCESS: u8 = 1 << 3;
}

/// Fatal error status of a termination request (section 3.6.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum FatalStatus {
    InvalidHeader = 1,
    Sequence = 2,
    HeaderDigest = 3,
    DataOutOfRange = 4,
    /// From the controller: data transfer limit exceeded. From the host: R2T limit exceeded.
    LimitExceeded = 5,
    UnsupportedParameter = 6,
}

/// Why a connection has to be terminated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Termination {
    /// What is wrong.
    pub status: FatalStatus,
    /// Bytes from the start of the PDU header to the wrong field, or the wrong digest as received.
    pub information: u32,
}

impl Termination {
    fn field(offset: u32) -> Termination {
        Termination { status: FatalStatus::InvalidHeader, information: offset }
    }
}

impl fmt::Display for Termination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} (field or digest {:#x})", self.status, self.information)
    }
}

/// Common header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Common {
    pub pdu_type: u8,
    pub flags: u8,
    pub hlen: u8,
    pub pdo: u8,
    pub plen: U32,
}

/// Initialize connection request (section 3.6.2.2); the response has the same layout with CPDA and MAXH2CDATA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InitConnection {
    pub common: Common,
    /// PDU format version, 0.
    pub pfv: U16,
    /// Request: host PDU data alignment; response: controller's. Dwords, 0's based.
    pub pda: u8,
    /// Bit 0 header digest, bit 1 data digest.
    pub digests: u8,
    /// Request: MAXR2T, 0's based. Response: MAXH2CDATA in bytes.
    pub limit: U32,
    pub reserved: [u8; 112],
}

/// Command capsule header; in-capsule data may follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CapsuleCmd {
    pub common: Common,
    pub sqe: Sqe,
}

/// Response capsule.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CapsuleResp {
    pub common: Common,
    pub cqe: Cqe,
}

/// H2CData, C2HData and R2T share one layout (sections 3.6.2.7 to 3.6.2.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Transfer {
    pub common: Common,
    /// The command's identifier.
    pub cccid: U16,
    /// Transfer tag: R2T and H2CData only.
    pub ttag: U16,
    /// Bytes from the start of the command's data.
    pub offset: U32,
    /// Bytes of data in this PDU (R2T: asked for).
    pub length: U32,
    pub reserved: [u8; 4],
}

/// Termination request header; a copy of the offending header follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TermReq {
    pub common: Common,
    pub fes: U16,
    pub fei: [u8; 4],
    pub reserved: [u8; 10],
}

const _: () = assert!(size_of::<Common>() == COMMON);
const _: () = assert!(size_of::<InitConnection>() == 128);
const _: () = assert!(size_of::<CapsuleCmd>() == 72);
const _: () = assert!(size_of::<CapsuleResp>() == 24);
const _: () = assert!(size_of::<Transfer>() == 24);
const _: () = assert!(size_of::<TermReq>() == 24);

/// What ICReq and ICResp agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    pub header_digest: bool,
    pub data_digest: bool,
    /// Alignment that the receiver of our data asked for, bytes (a power of two, 4 to 128).
    pub pda: u32,
}

impl Agreed {
    fn digest(on: bool) -> usize {
        if on { DIGEST } else { 0 }
    }

    /// Bytes from the start of a data PDU that we send to its data: header, digest, padding.
    #[must_use]
    pub fn data_offset(&self, pdu_type: PduType) -> usize {
        let end = pdu_type.header_len() + Agreed::digest(self.header_digest);
        end.next_multiple_of(self.pda.max(4) as usize)
    }
}

/// The checked shape of one PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub pdu_type: PduType,
    pub flags: u8,
    /// Bytes of header and header digest.
    pub header_len: usize,
    /// Bytes from the start of the PDU to its data; equals the PDU's length where there is none.
    pub data_offset: usize,
    /// Bytes of data without digest.
    pub data_len: usize,
    /// Bytes of the whole PDU.
    pub pdu_len: usize,
}

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Reads what hosts send.
    Controller,
    /// Reads what controllers send.
    Host,
}

impl Frame {
    /// Checks a common header against what was agreed. `data_max` bounds the data of any PDU.
    pub fn check(common: &Common, reader: Reader, agreed: &Agreed, data_max: usize) -> Result<Frame, Termination> {
        let pdu_type = PduType::of(common.pdu_type).ok_or(Termination::field(0))?;
        if pdu_type.is_from_host() != (reader == Reader::Controller) {
            return Err(Termination::field(0));
        }
        let hlen = pdu_type.header_len();
        if usize::from(common.hlen) != hlen {
            return Err(Termination::field(2));
        }
        let header_digest = agreed.header_digest && pdu_type.carries_digests();
        if (common.flags & flags::HDGST != 0) != header_digest {
            return Err(Termination::field(1));
        }
        let header_len = hlen + Agreed::digest(header_digest);
        let pdu_len = common.plen.get() as usize;
        if pdu_len < header_len {
            return Err(Termination::field(4));
        }
        if pdu_len == header_len {
            let frame = Frame { pdu_type, flags: common.flags, header_len, data_offset: pdu_len, data_len: 0, pdu_len };
            return Ok(frame);
        }
        if !pdu_type.carries_data() {
            return Err(Termination::field(4));
        }
        Frame::check_data(common, pdu_type, header_len, agreed, data_max)
    }

    fn check_data(
        common: &Common,
        pdu_type: PduType,
        header_len: usize,
        agreed: &Agreed,
        data_max: usize,
    ) -> Result<Frame, Termination> {
        let pdu_len = common.plen.get() as usize;
        let terminates = matches!(pdu_type, PduType::H2cTermReq | PduType::C2hTermReq);
        // A termination request has no PDO: the quoted header follows its own.
        let data_offset = if terminates { header_len } else { usize::from(common.pdo) };
        if data_offset < header_len || data_offset % 4 != 0 || data_offset > pdu_len {
            return Err(Termination::field(3));
        }
        let data_digest = agreed.data_digest && pdu_type.carries_digests();
        if (common.flags & flags::DDGST != 0) != data_digest {
            return Err(Termination::field(1));
        }
        let bound = if terminates { TERM_DATA_MAX } else { data_max };
        let data_len = (pdu_len - data_offset)
            .checked_sub(Agreed::digest(data_digest))
            .filter(|&len| len > 0 && len <= bound)
            .ok_or(Termination::field(4))?;
        Ok(Frame { pdu_type, flags: common.flags, header_len, data_offset, data_len, pdu_len })
    }

    /// Whether a data digest follows the data.
    #[must_use]
    pub fn has_data_digest(&self) -> bool {
        self.data_offset + self.data_len < self.pdu_len
    }
}

/// Checks the digest behind a whole header (header and digest, as long as [`Frame::header_len`]).
pub fn check_header_digest(frame: &Frame, header: &[u8]) -> Result<(), Termination> {
    let hlen = frame.pdu_type.header_len();
    if frame.header_len == hlen {
        return Ok(());
    }
    let found = u32::from_le_bytes(header[hlen..hlen + DIGEST].try_into().expect("four bytes"));
    if found == crc32c::crc32c(&header[..hlen]) {
        return Ok(());
    }
    Err(Termination { status: FatalStatus::HeaderDigest, information: found })
}

/// Writes a header and, where agreed, its digest to the front of `out`; returns the bytes written.
pub fn write_header<T: IntoBytes + Immutable>(header: &T, header_digest: bool, out: &mut [u8]) -> usize {
    let bytes = header.as_bytes();
    out[..bytes.len()].copy_from_slice(bytes);
    if !header_digest {
        return bytes.len();
    }
    out[bytes.len()..bytes.len() + DIGEST].copy_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
    bytes.len() + DIGEST
}

/// The common header of a PDU that we send with `data_len` bytes of data.
#[must_use]
pub fn common(pdu_type: PduType, extra_flags: u8, agreed: &Agreed, data_len: usize) -> Common {
    let digests = pdu_type.carries_digests();
    let header_digest = agreed.header_digest && digests;
    let data_digest = agreed.data_digest && digests && data_len > 0;
    let header_len = pdu_type.header_len() + Agreed::digest(header_digest);
    let pdo = if data_len > 0 { agreed.data_offset(pdu_type) } else { 0 };
    let plen = if data_len > 0 { pdo + data_len + Agreed::digest(data_digest) } else { header_len };
    Common {
        pdu_type: pdu_type as u8,
        flags: extra_flags | if header_digest { flags::HDGST } else { 0 } | if data_digest { flags::DDGST } else { 0 },
        hlen: pdu_type.header_len() as u8,
        pdo: pdo as u8,
        plen: U32::new(plen as u32),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: Agreed = Agreed { header_digest: false, data_digest: false, pda: 4 };
    const DIGESTS: Agreed = Agreed { header_digest: true, data_digest: true, pda: 128 };

    fn check(common: &Common, agreed: &Agreed) -> Result<Frame, Termination> {
        Frame::check(common, Reader::Controller, agreed, 8192)
    }

    #[test]
    fn what_we_write_passes_our_own_check() {
        for agreed in [PLAIN, DIGESTS] {
            for len in [0, 1, 512, 8192] {
                let header = common(PduType::CapsuleCmd, 0, &agreed, len);
                let frame = check(&header, &agreed).unwrap();
                assert_eq!((frame.data_len, frame.has_data_digest()), (len, len > 0 && agreed.data_digest));
            }
        }
    }

    #[test]
    fn each_wrong_field_is_named_by_its_offset() {
        let good = common(PduType::CapsuleCmd, 0, &PLAIN, 512);
        let wrong = |change: fn(&mut Common)| {
            let mut header = good;
            change(&mut header);
            check(&header, &PLAIN).unwrap_err()
        };
        assert_eq!(wrong(|h| h.pdu_type = 0x0a), Termination::field(0));
        assert_eq!(wrong(|h| h.pdu_type = PduType::C2hData as u8), Termination::field(0));
        assert_eq!(wrong(|h| h.flags = flags::HDGST), Termination::field(1));
        assert_eq!(wrong(|h| h.flags = flags::DDGST), Termination::field(1));
        assert_eq!(wrong(|h| h.hlen = 71), Termination::field(2));
        assert_eq!(wrong(|h| h.pdo = 68), Termination::field(3));
        assert_eq!(wrong(|h| h.pdo = 73), Termination::field(3));
        assert_eq!(wrong(|h| h.plen = U32::new(71)), Termination::field(4));
        assert_eq!(wrong(|h| h.plen = U32::new(72 + 8193)), Termination::field(4));
        assert_eq!(wrong(|h| h.plen = U32::new(u32::MAX)), Termination::field(4));
    }

    #[test]
    fn a_flipped_bit_in_a_header_fails_its_digest() {
        let header = Transfer {
            common: common(PduType::H2cData, flags::LAST, &DIGESTS, 4096),
            cccid: U16::new(7),
            ttag: U16::new(1),
            offset: U32::new(0),
            length: U32::new(4096),
            reserved: [0; 4],
        };
        let frame = check(&header.common, &DIGESTS).unwrap();
        let mut bytes = [0; HEADER_MAX];
        assert_eq!(write_header(&header, true, &mut bytes), frame.header_len);
        assert_eq!(check_header_digest(&frame, &bytes), Ok(()));
        bytes[9] ^= 1;
        assert_eq!(check_header_digest(&frame, &bytes).unwrap_err().status, FatalStatus::HeaderDigest);
    }

    proptest! {
        #[test]
        fn any_eight_bytes_give_a_frame_within_bounds_or_a_termination(bytes: [u8; 8], digests: bool) {
            let common = Common::read_from_bytes(&bytes).unwrap();
            let agreed = if digests { DIGESTS } else { PLAIN };
            if let Ok(frame) = check(&common, &agreed) {
                prop_assert!(frame.data_len <= 8192);
                prop_assert!(frame.header_len <= frame.data_offset && frame.data_offset + frame.data_len <= frame.pdu_len);
            }
        }
    }
}
