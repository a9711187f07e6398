//! PDUs from the target, applied to the commands they belong to.

use ringway_reactor::buf::Buf;

use super::error::{HostError, HostErrorKind};
use super::inbox::{Arrival, HeaderBytes};
use super::queue::{Pending, Queue, QueueEvent, State};
use super::send::{DIGEST_DATA, DIGEST_HEADER};
use crate::wire::completion::{Cqe, NvmeStatus};
use crate::wire::pdu::{Agreed, CapsuleResp, FatalStatus, InitConnection, PduType, TermReq, Transfer, flags};

/// The largest CPDA: data aligned to 128 bytes (tcp 3.6.2.3).
const PDA_MAX: u8 = 31;
/// The smallest MAXH2CDATA that the specification allows.
const H2C_DATA_MIN: u32 = 4096;

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
                Some(Arrival::Data(header, len)) => self.data_begins(&header, len)?,
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
        match header.pdu_type {
            PduType::IcResp if greeting => self.greeted(&header.read()),
            PduType::C2hTermReq => Err(terminated(&header.read())),
            kind if greeting => Err(HostError::protocol(format!("the target answered ICReq with a {kind:?}"))),
            PduType::CapsuleResp => self.answer(header.read::<CapsuleResp>().cqe),
            PduType::R2t => self.asked_for_data(&header.read()),
            kind => Err(HostError::protocol(format!("a {kind:?} does not belong here"))),
        }
    }

    fn greeted(&mut self, answer: &InitConnection) -> Result<(), HostError> {
        let State::Greeting { socket } = self.state else { panic!("greeted once") };
        if answer.pfv.get() != 0 {
            return Err(HostError::protocol(format!("the target speaks PDU format {}, this host 0", answer.pfv)));
        }
        let (header_digest, data_digest) = (answer.digests & DIGEST_HEADER != 0, answer.digests & DIGEST_DATA != 0);
        if (header_digest && !self.digests.0) || (data_digest && !self.digests.1) {
            return Err(HostError::protocol("the target turned a digest on that was not asked for"));
        }
        if answer.pda > PDA_MAX || answer.limit.get() < H2C_DATA_MIN {
            let context = format!("the target asks for alignment {} and {} bytes a PDU", answer.pda, answer.limit);
            return Err(HostError::protocol(context));
        }
        let agreed = Agreed { header_digest, data_digest, pda: (u32::from(answer.pda) + 1) * 4 };
        self.inbox.agree(agreed);
        self.state = State::Open { socket, agreed, h2c_max: answer.limit.get() as usize & !3 };
        self.events.push_back(QueueEvent::Greeted);
        Ok(())
    }

    fn answer(&mut self, cqe: Cqe) -> Result<(), HostError> {
        let cid = cqe.cid.get();
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

    fn asked_for_data(&mut self, r2t: &Transfer) -> Result<(), HostError> {
        let State::Open { h2c_max, .. } = self.state else { panic!("checked by the caller") };
        let cid = r2t.cccid.get();
        let (mut offset, mut left) = (r2t.offset.get() as usize, r2t.length.get() as usize);
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
            let len = left.min(h2c_max);
            left -= len;
            self.pending.push_back(Pending::Data { cid, ttag: r2t.ttag.get(), offset, len, last: left == 0 });
            offset += len;
        }
        Ok(())
    }

    fn data_begins(&mut self, data: &Transfer, data_len: usize) -> Result<(), HostError> {
        if !matches!(self.state, State::Open { .. }) {
            return Err(HostError::protocol("data before the greeting"));
        }
        let cid = data.cccid.get();
        let (offset, len) = (data.offset.get() as usize, data.length.get() as usize);
        let slot = self.slots.get(usize::from(cid)).and_then(Option::as_ref);
        let slot =
            slot.ok_or_else(|| HostError::protocol(format!("data for command {cid}, which is not in flight")))?;
        if len != data_len {
            return Err(HostError::protocol(format!("a data PDU with {data_len} bytes says that it has {len}")));
        }
        slot.accepts(offset, len)?;
        let said = data.common.flags;
        let success = said & flags::SUCCESS != 0;
        if success && said & flags::LAST == 0 {
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
        if success { self.answer(Cqe::new(cid, 0, 0, NvmeStatus::SUCCESS)) } else { Ok(()) }
    }
}

fn terminated(request: &TermReq) -> HostError {
    let (fes, information) = (request.fes.get(), u32::from_le_bytes(request.fei));
    let why = match fes {
        1 => "invalid PDU header field",
        2 => "PDU sequence error",
        3 => "header digest error",
        4 => "data transfer out of range",
        5 => "data transfer limit exceeded",
        6 => "unsupported parameter",
        _ => "unknown reason",
    };
    let kind = if fes == FatalStatus::HeaderDigest as u16 { HostErrorKind::Digest } else { HostErrorKind::Protocol };
    HostError::new(kind, format!("the target ended the connection: {why} (FES {fes}, information {information:#x})"))
}
