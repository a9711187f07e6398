//! Log pages, the discovery log among them.

use proptest::prelude::*;
use zerocopy::FromBytes;

use super::*;
use crate::controller::usage::{Usage, Usages};
use crate::directory::Port;
use crate::ids::VolumeId;
use crate::wire::DISCOVERY_NQN;
use crate::wire::identify::{IdentifyNamespace, cns};
use crate::wire::log_page::{CommandEffects, DiscoveryEntry, DiscoveryHeader, ErrorEntry, SmartLog, page};

fn read(queue: &mut AdminQueue, page: u8, offset: u64, len: u32, directory: &Directory) -> Result<Vec<u8>, NvmeStatus> {
    fetch(queue, Sqe::get_log_page(page, 0xFFFF_FFFF, offset, len, false), len, directory)
}

/// Volumes "v" for anybody near, "w" for somebody else, "x" for this host.
fn three_volumes() -> Directory {
    let hosts = |host: &str| vec![host.to_owned()];
    Directory::new(parts([
        record(1, "v"),
        VolumeRecord { allowed_hosts: hosts("nqn.other"), ..record(2, "w") },
        VolumeRecord { allowed_hosts: hosts(HOST), ..record(3, "x") },
    ]))
}

fn listed(from: Path, directory: &Directory) -> Vec<(String, String, String)> {
    let own = |(transport, entry)| (transport == from.transport as u8).then_some(entry);
    listed_all(from, directory).into_iter().map(|entry| own(entry).expect("it has come by this")).collect()
}

/// With the transport of each.
fn listed_all(from: Path, directory: &Directory) -> Vec<(u8, (String, String, String))> {
    let registry = Registry::default();
    let attempt = Attempt::admin(DISCOVERY_NQN).with(|a| a.path = from);
    let Ok(Connected::Admin { mut queue, .. }) = attempt.make(&registry, directory) else { panic!() };
    set(&mut queue, Configuration::ENABLE, directory);
    let header = read(&mut queue, page::DISCOVERY, 0, 1024, directory).unwrap();
    let header = DiscoveryHeader::read_from_bytes(&header).unwrap();
    assert_eq!((header.generation.get(), header.record_format.get()), (directory.version(), 0));
    let len = 1024 * header.records.get() as u32;
    if len == 0 {
        return Vec::new();
    }
    let entries = read(&mut queue, page::DISCOVERY, 1024, len, directory).unwrap();
    let entries = DiscoveryEntry::read(&entries).map(|entry| {
        assert_eq!((entry.subtype, entry.cntlid.get()), (2, 0xFFFF));
        let tsas = match TransportType::of(entry.trtype).unwrap() {
            TransportType::Tcp => [0, 0, 0],
            TransportType::Rdma => [1, 1, 1],
        };
        assert_eq!(entry.tsas[..3], tsas);
        assert_eq!(entry.asqsz.get(), 256);
        assert_eq!(entry.adrfam, if from.local.is_ipv4() { 1 } else { 2 });
        let (address, service, nqn) = entry.target().unwrap();
        (entry.trtype, (address.to_owned(), service.to_owned(), nqn.to_owned()))
    });
    entries.collect()
}

#[test]
fn discovery_tells_who_comes_over_one_transport_where_the_other_one_is() {
    let port = |transport, addr: &str| Port { transport, addr: addr.parse().unwrap() };
    let directory = directory_of(|parts| {
        parts.insecure = true;
        parts.ports = vec![
            port(TransportType::Tcp, "127.0.0.1:4420"),
            port(TransportType::Tcp, "0.0.0.0:8009"),
            port(TransportType::Rdma, "10.0.0.9:4420"),
            port(TransportType::Rdma, "10.0.0.9:4421"),
        ];
    });
    let places = |from: Path| -> Vec<(u8, String, String)> {
        let entries = listed_all(from, &directory).into_iter();
        entries.map(|(transport, (address, service, _))| (transport, address, service)).collect()
    };
    let place = |transport: u8, address: &str, service: &str| (transport, address.to_owned(), service.to_owned());
    let socket = path("10.0.0.1:8009", "10.0.0.2:9");
    assert_eq!(places(socket), [place(3, "10.0.0.1", "8009"), place(1, "10.0.0.9", "4420")]);
    let fabric = Path { transport: TransportType::Rdma, ..path("10.0.0.9:4420", "10.0.0.2:9") };
    let near = Path { transport: TransportType::Rdma, ..path("127.0.0.1:4420", "127.0.0.1:9") };
    assert_eq!(places(fabric), [place(1, "10.0.0.9", "4420"), place(3, "10.0.0.9", "8009")]);
    // Both TCP listeners come down to the same address for who is on this machine.
    assert_eq!(places(near), [place(1, "127.0.0.1", "4420"), place(3, "127.0.0.1", "4420")]);
}

