//! Sockets and listeners of a ring: which operations each has in flight, and the direct path of active ones.
//!
//! Invariant: a slot is free only when its socket is closed and nothing of it is in flight.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType};
use slab::Slab;

use super::in_flight::{Extra, Whereabouts};
use super::{SocketPath, UringIo, error};
use crate::data::Piece;
use crate::io::{Instant, IoError, ListenerId, Op, Payload, SocketId, Token};

/// How long a receive or a send is tried by direct calls before it goes to the ring. Each try that finds nothing costs about 0.3 us; arming the ring and
/// being fired by it some 2 us more than a try that succeeds.
const DIRECT_NS: u64 = 100_000;
/// Sockets tried in one turn, so that many quiet ones do not make it long.
const DIRECT_MAX: usize = 32;
/// Parts of one direct send: a few, or many; the list is on the stack and setting it up costs.
const PARTS_FEW: usize = 8;
const PARTS_MANY: usize = 256;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

struct Connection {
    fd: OwnedFd,
    receiving: Option<usize>,
    sending: Option<usize>,
    closed: bool,
}

struct Listener {
    fd: OwnedFd,
    accepting: Vec<usize>,
    closed: bool,
}

pub(super) struct Sockets {
    path: SocketPath,
    connections: Slab<Connection>,
    listeners: Slab<Listener>,
    /// Receives to be tried directly, and since when.
    receives: Vec<(usize, Instant)>,
    /// The same for sends that found too little room.
    sends: Vec<(usize, Instant)>,
}

fn failure(errno: Errno) -> IoError {
    error::of_socket(errno.raw_os_error())
}

/// Who is at the other end.
pub(super) fn peer_of(fd: &OwnedFd) -> Result<SocketAddr, IoError> {
    let address = rustix::net::getpeername(fd).map_err(failure)?;
    address.and_then(|address| address.try_into().ok()).ok_or(error::of_socket(libc::ENOTCONN))
}

/// A TCP socket for the family of `addr`.
pub(super) fn new_socket(addr: SocketAddr) -> Result<OwnedFd, IoError> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(failure)
}

impl Sockets {
    pub(super) fn new(path: SocketPath) -> Self {
        Self { path, connections: Slab::new(), listeners: Slab::new(), receives: Vec::new(), sends: Vec::new() }
    }

    pub(super) fn attach(&mut self, fd: OwnedFd) -> Result<SocketId, IoError> {
        // A ring gives EAGAIN back for descriptors in non-blocking mode where it arms a poll for others.
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(failure)?;
        rustix::fs::fcntl_setfl(&fd, flags - rustix::fs::OFlags::NONBLOCK).map_err(failure)?;
        match rustix::net::sockopt::set_tcp_nodelay(&fd, true) {
            // A unix socket has no such option and needs none.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(failure(errno)),
        }
        let key = self.connections.insert(Connection { fd, receiving: None, sending: None, closed: false });
        Ok(SocketId(key as u32))
    }

    pub(super) fn listen(&mut self, addr: SocketAddr) -> Result<(ListenerId, SocketAddr), IoError> {
        let fd = new_socket(addr)?;
        rustix::net::sockopt::set_socket_reuseaddr(&fd, true).map_err(failure)?;
        rustix::net::bind(&fd, &addr).map_err(failure)?;
        rustix::net::listen(&fd, BACKLOG).map_err(failure)?;
        let bound = rustix::net::getsockname(&fd).map_err(failure)?;
        let bound = bound.try_into().map_err(failure)?;
        let key = self.listeners.insert(Listener { fd, accepting: Vec::new(), closed: false });
        Ok((ListenerId(key as u32), bound))
    }

