//! The disk against its promise, word by word: random overlapping writes, barriers and power losses, judged by a model that
//! knows nothing but the order in which things were submitted and taken.

use super::*;
use crate::sim::Rng;

const BLOCKS: usize = 8;

/// One write as its submitter knows it. Steps number submissions and reaped completions.
struct Known {
    blocks: std::ops::Range<usize>,
    submitted: u64,
    reaped: Option<u64>,
    durable: bool,
    persistent: bool,
}

#[derive(Default)]
struct Model {
    step: u64,
    /// Write `n` fills its blocks with the byte `n + 1`.
    writes: Vec<Known>,
    /// Barriers in flight: token, and the step of their submission.
    barriers: Vec<(u64, u64)>,
}

impl Model {
    fn reap(&mut self, token: u64) {
        self.step += 1;
        if let Some(at) = self.barriers.iter().position(|&(barrier, _)| barrier == token) {
            let submitted = self.barriers.swap_remove(at).1;
            let covered = |write: &&mut Known| write.reaped.is_some_and(|reaped| reaped < submitted);
            self.writes.iter_mut().filter(covered).for_each(|write| write.persistent = true);
            return;
        }
        let write = &mut self.writes[token as usize];
        write.reaped = Some(self.step);
        write.persistent |= write.durable;
    }

    /// What a block may hold after power loss now: any write that no persistent later one has surely overwritten.
    fn allows(&self, block: usize, byte: u8) -> bool {
        let mut persistent = self.writes.iter().filter(|write| write.persistent && write.blocks.contains(&block));
        match byte {
            0 => persistent.next().is_none(),
            byte => {
                let found = &self.writes[usize::from(byte) - 1];
                let surely_older = |later: &Known| found.reaped.is_some_and(|reaped| reaped < later.submitted);
                found.blocks.contains(&block) && !persistent.any(surely_older)
            }
        }
    }
}

fn random_run(seed: u64) -> (World, Model) {
    let world = world(seed);
    let mut io = world.io();
    let mut rng = Rng::new(seed);
    let mut model = Model::default();
    let mut out = Vec::new();
    for round in 0..120u64 {
        model.step += 1;
        match rng.below(4) {
            0 => {
                barrier(&mut io, 1000 + round);
                model.barriers.push((1000 + round, model.step));
            }
            _ => {
                let from = rng.below(BLOCKS as u64) as usize;
                let to = from + 1 + rng.below((BLOCKS - from) as u64) as usize;
                let (token, durable) = (model.writes.len() as u64, rng.one_in(6));
                let buf = filled(&io, (to - from) as u64 * K4, token as u8 + 1);
                io.submit(Token(token), Op::Write { file: FILE, offset: from as u64 * K4, data: buf.into(), durable });
                let submitted = model.step;
                model.writes.push(Known { blocks: from..to, submitted, reaped: None, durable, persistent: false });
            }
        }
        if rng.one_in(2) {
            let until = io.now().plus_ns(rng.below(100_000));
            io.poll(Wait::Until(until), &mut out);
            out.drain(..).for_each(|completion| model.reap(completion.token.0));
        }
    }
    world.crash_after(crate::sim::CrashPoint::Submitted(0));
    (world, model)
}

#[test]
fn whatever_is_written_power_loss_leaves_only_what_the_promise_allows() {
    let (mut newest, mut older) = (0, 0);
    for seed in 0..400 {
        let (world, model) = random_run(seed);
        let mut rng = world.rng();
        for _ in 0..8 {
            let image = world.power_loss_image(DISK, &mut rng);
            for block in 0..BLOCKS {
                let bytes = image.bytes(block as u64 * K4, K4 as usize);
                assert!(bytes.iter().all(|&byte| byte == bytes[0]), "seed {seed}: block {block} is torn");
                assert!(model.allows(block, bytes[0]), "seed {seed}: block {block} holds write {}", bytes[0]);
                let last = model.writes.iter().rposition(|write| write.blocks.contains(&block));
                if last.is_some_and(|last| last + 1 == usize::from(bytes[0])) { newest += 1 } else { older += 1 }
            }
        }
    }
    assert!(newest > 500 && older > 500, "{newest} newest, {older} older");
}

#[test]
fn a_power_loss_in_place_keeps_the_same_promise() {
    seeds(200, |seed| {
        let (world, model) = random_run(seed);
        world.power_loss();
        for block in 0..BLOCKS {
            assert!(model.allows(block, world.bytes(DISK, block as u64 * K4, 1)[0]), "block {block}");
        }
    });
}
