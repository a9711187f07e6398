//! One connection: from the greeting to the last buffer given back.
//!
//! ```text
//! Negotiating --chosen--> Admitting --let in--> Open --DISC, the target stops--> Ending --all sent--> Closing --> (slot free)
//!      |  ^-----refused------/                     \--peer gone, error, kill------------------------->/
//!      \--STARTTLS--> Shaking --> Negotiating
//! ```
//! A closing connection keeps its slot until the kernel has given back its receive and its send, and the shards its requests.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use ringway_reactor::buf::Buf;
use ringway_reactor::data::{Data, Piece};
use ringway_reactor::io::{Io, SocketId};
use slab::Slab;

use super::answer::Ready;
use super::command::{PieceOf, Slot, Writing};
use super::negotiate::{Agreed, Broken, Chosen, Negotiation, Step, Tls};
use super::shared::Admission;
use super::tls::TlsStream;
use super::wire::Asked;
use super::{Cx, token};
use crate::directory::volume_nqn;
use crate::ids::{AssociationId, ExportId, VolumeId};
use crate::transport::stream::{Inflow, Input, Output};
use crate::transport::{ConnectionSeen, Peer};

/// Requests of one connection at a time: more wait in its socket.
pub(super) const REQUESTS_MAX: usize = 256;
/// Requests that a connection may begin in one turn, so that the others have theirs.
const TURN_REQUESTS: u64 = 32;
/// Ticks (half seconds) that a negotiation may take, and the data of one piece, and an answer on its way out.
const PATIENCE_TICKS: u64 = 60;
/// The same while somebody finds no buffer.
const PRESSED_TICKS: u64 = 10;
/// How long a refusal counts as somebody waiting.
const PRESSURE_TICKS: u64 = 2;
/// Bytes of the buffers in which answers to options go out.
const REPLY_BYTES: usize = 4096;

/// An export that is being served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Serving {
    pub(super) export: ExportId,
    pub(super) volume: VolumeId,
    pub(super) association: AssociationId,
    pub(super) read_only: bool,
    pub(super) agreed: Agreed,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Negotiating,
    /// Waits to be let in.
    Admitting,
    /// TLS begins.
    Shaking,
    Open(Serving),
    /// What there is to say is said; nothing is read any more.
    Ending,
    /// The socket is closed; what is in flight comes back.
    Closing,
}

/// Which export a connection waits for.
enum Choice {
    By(Box<Chosen>),
    /// The only one of a socket whose clients are not asked.
    Oldstyle,
}

/// One NBD connection.
pub(super) struct Connection {
    pub(super) index: usize,
    number: u64,
    pub(super) socket: SocketId,
    /// To see whether the peer has left, until it is let in.
    watched: Option<OwnedFd>,
    pub(super) peer: String,
    listener: PathBuf,
    /// The volume's NQN, once it is served.
    subsystem: String,
    pub(super) phase: Phase,
    negotiation: Negotiation,
    choice: Option<Choice>,
    association: Option<AssociationId>,
    pub(super) input: Input,
    pub(super) output: Output,
    pub(super) tls: Option<Box<TlsStream>>,
    /// Data of a write on its way in.
    pub(super) inflow: Option<Inflow>,
    pub(super) writing: Option<Writing>,
    pub(super) requests: Slab<Slot>,
    pub(super) pieces: Slab<PieceOf>,
    /// Requests that have pieces to send, in order.
    pub(super) issuing: VecDeque<usize>,
    /// Answers that wait for a buffer, in order.
    pub(super) unsent: VecDeque<Ready>,
    pub(super) commands_taken: u64,
    pub(super) in_flight: usize,
    /// Bytes of buffers that requests and unsent answers hold; those on their way out are the output's.
    pub(super) bytes_held: usize,
    starving: bool,
    sated: bool,
    /// The client has said that it leaves.
    pub(super) leaving: bool,
    began: u64,
    /// Since which tick the peer owes the data of a piece.
    pub(super) owing_since: Option<u64>,
    /// Bytes sent as of the tick in which their number last changed, and that tick.
    sent: (u64, u64),
}

