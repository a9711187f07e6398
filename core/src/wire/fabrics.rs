//! Fabrics commands: Connect, Property Get and Set, Disconnect (base 6), and the properties behind them (base 3.1.3).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, TryFromBytes, Unaligned};

use super::command::{FABRICS, PSDT_SGL, Sqe};
use super::sgl::Sgl;
use super::text;

/// Types of fabrics commands.
pub mod kind {
    /// Base 6.5.
    pub const PROPERTY_SET: u8 = 0x00;
    /// Base 6.3.
    pub const CONNECT: u8 = 0x01;
    /// Base 6.4.
    pub const PROPERTY_GET: u8 = 0x04;
    /// Base 6.2.
    pub const AUTHENTICATION_SEND: u8 = 0x05;
    /// Base 6.1.
    pub const AUTHENTICATION_RECEIVE: u8 = 0x06;
    /// Deletes one I/O queue.
    pub const DISCONNECT: u8 = 0x08;
}

/// "Any controller": what Connect of an admin queue asks for under the dynamic controller model.
pub const CNTLID_DYNAMIC: u16 = 0xFFFF;
/// Connect attribute: the host does not want submission queue flow control.
pub const CATTR_NO_SQ_FLOW_CONTROL: u8 = 1 << 2;
/// Connect attribute: the host wants to delete I/O queues one by one.
pub const CATTR_QUEUE_DELETION: u8 = 1 << 3;

/// A Connect command: the submission queue entry as its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Connect {
    /// `0` [`FABRICS`].
    pub opcode: u8,
    /// `1` As in any command.
    pub flags: u8,
    /// `2-3` Command identifier.
    pub cid: U16,
    /// `4` [`kind::CONNECT`].
    pub fabrics_type: u8,
    /// `5-23` Reserved.
    pub reserved5: [u8; 19],
    /// `24-39` The data: [`ConnectData`].
    pub sgl: Sgl,
    /// `40-41` Record format: 0.
    pub record_format: U16,
    /// `42-43` Queue: 0 is the admin queue.
    pub queue_id: U16,
    /// `44-45` Entries of the queue minus one.
    pub sq_size: U16,
    /// `46` Attributes.
    pub attributes: u8,
    /// `47` Reserved.
    pub reserved47: u8,
    /// `48-51` Keep alive timeout, milliseconds; 0 is off.
    pub keep_alive_ms: U32,
    /// `52-63` Reserved.
    pub reserved52: [u8; 12],
}

/// Offsets of Connect's fields, as the "invalid parameter offset" of its refusal names them.
pub mod parameter {
    /// [`super::Connect::queue_id`].
    pub const QUEUE_ID: u16 = 42;
    /// [`super::Connect::sq_size`].
    pub const SQ_SIZE: u16 = 44;
    /// [`super::Connect::attributes`].
    pub const ATTRIBUTES: u16 = 46;
    /// [`super::ConnectData::host_id`].
    pub const DATA_HOST_ID: u16 = 0;
    /// [`super::ConnectData::controller_id`].
    pub const DATA_CONTROLLER_ID: u16 = 16;
    /// [`super::ConnectData::subsystem_nqn`].
    pub const DATA_SUBSYSTEM_NQN: u16 = 256;
    /// [`super::ConnectData::host_nqn`].
    pub const DATA_HOST_NQN: u16 = 512;
}

/// The data of a Connect command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ConnectData {
    /// `0-15` Host identifier.
    pub host_id: [u8; 16],
    /// `16-17` Controller to join, or [`CNTLID_DYNAMIC`].
    pub controller_id: U16,
    /// `18-255` Reserved.
    pub reserved18: [u8; 238],
    /// `256-511` Subsystem.
    pub subsystem_nqn: [u8; 256],
    /// `512-767` Host.
    pub host_nqn: [u8; 256],
    /// `768-1023` Reserved.
    pub reserved768: [u8; 256],
}

/// Bytes of the data of a Connect command.
pub const CONNECT_DATA_BYTES: usize = 1024;
const _: () = assert!(size_of::<Connect>() == 64 && size_of::<ConnectData>() == CONNECT_DATA_BYTES);

