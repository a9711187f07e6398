//! Device operations on their way: from submission over faults and latency to the disk, and back or into the void.
//!
//! Invariants: each operation reaches its disk at most once as a whole (a write may land in two steps, of disjoint
//! ranges); one whose process has died never completes, but may still land.

use crate::data::Data;
use crate::io::{FileInfo, IoError, Payload, Token};

use super::DiskConfig;
use super::disk::{Disk, Pending, WriteKey};
use super::fault::{EIO, ENOSPC, OpKind, SHORT, Script, Verdict, judge};
use super::rng::Rng;
use super::world::{Ready, State, What};

/// A disk, how it behaves and what was ordered to befall it.
pub(super) struct Device {
    pub(super) config: DiskConfig,
    pub(super) info: FileInfo,
    pub(super) disk: Disk,
    pub(super) script: Script,
}

/// The bytes of a write: our own buffer, or what a peer's memory held when the write was submitted.
#[derive(Debug)]
pub(super) struct Written {
    data: Data,
    copy: Box<[u8]>,
}

impl From<Data> for Written {
    fn from(mut data: Data) -> Written {
        data.write_out();
        let mut copy = Vec::new();
        if let Data::Shared(shared) = &data {
            copy.resize(shared.len(), 0);
            shared.copy_to(0, &mut copy);
        }
        Written { data, copy: copy.into() }
    }
}

impl std::ops::Deref for Written {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.data {
            Data::Own(buf) => buf,
            Data::Blank(_) | Data::SharedBlank(_) => unreachable!("written out when it was submitted"),
            Data::Shared(_) => &self.copy,
        }
    }
}

/// What is asked of a device.
#[derive(Debug)]
pub(super) enum Request {
    Read { offset: u64, data: Data },
    Write { offset: u64, buf: Written, durable: bool },
    Barrier,
    Deallocate { offset: u64, len: u64 },
}

impl Request {
    fn kind(&self) -> OpKind {
        match self {
            Request::Read { .. } => OpKind::Read,
            Request::Write { .. } => OpKind::Write,
            Request::Barrier => OpKind::Barrier,
            Request::Deallocate { .. } => OpKind::Deallocate,
        }
    }

    /// Offset and length.
    fn range(&self) -> (u64, u64) {
        match self {
            Request::Read { offset, data } => (*offset, data.len() as u64),
            Request::Write { offset, buf, .. } => (*offset, buf.len() as u64),
            Request::Barrier => (0, 0),
            Request::Deallocate { offset, len } => (*offset, *len),
        }
    }
}

/// An operation that the device has and has not finished.
pub(super) struct InFlight {
    /// Tells this operation from others that had its slot.
    serial: u64,
    reactor: usize,
    token: Token,
    device: usize,
    request: Request,
    verdict: Verdict,
    /// Of a barrier: what it covers.
    coverage: u64,
    /// Of a write that lands in two steps: the part of its buffer that lands first.
    first: Option<First>,
    /// Its process has died.
    stray: bool,
}

#[derive(Clone, Copy)]
struct First {
    from: usize,
    to: usize,
    key: Option<WriteKey>,
}

impl InFlight {
    /// The part of the buffer that has not landed.
    fn remaining(&self, len: usize) -> std::ops::Range<usize> {
        match self.first {
            Some(First { from: 0, to, key: Some(_) }) => to..len,
            Some(First { from, key: Some(_), .. }) => 0..from,
            _ => 0..len,
        }
    }

    fn pending(&self) -> Option<Pending<'_>> {
        // What would have been lost or gone astray has already been judged: power loss gives no second chance.
        match (&self.request, self.verdict) {
            (_, Verdict::Lost | Verdict::Misdirected | Verdict::NoSpace) => None,
            (Request::Write { offset, buf, .. }, _) => {
                let rest = self.remaining(buf.len());
                Some(Pending::Bytes(offset + rest.start as u64, &buf[rest]))
            }
            (Request::Deallocate { offset, len }, _) => Some(Pending::Zeroes(*offset, *len)),
            _ => None,
        }
    }
}

