//! The load loop: one thread, one ring, one host; polls, judges what ended, issues what is next.

use std::ops::ControlFlow;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use ringway_core::host::{Completed, Event, HostError, HostErrorKind, HostRequest, Namespace, Outcome};
use ringway_core::request::Command;
use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Completion, Instant, Io, Wait};

use super::block::{Stamp, classify, fill};
use super::config::{Limit, LoadConfig};
use super::line::Line;
use super::oracle::{Covered, Oracle, Promise};
use super::pattern::{Source, Step};
use super::progress::{Progress, Snapshot, Stage};
use super::report::LoadReport;
use super::stats::Stats;
use super::{LoadError, region};

/// Between two snapshots.
const TELL_NS: u64 = 100_000_000;
/// How long the host may go without a turn while nothing arrives.
const LOOK_NS: u64 = 20_000;
/// So many failures without one success end a run.
const FAILURES_MAX: u64 = 10_000;

/// One operation in flight.
#[derive(Debug)]
struct InFlight {
    step: Step,
    block: u64,
    sequence: u64,
    issued: Instant,
    covered: Option<Covered>,
}

/// A place for an operation.
#[derive(Debug)]
struct Lane {
    buf: Option<Buf>,
    work: Option<InFlight>,
}

/// One run.
pub(super) struct Run<'a, I: Io> {
    pub(super) io: I,
    pub(super) host: Line,
    pub(super) config: &'a LoadConfig,
    progress: &'a mut dyn Progress,
    pub(super) oracle: Option<Oracle>,
    pub(super) stats: Stats,
    source: Source,
    lanes: Vec<Lane>,
    idle: Vec<u32>,
    busy: Vec<u64>,
    pub(super) region: region::Region,
    completions: Vec<Completion>,
    stage: Stage,
    begun: Instant,
    told: Instant,
    told_operations: u64,
    next_issue: Instant,
    /// Something was submitted that no turn of the host has seen.
    issued: bool,
    /// When the host wants its turn although nothing arrives.
    due: Instant,
    stopped: bool,
    failures_in_a_row: u64,
    pub(super) swept: u64,
    sweep_at: u64,
    sweep_until: u64,
}

impl<'a, I: Io> Run<'a, I> {
    /// Connects and lays the run out.
    pub(super) fn begin(
        mut io: I,
        mut host: Line,
        config: &'a LoadConfig,
        seed: u64,
        progress: &'a mut dyn Progress,
    ) -> Result<Self, LoadError> {
        host.start(&mut io);
        let mut completions = Vec::new();
        let namespace = connect(&mut io, &mut host, &mut completions, progress)?;
        let region = region::Region::of(config, &namespace)?;
        let oracle = region.oracle(config, &namespace, seed)?;
        let mut noise = SmallRng::seed_from_u64(seed);
        let lanes = (0..config.depth).map(|_| {
            let mut buf = io.buffers().get(config.block_bytes as usize);
            // What is not stamped is written so: zeros would cost whoever stores it nothing.
            buf.iter_mut().for_each(|buf| noise.fill_bytes(buf));
            Lane { buf, work: None }
        });
        let lanes: Vec<Lane> = lanes.collect();
        if lanes.iter().any(|lane| lane.buf.is_none()) {
            let (depth, bytes) = (config.depth, config.block_bytes);
            return Err(LoadError::Config(format!(
                "no buffers for {depth} operations of {bytes} bytes; try a lower depth"
            )));
        }
        let begun = io.now_precise();
        Ok(Self {
            source: Source::new(seed, config.pattern, config.mix, region.blocks),
            idle: (0..config.depth).rev().collect(),
            busy: vec![0; (region.blocks as usize).div_ceil(64)],
            io,
            host,
            config,
            progress,
            oracle,
            stats: Stats::new(),
            lanes,
            region,
            completions,
            stage: Stage::Loading,
            begun,
            told: begun,
            told_operations: 0,
            next_issue: begun,
            issued: true,
            due: Instant(0),
            stopped: false,
            failures_in_a_row: 0,
            swept: 0,
            sweep_at: 0,
            sweep_until: 0,
        })
    }

    /// What came out.
    pub(super) fn report(self, seed: u64) -> LoadReport {
        self.stats.report(self.config, seed, self.swept)
    }

    /// Load, last flush, sweep.
    pub(super) fn all(&mut self) -> Result<(), LoadError> {
        if self.config.limit.is_some() {
            self.load()?;
            if self.config.verify.enabled && self.config.mix.changes_data() {
                self.flush()?;
            }
        }
        if let (Some(promise), true) = (self.config.verify.sweep, self.oracle.is_some()) {
            self.sweep(promise)?;
        }
        self.host.close(&mut self.io);
        while !self.host.is_over() {
            let until = Wait::Until(self.io.now().plus_ns(TELL_NS));
            self.host.poll(&mut self.io, until, &mut self.completions);
            self.completions.drain(..).for_each(|completion| self.host.on_completion(&mut self.io, completion));
            self.host.turn(&mut self.io);
        }
        Ok(())
    }

