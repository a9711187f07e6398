//! Reactors as the product runs them, with mail between them: time must not run away from a message that nobody has read.

use super::*;
use crate::mailbox::{Endpoint, Mesh};
use crate::sim::Ended;
use crate::turn::{Application, Reactor};

/// Passes a number on, one less each time; every tenth hop writes a block first.
struct Relay {
    next: usize,
    waiting: Vec<u64>,
    finished: Option<Instant>,
    wakes_at: Instant,
    late_ns: u64,
}

impl Application<SimIo, u64> for Relay {
    fn on_completion(&mut self, _io: &mut SimIo, completion: Completion) {
        self.waiting.push(completion.token.0);
    }

    fn on_message(&mut self, io: &mut SimIo, _from: usize, hops: u64) {
        if hops.is_multiple_of(10) {
            write(io, hops, hops * 512, 512, 1);
        } else {
            self.waiting.push(hops);
        }
    }

    fn on_control(&mut self, _io: &mut SimIo, hops: u64) {
        self.waiting.push(hops);
    }

    fn execute(&mut self, io: &mut SimIo, mail: &mut Endpoint<u64>) -> bool {
        if io.now() >= self.wakes_at {
            self.late_ns = self.late_ns.max(io.now().since_ns(self.wakes_at));
            self.wakes_at = io.now().plus_ns(1_000_000_000);
        }
        for hops in self.waiting.drain(..) {
            match hops {
                0 => self.finished = Some(io.now()),
                hops => mail.send(self.next, hops - 1),
            }
        }
        false
    }

    fn next_deadline(&self) -> Instant {
        self.wakes_at
    }

    fn busy(&self) -> bool {
        !self.waiting.is_empty()
    }
}

#[test]
fn mail_between_reactors_is_read_before_time_moves_on() {
    seeds(30, |seed| {
        let world = world(seed);
        let mut reactors: Vec<Reactor<SimIo, u64, Relay>> = Mesh::new(3, 4)
            .into_iter()
            .enumerate()
            .map(|(number, mail)| {
                let wakes_at = world.now().plus_ns(1_000_000_000);
                let relay = Relay { next: (number + 1) % 3, waiting: Vec::new(), finished: None, wakes_at, late_ns: 0 };
                Reactor::new(world.io(), mail, relay)
            })
            .collect();
        reactors[0].application().waiting.push(200);
        let begun = world.now();
        let ended = world.run(
            &mut reactors,
            1_000_000,
            |reactor| {
                reactor.turn(true);
            },
            |reactors| reactors.iter_mut().any(|reactor| reactor.application().finished.is_some()),
        );
        assert_eq!(ended, Ended::Done);
        let took = world.now().since_ns(begun);
        assert!(took < 10_000_000, "200 hops and 20 writes of 150 us at most took {took} ns");
    });
}

#[test]
fn a_deadline_is_met_although_everybody_sleeps() {
    let world = world(2);
    let mut reactors: Vec<_> = Mesh::<u64>::new(3, 4)
        .into_iter()
        .map(|mail| {
            let wakes_at = world.now().plus_ns(1_000_000_000);
            let relay = Relay { next: 0, waiting: Vec::new(), finished: None, wakes_at, late_ns: 0 };
            Reactor::new(world.io(), mail, relay)
        })
        .collect();
    let until = world.now().plus_ns(20_000_000_000);
    let mut turns = 0;
    let ended = world.run(
        &mut reactors,
        10_000,
        |reactor| {
            turns += 1;
            reactor.turn(true);
        },
        |_| world.now() >= until,
    );
    assert_eq!(ended, Ended::Done);
    assert!(turns < 2_000, "sleeping is cheap: {turns} turns");
    for reactor in &mut reactors {
        assert!(reactor.application().late_ns < 1_000_000);
    }
}
