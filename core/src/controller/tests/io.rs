//! I/O commands: what is taken, and the status of what is not.

use proptest::prelude::*;
use zerocopy::FromBytes;

use super::*;
use crate::controller::io::{IoCommand, IoWork, deallocations, fuse};
use crate::ids::VolumeId;
use crate::limits::{DEALLOCATE_BYTES_MAX, REQUEST_BYTES_MAX, STRIPE};
use crate::request::Command;
use crate::wire::command::{Direction, FABRICS, Fuse, nvm};
use crate::wire::dsm::DsmRange;
use crate::wire::sgl::DataPlace;

const GIB: u64 = 1 << 30;
/// Blocks of volume "v".
const BLOCKS: u64 = GIB / 512;

struct Rig {
    /// Keeps the association alive, as its connection would.
    admin: AdminQueue,
    io: IoQueue,
    directory: Directory,
}

fn rig(directory: Directory) -> Rig {
    let (registry, admin) = enabled(VOLUME, &directory);
    let io = connect_io(&registry, &directory, &admin, 1);
    Rig { admin, io, directory }
}

impl Rig {
    fn check(&self, sqe: &Sqe) -> Result<IoCommand, NvmeStatus> {
        self.io.check(sqe, 8192, &self.directory)
    }

    fn refusal(&self, sqe: &Sqe) -> NvmeStatus {
        self.check(sqe).map(|command| panic!("{command:?}")).unwrap_err()
    }
}

fn with_data(opcode: u8, slba: u64, blocks: u32) -> Sqe {
    Sqe::on_blocks(opcode, 1, slba, blocks).with_data(Sgl::transport(blocks * 512))
}

fn request(command: Command, offset: u64, len: u32) -> IoWork {
    IoWork::Request { command, offset, len }
}

#[test]
fn each_command_comes_down_to_its_request() {
    let rig = rig(directory());
    let read = rig.check(&with_data(nvm::READ, 8, 16)).unwrap();
    assert_eq!(read.work, request(Command::Read, 4096, 8192));
    assert_eq!((read.volume, read.fuse, read.direction), (VolumeId(1), Fuse::Normal, Direction::ControllerToHost));
    assert_eq!(read.data, DataPlace::Transport { len: 8192 });
    let write = with_data(nvm::WRITE, 0, 1);
    assert_eq!(rig.check(&write).unwrap().work, request(Command::Write { fua: false }, 0, 512));
    assert_eq!(rig.check(&write.with_fua()).unwrap().work, request(Command::Write { fua: true }, 0, 512));
    let inside = rig.check(&write.with_data(Sgl::in_capsule(512))).unwrap();
    assert_eq!(
        (inside.direction, inside.data),
        (Direction::HostToController, DataPlace::InCapsule { offset: 0, len: 512 })
    );
    assert_eq!(rig.check(&with_data(nvm::COMPARE, 1, 2)).unwrap().work, request(Command::Compare, 512, 1024));
    let flush = rig.check(&Sqe::flush(1)).unwrap();
    assert_eq!((flush.work, flush.direction), (request(Command::Flush, 0, 0), Direction::None));
    assert!(flush.data.is_empty());
    let zeroes = Sqe::on_blocks(nvm::WRITE_ZEROES, 1, 8, 65_536);
    let expected = |fua, deallocate| request(Command::WriteZeroes { fua, deallocate }, 4096, 32 << 20);
    assert_eq!(rig.check(&zeroes).unwrap().work, expected(false, false));
    assert_eq!(rig.check(&zeroes.with_deallocate().with_fua()).unwrap().work, expected(true, true));
    let discard = rig.check(&Sqe::deallocate(1, 3).with_data(Sgl::transport(48))).unwrap();
    assert_eq!((discard.work, discard.direction), (IoWork::Deallocate { ranges: 3 }, Direction::HostToController));
    let mut hints = Sqe::deallocate(1, 256).with_data(Sgl::in_capsule(4096));
    hints.cdw11 = 0b11.into();
    assert_eq!(rig.check(&hints).unwrap().work, IoWork::Hints);
    assert_eq!(rig.admin.association().subsystem().unwrap().nsid_max(), 1);
}

