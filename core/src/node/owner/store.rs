//! The catalog on its device: one change at a time, durable in both copies.
//!
//! A change whose writing failed may be durable in one copy. Before anything else is written it is made void: the state without
//! it goes into the other half, in both copies (history C14). Where that fails too, nothing is written any more.

use std::collections::VecDeque;

use ringway_reactor::io::{Completion, FileId, Instant, Io, IoError, Op, Token};

use crate::catalog::{AppendError, CatalogLog, CatalogRecord, CatalogState, Frame};
use crate::tokens;

/// How soon a write that found no free buffer is tried again.
const RETRY_NS: u64 = 1_000_000;

/// Where the catalog lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatalogPlace {
    /// The device of both copies.
    pub file: FileId,
    /// Bytes from its start to each.
    pub copies: [u64; 2],
}

/// A change on its way.
struct Writing {
    records: Vec<CatalogRecord>,
    /// Frames not yet written, in order.
    frames: VecDeque<Frame>,
    /// Whether `frames` ends with the records themselves; before that comes a compaction.
    appended: bool,
    /// Copies of the first frame at the device.
    outstanding: usize,
    /// When its first frame was submitted.
    began: Option<Instant>,
    /// Why a copy of the frame could not be written.
    failed: Option<String>,
    /// It is there to make a change void whose writing failed for this reason.
    voids: Option<String>,
}

/// The catalog's state, and its log.
pub struct Store {
    state: CatalogState,
    log: CatalogLog,
    place: CatalogPlace,
    writing: Option<Writing>,
    result: Option<Result<(), String>>,
    retry_at: Instant,
    fault: Option<String>,
    /// When the change that has ended began.
    began: Option<Instant>,
    /// How long the last changes took.
    durations: Durations,
}

/// What writes of the catalog took lately.
#[derive(Debug, Default)]
struct Durations {
    last: VecDeque<u64>,
    p99: u64,
}

impl Durations {
    const KEPT: usize = 128;
    /// Before anything is known: a slow disk's.
    const UNKNOWN_NS: u64 = 5_000_000;

    fn add(&mut self, ns: u64) {
        if self.last.len() == Self::KEPT {
            self.last.pop_front();
        }
        self.last.push_back(ns);
        let mut sorted: Vec<_> = self.last.iter().copied().collect();
        sorted.sort_unstable();
        self.p99 = sorted[(sorted.len() - 1) * 99 / 100];
    }

    fn p99(&self) -> u64 {
        if self.last.is_empty() { Self::UNKNOWN_NS } else { self.p99 }
    }
}

impl Store {
    /// A catalog that was recovered, its repairs durable.
    #[must_use]
    pub fn new(state: CatalogState, log: CatalogLog, place: CatalogPlace) -> Self {
        Self {
            state,
            log,
            place,
            writing: None,
            result: None,
            retry_at: Instant::NEVER,
            fault: None,
            began: None,
            durations: Durations::default(),
        }
    }

    /// What exists, durably.
    #[must_use]
    pub fn state(&self) -> &CatalogState {
        &self.state
    }

    /// Why it takes no more changes.
    pub(super) fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Whether the next change may come.
    pub(super) fn is_idle(&self) -> bool {
        self.writing.is_none() && self.result.is_none()
    }

    /// Whether another volume with a record of this many bytes fits.
    pub(super) fn has_room(&self, volume: &CatalogRecord) -> bool {
        let mut bytes = Vec::new();
        volume.encode(&mut bytes);
        self.log.has_room_for_volume(&self.state, bytes.len())
    }

    /// Begins a change. All of its records take effect, or none.
    pub(super) fn write(&mut self, records: Vec<CatalogRecord>) {
        assert!(self.is_idle() && self.fault.is_none(), "one change at a time, and none after a failure");
        self.writing = Some(Writing {
            records,
            frames: VecDeque::new(),
            appended: false,
            outstanding: 0,
            began: None,
            failed: None,
            voids: None,
        });
    }

