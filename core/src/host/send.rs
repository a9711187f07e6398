//! Commands and their data, written as PDUs into the outbox.

use ringway_reactor::buf::Buf;
use zerocopy::little_endian::U16;
use zerocopy::{Immutable, IntoBytes};

use super::queue::{Pending, Queue};
use crate::wire::pdu::{
    self, Agreed, CapsuleCmd, Common, DIGEST, HEADER_MAX, InitConnection, PduType, Transfer, flags,
};
use crate::wire::sgl::Sgl;

/// ICReq's bits for digests (tcp 3.6.2.2).
pub(super) const DIGEST_HEADER: u8 = 1 << 0;
pub(super) const DIGEST_DATA: u8 = 1 << 1;

impl<O> Queue<O> {
    /// Writes one PDU, or lends its data, to the outbox.
    pub(super) fn encode(&mut self, pending: &Pending, agreed: &Agreed) {
        match *pending {
            Pending::Greeting => self.encode_greeting(),
            Pending::Capsule { cid } => self.encode_capsule(cid, agreed),
            Pending::Data { cid, ttag, offset, len, last } => {
                let slot = self.slots[usize::from(cid)].as_mut().expect("data is asked for a command in flight");
                let part = slot.lend_for_send(offset, len);
                let header = Transfer {
                    common: pdu::common(PduType::H2cData, if last { flags::LAST } else { 0 }, agreed, len),
                    cccid: cid.into(),
                    ttag: ttag.into(),
                    offset: (offset as u32).into(),
                    length: (len as u32).into(),
                    reserved: [0; 4],
                };
                self.push_header(&header, &header.common, agreed);
                self.push_data(cid, part, agreed);
            }
        }
    }

    fn encode_greeting(&mut self) {
        let (header_digest, data_digest) = self.digests;
        let greeting = InitConnection {
            common: pdu::common(PduType::IcReq, 0, &Agreed::default(), 0),
            pfv: U16::ZERO,
            // Data to us may start at any dword: it is received into place, or copied once.
            pda: 0,
            digests: if header_digest { DIGEST_HEADER } else { 0 } | if data_digest { DIGEST_DATA } else { 0 },
            // One R2T a command at a time (a value of 0 means 1).
            limit: 0.into(),
            reserved: [0; 112],
        };
        self.outbox.push(greeting.as_bytes());
    }

    fn encode_capsule(&mut self, cid: u16, agreed: &Agreed) {
        let slot = self.slots[usize::from(cid)].as_mut().expect("a pending capsule has its command");
        let (data, len) = slot.encode();
        slot.sqe.sgl = match &data {
            Some(data) => Sgl::in_capsule(data.len() as u32),
            None => Sgl::transport(len as u32),
        };
        let data_len = data.as_ref().map_or(0, |data| data.len());
        let header = CapsuleCmd { common: pdu::common(PduType::CapsuleCmd, 0, agreed, data_len), sqe: slot.sqe };
        self.push_header(&header, &header.common, agreed);
        if let Some(data) = data {
            self.push_data(cid, data, agreed);
        }
    }

    fn push_header<T: IntoBytes + Immutable>(&mut self, header: &T, common: &Common, agreed: &Agreed) {
        let mut bytes = [0; HEADER_MAX + DIGEST];
        let written = pdu::write_header(header, agreed.header_digest, &mut bytes);
        self.outbox.push(&bytes[..written]);
        self.outbox.pad(usize::from(common.pdo).saturating_sub(written));
    }

    fn push_data(&mut self, cid: u16, data: Buf, agreed: &Agreed) {
        let digest = agreed.data_digest.then(|| crc32c::crc32c(&data));
        self.outbox.lend(cid, data);
        if let Some(digest) = digest {
            self.outbox.push(&digest.to_le_bytes());
        }
    }
}
