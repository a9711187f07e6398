//! Peers that mean harm, or are broken: each harms only its own connection.

use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Op, Payload, SocketId, Token};
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::wire::command::Sqe;
use crate::wire::completion::{Cqe, NvmeStatus};
use crate::wire::fabrics::{Connect, ConnectData};
use crate::wire::pdu::{self, Agreed, CapsuleCmd, CapsuleResp, FatalStatus, InitConnection, PduType, TermReq};
use crate::wire::sgl::Sgl;

/// A peer that sends whatever bytes it is given.
pub(super) struct Rogue {
    pub(super) io: SimIo,
    socket: SocketId,
    pub(super) received: Vec<u8>,
    pub(super) closed: bool,
    /// Whether it is one of those that send a byte now and then.
    pub(super) drips: bool,
}

impl Rogue {
    pub(super) fn connect(world: &World, target: &mut Target) -> Rogue {
        let mut io = world.outside();
        io.submit(Token(0), Op::Connect { addr: target.addr });
        for _ in 0..10_000 {
            target.turn();
            let mut completions = Vec::new();
            io.poll(Wait::Until(io.now().plus_ns(1_000_000)), &mut completions);
            if let Some(completion) = completions.pop() {
                let Payload::Socket(socket, _) = completion.payload else { panic!("{completion:?}") };
                let socket = io.attach(socket).unwrap();
                let mut rogue = Rogue { io, socket, received: Vec::new(), closed: false, drips: false };
                rogue.receive();
                return rogue;
            }
        }
        panic!("no connection");
    }

    fn receive(&mut self) {
        let buf = self.io.buffers().get(4096).unwrap();
        self.io.submit(Token(1), Op::Recv { socket: self.socket, buf });
    }

    pub(super) fn send(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(256 << 10) {
            let mut buf: Buf = self.io.buffers().get(chunk.len()).unwrap();
            buf.copy_from_slice(chunk);
            self.io.submit(Token(2), Op::Send { socket: self.socket, bufs: vec![buf.into()] });
        }
    }

    /// Both run until `done`, or for a while.
    pub(super) fn run(&mut self, target: &mut Target, mut done: impl FnMut(&Rogue) -> bool) -> bool {
        for _ in 0..3000 {
            if done(self) {
                return true;
            }
            target.turn();
            self.turn();
        }
        done(self)
    }

    /// Takes what has come.
    pub(super) fn turn(&mut self) {
        let mut completions = Vec::new();
        self.io.poll(Wait::Until(self.io.now().plus_ns(1_000_000)), &mut completions);
        for completion in completions {
            if completion.token == Token(1) {
                let count = completion.result.unwrap_or(0);
                let Payload::Buf(buf) = completion.payload else { panic!("a receive returns its buffer") };
                self.received.extend_from_slice(&buf[..count]);
                if count == 0 {
                    self.closed = true;
                } else {
                    drop(buf);
                    self.receive();
                }
            }
        }
    }

    pub(super) fn greet(&mut self, target: &mut Target) {
        self.send(init(0).as_bytes());
        assert!(self.run(target, |rogue| rogue.received.len() >= 128), "an ICReq is answered");
        self.received.clear();
    }

    /// The termination request that the target sends before it closes.
    fn termination(&mut self, target: &mut Target) -> (u16, u32) {
        assert!(self.run(target, |rogue| rogue.closed), "the connection is closed");
        let at = self.received.len().checked_sub(24).expect("a termination request came first");
        let term = TermReq::read_from_bytes(&self.received[at..]).unwrap();
        assert_eq!(term.common.pdu_type, PduType::C2hTermReq as u8);
        (term.fes.get(), u32::from_le_bytes(term.fei))
    }

    pub(super) fn status(&mut self, target: &mut Target) -> NvmeStatus {
        self.completion(target).nvme_status()
    }

    pub(super) fn completion(&mut self, target: &mut Target) -> Cqe {
        assert!(self.run(target, |rogue| rogue.received.len() >= 24), "the command is answered");
        let response = CapsuleResp::read_from_bytes(&self.received[..24]).unwrap();
        self.received.drain(..24);
        response.cqe
    }
}

pub(super) fn agreed() -> Agreed {
    Agreed { header_digest: false, data_digest: false, pda: 4 }
}

fn init(pfv: u16) -> InitConnection {
    InitConnection {
        common: pdu::common(PduType::IcReq, 0, &agreed(), 0),
        pfv: pfv.into(),
        pda: 0,
        digests: 0,
        limit: 0.into(),
        reserved: [0; 112],
    }
}

pub(super) fn capsule(sqe: Sqe, data: &[u8]) -> Vec<u8> {
    let header = CapsuleCmd { common: pdu::common(PduType::CapsuleCmd, 0, &agreed(), data.len()), sqe };
    [header.as_bytes(), data].concat()
}

fn check_others_are_served(world: &World, target: &mut Target) {
    let mut other = Rogue::connect(world, target);
    other.greet(target);
}

#[test]
fn garbage_instead_of_an_icreq_closes_that_connection_alone() {
    let world = world(1);
    let mut target = Target::new(&world, |_| {});
    let mut rogue = Rogue::connect(&world, &mut target);
    rogue.send(b"GET / HTTP/1.1\r\nHost: target\r\n\r\n");
    assert!(rogue.run(&mut target, |rogue| rogue.closed));
    check_others_are_served(&world, &mut target);
}

