//! Group commit: barrier, then journal, then answers; one round at a time.
//!
//! ```text
//! Idle -> Barrier (data of every record of the round, and of every flush that waits) -> Group* (one in flight) -> Idle
//! ```
//! A round takes the records that exist when it starts. Their data had completed before, so the barrier covers it: a record is
//! never durable before its data (C5). Who comes later waits for the next round (H1).
//!
//! Invariants: LSNs have no gaps; `durable <= kept <= last`, where `kept` survives the process and `durable` the machine;
//! `dirty` names each device with a write completed since the last barrier over it was asked for.

use std::collections::VecDeque;

use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Instant, Io, IoError};

use super::Shard;
use super::api::{Event, FileSet, RecordLog};
use super::fault;
use super::ops::{Kind, Owner};
use super::parts::{PartKey, Run, Stage};
use super::scratch::RESERVE_BYTES;
use crate::ids::Lsn;
use crate::journal::{Group, Pressure, Ring};
use crate::limits::BLOCK;
use crate::map::{NodeKey, RECORD_BYTES_MAX, Record};
use crate::request::Status;

/// Blocks of a group as we write it: it has to fit the buffer kept for it.
const GROUP_BLOCKS: u32 = (RESERVE_BYTES / BLOCK as usize) as u32;

const _: () = assert!(RECORD_BYTES_MAX <= BLOCK as usize);

/// What a change of the map is for, which decides how far into the journal's reserve it may go (H18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Maps something.
    Write,
    /// Only unmaps: a full pool must be able to shrink.
    Unmap,
}

#[derive(Debug)]
enum Round {
    Idle,
    Barrier {
        files: FileSet,
        groups: VecDeque<Group>,
    },
    /// A group is at the device, or (without `rest`) waits for journal room.
    Groups {
        groups: VecDeque<Group>,
        rest: Option<Buf>,
    },
}

#[derive(Debug)]
pub(super) struct Commit {
    pub(super) ring: Ring,
    /// Where the journal's blocks are.
    region: Run,
    open: Group,
    closed: VecDeque<Group>,
    last: Lsn,
    kept: Lsn,
    /// The crash log missed a record: nothing is added until the journal has caught up.
    gap: bool,
    /// The crash log has records of a journal's end that is lost, with numbers that are given again.
    stale_log: bool,
    pub(super) dirty: FileSet,
    round: Round,
    /// Number of the round under way, or of the last one.
    number: u64,
    waiters: VecDeque<(u64, PartKey)>,
    /// When the oldest pending record has to be on its way.
    due: Instant,
    forced: bool,
    buf: Option<Buf>,
    encoded: Vec<u8>,
}

impl Commit {
    pub(super) fn new(ring: Ring, region: Run, buf: Buf) -> Commit {
        let durable = ring.durable();
        Commit {
            ring,
            region,
            open: Group::default(),
            closed: VecDeque::new(),
            last: durable,
            kept: durable,
            gap: false,
            stale_log: false,
            dirty: FileSet::default(),
            round: Round::Idle,
            number: 0,
            waiters: VecDeque::new(),
            due: Instant::NEVER,
            forced: false,
            buf: Some(buf),
            encoded: Vec::new(),
        }
    }

    /// Records up to here survive the machine.
    pub(super) fn durable(&self) -> Lsn {
        self.ring.durable()
    }

    /// Records up to here survive the process.
    pub(super) fn kept(&self) -> Lsn {
        self.kept.max(self.durable())
    }

    /// The newest record.
    pub(super) fn last(&self) -> Lsn {
        self.last
    }

    /// A round is to run soon, whoever waits for it.
    pub(super) fn force(&mut self) {
        self.forced = true;
    }

    /// Whether a round is to start that has not, or one waits for journal room.
    pub(super) fn is_forced(&self) -> bool {
        self.forced || matches!(self.round, Round::Groups { rest: None, .. })
    }

    /// Whether no round is under way and nothing will start one but a part.
    pub(super) fn is_calm(&self) -> bool {
        matches!(self.round, Round::Idle) && !self.forced && self.waiters.is_empty() && self.due == Instant::NEVER
    }

    /// Number of the last round that has ended.
    pub(super) fn completed(&self) -> u64 {
        if matches!(self.round, Round::Idle) { self.number } else { self.number - 1 }
    }

    /// Number of the round that starts next.
    pub(super) fn next_round(&self) -> u64 {
        self.number + 1
    }

    pub(super) fn forget_waiters(&mut self) {
        self.waiters.clear();
    }

