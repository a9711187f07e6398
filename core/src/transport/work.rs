//! What a command comes down to, whatever carries it: checked against its queue.

use crate::controller::io::{IoCommand, IoWork, deallocations};
use crate::directory::Directory;
use crate::ids::VolumeId;
use crate::limits::REQUEST_BYTES_MAX;
use crate::request::Command;
use crate::transport::session::Queue;
use crate::wire::command::{Direction, Fuse, Sqe};
use crate::wire::completion::NvmeStatus;
use crate::wire::sgl::{Capsule, DataPlace};

/// What a command is.
#[derive(Debug)]
pub(super) enum Work {
    /// A read, write or the like.
    Io { volume: VolumeId, command: Command, offset: u64, len: u32 },
    /// Dataset Management: what its ranges come down to, last first, is deallocated one after the other.
    Ranges { volume: VolumeId, ranges: u16, left: Vec<(u64, u32)> },
    /// Nothing to do once the data is here.
    Hints,
    /// Half of a fused pair; the halves know each other's slots once both are here.
    Fused { io: IoCommand, partner: Option<usize> },
    /// Admin and fabrics commands.
    Admin(Box<Sqe>),
}

/// Whose bytes are to be deallocated next: from which on, and how many.
pub(super) type NextRange = (VolumeId, (u64, u32));

/// A command that its queue takes.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) work: Work,
    /// Which way its data goes.
    pub(super) direction: Direction,
    /// Where its data is.
    pub(super) place: DataPlace,
    /// Bytes of its data; at most [`REQUEST_BYTES_MAX`].
    pub(super) len: usize,
}

/// Checks a command against its queue: what it is, and what data it has.
pub(super) fn check(queue: &Queue, sqe: &Sqe, capsule: Capsule, directory: &Directory) -> Result<Checked, NvmeStatus> {
    let (work, direction, place) = match queue {
        Queue::Io(io) => {
            let io = io.queue.check(sqe, capsule, directory)?;
            let work = match (io.fuse, io.work) {
                (Fuse::Normal, IoWork::Request { command, offset, len }) => {
                    Work::Io { volume: io.volume, command, offset, len }
                }
                (Fuse::Normal, IoWork::Deallocate { ranges }) => {
                    Work::Ranges { volume: io.volume, ranges, left: Vec::new() }
                }
                (Fuse::Normal, IoWork::Hints) => Work::Hints,
                _ => Work::Fused { io, partner: None },
            };
            (work, io.direction, io.data)
        }
        Queue::Admin { admin, .. } => match admin.data_in(sqe, capsule) {
            Some(place) => (Work::Admin(Box::new(*sqe)), Direction::HostToController, place?),
            None => match admin.reply_len(sqe, capsule)? {
                0 => (Work::Admin(Box::new(*sqe)), Direction::None, DataPlace::Transport { len: 0 }),
                _ => (Work::Admin(Box::new(*sqe)), Direction::ControllerToHost, sqe.sgl.locate(capsule)?),
            },
        },
        Queue::Unconnected | Queue::Fencing { .. } | Queue::Attaching { .. } => {
            (Work::Admin(Box::new(*sqe)), sqe.direction()?, sqe.sgl.locate(capsule)?)
        }
    };
    if place.len() > REQUEST_BYTES_MAX {
        return Err(NvmeStatus::DATA_SGL_LENGTH_INVALID.dnr());
    }
    Ok(Checked { work, direction, place, len: place.len() as usize })
}

impl Work {
    /// Dataset Management (nvm 3.2.3): the volume and the range that is to be deallocated next, `None` when nothing is left. It begins
    /// with its ranges, `data`; all of them are checked then.
    pub(super) fn next_range(
        &mut self,
        data: Option<&[u8]>,
        directory: &Directory,
    ) -> Result<Option<NextRange>, NvmeStatus> {
        let Work::Ranges { volume, ranges, left } = self else { unreachable!("asked of Dataset Management alone") };
        if let Some(data) = data {
            let record = directory.volume(*volume).ok_or(NvmeStatus::INVALID_NAMESPACE_OR_FORMAT.dnr())?;
            left.extend(deallocations(data, *ranges, record)?);
            left.reverse();
        }
        Ok(left.pop().map(|range| (*volume, range)))
    }

    /// Command `cid`, which is this, failed on `queue`: for the controller's error log.
    pub(super) fn note_failure(&self, queue: &Queue, cid: u16, status: NvmeStatus, directory: &Directory) {
        let Queue::Io(queue) = queue else { return };
        let (volume, offset) = match self {
            &Work::Io { volume, offset, .. } => (volume, offset),
            &Work::Ranges { volume, .. } => (volume, 0),
            Work::Fused { io, .. } => (io.volume, 0),
            Work::Hints | Work::Admin(_) => return,
        };
        let lba_bytes = directory.volume(volume).map_or(512, |record| u64::from(record.lba_bytes));
        queue.association.note_failure(queue.queue.queue_id(), cid, status, volume, offset / lba_bytes);
    }
}
