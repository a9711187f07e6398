//! The catalog against a plain list of records, through crashes, rot and full halves.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::catalog::{AppendError, Frame, KeptLogs, StreamRecord};
use crate::event::{Event, EventKind};
use crate::export::{ExportKind, ExportRecord, Polling};
use crate::ids::{ExportId, JobId, ShardId};
use crate::space::SlabId;
use crate::stream::OnError;
use crate::volume::VolumeRecord;

fn seed() -> Seed {
    Seed::pool(Uuid::from_u128(6))
}

fn volume(id: u32, name: &str) -> VolumeRecord {
    VolumeRecord {
        id: VolumeId(id),
        name: name.into(),
        uuid: Uuid::from_u128(u128::from(id)),
        size: 1 << 30,
        lba_bytes: 512,
        shards: vec![ShardId(0), ShardId(1)],
        created_unix_s: 1_800_000_000,
        exclusive: false,
        allowed_hosts: vec![],
        cuts: vec![],
        dead: vec![],
        view: None,
        parent: None,
    }
}

fn created(id: u32) -> CatalogRecord {
    CatalogRecord::VolumeCreated(volume(id, &format!("vm{id}")))
}

fn export(id: u32, volume: u32) -> ExportRecord {
    ExportRecord {
        id: ExportId(id),
        kind: ExportKind::VhostUser,
        volume: VolumeId(volume),
        socket: format!("vhost/{id}.sock"),
        queues: 4,
        polling: Polling::Busy,
        pin_guest: true,
        read_only: false,
    }
}

/// Both copies and their writer.
struct Disk {
    copies: [Vec<u8>; 2],
    log: CatalogLog,
    state: CatalogState,
}

impl Disk {
    fn new() -> Disk {
        let mut state = CatalogState::default();
        state.apply(&CatalogRecord::DeviceAdded(0, Uuid::from_u128(1), 1 << 30)).unwrap();
        let (log, frames) = CatalogLog::format(seed(), &state).unwrap();
        let mut disk = Disk { copies: [vec![0; COPY_BYTES], vec![0; COPY_BYTES]], log, state };
        frames.iter().for_each(|frame| disk.write(frame, [true, true]));
        disk
    }

    fn write(&mut self, frame: &Frame, to: [bool; 2]) {
        let at = frame.offset as usize;
        for (copy, _) in self.copies.iter_mut().zip(to).filter(|(_, to)| *to) {
            copy[at..at + frame.bytes.len()].copy_from_slice(&frame.bytes);
        }
    }

    /// Appends, compacting where needed; returns where the frame is.
    fn append(&mut self, records: &[CatalogRecord]) -> Frame {
        let frame = match self.log.append(records) {
            Err(AppendError::NeedsCompaction) => {
                let frames = self.log.compact(&self.state).unwrap();
                frames.iter().for_each(|frame| self.write(frame, [true, true]));
                self.log.append(records).unwrap()
            }
            frame => frame.unwrap(),
        };
        self.write(&frame, [true, true]);
        records.iter().for_each(|record| self.state.apply(record).unwrap());
        frame
    }

    fn recover(&self) -> Result<RecoveredCatalog, CatalogError> {
        recover([&self.copies[0], &self.copies[1]], 9, seed())
    }

    fn corrupt(&mut self, at: u64, copies: [bool; 2]) {
        for (copy, _) in self.copies.iter_mut().zip(copies).filter(|(_, to)| *to) {
            copy[at as usize] ^= 0x20;
        }
    }
}

