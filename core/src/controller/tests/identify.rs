//! Identify: what hosts read before they trust a namespace.

use zerocopy::FromBytes;

use super::*;
use crate::wire::identify::{
    IdentifyController, IdentifyControllerNvm, IdentifyNamespace, IdentifyNamespaceIndependent, NamespaceDescriptors,
    cns, read_namespace_list,
};
use crate::wire::sgl::{Capsule, KeyedMemory};
use crate::wire::{DISCOVERY_NQN, text};

fn get(queue: &mut AdminQueue, cns: u8, nsid: u32, directory: &Directory) -> Result<Vec<u8>, NvmeStatus> {
    fetch(queue, Sqe::identify(cns, nsid), 4096, directory)
}

fn controller(nqn: &str, directory: &Directory) -> IdentifyController {
    let (_registry, mut queue) = enabled(nqn, directory);
    IdentifyController::read_from_bytes(&get(&mut queue, cns::CONTROLLER, 0, directory).unwrap()).unwrap()
}

#[test]
fn an_io_controller_says_what_linux_needs_to_attach() {
    let directory = directory();
    let id = controller(VOLUME, &directory);
    assert_eq!(text::trimmed(&id.model), Some("Ringway"));
    assert_eq!(text::trimmed(&id.firmware), Some(env!("CARGO_PKG_VERSION")));
    assert_eq!(id.serial_text(), &record(1, "v").uuid.simple().to_string()[..20]);
    assert_eq!(text::nqn(&id.subnqn), Some(VOLUME));
    assert_eq!((id.cntlid.get(), id.cntrltype, id.nn.get(), id.version.get()), (1, 1, 1, 0x2_0000));
    assert_eq!(id.transfer_bytes_max(4096), Some(256 << 10));
    assert_eq!((id.ioccsz.get(), id.iorcsz.get(), id.icdoff.get(), id.in_capsule_bytes()), (516, 1, 0, 8192));
    assert_eq!((id.sqes, id.cqes, id.maxcmd.get(), id.msdbd), (0x66, 0x44, 256, 1));
    assert_eq!(id.sgls.get() & 0b11, 1);
    assert_eq!(id.sgls.get() >> 20 & 0b11, 0b11);
    assert_eq!((id.oncs.get(), id.fuses.get(), id.vwc), (0b1101, 1, 0b101));
    assert_eq!((id.awun.get(), id.awupf.get(), id.acwu.get()), (0, 0, 0), "one block is what is atomic");
    assert_eq!((id.kas.get(), id.aerl, id.oaes.get()), (10, 3, 1 << 8));
    assert_ne!(id.ctratt.get() & 1, 0, "hosts have 128 bits");
}

#[test]
fn a_controller_that_is_reached_over_rdma_takes_keyed_descriptors_and_smaller_capsules() {
    let (directory, registry) = (directory(), Registry::default());
    let attempt = Attempt::admin(VOLUME).with(|a| a.path.transport = TransportType::Rdma);
    let Ok(Connected::Admin { mut queue, .. }) = attempt.make(&registry, &directory) else { panic!() };
    set(&mut queue, Configuration::ENABLE, &directory);
    let memory = KeyedMemory { address: 0x1000, key: 7, invalidate: false };
    let sqe = Sqe::identify(cns::CONTROLLER, 0);
    let tcp = queue.reply_len(&sqe.with_data(Sgl::transport(4096)), Capsule::rdma(0));
    assert_eq!(tcp, Err(NvmeStatus::SGL_DESCRIPTOR_TYPE_INVALID.dnr()));
    let short = queue.reply_len(&sqe.with_data(Sgl::keyed(4092, memory)), Capsule::rdma(0));
    assert_eq!(short, Err(NvmeStatus::DATA_SGL_LENGTH_INVALID.dnr()));
    let sqe = sqe.with_data(Sgl::keyed(4096, memory));
    let mut page = vec![0; queue.reply_len(&sqe, Capsule::rdma(0)).unwrap() as usize];
    queue.on_command(&sqe, &mut page, &directory, NOW);
    let id = IdentifyController::read_from_bytes(&page).unwrap();
    assert_eq!((id.ioccsz.get(), id.iorcsz.get(), id.icdoff.get(), id.in_capsule_bytes()), (260, 1, 0, 4096));
    assert_eq!(id.sgls.get(), 0b101 | 1 << 20);
}

