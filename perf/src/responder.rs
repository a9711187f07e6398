//! The least that can be called an NVMe/TCP target: plain polled sockets, no volume, every read answered with the same bytes.
//!
//! It is to our host what the echo is to both: beside it one sees what the host costs, without the target.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ringway_core::wire::command::{FABRICS, Sqe, admin, nvm};
use ringway_core::wire::completion::{Cqe, NvmeStatus};
use ringway_core::wire::fabrics::{self, Capabilities, PropertyFields};
use ringway_core::wire::identify::{IDENTIFY_BYTES, cns};
use ringway_core::wire::pdu::{self, Agreed, CapsuleCmd, CapsuleResp, InitConnection, PduType, Transfer, flags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use zerocopy::{FromBytes, IntoBytes};

use crate::cpu;

const BUFFER_BYTES: usize = 256 << 10;

struct Connection {
    stream: TcpStream,
    inbound: Vec<u8>,
    unread: usize,
    outbound: Vec<u8>,
    sent: usize,
}

/// Serves on `core` until `over`, and tells `ready` where.
pub fn serve(core: usize, over: &AtomicBool, ready: impl FnOnce(SocketAddr)) -> io::Result<()> {
    cpu::pin(core)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    ready(listener.local_addr()?);
    let mut connections: Vec<Connection> = Vec::new();
    let mut turns = 0_u32;
    while !over.load(Ordering::Relaxed) {
        turns = turns.wrapping_add(1);
        if turns.is_multiple_of(1024) || connections.is_empty() {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nodelay(true)?;
                    let (inbound, outbound) = (vec![0; BUFFER_BYTES], Vec::with_capacity(1 << 20));
                    connections.push(Connection { stream, inbound, unread: 0, outbound, sent: 0 });
                }
                // The core is somebody else's meanwhile.
                Err(error) if error.kind() == ErrorKind::WouldBlock && connections.is_empty() => {
                    thread::sleep(Duration::from_millis(1));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        connections.retain_mut(|connection| connection.turn().is_ok());
    }
    Ok(())
}

impl Connection {
    fn turn(&mut self) -> io::Result<()> {
        match recv(self.stream.as_fd(), &mut self.inbound[self.unread..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok((bytes, _)) => {
                self.unread += bytes;
                self.answer_all();
            }
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        if self.sent < self.outbound.len() {
            match send(self.stream.as_fd(), &self.outbound[self.sent..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(bytes) => self.sent += bytes,
                Err(Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
            if self.sent == self.outbound.len() {
                self.outbound.clear();
                self.sent = 0;
            }
        }
        Ok(())
    }

    fn answer_all(&mut self) {
        let mut at = 0;
        while self.unread - at >= pdu::COMMON {
            let len = u32::from_le_bytes(self.inbound[at + 4..at + 8].try_into().expect("four bytes")) as usize;
            if self.unread - at < len {
                break;
            }
            let whole = at..at + len;
            at += len;
            if self.inbound[whole.start] == PduType::IcReq as u8 {
                self.greet();
            } else if let Ok((capsule, _)) = CapsuleCmd::read_from_prefix(&self.inbound[whole]) {
                self.answer(&capsule.sqe);
            }
        }
        self.inbound.copy_within(at..self.unread, 0);
        self.unread -= at;
    }

    fn greet(&mut self) {
        let greeting = InitConnection {
            common: pdu::common(PduType::IcResp, 0, &Agreed::default(), 0),
            pfv: 0.into(),
            pda: 0,
            digests: 0,
            limit: (128 << 10).into(),
            reserved: [0; 112],
        };
        self.outbound.extend_from_slice(greeting.as_bytes());
    }

    fn complete(&mut self, sqe: &Sqe, result: u64) {
        let answer = CapsuleResp {
            common: pdu::common(PduType::CapsuleResp, 0, &Agreed::default(), 0),
            cqe: Cqe::new(sqe.cid.get(), 0, result, NvmeStatus::SUCCESS),
        };
        self.outbound.extend_from_slice(answer.as_bytes());
    }

    fn data(&mut self, sqe: &Sqe, len: usize, fill: impl FnOnce(&mut [u8])) {
        let header = Transfer {
            common: pdu::common(PduType::C2hData, flags::LAST | flags::SUCCESS, &Agreed::default(), len),
            cccid: sqe.cid,
            ttag: 0.into(),
            offset: 0.into(),
            length: (len as u32).into(),
            reserved: [0; 4],
        };
        self.outbound.extend_from_slice(header.as_bytes());
        let at = self.outbound.len();
        self.outbound.resize(at + len, 0);
        fill(&mut self.outbound[at..]);
    }

    fn answer(&mut self, sqe: &Sqe) {
        let len = sqe.sgl.length.get() as usize;
        match sqe.opcode {
            FABRICS if sqe.fabrics_type() == fabrics::kind::CONNECT => self.complete(sqe, 1),
            FABRICS => {
                let value = match PropertyFields::of(sqe).property {
                    Some(fabrics::Property::Capabilities) => Capabilities::new(1024, 1).0,
                    Some(fabrics::Property::Status) => fabrics::CSTS_READY.into(),
                    _ => 0,
                };
                self.complete(sqe, value);
            }
            // On an I/O queue 0x02 is Read, on the admin queue Get Log Page: both take bytes.
            nvm::READ => self.data(sqe, len, |_| {}),
            admin::IDENTIFY if len == IDENTIFY_BYTES => {
                let wanted = sqe.identify_fields().cns;
                self.data(sqe, len, |page| identify(wanted, page));
            }
            admin::SET_FEATURES => self.complete(sqe, sqe.cdw11.get().into()),
            // An event never happens.
            admin::ASYNC_EVENT_REQUEST => {}
            _ => self.complete(sqe, 0),
        }
    }
}

/// The few fields of an Identify answer that our host looks at: 8 KiB in a capsule, 1 GiB in blocks of 4 KiB.
fn identify(wanted: u8, page: &mut [u8]) {
    match wanted {
        cns::CONTROLLER => page[1792..1796].copy_from_slice(&((8192_u32 + 64) / 16).to_le_bytes()),
        cns::NAMESPACE => {
            page[..8].copy_from_slice(&(1_u64 << 18).to_le_bytes());
            page[130] = 12;
        }
        _ => {}
    }
}
