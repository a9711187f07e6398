//! Log pages (base 5.16.1) and the discovery log (base 5.16.1.23).

use std::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::text;

/// Log page identifiers.
pub mod page {
    /// Which pages there are, 1024 bytes.
    pub const SUPPORTED: u8 = 0x00;
    /// [`super::ErrorEntry`], newest first.
    pub const ERROR: u8 = 0x01;
    /// [`super::SmartLog`].
    pub const SMART: u8 = 0x02;
    /// [`super::FirmwareLog`].
    pub const FIRMWARE: u8 = 0x03;
    /// A namespace list: what changed since it was read.
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    /// [`super::CommandEffects`].
    pub const COMMAND_EFFECTS: u8 = 0x05;
    /// Which features there are, 1024 bytes.
    pub const FEATURE_EFFECTS: u8 = 0x12;
    /// Which management commands there are (none), 4096 bytes.
    pub const MANAGEMENT_EFFECTS: u8 = 0x13;
    /// [`super::DiscoveryHeader`] and entries; discovery controllers only.
    pub const DISCOVERY: u8 = 0x70;
}

/// An entry of the error log: 64 bytes (base figure 206).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ErrorEntry {
    /// `0-7` Running number; 0 is no entry.
    pub count: U64,
    /// `8-9` Queue.
    pub sq_id: U16,
    /// `10-11` Command.
    pub cid: U16,
    /// `12-13` Status field as in the completion (bits 15:1).
    pub status: U16,
    /// `14-15` Byte (7:0) and bit (10:8) of the parameter at fault; 0xFFFF is none in particular.
    pub parameter: U16,
    /// `16-23`
    pub lba: U64,
    /// `24-27`
    pub nsid: U32,
    /// `28`
    pub vendor: u8,
    /// `29` Transport: a [`TransportType`].
    pub transport: u8,
    /// `30-31` Reserved.
    pub reserved30: [u8; 2],
    /// `32-39`
    pub command_specific: U64,
    /// `40-41`
    pub transport_specific: U16,
    /// `42-63` Reserved.
    pub reserved42: [u8; 22],
}

/// The SMART log: 512 bytes (base figure 207). Wide counters are 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SmartLog {
    /// `0` Spare below threshold (bit 0), reliability degraded (2), read-only (3).
    pub critical_warning: u8,
    /// `1-2` Kelvin.
    pub temperature: U16,
    /// `3` Percent of spare left: here, of the pool's space.
    pub available_spare: u8,
    /// `4` Percent below which bit 0 is set.
    pub spare_threshold: u8,
    /// `5`
    pub percentage_used: u8,
    /// `6`
    pub endurance_warning: u8,
    /// `7-31` Reserved.
    pub reserved7: [u8; 25],
    /// `32-47` Thousands of 512-byte units.
    pub data_units_read: [u8; 16],
    /// `48-63`
    pub data_units_written: [u8; 16],
    /// `64-79`
    pub host_reads: [u8; 16],
    /// `80-95`
    pub host_writes: [u8; 16],
    /// `96-111`
    pub busy_minutes: [u8; 16],
    /// `112-127`
    pub power_cycles: [u8; 16],
    /// `128-143`
    pub power_on_hours: [u8; 16],
    /// `144-159`
    pub unsafe_shutdowns: [u8; 16],
    /// `160-175`
    pub media_errors: [u8; 16],
    /// `176-191` Entries ever made in the error log.
    pub error_log_entries: [u8; 16],
    /// `192-511` Temperatures: none.
    pub reserved192: [u8; 320],
}

/// Critical warning: spare below its threshold.
pub const WARNING_SPARE: u8 = 1 << 0;
/// Critical warning: the media is read-only.
pub const WARNING_READ_ONLY: u8 = 1 << 3;

/// The firmware slot log: 512 bytes (base figure 208).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct FirmwareLog {
    /// `0` Active slot (bits 2:0).
    pub active: u8,
    /// `1-7` Reserved.
    pub reserved1: [u8; 7],
    /// `8-63` Revisions by slot.
    pub revisions: [[u8; 8]; 7],
    /// `64-511` Reserved.
    pub reserved64: [u8; 448],
}

/// Commands supported and effects: 4096 bytes (base figure 211). Bit 0 supported, bit 1 changes content, bit 3 changes
/// controller capabilities; scope in bits 31:20.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CommandEffects {
    /// `0-1023` By admin opcode.
    pub admin: [U32; 256],
    /// `1024-2047` By I/O opcode.
    pub io: [U32; 256],
    /// `2048-4095` Reserved.
    pub reserved2048: [u8; 2048],
}

