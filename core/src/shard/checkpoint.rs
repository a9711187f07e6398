//! Checkpoints: dirty map nodes to new pages, then an image of page table and bitmaps, then the header; only then is anything
//! released (C8).
//!
//! ```text
//! Idle -> Nodes <-> Pages (a batch, when the journal is durable up to its newest change) -> Chunks -> Sync (a commit round) -> Header -> Idle
//! ```
//! I/O goes on throughout. What changes meanwhile is in the journal after the replay start, and replay is idempotent. Two
//! checkpoints are kept: pages, chunks and journal that the last but one names are released when a new header is durable (H14).
//!
//! Invariants: at most one buffer is in use, whatever there is to write; a failed attempt releases nothing but what it took itself.

use std::collections::VecDeque;

use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Instant, Io};

use super::Shard;
use super::api::{Event, RecordLog};
use super::nodes::Readiness;
use super::ops::{Kind, Owner};
use super::parts::Run;
use crate::checkpoint::{CHUNK_BYTES_MAX, CHUNKS_MAX, CheckpointHeader, ChunkRef, Chunks, HEADER_BYTES, encode_image};
use crate::ids::Lsn;
use crate::journal::Position;
use crate::map::{NodeKey, NodePages, PAGE_BYTES, PageRef, encode_node};
use crate::space::Place;

/// After a failed attempt, nanoseconds.
const RETRY_NS: u64 = 100_000_000;
/// Attempts that may fail one after the other before the shard takes no more writes: the journal would fill up anyway.
const ATTEMPTS_MAX: u32 = 5;
/// Pages of a batch.
const BATCH_PAGES: usize = CHUNK_BYTES_MAX / PAGE_BYTES;

/// What the last two durable checkpoints hold on to.
#[derive(Debug)]
pub(super) struct Roots {
    /// Of the last.
    pub(super) generation: u64,
    /// Where replay from the last starts.
    pub(super) start: Position,
    pub(super) chunks: Vec<Place>,
    /// Chunks of the last but one.
    pub(super) chunks_before: Vec<Place>,
    /// Pages that only the last but one names.
    pub(super) pages_before: Vec<Place>,
}

#[derive(Debug)]
struct Batch {
    nodes: Vec<(NodeKey, Vec<PageRef>)>,
    bytes: Vec<u8>,
    places: Vec<Place>,
    /// Pages written.
    done: usize,
    lsn: Lsn,
}

/// What will be in the header.
#[derive(Debug)]
struct Draft {
    start: Position,
    image_bytes: u64,
    /// The newest record that pages and image have whole.
    covers: Lsn,
    level: u16,
    /// Chunks of this level so far.
    refs: Vec<ChunkRef>,
    /// Clusters of all levels.
    places: Vec<Place>,
}

#[derive(Debug)]
enum Step {
    Idle,
    /// Gathers the next batch.
    Nodes,
    /// Writes it.
    Pages(Batch),
    /// Writes the image, chunk by chunk.
    Chunks {
        chunks: Chunks,
        draft: Draft,
    },
    /// Waits for the end of this commit round, whose barrier covers pages and chunks.
    Sync {
        draft: Draft,
        round: u64,
    },
    Header {
        draft: Draft,
    },
}

#[derive(Debug)]
pub(super) struct Checkpoint {
    wanted: bool,
    retry_at: Instant,
    failures: u32,
    failed: bool,
    step: Step,
    todo: VecDeque<NodeKey>,
    /// Pages replaced since the last durable header, which it names.
    replaced: Vec<Place>,
    /// Where the headers are.
    headers: Run,
    pub(super) roots: Roots,
    buf: Option<Buf>,
    pieces: Vec<Option<Buf>>,
    outstanding: usize,
    /// The newest record as of the last durable header.
    covered: Lsn,
}

