//! A world that is simulated from one seed: disks, a network, a clock and any number of reactors, behind the same
//! [`Io`](crate::io::Io) as the kernel's ring. The engine's own code runs in it, and crashes in it.
//!
//! # What a simulated disk may do
//!
//! - Finish operations in any order, each after a latency of its own, now and then a very long one.
//! - Keep a finished write in its cache. Reads see it from the moment at which it lands; it is persistent only when
//!   a [`Barrier`](crate::io::Op::Barrier) that was submitted after its completion *was taken from `poll`* has finished
//!   without an error. A write that has finished but whose completion nobody took is not covered, and a write that is in
//!   flight is not either.
//! - Let readers see a write, or one part of it, before it finishes; the parts are cut at the atomic unit.
//! - At [`World::power_loss`], keep, lose or tear each write that is not persistent, finished or in flight, on its own, in
//!   any order among overlapping ones; or, one time in eight each, keep them all in the order in which they landed, or lose
//!   them all. A torn write leaves its front, its back or any subset, cut at the atomic write unit:
//!   an aligned unit is old or new, never a mixture. So does a `durable` write that is still in flight, and a deallocation.
//! - Answer EIO. A write that failed has landed not at all, in part or whole. After a failed barrier no later barrier
//!   speaks for the writes that the failed one covered, though it succeeds: the kernel reports a write-back error once and
//!   forgets it. Those writes stay readable until power loss decides.
//! - On order or by chance ([`Faults`]): ENOSPC, writes that are acknowledged and lost, writes that land elsewhere, bit rot.
//! - After [`World::kill`], let writes of the dead process land, whole, in part or never, at any time until
//!   [`World::quiesce`] returns: exactly as long as the kernel would hold the lock on their file.
//!
//! # What it may not do
//!
//! - Lose or change a persistent sector without a fault that was asked for, or a finished write by the mere death of a
//!   process: `kill` keeps all that has landed, to be lost only by a later power loss.
//! - Bring back what a persistent later write has overwritten. A `durable` write makes its own range persistent and no
//!   other.
//! - Tear an aligned atomic unit, or touch a byte outside the range of a write (misdirection, an asked-for fault, aside).
//! - Finish an operation twice, or after its process has died.
//!
//! # What the network may do
//!
//! Cut a stream into segments anywhere, delay them, hand out less than has arrived; bytes of one connection stay in order,
//! and between connections there is none. A sender has at most [`WorldConfig::window`] bytes that the other side has not
//! read; then its `Send` stays in flight. A broken connection loses what is on its way, and its two sides learn of it at
//! different times. Peers of a killed process see an end or a reset soon; peers of a machine that lost power see nothing
//! for long. The address of a dead listener stays taken as long as its ring would live.
//!
//! # Several reactors, and time
//!
//! Everything runs on one thread. The harness gives turns, to a reactor of [`World::pick`]'s choice or with [`World::run`];
//! `turn(true)`, since a turn that may not wait moves time by [`WorldConfig::poll_ns`] only. A poll that may wait moves time to
//! the next event if every other reactor has come to wait since anybody last found something to do (mail between
//! reactors is not seen here), and returns empty-handed if not, so that they get their turns. A reactor that gets no turns
//! is not waited for: so straight-line code (opening, recovering) simply loops over `poll`. If nothing is due, no deadline is set and all sleep, a
//! poll returns at once, and after [`WorldConfig::hang_polls`] of those the world panics: that is a hang.
//!
//! # Crashes
//!
//! [`World::crash_after`] stops the target at a chosen operation: its reactors' polls return nothing more,
//! [`World::crashed`] is true, and the harness says by [`World::kill`] or [`World::power_loss`] how it died. Both also work
//! at any other time. Then [`World::io`] makes reactors of the next process, on the same disks. Straight-line code that
//! would poll for ever goes into [`World::until_crash`]. Reactors of [`World::outside`] (hosts, load) live on.
//!
//! The same seed, the same calls: the same world, down to [`World::trace_hash`].

mod device;
mod disk;
mod fault;
mod log;
mod net;
mod page;
mod pools;
mod rng;
mod sim_io;
mod world;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use crate::buf::BufPool;
use crate::io::{FileInfo, Instant};

