//! Over shared memory, by the client of `ringway-shm-ring`. Buffers that lie in the data area ([`Area`]) are read and written by the
//! target's device where they are; other memory is copied.

use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ringway_core::host::HostConfig;
use ringway_reactor::event::EventFd;
use ringway_reactor::io::Wake;
use ringway_shm_ring::client::{
    Buffer, Client, Command, Completion, ConnectError, ConnectOptions, Host, Queue, RawBuffer, Reject, Status,
};
use ringway_shm_ring::message::Reason;
use slab::Slab;

use crate::memory::CallerMemory;
use crate::options::Options;
use crate::refusal::{Refusal, errno};
use crate::session::{Carrier, Piece, PieceEnded, Volume, What};

const PAGE: u64 = 4096;
/// Set in the tags of pieces whose data is copied; their place follows. Else the tag is the request.
const COPIED: u64 = 1 << 63;

/// The memory that is shared with the target: buffers out of it need no copy on their way.
#[derive(Clone, Debug)]
pub struct Area {
    client: Arc<Client>,
}

impl Area {
    /// `bytes` of it, zeroed or as their last owner left them, from a multiple of 4096 on; `None` where there is no room.
    #[must_use]
    pub fn alloc(&self, bytes: usize) -> Option<RawBuffer> {
        Some(self.client.alloc(bytes)?.into_raw())
    }

    /// Gives them back.
    ///
    /// # Safety
    /// `buffer` came from [`Area::alloc`] of the same session, was not given back before, and no request uses it.
    pub unsafe fn free(&self, buffer: RawBuffer) {
        // SAFETY: by the caller's promise.
        drop(unsafe { Buffer::from_raw(&self.client, buffer) });
    }
}

/// Ends the sleep of a session's thread.
struct Bell(EventFd);

impl Wake for Bell {
    fn wake(&self) {
        // The counter of an eventfd does not fill up by ones.
        let _ = self.0.signal();
    }
}

/// An attached volume with one queue.
pub(crate) struct Shm {
    client: Arc<Client>,
    queue: Queue,
    block_bytes: u32,
    /// Addresses of the data area.
    area: Range<usize>,
    ended: Vec<Completion>,
    copied: Slab<Piece>,
    bell: Arc<Bell>,
}

impl Shm {
    pub(crate) fn connect(options: &Options, socket: &Path) -> Result<Shm, Refusal> {
        if options.queues > 1 {
            return Err(Refusal::new(errno::EINVAL, format!("{} queues: shared memory has one", options.queues)));
        }
        let pieces = options.block_bytes.div_ceil(u64::from(ringway_core::limits::REQUEST_BYTES_MAX));
        let depth = (u64::from(options.depth) * pieces).next_power_of_two();
        let most = u64::from(ringway_shm_ring::ENTRIES_MAX);
        let each = options.block_bytes.next_multiple_of(PAGE) + pieces * PAGE;
        let mut connect = ConnectOptions::new(socket, options.volume.as_str());
        connect.depth = depth.clamp(u64::from(ringway_shm_ring::ENTRIES_MIN), most) as u16;
        connect.data_bytes = u64::from(options.depth) * each + options.spare_bytes;
        connect.patience = options.reconnect;
        connect.lease = options.lease;
        if options.lease {
            // Each is a host of its own: two programs of one machine are not the same writer.
            connect.host.id = *HostConfig::fresh_id().as_bytes();
        }
        if let Some(id) = options.host_id {
            connect.host.id = id;
        }
        if let Some(nqn) = &options.host_nqn {
            connect.host = Host { nqn: nqn.clone(), ..connect.host };
        }
        let bell = EventFd::new().map_err(|error| Refusal::new(errno::EIO, format!("no eventfd: {error}")))?;
        let client = Arc::new(Client::connect(connect).map_err(|error| refusal(&error))?);
        let queue = client.take_queue().expect("it was asked for one");
        let block_bytes = client.volume().block_bytes;
        let (area, bell) = (client.data_addresses(), Arc::new(Bell(bell)));
        Ok(Shm { client, queue, block_bytes, area, ended: Vec::new(), copied: Slab::new(), bell })
    }

    /// Where a piece's memory lies in the data area, if it does.
    fn place(&self, memory: &CallerMemory) -> Option<u64> {
        let start = memory.address()?;
        let inside = self.area.contains(&start) && memory.len() <= self.area.end - start;
        inside.then(|| (start - self.area.start) as u64)
    }

    fn command(&self, piece: &Piece) -> Command {
        let (first, blocks) = (piece.offset / u64::from(self.block_bytes), piece.len / self.block_bytes);
        if piece.what == What::Write { Command::write(first, blocks, false) } else { Command::read(first, blocks) }
    }

