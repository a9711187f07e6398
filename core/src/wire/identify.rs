//! Data structures of Identify (base 5.17, nvm 4.1.5). Each has 4096 bytes.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::log_page::TransportType;
use super::text;

/// Bytes of every structure of Identify.
pub const IDENTIFY_BYTES: usize = 4096;
/// The command set identifier of the NVM command set.
pub const CSI_NVM: u8 = 0;

/// Values of CNS.
pub mod cns {
    /// [`super::IdentifyNamespace`].
    pub const NAMESPACE: u8 = 0x00;
    /// [`super::IdentifyController`].
    pub const CONTROLLER: u8 = 0x01;
    /// Up to 1024 namespaces above the given one.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// [`super::NamespaceDescriptors`].
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    /// The command set's own structure of a namespace.
    pub const COMMAND_SET_NAMESPACE: u8 = 0x05;
    /// [`super::IdentifyControllerNvm`] for the NVM command set.
    pub const COMMAND_SET_CONTROLLER: u8 = 0x06;
    /// As [`ACTIVE_NAMESPACES`], of one command set.
    pub const COMMAND_SET_ACTIVE_NAMESPACES: u8 = 0x07;
    /// [`super::IdentifyNamespaceIndependent`].
    pub const NAMESPACE_INDEPENDENT: u8 = 0x08;
    /// Combinations of command sets.
    pub const COMMAND_SETS: u8 = 0x1C;
}

/// One power state descriptor; all zero says nothing.
pub type PowerState = [u8; 32];

/// Identify Controller (base figure 275).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IdentifyController {
    /// `0-1` PCI vendor.
    pub vid: U16,
    /// `2-3` PCI subsystem vendor.
    pub ssvid: U16,
    /// `4-23` Serial number.
    pub serial: [u8; 20],
    /// `24-63` Model number.
    pub model: [u8; 40],
    /// `64-71` Firmware revision.
    pub firmware: [u8; 8],
    /// `72` Recommended arbitration burst.
    pub rab: u8,
    /// `73-75` IEEE OUI.
    pub ieee: [u8; 3],
    /// `76` Multi-path capabilities: several ports (bit 0), several controllers (bit 1).
    pub cmic: u8,
    /// `77` Maximum data transfer size, log2 of pages; 0 is no limit.
    pub mdts: u8,
    /// `78-79` Controller identifier.
    pub cntlid: U16,
    /// `80-83` Version.
    pub version: U32,
    /// `84-87`
    pub rtd3r: U32,
    /// `88-91`
    pub rtd3e: U32,
    /// `92-95` Asynchronous events supported, bits as in the event configuration.
    pub oaes: U32,
    /// `96-99` Attributes: 128-bit host identifier (bit 0), traffic-based keep alive (bit 6).
    pub ctratt: U32,
    /// `100-101`
    pub rrls: U16,
    /// `102-110` Reserved.
    pub reserved102: [u8; 9],
    /// `111` Type: 1 I/O, 2 discovery.
    pub cntrltype: u8,
    /// `112-127` FRU GUID.
    pub fguid: [u8; 16],
    /// `128-133` Command retry delay times, 100 ms.
    pub crdt: [U16; 3],
    /// `134-255` Reserved.
    pub reserved134: [u8; 122],
    /// `256-257` Optional admin commands.
    pub oacs: U16,
    /// `258` Abort command limit, minus one.
    pub acl: u8,
    /// `259` Asynchronous event request limit, minus one.
    pub aerl: u8,
    /// `260` Firmware updates: slots in bits 3:1.
    pub frmw: u8,
    /// `261` Log page attributes.
    pub lpa: u8,
    /// `262` Error log entries, minus one.
    pub elpe: u8,
    /// `263` Power states, minus one.
    pub npss: u8,
    /// `264`
    pub avscc: u8,
    /// `265`
    pub apsta: u8,
    /// `266-267` Warning temperature.
    pub wctemp: U16,
    /// `268-269` Critical temperature.
    pub cctemp: U16,
    /// `270-319` Firmware activation, buffers, capacities, self-test: none.
    pub reserved270: [u8; 50],
    /// `320-321` Keep alive granularity, 100 ms.
    pub kas: U16,
    /// `322-511` Thermal management, sanitize, reservations, ANA, domains: none.
    pub reserved322: [u8; 190],
    /// `512` Submission queue entry sizes: required (3:0) and most (7:4), log2.
    pub sqes: u8,
    /// `513` Completion queue entry sizes.
    pub cqes: u8,
    /// `514-515` Most commands outstanding on a queue.
    pub maxcmd: U16,
    /// `516-519` Highest namespace identifier.
    pub nn: U32,
    /// `520-521` Optional NVM commands.
    pub oncs: U16,
    /// `522-523` Fused operations: compare and write (bit 0).
    pub fuses: U16,
    /// `524`
    pub fna: u8,
    /// `525` Volatile write cache: present (bit 0), flush of all namespaces (bits 2:1).
    pub vwc: u8,
    /// `526-527` Atomic write unit, blocks minus one.
    pub awun: U16,
    /// `528-529` The same across power failures.
    pub awupf: U16,
    /// `530`
    pub icsvscc: u8,
    /// `531`
    pub nwpc: u8,
    /// `532-533` Atomic compare and write unit.
    pub acwu: U16,
    /// `534-535` Copy formats.
    pub cdfs: U16,
    /// `536-539` SGL support.
    pub sgls: U32,
    /// `540-543` Most namespaces allowed; 0 is NN.
    pub mnan: U32,
    /// `544-767` Reserved.
    pub reserved544: [u8; 224],
    /// `768-1023` Subsystem NQN.
    pub subnqn: [u8; 256],
    /// `1024-1791` Reserved.
    pub reserved1024: [u8; 768],
    /// `1792-1795` I/O queue command capsule, 16 bytes.
    pub ioccsz: U32,
    /// `1796-1799` I/O queue response capsule, 16 bytes.
    pub iorcsz: U32,
    /// `1800-1801` In-capsule data offset, 16 bytes.
    pub icdoff: U16,
    /// `1802` Fabrics controller attributes: static model (bit 0).
    pub fcatt: u8,
    /// `1803` Most SGL data block descriptors.
    pub msdbd: u8,
    /// `1804-1805` Optional fabrics commands: Disconnect (bit 0).
    pub ofcs: U16,
    /// `1806-2047` Reserved.
    pub reserved1806: [u8; 242],
    /// `2048-3071` Power states.
    pub psd: [PowerState; 32],
    /// `3072-4095` Vendor specific.
    pub vendor: [u8; 1024],
}

