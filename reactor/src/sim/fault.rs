//! What may go wrong at a simulated disk, by chance or on order, and what did.

use crate::io::{ErrorKind, IoError};

use super::rng::Rng;

/// Kinds of device operation, to aim a fault at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpKind {
    Read,
    Write,
    Barrier,
    Deallocate,
}

/// Faults by chance, each as so many in a million operations that it can befall.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// EIO of a read; its buffer is filled with rubbish.
    pub read_error: u32,
    /// EIO of a write or deallocation; nothing, some units or all of it may have landed.
    pub write_error: u32,
    /// EIO of a barrier; what it covered is never covered again.
    pub barrier_error: u32,
    /// ENOSPC of a write; nothing landed.
    pub no_space: u32,
    /// A write that is acknowledged and never happens.
    pub lost_write: u32,
    /// A write that is acknowledged and lands elsewhere.
    pub misdirected_write: u32,
    /// An operation that takes `stall_ns` longer.
    pub stall: u32,
    /// Nanoseconds of a stall.
    pub stall_ns: u64,
}

/// A fault on order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// EIO; see [`Faults`] for what each kind of operation leaves behind.
    Error,
    /// ENOSPC of a write; nothing landed. Other operations succeed.
    NoSpace,
    /// An acknowledged write that never happens. Other operations succeed.
    LostWrite,
    /// An acknowledged write that lands elsewhere. Other operations succeed.
    MisdirectedWrite,
    /// So many nanoseconds more.
    Stall(u64),
}

/// What was injected so far, all disks together. Counted when the operation is submitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    pub read_errors: u64,
    pub write_errors: u64,
    pub barrier_errors: u64,
    pub no_space: u64,
    pub lost_writes: u64,
    pub misdirected_writes: u64,
    pub stalls: u64,
    /// Sectors in which a bit was flipped.
    pub rotten_sectors: u64,
    /// Writes that power loss kept, lost and tore, and writes of a dead process that landed after its death.
    pub kept_at_power_loss: u64,
    pub lost_at_power_loss: u64,
    pub torn_at_power_loss: u64,
    pub stray_writes: u64,
}

/// What will become of an operation, decided when it is submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    Error,
    NoSpace,
    Lost,
    Misdirected,
}

/// Faults on order that are still to come, of one disk.
#[derive(Debug, Default)]
pub(super) struct Script {
    counts: [u64; 4],
    due: Vec<(OpKind, u64, Fault)>,
    bad_ranges: Vec<(OpKind, u64, u64)>,
}

impl Script {
    /// Lets `fault` befall the `nth` operation of this kind from now on, the first being 1.
    pub(super) fn order(&mut self, kind: OpKind, nth: u64, fault: Fault) {
        self.due.push((kind, self.counts[kind as usize] + nth, fault));
    }

    /// Fails every operation of this kind that touches the range.
    pub(super) fn spoil(&mut self, kind: OpKind, offset: u64, len: u64) {
        self.bad_ranges.push((kind, offset, offset + len));
    }

    /// Ends all that was ordered.
    pub(super) fn clear(&mut self) {
        self.due.clear();
        self.bad_ranges.clear();
    }

    fn next(&mut self, kind: OpKind, offset: u64, len: u64) -> Option<Fault> {
        self.counts[kind as usize] += 1;
        if self.due.is_empty() && self.bad_ranges.is_empty() {
            return None;
        }
        let count = self.counts[kind as usize];
        if let Some(at) = self.due.iter().position(|&(of, nth, _)| of == kind && nth == count) {
            return Some(self.due.swap_remove(at).2);
        }
        let bad = self.bad_ranges.iter().any(|&(of, from, to)| of == kind && from < offset + len && offset < to);
        bad.then_some(Fault::Error)
    }
}

/// Decides about one operation: what becomes of it, and how much longer it takes.
pub(super) fn judge(
    kind: OpKind,
    range: (u64, u64),
    faults: &Faults,
    script: &mut Script,
    rng: &mut Rng,
    injected: &mut Injected,
) -> (Verdict, u64) {
    let mut stall = 0;
    let verdict = match script.next(kind, range.0, range.1) {
        Some(Fault::Stall(ns)) => {
            stall = ns;
            Verdict::Good
        }
        Some(Fault::Error) => Verdict::Error,
        Some(Fault::NoSpace) if kind == OpKind::Write => Verdict::NoSpace,
        Some(Fault::LostWrite) if kind == OpKind::Write => Verdict::Lost,
        Some(Fault::MisdirectedWrite) if kind == OpKind::Write => Verdict::Misdirected,
        Some(_) => Verdict::Good,
        None => by_chance(kind, faults, rng),
    };
    if rng.chance(faults.stall) {
        stall += faults.stall_ns;
    }
    injected.stalls += u64::from(stall > 0);
    match (verdict, kind) {
        (Verdict::Good, _) => {}
        (Verdict::Error, OpKind::Read) => injected.read_errors += 1,
        (Verdict::Error, OpKind::Barrier) => injected.barrier_errors += 1,
        (Verdict::Error, _) => injected.write_errors += 1,
        (Verdict::NoSpace, _) => injected.no_space += 1,
        (Verdict::Lost, _) => injected.lost_writes += 1,
        (Verdict::Misdirected, _) => injected.misdirected_writes += 1,
    }
    (verdict, stall)
}

fn by_chance(kind: OpKind, faults: &Faults, rng: &mut Rng) -> Verdict {
    match kind {
        OpKind::Read if rng.chance(faults.read_error) => Verdict::Error,
        OpKind::Barrier if rng.chance(faults.barrier_error) => Verdict::Error,
        OpKind::Deallocate if rng.chance(faults.write_error) => Verdict::Error,
        OpKind::Write if rng.chance(faults.write_error) => Verdict::Error,
        OpKind::Write if rng.chance(faults.no_space) => Verdict::NoSpace,
        OpKind::Write if rng.chance(faults.lost_write) => Verdict::Lost,
        OpKind::Write if rng.chance(faults.misdirected_write) => Verdict::Misdirected,
        _ => Verdict::Good,
    }
}

pub(super) const EIO: IoError = IoError { kind: ErrorKind::Device, errno: libc::EIO };
pub(super) const ENOSPC: IoError = IoError { kind: ErrorKind::NoSpace, errno: libc::ENOSPC };
pub(super) const SHORT: IoError = IoError { kind: ErrorKind::UnexpectedEnd, errno: 0 };
pub(super) const RESET: IoError = IoError { kind: ErrorKind::Disconnected, errno: libc::ECONNRESET };
pub(super) const REFUSED: IoError = IoError { kind: ErrorKind::Disconnected, errno: libc::ECONNREFUSED };
pub(super) const CANCELLED: IoError = IoError { kind: ErrorKind::Cancelled, errno: libc::ECANCELED };
pub(super) const IN_USE: IoError = IoError { kind: ErrorKind::Other, errno: libc::EADDRINUSE };