#[test]
fn every_record_comes_back_as_it_was_written() {
    let records = [
        created(3),
        CatalogRecord::VolumeRemoved(VolumeId(3)),
        CatalogRecord::VolumeErased(VolumeId(3)),
        CatalogRecord::VolumeResized(VolumeId(3), 1 << 40),
        CatalogRecord::VolumeRenamed(VolumeId(3), "other".into()),
        CatalogRecord::HostsAllowed(VolumeId(3), vec!["nqn.a".into(), "nqn.b".into()]),
        CatalogRecord::HostAttached(VolumeId(3), "nqn.a".into()),
        CatalogRecord::HostUntold(VolumeId(3), "nqn.a".into()),
        CatalogRecord::HostUntold(VolumeId(3), "nqn.b".into()),
        CatalogRecord::HostTold(VolumeId(3), "nqn.b".into()),
        CatalogRecord::WriterNoted(VolumeId(3), "nqn.a".into(), [7; 16]),
        CatalogRecord::HostDetached(VolumeId(3), "nqn.a".into()),
        CatalogRecord::VolumeFaulted(VolumeId(3), Some(ShardId(1)), "journal".into()),
        CatalogRecord::VolumeRemains(VolumeId(3), vec![ShardId(7)]),
        CatalogRecord::SlabOwned(SlabId::new(1, 2), Some(ShardId(3))),
        CatalogRecord::SlabOwned(SlabId::new(1, 2), None),
        CatalogRecord::DeviceAdded(1, Uuid::from_u128(2), 1 << 40),
        CatalogRecord::Opened(4),
        CatalogRecord::Closed(4),
        CatalogRecord::NextVolume(VolumeId(8)),
        CatalogRecord::ExportAdded(export(5, 3)),
        CatalogRecord::ExportRemoved(VolumeId(3), ExportId(5)),
        CatalogRecord::LogsKept(KeptLogs { machine: [4; 16], folder: "/dev/shm".into() }),
    ];
    let mut kinds = BTreeSet::new();
    for record in records {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert_eq!(CatalogRecord::decode(&bytes), Ok((Some(record.clone()), bytes.len())));
        assert!(kinds.insert((record.kind(), bytes)));
        assert!(record.kind() < crate::catalog::kind::CUT, "kinds of later versions are only reserved");
    }
}

#[test]
fn the_bytes_of_a_record_are_pinned() {
    let mut bytes = Vec::new();
    CatalogRecord::HostAttached(VolumeId(300), "nqn".into()).encode(&mut bytes);
    assert_eq!(bytes, [7, 0, 1, 0, 6, 0, 0, 0, 0xAC, 2, 3, b'n', b'q', b'n']);
    let mut bytes = Vec::new();
    created(1).encode(&mut bytes);
    assert_eq!(bytes, include_bytes!("volume_created_v1.bin"), "volumes made by version 1 must stay readable");
    let mut bytes = Vec::new();
    CatalogRecord::ExportAdded(export(5, 300)).encode(&mut bytes);
    let socket = b"vhost/5.sock";
    let expected = [&[24, 0, 1, 0, 21, 0, 0, 0, 5, 0, 0xAC, 2, 12][..], socket, &[4, 2, 1, 0]].concat();
    assert_eq!(bytes, expected);
    let mut bytes = Vec::new();
    CatalogRecord::StreamKept(stream(3)).encode(&mut bytes);
    assert_eq!(bytes, [40, 0, 1, 0, 12, 0, 0, 0, 3, 7, 1, 0x80, 8, 1, 5, 6, 9, 1, 1, b'x']);
    let mut bytes = Vec::new();
    CatalogRecord::EventTold(event(300, 3, "x")).encode(&mut bytes);
    assert_eq!(bytes, [41, 0, 1, 0, 15, 0, 0, 0, 0xAC, 2, 0, 36, 1, b'v', 1, 3, 1, 7, 0, 1, 5, 1, b'x']);
}

#[test]
fn a_new_catalog_holds_what_format_put_there() {
    let disk = Disk::new();
    let recovered = disk.recover().unwrap();
    assert_eq!(recovered.state.records(), disk.state.records());
    assert_eq!((recovered.repairs.len(), &recovered.log), (0, &CatalogLog { boot: 9, ..disk.log }));
}

#[test]
fn h2_a_record_in_one_copy_counts_and_is_repaired_into_the_other() {
    for missing in 0..2 {
        let mut disk = Disk::new();
        let frame = disk.log.append(&[created(1)]).unwrap();
        disk.write(&frame, [missing != 0, missing != 1]);
        let recovered = disk.recover().unwrap();
        assert!(recovered.state.volume_named("vm1").is_some());
        assert_eq!(recovered.repairs, [Repair { copy: missing, offset: frame.offset, bytes: frame.bytes.clone() }]);
    }
}