impl Connect {
    /// The command in `sqe`, if it is one.
    #[must_use]
    pub fn of(sqe: &Sqe) -> Option<Connect> {
        (sqe.opcode == FABRICS && sqe.fabrics_type() == kind::CONNECT).then(|| zerocopy::transmute!(*sqe))
    }

    /// A command that makes queue `queue_id` with `entries` entries; its data is in the capsule.
    ///
    /// # Panics
    /// If the queue would have fewer than two entries.
    #[must_use]
    pub fn new(queue_id: u16, entries: u16, keep_alive_ms: u32) -> Connect {
        assert!(entries >= 2, "a queue has at least two entries");
        let mut connect = Connect::new_zeroed();
        connect.opcode = FABRICS;
        connect.flags = PSDT_SGL << 6;
        connect.fabrics_type = kind::CONNECT;
        connect.sgl = Sgl::in_capsule(CONNECT_DATA_BYTES as u32);
        connect.queue_id = queue_id.into();
        connect.sq_size = (entries - 1).into();
        connect.keep_alive_ms = keep_alive_ms.into();
        connect
    }

    /// As a submission queue entry.
    #[must_use]
    pub fn sqe(self) -> Sqe {
        zerocopy::transmute!(self)
    }
}

impl ConnectData {
    /// For host `host_nqn` with `host_id`, controller `controller_id` of subsystem `subsystem_nqn`.
    ///
    /// # Panics
    /// If an NQN has more than 255 bytes.
    #[must_use]
    pub fn new(host_id: [u8; 16], controller_id: u16, subsystem_nqn: &str, host_nqn: &str) -> ConnectData {
        let mut data = ConnectData::new_zeroed();
        data.host_id = host_id;
        data.controller_id = controller_id.into();
        data.subsystem_nqn = text::nul_padded(subsystem_nqn);
        data.host_nqn = text::nul_padded(host_nqn);
        data
    }

    /// The data in `bytes`; `None` unless these are exactly 1024.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<&ConnectData> {
        ConnectData::try_ref_from_bytes(bytes).ok()
    }
}

/// The result of a refused Connect: which parameter, at which offset, in the data or in the command (base 6.3, figure 385).
#[must_use]
pub fn invalid_parameter(offset: u16, in_data: bool) -> u64 {
    u64::from(offset) | u64::from(in_data) << 16
}

/// A property (base 3.1.3, figure 33).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property {
    /// Controller capabilities, 8 bytes.
    Capabilities,
    /// Version.
    Version,
    /// Controller configuration.
    Configuration,
    /// Controller status.
    Status,
    /// Controller ready timeouts.
    ReadyTimeouts,
}

impl Property {
    /// The property at `offset` read or written as 8 (`wide`) or 4 bytes.
    #[must_use]
    pub fn at(offset: u32, wide: bool) -> Option<Property> {
        match (offset, wide) {
            (0x00, true) => Some(Property::Capabilities),
            (0x08, false) => Some(Property::Version),
            (0x14, false) => Some(Property::Configuration),
            (0x1C, false) => Some(Property::Status),
            (0x68, false) => Some(Property::ReadyTimeouts),
            _ => None,
        }
    }

    /// Offset, and whether it has 8 bytes.
    #[must_use]
    pub fn place(self) -> (u32, bool) {
        match self {
            Property::Capabilities => (0x00, true),
            Property::Version => (0x08, false),
            Property::Configuration => (0x14, false),
            Property::Status => (0x1C, false),
            Property::ReadyTimeouts => (0x68, false),
        }
    }
}

/// The fields of Property Get and Property Set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PropertyFields {
    /// Which; `None` for one that is not there or not of that size.
    pub property: Option<Property>,
    /// Set: the value `48-55`.
    pub value: u64,
}

impl PropertyFields {
    /// The fields of `sqe`.
    #[must_use]
    pub fn of(sqe: &Sqe) -> PropertyFields {
        let wide = match sqe.cdw10.get() & 0b111 {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        };
        PropertyFields {
            property: wide.and_then(|wide| Property::at(sqe.cdw11.get(), wide)),
            value: u64::from(sqe.cdw13.get()) << 32 | u64::from(sqe.cdw12.get()),
        }
    }
}

