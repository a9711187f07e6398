//! Which block comes next.

use rand::distr::Distribution;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::Zipf;

use super::config::{Mix, Pattern};

/// What is done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read a block.
    Read,
    /// Write a block.
    Write { fua: bool },
    /// Deallocate a block.
    Trim,
    /// Write zeros to a block.
    Zeroes,
    /// Flush the volume.
    Flush,
}

/// The seeded source of steps and blocks of one run.
pub struct Source {
    rng: SmallRng,
    pattern: Pattern,
    zipf: Option<Zipf<f64>>,
    mix: Mix,
    blocks: u64,
    next: u64,
}

impl Source {
    /// A source over `blocks` blocks.
    ///
    /// # Panics
    /// If there is no block.
    #[must_use]
    pub fn new(seed: u64, pattern: Pattern, mix: Mix, blocks: u64) -> Self {
        assert!(blocks > 0, "a region has a block");
        let zipf = match pattern {
            Pattern::Zipf(theta) => Some(Zipf::new(blocks as f64, theta).expect("the exponent was checked")),
            Pattern::Sequential | Pattern::Stride(_) | Pattern::Random => None,
        };
        Self { rng: SmallRng::seed_from_u64(seed), pattern, zipf, mix, blocks, next: 0 }
    }

    /// What comes next.
    pub fn step(&mut self) -> Step {
        let mix = self.mix;
        let mut at = self.rng.random_range(0..mix.total());
        for (weight, step) in [
            (mix.read, Step::Read),
            (mix.write, Step::Write { fua: false }),
            (mix.write_fua, Step::Write { fua: true }),
            (mix.trim, Step::Trim),
            (mix.zeroes, Step::Zeroes),
        ] {
            if at < weight {
                return step;
            }
            at -= weight;
        }
        Step::Flush
    }

    /// Where it happens.
    pub fn block(&mut self) -> u64 {
        match (self.pattern, &self.zipf) {
            (Pattern::Sequential, _) => self.advance(1),
            (Pattern::Stride(stride), _) => self.advance(stride),
            (_, Some(zipf)) => {
                let rank = (zipf.sample(&mut self.rng) as u64 - 1).min(self.blocks - 1);
                scatter(rank, self.blocks)
            }
            (_, None) => self.rng.random_range(0..self.blocks),
        }
    }
}

impl Source {
    fn advance(&mut self, blocks: u64) -> u64 {
        let block = self.next;
        self.next = (self.next + blocks) % self.blocks;
        block
    }
}

/// Hot ranks, which are neighbours, over all blocks; a collision only merges two of them.
fn scatter(rank: u64, blocks: u64) -> u64 {
    let hash = rank.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((u128::from(hash) * u128::from(blocks)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_come_by_their_weights() {
        let mix = Mix { read: 70, write: 20, write_fua: 0, trim: 4, zeroes: 5, flush: 1 };
        let mut source = Source::new(1, Pattern::Random, mix, 10);
        let mut counts = std::collections::HashMap::<_, u32>::new();
        for _ in 0..100_000 {
            *counts.entry(format!("{:?}", source.step())).or_default() += 1;
        }
        let share = |step: Step| counts.get(&format!("{step:?}")).copied().unwrap_or(0) / 1000;
        assert!((69..=71).contains(&share(Step::Read)) && (19..=21).contains(&share(Step::Write { fua: false })));
        assert_eq!(share(Step::Write { fua: true }), 0);
        assert!((3..=5).contains(&share(Step::Trim)) && share(Step::Flush) <= 2);
    }

    #[test]
    fn every_pattern_stays_inside_the_region_and_zipf_has_hot_blocks() {
        for pattern in [Pattern::Sequential, Pattern::Stride(3), Pattern::Random, Pattern::Zipf(1.2)] {
            let mut source = Source::new(3, pattern, Mix::READ, 1000);
            let mut hits = vec![0_u32; 1000];
            (0..20_000).for_each(|_| hits[source.block() as usize] += 1);
            let hottest = *hits.iter().max().unwrap();
            match pattern {
                Pattern::Sequential | Pattern::Stride(_) => assert!(hits.iter().all(|&n| n == 20)),
                Pattern::Random => assert!(hottest < 60),
                Pattern::Zipf(_) => assert!(hottest > 2000),
            }
        }
    }
}