pub use fault::{Fault, Faults, Injected, OpKind};
pub use log::{SimLog, SimLogFull};
pub use page::Image;
pub use rng::Rng;
pub use sim_io::SimIo;
pub use world::CrashPoint;

use device::Device;
use disk::Disk;
use fault::Script;
use world::State;

/// A disk of a world, numbered in the order in which they were added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiskId(pub u16);

/// How a world behaves.
#[derive(Clone, Debug)]
pub struct WorldConfig {
    /// What a poll costs, nanoseconds on average.
    pub poll_ns: u64,
    /// Latency of a segment.
    pub network_ns: Range<u64>,
    /// How late each side of a broken connection learns of it.
    pub reset_ns: Range<u64>,
    /// How late the peers of a machine without power learn of it.
    pub silence_ns: Range<u64>,
    /// How long writes and listeners outlive a killed process.
    pub stray_ns: Range<u64>,
    /// Bytes that a sender may have on its way and unread.
    pub window: usize,
    /// Connections that break, in a million segments.
    pub break_per_segment: u32,
    /// Polls in a row with nothing to wait for, after which the world panics.
    pub hang_polls: u32,
    /// The buffers of its reactors; by default those of this thread, 16 MiB.
    pub buffers: Option<&'static BufPool>,
}

impl Default for WorldConfig {
    fn default() -> Self {
        Self {
            poll_ns: 1_000,
            network_ns: 5_000..200_000,
            reset_ns: 0..2_000_000,
            silence_ns: 1_000_000..5_000_000_000,
            stray_ns: 0..60_000_000,
            window: 256 << 10,
            break_per_segment: 0,
            hang_polls: 100_000,
            buffers: None,
        }
    }
}

/// How a disk behaves.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// Bytes.
    pub size: u64,
    /// Smallest aligned unit of an operation, bytes: a power of two from 512 to 4096.
    pub logical_block: u32,
    /// What power loss never tears, bytes: a power of two, at least `logical_block`.
    pub atomic_write_unit: u32,
    /// Whether it says that deallocation gives space back.
    pub deallocates: bool,
    /// Latency of reads.
    pub read_ns: Range<u64>,
    /// Latency of writes and deallocations.
    pub write_ns: Range<u64>,
    /// Latency of barriers, and what `durable` adds to a write.
    pub barrier_ns: Range<u64>,
    /// Writes of several atomic units that land in two steps, in a million.
    pub two_step_writes: u32,
    /// Faults by chance.
    pub faults: Faults,
}

impl Default for DiskConfig {
    /// 64 MiB, sectors of 512 bytes, atomic at 4 KiB, no faults.
    fn default() -> Self {
        Self {
            size: 64 << 20,
            logical_block: 512,
            atomic_write_unit: 4096,
            deallocates: true,
            read_ns: 5_000..100_000,
            write_ns: 5_000..150_000,
            barrier_ns: 20_000..500_000,
            two_step_writes: 100_000,
            faults: Faults::default(),
        }
    }
}

/// The target had crashed while [`World::until_crash`] ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crashed;

/// How [`World::run`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// What was waited for is true.
    Done,
    /// The target has crashed.
    Crashed,
    /// So many turns have passed.
    OutOfTurns,
}

/// A simulated world. Clones are the same world.
#[derive(Clone)]
pub struct World(Rc<RefCell<State>>);

impl World {
    /// An empty world, all of whose chance comes from `seed`.
    #[must_use]
    pub fn new(seed: u64, config: WorldConfig) -> Self {
        Self(Rc::new(RefCell::new(State::new(seed, config))))
    }

    /// Adds a disk that is all zero.
    pub fn add_disk(&self, config: DiskConfig) -> DiskId {
        let image = Image::zeroed(config.size);
        self.add_disk_from(config, &image)
    }

