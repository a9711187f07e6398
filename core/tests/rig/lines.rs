//! Volumes, snapshots and clones against plain arrays: every operation one after the other, a crash between or within them.
//!
//! A sector knows the values it may hold: the last one that is durable, and all that were written since. After the death of the
//! process it holds at least the newest acknowledged; after power loss any from the durable one on. A snapshot has the values of
//! the moment of its cut.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringway_core::request::{Command, Status};
use ringway_reactor::buf::Buf;

use super::{Rig, Setup, volume};

const SECTOR: u64 = 512;
const CLUSTER: u64 = 64 << 10;
/// What is looked at: blocks 14 and 15 of a cluster, and 0 and 1 of the next.
const FIRST: u64 = 14 * 4096;
const BLOCKS: u64 = 4;
const SECTORS: usize = (BLOCKS * 8) as usize;
/// Bytes of a volume when it is made, and of one that has grown.
const SIZE: u64 = CLUSTER + 4096;
const GROWN: u64 = 4 * CLUSTER;

/// The volume that everything begins with.
pub const ORIGIN: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Sector {
    /// Oldest first; 0: zeros.
    values: Vec<u8>,
    acked: usize,
    durable: usize,
}

impl Sector {
    fn new() -> Sector {
        Sector { values: vec![0], acked: 0, durable: 0 }
    }

    fn allows(&self, found: u8, power_loss: bool) -> bool {
        self.values[if power_loss { self.durable } else { self.acked }..].contains(&found)
    }

    fn settle(&mut self, found: u8, durable: bool) {
        if durable {
            *self = Sector { values: vec![found], acked: 0, durable: 0 };
        } else {
            let at = self.values.iter().rposition(|&value| value == found).expect("it was allowed");
            self.values.truncate(at + 1);
            self.acked = at;
        }
    }
}

/// A volume, a snapshot or a clone.
#[derive(Clone, Debug)]
struct Line {
    sectors: Vec<Sector>,
    size: u64,
    /// Of a snapshot: what was cut.
    origin: Option<u32>,
    /// Of a clone: the snapshot it lies over, as long as it does.
    parent: Option<u32>,
}

/// One operation. Volumes and snapshots are counted from the oldest; one that is not there makes it do nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Sectors `first .. first + count` of volume number `nth`.
    Write {
        nth: usize,
        first: u32,
        count: u32,
        fua: bool,
    },
    Discard {
        nth: usize,
        first: u32,
        count: u32,
    },
    Zeroes {
        nth: usize,
        first: u32,
        count: u32,
    },
    Flush {
        nth: usize,
    },
    Cut {
        nth: usize,
    },
    /// Snapshot number `nth` of all.
    Remove {
        nth: usize,
    },
    RollBack {
        nth: usize,
    },
    Clone {
        nth: usize,
    },
    /// Fill all of clone number `nth`, flush, and let its link go.
    Stream {
        nth: usize,
    },
    /// The same, but the link stays.
    Fill {
        nth: usize,
    },
    Grow {
        nth: usize,
    },
    /// Let the background come to its end.
    Tidy,
}

pub struct Lines {
    pub rig: Rig,
    lines: BTreeMap<u32, Line>,
    value: u8,
    next_id: u32,
}

impl Lines {
    pub fn new(seed: u64, mut setup: Setup) -> Lines {
        setup.volumes = vec![Arc::new(volume(ORIGIN, SIZE, 512))];
        let line = Line { sectors: vec![Sector::new(); SECTORS], size: SIZE, origin: None, parent: None };
        Lines { rig: Rig::new(seed, setup), lines: BTreeMap::from([(ORIGIN, line)]), value: 0, next_id: ORIGIN + 1 }
    }

    fn volumes(&self) -> Vec<u32> {
        self.lines.iter().filter(|(_, line)| line.origin.is_none()).map(|(&id, _)| id).collect()
    }

    fn snapshots(&self) -> Vec<u32> {
        self.lines.iter().filter(|(_, line)| line.origin.is_some()).map(|(&id, _)| id).collect()
    }

    fn clones(&self) -> Vec<u32> {
        self.lines.iter().filter(|(_, line)| line.parent.is_some()).map(|(&id, _)| id).collect()
    }

    /// Runs until the part is answered or the world has ended.
    fn wait(&mut self, id: u64) -> Option<Status> {
        for _ in 0..400_000 {
            if self.rig.world.crashed() {
                self.rig.done.clear();
                return None;
            }
            if let Some(at) = self.rig.done.iter().position(|done| done.id == id) {
                return self.rig.done.remove(at).map(|done| done.status);
            }
            self.rig.turn();
        }
        panic!("part {id} is not answered: {}", self.rig.shard.describe());
    }