#[test]
fn discovery_lists_the_volumes_that_this_host_may_attach_at_the_address_it_reached() {
    let directory = three_volumes();
    let entry = |address: &str, service: &str, name: &str| {
        (address.to_owned(), service.to_owned(), format!("nqn.2026-11.io.ringway:{name}"))
    };
    let near = listed(path("127.0.0.1:8009", "127.0.0.1:9"), &directory);
    assert_eq!(near, [entry("127.0.0.1", "8009", "v"), entry("127.0.0.1", "8009", "x")]);
    let far = listed(path("[fd00::1]:4420", "[fd00::2]:9"), &directory);
    assert_eq!(far, [entry("fd00::1", "4420", "x")]);
    let fabric = Path { transport: TransportType::Rdma, ..path("10.0.0.1:4420", "10.0.0.2:9") };
    assert_eq!(listed(fabric, &directory), [entry("10.0.0.1", "4420", "x")]);
    assert_eq!(listed(loopback(), &Directory::new(parts([]))), []);
}

proptest! {
    #[test]
    fn the_discovery_log_read_in_pieces_is_the_log_read_at_once(offset in 0u64..=768, dwords in 1u32..1200) {
        let directory = three_volumes();
        let (_registry, mut queue) = enabled(DISCOVERY_NQN, &directory);
        let whole = read(&mut queue, page::DISCOVERY, 0, 3 * 1024, &directory).unwrap();
        let piece = read(&mut queue, page::DISCOVERY, offset * 4, dwords * 4, &directory).unwrap();
        for (at, byte) in piece.into_iter().enumerate() {
            prop_assert_eq!(byte, whole.get(offset as usize * 4 + at).copied().unwrap_or(0));
        }
    }
}

#[test]
fn offsets_beyond_a_page_and_lengths_beyond_a_transfer_are_refused() {
    let directory = three_volumes();
    let invalid = Err(NvmeStatus::INVALID_FIELD.dnr());
    let (_registry, mut discovery) = enabled(DISCOVERY_NQN, &directory);
    assert_eq!(read(&mut discovery, page::DISCOVERY, 3 * 1024 + 4, 4, &directory), invalid);
    assert_eq!(read(&mut discovery, page::DISCOVERY, !3, 4, &directory), invalid);
    let (_registry, mut queue) = enabled(VOLUME, &directory);
    for (log_page, len) in
        [(0x00, 1024), (0x01, 1024), (0x02, 512), (0x03, 512), (0x04, 4096), (0x05, 4096), (0x12, 1024)]
    {
        assert_eq!(read(&mut queue, log_page, 0, len, &directory).unwrap().len(), len as usize);
        assert_eq!(read(&mut queue, log_page, u64::from(len), 4, &directory), Ok(vec![0; 4]));
        assert_eq!(read(&mut queue, log_page, u64::from(len) + 4, 4, &directory), invalid, "{log_page:#x}");
    }
    assert_eq!(read(&mut queue, page::SMART, 0, (256 << 10) + 4, &directory), invalid);
    assert_eq!(read(&mut queue, page::SMART, 0, 256 << 10, &directory).unwrap().len(), 256 << 10);
    let mut odd = Sqe::get_log_page(page::SMART, 0, 0, 512, false);
    odd.cdw12 = 2.into();
    assert_eq!(fetch(&mut queue, odd, 512, &directory), invalid);
    let mut indexed = Sqe::get_log_page(page::SMART, 0, 0, 512, false);
    indexed.cdw14 = (1 << 23).into();
    assert_eq!(fetch(&mut queue, indexed, 512, &directory), invalid);
    let one_namespace = Sqe::get_log_page(page::SMART, 1, 0, 512, false);
    assert_eq!(fetch(&mut queue, one_namespace, 512, &directory), invalid);
    for unknown in [0x06, 0x07, 0x0C, 0x0D, 0x70, 0x80, 0xC0] {
        assert_eq!(read(&mut queue, unknown, 0, 4, &directory), Err(NvmeStatus::INVALID_LOG_PAGE.dnr()));
    }
}

#[test]
fn the_pages_and_features_that_are_claimed_are_the_ones_that_answer() {
    let directory = directory();
    let (_registry, mut queue) = enabled(VOLUME, &directory);
    let pages = read(&mut queue, page::SUPPORTED, 0, 1024, &directory).unwrap();
    for number in 0..=255u8 {
        let answers = read(&mut queue, number, 0, 4, &directory).is_ok();
        assert_eq!(pages[usize::from(number) * 4] == 1, answers, "page {number:#x}");
    }
    let features = read(&mut queue, page::FEATURE_EFFECTS, 0, 1024, &directory).unwrap();
    for number in 0..=255u8 {
        let sqe = Sqe::get_features(number, 1).with_data(Sgl::transport(if number == 0x81 { 16 } else { 0 }));
        let sqe = if number == 0x04 { Sqe::get_features(number, 0) } else { sqe };
        let answers = send(&mut queue, &sqe, &directory).0.is_success();
        assert_eq!(features[usize::from(number) * 4] == 1, answers, "feature {number:#x}");
    }
}

