//! Requests of any offset and length, over a session that takes whole blocks.
//!
//! A read that is no whole blocks reads the blocks around it, and a write reads them first, puts its bytes in and writes them back.
//! Between those two steps no other change of the same program may run, or it would be undone; so such a write waits until the changes
//! before it have ended, and those behind it wait for it. Programs that write whole blocks never wait here.
//!
//! Invariant: each request taken ends once, by its [`Done`].

use std::collections::VecDeque;

use slab::Slab;

use crate::engine::{Done, Request};
use crate::memory::{Bounce, CallerMemory};
use crate::session::{Ended, Session, What};

/// A request that runs.
enum Work<D> {
    /// Whole blocks.
    Plain { done: D, changes: bool },
    /// The blocks around a read.
    Around { done: D, bounce: Bounce, skip: usize, memory: CallerMemory },
    /// The blocks around a write are being read.
    Merging { done: D, bounce: Bounce, skip: usize, memory: CallerMemory, offset: u64 },
    /// They are being written, with its bytes in them.
    Merged { done: D, _bounce: Bounce },
}

/// See the module's description.
pub(crate) struct Desk<D> {
    running: Slab<Work<D>>,
    /// Changes that run.
    changing: usize,
    /// One of them is no whole blocks.
    alone: bool,
    /// Changes that wait, in order.
    held: VecDeque<Request<D>>,
}

impl<D: Done> Desk<D> {
    pub(crate) fn new() -> Desk<D> {
        Desk { running: Slab::new(), changing: 0, alone: false, held: VecDeque::new() }
    }

    /// Whether everything that was taken has ended.
    pub(crate) fn is_empty(&self) -> bool {
        self.running.is_empty() && self.held.is_empty()
    }

    pub(crate) fn take(&mut self, session: &mut Session, request: Request<D>) {
        let changes = matches!(request.what, What::Write | What::Trim | What::Zero);
        if changes && (self.alone || !self.held.is_empty() || (self.changing > 0 && is_uneven(session, &request))) {
            return self.held.push_back(request);
        }
        self.start(session, request, changes);
    }

    fn start(&mut self, session: &mut Session, request: Request<D>, changes: bool) {
        if is_uneven(session, &request) {
            return self.start_uneven(session, request);
        }
        let Request { what, offset, len, memory, done } = request;
        self.changing += usize::from(changes);
        let place = self.running.insert(Work::Plain { done, changes });
        self.queue(session, place, (what, offset, len), memory);
    }

    fn start_uneven(&mut self, session: &mut Session, request: Request<D>) {
        let Request { what, offset, len, memory, done } = request;
        let block = u64::from(session.volume().block_bytes);
        let first = offset - offset % block;
        let around = (offset + len).next_multiple_of(block) - first;
        let (skip, memory) = ((offset - first) as usize, memory.expect("only data is uneven"));
        let mut bounce = Bounce::new(around as usize);
        let lent = Some(bounce.lend());
        let work = if what == What::Read {
            Work::Around { done, bounce, skip, memory }
        } else {
            assert!(self.changing == 0, "it runs alone");
            (self.changing, self.alone) = (1, true);
            Work::Merging { done, bounce, skip, memory, offset: first }
        };
        let place = self.running.insert(work);
        self.queue(session, place, (What::Read, first, around), lent);
    }

    fn queue(
        &mut self,
        session: &mut Session,
        place: usize,
        (what, offset, len): (What, u64, u64),
        memory: Option<CallerMemory>,
    ) {
        if let Err(refusal) = session.queue(what, offset, len, memory, place as u64) {
            self.ended(session, Ended { user: place as u64, errno: refusal.errno });
        }
    }

    /// What was queued has ended.
    pub(crate) fn ended(&mut self, session: &mut Session, ended: Ended) {
        match self.running.remove(ended.user as usize) {
            Work::Plain { done, changes } => {
                self.changing -= usize::from(changes);
                done.done(ended.errno);
            }
            Work::Around { done, bounce, skip, mut memory } => {
                if ended.errno == 0 {
                    memory.copy_from(&bounce.bytes()[skip..skip + memory.len()]);
                }
                done.done(ended.errno);
            }
            Work::Merging { done, mut bounce, skip, memory, offset } if ended.errno == 0 => {
                memory.copy_to(&mut bounce.bytes_mut()[skip..skip + memory.len()]);
                let (len, lent) = (bounce.bytes().len() as u64, Some(bounce.lend()));
                let place = self.running.insert(Work::Merged { done, _bounce: bounce });
                return self.queue(session, place, (What::Write, offset, len), lent);
            }
            Work::Merging { done, .. } | Work::Merged { done, .. } => {
                (self.changing, self.alone) = (0, false);
                done.done(ended.errno);
            }
        }
        self.go_on(session);
    }

    /// Starts changes that have waited.
    fn go_on(&mut self, session: &mut Session) {
        while !self.alone
            && let Some(request) = self.held.pop_front()
        {
            if self.changing > 0 && is_uneven(session, &request) {
                return self.held.push_front(request);
            }
            self.start(session, request, true);
        }
    }

