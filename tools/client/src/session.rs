//! A session with one volume: requests as a program makes them, in pieces as the target takes them.
//!
//! Invariant: each queued request ends exactly once, when its last piece has.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_core::wire::log_page::TransportType;
use ringway_reactor::io::Wake;
use slab::Slab;
use uuid::Uuid;

use crate::memory::CallerMemory;
use crate::options::{Options, Way};
use crate::refusal::{Refusal, errno};
use crate::shm::{Area, Shm};
use crate::tcp::Tcp;

/// How long to look for ends before sleeping: below a sleep and its wake-up.
const SPIN: Duration = Duration::from_micros(50);
/// Turns after which the volume is looked at again: over shared memory that is a system call.
const LOOK_AFTER: u32 = 4096;
/// Bytes of one piece of a range without data: 65,536 blocks of 512, which is what a command can say.
const RANGE_BYTES: u64 = 32 << 20;
const _: () = assert!(RANGE_BYTES <= ringway_core::limits::WRITE_ZEROES_BYTES_MAX as u64);

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Fills the memory.
    Read,
    /// Stores the memory.
    Write,
    /// What has ended before is on stable storage when this ends.
    Flush,
    /// Gives the range's space back; whole blocks of 4096 read as zeros afterwards.
    Trim,
    /// The range reads as zeros afterwards.
    Zero,
}

impl What {
    /// Whether data moves.
    pub(crate) fn moves(self) -> bool {
        matches!(self, What::Read | What::Write)
    }
}

/// A piece of a request.
#[derive(Debug)]
pub(crate) struct Piece {
    /// The request's place in its session.
    pub(crate) request: usize,
    pub(crate) what: What,
    pub(crate) offset: u64,
    pub(crate) len: u32,
    /// As long, where data moves.
    pub(crate) memory: Option<CallerMemory>,
}

/// The end of a piece: its request, and 0 or why not.
pub(crate) type PieceEnded = (usize, i32);

/// The volume, as the target describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Bytes.
    pub size: u64,
    /// Bytes of a logical block: offsets and lengths are multiples of it.
    pub block_bytes: u32,
    /// Bytes of the largest piece.
    pub request_bytes_max: u32,
    /// Its own, where it is told: over a network.
    pub uuid: Option<Uuid>,
}

/// A way to a target.
pub(crate) trait Carrier {
    fn volume(&self) -> Volume;

    /// Memory that needs no copy on its way, where there is such.
    fn area(&self) -> Option<Area> {
        None
    }

    /// Ends the sleep of [`Carrier::turn`], from any thread.
    fn waker(&self) -> Arc<dyn Wake>;

    /// Takes a piece, or gives it back while there is no room.
    fn submit(&mut self, piece: Piece) -> Result<(), Piece>;

    /// Sends what was taken, appends what has ended, and waits for that if nothing has: until then, and not at all without.
    /// After a refusal nothing more comes.
    fn turn(&mut self, until: Option<Instant>, ended: &mut Vec<PieceEnded>) -> Result<(), Refusal>;

    /// Ends in good order.
    fn close(&mut self);
}

/// The end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The number it was queued with.
    pub user: u64,
    /// 0, or why not.
    pub errno: i32,
}

#[derive(Debug)]
struct Running {
    user: u64,
    left: u32,
    errno: i32,
}

/// A volume that is attached, for one thread.
pub struct Session {
    carrier: Box<dyn Carrier>,
    /// As it was last.
    volume: Volume,
    running: Slab<Running>,
    /// Pieces that wait for room, in order.
    waiting: VecDeque<Piece>,
    pieces_ended: Vec<PieceEnded>,
    ended: VecDeque<Ended>,
    turns: u32,
    /// The carrier has given up, and why.
    over: Option<Refusal>,
}

