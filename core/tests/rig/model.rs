//! What each sector may hold, and a driver that submits random commands and checks every answer against that.
//!
//! A sector knows the writes submitted to it by ascending number. A read may show any that is at least as new as the newest
//! acknowledged when it was submitted; after the process died, any from the newest acknowledged on; after power loss, any from
//! the newest durable on (durable: FUA, or acknowledged before a flush that has ended). Never anything else, never a mixture.

use std::collections::{BTreeMap, HashMap};

use ringway_core::ids::Epoch;
use ringway_core::request::{Command, Status};
use ringway_core::shard::PartDone;
use ringway_reactor::io::Io;
use ringway_reactor::sim::{Rng, World};

use super::{Rig, Setup};

pub const SECTOR: u64 = 512;
/// The model follows these windows of each volume: one a map node.
pub const WINDOWS: u64 = 3;
pub const WINDOW: u64 = 512 << 10;
pub const STRIDE: u64 = 8 << 20;
const SECTORS: usize = (WINDOWS * WINDOW / SECTOR) as usize;

fn index(start: u64) -> usize {
    ((start / STRIDE * WINDOW + start % STRIDE) / SECTOR) as usize
}

fn start_of(index: usize) -> u64 {
    let at = index as u64 * SECTOR;
    at / WINDOW * STRIDE + at % WINDOW
}

/// The content that write `seq` gives to a sector.
pub fn pattern(volume: u32, sector: usize, seq: u32, out: &mut [u8]) {
    for (nth, chunk) in out.chunks_mut(16).enumerate() {
        for (field, value) in chunk.chunks_mut(4).zip([volume, sector as u32, seq, nth as u32 ^ 0xA5A5_0000]) {
            field.copy_from_slice(&value.to_le_bytes());
        }
    }
}

/// Which write a sector's bytes are from; `None`: zeros.
fn writer(volume: u32, sector: usize, bytes: &[u8]) -> Result<Option<u32>, String> {
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(None);
    }
    let seq = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
    let mut expected = [0; SECTOR as usize];
    pattern(volume, sector, seq, &mut expected);
    if bytes != expected {
        let found: Vec<u32> = bytes[..16].chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect();
        return Err(format!("volume {volume} sector {sector} holds what was never written to it: {found:x?}"));
    }
    Ok(Some(seq))
}

#[derive(Clone, Debug, Default)]
struct Sector {
    /// Submitted writes: number, and whether it writes zeros.
    writes: Vec<(u32, bool)>,
    acked: u32,
    durable: u32,
}

impl Sector {
    fn allows(&self, found: Option<u32>, floor: u32, ceiling: u32) -> bool {
        let fits = |&(seq, zero): &(u32, bool)| {
            seq >= floor && seq <= ceiling && if zero { found.is_none() } else { found == Some(seq) }
        };
        let untouched = floor == 0 && found.is_none();
        untouched || self.writes.iter().any(fits)
    }
}

#[derive(Clone, Debug)]
struct View {
    epoch: Epoch,
    /// Sectors as they were known at the cut.
    sectors: Vec<Sector>,
    ceiling: u32,
    /// Whether what was acknowledged at the cut is durable.
    durable: bool,
    /// The snapshot was removed: what a read of it still on its way shows is nobody's matter.
    gone: bool,
    /// What it showed once everything from before the cut had ended.
    seen: HashMap<usize, Option<u32>>,
}

#[derive(Clone, Debug)]
struct VolumeModel {
    sectors: Vec<Sector>,
    views: Vec<View>,
}

#[derive(Debug)]
enum Pending {
    Change { volume: u32, seq: u32, first: usize, count: usize, fua: bool, compares: bool },
    Read { volume: u32, start: u64, floor: Vec<u32> },
    View { volume: u32, nth: usize, start: u64, settled: bool },
    Flush { volume: u32, acked: Vec<u32>, views: usize },
    Compare { volume: u32, first: usize, count: usize, expected: Vec<Option<u32>>, stable: bool },
}

#[derive(Default)]
pub struct Model {
    volumes: BTreeMap<u32, VolumeModel>,
    seq: u32,
}