impl Device {
    /// Refuses what breaks the contract of the seam: that is a bug of the caller and no fault of the world.
    fn check(&self, request: &Request) {
        let unit = u64::from(self.info.logical_block);
        let (offset, len) = request.range();
        assert!(
            offset.is_multiple_of(unit) && len.is_multiple_of(unit),
            "{request:?} is not aligned to the logical block of {unit} bytes"
        );
        if let Request::Read { data, .. } | Request::Write { buf: Written { data, .. }, .. } = request {
            assert!(
                data.is_aligned(self.info.logical_block),
                "the memory of {request:?} is not aligned to {unit} bytes"
            );
        }
    }

    fn latency(&self, request: &Request, rng: &mut Rng) -> u64 {
        match request {
            Request::Read { .. } => rng.within(&self.config.read_ns),
            Request::Write { durable: false, .. } | Request::Deallocate { .. } => rng.within(&self.config.write_ns),
            Request::Write { .. } => rng.within(&self.config.write_ns) + rng.within(&self.config.barrier_ns),
            Request::Barrier => rng.within(&self.config.barrier_ns),
        }
    }

    /// Chooses a first part for a write of several atomic units, now and then.
    fn two_steps(&self, request: &Request, rng: &mut Rng) -> Option<First> {
        let Request::Write { offset, buf, .. } = request else { return None };
        if buf.is_empty() {
            return None;
        }
        let unit = u64::from(self.info.atomic_write_unit);
        let first = offset / unit + 1;
        let units = (offset + buf.len() as u64).div_ceil(unit) - first;
        if units == 0 || !rng.chance(self.config.two_step_writes) {
            return None;
        }
        let at = ((first + rng.below(units)) * unit - offset) as usize;
        let (from, to) = if rng.one_in(2) { (0, at) } else { (at, buf.len()) };
        Some(First { from, to, key: None })
    }
}

impl State {
    /// Gives an operation to a device.
    pub(super) fn submit_device(&mut self, reactor: usize, token: Token, device: usize, request: Request) {
        let target = &mut self.devices[device];
        target.check(&request);
        let (offset, len) = request.range();
        let kind = request.kind();
        let (mut verdict, stall) =
            judge(kind, (offset, len), &target.config.faults, &mut target.script, &mut self.rng, &mut self.injected);
        let leaves = offset.checked_add(len).is_none_or(|end| end > target.info.size);
        if leaves {
            verdict = Verdict::NoSpace;
        }
        let latency = target.latency(&request, &mut self.rng) + stall;
        let first = if verdict == Verdict::Good { target.two_steps(&request, &mut self.rng) } else { None };
        let coverage = target.disk.coverage();
        self.serial += 1;
        let serial = self.serial;
        let sample = match &request {
            Request::Write { buf, .. } if buf.len() >= 8 => {
                u64::from_le_bytes(buf[..8].try_into().expect("eight bytes"))
            }
            _ => 0,
        };
        self.trace(&[1, kind as u64, device as u64, offset, len, sample, verdict as u64]);
        let op = InFlight { serial, reactor, token, device, request, verdict, coverage, first, stray: false };
        let key = self.ops.insert(op) as u32;
        if first.is_some() {
            let at = self.now + self.rng.below(latency);
            self.schedule(at, What::Device { key, serial, first: true });
        }
        self.schedule(self.now + latency, What::Device { key, serial, first: false });
        if kind != OpKind::Read {
            self.mutations_submitted += 1;
            self.check_crash();
        }
    }