impl Session {
    /// Attaches the volume.
    ///
    /// # Errors
    /// Why it cannot be, in words for a user.
    pub fn open(options: &Options) -> Result<Session, Refusal> {
        let carrier: Box<dyn Carrier> = match &options.way {
            Way::Tcp(addresses) => Box::new(Tcp::connect(options, addresses, TransportType::Tcp)?),
            Way::Rdma(addresses) => Box::new(Tcp::connect(options, addresses, TransportType::Rdma)?),
            Way::Shm(socket) => Box::new(Shm::connect(options, socket)?),
        };
        Ok(Session::over(carrier))
    }

    pub(crate) fn over(carrier: Box<dyn Carrier>) -> Session {
        Session {
            volume: carrier.volume(),
            carrier,
            running: Slab::new(),
            waiting: VecDeque::new(),
            pieces_ended: Vec::new(),
            ended: VecDeque::new(),
            turns: 0,
            over: None,
        }
    }

    /// The volume, as the target last described it.
    #[must_use]
    pub fn volume(&self) -> Volume {
        self.volume
    }

    /// Memory that needs no copy on its way, where there is such.
    #[must_use]
    pub fn area(&self) -> Option<Area> {
        self.carrier.area()
    }

    /// What ends a sleep in [`Session::wait`], from any thread.
    pub(crate) fn waker(&self) -> Arc<dyn Wake> {
        self.carrier.waker()
    }

    /// Takes a request; it ends in a later [`Session::wait`]. `memory` is as long as `len` where data moves.
    ///
    /// # Errors
    /// `EINVAL` for what is no range of whole blocks; why it is over, if the target was given up.
    pub fn queue(
        &mut self,
        what: What,
        offset: u64,
        len: u64,
        memory: Option<CallerMemory>,
        user: u64,
    ) -> Result<(), Refusal> {
        if let Some(over) = &self.over {
            return Err(over.clone());
        }
        let volume = self.volume;
        let block = u64::from(volume.block_bytes);
        if what != What::Flush && (len == 0 || !offset.is_multiple_of(block) || !len.is_multiple_of(block)) {
            let why = format!("{len} bytes at {offset} are not whole blocks of {block}; set bs= to a multiple of it");
            return Err(Refusal::new(errno::EINVAL, why));
        }
        let moves = what.moves();
        assert_eq!(memory.as_ref().map_or(0, CallerMemory::len) as u64, if moves { len } else { 0 });
        let largest = match what {
            What::Read | What::Write => u64::from(volume.request_bytes_max),
            What::Trim | What::Zero | What::Flush => RANGE_BYTES,
        };
        let pieces = len.div_ceil(largest).max(1);
        let request = self.running.insert(Running { user, left: pieces as u32, errno: 0 });
        let (mut at, mut rest) = (0, memory);
        for _ in 0..pieces {
            let piece_len = largest.min(len - at);
            let after = rest.as_mut().map(|memory| memory.split_off(piece_len as usize));
            let memory = std::mem::replace(&mut rest, after);
            self.submit(Piece { request, what, offset: offset + at, len: piece_len as u32, memory });
            at += piece_len;
        }
        Ok(())
    }

    fn submit(&mut self, piece: Piece) {
        if !self.waiting.is_empty() {
            return self.waiting.push_back(piece);
        }
        if let Err(piece) = self.carrier.submit(piece) {
            self.waiting.push_back(piece);
        }
    }

    /// Sends what was queued.
    ///
    /// # Errors
    /// Why it is over, if the target was given up.
    pub fn commit(&mut self) -> Result<(), Refusal> {
        self.turn(None)
    }

    /// Waits until `min` requests have ended, or `timeout` has passed; gives at most `max` of them to `each`.
    ///
    /// # Errors
    /// Why it is over, if the target was given up and all ends were taken.
    pub fn wait(
        &mut self,
        min: usize,
        max: usize,
        timeout: Option<Duration>,
        mut each: impl FnMut(Ended),
    ) -> Result<usize, Refusal> {
        let begun = Instant::now();
        let deadline = timeout.map(|timeout| begun + timeout);
        let min = min.min(max).min(self.running.len() + self.ended.len());
        self.turn(None)?;
        let mut looks = 0_u32;
        while self.ended.len() < min {
            looks = looks.wrapping_add(1);
            // A look at a ring costs less than one at the clock.
            if !looks.is_multiple_of(32) {
                self.turn(None)?;
                continue;
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| now >= deadline) {
                break;
            }
            let sleep = now.duration_since(begun) > SPIN;
            let until = now + Duration::from_millis(100);
            self.turn(sleep.then(|| deadline.map_or(until, |deadline| deadline.min(until))))?;
        }
        let count = self.ended.len().min(max);
        self.ended.drain(..count).for_each(&mut each);
        Ok(count)
    }