    /// One operation; false if the world ended in it.
    pub fn act(&mut self, act: Act) -> bool {
        let done = match act {
            Act::Write { nth, first, count, fua } => self.change(nth, Command::Write { fua }, first, count),
            Act::Discard { nth, first, count } => self.change(nth, Command::Deallocate, first, count),
            Act::Zeroes { nth, first, count } => {
                self.change(nth, Command::WriteZeroes { fua: false, deallocate: true }, first, count)
            }
            Act::Flush { nth } => self.volumes().get(nth).is_none_or(|&id| self.flush(id)),
            Act::Tidy => self.rig.settle_background(),
            Act::Fill { nth } => self.fill(nth).is_some(),
            Act::Stream { nth } => self.stream(nth),
            _ => {
                self.manage(act);
                true
            }
        };
        done && !self.rig.world.crashed()
    }

    /// What the catalog does: at once, whatever the shard makes of it.
    fn manage(&mut self, act: Act) {
        match act {
            Act::Cut { nth } => {
                let Some(&origin) = self.volumes().get(nth) else { return };
                self.rig.snapshot(origin, self.next_id);
                let line = Line { origin: Some(origin), parent: None, ..self.lines[&origin].clone() };
                self.lines.insert(self.next_id, line);
                self.next_id += 1;
            }
            Act::Remove { nth } => {
                let Some(&id) = self.snapshots().get(nth) else { return };
                if !self.has_clone(id) {
                    self.rig.remove_snapshot(id);
                    self.lines.remove(&id);
                }
            }
            Act::RollBack { nth } => {
                let Some(&id) = self.snapshots().get(nth) else { return };
                let origin = self.lines[&id].origin.expect("a snapshot");
                let later = self.snapshots().into_iter().filter(|&other| other > id);
                let later: Vec<u32> = later.filter(|other| self.lines[other].origin == Some(origin)).collect();
                if later.iter().any(|&other| self.has_clone(other)) {
                    return;
                }
                self.rig.roll_back(id);
                later.iter().for_each(|other| drop(self.lines.remove(other)));
                let sectors = self.lines[&id].sectors.clone();
                self.lines.get_mut(&origin).expect("its volume").sectors = sectors;
            }
            Act::Clone { nth } => {
                let Some(&id) = self.snapshots().get(nth) else { return };
                self.rig.clone_of(id, self.next_id, GROWN);
                let of = &self.lines[&id];
                let mut line = Line { origin: None, parent: Some(id), size: GROWN, ..of.clone() };
                line.sectors[limit(of.size)..].fill(Sector::new());
                self.lines.insert(self.next_id, line);
                self.next_id += 1;
            }
            Act::Grow { nth } => {
                let Some(&id) = self.volumes().get(nth) else { return };
                self.rig.change_volume(id, |record| record.size = GROWN);
                self.lines.get_mut(&id).expect("listed").size = GROWN;
            }
            other => unreachable!("{other:?} is the shard's"),
        }
    }

    fn has_clone(&self, snapshot: u32) -> bool {
        self.lines.values().any(|line| line.parent == Some(snapshot))
    }

    fn change(&mut self, nth: usize, command: Command, first: u32, count: u32) -> bool {
        let Some(&id) = self.volumes().get(nth) else { return true };
        let end = (first + count).min(limit(self.lines[&id].size) as u32);
        if first >= end {
            return true;
        }
        let count = end - first;
        let (mut changed, mut value) = (first..end, 0);
        let mut buf: Option<Buf> = None;
        match command {
            Command::Write { .. } => {
                self.value = self.value % 250 + 1;
                value = self.value;
                buf = Some(self.rig.buf(&vec![value; (u64::from(count) * SECTOR) as usize]));
            }
            Command::Deallocate => changed = first.div_ceil(8) * 8..end / 8 * 8,
            _ => {}
        }
        let line = self.lines.get_mut(&id).expect("listed");
        let changed: Vec<usize> = changed.map(|sector| sector as usize).collect();
        changed.iter().for_each(|&sector| line.sectors[sector].values.push(value));
        let start = FIRST + u64::from(first) * SECTOR;
        let part = self.rig.submit(id, command, start, (u64::from(count) * SECTOR) as u32, buf);
        let Some(status) = self.wait(part) else { return false };
        assert_eq!(status, Status::Success, "{command:?} of {id} at {start}");
        let line = self.lines.get_mut(&id).expect("listed");
        for sector in changed {
            let sector = &mut line.sectors[sector];
            sector.acked = sector.values.len() - 1;
            if command == (Command::Write { fua: true }) {
                sector.durable = sector.acked;
            }
        }
        true
    }