impl Model {
    pub fn new(volumes: &[u32]) -> Model {
        let fresh = VolumeModel { sectors: vec![Sector::default(); SECTORS], views: Vec::new() };
        Model { volumes: volumes.iter().map(|&volume| (volume, fresh.clone())).collect(), seq: 0 }
    }

    /// Checks what every sector and every view holds; `durable`: after power loss. Returns what was found.
    pub fn check(&self, rig: &mut Rig, power_loss: bool) -> Result<BTreeMap<u32, Vec<Option<u32>>>, String> {
        let mut all = BTreeMap::new();
        for (&id, volume) in &self.volumes {
            let found = read_all(rig, id, None)?;
            for (sector, (model, &found)) in volume.sectors.iter().zip(&found).enumerate() {
                let floor = if power_loss { model.durable } else { model.acked };
                if !model.allows(found, floor, u32::MAX) {
                    return Err(format!(
                        "volume {id} sector {sector} (byte {}) shows {found:?}, at least {floor} of {model:?} was promised",
                        start_of(sector)
                    ));
                }
            }
            if rig.setup.volumes.iter().any(|v| v.id.0 == id && v.lba_bytes == 4096) {
                check_blocks_whole(id, &found)?;
            }
            all.insert(id, found);
            for view in volume.views.iter().filter(|view| !view.gone) {
                let found = read_all(rig, id, Some(view.epoch))?;
                for (sector, (model, &found)) in view.sectors.iter().zip(&found).enumerate() {
                    let floor = if power_loss && !view.durable { model.durable } else { model.acked };
                    if !model.allows(found, floor, view.ceiling) {
                        return Err(format!(
                            "volume {id} at {} sector {sector} shows {found:?}, {floor}..={} of {model:?} was promised",
                            view.epoch, view.ceiling
                        ));
                    }
                    if let (Some(&seen), false) = (view.seen.get(&sector), power_loss)
                        && seen != found
                    {
                        return Err(format!(
                            "volume {id} at {} sector {sector}: {seen:?} became {found:?}",
                            view.epoch
                        ));
                    }
                }
            }
        }
        Ok(all)
    }

    /// What was found after a crash is what counts from now on.
    fn adopt(&mut self, found: &BTreeMap<u32, Vec<Option<u32>>>, power_loss: bool) {
        for (id, volume) in &mut self.volumes {
            for (sector, &found) in volume.sectors.iter_mut().zip(&found[id]) {
                let floor = if power_loss { sector.durable } else { sector.acked };
                let fits = |&&(seq, zero): &&(u32, bool)| {
                    seq >= floor && if zero { found.is_none() } else { found == Some(seq) }
                };
                // Of several zeroings that would explain zeros the oldest promises least.
                let value = sector.writes.iter().find(fits).map_or(0, |&(seq, _)| seq);
                let value = if found.is_none() && floor == 0 { 0 } else { value };
                if found.is_some() || floor > 0 {
                    sector.writes.retain(|&(seq, zero)| seq <= value || (zero && found.is_none()));
                } else {
                    sector.writes.retain(|&(_, zero)| zero);
                }
                sector.acked = value.max(floor.min(sector.acked));
                if power_loss {
                    sector.durable = value;
                    sector.writes.retain(|&(seq, _)| seq >= value);
                }
            }
            for view in &mut volume.views {
                if power_loss {
                    view.seen.clear();
                    if !view.durable {
                        view.sectors.iter_mut().for_each(|sector| sector.acked = sector.durable);
                    }
                }
            }
        }
    }
}

fn check_blocks_whole(volume: u32, found: &[Option<u32>]) -> Result<(), String> {
    match found.chunks(8).position(|block| block.iter().any(|seq| *seq != block[0])) {
        Some(block) => {
            Err(format!("volume {volume} block {block} is a mixture: {:?}", &found[block * 8..block * 8 + 8]))
        }
        None => Ok(()),
    }
}

fn read_all(rig: &mut Rig, volume: u32, view: Option<Epoch>) -> Result<Vec<Option<u32>>, String> {
    let mut found = Vec::with_capacity(SECTORS);
    let len = 128 << 10;
    for piece in 0..WINDOWS * WINDOW / len {
        let start = start_of((piece * len / SECTOR) as usize);
        let bytes = rig
            .read_at(volume, start, len as u32, view)
            .map_err(|status| format!("volume {volume} byte {start} view {view:?}: {status:?}"))?;
        for (nth, bytes) in bytes.chunks(SECTOR as usize).enumerate() {
            found.push(writer(volume, index(start) + nth, bytes)?);
        }
    }
    Ok(found)
}

