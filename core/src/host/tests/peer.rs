//! A target in two hundred lines, for the host's tests: written from the specification's tables, byte by byte, so that it
//! does not share a mistake with the layouts that the host uses.

use std::collections::HashMap;
use std::net::SocketAddr;

use ringway_reactor::io::{Completion, Io, ListenerId, Op, Payload, SocketId, Token, Wait};

/// How the peer behaves.
#[derive(Clone, Debug)]
pub(super) struct Behaviour {
    pub(super) digests: (bool, bool),
    pub(super) cpda: u8,
    pub(super) h2c_max: u32,
    /// Data of I/O capsules, bytes.
    pub(super) in_capsule: u32,
    /// Bytes of one C2HData PDU.
    pub(super) c2h_max: usize,
    /// Bytes of one R2T.
    pub(super) r2t_max: usize,
    /// Ends reads by the SUCCESS flag.
    pub(super) success_flag: bool,
    /// Refuses Connect with this status.
    pub(super) refuse: Option<u16>,
    /// Answers every I/O command with this status.
    pub(super) fail_io: Option<u16>,
    /// Executes this many more I/O commands, but the answer of the last is lost with its connection.
    pub(super) break_after: Option<u32>,
    /// Takes I/O commands and never answers.
    pub(super) silent: bool,
    /// Flips a bit of this many read data PDUs.
    pub(super) corrupt: u32,
    pub(super) blocks: u64,
    pub(super) subsystem_nqn: String,
    /// Records of the discovery log.
    pub(super) discovered: usize,
    /// Times that it changes while it is read.
    pub(super) discovery_changes: u32,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            digests: (false, false),
            cpda: 0,
            h2c_max: 32 << 10,
            in_capsule: 8192,
            c2h_max: usize::MAX,
            r2t_max: usize::MAX,
            success_flag: true,
            refuse: None,
            fail_io: None,
            break_after: None,
            silent: false,
            corrupt: 0,
            blocks: 4096,
            subsystem_nqn: "nqn.test:v".into(),
            discovered: 0,
            discovery_changes: 0,
        }
    }
}

#[derive(Default)]
struct Connection {
    rx: Vec<u8>,
    tx: Vec<u8>,
    sending: bool,
    greeted: bool,
    digests: (bool, bool),
    qid: u16,
    /// Data still to come for a command: its entry, the data so far.
    writes: HashMap<u16, ([u8; 64], Vec<u8>, usize)>,
    /// The compare of a pair failed: its write is not done.
    compare_failed: bool,
    events: Vec<u16>,
}

pub(super) struct Peer<I> {
    pub(super) io: I,
    pub(super) behaviour: Behaviour,
    listener: ListenerId,
    pub(super) addr: SocketAddr,
    connections: HashMap<u32, Connection>,
    pub(super) disk: Vec<u8>,
    /// Opcode and first block of each I/O command executed.
    pub(super) executed: Vec<(u8, u64)>,
    pub(super) connects: Vec<u16>,
    pub(super) keep_alives: u32,
}

const ACCEPT: u64 = 1 << 40;
const SEND: u64 = 2 << 40;
const RECV: u64 = 3 << 40;

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

