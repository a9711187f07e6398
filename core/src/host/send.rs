//! Commands and their data, written as PDUs into the outbox.

use super::layout::pdu;
use super::queue::{Agreed, Pending, Queue};

const DIGEST: usize = 4;

impl<O> Queue<O> {
    pub(super) fn encode(&mut self, pending: &Pending, agreed: &Agreed) {
        match *pending {
            Pending::Greeting => {
                let (header, data) = self.digests;
                self.outbox.push(&pdu::ic_req(header, data));
            }
            Pending::Capsule { cid } => self.encode_capsule(cid, agreed),
            Pending::Data { cid, ttag, offset, len, last } => {
                let slot = self.slots[usize::from(cid)].as_mut().expect("data is asked for a command in flight");
                let part = slot.lend_for_send(offset, len);
                let layout = Layout::of(24, len, agreed);
                let flags = layout.flags | if last { pdu::FLAG_LAST } else { 0 };
                let header = pdu::h2c_data(cid, ttag, offset as u32, len as u32, flags, layout.pdo, layout.plen);
                self.push_header(&header, &layout, agreed);
                self.push_data(cid, part, agreed);
            }
        }
    }

    fn encode_capsule(&mut self, cid: u16, agreed: &Agreed) {
        let slot = self.slots[usize::from(cid)].as_mut().expect("a pending capsule has its command");
        let (data, len) = slot.encode();
        match &data {
            Some(data) => slot.sqe.set_data_in_capsule(data.len() as u32),
            None if len > 0 => slot.sqe.set_data_by_transport(len as u32),
            None => {}
        }
        let layout = Layout::of(72, data.as_ref().map_or(0, |data| data.len()), agreed);
        let header = pdu::capsule_cmd(&slot.sqe, layout.flags, layout.pdo, layout.plen);
        self.push_header(&header, &layout, agreed);
        if let Some(data) = data {
            self.push_data(cid, data, agreed);
        }
    }

    fn push_header(&mut self, header: &[u8], layout: &Layout, agreed: &Agreed) {
        self.outbox.push(header);
        if agreed.header_digest {
            self.outbox.push(&crc32c::crc32c(header).to_le_bytes());
        }
        self.outbox.pad(layout.padding);
    }

    fn push_data(&mut self, cid: u16, data: ringway_reactor::buf::Buf, agreed: &Agreed) {
        let digest = agreed.data_digest.then(|| crc32c::crc32c(&data));
        self.outbox.lend(cid, data);
        if let Some(digest) = digest {
            self.outbox.push(&digest.to_le_bytes());
        }
    }
}

/// Where the parts of a PDU lie.
struct Layout {
    flags: u8,
    pdo: u8,
    plen: u32,
    padding: usize,
}

impl Layout {
    fn of(header: usize, data: usize, agreed: &Agreed) -> Layout {
        let mut flags = 0;
        let mut end = header;
        if agreed.header_digest {
            flags |= pdu::FLAG_HEADER_DIGEST;
            end += DIGEST;
        }
        if data == 0 {
            return Layout { flags, pdo: 0, plen: end as u32, padding: 0 };
        }
        let pdo = end.next_multiple_of(agreed.alignment.max(4));
        let mut plen = pdo + data;
        if agreed.data_digest {
            flags |= pdu::FLAG_DATA_DIGEST;
            plen += DIGEST;
        }
        Layout { flags, pdo: pdo as u8, plen: plen as u32, padding: pdo - end }
    }
}