/// Optional NVM command: Compare.
pub const ONCS_COMPARE: u16 = 1 << 0;
/// Optional NVM command: Dataset Management.
pub const ONCS_DATASET_MANAGEMENT: u16 = 1 << 2;
/// Optional NVM command: Write Zeroes.
pub const ONCS_WRITE_ZEROES: u16 = 1 << 3;
/// Attribute: 128-bit host identifiers.
pub const CTRATT_HOST_ID_128: u32 = 1 << 0;
/// Attribute: any command is a sign of life.
pub const CTRATT_TRAFFIC_KEEP_ALIVE: u32 = 1 << 6;
/// SGLs without alignment (bits 1:0), offsets into the capsule (bit 20), transport data blocks (bit 21).
const SGLS_TCP: u32 = 0b01 | 1 << 20 | 1 << 21;
/// SGLs without alignment (bits 1:0), keyed data blocks (bit 2), offsets into the capsule (bit 20).
const SGLS_RDMA: u32 = 0b01 | 1 << 2 | 1 << 20;

/// The descriptors that a controller takes, by its transport.
#[must_use]
pub fn sgls(transport: TransportType) -> u32 {
    match transport {
        TransportType::Tcp => SGLS_TCP,
        TransportType::Rdma => SGLS_RDMA,
    }
}

/// An LBA format (nvm figure 98).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct LbaFormat {
    /// `0-1` Metadata bytes.
    pub metadata: U16,
    /// `2` log2 of the bytes of a block.
    pub data_log2: u8,
    /// `3` Relative performance.
    pub performance: u8,
}

