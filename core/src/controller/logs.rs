//! Log pages (base 5.16).

use std::collections::VecDeque;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::association::{Association, ControllerKind};
use super::features::IO_FEATURES;
use super::identify::ERROR_ENTRIES;
use super::usage::{Usage, Usages};
use crate::directory::{Directory, SpaceLevel};
use crate::limits::REQUEST_BYTES_MAX;
use crate::wire::command::{FABRICS, Sqe, admin, nvm};
use crate::wire::completion::NvmeStatus;
use crate::wire::log_page::{
    CommandEffects, EFFECT_CONTENT, EFFECT_SUPPORTED, ErrorEntry, FirmwareLog, SmartLog, TransportType,
    WARNING_READ_ONLY, WARNING_SPARE, page,
};
use crate::wire::{NSID_ALL, text};

const IO_PAGES: [u8; 8] = [
    page::SUPPORTED,
    page::ERROR,
    page::SMART,
    page::FIRMWARE,
    page::CHANGED_NAMESPACES,
    page::COMMAND_EFFECTS,
    page::FEATURE_EFFECTS,
    page::MANAGEMENT_EFFECTS,
];
const DISCOVERY_PAGES: [u8; 1] = [page::DISCOVERY];

/// Percent of spare below which the SMART log warns: the first level of [`SpaceLevel`].
const SPARE_THRESHOLD: u8 = 20;

/// Errors of this controller's commands, newest first: of its admin queue, and of its I/O queues where the fault is not the host's.
#[derive(Debug)]
pub(super) struct ErrorLog {
    transport: TransportType,
    count: u64,
    entries: VecDeque<ErrorEntry>,
}

impl ErrorLog {
    /// Nothing has gone wrong yet with a controller that is reached so.
    pub(super) fn new(transport: TransportType) -> ErrorLog {
        ErrorLog { transport, count: 0, entries: VecDeque::new() }
    }

    /// Keeps an entry, under the next number.
    pub(super) fn record(&mut self, entry: ErrorEntry) {
        self.count += 1;
        self.entries.truncate(ERROR_ENTRIES - 1);
        self.entries.push_front(ErrorEntry { count: self.count.into(), transport: self.transport as u8, ..entry });
    }

    /// An admin command that failed.
    pub(super) fn of_command(sqe: &Sqe, status: NvmeStatus) -> ErrorEntry {
        ErrorEntry { nsid: sqe.nsid, ..entry(0, sqe.cid.get(), status) }
    }

    /// A command of I/O queue `queue` that failed at `lba` of a namespace (base figure 206: SQID, command, namespace and LBA).
    pub(super) fn of_io(queue: u16, cid: u16, status: NvmeStatus, (nsid, lba): (u32, u64)) -> ErrorEntry {
        ErrorEntry { nsid: nsid.into(), lba: lba.into(), ..entry(queue, cid, status) }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.entries.iter().flat_map(|entry| entry.as_bytes().to_vec()).collect();
        bytes.resize(ERROR_ENTRIES * size_of::<ErrorEntry>(), 0);
        bytes
    }
}

fn entry(queue: u16, cid: u16, status: NvmeStatus) -> ErrorEntry {
    ErrorEntry {
        sq_id: queue.into(),
        cid: cid.into(),
        status: (status.0 << 1).into(),
        parameter: 0xFFFF.into(),
        ..ErrorEntry::default()
    }
}

/// Checks what can be checked before there is a buffer for the page. Returns its bytes.
pub(super) fn check(sqe: &Sqe, association: &Association) -> Result<u32, NvmeStatus> {
    let fields = sqe.log_page_fields();
    let known: &[u8] = match association.kind {
        ControllerKind::Discovery => &DISCOVERY_PAGES,
        ControllerKind::Io(_) => &IO_PAGES,
    };
    if !known.contains(&fields.page) {
        return Err(NvmeStatus::INVALID_LOG_PAGE.dnr());
    }
    if fields.by_index || !fields.offset.is_multiple_of(4) || fields.len > u64::from(REQUEST_BYTES_MAX) {
        return Err(NvmeStatus::INVALID_FIELD.dnr());
    }
    if fields.page == page::SMART && !matches!(sqe.nsid.get(), 0 | NSID_ALL) {
        // The log is the controller's (LPA bit 0 is 0).
        return Err(NvmeStatus::INVALID_FIELD.dnr());
    }
    Ok(fields.len as u32)
}

