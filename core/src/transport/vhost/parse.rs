//! A chain as a virtio block request (virtio 1.2, section 5.2.6): checked, and cut into requests of ours.

use std::sync::Arc;

use ringway_reactor::shared::{SharedBuf, TableRefs};
use ringway_shm_ring::virtqueue::{Chain, GuestMemory, Place};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::blk::{self, BlkStatus, ID_BYTES, RANGES_MAX, RangeHeader, RequestHeader, SECTOR, UNMAP, kind};
use super::mail::DeviceState;
use crate::limits::{DEALLOCATE_BYTES_MAX, WRITE_ZEROES_BYTES_MAX};
use crate::request::Command;
use crate::volume::VolumeRecord;

const HEADER: u64 = size_of::<RequestHeader>() as u64;
const RANGE: u64 = size_of::<RangeHeader>() as u64;

/// One request to the volume.
pub(super) struct Piece {
    pub(super) command: Command,
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) data: Option<SharedBuf>,
}

/// What a chain asks for, or what of it is left to be sent.
pub(super) enum Work {
    Data {
        command: Command,
        offset: u64,
        data: SharedBuf,
    },
    /// Commands without data, their offsets and lengths; the last one first.
    Ranges(Vec<(Command, u64, u32)>),
    Flush,
    Nothing,
}

impl Work {
    /// All of it, where it is one request.
    pub(super) fn take_whole(&mut self) -> Option<Piece> {
        let small = match self {
            Work::Data { data, .. } => data.len() <= crate::limits::REQUEST_BYTES_MAX as usize,
            Work::Ranges(ranges) => ranges.len() == 1,
            Work::Flush => true,
            Work::Nothing => false,
        };
        if small { self.take_piece(crate::limits::REQUEST_BYTES_MAX) } else { None }
    }

    /// The next request, of at most `bytes` where data moves.
    pub(super) fn take_piece(&mut self, bytes: u32) -> Option<Piece> {
        match std::mem::replace(self, Work::Nothing) {
            Work::Data { command, offset, mut data } => {
                if data.len() > bytes as usize {
                    let rest = data.split_off(bytes as usize);
                    *self = Work::Data { command, offset: offset + u64::from(bytes), data: rest };
                }
                Some(Piece { command, offset, len: data.len() as u32, data: Some(data) })
            }
            Work::Ranges(mut ranges) => {
                let (command, offset, len) = ranges.pop()?;
                if !ranges.is_empty() {
                    *self = Work::Ranges(ranges);
                }
                Some(Piece { command, offset, len, data: None })
            }
            Work::Flush => Some(Piece { command: Command::Flush, offset: 0, len: 0, data: None }),
            Work::Nothing => None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Work::Nothing)
    }
}

/// Where the last byte of the writable part is, which says how the request ended; and its guest address.
pub(super) fn status_place(chain: &Chain, memory: &GuestMemory) -> Option<(Place, u64)> {
    let last = chain.writable().iter().rev().find(|range| range.len > 0)?;
    let addr = last.addr.checked_add(u64::from(last.len) - 1)?;
    Some((memory.locate(addr, 1).ok()?, addr))
}

/// The lines where its header is, and its status will be, will be wanted.
pub(super) fn prefetch(chain: &Chain, memory: &GuestMemory) {
    let place = |addr| memory.locate(addr, 1).ok().map(|place| (memory.memory(place), place.offset as usize));
    // The header is only read; but drivers have the status next to it, and who writes there wants the line alone.
    for range in chain.readable().first().into_iter().chain(chain.writable().last()) {
        if let Some((mapping, offset)) = place(range.addr) {
            mapping.prefetch_for_write(offset);
        }
    }
}

/// Guest addresses that the request may write to, its status among them.
pub(super) fn written_ranges(chain: &Chain) -> Vec<(u64, u64)> {
    chain.writable().iter().map(|range| (range.addr, u64::from(range.len))).collect()
}