#[test]
fn the_commands_that_are_claimed_are_the_ones_that_are_known() {
    let directory = directory();
    let (registry, mut queue) = enabled(VOLUME, &directory);
    let page = read(&mut queue, page::COMMAND_EFFECTS, 0, 4096, &directory).unwrap();
    let effects = CommandEffects::read_from_bytes(&page).unwrap();
    let io = connect_io(&registry, &directory, &queue, 1);
    for opcode in 0..=255u8 {
        let known =
            io.check(&Sqe::new(opcode, 1), 0, &directory).err().is_none_or(|s| !s.is(NvmeStatus::INVALID_OPCODE));
        // Of the fabrics commands only those of an admin queue are known on it, and type 0 is one.
        assert_eq!(effects.io[usize::from(opcode)].get() & 1 == 1, known, "I/O {opcode:#x}");
        let sqe = Sqe::new(opcode, 0);
        let known = match queue.reply_len(&sqe, 0) {
            Ok(len) => {
                let mut out = vec![0; len as usize];
                !matches!(queue.on_command(&sqe, &mut out, &directory, NOW),
                    AdminAction::Complete { status, .. } if status.is(NvmeStatus::INVALID_OPCODE))
            }
            Err(status) => !status.is(NvmeStatus::INVALID_OPCODE),
        };
        assert_eq!(effects.admin[usize::from(opcode)].get() & 1 == 1, known, "admin {opcode:#x}");
    }
}

#[test]
fn the_error_log_has_the_newest_refusals_first_and_is_bounded() {
    let directory = directory();
    let (_registry, mut queue) = enabled(VOLUME, &directory);
    for cid in 1..=20 {
        send(&mut queue, &Sqe::new(0xC0, 5).with_cid(cid), &directory);
    }
    let log = read(&mut queue, page::ERROR, 0, 1024, &directory).unwrap();
    let entries = <[ErrorEntry]>::ref_from_bytes(&log).unwrap();
    assert_eq!(entries.len(), 16);
    assert_eq!((entries[0].count.get(), entries[0].cid.get(), entries[0].nsid.get()), (20, 20, 5));
    assert_eq!((entries[15].count.get(), entries[15].cid.get()), (5, 5));
    assert_eq!(entries[0].status.get() >> 1, NvmeStatus::INVALID_OPCODE.dnr().0);
    let smart = read(&mut queue, page::SMART, 0, 512, &directory).unwrap();
    assert_eq!(smart[176], 20);
}

/// A volume that has been used.
#[derive(Debug)]
struct Used;

impl Usages for Used {
    fn of(&self, volume: VolumeId) -> Usage {
        assert_eq!(volume, VolumeId(1));
        Usage { reads: 10, writes: 3, bytes_read: 512_001, bytes_written: 0, allocated: 128 << 10 }
    }
}

#[test]
fn smart_and_nuse_are_what_the_volume_has_moved_and_holds() {
    let directory = directory();
    let registry = Arc::new(Registry::default().counted_by(Arc::new(Used)));
    let mut queue = connect_admin(&registry, &directory, VOLUME);
    assert_eq!(set(&mut queue, Configuration::ENABLE, &directory), NvmeStatus::SUCCESS);
    let smart = read(&mut queue, page::SMART, 0, 512, &directory).unwrap();
    let smart = SmartLog::read_from_bytes(&smart).unwrap();
    let counters =
        [smart.data_units_read, smart.data_units_written, smart.host_reads, smart.host_writes].map(u128::from_le_bytes);
    assert_eq!(counters, [2, 0, 10, 3], "thousands of 512 bytes, rounded up");
    let namespace = fetch(&mut queue, Sqe::identify(cns::NAMESPACE, 1), 4096, &directory).unwrap();
    let namespace = IdentifyNamespace::read_from_bytes(&namespace).unwrap();
    let lba = 1u64 << namespace.lbaf[0].data_log2;
    assert_eq!(namespace.nuse.get() * lba, 128 << 10);
    assert!(namespace.nuse.get() < namespace.ncap.get());
}

#[test]
fn a_failure_of_an_io_queue_is_in_the_error_log_with_its_place_and_what_the_host_asked_for_is_not() {
    let directory = directory();
    let (_registry, mut queue) = enabled(VOLUME, &directory);
    let association = Arc::clone(queue.association());
    association.note_failure(2, 7, NvmeStatus::UNRECOVERED_READ_ERROR.dnr(), VolumeId(1), 4711);
    association.note_failure(2, 8, NvmeStatus::COMPARE_FAILURE.dnr(), VolumeId(1), 4712);
    let page = read(&mut queue, page::ERROR, 0, 128, &directory).unwrap();
    let entries: Vec<_> = page.chunks(64).map(|entry| ErrorEntry::read_from_bytes(entry).unwrap()).collect();
    let (first, second) = (entries[0], entries[1]);
    assert_eq!((first.count.get(), first.sq_id.get(), first.cid.get()), (1, 2, 7));
    assert_eq!(
        (first.nsid.get(), first.lba.get(), first.status.get() >> 1),
        (1, 4711, NvmeStatus::UNRECOVERED_READ_ERROR.dnr().0)
    );
    assert_eq!(second.count.get(), 0);
}