    /// The outcome of the change, once.
    pub(super) fn take_result(&mut self, now: Instant) -> Option<Result<(), String>> {
        if let Some(began) = self.began.take() {
            self.durations.add(now.since_ns(began));
        }
        self.result.take()
    }

    /// What a change takes, with one exception in a hundred.
    pub(super) fn write_p99_ns(&self) -> u64 {
        self.durations.p99()
    }

    /// Submits what is to be written next.
    pub(super) fn advance<I: Io>(&mut self, io: &mut I) {
        let Some(writing) = &mut self.writing else { return };
        if writing.outstanding > 0 {
            return;
        }
        if writing.frames.is_empty() && !writing.appended {
            match self.log.append(&writing.records) {
                Ok(frame) => {
                    writing.frames.push_back(frame);
                    writing.appended = true;
                }
                Err(AppendError::NeedsCompaction) => match self.log.compact(&self.state) {
                    Ok(frames) => writing.frames.extend(frames),
                    Err(error) => return self.fail(error.to_string()),
                },
                Err(error @ AppendError::Full { .. }) => return self.fail(error.to_string()),
            }
        }
        let frame = writing.frames.front().expect("filled above");
        let bufs: Vec<_> = (0..2).map_while(|_| io.buffers().get(frame.bytes.len())).collect();
        let Ok(bufs) = <[_; 2]>::try_from(bufs) else {
            self.retry_at = io.now().plus_ns(RETRY_NS);
            return;
        };
        self.retry_at = Instant::NEVER;
        for (copy, mut buf) in bufs.into_iter().enumerate() {
            buf.copy_from_slice(&frame.bytes);
            let offset = self.place.copies[copy] + frame.offset;
            let token = Token(u64::from(tokens::CATALOG) << 56 | copy as u64);
            io.submit(token, Op::Write { file: self.place.file, offset, data: buf.into(), durable: true });
        }
        writing.outstanding = 2;
        writing.began.get_or_insert(io.now());
    }

    /// A write ended.
    pub(super) fn on_completion(&mut self, completion: &Completion) {
        let writing = self.writing.as_mut().expect("a write belongs to a change");
        writing.outstanding -= 1;
        if let Err(error) = completion.result {
            let copy = if completion.token.0 & 1 == 0 { "first" } else { "second" };
            writing.failed.get_or_insert(write_error(copy, error));
        }
        if writing.outstanding > 0 {
            return;
        }
        if let Some(why) = writing.failed.take() {
            return self.make_void(why);
        }
        writing.frames.pop_front();
        if writing.frames.is_empty() && writing.appended {
            let writing = self.writing.take().expect("just seen");
            if let Some(why) = writing.voids {
                self.result = Some(Err(why));
                return;
            }
            self.began = writing.began;
            for record in &writing.records {
                self.state.apply(record).expect("a change is checked before it is written");
            }
            self.result = Some(Ok(()));
        }
    }

    /// A frame is not durable in both copies, and may be in one. Nothing else is written before it is void.
    fn make_void(&mut self, why: String) {
        let writing = self.writing.take().expect("a write failed");
        // A compaction that failed has put nothing in doubt, and the half it came from is the only whole one.
        if writing.voids.is_some() || !writing.appended {
            return self.fail(why);
        }
        match self.log.compact(&self.state) {
            Ok(frames) => {
                let (frames, voids) = (frames.into(), Some(why));
                self.writing = Some(Writing { frames, appended: true, voids, failed: None, ..writing });
            }
            Err(error) => self.fail(format!("{why}; making it void: {error}")),
        }
    }

    fn fail(&mut self, why: String) {
        self.writing = None;
        self.fault = Some(why.clone());
        self.result = Some(Err(why));
    }

    pub(super) fn busy(&self) -> bool {
        self.result.is_some()
            || self.writing.as_ref().is_some_and(|writing| writing.outstanding == 0) && self.retry_at == Instant::NEVER
    }

    pub(super) fn next_deadline(&self) -> Instant {
        self.retry_at
    }
}

fn write_error(copy: &str, error: IoError) -> String {
    format!("writing its {copy} copy: {error}")
}
