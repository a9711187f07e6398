//! The proof of the cut by looking: every interleaving of small worlds, many random ones of larger worlds, and rules with one thing
//! wrong, each of which has to be found out (histories C1 and C2).

mod model;
#[path = "../soak/mod.rs"]
mod soak;

use std::collections::HashSet;

use model::{Action, Model, Op, Rules, State};

const fn write(shard: u8, value: u8) -> Op {
    Op::Write { shard, value }
}

const fn read(shard: u8) -> Op {
    Op::Read { shard }
}

/// Two clients on two shards: one writes, the other reads that, or is told of it, and writes elsewhere.
fn small(rules: Rules) -> Model {
    Model {
        rules,
        scripts: vec![vec![write(0, 1), write(0, 2)], vec![read(0), write(1, 3)]],
        shards: 2,
        talks: 1,
        foreign: 1,
    }
}

/// Looks at every state that can be reached. How many there are, and the first violation with the way to it.
fn exhaust(model: &Model) -> (usize, Option<(&'static str, Vec<Action>)>) {
    let mut seen: HashSet<State> = HashSet::new();
    let mut way: Vec<(State, Vec<Action>, usize)> = Vec::new();
    let mut actions = Vec::new();
    let start = model.start();
    model.actions(&start, &mut actions);
    seen.insert(start.clone());
    way.push((start, actions.clone(), 0));
    while let Some((state, choices, at)) = way.last_mut() {
        let Some(&action) = choices.get(*at) else {
            way.pop();
            continue;
        };
        *at += 1;
        let mut next = state.clone();
        model.take(&mut next, action);
        if let Some(what) = next.violation().or_else(|| next.torn()) {
            let steps = way.iter().map(|(_, choices, at)| choices[at - 1]).collect();
            return (seen.len(), Some((what, steps)));
        }
        if seen.insert(next.clone()) {
            model.actions(&next, &mut actions);
            way.push((next, actions.clone(), 0));
        }
    }
    (seen.len(), None)
}

/// A small generator: the same worlds on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }
}

/// A larger world: three shards, three clients with five operations each.
fn large(rules: Rules, random: &mut Random) -> Model {
    let mut value = 0;
    let scripts = (0..3)
        .map(|_| {
            (0..5)
                .map(|_| {
                    let shard = random.below(3) as u8;
                    if random.below(3) == 0 {
                        return read(shard);
                    }
                    value += 1;
                    write(shard, value)
                })
                .collect()
        })
        .collect();
    Model { rules, scripts, shards: 3, talks: 6, foreign: 3 }
}

/// A random way through a random world. Whether its cut was sealed, and the first violation.
fn wander(rules: Rules, seed: u64) -> (bool, Option<&'static str>) {
    let mut random = Random(seed ^ 0x5EED);
    let model = large(rules, &mut random);
    let (mut state, mut actions) = (model.start(), Vec::new());
    for _ in 0..400 {
        model.actions(&state, &mut actions);
        if actions.is_empty() {
            break;
        }
        model.take(&mut state, actions[random.below(actions.len())]);
        if let Some(what) = state.violation().or_else(|| state.torn()) {
            return (false, Some(what));
        }
    }
    (state.is_sealed(), None)
}

fn mutants() -> [(&'static str, Rules); 6] {
    let ours = Rules::OURS;
    let flipped = Rules { one_word: false, ..ours };
    [
        ("epochs flipped a shard at a time", flipped),
        ("flipped, acknowledgements held but not reads", Rules { hold_acknowledgements: true, ..flipped }),
        ("the word read before the pull", Rules { pull_first: false, ..ours }),
        ("cut without arming", Rules { arm: false, ..ours }),
        ("sealed while writes run", Rules { seal_waits: false, ..ours }),
        ("the word stored instead of stepped", Rules { step: false, ..ours }),
    ]
}

#[test]
fn c1_c2_no_interleaving_of_a_small_world_tears_a_cut_or_changes_a_sealed_one() {
    let (states, found) = exhaust(&small(Rules::OURS));
    assert_eq!(found, None, "after {states} states");
    println!("{states} states");
    assert!(states > 50_000, "{states} states");
}

#[test]
fn c1_c2_each_rule_is_needed_to_keep_every_cut_whole() {
    for (name, rules) in mutants() {
        let (states, found) = exhaust(&small(rules));
        println!("{name}: {found:?} after {states} states");
        assert!(found.is_some(), "{name}: not found out in {states} states");
    }
}

#[test]
fn c1_c2_no_random_way_through_larger_worlds_tears_a_cut() {
    let mut sealed = 0;
    for seed in 0..60_000 {
        let (whole, found) = wander(Rules::OURS, seed);
        assert_eq!(found, None, "seed {seed}");
        sealed += usize::from(whole);
    }
    assert!(sealed > 30_000, "{sealed} cuts were sealed");
}

#[test]
fn c1_c2_random_ways_find_each_rule_missing_too() {
    for (name, rules) in mutants() {
        assert!((0..60_000).any(|seed| wander(rules, seed).1.is_some()), "{name}: not found out");
    }
}

#[test]
fn soak_c1_c2_no_random_way_tears_a_cut() {
    for seed in soak::seeds(20_000) {
        assert_eq!(wander(Rules::OURS, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).1, None, "seed {seed}");
    }
}