    pub(super) fn fd(&self, socket: SocketId) -> BorrowedFd<'_> {
        self.connections[socket.0 as usize].fd.as_fd()
    }

    pub(super) fn listener_fd(&self, listener: ListenerId) -> RawFd {
        self.listeners[listener.0 as usize].fd.as_raw_fd()
    }

    fn open(&mut self, socket: SocketId) -> &mut Connection {
        let connection = self.connections.get_mut(socket.0 as usize).expect("the socket is attached");
        assert!(!connection.closed, "nothing is submitted to a closed socket");
        connection
    }

    pub(super) fn received(&mut self, socket: SocketId) {
        self.connections[socket.0 as usize].receiving = None;
        self.release(socket);
    }

    pub(super) fn sent(&mut self, socket: SocketId) {
        self.connections[socket.0 as usize].sending = None;
        self.release(socket);
    }

    /// Whether what this operation belongs to was closed: then it ends and is not tried again.
    pub(super) fn is_closed(&self, op: &Op) -> bool {
        match op {
            Op::Recv { socket, .. } | Op::Send { socket, .. } => self.connections[socket.0 as usize].closed,
            Op::Accept { listener } => self.listeners[listener.0 as usize].closed,
            _ => false,
        }
    }

    /// The ring goes: nothing on any socket is tried again.
    pub(super) fn close_all(&mut self) {
        self.connections.iter_mut().for_each(|(_, connection)| connection.closed = true);
        self.listeners.iter_mut().for_each(|(_, listener)| listener.closed = true);
    }

    fn release(&mut self, socket: SocketId) {
        let connection = &self.connections[socket.0 as usize];
        if connection.closed && connection.receiving.is_none() && connection.sending.is_none() {
            self.connections.remove(socket.0 as usize);
        }
    }

    pub(super) fn accepted(&mut self, listener: ListenerId, key: usize) {
        let entry = &mut self.listeners[listener.0 as usize];
        entry.accepting.retain(|&other| other != key);
        if entry.closed && entry.accepting.is_empty() {
            self.listeners.remove(listener.0 as usize);
        }
    }
}

impl UringIo {
    pub(super) fn submit_receive(&mut self, token: Token, socket: SocketId, op: Op) {
        let Op::Recv { buf, .. } = &op else { unreachable!("a receive") };
        assert!(!buf.is_empty(), "a receive has room for a byte: zero bytes would mean that the peer closed");
        let direct = self.sockets.path == SocketPath::Adaptive;
        let whereabouts = if direct { Whereabouts::Direct } else { Whereabouts::Queued };
        let key = self.table.insert(token, op, whereabouts, Extra::None);
        let connection = self.sockets.open(socket);
        assert!(connection.receiving.is_none(), "one receive at a time");
        connection.receiving = Some(key);
        if direct {
            self.sockets.receives.push((key, self.now));
        } else {
            self.hand_over(key);
        }
    }

    /// Sends as much as the socket takes at once. What is left is tried again in the next polls, since a peer that is at it makes room
    /// within microseconds. A completion is delivered by the next poll in any case.
    pub(super) fn submit_send(&mut self, token: Token, socket: SocketId, op: Op) {
        let Op::Send { bufs, .. } = &op else { unreachable!("a send") };
        assert!(self.sockets.open(socket).sending.is_none(), "one send at a time");
        let direct = self.sockets.path == SocketPath::Adaptive;
        let mut done = 0;
        if direct && let Some(result) = send_all(self.sockets.fd(socket), bufs, &mut done) {
            let Op::Send { bufs, .. } = op else { unreachable!("looked at above") };
            return self.finish_at_once(token, result, Payload::Bufs(bufs));
        }
        let whereabouts = if direct { Whereabouts::Direct } else { Whereabouts::Queued };
        let key = self.table.insert(token, op, whereabouts, Extra::None);
        self.table.get(key).done = done;
        self.sockets.open(socket).sending = Some(key);
        if direct {
            self.sockets.sends.push((key, self.now));
        } else {
            self.hand_over(key);
        }
    }

    pub(super) fn submit_accept(&mut self, token: Token, listener: ListenerId, op: Op) {
        let key = self.table.insert(token, op, Whereabouts::Queued, Extra::None);
        let entry = &mut self.sockets.listeners[listener.0 as usize];
        assert!(!entry.closed, "nothing is submitted to a closed listener");
        entry.accepting.push(key);
        self.hand_over(key);
    }

    /// Tries sends that are not through and receives of active sockets.
    pub(super) fn direct(&mut self) {
        for at in (0..self.sockets.sends.len()).rev() {
            let (key, since) = self.sockets.sends[at];
            if self.try_send(key) {
                self.sockets.sends.swap_remove(at);
            } else if self.now.since_ns(since) > DIRECT_NS {
                self.sockets.sends.swap_remove(at);
                self.hand_over(key);
            }
        }
        let mut at = self.sockets.receives.len();
        let end = at.saturating_sub(DIRECT_MAX);
        while at > end {
            at -= 1;
            let (key, since) = self.sockets.receives[at];
            if self.try_receive(key) {
                self.sockets.receives.swap_remove(at);
            } else if self.now.since_ns(since) > DIRECT_NS {
                self.sockets.receives.swap_remove(at);
                self.hand_over(key);
            }
        }
        if end > 0 {
            // The others first next time.
            let tried = DIRECT_MAX.min(self.sockets.receives.len());
            self.sockets.receives.rotate_right(tried);
        }
    }

