//! The one scatter-gather descriptor that a command carries (base 4.1.2, tcp 3.4).
//!
//! NVMe/TCP knows two: data in the capsule at an offset, and data that the transport moves in PDUs of its own.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::completion::NvmeStatus;

/// SGL data block descriptor, subtype offset: the data is in the capsule.
pub const SGL_IN_CAPSULE: u8 = 0x01;
/// Transport SGL data block descriptor, subtype transport-specific: the data is moved by PDUs.
pub const SGL_TRANSPORT: u8 = 0x5A;

/// SGL descriptor 1 of a submission queue entry `24-39`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Sgl {
    /// `0-7` Address, or offset into the capsule's data.
    pub address: U64,
    /// `8-11` Bytes.
    pub length: U32,
    /// `12-14` Reserved.
    pub reserved: [u8; 3],
    /// `15` Type (bits 7:4) and subtype (bits 3:0).
    pub kind: u8,
}

const _: () = assert!(size_of::<Sgl>() == 16);

/// Where a command's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPlace {
    /// In the capsule, `offset` bytes after the submission queue entry (ICDOFF is 0).
    InCapsule {
        /// Bytes from the start of the capsule's data.
        offset: u32,
        /// Bytes.
        len: u32,
    },
    /// Moved by the transport: R2T and H2CData, or C2HData.
    Transport {
        /// Bytes.
        len: u32,
    },
}

impl DataPlace {
    /// Bytes of the data.
    #[must_use]
    pub fn len(self) -> u32 {
        match self {
            DataPlace::InCapsule { len, .. } | DataPlace::Transport { len } => len,
        }
    }

    /// Whether there is no data.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

impl Sgl {
    /// Data of `len` bytes in the capsule, from its start.
    #[must_use]
    pub fn in_capsule(len: u32) -> Sgl {
        Sgl { address: U64::ZERO, length: len.into(), reserved: [0; 3], kind: SGL_IN_CAPSULE }
    }

    /// Data of `len` bytes moved by the transport; 0 is what a command without data carries.
    #[must_use]
    pub fn transport(len: u32) -> Sgl {
        Sgl { address: U64::ZERO, length: len.into(), reserved: [0; 3], kind: SGL_TRANSPORT }
    }

    /// Where the data is, in a capsule with `capsule_data` bytes behind its entry. The range is inside the capsule.
    pub fn locate(&self, capsule_data: usize) -> Result<DataPlace, NvmeStatus> {
        let len = self.length.get();
        match self.kind {
            SGL_TRANSPORT => Ok(DataPlace::Transport { len }),
            SGL_IN_CAPSULE => {
                let offset = self.address.get();
                let end = offset.checked_add(u64::from(len)).ok_or(NvmeStatus::SGL_OFFSET_INVALID.dnr())?;
                if offset > capsule_data as u64 {
                    return Err(NvmeStatus::SGL_OFFSET_INVALID.dnr());
                }
                if end > capsule_data as u64 {
                    return Err(NvmeStatus::DATA_SGL_LENGTH_INVALID.dnr());
                }
                let offset = u32::try_from(offset).map_err(|_| NvmeStatus::SGL_OFFSET_INVALID.dnr())?;
                Ok(DataPlace::InCapsule { offset, len })
            }
            _ => Err(NvmeStatus::SGL_DESCRIPTOR_TYPE_INVALID.dnr()),
        }
    }
}