/// What a driver does.
#[derive(Clone, Debug)]
pub struct Load {
    pub in_flight: usize,
    pub cuts: usize,
    pub flushes: bool,
    pub fua_one_in: u64,
    /// Errors are expected, so only what was acknowledged counts.
    pub errors: bool,
    /// Whole windows are discarded again and again, and other shards want slabs.
    pub forgetful: bool,
    /// Snapshots are removed too.
    pub removals: bool,
}

impl Default for Load {
    fn default() -> Self {
        Load { in_flight: 12, cuts: 4, flushes: true, fua_one_in: 12, errors: false, forgetful: false, removals: false }
    }
}

pub struct Driver {
    pub rig: Rig,
    pub model: Model,
    pub load: Load,
    pub rng: Rng,
    pending: HashMap<u64, Pending>,
    cuts: usize,
    pub answered: u64,
    pub failed: u64,
    pub compare_failures: u64,
    lba: u64,
}

impl Driver {
    pub fn new(seed: u64, setup: Setup, load: Load) -> Driver {
        let volumes: Vec<u32> = setup.volumes.iter().map(|volume| volume.id.0).collect();
        let lba = u64::from(setup.volumes[0].lba_bytes);
        Driver {
            rig: Rig::new(seed, setup),
            model: Model::new(&volumes),
            load,
            rng: Rng::new(seed ^ 0x5EED),
            pending: HashMap::new(),
            cuts: 0,
            answered: 0,
            failed: 0,
            compare_failures: 0,
            lba,
        }
    }

    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Submits perhaps, turns once, checks what was answered.
    pub fn step(&mut self) -> Result<(), String> {
        for _ in 0..self.rng.below(3) {
            if self.pending.len() < self.load.in_flight {
                self.submit();
            }
        }
        if self.cuts < self.load.cuts && self.rng.one_in(60) {
            self.cut();
        }
        if self.load.removals && self.rng.one_in(80) {
            self.remove_a_view();
        }
        self.turn()
    }

    pub fn turn(&mut self) -> Result<(), String> {
        self.rig.turn();
        if self.rig.world.crashed() {
            // Whatever the shard said in the turn in which it died never left the process.
            self.rig.done.clear();
            return Ok(());
        }
        while let Some(done) = self.rig.done.pop_front() {
            self.answer(&done)?;
        }
        Ok(())
    }

    /// Turns until nothing is pending.
    pub fn settle(&mut self) -> Result<(), String> {
        for _ in 0..200_000 {
            if self.pending.is_empty() || self.rig.world.crashed() {
                return Ok(());
            }
            self.turn()?;
        }
        Err(format!("{:?} are never answered: {}", self.pending.keys(), self.rig.shard.describe()))
    }

    fn range(&mut self, unit: u64, max: u64) -> (u64, u32) {
        let window = self.rng.below(WINDOWS);
        let len = match self.rng.below(10) {
            0..4 => unit,
            4..7 => unit * (1 + self.rng.below(8)),
            7..9 => unit * (1 + self.rng.below(64)),
            _ => max,
        }
        .clamp(unit, max);
        // Most in a small part, so that there is overlap.
        let area = if self.rng.one_in(3) { WINDOW } else { 96 << 10 };
        let slots = (area.max(len) - len) / unit + 1;
        (window * STRIDE + self.rng.below(slots) * unit, len as u32)
    }