impl<I: Io> Peer<I> {
    pub(super) fn new(mut io: I, port: u16, behaviour: Behaviour) -> Self {
        let (listener, addr) = io.listen(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        io.submit(Token(ACCEPT), Op::Accept { listener });
        let disk = vec![0; behaviour.blocks as usize * 512];
        Self {
            io,
            behaviour,
            listener,
            addr,
            connections: HashMap::new(),
            disk,
            executed: Vec::new(),
            connects: Vec::new(),
            keep_alives: 0,
        }
    }

    pub(super) fn turn(&mut self) {
        let mut completions = Vec::new();
        self.io.poll(Wait::Until(self.io.now().plus_ns(10_000_000)), &mut completions);
        for completion in completions {
            self.on_completion(completion);
        }
        let sockets: Vec<u32> = self.connections.keys().copied().collect();
        for socket in sockets {
            self.send(socket);
        }
    }

    fn on_completion(&mut self, completion: Completion) {
        let socket = completion.token.0 as u32;
        match (completion.token.0 & !0xffff_ffff, completion.payload) {
            (ACCEPT, Payload::Socket(accepted, _)) => {
                let id = self.io.attach(accepted).unwrap();
                self.connections.insert(id.0, Connection::default());
                self.receive(id.0);
                self.io.submit(Token(ACCEPT), Op::Accept { listener: self.listener });
            }
            (SEND, _) => {
                if let Some(connection) = self.connections.get_mut(&socket) {
                    connection.sending = false;
                }
            }
            (RECV, Payload::Buf(buf)) => match completion.result {
                Ok(bytes) if bytes > 0 && self.connections.contains_key(&socket) => {
                    self.connections.get_mut(&socket).unwrap().rx.extend_from_slice(&buf[..bytes]);
                    while self.connections.contains_key(&socket) && self.next_pdu(socket) {}
                    if self.connections.contains_key(&socket) {
                        self.receive(socket);
                    }
                }
                _ => self.drop_connection(socket),
            },
            _ => {}
        }
    }

    pub(super) fn drop_connection(&mut self, socket: u32) {
        if self.connections.remove(&socket).is_some() {
            self.io.close(SocketId(socket));
        }
    }

    pub(super) fn drop_all(&mut self) {
        let sockets: Vec<u32> = self.connections.keys().copied().collect();
        sockets.into_iter().for_each(|socket| self.drop_connection(socket));
    }

    /// Answers the event request of every association: a namespace changed.
    pub(super) fn resize(&mut self, blocks: u64) {
        self.behaviour.blocks = blocks;
        self.disk.resize(blocks as usize * 512, 0);
        let sockets: Vec<u32> = self.connections.keys().copied().collect();
        for socket in sockets {
            for cid in std::mem::take(&mut self.connections.get_mut(&socket).unwrap().events) {
                self.answer(socket, cid, 0, 4 << 16 | 2);
            }
        }
    }

    fn receive(&mut self, socket: u32) {
        let buf = self.io.buffers().get(4096).unwrap();
        self.io.submit(Token(RECV | u64::from(socket)), Op::Recv { socket: SocketId(socket), buf });
    }

    fn send(&mut self, socket: u32) {
        let connection = self.connections.get_mut(&socket).unwrap();
        if connection.sending || connection.tx.is_empty() {
            return;
        }
        connection.sending = true;
        let bytes = std::mem::take(&mut connection.tx);
        let bufs = bytes.chunks(16 << 10).map(|chunk| {
            let mut buf = self.io.buffers().get(chunk.len()).unwrap();
            buf.copy_from_slice(chunk);
            buf
        });
        let bufs = bufs.map(Into::into).collect();
        self.io.submit(Token(SEND | u64::from(socket)), Op::Send { socket: SocketId(socket), bufs });
    }

    fn next_pdu(&mut self, socket: u32) -> bool {
        let connection = self.connections.get_mut(&socket).unwrap();
        if connection.rx.len() < 8 || connection.rx.len() < u32_at(&connection.rx, 4) {
            return false;
        }
        let rest = connection.rx.split_off(u32_at(&connection.rx, 4));
        let pdu = std::mem::replace(&mut connection.rx, rest);
        let (kind, hlen, pdo) = (pdu[0], usize::from(pdu[2]), usize::from(pdu[3]));
        let (header_digest, data_digest) = connection.digests;
        if kind != 0 && header_digest {
            assert_eq!(u32_at(&pdu, hlen) as u32, crc32c::crc32c(&pdu[..hlen]), "header digest of {kind}");
        }
        let data_end = pdu.len() - if pdo > 0 && data_digest { 4 } else { 0 };
        let data = if pdo > 0 { pdu[pdo..data_end].to_vec() } else { Vec::new() };
        if pdo > 0 {
            assert_eq!(pdo % ((usize::from(self.behaviour.cpda) + 1) * 4), 0, "data is aligned as asked");
            if data_digest {
                assert_eq!(u32_at(&pdu, data_end) as u32, crc32c::crc32c(&data), "data digest of {kind}");
            }
        }
        match kind {
            0 => self.greet(socket, &pdu),
            4 => self.command(socket, pdu[8..72].try_into().unwrap(), &data),
            6 => self.more_data(socket, &pdu, &data),
            other => panic!("the host sent a PDU of type {other}"),
        }
        true
    }

    fn greet(&mut self, socket: u32, pdu: &[u8]) {
        assert_eq!((pdu.len(), pdu[2]), (128, 128));
        let asked = (pdu[11] & 1 != 0, pdu[11] & 2 != 0);
        let behaviour = self.behaviour.clone();
        let connection = self.connections.get_mut(&socket).unwrap();
        assert!(!std::mem::replace(&mut connection.greeted, true));
        connection.digests = (asked.0 && behaviour.digests.0, asked.1 && behaviour.digests.1);
        let mut answer = vec![0; 128];
        answer[..8].copy_from_slice(&[1, 0, 128, 0, 128, 0, 0, 0]);
        answer[10] = behaviour.cpda;
        answer[11] = u8::from(connection.digests.0) | u8::from(connection.digests.1) << 1;
        answer[12..16].copy_from_slice(&behaviour.h2c_max.to_le_bytes());
        connection.tx.extend_from_slice(&answer);
    }

    fn push(&mut self, socket: u32, kind: u8, flags: u8, body: &[u8; 16], data: &[u8]) {
        let corrupt = kind == 7 && self.behaviour.corrupt > 0;
        self.behaviour.corrupt -= u32::from(corrupt);
        let connection = self.connections.get_mut(&socket).unwrap();
        let (header_digest, data_digest) = (connection.digests.0, connection.digests.1 && !data.is_empty());
        let pdo = if data.is_empty() { 0 } else { (24 + if header_digest { 4 } else { 0_usize }).next_multiple_of(8) };
        let plen = if data.is_empty() {
            24 + usize::from(header_digest) * 4
        } else {
            pdo + data.len() + usize::from(data_digest) * 4
        };
        let flags = flags | u8::from(header_digest) | u8::from(data_digest) << 1;
        let mut pdu = vec![kind, flags, 24, pdo as u8];
        pdu.extend_from_slice(&(plen as u32).to_le_bytes());
        pdu.extend_from_slice(body);
        if header_digest {
            pdu.extend_from_slice(&crc32c::crc32c(&pdu).to_le_bytes());
        }
        pdu.resize(pdu.len().max(pdo), 0);
        pdu.extend_from_slice(data);
        if data_digest {
            pdu.extend_from_slice(&crc32c::crc32c(data).to_le_bytes());
        }
        assert_eq!(pdu.len(), plen);
        if corrupt {
            pdu[pdo] ^= 1;
        }
        connection.tx.extend_from_slice(&pdu);
    }

    fn answer(&mut self, socket: u32, cid: u16, status: u16, result: u64) {
        let mut cqe = [0; 16];
        cqe[..8].copy_from_slice(&result.to_le_bytes());
        cqe[12..14].copy_from_slice(&cid.to_le_bytes());
        cqe[14..].copy_from_slice(&(status << 1).to_le_bytes());
        self.push(socket, 5, 0, &cqe, &[]);
    }

    fn answer_data(&mut self, socket: u32, cid: u16, data: &[u8]) {
        let chunk = self.behaviour.c2h_max.min(data.len());
        let count = data.len().div_ceil(chunk);
        for (n, part) in data.chunks(chunk).enumerate() {
            let mut body = [0; 16];
            body[..2].copy_from_slice(&cid.to_le_bytes());
            body[4..8].copy_from_slice(&((n * chunk) as u32).to_le_bytes());
            body[8..12].copy_from_slice(&(part.len() as u32).to_le_bytes());
            let last = n + 1 == count;
            let flags = if last { 4 | u8::from(self.behaviour.success_flag) << 3 } else { 0 };
            self.push(socket, 7, flags, &body, part);
        }
        if !self.behaviour.success_flag {
            self.answer(socket, cid, 0, 0);
        }
    }

    fn ask(&mut self, socket: u32, cid: u16, offset: usize, whole: usize) {
        let mut body = [0; 16];
        body[..2].copy_from_slice(&cid.to_le_bytes());
        body[2..4].copy_from_slice(&cid.to_le_bytes());
        body[4..8].copy_from_slice(&(offset as u32).to_le_bytes());
        body[8..12].copy_from_slice(&((whole - offset).min(self.behaviour.r2t_max) as u32).to_le_bytes());
        self.push(socket, 9, 0, &body, &[]);
    }

    fn more_data(&mut self, socket: u32, pdu: &[u8], data: &[u8]) {
        let cid = u16::from_le_bytes([pdu[10], pdu[11]]);
        assert!(data.len() <= self.behaviour.h2c_max as usize && u32_at(pdu, 16) == data.len());
        let r2t_max = self.behaviour.r2t_max;
        let connection = self.connections.get_mut(&socket).unwrap();
        let (sqe, so_far, asked) = connection.writes.get_mut(&cid).expect("data was asked for");
        assert_eq!(u32_at(pdu, 12), so_far.len(), "data comes in order");
        so_far.extend_from_slice(data);
        let whole = u32_at(&sqe[..], 32);
        let complete = so_far.len() == (*asked).min(whole);
        assert_eq!(pdu[1] & 4 != 0, complete, "LAST ends what was asked for");
        if so_far.len() == whole {
            let (sqe, data, _) = connection.writes.remove(&cid).unwrap();
            self.execute(socket, &sqe, &data);
        } else if complete {
            let at = so_far.len();
            *asked = asked.saturating_add(r2t_max);
            self.ask(socket, cid, at, whole);
        }
    }

    fn command(&mut self, socket: u32, sqe: [u8; 64], data: &[u8]) {
        let cid = u16::from_le_bytes([sqe[2], sqe[3]]);
        if sqe[0] == 0x7f {
            return self.fabrics(socket, cid, &sqe, data);
        }
        let (qid, len) = (self.connections[&socket].qid, u32_at(&sqe, 32));
        if qid == 0 {
            return self.admin(socket, cid, &sqe);
        }
        assert_ne!(qid, 0xffff, "commands come after Connect");
        let writes = matches!(sqe[0], 1 | 5 | 9);
        if writes && sqe[39] == 0x5a {
            assert!(len > self.behaviour.in_capsule as usize, "small data travels in the capsule");
            let r2t_max = self.behaviour.r2t_max;
            self.connections.get_mut(&socket).unwrap().writes.insert(cid, (sqe, Vec::new(), r2t_max));
            return self.ask(socket, cid, 0, len);
        }
        if writes {
            assert!(sqe[39] == 0x01 && data.len() == len && len <= self.behaviour.in_capsule as usize);
        }
        self.execute(socket, &sqe, data);
    }

    fn fabrics(&mut self, socket: u32, cid: u16, sqe: &[u8; 64], data: &[u8]) {
        match sqe[4] {
            1 => {
                assert_eq!((data.len(), sqe[39]), (1024, 0x01));
                let text = |at: usize| {
                    String::from_utf8(data[at..at + 256].split(|&b| b == 0).next().unwrap().to_vec()).unwrap()
                };
                assert_eq!(text(256), self.behaviour.subsystem_nqn);
                assert!(text(512).starts_with("nqn.2014-08.org.nvmexpress:uuid:"));
                let qid = u16::from_le_bytes([sqe[42], sqe[43]]);
                assert_eq!(u16::from_le_bytes([data[16], data[17]]), if qid == 0 { 0xffff } else { 7 });
                self.connects.push(qid);
                match self.behaviour.refuse {
                    Some(status) => self.answer(socket, cid, status, 0),
                    None => {
                        self.connections.get_mut(&socket).unwrap().qid = qid;
                        self.answer(socket, cid, 0, 7);
                    }
                }
            }
            4 => {
                let value = if u32_at(sqe, 44) == 0 { 127 } else { 1 };
                self.answer(socket, cid, 0, value);
            }
            0 => self.answer(socket, cid, 0, 0),
            other => panic!("fabrics command {other}"),
        }
    }

    fn admin(&mut self, socket: u32, cid: u16, sqe: &[u8; 64]) {
        match (sqe[0], sqe[40]) {
            (0x06, cns) => {
                let mut page = vec![0; 4096];
                match cns {
                    1 => {
                        page[77] = 6;
                        page[1792..1796].copy_from_slice(&((self.behaviour.in_capsule + 64) / 16).to_le_bytes());
                    }
                    0 => {
                        page[..8].copy_from_slice(&self.behaviour.blocks.to_le_bytes());
                        page[130] = 9;
                    }
                    3 => {
                        page[..2].copy_from_slice(&[3, 16]);
                        page[4..20].fill(0xab);
                    }
                    other => panic!("identify {other}"),
                }
                self.answer_data(socket, cid, &page);
            }
            (0x02, 0x70) => {
                let bytes = ((u32_at(sqe, 40) >> 16) + 1) * 4;
                let from = u32_at(sqe, 48);
                let mut log = self.discovery_log();
                log.resize(log.len().max(from + bytes), 0);
                self.answer_data(socket, cid, &log[from..from + bytes]);
            }
            (0x02, _) => {
                let bytes = ((u32_at(sqe, 40) >> 16) + 1) * 4;
                self.answer_data(socket, cid, &vec![0; bytes]);
            }
            (0x09, 7) => self.answer(socket, cid, 0, u32_at(sqe, 44) as u64),
            (0x09, _) => self.answer(socket, cid, 0, 0),
            (0x0c, _) => self.connections.get_mut(&socket).unwrap().events.push(cid),
            (0x18, _) => {
                self.keep_alives += 1;
                self.answer(socket, cid, 0, 0);
            }
            (opcode, _) => panic!("admin command {opcode:#x}"),
        }
    }

    /// Generation, count, then so many records of volumes; each reading changes it as often as asked.
    fn discovery_log(&mut self) -> Vec<u8> {
        let records = self.behaviour.discovered;
        let mut log = vec![0; 1024 * (1 + records)];
        log[..8].copy_from_slice(&u64::from(self.behaviour.discovery_changes).to_le_bytes());
        log[8..16].copy_from_slice(&(records as u64).to_le_bytes());
        for (n, record) in log[1024..].chunks_mut(1024).enumerate() {
            record[..3].copy_from_slice(&[3, 1, 2]);
            for (at, text) in [(32, "4420".to_owned()), (256, format!("nqn.test:v{n}")), (512, "127.0.0.1".to_owned())]
            {
                record[at..at + text.len()].copy_from_slice(text.as_bytes());
            }
        }
        self.behaviour.discovery_changes = self.behaviour.discovery_changes.saturating_sub(1);
        log
    }

    fn execute(&mut self, socket: u32, sqe: &[u8; 64], data: &[u8]) {
        let cid = u16::from_le_bytes([sqe[2], sqe[3]]);
        let (slba, blocks) = (u64::from_le_bytes(sqe[40..48].try_into().unwrap()), (u32_at(sqe, 48) & 0xffff) + 1);
        let (from, to) = (slba as usize * 512, slba as usize * 512 + blocks * 512);
        if self.behaviour.silent {
            return;
        }
        self.executed.push((sqe[0], slba));
        let lost = match &mut self.behaviour.break_after {
            Some(left) => {
                *left -= 1;
                *left == 0
            }
            None => false,
        };
        let fused = sqe[1] & 3;
        let compare_failed = std::mem::take(&mut self.connections.get_mut(&socket).unwrap().compare_failed);
        let mut status = self.behaviour.fail_io.unwrap_or(0);
        let mut read = None;
        match sqe[0] {
            _ if status != 0 => {}
            1 if fused == 2 && compare_failed => status = 0x0a,
            1 => self.disk[from..to].copy_from_slice(data),
            2 => read = Some(self.disk[from..to].to_vec()),
            5 if self.disk[from..to] != *data => {
                status = 0x285;
                self.connections.get_mut(&socket).unwrap().compare_failed = fused == 1;
            }
            5 | 0 => {}
            8 => self.disk[from..to].fill(0),
            9 => {
                let (blocks, at) = (u32_at(data, 4), u64::from_le_bytes(data[8..16].try_into().unwrap()) as usize);
                self.disk[at * 512..(at + blocks) * 512].fill(0);
            }
            other => panic!("I/O command {other:#x}"),
        }
        if lost {
            self.behaviour.break_after = None;
            return self.drop_all();
        }
        match read {
            Some(data) => self.answer_data(socket, cid, &data),
            None => self.answer(socket, cid, status, 0),
        }
    }
}