#[test]
fn a_read_past_the_end_is_out_of_range() {
    let rig = rig(directory());
    assert!(rig.check(&with_data(nvm::READ, BLOCKS - 1, 1)).is_ok());
    for (slba, blocks) in [(BLOCKS, 1), (BLOCKS - 1, 2), (u64::MAX, 1), (u64::MAX - 7, 8), (1 << 55, 8)] {
        for opcode in [nvm::READ, nvm::WRITE, nvm::COMPARE] {
            assert_eq!(
                rig.refusal(&with_data(opcode, slba, blocks)),
                NvmeStatus::LBA_OUT_OF_RANGE.dnr(),
                "{slba} {blocks}"
            );
        }
        let zeroes = Sqe::on_blocks(nvm::WRITE_ZEROES, 1, slba, blocks);
        assert_eq!(rig.refusal(&zeroes), NvmeStatus::LBA_OUT_OF_RANGE.dnr());
    }
}

#[test]
fn transfers_beyond_the_limit_are_refused() {
    let rig = rig(directory_with(|record| record.lba_bytes = 4096));
    let read = |blocks: u32| Sqe::on_blocks(nvm::READ, 1, 0, blocks).with_data(Sgl::transport(blocks * 4096));
    assert!(rig.check(&read(64)).is_ok());
    assert_eq!(rig.refusal(&read(65)), NvmeStatus::INVALID_FIELD.dnr());
    let zeroes = |blocks| Sqe::on_blocks(nvm::WRITE_ZEROES, 1, 0, blocks);
    assert!(rig.check(&zeroes(8192)).is_ok());
    assert_eq!(rig.refusal(&zeroes(8193)), NvmeStatus::INVALID_FIELD.dnr());
}

#[test]
fn an_sgl_that_does_not_fit_its_command_or_its_capsule_is_refused() {
    let rig = rig(directory());
    let write = with_data(nvm::WRITE, 0, 8);
    let capsule = |offset: u64, length: u32| Sgl { address: offset.into(), ..Sgl::in_capsule(length) };
    for (sgl, expected) in [
        (Sgl::transport(4095), NvmeStatus::DATA_SGL_LENGTH_INVALID),
        (Sgl::transport(8192), NvmeStatus::DATA_SGL_LENGTH_INVALID),
        (Sgl::transport(0), NvmeStatus::DATA_SGL_LENGTH_INVALID),
        (Sgl::transport(u32::MAX), NvmeStatus::DATA_SGL_LENGTH_INVALID),
        (capsule(4097, 4096), NvmeStatus::DATA_SGL_LENGTH_INVALID),
        (capsule(8193, 4096), NvmeStatus::SGL_OFFSET_INVALID),
        (capsule(u64::MAX, 4096), NvmeStatus::SGL_OFFSET_INVALID),
        (Sgl { kind: 0x00, ..Sgl::transport(4096) }, NvmeStatus::SGL_DESCRIPTOR_TYPE_INVALID),
        (Sgl { kind: 0x30, ..Sgl::transport(4096) }, NvmeStatus::SGL_DESCRIPTOR_TYPE_INVALID),
        (Sgl { kind: 0x40, ..Sgl::transport(4096) }, NvmeStatus::SGL_DESCRIPTOR_TYPE_INVALID),
    ] {
        assert_eq!(rig.refusal(&write.with_data(sgl)), expected.dnr(), "{sgl:?}");
    }
    assert!(rig.check(&write.with_data(capsule(4096, 4096))).is_ok());
    let read = with_data(nvm::READ, 0, 8).with_data(Sgl::in_capsule(4096));
    assert_eq!(rig.refusal(&read), NvmeStatus::SGL_DESCRIPTOR_TYPE_INVALID.dnr(), "a response has no room for data");
    let short = Sqe::deallocate(1, 2).with_data(Sgl::transport(16));
    assert_eq!(rig.refusal(&short), NvmeStatus::DATA_SGL_LENGTH_INVALID.dnr());
    let long = Sqe::deallocate(1, 2).with_data(Sgl::transport(4112));
    assert_eq!(rig.refusal(&long), NvmeStatus::DATA_SGL_LENGTH_INVALID.dnr());
}

