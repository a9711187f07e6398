//! The simulated network: connections that keep their own order and nothing else.
//!
//! Invariants: bytes of a connection arrive in order, once or not at all, and never after a reset was seen; a sender has at
//! most a window of bytes that the other side has not read; an end leaves the table when its owner has closed it.

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::buf::Buf;
use crate::data::Piece;
use crate::io::{IoError, Payload, Socket, Token};

use super::fault::{CANCELLED, IN_USE, REFUSED, RESET};
use super::page::IdMap;
use super::world::{NO_DEVICE, Ready, State, What};

/// Listeners and the ends of connections.
#[derive(Default)]
pub(super) struct Net {
    pub(super) ends: IdMap<u32, End>,
    listeners: IdMap<u32, Listener>,
    ids: u32,
    ports: u16,
}

/// One end of a connection.
pub(super) struct End {
    peer: u32,
    /// The reactor that it is attached to.
    owner: Option<usize>,
    /// The life of the process that has it, as of [`super::world::Reactor::life`].
    life: Option<u32>,
    arrived: VecDeque<u8>,
    /// The peer will send nothing more.
    fin: bool,
    reset: bool,
    /// What is on its way to here is lost.
    cut: bool,
    /// Nothing may be sent any more.
    shut: bool,
    recvs: VecDeque<(Token, Buf)>,
    send: Option<Sending>,
    /// Bytes sent and not read by the peer.
    unread: usize,
    /// When the last of what this end sent arrives: the order of a connection.
    last_arrival: u64,
}

struct Sending {
    token: Token,
    bufs: Vec<Piece>,
    /// Buffer, and offset in it, of the first byte that is not on its way.
    next: (usize, usize),
    sent: usize,
}

struct Listener {
    addr: SocketAddr,
    reactor: usize,
    life: Option<u32>,
    accepts: VecDeque<Token>,
    backlog: VecDeque<(u32, SocketAddr)>,
    /// Its process has died; the address stays taken until the kernel has torn the ring down.
    dead: bool,
}

/// What happens in the network at some moment.
pub(super) enum NetEvent {
    Segment { to: u32, bytes: Vec<u8> },
    Fin { to: u32 },
    Reset { to: u32 },
    Syn { reactor: usize, token: Token, addr: SocketAddr, from: SocketAddr },
    Connected { reactor: usize, token: Token, addr: SocketAddr, end: Option<u32> },
    ListenerGone { listener: u32 },
}

impl End {
    fn new(peer: u32, life: Option<u32>) -> Self {
        Self {
            peer,
            owner: None,
            life,
            arrived: VecDeque::new(),
            fin: false,
            reset: false,
            cut: false,
            shut: false,
            recvs: VecDeque::new(),
            send: None,
            unread: 0,
            last_arrival: 0,
        }
    }
}

impl Net {
    fn listener_at(&self, addr: SocketAddr) -> Option<u32> {
        let serves = |listener: &&Listener| {
            listener.addr == addr || (listener.addr.ip().is_unspecified() && listener.addr.port() == addr.port())
        };
        self.listeners.iter().filter(|(_, listener)| serves(listener)).map(|(&id, _)| id).min()
    }

    fn port(&mut self) -> u16 {
        self.ports = self.ports % 20_000 + 1;
        40_000 + self.ports
    }

    /// The ends that satisfy `wanted`, in the order of their making.
    pub(super) fn select(&self, wanted: impl Fn(&End) -> bool) -> Vec<u32> {
        let mut ids: Vec<u32> = self.ends.iter().filter(|(_, end)| wanted(end)).map(|(&id, _)| id).collect();
        ids.sort_unstable();
        ids
    }
}

impl State {
    fn delay(&mut self) -> u64 {
        let range = self.config.network_ns.clone();
        self.rng.within(&range)
    }

    fn net_event(&mut self, at: u64, event: NetEvent) {
        self.schedule(at, What::Net(event));
    }

    fn finish(&mut self, reactor: usize, token: Token, result: Result<usize, IoError>, payload: Payload) {
        self.trace(&[3, token.0, self.now, result.map_or(u64::MAX, |bytes| bytes as u64)]);
        self.push(reactor, Ready { token, result, payload, device: NO_DEVICE, keys: [None, None] });
    }