    /// Everything that has not ended ends with this. The session is closed: nothing of it touches their memory any more.
    pub(crate) fn end_all(&mut self, errno: i32) {
        for work in self.running.drain() {
            match work {
                Work::Plain { done, .. }
                | Work::Around { done, .. }
                | Work::Merging { done, .. }
                | Work::Merged { done, .. } => done.done(errno),
            }
        }
        self.held.drain(..).for_each(|request| request.done.done(errno));
        (self.changing, self.alone) = (0, false);
    }
}

/// Whether it is no whole blocks; only where data moves that matters.
fn is_uneven<D>(session: &Session, request: &Request<D>) -> bool {
    let block = u64::from(session.volume().block_bytes);
    request.what.moves() && !(request.offset.is_multiple_of(block) && request.len.is_multiple_of(block))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::sync::mpsc;

    use super::*;
    use crate::refusal::errno;
    use crate::session::testing::Disk;

    struct Tell(u32, mpsc::Sender<(u32, i32)>);

    impl Done for Tell {
        fn done(self, errno: i32) {
            self.1.send((self.0, errno)).unwrap();
        }
    }

    struct Rig {
        session: Session,
        disk: Rc<RefCell<Vec<u8>>>,
        desk: Desk<Tell>,
        ends: mpsc::Receiver<(u32, i32)>,
        tell: mpsc::Sender<(u32, i32)>,
        /// Memory of requests; it lives as long as the rig.
        memory: Vec<Bounce>,
    }

    impl Rig {
        fn new() -> Rig {
            let disk = Rc::new(RefCell::new((0..64 << 10).map(|n| (n % 251) as u8).collect::<Vec<u8>>()));
            let session = Session::over(Box::new(Disk::new(Rc::clone(&disk))));
            let (tell, ends) = mpsc::channel();
            Rig { session, disk, desk: Desk::new(), ends, tell, memory: Vec::new() }
        }

        fn submit(&mut self, number: u32, what: What, offset: u64, bytes: &[u8]) {
            let mut memory = Bounce::new(bytes.len());
            memory.bytes_mut().copy_from_slice(bytes);
            let lent = what.moves().then(|| memory.lend());
            self.memory.push(memory);
            let done = Tell(number, self.tell.clone());
            let request = Request { what, offset, len: bytes.len() as u64, memory: lent, done };
            self.desk.take(&mut self.session, request);
        }

        fn run(&mut self) -> Vec<(u32, i32)> {
            for _ in 0..100 {
                let _ = self.session.turn(None);
                while let Some(ended) = self.session.take_ended() {
                    self.desk.ended(&mut self.session, ended);
                }
            }
            assert!(self.desk.is_empty());
            self.ends.try_iter().collect()
        }
    }

    #[test]
    fn reads_and_writes_of_any_bytes_touch_those_alone() {
        let mut rig = Rig::new();
        let mut model = rig.disk.borrow().clone();
        for (number, (offset, len)) in [(1, 1), (511, 2), (0, 512), (700, 3000), (4096, 13)].into_iter().enumerate() {
            let bytes = vec![200 + number as u8; len];
            rig.submit(number as u32, What::Write, offset as u64, &bytes);
            model[offset..offset + len].copy_from_slice(&bytes);
        }
        assert_eq!(rig.run(), [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)]);
        assert!(*rig.disk.borrow() == model);
        rig.submit(9, What::Read, 699, &[0; 3002]);
        assert_eq!(rig.run(), [(9, 0)]);
        assert!(rig.memory.last().unwrap().bytes() == &model[699..3701]);
    }

    #[test]
    fn changes_around_an_uneven_write_keep_their_order() {
        let mut rig = Rig::new();
        rig.submit(1, What::Write, 0, &[1; 1024]);
        rig.submit(2, What::Write, 10, &[2; 10]);
        rig.submit(3, What::Zero, 512, &[0; 512]);
        rig.submit(4, What::Write, 600, &[4; 1]);
        assert_eq!(rig.run(), [(1, 0), (2, 0), (3, 0), (4, 0)]);
        let disk = rig.disk.borrow();
        assert_eq!((disk[9], disk[10], disk[19], disk[20]), (1, 2, 2, 1));
        assert_eq!((disk[599], disk[600], disk[601], disk[1023]), (0, 4, 0, 0));
    }

    #[test]
    fn what_is_beyond_the_end_ends_with_an_error_and_blocks_nothing() {
        let mut rig = Rig::new();
        rig.submit(1, What::Write, (64 << 10) - 1, &[1; 2]);
        rig.submit(2, What::Write, 3, &[2; 2]);
        assert_eq!(rig.run(), [(1, errno::EINVAL), (2, 0)]);
        rig.submit(3, What::Trim, 0, &[0; 512]);
        rig.submit(4, What::Write, 3, &[2; 2]);
        rig.desk.end_all(errno::ESHUTDOWN);
        assert_eq!(rig.ends.try_iter().collect::<Vec<_>>(), [(3, errno::ESHUTDOWN), (4, errno::ESHUTDOWN)]);
    }
}