    fn load(&mut self) -> Result<(), LoadError> {
        self.stats.begin(self.config);
        self.begun = self.io.now_precise();
        (self.told, self.next_issue) = (self.begun, self.begun);
        loop {
            let over = self.stopped || self.limit_reached();
            if over && self.idle.len() == self.lanes.len() {
                break;
            }
            if !over {
                self.issue_all()?;
            }
            self.turn(Promise::Acknowledged)?;
            self.tell();
        }
        let now = self.io.now_precise();
        self.stats.end(Duration::from_nanos(now.since_ns(self.begun)), self.config);
        Ok(())
    }

    fn limit_reached(&self) -> bool {
        match self.config.limit {
            None => true,
            Some(Limit::Time(time)) => self.io.now().since_ns(self.begun) >= time.as_nanos() as u64,
            Some(Limit::Operations(count)) => self.stats.ended + (self.lanes.len() - self.idle.len()) as u64 >= count,
        }
    }

    /// One turn: everything that has arrived is applied, everything issued goes out.
    fn turn(&mut self, promise: Promise) -> Result<(), LoadError> {
        if std::mem::take(&mut self.issued) {
            self.host.flush(&mut self.io);
        }
        let wait = if self.config.polling { Wait::No } else { Wait::Until(self.wake_at()) };
        self.host.poll(&mut self.io, wait, &mut self.completions);
        if self.completions.is_empty() && !self.host.has_event() && self.io.now() < self.due {
            return Ok(());
        }
        let mut completions = std::mem::take(&mut self.completions);
        completions.drain(..).for_each(|completion| self.host.on_completion(&mut self.io, completion));
        self.completions = completions;
        self.host.turn(&mut self.io);
        // At the latest a little later: what waits for a buffer is no event.
        self.due = self.host.next_deadline().min(self.io.now().plus_ns(LOOK_NS));
        while let Some(event) = self.host.next_event() {
            self.on_event(event, promise)?;
        }
        Ok(())
    }

    fn wake_at(&self) -> Instant {
        let mut at = self.host.next_deadline().min(self.told.plus_ns(TELL_NS));
        if self.stage == Stage::Loading {
            if self.config.rate.is_some() && !self.idle.is_empty() {
                at = at.min(self.next_issue);
            }
            if let Some(Limit::Time(time)) = self.config.limit {
                at = at.min(self.begun.plus_ns(time.as_nanos() as u64).max(self.io.now().plus_ns(1_000_000)));
            }
        }
        at
    }

    fn on_event(&mut self, event: Event, promise: Promise) -> Result<(), LoadError> {
        match event {
            Event::Completed(completed) => self.on_completed(completed, promise)?,
            Event::Lost(error) => {
                self.stats.lost(&error);
                if self.stage == Stage::Loading {
                    self.stage = Stage::Waiting;
                }
            }
            Event::Reconnected { resent, outage } => {
                self.stats.reconnected(resent as u64, outage);
                if self.stage == Stage::Waiting {
                    self.stage = Stage::Loading;
                }
            }
            Event::Failed(error) => return Err(LoadError::Host(error)),
            Event::Ready(_) | Event::Resized(_) | Event::Closed => {}
        }
        Ok(())
    }

    fn issue_all(&mut self) -> Result<(), LoadError> {
        while let Some(&lane) = self.idle.last() {
            if self.limit_reached() {
                return Ok(());
            }
            if let Some(rate) = self.config.rate {
                let now = self.io.now();
                if now < self.next_issue {
                    return Ok(());
                }
                // What was missed in an outage is not made up for.
                let due = if now.since_ns(self.next_issue) > TELL_NS { now } else { self.next_issue };
                self.next_issue = due.plus_ns(1_000_000_000 / rate);
            }
            let step = self.source.step();
            let block = match step {
                Step::Flush => 0,
                _ => match self.free_block() {
                    Some(block) => block,
                    None => return Ok(()),
                },
            };
            self.idle.pop();
            self.issue(lane, step, block)?;
        }
        Ok(())
    }

    /// A block on which nothing is in flight: overlapping operations of our own could not be judged.
    fn free_block(&mut self) -> Option<u64> {
        let first = self.source.block();
        if !self.is_busy(first) {
            return Some(first);
        }
        let Self { source, busy, region, .. } = self;
        let after = first + 1..region.blocks.min(first + 4096);
        (0..8).map(|_| source.block()).chain(after).find(|&block| !is_set(busy, block))
    }

    fn is_busy(&self, block: u64) -> bool {
        is_set(&self.busy, block)
    }