    /// One turn: sends, takes what has ended, and sleeps until then if nothing has; not at all without.
    pub(crate) fn turn(&mut self, until: Option<Instant>) -> Result<(), Refusal> {
        if let Some(over) = &self.over {
            // What had ended before is still given out.
            return if self.ended.is_empty() { Err(over.clone()) } else { Ok(()) };
        }
        let result = self.carrier.turn(until, &mut self.pieces_ended);
        for (request, errno) in self.pieces_ended.drain(..) {
            let running = &mut self.running[request];
            running.left -= 1;
            running.errno = if running.errno == 0 { errno } else { running.errno };
            if running.left == 0 {
                let running = self.running.remove(request);
                self.ended.push_back(Ended { user: running.user, errno: running.errno });
            }
        }
        while let Some(piece) = self.waiting.pop_front() {
            if let Err(piece) = self.carrier.submit(piece) {
                self.waiting.push_front(piece);
                break;
            }
        }
        self.turns = self.turns.wrapping_add(1);
        if until.is_some() || self.turns.is_multiple_of(LOOK_AFTER) {
            self.volume = self.carrier.volume();
        }
        if let Err(over) = result {
            self.give_up(over);
        }
        Ok(())
    }

    /// Ends that were not taken yet.
    pub(crate) fn take_ended(&mut self) -> Option<Ended> {
        self.ended.pop_front()
    }

    /// Everything ends, as the program has to have it back.
    fn give_up(&mut self, over: Refusal) {
        self.waiting.clear();
        for running in self.running.drain() {
            self.ended.push_back(Ended { user: running.user, errno: over.errno });
        }
        self.over = Some(over);
    }

    /// Why nothing goes on, if so.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        self.over.as_ref().map(|over| over.why.as_str())
    }

    /// Detaches the volume.
    pub fn close(mut self) {
        self.carrier.close();
    }
}

/// A carrier for tests.
#[cfg(test)]
pub(crate) mod testing {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// Wakes nobody.
    pub(crate) struct Nobody;

    impl Wake for Nobody {
        fn wake(&self) {}
    }

    /// Bytes in memory; two pieces at a time, each done in a turn of its own, the later first.
    pub(crate) struct Disk {
        bytes: Rc<RefCell<Vec<u8>>>,
        taken: Vec<Piece>,
    }

    impl Disk {
        pub(crate) fn new(bytes: Rc<RefCell<Vec<u8>>>) -> Disk {
            Disk { bytes, taken: Vec::new() }
        }
    }

