//! PDUs from the target, applied to the commands they belong to.

use ringway_reactor::buf::Buf;

use super::error::{HostError, HostErrorKind};
use super::inbox::{Arrival, HeaderBytes};
use super::layout::command::Completion as Cqe;
use super::layout::pdu;
use super::queue::{Agreed, Pending, Queue, QueueEvent, State};

/// The data PDU that is arriving.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arriving {
    pub(super) cid: u16,
    /// Where the next byte goes.
    pub(super) at: usize,
    offset: usize,
    len: usize,
    /// No completion follows: the command ends with this data.
    success: bool,
}

impl<O> Queue<O> {
    /// Applies everything that the inbox can make of what was received.
    pub(super) fn gather(&mut self) -> Result<(), HostError> {
        loop {
            let Self { inbox, arriving, slots, .. } = self;
            let arrival = inbox.next(|bytes| {
                let arriving = arriving.as_mut().expect("data follows its header");
                let slot = slots[usize::from(arriving.cid)].as_mut().expect("data arrives for a command in flight");
                slot.place(arriving.at, bytes);
                arriving.at += bytes.len();
            })?;
            match arrival {
                None => return Ok(()),
                Some(Arrival::Pdu(header)) => self.apply(&header)?,
                Some(Arrival::PduWithData(header)) => self.data_begins(&header)?,
                Some(Arrival::DataComplete(digest)) => self.data_complete(digest)?,
            }
        }
    }

    /// The buffer of a direct receive came back.
    pub(super) fn returned_directly(&mut self, buf: Buf, bytes: usize) {
        let arriving = self.arriving.as_mut().expect("data is arriving");
        let slot = self.slots[usize::from(arriving.cid)].as_mut().expect("data arrives for a command in flight");
        slot.return_received(buf, bytes);
        arriving.at += bytes;
        self.inbox.received_directly(bytes);
    }

    fn apply(&mut self, header: &HeaderBytes) -> Result<(), HostError> {
        let greeting = matches!(self.state, State::Greeting { .. });
        match header.bytes[0] {
            pdu::IC_RESP if greeting => self.greeted(&header.bytes),
            pdu::C2H_TERM => Err(terminated(&header.bytes)),
            kind if greeting => {
                Err(HostError::protocol(format!("the target answered ICReq with a PDU of type {kind:#04x}")))
            }
            pdu::CAPSULE_RESP => {
                let cqe = pdu::capsule_resp(&header.bytes);
                self.answer(cqe)
            }
            pdu::R2T => self.asked_for_data(&pdu::data(&header.bytes)),
            kind => Err(HostError::protocol(format!("a PDU of type {kind:#04x} does not belong here"))),
        }
    }

    fn greeted(&mut self, bytes: &[u8; 128]) -> Result<(), HostError> {
        let State::Greeting { socket } = self.state else { panic!("greeted once") };
        let answer = pdu::ic_resp(bytes);
        if answer.pfv != 0 {
            return Err(HostError::protocol(format!("the target speaks PDU format {}, this host 0", answer.pfv)));
        }
        let (header_digest, data_digest) = (answer.digests & 1 != 0, answer.digests & 2 != 0);
        if (header_digest && !self.digests.0) || (data_digest && !self.digests.1) {
            return Err(HostError::protocol("the target turned a digest on that was not asked for"));
        }
        if answer.cpda > 31 || answer.maxh2cdata < 4096 {
            let context =
                format!("the target asks for alignment {} and {} bytes a PDU", answer.cpda, answer.maxh2cdata);
            return Err(HostError::protocol(context));
        }
        let agreed = Agreed {
            header_digest,
            data_digest,
            alignment: (usize::from(answer.cpda) + 1) * 4,
            h2c_max: answer.maxh2cdata as usize & !3,
        };
        self.inbox.agree(header_digest, data_digest);
        self.state = State::Open { socket, agreed };
        self.events.push_back(QueueEvent::Greeted);
        Ok(())
    }

