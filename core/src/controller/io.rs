//! I/O commands: from 64 bytes of a host to a checked request, or to the status that says what is wrong.
//!
//! What comes out of [`check_io`] lies inside its volume, is a whole number of its blocks, and its data has exactly the
//! length that the command implies (ranges may be followed by more).

use std::ops::RangeInclusive;

use crate::directory::{Directory, Namespace, VolumeEntry};
use crate::ids::VolumeId;
use crate::limits::{DEALLOCATE_BYTES_MAX, REQUEST_BYTES_MAX, WRITE_ZEROES_BYTES_MAX};
use crate::request::Command;
use crate::volume::VolumeRecord;
use crate::wire::command::{Direction, FABRICS, Fuse, PSDT_SGL, Sqe, nvm};
use crate::wire::completion::NvmeStatus;
use crate::wire::dsm::{ATTRIBUTE_DEALLOCATE, DsmRange, RANGES_MAX};
use crate::wire::fabrics::kind;
use crate::wire::sgl::{Capsule, DataPlace, SGL_IN_CAPSULE};

/// Bytes of the longest list of ranges.
const RANGES_BYTES_MAX: u32 = (RANGES_MAX * size_of::<DsmRange>()) as u32;

/// What an I/O command comes down to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoWork {
    /// One request.
    Request {
        /// What to do.
        command: Command,
        /// Bytes from the start of the volume.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// As many requests as [`deallocations`] makes of the data, which is this many ranges.
    Deallocate {
        /// 1 to 256.
        ranges: u16,
    },
    /// Hints that nothing follows from: success once the data is there.
    Hints,
}

/// A checked I/O command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoCommand {
    /// Whose blocks.
    pub volume: VolumeId,
    /// What to do.
    pub work: IoWork,
    /// Alone, or one of two: see [`fuse`].
    pub fuse: Fuse,
    /// Which way its data goes.
    pub direction: Direction,
    /// Where its data is; as long as the command implies, empty where there is none.
    pub data: DataPlace,
}

/// What a command of an association sees.
#[derive(Clone, Copy, Debug)]
pub struct IoSight<'a> {
    /// Namespaces of the subsystem.
    pub namespaces: &'a [Namespace],
    /// The volumes as they are now.
    pub directory: &'a Directory,
    /// The host has switched the volatile write cache off: each write is FUA.
    pub write_through: bool,
}

/// Checks command `sqe`, which came in `capsule`.
pub fn check_io(sqe: &Sqe, capsule: impl Into<Capsule>, sight: &IoSight<'_>) -> Result<IoCommand, NvmeStatus> {
    let (volume, work, fuse, accepted) = check_command(sqe, sight)?;
    let (direction, data) = check_data(sqe, capsule.into(), accepted)?;
    Ok(IoCommand { volume, work, fuse, direction, data })
}

/// Checks command `sqe`, whose data lies in an area of `area_bytes` that its host shares. Returns also where in it.
pub fn check_shared(sqe: &Sqe, area_bytes: u64, sight: &IoSight<'_>) -> Result<(IoCommand, u64), NvmeStatus> {
    let (volume, work, fuse, accepted) = check_command(sqe, sight)?;
    if *accepted.end() == 0 {
        let (direction, data) = (Direction::None, DataPlace::Transport { len: 0 });
        return Ok((IoCommand { volume, work, fuse, direction, data }, 0));
    }
    if sqe.sgl.kind != SGL_IN_CAPSULE {
        return Err(NvmeStatus::SGL_DESCRIPTOR_TYPE_INVALID.dnr());
    }
    let (offset, len) = (sqe.sgl.address.get(), sqe.sgl.length.get());
    if !accepted.contains(&len) {
        return Err(NvmeStatus::DATA_SGL_LENGTH_INVALID.dnr());
    }
    if offset.checked_add(u64::from(len)).is_none_or(|end| end > area_bytes) {
        return Err(NvmeStatus::SGL_OFFSET_INVALID.dnr());
    }
    let (direction, data) = (sqe.direction()?, DataPlace::Transport { len });
    Ok((IoCommand { volume, work, fuse, direction, data }, offset))
}