#[test]
fn a_discovery_controller_has_no_namespaces_and_no_io_queues() {
    let id = controller(DISCOVERY_NQN, &directory());
    assert_eq!(text::nqn(&id.subnqn), Some(DISCOVERY_NQN));
    assert_eq!((id.cntrltype, id.nn.get(), id.ioccsz.get(), id.oncs.get(), id.sqes), (2, 0, 0, 0, 0));
    assert_eq!(id.oaes.get(), 1 << 31);
}

#[test]
fn controllers_of_a_volume_share_its_serial_number_and_differ_in_their_own() {
    let directory = Directory::new(parts([record(1, "v"), record(2, "w")]));
    let registry = Registry::default();
    let mut ids = Vec::new();
    for (nqn, host) in [(VOLUME, 1), (VOLUME, 2), ("nqn.2026-11.io.ringway:w", 1)] {
        let attempt = Attempt::admin(nqn).with(|a| a.data.host_id = [host; 16]);
        let Ok(Connected::Admin { mut queue, .. }) = attempt.make(&registry, &directory) else { panic!() };
        set(&mut queue, Configuration::ENABLE, &directory);
        let page = get(&mut queue, cns::CONTROLLER, 0, &directory).unwrap();
        ids.push(IdentifyController::read_from_bytes(&page).unwrap());
    }
    assert_eq!(ids[0].serial, ids[1].serial);
    assert_ne!(ids[0].serial, ids[2].serial);
    assert_eq!(ids.iter().map(|id| id.cntlid.get()).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn a_namespace_has_the_size_the_format_and_the_hints_of_its_volume() {
    for (lba_bytes, log2, hint, boundary, optimal) in [(512, 9, 7, 2048, 127), (4096, 12, 0, 256, 15)] {
        let directory = directory_with(|record| record.lba_bytes = lba_bytes);
        let (_registry, mut queue) = enabled(VOLUME, &directory);
        let page = get(&mut queue, cns::NAMESPACE, 1, &directory).unwrap();
        let id = IdentifyNamespace::read_from_bytes(&page).unwrap();
        let blocks = (1 << 30) / u64::from(lba_bytes);
        assert_eq!((id.nsze.get(), id.ncap.get()), (blocks, blocks));
        assert_eq!((id.nlbaf, id.flbas, id.lbaf[0].data_log2, id.lba_bytes()), (0, 0, log2, Some(lba_bytes)));
        assert_eq!((id.nsfeat, id.dlfeat, id.nmic, id.nsattr), (0b1_1001, 0b1001, 1, 0));
        assert_eq!((id.npwg.get(), id.npwa.get(), id.npdg.get(), id.npda.get()), (hint, hint, hint, hint));
        assert_eq!((id.noiob.get(), id.nows.get()), (boundary, optimal));
        assert_eq!(id.nguid, *record(1, "v").uuid.as_bytes());
        assert_eq!(u128::from_le_bytes(id.nvmcap), 1 << 30);
    }
}

#[test]
fn a_namespace_is_named_by_nguid_and_uuid() {
    let directory = directory();
    let (_registry, mut queue) = enabled(VOLUME, &directory);
    let uuid = *record(1, "v").uuid.as_bytes();
    let list = NamespaceDescriptors::read(&get(&mut queue, cns::NAMESPACE_DESCRIPTORS, 1, &directory).unwrap());
    assert_eq!((list.nguid, list.uuid, list.csi, list.eui64), (Some(uuid), Some(uuid), Some(0), None));
}

#[test]
fn namespace_lists_hold_what_lies_above_the_given_number() {
    let directory = directory();
    let (_registry, mut queue) = enabled(VOLUME, &directory);
    let mut list =
        |cns, nsid| get(&mut queue, cns, nsid, &directory).map(|page| read_namespace_list(&page).collect::<Vec<_>>());
    for cns in [cns::ACTIVE_NAMESPACES, cns::COMMAND_SET_ACTIVE_NAMESPACES] {
        assert_eq!(list(cns, 0), Ok(vec![1]));
        assert_eq!(list(cns, 1), Ok(vec![]));
        assert_eq!(list(cns, 0xFFFF_FFFE), Err(NvmeStatus::INVALID_NAMESPACE_OR_FORMAT.dnr()));
        assert_eq!(list(cns, 0xFFFF_FFFF), Err(NvmeStatus::INVALID_NAMESPACE_OR_FORMAT.dnr()));
    }
}

#[test]
fn a_removed_volume_is_an_inactive_namespace() {
    let (_registry, mut queue) = enabled(VOLUME, &directory());
    let empty = Directory::new(parts([]));
    assert_eq!(get(&mut queue, cns::NAMESPACE, 1, &empty), Ok(vec![0; 4096]));
    assert_eq!(get(&mut queue, cns::NAMESPACE_INDEPENDENT, 1, &empty), Ok(vec![0; 4096]));
    let gone = Err(NvmeStatus::INVALID_NAMESPACE_OR_FORMAT.dnr());
    assert_eq!(get(&mut queue, cns::NAMESPACE_DESCRIPTORS, 1, &empty), gone);
    assert_eq!(get(&mut queue, cns::ACTIVE_NAMESPACES, 0, &empty), Ok(vec![0; 4096]));
    for nsid in [0, 2, 0xFFFF_FFFF] {
        assert_eq!(get(&mut queue, cns::NAMESPACE, nsid, &directory()), gone, "{nsid:#x}");
        assert_eq!(get(&mut queue, cns::COMMAND_SET_NAMESPACE, nsid, &directory()), gone, "{nsid:#x}");
    }
}

#[test]
fn structures_of_command_sets_are_those_of_the_nvm_command_set() {
    let directory = directory();
    let (_registry, mut queue) = enabled(VOLUME, &directory);
    let limits = get(&mut queue, cns::COMMAND_SET_CONTROLLER, 0, &directory).unwrap();
    assert_eq!(4096 << IdentifyControllerNvm::read_from_bytes(&limits).unwrap().wzsl, 32 << 20);
    assert_eq!(get(&mut queue, cns::COMMAND_SET_NAMESPACE, 1, &directory), Ok(vec![0; 4096]));
    assert_eq!(get(&mut queue, cns::COMMAND_SETS, 0, &directory).unwrap()[0], 1);
    let zoned = |cns| {
        let mut sqe = Sqe::identify(cns, 1);
        sqe.cdw11 = (2 << 24).into();
        sqe
    };
    for cns in [cns::COMMAND_SET_NAMESPACE, cns::COMMAND_SET_CONTROLLER, cns::COMMAND_SET_ACTIVE_NAMESPACES] {
        let refused = fetch(&mut queue, zoned(cns), 4096, &directory);
        assert_eq!(refused, Err(NvmeStatus::INVALID_FIELD.dnr()), "{cns:#x}");
    }
    for unknown in [0x04, 0x09, 0x10, 0x12, 0x13, 0x14, 0x15, 0x1D, 0xFF] {
        assert_eq!(get(&mut queue, unknown, 1, &directory), Err(NvmeStatus::INVALID_FIELD.dnr()), "{unknown:#x}");
    }
}

#[test]
fn faulted_and_read_only_volumes_say_so() {
    let faulted = directory_of(|parts| parts.volumes[0].fault = Some("a record of its map is damaged".into()));
    let (_registry, mut queue) = enabled(VOLUME, &faulted);
    let mut independent = |directory: &Directory| {
        let page = get(&mut queue, cns::NAMESPACE_INDEPENDENT, 1, directory).unwrap();
        let id = IdentifyNamespaceIndependent::read_from_bytes(&page).unwrap();
        (id.nstat, id.nsattr, id.nmic)
    };
    assert_eq!(independent(&faulted), (0, 0, 1));
    assert_eq!(independent(&directory()), (1, 0, 1));
    let read_only = directory_of(|parts| parts.read_only = true);
    assert_eq!(independent(&read_only), (1, 1, 1));
    let page = get(&mut queue, cns::NAMESPACE, 1, &read_only).unwrap();
    assert_eq!(IdentifyNamespace::read_from_bytes(&page).unwrap().nsattr, 1);
}