    /// Adds a record to the open group.
    pub(super) fn push(&mut self, record: &Record, due: Instant) -> Lsn {
        self.last = Lsn(self.last.0 + 1);
        if self.open.blocks() >= GROUP_BLOCKS - 1 {
            self.closed.push_back(std::mem::take(&mut self.open));
        }
        assert!(self.open.push(self.last, record), "a group with a block to spare takes any record");
        self.due = self.due.min(due);
        self.last
    }

    /// Adds a record that survived the process and is in its log still.
    pub(super) fn push_kept(&mut self, record: &Record) -> Lsn {
        let lsn = self.push(record, Instant(0));
        self.kept = lsn;
        lsn
    }

    /// What is in the crash log follows records that are lost: it goes when the next one comes.
    pub(super) fn distrust_log(&mut self) {
        self.stale_log = true;
    }

    fn pending(&self) -> bool {
        self.last > self.durable()
    }

    /// Blocks that the records made so far will take.
    fn pending_blocks(&self) -> u32 {
        let round = match &self.round {
            Round::Idle => 0,
            Round::Barrier { groups, .. } | Round::Groups { groups, .. } => groups.iter().map(Group::blocks).sum(),
        };
        let open = if self.open.is_empty() { 0 } else { self.open.blocks() };
        round + open + self.closed.iter().map(Group::blocks).sum::<u32>()
    }

    /// Whether `changes` more records may come, each in the worst case in a group of its own.
    pub(super) fn has_room(&self, changes: usize, purpose: Use) -> bool {
        let blocks = self.ring.blocks();
        let floor = match purpose {
            Use::Write => blocks / 4,
            Use::Unmap => blocks / 8,
        };
        // A group is not split by the end of the region, which may waste almost a group's worth.
        let needed = floor + self.pending_blocks() + changes as u32 + GROUP_BLOCKS;
        blocks - self.ring.used() >= needed
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.round, Round::Idle) && !self.pending() && self.dirty.is_empty() && self.waiters.is_empty()
    }

    /// When a round has to start without anybody asking.
    pub(super) fn due(&self) -> Instant {
        if matches!(self.round, Round::Idle) { self.due } else { Instant::NEVER }
    }
}

impl<L: RecordLog> Shard<L> {
    /// Makes a change of the map: a record with the next LSN, the node, and the log that survives the process (C3).
    pub(super) fn record(&mut self, record: &Record) -> Lsn {
        let due = self.now.plus_ns(self.config.commit_interval_ns);
        let lsn = self.commit.push(record, due);
        if NodeKey::of_record(record).is_some() {
            self.nodes.apply(lsn, record);
            self.watch_chain(record);
        }
        self.stats.records += 1;
        if std::mem::take(&mut self.commit.stale_log) {
            self.log.truncate(Lsn(u64::MAX));
        }
        if !self.commit.gap {
            let mut encoded = std::mem::take(&mut self.commit.encoded);
            encoded.clear();
            record.encode(&mut encoded);
            match self.log.append(lsn, &encoded) {
                Ok(()) => self.commit.kept = lsn,
                Err(_) => {
                    self.commit.gap = true;
                    self.commit.force();
                }
            }
            self.commit.encoded = encoded;
        }
        lsn
    }

    /// Whether the journal has room for `changes` records of this part; parks it if not.
    pub(super) fn journal_admits(&mut self, key: PartKey, changes: usize, purpose: Use) -> bool {
        if self.commit.has_room(changes + self.changing, purpose) {
            return true;
        }
        self.parts.at(key).stage = Stage::Parked;
        self.parked.journal.push(key);
        self.stats.waits += 1;
        self.commit.force();
        self.checkpoint.want();
        false
    }

    /// Whether the journal has room for a change that no part makes.
    pub(super) fn journal_has_room(&self, changes: usize) -> bool {
        self.commit.has_room(changes + self.changing, Use::Unmap)
    }

    pub(super) fn start_flush(&mut self, key: PartKey, out: &mut Vec<Event>) {
        let commit = &self.commit;
        let nothing_new = commit.dirty.is_empty() && commit.open.is_empty() && commit.closed.is_empty();
        match (nothing_new, &commit.round) {
            (true, Round::Idle) => self.finish(key, Status::Success, out),
            // The barrier under way was asked for after everything that has completed: it covers this flush.
            (true, _) => self.wait_for(key, self.commit.number, out),
            (false, _) => self.wait_for_round(key, out),
        }
    }

    /// The part is answered when a round that starts from now on has ended.
    pub(super) fn wait_for_round(&mut self, key: PartKey, out: &mut Vec<Event>) {
        self.wait_for(key, self.commit.number + 1, out);
    }

