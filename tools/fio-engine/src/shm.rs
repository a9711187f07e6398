//! Over shared memory, by the client of `ringway-shm-ring`. fio's buffers are taken out of the data area ([`Shm::alloc`]), so
//! that the target's device reads and writes them where they lie; other memory is copied.

use std::time::Instant;

use ringway_shm_ring::client::{
    Buffer, Client, Command, Completion, ConnectError, ConnectOptions, Host, Queue, RawBuffer, Reject, Status,
};
use ringway_shm_ring::message::Reason;
use slab::Slab;

use crate::memory::CallerMemory;
use crate::options::{Options, Refusal, errno};
use crate::session::{Carrier, Piece, PieceEnded, Volume, What};

const PAGE: u64 = 4096;
/// Room in the data area beside fio's buffers and the lists of trims: what is copied.
const SPARE_BYTES: u64 = 1 << 20;
/// Set in the tags of pieces whose data is copied; their place follows. Else the tag is the request.
const COPIED: u64 = 1 << 63;

/// An attached volume with one queue.
pub(crate) struct Shm {
    client: Client,
    queue: Queue,
    block_bytes: u32,
    /// What fio was given of the data area.
    area: Option<RawBuffer>,
    ended: Vec<Completion>,
    copied: Slab<Piece>,
}

impl Shm {
    pub(crate) fn connect(options: &Options) -> Result<Shm, Refusal> {
        if options.queues > 1 {
            let why = format!("queues={} is for transport=tcp: a job has one ring", options.queues);
            return Err(Refusal::new(errno::EINVAL, why));
        }
        let pieces = options.block_bytes.div_ceil(u64::from(ringway_core::limits::REQUEST_BYTES_MAX));
        let depth = (u64::from(options.depth) * pieces).next_power_of_two();
        let most = u64::from(ringway_shm_ring::ENTRIES_MAX);
        let each = options.block_bytes.next_multiple_of(PAGE) + pieces * PAGE;
        let mut connect = ConnectOptions::new(&options.socket, options.volume.as_str());
        connect.depth = depth.clamp(u64::from(ringway_shm_ring::ENTRIES_MIN), most) as u16;
        connect.data_bytes = u64::from(options.depth) * each + SPARE_BYTES;
        connect.patience = options.reconnect;
        if let Some(nqn) = &options.host_nqn {
            connect.host = Host { nqn: nqn.clone(), ..connect.host };
        }
        let client = Client::connect(connect).map_err(|error| refusal(&error))?;
        let queue = client.take_queue().expect("it was asked for one");
        let block_bytes = client.volume().block_bytes;
        Ok(Shm { client, queue, block_bytes, area: None, ended: Vec::new(), copied: Slab::new() })
    }

    /// Where a piece's memory lies in the data area, if it does.
    fn place(&self, memory: &CallerMemory) -> Option<u64> {
        let area = self.area?;
        let at = memory.address().checked_sub(area.start.addr())? as u64;
        (at + memory.len() as u64 <= u64::from(area.len)).then_some(area.offset + at)
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
        Volume { size: info.size, block_bytes: info.block_bytes, request_bytes_max: info.request_bytes_max }
    }

    fn alloc(&mut self, bytes: usize) -> Option<*mut u8> {
        if self.area.is_some() {
            return None;
        }
        let area = self.client.alloc(bytes)?.into_raw();
        self.area = Some(area);
        Some(area.start)
    }

    fn submit(&mut self, piece: Piece) -> Result<(), Piece> {
        let tag = piece.request as u64;
        let taken = match (piece.what, &piece.memory) {
            (What::Read | What::Write, Some(memory)) => {
                let Some(at) = self.place(memory) else { return self.copy(piece) };
                // SAFETY: the range lies in what `alloc` took by `into_raw`; fio leaves a request's buffer alone until its end. After
                // a target is lost the session is over, and nothing is queued or read again.
                unsafe { self.queue.submit_raw(self.command(&piece), at, piece.len, tag) }
            }
            (What::Flush, _) => self.queue.flush(tag).map_err(|rejected| rejected.why),
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
            self.queue.wait(until.saturating_duration_since(Instant::now()), &mut completions);
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

    fn close(&mut self) {
        if let Some(area) = self.area.take() {
            // SAFETY: it came from `alloc`, and fio has freed it: it does so before it ends the engine.
            drop(unsafe { Buffer::from_raw(&self.client, area) });
        }
    }
}
