//! The recovery table with every input, and journals that were torn, rotted and overwritten by the dead.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::ids::Epoch;
use crate::ids::VolumeId;
use crate::journal::{Full, Group, Sealed};
use crate::map::{BlockStates, Version};
use crate::space::{Place, SlabArea, SlabId};

const SHARD: ShardId = ShardId(3);
const BLOCKS: u32 = 24;

#[test]
fn the_recovery_table_decides_every_input_as_written_down() {
    use {Decision::*, Later::*, Link::*};
    // slot, link, later, spoken ("*": any) -> decision. Each input must match exactly one row.
    let rows: [(&str, &str, &str, &str, Decision); 11] = [
        ("Valid", "Continues", "*", "*", Replay),
        ("Valid", "Broken", "*", "*", DamageBefore),
        ("BadBody", "Broken", "*", "*", DamageBefore),
        ("BadBody", "Continues", "Vouches", "*", Damage(Lost::Own)),
        ("BadBody", "Continues", "None Silent", "*", End),
        ("Valid BadBody", "Stale", "Vouches", "Next", Damage(Lost::Next)),
        ("Valid BadBody", "Stale", "Vouches", "Nobody", Damage(Lost::Any)),
        ("Valid BadBody", "Stale", "None Silent", "*", End),
        ("Nothing", "*", "Vouches", "Next", Damage(Lost::Next)),
        ("Nothing", "*", "Vouches", "Nobody", Damage(Lost::Any)),
        ("Nothing", "*", "None Silent", "*", End),
    ];
    let matches = |pattern: &str, value: String| pattern == "*" || pattern.split(' ').any(|word| word == value);
    let mut inputs = 0;
    for slot in [Slot::Valid, Slot::BadBody, Slot::Nothing] {
        for link in [Continues, Stale, Broken] {
            for later in [None, Silent, Vouches] {
                for spoken in [Spoken::Next, Spoken::Nobody] {
                    let expected: Vec<_> = (rows.iter())
                        .filter(|row| {
                            matches(row.0, format!("{slot:?}"))
                                && matches(row.1, format!("{link:?}"))
                                && matches(row.2, format!("{later:?}"))
                                && matches(row.3, format!("{spoken:?}"))
                        })
                        .map(|row| row.4)
                        .collect();
                    let evidence = Evidence { slot, link, later, spoken };
                    assert_eq!(expected, [decide(evidence)], "{evidence:?}");
                    inputs += 1;
                }
            }
        }
    }
    assert_eq!(inputs, 54);
}

fn geometry() -> Geometry {
    Geometry::new(4 << 20, vec![SlabArea { start: 1 << 20, slabs: 4 }])
}

fn seed() -> Seed {
    Seed::pool(Uuid::from_u128(9)).shard(SHARD)
}

fn record(volume: u32, n: u64) -> Record {
    let place = geometry().place(SlabId::new(0, 0), n as u32 % 64);
    let version = Version { birth: Epoch(n + 1), place, states: BlockStates::DATA };
    Record::Set { volume: VolumeId(volume), cluster: n as u32, version, freed: Place::NONE }
}

type Numbered = Vec<(Lsn, Record)>;

/// A journal region and its writer, with everything that was ever durable.
struct Journal {
    region: Vec<u8>,
    ring: Ring,
    /// (sequence, block, blocks, records) in order.
    groups: Vec<(Sealed, Numbered)>,
    start: Position,
}

impl Journal {
    fn new() -> Journal {
        let ring = Ring::new(BLOCKS, SHARD, 1, seed());
        Journal { region: vec![0; BLOCKS as usize * 4096], ring, groups: Vec::new(), start: Position::FIRST }
    }

    fn seal(&mut self, volume: u32, records: u64) -> Result<(Sealed, Vec<u8>, Numbered), Full> {
        let (mut group, mut list) = (Group::default(), Vec::new());
        for n in 0..records {
            let lsn = Lsn(self.ring.lsn_next().0 + n);
            let record = record(volume, lsn.0);
            assert!(group.push(lsn, &record));
            list.push((lsn, record));
        }
        let mut out = vec![0; group.blocks() as usize * 4096];
        let sealed = self.ring.seal(&group, &mut out)?;
        Ok((sealed, out, list))
    }