    fn set_busy(&mut self, block: u64, busy: bool) {
        let bit = 1 << (block % 64);
        let word = &mut self.busy[(block / 64) as usize];
        *word = if busy { *word | bit } else { *word & !bit };
    }

    fn issue(&mut self, lane: u32, step: Step, block: u64) -> Result<(), LoadError> {
        let bytes = u64::from(self.config.block_bytes);
        let (units, first_unit) = (self.region.units_per_block, block * self.region.units_per_block);
        let offset = self.region.start + block * bytes;
        let mut buf = None;
        let mut work = InFlight { step, block, sequence: 0, issued: self.io.now_precise(), covered: None };
        let command = match step {
            Step::Read => {
                buf = self.lanes[lane as usize].buf.take();
                Command::Read
            }
            Step::Write { fua } => {
                buf = self.lanes[lane as usize].buf.take();
                if let (Some(oracle), Some(buf)) = (&mut self.oracle, &mut buf) {
                    work.sequence = oracle.issue(first_unit, units, false);
                    let identity = *oracle.identity();
                    for (n, unit) in buf.chunks_exact_mut(identity.unit_bytes as usize).enumerate() {
                        let at = offset + n as u64 * u64::from(identity.unit_bytes);
                        let stamp = Stamp {
                            volume: identity.volume,
                            offset: at,
                            sequence: work.sequence,
                            writer: identity.writer,
                        };
                        fill(unit, &stamp);
                    }
                }
                Command::Write { fua }
            }
            Step::Trim | Step::Zeroes => {
                if let Some(oracle) = &mut self.oracle {
                    work.sequence = oracle.issue(first_unit, units, true);
                }
                if step == Step::Trim {
                    Command::Deallocate
                } else {
                    Command::WriteZeroes { fua: false, deallocate: true }
                }
            }
            Step::Flush => {
                work.covered = self.oracle.as_mut().map(Oracle::begin_flush);
                Command::Flush
            }
        };
        let (offset, len) = if step == Step::Flush { (0, 0) } else { (offset, bytes as u32) };
        if step != Step::Flush {
            self.set_busy(block, true);
        }
        self.lanes[lane as usize].work = Some(work);
        let request = HostRequest { user: u64::from(lane), command, offset, len, buf };
        self.issued = true;
        self.host.submit(&mut self.io, request)
    }

    fn on_completed(&mut self, completed: Completed, promise: Promise) -> Result<(), LoadError> {
        if self.stage == Stage::Sweeping {
            return self.on_swept(completed, promise);
        }
        let lane = completed.user as usize;
        if let Some(buf) = completed.buf {
            self.lanes[lane].buf = Some(buf);
        }
        let work = self.lanes[lane].work.take().expect("an operation ends once");
        self.idle.push(lane as u32);
        let success = completed.outcome.is_success();
        let latency_ns = self.io.now().since_ns(work.issued);
        if self.stage != Stage::Flushing || !success {
            self.stats.record(work.step, latency_ns, completed.outcome);
        }
        self.failures_in_a_row = if success { 0 } else { self.failures_in_a_row + 1 };
        if self.failures_in_a_row >= FAILURES_MAX {
            let why = format!("{FAILURES_MAX} operations in a row failed, the last with {:?}", completed.outcome);
            return Err(LoadError::Host(HostError::new(HostErrorKind::Controller, why)));
        }
        if work.step != Step::Flush {
            self.set_busy(work.block, false);
        }
        let Some(oracle) = &mut self.oracle else { return Ok(()) };
        let (units, first_unit) = (self.region.units_per_block, work.block * self.region.units_per_block);
        match work.step {
            Step::Read if success => {
                let buf = self.lanes[lane].buf.as_ref().expect("a read gives its buffer back");
                judge(oracle, &mut self.stats, first_unit, buf, promise);
            }
            Step::Read => {}
            Step::Write { fua } if success => oracle.acknowledge(first_unit, units, work.sequence, fua),
            Step::Trim | Step::Zeroes if success => oracle.acknowledge(first_unit, units, work.sequence, false),
            // It may have been done or not; the oracle keeps both in mind.
            Step::Write { .. } | Step::Trim | Step::Zeroes => {}
            Step::Flush => {
                let covered = work.covered.expect("a flush covers something, if only nothing");
                if success { oracle.end_flush(covered) } else { oracle.abandon_flush(covered) }
            }
        }
        Ok(())
    }

    /// One flush after everything ended, so that all acknowledged writes are promised.
    fn flush(&mut self) -> Result<(), LoadError> {
        self.stage = Stage::Flushing;
        let lane = self.idle.pop().expect("nothing is in flight");
        self.issue(lane, Step::Flush, 0)?;
        while self.idle.len() < self.lanes.len() {
            self.turn(Promise::Acknowledged)?;
            self.tell();
        }
        Ok(())
    }