impl Checkpoint {
    pub(super) fn new(headers: Run, roots: Roots, covered: Lsn, buf: Buf) -> Checkpoint {
        Checkpoint {
            wanted: false,
            retry_at: Instant(0),
            failures: 0,
            failed: false,
            step: Step::Idle,
            todo: VecDeque::new(),
            replaced: Vec::new(),
            headers,
            roots,
            buf: Some(buf),
            pieces: Vec::new(),
            outstanding: 0,
            covered,
        }
    }

    /// One is to be made soon.
    pub(super) fn want(&mut self) {
        self.wanted = true;
    }

    pub(super) fn is_running(&self) -> bool {
        !matches!(self.step, Step::Idle)
    }

    /// Whether one is under way and has nothing at the device.
    pub(super) fn is_between_steps(&self) -> bool {
        self.is_running() && self.outstanding == 0
    }

    /// The newest record that the last checkpoint has.
    pub(super) fn covered(&self) -> Lsn {
        self.covered
    }

    /// A node that the checkpoint may be waiting for cannot be loaded: its page stays as it is.
    pub(super) fn load_failed(&mut self, key: NodeKey) {
        self.todo.retain(|&other| other != key);
    }

    pub(super) fn due(&self) -> Instant {
        if self.wanted && matches!(self.step, Step::Idle) { self.retry_at } else { Instant::NEVER }
    }

    /// Every page and chunk that a durable checkpoint or the one under way has, besides those in the page table.
    pub(super) fn held(&self) -> (Vec<Place>, Vec<Place>) {
        let mut pages: Vec<Place> = self.replaced.iter().chain(&self.roots.pages_before).copied().collect();
        let mut chunks: Vec<Place> = self.roots.chunks.iter().chain(&self.roots.chunks_before).copied().collect();
        match &self.step {
            Step::Pages(batch) => pages.extend(&batch.places),
            Step::Chunks { draft, .. } | Step::Sync { draft, .. } | Step::Header { draft } => {
                chunks.extend(&draft.places);
            }
            Step::Idle | Step::Nodes => {}
        }
        (pages, chunks)
    }
}

impl<L: RecordLog> Shard<L> {
    /// Goes as far as it can without waiting.
    pub(super) fn advance_checkpoint<I: Io>(&mut self, io: &mut I, out: &mut Vec<Event>) {
        if self.checkpoint.outstanding > 0 || self.fault.is_some() {
            return;
        }
        match &self.checkpoint.step {
            Step::Idle => {
                if self.journal_pressed() {
                    self.checkpoint.wanted = true;
                }
                if !self.checkpoint.wanted || self.now < self.checkpoint.retry_at {
                    return;
                }
                self.checkpoint.wanted = false;
                let mut todo: Vec<NodeKey> = self.nodes.dirty().map(|(key, _)| key).collect();
                todo.sort_unstable();
                self.checkpoint.todo = todo.into();
                self.checkpoint.step = Step::Nodes;
                self.gather(io, out);
            }
            Step::Nodes => self.gather(io, out),
            Step::Pages(batch) => {
                if batch.lsn > self.commit.durable() {
                    self.commit.force();
                } else {
                    self.write_pages(io);
                }
            }
            Step::Sync { round, .. } => {
                if self.commit.completed() >= *round {
                    self.write_header(io);
                } else {
                    self.commit.force();
                }
            }
            Step::Chunks { .. } | Step::Header { .. } => {}
        }
    }

