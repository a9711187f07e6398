//! Answers: what a request led to, as simple replies or as chunks of structured ones.
//!
//! An answer needs room for its header; without it it waits in line, with everything said after it.

use ringway_reactor::data::Data;
use ringway_reactor::io::Io;

use super::Cx;
use super::command::{Shape, Slot};
use super::connection::{Connection, Phase, Serving};
use super::wire::{self, CHUNK_BYTES, chunk};
use crate::transport::stream::Output;

/// Something to be said.
#[derive(Debug)]
pub(super) enum Ready {
    /// A simple reply, or the beginning of one with data.
    Simple { error: u32, cookie: u64 },
    /// The structured reply to a read of nothing.
    Nothing { cookie: u64 },
    /// The structured reply to what failed.
    Error { cookie: u64, error: u32, offset: Option<u64> },
    /// Data with its place.
    Chunk { done: bool, cookie: u64, offset: u64, data: Data },
    /// The beginning of a chunk whose data follows in several.
    Head { cookie: u64, offset: u64, len: u32 },
    /// Data behind a beginning.
    Data(Data),
    /// What block status was asked for: the content of its chunk.
    Allocation { cookie: u64, content: Vec<u8> },
}

/// Writes a header for which there is room.
fn put(io: &impl Io, output: &mut Output, write: impl FnOnce(&mut [u8]) -> usize) {
    assert!(output.header(io, write), "room was made");
}

impl Connection {
    /// Says it now, or when there is room.
    pub(super) fn say<I: Io>(&mut self, cx: &mut Cx<'_, I>, ready: Ready) {
        let left = if self.unsent.is_empty() { self.write(cx, ready) } else { Some(ready) };
        match left {
            None => cx.dirty.push(self.index),
            Some(ready) => {
                self.unsent.push_back(ready);
                self.starve(cx);
            }
        }
    }

    /// Says what had to wait.
    pub(super) fn say_unsent<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        while let Some(ready) = self.unsent.pop_front() {
            if let Some(ready) = self.write(cx, ready) {
                self.unsent.push_front(ready);
                return self.starve(cx);
            }
            cx.dirty.push(self.index);
        }
    }

    /// `None` once it is written; back if there is no room.
    fn write<I: Io>(&mut self, cx: &mut Cx<'_, I>, ready: Ready) -> Option<Ready> {
        if !self.output.has_room(cx.io, 1) {
            return Some(ready);
        }
        let (io, output) = (&*cx.io, &mut self.output);
        match ready {
            Ready::Simple { error, cookie } => put(io, output, |out| wire::simple(error, cookie, out)),
            Ready::Nothing { cookie } => put(io, output, |out| wire::chunk_header(true, chunk::NONE, cookie, 0, out)),
            Ready::Error { cookie, error, offset } => {
                put(io, output, |out| wire::error_chunk(cookie, error, offset, out));
            }
            Ready::Head { cookie, offset, len } => {
                put(io, output, |out| wire::data_header(true, cookie, offset, len, out));
            }
            Ready::Chunk { done, cookie, offset, data } => {
                let len = data.len() as u32;
                self.bytes_held -= data.len();
                if matches!(data, Data::Blank(_)) {
                    // Zeros that nobody has written need not be sent either.
                    put(io, output, |out| wire::hole(done, cookie, offset, len, out));
                } else {
                    put(io, output, |out| wire::data_header(done, cookie, offset, len, out));
                    output.data(data);
                }
            }
            Ready::Data(data) => {
                self.bytes_held -= data.len();
                output.data(data);
            }
            Ready::Allocation { cookie, content } => {
                let Some(mut buf) = io.buffers().get(CHUNK_BYTES + content.len()) else {
                    return Some(Ready::Allocation { cookie, content });
                };
                wire::chunk_header(true, chunk::BLOCK_STATUS, cookie, content.len() as u32, &mut buf);
                buf[CHUNK_BYTES..].copy_from_slice(&content);
                output.data(Data::Own(buf));
            }
        }
        None
    }

    /// The data of a piece of a read is here. With the last of some shapes the request is over and its slot free.
    pub(super) fn deliver<I: Io>(&mut self, cx: &mut Cx<'_, I>, slot: usize, at: u32, data: Data) {
        let request = &mut self.requests[slot];
        let asked = request.asked;
        match request.shape {
            Shape::Nothing => unreachable!("only reads have data to deliver"),
            Shape::Whole => request.early.push((at, data)),
            Shape::Chunks => {
                let done = self.is_over(slot) && self.requests[slot].failed.is_none();
                let offset = asked.offset + u64::from(at);
                self.say(cx, Ready::Chunk { done, cookie: asked.cookie, offset, data });
                if done && self.phase != Phase::Closing {
                    self.requests.remove(slot);
                    self.issuing.retain(|&queued| queued != slot);
                }
            }
            Shape::Stream => {
                let place = request.early.partition_point(|&(before, _)| before < at);
                request.early.insert(place, (at, data));
                self.stream(cx, slot);
            }
        }
    }

    /// Says as much of a read as is there without a gap.
    fn stream<I: Io>(&mut self, cx: &mut Cx<'_, I>, slot: usize) {
        loop {
            let request = &mut self.requests[slot];
            let Some(&(at, _)) = request.early.first() else { return };
            if at != request.sent {
                return;
            }
            let (_, data) = request.early.remove(0);
            request.sent += data.len() as u32;
            let cookie = request.asked.cookie;
            if !std::mem::replace(&mut request.begun, true) {
                self.say(cx, Ready::Simple { error: 0, cookie });
            }
            self.say(cx, Ready::Data(data));
        }
    }

    /// A read that is answered when all of it is there.
    pub(super) fn say_whole<I: Io>(&mut self, cx: &mut Cx<'_, I>, serving: Serving, request: Slot) {
        let (asked, mut parts) = (request.asked, request.early);
        parts.sort_unstable_by_key(|&(at, _)| at);
        let cookie = asked.cookie;
        if serving.agreed.structured {
            self.say(cx, Ready::Head { cookie, offset: asked.offset, len: asked.len });
        } else {
            self.say(cx, Ready::Simple { error: 0, cookie });
        }
        for (_, data) in parts {
            self.say(cx, Ready::Data(data));
        }
    }
}