    fn write(&mut self, block: u32, bytes: &[u8]) {
        let at = Ring::offset(block) as usize;
        self.region[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Appends a durable group, checkpointing when there is no room.
    fn append(&mut self, volume: u32, records: u64) {
        let (sealed, bytes, list) = match self.seal(volume, records) {
            Ok(sealed) => sealed,
            Err(_) => {
                self.checkpoint(self.ring.lsn_next());
                self.seal(volume, records).expect("an empty journal has room")
            }
        };
        self.write(sealed.block, &bytes);
        self.ring.written();
        self.groups.push((sealed, list));
    }

    fn checkpoint(&mut self, lsn: Lsn) {
        self.start = self.ring.position_of(lsn);
        self.ring.release(self.start);
    }

    fn recover(&self) -> Recovered {
        recover(&self.region, SHARD, 100, seed(), self.start, &geometry()).unwrap()
    }

    fn durable_records(&self) -> Vec<(Lsn, Record)> {
        let all = self.groups.iter().flat_map(|(_, list)| list.clone());
        all.filter(|&(lsn, _)| lsn >= self.start.lsn).collect()
    }

    fn corrupt(&mut self, block: u32, byte: usize) {
        self.region[Ring::offset(block) as usize + byte] ^= 0x40;
    }
}

fn named(volume: u32) -> VolumeList {
    VolumeList::Some(vec![VolumeId(volume)])
}

#[test]
fn a_new_journal_is_empty() {
    let recovered = Journal::new().recover();
    assert!(recovered.records.is_empty() && recovered.damage.is_empty() && recovered.torn.is_none());
    assert_eq!((recovered.ring.lsn_next(), recovered.ring.sequence()), (Lsn(1), 1));
}

#[test]
fn c13_a_rotten_body_in_the_middle_faults_the_volumes_it_lists_and_keeps_the_rest() {
    let mut journal = Journal::new();
    (1..=4).for_each(|volume| journal.append(volume, 5));
    journal.corrupt(journal.groups[1].0.block, 700);
    let recovered = journal.recover();
    assert_eq!(recovered.damage.iter().map(|d| d.volumes.clone()).collect::<Vec<_>>(), [named(2)]);
    let kept: Vec<_> = [0, 2, 3].iter().flat_map(|&n| journal.groups[n].1.clone()).collect();
    assert_eq!(recovered.records, kept);
    assert_eq!(recovered.ring.lsn_next(), journal.ring.lsn_next());
}

#[test]
fn c13_a_rotten_header_in_the_middle_faults_the_volumes_that_the_next_group_lists_for_it() {
    let mut journal = Journal::new();
    (1..=4).for_each(|volume| journal.append(volume, 5));
    journal.corrupt(journal.groups[1].0.block, 20);
    let recovered = journal.recover();
    assert_eq!(recovered.damage.len(), 1);
    assert_eq!((recovered.damage[0].volumes.clone(), recovered.damage[0].sequence), (named(2), 2));
    assert_eq!(recovered.records.len(), 15);
}

#[test]
fn c13_two_lost_headers_in_a_row_fault_every_volume() {
    let mut journal = Journal::new();
    (1..=4).for_each(|volume| journal.append(volume, 5));
    journal.corrupt(journal.groups[1].0.block, 20);
    journal.corrupt(journal.groups[2].0.block, 20);
    let recovered = journal.recover();
    assert_eq!(recovered.damage.iter().map(|d| d.volumes.clone()).collect::<Vec<_>>(), [VolumeList::Any]);
    assert_eq!(recovered.records.len(), 10);
}

#[test]
fn c13_a_lost_last_group_is_a_torn_tail_and_the_next_boot_writes_over_it() {
    let mut journal = Journal::new();
    (1..=3).for_each(|volume| journal.append(volume, 200));
    journal.corrupt(journal.groups[2].0.block + 1, 8);
    let recovered = recover(&journal.region, SHARD, 50, seed(), journal.start, &geometry()).unwrap();
    assert_eq!((recovered.torn, recovered.damage.len(), recovered.records.len()), (Some(3), 0, 400));
    assert_eq!(recovered.ring.lsn_next(), Lsn(401));
    // The next boot writes group 3 again, shorter; what is left of the torn one is never taken for a group.
    journal.ring = recovered.ring;
    journal.groups.truncate(2);
    journal.append(9, 1);
    let again = journal.recover();
    assert_eq!((again.torn, again.damage.len()), (None, 0));
    assert_eq!(again.records, journal.durable_records());
}

#[test]
fn c4_a_group_of_a_dead_process_that_lands_on_a_newer_one_is_seen() {
    let mut journal = Journal::new();
    journal.append(1, 5);
    let before = journal.region.clone();
    // The old process seals group 2 for volume 7; its write is still on its way when the next boot starts.
    let (stray, stray_bytes, _) = journal.seal(7, 5).unwrap();
    journal.region = before;
    journal.ring = recover(&journal.region, SHARD, 50, seed(), journal.start, &geometry()).unwrap().ring;
    journal.append(2, 5);
    journal.append(3, 5);
    journal.write(stray.block, &stray_bytes);
    let recovered = journal.recover();
    assert_eq!(recovered.damage.iter().map(|d| d.volumes.clone()).collect::<Vec<_>>(), [named(2)]);
    assert!(recovered.records.ends_with(&journal.groups[2].1));
}

#[test]
fn a_header_of_another_pool_or_shard_is_nothing() {
    let mut journal = Journal::new();
    journal.append(1, 5);
    for (shard, seed) in [
        (SHARD, Seed::pool(Uuid::from_u128(8)).shard(SHARD)),
        (ShardId(4), Seed::pool(Uuid::from_u128(9)).shard(ShardId(4))),
    ] {
        let recovered = recover(&journal.region, shard, 100, seed, journal.start, &geometry()).unwrap();
        assert!(recovered.records.is_empty() && recovered.damage.is_empty());
    }
}

#[test]
fn a_journal_newer_than_the_superblocks_is_refused() {
    let mut journal = Journal::new();
    journal.append(1, 5);
    let error = recover(&journal.region, SHARD, 1, seed(), journal.start, &geometry()).unwrap_err();
    assert_eq!(error, RecoverError::Future { shard: SHARD, block: 0, found: 1, boot: 1 });
}

#[test]
fn h18_the_head_never_passes_the_tail_and_pressure_rises_before_it_would() {
    let mut journal = Journal::new();
    let mut seen = Vec::new();
    while let Ok((sealed, bytes, _)) = journal.seal(1, 5) {
        journal.write(sealed.block, &bytes);
        journal.ring.written();
        seen.push(journal.ring.pressure());
    }
    assert_eq!(seen.len(), BLOCKS as usize);
    assert!(seen.is_sorted() && seen.contains(&crate::journal::Pressure::Checkpoint));
    assert_eq!(journal.ring.pressure(), crate::journal::Pressure::Reserve);
    assert_eq!(journal.recover().records.len(), 5 * BLOCKS as usize);
    journal.checkpoint(Lsn(6));
    assert!(journal.ring.has_room(1) && !journal.ring.has_room(2));
}

#[test]
fn an_older_checkpoint_still_finds_an_unbroken_chain_after_a_boot_that_started_from_a_newer_one() {
    let mut journal = Journal::new();
    (1..=3).for_each(|volume| journal.append(volume, 5));
    let older = journal.start;
    let newest = journal.ring.position_of(journal.ring.lsn_next());
    journal.ring = recover(&journal.region, SHARD, 50, seed(), newest, &geometry()).unwrap().ring;
    journal.append(4, 5);
    journal.start = older;
    let recovered = journal.recover();
    assert_eq!((recovered.damage.len(), recovered.records.len()), (0, 20));
}

#[derive(Clone, Debug)]
enum Step {
    Append {
        volume: u32,
        records: u64,
    },
    Checkpoint(prop::sample::Index),
    Reboot,
    /// The process dies while a group is written; a part of its blocks lands.
    Torn {
        volume: u32,
        records: u64,
        landed: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1u32..5, 1u64..300).prop_map(|(volume, records)| Step::Append { volume, records }),
        2 => any::<prop::sample::Index>().prop_map(Step::Checkpoint),
        1 => Just(Step::Reboot),
        2 => (1u32..5, 1u64..300, any::<u64>()).prop_map(|(volume, records, landed)| Step::Torn { volume, records, landed }),
    ];
    proptest::collection::vec(step, 1..40)
}

/// Runs a history; every crash tears at 512 bytes.
fn run(steps: &[Step]) -> Journal {
    let mut journal = Journal::new();
    let mut boot = 1;
    for step in steps {
        match step {
            Step::Append { volume, records } => journal.append(*volume, *records),
            Step::Checkpoint(at) => {
                let first = journal.start.lsn.0;
                let span = journal.ring.lsn_next().0 - first;
                let lsn = Lsn(first + at.index(span as usize + 1) as u64);
                journal.checkpoint(lsn);
            }
            Step::Torn { volume, records, landed } => {
                let Ok((sealed, bytes, list)) = journal.seal(*volume, *records) else { continue };
                let mut whole = true;
                for (n, sector) in bytes.chunks(512).enumerate() {
                    if landed >> (n % 64) & 1 == 1 {
                        let at = Ring::offset(sealed.block) as usize + n * 512;
                        journal.region[at..at + 512].copy_from_slice(sector);
                    } else {
                        whole = false;
                    }
                }
                if whole {
                    journal.groups.push((sealed, list));
                }
                reboot(&mut journal, &mut boot);
            }
            Step::Reboot => reboot(&mut journal, &mut boot),
        }
    }
    journal
}

fn reboot(journal: &mut Journal, boot: &mut u32) {
    *boot += 1;
    let recovered = recover(&journal.region, SHARD, *boot, seed(), journal.start, &geometry()).unwrap();
    let found: Vec<_> = recovered.records.clone();
    let durable = journal.durable_records();
    assert!(found.starts_with(&durable), "acknowledged records are lost");
    if found.len() > durable.len() {
        // Only padding of the torn group was missing: it counts.
        let last = recovered.ring.sequence() - 1;
        let extra = found[durable.len()..].to_vec();
        let sealed = Sealed { block: 0, blocks: 0, sequence: last, durable_then: extra.last().unwrap().0 };
        journal.groups.push((sealed, extra));
    }
    assert_eq!(recovered.damage, []);
    journal.ring = recovered.ring;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn after_any_history_of_crashes_exactly_the_durable_records_are_replayed(steps in steps()) {
        let journal = run(&steps);
        let recovered = journal.recover();
        prop_assert_eq!(&recovered.records, &journal.durable_records());
        prop_assert_eq!(recovered.damage, []);
        prop_assert_eq!(recovered.ring.lsn_next(), journal.ring.lsn_next());
    }

    /// Rot anywhere: what is missing is either listed as damage of its volume, or it was the last group.
    #[test]
    fn no_acknowledged_record_disappears_in_silence(
        steps in steps(), rot in proptest::collection::vec(0usize..BLOCKS as usize * 4096, 1..4),
    ) {
        let mut journal = run(&steps);
        for &at in &rot {
            journal.region[at] ^= 0x10;
        }
        let recovered = journal.recover();
        let last = journal.groups.last().map(|(sealed, _)| sealed.sequence);
        let got: std::collections::BTreeSet<u64> = recovered.records.iter().map(|(lsn, _)| lsn.0).collect();
        for (sealed, list) in &journal.groups {
            let expected = list.iter().filter(|(lsn, _)| *lsn >= journal.start.lsn);
            for (lsn, record) in expected {
                if got.contains(&lsn.0) {
                    continue;
                }
                let volume = record.volume().unwrap();
                let listed = recovered.damage.iter().any(|damage| match &damage.volumes {
                    VolumeList::Any => true,
                    VolumeList::Some(list) => list.contains(&volume),
                });
                // With several rotten places, the groups from the first on may all be gone with the last.
                let tail = Some(sealed.sequence) == last || rot.len() > 1;
                prop_assert!(listed || tail, "record {} of group {} is lost", lsn, sealed.sequence);
            }
        }
        for (lsn, record) in &recovered.records {
            let written = journal.groups.iter().flat_map(|(_, list)| list).any(|known| known == &(*lsn, record.clone()));
            prop_assert!(written, "record {} was never written", lsn);
        }
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..20_000), block in 0u32..8) {
        let start = Position { block, sequence: 1, lsn: Lsn(1) };
        let _ = recover(&bytes, SHARD, 100, seed(), start, &geometry());
    }

    /// A header with a right checksum and any content: the format's own checks must hold.
    #[test]
    fn forged_headers_never_panic(at in 8usize..640, with in proptest::collection::vec(any::<u8>(), 1..16), group in 0usize..3) {
        let mut journal = Journal::new();
        (1..=3).for_each(|volume| journal.append(volume, 100));
        let block = journal.groups[group].0.block;
        let offset = Ring::offset(block) as usize;
        for (n, &byte) in with.iter().enumerate() {
            journal.region[offset + (at + n).min(639)] = byte;
        }
        let generation = u32::from_le_bytes(journal.region[offset + 16..offset + 20].try_into().unwrap());
        let crc = seed().generation(u64::from(generation)).of(&journal.region[offset + 8..offset + 640]);
        journal.region[offset + 4..offset + 8].copy_from_slice(&crc.to_le_bytes());
        let _ = recover(&journal.region, SHARD, 100, seed(), journal.start, &geometry());
    }
}