#[test]
fn exports_come_back_end_with_their_volume_and_go_into_a_snapshot() {
    let mut disk = Disk::new();
    disk.append(&[created(1)]);
    disk.append(&[created(2)]);
    for (id, volume) in [(1, 1), (2, 2), (3, 2)] {
        disk.append(&[CatalogRecord::ExportAdded(export(id, volume))]);
    }
    disk.append(&[CatalogRecord::ExportRemoved(VolumeId(2), ExportId(3))]);
    let numbers = |state: &CatalogState| state.exports().map(|export| export.id.0).collect::<Vec<_>>();
    assert_eq!((numbers(&disk.recover().unwrap().state), disk.state.next_export()), (vec![1, 2], ExportId(3)));
    let frames = disk.log.compact(&disk.state).unwrap();
    frames.iter().for_each(|frame| disk.write(frame, [true, true]));
    assert_eq!(disk.recover().unwrap().state, disk.state);
    disk.append(&[CatalogRecord::VolumeRemoved(VolumeId(1))]);
    assert_eq!(numbers(&disk.recover().unwrap().state), [2]);
}

#[test]
fn i4_a_lost_removal_of_an_export_faults_its_volume_and_a_later_export_has_number_and_socket() {
    let mut disk = Disk::new();
    disk.append(&[created(1)]);
    disk.append(&[created(2)]);
    disk.append(&[CatalogRecord::ExportAdded(export(1, 1))]);
    let lost = disk.append(&[CatalogRecord::ExportRemoved(VolumeId(1), ExportId(1))]);
    disk.append(&[CatalogRecord::ExportAdded(export(1, 2))]);
    disk.corrupt(lost.offset + 70, [true, true]);
    let recovered = disk.recover().unwrap();
    assert_eq!(recovered.damaged, [VolumeId(1)]);
    assert_eq!(recovered.state.exports().collect::<Vec<_>>(), [&export(1, 2)]);
}

#[test]
fn a_last_frame_that_is_whole_in_neither_copy_was_never_acted_upon() {
    let mut disk = Disk::new();
    disk.append(&[created(1)]);
    let frame = disk.append(&[created(2)]);
    disk.corrupt(frame.offset + 70, [true, true]);
    let mut recovered = disk.recover().unwrap();
    assert!(recovered.state.volume_named("vm1").is_some() && recovered.state.volume_named("vm2").is_none());
    assert_eq!((recovered.log.append(&[created(2)]).unwrap().offset, recovered.damaged.len()), (frame.offset, 0));
}

#[test]
fn i4_a_damaged_record_faults_the_volume_it_is_about_and_no_other() {
    let mut disk = Disk::new();
    disk.append(&[created(1)]);
    let lost = disk.append(&[created(2)]);
    disk.append(&[created(3)]);
    disk.append(&[CatalogRecord::VolumeResized(VolumeId(2), 2 << 30)]);
    disk.corrupt(lost.offset + 70, [true, true]);
    let recovered = disk.recover().unwrap();
    assert_eq!(recovered.damaged, [VolumeId(2)]);
    assert_eq!(recovered.state.faults_of(VolumeId(2)).count(), 1);
    assert!(recovered.state.volume_named("vm1").is_some() && recovered.state.volume_named("vm3").is_some());
    assert_eq!(recovered.state.faults().count(), 1);
    // Compacted, the fault stays and the damage is gone.
    let mut log = recovered.log;
    let frames = log.compact(&recovered.state).unwrap();
    frames.iter().for_each(|frame| disk.write(frame, [true, true]));
    let again = disk.recover().unwrap();
    assert_eq!((again.damaged.len(), again.state.faults().count()), (0, 1));
}

#[test]
fn a_damaged_record_about_the_whole_pool_or_a_lost_header_refuses_the_pool_and_says_where() {
    for (record, byte) in [(CatalogRecord::Opened(3), 70), (created(2), 20)] {
        let mut disk = Disk::new();
        let lost = disk.append(&[record]);
        disk.append(&[created(7)]);
        disk.corrupt(lost.offset + byte, [true, true]);
        let block = lost.offset as usize / STEP;
        assert!(matches!(disk.recover(), Err(CatalogError::Frame { block: b, .. }) if b == block), "{byte}");
        // One whole copy is enough.
        disk.corrupt(lost.offset + byte, [true, false]);
        assert_eq!(disk.recover().unwrap().state.records(), disk.state.records());
    }
}