    fn copy(&mut self, piece: Piece) -> Result<(), Piece> {
        let memory = piece.memory.as_ref().expect("only data is copied");
        let Some(mut buffer) = self.client.alloc(memory.len()) else { return Err(piece) };
        let (what, offset) = (piece.what, piece.offset);
        if what == What::Write {
            memory.copy_to(&mut buffer);
        }
        let place = self.copied.insert(piece);
        let tag = COPIED | place as u64;
        let taken = match what {
            What::Write => self.queue.write(offset, buffer, false, tag),
            _ => self.queue.read(offset, buffer, tag),
        };
        taken.map_err(|_| self.copied.remove(place))
    }

    fn end(&mut self, completion: &Completion) -> PieceEnded {
        let errno = errno_of(completion.status);
        if completion.tag & COPIED == 0 {
            return (completion.tag as usize, errno);
        }
        let mut piece = self.copied.remove((completion.tag & !COPIED) as usize);
        if let (What::Read, 0, Some(buffer), Some(memory)) =
            (piece.what, errno, completion.buffer.as_ref(), &mut piece.memory)
        {
            memory.copy_from(buffer);
        }
        (piece.request, errno)
    }
}

fn refusal(error: &ConnectError) -> Refusal {
    let (errno, advice) = match error {
        ConnectError::Refused { reason: Reason::NoVolume, .. } => {
            (errno::ENOENT, "; `ringway volume list` shows what there is")
        }
        ConnectError::Refused { reason: Reason::Busy, .. } => (errno::EBUSY, ""),
        ConnectError::Refused { .. } => (errno::EACCES, ""),
        ConnectError::Unreachable { .. } => {
            (errno::ECONNREFUSED, "; runtime_dir= names the folder, transport=tcp goes without")
        }
        ConnectError::Answer { .. } => (errno::ECONNRESET, ""),
        _ => (errno::EINVAL, ""),
    };
    Refusal::new(errno, format!("{error}{advice}"))
}

fn errno_of(status: Status) -> i32 {
    match status.code() {
        (0, 0x00) => 0,
        (0, 0x01) => errno::EOPNOTSUPP,
        (0, 0x02 | 0x80) => errno::EINVAL,
        (0, 0x20) => errno::EROFS,
        (0, 0x81) => errno::ENOSPC,
        (3, 0x70) => errno::ESHUTDOWN,
        _ => errno::EIO,
    }
}

impl Carrier for Shm {
    fn volume(&self) -> Volume {
        let info = self.client.volume();
        let (size, block_bytes, request_bytes_max) = (info.size, info.block_bytes, info.request_bytes_max);
        Volume { size, block_bytes, request_bytes_max, uuid: None }
    }

    fn area(&self) -> Option<Area> {
        Some(Area { client: Arc::clone(&self.client) })
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.bell) as Arc<dyn Wake>
    }

    fn submit(&mut self, piece: Piece) -> Result<(), Piece> {
        let tag = piece.request as u64;
        let taken = match (piece.what, &piece.memory) {
            (What::Read | What::Write, Some(memory)) => {
                let Some(at) = self.place(memory) else { return self.copy(piece) };
                // SAFETY: memory of the program's that lies in the data area was taken by `Area::alloc`, so by `into_raw`; the
                // program leaves a request's buffer alone until its end. After a target is lost the session is over, and nothing is
                // queued or read again.
                unsafe { self.queue.submit_raw(self.command(&piece), at, piece.len, tag) }
            }
            (What::Flush, _) => self.queue.flush(tag).map_err(|rejected| rejected.why),
            (What::Zero, _) => {
                let (offset, len) = (piece.offset, piece.len.into());
                self.queue.write_zeroes(offset, len, true, tag).map_err(|rejected| rejected.why)
            }
            _ => self.queue.deallocate(piece.offset, piece.len.into(), tag).map_err(|rejected| rejected.why),
        };
        match taken {
            Ok(()) => Ok(()),
            Err(Reject::Full | Reject::NoMemory | Reject::Lost) => Err(piece),
            Err(why @ (Reject::Unaligned | Reject::TooLong)) => unreachable!("pieces are cut to what is taken: {why}"),
        }
    }

    fn turn(&mut self, until: Option<Instant>, ended: &mut Vec<PieceEnded>) -> Result<(), Refusal> {
        let mut completions = std::mem::take(&mut self.ended);
        self.queue.ring();
        if self.queue.poll(&mut completions) == 0
            && let Some(until) = until
        {
            let left = until.saturating_duration_since(Instant::now());
            self.queue.wait_or(left, Some(self.bell.0.as_fd()), &mut completions);
            // What was not rung has nothing to take.
            let _ = self.bell.0.take();
        }
        for completion in completions.drain(..) {
            let one = self.end(&completion);
            ended.push(one);
        }
        self.ended = completions;
        if self.client.is_lost() {
            return Err(Refusal::new(errno::ESHUTDOWN, "the target is gone and did not come back"));
        }
        Ok(())
    }

    fn close(&mut self) {}
}