#[test]
fn an_icreq_of_another_format_is_refused() {
    let world = world(2);
    let mut target = Target::new(&world, |_| {});
    let mut rogue = Rogue::connect(&world, &mut target);
    rogue.send(init(1).as_bytes());
    assert!(rogue.run(&mut target, |rogue| rogue.closed));
}

#[test]
fn a_second_icreq_is_a_sequence_error() {
    let world = world(3);
    let mut target = Target::new(&world, |_| {});
    let mut rogue = Rogue::connect(&world, &mut target);
    rogue.greet(&mut target);
    rogue.send(init(0).as_bytes());
    assert_eq!(rogue.termination(&mut target).0, FatalStatus::Sequence as u16);
}

#[test]
fn a_pdu_longer_than_agreed_is_terminated_with_the_position_of_its_length() {
    let world = world(4);
    let mut target = Target::new(&world, |_| {});
    let mut rogue = Rogue::connect(&world, &mut target);
    rogue.greet(&mut target);
    let mut bytes = capsule(Sqe::default(), &[0; 512]);
    bytes[4..8].copy_from_slice(&(64u32 << 20).to_le_bytes());
    rogue.send(&bytes);
    assert_eq!(rogue.termination(&mut target), (FatalStatus::InvalidHeader as u16, 4));
    check_others_are_served(&world, &mut target);
}

#[test]
fn a_command_before_connect_is_a_sequence_error_of_that_command() {
    let world = world(5);
    let mut target = Target::new(&world, |_| {});
    let mut rogue = Rogue::connect(&world, &mut target);
    rogue.greet(&mut target);
    rogue.send(&capsule(Sqe::on_blocks(crate::wire::command::nvm::READ, 1, 0, 8).with_data(Sgl::transport(4096)), &[]));
    assert!(rogue.status(&mut target).is(NvmeStatus::COMMAND_SEQUENCE_ERROR));
    assert!(target.held.is_empty());
}

#[test]
fn h2c_data_that_nobody_asked_for_is_terminated() {
    let world = world(6);
    let mut target = Target::new(&world, |_| {});
    let mut rogue = Rogue::connect(&world, &mut target);
    rogue.greet(&mut target);
    let header = pdu::Transfer {
        common: pdu::common(PduType::H2cData, pdu::flags::LAST, &agreed(), 512),
        cccid: 1.into(),
        ttag: 3.into(),
        offset: 0.into(),
        length: 512.into(),
        reserved: [0; 4],
    };
    rogue.send(&[header.as_bytes(), &[0; 512]].concat());
    assert_eq!(rogue.termination(&mut target), (FatalStatus::InvalidHeader as u16, 10));
}

#[test]
fn an_sgl_beyond_the_capsule_is_refused_and_the_connection_goes_on() {
    let world = world(7);
    let mut target = Target::new(&world, |_| {});
    let mut rogue = Rogue::connect(&world, &mut target);
    rogue.greet(&mut target);
    for _ in 0..3 {
        rogue.send(&capsule(Sqe::new(0x7f, 1).with_data(Sgl::in_capsule(1024)), &[0; 512]));
        assert!(rogue.status(&mut target).is(NvmeStatus::DATA_SGL_LENGTH_INVALID));
    }
}

#[test]
fn a_connect_to_an_unknown_volume_says_which_parameter_is_wrong() {
    let world = world(8);
    let mut target = Target::new(&world, |_| {});
    let mut rogue = Rogue::connect(&world, &mut target);
    rogue.greet(&mut target);
    let data = ConnectData::new([1; 16], 0xffff, "nqn.2026-11.io.ringway:nobody", "nqn.2014-08.org.nvmexpress:uuid:x");
    rogue.send(&capsule(Connect::new(0, 32, 0).sqe().with_data(Sgl::in_capsule(1024)), data.as_bytes()));
    assert!(rogue.status(&mut target).is(NvmeStatus::CONNECT_INVALID_PARAMETERS));
}

#[test]
fn a_peer_that_vanishes_in_the_middle_of_a_pdu_leaves_nothing_behind() {
    let world = world(9);
    let mut target = Target::new(&world, |_| {});
    for cut in [1, 7, 40, 100, 128] {
        let mut rogue = Rogue::connect(&world, &mut target);
        rogue.send(&[init(0).as_bytes(), &capsule(Sqe::default(), &[7; 4000])].concat()[..cut + 128]);
        rogue.run(&mut target, |_| false);
        rogue.io.close(rogue.socket);
        for _ in 0..3000 {
            target.turn();
        }
    }
    assert_eq!(target.transport.connections(), 0);
}

#[test]
fn a_peer_that_connects_and_says_nothing_is_given_up() {
    let world = world(10);
    let mut target = Target::new(&world, |_| {});
    let mut rogue = Rogue::connect(&world, &mut target);
    for _ in 0..40 {
        world.advance_ns(1_000_000_000);
        target.turn();
    }
    assert!(rogue.run(&mut target, |rogue| rogue.closed));
}

#[test]
fn any_bytes_after_the_greeting_harm_only_their_connection() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let world = world(11);
    let mut target = Target::new(&world, |_| {});
    for round in 0..60 {
        let mut rogue = Rogue::connect(&world, &mut target);
        rogue.greet(&mut target);
        let mut bytes = capsule(Sqe::default(), &[0; 64]);
        for byte in &mut bytes {
            if round % 2 == 0 || random() % 8 == 0 {
                *byte = random() as u8;
            }
        }
        rogue.send(&bytes);
        rogue.run(&mut target, |rogue| rogue.closed || !rogue.received.is_empty());
        rogue.io.close(rogue.socket);
    }
    check_others_are_served(&world, &mut target);
}
