//! Whatever bytes arrive, parsing answers; and what the host builds, the target reads.

use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::command::{Direction, FABRICS, Fuse, Sqe, admin, nvm};
use super::completion::{Cqe, NvmeStatus};
use super::dsm::DsmRange;
use super::fabrics::{self, Capabilities, Configuration, Connect, ConnectData, Property, PropertyFields};
use super::features::{self, FeatureFields};
use super::identify::{self, IDENTIFY_BYTES, IdentifyController, IdentifyNamespace, NamespaceDescriptors};
use super::log_page::{self, DiscoveryEntry};
use super::sgl::{DataPlace, Sgl};
use super::text;

proptest! {
    #[test]
    fn no_bytes_make_a_command_panic(bytes in prop::array::uniform32(any::<[u8; 2]>()), capsule in 0usize..9000) {
        let sqe = Sqe::read_from_bytes(bytes.as_bytes()).unwrap();
        let _ = (sqe.fuse(), sqe.direction(), sqe.psdt(), sqe.block_range(), sqe.identify_fields());
        let fields = sqe.log_page_fields();
        prop_assert!(fields.len >= 4 && fields.len % 4 == 0);
        let _ = (FeatureFields::of(&sqe), PropertyFields::of(&sqe), Connect::of(&sqe), features::queues_of(sqe.cdw11.get()));
        if let Ok(DataPlace::InCapsule { offset, len }) = sqe.sgl.locate(capsule) {
            prop_assert!(offset as usize + len as usize <= capsule);
        }
    }

    #[test]
    fn data_in_the_capsule_lies_inside_the_capsule(address: u64, length: u32, capsule in 0usize..20_000) {
        let sgl = Sgl { address: address.into(), ..Sgl::in_capsule(length) };
        let inside = u128::from(address) + u128::from(length) <= capsule as u128;
        prop_assert_eq!(sgl.locate(capsule).is_ok(), inside);
    }

    #[test]
    fn no_bytes_make_a_structure_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        let _ = Sqe::read(&bytes);
        let _ = ConnectData::read(&bytes).map(|data| (text::nqn(&data.host_nqn), text::nqn(&data.subsystem_nqn)));
        let _ = DsmRange::read(&bytes);
        let _ = NamespaceDescriptors::read(&bytes);
        let _ = identify::read_namespace_list(&bytes).count();
        let _ = DiscoveryEntry::read(&bytes).filter_map(DiscoveryEntry::target).count();
        let mut page = bytes;
        page.resize(IDENTIFY_BYTES, 0xA5);
        let controller = IdentifyController::ref_from_bytes(&page).unwrap();
        let _ = (controller.serial_text(), controller.in_capsule_bytes(), controller.transfer_bytes_max(4096));
        let _ = IdentifyNamespace::ref_from_bytes(&page).unwrap().lba_bytes();
    }

    #[test]
    fn a_range_of_blocks_comes_back_as_it_was_built(slba: u64, blocks in 1u32..=65_536, fua: bool, deallocate: bool) {
        let mut sqe = Sqe::on_blocks(nvm::WRITE_ZEROES, 1, slba, blocks);
        if fua { sqe = sqe.with_fua(); }
        if deallocate { sqe = sqe.with_deallocate(); }
        let range = Sqe::read(sqe.as_bytes()).unwrap().block_range();
        prop_assert_eq!((range.slba, range.blocks, range.fua, range.deallocate), (slba, blocks, fua, deallocate));
        prop_assert_eq!((range.protection, range.limited_retry, range.storage_tag_check), (0, false, false));
    }

    #[test]
    fn a_log_page_request_comes_back_as_it_was_built(page: u8, offset: u64, dwords in 1u32..=1 << 20, keep: bool) {
        let fields = Sqe::get_log_page(page, 0, offset & !3, dwords * 4, keep).log_page_fields();
        prop_assert_eq!((fields.page, fields.offset, fields.len), (page, offset & !3, u64::from(dwords) * 4));
        prop_assert_eq!((fields.keep_event, fields.by_index), (keep, false));
    }

    #[test]
    fn a_window_of_a_page_holds_its_bytes_and_then_zeros(len in 0usize..300, offset in 0u64..400, out in 0usize..200) {
        let page: Vec<u8> = (0..len).map(|at| at as u8 | 1).collect();
        let mut window = vec![0xEE; out];
        log_page::copy_window(&page, offset, &mut window);
        for (at, byte) in window.into_iter().enumerate() {
            prop_assert_eq!(byte, page.get(offset as usize + at).copied().unwrap_or(0));
        }
    }
}

#[test]
fn a_read_has_the_bytes_that_linux_sends() {
    let sqe = Sqe::on_blocks(nvm::READ, 1, 0x1_0000_0002, 8).with_cid(0x4013).with_data(Sgl::transport(4096));
    let mut expected = [0u8; 64];
    expected[..8].copy_from_slice(&[0x02, 0x40, 0x13, 0x40, 1, 0, 0, 0]);
    expected[32..40].copy_from_slice(&[0x00, 0x10, 0, 0, 0, 0, 0, 0x5A]);
    expected[40..52].copy_from_slice(&[2, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0]);
    assert_eq!(sqe.as_bytes(), expected);
}

#[test]
fn a_completion_has_its_status_above_the_phase_bit() {
    let cqe = Cqe::new(0x1234, 7, 0xAABB_CCDD, NvmeStatus::LBA_OUT_OF_RANGE.dnr());
    let expected = [0xDD, 0xCC, 0xBB, 0xAA, 0, 0, 0, 0, 7, 0, 0, 0, 0x34, 0x12, 0x00, 0x81];
    assert_eq!(cqe.as_bytes(), expected);
    assert_eq!(cqe.nvme_status(), NvmeStatus::LBA_OUT_OF_RANGE.dnr());
    assert!(cqe.nvme_status().is(NvmeStatus::LBA_OUT_OF_RANGE) && cqe.nvme_status().do_not_retry());
    assert_eq!(cqe.nvme_status().to_string(), "LBA_OUT_OF_RANGE (type 0, code 0x80, do not retry)");
}