    pub(super) fn listen(&mut self, reactor: usize, mut addr: SocketAddr) -> Result<(u32, SocketAddr), IoError> {
        if addr.port() == 0 {
            addr.set_port(self.net.port());
            while self.net.listener_at(addr).is_some() {
                addr.set_port(self.net.port());
            }
        }
        if self.net.listener_at(addr).is_some() {
            return Err(IN_USE);
        }
        self.net.ids += 1;
        let life = self.reactors[reactor].life;
        let listener =
            Listener { addr, reactor, life, accepts: VecDeque::new(), backlog: VecDeque::new(), dead: false };
        self.net.listeners.insert(self.net.ids, listener);
        Ok((self.net.ids, addr))
    }

    pub(super) fn close_listener(&mut self, id: u32) {
        let Some(listener) = self.net.listeners.remove(&id) else { return };
        for token in listener.accepts {
            self.finish(listener.reactor, token, Err(CANCELLED), Payload::None);
        }
        for (end, _) in listener.backlog {
            self.abandon(end, true);
        }
    }

    pub(super) fn accept(&mut self, id: u32, token: Token) {
        let listener = self.net.listeners.get_mut(&id).expect("accepts go to a listener that is open");
        listener.accepts.push_back(token);
        self.serve_listener(id);
    }

    fn serve_listener(&mut self, id: u32) {
        let Some(listener) = self.net.listeners.get_mut(&id) else { return };
        if listener.accepts.is_empty() || listener.backlog.is_empty() {
            return;
        }
        let token = listener.accepts.pop_front().expect("not empty");
        let (end, from) = listener.backlog.pop_front().expect("not empty");
        let reactor = listener.reactor;
        self.finish(reactor, token, Ok(0), Payload::Socket(Socket::Sim(u64::from(end)), from));
        self.serve_listener(id);
    }

    pub(super) fn connect(&mut self, reactor: usize, token: Token, addr: SocketAddr) {
        let from = SocketAddr::from(([127, 0, 0, 1], self.net.port()));
        let at = self.now + self.delay();
        self.net_event(at, NetEvent::Syn { reactor, token, addr, from });
    }

    fn syn(&mut self, reactor: usize, token: Token, addr: SocketAddr, from: SocketAddr) {
        let at = self.now + self.delay();
        let id = self.net.listener_at(addr).filter(|id| !self.net.listeners[id].dead && !self.frozen(*id));
        let Some(id) = id else {
            self.net_event(at, NetEvent::Connected { reactor, token, addr, end: None });
            return;
        };
        let (client, server) = (self.net.ids + 1, self.net.ids + 2);
        self.net.ids += 2;
        let life = self.net.listeners[&id].life;
        self.net.ends.insert(client, End::new(server, self.reactors[reactor].life));
        self.net.ends.insert(server, End::new(client, life));
        self.net.listeners.get_mut(&id).expect("just found").backlog.push_back((server, from));
        self.net_event(at, NetEvent::Connected { reactor, token, addr, end: Some(client) });
        self.serve_listener(id);
    }

    fn frozen(&self, listener: u32) -> bool {
        self.stopped(self.net.listeners[&listener].reactor)
    }

    pub(super) fn attach(&mut self, reactor: usize, id: u64) -> Option<u32> {
        let id = u32::try_from(id).ok()?;
        let end = self.net.ends.get_mut(&id).filter(|end| end.owner.is_none())?;
        end.owner = Some(reactor);
        Some(id)
    }

    fn owned(&mut self, reactor: usize, id: u32) -> &mut End {
        let end = self.net.ends.get_mut(&id).filter(|end| end.owner == Some(reactor));
        end.expect("operations go to a socket that this reactor has attached and not closed")
    }

    pub(super) fn recv(&mut self, reactor: usize, token: Token, id: u32, buf: Buf) {
        assert!(!buf.is_empty(), "a receive needs room for a byte");
        self.owned(reactor, id).recvs.push_back((token, buf));
        self.serve_recvs(id);
    }

    pub(super) fn send(&mut self, reactor: usize, token: Token, id: u32, bufs: Vec<Piece>) {
        let end = self.owned(reactor, id);
        assert!(end.send.is_none(), "at most one send is in flight on a socket");
        end.send = Some(Sending { token, bufs, next: (0, 0), sent: 0 });
        self.pump(id);
    }

