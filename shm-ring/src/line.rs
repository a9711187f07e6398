//! The unix socket between a client and the target: messages, descriptors, and whether the other side lives.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use ringway_reactor::socket_path::SocketPath;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::message::{MESSAGE_BYTES_MAX, Message, MessageError};

/// Descriptors in one message at most (SCM_MAX_FD).
const DESCRIPTORS_MAX: usize = 253;

/// What came out of a socket.
#[derive(Debug)]
pub enum Received {
    /// A message, with its descriptors.
    Message(Message, Vec<OwnedFd>),
    /// Bytes that are none.
    Garbage(MessageError),
    /// Nothing yet.
    Nothing,
    /// The other side is gone.
    Closed,
}

/// One end of a connected socket.
#[derive(Debug)]
pub struct Line(OwnedFd);

impl Line {
    /// Takes a connected SEQPACKET socket over.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Line {
        Line(socket)
    }

    /// Connects to the target.
    pub fn connect(path: &Path) -> io::Result<Line> {
        let (socket, path) = (socket()?, SocketPath::of(path)?);
        rustix::net::connect(&socket, &SocketAddrUnix::new(path.as_path())?)?;
        Ok(Line(socket))
    }

    /// Sends one message, without ever waiting: a peer that does not read its messages does without.
    pub fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        assert!(descriptors.len() <= DESCRIPTORS_MAX);
        let bytes = message.bytes();
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)), "there is room for all");
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match rustix::net::sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut ancillary, flags) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Takes one message, without waiting.
    pub fn receive(&self) -> io::Result<Received> {
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            match rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Received::Nothing),
                Err(Errno::CONNRESET | Errno::PIPE) => return Ok(Received::Closed),
                Err(errno) => return Err(errno.into()),
            }
        };
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(list) = message {
                descriptors.extend(list);
            }
        }
        if received.bytes == 0 {
            // An empty message is not in the protocol; the end of the connection looks the same.
            return Ok(Received::Closed);
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Ok(Received::Garbage(MessageError::Short(received.bytes)));
        }
        Ok(match Message::parse(&bytes[..received.bytes]) {
            Ok(message) => Received::Message(message, descriptors),
            Err(error) => Received::Garbage(error),
        })
    }

    /// Ends the connection in both directions; whoever polls either end sees it.
    pub fn shut_down(&self) {
        // Fails only where the peer was faster.
        let _ = rustix::net::shutdown(&self.0, Shutdown::Both);
    }

    /// The process at the other end, for messages to people.
    #[must_use]
    pub fn peer_pid(&self) -> Option<i32> {
        let credentials = rustix::net::sockopt::socket_peercred(&self.0).ok()?;
        Some(credentials.pid.as_raw_nonzero().get())
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}