#[test]
fn a_crash_in_the_middle_of_a_compaction_leaves_the_old_half_in_charge() {
    let mut disk = Disk::new();
    for id in 1..20 {
        let allowed_hosts = vec!["nqn".repeat(70); 100];
        disk.append(&[CatalogRecord::VolumeCreated(VolumeRecord { allowed_hosts, ..volume(id, &format!("vm{id}")) })]);
    }
    let old = disk.recover().unwrap();
    let frames = disk.log.clone().compact(&disk.state).unwrap();
    assert!(frames.len() > 1, "one frame cannot be half written");
    disk.write(&frames[0], [true, true]);
    let recovered = disk.recover().unwrap();
    assert_eq!((recovered.state.records(), recovered.log.half), (disk.state.records(), old.log.half));
    // The next one does not mix with what is left of it.
    disk.log = recovered.log;
    let again = disk.log.compact(&disk.state).unwrap();
    again.iter().for_each(|frame| disk.write(frame, [true, true]));
    disk.append(&[created(5000)]);
    assert_eq!(disk.recover().unwrap().state.records(), disk.state.records());
}

#[test]
fn a_newest_half_that_was_in_use_and_lost_its_snapshot_is_never_replaced_by_an_older_one() {
    let mut disk = Disk::new();
    let frames = disk.log.compact(&disk.state).unwrap();
    frames.iter().for_each(|frame| disk.write(frame, [true, true]));
    disk.append(&[created(1)]);
    disk.corrupt(frames[0].offset + 70, [true, true]);
    assert_eq!(disk.recover().unwrap_err(), CatalogError::Snapshot { half: 1, number: 2 });
    assert_eq!(recover([&vec![0; COPY_BYTES], &vec![0; COPY_BYTES]], 1, seed()).unwrap_err(), CatalogError::NoSnapshot);
}

#[test]
fn a_kind_of_a_later_version_refuses_the_pool_only_if_it_may_not_be_skipped() {
    for (flags, opens) in [(0u16, true), (1, false)] {
        let mut disk = Disk::new();
        let mut payload = Vec::new();
        payload.extend(999u16.to_le_bytes());
        payload.extend(flags.to_le_bytes());
        payload.extend(4u32.to_le_bytes());
        payload.extend([1, 2, 3, 4]);
        let CatalogLog { number, sequence, boot, half, block, .. } = disk.log;
        let framing = crate::catalog::frame::Framing {
            seed: seed(),
            number,
            sequence,
            boot,
            snapshot: false,
            snapshot_end: false,
        };
        let bytes = crate::catalog::frame::encode_frame(&framing, &payload, 1, None);
        disk.write(&Frame { offset: (half * HALF_BYTES + block * STEP) as u64, bytes }, [true, true]);
        match disk.recover() {
            Ok(_) => assert!(opens),
            Err(error) => assert!(!opens && error.needs_later_version() && error.to_string().contains("later version")),
        }
    }
}

#[test]
fn ids_and_names_are_not_reused_while_they_matter() {
    let mut state = CatalogState::default();
    state.apply(&created(5)).unwrap();
    let renamed = CatalogRecord::VolumeCreated(volume(6, "vm5"));
    assert_eq!(state.apply(&renamed), Err(ApplyError::NameUsed { name: "vm5".into(), owner: VolumeId(5) }));
    state.apply(&CatalogRecord::VolumeRemoved(VolumeId(5))).unwrap();
    assert_eq!(state.apply(&created(5)), Err(ApplyError::IdUsed(VolumeId(5))));
    assert_eq!(state.removed().count(), 1);
    state.apply(&renamed).unwrap();
    state.apply(&CatalogRecord::VolumeErased(VolumeId(5))).unwrap();
    assert_eq!((state.next_volume(), state.removed().count()), (7, 0));
}

fn stream(volume: u32) -> StreamRecord {
    StreamRecord {
        volume: VolumeId(volume),
        job: JobId(7),
        speed: Some(1024),
        on_error: OnError::Stop,
        cursor: 5,
        copied: 6,
        started_unix_s: 9,
        paused: Some("x".into()),
    }
}

fn event(number: u64, volume: u32, text: &str) -> Event {
    let event = Event::new(EventKind::StreamPaused, Some(VolumeId(volume)), "v").of_job(Some(JobId(7)));
    Event { number, code: Some(5), ..event.with_text(text) }
}