    /// Encodes the next nodes as they are now.
    fn gather<I: Io>(&mut self, io: &mut I, out: &mut Vec<Event>) {
        let generation = self.checkpoint.roots.generation + 1;
        let mut batch = Batch { nodes: Vec::new(), bytes: Vec::new(), places: Vec::new(), done: 0, lsn: Lsn(0) };
        while batch.places.len() < BATCH_PAGES {
            let Some(&key) = self.checkpoint.todo.front() else { break };
            match self.require(io, key) {
                Readiness::Ready => {}
                Readiness::Loading => break,
                Readiness::Full => {
                    // Nodes that are here become clean and make room, wherever they stand in line.
                    let nodes = &self.nodes;
                    let is_here = |key: NodeKey| nodes.get(key).is_some();
                    if let Some(here) = self.checkpoint.todo.iter().position(|&other| is_here(other)) {
                        self.checkpoint.todo.swap(0, here);
                        continue;
                    }
                    // Those in the way have become dirty since the line was formed. Who is being written gets clean by itself.
                    let in_the_way = nodes.dirty().map(|(key, _)| key).find(|&key| is_here(key));
                    let Some(in_the_way) = in_the_way.filter(|_| batch.nodes.is_empty()) else { break };
                    self.checkpoint.todo.push_front(in_the_way);
                    continue;
                }
            }
            self.checkpoint.todo.pop_front();
            let node = self.nodes.get_mut(key).expect("it is ready");
            if node.first_dirty().is_none() {
                continue;
            }
            node.begin_write();
            batch.lsn = batch.lsn.max(node.last_lsn());
            let pages = if node.is_empty() { 0 } else { node.page_count() };
            let mut refs = Vec::with_capacity(pages);
            for nth in 0..pages {
                let Ok(place) = self.space.alloc_page() else {
                    batch.nodes.push((key, refs));
                    return self.abandon(batch, out);
                };
                batch.places.push(place);
                let at = batch.bytes.len();
                batch.bytes.resize(at + PAGE_BYTES, 0);
                let node = self.nodes.get(key).expect("it is ready");
                let crc = encode_node(node, nth, generation, self.seed, &mut batch.bytes[at..]);
                refs.push(PageRef { place, crc });
            }
            batch.nodes.push((key, refs));
        }
        if !batch.nodes.is_empty() {
            self.checkpoint.step = Step::Pages(batch);
            self.advance_checkpoint(io, out);
        } else if self.checkpoint.todo.is_empty() {
            self.begin_image(io, out);
        }
    }

    /// Sends the next pages of the batch that fit the buffer.
    fn write_pages<I: Io>(&mut self, io: &mut I) {
        let Step::Pages(batch) = &mut self.checkpoint.step else { panic!("pages of a batch") };
        let places = &batch.places[batch.done..];
        let count = places.len().min(BATCH_PAGES);
        if count == 0 {
            return self.end_batch();
        }
        let mut runs: Vec<(Run, usize)> = Vec::new();
        for place in &places[..count] {
            let (file, offset) = (u16::from(place.device()), place.offset());
            match runs.last_mut() {
                Some((run, len)) if run.file == file && run.offset + *len as u64 == offset => *len += PAGE_BYTES,
                _ => runs.push((Run { file, offset }, PAGE_BYTES)),
            }
        }
        let mut buf = self.checkpoint.buf.take().expect("the buffer is not at the device");
        let from = batch.done * PAGE_BYTES;
        buf[..count * PAGE_BYTES].copy_from_slice(&batch.bytes[from..from + count * PAGE_BYTES]);
        batch.done += count;
        self.checkpoint.outstanding = runs.len();
        self.checkpoint.pieces.clear();
        self.checkpoint.pieces.resize_with(runs.len(), || None);
        for (nth, (run, len)) in runs.into_iter().enumerate() {
            let rest = buf.split_off(len);
            self.submit_write(io, Owner::Checkpoint { nth: nth as u32 }, run, buf, Kind::Write);
            buf = rest;
        }
        self.checkpoint.pieces.push(Some(buf));
    }