    /// The moment of a device operation has come.
    pub(super) fn fire_device(&mut self, key: u32, serial: u64, first: bool) {
        let Some(op) = self.ops.get_mut(key as usize).filter(|op| op.serial == serial) else { return };
        if self.crashed && self.reactors[op.reactor].life == Some(self.life) {
            return;
        }
        if first {
            let (Some(part), Request::Write { offset, buf, .. }) = (&mut op.first, &op.request) else { return };
            let disk = &mut self.devices[op.device].disk;
            part.key = Some(disk.land(offset + part.from as u64, &buf[part.from..part.to]));
            return;
        }
        let mut op = self.ops.remove(key as usize);
        let (result, keys) = self.carry_out(&mut op);
        self.trace(&[2, op.token.0, serial, self.now, u64::from(result.is_ok())]);
        let mutates = op.request.kind() != OpKind::Read;
        if op.stray || self.reactors[op.reactor].dead {
            self.strays -= u64::from(op.stray);
            self.injected.stray_writes += u64::from(op.stray);
            self.reap_keys(op.device, keys);
        } else {
            let payload = match op.request {
                Request::Read { data, .. } | Request::Write { buf: Written { data, .. }, .. } => Payload::Data(data),
                Request::Barrier | Request::Deallocate { .. } => Payload::None,
            };
            self.push(op.reactor, Ready { token: op.token, result, payload, device: op.device, keys });
        }
        if mutates && !op.stray {
            self.mutations_completed += 1;
            self.check_crash();
        }
    }

    fn carry_out(&mut self, op: &mut InFlight) -> (Result<usize, IoError>, [Option<WriteKey>; 2]) {
        let device = &mut self.devices[op.device];
        let none = [None, None];
        match (&mut op.request, op.verdict) {
            (Request::Read { .. } | Request::Deallocate { .. }, Verdict::NoSpace) => (Err(SHORT), none),
            (_, Verdict::NoSpace) => (Err(ENOSPC), none),
            (Request::Read { data, .. }, Verdict::Error) => {
                let rubbish = self.rng.bits() as u8;
                data.copy_from(0, &vec![rubbish; data.len()]);
                (Err(EIO), none)
            }
            (Request::Read { offset, data }, _) => {
                data.write_out();
                match data {
                    Data::Own(buf) => device.disk.read(*offset, buf),
                    Data::Blank(_) | Data::SharedBlank(_) => unreachable!("it was just written out"),
                    Data::Shared(shared) => {
                        let mut bytes = vec![0; shared.len()];
                        device.disk.read(*offset, &mut bytes);
                        shared.copy_from(0, &bytes);
                    }
                }
                (Ok(data.len()), none)
            }
            (Request::Barrier, Verdict::Error) => {
                device.disk.doom(op.coverage);
                (Err(EIO), none)
            }
            (Request::Barrier, _) => {
                device.disk.flush(op.coverage);
                (Ok(0), none)
            }
            (Request::Deallocate { offset, len }, Verdict::Error) => {
                let key = self.rng.one_in(2).then(|| device.disk.land_zeroes(*offset, *len));
                (Err(EIO), [key, None])
            }
            (Request::Deallocate { offset, len }, _) => (Ok(0), [Some(device.disk.land_zeroes(*offset, *len)), None]),
            (Request::Write { buf, .. }, Verdict::Lost) => (Ok(buf.len()), none),
            (Request::Write { buf, .. }, Verdict::Misdirected) => {
                let unit = u64::from(device.info.logical_block);
                let places = (device.info.size - buf.len() as u64) / unit + 1;
                let key = device.disk.land(self.rng.below(places) * unit, buf);
                (Ok(buf.len()), [Some(key), None])
            }
            (Request::Write { offset, buf, .. }, Verdict::Error) => {
                let part = part_of(*offset, buf.len(), u64::from(device.info.atomic_write_unit), &mut self.rng);
                let key = (!part.is_empty()).then(|| device.disk.land(*offset + part.start as u64, &buf[part]));
                (Err(EIO), [key, None])
            }
            (Request::Write { .. }, Verdict::Good) => write_rest(op, device, &mut self.rng),
        }
    }

