//! Identify (base 5.17): who the controller is, which namespaces there are, and what they can do.

use zerocopy::{FromZeros, IntoBytes};

use super::association::{Association, ControllerKind, KEEP_ALIVE_STEP_MS};
use super::usage::Usages;
use crate::directory::{Directory, VolumeEntry};
use crate::limits::{
    BLOCK, CLUSTER, EVENT_REQUESTS_MAX, IN_CAPSULE_BYTES, IN_CAPSULE_BYTES_RDMA, QUEUE_ENTRIES_MAX, REQUEST_BYTES_MAX,
    STRIPE, WRITE_ZEROES_BYTES_MAX,
};
use crate::wire::command::{SQE_BYTES, Sqe};
use crate::wire::completion::NvmeStatus;
use crate::wire::fabrics::VERSION_2_0;
use crate::wire::features::{EVENT_DISCOVERY, EVENT_NAMESPACE};
use crate::wire::identify::{
    CSI_NVM, CTRATT_HOST_ID_128, CTRATT_TRAFFIC_KEEP_ALIVE, IDENTIFY_BYTES, IdentifyController, IdentifyControllerNvm,
    IdentifyNamespace, IdentifyNamespaceIndependent, LbaFormat, NamespaceDescriptors, ONCS_COMPARE,
    ONCS_DATASET_MANAGEMENT, ONCS_WRITE_ZEROES, cns, sgls, write_namespace_list,
};
use crate::wire::log_page::TransportType;
use crate::wire::{DISCOVERY_NQN, NSID_ALL, text};

/// Thin (bit 0), identifiers never reused (bit 3), hints for write and deallocate (bit 4).
const NSFEAT: u8 = 1 << 0 | 1 << 3 | 1 << 4;
/// Deallocated blocks read zeros (bits 2:0 = 1), Write Zeroes may deallocate (bit 3).
const DLFEAT: u8 = 1 | 1 << 3;
/// Error log entries kept.
pub(super) const ERROR_ENTRIES: usize = 16;

fn invalid_field() -> NvmeStatus {
    NvmeStatus::INVALID_FIELD.dnr()
}

fn invalid_namespace() -> NvmeStatus {
    NvmeStatus::INVALID_NAMESPACE_OR_FORMAT.dnr()
}

/// Fills `out` with what `sqe` asks for.
pub(super) fn identify(
    sqe: &Sqe,
    association: &Association,
    directory: &Directory,
    usages: &dyn Usages,
    out: &mut [u8; IDENTIFY_BYTES],
) -> Result<(), NvmeStatus> {
    out.fill(0);
    let (fields, nsid) = (sqe.identify_fields(), sqe.nsid.get());
    if fields.cns == cns::CONTROLLER {
        out.copy_from_slice(controller(association, directory).as_bytes());
        return Ok(());
    }
    if association.subsystem().is_none() {
        // A discovery controller has no namespaces to be asked about (base 3.1.2.3).
        return Err(invalid_field());
    }
    let by_command_set = matches!(
        fields.cns,
        cns::COMMAND_SET_NAMESPACE | cns::COMMAND_SET_CONTROLLER | cns::COMMAND_SET_ACTIVE_NAMESPACES
    );
    if by_command_set && fields.csi != CSI_NVM {
        return Err(invalid_field());
    }
    match fields.cns {
        cns::NAMESPACE => {
            if let Some(entry) = namespace(association, directory, nsid)? {
                out.copy_from_slice(
                    namespace_structure(entry, directory.is_write_protected(&entry.record), usages).as_bytes(),
                );
            }
        }
        cns::NAMESPACE_INDEPENDENT => {
            if let Some(entry) = namespace(association, directory, nsid)? {
                out.copy_from_slice(
                    namespace_independent(entry, directory.is_write_protected(&entry.record)).as_bytes(),
                );
            }
        }
        cns::COMMAND_SET_NAMESPACE => {
            // No protection information, no storage tags: all zero for an active namespace too.
            namespace(association, directory, nsid)?;
        }
        cns::ACTIVE_NAMESPACES | cns::COMMAND_SET_ACTIVE_NAMESPACES => {
            if nsid >= NSID_ALL - 1 {
                return Err(invalid_namespace());
            }
            write_namespace_list(active(association, directory), nsid, out);
        }
        cns::NAMESPACE_DESCRIPTORS => {
            let entry = namespace(association, directory, nsid)?.ok_or(invalid_namespace())?;
            descriptors(entry).write(out);
        }
        cns::COMMAND_SET_CONTROLLER => out.copy_from_slice(controller_nvm().as_bytes()),
        cns::COMMAND_SETS => {
            // Combination 0 is the NVM command set alone; the others are not there.
            out[0] = 1 << CSI_NVM;
        }
        _ => return Err(invalid_field()),
    }
    Ok(())
}