    /// Adds a disk with the content, and of the size, of an image; costs nothing however much it holds.
    ///
    /// # Panics
    /// If the units are no powers of two in their bounds.
    pub fn add_disk_from(&self, mut config: DiskConfig, image: &Image) -> DiskId {
        let (block, atomic) = (config.logical_block, config.atomic_write_unit);
        assert!(block.is_power_of_two() && (512..=4096).contains(&block), "logical block of {block}");
        assert!(atomic.is_power_of_two() && atomic >= block, "atomic write unit of {atomic}");
        config.size = image.size();
        let info = FileInfo {
            size: config.size,
            logical_block: block,
            atomic_write_unit: atomic,
            deallocates: config.deallocates,
        };
        let disk = Disk::new(image, u64::from(atomic));
        let mut state = self.0.borrow_mut();
        state.devices.push(Device { config, info, disk, script: Script::default() });
        DiskId(state.devices.len() as u16 - 1)
    }

    /// A reactor of the target process, with all disks as its files.
    #[must_use]
    pub fn io(&self) -> SimIo {
        SimIo::new(self.clone(), true)
    }

    /// A reactor of another machine: it has no disks, and no crash of the target reaches it.
    #[must_use]
    pub fn outside(&self) -> SimIo {
        SimIo::new(self.clone(), false)
    }

    /// Opens a crash log of the target process, by number: what a killed process kept in it is there for the next one, what a
    /// machine kept before it lost power is not.
    #[must_use]
    pub fn log(&self, number: u32, capacity: usize) -> SimLog {
        SimLog::new(self.clone(), number, capacity)
    }

    /// A generator for the harness, of its own.
    #[must_use]
    pub fn rng(&self) -> Rng {
        self.0.borrow_mut().rng.fork()
    }

    /// One of `n`, at random: whose turn it is.
    #[must_use]
    pub fn pick(&self, n: usize) -> usize {
        self.0.borrow_mut().rng.below(n as u64) as usize
    }

    /// Gives turns to reactors in random order until `done`, the target crashes, or `turns` have passed.
    pub fn run<R>(
        &self,
        reactors: &mut [R],
        turns: u64,
        mut turn: impl FnMut(&mut R),
        mut done: impl FnMut(&mut [R]) -> bool,
    ) -> Ended {
        for _ in 0..turns {
            let next = self.pick(reactors.len());
            turn(&mut reactors[next]);
            if self.crashed() {
                return Ended::Crashed;
            }
            if done(reactors) {
                return Ended::Done;
            }
        }
        Ended::OutOfTurns
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant(self.0.borrow().now)
    }

    /// Lets so much time pass, and happen what is due in it.
    pub fn advance_ns(&self, ns: u64) {
        let mut state = self.0.borrow_mut();
        let until = state.now + ns;
        state.advance(until);
    }

    /// Says that a reactor got work from outside, by its injector say, which the world does not see: time stands until all have
    /// had a turn.
    pub fn stir(&self) {
        self.0.borrow_mut().stir();
    }

    /// Stops the target at a point, counted from now.
    pub fn crash_after(&self, point: CrashPoint) {
        let mut state = self.0.borrow_mut();
        match point {
            CrashPoint::Submitted(n) => state.crash_submitted = state.mutations_submitted + n,
            CrashPoint::Completed(n) => state.crash_completed = state.mutations_completed + n,
            CrashPoint::At(instant) => state.crash_at = instant.0,
        }
        state.check_crash();
    }

    /// Whether the target stands still at the point of [`World::crash_after`].
    #[must_use]
    pub fn crashed(&self) -> bool {
        self.0.borrow().crashed
    }

    /// Mutating operations submitted to and finished by the disks since the world began: what [`CrashPoint`] counts.
    #[must_use]
    pub fn mutations(&self) -> (u64, u64) {
        let state = self.0.borrow();
        (state.mutations_submitted, state.mutations_completed)
    }

    /// Runs code that polls until it is done; if the target crashes meanwhile, the next poll unwinds out of it.
    pub fn until_crash<T>(&self, run: impl FnOnce() -> T) -> Result<T, Crashed> {
        let before = std::mem::replace(&mut self.0.borrow_mut().unwinds, true);
        let result = catch_unwind(AssertUnwindSafe(run));
        self.0.borrow_mut().unwinds = before;
        result.or_else(|cause| if cause.is::<Crashed>() { Err(Crashed) } else { resume_unwind(cause) })
    }