    /// Puts as much of a send on its way as the window takes.
    fn pump(&mut self, id: u32) {
        let Some(end) = self.net.ends.get_mut(&id) else { return };
        let (Some(mut sending), Some(owner)) = (end.send.take(), end.owner) else { return };
        if end.reset || end.shut {
            self.finish(owner, sending.token, Err(RESET), Payload::Bufs(sending.bufs));
            return;
        }
        let peer = end.peer;
        while let Some(buf) = sending.bufs.get(sending.next.0) {
            let end = self.net.ends.get_mut(&id).expect("nothing closes it here");
            let left = buf.len() - sending.next.1;
            let room = self.config.window.saturating_sub(end.unread);
            if left == 0 {
                sending.next = (sending.next.0 + 1, 0);
                continue;
            }
            if room == 0 {
                end.send = Some(sending);
                return;
            }
            // Whole most of the time, so that long streams stay cheap; else cut anywhere, headers included.
            let most = left.min(room);
            let take = if self.rng.one_in(3) { 1 + self.rng.below(most as u64) as usize } else { most };
            let bytes = buf[sending.next.1..sending.next.1 + take].to_vec();
            sending.next.1 += take;
            sending.sent += take;
            end.unread += take;
            let (lo, hi) = (self.config.network_ns.start, self.config.network_ns.end);
            let at = end.last_arrival.max(self.now + self.rng.within(&(lo..hi)));
            end.last_arrival = at;
            self.net_event(at, NetEvent::Segment { to: peer, bytes });
        }
        self.finish(owner, sending.token, Ok(sending.sent), Payload::Bufs(sending.bufs));
    }

    /// Gives what has arrived to the receives that wait for it.
    fn serve_recvs(&mut self, id: u32) {
        loop {
            let Some(end) = self.net.ends.get_mut(&id) else { return };
            let Some(owner) = end.owner.filter(|_| !end.recvs.is_empty()) else { return };
            if end.arrived.is_empty() && !end.reset && !end.fin {
                return;
            }
            let (token, mut buf) = end.recvs.pop_front().expect("not empty");
            if end.arrived.is_empty() {
                let result = if end.reset { Err(RESET) } else { Ok(0) };
                self.finish(owner, token, result, Payload::Buf(buf));
                continue;
            }
            let most = buf.len().min(end.arrived.len());
            let take = if self.rng.one_in(4) { 1 + self.rng.below(most as u64) as usize } else { most };
            let (front, back) = end.arrived.as_slices();
            let from_front = take.min(front.len());
            buf[..from_front].copy_from_slice(&front[..from_front]);
            buf[from_front..take].copy_from_slice(&back[..take - from_front]);
            end.arrived.drain(..take);
            let peer = end.peer;
            self.finish(owner, token, Ok(take), Payload::Buf(buf));
            if let Some(sender) = self.net.ends.get_mut(&peer) {
                sender.unread -= take;
                self.pump(peer);
            }
        }
    }

    /// Nothing more is sent from this end; what was, arrives.
    pub(super) fn shut(&mut self, id: u32) {
        let Some(end) = self.net.ends.get_mut(&id).filter(|end| !end.shut) else { return };
        end.shut = true;
        let peer = end.peer;
        let at = end.last_arrival.max(self.now);
        let at = at + self.delay();
        self.net_event(at, NetEvent::Fin { to: peer });
    }

    pub(super) fn close(&mut self, reactor: usize, id: u32) {
        let end = self.owned(reactor, id);
        let (send, recvs) = (end.send.take(), std::mem::take(&mut end.recvs));
        let resets = !end.arrived.is_empty() || send.is_some();
        if let Some(sending) = send {
            self.finish(reactor, sending.token, Err(CANCELLED), Payload::Bufs(sending.bufs));
        }
        for (token, buf) in recvs {
            self.finish(reactor, token, Err(CANCELLED), Payload::Buf(buf));
        }
        self.abandon(id, resets);
    }

    /// Removes an end; the peer hears of it, by a reset if what it sent was not read.
    fn abandon(&mut self, id: u32, resets: bool) {
        let Some(end) = self.net.ends.remove(&id) else { return };
        if end.reset || end.cut {
            return;
        }
        let at = end.last_arrival.max(self.now);
        let at = at + self.delay();
        if resets {
            self.net_event(at, NetEvent::Reset { to: end.peer });
        } else if !end.shut {
            self.net_event(at, NetEvent::Fin { to: end.peer });
        }
    }