    /// An operation of the checkpoint came back.
    pub(super) fn on_checkpoint_op<I: Io>(
        &mut self,
        io: &mut I,
        nth: u32,
        buf: Buf,
        failed: bool,
        out: &mut Vec<Event>,
    ) {
        let checkpoint = &mut self.checkpoint;
        checkpoint.pieces[nth as usize] = Some(buf);
        checkpoint.outstanding -= 1;
        checkpoint.failed |= failed;
        if checkpoint.outstanding > 0 {
            return;
        }
        let mut pieces = checkpoint.pieces.drain(..).map(|piece| piece.expect("nothing is at the device"));
        let mut whole = pieces.next().expect("there is a buffer");
        pieces.for_each(|piece| whole.join(piece));
        checkpoint.buf = Some(whole);
        let failed = std::mem::take(&mut checkpoint.failed);
        match std::mem::replace(&mut checkpoint.step, Step::Nodes) {
            Step::Pages(batch) if failed => self.abandon(batch, out),
            Step::Pages(batch) => {
                checkpoint.step = Step::Pages(batch);
                self.write_pages(io);
            }
            Step::Chunks { draft, .. } if failed => self.abandon_chunks(&draft.places, out),
            Step::Chunks { chunks, draft } => self.next_chunk(io, chunks, draft, out),
            // It may be on the device all the same, so nothing it names may be used for anything else.
            Step::Header { .. } if failed => self.fail_shard("a checkpoint header could not be written".into(), out),
            Step::Header { draft } => self.end_checkpoint(draft),
            Step::Idle | Step::Nodes | Step::Sync { .. } => unreachable!("these have nothing at the device"),
        }
    }

    /// The pages are written: the page table names them, and the nodes are clean.
    fn end_batch(&mut self) {
        let Step::Pages(batch) = std::mem::replace(&mut self.checkpoint.step, Step::Nodes) else { panic!("a batch") };
        let generation = self.checkpoint.roots.generation + 1;
        for (key, refs) in batch.nodes {
            let before = if refs.is_empty() {
                self.nodes.table.remove(key)
            } else {
                self.nodes.table.insert(key, NodePages::new(generation, refs))
            };
            self.checkpoint.replaced.extend(before.iter().flat_map(NodePages::iter).map(|page| page.place));
            self.nodes.get_mut(key).expect("a dirty node stays").end_write(true);
            self.nodes.forget(key);
        }
        self.nodes_changed = true;
    }

    fn abandon(&mut self, batch: Batch, out: &mut Vec<Event>) {
        for (key, _) in batch.nodes {
            self.nodes.get_mut(key).expect("a dirty node stays").end_write(false);
        }
        for place in batch.places {
            self.space.free_page(place);
        }
        self.attempt_failed(out);
    }

    fn abandon_chunks(&mut self, chunks: &[Place], out: &mut Vec<Event>) {
        for &chunk in chunks {
            self.space.free_chunk(chunk);
        }
        self.attempt_failed(out);
    }

    fn attempt_failed(&mut self, out: &mut Vec<Event>) {
        let checkpoint = &mut self.checkpoint;
        checkpoint.step = Step::Idle;
        checkpoint.wanted = true;
        checkpoint.retry_at = self.now.plus_ns(RETRY_NS);
        checkpoint.failures += 1;
        if checkpoint.failures == ATTEMPTS_MAX {
            self.fail_shard(format!("{ATTEMPTS_MAX} checkpoints one after the other could not be written"), out);
        }
    }

    /// Takes the image: from here on replay starts at the first change that no page has.
    fn begin_image<I: Io>(&mut self, io: &mut I, out: &mut Vec<Event>) {
        // The image leaves out what is not durable as of the last reclaim: let that be now.
        self.reclaim();
        let durable = self.commit.durable();
        let first = self.nodes.dirty().map(|(_, lsn)| lsn).fold(Lsn(durable.0 + 1), Lsn::min);
        let start = self.commit.ring.position_of(first);
        self.look_at_replayed();
        let tidied = self.background.tidied_durably(durable);
        let stream = encode_image(&self.nodes.table, &self.space.image(), &self.mapped.durable(durable), &tidied);
        let generation = self.checkpoint.roots.generation + 1;
        let chunks = Chunks::image(stream, self.id, generation, self.seed);
        let image_bytes = chunks.stream_bytes();
        let draft = Draft { start, image_bytes, covers: durable, level: 0, refs: Vec::new(), places: Vec::new() };
        self.next_chunk(io, chunks, draft, out);
    }