    /// Kills the target process; its machine lives. Writes at the devices land later or never, see [`World::quiesce`].
    pub fn kill(&self) {
        let mut state = self.0.borrow_mut();
        let life = state.life;
        state.orphan_ops(move |state, reactor| state.reactors[reactor].life == Some(life), true);
        state.bury(|reactor| reactor.life == Some(life));
        state.orphan_sockets(|of, _| of == Some(life), true);
        state.end_life();
    }

    /// Cuts the power of the target's machine: what was not persistent may be gone, see above.
    pub fn power_loss(&self) {
        let mut state = self.0.borrow_mut();
        let life = state.life;
        // First the dead, whose keys name writes in the cache, then the cache.
        state.bury(|reactor| reactor.life == Some(life));
        state.cut_power();
        state.logs.clear();
        state.orphan_sockets(|of, _| of == Some(life), false);
        state.end_life();
    }

    /// Waits until nothing of a dead process is left: what an `flock` on the open file itself waits for.
    pub fn quiesce(&self) {
        let mut state = self.0.borrow_mut();
        while state.strays > 0 || state.listeners_dying() {
            let next = state.next_event().expect("what is left of a process is due at some time");
            state.advance(next);
        }
    }

    /// Writes of dead processes that may still land.
    #[must_use]
    pub fn stray_writes(&self) -> u64 {
        self.0.borrow().strays
    }

    /// What readers of a disk see now.
    #[must_use]
    pub fn image(&self, disk: DiskId) -> Image {
        self.0.borrow().devices[usize::from(disk.0)].disk.image()
    }

    /// One of the contents that power loss at this moment could leave on a disk; the world goes on undisturbed. So one run
    /// branches into as many crashes as wanted.
    #[must_use]
    pub fn power_loss_image(&self, disk: DiskId, rng: &mut Rng) -> Image {
        self.0.borrow_mut().power_loss_image(usize::from(disk.0), rng)
    }

    /// Bytes of a disk as readers see them now.
    #[must_use]
    pub fn bytes(&self, disk: DiskId, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.borrow().devices[usize::from(disk.0)].disk.read(offset, &mut bytes);
        bytes
    }

    /// Finished writes of a disk that power loss could still take.
    #[must_use]
    pub fn unflushed_writes(&self, disk: DiskId) -> usize {
        self.0.borrow().devices[usize::from(disk.0)].disk.unflushed()
    }

    /// Lets a fault befall the `nth` operation of this kind from now on, the first being 1.
    pub fn inject(&self, disk: DiskId, kind: OpKind, nth: u64, fault: Fault) {
        self.0.borrow_mut().devices[usize::from(disk.0)].script.order(kind, nth, fault);
    }

    /// Fails every operation of this kind that touches a range: bad sectors.
    pub fn spoil(&self, disk: DiskId, kind: OpKind, offset: u64, len: u64) {
        self.0.borrow_mut().devices[usize::from(disk.0)].script.spoil(kind, offset, len);
    }

    /// Changes the faults by chance, and ends those that were ordered.
    pub fn set_faults(&self, disk: DiskId, faults: Faults) {
        let mut state = self.0.borrow_mut();
        let device = &mut state.devices[usize::from(disk.0)];
        device.config.faults = faults;
        device.script.clear();
    }

    /// Flips a bit in each sector of a range, in the cache and on the medium.
    pub fn rot(&self, disk: DiskId, offset: u64, len: u64) {
        let state = &mut *self.0.borrow_mut();
        state.devices[usize::from(disk.0)].disk.rot(offset, len, &mut state.rng);
        state.injected.rotten_sectors += (offset + len).div_ceil(512) - offset / 512;
    }

    /// Breaks every connection.
    pub fn break_connections(&self) {
        let mut state = self.0.borrow_mut();
        for end in state.net.select(|_| true) {
            state.break_end(end);
        }
    }

    /// What was injected so far.
    #[must_use]
    pub fn injected(&self) -> Injected {
        self.0.borrow().injected
    }

    /// A number of all that has happened: equal for two runs exactly if they were the same run, but for chance.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.0.borrow().trace_hash()
    }
}