#[test]
fn a_discard_of_linux_has_room_for_256_ranges_and_only_those_that_it_counts_are_read() {
    let rig = rig(directory());
    let command = rig.check(&Sqe::deallocate(1, 1).with_data(Sgl::in_capsule(4096))).unwrap();
    assert_eq!(command.work, IoWork::Deallocate { ranges: 1 });
    let volume = record(1, "v");
    let mut data = vec![0xFF; 4096];
    data[..16].copy_from_slice(DsmRange::new(8, 16).as_bytes());
    let cut: Vec<_> = deallocations(&data, 1, &volume).unwrap().collect();
    assert_eq!(cut, [(8 * 512, 16 * 512)]);
    assert_eq!(deallocations(&data, 2, &volume).err(), Some(NvmeStatus::LBA_OUT_OF_RANGE.dnr()));
}

#[test]
fn commands_of_the_wrong_shape_are_refused() {
    let rig = rig(directory());
    let read = with_data(nvm::READ, 0, 8);
    for flags in [0x00, 0x80, 0xC0, 0x44, 0x43] {
        assert_eq!(rig.refusal(&Sqe { flags, ..read }), NvmeStatus::INVALID_FIELD.dnr(), "{flags:#x}");
    }
    for nsid in [0, 2, 0xFFFF_FFFF] {
        assert_eq!(rig.refusal(&Sqe { nsid: nsid.into(), ..read }), NvmeStatus::INVALID_NAMESPACE_OR_FORMAT.dnr());
        assert_eq!(rig.refusal(&Sqe::flush(nsid)), NvmeStatus::INVALID_NAMESPACE_OR_FORMAT.dnr());
    }
    for opcode in [0x03, 0x04, 0x0C, 0x0D, 0x0E, 0x19, 0x79, 0x80, 0xFF] {
        assert_eq!(rig.refusal(&Sqe { opcode, ..read }), NvmeStatus::INVALID_OPCODE.dnr(), "{opcode:#x}");
    }
    let mut directive = with_data(nvm::WRITE, 0, 8);
    directive.cdw12 = (7 | 1 << 20).into();
    assert_eq!(rig.refusal(&directive), NvmeStatus::INVALID_FIELD.dnr());
    assert_eq!(rig.refusal(&Connect::new(1, 32, 0).sqe()), NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr());
    assert_eq!(rig.refusal(&fabrics::property_get(Property::Status)), NvmeStatus::INVALID_FIELD.dnr());
    assert_eq!(rig.refusal(&Sqe::new(FABRICS, 8)), NvmeStatus::INVALID_OPCODE.dnr(), "disconnect");
}

#[test]
fn a_volume_that_is_gone_faulted_or_read_only_says_so() {
    let mut rig = rig(directory());
    let (read, write) = (with_data(nvm::READ, 0, 8), with_data(nvm::WRITE, 0, 8));
    rig.directory = directory_of(|parts| parts.volumes[0].fault = Some("damaged".into()));
    assert_eq!(rig.refusal(&read), NvmeStatus::NAMESPACE_NOT_READY.dnr());
    rig.directory = directory_of(|parts| parts.read_only = true);
    assert!(rig.check(&read).is_ok() && rig.check(&Sqe::flush(1)).is_ok());
    assert!(rig.check(&with_data(nvm::COMPARE, 0, 1)).is_ok());
    let discard = Sqe::deallocate(1, 1).with_data(Sgl::transport(16));
    for sqe in [write, Sqe::on_blocks(nvm::WRITE_ZEROES, 1, 0, 8), discard] {
        assert_eq!(rig.refusal(&sqe), NvmeStatus::NAMESPACE_WRITE_PROTECTED.dnr());
    }
    rig.directory = Directory::new(parts([]));
    assert_eq!(rig.refusal(&read), NvmeStatus::INVALID_NAMESPACE_OR_FORMAT.dnr());
    rig.directory = Directory::new(parts([record(1, "renamed")]));
    assert!(rig.check(&write).is_ok(), "a new name disturbs nobody");
}

#[test]
fn after_shutdown_no_command_is_taken() {
    let mut rig = rig(directory());
    assert!(!rig.io.is_ended());
    set(&mut rig.admin, Configuration::SHUT_DOWN, &rig.directory);
    assert!(rig.io.is_ended());
    assert_eq!(rig.refusal(&with_data(nvm::READ, 0, 1)), NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr());
}