/// What a command comes down to, and how many bytes of data it may have.
fn check_command(sqe: &Sqe, sight: &IoSight<'_>) -> Result<(VolumeId, IoWork, Fuse, RangeInclusive<u32>), NvmeStatus> {
    if sqe.opcode == FABRICS {
        return Err(refuse_fabrics(sqe));
    }
    if sqe.psdt() != PSDT_SGL || sqe.reserved_flags() != 0 {
        return Err(NvmeStatus::INVALID_FIELD.dnr());
    }
    let fuse = check_fuse(sqe)?;
    let entry = find(sqe.nsid.get(), sight)?;
    let record = &*entry.record;
    let work = match sqe.opcode {
        nvm::READ => on_blocks(sqe, record, Command::Read, REQUEST_BYTES_MAX)?,
        nvm::COMPARE => on_blocks(sqe, record, Command::Compare, REQUEST_BYTES_MAX)?,
        nvm::WRITE => {
            if sqe.cdw12.get() >> 20 & 0xF != 0 {
                // Directives are not supported.
                return Err(NvmeStatus::INVALID_FIELD.dnr());
            }
            let fua = sqe.block_range().fua || sight.write_through;
            on_blocks(sqe, record, Command::Write { fua }, REQUEST_BYTES_MAX)?
        }
        nvm::WRITE_ZEROES => {
            let range = sqe.block_range();
            let fua = range.fua || sight.write_through;
            let command = Command::WriteZeroes { fua, deallocate: range.deallocate };
            on_blocks(sqe, record, command, WRITE_ZEROES_BYTES_MAX)?
        }
        nvm::FLUSH => IoWork::Request { command: Command::Flush, offset: 0, len: 0 },
        nvm::DATASET_MANAGEMENT if sqe.cdw11.get() & ATTRIBUTE_DEALLOCATE != 0 => {
            IoWork::Deallocate { ranges: (sqe.cdw10.get() & 0xFF) as u16 + 1 }
        }
        nvm::DATASET_MANAGEMENT => IoWork::Hints,
        _ => return Err(NvmeStatus::INVALID_OPCODE.dnr()),
    };
    let changes = match work {
        IoWork::Request { command, .. } => command.changes_data(),
        IoWork::Deallocate { .. } => true,
        IoWork::Hints => false,
    };
    if changes && sight.directory.is_write_protected(record) {
        return Err(NvmeStatus::NAMESPACE_WRITE_PROTECTED.dnr());
    }
    let wanted = data_len(sqe, &work);
    let accepted = match work {
        // Linux sends room for 256 ranges whatever their number is; what lies behind the last one counts for nothing.
        IoWork::Deallocate { .. } | IoWork::Hints => wanted..=RANGES_BYTES_MAX,
        IoWork::Request { .. } => wanted..=wanted,
    };
    Ok((record.id, work, fuse, accepted))
}

/// The volume behind a namespace, fit for I/O.
fn find<'a>(nsid: u32, sight: &IoSight<'a>) -> Result<&'a VolumeEntry, NvmeStatus> {
    let entry = sight
        .namespaces
        .iter()
        .find(|namespace| namespace.nsid == nsid)
        .and_then(|namespace| sight.directory.entry(namespace.volume))
        .ok_or(NvmeStatus::INVALID_NAMESPACE_OR_FORMAT.dnr())?;
    if entry.fault.is_some() {
        return Err(NvmeStatus::NAMESPACE_NOT_READY.dnr());
    }
    Ok(entry)
}

/// Nothing but I/O commands is for a connected I/O queue: a second Connect comes at the wrong time, properties belong to the
/// admin queue, and queues are not deleted one by one (OFCS is 0).
fn refuse_fabrics(sqe: &Sqe) -> NvmeStatus {
    match sqe.fabrics_type() {
        kind::CONNECT => NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr(),
        kind::PROPERTY_GET | kind::PROPERTY_SET => NvmeStatus::INVALID_FIELD.dnr(),
        _ => NvmeStatus::INVALID_OPCODE.dnr(),
    }
}

/// Compare may be the first of two and Write the second; nothing else is fused.
fn check_fuse(sqe: &Sqe) -> Result<Fuse, NvmeStatus> {
    match (sqe.fuse()?, sqe.opcode) {
        (Fuse::Normal, _) => Ok(Fuse::Normal),
        (Fuse::First, nvm::COMPARE) => Ok(Fuse::First),
        (Fuse::Second, nvm::WRITE) => Ok(Fuse::Second),
        _ => Err(NvmeStatus::INVALID_FIELD.dnr()),
    }
}