/// Active namespaces, ascending.
pub(super) fn active<'a>(association: &'a Association, directory: &'a Directory) -> impl Iterator<Item = u32> + 'a {
    association
        .subsystem()
        .into_iter()
        .flat_map(|subsystem| &subsystem.namespaces)
        .filter(|namespace| directory.entry(namespace.volume).is_some())
        .map(|namespace| namespace.nsid)
}

/// The volume of namespace `nsid`: `None` for one that is not active, `Err` for a number that none can have.
fn namespace<'a>(
    association: &Association,
    directory: &'a Directory,
    nsid: u32,
) -> Result<Option<&'a VolumeEntry>, NvmeStatus> {
    let subsystem = association.subsystem().expect("looked at before");
    if nsid == 0 || nsid > subsystem.nsid_max() {
        return Err(invalid_namespace());
    }
    Ok(subsystem.volume(nsid).and_then(|volume| directory.entry(volume)))
}

/// The same for every controller of a subsystem: its first volume's UUID.
fn serial(association: &Association, directory: &Directory) -> [u8; 20] {
    let volume = association.subsystem().and_then(|s| s.namespaces.first()).map(|namespace| namespace.volume);
    match volume.and_then(|volume| directory.volume(volume)) {
        Some(record) => text::space_padded(&record.uuid.simple().to_string()),
        None => text::space_padded("ringway"),
    }
}

fn controller(association: &Association, directory: &Directory) -> IdentifyController {
    let mut id = IdentifyController::new_zeroed();
    id.serial = serial(association, directory);
    id.model = text::space_padded("Ringway");
    id.firmware = text::space_padded(env!("CARGO_PKG_VERSION"));
    id.mdts = (u64::from(REQUEST_BYTES_MAX) / BLOCK).ilog2() as u8;
    id.cntlid = association.controller_id.into();
    id.version = VERSION_2_0.into();
    id.ctratt = (CTRATT_HOST_ID_128 | CTRATT_TRAFFIC_KEEP_ALIVE).into();
    id.aerl = EVENT_REQUESTS_MAX as u8 - 1;
    id.kas = ((KEEP_ALIVE_STEP_MS / 100) as u16).into();
    id.maxcmd = QUEUE_ENTRIES_MAX.into();
    id.sgls = sgls(association.path.transport).into();
    // Extended data: offsets, and lengths of more than 12 bits.
    id.lpa = 1 << 2;
    match &association.kind {
        ControllerKind::Discovery => {
            id.cntrltype = 2;
            id.oaes = EVENT_DISCOVERY.into();
            id.subnqn = text::nul_padded(DISCOVERY_NQN);
        }
        ControllerKind::Io(subsystem) => {
            id.cntrltype = 1;
            // Several ports, several controllers.
            id.cmic = 0b11;
            id.oaes = EVENT_NAMESPACE.into();
            id.subnqn = text::nul_padded(&subsystem.nqn);
            id.nn = subsystem.nsid_max().into();
            io_controller(&mut id, association.path.transport);
        }
    }
    id
}

