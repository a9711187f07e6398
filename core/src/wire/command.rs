//! The submission queue entry (base 3.3.3.1): 64 bytes, read by the target and built by the host.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::completion::NvmeStatus;
use super::sgl::Sgl;

/// Opcodes of the admin command set (base 5, figure 138).
pub mod admin {
    /// Base 5.16.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Base 5.17.
    pub const IDENTIFY: u8 = 0x06;
    /// Base 5.1.
    pub const ABORT: u8 = 0x08;
    /// Base 5.27.
    pub const SET_FEATURES: u8 = 0x09;
    /// Base 5.15.
    pub const GET_FEATURES: u8 = 0x0A;
    /// Base 5.2.
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0C;
    /// Base 5.18.
    pub const KEEP_ALIVE: u8 = 0x18;
}

/// Opcodes of the NVM command set (nvm 3.2, base 7 for Flush).
pub use ringway_shm_ring::command::opcode as nvm;

/// The opcode of all fabrics commands, on every queue (base 6).
pub const FABRICS: u8 = 0x7F;

/// PSDT: SGLs are used, metadata (of which there is none) in one buffer. The only value on this transport.
pub const PSDT_SGL: u8 = 0b01;

/// Whether and how a command is one of two (base 3.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fuse {
    /// It stands alone.
    Normal,
    /// First of two.
    First,
    /// Second of two.
    Second,
}

/// Which way the data of a command goes (the opcode's lowest two bits, base 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// There is none.
    None,
    /// From the host.
    HostToController,
    /// To the host.
    ControllerToHost,
}

/// A submission queue entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Sqe {
    /// `0` See [`admin`], [`nvm`] and [`FABRICS`].
    pub opcode: u8,
    /// `1` FUSE in bits 1:0, PSDT in bits 7:6.
    pub flags: u8,
    /// `2-3` Command identifier, unique among those outstanding on the queue.
    pub cid: U16,
    /// `4-7` Namespace; byte 4 is the type of a fabrics command.
    pub nsid: U32,
    /// `8-11`
    pub cdw2: U32,
    /// `12-15`
    pub cdw3: U32,
    /// `16-23` Metadata pointer.
    pub metadata: U64,
    /// `24-39` Data pointer.
    pub sgl: Sgl,
    /// `40-43`
    pub cdw10: U32,
    /// `44-47`
    pub cdw11: U32,
    /// `48-51`
    pub cdw12: U32,
    /// `52-55`
    pub cdw13: U32,
    /// `56-59`
    pub cdw14: U32,
    /// `60-63`
    pub cdw15: U32,
}

/// Bytes of a submission queue entry.
pub const SQE_BYTES: usize = 64;
const _: () = assert!(size_of::<Sqe>() == SQE_BYTES);

/// The fields that Read, Write, Compare and Write Zeroes share (nvm 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    /// Starting LBA.
    pub slba: u64,
    /// Logical blocks, 1 to 65,536.
    pub blocks: u32,
    /// Force unit access.
    pub fua: bool,
    /// Limited retry.
    pub limited_retry: bool,
    /// Protection information (bits 29:26); there is none.
    pub protection: u8,
    /// Bit 25: deallocate (Write Zeroes only).
    pub deallocate: bool,
    /// Bit 24: storage tag check.
    pub storage_tag_check: bool,
}