#[test]
fn connect_puts_its_fields_where_the_specification_has_them() {
    let sqe = Connect::new(3, 128, 5000).sqe().with_cid(9);
    let bytes = sqe.as_bytes();
    assert_eq!((bytes[0], bytes[4]), (FABRICS, 1));
    assert_eq!(bytes[40..52], [0, 0, 3, 0, 127, 0, 0, 0, 0x88, 0x13, 0, 0]);
    assert_eq!(sqe.direction(), Ok(Direction::HostToController));
    let back = Connect::of(&sqe).unwrap();
    assert_eq!((back.queue_id.get(), back.sq_size.get(), back.keep_alive_ms.get()), (3, 127, 5000));
    let data = ConnectData::new([7; 16], 0xFFFF, "nqn.2026-11.io.ringway:v", "nqn.2014-08.org.nvmexpress:uuid:h");
    let back = ConnectData::read(data.as_bytes()).unwrap();
    assert_eq!(text::nqn(&back.subsystem_nqn), Some("nqn.2026-11.io.ringway:v"));
    assert_eq!(text::nqn(&back.host_nqn), Some("nqn.2014-08.org.nvmexpress:uuid:h"));
}

#[test]
fn a_name_that_is_too_long_or_not_terminated_or_not_an_nqn_is_none() {
    let field = |text: &[u8]| {
        let mut field = [0; 256];
        field[..text.len()].copy_from_slice(text);
        field
    };
    assert_eq!(text::nqn(&field(b"nqn.x")), Some("nqn.x"));
    assert_eq!(text::nqn(&[b'n'; 256]), None);
    assert_eq!(text::nqn(&field(b"")), None);
    assert_eq!(text::nqn(&field(b"iqn.x")), None);
    assert_eq!(text::nqn(&field(b"nqn.\xFF")), None);
    assert_eq!(text::nqn(&field(b"nqn.\x07")), None);
    let long = format!("nqn.{}", "x".repeat(219));
    assert_eq!(text::nqn(&field(long.as_bytes())), Some(long.as_str()));
    assert_eq!(text::nqn(&field(format!("{long}x").as_bytes())), None);
}

#[test]
fn properties_are_read_with_their_own_size_only() {
    for property in
        [Property::Capabilities, Property::Version, Property::Configuration, Property::Status, Property::ReadyTimeouts]
    {
        let (offset, wide) = property.place();
        assert_eq!(Property::at(offset, wide), Some(property));
        assert_eq!(Property::at(offset, !wide), None);
        assert_eq!(PropertyFields::of(&fabrics::property_get(property)).property, Some(property));
        let set = fabrics::property_set(property, 0x1122_3344_5566_7788);
        assert_eq!(PropertyFields::of(&set).value, 0x1122_3344_5566_7788);
        assert_eq!(set.direction(), Ok(Direction::None));
    }
    assert_eq!(Property::at(0x20, false), None);
}

#[test]
fn capabilities_and_configuration_say_what_they_were_told() {
    let cap = Capabilities::new(256, 20);
    assert_eq!((cap.queue_entries_max(), cap.timeout_ms(), cap.page_bytes_min()), (256, 10_000, 4096));
    assert_eq!(cap.0 >> 37 & 0xFF, 1, "the NVM command set alone");
    let cc = Configuration::ENABLE;
    assert!(cc.enable() && cc.sq_entry_log2() == 6 && cc.cq_entry_log2() == 4 && cc.shutdown() == 0);
    assert_eq!((cc.command_sets(), cc.page_size(), cc.arbitration()), (0, 0, 0));
    assert_eq!(Configuration::SHUT_DOWN.shutdown(), 1);
}

#[test]
fn the_reserved_fuse_and_the_two_way_opcode_are_refused() {
    let mut sqe = Sqe::new(nvm::WRITE, 1);
    for fuse in [Fuse::Normal, Fuse::First, Fuse::Second] {
        assert_eq!(sqe.with_fuse(fuse).fuse(), Ok(fuse));
    }
    sqe.flags |= 0b11;
    assert_eq!(sqe.fuse(), Err(NvmeStatus::INVALID_FIELD.dnr()));
    sqe.opcode = 0x83;
    assert!(sqe.direction().is_err());
    assert_eq!(Sqe::new(admin::IDENTIFY, 0).direction(), Ok(Direction::ControllerToHost));
}

#[test]
fn namespace_descriptors_come_back_and_a_list_stops_at_its_end() {
    let ids = NamespaceDescriptors { eui64: None, nguid: Some([1; 16]), uuid: Some([2; 16]), csi: Some(0) };
    let mut out = [0xFF; IDENTIFY_BYTES];
    ids.write(&mut out);
    assert_eq!(out[..4], [2, 16, 0, 0]);
    assert_eq!(NamespaceDescriptors::read(&out), ids);
    identify::write_namespace_list([1, 2, 9].into_iter(), 1, &mut out);
    assert_eq!(identify::read_namespace_list(&out).collect::<Vec<_>>(), [2, 9]);
}

#[test]
fn the_number_of_queues_is_zero_based_and_its_reserved_value_is_refused() {
    assert_eq!(features::number_of_queues(4, 5), 0x0004_0003);
    assert_eq!(features::queues_of(0x0004_0003), Some((4, 5)));
    assert_eq!(features::queues_of(0xFFFF_0003), None);
    assert_eq!(features::queues_of(0x0003_FFFF), None);
}