    fn flush(&mut self, id: u32) -> bool {
        let part = self.rig.submit(id, Command::Flush, 0, 0, None);
        let Some(status) = self.wait(part) else { return false };
        assert_eq!(status, Status::Success);
        // A flush is of all that its shard has.
        for line in self.lines.values_mut() {
            line.sectors.iter_mut().for_each(|sector| sector.durable = sector.acked);
        }
        true
    }

    /// `None`: the world has ended. The clone that was filled, if there is one of this number.
    fn fill(&mut self, nth: usize) -> Option<Option<u32>> {
        let Some(&id) = self.clones().get(nth) else { return Some(None) };
        let filled = self.rig.fill(id)?;
        filled.unwrap_or_else(|status| panic!("the fill of {id} ended with {status:?}"));
        Some(Some(id))
    }

    fn stream(&mut self, nth: usize) -> bool {
        match self.fill(nth) {
            None => false,
            Some(None) => true,
            Some(Some(id)) => {
                if !self.flush(id) {
                    return false;
                }
                self.rig.detach(id);
                self.lines.get_mut(&id).expect("listed").parent = None;
                true
            }
        }
    }

    /// Everything that is there to be read shows what it may. `None`: nothing was lost.
    pub fn check(&mut self, power_loss: Option<bool>) {
        for id in self.lines.keys().copied().collect::<Vec<_>>() {
            let count = limit(self.lines[&id].size);
            let bytes = self.rig.read(id, FIRST, (count as u64 * SECTOR) as u32);
            let bytes = bytes.unwrap_or_else(|status| panic!("a read of {id} ended with {status:?}"));
            let line = self.lines.get_mut(&id).expect("listed");
            for (nth, (sector, bytes)) in line.sectors.iter_mut().zip(bytes.chunks(SECTOR as usize)).enumerate() {
                let found = bytes[0];
                assert!(bytes.iter().all(|&byte| byte == found), "volume {id} sector {nth} is a mixture");
                let fits = match power_loss {
                    None => sector.values.last() == Some(&found),
                    Some(power_loss) => sector.allows(found, power_loss),
                };
                assert!(fits, "volume {id} sector {nth} shows {found}, power loss {power_loss:?}: {sector:?}");
                if let Some(power_loss) = power_loss {
                    sector.settle(found, power_loss);
                }
            }
        }
    }

    /// The differences between each two views of one volume are told, as far as they can be seen.
    pub fn check_differences(&mut self) {
        for id in self.lines.keys().copied().collect::<Vec<_>>() {
            let origin = self.lines[&id].origin.unwrap_or(id);
            let last = |line: &Line| line.sectors.iter().map(|s| *s.values.last().expect("one")).collect::<Vec<u8>>();
            let mut pairs = vec![(None, vec![0; SECTORS])];
            for base in self.snapshots().into_iter().filter(|&base| base < id || id == origin) {
                if self.lines[&base].origin == Some(origin) {
                    let epoch = self.rig.record(base).view.expect("a snapshot").epoch;
                    pairs.push((Some(epoch), last(&self.lines[&base])));
                }
            }
            let now = last(&self.lines[&id]);
            for (after, then) in pairs {
                let told = self.rig.changed(id, after).expect("the cut is kept");
                for sector in (0..SECTORS).filter(|&sector| now[sector] != then[sector]) {
                    let at = FIRST + sector as u64 * SECTOR;
                    let range = told.iter().find(|range| range.offset <= at && at < range.offset + range.len);
                    let range =
                        range.unwrap_or_else(|| panic!("{id} after {after:?}: sector {sector} is missing: {told:?}"));
                    assert!(range.data || now[sector] == 0, "{id} after {after:?}: sector {sector} is not zeros");
                }
            }
        }
    }

    /// The world ends and comes back; then all is checked.
    pub fn crash(self, power_loss: bool) -> Lines {
        let Lines { mut rig, lines, value, next_id } = self;
        rig.done.clear();
        let rig = if power_loss { rig.power_loss() } else { rig.kill() };
        let mut next = Lines { rig, lines, value, next_id };
        next.check(Some(power_loss));
        next
    }

    /// Nothing is there that nobody needs, and nothing leaks.
    pub fn finish(mut self) {
        self.rig.settle_background();
        self.check(None);
        self.rig.settle_and_verify();
    }
}

/// Sectors of the window within `size` bytes.
fn limit(size: u64) -> usize {
    (size.saturating_sub(FIRST) / SECTOR).min(SECTORS as u64) as usize
}