impl Connection {
    pub(super) fn new(
        (index, number): (usize, u64),
        socket: SocketId,
        watched: Option<OwnedFd>,
        (peer, listener): (String, PathBuf),
        ticks: u64,
    ) -> Connection {
        Connection {
            index,
            number,
            socket,
            watched,
            peer,
            listener,
            subsystem: String::new(),
            phase: Phase::Negotiating,
            negotiation: Negotiation::new(Tls::None),
            choice: None,
            association: None,
            input: Input::new(),
            output: Output::default(),
            tls: None,
            inflow: None,
            writing: None,
            requests: Slab::new(),
            pieces: Slab::new(),
            issuing: VecDeque::new(),
            unsent: VecDeque::new(),
            commands_taken: 0,
            in_flight: 0,
            bytes_held: 0,
            starving: false,
            sated: false,
            leaving: false,
            began: ticks,
            owing_since: None,
            sent: (0, ticks),
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn association(&self) -> Option<AssociationId> {
        self.association
    }

    /// What there is to know of it.
    pub(super) fn seen(&self) -> ConnectionSeen<'_> {
        ConnectionSeen {
            number: crate::tokens::connection(crate::tokens::NBD, self.number),
            peer: Peer::Nbd(&self.peer),
            queue: 0,
            subsystem: &self.subsystem,
            commands: self.commands_taken,
            bytes_received: self.input.bytes_received,
            bytes_sent: self.wire().bytes_sent,
            in_flight: self.requests.len() as u64,
            fabric: None,
        }
    }

    /// Whether its slot may be given to another connection.
    pub(super) fn is_gone(&self) -> bool {
        self.phase == Phase::Closing && !self.input.is_posted() && !self.wire().is_in_flight() && self.in_flight == 0
    }

    /// What the socket is given.
    fn wire(&self) -> &Output {
        self.tls.as_ref().map_or(&self.output, |tls| &tls.wire)
    }

    /// Bytes of buffers that answers on their way out hold.
    pub(super) fn bytes_leaving(&self) -> usize {
        self.output.bytes_held() + self.tls.as_ref().map_or(0, |tls| tls.bytes_held())
    }

    fn is_idle(&self) -> bool {
        self.output.is_idle() && self.tls.as_ref().is_none_or(|tls| !tls.is_pending() && tls.wire.is_idle())
    }

    /// Tries again in a later turn.
    pub(super) fn starve<I>(&mut self, cx: &mut Cx<'_, I>) {
        if self.begin_to_starve() {
            cx.starved.push_back(self.index);
        }
    }

    /// Whether it has to be put in the line of those who wait.
    pub(super) fn begin_to_starve(&mut self) -> bool {
        !std::mem::replace(&mut self.starving, true)
    }

    // ---- bytes

    fn unread(&self) -> &[u8] {
        match &self.tls {
            None => self.input.unread(),
            Some(tls) => tls.unread(),
        }
    }

    fn consume(&mut self, count: usize) {
        match &mut self.tls {
            None => self.input.consume(count),
            Some(tls) => tls.consume(count),
        }
    }

    /// Posts the next receive. `false`: there is no buffer for it now.
    fn post<I: Io>(&mut self, cx: &mut Cx<'_, I>) -> bool {
        let inflow = if self.tls.is_none() { self.inflow.as_mut() } else { None };
        let posted = self.input.post(cx.io, self.socket, token::receive(self.index), inflow);
        if !posted {
            *cx.pressed = cx.ticks;
        }
        posted
    }

    /// A receive ended.
    pub(super) fn on_received<I: Io>(&mut self, cx: &mut Cx<'_, I>, buf: Buf, count: usize) {
        let inflow = if self.tls.is_none() { self.inflow.as_mut() } else { None };
        self.input.completed(buf, count, inflow);
        if self.phase == Phase::Closing {
            self.input.clear();
            self.inflow = None;
            return;
        }
        if count == 0 {
            return self.close(cx, "the client closed the connection");
        }
        if let Some(tls) = &mut self.tls {
            let records = self.input.unread();
            let taken = tls.receive(records);
            let len = records.len();
            self.input.consume(len);
            // An alert says what is wrong, if it can still be sent.
            cx.dirty.push(self.index);
            if let Err(error) = taken {
                cx.stats.broken += 1;
                tracing::warn!(peer = self.peer, %error, "TLS of an NBD connection fails");
                self.phase = Phase::Ending;
                return;
            }
        }
        self.advance(cx);
    }

    /// Submits everything pending as one send, unless one is in flight. `false`: there is no buffer for all of it now.
    pub(super) fn flush<I: Io>(&mut self, io: &mut I) -> bool {
        if self.phase == Phase::Closing {
            return true;
        }
        let token = token::send(self.index);
        match &mut self.tls {
            None => {
                self.output.submit(io, self.socket, token);
                true
            }
            Some(tls) => tls.flush(io, self.socket, token, &mut self.output),
        }
    }

    /// A send ended.
    pub(super) fn on_sent<I: Io>(&mut self, cx: &mut Cx<'_, I>, bufs: Vec<Piece>, count: usize) {
        match &mut self.tls {
            None => self.output.completed(bufs, count),
            Some(tls) => tls.wire.completed(bufs, count),
        }
        if self.phase == Phase::Closing {
            return self.output.clear();
        }
        if !self.is_idle() {
            cx.dirty.push(self.index);
        } else if self.phase == Phase::Ending {
            return self.close(cx, "all is said");
        }
        self.leave_if_settled(cx);
        self.resume(cx);
    }

    // ---- negotiation

    /// The connection has come.
    pub(super) fn greet<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        if cx.shared.is_oldstyle(&self.listener) {
            self.choice = Some(Choice::Oldstyle);
            self.phase = Phase::Admitting;
            self.ask_in(cx);
            return self.advance(cx);
        }
        self.negotiation = Negotiation::new(cx.shared.tls_of(&self.listener));
        if self.say_plain(cx, &Negotiation::greeting()) {
            self.advance(cx);
        }
    }

