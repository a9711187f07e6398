//! Operations between submission and completion: what each owns, and the ring entry that stands for it.
//!
//! Invariants: an operation is in the table before its ring entry is visible to the kernel and until its completion was reaped;
//! it has at most one ring entry at a time; a ring entry names it by slot and serial number, so that a late cancel meets no
//! successor. Whatever the kernel points at lies outside the table (a buffer's slot, a box), since the table moves as it grows.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use io_uring::types::{Fd, Fixed, FsyncFlags};
use io_uring::{opcode, squeue};
use slab::Slab;

use super::registered::Registered;
use crate::data::{Data, Piece};
use crate::event::EventFd;
use crate::io::{Op, Token};

/// Where an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// In our own queue: the ring had no room.
    Queued,
    /// Pushed to the ring and not reaped.
    Ring,
    /// On a socket that is read and written by direct calls for the moment.
    Direct,
}

/// Memory the kernel looks at besides buffers.
pub(super) enum Extra {
    None,
    Message(Box<Message>),
    /// The pieces of a peer's memory.
    Vectors(Vectors),
    /// Where the count of an event goes, or comes from.
    Count(Box<u64>),
    Connection(Box<Address>, OwnedFd),
}

/// What sendmsg wants: a header that points at a list that points at the buffers.
pub(super) struct Message {
    header: libc::msghdr,
    parts: Vec<libc::iovec>,
}

// SAFETY: the pointers lead into buffers of the operation that owns the message, which is Send itself.
unsafe impl Send for Message {}

/// The pieces of a peer's memory, as readv wants them.
pub(super) struct Vectors(Vec<libc::iovec>);

// SAFETY: as for `Message`; the pieces lie in mappings that the operation's data keeps.
unsafe impl Send for Vectors {}

/// A socket address as the kernel wants it.
pub(super) enum Address {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

/// One operation in flight.
pub(super) struct Entry {
    pub(super) token: Token,
    pub(super) op: Op,
    /// Bytes of it that are done; short transfers are continued.
    pub(super) done: usize,
    pub(super) serial: u32,
    pub(super) whereabouts: Whereabouts,
    pub(super) extra: Extra,
}

/// All operations of a ring.
pub(super) struct Table {
    entries: Slab<Entry>,
    serial: u32,
    /// Messages to be used again.
    #[expect(clippy::vec_box, reason = "they move between here and an entry, and must not move in memory meanwhile")]
    messages: Vec<Box<Message>>,
}

/// User data of entries that are no operation.
pub(super) const WAKE: u64 = u64::MAX;
pub(super) const CANCEL: u64 = u64::MAX - 1;

/// How a device is reached through the ring.
#[derive(Clone, Copy)]
pub(super) struct Target {
    /// Slot in the ring's file table.
    pub(super) slot: u32,
    /// Pools below this index are registered buffers.
    pub(super) fixed_buffers: u16,
}

impl Table {
    pub(super) fn with_capacity(entries: usize) -> Self {
        Self { entries: Slab::with_capacity(entries), serial: 0, messages: Vec::new() }
    }