    fn wait_for(&mut self, key: PartKey, number: u64, out: &mut Vec<Event>) {
        if self.fault.is_some() {
            return self.finish(key, Status::WriteFault, out);
        }
        let state = self.parts.at(key);
        state.stage = Stage::Committing;
        state.stamp = Some(self.word);
        self.commit.waiters.push_back((number, key));
    }

    /// Starts a round if somebody or something waits for one.
    pub(super) fn advance_commit<I: Io>(&mut self, io: &mut I, out: &mut Vec<Event>) {
        match &self.commit.round {
            Round::Idle => {}
            Round::Groups { rest: None, .. } => return self.write_group(io, out),
            _ => return,
        }
        let waited_for = self.commit.waiters.iter().any(|&(number, _)| number > self.commit.number);
        if self.fault.is_some() || !(waited_for || self.commit.forced || self.now >= self.commit.due) {
            return;
        }
        let commit = &mut self.commit;
        commit.number += 1;
        commit.forced = false;
        commit.due = Instant::NEVER;
        let mut groups = std::mem::take(&mut commit.closed);
        if !commit.open.is_empty() {
            groups.push_back(std::mem::take(&mut commit.open));
        }
        let files = std::mem::take(&mut commit.dirty);
        if files.is_empty() {
            commit.round = Round::Groups { groups, rest: None };
            return self.write_group(io, out);
        }
        commit.round = Round::Barrier { files, groups };
        self.stats.barriers += 1;
        out.push(Event::Barrier { ticket: self.commit.number, files });
    }

    /// The barrier asked for has ended. A failure is final: what it should have covered may be lost without another word.
    pub fn on_barrier<I: Io>(&mut self, io: &mut I, ticket: u64, result: Result<(), IoError>, out: &mut Vec<Event>) {
        self.calm = false;
        let round = std::mem::replace(&mut self.commit.round, Round::Idle);
        let Round::Barrier { files, groups } = round else { panic!("no barrier was asked for") };
        assert_eq!(ticket, self.commit.number, "one barrier at a time");
        if let Err(error) = result {
            self.commit.dirty.extend(files);
            return self.fail_shard(fault::barrier(error), out);
        }
        self.commit.round = Round::Groups { groups, rest: None };
        self.write_group(io, out);
    }

    /// Writes the next group of the round, or ends it.
    fn write_group<I: Io>(&mut self, io: &mut I, out: &mut Vec<Event>) {
        let commit = &mut self.commit;
        let Round::Groups { groups, rest } = &mut commit.round else { panic!("groups follow the barrier") };
        let Some(group) = groups.front() else {
            commit.round = Round::Idle;
            return self.end_round(out);
        };
        let mut buf = commit.buf.take().expect("one group is at the device at a time");
        let left = buf.split_off(group.blocks() as usize * BLOCK as usize);
        match commit.ring.seal(group, &mut buf) {
            Ok(sealed) => {
                groups.pop_front();
                *rest = Some(left);
                let run = Run { file: commit.region.file, offset: commit.region.offset + Ring::offset(sealed.block) };
                self.stats.groups += 1;
                self.submit_write(io, Owner::Group, run, buf, Kind::DurableWrite);
            }
            Err(_) => {
                // Room was kept for every record, but the last checkpoint's has to be released first.
                buf.join(left);
                commit.buf = Some(buf);
                self.checkpoint.want();
            }
        }
    }

    /// The group is durable, or the journal is at its end.
    pub(super) fn on_group<I: Io>(&mut self, io: &mut I, mut buf: Buf, failed: bool, out: &mut Vec<Event>) {
        let commit = &mut self.commit;
        let Round::Groups { rest, .. } = &mut commit.round else { panic!("a group belongs to a round") };
        buf.join(rest.take().expect("a group is at the device"));
        commit.buf = Some(buf);
        if failed {
            commit.round = Round::Idle;
            return;
        }
        let durable = commit.ring.written();
        if commit.gap && durable >= commit.last {
            commit.gap = false;
        }
        self.log.truncate(durable);
        self.journal_changed = true;
        self.write_group(io, out);
    }

    fn end_round(&mut self, out: &mut Vec<Event>) {
        let number = self.commit.number;
        let waiters = std::mem::take(&mut self.commit.waiters);
        for (wanted, key) in waiters {
            if wanted > number {
                self.commit.waiters.push_back((wanted, key));
            } else if self.parts.get_mut(key).is_some() {
                self.finish(key, Status::Success, out);
            }
        }
    }

    /// Whether the journal wants a checkpoint.
    pub(super) fn journal_pressed(&self) -> bool {
        self.commit.ring.pressure() >= Pressure::Checkpoint
    }
}
