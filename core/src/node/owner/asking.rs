//! Questions about a volume's map, put to all of its shards and put together again: what has changed, what only one cut keeps, and
//! filling a clone.
//!
//! Range `r` of every shard of a volume together is one stretch of the volume: 8 MiB for each shard. So a question goes to all
//! shards for one range, the answers are sorted into one, and the next range is the first that any shard has something in.

use std::collections::BTreeMap;

use super::Owner;
use crate::control::{
    ChangedBlocks, ChangedQuery, ControlAnswer, ControlError, ControlErrorKind, ControlRequest, FillStep, Filled,
    HeldQuery, Reply, SnapshotSpace,
};
use crate::ids::{Epoch, ShardId, VolumeId};
use crate::limits::{CLUSTER, CLUSTERS_PER_RANGE};
use crate::node::message::Message;
use crate::request::Status;
use crate::shard::{Answer, Ask, ChangedRange};

/// Bytes of a volume that one range of one shard is.
const RANGE_BYTES: u64 = CLUSTER * CLUSTERS_PER_RANGE as u64;

/// Questions under way, by number.
#[derive(Default)]
pub(super) struct Asking {
    open: BTreeMap<u64, Question>,
    next: u64,
}

/// Who asks.
pub(super) enum Asker {
    /// A caller.
    Caller(Reply),
    /// A stream of this number, of this volume.
    Stream(VolumeId, u64),
}

struct Question {
    request: ControlRequest,
    left: usize,
    /// Bytes of the volume to a range.
    stride: u64,
    /// Where the volume ends.
    size: u64,
    range: u32,
    worst: Status,
    changed: Vec<ChangedRange>,
    unique: BTreeMap<Epoch, u64>,
    copied: u64,
    next: Option<u32>,
    asker: Asker,
}

/// Bytes of a volume on so many shards that one question is about.
pub(super) fn stretch_bytes(shards: usize) -> u64 {
    RANGE_BYTES * shards as u64
}

impl Owner {
    /// A question: to every shard of its volume. Of a fill, each shard copies about `most` bytes.
    pub(super) fn ask(&mut self, request: ControlRequest, most: u64, asker: Asker) {
        let (volume, cursor) = match request {
            ControlRequest::Changed(ChangedQuery { volume, cursor, .. })
            | ControlRequest::Fill(FillStep { volume, cursor })
            | ControlRequest::SnapshotSpace(HeldQuery { volume, cursor }) => (volume, cursor),
            ref other => unreachable!("{other:?} asks no shard"),
        };
        let known = self.publishing.directory().entry(volume);
        let Some(entry) = known else { return self.answer_asker(asker, Err(no_such_id(volume))) };
        if let Some(why) = &entry.fault {
            let what = format!("{:?} is faulted: {why}", entry.record.name);
            return self.answer_asker(asker, Err(ControlError::new(ControlErrorKind::Corrupt, what)));
        }
        let (shards, size) = (entry.record.shards.clone(), entry.record.size);
        let stride = stretch_bytes(shards.len());
        let range = (cursor / stride) as u32;
        let token = self.asking.next;
        self.asking.next += 1;
        for &shard in &shards {
            let ask = match request {
                ControlRequest::Changed(ChangedQuery { volume, after, .. }) => Ask::Changed { volume, after, range },
                ControlRequest::Fill(FillStep { volume, .. }) => Ask::Fill { volume, range, most },
                _ => Ask::Held { volume, range },
            };
            self.send_to_shard(shard, Message::Ask { shard, token, ask });
        }
        let question = Question {
            request,
            left: shards.len(),
            stride,
            size,
            range,
            worst: Status::Success,
            changed: Vec::new(),
            unique: BTreeMap::new(),
            copied: 0,
            next: None,
            asker,
        };
        self.asking.open.insert(token, question);
    }

    /// A shard's part of the answer.
    pub(super) fn answered(&mut self, _shard: ShardId, token: u64, answer: Result<Answer, Status>) {
        let question = self.asking.open.get_mut(&token).expect("shards answer what they were asked");
        question.left -= 1;
        match answer {
            Ok(answer) => question.take(answer),
            Err(status) => question.worst = question.worst.and(status),
        }
        if question.left == 0 {
            let (asker, answer) = self.asking.open.remove(&token).expect("just seen").end();
            self.answer_asker(asker, answer);
        }
    }

    fn answer_asker(&mut self, asker: Asker, answer: Result<ControlAnswer, ControlError>) {
        match asker {
            Asker::Caller(reply) => reply(answer),
            Asker::Stream(volume, number) => self.stream_filled(volume, number, answer),
        }
    }
}

impl Question {
    fn take(&mut self, answer: Answer) {
        let next = match answer {
            Answer::Changed { ranges, next } => {
                self.changed.extend(ranges);
                next
            }
            Answer::Filled { copied, next } => {
                self.copied += copied;
                next
            }
            Answer::Held { unique, next } => {
                unique.into_iter().for_each(|(cut, bytes)| *self.unique.entry(cut).or_default() += bytes);
                next
            }
        };
        self.next = self.next.into_iter().chain(next).min();
    }

    fn end(mut self) -> (Asker, Result<ControlAnswer, ControlError>) {
        if self.worst != Status::Success {
            return (self.asker, Err(refused(self.worst, &self.request)));
        }
        let next = self.next.map(|range| u64::from(range) * self.stride).filter(|&next| next < self.size);
        // A fill that was to copy no more goes on where it was.
        let fills = matches!(self.request, ControlRequest::Fill(_));
        assert!(self.next.is_none_or(|next| next > self.range || fills && next == self.range), "a walk goes on");
        self.changed.sort_unstable_by_key(|range| range.offset);
        self.changed.dedup_by(|later, first| {
            let joins = first.offset + first.len == later.offset && first.data == later.data;
            if joins {
                first.len += later.len;
            }
            joins
        });
        let answer = match self.request {
            ControlRequest::Changed(_) => ControlAnswer::Changed(ChangedBlocks { ranges: self.changed, next }),
            ControlRequest::Fill(_) => ControlAnswer::Filled(Filled { next, copied: self.copied }),
            _ => ControlAnswer::SnapshotSpace(SnapshotSpace { unique: self.unique.into_iter().collect(), next }),
        };
        (self.asker, Ok(answer))
    }
}

fn no_such_id(volume: VolumeId) -> ControlError {
    ControlError::new(ControlErrorKind::NotFound, format!("no volume or snapshot has number {volume}"))
}

fn refused(status: Status, request: &ControlRequest) -> ControlError {
    let (kind, what) = match (status, request) {
        (Status::VolumeGone, _) => (ControlErrorKind::NotFound, "the volume or snapshot is gone".to_owned()),
        (Status::VolumeFaulted, _) => (ControlErrorKind::Corrupt, "the volume or its parent is faulted".to_owned()),
        (Status::InvalidField, ControlRequest::Changed(ChangedQuery { after: Some(after), .. })) => (
            ControlErrorKind::Invalid,
            format!(
                "cut {after} is not kept any more, or is newer than what is asked about; walk the whole volume instead"
            ),
        ),
        (Status::BackendUnavailable, _) => (
            ControlErrorKind::Unavailable,
            "the backend that the clone looks through to gives nothing; `ringway backend show` says why".to_owned(),
        ),
        (Status::CapacityExceeded, _) => (
            ControlErrorKind::NoSpace,
            "the pool has no space for the copies; grow it, or remove what is not needed".to_owned(),
        ),
        (other, _) => (ControlErrorKind::Internal, format!("a shard could not answer: {other:?}")),
    };
    ControlError::new(kind, what)
}
