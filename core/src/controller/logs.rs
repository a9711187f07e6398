//! Log pages (base 5.16).

use std::collections::VecDeque;

use zerocopy::{FromZeros, IntoBytes};

use super::association::{Association, ControllerKind};
use super::features::IO_FEATURES;
use super::identify::ERROR_ENTRIES;
use crate::directory::{Directory, SpaceLevel};
use crate::limits::REQUEST_BYTES_MAX;
use crate::wire::command::{FABRICS, Sqe, admin, nvm};
use crate::wire::completion::NvmeStatus;
use crate::wire::log_page::{
    CommandEffects, EFFECT_CONTENT, EFFECT_SUPPORTED, ErrorEntry, FirmwareLog, SmartLog, TRTYPE_TCP, WARNING_READ_ONLY,
    WARNING_SPARE, page,
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

/// Errors of this controller's admin commands, newest first.
#[derive(Debug, Default)]
pub(super) struct ErrorLog {
    count: u64,
    entries: VecDeque<ErrorEntry>,
}

impl ErrorLog {
    pub(super) fn record(&mut self, sqe: &Sqe, status: NvmeStatus) {
        self.count += 1;
        self.entries.truncate(ERROR_ENTRIES - 1);
        self.entries.push_front(ErrorEntry {
            count: self.count.into(),
            cid: sqe.cid,
            status: (status.0 << 1).into(),
            parameter: 0xFFFF.into(),
            nsid: sqe.nsid,
            transport: TRTYPE_TCP,
            ..ErrorEntry::default()
        });
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.entries.iter().flat_map(|entry| entry.as_bytes().to_vec()).collect();
        bytes.resize(ERROR_ENTRIES * size_of::<ErrorEntry>(), 0);
        bytes
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
pub(super) fn whole(log_page: u8, errors: &ErrorLog, directory: &Directory) -> Vec<u8> {
    match log_page {
        page::SUPPORTED => supported(&IO_PAGES, 1024),
        page::ERROR => errors.bytes(),
        page::SMART => smart(errors, directory).as_bytes().to_vec(),
        page::FIRMWARE => firmware().as_bytes().to_vec(),
        page::COMMAND_EFFECTS => effects().as_bytes().to_vec(),
        page::FEATURE_EFFECTS => supported(&IO_FEATURES, 1024),
        page::MANAGEMENT_EFFECTS => vec![0; 4096],
        other => unreachable!("log page {other:#04x} was checked"),
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

fn smart(errors: &ErrorLog, directory: &Directory) -> SmartLog {
    let mut log = SmartLog::new_zeroed();
    log.critical_warning = critical_warning(directory);
    log.available_spare = directory.space().spare_percent();
    log.spare_threshold = SPARE_THRESHOLD;
    log.error_log_entries[..8].copy_from_slice(&errors.count.to_le_bytes());
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