fn property_command(fabrics_type: u8, property: Property) -> Sqe {
    let (offset, wide) = property.place();
    let mut sqe = Sqe::new(FABRICS, u32::from(fabrics_type));
    sqe.cdw10 = u32::from(wide).into();
    sqe.cdw11 = offset.into();
    sqe
}

/// A command that reads `property`; the value is its result.
#[must_use]
pub fn property_get(property: Property) -> Sqe {
    property_command(kind::PROPERTY_GET, property)
}

/// A command that writes `property`.
#[must_use]
pub fn property_set(property: Property, value: u64) -> Sqe {
    let mut sqe = property_command(kind::PROPERTY_SET, property);
    sqe.cdw12 = (value as u32).into();
    sqe.cdw13 = ((value >> 32) as u32).into();
    sqe
}

/// Controller capabilities (base 3.1.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Queues of up to `entries`, contiguous, `timeout_500ms` to become ready, NVM command set, 4 KiB pages, ready means ready
    /// with media.
    #[must_use]
    pub const fn new(entries: u16, timeout_500ms: u8) -> Capabilities {
        let ready_with_media = 1 << 59;
        let nvm_command_set = 1 << 37;
        let contiguous = 1 << 16;
        Capabilities(
            ready_with_media | nvm_command_set | (timeout_500ms as u64) << 24 | contiguous | (entries - 1) as u64,
        )
    }

    /// Most entries of a queue.
    #[must_use]
    pub const fn queue_entries_max(self) -> u32 {
        (self.0 & 0xFFFF) as u32 + 1
    }

    /// Milliseconds that the controller may take to become ready.
    #[must_use]
    pub const fn timeout_ms(self) -> u32 {
        (self.0 >> 24 & 0xFF) as u32 * 500
    }

    /// Bytes of the unit of MDTS (MPSMIN).
    #[must_use]
    pub const fn page_bytes_min(self) -> u64 {
        1 << (12 + (self.0 >> 48 & 0xF))
    }
}

/// Controller configuration (base 3.1.3.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Configuration(pub u32);

impl Configuration {
    /// Enabled, NVM command set, 4 KiB pages, 64-byte and 16-byte entries.
    pub const ENABLE: Configuration = Configuration(4 << 20 | 6 << 16 | 1);
    /// The same with a normal shutdown notification.
    pub const SHUT_DOWN: Configuration = Configuration(Configuration::ENABLE.0 | 1 << 14);

    /// Bit 0.
    #[must_use]
    pub const fn enable(self) -> bool {
        self.0 & 1 != 0
    }

    /// Bits 6:4: command sets.
    #[must_use]
    pub const fn command_sets(self) -> u32 {
        self.0 >> 4 & 0b111
    }

    /// Bits 10:7: page size.
    #[must_use]
    pub const fn page_size(self) -> u32 {
        self.0 >> 7 & 0xF
    }

    /// Bits 13:11: arbitration.
    #[must_use]
    pub const fn arbitration(self) -> u32 {
        self.0 >> 11 & 0b111
    }

    /// Bits 15:14: shutdown notification, 0 for none.
    #[must_use]
    pub const fn shutdown(self) -> u32 {
        self.0 >> 14 & 0b11
    }

    /// Bits 19:16: log2 of the bytes of a submission queue entry.
    #[must_use]
    pub const fn sq_entry_log2(self) -> u32 {
        self.0 >> 16 & 0xF
    }

    /// Bits 23:20: log2 of the bytes of a completion queue entry.
    #[must_use]
    pub const fn cq_entry_log2(self) -> u32 {
        self.0 >> 20 & 0xF
    }
}

/// Controller status, bit 0 (base 3.1.3.6): ready.
pub const CSTS_READY: u32 = 1 << 0;
/// Bit 1: the controller cannot go on.
pub const CSTS_FATAL: u32 = 1 << 1;
/// Bits 3:2: shutdown is complete.
pub const CSTS_SHUTDOWN_COMPLETE: u32 = 0b10 << 2;
/// Mask of bits 3:2.
pub const CSTS_SHUTDOWN_MASK: u32 = 0b11 << 2;
/// Version 2.0.0 (base 3.1.3.2).
pub const VERSION_2_0: u32 = 0x0002_0000;