#[test]
fn compare_and_write_are_fused_on_one_and_the_same_block() {
    let rig = rig(directory());
    let pair = |compare: Sqe, write: Sqe| {
        let first = rig.check(&compare.with_fuse(Fuse::First)).unwrap();
        let second = rig.check(&write.with_fuse(Fuse::Second)).unwrap();
        fuse(&first, &second, rig.directory.volume(VolumeId(1)).unwrap())
    };
    let (compare, write) = (with_data(nvm::COMPARE, 5, 1), with_data(nvm::WRITE, 5, 1));
    let expected = |fua| Ok(request(Command::CompareAndWrite { fua }, 2560, 512));
    assert_eq!(pair(compare, write), expected(false));
    assert_eq!(pair(compare, write.with_fua()), expected(true));
    assert_eq!(pair(compare, with_data(nvm::WRITE, 6, 1)), Err(NvmeStatus::INVALID_FIELD.dnr()));
    assert_eq!(pair(compare, with_data(nvm::WRITE, 5, 2)), Err(NvmeStatus::INVALID_FIELD.dnr()));
    let two = pair(with_data(nvm::COMPARE, 5, 2), with_data(nvm::WRITE, 5, 2));
    assert_eq!(two, Err(NvmeStatus::ATOMIC_WRITE_UNIT_EXCEEDED.dnr()));
    for (sqe, bad) in [
        (with_data(nvm::READ, 0, 1), Fuse::First),
        (write, Fuse::First),
        (compare, Fuse::Second),
        (Sqe::flush(1), Fuse::Second),
        (Sqe::deallocate(1, 1).with_data(Sgl::transport(16)), Fuse::First),
    ] {
        assert_eq!(rig.refusal(&sqe.with_fuse(bad)), NvmeStatus::INVALID_FIELD.dnr());
    }
}

#[test]
fn ranges_to_deallocate_are_all_checked_before_the_first_is_touched() {
    let volume = VolumeRecord { size: 4 * GIB, ..record(1, "v") };
    let blocks = volume.size / 512;
    let cut = |ranges: &[DsmRange]| {
        deallocations(ranges.as_bytes(), ranges.len() as u16, &volume).map(Iterator::collect::<Vec<_>>)
    };
    let ranges = [DsmRange::new(8, 8), DsmRange::new(0, 0), DsmRange::new(blocks - 1, 1)];
    assert_eq!(cut(&ranges), Ok(vec![(4096, 4096), (4 * GIB - 512, 512)]));
    let bad = [DsmRange::new(8, 8), DsmRange::new(blocks - 1, 2)];
    assert_eq!(cut(&bad), Err(NvmeStatus::LBA_OUT_OF_RANGE.dnr()));
    assert_eq!(cut(&[DsmRange::new(u64::MAX, 1)]), Err(NvmeStatus::LBA_OUT_OF_RANGE.dnr()));
    let long = cut(&[DsmRange::new(1, blocks as u32 - 1)]).unwrap();
    assert_eq!(long.len(), 4);
    assert!(long.iter().all(|&(_, len)| len <= DEALLOCATE_BYTES_MAX));
    assert_eq!(long.iter().map(|&(_, len)| u64::from(len)).sum::<u64>(), 4 * GIB - 512);
    assert!(long.is_sorted_by(|a, b| a.0 + u64::from(a.1) == b.0));
    assert_eq!(deallocations(&[0; 15], 1, &volume).err(), Some(NvmeStatus::DATA_SGL_LENGTH_INVALID.dnr()));
    assert_eq!(u64::from(DEALLOCATE_BYTES_MAX) % STRIPE, 0);
}