    impl Carrier for Disk {
        fn volume(&self) -> Volume {
            Volume { size: self.bytes.borrow().len() as u64, block_bytes: 512, request_bytes_max: 1024, uuid: None }
        }
        fn submit(&mut self, piece: Piece) -> Result<(), Piece> {
            if self.taken.len() == 2 {
                return Err(piece);
            }
            self.taken.push(piece);
            Ok(())
        }
        fn turn(&mut self, _: Option<Instant>, ended: &mut Vec<PieceEnded>) -> Result<(), Refusal> {
            let Some(mut piece) = self.taken.pop() else { return Ok(()) };
            let mut bytes = self.bytes.borrow_mut();
            let range = piece.offset as usize..piece.offset as usize + piece.len as usize;
            let Some(bytes) = bytes.get_mut(range) else {
                ended.push((piece.request, errno::EINVAL));
                return Ok(());
            };
            match (piece.what, &mut piece.memory) {
                (What::Read, Some(memory)) => memory.copy_from(bytes),
                (What::Write, Some(memory)) => memory.copy_to(bytes),
                (What::Flush, _) => {}
                _ => bytes.fill(0),
            }
            ended.push((piece.request, 0));
            Ok(())
        }
        fn close(&mut self) {}
        fn waker(&self) -> Arc<dyn Wake> {
            Arc::new(Nobody)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Nobody;
    use super::*;

    /// Keeps pieces until they are taken out, at most three.
    #[derive(Default)]
    struct Slow {
        taken: Vec<Piece>,
        seen: std::rc::Rc<std::cell::RefCell<Vec<(u64, u32)>>>,
        turns: usize,
    }

    impl Carrier for Slow {
        fn volume(&self) -> Volume {
            Volume { size: 1 << 30, block_bytes: 4096, request_bytes_max: 8192, uuid: None }
        }
        fn submit(&mut self, piece: Piece) -> Result<(), Piece> {
            if self.taken.len() == 3 {
                return Err(piece);
            }
            self.seen.borrow_mut().push((piece.offset, piece.len));
            self.taken.push(piece);
            Ok(())
        }
        fn turn(&mut self, _: Option<Instant>, ended: &mut Vec<PieceEnded>) -> Result<(), Refusal> {
            self.turns += 1;
            if self.turns == 20 {
                return Err(Refusal::new(errno::ESHUTDOWN, "gone"));
            }
            if !self.taken.is_empty() {
                let piece = self.taken.remove(0);
                ended.push((piece.request, if piece.offset == 8192 { errno::EIO } else { 0 }));
            }
            Ok(())
        }
        fn close(&mut self) {}
        fn waker(&self) -> Arc<dyn Wake> {
            Arc::new(Nobody)
        }
    }

    fn wait(session: &mut Session, min: usize) -> Vec<Ended> {
        let mut ended = Vec::new();
        session.wait(min, 8, None, |one| ended.push(one)).unwrap();
        ended
    }

    #[test]
    fn a_request_larger_than_the_target_takes_ends_once_with_the_first_error_of_its_pieces() {
        let carrier = Slow::default();
        let seen = carrier.seen.clone();
        let mut session = Session::over(Box::new(carrier));
        let mut buffer = vec![0_u8; 40_960];
        // SAFETY: the buffer outlives the session's use of it.
        let memory = unsafe { CallerMemory::new(buffer.as_mut_ptr(), buffer.len()) };
        session.queue(What::Write, 4096, 40_960, memory, 7).unwrap();
        session.queue(What::Flush, 0, 0, None, 8).unwrap();
        assert_eq!(wait(&mut session, 2), [Ended { user: 7, errno: 0 }, Ended { user: 8, errno: 0 }]);
        let pieces: Vec<_> = (0..5).map(|n| (4096 + n * 8192, 8192)).chain([(0, 0)]).collect();
        assert_eq!(*seen.borrow(), pieces);
        // SAFETY: as above.
        let memory = unsafe { CallerMemory::new(buffer.as_mut_ptr(), 16_384) };
        session.queue(What::Read, 0, 16_384, memory, 9).unwrap();
        assert_eq!(wait(&mut session, 1), [Ended { user: 9, errno: errno::EIO }]);
    }

    #[test]
    fn what_is_no_whole_block_is_refused_and_when_the_target_is_gone_everything_ends() {
        let mut session = Session::over(Box::new(Slow::default()));
        let refusal = session.queue(What::Trim, 512, 4096, None, 1).unwrap_err();
        assert!(refusal.why.contains("blocks of 4096"), "{refusal:?}");
        for user in 0..40 {
            session.queue(What::Trim, 0, 4096, None, user).unwrap();
        }
        let mut count = 0;
        while session.why().is_none() {
            count += wait(&mut session, 1).len();
        }
        while let Ok(more) = session.wait(1, 8, None, |_| {}) {
            count += more;
        }
        assert_eq!((count, session.why()), (40, Some("gone")));
        assert_eq!(session.queue(What::Flush, 0, 0, None, 1).unwrap_err().errno, errno::ESHUTDOWN);
    }
}
