//! Commands as they lie in the ring: an NVMe submission queue entry (base 3.3.3.1), of which this transport uses the reserved
//! words for its own.
//!
//! | bytes | NVMe | here |
//! |---|---|---|
//! | 0-3 | opcode, flags, command identifier | the same; PSDT is "SGL" |
//! | 4-7 | namespace | 1 |
//! | 8-15 | reserved (CDW2, CDW3) | the ticket: generation and position; written last |
//! | 16-23 | metadata pointer | completions consumed so far |
//! | 24-39 | data pointer | an SGL data block with offset: a range of the data area |
//! | 40-63 | CDW10 to CDW15 | the same |

/// A command as eight little-endian words.
pub type CommandWords = [u64; 8];

/// Bytes of a command.
pub const COMMAND_BYTES: usize = 64;

/// The word with the ticket.
pub(crate) const TICKET: usize = 1;
/// The word with the count of completions consumed.
pub(crate) const CONSUMED: usize = 2;

/// Opcodes of the NVM command set (nvm 3.2, base 7 for Flush).
pub mod opcode {
    /// Base 7.1.
    pub const FLUSH: u8 = 0x00;
    /// Nvm 3.2.6.
    pub const WRITE: u8 = 0x01;
    /// Nvm 3.2.4.
    pub const READ: u8 = 0x02;
    /// Nvm 3.2.1.
    pub const COMPARE: u8 = 0x05;
    /// Nvm 3.2.8.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Nvm 3.2.3.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

/// PSDT: SGLs are used.
const PSDT_SGL: u64 = 0b01 << 6;
/// FUSE, in the same byte.
const FUSED_FIRST: u64 = 0b01;
const FUSED_SECOND: u64 = 0b10;
/// SGL descriptor: data block (type 0), address is an offset (subtype 1).
const SGL_DATA_BLOCK_OFFSET: u64 = 0x01;
/// The namespace of a volume.
const NSID: u64 = 1;
/// Force unit access, in CDW12.
const FUA: u32 = 1 << 30;
/// Deallocate, in CDW12 of Write Zeroes.
const DEALLOCATE: u32 = 1 << 25;
/// "Attribute - Deallocate", in CDW11 of Dataset Management.
const AD: u32 = 1 << 2;

/// Makes the words of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command(CommandWords);

impl Command {
    fn new(opcode: u8) -> Command {
        let mut words = [0; 8];
        words[0] = u64::from(opcode) | PSDT_SGL << 8 | NSID << 32;
        Command(words)
    }

    fn on_blocks(opcode: u8, first: u64, blocks: u32) -> Command {
        assert!((1..=1 << 16).contains(&blocks), "a command has 1 to 65536 blocks");
        let mut command = Command::new(opcode);
        command.0[5] = first;
        command.0[6] = u64::from(blocks - 1);
        command
    }

    /// A Read of `blocks` logical blocks from `first` on.
    #[must_use]
    pub fn read(first: u64, blocks: u32) -> Command {
        Command::on_blocks(opcode::READ, first, blocks)
    }

    /// A Write.
    #[must_use]
    pub fn write(first: u64, blocks: u32, fua: bool) -> Command {
        let mut command = Command::on_blocks(opcode::WRITE, first, blocks);
        command.0[6] |= if fua { u64::from(FUA) } else { 0 };
        command
    }

    /// A Compare.
    #[must_use]
    pub fn compare(first: u64, blocks: u32) -> Command {
        Command::on_blocks(opcode::COMPARE, first, blocks)
    }

    /// A Write Zeroes; `deallocate` allows giving the space back.
    #[must_use]
    pub fn write_zeroes(first: u64, blocks: u32, deallocate: bool, fua: bool) -> Command {
        let mut command = Command::on_blocks(opcode::WRITE_ZEROES, first, blocks);
        let flags = if deallocate { DEALLOCATE } else { 0 } | if fua { FUA } else { 0 };
        command.0[6] |= u64::from(flags);
        command
    }

    /// A Flush.
    #[must_use]
    pub fn flush() -> Command {
        Command::new(opcode::FLUSH)
    }

    /// A Dataset Management that deallocates the `ranges` (1 to 256) that lie in its data.
    #[must_use]
    pub fn deallocate(ranges: u32) -> Command {
        assert!((1..=256).contains(&ranges), "Dataset Management has 1 to 256 ranges");
        let mut command = Command::new(opcode::DATASET_MANAGEMENT);
        command.0[5] = u64::from(ranges - 1) | u64::from(AD) << 32;
        command
    }

    /// As the first of two that are one (base 3.4.2): the next command of the queue is the other.
    #[must_use]
    pub fn fused_first(mut self) -> Command {
        self.0[0] |= FUSED_FIRST << 8;
        self
    }

    /// As the second of two that are one.
    #[must_use]
    pub fn fused_second(mut self) -> Command {
        self.0[0] |= FUSED_SECOND << 8;
        self
    }

    /// With the data at `offset` of the data area.
    #[must_use]
    pub fn with_data(mut self, offset: u64, len: u32) -> Command {
        self.0[3] = offset;
        self.0[4] = u64::from(len) | SGL_DATA_BLOCK_OFFSET << 56;
        self
    }

    /// With this identifier, unique among those outstanding on the queue.
    #[must_use]
    pub fn with_cid(mut self, cid: u16) -> Command {
        self.0[0] = self.0[0] & !(0xFFFF << 16) | u64::from(cid) << 16;
        self
    }

    /// Where its data lies in the data area, and its length; nothing for commands that move none.
    #[must_use]
    pub fn data(&self) -> (u64, u32) {
        (self.0[3], self.0[4] as u32)
    }

    /// As it goes into the ring.
    #[must_use]
    pub fn words(self) -> CommandWords {
        self.0
    }

    /// Its identifier.
    #[must_use]
    pub fn cid(&self) -> u16 {
        (self.0[0] >> 16) as u16
    }

    /// What it does.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.0[0] as u8
    }
}

/// One range of a Dataset Management, as it lies in the data area (nvm figure 46).
#[must_use]
pub fn range_bytes(first: u64, blocks: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&blocks.to_le_bytes());
    bytes[8..].copy_from_slice(&first.to_le_bytes());
    bytes
}
