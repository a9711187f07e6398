//! A random load against the model.

use std::collections::BTreeMap;
use std::ops::Range;

use ringway_core::ids::{RequestId, VolumeId};
use ringway_core::request::{Command, Done, Status};
use ringway_reactor::sim::{Ended, Rng};

use crate::rig::model::{End, Model, Snapshot};
use crate::rig::{BLOCK, MIB, Setup, Target};

/// Requests in flight at most.
const DEPTH: usize = 24;
const VOLUME: u64 = 24 * MIB;

enum Flying {
    Write { volume: VolumeId, blocks: Range<u64>, durable: bool },
    Read { volume: VolumeId, first: u64 },
    Flush { volume: VolumeId, snapshot: Snapshot },
}

/// A target under load.
pub(crate) struct Driver {
    target: Option<Target>,
    pub(crate) model: Model,
    pub(crate) volumes: Vec<VolumeId>,
    flying: BTreeMap<RequestId, Flying>,
    rng: Rng,
    pub(crate) ended: u64,
}

impl Driver {
    pub(crate) fn new(seed: u64, setup: Setup) -> Driver {
        let mut target = Target::new(seed, setup);
        let volumes = ["vm1", "vm2"].map(|name| target.create(name, VOLUME).id).to_vec();
        let rng = target.world.rng();
        Driver { target: Some(target), model: Model::default(), volumes, flying: BTreeMap::new(), rng, ended: 0 }
    }

    pub(crate) fn target(&mut self) -> &mut Target {
        self.target.as_mut().expect("it is open")
    }

    /// Submits one request and gives a few turns. False if the target has crashed.
    pub(crate) fn step(&mut self) -> Result<bool, String> {
        if self.flying.len() < DEPTH {
            self.submit();
        }
        let turns = self.rng.below(12);
        let crashed = self.target().run(turns, |_| false) == Ended::Crashed;
        self.collect()?;
        Ok(!crashed)
    }

    fn submit(&mut self) {
        let volume = self.volumes[self.rng.below(self.volumes.len() as u64) as usize];
        let stripe = self.rng.below(VOLUME / MIB - 1) * (MIB / BLOCK);
        // Few places, so that blocks are written again; some of them across the border of two stripes.
        let first = stripe + if self.rng.one_in(3) { MIB / BLOCK - 4 } else { self.rng.below(20) };
        let blocks = first..first + 1 + self.rng.below(12);
        let (offset, len) = (first * BLOCK, ((blocks.end - first) * BLOCK) as u32);
        let kind = self.rng.below(20);
        if kind < 2 {
            let snapshot = self.model.flush(volume);
            let id = self.target().request(volume, Command::Flush, 0, 0, None);
            self.flying.insert(id, Flying::Flush { volume, snapshot });
            return;
        }
        if !self.model.begin(volume, blocks.clone()) {
            return;
        }
        let (flying, command, bytes) = match kind {
            2..7 => (Flying::Read { volume, first }, Command::Read, Some(vec![0xEE; len as usize])),
            7 | 8 => {
                self.model.write(volume, blocks.clone(), true);
                let durable = kind == 7;
                let command =
                    if durable { Command::WriteZeroes { fua: true, deallocate: true } } else { Command::Deallocate };
                (Flying::Write { volume, blocks, durable }, command, None)
            }
            _ => {
                let bytes = self.model.write(volume, blocks.clone(), false);
                let fua = kind == 9;
                (Flying::Write { volume, blocks, durable: fua }, Command::Write { fua }, Some(bytes))
            }
        };
        let id = self.target().request(volume, command, offset, len, bytes.as_deref());
        self.flying.insert(id, flying);
    }

    fn collect(&mut self) -> Result<(), String> {
        for (id, done) in std::mem::take(&mut self.target().done) {
            let flying = self.flying.remove(&id).expect("every request ends once");
            self.ended += 1;
            self.judge(flying, &done)?;
        }
        Ok(())
    }

    fn judge(&mut self, flying: Flying, done: &Done) -> Result<(), String> {
        if done.status != Status::Success {
            return Err(format!("a request ended with {:?}", done.status));
        }
        match flying {
            Flying::Write { volume, blocks, durable } => self.model.written(volume, blocks, true, durable),
            Flying::Flush { volume, snapshot } => self.model.flushed(volume, &snapshot),
            Flying::Read { volume, first } => {
                let bytes = done.data.as_ref().expect("a read gives its buffer back").bytes();
                self.model.check(volume, first, &bytes, End::None)?;
            }
        }
        Ok(())
    }

    /// Waits for everything in flight. False if the target has crashed.
    pub(crate) fn settle(&mut self) -> Result<bool, String> {
        while !self.flying.is_empty() {
            let before = self.flying.len();
            match self.target().run(500_000, |done| !done.is_empty()) {
                Ended::Crashed => return Ok(false),
                Ended::OutOfTurns => return Err(format!("{before} requests do not end")),
                Ended::Done => self.collect()?,
            }
        }
        Ok(true)
    }

    /// Ends the process or the machine, opens again, and checks every block against what was promised.
    pub(crate) fn crash(&mut self, end: End) -> Result<(), String> {
        let mut target = self.target.take().expect("it is open");
        // What had ended and was not yet collected has been promised.
        let late: Vec<_> = target
            .reactors
            .iter_mut()
            .flat_map(|reactor| reactor.application().take_done().collect::<Vec<_>>())
            .collect();
        for done in late {
            let flying = self.flying.remove(&done.id).expect("every request ends once");
            self.judge(flying, &done)?;
        }
        self.flying.clear();
        self.model.crashed();
        self.target = Some(if end == End::Kill { target.kill() } else { target.power_loss() });
        self.check(end)
    }

    pub(crate) fn check(&mut self, end: End) -> Result<(), String> {
        for volume in self.volumes.clone() {
            for block in self.model.blocks_of(volume) {
                assert!(self.model.begin(volume, block..block + 1), "nothing is in flight");
                let bytes = self
                    .target()
                    .read(volume, block * BLOCK, BLOCK as usize)
                    .map_err(|status| format!("volume {volume} block {block}: {status:?}"))?;
                self.model.check(volume, block, &bytes, end)?;
            }
        }
        Ok(())
    }
}

fn run(seed: u64, setup: Setup, steps: u64) {
    let mut driver = Driver::new(seed, setup);
    let outcome = (0..steps).try_for_each(|_| driver.step().map(drop)).and_then(|()| driver.settle());
    let outcome = outcome.and_then(|_| driver.check(End::None));
    outcome.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    assert!(driver.ended > steps / 4, "{} of {steps} ended", driver.ended);
    driver.target().stop();
}

#[test]
fn every_read_returns_what_was_last_written_whoever_wrote_it() {
    for seed in 0..6 {
        run(seed, Setup { reactors: 1 + seed as usize % 4, shards: 1 + seed as u16, ..Setup::default() }, 600);
    }
}

#[test]
fn h13_mailboxes_of_one_message_delay_and_never_deadlock() {
    for seed in 20..26 {
        run(seed, Setup { reactors: 4, shards: 5, mailbox: 1, ..Setup::default() }, 500);
    }
}

#[test]
fn what_was_stopped_in_good_order_is_all_there_when_it_is_opened_again() {
    let mut driver = Driver::new(40, Setup::default());
    (0..300).try_for_each(|_| driver.step().map(drop)).unwrap();
    driver.settle().unwrap();
    let target = driver.target.take().unwrap();
    driver.target = Some(target.restart());
    driver.check(End::Kill).unwrap();
}