    /// Reads every block that was ever written, and judges it.
    fn sweep(&mut self, promise: Promise) -> Result<(), LoadError> {
        self.stage = Stage::Sweeping;
        (self.sweep_at, self.sweep_until) = (0, self.region.blocks);
        loop {
            while let Some(&lane) = self.idle.last() {
                let Some(block) = self.next_touched() else { break };
                self.idle.pop();
                self.issue(lane, Step::Read, block)?;
            }
            if self.idle.len() == self.lanes.len() {
                return Ok(());
            }
            self.turn(promise)?;
            self.tell();
        }
    }

    fn next_touched(&mut self) -> Option<u64> {
        let per_block = self.region.units_per_block;
        let oracle = self.oracle.as_mut().expect("a sweep has an oracle");
        let range = self.sweep_at..self.sweep_until;
        let found = range.into_iter().find(|block| (0..per_block).any(|unit| oracle.touched(block * per_block + unit)));
        self.sweep_at = found.map_or(self.sweep_until, |block| block + 1);
        found
    }

    fn on_swept(&mut self, completed: Completed, promise: Promise) -> Result<(), LoadError> {
        let lane = completed.user as usize;
        let work = self.lanes[lane].work.take().expect("an operation ends once");
        self.lanes[lane].buf = completed.buf;
        self.idle.push(lane as u32);
        self.set_busy(work.block, false);
        if completed.outcome != Outcome::Success {
            self.stats.failed_sweep(completed.outcome);
            return Ok(());
        }
        let oracle = self.oracle.as_mut().expect("a sweep has an oracle");
        let buf = self.lanes[lane].buf.as_ref().expect("a read gives its buffer back");
        self.swept += judge(oracle, &mut self.stats, work.block * self.region.units_per_block, buf, promise);
        Ok(())
    }

    fn tell(&mut self) {
        let now = self.io.now();
        let since = now.since_ns(self.told);
        if since < TELL_NS {
            return;
        }
        let done = match (self.stage, self.config.limit) {
            (Stage::Sweeping, _) => self.sweep_at as f64 / self.sweep_until.max(1) as f64,
            (_, Some(Limit::Time(time))) => now.since_ns(self.begun) as f64 / time.as_nanos() as f64,
            (_, Some(Limit::Operations(count))) => self.stats.ended as f64 / count as f64,
            (_, None) => 1.0,
        };
        let snapshot = Snapshot {
            stage: self.stage,
            elapsed: Duration::from_nanos(now.since_ns(self.begun)),
            operations: self.stats.ended,
            iops: (self.stats.ended - self.told_operations) as f64 * 1e9 / since as f64,
            done: done.min(1.0),
            faults: self.stats.verify.fault_count(),
            outages: self.stats.outages,
            flushes: self.stats.flushes(),
        };
        (self.told, self.told_operations) = (now, self.stats.ended);
        if self.progress.tell(&snapshot) == ControlFlow::Break(()) {
            self.stopped = true;
        }
    }
}

fn is_set(words: &[u64], bit: u64) -> bool {
    words[(bit / 64) as usize] >> (bit % 64) & 1 != 0
}

/// Judges the units of a block; returns how many.
fn judge(oracle: &mut Oracle, stats: &mut Stats, first_unit: u64, bytes: &[u8], promise: Promise) -> u64 {
    let mut judged = 0;
    for (unit, bytes) in (first_unit..).zip(bytes.chunks_exact(oracle.identity().unit_bytes as usize)) {
        judged += 1;
        if let Err(fault) = oracle.judge(unit, &classify(bytes), promise) {
            stats.verify.add(fault);
        }
    }
    stats.verify.units_checked += judged;
    judged
}

fn connect<I: Io>(
    io: &mut I,
    host: &mut Line,
    completions: &mut Vec<Completion>,
    progress: &mut dyn Progress,
) -> Result<Namespace, LoadError> {
    let begun = io.now_precise();
    loop {
        let until = Wait::Until(host.next_deadline().min(io.now().plus_ns(TELL_NS)));
        host.poll(io, until, completions);
        completions.drain(..).for_each(|completion| host.on_completion(io, completion));
        host.turn(io);
        match host.next_event() {
            Some(Event::Ready(Some(namespace))) => return Ok(namespace),
            Some(Event::Failed(error)) => return Err(LoadError::Host(error)),
            _ => {}
        }
        let elapsed = Duration::from_nanos(io.now().since_ns(begun));
        let snapshot = Snapshot {
            stage: Stage::Connecting,
            elapsed,
            operations: 0,
            iops: 0.0,
            done: 0.0,
            faults: 0,
            outages: 0,
            flushes: 0,
        };
        if progress.tell(&snapshot) == ControlFlow::Break(()) {
            return Err(LoadError::Config("stopped before the connection stood".into()));
        }
    }
}