    pub(super) fn insert(&mut self, token: Token, op: Op, whereabouts: Whereabouts, extra: Extra) -> usize {
        // 31 bits: the two numbers of WAKE and CANCEL are never composed.
        self.serial = (self.serial + 1) & 0x7fff_ffff;
        self.entries.insert(Entry { token, op, done: 0, serial: self.serial, whereabouts, extra })
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn get(&mut self, key: usize) -> &mut Entry {
        self.entries.get_mut(key).expect("an operation in flight is in the table")
    }

    /// Takes an operation out, for its completion; keeps its message for the next.
    pub(super) fn remove(&mut self, key: usize) -> Entry {
        let mut entry = self.entries.remove(key);
        if let Extra::Message(message) = std::mem::replace(&mut entry.extra, Extra::None) {
            self.messages.push(message);
        } else if matches!(entry.op, Op::Connect { .. }) {
            unreachable!("a connection is taken out of its entry before");
        }
        entry
    }

    /// Takes an outgoing connection out whole.
    pub(super) fn remove_connection(&mut self, key: usize) -> (Token, OwnedFd) {
        let entry = self.entries.remove(key);
        match entry.extra {
            Extra::Connection(_, fd) => (entry.token, fd),
            _ => unreachable!("a connect owns its socket"),
        }
    }

    pub(super) fn user_data(&self, key: usize) -> u64 {
        u64::from(self.entries[key].serial) << 32 | key as u64
    }

    /// The operation that a completion is for.
    pub(super) fn key_of(&self, user_data: u64) -> usize {
        let key = (user_data & 0xffff_ffff) as usize;
        assert_eq!(self.user_data(key), user_data, "a completion is for the operation that was submitted");
        key
    }

    /// Operations that the kernel knows of.
    pub(super) fn keys_in_ring(&self) -> Vec<usize> {
        let in_ring = |entry: &Entry| entry.whereabouts == Whereabouts::Ring;
        self.entries.iter().filter(|(_, entry)| in_ring(entry)).map(|(key, _)| key).collect()
    }

    /// Gives all up to the kernel for good.
    pub(super) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.entries));
    }

    /// The ring entry for a device operation, from where it stands.
    pub(super) fn device_entry(&mut self, key: usize, target: Target, registered: &Registered) -> squeue::Entry {
        let user_data = self.user_data(key);
        let entry = &mut self.entries[key];
        let fd = Fixed(target.slot);
        let done = entry.done;
        let entry = match &mut entry.op {
            Op::Read { offset, data, .. } => {
                let at = *offset + done as u64;
                match rest(data, done, target, registered, &mut entry.extra) {
                    Rest::Fixed(start, len, index) => opcode::ReadFixed::new(fd, start, len, index).offset(at).build(),
                    Rest::Plain(start, len) => opcode::Read::new(fd, start, len).offset(at).build(),
                    Rest::Pieces(start, count) => opcode::Readv::new(fd, start, count).offset(at).build(),
                }
            }
            Op::Write { offset, data, durable, .. } => {
                let at = *offset + done as u64;
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                match rest(data, done, target, registered, &mut entry.extra) {
                    Rest::Fixed(start, len, index) => {
                        opcode::WriteFixed::new(fd, start, len, index).offset(at).rw_flags(flags).build()
                    }
                    Rest::Plain(start, len) => opcode::Write::new(fd, start, len).offset(at).rw_flags(flags).build(),
                    Rest::Pieces(start, count) => {
                        opcode::Writev::new(fd, start, count).offset(at).rw_flags(flags).build()
                    }
                }
            }
            Op::Barrier { .. } => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            Op::Deallocate { offset, len, .. } => opcode::Fallocate::new(fd, *len)
                .offset(*offset)
                .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
            _ => unreachable!("no device operation"),
        };
        entry.user_data(user_data)
    }

    /// The ring entry for an operation on a socket or listener `fd`, from where it stands.
    pub(super) fn socket_entry(&mut self, key: usize, fd: RawFd) -> squeue::Entry {
        let user_data = self.user_data(key);
        let entry = &mut self.entries[key];
        let built = match &mut entry.op {
            Op::Accept { .. } => opcode::Accept::new(Fd(fd), std::ptr::null_mut(), std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC)
                .build(),
            Op::Recv { buf, .. } => opcode::Recv::new(Fd(fd), buf.as_ptr(), buf.len() as u32).build(),
            Op::Send { bufs, .. } => {
                if !matches!(entry.extra, Extra::Message(_)) {
                    entry.extra = Extra::Message(self.messages.pop().unwrap_or_else(|| Box::new(Message::new())));
                }
                let Extra::Message(message) = &mut entry.extra else { unreachable!("made above") };
                let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
                opcode::SendMsg::new(Fd(fd), message.point_at(bufs, entry.done)).flags(flags).build()
            }
            _ => unreachable!("no operation on a socket"),
        };
        built.user_data(user_data)
    }

    /// The ring entry for an event. Waiting is a poll and then a read that resets it: whatever the peer makes of the
    /// descriptor meanwhile, neither blocks.
    pub(super) fn event_entry(&mut self, key: usize) -> squeue::Entry {
        let user_data = self.user_data(key);
        let entry = &mut self.entries[key];
        let fd = |event: &Arc<EventFd>| Fd(event.as_fd().as_raw_fd());
        if !matches!(entry.extra, Extra::Count(_)) {
            entry.extra = Extra::Count(Box::new(1));
        }
        let Extra::Count(count) = &mut entry.extra else { unreachable!("made above") };
        let start: *mut u64 = &raw mut **count;
        let built = match &entry.op {
            Op::WaitEvent { event } if entry.done == 0 => opcode::PollAdd::new(fd(event), libc::POLLIN as u32).build(),
            Op::WaitEvent { event } => opcode::Read::new(fd(event), start.cast(), 8).offset(u64::MAX).build(),
            // Without NOWAIT a full counter would keep the write in flight until the peer resets it.
            Op::Signal { event } => {
                let write = opcode::Write::new(fd(event), start.cast(), 8).offset(u64::MAX);
                write.rw_flags(libc::RWF_NOWAIT).build()
            }
            _ => unreachable!("no operation on an event"),
        };
        built.user_data(user_data)
    }

    /// Waits for `event`: those in the ring, and those that have not got there.
    pub(super) fn waits_for(&self, event: &Arc<EventFd>) -> Vec<(usize, Whereabouts)> {
        let waits = |entry: &Entry| matches!(&entry.op, Op::WaitEvent { event: mine } if Arc::ptr_eq(mine, event));
        self.entries.iter().filter(|(_, entry)| waits(entry)).map(|(key, entry)| (key, entry.whereabouts)).collect()
    }

    /// The ring entry for an outgoing connection.
    pub(super) fn connect_entry(&mut self, key: usize) -> squeue::Entry {
        let user_data = self.user_data(key);
        match &self.entries[key].extra {
            Extra::Connection(address, fd) => {
                let (start, len) = address.raw();
                opcode::Connect::new(Fd(fd.as_raw_fd()), start, len).build().user_data(user_data)
            }
            _ => unreachable!("a connect owns its socket"),
        }
    }
}

