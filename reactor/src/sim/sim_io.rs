//! The simulated twin of the ring.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::buf::BufPool;
use crate::event::EventFd;
use crate::io::{
    Completion, ErrorKind, FileId, FileInfo, Instant, Io, IoError, ListenerId, NewFile, Op, Payload, Socket, SocketId,
    Token, Wait, Wake,
};
use crate::shared::SharedMemory;

use super::device::Request;
use super::fault::CANCELLED;
use super::world::{NO_DEVICE, Polled, Reactor, Ready, SimWake, State};
use super::{Crashed, DiskId, World, pools};

/// One reactor of a [`World`]. Dropping it ends it as if it had drained: what it has at the devices lands, its sockets close.
pub struct SimIo {
    world: World,
    number: usize,
    /// Which disk each file is.
    disks: Vec<usize>,
    files: Vec<FileInfo>,
    now: Instant,
    wake: Arc<SimWake>,
    buffers: &'static BufPool,
    /// Waits for events, which are real ones: they are looked at in each poll.
    events: Vec<(Token, Arc<EventFd>)>,
}

const EBADF: IoError = IoError { kind: ErrorKind::Other, errno: libc::EBADF };

/// A completion of no device.
fn ended(token: Token, result: Result<usize, IoError>) -> Ready {
    Ready { token, result, payload: Payload::None, device: NO_DEVICE, keys: [None, None] }
}

impl SimIo {
    pub(super) fn new(world: World, of_target: bool) -> Self {
        let wake = Arc::new(SimWake(AtomicBool::new(false)));
        let mut state = world.0.borrow_mut();
        let number = state.reactors.len();
        let life = of_target.then_some(state.life);
        let polled = state.polls;
        state.reactors.push(Reactor {
            life,
            ready: VecDeque::new(),
            in_flight: 0,
            asleep: None,
            wake: wake.clone(),
            dead: false,
            polled,
        });
        let disks: Vec<usize> = if of_target { (0..state.devices.len()).collect() } else { Vec::new() };
        let files = disks.iter().map(|&disk| state.devices[disk].info).collect();
        let (now, buffers) = (Instant(state.now), state.config.buffers.unwrap_or_else(pools::mine));
        drop(state);
        Self { world, number, disks, files, now, wake, buffers, events: Vec::new() }
    }

    /// Makes a disk that was added later, or one that is not this reactor's yet, its next file.
    pub fn add_file(&mut self, disk: DiskId) -> FileId {
        let info = self.world.0.borrow().devices[usize::from(disk.0)].info;
        self.disks.push(usize::from(disk.0));
        self.files.push(info);
        FileId(self.files.len() as u16 - 1)
    }

    /// The world that this is a part of.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Sends nothing more on a socket; receiving goes on.
    pub fn half_close(&mut self, socket: SocketId) {
        self.world.0.borrow_mut().shut(socket.0);
    }

    /// Breaks one connection: what is on its way is lost, and the two sides learn of it at different times.
    pub fn break_connection(&mut self, socket: SocketId) {
        self.world.0.borrow_mut().break_end(socket.0);
    }

    fn disk(&self, file: FileId) -> usize {
        *self.disks.get(usize::from(file.0)).expect("operations go to a file of this reactor")
    }

    fn dispatch(&self, state: &mut State, token: Token, op: Op) {
        let me = self.number;
        match op {
            Op::Read { file, offset, data } => {
                state.submit_device(me, token, self.disk(file), Request::Read { offset, data });
            }
            Op::Write { file, offset, data, durable } => {
                state.submit_device(me, token, self.disk(file), Request::Write { offset, buf: data.into(), durable });
            }
            Op::Barrier { file } => state.submit_device(me, token, self.disk(file), Request::Barrier),
            Op::Deallocate { file, offset, len } => {
                state.submit_device(me, token, self.disk(file), Request::Deallocate { offset, len });
            }
            Op::Accept { listener } => state.accept(listener.0, token),
            Op::Connect { addr } => state.connect(me, token, addr),
            Op::Recv { socket, buf } => state.recv(me, token, socket.0, buf),
            Op::Send { socket, bufs } => state.send(me, token, socket.0, bufs),
            Op::WaitEvent { .. } | Op::Signal { .. } => unreachable!("events are real ones"),
        }
    }
}