    /// Breaks a connection: what is on its way is lost, and each side sees a reset at a time of its own.
    pub(super) fn break_end(&mut self, id: u32) {
        let Some(end) = self.net.ends.get(&id) else { return };
        for side in [id, end.peer] {
            if let Some(end) = self.net.ends.get_mut(&side).filter(|end| !end.cut) {
                end.cut = true;
                let at = self.now + self.rng.within(&self.config.reset_ns);
                self.net_event(at, NetEvent::Reset { to: side });
            }
        }
    }

    pub(super) fn fire_net(&mut self, event: NetEvent) {
        match event {
            NetEvent::Segment { to, bytes } => self.segment(to, &bytes),
            NetEvent::Fin { to } => {
                if let Some(end) = self.net.ends.get_mut(&to).filter(|end| !end.cut) {
                    end.fin = true;
                    self.serve_recvs(to);
                }
            }
            NetEvent::Reset { to } => self.reset(to),
            NetEvent::Syn { reactor, token, addr, from } => self.syn(reactor, token, addr, from),
            NetEvent::Connected { reactor, token, addr, end } => self.connected(reactor, token, addr, end),
            NetEvent::ListenerGone { listener } => {
                self.net.listeners.remove(&listener);
            }
        }
    }

    fn connected(&mut self, reactor: usize, token: Token, addr: SocketAddr, end: Option<u32>) {
        match end {
            None => self.finish(reactor, token, Err(REFUSED), Payload::None),
            Some(end) if self.reactors[reactor].dead => self.abandon(end, true),
            Some(end) => self.finish(reactor, token, Ok(0), Payload::Socket(Socket::Sim(u64::from(end)), addr)),
        }
    }

    fn segment(&mut self, to: u32, bytes: &[u8]) {
        self.trace(&[4, u64::from(to), bytes.len() as u64, self.now]);
        if self.rng.chance(self.config.break_per_segment) {
            self.break_end(to);
        }
        let Some(end) = self.net.ends.get_mut(&to) else {
            // The other side has closed: it answers with a reset.
            let sender = self.net.select(|end| end.peer == to);
            let at = self.now + self.delay();
            sender.into_iter().for_each(|from| self.net_event(at, NetEvent::Reset { to: from }));
            return;
        };
        if end.cut || end.reset {
            return;
        }
        end.arrived.extend(bytes);
        self.serve_recvs(to);
    }

    fn reset(&mut self, id: u32) {
        let forgets = self.rng.one_in(2);
        let Some(end) = self.net.ends.get_mut(&id).filter(|end| !end.reset) else { return };
        end.reset = true;
        if forgets {
            end.arrived.clear();
        }
        self.serve_recvs(id);
        self.pump(id);
    }

    /// The processes of these reactors are gone. Their peers hear of it soon if the machine lives, late if it does not.
    pub(super) fn orphan_sockets(&mut self, gone: impl Fn(Option<u32>, Option<usize>) -> bool, machine_lives: bool) {
        for id in self.net.select(|end| gone(end.life, end.owner)) {
            if machine_lives {
                let resets = self.rng.one_in(2);
                self.abandon(id, resets);
                continue;
            }
            let Some(end) = self.net.ends.remove(&id) else { continue };
            if let Some(peer) = self.net.ends.get_mut(&end.peer) {
                peer.cut = true;
                let at = self.now + self.rng.within(&self.config.silence_ns);
                self.net_event(at, NetEvent::Reset { to: end.peer });
            }
        }
        let mut ids: Vec<u32> = self.net.listeners.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let listener = self.net.listeners.get_mut(&id).expect("just listed");
            if listener.dead || !gone(listener.life, Some(listener.reactor)) {
                continue;
            }
            listener.dead = true;
            listener.backlog.clear();
            listener.accepts.clear();
            if machine_lives {
                let at = self.now + self.rng.within(&self.config.stray_ns);
                self.net_event(at, NetEvent::ListenerGone { listener: id });
            } else {
                self.net.listeners.remove(&id);
            }
        }
    }

    /// Closes all listeners of a reactor.
    pub(super) fn close_listeners(&mut self, reactor: usize) {
        let mine = self.net.listeners.iter().filter(|(_, listener)| listener.reactor == reactor && !listener.dead);
        let mut ids: Vec<u32> = mine.map(|(&id, _)| id).collect();
        ids.sort_unstable();
        ids.into_iter().for_each(|id| self.close_listener(id));
    }

    /// Whether a dead process still holds a listening address.
    pub(super) fn listeners_dying(&self) -> bool {
        self.net.listeners.values().any(|listener| listener.dead)
    }
}