    fn submit(&mut self) {
        let volume = 1 + self.rng.below(self.model.volumes.len() as u64) as u32;
        if self.load.forgetful && self.rng.one_in(60) {
            self.rig.shard.on_slab_wanted();
        }
        if self.load.forgetful && self.rng.one_in(8) {
            let start = self.rng.below(WINDOWS) * STRIDE;
            return self.change(volume, Command::Deallocate, start, WINDOW as u32);
        }
        let unit = if self.rng.one_in(2) { self.lba } else { 4096 };
        let fua = self.rng.one_in(self.load.fua_one_in);
        match self.rng.below(20) {
            0..10 => {
                let (start, len) = self.range(unit, 128 << 10);
                self.change(volume, Command::Write { fua }, start, len);
            }
            10..12 => {
                let (start, len) = self.range(unit, 256 << 10);
                self.change(volume, Command::WriteZeroes { fua, deallocate: true }, start, len);
            }
            12..14 => {
                let (start, len) = self.range(unit, 512 << 10);
                self.change(volume, Command::Deallocate, start, len);
            }
            14 => self.compare_and_write(volume, fua),
            15 => self.compare(volume),
            16..18 => {
                let (start, len) = self.range(self.lba, 128 << 10);
                self.read(volume, start, len);
            }
            18 if self.load.flushes => self.flush(volume),
            _ => {}
        }
    }

    fn change(&mut self, volume: u32, command: Command, start: u64, len: u32) {
        let (mut first, mut end) = (start, start + u64::from(len));
        if command == Command::Deallocate {
            (first, end) = (start.div_ceil(4096) * 4096, end / 4096 * 4096);
        }
        let count = (end.saturating_sub(first) / SECTOR) as usize;
        let buf = matches!(command, Command::Write { .. }).then(|| self.rig.io.buffers().get(len as usize));
        let Some(mut buf) = buf.map_or(Some(None), |buf| buf.map(Some)) else { return };
        self.model.seq += 1;
        let (seq, first) = (self.model.seq, index(first));
        if let Some(buf) = &mut buf {
            for (nth, out) in buf.chunks_mut(SECTOR as usize).enumerate() {
                pattern(volume, first + nth, seq, out);
            }
        }
        let sectors = &mut self.model.volumes.get_mut(&volume).unwrap().sectors;
        let zero = buf.is_none();
        sectors[first..first + count].iter_mut().for_each(|sector| sector.writes.push((seq, zero)));
        let fua = matches!(command, Command::Write { fua: true } | Command::WriteZeroes { fua: true, .. });
        let id = self.rig.submit(volume, command, start, len, buf);
        self.pending.insert(id, Pending::Change { volume, seq, first, count, fua, compares: false });
    }

    /// Compares with what the model takes for newest, and writes.
    fn compare_and_write(&mut self, volume: u32, fua: bool) {
        let (start, _) = self.range(self.lba, self.lba);
        let (first, count) = (index(start), (self.lba / SECTOR) as usize);
        let Some(mut buf) = self.rig.io.buffers().get(2 * self.lba as usize) else { return };
        self.model.seq += 1;
        let seq = self.model.seq;
        let sectors = &mut self.model.volumes.get_mut(&volume).unwrap().sectors;
        for (nth, sector) in sectors[first..first + count].iter_mut().enumerate() {
            let out = &mut buf[nth * SECTOR as usize..][..SECTOR as usize];
            match sector.writes.last() {
                Some(&(seq, false)) => pattern(volume, first + nth, seq, out),
                _ => out.fill(0),
            }
            pattern(volume, first + nth, seq, &mut buf[self.lba as usize + nth * SECTOR as usize..][..SECTOR as usize]);
            sector.writes.push((seq, false));
        }
        let id = self.rig.submit(volume, Command::CompareAndWrite { fua }, start, self.lba as u32, Some(buf));
        self.pending.insert(id, Pending::Change { volume, seq, first, count, fua, compares: true });
    }

    fn compare(&mut self, volume: u32) {
        let (start, len) = self.range(self.lba, 64 << 10);
        let (first, count) = (index(start), (u64::from(len) / SECTOR) as usize);
        let Some(mut buf) = self.rig.io.buffers().get(len as usize) else { return };
        let sectors = &self.model.volumes[&volume].sectors[first..first + count];
        let mut expected = Vec::new();
        for (nth, (sector, out)) in sectors.iter().zip(buf.chunks_mut(SECTOR as usize)).enumerate() {
            let last = sector.writes.last().filter(|(_, zero)| !zero).map(|&(seq, _)| seq);
            match last {
                Some(seq) => pattern(volume, first + nth, seq, out),
                None => out.fill(0),
            }
            expected.push(last);
        }
        // Nothing is in flight and nothing has failed there: then it must be equal.
        let stable = !self.load.errors
            && sectors.iter().all(|sector| sector.writes.last().is_none_or(|&(seq, _)| seq == sector.acked));
        let id = self.rig.submit(volume, Command::Compare, start, len, Some(buf));
        self.pending.insert(id, Pending::Compare { volume, first, count, expected, stable });
    }