impl Sqe {
    /// The entry at the start of `bytes`; `None` if they are too few.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<&Sqe> {
        Sqe::ref_from_prefix(bytes).ok().map(|(sqe, _)| sqe)
    }

    /// Fused or not.
    pub fn fuse(&self) -> Result<Fuse, NvmeStatus> {
        match self.flags & 0b11 {
            0 => Ok(Fuse::Normal),
            1 => Ok(Fuse::First),
            2 => Ok(Fuse::Second),
            _ => Err(NvmeStatus::INVALID_FIELD.dnr()),
        }
    }

    /// PRP or SGL for data transfer (bits 7:6 of the flags).
    #[must_use]
    pub fn psdt(&self) -> u8 {
        self.flags >> 6
    }

    /// Bits 5:2 of the flags, which nobody may set.
    #[must_use]
    pub fn reserved_flags(&self) -> u8 {
        self.flags >> 2 & 0xF
    }

    /// The type of a fabrics command `4`.
    #[must_use]
    pub fn fabrics_type(&self) -> u8 {
        self.nsid.get() as u8
    }

    /// Which way its data goes; `Err` for "both", which no command here does.
    pub fn direction(&self) -> Result<Direction, NvmeStatus> {
        let code = if self.opcode == FABRICS { self.fabrics_type() } else { self.opcode };
        match code & 0b11 {
            0 => Ok(Direction::None),
            1 => Ok(Direction::HostToController),
            2 => Ok(Direction::ControllerToHost),
            _ => Err(NvmeStatus::INVALID_OPCODE.dnr()),
        }
    }

    /// Dwords 10 to 12 as a range of logical blocks.
    #[must_use]
    pub fn block_range(&self) -> BlockRange {
        let control = self.cdw12.get();
        BlockRange {
            slba: u64::from(self.cdw11.get()) << 32 | u64::from(self.cdw10.get()),
            blocks: (control & 0xFFFF) + 1,
            fua: control & 1 << 30 != 0,
            limited_retry: control & 1 << 31 != 0,
            protection: (control >> 26 & 0xF) as u8,
            deallocate: control & 1 << 25 != 0,
            storage_tag_check: control & 1 << 24 != 0,
        }
    }

    /// A command without data; [`Sqe::with_data`] adds some.
    #[must_use]
    pub fn new(opcode: u8, nsid: u32) -> Sqe {
        Sqe { opcode, flags: PSDT_SGL << 6, nsid: nsid.into(), sgl: Sgl::transport(0), ..Sqe::default() }
    }

    /// The same command under this identifier.
    #[must_use]
    pub fn with_cid(mut self, cid: u16) -> Sqe {
        self.cid = cid.into();
        self
    }

    /// The same command with this data.
    #[must_use]
    pub fn with_data(mut self, sgl: Sgl) -> Sqe {
        self.sgl = sgl;
        self
    }

    /// The same command, fused.
    #[must_use]
    pub fn with_fuse(mut self, fuse: Fuse) -> Sqe {
        let bits = match fuse {
            Fuse::Normal => 0,
            Fuse::First => 1,
            Fuse::Second => 2,
        };
        self.flags = self.flags & !0b11 | bits;
        self
    }

    /// One of Read, Write, Compare and Write Zeroes.
    ///
    /// # Panics
    /// If there are not 1 to 65,536 blocks.
    #[must_use]
    pub fn on_blocks(opcode: u8, nsid: u32, slba: u64, blocks: u32) -> Sqe {
        assert!((1..=1 << 16).contains(&blocks), "{blocks} blocks do not fit one command");
        let mut sqe = Sqe::new(opcode, nsid);
        sqe.cdw10 = (slba as u32).into();
        sqe.cdw11 = ((slba >> 32) as u32).into();
        sqe.cdw12 = (blocks - 1).into();
        sqe
    }

    /// The same command with force unit access.
    #[must_use]
    pub fn with_fua(mut self) -> Sqe {
        self.cdw12 = (self.cdw12.get() | 1 << 30).into();
        self
    }

    /// The same Write Zeroes, allowed to give space back (DEAC).
    #[must_use]
    pub fn with_deallocate(mut self) -> Sqe {
        self.cdw12 = (self.cdw12.get() | 1 << 25).into();
        self
    }

    /// A flush of one namespace.
    #[must_use]
    pub fn flush(nsid: u32) -> Sqe {
        Sqe::new(nvm::FLUSH, nsid)
    }

    /// A Dataset Management that deallocates; the data is `ranges` ranges.
    ///
    /// # Panics
    /// If there are not 1 to 256 ranges.
    #[must_use]
    pub fn deallocate(nsid: u32, ranges: usize) -> Sqe {
        assert!((1..=256).contains(&ranges), "{ranges} ranges do not fit one command");
        let mut sqe = Sqe::new(nvm::DATASET_MANAGEMENT, nsid);
        sqe.cdw10 = (ranges as u32 - 1).into();
        sqe.cdw11 = U32::new(super::dsm::ATTRIBUTE_DEALLOCATE);
        sqe
    }

    /// An Identify of `cns`; its data are 4096 bytes.
    #[must_use]
    pub fn identify(cns: u8, nsid: u32) -> Sqe {
        let mut sqe = Sqe::new(admin::IDENTIFY, nsid);
        sqe.cdw10 = u32::from(cns).into();
        sqe
    }

    /// A Get Log Page of `len` bytes at `offset`. `keep` retains the asynchronous event.
    ///
    /// # Panics
    /// If offset or length are not whole dwords, or the length is zero.
    #[must_use]
    pub fn get_log_page(page: u8, nsid: u32, offset: u64, len: u32, keep: bool) -> Sqe {
        assert!(len > 0 && len.is_multiple_of(4) && offset.is_multiple_of(4), "log pages are read in dwords");
        let dwords = len / 4 - 1;
        let mut sqe = Sqe::new(admin::GET_LOG_PAGE, nsid);
        sqe.cdw10 = (u32::from(page) | u32::from(keep) << 15 | dwords << 16).into();
        sqe.cdw11 = (dwords >> 16).into();
        sqe.cdw12 = (offset as u32).into();
        sqe.cdw13 = ((offset >> 32) as u32).into();
        sqe
    }

    /// A Get Features.
    #[must_use]
    pub fn get_features(feature: u8, value: u32) -> Sqe {
        let mut sqe = Sqe::new(admin::GET_FEATURES, 0);
        sqe.cdw10 = u32::from(feature).into();
        sqe.cdw11 = value.into();
        sqe
    }

    /// A Set Features.
    #[must_use]
    pub fn set_features(feature: u8, value: u32) -> Sqe {
        let mut sqe = Sqe::get_features(feature, value);
        sqe.opcode = admin::SET_FEATURES;
        sqe
    }

    /// An Abort of command `cid` on queue `queue`.
    #[must_use]
    pub fn abort(queue: u16, cid: u16) -> Sqe {
        let mut sqe = Sqe::new(admin::ABORT, 0);
        sqe.cdw10 = (u32::from(queue) | u32::from(cid) << 16).into();
        sqe
    }
}