/// The command is supported.
pub const EFFECT_SUPPORTED: u32 = 1 << 0;
/// It may change logical block content.
pub const EFFECT_CONTENT: u32 = 1 << 1;

/// The head of the discovery log: 1024 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DiscoveryHeader {
    /// `0-7` Changes whenever the log does.
    pub generation: U64,
    /// `8-15` Entries.
    pub records: U64,
    /// `16-17` 0.
    pub record_format: U16,
    /// `18-1023` Reserved.
    pub reserved18: [u8; 1006],
}

/// One entry of the discovery log: 1024 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DiscoveryEntry {
    /// `0` Transport: a [`TransportType`].
    pub trtype: u8,
    /// `1` Address family: 1 IPv4, 2 IPv6.
    pub adrfam: u8,
    /// `2` 1 referral, 2 NVM subsystem, 3 this discovery subsystem.
    pub subtype: u8,
    /// `3` Secure channel: 0 not specified, 1 required, 2 not required.
    pub treq: u8,
    /// `4-5` Port.
    pub portid: U16,
    /// `6-7` Controller, 0xFFFF for the dynamic model.
    pub cntlid: U16,
    /// `8-9` Most entries of an admin queue.
    pub asqsz: U16,
    /// `10-11` Flags.
    pub eflags: U16,
    /// `12-31` Reserved.
    pub reserved12: [u8; 20],
    /// `32-63` Service: the port in decimal, padded with NULs or spaces.
    pub trsvcid: [u8; 32],
    /// `64-255` Reserved.
    pub reserved64: [u8; 192],
    /// `256-511` Subsystem.
    pub subnqn: [u8; 256],
    /// `512-767` Address in text.
    pub traddr: [u8; 256],
    /// `768-1023` See [`TransportType::address_subtype`].
    pub tsas: [u8; 256],
}

/// A transport, under its number TRTYPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TransportType {
    /// NVMe/RDMA.
    Rdma = 1,
    /// NVMe/TCP.
    Tcp = 3,
}

impl TransportType {
    /// What the address of a transport says besides (TSAS): of TCP that there is no security, of RDMA the kind of queue pair
    /// (`0` reliable, connected: 1), of provider (`1` none in particular: 1) and of connection management (`2` RDMA_CM: 1;
    /// rdma figure 3).
    #[must_use]
    pub fn address_subtype(self) -> [u8; 256] {
        let mut tsas = [0; 256];
        if self == TransportType::Rdma {
            tsas[..3].copy_from_slice(&[1, 1, 1]);
        }
        tsas
    }

    /// The transport with this number.
    #[must_use]
    pub fn of(trtype: u8) -> Option<TransportType> {
        [TransportType::Rdma, TransportType::Tcp].into_iter().find(|&known| known as u8 == trtype)
    }
}

impl fmt::Display for TransportType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TransportType::Rdma => "rdma",
            TransportType::Tcp => "tcp",
        })
    }
}

/// Subsystem type: one with namespaces.
pub const SUBTYPE_NVM: u8 = 2;
/// Secure channel not required.
pub const TREQ_NOT_REQUIRED: u8 = 2;

const _: () = assert!(size_of::<ErrorEntry>() == 64);
const _: () = assert!(size_of::<SmartLog>() == 512);
const _: () = assert!(size_of::<FirmwareLog>() == 512);
const _: () = assert!(size_of::<CommandEffects>() == 4096);
const _: () = assert!(size_of::<DiscoveryHeader>() == 1024);
const _: () = assert!(size_of::<DiscoveryEntry>() == 1024);

impl DiscoveryEntry {
    /// The entries in `bytes`, which start behind the header.
    pub fn read(bytes: &[u8]) -> impl Iterator<Item = &DiscoveryEntry> + '_ {
        bytes.chunks_exact(size_of::<DiscoveryEntry>()).filter_map(|chunk| DiscoveryEntry::ref_from_bytes(chunk).ok())
    }

    /// Address, service and subsystem, where these are text.
    #[must_use]
    pub fn target(&self) -> Option<(&str, &str, &str)> {
        Some((text::trimmed(&self.traddr)?, text::trimmed(&self.trsvcid)?, text::nqn(&self.subnqn)?))
    }
}

/// Copies the part of `page` that starts at `offset` into `out`; zeros behind its end.
pub fn copy_window(page: &[u8], offset: u64, out: &mut [u8]) {
    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(page.len());
    let len = (page.len() - from).min(out.len());
    out[..len].copy_from_slice(&page[from..from + len]);
    out[len..].fill(0);
}