impl Io for SimIo {
    fn now(&self) -> Instant {
        self.now
    }

    fn now_precise(&self) -> Instant {
        self.world.now()
    }

    fn submit(&mut self, token: Token, op: Op) {
        let mut state = self.world.0.borrow_mut();
        if state.stopped(self.number) {
            return;
        }
        state.reactors[self.number].in_flight += 1;
        state.stir();
        match op {
            Op::WaitEvent { event } => self.events.push((token, event)),
            Op::Signal { event } => {
                let result = event.signal().map(|()| 0).map_err(|_| EBADF);
                state.push(self.number, ended(token, result));
            }
            op => self.dispatch(&mut state, token, op),
        }
    }

    fn poll(&mut self, wait: Wait, completions: &mut Vec<Completion>) {
        let mut state = self.world.0.borrow_mut();
        let number = self.number;
        self.events.retain(|(token, event)| {
            let signalled = event.take().expect("an event can be read");
            if signalled {
                state.push(number, ended(*token, Ok(0)));
            }
            !signalled
        });
        let polled = state.poll(self.number, wait, completions);
        self.now = Instant(state.now);
        let unwinds = state.unwinds && matches!(polled, Polled::Crashed);
        drop(state);
        if unwinds {
            resume_unwind(Box::new(Crashed));
        }
    }

    fn in_flight(&self) -> usize {
        self.world.0.borrow().reactors[self.number].in_flight
    }

    fn files(&self) -> &[FileInfo] {
        &self.files
    }

    fn put_file(&mut self, id: FileId, file: &NewFile) -> Result<(), IoError> {
        let (at, count) = (usize::from(id.0), self.files.len());
        assert!(at == count || at + 1 == count, "file {at} of {count} is neither the next nor the last");
        let disk = match file {
            NewFile::Sim(disk) if usize::from(*disk) < self.world.0.borrow().devices.len() => DiskId(*disk),
            _ => return Err(IoError { kind: ErrorKind::Other, errno: libc::EBADF }),
        };
        self.disks.truncate(at);
        self.files.truncate(at);
        self.add_file(disk);
        Ok(())
    }

    fn attach(&mut self, socket: Socket) -> Result<SocketId, IoError> {
        let Socket::Sim(number) = socket else { return Err(EBADF) };
        let mut state = self.world.0.borrow_mut();
        state.attach(self.number, number).map(SocketId).ok_or(EBADF)
    }

    fn close(&mut self, socket: SocketId) {
        let mut state = self.world.0.borrow_mut();
        if !state.stopped(self.number) {
            state.close(self.number, socket.0);
        }
    }

    fn listen(&mut self, addr: SocketAddr) -> Result<(ListenerId, SocketAddr), IoError> {
        let (id, addr) = self.world.0.borrow_mut().listen(self.number, addr)?;
        Ok((ListenerId(id), addr))
    }

    fn close_listener(&mut self, listener: ListenerId) {
        let mut state = self.world.0.borrow_mut();
        if !state.stopped(self.number) {
            state.close_listener(listener.0);
        }
    }

    fn forget_event(&mut self, event: &Arc<EventFd>) {
        let mut state = self.world.0.borrow_mut();
        let number = self.number;
        self.events.retain(|(token, waited)| {
            let forgotten = Arc::ptr_eq(waited, event);
            if forgotten {
                state.push(number, ended(*token, Err(CANCELLED)));
            }
            !forgotten
        });
    }

    fn register_memory(&mut self, _: &Arc<SharedMemory>, _: std::ops::Range<usize>) -> Result<(), IoError> {
        Ok(())
    }

    fn release_memory(&mut self, _: &Arc<SharedMemory>) {}

    fn buffers(&self) -> &'static BufPool {
        self.buffers
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.wake.clone()
    }
}

impl Drop for SimIo {
    fn drop(&mut self) {
        // A panic inside the world drops reactors while the world is borrowed; there is nothing to tidy up then.
        if let Ok(mut state) = self.world.0.try_borrow_mut()
            && !state.stopped(self.number)
        {
            state.retire(self.number);
        }
    }
}