/// What a chain asks for. `Err` is the end of a request that needs no volume, well or not.
pub(super) fn work(
    chain: &Chain,
    memory: (&GuestMemory, &mut TableRefs),
    device: &DeviceState,
    volume: Option<&Arc<VolumeRecord>>,
) -> Result<Work, BlkStatus> {
    let (memory, refs) = memory;
    let record = volume.ok_or(BlkStatus::IoError)?;
    if chain.readable_bytes() < HEADER {
        return Err(BlkStatus::IoError);
    }
    let mut header = [0; HEADER as usize];
    chain.read(memory, 0, &mut header).map_err(|_| BlkStatus::IoError)?;
    let header = RequestHeader::read_from_bytes(&header).expect("as long as a header");
    let (kind, sector) = (header.kind.get(), header.sector.get());
    // Without the status byte, which is there.
    let (out, back) = (chain.readable_bytes() - HEADER, chain.writable_bytes() - 1);
    let through = !device.is_write_back();
    if device.read_only && matches!(kind, kind::WRITE | kind::DISCARD | kind::WRITE_ZEROES) {
        return Err(BlkStatus::IoError);
    }
    match kind {
        kind::READ => {
            let offset = check_data(record, sector, back)?;
            let ranges = chain.writable_from(0, back).map(|range| (range.addr, range.len));
            let data = memory.data(refs, ranges).map_err(|_| BlkStatus::IoError)?;
            Ok(Work::Data { command: Command::Read, offset, data })
        }
        kind::WRITE => {
            let offset = check_data(record, sector, out)?;
            let ranges = chain.readable_from(HEADER, out).map(|range| (range.addr, range.len));
            let data = memory.data(refs, ranges).map_err(|_| BlkStatus::IoError)?;
            Ok(Work::Data { command: Command::Write { fua: through }, offset, data })
        }
        kind::FLUSH => Ok(Work::Flush),
        kind::GET_ID => Err(name(chain, memory, record, back)),
        kind::DISCARD => ranges(chain, memory, record, out, |flags| match flags {
            0 => Ok((Command::Deallocate, DEALLOCATE_BYTES_MAX)),
            _ => Err(BlkStatus::Unsupported),
        }),
        kind::WRITE_ZEROES => ranges(chain, memory, record, out, |flags| match flags {
            0 => Ok((Command::WriteZeroes { fua: through, deallocate: false }, WRITE_ZEROES_BYTES_MAX)),
            UNMAP => Ok((Command::WriteZeroes { fua: through, deallocate: true }, WRITE_ZEROES_BYTES_MAX)),
            _ => Err(BlkStatus::Unsupported),
        }),
        _ => Err(BlkStatus::Unsupported),
    }
}

/// The offset in bytes of data that lies inside the volume.
fn check_data(record: &VolumeRecord, sector: u64, len: u64) -> Result<u64, BlkStatus> {
    if len == 0 {
        return Err(BlkStatus::Ok);
    }
    if len > blk::REQUEST_BYTES_MAX {
        return Err(BlkStatus::IoError);
    }
    check_range(record, sector, len)
}

fn check_range(record: &VolumeRecord, sector: u64, len: u64) -> Result<u64, BlkStatus> {
    let offset = sector.checked_mul(SECTOR).ok_or(BlkStatus::IoError)?;
    let end = offset.checked_add(len).ok_or(BlkStatus::IoError)?;
    let lba = u64::from(record.lba_bytes);
    if end > record.size || !offset.is_multiple_of(lba) || !len.is_multiple_of(lba) {
        return Err(BlkStatus::IoError);
    }
    Ok(offset)
}

/// Answers the question for the device's name: as much of it as there is room for.
fn name(chain: &Chain, memory: &GuestMemory, record: &VolumeRecord, room: u64) -> BlkStatus {
    let id = blk::serial(record);
    let mut rest = &id[..room.min(ID_BYTES as u64) as usize];
    for range in chain.writable_from(0, rest.len() as u64) {
        let (here, more) = rest.split_at(range.len as usize);
        if memory.write(range.addr, here).is_err() {
            return BlkStatus::IoError;
        }
        rest = more;
    }
    BlkStatus::Ok
}

/// The ranges of a discard or write zeroes, all of them checked before the first is sent.
fn ranges(
    chain: &Chain,
    memory: &GuestMemory,
    record: &VolumeRecord,
    len: u64,
    command_of: impl Fn(u32) -> Result<(Command, u32), BlkStatus>,
) -> Result<Work, BlkStatus> {
    if len == 0 || !len.is_multiple_of(RANGE) || len > RANGE * RANGES_MAX as u64 {
        return Err(BlkStatus::IoError);
    }
    let mut list = [RangeHeader::new_zeroed(); RANGES_MAX];
    let list = &mut list[..(len / RANGE) as usize];
    chain.read(memory, HEADER, list.as_mut_bytes()).map_err(|_| BlkStatus::IoError)?;
    let mut ranges = Vec::with_capacity(list.len());
    for range in list.iter().rev() {
        let (command, bytes_max) = command_of(range.flags.get())?;
        let bytes = u64::from(range.sectors.get()) * SECTOR;
        if bytes > u64::from(bytes_max) {
            return Err(BlkStatus::IoError);
        }
        let offset = check_range(record, range.sector.get(), bytes)?;
        if bytes > 0 {
            ranges.push((command, offset, bytes as u32));
        }
    }
    if ranges.is_empty() { Err(BlkStatus::Ok) } else { Ok(Work::Ranges(ranges)) }
}