/// Identify Namespace of the NVM command set (nvm figure 97).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// `0-7` Size, blocks.
    pub nsze: U64,
    /// `8-15` Capacity, blocks.
    pub ncap: U64,
    /// `16-23` Utilisation, blocks.
    pub nuse: U64,
    /// `24` Features: thin (bit 0), own atomics (1), deallocated error (2), identifiers never reused (3), hints (4).
    pub nsfeat: u8,
    /// `25` LBA formats minus one.
    pub nlbaf: u8,
    /// `26` Format in use.
    pub flbas: u8,
    /// `27-29` Metadata and protection capabilities.
    pub mc_dpc_dps: [u8; 3],
    /// `30` Shared (bit 0).
    pub nmic: u8,
    /// `31` Reservations.
    pub rescap: u8,
    /// `32`
    pub fpi: u8,
    /// `33` Deallocated blocks read zeros (bits 2:0 = 1), Write Zeroes may deallocate (bit 3).
    pub dlfeat: u8,
    /// `34-35`
    pub nawun: U16,
    /// `36-37`
    pub nawupf: U16,
    /// `38-39`
    pub nacwu: U16,
    /// `40-41`
    pub nabsn: U16,
    /// `42-43`
    pub nabo: U16,
    /// `44-45`
    pub nabspf: U16,
    /// `46-47` Optimal I/O boundary, blocks.
    pub noiob: U16,
    /// `48-63` NVM capacity, bytes.
    pub nvmcap: [u8; 16],
    /// `64-65` Preferred write granularity, blocks minus one.
    pub npwg: U16,
    /// `66-67` Preferred write alignment.
    pub npwa: U16,
    /// `68-69` Preferred deallocate granularity.
    pub npdg: U16,
    /// `70-71` Preferred deallocate alignment.
    pub npda: U16,
    /// `72-73` Optimal write size.
    pub nows: U16,
    /// `74-75` Most blocks of one copy source.
    pub mssrl: U16,
    /// `76-79` Most blocks of one copy.
    pub mcl: U32,
    /// `80` Most sources of one copy.
    pub msrc: u8,
    /// `81-91` Reserved.
    pub reserved81: [u8; 11],
    /// `92-95` ANA group.
    pub anagrpid: U32,
    /// `96-98` Reserved.
    pub reserved96: [u8; 3],
    /// `99` Attributes: write protected (bit 0).
    pub nsattr: u8,
    /// `100-101`
    pub nvmsetid: U16,
    /// `102-103`
    pub endgid: U16,
    /// `104-119` Namespace GUID, big-endian.
    pub nguid: [u8; 16],
    /// `120-127` EUI-64.
    pub eui64: [u8; 8],
    /// `128-383` LBA formats.
    pub lbaf: [LbaFormat; 64],
    /// `384-4095` Vendor specific.
    pub vendor: [u8; 3712],
}

/// Identify Controller of the NVM command set: limits (nvm figure 102).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IdentifyControllerNvm {
    /// `0` Verify size limit.
    pub vsl: u8,
    /// `1` Write Zeroes size limit, log2 of pages.
    pub wzsl: u8,
    /// `2` Write Uncorrectable size limit.
    pub wusl: u8,
    /// `3` Most ranges of a Dataset Management.
    pub dmrl: u8,
    /// `4-7` Most blocks of a range.
    pub dmrsl: U32,
    /// `8-15` Most blocks in all.
    pub dmsl: U64,
    /// `16-4095` Reserved.
    pub reserved16: [u8; 4080],
}

/// Identify Namespace independent of the command set (base figure 280).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespaceIndependent {
    /// `0` Identifiers never reused (bit 3).
    pub nsfeat: u8,
    /// `1` Shared (bit 0).
    pub nmic: u8,
    /// `2`
    pub rescap: u8,
    /// `3`
    pub fpi: u8,
    /// `4-7` ANA group.
    pub anagrpid: U32,
    /// `8` Write protected (bit 0).
    pub nsattr: u8,
    /// `9` Reserved.
    pub reserved9: u8,
    /// `10-11`
    pub nvmsetid: U16,
    /// `12-13`
    pub endgid: U16,
    /// `14` Ready (bit 0).
    pub nstat: u8,
    /// `15-4095` Reserved.
    pub reserved15: [u8; 4081],
}

const _: () = assert!(size_of::<IdentifyController>() == IDENTIFY_BYTES);
const _: () = assert!(size_of::<IdentifyNamespace>() == IDENTIFY_BYTES);
const _: () = assert!(size_of::<IdentifyControllerNvm>() == IDENTIFY_BYTES);
const _: () = assert!(size_of::<IdentifyNamespaceIndependent>() == IDENTIFY_BYTES);
const _: () = assert!(std::mem::offset_of!(IdentifyController, kas) == 320);
const _: () = assert!(std::mem::offset_of!(IdentifyController, sqes) == 512);
const _: () = assert!(std::mem::offset_of!(IdentifyController, sgls) == 536);
const _: () = assert!(std::mem::offset_of!(IdentifyController, subnqn) == 768);
const _: () = assert!(std::mem::offset_of!(IdentifyController, ioccsz) == 1792);
const _: () = assert!(std::mem::offset_of!(IdentifyNamespace, nvmcap) == 48);
const _: () = assert!(std::mem::offset_of!(IdentifyNamespace, nguid) == 104);
const _: () = assert!(std::mem::offset_of!(IdentifyNamespace, lbaf) == 128);

