//! One front end's connection: its messages, one after the other, on a thread of its own.
//!
//! Messages are taken apart and checked by rust-vmm's `vhost`. One is our own: SET_BACKEND_REQ_FD, since that crate cannot send the
//! message for which the socket in it is meant (the disk's size has changed).

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{BackendReqHandler, Error};

use super::cache_mode::CacheMode;
use super::device::Device;
use super::mail::DeviceState;
use super::server::{ConfigChannel, Link};
use crate::directory::volume_nqn;
use crate::export::Export;

const HEADER: usize = 12;

mod flag {
    pub(super) const VERSION_MASK: u32 = 3;
    pub(super) const VERSION: u32 = 1;
    pub(super) const REPLY: u32 = 4;
    pub(super) const NEED_REPLY: u32 = 8;
}

/// Message numbers.
mod code {
    pub(super) const SET_BACKEND_REQ_FD: u32 = 21;
    /// Those that are answered by whether they went well, and only that: the front end can go on after a "no".
    pub(super) const ACKNOWLEDGED: &[u32] = &[2, 5, 8, 9, 10, 12, 13, 14, 16, 18, 25, 32, 37, 38];
}

#[derive(Clone, Copy)]
struct Header {
    code: u32,
    flags: u32,
    size: u32,
}

impl Header {
    fn parse(bytes: [u8; HEADER]) -> Header {
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        Header { code: word(0), flags: word(4), size: word(8) }
    }

    fn wants_reply(self, protocol: u64) -> bool {
        self.flags & flag::NEED_REPLY != 0 && protocol & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }
}

/// Serves a front end until it, its export or its guest's memory goes.
pub(super) fn serve(link: &Arc<Link>, export: &Export, socket: UnixStream) {
    let name = export.socket.display().to_string();
    let Some(record) = link.volume(export.volume) else {
        tracing::warn!(export = name, "a front end is refused: the volume is gone");
        return;
    };
    let who = format!("vhost-user:{name}");
    let association = match link.registry.attach_local(&record, &who) {
        Ok(association) => association,
        Err(why) => {
            tracing::warn!(export = name, why, "a front end is refused");
            return;
        }
    };
    match socket.try_clone() {
        Ok(clone) => {
            let cache_mode = CacheMode::of(&export.socket);
            let state = Arc::new(DeviceState {
                volume: export.volume,
                association,
                read_only: export.read_only || record.is_snapshot() || link.is_read_only(),
                polling: export.polling,
                // What a front end is told that asks before it has agreed on features.
                write_back: AtomicBool::new(cache_mode.is_write_back()),
                socket: clone,
                name: name.clone(),
                subsystem: volume_nqn(&record),
            });
            let first = link.next_reactor();
            let device = Device::new(Arc::clone(link), state, export, cache_mode, first);
            let device = Arc::new(Mutex::new(device));
            tracing::info!(export = name, "a front end is attached");
            let ended = exchange(socket, &device, &link.channel(&record));
            device.lock().unwrap_or_else(PoisonError::into_inner).close();
            tracing::info!(export = name, why = ended, "a front end is detached");
        }
        Err(error) => tracing::error!(export = name, %error, "a front end cannot be served"),
    }
    link.registry.detach_local(association);
}

/// Message after message. Returns why it ended.
fn exchange(socket: UnixStream, device: &Arc<Mutex<Device>>, channel: &ConfigChannel) -> String {
    let ours = match socket.try_clone() {
        Ok(ours) => ours,
        Err(error) => return error.to_string(),
    };
    let mut requests = BackendReqHandler::from_stream(socket, Arc::clone(device));
    loop {
        let header = match peek(&ours) {
            Ok(Some(header)) => header,
            Ok(None) => return "it has closed its connection".to_owned(),
            Err(error) => return error.to_string(),
        };
        let protocol = device.lock().unwrap_or_else(PoisonError::into_inner).protocol;
        let backend_requests = protocol & VhostUserProtocolFeatures::BACKEND_REQ.bits() != 0;
        if header.code == code::SET_BACKEND_REQ_FD && backend_requests {
            if let Err(error) = take_channel(&ours, header, protocol, channel) {
                return format!("SET_BACKEND_REQ_FD: {error}");
            }
            continue;
        }
        match requests.handle_request() {
            Ok(()) => {}
            Err(Error::ReqHandlerError(error))
                if header.wants_reply(protocol) && code::ACKNOWLEDGED.contains(&header.code) =>
            {
                tracing::warn!(message = header.code, %error, "a front end's message is answered with an error");
            }
            Err(error) => return format!("message {}: {error}", header.code),
        }
    }
}

/// The next message's header, left where it is. `None`: the connection has ended.
fn peek(socket: &UnixStream) -> io::Result<Option<Header>> {
    let mut bytes = [0; HEADER];
    loop {
        match rustix::net::recv(socket, &mut bytes, RecvFlags::PEEK | RecvFlags::WAITALL) {
            Ok((_, HEADER)) => return Ok(Some(Header::parse(bytes))),
            // WAITALL waits for all of it, unless there is no more to come.
            Ok(_) => return Ok(None),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes the socket on which the front end hears what changes.
fn take_channel(socket: &UnixStream, header: Header, protocol: u64, channel: &ConfigChannel) -> io::Result<()> {
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    if header.flags & (flag::VERSION_MASK | flag::REPLY) != flag::VERSION || header.size > 8 {
        return Err(wrong("its header is none"));
    }
    let mut bytes = [0; HEADER + 8];
    let bytes = &mut bytes[..HEADER + header.size as usize];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::WAITALL | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags)?;
    if received.bytes != bytes.len() {
        return Err(wrong("it is cut short"));
    }
    let fds: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    let taken = match <[OwnedFd; 1]>::try_from(fds) {
        Ok([fd]) => {
            let kind = rustix::net::sockopt::socket_type(&fd)?;
            let domain = rustix::net::sockopt::socket_domain(&fd)?;
            if kind != rustix::net::SocketType::STREAM || domain != rustix::net::AddressFamily::UNIX {
                return Err(wrong("what came with it is no unix stream socket"));
            }
            channel.set_socket(fd);
            Ok(())
        }
        Err(fds) => Err(wrong(&format!("{} descriptors came with it, where one is wanted", fds.len()))),
    };
    if header.wants_reply(protocol) {
        let words = [code::SET_BACKEND_REQ_FD, flag::VERSION | flag::REPLY, 8, u32::from(taken.is_err()), 0];
        let reply: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        rustix::net::send(socket, &reply, SendFlags::NOSIGNAL)?;
    }
    taken
}