fn on_blocks(sqe: &Sqe, record: &VolumeRecord, command: Command, bytes_max: u32) -> Result<IoWork, NvmeStatus> {
    let range = sqe.block_range();
    let (offset, len) = byte_range(range.slba, range.blocks, record)?;
    if len > u64::from(bytes_max) {
        return Err(NvmeStatus::INVALID_FIELD.dnr());
    }
    Ok(IoWork::Request { command, offset, len: len as u32 })
}

/// Offset and length in bytes of blocks that lie inside the volume.
fn byte_range(slba: u64, blocks: u32, record: &VolumeRecord) -> Result<(u64, u64), NvmeStatus> {
    let lba_bytes = u64::from(record.lba_bytes);
    let end = slba.checked_add(u64::from(blocks)).ok_or(NvmeStatus::LBA_OUT_OF_RANGE.dnr())?;
    if end > record.size / lba_bytes {
        return Err(NvmeStatus::LBA_OUT_OF_RANGE.dnr());
    }
    Ok((slba * lba_bytes, u64::from(blocks) * lba_bytes))
}

/// Bytes of data that a command implies.
fn data_len(sqe: &Sqe, work: &IoWork) -> u32 {
    match *work {
        IoWork::Request { command: Command::WriteZeroes { .. } | Command::Flush, .. } => 0,
        IoWork::Request { len, .. } => len,
        IoWork::Deallocate { .. } | IoWork::Hints => ((sqe.cdw10.get() & 0xFF) + 1) * size_of::<DsmRange>() as u32,
    }
}

/// Where the data is, and that it is as long as it may be. SGLS does not promise to take data that is longer than wanted.
fn check_data(
    sqe: &Sqe,
    capsule: Capsule,
    accepted: RangeInclusive<u32>,
) -> Result<(Direction, DataPlace), NvmeStatus> {
    if *accepted.end() == 0 {
        return Ok((Direction::None, DataPlace::Transport { len: 0 }));
    }
    let direction = sqe.direction()?;
    let data = sqe.sgl.locate(capsule)?;
    if !accepted.contains(&data.len()) {
        return Err(NvmeStatus::DATA_SGL_LENGTH_INVALID.dnr());
    }
    match (direction, data) {
        // There is no room in a response capsule.
        (Direction::ControllerToHost, DataPlace::InCapsule { .. }) => {
            Err(NvmeStatus::SGL_DESCRIPTOR_TYPE_INVALID.dnr())
        }
        _ => Ok((direction, data)),
    }
}

/// Makes one of Compare and Write, fused: the same single block of the same namespace (ACWU is 0). The data of the result is
/// that of the compare followed by that of the write; each comes with its own command.
pub fn fuse(first: &IoCommand, second: &IoCommand, record: &VolumeRecord) -> Result<IoWork, NvmeStatus> {
    assert!(first.fuse == Fuse::First && second.fuse == Fuse::Second, "callers pair by the fuse bits");
    let (
        IoWork::Request { command: Command::Compare, offset, len },
        IoWork::Request { command: Command::Write { fua }, offset: write_offset, len: write_len },
    ) = (first.work, second.work)
    else {
        return Err(NvmeStatus::INVALID_FIELD.dnr());
    };
    if first.volume != second.volume || (offset, len) != (write_offset, write_len) {
        return Err(NvmeStatus::INVALID_FIELD.dnr());
    }
    if len != record.lba_bytes {
        return Err(NvmeStatus::ATOMIC_WRITE_UNIT_EXCEEDED.dnr());
    }
    Ok(IoWork::Request { command: Command::CompareAndWrite { fua }, offset, len })
}

/// The requests that the first `count` ranges in `data` come down to, as offset and length in bytes. All of them are checked
/// before the first comes out; empty ones are passed over.
pub fn deallocations<'a>(
    data: &'a [u8],
    count: u16,
    record: &'a VolumeRecord,
) -> Result<impl Iterator<Item = (u64, u32)> + 'a, NvmeStatus> {
    let data = data.get(..usize::from(count) * size_of::<DsmRange>());
    let ranges = data.and_then(DsmRange::read).ok_or(NvmeStatus::DATA_SGL_LENGTH_INVALID.dnr())?;
    for range in ranges {
        byte_range(range.slba.get(), range.blocks.get(), record)?;
    }
    Ok(ranges.iter().flat_map(|range| {
        let (offset, len) = byte_range(range.slba.get(), range.blocks.get(), record).expect("checked above");
        let step = u64::from(DEALLOCATE_BYTES_MAX);
        (offset..offset + len).step_by(step as usize).map(move |at| (at, step.min(offset + len - at) as u32))
    }))
}