    fn answer(&mut self, cqe: Cqe) -> Result<(), HostError> {
        let cid = cqe.cid();
        let slot = self.slots.get_mut(usize::from(cid)).and_then(Option::as_mut);
        let slot =
            slot.ok_or_else(|| HostError::protocol(format!("an answer to command {cid}, which is not in flight")))?;
        slot.answer(cqe)?;
        if slot.lent() {
            self.answered_lent.push(cid);
        } else {
            self.finish(cid);
        }
        Ok(())
    }

    fn asked_for_data(&mut self, r2t: &pdu::DataHeader) -> Result<(), HostError> {
        let State::Open { agreed, .. } = self.state else { panic!("checked by the caller") };
        let cid = r2t.cid;
        let (mut offset, mut left) = (r2t.offset as usize, r2t.len as usize);
        let slot = self.slots.get(usize::from(cid)).and_then(Option::as_ref);
        let slot =
            slot.ok_or_else(|| HostError::protocol(format!("data asked for command {cid}, which is not in flight")))?;
        let again =
            self.pending.iter().any(|pending| matches!(pending, Pending::Data { cid: other, .. } if *other == cid));
        if again {
            return Err(HostError::protocol(format!("data asked for command {cid} twice at a time, one is agreed")));
        }
        slot.expects(offset, left)?;
        while left > 0 {
            let len = left.min(agreed.h2c_max);
            left -= len;
            self.pending.push_back(Pending::Data { cid, ttag: r2t.ttag, offset, len, last: left == 0 });
            offset += len;
        }
        Ok(())
    }

    fn data_begins(&mut self, header: &HeaderBytes) -> Result<(), HostError> {
        if !matches!(self.state, State::Open { .. }) {
            return Err(HostError::protocol("data before the greeting"));
        }
        let data = pdu::data(&header.bytes);
        let cid = data.cid;
        let (offset, len) = (data.offset as usize, data.len as usize);
        let slot = self.slots.get(usize::from(cid)).and_then(Option::as_ref);
        let slot =
            slot.ok_or_else(|| HostError::protocol(format!("data for command {cid}, which is not in flight")))?;
        slot.accepts(offset, len)?;
        let flags = header.bytes[1];
        let success = flags & pdu::FLAG_SUCCESS != 0;
        if success && flags & pdu::FLAG_LAST == 0 {
            return Err(HostError::protocol("a data PDU says success but not that it is the last"));
        }
        self.arriving = Some(Arriving { cid, at: offset, offset, len, success });
        Ok(())
    }

    fn data_complete(&mut self, digest: Option<u32>) -> Result<(), HostError> {
        let arriving = self.arriving.take().expect("data was arriving");
        let Arriving { cid, offset, len, success, .. } = arriving;
        let slot = self.slots[usize::from(cid)].as_ref().expect("data arrives for a command in flight");
        if let Some(sent) = digest {
            let computed = slot.digest(offset, len);
            if sent != computed {
                let context = format!("data digest of {len} bytes at {offset} is {sent:08x}, computed {computed:08x}");
                return Err(HostError::new(HostErrorKind::Digest, context));
            }
        }
        if success { self.answer(Cqe::success(cid)) } else { Ok(()) }
    }
}

fn terminated(bytes: &[u8; 128]) -> HostError {
    let fes = u16::from_le_bytes([bytes[8], bytes[9]]);
    let information = u32::from_le_bytes([bytes[10], bytes[11], bytes[12], bytes[13]]);
    let why = match fes {
        1 => "invalid PDU header field",
        2 => "PDU sequence error",
        3 => "header digest error",
        4 => "data transfer out of range",
        5 => "data transfer limit exceeded",
        6 => "unsupported parameter",
        _ => "unknown reason",
    };
    let kind = if fes == 3 { HostErrorKind::Digest } else { HostErrorKind::Protocol };
    HostError::new(kind, format!("the target ended the connection: {why} (FES {fes}, information {information:#x})"))
}
