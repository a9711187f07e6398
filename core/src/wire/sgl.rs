//! The one scatter-gather descriptor that a command carries (base 4.1.2, tcp 3.4, rdma 3.3).
//!
//! Both transports know data in the capsule at an offset. NVMe/TCP knows data that the transport moves in PDUs of its own; NVMe/RDMA
//! data in memory of the host, under a key, which the controller reads and writes there.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::completion::NvmeStatus;
use super::log_page::TransportType;

/// SGL data block descriptor, subtype offset: the data is in the capsule.
pub const SGL_IN_CAPSULE: u8 = 0x01;
/// Transport SGL data block descriptor, subtype transport-specific: the data is moved by PDUs.
pub const SGL_TRANSPORT: u8 = 0x5A;
/// Keyed SGL data block descriptor, subtype address: the data is in the host's memory (base 4.1.2).
pub const SGL_KEYED: u8 = 0x40;
/// The same, and the response is to invalidate the key (rdma figure 10: subtype Fh).
pub const SGL_KEYED_INVALIDATE: u8 = 0x4F;
/// Bytes that the 24 bits of a keyed descriptor's length can say.
pub const KEYED_BYTES_MAX: u32 = (1 << 24) - 1;

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
    /// In the host's memory.
    Keyed {
        /// Bytes, below 16 MiB.
        len: u32,
        /// Where.
        at: KeyedMemory,
    },
}

/// Memory of a host, as it describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyedMemory {
    /// Address, in whatever space the key means.
    pub address: u64,
    /// Remote key (R_KEY).
    pub key: u32,
    /// The response is to invalidate the key.
    pub invalidate: bool,
}

/// What a command came in, as far as its descriptor depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capsule {
    /// Bytes of data behind the entry.
    pub data: usize,
    /// Whose descriptors are known.
    pub transport: TransportType,
}

impl Capsule {
    /// A capsule of NVMe/RDMA.
    #[must_use]
    pub fn rdma(data: usize) -> Capsule {
        Capsule { data, transport: TransportType::Rdma }
    }
}

impl From<usize> for Capsule {
    /// A capsule of NVMe/TCP.
    fn from(data: usize) -> Capsule {
        Capsule { data, transport: TransportType::Tcp }
    }
}

impl DataPlace {
    /// Bytes of the data.
    #[must_use]
    pub fn len(self) -> u32 {
        match self {
            DataPlace::InCapsule { len, .. } | DataPlace::Transport { len } | DataPlace::Keyed { len, .. } => len,
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

    /// Data of `len` bytes in this process's memory `at`, for a controller to read or write.
    ///
    /// # Panics
    /// If it has more than [`KEYED_BYTES_MAX`] bytes.
    #[must_use]
    pub fn keyed(len: u32, at: KeyedMemory) -> Sgl {
        assert!(len <= KEYED_BYTES_MAX, "{len} bytes do not fit a keyed descriptor");
        // Three bytes of length, then four of the key.
        let [high, key @ ..] = at.key.to_le_bytes();
        Sgl {
            address: at.address.into(),
            length: (len | u32::from(high) << 24).into(),
            reserved: key,
            kind: if at.invalidate { SGL_KEYED_INVALIDATE } else { SGL_KEYED },
        }
    }

    fn keyed_parts(&self) -> DataPlace {
        let [a, b, c, key] = self.length.get().to_le_bytes();
        let [d, e, f] = self.reserved;
        let invalidate = self.kind == SGL_KEYED_INVALIDATE;
        let at = KeyedMemory { address: self.address.get(), key: u32::from_le_bytes([key, d, e, f]), invalidate };
        DataPlace::Keyed { len: u32::from_le_bytes([a, b, c, 0]), at }
    }

    /// Where the data of a command is that came in `capsule` (a number of bytes is that of a TCP capsule's data). A range in the
    /// capsule is inside it.
    pub fn locate(&self, capsule: impl Into<Capsule>) -> Result<DataPlace, NvmeStatus> {
        let Capsule { data: capsule_data, transport } = capsule.into();
        let len = self.length.get();
        match self.kind {
            SGL_TRANSPORT if transport == TransportType::Tcp => Ok(DataPlace::Transport { len }),
            SGL_KEYED | SGL_KEYED_INVALIDATE if transport == TransportType::Rdma => Ok(self.keyed_parts()),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_keyed_descriptor_lies_in_its_bytes_as_the_specification_says() {
        let at = KeyedMemory { address: 0x0102_0304_0506_0708, key: 0xA1B2_C3D4, invalidate: true };
        let bytes = Sgl::keyed(0x01_2345, at);
        let expected = [8, 7, 6, 5, 4, 3, 2, 1, 0x45, 0x23, 0x01, 0xD4, 0xC3, 0xB2, 0xA1, 0x4F];
        assert_eq!(bytes.as_bytes(), expected);
    }

    #[test]
    fn a_transport_knows_its_own_descriptors_alone() {
        let unknown = Err(NvmeStatus::SGL_DESCRIPTOR_TYPE_INVALID.dnr());
        let keyed = Sgl::keyed(512, KeyedMemory { address: 1, key: 2, invalidate: false });
        assert_eq!(keyed.locate(0), unknown);
        assert_eq!(Sgl::transport(512).locate(Capsule::rdma(0)), unknown);
        assert!(keyed.locate(Capsule::rdma(0)).is_ok() && Sgl::transport(512).locate(0).is_ok());
        assert!(Sgl::in_capsule(8).locate(Capsule::rdma(8)).is_ok());
        for kind in 0..=u8::MAX {
            let known = [SGL_KEYED, SGL_KEYED_INVALIDATE, SGL_IN_CAPSULE].contains(&kind);
            assert_eq!(Sgl { kind, ..Sgl::default() }.locate(Capsule::rdma(0)).is_ok(), known, "{kind:#x}");
        }
    }

    proptest! {
        #[test]
        fn what_a_host_describes_is_what_the_target_reads(address: u64, key: u32, len in 0..=KEYED_BYTES_MAX, invalidate: bool) {
            let at = KeyedMemory { address, key, invalidate };
            prop_assert_eq!(Sgl::keyed(len, at).locate(Capsule::rdma(0)), Ok(DataPlace::Keyed { len, at }));
        }
    }
}