    fn read(&mut self, volume: u32, start: u64, len: u32) {
        let Some(buf) = self.rig.io.buffers().get(len as usize) else { return };
        let model = &self.model.volumes[&volume];
        let (first, count) = (index(start), (u64::from(len) / SECTOR) as usize);
        if !model.views.is_empty() && self.rng.one_in(2) {
            let nth = self.rng.below(model.views.len() as u64) as usize;
            let view = &model.views[nth];
            if view.gone {
                return;
            }
            let settled = self.pending.values().all(|pending| match pending {
                Pending::Change { volume: other, seq, .. } => *other != volume || *seq > view.ceiling,
                _ => true,
            });
            let epoch = view.epoch;
            let id = self.rig.submit_as(1, volume, Command::Read, start, len, Some(buf), Some(epoch));
            self.pending.insert(id, Pending::View { volume, nth, start, settled });
            return;
        }
        let floor = model.sectors[first..first + count].iter().map(|sector| sector.acked).collect();
        let id = self.rig.submit(volume, Command::Read, start, len, Some(buf));
        self.pending.insert(id, Pending::Read { volume, start, floor });
    }

    pub fn flush(&mut self, volume: u32) {
        let model = &self.model.volumes[&volume];
        let acked = model.sectors.iter().map(|sector| sector.acked).collect();
        let views = model.views.len();
        let id = self.rig.submit(volume, Command::Flush, 0, 0, None);
        self.pending.insert(id, Pending::Flush { volume, acked, views });
    }

    fn cut(&mut self) {
        self.cuts += 1;
        let volume = 1 + self.rng.below(self.model.volumes.len() as u64) as u32;
        let epoch = self.rig.cut(volume);
        let ceiling = self.model.seq;
        let model = self.model.volumes.get_mut(&volume).unwrap();
        let sectors = model.sectors.clone();
        model.views.push(View { epoch, sectors, ceiling, durable: false, gone: false, seen: HashMap::new() });
    }

    /// A snapshot goes, whatever is under way; another may be made for it.
    fn remove_a_view(&mut self) {
        let volume = 1 + self.rng.below(self.model.volumes.len() as u64) as u32;
        let views = &mut self.model.volumes.get_mut(&volume).unwrap().views;
        let kept: Vec<usize> = (0..views.len()).filter(|&nth| !views[nth].gone).collect();
        if kept.is_empty() {
            return;
        }
        let nth = kept[self.rng.below(kept.len() as u64) as usize];
        views[nth].gone = true;
        let epoch = views[nth].epoch;
        self.rig.change_volume(volume, |record| record.cuts.retain(|&cut| cut != epoch));
        self.cuts -= 1;
    }

    fn answer(&mut self, done: &PartDone) -> Result<(), String> {
        self.answered += 1;
        let pending = self.pending.remove(&done.id).expect("an answer to something asked");
        if done.status != Status::Success {
            self.failed += 1;
            self.compare_failures += u64::from(done.status == Status::CompareFailure);
        }
        match pending {
            Pending::Change { volume, seq, first, count, fua, compares } => {
                let sectors = &mut self.model.volumes.get_mut(&volume).unwrap().sectors[first..first + count];
                match done.status {
                    Status::Success => sectors.iter_mut().for_each(|sector| {
                        sector.acked = sector.acked.max(seq);
                        if fua {
                            sector.durable = sector.durable.max(seq);
                        }
                    }),
                    Status::CompareFailure if compares => {
                        sectors.iter_mut().for_each(|sector| sector.writes.retain(|&(other, _)| other != seq));
                    }
                    Status::WriteFault | Status::UnrecoveredRead | Status::CapacityExceeded if self.load.errors => {}
                    status => return Err(format!("write {seq} ended with {status:?}")),
                }
            }
            Pending::Read { volume, start, floor } => self.check_read(volume, start, &floor, done)?,
            Pending::View { volume, nth, start, settled } => self.check_view(volume, nth, start, settled, done)?,
            Pending::Flush { volume, acked, views } if done.status == Status::Success => {
                let model = self.model.volumes.get_mut(&volume).unwrap();
                for (sector, acked) in model.sectors.iter_mut().zip(acked) {
                    sector.durable = sector.durable.max(acked);
                }
                model.views[..views].iter_mut().for_each(|view| view.durable = true);
            }
            Pending::Compare { volume, first, count, stable, expected } => {
                let unchanged = self.model.volumes[&volume].sectors[first..first + count]
                    .iter()
                    .zip(&expected)
                    .all(|(sector, &old)| sector.writes.last().filter(|w| !w.1).map(|w| w.0) == old);
                if stable && unchanged && done.status != Status::Success {
                    return Err(format!("volume {volume} sector {first}: compare of what is there: {:?}", done.status));
                }
            }
            Pending::Flush { .. } if self.load.errors => {}
            Pending::Flush { .. } => return Err(format!("a flush ended with {:?}", done.status)),
        }
        Ok(())
    }