/// A page of an I/O controller as a whole; the changed namespaces are the caller's.
pub(super) fn whole(log_page: u8, association: &Association, directory: &Directory, usages: &dyn Usages) -> Vec<u8> {
    match log_page {
        page::SUPPORTED => supported(&IO_PAGES, 1024),
        page::ERROR => association.errors().bytes(),
        page::SMART => smart(association, directory, usages).as_bytes().to_vec(),
        page::FIRMWARE => firmware().as_bytes().to_vec(),
        page::COMMAND_EFFECTS => effects().as_bytes().to_vec(),
        page::FEATURE_EFFECTS => supported(&IO_FEATURES, 1024),
        page::MANAGEMENT_EFFECTS => vec![0; 4096],
        other => unreachable!("log page {other:#04x} was checked"),
    }
}

/// Says in a log of command effects that further admin commands are known.
pub(super) fn claim(log: &mut [u8], opcodes: &[u8]) {
    let (log, _) = CommandEffects::mut_from_prefix(log).expect("it is one");
    for &opcode in opcodes {
        log.admin[usize::from(opcode)] = EFFECT_SUPPORTED.into();
    }
}

/// A table of dwords with bit 0 set for each known number.
fn supported(known: &[u8], len: usize) -> Vec<u8> {
    let mut table = vec![0; len];
    for &number in known {
        table[usize::from(number) * 4] = 1;
    }
    table
}

/// The critical warning for a pool in this state.
pub(super) fn critical_warning(directory: &Directory) -> u8 {
    let mut warning = 0;
    if directory.space() > SpaceLevel::Below80 {
        warning |= WARNING_SPARE;
    }
    if directory.read_only() {
        warning |= WARNING_READ_ONLY;
    }
    warning
}

/// SMART (base 5.16.1.3, figure 207): of the controller, so of all its namespaces together, since the target started. Temperature,
/// wear and hours are not reported: the devices below have them.
fn smart(association: &Association, directory: &Directory, usages: &dyn Usages) -> SmartLog {
    let namespaces = association.subsystem().map_or(&[][..], |subsystem| &subsystem.namespaces);
    let used = namespaces.iter().map(|namespace| usages.of(namespace.volume));
    let used = used.fold(Usage::default(), |sum, one| Usage {
        reads: sum.reads + one.reads,
        writes: sum.writes + one.writes,
        bytes_read: sum.bytes_read + one.bytes_read,
        bytes_written: sum.bytes_written + one.bytes_written,
        allocated: sum.allocated + one.allocated,
    });
    let mut log = SmartLog::new_zeroed();
    log.critical_warning = critical_warning(directory);
    log.available_spare = directory.space().spare_percent();
    log.spare_threshold = SPARE_THRESHOLD;
    for (field, value) in [
        // Thousands of 512 bytes, rounded up.
        (&mut log.data_units_read, used.bytes_read.div_ceil(512_000)),
        (&mut log.data_units_written, used.bytes_written.div_ceil(512_000)),
        (&mut log.host_reads, used.reads),
        (&mut log.host_writes, used.writes),
        (&mut log.error_log_entries, association.errors().count),
    ] {
        field[..8].copy_from_slice(&value.to_le_bytes());
    }
    log
}

fn firmware() -> FirmwareLog {
    let mut log = FirmwareLog::new_zeroed();
    log.active = 1;
    log.revisions[0] = text::space_padded(env!("CARGO_PKG_VERSION"));
    log
}

fn effects() -> CommandEffects {
    let mut log = CommandEffects::new_zeroed();
    for opcode in [
        admin::GET_LOG_PAGE,
        admin::IDENTIFY,
        admin::ABORT,
        admin::SET_FEATURES,
        admin::GET_FEATURES,
        admin::ASYNC_EVENT_REQUEST,
        admin::KEEP_ALIVE,
        FABRICS,
    ] {
        log.admin[usize::from(opcode)] = EFFECT_SUPPORTED.into();
    }
    for opcode in [nvm::FLUSH, nvm::READ, nvm::COMPARE, FABRICS] {
        log.io[usize::from(opcode)] = EFFECT_SUPPORTED.into();
    }
    for opcode in [nvm::WRITE, nvm::WRITE_ZEROES, nvm::DATASET_MANAGEMENT] {
        log.io[usize::from(opcode)] = (EFFECT_SUPPORTED | EFFECT_CONTENT).into();
    }
    log
}