/// The fields of an Identify command (base 5.17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentifyFields {
    /// Controller or Namespace Structure.
    pub cns: u8,
    /// Controller identifier.
    pub cntid: u16,
    /// Command set identifier.
    pub csi: u8,
}

/// The fields of a Get Log Page command (base 5.16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPageFields {
    /// Log page identifier.
    pub page: u8,
    /// Log specific parameter.
    pub specific: u8,
    /// Retain asynchronous event.
    pub keep_event: bool,
    /// Bytes to return.
    pub len: u64,
    /// Byte offset, or an index if `by_index`.
    pub offset: u64,
    /// Offset type: index into a list.
    pub by_index: bool,
}

impl Sqe {
    /// Dwords 10 and 11 as those of Identify.
    #[must_use]
    pub fn identify_fields(&self) -> IdentifyFields {
        IdentifyFields {
            cns: self.cdw10.get() as u8,
            cntid: (self.cdw10.get() >> 16) as u16,
            csi: (self.cdw11.get() >> 24) as u8,
        }
    }

    /// Dwords 10 to 14 as those of Get Log Page.
    #[must_use]
    pub fn log_page_fields(&self) -> LogPageFields {
        let (cdw10, cdw11) = (self.cdw10.get(), self.cdw11.get());
        let dwords = u64::from(cdw10 >> 16 | (cdw11 & 0xFFFF) << 16) + 1;
        LogPageFields {
            page: cdw10 as u8,
            specific: (cdw10 >> 8 & 0x7F) as u8,
            keep_event: cdw10 & 1 << 15 != 0,
            len: dwords * 4,
            offset: u64::from(self.cdw13.get()) << 32 | u64::from(self.cdw12.get()),
            by_index: self.cdw14.get() & 1 << 23 != 0,
        }
    }
}
