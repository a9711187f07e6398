//! One job's session with one volume: requests as fio makes them, in pieces as the target takes them.
//!
//! Invariant: each queued request ends exactly once, when its last piece has.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use slab::Slab;

use crate::memory::CallerMemory;
use crate::options::{Options, Refusal, Transport, errno};
use crate::shm::Shm;
use crate::tcp::Tcp;

/// How long to look for ends before sleeping: below a sleep and its wake-up.
const SPIN: Duration = Duration::from_micros(50);
/// Bytes of one piece of a trim: 65,536 blocks of 512, which is what a command can say.
const TRIM_BYTES: u64 = 32 << 20;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Read,
    Write,
    Flush,
    Trim,
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
pub(crate) struct Volume {
    pub(crate) size: u64,
    pub(crate) block_bytes: u32,
    pub(crate) request_bytes_max: u32,
}

/// A way to a target.
pub(crate) trait Carrier {
    fn volume(&self) -> Volume;

    /// Memory that needs no copy on its way, where there is such; once.
    fn alloc(&mut self, _bytes: usize) -> Option<*mut u8> {
        None
    }

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
pub(crate) struct Ended {
    /// The number it was queued with.
    pub(crate) user: u64,
    /// 0, or why not.
    pub(crate) errno: i32,
}

#[derive(Debug)]
struct Running {
    user: u64,
    left: u32,
    errno: i32,
}

/// See the module's description.
pub(crate) struct Session {
    carrier: Box<dyn Carrier>,
    /// As it was when the session was opened.
    volume: Volume,
    running: Slab<Running>,
    /// Pieces that wait for room, in order.
    waiting: VecDeque<Piece>,
    pieces_ended: Vec<PieceEnded>,
    ended: VecDeque<Ended>,
    /// The carrier has given up, and why.
    over: Option<Refusal>,
}

impl Session {
    pub(crate) fn open(options: &Options) -> Result<Session, Refusal> {
        let carrier: Box<dyn Carrier> = match options.transport {
            Transport::Tcp => Box::new(Tcp::connect(options)?),
            Transport::Shm => Box::new(Shm::connect(options)?),
        };
        Ok(Session::over(carrier))
    }

    fn over(carrier: Box<dyn Carrier>) -> Session {
        Session {
            volume: carrier.volume(),
            carrier,
            running: Slab::new(),
            waiting: VecDeque::new(),
            pieces_ended: Vec::new(),
            ended: VecDeque::new(),
            over: None,
        }
    }

    pub(crate) fn volume(&self) -> Volume {
        self.volume
    }

    /// Memory for fio's buffers that needs no copy on its way.
    pub(crate) fn alloc(&mut self, bytes: usize) -> Option<*mut u8> {
        self.carrier.alloc(bytes)
    }

    /// Takes a request; it ends in a later [`Session::wait`].
    pub(crate) fn queue(
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
        let moves = matches!(what, What::Read | What::Write);
        assert_eq!(memory.as_ref().map_or(0, CallerMemory::len) as u64, if moves { len } else { 0 });
        let largest = if moves { u64::from(volume.request_bytes_max) } else { TRIM_BYTES };
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
    pub(crate) fn commit(&mut self) -> Result<(), Refusal> {
        self.turn(None)
    }

    /// Waits until `min` requests have ended, or `timeout` has passed; gives at most `max` of them to `each`.
    pub(crate) fn wait(
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

    fn turn(&mut self, until: Option<Instant>) -> Result<(), Refusal> {
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
        if let Err(over) = result {
            self.give_up(over);
        }
        Ok(())
    }

    /// Everything ends, as fio has to have it back.
    fn give_up(&mut self, over: Refusal) {
        self.waiting.clear();
        for running in self.running.drain() {
            self.ended.push_back(Ended { user: running.user, errno: over.errno });
        }
        self.over = Some(over);
    }

    /// Why nothing goes on, if so.
    pub(crate) fn why(&self) -> Option<&str> {
        self.over.as_ref().map(|over| over.why.as_str())
    }

    pub(crate) fn close(mut self) {
        self.carrier.close();
    }
}

#[cfg(test)]
mod tests {
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
            Volume { size: 1 << 30, block_bytes: 4096, request_bytes_max: 8192 }
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