    /// Sends bytes that are no answer to a request. `false`: it had to be closed, for want of a buffer.
    fn say_plain<I: Io>(&mut self, cx: &mut Cx<'_, I>, bytes: &[u8]) -> bool {
        for chunk in bytes.chunks(REPLY_BYTES) {
            let Some(mut buf) = cx.io.buffers().get(chunk.len()) else {
                self.close(cx, "no buffer is free for its negotiation");
                return false;
            };
            buf.copy_from_slice(chunk);
            self.output.data(Data::Own(buf));
            cx.dirty.push(self.index);
        }
        true
    }

    fn end_broken<I: Io>(&mut self, cx: &mut Cx<'_, I>, broken: Broken) {
        cx.stats.broken += 1;
        tracing::warn!(peer = self.peer, why = broken.0, "an NBD connection is ended");
        self.close(cx, broken.0);
    }

    /// One step of the negotiation. `false`: nothing more can be done now.
    fn negotiate<I: Io>(&mut self, cx: &mut Cx<'_, I>) -> bool {
        let offers = cx.shared.offers(&self.listener, cx.directory);
        let mut out = Vec::new();
        let unread = match &self.tls {
            None => self.input.unread(),
            Some(tls) => tls.unread(),
        };
        let step = match self.negotiation.take(unread, &offers, &mut out) {
            Ok(step) => step,
            Err(broken) => {
                self.end_broken(cx, broken);
                return false;
            }
        };
        if !self.say_plain(cx, &out) {
            return false;
        }
        match step {
            Step::Starved => {
                if !self.post(cx) {
                    self.starve(cx);
                }
                false
            }
            Step::Used(count) => {
                self.consume(count);
                true
            }
            Step::Chosen(count, chosen) => {
                self.consume(count);
                self.choice = Some(Choice::By(Box::new(chosen)));
                self.phase = Phase::Admitting;
                self.ask_in(cx);
                true
            }
            Step::StartTls(count) => {
                self.consume(count);
                self.start_tls(cx);
                true
            }
            Step::End(count) => {
                self.consume(count);
                self.phase = Phase::Ending;
                false
            }
        }
    }

