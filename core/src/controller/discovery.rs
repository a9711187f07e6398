//! The discovery log (base 5.16.1.23): the volumes that a host may attach, at the address by which it asks, and then at those of the
//! other transport.
//!
//! Every listener serves every volume, so the address that the host has just reached is the first that it is told. Over the same
//! transport there is no need for others; who could also come over RDMA, or could come over TCP too, is told where.

use zerocopy::{FromZeros, IntoBytes};

use super::association::Association;
use crate::directory::{Directory, Port, VolumeEntry, volume_nqn};
use crate::limits::QUEUE_ENTRIES_MAX;
use crate::wire::fabrics::CNTLID_DYNAMIC;
use crate::wire::log_page::{DiscoveryEntry, DiscoveryHeader, SUBTYPE_NVM, TREQ_NOT_REQUIRED, copy_window};
use crate::wire::text;

/// Bytes of the header, and of each entry.
const PIECE: u64 = size_of::<DiscoveryEntry>() as u64;
const _: () = assert!(size_of::<DiscoveryHeader>() as u64 == PIECE);

/// The volumes that the host of `association` may attach, by id. Snapshots are attached by name: a host that connects to whatever
/// is listed must not find each file system a hundred times.
pub(super) fn visible<'a>(
    association: &'a Association,
    directory: &'a Directory,
) -> impl Iterator<Item = &'a VolumeEntry> + 'a {
    let loopback = association.path.is_loopback();
    directory
        .volumes()
        .iter()
        .filter(|entry| !entry.record.is_snapshot())
        .filter(move |entry| directory.may_attach(&entry.record, &association.host.nqn, loopback))
}

/// Bytes of the whole log.
pub(super) fn len(association: &Association, directory: &Directory) -> u64 {
    PIECE * (1 + (visible(association, directory).count() * ports(association, directory).len()) as u64)
}

/// Fills `out` with the part of the log that starts at `offset`, zeros behind its end. Only entries that are asked for are
/// made.
pub(super) fn read(association: &Association, directory: &Directory, offset: u64, out: &mut [u8]) {
    let ports = ports(association, directory);
    let volumes = visible(association, directory).count();
    let records = (volumes * ports.len()) as u64;
    let mut done = 0;
    while done < out.len() {
        let at = offset + done as u64;
        let (piece, within) = (at / PIECE, at % PIECE);
        let len = usize::try_from(PIECE - within).expect("a piece is small").min(out.len() - done);
        let part = &mut out[done..done + len];
        match piece.checked_sub(1) {
            None => copy_window(header(directory, records).as_bytes(), within, part),
            Some(index) => {
                let index = usize::try_from(index).unwrap_or(usize::MAX);
                let port = index.checked_div(volumes).and_then(|port| ports.get(port));
                match port.and_then(|port| Some((port, visible(association, directory).nth(index % volumes)?))) {
                    Some((port, volume)) => copy_window(entry(*port, volume).as_bytes(), within, part),
                    None => part.fill(0),
                }
            }
        }
        done += len;
    }
}

fn header(directory: &Directory, records: u64) -> DiscoveryHeader {
    let mut header = DiscoveryHeader::new_zeroed();
    header.generation = directory.version().into();
    header.records = records.into();
    header
}

/// Where the host of `association` can attach: where it is, and at the addresses of the other transport, one of each.
fn ports(association: &Association, directory: &Directory) -> Vec<Port> {
    let path = association.path;
    let mut ports = vec![Port { transport: path.transport, addr: path.local }];
    for &Port { transport, mut addr } in directory.ports() {
        if addr.ip().is_unspecified() {
            addr.set_ip(path.local.ip());
        }
        let known = ports.iter().any(|port| port.transport == transport && port.addr.ip() == addr.ip());
        let reached = path.is_loopback() || !addr.ip().to_canonical().is_loopback();
        if transport != path.transport && reached && !known {
            ports.push(Port { transport, addr });
        }
    }
    ports
}

fn entry(port: Port, volume: &VolumeEntry) -> DiscoveryEntry {
    let ip = port.addr.ip().to_canonical();
    let mut entry = DiscoveryEntry::new_zeroed();
    entry.trtype = port.transport as u8;
    entry.tsas = port.transport.address_subtype();
    entry.adrfam = if ip.is_ipv4() { 1 } else { 2 };
    entry.subtype = SUBTYPE_NVM;
    entry.treq = TREQ_NOT_REQUIRED;
    entry.cntlid = CNTLID_DYNAMIC.into();
    entry.asqsz = QUEUE_ENTRIES_MAX.into();
    entry.trsvcid = text::nul_padded(&port.addr.port().to_string());
    entry.subnqn = text::nul_padded(&volume_nqn(&volume.record));
    entry.traddr = text::nul_padded(&ip.to_string());
    entry
}