    /// Hands all that is tried directly to the ring: the reactor is about to sleep.
    pub(super) fn disarm_direct(&mut self) {
        while let Some((key, _)) = self.sockets.sends.pop().or_else(|| self.sockets.receives.pop()) {
            self.hand_over(key);
        }
    }

    fn try_receive(&mut self, key: usize) -> bool {
        let Op::Recv { socket, buf } = &mut self.table.get(key).op else { unreachable!("a receive") };
        let received = rustix::net::recv(self.sockets.fd(*socket), &mut buf[..], RecvFlags::DONTWAIT);
        match received {
            Ok((_, received)) => self.finish(key, Ok(received)),
            Err(Errno::AGAIN | Errno::INTR) => return false,
            Err(errno) => self.finish(key, Err(failure(errno))),
        }
        true
    }

    fn try_send(&mut self, key: usize) -> bool {
        let entry = self.table.get(key);
        let Op::Send { socket, bufs } = &entry.op else { unreachable!("a send") };
        match send_all(self.sockets.fd(*socket), bufs, &mut entry.done) {
            Some(result) => self.finish(key, result),
            None => return false,
        }
        true
    }

    pub(super) fn close_socket(&mut self, socket: SocketId) {
        let connection = self.sockets.open(socket);
        connection.closed = true;
        let in_flight = [connection.receiving, connection.sending];
        if in_flight == [None, None] {
            return self.sockets.release(socket);
        }
        for key in in_flight.into_iter().flatten() {
            self.give_up(key);
        }
    }

    pub(super) fn close_listening(&mut self, listener: ListenerId) {
        let entry = self.sockets.listeners.get_mut(listener.0 as usize).expect("the listener is open");
        assert!(!entry.closed, "a listener is closed once");
        entry.closed = true;
        if entry.accepting.is_empty() {
            self.sockets.listeners.remove(listener.0 as usize);
            return;
        }
        for key in entry.accepting.clone() {
            self.give_up(key);
        }
    }

    /// Ends an operation of something closed: at once if the kernel does not know it, by its completion otherwise.
    fn give_up(&mut self, key: usize) {
        match self.table.get(key).whereabouts {
            Whereabouts::Ring => self.cancel(key),
            Whereabouts::Queued => {
                self.queue.retain(|&other| other != key);
                self.finish(key, Err(error::CANCELLED));
            }
            Whereabouts::Direct => {
                self.sockets.sends.retain(|&(other, _)| other != key);
                self.sockets.receives.retain(|&(other, _)| other != key);
                self.finish(key, Err(error::CANCELLED));
            }
        }
    }
}

/// Sends what is left of `bufs` after `done` bytes, which it counts on; `None` if the socket takes no more for now.
fn send_all(fd: BorrowedFd<'_>, bufs: &[Piece], done: &mut usize) -> Option<Result<usize, IoError>> {
    let total: usize = bufs.iter().map(|buf| buf.len()).sum();
    while *done < total {
        let sent = match bufs.len() {
            ..=PARTS_FEW => send_parts::<PARTS_FEW>(fd, bufs, *done),
            _ => send_parts::<PARTS_MANY>(fd, bufs, *done),
        };
        match sent {
            Ok(sent) => *done += sent,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return None,
            Err(errno) => return Some(Err(failure(errno))),
        }
    }
    Some(Ok(total))
}

/// One sendmsg of at most `PARTS` parts of what is left of `bufs` after `done` bytes.
fn send_parts<const PARTS: usize>(fd: BorrowedFd<'_>, bufs: &[Piece], mut done: usize) -> Result<usize, Errno> {
    let mut parts = [IoSlice::new(&[]); PARTS];
    let mut count = 0;
    for buf in bufs {
        if done >= buf.len() {
            done -= buf.len();
            continue;
        }
        if count == PARTS {
            break;
        }
        parts[count] = IoSlice::new(&buf[done..]);
        count += 1;
        done = 0;
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(fd, &parts[..count], &mut SendAncillaryBuffer::default(), flags)
}
