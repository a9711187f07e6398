//! Block status: which parts of a volume are there as data, from its shards' maps.
//!
//! The question goes to the catalog's reactor, as one of streaming or of a backup does ([`ControlRequest::Changed`]); it is about one
//! stretch of the volume, 8 MiB for each of its shards, and tells where the next stretch begins that has anything. What lies
//! between is a hole. So one question answers as much as a client mostly asks for, and never more than a bounded number of extents.

use ringway_reactor::io::Io;

use super::answer::Ready;
use super::connection::{Connection, Phase, Serving};
use super::negotiate::ALLOCATION_ID;
use super::wire::{command_flag, errno};
use super::{Cx, TransportEvent};
use crate::control::{ChangedBlocks, ChangedQuery, ControlAnswer, ControlCall, ControlErrorKind, ControlRequest};
use crate::node::message::Message;

/// Extents of one answer: what a page holds.
const EXTENTS_MAX: usize = 500;
/// Where the catalog lives.
const OWNER: usize = 0;

/// Flags of an extent.
const HOLE: u32 = 1;
const ZERO: u32 = 2;

/// An answer on its way back.
pub(super) struct Answered {
    pub(super) connection: usize,
    /// Of the connection, since another may have its place by now.
    pub(super) number: u64,
    slot: usize,
    blocks: Result<ChangedBlocks, u32>,
}

/// Extents from `offset` on, at most `len` bytes together: their lengths, and what they are.
fn extents(blocks: &ChangedBlocks, offset: u64, len: u32, one: bool) -> Vec<(u32, u32)> {
    let found = blocks.extents(offset, len.into(), if one { 1 } else { EXTENTS_MAX });
    found.into_iter().map(|(len, data)| (len as u32, if data { 0 } else { HOLE | ZERO })).collect()
}

impl Connection {
    /// Asks for what a client asks for.
    pub(super) fn ask_allocation<I: Io>(&mut self, cx: &mut Cx<'_, I>, serving: Serving, slot: usize) {
        let cursor = self.requests[slot].asked.offset;
        let query = ChangedQuery { volume: serving.volume, after: None, cursor };
        let (connection, number, answers, waker) = (self.index, self.number(), cx.answers.clone(), cx.io.waker());
        let call = ControlCall::new(ControlRequest::Changed(query), move |answer| {
            let blocks = match answer {
                Ok(ControlAnswer::Changed(blocks)) => Ok(blocks),
                Ok(other) => unreachable!("{other:?} is no answer to this"),
                Err(error) if error.kind == ControlErrorKind::NotFound => Err(errno::ESHUTDOWN),
                Err(error) => {
                    tracing::warn!(%error, "block status cannot be told");
                    Err(errno::EIO)
                }
            };
            // The reactor may have stopped.
            let _ = answers.send(Answered { connection, number, slot, blocks });
            waker.wake();
        });
        *cx.open_questions += 1;
        cx.out.push(TransportEvent::Mail { to: OWNER, message: Message::Control(call) });
    }

    /// The answer.
    pub(super) fn on_allocation<I: Io>(&mut self, cx: &mut Cx<'_, I>, answered: Answered) {
        let Phase::Open(serving) = self.phase else { return };
        let request = self.requests.remove(answered.slot);
        let asked = request.asked;
        match answered.blocks {
            Ok(blocks) => {
                let one = asked.has(command_flag::REQ_ONE);
                let mut content = ALLOCATION_ID.to_be_bytes().to_vec();
                for (len, flags) in extents(&blocks, asked.offset, asked.len, one) {
                    content.extend(len.to_be_bytes());
                    content.extend(flags.to_be_bytes());
                }
                self.say(cx, Ready::Allocation { cookie: asked.cookie, content });
            }
            Err(error) => self.say_error(cx, serving, &asked, error, None),
        }
        self.leave_if_settled(cx);
        if self.phase != Phase::Closing {
            self.resume(cx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::ChangedRange;

    const H: u32 = HOLE | ZERO;

    fn blocks(ranges: &[(u64, u64)], next: Option<u64>) -> ChangedBlocks {
        let range = |&(offset, len): &(u64, u64)| ChangedRange { offset, len, data: true };
        ChangedBlocks { ranges: ranges.iter().map(range).collect(), next }
    }

    #[test]
    fn extents_cover_what_was_asked_as_far_as_it_is_known() {
        let some = blocks(&[(0, 4096), (8192, 4096), (12288, 4096)], Some(1 << 20));
        assert_eq!(extents(&some, 0, 65536, false), [(4096, 0), (4096, H), (8192, 0), (49152, H)]);
        assert_eq!(extents(&some, 100, 10, false), [(10, 0)]);
        assert_eq!(extents(&some, 5000, 4000, false), [(3192, H), (808, 0)]);
        assert_eq!(extents(&some, 5000, 4000, true), [(3192, H)]);
        assert_eq!(extents(&some, 16384, 4 << 20, false), [((1 << 20) - 16384, H)]);
        assert_eq!(extents(&blocks(&[], None), 7, u32::MAX, false), [(u32::MAX, H)]);
        assert_eq!(extents(&blocks(&[(0, 4096)], Some(0)), 0, 8192, false), [(4096, 0), (4096, H)]);
    }

    #[test]
    fn an_answer_has_an_end_however_scattered_the_data() {
        let many: Vec<_> = (0..10_000).map(|n| (n * 8192, 4096)).collect();
        let found = extents(&blocks(&many, None), 0, u32::MAX, false);
        assert_eq!(found.len(), EXTENTS_MAX);
        assert!(found.iter().all(|&(len, _)| len == 4096));
    }
}