    /// What landed is what a barrier covers from now on.
    pub(super) fn reap_keys(&mut self, device: usize, keys: [Option<WriteKey>; 2]) {
        for key in keys.into_iter().flatten() {
            self.devices[device].disk.reap(key);
        }
    }

    /// What is at the devices when `reactor` dies: reads and barriers end, writes land later or never.
    pub(super) fn orphan_ops(&mut self, gone: impl Fn(&State, usize) -> bool, may_vanish: bool) {
        let keys: Vec<usize> =
            self.ops.iter().filter(|(_, op)| !op.stray && gone(self, op.reactor)).map(|(key, _)| key).collect();
        for key in keys {
            let vanishes = may_vanish && self.rng.one_in(4);
            let op = &mut self.ops[key];
            let first = op.first.and_then(|first| first.key);
            if vanishes || matches!(op.request, Request::Read { .. } | Request::Barrier) {
                let device = op.device;
                self.ops.remove(key);
                self.reap_keys(device, [first, None]);
                continue;
            }
            self.serial += 1;
            op.stray = true;
            op.serial = self.serial;
            let at = self.now + self.rng.within(&self.config.stray_ns);
            self.strays += 1;
            self.schedule(at, What::Device { key: key as u32, serial: self.serial, first: false });
        }
    }

    /// Whether a device has something of a reactor.
    pub(super) fn has_ops(&self, reactor: usize) -> bool {
        self.ops.iter().any(|(_, op)| op.reactor == reactor && !op.stray)
    }

    /// The power fails under every disk.
    pub(super) fn cut_power(&mut self) {
        for number in 0..self.devices.len() {
            let pending: Vec<Pending<'_>> =
                self.ops.iter().filter(|(_, op)| op.device == number).filter_map(|(_, op)| op.pending()).collect();
            let losses = self.devices[number].disk.power_loss(&pending, &mut self.rng);
            self.injected.kept_at_power_loss += losses.kept;
            self.injected.lost_at_power_loss += losses.lost;
            self.injected.torn_at_power_loss += losses.torn;
        }
        self.ops.clear();
        self.strays = 0;
    }

    /// What power loss now could leave on a disk.
    pub(super) fn power_loss_image(&mut self, device: usize, rng: &mut Rng) -> super::Image {
        let pending: Vec<Pending<'_>> =
            self.ops.iter().filter(|(_, op)| op.device == device).filter_map(|(_, op)| op.pending()).collect();
        self.devices[device].disk.power_loss_image(&pending, rng)
    }
}

fn write_rest(op: &InFlight, device: &mut Device, rng: &mut Rng) -> (Result<usize, IoError>, [Option<WriteKey>; 2]) {
    let Request::Write { offset, buf, durable } = &op.request else { unreachable!("only writes are carried out here") };
    let mut rest = op.remaining(buf.len());
    if op.stray && rng.one_in(4) {
        // The kernel gave the request up half-way.
        let part = part_of(offset + rest.start as u64, rest.len(), u64::from(device.info.atomic_write_unit), rng);
        rest = rest.start + part.start..rest.start + part.end;
    }
    let first = op.first.and_then(|first| first.key);
    let second = device.disk.land(offset + rest.start as u64, &buf[rest]);
    if *durable && !op.stray {
        first.into_iter().for_each(|key| device.disk.persist(key));
        device.disk.persist(second);
        return (Ok(buf.len()), [None, None]);
    }
    (Ok(buf.len()), [first, Some(second)])
}

/// Nothing, the front, the back or all of a write, cut at an atomic unit.
fn part_of(offset: u64, len: usize, unit: u64, rng: &mut Rng) -> std::ops::Range<usize> {
    let first = offset / unit + 1;
    let cuts = (offset + len as u64).div_ceil(unit).saturating_sub(first);
    let at = match rng.below(cuts + 2) {
        0 => 0,
        n if n > cuts => len,
        n => ((first + n - 1) * unit - offset) as usize,
    };
    if rng.one_in(2) { 0..at } else { at..len }
}
