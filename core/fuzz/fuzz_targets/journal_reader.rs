//! A journal's region after something happened to it, read by recovery.
//!
//! The input is a script: groups are written by the real writer, some torn, some bytes spoiled, some fields forged under a right
//! checksum; processes die and recover in between. Whatever happened, recovery does not panic. Where nothing was forged, records
//! come in order and each is the one that was written with that number; where nothing was spoiled either, nothing durable is
//! missing and nothing is called damaged.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use ringway_core::checksum::Seed;
use ringway_core::ids::{Epoch, Lsn, ShardId, VolumeId};
use ringway_core::journal::{Group, Position, Ring, recover};
use ringway_core::map::Record;
use ringway_core::space::{Geometry, Place, SlabArea};
use uuid::Uuid;

const BLOCK: usize = 4096;
const BLOCKS: u32 = 12;
const SHARD: ShardId = ShardId(3);
/// Where a group's header has its checksums, and where its records start: `core/src/journal/group.rs`.
const HEADER: usize = 640;

struct Journal {
    region: Vec<u8>,
    geometry: Geometry,
    seed: Seed,
    boot: u32,
    ring: Ring,
    start: Position,
    /// Every record that was sealed, by number; a torn group's numbers are given again, and then the later one is meant.
    written: BTreeMap<Lsn, Record>,
    durable: Lsn,
    spoiled: bool,
    forged: bool,
}

impl Journal {
    fn new() -> Journal {
        let seed = Seed::pool(Uuid::from_u128(0x5249_4e47_5741_59)).shard(SHARD);
        Journal {
            region: vec![0; BLOCKS as usize * BLOCK],
            geometry: Geometry::new(4 << 20, vec![SlabArea { start: 1 << 20, slabs: 4 }]),
            seed,
            boot: 1,
            ring: Ring::new(BLOCKS, SHARD, 1, seed),
            start: Position::FIRST,
            written: BTreeMap::new(),
            durable: Lsn(0),
            spoiled: false,
            forged: false,
        }
    }

    /// Writes a group of up to 256 records, of which the first `kept` blocks arrive (all for 0). A torn group is the last thing
    /// a process does.
    fn write(&mut self, records: u8, kind: u8, kept: u8) {
        let mut group = Group::default();
        for n in 0..=u32::from(records) {
            let lsn = Lsn(self.ring.lsn_next().0 + u64::from(n));
            let volume = VolumeId(1 + u32::from(kind));
            let record = match kind % 3 {
                0 => Record::Drop { volume, cluster: n, birth: Epoch::first_of(1), freed: Place::NONE },
                1 => Record::DropRange { volume, range: n, freed: Vec::new() },
                _ => Record::Free { places: Vec::new() },
            };
            assert!(group.push(lsn, &record));
            self.written.insert(lsn, record);
        }
        let mut bytes = vec![0; group.blocks() as usize * BLOCK];
        let Ok(sealed) = self.ring.seal(&group, &mut bytes) else { return };
        let whole = kept == 0 || u32::from(kept) >= sealed.blocks;
        let arrives = if whole { bytes.len() } else { usize::from(kept) * BLOCK };
        let at = Ring::offset(sealed.block) as usize;
        self.region[at..at + arrives].copy_from_slice(&bytes[..arrives]);
        if whole {
            self.durable = self.ring.written();
        } else {
            self.recover();
        }
    }

    fn checkpoint(&mut self) {
        self.start = self.ring.position_of(self.ring.lsn_next());
        self.ring.release(self.start);
    }

    fn spoil(&mut self, at: usize, with: u8) {
        let length = self.region.len();
        self.region[at % length] ^= with;
        self.spoiled |= with != 0;
    }

    /// Puts a value into a header or a body and makes its checksums right again.
    fn forge(&mut self, block: u8, at: usize, with: u8) {
        let from = usize::from(block) % BLOCKS as usize * BLOCK;
        let group = &mut self.region[from..];
        group[8 + at % (BLOCK - 8)] ^= with;
        let word = |group: &[u8], at: usize| u32::from_le_bytes(group[at..at + 4].try_into().expect("four bytes"));
        let seed = self.seed.generation(u64::from(word(group, 16)));
        let length = word(group, 44) as usize;
        if let Some(body) = HEADER.checked_add(length).and_then(|end| group.get(HEADER..end)) {
            let crc = seed.of(body);
            group[8..12].copy_from_slice(&crc.to_le_bytes());
        }
        let crc = seed.of(&group[8..HEADER]);
        group[4..8].copy_from_slice(&crc.to_le_bytes());
        self.forged = true;
    }

    /// The process is dead: the next one reads what there is. `false` if this journal is refused.
    fn recover(&mut self) -> bool {
        self.boot += 1;
        let found = recover(&self.region, SHARD, self.boot, self.seed, self.start, &self.geometry);
        let Ok(found) = found else {
            assert!(self.forged, "only a forged journal is refused: {:?}", found.err());
            return false;
        };
        if !self.forged {
            assert!(found.records.windows(2).all(|pair| pair[0].0 < pair[1].0), "records come in order");
            assert!(found.records.iter().all(|(lsn, _)| *lsn < found.ring.lsn_next()));
            for (lsn, record) in &found.records {
                assert_eq!(Some(record), self.written.get(lsn), "record {lsn} is not what was written");
            }
        }
        if !self.forged && !self.spoiled {
            assert_eq!(found.damage, []);
            let durable = self.written.iter().filter(|(lsn, _)| self.start.lsn <= **lsn && **lsn <= self.durable);
            let replayed: BTreeMap<_, _> = found.records.iter().map(|(lsn, record)| (lsn, record)).collect();
            for (lsn, record) in durable {
                assert_eq!(replayed.get(lsn), Some(&record), "record {lsn} was durable");
            }
        }
        self.durable = found.ring.durable();
        self.ring = found.ring;
        true
    }
}

fuzz_target!(|script: &[u8]| {
    let mut journal = Journal::new();
    for step in script.chunks_exact(4).take(24) {
        let [verb, a, b, c] = [step[0], step[1], step[2], step[3]];
        let at = usize::from(a) << 8 | usize::from(b);
        match verb % 8 {
            0..=2 => journal.write(a, b, 0),
            3 => journal.write(a, b, c),
            4 => journal.checkpoint(),
            5 => journal.spoil(at, c),
            6 => journal.forge(verb >> 3, at, c),
            _ if journal.recover() => {}
            _ => return,
        }
    }
    journal.recover();
});