/// What only controllers with I/O queues have.
fn io_controller(id: &mut IdentifyController, transport: TransportType) {
    // Aborts end at once: four is what we may say without thinking of more.
    id.acl = 3;
    // One slot, read-only.
    id.frmw = 1 << 1 | 1;
    // Commands supported and effects (bit 1), supported log pages and feature effects (bit 5).
    id.lpa |= 1 << 1 | 1 << 5;
    id.elpe = ERROR_ENTRIES as u8 - 1;
    id.sqes = 6 << 4 | 6;
    id.cqes = 4 << 4 | 4;
    id.oncs = (ONCS_COMPARE | ONCS_DATASET_MANAGEMENT | ONCS_WRITE_ZEROES).into();
    // Compare and Write.
    id.fuses = 1.into();
    // Present (bit 0); flush names its namespace (bits 2:1 = 2).
    id.vwc = 0b101;
    // awun, awupf and acwu stay 0: one logical block, the most that a cut or a power failure leaves whole.
    let in_capsule = match transport {
        TransportType::Tcp => IN_CAPSULE_BYTES,
        TransportType::Rdma => IN_CAPSULE_BYTES_RDMA,
    };
    id.ioccsz = ((SQE_BYTES as u32 + in_capsule) / 16).into();
    id.iorcsz = 1.into();
    id.msdbd = 1;
}

fn controller_nvm() -> IdentifyControllerNvm {
    let mut id = IdentifyControllerNvm::new_zeroed();
    id.wzsl = (u64::from(WRITE_ZEROES_BYTES_MAX) / BLOCK).ilog2() as u8;
    id
}

fn namespace_structure(entry: &VolumeEntry, read_only: bool, usages: &dyn Usages) -> IdentifyNamespace {
    let record = &*entry.record;
    let lba_bytes = u64::from(record.lba_bytes);
    // Blocks in `bytes`, minus one.
    let zero_based = |bytes: u64| (bytes.div_ceil(lba_bytes) - 1) as u16;
    let mut id = IdentifyNamespace::new_zeroed();
    id.nsze = (record.size / lba_bytes).into();
    id.ncap = id.nsze;
    // Thin: NUSE (base figure 249, bytes 23:16) is what has space in the pool, cluster by cluster.
    id.nuse = (usages.of(record.id).allocated.min(record.size) / lba_bytes).into();
    id.nsfeat = NSFEAT;
    id.nmic = 1;
    id.dlfeat = DLFEAT;
    // A command that stays within a stripe stays on one core.
    id.noiob = ((STRIPE / lba_bytes) as u16).into();
    id.nvmcap[..8].copy_from_slice(&record.size.to_le_bytes());
    id.npwg = zero_based(BLOCK).into();
    id.npwa = id.npwg;
    id.npdg = id.npwg;
    id.npda = id.npwg;
    id.nows = zero_based(CLUSTER).into();
    id.nsattr = u8::from(read_only);
    id.nguid = *record.uuid.as_bytes();
    id.lbaf[0] = LbaFormat { metadata: 0.into(), data_log2: record.lba_bytes.ilog2() as u8, performance: 0 };
    id
}

fn namespace_independent(entry: &VolumeEntry, read_only: bool) -> IdentifyNamespaceIndependent {
    let mut id = IdentifyNamespaceIndependent::new_zeroed();
    id.nsfeat = 1 << 3;
    id.nmic = 1;
    id.nsattr = u8::from(read_only);
    id.nstat = u8::from(entry.fault.is_none());
    id
}

fn descriptors(entry: &VolumeEntry) -> NamespaceDescriptors {
    let uuid = *entry.record.uuid.as_bytes();
    NamespaceDescriptors { eui64: None, nguid: Some(uuid), uuid: Some(uuid), csi: Some(CSI_NVM) }
}