    /// Writes the next chunk, or goes on to the commit round that makes them all durable.
    fn next_chunk<I: Io>(&mut self, io: &mut I, mut chunks: Chunks, mut draft: Draft, out: &mut Vec<Event>) {
        if draft.refs.len() == chunks.count() {
            if draft.refs.len() <= CHUNKS_MAX {
                let round = self.commit.next_round();
                self.commit.force();
                self.checkpoint.step = Step::Sync { draft, round };
                return;
            }
            chunks = Chunks::index(&chunks, &draft.refs);
            draft.refs.clear();
            draft.level = chunks.level();
        }
        let Ok(place) = self.space.alloc_chunk() else { return self.abandon_chunks(&draft.places, out) };
        draft.places.push(place);
        let nth = draft.refs.len();
        let run = Run { file: u16::from(place.device()), offset: place.offset() };
        let mut buf = self.checkpoint.buf.take().expect("the buffer is not at the device");
        let rest = buf.split_off(chunks.bytes(nth));
        draft.refs.push(chunks.encode(nth, place, &mut buf));
        self.checkpoint.outstanding = 1;
        self.checkpoint.pieces.extend([None, Some(rest)]);
        self.checkpoint.step = Step::Chunks { chunks, draft };
        self.submit_write(io, Owner::Checkpoint { nth: 0 }, run, buf, Kind::Write);
    }

    /// Everything that the header names is durable: now the header.
    fn write_header<I: Io>(&mut self, io: &mut I) {
        let Step::Sync { draft, .. } = std::mem::replace(&mut self.checkpoint.step, Step::Idle) else {
            panic!("synced")
        };
        let header = CheckpointHeader {
            generation: self.checkpoint.roots.generation + 1,
            boot: self.generation,
            start: draft.start,
            level: draft.level,
            image_bytes: draft.image_bytes,
            chunks: draft.refs.clone(),
        };
        let mut buf = self.checkpoint.buf.take().expect("the buffer is not at the device");
        let rest = buf.split_off(HEADER_BYTES);
        header.encode(self.id, self.seed, &mut buf);
        let Run { file, offset } = self.checkpoint.headers;
        self.checkpoint.outstanding = 1;
        self.checkpoint.pieces.extend([None, Some(rest)]);
        self.checkpoint.step = Step::Header { draft };
        let run = Run { file, offset: offset + header.slot() };
        self.submit_write(io, Owner::Checkpoint { nth: 0 }, run, buf, Kind::DurableWrite);
    }

    /// The new header is durable: what only the last but one named goes.
    fn end_checkpoint(&mut self, draft: Draft) {
        let replaced = std::mem::take(&mut self.checkpoint.replaced);
        let roots = &mut self.checkpoint.roots;
        for page in std::mem::replace(&mut roots.pages_before, replaced) {
            self.space.free_page(page);
        }
        let before = std::mem::replace(&mut roots.chunks, draft.places);
        for chunk in std::mem::replace(&mut roots.chunks_before, before) {
            self.space.free_chunk(chunk);
        }
        // The tail may go as far as the header before the new one still needs.
        self.commit.ring.release(roots.start);
        if roots.start == draft.start {
            // It released nothing; another one at once would not either.
            self.checkpoint.retry_at = self.now.plus_ns(RETRY_NS);
        }
        let roots = &mut self.checkpoint.roots;
        roots.start = draft.start;
        roots.generation += 1;
        self.checkpoint.covered = draft.covers;
        self.checkpoint.failures = 0;
        self.checkpoint.step = Step::Idle;
        self.stats.checkpoints += 1;
        (self.journal_changed, self.nodes_changed, self.space_changed) = (true, true, true);
    }
}