fn any_record() -> impl Strategy<Value = CatalogRecord> {
    let id = || (1u32..30).prop_map(VolumeId);
    prop_oneof![
        6 => (1u32..30).prop_map(created),
        1 => id().prop_map(CatalogRecord::VolumeRemoved),
        1 => id().prop_map(CatalogRecord::VolumeErased),
        1 => (id(), 1u64..99).prop_map(|(id, gib)| CatalogRecord::VolumeResized(id, gib << 30)),
        1 => (id(), "[a-z]{1,20}").prop_map(|(id, name)| CatalogRecord::VolumeRenamed(id, name)),
        1 => (id(), "[a-z]{1,20}").prop_map(|(id, host)| CatalogRecord::HostAttached(id, host)),
        1 => (id(), "[a-z]{1,20}", any::<[u8; 16]>())
            .prop_map(|(id, nqn, host)| CatalogRecord::WriterNoted(id, nqn, host)),
        1 => (id(), proptest::option::of(0u16..4), ".{0,9}")
            .prop_map(|(id, shard, why)| CatalogRecord::VolumeFaulted(id, shard.map(ShardId), why)),
        1 => (0u32..40, proptest::option::of(0u16..4))
            .prop_map(|(slab, shard)| CatalogRecord::SlabOwned(SlabId(slab), shard.map(ShardId))),
        1 => (1u32..9).prop_map(CatalogRecord::Opened),
        1 => (1u32..9).prop_map(CatalogRecord::Closed),
        1 => (1u32..30).prop_map(|id| CatalogRecord::StreamKept(stream(id))),
        1 => id().prop_map(CatalogRecord::StreamEnded),
        2 => (1u64..400, 1u32..30, ".{0,9}")
            .prop_map(|(number, id, text)| CatalogRecord::EventTold(event(number, id, &text))),
        1 => (any::<[u8; 16]>(), "[a-z/]{1,20}")
            .prop_map(|(machine, folder)| CatalogRecord::LogsKept(KeptLogs { machine, folder })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_history_comes_back_also_through_a_snapshot(records in proptest::collection::vec(any_record(), 0..60), cut: u8) {
        let mut disk = Disk::new();
        for (n, record) in records.iter().enumerate() {
            if disk.state.clone().apply(record).is_ok() {
                disk.append(std::slice::from_ref(record));
            }
            if n == usize::from(cut) {
                let frames = disk.log.compact(&disk.state).unwrap();
                frames.iter().for_each(|frame| disk.write(frame, [true, true]));
            }
        }
        prop_assert_eq!(disk.recover().unwrap().state.records(), disk.state.records());
        let mut again = CatalogState::default();
        for record in disk.state.records() {
            again.apply(&record).unwrap();
        }
        prop_assert_eq!(again.records(), disk.state.records());
    }

    /// Rot in one copy never matters; rot in both gives the truth, a fault or a refusal, and never another state.
    #[test]
    fn rot_in_one_copy_is_repaired_completely(
        ids in proptest::collection::btree_set(1u32..60, 1..20),
        rot in proptest::collection::vec((0usize..24 * STEP, any::<bool>()), 1..6),
    ) {
        let mut disk = Disk::new();
        ids.iter().for_each(|&id| { disk.append(&[created(id)]); });
        let good = disk.copies.clone();
        for &(at, copy) in &rot {
            // Never the same block in both.
            let copy = (at / STEP + usize::from(copy)) % 2;
            if disk.copies[1 - copy][at / STEP * STEP..][..STEP] == good[1 - copy][at / STEP * STEP..][..STEP] {
                disk.copies[copy][at] ^= 0x11;
            }
        }
        let recovered = disk.recover().unwrap();
        prop_assert_eq!(recovered.state.records(), disk.state.records());
        for repair in &recovered.repairs {
            let at = repair.offset as usize;
            disk.copies[repair.copy][at..at + repair.bytes.len()].copy_from_slice(&repair.bytes);
        }
        let used = disk.log.block * STEP;
        prop_assert!((0..2).all(|copy| disk.copies[copy][..used] == good[copy][..used]));
    }

    #[test]
    fn hostile_records_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u16..60) {
        let _ = CatalogRecord::decode(&bytes);
        let mut framed = kind.to_le_bytes().to_vec();
        framed.extend([1, 0]);
        framed.extend((bytes.len() as u32).to_le_bytes());
        framed.extend(&bytes);
        if let Ok((Some(record), _)) = CatalogRecord::decode(&framed) {
            let _ = CatalogState::default().apply(&record);
        }
    }
}