    fn check_read(&self, volume: u32, start: u64, floor: &[u32], done: &PartDone) -> Result<(), String> {
        match done.status {
            Status::Success => {}
            Status::UnrecoveredRead if self.load.errors => return Ok(()),
            status => return Err(format!("a read of volume {volume} at {start} ended with {status:?}")),
        }
        let buf = done.data.as_ref().expect("a read gives its buffer back").bytes();
        let sectors = &self.model.volumes[&volume].sectors;
        for ((nth, bytes), &floor) in buf.chunks(SECTOR as usize).enumerate().zip(floor) {
            let sector = index(start) + nth;
            let found = writer(volume, sector, bytes)?;
            if !sectors[sector].allows(found, floor, u32::MAX) {
                return Err(format!(
                    "a read of sector {sector} shows {found:?}, at least {floor} of {:?}",
                    sectors[sector]
                ));
            }
        }
        Ok(())
    }

    fn check_view(
        &mut self,
        volume: u32,
        nth: usize,
        start: u64,
        settled: bool,
        done: &PartDone,
    ) -> Result<(), String> {
        if done.status != Status::Success {
            return if self.load.errors {
                Ok(())
            } else {
                Err(format!("a read of a view ended with {:?}", done.status))
            };
        }
        let buf = done.data.as_ref().expect("a read gives its buffer back").bytes();
        let view = &mut self.model.volumes.get_mut(&volume).unwrap().views[nth];
        if view.gone {
            return Ok(());
        }
        for (at, bytes) in buf.chunks(SECTOR as usize).enumerate() {
            let sector = index(start) + at;
            let found = writer(volume, sector, bytes)?;
            let model = &view.sectors[sector];
            if !model.allows(found, model.acked, view.ceiling) {
                return Err(format!(
                    "view {} sector {sector} shows {found:?}, {}..={} of {model:?}",
                    view.epoch, model.acked, view.ceiling
                ));
            }
            if settled {
                let seen = *view.seen.entry(sector).or_insert(found);
                if seen != found {
                    return Err(format!("view {} sector {sector}: {seen:?} became {found:?}", view.epoch));
                }
            }
        }
        Ok(())
    }

    /// Crashes, opens again, checks everything, and is ready to go on.
    pub fn crash(mut self, power_loss: bool) -> Result<Driver, String> {
        self.rig.done.clear();
        let rig = if power_loss { self.rig.power_loss() } else { self.rig.kill() };
        Driver::check_all(Driver { rig, pending: HashMap::new(), ..self }, power_loss)
    }

    /// The same for the death of the process, and something befalls the disks before it opens again.
    pub fn kill_and(mut self, then: impl FnOnce(&World, &Setup)) -> Result<Driver, String> {
        self.rig.done.clear();
        let rig = self.rig.kill_and(then);
        Driver::check_all(Driver { rig, pending: HashMap::new(), ..self }, false)
    }

    fn check_all(mut next: Driver, power_loss: bool) -> Result<Driver, String> {
        let found = next.model.check(&mut next.rig, power_loss)?;
        next.model.adopt(&found, power_loss);
        Ok(next)
    }
}
