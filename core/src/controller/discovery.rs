//! The discovery log (base 5.16.1.23): the volumes that a host may attach, at the address by which it asks.
//!
//! Every listener serves every volume, so the address that the host has just reached is the one that it is told.

use zerocopy::{FromZeros, IntoBytes};

use super::association::Association;
use super::connect::Path;
use crate::directory::{Directory, VolumeEntry, volume_nqn};
use crate::limits::QUEUE_ENTRIES_MAX;
use crate::wire::fabrics::CNTLID_DYNAMIC;
use crate::wire::log_page::{DiscoveryEntry, DiscoveryHeader, SUBTYPE_NVM, TREQ_NOT_REQUIRED, TRTYPE_TCP, copy_window};
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
    let path = Path { local: association.local, peer: association.peer };
    directory
        .volumes()
        .iter()
        .filter(|entry| !entry.record.is_snapshot())
        .filter(move |entry| directory.may_attach(&entry.record, &association.host.nqn, path.is_loopback()))
}

/// Bytes of the whole log.
pub(super) fn len(association: &Association, directory: &Directory) -> u64 {
    PIECE * (1 + visible(association, directory).count() as u64)
}

/// Fills `out` with the part of the log that starts at `offset`, zeros behind its end. Only entries that are asked for are
/// made.
pub(super) fn read(association: &Association, directory: &Directory, offset: u64, out: &mut [u8]) {
    let records = visible(association, directory).count() as u64;
    let mut done = 0;
    while done < out.len() {
        let at = offset + done as u64;
        let (piece, within) = (at / PIECE, at % PIECE);
        let len = usize::try_from(PIECE - within).expect("a piece is small").min(out.len() - done);
        let part = &mut out[done..done + len];
        match piece.checked_sub(1) {
            None => copy_window(header(directory, records).as_bytes(), within, part),
            Some(index) => match visible(association, directory).nth(usize::try_from(index).unwrap_or(usize::MAX)) {
                Some(volume) => copy_window(entry(association, volume).as_bytes(), within, part),
                None => part.fill(0),
            },
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

fn entry(association: &Association, volume: &VolumeEntry) -> DiscoveryEntry {
    let local = association.local;
    let ip = local.ip().to_canonical();
    let mut entry = DiscoveryEntry::new_zeroed();
    entry.trtype = TRTYPE_TCP;
    entry.adrfam = if ip.is_ipv4() { 1 } else { 2 };
    entry.subtype = SUBTYPE_NVM;
    entry.treq = TREQ_NOT_REQUIRED;
    entry.cntlid = CNTLID_DYNAMIC.into();
    entry.asqsz = QUEUE_ENTRIES_MAX.into();
    entry.trsvcid = text::nul_padded(&local.port().to_string());
    entry.subnqn = text::nul_padded(&volume_nqn(&volume.record));
    entry.traddr = text::nul_padded(&ip.to_string());
    entry
}