/// What is left of a transfer, as the ring wants it.
enum Rest {
    /// Registered memory: start, length, place in the table of buffers.
    Fixed(*mut u8, u32, u16),
    Plain(*mut u8, u32),
    /// Memory in several pieces, listed in the entry's [`Extra`].
    Pieces(*const libc::iovec, u32),
}

fn rest(data: &mut Data, done: usize, target: Target, registered: &Registered, extra: &mut Extra) -> Rest {
    match data {
        Data::Blank(_) | Data::SharedBlank(_) => unreachable!("written out when it was submitted"),
        Data::Own(buf) => {
            let pool = buf.pool().index();
            let rest = &mut buf[done..];
            let (start, len) = (rest.as_mut_ptr(), rest.len() as u32);
            if pool < target.fixed_buffers { Rest::Fixed(start, len, pool) } else { Rest::Plain(start, len) }
        }
        Data::Shared(shared) => match shared.single(done) {
            Some((area, start, len)) => {
                let memory = &shared.table().areas()[usize::from(area)];
                let at = start.addr() - memory.as_ptr().addr();
                match registered.find(memory, at, len as usize) {
                    Some(index) => Rest::Fixed(start, len, index),
                    None => Rest::Plain(start, len),
                }
            }
            None => {
                let mut vectors = match std::mem::replace(extra, Extra::None) {
                    Extra::Vectors(vectors) => vectors.0,
                    _ => Vec::with_capacity(shared.pieces()),
                };
                shared.vectors(done, &mut vectors);
                let rest = Rest::Pieces(vectors.as_ptr(), vectors.len() as u32);
                *extra = Extra::Vectors(Vectors(vectors));
                rest
            }
        },
    }
}

impl Message {
    /// IOV_MAX: more parts go in several rounds.
    const PARTS_MAX: usize = 1024;

    fn new() -> Self {
        // SAFETY: a msghdr is numbers and pointers, for which all zeros (no name, no parts, no control data) is a value.
        Self { header: unsafe { std::mem::zeroed() }, parts: Vec::new() }
    }

    /// Lists what is left of `bufs` after `done` bytes.
    fn point_at(&mut self, bufs: &[Piece], mut done: usize) -> *const libc::msghdr {
        self.parts.clear();
        for buf in bufs {
            if done >= buf.len() {
                done -= buf.len();
                continue;
            }
            if self.parts.len() == Self::PARTS_MAX {
                break;
            }
            let rest = &buf[done..];
            self.parts.push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() });
            done = 0;
        }
        self.header.msg_iov = self.parts.as_mut_ptr();
        self.header.msg_iovlen = self.parts.len();
        &self.header
    }
}

impl Address {
    pub(super) fn new(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(v4) => Address::V4(libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(v6) => Address::V6(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            }),
        }
    }

    fn raw(&self) -> (*const libc::sockaddr, u32) {
        match self {
            Address::V4(v4) => (std::ptr::from_ref(v4).cast(), size_of_val(v4) as u32),
            Address::V6(v6) => (std::ptr::from_ref(v6).cast(), size_of_val(v6) as u32),
        }
    }
}