proptest! {
    #[test]
    fn whatever_a_host_sends_is_a_request_inside_the_volume_or_a_status(
        bytes in prop::collection::vec(any::<u8>(), 64),
        opcode in prop::sample::select(vec![0u8, 1, 2, 5, 8, 9, 0x7F, 0xC1]),
        likely: bool,
        capsule in 0usize..=8192,
    ) {
        let rig = rig(directory());
        let mut sqe = Sqe::read_from_bytes(&bytes).unwrap();
        if likely {
            // Right enough to get past the first checks.
            sqe = Sqe { opcode, flags: 0x40, nsid: 1.into(), ..sqe };
            sqe.cdw11 = (sqe.cdw11.get() & 0b111).into();
            sqe.cdw10 = (sqe.cdw10.get() % (BLOCKS as u32 + 9)).into();
            let blocks = sqe.cdw12.get() & 0x1FF;
            sqe.cdw12 = (sqe.cdw12.get() & 0xFF0F_0000 | blocks).into();
            sqe.sgl = Sgl::transport((blocks + 1) * 512);
        }
        match rig.io.check(&sqe, capsule, &rig.directory) {
            Err(status) => prop_assert!(!status.is_success()),
            Ok(command) => match command.work {
                IoWork::Request { command: work, offset, len } => {
                    prop_assert!(offset + u64::from(len) <= GIB && offset % 512 == 0 && len % 512 == 0);
                    match work {
                        Command::Flush | Command::WriteZeroes { .. } => prop_assert!(command.data.is_empty()),
                        _ => prop_assert!(command.data.len() == len && len > 0 && len <= REQUEST_BYTES_MAX),
                    }
                }
                IoWork::Deallocate { ranges } => {
                    prop_assert!((u32::from(ranges) * 16..=4096).contains(&command.data.len()));
                }
                IoWork::Hints => prop_assert!(command.data.len() % 16 == 0),
            },
        }
    }

    #[test]
    fn whatever_an_admin_queue_gets_it_answers(
        commands in prop::collection::vec((prop::collection::vec(any::<u8>(), 64), any::<bool>(), 0usize..12), 1..20),
    ) {
        let directory = directory();
        let (_registry, mut queue) = enabled(VOLUME, &directory);
        for (bytes, likely, at) in commands {
            let mut sqe = Sqe::read_from_bytes(&bytes).unwrap();
            if likely {
                let opcode = [2, 6, 8, 9, 10, 12, 0x18, 0x7F, 0x7F, 2, 6, 0x80][at];
                sqe = Sqe { opcode, flags: 0x40, nsid: (sqe.nsid.get() & 5).into(), ..sqe };
                sqe.cdw10 = (sqe.cdw10.get() & 0x00FF_001F).into();
                sqe.sgl = Sgl::transport([4096, 16, (sqe.cdw10.get() >> 16 | sqe.cdw11.get() << 16).wrapping_add(1).wrapping_mul(4)][at % 3]);
            }
            let Ok(len) = queue.reply_len(&sqe, 8192) else { continue };
            prop_assert!(len <= REQUEST_BYTES_MAX);
            let mut out = vec![0; len as usize];
            match queue.on_command(&sqe, &mut out, &directory, NOW) {
                AdminAction::Complete { status, .. } => prop_assert!(len == 0 || !status.is_success()),
                AdminAction::SendData { .. } => prop_assert!(len > 0),
                AdminAction::Hold => prop_assert_eq!(sqe.opcode, 12),
            }
            while queue.take_completion().is_some() {}
        }
    }

    #[test]
    fn whatever_connect_says_it_gets_a_queue_or_a_status(
        sqe in prop::collection::vec(any::<u8>(), 64),
        data in prop::collection::vec(any::<u8>(), 1024),
        keep in prop::array::uniform8(any::<bool>()),
    ) {
        let (registry, directory) = (Registry::default(), directory());
        let good = Attempt::admin(VOLUME);
        let mut attempt = good.clone();
        let (noise, noisy) = (Connect::read_from_bytes(&sqe).unwrap(), ConnectData::read_from_bytes(&data).unwrap());
        if !keep[0] { attempt.connect.queue_id = noise.queue_id; }
        if !keep[1] { attempt.connect.sq_size = noise.sq_size; }
        if !keep[2] { attempt.connect.record_format = noise.record_format; }
        if !keep[3] { attempt.connect.attributes = noise.attributes; }
        if !keep[4] { attempt.data.host_nqn = noisy.host_nqn; }
        if !keep[5] { attempt.data.subsystem_nqn = noisy.subsystem_nqn; }
        if !keep[6] { attempt.data.controller_id = noisy.controller_id; }
        if !keep[7] { attempt.connect.sgl = noise.sgl; }
        let made = attempt.make(&registry, &directory);
        if keep == [true; 8] { prop_assert!(made.is_ok()); }
        prop_assert_eq!(registry.len(), usize::from(made.is_ok()));
    }
}