    fn start_tls<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        // Bytes before the handshake would have been sent in the open by whoever stands between.
        if !self.input.unread().is_empty() {
            return self.end_broken(cx, Broken("bytes come with STARTTLS that are not encrypted"));
        }
        let config = cx.shared.tls().expect("it was offered");
        match TlsStream::new(config) {
            // The answer goes out in the open, once the turn ends: the handshake comes after it.
            Ok(tls) => {
                self.output.submit(cx.io, self.socket, token::send(self.index));
                let mut tls = Box::new(tls);
                std::mem::swap(&mut tls.wire, &mut self.output);
                self.tls = Some(tls);
                self.phase = Phase::Shaking;
            }
            Err(error) => {
                tracing::error!(%error, "TLS cannot be begun");
                self.close(cx, "TLS cannot be begun");
            }
        }
    }

    /// Asks to be let in, and answers the client if it can be told.
    fn ask_in<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        let exports = cx.shared.exports(&self.listener);
        let at = match &self.choice {
            Some(Choice::By(chosen)) => exports.iter().find(|export| {
                cx.directory.volume(export.volume).is_some_and(|record| record.name == chosen.offer.name)
            }),
            _ => exports.first(),
        };
        let admission = match at {
            None => Admission::Refused("the export is gone".to_owned()),
            Some(_) if cx.draining => Admission::Refused("the target is stopping".to_owned()),
            Some(export) => cx.shared.admit(self.number, export, cx.directory, self.watched.as_ref(), &self.peer),
        };
        match admission {
            Admission::Wait => self.starve(cx),
            Admission::Refused(why) => self.turn_away(cx, &why),
            Admission::In(association) => {
                let export = at.expect("only what is there lets in");
                self.association = Some(association);
                self.watched = None;
                let record = cx.directory.volume(export.volume).expect("it was just admitted");
                self.subsystem = volume_nqn(record);
                let read_only = export.read_only || cx.directory.is_write_protected(record);
                let (volume, id) = (export.volume, export.id);
                self.welcome(cx, Serving { export: id, volume, association, read_only, agreed: Agreed::default() });
            }
        }
    }

    fn turn_away<I: Io>(&mut self, cx: &mut Cx<'_, I>, why: &str) {
        tracing::warn!(peer = self.peer, why, "an NBD client is refused");
        let mut out = Vec::new();
        match self.choice.take() {
            Some(Choice::By(chosen)) => match self.negotiation.refused(&chosen, why, &mut out) {
                Ok(()) => {
                    self.phase = Phase::Negotiating;
                    self.say_plain(cx, &out);
                }
                Err(broken) => self.close(cx, broken.0),
            },
            _ => self.close(cx, why),
        }
    }

    fn welcome<I: Io>(&mut self, cx: &mut Cx<'_, I>, mut serving: Serving) {
        let mut out = Vec::new();
        match self.choice.take() {
            Some(Choice::By(chosen)) => serving.agreed = self.negotiation.admitted(&chosen, &mut out),
            _ => {
                let offers = cx.shared.offers(&self.listener, cx.directory);
                let Some(offer) = offers.first() else { return self.close(cx, "the export is gone") };
                out = Negotiation::oldstyle(offer);
            }
        }
        tracing::info!(peer = self.peer, volume = %serving.volume, "an NBD client is attached");
        self.phase = Phase::Open(serving);
        self.say_plain(cx, &out);
    }

    // ---- going on

    /// Reads on for as long as there is something to read and somewhere to put it, then posts the next receive.
    pub(super) fn advance<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        let enough = self.commands_taken + TURN_REQUESTS;
        while !self.input.is_posted() {
            let goes_on = match self.phase {
                Phase::Negotiating => self.negotiate(cx),
                Phase::Shaking => self.shake(cx),
                Phase::Open(serving) => {
                    if self.commands_taken >= enough {
                        if !std::mem::replace(&mut self.sated, true) {
                            cx.sated.push(self.index);
                        }
                        return;
                    }
                    self.take(cx, serving)
                }
                Phase::Admitting | Phase::Ending | Phase::Closing => false,
            };
            if !goes_on {
                return;
            }
        }
    }

    fn shake<I: Io>(&mut self, cx: &mut Cx<'_, I>) -> bool {
        let shaking = self.tls.as_ref().is_some_and(|tls| tls.is_shaking());
        if shaking {
            if !self.post(cx) {
                self.starve(cx);
            }
            return false;
        }
        self.negotiation.secured();
        self.phase = Phase::Negotiating;
        true
    }

    /// The next of a request's data, or the next request. `false`: nothing more can be taken now.
    fn take<I: Io>(&mut self, cx: &mut Cx<'_, I>, serving: Serving) -> bool {
        if let Some(inflow) = &mut self.inflow {
            let before = inflow.at;
            let whole = match &mut self.tls {
                None => self.input.fill(inflow),
                Some(tls) => tls.fill(inflow),
            };
            cx.stats.bytes_copied += (inflow.at - before) as u64;
            if whole {
                let inflow = self.inflow.take().expect("it was just filled");
                self.data_arrived(cx, serving, inflow);
                return true;
            }
        } else if self.writing.is_some() {
            // The next piece has no buffer yet.
            return self.supply(cx);
        } else {
            if self.leaving || cx.draining || !self.has_room() {
                return false;
            }
            match Asked::parse(self.unread()) {
                Ok(Some(asked)) => {
                    self.consume(super::wire::REQUEST_BYTES);
                    self.commands_taken += 1;
                    self.begin(cx, serving, asked);
                    return true;
                }
                Ok(None) => {}
                Err(_) => {
                    self.end_broken(cx, Broken("a request does not begin as one"));
                    return false;
                }
            }
        }
        if !self.post(cx) {
            self.starve(cx);
        }
        false
    }

    /// The next turn has come for what the last one left unread.
    pub(super) fn go_on<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        self.sated = false;
        self.advance(cx);
    }

    /// Something has ended: others may go on.
    pub(super) fn resume<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        self.say_unsent(cx);
        self.issue(cx);
        if !self.sated {
            self.advance(cx);
        }
    }

    /// Tries again what waited.
    pub(super) fn retry<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        self.starving = false;
        if self.phase == Phase::Closing {
            return;
        }
        if self.phase == Phase::Admitting {
            self.ask_in(cx);
        }
        if self.tls.is_some() {
            cx.dirty.push(self.index);
        }
        self.resume(cx);
    }

    // ---- the end

    /// Ends a connection that was told to go, or says so itself, when everything it has asked for is answered.
    pub(super) fn leave_if_settled<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        let is_stopped = cx.draining && self.inflow.is_none() && self.writing.is_none();
        let goes = match self.phase {
            Phase::Open(_) => self.leaving || is_stopped,
            Phase::Closing => false,
            _ => cx.draining,
        };
        if goes && self.requests.is_empty() && self.unsent.is_empty() && self.is_idle() {
            self.close(cx, if self.leaving { "the client leaves" } else { "the target is stopping" });
        }
    }

    /// Ends a client that holds what others need, or that never comes to the point.
    pub(super) fn check_deadlines<I: Io>(&mut self, cx: &mut Cx<'_, I>) {
        let now = cx.ticks;
        let sent = self.wire().bytes_sent;
        if !self.wire().is_in_flight() || sent != self.sent.0 {
            self.sent = (sent, now);
        }
        let pressed = *cx.pressed + PRESSURE_TICKS >= now;
        let limit = if pressed { PRESSED_TICKS } else { PATIENCE_TICKS };
        let why = match self.phase {
            Phase::Closing => return,
            Phase::Ending if self.is_idle() => return self.close(cx, "all is said"),
            Phase::Negotiating | Phase::Shaking if now - self.began > PATIENCE_TICKS => "it never chooses an export",
            _ if self.owing_since.is_some_and(|since| now - since > limit) => "the data of a request does not come",
            _ if now - self.sent.1 > limit => "what was sent is not taken",
            _ => return,
        };
        tracing::warn!(peer = self.peer, why, "an NBD connection is ended");
        self.close(cx, why);
    }

    /// The export is gone.
    pub(super) fn end_export<I: Io>(&mut self, cx: &mut Cx<'_, I>, export: ExportId) {
        if matches!(self.phase, Phase::Open(serving) if serving.export == export) {
            self.close(cx, "its export is gone");
        }
    }

    /// Closes the socket; what is in flight comes back to a connection that no longer answers.
    pub(super) fn close<I: Io>(&mut self, cx: &mut Cx<'_, I>, why: &str) {
        if self.phase == Phase::Closing {
            return;
        }
        tracing::debug!(peer = self.peer, why, "an NBD connection closes");
        self.phase = Phase::Closing;
        self.watched = None;
        cx.shared.closing(self.number);
        cx.io.close(self.socket);
        self.drop_requests(cx);
        if !self.input.is_posted() {
            self.inflow = None;
        }
        self.input.clear();
        self.output.clear();
        if let Some(tls) = &mut self.tls {
            tls.wire.clear();
        }
        cx.closing.push(self.index);
    }
}