impl IdentifyController {
    /// The serial number without its padding.
    #[must_use]
    pub fn serial_text(&self) -> &str {
        text::trimmed(&self.serial).unwrap_or("")
    }

    /// Bytes of the largest transfer given the page size of the capabilities; `None` is no limit.
    #[must_use]
    pub fn transfer_bytes_max(&self, page_bytes_min: u64) -> Option<u64> {
        (self.mdts != 0).then(|| page_bytes_min.checked_shl(u32::from(self.mdts)).unwrap_or(u64::MAX))
    }

    /// Bytes of data that fit a command capsule of an I/O queue.
    #[must_use]
    pub fn in_capsule_bytes(&self) -> u32 {
        self.ioccsz.get().saturating_mul(16).saturating_sub(super::command::SQE_BYTES as u32)
    }
}

impl IdentifyNamespace {
    /// Bytes of a logical block; `None` if the structure does not say a sensible one.
    #[must_use]
    pub fn lba_bytes(&self) -> Option<u32> {
        let index = usize::from(self.flbas & 0xF) | usize::from(self.flbas >> 5 & 0b11) << 4;
        let log2 = self.lbaf[index].data_log2;
        (9..=16).contains(&log2).then(|| 1 << log2)
    }
}

/// Identifiers of a namespace, as the list of descriptors that Identify returns (base figure 276).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceDescriptors {
    /// Type 1.
    pub eui64: Option<[u8; 8]>,
    /// Type 2.
    pub nguid: Option<[u8; 16]>,
    /// Type 3.
    pub uuid: Option<[u8; 16]>,
    /// Type 4.
    pub csi: Option<u8>,
}

impl NamespaceDescriptors {
    /// Writes the list into `out`, zeros behind it.
    pub fn write(&self, out: &mut [u8; IDENTIFY_BYTES]) {
        out.fill(0);
        let mut at = 0;
        let csi = self.csi.map(|csi| [csi]);
        let lists: [(u8, Option<&[u8]>); 4] = [
            (1, self.eui64.as_ref().map(<[u8; 8]>::as_slice)),
            (2, self.nguid.as_ref().map(<[u8; 16]>::as_slice)),
            (3, self.uuid.as_ref().map(<[u8; 16]>::as_slice)),
            (4, csi.as_ref().map(<[u8; 1]>::as_slice)),
        ];
        for (kind, value) in lists {
            let Some(value) = value else { continue };
            out[at] = kind;
            out[at + 1] = value.len() as u8;
            out[at + 4..at + 4 + value.len()].copy_from_slice(value);
            at += 4 + value.len();
        }
    }

    /// Reads a list; descriptors of unknown type or wrong length are passed over.
    #[must_use]
    pub fn read(bytes: &[u8]) -> NamespaceDescriptors {
        let mut found = NamespaceDescriptors::default();
        let mut rest = bytes;
        while let [kind, len, _, _, tail @ ..] = rest {
            let len = usize::from(*len);
            if *kind == 0 || len == 0 || tail.len() < len {
                break;
            }
            let (value, next) = tail.split_at(len);
            match kind {
                1 => found.eui64 = value.try_into().ok().or(found.eui64),
                2 => found.nguid = value.try_into().ok().or(found.nguid),
                3 => found.uuid = value.try_into().ok().or(found.uuid),
                4 => found.csi = value.first().copied(),
                _ => {}
            }
            rest = next;
        }
        found
    }
}

/// Writes the active namespaces above `above` into `out`, ascending, zeros behind them.
pub fn write_namespace_list(active: impl Iterator<Item = u32>, above: u32, out: &mut [u8; IDENTIFY_BYTES]) {
    let mut list = [U32::ZERO; IDENTIFY_BYTES / 4];
    for (slot, nsid) in list.iter_mut().zip(active.filter(|&nsid| nsid > above)) {
        *slot = nsid.into();
    }
    out.copy_from_slice(list.as_bytes());
}

/// The namespaces in a list, up to its first zero.
pub fn read_namespace_list(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
        .take_while(|&nsid| nsid != 0)
}
